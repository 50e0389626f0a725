"""What a question of ``check`` yields, and what it is given to answer with.

Everything that a question looks at comes through ``Inputs``: a path below ``root``, a program through ``run``. So each
fault can be produced in a tree of files, and no question knows where it is asked. Questions read; none changes
anything, and none prints what a credential holds.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from broker_listener.operator.checks.running import Running
from broker_listener.operator.configuration import Configuration
from broker_listener.operator.listener_socket import Snapshot

TIMEOUT: Final = 5.0


class Level(StrEnum):
    """How grave it is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer: about what, what was seen, and what to do where it is not well."""

    level: Level
    subject: str
    seen: str
    advice: str = ""


class Ran(NamedTuple):
    """What a program said; ``status`` is None where it did not end in time or could not be run."""

    status: int | None
    output: str


Run = Callable[[Sequence[str]], Ran]


def run_program(command: Sequence[str]) -> Ran:
    """Run a program of the host, at most five seconds, with an environment of nothing."""
    environment = {"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    try:
        done = subprocess.run(  # noqa: S603 - an argument list of ours, no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT,
            env=environment,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Ran(None, f"{command[0]}: {error.strerror if isinstance(error, OSError) else 'no answer in time'}")
    return Ran(done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))


def patient_once(run: Run) -> Run:
    """Give what runs programs, but waits for a name service that hangs once and not for each question."""
    hanging: list[Ran] = []

    def patient(command: Sequence[str]) -> Ran:
        asks_for_names = command[0] == "getent"
        if asks_for_names and hanging:
            return hanging[0]
        ran = run(command)
        if asks_for_names and ran.status is None:
            hanging.append(ran)
        return ran

    return patient


@dataclass(frozen=True, slots=True)
class Inputs:
    """What questions are asked of. ``running``, ``listener``: the daemons' answers, or why there is none."""

    configuration: Configuration
    root: Path = Path("/")
    run: Run = run_program
    running: Running | str = "the helper was not asked"
    listener: Snapshot | str = "the listener was not asked"
    user: str | None = None
    server_config: Path | None = None

    def at(self, path: str | Path) -> Path:
        """Give an absolute path of the host in the tree that is looked at."""
        return self.root / str(path).lstrip("/")

    def text(self, path: str | Path) -> str | None:
        """Give a file's text, None where there is no such file."""
        try:
            return self.at(path).read_text("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None


Question = Callable[[Inputs], Iterator[Finding]]


def ok(subject: str, seen: str) -> Finding:
    """Give an answer that is well."""
    return Finding(Level.OK, subject, seen)


def warning(subject: str, seen: str, advice: str) -> Finding:
    """Give an answer that somebody should look at."""
    return Finding(Level.WARNING, subject, seen, advice)


def fault(subject: str, seen: str, advice: str) -> Finding:
    """Give an answer because of which jobs fail, run as somebody else, or can be taken over."""
    return Finding(Level.FAULT, subject, seen, advice)


def not_asked(subject: str, seen: str, advice: str = "") -> Finding:
    """Say that a question was not asked, and what it would need."""
    return Finding(Level.NOT_ASKED, subject, seen, advice)


def open_to_others(status: os.stat_result) -> bool:
    """Say whether anybody but root can change what has this owner and mode."""
    return status.st_uid != 0 or bool(status.st_mode & 0o022)


def ini_values(text: str, key: str) -> list[str]:
    """Give the values that a file of ``key=value`` lines gives a key, comments left out, in order."""
    found = (re.match(rf"\s*{re.escape(key)}\s*=\s*(.*?)\s*$", line) for line in text.splitlines())
    return [match[1] for match in found if match]
