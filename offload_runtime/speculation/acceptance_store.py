"""Stores the measured acceptance of a pair of models: a JSON object with one table for each sampling setting.

    format              FORMAT
    target, draft       names of the models, for people
    target_fingerprint  of the target it was measured with (see `checkpoint_fingerprint`); null: any
    bin_edges, scales   those of the tables, `sequoia_tree.acceptance.acceptance.BIN_EDGES` and `SCALES`
    settings            a list of objects: the fields of `Setting`; "agreement" and "one_minus_tv" (see `Measurement`,
                        null where not measured); "table", as `Acceptance.as_dict` gives it
    temperature, positional, one_minus_tv, positions
                        an overview for people, not read back: acceptance by child number, of the setting nearest to
                        temperature 0.6; 1 - total variation by temperature; the number of contexts in all

A file without "settings" is read, too, if it has "positional" (acceptances by child number) and perhaps the
"temperature" that they are for. The file lies beside the draft's weights as `acceptance.json`, or in the user's cache
under the fingerprints of both models; that of a copy of the target by its bits. Imports no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from loaders.cache_directory import cache_directory, write_whole
from loaders.checkpoint.model_source import model_source
from loaders.json_files import read_object
from loaders.unchanged import kept_while_unchanged
from offload_runtime.errors import ModelFilesError
from sequoia_tree.acceptance.acceptance import BIN_EDGES, SCALES, Acceptance

ACCEPTANCE_FILE = "acceptance.json"
FORMAT = "offload_runtime acceptance, version 1"
MAX_BYTES = 10_000_000
_DIGITS = 6
_SAMPLED_TENSORS, _SAMPLED_BYTES = 16, 1024  # of the weights, in the fingerprint
_LARGEST = 1e9  # of a sampling value; top_k counts tokens
_STATED_CONTEXTS = 1000.0  # contexts that a bare list of acceptances counts for

Drafter = Path | int  # the draft's directory or file, or the bits of a copy of the target, which has no files


@dataclass(frozen=True)
class Setting:
    """The fields of a `sequoia_tree.verification.sampling.Sampling` that acceptance tables are kept by.

    At temperature 0, top_k, top_p and min_p have no effect and are set to off. Raises ValueError for invalid values.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) not in (int, float) or not 0 <= value <= _LARGEST:
                raise ValueError(f"{name} must be a number from 0 to {_LARGEST:,.0f}, got {value!r:.80}")
        if self.temperature == 0:
            for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
                object.__setattr__(self, name, off)

    @classmethod
    def of(cls, sampling: object) -> "Setting":
        """The fields of the same names; others do not distinguish settings."""
        return cls(**{item.name: getattr(sampling, item.name) for item in fields(cls)})

    def distance(self, other: "Setting") -> tuple[float, ...]:
        """The distance of two settings, compared by temperature, then truncation, then penalty."""
        return tuple(abs(ours - theirs) for ours, theirs in zip(self._coordinates(), other._coordinates()))

    def _coordinates(self) -> tuple[float, ...]:
        kept_by_count = 1 / self.top_k if self.top_k else 0.0  # so that off is close to a large top_k
        return self.temperature, self.top_p, self.min_p, kept_by_count, self.repetition_penalty


@dataclass(frozen=True)
class Measurement:
    """The measured acceptance at one setting.

    agreement: share of the contexts where both models have the same argmax. one_minus_tv: mean of 1 - total variation
    between their distributions, the chance that a single child is accepted. None where not measured.
    """

    acceptance: Acceptance
    agreement: float | None = None
    one_minus_tv: float | None = None

    def __post_init__(self) -> None:
        for name in ("agreement", "one_minus_tv"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
                raise ValueError(f"{name} must be a number from 0 to 1, or null, got {value!r:.80}")


@dataclass(frozen=True)
class PairAcceptance:
    """All measurements of one draft for one target, by setting."""

    target: str
    draft: str
    measurements: Mapping[Setting, Measurement]

    def nearest(self, setting: Setting) -> tuple[Acceptance, bool] | None:
        """The table measured nearest to `setting`, and whether it is for exactly this setting; None if there is none.

        Greedy decoding and sampling never stand in for one another.
        """
        alike = [other for other in self.measurements if (other.temperature == 0) == (setting.temperature == 0)]
        if not alike:
            return None
        best = min(alike, key=setting.distance)
        return self.measurements[best].acceptance, best == setting

    def updated(self, newer: "PairAcceptance") -> "PairAcceptance":
        """A copy with the measurements of `newer`, which replace those of the same setting."""
        return replace(newer, measurements={**self.measurements, **newer.measurements})


@kept_while_unchanged(lambda model: (model_source(model).config_file, *model_source(model).checkpoint().files))
def checkpoint_fingerprint(model: Path) -> str:
    """A digest of a checkpoint's config.json, of its tensors' names, dtypes and shapes, and of a few of their bytes.

    The bytes tell fine-tunes of one model apart; reading all of them would take as long as loading. Raises
    ModelFilesError.
    """
    source = model_source(model)
    path = source.config_file
    try:
        digest = hashlib.sha256(source.config_content())
        tensors = sorted(source.checkpoint().tensors.items())
        for name, tensor in tensors:
            digest.update(f"\n{name} {tensor.dtype} {tensor.shape}".encode())
        for _, tensor in tensors[:: -(-len(tensors) // _SAMPLED_TENSORS)]:
            path = tensor.file
            with path.open("rb") as file:
                file.seek(tensor.offset + tensor.nbytes // 2)
                digest.update(file.read(min(_SAMPLED_BYTES, tensor.nbytes - tensor.nbytes // 2)))
    except OSError as error:
        raise ModelFilesError(f"{path}: cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


def cache_file(target: Path, draft: Drafter) -> Path | None:
    """The file in the user's cache (see `cache_directory`) for exactly this pair; None where the user has no cache."""
    directory = cache_directory()
    if directory is None:
        return None
    ours = checkpoint_fingerprint(target)
    theirs = f"{draft} bits" if isinstance(draft, int) else checkpoint_fingerprint(draft)
    pair = hashlib.sha256(f"{ours} {theirs}".encode()).hexdigest()
    return directory / "acceptance" / f"{pair}.json"


def load(target: Path, draft: Drafter) -> PairAcceptance | None:
    """What is known of the pair: the user's cache, then, for other settings, the file beside the draft's weights.

    That file counts if it was measured with this target or names none. None if there is nothing, or if one of the
    models is not downloaded yet. Raises ModelFilesError if the file is damaged. A damaged file in the cache is ignored,
    and `save` overwrites it.
    """
    beside, files = (None, (target,)) if isinstance(draft, int) else (_beside(draft), (target, draft))
    if any(model_source(model).awaits_download() for model in files):
        return None
    cached = _cached(cache_file(target, draft))
    if beside is None or beside[1] not in (None, checkpoint_fingerprint(target)):
        return cached
    return beside[0] if cached is None else beside[0].updated(cached)


def save(pair: PairAcceptance, target: Path, draft: Drafter) -> bool:
    """Add `pair` to what the user's cache holds of other settings; False if that is not possible."""
    path = cache_file(target, draft)
    if path is None:
        return False
    cached = _cached(path)
    try:
        write(path, pair if cached is None else cached.updated(pair), target)
    except OSError:
        return False
    return True


def write(path: Path, pair: PairAcceptance, target: Path) -> None:
    """Write `pair`, measured with the checkpoint `target`, atomically; readers see the old file or the new one.

    Raises OSError if it cannot be written.
    """
    record = {
        "format": FORMAT,
        "target": pair.target,
        "draft": pair.draft,
        "target_fingerprint": checkpoint_fingerprint(target),
        **_overview(pair),
        "bin_edges": BIN_EDGES,
        "scales": SCALES,
        "settings": [_entry(setting, measurement) for setting, measurement in pair.measurements.items()],
    }
    lines = (f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in record.items())
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _cached(path: Path | None) -> PairAcceptance | None:
    if path is None:
        return None
    try:
        return _parse(read_object(path, MAX_BYTES))[0]
    except (OSError, ValueError):
        return None


def _beside(draft: Path) -> tuple[PairAcceptance, str | None] | None:
    path = draft / ACCEPTANCE_FILE
    if not path.exists():
        return None
    try:
        return _parse(read_object(path, MAX_BYTES))
    except OSError as error:
        raise ModelFilesError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ModelFilesError(f"{path}: {error}. Correct or remove the file.") from error


def _parse(record: dict[str, Any]) -> tuple[PairAcceptance, str | None]:
    """The pair in a record, and the fingerprint of its target if it names one. Raises ValueError."""
    target, draft = (str(record.get(name, "?")) for name in ("target", "draft"))
    if "settings" not in record:
        return PairAcceptance(target, draft, _stated(record)), None
    if record.get("format") != FORMAT:
        raise ValueError(f'"format" is {record.get("format")!r:.80}, where this version reads {FORMAT!r}')
    for name, value in (("bin_edges", BIN_EDGES), ("scales", SCALES)):
        if record.get(name) != list(value):
            raise ValueError(f'"{name}" is not {list(value)}, so its tables mean something else here')
    measured_with, entries = record.get("target_fingerprint"), record["settings"]
    if not (measured_with is None or isinstance(measured_with, str)) or not isinstance(entries, list) or not entries:
        raise ValueError('"target_fingerprint" must be text or null, and "settings" a list that is not empty')
    return PairAcceptance(target, draft, dict(map(_measured, entries))), measured_with


def _measured(entry: Any) -> tuple[Setting, Measurement]:
    known = [field.name for field in fields(Setting)]
    if not isinstance(entry, dict) or not {*known, "table"} <= entry.keys():
        raise ValueError(f'an entry of "settings" lacks one of {", ".join(known)}, table')
    setting = Setting(**{name: entry[name] for name in known})
    try:
        table = Acceptance.from_dict(entry["table"])
        return setting, Measurement(table, entry.get("agreement"), entry.get("one_minus_tv"))
    except ValueError as error:
        raise ValueError(f"its table for temperature {setting.temperature} is wrong: {error}") from error


def _stated(record: dict[str, Any]) -> dict[Setting, Measurement]:
    """Measurements from a bare list of acceptances; it is used for every setting, greedy decoding included."""
    try:
        table = Acceptance.from_positional(record.get("positional"), _STATED_CONTEXTS)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f'"positional" is wrong: {error}') from error
    settings = (Setting(temperature=0.0), Setting(temperature=record.get("temperature", 1.0)))
    return {setting: Measurement(table) for setting in settings}


def _entry(setting: Setting, measurement: Measurement) -> dict[str, Any]:
    table = {name: _short(values) for name, values in measurement.acceptance.as_dict().items()}
    shares = {name: _short(getattr(measurement, name)) for name in ("agreement", "one_minus_tv")}
    return {**asdict(setting), **shares, "table": table}


def _overview(pair: PairAcceptance) -> dict[str, Any]:
    best = min(pair.measurements, key=Setting(temperature=0.6).distance)
    whole = {s: m.one_minus_tv for s, m in pair.measurements.items() if s == Setting(temperature=s.temperature)}
    return {
        "temperature": best.temperature,
        "positional": _short(pair.measurements[best].acceptance.positional().tolist()),
        "one_minus_tv": {str(s.temperature): _short(value) for s, value in whole.items() if value is not None},
        "positions": int(sum(measurement.acceptance.positions for measurement in pair.measurements.values())),
    }


def _short(values: Any) -> Any:
    """Numbers rounded for JSON; whole ones without a fraction."""
    if isinstance(values, list):
        return [_short(value) for value in values]
    if values is None:
        return None
    rounded = round(values, _DIGITS)
    return int(rounded) if float(rounded).is_integer() else rounded
