"""Blocks of a weight decoded by several threads: the same values, every block once, errors out of any thread."""

import threading
from collections.abc import Iterator

import pytest
import torch

from loaders.dequantize import plain
from loaders.dequantize.side_by_side import BLOCK_VALUES, for_each
from loaders.formats.schemes import Ggml
from loaders.gguf.types import BLOCKS
from tests.samples.quantized.packed_weights import WEIGHTS, packed_weight

OUT = torch.empty(1)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_every_format_is_decoded_alike(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCK_VALUES, "cpu", 1 << 10)
    used: set[str] = set()
    copy = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda *given: (used.add(threading.current_thread().name), copy(*given))[1]
    )
    weights = {case: packed_weight(case)[:3] for case in WEIGHTS}
    for kind, (values, nbytes) in BLOCKS.items():
        blocks = torch.randint(0, 256, (64, 512 // values * nbytes), dtype=torch.uint8)
        weights[kind] = Ggml(kind), {"blocks": blocks}, (64, 512)
    for name, (scheme, operands, shape) in weights.items():
        together, alone = (torch.empty(shape) for _ in range(2))
        plain.decode(scheme, operands, together)
        torch.set_num_threads(1)
        plain.decode(scheme, operands, alone)
        torch.set_num_threads(3)
        assert torch.equal(together.view(torch.int32), alone.view(torch.int32)), name  # random blocks hold NaN, too
    assert len(used) > 1, "several threads had a part in it"


@pytest.mark.parametrize("count", [0, 1, 3, 4, 100])
def test_every_part_is_worked_on_once(three_threads: None, count: int) -> None:
    done: list[int] = []
    with torch.inference_mode():
        for_each(done.append, range(count), OUT)
    assert sorted(done) == list(range(count))


@pytest.mark.parametrize("wrong", [0, 50, 99])
def test_an_error_comes_out_and_nothing_is_worked_on_after_it(three_threads: None, wrong: int) -> None:
    at_work: list[int] = []

    def work(part: int) -> None:
        at_work.append(part)
        if part == wrong:
            raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match=f"part {wrong}"):
        for_each(work, range(100), OUT)
    count = len(at_work)
    assert wrong in at_work and len(set(at_work)) == count
    for_each(at_work.append, range(100, 108), OUT)
    assert len(at_work) == count + 8, "the threads are as good as before"


def test_what_helpers_write_may_come_out_of_a_pass(three_threads: None) -> None:
    """Tensors that are made for inference, in the thread that asks, are written to in the others."""
    with torch.inference_mode():
        target = torch.zeros(64)
        for_each(lambda part: target[part].fill_(part), range(64), target)
    assert target.tolist() == list(range(64))
