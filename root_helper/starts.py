"""The starts under way, as the supervisor sees them: a worker each, two pipes, deadlines, and who asked.

A user has one start at a time, and so has an OS account. Nothing is executed before its ``started`` record is on
disk. What a worker says is believed of its own process only; what it does not say in time ends it.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from protocol.messages import Failed, FailedReason, Op, Refused, RefusedReason, Reply, RequestId, Started
from protocol.record import Event, Peer
from root_helper import worker
from root_helper.audit import AuditLog, AuditUnavailable
from root_helper.config import HelperConfig
from root_helper.executors import Executor, Registry, stat_of, uid_of
from root_helper.limits import Rates
from root_helper.loop import Loop
from root_helper.worker_process import WorkerProcess

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
    """One start. ``stage``: queued, looking_up, preparing, ready, released, started, ended (not yet reaped)."""

    task: worker.Task
    asked: list[Asked]
    began: float
    stage: str = "queued"
    process: WorkerProcess | None = None
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

    def is_stuck(self, os_user: str) -> bool:
        """Tell whether a worker of this OS account cannot be ended."""
        return any(start.stage == "ended" and start.task.os_user == os_user for start in self.by_user.values())

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
            if start.process:
                start.process.release()

    def _fork(self, start: Start) -> None:
        try:
            process = start.process = WorkerProcess(start.task, self.config)
        except OSError as error:
            _log.error("failed user=%s reason=at_capacity: no worker: %s", start.task.user, error.strerror)
            self._drop(start, FailedReason.AT_CAPACITY)
            return
        self.loop.watch(process.report, lambda: self._hear(start, process))
        self.loop.watch(process.pidfd, lambda: self._reap(start, process))
        self._advance(start, "looking_up", self.config.limits.lookup_timeout)

    def _drop(self, start: Start, reason: FailedReason) -> None:
        self._answer(start, lambda asked: Failed(asked, reason, RETRY_AFTER))
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

    def _hear(self, start: Start, process: WorkerProcess) -> None:
        """Take in what the worker says; the end of its pipe is execve, or its death."""
        facts, over = process.heard()
        if over:
            self.loop.forget(process.report)  # first: another worker may have a copy, which epoll would go on watching
            process.hear_no_more()
        for fact in facts:
            self._take(start, process, fact)
        if over and start.stage != "ended":
            self._conclude(start, process)

    def _take(self, start: Start, process: WorkerProcess, fact: dict[str, Any]) -> None:
        if start.stage == "ended":
            return
        if "refused" in fact:
            self._refuse(start, RefusedReason(fact["refused"]), fact["text"])
        elif "failed" in fact:
            self._fail(start, FailedReason(fact["failed"]), fact["text"])
        elif fact["at"] == "looked_up":
            self._advance(start, "preparing", self.config.limits.prepare_timeout)
        else:
            self._check_ready(start, process.pid, fact)

    def _check_ready(self, start: Start, pid: int, facts: dict[str, Any]) -> None:
        """Record the start, so that it may execute; or say why this account may not have one more executor."""
        executor = self.registry.described(start.task.user, pid, facts, self.audit.prev)
        if executor is None or uid_of(pid) != executor.uid:
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
            no_record = isinstance(error, AuditUnavailable)
            reason = FailedReason.AUDIT_UNAVAILABLE if no_record else FailedReason.PREPARE_FAILED
            self._fail(start, reason, str(error))
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

    def _conclude(self, start: Start, process: WorkerProcess) -> None:
        """Tell execve from death: both close the pipe, but only execve clears the kernel's flag."""
        stat, executor = stat_of(process.pid), start.executor
        if executor and stat and start.stage == "released" and stat.executed and stat.start_time == executor.start_time:
            self._started(start, executor, process)
        else:
            self._fail(start, FailedReason.SPAWN_FAILED, f"the worker died while {start.stage}")

    def _started(self, start: Start, executor: Executor, process: WorkerProcess) -> None:
        start.stage = "started"  # the registry's from here on: no deadline of the start reaches it any more
        process.forget()
        self._leave(start)
        self.adopt(executor, process.pidfd)
        facts = (executor.os_user, executor.uid, executor.pid, executor.since, executor.cgroup)
        self._answer(start, lambda asked: Started(asked, *facts))

    def _refuse(self, start: Start, reason: RefusedReason, text: str) -> None:
        _log.warning("refused user=%s reason=%s: %s", start.task.user, reason, text)
        self._end(start, lambda asked: Refused(asked, reason))

    def _fail(self, start: Start, reason: FailedReason, text: str) -> None:
        _log.error("failed user=%s reason=%s: %s", start.task.user, reason, text)
        if start.executor is not None:
            self.audit.record_end(executor_event("exited", start.executor, reason))
            self.registry.forget_state(start.task.user)
        self._end(start, lambda asked: Failed(asked, reason, RETRY_AFTER))

    def _end(self, start: Start, reply: Callable[[RequestId], Reply]) -> None:
        """Answer, and end the worker; its user stays locked until it is gone."""
        self._answer(start, reply)
        start.stage = "ended"
        if start.process:
            start.process.kill()

    def _reap(self, start: Start, process: WorkerProcess) -> None:
        """Take leave of a worker that is gone: what it still said counts, then its user is free again."""
        with contextlib.suppress(BlockingIOError):
            while process.report >= 0:
                self._hear(start, process)
        if process.report >= 0:  # something that it left behind holds the other end
            self.loop.forget(process.report)
            process.hear_no_more()
            if start.stage != "ended":
                self._conclude(start, process)
        if start.stage == "ended":  # else it had executed, and is the registry's now
            self.loop.forget(process.pidfd)
            self._bury(start, process)

    def _bury(self, start: Start, process: WorkerProcess) -> None:
        """Free the user when the worker is reaped; one that somebody traces is tried again."""
        if process.reaped():
            self._leave(start)
        else:
            self.loop.after(1.0, lambda: self._bury(start, process))

    def _leave(self, start: Start) -> None:
        """Let the next one of the same OS account have its turn."""
        del self.by_user[start.task.user]
        following = next((other for other in self._queue if other.task.os_user == start.task.os_user), None)
        if following:
            self._queue.remove(following)
            self._fork(following)

    def _answer(self, start: Start, reply: Callable[[RequestId], Reply]) -> None:
        duration = round((time.monotonic() - start.began) * 1000, 3)
        uid, pid = (start.executor.uid, start.executor.pid) if start.executor else (None, None)
        for asked in start.asked:
            answer = reply(asked.id)
            event = result_event(asked, Op.ENSURE, start.task.user, answer)
            event = replace(event, os_user=start.task.os_user, uid=uid, pid=pid, duration_ms=duration)
            self.audit.record_end(event)
            asked.answer(answer)


def result_event(asked: Asked, op: Op | None, user: str | None, reply: Reply) -> Event:
    """Give the event of an answer."""
    decision, reason = type(reply).__name__.lower(), getattr(reply, "reason", None)
    return Event(
        event="result", request_id=asked.id, peer=asked.peer, op=op, user=user, decision=decision, reason=reason
    )


def executor_event(name: str, executor: Executor, reason: str | None) -> Event:
    """Give the event of an executor's life."""
    return Event(
        event=name, user=executor.user, os_user=executor.os_user, uid=executor.uid, pid=executor.pid, reason=reason
    )
