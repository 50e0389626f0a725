"""The page of ``status``: what it shows of no, three and 300 executors, on terminals wide, narrow, low and dumb."""

import io
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest
from rich.console import Console

from broker_listener.operator.helper_socket import Listing
from broker_listener.operator.listener_socket import (
    Connection,
    Held,
    HelperSeen,
    HostFaultSeen,
    HostSeen,
    HostsSeen,
    OneOfThem,
    Snapshot,
    Totals,
)
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.overview import Entry, Overview
from broker_listener.operator.overview_page import page

pytestmark = pytest.mark.library

NOW = time.time()
SIZES = [(80, 24), (80, 12), (80, 9), (200, 60), (110, 24)]
LISTENER = Snapshot(
    "vm", "0.1.0", 40, NOW - 90, True, "knime-jobs", "knime-jobs.parked", "republish", 2,
    HelperSeen("up", NOW, False, 97), Held(3, 1200), Totals(9, 8, 1), (),
    connections={name: Connection("up", "broker:5672", NOW - 90, None) for name in ("consume", "publish")},
    parked={"denied_user": 1},
)  # fmt: skip


def entry(number: int, state: str = "ready", held: int = 0, pid: int | None = 1000) -> Entry:
    name = f"user{number:03}"
    return Entry(
        name, name, 2000 + number, pid and pid + number, state,
        since=NOW - 60, memory=2**31, cpu_seconds=5.0, cpu_share=0.5,
        jobs=5, handed_over=8, returned=4, held=held, parked=0,
    )  # fmt: skip


def overview(entries: Sequence[Entry], free: int | None = 97) -> Overview:
    helper = Listing((), draining=False, free=free or 0)
    return Overview(NOW, helper, LISTENER, MappingProxyType({}), tuple(entries))


def shown(of: Overview, columns: int, height: int | None = None, *, color: bool = False) -> list[str]:
    text = io.StringIO()
    made = Console(file=text, width=columns, force_terminal=color, color_system="standard" if color else None)
    made.print(page(of, columns, height))
    return text.getvalue().splitlines()


WITHOUT = [entry(900, "backing_off", held=3, pid=None), entry(901, "failed", pid=None)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 3, 300])
@pytest.mark.parametrize("without", [[], WITHOUT], ids=["nobody waits", "two have none"])
def test_a_watched_page_fits_its_terminal_and_says_how_many_there_are(
    size: tuple[int, int], count: int, without: list[Entry]
) -> None:
    columns, height = size
    lines = shown(overview([entry(number) for number in range(count)] + without), columns, height)
    assert len(lines) <= height
    assert all(len(line) <= columns for line in lines)
    text = "\n".join(lines)
    named = sum(f"user{number:03}" in text for number in range(count))
    assert count == named or f"{count - named} more: {count - named} ready" in text or f"{count} executors: " in text
    if without and height >= 12:
        assert "user900" in text or "2 users without executor: 1 backing_off, 1 failed" in text


def test_who_waits_is_shown_before_who_is_served_where_not_all_fit() -> None:
    crowd = [entry(number) for number in range(300)]
    crowd[200], crowd[250] = entry(200, "probing"), entry(250, "ready", held=2)
    lines = shown(overview(crowd), 80, 24)
    at = next(place for place, line in enumerate(lines) if line.startswith("user "))
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["user250", "user200", "user000"]


def test_where_nobody_sits_before_it_everybody_is_listed_by_name() -> None:
    crowd = [entry(number, "ready", held=number % 2) for number in range(300)]
    lines = shown(overview(crowd), 10_000)
    assert [line.split()[0] for line in lines if line.startswith("user") and line[4:7].isdigit()] == [
        one.user for one in crowd
    ]


def test_a_job_that_came_back_is_counted_once() -> None:
    (line,) = [line for line in shown(overview([entry(1)]), 80) if line.startswith("user001")]
    assert line.split() == ["user001", "1001", "ready", "1m00s", "2.0G", "50%", "5", "0", "0"]


def test_another_account_stands_beside_the_name_where_there_is_no_column_for_it() -> None:
    bob = Entry("Carol", "svc", 5, 6, "ready", since=NOW)
    assert any("Carol (svc)" in line for line in shown(overview([bob]), 80))
    assert any("Carol  svc" in line for line in shown(overview([bob]), 200))


def test_colours_add_nothing_that_words_do_not_say() -> None:
    of = overview([entry(1), *WITHOUT])
    plain, colored = shown(of, 80), shown(of, 80, color=True)
    assert any("\x1b[" in line for line in colored)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in colored] == plain


def test_daemons_that_are_away_are_said_to_be_and_the_page_is_still_one() -> None:
    why = {name: Stopped(Outcome.UNREACHABLE, f"{name}.sock: connection refused") for name in ("helper", "listener")}
    lines = shown(Overview(NOW, None, None, why, ()), 80, 24)
    assert "not known  listener.sock: connection refused" in lines[0]
    assert "not known  helper.sock: connection refused" in lines[1]
    assert lines[-1] == "no executor runs on this host"


def test_host_line_is_ok_or_says_what_fails_since_when_and_for_how_many() -> None:
    well = overview([])
    assert [line.split() for line in shown(well, 80) if line.startswith("host ")] == [
        ["host", "ok", "executors", "start"]
    ]
    faults = (HostFaultSeen("spawn_failed", NOW - 720, 14), HostFaultSeen("died_before_ready", NOW - 5, 3))
    ill = replace(well, listener=replace(LISTENER, host_faults=faults))
    assert [line for line in shown(ill, 80) if line.startswith("host ")] == [
        "host           fault      spawn_failed, for 12m00s, 14 users: the jobs are held",
        "host           fault      died_before_ready, for 5s, 3 users: the jobs are held",
    ]
    assert (well.outcome, ill.outcome) == (Outcome.DONE, Outcome.FINDING)


def test_failure_of_a_user_says_whose_fault_it_is() -> None:
    own = replace(entry(7, "backing_off", held=1, pid=None), reason="prepare_failed", blame="user")
    waits = replace(entry(8, "backing_off", held=1, pid=None), reason="host_fault", blame="host")
    text = "\n".join(shown(overview([own, waits]), 110))
    assert "prepare_failed (user)" in text
    assert "host_fault (host)" in text


def hosts(count: int, **changes: object) -> Snapshot:
    """Give what a listener tells that hears so many others: one that drains, one that is full, the rest free."""
    seen = [HostSeen("a", "up", 97, "all", None)]
    for number in range(count):
        free, state = (0 if number == 1 else 50), ("draining" if number == 0 else "up")
        seen.append(HostSeen(f"b{number:02}", state, free, "all", NOW - 1))
    executors = (OneOfThem("user001", "b00", "ready"), OneOfThem("user002", "b00", "starting"))
    cluster = HostsSeen("a", tuple(seen), executors, namesakes=0, ignored=0)
    return replace(LISTENER, cluster=replace(cluster, **changes))


def of_hosts(listener: Snapshot, columns: int = 80, height: int | None = None) -> list[str]:
    lines = shown(replace(overview([entry(1)]), listener=listener), columns, height)
    return [line for line in lines if line.startswith(("host b", "other hosts"))]


def test_other_hosts_are_named_those_that_start_nobody_first_and_the_rest_is_counted() -> None:
    assert of_hosts(hosts(3)) == [
        "host b00       draining   2 executors, room for 50 more, heard 1s ago",
        "host b01       full       0 executors, room for 0 more, heard 1s ago",
        "host b02       up         0 executors, room for 50 more, heard 1s ago",
    ]
    assert of_hosts(hosts(49))[-1] == "other hosts               43 more: 43 up"
    assert of_hosts(hosts(0)) == ["other hosts               none is heard"]
    assert of_hosts(hosts(49), height=20) == ["other hosts               49: 1 draining, 1 full, 47 up"]


def test_hosts_that_do_not_fit_together_are_said_to() -> None:
    other = HostSeen("b", "up", 5, "2", NOW)
    own = HostSeen("a", "up", 5, "all", None)
    (line,) = of_hosts(hosts(1, hosts=(own, other)), columns=200)
    assert line.endswith("executors_per_user 2, here all")
    assert "namesakes" in of_hosts(hosts(1, namesakes=4))[-1]


@pytest.mark.parametrize("size", SIZES)
def test_a_page_with_fifty_hosts_fits_its_terminal(size: tuple[int, int]) -> None:
    columns, height = size
    crowd = [entry(number) for number in range(300)]
    lines = shown(replace(overview(crowd), listener=hosts(49)), columns, height)
    assert len(lines) <= max(height, 10)
    assert all(len(line) <= columns for line in lines)
