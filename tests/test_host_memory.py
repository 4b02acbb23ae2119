"""Host buffers: exact sizes, what is pinned is counted and given back; the speed of the link is measured by its way."""

import mmap
import threading

import pytest
import torch

from scheduler import bandwidth
from scheduler.bounce import Link
from scheduler.host_memory import HostMemory, allocate
from scheduler.sizes import MIB
from scheduler.staging import BOUNCE_BYTES
from tests.fake_device import FakeStreams, fake_host

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("nbytes", [1, PAGE - 1, PAGE, PAGE + 1, 3 * MIB + 17])
def test_a_buffer_has_the_bytes_asked_for_and_the_pages_it_needs(nbytes):
    host, pinning = fake_host()
    buffer = host.allocate(nbytes)
    assert buffer.tensor.shape == (nbytes,) and buffer.tensor.dtype == torch.uint8 and not buffer.tensor.any()
    assert buffer.tensor.data_ptr() % PAGE == 0 and not pinning.held
    host.pin(buffer)
    assert buffer.pinned and sum(pinning.held.values()) == host.pinned_bytes == -(-nbytes // PAGE) * PAGE
    host.free(buffer)
    assert not buffer.pinned and not pinning.held and host.pinned_bytes == 0


def test_nothing_is_pinned_for_a_cpu_nor_of_nothing():
    host = HostMemory()
    buffer = host.allocate(100)
    host.pin(buffer)
    assert not buffer.pinned
    host, pinning = fake_host()
    empty = host.allocate(0)
    host.pin(empty)
    assert not empty.pinned and not pinning.held


def test_room_under_a_limit_goes_to_whoever_asked_first():
    host, _ = fake_host(limit=3 * PAGE)
    first, second, third = (host.allocate(size * PAGE) for size in (2, 2, 1))
    for buffer in (third, second, first):
        host.pin(buffer)
    assert (first.pinned, second.pinned, third.pinned) == (True, False, True)
    host.free(first)
    fourth = host.allocate(2 * PAGE)
    host.pin(fourth)
    assert fourth.pinned and host.pinned_bytes == 3 * PAGE


def test_a_refusal_is_the_last_word():
    host, pinning = fake_host(granted=PAGE)
    buffers = [host.allocate(size * PAGE) for size in (1, 2, 1)]
    for buffer in buffers:
        host.pin(buffer)
    assert [buffer.pinned for buffer in buffers] == [True, False, False] and pinning.asked == 2
    host.close()
    host.close()
    assert not pinning.held


def test_buffers_may_be_pinned_by_several_threads():
    host, pinning = fake_host()
    buffers = [host.allocate(PAGE) for _ in range(64)]
    threads = [threading.Thread(target=lambda part=buffers[k::4]: [*map(host.pin, part)]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert host.pinned_bytes == 64 * PAGE and all(buffer.pinned for buffer in buffers)
    host.close()
    assert not pinning.held


def test_memory_that_there_is_not_is_refused():
    with pytest.raises(MemoryError, match="were refused"):
        allocate(1 << 60)


@pytest.mark.parametrize("granted, known", [(None, 2), (BOUNCE_BYTES + MIB, 1), (0, 1)])
def test_both_ways_over_the_link_are_measured(granted, known, monkeypatch):
    streams, (host, pinning) = FakeStreams(), fake_host(granted)
    monkeypatch.setattr(bandwidth, "COPY_BYTES", 2 * MIB)
    monkeypatch.setattr(bandwidth, "streams_of", lambda device: streams)
    monkeypatch.setattr(bandwidth, "host_memory_for", lambda device, limit: host)
    figures = bandwidth._link_figures(torch.device("cpu"))
    assert set(figures) == {"pageable_bandwidth", "link_bandwidth"} if known == 2 else {"pageable_bandwidth"}
    streams.close()
    assert not pinning.held and all(rate > 0 for rate in figures.values())


def test_a_bounce_ring_carries_more_than_it_holds():
    streams, (host, _) = FakeStreams(copy_seconds=0.001), fake_host()
    link, buffer = Link(streams, host), host.allocate(BOUNCE_BYTES + 7 * MIB + 5)
    buffer.tensor.copy_(torch.arange(len(buffer.tensor)) % 251)
    place = torch.zeros_like(buffer.tensor)
    with streams.copying():
        link.send(place, buffer)
    streams.synchronize()
    assert torch.equal(place, buffer.tensor) and streams.copies == 4
    host.close()
    streams.close()
