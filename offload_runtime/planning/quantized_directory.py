"""The directory of a model's quantized weights. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loaders.cache_directory import cache_directory
from loaders.checkpoint.read_spec import read_config
from loaders.formats.lossless import METHOD as LOSSLESS
from loaders.hub.names import directory_name
from loaders.lossless.bins import RUNS
from loaders.quantize import lossless_recipe
from loaders.quantize.calibrated.text import calibration_mark, calibration_text
from loaders.quantize.lossless_recipe import LosslessRecipe
from loaders.quantize.recipe import BITS, Quantization
from loaders.quantize.report import QuantizationReport, fingerprint, quantization_fingerprint, read_report
from loaders.safetensors_files.headers import Checkpoint, read_checkpoint
from loaders.sizes import format_size
from offload_runtime.errors import UsageError


@dataclass(frozen=True)
class Packing:
    """How a model is packed, and its directory. report: on the existing files; None if there are none yet."""

    quantization: Quantization | LosslessRecipe
    fingerprint: str
    directory: Path
    report: QuantizationReport | None

    @classmethod
    def of(
        cls,
        model: Path,
        name: str,
        directory: Path | None,
        calibration: str | Path | None = None,
        code_bits: int = lossless_recipe.BITS,
    ) -> "Packing":
        """For the model in `model`, as "int8", "int4" or "lossless", in `directory` or the user's cache.

        calibration: the file of the text with which it is rounded, or "bundled". code_bits: of codes without loss.

        Raises UnsupportedModelError if it cannot be quantized, UsageError if `directory` holds other files.
        """
        quantization = recipe_of(name, read_checkpoint(model), read_config(model), code_bits)
        if calibration and isinstance(quantization, Quantization):
            quantization = replace(quantization, calibration=calibration_mark(calibration_text(calibration)))
        mark = _fingerprint(quantization)
        directory = directory or _cached(f"{directory_name(model)}-{name}-{mark}")
        report = read_report(directory)
        if report is None and directory.exists() and not _is_empty(directory):
            raise UsageError(f"{directory}: holds other files, so no weights can be packed into it. {_ELSEWHERE}")
        if report and report.fingerprint != mark:
            raise UsageError(
                f"{directory}: holds weights that were packed from {report.source} ({report.label}), and they are "
                "others, have changed since, or are to be packed differently. Remove the directory to pack them anew. "
                f"{_ELSEWHERE}"
            )
        return cls(quantization, mark, directory, report)

    @property
    def files_at_hand(self) -> tuple[Path, ...]:
        """Existing files, for timing reads from this disk."""
        return read_checkpoint(self.directory).files if self.report else self.quantization.source.files

    def __str__(self) -> str:
        if self.report:
            return f"{self.report}; found in {self.directory}"
        size = format_size(self.quantization.nbytes)
        return f"{self.quantization.label}: {size}, packed at the first start and kept in {self.directory}"


def recipe_of(
    name: str, checkpoint: Checkpoint, config: Mapping[str, Any], code_bits: int = lossless_recipe.BITS
) -> Quantization | LosslessRecipe:
    """How weights are packed as "int8", "int4" or "lossless". Raises UnsupportedModelError if they cannot be."""
    if name == LOSSLESS:
        return LosslessRecipe.of(checkpoint, config, code_bits)
    return Quantization.of(checkpoint, config, BITS[name])


def _fingerprint(recipe: Quantization | LosslessRecipe) -> str:
    if isinstance(recipe, Quantization):
        return quantization_fingerprint(recipe)
    return fingerprint(recipe.source, [LOSSLESS, recipe.bits, RUNS[recipe.bits], lossless_recipe.ORDER])


_ELSEWHERE = "--quantized-directory DIR chooses another."


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


def _cached(name: str) -> Path:
    cache = cache_directory()
    if cache is None:
        raise UsageError("there is no home directory to keep packed weights in: choose one, --quantized-directory DIR")
    return cache / "quantized" / name
