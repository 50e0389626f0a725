"""How a run's tests are counted, from the report of a real pytest."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.report import Report

TESTS = """\
import pytest

def test_passes(): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("needs mount: no")
@pytest.mark.parametrize("one", ["a b"])
def test_is_skipped_too(one): pytest.skip("needs mount: no")
@pytest.mark.xfail(reason="known")
def test_is_known(): assert False
@pytest.fixture
def broken(): raise RuntimeError
def test_has_a_broken_fixture(broken): pass
def test_passes_and_breaks_afterwards(late): pass
@pytest.fixture
def late():
    yield
    raise RuntimeError
"""


@pytest.fixture
def report(tmp_path: Path) -> Report:
    (tmp_path / "test_sample.py").write_text(TESTS, encoding="ascii")
    xml = tmp_path / "report.xml"
    options = ["-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={xml}"]
    run = [sys.executable, "-m", "pytest", "-q", *options, "test_sample.py"]
    assert subprocess.run(run, cwd=tmp_path, capture_output=True, check=False).returncode == 1
    made = Report()
    made.add(xml)
    return made


def test_counts_hold_for_every_outcome(report: Report) -> None:
    """A broken fixture is a failure, before the test as after it; an expected failure is neither passed nor skipped."""
    assert (report.failed, report.known, len(report.skipped)) == (3, 1, 2)


def test_skips_are_counted_by_reason(report: Report) -> None:
    """Two tests that lack the same right stand in one line."""
    assert report.skips_by_reason() == ["2 skipped: needs mount: no"]


def test_skipped_ids_are_those_that_pytest_takes(report: Report) -> None:
    """What one machine skipped is named to pytest on another."""
    assert sorted(report.skipped) == ["test_sample.py::test_is_skipped", "test_sample.py::test_is_skipped_too[a b]"]


def test_a_run_that_wrote_no_report_counts_nothing(tmp_path: Path) -> None:
    """Pytest that ended before its report leaves the counts as they were; its exit status is the failure."""
    made = Report()
    made.add(tmp_path / "absent.xml")
    assert made == Report()
