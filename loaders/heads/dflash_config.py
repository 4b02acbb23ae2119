"""What `config.json` says of a DFlash block draft (arXiv 2602.06036) or of a DFlash 2. Imports no torch.

The authors' layout (z-lab) describes Qwen3 layers at the top level and the rest in `dflash_config`; the speculators
library puts the layers' config into `transformer_layer_config` and the rest beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.checkpoint.config_limits import check_config
from loaders.heads.fields import ConfigFields
from loaders.heads.head_config import HeadConfig
from loaders.heads.kinds import Kind
from loaders.heads.target_facts import TargetFacts, check_sizes, check_taps

_MOST_BLOCK = 256  # published blocks have 8 to 16 tokens
_MOST_TAPS_OF_CONVOLUTION = 64


@dataclass(frozen=True)
class Dflash2Config:
    """What DFlash 2 adds: convolutions over the block around attention and MLP, and a scorer of successors."""

    kernel_size: int
    group_size: int
    selector_rank: int
    selector_top_k: int


@dataclass(frozen=True)
class DflashConfig(HeadConfig):
    """A block draft: mask tokens after the last token of the text, all read in one pass over the target's states.

    block_size: with the last token of the text. from_anchor: the place of that token predicts the next one, so a block
    gives one more.
    window: the sliding window of each layer, None where there is none. causal: layers that see no later mask token.
    multiplier, softcap: applied to logits.
    """

    block_size: int
    mask_token: int
    from_anchor: bool
    windows: tuple[int | None, ...]
    causal: tuple[bool, ...]
    multiplier: float = 1.0
    softcap: float | None = None
    embedding_scale: float = 1.0
    second: Dflash2Config | None = None

    @property
    def depth(self) -> int:
        """Tokens that a block proposes one after the other."""
        return self.block_size if self.from_anchor else self.block_size - 1


def read_dflash(file: Path, config: Mapping[str, Any], kind: Kind, target: TargetFacts) -> DflashConfig:
    """The block draft that `config` describes, for this target; errors as `read_eagle3`."""
    fields = ConfigFields(file, config)
    from_speculators = "speculators_model_type" in config
    inner = fields.below("transformer_layer_config") if from_speculators else fields
    layer = _layer(inner)
    own = fields if from_speculators else _beside(fields)
    check_sizes(file, target, fields.whole("target_hidden_size", layer["hidden_size"]), layer["vocab_size"])
    windows, causal = _attention(inner, own, from_speculators)
    head = DflashConfig(
        file=file,
        layer=layer,
        taps=check_taps(file, _taps(own, from_speculators), target),
        block_size=own.whole("block_size", 8 if from_speculators else 16, least=2, most=_MOST_BLOCK),
        mask_token=own.whole("mask_token_id", least=0, most=layer["vocab_size"] - 1),
        draft_vocab_size=fields.whole("draft_vocab_size", layer["vocab_size"], most=layer["vocab_size"]),
        from_anchor=own.flag("sample_from_anchor"),
        windows=windows,
        causal=causal,
        multiplier=own.real("output_multiplier", 1.0) or 1.0,
        softcap=own.real("final_logit_softcapping") or None,
        embedding_scale=own.real("input_embedding_scale", 1.0) or 1.0,
        second=_second(own, layer) if kind is Kind.DFLASH2 else None,
    )
    if head.second and head.maps_tokens:
        raise fields.unsupported("DFlash 2 with a vocabulary that is a part of the target's")
    if target.hidden_size != head.hidden_size:  # its embeddings and head are the target's
        raise fields.unsupported(f"hidden_size is {head.hidden_size}, the target's {target.hidden_size}")
    return head


def _beside(fields: ConfigFields) -> ConfigFields:
    """The fields of `dflash_config`; older files have some of them at the top level."""
    return ConfigFields(fields.file, {**fields.values, **fields.below("dflash_config").values})


def _layer(fields: ConfigFields) -> dict[str, Any]:
    values = dict(fields.values)
    model_type = values.setdefault("model_type", "qwen3")
    if model_type != "qwen3":
        raise fields.unsupported(f"its layers are those of {model_type!r}, and not qwen3")
    if values.get("quantization_config"):
        raise fields.unsupported("its weights are quantized")
    for name in ("architectures", "auto_map", "dflash_config", "block_size", "num_target_layers"):
        values.pop(name, None)
    values["tie_word_embeddings"] = False
    if "sliding_attention" in (values.get("layer_types") or ()):
        values["use_sliding_window"] = True  # without it transformers drops the window
    check_config(fields.file, values)
    checked = ConfigFields(fields.file, values)
    for name in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "num_hidden_layers"):
        checked.whole(name)
    return values


def _taps(own: ConfigFields, from_speculators: bool) -> tuple[int, ...]:
    """Speculators counts the layers before a tap; the authors number the layer whose output is taken, from 0."""
    name = "aux_hidden_state_layer_ids" if from_speculators else "target_layer_ids"
    stated = own.wholes(name)
    if stated is None:
        raise own.wrong(name, "a list of layers of the target")
    return stated if from_speculators else tuple(layer + 1 for layer in stated)


def _attention(
    inner: ConfigFields, own: ConfigFields, from_speculators: bool
) -> tuple[tuple[int | None, ...], tuple[bool, ...]]:
    """The window and the direction of each layer. Where nothing is stated, layers that slide are causal."""
    count = inner.whole("num_hidden_layers", most=1000)
    kinds = inner.values.get("layer_types") or ["full_attention"] * count
    if len(kinds) != count or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise inner.wrong("layer_types", f"full_attention or sliding_attention for each of {count} layers")
    slides = tuple(kind == "sliding_attention" for kind in kinds)
    window = inner.whole("sliding_window") if any(slides) else None
    if from_speculators:
        both_ways = own.flag("sliding_window_non_causal", own.values.get("speculators_model_type") == "dflash2")
        causal = tuple(slide and not both_ways for slide in slides)
    elif inner.values.get("is_causal") is None:
        causal = slides
    else:
        causal = (inner.flag("is_causal"),) * count
    return tuple(window if slide else None for slide in slides), causal


def _second(own: ConfigFields, layer: Mapping[str, Any]) -> Dflash2Config:
    second = Dflash2Config(
        kernel_size=own.whole("conv_kernel_size", most=_MOST_TAPS_OF_CONVOLUTION),
        group_size=own.whole("conv_group_size", most=layer["hidden_size"]),
        selector_rank=own.whole("selector_rank"),
        selector_top_k=own.whole("selector_top_k", most=layer["vocab_size"]),
    )
    if layer["hidden_size"] % second.group_size:
        raise own.wrong("conv_group_size", f"a divisor of the hidden size, {layer['hidden_size']}")
    return second
