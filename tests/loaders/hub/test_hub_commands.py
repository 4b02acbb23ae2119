"""Models by name through the commands and the facade: the plan, the question, the download, and the second run."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest

from loaders.checkpoint.random_weights import SHAPES, _entries
from loaders.safetensors_files.headers import STORED_ITEMSIZE
from loaders.sizes import GIB, format_size
from offload_runtime import OffloadRuntime
from offload_runtime.chat import main
from offload_runtime.errors import DoesNotFitError, UsageError
from offload_runtime.loading import fetching
from offload_runtime.loading.fetching import Download
from offload_runtime.options.run_options import Options, located
from offload_runtime.planning import planning
from offload_runtime.planning.draft_table import FAMILIES
from offload_runtime.planning.planning import prepare
from tests.fakes.fake_hub import FakeHub, Sparse, serve
from tests.plan_samples import gpu
from tests.samples.gguf_samples import write_gguf
from tests.samples.tiny_models import checkpoint

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_latency  # noqa: E402

DEMO = ROOT / "offload_runtime" / "demo_pair"
BRIEF = ["--max-new-tokens", "4", "--temperature", "0", "--device", "cpu"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The demonstration's models under names."""
    with serve() as running:
        running.answer(monkeypatch, tmp_path / "hub")
        running.add("tiny/llama", DEMO / "target")
        running.add("tiny/draft", DEMO / "draft")
        yield running


def command(hub: FakeHub, home: Path, *arguments: str) -> subprocess.Popen:
    """The chat as a program of its own that knows the hub by its environment alone."""
    line = [sys.executable, "-m", "offload_runtime.chat", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line, cwd=ROOT, env=hub.environment(home), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )


def large_model(name: str) -> dict[str, bytes | Sparse]:
    """config.json, index and headers of a known shape in bfloat16, in shards of 5 GB of nothing."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**SHAPES[name])
    shards: list[dict[str, dict]] = [{}]
    ends = [0]
    for entry in _entries(config, None):
        nbytes = prod(entry.shape) * STORED_ITEMSIZE["BF16"]
        if ends[-1] + nbytes > 5e9:
            shards.append({})
            ends.append(0)
        place = {"dtype": "BF16", "shape": entry.shape, "data_offsets": [ends[-1], ends[-1] + nbytes]}
        shards[-1][entry.name] = place
        ends[-1] += nbytes
    files: dict[str, bytes | Sparse] = {}
    weight_map = {}
    for number, (header, end) in enumerate(zip(shards, ends), start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        text = json.dumps(header).encode()
        files[file] = Sparse(len(text).to_bytes(8, "little") + text, 8 + len(text) + end)
        weight_map |= dict.fromkeys(header, file)
    config_text = json.dumps({**config.to_diff_dict(), "model_type": config.model_type}).encode()
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return {"config.json": config_text, "model.safetensors.index.json": index, **files}


# The plan before the download


def test_a_plan_downloads_no_weights_and_imports_no_torch(hub: FakeHub, tmp_path: Path) -> None:
    code = (
        "import sys; from offload_runtime.chat import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    line = [sys.executable, "-c", code, "-m", "tiny/llama", "-d", "tiny/draft", "--plan", "--json"]
    done = subprocess.run(line, cwd=ROOT, env=hub.environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    remote = json.loads(done.stdout)
    local = prepare(Options(DEMO / "target", DEMO / "draft", device="cpu")).plan.as_dict()
    assert (remote["model"], remote["draft"]) == ("llama", "draft")
    assert remote["weight_bytes"] == local["weight_bytes"] and len(remote["tiers"]) == len(local["tiers"])
    assert "Not downloaded yet: " in done.stderr and f"{tmp_path / 'hub'} (" in done.stderr
    assert hub.sent_bytes <= 2 << 17 and not list(tmp_path.rglob("*.safetensors")), "headers, and tokens to compare"


def test_a_draft_with_other_tokens_is_refused_before_the_download(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {file.name: file.read_bytes() for file in (DEMO / "draft").iterdir()}
    record = json.loads(files["tokenizer.json"])
    record["model"]["vocab"]["!"], record["model"]["vocab"]['"'] = 1, 0
    hub.add("tiny/other", {**files, "tokenizer.json": json.dumps(record).encode()})
    hub.add(
        "tiny/gguf", {"demo-Q8_0.gguf": write_gguf(DEMO / "target", tmp_path / "x.gguf", lambda _: "Q8_0").read_bytes()}
    )
    for target in ("tiny/llama", "tiny/gguf"):
        assert main(["-m", target, "-d", "tiny/other", "-p", "x", *BRIEF]) == 5
        assert "The draft's tokens are not the target's" in capsys.readouterr().err
    assert not [file for suffix in ("safetensors", "gguf") for file in (tmp_path / "hub").rglob(f"*.{suffix}")]


def test_a_known_draft_is_named_before_the_target_is_downloaded(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The target's family is known by its tokens, which are small."""
    tokens = {"model": {"vocab": dict(FAMILIES["Llama 3"].landmarks)}}
    hub.add("big/llama-70b", {**large_model("llama-3-70b"), "tokenizer.json": json.dumps(tokens).encode()})
    monkeypatch.setattr(planning, "read_machine", lambda device: gpu(24 * GIB, 192 * GIB))
    assert main(["-m", "big/llama-70b", "--plan"]) == 0
    assert "--draft meta-llama/Llama-3.2-1B-Instruct would speed this up" in capsys.readouterr().out


def test_seventy_billion_parameters_are_planned_by_their_headers(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("big/llama-70b", large_model("llama-3-70b"))
    monkeypatch.setattr(planning, "read_machine", lambda device: gpu(24 * GIB, 192 * GIB))
    assert main(["-m", "big/llama-70b", "--plan"]) == 0
    output = capsys.readouterr()
    assert "Plan for llama-70b (bfloat16, 141 GB of weights)" in output.out
    assert "Not downloaded yet: 141 GB of big/llama-70b" in output.err
    assert len(hub.asked("GET", "/content/")) == 30 and hub.sent_bytes <= 30 << 17


def test_a_pinned_model_is_called_by_its_commit(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    repository = hub.repositories["tiny/llama"]
    repository.branches["v1"] = repository.branches["main"]
    assert main(["-m", "tiny/llama@v1", "-d", "tiny/draft", "--plan"]) == 0
    output = capsys.readouterr()
    assert (
        output.out.startswith(f"Plan for tiny/llama@{repository.branches['v1'][:7]} (") and "draft draft" in output.out
    )
    assert "Not measured for this pair yet" in output.out
    assert "Not downloaded yet: 10.5 MB of tiny/llama@v1 and tiny/draft into " in output.err


# Download, question and the second run


def test_a_reply_of_a_name_and_the_same_offline(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["-m", "tiny/llama", "-d", "tiny/draft", "-p", "hello", "--json", *BRIEF]
    assert main([*named, "--yes"]) == 0
    first = capsys.readouterr()
    hub.requests.clear()
    assert main([*named, "--offline"]) == 0
    second = capsys.readouterr()
    local = ["-m", str(DEMO / "target"), "-d", str(DEMO / "draft"), "-p", "hello", "--json", *BRIEF]
    assert main(local) == 0
    third = capsys.readouterr()
    texts = [json.loads(output.out)["token_ids"] for output in (first, second, third)]
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) == 4
    assert not hub.requests and first.err == second.err == ""


def test_the_facade_takes_names(hub: FakeHub) -> None:
    seen: list[tuple[str, int, int]] = []
    hub.add("tiny/random", checkpoint("llama", shards=True))
    with OffloadRuntime.from_pretrained("tiny/random", device="cpu", progress=lambda *now: seen.append(now)) as runtime:
        ids = runtime.generate([5, 17, 3], max_new_tokens=4, temperature=0).token_ids
    with OffloadRuntime.from_pretrained(checkpoint("llama", shards=True), device="cpu") as runtime:
        assert runtime.generate([5, 17, 3], max_new_tokens=4, temperature=0).token_ids == ids
    downloads = [now for now in seen if now[0] == "downloading random"]
    assert downloads[-1][1] == downloads[-1][2] and any(now[0] == "loading random" for now in seen)
    hub.requests.clear()
    with OffloadRuntime.from_pretrained("tiny/random", device="cpu", offline=True) as runtime:
        assert runtime.plan.model == "random" and not hub.requests


@pytest.fixture
def wanted(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Options of a model that is large enough to be asked for."""
    monkeypatch.setattr(fetching, "ASK_ABOVE", 1_000_000)
    return Options(Path("tiny/llama"), device="cpu")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "downloads"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False)])
def test_much_is_asked_for(
    hub: FakeHub, wanted: Options, answer: str, downloads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    if downloads:
        options = fetching.fetched(wanted, yes=False, quiet=False)
        assert (options.model / "model.safetensors").is_file()
    else:
        with pytest.raises(UsageError, match="nothing was downloaded"):
            fetching.fetched(wanted, yes=False, quiet=False)
        assert not hub.asked("GET", r"resolve/.*tokenizer\.json")
    text = screen.getvalue()
    assert text.index("Plan for llama") < text.index("download 9.25 MB of tiny/llama into ")
    assert " free)? [y/N] " in text


def test_nobody_to_ask(hub: FakeHub, wanted: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match=r"download 9\.25 MB of tiny/llama .*\n  --yes .*\n  --plan "):
        fetching.fetched(wanted, yes=False, quiet=True)
    assert not hub.asked("GET", r"resolve/.*tokenizer\.json")
    options = fetching.fetched(wanted, yes=True, quiet=True)
    assert not Download.of(options).models


def test_a_disk_that_is_too_small(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = fetching.shutil.disk_usage("/")._replace(free=1_000_000)
    options = located(Options(Path("tiny/llama"), device="cpu"))
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DoesNotFitError, match=r"9\.25 MB are needed in .*, 1\.00 MB are free\.\n  hf cache ls"):
        fetching.fetched(options, yes=True, quiet=True)
    with pytest.raises(DoesNotFitError):
        OffloadRuntime.from_pretrained("tiny/llama", device="cpu")


def test_what_does_not_fit_is_refused_before_the_download(hub: FakeHub) -> None:
    with pytest.raises(DoesNotFitError):
        fetching.fetched(Options(Path("tiny/llama"), device="cpu", device_memory="1MB"), yes=True, quiet=True)
    assert not hub.asked("GET", r"resolve/.*tokenizer\.json")


def test_progress_on_a_terminal(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for quiet in (False, True):
        monkeypatch.setattr(sys, "stderr", screen := Terminal())
        monkeypatch.setenv("FORCE_COLOR", "1")
        fetching.fetched(Options(Path("tiny/draft" if quiet else "tiny/llama"), device="cpu"), True, quiet)
        assert ("downloading llama" in screen.getvalue()) is not quiet
    assert screen.getvalue() == ""


# As programs of their own


def test_an_interrupted_download_is_taken_up_by_the_next_run(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.hold.clear()  # half of every file comes, then nothing
    arguments = ["-m", "tiny/llama", "-p", "hello", *BRIEF]
    nbytes = (DEMO / "target" / "model.safetensors").stat().st_size
    with command(hub, tmp_path, *arguments) as process:
        while not any(file.stat().st_size >= nbytes // 2 for file in tmp_path.rglob("*.incomplete")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 130 and output == ""
    assert "downloading" in errors and errors.rstrip().endswith("kept: the same command goes on from there")
    hub.hold.set()
    hub.requests.clear()
    assert main(arguments) == 0  # this process has the same cache
    output = capsys.readouterr()
    assert output.out and f"of tiny/llama, of which {format_size(nbytes // 2)} are there, into " in output.err
    assert hub.asked("GET", r"/content/.*model\.safetensors")[-1][2] == f"bytes={nbytes // 2}-{nbytes - 1}"


def test_names_that_stand_for_nothing(hub: FakeHub, tmp_path: Path) -> None:
    for model, option, code, message in (
        ("tiny/lama", "--plan", 3, "no such model on"),
        ("tiny/llama@v9", "--plan", 3, "no branch, tag or commit 'v9'"),
        ("tiny/llama", "--offline", 3, "does not hold it"),
        ("lama", "--plan", 3, "nor a name to look for"),
        ("./tiny/llama", "--plan", 3, "nor a name to look for"),
    ):
        with command(hub, tmp_path, "-m", model, option, "-p", "hello") as process:
            output, errors = process.communicate(timeout=100)
        assert (process.returncode, output) == (code, "") and message in errors
        assert errors.startswith("error: ") and "Traceback" not in errors
    assert len(hub.asked("GET", "/api/models/")) == 2


def test_the_benchmark_takes_names(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--repeats", "1", "--new-tokens", "2", "--quiet", "--json", "-"]
    assert benchmark_latency.main(["-m", "tiny/draft", "--device", "cpu", *quick]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["model"] == "draft"
