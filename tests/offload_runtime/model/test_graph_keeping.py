"""Which graphs are made, kept and let go, and what happens where none can be made: with a CUDA that only pretends."""

import threading
from contextlib import contextmanager

import pytest
import torch

from offload_runtime.generation.out_of_memory import free_unused_memory
from offload_runtime.model.cuda_graphs import CudaGraphs
from offload_runtime.model.padded_passes import NotReplayable
from scheduler.streaming import device_memory
from scheduler.streaming.device_memory import DeviceMemory

SMALL, WIDE, LONG = (1, 1024), (8, 1024), (1, 1536)


class PretendedCuda:
    """Captures by noting work down, and replays by doing it again. streams: entered, and set as current."""

    def __init__(self) -> None:
        self.alive = 0
        self.emptied = 0
        self.pools: list[int] = []
        self.streams: list[object] = []
        self.refuses: Exception | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Stream:
            device = "pretended"

            def __init__(self, device: object = None) -> None:
                pass

            def wait_stream(self, other: object) -> None:
                pass

        class CUDAGraph:
            def __init__(self) -> None:
                self.work = lambda: None
                cuda.alive += 1

            def __del__(self) -> None:
                cuda.alive -= 1

            def replay(self) -> None:
                self.work()

        @contextmanager
        def graph(made: CUDAGraph, pool: int, stream: Stream, capture_error_mode: str):
            assert capture_error_mode == "thread_local"
            cuda.pools.append(pool)
            cuda.streams.append(stream)
            yield
            if cuda.refuses:
                raise cuda.refuses

        @contextmanager
        def entered(stream: Stream):
            yield

        def empty_cache() -> None:
            cuda.emptied += 1

        pools = iter(range(1000))
        monkeypatch.setattr(device_memory, "_capture_failed", threading.Event())
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        self.current = Stream()
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "stream", entered)
        monkeypatch.setattr(torch.cuda, "set_stream", self.streams.append)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))


@pytest.fixture
def cuda(monkeypatch):
    pretended = PretendedCuda()
    pretended.install(monkeypatch)
    return pretended


def test_a_shape_is_done_captured_and_then_replayed(cuda):
    done = []
    graphs = CudaGraphs(torch.device("cpu"))
    for _ in range(5):
        graphs(SMALL, lambda: done.append(1))
    assert len(done) == 2 and cuda.alive == 1  # once as it is, once while capturing; replays do not come by here
    assert cuda.streams[-1] is cuda.current


def test_graphs_of_one_key_length_share_a_pool_and_go_when_it_changes(cuda):
    graphs = CudaGraphs(torch.device("cpu"))
    for shape in (SMALL, WIDE, SMALL, LONG, LONG):
        graphs(shape, lambda: None)
    assert cuda.alive == 1 and len(cuda.pools) == 3
    assert cuda.pools[0] == cuda.pools[1] != cuda.pools[2]
    graphs(SMALL, lambda: None)
    assert cuda.alive == 1 and len(set(cuda.pools)) == 3, "a pool that was let go is not taken up again"


def test_work_that_reads_the_device_is_refused_before_it_is_captured(cuda):
    graphs = CudaGraphs(torch.device("cpu"))
    with pytest.raises(NotReplayable, match="wait"):
        graphs(SMALL, lambda: int(torch.arange(3).sum()))
    assert cuda.pools == []


@pytest.mark.parametrize("error", [RuntimeError("not permitted while capturing"), torch.OutOfMemoryError("CUDA out")])
def test_after_a_capture_that_failed_there_is_no_other(cuda, error, caplog):
    """Nor one of another model: the allocator is the process's. What is captured already is still replayed."""
    kept, graphs, done = CudaGraphs(torch.device("cpu")), CudaGraphs(torch.device("cpu")), []
    kept(SMALL, lambda: done.append(1))
    cuda.refuses = error
    with pytest.raises(NotReplayable):
        graphs(SMALL, lambda: None)
    assert cuda.streams[-1] is cuda.current
    assert "passes go on without" in caplog.text and str(error) in caplog.text
    cuda.refuses, captures = None, len(cuda.pools)
    kept(SMALL, lambda: None)
    assert len(done) == 2  # warmed up and captured, then only replayed
    for others in (kept, graphs):
        with pytest.raises(NotReplayable, match="earlier"):
            others(WIDE, lambda: None)
    assert len(cuda.pools) == captures


def test_after_a_capture_that_failed_cached_blocks_stay(cuda):
    """PyTorch 2.11 and 2.12 assert there."""
    free_unused_memory()
    assert cuda.emptied == 1
    cuda.refuses = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(NotReplayable):
        CudaGraphs(torch.device("cpu"))(SMALL, lambda: None)
    free_unused_memory()
    DeviceMemory(torch.device("cuda")).release_unused()
    assert cuda.emptied == 1


def test_memory_that_the_work_itself_lacks_is_no_refusal(cuda):
    """The plan is tightened for it; and a mistake in the work itself is nobody's refusal either."""
    for error in (torch.OutOfMemoryError("out of memory"), RuntimeError("shape")):

        def work(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            CudaGraphs(torch.device("cpu"))(SMALL, work)
        assert caught.value is error
    assert cuda.pools == []
    CudaGraphs(torch.device("cpu"))(SMALL, lambda: None)
    assert len(cuda.pools) == 1
