"""What the supervisor hears of a worker, and of no other."""

import os
from types import SimpleNamespace

import pytest

from root_helper.loop import Loop
from root_helper.starts import Starts
from root_helper.worker_process import WorkerProcess

pytestmark = pytest.mark.library


def test_the_end_of_a_pipe_that_another_worker_has_a_copy_of_is_not_taken_for_a_word_of_the_next_one() -> None:
    """A worker is forked with copies of all that the supervisor has open; epoll(7) keeps what one of them keeps."""
    starts, process = Starts.__new__(Starts), WorkerProcess.__new__(WorkerProcess)
    starts.loop = loop = Loop()
    process.report, report = os.pipe()
    process._said = b""
    os.set_blocking(process.report, False)
    number, copy = process.report, os.dup(process.report)
    loop.watch(number, lambda: starts._hear(SimpleNamespace(stage="ended"), process))  # type: ignore[arg-type]
    os.close(report)
    loop.round()
    assert process.report == -1
    next_one, its_report = os.pipe()
    os.dup2(next_one, number)
    heard: list[int] = []
    loop.watch(number, lambda: heard.append(number))
    loop.after(0.05, lambda: None)
    loop.round()
    assert heard == []
    loop.forget(number)
    for descriptor in {number, copy, next_one, its_report}:
        os.close(descriptor)
