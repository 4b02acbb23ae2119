"""The request for a plan: models, machine and limits, and the defaults for limits left open."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from loaders.checkpoint.rope_scaling import is_rotary
from loaders.checkpoint.spec import SHARED_ROWS, ModelSpec
from loaders.dequantize.plain_cost import BLOCK_BYTES
from loaders.errors import UnsupportedModelError
from scheduler.machine.machine import Machine
from scheduler.plan.memory import (
    Models,
    PassShape,
    PlanItem,
    activation_bytes,
    device_budget,
    fixed_items,
    host_budget,
)

# Context lengths tried in turn if the user gives none: a shorter one only if nothing fits with a longer one.
DEFAULT_CONTEXTS = (4096, 2048, 1024, 512, 256)

# Query tokens of the passes that read a prompt, tried in turn: 512 keep a layer's matrix products near their peak.
# Fewer only if nothing fits with more; never fewer than the tree has nodes.
PREFILL_ROWS = (512, 256, 128, 64, 32)
# Prompt tokens that share a pass with the tree, tried before `PREFILL_ROWS` if layers stream: every further pass over
# a prompt streams all weights again.
PROMPT_TOKENS = (8192, 4096, 2048, 1024, 512, 256)
# The workspace for such a prompt, as a share of the largest layer: more would cost every later pass more than it saves
# in the first. Llama-70B can afford 2,048 tokens in bfloat16, 512 in 4 bits.
PROMPT_SHARE = 0.5

# Tree sizes tried in turn when layers stream. On a GPU the link is the bottleneck and hundreds of nodes are free; on a
# CPU that reads from disk, tens. A smaller tree is used only if a larger one's workspace leaves no room for a ring.
STREAMING_TREES = {"cuda": (512, 256, 128, 64), "cpu": (64, 32, 16)}
# If nothing streams, every node costs computing time.
RESIDENT_TREE = {"cuda": 64, "cpu": 8}
KV_PLACES = ("device", "host")
# A pass has some hundreds of nodes, so that more texts than this would have no trees.
MOST_TEXTS = 256
# Trees from n-gram lookup in the text, without a draft: a long quotation fills them. The root alone if even their
# workspace is too much.
REPEATED_TREES = {"cuda": (64, 16, 1), "cpu": (16, 1)}


@dataclass(frozen=True)
class Limits:
    """What the user fixed; None leaves the choice to the planner. Bytes, tokens, nodes, levels, texts.

    On a CPU the device is host memory, so both memory caps apply. repeat_text: without a draft, make room for trees
    from n-gram lookup in the text. parallel: texts that share passes; None: one for `make_plan`, as many as pay for
    `best_parallel_plan`. nodes: of all trees of a pass together; None: a tree of `tree_size` for each text, or of the
    planner's size for all. kv: where the target's KV rows lie, "device" or "host"; None: on the device for `make_plan`,
    where passes take less for `best_kv_plan`. Raises ValueError for values that can never run.
    """

    device_memory: int | None = None
    host_memory: int | None = None
    context_length: int | None = None
    tree_size: int | None = None
    tree_depth: int | None = None
    repeat_text: bool = False
    parallel: int | None = 1
    nodes: int | None = None
    kv: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in ("repeat_text", "kv"):
                continue
            value, least = getattr(self, field.name), 0 if field.name.endswith("memory") else 1
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{field.name} must be a whole number from {least} up, not {value!r}")
        if self.kv not in (None, *KV_PLACES):
            raise ValueError(f"kv must be one of {', '.join(KV_PLACES)}, not {self.kv!r}")
        if self.parallel is not None and self.parallel > MOST_TEXTS:
            raise ValueError(f"parallel must be at most {MOST_TEXTS} texts, not {self.parallel}")


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on. Raises ValueError or UnsupportedModelError if no machine could run it.

    `smaller`: (options, spec) pairs that run the same model with smaller weights, the largest first.
    """

    spec: ModelSpec
    draft: ModelSpec | None
    machine: Machine
    limits: Limits
    smaller: tuple[tuple[str, ModelSpec], ...] = ()

    def __post_init__(self) -> None:
        if self.context_lengths[0] > self.spec.max_positions:
            raise ValueError(_too_long(self.spec, self.context_lengths[0]))
        recurrent = [model for model in self.models if not model.can_branch]
        if self.draft is not None and recurrent:
            raise UnsupportedModelError(
                f"{recurrent[0].name} ({recurrent[0].architecture}) keeps a recurrent state, which cannot branch over "
                "a tree of drafts: run without a draft (--draft none)"
            )

    @property
    def models(self) -> Models:
        """Target, then draft if there is one."""
        return (self.spec,) if self.draft is None else (self.spec, self.draft)

    @property
    def texts(self) -> int:
        """Texts that share passes; a recurrent state holds one, so there they take turns."""
        return 1 if not self.spec.can_branch else self.limits.parallel or 1

    @property
    def copies(self) -> tuple[int, ...]:
        """Bytes on the device of each layer's low-bit copy, which it has only where it streams; () without a copy."""
        return tuple(layer.nbytes for layer in self.draft.layers) if self.draft and self.draft.copy_bits else ()

    @property
    def kv_on_host(self) -> bool:
        """Whether the target's KV rows lie in host memory: asked for, and possible."""
        return self.limits.kv == "host" and self.kv_stays is None

    @property
    def kv_stays(self) -> str | None:
        """Why the KV rows cannot lie in host memory; None if they can."""
        if self.machine.device == "cpu":
            return "the processor computes in host memory"
        if self.spec.recurrent:
            return "a recurrent state is used whole in every pass"
        return SHARED_ROWS if self.spec.shares_kv else None

    @property
    def context_lengths(self) -> tuple[int, ...]:
        """Tokens that the KV caches must hold beside a tree: the lengths to try in turn, one if the user fixed it."""
        if self.limits.context_length is not None:
            return (self.limits.context_length,)
        limit = self.spec.max_positions
        return (min(limit, DEFAULT_CONTEXTS[0]), *(length for length in DEFAULT_CONTEXTS[1:] if length < limit))

    def resident_shapes(self, context_length: int) -> Iterator[PassShape]:
        """Passes to try in turn if nothing streams."""
        for tree_size in self._resident_tree_sizes:
            yield from self._chunked(context_length, tree_size, streams=False)

    def streaming_shapes(self, context_length: int) -> Iterator[PassShape]:
        """Passes to try in turn if layers stream: one tree with each number of rows, then the next smaller tree."""
        for tree_size in self.streaming_tree_sizes:
            if self.spec.can_branch:
                yield from self._whole_prompts(context_length, tree_size)
            yield from self._chunked(context_length, tree_size)

    def _whole_prompts(self, context_length: int, tree_size: int) -> Iterator[PassShape]:
        """Passes over a long prompt and the tree after it, as far as `PROMPT_SHARE` allows."""
        room = PROMPT_SHARE * max(layer.nbytes for layer in self.spec.layers)
        least = activation_bytes(self.models, next(self._chunked(context_length, tree_size)))
        for tokens in dict.fromkeys(min(tokens, context_length) for tokens in PROMPT_TOKENS):
            shape = self._shape(context_length, tree_size, tokens)
            shape = replace(shape, rows=tokens + shape.nodes - 1)
            if activation_bytes(self.models, shape) - least <= room:
                yield shape

    def _chunked(self, context_length: int, tree_size: int, streams: bool = True) -> Iterator[PassShape]:
        # a recurrent state can process several tokens at once only from its start, so a prompt is read in one pass
        chunks = PREFILL_ROWS if self.spec.can_branch else (context_length,)
        shapes = (self._shape(context_length, tree_size, min(rows, context_length), streams) for rows in chunks)
        yield from dict.fromkeys(replace(shape, rows=max(shape.nodes, shape.rows)) for shape in shapes)

    def _shape(self, context_length: int, tree_size: int, rows: int, streams: bool = True) -> PassShape:
        """A pass of this request's texts; each has a whole tree if the user fixed its size, else they share one."""
        each = tree_size == self.limits.tree_size
        nodes = self.limits.nodes or (tree_size * self.texts if each else tree_size)
        return PassShape(context_length, tree_size, rows, streams, self.texts, nodes, self.kv_on_host)

    @property
    def device_budget(self) -> int:
        """Bytes that may be used on the device; on a CPU the smaller of the two caps applies."""
        caps = [self.limits.device_memory]
        if self.machine.device == "cpu":
            caps.append(self.limits.host_memory)
        return device_budget(self.machine, min((cap for cap in caps if cap is not None), default=None))

    @property
    def host_budget(self) -> int:
        """Bytes that may be used in host memory beside a GPU; 0 on a CPU, where the device is host memory."""
        return 0 if self.machine.device == "cpu" else host_budget(self.machine, self.limits.host_memory)

    @property
    def _resident_tree_sizes(self) -> tuple[int, ...]:
        """Tree sizes to try in turn if nothing streams; with nothing to draft, the root alone."""
        if self.draft is None:
            return self._undrafted_tree_sizes
        return (self.limits.tree_size or RESIDENT_TREE[self.machine.device],)

    @property
    def streaming_tree_sizes(self) -> tuple[int, ...]:
        """Tree sizes to try in turn if layers stream; one if the user fixed it."""
        if self.draft is None:
            return self._undrafted_tree_sizes
        return STREAMING_TREES[self.machine.device] if self.limits.tree_size is None else (self.limits.tree_size,)

    @property
    def _undrafted_tree_sizes(self) -> tuple[int, ...]:
        if not self.repeats_text:
            return (1,)
        return REPEATED_TREES[self.machine.device] if self.limits.tree_size is None else (self.limits.tree_size,)

    @property
    def repeats_text(self) -> bool:
        """Whether trees come from n-gram lookup in the text."""
        return self.limits.repeat_text and self.draft is None and self.spec.can_branch

    def fixed_items(self, shape: PassShape) -> tuple[PlanItem, ...]:
        """Memory needed besides the target's layers."""
        items = fixed_items(self.models, self.machine.device, shape)
        if self.machine.no_kernels is None or not self.dequantizes(shape):
            return items
        return (*items, PlanItem("dequantizing by plain torch", BLOCK_BYTES))

    def dequantizes(self, shape: PassShape) -> bool:
        """Whether any model has quantized weights, or a copy where layers stream."""
        return any(model.is_packed or (model.copy_bits and shape.streams) for model in self.models)

    def tree_depth(self, tree_size: int) -> int:
        """Depth limit of a tree of `tree_size` nodes: 4 levels for 8 nodes, 10 for 64, 16 for 512, 18 for 1,024.

        Twice the binary logarithm follows the depths published for trees of positional acceptance (18 at 768 nodes).
        A tree from n-gram lookup may be one long path.
        """
        default = tree_size if self.repeats_text else max(4, 2 * (tree_size - 1).bit_length() - 2)
        return min(self.limits.tree_depth or default, tree_size - 1)


def _too_long(spec: ModelSpec, context_length: int) -> str:
    lines = [
        f"a context of {context_length} tokens is more than the {spec.positions_for_people} positions {spec.name} was "
        "made for",
        f"  --context-length {spec.max_positions}   is the most that it has",
    ]
    if is_rotary(spec.model_type):
        factor = -(-context_length // spec.max_positions)
        lines.append(f"  --rope-scaling yarn:{factor}   extends it; how good its texts then are depends on the model")
    return "\n".join(lines)
