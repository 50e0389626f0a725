"""Starts in scopes, in a booted machine with the shipped units: their steps, and while the system bus is flooded.

How it could lie: the machine is a container, whose systemd, units, sandbox and scopes are real, while limits of cgroups
may not be enforced: what a scope costs is real, what it limits is not measured. The accounts are local files, so that a
start differs from one in ``starts`` by the unit and the scope alone; directory users (slapd, SSSD, cached) are a figure
of their own. The helper is restarted between runs, or an executor that ended young would have its user wait. A flood
that did not reach the bus would prove nothing: the time that one call over the bus takes is measured at rest, and in
the flood before the first user and after the last one, as a control. Users during the flood are new ones, with a home
to be made, and so are those before it; who has not started within 15 s counts as 15 s.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

from tests.bench.asking import Told, answers, command, expect_started
from tests.bench.bus_flood import CONNECTIONS, PROGRAM
from tests.bench.figures import Figure
from tests.bench.instruments import CONNECTS
from tests.bench.spread import median
from tests.bench.start_steps import add_probe, steps
from tests.bench.starts import step_figures
from tests.lab.booted_site import _SLICE_CGROUP, HELPER, LISTENER, BootedSite
from tests.lab.processes import wait_for

USERS: Final = 10
BOUND: Final = 15.0
STEPS: Final = "/var/lib/knime-peruser-bench"
SOCKET: Final = "/run/knime-peruser/helper.sock"
LIMITS: Final[dict[str, object]] = {"starts_per_user_per_minute": 1000, "starts_per_second": 1000}


def start_in_a_scope(site: BootedSite, runs: int) -> list[Figure]:
    """Request to executor with a scope, local accounts and a directory's, directories there; and its steps."""
    local = _local_users(site, "bench", USERS)
    directory = site.fresh_users(USERS)
    with _helper_alone(site):
        for users in (local, directory):
            _started(site, users)
        there, theirs = list[float](), list[float]()
        for _ in range(runs):
            there.append(median([one.ms for one in _started(site, local)]))
            theirs.append(median([one.ms for one in _started(site, directory)]))
        with _probed(site) as noted:
            found = [steps(_started(site, local), noted) for _ in range(runs)]
    what = "a start in a scope"
    return [
        Figure(f"{what}: request to answer, local account", "ms", tuple(there), goal=14.0),
        Figure(f"{what}: request to answer, account of a directory (SSSD)", "ms", tuple(theirs)),
        *step_figures(what, found),
    ]


def flooded_bus(site: BootedSite, runs: int) -> list[Figure]:
    """Start new users, before and while 120 connections of a local account flood the system bus."""
    users = [_local_users(site, f"{name}flood", min(runs, 3)) for name in ("before", "during")]
    with _helper_alone(site):
        before = _seconds(site, users[0])
        call = tuple(_bus_call(site) for _ in range(3))
        with _flood(site):
            first = _bus_call(site), _bus_call(site)
            meanwhile = _seconds(site, users[1])
            flooded = (*first, _bus_call(site))
    what = f"the system bus flooded by {CONNECTIONS} connections"
    ratio = median(meanwhile) / median(before)
    bound = ratio if median(meanwhile) >= BOUND else None
    return [
        Figure("a new user's start in a scope, the bus at rest", "s", before),
        Figure(f"{what}: a new user's start", "s", meanwhile, bound=BOUND),
        Figure(f"{what}: times as long", "times", (ratio,), goal=2.0, bound=bound),
        Figure("one call over the system bus, at rest", "s", call, bare=True),
        Figure(f"{what}: one call over it", "s", flooded, bare=True),
    ]


def _local_users(site: BootedSite, name: str, count: int) -> list[str]:
    users = [f"{name}{number}" for number in range(count)]
    for user in users:
        site.machine.run("useradd", "--no-create-home", user)
    return users


@contextmanager
def _helper_alone(site: BootedSite) -> Iterator[None]:
    """Have executors connect and cost nothing, starts not limited, and nobody but us ask the helper."""
    site.systemctl("stop", LISTENER)
    site.machine.write("/opt/knime/knime", CONNECTS.format(port=5672), 0o755)
    site.configure_helper(limits=LIMITS)
    try:
        yield
    finally:
        _end_all(site)
        site._write_knime()


@contextmanager
def _probed(site: BootedSite) -> Iterator[Path]:
    """Have workers note their steps; give where."""
    site.machine.run("mkdir", "--mode=1777", STEPS)
    worker = site.machine.root / "usr/lib/knime-peruser/root_helper/worker.py"
    text = worker.read_text(encoding="utf-8")
    add_probe(worker, STEPS)
    try:
        yield site.machine.root / STEPS.lstrip("/")
    finally:
        worker.write_text(text, encoding="utf-8")
        site.systemctl("restart", HELPER)


def _started(site: BootedSite, users: Sequence[str]) -> list[Told]:
    """Restart the helper with no executor there, and have it start everybody."""
    _end_all(site)
    site.systemctl("restart", HELPER)
    told = _asked(site, users, 30.0)
    expect_started(told)
    return told


def _seconds(site: BootedSite, users: Sequence[str]) -> tuple[float, ...]:
    return tuple(min(one.ms / 1000, BOUND) for one in _asked(site, users, BOUND))


def _asked(site: BootedSite, users: Sequence[str], bound: float) -> list[Told]:
    return answers(site.machine.run(*command(SOCKET, users, bound=bound, python="/usr/bin/python3")))


def _end_all(site: BootedSite) -> None:
    site.machine.run("sh", "-c", f"test ! -e {_SLICE_CGROUP} || echo 1 > {_SLICE_CGROUP}/cgroup.kill")
    wait_for(lambda: not site.executors(), 10, "the end of all executors")


def _bus_call(site: BootedSite) -> float:
    """Return how long one call to the bus's own daemon takes, at most 10 s."""
    call = ["busctl", "--timeout=10", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId"]
    began = monotonic()
    site.machine.run(*call, check=False)
    return monotonic() - began


@contextmanager
def _flood(site: BootedSite) -> Iterator[None]:
    """Have a local account flood the bus; it ends by itself after a minute and a half, too."""
    inside = ["nsenter", "-t", str(site.machine._init), "-a", "-r", "-w"]
    drop = ["setpriv", "--reuid", "local1", "--regid", "local1", "--clear-groups", "--"]
    flood = subprocess.Popen(
        [*inside, *drop, "/usr/bin/python3", "-I", "-c", PROGRAM],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    try:
        assert flood.stdout is not None
        if flood.stdout.readline() != b"flooding\n":
            raise RuntimeError("the flood did not begin")
        yield
    finally:
        flood.kill()
        flood.wait()
