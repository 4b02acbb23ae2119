"""A model on the Hugging Face hub: one commit, the files that a run needs, and where the cache puts them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loaders.gguf.names import model_stem
from loaders.hub.names import HubName


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; sha256 is None for small files outside its large-file storage."""

    name: str
    nbytes: int
    sha256: str | None


@dataclass(frozen=True)
class HubModel:
    """What a name resolves to: one commit, and its files that a run needs.

    directory: the commit's snapshot in the cache. files: all that are needed; empty if the hub was not asked because
    all are cached. gguf: the first of a GGUF model's files, as a path in `directory`.
    """

    name: HubName
    commit: str
    directory: Path
    files: tuple[HubFile, ...] = ()
    gguf: str | None = None

    @property
    def path(self) -> Path:
        """The path to load once nothing is missing: the directory, or the GGUF file in it."""
        return self.directory / self.gguf if self.gguf else self.directory

    @property
    def label(self) -> str:
        """The display name: the model's name, or org/name@commit if a revision was asked for."""
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
