"""The models of a run: on disk, on the hub, or still to be quantized. Imports no torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from loaders.adapters.adapter import read_adapter
from loaders.checkpoint.model_source import model_source
from loaders.checkpoint.mtp import as_head, head_checkpoint, head_values
from loaders.checkpoint.read_spec import read_config, read_spec
from loaders.checkpoint.rope_scaling import RopeScaling, is_rotary
from loaders.checkpoint.spec import ModelSpec
from loaders.formats import read_format
from loaders.gguf.config import gguf_config
from loaders.gguf.header import GgufFile
from loaders.gguf.model import is_gguf
from loaders.gguf.tensors import model_tensors
from loaders.gguf.vocabulary import gguf_vocabulary, has_gguf_vocabulary
from loaders.heads.head_files import is_head, read_head
from loaders.heads.head_spec import head_spec
from loaders.heads.kinds import refuse_other_heads
from loaders.heads.target_facts import TargetFacts
from loaders.hub.find import fetch_vocabulary
from loaders.hub.headers import on_the_hub, read_hub_checkpoint, read_hub_gguf
from loaders.hub.model import HubModel
from loaders.hub.names import directory_name
from loaders.quantize.lossless_recipe import LosslessRecipe
from loaders.quantize.recipe import BITS, Quantization
from loaders.safetensors_files.headers import Checkpoint
from loaders.text_part import used_names
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.options.run_options import MTP, Options
from offload_runtime.planning.compute_dtype import compute_dtype
from offload_runtime.planning.quantized_directory import Packing, recipe_of
from scheduler.machine.machine import Machine

HEAD_FILES = "files"
"""A draft head in files of its own."""


@dataclass(frozen=True)
class ModelFiles:
    """One model and its headers.

    source: the model on the hub, if it was given by name. rope_scaling: replaces that of its config. head: what kind of
    draft head this is, "mtp" or `HEAD_FILES`; None for a model.
    """

    spec: ModelSpec
    checkpoint: Checkpoint
    source: HubModel | None = None
    rope_scaling: RopeScaling | None = None
    head: str | None = None

    @property
    def missing_bytes(self) -> int:
        """Bytes to download before it can be loaded."""
        return self.source.missing_bytes if self.source else 0


def read_model(
    options: Options, directory: Path, machine: Machine, rope_scaling: RopeScaling | None = None
) -> ModelFiles:
    """Read config and headers in `directory`, or on the hub if the files are not downloaded yet."""
    source = _source(options, directory)
    if source and source.gguf and source.missing:
        gguf = _hub_gguf(source)
        with on_the_hub(source):
            config, checkpoint = gguf_config(gguf), Checkpoint(source.path, model_tensors(gguf))
    else:
        config = read_config(directory)  # rejects models before their headers are requested
        checkpoint = _checkpoint(options, directory)
    return _files(options, directory, checkpoint, config, machine, rope_scaling)


def read_draft(options: Options, directory: Path, machine: Machine, target: ModelSpec) -> ModelFiles:
    """A draft's files, of a model or of a head. Its context is extended like the target's if it would be shorter."""
    if not is_gguf(directory):
        if is_head(directory):
            return _read_head(options, directory, target)
        refuse_other_heads(directory, _checkpoint(options, directory).tensors)
    draft = read_model(options, directory, machine)
    if options.rope_scaling and draft.spec.max_positions < target.max_positions and is_rotary(draft.spec.model_type):
        return read_model(options, directory, machine, options.rope_scaling)
    return draft


def _read_head(options: Options, directory: Path, target: ModelSpec) -> ModelFiles:
    """A draft head in files of its own. Raises DraftMismatchError for one of another target."""
    source = _source(options, directory)
    files = read_head(directory, TargetFacts.of(target), _checkpoint(options, directory))
    spec = head_spec(files, target)
    spec = replace(spec, name=f"{files.kind.value} head {source.label if source else spec.name}")
    return ModelFiles(spec, files.checkpoint, source, head=HEAD_FILES)


def read_mtp_head(target: ModelFiles) -> ModelFiles:
    """The head for multi-token prediction in the target's files. Raises UnsupportedModelError where there is none."""
    spec = target.spec
    config = read_config(spec.directory)
    checkpoint = head_checkpoint(target.checkpoint, spec.name)
    packing = read_format(config, model_source(spec.directory).config_file)
    head = read_spec(spec.directory, spec.dtype, checkpoint, head_values(config, checkpoint, packing))
    return ModelFiles(as_head(head, spec), checkpoint, head=MTP)


def read_target(options: Options, machine: Machine) -> tuple[ModelFiles, Packing | None]:
    """The target's files, or the quantized ones: existing files, or those to be written, with their sizes."""
    packed_as = options.packed_as
    if packed_as is None:
        files = read_model(options, options.model, machine, options.rope_scaling)
        return replace(files, spec=_with_row_bits(options, files.spec)), None
    _refuse_gguf(options.model)
    source = _source(options, options.model)
    name = source.label if source else directory_name(options.model)
    if source and source.missing_bytes:  # quantized files are looked for after the download
        files, packing = _described(options, _quantization(options, packed_as), options.model, machine), None
    else:
        packing = Packing.of(
            options.model, packed_as, options.quantized_directory, options.calibration, options.code_bits
        )
        if packing.report:
            files = read_model(options, packing.directory, machine, options.rope_scaling)
        else:
            files = _described(options, packing.quantization, packing.directory, machine)
    return replace(files, spec=_with_row_bits(options, replace(files.spec, name=name))), packing


def vocabulary_of(options: Options, directory: Path) -> dict[str, int] | None:
    """Maps tokens to ids, if the model's files give it without torch; else None.

    Requests from the hub what the cache lacks.
    """
    source = _source(options, directory)
    if source and source.missing:
        if source.gguf:
            gguf = _hub_gguf(source)
            return gguf_vocabulary(gguf) if has_gguf_vocabulary(gguf) else None
        fetch_vocabulary(source)
    return model_source(directory).vocabulary()


def smaller_targets(
    options: Options, machine: Machine, names: Iterable[str] = tuple(BITS)
) -> Iterator[tuple[str, ModelSpec]]:
    """For each of `names` in `BITS`: the option that quantizes the target and the resulting spec, if possible."""
    if options.packed_as is not None or options.adapter is not None:
        return
    for name in names:
        try:
            quantization = _quantization(options, name)
        except UnsupportedModelError:
            return
        spec = _described(options, quantization, options.model, machine).spec
        yield f"--quantize {name}", _with_row_bits(options, spec)


def _with_row_bits(options: Options, spec: ModelSpec) -> ModelSpec:
    """The target, with its KV rows in the bits that the user wants."""
    if options.kv_bits is None:
        return spec
    if reason := spec.why_not_8_bits:
        raise UnsupportedModelError(
            f"{spec.name}: its keys and values cannot be kept in 8 bits: {reason}.\n"
            "  without --kv-bits   they have those of the computation"
        )
    return spec.with_rows_in_8_bits()


def _refuse_gguf(model: Path) -> None:
    if is_gguf(model):
        raise UnsupportedModelError(
            f"{model}: a GGUF file is run as it is; --quantize and --link packed pack safetensors checkpoints."
        )


def _quantization(options: Options, name: str) -> Quantization | LosslessRecipe:
    _refuse_gguf(options.model)
    return recipe_of(name, _checkpoint(options, options.model), read_config(options.model), options.code_bits)


def _described(
    options: Options, quantization: Quantization | LosslessRecipe, directory: Path, machine: Machine
) -> ModelFiles:
    """The files that quantizing will write to `directory`."""
    config = quantization.config(read_config(options.model))
    checkpoint = quantization.checkpoint(directory)
    return _files(options, options.model, checkpoint, config, machine, options.rope_scaling)


def _source(options: Options, directory: Path) -> HubModel | None:
    """The hub model of a directory or file, if it was given by name."""
    return next((one for one in options.sources if one.path == directory), None)


def _checkpoint(options: Options, directory: Path) -> Checkpoint:
    source = _source(options, directory)
    return _hub_checkpoint(source) if source and source.missing else model_source(directory).checkpoint()


@lru_cache(maxsize=4)
def _hub_checkpoint(source: HubModel) -> Checkpoint:
    """Cached, because a plan reads the same headers as they are and as they would be quantized."""
    return read_hub_checkpoint(source)


@lru_cache(maxsize=4)
def _hub_gguf(source: HubModel) -> GgufFile:
    """The header of a GGUF model that is not fully downloaded yet."""
    return read_hub_gguf(source)


def _files(
    options: Options,
    directory: Path,
    checkpoint: Checkpoint,
    config: dict[str, Any],
    machine: Machine,
    rope_scaling: RopeScaling | None,
) -> ModelFiles:
    if rope_scaling:
        config = rope_scaling.applied(config)
    dtype, stored = options.dtype, config.get("stored_layers")  # of a widened model: which layer of the files each is
    if stored is not None or (options.share_layers and directory == options.model):
        from loaders.checkpoint.random_weights import share_layers

        checkpoint = share_layers(checkpoint, config["num_hidden_layers"], stored)
    adapter = None
    if options.adapter and directory == options.model:
        adapter = read_adapter(options.adapter, used_names(directory))
    checkpoint = replace(checkpoint, adapter=adapter)
    spec = read_spec(directory, dtype, checkpoint, config)
    if (possible := compute_dtype(spec, dtype, machine)) != spec.dtype:
        spec = read_spec(directory, possible, checkpoint, config)
    source = _source(options, directory)
    name = (source.label if source else spec.name) + (f" with {adapter.name}" if adapter else "")
    return ModelFiles(replace(spec, name=name), checkpoint, source, rope_scaling)
