"""A tiny model that writes "So:" and a call of a tool, whatever it is asked."""

from copy import deepcopy
from pathlib import Path

from tests.samples.chain_model import save_chain
from tests.samples.tool_templates import family_tokenizer

PIECES = ["<tool_call>", '{"name": "add", ', '"arguments": {"a": 1}}', "</tool_call>"]


def save_caller(directory: Path) -> None:
    """Save the model, with Hermes' template and a token for each of the pieces that its call consists of."""
    tokenizer = deepcopy(family_tokenizer("hermes"))
    tokenizer.add_tokens(PIECES)
    question = [{"role": "user", "content": "hello"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    chain = [prompt[-1], *tokenizer.encode("So:" + "".join(PIECES) + "</s>", add_special_tokens=False)]
    assert len(set(chain)) == len(chain)
    save_chain(directory, chain, len(tokenizer))
    tokenizer.save_pretrained(directory)
