"""(e), (g), (h) Whole replies, plain and with trees, and how they compare with those of another mode.

The demonstration pair stands in for large ones: widened, it costs what they cost and writes what it wrote before. In
float32 a text has to be equal, token for token and pass for pass; in bfloat16, equal up to ties, which both round in
their own ways. Whatever drafts and however weights cross the link, the text must be the plain one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.prompts import FEW
from toolkit.replies import TimedReply, step_seconds

from gpu.bench import Bench, Budget
from gpu.report import Record, missing
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.generation.decode import common_prefix
from offload_runtime.generation.out_of_memory import free_unused_memory
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.loading.quantize_weights import with_packed_files
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET, PACKED_LINK, PLAIN_LINK
from offload_runtime.planning.planning import Preparation

WARM_UP_TOKENS = 16
CONTEXT = 512
TEMPERATURES = (0.0, 0.6)
EXACT_TREE = 64  # nodes: of the float32 run, whose trees are static so that both models' passes can be compared
EXACT_TOKENS = 24
SMALL = "the small model in float32"
# The draft and the link of each run of section h, the most telling first.
SELF_MODES = (
    *((None, PLAIN_LINK), ("self:4", PLAIN_LINK), ("self:4", PACKED_LINK)),
    *((None, PACKED_LINK), ("self:5", PLAIN_LINK), ("self:3", PLAIN_LINK)),
)

Replies = tuple[TimedReply, ...]


@dataclass(frozen=True)
class Mode:
    """A way to write replies: what is written, in which mode, prepared when its turn comes. share: of the time left."""

    what: str
    name: str
    prepare: Callable[[], Preparation]
    tokens: int
    share: float
    prompts: int = 1
    temperature: float = 0.0
    warm_up: bool = False


def on_chip(bench: Bench, budget: Budget) -> Iterator[Record]:
    """(e) Trees where nothing streams: the pair widened to Llama2-7B and a 68M draft, on the device whole."""
    scale = bench.scale
    options: dict[str, Any] = {"dtype": bench.compute_dtype, "context_length": CONTEXT}
    what = f"{scale.chip.shape} with {scale.chip_draft.shape}, all on the device"
    target, draft = bench.widened(DEMO_TARGET, scale.chip), bench.widened(DEMO_DRAFT, scale.chip_draft)
    modes = {"plain": bench.prepare(target, **options), "tree": bench.prepare(target, draft, **options)}
    if any(preparation.plan.slots for preparation in modes.values()):
        yield missing("e", what, "skipped", f"it does not fit {modes['tree'].plan.device_name} whole")
        return
    small = _small(bench, scale.prompts, budget)
    for number, temperature in enumerate(TEMPERATURES):
        left = 2 * (len(TEMPERATURES) - number)
        asked = (scale.prompts, temperature, True)
        both = [
            Mode(what, name, _ready(modes[name]), scale.tree_tokens, 1 / share, *asked)
            for name, share in (("plain", left), ("tree", left - 1))
        ]
        yield from _records(bench, "e", budget, both, small if temperature == 0 else None)


def _ready(preparation: Preparation) -> Callable[[], Preparation]:
    return lambda: preparation


def end_to_end(bench: Bench, budget: Budget) -> Iterator[Record]:
    """(g) The target widened to 70B, streamed, with the bundled draft: in the dtype people run, and exactly."""
    scale, target = bench.scale, bench.widened(DEMO_TARGET, bench.scale.end)
    what = f"the demonstration as {scale.end.shape}, streamed"
    options: dict[str, Any] = {"device_memory": scale.end_cap, "context_length": CONTEXT}
    small = _small(bench, 1, budget)

    def streamed(draft: Any, dtype: str, **more: Any) -> Callable[[], Preparation]:
        return lambda: bench.prepare(target, draft, dtype=dtype, **options, **more)

    plain = Mode(what, "plain", streamed(None, bench.compute_dtype), scale.plain_tokens, 0.4)
    tree = Mode(what, "tree", streamed(DEMO_DRAFT, bench.compute_dtype), scale.tree_tokens, 1.0)
    yield from _records(bench, "g", budget.until(0.55), [plain, tree], small)
    fixed = {"tree": "sequoia", "tree_size": EXACT_TREE}
    name, pair = f"tree of {EXACT_TREE} nodes", "the small pair, on the device"
    together = {"dtype": "float32", "context_length": CONTEXT, **fixed}
    small_pair = Mode(pair, name, lambda: bench.prepare(DEMO_TARGET, DEMO_DRAFT, **together), EXACT_TOKENS, 1.0)
    wide = Mode(what, name, streamed(DEMO_DRAFT, "float32", **fixed), EXACT_TOKENS, 1.0)
    yield from _records(bench, "g", budget, [small_pair, wide], None, first_is_plain=False)


def self_drafts(bench: Bench, budget: Budget) -> Iterator[Record]:
    """(h) The target widened to 7B, streamed over both links, drafted by nothing and by its own copies."""
    scale, target = bench.scale, bench.widened(DEMO_TARGET, bench.scale.own)
    options: dict[str, Any] = {"device_memory": scale.own_cap, "context_length": CONTEXT, "dtype": bench.compute_dtype}

    def prepared(draft: str | None, link: str) -> Callable[[], Preparation]:
        return lambda: with_packed_files(bench.prepare(target, draft, link=link, **options))

    modes = [
        Mode(
            f"the demonstration as {scale.own.shape}, streamed",
            f"{draft or 'plain'}, {link} link",
            prepared(draft, link),
            scale.tree_tokens if draft else scale.plain_tokens,
            1 / (len(SELF_MODES) - number),
        )
        for number, (draft, link) in enumerate(SELF_MODES)
    ]
    yield from _records(bench, "h", budget, modes, None)


def _small(bench: Bench, prompts: int, budget: Budget) -> tuple[str, Replies]:
    """What the small model writes, as a reference."""
    preparation = bench.prepare(DEMO_TARGET, dtype="float32", context_length=CONTEXT)
    return SMALL, _decode(Mode("", "", _ready(preparation), bench.scale.tree_tokens, 1.0, prompts), preparation, budget)


def _records(
    bench: Bench,
    section: str,
    budget: Budget,
    modes: Sequence[Mode],
    reference: tuple[str, Replies] | None,
    first_is_plain: bool = True,
) -> Iterator[Record]:
    """Of every mode; greedy text is compared with `reference`, or with the first mode's where there is none."""
    plain: Record | None = None
    for mode in modes:
        budget.need()
        try:
            preparation = mode.prepare()
        except UnsupportedModelError as error:
            yield missing(section, f"{mode.what}: {mode.name}", "skipped", str(error))
            continue
        replies = _decode(mode, preparation, budget.until(mode.share))
        about = {"what": mode.what, "mode": mode.name, "dtype": preparation.target.spec.dtype}
        record = _record(section, {**about, "temperature": mode.temperature}, replies, reference, plain)
        if mode.temperature == 0:
            reference = reference or (mode.name if first_is_plain else mode.what, replies)
        plain = plain or (record if first_is_plain else None)
        yield record


def _decode(mode: Mode, preparation: Preparation, budget: Budget) -> Replies:
    """A reply to each question, the last one cut short where time runs out; at least its first two steps are made."""
    free_unused_memory()
    replies = []
    questions = [[{"role": "user", "content": text}] for text in FEW[: mode.prompts]]
    with OffloadRuntime(preparation) as runtime:
        if mode.warm_up:
            runtime.generate(questions[0], max_new_tokens=WARM_UP_TOKENS, temperature=mode.temperature)
        for question in questions:
            runtime.forget()
            steps = []
            for step in runtime.stream(question, max_new_tokens=mode.tokens, temperature=mode.temperature):
                steps.append(step)
                if budget.seconds < 0 and len(steps) > 1:
                    break
            replies.append(TimedReply(tuple(steps)))
            if budget.seconds < 0:
                break
    free_unused_memory()
    return tuple(replies)


def _record(
    section: str,
    about: Mapping[str, Any],
    replies: Replies,
    reference: tuple[str, Replies] | None,
    plain: Record | None,
) -> Record:
    """reference: what greedy text is compared with, and its replies. plain: the same model without trees."""
    rest = [step for reply in replies for step in reply.rest]
    steps = [step for reply in replies for step in reply.steps]
    tokens, passes = sum(len(step.token_ids) for step in rest), max(1, len(rest))
    per_token = sum(map(step_seconds, rest)) / max(1, tokens)
    pairs = [(one.token_ids, other.token_ids) for one, other in zip(replies, reference[1])] if reference else []
    values = {
        **about,
        "tokens": sum(len(step.token_ids) for step in steps),
        "passes": len(steps),
        "tokens_per_pass": tokens / passes,
        "seconds_per_token": per_token,
        "seconds_to_first_token": replies[0].seconds_to_first_token,
        "draft_seconds": sum(step.draft_seconds for step in rest) / passes,
        "target_seconds": sum(step.target_seconds for step in rest) / passes,
        "streamed_bytes": max((step.streamed_bytes for step in rest), default=0),
        "reference": reference[0] if reference else None,
        "equal_tokens": sum(common_prefix(*pair) for pair in pairs) if reference else None,
        "compared": sum(min(map(len, pair)) for pair in pairs) if reference else None,
        "speedup": plain["seconds_per_token"] / per_token if plain and per_token else None,
    }
    return Record("Decoding", section, values)
