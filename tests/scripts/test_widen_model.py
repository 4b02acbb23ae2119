"""Widened models compute what the small model computes, whatever their sizes; its draft is accepted as often."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from offload_runtime import OffloadRuntime
from offload_runtime.errors import UnsupportedModelError, UsageError
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET
from tests.samples.tiny_models import checkpoint, greedy, streaming_runtime

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import widen_model  # noqa: E402
from widening.placement import Placement, Shape  # noqa: E402

DEMO = Shape(256, 640, 5, 4, 2, 64)
CHAT = [{"role": "user", "content": "What does the function `os.walk` do?"}]
TINY = Shape(hidden=32, ffn=64, layers=3, heads=4, kv_heads=2, head_dim=8)  # of tests.samples.tiny_models


def model(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return model(torch.randint(3, model.config.vocab_size, (1, tokens), generator=generator)).logits


def largest_difference(small: Path, wide: Path) -> float:
    """Of logits, as a share of their spread."""
    expected = logits(model(small))
    return float((logits(model(wide)) - expected).abs().max() / expected.std())


@pytest.fixture(scope="module")
def wide_demo(tmp_path_factory) -> Path:
    """The demonstration target 3 times as wide, in bfloat16, with two layers without effect standing for three."""
    output = tmp_path_factory.mktemp("wide") / "target"
    widen_model.widen(DEMO_TARGET, output, Shape(768, 1280, 8, 12, 4, 128), idle_layers=2)
    return output


# hidden size, heads, key heads and dimensions of a head of the small model, then the wide shape
CASES = {
    "twice": ((32, 4, 2, 8), Shape(64, 128, 6, 8, 4, 16)),
    "the same": ((32, 4, 2, 8), TINY),
    "eight times the hidden size": ((32, 4, 2, 8), Shape(256, 100, 4, 4, 2, 32)),
    "no even ratio": ((32, 4, 2, 8), Shape(49, 70, 5, 7, 7, 12)),
    "odd heads": ((36, 3, 1, 8), Shape(95, 64, 4, 5, 5, 24)),
    "odd heads in groups": ((36, 9, 3, 6), Shape(80, 64, 3, 20, 5, 10)),
    "smaller groups": ((32, 8, 2, 8), Shape(64, 80, 4, 16, 8, 16)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_the_small_models(case, tied, tmp_path):
    sizes, shape = CASES[case]
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    small = checkpoint("llama", tie_word_embeddings=tied, **dict(zip(names, sizes)))
    widen_model.widen(small, tmp_path, shape)
    assert largest_difference(small, tmp_path) < 1e-3


def test_a_wrong_scale_would_show(tmp_path, monkeypatch):
    """The comparison above sees each part of the construction: heads, norms, rotations and channels without effect."""
    small, shape = checkpoint("llama"), CASES["no even ratio"][1]
    for name, wrong in (("query_scale", 1.0), ("norm_scale", 0.7), ("rope_base_power", 1.0)):
        with monkeypatch.context() as patched:
            patched.setattr(Placement, name, property(lambda _, wrong=wrong: wrong))
            widen_model.widen(small, tmp_path / name, shape)
        assert largest_difference(small, tmp_path / name) > 2e-2, name


def test_weights_without_effect_are_random(tmp_path):
    """Every matrix but those that add to the residual stream and the embedding is filled, and changing nothing."""
    small = checkpoint("llama")
    widen_model.widen(small, tmp_path, Shape(256, 256, 6, 16, 8, 16))
    for name, weight in model(tmp_path).named_parameters():
        filled = float((weight != 0).float().mean())
        if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight")):
            assert filled <= 0.5, name
        else:
            assert filled > 0.5, name


def test_norms_and_keys_are_exact_in_bfloat16(tmp_path):
    """Powers of two alone change the stored numbers, so what is stored in bfloat16 is not rounded once more."""
    assert Placement(DEMO, Shape(8192, 28672, 80, 64, 8, 128)).norm_scale == 0.25
    assert Placement(DEMO, Shape(4096, 11008, 32, 32, 32, 128)).norm_scale == 0.5
    small = checkpoint("llama")
    rounded = AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16)
    rounded.save_pretrained(tmp_path / "small")
    widen_model.widen(tmp_path / "small", tmp_path / "wide", Shape(128, 96, 4, 8, 4, 16))
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "bfloat16"
    assert largest_difference(tmp_path / "small", tmp_path / "wide") < 2e-3


def test_greedy_text_and_acceptance_are_the_small_models(wide_demo):
    """Streamed, with the bundled draft and layers that share their bytes: token for token, pass for pass."""
    arguments = {"draft": DEMO_DRAFT, "dtype": "float32", "tree": "sequoia", "tree_size": 12, "context_length": 256}
    with OffloadRuntime.from_pretrained(DEMO_TARGET, device="cpu", **arguments) as runtime:
        expected = runtime.generate(CHAT, temperature=0.0, max_new_tokens=40)
    with streaming_runtime(wide_demo, **arguments) as runtime:
        steps = list(runtime.stream(CHAT, temperature=0.0, max_new_tokens=40))
        reply = runtime.last_reply
        assert runtime.plan.tiers.count("disk") == 8 and reply.stats.streamed_bytes > 0
    assert reply.token_ids == expected.token_ids and reply.text == expected.text
    assert reply.stats.passes == expected.stats.passes < 40
    assert sum(step.accepted for step in steps) == expected.stats.accepted


def test_transformers_writes_the_same_text(tmp_path):
    widen_model.widen(DEMO_TARGET, tmp_path, Shape(512, 700, 7, 8, 4, 128))
    prompt = [1, 4, 300, 77, 1200, 9]
    assert greedy(tmp_path, prompt, 24) == greedy(DEMO_TARGET, prompt, 24)


def test_layers_without_effect_share_their_bytes(wide_demo):
    config = json.loads((wide_demo / "config.json").read_text())
    assert config["stored_layers"] == [0, 1, 5, 2, 3, 6, 4, 5]  # five layers with effect, spread over eight
    assert (wide_demo / "tokenizer.json").read_bytes() == (DEMO_TARGET / "tokenizer.json").read_bytes()
    assert (wide_demo / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape(128, 640, 5, 4, 2, 64), "hidden 128 is less than the 256"),
        (Shape(256, 640, 4, 4, 2, 64), "layers 4 is less than the 5"),
        (Shape(258, 640, 5, 3, 3, 64), "4 key heads are needed"),
    ],
)
def test_shapes_that_are_too_small_are_refused(shape, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        widen_model.widen(DEMO_TARGET, tmp_path / "wide", shape)
    assert not (tmp_path / "wide").exists()


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="only Llama"):
        widen_model.widen(checkpoint("qwen2"), tmp_path, TINY)
    with pytest.raises(UsageError, match="evenly"):
        Shape(64, 64, 1, 5, 2, 8)


def test_command_line(tmp_path, capsys):
    small = ["--hidden", "512", "--ffn", "640", "--layers", "7", "--heads", "8", "--kv-heads", "4", "--head-dim", "64"]
    assert widen_model.main(["--output", str(tmp_path / "wide"), *small, "--idle-layers", "1"]) == 0
    assert "5 layers with effect, 2 without, of which 1 are in the files" in capsys.readouterr().out
    assert widen_model.main(["--output", str(tmp_path / "wide")]) == 2
    assert widen_model.main(["--output", str(tmp_path / "other"), "--shape", "gigantic"]) == 2
    errors = capsys.readouterr().err
    assert "it is not empty" in errors and "llama-2-70b" in errors
