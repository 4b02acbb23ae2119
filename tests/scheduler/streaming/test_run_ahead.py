"""The host queues layers a little ahead of the device, which never runs out of them; Ctrl-C is answered in between."""

import pytest
import torch

from offload_runtime.errors import Interrupted
from offload_runtime.model.model import Model
from offload_runtime.model.rows import text_rows
from scheduler.streaming.run_ahead import LAYERS_AHEAD, RunAhead
from scheduler.streaming.streams import Streams
from tests.fakes.recorded_work import RecordedWork
from tests.pass_samples import PADDING, loaded, text_of
from tests.samples.tiny_models import checkpoint

LAYERS = 8


class Device:
    """Computes layers only when somebody waits for it, or at once. queued, done: layers so far."""

    def __init__(self, at_once: bool = False):
        self.queued, self._done, self._at_once = 0, 0, at_once
        self.waits = 0

    @property
    def done(self) -> int:
        return self.queued if self._at_once else self._done

    @property
    def left(self) -> int:
        """Layers that the device has to compute."""
        return self.queued - self.done

    def work_until(self, layers: int) -> None:
        if layers > self.done:
            self._done, self.waits = layers, self.waits + 1

    def event(self) -> "Mark":
        return Mark(self)


class Mark:
    """An event of the device's only stream."""

    def __init__(self, device: Device):
        self._device, self._layers = device, 0

    def record(self) -> None:
        self._layers = self._device.queued

    def wait(self) -> None: ...

    def synchronize(self) -> None:
        self._device.work_until(self._layers)


def run(device: Device, layers: int) -> list[int]:
    """Of every layer, how many the device has left when it is queued."""
    run_ahead, left = RunAhead(device.event), []
    for _ in range(layers):
        run_ahead.begin_layer()
        left.append(device.left)
        device.queued += 1
    return left


def test_two_layers_are_queued_beside_the_one_that_is_computed() -> None:
    """Never fewer, so that the device always has the next; never more."""
    assert run(Device(), 20) == [0, 1, *[LAYERS_AHEAD] * 18]


def test_who_is_slower_than_the_device_never_waits() -> None:
    device = Device(at_once=True)
    assert run(device, 20) == [0] * 20 and device.waits == 0


class LateStreams(Streams):
    """Of a processor, but for the device whose events these are."""

    def __init__(self, device: Device):
        self._device = device

    def event(self) -> Mark:
        return self._device.event()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr("scheduler.streaming.layer_memory.streams_of", lambda _: LateStreams(device))
    return device


def count_layers(model: Model, device: Device) -> list[int]:
    """From now on, how many layers the device has left at the beginning of each."""
    left: list[int] = []

    def queue(*_: object) -> None:
        left.append(device.left)
        device.queued += 1

    for module in model.layer_modules:
        module.register_forward_pre_hook(queue)
    return left


def test_a_pass_keeps_close_to_the_device(device: Device) -> None:
    with loaded(checkpoint("llama", num_hidden_layers=LAYERS)) as model:
        left = count_layers(model, device)
        model.read(text_of(12), most_rows=50)
        assert len(left) == LAYERS and max(left) == LAYERS_AHEAD


@pytest.mark.parametrize("begun", range(1, LAYERS))
def test_a_stop_is_heeded_with_no_more_than_two_layers_to_go(device: Device, begun: int) -> None:
    """Asked for while the device computes a layer, it is answered before the next but two is queued."""
    with loaded(checkpoint("llama", num_hidden_layers=LAYERS)) as model:
        count_layers(model, device)
        model.should_stop = lambda: device.done >= begun
        if begun >= LAYERS - LAYERS_AHEAD:
            model.read(text_of(12), most_rows=50)  # all is queued by then
        else:
            with pytest.raises(Interrupted):
                model.read(text_of(12), most_rows=50)
            assert device.done == begun and device.left == LAYERS_AHEAD


def test_nobody_waits_in_a_pass_that_may_be_captured(device: Device) -> None:
    with loaded(checkpoint("llama", num_hidden_layers=LAYERS)) as model:
        model.read(text_of(12), most_rows=50)
        model.pad_passes(PADDING, RecordedWork())
        count_layers(model, device)
        device.waits = 0
        model.forward(torch.tensor([5]), text_rows(12, 1, model.device), 1)
        assert device.queued and device.waits == 0
