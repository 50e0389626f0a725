"""The log of jobs: one name for a job wherever it is met, nothing of its body, and a bound."""

import logging

import pytest

from broker_listener import job_log
from broker_listener.consuming import Delivery
from broker_listener.job_log import Changed, HandedOver, JobLog, Parked
from broker_listener.pacing import digest
from broker_listener.properties import Properties
from broker_listener.transitions import State


def delivery(body: bytes = b'{"user":"alice","secret":"s3cret"}', identity: bytes | None = None) -> Delivery:
    raw = b"\0\0" if identity is None else Properties({"message_id": bytes([len(identity)]) + identity}, None).encode()
    return Delivery(1, 1, body, raw, redelivered=False, exchange="", routing_key="")


def lines(caplog: pytest.LogCaptureFixture, *happened: job_log.Happened) -> list[str]:
    with caplog.at_level(logging.INFO):
        log = JobLog()
        for one in happened:
            log.tell(one)
    return [record.getMessage() for record in caplog.records]


def test_a_job_has_the_same_name_when_its_user_changes_when_it_is_handed_over_and_when_it_is_parked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = delivery(identity=b"4711")
    name = digest(job.body, b"4711").hex()
    assert lines(
        caplog,
        Changed("alice", State.ABSENT, State.STARTING, job),
        HandedOver("alice", job, 12.3456),
        Parked("alice", job, "denied_user"),
        Changed("alice", State.READY, State.ABSENT, None),
    ) == [
        f"event=state user=alice state=starting was=absent job={name} message_id='4711'",
        f"event=handed_over user=alice job={name} message_id='4711' waited=12.346",
        f"event=message_parked user=alice job={name} message_id='4711' reason=denied_user",
        "event=state user=alice state=absent was=ready job=none",
    ]


def test_nothing_of_a_body_is_shown_and_a_message_id_is_escaped_and_cut(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = lines(caplog, HandedOver("alice", delivery(identity=b"\n\xff'" + b"x" * 200), 0.0))
    assert "s3cret" not in line
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 250


def test_properties_that_cannot_be_read_name_a_job_by_its_body(caplog: pytest.LogCaptureFixture) -> None:
    job = delivery()._replace(properties=b"\xff")
    (line,) = lines(caplog, Parked(None, job, "bad_properties"))
    assert f"user=None job={digest(job.body, None).hex()} " in line


def test_a_flood_of_jobs_is_a_bounded_number_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    assert len(lines(caplog, *[HandedOver("alice", delivery(), 0.0)] * 5000)) == job_log.LINES
