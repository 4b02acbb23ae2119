"""A LoRA adapter as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors`. Headers alone, no torch.

W becomes W + scaling * B @ A (Hu et al., arXiv 2106.09685); scaling is alpha / rank, or alpha / sqrt(rank) with rsLoRA
(arXiv 2312.03732). Every setting is applied, concerns training only, or is rejected by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loaders.checkpoint.spec import DTYPE_NAMES
from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.foreign_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, broken_link
from loaders.json_files import read_json
from loaders.message_text import quoted
from loaders.safetensors_files.headers import StoredTensor, read_header

# Settings that concern training only, or repeat what the tensors' names say.
_OF_TRAINING = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying", "modules_to_save", "bias", "fan_in_fan_out"),
}
_APPLIED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}
# Initializations that do not change the base weights. Others do, and the adapter's files do not contain that change.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_SAVED = re.compile(r"(.+?)(?:\.modules_to_save(?:\.default)?|\.base_layer)?\.(weight|bias)")
_MOST_PATTERN, _MOST_REPETITIONS = 512, 2  # characters; "*", "+" and "{"
_MOST_MODULE = 200  # characters of a module's name


@dataclass(frozen=True)
class LoraUpdate:
    """The update of one module's weight: scaling * B @ A, transposed for embeddings."""

    module: str  # "model.layers.0.self_attn.q_proj"
    a: StoredTensor  # [rank, inputs]; of an embedding [rank, tokens]
    b: StoredTensor  # [outputs, rank]
    scaling: float
    embedding: bool

    @property
    def stand_in(self) -> StoredTensor:
        """A stand-in for the update where names and shapes are matched; its data is never read."""
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        shape = (inputs, outputs) if self.embedding else (outputs, inputs)
        return StoredTensor(f"{self.module}.weight", self.b.file, "F32", shape, self.b.offset, 0)


@dataclass(frozen=True)
class Adapter:
    """An adapter's updates, and by name the tensors that replace the model's own."""

    directory: Path
    updates: tuple[LoraUpdate, ...]
    replaced: Mapping[str, StoredTensor]

    @property
    def name(self) -> str:
        return self.directory.name


def read_adapter(directory: Path, is_used: Callable[[str], bool] = lambda name: True) -> Adapter:
    """Read and check an adapter. Raises ModelFilesError, and UnsupportedModelError with the setting's name.

    is_used: of the model's tensors by name; what the adapter has for others is left out.
    """
    file = directory / ADAPTER_WEIGHTS
    for needed in (directory / ADAPTER_CONFIG, file):
        if link := broken_link(needed):
            raise ModelFilesError(link)
        if not needed.is_file():
            pickled = (directory / "adapter_model.bin").exists()
            raise ModelFilesError(
                f"{needed}: no such file. An adapter is a directory with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}."
                + " What is there, adapter_model.bin, can run code when read." * pickled
            )
    settings = _Settings.read(directory / ADAPTER_CONFIG)
    pairs: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for name, tensor in read_header(file).items():
        if tensor.dtype not in DTYPE_NAMES:
            raise UnsupportedModelError(f"{file}: {name} is stored as {tensor.dtype}, which no adapter is.")
        own = name.removeprefix(_PREFIX)
        if match := _LORA.fullmatch(own):
            pairs.setdefault((match[1], bool(match[2])), {})[match[3]] = tensor
        elif "lora_" not in own and (match := _SAVED.fullmatch(own)):
            name = f"{match[1]}.{match[2]}"
            replaced[name] = replace(tensor, name=name)
        else:
            raise UnsupportedModelError(f"{file}: {name} is no part of LoRA that can be applied.")
    updates = [_update(file, settings, *key, pair) for key, pair in sorted(pairs.items())]
    if not updates and not replaced:
        raise ModelFilesError(f"{file}: it holds no tensors.")
    used = tuple(update for update in updates if is_used(update.stand_in.name))
    kept = {name: tensor for name, tensor in replaced.items() if is_used(name)}
    if not used and not kept:
        raise UnsupportedModelError(f"{directory}: it changes only how the model sees or hears, which is not read.")
    return Adapter(directory, used, kept)


def _update(
    file: Path, settings: _Settings, module: str, embedding: bool, pair: Mapping[str, StoredTensor]
) -> LoraUpdate:
    if len(module) > _MOST_MODULE:
        raise ModelFilesError(f"{file}: {quoted(module)} is no name of a module: it has {len(module)} characters.")
    if len(pair) != 2:
        raise ModelFilesError(f"{file}: of {module} it holds lora_{next(iter(pair))} without the other half.")
    a, b = pair["A"], pair["B"]
    rank = settings.rank(module)
    if len(a.shape) != 2 or len(b.shape) != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
        raise ModelFilesError(
            f"{file}: {module} has A {list(a.shape)} and B {list(b.shape)}, but rank {rank} by {ADAPTER_CONFIG}. "
            "The files are not of the same adapter."
        )
    return LoraUpdate(module, a, b, settings.scaling(module), embedding)


@dataclass(frozen=True)
class _Settings:
    file: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> _Settings:
        settings = cls(file, read_json(file))
        values = settings.values
        if (kind := values.get("peft_type")) != "LORA":
            raise settings._unsupported(f"peft_type is {quoted(kind)}; LORA can be applied")
        if (task := values.get("task_type")) not in (None, "CAUSAL_LM"):
            raise settings._unsupported(f"task_type is {quoted(task)}; CAUSAL_LM can be run")
        beginning = values.get("init_lora_weights")
        if not any(type(beginning) is type(known) and beginning == known for known in _PLAIN_BEGINNINGS):
            raise settings._unsupported(
                f"init_lora_weights is {quoted(beginning)}, which changes the model's own weights as well. Convert it "
                "with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)"
            )
        if type(values.get("use_rslora") or False) is not bool:
            raise settings._unsupported(f"use_rslora is {quoted(values['use_rslora'])}; true and false can be applied")
        for name, value in values.items():
            if name not in _OF_TRAINING and name not in _APPLIED and value:
                raise settings._unsupported(f"{quoted(name)} is {quoted(value)}, which cannot be applied")
        return settings

    def rank(self, module: str) -> int:
        value = self._by_module("rank_pattern", "r", module)
        if type(value) is not int or not 0 < value < 1 << 20:
            raise self._unsupported(f"the rank of {module} is {quoted(value)}; it must be a positive number")
        return value

    def scaling(self, module: str) -> float:
        alpha = self._by_module("alpha_pattern", "lora_alpha", module)
        if type(alpha) not in (int, float) or not math.isfinite(alpha) or abs(alpha) > 1e30:
            raise self._unsupported(f"lora_alpha of {module} is {quoted(alpha)}; it must be a number")
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.values.get("use_rslora") else alpha / rank

    def _by_module(self, patterns: str, default: str, module: str) -> Any:
        """The value of the first pattern that matches the end of a module's name, as in PEFT; 8 is PEFT's default."""
        stated = self.values.get(patterns) or {}
        if not isinstance(stated, dict):
            raise self._unsupported(f"{patterns} is {quoted(stated)}; it must be an object")
        for pattern, value in stated.items():
            if self._matches(patterns, pattern, module):
                return value
        return self.values.get(default, 8)

    def _matches(self, patterns: str, pattern: str, module: str) -> bool:
        """Rejects expressions that could take forever: repeated groups, and more than a few repetitions."""
        repeated = len(re.findall(r"[*+{]", pattern))
        if len(pattern) > _MOST_PATTERN or repeated > _MOST_REPETITIONS or re.search(r"\)[*+{?]", pattern):
            raise self._unsupported(f"{patterns} has the expression {quoted(pattern)}, which cannot be applied")
        try:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
        except (re.error, OverflowError) as error:
            raise self._unsupported(f"{patterns} has {quoted(pattern)}, which is no expression ({error})") from error

    def _unsupported(self, fault: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.file}: {fault}.")
