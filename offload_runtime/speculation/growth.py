"""Runs the drafting of one text, or of several texts whose passes of the draft are shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offload_runtime.errors import OffloadError
from offload_runtime.model.pass_part import PassPart
from offload_runtime.speculation.draft import Growth, Result

Run = Callable[[Sequence[PassPart]], list[Tensor]]
"""`Draft.run`."""


def or_error(growth: Growth[Result]) -> Growth[Result | OffloadError]:
    """The result, or the error that drafting ends with, as a grammar's rule may: it concerns one text alone."""
    try:
        return (yield from growth)
    except OffloadError as error:
        return error


@torch.inference_mode()
def run_growths(growths: Sequence[Growth[Result]], run: Run | None) -> list[Result]:
    """The result of each. All that wait for a pass share the next one; without a draft, none asks for one."""
    results: dict[int, Result] = {}
    parts: dict[int, PassPart] = {}

    def resume(number: int, logits: Tensor | None) -> None:
        try:
            parts[number] = growths[number].send(logits)  # type: ignore[arg-type]  # None begins a generator
        except StopIteration as end:
            results[number] = end.value

    for number in range(len(growths)):
        resume(number, None)
    while parts:
        assert run is not None
        waiting, asked = list(parts), list(parts.values())
        parts.clear()
        for number, logits in zip(waiting, run(asked)):
            resume(number, logits)
    return [results[number] for number in range(len(growths))]
