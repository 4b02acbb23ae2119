"""(a) How fast bytes come to the device, and from disk to host memory."""

from collections.abc import Iterator

import torch
from toolkit.link import copy_bandwidth

from gpu.bench import Bench, Budget
from gpu.records import Bandwidth, Missing, Record
from loaders.io.direct import measure_read_bandwidth

SECTION = "a"


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    device = torch.device(bench.device)
    for kind in ("pinned", "pageable"):
        rate = copy_bandwidth(device, pinned=kind == "pinned")
        path = f"host to device, {kind}"
        why = f"no {kind} memory could be copied from" if bench.is_cuda else "there is no GPU"
        yield Bandwidth(SECTION, path, rate) if rate else Missing(SECTION, path, "skipped", why)
    directory = bench.random(bench.scale.target_name, bench.scale.target, bench.scale.distinct_layers)
    measured = measure_read_bandwidth(sorted(directory.glob("*.safetensors")), cached=False)
    how = "past the page cache" if measured.direct else "through the page cache, which this filesystem cannot avoid"
    yield Bandwidth(SECTION, f"disk to host, {how}", measured.bytes_per_second)
