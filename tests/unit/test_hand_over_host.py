"""What the per-user machines do while the host is at fault, one rule a test; time is a number."""

from collections import defaultdict, deque
from itertools import pairwise
from math import inf

import pytest

from broker_listener.actions import Ask, Fault, Park
from broker_listener.ask_queue import MAX_FRESH
from broker_listener.host_fault import Blame
from broker_listener.job_log import HostChanged
from broker_listener.probes import PAUSE, PAUSE_OF_SEVERAL
from broker_listener.start_failures import OUTAGE_PAUSE, PATIENT_AFTER, PATIENT_PAUSE
from broker_listener.transitions import State
from protocol.messages import Failed, FailedReason, Refused, RefusedReason, Started
from tests.lab.machine_driver import ID, Listener, OneOfSeveral

LONG = {"max_hold": 1e6}
PREPARE, SPAWN = FailedReason.PREPARE_FAILED, FailedReason.SPAWN_FAILED


def fails(listener: Listener, user: str, reason: FailedReason = SPAWN, retry_after: float = 5.0) -> None:
    listener.helper(user, Failed(ID, reason, retry_after))


def asked(listener: Listener) -> list[str]:
    """Return who is being asked for, without an answer so far."""
    return [user.name for user in listener.machine.users.values() if user.asking]


def at_fault(users: int = 2) -> Listener:
    """Return one whose first users, u0 and so on, cannot be started."""
    listener = Listener(LONG)
    for number in range(users):
        listener.job(f"u{number}", f"first of {number}")
    for number in range(users):
        fails(listener, f"u{number}")
    assert listener.machine.host.start_fault(listener.now) is not None
    listener.actions.clear()
    return listener


def reasons(listener: Listener) -> list[tuple[str, bool]]:
    told = [one for one in listener.machine.take_happened() if isinstance(one, HostChanged)]
    return [(one.reason, one.over) for one in told]


def test_new_user_is_the_next_probe_and_success_asks_for_all() -> None:
    """Of thirty who wait, one is asked for; once that start has worked, all the others are at once."""
    listener = at_fault()
    names = [f"new{number:02}" for number in range(30)]
    for name in names:
        listener.job(name, name)
    assert asked(listener) == names[:1]
    assert {listener.machine.users[name].reason for name in names[1:]} == {"host_fault"}
    listener.started(names[0])
    listener.wait(0.0)
    assert set(names[1:]) <= set(asked(listener))
    assert reasons(listener) == [("spawn_failed", False), ("spawn_failed", True)]
    assert listener.machine.next_deadline() > listener.now


def test_host_at_fault_is_probed_once_a_second_whoever_waits() -> None:
    listener = at_fault(20)
    times = []
    for _ in range(600):
        for user in asked(listener):
            times.append(listener.now)
            fails(listener, user)
        listener.wait(0.1)
    assert all(later - earlier >= PAUSE - 1e-6 for earlier, later in pairwise(times))
    assert len(times) >= 50, "and about as often as that"
    assert not listener.of(Park)


def test_probe_that_has_no_answer_holds_up_no_other() -> None:
    listener = at_fault()
    for name in ("hangs", "next", "last"):
        listener.job(name, name)
    assert asked(listener) == ["hangs"]
    listener.wait(2.1)
    assert asked(listener) == ["hangs", "next", "last"]


@pytest.mark.parametrize("answer", [Failed(ID, FailedReason.RATE_LIMITED, 9.0), Refused(ID, RefusedReason.DENIED_USER)])
def test_probe_that_says_nothing_of_the_host_changes_nothing(answer: object) -> None:
    listener = at_fault()
    listener.job("new", "one")
    listener.helper("new", answer)
    assert listener.machine.host.start_fault(listener.now) is not None
    assert reasons(listener) == [("spawn_failed", False)]
    listener.job("other", "two")
    assert asked(listener) == ["other"], "the turn was given back"


class Helper:
    """A helper that answers at once, counts six starts of a user in a minute, and refuses the seventh."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.counted: dict[str, deque[float]] = defaultdict(lambda: deque([-inf] * 6, maxlen=6))
        self.started: set[str] = set()

    def answer(self, *, well: bool) -> None:
        now = self.listener.now
        for user in asked(self.listener):
            wait = self.counted[user][0] + 60.0 - now
            if wait > 0:
                fails(self.listener, user, FailedReason.RATE_LIMITED, wait)
                continue
            self.counted[user].append(now)
            if well:
                self.listener.started(user)
                self.started.add(user)
            else:
                fails(self.listener, user)


@pytest.mark.parametrize("lasts", [3.0, 20.0, 55.5, 61.0, 333.0, 4000.0])
@pytest.mark.parametrize("users", [1, 2, 100])
def test_all_run_within_thirty_seconds_of_the_mending(users: int, lasts: float) -> None:
    """However many wait and however long it lasted; but for one alone, whose fault it is after an hour."""
    listener = Listener(LONG)
    helper = Helper(listener)
    for number in range(users):
        listener.job(f"u{number}", str(number))
    mended_at = listener.now + lasts
    while listener.now < mended_at:
        helper.answer(well=False)
        listener.wait(0.25)
    limit = PATIENT_PAUSE if users == 1 and lasts > PATIENT_AFTER else 30.0
    while len(helper.started) < users:
        helper.answer(well=True)
        listener.wait(0.25)
        assert listener.now <= mended_at + limit
    assert not listener.of(Park)


def test_names_that_nobody_has_do_not_hide_that_the_host_is_well() -> None:
    """Six thousand of them wait; each look-up takes 20 ms, and each name is asked for again and again."""
    listener = at_fault()
    for number in range(6000):
        listener.job(f"x{number}", str(number))
    listener.job("new", "real")
    known = {"u0", "u1", "new"}
    begun, turns = listener.now, []
    while listener.machine.host.start_fault(listener.now) is not None and listener.now < begun + 30:
        for user in asked(listener):
            turns.append(user)
            if user in known:
                listener.started(user)
            else:
                listener.helper(user, Refused(ID, RefusedReason.UNKNOWN_USER))
            listener.wait(0.02)
        listener.wait(0.02)
    assert turns[-1] in known
    assert listener.now - begun < 2.0


def test_new_helper_is_asked_at_once_for_those_who_wait_ten_minutes() -> None:
    """It may have been started again with what mends them in its configuration."""
    listener = Listener(LONG)
    listener.job("bob", "one")
    begun = listener.now
    while listener.now < begun + PATIENT_AFTER + 60:
        if asked(listener):
            fails(listener, "bob", PREPARE)
        listener.wait(1.0)
    assert not asked(listener)
    listener.listed()
    listener.collect()
    assert asked(listener) == ["bob"]


def test_user_who_waits_in_line_without_jobs_takes_no_turn() -> None:
    listener = at_fault()
    listener.job("a", "one")
    for name in ("b", "c"):
        listener.job(name, name)
    listener.machine.deliveries_lost(listener.now)
    listener.job("d", "two")
    listener.wait(1.1)
    assert asked(listener) == ["a", "d"]
    assert listener.state("b") is State.ABSENT


def test_user_in_line_whose_executor_is_found_is_served() -> None:
    listener = at_fault()
    for name in ("a", "b"):
        listener.job(name, name)
    listener.machine.answered("a", None, 0, listener.now)
    assert listener.state("b") is State.BACKING_OFF
    listener.running("a")
    listener.wait(PAUSE)
    assert asked(listener)[-1:] == ["b"]
    listener.running("b")
    assert "b" in listener.bodies()


def test_own_fault_is_tried_for_an_hour_then_every_ten_minutes() -> None:
    listener = Listener(LONG)
    listener.job("bob", "one")
    begun, times = listener.now, []
    while listener.now < begun + 2 * PATIENT_AFTER:
        if asked(listener):
            times.append(listener.now - begun)
            fails(listener, "bob", PREPARE)
        listener.wait(0.5)
    early = [later - earlier for earlier, later in pairwise(time for time in times if time < PATIENT_AFTER)]
    late = [later - earlier for earlier, later in pairwise(time for time in times if time > PATIENT_AFTER)]
    assert max(early) <= OUTAGE_PAUSE + 1
    assert min(late) >= PATIENT_PAUSE
    assert Fault.STARTS_FAIL_FOR_LONG in listener.faults()
    assert listener.machine.users["bob"].starts.blame is Blame.USER
    assert not listener.of(Park)


def test_fault_that_becomes_the_hosts_ends_a_pause_of_ten_minutes() -> None:
    listener = Listener(LONG)
    listener.job("bob", "one")
    begun = listener.now
    while listener.now < begun + PATIENT_AFTER + 60:
        if asked(listener):
            fails(listener, "bob", PREPARE)
        listener.wait(1.0)
    listener.job("eve", "two")
    fails(listener, "eve", PREPARE)
    assert asked(listener) == ["bob"]
    assert listener.machine.users["bob"].starts.blame is Blame.HOST


def test_hosts_fault_does_not_count_towards_a_users_hour() -> None:
    listener = at_fault()
    begun = listener.now
    while listener.now < begun + PATIENT_AFTER + 60:
        for user in asked(listener):
            fails(listener, user)
        listener.wait(1.0)
    listener.job("new", "one")
    listener.wait(1.1)
    listener.started("new")
    while "u0" not in asked(listener):
        listener.wait(0.5)
    fails(listener, "u0")
    listener.wait(OUTAGE_PAUSE + 1)
    assert "u0" in asked(listener), "its own hour begins with its first failure after the host's"


def test_own_fault_beside_the_hosts_outlives_it_and_parks_nothing() -> None:
    """A user who cannot be started at all is the host's concern while it is at fault, and the user's own afterwards."""
    listener = at_fault()
    bad, begun = "u0", listener.now
    while listener.now < begun + 100:
        for user in asked(listener):
            fails(listener, user)
        listener.wait(0.5)
    while listener.now < begun + 200:
        for user in asked(listener):
            if user == bad:
                fails(listener, user, PREPARE)
            else:
                listener.started(user)
        listener.wait(0.5)
    assert listener.machine.host.faults(listener.now) == []
    assert listener.machine.users[bad].starts.blame is Blame.USER
    assert listener.machine.users["u1"].executor is not None
    assert not listener.of(Park)


def test_users_who_alternate_between_well_and_ill_are_no_fault_of_the_host() -> None:
    listener = Listener(LONG)
    for number in range(30):
        user = f"u{number}"
        listener.job(user, user)
        if number % 2:
            fails(listener, user)
        else:
            listener.started(user, 100 + number)
        assert listener.machine.host.faults(listener.now) == []


def test_retry_after_is_obeyed() -> None:
    listener = Listener(LONG)
    listener.job("bob", "one")
    for pause in (1.0, 2.0, 30.0, 30.0):
        fails(listener, "bob", PREPARE, pause)
        listener.wait(pause - 0.01)
        assert not asked(listener)
        listener.wait(OUTAGE_PAUSE)


def dies(listener: Listener, user: str, pid: int) -> None:
    listener.started(user, pid)
    listener.exited(user, pid)


def test_deaths_of_three_users_park_none_of_them() -> None:
    listener = Listener(LONG, max_start_attempts=3)
    users = ("alice", "bob", "carol")
    for user in users:
        listener.job(user, user)
    for turn in range(20):
        for number, user in enumerate(users):
            dies(listener, user, 10 * turn + number + 1)
        listener.wait(1.1)
    assert not listener.of(Park)
    assert {listener.machine.users[user].starts.blame for user in users} == {Blame.HOST}
    listener.started("alice", 999)
    listener.connected("alice")
    for pid in (1000, 1001):
        listener.wait(1.1)
        dies(listener, "bob", pid)
    assert not listener.of(Park), "what was the host's is not bob's"
    listener.wait(1.1)
    dies(listener, "bob", 1002)
    assert listener.parked() == [("bob", "start_failed")]


def test_jobs_that_come_once_deaths_are_the_hosts_are_not_parked() -> None:
    """One user had too many already: the parking ends as soon as it is known to be the host."""
    listener = Listener(LONG, max_start_attempts=1)
    listener.job("alice", "one")
    dies(listener, "alice", 1)
    assert listener.parked() == [("one", "start_failed")]
    for pid, user in ((2, "bob"), (3, "carol")):
        listener.job(user, user)
        dies(listener, user, pid)
    listener.actions.clear()
    listener.job("alice", "two")
    assert not listener.of(Park)


def test_start_is_no_success_for_those_that_die() -> None:
    """The row of deaths ends with ready, not with started."""
    listener = Listener(LONG, max_start_attempts=2)
    listener.job("bob", "one")
    dies(listener, "bob", 1)
    listener.wait(1.1)
    listener.started("bob", 2)
    assert not listener.of(Park)
    listener.exited("bob", 2)
    assert listener.parked() == [("one", "start_failed")]


def test_death_that_is_heard_of_before_the_start_counts() -> None:
    """The notice may be read before the reply that was sent earlier."""
    listener = Listener(LONG, max_start_attempts=3)
    listener.job("bob", "one")
    for pid in (1, 2, 3):
        heard = next(listener.numbers)
        listener.exited("bob", pid)
        listener.machine.answered("bob", Started(ID, "bob", 1000, pid, 1.0, 5), heard, listener.now)
        listener.collect()
        listener.wait(1.1)
    assert listener.parked() == [("one", "start_failed")]


def test_executor_that_ran_before_we_looked_proves_nothing() -> None:
    listener = Listener(LONG)
    for pid, user in enumerate(("alice", "bob", "carol"), 1):
        listener.job(user, user)
        dies(listener, user, pid)
    assert listener.machine.host.death_fault(listener.now) is not None
    listener.job("old", "four")
    listener.running("old", 9)
    listener.wait(1.0)
    assert listener.state("old") is State.READY
    assert listener.machine.host.death_fault(listener.now) is not None


def test_host_at_fault_among_others_asks_who_starts_the_user() -> None:
    """A turn is a probe; whoever has none is asked for all the same, so that another host may start the user."""
    listener = OneOfSeveral()
    for user in ("alice", "bob"):
        listener.job(user, user)
    for user in ("alice", "bob"):
        fails(listener, user)
    listener.actions.clear()
    for number in range(5):
        listener.job(f"new{number}", "job")
    assert [action.probe for action in listener.of(Ask)] == [True, False, False, False, False]
    listener.wait(PAUSE_OF_SEVERAL + 0.1)
    listener.actions.clear()
    listener.job("later", "job")
    assert [action.probe for action in listener.of(Ask)] == [True]


def test_host_where_executors_die_among_others_starts_probes_alone() -> None:
    listener = OneOfSeveral()
    for pid, user in enumerate(("alice", "bob", "carol"), 1):
        listener.job(user, user)
        dies(listener, user, pid)
    listener.actions.clear()
    for number in range(3):
        listener.job(f"new{number}", "job")
    assert [action.probe for action in listener.of(Ask)] == [True, False, False]
    listener.started("new0", 9)
    listener.connected("new0")
    listener.job("last", "job")
    assert listener.machine.host.faults(listener.now) == []


def test_flood_of_users_on_a_host_at_fault_costs_a_line_each() -> None:
    listener = at_fault()
    for number in range(5000):
        listener.job(f"new{number}", str(number))
    assert len(asked(listener)) == 1
    listener.wait(10.0)
    assert len(asked(listener)) <= 12
    listener.helper("new0", Started(ID, "new0", 1000, 7, 1.0, 5))
    assert len(listener.of(Ask)) <= MAX_FRESH + 12
