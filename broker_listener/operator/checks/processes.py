"""Does anything else on this host take jobs? An executor without a reservation takes anybody's, as its own account.

Processes are read from /proc. Of another process's environment only port and virtual host of its broker are looked
at, to tell an executor of another KNIME Server; the password beside them is never kept.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from broker_listener.config import parse_url
from broker_listener.operator.checks.finding import Finding, Inputs, Question, fault, not_asked, ok
from broker_listener.operator.checks.running import Running

EXECUTOR: Final = b"com.knime.enterprise.slave.KNIME_REMOTE_APPLICATION"
PREDECESSOR: Final = b"knime_executor_per_user_starter.py"
MAX_DEPTH: Final = 32
FOREIGN_UNITS: Final = ("knime-executor.service", "knime-executor-per-user.service")
_AT_REST: Final = {"inactive", "failed"}
"""Of ActiveState; what crashes and is started again, and what reloads, is neither."""


def executors(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether every executor on this host is one that the helper started."""
    subject = "host.executors"
    found = {pid: words for pid in _pids(inputs) if (words := _command(inputs, pid))}
    if running := [pid for pid, words in found.items() if any(word.endswith(PREDECESSOR) for word in words)]:
        yield fault(subject, f"the predecessor runs, pid {running[0]}", f"systemctl disable --now {FOREIGN_UNITS[1]}")
    ours = _ours(inputs)
    takes = {pid: _takes_our_jobs(inputs, pid, ours) for pid, words in found.items() if EXECUTOR in words}
    foreign = [pid for pid, is_so in takes.items() if is_so]
    for pid in foreign:
        yield fault(
            subject,
            f"pid {pid} is an executor that the helper did not start: it may take anybody's jobs as its own account",
            f"end it (kill {pid}) and what starts it, or give its broker URL another queue",
        )
    if unknown := [pid for pid, is_so in takes.items() if is_so is None]:
        seen = f"of {len(unknown)} executors this account may not see who started them, or for which broker"
        yield not_asked(subject, seen, "run this as root")
    elif not foreign and not running:
        yield ok(subject, "no other executor, and not the predecessor")


def units(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether no unit is enabled that would start another executor, or the predecessor."""
    subject = "host.foreign_units"
    states = unit_states(inputs, FOREIGN_UNITS)
    if states is None:
        yield not_asked(subject, "systemd does not answer")
        return
    wrong = [name for name, state in states.items() if state["ActiveState"] not in _AT_REST or _enabled(state)]
    for name in wrong:
        seen = f"{name} is {states[name]['ActiveState']} and {states[name]['UnitFileState'] or 'not enabled'}"
        yield fault(subject, f"{seen}: its executor takes anybody's jobs", f"systemctl disable --now {name}")
    if not wrong:
        yield ok(subject, f"neither {' nor '.join(FOREIGN_UNITS)} is enabled or active")


def unit_states(inputs: Inputs, names: tuple[str, ...]) -> dict[str, dict[str, str]] | None:
    """Give LoadState, ActiveState and UnitFileState of units, None where systemd does not answer."""
    if not inputs.at("/run/systemd/system").is_dir():
        return None
    ran = inputs.run(["systemctl", "show", "--property=Id,LoadState,ActiveState,UnitFileState", *names])
    if ran.status != 0:
        return None
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in ran.output.split("\n\n")]
    found = {block["Id"]: block for block in blocks if "Id" in block}
    absent = {"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}
    return {name: {**absent, **found.get(name, {})} for name in names}


def _enabled(state: dict[str, str]) -> bool:
    return state["UnitFileState"] in {"enabled", "enabled-runtime", "linked", "linked-runtime"}


def _pids(inputs: Inputs) -> list[int]:
    return sorted(int(entry.name) for entry in inputs.at("/proc").iterdir() if entry.name.isdecimal())


def _command(inputs: Inputs, pid: int) -> list[bytes]:
    return _read(inputs.at(f"/proc/{pid}/cmdline")).rstrip(b"\0").split(b"\0")


def _takes_our_jobs(inputs: Inputs, pid: int, ours: frozenset[tuple[int, str]]) -> bool | None:
    """Say whether a foreign executor takes jobs of our broker; None where its environment may not be read."""
    if _started_by_the_helper(inputs, pid):
        return False
    try:
        variables = inputs.at(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except PermissionError:
        return None
    except OSError:  # it ended meanwhile
        return False
    urls = [value for name, _, value in (one.partition(b"=") for one in variables) if name == b"KNIME_EXECUTOR_MSGQ"]
    return not urls or _broker_of(urls[0].decode("utf-8", "replace")) in (None, *ours)


def _started_by_the_helper(inputs: Inputs, pid: int) -> bool:
    known = inputs.running.pids if isinstance(inputs.running, Running) else frozenset()
    for _ in range(MAX_DEPTH):
        if pid in known:
            return True
        cgroups = _read(inputs.at(f"/proc/{pid}/cgroup")).decode("utf-8", "replace").splitlines()
        last = [line.rpartition("/")[2] for line in cgroups]
        if any(name.startswith("knime-executor-") and name.endswith(".scope") for name in last):
            return True
        fields = _read(inputs.at(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
        if pid <= 1:
            return False
    return False


def _ours(inputs: Inputs) -> frozenset[tuple[int, str]]:
    urls = [parse_url(url) for url in inputs.configuration.listener.broker.urls]
    return frozenset((url.port, url.vhost) for url in urls)


def _broker_of(msgq: str) -> tuple[int, str] | None:
    """Give port and virtual host of an executors' broker URL, None where it cannot be read."""
    try:
        parts = urlsplit(msgq.partition(",")[0])
        port = parts.port or {"amqp": 5672, "amqps": 5671}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return port, unquote(parts.path[1:]) or "/"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile, or is another's
        return b""


QUESTIONS: Final[tuple[Question, ...]] = (executors, units)
