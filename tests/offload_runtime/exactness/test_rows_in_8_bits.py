"""KV rows in 8 bits make one model, whatever writes them: prompts, trees, shared passes, rows in host memory, disk."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from offload_runtime import OffloadRuntime
from offload_runtime.chat.status import plan_line
from offload_runtime.errors import UnsupportedModelError, UsageError
from offload_runtime.generation import sequences
from offload_runtime.model.cached_rows.forms import RowsIn8Bits
from offload_runtime.model.cached_rows.layers import TreeCacheLayer
from offload_runtime.model.kv_cache import TreeCache
from offload_runtime.model.model import Model
from offload_runtime.model.rows import text_rows
from tests.fakes.recorded_work import RecordedWork
from tests.offload_runtime.exactness import test_sampling_exactness as alone
from tests.pass_samples import PADDING, largest_difference, loaded, passes, text_of, tree_rows
from tests.pretend_cuda import pretend_cuda
from tests.samples.rows_in_8_bits import greedy_in_8_bits, logits_in_8_bits
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

OPTIONS: dict[str, Any] = {
    **{"tree_size": 12, "tree_depth": 3, "context_length": 64, "dtype": "float32"},
    "kv_bits": 8,
}
# Windows, capped scores, sinks, experts, latent attention, attention in the model's own code, states that branch.
ARCHITECTURES = [
    *("llama", "qwen2", "mistral", "gemma2", "gemma3_text", "gpt_oss", "mixtral", "deepseek_v3", "codegen"),
    *("llama4_text", "qwen3_next"),
]
TOKENS = 20
PROMPTS = [[*PROMPT[: 4 + number], 7 + number] for number in range(5)]


def runtime(architecture: str = "llama", tree: str = "sequoia", device: str = "cpu", **options: Any) -> OffloadRuntime:
    target = checkpoint(architecture)
    draft = "none" if tree == "none" else perturbed(target, 0.02)
    return OffloadRuntime.from_pretrained(target, draft, device, **{**OPTIONS, "tree": tree, **options})


def streamed(architecture: str = "llama", tree: str = "sequoia", **options: Any) -> OffloadRuntime:
    target = checkpoint(architecture)
    return streaming_runtime(
        target, "none" if tree == "none" else perturbed(target, 0.02), **OPTIONS, tree=tree, **options
    )


def written(runtime: OffloadRuntime, **options: Any) -> list[list[int]]:
    """A text, one that begins alike, and the first again."""
    prompts = [PROMPT, [*PROMPT[:-2], 5], PROMPT]
    return [runtime.generate(one, max_new_tokens=TOKENS, temperature=0, **options).token_ids for one in prompts]


def expected(architecture: str = "llama") -> list[list[int]]:
    return [greedy_in_8_bits(checkpoint(architecture), one, TOKENS) for one in (PROMPT, [*PROMPT[:-2], 5], PROMPT)]


# Each architecture with one kind of tree, and all kinds with one of them: the former decides how rows are stored, the
# latter when they move.
TREES = [
    *zip(ARCHITECTURES, cycle(("sequoia", "adaptive"))),
    *(("llama", "adaptive"), ("llama", "none"), ("qwen3_next", "none")),
]


@pytest.mark.parametrize(("architecture", "tree"), TREES)
def test_greedy_text_is_that_of_generate_over_such_rows(architecture: str, tree: str) -> None:
    with runtime(architecture, tree) as loaded:
        assert loaded.plan.kv_bits == 8 and written(loaded) == expected(architecture)


@pytest.mark.parametrize(
    ("architecture", "tree"),
    [("llama", "none"), ("llama", "sequoia"), ("llama", "auto"), ("gemma2", "sequoia"), ("mixtral", "auto")],
)
def test_streamed_text_is_the_same(architecture: str, tree: str) -> None:
    with streamed(architecture, tree) as loaded:
        assert loaded.plan.slots and written(loaded) == expected(architecture)


def test_it_is_another_model() -> None:
    assert expected()[0] != greedy(checkpoint("llama"), PROMPT, TOKENS)


def test_whoever_runs_it_is_told() -> None:
    with runtime() as loaded, runtime(kv_bits=None) as usual:
        assert "KV rows in 8 bits" in plan_line(loaded.plan) and "8 bits" not in plan_line(usual.plan)
        assert (loaded.plan.as_dict()["kv_bits"], usual.plan.as_dict()["kv_bits"]) == (8, None)


# However its rows were written


def logits_by_way(model: Model) -> Iterator[Tensor]:
    """Logits after one text: read in one pass, in pieces, token by token, and as nodes of a tree."""
    text = text_of(40)
    for most_rows in (40, 7, 1):
        model.cache.truncate(0)
        yield model.read(text, most_rows=most_rows)
    model.cache.truncate(0)
    rows = tree_rows(30, 1, model.device)
    path, at = [0, 1, 4, 7, 10], text[30:35]  # of the tree, from the root downwards
    tokens = torch.tensor(text_of(len(rows.positions)))
    tokens[path] = torch.tensor(at)
    model.read(text[:30], most_rows=50)
    model.forward(tokens, rows, 1)
    model.cache.sequences[0].commit(path)
    yield model.read(text[35:], most_rows=50)


def differences(model: Model) -> float:
    first, *others = logits_by_way(model)
    return largest_difference([first] * len(others), others)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_oss", "deepseek_v3"])
def test_logits_do_not_depend_on_which_pass_wrote_the_rows(architecture: str) -> None:
    with loaded(checkpoint(architecture), kv_bits=8, dtype="float32") as model:
        assert differences(model) < 1e-4


def test_a_pass_that_sees_its_own_rows_as_they_were_computed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    update = TreeCacheLayer.update

    def with_own_rows(layer: TreeCacheLayer, keys: Tensor, values: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        read = update(layer, keys, values)
        for rows, own in zip(read, (keys, values)):
            rows[:, :, -own.shape[2] :] = own
        return read

    monkeypatch.setattr(TreeCacheLayer, "update", with_own_rows)
    with loaded(checkpoint("llama"), kv_bits=8, dtype="float32") as model:
        assert differences(model) > 1e-2
    with runtime() as loaded_runtime:
        assert written(loaded_runtime) != expected()


@pytest.mark.parametrize("tree", ["sequoia", "none"])
def test_rows_that_move_without_their_scales_are_found(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of committing and copying."""
    at_rest = TreeCacheLayer.at_rest
    codes = lambda layer: {name: table for name, table in at_rest(layer).items() if "scales" not in name}  # noqa: E731
    monkeypatch.setattr(TreeCacheLayer, "at_rest", codes)
    monkeypatch.setattr(sequences, "LEAST_COPIED", 4)
    with runtime("llama", tree, parallel=3) as loaded:
        prompts = [[*PROMPT, 9, number] for number in range(3)]
        loaded.generate(PROMPT, max_new_tokens=1, temperature=0)
        replies = loaded.generate_many(prompts, max_new_tokens=TOKENS, temperature=0)
    right = [greedy_in_8_bits(checkpoint("llama"), prompt, TOKENS) for prompt in prompts]
    assert [reply.token_ids for reply in replies] != right


@pytest.mark.parametrize(
    ("architecture", "tree"), [("llama", "sequoia"), ("llama", "adaptive"), ("llama", "none"), ("codegen", "sequoia")]
)
def test_texts_that_share_passes(architecture: str, tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some begin alike and copy rows; attention in a model's own code goes over the rows of all texts."""
    monkeypatch.setattr(sequences, "LEAST_COPIED", 4)
    prompts = [*PROMPTS, *([*PROMPT, 9, number] for number in range(3))]
    with streamed(architecture, tree, parallel=3) as loaded:
        loaded.generate(PROMPT, max_new_tokens=1, temperature=0)
        replies = loaded.generate_many(prompts, max_new_tokens=TOKENS, temperature=0)
    right = [greedy_in_8_bits(checkpoint(architecture), prompt, TOKENS) for prompt in prompts]
    assert [reply.token_ids for reply in replies] == right


@pytest.mark.parametrize(
    ("architecture", "kv"),
    [("gemma3_text", "host"), ("deepseek_v3", "host"), ("llama", "device"), ("deepseek_v3", "device")],
)
def test_on_a_gpu_that_pretends(architecture: str, kv: str) -> None:
    """Rows in host memory travel in 8 bits; on the device, passes of fixed shape read them."""
    with pretend_cuda() as cuda:
        before = cuda.held_bytes
        with runtime(architecture, device="cuda", kv=kv) as loaded:
            assert (loaded.plan.kv, loaded.plan.kv_bits) == (kv, 8)
            assert written(loaded) == expected(architecture)
            target = loaded._models.target.model
            assert (target.cache.travelling is not None) == (kv == "host")
            assert bool(target.padded_total) == (kv == "device")
            assert cuda.timeline.peak - before <= loaded.plan.device_bytes


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
def test_replayed_passes_equal_plain_ones(architecture: str) -> None:
    with loaded(checkpoint(architecture), kv_bits=8, dtype="float32") as model:
        right = passes(model)
        recorded = RecordedWork()
        model.pad_passes(PADDING, recorded)
        ours = passes(model)
        assert model.replays and recorded.replays
    assert largest_difference(ours, right) <= 1e-4


# Sampling


@pytest.mark.parametrize("tree", ["sequoia", "adaptive", "none"])  # top-down, by traversal, by match
def test_sampled_text_follows_its_distribution(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "logits_after", lambda text: logits_in_8_bits(alone.target(), text).tolist())
    distribution = alone.joint_distribution()
    options = {"device": "cpu", "context_length": 32, "kv_bits": 8, **alone.TREES[tree]}
    with OffloadRuntime.from_pretrained(alone.target(), alone.draft(), **options) as loaded:
        counts, _ = alone.sampled(loaded, range(alone.TEXTS))
    assert alone.agreement(counts, distribution) > 1e-4


# Memory


@pytest.mark.parametrize(("dtype", "bytes_each"), [("bfloat16", 2), ("float32", 4)])
def test_rows_take_the_memory_that_is_planned(dtype: str, bytes_each: int) -> None:
    changes = {"head_dim": 64, "num_hidden_layers": 6}
    target, held, planned = checkpoint("llama", **changes), {}, {}
    for bits in (None, 8):
        options = {**OPTIONS, "dtype": dtype, "kv_bits": bits, "context_length": 500, "tree": "none"}
        with OffloadRuntime.from_pretrained(target, "none", "cpu", **options) as loaded:
            reply = loaded.generate(PROMPT, max_new_tokens=4, temperature=0)
            tables = loaded._models.target.model.cache.tables()
            held[bits] = sum(table.nbytes for table in tables.values())
            planned[bits] = loaded.plan.kv_bytes
            assert reply.stats.peak_device_bytes <= loaded.plan.device_bytes
    assert held == planned and held[8] * 64 * bytes_each == held[None] * (64 + bytes_each)


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {"codegen"}))  # its sample states other heads
def test_the_plan_counts_the_bytes_of_every_architecture(architecture: str) -> None:
    with runtime(architecture, "none") as loaded:
        loaded.generate(PROMPT, max_new_tokens=1)
        tables = loaded._models.target.model.cache.tables()
        assert sum(table.nbytes for table in tables.values()) == loaded.plan.kv_bytes


def test_one_layers_rows_are_dequantized_at_a_time() -> None:
    """To memory that is allocated once."""
    allocated: list[int] = []
    with loaded(checkpoint("llama"), kv_bits=8, dtype="float32") as model:
        form = model.cache.form
        assert isinstance(form, RowsIn8Bits) and form._memory is None
        form._on_allocate = allocated.append
        model.read(text_of(20), most_rows=50)
        memory = form._memory
        assert memory is not None and allocated == [memory.nbytes] == [model.cache.rows * 2 * 2 * 8 * 4]
        model.read(text_of(20), most_rows=5)
        model.forward(torch.tensor([5]), text_rows(40, 1, model.device), 1)
        assert form._memory is memory and len(allocated) == 1


# Refusals


@pytest.mark.parametrize(
    ("architecture", "reason"), [("gemma3n_text", "read what others have cached"), ("mamba2", "it caches none")]
)
def test_models_whose_rows_cannot_be_in_8_bits_are_refused(architecture: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"cannot be kept in 8 bits: .*{reason}"):
        runtime(architecture, "none")
    with pytest.raises(UnsupportedModelError, match=reason):
        TreeCache(AutoConfig.from_pretrained(checkpoint(architecture)), 8, in_8_bits=True)


@pytest.mark.parametrize("bits", [4, 16, "8"])
def test_other_bits_are_refused(bits: Any) -> None:
    with pytest.raises(UsageError, match="kept in 8 bits"):
        runtime(kv_bits=bits)
