"""Measure, as root: python3 -m tests.bench [NAME ...] [--json FILE] [--runs N] [--minutes N] [--list].

One table of medians and spreads, one machine line, and with ``--json`` one file with every sample, which
``tests.bench.compare`` compares with another. No figure is asserted; that each job arrives once is.

How it could lie: figures of a busy machine look like those of a slow program. So the load before each bench is in the
file, controls are measured in the same run, and whatever could not be measured, or broke, is listed and never left out.
It needs root and what ``tests/run`` installs, opens ports on loopback alone, and ends by itself: no bench begins after
``--minutes``, and one that has no end by then is interrupted.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.catalogue import DOCSTRINGS, run
from tests.bench.circumstances import circumstances, load
from tests.bench.figures import Figure, Measured, Report
from tests.bench.ground import Ground, NotHere
from tests.bench.table import table

MINUTES: Final = 15.0
RUNS: Final = 5


class OutOfTime(Exception):
    """The minutes are over."""


def main() -> int:
    """Run the benches named on the command line, or all; return 1 if one of them broke or found no time."""
    given = _options()
    if given.list:
        for name, docstring in DOCSTRINGS.items():
            print(f"{name:22} {docstring.splitlines()[0]}")
        return 0
    if os.geteuid() != 0:
        print("tests.bench: must be run as root: it makes users and starts daemons", file=sys.stderr)
        return 4
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is taken back
    report = Report(circumstances(), ())
    ground, until = Ground(), time.monotonic() + given.minutes * 60
    try:
        for name in given.names or DOCSTRINGS:
            measured = _measured(name, lambda name=name: run(name, ground, given.runs), until)  # type: ignore[misc]
            report = Report(report.machine, (*report.benches, measured))
            if given.json is not None:  # also what a later bench will not be able to spoil
                given.json.write_text(report.to_json(), encoding="utf-8")
    finally:
        ground.close()
        print(table(report), end="")
    return int(any(one.broke for one in report.benches))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", description="Measure; one table, one JSON.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a bench; all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each bench (%(default)s); fewer: nothing to quote")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of them (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the benches and end")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in DOCSTRINGS]:
        parser.error(f"no bench {', '.join(unknown)}; --list has them")
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    return given


def _measured(name: str, bench: Callable[[], list[Figure]], until: float) -> Measured:
    """Run one bench within the time that is left; what keeps it from a figure is its ``without``."""
    before, began = load(), time.monotonic()
    print(f"measuring {name} (load {before:.1f}) ...", file=sys.stderr, flush=True)
    figures, without, broke = list[Figure](), None, False
    try:
        with _at_most(until - began):
            figures = bench()
    except NotHere as error:
        without = str(error)
    except Exception as error:  # noqa: BLE001 - a bench that broke must not take the figures of the others along
        without, broke = f"it broke: {type(error).__name__}: {str(error)[-2000:]}", True
    return Measured(name, before, round(time.monotonic() - began, 1), tuple(figures), without, broke)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime here when the time is over: setitimer(2)."""

    def over(*_: object) -> None:
        raise OutOfTime("the minutes of this run were over")

    if seconds <= 0:
        over()
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main())
