"""Booted machines that the tests of this directory share: a whole site, and hosts that nothing is installed on.

The site is a Debian 12, brought back to a clean state after each test; a test marked ``both_debians`` runs on a Debian
13 as well, one marked ``debian_13`` there alone. The bare host is a Debian 12, then a Debian 13; each test takes back
what it installed. With several workers (pytest-xdist, ``--dist loadgroup``) each machine is one worker's.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.booted_site import BootedSite, booted_site
from tests.lab.installed_machine import InstalledMachine, booted_machine
from tests.lab.machine import JAVA, PACKAGES, why_none_boots
from tests.lab.network_drive import DRIVE_PACKAGES


@pytest.fixture(scope="session", autouse=True)
def _can_boot() -> None:
    """Skip where the machine does not let a container boot; a missing package or right of ours is a failure."""
    if os.geteuid() != 0:
        pytest.fail("these tests boot a container: run them as root", pytrace=False)
    if why := why_none_boots():
        pytest.skip(why)


ADDED = {"bookworm": DRIVE_PACKAGES, "trixie": JAVA}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of the site on each Debian that it is marked for."""
    if "booted" in metafunc.fixturenames:
        marks = {mark.name for mark in metafunc.definition.iter_markers()}
        suites = ["bookworm", "trixie"] if "both_debians" in marks else ["bookworm"]
        metafunc.parametrize("booted", ["trixie"] if "debian_13" in marks else suites, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one machine in one worker."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        machine = next((f"{kind} {parameters[kind]}" for kind in ("booted", "bare_host") if kind in parameters), "")
        item.add_marker(pytest.mark.xdist_group(machine or item.path.name))


@pytest.fixture(scope="session")
def booted(request: pytest.FixtureRequest) -> Iterator[BootedSite]:
    """Boot the machine with its whole site."""
    packages = (*PACKAGES, *ADDED[request.param])
    yield from booted_site(request.param, Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"), packages)


@pytest.fixture
def site(booted: BootedSite) -> Iterator[BootedSite]:
    """Give the site, running, with no executor and empty queues."""
    yield booted
    booted.restore()


@pytest.fixture(scope="session", params=["bookworm", "trixie"])
def bare_host(request: pytest.FixtureRequest) -> Iterator[InstalledMachine]:
    """Boot a machine that has the distribution's packages and nothing of ours."""
    yield from booted_machine(request.param, Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"))
