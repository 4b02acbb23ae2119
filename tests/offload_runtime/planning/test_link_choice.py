"""`--link auto`: packed where the link is slow beside restoring, plain where it is not, and it says why."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loaders.checkpoint.random_weights import write_random_checkpoint
from loaders.sizes import GIB, MIB, parse_size
from offload_runtime import OffloadRuntime
from offload_runtime.chat.status import start_notes
from offload_runtime.options.run_options import Options
from offload_runtime.planning import link_choice, planning
from offload_runtime.planning.forecast import forecast
from offload_runtime.planning.planning import Preparation, prepare
from scheduler.machine.machine import Machine
from scheduler.plan.pass_cost import RESTORED_VALUE_SECONDS, resident_cost
from tests.plan_samples import cpu, gpu
from tests.samples.tiny_models import PROMPT

SHAPE = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "vocab_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
SPEEDS = {"flops": 1e11, "memory_bandwidth": 2e10}
SLOW, QUICK = 1e6, 2e9  # bytes per second


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "bfloat16"
    write_random_checkpoint(SHAPE, directory)
    return directory


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch):
    """What is prepared on a machine whose disk gives so many bytes per second."""

    def planned(
        model: Path, machine: Machine, disk: float = QUICK, draft: str | None = None, **options: object
    ) -> Preparation:
        monkeypatch.setattr(planning, "read_bandwidth", lambda *arguments: disk)
        monkeypatch.setattr(link_choice, "read_bandwidth", lambda *arguments: disk)
        monkeypatch.setattr(planning, "machine_for", lambda device: machine)
        monkeypatch.setattr(planning, "check_build", lambda *arguments: None)
        monkeypatch.setattr(planning, "with_known_figures", lambda machine, dtype: machine)
        given = {"device_memory": 20 * MIB, "context_length": 64, "link": "auto", "dtype": "bfloat16", **options}
        return prepare(Options(model, draft, **given))

    return planned


def known(machine: Machine, **speeds: float) -> Machine:
    return replace(machine, **{**SPEEDS, **speeds})


def test_a_processor_beside_a_quick_disk_reads_weights_as_they_are(model: Path, plan) -> None:
    prepared = plan(model, known(cpu(8 * GIB)))
    assert prepared.options.link == "plain" and prepared.packing is None and prepared.plan.slots
    assert prepared.link_note.startswith("--link auto: plain. Predicted plain 0.0")
    assert prepared.link_note in list(start_notes(prepared)) and prepared.link_note in list(forecast(prepared))


def test_beside_a_slow_disk_it_packs_them_and_writes_the_same_text(model: Path, plan) -> None:
    written = {}
    for link in ("auto", "plain"):
        prepared = plan(model, known(cpu(8 * GIB)), SLOW, link=link, dtype="float32", device_memory=16 * MIB)
        assert prepared.plan.slots
        with OffloadRuntime(prepared) as runtime:
            written[link] = runtime.generate(PROMPT, max_new_tokens=6, temperature=0)
        assert prepared.options.link == {"auto": "packed"}.get(link, link)
    assert written["auto"].token_ids == written["plain"].token_ids
    packed, plain = (written[link].stats for link in ("auto", "plain"))
    assert packed.streamed_bytes / packed.passes < 0.8 * plain.streamed_bytes / plain.passes


def test_beside_a_copy_of_the_model_its_rests_are_what_packing_leaves(model: Path, plan) -> None:
    sizes = []
    for draft in (None, "self:4"):
        note = plan(model, known(cpu(8 * GIB)), SLOW, draft=draft, device_memory=13 * MIB).link_note
        sizes.append(parse_size("".join(re.findall(r"over ([\d.]+) (\w+)", note)[1])))
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize(("link", "memory", "chosen"), [(1e9, 1e12, "packed"), (5e11, 1e12, "plain")])
def test_a_gpu_restores_at_the_speed_of_its_memory(link: float, memory: float, chosen: str, model, plan) -> None:
    machine = known(gpu(4 * GIB, link=link), flops=1e15, memory_bandwidth=memory, layer_seconds=1e-9)
    assert plan(model, machine).options.link == chosen


def test_it_says_why_nothing_is_packed(model: Path, plan, tmp_path: Path) -> None:
    machine = known(cpu(8 * GIB))
    whole = plan(model, machine, SLOW, device_memory=4 * GIB)
    assert whole.link_note == "--link auto: plain, since nothing streams."
    assert "speed of this machine is not known" in plan(model, cpu(8 * GIB), SLOW).link_note
    assert "quantized or changed" in plan(model, machine, SLOW, quantize="int4").link_note
    write_random_checkpoint(SHAPE, tmp_path / "float32", torch.float32)
    wide = plan(tmp_path / "float32", machine, SLOW, device_memory=40 * MIB, dtype="float32")
    assert "cannot be packed without loss" in wide.link_note
    assert plan(model, machine, SLOW, link="plain").link_note is None


def test_restoring_is_counted_by_the_weight(model: Path, plan) -> None:
    machine = known(cpu(8 * GIB))
    packed = plan(model, machine, link="packed").target.spec
    whole = replace(packed, layers=tuple(layer.decoded for layer in packed.layers))
    values = sum(layer.decoded_bytes for layer in packed.layers) / 2
    more = [resident_cost(spec, machine).seconds(1, 1, 0).total for spec in (whole, packed)]
    moved = sum(layer.packed_bytes + layer.decoded_bytes for layer in packed.layers) / SPEEDS["memory_bandwidth"]
    assert more[1] - more[0] == pytest.approx(values * RESTORED_VALUE_SECONDS + moved)
