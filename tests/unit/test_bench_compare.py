"""Two reports, before and after: what the comparison believes, what it does not, and what it warns of."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.compare import compared, ratio, verdict
from tests.bench.figures import Figure, Measured, Report

ROOT = Path(__file__).parents[2]
SLOW = Figure("hand-over", "ms", (4.0, 4.1, 4.2, 4.3, 4.4))
QUICK = replace(SLOW, samples=(2.0, 2.1, 2.2, 2.3, 2.4))


def report(*figures: Figure, **machine: str) -> Report:
    return Report({"commit": "abc", **machine}, (Measured("latency", 0.1, 1.0, figures),))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (SLOW, QUICK, "better"),
        (QUICK, SLOW, "worse"),
        (replace(QUICK, better="higher"), replace(SLOW, better="higher"), "better"),
        (SLOW, replace(SLOW, samples=(2.0, 2.1, 2.2, 2.3, 4.0)), "within the spread"),
        (replace(SLOW, samples=(4.0,)), replace(SLOW, samples=(2.0,)), "too few runs to tell"),
    ],
)
def test_verdict_names_what_the_runs_bear_out(before: Figure, after: Figure, words: str) -> None:
    """A ratio of one half is worth nothing where the runs overlap or are too few."""
    assert verdict(before, after) == words


def test_ratio_has_a_sign_where_a_side_was_cut_off() -> None:
    """What was longer than its bound before is at least so much longer."""
    cut = Figure("flood", "s", (65.0,), bound=65.0)
    quick = replace(cut, samples=(1.3,))
    assert ratio(cut, quick) == "< 0.02"
    assert ratio(quick, cut) == "> 50.00"
    assert ratio(cut, cut) == "both cut off"
    assert ratio(SLOW, QUICK) == "0.52"
    assert ratio(replace(SLOW, samples=(0.0,)), QUICK) == "-"


def test_comparison_says_first_that_the_machine_differed() -> None:
    """The bare broker twice as slow: what is ours may be slower for the same reason."""
    bare = replace(QUICK, what="the broker alone", bare=True)
    slower = replace(bare, samples=SLOW.samples)
    text = compared(report(QUICK, bare), report(SLOW, slower))
    assert text.startswith("THE MACHINE DIFFERED: the broker alone: 1.91 of before")
    assert "MACHINE" not in compared(report(QUICK, bare), report(SLOW, bare))


def test_comparison_lists_what_only_one_side_has() -> None:
    """A bench that was not run is missing in sight, and so is another commit or library."""
    text = compared(report(SLOW, pika="1.2.0"), report(replace(QUICK, what="a start"), pika="1.4.4"))
    assert "pika: before 1.2.0, after 1.4.4" in text
    assert "only before: latency: hand-over" in text
    assert "only after: latency: a start" in text


def test_command_compares_two_files(tmp_path: Path) -> None:
    """And ends with 2 for one that is no report."""
    (tmp_path / "before").write_text(report(SLOW).to_json(), encoding="utf-8")
    (tmp_path / "after").write_text(report(QUICK).to_json(), encoding="utf-8")
    done = run("before", "after", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| hand-over | 4.20 ms | 2.20 ms | 0.52 | better |" in done.stdout
    (tmp_path / "after").write_text("{", encoding="utf-8")
    done = run("before", "after", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("compare: after: no report of tests.bench: ")


def run(*names: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.bench.compare", *names]
    return subprocess.run(command, cwd=cwd, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
