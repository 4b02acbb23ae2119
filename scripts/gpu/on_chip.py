"""(e) Trees where nothing streams: the demonstration pair widened to Llama2-7B and a 68M draft, on the device whole."""

from collections.abc import Iterator
from typing import Any

from gpu.bench import Bench, Budget
from gpu.decoding import decode, decoding, prompts
from gpu.report import Record, missing
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET

SECTION = "e"
TEMPERATURES = (0.0, 0.6)


def run(bench: Bench, budget: Budget) -> Iterator[Record]:
    scale = bench.scale
    what = f"{scale.chip.shape} with {scale.chip_draft.shape}, all on the device"
    target, draft = bench.widened(DEMO_TARGET, scale.chip), bench.widened(DEMO_DRAFT, scale.chip_draft)
    options: dict[str, Any] = {"dtype": bench.compute_dtype, "context_length": 512}
    modes = {
        "plain": bench.prepare(target, tree="none", **options),
        "tree": bench.prepare(target, draft, **options),
    }
    if any(preparation.plan.slots for preparation in modes.values()):
        yield missing(SECTION, what, "skipped", f"it does not fit {modes['tree'].plan.device_name} whole")
        return
    small = decode(bench, bench.prepare(DEMO_TARGET, tree="none", dtype="float32"), *_asked(bench, 0.0, budget))
    for number, temperature in enumerate(TEMPERATURES):
        budget.need()
        reference = ("the small model in float32", small) if temperature == 0 else None
        plain: Record | None = None
        for mode, preparation in modes.items():
            share = budget.until(1 / (2 * (len(TEMPERATURES) - number) - (mode == "tree")))
            replies = decode(bench, preparation, *_asked(bench, temperature, share))
            about = {"what": what, "mode": mode, "dtype": bench.compute_dtype, "temperature": temperature}
            record = decoding(SECTION, about, replies, reference, plain)
            plain = plain or record
            yield record


def _asked(bench: Bench, temperature: float, budget: Budget) -> tuple[Any, ...]:
    """The last arguments of `decode`."""
    return prompts(bench), bench.scale.tree_tokens, temperature, budget, True
