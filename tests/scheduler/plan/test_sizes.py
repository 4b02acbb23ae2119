"""Sizes in bytes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.sizes import GIB, MIB, format_cap, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("20GiB", 20 * GIB),
        ("512MB", 512 * 10**6),
        ("1.5 GB", 1_500_000_000),
        (" 0.5gib ", GIB // 2),
        ("3M", 3 * 10**6),
        ("2TiB", 2048 * GIB),
        ("17", 17),
        ("17 B", 17),
        (12345, 12345),
        (0, 0),
    ],
)
def test_parses(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "2 Gib yte", "-1GB", "1e9", "1,5GB", "five", "2XB", -1, True, 1.5, None])
def test_refuses_with_examples(text: object) -> None:
    with pytest.raises(ValueError, match=r"is not a size: write a size as 20GiB, 512MB, 1\.5 GB"):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_996_000, "10.0 MB"),
        (999_600_000, "1.00 GB"),
        (1_711_309_824, "1.71 GB"),
        (22_490_000_000, "22.5 GB"),
        (140_950_000_000, "141 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_formats_three_digits(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


@given(st.integers(0, 10**15))
def test_a_cap_is_never_rounded_down(nbytes: int) -> None:
    cap = parse_size(format_cap(nbytes))
    assert nbytes <= cap <= nbytes + (GIB if nbytes >= GIB else MIB) // 10 + 1
