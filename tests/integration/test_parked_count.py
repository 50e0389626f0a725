"""Parked messages that vanish: the listener says how many there are, and warns of what no command took.

The listener's own connection and the commands' own code run here, against a real broker whose policies change.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from broker_listener import parked_count, parked_names
from broker_listener import properties as p
from broker_listener.broker_connections import Broker
from broker_listener.config import BrokerConfig
from broker_listener.confirms import Outcome
from broker_listener.operator.broker import session
from broker_listener.operator.parking import queue as queue_module
from broker_listener.operator.parking import walk as walk_module
from broker_listener.operator.parking.changes import Counts, changed
from broker_listener.operator.parking.message import Criteria
from broker_listener.operator.parking.queue import ParkedQueue
from tests.lab.broker_node import JOBS_EXCHANGE, BrokerNode
from tests.lab.processes import wait_for
from tests.simulated_knime.server import SimulatedServer

PARKED = "knime-jobs.parked"
DEADLINE = 60.0
AS_PARKED = p.parked(b"\0\0", "start_failed", "why", "2026-11-25T01:02:03+00:00", JOBS_EXCHANGE, "new-work", 131052)
GONE = "event=parked_messages_gone"


class Events:
    """What the broker tells the listener; of interest here are confirms alone."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}

    def on_delivery(self, _delivery: object) -> None:
        """Hold it."""

    def on_deliveries_lost(self) -> None:
        """Forget nothing."""

    def on_published(self, token: int, outcome: Outcome) -> None:
        self.outcomes[token] = outcome

    def on_publishable(self, can_publish: bool) -> None:  # noqa: FBT001
        """Wait for nothing."""


class Place:
    """A vhost, KNIME Server's side of it, and the listener's account."""

    def __init__(self, node: BrokerNode, vhost: str, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.node, self.vhost, self._caplog = node, vhost, caplog
        self.server = SimulatedServer(node.server.at(node.port, vhost))
        password = directory / "password"
        password.write_text(node.listener.password)
        url = node.listener.at(node.port, vhost, with_password=False)
        self.config = BrokerConfig(urls=(url,), password_file=str(password))

    def listen(self, check: Callable[[Broker, Events], Awaitable[None]] | None = None, looks: int = 1) -> str:
        """Be the listener until it has said what is parked; give what it logged."""

        async def run() -> None:
            events = Events()
            broker = Broker(self.config, events)
            async with asyncio.timeout(DEADLINE):
                broker.start()
                await true(lambda: self.said.count("event=parked_queue ") >= looks)
                if check is not None:
                    await check(broker, events)
                task = broker._publisher._parked._count._look
                if task is not None:
                    await asyncio.wait({task})
                await broker.close(2.0)

        self._caplog.clear()
        asyncio.run(run())
        return self._caplog.text

    def park(self, count: int) -> None:
        """Have messages parked by another listener."""
        with session(self.config, self.node.listener.password) as connected:
            for number in range(count):
                connected.publish("", PARKED, b"%d" % number, AS_PARKED)

    def command(self, verb: str, limit: int | None = None) -> Counts:
        with session(self.config, self.node.listener.password) as connected:
            return changed(ParkedQueue(connected, self.config), verb, Criteria(), limit)

    def depth(self, queue: str) -> int:
        return self.server.depth(queue)

    def empty(self, pattern: str, *queues: str) -> None:
        """Have a policy delete the queues that its pattern matches, with all that is in them; it goes when it has."""
        self.node.ctl("set_policy", "-p", self.vhost, "the-policy", pattern, '{"expires": 1}', "--apply-to", "queues")
        wait_for(lambda: not set(queues) & set(self.queues()), DEADLINE, "the policy's effect")
        self.node.ctl("clear_policy", "-p", self.vhost, "the-policy")

    def queues(self) -> list[str]:
        return self.node.ctl("list_queues", "-p", self.vhost, "name", "--no-table-headers").split()

    @property
    def said(self) -> str:
        return self._caplog.text


async def true(condition: Callable[[], object]) -> None:
    """Wait until it is true; the caller has a deadline."""
    while not condition():  # noqa: ASYNC110 - what is waited for is the broker's
        await asyncio.sleep(0.005)


@pytest.fixture
def place(
    broker: BrokerNode, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Give a vhost of the test's own; the listener remembers what it saw, and nobody waits long."""
    vhost = broker.vhosts.take()
    monkeypatch.setattr(parked_count, "LOOK_AGAIN", 0.2)
    monkeypatch.setattr(walk_module, "IDLE", 0.05)
    monkeypatch.setattr(queue_module, "SETTLES", 0.05)
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    caplog.set_level(logging.INFO)
    made = Place(broker, vhost, tmp_path, caplog)
    yield made
    made.server.close()
    broker.vhosts.give_back(vhost)


def test_how_many_are_parked_is_said_at_each_connect(place: Place) -> None:
    """Also of a reconnect, and nothing is warned of."""
    assert f"event=parked_queue queue='{PARKED}' parked=0" in place.listen()
    place.park(3)

    async def reconnected(_broker: Broker, _events: Events) -> None:
        await asyncio.to_thread(place.node.ctl, "close_all_user_connections", place.node.listener.name, "a test")
        await true(lambda: place.said.count("event=parked_queue ") >= 2)

    said = place.listen(reconnected)
    assert said.count(f"event=parked_queue queue='{PARKED}' parked=3") == 2
    assert GONE not in said


def test_messages_that_a_policy_removed_are_warned_of(place: Place) -> None:
    """Over a restart of the listener; once, since then it is known."""
    place.listen()
    place.park(5)
    place.listen()
    place.empty(r"^knime-jobs", PARKED)
    assert f"{GONE} queue='{PARKED}' parked=0 gone=5" in place.listen()
    assert GONE not in place.listen()


def test_a_message_that_this_listener_parked_counts_at_once(place: Place) -> None:
    """It need not have been seen at a connect: the broker's confirm says that it was there."""

    async def parks(broker: Broker, events: Events) -> None:
        await true(lambda: broker.can_publish and broker._publisher._parked._count._seen is not None)
        for token in range(4):
            broker.park(token, b"no job", AS_PARKED)
        await true(lambda: len(events.outcomes) == 4)

    place.listen(parks)
    place.empty(r"^knime-jobs", PARKED)
    assert f"{GONE} queue='{PARKED}' parked=0 gone=4" in place.listen()


@pytest.mark.parametrize("pattern", [".*", "^knime-peruser"])
def test_a_policy_that_empties_the_record_of_commands_is_warned_of(place: Place, pattern: str) -> None:
    """What commands took can no longer be told from what vanished: that is said instead of a number."""
    place.listen()
    place.park(5)
    assert place.command("drop", 2).done == 2
    assert GONE not in place.listen()
    place.empty(pattern, parked_names.taken(PARKED))
    assert "gone=unknown record=emptied" in place.listen()
    assert GONE not in place.listen()


@pytest.mark.parametrize("verb", ["retry", "drop"])
def test_what_a_command_took_is_no_warning(place: Place, verb: str) -> None:
    """Wherever it ran: the broker has the record, not this host."""
    place.listen()
    place.park(7)
    place.listen()
    assert place.command(verb, 3).done == 3
    assert (place.depth(PARKED), place.depth(parked_names.taken(PARKED))) == (4, 3)
    assert "parked=4\n" in (said := place.listen())
    assert GONE not in said
    assert place.command(verb).done == 4
    assert GONE not in place.listen()
    place.park(1)
    place.listen()
    place.server.channel.queue_purge(PARKED)
    assert f"{GONE} queue='{PARKED}' parked=0 gone=1" in place.listen()


def test_a_thousand_taken_messages_are_one_in_the_record(place: Place) -> None:
    """The record is bounded: one message for each thousand, and fewer than a thousand besides."""
    place.listen()
    place.park(1250)
    place.listen()
    assert place.command("drop").done == 1250
    assert [place.depth(name(PARKED)) for name in (parked_names.taken, parked_names.thousands)] == [250, 1]
    assert GONE not in place.listen()


def test_while_a_command_is_at_work_nobody_counts(place: Place) -> None:
    """It has messages in its hands; the listener counts when it has ended, and blames nobody."""
    place.listen()
    place.park(4)
    place.listen()

    async def at_work() -> str:
        with session(place.config, place.node.listener.password) as connected:
            queue = ParkedQueue(connected, place.config)
            with queue.walked(changing=False) as walk:
                taken = list(walk.taken())
                assert len(taken) == 4
                broker = Broker(place.config, Events())
                place._caplog.clear()
                broker.start()
                await true(lambda: broker.can_publish)
                await asyncio.sleep(5 * parked_count.LOOK_AGAIN)  # it asks for the lock again and again
                assert "event=parked_queue " not in place.said
        await true(lambda: "event=parked_queue " in place.said)
        await broker.close(2.0)
        return place.said

    async def run() -> str:
        async with asyncio.timeout(DEADLINE):
            return await at_work()

    said = asyncio.run(run())
    assert "parked=4" in said
    assert GONE not in said


def test_an_account_without_the_right_parks_all_the_same(place: Place) -> None:
    """Counting needs a queue below knime-peruser.; without that right it says so, and nothing else changes."""
    rights = ("^knime-jobs.parked$", ".*", ".*")
    place.listen()
    place.node.ctl("set_permissions", "-p", place.vhost, place.node.listener.name, *rights)  # the vhost is this test's

    async def run() -> None:
        events = Events()
        broker = Broker(place.config, events)
        async with asyncio.timeout(DEADLINE):
            broker.start()
            await true(lambda: "event=parked_not_counted" in place.said and broker.can_publish)
            broker.park(1, b"no job", AS_PARKED)
            await true(lambda: 1 in events.outcomes)
            await broker.close(2.0)

    asyncio.run(run())
    assert place.depth(PARKED) == 1


def test_a_damaged_memory_is_none(place: Place, tmp_path: Path) -> None:
    """It is the listener's own file; what it cannot read costs what it knew, and nothing else."""
    for content in ("", "{}", "[" * 900, '{"key": 1}', "not JSON", '{"parked": -1}', "{" + " " * 2000):
        (tmp_path / "state" / parked_count.FILE).write_text(content)
        said = place.listen()
        assert GONE not in said
        assert "Traceback" not in said
