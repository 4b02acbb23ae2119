"""(d) Dequantizing, as every pass does with quantized weights that stream."""

from collections.abc import Iterator
from functools import partial

import torch
from decode_speed import best_seconds, cases, output

from gpu.bench import Bench, Budget
from gpu.report import Record
from loaders.dequantize.plain import decode
from loaders.dequantize.stacks import fused_kernels

SECTION = "d"


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    rows, columns = bench.scale.packed_weight
    fused = fused_kernels() if bench.is_cuda else None
    for form, scheme, operands, _ in cases(rows, columns, bench.device):
        budget.need(1.0 if bench.is_cuda else 0.0)
        out = output(scheme, rows, columns, torch.bfloat16, bench.device)
        what = {"form": form, "rows": rows, "columns": columns, "nbytes": out.nbytes}
        ways = {"fused_seconds": fused, "plain_seconds": decode}
        runs = {name: partial(way, scheme, operands, out) if way else None for name, way in ways.items()}
        took = {name: best_seconds(run, bench.device) if run else None for name, run in runs.items()}
        yield Record("Unpacking", SECTION, {**what, **took})
