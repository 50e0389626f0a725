"""Which processes the lab takes for a run's own: it ends them, so one too many is another run's executor."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.lab.accounts import Accounts, OsUser, end_processes
from tests.lab.processes import end, own_namespace, process_id, processes_of, wait_for

pytestmark = pytest.mark.needs("root")
SLEEP: Final = ["/bin/sleep", "100000"]
ROOM: Final = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
FIRST_THREAD_ENDS: Final = """\
import ctypes, signal, threading
threading.Thread(target=signal.pause).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture
def user(users: Accounts) -> OsUser:
    return users.user("someone")


@contextmanager
def running(user: OsUser, command: list[str], *prefix: str) -> Iterator[int]:
    """Run a command as the user; return the pid of what was started."""
    ids = ["setpriv", "--reuid", str(user.uid), "--regid", str(user.gid), "--clear-groups", "--"]
    with subprocess.Popen([*prefix, *ids, *command]) as process:
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_users_processes_are_found_and_ended(user: OsUser) -> None:
    with running(user, SLEEP) as pid:
        wait_for(lambda: [one.pid for one in processes_of([user.uid])] == [pid], 30.0, "the process")
        end_processes([user.uid])
        assert not any(processes_of([user.uid]))


@pytest.mark.needs("pid namespace")
def test_a_nested_pid_namespaces_processes_are_left_alone(user: OsUser) -> None:
    """They belong to a run in a container, whose accounts have the same uids."""
    with running(user, SLEEP, *ROOM) as room:
        wait_for(lambda: inside(room, user.uid), 30.0, "the process in the namespace")
        (pid,) = inside(room, user.uid)
        assert not any(processes_of([user.uid]))
        assert pid not in {int(entry.name) for entry in own_namespace()}
        end_processes([user.uid])
        assert process_id(pid).alive()


@pytest.mark.needs("pid namespace")
def test_a_run_inside_a_namespace_finds_its_own_processes(user: OsUser) -> None:
    script = f"""
import subprocess
from tests.lab.processes import processes_of, wait_for
with subprocess.Popen({SLEEP}, user={user.uid}) as process:
    wait_for(lambda: [one.pid for one in processes_of([{user.uid}])] == [process.pid], 30.0, "the process")
    process.kill()
"""
    checkout = Path(__file__).parents[2]
    subprocess.run([*ROOM, sys.executable, "-c", script], check=True, cwd=checkout)


def test_a_process_whose_first_thread_ended_lives_until_the_last(user: OsUser) -> None:
    """Its state is ``Z`` from then on; nobody waits for it afterwards, and it must not count for ever."""
    with running(user, ["/usr/bin/python3", "-IS", "-c", FIRST_THREAD_ENDS]) as pid:
        state = Path(f"/proc/{pid}/stat")
        wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z", 30.0, "the first thread's end")
        assert [one.pid for one in processes_of([user.uid])] == [pid]
        end(process_id(pid))
        assert not any(processes_of([user.uid]))
        assert state.exists()


def test_a_zombie_that_nobody_reaps_is_no_process(user: OsUser) -> None:
    with running(user, ["/bin/sh", "-c", "/bin/sleep 0 & exec /bin/sleep 100000"]) as pid:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        wait_for(lambda: children.read_text(encoding="ascii"), 30.0, "the child")
        wait_for(lambda: [one.pid for one in processes_of([user.uid])] == [pid], 30.0, "the child's end")
        (zombie,) = map(int, children.read_text(encoding="ascii").split())
        assert not process_id(zombie).alive()


def inside(room: int, uid: int) -> list[int]:
    """Return the children of unshare(1) that have become the user."""
    pids = Path(f"/proc/{room}/task/{room}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in pids if os.stat(f"/proc/{pid}/task").st_uid == uid]  # noqa: PTH116 - its owner
