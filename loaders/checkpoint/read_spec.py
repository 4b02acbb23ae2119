"""Reads a model's structure and sizes from `config.json` and the headers alone: no torch, no weights."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loaders.checkpoint.config_defaults import completed
from loaders.checkpoint.config_limits import check_config, is_unrotated
from loaders.checkpoint.expert_names import is_by_expert, stated_experts
from loaders.checkpoint.indexed import index_sizes, is_index_key
from loaders.checkpoint.model_source import model_source
from loaders.checkpoint.recurrent import can_branch, is_recurrent, state_sizes
from loaders.checkpoint.refused import why_refused
from loaders.checkpoint.rope_scaling import NO_POSITION_LIMIT, extended_positions
from loaders.checkpoint.spec import DTYPE_NAMES, ITEMSIZE, READ_BY_ROWS, LayerSpec, ModelSpec, aligned
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.formats import read_format
from loaders.formats.lossless import LosslessFormat
from loaders.formats.weights import Contents, Format, told_apart
from loaders.hub.names import directory_name
from loaders.kept_in_float32 import itemsizes
from loaders.lossless.bins import CODE
from loaders.safetensors_files.headers import Checkpoint, StoredTensor
from loaders.text_part import NOT_READ, layers_for_images, text_values

# The projections whose outputs attention caches per token: keys, values, those of multi-head latent attention, and
# those that are both key and value.
LATENT_PROJECTIONS = (".kv_a_proj_with_mqa.weight", ".wkv_a_with_mqa.weight")
CACHED_PROJECTIONS = (".k_proj.weight", ".v_proj.weight", *LATENT_PROJECTIONS)
EXPANDING_PROJECTION = ".kv_b_proj.weight"
SHARED_PROJECTIONS = (".attn.wkv.weight", ".self_attn.kv_proj.weight")

# Tensors that files may hold and models do not use: buffers that are now computed, and multi-token prediction.
UNUSED = re.compile(r"rotary_emb\.inv_freq$|\.(attn|attention)\.(masked_)?bias$|^mtp\.")

LAYER_NUMBER = re.compile(r"(.*?\.)?(\d{1,6})\.")  # up to the first part of a name that is a number
NUMBER = re.compile(r"(?<!\.norms)\.\d+\.")  # of experts, which are stacked; not of StableLM's norms of heads
Itemsize = Callable[[str], int]  # the bytes of a value of a tensor of floats, by the tensor's name

POSITION_LIMITS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "context_length",
)  # fmt: skip


def read_spec(
    directory: Path | str,
    dtype: str = "auto",
    checkpoint: Checkpoint | None = None,
    config: dict[str, Any] | None = None,
) -> ModelSpec:
    """Describe the model in `directory`; `dtype` "auto" computes in the dtype that most weights are stored in.

    Quantized models compute in the dtype that the config states. `checkpoint` and `config` save reading the headers and
    config.json again, or describe files that are not written yet.
    Raises ModelFilesError for missing or damaged files and UnsupportedModelError for models that cannot be run.
    """
    directory = Path(directory)
    source = model_source(directory)
    config = config or read_config(directory)
    checkpoint = checkpoint or source.checkpoint()
    packing = read_format(config, source.config_file)
    contents = told_apart(packing, checkpoint)
    stored_dtype = _stored_dtype(checkpoint, contents, packing)
    dtype = _compute_dtype(dtype, _packed_dtype(config) if packing else stored_dtype)
    tensors_by_layer, embeddings_and_head = _divide(config, checkpoint.directory, _all_tensors(contents))
    experts, experts_per_token = stated_experts(text_values(config))
    itemsize = itemsizes((config["model_type"], text_values(config)["model_type"]), dtype)
    layers = tuple(_layer_spec(name, tensors, itemsize, experts) for name, tensors in tensors_by_layer.items())
    embeddings_and_head = [
        tensor.decoded if isinstance(tensor, _Packed) and tensor.by_rows else tensor for tensor in embeddings_and_head
    ]
    return ModelSpec(
        directory=directory,
        name=directory_name(directory),
        architecture=_architecture(config),
        model_type=text_values(config)["model_type"],
        not_read=NOT_READ.get(config["model_type"], ""),
        dtype=dtype,
        stored_dtype=stored_dtype,
        layers=layers,
        code_bits=packing.bits if isinstance(packing, LosslessFormat) else None,
        embeddings_and_head_bytes=_buffer_bytes(embeddings_and_head, itemsize),
        disk_bytes=sum(layer.disk_bytes for layer in layers) + sum(tensor.nbytes for tensor in embeddings_and_head),
        decode_bytes=max(
            _decode_bytes(tensors, itemsize) for tensors in (*tensors_by_layer.values(), embeddings_and_head)
        ),
        embeddings_and_head_decode_bytes=_decode_bytes(embeddings_and_head, itemsize),
        **_sizes(_Numbers(directory, config), list(tensors_by_layer.values()), embeddings_and_head, dtype),
        recurrent=is_recurrent(config),
        states=state_sizes(text_values(config), list(tensors_by_layer.values()), ITEMSIZE[dtype])
        if can_branch(text_values(config)["model_type"])
        else None,
        index=index_sizes(text_values(config), list(tensors_by_layer.values()), ITEMSIZE[dtype]),
        experts_per_token=experts_per_token if any(layer.experts for layer in layers) else 0,
    )


def read_config(directory: Path | str) -> dict[str, Any]:
    """The unchanged config; rejects models that the config alone shows we cannot run."""
    source = model_source(directory)
    file, config = source.config_file, source.config()
    if not isinstance(config.get("model_type"), str):
        raise ModelFilesError(f"{file}: it names no model_type. Is this the config.json of a transformers model?")
    if refusal := why_refused(config):
        raise UnsupportedModelError(f"{file}: {refusal}")
    check_config(file, config)
    return config


class _Numbers:
    """The numbers in a config, under any of the names that architectures use."""

    def __init__(self, directory: Path, config: dict[str, Any]):
        self.file = model_source(directory).config_file
        self.text = completed(config)
        widths = self.text.get("intermediate_size")
        if isinstance(widths, list) and widths and all(type(width) is int for width in widths):  # of each layer
            self.text = {**self.text, "intermediate_size": max(widths)}

    def get(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is stated. Raises ModelFilesError unless it is a positive number."""
        name = next((name for name in names if self.text.get(name) is not None), names[0])
        value = self.text.get(name, default)
        value = default if value is None else value
        if type(value) is not int or value <= 0:
            raise ModelFilesError(f"{self.file}: {name} is {value!r}, but must be a positive number.")
        return value

    @property
    def layers(self) -> int:
        kinds = self.text.get("layers_block_type")  # one per layer: then the number of layers may be left out
        default = len(kinds) if isinstance(kinds, list) and kinds else None
        return self.get("num_hidden_layers", "n_layer", "n_layers", "num_layers", default=default)

    @property
    def heads(self) -> int:
        stateful = 1 if is_recurrent(self.text) else None
        names = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
        return self.get(*names, default=stateful)

    def head_size(self, hidden_size: int) -> int:
        """The values of one head's key."""
        default = max(1, hidden_size // self.heads)
        return default if is_unrotated(self.text) else self.get("head_dim", default=default)

    def cached_per_layer(self, hidden_size: int) -> int:
        """The values that attention caches per token and layer, for models with fused query, key and value weights."""
        if self.text.get("multi_query") and not self.text.get("new_decoder_architecture"):
            return 2 * self.head_size(hidden_size)
        return 2 * self.head_size(hidden_size) * self.get("num_key_value_heads", "num_kv_heads", default=self.heads)

    @property
    def positions(self) -> tuple[int, str | None]:
        """The model's maximum number of positions, and the scaling that extended it."""
        return extended_positions(self.text, self.get(*POSITION_LIMITS, default=NO_POSITION_LIMIT))


def _sizes(
    numbers: _Numbers, layers: list[list[StoredTensor]], embeddings_and_head: list[StoredTensor], dtype: str
) -> dict[str, Any]:
    """The fields of ModelSpec from the config; values that it leaves out are derived from the tensors."""
    vocabulary, width = max(
        (t.shape for t in embeddings_and_head if len(t.shape) == 2), key=math.prod, default=(None, None)
    )
    widest = max((max(t.shape) for t in layers[0] if len(t.shape) == 2), default=None)
    cached = [0 if _is_linear(tensors) else sum(_cached_values(t) for t in tensors) for tensors in layers]
    hidden_size = numbers.get("hidden_size", "n_embd", "d_model", default=width)
    if not any(cached) and not is_recurrent(numbers.text):
        cached = [numbers.cached_per_layer(hidden_size)] * len(layers)
    head_size = numbers.head_size(hidden_size) if any(cached) else 1
    positions, extension = numbers.positions
    return {
        "vocab_size": numbers.get("vocab_size", default=vocabulary),
        "hidden_size": hidden_size,
        "intermediate_size": numbers.get("intermediate_size", "n_inner", "ffn_dim", default=widest),
        "num_heads": numbers.heads,
        "kv_bytes_per_token": sum(cached) * ITEMSIZE[dtype],
        "largest_kv_bytes": max(cached) * ITEMSIZE[dtype],
        "kv_heads": sum(_cached_heads(*layer, head_size) for layer in zip(layers, cached)),
        "expanded_bytes": max(_expanded_values(tensors, numbers) for tensors in layers) * ITEMSIZE[dtype],
        "shares_kv": bool(numbers.text.get("num_kv_shared_layers")) or _has_kv_sources(numbers.text),
        "max_positions": positions,
        "extension": extension,
    }


def _is_linear(tensors: list[StoredTensor]) -> bool:
    """Whether what stands in a layer's place of attention keeps a state (Kimi's delta rule), and no rows."""
    return any(tensor.name.endswith(".self_attn.A_log") for tensor in tensors)


def _cached_values(tensor: StoredTensor) -> int:
    """The values of each token that attention caches of what a tensor projects."""
    if len(tensor.shape) != 2 or is_index_key(tensor.name):
        return 0
    if tensor.name.endswith(SHARED_PROJECTIONS):
        return 2 * tensor.shape[0]
    return tensor.shape[0] if tensor.name.endswith(CACHED_PROJECTIONS) else 0


def _expanded_values(tensors: list[StoredTensor], numbers: _Numbers) -> int:
    """Of each token in the cache of latent attention: what is projected from it for all heads, and the keys."""
    projected = sum(tensor.shape[0] for tensor in tensors if tensor.name.endswith(EXPANDING_PROJECTION))
    if not projected:
        return 0
    of_keys = [numbers.text.get(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    return projected + numbers.heads * sum(width for width in of_keys if type(width) is int)


def _has_kv_sources(text: dict[str, Any]) -> bool:
    """Whether some layer is said to read the rows of another one."""
    sources = text.get("kv_source_layers")
    return isinstance(sources, list) and sources != [*range(len(sources))]


def _cached_heads(tensors: list[StoredTensor], values: int, head_size: int) -> int:
    """The heads of a layer's cached keys and values; latent attention caches two parts, which all heads share."""
    return 2 if any(t.name.endswith(LATENT_PROJECTIONS) for t in tensors) else -(-values // head_size)


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else config["model_type"]


def _stored_dtype(checkpoint: Checkpoint, contents: Contents, packing: Format | None) -> str:
    """The dtype of most stored bytes, or the name of the quantization format."""
    if packing is not None:
        if not contents.packed:
            raise ModelFilesError(
                f"{checkpoint.directory}: quantization_config says {packing.label}, but no weight is stored that way. "
                "Config and weights are not of the same model."
            )
        return packing.label
    nbytes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        nbytes[tensor.dtype] += tensor.nbytes
    stored = max(nbytes, key=nbytes.__getitem__, default="nothing")
    if stored not in DTYPE_NAMES:
        raise UnsupportedModelError(
            f"{checkpoint.directory}: most weights are stored as {stored}; only {', '.join(DTYPE_NAMES)} can be used."
        )
    return DTYPE_NAMES[stored]


def _packed_dtype(config: dict[str, Any]) -> str:
    """The compute dtype of a quantized model: the config's, else bfloat16."""
    text = text_values(config)
    stated = text.get("dtype") or text.get("torch_dtype")
    return stated if isinstance(stated, str) and stated in ITEMSIZE else "bfloat16"


@dataclass(frozen=True)
class _Packed(StoredTensor):
    """A quantized weight: its dtype and shape once dequantized, but its bytes on disk, in tensors of these sizes."""

    parts: tuple[tuple[str, int], ...] = ()
    by_rows: bool = False  # then it is dequantized at load if it is resident
    has_code: bool = False  # which can stay on the device while the rest streams

    @property
    def decoded(self) -> StoredTensor:
        return StoredTensor(self.name, self.file, self.dtype, self.shape, self.offset, self.nbytes)


def _all_tensors(contents: Contents) -> list[StoredTensor]:
    """Every tensor of a checkpoint, with dequantized shapes."""
    packed = []
    for weight in contents.packed.values():
        first, parts = weight.stand_in, tuple((role, tensor.nbytes) for role, tensor in weight.operands.items())
        nbytes = sum(nbytes for _, nbytes in parts)
        by_rows, has_code = weight.scheme.by_rows, weight.checksum is not None
        place = (weight.name, first.file, first.dtype, weight.shape, first.offset)
        packed.append(_Packed(*place, nbytes, parts, by_rows, has_code))
    return [*contents.plain.values(), *packed]


def _compute_dtype(dtype: str, stored_dtype: str) -> str:
    if dtype == "auto":
        return "float32" if stored_dtype == "float64" else stored_dtype
    if dtype not in ITEMSIZE:
        raise ValueError(f"dtype must be auto, {', '.join(ITEMSIZE)}, not {dtype!r}")
    return dtype


def _divide(
    config: dict[str, Any], directory: Path, tensors: list[StoredTensor]
) -> tuple[dict[str, list[StoredTensor]], list[StoredTensor]]:
    """The tensors of each decoder layer by the layer's name, and those outside; extra layers are left out."""
    used = [tensor for tensor in tensors if not (UNUSED.search(tensor.name) or READ_BY_ROWS.search(tensor.name))]
    stacks: dict[str, dict[int, list[StoredTensor]]] = defaultdict(lambda: defaultdict(list))
    for tensor in used:
        if match := LAYER_NUMBER.match(tensor.name):
            stacks[match[1] or ""][int(match[2])].append(tensor)
    stack = max(stacks, key=lambda name: sum(t.nbytes for layer in stacks[name].values() for t in layer), default="")
    count = _Numbers(directory, config).layers
    numbers = [number for number in range(count) if number not in layers_for_images(config)]
    absent = next((number for number in numbers if number not in stacks[stack]), None)
    if absent is not None:
        raise ModelFilesError(
            f"{model_source(directory).config_file} says {count} layers, but the files hold no tensor of layer "
            f"{absent}. The files are incomplete or of another model; download them again."
        )
    embeddings_and_head = [tensor for tensor in used if not tensor.name.startswith(stack)]
    if config.get("tie_word_embeddings", text_values(config).get("tie_word_embeddings")):
        embeddings_and_head = _without_tied_head(embeddings_and_head)
    return {f"{stack}{number}": stacks[stack][number] for number in numbers}, embeddings_and_head


def _without_tied_head(embeddings_and_head: list[StoredTensor]) -> list[StoredTensor]:
    """Leave out a stored head that is tied to the embedding, which has the same shape."""
    others = {tensor.shape for tensor in embeddings_and_head if not tensor.name.endswith("lm_head.weight")}
    return [
        tensor
        for tensor in embeddings_and_head
        if not (tensor.name.endswith("lm_head.weight") and tensor.shape in others)
    ]


def _layer_spec(name: str, tensors: list[StoredTensor], itemsize: Itemsize, experts: int) -> LayerSpec:
    nbytes, disk_bytes = _buffer_bytes(tensors, itemsize), sum(tensor.nbytes for tensor in tensors)
    stored_at = min((tensor.file, tensor.offset) for tensor in tensors)
    packed = [tensor for tensor in tensors if isinstance(tensor, _Packed)]
    decoded = sum(aligned(math.prod(tensor.shape) * itemsize(tensor.name)) for tensor in packed)
    by_expert = [tensor for tensor in tensors if experts and is_by_expert(tensor.name, tensor.shape, experts)]
    return LayerSpec(
        name,
        nbytes,
        disk_bytes,
        stored_at,
        _buffer_bytes(packed, itemsize),
        decoded,
        experts=experts if by_expert else 0,
        expert_bytes=_buffer_bytes(by_expert, itemsize),
        expert_disk_bytes=sum(tensor.nbytes for tensor in by_expert),
        **_code_bytes(packed, ""),
        **_code_bytes([tensor for tensor in by_expert if isinstance(tensor, _Packed)], "expert_"),
    )


def _code_bytes(packed: Iterable[_Packed], of: str) -> dict[str, int]:
    """The fields of LayerSpec about codes that can stay on the device."""
    coded = [tensor for tensor in packed if tensor.has_code]
    codes = [replace(one, parts=tuple(part for part in one.parts if part[0] in CODE)) for one in coded]
    on_disk = sum(nbytes for one in codes for _, nbytes in one.parts)
    return {f"{of}code_bytes": _buffer_bytes(codes, lambda name: 0), f"{of}code_disk_bytes": on_disk}


def _buffer_bytes(tensors: Iterable[StoredTensor], itemsize: Itemsize) -> int:
    """Bytes of the flat buffer. A layer's experts are one tensor in it: names that differ only in a number add up."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        name = NUMBER.sub(".*.", LAYER_NUMBER.sub("", tensor.name, count=1))
        if isinstance(tensor, _Packed):
            for role, nbytes in tensor.parts:
                sizes[f"{name} {role}"] += nbytes
            continue
        is_float = tensor.dtype.startswith(("F", "BF"))
        sizes[name] += math.prod(tensor.shape) * itemsize(tensor.name) if is_float else tensor.nbytes
    return sum(map(aligned, sizes.values()))


def _decode_bytes(tensors: Iterable[StoredTensor], itemsize: Itemsize) -> int:
    """Dequantized bytes of the largest module's quantized weights, and those of the modules around it.

    A layer's experts are one module: names that differ only in a number belong together.
    """
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if isinstance(tensor, _Packed):
            name = LAYER_NUMBER.sub("", tensor.name, count=1)
            numbered = NUMBER.search(name)
            owner = name[: numbered.start()] if numbered else name.rpartition(".")[0]
            owner = owner.removesuffix(".conv1d")  # which the module around it reads
            sizes[owner] += aligned(math.prod(tensor.shape) * itemsize(tensor.name))
    around = {name: sum(sizes[other] for other in sizes if name.startswith(f"{other}.")) for name in sizes}
    return max((nbytes + around[name] for name, nbytes in sizes.items()), default=0)
