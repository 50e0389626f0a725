"""What ``observe`` makes of messages: names, types and counts, and never a value; and the verdict on them."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener.config import BrokerConfig, HandOverConfig, ListenerConfig
from broker_listener.operator.management import Unavailable, named
from broker_listener.operator.observe import _print
from broker_listener.operator.observing.broker import _pattern, facts
from broker_listener.operator.observing.traffic import MAX_NAMES, OTHERS, Traffic
from broker_listener.operator.observing.verdict import Seen, mode, remarks
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.properties import Properties

pytestmark = pytest.mark.library

DEFAULTS = ListenerConfig()
VALUE = "VALUE-THAT-IS-NOBODYS-BUSINESS"


def raw(headers: Mapping[str, bytes] | None = None, **fields: bytes) -> bytes:
    entries = None if headers is None else [(name.encode(), value) for name, value in headers.items()]
    return Properties(fields, entries).encode()


def text(value: str) -> bytes:
    return b"S" + len(value).to_bytes(4, "big") + value.encode()


FALSE, TRUE = {"canHandle": b"t\0"}, {"canHandle": b"t\1"}
JOB = json.dumps({"user": VALUE, "id": VALUE, "n": 1, "deep": {VALUE: VALUE}, "none": None, "on": True}).encode()


def test_names_types_and_counts_are_told_and_no_value() -> None:
    traffic = Traffic()
    short = bytes([len(VALUE)]) + VALUE.encode()
    for _ in range(2):
        traffic.take(JOB, raw({**FALSE, "x": text(VALUE)}, reply_to=short, delivery_mode=b"\2"), 0.0)
    facts = traffic.facts()
    assert facts["body_keys"] == {
        "user: string": 2, "id: string": 2, "n: number": 2, "deep: object": 2, "none: null": 2, "on: boolean": 2,
    }  # fmt: skip
    assert facts["headers"] == {"canHandle: boolean": 2, "x: text": 2}
    assert facts["properties"] == {"reply_to": 2, "delivery_mode": 2, "headers": 2}
    assert facts["delivery_modes"] == {"persistent": 2}
    assert VALUE not in json.dumps(facts)


def test_a_message_that_is_seen_again_was_put_back_and_its_time_is_a_hop() -> None:
    traffic = Traffic()
    traffic.take(JOB, raw(TRUE), 1.0)
    traffic.take(JOB + b" ", raw(TRUE), 1.1)
    traffic.take(JOB, raw(FALSE), 1.25)
    assert traffic.facts()["put_back"] == {"canHandle true -> false": 1}
    assert traffic.facts()["hop_seconds"] == {"median": 0.25, "p95": 0.25, "longest": 0.25}


def test_a_publisher_who_invents_names_fills_nothing() -> None:
    traffic = Traffic()
    for number in range(3 * MAX_NAMES):
        traffic.take(json.dumps({f"k{number}": 1}).encode(), raw({f"h{number}": b"V"}), 0.0)
    facts = traffic.facts()
    assert len(facts["body_keys"]) == len(facts["headers"]) == MAX_NAMES + 1
    assert facts["body_keys"][OTHERS] == 2 * MAX_NAMES


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_bytes_arrive_are_counted(body: bytes, properties: bytes) -> None:
    traffic = Traffic()
    traffic.take(body, properties, 0.0)
    assert traffic.facts()["messages"] == 1
    json.dumps(traffic.facts())


def seen(*, redelivered: int | None = None, queue: Mapping[str, Any] | None = None, **facts: Any) -> Seen:
    return Seen({**Traffic().facts(), "messages": 10, **facts}, queue, redelivered)


@pytest.mark.parametrize(
    ("facts", "fits", "why"),
    [
        (seen(messages=0), None, "no job was published"),
        (seen(put_back={"canHandle true -> false": 5}), "republish", "publishing it anew"),
        (seen(put_back={"canHandle true -> false": 5}, redelivered=0), "republish", "publishing it anew"),
        (seen(redelivered=7), "requeue", "7 redeliveries"),
        (seen(put_back={"canHandle true -> true": 2}, redelivered=9), "republish", "both ways"),
        (seen(), None, "--management"),
        (seen(redelivered=0), None, "no job came back"),
    ],
)
def test_the_verdict_follows_from_how_jobs_came_back(facts: Seen, fits: str | None, why: str) -> None:
    found, said = mode(facts)
    assert found == fits
    assert why in said


@pytest.mark.parametrize(
    ("facts", "remark"),
    [
        (seen(largest_body=300_000), "broker.max_body = 600000"),
        (seen(hop_seconds={"median": 0.4, "p95": 0.5, "longest": 1.0}), "hand_over.retry_initial = 0.40"),
        (seen(redelivered=3, properties={"expiration": 1}), "expiration"),
        (seen(properties={"user_id": 1}), "user_id"),
        (seen(headers={"CC: array": 1}), "CC or BCC"),
        (seen(can_handle={"absent": 4}), "4 messages had no canHandle"),
        (seen(can_handle={"of another type": 4}), "no boolean"),
        (seen(delivery_modes={"transient": 1}), "transient"),
        (seen(bodies={"not JSON": 2}), "2 bodies are not JSON"),
        (seen(bodies={"JSON object": 5}, body_keys={"user: string": 3}), "2 bodies have no text under the key user"),
        (seen(redelivered=3, queue={"type": "quorum", "durable": True}), "delivery-limit"),
        (seen(queue={"type": "classic", "durable": False}), "not durable"),
        (seen(redelivered=3), '"requeue" fits'),
    ],
)
def test_what_the_settings_must_know_is_remarked(facts: Seen, remark: str) -> None:
    assert any(remark in said for said in remarks(facts, DEFAULTS))


def test_what_fits_already_is_not_remarked() -> None:
    wide = ListenerConfig(broker=BrokerConfig(max_body=2**20), hand_over=HandOverConfig(mode="requeue"))
    fine = seen(redelivered=3, largest_body=300_000, queue={"type": "classic", "durable": True})
    assert list(remarks(fine, wide)) == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("knime-server2executorknime-jobs", "knime-server2executorknime-jobs"),
        ("reply-3F2b8c9e-1234-4abc-9def-0123456789ab.x", "reply-*.x"),
        ("amq.gen-Xa_b-9", "amq.gen-*"),
        ("gateway-17", "gateway-*"),
        ("job.0a1b2c3d4e", "job.*"),
        ("executor-20261125", "executor-*"),
        ("facade-decade", "facade-decade"),
        (None, "None"),
    ],
)
def test_what_was_made_up_for_a_name_is_not_told_so_that_many_of_a_kind_are_one_line(name: object, shown: str) -> None:
    assert _pattern(name) == shown


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:15672", "http://monitor:secret@broker", "ftp://monitor@broker", "http://broker", "http://m@b:port"],
)
def test_a_management_url_of_another_form_or_with_a_password_in_it_is_refused_and_not_shown(
    tmp_path: Path, url: str
) -> None:
    (tmp_path / "password").write_text("p")
    with pytest.raises(Stopped) as stopped:
        named(url, tmp_path / "password", "/", "")
    assert stopped.value.outcome is Outcome.USAGE
    assert "secret" not in str(stopped.value)


def test_the_management_password_is_read_from_a_file_and_never_shown(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        named("http://m@b", tmp_path / "absent", "/", "")
    assert "--management-password-file" in str(stopped.value)
    (tmp_path / "password").write_text("p:w\n")
    interface = named("https://m%40x@[::1]", tmp_path / "password", "/", "")
    assert (interface.base, interface.credentials) == ("https://[::1]:15671", "bUB4OnA6dw==")
    assert "bUB4OnA6dw" not in repr(interface)


@contextmanager
def served(status: int, **headers: str) -> Iterator[tuple[int, list[str]]]:
    """Answer each request alike; give the port, and the paths that were asked for."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": "2", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()


def test_the_password_goes_neither_where_a_redirect_leads_nor_through_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("p")
    with (
        served(200) as (elsewhere, strangers),
        served(302, Location=f"http://127.0.0.1:{elsewhere}/") as (port, asked),
    ):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{elsewhere}")
        interface = named(f"http://m@127.0.0.1:{port}", tmp_path / "password", "/", "")
        with pytest.raises(Unavailable, match="302"):
            interface.consumers()
    assert (asked, strangers) == (["/api/consumers/%2F"], [])


class Interface:
    """What a management interface may answer: objects in which everything is missing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: [{}]

    def queue(self, _name: str) -> None: ...
    def exchange(self, _name: str) -> None: ...
    def version(self) -> str:
        return ""


def test_the_report_is_words_for_a_person_and_obeys_nobody(capsys: Any) -> None:
    traffic = Traffic()
    for moment in (1.0, 1.5):
        traffic.take(JOB, raw({**FALSE, "\x1b[2Jx": text(VALUE)}), moment)
    told = facts(BrokerConfig(), Interface())  # type: ignore[arg-type]  # its methods are what counts
    told["all_queues"] = {"knime-jobs\x1b[2J: quorum, durable": 1}
    verdict = {"mode": "republish", "why": "executors publish", "remarks": ["a remark"]}
    _print({"seconds": 2.5, "broker": told, "redelivered": 0, "traffic": traffic.facts(), "verdict": verdict})
    words = capsys.readouterr().out
    for line in (
        "2 messages in 2.5 s",
        "        2  canHandle: boolean",
        "a message came back after 0.500 s",
        "- a remark",
    ):
        assert line in words
    assert "Verdict: hand_over.mode = republish: executors publish" in words
    assert "\x1b" not in words
    assert VALUE not in words


def test_a_broker_that_answers_less_than_is_asked_is_no_fault() -> None:
    found = facts(BrokerConfig(), Interface())  # type: ignore[arg-type]  # its methods are what counts
    assert found["queue"] is None
    assert found["all_queues"] == {"None: classic, no flags": 1}
