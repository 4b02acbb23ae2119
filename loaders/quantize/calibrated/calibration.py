"""Quantizes a model's layers with a calibration text, one layer in memory at a time.

Memory holds the text's hidden states, the current layer in the dtype that is computed in, and Σ x xᵀ of its inputs. A
layer reads the outputs of the quantized layers before it, so it corrects some of their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loaders.dequantize.plain import decode
from loaders.formats.schemes import Words
from loaders.io.reader import WeightReader
from loaders.io.sources import map_sources
from loaders.modules.conversion import model_slices
from loaders.modules.layout import TORCH_DTYPES
from loaders.modules.skeleton import Skeleton, UnitLayout, build_skeleton, make_parameters
from loaders.quantize.calibrated.feedback import round_with_feedback
from loaders.quantize.calibrated.inputs import Gram, InputGrams
from loaders.quantize.calibrated.layers import Call, record_calls
from loaders.quantize.recipe import Matrix, Quantization
from loaders.quantize.rounding import Errors, pack_rows

# Below that many inputs a matrix is rounded plainly: of experts that the text hardly uses too little is known.
LEAST_ROWS = 256


@dataclass(frozen=True)
class Calibration:
    """Texts of equal length, int64 [texts, tokens].

    device: what the layers are computed on. progress: called with the bytes of matrices that are done, and all of them.
    """

    tokens: Tensor
    device: torch.device
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, eq=False)
class Rounded:
    """A quantized matrix: int32 words, scales, and its errors."""

    matrix: Matrix
    words: Tensor
    scales: Tensor
    errors: Errors


Earlier = Callable[[Matrix], "Tensor | None"]
"""What a matrix that an earlier run quantized is dequantized to, [outputs, inputs]; None of others."""


class CalibrationRun:
    """Layers in order, each calibrated with the outputs of the ones before. A context manager."""

    def __init__(self, quantization: Quantization, calibration: Calibration):
        """Reads headers. Raises UnsupportedModelError for a model that cannot be run in transformers."""
        source = quantization.source
        self._calibration, self._device = calibration, calibration.device
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._skeleton = build_skeleton(source.directory, dtype, self._device, "eager", source)
        self._skeleton.model.set_experts_implementation("eager")
        self._sources = map_sources(self._skeleton, source)
        self._parts = _parts(self._skeleton, quantization)
        self._reader = WeightReader(source.files)
        self._done, self._nbytes = 0, sum(matrix.stored.nbytes for matrix in quantization.matrices)

    def __enter__(self) -> CalibrationRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.close()

    @torch.inference_mode()
    def layers(self, earlier: Earlier) -> Iterator[list[Rounded]]:
        """The matrices of one layer after the other, without layers of which `earlier` knows all.

        Raises UnsupportedModelError for layers that cannot be run one by one.
        """
        states, calls = self._first_states()
        for layer, source, parts, call in zip(self._skeleton.layers, self._sources[0], self._parts, calls):
            self._load(layer, source)
            known = [values for part in parts if (values := earlier(part.matrix)) is not None]
            if len(known) == len(parts):
                for part, values in zip(parts, known):
                    self._weight(part).copy_(values)
                self._step(len(states))  # of two for each text
            else:  # also of a layer that was begun: its inputs are those of the whole layer as it was
                yield self._rounded(layer, parts, call, states)
            for number, state in enumerate(states):
                states[number] = call.run(layer.module, state.to(self._device)).to(state.device)
                self._step()
            empty = torch.empty(layer.layout.nbytes, dtype=torch.uint8, device="meta")
            layer.bind(make_parameters(layer.layout, empty))

    def _rounded(
        self, layer: UnitLayout, parts: Sequence[_Part], call: Call, states: Sequence[Tensor]
    ) -> list[Rounded]:
        """Quantize some matrices of a layer, which then computes with what they are dequantized to."""
        weights = {part.matrix.module: self._weight(part) for part in parts}
        with InputGrams(weights) as inputs:
            for state in states:
                call.run(layer.module, state.to(self._device))
                self._step()
        return [self._round(part, weights[part.matrix.module], inputs.grams) for part in parts]

    def _step(self, count: int = 1) -> None:
        self._done += count
        if self._calibration.progress:
            steps = 2 * len(self._calibration.tokens) * len(self._skeleton.layers)
            self._calibration.progress(self._nbytes * self._done // steps, self._nbytes)

    def _first_states(self) -> tuple[list[Tensor], list[Call]]:
        unit = self._skeleton.embeddings_and_head
        self._load(unit, self._sources[1])
        texts = [text[None].to(self._device) for text in self._calibration.tokens]
        calls, states = record_calls(self._skeleton.model, [layer.module for layer in self._skeleton.layers], texts)
        return [state.cpu() for state in states], calls

    def _load(self, unit: UnitLayout, source: object) -> None:
        buffer = torch.zeros(unit.layout.nbytes, dtype=torch.uint8)
        self._reader.fill(source, buffer)  # type: ignore[arg-type]
        unit.bind(make_parameters(unit.layout, buffer.to(self._device)))

    def _weight(self, part: _Part) -> Tensor:
        """A view of the parameter that a matrix belongs to, [outputs, inputs]."""
        flat = self._skeleton.model.get_parameter(part.target).data.view(-1)
        return flat[part.position :][: part.count].view(part.matrix.stored.shape)

    def _round(self, part: _Part, weight: Tensor, grams: dict[str, Gram]) -> Rounded:
        """Quantize a matrix; `weight` becomes what it is dequantized to."""
        matrix, gram = part.matrix, grams.get(part.matrix.module)
        dtype, bits, size = TORCH_DTYPES[matrix.stored.dtype], matrix.bits, matrix.group_size
        if gram is None or gram.rows < LEAST_ROWS:
            words, scales, errors = pack_rows(weight.to(dtype).cpu(), bits, size)
        else:
            words, scales, errors = round_with_feedback(weight.float(), gram.total.clone(), bits, size, dtype)
        weight.copy_(dequantized(matrix, words, scales))
        return Rounded(matrix, words, scales, errors)


def dequantized(matrix: Matrix, words: Tensor, scales: Tensor) -> Tensor:
    """What a quantized matrix stands for, [outputs, inputs], in its dtype."""
    out = torch.empty(matrix.stored.shape, dtype=scales.dtype)
    scheme = Words(matrix.bits, matrix.group_size, ordered=True)
    decode(scheme, {"weight_packed": words, "weight_scale": scales}, out)
    return out


@dataclass(frozen=True)
class _Part:
    """Where a matrix lies in the model: `count` elements of parameter `target` from `position` on."""

    matrix: Matrix
    target: str
    position: int
    count: int


def _parts(skeleton: Skeleton, quantization: Quantization) -> list[list[_Part]]:
    """The matrices of each layer that are whole pieces of a parameter."""
    matrices = {matrix.stored.name: matrix for matrix in quantization.matrices}
    slices = model_slices(skeleton.model, {name: matrix.stored for name, matrix in matrices.items()})
    transposed = {
        f"{layer.name}.{place.name}" for layer in skeleton.layers for place in layer.layout.places if place.transposed
    }
    parts: list[list[_Part]] = []
    for layer in skeleton.layers:
        inside = [piece for piece in slices if piece.target.startswith(f"{layer.name}.")]
        whole = [
            piece
            for piece in inside
            if piece.target not in transposed
            and not piece.transposed
            and piece.count * _size(piece.stored.dtype) == piece.stored.nbytes
        ]
        parts.append([_Part(matrices[p.stored.name], p.target, p.position, p.count) for p in whole])
    return parts


def _size(dtype: str) -> int:
    return TORCH_DTYPES[dtype].itemsize
