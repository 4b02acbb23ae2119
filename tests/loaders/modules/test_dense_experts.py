"""Mixtures computed without asking the host who is hit: the same text, no wait for the device, memory as planned."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation

from loaders.modules import dense_experts, expert_memory
from loaders.sizes import GIB
from offload_runtime import OffloadRuntime
from offload_runtime.model import host_reads
from offload_runtime.model.host_reads import HostRead, no_host_reads
from scheduler.plan.plan import Limits, make_plan
from tests.offload_runtime.model.test_architectures import TREE, written
from tests.pass_samples import wide_tree_error
from tests.plan_samples import cpu, gpu, model
from tests.pretend_cuda import pretend_cuda
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, reference, streaming_runtime
from tests.scheduler.streaming.test_routed_experts import SAMPLE, forced, only_routed, write  # noqa: F401


@pytest.fixture
def dense(monkeypatch):
    """Every model is loaded as for a GPU whose grouped products ask the host; the names of what then computes."""
    calls: list[str] = []

    def noted(name: str) -> None:
        original = ALL_EXPERTS_FUNCTIONS[name]
        monkeypatch.setitem(
            ALL_EXPERTS_FUNCTIONS._local_mapping, name, lambda *args: (calls.append(name), original(*args))[1]
        )

    monkeypatch.setattr(dense_experts, "grouped_products_wait", lambda device, dtype: True)
    for name in ("dense_mm", "batched_mm", "grouped_mm"):
        noted(name)
    return calls


@pytest.mark.parametrize("architecture", SAMPLE)
def test_trees_over_dense_experts_write_the_models_own_text(architecture, dense):
    target = checkpoint(architecture)
    expected = greedy(target, PROMPT, 14)
    dense.clear()
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        text, tokens_per_pass = written(runtime)
        assert text == expected and tokens_per_pass > 1
        assert set(dense) == {"dense_mm"}
        assert wide_tree_error(runtime, reference(target)) < 1e-4


def test_a_row_too_many_is_seen_in_the_text(dense, monkeypatch):
    """The control: another choice of experts is another text."""
    own = dense_experts._dense
    monkeypatch.setattr(
        dense_experts, "_dense", lambda module, rows, chosen, weights: own(module, rows, chosen ^ 1, weights)
    )
    target = checkpoint("mixtral")
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        assert written(runtime)[0] != greedy(target, PROMPT, 14)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_experts_that_were_not_fetched_may_be_nan(architecture, dense, forced):  # noqa: F811
    forced(only_routed)
    target = checkpoint(architecture)
    with streaming_runtime(target, perturbed(target, 0.02), **TREE) as runtime:
        reply = write(runtime)
    assert reply.token_ids == greedy(target, PROMPT, len(reply.token_ids))
    assert reply.stats.streamed_bytes < reply.stats.passes * runtime.plan.streamed_bytes


def mixture(experts: int, hidden: int, inner: int, **form: bool) -> nn.Module:
    """Experts as transformers builds them, with random weights."""

    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            gate_up, down = (hidden, 2 * inner), (inner, hidden)
            shapes = (gate_up, down) if form.get("is_transposed") else (gate_up[::-1], down[::-1])
            for name, shape, width in zip(("gate_up_proj", "down_proj"), shapes, (2 * inner, hidden)):
                setattr(self, name, nn.Parameter(torch.randn(experts, *shape) / 8, requires_grad=False))
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(experts, width), requires_grad=False))
            self.num_experts, self.act_fn = experts, nn.SiLU()

        def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            raise NotImplementedError

    config = type("Config", (), {"_experts_implementation": dense_experts.NAME})()
    return use_experts_implementation(Experts, **form)(config)


def routed(rows: int, experts: int, hidden: int, per_row: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    weights, chosen = torch.randn(rows, experts).softmax(-1).topk(per_row)
    return torch.randn(rows, hidden), chosen, weights


@pytest.mark.parametrize("rows", [1, 3, 128, 129, 801])
@pytest.mark.parametrize(
    ("experts", "form"),
    [(4, {}), (4, {"is_transposed": True, "has_bias": True}), (16, {"has_bias": True}), (64, {})],
    ids=str,
)
def test_results_are_those_of_transformers(rows, experts, form):
    torch.manual_seed(rows)
    module, inputs = mixture(experts, 24, 40, **form), routed(rows, experts, 24)
    ours = module(*inputs)
    theirs = ALL_EXPERTS_FUNCTIONS["batched_mm"](module, *inputs)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 17, 128, 800])
@pytest.mark.parametrize("experts", [4, 64])
def test_the_host_is_not_asked(rows, experts, monkeypatch):
    monkeypatch.setattr(host_reads, "grouped_products_wait", lambda device, dtype: True)
    module, inputs = mixture(experts, 16, 32), routed(rows, experts, 16)
    with no_host_reads():
        module(*inputs)
    with pytest.raises(HostRead, match="grouped"), no_host_reads():
        ALL_EXPERTS_FUNCTIONS["grouped_mm"](module, *inputs)


@pytest.mark.parametrize(
    ("capability", "dtype", "waits"),
    [
        ((7, 5), torch.float16, True),
        ((8, 0), torch.bfloat16, True),
        ((8, 9), torch.bfloat16, True),
        ((9, 0), torch.bfloat16, False),
        ((9, 0), torch.float16, True),
        ((10, 0), torch.bfloat16, False),
        ((12, 0), torch.bfloat16, True),
    ],
)
def test_which_gpus_have_a_kernel(capability, dtype, waits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert dense_experts.grouped_products_wait(torch.device("cuda"), dtype) == waits
    assert not dense_experts.grouped_products_wait(torch.device("cpu"), dtype)


class PeakBytes(TorchDispatchMode):
    """Counts what storages made in the block hold, at most, at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in [out] if isinstance(out, Tensor) else []:
            storage = tensor.untyped_storage()
            made = all(
                storage.data_ptr() != arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)
            )
            if made and storage not in self._seen:
                self._seen.add(storage)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return out

    def _freed(self, nbytes: int) -> None:
        self.held -= nbytes


@pytest.mark.parametrize(("experts", "rows"), [(8, 256), (64, 200), (64, 8), (64, 4)])
def test_memory_is_bounded_and_as_planned(experts, rows, monkeypatch):
    hidden, inner = 128, 96
    monkeypatch.setattr(expert_memory, "WORKSPACE_BYTES", 2 << 20)
    monkeypatch.setattr(dense_experts, "WORKSPACE_BYTES", 2 << 20)
    module, inputs = mixture(experts, hidden, inner), routed(rows, experts, hidden)
    expert_bytes = 3 * experts * hidden * inner * 4
    with torch.inference_mode(), PeakBytes() as counted:
        module(*inputs)
    planned = expert_memory.workspace_bytes(experts, hidden, expert_bytes, 4)
    results = 4 * rows * hidden * 4  # of all pieces and of their rows: part of the activations of any layer
    assert planned / 8 < counted.peak <= planned + results
    assert planned <= 2.2 * (2 << 20)


def test_the_plan_counts_it_on_a_gpu_alone():
    spec = model("mixture", [3 * GIB] * 4, GIB, 1000, hidden_size=4096, experts_per_token=2)
    layers = tuple(replace(layer, experts=8, expert_bytes=layer.nbytes - GIB) for layer in spec.layers)
    mixed = replace(spec, layers=layers)

    def items(spec, machine):
        return {item.name: item.device_bytes for item in make_plan(spec, None, machine, Limits()).items}

    nbytes = expert_memory.workspace_bytes(8, 4096, 2 * GIB, 2)
    assert 0 < nbytes <= expert_memory.WORKSPACE_BYTES
    assert items(mixed, gpu(12 * GIB))["experts of a layer, side by side"] == nbytes
    assert "experts of a layer, side by side" not in items(spec, gpu(12 * GIB))
    assert "experts of a layer, side by side" not in items(mixed, cpu(64 * GIB))


@pytest.mark.parametrize("kernels", [False, True])
def test_a_mixture_on_the_gpu_is_replayed_and_asks_nothing_in_between(kernels, monkeypatch):
    """Once for a tree and once for the path that is accepted. The control: PyTorch's own products, which ask."""
    if kernels:
        monkeypatch.setattr(dense_experts, "grouped_products_wait", lambda device, dtype: False)
    target = checkpoint("mixtral")
    expected = greedy(target, PROMPT, 12)
    options = {"context_length": 128, "tree": "sequoia", "tree_size": 12, "tree_depth": 3, "dtype": "float32"}
    with pretend_cuda() as cuda, OffloadRuntime.from_pretrained(target, target, device="cuda", **options) as runtime:
        runtime.generate(PROMPT, max_new_tokens=8, temperature=0)
        with cuda.counting() as counts:
            reply = runtime.generate(PROMPT, max_new_tokens=12, temperature=0)
        waits = counts.waits.total() / reply.stats.passes
    assert reply.token_ids == expected
    if kernels:
        assert not counts.replays and waits > 10
    else:
        assert counts.replays >= 4 * reply.stats.passes and waits < 5
