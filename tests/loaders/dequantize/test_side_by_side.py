"""Blocks of a weight decoded by several threads: the same values, every block once, errors out of any thread."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loaders.dequantize import plain
from loaders.dequantize.side_by_side import BLOCK_VALUES, for_each

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

from decode_speed import cases, output

OUT = torch.empty(1)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_every_format_is_decoded_alike(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCK_VALUES, "cpu", 1 << 13)
    used: set[str] = set()
    copy = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda *given: (used.add(threading.current_thread().name), copy(*given))[1]
    )
    for name, scheme, operands, _ in cases(256, 512, "cpu"):
        together, alone = (output(scheme, 256, 512, torch.float32, "cpu") for _ in range(2))
        plain.decode(scheme, operands, together)
        torch.set_num_threads(1)
        plain.decode(scheme, operands, alone)
        torch.set_num_threads(3)
        assert torch.equal(together, alone), name
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
