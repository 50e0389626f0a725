"""How many messages are parked, said at each connect; and a warning when some are gone that no command took.

Whatever empties the parked queue behind our back (a policy with message-ttl or expires, a purge) loses users' jobs in
silence: policies cannot be seen over AMQP. But each message that a command takes leaves one in a queue beside it,
before it is taken (operator/parking/taken.py). So parked and taken messages together never get fewer, whoever parks and
wherever commands run; if they did, something else took the difference. No clock decides that.

While a command is at work it has messages in its hands, which the queue does not count. So both sides have the same
lock, and who counts has it, too. What is counted is remembered over a restart, in STATE_DIRECTORY where there is one.
"""

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from broker_listener import parked_names
from broker_listener.broker import Connection
from broker_listener.limited_log import LimitedLog
from broker_listener.link import Lost

LOG: Final = logging.getLogger(__name__)
LOOK_AGAIN: Final = 10.0
"""Seconds; a quorum queue's own count lags a little, and a killed command's messages are on their way back."""
MAX_FILE: Final = 1000
MAX_COUNT: Final = 2**53
FILE: Final = "parked-seen"
ADVICE: Final = "no command took them: what empties the queue? knime-peruser check --management names its policies"


class Stock(NamedTuple):
    """Messages in the parked queue, and messages that commands took off it, ever."""

    parked: int
    taken: int


def gone(before: Stock, now: Stock) -> int | None:
    """Return how many messages are gone that no command took; None if the record of what commands took is emptied."""
    if now.taken < before.taken:
        return None
    return max(0, sum(before) - sum(now))


class ParkedCount:
    """What is known of the queue; ``begin`` and ``lost`` tell of connections."""

    def __init__(self, queue: str, urls: Sequence[str]) -> None:
        self._queue = queue
        # Of another broker or queue nothing is known.
        self._key = hashlib.sha256("\0".join((queue, *sorted(urls))).encode()).hexdigest()
        directory = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        self._file = Path(directory) / FILE if directory else None
        self._seen = self._read()
        self._published: set[int] = set()
        """Tokens of what was published since the last look, and has no answer: the look did not count it."""
        self._look: asyncio.Task[None] | None = None
        self._limited = LimitedLog(LOG)

    def begin(self, connection: Connection) -> None:
        """Look at the queue as soon as no command is at work on it."""
        self._published.clear()
        self._look = asyncio.get_running_loop().create_task(self._looked(connection))

    def lost(self) -> None:
        """Take that the connection is gone; keep what is known."""
        self._published.clear()
        if self._look is not None:
            self._look.cancel()
            self._look = None
            self._save()

    def published(self, token: int) -> None:
        """Take that a message is on its way to the queue."""
        if self._seen is not None:
            self._published.add(token)

    def answered(self, token: int, *, confirmed: bool) -> None:
        """Take the broker's answer: what it confirmed, and no look has counted, is one more that must be there."""
        if token in self._published:
            self._published.remove(token)
            if confirmed and self._seen is not None:
                self._seen = self._seen._replace(parked=self._seen.parked + 1)

    async def _looked(self, connection: Connection) -> None:
        try:
            now = await self._counted(connection)
            if now is None:
                return
            LOG.info("event=parked_queue queue=%r parked=%d", self._queue, now.parked)
            if self._seen is not None and gone(self._seen, now) != 0:
                await asyncio.sleep(LOOK_AGAIN)
                now = await self._counted(connection)
                if now is None:
                    return
            self._compare(now)
        except Lost:
            return  # others see to the connection; the next one is looked at
        except Exception as error:  # noqa: BLE001 - counting is a service: a bug in it must not go unsaid, nor end anything
            self._limited.warning("event=parked_not_counted queue=%r", self._queue, cause=error)

    def _compare(self, now: Stock) -> None:
        before, self._seen = self._seen, now
        self._published.clear()
        missing = 0 if before is None else gone(before, now)
        if missing is None:
            LOG.warning(
                "event=parked_messages_gone queue=%r parked=%d gone=unknown record=emptied advice=%r",
                self._queue, now.parked, f"{parked_names.taken(self._queue)} lost messages, too; {ADVICE}",
            )  # fmt: skip
        elif missing:
            LOG.warning(
                "event=parked_messages_gone queue=%r parked=%d gone=%d advice=%r",
                self._queue, now.parked, missing, ADVICE,
            )  # fmt: skip
        self._save()

    async def _counted(self, connection: Connection) -> Stock | None:
        """Count while no command is at work; None if that cannot be had."""
        lock = parked_names.lock(self._queue)
        while (refusal := await connection.lock(lock)) is not None:
            if not refusal.startswith(_LOCKED):
                self._limited.warning("event=parked_not_counted queue=%r reason=%s", self._queue, refusal)
                return None
            await asyncio.sleep(LOOK_AGAIN)  # a command is at work, and knows what it takes
        try:
            parked = await connection.messages_in(self._queue)
            units = await connection.messages_in(parked_names.taken(self._queue))
            thousands = await connection.messages_in(parked_names.thousands(self._queue))
        finally:
            with suppress(Lost):
                await connection.unlock(lock)
        return Stock(parked, units + parked_names.THOUSAND * thousands)

    def _read(self) -> Stock | None:
        if self._file is None:
            return None
        try:
            with self._file.open("rb") as file:
                found = json.loads(file.read(MAX_FILE))
            seen = Stock(found["parked"], found["taken"]) if found["key"] == self._key else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        known = seen is not None and all(type(count) is int and 0 <= count < MAX_COUNT for count in seen)
        return seen if known else None

    def _save(self) -> None:
        if self._file is not None and self._seen is not None:
            text = json.dumps({"key": self._key, **self._seen._asdict()})
            asyncio.get_running_loop().run_in_executor(None, _written, self._file, text)


def _written(file: Path, text: str) -> None:
    """Write the file whole; one that cannot be written costs the next start what this one knows."""
    new = file.with_name(f".{file.name}.new")
    with suppress(OSError):
        new.write_text(text, encoding="ascii")
        new.replace(file)


_LOCKED: Final = "405 "
