"""GGUF files of repositories by name: the plan from the remote header, the download, and every way for both to fail."""

import io
import json
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub.constants
import pytest

from loaders.errors import ModelFilesError, UnsupportedModelError
from loaders.gguf import header as gguf_header
from loaders.gguf.config import gguf_config
from loaders.gguf.header import read_gguf
from loaders.gguf.model import read_gguf_checkpoint, read_gguf_config
from loaders.gguf.tensors import model_tensors
from loaders.hub import download as hub_download
from loaders.hub import headers as hub_headers
from loaders.hub.download import begun_bytes, download
from loaders.hub.find import find_model
from loaders.hub.headers import on_the_hub, read_hub_gguf
from loaders.hub.model import HubModel
from loaders.hub.names import HubName
from offload_runtime import OffloadRuntime
from offload_runtime.chat import main
from offload_runtime.errors import UsageError
from offload_runtime.loading import fetching
from offload_runtime.loading.fetching import Download
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET, Options, located
from offload_runtime.planning.planning import prepare
from offload_runtime.speculation import acceptance_store
from tests.fakes.fake_hub import FakeHub, Sparse, serve
from tests.loaders.gguf.test_gguf_header import ARCHITECTURE, entry, header, tensor
from tests.samples.gguf_samples import CASES, gguf_model, write_gguf
from tests.samples.tiny_models import PROMPT, make_checkpoint

ROOT = Path(__file__).resolve().parents[3]
TINY = HubName("tiny/gguf")
CPU = {"device": "cpu", "dtype": "float32", "context_length": 96}
GREEDY = ["--max-new-tokens", "6", "--temperature", "0", "--device", "cpu", "-p", "hello", "--json"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve() as running:
        running.answer(monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(hub_download, "WAITS", (0.0, 0.0))
        yield running


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """First requests that are far smaller than the headers, as they are of large vocabularies."""
    monkeypatch.setattr(hub_headers, "_GGUF_GUESS", 64)
    monkeypatch.setattr(hub_headers, "_HEADER_GUESS", 48)


def case(name: str) -> bytes:
    return gguf_model(name).read_bytes()


def wanted(tag: str, repo: str = "tiny/gguf") -> HubName:
    return HubName(repo, None, tag)


def fetch(model: HubModel) -> HubModel:
    download(model, lambda nbytes: None)
    assert not model.missing
    return model


def split(directory: Path, name: str = "Foo-Q4_0.gguf", source: Path | None = None) -> dict[str, bytes]:
    """The case "Q4_0" in several files by their names."""
    architecture, changes, kind_of = CASES["Q4_0"]
    source = source or make_checkpoint(architecture, 2, False, changes)
    write_gguf(source, directory / name, kind_of, tensors_per_file=9)
    return {file.name: file.read_bytes() for file in sorted(directory.glob("*.gguf"))}


# What is planned from headers


@pytest.mark.parametrize("name", CASES)
def test_a_header_on_the_hub_is_read_as_the_file_is(hub: FakeHub, small_steps: None, name: str) -> None:
    """Frequencies that lie behind the header, and arrays in it, included; and only as much as that takes."""
    hub.add("tiny/gguf", {"Foo.gguf": case(name)})
    model = find_model(TINY)
    remote = read_hub_gguf(model)
    config, tensors = gguf_config(remote), model_tensors(remote)
    data = min(tensor.offset for tensor in remote.tensors.values())
    factors = sum(tensor.nbytes for name, tensor in remote.tensors.items() if name.startswith("rope_"))
    assert hub.sent_bytes <= 2 * data + factors < len(case(name))
    assert all(asked for _, path, asked in hub.requests if "resolve" in path or "content" in path)
    assert remote.file == model.path and not model.path.exists()
    fetch(model)
    assert config == read_gguf_config(model.path) == read_gguf_config(gguf_model(name))
    assert tensors == read_gguf_checkpoint(model.path).tensors


def test_a_connection_that_ends_behind_the_header_is_explained(
    hub: FakeHub, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the config takes of the tensors is asked for when the header has been read."""
    hub.add("tiny/gguf", {"Foo.gguf": case("llama with other rotations")})
    model = find_model(TINY)
    remote = read_hub_gguf(model)
    hub.failures += [503]
    with pytest.raises(ModelFilesError, match=r"^tiny/gguf: http.* fails \(503\)"), on_the_hub(model):
        gguf_config(remote)


def test_a_plan_leaves_nothing_that_could_be_taken_for_the_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0")})
    hub.header_bytes = len(case("Q8_0"))
    options = Options(Path("tiny/gguf:q8_0"), device="cpu")
    preparation = prepare(options)
    assert (preparation.plan.model, preparation.target.missing_bytes) == ("Foo-Q8_0", len(case("Q8_0")))
    assert Download.of(preparation.options).nbytes == len(case("Q8_0"))
    assert not list(tmp_path.rglob("*.gguf")) and not list(tmp_path.rglob("blobs/*"))
    with pytest.raises(ModelFilesError, match="does not hold it"):
        find_model(wanted("q8_0"), offline=True)
    fetch(preparation.options.sources[0])
    whole = prepare(preparation.options)
    assert whole.target.missing_bytes == 0 and whole.plan.tiers == preparation.plan.tiers
    with (preparation.options.model).resolve().open("r+b") as stream:  # what counts now is the file that is here
        stream.write(b"HUGG")
    with pytest.raises(ModelFilesError, match="no GGUF file"):
        prepare(preparation.options)


def test_a_begun_download_is_not_taken_for_the_model(hub: FakeHub) -> None:
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0")})
    model = find_model(TINY)
    hub.break_after, hub.failures = [len(case("Q8_0")) - 1], []

    def fail(nbytes: int) -> None:
        hub.failures = [500] * 9

    with pytest.raises(ModelFilesError, match=r"fails \(500\)"):
        download(model, fail)
    hub.failures = []
    assert begun_bytes(model) == len(case("Q8_0")) - 1 and model.missing
    with pytest.raises(ModelFilesError, match="does not hold it"):
        find_model(TINY, offline=True)
    hub.requests.clear()
    assert read_hub_gguf(find_model(TINY)).tensors and hub.asked("GET", "content")
    hub.sent_bytes = 0
    fetch(model)
    assert hub.sent_bytes == 1 and read_gguf(model.path).tensors


def test_a_new_commit_has_a_new_header(hub: FakeHub) -> None:
    hub.add("tiny/gguf", {"Foo.gguf": case("Q8_0")})
    options = Options(Path("tiny/gguf"), device="cpu")
    first = prepare(options)
    hub.add("tiny/gguf", {"Foo.gguf": case("qwen2")})
    second = prepare(options)
    assert (first.target.spec.model_type, second.target.spec.model_type) == ("llama", "qwen2")
    assert first.options.model != second.options.model
    fetch(second.options.sources[0])
    assert prepare(second.options).target.spec.model_type == "qwen2"


def test_an_equal_file_under_a_new_commit_is_not_downloaded_again(hub: FakeHub) -> None:
    hub.add("tiny/gguf", {"Foo.gguf": case("Q8_0"), "README.md": b"one"})
    fetch(find_model(TINY))
    hub.add("tiny/gguf", {"Foo.gguf": case("Q8_0"), "README.md": b"two"})
    model, hub.sent_bytes = find_model(TINY), 0
    fetch(model)
    assert hub.sent_bytes == 0 and find_model(TINY, offline=True).path == model.path


# Runs and downloads


def test_a_run_by_name_is_that_of_the_local_file(hub: FakeHub) -> None:
    files = {"Foo-Q8_0.gguf": case("Q8_0"), "Foo-F16.gguf": case("F16"), "config.json": b"{}", "README.md": b"x"}
    hub.add("tiny/gguf", files)
    seen: list[tuple[str, int, int]] = []
    with OffloadRuntime.from_pretrained("tiny/gguf:Q8_0", "none", progress=lambda *now: seen.append(now), **CPU) as run:
        ids = run.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids
        assert run.plan.model == "Foo-Q8_0"
    with OffloadRuntime.from_pretrained(gguf_model("Q8_0"), "none", **CPU) as run:
        assert run.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids == ids
    nbytes = len(case("Q8_0"))
    assert [now for now in seen if now[0] == "downloading Foo-Q8_0"][-1][1:] == (nbytes, nbytes)
    assert {path.split("/")[-1] for _, path, _ in hub.requests if "resolve" in path} == {"Foo-Q8_0.gguf"}


def test_the_runtime_takes_a_draft_by_tag_and_both_offline(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {}
    for name, source in (("target", DEMO_TARGET), ("draft", DEMO_DRAFT)):
        (tmp_path / name).mkdir()
        pair[name] = write_gguf(source, tmp_path / name / f"{name}-Q8_0.gguf", lambda name: "Q8_0")
        hub.add(f"tiny/{name}", {file: pair[name].read_bytes() for file in (pair[name].name, f"{name}-F16.gguf")})
    named = ["-m", "tiny/target:q8_0", "-d", "tiny/draft:q8_0", *GREEDY]
    assert main(named) == 0
    first = json.loads(capsys.readouterr().out)
    hub.requests.clear()
    assert main([*named, "--offline"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert not hub.requests
    assert main(["-m", str(pair["target"]), "-d", str(pair["draft"]), *GREEDY]) == 0
    third = json.loads(capsys.readouterr().out)
    assert first["token_ids"] == second["token_ids"] == third["token_ids"] and len(first["token_ids"]) == 6
    plans = [(reply["plan"]["model"], reply["plan"]["draft"]) for reply in (first, second, third)]
    assert plans == [("target-Q8_0", "draft-Q8_0")] * 3
    source, drafted = located(Options(Path("tiny/target:q8_0"), Path("tiny/draft:q8_0"), offline=True)).sources
    keys = [
        acceptance_store.cache_file(*paths) for paths in ((source.path, drafted.path), (pair["target"], pair["draft"]))
    ]
    assert keys[0] == keys[1], "what was measured of the files counts for the names"


def test_a_draft_that_is_refused_is_named_by_its_option(hub: FakeHub) -> None:
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0")})
    options = Options(Path("tiny/gguf"), Path("tiny/gguf:F16"), device="cpu")
    with pytest.raises(ModelFilesError, match=r"F16 is none of them\. Name one of them:\n  --draft tiny/gguf:Q8_0 "):
        located(options)


@pytest.mark.parametrize("directory", ["", "Q4_0/"])
def test_a_model_in_several_files(hub: FakeHub, tmp_path: Path, small_steps: None, directory: str) -> None:
    files = split(tmp_path)
    assert len(files) > 2
    other = {"Foo-Q8_0.gguf": case("Q8_0"), "generation_config.json": b'{"do_sample": true, "temperature": 0.25}'}
    hub.add("tiny/gguf", {**{f"{directory}{name}": content for name, content in files.items()}, **other})
    model = find_model(wanted("q4_0"))
    assert [file.name for file in model.files] == ["generation_config.json", *(f"{directory}{name}" for name in files)]
    assert (model.label, model.path.name) == ("Foo-Q4_0", min(files))
    remote = read_hub_gguf(model)
    assert remote.files == tuple(model.directory / directory / name for name in files)
    fetch(HubModel(model.name, model.commit, model.directory, model.files[-1:], model.gguf))
    assert read_hub_gguf(model).tensors == remote.tensors, "some files from the cache, some from the hub"
    hub.break_after = [5_000, 0, 1_000]
    fetch(model)
    assert not hub.break_after
    with OffloadRuntime.from_pretrained("tiny/gguf:Q4_0", "none", **CPU) as run:
        ids = run.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids
        assert run.generation_defaults.temperature == 0.25
    with OffloadRuntime.from_pretrained(gguf_model("Q4_0"), "none", **CPU) as run:
        assert run.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids == ids
    assert read_gguf(model.path).tensors == remote.tensors
    (model.directory / directory / max(files)).unlink()
    with pytest.raises(ModelFilesError, match="only a part of it"):
        find_model(wanted("q4_0"), offline=True)


def test_names_that_lead_elsewhere_are_never_touched(hub: FakeHub, tmp_path: Path) -> None:
    names = [
        "../../x-Q8_0.gguf",
        "a/../x-Q8_0.gguf",
        "/x-Q8_0.gguf",
        "a/b/x-Q8_0.gguf",
        "..\\x-Q8_0.gguf",
        "./x-Q8_0.gguf",
    ]
    names += ["a\\b/x-Q8_0.gguf", "a//x-Q8_0.gguf", "..", "a/..gguf/..", "\x1b[2J-Q8_0.gguf", "a/model.safetensors"]
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0"), **dict.fromkeys(names, b"x")})
    for name in (TINY, wanted("Q8_0")):
        assert [file.name for file in fetch(find_model(name)).files] == ["Foo-Q8_0.gguf"]
    assert {file.name for file in tmp_path.rglob("*.gguf")} == {"Foo-Q8_0.gguf"}


def test_safetensors_win_without_a_tag(hub: FakeHub) -> None:
    safetensors = {file.name: file.read_bytes() for file in make_checkpoint("llama", 2, False, {}).iterdir()}
    hub.add("tiny/gguf", {**safetensors, "Foo-Q8_0.gguf": case("Q8_0")})
    plain, tagged = find_model(TINY), find_model(wanted("q8_0"))
    assert plain.gguf is None and "model.safetensors" in {file.name for file in plain.missing}
    assert [file.name for file in tagged.files if "generation" not in file.name] == ["Foo-Q8_0.gguf"]
    fetch(tagged)
    assert find_model(wanted("q8_0"), offline=True).path == tagged.path
    fetch(plain)
    assert find_model(TINY, offline=True).path == plain.directory


def test_a_revision_and_a_tag(hub: FakeHub) -> None:
    first = hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0")})
    hub.repositories["tiny/gguf"].branches |= {"v1": first, "refs/pr/4": first, "v2": first}
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0"), "Foo-F16.gguf": case("F16")})
    for revision in ("v1", "refs/pr/4", first):
        name = HubName("tiny/gguf", revision, "Q8_0")
        model = fetch(find_model(name))
        assert (model.commit, model.label) == (first, f"Foo-Q8_0@{first[:7]}")
        assert find_model(name, offline=True).path == model.path
    assert not find_model(HubName("tiny/gguf", "v2")).missing
    assert find_model(HubName("tiny/gguf", "v2"), offline=True).path == model.path, "known by this name from now on"
    with pytest.raises(ModelFilesError, match="--model tiny/gguf@v1:Q8_0 "):
        find_model(HubName("tiny/gguf", "v1", "F16"))


# What is refused, and before which byte


def files_of(content: bytes | Sparse) -> Mapping[str, bytes | Sparse]:
    return {"Foo-NVFP4.gguf": content, "Foo-Q8_0.gguf": case("Q8_0")}


def test_kinds_that_cannot_be_decoded_are_refused_before_the_download(hub: FakeHub, tmp_path: Path) -> None:
    head = header(tensors=(tensor("blk.0.ffn_up.weight", (1 << 15, 1 << 15), kind=40),))
    hub.add("tiny/gguf", files_of(Sparse(head, 40 * 10**9)))
    with pytest.raises(
        UnsupportedModelError,
        match=r"^tiny/gguf:nvfp4 on the hub: .*blk\.0\.ffn_up\.weight is stored as NVFP4, which",
    ):
        prepare(Options(Path("tiny/gguf:nvfp4"), device="cpu"))
    assert hub.sent_bytes <= 1 << 20 and not list(tmp_path.rglob("*.gguf"))
    with pytest.raises(ModelFilesError) as caught:
        find_model(TINY)
    assert "tiny/gguf:Q8_0 " in str(caught.value) and ":NVFP4" not in str(caught.value)


WORDS = entry("words", 9, struct.pack("<IQ", 8, 1 << 40))


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (case("Q8_0"), len(case("Q8_0")) - 4, "answered with"),  # the list and the store disagree
        (case("Q8_0")[:-1000], None, r"truncated: its tensors need \d+ bytes, the file has \d+"),
        (case("Q8_0")[:300], None, "the header can have"),
        (b"GGML" + bytes(600), None, "no GGUF file"),
        (b"", None, "it is empty"),
        (Sparse(header((ARCHITECTURE, WORDS)), 10**11), None, "should hold 1099511627776 strings, but the header ends"),
        (header((ARCHITECTURE,), counts=(0, 9)), None, "it has '' twice|a key at byte"),
        (header((entry("general.architecture", 8, struct.pack("<Q", 3) + b"mpt"),)), None, "'mpt' cannot be run"),
    ],
)
def test_a_lying_hub(
    hub: FakeHub, content: bytes | Sparse, size: int | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 3 << 20)
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": content})
    if size is not None:
        hub.repositories["tiny/gguf"].sizes["Foo-Q8_0.gguf"] = size
    with pytest.raises((ModelFilesError, UnsupportedModelError), match=message) as caught:
        prepare(Options(Path("tiny/gguf"), device="cpu"))
    assert str(caught.value).startswith("tiny/gguf")
    assert hub.sent_bytes <= 3 << 20, "no more than a header may have"


def test_headers_of_many_files_are_bounded_together(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_headers, "_MOST_BYTES", 1 << 20)
    files = {f"Foo-Q8_0-{number:05}-of-00012.gguf": Sparse(header((ARCHITECTURE,)), 1 << 30) for number in range(1, 13)}
    hub.add("tiny/gguf", files)
    with pytest.raises(ModelFilesError, match="headers of its model need more than 1,048,576 bytes"):
        prepare(Options(Path("tiny/gguf"), device="cpu"))
    assert hub.sent_bytes <= 3 << 20, "that, the first look, and those that were under way beside it"


def test_a_gated_repository(hub: FakeHub) -> None:
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0")})
    hub.repositories["tiny/gguf"].gated = 403
    with pytest.raises(ModelFilesError, match=r"^tiny/gguf:Q8_0: its licence has to be accepted"):
        prepare(Options(Path("tiny/gguf:Q8_0"), device="cpu"))


def test_much_is_asked_for_with_the_plan_before(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0")})
    monkeypatch.setattr(fetching, "ASK_ABOVE", 1000)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    options = Options(Path("tiny/gguf:Q8_0"), device="cpu")
    with pytest.raises(UsageError, match=r"this would download [\d.]+ kB of tiny/gguf:Q8_0 .*\n  --yes "):
        fetching.fetched(options, yes=False, quiet=False)
    assert "Plan for Foo-Q8_0 (" in capsys.readouterr().err
    assert fetching.fetched(options, yes=True, quiet=True).model.is_file()


def test_packing_is_refused_before_the_download(hub: FakeHub) -> None:
    hub.add("tiny/gguf", {"Foo-F16.gguf": case("F16")})
    with pytest.raises(UnsupportedModelError, match="a GGUF file is run as it is"):
        prepare(Options(Path("tiny/gguf:F16"), device="cpu", quantize="int4"))
    assert not hub.asked("GET", "resolve")


# Without the network


def test_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("tiny/gguf", {"Foo-Q8_0.gguf": case("Q8_0"), "Foo-F16.gguf": case("F16"), "Foo-Q4_K_M.gguf": case("Q4_0")})
    model = fetch(find_model(wanted("Q8_0")))
    hub.requests.clear()
    assert find_model(wanted("q8_0"), offline=True) == HubModel(
        wanted("q8_0"), model.commit, model.directory, (), "Foo-Q8_0.gguf"
    )
    assert find_model(TINY, offline=True).path == model.path, "the only one that is here"
    with pytest.raises(ModelFilesError, match=r"the cache of downloads holds 1 model .*\n.*:Q8_0 .*\n  --offline forb"):
        find_model(wanted("F16"), offline=True)
    fetch(find_model(wanted("F16")))
    with pytest.raises(ModelFilesError, match="the cache of downloads holds 2 models"):
        find_model(TINY, offline=True)
    fetch(find_model(TINY))
    assert find_model(TINY, offline=True).gguf == "Foo-Q4_K_M.gguf"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for name, advised in ((wanted("F16"), True), (wanted("Q6_K"), False)):
        with pytest.raises(ModelFilesError, match="cannot be reached") as caught:
            find_model(name)
        assert ("\n  --offline" in str(caught.value)) is advised


def test_what_another_program_downloaded_is_found(hub: FakeHub) -> None:
    hub.add("tiny/gguf", {"sub/Foo-Q8_0.gguf": case("Q8_0")})
    path = huggingface_hub.hf_hub_download("tiny/gguf", "sub/Foo-Q8_0.gguf")
    model = find_model(wanted("Q8_0"))
    assert not model.missing and str(model.path) == path
    assert find_model(TINY, offline=True).path == model.path


def test_an_interrupted_download_is_taken_up_by_the_next_run(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made").mkdir()
    file = write_gguf(DEMO_TARGET, tmp_path / "made" / "Demo-Q8_0.gguf", lambda name: "Q8_0")
    nbytes = file.stat().st_size
    hub.add("tiny/gguf", {file.name: file.read_bytes()})
    hub.header_bytes = 1 << 20
    hub.hold.clear()  # half of the file comes, then nothing
    line = [sys.executable, "-m", "offload_runtime.chat", "-m", "tiny/gguf:q8_0", *GREEDY]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=ROOT, env=hub.environment(tmp_path), **streams) as process:
        while not any(part.stat().st_size >= nbytes // 2 for part in tmp_path.rglob("*.incomplete")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, output, errors.strip()) == (130, b"", b"")
    assert main([*line[3:], "--offline"]) == 3
    hub.hold.set()
    hub.requests.clear()
    capsys.readouterr()
    assert main(line[3:]) == 0  # this process has the same cache
    named = json.loads(capsys.readouterr().out)
    assert hub.asked("GET", "/content/")[-1][2] == f"bytes={nbytes // 2}-{nbytes - 1}"
    assert main(["-m", str(file), *GREEDY]) == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] == named["token_ids"]
