"""The times of trees over recurrent layers, as docs/measured.md cites them."""

import re

import pytest

from scripts import time_recurrent_trees


@pytest.mark.parametrize("kind", time_recurrent_trees.KINDS)
def test_it_times_a_tree_and_as_much_text(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_recurrent_trees, "HEADS", 2)
    monkeypatch.setattr(time_recurrent_trees, "MAMBA_HEADS", 8)
    time_recurrent_trees.main(["--kind", kind, "--runs", "2"])
    assert re.fullmatch(
        rf"{kind}: tree .* ms \(least .*\), text .* ms \(least .*\), ratio [\d.]+\n", capsys.readouterr().out
    )
