"""The two daemons on their units, for the quickstart on a host that systemd runs.

The unit files are those of systemd/; only the units' own names in them are others, so that they meet no installed unit.
What belongs to the run (paths, credentials, directories) is in a drop-in beside each: ``systemctl cat`` shows what
differs. All of it is below /run/systemd/system, written to the manifest first, and ended and removed by ``remove``.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.lab.installation import CHECKOUT, Installation
from tests.lab.processes import NotReadyError

UNITS: Final = Path("/run/systemd/system")
BUS: Final = Path("/run/dbus/system_bus_socket")
SLICES: Final = ("knime.slice", "knime-executors.slice")
"""Not renamed: where executors belong is the helper's own, and no configuration changes it."""
COMMANDS: Final = {"helper": "knime-root-helper", "listener": "knime-broker-listener"}
IN_WORDS: Final = f"quickstart-{{{','.join(COMMANDS.values())}}}.service and {SLICES[-1]}"


def systemd_runs_this_host() -> bool:
    """Say whether PID 1 is systemd: sd_booted(3)."""
    return UNITS.is_dir()


def executors(*, but_of: str) -> list[str]:
    """Give the scopes of all executors on this host but those of users whose names begin so."""
    listing = _systemctl("list-units", "--plain", "--no-legend", "knime-executor-*.scope").stdout
    scopes = [line.split()[0] for line in listing.splitlines()]
    return [name for name in scopes if not name.startswith(f"knime-executor-{_escaped(but_of)}")]


def cgroup_of_executor(user: str) -> str:
    """Give the control group that the user's executor has to be in."""
    return f"/{'/'.join(SLICES)}/knime-executor-{_escaped(user)}.scope"


def prepare(noted: Callable[[str, str], None]) -> None:
    """Make the slice of the executors, and start the system bus where its package was just installed."""
    for name in SLICES:
        if not _is_active(name):
            noted("unit", name)
    if not _is_active(SLICES[-1]):
        shutil.copy(CHECKOUT / "systemd" / SLICES[-1], UNITS)
    if not BUS.exists():
        _systemctl("daemon-reload")
        _systemctl("start", "dbus.socket")


class UnitDaemon:
    """One of the two daemons; ``noted`` hears of each unit before it is made."""

    def __init__(self, installation: Installation, name: str, noted: Callable[[str, str], None]) -> None:
        self.title = f"quickstart-{COMMANDS[name]}.service"
        self.messages = f"journalctl -u {self.title}"
        self._installation, self._name, self._noted = installation, name, noted

    def start(self) -> None:
        """Make the unit and start it; done when the daemon says that it is ready.

        Raises:
            NotReadyError: it does not; with what the service manager says.
        """
        self._noted("unit", self.title)
        shipped = (CHECKOUT / f"systemd/{COMMANDS[self._name]}.service").read_text(encoding="utf-8")
        _write(UNITS / self.title, _private(shipped))
        _write(UNITS / f"{self.title}.d/quickstart.conf", self._drop_in())
        credentials = self._installation.credentials(self._name)
        for path in (credentials, *credentials.iterdir()):
            os.chown(path, 0, 0)  # the daemon has it from PID 1 alone
        _systemctl("daemon-reload")
        done = _systemctl("start", self.title)
        if done.returncode:
            raise NotReadyError(f"{self.title}: {done.stderr.strip()}\n{self.last_messages(40)}")

    def last_messages(self, lines: int) -> str:
        """Give the last lines that the daemon wrote."""
        command = ["journalctl", "--no-pager", "-o", "cat", "-n", str(lines), "-u", self.title]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.rstrip()

    def _drop_in(self) -> str:
        settings = _settings(self._installation)[self._name]
        # An empty value takes back what the unit file says: systemd.syntax(7).
        lines = [f"{key}=\n{key}={value}" for key, value in settings.items()]
        return "\n".join(["# Of knime-peruser's quickstart: its own paths.", "[Service]", *lines, ""])


def remove(unit: str) -> None:
    """Stop a unit, and with a slice all that is in it, and take away what was made of it.

    Raises:
        RuntimeError: it does not stop; nothing is taken away.
    """
    if systemd_runs_this_host():
        said = _systemctl("stop", unit).stderr.strip()  # also of one that waits for its next start
        if _is_active(unit):
            raise RuntimeError(f"it does not stop: {said}")
    (UNITS / unit).unlink(missing_ok=True)
    shutil.rmtree(UNITS / f"{unit}.d", ignore_errors=True)
    if systemd_runs_this_host():
        _systemctl("daemon-reload")
        _systemctl("reset-failed", unit)


def _settings(site: Installation) -> dict[str, dict[str, str]]:
    """Give what differs from the unit files: ``executor-msgq`` and ``broker-password`` are read by PID 1."""
    return {
        "helper": {
            "ExecStart": " ".join(site.command("knime-root-helper")),
            "LoadCredential": f"executor-msgq:{site.credentials('helper')}/executor-msgq",
            "StateDirectory": str(site.state.relative_to("/var/lib")),
        },
        "listener": {
            "ExecStart": " ".join(site.command("knime-broker-listener")),
            "LoadCredential": f"broker-password:{site.credentials('listener')}/broker-password",
            "RuntimeDirectory": "knime-peruser-quickstart",
            "StateDirectory": str(site.listener_state.relative_to("/var/lib")),
        },
    }


def _private(unit_file: str) -> str:
    """Give the text with the run's own names of the two services."""
    return re.sub(r"\b(knime-(?:root-helper|broker-listener)\.service)\b", r"quickstart-\1", unit_file)


def _escaped(name: str) -> str:
    return name.replace("-", "\\x2d")  # systemd-escape(1), for names of letters and hyphens


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


def _is_active(unit: str) -> bool:
    return _systemctl("is-active", "--quiet", unit).returncode == 0


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
