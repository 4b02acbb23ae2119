"""Rounding with a calibration text: what it gains, layer by layer, over interruptions, and what it refuses."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loaders.checkpoint.indexed import can_index
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.quantize.calibrated.calibration import LEAST_ROWS, Calibration, dequantized
from loaders.quantize.calibrated.feedback import round_with_feedback
from loaders.quantize.calibrated.inputs import InputGrams
from loaders.quantize.calibrated.layers import record_calls
from loaders.quantize.calibrated.text import BUNDLED, TOKENS, calibration_text, windows
from loaders.quantize.recipe import Matrix
from loaders.quantize.report import quantization_fingerprint
from loaders.quantize.rounding import pack_rows
from loaders.quantize.write import write_quantized
from loaders.safetensors_files.headers import StoredTensor, read_checkpoint
from tests.samples.quantized.quantized_models import (
    decoded_weight,
    model,
    packed_weights,
    quantization_of,
    stored_tensors,
)
from tests.samples.tiny_models import checkpoint

BITS, GROUP = 4, 32
CPU = torch.device("cpu")


def tokens(texts: int = 8, length: int = 64, seed: int = 0) -> torch.Tensor:
    """Of few distinct ones, so that experts and inputs are used unevenly, as in text."""
    return torch.randint(0, 40, (texts, length), generator=torch.Generator().manual_seed(seed))


def correlated(rows: int, inputs: int, seed: int) -> torch.Tensor:
    """Inputs some directions of which are large, as those of models are."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(inputs, inputs, generator=generator) * torch.logspace(0, -2, inputs)[:, None]
    return torch.randn(rows, inputs, generator=generator) @ directions


def rounded(weight: torch.Tensor, inputs: torch.Tensor | None) -> torch.Tensor:
    matrix = Matrix(StoredTensor("w.weight", Path(), "BF16", tuple(weight.shape), 0, weight.numel() * 2), BITS, GROUP)
    if inputs is None:
        words, scales, _ = pack_rows(weight.to(torch.bfloat16), BITS, GROUP)
    else:
        words, scales, _ = round_with_feedback(weight.clone(), inputs.T @ inputs, BITS, GROUP, torch.bfloat16)
    return dequantized(matrix, words, scales).float()


def test_feedback_halves_the_error_of_outputs():
    weight = torch.randn(48, 160, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).float()
    inputs, fresh = correlated(2000, 160, 1), correlated(2000, 160, 1)[1000:]
    plain, fed = (float(((weight - rounded(weight, used)) @ fresh.T).norm()) for used in (None, inputs))
    assert fed < plain / 2
    other = correlated(2000, 160, 2)  # the control: inputs of another model
    assert float(((weight - rounded(weight, other)) @ fresh.T).norm()) > 1.5 * fed


def test_without_correlations_it_is_about_plain_rounding():
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).float()
    plain, fed = (float((weight - rounded(weight, used)).norm()) for used in (None, 10 * torch.eye(96)))
    assert fed == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("inputs", [torch.zeros(8, 64), torch.ones(8, 64), torch.full((8, 64), 1e-20)])
def test_inputs_that_say_little_do_no_harm(inputs):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).float()
    assert float((weight - rounded(weight, inputs)).norm()) < 0.3 * float(weight.norm())


def test_grams_are_those_of_every_linear_module():
    """Also where several modules read one input, one after the other."""
    torch.manual_seed(0)
    one, other, apart = (torch.nn.Linear(8, 4) for _ in range(3))
    batches = [torch.randn(2, 5, 8) for _ in range(3)]
    weights = {"one": one.weight, "other": other.weight, "apart": apart.weight}
    with torch.no_grad(), InputGrams(weights) as inputs:
        for batch in batches:
            one(batch), other(batch), apart(2 * batch)
    rows = torch.cat(batches).view(-1, 8)
    assert inputs.grams["one"] is inputs.grams["other"], "computed once"
    for name, factor in (("one", 1), ("apart", 4)):
        assert inputs.grams[name].rows == 30
        torch.testing.assert_close(inputs.grams[name].total, factor * rows.T @ rows)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3_moe", "gpt_oss", "qwen3_next"])
def test_layer_by_layer_is_the_model(architecture):
    directory = model(architecture)
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    texts = list(tokens(2, 48)[:, None])
    with torch.inference_mode():
        expected = [whole(input_ids=text, use_cache=False).logits for text in texts]
        calls, states = record_calls(whole, whole.model.layers, texts)
        for layer, call in zip(whole.model.layers, calls, strict=True):
            states = [call.run(layer, state) for state in states]
        for state, logits in zip(states, expected, strict=True):
            last = whole.lm_head(whole.model.norm(state))
            if cap := getattr(whole.config, "final_logit_softcapping", None):
                last = cap * torch.tanh(last / cap)
            torch.testing.assert_close(last, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gemma3n_text", *(["glm_moe_dsa"] if can_index() else [])])
def test_layers_that_need_more_than_the_one_before_are_refused(architecture):
    """Keys of another layer, or the rows that it has selected."""
    directory = checkpoint(architecture)
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with pytest.raises(UnsupportedModelError, match=r"cannot be run one by one.*without --calibration"):
        record_calls(whole, whole.model.layers, list(tokens(2, 16)[:, None]))
    assert "forward" not in vars(whole.model.layers[0]), "the model is as it was"


def write(source: Path, target: Path, progress=None, seed: int = 0):
    quantization = replace(quantization_of(source), calibration=f"tokens {seed}")
    calibration = Calibration(tokens(seed=seed), CPU, progress)
    mark = quantization_fingerprint(quantization)
    return write_quantized(quantization, target, mark, calibration=calibration)


def divergence(source: Path, packed: Path) -> float:
    """Of the packed model's distributions from the source's, nats a token, over texts like the calibration's."""
    before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tensors = stored_tensors(packed)
    after = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    values = dict(after.named_parameters())
    with torch.inference_mode():
        for name, weight in packed_weights(packed).items():
            values[name].copy_(decoded_weight(weight, tensors))
        texts = tokens(seed=9)
        first, second = (each(input_ids=texts).logits.log_softmax(-1) for each in (before, after))
    return float((first.exp() * (first - second)).sum(-1).mean())


def test_the_model_is_nearer_to_what_it_was_made_from(tmp_path):
    source = model("llama")
    report = write(source, tmp_path / "calibrated")
    assert report.label.endswith(", calibrated")
    write_quantized(quantization_of(source), tmp_path / "plain", "of a test")
    plain, calibrated = (divergence(source, tmp_path / name) for name in ("plain", "calibrated"))
    assert calibrated < 0.7 * plain
    first, second = (read_checkpoint(tmp_path / name) for name in ("plain", "calibrated"))
    assert {n: (t.dtype, t.shape) for n, t in first.tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in second.tensors.items()
    }, "the same bits"


def content(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.glob("*.safetensors")}


@pytest.mark.parametrize("share", [0.1, 0.55, 0.9])
def test_an_interrupted_run_goes_on_to_the_same_bits(share, tmp_path):
    source, done = model("llama"), []

    def stop(part: int, whole: int) -> None:
        done.append(part / whole)
        if done[-1] > share:
            raise KeyboardInterrupt

    write(source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "resumed", stop)
    steps: list[float] = []
    write(source, tmp_path / "resumed", lambda part, whole: steps.append(part / whole))
    assert steps[-1] == 1 and steps == sorted(steps)
    assert content(tmp_path / "resumed") == content(tmp_path / "whole")
    write(source, tmp_path / "other", seed=1)
    assert content(tmp_path / "other") != content(tmp_path / "whole"), "the text makes a difference"


def test_experts_that_a_text_hardly_uses_are_rounded_plainly(tmp_path):
    source = model("qwen3_moe")
    write(source, tmp_path / "calibrated")
    write_quantized(quantization_of(source), tmp_path / "plain", "of a test")
    plain, calibrated = (stored_tensors(tmp_path / name) for name in ("plain", "calibrated"))
    words = [name for name in plain if name.endswith("weight_packed")]
    same = [name for name in words if torch.equal(plain[name], calibrated[name])]
    assert any(".experts." in name for name in words) and not any("self_attn" in name for name in same)
    used = {name for name in words if ".experts." in name and name not in same}
    assert used, "experts that many of the 512 tokens go through are calibrated"
    few = tokens(1, LEAST_ROWS - 1)
    quantization = replace(quantization_of(source), calibration="few")
    write_quantized(quantization, tmp_path / "few", "few", calibration=Calibration(few, CPU))
    assert torch.equal(stored_tensors(tmp_path / "few")[words[0]], plain[words[0]])


def test_texts_are_cut_into_pieces_of_one_length(tmp_path):
    ids = list(range(3000))
    pieces = windows(ids, 4096, "x")
    assert [len(piece) for piece in pieces] == [TOKENS] * 5
    assert pieces[0][0] == 0 and pieces[-1][-1] == 2999
    assert all(begin[-1] < end[0] for begin, end in pairwise(pieces))
    assert {len(piece) for piece in windows(ids, 100, "x")} == {100}
    with pytest.raises(ModelFilesError, match="x: this text has 511 tokens, but --calibration needs at least 512"):
        windows(ids[:511], 4096, "x")
    assert len(calibration_text(BUNDLED)) > 100_000
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ModelFilesError, match="latin: it is not UTF-8 text"):
        calibration_text(tmp_path / "latin")
    with pytest.raises(ModelFilesError, match="none: cannot be read for --calibration"):
        calibration_text(tmp_path / "none")
