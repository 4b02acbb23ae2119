"""The whole decode loop on a GPU that only pretends: what a GPU refuses, waits for, races on and holds shows up here.

A GPU computes what a CPU does: with the same random numbers it must write the same text.
"""

import gc
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from offload_runtime import OffloadRuntime
from offload_runtime.errors import DoesNotFitError
from offload_runtime.generation.decode import Step
from scheduler.plan import memory
from tests.pretend_cuda import Counts, PretendCuda, PretendFault, pretend_cuda
from tests.samples.quantized.packed_models import packed_model
from tests.samples.tiny_models import PROMPT, checkpoint, perturbed

# With KV rows in host memory (test_kv_on_host.py), the smallest models would have room on the device whole.
OPTIONS: dict[str, Any] = {
    **{"tree_size": 12, "tree_depth": 3, "context_length": 64},
    **{"dtype": "float32", "kv": "device"},
}
UNPACKED = {"awq": "llama", "awq experts": "qwen3_moe"}
TOKENS = 6
REPEATING = PROMPT[:6] * 3  # so that n-grams are found in it
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.6},
    "shaped": {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.2},
}
# Host waits of a step: for the tree, for the accepted path and the token after it, for what an adaptive tree taught.
WAITS = {"sequoia": 2, "adaptive": 3, "n-gram": 1}
# Most uploads of a step; each waits behind a piece of a layer.
UPLOADS = {
    "sequoia": {"greedy": 5, "sampled": 6, "shaped": 13},
    "adaptive": {"greedy": 8, "sampled": 10, "shaped": 15},
    "n-gram": {"greedy": 4, "sampled": 4, "shaped": 7},
}


@dataclass(frozen=True)
class Case:
    """architecture: or a case of `packed_model`. tree: "n-gram" drafts what the text said before."""

    architecture: str
    home: str
    tree: str

    @property
    def model(self) -> Path:
        return packed_model(self.architecture) if self.home.endswith("packed") else checkpoint(self.architecture)

    def runtime(self, device: str) -> OffloadRuntime:
        """Where it streams, under the least device memory that the planner accepts."""
        options, cap = {**OPTIONS, "device": device}, 1
        draft: Path | str = "auto"
        if self.tree != "n-gram":
            draft = perturbed(checkpoint(UNPACKED.get(self.architecture, self.architecture)), 0.02)
            options["tree"] = self.tree
        while self.home.startswith("streamed"):
            try:
                return OffloadRuntime.from_pretrained(self.model, draft, device_memory=cap, **options)
            except DoesNotFitError as error:
                assert error.needed > cap
                cap = error.needed
        return OffloadRuntime.from_pretrained(self.model, draft, **options)


CASES = [
    Case("llama", "resident", "sequoia"),
    Case("llama", "streamed", "adaptive"),
    Case("llama", "resident", "n-gram"),
    Case("awq", "resident packed", "adaptive"),
    Case("awq", "streamed packed", "sequoia"),
    Case("gemma2", "resident", "adaptive"),
    Case("gemma2", "streamed", "sequoia"),
    Case("gemma3_text", "resident", "sequoia"),
    Case("gemma3_text", "streamed", "n-gram"),
    Case("mixtral", "resident", "adaptive"),
    Case("mixtral", "streamed", "sequoia"),
    Case("awq experts", "streamed packed", "sequoia"),
]


def written(runtime: OffloadRuntime, cuda: PretendCuda, **sampling: Any) -> tuple[list[Step], list[Counts]]:
    """The steps of a text, and what each gave the device to do."""
    steps: list[Step] = []
    counts: list[Counts] = []
    stream = runtime.stream(REPEATING, max_new_tokens=TOKENS, seed=1, **sampling)
    while True:
        with cuda.counting() as count:
            step = next(stream, None)
        if step is None:
            return steps, counts
        steps.append(step)
        counts.append(count)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.architecture}, {case.home}, {case.tree}")
def test_the_loop_writes_what_a_cpu_writes_and_waits_as_counted(case):
    with case.runtime("cpu") as runtime:
        expected = [
            runtime.generate(REPEATING, max_new_tokens=TOKENS, seed=1, **sampling).token_ids
            for sampling in SAMPLINGS.values()
        ]
    with pretend_cuda() as cuda, case.runtime("cuda") as runtime:
        streams = case.home.startswith("streamed")
        assert bool(runtime.plan.slots) == streams
        for text, (name, sampling) in zip(expected, SAMPLINGS.items()):
            steps, counts = written(runtime, cuda, **sampling)
            assert [token for step in steps for token in step.token_ids] == text
            assert any(step.drafted for step in steps) or name == "greedy"  # where times decide whether n-grams pay
            for count in counts[1:]:  # the first makes what the text's rules need
                waits = count.waits.total() - count.captures - streams  # which holds the host back once a pass
                assert waits == WAITS[case.tree], count
                assert count.uploads.total() <= UPLOADS[case.tree][name], count


@pytest.mark.parametrize(
    "case", [Case("llama", "resident", "sequoia"), Case("gemma2", "streamed", "adaptive")], ids=lambda case: case.home
)
def test_what_is_planned_is_held_and_no_more(monkeypatch, case):
    """Nothing grows from text to text, the most is within the plan, and closing lets go of all but a tree's shape."""
    monkeypatch.setattr(memory, "GRAPH_LAYER_BYTES", 0)  # the driver's, of which there is none
    with pretend_cuda() as cuda:
        with case.runtime("cuda") as runtime:
            held = []
            for _ in range(3):
                reply = runtime.generate(REPEATING, max_new_tokens=TOKENS, seed=1, temperature=0.6)
                gc.collect()
                held.append(cuda.held_bytes)
            assert held[1] == held[2]
            assert held[2] < reply.stats.peak_device_bytes <= runtime.plan.device_bytes
        gc.collect()
        assert cuda.held_bytes < held[2] / 8


@pytest.mark.parametrize("forgotten", ["Event.wait", "Stream.synchronize"])
def test_what_orders_streams_is_needed(monkeypatch, forgotten):
    """Events between copies and computations, and waiting for the last copies before their memory is given back."""
    with pytest.raises(PretendFault), pretend_cuda() as cuda:
        owner, name = forgotten.split(".")
        with Case("llama", "streamed", "sequoia").runtime("cuda") as runtime:
            monkeypatch.setattr(getattr(torch.cuda, owner), name, lambda *args: None)
            with suppress(PretendFault):
                runtime.generate(REPEATING, max_new_tokens=2, temperature=0)
        assert cuda.faults
