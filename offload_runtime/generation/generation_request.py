"""A generation that is asked for, as it is given to `OffloadRuntime.stream_many`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the module imports transformers
    from offload_runtime.text.prompt import Prompt


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A prompt and the keyword arguments of `OffloadRuntime.stream` to continue it with."""

    prompt: "Prompt"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: "Prompt", **arguments: Any) -> "GenerationRequest":
        """The request of `stream(prompt, **arguments)`."""
        return cls(prompt, arguments)
