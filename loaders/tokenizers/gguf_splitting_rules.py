"""How text is split before merging, by the GGUF key `tokenizer.ggml.pre`.

The names are those of llama.cpp's table (src/llama-vocab.cpp); the regular expressions are those of the published
tokenizers. Each expression splits the pieces that the previous ones left.
"""

from __future__ import annotations

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_BY_CASE = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+", rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# Letters of alphabets with two cases, as DeepSeek LLM lists them.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

LLAMA3 = (rf"{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|{_SPACES}",)
QWEN2 = (rf"{_WORDS}|\p{{N}}|{_MARKS}[\r\n]*|{_SPACES}",)
QWEN3_5 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
)
SEED_CODER = (rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
TEKKEN = (rf"{'|'.join(_BY_CASE)}|\p{{N}}|{_MARKS}[\r\n/]*|{_SPACES}",)
GPT4O = (rf"{'|'.join(f'{word}{_CONTRACTIONS}?' for word in _BY_CASE)}|\p{{N}}{{1,3}}|{_MARKS}[\r\n/]*|{_SPACES}",)
_NO_HAN_BY_CASE = (
    word.replace(_UPPER, f"{_UPPER}&&[^\\p{{Han}}]").replace(_LOWER, f"{_LOWER}&&[^\\p{{Han}}]") for word in _BY_CASE
)
_KIMI_WORDS = "|".join(f"{word}{_CONTRACTIONS}?" for word in _NO_HAN_BY_CASE)
KIMI_K2 = (rf"\p{{Han}}+|{_KIMI_WORDS}|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|{_SPACES}",)
MINICPM5 = (r"\p{N}{1,3}", rf"{_WORDS}|\p{{N}}+|{_MARKS}[\r\n]*|{_SPACES}")
BAILING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    _IDEOGRAPHS,
    r"\p{N}+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, r"\p{N}")
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    _KANA,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}",
)
EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|{_MARKS}[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
)
# Digits in groups of three that end with the last one; runs of scripts without spaces.
AFMOE = (
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff"
    "\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
    DEEPSEEK_V3[-1],
)
BLOOM = (r" ?[^(\s|.,!?…。，、।۔،)]+",)
GPT2 = (_GPT2,)
DIGITS = (r"\p{N}", _GPT2)
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
# llama.cpp's fallback where a file names none; no model was trained with it.
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

_BEGUN = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
RULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*_BEGUN, "dbrx", "smaug-bpe", "chatglm-bpe", "glm4", "glm5"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"), QWEN2),
    **dict.fromkeys(("grok-2", "solar-open"), QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), GPT4O),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "a.x-4.0", "mellum"), GPT2),
    **dict.fromkeys(("exaone4", "granite-docling", "gigachat"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS),
    **dict.fromkeys(("mellum2",), DIGITS),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), DEEPSEEK_V3),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), BAILING),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), BLOOM),
    "viking": (*BLOOM, r"\p{N}"),
    "qwen35": QWEN3_5,
    "kimi-k2": KIMI_K2,
    "exaone-moe": EXAONE_MOE,
    "afmoe": AFMOE,
    "tekken": TEKKEN,
    "seed-coder": SEED_CODER,
    "minicpm5": MINICPM5,
    "deepseek-llm": DEEPSEEK_LLM,
    "deepseek-coder": DEEPSEEK_CODER,
    "falcon": FALCON,
    "default": DEFAULT,
}
# Models whose tokenizers apply NFC first. llama.cpp does not.
COMPOSED = {name for name, rule in RULES.items() if rule == QWEN2} - {"grok-2", "solar-open"}
# Defaults for these where files do not say so: a text begins with the BOS token,
BEGUN = {*_BEGUN, "tekken"}
# and a piece that is a whole token is not split by merges.
WHOLE_PIECES = {*BEGUN, "glm4", "glm5", "minicpm5"}
