"""systemd's scopes: each executor in a cgroup of its own, outside the helper's unit, so that it outlives both daemons.

It trusts PID 1 and the system bus. A unit's name is built here from a directory's name, escaped; the one method that
is called starts one kind of unit, for the calling process. Who runs in a scope stands in its description, which PID 1
keeps: a helper that lost its state files adopts from there.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from root_helper.bus import BusError, call

_MANAGER: Final = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_CGROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))  # unified, or hybrid
_SLICE: Final = "knime-executors.slice"
_TRANSIENT: Final = Path("/run/systemd/transient")  # systemd.unit(5), unit file load path
_DESCRIPTION: Final = "KNIME Executor "
_LIMITS: Final = {
    "memory_max": "MemoryMax",
    "memory_high": "MemoryHigh",
    "cpu_weight": "CPUWeight",
    "io_weight": "IOWeight",
    "tasks_max": "TasksMax",
}
_PATIENCE: Final = 2.0
"""Seconds that a name may still be taken, or the process not yet moved."""


class ScopeUnavailable(Exception):
    """systemd is there, but gave no scope: nothing may be started outside one."""


class Scope(NamedTuple):
    """The unit's name and its cgroup's id, the inode of the cgroup2 directory."""

    unit: str
    cgroup: int


def systemd_is_there() -> bool:
    """Tell whether PID 1 is systemd: sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def enter(
    unit: str, facts: Mapping[str, object], mounts: Sequence[str], stop_grace: float, limits: Mapping[str, int]
) -> Scope | None:
    """Move this process into a scope of its own and give it; None where no systemd runs. ``stop_grace`` in seconds.

    ``facts`` say who runs in it, in words without blanks and "=": ``recorded`` gives them back.

    Raises:
        ScopeUnavailable: systemd or the bus did not do it.
    """
    if not systemd_is_there():
        return None
    description = _DESCRIPTION + " ".join(f"{key}={value}" for key, value in facts.items())
    properties = _properties(description, mounts, stop_grace, limits)
    deadline = time.monotonic() + _PATIENCE
    while (said := _start(unit, properties)) is not None:
        if "already" not in said or time.monotonic() > deadline:
            raise ScopeUnavailable(f"{unit}: {said}")
        _pause()
    while not (path := own_cgroup()).endswith(f"/{unit}"):
        if time.monotonic() > deadline:
            raise ScopeUnavailable(f"{unit}: the process was not moved into it")
        _pause()
    directory = _directory(path)
    if directory is None:
        raise ScopeUnavailable(f"{unit}: no unified hierarchy of cgroups is mounted at /sys/fs/cgroup")
    return Scope(unit, directory.stat().st_ino)


def recorded() -> Iterator[tuple[Scope, dict[str, str]]]:
    """Give every scope below the slice, with the facts that were told when it was entered."""
    slice_directory = _directory(f"/knime.slice/{_SLICE}")
    for directory in slice_directory.glob("knime-executor-*.scope") if slice_directory else ():
        with contextlib.suppress(OSError, ValueError):  # it ended meanwhile, or the helper did not make it
            text = (_TRANSIENT / directory.name).read_text(encoding="utf-8")
            facts = text.partition(f"\nDescription={_DESCRIPTION}")[2].partition("\n")[0]
            yield Scope(directory.name, directory.stat().st_ino), dict(word.split("=") for word in facts.split())


def unit_name(directory_name: str) -> str:
    """Give the scope's name: systemd-escape(1) of the directory's, shortened by a hash where it is long."""
    escaped = "".join(
        char if char.isalnum() or char in ":_" or (char == "." and n) else f"\\x{ord(char):02x}"
        for n, char in enumerate(directory_name)
    )
    if len(escaped) > 200:
        escaped = escaped[:100] + hashlib.sha256(escaped.encode("ascii")).hexdigest()[:16]
    return f"knime-executor-{escaped}.scope"


def own_cgroup() -> str:
    """Give this process's path in the unified hierarchy, "" where there is none: cgroups(7)."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def processes(unit: str) -> list[int]:
    """Give the pids that are in the scope still."""
    directory = _directory(f"/knime.slice/{_SLICE}/{unit}")
    if directory is None:
        return []
    with contextlib.suppress(OSError):  # ENODEV while it is being removed
        return [int(pid) for pid in (directory / "cgroup.procs").read_text(encoding="ascii").split()]
    return []


def _directory(path: str) -> Path | None:
    """Give a cgroup's directory, None where there is none (any more)."""
    return next((root / path[1:] for root in _CGROUPS if (root / path[1:] / "cgroup.procs").exists()), None)


def _properties(
    description: str, mounts: Sequence[str], stop_grace: float, limits: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """Give the scope's properties as busctl(1) takes them: name, signature, values."""
    return [
        ("PIDs", "au", "1", str(os.getpid())),
        ("Slice", "s", _SLICE),
        ("Description", "s", description),
        ("KillMode", "s", "control-group"),
        ("CollectMode", "s", "inactive-or-failed"),
        ("TimeoutStopUSec", "t", str(int(stop_grace * 1e6))),
        ("After", "as", "1", "remote-fs.target"),
        ("RequiresMountsFor", "as", str(len(mounts)), *mounts),
        *((_LIMITS[key], "t", str(limits[key])) for key in _LIMITS if key in limits),
    ]


def _start(unit: str, properties: Sequence[tuple[str, ...]]) -> str | None:
    """Call StartTransientUnit (org.freedesktop.systemd1(5)) for this process; give what went wrong, or None."""
    words = [word for entry in properties for word in entry]
    arguments = ["ssa(sv)a(sa(sv))", unit, "fail", str(len(properties)), *words, "0"]
    try:
        call(_PATIENCE, *_MANAGER, "StartTransientUnit", *arguments)
    except BusError as error:
        return str(error)
    return None


def _pause() -> None:
    time.sleep(0.002)  # a worker's own time: nobody else waits
