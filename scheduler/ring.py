"""The ring: units flow through a few device slots in a fixed cyclic order, ahead of their use.

One reader thread fills slot after slot and never waits for the end of a pass: while the last units compute, while the
draft works and while the next pass is prepared, it already fetches the first units of the next pass. It stops only
where every slot is full. On CUDA the copies run on their own stream and events order both ways: a slot is computed on
after its copy (read after write), and overwritten after the computation that used it (write after read).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from scheduler.streams import CopyStream


class Ring:
    """Slots that hold `order[0], order[1], …, order[0], …` as they are consumed.

    order: the units in the order in which every pass uses them.
    slots: device buffers, each large enough for any unit.
    fill: `fill(unit, slot)` writes a unit's bytes into a slot; called in the reader thread with the copy stream active.
    """

    def __init__(self, order: Sequence[int], slots: Sequence[Tensor], fill: Callable[[int, Tensor], None]):
        assert order and len(slots) >= 2, "one slot computes while another fills"
        self._order, self.slots, self._fill = tuple(order), tuple(slots), fill
        self._stream = CopyStream(slots[0].device)
        self._filled_events = [self._stream.event() for _ in slots]
        self._used_events = [self._stream.event() for _ in slots]
        self._record_all_used()  # what was queued before may still compute on memory that the slots were given
        self._changed = threading.Condition()
        self._filled = self._acquired = self._released = 0  # units so far; unit number k uses slot k % len(slots)
        self._filling = self._closed = self._paused = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read_ahead, name="ring", daemon=True)
        self._thread.start()

    def acquire(self, unit: int) -> int:
        """Wait until `unit`, which must be next in order, is in its slot; return the slot's index.

        Raises what `fill` raised, if it failed, and RuntimeError when the ring is closed.
        """
        if self._paused:
            return unit % len(self.slots)
        with self._changed:
            number = self._acquired
            assert self._order[number % len(self._order)] == unit, "units are used in the ring's order"
            self._changed.wait_for(lambda: self._filled > number or self._error is not None or self._closed)
            if self._filled <= number:
                raise self._error or RuntimeError("the ring is closed: no more units come")
            self._acquired += 1
        slot = number % len(self.slots)
        self._filled_events[slot].wait()
        return slot

    def release(self) -> None:
        """The computation that uses the unit acquired last has been queued: its slot may be refilled behind it."""
        if self._paused:
            return
        self._used_events[self._released % len(self.slots)].record()
        with self._changed:
            self._released += 1
            self._changed.notify_all()

    def rewind(self) -> None:
        """Start over at the first unit, if a pass was abandoned in the middle or a fill failed."""
        with self._changed:
            if self._error is None and self._acquired == self._released and self._acquired % len(self._order) == 0:
                return
            self._changed.wait_for(lambda: not self._filling)
            self._record_all_used()  # the abandoned pass may still compute on any slot
            self._filled = self._acquired = self._released = 0
            self._error = None
            self._changed.notify_all()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For the block, units find whatever the slots hold and nothing is read: computation alone can be timed."""
        self.rewind()
        with self._changed:
            self._changed.wait_for(lambda: self._filled == len(self.slots) + self._released or self._error is not None)
            if self._error is not None:
                raise self._error
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def close(self) -> None:
        """Stop the reader thread; waits for the fill in progress, so that the slots' memory may go to others."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._stream.synchronize()

    def _record_all_used(self) -> None:
        for event in self._used_events:
            event.record()

    def _read_ahead(self) -> None:
        # slots that were made in inference mode can be written in it alone
        with torch.inference_mode(), self._stream.active():
            while (number := self._next_number()) is not None:
                error = self._fill_slot(number)
                with self._changed:
                    self._filling = False
                    self._error = error
                    self._filled += error is None
                    self._changed.notify_all()

    def _next_number(self) -> int | None:
        """Wait until a slot is free; None when the ring is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._error is None and self._filled - self._released < len(self.slots))
            )
            self._filling = not self._closed
            return None if self._closed else self._filled

    def _fill_slot(self, number: int) -> BaseException | None:
        slot = number % len(self.slots)
        try:
            self._used_events[slot].wait()
            self._fill(self._order[number % len(self._order)], self.slots[slot])
            self._filled_events[slot].record()
        except BaseException as error:  # handed to the caller of acquire, whatever it is
            return error
        return None
