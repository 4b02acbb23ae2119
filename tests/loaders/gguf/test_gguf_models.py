"""Models from GGUF files: streamed packed, decoded before use, greedy text that of the decoded weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.integrations.gguf as transformers_gguf

from loaders.checkpoint.model_source import load_tokenizer, model_source, read_vocabulary
from loaders.checkpoint.read_spec import read_spec
from loaders.dequantize.at_load import fill_decoded
from loaders.dequantize.hooks import scratch_bytes
from loaders.errors import ModelFilesError
from loaders.gguf.families import known
from loaders.gguf.header import read_gguf
from loaders.modules.skeleton import build_skeleton
from offload_runtime import OffloadRuntime
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET
from scheduler.plan.plan import Tier
from tests.samples.gguf_samples import CASES, gguf, gguf_model, write_gguf
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, perturbed, reference, streaming_runtime
from tests.samples.tokenizer_samples import BYTES, SPECIAL, WORDS, metaspace

NEW_TOKENS = 24
TREE = {"context_length": 96, "tree": "sequoia", "tree_size": 12, "tree_depth": 4}
every_case = pytest.mark.parametrize("case", CASES)


def text_of(file: Path, draft: Path | str = "none") -> list[int]:
    with streaming_runtime(file, draft, dtype="float32", **TREE) as runtime:
        return runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0).token_ids


@every_case
def test_streamed_text_is_that_of_the_decoded_weights(case):
    """Every other case with a tree from a draft that is sometimes right, the others plainly."""
    file = gguf_model(case)
    draft = perturbed(file.parent / "decoded", 0.02) if list(CASES).index(case) % 2 else "none"
    with streaming_runtime(file, draft, dtype="float32", **TREE) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(file.parent / "decoded", PROMPT, NEW_TOKENS)
    assert reply.stats.peak_device_bytes <= runtime.plan.device_budget
    packed = sum(layer.disk_bytes for layer in read_spec(file).layers)
    assert abs(runtime.plan.streamed_bytes - packed) < packed / 20, "packed bytes are streamed as they are"
    assert draft == "none" or reply.stats.tokens_per_pass > 1.5


@every_case
def test_decoded_weights_are_the_package_s(case):
    """Every weight as its module finds it, bit for bit, on a text that needs all experts."""
    file = gguf_model(case)
    expected = reference(file.parent / "decoded").state_dict()
    found = {}
    options = {"device": "cpu", "dtype": "float32", "context_length": 96}
    with OffloadRuntime.from_pretrained(file, "none", **options) as runtime:
        model = runtime._models.target.model._model
        for prefix, module in model.named_modules():
            keep = _keeps(found, prefix)
            module.register_forward_pre_hook(keep)
        runtime.generate(list(range(2, 90)), max_new_tokens=1, temperature=0)
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def _keeps(found, prefix):
    def hook(module, args):
        for leaf, parameter in module.named_parameters(recurse=False):
            found[f"{prefix}.{leaf}"] = parameter.detach().clone()

    return hook


@pytest.mark.parametrize(("family", "case"), [("llama", "Q8_0"), ("llama", "F16"), ("gemma2", "gemma2")])
def test_what_decoding_undoes_matters(family, case, monkeypatch):
    """The control: rows left in pairs, or norms with 1 added, give another text."""
    changed = replace(known.FAMILIES[family], paired=False, norms_plus_one=False)
    monkeypatch.setitem(known.FAMILIES, family, changed)
    assert text_of(gguf_model(case)) != greedy(gguf_model(case).parent / "decoded", PROMPT, NEW_TOKENS)


def test_other_rotations_matter(monkeypatch):
    """The control for frequencies that a tensor holds."""
    file = gguf_model("llama with other rotations")
    monkeypatch.setattr("loaders.gguf.rotations._by_factors", lambda *arguments: {})
    assert text_of(file) != greedy(file.parent / "decoded", PROMPT, NEW_TOKENS)


@pytest.mark.parametrize("case", ["llama 3, mixed K", "qwen2"])
def test_a_flipped_byte_of_a_layer_or_of_the_embedding_changes_the_text(case, tmp_path):
    for part in ("blk.1.ffn_up.weight", "token_embd.weight"):
        file = shutil.copyfile(gguf_model(case), tmp_path / "model.gguf")
        tensor = read_gguf(file).tensors[part]
        with file.open("r+b") as stream:
            stream.seek(tensor.offset + (tensor.nbytes // tensor.values[0]) * (PROMPT[-1] if "embd" in part else 0))
            content = stream.read(tensor.nbytes // tensor.values[0])
            stream.seek(-len(content), 1)
            stream.write(bytes(byte ^ 0x24 for byte in content))
        assert text_of(file) != greedy(gguf_model(case).parent / "decoded", PROMPT, NEW_TOKENS)


def test_the_peak_is_planned_where_decoded_layers_are_the_smaller_ones(tmp_path):
    """float32 in another order, computed with in 16 bits: what is yet to be decoded is larger than what was."""
    file = write_gguf(checkpoint("llama", num_hidden_layers=48), tmp_path / "model.gguf", lambda name: "F32")
    options = {"device": "cpu", "dtype": "bfloat16", "context_length": 16, "tree": "none"}
    with OffloadRuntime.from_pretrained(file, "none", **options) as runtime:
        reply = runtime.generate(PROMPT[:4], max_new_tokens=2, temperature=0)
        assert runtime.plan.decoded.target == 48
        assert reply.stats.peak_device_bytes <= runtime.plan.device_bytes


def test_decoding_counts_up_to_all_of_what_is_decoded(tmp_path):
    """The first layer of this file is not packed."""
    source = checkpoint("qwen2", num_hidden_layers=3)
    file = write_gguf(source, tmp_path / "model.gguf", lambda name: "F32" if ".layers.0." in name else "Q8_0")
    counts = []
    options = {"device": "cpu", "dtype": "float32", "context_length": 96}
    with OffloadRuntime.from_pretrained(file, "none", **options, progress=lambda *count: counts.append(count)):
        pass
    decoding = [(done, total) for stage, done, total in counts if stage.startswith("decoding ")]
    assert len(decoding) == 2 and decoding[-1][0] == decoding[-1][1] == 2 * decoding[0][0]


def test_a_file_cut_off_after_its_header_was_read_is_an_error(tmp_path):
    file = Path(shutil.copyfile(gguf_model("Q8_0"), tmp_path / "model.gguf"))
    checkpoint = model_source(file).checkpoint()
    skeleton = build_skeleton(file, torch.float32, "cpu", "eager", checkpoint)
    embedding = checkpoint.tensors["model.embed_tokens.weight"]
    with file.open("r+b") as stream:
        stream.truncate(embedding.offset + embedding.nbytes - 1)
    buffer = torch.empty(skeleton.embeddings_and_head.layout.nbytes, dtype=torch.uint8)
    with pytest.raises(ModelFilesError, match=r"ends within model\.embed_tokens"):
        fill_decoded(skeleton, buffer)


def test_a_draft_from_a_gguf_file():
    target = gguf_model("Q8_0")
    with streaming_runtime(target.parent / "decoded", target, **TREE) as runtime:
        reply = runtime.generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == greedy(target.parent / "decoded", PROMPT, NEW_TOKENS)
    assert reply.stats.tokens_per_pass > 3


@every_case
def test_sizes_are_those_of_the_skeleton(case):
    file = gguf_model(case)
    for dtype in ("float32", "bfloat16"):
        spec, skeleton = read_spec(file, dtype), build_skeleton(file, getattr(torch, dtype), "cpu", "eager")
        plain = read_spec(file.parent / "decoded", dtype)
        assert [layer.nbytes for layer in spec.layers] == [layer.layout.nbytes for layer in skeleton.layers]
        assert [layer.weight_bytes for layer in spec.layers] == pytest.approx(
            [layer.nbytes for layer in plain.layers], rel=0.1
        )
        assert (spec.decode_bytes, spec.embeddings_and_head_bytes) == (
            scratch_bytes(skeleton.packed),
            skeleton.embeddings_and_head.layout.nbytes,
        )
        assert spec.embeddings_and_head_bytes == plain.embeddings_and_head_bytes, "embeddings and head are kept decoded"
        for size in (
            "kv_bytes_per_token",
            "hidden_size",
            "intermediate_size",
            "vocab_size",
            "num_heads",
            "max_positions",
        ):
            assert getattr(spec, size) == getattr(plain, size)
    assert read_spec(file).dtype == {"F16": "float16", "F32 qwen2": "float32"}.get(case, "bfloat16")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The bundled pair as GGUF files, tokenizer and all."""
    files = {}
    for name, source in (("target", DEMO_TARGET), ("draft", DEMO_DRAFT)):
        directory = tmp_path_factory.mktemp(name)
        files[name] = write_gguf(source, directory / f"{name}-Q8_0.gguf", lambda tensor: "Q8_0")
    return files


TEXTS = (
    "def f(x):\n    return x+1\n\n",
    "Hello  World's 12345 <|user|> Größe 你好 😀\t\n\n x",
    "   leading <|endoftext|>",
    "What does the function `os.path.join` do?",
)


def test_the_vocabulary_is_the_original_s(pair):
    assert read_vocabulary(pair["target"]) == read_vocabulary(DEMO_TARGET) == load_tokenizer(DEMO_TARGET).get_vocab()
    assert read_vocabulary(pair["target"].with_name("absent.gguf")) is None


def test_the_tokenizer_is_the_original_s(pair):
    ours, original = load_tokenizer(pair["target"]), load_tokenizer(DEMO_TARGET)
    assert ours.get_vocab() == original.get_vocab()
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False) == original.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text, add_special_tokens=False)) == text
    for messages in ([{"role": "user", "content": "hi"}], [{"role": "system", "content": "a"}]):
        rendered = [
            t.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for t in (ours, original)
        ]
        assert rendered[0] == rendered[1]
    assert (ours.eos_token, ours.bos_token) == (original.eos_token, original.bos_token)


def test_a_chat_by_the_name_of_a_file_or_of_its_directory(pair):
    """With a draft, whose tokens are compared with the target's, and the template and the end of a turn of the file."""
    options = {"device": "cpu", "dtype": "float32", "context_length": 256, "tree": "sequoia", "tree_size": 8}
    question, replies = [{"role": "user", "content": "What is the module `json` for?"}], []
    for model in (pair["target"], pair["target"].parent):
        with OffloadRuntime.from_pretrained(model, pair["draft"], **options) as runtime:
            assert runtime.plan.model == "target-Q8_0"
            replies.append(runtime.generate(question, max_new_tokens=40, temperature=0))
    first, second = replies
    assert first.text and (first.text, first.token_ids) == (second.text, second.token_ids)
    assert first.stats.tokens_per_pass > 1.2
    with OffloadRuntime.from_pretrained(pair["target"].parent / "decoded", "none", **options) as runtime:
        prompt = load_tokenizer(DEMO_TARGET).apply_chat_template(question, add_generation_prompt=True)["input_ids"]
        assert runtime.generate(prompt, max_new_tokens=40, temperature=0).token_ids == first.token_ids


def test_a_file_without_a_tokenizer():
    file = gguf_model("Q4_0")
    assert not model_source(file).has_tokenizer()
    with pytest.raises(ModelFilesError, match="holds no tokenizer"):
        load_tokenizer(file)


@pytest.mark.parametrize(("architecture", "prefix"), [("llama", True), ("phi3", True), ("gemma2", False)])
def test_sentencepiece_vocabularies(architecture, prefix, tmp_path):
    """Llama 2, Mistral, Phi 3 and Gemma: merges follow from scores, text may begin with a space of its own."""
    if architecture != "llama" and not hasattr(transformers_gguf, "convert_gguf_tokenizer"):
        pytest.skip("before transformers 5.20 these have the special tokens of the published models in any case")
    original, kinds = metaspace(), gguf.TokenType
    tokens = original.convert_ids_to_tokens(range(len(original)))
    special = {"<unk>": kinds.UNKNOWN} | dict.fromkeys(SPECIAL[1:], kinds.CONTROL) | dict.fromkeys(BYTES, kinds.BYTE)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types([special.get(token, kinds.NORMAL) for token in tokens])
    for add, token in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(token)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    found = load_tokenizer(tmp_path / "model.gguf")
    assert found.get_vocab() == original.get_vocab()
    assert found.encode("hello")[0] == found.bos_token_id == 1
    for text in dict.fromkeys(WORDS):
        ids = found.encode(text, add_special_tokens=False)
        expected = original.encode(text, add_special_tokens=False)
        if not prefix:
            assert expected != ids
            expected = original.encode(f"</s>{text}", add_special_tokens=False)[1:]
        assert (ids, found.decode(ids)) == (expected, text)
