"""What ends a reply: found in the chat template without guessing, and neither in the text nor twice in the history."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from offload_runtime import OffloadRuntime
from offload_runtime.errors import PromptError, UsageError
from offload_runtime.text.conversation import Conversation
from offload_runtime.text.prompt import encode_prompt, turn_end_tokens
from tests.samples.chain_model import save_chain
from tests.samples.tokenizer_samples import SAMPLES, TEMPLATE, byte_level, with_template

QUESTION = [{"role": "user", "content": "hello"}]
CHATML = (
    "{% for m in messages %}<|user|>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
USER_LAST = "{% if messages[-1]['role'] != 'user' %}{{ raise_exception('assistant last') }}{% endif %}" + TEMPLATE
SYSTEM_FIRST = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
USERS_ALONE = "{% for m in messages %}{% if m['role'] == 'user' %}<s>{{ m['content'] }}{% endif %}{% endfor %}"
NOTHING_BEHIND = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}<|user|>"
SYSTEM = [{"role": "system", "content": "be kind"}, *QUESTION]
ENDS: dict[str, tuple[str, list[dict[str, str]], set[int]]] = {
    "a token behind the reply": (CHATML, QUESTION, {2}),
    "behind a space": (CHATML.replace("</s>", " </s>"), QUESTION, {2}),
    "refuses a reply at the end": (USER_LAST, QUESTION, {2}),
    "wants the system message that is given": (SYSTEM_FIRST, SYSTEM, {2}),
    "wants a system message that is not given": (SYSTEM_FIRST, QUESTION, set()),
    "writes no replies": (USERS_ALONE, QUESTION, set()),
    "puts text behind a reply": (NOTHING_BEHIND.replace("\n", "\nEND"), QUESTION, set()),
    "refuses replies": ("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}<s>x", QUESTION, set()),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_token_behind_a_reply_is_found(name: str) -> None:
    template, messages, expected = ENDS[name]
    assert turn_end_tokens(with_template(byte_level(), template), None, messages) == expected


def test_a_conversation_knows_its_end_by_its_system_message() -> None:
    assert Conversation(with_template(byte_level(), SYSTEM_FIRST), system="be kind").end_token_ids == {2}
    with pytest.raises(UsageError, match="no system"):
        Conversation(with_template(byte_level(), SYSTEM_FIRST))


def test_undo_where_the_template_refuses_a_reply_at_the_end() -> None:
    conversation = Conversation(with_template(byte_level(), USER_LAST))
    first = conversation.add_user("one")
    ids = conversation.tokenizer.encode("hello", add_special_tokens=False)
    conversation.add_reply([*ids, 2], "hello", {2})
    conversation.add_user("two")
    assert conversation.undo() and conversation.token_count == len(first) + len(ids) + 1
    assert conversation.add_user("three")[: len(first) + len(ids) + 1] == [*first, *ids, 2]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("stated", ["generation config", "template", "caller"])
def test_an_end_is_neither_in_the_text_nor_twice_in_the_history(special: bool, stated: str, tmp_path: Path) -> None:
    tokenizer = with_template(byte_level(), TEMPLATE.replace("{{ eos_token }}", "<|eot|>"))
    tokenizer._tokenizer = type(byte_level().backend_tokenizer).from_str(byte_level().backend_tokenizer.to_str())
    tokenizer.add_tokens([AddedToken("<|eot|>", special=special, normalized=False)])
    end = len(tokenizer) - 1
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    answer = tokenizer.encode("qxy", add_special_tokens=False)
    save_chain(tmp_path, [prompt[-1], *answer, end, *tokenizer.encode("z")], len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    if stated == "generation config":
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [2, {end}]}}')
    options: dict[str, Any] = {"end_token_ids": [end]} if stated == "caller" else {}
    with OffloadRuntime.from_pretrained(tmp_path, "none", "cpu", dtype="float32") as runtime:
        conversation = Conversation(runtime.tokenizer)
        ids = conversation.add_user("hello")
        given = QUESTION if stated == "template" else ids
        steps = list(runtime.stream(given, temperature=0, max_new_tokens=30, **options))
        reply = runtime.last_reply
        assert (reply.text, reply.token_ids, reply.finish_reason) == ("qxy", [*answer, end], "stop")
        assert "".join(step.text for step in steps) == "qxy"
        conversation.add_reply(reply.token_ids, reply.text, runtime.end_token_ids | {end})
        assert conversation.messages[-1] == {"role": "assistant", "content": "qxy"}
        assert conversation.add_user("a")[: len(ids) + 4] == [*ids, *answer, end]
        assert runtime.tokenizer.decode(conversation.prompt_ids()).count("<|eot|>") == 3


@pytest.mark.parametrize("text", ["\ud83d", "hello \udc80 there", "\ude00\ud83d"])
@pytest.mark.parametrize("name", SAMPLES)
def test_half_a_character_is_refused(name: str, text: str) -> None:
    tokenizer = SAMPLES[name]()
    for prompt in (text, [{"role": "user", "content": text}]):
        with pytest.raises(PromptError, match="half a character, a lone surrogate"):
            encode_prompt(prompt, lambda: with_template(tokenizer, TEMPLATE))
    conversation = Conversation(tokenizer, raw=True)
    with pytest.raises(PromptError, match="half a character"):
        conversation.add_user(text)
    assert conversation.messages == []
