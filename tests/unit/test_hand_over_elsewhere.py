"""The per-user machine's rules where several hosts share the queue, one a test."""

import pytest

from broker_listener.actions import Ask, Fault, GiveBack
from broker_listener.answers import NotHere, WhyNotHere
from broker_listener.ask_queue import MAX_FRESH
from broker_listener.config import BrokerConfig
from broker_listener.hand_over import MAX_WANTED
from broker_listener.host_messages import UserState
from protocol.messages import Failed, FailedReason
from tests.lab.machine_driver import ID, OneOfSeveral


def test_what_is_held_goes_at_once_when_another_host_is_ready_and_it_is_asked_once_a_minute_then() -> None:
    listener = OneOfSeveral()
    listener.jobs("alice", "one", "two")
    listener.helper("alice", NotHere(WhyNotHere.ANOTHER_HOSTS_TURN))
    listener.wait(0.5)
    listener.helper("alice", NotHere(WhyNotHere.ANOTHER_HOSTS_TURN))
    assert listener.bodies() == []
    listener.elsewhere("alice", ready=True)
    listener.wait(0.5)
    listener.helper("alice", NotHere(WhyNotHere.ON_ANOTHER_HOST))
    assert listener.bodies() == ["one", "two"]
    listener.actions.clear()
    for number in range(50):
        listener.job("alice", f"later {number}")
        listener.wait(1.0)
    assert len(listener.bodies()) == 50
    assert listener.of(Ask) == []


def test_when_the_executor_on_another_host_is_gone_the_next_job_asks_at_once_who_is_to_start_one() -> None:
    listener = OneOfSeveral()
    listener.elsewhere("alice", ready=True)
    listener.job("alice", "one")
    listener.helper("alice", NotHere(WhyNotHere.ON_ANOTHER_HOST))
    listener.elsewhere("alice", ready=False)
    listener.actions.clear()
    listener.job("alice", "two")
    listener.wait(0.0)
    assert [action.user for action in listener.of(Ask)] == ["alice"]
    assert listener.bodies() == []


def test_a_start_that_another_host_wants_is_tried_again_for_half_a_minute_though_no_job_is_held_here() -> None:
    listener = OneOfSeveral()
    listener.wanted("alice")
    for _ in range(20):
        if listener.machine.users["alice"].asking:
            listener.helper("alice", Failed(ID, FailedReason.PREPARE_FAILED, 2.0))
        listener.wait(2.5)
    assert 3 <= len(listener.of(Ask)) <= 5
    assert listener.told() == []


def test_an_executor_that_is_overdue_counts_as_ready_for_the_jobs_that_other_hosts_hold() -> None:
    listener = OneOfSeveral(start_timeout=45.0)
    listener.wanted("alice")
    listener.started("alice")
    listener.wait(44.0)
    assert listener.told() == [UserState.STARTING]
    listener.wait(2.0)
    assert listener.told() == [UserState.STARTING, UserState.READY]
    assert Fault.START_OVERDUE in listener.faults()


def test_a_user_whose_jobs_go_on_elsewhere_is_asked_for_here_so_that_idle_after_counts_from_them() -> None:
    listener = OneOfSeveral()
    listener.ready("alice")
    listener.wait(61.0)
    listener.wanted("alice")
    assert [action.user for action in listener.of(Ask)] == ["alice"]
    assert listener.bodies() == []


def test_an_executor_that_ends_is_not_started_again_for_traffic_of_before() -> None:
    listener = OneOfSeveral()
    listener.ready("alice")
    listener.wanted("alice")
    listener.exited("alice")
    listener.wait(60.0)
    assert listener.of(Ask) == []


def test_who_waits_for_another_host_is_asked_for_at_once_when_it_has_become_our_turn() -> None:
    listener = OneOfSeveral()
    listener.job("alice", "one")
    listener.helper("alice", NotHere(WhyNotHere.ON_ANOTHER_HOST))
    listener.actions.clear()
    listener.wanted("alice")
    assert [action.user for action in listener.of(Ask)] == ["alice"]


def test_users_whom_another_host_wants_without_end_take_no_memory_and_a_job_of_ours_has_its_turn() -> None:
    """A listener that was taken over can name any."""
    listener = OneOfSeveral()
    for number in range(3 * MAX_WANTED):
        listener.machine.wanted(f"nobody{number}", listener.now)
    assert len(listener.machine.users) <= MAX_WANTED + MAX_FRESH
    listener.job("alice", "one")
    for user in list(listener.machine.users):
        if listener.machine.users[user].asking and user != "alice":
            listener.helper(user, Failed(ID, FailedReason.DRAINING, 60.0))
    assert "alice" in [action.user for action in listener.of(Ask)]
    listener.wanted("bob")  # there is room again
    assert "bob" in listener.machine.users


@pytest.mark.parametrize("why", WhyNotHere)
def test_a_job_that_no_host_gets_an_executor_for_goes_back_after_max_hold_and_no_sooner(why: WhyNotHere) -> None:
    listener = OneOfSeveral()
    listener.job("alice", "one")
    listener.helper("alice", NotHere(why))
    held = 0.0
    while not listener.of(GiveBack):
        listener.wait(0.5)
        held += 0.5
        if listener.machine.users["alice"].asking:
            listener.helper("alice", NotHere(why))
        assert held < BrokerConfig().max_hold + 2
    assert held >= BrokerConfig().max_hold
    assert listener.bodies() == []
    assert Fault.HELD_TOO_LONG in listener.faults()
