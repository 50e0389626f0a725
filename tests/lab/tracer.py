"""Hold on to a process as a debugger does, or freeze it: what ends only when somebody lets go of it.

A traced process that was killed stays a zombie until its tracer has looked (ptrace(2)). A process in a frozen cgroup
does not even take SIGKILL until it is thawed, which is how one looks that waits for a dead server (cgroups(7)).
"""

import ctypes
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.lab.processes import wait_for

_PTRACE_SEIZE: Final = 0x4206


@contextmanager
def traced(pid: int) -> Iterator[None]:
    """Trace a process from another one while the block runs; afterwards its end is its parent's to see."""
    reading, writing = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        try:
            if ctypes.CDLL(None, use_errno=True).ptrace(_PTRACE_SEIZE, pid, 0, 0) == 0:
                os.write(writing, b"T")
                signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"T", "ptrace(2) is not permitted here"
        yield
    finally:
        os.close(reading)
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)


class Freezer:
    """A cgroup of the old freezer, which every kernel still has; whoever is put into it stands still."""

    def __init__(self, directory: Path) -> None:
        self._group = directory

    def freeze(self, pid: int) -> None:
        """Put the process in, and wait until it stands still."""
        (self._group / "cgroup.procs").write_text(str(pid), encoding="ascii")
        (self._group / "freezer.state").write_text("FROZEN", encoding="ascii")
        wait_for(lambda: self._state() == "FROZEN", 30.0, "the frozen process")

    def thaw(self) -> None:
        """Let everybody go on."""
        (self._group / "freezer.state").write_text("THAWED", encoding="ascii")
        wait_for(lambda: self._state() == "THAWED", 30.0, "the thaw")

    def is_empty(self) -> bool:
        """Say whether nobody is in it any more."""
        return not (self._group / "cgroup.procs").read_text(encoding="ascii").strip()

    def _state(self) -> str:
        return (self._group / "freezer.state").read_text(encoding="ascii").strip()


@contextmanager
def freezer() -> Iterator[Freezer]:
    """Give a freezer of one's own; whoever is in it at the end is thawed."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["/usr/bin/mount", "-t", "cgroup", "-o", "freezer", "freezer", place], check=True)
        group = Path(place, f"kpr-{secrets.token_hex(4)}")
        try:
            group.mkdir()
            made = Freezer(group)
            try:
                yield made
            finally:
                made.thaw()
                wait_for(made.is_empty, 30.0, "the end of whoever was frozen")
                group.rmdir()
        finally:
            subprocess.run(["/usr/bin/umount", place], check=True)
