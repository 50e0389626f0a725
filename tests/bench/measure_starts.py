"""Measure what a start costs and what memory does, in one run: python3 -m tests.bench.measure_starts.

From the request to execve as the user, by the kernel's own clock (its process events), beside a bare ``Popen(user=)``
and ``runuser`` of the same program. Without systemd, so without scopes. Needs root and what tests/run installs.
"""

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq

from tests.bench.instruments import Rows, as_listener, gate_of, rss
from tests.lab.accounts import OsUser, end_processes
from tests.lab.directory_service import DirectoryService
from tests.lab.helper_under_test import HelperUnderTest, names_in
from tests.lab.kernel_events import Execution, KernelEvents
from tests.lab.processes import wait_for

USERS: Final = 50
FREE: Final = 70001
REQUESTS: Final = 100_000
STEPS: Final[list[tuple[float, float, float]]] = []
"""Of the last measurement: seconds until the fork, until the process is the user, until execve."""


class HelperMeasured(HelperUnderTest):
    """The helper in a mount namespace where PAM's stack and the directory service are ours."""

    directory: DirectoryService

    def command(self, *words: str, stop_points: bool = False) -> list[str]:
        """Give the command line with what makes the namespace in front of it."""
        return self.directory.seen_by(super().command(*words, stop_points=stop_points))

    def environment(self) -> dict[str, str]:
        """Give what systemd would set, and where the NSS module is."""
        return {**super().environment(), **self.directory.environment}


def main() -> None:
    """Run all and print one table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all is taken back
    helper = HelperMeasured()
    try:
        helper.create()
        helper.directory = DirectoryService(helper.installation.root / "directory")
        users = [helper.accounts.user(f"u{number}") for number in range(USERS)]
        rows = [*one_by_one(helper, users), *at_once(helper, users), *beside_a_hanging_look_up(helper, users)]
        rows += memory(helper, users)
    finally:
        helper.remove()
    print("| what | seen | goal |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def one_by_one(helper: HelperMeasured, users: Sequence[OsUser]) -> Rows:
    """One start after the other: first with all to be made, then with all there, then with a PAM stack that permits."""
    program = str(helper.installation.knime_home / "knime")
    new = started_by_helper(helper, users)
    there, plain = list[float](), list[float]()
    for _ in range(3):  # in turns: machines are noisy
        there += started_by_helper(helper, users)
        helper.directory.pam_permits()
        plain += started_by_helper(helper, users)
        steps = " + ".join(f"{statistics.median(step) * 1000:.1f}" for step in zip(*STEPS, strict=True))
        helper.directory.reset()
    bare = measured(users, lambda user: popen(user, program))
    runuser = measured(users, lambda user: subprocess.Popen(["/usr/sbin/runuser", "-u", user.name, "--", program]))
    ratio = f"{statistics.median(plain) / statistics.median(bare):.1f} times Popen"
    return [
        ("request to execve, account and directories there, PAM permits, no scope", spread(plain), "<= 10 ms"),
        ("of these until the fork + until the worker is the user + until execve", f"{steps} ms", "-"),
        ("the same of a bare Popen(user=, group=, extra_groups=)", spread(bare), f"- ({ratio})"),
        ("the same of runuser", spread(runuser), "-"),
        ("with the shipped PAM stack (pam_unix)", spread(there), "-"),
        ("with home, workspace and temp directory to be made, too", spread(new), "-"),
    ]


def at_once(helper: HelperMeasured, users: Sequence[OsUser]) -> Rows:
    """All users in one burst, local accounts, directories there and PAM as shipped: the last execve."""
    seconds = []
    for _ in range(5):
        begin(helper)
        kernel = KernelEvents()
        began = time.time()
        client = helper.client()
        asked = [client.send(op="ensure", user=user.name) for user in users]
        replies = [client.wait_for(one, 30.0) for one in asked]
        kernel.stop()
        first = first_executions(kernel, users)
        if {reply["result"] for reply in replies} != {"started"} or len(first) != len(users):
            raise RuntimeError(f"not all were started: {replies}")
        seconds.append(max(one.at for one in first.values()) - began)
        forget(helper, users)
    return [(f"{USERS} local users at once, the last execve; five runs", f"{max(seconds):.2f} s at worst", "<= 1 s")]


def beside_a_hanging_look_up(helper: HelperMeasured, users: Sequence[OsUser]) -> Rows:
    """One start beside workers whose NSS look-up hangs, and without them."""
    helper.directory.holds([f"remote{number} hang x {FREE} {FREE} /" for number in range(5)])
    begin(helper)
    client = helper.client()
    for number in range(5):
        client.send(op="ensure", user=f"remote{number}")
    wait_for(lambda: len(helper.workers()) == 5, 10.0, "five workers that hang")
    hung = measured(users[:25], lambda user: client.ensure(user.name))
    helper.directory.reset()
    forget(helper, users)
    begin(helper)
    client = helper.client()
    alone = measured(users[:25], lambda user: client.ensure(user.name))
    forget(helper, users)
    later = statistics.median(hung) - statistics.median(alone)
    return [("a start beside five look-ups that hang, later than without", f"{later:.1f} ms", "<= 50 ms")]


def memory(helper: HelperMeasured, users: Sequence[OsUser]) -> Rows:
    """Resident memory of supervisor and gate over requests for a running executor."""
    begin(helper)
    helper.client().ensure(users[0].name)
    address = f"ipc://{helper.installation.socket}"
    as_listener(lambda: pipelined(address, users[0].name, 2000))
    before = (rss(helper.pid), rss(gate_of(helper.pid)))
    as_listener(lambda: pipelined(address, users[0].name, REQUESTS))
    after = (rss(helper.pid), rss(gate_of(helper.pid)))
    forget(helper, users)
    rows: Rows = []
    for who, goal, one, other in (("supervisor", 22, before[0], after[0]), ("gate", 24, before[1], after[1])):
        seen = f"{one:.1f}, then {other:.1f} MB"
        rows.append((f"{who}, resident, before and after {REQUESTS:,} requests", seen, f"<= {goal} MB, flat"))
    return rows


def started_by_helper(helper: HelperMeasured, users: Sequence[OsUser]) -> list[float]:
    begin(helper)
    client = helper.client()
    client.ask("list", after="")
    times = measured(users, lambda user: client.ensure(user.name))
    forget(helper, users)
    return times


def measured(users: Sequence[OsUser], act: Callable[[OsUser], object]) -> list[float]:
    """Give the milliseconds from each call to the first execve as that user."""
    kernel, began, made = KernelEvents(), {}, []
    for user in users:
        began[user.uid] = time.time()
        made.append(act(user))
        time.sleep(0.02)
    wait_for(lambda: first_executions(kernel, users).keys() == began.keys(), 30.0, "the last execve")
    kernel.stop()
    first = first_executions(kernel, users)
    for process in made:
        if isinstance(process, subprocess.Popen):
            process.kill()
            process.wait()
    STEPS.clear()
    for user in users:
        one = first[user.uid]
        forked, became = kernel.forked_at[one.pid], kernel.became_at.get(one.pid, one.at)
        STEPS.append((forked - began[user.uid], became - forked, one.at - became))
    return [(first[user.uid].at - began[user.uid]) * 1000 for user in users]


def first_executions(kernel: KernelEvents, users: Sequence[OsUser]) -> dict[int, Execution]:
    ours, first = {user.uid for user in users}, dict[int, Execution]()
    for execution in kernel.executions:
        if execution.uid in ours:
            first.setdefault(execution.uid, execution)
    return first


def popen(user: OsUser, program: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([program], user=user.uid, group=user.gid, extra_groups=[user.gid])


def begin(helper: HelperMeasured) -> None:
    helper.start(limits={"lookup_timeout": 60.0})


def forget(helper: HelperMeasured, users: Sequence[OsUser]) -> None:
    """End all; homes and directories stay."""
    helper.kill()
    end_processes([user.uid for user in users])
    state = helper.installation.run / "executors"
    for name in names_in(state):
        (state / name).unlink()


def pipelined(address: str, user: str, count: int) -> list[float]:
    """Ask with at most 32 requests under way."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(address)
    frame = json.dumps({"v": 1, "id": "m", "op": "ensure", "user": user}).encode()
    sent = answered = 0
    while answered < count:
        while sent < count and sent - answered < 32:
            dealer.send(frame)
            sent += 1
        if not dealer.poll(10_000):
            raise TimeoutError(f"no reply after {answered}")
        dealer.recv()
        answered += 1
    context.destroy(0)
    return [float(answered)]


def spread(milliseconds: list[float]) -> str:
    ordered: list[Any] = sorted(milliseconds)
    return f"median {statistics.median(ordered):.1f}, p90 {ordered[int(len(ordered) * 0.9)]:.1f} ms"


if __name__ == "__main__":
    main()
