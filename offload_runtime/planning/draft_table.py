"""Known drafts by family of models with the same tokens, and heads by target: the data of `--draft auto`. No torch.

A family is recognised by a few characteristic tokens and their ids, the target of a head by its name. `draft_choice`
decides which draft is used, after comparing all tokens, or all sizes of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loaders.checkpoint.spec import ITEMSIZE, LayerSpec, ModelSpec


@dataclass(frozen=True)
class Candidate:
    """A draft on the hub, with the sizes that a plan needs before it is downloaded.

    millions: of parameters. cached: numbers in the KV cache per token and layer (2 x KV heads x head size).
    """

    name: str
    millions: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    cached: int
    rows: int
    tied: bool = False

    def spec(self, dtype: str) -> ModelSpec:
        """The spec that `read_spec` would give in `dtype`, except for the bytes of a few norms."""
        itemsize = ITEMSIZE[dtype]
        nbytes = self.millions * 1_000_000 * itemsize
        embeddings_and_head = self.rows * self.hidden * itemsize * (1 if self.tied else 2)
        layer = (nbytes - embeddings_and_head) // self.layers
        return ModelSpec(
            directory=Path(self.name),
            name=self.name,
            architecture="",
            model_type="",
            dtype=dtype,
            stored_dtype=dtype,
            layers=tuple(LayerSpec(f"model.layers.{index}", layer, layer) for index in range(self.layers)),
            embeddings_and_head_bytes=embeddings_and_head,
            disk_bytes=nbytes,
            vocab_size=self.rows,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_heads=self.heads,
            kv_bytes_per_token=self.layers * self.cached * itemsize,
            max_positions=2**31 - 1,
            recurrent=False,
        )


@dataclass(frozen=True)
class TokenFamily:
    """Models with the same tokens. landmarks: some of these tokens, with their ids; a member has all of them.

    word: must occur in the target's path or name, too, if tokens alone do not distinguish the family.
    """

    landmarks: Mapping[str, int]
    candidates: tuple[Candidate, ...]
    word: str = ""


_LLAMA_2_TOKENS = {"<s>": 1, "</s>": 2, "▁the": 278}
_TINY_LLAMA = Candidate("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1100, 22, 2048, 5632, 32, 512, 32_000)

# Earlier families win, so those whose landmarks include another's come before it.
FAMILIES: dict[str, TokenFamily] = {
    "DeepSeek-R1 distilled into Qwen": TokenFamily(
        {"<｜User｜>": 151_644},
        (
            Candidate("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1777, 28, 1536, 8960, 12, 512, 151_936),
            Candidate("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7616, 28, 3584, 18_944, 28, 1024, 152_064),
        ),
    ),
    "DeepSeek-R1 distilled into Llama": TokenFamily(
        {"<｜User｜>": 128_011},
        (Candidate("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8030, 32, 4096, 14_336, 32, 2048, 128_256),),
    ),
    "Llama 3": TokenFamily(
        {"<|begin_of_text|>": 128_000, "<|eot_id|>": 128_009},
        (
            Candidate("meta-llama/Llama-3.2-1B-Instruct", 1236, 16, 2048, 8192, 32, 1024, 128_256, tied=True),
            Candidate("meta-llama/Llama-3.2-3B-Instruct", 3213, 28, 3072, 8192, 24, 2048, 128_256, tied=True),
            Candidate("meta-llama/Llama-3.1-8B-Instruct", 8030, 32, 4096, 14_336, 32, 2048, 128_256),
        ),
    ),
    "Qwen 3": TokenFamily(
        {"<|im_start|>": 151_644, "<think>": 151_667},
        (
            Candidate("Qwen/Qwen3-0.6B", 596, 28, 1024, 3072, 16, 2048, 151_936, tied=True),
            Candidate("Qwen/Qwen3-1.7B", 1721, 28, 2048, 6144, 16, 2048, 151_936, tied=True),
            Candidate("Qwen/Qwen3-4B", 4022, 36, 2560, 9728, 32, 2048, 151_936, tied=True),
        ),
    ),
    "Qwen 2.5": TokenFamily(
        {"<|im_start|>": 151_644, "<|im_end|>": 151_645},
        (
            Candidate("Qwen/Qwen2.5-0.5B-Instruct", 494, 24, 896, 4864, 14, 256, 151_936, tied=True),
            Candidate("Qwen/Qwen2.5-1.5B-Instruct", 1544, 28, 1536, 8960, 12, 512, 151_936, tied=True),
            Candidate("Qwen/Qwen2.5-3B-Instruct", 3086, 36, 2048, 11_008, 16, 512, 151_936, tied=True),
            Candidate("Qwen/Qwen2.5-7B-Instruct", 7616, 28, 3584, 18_944, 28, 1024, 152_064),
        ),
    ),
    "Gemma 3": TokenFamily(
        {"<bos>": 2, "<start_of_turn>": 105},
        (
            Candidate("google/gemma-3-270m-it", 268, 18, 640, 2048, 4, 512, 262_144, tied=True),
            Candidate("google/gemma-3-1b-it", 1000, 26, 1152, 6912, 4, 512, 262_144, tied=True),
        ),
    ),
    "Gemma 2": TokenFamily(
        {"<bos>": 2, "<start_of_turn>": 106},
        (Candidate("google/gemma-2-2b-it", 2614, 26, 2304, 9216, 8, 2048, 256_000, tied=True),),
    ),
    "Mistral Small 3": TokenFamily(
        {"[INST]": 3, "[SYSTEM_PROMPT]": 17},
        (Candidate("alamios/Mistral-Small-3.1-DRAFT-0.5B", 475, 24, 896, 4864, 14, 256, 131_072, tied=True),),
    ),
    "Mistral, 32,768 tokens": TokenFamily(
        {"[INST]": 3, "▁the": 1040},
        (Candidate("mistralai/Mistral-7B-Instruct-v0.3", 7248, 32, 4096, 14_336, 32, 2048, 32_768),),
    ),
    "Mistral, 32,000 tokens": TokenFamily(
        {"<s>": 1, "</s>": 2, "▁the": 272},
        (Candidate("mistralai/Mistral-7B-Instruct-v0.2", 7242, 32, 4096, 14_336, 32, 2048, 32_000),),
    ),
    "Vicuna": TokenFamily(
        _LLAMA_2_TOKENS,
        (
            Candidate("double7/vicuna-68m", 68, 2, 768, 3072, 12, 1536, 32_000),
            _TINY_LLAMA,
            Candidate("lmsys/vicuna-7b-v1.5", 6738, 32, 4096, 11_008, 32, 8192, 32_000),
        ),
        word="vicuna",
    ),
    "Llama 2": TokenFamily(
        _LLAMA_2_TOKENS,
        (
            Candidate("JackFram/llama-68m", 68, 2, 768, 3072, 12, 1536, 32_000),
            Candidate("JackFram/llama-160m", 162, 12, 768, 3072, 12, 1536, 32_000),
            _TINY_LLAMA,
            Candidate("meta-llama/Llama-2-7b-chat-hf", 6738, 32, 4096, 11_008, 32, 8192, 32_000),
        ),
    ),
}


def family_of(vocabulary: Mapping[str, int], name: str) -> str | None:
    """The key in `FAMILIES` of a model with these tokens and this path or name; None if there is none."""
    for key, family in FAMILIES.items():
        if family.word in name.lower() and all(vocabulary.get(t) == i for t, i in family.landmarks.items()):
            return key
    return None


# By the target's name, as speculators, SpecForge and DFlash list them: safetensors, in layouts that are read here.
HEADS: dict[str, tuple[str, ...]] = {
    "llama-3.1-8b-instruct": (
        "RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3",
        "lmsys/SGLang-EAGLE3-Llama-3.1-8B-Instruct-SpecForge",
        "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat",
    ),
    "llama-3.3-70b-instruct": (
        "RedHatAI/Llama-3.3-70B-Instruct-speculator.eagle3",
        "lmsys/SGLang-EAGLE3-Llama-3.3-70B-Instruct-SpecForge",
    ),
    "qwen3-4b": ("z-lab/Qwen3-4B-DFlash-b16",),
    "qwen3-8b": ("RedHatAI/Qwen3-8B-speculator.eagle3", "z-lab/Qwen3-8B-DFlash-b16"),
    "qwen3-14b": ("RedHatAI/Qwen3-14B-speculator.eagle3",),
    "qwen3-32b": ("RedHatAI/Qwen3-32B-speculator.eagle3",),
    "qwen3-30b-a3b-instruct-2507": (
        "RedHatAI/Qwen3-30B-A3B-Instruct-2507-speculator.eagle3",
        "lmsys/SGLang-EAGLE3-Qwen3-30B-A3B-Instruct-2507-SpecForge-Nex",
    ),
    "qwen3-235b-a22b": ("RedHatAI/Qwen3-235B-A22B-speculator.eagle3",),
    "qwen3-235b-a22b-instruct-2507": (
        "RedHatAI/Qwen3-235B-A22B-Instruct-2507-speculator.eagle3",
        "lmsys/SGLang-EAGLE3-Qwen3-235B-A22B-Instruct-2507-SpecForge-Meituan",
    ),
    "qwen3-coder-30b-a3b-instruct": (
        "lmsys/SGLang-EAGLE3-Qwen3-Coder-30B-A3B-Instruct-SpecForge",
        "z-lab/Qwen3-Coder-30B-A3B-DFlash",
    ),
    "gpt-oss-20b": ("RedHatAI/gpt-oss-20b-speculator.eagle3", "z-lab/gpt-oss-20b-DFlash"),
    "gpt-oss-120b": ("z-lab/gpt-oss-120b-DFlash",),
}
_OTHER_RELEASES = ("base", "instruct", "thinking", "2507")  # after a name in `HEADS`: another model of the same sizes


def heads_of(name: str) -> tuple[str, ...]:
    """The heads published for the model of this name, quantized or not; the name says which of its releases it is."""
    plain = name.lower()
    key = max((key for key in HEADS if key in plain), key=len, default="")
    return () if not key or any(word in plain.split(key)[-1] for word in _OTHER_RELEASES) else HEADS[key]
