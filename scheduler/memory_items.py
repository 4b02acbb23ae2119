"""What needs memory besides the target's layers, item by item, in bytes."""

from dataclasses import dataclass

from loaders.spec import ITEMSIZE, ModelSpec
from scheduler.machine import Machine
from scheduler.sizes import GIB, MIB

# Kept out of the budget. On a GPU: the CUDA context with its kernels and matrix-product workspaces, and 5 % of what is
# free for the allocator's fragments. On the host: the process itself (Python, torch, transformers) and 5 % of all
# memory for the system, so that the planner's word never drives the machine into swapping.
CUDA_CONTEXT_BYTES = 600 * MIB
DEVICE_SHARE_KEPT = 0.05
PROCESS_BYTES = 1 * GIB
HOST_SHARE_KEPT = 0.05

# Four reader threads with a chunk of 8 MiB each, in host memory.
BOUNCE_BYTES = 4 * 8 * MIB

# Prefill runs in chunks: 512 rows keep a layer's matrix products near their peak, more only adds workspace.
PREFILL_ROWS = 512

# Rows x hidden size alive at once: residual, norm, queries, keys, values, rotated copies, attention output.
HIDDEN_COPIES = 8
# Rows x intermediate size: gate, up and their product.
MLP_COPIES = 3
# Rows x keys: the masks of a full and a sliding pattern, and what they are made from.
MASK_COPIES = 4
# Rows x keys x heads, for models whose attention must be written out (capped scores, sinks): the scores in compute
# dtype and in float32, and their softmax. Others go through fused kernels, which hold tiles only.
WRITTEN_OUT_ATTENTION = {"gemma2", "gpt_oss"}
SCORES_BYTES = 4 + 4 + 4
# Nodes x vocabulary in float32: the target's logits, the draft's laws kept for verification, one being shaped.
LOGITS_COPIES = 3
LOGITS_ITEM_BYTES = 4

# Target, then draft if there is one.
Models = tuple[ModelSpec, ...]


@dataclass(frozen=True)
class PlanItem:
    """One row of the plan: bytes held on the device and in host memory, and bytes read from disk in every pass."""

    name: str
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0


def device_budget(machine: Machine, cap: int | None) -> int:
    """Bytes that may be used on the device: the cap as far as memory exists, else what is free less the margin."""
    if machine.device == "cpu":
        return host_budget(machine, cap)
    if cap is not None:
        return min(cap, max(0, machine.device_total - CUDA_CONTEXT_BYTES))
    return max(0, int(machine.device_free * (1 - DEVICE_SHARE_KEPT)) - CUDA_CONTEXT_BYTES)


def host_budget(machine: Machine, cap: int | None) -> int:
    """Bytes that may be used in host memory, by the same rule."""
    if cap is not None:
        return min(cap, machine.host_total)
    return max(0, int(machine.host_available - machine.host_total * HOST_SHARE_KEPT) - PROCESS_BYTES)


def pass_rows(tree_size: int, context_length: int) -> int:
    """The most rows of one pass: a whole tree, or a chunk of the prompt."""
    return max(tree_size, min(PREFILL_ROWS, context_length))


def fixed_items(models: Models, device: str, context_length: int, tree_size: int) -> tuple[PlanItem, ...]:
    """Everything but the target's layers: outer weights, draft, KV caches, workspace, buffers to read files through."""
    (target, *drafts), rows = models, pass_rows(tree_size, context_length)
    kv_bytes = sum(model.kv_bytes_per_token for model in models) * (context_length + rows)
    return (
        PlanItem("embeddings, norm and head", target.outer_bytes),
        *(PlanItem(f"draft {draft.name} ({draft.dtype})", weight_bytes(draft)) for draft in drafts),
        PlanItem(f"KV cache{'s' * len(drafts)}, {context_length} + {rows} tokens", kv_bytes),
        PlanItem(f"workspace, {rows} rows", workspace_bytes(models, context_length, tree_size)),
        _read_buffers(models, device),
    )


def _read_buffers(models: Models, device: str) -> PlanItem:
    """Host memory that files are read through, loading and streaming; on a CPU host memory is the device.

    With a GPU a unit is staged whole before it is copied there.
    """
    if device == "cpu":
        return PlanItem("read buffers", device_bytes=BOUNCE_BYTES)
    staging = max(unit.nbytes for model in models for unit in model.units)
    return PlanItem("read buffers", host_bytes=BOUNCE_BYTES + staging)


def weight_bytes(spec: ModelSpec) -> int:
    """All weights of a model in its compute dtype."""
    return spec.outer_bytes + sum(unit.nbytes for unit in spec.units)


def workspace_bytes(models: Models, context_length: int, tree_size: int) -> int:
    """Activations, masks and logits of the largest pass. Target and draft run in turn, so the larger one counts."""
    rows = pass_rows(tree_size, context_length)
    activations = max(_activation_bytes(model, rows, context_length) for model in models)
    logits = tree_size * max(model.vocab_size for model in models) * LOGITS_ITEM_BYTES * LOGITS_COPIES
    return activations + logits


def _activation_bytes(spec: ModelSpec, rows: int, context_length: int) -> int:
    per_row = HIDDEN_COPIES * spec.hidden_size + MLP_COPIES * spec.intermediate_size
    keys = context_length + rows
    scores = spec.num_heads * keys * SCORES_BYTES if spec.model_type in WRITTEN_OUT_ATTENTION else 0
    return rows * ((per_row + MASK_COPIES * keys) * ITEMSIZE[spec.dtype] + scores)
