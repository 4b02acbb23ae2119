"""What a job says of itself: on a terminal and in a log."""

import pytest

from offload_runtime.batch.progress import JobProgress


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    clock, stopping = [0.0], [False]
    progress = JobProgress(10, 2, 1, stopping=lambda: stopping[0], clock=lambda: clock[0])
    assert progress.text() == "2 of 10 lines (20%) · 1 error"
    clock[0] = 10.0
    progress.wrote(430)
    assert progress.text() == "2 of 10 lines (20%) · 1 error · 43 tok/s"
    progress.answered(failed=True)
    progress.answered(failed=False)
    assert progress.text() == "4 of 10 lines (40%) · 2 errors · 43 tok/s · about 30 s left"
    stopping[0] = True
    assert progress.text().endswith("43 tok/s · stopping")


def test_without_a_terminal_a_line_comes_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    with JobProgress(10, 0, 0, clock=lambda: clock[0]) as progress:
        for _ in range(9):
            clock[0] += 10.0
            progress.wrote(10)
    assert capsys.readouterr().err.count("0 of 10 lines (0%) · 1 tok/s\n") == 3


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    with JobProgress(2, 0, 0, quiet=True, clock=lambda: clock[0]) as progress:
        clock[0] = 100.0
        progress.wrote(10)
        progress.answered(failed=False)
    assert capsys.readouterr() == ("", "")
