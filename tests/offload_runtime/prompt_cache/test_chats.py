"""A chat that goes on after a restart reads only what is new."""

from pathlib import Path

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.chat.session import Chat
from offload_runtime.chat.terminal.screen import Screen
from offload_runtime.options.run_options import DEMO_TARGET
from offload_runtime.options.sampling_options import SamplingOptions
from offload_runtime.text.conversation import Conversation
from tests.fakes.scripted_runtime import loaded

pytestmark = pytest.mark.usefixtures("small_blocks")


def chat(where: Path, typed: list[str]) -> Chat:
    """A chat in a process of its own, as far as the runtime goes."""
    lines = iter(["/set max_new_tokens 6", *typed, "/bye"])
    sampling = SamplingOptions(temperature=0)
    with OffloadRuntime.from_pretrained(
        DEMO_TARGET, "none", "cpu", dtype="float32", prompt_cache=where / "rows"
    ) as runtime:
        conversation = Conversation(runtime.tokenizer)
        begun = Chat(loaded(runtime, conversation), sampling, Screen(), lambda prompt: next(lines), where / "last.json")
        assert begun.run() == 0
    return begun


def test_a_loaded_chat_reads_only_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    whole = chat(tmp_path / "other", ["a first message of some length", "again"])
    chat(tmp_path, ["a first message of some length"])
    goes_on = chat(tmp_path, ["/load last", "again"])
    assert goes_on.conversation.messages == whole.conversation.messages
    ours, theirs = goes_on.last_reply.stats, whole.last_reply.stats
    assert ours.prompt_tokens == theirs.prompt_tokens > theirs.prompt_tokens_read > ours.prompt_tokens_read - 4
    assert f"prompt {ours.prompt_tokens_read} of {ours.prompt_tokens} tokens" in capsys.readouterr().err
