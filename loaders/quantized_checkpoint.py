"""Packs a checkpoint into a new directory: read in pieces of rows, rounded, and written where the result has them.

Every piece is independent, so threads take them one by one: while some wait for the disk, others compute. What is in
memory is one piece for each thread, however large the model.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from loaders.direct_io import FileTable, Workers
from loaders.errors import ModelFilesError
from loaders.layout import TORCH_DTYPES
from loaders.quantization import Matrix, Quantization
from loaders.quantization_report import Report
from loaders.quantize import Errors, pack_rows
from loaders.read_spec import read_config
from loaders.reader import choose_io
from loaders.safetensors_files import STORED_ITEMSIZE, StoredTensor
from loaders.shards import SHARD_BYTES, check_space, header, write_index

PIECE_BYTES = 1 << 20
MAX_THREADS = 8  # more of them would wait for Python's lock
SMALL_FILE_BYTES = 100_000_000
# What is copied beside the weights: tokenizer, generation config and chat template, by their kinds. Never code.
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*/*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*")
NOT_COPIED = {"config.json", "acceptance.json"}

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, of the source."""


@dataclass(frozen=True)
class _Piece:
    """Elements [start, stop) of a stored tensor, whole rows of a matrix, and where what becomes of them goes."""

    stored: StoredTensor
    start: int
    stop: int
    matrix: Matrix | None
    places: tuple[StoredTensor, ...]  # words and scales; or the copy

    @property
    def file_range(self) -> tuple[int, int]:
        itemsize = STORED_ITEMSIZE[self.stored.dtype]
        return self.stored.offset + self.start * itemsize, self.stored.offset + self.stop * itemsize


def write_quantized(
    quantization: Quantization,
    directory: Path,
    fingerprint: str,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Pack the checkpoint into `directory`, which appears when all of it is there, and report the errors.

    Raises ModelFilesError for a disk that is too full, for weights that are no finite numbers, where something else is
    in `directory`, and where another process is writing there.
    """
    with _work_directory(directory) as work:
        check_space(
            work,
            quantization.nbytes,
            f"int{quantization.bits} weights are kept on disk for the next starts: free some space, or choose another "
            "disk with --quantized-directory DIR.",
        )
        shards = quantization.shards(work, shard_bytes)
        report = Report.of(quantization, fingerprint, _write_shards(quantization, shards, progress))
        write_index(work, shards)
        _write_others(quantization, work)
        report.write(work)
        try:
            work.rename(directory)
        except OSError as error:
            raise ModelFilesError(
                f"{directory}: the packed weights cannot be put there ({error.strerror}). It must be empty, or not "
                "exist: choose another with --quantized-directory DIR."
            ) from error
    return report


@contextmanager
def _work_directory(directory: Path) -> Iterator[Path]:
    """A directory beside `directory` that is gone at the end, unless renamed. What a killed process left is removed.

    It is locked as long as its process lives. Raises ModelFilesError where another's is, or the disk refuses.
    """
    work = directory.with_name(f".{directory.name}.partial")
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise ModelFilesError(
            f"{work}: cannot be made ({error.strerror}). Choose another with --quantized-directory DIR."
        ) from error
    try:
        if not _locked(descriptor, work):
            raise ModelFilesError(
                f"{directory}: another process is packing these weights. Wait until it is done, then start again."
            )
        try:
            for left in work.iterdir():
                left.unlink()
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)  # after the rename nothing is there
    finally:
        os.close(descriptor)


def _locked(descriptor: int, directory: Path) -> bool:
    """Lock an open directory; False where another process has it, or has just renamed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), directory.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _write_shards(
    quantization: Quantization, shards: Mapping[Path, list[StoredTensor]], progress: Progress | None
) -> dict[str, float]:
    """Write all files; returns the error of each matrix, as a part of its norm, by the name of its module."""
    threads = min(MAX_THREADS, 1 + (os.cpu_count() or 2))  # one more than compute: some wait for the disk
    places = {tensor.name: tensor for shard in shards.values() for tensor in shard}
    pieces = list(_pieces(quantization, places))
    longest = max(stop - start for start, stop in (piece.file_range for piece in pieces))
    direct = choose_io(quantization.source.nbytes, psutil.virtual_memory().available) == "direct"
    sums: dict[str, list[Errors]] = defaultdict(list)
    lock, total = threading.Lock(), sum(stop - start for start, stop in (piece.file_range for piece in pieces))
    done = 0

    def work(piece: _Piece, memory: memoryview) -> None:
        nonlocal done
        start, stop = piece.file_range
        errors = _write_piece(piece, sources[piece.stored.file].read(start, stop, memory), outputs)
        with lock:
            if errors is not None and piece.matrix:
                sums[piece.matrix.module].append(errors)
            done += stop - start
            if progress:
                progress(done, total)

    with (
        closing(FileTable(quantization.source.files, direct)) as sources,
        closing(_Outputs(shards)) as outputs,
        closing(Workers(threads, longest)) as workers,
    ):
        for matrix in quantization.matrices:
            place = places[f"{matrix.module}.weight_shape"]
            outputs.write(place, 0, memoryview(b"".join(n.to_bytes(8, "little") for n in matrix.stored.shape)))
        workers.run(pieces, work)
        outputs.sync()
    return {module: _relative(errors) for module, errors in sums.items()}


def _relative(errors: list[Errors]) -> float:
    norm = sum(part.norm for part in errors)
    return float((sum(part.error for part in errors) / norm) ** 0.5) if norm else 0.0


def _pieces(quantization: Quantization, places: Mapping[str, StoredTensor]) -> Iterator[_Piece]:
    """In the order in which the source's files have them."""
    matrices = {matrix.stored.name: matrix for matrix in quantization.matrices}
    for stored in sorted(quantization.source.tensors.values(), key=lambda tensor: (tensor.file, tensor.offset)):
        matrix = matrices.get(stored.name)
        targets = tuple(places[tensor.name] for tensor in matrix.results[:2]) if matrix else (places[stored.name],)
        itemsize = STORED_ITEMSIZE[stored.dtype]
        row = stored.shape[1] if matrix else 1
        step, count = max(1, PIECE_BYTES // itemsize // row) * row, stored.nbytes // itemsize
        for start in range(0, count, step):
            yield _Piece(stored, start, min(start + step, count), matrix, targets)


def _write_piece(piece: _Piece, stored: memoryview, outputs: _Outputs) -> Errors | None:
    if piece.matrix is None:
        outputs.write(piece.places[0], piece.start * STORED_ITEMSIZE[piece.stored.dtype], stored)
        return None
    matrix, (words, scales) = piece.matrix, piece.places
    rows = _tensor(stored, TORCH_DTYPES[piece.stored.dtype]).view(-1, piece.stored.shape[1])
    packed, scale, errors = pack_rows(rows, matrix.bits, matrix.group_size)
    if not errors.is_finite:
        raise ModelFilesError(
            f"{piece.stored.file}: {piece.stored.name} holds values that are no finite numbers, which cannot be "
            "packed. The file is damaged, or the model was trained badly; download it again."
        )
    outputs.write(words, piece.start * matrix.bits // 8, _bytes_of(packed))
    outputs.write(scales, piece.start // matrix.group_size * scale.dtype.itemsize, _bytes_of(scale))
    return errors


def _tensor(stored: memoryview, dtype: torch.dtype) -> Tensor:
    """`stored` as a tensor of one dimension; torch wants aligned elements, which files need not have."""
    values = torch.frombuffer(stored, dtype=torch.uint8)
    return (values if values.data_ptr() % dtype.itemsize == 0 else values.clone()).view(dtype)


def _bytes_of(values: Tensor) -> memoryview:
    return values.view(-1).view(torch.uint8).numpy().data


class _Outputs:
    """The files of the result, each with its header and at its full length from the start."""

    def __init__(self, shards: Mapping[Path, list[StoredTensor]]) -> None:
        self._descriptors: dict[Path, int] = {}
        for path, shard in shards.items():
            self._descriptors[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            head = header(shard)
            _write_at(path, self._descriptors[path], 0, memoryview(head))
            os.ftruncate(self._descriptors[path], len(head) + sum(tensor.nbytes for tensor in shard))

    def write(self, place: StoredTensor, offset: int, content: memoryview) -> None:
        """Write bytes of a tensor, from its byte `offset` on. Raises ModelFilesError where the disk refuses."""
        assert offset + len(content) <= place.nbytes, (place, offset, len(content))
        _write_at(place.file, self._descriptors[place.file], place.offset + offset, content)

    def sync(self) -> None:
        """Wait until everything is on disk."""
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _write_at(path: Path, descriptor: int, offset: int, content: memoryview) -> None:
    while content:
        try:
            count = os.pwrite(descriptor, content, offset)
        except OSError as error:
            raise ModelFilesError(
                f"{path}: writing at byte {offset:,} failed: {error.strerror}. What was written is removed; choose "
                "another disk with --quantized-directory DIR."
            ) from error
        content, offset = content[count:], offset + count


def _write_others(quantization: Quantization, directory: Path) -> None:
    """config.json, and what belongs to the model besides its weights."""
    source = quantization.source.directory
    config = quantization.config(read_config(source))
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in sorted(file for pattern in COPIED for file in source.glob(pattern)):
        is_small = file.is_file() and file.stat().st_size <= SMALL_FILE_BYTES
        if is_small and file.name not in NOT_COPIED and not file.name.endswith(".index.json"):
            copy = directory / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
