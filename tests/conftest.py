"""What tests stand on: a private broker for the whole run, and a site of its own for each test that asks for one.

These tests need root and RabbitMQ. Where either is missing they fail and say so: a test that was skipped proves
nothing.
"""

import os
import shutil
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.lab import rights
from tests.lab.accounts import Accounts, run_prefix
from tests.lab.broker_node import RABBITMQ, BrokerNode
from tests.lab.site import LAB, Site

LOOKS_FOR_EXAMPLES = "KNIME_PERUSER_TESTS_LOOK"


def pytest_configure() -> None:
    """Ask what the machine allows, once for all workers; a shell's background job would ignore an interrupt.

    Hypothesis fails an example that takes 200 ms by itself, which judges the machine; and it looks for new examples in
    each run. A change is judged by the same ones as the last, the nightly run goes on looking.
    """
    looks = os.environ.get(LOOKS_FOR_EXAMPLES) == "1"
    hypothesis.settings.register_profile("any machine", deadline=None, derandomize=not looks)
    hypothesis.settings.load_profile("any machine")
    rights.lacking()
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs what the machine does not allow, before any of its fixtures is made."""
    lacking = rights.lacking()
    for mark in item.iter_markers("needs"):
        for right in mark.args:
            if right not in rights.RIGHTS:
                pytest.fail(f"no such right in tests/lab/rights.py: {right}", pytrace=False)
            if right in lacking:
                pytest.skip(f"needs {right}: {lacking[right]}")


@pytest.fixture(scope="session")
def broker() -> Iterator[BrokerNode]:
    """Run a private RabbitMQ node. A test that stops or kills it must start it again."""
    _require_root()
    if not (RABBITMQ / "rabbitmq-server").exists() or shutil.which("epmd") is None:
        pytest.fail("this test needs RabbitMQ: apt-get install rabbitmq-server, or tests/run", pytrace=False)
    node = BrokerNode(LAB / f"{run_prefix()}broker")
    try:
        node.create()
        node.start()
        yield node
    finally:
        node.remove()


@pytest.fixture
def site(broker: BrokerNode) -> Iterator[Site]:
    """Give a site of the test's own, nothing started."""
    made = Site(broker)
    try:
        made.create()
        yield made
    finally:
        made.remove()


@pytest.fixture
def running_site(site: Site) -> Site:
    """Give a site of the test's own with both daemons running and the configuration's defaults."""
    site.start()
    return site


@pytest.fixture
def users() -> Iterator[Accounts]:
    """Make users of the OS for a test without a site; their homes are below a root that root alone can write."""
    _require_root()
    prefix = run_prefix()
    homes = LAB / f"{prefix}homes"
    homes.mkdir(mode=0o755)
    made = Accounts(homes, prefix)
    try:
        yield made
    finally:
        made.remove()
        shutil.rmtree(homes)


def _require_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("this test makes users and starts daemons: run it as root", pytrace=False)
