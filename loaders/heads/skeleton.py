"""A draft head without weights, sharing the target's embeddings and, where it has none, its output layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from loaders.errors import UnsupportedModelError
from loaders.heads.dflash import DflashHead, build_dflash
from loaders.heads.eagle3 import Eagle3Head, build_eagle3
from loaders.heads.eagle3_config import Eagle3Config
from loaders.heads.head_files import HeadFiles, read_head, unused_tensors
from loaders.heads.target_facts import TargetFacts
from loaders.modules.buffers import compute_buffers
from loaders.modules.heads import HeadInputs, HeadSkeleton
from loaders.modules.skeleton import Skeleton, explained, laid_out


def skeleton_of_files(target: Skeleton, directory: Path, dtype: torch.dtype, device: torch.device) -> HeadSkeleton:
    """The head in `directory`, which drafts for `target`.

    Raises what `read_head` raises, and UnsupportedModelError for a head with weights that no module of it has.
    """
    facts = TargetFacts("the target", len(target.layers), target.config.hidden_size, target.config.vocab_size)
    files = read_head(directory, facts)
    config, attention = files.config, target.config._attn_implementation
    model: Eagle3Head | DflashHead
    with explained(directory), torch.device("meta"):
        if isinstance(config, Eagle3Config):
            model = build_eagle3(config, dtype, attention, files.own_embeddings, files.own_output)
        else:
            model = build_dflash(config, dtype, attention, files.own_output)
    model.eval().requires_grad_(False)
    _check_places(files, model)
    with explained(directory):
        compute_buffers(model, device)
    model.share(target.model.get_input_embeddings(), target.model.get_output_embeddings())
    if files.token_ids is not None:
        model.token_ids = torch.from_numpy(files.token_ids).to(device)
    skeleton = laid_out(model, dtype, files.checkpoint, None)
    if isinstance(model, DflashHead):
        return HeadSkeleton(skeleton, HeadInputs(), config.taps, config.hidden_size, model.norm, dtype)
    output = model.norm if model.head.norm_output else model.layers[-1]
    return HeadSkeleton(skeleton, model.inputs, config.taps, config.hidden_size, output, dtype, model.fuse)


def _check_places(files: HeadFiles, model: nn.Module) -> None:
    if unused := unused_tensors(files, model.state_dict()):
        raise UnsupportedModelError(
            f"{files.directory}: {unused[0]} is no weight of the {files.kind.value} head that config.json describes; a "
            "head that has it computes something else, which is not supported."
        )
