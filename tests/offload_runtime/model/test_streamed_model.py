"""Whole replies of a model whose weights come as they do to a GPU: by copies that end after they were asked for."""

import threading

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.errors import ModelFilesError
from offload_runtime.model import model
from scheduler.plan.placement import Tier
from scheduler.plan.staging import BOUNCE_BYTES
from scheduler.streaming.layer_memory import LayerMemory
from tests.fakes.fake_device import FakeStreams, fake_host
from tests.samples.adapter_samples import write_adapter
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed

LAYERS = 6
DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
TIERS = {
    "host": [HOST] * LAYERS,
    "disk": [DISK] * LAYERS,
    "mixed": [HOST, DISK, DEVICE, DISK, HOST, HOST],
}
OPTIONS = {"context_length": 96, "tree": "sequoia", "tree_size": 6, "tree_depth": 2}
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def pair():
    target = checkpoint("llama", num_hidden_layers=LAYERS)
    return target, perturbed(target, 0.02)


@pytest.fixture(scope="module")
def expected(pair):
    return greedy(pair[0], PROMPT, NEW_TOKENS)


@pytest.fixture
def load(pair, monkeypatch):
    """Loads a runtime whose target lives in given tiers beside a device of threads; checks at the end what is left."""
    threads = set(threading.enumerate())
    closing = []

    def load(tiers, granted=None, adapter=None, **device):
        streams = FakeStreams(inline=True, **device)
        host, pinning = fake_host(granted)

        def layer_memory(layers, planned, slots, *arguments):
            if len(layers) <= LAYERS:
                return LayerMemory(layers, planned, slots, *arguments)
            return LayerMemory(layers, [*tiers, DEVICE], 2, *arguments, streams=streams, host=host)

        monkeypatch.setattr(model, "LayerMemory", layer_memory)
        runtime = OffloadRuntime.from_pretrained(*pair, device="cpu", adapter=adapter, **OPTIONS)
        closing.append((runtime, streams, pinning))
        return runtime

    yield load
    for runtime, streams, pinning in closing:
        runtime.close()
        streams.close()
        assert not pinning.held
    assert set(threading.enumerate()) == threads


def write(runtime, prompt=PROMPT, **arguments):
    return runtime.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0, **arguments).token_ids


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("granted", [None, BOUNCE_BYTES + 1, 0])
def test_text_is_the_models_own(load, expected, tiers, granted):
    runtime = load(TIERS[tiers], granted, copy_seconds=0.0005)
    assert write(runtime) == expected
    assert write(runtime, [*PROMPT, *expected[:4]])[:4] == expected[4:]


@pytest.mark.parametrize("tiers", TIERS)
def test_a_copy_that_is_not_waited_for_shows_in_the_text(load, expected, tiers):
    assert write(load(TIERS[tiers], copy_seconds=0.002, forgets="compute")) != expected


@pytest.mark.parametrize("tiers", TIERS)
def test_interrupted_and_taken_up_again(load, expected, tiers):
    runtime = load(TIERS[tiers], copy_seconds=0.0005)
    for asked in (1, 8, 15, 22):
        count = iter(range(asked))
        runtime.forget()
        done = write(runtime, should_stop=lambda count=count: next(count, None) is None)
        assert done == expected[: len(done)]
        assert write(runtime, [*PROMPT, *done])[: NEW_TOKENS - len(done)] == expected[len(done) :]


def test_a_failing_disk_and_the_next_prompt(load, expected, monkeypatch):
    runtime = load(TIERS["mixed"])
    assert write(runtime) == expected
    runtime.forget()
    with monkeypatch.context() as patch:
        patch.setattr("os.preadv", lambda *_: 0)
        with pytest.raises(ModelFilesError):
            for _ in range(4):
                write(runtime)
    assert write(runtime) == expected


@pytest.mark.parametrize("tiers", TIERS)
def test_an_adapter_is_merged_in_every_tier(load, pair, tiers):
    adapter, merged = write_adapter(pair[0], ("q_proj", "down_proj"))
    reply = load(TIERS[tiers], adapter=adapter).generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(merged, PROMPT, NEW_TOKENS) != greedy(pair[0], PROMPT, NEW_TOKENS)
