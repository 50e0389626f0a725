#!/usr/bin/python3 -IS
"""Stands in for KNIME's executor where 200 of them share a small machine: a few MB, up in 30 ms, no library.

It speaks the little of AMQP 0-9-1 that an executor needs, on one channel, and writes a line for each job that it ran
to ``ran`` in its workspace, before it acks: who ran what is then the kernel's word (the file's owner), and survives
every crash. A job of another user it puts back, and acks it only when the broker has the copy, so that no job is lost
by the stand-in. ``simulated.json`` says how it behaves; see ``DEFAULTS``.
"""

import _socket
import fcntl
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

DEFAULTS = {
    "queue": "knime-jobs",
    "exchange": "knime-server2executorknime-jobs",
    "routing_key": "new-work",
    "start_time": 0.0,  # seconds until it connects
    "connects_when": "",  # a file that must be there before it connects
    "job_time": 0.0,
    "prefetch": 1,
    "takes": True,  # False: puts its own user's jobs back, too
    "put_back": "republish",  # "nack"; or "kept": republished with canHandle as it came
}
FRAME_MAX = 131072
FRAME_END = b"\xce"
ENDS = (b"\0\x0a\0\x32", b"\0\x14\0\x28", b"\0\x3c\0\x1e", b"\0\x3c\0\x78")
"""connection.close, channel.close, basic.cancel, and basic.nack of a publish."""


def main() -> None:
    """Lock the workspace, take a while, connect, work until killed."""
    user = os.environ["KNIME_EXECUTOR_RESERVATION"].removeprefix("(user = '").removesuffix("')")
    workspace = sys.argv[sys.argv.index("-data") + 1]
    settings = read_settings(user)
    with open(f"{workspace}/ran", "ab", buffering=0) as ran:  # noqa: PTH123 - pathlib would double the start
        try:
            fcntl.flock(ran, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"workspace in use: {workspace}")
        time.sleep(settings["start_time"])
        while settings["connects_when"] and not os.path.exists(settings["connects_when"]):  # noqa: PTH110
            time.sleep(0.02)
        brokers = addresses(os.environ["KNIME_EXECUTOR_MSGQ"])
        while True:
            for broker in brokers:
                try:
                    Executor(user, settings, ran).serve(*broker)
                except (OSError, EOFError) as error:
                    print(f"lost the broker: {error!r}", flush=True)
            time.sleep(0.3)


def read_settings(user: str) -> dict[str, Any]:
    """Give the settings of this user's executor."""
    with open(f"{os.path.dirname(sys.argv[0])}/simulated.json", encoding="utf-8") as file:  # noqa: PTH120, PTH123
        written = json.load(file)
    return {**DEFAULTS, **written, **written.get("users", {}).get(user, {})}


def addresses(msgq: str) -> list[tuple[str, int, bytes, bytes, bytes]]:
    """Give host, port, user, password and vhost of each broker; the first of the list alone has the last three."""
    first, *others = msgq.strip().removeprefix("amqp://").split(",")
    account, _, rest = first.rpartition("@")
    name, _, password = account.partition(":")
    where, _, vhost = rest.partition("/")
    hosts = [where, *(other.removeprefix("amqp://").partition("/")[0] for other in others)]
    secret = (decoded(name), decoded(password), decoded(vhost))
    return [(host.rpartition(":")[0], int(host.rpartition(":")[2]), *secret) for host in hosts]


def decoded(text: str) -> bytes:
    """Undo percent-encoding."""
    first, *others = text.encode("ascii").split(b"%")
    return first + b"".join(bytes.fromhex(other[:2].decode()) + other[2:] for other in others)


def job_in(body: bytes) -> dict[str, Any]:
    """Give the job, or nothing where it is none."""
    try:
        job = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return job if isinstance(job, dict) else {}


def short(text: bytes) -> bytes:
    """Give a short string of AMQP."""
    return bytes([len(text)]) + text


class Executor:
    """One connection with one channel."""

    def __init__(self, user: str, settings: dict[str, Any], ran: IO[bytes]) -> None:
        self.user = user
        self.settings = settings
        self.ran = ran
        self.socket = _socket.socket()
        self.received = b""
        self.confirms = 0
        self.put_back_as: dict[int, int] = {}
        """Delivery tags of what was put back, by the number of the publish."""

    def serve(self, host: str, port: int, name: bytes, password: bytes, vhost: bytes) -> None:
        """Consume until the connection ends, which raises OSError or EOFError."""
        self.socket.connect((host, port))
        self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self.socket.sendall(b"AMQP\0\0\x09\x01")
        response = b"\0" + name + b"\0" + password
        plain = struct.pack(">I", 0) + short(b"PLAIN") + struct.pack(">I", len(response)) + response + short(b"en_US")
        queue = short(self.settings["queue"].encode())
        frames = self.frames()
        for channel, class_id, method, arguments in (
            (0, 10, 11, plain),  # answers connection.start, and each of the following the answer to the one before
            (0, 10, 31, struct.pack(">HIH", 1, FRAME_MAX, 0)),
            (0, 10, 40, short(vhost) + b"\0\0"),
            (1, 20, 10, b"\0"),
            (1, 60, 10, struct.pack(">IHB", 0, self.settings["prefetch"], 0)),
            (1, 85, 10, b"\0"),
            (1, 60, 20, b"\0\0" + queue + b"\0\0" + struct.pack(">I", 0)),
        ):
            if channel or method != 40:  # tune-ok has no answer
                next(frames)
            self.call(channel, class_id, method, arguments)
        self.consume(frames)

    def consume(self, frames: Iterator[tuple[int, int, bytes]]) -> None:
        """Take deliveries and confirms."""
        for kind, _, payload in frames:
            if kind != 1:
                continue
            method = payload[:4]
            if method == b"\0\x3c\0\x3c":  # basic.deliver
                self.deliver(frames, payload)
            elif method == b"\0\x3c\0\x50":  # basic.ack: the broker has what was put back
                self.confirmed(*struct.unpack(">QB", payload[4:13]))
            elif method in ENDS:
                raise EOFError(f"closed, cancelled or not taken: {payload[:80]!r}")

    def deliver(self, frames: Iterator[tuple[int, int, bytes]], payload: bytes) -> None:
        """Run a job of our user, put any other back."""
        at = 5 + payload[4]
        tag, redelivered = struct.unpack(">QB", payload[at : at + 9])
        _, _, header = next(frames)
        size = int.from_bytes(header[4:12], "big")
        properties = header[12:]
        body = b""
        while len(body) < size:
            body += next(frames)[2]
        job = job_in(body)
        if job.get("user") != self.user or not self.settings["takes"]:
            self.put_back(tag, properties, body)
            return
        time.sleep(job.get("seconds", self.settings["job_time"]))
        marked = b"\x09canHandlet\1" in properties
        who = f"{job['job']} {job['user']} {os.getuid()} {os.getpid()}"
        self.ran.write(f"{who} {time.time():.3f} {redelivered} {marked:d}\n".encode())
        self.call(1, 60, 80, struct.pack(">QB", tag, 0))

    def put_back(self, tag: int, properties: bytes, body: bytes) -> None:
        """Give a job back that another executor must run."""
        manner = self.settings["put_back"]
        if manner == "nack":
            self.call(1, 60, 120, struct.pack(">QB", tag, 2))
            return
        if manner == "republish":
            properties = properties.replace(b"\x09canHandlet\1", b"\x09canHandlet\0")
        self.confirms += 1
        self.put_back_as[self.confirms] = tag
        target = short(self.settings["exchange"].encode()) + short(self.settings["routing_key"].encode())
        method = frame(1, 1, struct.pack(">HHH", 60, 40, 0) + target + b"\0")
        header = frame(2, 1, struct.pack(">HHQ", 60, 0, len(body)) + properties)
        self.socket.sendall(method + header + frame(3, 1, body))

    def confirmed(self, number: int, multiple: int) -> None:
        """Ack the originals of what the broker has taken."""
        numbers = [one for one in self.put_back_as if one == number or (multiple and one < number)]
        acks = [struct.pack(">HHQB", 60, 80, self.put_back_as.pop(one), 0) for one in numbers]
        self.socket.sendall(b"".join(frame(1, 1, ack) for ack in acks))

    def call(self, channel: int, class_id: int, method: int, arguments: bytes) -> None:
        """Send a method."""
        self.socket.sendall(frame(1, channel, struct.pack(">HH", class_id, method) + arguments))

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """Give frames as they come: kind, channel, payload."""
        while True:
            while len(self.received) < 7 or len(self.received) < 8 + int.from_bytes(self.received[3:7], "big"):
                chunk = self.socket.recv(1 << 16)
                if not chunk:
                    raise EOFError("the broker has closed the connection")
                self.received += chunk
            kind, channel, size = struct.unpack(">BHI", self.received[:7])
            payload, self.received = self.received[7 : 7 + size], self.received[8 + size :]
            yield kind, channel, payload


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Give a frame."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + FRAME_END


if __name__ == "__main__":
    main()
