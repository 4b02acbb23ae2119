"""Conversations: prompts are what the template makes of the messages, and ids of past turns are never remade."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from offload_runtime.errors import ModelFilesError, UsageError
from offload_runtime.text.conversation import Conversation
from tests.samples.tokenizer_samples import SAMPLES, with_template

ALTERNATING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] | trim }} [/INST]"
    "{% else %} {{ message['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
FORGETS_THOUGHTS = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if loop.last %}{{ message['content'] }}{% else %}{{ message['content'].split('~')[-1] }}{% endif %}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NAMES = ("byte-level", "metaspace")


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def rendered(conversation: Conversation) -> str:
    text = conversation.tokenizer.apply_chat_template(conversation.messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def reply(conversation: Conversation, text: str, ended: bool = True) -> list[int]:
    """Let the model write `text` one character at a time: ids that encoding the text would not give."""
    tokenizer = conversation.tokenizer
    anchor = encode(tokenizer, "<s>")
    ids = [token for character in text for token in encode(tokenizer, "<s>" + character)[len(anchor) :]]
    ids += [tokenizer.eos_token_id] if ended else []
    conversation.add_reply(ids, text, {tokenizer.eos_token_id})
    return ids


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ended", [True, False])
def test_ids_of_past_turns_stay(name: str, ended: bool) -> None:
    conversation = Conversation(SAMPLES[name](), system="be kind")
    first = conversation.add_user("hello")
    assert first == encode(conversation.tokenizer, rendered(conversation))
    written = reply(conversation, "hello world 😀", ended)
    second = conversation.add_user("Grüße")
    assert second[: len(first) + len(written)] == first + written
    assert conversation.tokenizer.decode(second) == rendered(conversation)
    assert conversation.token_count == len(second)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(turns=st.lists(st.tuples(st.text("ab é\n😀"), st.text("ab é\n😀", min_size=1), st.booleans()), max_size=4))
def test_a_prompt_is_the_rendering_and_extends_the_one_before(name: str, turns: list[tuple[str, str, bool]]) -> None:
    conversation = Conversation(SAMPLES[name]())
    before: list[int] = []
    for question, answer, ended in turns:
        ids = conversation.add_user(question)
        assert "".join(stretch.text for stretch in conversation.stretches) == rendered(conversation)
        assert ids[: len(before)] == before
        before = ids + reply(conversation, answer, ended)


def test_text_after_the_ids_is_encoded_as_in_its_place() -> None:
    """No space sneaks in where sentencepiece's encoding of the new text alone would begin with one."""
    conversation = Conversation(SAMPLES["metaspace"]())
    conversation.add_user("hello")
    reply(conversation, "world")
    ids = conversation.add_user("hello")
    assert conversation.tokenizer.decode(ids) == rendered(conversation)


def test_a_reply_taken_back_leaves_the_prompt_as_it_was() -> None:
    conversation = Conversation(SAMPLES["byte-level"]())
    ids = conversation.add_user("hello")
    reply(conversation, "world")
    assert conversation.drop_reply() and not conversation.drop_reply()
    assert conversation.prompt_ids() == ids


def test_undo_takes_back_an_exchange_and_keeps_the_ids_before_it() -> None:
    conversation = Conversation(SAMPLES["byte-level"](), system="be kind")
    first = conversation.add_user("one")
    known = first + reply(conversation, "hello")
    conversation.add_user("two")
    reply(conversation, "world")
    assert conversation.undo()
    assert [message["content"] for message in conversation.messages] == ["be kind", "one", "hello"]
    assert conversation.token_count == len(known)
    assert conversation.add_user("three")[: len(known)] == known
    assert conversation.undo() and conversation.undo() and not conversation.undo()
    assert conversation.system == "be kind" and conversation.token_count == 0


def test_clear_keeps_the_system_message() -> None:
    conversation = Conversation(SAMPLES["byte-level"](), system="be kind")
    conversation.add_user("one")
    reply(conversation, "hello")
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "be kind"}] and conversation.token_count == 0


def test_the_system_message_changes_and_goes() -> None:
    conversation = Conversation(SAMPLES["byte-level"]())
    conversation.add_user("one")
    reply(conversation, "hello")
    conversation.set_system("be brief")
    assert conversation.tokenizer.decode(conversation.add_user("two")) == rendered(conversation)
    assert conversation.system == "be brief"
    conversation.set_system(None)
    assert conversation.system is None and len(conversation.messages) == 3


def test_a_template_that_rewrites_history_is_followed() -> None:
    conversation = Conversation(with_template(SAMPLES["byte-level"](), FORGETS_THOUGHTS))
    first = conversation.add_user("one")
    reply(conversation, "think~hello")
    second = conversation.add_user("two")
    assert conversation.tokenizer.decode(second) == rendered(conversation) and "think" not in rendered(conversation)
    assert second[: len(first)] == first


def test_a_template_without_system_role_refuses_one_and_the_conversation_goes_on() -> None:
    tokenizer = with_template(SAMPLES["metaspace"](), ALTERNATING)
    with pytest.raises(UsageError, match="no system role"):
        Conversation(tokenizer, system="be kind")
    conversation = Conversation(tokenizer)
    conversation.add_user("hello")
    reply(conversation, "world")
    before = conversation.snapshot()
    with pytest.raises(UsageError, match="no system role"):
        conversation.set_system("be kind")
    assert conversation.snapshot() == before
    assert conversation.tokenizer.decode(conversation.add_user("hello")) == rendered(conversation)


def test_a_template_that_refuses_a_reply_at_the_end_is_never_given_one() -> None:
    refuses = "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('a reply comes last') }}{% endif %}"
    tokenizer = SAMPLES["byte-level"]()
    conversation = Conversation(with_template(tokenizer, refuses + str(tokenizer.chat_template)))
    for question in ("one", "two", "three"):
        conversation.add_user(question)
        reply(conversation, "hello")
    conversation.set_system("be kind")
    conversation.set_system(None)
    assert conversation.undo()
    assert conversation.drop_oldest() and len(conversation.messages) == 2
    assert conversation.tokenizer.decode(conversation.add_user("four")) == rendered(conversation)


def test_a_template_that_wants_a_system_message_gets_the_one_given() -> None:
    wants = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    tokenizer = SAMPLES["byte-level"]()
    conversation = Conversation(with_template(tokenizer, wants + str(tokenizer.chat_template)), system="be kind")
    assert conversation.tokenizer.decode(conversation.add_user("hello")) == rendered(conversation)


def test_restore_brings_back_a_snapshot() -> None:
    conversation = Conversation(SAMPLES["byte-level"]())
    before = conversation.snapshot()
    conversation.add_user("hello")
    reply(conversation, "world")
    conversation.restore(before)
    assert conversation.messages == [] and conversation.stretches == []


def test_a_base_model_needs_raw() -> None:
    tokenizer = with_template(SAMPLES["byte-level"](), None)
    with pytest.raises(UsageError, match="--raw"):
        Conversation(tokenizer)
    with pytest.raises(UsageError, match="--raw"):
        Conversation(tokenizer, system="be kind", raw=True)


def test_a_damaged_template_is_a_damaged_file() -> None:
    with pytest.raises(ModelFilesError, match="template is damaged"):
        Conversation(with_template(SAMPLES["byte-level"](), "{% if %}"))


@pytest.mark.parametrize("name", NAMES)
def test_raw_text_goes_on_where_it_stopped(name: str) -> None:
    conversation = Conversation(with_template(SAMPLES[name](), None), raw=True)
    tokenizer = conversation.tokenizer
    first = conversation.add_user("hello")
    assert first == tokenizer.encode("hello")
    written = [*encode(tokenizer, "hello world")[len(encode(tokenizer, "hello")) :], tokenizer.eos_token_id]
    conversation.add_reply(written, "world", {tokenizer.eos_token_id})
    second = conversation.add_user("!\nhello")
    assert second[: len(first) + len(written) - 1] == first + written[:-1]
    assert tokenizer.decode(second, skip_special_tokens=True) == "hello world!\nhello"
