"""The GPU report as far as a processor can run it: every section in miniature, and what becomes of failures."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import gpu_report
from gpu.scale import FULL, TINY, caps_to_try, stands_for

from loaders.sizes import GIB, MIB
from scheduler.errors import DoesNotFitError, MachineError
from scheduler.machine.data_sheets import GPU, GPUS


@pytest.mark.parametrize("card", GPUS, ids=lambda card: card.key)
def test_every_card_has_rows_of_its_own(card: GPU) -> None:
    """Those of each cap that it was sold as, or of the next smaller one."""
    total = card.mebibytes * MIB
    shown = {cap for cap in caps_to_try(FULL.caps, total) if stands_for(cap, total)}
    sold = {16: 16, 24: 24, 46: 46, 48: 46}
    expected = {sold[size] * GIB for size in sold if abs(total / GIB - size) / size < 0.08}
    assert expected <= shown and all(cap <= total / 0.9 for cap in shown)
    assert shown == ({total} if total < 14 * GIB else shown & {*FULL.caps})
    assert shown


@pytest.mark.parametrize("most", [16, 1, 0])
def test_the_largest_tree_that_fits_is_planned_for(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu import passes
    from gpu.bench import Bench

    def prepare(self: Bench, *models: Path, tree_size: int, **options: object) -> int:
        if tree_size > most:
            raise DoesNotFitError("too large", 2, 1, ())
        return tree_size

    monkeypatch.setattr(Bench, "prepare", prepare)
    bench = Bench(TINY, "cpu", tmp_path, lambda text: None)
    if most:
        assert passes.with_largest_tree(bench, 1) == most
    else:
        with pytest.raises(DoesNotFitError):
            passes.with_largest_tree(bench, 1)


def run(output: Path, *arguments: str) -> tuple[dict, str]:
    """The JSON of a dry run and its Markdown."""
    assert gpu_report.main(["--dry-run", "--quiet", "--output", str(output), *arguments]) == 0
    (json_file,), (markdown_file,) = output.glob("*-dry-run.json"), output.glob("*-dry-run.md")
    return json.loads(json_file.read_text()), markdown_file.read_text()


def kinds(report: dict, kind: str) -> list[dict]:
    return [record for record in report["records"] if record["record"] == kind]


def test_every_section_runs_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, markdown = run(tmp_path)
    assert report["dry_run"] and "A dry run with tiny shapes" in markdown
    assert report["section_seconds"].keys() == gpu_report.SHARES.keys()
    assert {record["why"] for record in kinds(report, "Missing")} <= {"skipped"}, kinds(report, "Missing")
    passes = kinds(report, "StreamedPass")
    assert [record["nodes"] for record in passes] == [1, 16] and all(record["streamed_bytes"] for record in passes)
    for record in passes:
        assert record["ratio"] == pytest.approx(record["seconds"] / record["roofline_seconds"])
        assert record["predicted_ratio"] > 0
    (first,) = kinds(report, "FirstToken")
    assert (first["prompt_tokens"], first["passes"]) == (31, 1) and first["seconds"] > 0
    unpacking = kinds(report, "Unpacking")
    assert {"AWQ", "MXFP4", "GGUF Q4_K"} <= {record["form"] for record in unpacking}
    assert all(record["plain_seconds"] > 0 and record["nbytes"] == 2 * 256 * 512 for record in unpacking)
    assert [record["rows"] for record in kinds(report, "DraftLevel")] == [1, 4]
    compared = [record for record in kinds(report, "Decoding") if record["compared"]]
    assert len(compared) >= 4 and all(record["equal_tokens"] == record["compared"] for record in compared)
    small, wide = [record for record in kinds(report, "Decoding") if record["section"] == "g"][-2:]
    assert wide["streamed_bytes"] > 0 and wide["tokens_per_pass"] == small["tokens_per_pass"]
    assert {"copy in 4 bits", "without loss, 5-bit codes"} <= {record["form"] for record in unpacking}
    plain, *drafted = [record for record in kinds(report, "Decoding") if record["section"] == "h"]
    assert len(drafted) == 5 and all(record["reference"] == plain["mode"] and record["compared"] for record in drafted)
    streamed = {record["mode"]: record["streamed_bytes"] for record in (plain, *drafted)}
    assert 0 < streamed["plain, packed link"] < streamed["plain, plain link"]
    assert str(tmp_path) in capsys.readouterr().out


def test_a_section_that_fails_is_noted_and_the_others_go_on(tmp_path: Path, monkeypatch) -> None:
    from gpu import passes

    def fail(bench: object, budget: object):
        raise RuntimeError("the link fell off")
        yield

    monkeypatch.setattr(passes, "bandwidths", fail)
    report, markdown = run(tmp_path, "--only", "a,c")
    (missing,) = kinds(report, "Missing")
    assert (missing["section"], missing["why"]) == ("a", "failed") and "the link fell off" in missing["reason"]
    assert kinds(report, "DraftLevel") and "the link fell off" in markdown


def test_without_a_gpu_what_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none_found(device: str) -> None:
        raise MachineError(f"no {device}")

    monkeypatch.setattr(gpu_report, "read_machine", none_found)
    assert gpu_report.main(["--output", str(tmp_path / "report")]) == 2
    assert "error: no cuda\n  --dry-run --output DIR " in capsys.readouterr().err


def test_no_time_is_said_to_be_the_reason(tmp_path: Path) -> None:
    report, _ = run(tmp_path, "--only", "c", "--minutes", "1e-9")
    assert [record["why"] for record in kinds(report, "Missing")] == ["out of time"]


@pytest.mark.parametrize(("arguments", "message"), [(["--dry-run"], "--output"), (["--only", "a,x"], "section 'x'")])
def test_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = gpu_report.main(arguments)
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2 and message in capsys.readouterr().err
