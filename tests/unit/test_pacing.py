"""What is remembered of jobs that passed: enough to tell one that comes back, and never more memory than at first."""

import tracemalloc

from broker_listener.pacing import SEEN_FOR, SeenJobs, digest


def job(number: int) -> bytes:
    return digest(b"%d" % number, None)


def test_a_job_is_told_again_by_its_body_and_message_id_with_its_place_in_the_order() -> None:
    seen = SeenJobs()
    first, second = seen.arrived(job(1), 10.0), seen.arrived(job(2), 11.0)
    assert (first.handed, second.handed) == (False, False)
    assert seen.arrived(job(1), 12.0) == first, "delivered again, it is no other job"
    assert first.seq < second.seq
    assert digest(b"1", b"id") != digest(b"1", None)


def test_a_job_that_was_handed_over_and_arrives_is_back_and_waits_from_then_on() -> None:
    seen = SeenJobs()
    sight = seen.arrived(job(1), 10.0)
    seen.handed(sight)
    assert seen.is_out(sight)
    back = seen.arrived(job(1), 12.0)
    assert (back.handed, back.since, back.seq) == (True, 12.0, sight.seq)
    assert not seen.is_out(sight)
    assert seen.arrived(job(1), 13.0) == back, "delivered again, it came back once"


def test_a_hand_over_that_the_broker_did_not_take_is_not_out() -> None:
    seen = SeenJobs()
    sight = seen.arrived(job(1), 10.0)
    seen.handed(sight)
    seen.not_taken(sight)
    assert not seen.is_out(sight)
    assert seen.arrived(job(1), 11.0).since == 10.0


def test_a_job_is_forgotten_after_ten_minutes_and_when_many_others_came() -> None:
    seen = SeenJobs()
    sight = seen.arrived(job(1), 10.0)
    seen.handed(sight)
    assert not seen.arrived(job(1), 10.0 + SEEN_FOR).handed
    seen.handed(sight)
    for number in range(2, 30_000):
        seen.arrived(job(number), 20.0)
    assert not seen.arrived(job(1), 20.0).handed


def test_the_longest_unused_are_forgotten_first() -> None:
    seen = SeenJobs()
    busy = [seen.arrived(job(number), 1.0) for number in range(50)]
    for number in range(1000, 60_000):
        seen.arrived(job(number), 1.0)
        if number % 1000 == 0:
            for sight in busy:
                seen.handed(sight)
    assert all(seen.arrived(job(number), 2.0).handed for number in range(50))


def test_a_hundred_thousand_jobs_take_no_memory_that_was_not_there_at_first() -> None:
    seen = SeenJobs()
    tracemalloc.start()
    try:
        for number in range(100_000):
            seen.handed(seen.arrived(job(number), 1.0))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 4096
    assert len(seen) == 8192
