"""Tests that need a GPU are skipped where there is none, and no others: whatever the checkout's folder is called."""

import pytest
import torch

from tests.conftest import pytest_collection_modifyitems


class Item:
    """What is asked of a test: its marker, and keywords that are also the names of the folders around it."""

    def __init__(self, marked: bool):
        self.keywords, self._marked, self.marks = {"gpu": True}, marked, []

    def get_closest_marker(self, name: str) -> bool:
        return self._marked

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.append(mark.name)


@pytest.mark.parametrize("there_is_one, marked, marks", [(False, True, ["skip"]), (False, False, []), (True, True, [])])
def test_marked_tests_alone_are_skipped(monkeypatch, there_is_one, marked, marks):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    item = Item(marked)
    pytest_collection_modifyitems([item])
    assert item.marks == marks
