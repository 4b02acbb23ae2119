"""Quantizes a checkpoint into a new directory: reads blocks of rows, rounds them, writes them to their offsets.

Blocks are independent, so threads take them one by one: while some wait for the disk, others compute. Memory holds one
block per thread, however large the model is.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from loaders.checkpoint.read_spec import read_config
from loaders.errors import ModelFilesError
from loaders.io.direct import FileTable, Workers
from loaders.io.reader import choose_io
from loaders.modules.layout import TORCH_DTYPES
from loaders.progress import ByteProgress
from loaders.quantize.calibrated.calibration import Calibration
from loaders.quantize.calibrated.stage import ResultTable, calibrate
from loaders.quantize.interrupts import interrupts_deferred
from loaders.quantize.journal import JOURNAL_FILE, PackingJournal
from loaders.quantize.recipe import Matrix, Quantization
from loaders.quantize.report import QuantizationReport
from loaders.quantize.rounding import Errors, pack_rows
from loaders.quantize.work_directory import allocated, clear, put_in_place, work_directory, write_others
from loaders.safetensors_files.headers import STORED_ITEMSIZE, StoredTensor
from loaders.safetensors_files.shards import SHARD_BYTES, check_space, header, write_index

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Block:
    """Elements [start, stop) of a stored tensor (whole rows of a matrix), and the tensors they are written to."""

    number: int  # in the order of the source's files
    stored: StoredTensor
    start: int
    stop: int
    matrix: Matrix | None
    places: tuple[StoredTensor, ...]  # words and scales, or the copy

    @property
    def file_range(self) -> tuple[int, int]:
        itemsize = STORED_ITEMSIZE[self.stored.dtype]
        return self.stored.offset + self.start * itemsize, self.stored.offset + self.stop * itemsize

    @property
    def nbytes(self) -> int:
        start, stop = self.file_range
        return stop - start


def write_quantized(
    quantization: Quantization,
    directory: Path,
    fingerprint: str,
    progress: ByteProgress | None = None,
    shard_bytes: int = SHARD_BYTES,
    calibration: Calibration | None = None,
) -> QuantizationReport:
    """Quantize the checkpoint into `directory`, which appears once it is complete, and report the errors.

    With a calibration the layers' matrices, once each is rounded by itself, are rounded again with the text's inputs.

    After an interruption or a crash the partial result is kept beside it, and the next call resumes from there.
    Raises ModelFilesError if the disk is too full, a weight is not finite, `directory` holds something else, or another
    process is writing there.
    """
    with work_directory(directory) as work:
        check_space(
            work,
            max(0, quantization.nbytes - allocated(work)),
            f"int{quantization.bits} weights are kept on disk for the next starts: free some space, or choose another "
            "disk with --quantized-directory DIR.",
        )
        shards = quantization.shards(work, shard_bytes)
        layout = {"fingerprint": fingerprint, "shard_bytes": shard_bytes, "piece_bytes": BLOCK_BYTES, "version": 1}
        journal = PackingJournal(work, layout)
        goes_on = bool(journal.done) and _are_whole(shards)
        clear(work, keep=[*(shards if goes_on else ()), work / JOURNAL_FILE])
        journal.begin(keep=goes_on)
        errors = _write_shards(quantization, shards, journal, progress, calibration)
        report = QuantizationReport.of(quantization, fingerprint, errors)
        write_index(work, shards)
        write_others(
            quantization.source.directory, quantization.config(read_config(quantization.source.directory)), work
        )
        report.write(work)
        with interrupts_deferred():
            journal.remove()
            put_in_place(work, directory)
    return report


def _are_whole(shards: Mapping[Path, list[StoredTensor]]) -> bool:
    """Whether all files exist at their full length, which they have from the start."""
    return all(path.is_file() and path.stat().st_size == _shard_bytes(shard) for path, shard in shards.items())


def _shard_bytes(shard: Sequence[StoredTensor]) -> int:
    return len(header(shard)) + sum(tensor.nbytes for tensor in shard)


def _write_shards(
    quantization: Quantization,
    shards: Mapping[Path, list[StoredTensor]],
    journal: PackingJournal,
    progress: ByteProgress | None,
    calibration: Calibration | None,
) -> dict[str, float]:
    """Write all files; returns the relative error of each matrix by the name of its module."""
    places = {tensor.name: tensor for shard in shards.values() for tensor in shard}
    blocks = list(_blocks(quantization, places))
    longest = max(block.nbytes for block in blocks)
    direct = choose_io(quantization.source.nbytes, psutil.virtual_memory().available) == "direct"
    sums: dict[str, list[Errors]] = defaultdict(list)
    lock, total, done = threading.Lock(), sum(block.nbytes for block in blocks), 0

    def count(block: _Block, errors: Errors | None) -> None:
        nonlocal done
        if errors is not None and block.matrix:
            sums[block.matrix.module].append(errors)
        done += block.nbytes

    def work(block: _Block, memory: memoryview) -> None:
        errors = _write_block(block, sources[block.stored.file].read(*block.file_range, memory), outputs)
        journal.add(block.number, errors, outputs.sync)
        with lock:
            count(block, errors)
            if progress:
                progress(done, total)

    left = [block for block in blocks if block.number not in journal.done]
    for block in blocks:
        if block.number in journal.done:
            count(block, journal.done[block.number])
    with (
        closing(FileTable(quantization.source.files, direct)) as sources,
        closing(_Outputs(shards)) as outputs,
        closing(Workers(1 + cores(), longest)) as workers,  # more than the cores, since some wait for the disk
    ):
        for matrix in quantization.matrices:
            place = places[f"{matrix.module}.weight_shape"]
            outputs.write(place, 0, memoryview(b"".join(n.to_bytes(8, "little") for n in matrix.stored.shape)))
        try:
            with one_thread_an_operation():
                workers.run(left, work)
            if calibration:
                table = ResultTable(places, journal, len(blocks), outputs.write, outputs.sync)
                for module, error in calibrate(quantization, calibration, table).items():
                    sums[module] = [error]
        except BaseException:
            journal.flush(outputs.sync)
            raise
        outputs.sync()
    return {module: _relative(errors) for module, errors in sums.items()}


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def packing_seconds(quantization: Quantization, begun: int = 0) -> float:
    """Estimated seconds to quantize on these cores if the disk keeps up; begun: bytes already written.

    Measured by quantizing random weights, which takes about 0.1 s.
    """
    values = sum(math.prod(matrix.stored.shape) for matrix in quantization.matrices)
    pace = seconds_each(lambda rows: pack_rows(rows, quantization.bits, 32))
    return max(0.0, 1 - begun / quantization.nbytes) * values * pace


def seconds_each(pack: Callable[[Tensor], object]) -> float:
    """Seconds for each weight that `pack` takes on all of these cores, each with rows of its own; the best of five."""
    rows = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    best = float("inf")
    with one_thread_an_operation():
        for _ in range(5):
            started = time.perf_counter()
            pack(rows)
            best = min(best, time.perf_counter() - started)
    return best / rows.numel() / cores()


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Within the block, new threads compute without OpenMP teams: there is one thread per core already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _relative(errors: list[Errors]) -> float:
    norm = sum(part.norm for part in errors)
    return float((sum(part.error for part in errors) / norm) ** 0.5) if norm else 0.0


def _blocks(quantization: Quantization, places: Mapping[str, StoredTensor]) -> Iterator[_Block]:
    """The blocks in the order of the source's files."""
    numbers = itertools.count()
    matrices = {matrix.stored.name: matrix for matrix in quantization.matrices}
    for stored in sorted(quantization.source.tensors.values(), key=lambda tensor: (tensor.file, tensor.offset)):
        matrix = matrices.get(stored.name)
        targets = tuple(places[tensor.name] for tensor in matrix.results[:2]) if matrix else (places[stored.name],)
        itemsize = STORED_ITEMSIZE[stored.dtype]
        row = stored.shape[1] if matrix else 1
        step, count = max(1, BLOCK_BYTES // itemsize // row) * row, stored.nbytes // itemsize
        for start in range(0, count, step):
            yield _Block(next(numbers), stored, start, min(start + step, count), matrix, targets)


def _write_block(block: _Block, stored: memoryview, outputs: _Outputs) -> Errors | None:
    if block.matrix is None:
        outputs.write(block.places[0], block.start * STORED_ITEMSIZE[block.stored.dtype], stored)
        return None
    matrix, (words, scales) = block.matrix, block.places
    rows = _tensor(stored, TORCH_DTYPES[block.stored.dtype]).view(-1, block.stored.shape[1])
    packed, scale, errors = pack_rows(rows, matrix.bits, matrix.group_size)
    if not errors.is_finite:
        raise ModelFilesError(
            f"{block.stored.file}: {block.stored.name} holds values that are no finite numbers, which cannot be "
            "packed. The file is damaged, or the model was trained badly; download it again."
        )
    outputs.write(words, block.start * matrix.bits // 8, _bytes_of(packed))
    outputs.write(scales, block.start // matrix.group_size * scale.dtype.itemsize, _bytes_of(scale))
    return errors


def _tensor(stored: memoryview, dtype: torch.dtype) -> Tensor:
    """`stored` as a 1-D tensor, copied if unaligned: torch requires aligned elements, files do not."""
    values = torch.frombuffer(stored, dtype=torch.uint8)
    return (values if values.data_ptr() % dtype.itemsize == 0 else values.clone()).view(dtype)


def _bytes_of(values: Tensor) -> memoryview:
    return values.view(-1).view(torch.uint8).numpy().data


class _Outputs:
    """The files of the result, each created with its header and at its full length."""

    def __init__(self, shards: Mapping[Path, list[StoredTensor]]) -> None:
        self._descriptors: dict[Path, int] = {}
        for path, shard in shards.items():
            self._descriptors[path] = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            head = header(shard)
            _write_at(path, self._descriptors[path], 0, memoryview(head))
            os.ftruncate(self._descriptors[path], _shard_bytes(shard))

    def write(self, place: StoredTensor, offset: int, content: memoryview) -> None:
        """Write bytes of a tensor, from its byte `offset` on. Raises ModelFilesError on disk errors."""
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
