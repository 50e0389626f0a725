"""The starts under way, as the supervisor sees them: a worker each, two pipes, deadlines, and who asked.

A user has one start at a time, and so has an OS account. Nothing is executed before its ``started`` record is on
disk. What a worker says is believed of its own process only; what it does not say in time ends it.
"""

import contextlib
import json
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from protocol.messages import Failed, FailedReason, Refused, RefusedReason, Reply, RequestId, Started
from protocol.record import Event, Peer
from root_helper import worker
from root_helper.audit import AuditLog, AuditUnavailable
from root_helper.config import HelperConfig
from root_helper.executors import Executor, Registry, stat_of, uid_of
from root_helper.limits import Rates
from root_helper.loop import Loop

Answer = Callable[[Reply], None]
RETRY_AFTER: Final = 5.0
"""Seconds after which a failure of the host is worth another request."""
_MAX_ASKED: Final = 8
_MAX_STUCK: Final = 8
_log: Final = logging.getLogger("start")


@dataclass(frozen=True, slots=True)
class Asked:
    """Who waits for the outcome."""

    id: RequestId
    peer: Peer
    answer: Answer


@dataclass(slots=True)
class Start:
    """One start. ``stage``: queued, looking_up, preparing, ready, released, ended (answered, not yet reaped)."""

    task: worker.Task
    asked: list[Asked]
    began: float
    stage: str = "queued"
    pid: int = 0
    pidfd: int = -1
    report: int = -1
    go: int = -1
    said: bytes = b""
    executor: Executor | None = None


@dataclass(slots=True)
class Starts:
    """All starts. ``adopt`` takes over what was started."""

    config: HelperConfig
    loop: Loop
    audit: AuditLog
    registry: Registry
    rates: Rates
    adopt: Callable[[Executor, int], None]
    by_user: dict[str, Start] = field(default_factory=dict)
    _ready: list[Start] = field(default_factory=list)
    _queue: deque[Start] = field(default_factory=deque)

    def stuck(self) -> bool:
        """Tell whether so many workers cannot be ended that no new user may be begun with."""
        return sum(start.stage == "ended" for start in self.by_user.values()) >= _MAX_STUCK

    def begin(self, task: worker.Task, asked: Asked) -> None:
        """Record the request and start a worker, or queue behind another one of the same OS account.

        Raises:
            AuditUnavailable: nothing was begun.
        """
        event = Event(event="request", request_id=asked.id, peer=asked.peer, op="ensure", user=task.user)
        self.audit.record(event)
        start = self.by_user[task.user] = Start(task, [asked], time.monotonic())
        busy = any(other.task.os_user == task.os_user for other in self.by_user.values() if other is not start)
        if busy:
            self._queue.append(start)
            self._advance(start, "queued", self.config.limits.prepare_timeout)
        else:
            self._fork(start)

    def join(self, start: Start, asked: Asked) -> bool:
        """Let one more request wait for the outcome; False where it cannot."""
        joined = start.stage != "ended" and len(start.asked) < _MAX_ASKED
        if joined:
            start.asked.append(asked)
        return joined

    def release_ready(self) -> None:
        """Let all workers execute whose ``started`` records one fdatasync brought to the disk."""
        # Without those that died in this very round: their descriptors are closed, and may be others' by now.
        ready, self._ready = [start for start in self._ready if start.stage == "ready"], []
        if not ready:
            return
        try:
            self.audit.sync()
        except AuditUnavailable as error:
            for start in ready:
                self._fail(start, FailedReason.AUDIT_UNAVAILABLE, str(error))
            return
        for start in ready:
            self._advance(start, "released", self.config.limits.prepare_timeout)  # it is the user's to stop by now
            with contextlib.suppress(BrokenPipeError):  # a worker that died: its pipe tells
                os.write(start.go, b"G")

    def _fork(self, start: Start) -> None:
        opened: list[int] = []
        try:
            opened += os.pipe()
            opened += os.pipe()
            # PRIVILEGED: the child is the worker; it never returns from run().
            start.pid = os.fork()
        except OSError as error:
            self._not_forked(start, opened, error)
            return
        start.report, report, go, start.go = opened
        if start.pid == 0:
            worker.run(start.task, self.config, report, go)
        os.set_blocking(start.report, False)
        os.close(report)
        os.close(go)
        start.pidfd = os.pidfd_open(start.pid)
        self.loop.watch(start.report, lambda: self._hear(start))
        self.loop.watch(start.pidfd, lambda: self._reap(start))
        self._advance(start, "looking_up", self.config.limits.lookup_timeout)

    def _not_forked(self, start: Start, opened: list[int], error: OSError) -> None:
        """Say that the host has no process or descriptor left; nothing was begun."""
        for descriptor in opened:
            os.close(descriptor)
        _log.error("failed user=%s reason=at_capacity: no worker: %s", start.task.user, error.strerror)
        self._drop(start, FailedReason.AT_CAPACITY)

    def _drop(self, start: Start, reason: FailedReason) -> None:
        self._answer(start, lambda asked: Failed(asked, reason, RETRY_AFTER), "failed", reason)
        self._leave(start)

    def _advance(self, start: Start, stage: str, seconds: float) -> None:
        start.stage = stage
        self.loop.after(seconds, lambda: self._overdue(start, stage))

    def _overdue(self, start: Start, stage: str) -> None:
        if start.stage != stage:
            return
        if stage == "queued":  # behind a worker that does not end: nothing was begun
            self._queue.remove(start)
            self._drop(start, FailedReason.BACKING_OFF)
            return
        reason = FailedReason.LOOKUP_TIMEOUT if stage == "looking_up" else FailedReason.PREPARE_FAILED
        self._fail(start, reason, f"the worker was {stage} for too long")

    def _hear(self, start: Start) -> None:
        """Take in what the worker says; the end of its pipe is execve, or its death."""
        chunk = os.read(start.report, 4096)
        start.said += chunk
        *lines, start.said = start.said.split(b"\n")
        for line in lines:
            self._take(start, json.loads(line))
        if not chunk or len(start.said) > 4096:
            self._stop_hearing(start)

    def _stop_hearing(self, start: Start) -> None:
        self.loop.forget(start.report)
        os.close(start.report)
        start.report = -1
        if start.stage != "ended":
            self._conclude(start)

    def _take(self, start: Start, fact: dict[str, Any]) -> None:
        if start.stage == "ended":
            return
        if "refused" in fact:
            self._refuse(start, RefusedReason(fact["refused"]), fact["text"])
        elif "failed" in fact:
            self._fail(start, FailedReason(fact["failed"]), fact["text"])
        elif fact["at"] == "looked_up":
            self._advance(start, "preparing", self.config.limits.prepare_timeout)
        else:
            self._check_ready(start, fact)

    def _check_ready(self, start: Start, facts: dict[str, Any]) -> None:
        """Record the start, so that it may execute; or say why this account may not have one more executor."""
        executor = self.registry.described(start.task.user, start.pid, facts)
        if executor is None or uid_of(start.pid) != executor.uid:
            self._fail(start, FailedReason.SPAWN_FAILED, "the worker is not the user that it says it is")
            return
        if reason := self._uid_conflict(executor):
            self._fail(start, reason, f"uid {executor.uid}")
            return
        try:
            self.registry.save(executor)
            first = start.asked[0]
            self.audit.record(replace(executor_event("started", executor, None), request_id=first.id, peer=first.peer))
        except (OSError, AuditUnavailable) as error:
            self.registry.forget_state(start.task.user)
            unavailable = isinstance(error, AuditUnavailable)
            self._fail(
                start, FailedReason.AUDIT_UNAVAILABLE if unavailable else FailedReason.PREPARE_FAILED, str(error)
            )
            return
        start.executor = executor
        self._ready.append(start)
        self._advance(start, "ready", self.config.limits.prepare_timeout)

    def _uid_conflict(self, executor: Executor) -> FailedReason | None:
        same = [other for other in self.registry.everybody() if other.uid == executor.uid]
        if any(other.os_user != executor.os_user for other in same):
            return FailedReason.UID_IN_USE
        if len(same) >= self.config.users.max_per_os_user:
            return FailedReason.AT_CAPACITY
        limited = self.rates.wait(f"uid:{executor.uid}", time.monotonic(), in_all=False)
        return FailedReason.RATE_LIMITED if limited else None

    def _conclude(self, start: Start) -> None:
        """Tell execve from death: both close the pipe, but only execve clears the kernel's flag."""
        stat, executor = stat_of(start.pid), start.executor
        if executor and stat and start.stage == "released" and stat.executed and stat.start_time == executor.start_time:
            self._started(start, executor)
        else:
            self._fail(start, FailedReason.SPAWN_FAILED, f"the worker died while {start.stage}")

    def _started(self, start: Start, executor: Executor) -> None:
        self._forget(start)
        self.adopt(executor, start.pidfd)
        facts = (executor.os_user, executor.uid, executor.pid, executor.since, executor.cgroup)
        self._answer(start, lambda asked: Started(asked, *facts), "started", None)

    def _refuse(self, start: Start, reason: RefusedReason, text: str) -> None:
        _log.warning("refused user=%s reason=%s: %s", start.task.user, reason, text)
        self._end(start, lambda asked: Refused(asked, reason), "refused", reason)

    def _fail(self, start: Start, reason: FailedReason, text: str) -> None:
        _log.error("failed user=%s reason=%s: %s", start.task.user, reason, text)
        if start.executor is not None:
            self.audit.record_end(executor_event("exited", start.executor, reason))
            self.registry.forget_state(start.task.user)
        self._end(start, lambda asked: Failed(asked, reason, RETRY_AFTER), "failed", reason)

    def _end(self, start: Start, reply: Callable[[RequestId], Reply], decision: str, reason: str) -> None:
        """Answer, and end the worker; its user stays locked until it is gone."""
        self._answer(start, reply, decision, reason)
        start.stage = "ended"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # PRIVILEGED: the worker's own group (it called setsid), so that mkhomedir_helper ends, too.
            os.killpg(start.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # PRIVILEGED: and the worker itself, should it not have come to setsid.
            signal.pidfd_send_signal(start.pidfd, signal.SIGKILL)

    def _reap(self, start: Start) -> None:
        """Take leave of a worker that is gone: what it still said counts, then its user is free again."""
        with contextlib.suppress(BlockingIOError):
            while start.report >= 0:
                self._hear(start)
        if start.report >= 0:  # something that it left behind holds the other end
            self._stop_hearing(start)
        if start.stage != "ended":
            return  # it had executed, and is the registry's now
        self.loop.forget(start.pidfd)
        os.waitid(os.P_PIDFD, start.pidfd, os.WEXITED)
        os.close(start.pidfd)
        self._forget(start)

    def _forget(self, start: Start) -> None:
        os.close(start.go)
        self._leave(start)

    def _leave(self, start: Start) -> None:
        """Let the next one of the same OS account have its turn."""
        del self.by_user[start.task.user]
        following = next((other for other in self._queue if other.task.os_user == start.task.os_user), None)
        if following:
            self._queue.remove(following)
            self._fork(following)

    def _answer(self, start: Start, reply: Callable[[RequestId], Reply], decision: str, reason: str | None) -> None:
        duration = (time.monotonic() - start.began) * 1000
        for asked in start.asked:
            event = Event(
                event="result",
                request_id=asked.id,
                peer=asked.peer,
                op="ensure",
                user=start.task.user,
                os_user=start.task.os_user,
                uid=start.executor.uid if start.executor else None,
                decision=decision,
                reason=reason,
                pid=start.executor.pid if start.executor else None,
                duration_ms=round(duration, 3),
            )
            self.audit.record_end(event)
            asked.answer(reply(asked.id))


def executor_event(name: str, executor: Executor, reason: str | None) -> Event:
    """Give the event of an executor's life."""
    return Event(
        event=name, user=executor.user, os_user=executor.os_user, uid=executor.uid, pid=executor.pid, reason=reason
    )
