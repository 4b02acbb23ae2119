"""All architectures, by GGUF's names for them."""

from __future__ import annotations

from loaders.errors import UnsupportedModelError
from loaders.gguf.families.architecture import GgufArchitecture
from loaders.gguf.families.dense import DENSE
from loaders.gguf.families.experts import EXPERTS
from loaders.gguf.families.latent import V2, V3, is_sigmoid
from loaders.gguf.families.recurrent import RECURRENT, RECURRENT_WITH_EXPERTS
from loaders.gguf.header import GgufFile

FAMILIES: dict[str, GgufArchitecture] = {**DENSE, **RECURRENT}
# Mixtures of experts; some architectures have both.
MIXTURES: dict[str, GgufArchitecture] = {**EXPERTS, **RECURRENT_WITH_EXPERTS, "deepseek2": V3}
IN_OLDER_FORM: dict[str, GgufArchitecture] = {"deepseek2": V2}


def family_of(gguf: GgufFile) -> GgufArchitecture:
    """Raises UnsupportedModelError for an unknown architecture; the message lists the known ones."""
    name = gguf.get("general.architecture", str)
    mixture = bool(gguf.metadata.get(f"{name}.expert_count"))
    family = (MIXTURES if mixture else FAMILIES).get(name)
    if family is None:
        raise UnsupportedModelError(
            f"{gguf.file}: models of the architecture {name[:40]!r}{' with experts' * mixture} cannot be run from GGUF "
            f"files; {', '.join(FAMILIES)} can, and with experts {', '.join(MIXTURES)}. Use the original checkpoint in "
            "safetensors instead."
        )
    return IN_OLDER_FORM[name] if name in IN_OLDER_FORM and not is_sigmoid(gguf) else family
