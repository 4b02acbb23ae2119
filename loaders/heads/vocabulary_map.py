"""Which of the target's tokens a head's own tokens stand for: the tensors `d2t` and `t2d`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from loaders.errors import ModelFilesError
from loaders.safetensors_files.headers import StoredTensor, read_tensor_bytes

DRAFT_TO_TARGET, TARGET_TO_DRAFT = "d2t", "t2d"
_INTEGERS = {"I64": "<i8", "I32": "<i4"}
_FLAGS = {"BOOL": "?", "U8": "u1"}


def read_vocabulary_map(
    tensors: Mapping[str, StoredTensor], draft_vocab_size: int, vocab_size: int
) -> NDArray[np.int64]:
    """int64 [draft_vocab_size], distinct numbers of the target's tokens.

    `d2t` holds what is to be added to a token's number. `t2d`, where it is there, marks the target's tokens that are
    reached, and must agree. Raises ModelFilesError, naming file and tensor.
    """
    offsets = tensors.get(DRAFT_TO_TARGET)
    if offsets is None:
        stored = next(iter(tensors.values()))
        raise ModelFilesError(
            f"{stored.file}: the head has {draft_vocab_size:,} tokens of {vocab_size:,}, but {DRAFT_TO_TARGET}, which "
            "says which, is missing."
        )
    ids = _read(offsets, _INTEGERS, draft_vocab_size).astype(np.int64)
    if ids.min(initial=0) < -vocab_size or ids.max(initial=0) > vocab_size:  # their sums would not stay in range
        raise _wrong(offsets, f"it leads outside the target's {vocab_size:,} tokens")
    ids += np.arange(draft_vocab_size)
    if ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab_size:
        raise _wrong(offsets, f"it leads outside the target's {vocab_size:,} tokens")
    if len(np.unique(ids)) != draft_vocab_size:
        raise _wrong(offsets, "two of the head's tokens stand for one of the target's")
    if marks := tensors.get(TARGET_TO_DRAFT):
        reached = np.zeros(vocab_size, dtype=bool)
        reached[ids] = True
        if not np.array_equal(reached, _read(marks, _FLAGS, vocab_size).astype(bool)):
            raise _wrong(marks, f"it marks other tokens than {DRAFT_TO_TARGET} leads to")
    return ids


def _read(tensor: StoredTensor, dtypes: Mapping[str, str], count: int) -> NDArray[np.generic]:
    if tensor.dtype not in dtypes or tensor.shape != (count,):
        raise _wrong(tensor, f"it is {tensor.dtype} {list(tensor.shape)}, but must be {' or '.join(dtypes)} [{count}]")
    return np.frombuffer(read_tensor_bytes(tensor), dtype=dtypes[tensor.dtype])


def _wrong(tensor: StoredTensor, fault: str) -> ModelFilesError:
    return ModelFilesError(f"{tensor.file}: {tensor.name} is damaged: {fault}.")
