"""What is fuzzed: functions that take any bytes and raise on anything that must never happen.

Each says what must hold in words of its own and does not ask the code under test. Both engines of ``__main__`` drive
the same functions. Nothing is started and no process is signalled: where the real dispatch would fork, it is noted.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from protocol import messages as m
from protocol.codec import ProtocolViolation, decode_reply, decode_request, encode_reply, encode_request
from protocol.names import parse_user_name
from protocol.record import FIRST_PREV, Event, Peer, fault_in, sealed
from root_helper.config import HelperConfig, UsersConfig
from root_helper.executors import Executor
from root_helper.loop import Loop
from root_helper.policy import directory_name, os_user_of
from root_helper.requests import Came, Channel, dispatch
from root_helper.starts import Asked, Starts
from root_helper.supervisor import Supervisor
from root_helper.worker import Task

LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS: Final = frozenset("0123456789")
MAP: Final = {"KnimeBob": "bob", "wrong": "../bob", "top": "root", "numbers": "1000"}
EVENTS: Final = frozenset({"request", "result", "list", "stopped", "drain", "dropped"})


def decoder(data: bytes) -> None:
    """Any bytes are a message, which can be sent again and is then the same, or a violation and nothing else."""
    with suppress(ProtocolViolation):
        request = decode_request(data)
        assert 0 < len(request.id) <= 64
        assert LETTERS | DIGITS | {"-"} >= set(request.id)
        if not isinstance(request, m.OtherVersion) and _fits(request, m.MAX_REQUEST):
            assert decode_request(_one_line(encode_request(request))) == request
    with suppress(ProtocolViolation):
        reply = decode_reply(data)
        if _fits(reply, m.MAX_REPLY):
            assert decode_reply(_one_line(encode_reply(reply))) == reply


def _fits(message: m.Request | m.Reply | m.Exited, limit: int) -> bool:
    """Say whether it is sure to fit: text that came raw grows where it is escaped, and may then not be sent."""
    return len(json.dumps(asdict(message))) < limit - 40  # version, kind, the quotes around them


def _one_line(frame: bytes) -> bytes:
    assert frame.isascii()
    assert b"\n" not in frame
    return frame


def names(data: bytes) -> None:
    """Let a name pass exactly where the rules in words do; what comes of it cannot leave its place."""
    encoding = ("utf-8", "utf-16-le", "latin-1")[sum(data[:1]) % 3]
    text = data[1:].decode(encoding, "replace" if encoding == "utf-16-le" else "surrogateescape")
    for qualified in (False, True):
        parsed = parse_user_name(text, qualified=qualified)
        assert (parsed == text) is _is_a_name(text, qualified=qualified)
        assert parsed in (text, None)
        for lowercase in (False, True):
            os_user = os_user_of(text, MAP, lowercase=lowercase, qualified=qualified)
            if os_user is not None:
                assert _is_a_name(os_user, qualified=qualified)
                assert parsed is not None
                directory = directory_name(text, os_user, {})
                assert directory.partition("+")[0] == os_user
                assert not directory.startswith((".", "-"))
                assert len(directory.encode("ascii")) <= 255
                assert not set(directory) & set("/\0 \n'\"$`\\")


def _is_a_name(text: str, *, qualified: bool) -> bool:
    """Say so letter by letter, in branches that a guided engine can follow, and without a regular expression."""
    name, at, domain = text.partition("@")
    if at and not (qualified and _is_dotted(domain, 64, LETTERS | DIGITS, frozenset("-"))):
        return False
    if not _is_dotted(name, 32, LETTERS | DIGITS | {"_"}, frozenset("-")):
        return False
    return any(letter in LETTERS or letter == "_" for letter in name)


def _is_dotted(text: str, longest: int, firsts: frozenset[str], others: frozenset[str]) -> bool:
    """Say whether it is at most so long, and each part between single dots begins with one of ``firsts``."""
    if len(text) > longest:
        return False
    at_start = True  # of the text, or after a dot
    for letter in text:
        if letter in firsts:
            at_start = False
        elif at_start or letter not in others | {"."}:
            return False
        else:
            at_start = letter == "."
    return not at_start


class Ledger:
    """Stands for the audit log: keeps the events of one frame and seals each as the log would."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> int:
        self.events.append(event)
        return len(self.events)

    record_end = record

    def note(self, event: Event, now: float) -> None:
        del now
        self.events.append(event)

    def is_writable(self) -> bool:
        return True

    def check(self) -> None:
        """Each record is one line of ASCII, whatever the caller sent, and reads back as what was written."""
        assert len(self.events) <= 1
        for event in self.events:
            line, digest = sealed(event, seq=1, prev=FIRST_PREV, time=1.0, host="host")
            assert line.isascii()
            assert line.count(b"\n") == 1
            assert len(line) < 2048
            record = json.loads(line)
            assert fault_in(record, seq=1, prev=FIRST_PREV) is None
            assert (record["hash"], record["event"]) == (digest, event.event)
            assert event.event in EVENTS


class NotedStarts(Starts):
    """Starts that are noted and not made."""

    heard: Callable[[Task, Asked], None]

    def begin(self, task: Task, asked: Asked) -> None:
        self.heard(task, asked)


class Dispatch:
    """The real dispatch over a real supervisor that has two executors; a start is noted, not made."""

    def __init__(self, directory: Path) -> None:
        self.ledger, self.begun = Ledger(), []
        config = HelperConfig(users=UsersConfig(map=MAP, deny_users=("root", "nobody", "denied")))
        directories = (str(directory / "executors"), str(directory))
        self.supervisor = Supervisor(config, Loop(), self.ledger, directories)  # type: ignore[arg-type]
        starts = self.supervisor.starts
        noted = NotedStarts(config, starts.loop, starts.audit, starts.registry, starts.rates, starts.adopt)
        noted.heard = self._begin
        self.supervisor.starts = noted
        # Of another boot: whatever asks for its processes finds none, so that nothing real is ever signalled.
        for user in ("alice", "KnimeBob"):
            executor = Executor(user, user.lower(), 1000, 4194304, 1, "another boot", 1.0, None, None)
            self.supervisor.registry.by_user[user] = executor

    def _begin(self, task: Task, asked: Asked) -> None:
        self.begun.append(task)
        self.ledger.record(Event(event="request", request_id=asked.id, peer=asked.peer, op="ensure", user=task.user))

    def __call__(self, data: bytes) -> None:
        """One frame over either socket: at most one answer and one record, and nothing that it may not ask."""
        self.ledger.events.clear()
        self.begun.clear()
        self.supervisor.draining = False
        over, frame = self._frame(data)
        answers: list[m.Reply] = []
        before = set(self.supervisor._stopping)
        dispatch(self.supervisor, frame, Came(over, Peer(1, 2, 3), answers.append), 1000.0)
        self.ledger.check()
        self._check_answers(frame, answers)
        if over is Channel.GATE:
            assert not self.supervisor.draining
            assert self.supervisor._stopping == before
        else:
            assert not self.begun
        for task in self.begun:
            assert _is_a_name(task.user, qualified=False)
            assert _is_a_name(task.os_user, qualified=False)
            assert task.os_user not in {"root", "nobody", "denied"}
            assert task.os_user == MAP.get(task.user, task.user.lower())

    def _check_answers(self, frame: bytes, answers: list[m.Reply]) -> None:
        assert len(answers) + len(self.begun) <= 1
        for reply in answers:
            assert len(encode_reply(reply)) <= m.MAX_REPLY
            assert json.loads(frame)["id"] == reply.id

    @staticmethod
    def _frame(data: bytes) -> tuple[Channel, bytes]:
        """Give raw bytes as they are, or a request around text that the engine found."""
        if len(data) < 2:
            return Channel.GATE, data
        over = (Channel.GATE, Channel.OPERATOR)[data[0] % 2]
        shapes: tuple[dict[str, object], ...] = (
            {"op": "ensure", "user": ""},
            {"op": "stop", "user": ""},
            {"op": "list", "after": ""},
            {"op": "drain", "on": bool(data[0] & 2)},
        )
        if data[1] & 4:
            return over, data[2:]
        shape = shapes[data[1] % 4]
        text = data[2:].decode("utf-8", "surrogateescape")
        filled = {key: text if value == "" else value for key, value in shape.items()}
        return over, json.dumps({"v": 1, "id": "fuzz-1", **filled}).encode()


def dispatching() -> Callable[[bytes], None]:
    """Give the dispatch, with a directory for its state that is forgotten at exit."""
    shared = Path("/dev/shm")
    directory = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
    target = Dispatch(Path(directory.name))
    target.directory = directory  # type: ignore[attr-defined]  # kept as long as the target
    return target


def seeds() -> Iterator[bytes]:
    """Give what the engines begin with: every message in its own form, and names at the edges of the grammar."""
    requests = (
        m.EnsureExecutor(m.RequestId("r-1"), "alice"),
        m.ListExecutors(m.RequestId("r-1"), "alice"),
        m.StopExecutor(m.RequestId("r-1"), "alice"),
        m.SetDraining(m.RequestId("r-1"), on=True),
    )
    yield from map(encode_request, requests)
    entry = m.ExecutorEntry("alice", "alice", 1000, 7, 1.5, None)
    replies = (
        m.Running(m.RequestId("r-1"), "alice", 1000, 7, 1.5, 99),
        m.Refused(m.RequestId("r-1"), m.RefusedReason.INVALID_NAME),
        m.Failed(m.RequestId("r-1"), m.FailedReason.DRAINING, 5.0),
        m.Executors(m.RequestId("r-1"), (entry,), "alice", True, 99),
        m.Exited("alice", 1000, 7, None, 12),
    )
    yield from map(encode_reply, replies)
    yield from (b'{"v":2,"id":"later"}', b'{"v":1,"v":1}', b"[" * 1000, b'{"v":1e400}')
    yield from (
        b"\0a.b-c_1@example.org",
        b"\x001.a",
        b"\0a" * 33,
        b"\x00\xe2\x84\xaa",
        b"\0\0a;id",
        b"\0\0Root",
        b"\1\1ALICE",
    )


TARGETS: Final[dict[str, Callable[[], Callable[[bytes], None]]]] = {
    "decoder": lambda: decoder,
    "names": lambda: names,
    "dispatch": dispatching,
}
