"""Quantizes the target's weights before they are loaded, if requested and not done before."""

import torch
from torch import nn

from loaders.modules.skeleton import Skeleton, build_skeleton
from loaders.quantize.lossless_recipe import LosslessRecipe
from loaders.quantize.recipe import Quantization
from loaders.quantize.write import write_quantized
from loaders.quantize.write_lossless import as_model_allows, write_lossless
from offload_runtime.errors import UnsupportedModelError
from offload_runtime.loading.models import Progress
from offload_runtime.model.attention import ATTENTION_NAME
from offload_runtime.planning.planning import Preparation, prepare


def with_packed_files(preparation: Preparation, progress: Progress | None = None) -> Preparation:
    """The same, prepared with the quantized files, which are written if they do not exist. progress: called meanwhile.

    Raises what `prepare` raises, and ModelFilesError if writing fails; nothing is left behind then.
    """
    packing = preparation.packing
    if packing is None or packing.report:
        return preparation
    skeleton = build_skeleton(packing.quantization.source.directory, torch.bfloat16, "cpu", ATTENTION_NAME)
    stage = f"packing {preparation.target.spec.name} to {preparation.options.packed_as}"
    step = (lambda done, total: progress(stage, done, total)) if progress else None
    if isinstance(packing.quantization, LosslessRecipe):
        recipe = as_model_allows(packing.quantization, skeleton)
        write_lossless(recipe, packing.directory, packing.fingerprint, step)
    else:
        _check_model(packing.quantization, skeleton)
        write_quantized(packing.quantization, packing.directory, packing.fingerprint, step)
    return prepare(preparation.options)


def _check_model(quantization: Quantization, skeleton: Skeleton) -> None:
    """Reject at once, not after minutes of quantizing, a model that cannot be built or has weights in other modules.

    This runtime could dequantize those, but other programs expect quantized weights in linear modules only.
    """
    directory, modules = quantization.source.directory, dict(skeleton.model.named_modules())
    for matrix in quantization.matrices:
        module = modules.get(matrix.module)  # None: fused experts, or a name that only occurs in the files
        if module is not None and not isinstance(module, nn.Linear):
            raise UnsupportedModelError(
                f"{directory}: {matrix.module} is a {type(module).__name__}, not a linear layer, so its weight cannot "
                "be packed. Run the model as it is, without --quantize."
            )
