"""Takes the codes of weights stored without loss out of their layers: they stay on the device, and rests stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from loaders.lossless.bins import CODE
from loaders.modules.layout import Layout, TensorPlace
from loaders.modules.skeleton import DecodedParameter, Skeleton, UnitLayout


def with_codes_apart(skeleton: Skeleton, bits: int) -> Skeleton:
    """The same model with the codes of `bits` bits in layouts of their own, `UnitLayout.code`.

    Weights that are stored otherwise, or without a checksum over both parts, stay as they are.
    """
    return replace(skeleton, layers=tuple(_divided(layer, bits) for layer in skeleton.layers))


def _divided(layer: UnitLayout, bits: int) -> UnitLayout:
    coded = {name: parameter for name, parameter in layer.packed.items() if parameter.packed.has_code(bits)}
    if not coded:
        return layer
    names = {f"{name.removesuffix('.weight')}.{role}" for name in coded for role in CODE}
    rests = _part(layer, [place for place in layer.layout.places if place.name not in names], layer.packed)
    codes = _part(layer, [place for place in layer.layout.places if place.name in names], coded)
    return replace(rests, code=replace(codes, experts=None, expert_places=0, decoded=None))


def _part(layer: UnitLayout, places: Iterable[TensorPlace], packed: Mapping[str, DecodedParameter]) -> UnitLayout:
    """The layer with these places alone."""
    slots, kept = dict(zip(layer.layout.places, layer._slots)), tuple(places)
    by_expert = sum(place in kept for place in layer.layout.places[len(slots) - layer.expert_places :])
    tensors = ((place.name, place.shape, place.dtype) for place in kept)
    return replace(
        layer,
        layout=Layout.of(tensors, {place.name for place in kept if place.transposed}),
        stored={place.name: layer.stored[place.name] for place in kept if place.name in layer.stored},
        _slots=tuple(slots[place] for place in kept),
        packed=packed,
        experts=layer.experts if by_expert else None,
        expert_places=by_expert,
    )
