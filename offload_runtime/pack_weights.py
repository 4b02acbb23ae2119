"""Packs the target's weights before they are loaded, where that is asked for and has not been done."""

from offload_runtime.loading import Progress
from offload_runtime.planning import Preparation, prepare


def with_packed_files(preparation: Preparation, progress: Progress | None = None) -> Preparation:
    """The same prepared with the packed files, which are written if they are not there. progress: called meanwhile.

    Raises what `prepare` raises, and ModelFilesError where packing fails: nothing is left behind then.
    """
    packing = preparation.packing
    if packing is None or packing.report:
        return preparation
    from loaders.quantized_checkpoint import write_quantized

    stage = f"packing {preparation.target.spec.name} to {preparation.options.quantize}"
    step = (lambda done, total: progress(stage, done, total)) if progress else None
    write_quantized(packing.quantization, packing.directory, packing.fingerprint, step)
    return prepare(preparation.options)
