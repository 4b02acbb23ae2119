"""On a GPU: pinned memory is pinned and exact, refusals are survived, and the ring orders real streams.

What is compared are bytes, on the device, after computations that take long enough for a missing wait to show.
"""

import threading

import pytest
import torch

from loaders.io.byte_ranges import ByteRange
from loaders.io.reader import WeightReader
from loaders.sizes import MIB
from offload_runtime import OffloadRuntime
from scheduler.plan.placement import Tier
from scheduler.streaming.copy_window import CopyWindow
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.host_memory import CudaPinning, HostMemory, host_memory_for
from scheduler.streaming.layer_memory import LayerMemory, UnitBytes
from scheduler.streaming.ring import Ring
from scheduler.streaming.streams import CudaStreams
from sequoia_tree.uploads import upload
from tests.samples.quantized.packed_models import packed_model
from tests.samples.tiny_models import PROMPT, checkpoint, perturbed

pytestmark = pytest.mark.gpu

UNIT_BYTES = 24 * MIB + 4096 * 3 + 256
LAYERS = 6
DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
TIERS = {"host": [HOST] * LAYERS, "disk": [DISK] * LAYERS, "mixed": [HOST, DISK, DEVICE, DISK, HOST, DEVICE]}
# cudaHostRegister of pages that no longer exist fails as a limit on pinned memory does, and leaves an error behind.
NOT_MAPPED = 4096


@pytest.fixture(scope="module")
def device():
    return torch.device("cuda")


@pytest.fixture
def host(device):
    host = host_memory_for(device, None)
    yield host
    host.close()


class RefusedPinning(CudaPinning):
    """Asks CUDA for what cannot be granted once `limit` bytes are pinned, as WSL2 refuses more than it has."""

    def __init__(self, device, limit):
        super().__init__(device)
        self.left, self.refusals = limit, 0

    def register(self, address, nbytes):
        if nbytes <= self.left:
            self.left -= nbytes
            return super().register(address, nbytes)
        self.refusals += 1
        granted = super().register(NOT_MAPPED, nbytes)
        assert not granted
        return granted


def test_registered_memory_is_pinned_exact_and_copies_right(device, host):
    buffer = host.allocate(UNIT_BYTES)
    buffer.tensor.copy_(torch.arange(UNIT_BYTES) % 251)
    assert not buffer.tensor.is_pinned()
    host.pin(buffer)
    assert buffer.pinned and buffer.tensor.is_pinned() and buffer.tensor[-1:].is_pinned()
    assert host.pinned_bytes == UNIT_BYTES + -UNIT_BYTES % 4096
    place = torch.empty(UNIT_BYTES, dtype=torch.uint8, device=device)
    place.copy_(buffer.tensor, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(place.cpu(), buffer.tensor)
    host.free(buffer)
    assert not buffer.tensor.is_pinned() and host.pinned_bytes == 0


def test_a_copy_out_of_registered_memory_is_asynchronous(device, host):
    """The call returns while the stream still sleeps."""
    buffer = host.allocate(UNIT_BYTES)
    host.pin(buffer)
    place = torch.empty(UNIT_BYTES, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    place.copy_(buffer.tensor, non_blocking=True)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


def test_a_refusal_leaves_no_error_behind(device):
    pinning = CudaPinning(device)
    assert not pinning.register(NOT_MAPPED, 4096)
    assert torch.ones(4, device=device).sum().item() == 4  # else this launch fails with the error of the refusal
    torch.cuda.synchronize()


@pytest.fixture
def weights(tmp_path):
    path, contents, layers, stored = tmp_path / "model.safetensors", [], [], 0
    with path.open("wb") as file:
        for index in range(LAYERS):
            generator = torch.Generator().manual_seed(index)
            contents.append(torch.randint(256, (UNIT_BYTES,), dtype=torch.uint8, generator=generator))
            file.write(contents[-1].numpy().tobytes())
            layers.append(UnitBytes(UNIT_BYTES, (ByteRange(path, stored, UNIT_BYTES, "U8", 0, torch.uint8),)))
            stored += UNIT_BYTES
    return path, layers, [content.to("cuda") for content in contents]


def wrong_bytes(memory, contents, passes=3):
    """How many bytes of how many computations were wrong; every computation is late, and the host never waits."""
    counts = []
    for _ in range(passes):
        memory.ring.rewind()
        for layer, content in enumerate(contents):
            if layer in memory.resident:
                counts.append((memory.resident[layer] != content).sum())
                continue
            slot = memory.ring.slots[memory.ring.acquire(layer)]
            torch.cuda._sleep(5_000_000)
            counts.append((slot != content).sum())
            memory.ring.release()
    return int(torch.stack(counts).sum())


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("limit", [None, 112 * MIB, 0])
def test_every_tier_brings_the_right_bytes(device, weights, tiers, limit):
    path, layers, contents = weights
    pinning = CudaPinning(device) if limit is None else RefusedPinning(device, limit)
    host = HostMemory(pinning)
    memory = LayerMemory(layers, TIERS[tiers], 2, WeightReader([path]), DeviceMemory(device), host=host)
    try:
        assert wrong_bytes(memory, contents) == 0
        for until in (1, 4):  # abandoned
            memory.ring.rewind()
            for layer in range(until):
                if layer not in memory.resident:
                    memory.ring.acquire(layer)
                    torch.cuda._sleep(5_000_000)
                    memory.ring.release()
            assert wrong_bytes(memory, contents, passes=1) == 0
        assert limit is None or limit > 0 or pinning.refusals
    finally:
        memory.close()
    assert host.pinned_bytes == 0


class Forgetful:
    """An event that orders nothing."""

    def record(self): ...

    def wait(self): ...

    def synchronize(self): ...


@pytest.mark.parametrize("forgets", [None, "filled", "used"])
def test_real_streams_race_where_an_event_is_left_out(device, host, forgets):
    """Long copies are read too early without the one event, slots in use are overwritten without the other."""
    buffers = [host.allocate(64 * MIB) for _ in range(4)]
    for value, buffer in enumerate(buffers):
        buffer.tensor.fill_(value)
        host.pin(buffer)
    streams = CudaStreams(device)
    slots = [torch.full((64 * MIB,), 255, dtype=torch.uint8, device=device) for _ in range(2)]
    torch.cuda.synchronize()

    def fill(layer, slot):
        streams.copy(slot, buffers[layer].tensor)

    ring = Ring(range(4), slots, fill, streams)
    if forgets:
        setattr(ring, f"_{forgets}_events", [Forgetful() for _ in slots])
    counts = []
    for _ in range(3):
        for layer in range(4):
            slot = ring.slots[ring.acquire(layer)]
            if forgets != "filled":
                torch.cuda._sleep(20_000_000)
            counts.append((slot != layer).sum())
            ring.release()
    wrong = int(torch.stack(counts).sum())
    ring.close()
    assert (wrong > 0) == (forgets is not None)


def test_uploads_go_through_while_a_layer_is_copied(device, host):
    """1 GiB is 64 pieces; an upload waits for two of them at most."""
    buffer = host.allocate(1024 * MIB)
    buffer.tensor.fill_(1)
    host.pin(buffer)
    place = torch.empty(1024 * MIB, dtype=torch.uint8, device=device)
    streams = CudaStreams(device)
    window = CopyWindow(streams)
    torch.cuda.synchronize()

    def copy():
        with torch.inference_mode(), streams.copying():
            window.copy(place, buffer.tensor)

    thread, uploaded = threading.Thread(target=copy), 0
    thread.start()
    while thread.is_alive():
        upload([1, 2, 3], device)
        torch.cuda.current_stream().synchronize()
        uploaded += thread.is_alive()
    streams.synchronize()
    assert uploaded >= 5 and bool((place == 1).all())


@pytest.mark.parametrize("tiers", ["host", "disk"])
def test_a_streamed_pass_never_waits_on_the_host(device, weights, tiers):
    path, layers, contents = weights
    memory = LayerMemory(layers, TIERS[tiers], 2, WeightReader([path]), DeviceMemory(device))
    try:
        assert wrong_bytes(memory, contents, passes=1) == 0
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(2):
                memory.ring.rewind()
                for layer in range(LAYERS):
                    memory.ring.acquire(layer)
                    torch.cuda._sleep(1_000_000)
                    memory.ring.release()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    finally:
        memory.close()


def test_a_whole_models_pass_never_waits_on_the_host(device):
    """Layers, attention, mask and cache of a target that streams: one forward pass over a tree."""
    from offload_runtime.model.rows import text_rows

    target = checkpoint("llama", num_hidden_layers=6)
    options = {"device": "cuda", "context_length": 96, "device_memory": streaming_cap(target)}
    with OffloadRuntime.from_pretrained(target, "none", **options) as runtime:
        assert Tier.HOST in runtime.plan.tiers
        streamed = runtime._models.target.model
        tokens = torch.tensor(PROMPT, device=device)
        rows = text_rows(0, len(tokens), device)
        streamed.forward(tokens, rows, 1)
        streamed.cache.rollback()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            streamed.forward(tokens, rows, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_streamed_text_is_the_text_of_the_model_on_the_device(device):
    target = checkpoint("llama", num_hidden_layers=6)
    draft = perturbed(target, 0.02)
    options = {"device": "cuda", "context_length": 96, "tree": "sequoia", "tree_size": 6, "tree_depth": 2}
    with OffloadRuntime.from_pretrained(target, "none", device="cuda", context_length=96) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DEVICE}
        expected = runtime.generate(PROMPT, max_new_tokens=16, temperature=0).token_ids
    cap = streaming_cap(target, draft, **options)
    for host_memory in (None, host_cap(target, draft, cap, options)):
        limits = {"device_memory": cap, "host_memory": host_memory}
        with OffloadRuntime.from_pretrained(target, draft, **options, **limits) as runtime:
            assert Tier.DEVICE not in runtime.plan.tiers
            assert (Tier.DISK in runtime.plan.tiers) == (host_memory is not None)
            assert runtime.generate(PROMPT, max_new_tokens=16, temperature=0).token_ids == expected


@pytest.mark.parametrize("case", ["awq", "int4 groups", "nf4", "FP8 blocks", "MXFP4"])
def test_packed_layers_give_the_text_of_the_decoded_weights(case):
    """Decoded once, while they are loaded; and decoded before every use, out of the ring."""
    directory = packed_model(case)
    texts = []
    options = {"device": "cuda", "dtype": "float32", "context_length": 96}
    cap = streaming_cap(directory, dtype="float32")
    for model, limits in ((directory / "decoded", {}), (directory, {}), (directory, {"device_memory": cap})):
        with OffloadRuntime.from_pretrained(model, "none", **options, **limits) as runtime:
            assert (Tier.DEVICE in runtime.plan.tiers) == (not limits)
            assert (runtime.plan.decoded.target > 0) == (model == directory and not limits)
            texts.append(runtime.generate(PROMPT, max_new_tokens=16, temperature=0).token_ids)
    assert texts[0] == texts[1] == texts[2]


def test_what_is_replaced_goes_back_to_the_driver(device, weights):
    """PyTorch would keep it, since nothing that is asked for next fits in."""
    path, layers, _ = weights
    device_memory = DeviceMemory(device)
    memory = LayerMemory(layers, [DEVICE] * LAYERS, 0, WeightReader([path]), device_memory)
    try:
        before = torch.cuda.memory_reserved()
        for layer in range(LAYERS):
            memory.replace(layer, device_memory.empty(2 * UNIT_BYTES))
        assert torch.cuda.memory_reserved() - before < 1.5 * LAYERS * UNIT_BYTES
    finally:
        memory.close()


def streaming_cap(target, draft="none", **options) -> int:
    """The least device memory that the planner accepts: every layer streams."""
    return least(lambda cap: {"device_memory": cap}, target, draft, {"device": "cuda", "context_length": 96, **options})


def host_cap(target, draft, device_memory, options) -> int:
    """The least host memory beside it: every layer comes from disk."""
    return least(lambda cap: {"device_memory": device_memory, "host_memory": cap}, target, draft, options)


def least(limits, target, draft, options) -> int:
    from pathlib import Path

    from offload_runtime.errors import DoesNotFitError
    from offload_runtime.options.run_options import Options
    from offload_runtime.planning.planning import prepare

    cap = 1
    while True:
        try:
            prepare(Options(Path(target), None if draft == "none" else Path(draft), **options, **limits(cap)))
        except DoesNotFitError as error:
            assert error.needed > cap
            cap = error.needed
        else:
            return cap
