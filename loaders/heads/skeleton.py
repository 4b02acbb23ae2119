"""A draft head without weights, sharing the target's embeddings and, where it has none, its output layer."""

from __future__ import annotations

from pathlib import Path

import torch

from loaders.errors import UnsupportedModelError
from loaders.heads.eagle3 import build_eagle3
from loaders.heads.eagle3_config import Eagle3Config
from loaders.heads.head_files import read_head, unused_tensors
from loaders.heads.target_facts import TargetFacts
from loaders.modules.heads import AFTER_NORM, HeadSkeleton
from loaders.modules.skeleton import Skeleton, compute_buffers, explained, laid_out


def eagle3_skeleton(target: Skeleton, directory: Path, dtype: torch.dtype, device: torch.device) -> HeadSkeleton:
    """The EAGLE-3 head in `directory`, which drafts for `target`.

    Raises what `read_head` raises, and UnsupportedModelError for a head with weights that no module of it has.
    """
    facts = TargetFacts("the target", len(target.layers), target.config.hidden_size, target.config.vocab_size)
    files = read_head(directory, facts)
    config = files.config
    assert isinstance(config, Eagle3Config)
    attention = target.config._attn_implementation
    with explained(directory), torch.device("meta"):
        model = build_eagle3(config, dtype, attention, files.own_embeddings, files.own_output)
    model.eval().requires_grad_(False)
    if unused := unused_tensors(files, model.state_dict()):
        raise UnsupportedModelError(
            f"{directory}: {unused[0]} is no weight of an EAGLE-3 head as config.json describes it; a head that has it "
            "computes something else, which is not supported."
        )
    with explained(directory):
        compute_buffers(model, device)
    model.share(target.model.get_input_embeddings(), target.model.get_output_embeddings())
    if files.token_ids is not None:
        model.token_ids = torch.from_numpy(files.token_ids).to(device)
    skeleton = laid_out(model, dtype, files.checkpoint, None)
    output = AFTER_NORM if config.norm_output else config.layers
    return HeadSkeleton(skeleton, model.inputs, config.taps, config.hidden_size, output, dtype, model.fuse)
