"""A booted machine to which knime-peruser is installed as an administrator does it: a package, or systemd/install.

There is no broker in it: what the listener would ask is asked in its place, by a program that runs inside as its user.
The executor is a shell that waits. Everything installed can be listed and compared, owners and modes included.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.lab.machine import Machine
from tests.lab.own_package import CHECKOUT, built
from tests.lab.processes import wait_for

UNITS: Final = ("knime-root-helper.service", "knime-broker-listener.service")
USER: Final = "alice"
# Where other packages and the package manager itself are at work.
_OTHERS: Final = frozenset(
    ("dev", "proc", "run", "sys", "tmp", "root", "var/cache", "var/tmp", "var/lib/apt", "var/lib/dpkg",
     "var/lib/private", "var/lib/rabbitmq", "var/lib/systemd", "var/log/apt", "var/log/journal", "var/log/rabbitmq")
)  # fmt: skip
_ACCOUNTS: Final = frozenset(
    f"etc/{name}{suffix}"
    for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
    for suffix in ("", "-")
)
_CONTENT: Final = ("etc/", "opt/", "usr/")


class InstalledMachine(Machine):
    """One machine; what tests install into it they take away again."""

    def create(self) -> None:
        """Lay out the file system, with an installation of KNIME, a user who has never logged in, no directory."""
        super().create()
        # Not those of this host: its tests end all processes with the uids of their accounts, those in here, too.
        definitions = self.root / "etc/login.defs"
        text = re.sub(r"(?m)^UID_MIN\s.*", "UID_MIN 41000\nSYS_UID_MAX 899", definitions.read_text(encoding="utf-8"))
        definitions.write_text(text, encoding="utf-8")
        self.write("/opt/knime/knime", "#!/bin/sh\nexec sleep infinity\n", 0o755)
        self.offline("useradd", USER)
        self.offline("sed", "-i", "s/ sss//", "/etc/nsswitch.conf")

    def build(self, version: str) -> str:
        """Build a package of this checkout; give its path inside."""
        return built(version, self.root)

    def copy_checkout(self) -> None:
        """Put what systemd/install and the quickstart need into /root/checkout."""
        target = self.root / "root/checkout"
        shutil.rmtree(target, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__")
        directories = (
            "protocol",
            "root_helper",
            "broker_listener",
            "systemd",
            "etc",
            "tests/lab",
            "tests/simulated_knime",
        )
        for name in directories:
            shutil.copytree(CHECKOUT / name, target / name, ignore=ignored)
        for name in ("pyproject.toml", "quickstart", "tests/__init__.py"):
            shutil.copy(CHECKOUT / name, target / name)

    def apt(self, *arguments: str) -> str:
        """Run apt-get, which asks nobody."""
        return self.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "--yes", *arguments)

    def give_credentials(self) -> None:
        """Write the two files that no package can bring."""
        self.write("/etc/knime-peruser/broker-password", "no broker is there\n", 0o600)
        self.write("/etc/knime-peruser/executor-msgq", "amqp://executors:secret@127.0.0.1:5672/%2F\n", 0o600)

    def check(self, command: str, configuration: str) -> list[str]:
        """Run a daemon's --check; give its lines."""
        return self.run(command, "--config", f"/etc/knime-peruser/{configuration}", "--check", check=False).splitlines()

    def states(self) -> list[str]:
        """Give whether the units are active, in the order of UNITS."""
        return self.run("systemctl", "is-active", *UNITS, check=False).split()

    def main_pid(self, unit: str) -> int:
        """Give the pid, inside, of a unit's main process."""
        return int(self.run("systemctl", "show", "--value", "-p", "MainPID", unit))

    def ensure(self, user: str = USER) -> dict[str, Any]:
        """Ask for an executor as the listener does; give the answer."""
        request = {"v": 1, "id": "1", "op": "ensure", "user": user}
        return self._asked(request)

    def executors(self) -> list[dict[str, Any]]:
        """Ask who has an executor."""
        found: list[dict[str, Any]] = self._asked({"v": 1, "id": "1", "op": "list", "after": ""})["executors"]
        return found

    def runs(self, pid: int) -> bool:
        """Say whether a process of the machine is there."""
        return self.status("test", "-e", f"/proc/{pid}") == 0

    def end_executors(self) -> None:
        """End all executors, whatever is installed."""
        self.run("systemctl", "stop", "knime-executors.slice", check=False)
        wait_for(lambda: self.status("pgrep", "-u", USER) == 1, 20, "the end of all executors")

    def files(self) -> dict[str, str]:
        """Give each path of the machine with owner and mode; in /etc, /opt and /usr with its content, too."""
        found = {}
        for directory, directories, files in os.walk(self.root):
            below = "" if directory == str(self.root) else f"{Path(directory).relative_to(self.root)}/"
            directories[:] = [name for name in directories if f"{below}{name}" not in _OTHERS]
            for name in (*directories, *files):
                if (path := f"{below}{name}") not in _ACCOUNTS:
                    found[path] = _described(self.root / path, content=path.startswith(_CONTENT))
        return found

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self.run("setpriv", "--reuid=knime-listener", "--regid=knime-listener", "--clear-groups",
                          "python3", "-c", _ASK, json.dumps(request))  # fmt: skip
        found: dict[str, Any] = json.loads(answer)
        return found


_ASK: Final = """\
import json, sys, zmq

with zmq.Context() as context, context.socket(zmq.DEALER) as listener:
    listener.linger = 0
    listener.connect("ipc:///run/knime-peruser/helper.sock")
    listener.send(sys.argv[1].encode())
    answer = {}
    while "result" not in answer and listener.poll(30000):
        answer = json.loads(listener.recv())
    print(json.dumps(answer))
"""


def _described(path: Path, *, content: bool) -> str:
    status = path.lstat()
    shown = f"{status.st_mode:o} {status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{shown} {path.readlink()}"
    return f"{shown} {hashlib.sha256(path.read_bytes()).hexdigest()}" if content and path.is_file() else shown


def booted_machine(suite: str, directory: Path) -> Iterator[InstalledMachine]:
    """Give a machine for a fixture: made and booted, then removed whatever happens."""
    machine = InstalledMachine(suite, directory)
    try:
        machine.create()
        machine.boot()
        yield machine
    finally:
        machine.remove()
