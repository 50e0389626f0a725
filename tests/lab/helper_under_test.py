"""The real root helper for a test: an installation without a broker, users made for the run, the listener's side.

The executor is a line of shell that a test can replace for each user; it sleeps unless told otherwise, so that what
it was given can be read from /proc. Nothing of the helper is replaced but what a test names: the gate's program, or
points at which a worker stops itself. Everything is below one directory and taken back.
"""

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from protocol.record import FIRST_PREV, fault_in
from tests.lab.accounts import LISTENER, Accounts, OsUser, SystemUsers, end_processes, run_prefix
from tests.lab.broker_node import BrokerAccount
from tests.lab.installation import CHECKOUT, Installation
from tests.lab.listener_client import ListenerClient
from tests.lab.processes import NotReadyError, ReadinessSocket, end, process_id, start, tail, wait_for
from tests.lab.site import LAB

_NOBODY: Final = BrokerAccount("nobody", ("", "", ""), "no-broker-listens-here")
_NO_BROKER: Final = SimpleNamespace(port=5672, listener=_NOBODY, executors=_NOBODY)

_PROGRAM: Final = """\
#!/bin/sh
if [ -r "$0.d/$LOGNAME" ]; then . "$0.d/$LOGNAME"; fi
exec sleep 100000
"""

_STOP_POINTS: Final = """\
import os, signal
from root_helper import worker

def stopping(name, call):
    def wrapped(first, *rest, **named):
        mark = os.path.join({marks!r}, name)
        if os.path.exists(mark):
            os.rename(mark, mark + ".reached")
            os.kill(os.getpid(), signal.SIGSTOP)
        return call(first, *rest, **named)
    return wrapped

worker._who = stopping("looking_up", worker._who)
worker.become_user = stopping("before_R", worker.become_user)
worker._execute = stopping("after_G", worker._execute)
"""


class HelperUnderTest:
    """One helper and what belongs to it; ``create`` it, ``start`` it as often as you like, ``remove`` it."""

    def __init__(self) -> None:
        prefix = run_prefix()
        # The installation wants a broker for its URLs only; nobody connects.
        self.installation = Installation(LAB / f"{prefix}helper", _NO_BROKER)  # type: ignore[arg-type]
        self.accounts = Accounts(self.installation.homes, prefix)
        self.log = self.installation.logs / "helper.log"
        self.state = self.installation.state
        self.marks = self.installation.root / "marks"
        self._system_users = SystemUsers()
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[ListenerClient] = []

    def create(self) -> None:
        """Lay everything out."""
        self._system_users.create()
        self.installation.create()
        self._install_program()
        self.marks.mkdir()
        self.marks.chmod(0o777)  # the user that a worker has become looks there, too

    def remove(self) -> None:
        """End what runs and take everything back."""
        self.reset()
        self.accounts.remove()
        self._system_users.remove()
        self.installation.remove()

    def reset(self) -> None:
        """End the helper and all executors and forget what they left, so that the next test finds a new host."""
        self.kill()
        for client in self._clients:
            client.close()
        self._clients.clear()
        end_processes([user.uid for user in self.users()])
        held = self.installation
        for directory in (held.run, held.workspaces, held.temp, held.homes, held.logs, self.state, self.marks):
            _empty(directory)
        self._install_program()
        shutil.copyfile(CHECKOUT / "root_helper/gate.py", held.root / "lib/root_helper/gate.py")

    def users(self) -> list[OsUser]:
        """Give the users made for this helper."""
        return list(self.accounts._users)

    def program_of(self, user: OsUser, shell: str) -> None:
        """Give the user's executor this text of shell to run before it would sleep."""
        (self.installation.knime_home / "knime.d" / user.name).write_text(shell + "\n", encoding="utf-8")

    def replace_gate(self, program: str) -> None:
        """Put another program in the gate's place, until ``reset``."""
        (self.installation.root / "lib/root_helper/gate.py").write_text(program, encoding="utf-8")

    def stop_next_worker(self, point: str) -> Path:
        """Make the next worker stop itself: ``looking_up``, ``before_R`` or ``after_G``; give the mark of it."""
        (self.marks / point).touch()
        return self.marks / f"{point}.reached"

    def configure(self, **changes: Any) -> None:
        """Write helper.toml with these changes; by default many starts a minute are allowed."""
        base: dict[str, Any] = {"limits": {"starts_per_user_per_minute": 1000, "starts_per_second": 1000}}
        for table, values in changes.items():
            base[table] = {**base.get(table, {}), **values}
        self.installation.write_helper_toml(**base)

    def start(self, *, stop_points: bool = False, **changes: Any) -> None:
        """Start the helper with these changes of its configuration and wait until it is ready."""
        self.configure(**changes)
        self.start_again(stop_points=stop_points)

    def start_again(self, *, stop_points: bool = False) -> None:
        """Start the helper with the configuration that is there."""
        ready = ReadinessSocket(self.installation.root / "ready")
        try:
            self._process = start(
                self.command(stop_points=stop_points),
                environment={**self.environment(), "NOTIFY_SOCKET": str(ready.path)},
                log=self.log,
            )
            ready.wait(self._process, 60.0, self.log)
        finally:
            ready.close()

    def command(self, *words: str, stop_points: bool = False) -> list[str]:
        """Give the helper's command line, or one that also has the stop points."""
        command = self.installation.command("knime-root-helper")
        if stop_points:
            library = str(self.installation.root / "lib")
            patched = f"import sys; sys.path.insert(0, {library!r})\n{_STOP_POINTS.format(marks=str(self.marks))}"
            patched += "from root_helper.__main__ import main\nsys.exit(main())\n"
            command = [sys.executable, "-I", "-c", patched, *command[1:]]
        return [*command, *words]

    def environment(self) -> dict[str, str]:
        """Give what systemd would set."""
        credentials = str(self.installation.credentials("helper"))
        return {"CREDENTIALS_DIRECTORY": credentials, "STATE_DIRECTORY": str(self.state)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, as root."""
        environment = {"PATH": "/usr/bin:/bin", **self.environment()}
        return subprocess.run(
            self.command(*words), env=environment, capture_output=True, text=True, check=False, cwd="/", timeout=30
        )

    @property
    def pid(self) -> int:
        """The supervisor's pid."""
        if self._process is None:
            raise NotReadyError("the helper is not running")
        return self._process.pid

    def is_alive(self) -> bool:
        """Tell whether the supervisor still is the process that was started."""
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Wait for a helper that ends by itself; give its exit status."""
        if self._process is None:
            raise NotReadyError("the helper is not running")
        status = self._process.wait(60)
        self._process = None
        return status

    def stop(self) -> int:
        """End the helper with SIGTERM; give its exit status."""
        end(process_id(self.pid), grace=20.0)
        return self.wait()

    def kill(self) -> None:
        """End the helper with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def gate_pid(self) -> int:
        """Give the pid of the gate: the supervisor's child of the gate's account, executed."""
        for _ in range(500):
            for pid in children(self.pid):
                with suppress(OSError):
                    if b"gate.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return pid
            time.sleep(0.01)
        raise NotReadyError(f"no gate\n{tail(self.log)}")

    def workers(self) -> list[int]:
        """Give the supervisor's children that are neither the gate nor have executed anything."""
        return [pid for pid in children(self.pid) if not executed(pid)]

    def client(self) -> ListenerClient:
        """Connect as the listener would, from a process of its account."""
        client = ListenerClient(self.installation.socket)
        self._clients.append(client)
        return client

    def operator(self, op: str, **fields: object) -> dict[str, Any] | None:
        """Ask over the operators' socket, as root; None where no answer came within a second."""
        frame = json.dumps({"v": 1, "id": "op-1", "op": op, **fields}).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(1.0 if op == "ensure" else 30.0)
            connection.connect(str(self.installation.operator_socket))
            connection.send(frame)
            try:
                return dict(json.loads(connection.recv(8192)))
            except TimeoutError:
                return None

    def audit(self) -> list[dict[str, Any]]:
        """Give the records of the log, rotated files first, after checking that they are one chain."""
        path = self.installation.audit_log
        rotated = sorted((p for p in path.parent.glob("audit.jsonl.*")), key=lambda p: int(p.suffix[1:]))
        prev = FIRST_PREV
        records: list[dict[str, Any]] = []
        for line in b"".join(p.read_bytes() for p in (*rotated, path)).splitlines(keepends=True):
            assert line.endswith(b"\n"), "a torn last line"
            record = json.loads(line)
            assert fault_in(record, seq=len(records) + 1, prev=prev) is None, record
            records.append(record)
            prev = record["hash"]
        return records

    def events(self, user: str) -> list[str]:
        """Give the names of a user's events in the log, in order."""
        return [record["event"] for record in self.audit() if record["user"] == user]

    def wait_for_event(self, seconds: float = 30.0, /, **wanted: object) -> dict[str, Any]:
        """Wait for a record with these values; give it."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [r for r in self.audit() if wanted.items() <= r.items()]
            return bool(found)

        wait_for(there, seconds, f"record {wanted} in the audit log")
        return found[-1]

    def _install_program(self) -> None:
        program = self.installation.knime_home / "knime"
        program.write_text(_PROGRAM, encoding="utf-8")
        program.chmod(0o755)
        directory = program.with_name("knime.d")
        directory.mkdir(mode=0o755, exist_ok=True)
        _empty(directory)


@contextmanager
def helper_under_test() -> Iterator[HelperUnderTest]:
    """Give a helper, laid out and not started, and take it back."""
    made = HelperUnderTest()
    try:
        made.create()
        yield made
    finally:
        made.remove()


def status_of(pid: int) -> dict[str, list[str]]:
    """Give /proc/PID/status: each line's words under its name."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: words.split() for name, _, words in (line.partition(":") for line in lines)}


def descriptors_of(pid: int) -> dict[int, str]:
    """Give what each open descriptor of a process leads to."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[int(entry.name)] = str(entry.readlink())
    return found


def names_in(directory: Path | str) -> list[str]:
    """Give the names in a directory, sorted."""
    return sorted(entry.name for entry in Path(directory).iterdir())


def resident_kib(pid: int) -> int:
    """Give a process's resident memory in KiB."""
    return int(status_of(pid)["VmRSS"][0])


def state_of(pid: int) -> str:
    """Give a process's state letter, ``X`` where it is gone."""
    try:
        return status_of(pid)["State"][0]
    except OSError:
        return "X"


def is_gone(pid: int) -> bool:
    """Tell whether nothing of the process is left but perhaps a zombie."""
    return state_of(pid) in "XZ"


def executed(pid: int) -> bool:
    """Tell whether the process has executed a program since it was forked: PF_FORKNOEXEC, sched.h."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return True
    return not int(fields[6]) & 0x40


def children(pid: int) -> list[int]:
    """Give a process's children that are there."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


@contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Be another account for what the kernel notes of who connects: its effective ids and no other group."""
    entry, groups = pwd.getpwnam(name), os.getgroups()
    os.setgroups([])
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def raw_connection(path: Path, account: str = LISTENER, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Connect to a socket of the helper as an account, without ZeroMQ."""
    connection = socket.socket(socket.AF_UNIX, kind)
    try:
        with acting_as(account):
            connection.connect(str(path))  # waits where the backlog is full
        connection.settimeout(5.0)
    except OSError:
        connection.close()
        raise
    return connection


def _empty(directory: Path) -> None:
    for entry in directory.iterdir() if directory.exists() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
