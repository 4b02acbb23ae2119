"""Low-bit copies of streamed layers: a code for each matrix, and everything small as it is, all on the device.

Weights whose rests alone stream have a code there already, which is the copy.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loaders.checkpoint.spec import aligned
from loaders.dequantize.stacks import approximate_code, code_product, prepare_code
from loaders.formats.schemes import Lossless
from loaders.lossless.bins import BLOCK, GROUP, KINDS, Bins, plane_bytes
from loaders.lossless.encode import code_of
from loaders.modules.layout import Layout, TensorPlace
from loaders.modules.quantized import Packed
from loaders.modules.skeleton import UnitLayout, make_parameters
from offload_runtime.model.low_bits.coded_weight import CodedWeight, can_multiply
from scheduler.streaming.device_memory import DeviceMemory

LEAST_CODED = 1 << 12  # values; smaller tensors are kept as they are


@dataclass(frozen=True)
class _Code:
    bins: Bins
    code: Tensor
    top: Tensor
    count: int = 1  # of weights that are stacked, each with a code of its own


class LowBitCopies:
    """Copies of some layers in `bits` bits a weight. They are filled one by one, and bound one at a time: all are
    decoded into the same memory, in the dtype of the layer, but for weights that a kernel multiplies by their code.

    layers: by their numbers; what is copied is a layer as it is once it is dequantized.
    """

    def __init__(self, layers: Mapping[int, UnitLayout], bits: int, memory: DeviceMemory):
        self._codes = {number: layer.code.packed if layer.code else {} for number, layer in layers.items()}
        self._buffers = {number: memory.empty(_own_bytes(layer, bits)) for number, layer in layers.items()}
        self._layers, self._bits = {number: layer.decoded or layer for number, layer in layers.items()}, bits
        largest = max((layer.layout.nbytes for layer in self._layers.values()), default=0)
        self._scratch = memory.empty(largest)
        self._parts: dict[int, dict[str, _Code | Tensor]] = {}
        layouts = {layer.layout for layer in self._layers.values()}
        self._views = {layout: layout.views(self._scratch[: layout.nbytes]) for layout in layouts}
        self._parameters: dict[Layout, tuple[nn.Parameter, ...]] = {}
        self._multiply = code_product(memory.device)
        self._coded: dict[int, dict[str, CodedWeight]] = {}

    def views(self, number: int) -> dict[str, Tensor]:
        """Where the tensors of a layer are decoded to, by name; also memory to prepare them in."""
        return self._views[self._layers[number].layout]

    @torch.inference_mode()
    def fill(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Make the copy of a layer with these tensors; those whose codes are bound need not be among them."""
        parts: dict[str, _Code | Tensor] = {name: _code_of(coded.packed) for name, coded in self._codes[number].items()}
        places = self._slices(number)
        for place, (first, second) in places:
            given = flat(tensors[place.name])
            if second is None:
                first.view(place.dtype).copy_(given)
                parts[place.name] = first.view(place.dtype)
            else:
                bins = Bins(KINDS["F16" if place.dtype == torch.float16 else "BF16"], self._bits)
                code, top = code_of(given.to(torch.float16 if bins.kind.name == "F16" else torch.bfloat16), bins)
                first.copy_(code)
                second.copy_(top)
                parts[place.name] = _Code(bins, first, second)
        for part in parts.values():
            if isinstance(part, _Code):
                prepare_code(part.bins, part.code.device)
        self._parts[number] = parts
        self._coded[number] = dict(self._coded_weights(number))

    def bind(self, number: int) -> None:
        """Decode the copy of a layer, and let its module compute with it until other weights are bound."""
        layer, coded = self._layers[number], self._coded[number]
        views, parts = self.views(number), self._parts[number]
        for place in layer.layout.places:
            if place.name in coded:
                continue
            part, out = parts[place.name], flat(views[place.name])
            if isinstance(part, _Code):
                approximate_code(part.bins, part.code, part.top, out, part.count)
            else:
                out.copy_(part)
        if layer.layout not in self._parameters:
            self._parameters[layer.layout] = make_parameters(layer.layout, self._scratch[: layer.layout.nbytes])
        places = zip(layer.layout.places, self._parameters[layer.layout])
        layer.bind(tuple(coded.get(place.name, parameter) for place, parameter in places))

    def _coded_weights(self, number: int) -> Iterator[tuple[str, CodedWeight]]:
        """The weights of a layer that are multiplied by their code, by name."""
        layer, parts, views = self._layers[number], self._parts[number], self.views(number)
        if self._multiply is None:
            return
        for place in layer.layout.places:
            part = parts[place.name]
            if isinstance(part, _Code) and can_multiply(layer.module, place):
                code = part.code, part.top
                yield place.name, CodedWeight.of(views[place.name], part.bins, code, self._multiply)

    def _slices(self, number: int) -> Iterator[tuple[TensorPlace, tuple[Tensor, Tensor | None]]]:
        """The memory of each tensor that has no code yet: of its code and its tops, or of the tensor as it is."""
        buffer, begin = self._buffers[number], 0
        for place in self._layers[number].layout.places:
            if place.name in self._codes[number]:
                continue
            if not is_coded(place):
                yield place, (buffer[begin : begin + place.nbytes], None)
                begin += aligned(place.nbytes)
                continue
            count = place.nbytes // place.dtype.itemsize
            code, top = plane_bytes(self._bits, count), count // GROUP
            yield place, (buffer[begin : begin + code], buffer[begin + code : begin + code + top])
            begin += aligned(code + top)


def flat(tensor: Tensor) -> Tensor:
    """The values in the order in which they lie in memory, which may be that of the last two dimensions exchanged."""
    return (tensor if tensor.is_contiguous() else tensor.mT).view(-1)


def is_coded(place: TensorPlace) -> bool:
    """Whether a tensor is copied in few bits: a matrix, or several, of whole blocks."""
    count = math.prod(place.shape)
    return len(place.shape) > 1 and place.dtype.is_floating_point and count % BLOCK == 0 and count >= LEAST_CODED


def copied_bytes(layer: UnitLayout, bits: int) -> int:
    """Bytes of the copy of a layer, codes apart included, without the memory that it is decoded into."""
    return _own_bytes(layer, bits) + (layer.code.layout.nbytes if layer.code else 0)


def _own_bytes(layer: UnitLayout, bits: int) -> int:
    coded = layer.code.packed if layer.code else {}
    places = (layer.decoded or layer).layout.places
    return sum(_copied_bytes(place, bits) for place in places if place.name not in coded)


def _code_of(packed: Packed) -> _Code:
    scheme, operands = packed.scheme, packed.operands
    assert isinstance(scheme, Lossless)
    return _Code(Bins(KINDS[scheme.dtype], scheme.bits), operands["code"], operands["top"], len(packed.members))


def _copied_bytes(place: TensorPlace, bits: int) -> int:
    count = math.prod(place.shape)
    return aligned(plane_bytes(bits, count) + count // GROUP if is_coded(place) else place.nbytes)
