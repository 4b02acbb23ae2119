"""A model without weights: transformers' own modules on `meta`, and where each layer's tensors are to be bound."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from loaders.checkpoint.model_source import model_source
from loaders.checkpoint.read_spec import read_config
from loaders.checkpoint.refused import WHAT_RUNS
from loaders.checkpoint.rope_scaling import RopeScaling, no_rotations
from loaders.errors import OffloadError, UnsupportedModelError
from loaders.formats import read_format
from loaders.formats.weights import Format, told_apart
from loaders.modules import dense_experts
from loaders.modules.buffers import compute_buffers, compute_what_is_not_stored
from loaders.modules.conversion import transposed_names
from loaders.modules.experts import Experts, find_experts
from loaders.modules.layout import Layout
from loaders.modules.quantized import Packed, by_any_name, packed_parameters
from loaders.modules.row_tables import leave_tables_on_disk
from loaders.modules.text_part import has_text_part, text_part
from loaders.modules.tied import untie_what_differs
from loaders.safetensors_files.headers import Checkpoint, StoredTensor

# Where a tensor goes: a module's own `_parameters` or `_buffers`, and the key. Assigning there takes 1 to 1.7 µs,
# `setattr` on the module 38 to 69.
Slot = tuple[dict[str, Any], str]


@dataclass(frozen=True, eq=False)
class DecodedParameter:
    """A quantized parameter, and the modules that use it dequantized, in `dtype`, under these names."""

    name: str
    packed: Packed
    dtype: torch.dtype
    holders: tuple[tuple[nn.Module, str], ...]
    users: tuple[nn.Module, ...] = ()  # of each holder, the module that reads it: usually the holder itself

    @property
    def nbytes(self) -> int:
        return math.prod(self.packed.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class UnitLayout:
    """What is streamed at once: a decoder layer, or everything outside the layers (then `name` is empty).

    `stored` lists the tensors that each slot of quantized data is read from, several where experts are stacked. The
    last `expert_places` slots of the layout hold the tensors of `experts`, each expert's in one piece. The parameters
    in `packed` are dequantized before every use. `decoded` is the layout of the layer once it is dequantized; None
    where nothing is quantized. `code` holds the codes of the weights in `code.packed`, if they lie apart.
    """

    name: str
    module: nn.Module
    layout: Layout
    stored: Mapping[str, tuple[StoredTensor, ...]]
    _slots: tuple[tuple[Slot, ...], ...] = field(repr=False)  # per slot; several where the tensor is tied
    experts: Experts | None = None
    expert_places: int = 0
    packed: Mapping[str, DecodedParameter] = field(default_factory=dict, repr=False)
    decoded: UnitLayout | None = field(default=None, repr=False)
    code: UnitLayout | None = field(default=None, repr=False)

    @property
    def dense_bytes(self) -> int:
        """Bytes at the start of the buffer that do not belong to single experts."""
        return self.layout.places[-self.expert_places].offset if self.expert_places else self.layout.nbytes

    def bind(self, parameters: tuple[Tensor, ...]) -> None:
        """Let the module compute with `parameters`, one per slot of the layout, as `make_parameters` built them."""
        for slots, parameter in zip(self._slots, parameters):
            for tensors, key in slots:
                tensors[key] = parameter


@dataclass(frozen=True, eq=False)
class Skeleton:
    """`model` is on meta, except for buffers that no file holds (rotary frequencies, ...), which have their values.

    `layers` are the decoder layers in order; `embeddings_and_head` holds every other tensor: embeddings, final norm,
    head, and what two layers share. `tied` maps every name of a tied tensor to the one name of its slot.
    `decoded_at_load` are quantized tensors of `embeddings_and_head`, whose layout holds them dequantized.
    """

    model: PreTrainedModel
    layers: tuple[UnitLayout, ...]
    embeddings_and_head: UnitLayout
    tied: Mapping[str, str]
    decoded_at_load: tuple[DecodedParameter, ...] = ()

    @property
    def codes(self) -> tuple[UnitLayout, ...]:
        """The codes of all layers that lie apart from the rests."""
        return tuple(layer.code for layer in self.layers if layer.code)

    @property
    def packed(self) -> tuple[DecodedParameter, ...]:
        """What has to be dequantized before every use, in all layers."""
        return tuple(
            parameter for layer in (*self.layers, self.embeddings_and_head) for parameter in layer.packed.values()
        )

    @property
    def config(self) -> PretrainedConfig:
        """The config of the text model."""
        return self.model.config.get_text_config(decoder=True)


def make_parameters(layout: Layout, buffer: Tensor) -> tuple[nn.Parameter, ...]:
    """The tensors of `layout` as views of `buffer` (uint8 [layout.nbytes]), ready to be bound.

    Building them takes 10 µs each, binding 1 µs: build them once per buffer and layout. Layers with equal layouts
    can be bound to the same parameters.
    """
    return tuple(nn.Parameter(view, requires_grad=False) for view in layout.views(buffer).values())


def build_skeleton(
    directory: Path | str,
    dtype: torch.dtype,
    device: torch.device | str,
    attn_implementation: str = "tree",
    checkpoint: Checkpoint | None = None,
    rope_scaling: RopeScaling | None = None,
) -> Skeleton:
    """Build the causal language model that `config.json` describes, without reading a weight.

    Tensors are laid out in `dtype`, except those that transformers keeps in float32, and quantized weights, which are
    laid out as stored. For these, and for tied tensors, the headers are read, or `checkpoint` if given.
    `attn_implementation` must be known to transformers. Raises ModelFilesError for a missing or broken config and
    UnsupportedModelError for what cannot be run; no code from the directory is executed. `rope_scaling` replaces the
    config's own scaling.
    """
    config = _load_config(Path(directory), rope_scaling)
    with explained(directory), _own_attention_explained(directory, attn_implementation), torch.device("meta"):
        if has_text_part(config):
            model = text_part(config, dtype, attn_implementation)
        else:
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=False
            )
    model.eval().requires_grad_(False)
    if dense_experts.grouped_products_wait(torch.device(device), dtype):
        model.set_experts_implementation(dense_experts.NAME)
    source = model_source(directory)
    packing = read_format(read_config(directory), source.config_file)
    if checkpoint is None and (packing is not None or source.is_downloaded()):
        checkpoint = source.checkpoint()
    if checkpoint is not None:
        compute_what_is_not_stored(model, checkpoint)
    with explained(directory):
        compute_buffers(model, torch.device(device))
        model.tie_weights()
    return laid_out(model, dtype, checkpoint, packing) if checkpoint is not None else _divide(model, dtype, {})


def laid_out(model: PreTrainedModel, dtype: torch.dtype, checkpoint: Checkpoint, packing: Format | None) -> Skeleton:
    """The skeleton of a model on meta, whose tensors are those of `checkpoint`, quantized as `packing` says."""
    contents = told_apart(packing, checkpoint)
    leave_tables_on_disk(model, contents.plain, contents.packed, dtype)
    untie_what_differs(model, {**contents.plain, **(checkpoint.adapter.replaced if checkpoint.adapter else {})})
    packed = packed_parameters(model, contents) if packing else {}
    return _divide(model, dtype, packed, transposed_names(model, contents.plain))


def _load_config(directory: Path, rope_scaling: RopeScaling | None) -> PretrainedConfig:
    values = read_config(directory)
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"{directory}: transformers {transformers.__version__} has no model type {model_type!r}. Code that comes "
            "with a model is never run; a newer transformers may know it: pip install -U transformers"
        )
    with explained(directory):
        config = model_source(directory).transformers_config()
        if rope_scaling:
            config = _scaled(config, rope_scaling)
    encodes = type(config) in MODEL_FOR_MASKED_LM_MAPPING or model_type == "bert-generation"
    is_encoder = encodes and not getattr(config, "is_decoder", False)
    is_decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or has_text_part(config)
    if is_encoder or config.is_encoder_decoder or not is_decoder:
        raise UnsupportedModelError(f"{directory}: {model_type} is not a decoder-only language model. {WHAT_RUNS}.")
    text = config.get_text_config(decoder=True)
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()) and not getattr(text, "sliding_window", 1):
        raise UnsupportedModelError(
            f"{directory}: sliding_window is {text.sliding_window}, but there are layers that slide."
        )
    return config


def _scaled(config: PretrainedConfig, rope_scaling: RopeScaling) -> PretrainedConfig:
    """The config with other RoPE parameters. Raises UnsupportedModelError where it states none."""
    if not getattr(config.get_text_config(decoder=True), "rope_parameters", None):
        raise no_rotations(config.model_type, rope_scaling)
    return AutoConfig.for_model(**rope_scaling.applied(config.to_dict()))


@contextmanager
def explained(directory: Path | str) -> Iterator[None]:
    """Turn what transformers raises on a config it cannot use into an error for the user."""
    try:
        yield
    except OffloadError:
        raise
    except Exception as error:  # unexpected values raise whatever the model's code runs into: AssertionError, …
        raise UnsupportedModelError(
            f"{directory}: transformers {transformers.__version__} cannot build the model of this config.json: "
            f"{type(error).__name__}: {error}"
        ) from error


@contextmanager
def _own_attention_explained(directory: Path | str, attn_implementation: str) -> Iterator[None]:
    """The error for models with their own attention classes, none of which has the name that was asked for."""
    try:
        yield
    except KeyError as error:
        if error.args != (attn_implementation,):
            raise
        raise UnsupportedModelError(
            f"{directory}: transformers {transformers.__version__} runs this model through attention of its own, which "
            f"takes no tree. {WHAT_RUNS}."
        ) from error


def _divide(
    model: PreTrainedModel, dtype: torch.dtype, packed: Mapping[str, Packed], transposed: Set[str] = frozenset()
) -> Skeleton:
    """Assign every tensor of the state dict to its decoder layer, or else to `embeddings_and_head`."""
    path, modules = _decoder_layers(model)
    members: dict[str, list[list[str]]] = {prefix: [] for prefix in (*modules, "")}
    for names in _names_by_tensor(model):
        homes = {_home(name, path) for name in names}
        members[homes.pop() if len(homes) == 1 else ""].append(names)
    dtypes = _dtypes(model, dtype)
    parameters = {
        names[0]: _decoded_parameter(model, names, item, dtypes[names[0]])
        for groups in members.values()
        for names in groups
        if (item := by_any_name(packed, names))
    }
    at_load = [parameters[names[0]] for names in members[""] if _is_by_rows(parameters.get(names[0]))]
    kept = {name: parameter for name, parameter in parameters.items() if parameter not in at_load}
    layers = [_layer(prefix, module, members[prefix], dtypes, kept, transposed) for prefix, module in modules.items()]
    embeddings_and_head = _layer("", model, members[""], dtypes, kept, transposed)
    tied = {name: names[0] for groups in members.values() for names in groups for name in names[1:]}
    return Skeleton(model, tuple(layers), embeddings_and_head, tied, tuple(at_load))


def _is_by_rows(parameter: DecodedParameter | None) -> bool:
    return parameter is not None and parameter.packed.scheme.by_rows


def _home(name: str, path: str) -> str:
    """The decoder layer a tensor belongs to; empty for those outside the layers."""
    return name[: name.index(".", len(path) + 1)] if name.startswith(f"{path}.") else ""


def _decoder_layers(model: PreTrainedModel) -> tuple[str, dict[str, nn.Module]]:
    """The path of the module list with one entry per hidden layer, and its modules by path.

    Of several lists, the one with the most parameters. Entries that are taken out are left out.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of {count} decoder layers to stream.")
    path, found = max(lists, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
    return path, {f"{path}.{name}": module for name, module in found._modules.items() if module is not None}


def _names_by_tensor(model: nn.Module) -> Iterable[list[str]]:
    """The names of each parameter and persistent buffer; tied ones have several."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        names[id(tensor)].append(name)
    return names.values()


def _dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each tensor: the one it was built in, unless transformers keeps this name in another."""
    plan = [(re.compile(glob.replace("*", ".*")), kept) for glob, kept in model._get_dtype_plan(dtype).items()]
    return {
        name: next((kept for pattern, kept in plan if pattern.search(name)), tensor.dtype)
        for name, tensor in model.state_dict().items()
    }


def _layer(
    prefix: str,
    module: nn.Module,
    groups: list[list[str]],
    dtypes: Mapping[str, torch.dtype],
    packed: Mapping[str, DecodedParameter],
    transposed: Set[str],
) -> UnitLayout:
    """Slots are sorted by name, as in safetensors: then most of a layer is one contiguous read. Experts come last.

    packed: the quantized parameters by the first of their names. transposed: those that are stored so.
    """
    start = len(prefix) + 1 if prefix else 0
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tensors: list[tuple[str, tuple[int, ...], torch.dtype]] = []
    slots: list[tuple[Slot, ...]] = []
    stored: dict[str, tuple[StoredTensor, ...]] = {}
    experts = find_experts(module) if prefix else None
    by_expert = [names for names in sorted(groups) if experts and len(names) == 1 and names[0][start:] in experts.names]
    dense = [names for names in sorted(groups) if names not in by_expert]
    own: dict[str, DecodedParameter] = {}
    expert_places = 0
    for names in (*dense, *by_expert):
        name, parameter = names[0][start:], packed.get(names[0])
        if parameter is None:
            expert_places += names in by_expert
            tensors.append((name, shapes[name], dtypes[names[0]]))
            slots.append(tuple(_slot(module, name[start:]) for name in names))
            continue
        own[name], item = parameter, parameter.packed
        for role, shape, dtype in item.tensors():
            expert_places += names in by_expert
            place = f"{name.removesuffix('.weight')}.{role}"
            tensors.append((place, shape, dtype))
            slots.append(((item.operands, role),))
            stored[place] = item.stored(role)
    return UnitLayout(
        prefix,
        module,
        Layout.of(tensors, {names[0][start:] for names in groups if not transposed.isdisjoint(names)}),
        stored,
        tuple(slots),
        experts if expert_places else None,
        expert_places,
        own,
        _layer(prefix, module, groups, dtypes, {}, set()) if own else None,
    )


def _slot(module: nn.Module, name: str) -> Slot:
    holder, leaf = _holder(module, name)
    return (holder._parameters if leaf in holder._parameters else holder._buffers), leaf


def _decoded_parameter(model: nn.Module, names: list[str], packed: Packed, dtype: torch.dtype) -> DecodedParameter:
    holders, users = tuple(_holder(model, name) for name in names), tuple(_user(model, name) for name in names)
    return DecodedParameter(names[0], packed, dtype, holders, users)


def _user(module: nn.Module, name: str) -> nn.Module:
    """The module whose forward reads a parameter: of a convolution, the one around it, which does not call it."""
    owner, _, _ = name.rpartition(".")
    found = module.get_submodule(owner)
    return module.get_submodule(owner.rpartition(".")[0]) if isinstance(found, nn.Conv1d) else found


def _holder(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return module.get_submodule(owner), leaf
