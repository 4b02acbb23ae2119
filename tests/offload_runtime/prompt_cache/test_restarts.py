"""Texts over rows from disk are, token for token, those without: restarts, trees, streams, windows, other models."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from offload_runtime import GenerationRequest, OffloadRuntime
from offload_runtime.prompt_cache import block_file
from tests.pretend_cuda import pretend_cuda
from tests.samples.adapter_samples import write_adapter
from tests.samples.rows_in_8_bits import greedy_in_8_bits
from tests.samples.tiny_models import checkpoint, greedy, perturbed, streaming_runtime

pytestmark = pytest.mark.usefixtures("small_blocks")

TEXT = [(7 * i * i + 3 * i) % 90 + 5 for i in range(70)]
NEW_TOKENS = 10
TREE = {"context_length": 128, "tree_size": 6, "tree_depth": 3}


def start(
    model: Path, where: Path | None, tree: str = "none", device: str = "cpu", *, streamed: bool = False, **options: Any
) -> OffloadRuntime:
    draft = "none" if tree in ("none", "ngram") else perturbed(model, 0.02)
    options = {"tree": "auto" if tree == "ngram" else tree, **TREE, "prompt_cache": where, **options}
    if streamed:
        return streaming_runtime(model, draft, **options)
    return OffloadRuntime.from_pretrained(model, draft, device, **options)


def write(
    model: Path, where: Path | None, prompt: list[int] = TEXT, count: int = NEW_TOKENS, **options: Any
) -> tuple[list[int], int]:
    """The greedy text of a run of its own, and how many tokens of the prompt it has read."""
    with start(model, where, **options) as runtime:
        reply = runtime.generate(prompt, max_new_tokens=count, temperature=0)
    return reply.token_ids, reply.stats.prompt_tokens_read


def assert_restarts(model: Path, where: Path, **options: Any) -> None:
    """Write a text, and in a second run its continuation and a text that begins like it."""
    expected = greedy(model, TEXT, 2 * NEW_TOKENS)
    text, read = write(model, where, **options)
    assert text == expected[:NEW_TOKENS] and read == len(TEXT)
    longer = [*TEXT, *text]
    more, read = write(model, where, longer, **options)
    assert more == expected[NEW_TOKENS:] and read <= 2
    other = [*TEXT[:40], 7, 8, 9]
    text, read = write(model, where, other, **options)
    assert text == greedy(model, other, NEW_TOKENS) and read == 3


@pytest.mark.parametrize(
    ("tree", "streamed"),
    [
        *(("none", False), ("none", True), ("sequoia", False), ("sequoia", True)),
        *(("ngram", True), ("adaptive", False), ("auto", True)),
    ],
)
def test_a_restart_reads_only_what_is_new(tree: str, streamed: bool, tmp_path: Path) -> None:
    assert_restarts(checkpoint("llama"), tmp_path, tree=tree, streamed=streamed)


@pytest.mark.parametrize(
    ("architecture", "tree"),
    [
        *(("mistral", "none"), ("gemma2", "sequoia"), ("gemma3_text", "none"), ("gpt_oss", "sequoia")),
        *(("mixtral", "none"), ("phi3", "sequoia"), ("mistral", "sequoia")),
    ],
)
def test_windows_and_experts(architecture: str, tree: str, tmp_path: Path) -> None:
    assert_restarts(checkpoint(architecture), tmp_path, tree=tree)


@pytest.mark.parametrize("architecture", ["deepseek_v3", "gemma3n_text", "llama4_text", "minicpm3"])
def test_unusual_caches(architecture: str, tmp_path: Path) -> None:
    """Keys and values of different sizes, layers that share those of others, rows that count."""
    assert_restarts(checkpoint(architecture), tmp_path, streamed=True)


def test_sixteen_bits(tmp_path: Path) -> None:
    for dtype in ("bfloat16", "float16"):
        plain, _ = write(checkpoint("llama"), None, dtype=dtype)
        assert write(checkpoint("llama"), tmp_path, dtype=dtype) == (plain, len(TEXT))
        assert write(checkpoint("llama"), tmp_path, dtype=dtype)[1] <= 2


def test_several_texts_at_once(tmp_path: Path) -> None:
    prompts = [[*TEXT[: 50 + number], 7 + number] for number in range(4)]
    expected = [greedy(checkpoint("llama"), prompt, NEW_TOKENS) for prompt in prompts]
    for most_read in (None, 4):
        with start(checkpoint("llama"), tmp_path, "sequoia", streamed=True, parallel=4) as runtime:
            replies = runtime.generate_many(prompts, max_new_tokens=NEW_TOKENS, temperature=0)
        assert [reply.token_ids for reply in replies] == expected
        assert most_read is None or max(reply.stats.prompt_tokens_read for reply in replies) <= most_read


def test_the_draft_does_not_read_again_either(tmp_path: Path) -> None:
    for least in (0, len(TEXT) - 1):
        with start(checkpoint("llama"), tmp_path, "sequoia") as runtime:
            draft, loading = runtime._models.draft.model, runtime._stored.loading
            lengths = []

            def loaded(*arguments, draft=draft, loading=loading, lengths=lengths) -> Iterator[None]:
                yield from loading(*arguments)
                lengths.append(draft.cache.sequences[0].length)

            runtime._stored.loading = loaded
            runtime.generate(TEXT, max_new_tokens=1, temperature=0)
            assert lengths == [least]


@pytest.mark.parametrize(("architecture", "texts"), [("llama", 1), ("deepseek_v3", 1), ("codegen", 3)])
def test_rows_in_host_memory(architecture: str, texts: int, tmp_path: Path) -> None:
    model = checkpoint(architecture)
    expected = greedy(model, TEXT, NEW_TOKENS)
    for most_read in (len(TEXT), 1):
        with pretend_cuda(), start(model, tmp_path, "sequoia", "cuda", kv="host", parallel=texts) as runtime:
            assert runtime.plan.kv == "host"
            replies = runtime.generate_many([TEXT] * texts, max_new_tokens=NEW_TOKENS, temperature=0)
        for reply in replies:
            assert reply.token_ids == expected and reply.stats.prompt_tokens_read <= most_read


def test_rows_in_8_bits(tmp_path: Path) -> None:
    """They are kept as they are, and those of other bits are rows of another model."""
    model = checkpoint("llama")
    expected = {8: greedy_in_8_bits(model, TEXT, NEW_TOKENS), None: greedy(model, TEXT, NEW_TOKENS)}
    for bits, least in ((8, len(TEXT)), (8, 1), (None, len(TEXT)), (8, 1), (None, 1)):
        text, read = write(model, tmp_path, kv_bits=bits, tree="sequoia")
        assert text == expected[bits] and read == least


@pytest.mark.parametrize("layers", [1, 2])
def test_a_first_pass_that_was_interrupted(layers: int, tmp_path: Path) -> None:
    """It leaves a cache of which only some layers are known to have rows; then another process stores some."""
    model = checkpoint("llama")
    expected, _ = write(model, tmp_path / "theirs", streamed=True)
    with start(model, tmp_path / "ours", streamed=True) as runtime:
        target = runtime._models.target.model
        stopped = runtime.generate(TEXT, temperature=0, should_stop=lambda: target.layers_begun >= layers)
        assert stopped.finish_reason == "interrupted" and not target.cache.sequences[0].length
        shutil.copytree(tmp_path / "theirs", tmp_path / "ours", dirs_exist_ok=True)
        reply = runtime.generate(TEXT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert (reply.token_ids, reply.stats.prompt_tokens_read) == (expected, 1)


def test_wrong_rows_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: rows that the file's checksum vouches for, but another model has computed."""
    bytes_of = block_file._bytes_of
    monkeypatch.setattr(block_file, "_bytes_of", lambda rows: bytes_of(rows.roll(1, dims=1)))
    with pytest.raises(AssertionError):
        assert_restarts(checkpoint("llama"), tmp_path)


def test_a_flipped_byte_is_refused_and_said_once(tmp_path: Path) -> None:
    model = checkpoint("llama")
    expected, _ = write(model, tmp_path)
    flip(*sorted(tmp_path.rglob("*.safetensors"), key=lambda file: -file.stat().st_mtime_ns)[1:2])
    with pytest.warns(UserWarning, match=r"is left out.*checksum") as told:
        assert write(model, tmp_path) == (expected, len(TEXT) - 16)
    assert len(told) == 1
    assert write(model, tmp_path)[1] <= 2, "what was refused has been written again"


def test_a_runtime_says_once_that_files_are_damaged(tmp_path: Path) -> None:
    model = checkpoint("llama")
    prompts = [[number, *TEXT] for number in range(20, 24)]
    expected = [write(model, tmp_path, prompt)[0] for prompt in prompts]
    flip(*tmp_path.rglob("*.safetensors"))
    with pytest.warns(UserWarning, match="is left out") as told, start(model, tmp_path) as runtime:
        replies = runtime.generate_many(prompts, max_new_tokens=NEW_TOKENS, temperature=0)
    assert len(told) == 1 and [reply.token_ids for reply in replies] == expected


def flip(*files: Path) -> None:
    """One bit of each."""
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)


def changed(name: str, change: Callable[[bytes], bytes], same_time: bool = False) -> Callable[..., dict[str, Any]]:
    """A copy of the model with another content of one file."""

    def copy(model: Path, where: Path) -> dict[str, Any]:
        file = shutil.copytree(model, where / "copy") / name
        status = file.stat()
        file.write_bytes(change(file.read_bytes()))
        if same_time:
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        return {"model": file.parent}

    return copy


def other_weight(content: bytes) -> bytes:
    """The first number of the first tensor, which the fingerprint does not look at."""
    data = 8 + int.from_bytes(content[:8], "little")
    return content[:data] + b"\0\0\x80\x3f" + content[data + 4 :]


OTHERS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "weights": lambda model, where: {"model": perturbed(model, 0.02)},
    "a weight": changed("model.safetensors", other_weight),
    "all bytes": changed("model.safetensors", lambda content: content[:-2000] + bytes(2000), same_time=True),
    "config": changed("config.json", lambda content: content.replace(b"1e-06", b"1e-02"), same_time=True),
    "dtype": lambda model, where: {"dtype": "bfloat16"},
    "rotations": lambda model, where: {"rope_scaling": "linear:2"},
    "adapter": lambda model, where: {"adapter": write_adapter(model, ["k_proj"])[0]},
}


@pytest.mark.parametrize("what", OTHERS)
def test_rows_of_other_models_are_not_used(what: str, tmp_path: Path) -> None:
    model = checkpoint("llama")
    write(model, tmp_path / "rows")
    other = {"model": model, **OTHERS[what](model, tmp_path)}
    expected, _ = write(where=None, **other)
    assert write(where=tmp_path / "rows", **other) == (expected, len(TEXT))
    assert write(where=tmp_path / "rows", **other)[1] <= 2
    assert write(model, tmp_path / "rows")[1] <= 2


def test_two_adapters_differ(tmp_path: Path) -> None:
    model = checkpoint("llama")
    for number, leaf in enumerate(("k_proj", "v_proj")):
        adapter, merged = write_adapter(model, [leaf], scalings={leaf: 2.0})
        assert write(model, tmp_path, adapter=adapter) == (greedy(merged, TEXT, NEW_TOKENS), len(TEXT)), number


def test_a_recurrent_state_is_not_kept_and_said_once(tmp_path: Path) -> None:
    model = checkpoint("mamba2")
    with pytest.warns(UserWarning, match="recurrent state") as told:
        assert write(model, tmp_path)[0] == greedy(model, TEXT, NEW_TOKENS)
    assert len(told) == 1 and not [*tmp_path.rglob("*.safetensors")]


BORDER = 48
SCALINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        **{"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": BORDER},
        **{"short_factor": [1.0, 1.5, 1.0, 1.0], "long_factor": [2.0, 3.0, 4.0, 5.0]},
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_rotations_that_depend_on_the_length(kind: str, architecture: str, tmp_path: Path) -> None:
    """Rows of short and of long texts are never mixed up, whichever was written first."""
    if (architecture, kind) == ("phi3", "dynamic"):
        pytest.skip("Phi 3 has LongRoPE alone")
    model = shutil.copytree(checkpoint(architecture), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    base = {"rope_theta": config.pop("rope_parameters")["rope_theta"]}
    config["rope_parameters"] = {**base, **SCALINGS[kind]}
    config["max_position_embeddings"] = 512 if kind == "longrope" else BORDER
    if architecture == "phi3":
        config["original_max_position_embeddings"] = BORDER
    (model / "config.json").write_text(json.dumps(config))
    for number, prompt in enumerate((TEXT[:30], TEXT, TEXT[:30], TEXT[:40], TEXT)):
        plain, _ = write(model, None, prompt, count=15)
        text, read = write(model, tmp_path / "rows", prompt, count=15)
        assert text == plain, (number, len(prompt))
        assert (read < len(prompt)) == (number in (2, 3)), "only what lies below the border is kept"


def test_garbage_of_passes_without_weights_is_not_kept(tmp_path: Path) -> None:
    model = checkpoint("llama")
    expected = greedy(model, TEXT, NEW_TOKENS)
    with start(model, tmp_path, streamed=True) as runtime, runtime.without_streaming():
        runtime.generate(TEXT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert write(model, tmp_path) == (expected, len(TEXT))


def test_a_run_without_an_end_keeps_what_it_wrote(tmp_path: Path) -> None:
    """A runtime that is dropped, not closed."""
    runtime = start(checkpoint("llama"), tmp_path)
    runtime.generate(TEXT, max_new_tokens=NEW_TOKENS, temperature=0)
    del runtime
    assert write(checkpoint("llama"), tmp_path)[1] <= 2


def test_requests_of_a_server_know_what_was_cached(tmp_path: Path) -> None:
    for most_read in (len(TEXT), 2):
        with start(checkpoint("llama"), tmp_path, parallel=2) as runtime, runtime.shared_passes() as passes:
            text = passes.add(GenerationRequest.of(TEXT, max_new_tokens=3, temperature=0))
            while not text.done:
                passes.step()
            assert text.reply.stats.prompt_tokens_read <= most_read
            assert text.reply.stats.prompt_tokens == len(TEXT)
