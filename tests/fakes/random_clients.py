"""Clients that come, ask, read, and leave at random, and check every text that they read to its end."""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.served import Served

PAUSE = 0.05  # seconds at most between two requests of a client


@dataclass
class Crowd:
    """So many clients of a server. expected: what is written to each prompt. outcomes: counts by kind.

    wrong: what was not as it should be. body: more fields of every request.
    """

    served: Served
    expected: Mapping[str, str]
    clients: int
    body: Mapping[str, Any] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    def run(self, seconds: float, seed: int = 0) -> None:
        """Let them ask for some time, then wait for the last of them."""
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=(random.Random(seed + number), until))
            for number in range(self.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, chance: random.Random, until: float) -> None:
        kinds: Sequence[Callable[[random.Random], str]] = (
            *(self._whole, self._streamed, self._streamed, self._left, self._left, self._gone, self._several),
            *(self._completion, self._bad),
        )
        while time.monotonic() < until:
            kind = chance.choice(kinds)
            try:
                outcome = kind(chance)
            except Exception as error:
                outcome = f"{kind.__name__}: {error!r}"
                self.wrong.append(outcome)
            with self._lock:
                self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            time.sleep(chance.random() * PAUSE)

    def _whole(self, chance: random.Random) -> str:
        prompt = chance.choice([*self.expected])
        answer = self.served.chat(prompt, **self.body)
        if answer.status == 200:
            self._check(prompt, answer.json["choices"][0]["message"]["content"])
            return "whole"
        return self._refused(answer.status)

    def _several(self, chance: random.Random) -> str:
        prompt = chance.choice([*self.expected])
        answer = self.served.chat(prompt, n=2, **self.body)
        if answer.status == 200:
            for choice in answer.json["choices"]:
                self._check(prompt, choice["message"]["content"])
            return "several"
        return self._refused(answer.status)

    def _streamed(self, chance: random.Random) -> str:
        prompt = chance.choice([*self.expected])
        with self.served.stream_chat(prompt, **self.body) as stream:
            if stream.response.status != 200:
                return self._refused(stream.response.status)
            pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in stream.data()]
        self._check(prompt, "".join(pieces))
        return "streamed"

    def _left(self, chance: random.Random) -> str:
        with self.served.stream_chat(chance.choice([*self.expected]), n=chance.randint(1, 2), **self.body) as stream:
            if stream.response.status != 200:
                return self._refused(stream.response.status)
            frames = stream.frames()
            for _ in range(chance.randint(0, 6)):
                next(frames, None)
        return "left"

    def _gone(self, chance: random.Random) -> str:
        """Asks for a whole reply and does not wait for it."""
        connection = self.served.ask_only(chance.choice([*self.expected]), **self.body)
        time.sleep(chance.random() * PAUSE)
        with suppress(OSError):
            connection.close()
        return "gone"

    def _completion(self, chance: random.Random) -> str:
        answer = self.served.post("/v1/completions", {"prompt": chance.choice([*self.expected]), "max_tokens": 3})
        return "completion" if answer.status == 200 else self._refused(answer.status)

    def _bad(self, chance: random.Random) -> str:
        answer = self.served.chat("x", temperature=-1)
        assert answer.status == 400
        return "bad"

    def _refused(self, status: int) -> str:
        assert status == 503, status
        return "busy"

    def _check(self, prompt: str, text: str) -> None:
        assert text == self.expected[prompt], f"{prompt!r}: {text!r}, not {self.expected[prompt]!r}"
