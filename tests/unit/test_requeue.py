"""Which jobs mode "requeue" may give back instead of publishing them."""

import pytest

from broker_listener.consuming import Delivery
from broker_listener.properties import Properties
from broker_listener.requeue import may_give_back

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
