"""``knime-peruser parked`` as a process, on what the real listener parks: every reason, both kinds of jobs queue."""

import json
import os
import pty
import random
import shutil
import signal
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker_listener import properties as p
from broker_listener.config import BrokerConfig
from broker_listener.jobs import NoJobReason
from broker_listener.operator.broker import Session, raw_properties, session
from broker_listener.operator.parking.queue import PARKED
from protocol.messages import RefusedReason
from tests.lab import operators_command
from tests.lab.accounts import LISTENER
from tests.lab.broker_node import JOBS_EXCHANGE, BrokerNode
from tests.lab.operators_command import Said, command, ended, run
from tests.lab.processes import wait_for
from tests.lab.site import Site

QUEUE = "knime-jobs.parked"
JOB = {"message_id": b"\4id-1", "delivery_mode": b"\2", "content_type": b"\x10application/json"}
NOT_HANDLED = (b"canHandle", b"t\0")


def raw_of(headers: list[tuple[bytes, bytes]] | None = None, **fields: bytes) -> bytes:
    return p.Properties({**JOB, **fields}, [NOT_HANDLED, *(headers or [])]).encode()


def text(value: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(value)) + value


ODD = [(b"double", b"d\x3f\xf8\0\0\0\0\0\0"), (b"byte", b"b\xff"), (b"short", b"s\x80\0"), (b"twice", text(b"1"))]
ODD += [(b"twice", text(b"2")), (b"deep", b"A\0\0\0\5F\0\0\0\0"), (b"when", b"T\0\0\1\x9a\xb5\0\0\0")]
FRAME = 131052
CC = [(b"CC", b"A\0\0\0\x0cS\0\0\0\7nowhere")]
ORIGINALS: Mapping[str, bytes] = {
    "not_json": b"\0\0",
    "no_user": raw_of(ODD),
    "bad_user": raw_of(expiration=b"\x06600000"),
    "too_large": raw_of(delivery_mode=b"\1"),
    "bad_encoding": raw_of(CC),
    "too_deep": raw_of(user_id=b"\x0cknime-server"),
    "bad_properties": raw_of([(b"big", text(bytes(FRAME - len(raw_of([(b"big", text(b""))])))))]),
    "invalid_name": raw_of(timestamp=b"\xff" * 8, reply_to=b"\3r-1", priority=b"\xff"),
    "start_failed": raw_of([*ODD, *CC], expiration=b"\x06600000", user_id=b"\x0cknime-server"),
}
HOSTILE = "a\x1b[31m\u202e;b"


def configure(site: Site) -> None:
    password = site.installation.etc / "broker-password"
    shutil.copyfile(site.installation.credentials("listener") / "broker-password", password)
    password.chmod(0o600)
    site.installation.write_helper_toml()
    site.installation.write_listener_toml()


def said(site: Site, *words: str, **more: Any) -> Said:
    return run(site.installation, "parked", *words, **more)


def listed(site: Site, *words: str) -> list[dict[str, Any]]:
    out = said(site, "list", "--json", *words).out
    return [json.loads(line) for line in out.splitlines()]


def every_reason(site: Site) -> dict[str, bytes]:
    """Have accounts and paths that lead to each reason; give a body for each."""
    accounts, held = site.accounts, site.installation
    may = [accounts.group("may")]
    users = {name: accounts.user(name, groups=may).name for name in ("fails", "homeless", "placeless")}
    expired = accounts.user("expired", groups=may, options=["--expiredate", "1990-01-01"]).name
    other = accounts.user("other").name
    Path(held.homes / users["homeless"]).symlink_to("/etc")
    Path(held.workspaces / users["placeless"]).symlink_to("/etc")
    program = held.knime_home / "knime"
    program.write_text("#!/bin/sh\nexit 1\n")
    named = {
        "account_expired": expired,
        "bad_properties": users["fails"],
        "denied_user": "root",
        "home_conflict": users["homeless"],
        "invalid_name": HOSTILE,
        "not_in_group": other,
        "start_failed": users["fails"],
        "uid_out_of_range": "daemon",
        "unknown_user": "kpr-unheard-of",
        "workspace_conflict": users["placeless"],
    }
    bodies = {reason: json.dumps({"user": user, "why": reason}).encode() for reason, user in named.items()}
    return bodies | {
        "not_json": b"{",
        "no_user": b"{}",
        "bad_user": b'{"user": 1}',
        "too_large": b'{"user": "alice", "pad": "%s"}' % (b"x" * 300_000),
        "bad_encoding": b'{"user": "\xff"}',
        "too_deep": b"[" * 100_000 + b"]" * 100_000,
    }


def start(site: Site) -> None:
    hand_over = {"unknown_grace": 0.5, "max_start_attempts": 1}
    configure(site)
    allowed = [f"{site.accounts.prefix}may"]
    site.start(listener={"hand_over": hand_over}, helper={"users": {"allow_groups": allowed}})
    site.listener.wait_for_log("event=broker_up connection=publish")  # then there is a parked queue


def taken(site: Site, queue: str) -> list[tuple[bytes, p.Properties]]:
    """Take everything off a queue."""
    found = []
    while True:
        method, properties, body = site.server.channel.basic_get(queue, auto_ack=True)
        if method is None:
            return found
        found.append((body, p.parse(properties.raw)))


def as_delivered(site: Site, raw: bytes) -> p.Properties:
    """Return what a bare consumer of a queue like the jobs' gets: quorum queues and RabbitMQ 4 write headers anew."""
    site.server.channel.queue_declare("scratch", durable=True, arguments={"x-queue-type": site.server.queue_type})
    site.server.channel.basic_publish("", "scratch", b"", p.RawProperties(raw))
    wait_for(lambda: site.server.depth("scratch") == 1, 60.0, "the message in the scratch queue")
    ((_, properties),) = taken(site, "scratch")
    return uncounted(properties)


def uncounted(properties: p.Properties) -> p.Properties:
    """Take off what a quorum queue sets."""
    headers = [entry for entry in properties.headers or () if entry[0] != b"x-delivery-count"]
    return p.Properties(properties.fields, headers or None)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_what_was_parked_for_any_reason_comes_back_byte_for_byte_but_for_the_account(site: Site, kind: str) -> None:
    if kind == "quorum":
        site.server.channel.queue_delete("knime-jobs")
        site.server.queue_type = kind
        site.server.declare()
    bodies = every_reason(site)
    reasons = {reason.value for reason in NoJobReason} | {reason.value for reason in RefusedReason}
    assert bodies.keys() == reasons | {"bad_properties", "start_failed"}
    start(site)
    for reason, body in bodies.items():
        site.server.publish_raw(body, raw_properties(ORIGINALS.get(reason, raw_of())))
    wait_for(lambda: site.server.depth(QUEUE) == len(bodies), 60.0, f"{len(bodies)} parked messages")
    site.listener.stop()
    rows = listed(site)
    assert Counter(row["reason"] for row in rows) == Counter(bodies.keys())
    assert {row["in_doubt"] for row in rows} == {False}
    whole = said(site, "retry", "--all", "--yes", "--json")
    assert (whole.status, whole.json["done"], whole.json["left_not_restorable"]) == (1, len(bodies) - 1, 1), whole
    came = taken(site, "knime-jobs")
    assert Counter(body for body, _ in came) == Counter(bodies.values()) - Counter([bodies["bad_properties"]])
    for body, properties in came:
        reason = next(name for name, one in bodies.items() if one == body)
        original = as_delivered(site, ORIGINALS.get(reason, raw_of()))
        expected = p.Properties({k: v for k, v in original.fields.items() if k != "user_id"}, original.headers)
        assert uncounted(properties).encode() == expected.encode(), reason
    assert [row["reason"] for row in listed(site)] == ["bad_properties"]
    assert said(site, "drop", "--reason", "bad_properties", "--yes").status == 0
    assert said(site, "list").status == 1
    assert site.server.depth("knime-jobs") == 0


def test_looking_filters_and_changes_nothing_and_a_strangers_text_does_nothing_to_the_terminal(site: Site) -> None:
    start(site)
    messages = {b"{": raw_of(), json.dumps({"user": HOSTILE}).encode(): raw_of([(b"\x1b[2J", text(b"\x9b1m\r\n"))])}
    messages |= {json.dumps({"user": "root", "n": number}).encode(): raw_of() for number in range(40)}
    for body, properties in messages.items():
        site.server.publish_raw(body, raw_properties(properties))
    wait_for(lambda: site.server.depth(QUEUE) == 42, 30.0, "42 parked messages")
    ids = [row["id"] for row in listed(site)]
    assert len(set(ids)) == 42
    assert f"job={ids[0]} " in site.listener.log_text()
    for words, count in (
        (["--reason", "not_json"], 1),
        (["--user", HOSTILE], 1),
        (["--user", "root", "--reason", "denied_user", "--limit", "3"], 3),
        (["--older-than", "1h"], 0),
        ([ids[5][:6], ids[6]], 2),
    ):
        looked = said(site, "list", *words)
        assert (looked.status, len(looked.out.splitlines())) == ((0, count + 1) if count else (1, 0)), words
    dry = said(site, "retry", "--dry-run", "--json", "--younger-than", "1h")
    assert (dry.status, dry.json["done"], dry.json["dry_run"]) == (0, 42, True)
    shown = said(site, "show", "--user", HOSTILE, "--body")
    for printed in (shown.out, said(site, "list", "--user", HOSTILE).out):
        assert printed.isascii()
        assert all(character.isprintable() or character == "\n" for character in printed)
        assert "a\\x1b[31m\\u202e;b" in printed
    assert "header       \\x1b[2J: " in shown.out
    assert '{"user"' not in said(site, "show", ids[5]).out
    whole = said(site, "show", ids[5], "--body", "--json").json
    assert (whole["body"], whole["reason"]) == ('{"user": "root", "n": 3}', "denied_user")
    assert whole["headers"][0] == {"name": "canHandle", "type": "boolean", "value": False}
    assert [row["id"] for row in listed(site)] == ids, "each is in its place"
    assert [body for body, _ in taken(site, QUEUE)] == list(messages)


def test_a_retry_that_is_parked_again_at_once_ends_and_meets_nothing_twice(site: Site) -> None:
    start(site)
    for number in range(30):
        site.server.publish_raw(b"{%d" % number, raw_properties(raw_of()))
    wait_for(lambda: site.server.depth(QUEUE) == 30, 30.0, "30 parked messages")
    again = said(site, "retry", "--reason", "not_json", "--yes", "--json")
    assert (again.status, again.json["done"]) == (0, 30)
    wait_for(lambda: site.server.depth(QUEUE) == 30, 30.0, "all of them parked again")
    assert Counter(body for body, _ in taken(site, QUEUE)) == Counter(b"{%d" % number for number in range(30))


@pytest.fixture(scope="module")
def quiet_site(broker: BrokerNode) -> Iterator[Site]:
    """Give a site for the tests that need no daemon: to make one takes seconds."""
    site = Site(broker)
    try:
        site.create()
        yield site
    finally:
        site.remove()


@pytest.fixture
def quiet(quiet_site: Site) -> Site:
    configure(quiet_site)
    quiet_site.server.channel.queue_purge("knime-jobs")
    for queue in (QUEUE, f"knime-peruser.{QUEUE}.marks"):  # those of another test would be of messages as these
        quiet_site.server.channel.queue_delete(queue)
    return quiet_site


@pytest.fixture
def listener(quiet: Site) -> Iterator[Session]:
    """Give a session with the listener's account; both queues are there, and empty."""
    site = quiet
    url = site.broker.listener.at(site.broker.port, site.vhost, with_password=False)
    with session(BrokerConfig(urls=(url,)), site.broker.listener.password) as connected:
        connected.declare_queue_as(QUEUE, PARKED)
        yield connected


def park(connected: Session, *bodies: bytes, reason: str = "start_failed") -> None:
    """Park as the listener does."""
    for body in bodies:
        facts = (reason, "why", "2026-11-25T01:02:03+00:00", JOBS_EXCHANGE, "new-work")
        connected.publish("", QUEUE, body, p.parked(raw_of(), *facts, connected.max_properties))


def test_who_is_asked_decides_and_where_nobody_can_be_asked_nothing_is_done(quiet: Site, listener: Session) -> None:
    park(listener, b'{"user": "alice"}', b'{"user": "bob"}')
    assert said(quiet, "retry", "--yes").status == 2, "all of them are meant only if that is said"
    assert said(quiet, "drop", "--all").status == 2
    assert said(quiet, "drop", "--older-than", "soon", "--yes").status == 2
    assert said(quiet, "drop", "no-id", "--yes").status == 2
    for answer, status, left in ((b"n\n", 130, 2), (b"\n", 130, 2), (b"y\n", 0, 1)):
        ours, theirs = pty.openpty()
        os.write(ours, answer)
        words = command(quiet.installation, "parked", "drop", "--user", "alice")
        asked = subprocess.run(words, stdin=theirs, capture_output=True, text=True, check=False, cwd="/")
        os.close(ours)
        os.close(theirs)
        assert asked.returncode == status, asked
        assert "Drop for good 1 message: start_failed 1; of alice 1?" in asked.stderr
        assert quiet.server.depth(QUEUE) == left


def test_exit_statuses_tell_who_may_not_what_is_not_there_and_what_cannot_be_reached(
    quiet: Site, listener: Session
) -> None:
    park(listener, b'{"user": "alice"}')
    for words in (["list"], ["show"], ["retry", "--all", "--yes"], ["drop", "--all", "--yes"]):
        refused = said(quiet, *words, user=LISTENER)
        assert (refused.status, "run this command as root" in refused.err) == (4, True), words
    quiet.installation.write_listener_toml(broker={"parked_queue": "knime-peruser.other"})
    absent = said(quiet, "list")
    assert (absent.status, "there is no queue knime-peruser.other" in absent.err) == (1, True)
    quiet.installation.write_listener_toml(broker={"urls": ["amqp://knime@127.0.0.1:1/%2F"]})
    assert said(quiet, "list").status == 3
    quiet.installation.write_listener_toml(broker={"parked_queue": 7})
    assert said(quiet, "list").status == 2
    quiet.installation.write_listener_toml()
    assert listener.lock(f"knime-peruser.{QUEUE}.lock")
    busy = said(quiet, "drop", "--all", "--yes")
    assert (busy.status, "another knime-peruser parked" in busy.err) == (1, True)
    assert quiet.server.depth(QUEUE) == 1


def test_an_interrupt_ends_a_retry_after_the_message_that_is_under_way(quiet: Site, listener: Session) -> None:
    bodies = [b'{"user": "alice", "n": %d}' % number for number in range(400)]
    park(listener, *bodies)
    process = operators_command.started(quiet.installation, "parked", "retry", "--all", "--yes", "--json")
    wait_for(lambda: quiet.server.depth("knime-jobs") > 0, 30.0, "the first job")
    process.send_signal(signal.SIGINT)
    told = ended(process)
    assert (told.status, told.json["stopped"], told.json["left_in_doubt"]) == (1, "it was interrupted", 0)
    assert 0 < told.json["done"] == quiet.server.depth("knime-jobs") < 400
    assert quiet.server.depth(QUEUE) == 400 - told.json["done"]


def test_a_connection_that_is_lost_ends_a_retry_that_says_how_far_it_came(quiet: Site, listener: Session) -> None:
    bodies = [b'{"user": "alice", "n": %d}' % number for number in range(400)]
    park(listener, *bodies)
    process = operators_command.started(quiet.installation, "parked", "retry", "--all", "--yes")
    wait_for(lambda: quiet.server.depth("knime-jobs") > 0, 30.0, "the first job")
    process.send_signal(signal.SIGSTOP)  # rabbitmqctl takes seconds, in which it would come to its end
    quiet.broker.ctl("close_all_user_connections", quiet.broker.listener.name, "a test")
    process.send_signal(signal.SIGCONT)
    told = ended(process)
    assert told.status == 3
    assert "had been retried; nothing is lost" in told.err
    jobs = [body for body, _ in taken(quiet, "knime-jobs")]
    assert len(jobs) == len(set(jobs)) < 400
    assert len({*jobs, *(body for body, _ in taken(quiet, QUEUE))}) == 400


def test_a_retry_that_is_killed_again_and_again_brings_every_job_once(quiet: Site, listener: Session) -> None:
    """As processes; after which frame they are killed is chance here, and all of them are tried elsewhere."""
    chance = random.Random(7)
    bodies = [b'{"user": "alice", "n": %d}' % number for number in range(90)]
    park(listener, *bodies)
    kills = 0
    while (at := quiet.server.depth("knime-jobs")) < 60:
        process = operators_command.started(quiet.installation, "parked", "retry", "--all", "--yes")
        target = at + chance.randrange(1, 20)
        wait_for(lambda target=target: quiet.server.depth("knime-jobs") >= target, 60.0, f"{target} jobs")  # type: ignore[misc]
        process.kill()
        kills += ended(process).status == -signal.SIGKILL
    assert kills >= 2
    left = said(quiet, "retry", "--all", "--yes", "--json").json
    assert Counter(body for body, _ in taken(quiet, "knime-jobs")) == Counter(bodies)
    assert left["left_in_doubt"] <= kills
    doubtful = listed(quiet, "--in-doubt")
    assert len(doubtful) == left["left_in_doubt"] == quiet.server.depth(QUEUE)
    if doubtful:
        assert "in doubt" in said(quiet, "list").out
        assert said(quiet, "drop", "--in-doubt", "--yes").status == 0
    assert quiet.server.depth(QUEUE) == 0


@pytest.mark.nightly
def test_a_hundred_thousand_parked_messages_are_not_held_in_memory(quiet: Site, listener: Session) -> None:
    assert listener
    peaks = []
    for count in (1000, 100_000):
        original = p.parked(raw_of(), "start_failed", "why", "2026-11-25T01:02:03+00:00", "", "", 131052)
        for number in range(quiet.server.depth(QUEUE), count):
            body = b'{"user": "alice", "n": %d, "pad": "%s"}' % (number, b"x" * 1000)
            quiet.server.channel.basic_publish("", QUEUE, body, raw_properties(original))
        wait_for(lambda count=count: quiet.server.depth(QUEUE) == count, 120.0, f"{count} messages")  # type: ignore[misc]
        words = command(quiet.installation, "parked", "retry", "--reason", "no-such-reason", "--yes", "--json")
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd="/")
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 1
        peaks.append(used.ru_maxrss)
    print(f"peak resident memory, KiB: {peaks}")
    assert peaks[1] - peaks[0] < 8 * 1024
