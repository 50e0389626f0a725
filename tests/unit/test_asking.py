"""A request to the helper, from the action to its answer, where something is wrong on the way."""

import asyncio
import logging
from pathlib import Path

import pytest

from broker_listener.actions import Ask
from broker_listener.answers import Answer
from broker_listener.asking import Asks
from broker_listener.config import HelperConfig
from broker_listener.helper import HelperClient
from broker_listener.readiness import Readiness


class NoEvents:
    def on_listed(self, *_: object) -> None: ...

    def on_exited(self, *_: object) -> None: ...

    def on_helper(self, *_: object) -> None: ...


@pytest.mark.parametrize("broken", [True, False])
def test_a_request_that_cannot_even_be_made_is_answered_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, broken: bool
) -> None:
    """A thread that cannot be had (RuntimeError, here after its pool's end) would else keep the user asked for ever."""
    answers: list[tuple[str, Answer]] = []

    async def ask() -> None:
        helper = HelperClient(HelperConfig(socket=str(tmp_path / "nobody")), NoEvents())
        readiness = Readiness([5672], [], print)
        if broken:
            readiness.close()
        asks = Asks(helper, readiness, lambda user, answer, _: answers.append((user, answer)))
        asks.ask(Ask("bob", fresh=True))
        async with asyncio.timeout(30):
            while not answers:  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(0.001)
        asks.close()
        readiness.close()
        await helper.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(ask())
    assert answers == [("bob", None)]
    assert ("event=ask_failed" in caplog.text) is broken
    assert ("event=helper_away" in caplog.text) is not broken
