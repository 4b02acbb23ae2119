"""What a process holds while it loads models: run by `test_loading_memory` in one of its own.

Takes JSON: a list of {"small", "large", "io"}, with "spoil" or "quantize" where that is meant. Of each, the small model
warms up libraries and code, then the system counts anew while the large one is loaded; prints a JSON object a line.

Counted is the peak of the resident set above what there was before. Weights are read into memory of the process's own,
none are mapped, so the page cache does not count.
"""

import gc
import itertools
import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from loaders.checkpoint.spec import ModelSpec
from loaders.io.byte_ranges import ByteRanges
from loaders.io.reader import WeightReader
from offload_runtime import OffloadRuntime
from offload_runtime.errors import DoesNotFitError
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import prepare

CONTEXT = 64
KEPT: list[Any] = []


def read_files_whole() -> Any:
    """Files are read whole before they are taken apart."""
    init = WeightReader.__init__

    def reading(self: WeightReader, files: Iterable[Path], *arguments: Any, **options: Any) -> None:
        paths = list(files)
        KEPT.extend(path.read_bytes() for path in paths)
        init(self, paths, *arguments, **options)

    return patch.object(WeightReader, "__init__", reading)


def keep_copies() -> Any:
    """A copy is kept of every third layer that is read."""
    fill, count = WeightReader.fill, itertools.count()

    def filling(self: WeightReader, ranges: ByteRanges, buffer: torch.Tensor) -> None:
        fill(self, ranges, buffer)
        if next(count) % 3 == 0:
            KEPT.append(buffer.clone())

    return patch.object(WeightReader, "fill", filling)


SPOILERS = {None: nullcontext, "reads files whole": read_files_whole, "keeps copies": keep_copies}


def options_for(case: dict[str, Any], model: Path) -> dict[str, Any]:
    quantize = case.get("quantize")
    return {
        "device": "cpu",
        "dtype": "bfloat16",
        "io": case["io"],
        "tree": "none",
        "context_length": CONTEXT,
        "quantize": quantize,
        "quantized_directory": Path(f"{model}-packed") if quantize else None,
    }


def cap_for(model: Path, options: dict[str, Any]) -> tuple[int, ModelSpec]:
    """Memory for every layer as it is stored, and none to keep a layer decoded in."""
    try:
        preparation = prepare(Options(model, device_memory=1, **options))
    except DoesNotFitError as error:
        preparation = prepare(Options(model, device_memory=error.needed, **options))
    plan, spec = preparation.plan, preparation.target.spec
    return plan.device_bytes - plan.slots * plan.slot_bytes + sum(layer.nbytes for layer in spec.layers), spec


def memory() -> dict[str, int]:
    """The system's own count in bytes: resident now, and at the most since it was reset."""
    with Path("/proc/self/status").open() as status:
        lines = (line.split() for line in status)
        return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[0] in ("VmHWM:", "VmRSS:")}


def load(model: Path, options: dict[str, Any]) -> dict[str, Any]:
    cap, spec = cap_for(model, options)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory()["VmRSS"]
    with OffloadRuntime.from_pretrained(model, "none", device_memory=cap, **options) as runtime:
        held, tiers = memory()["VmHWM"] - before, sorted({tier.value for tier in runtime.plan.tiers})
    KEPT.clear()
    files = [model] if model.is_file() else list((options["quantized_directory"] or model).glob("*.safetensors"))
    return {
        "held": held,
        "tiers": tiers,
        "packed": sum(file.stat().st_size for file in files),
        "unit": max(layer.nbytes for layer in spec.layers),
        "unit_in_16_bits": max(layer.weight_bytes for layer in spec.layers),
    }


def main(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        small, large = Path(case["small"]), Path(case["large"])
        load(small, options_for(case, small))
        with SPOILERS[case.get("spoil")]():
            print(json.dumps(load(large, options_for(case, large))), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
