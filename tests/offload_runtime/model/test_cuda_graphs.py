"""On a GPU: graphs replay what passes compute, hold no memory back, and the loop waits only where it says so."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from offload_runtime import OffloadRuntime
from offload_runtime.model.cuda_graphs import CudaGraphs
from offload_runtime.model.model import Model
from offload_runtime.speculation.growth import run_growths
from offload_runtime.speculation.tree_policy import Situation
from offload_runtime.speculation.verification import Scored, verify
from scheduler.plan.memory import CUDA_CONTEXT_BYTES
from sequoia_tree.shaping.settings import Sampling
from tests.pass_samples import OPTIONS, PADDING, largest_difference, loaded, passes
from tests.samples.tiny_models import PROMPT, checkpoint, perturbed

pytestmark = pytest.mark.gpu

ARCHITECTURES = ["llama", "gemma2", "mistral", "gemma3_text", "gpt_oss"]


def plain_and_replayed(model: Model) -> tuple[list[Tensor], list[Tensor]]:
    assert model.replays
    with model.unpadded():
        plain = passes(model)
    model.pad_passes(PADDING, CudaGraphs(model.device))
    return plain, passes(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replays_choose_the_same_tokens_in_float32(architecture):
    with loaded(checkpoint(architecture), "cuda", dtype="float32") as model:
        plain, replayed = plain_and_replayed(model)
        assert model.replays
    assert largest_difference(replayed, plain) <= 1e-4
    assert all(torch.equal(a.argmax(-1), b.argmax(-1)) for a, b in zip(replayed, plain))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_replays_equal_plain_passes_in_bfloat16(architecture):
    with loaded(checkpoint(architecture), "cuda", dtype="bfloat16") as model:
        plain, replayed = plain_and_replayed(model)
        assert model.replays
    assert largest_difference([a.float() for a in replayed], [b.float() for b in plain]) <= 0.05


@pytest.mark.parametrize("tree", ["sequoia", "adaptive"])
def test_text_is_the_same_with_and_without_graphs(tree):
    target, texts = checkpoint("llama"), []
    for graphs in (True, False):
        with _runtime(target, tree) as runtime:
            target_model, draft_model = runtime._models.target.model, runtime._models.draft.model
            with ExitStack() as plain:
                for model in () if graphs else (target_model, draft_model):
                    plain.enter_context(model.unpadded())
                texts.append(runtime.generate(PROMPT, max_new_tokens=64, temperature=0).token_ids)
            assert (target_model.padded_total > 10) == (draft_model.padded_total > 10) == graphs
    assert texts[0] == texts[1]


def test_a_model_whose_experts_the_host_picks_runs_as_it_is():
    with loaded(checkpoint("mixtral"), "cuda", dtype="float32") as model:
        model._model.set_experts_implementation("eager")
        plain, ours = plain_and_replayed(model)
        assert not model.replays
    assert largest_difference(ours, plain) <= 1e-5


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.7), Sampling(0.7, 20, 0.9, 0.05, 1.1)])
@pytest.mark.parametrize("tree", ["sequoia", "adaptive", "specinfer"])
def test_a_step_waits_for_the_device_only_where_it_says_so(tree, sampling, monkeypatch):
    """Once for the tokens of a tree, once or twice for an accepted path; anything else raises."""
    with _runtime(checkpoint("llama"), tree) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=24, temperature=sampling.temperature)
        models, text = runtime._models, [*PROMPT, *reply.token_ids]
        generator = torch.Generator(models.target.model.device).manual_seed(0)
        method = runtime._decoder._policy.method(Situation(sampling, len(text)))
        for checked in (False, False, True):  # until all shapes are captured and all pools of memory are filled
            checking = partial(_only_counted_waits, monkeypatch) if checked else partial(nullcontext, Counter())
            with checking() as grown:
                drawn = method.grow(text, sampling, generator)
            with checking() as scored:
                logits = models.target.score(text, drawn)
            with checking() as verified:
                verify(Scored.of(drawn, logits, text, sampling), method.rule, generator)
            for model in (models.target.model, models.draft.model):
                model.cache.rollback()
    assert grown.total() == 1 and scored.total() == 0 and 1 <= verified.total() <= 4


def test_memory_stays_as_it_is_over_100_levels():
    with _runtime(checkpoint("llama"), "sequoia") as runtime:
        runtime.generate(PROMPT, max_new_tokens=16, temperature=0)
        draft = runtime._models.draft
        run_growths([draft.reading(list(PROMPT))], draft.run)
        tokens = torch.arange(4, device="cuda")
        depths, visible = torch.ones_like(tokens), torch.eye(4, dtype=torch.bool, device="cuda")
        held = []
        for level in range(101):
            draft.run([draft.nodes(tokens, depths, visible)])
            draft.model.cache.rollback()
            if level in (0, 100):
                torch.cuda.synchronize()
                held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[0] == held[1]


def test_what_is_planned_is_enough():
    with _runtime(checkpoint("llama"), "sequoia") as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=64, temperature=0.7)
        margin = CUDA_CONTEXT_BYTES  # the workspaces of matrix products are counted there
        assert reply.stats.peak_device_bytes <= runtime.plan.device_bytes + margin


def _runtime(target: Any, tree: str) -> OffloadRuntime:
    options = {**OPTIONS, "tree": tree, "device": "cuda", "dtype": "float32"}
    return OffloadRuntime.from_pretrained(target, perturbed(target, 0.02), **options)


@contextmanager
def _only_counted_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Every wait for the device raises, but those by the methods by which the loop asks for answers, on the device."""
    counts: Counter = Counter()

    def counted(name: str):
        original = getattr(Tensor, name)

        def call(tensor: Tensor, *args: Any) -> Any:
            if not tensor.is_cuda:
                return original(tensor, *args)
            counts[name] += 1
            torch.cuda.set_sync_debug_mode("default")
            try:
                return original(tensor, *args)
            finally:
                torch.cuda.set_sync_debug_mode("error")

        return call

    with monkeypatch.context() as patch:
        for name in ("tolist", "cpu", "__int__"):
            patch.setattr(Tensor, name, counted(name))
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode("default")
