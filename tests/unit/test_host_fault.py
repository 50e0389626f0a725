"""Whose fault it is that executors do not start: rules one by one, and a model that remembers all that happened."""

from itertools import takewhile
from math import inf
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker_listener.host_fault import MAX_USERS, RENEWED_WITHIN, FaultReason, HostFaults

USERS = ("alice", "bob", "carol", "dave")
STARTS = [reason for reason in FaultReason if reason is not FaultReason.DIED_BEFORE_READY]
DIED = FaultReason.DIED_BEFORE_READY
PREPARE, SPAWN, AUDIT = FaultReason.PREPARE_FAILED, FaultReason.SPAWN_FAILED, FaultReason.AUDIT_UNAVAILABLE


def test_two_users_without_success_between_are_the_hosts() -> None:
    host = HostFaults()
    host.struck("alice", PREPARE, 1.0)
    host.struck("alice", PREPARE, 2.0)
    assert host.start_fault(2.0) is None
    host.struck("bob", SPAWN, 3.0)
    assert host.start_fault(3.0) == (SPAWN, 1.0, 2)
    host.started(4.0)
    assert host.faults(4.0) == []


def test_success_between_makes_each_failure_the_users_own() -> None:
    host = HostFaults()
    for now in range(20):
        host.struck(USERS[now % 4], PREPARE, float(now))
        assert host.start_fault(float(now)) is None
        host.started(float(now))


def test_audit_log_is_the_hosts_whichever_user_meets_it() -> None:
    host = HostFaults()
    host.struck("alice", AUDIT, 1.0)
    assert host.start_fault(1.0) == (AUDIT, 1.0, 1)


def test_deaths_need_three_users_and_end_with_one_ready() -> None:
    host = HostFaults()
    for user in ("alice", "bob", "alice", "bob"):
        host.died(user, 1.0)
    assert host.death_fault(1.0) is None
    host.died("carol", 2.0)
    assert host.death_fault(2.0) == (DIED, 1.0, 3)
    host.started(3.0)
    assert host.death_fault(3.0) is not None, "what was started may die, too"
    host.ready(4.0)
    assert host.death_fault(4.0) is None


def test_ready_executor_says_nothing_of_starts() -> None:
    host = HostFaults()
    host.struck("alice", PREPARE, 1.0)
    host.ready(2.0)
    host.struck("bob", PREPARE, 3.0)
    assert host.start_fault(3.0) is not None


def test_fault_that_nobody_meets_again_is_forgotten() -> None:
    host = HostFaults()
    host.struck("alice", PREPARE, 0.0)
    host.struck("bob", PREPARE, 0.0)
    assert host.start_fault(RENEWED_WITHIN - 1) is not None
    assert host.start_fault(RENEWED_WITHIN) is None
    assert [change.over for change in host.take_changes(RENEWED_WITHIN)] == [False, True]


def test_users_in_a_row_are_bounded() -> None:
    host = HostFaults()
    for number in range(MAX_USERS + 5):
        host.struck(f"u{number}", PREPARE, 1.0)
    fault = host.start_fault(1.0)
    assert fault is not None
    assert fault.users == MAX_USERS


class Past(NamedTuple):
    """Something that happened; ``user`` is None for a success."""

    at: float
    user: str | None
    reason: FaultReason | None


class HostFaultModel(RuleBasedStateMachine):
    """Compares with a full history, looked through from its end each time, and follows what changes are told."""

    def __init__(self) -> None:
        super().__init__()
        self.host = HostFaults()
        self.now = 0.0
        self.starts: list[Past] = []
        self.deaths: list[Past] = []
        self.is_fault = {False: False, True: False}

    @rule(user=st.sampled_from(USERS), reason=st.sampled_from(STARTS))
    def start_fails(self, user: str, reason: FaultReason) -> None:
        self.host.struck(user, reason, self.now)
        self.starts.append(Past(self.now, user, reason))

    @rule()
    def start_works(self) -> None:
        self.host.started(self.now)
        self.starts.append(Past(self.now, None, None))

    @rule(user=st.sampled_from(USERS))
    def executor_dies(self, user: str) -> None:
        voided = self.host.deaths_voided
        was = self.expected(self.deaths, lambda _: 3)
        self.host.died(user, self.now)
        self.deaths.append(Past(self.now, user, DIED))
        is_new = was is None and self.expected(self.deaths, lambda _: 3) is not None
        assert self.host.deaths_voided == voided + is_new

    @rule()
    def executor_is_ready(self) -> None:
        self.host.ready(self.now)
        self.deaths.append(Past(self.now, None, None))

    @rule(seconds=st.sampled_from([0.0, 0.5, 20.0, 400.0, RENEWED_WITHIN, 5000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def fault_is_what_the_history_says(self) -> None:
        needed = {AUDIT: 1}
        starts = self.expected(self.starts, lambda reason: needed.get(reason, 2))
        assert self.host.start_fault(self.now) == starts
        assert self.host.death_fault(self.now) == self.expected(self.deaths, lambda _: 3)

    @invariant()
    def changes_follow_each_other(self) -> None:
        for change in self.host.take_changes(self.now):
            of_deaths = change.fault.reason is DIED
            assert self.is_fault[of_deaths] == change.over, "a fault begins, then it ends"
            assert bool(change.users) is not change.over
            self.is_fault[of_deaths] = not change.over
        assert self.is_fault[False] == (self.host.start_fault(self.now) is not None)
        assert self.is_fault[True] == (self.host.death_fault(self.now) is not None)

    def expected(self, history: list[Past], needed) -> tuple[FaultReason, float, int] | None:
        """Return the fault by the rule's words: so many users, with no success and no long silence between."""
        row = list(takewhile(lambda past: past.user is not None, reversed(history)))[::-1]
        begin, before = 0, inf
        for number, past in enumerate(row):
            if past.at - before >= RENEWED_WITHIN:
                begin = number
            before = past.at
        row = row[begin:]
        if not row or self.now - row[-1].at >= RENEWED_WITHIN:
            return None
        is_hosts = False
        for number, past in enumerate(row):
            fresh = {other.user for other in row[: number + 1] if past.at - other.at < RENEWED_WITHIN}
            is_hosts = is_hosts or len(fresh) >= needed(past.reason)
        users = {past.user for past in row if self.now - past.at < RENEWED_WITHIN}
        return (row[-1].reason, row[0].at, len(users)) if is_hosts else None


TestHostFaultModel = HostFaultModel.TestCase
TestHostFaultModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
