"""Key and value rows of all layers in host memory, which come to the device with their layer.

In every pass the rows of its texts are copied to one of two device buffers while the layer before is computed, and the
rows that the pass adds are copied back while the next layer is computed. Copies run on a stream of their own; events
order them against the computation in both directions, and the host waits for none of them until rows are moved.

Rows lie one after the other, with all that a row consists of side by side, so that the rows of a text are one copy.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from scheduler.plan.memory import KV_BUFFERS
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.host_memory import HostBuffer, HostMemory, host_memory_for
from scheduler.streaming.streams import Streams, streams_of

RowRange = tuple[int, int]
"""Rows from the first to behind the last."""


Tables = Mapping[str, Tensor]
"""What the rows of a layer consist of, by name; each ``[1, heads, rows, any]``."""


@dataclass(frozen=True)
class _Part:
    """What one table holds of a row: the number of heads, and the values of each."""

    heads: int
    width: int
    dtype: torch.dtype

    @classmethod
    def of(cls, table: Tensor) -> "_Part":
        return cls(table.shape[1], table.shape[3], table.dtype)

    @property
    def nbytes(self) -> int:
        return self.heads * self.width * self.dtype.itemsize

    def view(self, rows: Tensor) -> Tensor:
        """Bytes ``[rows, nbytes]`` as ``[1, heads, rows, width]``."""
        return rows.view(self.dtype).unflatten(1, (self.heads, self.width)).transpose(0, 1)[None]


@dataclass(frozen=True)
class _Row:
    """The parts of a row side by side, those of the widest values first, and its bytes, so that all are aligned."""

    parts: Mapping[str, _Part]
    nbytes: int

    @classmethod
    def of(cls, tables: Tables) -> "_Row":
        widest_first = sorted(tables.items(), key=lambda item: -item[1].itemsize)
        parts = {name: _Part.of(table) for name, table in widest_first}
        unit = widest_first[0][1].itemsize
        return cls(parts, -(-sum(part.nbytes for part in parts.values()) // unit) * unit)

    def tables(self, rows: Tensor) -> Tables:
        """Views of bytes ``[rows, nbytes]``."""
        ends = accumulate(part.nbytes for part in self.parts.values())
        return {
            name: part.view(rows[:, end - part.nbytes : end]) for (name, part), end in zip(self.parts.items(), ends)
        }


@dataclass
class _Layer:
    """host: the rows of a layer. views: its tables in every device buffer and in `host`; none before the first use,
    which says what a row is like."""

    host: HostBuffer
    row: _Row | None = None
    views: tuple[Tables, ...] = ()

    def make_views(self, rows: int, buffers: Sequence[Tensor]) -> None:
        if self.row is None:
            return
        nbytes = len(self.host.tensor)
        memories = [memory[:nbytes].view(rows, -1) for memory in (*buffers, self.host.tensor)]
        self.views = tuple(self.row.tables(memory) for memory in memories)


class TravellingRows:
    """The rows of `layers` layers, each with room for `rows` of them; a pass uses the layers in order, each once.

    row_bytes: of one layer; allocated and pinned at once. A layer that turns out to need more or less is allocated anew
    when it is first used. Raises MemoryError if the host has less.
    """

    def __init__(
        self, layers: int, rows: int, row_bytes: int, streams: Streams, host: HostMemory, memory: DeviceMemory
    ):
        self._rows, self._streams, self._host, self._memory = rows, streams, host, memory
        try:
            self._layers = [_Layer(self._allocated(rows * row_bytes)) for _ in range(layers)]
            self._buffers = self._made_buffers(rows * row_bytes)
        except BaseException:
            host.close()
            raise
        self._filled = [streams.event() for _ in range(KV_BUFFERS)]
        self._used = [streams.event() for _ in range(KV_BUFFERS)]
        self._in_use: Sequence[RowRange] = ()
        self._added: Sequence[RowRange] = ()
        self._next = 0  # the layer that is used next in the current pass
        self._settled = True
        self.crossed_bytes = 0  # copied to the device so far

    @contextmanager
    def one_pass(self, in_use: Sequence[RowRange], added: Sequence[RowRange]) -> Iterator[None]:
        """Surrounds a pass that reads the rows `in_use` and adds the rows `added`, of all its texts."""
        self._in_use, self._added, self._next = in_use, added, 0
        self._settled = False
        for event in self._used:
            event.record()  # what was queued before may still use the buffers
        for layer in range(min(KV_BUFFERS, len(self._layers))):
            self._fetch(layer)
        yield
        self._finish(self._next - 1)

    def arrive(self, layer: int, new: Tables) -> Tables:
        """The tables of the layer, which must be next, on the device, for new rows like `new`: views of all rows, of
        which only those of the pass hold values. Work queued from now on finds them there."""
        assert layer == self._next, "layers are used in order"
        self._finish(layer - 1)
        one, slot = self._layers[layer], layer % KV_BUFFERS
        if not one.views:
            self._begin(one, new)
        if layer:
            self._fetch(layer - 1 + KV_BUFFERS)
        self._next += 1
        self._filled[slot].wait()
        return one.views[slot]

    def on_host(self, layer: int) -> Tables:
        """The tables of the layer in host memory, to be read and written between passes. Waits for copies."""
        if not self._settled:
            self._streams.synchronize()
            self._settled = True
        return self._layers[layer].views[-1]

    def close(self) -> None:
        """Wait for copies, then free all rows."""
        self._streams.synchronize()
        self._layers.clear()
        self._buffers.clear()
        self._host.close()

    def _finish(self, layer: int) -> None:
        """The computation that uses the layer is queued: copy what it has added to the host, once it is done."""
        if layer < 0:
            return
        slot, one = layer % KV_BUFFERS, self._layers[layer]
        self._used[slot].record()
        with self._streams.copying():
            self._used[slot].wait()
            for rows in self._added:
                part = self._bytes_of(one, rows)
                self._streams.copy(one.host.tensor[part], self._buffers[slot][part])

    def _fetch(self, layer: int) -> None:
        """Copy the rows of the pass to the layer's buffer, once what uses that is done."""
        if layer >= len(self._layers):
            return
        slot, one = layer % KV_BUFFERS, self._layers[layer]
        with torch.inference_mode(), self._streams.copying():
            self._used[slot].wait()
            for rows in self._in_use:
                part = self._bytes_of(one, rows)
                self._streams.copy(self._buffers[slot][part], one.host.tensor[part])
                self.crossed_bytes += part.stop - part.start
            self._filled[slot].record()

    def _bytes_of(self, layer: _Layer, rows: RowRange) -> slice:
        row_bytes = len(layer.host.tensor) // self._rows
        return slice(rows[0] * row_bytes, rows[1] * row_bytes)

    def _allocated(self, nbytes: int) -> HostBuffer:
        buffer = self._host.allocate(nbytes)
        buffer.tensor.zero_()  # by all threads: pages that are there are pinned faster
        self._host.pin(buffer)
        return buffer

    def _made_buffers(self, nbytes: int) -> list[Tensor]:
        """Zeroed: attention may multiply rows that no pass has filled by a weight of 0, and 0 × NaN would be NaN."""
        return [self._memory.empty(nbytes).zero_() for _ in range(KV_BUFFERS)]

    def _begin(self, one: _Layer, new: Tables) -> None:
        """The first use of a layer, in a first pass, which has no rows to copy yet."""
        one.row = _Row.of(new)
        nbytes = self._rows * one.row.nbytes
        if len(one.host.tensor) != nbytes:
            self._host.free(one.host)
            one.host = self._allocated(nbytes)
        if len(self._buffers[0]) < nbytes:
            self._streams.synchronize()
            self._memory.remove(KV_BUFFERS * len(self._buffers[0]))
            self._buffers = self._made_buffers(nbytes)
        for layer in self._layers:
            layer.make_views(self._rows, self._buffers)


@dataclass(frozen=True)
class RowsOnHost:
    """The KV rows lie in host memory. token_bytes: of all layers. pinned_limit: as for layers, before these."""

    token_bytes: int
    pinned_limit: int | None = None

    def rows(self, memory: DeviceMemory, layers: int, count: int) -> TravellingRows:
        """`count` rows of `layers` layers, for the device of `memory`. Raises MemoryError if the host has less."""
        host = host_memory_for(memory.device, self.pinned_limit)
        return TravellingRows(layers, count, self.token_bytes // layers, streams_of(memory.device), host, memory)
