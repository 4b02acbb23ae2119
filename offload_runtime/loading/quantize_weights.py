"""Quantizes the target's weights before they are loaded, if requested and not done before."""

import torch
from torch import nn

from loaders.checkpoint.model_source import load_tokenizer, model_source
from loaders.modules.skeleton import Skeleton, build_skeleton
from loaders.progress import StageProgress
from loaders.quantize.calibrated.calibration import Calibration
from loaders.quantize.calibrated.text import calibration_text, windows
from loaders.quantize.lossless_recipe import LosslessRecipe
from loaders.quantize.recipe import Quantization
from loaders.quantize.write import write_quantized
from loaders.quantize.write_lossless import as_model_allows, write_lossless
from offload_runtime.errors import UnsupportedModelError, UsageError
from offload_runtime.model.attention import ATTENTION_NAME
from offload_runtime.planning.planning import Preparation, prepare


def with_packed_files(preparation: Preparation, progress: StageProgress | None = None) -> Preparation:
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
        calibration = _calibration(preparation, progress)
        write_quantized(packing.quantization, packing.directory, packing.fingerprint, step, calibration=calibration)
    return prepare(preparation.options)


def _calibration(preparation: Preparation, progress: StageProgress | None) -> Calibration | None:
    """The tokens of the text with which the model is rounded. Raises ModelFilesError for a text that is too short."""
    options, source = preparation.options, preparation.options.calibration
    if source is None:
        return None
    if not model_source(options.model).has_tokenizer():
        raise UsageError(f"--calibration {source}: {options.model} has no tokenizer to read text with")
    tokenizer, text = load_tokenizer(options.model), calibration_text(source)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor(windows(ids, preparation.target.spec.max_positions, str(source)))
    stage = f"rounding {preparation.target.spec.name} with a text"
    step = (lambda done, total: progress(stage, done, total)) if progress else None
    return Calibration(tokens, torch.device(preparation.plan.device), step)


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
