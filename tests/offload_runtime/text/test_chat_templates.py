"""Chat templates: which one a model has, that it renders as in transformers, and that it cannot do more than render."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from loaders.checkpoint.model_source import load_tokenizer
from loaders.errors import ModelFilesError
from loaders.tokenizers.chat_templates import chat_template_of, gguf_chat_template
from offload_runtime.batch.keys import JobKeys
from offload_runtime.errors import OffloadError, PromptError, UsageError
from offload_runtime.options.run_options import DEMO_PAIR, Options
from offload_runtime.planning.planning import prepare
from offload_runtime.text.chat_template import render_chat
from offload_runtime.text.conversation import Conversation
from offload_runtime.text.prompt import encode_prompt, turn_end_tokens
from offload_runtime.text.template_process import TemplateProcess
from tests.samples.tokenizer_samples import TEMPLATE, byte_level, with_template

PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] }}{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MIXED = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content[0].text }}</s>{% endfor %}"
)
FAMILIES = {
    "plain": TEMPLATE,
    "loops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role ~ m.content }}{% endfor %}",
    "training": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    "{{ messages[-1].content }}{{ dict(a=1) | tojson }}",
    "json": "{{ messages[:2] | tojson(indent=2) }}{{ {'<': '>é'} | tojson }}",
    "blocks": "  {% for m in messages %}\n    {{- m.content }}\n  {% endfor %}\n",
    "variables": "{{ tools is none }}{{ documents is none }}{{ enable_thinking is defined }}{{ bos_token }}"
    "{{ messages[1]['content'] }}{{ add_generation_prompt }}",
    "date": "{{ strftime_now('%Y') }}{{ messages[1].content }}",
}
MESSAGES = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "Grüße <b> 😀"},
    {"role": "assistant", "content": "hello", "reasoning_content": "a greeting"},
    {"role": "user", "content": "world"},
]
HUGE = 10**9
ENDLESS = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = a * b %}{% endfor %}{% endfor %}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "lines": "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "slices": f"{{{{ [1] | slice({HUGE}) | list }}}}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}
LARGE = {
    "strings": f"{{{{ 'x' * {HUGE} }}}}",
    "lists": f"{{{{ [1] * {HUGE} }}}}",
    "center": f"{{{{ 'x' | center({HUGE}) }}}}",
    "indent": f"{{{{ 'x\\ny' | indent({HUGE}) }}}}",
    "format": f"{{{{ '%{HUGE}d' | format(1) }}}}{{{{ '{{:{HUGE}}}'.format(1) }}}}",
    "ljust": f"{{{{ 'x'.ljust({HUGE}) }}}}",
    "zfill": f"{{{{ 'x'.zfill({HUGE}) }}}}",
    "batch": f"{{{{ [1] | batch({HUGE}, 1) | list }}}}",
    "replace": "{{ ('a' * 30000) | replace('a', 'a' * 30000) }}",
    "join": "{{ (['x' * 9999999] * 99) | join('y' * 9999999) }}",
    "json": f"{{{{ [1] | tojson(indent={HUGE}) }}}}",
    "output": "{% for a in range(9999) %}{% for b in range(9999) %}0123456789{% endfor %}{% endfor %}",
}


def tokenizer_with(template: str | None) -> PreTrainedTokenizerBase:
    return with_template(byte_level(), template)


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    quick = TemplateProcess(processor_seconds=0.3)
    yield quick
    quick.close()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("awaits_reply", [True, False])
def test_a_rendering_is_that_of_transformers(name: str, awaits_reply: bool) -> None:
    tokenizer = tokenizer_with(FAMILIES[name])
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=awaits_reply)
    assert render_chat(tokenizer, MESSAGES, awaits_reply) == expected


def test_arguments_are_variables_of_the_template() -> None:
    tokenizer = tokenizer_with("{{ messages[0].content }}{{ enable_thinking }}{{ effort['level'] }}{{ eos_token }}")
    arguments = {"enable_thinking": False, "effort": {"level": 3}, "eos_token": "!"}
    message = [{"role": "user", "content": "hello"}]
    expected = tokenizer.apply_chat_template(message, tokenize=False, **arguments)
    assert render_chat(tokenizer, message, True, arguments) == expected == "helloFalse3!"


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_what_runs_on_or_fills_the_memory_is_stopped_and_the_next_one_renders(
    process: TemplateProcess, name: str
) -> None:
    with pytest.raises(ModelFilesError, match=r"template (ran for too long|took too much memory|wrote too much text)"):
        process.render((ENDLESS | LARGE)[name], {})
    assert process.render("{{ a }}", {"a": "still here"}) == "still here"


def test_a_template_in_one_thread_does_not_change_what_another_one_gets(process: TemplateProcess) -> None:
    def render(number: int) -> str:
        try:
            return process.render(ENDLESS["loops"] if number % 8 == 0 else "{{ n }}", {"n": number})
        except ModelFilesError:
            return "stopped"

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(render, range(24))) == ["stopped" if n % 8 == 0 else str(n) for n in range(24)]


def test_a_child_that_died_is_started_anew_and_a_fork_gets_its_own() -> None:
    code = (
        "import os\nfrom offload_runtime.text.template_process import template_process as shared\n"
        "assert shared().render('{{ a }}', {'a': 1}) == '1'\n"
        "child = os.fork()\n"
        "for n in range(50): assert shared().render('{{ a }}', {'a': [child, n]}) == f'[{child}, {n}]'\n"
        "if child == 0: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "shared()._child.kill()\n"
        "try: shared().render('x', {})\nexcept Exception: pass\n"
        "assert shared().render('{{ a }}', {'a': 2}) == '2'\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ documents | length }}", r"fails on this conversation: TypeError: .*NoneType"),
        ("{% for tool in tools %}{% endfor %}", r"fails on this conversation: TypeError"),
        ("{{ nothing.at.all }}", r"fails on this conversation: UndefinedError: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", r"fails on this conversation: ZeroDivisionError"),
        ("{{ cycler.__init__.__globals__ }}", r"fails on this conversation: SecurityError"),
        ("{% set x = namespace(__class__=1) %}", r"fails on this conversation: SecurityError"),
        ("{% include 'x' %}", r"fails on this conversation: TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"fails on this conversation: RecursionError"),
        ("{{ messages | nope }}", r"is damaged: No filter named 'nope'"),
        ("\n\n{% if %}", r"is damaged: Expected an expression.*\(line 3\)"),
        ("{{ " + "(" * 10**5, r"(fails on this conversation|is damaged|took too much memory)"),
    ],
)
def test_an_error_inside_a_template_is_told_as_the_template_s(template: str, message: str) -> None:
    with pytest.raises(ModelFilesError, match=f"the model's chat template {message}") as caught:
        Conversation(tokenizer_with(template + TEMPLATE))
    assert "--chat-template FILE" in str(caught.value) and len(str(caught.value)) < 600


def test_what_a_template_refuses_is_the_user_s_to_change() -> None:
    refusing = "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}" + TEMPLATE
    conversation = Conversation(tokenizer_with(refusing))
    conversation.add_user("hello")
    conversation.add_reply([1], "x", [])
    before = conversation.snapshot()
    with pytest.raises(UsageError, match="refuses this conversation: one message only"):
        conversation.add_user("hello")
    assert conversation.snapshot() == before


@pytest.mark.parametrize("template", [PARTS, MIXED])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_template_that_walks_through_parts_gets_parts(template: str, count: int) -> None:
    messages = [{name: one[name] for name in ("role", "content")} for one in MESSAGES[:count]]
    if count == 1:
        messages[0]["role"] = "user"
    mixed = [one if template is MIXED and one["role"] == "system" else _in_parts(one) for one in messages]
    tokenizer = tokenizer_with(template)
    expected = tokenizer.apply_chat_template(mixed, tokenize=False, add_generation_prompt=True)
    assert render_chat(tokenizer, messages, True) == expected
    assert all(str(one["content"]) in expected for one in messages)


def _in_parts(message: dict[str, str]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def test_parts_of_a_caller_become_text_where_the_template_wants_it() -> None:
    tokenizer = tokenizer_with(TEMPLATE)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    rendered = render_chat(tokenizer, [{"role": "user", "content": parts}], False)
    assert rendered == render_chat(tokenizer, [{"role": "user", "content": "one\ntwo"}], False)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": "user"},
        {"content": "x"},
        {"role": "user", "content": 5},
    ],
)
def test_what_is_no_message_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match='a message has "role" and "content"'):
        encode_prompt([message], lambda: tokenizer_with(TEMPLATE))


def test_half_a_character_is_refused() -> None:
    with pytest.raises(PromptError, match="surrogate"):
        render_chat(tokenizer_with(TEMPLATE), [{"role": "user", "content": "\ud800"}], True)


def test_a_template_that_leaves_the_question_out_is_refused() -> None:
    with pytest.raises(ModelFilesError, match="leaves out what the user says"):
        render_chat(tokenizer_with("{{ bos_token }}Hello"), [{"role": "user", "content": "hello"}], True)


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
def test_thoughts_go_by_the_names_that_templates_know(name: str) -> None:
    template = f"{{% for m in messages %}}({{{{ m.{name} }}}}){{{{ m.content }}}}{{% endfor %}}"
    assert render_chat(tokenizer_with(template), MESSAGES[1:], True) == "()Grüße <b> 😀(a greeting)hello()world"


def test_thoughts_are_parts_of_a_reply_where_the_template_reads_them_so() -> None:
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}"
        "{% if b.type == 'thinking' %}[THINK]{{ b.thinking }}[/THINK]{% else %}{{ b.text }}{% endif %}{% endfor %}"
        "{% endif %}</s>{% endfor %}"
    )
    expected = "be kind</s>Grüße <b> 😀</s>[THINK]a greeting[/THINK]hello</s>world</s>"
    assert render_chat(tokenizer_with(template), MESSAGES, True) == expected


def _write(directory: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps({"chat_template": content}))
    return directory


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "chat", "template": "chat"}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": "{}"}, None),
        ({"tokenizer_config.json": "text"}, None),
        ({"tokenizer_config.json": [*NAMED, {"name": "default", "template": "usual"}]}, "usual"),
        ({"tokenizer_config.json": NAMED}, "chat"),
        ({"tokenizer_config.json": NAMED[:1]}, "tools"),
        ({"chat_template.json": ["usual"]}, None),
        ({"chat_template.json": [{"name": "default", "template": "usual"}]}, "usual"),
        ({"chat_template.jinja": "file", "tokenizer_config.json": NAMED, "chat_template.json": NAMED}, "file"),
        ({"additional_chat_templates/tool_use.jinja": "tools"}, "tools"),
        ({"additional_chat_templates/rag.jinja": "rag", "additional_chat_templates/other.jinja": "other"}, "other"),
        ({"additional_chat_templates/rag.jinja": "rag", "chat_template.jinja": "file"}, "file"),
    ],
)
def test_which_template_a_model_has(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    damaged = any(content in ("text", ["usual"]) for content in files.values())
    directory = _write(tmp_path, files)
    if damaged:
        with pytest.raises(ModelFilesError):
            chat_template_of(directory)
    else:
        assert chat_template_of(directory) == expected
        for_tools = "tools" if "tools" in str(files) and files.get("chat_template.jinja") != "file" else None
        assert chat_template_of(directory, for_tools=True) == for_tools


def test_a_gguf_file_has_templates_by_names_of_their_own() -> None:
    named = {"tokenizer.chat_template.tool_use": "tools", "tokenizer.chat_template.other": "other"}
    assert gguf_chat_template({**named, "tokenizer.chat_template": "usual"}) == "usual"
    assert gguf_chat_template(named) == "other"
    assert gguf_chat_template({"tokenizer.chat_template": 5}) is None
    assert gguf_chat_template(named, for_tools=True) == "tools"
    assert gguf_chat_template({"tokenizer.chat_template": "usual"}, for_tools=True) is None


@pytest.mark.parametrize("file", ["chat_template.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [TEMPLATE, [{"name": "tool_use", "template": TEMPLATE}]])
def test_a_tokenizer_comes_with_the_template_in_its_files(tmp_path: Path, file: str, content: Any) -> None:
    tokenizer_with(None).save_pretrained(tmp_path)
    config = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    (tmp_path / file).write_text(json.dumps({**config, "chat_template": content}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.chat_template == TEMPLATE and turn_end_tokens(tokenizer)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (5 << 20)])
def test_a_file_that_holds_no_template_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(OffloadError, match=r"chat_template\.jinja: holds no chat template"):
        chat_template_of(tmp_path)


@pytest.mark.parametrize("templates", [[{"template": TEMPLATE}], [TEMPLATE], 5])
def test_templates_without_names_are_told_as_such(tmp_path: Path, templates: Any) -> None:
    tokenizer_with(None).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": templates}))
    with pytest.raises(OffloadError, match="chat_template is neither a text nor a list of named texts"):
        load_tokenizer(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8-sig")
    assert chat_template_of(tmp_path) == TEMPLATE


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "no text"])
def test_a_wrong_template_is_refused_before_anything_is_loaded(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.jinja"
    if content:
        file.write_bytes(content)
    options = Options(DEMO_PAIR / "target", None, chat_template=file)
    with pytest.raises(ModelFilesError, match=r"mine\.jinja: "):
        prepare(options)
    with pytest.raises(ModelFilesError, match=r"mine\.jinja: "):
        JobKeys.of(options, {})
