"""Checkpoints that were packed here: their text is that of the decoded weights, their files are whole or not there."""

import errno
import os
import re
import shutil
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loaders.checkpoint.read_spec import read_config, read_spec
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.io.direct import OpenFile, Workers
from loaders.quantize import write as quantized_checkpoint
from loaders.quantize.report import REPORT_FILE, quantization_fingerprint, read_report
from loaders.quantize.work_directory import begun_bytes
from loaders.quantize.write import write_quantized
from loaders.safetensors_files.headers import read_checkpoint
from offload_runtime import OffloadRuntime
from tests.samples.quantized.quantized_models import (
    decoded_copy,
    model,
    pack,
    packed_model,
    packed_weights,
    quantization_of,
    relative_errors,
    stored_tensors,
)
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, streaming_runtime

NEW_TOKENS = 16
CASES = [
    ("llama", "int4", {}),
    ("llama", "int8", {}),
    ("llama", "int4", {"intermediate_size": 104}),  # whole rows: 104 is no multiple of 32
    ("llama", "int8", {"intermediate_size": 100}),  # and 100 none of 8: such a matrix stays as it is
    ("qwen2", "int4", {}),  # tied embeddings, biases
    ("phi3", "int4", {}),  # projections that are fused on disk
    ("mixtral", "int4", {}),
    ("qwen3_moe", "int4", {}),
    ("qwen3_moe", "int8", {}),
]


@pytest.mark.parametrize(("architecture", "name", "changes"), CASES)
def test_text_is_that_of_the_decoded_weights(architecture, name, changes, tmp_path):
    source, packed = model(architecture, **changes), packed_model(architecture, name, **changes)
    report = read_report(packed)
    decoded = decoded_copy(packed, tmp_path / "decoded")
    expected = greedy(decoded, PROMPT, NEW_TOKENS)
    assert expected != greedy(source, PROMPT, NEW_TOKENS) or name == "int8", "packing must make a difference"
    with streaming_runtime(packed, context_length=96) as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids == expected
    errors = relative_errors(source, packed)
    assert report.mean == pytest.approx(sum(errors.values()) / len(errors), rel=1e-4)
    assert report.worst == pytest.approx(max(errors.values()), rel=1e-4)
    assert report.worst == pytest.approx(errors[f"{report.worst_in}.weight"], rel=1e-4)
    assert sum(kind.matrices for kind in report.kinds.values()) == len(errors)
    most = {"int4": 0.11, "int8": 0.008}[name]
    assert 0 < report.mean < report.worst < most


@pytest.mark.parametrize(("architecture", "name", "changes"), CASES)
def test_sizes_are_known_before_anything_is_packed(architecture, name, changes):
    source, packed = model(architecture, **changes), packed_model(architecture, name, **changes)
    quantization = quantization_of(source, name)
    planned = read_spec(source, "auto", quantization.checkpoint(packed), quantization.config(read_config(source)))
    planned = replace(planned, directory=packed, name="packed")
    assert planned == read_spec(packed)
    assert quantization.checkpoint(packed) == read_checkpoint(packed)
    assert quantization.nbytes == read_checkpoint(packed).nbytes


def test_what_stays_as_it_is():
    """Outer weights, norms, biases and routers; odd inputs."""
    for architecture, odd in (("llama", {}), ("qwen2", {}), ("qwen3_moe", {}), ("llama", {"intermediate_size": 100})):
        kept = {re.sub(r"\.\d+\.", ".", tensor.name) for tensor in quantization_of(model(architecture, **odd)).kept}
        wanted = r"embed_tokens|lm_head|norm|\.bias$|mlp\.gate\.weight" + ("|down_proj" if odd else "")
        assert all(re.search(wanted, name) for name in kept), kept
        assert not odd or "model.layers.mlp.down_proj.weight" in kept


def test_bfloat16_stays_bfloat16(tmp_path):
    source, packed = tmp_path / "source", tmp_path / "packed"
    shutil.copytree(model("llama"), source)
    tensors = {name: tensor.bfloat16() for name, tensor in stored_tensors(source).items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    pack(source, packed)
    after = stored_tensors(packed)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16, torch.int32, torch.int64}
    assert read_config(packed)["dtype"] == read_spec(packed).dtype == "bfloat16"
    assert torch.equal(after["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    errors = relative_errors(source, packed)
    assert read_report(packed).mean == pytest.approx(sum(errors.values()) / len(errors), rel=1e-4)


def test_shards_hold_what_one_file_holds(tmp_path):
    source = model("qwen3_moe")
    pack(source, tmp_path / "whole")
    pack(source, tmp_path / "parts", shard_bytes=50_000)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = stored_tensors(tmp_path / "whole"), stored_tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert read_checkpoint(tmp_path / "parts").nbytes == quantization_of(source).nbytes


def test_pieces_make_no_difference(tmp_path, monkeypatch):
    source = model("llama")
    pack(source, tmp_path / "whole")
    monkeypatch.setattr(quantized_checkpoint, "BLOCK_BYTES", 1000)
    report = pack(source, tmp_path / "pieces")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "pieces/model.safetensors").read_bytes()
    assert report.mean == pytest.approx(read_report(tmp_path / "whole").mean)


def test_a_piece_for_each_thread_is_in_memory_and_no_more(tmp_path, monkeypatch):
    """However large the model: what is read but not yet written, counted, against a layer's bytes."""
    monkeypatch.setattr(quantized_checkpoint, "BLOCK_BYTES", 4096)
    held, most, made, lock = 0, 0, [], threading.Lock()
    read, run, init = OpenFile.read, Workers.run, Workers.__init__

    def counting_read(self, start, stop, memory):
        nonlocal held, most
        with lock:
            held += stop - start
            most = max(most, held)
        return read(self, start, stop, memory)

    def counting_run(self, items, work):
        def counted(piece, memory):
            nonlocal held
            work(piece, memory)
            with lock:
                held -= piece.file_range[1] - piece.file_range[0]

        run(self, items, counted)

    def noting_init(self, threads, chunk_bytes):
        made.append((threads, chunk_bytes))
        init(self, threads, chunk_bytes)

    monkeypatch.setattr(OpenFile, "read", counting_read)
    monkeypatch.setattr(Workers, "run", counting_run)
    monkeypatch.setattr(Workers, "__init__", noting_init)
    source = model("llama")
    pack(source, tmp_path / "packed")
    [(threads, chunk_bytes)] = made
    assert held == 0 and chunk_bytes == 4096
    assert 4096 <= most <= threads * 4096
    assert most < min(layer.disk_bytes for layer in read_spec(source).layers)


def test_what_belongs_to_the_model_is_copied_and_code_is_not(tmp_path):
    source, packed = tmp_path / "source", tmp_path / "packed"
    shutil.copytree(model("llama"), source)
    (source / "additional_chat_templates").mkdir()
    template = "additional_chat_templates/tools.jinja"
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "merges.txt",
        "modeling_mine.py",
        "pytorch_model.bin",
        template,
    ):
        (source / name).write_text("{}")
    (source / "model.safetensors.index.json").write_text("{}")
    pack(source, packed)
    assert {str(file.relative_to(packed)) for file in packed.rglob("*") if file.is_file()} == {
        *("model.safetensors", "config.json", REPORT_FILE, "generation_config.json"),
        *("tokenizer.json", "chat_template.jinja", "merges.txt", template),
    }


def nothing_is_left(directory: Path) -> bool:
    return not any(directory.parent.glob(f"*{directory.name}*"))


def interrupted_after(calls, error):
    """A progress that raises at the so manyth call, and the list of what it was told."""
    told = []

    def progress(done, total):
        told.append((done, total))
        if len(told) == calls:
            raise error

    return progress, told


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(quantized_checkpoint, "BLOCK_BYTES", 1000)  # many: others may be under way when one fails
    source, packed = model("llama"), tmp_path / "out" / "packed"
    progress, told = interrupted_after(5, MemoryError)
    with pytest.raises(MemoryError):
        write_quantized(quantization_of(source), packed, "", progress)
    assert all(done < total for done, total in told) and nothing_is_left(packed)
    pack(source, packed)
    assert packed_weights(packed)


def packed_in_parts(source, directory, monkeypatch, change=lambda left: None, fingerprint="x"):
    """Pack, interrupted after five pieces and begun again; the report and what the second call told of its progress."""
    monkeypatch.setattr(quantized_checkpoint, "BLOCK_BYTES", 2000)
    progress, _ = interrupted_after(5, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        write_quantized(quantization_of(source), directory, "x", progress)
    assert not directory.exists() and begun_bytes(directory)
    change(directory.with_name(f".{directory.name}.partial"))
    progress, told = interrupted_after(-1, None)
    return write_quantized(quantization_of(source), directory, fingerprint, progress), told


def test_an_interruption_goes_on_where_it_was(tmp_path, monkeypatch):
    source, whole, parts = model("llama"), tmp_path / "whole", tmp_path / "parts"
    expected = write_quantized(quantization_of(source), whole, "x")
    report, told = packed_in_parts(source, parts, monkeypatch)
    names = {str(file.relative_to(whole)) for file in whole.rglob("*")}
    assert names == {str(file.relative_to(parts)) for file in parts.rglob("*")}
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert told[0][0] > 5 * 2000 * 0.5 and told[-1][0] == told[-1][1]  # five pieces were not packed again
    assert report.mean == pytest.approx(expected.mean) and report.worst_in == expected.worst_in
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("what", ["other files", "a shorter file", "no file", "no journal", "torn journal"])
def test_what_is_left_of_something_else_is_begun_anew(what, tmp_path, monkeypatch):
    def change(left):
        journal, weights = left / "packed_pieces", left / "model.safetensors"
        if what == "a shorter file":
            os.truncate(weights, 1000)
        elif what == "no file":
            weights.unlink()
        elif what == "no journal":
            journal.unlink()
        elif what == "torn journal":
            os.truncate(journal, journal.stat().st_size - 10)

    source, parts = model("llama"), tmp_path / "parts"
    fingerprint = "y" if what == "other files" else "x"
    _, told = packed_in_parts(source, parts, monkeypatch, change, fingerprint)
    pack(source, tmp_path / "whole")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert (told[0][0] <= 4000) == (what != "torn journal")


def test_packing_says_how_long_it_takes_and_uses_all_cores(tmp_path, monkeypatch):
    quantization, made, init = quantization_of(model("llama")), [], Workers.__init__
    one = quantized_checkpoint.packing_seconds(quantization)
    assert quantized_checkpoint.packing_seconds(quantization, quantization.nbytes // 2) > 0 and one < 60
    assert quantized_checkpoint.packing_seconds(quantization, quantization.nbytes) == 0

    def noting_init(self, threads, chunk_bytes):
        made.append((threads, torch.get_num_threads()))
        init(self, threads, chunk_bytes)

    monkeypatch.setattr(quantized_checkpoint, "cores", lambda: 24)
    monkeypatch.setattr(Workers, "__init__", noting_init)
    pack(model("llama"), tmp_path / "packed")
    assert made[0][0] == 25


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".packed.partial"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    (left / "tokenizer.json").write_text("of another model")
    pack(model("llama"), tmp_path / "packed")
    assert not left.exists()
    assert not (tmp_path / "packed" / "tokenizer.json").exists()


def test_two_processes_do_not_write_the_same_files(tmp_path):
    quantization, packed, messages = quantization_of(model("llama")), tmp_path / "packed", []

    def progress(done, total):
        if not messages:
            messages.append("")
            with pytest.raises(ModelFilesError, match="another process is packing") as raised:
                write_quantized(quantization, packed, "")
            messages[0] = str(raised.value)

    write_quantized(quantization, packed, "", progress)
    assert messages[0] and packed_weights(packed)


def test_a_full_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    source, packed = model("llama"), tmp_path / "packed"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(ModelFilesError, match=r"needed, but 1\.00 kB are free.*--quantized-directory"):
        pack(source, packed)
    assert nothing_is_left(packed)


def test_a_disk_that_fills_up_meanwhile(tmp_path, monkeypatch):
    source, packed, calls, write = model("llama"), tmp_path / "packed", [], os.pwrite

    def failing(descriptor, content, offset):
        calls.append(offset)
        if len(calls) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(ModelFilesError, match=r"No space left on device.*is removed.*--quantized-directory"):
        pack(source, packed)
    assert nothing_is_left(packed)


def test_a_place_that_is_taken(tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "letter.txt").write_text("mine")
    with pytest.raises(ModelFilesError, match="must be empty"):
        pack(model("llama"), packed)
    assert (packed / "letter.txt").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(model("llama"), source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFilesError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds values that are no"):
        pack(source, tmp_path / "packed")
    assert nothing_is_left(tmp_path / "packed")


def test_a_truncated_source_is_refused(tmp_path):
    """One that shrinks after its header was read."""
    source = tmp_path / "source"
    shutil.copytree(model("llama"), source)
    quantization = quantization_of(source)
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(ModelFilesError, match="truncated"):
        write_quantized(quantization, tmp_path / "packed", "")
    assert nothing_is_left(tmp_path / "packed")


def test_models_that_cannot_be_packed_say_why():
    with pytest.raises(UnsupportedModelError, match="packed already"):
        quantization_of(packed_model("llama", "int4"))
    with pytest.raises(UnsupportedModelError, match="transposed"):
        quantization_of(checkpoint("gpt2"))
    with pytest.raises(UnsupportedModelError, match=r"experts\.\w+.*cannot be packed"):
        quantization_of(checkpoint("gpt_oss", intermediate_size=256))


def test_the_fingerprint_follows_files_and_bits(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(model("llama"), source)
    marks = [quantization_fingerprint(quantization_of(source, name)) for name in ("int4", "int8", "int4")]
    assert marks[0] == marks[2] != marks[1]
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (source / "model.safetensors").write_bytes(content)
    assert quantization_fingerprint(quantization_of(source)) != marks[0]


def test_a_flipped_bit_changes_the_text(tmp_path):
    """The control of the exactness above."""
    packed = shutil.copytree(packed_model("llama", "int4"), tmp_path / "packed")
    expected = greedy(decoded_copy(packed, tmp_path / "decoded"), PROMPT, NEW_TOKENS)
    words = read_checkpoint(packed).tensors["model.layers.1.mlp.down_proj.weight_packed"]
    with words.file.open("r+b") as file:
        file.seek(words.offset)
        content = file.read(256)
        file.seek(words.offset)
        file.write(bytes(byte ^ 0x88 for byte in content))
    with OffloadRuntime.from_pretrained(packed, "none", device="cpu", context_length=96) as runtime:
        assert runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids != expected


def test_the_config_names_every_size_and_what_is_left_out():
    for name, inputs in (("int4", 32), ("int8", 64)):
        config = read_config(packed_model("llama", name, intermediate_size=104))["quantization_config"]
        groups = {tuple(group["targets"]): group["weights"] for group in config["config_groups"].values()}
        assert groups[("Linear",)]["group_size"] == inputs
        assert groups[("re:.*\\.down_proj$",)]["strategy"] == "channel"
        assert "lm_head" in config["ignore"]
    groups = read_config(packed_model("llama", "int8"))["quantization_config"]["config_groups"]
    assert sorted(group["weights"]["group_size"] for group in groups.values()) == [64, 128]
    config = read_config(packed_model("qwen3_moe", "int4"))["quantization_config"]
    assert "re:.*\\.gate$" in config["ignore"]
    assert len(config["config_groups"]) == 1, "experts share one size"
