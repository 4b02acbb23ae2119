"""The ring: layers flow through a few device slots in a fixed cyclic order, ahead of their use.

A thread fills slot after slot and never waits for the end of a pass: while the last layers compute, while the draft
works and while the next pass is prepared, it already fetches the first layers of the next pass. It stops only where
every slot is full. On CUDA the copies run on their own stream and events order both ways: a slot is computed on after
its copy (read after write), and overwritten after the computation that used it (write after read). The thread waits for
copies to end, piece by piece, so that few are in flight; who computes waits for the thread, and never for the device.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from scheduler.streaming.prefetch import Prefetcher, nothing, quick_thread_switching
from scheduler.streaming.streams import Streams, streams_of

Filled = TypeVar("Filled")


class Ring(Generic[Filled]):
    """Slots that hold `order[0], order[1], …, order[0], …` as they are consumed.

    order: the layers in the order in which every pass uses them.
    slots: device buffers, each large enough for any layer.
    fill: `fill(layer, slot)` writes a layer's bytes into a slot; called in a thread with the copying stream active.
    What
        it returns says what it wrote: `filled[slot]`, from acquiring the slot's layer to releasing it.
    restart: called when the next layer filled is the first again, out of turn; nothing is being filled then.
    will_fail: whether what is filled from has failed already, ahead of the fills.
    """

    def __init__(
        self,
        order: Sequence[int],
        slots: Sequence[Tensor],
        fill: Callable[[int, Tensor], Filled],
        streams: Streams | None = None,
        restart: Callable[[], None] = nothing,
        will_fail: Callable[[], bool] = bool,
    ):
        assert len(slots) >= 2, "one slot computes while another fills"
        self._streams = streams or streams_of(slots[0].device)
        self.slots, self._fill, self._restart, self._will_fail = tuple(slots), fill, restart, will_fail
        self.filled: dict[int, Filled] = {}
        self._filled_events = [self._streams.event() for _ in slots]
        self._used_events = [self._streams.event() for _ in slots]
        self._record_all_used()  # what was queued before may still compute on memory that the slots were given
        self.is_paused = False
        self._while_open = ExitStack()
        if self._streams.is_async:
            self._while_open.enter_context(quick_thread_switching())
        self._prefetcher = Prefetcher(order, len(slots), self._fill_slot, name="ring")

    def acquire(self, layer: int) -> int:
        """Wait until `layer`, which must be next in order, is in its slot; return the slot's index.

        Raises what `fill` raised, if it failed, and RuntimeError when the ring is closed.
        """
        if self.is_paused:
            return layer % len(self.slots)
        slot = self._prefetcher.acquire(layer)
        self._filled_events[slot].wait()
        return slot

    def release(self) -> None:
        """The computation that uses the layer acquired last has been queued: its slot may be refilled behind it."""
        if self.is_paused:
            return
        self._used_events[self._prefetcher.oldest].record()
        self._prefetcher.release()

    def rewind(self) -> None:
        """Start over at the first layer, if a pass was abandoned in the middle or a fill failed, or is going to."""
        self._prefetcher.restart(self._start_over, anyway=self._will_fail())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For the block, layers find whatever the slots hold and nothing is read: computation alone can be timed."""
        self.rewind()
        self._prefetcher.wait_until_full()
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def close(self) -> None:
        """Stop the thread; waits for fills and copies under way, so that the slots' memory may go to others."""
        self._prefetcher.close()
        self._while_open.close()
        self._streams.synchronize()

    def _start_over(self) -> None:
        self._record_all_used()  # the abandoned pass may still compute on any slot
        self._restart()

    def _record_all_used(self) -> None:
        for event in self._used_events:
            event.record()

    def _fill_slot(self, layer: int, slot: int) -> None:
        # slots that were made in inference mode can be written in it alone
        with torch.inference_mode(), self._streams.copying():
            self._used_events[slot].wait()
            self.filled[slot] = self._fill(layer, self.slots[slot])
            self._filled_events[slot].record()
