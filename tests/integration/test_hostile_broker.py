"""A broker that was taken over, against the real listener: whatever it announces, memory stays and the loop turns."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.chaos import listener_status
from tests.lab.hostile_broker import HostileBroker, Victim, body, raw_frame
from tests.lab.processes import wait_for
from tests.lab.site import Site

FRAME = bytes(131064)
MEGABYTES = 60


def announces_a_terabyte(victim: Victim) -> None:
    """Send a gigabyte of it, if it is read."""
    victim.begin(2**40)
    for _ in range(8192):
        victim.send(body(FRAME))


def announces_a_frame_of_four_gigabytes(victim: Victim) -> None:
    """Send a gigabyte of that one frame, if it is read."""
    victim.send(raw_frame(3, b"")[:3] + (2**32 - 1).to_bytes(4, "big"))
    for _ in range(8192):
        victim.send(FRAME)


def sends_more_than_it_announced(victim: Victim) -> None:
    """Go on when the message is complete."""
    victim.begin(10)
    victim.body(bytes(11))
    victim.send(body(FRAME) * 10)


def begins_a_message_within_another(victim: Victim) -> None:
    """Never complete the first."""
    victim.begin(1000, tag=1)
    victim.begin(1000, tag=2)


def sends_a_body_without_a_message(victim: Victim) -> None:
    """Send a frame that nothing announced."""
    victim.send(body(b"x"))


ENDS = (
    announces_a_terabyte,
    announces_a_frame_of_four_gigabytes,
    sends_more_than_it_announced,
    begins_a_message_within_another,
    sends_a_body_without_a_message,
)


@pytest.fixture
def attacked(site: Site) -> Iterator[Callable[[Callable[[Victim], None]], HostileBroker]]:
    """Start the listener with a hostile broker as its only one."""
    brokers = []

    def start(attack: Callable[[Victim], None]) -> HostileBroker:
        broker = HostileBroker(attack)
        brokers.append(broker)
        site.installation.write_listener_toml(broker={"urls": [f"amqp://knime@127.0.0.1:{broker.port}/%2F"]})
        site.listener.start()
        return broker

    yield start
    for broker in brokers:
        broker.close()


def peak_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@pytest.mark.parametrize("attack", ENDS, ids=lambda attack: attack.__name__)
def test_broken_protocol_ends_the_connection(
    site: Site, attacked: Callable[..., HostileBroker], attack: Callable[[Victim], None]
) -> None:
    """It is made again after a pause, and each time nothing of what was sent stays."""
    broker = attacked(attack)
    wait_for(lambda: broker.ended >= 3, 60, "three connections ended by the listener")
    assert peak_megabytes(site.listener.pid) < MEGABYTES
    assert "event=broker_down connection=consume" in site.listener.log_text()
    assert "Broken" in site.listener.log_text()
    assert "Traceback" not in site.listener.log_text()


def test_body_in_frames_of_a_byte_costs_its_size_and_no_more(
    site: Site, attacked: Callable[..., HostileBroker]
) -> None:
    """Empty frames among them cost nothing. The next message, which ends nothing, is handled."""
    size = 270_000

    def attack(victim: Victim) -> None:
        victim.begin(size)
        for _ in range(size // 1000):
            victim.send(body(b"") * 100 + body(b"x") * 1000)
        victim.begin(4, tag=2)
        victim.body(b"junk")

    attacked(attack)
    wait_for(lambda: listener_status(site)["totals"]["received"] == 2, 120, "both messages")
    assert peak_megabytes(site.listener.pid) < MEGABYTES


def test_flood_of_large_bodies_is_read_and_thrown_away(site: Site, attacked: Callable[..., HostileBroker]) -> None:
    """A gigabyte of messages, of which none can be parked: this broker confirms nothing."""

    def attack(victim: Victim) -> None:
        for tag in range(1, 65):
            victim.begin(16 * 2**20, tag)
            for _ in range(16 * 2**20 // 2**16):
                victim.send(body(bytes(2**16)))

    attacked(attack)
    wait_for(lambda: listener_status(site)["totals"]["received"] == 64, 120, "all of them")
    assert listener_status(site)["held"]["jobs"] == 64
    assert peak_megabytes(site.listener.pid) < MEGABYTES + 3 * 16
