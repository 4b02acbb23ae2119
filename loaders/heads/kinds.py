"""Tells a draft head by its config.json, and refuses by name the kinds that are not run. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from loaders.errors import UnsupportedModelError
from loaders.message_text import quoted

WHAT_RUNS = "EAGLE-3, DFlash and DFlash 2 heads can draft, and so can any small model with the target's tokens"


class Kind(Enum):
    """The kinds of heads that draft here."""

    EAGLE3 = "EAGLE-3"
    DFLASH = "DFlash"
    DFLASH2 = "DFlash 2"


_SPECULATORS = {"eagle3": Kind.EAGLE3, "dflash": Kind.DFLASH, "dflash2": Kind.DFLASH2}
_CLASSES = {
    "LlamaForCausalLMEagle3": Kind.EAGLE3, "Eagle3LlamaForCausalLM": Kind.EAGLE3, "Eagle3Speculator": Kind.EAGLE3,
    "Eagle3DraftModel": Kind.EAGLE3,
    "DFlashDraftModel": Kind.DFLASH, "DFlashSpeculator": Kind.DFLASH, "DFlash2DraftModel": Kind.DFLASH2,
}  # fmt: skip
_OTHERS = {  # parts of class names and of speculators' names of algorithms, and what is meant by them
    "medusa": "Medusa", "hydra": "Hydra", "hass": "HASS", "mlpspeculator": "MLP speculator", "mlp": "MLP speculator",
    "peagle": "P-EAGLE", "dspark": "DSpark", "domino": "Domino", "xpress": "Xpress", "pard": "PARD", "mtp": "MTP",
    "eagle": "EAGLE-1 or EAGLE-2", "independent": "independent draft",
}  # fmt: skip


def head_kind(file: Path, config: Mapping[str, Any]) -> Kind | None:
    """The kind of head that a `config.json` describes; None for a model of its own.

    Raises UnsupportedModelError for heads of other kinds, naming them.
    """
    if "speculators_model_type" in config or "speculators_config" in config:
        stated = config.get("speculators_model_type")
        if stated in _SPECULATORS:
            return _SPECULATORS[stated]
        raise _refused(file, _other(str(stated)) or quoted(stated))
    if "medusa_num_heads" in config:
        raise _refused(file, "Medusa")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if name in _CLASSES:
        return _CLASSES[name]
    if type(config.get("draft_vocab_size")) is int and name == "LlamaForCausalLM":
        return Kind.EAGLE3  # as the authors of EAGLE-3 publish it
    if "eagle3" in name.lower():
        raise _refused(file, f"EAGLE-3 with layers of {quoted(name)}")
    other = _other(name) if not name.endswith("ForCausalLM") or "eagle" in name.lower() else None
    if other:
        raise _refused(file, other)
    return None


def refuse_other_heads(directory: Path, names: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError where only the tensors, by name, tell that a draft is a head of another kind.

    EAGLE-1 and EAGLE-2 have the config of a small Llama, beside a layer that joins embedding and hidden state.
    """
    if "fc.weight" in names and not any(name.startswith("model.") for name in names):
        raise _refused(directory, "EAGLE-1 or EAGLE-2 (HASS has the same tensors)")
    if any(name.startswith(("medusa_head.", "0.0.linear.")) for name in names):
        raise _refused(directory, "Medusa")


def _other(name: str) -> str | None:
    plain = name.lower().replace("_", "").replace("-", "")
    return next((meant for part, meant in _OTHERS.items() if part in plain), None)


def _refused(file: Path, kind: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{file}: this is a draft head of the kind {kind}, which is not supported. {WHAT_RUNS}.\n"
        "  --draft auto   takes the best draft that is here"
    )
