"""Template variables that ask a model to think, or to answer without thinking."""

import re
from collections.abc import Mapping

THINKING_OFF: Mapping[str, object] = {
    "enable_thinking": False,  # Qwen 3, GLM, Gemma 4, SmolLM 3, Hunyuan, Nemotron
    "thinking": False,  # DeepSeek V3.1, Granite, Kimi K2.5
    "reasoning": False,  # Command A
    "thinking_budget": 0,  # Seed-OSS
}
THINKING_ON: Mapping[str, object] = {name: True for name, value in THINKING_OFF.items() if value is False}
_CODE = re.compile(r"\{[%{].*?[%}]\}", re.DOTALL)
_LITERAL = re.compile(r"'[^']*'|\"[^\"]*\"")


def without_thinking(template: str) -> dict[str, object]:
    """The variables of a chat template that turn thinking off; empty if it has no such switch."""
    code = " ".join(_LITERAL.sub("", block) for block in _CODE.findall(template))
    return {name: value for name, value in THINKING_OFF.items() if re.search(rf"(?<![\w.]){name}(?!\w)", code)}
