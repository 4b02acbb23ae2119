"""What a plan needs to know about a model: its layers, their sizes, and the config's numbers. No torch, no files."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Every tensor of a layer's buffer starts at a multiple of this many bytes, as CUDA's allocator guarantees too: kernels
# use other code paths for unaligned addresses.
BUFFER_ALIGNMENT = 256

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

# Tables of which a token needs a few rows stay on disk: names of the tensors, of which one table may be several.
READ_BY_ROWS = re.compile(r"\.ngram_embedding(\.shard_\d+)?\.weight$")

_NO_CODES: dict[str, Any] = dict.fromkeys(
    ("code_bytes", "code_disk_bytes", "expert_code_bytes", "expert_code_disk_bytes"), 0
)

# Why KV rows can neither travel with their layer nor be dequantized for it alone.
SHARED_ROWS = "some layers read what others have cached"


@dataclass(frozen=True)
class HeadSizes:
    """Of a draft head, which reads hidden states of its target: values of a row that it takes from the target, and
    values of a row that it reads in one pass and gives for the next (`width`). by_level: each level of a tree takes a
    pass; else one pass over a block gives them all."""

    captured: int
    width: int
    by_level: bool = True


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: its name, the bytes of its flat buffer in the compute dtype, and its bytes on disk.

    `stored_at` says where those begin; random layers that repeat each other share it. `packed_bytes` of the buffer are
    quantized; `decoded_bytes` is their size in the compute dtype. `expert_bytes` of the buffer belong to single experts
    of equal size; a pass fetches only the routed ones. `code_bytes` of the packed ones are codes that can stay on the
    device, those of experts among them, and once they do, `resident_code_bytes` beside the buffer.
    """

    name: str
    nbytes: int
    disk_bytes: int
    stored_at: tuple[Path, int] | None = None
    packed_bytes: int = 0
    decoded_bytes: int = 0
    experts: int = 0
    expert_bytes: int = 0
    expert_disk_bytes: int = 0
    code_bytes: int = 0
    code_disk_bytes: int = 0
    expert_code_bytes: int = 0
    expert_code_disk_bytes: int = 0
    resident_code_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """All weights in the compute dtype."""
        return self.nbytes - self.packed_bytes + self.decoded_bytes

    @property
    def device_bytes(self) -> int:
        """Bytes of a layer that is resident, codes beside its buffer included."""
        return self.nbytes + self.resident_code_bytes

    @property
    def decoded(self) -> LayerSpec:
        """The same layer once its quantized weights are dequantized at load."""
        expert_bytes = self.expert_bytes * self.weight_bytes // self.nbytes
        whole = replace(self, nbytes=self.weight_bytes, packed_bytes=0, decoded_bytes=0, expert_bytes=expert_bytes)
        return replace(whole, **_NO_CODES, resident_code_bytes=0)

    @property
    def without_code(self) -> LayerSpec:
        """The same layer where its codes stay on the device."""
        return replace(
            self,
            nbytes=self.nbytes - self.code_bytes,
            packed_bytes=self.packed_bytes - self.code_bytes,
            disk_bytes=self.disk_bytes - self.code_disk_bytes,
            expert_bytes=self.expert_bytes - self.expert_code_bytes,
            expert_disk_bytes=self.expert_disk_bytes - self.expert_code_disk_bytes,
            **_NO_CODES,
            resident_code_bytes=self.code_bytes,
        )


@dataclass(frozen=True)
class StateSizes:
    """Of all recurrent layers that branch: bytes of the states of one text, and bytes that an uncommitted row adds.

    heads, width: of one layer; width is that of a key and a value together. decays: of one layer, where every channel
    of the keys has its own.
    """

    nbytes: int
    row_bytes: int
    heads: int
    width: int
    decays: int = 0


@dataclass(frozen=True)
class IndexSizes:
    """Of indexers that select the rows of attention: bytes of their keys per token, of all layers together.

    heads: of one layer, which scores all keys with each of them. masks: of one layer: selections that it makes.
    pools: rows also keep what is pooled to entries that stand for blocks of tokens, counted with the keys. rate: the
    tokens of such a block; its entry is scored in their place.
    """

    token_bytes: int
    heads: int
    masks: int = 1
    pools: bool = False
    rate: int = 1


@dataclass(frozen=True)
class RowSizes:
    """Bytes of KV rows per token: of all layers together, and of the layer that caches most."""

    token_bytes: int
    layer_bytes: int


@dataclass(frozen=True)
class ModelSpec:
    """What a plan needs to know about a model. Bytes are in the compute dtype unless said otherwise."""

    directory: Path
    name: str  # see `directory_name`
    architecture: str  # "LlamaForCausalLM"
    model_type: str
    dtype: str  # compute dtype: "float32", "bfloat16" or "float16"
    stored_dtype: str  # of most bytes on disk, or their quantization: "AWQ 4-bit"
    layers: tuple[LayerSpec, ...]
    embeddings_and_head_bytes: int  # embeddings, final norm and head, which stay on the device; a tied head counts once
    disk_bytes: int  # of all tensors the model uses
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    kv_bytes_per_token: int  # of all layers together; one layer's: `kv_layer_bytes`
    max_positions: int
    recurrent: bool  # some layers are recurrent: they keep a state beside keys and values
    decode_bytes: int = 0  # device memory for dequantizing, one module at a time
    embeddings_and_head_decode_bytes: int = 0  # the part of it for weights outside the layers
    experts_per_token: int = 0  # in each layer; 0 if experts are not fetched singly
    largest_kv_bytes: int = 0  # per token, of the layer that caches most; 0: all cache as much
    kv_heads: int = 0  # keys and values of one head that all layers together cache per token
    computed_rows: RowSizes | None = None  # where KV rows are stored in 8 bits: as attention reads them
    expanded_bytes: int = 0  # per token: keys and values of a layer that latent attention expands for a pass
    shares_kv: bool = False  # some layers read what others have cached
    states: StateSizes | None = None  # of recurrent layers that follow the branches of a tree
    index: IndexSizes | None = None  # of layers whose attention selects rows by an index
    not_read: str = ""  # "images are not read", where only the text part of a multimodal model is run
    head: HeadSizes | None = None  # of a draft head, whose embeddings and output layer are the target's
    copy_bits: int | None = None  # of a low-bit copy of the target, which drafts over the target's own KV rows
    code_bits: int | None = None  # of the codes of weights that are stored without loss
    extension: str | None = None  # what raised max_positions above the config's: "64, extended 4 times by yarn..."

    def with_decoded(self, count: int) -> ModelSpec:
        """The same model once the first `count` layers are dequantized at load."""
        if not count:
            return self
        layers = (*(layer.decoded for layer in self.layers[:count]), *self.layers[count:])
        packed = any(layer.packed_bytes for layer in layers)
        return replace(
            self, layers=layers, decode_bytes=self.decode_bytes if packed else self.embeddings_and_head_decode_bytes
        )

    @property
    def kv_layer_bytes(self) -> int:
        """Bytes per token that the layer that caches most caches."""
        return self.largest_kv_bytes or -(-self.kv_bytes_per_token // len(self.layers))

    @property
    def kv_bits(self) -> int | None:
        """The bits in which KV rows are stored; None: as they are computed."""
        return 8 if self.computed_rows else None

    @property
    def computed_kv_bytes_per_token(self) -> int:
        """Bytes of KV rows per token, as attention reads them."""
        return self.computed_rows.token_bytes if self.computed_rows else self.kv_bytes_per_token

    @property
    def why_not_8_bits(self) -> str | None:
        """Why KV rows cannot be stored in 8 bits; None if they can."""
        if not self.kv_heads:
            return "it caches none"
        return SHARED_ROWS if self.shares_kv else None

    def with_rows_in_8_bits(self) -> ModelSpec:
        """The same model with its KV rows in 8 bits: a byte for each value, and a scale for each row of a head."""
        if self.computed_rows:
            return self
        sizes, itemsize = RowSizes(self.kv_bytes_per_token, self.kv_layer_bytes), ITEMSIZE[self.dtype]

        def stored(nbytes: int) -> int:
            scales = -(-nbytes * self.kv_heads // self.kv_bytes_per_token)
            return nbytes // itemsize + scales * itemsize

        smaller, largest = stored(sizes.token_bytes), stored(sizes.layer_bytes)
        return replace(self, kv_bytes_per_token=smaller, largest_kv_bytes=largest, computed_rows=sizes)

    @property
    def can_branch(self) -> bool:
        """Whether the model can verify a tree, and share passes among texts."""
        return self.states is not None or not self.recurrent

    @property
    def positions_for_people(self) -> str:
        """The positions, and how they were extended: "256 (64, extended 4 times by yarn scaling)"."""
        return f"{self.max_positions} ({self.extension})" if self.extension else f"{self.max_positions}"

    @property
    def weight_form(self) -> str:
        """How the weights are stored, for display: "bfloat16", or "AWQ 4-bit, computed in float16"."""
        return f"{self.stored_dtype}, computed in {self.dtype}" if self.is_packed else self.dtype

    @property
    def short_form(self) -> str:
        """The same without the compute dtype of quantized weights."""
        return self.stored_dtype if self.is_packed else self.dtype

    @property
    def is_packed(self) -> bool:
        return self.stored_dtype not in DTYPE_NAMES.values()


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the next multiple of 256."""
    return -(-nbytes // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT
