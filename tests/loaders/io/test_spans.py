"""Spans of a layer: read one by one they fill its buffer as one fill does, whatever is cast on the way."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loaders.io.byte_ranges import ByteRange, bytes_on_disk
from loaders.io.reader import WeightReader
from loaders.io.spans import spans

CASTS = [("U8", torch.uint8), ("BF16", torch.bfloat16), ("F16", torch.float32), ("F32", torch.bfloat16)]
ITEMSIZE = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4}


def written(path, parts):
    """A layer of tensors in reverse order on disk, each at a multiple of 256 in the buffer."""
    runs, stored, place = [], b"", 0
    places = []
    for count, _ in parts:
        places.append(place)
        place = -(-(place + 8 * count) // 256) * 256
    for (count, (dtype, buffer_dtype)), start in reversed(list(zip(parts, places, strict=True))):
        values = torch.arange(count * ITEMSIZE[dtype]).remainder(113).to(torch.uint8)
        runs.append(ByteRange(path, len(stored), len(values), dtype, start, buffer_dtype))
        stored += values.numpy().tobytes()
    path.write_bytes(stored)
    return tuple(runs), place


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.tuples(st.integers(1, 5000), st.sampled_from(CASTS)), min_size=1, max_size=6),
    span_bytes=st.integers(1, 40).map(lambda count: count * 256),
)
def test_spans_fill_what_one_fill_does(tmp_path, parts, span_bytes):
    source, nbytes = written(tmp_path / "model.safetensors", parts)
    whole, pieces = torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(nbytes, dtype=torch.uint8)
    cut = spans(source, nbytes, span_bytes)
    with WeightReader([tmp_path / "model.safetensors"], "buffered", threads=2) as reader:
        reader.fill(source, whole)
        for span in cut:
            assert 0 < span.nbytes <= span_bytes
            reader.fill(span.ranges, pieces[span.start : span.stop])
    assert torch.equal(whole, pieces)
    assert sum(span.nbytes_on_disk for span in cut) == bytes_on_disk(source)
    assert all(a.stop <= b.start for a, b in pairwise(cut))


def test_a_stopped_reader_reads_nothing_more(tmp_path):
    source, nbytes = written(tmp_path / "model.safetensors", [(100, CASTS[0])])
    with WeightReader([tmp_path / "model.safetensors"], "buffered") as reader:
        reader.stop()
        with pytest.raises(RuntimeError, match="stopped"):
            reader.fill(source, torch.zeros(nbytes, dtype=torch.uint8))
        assert reader.bytes_read == 0
