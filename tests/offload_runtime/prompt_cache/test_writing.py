"""When and how texts are written: behind passes, before rows go, at the end; and what happens where they cannot be."""

import errno
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from offload_runtime import GenerationRequest, OffloadRuntime
from offload_runtime.errors import UsageError
from offload_runtime.model.allocation import allocate_cache
from offload_runtime.prompt_cache import folder, prompt_cache, stored_rows
from offload_runtime.prompt_cache.prompt_cache import PromptCache
from tests.offload_runtime.prompt_cache.test_restarts import NEW_TOKENS, TEXT, start, write
from tests.samples.tiny_models import checkpoint, greedy

pytestmark = pytest.mark.usefixtures("small_blocks")

OTHER = [token + 1 for token in TEXT]


@pytest.fixture
def model() -> Path:
    return checkpoint("llama")


def generate(runtime: OffloadRuntime, prompt: list[int], count: int = NEW_TOKENS) -> list[int]:
    return runtime.generate(prompt, max_new_tokens=count, temperature=0).token_ids


def blocks(where: Path) -> list[Path]:
    return [*where.rglob("*.safetensors")]


def wait_for(count: int, where: Path) -> None:
    until = time.monotonic() + 60
    while len(blocks(where)) < count:
        assert time.monotonic() < until, f"{len(blocks(where))} of {count} blocks"
        time.sleep(0.01)


@contextmanager
def without_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block nothing is written behind passes."""
    with monkeypatch.context() as patch:
        patch.setattr(PromptCache, "_wake_thread", lambda cache: None)
        yield


def test_a_text_is_written_while_the_runtime_does_nothing(model: Path, tmp_path: Path) -> None:
    with start(model, tmp_path) as runtime:
        generate(runtime, TEXT)
        wait_for(5, tmp_path)


def test_a_text_is_written_while_another_is(model: Path, tmp_path: Path) -> None:
    """The thread gets its turn between two passes, though they follow each other at once."""
    with start(model, tmp_path, parallel=2) as runtime:
        generate(runtime, TEXT)
        expected = greedy(model, OTHER, 50)
        steps = []
        for step in runtime.stream(OTHER, max_new_tokens=50, temperature=0):
            steps += step.token_ids
            if len(steps) == 25:
                wait_for(4, tmp_path)
        assert steps == expected


def test_rows_are_written_before_they_are_another_texts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_thread(monkeypatch), start(model, tmp_path) as runtime:
        generate(runtime, TEXT)
        assert not blocks(tmp_path)
        generate(runtime, OTHER, 1)
        assert len(blocks(tmp_path)) == 5
    assert len(blocks(tmp_path)) == 10
    assert write(model, tmp_path) == (greedy(model, TEXT, NEW_TOKENS), 1)


def test_the_end_writes_what_is_left(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_thread(monkeypatch), start(model, tmp_path) as runtime:
        generate(runtime, TEXT)
        assert not blocks(tmp_path)
    assert len(blocks(tmp_path)) == 5


def test_only_new_rows_are_written(model: Path, tmp_path: Path) -> None:
    write(model, tmp_path)
    before = {file: file.stat().st_ino for file in blocks(tmp_path)}
    reply = greedy(model, TEXT, NEW_TOKENS)
    write(model, tmp_path, [*TEXT, *reply])
    after = {file: file.stat().st_ino for file in blocks(tmp_path)}
    assert len(before) == 5 and len(after) == 6  # 79 rows, then 89: the fifth block was not full
    assert sum(after.get(file) == number for file, number in before.items()) == 4
    again = [*TEXT, *reply, *greedy(model, [*TEXT, *reply], NEW_TOKENS)]
    write(model, tmp_path, again, count=1)
    assert len(blocks(tmp_path)) == 6


def test_short_texts_are_not_kept(model: Path, tmp_path: Path) -> None:
    write(model, tmp_path, TEXT[:3], count=2)
    assert not blocks(tmp_path)


def test_an_interrupted_reading_is_kept(model: Path, tmp_path: Path) -> None:
    with start(model, tmp_path, parallel=2) as runtime, runtime.shared_passes() as passes:
        text = passes.add(GenerationRequest.of(TEXT, max_new_tokens=NEW_TOKENS, temperature=0))
        passes.step()
        passes.remove(text)
        assert text.reply.finish_reason == "interrupted"
    assert write(model, tmp_path) == (greedy(model, TEXT, NEW_TOKENS), 1)


def test_threads_end_with_the_runtime(model: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    for prompt in (TEXT, OTHER):
        with start(model, tmp_path) as runtime:
            generate(runtime, prompt)
    assert threading.active_count() == before


def test_closing_does_not_wait_for_a_turn(model: Path, tmp_path: Path) -> None:
    """The thread waits for one that the closing thread has."""
    runtime = start(model, tmp_path)
    with runtime._turns.hold():
        generate(runtime, TEXT)
        time.sleep(2 * prompt_cache.TICK)
        runtime.close()
    assert len(blocks(tmp_path)) == 5


def test_rows_that_are_gone_are_not_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_thread(monkeypatch), start(model, tmp_path) as runtime:
        generate(runtime, TEXT)
        runtime._models.target.model.cache.truncate(40)
    assert len(blocks(tmp_path)) == 2


def test_closing_frees_the_rows(model: Path, tmp_path: Path) -> None:
    """Though the runtime is still referred to."""
    runtime = start(model, tmp_path)
    generate(runtime, TEXT)
    rows = weakref.ref(runtime._models.target.model.cache.layers[0].tables["keys"])
    assert rows() is not None
    runtime.close()
    gc.collect()
    assert rows() is None


@pytest.mark.parametrize("streamed", [False, True])
def test_the_cache_is_allocated_without_a_trace(streamed: bool, model: Path) -> None:
    with start(model, None, streamed=streamed, parallel=2) as runtime:
        target, crossed = runtime._models.target.model, runtime._models.target.model.streamed_total
        allocate_cache(target)
        tables = target.cache.tables()
        assert len(tables) == 6 and not any(table.any() for table in tables.values())
        assert (target.cache.sequences[0].end, target.streamed_total) == (0, crossed)
        allocate_cache(target)
        assert all(target.cache.tables()[name].data_ptr() == table.data_ptr() for name, table in tables.items())
        assert generate(runtime, TEXT) == greedy(model, TEXT, NEW_TOKENS)


def test_nothing_is_read_once_the_caller_stops(model: Path, tmp_path: Path) -> None:
    write(model, tmp_path)
    with start(model, tmp_path) as runtime:
        reply = runtime.generate(TEXT, max_new_tokens=3, temperature=0, should_stop=lambda: True)
        assert reply.finish_reason == "interrupted" and not runtime._models.target.model.cache.sequences[0].length


def test_a_disk_slower_than_the_model_is_not_read_further(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = write(model, tmp_path)
    monkeypatch.setattr(stored_rows, "GRACE_SECONDS", 0.0)
    with start(model, tmp_path) as runtime:
        for stored in runtime._stored._stored:
            stored._seconds_per_token = 0.0
        reply = runtime.generate(TEXT, max_new_tokens=NEW_TOKENS, temperature=0)
    assert reply.token_ids == expected and reply.stats.prompt_tokens_read > len(TEXT) - 16
    with start(model, tmp_path, streamed=True) as runtime:
        assert all(stored._seconds_per_token is None for stored in runtime._stored._stored)


def test_the_least_recently_used_text_goes_first(model: Path, tmp_path: Path) -> None:
    write(model, tmp_path)
    write(model, tmp_path, OTHER)
    size = sum(file.stat().st_size for file in blocks(tmp_path)) + 1
    assert write(model, tmp_path, TEXT, count=2)[1] == 1
    third = [token + 2 for token in TEXT]
    write(model, tmp_path, third, prompt_cache_size=size)
    assert write(model, tmp_path, TEXT, count=2)[1] == 1
    assert write(model, tmp_path, third, count=2)[1] == 1
    assert write(model, tmp_path, OTHER, count=2)[1] == len(OTHER)


def test_a_text_larger_than_the_cache_keeps_its_beginning(model: Path, tmp_path: Path) -> None:
    write(model, tmp_path / "whole")
    size = max(file.stat().st_size for file in blocks(tmp_path / "whole"))
    with pytest.warns(UserWarning, match="no room for all of a text") as told:
        write(model, tmp_path / "part", prompt_cache_size=2 * size)
    assert len(told) == 1 and len(blocks(tmp_path / "part")) == 2
    assert write(model, tmp_path / "part", count=2)[1] == len(TEXT) - 32


class Failing:
    """Every write fails as the system says it."""

    def __init__(self, code: int):
        self.code, self.calls = code, 0

    def __call__(self, path: Path, *more: object) -> None:
        self.calls += 1
        raise OSError(self.code, "it said no", str(path))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_is_said_once(
    code: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(model, tmp_path)
    failing = Failing(code)
    monkeypatch.setattr(stored_rows, "write_block", failing)
    with pytest.warns(UserWarning, match="it said no") as told, start(model, tmp_path) as runtime:
        assert generate(runtime, OTHER) == greedy(model, OTHER, NEW_TOKENS)
        reply = runtime.generate(TEXT, max_new_tokens=NEW_TOKENS, temperature=0)
        assert reply.token_ids == greedy(model, TEXT, NEW_TOKENS)
    assert reply.stats.prompt_tokens_read <= 2, "what is there is still read"
    assert len(told) == 1 and failing.calls == 1, "the rest of a text is not tried"


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": folder.LEFT_FREE - 1})
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: usage)
    with pytest.warns(UserWarning, match="no room"):
        assert write(model, tmp_path) == (greedy(model, TEXT, NEW_TOKENS), len(TEXT))
    assert not blocks(tmp_path)


READER = """
import sys
from pathlib import Path
from offload_runtime import OffloadRuntime
from offload_runtime.prompt_cache import blocks, prompt_cache, stored_rows
blocks.MOST_TOKENS, stored_rows.LEAST_READ, prompt_cache.LEAST_KEPT = 16, 4, 8
model, where, *prompt = sys.argv[1:]
with OffloadRuntime.from_pretrained(model, "none", device="cpu", prompt_cache=where, context_length=128) as runtime:
    ids = [int(token) for token in prompt]
    reply = runtime.generate(ids, max_new_tokens=8, temperature=0)
print(reply.stats.prompt_tokens_read, *reply.token_ids)
"""


def test_a_read_only_directory_is_read(model: Path, tmp_path: Path) -> None:
    command = [sys.executable]
    if os.getuid() == 0:  # may write everywhere, unless that is taken away
        if shutil.which("setpriv") is None:
            pytest.skip("run by the superuser, and without setpriv")
        without = "--bounding-set=-dac_override,-dac_read_search"
        command = ["setpriv", without, "--inh-caps=-dac_override,-dac_read_search", *command]
    write(model, tmp_path / "rows")
    prompt = [*TEXT[:60], *OTHER[:30]]
    for directory in (tmp_path / "rows", *(tmp_path / "rows").iterdir()):
        directory.chmod(0o500)
    line = [*command, "-c", READER, str(model), str(tmp_path / "rows"), *map(str, prompt)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=300)
    assert [int(word) for word in done.stdout.split()] == [30, *greedy(model, prompt, 8)]
    assert done.stderr.count("Permission denied") == 1 and "what is new is not kept" in done.stderr


def test_a_link_in_the_place_of_a_models_folder_is_not_followed(model: Path, tmp_path: Path) -> None:
    write(model, tmp_path / "rows")
    (own,) = (tmp_path / "rows").iterdir()
    own.rename(tmp_path / "elsewhere")
    own.symlink_to(tmp_path / "elsewhere")
    before = len(blocks(tmp_path / "elsewhere"))
    with pytest.warns(UserWarning, match="symbolic link"):
        assert write(model, tmp_path / "rows", [*TEXT, 7])[1] == len(TEXT) + 1
    assert len(blocks(tmp_path / "elsewhere")) == before


PROCESS = """
import sys, warnings
from pathlib import Path
from offload_runtime import OffloadRuntime
from offload_runtime.prompt_cache import blocks, prompt_cache, stored_rows
blocks.MOST_TOKENS, stored_rows.LEAST_READ, prompt_cache.LEAST_KEPT = 16, 4, 8
warnings.filterwarnings("ignore", "prompt cache: it has no room")  # where the others have just used everything
model, where, size, *prompts = sys.argv[1:]
options = dict(device="cpu", prompt_cache=where, prompt_cache_size=int(size), context_length=128, parallel=2)
with OffloadRuntime.from_pretrained(model, "none", **options) as runtime:
    for _ in range(6):
        for prompt in prompts:
            ids = [int(token) for token in prompt.split()]
            print(*runtime.generate(ids, max_new_tokens=8, temperature=0).token_ids)
"""


def test_processes_share_a_directory(model: Path, tmp_path: Path) -> None:
    """Three of them, at once, over texts that partly begin alike and do not all fit: they evict each other's."""
    prompts = [[*TEXT[: 20 * number], *OTHER[20 * number :]] for number in range(4)]
    write(model, tmp_path / "rows", TEXT)
    size = 2 * sum(file.stat().st_size for file in blocks(tmp_path / "rows"))
    arguments = [str(model), str(tmp_path / "rows"), str(size), *(" ".join(map(str, prompt)) for prompt in prompts)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROCESS, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    expected = [" ".join(map(str, greedy(model, prompt, 8))) for prompt in prompts] * 6
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "") and out.splitlines() == expected
    assert not [*(tmp_path / "rows").rglob(".*")]


@pytest.mark.parametrize("size", ["-1", "lots", "10 apples"])
def test_sizes_that_are_none_are_refused(size: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prompt_cache_size"):
        start(model, tmp_path, prompt_cache_size=size)


def test_a_size_without_a_directory_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="--prompt-cache DIR"):
        start(model, None, prompt_cache_size="1GiB")
