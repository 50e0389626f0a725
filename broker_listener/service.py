"""The loop: gives what broker, helper and kernel tell to the per-user machine, and does what it wants done.

Nothing here decides about a job, and nothing blocks: directories, processes and the log are others' or threads'
matter. One event that goes wrong is logged, with a bound, and ends itself, not the loop.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import inf
from typing import Any, Final

from broker_listener import actions as a
from broker_listener.answers import Answer, NotHere
from broker_listener.asking import Asks
from broker_listener.broker_connections import Broker
from broker_listener.cluster import Cluster
from broker_listener.config import ListenerConfig, parse_url
from broker_listener.confirms import Outcome
from broker_listener.consuming import Delivery
from broker_listener.exporter import Exporter
from broker_listener.hand_over import Machine
from broker_listener.helper import HelperClient
from broker_listener.job_log import JobLog
from broker_listener.jobs import Job, read_job
from broker_listener.limited_log import LimitedLog
from broker_listener.notify import Notify
from broker_listener.pacing import digest
from broker_listener.properties import BadProperties, can_handle, handed_over, message_id, parked, put_back
from broker_listener.readiness import Readiness
from broker_listener.requeue import may_give_back
from broker_listener.snapshot import HelperState, Snapshot
from broker_listener.state_file import StateFile
from broker_listener.status import StatusSocket
from protocol.messages import ExecutorEntry, Exited, Failed, FailedReason, Running, Started

LOG: Final = logging.getLogger(__name__)
DRAIN_WITHIN: Final = 4.0
"""Seconds for what is under way when the daemon is told to end."""
CLOSE_WITHIN: Final = 0.5
"""Seconds for the connections to end in good order; one whose other side does not read is dropped."""
BEAT: Final = 10.0
WRITE_EVERY: Final = 30.0
"""Seconds; of who is started for the first time after the last write a SIGKILL makes a stranger once more."""
WRITE_WITHIN: Final = 1.0
CAN_HANDLE_BYTES: Final = 16
"""What ``canHandle`` adds to properties at most: its entry, and the length of a table that was not there."""
PORTS: Final = frozenset({5672, 5671})
"""Ports of brokers by default; executors may use another one than we do."""


async def run(config: ListenerConfig) -> None:
    """Serve until SIGTERM or SIGINT; it needs a running loop from its first line on."""
    await Service(config).run()


class Service:
    """One run of the daemon: what ``BrokerEvents``, ``HelperEvents`` and ``Readiness`` tell arrives here."""

    def __init__(self, config: ListenerConfig) -> None:
        self._config = config
        self._requeues = config.hand_over.mode == "requeue"
        self._broker = Broker(config.broker, self)
        self._helper = HelperClient(config.helper, self)
        self._cluster = Cluster(config, self._helper.room, self) if config.cluster.enabled else None
        self._state = StateFile(os.environ.get("STATE_DIRECTORY"))
        self._machine = Machine(
            config.broker,
            config.hand_over,
            may_give_back if self._requeues else None,
            elsewhere=self._cluster.elsewhere if self._cluster is not None else None,
            started=self._state.started,
        )
        ports = PORTS | {parse_url(url).port for url in config.broker.urls}
        self._readiness = Readiness(ports, config.hand_over.ready_addresses, self.on_ready)
        self._notify = Notify()
        self._helper_is = HelperState(up=False, since=time.monotonic(), draining=None, free=None, losses=0)
        self._status = StatusSocket(config, self._look)
        self._exporter = Exporter(self._look) if config.metrics.listen else None
        self._asks = Asks(self._helper, self._readiness, self._answered)
        self._nothing_under_way = asyncio.Event()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._bugs = LimitedLog(LOG)
        self._job_log = JobLog()
        self._faults = {fault: LimitedLog(LOG) for fault in a.Fault}
        self._does: Mapping[type[a.Action], Callable[[Any], None]] = {
            a.HandOver: self._hand_over,
            a.Park: self._park,
            a.PutBack: self._put_back,
            a.Ack: lambda action: self._broker.ack(action.delivery),
            a.GiveBack: lambda action: self._broker.give_back(action.delivery),
            a.Ask: self._ask,
            a.Watch: self._watch,
            a.Unwatch: lambda action: self._readiness.unwatch(action.user),
            a.Tell: self._tell_others,
            a.CancelConsumer: lambda _: self._broker.cancel_consumer(),
            a.ResumeConsumer: lambda _: self._broker.resume_consumer(),
            a.Report: self._report,
        }

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        told_to_end = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told_to_end.set)
        self._broker.start()
        self._helper.start()
        if self._cluster is not None:
            self._cluster.start()
        self._status.start()
        if self._exporter is not None:
            self._exporter.start(self._config.metrics.listen)
        beating = [loop.create_task(self._beat()), loop.create_task(self._write_state())]
        self._notify.ready()
        LOG.info("event=listener_started queue=%r mode=%s", self._config.broker.queue, self._config.hand_over.mode)
        await told_to_end.wait()
        self._notify.stopping()
        for task in beating:
            task.cancel()
        await self._stop()
        LOG.info("event=listener_stopped")

    def on_delivery(self, delivery: Delivery) -> None:
        """Take a message of the queue."""
        now = time.monotonic()
        if delivery.large is not None:
            self._machine.too_large(delivery, delivery.large, now)
            self._soon()
            return
        try:
            identity = message_id(delivery.properties)
        except BadProperties as error:
            self._machine.no_job(delivery, "bad_properties", str(error), now)
        else:
            self._take(delivery, identity, now)
        self._soon()

    def keeps(self, size: int) -> bool:
        """Return whether a body over ``max_body`` that begins to arrive is to be kept."""
        return self._machine.keeps(size, time.monotonic())

    def on_deliveries_lost(self) -> None:
        """Take that the broker delivers again whatever is not settled."""
        self._machine.deliveries_lost(time.monotonic())
        self._soon()

    def on_published(self, token: int, outcome: Outcome) -> None:
        """Take the broker's answer to a message."""
        self._machine.published(token, outcome, time.monotonic())
        if not self._machine.settlement.under_way:
            self._nothing_under_way.set()
        self._soon()

    def on_publishable(self, can_publish: bool) -> None:  # noqa: FBT001 - the one thing it says
        """Take whether anything can be published."""
        self._machine.publishable(on=can_publish)
        self._soon()

    def on_listed(self, executors: Mapping[str, ExecutorEntry], draining: bool, free: int, asked: int) -> None:  # noqa: FBT001
        """Take what runs, after each connect to the helper."""
        self._helper_is = self._helper_is._replace(draining=draining, free=free)
        self._machine.listed(executors, asked, time.monotonic())
        self._perform()
        if self._cluster is not None:
            self._cluster.helper_listed(draining=draining, free=free)

    def on_exited(self, exited: Exited, heard: int) -> None:
        """Take the end of an executor."""
        LOG.info("event=executor_exited user=%s pid=%d status=%s", exited.user, exited.pid, exited.status)
        self._machine.exited(exited.user, exited.pid, heard, time.monotonic())
        self._soon()

    def on_helper(self, connected: bool) -> None:  # noqa: FBT001
        """Take whether the helper can be asked; the machine learns it from answers and lists."""
        known = self._helper_is._replace(up=connected, since=time.monotonic())
        lost = known._replace(draining=None, free=None, losses=known.losses + 1)
        self._helper_is = known if connected else lost
        if self._cluster is not None and not connected:
            self._cluster.helper_is_away()
        self._tell_status()

    def on_ready(self, user: str) -> None:
        """Take that a watched executor is connected."""
        self._machine.connected(user, time.monotonic())
        self._soon()

    def on_elsewhere(self, user: str) -> None:
        """Take that the first executor of the user is ready on another host, or that another host has one no more."""
        self._machine.elsewhere(user, time.monotonic())
        self._soon()

    def on_wanted(self, user: str) -> None:
        """Take that jobs on another host want the user's executor to run here."""
        self._machine.wanted(user, time.monotonic())
        self._soon()

    def _take(self, delivery: Delivery, identity: bytes | None, now: float) -> None:
        job = read_job(delivery.body, self._config.broker.max_body)
        if not isinstance(job, Job):
            self._machine.no_job(delivery, job.reason.value, job.detail, now)
        elif len(delivery.properties) + CAN_HANDLE_BYTES > self._broker.max_properties:
            self._machine.no_job(delivery, "bad_properties", "they fill a frame, canHandle has no room", now)
        else:
            # A circulating flood passes through the small table of jobs seen; what was given back has no mark.
            handed = can_handle(delivery.properties) or (self._requeues and delivery.redelivered)
            self._machine.job(job.user, delivery, digest(delivery.body, identity), now, handed=handed)

    def _soon(self) -> None:
        """Do what the machine wants once for all that this turn of the loop brings."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._perform)

    def _perform(self) -> None:
        self._scheduled = False
        if self._cluster is not None:
            self._cluster.host_fault(on=bool(self._machine.host.faults(time.monotonic())))
        for action in self._machine.take_actions(time.monotonic()):
            try:
                self._does[type(action)](action)
            except Exception as error:  # noqa: BLE001 - one action's bug ends that action
                self._bugs.warning("event=action_failed action=%s", type(action).__name__, cause=error)
                if isinstance(action, a.HandOver | a.Park | a.PutBack):
                    self._machine.published(action.token, Outcome.LOST, time.monotonic())
        for happened in self._machine.take_happened():
            self._job_log.tell(happened)
        self._set_timer()

    def _set_timer(self) -> None:
        """Have one timer, never later than the machine wants it; one that is early is set anew when it rings."""
        deadline = self._machine.next_deadline()
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = asyncio.get_running_loop().call_at(deadline, self._time_passed)

    def _time_passed(self) -> None:
        self._timer, self._timer_at = None, inf
        try:
            self._machine.time_passed(time.monotonic())
        except Exception as error:  # noqa: BLE001 - one user's bug; the others' times are kept
            self._bugs.warning("event=time_passed_failed", cause=error)
        self._perform()

    def _hand_over(self, action: a.HandOver) -> None:
        delivery = action.delivery
        self._broker.hand_over(action.token, delivery.body, handed_over(delivery.properties, self._broker.account))

    def _put_back(self, action: a.PutBack) -> None:
        delivery = action.delivery
        properties = put_back(delivery.properties, self._broker.account)
        if delivery.large is not None:
            self._broker.put_back_large(action.token, delivery.large, properties)
            return
        self._broker.put_back(action.token, delivery.body, properties)

    def _park(self, action: a.Park) -> None:
        delivery = action.delivery
        now = datetime.now(UTC).isoformat(timespec="seconds")
        came_by, limit = (delivery.exchange, delivery.routing_key), self._broker.max_properties
        properties = parked(delivery.properties, action.reason, action.detail, now, *came_by, limit)
        if delivery.large is not None:
            self._broker.park_large(action.token, delivery.large, properties)
        else:
            self._broker.park(action.token, delivery.body, properties)

    def _ask(self, action: a.Ask) -> None:
        """Ask the helper, unless another host is to run the executor."""
        not_here = self._cluster.asks(action.user, probe=action.probe) if self._cluster is not None else None
        if not_here is None:
            self._asks.ask(action)
        else:
            asyncio.get_running_loop().call_soon(self._answered, action.user, not_here, 0)

    def _tell_others(self, action: a.Tell) -> None:
        if self._cluster is not None:
            self._cluster.own_user(action.user, action.state)

    def _answered(self, user: str, answer: Answer, heard: int) -> None:
        if isinstance(answer, Started):
            self._helper_is = self._helper_is._replace(draining=False)
        elif isinstance(answer, Failed) and answer.reason is FailedReason.DRAINING:
            self._helper_is = self._helper_is._replace(draining=True)
        self._machine.answered(user, answer, heard, time.monotonic())
        self._perform()
        if self._cluster is not None and not isinstance(answer, NotHere):
            full = isinstance(answer, Failed) and answer.reason is FailedReason.AT_CAPACITY
            self._cluster.answered(user, executor=isinstance(answer, Started | Running), full=full)

    def _watch(self, action: a.Watch) -> None:
        before = self._asks.before(action.user)
        self._readiness.watch(action.user, action.uid, action.cgroup, before, time.monotonic())

    def _report(self, action: a.Report) -> None:
        self._faults[action.fault].warning(
            "event=%s user=%s %s advice=%r", action.fault.value, action.user, action.detail, a.ADVICE[action.fault]
        )

    async def _beat(self) -> None:
        pause = min(BEAT, self._notify.watchdog / 2) if self._notify.watchdog else BEAT
        while True:
            self._tell_status()
            await asyncio.sleep(pause)

    async def _write_state(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY)
            self._state.write()

    def _tell_status(self) -> None:
        is_now = self._helper_is
        helper = f"up, draining={is_now.draining} free={is_now.free}" if is_now.up else "away"
        held = self._machine.settlement
        reasons = [fault.reason for fault in self._machine.host.faults(time.monotonic())]
        host = f"; executors do not start: {', '.join(reasons)}" if reasons else ""
        self._notify.alive(f"{self._broker.state}; helper: {helper}; jobs held: {held.deliveries}{host}")

    def _look(self) -> Snapshot:
        connections, cluster = self._broker.connections(), None
        if self._cluster is not None:
            connections["hosts"], cluster = self._cluster.connection, self._cluster.view()
        machine, now = self._machine, time.monotonic()
        faults = machine.host.faults(now)
        return Snapshot(connections, self._helper_is, machine.settlement, machine.users, faults, cluster)

    async def _stop(self) -> None:
        """Finish what is under way; what is held goes back to the queue with the channel's end."""
        self._broker.cancel_consumer()
        self._machine.stop()
        if self._cluster is not None:
            self._cluster.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_WITHIN):
                while self._machine.settlement.under_way:
                    self._nothing_under_way.clear()
                    await self._nothing_under_way.wait()
        if left := self._machine.settlement.under_way:
            LOG.warning(
                "event=stopped_before_confirmed jobs=%d advice='they are delivered again, and may run twice'", left
            )
        await self._broker.close(CLOSE_WITHIN)
        if self._cluster is not None:
            await self._cluster.close(CLOSE_WITHIN / 2)
        self._status.close()
        if self._exporter is not None:
            self._exporter.close()
        self._readiness.close()
        self._asks.close()
        await self._helper.close()
        self._state.close(WRITE_WITHIN)  # nothing waits for the loop any longer
        self._notify.close()
