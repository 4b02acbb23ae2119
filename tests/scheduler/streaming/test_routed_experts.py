"""Mixtures of experts whose layers stream only the experts that a pass hits write the text that they write whole.

What lies in a slot where other experts should is NaN here: whoever computes with it shows.
"""

import os
import signal
from contextlib import suppress

import pytest
from transformers import CONFIG_MAPPING

from loaders.checkpoint.expert_names import ALL_EXPERTS_AT_ONCE
from loaders.checkpoint.read_spec import read_spec
from loaders.errors import ModelFilesError
from loaders.io.expert_parts import ExpertParts
from offload_runtime import OffloadRuntime
from offload_runtime.model import model
from scheduler.plan import staging
from scheduler.plan.expert_choice import ExpertChoice
from scheduler.plan.plan import Tier
from scheduler.streaming.expert_fetch import ExpertFetch
from scheduler.streaming.layer_memory import LayerMemory
from tests.fakes.fake_device import FakeStreams, fake_host
from tests.offload_runtime.generation.test_faults import interrupt_in
from tests.samples.architectures import EXPERTS
from tests.samples.quantized.packed_models import CASES, packed_model
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime, writes

pytestmark = pytest.mark.slow

NEW_TOKENS = 12
FAMILIES = sorted((EXPERTS.keys() & CONFIG_MAPPING.keys()) - ALL_EXPERTS_AT_ONCE)
SAMPLE = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe", "aria_text"]
GEMMA_4 = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 32}
PLAIN = {"context_length": 64, "tree": "none"}
TREE = {"context_length": 64, "tree": "sequoia", "tree_size": 6, "tree_depth": 3}


@pytest.fixture
def forced(monkeypatch):
    """Decides for the choice; slots hold NaN wherever they were not filled."""

    def force(decide):
        monkeypatch.setattr(ExpertChoice, "only_routed", decide)

    fill = LayerMemory._fill_slot

    def poisoned(memory, layer, slot):
        slot.fill_(0xFF)
        return fill(memory, layer, slot)

    monkeypatch.setattr(LayerMemory, "_fill_slot", poisoned)
    return force


def only_routed(choice, rows, context):
    return True


def all_experts(choice, rows, context):
    return False


def one_row_only(choice, rows, context):
    return rows == 1


def write(runtime, count=NEW_TOKENS):
    return runtime.generate(PROMPT, max_new_tokens=count, temperature=0)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_computes_with_nothing_but_the_experts_it_hits(architecture, forced):
    forced(only_routed)
    with streaming_runtime(checkpoint(architecture), **PLAIN) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = write(runtime, 5)
    assert reply.token_ids == greedy(checkpoint(architecture), PROMPT, 5)
    assert reply.stats.streamed_bytes < reply.stats.passes * runtime.plan.streamed_bytes


def test_a_family_whose_experts_are_an_option_of_its_config(forced):
    forced(only_routed)
    directory = checkpoint("gemma4_text", **GEMMA_4)
    with streaming_runtime(directory, **PLAIN) as runtime:
        reply = write(runtime)
    assert reply.token_ids == greedy(directory, PROMPT, NEW_TOKENS)
    assert reply.stats.streamed_bytes < reply.stats.passes * runtime.plan.streamed_bytes


@pytest.mark.parametrize("decide", [only_routed, all_experts, one_row_only], ids=lambda decide: decide.__name__)
@pytest.mark.parametrize("architecture", SAMPLE)
def test_trees_write_the_models_own_text(architecture, decide, forced):
    """With and without a tree, and where passes of the two kinds take turns."""
    forced(decide)
    target = checkpoint(architecture)
    expected = greedy(target, PROMPT, NEW_TOKENS)
    for draft, options in (("none", PLAIN), (perturbed(target, 0.02), TREE)):
        with streaming_runtime(target, draft, **options) as runtime:
            assert write(runtime).token_ids == expected
            again = runtime.generate([*PROMPT, *expected[:4]], max_new_tokens=4, temperature=0)
            assert again.token_ids == expected[4:8]


COMPUTE_ALL = {"llama4_text"}  # with every expert, and leave out what was not chosen afterwards


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case[0] in {*EXPERTS} - COMPUTE_ALL])
def test_packed_experts_are_fetched_packed(case, forced):
    forced(only_routed)
    directory = packed_model(case)
    with streaming_runtime(directory, **PLAIN) as runtime:
        reply = write(runtime)
    assert reply.token_ids == greedy(directory / "decoded", PROMPT, NEW_TOKENS)
    assert reply.stats.streamed_bytes < reply.stats.passes * runtime.plan.streamed_bytes


@pytest.mark.parametrize("architecture", SAMPLE)
def test_one_expert_that_is_not_fetched_shows(architecture, forced, monkeypatch):
    """The control: without the bytes of one expert, in one tensor, the text is another."""
    forced(only_routed)
    of = ExpertParts.of
    monkeypatch.setattr(ExpertParts, "of", lambda parts, experts: of(parts, experts)[:-1])
    with streaming_runtime(checkpoint(architecture), **PLAIN) as runtime:
        assert not writes(runtime, PROMPT, greedy(checkpoint(architecture), PROMPT, NEW_TOKENS))


def test_what_crossed_is_counted(forced):
    """One token hits two of four experts of each layer; the first layers come as the pass before chose."""
    forced(one_row_only)
    directory = checkpoint("mixtral")
    layers = read_spec(directory).layers
    dense = sum(layer.disk_bytes - layer.expert_disk_bytes for layer in layers)
    experts = sum(layer.expert_disk_bytes for layer in layers)
    with streaming_runtime(directory, **PLAIN) as runtime:
        steps = list(runtime.stream(PROMPT, max_new_tokens=6, temperature=0))
        assert dense + experts == runtime.plan.streamed_bytes
    first, second, *rest = [step.streamed_bytes for step in steps]
    assert first >= dense + experts
    assert dense + experts // 2 <= second <= dense + experts
    assert rest and set(rest) == {dense + experts // 2}


@pytest.mark.parametrize("after", [False, True])
def test_interrupted_fetches_leave_the_next_pass_right(after, forced, monkeypatch):
    forced(only_routed)
    directory, call = checkpoint("qwen3_moe"), ExpertFetch.__call__
    expected = greedy(directory, PROMPT, NEW_TOKENS)
    with streaming_runtime(directory, **PLAIN) as runtime:
        for calls in (0, 1, 4):
            count = iter(range(calls))

            def broken(fetch, layer, slot, experts, count=count):
                last = next(count, None) is None
                sent = call(fetch, layer, slot, experts if after or not last else experts[:1])
                if last:
                    os.kill(os.getpid(), signal.SIGINT)
                return sent

            with monkeypatch.context() as patch:
                patch.setattr(ExpertFetch, "__call__", broken)
                with pytest.raises(KeyboardInterrupt):
                    runtime.generate([7, *PROMPT], max_new_tokens=NEW_TOKENS, temperature=0)
            assert write(runtime).token_ids == expected


@pytest.mark.parametrize("seconds", [0.002, 0.005, 0.01, 0.02])
def test_ctrl_c_anywhere(seconds, forced):
    forced(only_routed)
    directory = checkpoint("qwen3_moe")
    expected = greedy(directory, PROMPT, NEW_TOKENS)
    with streaming_runtime(directory, **PLAIN) as runtime:
        for _ in range(4):
            with suppress(KeyboardInterrupt), interrupt_in(seconds):
                write(runtime, 40)
            assert write(runtime).token_ids == expected


def test_a_disk_that_fails_while_experts_are_fetched(forced, monkeypatch):
    forced(only_routed)
    directory, call = checkpoint("qwen3_moe"), ExpertFetch.__call__
    with streaming_runtime(directory, **PLAIN) as runtime:
        write(runtime, 2)

        def broken(fetch, *arguments):
            with monkeypatch.context() as patch:
                patch.setattr(os, "preadv", lambda *_: 0)
                return call(fetch, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(ExpertFetch, "__call__", broken)
            for _ in range(2):
                with pytest.raises(ModelFilesError, match="the file ends at byte"):
                    runtime.generate([7, *PROMPT], max_new_tokens=4, temperature=0)
        assert write(runtime).token_ids == greedy(directory, PROMPT, NEW_TOKENS)


def test_timing_of_computing_alone_fetches_nothing(forced):
    forced(only_routed)
    directory = checkpoint("mixtral")
    with streaming_runtime(directory, **PLAIN) as runtime:
        expected = greedy(directory, PROMPT, NEW_TOKENS)
        assert write(runtime).token_ids == expected
        target = runtime._models.target.model
        before = target.streamed_total
        with target.without_streaming():
            target.cache.truncate(0)
            target.read(PROMPT, most_rows=64)
        assert target.streamed_total == before
        runtime.forget()
        assert write(runtime).token_ids == expected


def test_layers_that_stay_on_the_device_fetch_nothing(forced):
    forced(only_routed)
    directory = checkpoint("mixtral", num_hidden_layers=8)
    with streaming_runtime(directory, **PLAIN, spare=4 * read_spec(directory).layers[0].nbytes) as runtime:
        assert {*runtime.plan.tiers} == {Tier.DEVICE, Tier.DISK}
        assert write(runtime).token_ids == greedy(directory, PROMPT, NEW_TOKENS)


# A device whose copies come late


@pytest.fixture
def load(forced, monkeypatch):
    """Loads a target whose layers live in one tier beside a device of threads, in many small pieces."""
    forced(only_routed)
    monkeypatch.setattr(staging, "SPAN_BYTES", 8192)
    closing = []

    def load(architecture, tier, granted=None, slots=2, decide=only_routed, **device):
        forced(decide)
        streams = FakeStreams(inline=True, **device)
        host, pinning = fake_host(granted)

        def layer_memory(layers, planned, _, *arguments):
            tiers = [*[tier] * (len(layers) - 1), Tier.DEVICE]
            return LayerMemory(layers, tiers, slots, *arguments, streams=streams, host=host)

        monkeypatch.setattr(model, "LayerMemory", layer_memory)
        runtime = OffloadRuntime.from_pretrained(checkpoint(architecture), "none", device="cpu", **PLAIN)
        closing.append((runtime, streams, pinning))
        return runtime

    yield load
    for runtime, streams, pinning in closing:
        runtime.close()
        streams.close()
        assert not pinning.held


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
@pytest.mark.parametrize("granted", [None, 0])
@pytest.mark.parametrize("decide", [only_routed, one_row_only], ids=lambda decide: decide.__name__)
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_copies_that_come_late(load, architecture, tier, granted, decide):
    runtime = load(architecture, tier, granted, slots=3 if granted is None else 2, decide=decide, copy_seconds=0.0003)
    assert write(runtime).token_ids == greedy(checkpoint(architecture), PROMPT, NEW_TOKENS)


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_experts_that_are_not_waited_for_show(load, tier):
    """The control: only the wait for fetched experts is left out."""
    runtime = load("mixtral", tier, copy_seconds=0.002)
    expected = greedy(checkpoint("mixtral"), PROMPT, NEW_TOKENS)
    assert write(runtime).token_ids == expected
    runtime.forget()
    arrived = runtime._models.target.model._weights._expert_fetch._arrived
    arrived.wait = lambda: None
    assert not writes(runtime, PROMPT, expected)


def test_staging_that_is_still_copied_from_is_waited_for(load):
    """The control for the disk tier: read over before its copy ended, a buffer brings the wrong expert."""
    runtime = load("mixtral", Tier.DISK, copy_seconds=0.002)
    expected = greedy(checkpoint("mixtral"), PROMPT, NEW_TOKENS)
    for event in runtime._models.target.model._weights._expert_fetch._sent:
        event.synchronize = lambda: None
    assert not writes(runtime, PROMPT, expected)


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_interrupted_and_taken_up_again(load, tier):
    """Between layers, while copies of experts are still to come."""
    runtime, expected = load("mixtral", tier, copy_seconds=0.001), greedy(checkpoint("mixtral"), PROMPT, NEW_TOKENS)
    for asked in (1, 2, 5, 8):
        count = iter(range(asked))
        runtime.forget()
        stop = {"should_stop": lambda count=count: next(count, None) is None}
        done = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0, **stop).token_ids
        assert done == expected[: len(done)] and len(done) < NEW_TOKENS
        assert write(runtime).token_ids == expected


def test_with_too_little_staging_layers_come_whole(load, monkeypatch):
    """Small layers are read ahead into two buffers, of which none can be spared."""
    monkeypatch.setattr(staging, "SPAN_BYTES", 32 * 1024**2)
    runtime = load("mixtral", Tier.DISK, copy_seconds=0.0005)
    assert not runtime._models.target.model._weights.streams_experts
    reply = write(runtime)
    assert reply.token_ids == greedy(checkpoint("mixtral"), PROMPT, NEW_TOKENS)
