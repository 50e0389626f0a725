"""Compare two reports, before and after, as ratios: python3 -m tests.bench.compare A.json B.json.

How it could lie: one lucky run against one unlucky one; a quieter machine taken for faster code; another machine. So a
ratio stands beside what the runs say of it: it counts only where all runs of one side are below all of the other and
chance would show that less than once in a hundred. And the figures of the bare broker and libraries are compared, too:
where these moved, the machine was another, and that is said before anything else. Of a hundred figures one may still
differ by chance: what matters is seen again in a second pair of runs.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figures import Figure, NoReport, Report, from_json
from tests.bench.spread import Verdict, differ
from tests.bench.table import shown

HEAD = "| what | before | after | after / before | |\n| --- | --- | --- | --- | --- |"


def compared(before: Report, after: Report) -> str:
    """Return the warnings, the table, and what only one of the two has."""
    old, new = before.by_key(), after.by_key()
    both = [key for key in old if key in new]
    lines = [*_machines(before, after), *_moved([(old[key], new[key]) for key in both]), HEAD]
    lines += [_row(old[key], new[key]) for key in both]
    lines += [f"only before: {bench}: {what}" for bench, what in old if (bench, what) not in new]
    lines += [f"only after: {bench}: {what}" for bench, what in new if (bench, what) not in old]
    return "\n".join(lines) + "\n"


def verdict(before: Figure, after: Figure) -> str:
    """Return what the difference is worth, in words."""
    found = differ(before.samples, after.samples)
    if found in (Verdict.SAME, Verdict.TOO_FEW):
        return found.value
    return "better" if found.value == after.better else "worse"


def ratio(before: Figure, after: Figure) -> str:
    """Return the ratio of the medians; with a sign where one of them was cut off at a bound."""
    if before.is_cut and after.is_cut:
        return "both cut off"
    if before.median <= 0 or after.median < 0:  # a difference can be on either side of nothing
        return "-"
    sign = "> " if after.is_cut else "< " if before.is_cut else ""
    return f"{sign}{after.median / before.median:.2f}"


def _row(before: Figure, after: Figure) -> str:
    seen = (shown(before.median, before.unit), shown(after.median, after.unit))
    return f"| {after.what} | {seen[0]} | {seen[1]} | {ratio(before, after)} | {verdict(before, after)} |"


def _machines(before: Report, after: Report) -> Iterator[str]:
    """Say what differs between the two machines and commits."""
    for key in [*before.machine, *(key for key in after.machine if key not in before.machine)]:
        old, new = before.machine.get(key, "absent"), after.machine.get(key, "absent")
        if old != new:
            yield f"{key}: before {old}, after {new}"


def _moved(pairs: list[tuple[Figure, Figure]]) -> Iterator[str]:
    """Say which figures of the machine itself differ: what is ours may differ for the same reason."""
    for before, after in pairs:
        if before.bare and differ(before.samples, after.samples) not in (Verdict.SAME, Verdict.TOO_FEW):
            yield f"THE MACHINE DIFFERED: {after.what}: {ratio(before, after)} of before, and none of that is ours"


def main() -> int:
    """Print the comparison; return 2 for a file that is no report."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.compare", description="Compare two reports.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    reports = []
    for path in (given.before, given.after):
        try:
            reports.append(from_json(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, NoReport) as error:
            print(f"compare: {path}: no report of tests.bench: {error}", file=sys.stderr)
            return 2
    print(compared(*reports), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
