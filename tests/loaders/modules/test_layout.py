import pytest
import torch

from loaders.modules.layout import Layout

TENSORS = [
    ("bias", (3,), torch.float32),
    ("weight", (5, 7), torch.bfloat16),
    ("scalar", (), torch.float32),
    ("empty", (0, 4), torch.float32),
    ("table", (64, 2), torch.float16),
]


def test_every_tensor_starts_at_a_multiple_of_256():
    layout = Layout.of(TENSORS)
    assert [place.offset for place in layout.places] == [0, 256, 512, 768, 768]
    assert layout.nbytes == 1024


def test_views_share_the_buffer():
    layout = Layout.of(TENSORS)
    buffer = torch.zeros(layout.nbytes, dtype=torch.uint8)
    views = layout.views(buffer)
    for name, shape, dtype in TENSORS:
        assert views[name].shape == shape and views[name].dtype == dtype
        views[name].fill_(1)
    assert buffer.view(torch.float32)[:4].tolist() == [1, 1, 1, 0]
    assert views["weight"].sum() == 35


def test_equal_layouts_are_one_key():
    other = Layout.of([(name, torch.Size(shape), dtype) for name, shape, dtype in TENSORS])
    assert {Layout.of(TENSORS): 1}[other] == 1
    assert Layout.of(TENSORS[1:]) != other


@pytest.mark.parametrize("buffer", [torch.zeros(1023, dtype=torch.uint8), torch.zeros(1024, dtype=torch.int8)])
def test_a_buffer_of_another_size_or_type_is_refused(buffer):
    with pytest.raises(AssertionError):
        Layout.of(TENSORS).views(buffer)
