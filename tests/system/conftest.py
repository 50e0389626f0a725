"""Booted machines that the tests of this directory share: a whole site, and hosts that nothing is installed on.

The site is a Debian 12, brought back to a clean state after each test. The bare host is a Debian 12, then a Debian 13;
each test takes back what it installed.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.booted_site import BootedSite, booted_site
from tests.lab.installed_machine import InstalledMachine, booted_machine
from tests.lab.machine import PACKAGES, why_none_boots
from tests.lab.network_drive import DRIVE_PACKAGES


@pytest.fixture(scope="session", autouse=True)
def _can_boot() -> None:
    """Skip where the machine does not let a container boot; a missing package or right of ours is a failure."""
    if os.geteuid() != 0:
        pytest.fail("these tests boot a container: run them as root", pytrace=False)
    if why := why_none_boots():
        pytest.skip(why)


@pytest.fixture(scope="session")
def booted() -> Iterator[BootedSite]:
    """Boot the machine with its whole site."""
    packages = (*PACKAGES, *DRIVE_PACKAGES)
    yield from booted_site("bookworm", Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"), packages)


@pytest.fixture
def site(booted: BootedSite) -> Iterator[BootedSite]:
    """Give the site, running, with no executor and empty queues."""
    yield booted
    booted.restore()


@pytest.fixture(scope="session", params=["bookworm", "trixie"])
def bare_host(request: pytest.FixtureRequest) -> Iterator[InstalledMachine]:
    """Boot a machine that has the distribution's packages and nothing of ours."""
    yield from booted_machine(request.param, Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"))
