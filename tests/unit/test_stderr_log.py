"""The daemon's log: one ASCII line a record, and never a wait for whoever reads it."""

import logging
import os
import re
import time
from collections.abc import Iterator

import pytest

from broker_listener.stderr_log import MAX_LINE, MAX_WAITING, StderrLog


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("test", logging.WARNING, __file__, 1, text, arguments, None)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    os.set_blocking(descriptor, False)
    text = b""
    deadline = time.monotonic() + 30
    while wanted not in text and time.monotonic() < deadline:
        try:
            text += os.read(descriptor, 65536)
        except BlockingIOError:
            time.sleep(0.01)
    return text


def test_a_record_is_one_line_of_printable_ascii_and_cut(pipe: tuple[int, int]) -> None:
    log = StderrLog(pipe[1])
    log.emit(record("user=%s", "a\nFAKE user=root\x1b[31m\u212a" + "x" * 20_000))
    log.close()
    line = os.read(pipe[0], 65536)
    assert line.startswith(b"WARNING user=a | FAKE user=root | [31m\\u212ax")
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_LINE + 100


def test_a_reader_that_stopped_costs_lines_and_no_time_and_is_told_how_many(pipe: tuple[int, int]) -> None:
    log = StderrLog(pipe[1])
    for number in range(20_000):
        log.emit(record("number=%d %s", number, "x" * 100))
    assert log.dropped >= 20_000 - MAX_WAITING - 2000
    text = read_until(pipe[0], b"number=0 ")
    deadline = time.monotonic() + 30
    while log._lines.full() and time.monotonic() < deadline:
        text += read_until(pipe[0], b"number")
    log.emit(record("after"))
    text += read_until(pipe[0], b"after")
    assert sum(int(count) for count in re.findall(rb"log_lines_dropped=(\d+)\n", text)) == log.dropped
    log.close()


def test_a_log_call_that_does_not_fit_its_own_text_raises_nothing(pipe: tuple[int, int]) -> None:
    log = StderrLog(pipe[1])
    log.emit(record("number=%d", "none"))
    assert log.dropped == 1
    log.close()
