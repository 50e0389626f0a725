"""What most attacks begin with: a helper for the file, not started, and two users; put back after each test."""

from collections.abc import Iterator

import pytest

from tests.lab.accounts import OsUser
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test


@pytest.fixture(scope="module")
def laid_out() -> Iterator[HelperUnderTest]:
    with helper_under_test() as made:
        yield made


@pytest.fixture(scope="module")
def alice(laid_out: HelperUnderTest) -> OsUser:
    return laid_out.accounts.user("alice")


@pytest.fixture(scope="module")
def bob(laid_out: HelperUnderTest) -> OsUser:
    return laid_out.accounts.user("bob")


@pytest.fixture
def helper(laid_out: HelperUnderTest) -> Iterator[HelperUnderTest]:
    yield laid_out
    laid_out.reset()
