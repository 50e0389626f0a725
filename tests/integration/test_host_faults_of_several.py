"""One of several hosts can start no executor: its users are started by the others, and it comes back by itself."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.broker_node import BrokerNode
from tests.lab.processes import wait_for
from tests.lab.several_hosts import Host, SeveralHosts, up

pytestmark = pytest.mark.needs("network namespace")


@pytest.fixture
def site(broker: BrokerNode) -> Iterator[SeveralHosts]:
    made = SeveralHosts(broker, 2)
    try:
        made.create()
        yield made
    finally:
        made.remove()


def is_at_fault(host: Host) -> bool:
    return bool(host.status()["host_faults"])


def new_users_until(site: SeveralHosts, condition: Callable[[], bool]) -> None:
    """Publish first jobs, each of which runs, until the condition holds: not every one that meets a host probes it."""
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        for _ in range(2):
            site.server.publish(site.user(f"u{len(site.users)}").name)
        assert len(site.server.results(2, 120)) == 2
        time.sleep(0.3)


@pytest.mark.parametrize("wanted", [1, "all"])
def test_host_at_fault_leaves_users_to_others_and_returns(site: SeveralHosts, wanted: object) -> None:
    site.start(wanted)
    bad, good = site.hosts
    program = bad.installation.knime_home / "knime"
    program.rename(program.with_name("away"))
    new_users_until(site, lambda: is_at_fault(bad))
    wait_for(lambda: up(good) == [good.name], 10, "the good host knows that the bad one takes nobody")
    assert len(site.live(site.users[-1])) == 1
    program.with_name("away").rename(program)
    new_users_until(site, lambda: not is_at_fault(bad))
    wait_for(lambda: len(up(good)) == 2, 10, "both hosts take users again")
