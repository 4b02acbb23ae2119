"""(g) The whole way at full size: the demonstration target widened to 70B, streamed, with the bundled draft.

What it writes must be what the small model writes. In float32 it has to be equal, token for token and pass for pass; in
bfloat16, equal up to ties, which both round in their own ways.
"""

from collections.abc import Iterator
from pathlib import Path

from toolkit.replies import TimedReply

from gpu.bench import Bench, Budget
from gpu.decoding import decode, decoding, prompts
from gpu.report import Record
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET
from offload_runtime.planning.planning import Preparation

SECTION = "g"
EXACT_TREE = 64  # nodes: of the float32 run, whose trees are static so that both models' passes can be compared
EXACT_TOKENS = 24
SMALL = "the small model in float32"

Reference = tuple[str, tuple[TimedReply, ...]]


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    target = bench.widened(DEMO_TARGET, bench.scale.end)
    what = f"the demonstration as {bench.scale.end.shape}, streamed"
    small = bench.prepare(DEMO_TARGET, tree="none", dtype="float32", context_length=512)
    reference = (SMALL, decode(bench, small, prompts(bench), bench.scale.tree_tokens, 0.0, budget, warm_up=False))
    yield from _timed(bench, budget.until(0.55), target, what, reference)
    yield from _exact(bench, budget, target, what)


def _timed(bench: Bench, budget: Budget, target: Path, what: str, reference: Reference) -> Iterator[Record]:
    """In the dtype people run: seconds per token without and with the draft."""
    plain = None
    for mode, draft, tokens, share in (
        ("plain", None, bench.scale.plain_tokens, 0.4),
        ("tree", DEMO_DRAFT, bench.scale.tree_tokens, 1.0),
    ):
        budget.need()
        preparation = _streamed(bench, target, draft, bench.compute_dtype)
        replies = decode(bench, preparation, prompts(bench)[:1], tokens, 0.0, budget.until(share), warm_up=False)
        about = {"what": what, "mode": mode, "dtype": bench.compute_dtype, "temperature": 0.0}
        record = decoding(SECTION, about, replies, reference, plain)
        plain = plain or record
        yield record


def _exact(bench: Bench, budget: Budget, target: Path, what: str) -> Iterator[Record]:
    """In float32 with one tree: the small pair, then the wide target."""
    fixed = {"tree": "sequoia", "tree_size": EXACT_TREE}
    small = bench.prepare(DEMO_TARGET, DEMO_DRAFT, dtype="float32", context_length=512, **fixed)
    wide = _streamed(bench, target, DEMO_DRAFT, "float32", **fixed)
    reference: Reference | None = None
    for name, preparation in (("the small pair, on the device", small), (what, wide)):
        budget.need()
        replies = decode(bench, preparation, prompts(bench)[:1], EXACT_TOKENS, 0.0, budget, warm_up=False)
        about = {"what": name, "mode": f"tree of {EXACT_TREE} nodes", "dtype": "float32", "temperature": 0.0}
        yield decoding(SECTION, about, replies, reference)
        reference = (name, replies)


def _streamed(bench: Bench, target: Path, draft: Path | None, dtype: str, **options: object) -> Preparation:
    tree = {} if draft else {"tree": "none"}
    return bench.prepare(
        target, draft, dtype=dtype, device_memory=bench.scale.end_cap, context_length=512, **{**tree, **options}
    )
