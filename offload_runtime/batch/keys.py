"""Names that lines of output bear, so that an interrupted job finds what it has answered. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loaders.hub.names import directory_name
from loaders.tokenizers.chat_templates import read_template
from offload_runtime.options.run_options import Options

PLAIN_START, OPENAI_START = b'{"request_id": "', b'{"id": "batch_req_'
_STARTS = b"|".join(map(re.escape, (PLAIN_START, OPENAI_START)))
_KEY = re.compile(rb"(?:" + _STARTS + rb')([0-9a-f]{6})-([0-9a-f]{6})-([0-9a-f]{16})-([0-9]{1,12})"[,}]')


@dataclass(frozen=True)
class JobKeys:
    """What the keys of one job share. model, sampling: digests of what shapes the replies of all its lines."""

    model: str
    sampling: str

    @classmethod
    def of(cls, options: Options, sampling: Mapping[str, Any]) -> "JobKeys":
        """For a model and JSON values on how to sample.

        Where the model lies, how it is run, in which type it computes and what drafts for it do not count.
        """
        template = read_template(options.chat_template) if options.chat_template else None
        model = {
            "name": directory_name(options.model),
            "adapter": directory_name(options.adapter) if options.adapter else None,
            "quantize": options.quantize,
            "rope_scaling": repr(options.rope_scaling),
            "template": template,
            "template_arguments": options.template_arguments,
        }
        return cls(_digest(model), _digest(sampling))

    def key(self, digest: str, index: int) -> str:
        """The name of a line of input: of its text's digest and its number."""
        return f"{self.model}-{self.sampling}-{digest}-{index}"


@dataclass(frozen=True)
class FoundKey:
    """The key at the beginning of a line of output."""

    job: JobKeys
    digest: str
    index: int

    @classmethod
    def at_start_of(cls, line: bytes) -> "FoundKey | None":
        """None for a line that this program did not write."""
        found = _KEY.match(line)
        if found is None:
            return None
        model, sampling, digest, index = (part.decode() for part in found.groups())
        return cls(JobKeys(model, sampling), digest, int(index))


def may_be_begun(torn: bytes) -> bool:
    """Whether a line without its end may be one that this program was writing when it was killed."""
    return any(torn.startswith(start) or start.startswith(torn) for start in (PLAIN_START, OPENAI_START))


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]
