"""Replaces plainly rounded matrices in the files by calibrated ones, and goes on after the last whole layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loaders.modules.layout import TORCH_DTYPES
from loaders.quantize.calibrated.calibration import Calibration, CalibrationRun, Rounded, dequantized
from loaders.quantize.calibrated.text import TEXTS, TOKENS
from loaders.quantize.journal import PackingJournal
from loaders.quantize.recipe import Matrix, Quantization
from loaders.quantize.rounding import Errors
from loaders.safetensors_files.headers import StoredTensor, read_tensor_bytes

PROBE = 1024  # rows and columns of the product that is timed
COLUMN_SECONDS = 60e-6  # of the five operations that a column takes, however few rows there are

Write = Callable[[StoredTensor, int, memoryview], None]


@dataclass(frozen=True, eq=False)
class ResultTable:
    """Where results go: the tensors' places by name, and the journal, which counts matrices from `first` on."""

    places: Mapping[str, StoredTensor]
    journal: PackingJournal
    first: int
    write: Write
    sync: Callable[[], None]

    def number(self, quantization: Quantization) -> dict[str, int]:
        """The journal's number for each matrix's module."""
        return {matrix.module: self.first + index for index, matrix in enumerate(quantization.matrices)}

    def read(self, matrix: Matrix) -> Tensor:
        """What a written matrix is dequantized to, [outputs, inputs] in its dtype."""
        words, scales = (self.places[tensor.name] for tensor in matrix.results[:2])
        return dequantized(matrix, _tensor(words), _tensor(scales))

    def add(self, rounded: Rounded, number: int) -> None:
        """Write a matrix and record it."""
        for stored, values in zip(rounded.matrix.results, (rounded.words, rounded.scales)):
            self.write(self.places[stored.name], 0, values.contiguous().view(-1).view(torch.uint8).numpy().data)
        self.journal.add(number, rounded.errors, self.sync)


def calibrate(quantization: Quantization, calibration: Calibration, table: ResultTable) -> dict[str, Errors]:
    """Round the layers' matrices with the calibration's text; returns their errors by module.

    Raises UnsupportedModelError for a model whose layers cannot be run one by one.
    """
    numbers, done = table.number(quantization), table.journal.done
    errors = {name: found for name, number in numbers.items() if (found := done.get(number))}

    def earlier(matrix: Matrix) -> Tensor | None:
        return table.read(matrix) if numbers[matrix.module] in done else None

    with CalibrationRun(quantization, calibration) as run:
        for layer in run.layers(earlier):
            for rounded in layer:
                table.add(rounded, numbers[rounded.matrix.module])
                errors[rounded.matrix.module] = rounded.errors
    return errors


def calibration_seconds(quantization: Quantization, device: str) -> float:
    """Estimated seconds on "cpu" or "cuda", from the speed of a matrix product, which takes about 0.1 s to measure."""
    square = torch.randn(PROBE, PROBE, device=device)
    best = min(_product_seconds(square) for _ in range(3))
    seconds = 0.0
    for matrix in quantization.matrices:
        outputs, inputs = matrix.stored.shape
        rows = TEXTS * TOKENS
        # two passes; Σ x xᵀ, which every second matrix shares with another; corrections, and two factorizations
        flops = 4 * rows * outputs * inputs + rows * inputs**2 + outputs * inputs**2 + 2 * inputs**3
        seconds += flops / (2 * PROBE**3) * best + inputs * COLUMN_SECONDS
    return seconds


def _product_seconds(square: Tensor) -> float:
    started = time.perf_counter()
    float((square @ square)[0, 0])  # waits for a GPU
    return time.perf_counter() - started


def _tensor(place: StoredTensor) -> Tensor:
    content = bytearray(read_tensor_bytes(place))
    return torch.frombuffer(content, dtype=TORCH_DTYPES[place.dtype]).view(place.shape)
