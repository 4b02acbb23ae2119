"""How long work tells how far it is."""

from collections.abc import Callable

ByteProgress = Callable[[int, int], None]
"""Called with the bytes that are done, and the bytes in all."""
StageProgress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes of it that are done, and the bytes in all."""
