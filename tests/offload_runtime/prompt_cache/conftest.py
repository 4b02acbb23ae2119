"""Blocks so small that tiny models have several in a text."""

import pytest

from offload_runtime.prompt_cache import blocks, prompt_cache, stored_rows


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MOST_TOKENS", 16)
    monkeypatch.setattr(stored_rows, "LEAST_READ", 4)
    monkeypatch.setattr(stored_rows, "GRACE_SECONDS", 1e9)  # however slow this machine is
    monkeypatch.setattr(prompt_cache, "LEAST_KEPT", 8)
