"""Start a program as another user, wait until it is ready, end it: by the id of a process that was started here.

A process is ended by its pid, and only while its start time is still the one noted, so that a pid given to another
process is left alone. Never by a name.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotReadyError(Exception):
    """A program ended or stayed silent instead of getting ready."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told from a later one of the same pid by its start time in clock ticks since boot (proc(5))."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Return True if this very process runs; so does one of which only the first thread has ended."""
        state, threads, started = _stat(self.pid) or ("X", 0, 0)
        return started == self.started and (state not in "ZX" or threads > 1)


def process_id(pid: int) -> ProcessId:
    """Give the identity of a process that runs now."""
    _, _, started = _stat(pid) or ("X", 0, 0)
    return ProcessId(pid, started)


def start(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    log: Path,
    user: str | None = None,
    umask: int = 0o022,
    cwd: str | Path = "/",
    prefix: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own with this environment only and no descriptor of ours but the log.

    As another ``user`` it has that user's primary group, no other, and no way to a capability. ``prefix`` is a command
    that executes it, as root, in circumstances of its own.
    """
    drop = [] if user is None else ["setpriv", "--reuid", user, "--regid", _primary_group(user), *_NOTHING_MORE]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*prefix, *drop, *map(str, command)],
            env={"PATH": PATH, "LANG": "C.UTF-8", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            umask=umask,
            start_new_session=True,
        )


def end(process: ProcessId, *, grace: float = 15.0, by: signal.Signals = signal.SIGTERM) -> None:
    """End a process: SIGTERM, and SIGKILL after ``grace`` seconds. One that is gone already is fine."""
    for sent, patience in ((by, grace), (signal.SIGKILL, 30.0)):
        if not process.alive():
            return
        with suppress(ProcessLookupError):
            os.kill(process.pid, sent)
        with suppress(TimeoutError):
            wait_for(lambda: not process.alive(), patience, f"end of process {process.pid}")
            return
    raise TimeoutError(f"process {process.pid} outlives SIGKILL")


def processes_of(uids: Sequence[int]) -> Iterator[ProcessId]:
    """Return the live processes whose real uid is one of these: for the accounts that were made for a run."""
    for entry in own_namespace():
        with suppress(OSError):
            found = process_id(int(entry.name))
            if int(status_words(entry, "Uid")[0]) in uids and found.alive():
                yield found


def own_namespace() -> Iterator[Path]:
    """Return the directory in /proc of each process, without those of a nested PID namespace.

    A container's accounts, programs and uids are another run's, whatever they are called.
    """
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            # NSpid (proc_pid_status(5)): a pid for each namespace from ours down to the process's own; not everywhere.
            if entry.name.isdigit() and len(status_words(entry, "NSpid")) <= 1:
                yield entry


def status_words(entry: Path, name: str) -> list[str]:
    """Return the words of a line of a process's ``status``."""
    status = (entry / "status").read_text(encoding="utf-8", errors="replace")
    return status.partition(f"\n{name}:")[2].partition("\n")[0].split()


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it did not within ``seconds``; the text names ``what`` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def cpu_seconds(pid: int) -> float:
    """Give the processor time that a process has used: utime and stime, proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ReadinessSocket:
    """Where a program says READY=1 to (sd_notify(3)), at a path that every user may write to."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        path.chmod(0o666)

    def wait(self, process: subprocess.Popen[bytes], seconds: float, log: Path) -> None:
        """Wait for READY=1 of a program that was just started.

        Raises:
            NotReadyError: it ended, or was not ready in time; with the last lines of its log.
        """
        deadline = time.monotonic() + seconds
        self._socket.settimeout(0.05)
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                if b"READY=1" in self._socket.recv(4096).split(b"\n"):
                    return
                continue
            if process.poll() is not None:
                raise NotReadyError(f"{process.args!r} ended with {process.returncode}:\n{tail(log)}")
        raise NotReadyError(f"{process.args!r} not ready within {seconds} s:\n{tail(log)}")

    def close(self) -> None:
        """Take the socket away."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


def tail(log: Path, lines: int = 40) -> str:
    """Give the last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if log.exists() else ""


_NOTHING_MORE: Final = ("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--")


def _primary_group(user: str) -> str:
    return subprocess.run(["id", "-g", user], check=True, capture_output=True, text=True).stdout.strip()


def _stat(pid: int) -> tuple[str, int, int] | None:
    """Return state, number of threads and start time."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[17]), int(fields[19])
