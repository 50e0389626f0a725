"""A report as text, the machine's line and one table, as README.md takes it: python3 -m tests.bench.table FILE."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.bench.figures import Figure, Measured, NoReport, Report, from_json

Rows = list[tuple[str, str, str]]
"""What the programs print that are run by hand: what, seen, goal."""
HEAD = "| what | median | runs: least to most | goal |\n| --- | --- | --- | --- |"


def table(report: Report) -> str:
    """Return the machine's line and the table; below it what was not measured, and why."""
    lines = ["; ".join(f"{key} {value}" for key, value in report.machine.items()), "", HEAD]
    for one in report.benches:
        lines += _rows(one)
    without = [f"not measured: {one.bench}: {one.without}" for one in report.benches if one.without is not None]
    return "\n".join([*lines, "", *without]).rstrip() + "\n"


def shown(value: float, unit: str) -> str:
    """Return a value with three figures and its unit."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".replace(" times", "").replace(" count", "")


def _rows(measured: Measured) -> Iterator[str]:
    for figure in measured.figures:
        yield f"| {figure.what} | {_median(figure)} | {_runs(figure)} | {_goal(figure)} |"


def _median(figure: Figure) -> str:
    return f"> {shown(figure.median, figure.unit)}" if figure.is_cut else shown(figure.median, figure.unit)


def _runs(figure: Figure) -> str:
    if len(figure.samples) == 1:
        return "one run"
    least, most = (shown(end(figure.samples), figure.unit) for end in (min, max))
    return f"{least} to {most} ({len(figure.samples)})"


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return "-"
    missed = "" if figure.reaches_goal else ", missed"
    return f"{'<=' if figure.better == 'lower' else '>='} {shown(figure.goal, figure.unit)}{missed}"


def main() -> int:
    """Print the table of a report; with ``--goals`` those figures alone that have a goal."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.table", description="Print a report's table.")
    parser.add_argument("report", type=Path)
    parser.add_argument("--goals", action="store_true", help="only the figures that have a goal")
    given = parser.parse_args()
    try:
        report = from_json(given.report.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, NoReport) as error:
        print(f"table: {given.report}: no report of tests.bench: {error}", file=sys.stderr)
        return 2
    print(table(with_goals(report) if given.goals else report), end="")
    return 0


def with_goals(report: Report) -> Report:
    """Return the report with the figures that have a goal."""
    chosen = [
        replace(one, figures=tuple(figure for figure in one.figures if figure.goal is not None))
        for one in report.benches
    ]
    return replace(report, benches=tuple(chosen))


if __name__ == "__main__":
    sys.exit(main())
