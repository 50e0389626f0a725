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
_A_MOMENT: Final = 0.002  # of a worker's own time: nobody else waits
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
    while not _started(unit, properties, last=time.monotonic() > deadline):
        time.sleep(_A_MOMENT)
    while not (path := own_cgroup()).endswith(f"/{unit}"):
        if time.monotonic() > deadline:
            raise ScopeUnavailable(f"{unit}: the process was not moved into it")
        time.sleep(_A_MOMENT)
    try:
        return Scope(unit, _directory(path).stat().st_ino)
    except OSError as error:
        raise ScopeUnavailable(f"{unit}: no unified hierarchy of cgroups at /sys/fs/cgroup: {error}") from error


def recorded() -> Iterator[tuple[Scope, dict[str, str]]]:
    """Give every scope below the slice, with the facts that were told when it was entered."""
    for directory in _scope_directory("").glob("knime-executor-*.scope"):
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


def processes(unit: str) -> Iterator[int]:
    """Give the pids that are in the scope still; the kernel lists them as they are asked for."""
    with contextlib.suppress(OSError), (_scope_directory(unit) / "cgroup.procs").open(encoding="ascii") as pids:
        yield from map(int, pids)  # ENOENT when it is gone, ENODEV while it is being removed


def cpu_seconds(unit: str) -> float | None:
    """Give what the scope has used since it was made, by whatever was in it; None where nobody tells."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = (_scope_directory(unit) / "cpu.stat").read_text(encoding="ascii").splitlines()
        return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6
    return None


def kill(unit: str, cgroup: int | None) -> bool:
    """Kill all that is in the scope at once, however fast it forks; False where the kernel does not take it.

    Before Linux 5.14 there is no such file, and where control groups are read-only it cannot be written.
    """
    directory = _scope_directory(unit)
    with contextlib.suppress(OSError):
        if directory.stat().st_ino == cgroup:
            # PRIVILEGED: the executor's own cgroup, by its id; what is in it is the executor's.
            (directory / "cgroup.kill").write_text("1", encoding="ascii")
            return True
    return False


def _scope_directory(unit: str) -> Path:
    return _directory(f"/knime.slice/{_SLICE}/{unit}")


def _directory(path: str) -> Path:
    """Give where a cgroup of the unified hierarchy is, if it is there."""
    unified, hybrid = _CGROUPS
    return (unified if (unified / "cgroup.procs").exists() else hybrid) / path.lstrip("/")


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


def _started(unit: str, properties: Sequence[tuple[str, ...]], *, last: bool) -> bool:
    """Call StartTransientUnit (org.freedesktop.systemd1(5)) for this process; False where the name is taken still."""
    words = [word for entry in properties for word in entry]
    arguments = ["ssa(sv)a(sa(sv))", unit, "fail", str(len(properties)), *words, "0"]
    try:
        call(_PATIENCE, *_MANAGER, "StartTransientUnit", *arguments)
    except BusError as error:
        if last or "already" not in str(error):
            raise ScopeUnavailable(f"{unit}: {error}") from error
        return False
    return True
