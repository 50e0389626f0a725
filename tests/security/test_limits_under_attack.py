"""The tables of limits under a listener that asks for names without end: bounded, and never a fault of their own."""

from root_helper.limits import Rates

PER_SECOND = 50


def test_a_key_that_was_told_to_wait_when_its_minute_was_over_does_no_harm_when_the_table_is_swept() -> None:
    """Found by fuzzing: such a key has no times left, and the sweep looked at its last one."""
    rates = Rates(per_minute=6, per_second=PER_SECOND)
    assert rates.wait("name:first", 0.0) == 0
    for number in range(PER_SECOND):
        assert rates.wait(f"name:crowd{number}", 61.0) == 0
    assert rates.wait("name:first", 61.0) > 0
    for number in range(130 * PER_SECOND):
        rates.wait(f"name:k{number}", 62.0 + number / PER_SECOND)
    assert len(rates._by_key) <= 2 * PER_SECOND * 60 + 1


def test_names_without_end_keep_the_table_bounded() -> None:
    rates = Rates(per_minute=6, per_second=PER_SECOND)
    for number in range(50_000):
        rates.wait(f"name:k{number}", number / PER_SECOND)
        rates.wait(f"name:k{number // 2}", number / PER_SECOND)
    assert len(rates._by_key) <= 2 * PER_SECOND * 60 + 1
