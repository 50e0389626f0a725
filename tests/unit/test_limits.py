"""Rates, back-off and the bound on what is logged: pure, so every second is passed in."""

from hypothesis import given
from hypothesis import strategies as st

from root_helper.limits import QUICK_DEATH, BackOff, Bound, Idleness, Rates


def test_a_key_has_its_starts_a_minute_and_then_waits_for_the_oldest_to_be_a_minute_old() -> None:
    rates = Rates(per_minute=3, per_second=100)
    assert [rates.wait("alice", float(n)) for n in range(3)] == [0.0] * 3
    assert rates.wait("alice", 10.0) == 50.0
    assert rates.wait("bob", 10.0) == 0.0
    assert rates.wait("alice", 59.9) > 0
    assert rates.wait("alice", 60.0) == 0.0


def test_all_keys_together_have_their_starts_a_second() -> None:
    rates = Rates(per_minute=6, per_second=2)
    assert [rates.wait(name, 5.0) for name in ("a", "b")] == [0.0, 0.0]
    assert rates.wait("c", 5.5) == 0.5
    assert rates.wait("c", 6.0) == 0.0


def test_what_was_told_to_wait_does_not_count() -> None:
    rates = Rates(per_minute=1, per_second=1)
    rates.wait("a", 0.0)
    assert [rates.wait("a", 0.5) > 0 for _ in range(100)] == [True] * 100
    assert rates.wait("a", 60.0) == 0.0


def test_a_start_counted_under_a_second_key_counts_once_in_all() -> None:
    """The same start is counted under the name asked for and, when it is known, under the uid."""
    rates = Rates(per_minute=6, per_second=2)
    for n in range(2):
        assert rates.wait(f"name:{n}", 0.0) == 0.0
        assert rates.wait(f"uid:{n}", 0.0, in_all=False) == 0.0
    assert rates.wait("uid:0", 0.0, in_all=False) == 0.0
    assert rates.wait("name:2", 0.0) == 1.0


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 3)), max_size=200))
def test_no_window_ever_holds_more_than_its_rate(asked: list[tuple[str, float]]) -> None:
    rates, now, allowed = Rates(per_minute=5, per_second=3), 0.0, []
    for key, pause in asked:
        now += pause
        if rates.wait(key, now) == 0.0:
            allowed.append((key, now))
        assert sum(at + 1.0 > now for _, at in allowed) <= 3
        assert sum(at + 60.0 > now and other == key for other, at in allowed) <= 5


def test_keys_that_nobody_asks_for_any_more_are_forgotten() -> None:
    rates = Rates(per_minute=6, per_second=2)
    for n in range(5000):
        rates.wait(f"name:{n}", float(n))
    assert len(rates._by_key) < 500


def test_quick_deaths_double_the_wait_up_to_a_minute() -> None:
    back_off, now, waits = BackOff(), 0.0, []
    for _ in range(8):
        back_off.ended("alice", 0.5, now)
        waits.append(back_off.wait("alice", now))
        now += 100
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_wait_passes_and_is_the_users_own() -> None:
    back_off = BackOff()
    back_off.ended("alice", 0.0, 100.0)
    assert back_off.wait("alice", 100.75) == 0.25
    assert back_off.wait("alice", 101.0) == 0.0
    assert back_off.wait("bob", 100.0) == 0.0


def test_a_longer_life_forgives() -> None:
    back_off = BackOff()
    for _ in range(5):
        back_off.ended("alice", QUICK_DEATH - 0.1, 0.0)
    back_off.ended("alice", QUICK_DEATH, 0.0)
    assert back_off.wait("alice", 0.0) == 0.0
    back_off.ended("alice", 1.0, 0.0)
    assert back_off.wait("alice", 0.0) == 1.0


def looks(idleness: Idleness, *used: tuple[float, float]) -> list[bool]:
    """Look at alice's executor at these times, with what it had used of a processor by then."""
    return [idleness.is_idle("alice", now, seconds) for now, seconds in used]


def test_whom_nobody_asks_for_and_who_does_nothing_is_idle_after_the_whole_time() -> None:
    assert looks(Idleness(100.0, 0.02), (5.0, 7.0), (50.0, 7.5), (104.9, 8.9), (105.0, 8.9)) == [False] * 3 + [True]


def test_a_request_begins_the_time_anew() -> None:
    idleness = Idleness(100.0, 0.02)
    assert looks(idleness, (0.0, 0.0), (99.0, 0.0)) == [False, False]
    idleness.forget("alice")
    assert looks(idleness, (104.0, 0.0), (203.9, 0.0), (204.0, 0.0)) == [False, False, True]


def test_who_works_is_not_idle_and_has_the_whole_time_again() -> None:
    """Also the average of hours at work says nothing of the time since."""
    idleness = Idleness(100.0, 0.02)
    assert looks(idleness, (0.0, 0.0), (100.0, 2.0), (101.0, 500.0), (200.0, 501.0), (201.0, 501.9)) == [False] * 4 + [
        True
    ]


def test_users_are_idle_one_by_one() -> None:
    idleness = Idleness(100.0, 0.02)
    idleness.is_idle("bob", 90.0, 0.0)
    assert looks(idleness, (0.0, 0.0), (100.0, 0.0)) == [False, True]
    assert not idleness.is_idle("bob", 100.0, 0.0)


def test_a_burst_is_written_then_one_a_second_and_the_rest_is_counted_by_reason() -> None:
    bound, at = Bound(), 1000.0
    assert sum(bound.allows("stranger", at) for _ in range(300)) == 200
    assert [bound.allows("bad_frame", at + n) for n in (0.5, 1.0, 1.5, 2.0)] == [False, True, False, True]
    assert bound.suppressed == {"stranger": 100, "bad_frame": 2}


def test_silence_gives_back_no_more_than_the_burst() -> None:
    bound = Bound()
    for _ in range(200):
        bound.allows("stranger", 0.0)
    assert sum(bound.allows("stranger", 100_000.0) for _ in range(1000)) == 200
