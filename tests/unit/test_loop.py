"""The poll loop: long work is cut into steps, and nothing waits for the whole of it."""

import os
import time
from collections.abc import Iterator

from root_helper.loop import Loop


def endless(done: list[float]) -> Iterator[float]:
    while True:
        done.append(time.monotonic())
        yield 0.0


def test_work_without_end_keeps_no_descriptor_and_no_timer_waiting() -> None:
    loop, done, called = Loop(), list[float](), list[str]()
    reading, writing = os.pipe()
    loop.work(endless(done))
    loop.watch(reading, lambda: called.append(os.read(reading, 1).decode()))
    loop.after(0.0, lambda: called.append("timer"))
    os.write(writing, b"x")
    loop.round()
    loop.round()
    assert called == ["x", "timer"]
    assert len(done) > 1, "several steps a round"
    os.close(reading)
    os.close(writing)


def test_all_work_has_its_turn() -> None:
    loop, first, second = Loop(), list[float](), list[float]()
    loop.work(endless(first))
    loop.work(endless(second))
    loop.round()
    assert abs(len(first) - len(second)) <= 1


def test_work_that_pauses_lets_the_loop_sleep_and_goes_on_until_it_is_done() -> None:
    loop, done = Loop(), list[int]()

    def steps() -> Iterator[float]:
        for n in range(3):
            done.append(n)
            yield 0.02

    loop.work(steps())
    rounds = 0
    while len(done) < 3:
        loop.round()
        rounds += 1
    assert rounds < 10
    loop.after(0.05, lambda: done.append(99))
    while 99 not in done:
        loop.round()
    assert done == [0, 1, 2, 99]
