"""Reads a draft head from its directory: config.json and safetensors headers, everything checked. No weights, no torch.

Names of tensors become those of the modules in `eagle3.py` and `dflash.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.checkpoint.model_source import model_source
from loaders.checkpoint.spec import DTYPE_NAMES, ITEMSIZE
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.heads.dflash_config import DflashConfig, read_dflash
from loaders.heads.eagle3_config import Eagle3Config, read_eagle3
from loaders.heads.kinds import Kind, head_kind, refuse_other_heads
from loaders.heads.target_facts import TargetFacts
from loaders.heads.vocabulary_map import DRAFT_TO_TARGET, TARGET_TO_DRAFT, read_vocabulary_map
from loaders.safetensors_files.headers import Checkpoint, StoredTensor

EMBEDDINGS, OUTPUT = "embed_tokens.weight", "lm_head.weight"
_FIRST_LAYER = "midlayer."  # SpecForge's and the authors' name of layers.0 in EAGLE-3
_CODEBOOK = re.compile(r"candidate_selector\.(predecessor|successor)_codebook")
_UNUSED = re.compile(r"verifier_(norm|lm_head)\.weight$|rotary_emb\.inv_freq$")  # of training; computed


@dataclass(frozen=True)
class HeadFiles:
    """A head on disk. config: see there. checkpoint: its tensors by the names of its module.

    token_ids: int64 [draft vocab], the target's tokens that its own stand for; None where they are the same, or not
    downloaded yet.
    """

    directory: Path
    kind: Kind
    config: Eagle3Config | DflashConfig
    checkpoint: Checkpoint
    token_ids: NDArray[np.int64] | None

    @property
    def own_embeddings(self) -> bool:
        """Whether it has a table of its own; else it reads the target's."""
        return EMBEDDINGS in self.checkpoint.tensors

    @property
    def own_output(self) -> bool:
        """Whether it has an output layer of its own; else it uses the target's."""
        return OUTPUT in self.checkpoint.tensors

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes that its layers cache of a token."""
        layer = self.config.layer
        heads = layer["num_attention_heads"]
        head_dim = layer.get("head_dim") or self.config.hidden_size // heads
        return self.config.layers * 2 * (layer.get("num_key_value_heads") or heads) * head_dim * ITEMSIZE[dtype]


def is_head(directory: Path) -> bool:
    """Whether a directory holds a draft head. Raises UnsupportedModelError for kinds that are not run."""
    source = model_source(directory)
    return head_kind(source.config_file, source.config()) is not None


def read_head(directory: Path, target: TargetFacts, checkpoint: Checkpoint | None = None) -> HeadFiles:
    """The head in `directory`, checked against its target. checkpoint: saves reading the headers.

    Raises ModelFilesError for damaged files, UnsupportedModelError for kinds that are not run, DraftMismatchError for
    a head that was made for another target.
    """
    source = model_source(directory)
    file, config = source.config_file, source.config()
    checkpoint = checkpoint or source.checkpoint()
    kind = head_kind(file, config)
    if kind is None:
        refuse_other_heads(directory, checkpoint.tensors)
        raise UnsupportedModelError(f"{file}: this is a model of its own and not a draft head.")
    head: Eagle3Config | DflashConfig
    head = read_eagle3(file, config, target) if kind is Kind.EAGLE3 else read_dflash(file, config, kind, target)
    tensors, maps = _by_module(checkpoint.tensors)
    if kind is not Kind.EAGLE3:  # a copy of the target's
        tensors.pop(EMBEDDINGS, None)
    _check_presence(directory, head, tensors)
    token_ids = None
    if head.maps_tokens and (not maps or all(tensor.file.exists() for tensor in maps.values())):
        token_ids = read_vocabulary_map(maps or tensors, head.draft_vocab_size, head.vocab_size)
    return HeadFiles(directory, kind, head, replace(checkpoint, tensors=tensors), token_ids)


def _by_module(stored: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The weights by the names of their modules, and the maps between vocabularies."""
    tensors: dict[str, StoredTensor] = {}
    maps: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if name in (DRAFT_TO_TARGET, TARGET_TO_DRAFT):
            maps[name] = tensor
        elif not _UNUSED.search(name):
            if tensor.dtype not in DTYPE_NAMES:
                raise UnsupportedModelError(
                    f"{tensor.file}: {name} is stored as {tensor.dtype}, which is not supported."
                )
            own = f"layers.0.{name.removeprefix(_FIRST_LAYER)}" if name.startswith(_FIRST_LAYER) else name
            own = f"{own}.weight" if _CODEBOOK.fullmatch(own) else own
            if own in tensors:
                raise ModelFilesError(f"{tensor.file}: it holds both {name} and {own}, which are the same weight.")
            tensors[own] = replace(tensor, name=own)
    return tensors, maps


def _check_presence(directory: Path, head: Eagle3Config | DflashConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """The joining layer tells a head from others; a reduced vocabulary needs an output layer of its own."""
    width = head.target_hidden_size if isinstance(head, Eagle3Config) else head.hidden_size
    joining, expected = tensors.get("fc.weight"), (head.hidden_size, len(head.taps) * width)
    if joining is None or joining.shape != expected:
        found = f"is {list(joining.shape)}" if joining else "is missing"
        raise ModelFilesError(
            f"{directory}: fc.weight {found}, but config.json describes one of {list(expected)}, which joins "
            f"{len(head.taps)} hidden states of {width}."
        )
    own = tensors.get(OUTPUT)
    if own is None and head.maps_tokens:
        raise ModelFilesError(
            f"{directory}: {OUTPUT} is missing, which a head with {head.draft_vocab_size:,} tokens of the target's "
            f"{head.vocab_size:,} needs."
        )
    if isinstance(head, Eagle3Config) and EMBEDDINGS not in tensors and head.hidden_size != head.target_hidden_size:
        raise ModelFilesError(
            f"{directory}: {EMBEDDINGS} is missing, and those of the target, of width {head.target_hidden_size}, do "
            f"not fit a head of width {head.hidden_size}."
        )


def unused_tensors(files: HeadFiles, used: Mapping[str, Any]) -> list[str]:
    """Stored weights that no module of the head has; a head with any computes something else."""
    return sorted(files.checkpoint.tensors.keys() - used.keys())
