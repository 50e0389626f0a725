"""Messages that are larger than any job: nobody waits for them, and they fill nobody's memory."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pika
import pytest

from tests.bench.answering_helper import AnsweringHelper
from tests.bench.instruments import TO_SINK, Sink
from tests.lab.bare_consumer import BareConsumer
from tests.lab.chaos import listener_status
from tests.lab.processes import wait_for
from tests.lab.site import Site
from tests.lab.tls_front import tls_before
from tests.lab.toml import merged

pytestmark = pytest.mark.usefixtures("helper")

MIB = 2**20
MEGABYTES = 60
"""What the listener may take beside three times the largest body."""
PERSISTENT = pika.BasicProperties(delivery_mode=2)
PARKED = "knime-jobs.parked"


@pytest.fixture
def helper(site: Site) -> Iterator[AnsweringHelper]:
    """Have an executor for every user; hand-overs go to a queue of their own."""
    answering = AnsweringHelper(site)
    yield answering
    answering.close()


@pytest.fixture
def sink(site: Site) -> Sink:
    return Sink(site)


def started(site: Site, **broker: object) -> None:
    site.installation.write_listener_toml(**merged(TO_SINK, {"broker": broker, "hand_over": {"start_timeout": 1.0}}))
    site.listener.start()
    wait_for(lambda: site.server.consumers() == 1, 30, "the listener's consumer")  # it proves first that it can publish


def peak_megabytes(site: Site) -> float:
    lines = Path(f"/proc/{site.listener.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def job(site: Site, user: str) -> bytes:
    body = json.dumps({"user": user, "job": f"{user}-{time.monotonic()}"}).encode()
    site.server.publish_raw(body, PERSISTENT)
    return body


def large(number: int, size: int) -> bytes:
    """Give a body in which no two frames are alike, if the frames are not in multiples of 1 KiB."""
    return (b"%04d" % number + os.urandom(1020)) * (size // 1024) + bytes(size % 1024)


def fill(site: Site, count: int, size: int) -> list[str]:
    """Publish so many bodies; return their checksums."""
    sums = []
    for number in range(count):
        body = large(number, size)
        site.server.publish_raw(body, PERSISTENT)
        sums.append(sha256(body).hexdigest())
    return sums


def parked(site: Site, count: int, seconds: float = 60.0) -> list[str]:
    return [sha256(message.body).hexdigest() for message in site.server.parked(count, seconds)]


def behind_bare_consumer(site: Site, count: int, size: int) -> float:
    """Give the seconds until a bare consumer sees the job behind so many bodies; all stay in the queue."""
    bare = BareConsumer(site.broker.server.at(site.broker.port, site.vhost))
    try:
        bare.start()
        bare.pause()
        fill(site, count, size)
        body = job(site, "bob")
        began = time.monotonic()
        bare.go_on()
        assert bare.seen.poll(120.0)
        assert bare.seen.recv() == body
        return time.monotonic() - began
    finally:
        bare.stop()
        wait_for(lambda: site.server.depth() == count + 1, 60, "what the bare consumer had is in the queue again")


def behind_listener(site: Site, count: int, size: int, sink: Sink) -> float:
    """Give the seconds until the listener has handed over the job behind so many bodies."""
    before = sink.count()
    os.kill(site.listener.pid, signal.SIGSTOP)
    fill(site, count, size)
    job(site, "bob")
    began = time.monotonic()
    os.kill(site.listener.pid, signal.SIGCONT)
    sink.wait(before + 1, 120.0)
    return time.monotonic() - began


def nobody_waits(site: Site, sink: Sink, count: int, size: int, fit: int) -> None:
    """See that behind so many bodies, of which ``fit`` have room in the parked queue, nobody waits for long."""
    bare = behind_bare_consumer(site, count, size)
    site.server.channel.queue_purge("knime-jobs")
    started(site, max_body=MIB)
    job(site, "alice")
    sink.wait(1)
    took = behind_listener(site, count, size, sink)
    wait_for(lambda: site.server.depth(PARKED) == fit, 120, "those parked for which there is room")
    print(
        f"bodies={count} of {size // MIB} MiB bare={bare:.2f}s listener={took:.2f}s peak={peak_megabytes(site):.0f}MB"
    )
    assert peak_megabytes(site) < MEGABYTES + 3 * size / 1e6
    assert took < bare + 0.5 + bare / 2, "half of the bare consumer's time is what two runs may differ by"


def test_nobody_waits_for_large_bodies(site: Site, sink: Sink) -> None:
    """A small sibling of the nightly test."""
    nobody_waits(site, sink, 8, 16 * MIB, 8)


@pytest.mark.nightly
@pytest.mark.parametrize("count", [4, 14])
def test_nobody_waits_for_the_largest_bodies(site: Site, sink: Sink, count: int) -> None:
    """Eight of fourteen have room in the parked queue's 1 GiB."""
    nobody_waits(site, sink, count, 120 * MIB, min(count, 8))


def test_large_bodies_are_parked_bit_for_bit(site: Site, sink: Sink) -> None:
    """Each once, with what else was published, whatever its size is; jobs between them are handed over."""
    started(site, max_body=1024)
    sums = []
    for number, size in enumerate((1025, 131_064, 131_065, 262_128, 3 * MIB + 7, 5 * MIB, 1025, 2000, 9 * MIB)):
        body = large(number, size)
        sums.append(sha256(body).hexdigest())
        site.server.publish_raw(body, pika.BasicProperties(message_id=f"m{number}", expiration="600000"))
        job(site, "alice")
    messages = site.server.parked(9, 60.0)
    assert sorted(sha256(message.body).hexdigest() for message in messages) == sorted(sums)
    assert {message.headers["x-peruser-reason"] for message in messages} == {"too_large"}
    assert {message.headers["x-peruser-original-expiration"] for message in messages} == {"600000"}
    sink.wait(9)
    wait_for(lambda: listener_status(site)["held"]["jobs"] == 0, 10, "nothing held")
    assert listener_status(site)["held"]["bytes"] == 0
    assert site.server.depth() == 0
    assert "reconnect" not in site.listener.log_text()


def test_large_bodies_are_parked_over_tls(site: Site, sink: Sink, tmp_path: Path) -> None:
    """Both directions are cut into records there."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(0o755)
    with tls_before(site.broker.port, tmp_path) as (port, authority):
        url = site.broker.listener.at(port, site.vhost, with_password=False).replace("amqp:", "amqps:")
        certificate = site.installation.root / "ca.pem"
        certificate.write_bytes(authority.read_bytes())
        started(site, urls=[url], ca_file=str(certificate))
        sums = fill(site, 3, 6 * MIB)
        job(site, "alice")
        sink.wait(1)
        assert sorted(parked(site, 3)) == sorted(sums)
        site.listener.stop()


def test_body_over_max_parkable_stays_without_its_body(site: Site, sink: Sink) -> None:
    """It is an alarm, others go on, and after ``max_hold`` it is in the queue."""
    started(site, max_body=1024, max_parkable=2 * MIB, max_hold=5.0)
    sums = fill(site, 4, 40 * MIB)
    job(site, "alice")
    sink.wait(1)
    wait_for(lambda: listener_status(site)["held"]["not_parked"] == 4, 20, "four that cannot be parked")
    assert listener_status(site)["held"]["bytes"] < 1024
    site.listener.wait_for_log("event=not_parkable")
    assert peak_megabytes(site) < MEGABYTES
    wait_for(lambda: listener_status(site)["totals"]["received"] >= 9, 30, "they came again after max_hold")
    assert site.server.depth(PARKED) == 0
    site.listener.stop()
    wait_for(lambda: site.server.depth() == 4, 20, "all in the queue")
    assert len(sums) == 4


def test_full_parked_queue_costs_no_memory_and_no_message(site: Site, sink: Sink) -> None:
    """What it refuses waits without its body; when there is room again, all of it is parked."""
    site.server.channel.queue_declare(
        PARKED, durable=True, arguments={"x-max-length-bytes": 10 * MIB, "x-overflow": "reject-publish"}
    )
    started(site, max_hold=5.0, max_held_bytes=4 * MIB)
    sums = fill(site, 8, 8 * MIB)
    for _ in range(60):
        body = b"junk" + os.urandom(200_000)
        sums.append(sha256(body).hexdigest())
        site.server.publish_raw(body, PERSISTENT)
    job(site, "alice")
    sink.wait(1)
    wait_for(lambda: listener_status(site)["held"]["not_parked"] > 3, 20, "some that could not be parked")
    assert peak_megabytes(site) < MEGABYTES + 3 * 8
    found: list[str] = []
    deadline = time.monotonic() + 120
    while len(found) < len(sums) and time.monotonic() < deadline:
        found += [sha256(message.body).hexdigest() for message in site.server._taken(PARKED)]
    assert sorted(found) == sorted(sums)


def test_body_over_the_broker_s_limit_ends_no_hand_over(site: Site, sink: Sink) -> None:
    """The broker closes the channel (406) of that message alone."""
    started(site)
    limit = site.broker.ctl("eval", "application:get_env(rabbit, max_message_size).")
    set_limit = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    os.kill(site.listener.pid, signal.SIGSTOP)
    fill(site, 1, 6 * MIB)
    try:
        site.broker.ctl("eval", set_limit.format(4 * MIB))
        os.kill(site.listener.pid, signal.SIGCONT)
        job(site, "alice")
        sink.wait(1)
        wait_for(lambda: listener_status(site)["held"]["not_parked"] == 1, 20, "one that cannot be parked")
        fits = fill(site, 1, 3 * MIB)
        assert parked(site, 1) == fits
        log = site.listener.log_text()
        assert "event=large_message_not_published" in log
        assert "406" in log
        assert "event=broker_down" not in log
    finally:
        site.broker.ctl("eval", set_limit.format(int("".join(filter(str.isdigit, limit)))))
    site.listener.stop()
    wait_for(lambda: site.server.depth() == 1, 20, "it is in the queue")


class CuttingProxy:
    """Stands before the broker and cuts each connection that has brought ``most`` bytes from it, so often."""

    def __init__(self, port: int, most: int, cuts: int) -> None:
        self._port, self._most, self.left = port, most, cuts
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for one in (self._socket, *self._ends):
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                broker = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [client, broker]
                threading.Thread(target=self._pump, args=(client, broker, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(broker, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:  # noqa: FBT001
        passed = 0
        with suppress(OSError):
            while block := source.recv(65536):
                passed += len(block)
                if counted and passed > self._most and self.left:
                    self.left -= 1
                    break
                target.sendall(block)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def test_body_whose_connection_is_lost_half_way_is_parked_once(site: Site, sink: Sink) -> None:
    """Its first half is forgotten with its place, five times."""
    proxy = CuttingProxy(site.broker.port, 8 * MIB, cuts=5)
    url = site.broker.listener.at(proxy.port, site.vhost, with_password=False)
    started(site, urls=[url])
    sums = fill(site, 1, 16 * MIB)
    wait_for(lambda: proxy.left == 0, 60, "five cuts")
    assert parked(site, 1) == sums
    sums = fill(site, 2, 3 * MIB)
    assert sorted(parked(site, 2)) == sorted(sums)
    job(site, "alice")
    sink.wait(1)
    wait_for(lambda: listener_status(site)["held"]["jobs"] == 0, 10, "nothing held")
    assert site.server.depth(PARKED) == 0
    site.listener.stop()
    proxy.close()


def test_publisher_whose_connection_is_lost_half_way_loses_nothing(site: Site, sink: Sink) -> None:
    """The broker forgets the half that it has; the message goes back and is parked whole."""
    started(site, max_hold=5.0)
    sums = fill(site, 3, 24 * MIB)
    for _ in range(3):
        site.broker.ctl("close_all_user_connections", site.broker.listener.name, "test")
        time.sleep(0.2)
    found: set[str] = set()
    deadline = time.monotonic() + 60
    while found != set(sums) and time.monotonic() < deadline:
        found |= {sha256(message.body).hexdigest() for message in site.server._taken(PARKED)}
    assert found == set(sums)
    job(site, "alice")
    sink.wait(1)


def test_memory_alarm_half_way_stops_parking_and_not_consuming(site: Site, sink: Sink) -> None:
    """Bodies that arrive meanwhile are thrown away; when it is over, all are parked."""
    started(site)
    os.kill(site.listener.pid, signal.SIGSTOP)
    sums = fill(site, 3, 30 * MIB)
    site.broker.ctl("set_vm_memory_high_watermark", "0")
    try:
        os.kill(site.listener.pid, signal.SIGCONT)
        wait_for(lambda: listener_status(site)["connections"]["publish"]["state"] == "blocked", 20, "blocked")
        wait_for(lambda: listener_status(site)["totals"]["received"] >= 3, 20, "all read")
        assert peak_megabytes(site) < MEGABYTES + 3 * 30
        assert site.server.depth(PARKED) == 0
    finally:
        site.broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert sorted(parked(site, 3)) == sorted(sums)
    job(site, "alice")
    sink.wait(1)


def test_killed_listener_leaves_whole_messages_alone(site: Site, sink: Sink) -> None:
    """Each is parked once at least, and none in part."""
    started(site)
    sums = fill(site, 4, 16 * MIB)
    for _ in range(4):
        time.sleep(0.15)
        site.listener.kill()
        site.listener.start()
    found: list[str] = []
    deadline = time.monotonic() + 60
    while set(found) != set(sums) and time.monotonic() < deadline:
        found += [sha256(message.body).hexdigest() for message in site.server._taken(PARKED)]
    assert set(found) == set(sums)
    job(site, "alice")
    sink.wait(1)
