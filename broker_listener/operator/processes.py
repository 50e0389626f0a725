"""What the kernel says of the helper's and the executors' processes, to whoever may ask it (proc(5), cgroups(7)).

Everything here may be gone, or not be there on this host, at any moment: then the answer is "unknown", never a fault.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
SLICE: Final = "knime.slice/knime-executors.slice"
SCOPE: Final = "knime-executor-"
_FORKNOEXEC: Final = 0x40
"""PF_FORKNOEXEC, sched.h: forked, and nothing executed since."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a whole scope uses: bytes, and seconds of processor time since it began; None where not known."""

    memory: int | None
    cpu: float | None


UNKNOWN_USAGE: Final = Usage(None, None)


def usage_of(pid: int) -> Usage:
    """Give what the scope of a process uses. Outside of an executor's scope that is unknown: others are in there."""
    paths = _cgroups_of(pid)
    unified = _scope(paths.get(""))
    if unified is not None:
        memory, cpu = _number(unified / "memory.current"), _cpu_stat(unified / "cpu.stat")
        if memory is not None or cpu is not None:
            return Usage(memory, cpu)
    memory_v1, cpu_v1 = _scope(paths.get("memory"), "memory"), _scope(paths.get("cpuacct"), "cpuacct")
    nanoseconds = _number(cpu_v1 / "cpuacct.usage") if cpu_v1 else None
    return Usage(
        _number(memory_v1 / "memory.usage_in_bytes") if memory_v1 else None,
        None if nanoseconds is None else nanoseconds / 1e9,
    )


def workers_of(helper: int) -> list[int]:
    """Give the helper's children that are starts on their way: forked, and nothing executed yet."""
    children = _text(PROC / str(helper) / "task" / str(helper) / "children") or ""
    return [int(pid) for pid in children.split() if _flags(int(pid)) & _FORKNOEXEC]


def executors_slice_is_populated() -> bool:
    """Say whether a process is left in any executor's scope; False where there are no scopes."""
    for tree in ("", "unified", "systemd"):
        events = _text(CGROUPS / tree / SLICE / "cgroup.events")
        if events is not None:
            return "populated 1" in events
    return False


def started_at(pid: int) -> float | None:
    """Give when a process was started, in Unix seconds."""
    fields, stat = _stat(pid), _text(PROC / "stat") or ""
    boot = [line.split()[1] for line in stat.splitlines() if line.startswith("btime ")]
    return int(boot[0]) + int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields and boot else None


def uid_of(pid: int) -> int | None:
    """Give the uid that a process runs as."""
    with suppress(OSError):
        return (PROC / str(pid)).stat().st_uid
    return None


def _cgroups_of(pid: int) -> dict[str, str]:
    """Give the process's cgroup in each hierarchy: by controller, "" for the unified one."""
    found = {}
    for line in (_text(PROC / str(pid) / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _scope(path: str | None, controller: str = "") -> Path | None:
    """Give the directory of an executor's scope, None where the cgroup is none or below none."""
    parts = (path or "").strip("/").split("/")
    scope = next((place for place, part in enumerate(parts) if part.startswith(SCOPE)), None)
    if scope is None or ".." in parts:
        return None
    below = Path(*parts[: scope + 1])
    trees = [CGROUPS / controller] if controller else [CGROUPS, CGROUPS / "unified"]
    return next((tree / below for tree in trees if (tree / below).is_dir()), None)


def _cpu_stat(file: Path) -> float | None:
    for line in (_text(file) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec" and value.isdigit():
            return int(value) / 1e6
    return None


def _flags(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[6]) if fields else 0


def _stat(pid: int) -> list[str] | None:
    """Give the fields of /proc/PID/stat from the third one on."""
    text = _text(PROC / str(pid) / "stat")
    return None if text is None else text.rpartition(")")[2].split()


def _number(file: Path) -> int | None:
    text = (_text(file) or "").strip()
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
