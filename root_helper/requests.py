"""The whole vocabulary: request -> who answers it, and over which socket it may come. Nothing else is ever done.

A frame is hostile. What does not decode, or may not be asked where it was asked, is dropped, audited with a bound
and not answered. Adding a row is a reviewed event: it touches ``protocol``, this table and SECURITY.md.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from protocol import messages as m
from protocol.codec import ProtocolViolation, decode_request
from protocol.names import UserName
from protocol.record import Event, Peer
from root_helper.audit import AuditUnavailable
from root_helper.policy import os_user_of
from root_helper.starts import RETRY_AFTER, Answer, Asked, result_event
from root_helper.supervisor import Supervisor
from root_helper.worker import Task

_PAGE: Final = 11
"""Executors in one reply: with the longest names, 11 entries of 310 bytes fit 4,096."""
_log: Final = logging.getLogger("request")


class Channel(Enum):
    """The two sockets."""

    GATE = "gate"
    OPERATOR = "operator"


class Came(NamedTuple):
    """Where a frame came from, and where its reply goes."""

    over: Channel
    peer: Peer
    answer: Answer


class Rule(NamedTuple):
    """Who answers a request, and over which sockets it may come."""

    answer: Callable[[Supervisor, Any, Asked, float], None]
    over: frozenset[Channel]
    op: m.Op


def dispatch(supervisor: Supervisor, frame: bytes, came: Came, now: float) -> None:
    """Decode one frame and have it answered, at once or later. ``now``: monotonic seconds."""
    try:
        request = decode_request(frame)
    except ProtocolViolation as error:
        supervisor.audit.note(Event(event="dropped", peer=came.peer, reason="bad_frame"), now)
        _log.debug("dropped a frame of uid=%d pid=%d: %s", came.peer.uid, came.peer.pid, error)
        return
    asked = Asked(request.id, came.peer, came.answer)
    if isinstance(request, m.OtherVersion):
        reply = m.Failed(request.id, m.FailedReason.UNSUPPORTED_VERSION, 60.0)
        supervisor.audit.note(result_event(asked, None, None, reply), now)
        asked.answer(reply)
        return
    rule = VOCABULARY[type(request)]
    if came.over not in rule.over:
        supervisor.audit.note(Event(event="dropped", peer=came.peer, op=rule.op, reason="not_permitted_here"), now)
        return
    rule.answer(supervisor, request, asked, now)


def ensure_executor(supervisor: Supervisor, request: m.EnsureExecutor, asked: Asked, now: float) -> None:
    """See to it that the user has an executor: the one that runs, or a new one."""
    names = _names(supervisor, request.user)
    if isinstance(names, m.RefusedReason):
        _immediately(supervisor, request.user, asked, m.Refused(asked.id, names), now)
        return
    user, os_user = names
    if e := supervisor.registry.by_user.get(user):
        supervisor.idleness.forget(user)
        reply = m.Running(asked.id, e.os_user, e.uid, e.pid, e.since, e.cgroup)
        _immediately(supervisor, user, asked, reply, now)
        return
    if start := supervisor.starts.by_user.get(user):
        if not supervisor.starts.join(start, asked):
            locked = m.Failed(asked.id, m.FailedReason.BACKING_OFF, RETRY_AFTER)
            _immediately(supervisor, user, asked, locked, now)
        return
    if refused := supervisor.not_now(user, os_user):
        _immediately(supervisor, user, asked, m.Failed(asked.id, *refused), now)
        return
    try:
        supervisor.starts.begin(Task(user, os_user, supervisor.state_directory, supervisor.registry.knows(user)), asked)
    except AuditUnavailable:
        asked.answer(m.Failed(asked.id, m.FailedReason.AUDIT_UNAVAILABLE, RETRY_AFTER))


def list_executors(supervisor: Supervisor, request: m.ListExecutors, asked: Asked, now: float) -> None:
    """Give a page of what runs."""
    users = sorted(user for user in supervisor.registry.by_user if user > request.after)
    page = [supervisor.registry.by_user[user] for user in users[:_PAGE]]
    entries = tuple(m.ExecutorEntry(e.user, e.os_user, e.uid, e.pid, e.since, e.cgroup) for e in page)
    following = entries[-1].user if len(users) > _PAGE else None
    reply = m.Executors(asked.id, entries, following, supervisor.draining, supervisor.free())
    supervisor.audit.note(Event(event="list", request_id=asked.id, peer=asked.peer, op=m.Op.LIST), now)
    asked.answer(reply)


def stop_executor(supervisor: Supervisor, request: m.StopExecutor, asked: Asked, now: float) -> None:
    """End the executor of a KNIME user."""
    executor = supervisor.stop(request.user)
    reply = m.Stopping(asked.id) if executor else m.Absent(asked.id)
    event = result_event(asked, m.Op.STOP, request.user, reply)
    if executor:
        event = replace(event, event="stopped", os_user=executor.os_user, uid=executor.uid, pid=executor.pid)
        supervisor.audit.record_end(event)
    else:
        supervisor.audit.note(event, now)
    asked.answer(reply)


def set_draining(supervisor: Supervisor, request: m.SetDraining, asked: Asked, now: float) -> None:
    """Start no executor any more, or start them again."""
    del now
    try:
        supervisor.set_draining(on=request.on)
    except OSError as error:
        _log.error("draining is not changed: %s", error)
    decision = "on" if supervisor.draining else "off"
    event = Event(event="drain", request_id=asked.id, peer=asked.peer, op=m.Op.DRAIN, decision=decision)
    supervisor.audit.record_end(event)
    asked.answer(m.Draining(asked.id, supervisor.draining))


VOCABULARY: Final[Mapping[type[Any], Rule]] = MappingProxyType(
    {
        m.EnsureExecutor: Rule(ensure_executor, frozenset({Channel.GATE}), m.Op.ENSURE),
        m.ListExecutors: Rule(list_executors, frozenset({Channel.GATE, Channel.OPERATOR}), m.Op.LIST),
        m.StopExecutor: Rule(stop_executor, frozenset({Channel.OPERATOR}), m.Op.STOP),
        m.SetDraining: Rule(set_draining, frozenset({Channel.OPERATOR}), m.Op.DRAIN),
    }
)


def _names(supervisor: Supervisor, text: str) -> tuple[UserName, UserName] | m.RefusedReason:
    users = supervisor.config.users
    os_user = os_user_of(text, users.map, lowercase=users.lowercase, qualified=users.qualified_names)
    if os_user is None:
        return m.RefusedReason.INVALID_NAME
    if os_user in users.deny_users:
        return m.RefusedReason.DENIED_USER
    return UserName(text), os_user


def _immediately(supervisor: Supervisor, user: str, asked: Asked, reply: m.Reply, now: float) -> None:
    """Answer what leads to no start: noted within the audit log's bound."""
    supervisor.audit.note(result_event(asked, m.Op.ENSURE, user, reply), now)
    asked.answer(reply)
