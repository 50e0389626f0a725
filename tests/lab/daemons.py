"""The two daemons, started with the separation that their units give them.

The helper runs as root, the listener as knime-listener: that user's group and no other, no capability, no way to one;
each has an environment of its own, no descriptor of ours, and its secret through $CREDENTIALS_DIRECTORY. They are
ended and killed by pid. What they say on stderr goes to a file of the installation.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.accounts import LISTENER
from tests.lab.installation import Installation
from tests.lab.processes import ReadinessSocket, end, process_id, start, tail


class Daemon:
    """One of the two daemons of an installation."""

    def __init__(self, installation: Installation, name: str, noted: Callable[[int], None] = lambda _pid: None) -> None:
        """Start nothing yet; ``noted`` will hear of each pid at once."""
        self.installation = installation
        self.name = name
        self.command = {"helper": "knime-root-helper", "listener": "knime-broker-listener"}[name]
        self.title = self.command
        self.state = {"helper": installation.state, "listener": installation.listener_state}[name]
        self.log = installation.logs / f"{name}.log"
        self.messages = str(self.log)
        self.prefix: list[str] = []
        """A command that executes the daemon in other circumstances."""
        self._noted = noted
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The daemon's main process.

        Raises:
            RuntimeError: it was not started, or was ended by us.
        """
        if self._process is None:
            raise RuntimeError(f"the {self.name} is not running")
        return self._process.pid

    def start(self, seconds: float = 60.0) -> None:
        """Start the daemon and wait until it says that it is ready."""
        ready = ReadinessSocket(self.installation.root / f"ready-{self.name}")
        try:
            self._process = start(
                self.installation.command(self.command),
                prefix=self.prefix,
                environment={
                    "CREDENTIALS_DIRECTORY": str(self.installation.credentials(self.name)),
                    "STATE_DIRECTORY": str(self.state),
                    "RUNTIME_DIRECTORY": str(self.installation.listener_run),
                    "NOTIFY_SOCKET": str(ready.path),
                },
                log=self.log,
                user=LISTENER if self.name == "listener" else None,
                umask=0o077,
            )
            self._noted(self._process.pid)
            ready.wait(self._process, seconds, self.log)
        finally:
            ready.close()

    def stop(self, grace: float = 20.0) -> int:
        """End the daemon with SIGTERM; give its exit status, None-safe for one that was not started (0)."""
        return self._ended(signal.SIGTERM, grace)

    def kill(self) -> int:
        """End the daemon with SIGKILL, as the kernel's OOM killer would."""
        return self._ended(signal.SIGKILL, 5.0)

    def restart(self) -> None:
        """Stop and start the daemon."""
        self.stop()
        self.start()

    def wait(self, seconds: float = 60.0) -> int:
        """Wait for a daemon that ends by itself; give its exit status."""
        if self._process is None:
            raise RuntimeError(f"the {self.name} is not running")
        return self._process.wait(seconds)

    def last_messages(self, lines: int) -> str:
        """Give the last lines that the daemon wrote."""
        return tail(self.log, lines)

    def log_text(self) -> str:
        """Give all that the daemon has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait_for_log(self, text: str, seconds: float = 30.0) -> None:
        """Wait until the log has this text.

        Raises:
            TimeoutError: it has not within that time; with the last lines.
        """
        deadline = time.monotonic() + seconds
        while text not in self.log_text():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} not in {self.log} within {seconds} s:\n{tail(self.log)}")
            time.sleep(0.02)

    def _ended(self, by: signal.Signals, grace: float) -> int:
        if self._process is None:
            return 0
        end(process_id(self._process.pid), grace=grace, by=by)
        status = self._process.wait()
        self._process = None
        return status


def check(installation: Installation, command: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon's ``--check``, as root."""
    arguments = [*installation.command(command), "--check"]
    return subprocess.run(arguments, env={}, capture_output=True, text=True, check=False, cwd=Path("/"))
