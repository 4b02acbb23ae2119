"""What KV rows depend on besides the tokens: rows of one identity are never given to a model of another."""

import json
from pathlib import Path

import transformers

from loaders.checkpoint.spec import ModelSpec
from loaders.safetensors_files.headers import Checkpoint
from offload_runtime.errors import ModelFilesError
from offload_runtime.planning.read_models import ModelFiles
from offload_runtime.prompt_cache.blocks import digest
from offload_runtime.speculation.acceptance_store import checkpoint_fingerprint

FORMAT = "offload_runtime prompt cache, version 1"


def model_identity(files: ModelFiles, device: str) -> str:
    """The digest of a model as it computes here: its files and adapter, dtype, rotations, library, and kind of device.

    Files count as changed once their size or time of change differs: comparing all of their bytes would take as long as
    loading. Raises ModelFilesError if they cannot be read.
    """
    checkpoint, spec = files.checkpoint, files.spec
    what = {
        "format": FORMAT,
        "transformers": transformers.__version__,
        "device": device,
        "dtype": spec.dtype,
        "rope_scaling": files.rope_scaling.values if files.rope_scaling else None,
        "model": checkpoint_fingerprint(spec.directory),
        "layers": _layers(spec),
        "files": [_state(file) for file in checkpoint.files],
        "adapter": _adapter(checkpoint),
        **({"kv_bits": spec.kv_bits} if spec.kv_bits else {}),
    }
    return digest(json.dumps(what, sort_keys=True).encode())


def _layers(spec: ModelSpec) -> list[object]:
    """Where each layer is stored: a model whose layers repeat is another one."""
    return [layer.stored_at[1] if layer.stored_at else None for layer in spec.layers]


def _adapter(checkpoint: Checkpoint) -> object:
    adapter = checkpoint.adapter
    if adapter is None:
        return None
    files = {tensor.file for update in adapter.updates for tensor in (update.a, update.b)}
    updates = [(update.module, update.scaling, update.a.shape, update.b.shape) for update in adapter.updates]
    return [updates, sorted(adapter.replaced), [_state(file) for file in sorted(files)]]


def _state(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read ({error.strerror}).") from error
    return file.name, status.st_size, status.st_mtime_ns
