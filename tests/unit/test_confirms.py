"""What the broker answers to what was published, in any order: each message's end is told exactly once."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_listener.confirms import Confirms, Message, Outcome
from broker_listener.link import Lost

pytestmark = pytest.mark.library

TARGET = ("jobs", "new-work")


class Channel:
    """The broker's side: how far it has read, and what it answers."""

    def __init__(self) -> None:
        self.published = 0
        self.raises = False

    async def confirm(self, on_confirmed: Callable[..., None], on_returned: Callable[..., None]) -> None:
        self.confirmed, self.returned = on_confirmed, on_returned

    def publish(self, *_: object) -> None:
        self.published += 1
        if self.raises:
            raise Lost("no memory")


def message(token: int) -> Message:
    return Message(token, TARGET, b"%d" % token, b"\0\0")


async def begun(told: list[tuple[int, Outcome]]) -> tuple[Confirms, Channel]:
    confirms, channel = Confirms(lambda token, outcome: told.append((token, outcome))), Channel()
    await confirms.begin(channel, 1000)  # type: ignore[arg-type]  # of pika's it uses these two alone
    return confirms, channel


def answers(draw: Callable[..., object], sequences: list[int]) -> Iterator[tuple[int, bool, bool]]:
    """Give a broker's answers: sequence, multiple, taken; each message is in one of them, in no order."""
    waiting = sorted(sequences)
    while waiting:
        sequence = draw(st.sampled_from(waiting))
        multiple, taken = draw(st.booleans()), draw(st.booleans())
        waiting = [one for one in waiting if one != sequence and not (multiple and one < sequence)]
        yield sequence, multiple, taken


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 12), data=st.data())
def test_in_any_order_singly_or_several_at_once_each_end_is_told_once_as_the_broker_told_it(
    count: int, data: st.DataObject
) -> None:
    told: list[tuple[int, Outcome]] = []
    expected: dict[int, Outcome] = {}

    async def check() -> None:
        confirms, channel = await begun(told)
        for token in range(1, count + 1):
            confirms.publish(message(token))
        returned = data.draw(st.sets(st.integers(1, count)))
        for token in returned:
            channel.returned(TARGET, b"%d" % token, b"\0\0")
            assert not told, "a return comes first, its answer ends the message"
        for sequence, multiple, taken in answers(data.draw, list(range(1, count + 1))):
            for one in range(1, count + 1):
                if one == sequence or (multiple and one < sequence):
                    outcome = Outcome.CONFIRMED if taken else Outcome.NACKED
                    expected.setdefault(one, Outcome.RETURNED if one in returned else outcome)
            channel.confirmed(sequence, multiple, taken)
        assert len(confirms) == 0

    asyncio.run(check())
    assert dict(told) == expected
    assert len(told) == count


def test_an_answer_to_nothing_or_of_an_older_channel_changes_nothing() -> None:
    told: list[tuple[int, Outcome]] = []

    async def check() -> None:
        confirms, old = await begun(told)
        confirms.publish(message(1))
        confirms.lost()
        assert told == [(1, Outcome.LOST)]
        channel = Channel()
        await confirms.begin(channel, 1000)  # type: ignore[arg-type]
        confirms.publish(message(2))
        old.returned(TARGET, b"2", b"\0\0")
        old.confirmed(1, False, True)
        channel.confirmed(7, False, True)
        channel.confirmed(0, True, True)
        assert told[1:] == []
        channel.confirmed(1, True, True)
        assert told[1:] == [(2, Outcome.CONFIRMED)]

    asyncio.run(check())


def test_of_messages_that_are_alike_as_many_count_as_returned_as_came_back() -> None:
    told: list[tuple[int, Outcome]] = []

    async def check() -> None:
        confirms, channel = await begun(told)
        for token in (1, 2, 3):
            confirms.publish(Message(token, TARGET, b"alike", b"\0\0"))
        channel.returned(TARGET, b"alike", b"\0\0")
        channel.returned(TARGET, b"alike", b"\0\0")
        channel.confirmed(3, True, True)

    asyncio.run(check())
    assert sorted(outcome.value for _, outcome in told) == ["confirmed", "returned", "returned"]


def test_a_return_of_what_cannot_be_told_counts_for_all_that_wait_and_loses_none() -> None:
    """Taken as confirmed, its delivery were acked and the job lost; taken as returned, a job is perhaps there twice."""
    told: list[tuple[int, Outcome]] = []

    async def check() -> None:
        confirms, channel = await begun(told)
        for token in (1, 2):
            confirms.publish(message(token))
        channel.returned(TARGET, b"changed by the broker", b"\0\0")
        channel.confirmed(2, True, True)

    asyncio.run(check())
    assert told == [(1, Outcome.RETURNED), (2, Outcome.RETURNED)]


def test_a_publish_that_raises_tells_all_that_wait_lost_and_what_follows_too() -> None:
    told: list[tuple[int, Outcome]] = []

    async def check() -> None:
        confirms, channel = await begun(told)
        confirms.publish(message(1))
        channel.raises = True
        confirms.publish(message(2))
        assert told == [], "never from within publish"
        confirms.publish(message(3))
        await asyncio.sleep(0)
        channel.confirmed(1, True, True)

    asyncio.run(check())
    assert sorted(told) == [(1, Outcome.LOST), (2, Outcome.LOST), (3, Outcome.LOST)]
