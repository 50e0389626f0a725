"""The audit log against what really happened, as the kernel saw it: nothing ran that is not in it, and in its order.

A run of starts, attacks and kills; the kernel tells of every process that took on a user's uid and of every execve. The
log is compared with that, and not with anything that the helper says.
"""

import json
import os
import random
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

import pytest

from protocol.record import FIRST_PREV, Event
from root_helper.audit import AuditLog
from root_helper.executors import Executor, boot_id
from tests.lab.accounts import OsUser
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test, is_gone, names_in
from tests.lab.kernel_events import Execution, KernelEvents
from tests.lab.listener_client import ListenerClient
from tests.lab.processes import wait_for

USERS: Final = 12
PROGRAMS: Final = (
    "",
    "exit 3",
    "sleep 0.2; exit 0",
    "/usr/bin/id; setsid /bin/sleep 0.5 & exit 0",
    "for n in 1 2 3; do /bin/true; done",
    "kill -9 $$",
    "(trap '' TERM; while :; do /bin/sleep 0.1; done) & exit 1",
)

MORE: Final = ("k1", "root", "../x", "nobody-here")


@pytest.fixture(scope="module")
def helper() -> Iterator[HelperUnderTest]:
    with helper_under_test() as made:
        for number in range(USERS):
            made.accounts.user(f"u{number}")
        yield made


@pytest.fixture
def kernel() -> KernelEvents:
    return KernelEvents()


@pytest.mark.needs("process events")
def test_every_process_that_ran_as_a_user_has_one_started_and_every_start_one_result_in_the_right_order(
    helper: HelperUnderTest, kernel: KernelEvents
) -> None:
    limits = {"lookup_timeout": 2.0, "prepare_timeout": 2.0, "stop_grace": 0.5}
    helper.start(stop_points=True, limits=limits, users={"map": {"k1": helper.users()[0].name}})
    attack(helper)
    for user in helper.users():
        helper.operator("stop", user=user.name)
    helper.operator("stop", user="k1")
    state = helper.installation.run / "executors"
    wait_for(lambda: all(name.startswith(".") for name in names_in(state)), 20.0, "the end of all executors")
    helper.stop()
    kernel.stop()
    records, ours = helper.audit(), {user.uid for user in helper.users()}
    executions = [execution for execution in kernel.executions if execution.uid in ours]
    became = {pid for pid, uid in kernel.became.items() if uid in ours}
    assert len({execution.pid for execution in executions}) > 2 * USERS, "the run was one"
    nothing_ran_without_a_record(records, executions, became)
    every_start_has_its_records_in_order(records)


def attack(helper: HelperUnderTest) -> None:
    """Ask for everybody, in bursts and twice, while programs misbehave and workers, gate and supervisor are killed."""
    chance, users = random.Random(5), helper.users()
    for what in ("nothing", "worker after G", "no program", "worker before R", "gate", "supervisor"):
        for user in users:
            helper.program_of(user, chance.choice(PROGRAMS))
        client = helper.client()
        if what.startswith("worker"):
            worker_killed(helper, client, users[0], what.replace("worker ", "").replace(" ", "_"))
        (helper.installation.knime_home / "knime").chmod(0o644 if what == "no program" else 0o755)
        names = [user.name for user in chance.sample(users, len(users))]
        asked = [client.send(op="ensure", user=name) for name in (*names, *MORE, names[0])]
        client.send_parts(b"\xff" * 100, b"x")
        if what == "gate":
            os.kill(helper.gate_pid(), signal.SIGKILL)
        with suppress(TimeoutError):  # what was on its way when the gate was killed is lost
            wait_for(lambda asked=asked, client=client: all(map(client.is_answered, asked)), 3.0, "answers")  # type: ignore[misc]
        if what in {"supervisor", "worker before R"}:
            client.send(op="ensure", user=chance.choice(names))
            helper.kill()
            helper.start_again(stop_points=True)
        kill_some(helper, chance)


def kill_some(helper: HelperUnderTest, chance: random.Random) -> None:
    for entry in helper.client().executors():
        with suppress(ProcessLookupError):
            os.kill(entry["pid"], chance.choice((0, signal.SIGKILL)))


def worker_killed(helper: HelperUnderTest, client: ListenerClient, user: OsUser, point: str) -> None:
    """Kill a worker at a point of its way, where its user is not waited for because of earlier deaths."""
    reached = helper.stop_next_worker(point)
    asked = client.send(op="ensure", user=user.name)
    with suppress(TimeoutError):
        wait_for(reached.exists, 2.0, "the worker")
        os.kill(helper.workers()[0], signal.SIGKILL)
    client.wait_for(asked)
    for mark in (reached, helper.marks / point):
        mark.unlink(missing_ok=True)


def test_an_end_recorded_by_a_helper_that_was_killed_before_it_marked_it_is_not_recorded_again(
    helper: HelperUnderTest,
) -> None:
    helper.reset()
    user, uid = helper.users()[0].name, helper.users()[0].uid
    helper.start()
    pid = helper.client().ensure(user)["pid"]
    helper.kill()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: is_gone(pid), 30.0, "the executor's end")
    log = AuditLog(str(helper.installation.audit_log), rotate_size=2**30, keep_days=1, adm=0, host="this")
    log.record_end(Event(event="exited", user=user, pid=pid))
    helper.start_again()
    wait_for(lambda: names_in(helper.installation.run / "executors") == [f".uid-{uid}"], 30.0, "nothing of it")
    assert helper.events(user) == ["request", "started", "result", "exited"]


@pytest.mark.parametrize("ends", [[], ["exited"]], ids=["not recorded", "recorded"])
def test_a_start_that_a_killed_helper_had_not_recorded_has_no_end_either(
    helper: HelperUnderTest, ends: list[str]
) -> None:
    """Killed after the state file, which says what the log ended with, and before the record and any execve."""
    helper.reset()
    user = helper.users()[0]
    helper.start()
    helper.kill()
    records = helper.audit()
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    executor = Executor(
        user.name, user.name, user.uid, gone.pid, 1, boot_id(), 0.0, None, None,
        after=(FIRST_PREV if ends else records[-1]["hash"]),
    )  # fmt: skip
    state = helper.installation.run / "executors" / user.name
    state.write_text(json.dumps(asdict(executor)), encoding="ascii")
    helper.start_again()
    wait_for(lambda: not state.exists(), 30.0, "nothing of it")
    assert helper.events(user.name) == ends


def nothing_ran_without_a_record(records: list[dict[str, Any]], executions: list[Execution], became: set[int]) -> None:
    started = [record for record in records if record["event"] == "started"]
    of = {record["pid"]: record for record in started}
    assert len(of) == len(started), "a pid twice"
    for execution in executions:
        assert execution.of in of, f"ran without a record: {execution}"
        record = of[execution.of]
        assert record["uid"] == execution.uid
        assert record["time"] <= execution.at, "it ran before its record"
    assert set(of) <= became, "recorded, and the kernel never saw it become a user"


def every_start_has_its_records_in_order(records: list[dict[str, Any]]) -> None:
    """Hold each start to its order; those under way when the supervisor was killed have no result."""
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    by_request: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record["request_id"] and record["op"] in {"ensure", None}:
            by_request[record["request_id"]].append(record["event"])
    begun = {name: events for name, events in by_request.items() if "request" in events or "started" in events}
    unfinished = [events for events in begun.values() if events[-1] != "result"]
    assert len(unfinished) <= 2, "one at most for each kill of the supervisor"
    for events in begun.values():
        assert events in (["request", "started", "result"], ["request", "result"], ["request", "started"], ["request"])
    ends: dict[int, list[str]] = defaultdict(list)
    for record in records:
        if record["event"] in {"started", "exited"}:
            ends[record["pid"]].append(record["event"])
    assert set(map(tuple, ends.values())) == {("started", "exited")}, "each start ends once"
