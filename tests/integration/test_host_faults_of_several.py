"""One of several hosts can start no executor: its users are started by the others, and it comes back by itself."""

from collections.abc import Iterator

import pytest

from tests.lab.broker_node import BrokerNode
from tests.lab.processes import wait_for
from tests.lab.several_hosts import Host, SeveralHosts, up

pytestmark = pytest.mark.one_end  # two hosts take their time


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


@pytest.mark.parametrize("wanted", [1, "all"])
def test_host_at_fault_leaves_users_to_others_and_returns(site: SeveralHosts, wanted: object) -> None:
    site.start(wanted)
    bad, good = site.hosts
    program = bad.installation.knime_home / "knime"
    program.rename(program.with_name("away"))
    published = 0

    def new_users() -> None:
        nonlocal published
        for _ in range(4):
            site.server.publish(site.user(f"u{published}").name)
            published += 1
        assert len(site.server.results(4, 60)) == 4

    for _ in range(5):
        new_users()
        if is_at_fault(bad):
            break
    assert is_at_fault(bad)
    wait_for(lambda: up(good) == [good.name], 10, "the good host knows that the bad one takes nobody")
    new_users()
    assert len(site.live(site.users[-1])) == 1
    program.with_name("away").rename(program)
    for _ in range(8):
        new_users()
        if not is_at_fault(bad):
            break
    assert not is_at_fault(bad)
    wait_for(lambda: len(up(good)) == 2, 10, "both hosts take users again")
