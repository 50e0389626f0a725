"""One booted Debian 12 for all tests of this directory, brought back to a clean state after each."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.booted_site import BootedSite, booted_site


@pytest.fixture(scope="session")
def booted() -> Iterator[BootedSite]:
    """Boot the machine with its whole site."""
    if os.geteuid() != 0:
        pytest.fail("these tests boot a container: run them as root", pytrace=False)
    yield from booted_site("bookworm", Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"))


@pytest.fixture
def site(booted: BootedSite) -> Iterator[BootedSite]:
    """Give the site, running, with no executor and empty queues."""
    yield booted
    booted.restore()
