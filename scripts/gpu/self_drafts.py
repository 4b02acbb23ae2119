"""(h) The target as its own draft, and the link that packs without loss: dequantizing both, and the whole way.

The demonstration target widened to Llama2-7B streams, drafted by nothing and by its copies, over the plain and the
packed link. Whatever drafts and however weights cross the link, the text must be the plain one.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from gpu.bench import Bench, Budget
from gpu.decoding import decode, decoding, prompts
from gpu.report import Record, missing
from gpu.unpacking import least_seconds
from loaders.dequantize.lossless.plain import approximate
from loaders.dequantize.plain import decode as decode_plain
from loaders.dequantize.stacks import approximate_code, fused_kernels
from loaders.formats.schemes import Lossless
from loaders.lossless.bins import KINDS, RUNS, Bins
from loaders.lossless.encode import encode
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.loading.quantize_weights import with_packed_files
from offload_runtime.options.run_options import DEMO_TARGET, PACKED_LINK, PLAIN_LINK
from offload_runtime.planning.planning import Preparation

SECTION = "h"
# The draft and the link of each run, the most telling first.
MODES = (
    (None, PLAIN_LINK),
    ("self:4", PLAIN_LINK),
    ("self:4", PACKED_LINK),
    (None, PACKED_LINK),
    ("self:5", PLAIN_LINK),
    ("self:3", PLAIN_LINK),
)


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    yield from _dequantizing(bench, budget)
    yield from _decoding(bench, budget)


def _dequantizing(bench: Bench, budget: Budget) -> Iterator[Record]:
    """Of the codes alone, as drafting does, and with all bits, as passes over the packed link do."""
    rows, columns = bench.scale.packed_weight
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    fused = fused_kernels() if bench.is_cuda else None
    for bits in RUNS:
        budget.need(1.0 if bench.is_cuda else 0.0)
        bins = Bins(KINDS["BF16"], bits)
        stored = {name: tensor.to(bench.device) for name, tensor in vars(encode(weights, bins)).items()}
        out = torch.empty(rows, columns, dtype=torch.bfloat16, device=bench.device)
        scheme = Lossless(bits, "BF16")
        scheme, code = Lossless(bits, "BF16"), (stored["code"], stored["top"].flatten(), out.view(-1))
        copied = (
            f"copy in {bits} bits",
            fused and partial(approximate_code, bins, *code),
            partial(approximate, bins, *code),
        )
        kernel, plain = (way and partial(way, scheme, stored, out) for way in (fused, decode_plain))
        for form, fast, slow in (copied, (f"without loss, {bits}-bit codes", kernel, plain)):
            took = {name: way and least_seconds(bench, way) for name, way in zip(("fused", "plain"), (fast, slow))}
            about = {"form": form, "rows": rows, "columns": columns, "nbytes": out.nbytes}
            yield Record("Unpacking", SECTION, {**about, **{f"{name}_seconds": value for name, value in took.items()}})


def _decoding(bench: Bench, budget: Budget) -> Iterator[Record]:
    target = bench.widened(DEMO_TARGET, bench.scale.own)
    what = f"the demonstration as {bench.scale.own.shape}, streamed"
    reference = plain = None
    for number, (draft, link) in enumerate(MODES):
        budget.need()
        mode = f"{draft or 'plain'}, {link} link"
        try:
            preparation = _prepared(bench, target, draft, link)
        except UnsupportedModelError as error:
            yield missing(SECTION, f"{what}: {mode}", "skipped", str(error))
            continue
        tokens = bench.scale.tree_tokens if draft else bench.scale.plain_tokens
        share = budget.until(1 / (len(MODES) - number))
        replies = decode(bench, preparation, prompts(bench)[:1], tokens, 0.0, share, warm_up=False)
        about = {"what": what, "mode": mode, "dtype": preparation.target.spec.dtype, "temperature": 0.0}
        record = decoding(SECTION, about, replies, reference, plain)
        reference, plain = reference or (mode, replies), plain or record
        yield record


def _prepared(bench: Bench, target: Path, draft: str | None, link: str) -> Preparation:
    options = {"device_memory": bench.scale.own_cap, "context_length": 512, "link": link, "dtype": bench.compute_dtype}
    if draft is None:
        options["tree"] = "none"
    return with_packed_files(bench.prepare(target, draft, **options))
