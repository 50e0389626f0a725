"""What several of these tests share."""

from collections.abc import Iterator

import pytest

from tests.lab.accounts import run_prefix
from tests.lab.managed_broker import ManagedBroker
from tests.lab.site import LAB


@pytest.fixture(scope="session")
def managed_broker() -> Iterator[ManagedBroker]:
    """Give a RabbitMQ node with its management interface."""
    node = ManagedBroker(LAB / f"{run_prefix()}managed")
    try:
        node.create()
        node.start()
        yield node
    finally:
        node.remove()
