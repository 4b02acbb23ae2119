"""Thoughts are told from the answer, for each family's marks, however the text comes in pieces."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from offload_runtime import OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.text.conversation import Conversation
from offload_runtime.text.detokenize import StopStrings
from offload_runtime.text.prompt import turn_end_tokens
from offload_runtime.text.reasoning_marks import answer_tags
from offload_runtime.text.reasoning_splitter import Splitter
from offload_runtime.text.reply_text import ReplyText, split_reply
from tests.samples.chain_model import save_chain
from tests.samples.tokenizer_samples import byte_level

HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>")
ANALYSIS = "<|channel|>analysis<|message|>Add them.<|end|><|start|>assistant<|channel|>final<|message|>Four."
CALL = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"
COMMENTARY = "<|channel|>commentary json<|message|>"
SOLAR = ("<|think|>", "<|content|>", "<|begin|>", "<|end|>")
SOLAR_ANSWER = "<|end|><|begin|>assistant<|content|>"
REPLIES = [  # what a prompt ends with, what is written, the thoughts in it, the answer
    ("", "Four.", "", "Four."),
    ("", "  Four. ", "", "  Four. "),
    ("", "<think>\nAdd them.\n</think>\n\nFour.", "Add them.", "Four."),
    ("", "\n<think>Add them.</think>Four.", "Add them.", "Four."),
    ("", "<think>\n\n</think>\n\nFour.", "", "Four."),
    ("", "<think>Add", "Add", ""),
    ("", "<thin", "", "<thin"),
    ("", "<think>Add</thi", "Add</thi", ""),
    ("", "Write <think>x</think> so.", "", "Write <think>x</think> so."),
    ("", "<think>a</think>Not <think>b</think>.", "a", "Not <think>b</think>."),
    ("assistant\n<think>\n", "Add them.\n</think>\n\nFour.", "Add them.", "Four."),
    ("assistant\n<think>\n\n</think>\n\n", "Four </think>.", "", "Four </think>."),
    ("what is <think>?\nassistant\n", "A mark.", "", "A mark."),
    ("", "[THINK]Add them.[/THINK]Four.", "Add them.", "Four."),
    ("", "<seed:think>Add them.</seed:think>Four.", "Add them.", "Four."),
    ("", "<thought>\nAdd them.\n</thought>\n\nFour.", "Add them.", "Four."),
    ("", "◁think▷Add them.◁/think▷Four.", "Add them.", "Four."),
    ("", "<|inner_prefix|>Add them.<|inner_suffix|>Four.", "Add them.", "Four."),
    ("", "<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>b<|end_of_solution|>", "a", "b"),
    ("", "Here is my thought process: Add.\n\nHere is my response: Four.", "Add.", "Four."),
    ("Here are my reasoning steps:\n", "Add.\n[BEGIN FINAL RESPONSE]\nFour.[END FINAL RESPONSE]", "Add.", "Four."),
    ("", "<|channel>thought\nAdd them.<channel|>Four.", "Add them.", "Four."),
    ("", "<|channel>thought\n<channel|>Four.", "", "Four."),
    ("", "<|channel>thoughts of\nmine<channel|>Four.", "thoughts of\nmine", "Four."),
    ("<|channel>thought\n", "Add them.<channel|>Four.", "Add them.", "Four."),
    ("", "<|START_THINKING|>Add.<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|>", "Add.", "Four."),
    ("", "<|START_RESPONSE|>Four.<|END_RESPONSE|>", "", "Four."),
    ("", "<|START_THINKING|>Add.<|END_THINKING|><|START_TEXT|>Four.<|END_TEXT|>", "Add.", "Four."),
    ("<|start|>assistant", ANALYSIS, "Add them.", "Four."),
    ("<|start|>assistant", "<|channel|>final<|message|>Four.<|return|>", "", "Four."),
    ("<|start|>assistant", "<|channel|>ana", "", ""),
    ("<|start|>assistant<|channel|>analysis<|message|>", ANALYSIS.partition("<|message|>")[2], "Add them.", "Four."),
    ("<|start|>assistant<|channel|>final<|message|>", "Four.<|return|>", "", "Four."),
    ("<|start|>assistant", f"<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant{CALL}", "{}", "Wait."),
    ("", "Here's my thought process:\nAdd.\n\nHere's my response:\nFour.", "Add.", "Four."),
    ("", "<reasoning>\nAdd.\n</reasoning>\nFour.", "Add.", "Four."),
    ("", "<thinking>\nAdd.\n</thinking>\nFour.", "Add.", "Four."),
    ("", "<Thought>\nAdd.\n</Thought>\nFour.", "Add.", "Four."),
    ("<think>\n", "<think>\nAdd.\n</think>\nFour.", "Add.", "Four."),
    ("", f"<|think|>Add.{SOLAR_ANSWER}Four.", "Add.", "Four."),
    ("", "<|content|>Four.", "", "Four."),
    (
        "<|start|>assistant",
        f"<|channel|>analysis<|message|>Add.<|end|><|start|>assistant to=functions.add{COMMENTARY}{{}}<|call|>",
        "Add.\n\n{}",
        "",
    ),
    (
        "<|start|>assistant",
        f"<|channel|>analysis<|message|>One.<|end|><|start|>assistant{ANALYSIS}",
        "One.\n\nAdd them.",
        "Four.",
    ),
]
GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
QWEN = (  # thoughts of replies before the last question are left out
    "{% set last = messages | map(attribute='role') | list %}{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    "{% endif %}"
)
KEEPS = (  # thoughts stay, by the name gpt-oss' template has for them
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]{% endif %}"
    "{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def split(pieces: list[str], prompt: str = "") -> tuple[str, str]:
    splitter = Splitter(prompt)
    parts = [*(splitter.push(piece) for piece in pieces), splitter.finish()]
    return "".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)


@cache
def tokenizer_with(template: str, special: tuple[str, ...] = ()) -> PreTrainedTokenizerBase:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level().backend_tokenizer.from_str(byte_level().backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )
    tokenizer.add_tokens(list(special), special_tokens=True)
    return tokenizer


@pytest.mark.parametrize(("prompt", "text", "thoughts", "answer"), REPLIES)
def test_a_reply_is_split_however_it_comes(prompt: str, text: str, thoughts: str, answer: str) -> None:
    assert split([text], prompt) == (thoughts, answer)
    assert split(list(text), prompt) == (thoughts, answer)
    generator = random.Random(0)
    for _ in range(20):
        cuts = sorted(generator.choices(range(len(text) + 1), k=3))
        assert split([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])], prompt) == (thoughts, answer)


@pytest.mark.parametrize(("prompt", "text", "thoughts", "answer"), REPLIES)
@pytest.mark.parametrize("are_special", [True, False])
def test_marks_may_be_special_tokens_or_text(
    prompt: str, text: str, thoughts: str, answer: str, are_special: bool
) -> None:
    marks = ("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel>", "<channel|>", "<|START_THINKING|>")
    marks += ("<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", *HARMONY)
    tokenizer = tokenizer_with(QWEN, marks if are_special else ())
    before = tokenizer.encode("x" + prompt, add_special_tokens=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = split_reply(tokenizer, before, ids)
    if are_special:  # such tokens never come into a text
        answer = answer.replace("<think>", "").replace("</think>", "")
    assert found == (thoughts, answer)


def test_thoughts_between_answers_are_thoughts_where_marks_are_tokens() -> None:
    tokenizer = tokenizer_with(QWEN, ("<|channel>", "<channel|>"))
    ids = tokenizer.encode("One.<|channel>thought\nAdd.<channel|>Two.", add_special_tokens=False)
    assert split_reply(tokenizer, [], ids) == ("Add.", "One.\n\nTwo.")


def test_the_characters_of_a_special_token_are_text() -> None:
    """A model that writes about its marks spells them in ordinary tokens."""
    tokenizer = tokenizer_with(GPT_OSS, HARMONY)
    spelled = [token for letter in "<|end|>" for token in tokenizer.encode(letter, add_special_tokens=False)]
    ids = tokenizer.encode("<|channel|>final<|message|>It is ", add_special_tokens=False) + spelled
    assert split_reply(tokenizer, [], ids) == ("", "It is <|end|>")


def test_tokens_of_one_name_are_no_marks_where_the_family_s_others_are_missing() -> None:
    tokenizer = tokenizer_with(QWEN, ("<|end|>", "<|start|>"))  # as Phi's
    ids = tokenizer.encode("One.<|end|>Two.", add_special_tokens=False)
    assert split_reply(tokenizer, [], ids) == ("", "One.Two.")


def test_a_stop_string_is_one_of_the_answer() -> None:
    tokenizer = tokenizer_with(QWEN)
    text = ReplyText(tokenizer, [], StopStrings(["stop"]))
    pieces = [text.push(token) for token in tokenizer.encode("<think>a stop</think>b stop c", add_special_tokens=False)]
    assert text.is_stopped
    assert ("".join(p[0] for p in pieces), "".join(p[1] for p in pieces)) == ("a stop", "b ")


def test_the_end_of_a_message_inside_a_reply_does_not_end_it() -> None:
    tokenizer = tokenizer_with(GPT_OSS, HARMONY)
    assert turn_end_tokens(tokenizer) == {tokenizer.convert_tokens_to_ids("<|return|>")}
    other = tokenizer_with(GPT_OSS.replace("<|return|>", "<|end|>"), HARMONY)
    assert turn_end_tokens(other) == frozenset()


@pytest.mark.parametrize("special", [True, False])
def test_nor_does_it_where_only_a_family_s_own_ends_end_a_reply(special: bool) -> None:
    template = "{% for m in messages %}<|begin|>{{ m.role }}<|content|>{{ m.content }}<|end|>{% endfor %}"
    tokenizer = tokenizer_with(template + "<|begin|>assistant" + " " * special)
    tokenizer.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in SOLAR])
    assert turn_end_tokens(tokenizer) == frozenset()
    ids = tokenizer.encode(f"<|think|>Add.{SOLAR_ANSWER}Four.", add_special_tokens=False)
    assert split_reply(tokenizer, [], ids) == ("Add.", "Four.")
    phi = tokenizer_with(template + " ", ("<|end|>",))
    assert turn_end_tokens(phi) == {phi.convert_tokens_to_ids("<|end|>")}


TAGGED = [
    ("<think>\nAdd.\n</think>\n\n<answer>\nFour.\n</answer>\n", "Four."),
    ("<think>Add.</think><answer>Four.", "Four."),
    ("<think>Add.</think><answer>One, </answer>two.", "One,\n\ntwo."),
    ("<think>Add.</think>Four <answer>4</answer>", "Four <answer>4</answer>"),
    ("<think>Add.</think>\n<response>4</response>", "<response>4</response>"),
    ("<think>Add.</think>\n<answ", "<answ"),
]


@pytest.mark.parametrize(("written", "answer"), TAGGED)
def test_tags_around_an_answer_are_dropped_where_the_template_knows_them(written: str, answer: str) -> None:
    knows = "{{ messages[0].content.split('<answer>')[-1].split('</answer>')[0] }}"
    for cut in range(len(written)):
        pieces = [written[:cut], written[cut:]]
        splitter = Splitter(tags=answer_tags(knows))
        parts = [*(splitter.push(piece) for piece in pieces), splitter.finish()]
        assert "".join(part[1] for part in parts) == answer
    tokenizer = tokenizer_with(knows)
    assert split_reply(tokenizer, [], tokenizer.encode(written, add_special_tokens=False)) == ("Add.", answer)
    behind_thoughts = written.partition("</think>")[2].lstrip()
    assert split([written]) == ("Add.", behind_thoughts), "a user may have asked for them"


@pytest.mark.parametrize(
    ("template", "special", "written", "end"),
    [
        (GPT_OSS, HARMONY, ANALYSIS, "<|return|>"),
        (QWEN, (), "Add them.\n</think>\n\nFour.", "</s>"),
        (QWEN, ("<think>", "</think>"), "Add them.\n</think>\n\nFour.", "</s>"),
        (KEEPS, ("[THINK]", "[/THINK]"), "[THINK]Add them.[/THINK]Four.", "</s>"),
    ],
)
@pytest.mark.parametrize("shown", ["Four.", "analysisAdd them.assistantfinalFour."])
def test_history_is_what_the_family_s_template_makes_of_it(
    template: str, special: tuple[str, ...], written: str, end: str, shown: str
) -> None:
    tokenizer = tokenizer_with(template, special)
    conversation = Conversation(tokenizer)
    conversation.add_user("2 + 2?")
    ids = tokenizer.encode(written + end, add_special_tokens=False)
    conversation.add_reply(ids, shown, ids[-1:])
    assert conversation.messages[-1] == {"role": "assistant", "content": "Four.", "reasoning_content": "Add them."}
    prompt = tokenizer.decode(conversation.add_user("And 3 + 3?"))
    thoughts = {"reasoning_content": "Add them.", "thinking": "Add them."}
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "Four.", **thoughts},
        {"role": "user", "content": "And 3 + 3?"},
    ]
    assert prompt == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ("Add them." in prompt) == (template is KEEPS)


def test_an_answer_cut_by_a_stop_string_stays_cut_in_the_history() -> None:
    tokenizer = tokenizer_with(QWEN)
    conversation = Conversation(tokenizer)
    conversation.add_user("hello")
    conversation.add_reply(tokenizer.encode("Add.</think>Four. Five.", add_special_tokens=False), "Four.", [])
    assert conversation.messages[-1]["content"] == "Four."
    conversation.drop_reply()
    conversation.prompt_ids()
    conversation.add_reply(tokenizer.encode("Add", add_special_tokens=False), "", [])
    assert conversation.messages[-1] == {"role": "assistant", "content": "", "reasoning_content": "Add"}


def test_raw_text_has_no_thoughts() -> None:
    tokenizer = tokenizer_with(QWEN)
    conversation = Conversation(tokenizer, raw=True)
    conversation.add_user("hello")
    conversation.add_reply(tokenizer.encode("<think>a</think>b", add_special_tokens=False), "x", [])
    assert conversation.messages[-1] == {"role": "assistant", "content": "<think>a</think>b"}


def test_template_arguments_hold_for_a_conversation() -> None:
    tokenizer = tokenizer_with(QWEN)
    conversation = Conversation(tokenizer, template_arguments={"enable_thinking": False})
    assert tokenizer.decode(conversation.add_user("hello")).endswith("<think>\n\n</think>\n\n")
    conversation.template_arguments.clear()
    assert tokenizer.decode(conversation.prompt_ids()).endswith("<|assistant|>\n<think>\n")


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OffloadRuntime]:
    """A model whose next token follows from the last one: it thinks "qx" and answers "yz"."""
    tokenizer = tokenizer_with(KEEPS, ("[THINK]", "[/THINK]"))
    directory = tmp_path_factory.mktemp("thinker")
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    chain = [prompt[-1], *tokenizer.encode("[THINK]qx[/THINK]yz</s>", add_special_tokens=False)]
    assert len(set(chain)) == len(chain)
    save_chain(directory, chain, len(tokenizer))
    tokenizer.save_pretrained(directory)
    template = directory / "other.jinja"
    template.write_text(KEEPS.replace("<|assistant|>\n", "<|assistant|>\n{{ more }}"))
    arguments = {"more": "\n"}
    with OffloadRuntime.from_pretrained(
        *(directory, "none", "cpu"), dtype="float32", chat_template=template, template_arguments=arguments
    ) as runtime:
        yield runtime


QUESTION = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("as_ids", [True, False])
def test_a_runtime_tells_thoughts_from_the_answer(thinker: OffloadRuntime, as_ids: bool) -> None:
    conversation = Conversation(thinker.tokenizer, template_arguments={"more": "\n"})
    prompt = conversation.add_user("hello") if as_ids else QUESTION
    steps = list(thinker.stream(prompt, temperature=0, max_new_tokens=20))
    reply = thinker.last_reply
    assert (reply.reasoning, reply.text, reply.finish_reason) == ("qx", "yz", "stop")
    assert "".join(step.reasoning for step in steps) == "qx" and "".join(step.text for step in steps) == "yz"


def test_template_arguments_of_a_call_go_before_the_others(thinker: OffloadRuntime) -> None:
    lengths = [
        thinker.generate(QUESTION, max_new_tokens=1, template_arguments=more).stats.prompt_tokens
        for more in ({"more": ""}, None, {"more": "\nhello"})
    ]
    assert lengths[0] < lengths[1] < lengths[2]
    with pytest.raises(UsageError, match="'messages' is given by the conversation"):
        thinker.generate(QUESTION, template_arguments={"messages": []})


def test_text_is_continued_as_it_is(thinker: OffloadRuntime) -> None:
    prompt = Conversation(thinker.tokenizer).add_user("hello")
    for reply in (
        thinker.generate(thinker.tokenizer.decode(prompt), temperature=0, max_new_tokens=20),
        thinker.generate(prompt, temperature=0, max_new_tokens=20, split_reasoning=False),
    ):
        assert (reply.reasoning, reply.text) == ("", "qxyz")


def test_another_template_and_its_arguments(thinker: OffloadRuntime) -> None:
    assert "{{ more }}" in str(thinker.tokenizer.chat_template)
    prompt = Conversation(thinker.tokenizer, template_arguments={"more": "\n"}).add_user("hello")
    thinker.generate(QUESTION, temperature=0, max_new_tokens=1)
    assert thinker._decoder._sequences._texts[0][: len(prompt)] == prompt


@pytest.mark.parametrize("arguments", [{"messages": []}, {"add_generation_prompt": True}, {"x": object()}])
def test_arguments_that_no_template_can_have(arguments: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="template argument"):
        OffloadRuntime.from_pretrained(tmp_path, template_arguments=arguments)
