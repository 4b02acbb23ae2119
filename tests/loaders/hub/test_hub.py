"""Models, headers and downloads against a hub on loopback: the files, the requests they took, and every way to fail."""

import errno
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.hub import download as hub_download
from loaders.hub.download import begun_bytes, download
from loaders.hub.find import find_model
from loaders.hub.headers import read_hub_checkpoint
from loaders.hub.model import HubModel
from loaders.hub.names import HubName
from loaders.safetensors_files.headers import read_checkpoint
from tests.fakes.fake_hub import FakeHub, serve

CONFIG = json.dumps({"model_type": "llama"}).encode()
ONE = {"a": np.arange(60_000, dtype=np.float32), "b": np.ones((3, 5), dtype=np.float16)}
TWO = {"c": np.arange(70_000, dtype=np.float32)}
LLAMA = HubName("tiny/llama")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve() as running:
        running.answer(monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(hub_download, "WAITS", (0.0, 0.0))
        yield running


def whole(hub: FakeHub) -> str:
    """Publish a model in one file; its commit."""
    return hub.add("tiny/llama", {"config.json": CONFIG, "README.md": b"hello", "model.safetensors": save(ONE)})


def sharded(hub: FakeHub) -> str:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"a": names[0], "b": names[0], "c": names[1]}}).encode()
    files = {"config.json": CONFIG, "model.safetensors.index.json": index, "consolidated.safetensors": save(TWO)}
    return hub.add("tiny/llama", {**files, names[0]: save(ONE), names[1]: save(TWO)})


class Counted:
    """Adds up what a download reports; `peak` and `least` show whether it ever went wrong."""

    def __init__(self) -> None:
        self.done = self.peak = self.least = 0

    def __call__(self, nbytes: int) -> None:
        self.done += nbytes
        self.peak, self.least = max(self.peak, self.done), min(self.least, self.done)


def fetch(model: HubModel) -> Counted:
    counted = Counted()
    download(model, counted)
    assert not model.missing and counted.least == 0
    return counted


def partial_of(model: HubModel) -> Path:
    (file,) = (file for file in model.files if file.name == "model.safetensors")
    return model.directory.parents[1] / "blobs" / f"{file.sha256}.incomplete"


# What a name stands for, and headers before the download


def test_a_model_in_one_file_is_known_by_few_requests(hub: FakeHub) -> None:
    commit = whole(hub)
    model = find_model(LLAMA)
    assert (model.commit, model.directory.name, model.label) == (commit, commit, "llama")
    assert [file.name for file in model.missing] == ["model.safetensors"]
    remote = read_hub_checkpoint(model)
    assert len(hub.requests) <= 8 and hub.sent_bytes <= 1 << 17
    assert not remote.files[0].exists()
    fetch(model)
    assert read_checkpoint(model.directory) == remote == read_hub_checkpoint(model)
    assert remote.tensors["a"].file.read_bytes()[remote.tensors["a"].offset :].startswith(ONE["a"].tobytes())


def test_shards_are_those_of_the_index(hub: FakeHub) -> None:
    sharded(hub)
    model = find_model(LLAMA)
    assert [file.name for file in model.missing] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    remote = read_hub_checkpoint(model)
    fetch(model)
    assert read_checkpoint(model.directory) == remote and set(remote.tensors) == {"a", "b", "c"}
    assert not hub.asked("GET", "consolidated")


def test_a_header_longer_than_the_first_request(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loaders.hub.headers._HEADER_GUESS", 16)
    for ranges in (True, False):
        hub.ranges = ranges
        whole(hub)
        model = find_model(LLAMA)
        remote = read_hub_checkpoint(model)
        assert remote.tensors.keys() == ONE.keys()


def test_some_shards_from_the_cache_and_some_from_the_hub(hub: FakeHub) -> None:
    sharded(hub)
    model = find_model(LLAMA)
    fetch(HubModel(model.name, model.commit, model.directory, model.missing[:1]))
    hub.requests.clear()
    remote = read_hub_checkpoint(model)
    assert len(hub.asked("GET", "resolve")) == 1
    fetch(model)
    assert read_checkpoint(model.directory) == remote


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (save(ONE), len(save(ONE)) - 4, "answered with"),  # the list and the store disagree
        (save(ONE)[:-4], None, r"on the hub: .*truncated: its tensors need \d+ bytes, the file has \d+"),
        (b"\xff" * 8 + save(ONE), None, "the header needs"),
        (save(ONE) + b"more", None, "too long"),
        (b"", None, "header"),
    ],
)
def test_damaged_weights_are_refused_before_the_download(
    hub: FakeHub, content: bytes, size: int | None, message: str
) -> None:
    hub.add("tiny/llama", {"config.json": CONFIG, "model.safetensors": content})
    if size is not None:
        hub.repositories["tiny/llama"].sizes["model.safetensors"] = size
    with pytest.raises(ModelFilesError, match=message):
        read_hub_checkpoint(find_model(LLAMA))


def test_revisions_pin(hub: FakeHub) -> None:
    first = whole(hub)
    second = hub.add("tiny/llama", {"config.json": CONFIG + b"\n", "model.safetensors": save(TWO)})
    hub.repositories["tiny/llama"].branches |= {"v1": first, "refs/pr/4": first}
    assert find_model(LLAMA).commit == second
    for revision in ("v1", "refs/pr/4", first):
        model = find_model(HubName("tiny/llama", revision))
        assert (model.commit, model.label) == (first, f"tiny/llama@{first[:7]}")
        fetch(model)
        assert find_model(HubName("tiny/llama", revision), offline=True).directory == model.directory
    assert read_checkpoint(model.directory).tensors.keys() == ONE.keys()


def test_the_users_token_stays_with_the_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    whole(hub)
    model = find_model(LLAMA)
    read_hub_checkpoint(model)
    fetch(model)
    paths = {path.split("/")[1] for path in hub.with_token}
    assert paths == {"api", "tiny"} and hub.asked("GET", "/content/")


def test_a_branch_that_moves_is_followed(hub: FakeHub) -> None:
    whole(hub)
    fetch(find_model(LLAMA))
    newer = hub.add("tiny/llama", {"config.json": CONFIG, "model.safetensors": save(TWO)})
    model = find_model(LLAMA)
    assert model.commit == newer and [file.name for file in model.missing] == ["model.safetensors"]


def test_files_outside_the_top_and_their_like_are_never_touched(hub: FakeHub, tmp_path: Path) -> None:
    names = ["../../escape/model.safetensors", "original/model.safetensors", "..\\model.safetensors"]
    hub.add("tiny/llama", {"config.json": CONFIG, "model.safetensors": save(ONE), **dict.fromkeys(names, b"x")})
    model = find_model(LLAMA)
    fetch(model)
    assert {file.name for file in model.files} == {"config.json", "model.safetensors"}
    assert not list(tmp_path.rglob("escape"))


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "", 7, "a//b.safetensors", "/b.safetensors", "a/../../b.safetensors", "a\\b.safetensors"],
)
def test_an_index_that_leads_elsewhere(hub: FakeHub, shard: object) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    hub.add("tiny/llama", {"config.json": CONFIG, "model.safetensors.index.json": index})
    with pytest.raises(ModelFilesError, match="not a file name"):
        find_model(LLAMA)


# Downloads that go wrong


def test_progress_adds_up(hub: FakeHub) -> None:
    sharded(hub)
    model = find_model(LLAMA)
    missing = model.missing_bytes
    assert missing == sum(len(save(part)) for part in (ONE, TWO))
    counted = fetch(model)
    assert counted.done == counted.peak == missing
    assert fetch(model).done == 0


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: FakeHub) -> None:
    whole(hub)
    model = find_model(LLAMA)
    hub.break_after = [100_000, 0, 50_000]
    counted = fetch(model)
    assert counted.done == model.files[-1].nbytes == hub.sent_bytes
    assert [request[2] for request in hub.asked("GET", "/content/")] == [
        f"bytes={start}-{counted.done - 1}" for start in (0, 100_000, 100_000, 150_000)
    ]
    assert read_checkpoint(model.directory).tensors.keys() == ONE.keys()


def test_a_hub_that_fails_for_a_moment(hub: FakeHub) -> None:
    whole(hub)
    hub.failures = [503, 429]
    fetch(find_model(LLAMA))


def test_a_hub_that_goes_on_failing_is_left_and_what_is_there_is_kept(hub: FakeHub) -> None:
    whole(hub)
    model = find_model(LLAMA)
    hub.break_after = [100_000]
    hub.failures = []
    done = Counted()
    download_until_failure(hub, model, done, [500] * 9, r"fails \(500\)\. Run the same command again later")
    assert partial_of(model).stat().st_size == begun_bytes(model) == done.done == 100_000
    hub.failures, hub.sent_bytes = [], 0
    assert fetch(model).done == model.files[-1].nbytes
    assert hub.sent_bytes == model.files[-1].nbytes - 100_000
    assert not partial_of(model).exists()


def download_until_failure(hub: FakeHub, model: HubModel, count: Counted, failures: list[int], message: str) -> None:
    """Download with a hub that fails once its first connection has broken."""

    def fail_then(nbytes: int) -> None:
        count(nbytes)
        hub.failures = hub.failures or list(failures)

    with pytest.raises(ModelFilesError, match=message):
        download(model, fail_then)


def test_a_hub_that_knows_no_ranges_sends_all_again(hub: FakeHub) -> None:
    whole(hub)
    model = find_model(LLAMA)
    hub.ranges, hub.break_after = False, [100_000]
    counted = fetch(model)
    assert counted.done == counted.peak == model.files[-1].nbytes
    assert hub.sent_bytes == counted.done + 100_000
    assert read_checkpoint(model.directory).tensors.keys() == ONE.keys()


def test_damaged_bytes_are_never_taken(hub: FakeHub) -> None:
    whole(hub)
    model = find_model(LLAMA)
    hub.damage = True
    with pytest.raises(ModelFilesError, match=r"model\.safetensors was damaged on its way"):
        download(model, Counted())
    assert [file.name for file in model.missing] == ["model.safetensors"] and begun_bytes(model) == 0
    hub.damage = False
    fetch(model)


def test_a_begun_file_that_is_of_something_else_begins_anew(hub: FakeHub) -> None:
    whole(hub)
    model = find_model(LLAMA)
    for rest in (b"x" * 1000, b"x" * (model.files[-1].nbytes + 1)):
        partial_of(model).parent.mkdir(exist_ok=True)
        partial_of(model).write_bytes(rest)
        if len(rest) == 1000:
            with pytest.raises(ModelFilesError, match="damaged on its way"):
                download(model, Counted())
    fetch(model)
    content = (model.directory / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == model.files[-1].sha256


def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(hub)
    model = find_model(LLAMA)

    def full(part: object, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("loaders.hub.download._PartialFile.append", full)
    with pytest.raises(ModelFilesError, match=r"the disk is full .*kept.*\n  hf cache ls .*\n  HF_HOME=DIR"):
        download(model, Counted())


def test_an_interrupted_download_ends_at_once_and_goes_on_later(hub: FakeHub) -> None:
    whole(hub)
    model = find_model(LLAMA)
    nbytes = model.files[-1].nbytes
    hub.hold.clear()  # the first half comes, the rest does not

    def interrupt() -> None:
        while begun_bytes(model) < nbytes // 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        download(model, Counted())
    watcher.join()
    assert begun_bytes(model) == nbytes // 2
    hub.hold.set()
    hub.sent_bytes = 0
    assert fetch(model).done == nbytes
    assert hub.sent_bytes <= 2 * (nbytes - nbytes // 2)  # the connection that was left hanging may end too


# What is said


def error_of(name: HubName, offline: bool = False) -> str:
    with pytest.raises((ModelFilesError, UnsupportedModelError)) as caught:
        find_model(name, offline)
    return str(caught.value)


def test_a_missing_model_or_revision(hub: FakeHub) -> None:
    whole(hub)
    message = error_of(HubName("tiny/lama"))
    assert "no such directory" in message and f"no such model on {hub.url}" in message and "hf auth login" in message
    message = error_of(HubName("tiny/llama", "v9"))
    assert "no branch, tag or commit 'v9'" in message and f"{hub.url}/tiny/llama/tree/main" in message


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model(hub: FakeHub, status: int) -> None:
    whole(hub)
    hub.repositories["tiny/llama"].gated = status
    message = error_of(LLAMA)
    assert "licence" in message and f"{hub.url}/tiny/llama " in message and "hf auth login" in message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"mmproj-F16.gguf": b"GGUF"},
            "tiny/llama: it has no model.safetensors, only mmproj-F16.gguf. Such GGUF files",
        ),
        ({"config.json": CONFIG, "pytorch_model.bin": b"pickle"}, "Such files can run code"),
        ({"model.safetensors": save(ONE)}, "no config.json"),
        ({}, "no weights"),
    ],
)
def test_a_repository_that_cannot_be_used(hub: FakeHub, files: dict[str, bytes], message: str) -> None:
    hub.add("tiny/llama", files)
    assert message in error_of(LLAMA)
    assert not hub.asked("GET", "resolve.*(gguf|bin|safetensors)")


def test_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(hub)
    model = find_model(LLAMA)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    message = error_of(LLAMA)
    assert "cannot be reached" in message and "no such directory" in message and "--offline" not in message
    fetch(model)
    assert "\n  --offline" in error_of(LLAMA)
    assert find_model(LLAMA, offline=True) == HubModel(LLAMA, model.commit, model.directory)


def test_the_network_goes_away_in_the_middle(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(hub)
    model = find_model(LLAMA)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(ModelFilesError, match=r"^tiny/llama: http.* cannot be reached .*Run the same command again"):
        download(model, Counted())


@pytest.mark.parametrize(
    "page",
    [
        *(b"<html>Please accept the terms of this wireless network.</html>", b"", b"[]", b"null", b"{}", b"7"),
        *(b'{"id": "x", "siblings": 3}', b'{"id": "x", "siblings": [{}]}', b'{"id": "x", "siblings": [[]]}'),
        b'{"id": "x", "siblings": [{"rfilename": "a", "size": 1, "lfs": {"size": 1}}]}',
    ],
)
def test_what_is_no_hub(hub: FakeHub, page: bytes) -> None:
    hub.page = page
    message = error_of(LLAMA)
    assert ("no answer of a hub" in message and "proxy" in message) or "names no commit" in message


@pytest.mark.parametrize(
    "entry",
    [
        {"size": -1},
        {"size": None},
        {"size": "9"},
        {"lfs": {"size": 9, "sha256": "../../x", "pointerSize": 1}},
        {"lfs": {"size": 9, "sha256": 7, "pointerSize": 1}},
    ],
)
def test_a_list_that_cannot_be_used(hub: FakeHub, entry: dict[str, object]) -> None:
    listed = {"rfilename": "model.safetensors", "size": 9, "blobId": "x", **entry}
    config = {"rfilename": "config.json", "size": 2, "blobId": "x"}
    hub.page = json.dumps({"id": "tiny/llama", "sha": "a" * 40, "siblings": [config, listed]}).encode()
    assert "the hub's list gives 'model.safetensors'" in error_of(LLAMA)


def test_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded(hub)
    assert "does not hold it" in error_of(LLAMA, offline=True) and not hub.requests
    model = find_model(LLAMA)
    message = error_of(LLAMA, offline=True)
    assert "only a part of it" in message and "once without --offline" in message
    fetch(model)
    hub.requests.clear()
    assert find_model(LLAMA, offline=True).directory == model.directory
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_model(LLAMA).directory == model.directory
    assert "unset HF_HUB_OFFLINE" in error_of(HubName("tiny/other")) and not hub.requests
