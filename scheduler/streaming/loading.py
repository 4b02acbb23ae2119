"""Loads every layer from disk into its tier, keeping the disk busy throughout."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from loaders.io.byte_ranges import bytes_on_disk
from loaders.io.reader import WeightReader
from loaders.io.spans import Span, spans
from loaders.progress import ByteProgress
from loaders.quantize.interrupts import interrupts_deferred
from scheduler.plan.staging import LOADING_THREADS
from scheduler.streaming.host_memory import HostBuffer, HostMemory
from scheduler.streaming.link import Link
from scheduler.streaming.streams import Streams
from scheduler.streaming.tier_buffers import TierBuffers, UnitBytes

Job = Callable[[int], None]
"""One read with its copies; called with the number of the thread it runs in."""

TICK_SECONDS = 0.1


class Loader:
    """Reads layers into their allocated buffers.

    For a device that the host cannot write to, layers are read in spans, each thread into a staging buffer of its own:
    one is read while another is sent.
    """

    def __init__(self, reader: WeightReader, link: Link, streams: Streams, host: HostMemory, buffers: TierBuffers):
        self._reader, self._link, self._streams, self._host = reader, link, streams, host
        self._buffers = buffers
        self._allocated = streams.event()
        self._sent = [streams.event() for _ in range(LOADING_THREADS)]

    def load(self, layers: Sequence[UnitBytes], on_progress: ByteProgress | None) -> None:
        """Fill all buffers of the device and the host tier. Raises the error of a failed read; reading then stops.

        Pins the buffers of the host tier. If this is interrupted or fails, the reader is stopped for good.
        """
        self._allocated.record()  # work queued earlier may still use memory that now belongs to layers
        loaded = [(layers[index], buffer) for index, buffer in self._buffers.resident.items()]
        kept = [(layers[index], buffer) for index, buffer in self._buffers.distinct_host]
        total = sum(bytes_on_disk(layer.ranges) for layer, _ in (*loaded, *kept))

        def tick() -> None:
            if on_progress:
                on_progress(self._reader.bytes_read, total)

        jobs = [self._to_host(*pair) for pair in kept]
        jobs += [job for pair in loaded for job in self._to_device(*pair)]
        _work_through(jobs, LOADING_THREADS, tick, self._reader.stop)
        self._streams.synchronize()

    def _to_host(self, layer: UnitBytes, buffer: HostBuffer) -> Job:
        def job(_: int) -> None:
            self._reader.fill(layer.ranges, buffer.tensor)
            self._host.pin(buffer)

        return job

    def _to_device(self, layer: UnitBytes, target: Tensor) -> Iterator[Job]:
        if not self._streams.is_async:
            yield lambda _: self._reader.fill(layer.ranges, target)
            return
        for span in spans(layer.ranges, layer.nbytes, self._buffers.span_bytes):
            yield self._by_staging(span, target[span.start : span.stop])

    def _by_staging(self, span: Span, target: Tensor) -> Job:
        def job(thread: int) -> None:
            staging, sent = self._buffers.staging[thread], self._sent[thread]
            sent.synchronize()
            self._reader.fill(span.ranges, staging.tensor[: span.nbytes])
            with torch.inference_mode(), self._streams.copying():
                self._allocated.wait()
                self._link.send(target, staging)
                sent.record()

        return job


def _work_through(jobs: Sequence[Job], threads: int, tick: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run all jobs, started in order, each as soon as one of `threads` is free.

    `tick` is called regularly in the calling thread, and at the end. If a job or `tick` raises, or on Ctrl-C, `stop` is
    called, which lets running jobs end early. When this raises, nothing runs any more, however often Ctrl-C was
    pressed.
    """
    left = iter(jobs)  # a list iterator gives each job to exactly one thread
    halted: list[bool] = []

    def work(thread: int) -> None:
        for job in left:
            if halted:
                return
            job(thread)

    with interrupts_deferred() as check_interrupts:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="load")
        try:
            futures = [pool.submit(work, thread) for thread in range(threads)]
            running = True
            while running:
                done, pending = wait(futures, TICK_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                running = bool(pending)
                tick()
                check_interrupts()
        except BaseException:
            halted.append(True)
            stop()
            raise
        finally:
            pool.shutdown()
