"""`--quantize`: planned before anything is packed, packed at the first start, found at the next ones."""

import json
import os
import shutil
from pathlib import Path

import pytest

from loaders.cache_directory import cache_directory
from loaders.checkpoint.random_weights import SHAPES, write_random_checkpoint
from offload_runtime import OffloadRuntime
from offload_runtime.chat import main
from offload_runtime.errors import (
    DoesNotFitError,
    DraftMismatchError,
    ModelFilesError,
    UnsupportedModelError,
    UsageError,
)
from offload_runtime.loading import quantize_weights as pack_weights
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import prepare
from tests.samples.quantized.quantized_models import decoded_copy, model, packed_model
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, streaming_runtime
from tests.samples.tokenizer_samples import byte_level, word_piece

NEW_TOKENS = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of one model have one fingerprint: each test starts with nothing packed."""
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return shutil.copytree(model("llama"), tmp_path / "model")


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Directories that were packed into, as it happens."""
    done: list[Path] = []
    write = pack_weights.write_quantized

    def noted(quantization, directory, *arguments, **named):
        done.append(directory)
        return write(quantization, directory, *arguments, **named)

    monkeypatch.setattr(pack_weights, "write_quantized", noted)
    return done


def options(source: Path, **values: object) -> Options:
    return Options(source, device="cpu", context_length=96, **{"quantize": "int4", **values})


def text(source: Path, **values: object) -> list[int]:
    with streaming_runtime(source, **{"context_length": 96, "quantize": "int4", **values}) as runtime:
        return runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids


def test_packed_once_and_found_again(source, packings, tmp_path):
    first = text(source)
    [directory] = packings
    assert directory.parent == cache_directory() / "quantized" and directory.name.startswith("model-int4-")
    assert first == greedy(decoded_copy(directory, tmp_path / "decoded"), PROMPT, NEW_TOKENS)
    assert text(source) == first
    assert len(packings) == 1
    assert text(source, quantize="int8") != first
    assert len(packings) == 2 and "-int8-" in packings[1].name


def test_a_changed_model_is_packed_anew(source, packings, tmp_path):
    text(source)
    other = checkpoint("llama", hidden_size=64, head_dim=16, intermediate_size=128, moe_intermediate_size=64, seed=5)
    shutil.copyfile(other / "model.safetensors", source / "model.safetensors")
    changed = text(source)
    assert len(packings) == 2 and packings[0] != packings[1]
    assert changed == greedy(decoded_copy(packings[1], tmp_path / "decoded"), PROMPT, NEW_TOKENS)


def test_an_interrupted_start_leaves_nothing_and_the_next_begins_anew(source, packings):
    def interrupted(stage, done, total):
        assert stage == "packing model to int4"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OffloadRuntime.from_pretrained(source, "none", device="cpu", quantize="int4", progress=interrupted)
    assert not packings[0].exists()
    assert not prepare(options(source)).packing.report
    text(source)
    assert len(packings) == 2 and packings[0].exists()


def test_the_plan_packs_nothing_and_says_what_packing_comes_to(source, packings, tmp_path):
    place = tmp_path / "deep" / "down"
    before = prepare(options(source, quantized_directory=place))
    assert not place.parent.exists() and "packed at the first start and kept in" in str(before.packing)
    text(source, quantized_directory=place)
    assert packings == [place]
    after = prepare(options(source, quantized_directory=place))
    assert before.plan.items == after.plan.items and before.target.checkpoint == after.target.checkpoint
    assert after.packing.report.mean < 0.11 and "% of the weights' norm" in str(after.packing)
    whole = prepare(options(source, quantize=None))
    ratio = sum(u.nbytes for u in after.target.spec.layers) / sum(u.nbytes for u in whole.target.spec.layers)
    assert 1 / 8 < ratio < 1 / 4, "4 bits and scales of float32 weights"


def test_a_plan_that_streams_times_the_files_there_are(source):
    with pytest.raises(DoesNotFitError) as refused:
        prepare(options(source, device_memory=1))
    prepared = prepare(options(source, device_memory=refused.value.needed))
    assert prepared.plan.slots and prepared.machine.disk_bandwidth and not prepared.packing.report


def test_other_files_are_never_written_over(source, packings, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        prepare(options(source, quantized_directory=tmp_path))
    place = tmp_path / "place"
    text(source, quantized_directory=place)
    with pytest.raises(UsageError, match=r"int4, groups of 32.*Remove the directory"):
        prepare(options(source, quantize="int8", quantized_directory=place))
    os.utime(source / "model.safetensors", ns=(0, 0))
    with pytest.raises(UsageError, match="have changed since"):
        prepare(options(source, quantized_directory=place))
    assert packings == [place]


@pytest.mark.parametrize("content", ["{", "{}", '{"kinds": 3, "source": "", "fingerprint": "", "label": ""}'])
def test_a_damaged_report_is_an_error_with_a_way_out(content, source, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    (place / "quantization_report.json").write_text(content)
    with pytest.raises(ModelFilesError, match=r"quantization_report\.json"):
        prepare(options(source, quantized_directory=place))


def test_what_makes_no_sense_is_refused(source, monkeypatch):
    with pytest.raises(UsageError, match="int2"):
        options(source, quantize="int2")
    with pytest.raises(UsageError, match="--quantize int4 or int8"):
        options(source, quantize=None, quantized_directory=Path("x"))
    with pytest.raises(UnsupportedModelError, match="packed already"):
        prepare(options(packed_model("llama", "int4")))
    for name in ("SEQUOIA_OFFLOAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(UsageError, match="--quantized-directory"):
        prepare(options(source))


def test_what_cannot_be_run_is_not_packed_first(source, packings, tmp_path, monkeypatch):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(UnsupportedModelError, match="unheard_of"):
        OffloadRuntime.from_pretrained(source, "none", device="cpu", quantize="int4")
    monkeypatch.setattr("loaders.quantize.recipe.TRANSPOSED_MODELS", set())
    with pytest.raises(UnsupportedModelError, match="is a Conv1D, not a linear layer"):
        OffloadRuntime.from_pretrained(checkpoint("gpt2"), "none", device="cpu", quantize="int4")
    other = shutil.copytree(model("llama"), tmp_path / "draft")
    byte_level().save_pretrained(source)
    word_piece().save_pretrained(other)
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(DraftMismatchError):
        OffloadRuntime.from_pretrained(source, other, device="cpu", quantize="int4")
    assert packings == []


def test_a_model_that_does_not_fit_is_offered_packed(tmp_path):
    """And what is offered works; a packed model is offered nothing of the kind."""
    config = {**SHAPES["small"], "num_hidden_layers": 4, "vocab_size": 64}
    write_random_checkpoint(config, tmp_path / "model")
    limits = {"device": "cpu", "dtype": "float32", "context_length": 32}
    needed = []
    for quantize in (None, "int4"):
        with pytest.raises(DoesNotFitError) as refused:
            prepare(Options(tmp_path / "model", device_memory=1, quantize=quantize, **limits))
        needed.append(refused.value.needed)
    cap = sum(needed) // 2
    with pytest.raises(DoesNotFitError) as refused:
        prepare(Options(tmp_path / "model", device_memory=cap, **limits))
    [offered] = [option for option in refused.value.options if "--quantize" in option]
    assert offered in str(refused.value)
    plan = prepare(Options(tmp_path / "model", device_memory=cap, quantize=offered.split()[1], **limits)).plan
    assert plan.device_bytes <= cap
    with pytest.raises(DoesNotFitError) as refused:
        prepare(Options(tmp_path / "model", device_memory=1, quantize="int4", **limits))
    assert not any("--quantize" in option for option in refused.value.options)


def test_a_calibrated_model_is_found_again_by_its_text(tmp_path, packings, capsys):
    directory, file = tmp_path / "model", tmp_path / "text"
    write_random_checkpoint({**SHAPES["tiny"], "num_hidden_layers": 2}, directory)
    byte_level().save_pretrained(directory)
    file.write_text("It was a dark and stormy night, and nobody had told the rain. " * 40)
    line = ["-m", str(directory), "--quantize", "int4", "-p", "hi", "--max-new-tokens", "2", "--seed", "1"]
    calibrated = [*line, "--calibration", str(file)]
    assert main([*calibrated, "--plan"]) == 0
    assert "calibrated" in capsys.readouterr().out and not packings
    assert main(calibrated) == 0
    output = capsys.readouterr().err
    assert "packing takes about" in output and "calibrated" in output
    assert main(calibrated) == 0 and len(packings) == 1
    assert main(line) == 0 and len(packings) == 2
    file.write_text("Another text. " * 200)
    assert main(calibrated) == 0 and len({*packings}) == 3
    file.write_text("Too short.")
    assert main(calibrated) != 0
    assert "tokens, but --calibration needs at least" in capsys.readouterr().err


def test_a_calibration_needs_a_tokenizer_and_something_to_pack(source):
    with pytest.raises(UsageError, match="has no tokenizer to read text with"):
        text(source, calibration="bundled")
    with pytest.raises(UsageError, match="--calibration bundled is for packing"):
        options(source, quantize=None, calibration="bundled")


def test_the_command_line_states_the_error_once_and_again(tmp_path, capsys):
    directory = tmp_path / "model"
    write_random_checkpoint({**SHAPES["tiny"], "num_hidden_layers": 2}, directory)
    byte_level().save_pretrained(directory)
    line = ["-m", str(directory), "--quantize", "int4", "-p", "hi", "--max-new-tokens", "2", "--seed", "1"]
    line += ["--quantized-directory", str(tmp_path / "packed")]
    assert main(line) == 0
    output = capsys.readouterr()
    assert "packed at the first start" in output.err and "error 8." in output.err and "worst " in output.err
    assert main([*line, "--json"]) == 0 and capsys.readouterr().err == ""
    assert main([*line, "--plan"]) == 0
    assert f"found in {tmp_path / 'packed'}" in capsys.readouterr().out
