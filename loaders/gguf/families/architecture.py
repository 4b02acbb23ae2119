"""What a family of models is in GGUF files, and in transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loaders.gguf.header import GgufTensor
from loaders.gguf.metadata import Metadata

Config = dict[str, Any]
# Weights that are no tensors of the file.
Further = Callable[[Metadata], list[GgufTensor]]
# The parts of the model's weights that a tensor is, from the metadata and the name of its layer: "model.layers.3."
Divide = Callable[[Metadata, str, GgufTensor], list[GgufTensor]]

EMBEDDINGS_AND_HEAD = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class GgufArchitecture:
    """What transformers calls an architecture of GGUF, and how its tensors differ.

    layer, outside: transformers' names of the modules in a layer, and of those outside; of a tensor that has another
    suffix there, by its name with the suffix. divided, divided_outside: tensors in a layer, and outside, that are no
    whole weight of the model as it is stored.
    paired: query and key rows are stored interleaved, as pairs that are rotated together.
    norms_plus_one: norms are stored as the factor, which is 1 more than the model's weight; not those in `own_norms`.
    further: weights that files have among their metadata.
    layer_norm: transformers' name of the epsilon of norms that subtract the mean, if these do.
    plain_attention: the widths of queries, keys and values follow from the heads. predicts: the layers after those that
    the text goes through are heads for multi-token prediction, whose tensors are named in `layer`.
    """

    model_type: str
    architecture: str
    layer: Mapping[str, str]
    settings: Callable[[Metadata], Config]
    outside: Mapping[str, str] = field(default_factory=lambda: EMBEDDINGS_AND_HEAD)
    divided: Mapping[str, Divide] = field(default_factory=dict)
    divided_outside: Mapping[str, Divide] = field(default_factory=dict)
    paired: bool = False
    norms_plus_one: bool = False
    own_norms: frozenset[str] = frozenset()
    further: Further = lambda metadata: []
    layer_norm: str = ""
    plain_attention: bool = True
    predicts: bool = False

    def names(self, leaf: str, suffix: str, in_layer: bool) -> str | None:
        """The end of transformers' name of a tensor; None if it has none."""
        known = self.layer if in_layer else self.outside
        whole = known.get(f"{leaf}.{suffix}" if suffix else leaf)
        if whole is not None and (suffix or leaf in known):
            return whole
        part = known.get(leaf)
        return f"{part}.{suffix}" if part and suffix else None
