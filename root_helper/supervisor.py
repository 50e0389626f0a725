"""The life of executors: started, adopted after a restart, ended, stopped, and what an end leaves behind.

It trusts pidfds and /proc, never a name. An executor that ended is told to the peers at once; its user gets a new one
when nothing of the old one is left: a child that outlives a launcher holds the user's lock files.
"""

import contextlib
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from protocol.messages import Exited, FailedReason
from root_helper import scope
from root_helper.audit import AuditLog
from root_helper.config import HelperConfig
from root_helper.executors import TICKS, Executor, Registry, everything, has_process, signalled, stat_of
from root_helper.limits import BackOff, Idleness, Rates
from root_helper.loop import Loop, Steps
from root_helper.starts import RETRY_AFTER, Starts, executor_event

LEFT_BEHIND: Final = 0.2
"""Seconds after which it is worth asking again while an old executor's processes are being ended."""
_LOOK_AGAIN: Final = 0.1
_CHILD_GRACE: Final = 10.0
_LONGEST_LOOK: Final = 30.0
"""Seconds between two looks for idle executors; the tenth of ``idle_after`` where that is less."""
_log: Final = logging.getLogger("executor")


class Supervisor:
    """All that the helper knows and decides; no socket, no protocol."""

    def __init__(self, config: HelperConfig, loop: Loop, audit: AuditLog, directories: tuple[str, str]) -> None:
        """Take over what is running; ``directories`` are those of the state files and of the draining mark."""
        self.config, self.loop, self.audit = config, loop, audit
        self.state_directory, self._mark = directories[0], os.path.join(directories[1], "draining")
        limits = config.limits
        self.rates, self.back_off = Rates(limits.starts_per_user_per_minute, limits.starts_per_second), BackOff()
        self.idleness = Idleness(limits.idle_after, limits.idle_cpu)
        self.registry = Registry(self.state_directory)
        self.starts = Starts(config, loop, audit, self.registry, self.rates, self._take_over)
        self.notify: Callable[[Exited], None] = lambda _: None
        self._stopping: set[int] = set()
        self.draining = os.path.exists(self._mark)
        self.registry.adopt(self._take_over, self._ended)
        if limits.idle_after:
            loop.work(self._ending_the_idle())

    def free(self) -> int:
        """Give how many executors more this host takes."""
        used = len(self.registry.everybody()) + len(self.starts.by_user)
        return 0 if self.draining else max(0, self.config.limits.max_executors - used)

    def not_now(self, user: str, os_user: str) -> tuple[FailedReason, float] | None:
        """Say why no executor can be started for this user now, and for how many seconds, or None where one can."""
        now = time.monotonic()
        wait = self.back_off.wait(user, now)
        same = sum(other.os_user == os_user for other in self.registry.everybody())
        full = self.free() == 0 or self.starts.stuck() or same >= self.config.users.max_per_os_user
        obstacles = (
            (not self.audit.is_writable(), FailedReason.AUDIT_UNAVAILABLE, RETRY_AFTER),
            (user in self.registry.leaving, FailedReason.BACKING_OFF, LEFT_BEHIND),
            (self.draining, FailedReason.DRAINING, RETRY_AFTER),
            (self.starts.is_stuck(os_user), FailedReason.BACKING_OFF, RETRY_AFTER),
            (wait > 0, FailedReason.BACKING_OFF, wait),
            (full, FailedReason.AT_CAPACITY, RETRY_AFTER),
        )
        for is_there, reason, seconds in obstacles:
            if is_there:
                return reason, seconds
        wait = self.rates.wait(f"name:{os_user}", now)  # counts the start, so it comes last
        return (FailedReason.RATE_LIMITED, wait) if wait else None

    def stop(self, user: str) -> Executor | None:
        """Tell the user's executor to end: SIGTERM, after ``stop_grace`` SIGKILL; None where there is none."""
        executor = self.registry.by_user.get(user)
        if executor is None or executor.pid in self._stopping:
            return executor
        self._stopping.add(executor.pid)
        self.loop.work(0.0 for _ in signalled(executor, signal.SIGTERM))
        self.loop.after(self.config.limits.stop_grace, lambda: self._kill(executor))
        return executor

    def set_draining(self, *, on: bool) -> None:
        """Keep the mark that survives a restart and a reboot.

        Raises:
            OSError: it cannot be written or removed; nothing was changed.
        """
        if on:
            mark = os.open(self._mark, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.fsync(mark)
            os.close(mark)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._mark)
        self.draining = on

    def _take_over(self, executor: Executor, pidfd: int) -> None:
        self.registry.add(executor)
        self.loop.watch(pidfd, lambda: self._exited(executor, pidfd))

    def _exited(self, executor: Executor, pidfd: int) -> None:
        self.loop.forget(pidfd)
        self._ended(executor, self._reaped(pidfd))

    def _reaped(self, pidfd: int) -> int | None:
        """Give the exit status, None where the kernel tells none: an adopted one, or one that a tracer holds on to."""
        try:
            ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # adopted: its parent is init
            os.close(pidfd)
            return None
        if ended is None:  # the tracer's, as long as that lives: reaped later, so that no zombie stays
            self.loop.after(1.0, lambda: self._reaped(pidfd))
            return None
        os.close(pidfd)
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _ended(self, executor: Executor, status: int | None = None) -> None:
        if executor.ended or self._is_told(executor):
            self.registry.leave(executor)
        else:
            self._record_end(executor, status)
        self.loop.work(self._seeing_off(executor))

    def _is_told(self, executor: Executor) -> bool:
        """Tell whether a helper was killed where the log ended: after this end's record, or before its start's."""
        last = self.audit.last
        it_ended = (last.get("event"), last.get("user"), last.get("pid")) == ("exited", executor.user, executor.pid)
        return last.get("hash") == executor.after or (it_ended and bool(last["time"] >= executor.since))

    def _record_end(self, executor: Executor, status: int | None) -> None:
        lived = time.clock_gettime(time.CLOCK_BOOTTIME) - executor.start_time / TICKS
        if executor.pid not in self._stopping:
            self.back_off.ended(executor.user, lived, time.monotonic())
        self._stopping.discard(executor.pid)
        self.idleness.forget(executor.user)
        how = "status unknown" if status is None else f"status {status}"
        event = replace(executor_event("exited", executor, how), duration_ms=round(lived * 1000))
        seq = self.audit.record_end(event)
        _log.info("exited user=%s pid=%d status=%s", executor.user, executor.pid, status)
        self.registry.leave(executor, recorded=self.audit.fault is None)
        self.notify(Exited(executor.user, executor.uid, executor.pid, status, seq))

    def _seeing_off(self, executor: Executor) -> Steps:
        """End what the executor left, until nothing is there; its user is locked as long."""
        kill_at = time.monotonic() + min(_CHILD_GRACE, self.config.limits.stop_grace)
        number = int(signal.SIGTERM)
        while True:
            left = False
            for found in signalled(executor, number):
                left |= found
                if left and not number:
                    break
                yield 0.0
            if not left and not has_process(executor) and self.audit.fault is None:
                self.registry.gone(executor)
                return
            yield _LOOK_AGAIN if self.audit.fault is None else RETRY_AFTER  # an end in memory only: the file stays
            number = int(signal.SIGKILL) if time.monotonic() >= kill_at else 0

    def _kill(self, executor: Executor) -> None:
        if self.registry.by_user.get(executor.user) == executor:
            _log.warning("killed user=%s pid=%d: it did not end in time", executor.user, executor.pid)
            self.loop.work(0.0 for _ in signalled(executor, signal.SIGKILL))

    def _ending_the_idle(self) -> Steps:
        """Stop, again and again, whoever nobody asks for and who does nothing."""
        while True:
            yield min(_LONGEST_LOOK, self.config.limits.idle_after / 10)
            used: defaultdict[int, float] = defaultdict(float)
            if any(executor.scope is None for executor in self.registry.by_user.values()):
                for stat in filter(None, map(stat_of, everything())):
                    used[stat.session] += stat.cpu
                    yield 0.0
            for user, executor in tuple(self.registry.by_user.items()):
                seconds = scope.cpu_seconds(executor.scope) if executor.scope else used[executor.pid]
                if seconds is not None and self.idleness.is_idle(user, time.monotonic(), seconds):
                    self._stop_idle(executor)
                yield 0.0

    def _stop_idle(self, executor: Executor) -> None:
        if self.registry.by_user.get(executor.user) == executor and executor.pid not in self._stopping:
            _log.info("stopped user=%s pid=%d: idle", executor.user, executor.pid)
            self.audit.record_end(executor_event("stopped", executor, "idle"))
            self.stop(executor.user)
