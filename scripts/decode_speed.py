"""How fast quantized weights are dequantized, compared with other ways in the same run.

    python scripts/decode_speed.py [--rows 4096] [--columns 4096] [--threads 1] [--device cuda]

Every way dequantizes the same bytes and must give the same bits. "plain torch" is the arithmetic written directly, one
tensor at a time; "library" is the format's own code, if installed (compressed-tensors, bitsandbytes, gguf) or part of
transformers. Times are the best of several runs, since other load on the machine only adds to them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from toolkit.options import STORED_DTYPES, add_count, adder, script_parser

from loaders.dequantize.plain import decode
from loaders.dequantize.stacks import fused_kernels
from loaders.formats.schemes import Awq, Codebook, Fp4, Ggml, Gptq, Mxfp4, Scaled, Scheme, Words
from loaders.gguf.types import BLOCKS, TYPE_NAMES
from offload_runtime.errors import UsageError
from offload_runtime.options.command_line import run_command

GROUP = 128
BLOCK = 256  # the largest that a format stores together
REPEATS = 7
Operands = Mapping[str, Tensor]
Rival = tuple[str, Callable[[], Tensor]]


def main() -> int:
    return run_command(lambda: _run(_parser().parse_args()))


def _parser() -> argparse.ArgumentParser:
    epilog = "exit codes: 0 ok, 1 another way is quicker or gives other values, 2 wrong use"
    parser = script_parser("decode_speed", __doc__, epilog)
    add = adder(parser)
    add_count(add, "--rows", 4096, 1, "of the matrix")
    add_count(add, "--columns", 4096, 1, "of the matrix, its inputs")
    add_count(add, "--threads", 1, 1, "to compute with")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="where to compute")
    add("--dtype", default="float32", choices=STORED_DTYPES, help="to decode to")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.rows % BLOCK or options.columns % BLOCK:
        raise UsageError(f"--rows and --columns have to be multiples of {BLOCK}, which formats store together")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no CUDA device here; --device cpu runs without")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    print(f"{options.rows} x {options.columns} to {options.dtype} on {options.device}, torch {torch.__version__}")
    slower = 0
    for name, scheme, operands, rivals in cases(options.rows, options.columns, options.device):
        out = output(scheme, options.rows, options.columns, dtype, options.device)
        run = (fused_kernels() if options.device == "cuda" else None) or decode
        ours = best_seconds(partial(run, scheme, operands, out), options.device)
        print(f"{name:<28}{describe('this project', ours, out)}")
        for rival, compute in rivals:
            if not torch.equal(compute().to(dtype).reshape(out.shape), out):
                print(f"{'':<28}{rival} gives other values")
                return 1
            seconds = best_seconds(partial(_computed, compute, dtype), options.device)
            slower += seconds < ours
            print(f"{'':<28}{describe(rival, seconds, out)}")
    if slower:
        print(f"another way is quicker in {slower} of these")
    return 1 if slower else 0


def describe(name: str, seconds: float, out: Tensor) -> str:
    rate = out.nbytes / seconds / 1e9
    return f"{name:<16}{seconds * 1e3:9.2f} ms {seconds * 1e9 / out.numel():7.2f} ns a value {rate:7.1f} GB/s"


def output(scheme: Scheme, rows: int, columns: int, dtype: torch.dtype, device: str) -> Tensor:
    """Memory for one weight, in the runtime's layout."""
    if isinstance(scheme, Mxfp4):
        return torch.empty(1, rows, columns, dtype=dtype, device=device).mT
    if scheme.input_major:
        return torch.empty(columns, rows, dtype=dtype, device=device).mT
    return torch.empty(rows, columns, dtype=dtype, device=device)


def _computed(compute: Callable[[], Tensor], dtype: torch.dtype) -> Tensor:
    return compute().to(dtype)


def best_seconds(compute: Callable[[], object], device: str) -> float:
    """Of several runs, after one that warms up."""
    best = float("inf")
    for repeat in range(REPEATS + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        compute()
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat:
            best = min(best, time.perf_counter() - begin)
    return best


def cases(rows: int, columns: int, device: str) -> Iterator[tuple[str, Scheme, Operands, list[Rival]]]:
    """Each format with random bytes, and the other ways to dequantize them."""
    words = torch.randint(-(2**31), 2**31 - 1, (rows, columns // 8), dtype=torch.int32, device=device)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=device)
    scale = torch.rand(rows, columns // GROUP, device=device).to(torch.bfloat16)

    def plain_words() -> Tensor:
        numbers = (((words[:, :, None] >> shifts) & 15) - 8).view(rows, -1, GROUP)
        return (numbers.to(scale.dtype) * scale[..., None]).view(rows, columns)

    operands = {"weight_packed": words, "weight_scale": scale}
    rivals: list[Rival] = [("plain torch", plain_words), *library_words(words, scale, (rows, columns))]
    yield "compressed-tensors int4", Words(4, GROUP, ordered=True), operands, rivals

    turned = words.reshape(columns, rows // 8)
    zeros = torch.randint(-(2**31), 2**31 - 1, (columns // GROUP, rows // 8), dtype=torch.int32, device=device)
    scales = torch.rand(columns // GROUP, rows, device=device).half()
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7], device=device)

    def plain_awq() -> Tensor:
        numbers, zero = (((t[:, :, None] >> shifts[order]) & 15).flatten(1) for t in (turned, zeros))
        centred = numbers - zero.repeat_interleave(GROUP, 0)
        return (centred.half() * scales.repeat_interleave(GROUP, 0)).mT

    operands = {"qweight": turned, "qzeros": zeros, "scales": scales}
    yield "AWQ", Awq(GROUP), operands, [("plain torch", plain_awq)]

    packed = words.reshape(columns // 8, rows)
    groups = torch.randint(0, columns // GROUP, (columns,), dtype=torch.int32, device=device)

    def plain_gptq(group: Tensor) -> Tensor:
        numbers = ((packed[:, None] >> shifts[None, :, None]) & 15).view(columns, rows)
        zero = ((((zeros + 0x11111111)[:, :, None]) >> shifts) & 15).flatten(1)
        return ((numbers - zero[group]).half() * scales[group]).mT

    operands = {"qweight": packed, "qzeros": zeros, "scales": scales}
    natural = torch.arange(columns, device=device) // GROUP
    rival = ("plain torch", lambda: plain_gptq(natural))
    yield "GPTQ", Gptq(4, GROUP, zeros_less_one=True, ordered=True), operands, [rival]
    rival = ("plain torch", lambda: plain_gptq(groups))
    scheme = Gptq(4, GROUP, zeros_less_one=True, ordered=False)
    yield "GPTQ, order of activations", scheme, {**operands, "g_idx": groups}, [rival]

    small = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=device)
    row_scale = torch.rand(rows, 1, device=device).to(torch.bfloat16)
    rival = ("plain torch", lambda: small.to(row_scale.dtype) * row_scale)
    yield "int8 rows", Scaled(1, columns), {"weight": small, "weight_scale": row_scale}, [rival]

    fp8 = small.view(torch.uint8).clamp(max=0x7E).view(torch.float8_e4m3fn)
    blocks = torch.rand(rows // GROUP, columns // GROUP, device=device)

    def plain_fp8() -> Tensor:
        values = fp8.to(torch.float32).view(rows // GROUP, GROUP, columns // GROUP, GROUP)
        return (values * blocks[:, None, :, None]).view(rows, columns)

    scheme8 = Scaled(GROUP, GROUP, in_float32=True)
    yield "FP8 blocks", scheme8, {"weight": fp8, "weight_scale": blocks}, [("plain torch", plain_fp8)]

    bytes_ = words.view(torch.uint8)
    exponents = torch.randint(110, 130, (1, rows, columns // 32), dtype=torch.uint8, device=device)
    mx = {"blocks": bytes_.view(1, rows, columns // 32, 16), "scales": exponents}
    yield "MXFP4", Mxfp4(), mx, library_mxfp4(mx["blocks"], exponents)

    float8 = fp8.view(-1)[: rows * columns // 16].view(rows, columns // 16)
    overall = torch.tensor([3.0], device=device)
    e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device=device)
    floats = torch.cat([e2m1, -e2m1])

    def plain_nvfp4() -> Tensor:
        codes = torch.stack([bytes_ & 15, bytes_ >> 4], -1).to(torch.int32)
        group_scales = float8.to(torch.float32) / overall
        return (floats[codes].view(rows, -1, 16) * group_scales[..., None]).view(rows, columns).to(torch.bfloat16)

    nv = {"weight": bytes_, "weight_scale": float8, "global_scale": overall}
    yield "NVFP4", Fp4(16, divides=True), nv, [("plain torch", plain_nvfp4)]

    table, absmax = torch.linspace(-1, 1, 16, device=device), torch.rand(rows * columns // 64, device=device)

    def plain_table() -> Tensor:
        flat = bytes_.flatten()
        codes = torch.stack([flat >> 4, flat & 15], 1).to(torch.int32)
        return (table[codes].view(-1, 64) * absmax[:, None]).view(rows, columns).to(torch.float16)

    code = {"weight": bytes_.reshape(-1, 1), "weight.quant_map": table, "weight.absmax": absmax}
    yield "codebook of 16", Codebook(64, "float16"), code, [("plain torch", plain_table)]
    yield from library_nf4(code, rows, columns)
    yield from ggml_blocks(rows, columns, device)


# Where the float16 scales of GGUF's blocks are, and how many, if not at the start.
SCALES_AT = {"Q2_K": (80, 2), "Q3_K": (108, 1), "Q6_K": (208, 1), "TQ1_0": (52, 1), "TQ2_0": (64, 1)}


def ggml_blocks(rows: int, columns: int, device: str) -> Iterator[tuple[str, Scheme, Operands, list[Rival]]]:
    """Every GGUF block type; transformers dequantizes most of them in plain torch, the gguf package in numpy."""
    for kind, (values, nbytes) in BLOCKS.items():
        stored = torch.randint(0, 256, (rows, columns // values, nbytes), dtype=torch.uint8, device=device)
        if kind == "IQ1_M":
            stored[..., 55] &= (
                0x3F  # its scale is spread over four words, and no number where all of its exponent is set
            )
        elif kind != "MXFP4":
            begin, count = SCALES_AT.get(kind, (0, 1 + kind.endswith(("_1", "4_K", "5_K"))))
            scales = torch.rand(rows, columns // values, count, device=device).half()
            stored[..., begin : begin + 2 * count] = scales.view(torch.uint8)
        blocks = stored.flatten(1)
        yield f"GGUF {kind}", Ggml(kind), {"blocks": blocks}, [*transformers_ggml(kind, blocks), *package(kind, blocks)]


def transformers_ggml(kind: str, blocks: Tensor) -> list[Rival]:
    number = next(number for number, name in TYPE_NAMES.items() if name == kind)
    try:
        from transformers.integrations.gguf import dequant
    except ImportError:
        return []
    return [("transformers", lambda: dequant.dequantize(blocks, number))] if number in dequant.GGML_BLOCK else []


def package(kind: str, blocks: Tensor) -> list[Rival]:
    if blocks.is_cuda:
        return []
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        return []
    content, number = blocks.numpy(), GGMLQuantizationType[kind]
    return [("library", lambda: torch.from_numpy(quants.dequantize(content, number)))]


def library_words(words: Tensor, scale: Tensor, shape: tuple[int, int]) -> list[Rival]:
    try:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    except ImportError:
        return []
    arguments = QuantizationArgs(num_bits=4, strategy="group", group_size=GROUP)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    state = {"weight_packed": words, "weight_scale": scale, "weight_shape": torch.tensor(shape)}
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    return [("library", lambda: compressor.decompress(state, scheme)["weight"])]


def library_mxfp4(blocks: Tensor, scales: Tensor) -> list[Rival]:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return [("library", lambda: convert_moe_packed_tensors(blocks, scales))]


def library_nf4(operands: Operands, rows: int, columns: int) -> Iterator[tuple[str, Scheme, Operands, list[Rival]]]:
    try:
        import bitsandbytes.functional as bnb
    except ImportError:
        return
    table = bnb.get_4bit_type("nf4", device=operands["weight"].device)
    state = bnb.QuantState(
        absmax=operands["weight.absmax"],
        shape=torch.Size((rows, columns)),
        code=table,
        blocksize=64,
        quant_type="nf4",
        dtype=torch.float16,
    )
    rival = ("library", lambda: bnb.dequantize_4bit(operands["weight"], state))
    yield "nf4", Codebook(64, "float16"), {**operands, "weight.quant_map": table}, [rival]


if __name__ == "__main__":
    sys.exit(main())
