"""SIGINT and SIGTERM between two steps rather than in the middle of one; the second of them does not wait."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def between_steps(tell: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Give what says whether one came; ``tell`` is called when the first one comes."""
    came = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True
        tell()

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
