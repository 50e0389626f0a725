"""What a start costs without a scope: request to executor, in its steps, and 50 at once; beside a bare ``Popen``.

How it could lie: both ends are those of whoever asks. A start ends when the helper's answer is there, which it gives
when it has seen the execve; a ``Popen`` returns when it has seen it, too (by the same closed pipe), so neither is
stopped early. Accounts are known and home, workspace and temp directory are there: a first start that makes them is a
figure of its own. PAM's stack is the shipped one. The program is a line of shell in every case; what KNIME takes to
start is not in it. One after the other, so that no start waits for another; the burst is where they do. Steps are
measured in runs of their own (``start_steps``), and their sum stands below. No systemd runs here, so no scope: that is
``scopes``, in a booted machine.
"""

import subprocess
import time
from collections.abc import Sequence
from typing import Final

from tests.bench.asking import Told, asked, expect_started
from tests.bench.figures import Figure
from tests.bench.spread import median
from tests.bench.start_steps import add_probe, steps
from tests.lab.accounts import OsUser, end_processes
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test, names_in

USERS: Final = 20
AT_ONCE: Final = 50


def start(runs: int) -> list[Figure]:
    """Request to executor, no scope: first with all to be made, then with all there; beside Popen; and its steps."""
    with helper_under_test() as helper:
        users = [helper.accounts.user(f"u{number}") for number in range(USERS)]
        program = str(helper.installation.knime_home / "knime")
        new = _started(helper, users)
        there, bare = list[float](), list[float]()
        for _ in range(runs):
            there.append(median([one.ms for one in _started(helper, users)]))
            bare.append(median([_popen(user, program) for user in users]))
        helper.marks.joinpath("steps").mkdir(mode=0o777)
        helper.marks.joinpath("steps").chmod(0o777)
        add_probe(helper.installation.root / "lib/root_helper/worker.py", f"{helper.marks}/steps")
        found = [steps(_started(helper, users), helper.marks / "steps") for _ in range(runs)]
    ratios = tuple(a / b for a, b in zip(there, bare, strict=True))
    what = "a start, no scope"
    return [
        Figure(f"{what}: request to answer, account and directories there", "ms", tuple(there), goal=9.0),
        Figure("a bare Popen(user=, group=, extra_groups=) of the same program", "ms", tuple(bare), bare=True),
        Figure(f"{what}: times a bare Popen, each pair", "times", ratios),
        Figure(f"{what}: with home, workspace and temp to be made", "ms", (median([one.ms for one in new]),)),
        *step_figures(what, found),
    ]


def burst(runs: int) -> list[Figure]:
    """50 local users at once, directories there, no scopes: the last answer."""
    with helper_under_test() as helper:
        users = [helper.accounts.user(f"u{number}") for number in range(AT_ONCE)]
        _started(helper, users)
        told = [_started(helper, users, at_once=True) for _ in range(runs)]
    last = tuple(max(one.ms for one in of_run) / 1000 for of_run in told)
    return [Figure(f"{AT_ONCE} starts asked for at once, no scopes: the last answer", "s", last)]


def step_figures(what: str, found: Sequence[dict[str, float]]) -> list[Figure]:
    """Return a figure for each step, and for their sum."""
    figures = [Figure(f"{what}: step: {step}", "ms", tuple(run[step] for run in found)) for step in found[0]]
    return [*figures, Figure(f"{what}: sum of the steps' medians", "ms", tuple(sum(run.values()) for run in found))]


def _started(helper: HelperUnderTest, users: Sequence[OsUser], *, at_once: bool = False) -> list[Told]:
    """Start the helper, have it start everybody, and end all; homes and directories stay."""
    helper.start(limits={"lookup_timeout": 60.0})
    try:
        told = asked(helper.installation.socket, [user.name for user in users], at_once=at_once)
        expect_started(told)
    finally:
        helper.kill()
        end_processes([user.uid for user in users])
        state = helper.installation.run / "executors"
        for name in names_in(state):
            (state / name).unlink()
    return told


def _popen(user: OsUser, program: str) -> float:
    """Return the milliseconds until a child has executed the program as the user."""
    began = time.monotonic()
    process = subprocess.Popen([program], user=user.uid, group=user.gid, extra_groups=[user.gid])
    took = time.monotonic() - began
    process.kill()
    process.wait()
    return 1000 * took
