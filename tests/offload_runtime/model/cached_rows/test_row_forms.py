"""Rows in 8 bits: how far they are from the rows that were computed, and how they lie beside their scales."""

import pytest
import torch

from offload_runtime.model.cached_rows.forms import RowsIn8Bits, quantized
from offload_runtime.model.cached_rows.travelling_rows import TravellingRows
from scheduler.streaming.device_memory import DeviceMemory
from scheduler.streaming.streams import Streams
from tests.fakes.fake_device import fake_host

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def computed(dtype: torch.dtype, width: int = 64, scale: float = 1.0) -> torch.Tensor:
    """Rows ``[1, 3, 50, width]`` with values of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(1, 3, 50, width, generator=generator) * torch.logspace(-3, 3, 50)[:, None]
    return (rows * scale).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_at_most_half_a_step_away(dtype: torch.dtype) -> None:
    rows = computed(dtype)
    codes, scales = quantized(rows)
    assert codes.dtype == torch.int8 and scales.dtype == dtype and scales.shape == (1, 3, 50, 1)
    assert codes.abs().amax() == 127
    steps = scales.double()
    # half a step, and as much again as rounding the scale moves the largest value
    most = steps * (0.5 + 127 * torch.finfo(dtype).eps)
    assert ((codes.double() * steps - rows.double()).abs() <= most * 1.001).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_of_no_numbers_stay_what_they_are(dtype: torch.dtype) -> None:
    form = RowsIn8Bits(50, lambda nbytes: None)
    rows = torch.zeros(1, 1, 4, 8, dtype=dtype)
    rows[0, 0, 1] = 1e-7
    rows[0, 0, 2, 3], rows[0, 0, 3, 5] = torch.inf, torch.nan
    keys, values = form.read(form.stored(rows, rows), [slice(0, 4)])
    for read in (keys, values):
        assert (read[0, 0, 0] == 0).all() and torch.isfinite(read[0, 0, 1]).all()
        assert not torch.isfinite(read[0, 0, 2]).all() and not torch.isfinite(read[0, 0, 3]).all()


def test_layers_of_other_sizes_share_the_memory_of_the_largest() -> None:
    allocated: list[int] = []
    form = RowsIn8Bits(50, allocated.append)
    for width in (8, 16, 4):
        keys, values = computed(torch.float32, width), computed(torch.float32, 2 * width)
        tables = form.stored(keys, values)
        for rows, read in zip((keys, values), form.read(tables, [slice(0, 20), slice(30, 50)])):
            assert torch.allclose(read[:, :, :20], rows[:, :, :20], rtol=0.01, atol=float(rows.abs().max()) / 250)
            assert torch.allclose(read[:, :, 30:], rows[:, :, 30:], rtol=0.01, atol=float(rows.abs().max()) / 250)
    assert allocated == [4 * 3 * 50 * 3 * 8, 4 * 3 * 50 * 3 * 8], "the second layer needs twice as much"
    form.free()
    assert form._memory is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(8, 8), (3, 5), (7, 2)])
def test_rows_travel_with_their_scales(dtype: torch.dtype, widths: tuple[int, int]) -> None:
    """Values of one and of several bytes lie side by side in a row, also where codes fill no whole number of words."""
    form, (host, _) = RowsIn8Bits(50, lambda nbytes: None), fake_host()
    keys, values = (computed(dtype, width) for width in widths)
    tables = form.stored(keys, values)
    travelling = TravellingRows(2, 60, 4, Streams(), host, DeviceMemory(torch.device("cpu")))
    with travelling.one_pass([(0, 0)], [(5, 55)]):
        for layer in range(2):
            arrived = travelling.arrive(layer, tables)
            for name, table in arrived.items():
                table[:, :, 5:55] = tables[name]
    with travelling.one_pass([(5, 55)], [(55, 56)]):
        for layer in range(2):
            arrived = travelling.arrive(layer, {name: table[:, :, :1] for name, table in tables.items()})
            assert {*arrived} == {*tables}
            assert all(torch.equal(arrived[name][:, :, 5:55], table) for name, table in tables.items())
    row_bytes = 3 * (sum(widths) + 2 * dtype.itemsize)
    assert travelling.crossed_bytes == 2 * 50 * -(-row_bytes // dtype.itemsize) * dtype.itemsize
    travelling.close()
