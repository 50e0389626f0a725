"""Acks in batches: whatever is settled in whatever order, the broker settles exactly that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener.consuming import Settlements

pytestmark = pytest.mark.library

STEPS = st.lists(st.tuples(st.sampled_from(["ack", "give_back", "flush"]), st.integers(1, 14)), max_size=60)


class Channel:
    """The broker's side of a channel as AMQP 0-9-1 section 1.8.3.13 has it; an unknown tag is an error there."""

    def __init__(self, tags: range) -> None:
        self.unsettled = set(tags)
        self.acked: set[int] = set()
        self.nacked: set[int] = set()
        self.frames = 0

    def settle(self, nacks: list[int], ack_to: int, acks: list[int]) -> None:
        for tag in nacks:
            self.unsettled.remove(tag)
            self.nacked.add(tag)
        if ack_to:
            assert ack_to in self.unsettled
            below = {tag for tag in self.unsettled if tag <= ack_to}
            self.unsettled -= below
            self.acked |= below
        for tag in acks:
            self.unsettled.remove(tag)
            self.acked.add(tag)
        self.frames += len(nacks) + bool(ack_to) + len(acks)


@given(STEPS)
def test_the_broker_settles_exactly_what_was_settled(steps: list[tuple[str, int]]) -> None:
    settlements, channel = Settlements(), Channel(range(1, 13))
    for tag in range(1, 13):
        settlements.delivered(tag)
    acked: set[int] = set()
    nacked: set[int] = set()
    for step, tag in [*steps, ("flush", 0)]:
        if step == "flush":
            channel.settle(*settlements.flush())
            continue
        getattr(settlements, step)(tag)
        if tag <= 12 and tag not in acked | nacked:
            (acked if step == "ack" else nacked).add(tag)
    assert (channel.acked, channel.nacked) == (acked, nacked)


def test_a_batch_in_order_is_one_frame() -> None:
    settlements, channel = Settlements(), Channel(range(1, 1001))
    for tag in range(1, 1001):
        settlements.delivered(tag)
    firsts = [settlements.ack(tag) for tag in range(1, 1000)]
    assert firsts == [True, *[False] * 998]
    channel.settle(*settlements.flush())
    assert (channel.frames, channel.unsettled) == (1, {1000})
