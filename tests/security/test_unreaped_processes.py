"""A PID 1 that never waits for what ended, as a container's is that runs the command itself, locks no user out.

A zombie keeps its user waiting only where somebody will let it go: the helper, whose child it is, or who traces it.
What looks like a zombie and still has running threads has not ended.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.lab.accounts import OsUser
from tests.lab.helper_under_test import HelperUnderTest, executed, state_of, status_of
from tests.lab.orphans import unreaped_orphans
from tests.lab.processes import process_id, wait_for
from tests.lab.tracer import traced

PATIENCE: Final = 30.0
FIRST_THREAD_ENDS: Final = """\
import ctypes, signal, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=signal.pause).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture
def helper(laid_out: HelperUnderTest) -> Iterator[HelperUnderTest]:
    """Return a helper whose orphans nobody reaps."""
    with unreaped_orphans():
        yield laid_out
        laid_out.reset()


def first_thread_ends(helper: HelperUnderTest, user: OsUser) -> str:
    """Return a command that goes on in a second thread, whatever SIGTERM says, while its first one is a zombie."""
    program = helper.installation.knime_home / "knime.d" / f"{user.name}.py"
    program.write_text(FIRST_THREAD_ENDS, encoding="ascii")
    return f"/usr/bin/python3 -IS {program}"


def wait_for_another(helper: HelperUnderTest, user: OsUser, old: int) -> None:
    """Wait until the user has a new executor; the old one is a zombie all the time."""
    wait_for(lambda: state_of(old) == "Z", PATIENCE, "the old executor's end")
    client = helper.client()
    wait_for(lambda: client.ensure(user.name)["result"] == "started", PATIENCE, "a new executor")
    assert state_of(old) == "Z", "it would prove nothing if somebody had reaped it"


@pytest.mark.parametrize("how", ["in good order", "killed"])
def test_an_adopted_executor_that_ends_makes_room_for_another(helper: HelperUnderTest, alice: OsUser, how: str) -> None:
    helper.start()
    pid = helper.client().ensure(alice.name)["pid"]
    helper.stop() if how == "in good order" else helper.kill()
    helper.start_again()
    assert helper.client().ensure(alice.name)["result"] == "running"
    os.kill(pid, signal.SIGKILL)
    wait_for_another(helper, alice, pid)
    assert helper.events(alice.name).count("exited") == 1


def test_an_executor_that_ended_without_a_helper_makes_room(helper: HelperUnderTest, alice: OsUser) -> None:
    """The state file, and the zombie that fits it in each fact, are there when the next helper starts."""
    helper.start()
    pid = helper.client().ensure(alice.name)["pid"]
    helper.kill()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state_of(pid) == "Z", PATIENCE, "the executor's end")
    helper.start_again()
    wait_for_another(helper, alice, pid)
    assert helper.events(alice.name).count("exited") == 1
    helper.kill()
    helper.start_again()
    assert helper.client().ensure(alice.name)["result"] == "running", "the zombie is no executor for the next one, too"


@pytest.mark.parametrize("point", ["looking_up", "before_R", "after_G"])
def test_a_worker_that_died_with_its_helper_makes_room(helper: HelperUnderTest, alice: OsUser, point: str) -> None:
    helper.start(stop_points=True)
    reached = helper.stop_next_worker(point)
    helper.client().send(op="ensure", user=alice.name)
    wait_for(reached.exists, PATIENCE, "the worker")
    (worker,) = helper.workers()
    helper.kill()
    os.kill(worker, signal.SIGKILL)
    helper.start_again()
    wait_for_another(helper, alice, worker)


def test_a_child_that_an_ended_executor_left_as_a_zombie_makes_room(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start()
    helper.program_of(alice, "/bin/sleep 100000 &\necho $! > child")
    client = helper.client()
    pid = client.ensure(alice.name)["pid"]
    note = helper.installation.workspace(alice) / "child"
    wait_for(lambda: note.exists() and note.read_text(encoding="ascii").endswith("\n"), PATIENCE, "the child")
    child = int(note.read_text(encoding="ascii"))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state_of(child) == "Z", PATIENCE, "the child's end")
    wait_for(lambda: client.ensure(alice.name)["result"] == "started", PATIENCE, "a new executor")
    assert state_of(child) == "Z"


@pytest.mark.needs("trace")
def test_an_adopted_zombie_that_another_account_traces_waits_for_it(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser
) -> None:
    """The tracer is root, as an administrator's strace is; when it lets go, the zombie stays and the user goes on."""
    helper.start()
    pid = helper.client().ensure(alice.name)["pid"]
    helper.kill()
    helper.start_again()
    client = helper.client()
    with traced(pid):
        os.kill(pid, signal.SIGKILL)
        helper.wait_for_event(PATIENCE, event="exited", user=alice.name, pid=pid)
        # A look for what is left comes every 0.1 s: bob's start takes longer than the first of them.
        assert client.ensure(bob.name)["result"] == "started"
        assert client.ensure(alice.name)["reason"] == "backing_off"
        kept = helper.installation.run / "executors" / alice.name
        assert json.loads(kept.read_text(encoding="ascii"))["pid"] == pid
    wait_for_another(helper, alice, pid)


def test_an_adopted_executor_whose_first_thread_ended_runs(helper: HelperUnderTest, alice: OsUser) -> None:
    """/proc shows its first thread's state, ``Z``; the process has not ended."""
    helper.program_of(alice, f"exec {first_thread_ends(helper, alice)}")
    helper.start()
    pid = helper.client().ensure(alice.name)["pid"]
    wait_for(lambda: state_of(pid) == "Z", PATIENCE, "the first thread's end")
    helper.kill()
    helper.start_again()
    client = helper.client()
    assert [entry["pid"] for entry in client.executors()] == [pid]
    assert client.ensure(alice.name)["result"] == "running"
    os.kill(pid, signal.SIGKILL)
    wait_for_another(helper, alice, pid)


def test_a_left_over_whose_first_thread_ended_is_ended_first(helper: HelperUnderTest, alice: OsUser) -> None:
    """It may hold the user's lock files and a connection to the broker, as any child that outlives its launcher."""
    helper.program_of(alice, f"{first_thread_ends(helper, alice)} &\necho $! > child")
    helper.start(limits={"stop_grace": 1.0})
    client = helper.client()
    pid = client.ensure(alice.name)["pid"]
    note = helper.installation.workspace(alice) / "child"
    wait_for(lambda: note.exists() and note.read_text(encoding="ascii").endswith("\n"), PATIENCE, "the child")
    child = int(note.read_text(encoding="ascii"))
    wait_for(lambda: state_of(child) == "Z" and executed(child), PATIENCE, "the first thread's end")
    left_over = process_id(child)
    assert left_over.alive(), "its second thread runs"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: client.ensure(alice.name)["result"] == "started", PATIENCE, "a new executor")
    assert not left_over.alive()
    assert Path(f"/proc/{child}").exists(), "a zombie, whose parent does not wait for it"
    assert status_of(child)["Threads"] == ["1"]
