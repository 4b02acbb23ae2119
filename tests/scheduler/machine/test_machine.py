"""Reading the machine: host, container limits, and the GPU that CUDA would show, all from made-up systems."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch

from scheduler.errors import MachineError
from scheduler.machine import machine as machine_module
from scheduler.machine.container import container_memory
from scheduler.machine.cuda import as_cuda_numbers
from scheduler.machine.machine import WSL_PINNED_BYTES, read_machine
from tests.fakes.fake_nvml import fake_nvml

GB = 10**9
NO_LIMIT_V1 = 9_223_372_036_854_771_712


DISPLAY = {"uuid": "GPU-aaaa-1", "name": "GT 1030", "total": 2 * GB, "free": GB, "cores": 384, "clock": 1468}
BIG = {
    "uuid": "GPU-bbbb-2",
    "name": b"RTX 4090",
    "total": 25 * GB,
    "free": 24 * GB,
    "cores": 16384,
    "clock": 3105,
    "slot": (4, 16),
}
SLICE = {"uuid": "MIG-cccc-3", "name": "H100 1g.10gb", "total": 10 * GB, "free": 9 * GB, "cores": 1, "clock": 1}

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Replace pynvml and the variables CUDA reads."""

    def replace(nvml: ModuleType | None, visible: str | None = None, order: str | None = None) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return replace


def test_cpu_is_its_own_device() -> None:
    machine = read_machine("cpu")
    assert machine.device == "cpu" and machine.device_name and machine.cores >= 1
    assert (machine.device_total, machine.device_free) == (machine.host_total, machine.host_available)
    assert 0 < machine.host_available <= machine.host_total <= psutil.virtual_memory().total
    assert machine.link_bandwidth is None and machine.disk_bandwidth is None


def test_gpu_figures_come_from_nvml(install: Install) -> None:
    install(fake_nvml(BIG))
    machine = read_machine("auto")
    assert (machine.device, machine.device_name) == ("cuda", "RTX 4090")
    assert (machine.device_total, machine.device_free) == (25 * GB, 24 * GB)
    assert machine.without_gpu().device_free == machine.host_available


@pytest.mark.parametrize(
    ("visible", "order", "name"),
    [
        (None, None, "RTX 4090"),  # the fastest is CUDA's device 0, wherever it sits on the bus
        (None, "PCI_BUS_ID", "GT 1030"),
        ("1", None, "GT 1030"),
        ("1,0", "PCI_BUS_ID", "RTX 4090"),
        ("GPU-aaaa-1,GPU-bbbb-2", None, "GT 1030"),
        ("GPU-bb", None, "RTX 4090"),
    ],
)
def test_visible_devices_choose_the_gpu(install: Install, visible: str | None, order: str | None, name: str) -> None:
    install(fake_nvml(DISPLAY, BIG), visible, order)
    assert read_machine("cuda").device_name == name


def test_a_slice_of_a_gpu_is_found_by_its_uuid(install: Install) -> None:
    install(fake_nvml(BIG, SLICE), "MIG-cccc-3")
    assert read_machine("cuda").device_total == 10 * GB


@pytest.mark.parametrize("visible", [None, "0", "GPU-bbbb-2"])
def test_of_a_gpu_that_is_cut_into_slices_the_first_is_used(install: Install, visible: str | None) -> None:
    install(fake_nvml({**BIG, "slices": [None, SLICE]}), visible)
    assert read_machine("cuda").device_total == 10 * GB
    install(fake_nvml({**BIG, "slices": []}), visible)
    assert read_machine("cuda").device_total == 25 * GB


@pytest.mark.parametrize("visible", ["", "-1", "7", "GPU-zzzz", "GPU-", "MIG-none", "none"])
def test_hidden_gpus_are_not_used(install: Install, visible: str) -> None:
    install(fake_nvml(DISPLAY, BIG), visible)
    assert read_machine("auto").device == "cpu"
    with pytest.raises(MachineError, match="no NVIDIA GPU"):
        read_machine("cuda")


def test_without_driver_or_package_there_is_no_gpu(install: Install, tmp_path: Path) -> None:
    for nvml, reason in ((fake_nvml(broken="Driver Not Loaded"), "Driver Not Loaded"), (None, "nvidia-ml-py")):
        install(nvml)
        assert read_machine("auto", tmp_path).device == "cpu"
        with pytest.raises(MachineError, match=reason):
            read_machine("cuda", tmp_path)
    install(fake_nvml())
    with pytest.raises(MachineError, match="lists 0"):
        read_machine("cuda")


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "gpu", "cpu:0", "CUDA", "cuda:9999"])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="auto, cpu, cuda, or cuda:1"):
        read_machine(device)


@pytest.mark.parametrize(
    ("visible", "order", "device", "name"),
    [
        (None, None, "cuda:1", "GT 1030"),
        (None, "PCI_BUS_ID", "cuda:1", "RTX 4090"),
        ("1,0", None, "cuda:1", "RTX 4090"),
        ("GPU-aa,GPU-bb", None, "cuda:1", "RTX 4090"),
        ("0, 1", None, "cuda:1", "GT 1030"),
        ("1", None, "cuda:0", "GT 1030"),
    ],
)
def test_a_gpu_is_chosen_by_cudas_number(
    install: Install, visible: str | None, order: str | None, device: str, name: str
) -> None:
    install(fake_nvml(DISPLAY, BIG), visible, order)
    machine = read_machine(device)
    assert (machine.device, machine.device_name, machine.torch_device) == ("cuda", name, device)


@pytest.mark.parametrize(
    ("visible", "device"), [(None, "cuda:2"), ("1", "cuda:1"), ("0,7,1", "cuda:1"), ("0,,1", "cuda:1")]
)
def test_a_number_that_cuda_does_not_show_is_refused(install: Install, visible: str | None, device: str) -> None:
    """An entry that names nothing hides all that follow."""
    install(fake_nvml(DISPLAY, BIG), visible)
    with pytest.raises(MachineError, match=f"no GPU {device[-1]}"):
        read_machine(device)


def test_a_slice_is_found_by_the_name_that_older_drivers_gave_it(install: Install) -> None:
    slices = [{**SLICE, "instances": (1, 0)}, None, {**SLICE, "instances": (2, 0), "total": 20 * GB}]
    install(fake_nvml({**BIG, "slices": slices}), "MIG-GPU-bbbb-2/2/0")
    assert read_machine("cuda").device_total == 20 * GB
    install(fake_nvml({**BIG, "slices": slices}), "MIG-GPU-bbbb-2/3/0")
    with pytest.raises(MachineError, match="shows none"):
        read_machine("cuda")


CARDS = ["proc/driver/nvidia/gpus/0000:01:00.0/information", "dev/nvidia0", "usr/lib/wsl/lib/libcuda.so.1"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What CUDA itself says, once it has started; `error` keeps it from starting."""
    says = SimpleNamespace(error=None, uuid="bbbb-2", name="RTX 4090", total=25 * GB, free=23 * GB)

    def start() -> None:
        if says.error:
            raise says.error

    monkeypatch.setattr(torch.cuda, "init", start)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name=says.name, uuid=says.uuid, major=8, minor=9),
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (says.free, says.total))
    return says


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("nvml", [fake_nvml(broken="Driver/library version mismatch"), None], ids=["broken", "absent"])
def test_where_nvml_fails_beside_a_card_cuda_is_asked(
    install: Install, cuda: SimpleNamespace, tmp_path: Path, nvml: ModuleType | None, card: str, device: str
) -> None:
    install(nvml)
    machine = read_machine(device, write(tmp_path, {card: ""}))
    assert (machine.device, machine.device_name, machine.device_free) == ("cuda", "RTX 4090", 23 * GB)
    assert machine.uuid == "GPU-bbbb-2" and machine.index == (device == "cuda:1")
    assert "CUDA itself was asked" in str(machine.note)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_card_that_nothing_can_use_is_never_passed_over(
    install: Install, cuda: SimpleNamespace, tmp_path: Path, device: str
) -> None:
    cuda.error = RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.\nmore")
    install(fake_nvml(broken="Driver/library version mismatch"))
    with pytest.raises(MachineError, match=r"version mismatch.*initialization failed.*\n.*nvidia-smi"):
        read_machine(device, write(tmp_path, {CARDS[0]: ""}))


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_card_that_the_user_hides_is_not_asked_for(
    install: Install, cuda: SimpleNamespace, tmp_path: Path, visible: str
) -> None:
    install(fake_nvml(broken="Driver Not Loaded"), visible)
    assert read_machine("auto", write(tmp_path, {CARDS[0]: ""})).device == "cpu"


@pytest.mark.parametrize("planned", ["GPU-bbbb-2", "MIG-BBBB-2", None])
def test_the_device_that_cuda_means_as_well_stays(install: Install, cuda: SimpleNamespace, planned: str | None) -> None:
    install(fake_nvml(DISPLAY, BIG))
    machine = replace(read_machine("cuda"), uuid=planned)
    assert as_cuda_numbers(machine) is machine


def test_another_device_of_cudas_takes_the_place_of_the_one_that_nvml_listed(
    install: Install, cuda: SimpleNamespace
) -> None:
    install(fake_nvml(DISPLAY, BIG), order="PCI_BUS_ID")
    machine = replace(read_machine("cuda"), flops=1e12, pinned_limit=7)
    assert machine.device_name == "GT 1030"
    ours = as_cuda_numbers(machine)
    assert (ours.device_name, ours.uuid, ours.pcie, ours.device_free) == (
        "RTX 4090",
        "GPU-bbbb-2",
        "PCIe 4.0 x16",
        24 * GB,
    )
    assert (ours.flops, ours.pinned_limit, ours.host_total) == (None, 7, machine.host_total)


def test_of_a_slice_that_cuda_calls_by_the_whole_gpus_name_the_memory_counts(
    install: Install, cuda: SimpleNamespace
) -> None:
    install(fake_nvml({**BIG, "slices": [SLICE]}))
    cuda.total, cuda.free = 10 * GB, 8 * GB
    ours = as_cuda_numbers(read_machine("cuda"))
    assert (ours.device_total, ours.device_free) == (10 * GB, 8 * GB)


def test_a_container_limit_counts_where_it_is_tighter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GB, available=50 * GB))
    for found, expected in (((8 * GB, 6 * GB), (8 * GB, 6 * GB)), ((99 * GB, 98 * GB), (64 * GB, 50 * GB))):
        monkeypatch.setattr(machine_module, "container_memory", lambda found=found: found)
        machine = read_machine("cpu")
        assert (machine.host_total, machine.host_available) == expected


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_cgroup_v2_takes_the_tightest_parent_and_gives_cache_back(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/user"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/app\n",
            f"{top}/memory.max": "8000\n",
            f"{top}/memory.current": "5000\n",
            f"{top}/memory.stat": "anon 3000\ninactive_file 1500\nactive_file 500\n",
            f"{top}/app/memory.max": "max\n",
            f"{top}/app/memory.current": "4000\n",
        },
    )
    assert container_memory(root) == (8000, 5000)


def test_cgroup_v1_inside_a_container_reads_the_mounts_top(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/memory"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:devices:/docker/abc\n4:cpu,memory:/docker/abc\n0::/\n",
            f"{top}/memory.limit_in_bytes": "4000",
            f"{top}/memory.usage_in_bytes": "4500",
            f"{top}/memory.stat": "cache 100\ntotal_inactive_file 200\ntotal_active_file 0\n",
        },
    )
    assert container_memory(root) == (4000, 0)


def test_no_limit_no_control_groups(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is None
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max"})
    assert container_memory(root) is None


def test_what_the_driver_says_of_a_gpu(install: Install) -> None:
    install(fake_nvml(BIG))
    machine = read_machine("cuda")
    assert (machine.driver, machine.pcie, machine.uuid) == ("580.65", "PCIe 4.0 x16", "GPU-bbbb-2")
    assert machine.link_bandwidth == pytest.approx(25.2e9, rel=0.01) and machine.estimated == ("link_bandwidth",)


def test_a_gpu_that_keeps_its_slot_to_itself(install: Install) -> None:
    install(fake_nvml(DISPLAY))
    machine = read_machine("cuda")
    assert (machine.pcie, machine.link_bandwidth, machine.estimated) == (None, None, ())


@pytest.mark.parametrize(
    ("kernel", "limit"),
    [("Linux version 5.15.153.1-microsoft-standard-WSL2", WSL_PINNED_BYTES), ("Linux version 6.1.0-debian", None)],
)
def test_under_windows_little_can_be_pinned(kernel: str, limit: int | None, install: Install, tmp_path: Path) -> None:
    install(fake_nvml(BIG))
    assert read_machine("cuda", write(tmp_path, {"proc/version": kernel})).pinned_limit == limit
