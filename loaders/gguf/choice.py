"""Selects one of a repository's GGUF models: a pure function of names and sizes. No network, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from loaders.errors import ModelFilesError
from loaders.gguf.names import SUFFIX, is_kind, is_model_name, is_readable_kind, kind_of, model_stem, split_names
from loaders.sizes import format_size

DEFAULT_KIND = "Q4_K_M"  # llama.cpp's default
_LISTED = 16


@dataclass(frozen=True)
class GgufModel:
    """One model of a repository: the paths of its files in order, their bytes, and which of them are missing."""

    files: tuple[str, ...]
    nbytes: int
    missing: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        return model_stem(self.files[0])

    @property
    def kind(self) -> str:
        return kind_of(self.stem) or ""

    @property
    def can_run(self) -> bool:
        """Whether we can run it, as far as its name tells."""
        return not self.missing and is_readable_kind(self.kind)

    def is_called(self, text: str) -> bool:
        """Whether `text` is one of its files, with or without the directory, or the end of its name."""
        if text.lower().endswith(SUFFIX):
            return any(text in (file, PurePosixPath(file).name) for file in self.files)
        tag, stem = text.lower(), self.stem.lower()
        before = "-._" if is_kind(tag) else "-."
        return stem == tag or (stem.endswith(tag) and stem[-len(tag) - 1] in before)


def gguf_models(sizes: Mapping[str, int]) -> list[GgufModel]:
    """The models among files of known sizes, the smallest first."""
    models = []
    for files in {split_names(name) for name in sizes if is_model_name(name)}:
        missing = tuple(file for file in files if file not in sizes)
        models.append(GgufModel(files, sum(sizes.get(file, 0) for file in files), missing))
    return sorted(models, key=lambda model: (model.nbytes, model.files))


def choose_gguf(models: Sequence[GgufModel], wanted: str | None, typed: str, holder: str = "it") -> GgufModel:
    """The model that `wanted` (a tag such as "q4_k_m", or a file) names; by default the only one, or DEFAULT_KIND.

    typed: what comes before ":Q4_K_M" on a command line, for the list of choices. holder: what contains the models,
    for the same list. Raises ModelFilesError if no model or several match, or if files of it are missing.
    """
    found = [*models] if wanted is None else _meant(models, wanted)
    if wanted is None and len(found) > 1:
        found = _meant(models, DEFAULT_KIND)
    if len(found) != 1:
        shown = found if wanted and found else models
        raise ModelFilesError(
            f"{holder} holds {_fault(len(models), len(found), wanted)}{_listed(shown, models, typed)}"
        )
    if absent := found[0].missing:
        raise ModelFilesError(
            f"it is incomplete: {len(absent)} of the {len(found[0].files)} files of {found[0].stem} are missing, the "
            f"first is {absent[0]}."
        )
    return found[0]


def _fault(count: int, meant: int, wanted: str | None) -> str:
    if not count:
        return f"no model in GGUF files. Leave out :{wanted}, or take another repository."
    models = f"{count} model{'s' * (count > 1)} in GGUF files"
    if wanted is None:
        return f"{models}. "
    return f"{models}, and {f'{wanted} means {meant} of them' if meant else f'{wanted} is none of them'}. "


def _meant(models: Sequence[GgufModel], text: str) -> list[GgufModel]:
    """The models that match, or only the exact match: of Q8_0 and UD-Q8_0, "Q8_0" means the former."""
    called = [model for model in models if model.is_called(text)]
    exact = [m for m in called if text.lower() in (m.kind.lower(), m.stem.lower()) or text in m.files]
    return exact if len(exact) == 1 else called


def _listed(shown: Sequence[GgufModel], models: Sequence[GgufModel], typed: str) -> str:
    """The models to choose from, each as it is typed; those that cannot be run are only counted."""
    can_run = [model for model in shown if model.can_run]
    lines = [(f"{typed}:{_shortest(model, models)}", format_size(model.nbytes)) for model in can_run[:_LISTED]]
    width = max((len(text) for text, _ in lines), default=0)
    listed = [f"  {text:<{width}}   {size}" for text, size in lines]
    if more := len(can_run) - len(lines):
        listed.append(f"  and {more} more")
    if others := len(shown) - len(can_run):
        listed.append(f"  ({others} more cannot be run: stored as NVFP4, Q4_0_4_8 or the like, or incomplete)")
    return "\n".join(["Name one of them:", *listed]) if listed else ""


def _shortest(model: GgufModel, models: Sequence[GgufModel]) -> str:
    """The shortest text that names this model and no other."""
    texts = (model.kind, model.stem)
    return next((text for text in texts if text and _meant(models, text) == [model]), model.files[0])
