"""All architectures, by GGUF's names for them."""

from __future__ import annotations

from collections.abc import Callable

from loaders.errors import UnsupportedModelError
from loaders.gguf.families.architecture import GgufArchitecture
from loaders.gguf.families.dense import DENSE
from loaders.gguf.families.experts import EXPERTS
from loaders.gguf.families.latent import KIMI_LINEAR, V2, V3, is_sigmoid
from loaders.gguf.families.layer_norms import LAYER_NORMS
from loaders.gguf.families.mamba import MAMBA, MAMBA_WITH_EXPERTS
from loaders.gguf.families.more_dense import MORE_DENSE, OLMO3, slides
from loaders.gguf.families.more_experts import GRANITE_MOE_SHARED, MORE_EXPERTS, has_shared_expert
from loaders.gguf.families.per_layer_inputs import GEMMA4_EXPERTS, PER_LAYER_INPUTS
from loaders.gguf.families.recurrent import RECURRENT, RECURRENT_WITH_EXPERTS
from loaders.gguf.families.short_convolutions import LFM2_DENSE, LFM2_EXPERTS
from loaders.gguf.header import GgufFile

FAMILIES: dict[str, GgufArchitecture] = {
    **DENSE,
    **PER_LAYER_INPUTS,
    **MORE_DENSE,
    **LAYER_NORMS,
    **RECURRENT,
    **MAMBA,
    "lfm2": LFM2_DENSE,
}
# Mixtures of experts; some architectures have both.
MIXTURES: dict[str, GgufArchitecture] = {
    **EXPERTS,
    **RECURRENT_WITH_EXPERTS,
    **MAMBA_WITH_EXPERTS,
    "deepseek2": V3,
    "kimi-linear": KIMI_LINEAR,
    **MORE_EXPERTS,
    "gemma4": GEMMA4_EXPERTS,
    "lfm2moe": LFM2_EXPERTS,
}
# Another model under the same name, and what tells it.
VARIANTS: dict[str, tuple[Callable[[GgufFile], bool], GgufArchitecture]] = {
    "deepseek2": (lambda gguf: not is_sigmoid(gguf), V2),
    "granitemoe": (has_shared_expert, GRANITE_MOE_SHARED),
    "olmo2": (slides, OLMO3),
}


def family_of(gguf: GgufFile) -> GgufArchitecture:
    """Raises UnsupportedModelError for an unknown architecture; the message lists the known ones."""
    name = gguf.get("general.architecture", str)
    mixture = bool(gguf.metadata.get(f"{name}.expert_count"))
    known = MIXTURES if mixture else FAMILIES
    family = known.get(name)
    if family is None:
        raise UnsupportedModelError(
            f"{gguf.file}: models of the architecture {name[:40]!r}{' with experts' * mixture} cannot be run from GGUF "
            f"files; {', '.join(known)} can. Use the original checkpoint in safetensors instead."
        )
    is_variant, variant = VARIANTS.get(name, (None, family))
    return variant if is_variant and is_variant(gguf) else family
