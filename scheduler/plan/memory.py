"""Memory needed besides the target's layers, item by item, in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loaders.checkpoint.spec import ITEMSIZE, HeadSizes, ModelSpec
from loaders.io.direct import CHUNK_BYTES, DISK_BLOCK, THREADS
from loaders.modules import expert_memory
from loaders.sizes import GIB, MIB
from scheduler.machine.machine import Machine
from scheduler.plan.padding import WIDTHS, Padding
from scheduler.plan.staging import BOUNCE_BYTES, staging_buffers

# Kept out of the budget. On a GPU: the CUDA context with its kernels and matrix-product workspaces, and 5 % of the
# free memory for the allocator's fragmentation. On the host: the process itself (Python, torch, transformers) and 5 %
# of all memory for the system, so that a plan never drives the machine into swapping.
CUDA_CONTEXT_BYTES = 600 * MIB
DEVICE_SHARE_KEPT = 0.05
PROCESS_BYTES = 1 * GIB
HOST_SHARE_KEPT = 0.05

# Bytes that all reading threads hold at once, as a share of the largest layer: small against a ring of two.
READ_BUFFERS_SHARE = 1 / 2

# Rows x hidden size held at once: residual, norm, queries, keys, values, rotated copies, attention output.
HIDDEN_COPIES = 8
# Rows x intermediate size: gate, up and their product.
MLP_COPIES = 3
# Rows x keys of one text: the masks of full and sliding attention, and the tensors they are made from.
MASK_COPIES = 4
# The two masks themselves span the rows of all texts.
SHARED_MASKS = 2
# Rows of a text's part of the KV caches are a multiple of this: fused attention takes masks of aligned views only.
ALIGNED_ROWS = 8
# Rows x keys x heads, for models that need eager attention (soft-capped scores, sinks): the scores in compute dtype and
# in float32, and their softmax. Other models use fused kernels, which hold only tiles.
WRITTEN_OUT_ATTENTION = {"deepseek_v4", "gemma2", "gpt_oss", "hy_v4"}
SCORES_BYTES = 4 + 4 + 4
# Rows x keys x heads of an indexer, in float32: the scores, and those that are not negative.
INDEX_SCORES_BYTES = 4 + 4
# KV rows that lie in host memory: one layer's are in use, another's on their way.
KV_BUFFERS = 2
# Nodes x vocabulary in float32: the target's logits, the draft's distributions kept for verification, one being shaped.
LOGITS_COPIES = 3
LOGITS_ITEM_BYTES = 4
# Earlier states of each text that recurrent layers can go back to, beside those after the text and the pass's text.
STATE_SNAPSHOTS = 6
# Rows x heads x width of a recurrent layer, in float32: what its chunked form holds. Nodes x nodes x heads: of a tree.
STATE_COPIES, TREE_COPIES, STATE_ITEM_BYTES = 6, 4, 4
# Rows of a chunk of Kimi's delta rule, which holds the decays between any two of them for every channel of the keys,
# and as much for each of the two products with these.
STATE_CHUNK, CHANNEL_COPIES = 64, 3
# The driver's memory for one layer in one CUDA graph: some 45 kernels of transformers' code, about 20 kB each.
# Assumed from reports about whole graphs; not measured here.
GRAPH_LAYER_BYTES = 1 * MIB

# Target, then draft if there is one.
Models = tuple[ModelSpec, ...]
ROLES = ("target", "draft")


@dataclass(frozen=True)
class PlanItem:
    """One row of the plan: bytes held on the device and in host memory, and bytes read from disk in every pass.

    pageable_bytes: bytes per pass that cross the link from host memory that cannot be pinned.
    """

    name: str
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    pageable_bytes: int = 0


@dataclass(frozen=True)
class PassShape:
    """The largest pass that a plan has room for: at most `rows` rows, over `context_length` tokens and a tree.

    streams: layers of the target may stream, so that its passes cannot be replayed as CUDA graphs. texts: written at
    once, each with `context_length` tokens and a tree of its own. kv_on_host: the target's KV rows lie in host memory
    and come to the device with each layer. nodes: of all trees of a pass together; at least
    those of one, and a root for each.
    """

    context_length: int
    tree_size: int
    rows: int
    streams: bool = True
    texts: int = 1
    nodes: int = 0
    kv_on_host: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", max(self.nodes, self.tree_size, self.texts))

    @property
    def cache_rows(self) -> int:
        """Positions of one text in a KV cache: the whole context, the nodes of a tree, and one for padding."""
        rows = self.context_length + self.tree_size + 1
        return rows if self.texts == 1 else -(-rows // ALIGNED_ROWS) * ALIGNED_ROWS

    @property
    def cached_tokens(self) -> str:
        """What the KV caches hold, in words."""
        each = f"{self.context_length} + {self.tree_size}"
        return f"{each} tokens" if self.texts == 1 else f"{self.texts} x ({each}) tokens"


def device_budget(machine: Machine, cap: int | None) -> int:
    """Bytes that may be used on the device: free memory less a margin, at most the cap."""
    if machine.device == "cpu":
        return host_budget(machine, cap)
    usable = max(0, int(machine.device_free * (1 - DEVICE_SHARE_KEPT)) - CUDA_CONTEXT_BYTES)
    return usable if cap is None else min(cap, usable)


def host_budget(machine: Machine, cap: int | None) -> int:
    """Bytes that may be used in host memory: the cap, at most all memory; without a cap, free memory less a margin."""
    if cap is not None:
        return min(cap, machine.host_total)
    return max(0, int(machine.host_available - machine.host_total * HOST_SHARE_KEPT) - PROCESS_BYTES)


def fixed_items(models: Models, device: str, shape: PassShape) -> tuple[PlanItem, ...]:
    """All but the target's layers and their copies: embeddings and head, draft, KV caches, workspace, read buffers."""
    target, *drafts = models
    return (
        PlanItem("embeddings, norm and head", target.embeddings_and_head_bytes),
        *(PlanItem(_draft_name(draft), weight_bytes(draft)) for draft in drafts if not draft.copy_bits),
        *_kv_items(models, shape),
        *_states(models, shape),
        *_features(models, shape),
        PlanItem(f"workspace, {_rows(shape.rows)}", workspace_bytes(models, shape)),
        *_expert_products(models, device),
        *_graphs(models, device, shape),
        *_decoded_weights(models, shape),
        _read_buffers(models, device),
    )


def _draft_name(draft: ModelSpec) -> str:
    return f"{'' if draft.head else 'draft '}{draft.name} ({draft.short_form})"


def _kv_items(models: Models, shape: PassShape) -> Iterator[PlanItem]:
    target, *drafts = models
    name, rows = f"KV cache{'s' * len(drafts)}, {shape.cached_tokens}", shape.texts * shape.cache_rows
    if target.computed_rows:
        name = f"{name}, {target.kv_bits}-bit"
        yield PlanItem("the KV rows of a layer, dequantized", rows * target.computed_rows.layer_bytes)
    if not shape.kv_on_host:
        yield PlanItem(name, shape.texts * kv_bytes(models, shape))
        return
    of_drafts = sum(draft.kv_bytes_per_token + _index_bytes(draft) for draft in drafts)
    yield PlanItem(name, rows * (of_drafts + _index_bytes(target)), host_bytes=target_kv_bytes(target, shape))
    yield PlanItem("the KV rows of two layers, on their way", KV_BUFFERS * rows * target.kv_layer_bytes)


def target_kv_bytes(target: ModelSpec, shape: PassShape) -> int:
    """The KV rows of all texts, for the target alone."""
    return shape.texts * shape.cache_rows * target.kv_bytes_per_token


def _states(models: Models, shape: PassShape) -> Iterator[PlanItem]:
    """Recurrent states, and what the nodes of the trees add to them until a path is chosen."""
    sizes = [model.states for model in models if model.states is not None]
    if nbytes := sum(
        shape.texts * (2 + STATE_SNAPSHOTS) * states.nbytes + shape.nodes * states.row_bytes for states in sizes
    ):
        yield PlanItem(f"recurrent states, with {STATE_SNAPSHOTS} earlier ones", nbytes)


@dataclass(frozen=True)
class HeadRows:
    """Rows of the buffers of a draft head: of a pass, of the target or of the head; of a text's features that wait to
    be read, of each of `texts` texts; nodes of a tree of each that the head runs over."""

    of_pass: int
    waiting: int
    columns: int
    texts: int

    @classmethod
    def of(cls, rows: int, tree_size: int, texts: int) -> HeadRows:
        """For passes of at most `rows` rows. One row of a text is kept that was read: the last, which is read again."""
        of_pass = max(rows, WIDTHS[-1])  # a replayed pass is padded
        return cls(of_pass, of_pass + 1, tree_size, texts)

    def nbytes(self, sizes: HeadSizes, itemsize: int) -> int:
        """Of all buffers: hidden states of the target, features of texts, and hidden states of the head."""
        captured = (self.of_pass + self.texts * self.waiting) * sizes.captured
        return (captured + (self.of_pass + self.texts * (self.columns + 1)) * sizes.width) * itemsize


def _features(models: Models, shape: PassShape) -> Iterator[PlanItem]:
    """What a draft head reads of the target's hidden states, and its own."""
    rows = HeadRows.of(shape.rows, shape.tree_size, shape.texts)
    for model in models:
        if model.head is not None:
            yield PlanItem("hidden states for the draft head", rows.nbytes(model.head, ITEMSIZE[model.dtype]))


def kv_bytes(models: Models, shape: PassShape) -> int:
    """One text's part of all KV caches, with the keys of indexers."""
    return sum(model.kv_bytes_per_token + _index_bytes(model) for model in models) * shape.cache_rows


def _index_bytes(model: ModelSpec) -> int:
    """Per token, of the keys of indexers, which always lie on the device."""
    return model.index.token_bytes if model.index is not None else 0


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def replayed(models: Models, device: str, shape: PassShape) -> tuple[str, ...]:
    """The roles whose passes are replayed as CUDA graphs: models resident on the GPU, whose shapes are fixed.

    Copies are where layers stream: where none does, their passes are the target's. Block drafts are not: one pass of a
    few layers serves a whole tree, and their mask follows the block's length.
    """
    if device != "cuda" or any(model.recurrent or (model.index and model.index.pools) for model in models):
        return ()
    of_target, draft = not (shape.streams or shape.kv_on_host), models[-1]
    of_draft = len(models) > 1 and (draft.head is None or draft.head.by_level)
    if draft.copy_bits:
        of_draft = shape.streams and not shape.kv_on_host
    return tuple(role for role, is_replayed in zip(ROLES, (of_target, of_draft)) if is_replayed)


def _graphs(models: Models, device: str, shape: PassShape) -> Iterator[PlanItem]:
    roles = replayed(models, device, shape)
    padding = Padding.of_texts(shape.texts, shape.tree_size, shape.nodes, shape.cache_rows)
    if roles:
        computed = (models[0] if model.copy_bits else model for model in models)  # a copy through the target's modules
        nbytes = sum(_graph_bytes(model, shape, padding) for role, model in zip(ROLES, computed) if role in roles)
        yield PlanItem(f"CUDA graphs, {_rows(padding.widths[-1])}", nbytes)


def _graph_bytes(spec: ModelSpec, shape: PassShape, padding: Padding) -> int:
    """The graphs of one key length, their memory pool, and their static inputs and outputs."""
    rows, keys = padding.widths[-1], padding.key_lengths[-1]
    widest = replace(shape, rows=rows, texts=1, context_length=keys - shape.tree_size - 1)
    pool = _activation_bytes(spec, widest) + _expert_bytes(spec)
    logits = 2 * rows * spec.vocab_size * ITEMSIZE[spec.dtype]  # in the pool, and a copy
    masks = rows * (padding.columns + 2 * keys)  # booleans: as given, and expanded over the cache
    features = rows * spec.head.width * ITEMSIZE[spec.dtype] if spec.head else 0
    gathered = keys * (spec.kv_layer_bytes + _index_bytes(spec)) if shape.texts > 1 else 0  # of one layer
    return pool + logits + masks + features + gathered + len(padding.widths) * len(spec.layers) * GRAPH_LAYER_BYTES


def _expert_products(models: Models, device: str) -> Iterator[PlanItem]:
    """For GPUs whose grouped products need the host. Only CUDA can tell which ones, so every GPU plans for it."""
    if device == "cuda" and (nbytes := max(map(_expert_bytes, models))):
        yield PlanItem("experts of a layer, side by side", nbytes)


def _expert_bytes(spec: ModelSpec) -> int:
    by_layer = (
        expert_memory.workspace_bytes(layer.experts, spec.hidden_size, layer.decoded.expert_bytes, ITEMSIZE[spec.dtype])
        for layer in {layer for layer in spec.layers if layer.experts}
    )
    return max(by_layer, default=0)


def _decoded_weights(models: Models, shape: PassShape) -> Iterator[PlanItem]:
    """Quantized weights are dequantized just before use, one module at a time, and copies of streamed layers whole."""
    if nbytes := sum(model.decode_bytes for model in models if shape.streams or not model.copy_bits):
        yield PlanItem("weights decoded for use", nbytes)


def read_chunk_bytes(models: Models) -> int:
    """Bytes that one thread reads at once: whole blocks, fewer for small layers.

    Depends on the models alone. If it grew with the budget, one more byte of memory could make a layer stream.
    """
    largest = max(layer.disk_bytes for model in models for layer in model.layers)
    share = int(largest * READ_BUFFERS_SHARE) // THREADS
    return max(DISK_BLOCK, min(CHUNK_BYTES, share) // DISK_BLOCK * DISK_BLOCK)


def _read_buffers(models: Models, device: str) -> PlanItem:
    """Host memory that files are read through, for loading and streaming; on a CPU it counts as the device's.

    With a GPU, also the staging buffers for loading and the pinned chunks through which pageable memory is copied.
    """
    nbytes = THREADS * (read_chunk_bytes(models) + 2 * DISK_BLOCK)
    if device == "cpu":
        return PlanItem("read buffers", device_bytes=nbytes)
    loaded = [
        size
        for model in models
        for size in (model.embeddings_and_head_bytes, *(layer.nbytes for layer in model.layers))
    ]
    span_bytes, count = staging_buffers(loaded, ())
    return PlanItem("read buffers", host_bytes=nbytes + count * span_bytes + BOUNCE_BYTES)


def weight_bytes(spec: ModelSpec) -> int:
    """All weights of a model as they are kept in memory."""
    return spec.embeddings_and_head_bytes + sum(layer.device_bytes for layer in spec.layers)


def workspace_bytes(models: Models, shape: PassShape) -> int:
    """`activation_bytes` and the logits. Target and draft run in turn, so the larger one counts."""
    logits = shape.nodes * max(model.vocab_size for model in models) * LOGITS_ITEM_BYTES * LOGITS_COPIES
    return activation_bytes(models, shape) + logits


def activation_bytes(models: Models, shape: PassShape) -> int:
    """Activations and masks of the largest pass of the model that needs more."""
    return max(_activation_bytes(model, shape) for model in models)


def _activation_bytes(spec: ModelSpec, shape: PassShape) -> int:
    per_row = HIDDEN_COPIES * spec.hidden_size + MLP_COPIES * spec.intermediate_size
    keys = shape.cache_rows
    masks = MASK_COPIES * keys + SHARED_MASKS * (shape.texts - 1) * keys
    scores = spec.num_heads * keys * SCORES_BYTES if spec.model_type in WRITTEN_OUT_ATTENTION else 0
    if spec.index is not None:  # its scores take in the rows of all texts, or their entries and each node's own
        scored = keys if spec.index.rate == 1 else -(-keys // spec.index.rate) + shape.tree_size
        scores += spec.index.heads * shape.texts * scored * INDEX_SCORES_BYTES
        masks += (
            spec.index.masks * MASK_COPIES * shape.texts * keys
        )  # with the selected rows alone, and what they are selected from
    expanded = shape.texts * keys * spec.expanded_bytes
    recurrent = 0
    if spec.states is not None:
        chunks, trees = shape.rows * spec.states.width * STATE_COPIES, shape.tree_size**2 * TREE_COPIES
        channels = min(shape.rows, STATE_CHUNK) * STATE_CHUNK * spec.states.decays * CHANNEL_COPIES
        recurrent = (spec.states.heads * (chunks + trees) + channels) * STATE_ITEM_BYTES
    return shape.rows * ((per_row + masks) * ITEMSIZE[spec.dtype] + scores) + expanded + recurrent
