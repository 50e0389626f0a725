"""Requests to the helper that are under way: each is answered once, with None where anything went wrong.

What a user's connections were before the request is kept while its answer is taken, since an executor that only its
sockets tell apart is watched for from then on.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from broker_listener.actions import Ask
from broker_listener.answers import Answer
from broker_listener.helper import HelperAway, HelperClient
from broker_listener.limited_log import LimitedLog
from broker_listener.readiness import Readiness

LOG: Final = logging.getLogger(__name__)


class Asks:
    """Asks; ``answered(user, answer, heard)`` is called in the loop."""

    def __init__(
        self, helper: HelperClient, readiness: Readiness, answered: Callable[[str, Answer, int], None]
    ) -> None:
        self._helper = helper
        self._readiness = readiness
        self._answered = answered
        self._before: dict[str, frozenset[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._away = LimitedLog(LOG)
        self._bugs = LimitedLog(LOG)

    def ask(self, action: Ask) -> None:
        """Begin a request."""
        task = asyncio.get_running_loop().create_task(self._asked(action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def before(self, user: str) -> frozenset[int]:
        """Give the connections that there were before the request whose answer is being taken."""
        return self._before.get(user, frozenset())

    def close(self) -> None:
        """Wait for no answer any more."""
        for task in self._tasks:
            task.cancel()

    async def _asked(self, action: Ask) -> None:
        answer: Answer = None
        heard = 0
        try:
            if action.fresh:
                self._before[action.user] = await self._readiness.sockets_now()
            answer, heard = await self._helper.ensure(action.user)
        except HelperAway as away:
            self._away.warning("event=helper_away user=%s reason=%r", action.user, str(away))
        except OSError as error:
            self._bugs.warning("event=sockets_not_read reason=%r", str(error))
        except Exception as error:  # noqa: BLE001 - unanswered, the user were asked for no more
            self._bugs.warning("event=ask_failed user=%s", action.user, cause=error)
        try:
            self._answered(action.user, answer, heard)
        finally:
            self._before.pop(action.user, None)
