"""A thousand different messages that are no jobs, between jobs that are: each is parked once, and nothing spins.

They are made from a seed, of every kind that a publisher could send by mistake or on purpose, and go through a real
broker to the real listener, with an executor on the same queue that puts back what it cannot read.
"""

import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pika
import pytest

from broker_listener import broker as _raw_properties  # noqa: F401 - has pika keep properties as bytes here, too
from broker_listener import properties as p
from tests.lab.chaos import Ledger, install_light_executor
from tests.lab.processes import cpu_seconds
from tests.lab.site import Site

pytestmark = pytest.mark.library

MESSAGES = 1000
JOBS = 50
SEED = 20
MAX_BODY = 262_144


class Message(NamedTuple):
    kind: str
    body: bytes
    properties: bytes


def text(chance: random.Random, length: int) -> str:
    return "".join(chance.choices("abcdefghij 0123456789\\\"{}[]:,'\u20ac\u202e\x7f", k=length))


def job(user: object, chance: random.Random) -> dict[str, object]:
    return {"user": user, "job": f"{chance.random()}", "note": text(chance, 20)}


def dumped(value: object, chance: random.Random) -> bytes:
    return json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")


def random_bytes(chance: random.Random) -> bytes:
    return b"\xff" + chance.randbytes(chance.randrange(400))


def cut_off(chance: random.Random) -> bytes:
    whole = dumped(job("alice", chance), chance)
    return whole[: chance.randrange(1, len(whole) - 1)]


def too_large(chance: random.Random) -> bytes:
    return dumped({**job("alice", chance), "pad": "x" * MAX_BODY}, chance)


def ten_mebibytes(chance: random.Random) -> bytes:
    return dumped({**job("alice", chance), "pad": "x" * (10 << 20)}, chance)


def nested(chance: random.Random) -> bytes:
    depth, (opening, closing) = chance.randrange(2000, 100_000), chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inside = b"%d" % chance.randrange(10**9)
    return (opening * depth)[: MAX_BODY // 2] + inside + (closing * depth)[: chance.choice([0, MAX_BODY // 2 - 20])]


def wrong_type(chance: random.Random) -> bytes:
    number = chance.random()
    users = (None, True, number, [f"alice{number}"], {"name": number}, [], {})
    return dumped(job(chance.choice(users), chance), chance)


def no_object(chance: random.Random) -> bytes:
    number = chance.random()
    return dumped(chance.choice([number, f"user {number}", [job("alice", chance)], {"User": number}]), chance)


def key_twice(chance: random.Random) -> bytes:
    again = chance.choice([b'"user"', b'"\\u0075ser"', b'"us\\u0065r"'])
    return b'{"user":"alice","n":%d,%s:"bob"}' % (chance.randrange(10**12), again)


def not_utf_8(chance: random.Random) -> bytes:
    whole = dumped(job("alice", chance), chance)
    at = chance.randrange(1, len(whole))
    broken = whole[:at] + chance.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"]) + whole[at:]
    return chance.choice([broken, json.dumps(job("alice", chance)).encode("utf-16"), b"\xef\xbb\xbf" + whole])


def five_thousand_digits(chance: random.Random) -> bytes:
    digits = b"".join(b"%d" % chance.randrange(10) for _ in range(5000))
    return chance.choice([b'{"user":1%s}', b"1%s", b'{"user":[-1%s]}', b'{"user":1e%s}']) % digits


def bad_name(chance: random.Random) -> bytes:
    names = ("a;id", "../x", "$(id)", "-rf", "", "alice\n", "70001", "\u212aaren", "a\0b", "a\u202eb", "\ud800", "a b")
    long = text(chance, 50) * chance.randrange(1, 100)
    return dumped(job(chance.choice([*names, long, "|" + text(chance, 9)]), chance), chance)


BODIES: Mapping[str, tuple[Callable[[random.Random], bytes], frozenset[str]]] = {
    "random bytes": (random_bytes, frozenset({"bad_encoding"})),
    "cut off": (cut_off, frozenset({"not_json", "bad_encoding"})),
    "too large": (too_large, frozenset({"too_large"})),
    "10 MiB": (ten_mebibytes, frozenset({"too_large"})),
    "nested": (nested, frozenset({"too_deep", "not_json", "no_user"})),
    "wrong type": (wrong_type, frozenset({"bad_user"})),
    "no object": (no_object, frozenset({"no_user"})),
    "key twice": (key_twice, frozenset({"bad_user"})),
    "not UTF-8": (not_utf_8, frozenset({"bad_encoding", "not_json"})),
    "5,000 digits": (five_thousand_digits, frozenset({"bad_user", "no_user"})),
    "bad name": (bad_name, frozenset({"invalid_name", "bad_encoding"})),
}
RARE = {"too large": 10, "10 MiB": 2, "nested": 60}
"""How many of the kinds that are large."""


def value(chance: random.Random, depth: int = 0) -> bytes:
    """Give a field of a header table of any type (AMQP 0-9-1 section 4.2.5.5, with RabbitMQ's errata)."""
    fixed = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"f": 4, b"d": 8, b"D": 5}
    kinds = [*fixed, b"T", b"V", b"S", b"x", *([b"A", b"F"] if depth < 4 else [])]
    kind = chance.choice(kinds)
    if kind in fixed or kind in (b"T", b"V"):
        return kind + chance.randbytes({**fixed, b"T": 8, b"V": 0}[kind])
    if kind in (b"S", b"x"):
        content = chance.randbytes(chance.randrange(40))
    elif kind == b"A":
        content = b"".join(value(chance, depth + 1) for _ in range(chance.randrange(4)))
    else:
        content = b"".join(b"\2k%c" % (97 + n) + value(chance, depth + 1) for n in range(chance.randrange(4)))
    return kind + struct.pack(">I", len(content)) + content


def headers(chance: random.Random) -> list[tuple[bytes, bytes]]:
    names = (b"canHandle", b"x-peruser-reason", b"x-death", b"x-delivery-count", b"\xff\xfe", b"k", b"", b"CCC")
    return [(chance.choice(names), value(chance)) for _ in range(chance.randrange(6))]


def copied(chance: random.Random, name: bytes) -> list[tuple[bytes, bytes]]:
    key = chance.choice([b"new-work", b"knime-jobs.parked", b"nowhere", chance.randbytes(9)])
    entry = b"S" + struct.pack(">I", len(key)) + key
    return [(name, b"A" + struct.pack(">I", len(entry)) + entry)]


def deep(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = b"A" + struct.pack(">I", len(content)) + content
    return content


def raw(headers: list[tuple[bytes, bytes]] | None = None, **fields: bytes) -> bytes:
    return p.Properties(fields, headers).encode()


PROPERTIES: Mapping[str, Callable[[random.Random], bytes]] = {
    "none": lambda _: b"\0\0",
    "any table": lambda chance: raw(headers(chance)),
    "CC": lambda chance: raw(copied(chance, b"CC")),
    "BCC": lambda chance: raw(copied(chance, b"BCC")),
    "deep table": lambda chance: raw([(b"deep", deep(chance.randrange(1000, 2000)))]),
    "expires": lambda chance: raw(expiration=b"\5%d" % chance.randrange(60000, 99999)),
    "negative priority": lambda chance: raw(priority=bytes([chance.randrange(128, 256)])),
    "far future": lambda chance: raw(timestamp=b"\xff" + chance.randbytes(7)),
    "claims": lambda _: raw(content_type=b"\1\xff", content_encoding=b"\4gzip"),
    "somebody": lambda _: raw(user_id=b"\x0cknime-server", delivery_mode=b"\1"),
}


def made(chance: random.Random) -> list[Message]:
    """Give messages of which no two are equal."""
    kinds = [kind for kind, count in RARE.items() for _ in range(count)]
    common = [kind for kind in BODIES if kind not in RARE]
    kinds += [common[number % len(common)] for number in range(MESSAGES - len(kinds))]
    chance.shuffle(kinds)
    found: dict[bytes, Message] = {}
    for kind in kinds:
        while (body := BODIES[kind][0](chance)) in found:
            pass
        found[body] = Message(kind, body, chance.choice(list(PROPERTIES.values()))(chance))
    return list(found.values())


def taken_from_parked(site: Site, count: int) -> list[tuple[bytes, p.Properties]]:
    """Take the parked messages, and whatever else is parked within a moment."""
    taken: list[tuple[bytes, p.Properties]] = []
    channel = site.server.channel
    channel.basic_consume(
        "knime-jobs.parked", lambda _c, _m, had, body: taken.append((body, p.parse(had.raw))), auto_ack=True
    )
    deadline = time.monotonic() + 60
    while len(taken) < count and time.monotonic() < deadline:
        channel.connection.process_data_events(time_limit=0.1)
    channel.connection.process_data_events(time_limit=0.3)
    return taken


def reason_of(parked: p.Properties) -> str:
    written = dict(parked.headers or ())[b"x-peruser-reason"]
    return written[5:].decode("ascii")


def test_a_thousand_malformed_messages_are_parked_once_each_and_the_jobs_between_them_run(site: Site) -> None:
    chance = random.Random(SEED)
    messages = made(chance)
    assert len(messages) == MESSAGES
    install_light_executor(site.installation, put_back="nack")
    site.start()
    alice = site.accounts.user("alice").name
    for number, message in enumerate(messages):
        site.server.publish_raw(message.body, p.RawProperties(message.properties))
        if number % (MESSAGES // JOBS) == 0:
            body = json.dumps({"user": alice, "job": f"j{number}"}).encode()
            site.server.publish_raw(body, pika.BasicProperties(headers={"canHandle": False}, delivery_mode=2))
    parked = taken_from_parked(site, MESSAGES)
    assert Counter(body for body, _ in parked) == Counter(message.body for message in messages)
    kinds = {message.body: message.kind for message in messages}
    unexpected = {(kinds[body], reason_of(one)) for body, one in parked if reason_of(one) not in BODIES[kinds[body]][1]}
    assert unexpected == set()
    ledger = Ledger(site.installation.workspaces)
    deadline = time.monotonic() + 20
    while len(ran := ledger.update()) < JOBS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(ran.values()) == {1}
    assert len(ran) == JOBS
    used = cpu_seconds(site.listener.pid)
    time.sleep(1.0)  # what is measured is an interval
    assert cpu_seconds(site.listener.pid) - used < 0.1
    log = site.listener.log_text()
    assert log.count("event=broker_up") == 2
    assert len(log.splitlines()) < MESSAGES / 5
    assert log.isascii()
