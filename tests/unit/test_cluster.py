"""What a host tells the others and asks its helper, where nobody can be heard yet."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from broker_listener import cluster, host_messages, hosts
from broker_listener.answers import NotHere, WhyNotHere
from broker_listener.cluster import Cluster
from broker_listener.config import ClusterConfig, ListenerConfig
from broker_listener.host_messages import Beat, HostMessage, HostState, UserState
from broker_listener.placement import MAX_HOSTS


class Users:
    """Whose users they are: notes what is told."""

    def __init__(self) -> None:
        self.elsewhere: list[str] = []
        self.wanted: list[str] = []

    def on_elsewhere(self, user: str) -> None:
        self.elsewhere.append(user)

    def on_wanted(self, user: str) -> None:
        self.wanted.append(user)


async def no_helper() -> tuple[bool, int]:
    raise AssertionError("nobody asks")


def run(check: Callable[[Cluster], Awaitable[None]], wanted: int | str = 1) -> None:
    """Have a cluster whose connection was never made; ``free`` executors have room."""

    async def go() -> None:
        config = ListenerConfig(cluster=ClusterConfig(enabled=True, host="a", executors_per_user=wanted))
        made = Cluster(config, no_helper, Users())
        made.helper_listed(draining=False, free=9)
        await check(made)

    asyncio.run(go())


def test_while_the_others_are_about_to_be_heard_nobody_is_started_who_may_run_there() -> None:
    async def check(made: Cluster) -> None:
        assert made.asks("alice") == NotHere(WhyNotHere.ANOTHER_HOSTS_TURN)

    run(check)


def test_while_the_others_are_about_to_be_heard_our_helper_is_asked_for_whom_it_runs() -> None:
    """An answer "not here" would have the executor forgotten, and its user's jobs held."""

    async def check(made: Cluster) -> None:
        made.own_user("alice", UserState.READY)
        assert made.asks("alice") is None

    run(check)


@pytest.mark.parametrize("wanted", [1, "all"])
def test_where_the_others_cannot_be_heard_this_host_serves_its_users_alone(
    monkeypatch: pytest.MonkeyPatch, wanted: int | str
) -> None:
    monkeypatch.setattr(cluster, "JOIN_WITHIN", 0.0)

    async def check(made: Cluster) -> None:
        assert made.asks("alice") is None

    run(check, wanted)


def test_where_our_helper_is_away_or_full_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "JOIN_WITHIN", 0.0)

    async def check(made: Cluster) -> None:
        made.helper_is_away()
        assert made.asks("alice") == NotHere(WhyNotHere.NO_HOST_FREE)
        made.helper_listed(draining=True, free=9)
        assert made.asks("alice") == NotHere(WhyNotHere.NO_HOST_FREE)
        made.helper_listed(draining=False, free=9)
        made.answered("bob", executor=False, full=True)
        assert made.asks("alice") == NotHere(WhyNotHere.NO_HOST_FREE)

    run(check)


def test_a_start_that_our_helper_does_not_answer_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "JOIN_WITHIN", 0.0)

    async def check(made: Cluster) -> None:
        assert made.asks("alice") is None
        made.own_user("bob", UserState.READY)
        assert sorted(made.view().executors()) == [
            ("alice", "a", UserState.STARTING),
            ("bob", "a", UserState.READY),
        ]
        made.helper_is_away()
        assert list(made.view().executors()) == [("bob", "a", UserState.READY)]

    run(check)


def test_a_start_that_our_helper_does_not_answer_is_wanted_from_others_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job is here, so that nobody else would ask for one."""
    monkeypatch.setattr(cluster, "JOIN_WITHIN", 0.0)
    monkeypatch.setattr(hosts, "SETTLED_AFTER", 0.0)
    told: list[HostMessage] = []

    async def check(made: Cluster) -> None:
        monkeypatch.setattr(made._exchange, "publish", told.append)
        monkeypatch.setattr(type(made._exchange), "takes_more", True)
        made.on_joined()
        made.on_message(HostMessage("b", "0" * 16, 1, Beat(HostState.UP, 9, 1)))
        user = next(name for name in map("user{}".format, range(100)) if made.asks(name) is None)
        for _ in range(2):
            made._publish()
            told.clear()
            made.helper_is_away()
            made._publish()
            assert host_messages.Users({user: UserState.WANT}) in [message.content for message in told]
        assert list(made.view().executors()) == []
        made.answered(user, executor=False, full=False)
        told.clear()
        made.helper_is_away()
        made._publish()
        assert not any(isinstance(message.content, host_messages.Users) and message.content.users for message in told)

    run(check)


def test_a_listener_that_leaves_says_so_whatever_its_helper_tells() -> None:
    async def check(made: Cluster) -> None:
        made.leave()
        made.helper_listed(draining=False, free=9)
        (own,) = made.view().hosts
        assert own.state is HostState.LEAVING

    run(check)


def test_a_host_beyond_those_that_fit_is_named_in_the_log_and_not_known(caplog: pytest.LogCaptureFixture) -> None:
    async def check(made: Cluster) -> None:
        for number in range(MAX_HOSTS):  # with our own it is one too many
            beat = Beat(HostState.UP, 1, 0)
            made.on_message(HostMessage(f"b{number}", "0" * 16, 1, beat))
        assert len(made.view().hosts) == MAX_HOSTS
        (line,) = [record.getMessage() for record in caplog.records if "left_out" in record.getMessage()]
        assert line.startswith(f"event=host_left_out host=b{MAX_HOSTS - 1} ")

    run(check)


def test_host_at_fault_says_it_is_full_and_starts_probes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others start its new users; whom it runs it goes on to ask for; it has its room again afterwards."""
    monkeypatch.setattr(cluster, "JOIN_WITHIN", 0.0)

    async def check(made: Cluster) -> None:
        made.own_user("old", UserState.READY)
        made.host_fault(on=True)
        assert made.view().hosts[0].free == 0
        assert made.asks("alice") == NotHere(WhyNotHere.NO_HOST_FREE)
        assert made.asks("old") is None
        assert made.asks("alice", probe=True) is None
        made.answered("alice", executor=False, full=False)
        made.helper_listed(draining=False, free=8)
        assert made.view().hosts[0].free == 0
        made.on_message(HostMessage("b", "0" * 16, 1, Beat(HostState.UP, 3, 1)))
        assert made.asks("bob") == NotHere(WhyNotHere.ANOTHER_HOSTS_TURN)
        made.host_fault(on=False)
        assert made.view().hosts[0].free == 8

    run(check)
