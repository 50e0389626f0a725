"""A worker as the supervisor holds it: a child, its pidfd, the pipe that it reports on, the pipe that lets it execute.

It trusts the kernel. What the worker says is a line of JSON at a time, bounded; the end of its pipe is execve or death.
"""

import contextlib
import json
import os
import signal
from typing import Any, Final

from root_helper import worker
from root_helper.config import HelperConfig

_LONGEST_LINE: Final = 4096


class WorkerProcess:
    """One worker. ``report`` and ``pidfd`` are to be watched; ``report`` is -1 when nothing is heard any more."""

    def __init__(self, task: worker.Task, config: HelperConfig) -> None:
        """Fork it.

        Raises:
            OSError: there is no process or descriptor left; nothing was begun.
        """
        opened: list[int] = []
        try:
            opened += os.pipe()
            opened += os.pipe()
            self.report, report, go, self._go = opened
            # PRIVILEGED: the child is the worker; it never returns from run().
            self.pid = os.fork()
            if self.pid == 0:
                worker.run(task, config, report, go)
            self.pidfd = self._opened_pidfd()
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        os.close(report)
        os.close(go)
        os.set_blocking(self.report, False)
        self._said = b""

    def heard(self) -> tuple[list[dict[str, Any]], bool]:
        """Give what it said since, and whether that was all: then it is to be heard no more.

        Raises:
            BlockingIOError: it has said nothing.
        """
        chunk = os.read(self.report, _LONGEST_LINE)
        *lines, self._said = (self._said + chunk).split(b"\n")
        return [json.loads(line) for line in lines], not chunk or len(self._said) > _LONGEST_LINE

    def hear_no_more(self) -> None:
        """Close the pipe, which is watched no more; what holds the other end does not matter any more."""
        os.close(self.report)
        self.report = -1

    def release(self) -> None:
        """Let it execute."""
        with contextlib.suppress(BrokenPipeError):  # it died: its pipe tells
            os.write(self._go, b"G")

    def kill(self) -> None:
        """End it and what it started; it is not reaped yet, so that the number is its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # PRIVILEGED: its own group (it called setsid), so that mkhomedir_helper ends, too.
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # PRIVILEGED: and itself, should it not have come to setsid.
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reaped(self) -> bool:
        """Reap it; False as long as a tracer holds on to it."""
        if os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG) is None:
            return False
        os.close(self.pidfd)
        self.forget()
        return True

    def forget(self) -> None:
        """Close the pipe that would let it execute: it has executed, or it is gone."""
        os.close(self._go)

    def _opened_pidfd(self) -> int:
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            # PRIVILEGED: our own child of a moment ago, not reaped yet, so that the pid is its own.
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
