"""What a bench stands on: a site of its own on a private broker, a helper alone, or a booted machine; made when asked.

Each bench gets a new site; the broker and the booted machine serve all of a run. ``close`` takes everything back.
"""

import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.lab.accounts import run_prefix
from tests.lab.booted_site import BootedSite
from tests.lab.broker_node import BrokerNode
from tests.lab.machine import IMAGES, image, why_none_boots
from tests.lab.site import LAB, Site

BOOTED: Final = "bookworm"


class NotHere(Exception):
    """The machine cannot give what a bench stands on; the text says why."""


class Ground:
    """All of a run."""

    def __init__(self) -> None:
        self._undo = ExitStack()
        self._broker: BrokerNode | None = None
        self._machine: BootedSite | None = None

    @contextmanager
    def site(self) -> Iterator[Site]:
        """Give a site, nothing started."""
        site = Site(self._started_broker())
        try:
            site.create()
            yield site
        finally:
            site.remove()

    @contextmanager
    def machine(self) -> Iterator[BootedSite]:
        """Give the booted site, with no executor and empty queues; raises NotHere."""
        if self._machine is None:
            self._machine = self._booted()
        else:
            self._machine.restore()
        yield self._machine

    @contextmanager
    def nothing(self) -> Iterator[None]:
        """Give nothing: the bench makes what it needs."""
        yield None

    def close(self) -> None:
        """Take everything back."""
        self._undo.close()

    def _started_broker(self) -> BrokerNode:
        if self._broker is None:
            node = BrokerNode(LAB / f"{run_prefix()}bench")
            self._undo.callback(node.remove)
            node.create()
            node.start()
            self._broker = node
        return self._broker

    def _booted(self) -> BootedSite:
        if why := why_none_boots():
            raise NotHere(why)
        try:
            image(BOOTED)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise NotHere(f"no image of today in {IMAGES}, and none can be built: see {BOOTED}.log there") from error
        site = BootedSite(BOOTED, Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"))
        self._undo.callback(_removed(site))
        site.create()
        return site


def _removed(site: BootedSite) -> Callable[[], None]:
    def remove() -> None:
        site.disconnect()
        site.machine.remove()

    return remove
