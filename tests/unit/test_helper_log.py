"""The helper's own log: a reader that stopped reading stops nothing."""

import logging
import os
import socket

import pytest

from root_helper.log import _LineHandler


def entry(text: str) -> logging.LogRecord:
    return logging.LogRecord("start", logging.ERROR, __file__, 1, text, None, None)


def pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    return reading, writing


def stream() -> tuple[int, int]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return near.detach(), far.detach()


@pytest.mark.parametrize("made", [pipe, stream])
def test_a_log_that_nobody_reads_is_left_out_and_counted_and_never_waited_for(made) -> None:
    reading, writing = made()
    handler = _LineHandler(writing)
    for number in range(20_000):  # more than any buffer takes; a write that waited would hang here for ever
        handler.emit(entry(f"line {number}"))
    while len(os.read(reading, 65536)) == 65536:
        pass
    os.set_blocking(reading, False)
    handler.emit(entry("after that"))
    text = b""
    while b"after that" not in text:
        text = text[-200:] + os.read(reading, 65536)
    assert b"after that (lines left out before: " in text
    os.close(reading)
    os.close(writing)


def test_an_entry_is_one_line_of_ascii() -> None:
    reading, writing = pipe()
    _LineHandler(writing).emit(entry("user=\u202e\nERROR forged"))
    assert os.read(reading, 4096) == b"user=\\u202e\\nERROR forged\n"
    os.close(reading)
    os.close(writing)
