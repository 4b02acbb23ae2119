"""A file of recorded laws: what target and draft thought at every token of texts that the target wrote."""

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from comparison.cells import Setting
from comparison.pair import Pair
from comparison.texts import reader_of, write_texts
from loaders.hub.names import directory_name
from offload_runtime.errors import UsageError

FORMAT = "sequoia-offload recorded laws, version 1"
STORED_TYPE = torch.float16


@dataclass(frozen=True)
class Tape:
    """The texts of one sampling, one behind the other.

    target, draft: logits [n, vocab], row i the laws of token i. begins: where each text begins, and n.
    """

    target: Tensor
    draft: Tensor
    begins: list[int]


def record(pair: Pair, settings: list[Setting], contexts: int, seed: int, file: Path) -> int:
    """Let the target write texts and save both models' logits along them; returns the number of places."""
    texts = write_texts(pair, settings, contexts, seed)
    flat = [text for setting in settings for text in texts[setting]]
    with reader_of(pair) as reader:
        laws = [tuple(logits.to(STORED_TYPE) for logits in reader.logits(text)) for text in flat]
    target, draft = (torch.cat(side) for side in zip(*laws))
    lengths = torch.tensor([len(text.reply) for text in flat])
    tensors = {
        "target_logits": target,
        "draft_logits": draft,
        "tokens": torch.tensor([token for text in flat for token in text.reply]),
        "text_begins": torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))),
        "text_settings": torch.tensor([i for i, setting in enumerate(settings) for _ in texts[setting]]),
    }
    about = {
        "format": FORMAT,
        "target": directory_name(pair.options.model),
        "draft": directory_name(pair.options.draft) if isinstance(pair.options.draft, Path) else "",
        "settings": json.dumps([asdict(setting) for setting in settings]),
        "seed": str(seed),
    }
    try:
        save_file(tensors, file, metadata=about)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"--record {file}: cannot be written ({error})") from error
    return len(target)


@dataclass(frozen=True)
class Recording:
    """A file of recorded laws. Raises UsageError where it is none."""

    file: Path
    about: dict[str, str]
    settings: list[Setting]
    begins: list[int]
    text_settings: list[int]

    @classmethod
    def open(cls, file: Path) -> "Recording":
        try:
            with safe_open(file, framework="pt") as tensors:
                about = tensors.metadata() or {}
                if about.get("format") != FORMAT:
                    raise ValueError(f"its format is not {FORMAT!r}")
                settings = [Setting(**values) for values in json.loads(about["settings"])]
                begins, owners = (tensors.get_tensor(name).tolist() for name in ("text_begins", "text_settings"))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"--from-recorded {file}: it holds no recorded laws ({error})") from error
        return cls(file, about, settings, begins, owners)

    def lengths(self, setting: Setting) -> list[int]:
        """Tokens of every text written under `setting`. Raises UsageError where there are none."""
        begins = self._begins(setting)
        return [end - begin for begin, end in pairwise(begins)]

    def tape(self, setting: Setting) -> Tape:
        """The texts written under `setting`. Raises UsageError where there are none."""
        begins = self._begins(setting)
        first, last = begins[0], begins[-1]
        with safe_open(self.file, framework="pt") as tensors:
            target, draft = (tensors.get_slice(name)[first:last] for name in ("target_logits", "draft_logits"))
        return Tape(target, draft, [begin - first for begin in begins])

    def _begins(self, setting: Setting) -> list[int]:
        """Where the texts of a setting begin in the file, and where the last one ends."""
        if setting not in self.settings:
            known = "; ".join(map(str, self.settings))
            raise UsageError(f"--from-recorded {self.file}: it holds no texts at {setting}; it has {known}")
        number = self.settings.index(setting)
        texts = [text for text, owner in enumerate(self.text_settings) if owner == number]
        return [self.begins[text] for text in (*texts, texts[-1] + 1)]

    def identity(self) -> dict[str, Any]:
        """What cells that are measured on it have in common."""
        names = {"model": self.about["target"], "draft": self.about["draft"]}
        return {**names, "recorded_contexts": self.begins[-1]}
