"""Facts into a verdict: which hand-over mode and settings fit this KNIME, and what is not known still. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from broker_listener.config import ListenerConfig

ACCEPTED_AFTER: Final = 0.2
"""Seconds after which the listener takes a job that is not back as accepted."""


class Seen(NamedTuple):
    """The facts: of the messages, and of the queue where the management interface was asked (else None)."""

    traffic: Mapping[str, Any]
    queue: Mapping[str, Any] | None
    redelivered: int | None
    """Redeliveries of the jobs queue meanwhile: what consumers gave back without publishing, or lost."""


def mode(seen: Seen) -> tuple[str | None, str]:
    """Give ``hand_over.mode`` that fits, None where nothing was seen that tells, and why."""
    published, redelivered = sum(seen.traffic["put_back"].values()), seen.redelivered or 0
    if not seen.traffic["messages"]:
        return None, "no job was published: have users run some, on executors that are not theirs, too"
    if published and redelivered > published:
        return "republish", f"executors put back both ways: {published} published anew, {redelivered} redelivered"
    if published:
        how = ", ".join(f"{count} times {change}" for change, count in seen.traffic["put_back"].items())
        return "republish", f"executors put a job back by publishing it anew ({how}), as the predecessor did"
    if redelivered:
        how = "unless connections were lost meanwhile, which counts in the same way"
        return (
            "requeue",
            f"executors give a job back to the queue (basic.nack or reject): {redelivered} redeliveries, {how}",
        )
    if seen.redelivered is None:
        why = "no job came back by being published; whether any was given back to the queue only --management tells"
        return None, f"{why}; republish, the default, works in either case"
    return None, "no job came back at all: have a user's job reach another user's executor; republish is the default"


def remarks(seen: Seen, config: ListenerConfig) -> Iterator[str]:
    """Say which settings the facts ask for, and what of them is to be known."""
    traffic, queue = seen.traffic, seen.queue or {}
    suggested = mode(seen)[0]
    if suggested not in (None, config.hand_over.mode):
        yield f'listener.toml has hand_over.mode = "{config.hand_over.mode}"; "{suggested}" fits'
    if traffic["largest_body"] > config.broker.max_body:
        yield f"broker.max_body = {2 * traffic['largest_body']}: the largest body had {traffic['largest_body']} bytes"
    hops = traffic["hop_seconds"]
    if hops and hops["p95"] > ACCEPTED_AFTER:
        slow = f"a job comes back after up to {hops['longest']:.2f} s, later than {ACCEPTED_AFTER} s"
        yield f"{slow}, when the listener takes it as accepted: hand_over.retry_initial = {hops['median']:.2f}"
    yield from _of_properties(traffic, suggested)
    yield from _of_bodies(traffic)
    if queue.get("type") == "quorum" and suggested == "requeue":
        yield "the queue is a quorum queue: see that its delivery-limit is high or off, each return counts"
    if queue and not queue.get("durable"):
        yield "the queue is not durable: jobs do not survive a restart of the broker"


def _of_properties(traffic: Mapping[str, Any], suggested: str | None) -> Iterator[str]:
    headers = {name.rpartition(": ")[0] for name in traffic["headers"]}
    if "expiration" in traffic["properties"] and suggested == "requeue":
        yield "jobs have an expiration: those are published anew also in mode requeue"
    if "user_id" in traffic["properties"]:
        yield "jobs have a user_id, which the broker verified: it is taken off where a job is published anew"
    if headers & {"CC", "BCC"}:
        yield "jobs have CC or BCC headers: they are taken off when a job is handed over (README, Limits)"
    if traffic["can_handle"].get("absent"):
        yield f"{traffic['can_handle']['absent']} messages had no canHandle: mode republish adds it"
    if traffic["can_handle"].get("of another type"):
        yield "canHandle is no boolean here: report it to this project before you go on"
    if traffic["delivery_modes"].get("absent") or traffic["delivery_modes"].get("transient"):
        yield "jobs are transient: they do not survive a restart of the broker, whatever stands between"


def _of_bodies(traffic: Mapping[str, Any]) -> Iterator[str]:
    strange = {kind: count for kind, count in traffic["bodies"].items() if kind != "JSON object"}
    for kind, count in strange.items():
        yield f"{count} bodies are {kind}: they would be parked"
    users = traffic["body_keys"].get("user: string", 0)
    if (objects := traffic["bodies"].get("JSON object", 0)) > users:
        yield f"{objects - users} bodies have no text under the key user: they would be parked (no_user, bad_user)"
