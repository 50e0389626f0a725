"""What ``check`` says of a quorum queue's delivery limit, whoever sets it, on either version of the broker."""

from collections.abc import Mapping

import pytest

from broker_listener.config import BrokerConfig
from broker_listener.operator.checks import managed
from broker_listener.operator.checks.finding import Level


class Management:
    """A management interface that knows one queue."""

    def __init__(self, version: str, argument: int | None, policy: int | None) -> None:
        self._version = version
        arguments: Mapping[str, object] = {} if argument is None else {"x-delivery-limit": argument}
        definition: Mapping[str, object] = {} if policy is None else {"delivery-limit": policy}
        self._queue = {"type": "quorum", "durable": True, "arguments": {"x-queue-type": "quorum", **arguments}}
        self._queue["effective_policy_definition"] = definition

    def version(self) -> str:
        return self._version

    def queue(self, _name: str) -> Mapping[str, object]:
        return self._queue


@pytest.mark.parametrize(
    ("version", "argument", "policy", "limit"),
    [
        ("3.10.8", None, None, None),
        ("3.10.8", 20, None, 20),
        ("3.10.8", 100, 19, 19),
        ("3.10.8", 19, 100, 19),
        ("3.10.8", None, 0, 0),
        ("4.0.5", None, None, 20),
        ("4.0.5", None, 3, 3),
        ("4.0.5", -1, None, None),
        ("4.0.5", -1, 3, 3),
        ("4.0.5", 3, -1, 3),
        ("4.0.5", -1, -1, None),
    ],
)
def test_the_limit_that_counts_is_judged(
    version: str, argument: int | None, policy: int | None, limit: int | None
) -> None:
    """Below 20 it is a fault: lost connections alone use it up before the listener can publish a job again."""
    found = managed.queue(BrokerConfig(), Management(version, argument, policy))  # type: ignore[arg-type]
    said = {finding.subject: finding for finding in found}.get("broker.delivery_limit")
    if limit is None:
        assert said is None
    else:
        assert said is not None
        assert f"after {limit} redeliveries" in said.seen
        assert said.level is (Level.OK if limit >= 20 else Level.FAULT)
