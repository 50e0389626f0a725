"""A user with the executors' broker account, which stands in the environment of the user's own executor.

With the permissions that README.md gives it, at a real broker: what it can do to others' jobs, which SECURITY.md says,
and that all else is refused.
"""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker

from tests.lab.broker_node import JOBS_EXCHANGE, BrokerAccount, BrokerNode

README: Final = Path(__file__).parents[2] / "README.md"
QUEUE, PARKED = "knime-jobs", "knime-jobs.parked"


@pytest.fixture(scope="module")
def vhost(broker: BrokerNode) -> str:
    """Give a vhost with the exchange and the queues of a site, and the permissions that README.md gives."""
    name = f"executors-{secrets.token_hex(3)}"
    broker.add_vhosts([name])
    (written,) = re.findall(
        r"^rabbitmqctl set_permissions -p / knime-executors '(.*)' '(.*)' '(.*)'$", README.read_text(), re.MULTILINE
    )
    broker.ctl("set_permissions", "-p", name, broker.executors.name, *written)
    connection, channel = connected(broker, broker.server, name)
    channel.exchange_declare(JOBS_EXCHANGE, durable=True)
    channel.exchange_declare("answers", durable=True)
    for queue in (QUEUE, PARKED):
        channel.queue_declare(queue, durable=True)
    channel.queue_bind(QUEUE, JOBS_EXCHANGE, "new-work")
    connection.close()
    return name


@pytest.fixture
def executor(broker: BrokerNode, vhost: str) -> Iterator[BlockingChannel]:
    """Give a channel of the executors' account."""
    connection, channel = connected(broker, broker.executors, vhost)
    yield channel
    with suppress(AMQPConnectionError):
        connection.close()


def connected(broker: BrokerNode, account: BrokerAccount, vhost: str) -> tuple[BlockingConnection, BlockingChannel]:
    connection = BlockingConnection(pika.URLParameters(account.at(broker.port, vhost)))
    channel = connection.channel()
    channel.confirm_delivery()
    return connection, channel


def test_with_the_executors_account_a_user_can_take_purge_and_forge_jobs_of_others(executor: BlockingChannel) -> None:
    """As SECURITY.md says. Nothing below the broker can take it away; another queue can."""
    executor.basic_publish(JOBS_EXCHANGE, "new-work", b'{"user": "somebody-else"}')
    _, _, body = executor.basic_get(QUEUE, auto_ack=True)
    assert body == b'{"user": "somebody-else"}'
    executor.basic_publish(JOBS_EXCHANGE, "new-work", b"{}")
    executor.queue_purge(QUEUE)
    assert executor.basic_get(QUEUE) == (None, None, None)


REFUSED: Final[dict[str, Callable[[BlockingChannel], object]]] = {
    "read what is parked": lambda channel: channel.basic_get(PARKED),
    "purge what is parked": lambda channel: channel.queue_purge(PARKED),
    "park, by the default exchange": lambda channel: channel.basic_publish("", PARKED, b"{}"),
    "publish to another exchange": lambda channel: channel.basic_publish("answers", "x", b"{}"),
    "read from the jobs exchange with a queue of its own": lambda channel: channel.queue_declare("", exclusive=True),
    "bind the jobs queue elsewhere": lambda channel: channel.queue_bind(QUEUE, "answers", "x"),
    "unbind the jobs queue": lambda channel: channel.queue_unbind(QUEUE, JOBS_EXCHANGE, "new-work"),
    "delete the jobs queue": lambda channel: channel.queue_delete(QUEUE),
    "delete the jobs exchange": lambda channel: channel.exchange_delete(JOBS_EXCHANGE),
    "speak to other hosts' listeners": lambda channel: channel.exchange_declare("knime-peruser.hosts"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_with_the_executors_account_a_user_can_do_nothing_else_at_the_broker(
    executor: BlockingChannel, what: str
) -> None:
    with pytest.raises(ChannelClosedByBroker) as refused:
        REFUSED[what](executor)
    assert refused.value.reply_code == 403
