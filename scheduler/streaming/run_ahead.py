"""How far the host runs ahead of the device."""

from collections.abc import Callable

from scheduler.streaming.streams import Event

# While the device computes one layer, the host queues the next but one: the device never runs out of work, and the host
# is never further from what it answers, such as Ctrl-C, than the time of one layer.
LAYERS_AHEAD = 2


class RunAhead:
    """Keeps the host from queueing a layer before the device has begun the layer `LAYERS_AHEAD` earlier.

    Launching kernels returns at once: unbounded, the host would queue the layers of seconds before it looks up again.
    """

    def __init__(self, event: Callable[[], Event]):
        self._begun = [event() for _ in range(LAYERS_AHEAD)]
        self._next = 0

    def begin_layer(self) -> None:
        """Called before a layer is queued. The host sleeps if it is too far ahead. Not for work being captured."""
        begun = self._begun[self._next]
        begun.synchronize()
        begun.record()
        self._next = (self._next + 1) % len(self._begun)
