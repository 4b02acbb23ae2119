"""The pretended GPU refuses what a GPU refuses, and counts what has the host wait for one."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from scheduler.streaming.host_memory import HostBuffer, HostMemory, host_memory_for
from sequoia_tree.uploads import upload
from tests.pretend_cuda import PretendCuda, PretendFault, pretend_cuda

CUDA = torch.device("cuda")


@pytest.fixture
def cuda() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device
        device.faults.clear()  # those that a test has asked for


@pytest.fixture
def host(cuda: PretendCuda) -> HostMemory:
    return host_memory_for(CUDA, None)


@pytest.mark.parametrize("inference", [False, True])
def test_tensors_hold_values_and_say_where_they_are(cuda, inference):
    with torch.inference_mode(inference):
        made = [torch.arange(6, device=CUDA), torch.tensor(range(6), device="cuda"), torch.arange(6).to(CUDA)]
        made += [torch.zeros(6, dtype=torch.int64, device="cuda").index_add_(0, made[0], made[1])]
        for tensor in made:
            assert tensor.is_cuda and tensor.device == torch.device("cuda:0") and tensor[2:4].is_cuda
            assert tensor.tolist() == tensor.cpu().tolist() == list(range(6)) and int(tensor[3]) == 3
            assert not tensor.cpu().is_cuda and tensor.to(torch.float32).to(CUDA).is_cuda
            with pytest.raises(TypeError, match="numpy"):
                tensor.numpy()


def test_what_lies_apart_is_refused(cuda):
    x = torch.ones(3, device=CUDA)
    for work in (
        lambda: x + torch.ones(3),
        lambda: torch.cat([x, torch.ones(3)]),
        lambda: x.index_select(0, torch.tensor([0])),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            work()
    assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2], "numbers come along"


@pytest.mark.parametrize(
    "draw",
    [
        lambda generator: torch.ones(3, device=CUDA).exponential_(generator=generator),
        lambda generator: torch.rand(2, device=CUDA, generator=generator),
        lambda generator: torch.ones(3, device=CUDA).multinomial(1, generator=generator),
    ],
)
def test_a_generator_of_the_cpu_is_refused(cuda, draw):
    with pytest.raises(RuntimeError, match="generator"):
        draw(torch.Generator())
    draw(torch.Generator(CUDA))


def test_draws_are_those_of_the_cpu(cuda):
    seeded = (torch.Generator(device).manual_seed(7) for device in ("cpu", CUDA))
    here, there = (torch.rand(5, device=generator.device, generator=generator) for generator in seeded)
    assert there.is_cuda and there.tolist() == here.tolist()


@pytest.mark.parametrize(
    "work, waits",
    [
        (lambda x: int(x[0]), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x[x.argmin()], 1),
        (lambda x: x.__setitem__(0, 5), 1),
        (lambda x: x[torch.tensor([0])], 1),
        (lambda x: torch.tensor([1], device=CUDA), 1),
        (lambda x: torch.ones(3).to(CUDA), 1),
        (lambda x: torch.cuda.synchronize(), 1),
        (lambda x: upload([1, 2], CUDA), 0),
        (lambda x: x.__setitem__(slice(0, 1), 5), 0),
        (lambda x: x[x[:1]], 0),
        (lambda x: x.masked_fill_(x > 1, 0).to(torch.float32).topk(2), 0),
    ],
)
def test_waits_are_counted_where_a_gpu_has_them(cuda, work, waits):
    x = torch.arange(3, device=CUDA)
    with cuda.counting() as counts:
        work(x)
    assert counts.waits.total() == waits, counts


def test_memory_is_held_as_long_as_a_view_is(cuda):
    before = cuda.held_bytes
    view = torch.empty(1000, dtype=torch.uint8, device=CUDA)[10:20].view(2, 5)
    assert cuda.held_bytes == before + 1024, "PyTorch's allocator rounds to 512"
    del view
    assert cuda.held_bytes == before


def test_a_graph_does_its_work_when_it_is_replayed(cuda):
    x, out = torch.zeros(2, device=CUDA), torch.zeros(2, device=CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x += 1
        out[:] = x.cumsum(0)
    assert x.tolist() == out.tolist() == [0, 0]
    with cuda.counting() as counts:
        graph.replay()
        x.fill_(4)
        graph.replay()
    assert (x.tolist(), out.tolist(), counts.replays) == ([5, 5], [5, 10], 2)


def test_a_graph_over_memory_that_was_freed_is_a_fault(cuda):
    """Memory that it has made itself stays its own."""
    x, out = torch.ones(2, device=CUDA), torch.zeros(2, device=CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(x[:1] * 2)
    graph.replay()
    assert out.tolist() == [2, 2]
    del x
    with pytest.raises(PretendFault, match="freed"):
        graph.replay()


def test_a_wait_breaks_a_capture(cuda):
    x = torch.zeros(2, device=CUDA)
    with pytest.raises(torch.AcceleratorError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.sum().item()
    assert cuda.faults


def _pinned(host: HostMemory, value: int) -> HostBuffer:
    buffer = host.allocate(4096)
    buffer.tensor.fill_(value)
    host.pin(buffer)
    return buffer


def test_a_copy_comes_late(cuda, host):
    """So memory that the host writes to before the copy has ended brings the wrong bytes."""
    source, place = _pinned(host, 1), torch.zeros(4096, dtype=torch.uint8, device=CUDA)
    place.copy_(source.tensor, non_blocking=True)
    source.tensor.fill_(2)
    assert place[:1].tolist() == [2]
    place.copy_(source.tensor, non_blocking=True)
    torch.cuda.synchronize()
    source.tensor.fill_(3)
    assert place[:1].tolist() == [2]


def test_pinned_memory_is_not_unregistered_while_a_copy_is_pending(cuda, host):
    source, place = _pinned(host, 1), torch.zeros(4096, dtype=torch.uint8, device=CUDA)
    place.copy_(source.tensor, non_blocking=True)
    with pytest.raises(PretendFault, match="pending"):
        host.free(source)
    source = _pinned(host, 1)
    place.copy_(source.tensor, non_blocking=True)
    torch.cuda.synchronize()
    host.free(source)


@pytest.mark.parametrize("ordered", [True, False])
def test_streams_that_no_event_orders_are_a_fault(cuda, host, ordered):
    source, place = _pinned(host, 1), torch.zeros(4096, dtype=torch.uint8, device=CUDA)
    copying, copied = torch.cuda.Stream(CUDA), torch.cuda.Event()
    copying.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(copying):
        place.copy_(source.tensor, non_blocking=True)
        copied.record()
    if ordered:
        copied.wait()
        assert (place + 1).sum().item() == 2 * 4096
    else:
        with pytest.raises(PretendFault, match="another stream"):
            place + 1


def test_a_fault_that_somebody_catches_still_fails_the_test():
    with pytest.raises(PretendFault, match="not pinned"), pretend_cuda(), suppress(PretendFault):
        torch.cuda.cudart().cudaHostUnregister(4096)
