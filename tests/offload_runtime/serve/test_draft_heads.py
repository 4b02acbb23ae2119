"""A model that drafts with its own head, served: texts that join and leave share passes, and each is its own."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from offload_runtime import OffloadRuntime
from offload_runtime.model.kv_cache import TreeCache
from offload_runtime.speculation.heads.head_draft import HeadDraft
from tests.fakes.served import Served
from tests.offload_runtime.exactness.test_shared_texts import PLACES, PROMPTS, TREE, to_a_neighbour
from tests.samples.mtp_models import model_with_head
from tests.samples.tiny_models import BASE, greedy

LENGTHS = [3, 18, 7, 12, 18, 5, 16, 9]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model with a head, whose tokens are words."""
    copy = tmp_path / "model"
    shutil.copytree(model_with_head("mellum"), copy)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(BASE["vocab_size"])}, "w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(copy)
    return copy


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many texts there were in each pass of the head."""
    counts, run = [], HeadDraft.run

    def counted(self, parts):
        counts.append(len(parts))
        return run(self, parts)

    monkeypatch.setattr(HeadDraft, "run", counted)
    yield counts


def answers(model: Path) -> list[list[int]]:
    """The texts of clients that all come at once, for `PLACES` places, and end after different lengths."""
    texts: list[list[int]] = [[]] * len(PROMPTS)

    def ask(number: int) -> None:
        body = {"prompt": PROMPTS[number], "temperature": 0, "max_tokens": LENGTHS[number]}
        text = served.post("/v1/completions", body).json["choices"][0]["text"]
        texts[number] = [int(word[1:]) for word in text.split()]

    with (
        OffloadRuntime.from_pretrained(model, "mtp", device="cpu", tree="adaptive", **TREE) as runtime,
        Served(runtime, queue=len(PROMPTS)) as served,
    ):
        assert runtime.parallel == PLACES
        clients = [threading.Thread(target=ask, args=(number,)) for number in range(len(PROMPTS))]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    return texts


def expected(model: Path) -> list[list[int]]:
    return [greedy(model, prompt, length) for prompt, length in zip(PROMPTS, LENGTHS, strict=True)]


def test_texts_that_share_the_heads_passes_are_their_own(model: Path, together: list[int]) -> None:
    assert answers(model) == expected(model)
    assert max(together) == PLACES


def test_rows_that_see_a_neighbour_are_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreeCache, "_places_of", to_a_neighbour)
    assert answers(model) != expected(model)
