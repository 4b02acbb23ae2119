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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from toolkit.options import adder, listed, one_of, script_parser
from toolkit.output import Column, Row, nbytes, seconds, table_of

from loaders.checkpoint.low_bit_copy import COPIES, copy_of, with_resident_codes
from loaders.checkpoint.spec import ModelSpec
from loaders.formats.lossless import METHOD as LOSSLESS
from loaders.quantize.lossless_recipe import BITS
from offload_runtime.errors import UsageError
from offload_runtime.options.command_line import run_command
from offload_runtime.options.readers import size
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

COLUMNS = (
    Column("link", "link"),
    Column("draft", "draft"),
    Column("acceptance", "acceptance", ".3f"),
    Column("s/token", "seconds_per_token", seconds),
    Column(f"with {LESS:g} less", "less_accepted", seconds),
    Column("tokens/pass", "tokens_per_pass", ".1f"),
    Column("tree", lambda row: None if row["reason"] else f"{row['nodes']} in {row['levels']}"),
    Column("pass s", "pass_seconds", seconds),
    Column("link s", "link_seconds", seconds),
    Column("computing s", "compute_seconds", seconds),
    Column("drafting s", "draft_seconds", seconds),
    Column("verifying s", "verification_seconds", seconds),
    Column("streamed", "streamed_bytes", nbytes),
)


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
        try:
            machine = planned_machine(gpu, read_machine("cpu"), arguments.host_memory)
        except ValueError as error:
            raise UsageError(str(error)) from error
        rows = [forecast(shape, link, draft, machine) for link in arguments.link for draft in drafts]
        print("\n".join(map(json.dumps, rows) if arguments.json else _tables(rows)), flush=True)
    return 0


def _spec(shape: str, form: str | None = None, code_bits: int = BITS) -> ModelSpec:
    from loaders.checkpoint.random_weights import SHAPES  # imports torch
    from offload_runtime.doctor.predictions import spec_of

    if shape not in SHAPES:
        raise UsageError(f"there is no shape {shape!r}; there are {', '.join(SHAPES)}")
    return spec_of(shape, form, DTYPE, code_bits)


def forecast(shape: str, link: str, draft: str, machine: Machine) -> dict[str, Any]:
    """Of a shape with a draft: a name in `COPIES`, or another shape. Raises UsageError for an unknown one.

    link: how its weights cross it, plain or packed. Seconds per token and their parts; where the plan lacks memory,
    "reason" says how much in their place. less_accepted: seconds per token with an acceptance that is lower by `LESS`,
    under the same plan.
    """
    form = LOSSLESS if link == PACKED_LINK else None
    if draft in COPIES:
        target = with_resident_codes(_spec(shape, form, COPIES[draft]), COPIES[draft])
        small = copy_of(target, COPIES[draft])
    else:
        target, small = _spec(shape, form), _spec(draft)
    assumed = assumed_for(small)
    by_child, lower = assumed.verified_by(RULE), less_accepted(assumed, LESS).verified_by(RULE)
    row: dict[str, Any] = {"shape": shape, "gpu": machine.device_name, "link": link, "draft": draft, "reason": ""}
    row["acceptance"] = assumed.by_child[0]
    try:
        plan = best_kv_plan(target, small, machine, Limits(context_length=CONTEXT), by_child)
    except DoesNotFitError as error:
        return {**row, "reason": f"{nbytes(error.needed)} needed, {nbytes(error.available)} usable"}
    best = predict(plan, target, small, by_child)
    return {
        **row,
        "seconds_per_token": best.seconds_per_token,
        "less_accepted": predict(plan, target, small, lower).seconds_per_token,
        "tokens_per_pass": best.tree.tokens_per_pass,
        "nodes": best.tree.size,
        "levels": best.tree.depth,
        "pass_seconds": best.tree_pass.total,
        "link_seconds": best.tree_pass.link,
        "compute_seconds": best.tree_pass.compute,
        "draft_seconds": best.draft_seconds,
        "verification_seconds": best.verification_seconds,
        "streamed_bytes": plan.streamed_bytes,
    }


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    yield f"{rows[0]['shape']} in {DTYPE} on {rows[0]['gpu']}, {CONTEXT} tokens of context, predicted:"
    yield ""
    yield from table_of(COLUMNS, rows)
    yield from (f"{row['draft']}, {row['link']}, does not fit: {row['reason']}." for row in rows if row["reason"])
    yield ""


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("predict_drafts", __doc__)
    add = adder(parser)
    add("--shape", metavar="NAME", help="the target: llama-3-70b, qwen3-32b, ...; another name lists them")
    add("--gpu", metavar="NAME", help="the card: rtx-4090, l40, ...")
    add("--drafts", metavar="A,B", type=listed(str), help="self:3, self:4, self:5, or shapes")
    add("--link", metavar="A,B", type=listed(one_of(LINKS, "link")), default=LINKS, help="plain, packed")
    add("--host-memory", metavar="SIZE", type=size, default=HOST_MEMORY, help="free beside the GPU")
    add("--json", action="store_true", help="one JSON object a line, in seconds and bytes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
