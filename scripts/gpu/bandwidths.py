"""(a) How fast bytes come to the device, and from disk to host memory."""

from collections.abc import Iterator

import torch
from toolkit.link import copy_bandwidth

from gpu.bench import Bench, Budget
from gpu.report import Record, missing
from loaders.io.direct import measure_read_bandwidth

SECTION = "a"


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    device = torch.device(bench.device)
    for kind in ("pinned", "pageable"):
        rate = copy_bandwidth(device, pinned=kind == "pinned")
        path = f"host to device, {kind}"
        why = f"no {kind} memory could be copied from" if bench.is_cuda else "there is no GPU"
        yield _bandwidth(path, rate) if rate else missing(SECTION, path, "skipped", why)
    measured = measure_read_bandwidth(sorted(bench.target().glob("*.safetensors")), cached=False)
    how = "past the page cache" if measured.direct else "through the page cache, which this filesystem cannot avoid"
    yield _bandwidth(f"disk to host, {how}", measured.bytes_per_second)


def _bandwidth(path: str, rate: float) -> Record:
    return Record("Bandwidth", SECTION, {"path": path, "bytes_per_second": rate})
