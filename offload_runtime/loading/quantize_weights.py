"""Quantizes the target's weights before they are loaded, if requested and not done before."""

import torch
from torch import nn

from loaders.modules.skeleton import build_skeleton
from loaders.quantize.write import write_quantized
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.loading.models import Progress
from offload_runtime.model.attention import ATTENTION_NAME
from offload_runtime.planning.planning import Preparation, prepare
from offload_runtime.planning.quantized_directory import Packing


def with_packed_files(preparation: Preparation, progress: Progress | None = None) -> Preparation:
    """The same, prepared with the quantized files, which are written if they do not exist. progress: called meanwhile.

    Raises what `prepare` raises, and ModelFilesError if writing fails; nothing is left behind then.
    """
    packing = preparation.packing
    if packing is None or packing.report:
        return preparation
    _check_model(packing)
    stage = f"packing {preparation.target.spec.name} to {preparation.options.quantize}"
    step = (lambda done, total: progress(stage, done, total)) if progress else None
    write_quantized(packing.quantization, packing.directory, packing.fingerprint, step)
    return prepare(preparation.options)


def _check_model(packing: Packing) -> None:
    """Reject at once, not after minutes of quantizing, a model that cannot be built or has weights in other modules.

    This runtime could dequantize those, but other programs expect quantized weights in linear modules only.
    """
    directory = packing.quantization.source.directory
    modules = dict(build_skeleton(directory, torch.bfloat16, "cpu", ATTENTION_NAME).model.named_modules())
    for matrix in packing.quantization.matrices:
        module = modules.get(matrix.module)  # None: fused experts, or a name that only occurs in the files
        if module is not None and not isinstance(module, nn.Linear):
            raise UnsupportedModelError(
                f"{directory}: {matrix.module} is a {type(module).__name__}, not a linear layer, so its weight cannot "
                "be packed. Run the model as it is, without --quantize."
            )
