"""The chat: one prompt and out, commands, and a terminal of its own for Ctrl-C, Ctrl-D and pasted lines."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loaders.checkpoint.random_weights import SHAPES, write_random_checkpoint
from offload_runtime import OffloadRuntime
from offload_runtime.chat import main
from offload_runtime.chat.session import Chat
from offload_runtime.chat.terminal.screen import Screen
from offload_runtime.options.progress import LoadingBar
from offload_runtime.options.sampling_options import SamplingOptions
from offload_runtime.text.conversation import Conversation
from tests.fakes.chat_terminal import Terminal
from tests.fakes.scripted_runtime import BROKEN, STORY, ScriptedRuntime, chat_with, loaded, run_chat
from tests.samples.tokenizer_samples import byte_level, with_template

ROOT = Path(__file__).resolve().parents[3]


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.conversation.messages]


# One prompt and out


def test_a_prompt_is_answered_on_stdout_and_measured_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_chat(ScriptedRuntime(), ["-p", "hi"]) == 0
    output = capsys.readouterr()
    assert output.out == "hello world\n"
    assert re.search(r"\d+ tokens · 1.3 tok/s · first token 4.9 s · 2.0 tokens/pass · context \d+/4096", output.err)
    assert "demonstration" in output.err


def test_quiet_leaves_the_reply(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_chat(ScriptedRuntime(), ["-p", "hi", "--quiet"]) == 0
    assert capsys.readouterr() == ("hello world\n", "")


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = ScriptedRuntime([STORY])
    assert run_chat(runtime, ["-p", "hi", "--json", "--seed", "7"]) == 0
    output = capsys.readouterr()
    content = json.loads(output.out)
    assert {"text", "token_ids", "finish_reason", "stats", "plan"} <= set(content)
    assert (content["text"], content["finish_reason"], content["seed"]) == (STORY, "stop", 7)
    assert runtime.tokenizer.decode(content["token_ids"], skip_special_tokens=True) == STORY
    assert output.out.count("\n") == 1 and output.err == ""


THOUGHTFUL = "<think>\nAdd \x1b[31mthem.\n</think>\n\nFour."
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def test_thoughts_are_written_beside_the_reply(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_chat(ScriptedRuntime([THOUGHTFUL]), ["-p", "hi"]) == 0
    output = capsys.readouterr()
    assert output.out == "Four.\n" and "Add \x1b[31mthem.\n\n" in output.err
    assert run_chat(ScriptedRuntime(["<think>Add"]), ["-p", "hi"]) == 0
    output = capsys.readouterr()
    assert output.out == "" and "Add\n" in output.err


@pytest.mark.parametrize("arguments", [["--thinking", "hide"], ["--quiet"], ["--thinking", "off"]])
def test_thoughts_can_be_hidden(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_chat(ScriptedRuntime([THOUGHTFUL]), ["-p", "hi", *arguments]) == 0
    output = capsys.readouterr()
    assert output.out == "Four.\n" and "them" not in output.err
    assert ("has no switch for thinking" in output.err) == ("off" in arguments)


def test_json_has_the_thoughts_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_chat(ScriptedRuntime([THOUGHTFUL]), ["-p", "hi", "--json"]) == 0
    output = capsys.readouterr()
    content = json.loads(output.out)
    assert (content["text"], content["reasoning"]) == ("Four.", "Add \x1b[31mthem.") and output.err == ""


def test_thinking_is_shown_hidden_and_turned_off_in_a_chat(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = ScriptedRuntime([THOUGHTFUL])
    runtime.tokenizer = with_template(runtime.tokenizer, str(runtime.tokenizer.chat_template) + SWITCH)
    lines = ["one", "/think hide", "two", "/think off", "three", "/think show", "four", "/think", "/think maybe"]
    chat = chat_with(runtime, lines)
    output = capsys.readouterr()
    assert output.out == 4 * "Four.\n" and output.err.count("them.") == 2
    assert output.err.count("thinking: show") == 2 and "'maybe' is none of show, hide, off" in output.err
    ends = [runtime.tokenizer.decode(prompt).endswith("<think></think>") for prompt in runtime.prompts]
    assert ends == [False, False, True, False]
    assert chat.conversation.messages[1]["reasoning_content"] == "Add \x1b[31mthem."


def test_a_saved_chat_keeps_what_was_thought(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    saved = chat_with(ScriptedRuntime([THOUGHTFUL]), ["one", f"/save {file}"])
    loaded = chat_with(ScriptedRuntime([THOUGHTFUL]), [f"/load {file}"])
    assert loaded.conversation.messages == saved.conversation.messages
    assert saved.conversation.messages[1]["reasoning_content"] == "Add \x1b[31mthem."
    file.write_text(file.read_text().replace('"reasoning_content": "', '"reasoning_content": 5, "x": "'))
    assert chat_with(ScriptedRuntime(), [f"/load {file}"]).conversation.messages == []


def test_a_file_and_a_pipe_are_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Grüße\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße\n".encode())))
    by_option, by_file, by_pipe = ScriptedRuntime(), ScriptedRuntime(), ScriptedRuntime()
    assert run_chat(by_option, ["-p", "Grüße"]) == run_chat(by_file, ["-f", str(file)]) == run_chat(by_pipe, []) == 0
    assert by_option.prompts == by_file.prompts == by_pipe.prompts


def test_the_options_reach_the_runtime() -> None:
    runtime = ScriptedRuntime()
    assert run_chat(runtime, ["-p", "hi", "--temperature", "0.5", "--max-new-tokens", "3", "--system", "be kind"]) == 0
    assert runtime.asked[0]["temperature"] == 0.5 and len(runtime.last_reply.token_ids) == 3
    assert "be kind" in runtime.tokenizer.decode(runtime.prompts[0])


@pytest.mark.parametrize("arguments", [["-p", ""], ["-p", " \n"], ["-f", "/nowhere/file"], ["-f", "/"]])
def test_a_prompt_with_nothing_in_it_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_chat(ScriptedRuntime(), arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ")


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"abc\xff", "byte 3 is 0xff")])
def test_a_pipe_with_no_text_in_it_exits_with_2(
    content: bytes, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run_chat(ScriptedRuntime(), []) == 2
    assert message in capsys.readouterr().err


def test_errors_exit_with_their_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_chat(ScriptedRuntime([BROKEN]), ["-p", "hi", "--json"]) == 3
    assert run_chat(ScriptedRuntime(context_length=4), ["-p", "hi hi hi hi"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "error: the disk broke\n" in output.err and "Traceback" not in output.err


def test_a_missing_model_exits_with_3() -> None:
    command = [sys.executable, "-m", "offload_runtime.chat", "-m", "/nowhere", "-p", "hi"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3 and done.stdout == "" and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "tests.fakes.scripted_runtime", "0", "-p", "hi", "--quiet"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("options", [["--quiet"], ["--json"]])
def test_a_full_disk_is_no_traceback(options: list[str]) -> None:
    command = [sys.executable, "-m", "tests.fakes.scripted_runtime", "0", "-p", "hi", *options]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("rest", "code", "out", "error"),
    [("<&-", 2, "", "error: the prompt is empty\n"), ("-p hi >&-", 0, "", ""), ("-p hi 2>&-", 0, "Grüße", "")],
)
def test_closed_streams_are_read_and_written_nowhere(rest: str, code: int, out: str, error: str) -> None:
    command = f"{sys.executable} -m tests.fakes.scripted_runtime 0 --quiet {rest}"
    done = subprocess.run(command, cwd=ROOT, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout.partition(" ")[0], done.stderr) == (code, out, error)


# A model of random weights under the real runtime


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_random_checkpoint(SHAPES["tiny"], directory, torch.float32)
    byte_level().save_pretrained(directory)
    return directory


def test_json_from_the_real_runtime(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", str(model), "-p", "hi", "--json", "--max-new-tokens", "5", "--seed", "3"]) == 0
    output = capsys.readouterr()
    content = json.loads(output.out)
    assert (len(content["token_ids"]), content["finish_reason"], content["seed"]) == (5, "length", 3)
    assert content["stats"]["passes"] == 5 and content["plan"]["draft"] is None and output.err == ""


def test_turns_over_the_real_runtime_are_those_of_a_fresh_one(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["/set max_new_tokens 6", "hello", "world", "/undo", "again", "/bye"])
    with OffloadRuntime.from_pretrained(model, draft="none", device="cpu") as runtime:
        conversation = Conversation(runtime.tokenizer)
        chat = Chat(loaded(runtime, conversation), SamplingOptions(temperature=0), Screen(), lambda prompt: next(lines))
        assert chat.run() == 0
        assert contents(chat)[::2] == ["hello", "again"] and "error" not in capsys.readouterr().err
        ids = [token for stretch in conversation.stretches for token in stretch.ids]
        runtime.forget()
        whole = runtime.generate(ids[:-6], temperature=0, max_new_tokens=6)
        assert whole.token_ids == ids[-6:]


def test_a_base_model_is_refused_before_it_is_loaded(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "chat_template.jinja").rename(model / "no_template")
    try:
        assert main(["-m", str(model), "-p", "hi"]) == 2
        assert "--raw" in capsys.readouterr().err
        assert main(["-m", str(model), "-p", "hi", "--raw", "--max-new-tokens", "1"]) == 0
    finally:
        (model / "no_template").rename(model / "chat_template.jinja")


# Turns and commands


def test_the_ids_of_past_turns_begin_the_next_prompt() -> None:
    runtime = ScriptedRuntime(["Grüße 😀", "hello"])
    chat = chat_with(runtime, ["one", "two"])
    first, second = runtime.prompts
    reply = [*runtime.tokenizer.encode("Grüße 😀", add_special_tokens=False), runtime.tokenizer.eos_token_id]
    assert second[: len(first) + len(reply)] == first + reply
    assert contents(chat) == ["one", "Grüße 😀", "two", "hello"]


def test_lines_between_triple_quotes_are_one_message() -> None:
    chat = chat_with(ScriptedRuntime(), ['"""', "one", "", "/two", '"""', '"""/bye"""', '  """three', 'four"""'])
    assert contents(chat)[::2] == ["one\n\n/two", "/bye", "three\nfour"]


def test_paths_and_pasted_lines_are_no_commands() -> None:
    chat = chat_with(ScriptedRuntime(), ["/etc/passwd is what?", "/clear\nis a command", " /bye", "   "])
    assert contents(chat)[::2] == ["/etc/passwd is what?", "/clear\nis a command", " /bye"]


def test_bye_leaves() -> None:
    assert contents(chat_with(ScriptedRuntime(), ["one", "/bye", "two"])) == ["one", "hello world"]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    chat_with(ScriptedRuntime(), ["/help"])
    output = capsys.readouterr()
    for name in ["help", "clear", "regen", "system", "set", "stats", "plan", "save", "load", "undo", "bye"]:
        assert f"/{name}" in output.err
    assert output.out == ""


def test_regen_replaces_the_reply_under_a_fresh_seed() -> None:
    runtime = ScriptedRuntime(["first", "second", "third"])
    chat = chat_with(runtime, ["/set seed 5", "hi", "/regen", "/regen 9", "/stats"])
    assert contents(chat) == ["hi", "third"]
    assert runtime.prompts[0] == runtime.prompts[1] == runtime.prompts[2]
    assert [asked["seed"] for asked in runtime.asked] == [5, None, 9]


def test_clear_undo_and_system() -> None:
    runtime = ScriptedRuntime()
    assert contents(chat_with(runtime, ["one", "two", "/undo", "three"]))[::2] == ["one", "three"]
    assert contents(chat_with(runtime, ["/system be kind", "one", "/clear"])) == ["be kind"]
    assert contents(chat_with(runtime, ["/system be kind", "one", "/system none"])) == ["one", "hello world"]


def test_set_changes_values_and_refuses_bad_ones(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with(
        ScriptedRuntime(),
        ["hi", "/set temperature 0.2", "/set top-k=7", "/set top_p 3", "/set warmth 1", "/set seed", "/set"],
    )
    assert chat.sampling == SamplingOptions(temperature=0.2, top_k=7)
    assert contents(chat) == ["hi", "hello world"]
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 3 and "0.9 (default)" in shown


def test_set_takes_biases_and_texts(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "/set logit_bias 5=-2,6=1",
        "/set stop = ###",
        "/set dry-multiplier=0.8",
        "hi",
        '/set stop ["a b", "="]',
        "/set",
    ]
    runtime = ScriptedRuntime()
    chat = chat_with(runtime, lines)
    assert chat.sampling.logit_bias == ((5, -2.0), (6, 1.0)) and chat.sampling.stop == ("a b", "=")
    asked = runtime.asked[0]
    assert (asked["logit_bias"], asked["stop"], asked["dry_multiplier"]) == ({5: -2.0, 6: 1.0}, ("###",), 0.8)
    assert "error" not in capsys.readouterr().err


def test_a_schema_is_tried_as_soon_as_it_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["/set response_format json", '/set response_format {"if": {}}', "hi", "/set response_format default", "hi"]
    runtime = ScriptedRuntime()
    chat_with(runtime, lines)
    assert [asked["response_format"] for asked in runtime.asked] == [{"type": "json_object"}, None]
    assert "Unimplemented keys" in capsys.readouterr().err


def test_one_prompt_is_answered_by_a_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["circle", "square"]}')
    line = ["--prompt", "A shape?", "--json", "--response-format", str(tmp_path / "schema.json")]
    assert main(line) == 0
    assert json.loads(json.loads(capsys.readouterr().out)["text"]) in ("circle", "square")
    (tmp_path / "schema.json").write_text('{"enum": []}')
    assert main(line) == 2 and "Unsatisfiable" in capsys.readouterr().err


def test_stats_show_the_seed_and_plan_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    chat_with(ScriptedRuntime(), ["/stats", "hi", "/stats", "/plan"])
    shown = capsys.readouterr().err
    assert re.search(r"seed +1001\n", shown) and "Plan for tiny" in shown


def test_an_unknown_command_is_no_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert contents(chat_with(ScriptedRuntime(), ["/foo", "/undo", "/regen", "/save", "/load"])) == []
    assert capsys.readouterr().err.count("error: ") == 5


def test_commands_may_be_written_in_capitals(capsys: pytest.CaptureFixture[str]) -> None:
    assert contents(chat_with(ScriptedRuntime(), ["/Foo", "/HELP"])) == []
    shown = capsys.readouterr().err
    assert "error: there is no command /Foo" in shown and "/regen" in shown


def test_commands_of_other_chats_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert contents(chat_with(ScriptedRuntime(), ["/?", "one", "/exit", "two"])) == ["one", "hello world"]
    assert "/regen" in capsys.readouterr().err
    assert contents(chat_with(ScriptedRuntime(), ["/quit", "two"])) == []


def test_an_argument_that_a_command_does_not_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with(ScriptedRuntime(), ["one", "two", "/undo 2", "/clear all", "/undo", "/save"])
    assert contents(chat) == ["one", "hello world"]
    shown = capsys.readouterr().err
    assert "error: /undo stands alone, without '2'" in shown and "error: /clear stands alone" in shown
    assert "what is left: 2 messages" in shown


def test_a_full_context_stops_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = ScriptedRuntime([STORY], context_length=100)
    chat = chat_with(runtime, ["one", "two"])
    shown = capsys.readouterr().err
    assert "The context is full (100 tokens): /undo" in shown
    assert "error: the prompt has" in shown and "/clear" in shown.split("error: ")[1]
    assert contents(chat)[::2] == ["one"] and len(runtime.last_reply.token_ids) < 100


def test_a_limit_on_tokens_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    chat_with(ScriptedRuntime([STORY]), ["/set max_new_tokens 4", "hi"])
    assert "max_new_tokens = 4" in capsys.readouterr().err


def test_an_error_in_a_reply_keeps_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_with(ScriptedRuntime(["fine", BROKEN, BROKEN, "again"]), ["one", "two", "/regen", "three"])
    assert contents(chat) == ["one", "fine", "three", "again"]
    assert capsys.readouterr().err.count("error: the disk broke") == 2


def test_loading_anew_with_less_memory_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    class Tightened(ScriptedRuntime):
        def stream(self, *arguments, **options):
            self.plan = replace(self.plan) if len(self.prompts) == 1 else self.plan
            return super().stream(*arguments, **options)

    chat = chat_with(Tightened(["fine"]), ["one", "two", "three"])
    assert contents(chat)[-1] == "fine"
    assert capsys.readouterr().err.count("ran out of memory, so the models were loaded anew") == 1


def test_raw_text_is_continued() -> None:
    runtime = ScriptedRuntime([" world"])
    assert contents(chat_with(runtime, ["hello", "!"], raw=True)) == ["hello", " world", "!", " world"]
    assert runtime.tokenizer.decode(runtime.prompts[1]) == "hello world!"


# Files


def test_a_saved_chat_goes_on_with_its_ids(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    first = ScriptedRuntime(["Grüße 😀"])
    chat_with(first, ["/system be kind", "one", "/set temperature 0.3", f"/save {file}", "two"])
    second = ScriptedRuntime()
    chat = chat_with(second, [f"/load {file}", "two"])
    assert second.prompts == first.prompts[1:]
    assert chat.sampling.temperature == 0.3
    assert list(tmp_path.iterdir()) == [file]


def test_only_saved_chats_are_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes, file = tmp_path / "notes.txt", tmp_path / "chat.json"
    notes.write_text("dear diary")
    chat_with(ScriptedRuntime(), ["one", f"/save {notes}", f"/save {file}", "two", f"/save {file}", "/save /no/dir/x"])
    assert notes.read_text() == "dear diary"
    assert len(json.loads(file.read_text())["messages"]) == 4
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 2 and shown.count("only saved chats are overwritten") == 1


def damaged_files() -> Iterator[bytes]:
    right = {"format": "offload_runtime chat, version 1", "raw": False, "tokens": "", "messages": [], "stretches": []}
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    changes: list[dict[str, object]] = [
        {"format": "another"},
        {"raw": 1},
        {"raw": True},
        {"messages": "no"},
        {"messages": [user]},
        {"messages": [user, user]},
        {"messages": [user, {**assistant, "content": 3}]},
        {"messages": [user, {**assistant, "content": "\ud800"}]},
        {"messages": [{"role": "tool", "content": "x"}, assistant]},
        {"stretches": [{"text": "a", "ids": [-1]}]},
        {"stretches": [{"text": "a", "ids": [True]}]},
        {"stretches": [{"ids": []}]},
        {"sampling": {"temperature": -1}},
        {"sampling": {"other": 1}},
        {"sampling": []},
    ]
    for change in changes:
        yield json.dumps({**right, "sampling": {}, **change}).encode()
    yield from (b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000)


@pytest.mark.parametrize("content", list(damaged_files()))
def test_a_damaged_file_is_refused_and_the_chat_goes_on(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.json"
    file.write_bytes(content)
    chat = chat_with(ScriptedRuntime(["fine"]), ["one", f"/load {file}", "two"])
    assert contents(chat) == ["one", "fine", "two", "fine"]
    assert capsys.readouterr().err.count(f"error: {file}: ") == 1


def test_ids_of_another_vocabulary_are_not_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    runtime = ScriptedRuntime(["fine"])
    chat_with(runtime, ["one", f"/save {file}"])
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "tokens": "another"}))
    chat = chat_with(runtime, [f"/load {file}"])
    assert contents(chat) == ["one", "fine"] and chat.conversation.stretches == []


# Loading


def test_the_loading_bar_counts_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    for width, force in ((100, True), (0, False)):
        screen = Screen()
        screen.console = type(screen.console)(stderr=True, force_terminal=force, width=100)
        with LoadingBar(screen.console) as progress:
            progress("reading target", 0, 10_000_000)
            progress("reading target", 10_000_000, 10_000_000)
        shown = capsys.readouterr().err
        assert ("reading target" in shown) == bool(width)
        assert "?" not in shown.replace("\x1b[?", ""), "the rate of what was there at once"


# In a terminal


@pytest.fixture
def slow() -> Iterator[Terminal]:
    """A chat whose first reply takes seconds, at its first prompt."""
    terminal = Terminal(seconds_per_step=0.05)
    terminal.expect(">>>")
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_reply_and_the_chat_goes_on(slow: Terminal) -> None:
    slow.send("one\r")
    shown = slow.expect("hello world")
    assert "once upon" in shown and "\x1b[31m" not in shown
    slow.send("\x03")
    assert "Traceback" not in slow.expect("stopped · ")
    slow.expect(">>>")
    slow.send("two\r")
    slow.expect("second reply")
    slow.expect(">>>")
    slow.send("\x04")
    assert slow.exit_code() == 0


def test_ctrl_c_twice_leaves_with_130(slow: Terminal) -> None:
    slow.send("one\r")
    slow.expect("once upon")
    slow.send("\x03")
    slow.expect("Ctrl-C within 2 s leaves")
    slow.press_until_it_ends("\x03")  # what is pressed while the answer is still being written does not count
    assert slow.exit_code() == 130


def test_ctrl_c_at_an_empty_prompt_hints_and_then_leaves(slow: Terminal) -> None:
    slow.send("half a line\x03")
    slow.send("\x03")
    slow.expect("Ctrl-D or /bye leaves")
    slow.expect(">>>")
    slow.send("\x03")
    assert slow.exit_code() == 130


def test_pasted_lines_are_one_message_and_bye_leaves(slow: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    slow.send("\x1b[200~first line\nsecond line\n/bye\x1b[201~\r")
    slow.expect("once upon")
    slow.send("\x03")
    slow.expect(">>>")
    slow.send(f"/save {file}\r")
    slow.expect("saved 2 messages")
    question, reply = json.loads(file.read_text())["messages"]
    assert question["content"] == "first line\nsecond line\n/bye"
    assert reply["content"] and STORY.startswith(reply["content"])
    slow.send("/bye\r")
    assert slow.exit_code() == 0
