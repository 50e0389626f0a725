"""The operator's connection against a real broker: what it answers, what it takes, and what it never changes."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from broker_listener.config import BrokerConfig
from broker_listener.operator.broker import CannotConnect, NotTaken, Refused, Session, connect, parse_url, session
from broker_listener.operator.outcome import Outcome, Stopped
from tests.lab.broker_node import JOBS_EXCHANGE, BrokerAccount, BrokerNode
from tests.lab.processes import wait_for
from tests.simulated_knime.server import SimulatedServer

pytestmark = pytest.mark.library

PARKED = "knime-jobs.parked"


@pytest.fixture
def vhost(broker: BrokerNode) -> Iterator[str]:
    name = broker.vhosts.take()
    yield name
    broker.vhosts.give_back(name)


@pytest.fixture
def server(broker: BrokerNode, vhost: str) -> Iterator[SimulatedServer]:
    made = SimulatedServer(broker.server.at(broker.port, vhost))
    yield made
    made.close()


def config(broker: BrokerNode, account: BrokerAccount, vhost: str) -> BrokerConfig:
    return BrokerConfig(urls=(account.at(broker.port, vhost, with_password=False),))


@pytest.fixture
def listener(broker: BrokerNode, vhost: str, server: SimulatedServer) -> Iterator[Session]:
    """Give a session with the listener's rights where KNIME Server has made queue and exchange."""
    assert server
    with session(config(broker, broker.listener, vhost), broker.listener.password) as made:
        yield made


def test_what_is_not_there_is_none_and_what_may_not_be_asked_is_refused(listener: Session) -> None:
    assert listener.queue("knime-jobs") is not None
    assert listener.queue("knime-jobs.other") is None
    assert listener.has_exchange(JOBS_EXCHANGE)
    assert not listener.has_exchange("no-such-exchange")
    with pytest.raises(Refused, match="403") as error:
        listener.tap(JOBS_EXCHANGE, "new-work")
    assert error.value.code == 403


def test_rights_are_told_without_taking_or_publishing_anything(listener: Session, server: SimulatedServer) -> None:
    server.publish("alice")
    wait_for(lambda: server.depth() == 1, 30.0, "the job in the queue")
    assert listener.may_consume("knime-jobs")
    assert listener.may_publish(JOBS_EXCHANGE)
    assert listener.may_publish("")
    assert not listener.may_publish("amq.fanout")
    method, _, _ = server.channel.basic_get("knime-jobs")
    assert method is not None
    assert not method.redelivered
    assert method.message_count == 0


def test_the_executors_rights_are_told_from_the_listeners(broker: BrokerNode, vhost: str, server: object) -> None:
    assert server
    with session(config(broker, broker.executors, vhost), broker.executors.password) as executors:
        assert executors.may_consume("knime-jobs")
        assert executors.may_publish(JOBS_EXCHANGE)
        assert not executors.may_publish("")
        with pytest.raises(Refused, match="403"):
            executors.declare_queue_as("knime-jobs", {})


def test_a_message_is_taken_published_with_the_same_bytes_and_settled(
    listener: Session, server: SimulatedServer
) -> None:
    listener.declare_queue_as(PARKED, {"x-max-length-bytes": 2**30, "x-overflow": "reject-publish"})
    server.publish("alice", headers={"odd": -5}, expiration="60000")
    wait_for(lambda: server.depth() == 1, 30.0, "the job in the queue")
    taken = listener.get("knime-jobs")
    assert taken is not None
    listener.publish("", PARKED, taken.body, taken.properties)
    listener.ack(taken.tag)
    copy = listener.get(PARKED)
    assert copy is not None
    assert (copy.body, copy.properties) == (taken.body, taken.properties)
    assert listener.get("knime-jobs") is None


def test_what_no_queue_takes_is_an_error_and_what_was_taken_is_still_there(
    listener: Session, server: SimulatedServer
) -> None:
    server.publish("alice")
    wait_for(lambda: server.depth() == 1, 30.0, "the job in the queue")
    taken = listener.get("knime-jobs")
    assert taken is not None
    with pytest.raises(NotTaken):
        listener.publish(JOBS_EXCHANGE, "nobody-is-bound-here", taken.body, taken.properties)
    with pytest.raises(Refused, match="403"):
        listener.publish("no-such-exchange", "new-work", taken.body, taken.properties)
    again = listener.get("knime-jobs")
    assert again is not None
    assert again.redelivered
    assert again.body == taken.body


def test_a_tap_gets_copies_and_the_originals_stay(broker: BrokerNode, vhost: str, server: SimulatedServer) -> None:
    with session(config(broker, broker.server, vhost), broker.server.password) as observer:
        queue = observer.tap(JOBS_EXCHANGE, "new-work")
        server.publish("alice")
        seen = [message for message in observer.deliveries(queue, 0.5) if message is not None]
    assert len(seen) == 1
    assert server.depth() == 1


def test_a_wrong_password_and_a_dead_port_are_said_without_the_password(broker: BrokerNode, vhost: str) -> None:
    url = parse_url(broker.listener.at(broker.port, vhost, with_password=False))
    with pytest.raises(CannotConnect, match="403") as error:
        connect(BrokerConfig(), url, url.user, "s3cret-and-wrong")
    assert "s3cret" not in str(error.value)
    assert "blank" not in str(error.value)
    with pytest.raises(CannotConnect, match="the password begins with a blank"):
        connect(BrokerConfig(), url, url.user, f" {broker.listener.password}")
    with (
        pytest.raises(Stopped, match="cannot connect") as stopped,
        session(BrokerConfig(urls=("amqp://knime@127.0.0.1:1/%2F",)), "s3cret"),
    ):
        pass
    assert stopped.value.outcome is Outcome.UNREACHABLE


def test_a_broker_that_ends_the_connection_stops_the_command(broker: BrokerNode, listener: Session) -> None:
    broker.ctl("close_all_user_connections", broker.listener.name, "a test")
    with pytest.raises(Stopped) as stopped:
        listener.queue("knime-jobs")
    assert stopped.value.outcome is Outcome.UNREACHABLE


BECOME = """\
import os, sys
from broker_listener.operator.unprivileged import become
become("knime-listener")
assert "pika" not in sys.modules
print(*os.getresuid(), *os.getresgid(), os.getgroups())
"""


def test_root_becomes_the_listeners_account_for_good(site: object) -> None:
    assert site
    command = [sys.executable, "-c", BECOME]
    run = subprocess.run(command, capture_output=True, text=True, check=False, extra_groups=[0, 4])
    assert run.returncode == 0, run.stderr
    uid, *_ = run.stdout.split()
    assert uid != "0"
    assert run.stdout.split()[:3] == [uid] * 3
    assert run.stdout.strip().endswith("[]")
