"""How lines become answers on one runtime: all places taken, one answer a line, faults told apart."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from offload_runtime.batch.answers import LineRunner
from offload_runtime.batch.input_file import InputLine
from offload_runtime.batch.keys import JobKeys
from offload_runtime.batch.lines.forms import Forms
from offload_runtime.errors import ModelFilesError, PromptError
from offload_runtime.options.sampling_options import SamplingOptions
from tests.fakes.counting_runtime import CountingRuntime

FORMS = Forms(JobKeys("abcdef", "012345"), SamplingOptions())


def lines(*prompts: str) -> Iterator[InputLine]:
    """`prompts`, or lines that are JSON already."""
    for index, prompt in enumerate(prompts):
        text = prompt if prompt.startswith("{") else json.dumps({"prompt": prompt})
        yield InputLine(index, text.encode(), "0" * 16)


def answered(runtime: CountingRuntime, *prompts: str, **more: Any) -> list[dict[str, Any]]:
    runner = LineRunner(runtime, FORMS, **{"should_stop": lambda: False, **more})  # type: ignore[arg-type]
    return [json.loads(answer.line) for answer in runner.answers(lines(*prompts))]


def test_answers_come_as_texts_end_and_places_are_filled_again() -> None:
    runtime, tokens = CountingRuntime(parallel=3), []
    answers = answered(runtime, "9 cats", "1 dog", "2 owls", "1 bat", "1 ant", on_pass=tokens.append)
    assert [answer["index"] for answer in answers] == [1, 2, 3, 4, 0]
    assert answers[1]["text"] == "owls owls" and answers[1]["usage"]["completion_tokens"] == 2
    assert runtime.most == 3 and len(tokens) == 9 and sum(tokens) == 14


def test_lines_are_taken_only_as_places_free_up() -> None:
    taken = []

    def watched() -> Iterator[InputLine]:
        for line in lines("2 cats", "2 dogs", "2 owls"):
            taken.append(line.index)
            yield line

    answers = LineRunner(CountingRuntime(parallel=2), FORMS, lambda: False).answers(watched())  # type: ignore[arg-type]
    assert next(answers).index == 0 and taken == [0, 1]


def test_bad_lines_end_nothing() -> None:
    runtime = CountingRuntime()
    answers = answered(runtime, "{", "1 cat", "", '{"prompt": 5}', "1 dog", "{}")
    errors = {answer["index"] for answer in answers if answer.get("error")}
    assert errors == {0, 2, 3, 5} and len(answers) == 6 and len(runtime.prompts) == 2


def test_a_text_that_fails_leaves_the_others() -> None:
    runtime = CountingRuntime()
    runtime.faults = {"2 cats": PromptError("too much"), "2 dogs": ModelFilesError("the disk broke")}
    answers = {answer["index"]: answer for answer in answered(runtime, "2 cats", "2 dogs", "3 owls", "1 bat")}
    assert answers[0]["error"] == {"code": "invalid_request", "message": "too much"}
    assert answers[1]["error"] == {"code": "failed", "message": "the disk broke"}
    assert answers[2]["text"] == "owls owls owls" and answers[3]["text"] == "bat"


def test_a_fault_of_the_run_is_no_answer() -> None:
    """The first of them are not written either: they are redone once the fault is found."""
    runtime = CountingRuntime()
    runtime.faults = {f"{count} cats": ModelFilesError("the disk broke") for count in (2, 3, 4, 5)}
    got = []
    with pytest.raises(ModelFilesError, match="the disk broke"):
        for answer in LineRunner(runtime, FORMS, lambda: False).answers(  # type: ignore[arg-type]
            lines("1 dog", "2 cats", "3 cats", "4 cats", "5 cats")
        ):
            got.append(answer.index)
    assert got == [0]


def test_faults_at_the_end_are_answers() -> None:
    runtime = CountingRuntime()
    runtime.faults = {"2 cats": ModelFilesError("the disk broke")}
    assert [answer["index"] for answer in answered(runtime, "1 dog", "2 cats")] == [0, 1]


@pytest.mark.parametrize("polls", range(1, 12))
def test_texts_that_are_stopped_are_no_answers(polls: int) -> None:
    """The job is stopped at any of the moments at which that is asked: before, in and after passes."""
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) >= polls

    answers = answered(CountingRuntime(), "1 cat", "4 dogs", "5 owls", should_stop=should_stop)
    assert [answer["index"] for answer in answers] == [0][: polls > 2]
    assert all(answer["finish_reason"] == "stop" for answer in answers)
