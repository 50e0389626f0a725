"""A message body that is larger than any job: kept in pieces until it is parked, or thrown away as it is read.

Whoever may publish chooses its size, and the broker chooses how it is cut into frames, a byte each if it likes: what is
kept is one block for each PIECE bytes, whatever arrives.
"""

from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

MAX_ANNOUNCED: Final = 2**29
"""The largest ``max_message_size`` that a broker can have (rabbitmq.com/docs/configure): more is not believed."""
PIECE: Final = 131072 - 8
"""Bytes of the body that fill a frame of 128 KiB."""


class LargeBody:
    """One body of ``size`` bytes; ``kept`` is False where nothing but the size is known of it."""

    __slots__ = ("_digest", "_pieces", "kept", "size")

    def __init__(self, size: int, *, kept: bool) -> None:
        self.size = size
        self.kept = kept
        self._pieces: deque[bytearray] = deque()
        self._digest = blake2b(digest_size=8) if kept else None

    def add(self, fragment: bytes) -> None:
        """Append what has arrived, or throw it away."""
        if self._digest is None or not self.kept:
            return
        self._digest.update(fragment)
        view = memoryview(fragment)
        while view:
            if not self._pieces or len(self._pieces[-1]) == PIECE:
                self._pieces.append(bytearray())
            last = self._pieces[-1]
            room = PIECE - len(last)
            last += view[:room]
            view = view[room:]

    def taken(self) -> Iterator[bytearray]:
        """Return the pieces in their order; each is forgotten as it is given, and the body can be read once only."""
        self.kept = False
        while self._pieces:
            yield self._pieces.popleft()

    def drop(self) -> None:
        """Forget the pieces."""
        self.kept = False
        self._pieces.clear()

    def digest(self, message_id: bytes | None) -> bytes:
        """Return what ``pacing.digest`` returns for a body in one piece; of one that was never kept, zeros."""
        if self._digest is None:
            return bytes(8)
        whole = self._digest.copy()
        if message_id is not None:
            whole.update(message_id)
        return whole.digest()
