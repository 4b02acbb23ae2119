"""Limits how far the host runs ahead of the device."""

from collections.abc import Callable

from scheduler.streaming.streams import Event

# While the device computes one layer, the host queues the one after the next: the device never runs out of work, and
# the host reacts to events such as Ctrl-C within the time of one layer.
LAYERS_AHEAD = 2


class RunAhead:
    """Keeps the host from queueing a layer before the device has begun the layer `LAYERS_AHEAD` earlier.

    Kernel launches return at once: without a limit, the host would queue layers for seconds before it reacts again.
    """

    def __init__(self, event: Callable[[], Event]):
        self._begun = [event() for _ in range(LAYERS_AHEAD)]
        self._next = 0

    def begin_layer(self) -> None:
        """Call before a layer is queued: the host sleeps if it is too far ahead. Not during graph capture."""
        begun = self._begun[self._next]
        begun.synchronize()
        begun.record()
        self._next = (self._next + 1) % len(self._begun)
