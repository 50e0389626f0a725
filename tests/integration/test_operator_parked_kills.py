"""``knime-peruser parked retry`` is killed after every frame that it sends: no message is lost, none is there twice.

The command's own code runs in a child of this process, against a real broker; a proxy kills it with SIGKILL.
"""

import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from broker_listener import parked_names
from broker_listener import properties as p
from broker_listener.config import BrokerConfig
from broker_listener.operator.broker import Session, session
from broker_listener.operator.parking import queue as queue_module
from broker_listener.operator.parking import walk as walk_module
from broker_listener.operator.parking.changes import Counts, changed, looked_at
from broker_listener.operator.parking.message import Criteria, deliveries, fingerprint
from broker_listener.operator.parking.queue import CLASSIC, PARKED, ParkedQueue
from tests.lab.broker_node import JOBS_EXCHANGE, BrokerNode
from tests.lab.killing_proxy import KillingProxy
from tests.lab.processes import wait_for
from tests.simulated_knime.server import SimulatedServer

pytestmark = pytest.mark.library

QUEUE = "knime-jobs.parked"
MARKS = f"knime-peruser.{QUEUE}.marks"
NOTHING = Criteria()
MAX_FRAMES = 200
TROUBLES = [  # a quorum queue takes some over its limit: full is no trouble then
    *[("classic", trouble) for trouble in ("unbound", "full", "gone")],
    pytest.param("quorum", "unbound", marks=pytest.mark.nightly),
]
ORIGINAL = p.Properties({"message_id": b"\2m1", "delivery_mode": b"\2"}, [(b"canHandle", b"t\0")]).encode()
FACTS = ("start_failed", "why", "2026-11-25T01:02:03+00:00", JOBS_EXCHANGE, "new-work")
AS_PARKED = p.parked(ORIGINAL, *FACTS, 131052)


@dataclass(frozen=True, slots=True)
class Place:
    """A vhost with KNIME's queue and exchange, and a parked queue; ``session`` is the listener's account."""

    broker: BrokerNode
    vhost: str
    server: SimulatedServer
    session: Session

    def config(self, port: int | None = None) -> BrokerConfig:
        url = self.broker.listener.at(port or self.broker.port, self.vhost, with_password=False)
        return BrokerConfig(urls=(url,))

    def park(self, *bodies: bytes) -> None:
        """Park messages as the listener does."""
        for body in bodies:
            self.session.publish("", QUEUE, body, AS_PARKED)

    def make_trouble(self, trouble: str) -> str:
        """Have the broker take no jobs; give what it says of that."""
        channel = self.server.channel
        if trouble == "unbound":
            channel.queue_unbind("knime-jobs", JOBS_EXCHANGE, "new-work")
            return "no queue is bound"
        if trouble == "gone":
            channel.exchange_delete(JOBS_EXCHANGE)
            return "404"
        channel.queue_delete("knime-jobs")
        self.make_jobs_queue({**CLASSIC, "x-max-length": 1, "x-overflow": "reject-publish"})
        self.session.publish("", "knime-jobs", b"fills it", b"\0\0")
        return "is a queue full?"

    def end_trouble(self, trouble: str, kind: str) -> None:
        """Have it take jobs again; nothing of the time before is in the queue."""
        assert self.bodies("knime-jobs") <= Counter([b"fills it"])
        if trouble == "full":
            self.server.channel.queue_delete("knime-jobs")
        self.make_jobs_queue({"x-queue-type": kind})

    def make_jobs_queue(self, arguments: dict[str, object]) -> None:
        """Declare it and what jobs are published to."""
        channel = self.server.channel
        channel.exchange_declare(JOBS_EXCHANGE, "direct", durable=True)
        channel.queue_declare("knime-jobs", durable=True, arguments=arguments)
        channel.queue_bind("knime-jobs", JOBS_EXCHANGE, "new-work")

    def change(self, verb: str, wanted: Criteria = NOTHING) -> Counts:
        """Do it, undisturbed."""
        return changed(ParkedQueue(self.session, self.config()), verb, wanted, None)

    def parked_ever(self) -> int:
        """Return what is parked, and what the record says that commands took: the listener compares it."""
        weights = {QUEUE: 1, parked_names.taken(QUEUE): 1, parked_names.thousands(QUEUE): 1000}
        return sum(weights[name] * state.messages for name in weights if (state := self.session.queue(name)))

    def killed_at(self, frame: int) -> bool:
        """Retry everything in a child that is killed after so many frames; say whether it was."""
        proxy = KillingProxy(self.broker.port, frame)
        child = os.fork()
        if child == 0:
            try:
                with session(self.config(proxy.port), self.broker.listener.password) as connected:
                    changed(ParkedQueue(connected, self.config(proxy.port)), "retry", NOTHING, None)
            except BaseException:  # noqa: BLE001 - a child of pytest's must not go on as pytest
                traceback.print_exc()
            os._exit(0)
        proxy.start(child)
        os.waitpid(child, 0)
        proxy.close()
        return proxy.has_killed

    def taken(self, queue: str) -> list[tuple[bytes, bytes]]:
        """Take everything off a queue: bodies and properties."""
        found = []
        while True:
            method, properties, body = self.server.channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            found.append((body, properties.raw))

    def bodies(self, queue: str) -> Counter[bytes]:
        """Take everything off a queue: bodies."""
        return Counter(body for body, _ in self.taken(queue))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no time for the broker's sake: a broker of one node that is not killed needs none."""
    monkeypatch.setattr(walk_module, "IDLE", 0.0)
    monkeypatch.setattr(queue_module, "SETTLES", 0.0)


@pytest.fixture(params=["classic", pytest.param("quorum", marks=pytest.mark.nightly)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def a_vhost(broker: BrokerNode) -> Iterator[str]:
    name = broker.vhosts.take()
    yield name
    broker.vhosts.give_back(name)


@pytest.fixture(scope="module")
def classic_vhost(broker: BrokerNode) -> Iterator[str]:
    """Give one for all tests: to make one takes seconds."""
    with a_vhost(broker) as name:
        yield name


@pytest.fixture
def vhost(broker: BrokerNode, kind: str, classic_vhost: str) -> Iterator[str]:
    if kind == "classic":
        yield classic_vhost
        return
    with a_vhost(broker) as name:  # a quorum queue that was just deleted cannot always be made again
        yield name


@pytest.fixture
def place(broker: BrokerNode, kind: str, vhost: str) -> Iterator[Place]:
    server = SimulatedServer(broker.server.at(broker.port, vhost))
    for queue in ("knime-jobs", QUEUE, MARKS):
        server.channel.queue_delete(queue)
    server.channel.queue_declare(QUEUE, durable=True, arguments={**PARKED, "x-queue-type": kind})
    url = broker.listener.at(broker.port, vhost, with_password=False)
    with session(BrokerConfig(urls=(url,)), broker.listener.password) as connected:
        made = Place(broker, vhost, server, connected)
        made.make_jobs_queue({"x-queue-type": kind})
        yield made
    server.close()


def test_killed_after_any_frame_every_job_is_there_once_and_what_is_in_doubt_stays(place: Place) -> None:
    """Every job is in its queue exactly once when the next retry has ended, whatever was left by the one before."""
    sent = Counter([b'{"user": "alice", "job": "one"}', b""])  # a body may be empty
    doubts = 0
    for frame in range(MAX_FRAMES):
        place.park(*sent)
        parked = place.parked_ever()
        was_killed = place.killed_at(frame)
        counts = place.change("retry")
        assert counts.stopped is None
        assert place.parked_ever() >= parked, "less than that would be a warning of the listener's"
        assert place.bodies("knime-jobs") == sent, frame
        assert counts.in_doubt <= 1
        assert was_killed or not counts.in_doubt
        doubts += counts.in_doubt
        assert place.change("drop", Criteria(in_doubt=True)).done == counts.in_doubt
        assert place.bodies(QUEUE) == Counter()
        place.server.channel.queue_delete(MARKS)  # may hold a mark whose message is off: it goes when it is old
        if not was_killed:
            break
    assert 2 <= doubts < frame < MAX_FRAMES - 1


@pytest.mark.parametrize(("kind", "trouble"), TROUBLES, indirect=["kind"])
def test_a_refusal_is_said_and_leaves_no_doubt_and_another_messages_doubt_stays(
    place: Place, trouble: str, kind: str
) -> None:
    doubtful, other = b'{"user": "alice"}', b'{"user": "bob"}'
    place.park(doubtful, other)
    assert place.session.queue(MARKS) is None
    place.session.declare_queue_as(MARKS, CLASSIC)
    place.session.publish("", MARKS, fingerprint(doubtful, AS_PARKED).encode(), b"\0\0")
    why = place.make_trouble(trouble)
    counts = place.change("retry")
    assert (counts.done, counts.in_doubt) == (0, 1)
    assert why in str(counts.stopped)
    place.end_trouble(trouble, kind)
    counts = place.change("retry")
    assert (counts.done, counts.in_doubt, counts.stopped) == (1, 1, None)
    assert place.bodies("knime-jobs") == Counter([other])
    assert place.change("retry", Criteria(in_doubt=True)).done == 1
    assert place.bodies("knime-jobs") == Counter([doubtful])
    assert place.session.queue(MARKS) is None


@pytest.mark.parametrize(("kind", "trouble"), TROUBLES, indirect=["kind"])
def test_killed_while_the_broker_takes_no_jobs_nothing_is_lost(place: Place, trouble: str, kind: str) -> None:
    """The worst moment: the job is returned or refused, and who would have to note that is killed."""
    body, doubts = b'{"user": "alice"}', 0
    for frame in range(MAX_FRAMES):
        place.park(body)
        place.make_trouble(trouble)
        was_killed = place.killed_at(frame)
        place.end_trouble(trouble, kind)
        counts = place.change("retry")
        assert was_killed or not counts.in_doubt, "who saw the refusal knows"
        doubts += counts.in_doubt
        again = place.change("retry", Criteria(in_doubt=True))
        assert again.done == counts.in_doubt
        assert place.bodies("knime-jobs") == Counter([body]), frame
        assert place.bodies(QUEUE) == Counter()
        place.server.channel.queue_delete(MARKS)
        if not was_killed:
            break
    assert frame < MAX_FRAMES - 1
    assert bool(doubts) == (trouble != "gone"), "where there is no exchange, the mark is not published, either"


def test_a_mark_that_is_left_without_a_message_goes_when_it_is_old(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    young = b"2" * 64 + b" %.3f" % time.time()
    place.session.declare_queue_as(MARKS, CLASSIC)
    for mark in (b"0" * 64, b"1" * 64 + b" 1700000000.000", b"\xff \xff", young):
        place.session.publish("", MARKS, mark, b"\0\0")
    place.park(b'{"user": "alice"}', b'{"user": "bob"}')
    assert changed(ParkedQueue(place.session, place.config()), "retry", NOTHING, 1).done == 1
    assert place.server.depth(MARKS) == 4, "not every message was met: one of these may be of another one"
    assert place.change("retry").done == 1
    assert [mark for mark, _ in place.taken(MARKS)] == [young]
    place.session.publish("", MARKS, young, b"\0\0")
    monkeypatch.setattr(walk_module, "MARK_AGES", -1.0)
    assert place.change("retry").done == 0
    assert place.session.queue(MARKS) is None


@pytest.mark.parametrize("kind", ["quorum"], indirect=True)
def test_a_quorum_queue_that_may_drop_what_is_looked_at_is_not_looked_at_for_ever(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """RabbitMQ 4 drops a message after 20 deliveries that were not settled, unless it is told otherwise."""
    queue = ParkedQueue(place.session, place.config())
    place.park(b'{"user": "alice"}', b'{"user": "bob"}')
    for _ in range(12):
        looked_at(queue, "retry", NOTHING, None)
    assert "looked at ten times" in capsys.readouterr().err
    with queue.walked(changing=False) as walk:
        taken = list(walk.taken())
    assert all(one.worn for one in taken)
    counted = [deliveries(one.message.properties) for one in taken]
    assert sum(counted) == 10 + 10 + 2, "twelve looks, of which the last two went no further than one message"
    assert place.change("retry").done == 2
    for body, properties in place.taken("knime-jobs"):
        assert body in {b'{"user": "alice"}', b'{"user": "bob"}'}
        assert deliveries(properties) == 0
        assert (b"canHandle", b"t\0") in (p.parse(properties).headers or [])


@pytest.mark.parametrize("kind", ["quorum"], indirect=True)
def test_a_publisher_s_own_delivery_count_stops_no_look(place: Place) -> None:
    """What a first delivery says of it is not the queue's."""
    headers = [
        (b"x-peruser-reason", b"S\0\0\0\x0cstart_failed"),
        (b"x-delivery-count", b"l" + (100).to_bytes(8, "big")),
    ]
    place.session.publish("", QUEUE, b'{"user": "alice"}', p.Properties({}, headers).encode())
    queue = ParkedQueue(place.session, place.config())
    with queue.walked(changing=False) as walk:
        assert [one.worn for one in walk.taken()] == [False]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["classic"], indirect=True)
def test_a_broker_that_is_killed_while_jobs_are_retried_loses_none_and_doubles_one_at_most(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classic queue writes acks late: what is there again is in doubt, for its mark is there, too."""
    monkeypatch.setattr(walk_module, "IDLE", 2.0)
    bodies = [b'{"user": "alice", "n": %d}' % number for number in range(500)]
    place.park(*bodies)
    for _ in range(3):
        before = place.server.depth("knime-jobs")
        child = os.fork()
        if child == 0:
            try:
                with session(place.config(), place.broker.listener.password) as connected:
                    changed(ParkedQueue(connected, place.config()), "retry", NOTHING, None)
            except BaseException:  # noqa: BLE001 - a child of pytest's must not go on as pytest
                traceback.print_exc()
            os._exit(0)
        wait_for(lambda before=before: place.server.depth("knime-jobs") > before + 50, 60.0, "fifty jobs")  # type: ignore[misc]
        place.server.close()
        place.broker.kill()
        os.waitpid(child, 0)
        place.broker.start()
        place.server.connect()
    with session(place.config(), place.broker.listener.password) as connected:
        last = changed(ParkedQueue(connected, place.config()), "retry", NOTHING, None)
    place.server.close()
    place.broker.kill()
    place.broker.start()
    place.server.connect()
    with session(place.config(), place.broker.listener.password) as connected:
        assert changed(ParkedQueue(connected, place.config()), "retry", NOTHING, None).done == 0, "acks were written"
    jobs, parked = place.bodies("knime-jobs"), place.bodies(QUEUE)
    assert set(jobs) | set(parked) == set(bodies)
    print(f"{sum(jobs.values()) - len(jobs)} of {len(bodies)} jobs twice, {last.in_doubt} messages in doubt")
    assert sum(jobs.values()) - len(jobs) <= 3, "job and mark are in two queues: one of them may be written alone"
    assert sum(parked.values()) == last.in_doubt
