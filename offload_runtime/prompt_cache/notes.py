"""What a user should know about a prompt cache, each kind of thing once."""

import threading
import warnings
from collections import deque


class Notes:
    """Collects notes of any thread until `warn` is called by one that may warn."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._waiting: deque[str] = deque()
        self._lock = threading.Lock()

    def say(self, kind: str, text: str) -> None:
        """Note a text, unless one of its kind was noted before."""
        with self._lock:
            if kind not in self._said:
                self._said.add(kind)
                self._waiting.append(text)

    def warn(self) -> None:
        """Issue what was noted as warnings."""
        while self._waiting:
            warnings.warn(f"prompt cache: {self._waiting.popleft()}", stacklevel=3)
