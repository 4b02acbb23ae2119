"""Host buffers: exact sizes, what is pinned is counted, given back and in no fork; the link is measured by its way."""

import ctypes
import gc
import mmap
import os
import re
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from loaders.sizes import MIB
from scheduler.machine.data_sheets import planned_machine
from scheduler.machine.machine import read_machine
from scheduler.plan.staging import BOUNCE_BYTES
from scheduler.streaming import bandwidth
from scheduler.streaming.host_memory import HostMemory, allocate
from scheduler.streaming.link import Link
from tests.fakes.fake_device import FakeStreams, fake_host

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
    figures = bandwidth.link_figures(torch.device("cpu"))
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


def test_a_measurement_that_is_broken_off_unpins_nothing_that_is_copied_from(monkeypatch):
    streams, (host, pinning) = FakeStreams(copy_seconds=0.01), fake_host()
    monkeypatch.setattr(bandwidth, "COPY_BYTES", 2 * MIB)
    monkeypatch.setattr(bandwidth, "streams_of", lambda device: streams)
    monkeypatch.setattr(bandwidth, "host_memory_for", lambda device, limit: host)

    def interrupted(device, work):
        work()
        raise KeyboardInterrupt

    monkeypatch.setattr(bandwidth, "_seconds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bandwidth.link_figures(torch.device("cpu"))
    streams.close()
    assert not pinning.held


@pytest.mark.parametrize("fails", [False, True])
def test_a_measurement_leaves_the_devices_memory_as_it_was(fails, monkeypatch):
    calls = []

    def measure(device, dtype):
        calls.append("measure")
        if fails:
            raise torch.OutOfMemoryError("full")
        return {"flops": 1.0}

    monkeypatch.setattr(bandwidth, "recall", lambda *_: None)
    monkeypatch.setattr(bandwidth, "remember", lambda *_: None)
    monkeypatch.setattr(bandwidth, "measure_speed", measure)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    machine = planned_machine("rtx-4090", read_machine("cpu"))
    with pytest.raises(torch.OutOfMemoryError) if fails else nullcontext():
        bandwidth.with_speed(machine, "float32", lambda device, dtype: calls.append("passes") or {})
    assert calls == (["measure", "empty"] if fails else ["measure", "passes", "empty"])


# Forks


def mapping(address: int) -> str | None:
    """The flags of the pages at an address; None where there are none."""
    flags = within = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            within = start <= address < end
        elif within and line.startswith("VmFlags:"):
            flags = line.removeprefix("VmFlags:")
    return flags


needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not list its pages")


@needs_smaps
@pytest.mark.parametrize("granted", [None, 0])
def test_pinned_pages_alone_are_left_out_of_forks(granted):
    host, _ = fake_host(granted)
    buffer = host.allocate(3 * MIB + 5)
    first, last = buffer.tensor.data_ptr(), buffer.tensor.data_ptr() + 3 * MIB
    assert " dc" not in mapping(first)
    host.pin(buffer)
    assert all((" dc" in mapping(place)) == (granted is None) for place in (first, last))
    host.free(buffer)
    assert not any(" dc" in mapping(place) for place in (first, last))


@needs_smaps
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_lacks_pinned_pages_and_never_unmaps_what_lies_there():
    host, _ = fake_host()
    buffers = [host.allocate(MIB) for _ in range(2)]
    for buffer in buffers:
        buffer.tensor.fill_(7)
    host.pin(buffers[0])
    lacking, whole = (buffer.tensor.data_ptr() for buffer in buffers)
    child = os.fork()
    if child == 0:
        code = 1
        if mapping(lacking) is None and mapping(whole) is not None and int(buffers[1].tensor.sum()) == 7 * MIB:
            own = allocate_at(lacking, MIB)
            del buffer, buffers, host, _
            gc.collect()
            code = 0 if mapping(lacking) is not None and ctypes.string_at(own, 1) == b"\0" else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(int(buffer.tensor.sum()) == 7 * MIB for buffer in buffers)
    host.close()


def allocate_at(address: int, nbytes: int) -> int:
    """Map memory there, as an allocator of the fork may."""
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fixed = 0x10
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed
    return system.mmap(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
