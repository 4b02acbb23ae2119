"""All samples of families, and their files."""

import tempfile
from functools import cache
from pathlib import Path

from tests.samples.gguf_families.dense import DENSE
from tests.samples.gguf_families.experts import EXPERTS
from tests.samples.gguf_families.gemma import GEMMA
from tests.samples.gguf_families.latent import LATENT
from tests.samples.gguf_families.layer_norms import LAYER_NORMS
from tests.samples.gguf_families.mamba import MAMBA
from tests.samples.gguf_families.recurrent import RECURRENT
from tests.samples.gguf_families.writing import Sample, write

SAMPLES: dict[str, Sample] = {**DENSE, **LAYER_NORMS, **GEMMA, **EXPERTS, **LATENT, **RECURRENT, **MAMBA}
_DIRECTORY = tempfile.TemporaryDirectory(prefix="tiny-gguf-families-")


@cache
def family_file(case: str) -> Path:
    """The GGUF file of a case; beside it is "decoded"."""
    directory = Path(_DIRECTORY.name) / case.replace(" ", "-")
    directory.mkdir()
    return write(SAMPLES[case], directory)
