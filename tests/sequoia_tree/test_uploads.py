"""Small uploads: through pinned memory, which is taken in time, and where that is refused with the same results."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sequoia_tree import uploads
from sequoia_tree.uploads import reserve_uploads, upload

CUDA = torch.device("cuda")
VALUES = (
    [5, 3, 2**40],
    [],
    np.eye(7, dtype=bool),
    np.linspace(0, 1, 5, dtype=np.float32),
    np.arange(24, dtype=np.int64).reshape(2, 3, 4)[:, ::2],
)


class Allocator:
    """PyTorch's pinned memory under a limit: blocks in powers of two, kept for good and handed out again once free."""

    def __init__(self, limit: int):
        self.limit, self.free, self.taken = limit, [], 0
        self.lent: list[tuple[Tensor, int]] = []

    def pin(self, tensor: Tensor) -> Tensor:
        block = 1 << max(0, tensor.nbytes - 1).bit_length()
        if block in self.free:
            self.free.remove(block)
        elif self.taken + block > self.limit:
            raise RuntimeError("CUDA error: out of memory")
        else:
            self.taken += block
        copy = tensor.clone()
        self.lent.append((copy, block))
        return copy

    def all_were_dropped(self) -> None:
        """What was lent is no longer referred to, and its copies have ended."""
        self.free += [block for _, block in self.lent]
        self.lent.clear()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is copied to the GPU, that takes the host's memory for its own."""
    sent: list[Tensor] = []

    def to(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        assert device == CUDA and non_blocking
        sent.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "to", to)
    return sent


def allocator(monkeypatch: pytest.MonkeyPatch, limit: int) -> Allocator:
    allocator = Allocator(limit)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: allocator.pin(tensor))
    return allocator


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_values_are_the_same_pinned_or_refused(sent, monkeypatch, limit):
    pinning = allocator(monkeypatch, limit)
    for values in VALUES:
        expected = torch.from_numpy(np.asarray(values, dtype=None if isinstance(values, np.ndarray) else np.int64))
        ours = upload(values, CUDA)
        assert torch.equal(ours, expected) and ours.dtype == expected.dtype
    assert len(pinning.lent) == (len(VALUES) if limit else 0)


def test_what_is_reserved_serves_a_step_after_layers_took_the_rest(sent, monkeypatch):
    pinning = allocator(monkeypatch, 1 << 30)
    reserve_uploads(CUDA)
    pinning.all_were_dropped()
    assert pinning.taken <= 8 << 20
    pinning.limit = 0
    sizes = [1, 5, 768, 768 * 4, 768 * 768, 1 << 20]
    uploaded = [np.ones(size, dtype=bool) for size in sizes for _ in range(uploads.RESERVED_OF_EACH // 2)]
    for values in uploaded:
        upload(values, CUDA)
    assert len(pinning.lent) == len(uploaded)


def test_a_system_that_pins_nothing_can_be_reserved_from(monkeypatch):
    assert allocator(monkeypatch, 0).taken == 0
    reserve_uploads(CUDA)


def test_nothing_is_pinned_for_a_processor(monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pytest.fail("pinned"))
    reserve_uploads(torch.device("cpu"))
    assert upload([1, 2], torch.device("cpu")).tolist() == [1, 2]


def test_the_runtime_reserves_before_it_loads(monkeypatch):
    from offload_runtime import OffloadRuntime
    from offload_runtime.loading import models as loading
    from tests.samples.tiny_models import checkpoint

    calls = []
    monkeypatch.setattr(loading, "reserve_uploads", lambda device: calls.append("reserve"))
    load = loading._Loader.__call__
    monkeypatch.setattr(
        loading._Loader, "__call__", lambda *given, **named: calls.append("load") or load(*given, **named)
    )
    with OffloadRuntime.from_pretrained(checkpoint("llama"), "none", device="cpu", context_length=32):
        assert calls == ["reserve", "load"]
