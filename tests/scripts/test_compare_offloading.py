"""The comparison of offloading programs: a run of ours beside made-up ones, what it writes, and how it fails."""

import json
import sys
from pathlib import Path

import pytest

from loaders.io.direct import measure_read_bandwidth

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import compare_offloading  # noqa: E402
from offloading import job  # noqa: E402
from offloading.job import PROGRAMS, SCRIPT, Outcome, missing  # noqa: E402
from offloading.page_cache import cached_bytes, drop  # noqa: E402
from offloading.summary import Limit, figures, program_table  # noqa: E402

# Ours runs; accelerate repeats the prompt's first token and keeps a file, as programs do that copy the weights; airllm
# fails.
STAND_IN = """
import json, runpy, sys
from pathlib import Path
if sys.argv[3] == "ours":
    runpy.run_path(SCRIPT, run_name="__main__")
    raise SystemExit
if sys.argv[3] == "airllm":
    print("first")
    raise SystemExit("no such device")
job = json.loads(Path(sys.argv[1]).read_text())
(Path(job["directory"]) / "copy").write_text("x" * 10)
outcome = dict(versions={}, load_seconds=1, token_ids=job["tokens"][:1] * (1 + job["passes"]), first_seconds=2,
               pass_seconds=[3] * job["passes"], cached_bytes=[0] * (1 + job["passes"]), written_bytes=10)
Path(sys.argv[2]).write_text(json.dumps(outcome))
"""


def outcome(token_ids: list[int], pass_seconds: list[float], **others) -> Outcome:
    return Outcome({"torch": "2"}, 1.0, token_ids, 5.0, pass_seconds, **others)


@pytest.fixture
def on_disk(tmp_path) -> Path:
    """A directory whose filesystem has a page cache that can be passed."""
    (tmp_path / "probe").write_bytes(bytes(4096))
    if not measure_read_bandwidth([tmp_path / "probe"], seconds=0).direct:
        pytest.skip("temporary files lie in memory")
    return tmp_path


def test_dropped_files_leave_the_page_cache(on_disk):
    file = on_disk / "file"
    file.write_bytes(bytes(100_000))
    assert cached_bytes([file]) == 100_000
    drop([file])
    assert cached_bytes([file]) == 0
    file.read_bytes()
    assert cached_bytes([file]) == 100_000


def test_ours_beside_programs_that_run_fail_and_are_missing(on_disk, monkeypatch, capsys):
    (on_disk / "runs.py").write_text(STAND_IN.replace("SCRIPT", repr(str(SCRIPT))))
    monkeypatch.setattr(job, "SCRIPT", on_disk / "runs.py")
    monkeypatch.setattr(compare_offloading, "missing", lambda name, python: None)
    arguments = ["--shape", "tiny", "--rounds", "1", "--passes", "2", "--work-dir", str(on_disk / "work"), "--quiet"]
    lines = on_disk / "lines"
    assert compare_offloading.main([*arguments, "--json", str(lines)]) == 0
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["record"] for record in records] == ["run"] * 3 + ["limit"] + ["program"] * 3
    ours, other, failed = records[-3:]
    assert len(records[0]["token_ids"]) == 3 and ours["passes"] == 2 and ours["pass_seconds"] > 0
    assert other["times_ours"] == pytest.approx(3 / ours["pass_seconds"]) and other["same_tokens"] is False
    assert failed["failure"] == "failed (1): no such device" and failed["pass_seconds"] is None
    assert records[3]["ratio"] == pytest.approx(ours["pass_seconds"] / records[3]["seconds"])
    shown = capsys.readouterr().out
    assert "4 of 4 layers on disk" in shown and "| accelerate | 3 | 3 to 3 |" in shown and "no such device" in shown
    assert not list((on_disk / "work").iterdir())


def test_a_program_that_is_missing_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(PROGRAMS, "airllm", "no-such-package-anywhere")
    assert missing("airllm", Path(sys.executable)) == "not installed: pip install no-such-package-anywhere"
    monkeypatch.setitem(PROGRAMS, "airllm", "numpy")
    assert missing("airllm", Path(sys.executable)) is None and missing("ours", Path(sys.executable)) is None


def test_medians_quotients_and_tokens():
    ours = [outcome([1, 2], [1.0, 1.2]), outcome([1, 2], [2.0, 2.2])]
    same = [outcome([1, 2], [2.0, 2.4]), outcome([1, 2], [3.0, 3.3], cached_bytes=[9, 1, 7])]
    results = {"ours": ours, "accelerate": same, "airllm": ["not installed: pip install airllm"]}
    row = figures("accelerate", results)
    assert (row["pass_spread"], row["cached_bytes"]) == ((2.0, 3.3), 7)
    assert row["times_ours"] == pytest.approx(2.7 / 1.6)
    assert row["times_ours_by_round"] == pytest.approx([2.0, 1.5]) and row["same_tokens"] is True
    assert figures("airllm", {"ours": ours, "airllm": [outcome([1, 3], [2.0])]})["same_tokens"] is False
    assert figures("ours", results)["times_ours"] is None
    absent = figures("airllm", results)
    assert absent["pass_seconds"] is None and absent["same_tokens"] is None
    shown = "\n".join(program_table([row, absent]))
    assert "1.50" in shown and "- airllm: not installed: pip install airllm" in shown


@pytest.mark.parametrize("compute, seconds", [(1.0, 2.0), (3.0, 3.0)])
def test_the_limit_is_the_slower_of_disk_and_computing(compute, seconds):
    limit = Limit.of([2.0, 4.0, 3.0], [outcome([1], [3.3], compute_seconds=compute, read_bytes=8)])
    assert limit is not None and limit.figures()["seconds"] == seconds
    assert limit.figures()["ratio"] == pytest.approx(3.3 / seconds)
    assert Limit.of([2.0], ["failed"]) is None


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--model", "no-such-directory"], 3, "no-such-directory"),
        (["--shape", "tiny", "--device-memory", "1GiB"], 2, "nothing is streamed"),
        (["--shape", "tiny", "--device-memory", "100KiB"], 4, "--device-memory"),
        (["--shape", "tiny", "--json", "no/such/file"], 1, "no/such/file"),
        (["--shape", "tiny", "--work-dir", __file__], 1, "File exists"),
    ],
)
def test_mistakes_end_with_a_message_and_a_code(tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert compare_offloading.main([*arguments, "--quiet"]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and message in shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize("value", ["airllm", "ours=/no/such/python", "other=/usr/bin/python3"])
def test_interpreters_that_cannot_be(capsys, value):
    with pytest.raises(SystemExit) as exit_info:
        compare_offloading.main(["--python", value])
    assert exit_info.value.code == 2 and "error: " in capsys.readouterr().err
