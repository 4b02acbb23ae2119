"""What a head learns from: the target's hidden states after some of its layers, and its distributions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM


class TargetStates:
    """A frozen target on one device. taps: hidden states after so many of its layers, 0 for the embeddings."""

    def __init__(self, directory: Path, taps: Sequence[int], dtype: torch.dtype, device: str):
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True)
        self.model = model.to(device).eval().requires_grad_(False)
        self._taps = tuple(taps)
        self._seen: dict[int, Tensor] = {}
        layers = self.model.get_decoder().layers
        for tap in sorted(set(self._taps)):
            if tap:
                layers[tap - 1].register_forward_hook(self._keeper(tap))
            else:
                layers[0].register_forward_pre_hook(lambda module, args: self._seen.__setitem__(0, args[0]))

    @staticmethod
    def config_of(directory: Path) -> dict[str, Any]:
        """The fields of its text model's config."""
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        values: dict[str, Any] = config.get_text_config(decoder=True).to_dict()
        return values

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.model.get_decoder().norm
        return norm

    @property
    def embeddings(self) -> nn.Embedding:
        module: nn.Embedding = self.model.get_input_embeddings()
        return module

    @property
    def output(self) -> nn.Linear:
        module: nn.Linear = self.model.get_output_embeddings()
        return module

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of int64 [b, n]: hidden states [b, n, taps * hidden] side by side, and logits [b, n, vocab]."""
        logits = self.model(tokens, use_cache=False).logits
        return torch.cat([self._seen[tap] for tap in self._taps], dim=-1), logits

    def _keeper(self, tap: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._seen[tap] = output[0] if isinstance(output, tuple) else output

        return keep
