"""Log lines that others can provoke, with a bound: what a stranger repeats must not fill the journal."""

import logging
import time
from typing import Final

PERIOD: Final = 60.0


class LimitedLog:
    """Lets ``lines`` through in each minute; the next minute's first line says how many were left out."""

    def __init__(self, log: logging.Logger, lines: int = 10) -> None:
        self._log = log
        self._lines = lines
        self._until = 0.0
        self._left = 0
        self.left_out = 0

    def info(self, text: str, *arguments: object) -> None:
        """Log as ``logging.Logger.info``."""
        self._write(logging.INFO, text, arguments, None)

    def warning(self, text: str, *arguments: object, cause: BaseException | None = None) -> None:
        """Log as ``logging.Logger.warning``, with the cause's traceback where there is one."""
        self._write(logging.WARNING, text, arguments, cause)

    def _write(self, level: int, text: str, arguments: tuple[object, ...], cause: BaseException | None) -> None:
        now = time.monotonic()
        if now >= self._until:
            if self.left_out:
                self._log.warning("lines_left_out=%d", self.left_out)
            self._until, self._left, self.left_out = now + PERIOD, self._lines, 0
        if self._left:
            self._left -= 1
            self._log.log(level, text, *arguments, exc_info=cause)
        else:
            self.left_out += 1
