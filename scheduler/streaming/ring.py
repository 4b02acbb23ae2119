"""The ring: layers flow through a few device slots in a fixed cyclic order, ahead of their use.

A thread fills slot after slot and does not wait for the end of a pass: while the last layers compute, while the draft
runs and while the next pass is prepared, it already fetches the first layers of the next pass. It stops only when every
slot is full. On CUDA the copies run on their own stream, and events order both directions: a slot is used after its
copy (read after write) and overwritten after the computation that used it (write after read). The thread waits for
copies, piece by piece, so that few are in flight; the computing thread waits for this thread, never for the device.
"""

import time
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
        Its result describes what it wrote; it is `filled[slot]` from acquiring the slot's layer to releasing it.
    restart: called when filling starts over at the first layer, out of turn, while nothing is being filled.
    will_fail: whether the source of the fills has already failed, ahead of them.
    on_filled: set to be told each layer, and when its fill began and ended by `time.perf_counter`, in the thread.
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
        assert len(slots) >= 2, "one slot is used while another fills"
        self._streams = streams or streams_of(slots[0].device)
        self.slots, self._fill, self._restart, self._will_fail = tuple(slots), fill, restart, will_fail
        self.filled: dict[int, Filled] = {}
        self._filled_events = [self._streams.event() for _ in slots]
        self._used_events = [self._streams.event() for _ in slots]
        self._record_all_used()  # work queued earlier may still use the slots' memory
        self.is_paused = False
        self.on_filled: Callable[[int, float, float], None] | None = None
        self._while_open = ExitStack()
        if self._streams.is_async:
            self._while_open.enter_context(quick_thread_switching())
        self._prefetcher = Prefetcher(order, len(slots), self._fill_slot, name="ring")

    def acquire(self, layer: int) -> int:
        """Wait until `layer`, which must be next in order, is in its slot; return the slot's index.

        Raises the error of a failed `fill`, and RuntimeError when the ring is closed.
        """
        if self.is_paused:
            return layer % len(self.slots)
        slot = self._prefetcher.acquire(layer)
        self._filled_events[slot].wait()
        return slot

    def release(self) -> None:
        """Call once the computation that uses the layer is queued: its slot may be refilled after that."""
        if self.is_paused:
            return
        self._used_events[self._prefetcher.oldest].record()
        self._prefetcher.release()

    def rewind(self) -> None:
        """Start over at the first layer if a pass was abandoned in the middle, or a fill failed or will fail."""
        self._prefetcher.restart(self._start_over, anyway=self._will_fail())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For the block, nothing is filled and layers use whatever the slots hold: to time computation alone."""
        self.rewind()
        self._prefetcher.wait_until_full()
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def close(self) -> None:
        """Stop the thread; waits for fills and copies in progress, so that the slots' memory can be reused."""
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
        # slots that were created in inference mode can only be written in it
        on_filled, begin = self.on_filled, 0.0
        with torch.inference_mode(), self._streams.copying():
            self._used_events[slot].wait()
            if on_filled:
                self._used_events[slot].synchronize()  # else the wait would count as the link's time
                begin = time.perf_counter()
            self.filled[slot] = self._fill(layer, self.slots[slot])
            self._filled_events[slot].record()
            if on_filled:
                self._filled_events[slot].synchronize()
                on_filled(layer, begin, time.perf_counter())
