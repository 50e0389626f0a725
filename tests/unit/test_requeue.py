"""Which deliveries may be given back, and whose count of redeliveries is believed."""

import pytest

from broker_listener.consuming import Delivery
from broker_listener.properties import Properties
from broker_listener.requeue import may_give_back, redelivered_too_often

pytestmark = pytest.mark.library


def delivery(headers: list[tuple[bytes, bytes]] | None = None, **fields: bytes) -> Delivery:
    return Delivery(1, 1, b"{}", Properties(fields, headers).encode(), True, "", "")


def test_a_job_without_an_expiry_is_given_back() -> None:
    assert may_give_back(delivery())
    assert may_give_back(delivery([(b"canHandle", b"t\x00")]))


def test_a_job_with_an_expiry_is_published() -> None:
    assert not may_give_back(delivery(expiration=b"\x0560000"))


@pytest.mark.parametrize(("count", "given_back"), [(0, True), (9, True), (10, False), (19, False), (2**40, False)])
def test_a_job_that_the_broker_redelivered_ten_times_is_published(count: int, given_back: bool) -> None:  # noqa: FBT001 - a column of the table
    value = b"l" + count.to_bytes(8, "big")
    assert may_give_back(delivery([(b"x-delivery-count", value)])) is given_back


@pytest.mark.parametrize("value", [b"S\x00\x00\x00\x011", b"V", b"d" + b"\x00" * 8])
def test_a_count_that_is_no_integer_is_taken_as_too_many(value: bytes) -> None:
    assert not may_give_back(delivery([(b"x-delivery-count", value)]))


def test_properties_that_cannot_be_walked_are_not_given_back() -> None:
    assert not may_give_back(Delivery(1, 1, b"{}", b"\xff\xff", True, "", ""))


COUNT = b"x-delivery-count"
NINE, TEN = (b"l" + count.to_bytes(8, "big") for count in (9, 10))


@pytest.mark.parametrize(
    ("headers", "too_often"),
    [
        (None, False),
        ([(COUNT, NINE)], False),
        ([(COUNT, TEN)], True),
        ([(COUNT, TEN), (COUNT, NINE)], True),
        ([(COUNT, NINE), (COUNT, TEN)], True),
        ([(COUNT, b"V")], True),
        ([(COUNT, b"I\xff\xff\xff\xff")], False),
        ([(COUNT.upper(), TEN)], False),
        ([(b"nested", b"F\0\0\0\x1a\x10" + COUNT + TEN)], False),
        ([(b"text", b"S\0\0\0\x10" + COUNT)], False),
    ],
)
def test_the_highest_count_of_a_redelivered_message_counts(
    headers: list[tuple[bytes, bytes]] | None,
    too_often: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """A publisher may send the header twice, and then a queue replaces one of them."""
    assert redelivered_too_often(delivery(headers)) is too_often


def test_a_count_of_a_first_delivery_means_nothing() -> None:
    first = delivery([(COUNT, TEN)])._replace(redelivered=False)
    assert not redelivered_too_often(first)
    assert may_give_back(first)


def test_what_cannot_be_walked_was_not_counted_by_a_queue() -> None:
    assert not redelivered_too_often(Delivery(1, 1, b"{}", b"\xff\xff\x10" + COUNT + TEN, True, "", ""))
