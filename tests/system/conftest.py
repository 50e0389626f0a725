"""One booted Debian 12 for all tests of this directory, brought back to a clean state after each."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.booted_site import BootedSite, booted_site
from tests.lab.machine import why_none_boots


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
    yield from booted_site("bookworm", Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"))


@pytest.fixture
def site(booted: BootedSite) -> Iterator[BootedSite]:
    """Give the site, running, with no executor and empty queues."""
    yield booted
    booted.restore()
