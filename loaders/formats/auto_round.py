"""AutoRound: packed like GPTQ or AWQ, according to `packing_format`, or `backend` in older files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loaders.formats.awq import AwqFormat
from loaders.formats.gptq import GptqFormat
from loaders.formats.weights import Settings

WHOLE_BITS = 16  # settings of modules that are not quantized


def read(settings: Settings) -> AwqFormat | GptqFormat:
    """The format of the weights. Raises UnsupportedModelError for others, and for modules with other settings."""
    settings.choice("data_type", ("int",), "int")
    packing = str(settings.values.get("packing_format") or settings.values.get("backend") or "")
    # its other settings are for tuning: only those shared with GPTQ and AWQ say how weights are stored
    shared = {name: settings.values.get(name) for name in ("bits", "group_size")}
    _check_modules(settings, shared)
    if "awq" in packing:
        return AwqFormat.read(replace(settings, values=shared))
    if "gptq" in packing:
        return GptqFormat.read(replace(settings, values=shared))
    raise settings.unsupported(f"packing_format is {packing!r:.80}; auto_round:auto_gptq and auto_awq can be run")


def _check_modules(settings: Settings, shared: Mapping[str, Any]) -> None:
    extra = settings.part("extra_config")
    for module in extra.values:
        own = extra.part(module).values
        bits = own.get("bits", shared["bits"])
        if type(bits) is int and bits >= WHOLE_BITS:
            continue
        changed = [name for name in ("bits", "group_size") if own.get(name, shared[name]) != shared[name]]
        if changed:
            raise settings.unsupported(
                f"extra_config gives {module:.80} a {changed[0]} of its own, which cannot be run"
            )
