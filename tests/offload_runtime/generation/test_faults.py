"""Files, memory or patience running out in any phase: an error says so, nothing is left, the next prompt is right."""

import gc
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from loaders.io.reader import WeightReader
from offload_runtime import OffloadRuntime
from offload_runtime.errors import DoesNotFitError, ModelFilesError, UsageError
from offload_runtime.planning import host_shortage
from scheduler.machine.machine import read_machine
from scheduler.plan.plan import Tier
from scheduler.streaming.layer_memory import LayerMemory
from scheduler.streaming.ring import Ring
from tests.samples.quantized.packed_models import packed_model
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

OPTIONS = {"context_length": 96, "tree": "sequoia", "tree_size": 6, "tree_depth": 2}
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def pair():
    target = checkpoint("llama", shards=True)
    return target, perturbed(target, 0.02)


@pytest.fixture(scope="module")
def expected(pair):
    return greedy(pair[0], PROMPT, NEW_TOKENS)


def write(runtime, prompt=PROMPT):
    return runtime.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0).token_ids


def held() -> tuple[set[threading.Thread], int]:
    return set(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def nothing_left_behind(pair, expected):
    """No thread and no open file, whatever happened."""
    threads, files = held()
    yield
    threads_after, files_after = held()
    assert threads_after <= threads and files_after <= files


# Shards


@pytest.mark.parametrize("fault", ["vanish", "truncate", "empty"])
def test_a_shard_that_is_lost_in_mid_pass(pair, expected, tmp_path, fault):
    """Open files outlive their names; a shard that lost its bytes is named, and read again when they are back."""
    target = shutil.copytree(pair[0], tmp_path / "target")
    shards = sorted(target.glob("*.safetensors"))
    assert len(shards) > 1
    with streaming_runtime(target, pair[1], **OPTIONS) as runtime:
        steps = runtime.stream(PROMPT, temperature=0)
        first = next(steps).token_ids
        contents = {shard: shard.read_bytes() for shard in shards}
        for shard in shards:
            shard.unlink() if fault == "vanish" else os.truncate(shard, 1000 if fault == "truncate" else 0)
        if fault == "vanish":
            assert first == expected[: len(first)]
            assert write(runtime) == expected
            return
        with pytest.raises(ModelFilesError, match=r"safetensors: bytes .* the file ends at byte"):
            list(steps)
        assert runtime.last_reply.finish_reason == "interrupted"
        for shard, content in contents.items():
            shard.write_bytes(content)
        assert write(runtime) == expected
        assert write(runtime, [*PROMPT, *expected[:3]])[:5] == expected[3:]


def test_a_disk_that_fails_in_mid_pass(pair, expected, monkeypatch):
    with streaming_runtime(*pair, **OPTIONS) as runtime:
        assert Tier.DISK in runtime.plan.tiers

        def broken(*_):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", broken)
            for _ in range(2):
                with pytest.raises(ModelFilesError, match=r"reading at byte .* failed: Input/output error"):
                    write(runtime)
        assert write(runtime) == expected


def test_a_shard_that_is_too_short_to_load(pair, tmp_path):
    target = shutil.copytree(pair[0], tmp_path / "target")
    fill = WeightReader.fill

    def late(reader, source, buffer):  # after the headers were checked
        os.truncate(source[0].file, 1000)
        fill(reader, source, buffer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightReader, "fill", late)
        with pytest.raises(ModelFilesError, match="the file ends at byte 1,000"):
            OffloadRuntime.from_pretrained(target, "none", device="cpu", context_length=96)


# Host memory


@contextmanager
def free_memory(monkeypatch, nbytes):
    machine = read_machine("cpu")
    now = SimpleNamespace(host_available=nbytes, host_total=machine.host_total)
    with monkeypatch.context() as patch:
        patch.setattr(host_shortage, "read_machine", lambda device: now)
        yield


def test_less_memory_than_planned_is_told_before_anything_is_read(pair, expected, monkeypatch):
    """The cap it names is kept, and the model then streams within it."""
    with OffloadRuntime.from_pretrained(*pair, device="cpu", **OPTIONS) as runtime:
        needed = runtime.plan.device_bytes
    monkeypatch.setattr(host_shortage, "host_budget", lambda machine, cap: machine.host_available)
    with free_memory(monkeypatch, needed - 1), monkeypatch.context() as patch:
        patch.setattr(WeightReader, "fill", lambda *_: pytest.fail("something was read"))
        with pytest.raises(DoesNotFitError, match="are free: another program") as caught:
            OffloadRuntime.from_pretrained(*pair, device="cpu", **OPTIONS)
    error = caught.value
    assert (error.needed, error.available) == (needed, needed - 1)
    (option,) = error.options
    name, cap = option.split()
    assert name == "--host-memory"
    with OffloadRuntime.from_pretrained(*pair, device="cpu", host_memory=cap, **OPTIONS) as runtime:
        assert write(runtime) == expected


def test_memory_that_is_refused_while_loading(pair, monkeypatch):
    def refuse(nbytes):
        raise MemoryError(f"{nbytes:,} bytes of host memory were refused")

    monkeypatch.setattr("scheduler.streaming.device_memory.allocate", refuse)
    with pytest.raises(DoesNotFitError, match="of memory were planned") as caught:
        OffloadRuntime.from_pretrained(*pair, device="cpu", **OPTIONS)
    assert caught.value.options[0].startswith("--host-memory ")


def test_memory_that_is_refused_when_all_is_loaded(monkeypatch):
    """That which packed weights are decoded in: the ring is running by then, and has to be stopped."""
    directory = packed_model("awq")
    with streaming_runtime(directory, context_length=96) as runtime:
        cap = runtime.plan.device_bytes

    def refuse(*_):
        raise MemoryError("256 bytes of host memory were refused")

    monkeypatch.setattr("offload_runtime.model.model.decode_before_use", refuse)
    rings, close = [], LayerMemory.close
    monkeypatch.setattr(LayerMemory, "close", lambda self: (rings.append(self.ring), close(self)))
    with pytest.raises(DoesNotFitError, match="of memory were planned"):
        OffloadRuntime.from_pretrained(directory, "none", device="cpu", device_memory=cap, context_length=96)
    assert len(rings) == 1 and rings[0] is not None


def test_where_no_cap_would_do_the_planner_says_what_would(pair, monkeypatch):
    monkeypatch.setattr(host_shortage, "host_budget", lambda machine, cap: machine.host_available)
    with free_memory(monkeypatch, 1000), pytest.raises(DoesNotFitError, match="does not fit: at least"):
        OffloadRuntime.from_pretrained(*pair, device="cpu", **OPTIONS)


# Ctrl-C


@contextmanager
def interrupt_in(seconds):
    """Ctrl-C after `seconds`, in the main thread, wherever it is then."""

    def press():
        if not ended.wait(seconds):
            os.kill(os.getpid(), signal.SIGINT)

    ended = threading.Event()
    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
        ended.set()
        thread.join()
    except KeyboardInterrupt:
        thread.join()
        raise
    finally:
        ended.set()


def test_ctrl_c_while_loading(pair, monkeypatch):
    """Pressed three times: it ends once what is being read is read."""
    fill, began = WeightReader.fill, threading.Event()

    def slow(*arguments):
        began.set()
        time.sleep(0.3)
        fill(*arguments)

    def press():
        began.wait(10)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    monkeypatch.setattr(WeightReader, "fill", slow)
    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        OffloadRuntime.from_pretrained(*pair, device="cpu", **OPTIONS)
    thread.join()


def test_a_progress_report_may_end_loading(pair):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OffloadRuntime.from_pretrained(*pair, device="cpu", progress=stop, **OPTIONS)


def test_ctrl_c_while_layers_are_decoded_for_good():
    """It ends behind the layer that is being decoded."""
    stages = []

    def press(stage, done, total):
        stages.append((stage.split()[0], done < total))
        if stages[-1] == ("decoding", True):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        OffloadRuntime.from_pretrained(packed_model("awq"), "none", device="cpu", progress=press, **OPTIONS)
    assert stages.count(("decoding", True)) == 1 and ("decoding", False) not in stages


@pytest.fixture
def unraisable(monkeypatch):
    """What was raised where Python cannot raise it, as in a finalizer; it prints such an exception and goes on."""
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda arguments: raised.append(arguments.exc_value))
    return raised


@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.006, 0.01, 0.02, 0.04])
def test_ctrl_c_anywhere_in_a_reply(pair, expected, seconds, unraisable):
    """The exception goes through, unless it hits a finalizer, where Python drops it; what follows is right."""
    with streaming_runtime(*pair, **OPTIONS) as runtime:
        for _ in range(4):
            try:
                with interrupt_in(seconds):
                    runtime.generate(PROMPT, max_new_tokens=60, temperature=0)
            except KeyboardInterrupt:
                pass
            assert write(runtime) == expected
            assert write(runtime, [*PROMPT, *expected[:4]])[:4] == expected[4:]
    gc.collect()
    assert all(isinstance(error, KeyboardInterrupt) for error in unraisable), unraisable


@pytest.mark.parametrize("where", ["acquire", "release", "rewind"])
def test_ctrl_c_between_the_ring_and_the_model(pair, expected, where, monkeypatch):
    call = getattr(Ring, where)
    with streaming_runtime(*pair, **OPTIONS) as runtime:
        for after in (False, True):
            for n in (0, 1, 3):
                count = iter(range(n))

                def broken(*arguments, after=after, count=count):
                    result = call(*arguments) if after else None
                    if next(count, None) is None:
                        raise KeyboardInterrupt
                    return result if after else call(*arguments)

                with monkeypatch.context() as patch:
                    patch.setattr(Ring, where, broken)
                    with pytest.raises(KeyboardInterrupt):
                        write(runtime, [7, *PROMPT])
                assert write(runtime) == expected


def test_ctrl_c_while_closing(pair, monkeypatch):
    """Everything is closed first; then it is raised."""
    runtime = streaming_runtime(*pair, **OPTIONS)
    close = Ring.close

    def slow(ring):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        close(ring)

    monkeypatch.setattr(Ring, "close", slow)
    with pytest.raises(KeyboardInterrupt):
        runtime.close()
    runtime.close()


def test_closing_does_not_wait_for_reads_that_nobody_wants(pair, monkeypatch):
    """A slow disk: what is in work ends, the rest of the layer is not read."""
    runtime = streaming_runtime(*pair, **OPTIONS)
    write(runtime)
    read = WeightReader._read
    reads = []

    def slow(*arguments):
        reads.append(time.sleep(0.01))
        read(*arguments)

    monkeypatch.setattr(WeightReader, "_read", slow)
    monkeypatch.setattr(WeightReader, "_grid_bytes_for", lambda *_: 4096)
    steps = runtime.stream(PROMPT, temperature=0)
    next(steps)
    before = len(reads)
    runtime.close()
    assert len(reads) - before <= 20
    with pytest.raises(UsageError, match="closed"):
        list(steps)
