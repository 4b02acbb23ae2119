"""(d), (h) Dequantizing, as every pass does with quantized weights that stream, and drafting with copies."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from gpu.bench import Bench, Budget
from gpu.report import Record
from loaders.dequantize.lossless.plain import approximate
from loaders.dequantize.plain import decode
from loaders.dequantize.stacks import approximate_code, fused_kernels
from loaders.formats.schemes import Awq, Codebook, Fp4, Ggml, Gptq, Lossless, Scaled, Scheme, Words
from loaders.gguf.types import BLOCKS
from loaders.lossless.bins import KINDS, RUNS, Bins
from loaders.lossless.encode import encode

GROUP = 128
REPEATS = 7
Stored = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of a weight's stored tensors."""
Way = Callable[[], object] | None
"""What dequantizes a matrix once; None where there is no such kernel."""


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    """(d) Of every form that files have."""
    rows, columns = bench.scale.packed_weight
    fused = fused_kernels() if bench.is_cuda else None
    for form, (scheme, stored) in forms(rows, columns).items():
        operands = {role: _random(shape, dtype, bench.device) for role, (shape, dtype) in stored.items()}
        out = _output(scheme, rows, columns, bench.device)
        ways = (way and partial(way, scheme, operands, out) for way in (fused, decode))
        yield _record(bench, budget, "d", form, *ways)


def codes(bench: Bench, budget: Budget) -> Iterator[Record]:
    """(h) Of copies' codes alone, as drafting does, and with all bits, as passes over the packed link do."""
    rows, columns = bench.scale.packed_weight
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    fused = fused_kernels() if bench.is_cuda else None
    for bits in RUNS:
        bins, scheme = Bins(KINDS["BF16"], bits), Lossless(bits, "BF16")
        stored = {name: tensor.to(bench.device) for name, tensor in vars(encode(weights, bins)).items()}
        out = torch.empty(rows, columns, dtype=torch.bfloat16, device=bench.device)
        code = (bins, stored["code"], stored["top"].flatten(), out.view(-1))
        kernel = fused and partial(approximate_code, *code)
        yield _record(bench, budget, "h", f"copy in {bits} bits", kernel, partial(approximate, *code))
        ways = (way and partial(way, scheme, stored, out) for way in (fused, decode))
        yield _record(bench, budget, "h", f"without loss, {bits}-bit codes", *ways)


def _record(bench: Bench, budget: Budget, section: str, form: str, fused: Way, plain: Way) -> Record:
    """The least seconds of both ways."""
    budget.need(1.0 if bench.is_cuda else 0.0)
    rows, columns = bench.scale.packed_weight
    what = {"form": form, "rows": rows, "columns": columns, "nbytes": 2 * rows * columns}
    ways = {"fused_seconds": fused, "plain_seconds": plain}
    took = {name: min(bench.seconds(way, REPEATS)) if way else None for name, way in ways.items()}
    return Record("Unpacking", section, {**what, **took})


def forms(rows: int, columns: int) -> dict[str, tuple[Scheme, Stored]]:
    """Every form in which files hold a matrix, by name."""
    groups, byte, half, word = columns // GROUP, torch.uint8, torch.float16, torch.int32
    float8 = torch.float8_e4m3fn
    int4: Stored = {"weight_packed": ((rows, columns // 8), word), "weight_scale": ((rows, groups), torch.bfloat16)}
    by_group: Stored = {"qzeros": ((groups, rows // 8), word), "scales": ((groups, rows), half)}
    int8: Stored = {"weight": ((rows, columns), torch.int8), "weight_scale": ((rows, 1), torch.bfloat16)}
    blocks: Stored = {"weight": ((rows, columns), float8), "weight_scale": ((rows // GROUP, groups), torch.float32)}
    mx: Stored = {"weight": ((1, rows, columns // 32, 16), byte), "weight_scale": ((1, rows, columns // 32), byte)}
    nv: Stored = {
        **{"weight": ((rows, columns // 2), byte), "weight_scale": ((rows, columns // 16), float8)},
        "global_scale": ((1,), torch.float32),
    }
    codes: Stored = {
        **{"weight": ((rows * columns // 2, 1), byte), "weight.quant_map": ((16,), torch.float32)},
        "weight.absmax": ((rows * columns // 64,), torch.float32),
    }
    return {
        "compressed-tensors int4": (Words(4, GROUP, ordered=True), int4),
        "AWQ": (Awq(GROUP), {"qweight": ((columns, rows // 8), word), **by_group}),
        "GPTQ": (
            Gptq(4, GROUP, zeros_less_one=True, ordered=True),
            {"qweight": ((columns // 8, rows), word), **by_group},
        ),
        "int8 rows": (Scaled(1, columns), int8),
        "FP8 blocks": (Scaled(GROUP, GROUP, in_float32=True), blocks),
        "MXFP4": (Fp4(32, input_major=True), mx),
        "NVFP4": (Fp4(16, divides=True), nv),
        "codebook of 16": (Codebook(64, "float16"), codes),
        **{
            f"GGUF {kind}": (Ggml(kind), {"blocks": ((rows, columns // values * nbytes), byte)})
            for kind, (values, nbytes) in BLOCKS.items()
        },
    }


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Random bytes: what they decode to means nothing, and takes as long."""
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8, device=device).view(
        dtype
    )


def _output(scheme: Scheme, rows: int, columns: int, device: str) -> Tensor:
    """Memory for one weight, in the runtime's layout."""
    make = partial(torch.empty, dtype=torch.bfloat16, device=device)
    if isinstance(scheme, Fp4) and scheme.input_major:
        return make(1, rows, columns).mT
    return make(columns, rows).mT if scheme.input_major else make(rows, columns)
