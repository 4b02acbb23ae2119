"""A model on the Hugging Face hub: one commit, the files of it that a run needs, and where they will lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loaders.gguf.names import model_stem
from loaders.hub.names import HubName


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; sha256 of those in its large-file storage, None of small ones."""

    name: str
    nbytes: int
    sha256: str | None


@dataclass(frozen=True)
class HubModel:
    """What a name stands for: one commit, and the files of it that a run needs.

    directory: where the cache has that commit's files. files: all that are needed; none where the hub was not asked
    since all are in the cache. gguf: the first of the model's files where it is one of GGUF, as a path in `directory`.
    """

    name: HubName
    commit: str
    directory: Path
    files: tuple[HubFile, ...] = ()
    gguf: str | None = None

    @property
    def path(self) -> Path:
        """What is loaded, once nothing is missing: the directory, or the GGUF file in it."""
        return self.directory / self.gguf if self.gguf else self.directory

    @property
    def label(self) -> str:
        """For people: the model's own name, or where a revision was asked for org/name@commit."""
        if self.gguf:
            revision = f"@{self.commit[:7]}" if self.name.revision else ""
            return f"{model_stem(self.gguf)}{revision}"
        short = self.name.repo.split("/")[1]
        return f"{self.name.repo}@{self.commit[:7]}" if self.name.revision else short

    @property
    def missing(self) -> tuple[HubFile, ...]:
        """The files that the cache lacks, small ones first."""
        return tuple(file for file in self.files if not (self.directory / file.name).is_file())

    @property
    def missing_bytes(self) -> int:
        return sum(file.nbytes for file in self.missing)
