"""Predict seconds per token with each draft, for a known shape on a known GPU that need not be here, part by part.

    python scripts/predict_drafts.py                                      the cases of docs/self-draft.md
    python scripts/predict_drafts.py --shape llama-3-70b --gpu rtx-4090 --drafts self:3,llama-3.2-1b

Nothing is read, loaded or measured: shapes are those of published configs in bfloat16, GPUs those of data sheets, and
the acceptance is the one that every plan assumes: of a copy, measured on SmolLM2-135M; of a draft model, published for
Llama-3 and scaled by the draft's size. The last column is for a first child that is accepted less often.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from toolkit.options import listed, one_of, script_parser
from toolkit.output import nbytes, say, seconds, table, written

from loaders.checkpoint.low_bit_copy import COPIES, copy_of, with_resident_codes
from loaders.checkpoint.spec import ModelSpec
from loaders.formats.lossless import METHOD as LOSSLESS
from loaders.quantize.lossless_recipe import BITS
from loaders.sizes import parse_size
from offload_runtime.errors import UsageError
from offload_runtime.options.command_line import run_command
from offload_runtime.options.run_options import PACKED_LINK, PLAIN_LINK
from offload_runtime.planning.expected_acceptance import assumed_for, less_accepted
from offload_runtime.planning.kv_choice import best_kv_plan
from offload_runtime.planning.prediction import predict
from scheduler.errors import DoesNotFitError
from scheduler.machine.data_sheets import planned_machine
from scheduler.machine.machine import Machine, read_machine
from scheduler.plan.plan import Limits

DTYPE, CONTEXT, HOST_MEMORY = "bfloat16", 4096, "256GiB"
RULE = "traversal"
LINKS = (PLAIN_LINK, PACKED_LINK)
LESS = 0.03  # of the acceptance: some standard errors of what was measured
_COPIES = ("self:3", "self:4", "self:5")
# Shape, GPU and drafts: a 70B that streams over PCIe 4 and 5, and a 32B beside 24 GB.
CASES = (
    ("llama-3-70b", "l40", (*_COPIES, "llama-3.2-1b", "llama-3-8b")),
    ("llama-3-70b", "rtx-5090", (*_COPIES, "llama-3.2-1b", "llama-3-8b")),
    ("qwen3-32b", "rtx-4090", (*_COPIES, "qwen3-0.6b")),
)


@dataclass(frozen=True)
class Forecast:
    """Predicted seconds per token and their parts. reason: why there are none: what the plan lacks.

    less_accepted: seconds per token with an acceptance that is lower by `LESS`, under the same plan.
    """

    shape: str
    gpu: str
    link: str
    draft: str
    reason: str = ""
    acceptance: float | None = None
    seconds_per_token: float | None = None
    less_accepted: float | None = None
    tokens_per_pass: float | None = None
    nodes: int | None = None
    levels: int | None = None
    pass_seconds: float | None = None
    link_seconds: float | None = None
    compute_seconds: float | None = None
    draft_seconds: float | None = None
    verification_seconds: float | None = None
    streamed_bytes: int | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    cases: Sequence[tuple[str, str, Sequence[str]]] = CASES
    chosen = (arguments.shape, arguments.gpu, arguments.drafts)
    if any(chosen):
        if not all(chosen):
            raise UsageError("--shape, --gpu and --drafts belong together")
        cases = [chosen]
    for shape, gpu, drafts in cases:
        machine = _machine(gpu, arguments.host_memory)
        rows = [forecast(shape, link, draft, machine) for link in arguments.link for draft in drafts]
        say((json.dumps(asdict(row)) for row in rows) if arguments.json else _tables(rows))
    return 0


def _machine(gpu: str, host_memory: str) -> Machine:
    try:
        return planned_machine(gpu, read_machine("cpu"), parse_size(host_memory))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _spec(shape: str, form: str | None = None, code_bits: int = BITS) -> ModelSpec:
    from loaders.checkpoint.random_weights import SHAPES  # imports torch
    from offload_runtime.doctor.predictions import spec_of

    if shape not in SHAPES:
        raise UsageError(f"there is no shape {shape!r}; there are {', '.join(SHAPES)}")
    return spec_of(shape, form, DTYPE, code_bits)


def forecast(shape: str, link: str, draft: str, machine: Machine) -> Forecast:
    """Of a shape with a draft: a name in `COPIES`, or another shape. Raises UsageError for an unknown one.

    link: how its weights cross it, plain or packed.
    """
    form = LOSSLESS if link == PACKED_LINK else None
    if draft in COPIES:
        target = with_resident_codes(_spec(shape, form, COPIES[draft]), COPIES[draft])
        small = copy_of(target, COPIES[draft])
    else:
        target, small = _spec(shape, form), _spec(draft)
    assumed = assumed_for(small)
    by_child, lower = assumed.verified_by(RULE), less_accepted(assumed, LESS).verified_by(RULE)
    try:
        plan = best_kv_plan(target, small, machine, Limits(context_length=CONTEXT), by_child)
    except DoesNotFitError as error:
        reason = f"{nbytes(error.needed)} needed, {nbytes(error.available)} usable"
        return Forecast(shape, machine.device_name, link, draft, reason, assumed.by_child[0])
    best = predict(plan, target, small, by_child)
    return Forecast(
        shape,
        machine.device_name,
        link,
        draft,
        acceptance=assumed.by_child[0],
        seconds_per_token=best.seconds_per_token,
        less_accepted=predict(plan, target, small, lower).seconds_per_token,
        tokens_per_pass=best.tree.tokens_per_pass,
        nodes=best.tree.size,
        levels=best.tree.depth,
        pass_seconds=best.tree_pass.total,
        link_seconds=best.tree_pass.link,
        compute_seconds=best.tree_pass.compute,
        draft_seconds=best.draft_seconds,
        verification_seconds=best.verification_seconds,
        streamed_bytes=plan.streamed_bytes,
    )


def _tables(rows: Sequence[Forecast]) -> Iterator[str]:
    titles = ("link", "draft", "acceptance", "s/token", f"with {LESS:g} less", "tokens/pass", "tree", "pass s",
              "link s", "computing s", "drafting s", "verifying s", "streamed")  # fmt: skip
    yield f"{rows[0].shape} in {DTYPE} on {rows[0].gpu}, {CONTEXT} tokens of context, predicted:"
    yield ""
    yield from table(titles, map(_cells, rows))
    yield from (f"{row.draft}, {row.link}, does not fit: {row.reason}." for row in rows if row.reason)
    yield ""


def _cells(row: Forecast) -> list[str]:
    times = row.pass_seconds, row.link_seconds, row.compute_seconds, row.draft_seconds, row.verification_seconds
    return [
        row.link,
        row.draft,
        written(row.acceptance, ".3f"),
        *(written(value, seconds) for value in (row.seconds_per_token, row.less_accepted)),
        written(row.tokens_per_pass, ".1f"),
        "-" if row.nodes is None else f"{row.nodes} in {row.levels}",
        *(written(value, seconds) for value in times),
        written(row.streamed_bytes, nbytes),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("predict_drafts", __doc__)
    add = parser.add_argument
    add("--shape", metavar="NAME", help="the target: llama-3-70b, qwen3-32b, ...; another name lists them")
    add("--gpu", metavar="NAME", help="the card: rtx-4090, l40, ...")
    add("--drafts", metavar="A,B", type=listed(str), help="self:3, self:4, self:5, or shapes")
    add(
        "--link", metavar="A,B", type=listed(one_of(LINKS, "link")), default=LINKS, help="plain, packed (default: both)"
    )
    add("--host-memory", metavar="SIZE", default=HOST_MEMORY, help=f"free beside the GPU (default: {HOST_MEMORY})")
    add("--json", action="store_true", help="one JSON object a line, in seconds and bytes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
