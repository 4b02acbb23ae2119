"""Loads draft heads: their skeletons, their buffers, and the target's hidden states for them."""

from collections.abc import Callable
from functools import partial

import torch

from loaders.heads.dflash import DflashHead
from loaders.heads.skeleton import skeleton_of_files
from loaders.modules.heads import HeadSkeleton, mtp_skeleton
from loaders.modules.skeleton import Skeleton
from offload_runtime.model.heads.block_model import BlockModel
from offload_runtime.model.heads.capture import HiddenStates, tapped
from offload_runtime.model.heads.head_model import HeadModel
from offload_runtime.model.heads.text_features import TextFeatures
from offload_runtime.model.model import Model
from offload_runtime.planning.read_models import HEAD_FILES, ModelFiles
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.heads.block_draft import BlockDraft
from offload_runtime.speculation.heads.head_draft import HeadDraft
from offload_runtime.speculation.target import Target
from scheduler.plan.memory import HeadRows
from scheduler.plan.plan import Plan
from scheduler.streaming.device_memory import DeviceMemory


def head_skeleton(files: ModelFiles, target: Skeleton, device: torch.device) -> HeadSkeleton:
    """The head in these files, which shares modules of the target's skeleton."""
    dtype = getattr(torch, files.spec.dtype)
    if files.head == HEAD_FILES:
        return skeleton_of_files(target, files.spec.directory, dtype, device)
    return mtp_skeleton(target, files.spec.directory, dtype, device, files.checkpoint)


def making(head: HeadSkeleton, plan: Plan) -> Callable[..., Model]:
    """Makes the head's model, from the arguments of `Model`."""
    kind: type[HeadModel] = BlockModel if isinstance(head.skeleton.model, DflashHead) else HeadModel
    return partial(kind, head, _rows(plan))


def drafting(model: Model, target: Target, skeleton: Skeleton, memory: DeviceMemory, plan: Plan) -> Draft:
    """The loaded draft of a loaded target. skeleton: the target's, whose hidden states a head reads.

    model: of the draft; a head is one that `making` has made.
    """
    vocab_size = target.model.vocab_size
    if not isinstance(model, HeadModel):
        return Draft(model, vocab_size, plan.rows)
    rows, head = _rows(plan), model.head
    sources = tapped(skeleton.model, target.model.layer_modules, head.taps)
    states = HiddenStates(sources, len(sources) * target_width(skeleton), rows.of_pass, head.dtype, memory)
    for sequence in target.model.cache.sequences:
        sequence.features = TextFeatures(states, rows.waiting, memory)
    target.model.before_pass = states.begin
    if isinstance(model, BlockModel):
        return BlockDraft(model, target.model, vocab_size, plan.rows)
    return HeadDraft(model, target.model, vocab_size, plan.rows)


def target_width(skeleton: Skeleton) -> int:
    """Values of one hidden state."""
    return int(skeleton.config.hidden_size)


def _rows(plan: Plan) -> HeadRows:
    return HeadRows.of(plan.rows, plan.tree_size, plan.texts)
