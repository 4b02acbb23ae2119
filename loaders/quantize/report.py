"""The report of a quantization, JSON beside the quantized files: the source files and the errors. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loaders.errors import ModelFilesError
from loaders.json_files import read_json
from loaders.quantize.recipe import CLIPPINGS, GROUP_SIZES, Quantization
from loaders.safetensors_files.headers import Checkpoint

REPORT_FILE = "quantization_report.json"


@dataclass(frozen=True)
class KindErrors:
    """Relative errors of the matrices of one kind: ‖dequantized - original‖ / ‖original‖."""

    matrices: int
    mean: float
    worst: float


@dataclass(frozen=True)
class QuantizationReport:
    """`kinds` is keyed by a matrix's name in its layer, "mlp.down_proj"; `worst_in` names one: "model.layers.3.…".

    Where weights were packed without loss, there are no kinds, and no errors.
    """

    source: str
    fingerprint: str
    label: str  # "int8, groups of 128"
    mean: float
    worst: float
    worst_in: str
    kinds: Mapping[str, KindErrors]

    def __str__(self) -> str:
        if not self.kinds:
            return self.label
        return (
            f"{self.label}: error {self.mean:.2%} of the weights' norm on average, "
            f"worst {self.worst:.2%} in {self.worst_in}"
        )

    @classmethod
    def of(cls, quantization: Quantization, fingerprint: str, errors: Mapping[str, float]) -> QuantizationReport:
        """`errors` by name of the matrix's module."""
        by_kind: dict[str, list[float]] = {}
        for matrix in quantization.matrices:
            by_kind.setdefault(matrix.kind, []).append(errors[matrix.module])
        worst_in = max(errors, key=errors.__getitem__)
        return cls(
            str(quantization.source.directory),
            fingerprint,
            quantization.label,
            sum(errors.values()) / len(errors),
            errors[worst_in],
            worst_in,
            {kind: KindErrors(len(values), sum(values) / len(values), max(values)) for kind, values in by_kind.items()},
        )

    def write(self, directory: Path) -> None:
        (directory / REPORT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_report(directory: Path) -> QuantizationReport | None:
    """The report beside quantized files; None if there is none. Raises ModelFilesError if it is damaged."""
    file = directory / REPORT_FILE
    if not file.is_file():
        return None
    values = read_json(file)
    try:
        source, mark, label, worst_in = (str(values[name]) for name in ("source", "fingerprint", "label", "worst_in"))
        mean, worst = float(values["mean"]), float(values["worst"])
        kinds = {str(kind): _kind_errors(value) for kind, value in values["kinds"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFilesError(
            f"{file}: it does not hold what was written there ({error!r:.80}). Remove {directory} to pack the weights "
            "again."
        ) from error
    return QuantizationReport(source, mark, label, mean, worst, worst_in, kinds)


def _kind_errors(value: Mapping[str, Any]) -> KindErrors:
    return KindErrors(int(value["matrices"]), float(value["mean"]), float(value["worst"]))


def quantization_fingerprint(quantization: Quantization) -> str:
    """A hash of the source files and of how they are quantized; it changes when a file is rewritten."""
    bits = quantization.bits
    calibration = [quantization.calibration] if quantization.calibration else []
    return fingerprint(quantization.source, [bits, GROUP_SIZES[bits], CLIPPINGS[bits], *calibration])


def fingerprint(source: Checkpoint, how: list[Any]) -> str:
    """A hash of the source files and of `how` they are packed."""
    files = [*source.files, source.directory / "config.json"]
    described = [
        *how,
        [(file.name, *_state(file)) for file in files],
        sorted((tensor.name, tensor.dtype, tensor.shape, tensor.offset) for tensor in source.tensors.values()),
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _state(file: Path) -> tuple[int, int]:
    try:
        state = file.stat()
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read ({error.strerror}).") from error
    return state.st_size, state.st_mtime_ns
