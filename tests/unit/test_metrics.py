"""What Prometheus is told, and that whoever asks can neither learn a user nor keep the listener busy."""

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker_listener import exporter as exporter_module
from broker_listener import local_clients
from broker_listener.config import BrokerConfig, ClusterConfig, HandOverConfig, ListenerConfig, parse_listen
from broker_listener.confirms import Outcome
from broker_listener.consuming import Delivery
from broker_listener.exporter import Exporter
from broker_listener.hand_over import Machine
from broker_listener.local_clients import MAX_CLIENTS
from broker_listener.service import Service
from broker_listener.snapshot import Snapshot
from protocol import messages as m

pytestmark = pytest.mark.library

CHECKOUT = Path(__file__).parents[2]
GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serving(
    use: Callable[[int, Service], Awaitable[None]], machine: Machine | None = None, *, cluster: bool = False
) -> None:
    """Serve what a service without a broker knows, or what the machine does, while ``use(port, service)`` runs."""

    async def check() -> None:
        service = Service(ListenerConfig(cluster=ClusterConfig(enabled=cluster, host="a")))

        def look() -> Snapshot:
            seen = service._look()
            return seen if machine is None else seen._replace(settlement=machine.settlement, users=machine.users)

        exporter, port = Exporter(look), free_port()
        exporter.start(f"127.0.0.1:{port}")
        try:
            async with asyncio.timeout(20):
                await use(port, service)
        finally:
            exporter.close()
            await service._stop()

    asyncio.run(check())


async def ask(port: int, request: bytes = GET) -> tuple[str, str]:
    """Give status and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if not request.endswith(b"\r\n\r\n"):
        writer.write_eof()
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    return head.split(b"\r\n")[0].decode().partition(" ")[2], body.decode()


def values_of(page: str) -> dict[str, float]:
    return {
        sample.name + "".join(f"{{{label}}}" for label in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def busy_machine() -> Machine:
    """Give one with jobs that were handed over, came back, are held and were parked, and a message that is none."""
    machine, now = Machine(BrokerConfig(), HandOverConfig()), time.monotonic()
    machine.publishable(on=True)

    def delivery(tag: int) -> Delivery:
        return Delivery(1, tag, b"{}", b"\0\0", redelivered=False, exchange="", routing_key="")

    machine.job("alice-secret", delivery(1), b"1", now)
    machine.answered("alice-secret", m.Running(m.RequestId("1"), "alice-secret", 1000, 77, 0.0, None), 1, now)
    machine.take_actions(now)
    machine.published(1, Outcome.CONFIRMED, now + 0.002)
    machine.job("alice-secret", delivery(2), b"1", now + 0.003)
    machine.job("bob-secret", delivery(3), b"3", now)
    machine.job("eve-secret", delivery(4), b"4", now)
    machine.answered("eve-secret", m.Refused(m.RequestId("2"), m.RefusedReason.DENIED_USER), 2, now)
    machine.take_actions(now)
    machine.published(2, Outcome.CONFIRMED, now)
    machine.no_job(delivery(5), "not_json", "", now)
    machine.take_actions(now)
    return machine


def test_the_page_counts_what_happened() -> None:
    async def use(port: int, _: Service) -> None:
        status, page = await ask(port)
        assert status == "200 OK"
        told = values_of(page)
        expected = {
            "jobs_received_total": 5,
            "jobs_returned_total": 1,
            "jobs_handed_over_total": 1,
            "jobs_parked_total{denied_user}": 1,
            "jobs_held": 3,
            "held_bytes": 12,
            "jobs_not_parked": 0,
            "jobs_under_way": 1,
            "hand_over_seconds_count": 1,
            "hand_over_seconds_bucket{0.001}": 0,
            "hand_over_seconds_bucket{0.0025}": 1,
            "hand_over_seconds_bucket{+Inf}": 1,
            "users{probing}": 1,
            "users{starting}": 1,
            "users{failed}": 1,
            "users{ready}": 0,
            "executors": 1,
            "broker_up{consume}": 0,
            "broker_blocked": 0,
            "consuming": 0,
            "helper_up": 0,
            "host_fault{prepare_failed}": 0,
            "host_fault{died_before_ready}": 0,
            "users_failing": 0,
            "helper_answers_total{running}": 1,
            "helper_answers_total{denied_user}": 1,
        }
        assert {name: told[f"knime_peruser_{name}"] for name in expected} == expected

    serving(use, busy_machine())


def test_no_metric_names_a_user() -> None:
    async def use(port: int, _: Service) -> None:
        _, page = await ask(port)
        assert "secret" not in page

    serving(use, busy_machine())


def test_the_readme_lists_every_metric_and_no_other() -> None:
    async def use(port: int, service: Service) -> None:
        service.on_listed({}, draining=False, free=7, asked=0)
        _, page = await ask(port)
        exported = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
        readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
        assert set(re.findall(r"^\| `(knime_peruser_\w+)", readme, re.MULTILINE)) == exported

    serving(use, cluster=True)


def test_of_several_hosts_it_is_told_how_they_are_and_of_one_nothing() -> None:
    async def several(port: int, service: Service) -> None:
        service.on_listed({}, draining=False, free=7, asked=0)
        told = values_of((await ask(port))[1])
        expected = {"hosts{up}": 1, "hosts{draining}": 0, "hosts_free": 7, "broker_up{hosts}": 0}
        assert {name: told[f"knime_peruser_{name}"] for name in expected} == expected

    async def one(port: int, _: Service) -> None:
        assert "knime_peruser_hosts" not in (await ask(port))[1]

    serving(several, cluster=True)
    serving(one)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET /metrics?name[]=x HTTP/1.1\r\n\r\n", "200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", "400 Bad Request"),
        (b"\0\xff\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n", "400 Bad Request"),
        (b"", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 9000, "400 Bad Request"),
    ],
)
def test_whatever_is_no_request_for_the_page_is_told_so(request_: bytes, expected: str) -> None:
    async def use(port: int, _: Service) -> None:
        try:
            status, _ = await ask(port, request_)
        except ConnectionResetError:  # what was sent beyond the bound is not read
            assert len(request_) > exporter_module.MAX_REQUEST
        else:
            assert status == expected

    serving(use)


def test_the_page_is_made_once_for_all_who_ask_within_a_second() -> None:
    looks = 0

    async def check() -> None:
        service = Service(ListenerConfig())

        def look() -> Snapshot:
            nonlocal looks
            looks += 1
            return service._look()

        exporter, port = Exporter(look), free_port()
        exporter._made_at = time.monotonic() + 60  # as if it had just been made
        exporter.start(f"127.0.0.1:{port}")
        for _ in range(5):
            assert (await ask(port))[0] == "200 OK"
        assert looks == 0
        exporter._made_at = 0.0
        await ask(port)
        assert looks == 1
        exporter.close()
        await service._stop()

    asyncio.run(check())


def test_those_who_connect_and_say_nothing_keep_nobody_out_for_longer_than_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_clients, "SECONDS", 0.3)

    async def use(port: int, _: Service) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CLIENTS)]
        assert (await ask(port))[0] == "200 OK"
        for reader, writer in idle:
            assert await reader.read(-1) == b""
            writer.close()

    serving(use)


def test_a_port_in_use_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def use(port: int, service: Service) -> None:
        second = Exporter(service._look)
        second.start(f"127.0.0.1:{port}")
        second.close()
        assert "event=metrics_not_served" in caplog.text
        assert (await ask(port))[0] == "200 OK"

    serving(use)


def test_without_prometheus_client_whoever_asks_is_told_so_and_a_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent() -> None:
        raise ImportError("No module named 'prometheus_client'")

    monkeypatch.setattr(exporter_module, "_import", absent)

    async def use(port: int, _: Service) -> None:
        assert (await ask(port))[0] == "503 Service Unavailable"
        assert "event=metrics_not_served reason=\"No module named 'prometheus_client'\"" in caplog.text

    serving(use)


def test_until_somebody_asks_prometheus_client_is_not_even_loaded() -> None:
    program = (
        "import asyncio, sys\n"
        "from broker_listener.config import ListenerConfig\n"
        "from broker_listener.service import Service\n"
        "async def check():\n"
        "    await Service(ListenerConfig())._stop()\n"
        "asyncio.run(check())\n"
        "sys.exit('prometheus_client' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("listen", "expected"),
    [("127.0.0.1:9469", ("127.0.0.1", 9469)), ("[::1]:1", ("::1", 1)), ("0.0.0.0:80", ("0.0.0.0", 80))],
)
def test_an_address_and_a_port_are_taken_apart(listen: str, expected: tuple[str, int]) -> None:
    address, port = parse_listen(listen)
    assert (str(address), port) == expected
