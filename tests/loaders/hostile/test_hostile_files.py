"""Damaged and hostile files, by seed: each is a clean run or an error of ours, and no header is read as something else.

`HOSTILE_SEEDS=5000 pytest tests/loaders/hostile/test_hostile_files.py --timeout 0` tries more of them.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loaders.checkpoint.read_spec import read_config, read_spec
from loaders.errors import OffloadError
from loaders.gguf.model import read_gguf_checkpoint, read_gguf_config
from loaders.safetensors_files.headers import read_header
from offload_runtime import OffloadRuntime
from offload_runtime.chat.saved import load_chat, save_chat
from offload_runtime.errors import UsageError
from offload_runtime.options.run_options import DEMO_DRAFT
from offload_runtime.options.sampling_options import SamplingOptions
from offload_runtime.speculation import acceptance_store
from offload_runtime.text import chat_template
from offload_runtime.text.conversation import Conversation
from offload_runtime.text.template_process import TemplateProcess
from scheduler.machine import measurements
from tests.loaders.hostile.hostile_files import TEMPLATES, damage_bytes, damage_json, damage_safetensors, damaged_copies
from tests.samples.gguf_samples import gguf_model

SEEDS = int(os.environ.get("HOSTILE_SEEDS", "0"))
PATIENCE = 120  # seconds of computing for one file: what hangs would hang for ever


@contextmanager
def watched(what: object) -> Iterator[None]:
    """Fail where the block computes for too long, whatever the machine's other work."""

    def fail(*_: object) -> None:
        raise AssertionError(f"{what}: still computing after {PATIENCE} s")

    before = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seeds(count: int) -> range:
    return range(SEEDS or count)


def check_message(error: OffloadError) -> None:
    message = str(error)
    assert len(message) < 1800 and all(one.isprintable() or one in "\n\t" for one in message), message


def test_safetensors_headers_are_read_as_they_were_written_or_refused(tmp_path):
    content, file = (DEMO_DRAFT / "model.safetensors").read_bytes(), tmp_path / "model.safetensors"
    places = {(t.dtype, t.shape, t.offset) for t in read_header(DEMO_DRAFT / "model.safetensors").values()}
    length = int.from_bytes(content[:8], "little")
    refused = 0
    for seed in seeds(400):
        damaged = damage_safetensors(content, random.Random(seed))
        file.write_bytes(damaged)
        shift = int.from_bytes(damaged[:8], "little") - length
        with watched(seed):
            try:
                found = read_header(file)
            except OffloadError as error:
                check_message(error)
                refused += 1
            else:  # other names at most, and another header's length
                assert {(t.dtype, t.shape, t.offset - shift) for t in found.values()} == places, seed
    assert refused > 0


@pytest.mark.parametrize("case", ["Q8_0", "mixtral", "gemma3"])
def test_gguf_headers_are_read_as_they_were_written_or_refused(case, tmp_path):
    source, file = gguf_model(case), tmp_path / "model.gguf"
    content = source.read_bytes()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    stated = {name: read_gguf_config(source)[name] for name in names}
    places = {name: (t.kind, t.values) for name, t in read_gguf_checkpoint(source).tensors.items()}
    header = min(tensor.offset for tensor in read_gguf_checkpoint(source).tensors.values())
    refused = 0
    for seed in seeds(250):
        file.write_bytes(damage_bytes(content, random.Random(seed), most=header))
        with watched(seed):
            try:
                config, tensors = read_gguf_config(file), read_gguf_checkpoint(file).tensors
            except OffloadError as error:
                check_message(error)
                refused += 1
            else:
                assert {name: config[name] for name in names} == stated, seed
                assert {name: (t.kind, t.values) for name, t in tensors.items()} == places, seed
    assert refused > 0


def test_configs_are_read_or_refused(tmp_path):
    shutil.copytree(DEMO_DRAFT, tmp_path, dirs_exist_ok=True)
    content, refused = (DEMO_DRAFT / "config.json").read_bytes(), 0
    for seed in seeds(400):
        (tmp_path / "config.json").write_bytes(damage_json(content, random.Random(seed)))
        with watched(seed):
            try:
                read_spec(tmp_path, config=read_config(tmp_path))
            except OffloadError as error:
                check_message(error)
                refused += 1
    assert refused > 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Templates that run for ever are given up sooner."""
    quick = TemplateProcess(processor_seconds=0.5)
    monkeypatch.setattr(chat_template, "template_process", lambda: quick)
    yield
    quick.close()


def use(directory: Path) -> list[int]:
    """Plan, load, and answer a message."""
    with OffloadRuntime.from_pretrained(directory, "none", device="cpu", context_length=256) as runtime:
        json.dumps(runtime.plan.as_dict())
        messages = [{"role": "user", "content": "Hello"}]
        return runtime.generate(messages, max_new_tokens=2, temperature=0).token_ids


@pytest.mark.usefixtures("impatient")
def test_whole_models_run_or_are_refused(tmp_path, monkeypatch):
    """Any file of a model: values, bytes, templates, and FIFOs, devices and directories in a file's place."""
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))
    refused = 0
    for seed, what in damaged_copies(DEMO_DRAFT, tmp_path / "model", seeds(40), lambda name: name != "acceptance.json"):
        with watched(what):
            try:
                assert len(use(tmp_path / "model")) in (1, 2), (seed, what)
            except OffloadError as error:
                check_message(error)
                refused += 1
    assert refused > 0


@pytest.mark.usefixtures("impatient")
def test_hostile_templates_are_refused(tmp_path):
    shutil.copytree(DEMO_DRAFT, tmp_path, dirs_exist_ok=True)
    with OffloadRuntime.from_pretrained(tmp_path, "none", device="cpu", context_length=256) as runtime:
        for template in TEMPLATES:
            runtime.tokenizer.chat_template = template
            with watched(template), pytest.raises(OffloadError) as caught:
                runtime.generate([{"role": "user", "content": "Hello"}], max_new_tokens=1)
            check_message(caught.value)


def test_saved_chats_and_caches_are_read_or_refused(tmp_path, monkeypatch):
    from loaders.checkpoint.model_source import load_tokenizer

    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path))
    conversation = Conversation(load_tokenizer(DEMO_DRAFT), "Be brief.")
    conversation.add_user("Hello")
    conversation.add_reply([5], "Hi", ())
    chat, draft = tmp_path / "chat.json", tmp_path / "draft"
    shutil.copytree(DEMO_DRAFT, draft)
    save_chat(chat, conversation, SamplingOptions())
    measurements.remember("disk", "now", {"bytes_per_second": 1e9})
    files = {
        file: file.read_bytes()
        for file in (chat, tmp_path / measurements.FILE, draft / acceptance_store.ACCEPTANCE_FILE)
    }
    for seed in seeds(60):
        chance = random.Random(seed)
        for file, content in files.items():
            file.write_bytes(chance.choice((damage_json, damage_bytes))(content, chance))
        with watched(seed):
            figures = measurements.recall("disk", "now")
            assert figures is None or all(value > 0 for value in figures.values())
            for read in (lambda: load_chat(chat, conversation), lambda: acceptance_store.load(DEMO_DRAFT, draft)):
                try:
                    read()
                except OffloadError as error:
                    check_message(error)
                    assert isinstance(error, UsageError) == (str(chat) in str(error))
