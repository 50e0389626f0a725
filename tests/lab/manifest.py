"""What the quickstart changed on this host, written down before each change, and how each change is taken back.

The file is root's, below /var/lib, and survives a crash: the next run, or ``--remove``, takes back what is in it,
last change first. Only what is written here is ever taken back.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.lab import packages, units
from tests.lab.accounts import SystemUsers, end_processes, remove_group, remove_user, uid_of
from tests.lab.processes import ProcessId, end, process_id


class Manifest:
    """The record of one host's changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "manifest"

    def entries(self) -> list[tuple[str, str]]:
        """Give what was changed, as kind and name, in order."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [(kind, name) for kind, _, name in (line.partition(" ") for line in lines)]

    def note(self, kind: str, name: str) -> None:
        """Write down a change that is about to be made; it is on the disk when this returns."""
        self.directory.mkdir(mode=0o755, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{kind} {name}\n")
            file.flush()
            os.fsync(file.fileno())

    def note_process(self, pid: int) -> None:
        """Write down a process that was just started."""
        self.note("process", f"{pid} {process_id(pid).started}")

    def take_back(self, *, with_packages: bool) -> list[str]:
        """Undo every change, the last first; give what could not be undone, which stays in the manifest."""
        added = [name for kind, name in self.entries() if kind == _PACKAGE]
        changes = [entry for entry in self.entries() if entry[0] != _PACKAGE]
        kept: list[tuple[str, str]] = []
        faults: list[str] = []
        for kind, name in reversed(changes):
            try:
                UNDO[kind](name)
            except (OSError, RuntimeError) as error:
                kept.insert(0, (kind, name))
                faults.append(f"{kind} {name}: {error}")
        if with_packages:
            try:
                packages.remove(added)
                added = []
            except packages.PackagesError as error:
                faults.append(f"packages: {error}")
        self._rewrite([*((_PACKAGE, name) for name in dict.fromkeys(added)), *kept])
        return faults

    def _rewrite(self, entries: list[tuple[str, str]]) -> None:
        if not entries:
            shutil.rmtree(self.directory, ignore_errors=True)
            return
        new = self.path.with_name("manifest.new")
        new.write_text("".join(f"{kind} {name}\n" for kind, name in entries), encoding="utf-8")
        new.rename(self.path)


def _end_process(name: str) -> None:
    pid, started = map(int, name.split())
    end(ProcessId(pid, started))


def _remove_user(name: str) -> None:
    uid = uid_of(name)
    if uid is not None:
        end_processes([uid])
        remove_user(name)


def _remove_system_users(_: str) -> None:
    if not SystemUsers().remove():
        raise RuntimeError("another run or process uses them")


def _remove_directory(name: str) -> None:
    if Path(name).exists():
        shutil.rmtree(name)


_PACKAGE: Final = "package"
UNDO: Final[Mapping[str, Callable[[str], None]]] = MappingProxyType(
    {
        "process": _end_process,
        "unit": units.remove,
        "user": _remove_user,
        "group": remove_group,
        "system-users": _remove_system_users,
        "directory": _remove_directory,
        "file": lambda name: Path(name).unlink(missing_ok=True),
    }
)
