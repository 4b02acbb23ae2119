"""What `config.json` says of an EAGLE-3 head (arXiv 2503.01840), in the layouts of three libraries. Imports no torch.

The authors' and SpecForge's layout describes one Llama layer at the top level, with the sizes of the draft's vocabulary
beside it. The speculators library puts the layer's config into `transformer_layer_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.checkpoint.config_limits import check_config
from loaders.heads.fields import ConfigFields
from loaders.heads.head_config import HeadConfig
from loaders.heads.target_facts import TargetFacts, check_sizes, check_taps

LAYER_TYPES = ("llama", "qwen3")
_ON = "use_input_layernorm_in_first_layer"  # settings of ModelOpt's exports: without this norm it is another head
_OFF = ("use_mtp_layernorm", "next_layer_regular", "has_lm_head_bias")


@dataclass(frozen=True)
class Eagle3Config(HeadConfig):
    """A head of decoder layers, the first of which reads embedding and hidden state side by side.

    norm_before_residual: the residual of the first layer begins at the normalized hidden state.
    norm_before_fc: one norm over all taps before they are joined; fc_norm: one for each of them.
    norm_output: what the next row reads is normalized.
    """

    target_hidden_size: int
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False


def read_eagle3(file: Path, config: Mapping[str, Any], target: TargetFacts) -> Eagle3Config:
    """The head that `config` describes, for this target.

    Raises ModelFilesError for wrong values, UnsupportedModelError for what is not run, DraftMismatchError for a head
    that was made for other sizes.
    """
    fields = ConfigFields(file, config)
    from_speculators = "speculators_model_type" in config
    layer = _layer(fields.below("transformer_layer_config") if from_speculators else fields)
    inner = ConfigFields(file, layer)
    for name in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"):
        inner.whole(name)
    target_hidden_size = fields.whole("target_hidden_size", layer["hidden_size"])
    check_sizes(file, target, target_hidden_size, layer["vocab_size"])
    eagle = fields if from_speculators else fields.below("eagle_config")
    head = Eagle3Config(
        file=file,
        layer=layer,
        taps=check_taps(file, _taps(fields, eagle, from_speculators, target), target),
        target_hidden_size=target_hidden_size,
        draft_vocab_size=fields.whole("draft_vocab_size", layer["vocab_size"], most=layer["vocab_size"]),
        norm_before_residual=fields.flag("norm_before_residual"),
        norm_before_fc=fields.flag("norm_before_fc"),
        fc_norm=fields.flag("fc_norm"),
        norm_output=fields.flag("norm_output"),
    )
    if head.norm_before_fc and head.fc_norm:
        raise fields.unsupported("norm_before_fc and fc_norm exclude each other, both are true")
    if not from_speculators:
        _refuse_variants(eagle)
    return head


def _layer(fields: ConfigFields) -> dict[str, Any]:
    """The config of the head's layers, checked like a model's."""
    values = dict(fields.values)
    model_type = values.setdefault("model_type", "llama")
    if model_type not in LAYER_TYPES:
        raise fields.unsupported(f"its layers are those of {model_type!r}, and not {' or '.join(LAYER_TYPES)}")
    values.setdefault("num_hidden_layers", 1)
    values["tie_word_embeddings"] = False
    for name in ("architectures", "auto_map", "eagle_config", "quantization_config"):
        if name == "quantization_config" and values.get(name):
            raise fields.unsupported("its weights are quantized")
        values.pop(name, None)
    check_config(fields.file, values)
    return values


def _taps(fields: ConfigFields, eagle: ConfigFields, from_speculators: bool, target: TargetFacts) -> tuple[int, ...]:
    """Speculators counts the layers before a tap; SpecForge numbers the layer whose output is taken, from 0."""
    stated = eagle.wholes("eagle_aux_hidden_state_layer_ids")
    if stated is None and not from_speculators:
        stated = fields.wholes("eagle_aux_hidden_state_layer_ids")
    if stated is None:  # the authors' choice
        return 2, target.layers // 2, max(0, target.layers - 3)
    return stated if from_speculators else tuple(layer + 1 for layer in stated)


def _refuse_variants(eagle: ConfigFields) -> None:
    if not eagle.flag(_ON, True):
        raise eagle.unsupported(f"eagle_config has {_ON} false")
    for name in _OFF:
        if eagle.flag(name):
            raise eagle.unsupported(f"eagle_config has {name} true")
    if eagle.whole("parallel_draft_step", 1) != 1:
        raise eagle.unsupported("eagle_config has a parallel_draft_step above 1")
