"""Draft heads: modules that read hidden states of a target beside its tokens, and share its embeddings and output.

A head is built like a model, with a skeleton of its own for what is its own. What it shares are the target's modules
themselves, kept out of its state dict: their weights are bound once, by the target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from loaders.checkpoint.model_source import model_source
from loaders.checkpoint.read_spec import read_config
from loaders.errors import UnsupportedModelError
from loaders.formats import read_format
from loaders.formats.weights import told_apart
from loaders.modules import dense_experts
from loaders.modules.buffers import compute_buffers
from loaders.modules.conversion import model_slices
from loaders.modules.skeleton import Skeleton, explained, laid_out
from loaders.modules.text_part import has_text_part, text_part
from loaders.safetensors_files.headers import Checkpoint

AFTER_NORM = -1
"""A tap: what the final norm gives, which the output layer multiplies. Others count the decoder layers before them."""


@dataclass
class HeadInputs:
    """The features ``[n, width]`` of the rows of the next pass of a head; its module takes them from here."""

    features: Tensor | None = None


@dataclass(frozen=True, eq=False)
class HeadSkeleton:
    """A head without weights. Its model is called as any other, with token ids and positions.

    taps: the target's hidden states that it reads, side by side: [n, taps · hidden]. projected: turns these into
    features [n, width]; None where they are. output: the module whose output, or the `features` of that, is its own
    hidden state [1, n, width], which stands for the features of tokens that the target has not read. dtype: of features
    and hidden states.
    """

    skeleton: Skeleton
    inputs: HeadInputs
    taps: tuple[int, ...]
    width: int
    output: nn.Module
    dtype: torch.dtype
    projected: Callable[[Tensor], Tensor] | None = None


class Shared(nn.Module):
    """Calls a module of the target, of which it holds no parameters of its own."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._module = (module,)  # in a tuple, so that it is no child

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the target's module gives."""
        return self._module[0](*args, **kwargs)


class JoinedEmbeddings(nn.Module):
    """The target's embedding of each token, joined with the target's hidden state of the token before."""

    def __init__(self, embeddings: nn.Module, norm: nn.Module, hidden: int, inputs: HeadInputs, dtype: torch.dtype):
        super().__init__()
        self._embeddings, self._inputs = Shared(embeddings), inputs
        self.enorm, self.hnorm = copy.deepcopy(norm), copy.deepcopy(norm)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False, dtype=dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[1, n, hidden]`` for ids ``[1, n]``."""
        assert self._inputs.features is not None and len(self._inputs.features) == input_ids.shape[1]
        joined = (self.enorm(self._embeddings(input_ids)), self.hnorm(self._inputs.features[None]))
        return self.eh_proj(torch.cat(joined, dim=-1))


def mtp_skeleton(
    target: Skeleton, directory: Path, dtype: torch.dtype, device: torch.device | str, checkpoint: Checkpoint
) -> HeadSkeleton:
    """The head for multi-token prediction of `target`, out of the files in `directory`.

    checkpoint: the head's tensors, as `head_checkpoint` names them. The layer, its attention and its norms are
    transformers' own, of a model of one layer. Raises UnsupportedModelError for families that this is not possible for.
    """
    config, inputs = _config_of_one_layer(target.config), HeadInputs()
    with explained(directory), torch.device("meta"):
        model = _model_of_one_layer(config, target, dtype)
    packing = read_format(read_config(directory), model_source(directory).config_file)
    contents = told_apart(packing, checkpoint)
    stand_ins = {name: weight.stand_in for name, weight in contents.packed.items()}
    if model is None or not (model_slices(model, contents.plain) or model_slices(model, stand_ins)):
        raise UnsupportedModelError(f"{directory}: --draft mtp is not possible for {config.model_type} models.")
    with explained(directory), torch.device("meta"):
        decoder = model.get_decoder()
        embeddings, output = target.model.get_input_embeddings(), target.model.get_output_embeddings()
        joined = JoinedEmbeddings(embeddings, decoder.norm, config.hidden_size, inputs, dtype)
        decoder.embed_tokens, model.lm_head = joined, Shared(output)
    model.eval().requires_grad_(False)
    if dense_experts.grouped_products_wait(torch.device(device), dtype):
        model.set_experts_implementation(dense_experts.NAME)
    with explained(directory):
        compute_buffers(model, torch.device(device))
    skeleton = laid_out(model, dtype, checkpoint, packing if contents.packed else None)
    return HeadSkeleton(skeleton, inputs, (AFTER_NORM,), config.hidden_size, decoder, dtype)


def _model_of_one_layer(config: PretrainedConfig, target: Skeleton, dtype: torch.dtype) -> PreTrainedModel | None:
    """The target's text part with one layer; None if transformers has no class for it. config: the text model's, some
    of which are run by the class of a multimodal model alone.
    """
    attention = target.config._attn_implementation
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
        return model
    whole = copy.deepcopy(target.model.config)
    name = next((name for name in whole.sub_configs if type(getattr(whole, name, None)) is type(config)), None)
    if name is None or not has_text_part(whole):
        return None
    setattr(whole, name, config)
    return text_part(whole, dtype, attention)


def _config_of_one_layer(config: PretrainedConfig) -> PretrainedConfig:
    """The config of a target, for one layer of the kind that its head has: full attention where nothing else is said,
    with experts where the model's last layer has any."""
    one = copy.deepcopy(config)
    one.num_hidden_layers, one.tie_word_embeddings = 1, False
    if getattr(one, "layer_types", None) is not None:
        one.layer_types = [*(getattr(config, "mtp_layer_types", None) or ["full_attention"])][:1]
    if getattr(one, "mlp_layer_types", None) is not None:
        one.mlp_layer_types = [*(getattr(config, "mtp_mlp_layer_types", None) or config.mlp_layer_types[-1:])][:1]
    if hasattr(one, "first_k_dense_replace"):
        one.first_k_dense_replace = 0
    if hasattr(one, "per_layer_config"):
        one.per_layer_config = getattr(config, "mtp_per_layer_config", None)
    return one
