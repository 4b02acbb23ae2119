"""GGUF headers with one bit changed: nothing that decides about weights is read as something else."""

import struct
from pathlib import Path

import pytest

from loaders.errors import ModelFilesError, OffloadError
from loaders.gguf.header import read_gguf
from loaders.gguf.model import read_gguf_checkpoint, read_gguf_config
from tests.loaders.gguf.test_gguf_config import F32, U32, changed
from tests.loaders.gguf.test_gguf_header import ARCHITECTURE, header, tensor, written
from tests.samples.gguf_samples import gguf, gguf_model

SAMPLES = ("Q8_0", "llama 3, mixed K", "qwen3", "phi3", "mixtral", "gemma3", "BF16, tied")


def read(file: Path) -> None:
    read_gguf_config(file)
    read_gguf_checkpoint(file)


def descriptions(content: bytes, file: Path) -> list[tuple[str, int, int]]:
    """Name of each tensor, where its dimensions begin, and how many it has."""
    found = []
    for one in gguf.GGUFReader(file).tensors:
        name = struct.pack("<Q", len(one.name)) + one.name.encode()
        found.append((one.name, content.index(name) + len(name) + 4, len(one.shape)))
    return found


def flips(content: bytes, at: int, nbytes: int):
    for bit in range(8 * nbytes):
        damaged = bytearray(content)
        damaged[at + bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


@pytest.mark.parametrize("case", SAMPLES)
def test_a_changed_bit_in_a_type_or_offset_is_always_noticed(case, tmp_path):
    content = gguf_model(case).read_bytes()
    read(written(tmp_path, content))
    known = descriptions(content, gguf_model(case))
    for name, at, count in [*known[:7], known[-1]]:
        kind, offset = at + 8 * count, at + 8 * count + 4
        for damaged in (*flips(content, kind, 2), *flips(content, offset, 3)):
            with pytest.raises(OffloadError):
                pytest.fail(f"{name}: {read_gguf(written(tmp_path, damaged)).tensors[name]}")


@pytest.mark.parametrize("case", ["Q8_0", "phi3", "mixtral", "gemma3"])
def test_a_changed_bit_in_a_dimension_is_always_noticed(case, tmp_path):
    content = gguf_model(case).read_bytes()
    for _, at, count in descriptions(content, gguf_model(case))[:8]:
        for damaged in flips(content, at, 2 * min(count, 1)):
            with pytest.raises(OffloadError):
                read(written(tmp_path, damaged))


COUNTS = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
          "attention.key_length", "attention.value_length", "expert_count")  # fmt: skip


@pytest.mark.parametrize(("case", "prefix"), [("Q8_0", "llama"), ("qwen3", "qwen3"), ("mixtral", "llama")])
def test_a_changed_bit_in_a_count_is_always_noticed(case, prefix, tmp_path):
    """phi3 and gemma store less twice; these have all counts confirmed by a tensor's shape."""
    content = gguf_model(case).read_bytes()
    tried = 0
    for name in COUNTS:
        key = f"{prefix}.{name}".encode()
        at = content.find(struct.pack("<Q", len(key)) + key)
        if at < 0:
            continue
        for damaged in flips(content, at + 8 + len(key) + 4, 4):
            tried += 1
            with pytest.raises(OffloadError):
                read(written(tmp_path, damaged))
    assert tried >= 6 * 32


LINE = (tensor("a", (16,)), tensor("b", (4,), offset=64), tensor("c", (8,), offset=96))
ORDER = {
    "a gap": (tensor("a", (16,)), tensor("b", (4,), offset=96), tensor("c", (8,), offset=128)),
    "another order": (LINE[1], LINE[0], LINE[2]),
    "swapped offsets": (tensor("a", (16,)), tensor("b", (4,), offset=96), tensor("c", (8,), offset=64)),
    "a smaller type": (tensor("a", (16,), 1), *LINE[1:]),
    "a smaller last type": (*LINE[:2], tensor("c", (8,), 1, offset=96)),
}


@pytest.mark.parametrize("case", ORDER)
def test_tensors_follow_each_other_as_ggml_wants_it(case, tmp_path):
    weights = b"\x01" * 64 + b"\x01" * 16 + bytes(16) + b"\x01" * 32
    whole = header((ARCHITECTURE,), LINE)
    assert list(read_gguf(written(tmp_path, whole + weights)).tensors) == ["a", "b", "c"]
    with pytest.raises(ModelFilesError, match=r"follow|overlaps|too long|values behind it"):
        read_gguf(written(tmp_path, header((ARCHITECTURE,), ORDER[case]) + weights))
    with pytest.raises(ModelFilesError, match="too long"):
        read_gguf(written(tmp_path, whole + weights + bytes(32)))


def test_a_type_that_the_alignment_would_hide_is_noticed(tmp_path):
    """Eight values of F16 take 16 bytes and are filled up to 32, which is what they need in F32."""
    weights = b"\x01" * 32 + b"\x01" * 32
    with pytest.raises(ModelFilesError, match="values behind it"):
        read_gguf(written(tmp_path, header(tensors=(tensor("a", (8,), 1), tensor("b", (8,), offset=32))) + weights))


WRONG = {
    "fewer layers": {"llama.block_count": (1, U32)},
    "more layers": {"llama.block_count": (4, U32)},
    "base 0": {"llama.rope.freq_base": (0.0, F32)},
    "base -1": {"llama.rope.freq_base": (-1.0, F32)},
    "base 1e30": {"llama.rope.freq_base": (1e30, F32)},
    "no epsilon": {"llama.attention.layer_norm_rms_epsilon": (0.0, F32)},
    "large epsilon": {"llama.attention.layer_norm_rms_epsilon": (10.0, F32)},
    "endless context": {"llama.context_length": (0xFFFFFFFF, U32)},
    "more tokens than rows": {"llama.vocab_size": (7, U32)},
    "an end that is no token": {"tokenizer.ggml.eos_token_id": (1 << 30, U32)},
    "values of another width": {"llama.attention.value_length": (4, U32)},
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_no_model_has_are_refused(case, tmp_path):
    file = changed(tmp_path, lambda values, tensors: values.update(WRONG[case]))
    with pytest.raises(ModelFilesError):
        read(file)
