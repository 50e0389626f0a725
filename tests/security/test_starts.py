"""One start at a time for each user, whoever is stopped or killed in between; nothing at all for a hostile name.

The workers stop themselves where a test says so (SIGSTOP), which stands for whatever hangs there: NSS, a home on a
dead server, a user who stops what runs under his uid.
"""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.lab.accounts import OsUser
from tests.lab.file_trees import facts_of
from tests.lab.helper_under_test import (
    HelperUnderTest,
    descriptors_of,
    executed,
    is_gone,
    names_in,
    state_of,
    status_of,
)
from tests.lab.processes import process_id, processes_of, wait_for

SHORT: Final = {"lookup_timeout": 1.0, "prepare_timeout": 1.0, "stop_grace": 0.5}
POINTS: Final = ("looking_up", "before_R", "after_G")


def running(user: OsUser) -> list[int]:
    """Give the user's processes that have executed something."""
    return [process.pid for process in processes_of([user.uid]) if process.alive() and executed(process.pid)]


def all_of(user: OsUser) -> list[int]:
    return [process.pid for process in processes_of([user.uid]) if process.alive()]


def stopped_worker(helper: HelperUnderTest, reached: Path) -> int:
    """Wait until a worker has stopped itself; give its pid."""
    wait_for(reached.exists, 30.0, f"the worker at {reached.name}")
    wait_for(lambda: any(state_of(pid) == "T" for pid in helper.workers()), 30.0, "the worker's stop")
    return next(pid for pid in helper.workers() if state_of(pid) == "T")


def starts_afterwards(helper: HelperUnderTest, user: OsUser) -> None:
    """Ask until the user is free again and gets one executor."""
    client = helper.client()
    wait_for(lambda: client.ensure(user.name)["result"] == "started", 30.0, "a start afterwards")
    assert len(running(user)) == 1
    assert [entry["user"] for entry in client.executors()] == [user.name]


def test_requests_at_once_start_one_executor(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start()
    clients = [helper.client() for _ in range(3)]
    asked = [(client, client.send(op="ensure", user=alice.name)) for client in clients for _ in range(10)]
    replies = [client.wait_for(one) for client, one in asked]
    assert {reply["result"] for reply in replies} <= {"started", "running", "failed"}
    assert len({reply["pid"] for reply in replies if reply["result"] != "failed"}) == 1
    assert len(running(alice)) == 1
    assert helper.events(alice.name).count("started") == 1


@pytest.mark.parametrize("point", POINTS)
def test_a_second_request_waits_for_the_worker_that_hangs(helper: HelperUnderTest, alice: OsUser, point: str) -> None:
    helper.start(stop_points=True)
    reached, client = helper.stop_next_worker(point), helper.client()
    first = client.send(op="ensure", user=alice.name)
    worker = stopped_worker(helper, reached)
    second = helper.client()
    again = second.send(op="ensure", user=alice.name)
    second.ask("list", after="")
    assert helper.workers() == [worker]
    os.kill(worker, signal.SIGCONT)
    replies = [client.wait_for(first), second.wait_for(again)]
    assert [reply["pid"] for reply in replies] == [worker, worker]
    assert running(alice) == [worker]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_worker_is_a_failed_start_and_leaves_nothing(
    helper: HelperUnderTest, alice: OsUser, point: str
) -> None:
    helper.start(stop_points=True)
    reached, client = helper.stop_next_worker(point), helper.client()
    asked = client.send(op="ensure", user=alice.name)
    os.kill(stopped_worker(helper, reached), signal.SIGKILL)
    reply = client.wait_for(asked)
    assert (reply["result"], reply["reason"]) == ("failed", "spawn_failed")
    assert all_of(alice) == []
    executed_nothing = ["request", "result"]
    after_g = ["request", "started", "exited", "result"]
    assert helper.events(alice.name) == (after_g if point == "after_G" else executed_nothing)
    starts_afterwards(helper, alice)


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_hangs_is_killed_at_its_deadline(helper: HelperUnderTest, alice: OsUser, point: str) -> None:
    """After G the process is the user's own to stop; a deadline runs there, too."""
    helper.start(stop_points=True, limits=SHORT)
    reached, client = helper.stop_next_worker(point), helper.client()
    asked = client.send(op="ensure", user=alice.name)
    worker = stopped_worker(helper, reached)
    reply = client.wait_for(asked)
    expected = "lookup_timeout" if point == "looking_up" else "prepare_failed"
    assert (reply["result"], reply["reason"]) == ("failed", expected)
    wait_for(lambda: is_gone(worker), 30.0, "the worker's end")
    assert all_of(alice) == []
    starts_afterwards(helper, alice)


def test_a_look_up_that_hangs_delays_nobody_else(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser, record_property: Callable[[str, object], None]
) -> None:
    helper.start(stop_points=True, limits={"lookup_timeout": 2.0})
    client = helper.client()
    reached = helper.stop_next_worker("looking_up")
    asked = client.send(op="ensure", user=alice.name)
    worker = stopped_worker(helper, reached)
    assert client.ensure(bob.name)["result"] == "started"
    assert client.ensure(bob.name)["result"] == "running"
    assert state_of(worker) == "T"
    assert not client.is_answered(asked)
    results = [r for r in helper.audit() if r["event"] == "result" and r["user"] == bob.name]
    record_property("ms from request to executor beside a hanging look-up", results[0]["duration_ms"])
    assert client.wait_for(asked)["reason"] == "lookup_timeout"


def paused_between_r_and_g(helper: HelperUnderTest, user: OsUser) -> tuple[int, int]:
    """Stop the supervisor when the worker has become the user and said R; give the pids of both."""
    worker = stopped_worker(helper, helper.marks / "before_R.reached")
    os.kill(helper.pid, signal.SIGSTOP)
    wait_for(lambda: state_of(helper.pid) == "T", 30.0, "the supervisor's stop")
    os.kill(worker, signal.SIGCONT)

    def waits_for_g() -> bool:
        is_the_user = status_of(worker)["Uid"] == [str(user.uid)] * 4
        return is_the_user and state_of(worker) == "S" and descriptors_of(worker).get(0) == "/dev/null"

    wait_for(waits_for_g, 30.0, "the worker at R")
    return worker, helper.pid


@pytest.mark.needs("trace")
def test_a_worker_killed_between_r_and_g_is_a_failed_start(helper: HelperUnderTest, alice: OsUser) -> None:
    """What it said and its end come in one round of the poll loop."""
    helper.start(stop_points=True)
    helper.stop_next_worker("before_R")
    client = helper.client()
    asked = client.send(op="ensure", user=alice.name)
    worker, supervisor = paused_between_r_and_g(helper, alice)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: is_gone(worker), 30.0, "the worker's end")
    os.kill(supervisor, signal.SIGCONT)
    assert client.wait_for(asked)["reason"] == "spawn_failed"
    assert all_of(alice) == []
    assert helper.is_alive()
    starts_afterwards(helper, alice)


@pytest.mark.needs("trace")
def test_a_supervisor_killed_between_r_and_g_leaves_no_process(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start(stop_points=True)
    helper.stop_next_worker("before_R")
    helper.client().send(op="ensure", user=alice.name)
    worker, _ = paused_between_r_and_g(helper, alice)
    helper.kill()
    wait_for(lambda: is_gone(worker), 30.0, "the worker's end")
    assert all_of(alice) == []
    helper.start_again()
    assert helper.client().executors() == []
    starts_afterwards(helper, alice)


def test_a_worker_stopped_after_g_is_never_adopted_as_an_executor(helper: HelperUnderTest, alice: OsUser) -> None:
    """The state file names it, its uid is right; but it has executed nothing, and may do so at any time."""
    helper.start(stop_points=True, limits=SHORT)
    reached = helper.stop_next_worker("after_G")
    helper.client().send(op="ensure", user=alice.name)
    worker = process_id(stopped_worker(helper, reached))
    helper.kill()
    helper.start_again()
    client = helper.client()
    assert client.executors() == []
    starts_afterwards(helper, alice)
    assert not worker.alive()
    assert worker.pid not in running(alice)


def test_a_worker_whose_child_keeps_the_pipe_open_does_not_stop_the_supervisor(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser
) -> None:
    """An NSS or PAM module may fork; what it leaves behind holds the worker's end of the pipe."""
    helper.start(stop_points=True)
    reached, client = helper.stop_next_worker("looking_up"), helper.client()
    asked = client.send(op="ensure", user=alice.name)
    worker = stopped_worker(helper, reached)
    pipe = next(
        number for number, to in descriptors_of(worker).items() if to[:5] == "pipe:" and is_written(worker, number)
    )
    held = os.open(f"/proc/{worker}/fd/{pipe}", os.O_WRONLY)
    try:
        os.kill(worker, signal.SIGKILL)
        assert client.ensure(bob.name)["result"] == "started"
        assert client.wait_for(asked)["reason"] == "spawn_failed"
    finally:
        os.close(held)


def is_written(pid: int, descriptor: int) -> bool:
    flags = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().partition("flags:")[2].split()[0]
    return descriptor > 2 and int(flags, 8) & os.O_ACCMODE == os.O_WRONLY


@pytest.mark.parametrize("spare", range(4))
def test_a_host_without_descriptors_is_at_capacity_and_recovers(
    helper: HelperUnderTest, alice: OsUser, spare: int
) -> None:
    helper.start()
    client = helper.client()
    client.ask("list", after="")
    limits = resource.prlimit(helper.pid, resource.RLIMIT_NOFILE)
    open_now = max(descriptors_of(helper.pid)) + 1
    resource.prlimit(helper.pid, resource.RLIMIT_NOFILE, (open_now + spare, limits[1]))
    reply = client.ensure(alice.name)
    assert (reply["result"], reply["reason"]) == ("failed", "at_capacity")
    resource.prlimit(helper.pid, resource.RLIMIT_NOFILE, limits)
    starts_afterwards(helper, alice)


HOSTILE: Final = {
    "a command": "a;id",
    "a path": "../x",
    "a substitution": "$(id)",
    "backquotes": "`id`",
    "an option": "-rf",
    "nothing": "",
    "900 characters": "a" * 900,
    "33 characters": "a" * 33,
    "root": "root",
    "root in capitals": "Root",
    "a system account": "daemon",
    "a newline at the end": "{alice}\n",
    "a record of its own": '{alice}"}\n{"seq":1,"event":"started"}',
    "digits": "70001",
    "a Kelvin sign": "\u212a{alice}",
    "NUL": "{alice}\0",
    "NUL in front": "\0{alice}",
    "bidi": "\u202e{alice}",
    "half a character": "\ud800{alice}",
    "a blank": "{alice} ",
    "a slash": "{alice}/x",
    "dots": "..",
    "a dot in front": ".{alice}.new",
    "a dot at the end": "{alice}.",
    "the lock of a uid": ".uid-0",
    "another's workspace": "{alice}+k1",
    "a quote of KNIME's rule": "{alice}' OR user = 'bob",
    "a placeholder": "{{workspace}}",
    "an escape sequence": "\x1b[2J\x7f",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_name_starts_and_makes_nothing_and_is_one_line(
    helper: HelperUnderTest, alice: OsUser, case: str
) -> None:
    name = HOSTILE[case].replace("{alice}", alice.name).replace("{{", "{").replace("}}", "}")
    helper.start()
    trees = [helper.installation.workspaces, helper.installation.temp, helper.installation.homes]
    trees += [helper.installation.run / "executors"]
    before = ([facts_of(tree) for tree in trees], names_in("/"), names_in(helper.installation.root))
    client = helper.client()
    reply = client.ensure(name)
    assert reply["result"] == "refused"
    assert reply["reason"] in {"invalid_name", "denied_user", "uid_out_of_range"}
    after = ([facts_of(tree) for tree in trees], names_in("/"), names_in(helper.installation.root))
    assert after == before
    assert client.executors() == []
    records = [r for r in helper.audit() if r["op"] == "ensure"]
    assert [r["event"] for r in records] == (["request", "result"] if case == "a system account" else ["result"])
    assert (records[-1]["decision"], records[-1]["reason"]) == ("refused", reply["reason"])
    for line in [*helper.installation.audit_log.read_bytes().splitlines(), *helper.log.read_bytes().splitlines()]:
        assert line.isascii()
        assert line.decode().isprintable()
    assert len(helper.installation.audit_log.read_bytes().split(b"\n")) - 1 == len(helper.audit())
    assert all(r["event"] != "started" for r in helper.audit())


def test_a_name_of_five_thousand_characters_does_not_even_arrive(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start()
    client = helper.client()
    client.send(op="ensure", user="a" * 5000)
    second = helper.client()
    assert second.ensure(alice.name)["result"] == "started"
    assert helper.events("a" * 80 + "...") == []
