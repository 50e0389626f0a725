"""Judge this checkout: both commands in a pristine Debian as a new user runs them, then on this machine what is left.

The first stages run in a minimal Debian 12 that has python3 and nothing else, with Docker's default capabilities and
the command as PID 1. What that root does not allow is skipped there and run on this machine afterwards, together with
tests/system and the oldest supported versions of the libraries; there a skip is a failure. Needs root.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from tests.lab import packages  # noqa: E402 - of this checkout, wherever it lies
from tests.lab.pristine import PristineRoot  # noqa: E402

QUICKSTART_MINUTES: Final = 5
DEFAULT_MINUTES: Final = 25
REST_MINUTES: Final = 45
_REPORT: Final = "srv/report.json"


def main() -> int:
    """Run the stages; print what failed and, last, the counts of all of them."""
    parser = argparse.ArgumentParser(prog=".ci/run", description="Judge this checkout; .ci/stages.py says how.")
    parser.add_argument("--suite", default="bookworm", help="the pristine Debian (default %(default)s)")
    parser.add_argument("--pristine-only", action="store_true", help="leave out what runs on this machine")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print(".ci/run: must be run as root: it makes a root file system and runs tests/run", file=sys.stderr)
        return 4
    os.chdir(CHECKOUT)
    if wanted := packages.missing(("mmdebstrap", "systemd-container")):
        packages.install(wanted)
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="kpr-ci-") as place:
        return _judge(options.suite, Path(place), pristine_only=options.pristine_only)


def _judge(suite: str, place: Path, *, pristine_only: bool) -> int:
    root, first, second = PristineRoot(suite, place / "root"), place / "root" / _REPORT, place / "rest.json"
    rest = ["tests/run", "--all", "--rest-of", str(first), "--report", str(second)]
    if _took_place(f"a pristine {suite}", lambda: root.create(CHECKOUT)):
        print("failed: nothing could be tried")
        return 1
    stages: list[tuple[str, Callable[[], int | None]]] = [
        ("./quickstart in it", lambda: root.run("./quickstart", minutes=QUICKSTART_MINUTES)),
        ("tests/run in it", lambda: root.run("tests/run", "--report", f"/{_REPORT}", minutes=DEFAULT_MINUTES)),
    ]
    if not pristine_only:
        stages.append(("what is left, on this machine", lambda: _on_this_machine(rest, first)))
    failed = [name for name, stage in stages if _took_place(name, stage)]
    print(*(f"failed: {name}" for name in failed), sep="\n")
    print(_counted([report for report in (first, second) if report.exists()]), flush=True)
    return 1 if failed else 0


def _took_place(name: str, stage: Callable[[], int | None]) -> int:
    """Run a stage; return its exit status."""
    print(f"\n==== {name}", flush=True)
    began = time.monotonic()
    try:
        status = stage() or 0
    except (OSError, subprocess.SubprocessError) as error:
        print(str(error)[:2000])
        status = 1
    print(f"==== {name}: exit {status} after {time.monotonic() - began:.0f} s", flush=True)
    return status


def _on_this_machine(command: Sequence[str], report: Path) -> int:
    if not report.exists():
        print("tests/run wrote no report: which tests it skipped is not known")
        return 1
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        return process.wait(60 * REST_MINUTES)
    except subprocess.TimeoutExpired:
        process.terminate()  # it then takes down what the tests had made
        return process.wait() or 124


def _counted(reports: Sequence[Path]) -> str:
    """Return the closing line: what one stage skipped and a later one ran is not skipped."""
    found = [json.loads(report.read_text(encoding="utf-8")) for report in reports]
    passed, failed = (sum(report[key] for report in found) for key in ("passed", "failed"))
    skipped = len(found[-1]["skipped"]) if found else 0
    return f"{passed} passed, {failed} failed, {skipped} skipped"


if __name__ == "__main__":
    sys.exit(main())
