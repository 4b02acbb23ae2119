"""Messages for multimodal models: their templates, which expect parts, get text; images in messages are refused."""

from typing import Any

import pytest

from offload_runtime.errors import PromptError
from offload_runtime.text.chat_template import render_chat
from offload_runtime.text.message_forms import OTHER_PARTS
from offload_runtime.text.prompt import encode_prompt, turn_end_tokens
from tests.samples.tokenizer_samples import TEMPLATE, byte_level, with_template

# How published templates take content, shortened: loops over parts alone, either form, filters, the first part.
SMOLVLM = (
    "{% for message in messages %}{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == 'image' %}"
    "{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{ line['text'] }}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
    "{%- set first = messages[0]['content'] + '\n\n' -%}{%- else -%}"
    "{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}{%- set rest = messages[1:] -%}"
    "{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}{%- for message in rest -%}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + (first if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}"
    "{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{%- else -%}{{ raise_exception('Invalid content type') }}{%- endif -%}{{ '</s>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
QWEN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}</s>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}<|image_pad|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{% if m['content'] is string %}"
    "[INST]{{ m['content'] }}[/INST]{% else %}[INST]{% for block in m['content'] %}{% if block['type'] == 'text' %}"
    "{{ block['text'] }}{% elif block['type'] in ['image', 'image_url'] %}[IMG]{% else %}"
    "{{ raise_exception('Only text and image blocks are supported') }}{% endif %}{% endfor %}[/INST]{% endif %}"
    "{% elif m['role'] == 'system' %}[SYSTEM_PROMPT]{{ m['content'] if m['content'] is string else "
    "m['content'][0]['text'] }}[/SYSTEM_PROMPT]{% elif m['content'] is string %}{{ m['content'] }}</s>{% else %}"
    "{{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)
TEMPLATES = {"SmolVLM": SMOLVLM, "LLaVA": LLAVA, "Gemma 3": GEMMA, "Qwen-VL": QWEN, "Mistral 3": MISTRAL}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]


def in_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_comes_out_as_transformers_renders_parts(name: str) -> None:
    """As its processors do, which hand every template parts."""
    tokenizer = with_template(byte_level(), TEMPLATES[name])
    expected = tokenizer.apply_chat_template(in_parts(MESSAGES), tokenize=False, add_generation_prompt=True)
    assert all(one["content"] in expected for one in MESSAGES)
    assert render_chat(tokenizer, MESSAGES, True) == expected == render_chat(tokenizer, in_parts(MESSAGES), True)


@pytest.mark.parametrize("name", ["SmolVLM", "Gemma 3", "Qwen-VL", "Mistral 3"])
def test_what_ends_a_turn_is_found(name: str) -> None:
    tokenizer = with_template(byte_level(), TEMPLATES[name])
    assert turn_end_tokens(tokenizer) == {tokenizer.convert_tokens_to_ids("</s>")}


@pytest.mark.parametrize("kind", sorted(OTHER_PARTS))
def test_a_part_that_is_no_text_is_refused_by_name(kind: str) -> None:
    content = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: {"url": "https://example.org/a"}}]
    with pytest.raises(PromptError, match=rf'a part of type "{kind}": {OTHER_PARTS[kind]} are not read'):
        encode_prompt([{"role": "user", "content": content}], lambda: with_template(byte_level(), TEMPLATE))


@pytest.mark.parametrize("part", [{}, 5, {"type": None}, {"type": ["image"]}, {"image": "https://example.org/a.png"}])
def test_a_part_of_no_kind_is_refused(part: object) -> None:
    with pytest.raises(PromptError, match='content may also be a list of parts of type "text"'):
        encode_prompt([{"role": "user", "content": [part]}], lambda: with_template(byte_level(), TEMPLATE))
