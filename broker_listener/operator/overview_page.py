"""An overview as a page for a terminal: how the daemons are, who has an executor, and who has none and why.

Below 110 columns the account stands beside the user's name, where it is another, and uids are left out. What does
not fit a watched terminal's height is counted, and who waits comes before who is served. No colour carries a meaning
that words do not.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from broker_listener.operator.listener_socket import Connection, HostSeen, HostsSeen, Snapshot
from broker_listener.operator.output import Column, escaped, table
from broker_listener.operator.overview import Entry, Overview

WIDE: Final = 110
HIGH: Final = 24
MAX_HOSTS: Final = 6
"""Other hosts that have a line of their own, on a terminal that is high enough."""
_STYLES: Final = {
    "up": "green",
    "down": "bold red",
    "blocked": "yellow",
    "draining": "yellow",
    "not consuming": "red",
    "fault": "bold red",
}


def page(overview: Overview, columns: int, height: int | None = None) -> RenderableType:
    """Give the page; ``height`` is that of a terminal that it has to fit."""
    health = list(_health(overview, MAX_HOSTS if height is None or height >= HIGH else 0))
    running = [entry for entry in overview.entries if entry.pid is not None]
    without = [entry for entry in overview.entries if entry.pid is None]
    if height is None:
        return Group(*health, *_executors(running, overview.at, columns), *_without(without, overview.at, columns))
    for line in health:
        line.no_wrap, line.overflow = True, "ellipsis"
    room = max(0, height - len(health))
    needed_without = _TITLE + len(without) if without else 0
    room_without = min(needed_without, max(room // 4, room - _TITLE - len(running)))
    return Group(
        *health,
        *_executors(running, overview.at, columns, room - room_without),
        *_without(without, overview.at, columns, room_without),
    )


def size(number: int | None) -> str | None:
    """Give bytes in at most five characters: 999, 1.2K, 14M."""
    if number is None or number < 1000:
        return None if number is None else str(number)
    value = float(number)
    for unit in "KMGTP":
        value /= 1024
        if value < 999.5:
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return f"{value:.0f}P"


def lapse(seconds: float | None) -> str | None:
    """Give a time span in at most six characters: 45s, 12m03s, 3h20m, 12d05h."""
    if seconds is None:
        return None
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole}s"
    if hours < 1:
        return f"{minutes}m{whole % 60:02}s"
    if days < 1:
        return f"{hours}h{minutes % 60:02}m"
    return f"{days}d{hours % 24:02}h" if days < 100 else f"{days}d"


def _health(overview: Overview, hosts: int) -> Iterator[Text]:
    listener, helper = overview.listener, overview.helper
    if listener is not None:
        facts = f"pid {listener.pid}, for {lapse(overview.at - listener.since)}, version {escaped(listener.version)}"
        yield _line("listener", "up", f"{facts}, on {escaped(listener.host)}")
        for name, connection in sorted(listener.connections.items()):
            yield _connection(name, connection, overview.at)
        yield from _hosts(listener.cluster, overview.at, hosts)
    else:
        yield _missing("listener", overview)
    if helper is not None:
        yield _line("helper", "draining" if helper.draining else "up", _room(len(helper.executors), helper.free))
    elif listener is not None and listener.helper.state == "up":
        free = listener.helper.free
        yield _line("helper", "draining" if listener.helper.draining else "up", _room(None, free))
    else:
        yield _missing("helper", overview)
    if listener is not None:
        yield from _host(listener, overview.at)
        yield from _jobs(listener)


def _hosts(cluster: HostsSeen | None, now: float, most: int) -> Iterator[Text]:
    """Say how the other hosts are, those first that take nothing, and what does not fit together."""
    if cluster is None:
        return
    running = Counter(executor.host for executor in cluster.executors)
    own = next((host.executors_per_user for host in cluster.hosts if host.host == cluster.host), None)
    others = sorted(
        (host for host in cluster.hosts if host.host != cluster.host),
        key=lambda host: (_state_of(host) == "up", host.host),
    )
    for host in others[:most]:
        facts = f"{_room(running[host.host], host.free)}, heard {lapse(now - (host.heard or now))} ago"
        if host.executors_per_user not in {None, own}:
            facts += f", executors_per_user {escaped(host.executors_per_user, 20)}, here {escaped(own, 20)}"
        yield _line(f"host {escaped(host.host, 40)}", _state_of(host), facts)
    left = Counter(map(_state_of, others[most:]))
    if left or not others:
        told = ", ".join(f"{count} {escaped(state, 20)}" for state, count in sorted(left.items()))
        more = " more" if most and others else ""
        yield _line("other hosts", "", f"{left.total()}{more}: {told}" if left else "none is heard")
    if cluster.namesakes:
        yield _line("other hosts", "namesakes", "one bears a name that is in use: cluster.host must be unique")


def _state_of(host: HostSeen) -> str:
    return "full" if host.state == "up" and not host.free else host.state


def _connection(name: str, connection: Connection, now: float) -> Text:
    facts = f"{escaped(connection.server or 'no server')}, for {lapse(now - connection.since)}"
    why = f": {escaped(connection.why)}" if connection.why and connection.state != "up" else ""
    return _line(f"broker {escaped(name, 20)}", connection.state, facts + why)


def _room(running: int | None, free: int | None) -> str:
    known = [] if running is None else [f"{running} executor{'' if running == 1 else 's'}"]
    return ", ".join([*known, "room not known" if free is None else f"room for {free} more"])


def _host(listener: Snapshot, now: float) -> Iterator[Text]:
    """Return a line for each reason why executors do not start here, or one that says ok."""
    for fault in listener.host_faults:
        users = f"{fault.users} user{'' if fault.users == 1 else 's'}"
        facts = f"{escaped(fault.reason, 40)}, for {lapse(now - fault.since)}, {users}: the jobs are held"
        yield _line("host", "fault", facts)
    if not listener.host_faults:
        yield _line("host", "ok", "executors start")


def _jobs(listener: Snapshot) -> Iterator[Text]:
    held, totals = listener.held, listener.totals
    state = "consuming" if listener.consuming else "not consuming"
    waiting = f"{held.jobs} held ({size(held.bytes)}B), {listener.under_way} under way"
    if held.not_parked:
        waiting += f", {held.not_parked} cannot be parked"
    yield _line("jobs", state, f"{escaped(listener.queue)}, {waiting}")
    reasons = ", ".join(f"{escaped(reason)} {count}" for reason, count in sorted(listener.parked.items()))
    parked = f"{sum(listener.parked.values())} parked" + (f" ({reasons})" if reasons else "")
    counts = f"{totals.received} received, {totals.handed_over} handed over, {totals.returned} came back"
    yield _line("", "", counts)
    yield _line("", "", parked)


def _missing(daemon: str, overview: Overview) -> Text:
    stopped = overview.why.get(daemon)
    return _line(daemon, "not known", escaped(stopped, limit=400) if stopped else "")


def _line(name: str, state: str, facts: str) -> Text:
    line = Text(f"{name:<15}", style="bold")
    shown = f"{escaped(state, 20):<9}"
    line.append(shown, style=_STYLES.get(state, ""))
    line.append(f"  {facts}", style="not bold")
    return line


def _executors(entries: Sequence[Entry], now: float, columns: int, room: int | None = None) -> list[RenderableType]:
    if not entries:
        return _within(room, [Text(), Text("no executor runs on this host")])
    shown, left_out = _chosen(entries, room)
    if not shown:
        return _within(room, [_summary(f"{len(entries)} executors", entries)])
    wide = columns >= WIDE
    rows = [_row(entry, now, wide=wide) for entry in shown]
    made = table(_WIDE if wide else _NARROW, rows, columns, gap=2 if wide else 1)
    return [Text(), made, *left_out]


def _row(entry: Entry, now: float, *, wide: bool) -> list[object]:
    share = None if entry.cpu_share is None else f"{entry.cpu_share:.0%}"
    figures = [size(entry.memory), share, entry.jobs, entry.held, entry.parked]
    if wide:
        since = None if entry.since is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.since))
        return [entry.user, entry.os_user, entry.uid, entry.pid, entry.state, since, *figures]
    another = entry.os_user not in (None, entry.user, entry.user.lower())
    name = f"{entry.user} ({entry.os_user})" if another else entry.user
    running_for = None if entry.since is None else lapse(now - entry.since)
    return [name, entry.pid, entry.state, running_for, *figures]


def _without(entries: Sequence[Entry], now: float, columns: int, room: int | None = None) -> list[RenderableType]:
    if not entries:
        return []
    shown, left_out = _chosen(entries, room)
    if not shown:
        return _within(room, [_summary(f"{len(entries)} users without executor", entries)])
    rows = [
        [e.user, e.state, _why(e), None if e.since is None else lapse(now - e.since), e.held, e.parked] for e in shown
    ]
    made = table(_WITHOUT, rows, columns, gap=2 if columns >= WIDE else 1)
    return [Text(), made, *left_out]


def _why(entry: Entry) -> str | None:
    return entry.reason if entry.blame is None else f"{entry.reason} ({entry.blame})"


def _chosen(entries: Sequence[Entry], room: int | None) -> tuple[Sequence[Entry], list[Text]]:
    """Give those that are shown, and the line about the others: where not all fit, who waits or starts comes first."""
    if room is None or len(entries) + _TITLE <= room:
        return entries, []
    ordered = sorted(entries, key=lambda entry: (entry.is_quiet, not entry.held, entry.user))
    count = max(0, room - _TITLE - 1)
    return ordered[:count], [_summary(f"... and {len(entries) - count} more", ordered[count:])]


def _summary(what: str, entries: Sequence[Entry]) -> Text:
    states = Counter(entry.state or "state not known" for entry in entries)
    told = ", ".join(f"{count} {escaped(state, 20)}" for state, count in sorted(states.items()))
    return Text(f"{what}: {told}", no_wrap=True, overflow="ellipsis")


def _within(room: int | None, lines: list[Text]) -> list[RenderableType]:
    return list(lines if room is None else lines[-room:] if room > 0 else [])


_TITLE: Final = 2
"""Lines of a table beside its rows: an empty one, and the heading."""
_FIGURES: Final = tuple(Column(title, right=True) for title in ("memory", "cpu", "jobs", "held", "parked"))
_WIDE: Final = (
    Column("user", may_be_cut=True),
    Column("account", may_be_cut=True),
    Column("uid", right=True),
    Column("pid", right=True),
    Column("state"),
    Column("since"),
    *_FIGURES,
)
_NARROW: Final = (
    Column("user", may_be_cut=True),
    Column("pid", right=True),
    Column("state"),
    Column("for", right=True),
    *_FIGURES,
)
_WITHOUT: Final = (
    Column("without executor", may_be_cut=True),
    Column("state"),
    Column("reason"),
    Column("for", right=True),
    Column("held", right=True),
    Column("parked", right=True),
)
