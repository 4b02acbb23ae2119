"""The decode loop asks a device for answers once for a tree and once or twice for an accepted path, however deep the
tree.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from offload_runtime import OffloadRuntime
from offload_runtime.model.host_reads import HostRead, no_host_reads
from offload_runtime.speculation.tree_policy import Situation
from offload_runtime.speculation.verification import Scored, verify
from sequoia_tree.shaping.settings import Sampling
from tests.samples.mtp_models import add_head
from tests.samples.tiny_models import PROMPT, checkpoint, make_checkpoint, perturbed

ANSWERS = ("tolist", "item", "cpu", "nonzero", "__bool__", "__int__", "__index__")
WAITS = {**{getattr(Tensor, name): name for name in ANSWERS}, torch.nonzero: "nonzero", torch.tensor: "tensor"}


class Waits(TorchFunctionMode):
    """Counts calls that have the host wait for a GPU: answers, and values that come out of pageable memory."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in WAITS:
            self.counts[WAITS[function]] += 1
        elif function in (Tensor.__getitem__, Tensor.__setitem__):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.counts["mask"] += any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
            # a number is copied out of pageable memory into one element, and an index of no dimensions is read
            self.counts["element"] += function is Tensor.__setitem__ and not isinstance(args[2], Tensor)
            self.counts["index"] += any(isinstance(i, Tensor) and i.dim() == 0 for i in indices)
        return function(*args, **(kwargs or {}))


@contextmanager
def decoding(
    tree: str, depth: int, pair: tuple[Path, Path | str] | None = None, **options: Any
) -> Iterator[tuple[OffloadRuntime, list[int]]]:
    options = {"tree": tree, "tree_size": 24, "tree_depth": depth, "context_length": 128, **options}
    target, draft = pair or (checkpoint("llama"), perturbed(checkpoint("llama"), 0.02))
    with OffloadRuntime.from_pretrained(target, draft, device="cpu", **options) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=4, temperature=0.7, seed=0)
        yield runtime, [*PROMPT, *reply.token_ids]


def waits_of_a_step(
    tree: str, depth: int, temperature: float, penalty: float = 1.0, pair: tuple[Path, Path | str] | None = None
) -> dict[str, Counter]:
    """Of growing a tree, of scoring it, and of the accepted path on it, for a text that is in the caches."""
    sampling, generator = Sampling(temperature, repetition_penalty=penalty), torch.Generator().manual_seed(1)
    with decoding(tree, depth, pair) as (runtime, text):
        models, waits = runtime._models, {}
        method = runtime._decoder._policy.method(Situation(sampling, len(text)))
        with Waits() as waits["grow"]:
            drawn = method.grow(text, sampling, generator)
        with Waits() as waits["score"]:
            logits = models.target.score(text, drawn)
        with Waits() as waits["verify"]:
            verify(Scored.of(drawn, logits, text, sampling), method.rule, generator)
        assert drawn.tree.depth > 1
    return {name: counted.counts for name, counted in waits.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("tree", ["sequoia", "adaptive"])
def test_the_device_is_waited_for_once_a_tree(tree, penalty, temperature):
    waits = waits_of_a_step(tree, 8, temperature, penalty)
    answers = {"sequoia": {"tolist": 1}, "adaptive": {"cpu": 1, "mask": 1, "tolist": 1}}  # its mask is on the host
    assert +waits["grow"] == answers[tree]
    assert +waits["score"] == {}
    assert waits_of_a_step(tree, 3, temperature, penalty)["grow"] == waits["grow"]


@pytest.mark.parametrize("tree", ["sequoia", "adaptive"])
def test_a_head_has_the_device_waited_for_no_more_often_than_a_draft_model(tree):
    target = add_head(make_checkpoint("llama", 2, False, {}))
    waits, of_model = waits_of_a_step(tree, 8, 0.7, pair=(target, "mtp")), waits_of_a_step(tree, 8, 0.7)
    assert +waits["grow"] == +of_model["grow"] and +waits["score"] == {}


@pytest.mark.parametrize("tree", ["sequoia", "adaptive", "specinfer"])
def test_a_verdict_takes_two_answers(tree):
    """The path, and the token after it; `cpu` of the tokens follows an answer, with nothing queued in between."""
    waits = waits_of_a_step(tree, 8, 0.7)["verify"]
    kinds = ("mask", "tensor", "__bool__", "nonzero", "element", "index")
    assert not any(waits[kind] for kind in kinds)
    assert waits["__int__"] + waits["cpu"] <= 4
    assert waits == waits_of_a_step(tree, 3, 0.7)["verify"]


def test_greedy_verdicts_take_one():
    assert +waits_of_a_step("sequoia", 8, 0.0)["verify"] == {"cpu": 2}


@pytest.mark.parametrize(
    "work",
    [
        lambda x: int(x[0]),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: bool(x.any()),
        lambda x: x.index_put_((x > 1,), torch.zeros((), dtype=x.dtype)),
    ],
)
def test_reads_are_found(work):
    with pytest.raises(HostRead), no_host_reads():
        work(torch.arange(3))


def test_work_on_a_device_alone_is_none():
    x = torch.arange(3)
    with no_host_reads():
        x[torch.tensor([0, 1])] += x.index_select(0, x.argmin())
        x.masked_fill_(x > 1, 0).to(torch.float32).topk(2)
    assert x.tolist() == [0, 1, 0]
