"""What a step tells of its pass: the tree, the path that was accepted, and the text by tokens."""

from collections.abc import Iterator

import pytest

from offload_runtime import OffloadRuntime
from offload_runtime.generation.decode import Step
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET

PROMPT = [{"role": "user", "content": "Show me the code of `textwrap.dedent`."}]


@pytest.fixture(scope="module", params=["sequoia", "adaptive", "none"])
def runtime(request: pytest.FixtureRequest) -> Iterator[OffloadRuntime]:
    options = {"device": "cpu", "dtype": "float32", "tree": request.param}
    with OffloadRuntime.from_pretrained(DEMO_TARGET, draft=DEMO_DRAFT, **options) as runtime:
        yield runtime


def steps(runtime: OffloadRuntime, **arguments: object) -> list[Step]:
    return [*runtime.stream(PROMPT, max_new_tokens=40, seed=1, **arguments)]  # type: ignore[arg-type]


def test_the_path_leads_down_the_tree_to_the_last_accepted_node(runtime: OffloadRuntime) -> None:
    made = steps(runtime)
    for step in made:
        assert step.tree is not None and step.tree.size - 1 == step.drafted
        assert [step.tree.parents[node] for node in step.path] == [0, *step.path][: len(step.path)]
        assert len(step.path) == step.accepted
    assert any(step.path for step in made) == any(step.drafted for step in made)


def test_the_pieces_are_the_text_by_tokens(runtime: OffloadRuntime) -> None:
    made = steps(runtime)
    whole = runtime.last_reply
    assert "".join(piece for step in made for piece in step.pieces) == whole.text != ""
    for step in made:
        assert "".join(step.pieces) == step.text and len(step.pieces) == len(step.token_ids)


def test_a_stop_string_ends_the_pieces_with_the_tokens(runtime: OffloadRuntime) -> None:
    stop = runtime.generate(PROMPT, max_new_tokens=40, seed=1).text[8:11]
    made = steps(runtime, stop=stop)
    assert made[-1].finish_reason == "stop"
    assert all(len(step.pieces) == len(step.token_ids) for step in made)
    assert stop not in "".join(piece for step in made for piece in step.pieces)


def test_a_step_without_a_pass_has_no_tree(runtime: OffloadRuntime) -> None:
    (only,) = runtime.stream(PROMPT, should_stop=lambda: True)
    assert (only.finish_reason, only.tree, only.path) == ("interrupted", None, ())
    assert "".join(only.pieces) == only.text == ""
