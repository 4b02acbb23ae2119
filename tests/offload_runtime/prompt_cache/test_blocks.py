"""Texts as chains of blocks."""

from offload_runtime.prompt_cache.blocks import (
    LEAST_TOKENS,
    MOST_BYTES,
    MOST_TOKENS,
    block_tokens,
    blocks_of,
    digest,
    is_block_name,
)

ROOT = digest(b"a model")
TEXT = [*range(100)]


def names(text: list[int], root: str = ROOT, size: int = 16) -> list[str]:
    return [block.file_name for block in blocks_of(text, size, root)]


def test_blocks_cover_the_text_and_name_their_parents() -> None:
    blocks = [*blocks_of(TEXT, 16, ROOT)]
    assert [token for block in blocks for token in block.tokens] == TEXT
    assert [(block.begin, block.end) for block in blocks[-2:]] == [(80, 96), (96, 100)]
    assert [block.parent for block in blocks] == [ROOT, *(block.digest for block in blocks[:-1])]
    assert all(map(is_block_name, names(TEXT))) and len(set(names(TEXT))) == 7


def test_texts_share_the_blocks_before_they_differ() -> None:
    other = [*TEXT[:40], 7, *TEXT[41:]]
    assert [ours == theirs for ours, theirs in zip(names(TEXT), names(other))] == [True] * 2 + [False] * 5


def test_another_model_shares_none() -> None:
    assert not set(names(TEXT)) & set(names(TEXT, digest(b"another")))


def test_other_names_are_none_of_a_block() -> None:
    name = names(TEXT)[0]
    for other in (
        "",
        "model.safetensors",
        f".{name}",
        f"{name}.tmp",
        name.upper(),
        name[1:],
        f"../{name}",
        f"{name}\n",
    ):
        assert not is_block_name(other), other


def test_blocks_of_many_bytes_have_fewer_tokens() -> None:
    assert block_tokens(1) == MOST_TOKENS
    assert block_tokens(320_000) == 64 and MOST_BYTES >= 64 * 320_000  # Llama 3 70B in 16 bits
    assert block_tokens(MOST_BYTES) == LEAST_TOKENS
