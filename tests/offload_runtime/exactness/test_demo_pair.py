"""The bundled demonstration pair: complete, small, loadable, and really trained."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from offload_runtime.errors import ModelFilesError
from offload_runtime.speculation import acceptance_store

PAIR = Path(__file__).resolve().parents[3] / "offload_runtime" / "demo_pair"
NAMES = ("target", "draft")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
SNIPPET = [
    {"role": "user", "content": "Show me the code of `shapes.Circle.__repr__`."},
    {
        "role": "assistant",
        "content": "def __repr__(self):\n"
        '    """Return a string representation of the object."""\n'
        "    if self.name is None:\n"
        '        raise ValueError("name is not set")\n'
        "    return '%s(%r)' % (self.__class__.__name__, self.name)",
    },
]


@cache
def tokenizer(name: str):
    return AutoTokenizer.from_pretrained(PAIR / name, local_files_only=True)


@cache
def model(name: str):
    return AutoModelForCausalLM.from_pretrained(PAIR / name, dtype=torch.float32, local_files_only=True).eval()


@cache
def snippet_ids() -> torch.Tensor:
    text = tokenizer("target").apply_chat_template(SNIPPET, tokenize=False)
    return torch.tensor([tokenizer("target")(text, add_special_tokens=False)["input_ids"]])


@torch.no_grad()
def logits(name: str) -> torch.Tensor:
    return model(name)(snippet_ids()).logits[0, :-1]


def test_all_files_are_there_and_small():
    for name in NAMES:
        assert all((PAIR / name / file).is_file() for file in MODEL_FILES)
    assert (PAIR / "README.md").is_file()
    assert sum(path.stat().st_size for path in PAIR.rglob("*") if path.is_file()) <= 16_000_000


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_bf16_and_tied(name):
    with safe_open(PAIR / name / "model.safetensors", "pt") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    assert set(kinds.values()) == {"BF16"}
    assert "lm_head.weight" not in kinds


def test_both_use_the_same_tokenizer():
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (PAIR / "target" / file).read_bytes() == (PAIR / "draft" / file).read_bytes()
    text = "for name in sorted(self.names):\n\tprint(f'{name!r} costs \u20ac12345')"
    ids = tokenizer("target")(text)["input_ids"]
    assert tokenizer("target").decode(ids) == text
    assert max(ids) < len(tokenizer("target")) == model("target").config.vocab_size == model("draft").config.vocab_size


def test_chat_template_renders_all_roles():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    rendered = tokenizer("target").apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|bos|><|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n"
    with pytest.raises(Exception, match="unknown role"):
        tokenizer("target").apply_chat_template([{"role": "tool", "content": "4"}], tokenize=False)


@pytest.mark.parametrize("name", NAMES)
def test_generation_ends_at_the_end_of_a_turn(name):
    config = GenerationConfig.from_pretrained(PAIR / name)
    assert config.do_sample and 0 < config.temperature <= 1
    assert config.eos_token_id == tokenizer(name).eos_token_id == tokenizer(name).convert_tokens_to_ids("<|end|>")


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_trained(name):
    loss = torch.nn.functional.cross_entropy(logits(name), snippet_ids()[0, 1:]).item()
    assert loss < 0.6 * math.log(model(name).config.vocab_size)  # an untrained model is at log(vocabulary)


def test_draft_agrees_with_target_far_above_chance():
    agreement = (logits("target").argmax(-1) == logits("draft").argmax(-1)).float().mean().item()
    assert agreement > 0.3


def test_recorded_acceptance_is_a_distribution():
    recorded = json.loads((PAIR / "draft" / "acceptance.json").read_text())
    positional = recorded["positional"]
    assert len(positional) == 32 and all(value >= 0 for value in positional)
    assert 0.5 < sum(positional) <= 1
    assert positional[0] == pytest.approx(recorded["one_minus_tv"]["0.6"], abs=1e-3)
    assert recorded["temperature"] == 0.6 and recorded["positions"] > 10_000


@pytest.mark.parametrize("positional", [None, [], [0.5, "much"], [0.7, 0.7], [-0.1], {"first": 0.5}])
def test_acceptances_that_cannot_be_are_refused(positional, tmp_path):
    (tmp_path / "acceptance.json").write_text(json.dumps({"positional": positional}))
    with pytest.raises(ModelFilesError, match=r"acceptance\.json: \"positional\" is wrong"):
        acceptance_store.load(tmp_path, tmp_path)
