"""What transformers' clients send besides: a generation config, and the wish to have the model loaded."""

import json
from typing import Any

import pytest

from tests.fakes.served import Served
from tests.fakes.shared_runtime import SharedRuntime


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"do_sample": True, "max_new_tokens": 7, "transformers_version": "5.0"}, {"max_new_tokens": 7}),
        ({"do_sample": False, "temperature": 0.7, "top_k": 5}, {"temperature": 0.0, "top_k": 5}),
        ({"stop_strings": ["a"], "num_beams": 1, "top_p": None}, {"stop": ("a",)}),
        ({}, {}),
    ],
)
def test_a_generation_config_says_how_to_write(config: dict[str, Any], expected: dict[str, Any]) -> None:
    with Served(SharedRuntime()) as server:
        assert server.chat("hello", generation_config=json.dumps(config)).status == 200
        assert server.chat("hello", generation_config=json.dumps(config), max_tokens=3, top_k=2).status == 200
        first, second = (dict(asked.arguments) for asked in server.runtime.asked)
    for arguments in (first, second):
        del arguments["should_stop"], arguments["seed"]
    assert first == expected and second == {**expected, "max_new_tokens": 3, "top_k": 2}, "fields go before it"


@pytest.mark.parametrize(
    ("config", "param"),
    [
        ("{", "generation_config"),
        ("[]", "generation_config"),
        ({"max_new_tokens": 5}, "generation_config"),
        ('{"num_beams": 4}', "generation_config.num_beams"),
        ('{"temperature": "hot"}', "generation_config.temperature"),
        ('{"eos_token_id": [1]}', "generation_config.eos_token_id"),
    ],
)
def test_what_cannot_be_followed_is_named(config: object, param: str) -> None:
    with Served(SharedRuntime()) as server:
        answer = server.chat("hello", generation_config=config)
        assert answer.status == 400 and answer.error["param"] == param


def test_a_model_is_loaded_already() -> None:
    with Served(SharedRuntime(), model="tiny") as server:
        answer = server.post("/load_model", {"model": "tiny"})
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
        event = json.loads(answer.body.decode().removeprefix("data: "))
        assert event == {"status": "ready", "model": "tiny", "cached": True}
        assert server.post("/load_model", {"model": "other"}).status == 404
