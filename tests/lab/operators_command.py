"""``knime-peruser`` of an installation, run as an operator runs it: a process with an exit status and two outputs."""

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.lab.installation import Installation
from tests.lab.processes import PATH


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


def command(installation: Installation, *words: str, user: str | None = None) -> list[str]:
    """Give the command line; as another user it has that user's groups, and no other."""
    drop = [] if user is None else ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--"]
    return [*drop, *installation.operator(*words)]


def started(
    installation: Installation, *words: str, user: str | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start a command with an environment of its own and no terminal."""
    return subprocess.Popen(
        command(installation, *words, user=user),
        env={"PATH": PATH, "LANG": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path("/"),
    )


def run(installation: Installation, *words: str, user: str | None = None, seconds: float = 60.0) -> Said:
    """Run a command to its end."""
    return ended(started(installation, *words, user=user), seconds)


def ended(process: subprocess.Popen[str], seconds: float = 60.0) -> Said:
    """Wait for the end of a command that was started."""
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Said(process.returncode, out, err)
