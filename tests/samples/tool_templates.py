"""Short chat templates that write calls of tools as model families do, and the marks that are their special tokens."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.samples.tokenizer_samples import byte_level

_JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
_VALUE = "{{ v if v is string else v | tojson }}"
_NINE = "{% if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
_ONE = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call a message') }}{% endif %}"
_GEMMA_QUOTE = '<|"|>'


def _template(call: str, before: str = "", after: str = "", between: str = "") -> str:
    return (
        "{% if tools %}<|system|>\n{{ tools | tojson }}</s>\n{% endif %}{% for m in messages %}<|{{ m.role }}|>\n"
        "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
        f"{{% if m.tool_calls %}}{before}{{% for c in m.tool_calls %}}{{% set f = c.function %}}{call}"
        f"{{% if not loop.last %}}{between}{{% endif %}}{{% endfor %}}{after}{{% endif %}}</s>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )


def _pairs(pair: str) -> str:
    return f"{{% for k, v in f.arguments.items() %}}{pair}{{% endfor %}}"


@dataclass(frozen=True)
class Family:
    """special: the marks that are special tokens. kept_ids: calls are written with their ids."""

    template: str
    special: tuple[str, ...] = ()
    kept_ids: bool = False


_GEMMA_VALUE = f"{{{{ '{_GEMMA_QUOTE}' ~ v ~ '{_GEMMA_QUOTE}' if v is string else v | tojson }}}}"
_GEMMA = "{{ f.name ~ '{' }}" + _pairs(f"{{{{ k }}}}:{_GEMMA_VALUE}{{{{ ',' if not loop.last }}}}") + "}"
_FUNCTION = "<function={{ f.name }}>\n" + _pairs(f"<parameter={{{{ k }}}}>\n{_VALUE}\n</parameter>\n") + "</function>"
_INVOKE = (
    '<invoke name="{{ f.name }}">\n' + _pairs(f'<parameter name="{{{{ k }}}}">{_VALUE}</parameter>\n') + "</invoke>"
)
_GLM = "{{ f.name }}\n" + _pairs(f"<arg_key>{{{{ k }}}}</arg_key>\n<arg_value>{_VALUE}</arg_value>\n")
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_3 = (
    "{{ '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + f.name + '\n```json\n' + f.arguments }}\n```<｜tool▁call▁end｜>"
)
_DEEPSEEK_31 = "{{ '<｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + f.arguments + '<｜tool▁call▁end｜>' }}"
_DSML_PAIR = (
    '<｜DSML｜parameter name="{{ k }}" string="{{ "true" if v is string else "false" }}">'
    + _VALUE
    + "</｜DSML｜parameter>\n"
)
_DSML = '<｜DSML｜invoke name="{{ f.name }}">\n' + _pairs(_DSML_PAIR) + "</｜DSML｜invoke>\n"
_PYTHON = "{{ f.name }}(" + _pairs("{{ k }}={{ v | pprint }}{{ ', ' if not loop.last }}") + ")"
_SOLAR = "{{ c.id }}<|tool_call:name|>{{ f.name }}<|tool_call:args|>{{ f.arguments | tojson }}"
_KIMI = "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>"
_MISTRAL = f'{_NINE}{{{{ (f | tojson)[:-1] }}}}, "id": "{{{{ c.id }}}}"}}'
_COHERE = '{"tool_call_id": "0", "tool_name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>")
GPT_OSS = (
    "{% if tools %}<|start|>developer<|message|>namespace functions {{ tools | tojson }}<|end|>{% endif %}"
    "{% set ns = namespace(name='') %}{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}"
    "{% if m.content and m.thinking %}{{ raise_exception('content or thinking') }}{% endif %}"
    "{% set t = m.content or m.thinking %}{% if t %}<|start|>assistant<|channel|>analysis<|message|>{{ t }}<|end|>"
    "{% endif %}{% set f = m.tool_calls[0].function %}{% set ns.name = f.name %}"
    "<|start|>assistant to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}"
    "<|call|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% elif m.role == 'tool' %}"
    "<|start|>functions.{{ ns.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
FAMILIES = {
    "hermes": Family(_template(f"<tool_call>\n{_JSON}\n</tool_call>", "\n", "", "\n")),
    "qwen coder": Family(_template(f"<tool_call>\n{_FUNCTION}\n</tool_call>", "\n\n", "", "\n")),
    "seed": Family(_template(f"<seed:tool_call>\n{_FUNCTION}\n</seed:tool_call>")),
    "minimax": Family(_template(f"{_INVOKE}\n", "\n<minimax:tool_call>\n", "</minimax:tool_call>")),
    "glm": Family(_template(f"\n<tool_call>{_GLM}</tool_call>")),
    "deepseek 3": Family(_template(_DEEPSEEK_3, *_DEEPSEEK, "\n")),
    "deepseek 3.1": Family(_template(_DEEPSEEK_31, *_DEEPSEEK)),
    "kimi": Family(
        _template(_KIMI, "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        kept_ids=True,
    ),
    "dsml": Family(_template(_DSML, "\n\n<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>")),
    "apertus": Family(
        _template('{"{{ f.name }}": {{ f.arguments | tojson }}}', "<|tools_prefix|>[", "]<|tools_suffix|>", ", "),
        ("<|tools_prefix|>", "<|tools_suffix|>"),
    ),
    "solar": Family(
        _template(f"<|tool_call:begin|>{_SOLAR}<|tool_call:end|>"),
        ("<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>"),
        kept_ids=True,
    ),
    "lfm": Family(
        _template(_PYTHON, "<|tool_call_start|>[", "]<|tool_call_end|>", ", "),
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "functionary": Family(_template("<function={{ f.name }}>{{ f.arguments | tojson }}</function>")),
    "giga": Family(_template(f"<|function_call|>{_JSON}"), ("<|function_call|>",)),
    "gemma": Family(
        _template("<|tool_call>call:" + _GEMMA + "<tool_call|>"),
        ("<|tool_call>", "<tool_call|>", _GEMMA_QUOTE),
    ),
    "mistral 3": Family(_template(_MISTRAL, "[TOOL_CALLS] [", "]", ", "), ("[TOOL_CALLS]",), kept_ids=True),
    "mistral 11": Family(
        _template("[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}"),
        ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        kept_ids=True,
    ),
    "mistral 13": Family(
        _template("[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"), ("[TOOL_CALLS]", "[ARGS]")
    ),
    "cohere": Family(
        _template(_COHERE, "<|START_ACTION|>[\n", "\n]<|END_ACTION|>", ",\n"), ("<|START_ACTION|>", "<|END_ACTION|>")
    ),
    "phi": Family(_template(_JSON, "<|tool_call|>[", "]<|/tool_call|>", ", "), ("<|tool_call|>", "<|/tool_call|>")),
    "granite": Family(_template(_JSON, "<|tool_call|>[", "]", ", "), ("<|tool_call|>",)),
    "jamba": Family(_template(_JSON, "<tool_calls>[\n", "\n]</tool_calls>", ",\n")),
    "nemotron": Family(_template(_JSON, "<TOOLCALL>[", "]</TOOLCALL>", ", ")),
    "llama": Family(
        _template(_ONE + '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'), ("<|python_tag|>",)
    ),
    "gpt-oss": Family(GPT_OSS, HARMONY),
}


def tool(name: str, **kinds: str) -> dict[str, Any]:
    """The definition of a tool with arguments of these JSON types."""
    properties = {argument: {"type": kind} for argument, kind in kinds.items()}
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def call(name: str, arguments: dict[str, Any], call_id: str = "Ab3Cd6Ef9") -> dict[str, Any]:
    """A call, as a message of an assistant holds it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


@cache
def family_tokenizer(name: str, are_special: bool = True) -> PreTrainedTokenizerBase:
    """A tokenizer with a family's template and marks; `are_special` False makes them text that is one token."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level().backend_tokenizer.from_str(byte_level().backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=FAMILIES[name].template,
    )
    marks = [AddedToken(mark, special=are_special, normalized=False) for mark in FAMILIES[name].special]
    tokenizer.add_tokens(marks, special_tokens=are_special)
    return tokenizer
