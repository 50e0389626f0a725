"""The two connections to the broker that are always wanted, as the rest of the listener sees them.

Consuming and publishing have a connection each: a publish that the broker refuses closes its channel, and under a
memory alarm the broker stops reading from whoever publishes; neither may touch the deliveries that are held. One that
is lost is tried again with a growing pause.

Consuming begins only while publishing is possible: what was redelivered too often must be published, and each time that
it is taken and lost again counts against it.
"""

from functools import partial
from typing import Final, Literal, NamedTuple, Protocol

from broker_listener.broker import connect, max_properties
from broker_listener.config import BrokerConfig
from broker_listener.consuming import ConsumeEvents, Consumer
from broker_listener.link import Link
from broker_listener.publishing import Publisher, PublishEvents

_ALARM: Final = "the broker takes nothing: a memory or disk alarm (rabbitmqctl list_alarms)"
_WAITS: Final = "jobs are taken as soon as something can be published: see the other connection"


class BrokerEvents(ConsumeEvents, PublishEvents, Protocol):
    """What the broker tells; a call that raises is logged and ends the message it was about."""


class ConnectionState(NamedTuple):
    """How a connection is: ``server`` while it is up, ``why`` while it is not or is blocked, time.monotonic()."""

    state: Literal["up", "down", "blocked"]
    server: str | None
    since: float
    why: str | None
    losses: int


class Broker:
    """The two connections. All methods are called in the loop that ``start`` was called in."""

    def __init__(self, config: BrokerConfig, events: BrokerEvents) -> None:
        self._publisher = Publisher(config, events, self._publishable)
        self._consumer = Consumer(config, events)
        self._consume = Link(config.urls, self._consumer, partial(connect, config))
        self._publish = Link(config.urls, self._publisher, partial(connect, config))
        self.ack = self._consumer.ack
        self.give_back = self._consumer.give_back
        self.hand_over = self._publisher.hand_over
        self.park = self._publisher.park
        self.put_back = self._publisher.put_back
        self.park_large = self._publisher.park_large
        self.put_back_large = self._publisher.put_back_large

    def start(self) -> None:
        """Begin to connect; the events tell the rest."""
        self._consume.start()
        self._publish.start()

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - the caller's share of its own time to stop
        """Wait for what is unconfirmed, send what is settled, close both; at most ``timeout`` seconds."""
        await self._publish.close(timeout / 2)
        await self._consume.close(timeout / 2)

    @property
    def account(self) -> str:
        """The account that publishes: no other may stand in ``user_id``."""
        return self._publish.url.user

    @property
    def frame_max(self) -> int:
        """Bytes of a frame that publishes, negotiated."""
        return self._publish.frame_max

    @property
    def max_properties(self) -> int:
        """Bytes that the properties of a message may have, at most."""
        return max_properties(self._publish.frame_max)

    @property
    def can_publish(self) -> bool:
        """Whether what is published now has a chance."""
        return self._publisher.can_publish

    def connections(self) -> dict[str, ConnectionState]:
        """Give how both connections are, by name."""
        publish = state_of(self._publish, self._publisher.blocked_since)
        return {"consume": state_of(self._consume, self._consumer.waiting_since, _WAITS), "publish": publish}

    @property
    def state(self) -> str:
        """What both connections do, for the status."""
        blocked = " (blocked by the broker)" if self._publish.up and not self.can_publish else ""
        return f"consume: {self._consume.state}; publish: {self._publish.state}{blocked}"

    def cancel_consumer(self) -> None:
        """Take no more deliveries; those held stay valid."""
        self._consumer.want(on=False)

    def resume_consumer(self) -> None:
        """Take deliveries again."""
        self._consumer.want(on=True)

    def _publishable(self) -> None:
        self._consumer.may_begin(on=self._publisher.can_publish)


def state_of(link: Link, blocked_since: float | None = None, why: str = _ALARM) -> ConnectionState:
    """Return how a connection is; ``blocked_since`` is since when nothing passes on it, and ``why``."""
    if not link.up:
        return ConnectionState("down", None, link.since, link.why, link.losses)
    host = f"[{link.url.host}]" if ":" in link.url.host else link.url.host
    server = f"{host}:{link.url.port}"
    if blocked_since is None:
        return ConnectionState("up", server, link.since, None, link.losses)
    return ConnectionState("blocked", server, blocked_since, why, link.losses)
