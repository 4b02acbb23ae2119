"""Errors of the planner: the machine is not what was asked for, or the model does not fit on it."""

from loaders.errors import OffloadError


class MachineError(OffloadError):
    """The device asked for cannot be found on this machine."""


class DriverError(MachineError):
    """The NVIDIA driver does not answer."""


class DoesNotFitError(OffloadError):
    """The smallest placement of the model needs more memory than may be used.

    `needed` and `available` are bytes of the memory that is short. `options` are command line flags; the planner has
    checked that each of them works on this machine.
    """

    def __init__(self, message: str, needed: int, available: int, options: tuple[str, ...]):
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.options = options
