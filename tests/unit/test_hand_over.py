"""The per-user machine's rules, one a test; time is a number here and nothing waits."""

from collections import deque
from itertools import pairwise
from math import inf

import pytest

from broker_listener.actions import (
    Ack,
    Ask,
    CancelConsumer,
    Fault,
    GiveBack,
    HandOver,
    Park,
    PutBack,
    ResumeConsumer,
    Unwatch,
    Watch,
)
from broker_listener.confirms import Outcome
from broker_listener.consuming import Delivery
from broker_listener.properties import Properties
from broker_listener.steps import Steps
from broker_listener.transitions import TRANSITIONS, Do, Event, State
from broker_listener.user import User
from protocol.messages import (
    ExecutorEntry,
    Failed,
    FailedReason,
    Refused,
    RefusedReason,
    Running,
    Started,
)
from tests.lab.machine_driver import ID, Listener

# The table


def test_the_table_has_a_step_for_every_event_in_every_state() -> None:
    assert set(TRANSITIONS) == {(state, event) for state in State for event in Event}


def test_every_job_can_settle_from_every_state_that_holds_one() -> None:
    """From each state some events lead to where jobs are handed over, and some to where they are parked."""
    for state in State:
        reached = {state}
        while True:
            further = reached | {step.state for (at, _), step in TRANSITIONS.items() if at in reached}
            if further == reached:
                break
            reached = further
        assert {State.READY, State.FAILED} <= reached


def test_a_job_is_handed_over_only_in_probing_and_ready_and_parked_only_in_failed() -> None:
    for step in TRANSITIONS.values():
        if step.do in (Do.SERVE, Do.CHECK, Do.PROBE):
            assert step.state in (State.PROBING, State.READY)
        if step.do is Do.PARK:
            assert step.state is State.FAILED


def test_where_a_job_arrives_without_an_executor_one_is_asked_for_or_was() -> None:
    asked = {State.STARTING, State.BACKING_OFF}
    for event in (Event.JOB, Event.RETURNED):
        assert TRANSITIONS[State.ABSENT, event].do is Do.ASK
        assert {TRANSITIONS[state, event].state for state in asked} == asked


# A first job


def test_a_new_user_s_job_is_held_until_the_executor_is_connected() -> None:
    listener = Listener()
    job = listener.job("bob", "one")
    assert listener.actions == [Ask("bob", fresh=True)]
    listener.started("bob")
    assert listener.actions[1:] == [Watch("bob", 1000, 5)]
    listener.wait(10)
    assert not listener.of(HandOver)
    listener.connected("bob")
    assert listener.actions[2:] == [Unwatch("bob"), HandOver(1, job), Ack(job)]


def test_the_first_job_is_the_probe_and_the_others_follow_when_it_stays_away() -> None:
    listener = Listener()
    listener.jobs("bob", "one", "two", "three")
    listener.started("bob")
    listener.connected("bob")
    listener.wait(0.19)
    assert listener.bodies() == ["one"]
    listener.wait(0.02)
    assert listener.bodies() == ["one", "two", "three"]
    assert listener.state("bob") is State.READY


def test_while_the_probe_is_out_further_jobs_wait() -> None:
    listener = Listener()
    listener.job("bob", "one")
    listener.running("bob")
    listener.outcome = None
    for number in range(10):
        listener.wait(0.015)
        listener.job("bob", f"job {number}")
    assert listener.bodies() == ["one"]


def test_a_probe_that_comes_back_is_tried_again_alone() -> None:
    listener = Listener()
    listener.jobs("bob", "one", "two")
    listener.running("bob")
    for _ in range(5):
        listener.job("bob", "one")
        listener.wait(0.1)
    assert listener.bodies() == ["one"] * 6
    listener.wait(0.2)
    assert listener.bodies()[6:] == ["two"]


def test_an_executor_that_ran_before_is_probed_at_once() -> None:
    listener = Listener()
    listener.job("bob", "one")
    listener.running("bob")
    assert listener.bodies() == ["one"]
    assert listener.state("bob") is State.PROBING


def test_in_delay_mode_the_delay_after_the_start_stands_for_the_connection() -> None:
    listener = Listener(ready="delay", ready_delay=3.0)
    listener.job("bob", "one")
    listener.started("bob")
    assert not listener.of(Watch)
    listener.wait(2.9)
    assert not listener.of(HandOver)
    listener.wait(0.2)
    assert listener.bodies() == ["one"]


def test_after_start_timeout_the_job_is_handed_over_all_the_same_and_the_fault_is_reported() -> None:
    listener = Listener(start_timeout=45.0)
    listener.job("bob", "one")
    listener.wait(5)
    listener.started("bob")
    listener.wait(39.9)
    assert not listener.of(HandOver)
    listener.wait(0.2)
    assert listener.bodies() == ["one"]
    assert listener.faults() == [Fault.START_OVERDUE]


def test_start_timeout_counts_from_the_first_sight_though_the_job_is_redelivered() -> None:
    listener = Listener(start_timeout=45.0)
    listener.job("bob", "one")
    listener.started("bob")
    listener.wait(40)
    listener.machine.deliveries_lost(listener.now)
    listener.job("bob", "one")
    listener.wait(5.1)
    assert listener.bodies() == ["one"]
    assert listener.faults() == [Fault.START_OVERDUE]


def test_for_a_job_that_comes_back_start_timeout_begins_anew() -> None:
    listener = Listener(start_timeout=45.0)
    listener.ready("bob")
    listener.job("bob", "one")
    listener.wait(100)
    listener.exited("bob")
    listener.job("bob", "one")
    listener.started("bob", pid=8)
    listener.actions.clear()
    listener.wait(44)
    assert not listener.of(HandOver)
    listener.wait(1.1)
    assert listener.bodies() == ["one"]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        Failed(ID, FailedReason.DRAINING, 5.0),
        Failed(ID, FailedReason.AT_CAPACITY, 5.0),
        Failed(ID, FailedReason.AUDIT_UNAVAILABLE, 5.0),
        Failed(ID, FailedReason.LOOKUP_TIMEOUT, 5.0),
    ],
)
def test_without_a_started_executor_start_timeout_hands_nothing_over(answer: object) -> None:
    listener = Listener(start_timeout=45.0)
    listener.job("bob", "one")
    for _ in range(40):
        listener.helper("bob", answer)
        listener.wait(10.1)
    assert not listener.of(HandOver)
    assert not listener.of(Park)
    assert listener.state("bob") is State.STARTING


def test_a_ready_user_s_job_is_handed_over_at_once_and_acked_after_the_confirm() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.outcome = None
    job = listener.job("bob", "two")
    assert [type(action) for action in listener.actions] == [HandOver]
    listener.answer(Outcome.CONFIRMED)
    assert listener.actions[1:] == [Ack(job)]


# Returned jobs


def test_returned_jobs_wait_in_one_line_oldest_first_one_an_interval() -> None:
    listener = Listener(retry_initial=0.01, retry_max=0.25)
    listener.ready("bob")
    listener.jobs("bob", "a", "b", "c", "d")
    listener.actions.clear()
    listener.jobs("bob", "d", "b", "a")
    assert not listener.of(HandOver)
    listener.wait(0.0105)
    assert listener.bodies() == ["a"]
    listener.wait(0.010)
    assert listener.bodies() == ["a", "b"]
    listener.wait(0.010)
    assert listener.bodies() == ["a", "b", "d"]


def test_a_first_hand_over_waits_behind_what_came_back_of_its_user_and_nobody_else_s() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.ready("eve")
    listener.jobs("bob", "a", "a", "new")
    listener.job("eve", "other")
    assert listener.bodies() == ["a", "other"]
    listener.wait(0.1)
    assert listener.bodies() == ["a", "other", "a", "new"]


def test_a_job_that_comes_back_is_counted_once() -> None:
    """Each round is a hand-over and a return; of two jobs, of which one comes back again and again, two are counted."""
    listener = Listener()
    listener.ready("alice")
    before = listener.machine.users["alice"].jobs
    listener.jobs("alice", "one", "two")
    for _ in range(3):
        listener.job("alice", "one", handed=True)
        assert listener.machine.users["alice"].jobs - before == 2
        listener.wait(1.0)
    assert listener.machine.users["alice"].jobs - before == 2
    assert listener.machine.users["alice"].handed_over > 2 + before


def test_the_pause_grows_five_percent_a_return_up_to_retry_max_while_nothing_is_accepted() -> None:
    listener = Listener(retry_initial=0.01, retry_max=0.25)
    listener.ready("bob")
    listener.job("bob", "a")
    pauses = []
    for _ in range(200):
        listener.job("bob", "a")
        handed = len(listener.of(HandOver))
        before = listener.now
        while len(listener.of(HandOver)) == handed:
            listener.wait(0.001)
        pauses.append(listener.now - before)
    assert pauses[0] == pytest.approx(0.01, abs=0.002)
    assert all(later >= earlier - 0.002 for earlier, later in pairwise(pauses))
    assert pauses[-1] == pytest.approx(0.25, abs=0.002)


def test_a_job_that_a_listener_handed_over_is_paced_though_it_was_forgotten_here() -> None:
    """More than are remembered are on their way round, or this listener was started after they were handed over."""
    listener = Listener(retry_initial=0.01)
    listener.ready("bob")
    for number in range(5):
        listener.job("bob", f"job {number}", handed=True)
    assert not listener.of(HandOver)
    listener.wait(0.0105)
    assert listener.bodies() == ["job 0"]
    listener.wait(0.010)
    assert listener.bodies() == ["job 0", "job 1"]


def test_at_the_bound_only_returns_per_second_holds_back_what_came_back_since_it_hides_other_users() -> None:
    listener = Listener({"prefetch": 100}, retry_initial=0.25)
    listener.ready("bob")
    for number in range(100):
        listener.job("bob", f"job {number}", handed=True)
    assert len(listener.of(CancelConsumer)) == 1
    listener.wait(0.25 + 51 / 500)
    assert len(listener.of(ResumeConsumer)) == 1
    listener.wait(1.0)
    assert 51 <= len(listener.bodies()) <= 60


def test_an_accepted_job_makes_the_pause_short_again() -> None:
    listener = Listener(retry_initial=0.01, retry_max=0.25)
    listener.ready("bob")
    listener.job("bob", "a")
    for _ in range(200):
        listener.job("bob", "a")
        listener.wait(0.26)
        if listener.machine._users["bob"].pace._interval > 0.1:
            break
        listener.machine._users["bob"].pace.out.clear()
    listener.jobs("bob", "b", "b")
    handed = len(listener.of(HandOver))
    listener.wait(0.3)
    listener.job("bob", "b")
    listener.wait(0.012)
    assert len(listener.of(HandOver)) >= handed + 2


def test_returned_jobs_of_all_users_together_are_bounded_a_second() -> None:
    listener = Listener(returns_per_second=100)
    users = [f"user{number}" for number in range(300)]
    for user in users:
        listener.ready(user)
        listener.job(user, f"a {user}")
    listener.actions.clear()
    for user in users:
        listener.job(user, f"a {user}")
    listener.wait(1.0)
    assert 95 <= len(listener.bodies()) <= 110
    listener.wait(2.1)
    assert sorted(listener.bodies()) == sorted(f"a {user}" for user in users)


def test_a_job_that_comes_back_makes_the_helper_be_asked_again_at_most_once_a_second() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.wait(1.0)
    listener.job("bob", "a")
    for _ in range(100):
        listener.job("bob", "a")
        listener.wait(0.03)
        if listener.machine._users["bob"].asking:
            listener.running("bob")
    assert 3 <= len(listener.of(Ask)) <= 4


def test_a_user_with_traffic_is_asked_for_once_a_minute() -> None:
    listener = Listener()
    listener.ready("bob")
    for number in range(600):
        listener.job("bob", f"job {number}")
        listener.wait(0.5)
        if listener.machine._users["bob"].asking:
            listener.running("bob")
    assert len(listener.of(Ask)) == 4


def test_a_lost_exit_notice_is_made_good_by_asking_again() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.wait(2)
    listener.jobs("bob", "a", "a")
    assert listener.of(Ask) == [Ask("bob", fresh=False)]
    listener.started("bob", pid=8)
    listener.wait(1)
    assert listener.bodies() == ["a"]
    listener.connected("bob")
    assert listener.bodies() == ["a", "a"]


# Bounds


def test_only_max_unconfirmed_hand_overs_are_under_way() -> None:
    listener = Listener({"max_unconfirmed": 3})
    listener.ready("bob")
    listener.outcome = None
    listener.jobs("bob", *"abcdef")
    assert listener.bodies() == list("abc")
    listener.answer(Outcome.CONFIRMED)
    assert listener.bodies() == list("abcd")


def test_a_job_that_comes_back_while_its_user_is_in_line_is_paced_and_not_forgotten() -> None:
    listener = Listener({"max_unconfirmed": 1})
    listener.ready("bob")
    listener.outcome = None
    listener.jobs("bob", "a", "b", "a")
    listener.answer(Outcome.CONFIRMED)
    assert listener.bodies() == ["a"]
    listener.outcome = Outcome.CONFIRMED
    listener.wait(0.05)
    assert listener.bodies() == ["a", "a", "b"]


def test_a_busy_user_does_not_delay_another_s_first_job_beyond_the_next_confirm() -> None:
    listener = Listener({"max_unconfirmed": 3})
    listener.ready("bob")
    listener.ready("eve")
    listener.outcome = None
    listener.jobs("bob", *(f"job {number}" for number in range(500)))
    listener.job("eve", "eve's")
    listener.answer(Outcome.CONFIRMED)
    listener.answer(Outcome.CONFIRMED)
    assert "eve's" in listener.bodies()


def test_at_max_held_bytes_the_consumer_is_cancelled_and_taken_up_again_below_half() -> None:
    listener = Listener({"max_held_bytes": 2**20})
    for number in range(12):
        listener.job(f"user{number % 6}", f"job {number}", size=100_000)
    assert len(listener.of(CancelConsumer)) == 1
    assert listener.bodies(GiveBack) == []
    assert Fault.HOLDING_FULL in listener.faults()
    listener.running("user0")
    listener.wait(0.19)
    assert not listener.of(ResumeConsumer)


def test_what_stays_away_while_the_consumer_is_cancelled_proves_nothing() -> None:
    listener = Listener({"prefetch": 4})
    listener.jobs("bob", *"abcdefgh")
    assert len(listener.of(CancelConsumer)) == 1
    listener.running("bob")
    listener.wait(0.25)
    assert listener.bodies() == ["a", "b"]
    assert listener.state("bob") is State.PROBING
    listener.wait(5)
    assert len(listener.of(ResumeConsumer)) == 1
    assert listener.bodies() == list("abcdefgh")


def test_after_max_hold_a_job_goes_back_unchanged_and_the_state_is_kept() -> None:
    listener = Listener({"max_hold": 600.0})
    job = listener.job("bob", "one")
    listener.helper("bob", Failed(ID, FailedReason.DRAINING, 60.0))
    listener.wait(599)
    assert not listener.of(GiveBack)
    listener.wait(2)
    assert listener.of(GiveBack) == [GiveBack(job)]
    assert Fault.HELD_TOO_LONG in listener.faults()
    assert listener.machine.settlement.deliveries == 0


def test_after_max_hold_a_returned_job_goes_back_and_paces_nothing_any_more() -> None:
    listener = Listener({"max_hold": 600.0})
    listener.ready("bob")
    listener.exited("bob")
    listener.job("bob", "first of bob")
    listener.helper("bob", Failed(ID, FailedReason.DRAINING, 60.0))
    listener.wait(661)
    assert listener.bodies(GiveBack) == ["first of bob"]
    assert listener.machine._users["bob"].returned == 0
    listener.running("bob")
    listener.wait(0.25)
    listener.jobs("bob", "a", "b")
    listener.wait(0.25)
    listener.job("bob", "c")
    assert listener.bodies() == ["a", "b", "c"]


def test_after_max_hold_a_ready_user_s_job_goes_back_where_nothing_can_be_published() -> None:
    listener = Listener({"max_hold": 600.0})
    listener.ready("bob")
    listener.machine.publishable(on=False)
    job = listener.job("bob", "a")
    listener.wait(601)
    assert listener.of(GiveBack) == [GiveBack(job)]


@pytest.fixture
def worn_out() -> bytes:
    """Give the properties of a job that a quorum queue has redelivered ten times: it drops it after twenty."""
    return Properties({}, [(b"x-delivery-count", b"l" + (10).to_bytes(8, "big"))]).encode()


def test_a_job_redelivered_ten_times_is_published_before_it_is_held(worn_out: bytes) -> None:
    """It is acked once its publish is confirmed, and what comes back of it is held as any job."""
    listener = Listener({"max_hold": 600.0})
    listener.outcome = None
    job = listener.job("bob", "one", properties=worn_out, redelivered=True)
    assert listener.of(PutBack) == [PutBack(1, job)]
    assert not listener.of(Ack) + listener.of(Ask)
    listener.answer(Outcome.CONFIRMED)
    assert listener.of(Ack) == [Ack(job)]
    assert listener.machine.settlement.deliveries == 0
    assert Fault.REDELIVERED_OFTEN in listener.faults()
    assert listener.machine.settlement.counters.published_again == 1
    listener.job("bob", "one")
    assert [ask.user for ask in listener.of(Ask)] == ["bob"]
    assert len(listener.of(PutBack)) == 1


def test_a_publisher_s_own_delivery_count_means_nothing(worn_out: bytes) -> None:
    listener = Listener({"max_hold": 600.0})
    job = listener.job("bob", "one", properties=worn_out)
    listener.wait(601)
    assert listener.of(GiveBack) == [GiveBack(job)]
    assert not listener.of(PutBack)


def test_a_job_that_goes_at_once_needs_no_publish_before(worn_out: bytes) -> None:
    listener = Listener()
    listener.ready("bob")
    job = listener.job("bob", "one", properties=worn_out, redelivered=True)
    assert [action.delivery for action in listener.of(HandOver)] == [job]
    assert listener.of(Ack) == [Ack(job)]
    assert not listener.of(PutBack) + listener.of(GiveBack)


@pytest.mark.parametrize("outcome", [Outcome.RETURNED, Outcome.NACKED, Outcome.LOST])
def test_a_worn_out_job_that_is_not_taken_goes_to_its_queue(worn_out: bytes, outcome: Outcome) -> None:
    listener = Listener()
    listener.ready("bob")
    listener.outcome = None
    job = listener.job("bob", "one", properties=worn_out, redelivered=True)
    listener.answer(outcome)
    assert [action.delivery for action in listener.of(PutBack)] == [job]
    assert not listener.machine.users["bob"].held
    listener.answer(Outcome.CONFIRMED)
    assert listener.of(Ack) == [Ack(job)]


def test_what_waits_behind_others_is_published_before_it_is_held(worn_out: bytes) -> None:
    """At max_unconfirmed, behind a returned job, while nothing was accepted yet, and where it came back itself."""
    listener = Listener({"max_unconfirmed": 1})
    listener.ready("bob")
    listener.outcome = None
    listener.job("bob", "under way")
    listener.job("bob", "one", properties=worn_out, redelivered=True)
    listener.job("bob", "two", properties=worn_out, redelivered=True, handed=True)
    assert listener.bodies(PutBack) == ["one", "two"]


def test_a_job_that_cannot_be_put_back_is_held_and_tried_again_and_never_given_back(worn_out: bytes) -> None:
    listener = Listener({"max_hold": 600.0})
    listener.outcome = Outcome.NACKED
    listener.machine.publishable(on=False)
    listener.job("bob", "one", properties=worn_out, redelivered=True)
    listener.wait(3000)
    assert not listener.of(PutBack)
    listener.machine.publishable(on=True)
    listener.wait(120)
    assert 3 <= len(listener.of(PutBack)) <= 10
    assert not listener.of(GiveBack) + listener.of(Ack)
    listener.outcome = Outcome.CONFIRMED
    listener.wait(31)
    assert len(listener.of(Ack)) == 1


def test_a_message_that_is_no_job_is_put_back_before_it_is_parked(worn_out: bytes) -> None:
    """The parked queue may be full for longer than the broker redelivers a message."""
    listener = Listener()
    junk = Delivery(1, 1, b"junk", worn_out, True, "", "")
    listener.machine.no_job(junk, "not_json", "", listener.now)
    listener.collect()
    assert listener.bodies(PutBack) == listener.bodies(Ack) == ["junk"]
    assert not listener.of(Park)


def test_a_message_that_cannot_be_parked_is_given_back_after_max_hold() -> None:
    listener = Listener({"max_hold": 600.0})
    listener.outcome = Outcome.NACKED
    junk = Delivery(1, 1, b"junk", b"\0\0", False, "", "")
    listener.machine.no_job(junk, "not_json", "", listener.now)
    listener.collect()
    listener.wait(599)
    assert not listener.of(GiveBack)
    listener.wait(2)
    assert listener.of(GiveBack) == [GiveBack(junk)]


# What is not published


@pytest.mark.parametrize("outcome", [Outcome.RETURNED, Outcome.NACKED, Outcome.LOST])
def test_a_hand_over_that_the_broker_does_not_take_is_not_acked_and_tried_again_with_a_growing_pause(
    outcome: Outcome,
) -> None:
    listener = Listener()
    listener.ready("bob")
    listener.outcome = outcome
    listener.job("bob", "a")
    assert listener.bodies() == ["a"]
    assert not listener.of(Ack)
    listener.wait(30)
    assert 5 <= len(listener.bodies()) <= 12
    listener.outcome = Outcome.CONFIRMED
    listener.wait(6)
    assert len(listener.of(Ack)) == 1


def test_a_connection_that_is_lost_with_many_hand_overs_under_way_is_one_failure() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.outcome = None
    listener.jobs("bob", *(f"job {number}" for number in range(200)))
    for _ in range(200):
        listener.answer(Outcome.LOST)
    listener.outcome = Outcome.CONFIRMED
    listener.wait(0.11)
    assert len(listener.of(Ack)) == 200


def test_whoever_stands_in_line_is_woken_at_the_end_of_a_pause_while_nothing_can_be_published() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.machine.publishable(on=False)
    listener.job("bob", "a")
    listener.exited("bob")
    listener.helper("bob", Failed(ID, FailedReason.BACKING_OFF, 0.2))
    asked = len(listener.of(Ask))
    listener.wait(0.3)
    assert len(listener.of(Ask)) == asked + 1


def test_while_nothing_can_be_published_nothing_is_handed_over_or_parked() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.machine.publishable(on=False)
    listener.job("bob", "a")
    listener.machine.no_job(Delivery(1, 99, b"junk", b"", False, "", ""), "not_json", "", listener.now)
    listener.wait(60)
    assert not listener.of(HandOver)
    assert not listener.of(Park)
    listener.machine.publishable(on=True)
    listener.collect()
    assert listener.bodies() == ["a"]
    assert listener.bodies(Park) == ["junk"]


def test_lost_deliveries_are_forgotten_and_their_confirms_ack_nothing() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.outcome = None
    listener.jobs("bob", "a", "b")
    listener.job("eve", "c")
    listener.machine.deliveries_lost(listener.now)
    listener.answer(Outcome.CONFIRMED)
    listener.answer(Outcome.LOST)
    assert not listener.of(Ack)
    assert listener.machine.settlement.deliveries == 0
    assert listener.machine.settlement.under_way == 0
    listener.running("eve")
    listener.wait(60)
    assert listener.bodies() == ["a", "b"]


def test_redelivered_jobs_keep_the_order_in_which_they_were_first_seen() -> None:
    listener = Listener()
    listener.jobs("bob", "a", "b", "c")
    listener.machine.deliveries_lost(listener.now)
    listener.jobs("bob", "c", "d", "b", "a")
    listener.running("bob")
    listener.wait(0.3)
    assert listener.bodies() == ["a", "b", "c", "d"]


# Parking


def test_a_message_that_is_no_job_is_parked_and_acked_after_the_confirm() -> None:
    listener = Listener()
    listener.outcome = None
    junk = Delivery(1, 1, b"junk", b"\0\0", False, "", "")
    listener.machine.no_job(junk, "not_json", "why", listener.now)
    listener.collect()
    assert listener.of(Park) == [Park(1, junk, "not_json", "why")]
    assert not listener.of(Ack)
    listener.answer(Outcome.CONFIRMED)
    assert listener.of(Ack) == [Ack(junk)]


def test_a_full_parked_queue_keeps_one_body_and_loses_nothing() -> None:
    """The others are held without their bodies, and arrive again as soon as it takes one."""
    listener = Listener({"max_hold": 600.0})
    listener.outcome = Outcome.NACKED
    for number in range(50):
        listener.machine.no_job(Delivery(1, number, b"junk", b"", False, "", ""), "not_json", "", listener.now)
    listener.collect()
    listener.actions.clear()
    listener.wait(120)
    assert not listener.of(Ack)
    assert 3 <= len(listener.of(Park)) <= 12
    assert Fault.NOT_PARKED in listener.faults()
    assert listener.machine.settlement.bytes == len(b"junk")
    listener.machine.no_job(Delivery(1, 50, b"more junk", b"", False, "", ""), "not_json", "", listener.now)
    assert listener.machine.settlement.bytes == len(b"junk")
    listener.outcome = Outcome.CONFIRMED
    listener.wait(31)
    assert len(listener.of(Ack)) == 1
    assert len(listener.of(GiveBack)) == 50
    assert (listener.machine.settlement.deliveries, listener.machine.settlement.bytes) == (0, 0)


def test_messages_that_cannot_be_parked_go_back_after_max_hold() -> None:
    listener = Listener({"max_hold": 600.0})
    listener.outcome = Outcome.NACKED
    for number in range(5):
        listener.machine.no_job(Delivery(1, number, b"junk", b"", False, "", ""), "not_json", "", listener.now)
    listener.collect()
    listener.wait(640)
    assert len(listener.of(GiveBack)) == 5
    assert listener.machine.settlement.deliveries == 0


def test_of_those_that_cannot_be_parked_the_one_held_longest_goes_back_first() -> None:
    listener = Listener({"max_hold": 600.0})
    listener.outcome = Outcome.NACKED
    old = listener.job("bob", "old")
    listener.wait(599)
    for number in range(3):
        listener.machine.no_job(Delivery(1, 100 + number, b"junk", b"", False, "", ""), "not_json", "", listener.now)
    listener.collect()
    listener.helper("bob", Refused(ID, RefusedReason.DENIED_USER))
    listener.wait(2)
    assert [action.delivery.tag for action in listener.of(GiveBack)] == [old.tag]


@pytest.mark.parametrize("reason", [reason for reason in RefusedReason if reason != "unknown_user"])
def test_a_refused_user_s_jobs_are_parked_with_the_refusal_and_it_is_asked_again_later(reason: RefusedReason) -> None:
    listener = Listener()
    listener.jobs("bob", "one", "two")
    listener.helper("bob", Refused(ID, reason))
    listener.job("bob", "three")
    assert listener.parked() == [(body, reason.value) for body in ("one", "two", "three")]
    assert len(listener.of(Ask)) == 1
    listener.wait(11)
    listener.job("bob", "four")
    assert len(listener.of(Ask)) == 2
    listener.running("bob")
    assert listener.bodies() == ["four"]


@pytest.mark.parametrize("hangs", [0.0, 10.0])
@pytest.mark.parametrize("reason", [FailedReason.LOOKUP_TIMEOUT, FailedReason.SCOPE_UNAVAILABLE])
@pytest.mark.parametrize("lasts", [3.0, 31.0, 62.0, 86.0, 299.0, 3607.0])
def test_an_outage_of_any_length_is_over_within_15_s_though_the_helper_counts_the_starts_of_a_minute(
    reason: FailedReason, lasts: float, hangs: float
) -> None:
    """The helper counts six a minute, whatever came of them, and what hangs takes 10 s of it to say so."""
    listener = Listener({"max_hold": 1e6})
    listener.job("bob", "one")
    back, counted = listener.now + lasts, deque([-inf] * 6, maxlen=6)
    while listener.now < back:
        asked = len(listener.of(Ask))
        if listener.now - counted[0] < 60.0:
            listener.helper("bob", Failed(ID, FailedReason.RATE_LIMITED, 60.0 - (listener.now - counted[0])))
        else:
            counted.append(listener.now)
            listener.wait(hangs)
            listener.helper("bob", Failed(ID, reason, 5.0))
        while len(listener.of(Ask)) == asked:
            listener.wait(0.1)
    assert listener.now - counted[0] > 59.9, "the first one that could be answered is refused for their number"
    assert listener.now <= back + 15.1
    assert not listener.parked()


def test_no_failed_start_parks_whatever_its_reason_and_number() -> None:
    """Only executors that ran and died count; a start between them that failed neither counts nor ends the row."""
    listener = Listener({"max_hold": 17000.0}, max_start_attempts=3)
    listener.job("bob", "one")
    for reason in FailedReason:
        for _ in range(15):
            listener.helper("bob", Failed(ID, reason, 0.1))
            listener.wait(10.1)
    assert not listener.of(Park)
    for pid in (1, 2, 3):
        listener.helper("bob", Failed(ID, FailedReason.SPAWN_FAILED, 0.1))
        listener.wait(10.1)
        assert not listener.of(Park)
        listener.started("bob", pid)
        listener.exited("bob", pid)
        listener.wait(1.1)
    assert listener.parked() == [("one", "start_failed")]


def test_an_executor_that_was_connected_ends_a_row_of_bad_starts() -> None:
    listener = Listener(max_start_attempts=2)
    listener.job("bob", "one")
    for pid in range(1, 20, 2):
        listener.started("bob", pid)
        listener.exited("bob", pid)
        listener.wait(1.1)
        listener.started("bob", pid + 1)
        listener.connected("bob")
        listener.job("bob", "one")
        listener.exited("bob", pid + 1)
    assert not listener.of(Park)


def test_an_unknown_user_is_parked_only_when_that_is_still_the_answer_after_the_grace() -> None:
    listener = Listener(unknown_grace=60.0)
    listener.job("bob", "one")
    asked_at = []
    begun = listener.now
    while not listener.of(Park):
        if listener.machine._users["bob"].asking:
            asked_at.append(listener.now - begun)
            listener.helper("bob", Refused(ID, RefusedReason.UNKNOWN_USER))
        listener.wait(0.1)
    assert [round(at) for at in asked_at] == [0, 1, 3, 7, 15, 31, 60]
    assert listener.parked() == [("one", "unknown_user")]


def test_an_account_that_appears_within_the_grace_runs() -> None:
    listener = Listener()
    listener.job("bob", "one")
    listener.helper("bob", Refused(ID, RefusedReason.UNKNOWN_USER))
    listener.wait(1.1)
    listener.started("bob")
    listener.connected("bob")
    assert listener.bodies() == ["one"]
    assert not listener.of(Park)


def test_a_name_that_is_known_to_be_absent_is_parked_without_a_second_grace() -> None:
    listener = Listener(unknown_grace=60.0)
    listener.job("bob", "one")
    for _ in range(7):
        listener.helper("bob", Refused(ID, RefusedReason.UNKNOWN_USER))
        listener.wait(33)
    listener.wait(30)
    listener.job("bob", "two")
    listener.helper("bob", Refused(ID, RefusedReason.UNKNOWN_USER))
    assert listener.parked() == [("one", "unknown_user"), ("two", "unknown_user")]


def test_at_most_a_thousand_jobs_of_unknown_users_wait() -> None:
    """Beyond these, those that waited longest are parked; a user whose jobs are all gone is unknown no longer."""
    listener = Listener()
    listener.jobs("bob", *(f"job {number}" for number in range(600)))
    listener.helper("bob", Refused(ID, RefusedReason.UNKNOWN_USER))
    listener.jobs("eve", *(f"eve's {number}" for number in range(600)))
    listener.helper("eve", Refused(ID, RefusedReason.UNKNOWN_USER))
    assert len(listener.parked()) == 200
    assert listener.parked() == [(f"job {number}", "unknown_user") for number in range(200)]
    listener.job("bob", "one more")
    assert listener.parked()[-1] == ("job 200", "unknown_user")
    listener.job("alice", "of a user nobody was asked for")
    assert len(listener.parked()) == 201
    listener.jobs("eve", *(f"eve's {number}" for number in range(600, 1000)))
    assert len(listener.parked()) == 601
    assert listener.parked()[-1] == ("one more", "unknown_user")
    bob = listener.machine._users["bob"]
    assert (bob.held, bob.unknown_since) == ([], inf)
    listener.wait(2)
    listener.running("eve")
    listener.running("alice")
    listener.wait(1)
    listener.job("eve", "there is room again")
    assert len(listener.parked()) == 601
    assert listener.machine._answers.grace.jobs == 0


def test_what_goes_back_while_the_helper_is_away_is_no_longer_counted_as_an_unknown_user_s() -> None:
    listener = Listener({"max_hold": 300.0})
    listener.job("eve", "job 0")
    listener.helper("eve", Refused(ID, RefusedReason.UNKNOWN_USER))
    listener.jobs("eve", *(f"job {number}" for number in range(1, 100)))
    for _ in range(12):
        end = listener.now + 301
        while listener.now < end:
            listener.wait(1.0)
            if listener.machine._users["eve"].asking:
                listener.helper("eve", None)
        went_back = listener.bodies(GiveBack)
        listener.actions.clear()
        listener.jobs("eve", *went_back)
    assert not listener.of(Park)
    assert listener.machine._answers.grace.jobs == len(listener.machine._users["eve"].held) == 100


def test_a_forgotten_user_s_jobs_are_not_counted_as_unknown_for_ever() -> None:
    listener = Listener({"max_hold": 30.0})
    listener.job("eve", "a")
    listener.helper("eve", Refused(ID, RefusedReason.UNKNOWN_USER))
    listener.wait(31)
    assert listener.bodies(GiveBack) == ["a"]
    listener.helper("eve", None)
    listener.wait(700)
    listener.listed(ExecutorEntry("eve", "eve", 1000, 7, 1.0, 5))
    assert listener.machine._answers.grace.jobs == 0


# The helper's word


def test_an_executor_that_ended_is_asked_for_again_only_where_jobs_are_held() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.exited("bob")
    assert not listener.of(Ask)
    assert listener.state("bob") is State.ABSENT
    listener.job("bob", "two")
    assert len(listener.of(Ask)) == 1


def test_the_end_of_an_older_executor_changes_nothing() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.exited("bob", pid=3)
    assert listener.state("bob") is State.READY


def test_an_answer_that_was_heard_before_the_exit_does_not_bring_it_back() -> None:
    """Both came in one turn of the loop, and the exit was taken first."""
    listener = Listener()
    listener.ready("bob")
    listener.wait(2)
    listener.jobs("bob", "a", "a")
    heard = next(listener.numbers)
    listener.exited("bob")
    listener.machine.answered("bob", Running(ID, "bob", 1000, 7, 1.0, 5), heard, listener.now)
    listener.collect()
    assert listener.state("bob") is State.BACKING_OFF
    listener.wait(0.3)
    assert len(listener.of(Ask)) == 2


def test_the_pid_of_an_executor_that_ended_can_be_the_next_one_s() -> None:
    """What is heard after the end is of another one, however soon."""
    listener = Listener()
    listener.ready("bob")
    listener.exited("bob", pid=7)
    listener.job("bob", "one")
    listener.started("bob", pid=7)
    assert listener.state("bob") is State.STARTING


def test_a_helper_that_is_away_changes_nothing_for_users_whose_executor_runs() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.wait(2)
    listener.jobs("bob", "a", "a")
    listener.helper("bob", None)
    listener.wait(0.5)
    listener.job("bob", "b")
    assert listener.bodies() == ["a", "a", "b"]


def test_when_the_helper_is_back_its_list_is_the_truth_and_who_waits_is_asked_for_at_once() -> None:
    listener = Listener()
    listener.ready("bob")
    listener.ready("eve")
    listener.job("alice", "held")
    listener.helper("alice", None)
    listener.wait(3)
    listener.actions.clear()
    listener.listed(ExecutorEntry("bob", "bob", 1000, 7, 1.0, 5), ExecutorEntry("zoe", "zoe", 1001, 9, 1.0, 6))
    assert listener.actions == [Ask("alice", fresh=True)]
    states = {name: listener.state(name) for name in ("bob", "eve", "zoe")}
    assert states == {"bob": State.READY, "eve": State.ABSENT, "zoe": State.PROBING}


def test_who_waits_for_something_else_is_not_asked_for_again_when_the_helper_is_back() -> None:
    listener = Listener()
    listener.job("bob", "one")
    listener.helper("bob", Failed(ID, FailedReason.DRAINING, 30.0))
    listener.listed()
    assert len(listener.of(Ask)) == 1


def test_a_list_that_lacks_an_executor_of_whatever_age_ends_it() -> None:
    """It was asked for after the executor was heard of."""
    listener = Listener()
    listener.job("bob", "one")
    listener.started("bob")
    listener.listed()
    assert listener.state("bob") is State.STARTING
    assert [ask.user for ask in listener.of(Ask)] == ["bob", "bob"]


def test_a_list_says_nothing_of_what_was_heard_after_it_was_asked_for() -> None:
    listener = Listener()
    listener.job("bob", "one")
    asked = next(listener.numbers)
    listener.started("bob")
    listener.listed(asked=asked)
    listener.listed(ExecutorEntry("bob", "bob", 1000, 6, 1.0, 5), asked=asked)
    assert listener.machine.users["bob"].executor.pid == 7
    assert len(listener.of(Ask)) == 1


def test_a_list_does_not_bring_back_what_ended_after_it_was_asked_for() -> None:
    listener = Listener()
    listener.ready("bob")
    asked = next(listener.numbers)
    listener.exited("bob")
    listener.listed(ExecutorEntry("bob", "bob", 1000, 7, 1.0, 5), asked=asked)
    assert listener.state("bob") is State.ABSENT


def test_an_answer_from_before_the_list_does_not_bring_an_executor_back() -> None:
    listener = Listener()
    listener.job("bob", "one")
    heard = next(listener.numbers)
    listener.listed()
    listener.machine.answered("bob", Started(ID, "bob", 1000, 7, 1.0, 5), heard, listener.now)
    listener.collect()
    assert listener.state("bob") is State.BACKING_OFF
    listener.wait(0.3)
    assert len(listener.of(Ask)) == 2


def test_an_executor_named_again_since_is_not_ended_by_an_older_list() -> None:
    listener = Listener()
    listener.ready("bob")
    asked = next(listener.numbers)
    listener.wait(2)
    listener.jobs("bob", "a", "a")
    listener.running("bob")
    listener.listed(asked=asked)
    assert listener.state("bob") is State.READY


def test_at_most_one_request_a_user_is_under_way_and_64_are_sent_at_a_time() -> None:
    listener = Listener()
    for number in range(200):
        listener.jobs(f"user{number}", f"a {number}", f"b {number}")
    assert [ask.user for ask in listener.of(Ask)] == [f"user{number}" for number in range(64)]
    listener.helper("user5", None)
    assert listener.of(Ask)[64:] == [Ask("user64", fresh=True)]


def test_64_users_whose_requests_hang_delay_the_next_one_by_50_ms_and_80_new_ones_are_under_way_at_most() -> None:
    """Of users whom the helper has started before 500."""
    listener = Listener()
    for number in range(64):
        listener.job(f"hangs{number}", f"job {number}")
    listener.job("bob", "job")
    listener.wait(0.049)
    assert len(listener.of(Ask)) == 64
    listener.wait(0.002)
    assert listener.of(Ask)[64:] == [Ask("bob", fresh=True)]
    for number in range(600):
        listener.job(f"hangs too{number}", f"another {number}")
    listener.wait(5.0)
    assert len(listener.of(Ask)) == 80
    listener.running("bob")
    listener.wait(0.06)
    assert len(listener.of(Ask)) == 81
    for number in range(600):
        listener.started_before.add(f"known{number}")
        listener.job(f"known{number}", f"job of known {number}")
    listener.wait(30.0)
    assert len(listener.of(Ask)) == 501


@pytest.mark.parametrize("answer", [None, Failed(ID, FailedReason.LOOKUP_TIMEOUT, 5.0)])
def test_users_whose_answer_did_not_come_in_time_go_behind_the_others_and_32_at_a_time(answer: object) -> None:
    """While others wait, a turn in four is theirs."""
    listener = Listener()
    slow = [f"slow{number}" for number in range(64)]
    for user in slow:
        listener.job(user, f"job of {user}")
    for user in slow:
        listener.helper(user, answer)
    listener.actions.clear()
    listener.wait(11)
    assert [ask.user for ask in listener.of(Ask)] == slow[:32]
    for number in range(32):
        listener.job(f"user{number}", f"job of {number}")
    assert [ask.user for ask in listener.of(Ask)][32:] == [f"user{number}" for number in range(32)]
    for number in range(30):
        listener.job(f"next{number}", f"next job of {number}")
    listener.helper("slow0", answer)
    for number in range(32):
        listener.running(f"user{number}")
    asked = [ask.user for ask in listener.of(Ask)][64:]
    assert sorted(asked) == sorted([*(f"next{number}" for number in range(30)), "slow32"])
    assert asked.index("slow32") < 8


def test_after_a_list_of_the_helper_those_whose_answers_it_owed_are_asked_for_as_everybody() -> None:
    listener = Listener()
    users = [f"user{number}" for number in range(64)]
    for user in users:
        listener.job(user, f"job of {user}")
    for user in users:
        listener.helper(user, None)
    listener.actions.clear()
    listener.listed()
    assert [ask.user for ask in listener.of(Ask)] == users


# Mode requeue


def test_a_bug_in_what_is_due_for_one_user_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    users = ["ann", "bob", "eve"]
    for user in users:
        listener.job(user, f"job of {user}")
    for user in users:
        listener.helper(user, Failed(ID, FailedReason.DRAINING, 5.0))
    look = Steps.look

    def raises_for_bob(steps: Steps, user: User, now: float) -> None:
        if user.name == "bob":
            raise RuntimeError("bug")
        look(steps, user, now)

    monkeypatch.setattr(Steps, "look", raises_for_bob)
    listener.actions.clear()
    with pytest.raises(RuntimeError):
        listener.wait(6)
    listener.wait(6)
    assert [ask.user for ask in listener.of(Ask)] == ["ann", "eve"]


def test_in_mode_requeue_a_job_is_given_back_and_paced_as_if_it_had_been_published() -> None:
    listener = Listener(give_back=lambda delivery: delivery.body != b"expires")
    listener.job("bob", "a")
    listener.job("bob", "expires")
    listener.running("bob")
    assert listener.bodies(GiveBack) == ["a"]
    listener.job("bob", "a")
    listener.wait(0.05)
    assert listener.bodies(GiveBack) == ["a", "a"]
    listener.wait(0.2)
    assert listener.bodies() == ["expires"]
    assert listener.machine.settlement.deliveries == 0


# Memory


def test_users_without_anything_held_are_forgotten_and_those_with_an_executor_are_not() -> None:
    listener = Listener()
    listener.ready("bob")
    for number in range(20_000):
        listener.job(f"user{number}", f"job {number}")
        listener.helper(f"user{number}", Refused(ID, RefusedReason.DENIED_USER))
        listener.actions.clear()
    assert len(listener.machine._users) <= 4097
    assert listener.state("bob") is State.READY
    assert len(listener.machine._timers) <= 64 + 2 * 4097


def test_a_flood_of_one_ready_user_leaves_nothing_behind_but_a_bounded_memory_of_what_was_seen() -> None:
    listener = Listener()
    listener.ready("bob")
    for number in range(20_000):
        listener.now += 0.0001
        listener.job("bob", f"job {number}")
        listener.actions.clear()
    assert 7500 < len(listener.machine._seen) <= 8192
    assert len(listener.machine._users["bob"].pace.out) <= 64
    assert listener.machine.settlement.deliveries == 0
    listener.wait(601)
    assert listener.machine.next_deadline() == inf


def test_an_answer_that_comes_when_a_returned_job_is_due_but_was_not_looked_at_yet_does_not_keep_it() -> None:
    """The loop was busy when the time came; the helper is away, which changes nothing for who is ready."""
    listener = Listener()
    listener.ready("a")
    listener.jobs("a", "1", "1")
    assert listener.bodies() == ["1"]
    assert listener.machine.next_deadline() < listener.now + 1
    listener.now += 1
    listener.helper("a", None)
    listener.wait(1)
    assert listener.bodies() == ["1", "1"]


def test_when_an_executor_ends_on_a_full_host_who_waits_longest_is_asked_for_at_once_and_nobody_else() -> None:
    listener = Listener()
    listener.ready("alice")
    for user in ("bob", "carol"):
        listener.job(user, user)
        listener.helper(user, Failed(ID, FailedReason.AT_CAPACITY, 5.0))
        listener.wait(0.1)
    listener.actions.clear()
    listener.exited("alice")
    listener.wait(0.0)
    assert [action.user for action in listener.of(Ask)] == ["bob"]
