"""`--device cuda:1`, GPUs that CUDA numbers otherwise than NVML, and cards that PyTorch cannot use."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from loaders.sizes import GIB
from offload_runtime import OffloadRuntime
from offload_runtime.generation import runtime
from offload_runtime.loading import models as loading
from offload_runtime.model.model import Model
from offload_runtime.options.arguments import parse_chat_arguments
from offload_runtime.options.run_options import Options
from offload_runtime.planning import planning
from offload_runtime.planning.forecast import forecast
from offload_runtime.planning.planning import prepare
from scheduler.machine.torch_build import TorchBuild
from scheduler.streaming import bandwidth
from tests.plan_samples import gpu
from tests.samples.tiny_models import PROMPT, checkpoint, greedy


@pytest.fixture
def cuda_build(monkeypatch):
    monkeypatch.setattr(planning, "torch_build", lambda: TorchBuild("2.13.0+cu130", "13.0"))


def test_the_option_takes_a_number(capsys):
    assert parse_chat_arguments(["--device", "cuda:1"]).device == "cuda:1"
    with pytest.raises(SystemExit):
        parse_chat_arguments(["--device", "cuda:x"])
    assert "cuda:1 for the second GPU" in capsys.readouterr().err


def test_the_number_reaches_the_machine_and_the_measurements(monkeypatch, cuda_build):
    asked: list[object] = []

    def read(device: str):
        asked.append(device)
        return replace(gpu(8 * GIB), index=1)

    monkeypatch.setattr(planning, "read_machine", read)
    prepared = prepare(Options(model=checkpoint("llama"), draft=None, device="cuda:1"))
    monkeypatch.setattr(bandwidth, "measure_speed", lambda device, dtype: asked.append(device) or {})
    bandwidth.with_speed(prepared.machine, "float32", lambda device, dtype: {})
    assert asked == ["cuda:1", torch.device("cuda:1")]
    assert prepared.plan.as_dict()["machine"]["index"] == 1


def test_what_cuda_calls_the_device_is_planned_for(monkeypatch, cuda_build, caplog):
    listed, meant = gpu(8 * GIB), replace(gpu(2 * GIB), device_name="NVIDIA GeForce RTX 4090")
    monkeypatch.setattr(planning, "read_machine", lambda device: listed)
    prepared = prepare(Options(model=checkpoint("llama"), draft=None, device="cuda"))
    monkeypatch.setattr(loading, "as_cuda_numbers", lambda machine: meant)
    plan = loading._as_cuda_numbers(prepared).plan
    assert plan.machine.device_name == meant.device_name and plan.device_budget < 2 * GIB
    assert plan.machine.flops and "is NVIDIA GeForce RTX 4090, not some GPU" in caplog.text
    monkeypatch.setattr(loading, "as_cuda_numbers", lambda machine: machine)
    assert loading._as_cuda_numbers(prepared) is prepared


def test_loading_and_every_step_have_their_gpu_as_the_current_one(monkeypatch):
    """Events, pinned memory and Triton's launches are of the current one, whichever thread it is."""
    current: list[torch.device] = []

    @contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    forward, load = Model.forward, loading._load_on

    def checked(function):
        def call(*arguments, **options):
            assert current
            return function(*arguments, **options)

        return call

    for module in (loading, runtime):
        monkeypatch.setattr(module, "current_device", entered)
    monkeypatch.setattr(Model, "forward", checked(forward))
    monkeypatch.setattr(loading, "_load_on", checked(load))
    target = checkpoint("llama")
    with OffloadRuntime.from_pretrained(target, "none", device="cpu", context_length=64) as loaded:
        for _ in loaded.stream(PROMPT, max_new_tokens=3, temperature=0):
            assert not current  # not while the caller has its turn
        assert loaded.last_reply.token_ids == greedy(target, PROMPT, 3)


def test_a_kernel_is_launched_on_the_gpu_of_its_output(monkeypatch):
    pytest.importorskip("triton")
    from loaders.dequantize import kernels

    current: list[int] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(id(tensor))
        yield
        current.pop()

    seen: list[list[int]] = []
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(kernels, "KERNELS", {SimpleNamespace: lambda *arguments: seen.append([*current])})
    out = torch.empty(2, 3)
    kernels.decode_fused(SimpleNamespace(), {}, out)
    assert seen == [[id(out)]]


def test_a_card_that_pytorch_is_not_built_for_is_told(monkeypatch):
    monkeypatch.setattr(planning, "torch_build", lambda: TorchBuild("2.13.0+cpu", None))
    monkeypatch.setattr(planning, "has_nvidia_card", lambda: True)
    options = Options(model=checkpoint("llama"), draft=None)
    lines = "\n".join(forecast(prepare(options)))
    assert "built without CUDA: the processor computes" in lines and "pip install" in lines
    assert "NVIDIA" not in "\n".join(forecast(prepare(replace(options, device="cpu"))))
    monkeypatch.setattr(planning, "has_nvidia_card", lambda: False)
    assert "NVIDIA" not in "\n".join(forecast(prepare(options)))
