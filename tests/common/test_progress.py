"""Progress: nothing of it on stdout, nothing at all of short work, and lines whose counts are right."""

from __future__ import annotations

import time

import pytest

from harness.common import progress as module
from harness.common.progress import Progress, showing_progress


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with showing_progress("tables") as progress:
        progress.expect(1)
        progress.step("one")
    assert capsys.readouterr() == ("", "")


def test_long_work_says_on_stderr_how_far_it_is_and_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_S", 0.2)
    monkeypatch.setattr(module, "EVERY_S", 10.0)
    with showing_progress("tables") as progress:
        for name in progress.each(["a", "b", "c"], "table"):
            time.sleep(0.3 if name == "b" else 0.0)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tables: 1 of 3 steps, now table 2 of 3; ") and " left" in err and err.count("\n") == 1


def test_an_error_in_the_work_ends_the_progress_too() -> None:
    with pytest.raises(ValueError, match="broken"), showing_progress("tables"):
        raise ValueError("broken")


def test_steps_are_counted_when_the_next_begins() -> None:
    progress = Progress("report")
    progress.expect(4)
    progress.step("first")
    assert (progress.done, progress.total) == (0, 4) and "left" not in progress.line()
    progress.step("second")
    assert progress.line().startswith("report: 1 of 4 steps, now second; ")
