"""(d) Decoding packed weights, as every pass does with those that stream."""

from collections.abc import Iterator
from functools import partial

import torch
from decode_speed import best_seconds, cases, output

from gpu.bench import Bench, Budget
from gpu.records import Record, Unpacking
from loaders.dequantize.plain import decode
from loaders.dequantize.stacks import fused_kernels

SECTION = "d"


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    rows, columns = bench.scale.packed_weight
    fused = fused_kernels() if bench.is_cuda else None
    for name, scheme, operands, _ in cases(rows, columns, bench.device):
        budget.need(1.0 if bench.is_cuda else 0.0)
        out = output(scheme, rows, columns, torch.bfloat16, bench.device)
        fused_seconds = best_seconds(partial(fused, scheme, operands, out), bench.device) if fused else None
        plain_seconds = best_seconds(partial(decode, scheme, operands, out), bench.device)
        yield Unpacking(SECTION, name, rows, columns, out.nbytes, fused_seconds, plain_seconds)
