"""Which tensors a model of 16 bits keeps in float32, as transformers does: routers' biases, some routers and norms.

The names are those of `_keep_in_fp32_modules_strict` in transformers' classes, and of what their modules build in
float32; further ones (`_keep_in_fp32_modules`) where float16 would overflow. Files have some under other names.
Imports no torch: tests hold this table to the models that transformers builds.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from loaders.checkpoint.spec import ITEMSIZE

_BIAS = r"e_score_correction_bias|expert_bias|gate\.bias"
_DELTA_RULE = rf"{_BIAS}|conv1d|dt_bias|A_log"
_INDEX_WEIGHTS = r"indexer\.weights_proj"
_STREAMS = r"_hc\.|hc_"  # several residual streams

_IN_16_BITS: dict[str, str] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "dots1", "dots3_note", "dots3_note_text", "exaone_moe",
         "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hy_v3", "mimo_v2_flash", "nemotron_h", "solar_open"),
        _BIAS,
    ),
    "bailing_hybrid": _DELTA_RULE,
    "deepseek_v4": rf"{_BIAS}|{_STREAMS}|sinks?|position_bias|\.ape$|norm",
    **dict.fromkeys(("ernie4_5_moe", "ernie4_5_vl_moe"), r"gate\.weight|moe_statics"),
    "glm5_next": rf"{_DELTA_RULE}|(attn|ffn)_hc\.(base|scale)|hc_(attn|ffn)_(base|scale)",
    "hunyuan_v1_moe": r"mlp\.gate\.wg\.",
    "hy_v4": rf"{_BIAS}|{_STREAMS}|weights_proj|k_norm|sinks|_sink_param|lm_head",
    "lfm2_moe": r"expert_bias",
    "mistral_large4": r"rotary_emb|lerope|\.gate\.weight",
    "muse_spark": rf"residual_gate|mlp\.gate\.weight|{_BIAS}",
    "olmo_hybrid": r"A_log",
}  # fmt: skip
_IN_FLOAT16: dict[str, str] = {
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "mistral_large4"), _INDEX_WEIGHTS),
    "afmoe": r"norm|expert_bias",
    "deepseek_v4": r"compressor\.(indexer\.)?(kv_proj|gate_proj|wkv|wgate)|weights_proj",
    "gpt_oss": r"norm",
}


def itemsizes(model_types: tuple[str, ...], dtype: str) -> Callable[[str], int]:
    """The bytes of a value of a tensor of floats, by its name, in a model that computes in `dtype`.

    model_types: of the config, and of its text part.
    """
    tables = {"float32": (), "bfloat16": (_IN_16_BITS,), "float16": (_IN_16_BITS, _IN_FLOAT16)}[dtype]
    found = {table[kind] for table in tables for kind in model_types if kind in table}
    kept, itemsize = re.compile("|".join(found)) if found else None, ITEMSIZE[dtype]
    return lambda name: 4 if kept is not None and kept.search(name) else itemsize
