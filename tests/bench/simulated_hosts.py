"""Hosts with listeners in simulated time: the real placement code decides, everything around it is made up.

Each host has its own ``broker_listener.hosts`` and ``placement``; they hear of each other by messages only, some
milliseconds late, in the order in which they were sent.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from broker_listener.host_messages import HostState, UserState, decode, encode
from broker_listener.hosts import Changes, Hosts

BEAT, DEAD_AFTER, ASK_AGAIN, TICK = 5.0, 15.0, 0.5, 0.25
LATENCY = (0.001, 0.004)
START = (10.0, 20.0)
"""Seconds that KNIME takes to start."""
IDLE = 1800.0
"""Seconds without a job after which KNIME's own plug-in ends an executor."""
HOUR = 3600.0
DAY = (8.0 * HOUR, 18.0 * HOUR)


@dataclass(slots=True)
class Machine:
    """A host: its listener's view of the others, its executors, the jobs that it holds."""

    name: str
    hosts: Hosts
    up: bool = True
    listening: bool = True
    sent_at: float = 0.0
    executors: dict[str, float] = field(default_factory=dict)
    """User -> since when it is ready, infinite while it starts."""
    last_job: dict[str, float] = field(default_factory=dict)
    held: dict[str, list[float]] = field(default_factory=dict)
    flush: bool = False


@dataclass(slots=True)
class Figures:
    """What is counted."""

    jobs: int = 0
    starts: int = 0
    too_many: int = 0
    published: int = 0
    delivered: int = 0
    bytes: int = 0
    busiest_second: int = 0
    ended: int = 0
    held: list[float] = field(default_factory=list)


class Day:
    """The simulation."""

    def __init__(self, hosts: int, users: int, wanted: int, capacity: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.users = [f"user{number:05}" for number in range(users)]
        self.wanted, self.capacity = wanted, capacity
        self.now, self.boots, self.order = DAY[0] - 60.0, 0, count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.machines: dict[str, Machine] = {}
        self.where: dict[str, set[str]] = {}
        self.figures = Figures()
        self.second, self.in_second = 0, 0
        for number in range(hosts):
            self.boot(f"host{number:02}")

    # What happens

    def at(self, when: float, what: Callable[[], None]) -> None:
        heappush(self.events, (when, next(self.order), what))

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = heappop(self.events)
            what()

    def boot(self, name: str) -> None:
        """Start a listener; executors of before run on."""
        self.boots += 1
        hosts = Hosts(name, f"{self.boots:016x}", self.wanted or None, DEAD_AFTER)
        old = self.machines.get(name)
        machine = self.machines[name] = Machine(name, hosts)
        if old is not None and old.up:
            machine.executors, machine.last_job = old.executors, old.last_job
        for user in machine.executors:
            hosts.own_user(user, UserState.READY, self.now)
        hosts.own_users_known()
        hosts.joined(self.now)
        self.beat(machine)
        self.tick(machine)

    def beat(self, machine: Machine) -> None:
        if self.is_current(machine):
            machine.hosts.beat(HostState.UP, max(0, self.capacity - len(machine.executors)))
            self.soon(machine)
            self.at(self.now + BEAT, lambda: self.beat(machine))

    def tick(self, machine: Machine) -> None:
        if self.is_current(machine):
            self.follow(machine, machine.hosts.time_passed(self.now))
            self.publish(machine)
            self.at(self.now + TICK, lambda: self.tick(machine))

    def is_current(self, machine: Machine) -> bool:
        return machine.up and machine.listening and self.machines[machine.name] is machine

    def job(self, user: str) -> None:
        """Let a job meet one of the listeners."""
        self.figures.jobs += 1
        machines = [machine for machine in self.machines.values() if machine.up and machine.listening]
        machine = self.random.choice(machines)
        machine.held.setdefault(user, []).append(self.now)
        if len(machine.held[user]) == 1:
            self.serve(machine, user)

    def serve(self, machine: Machine, user: str) -> None:
        """Do what a listener does for a user whose jobs it holds: hand over, or see to it that there is an executor."""
        if not self.is_current(machine) or user not in machine.held:
            return
        hosts = machine.hosts
        if user not in machine.executors and hosts.starts_here(user, self.now):
            self.start(machine, user)
        if hosts.placement.wanted_more(user):
            hosts.wants(user)
            self.soon(machine)
        if machine.executors.get(user, self.now + 1) <= self.now or hosts.placement.elsewhere(user):
            self.hand_over(machine, user)
        else:
            self.at(self.now + ASK_AGAIN, lambda: self.serve(machine, user))

    def hand_over(self, machine: Machine, user: str) -> None:
        live = [name for name in self.where.get(user, ()) if self.machines[name].up]
        for since in machine.held.pop(user):
            self.figures.held.append(self.now - since)
        for name in live:
            self.machines[name].last_job[user] = self.now

    def start(self, machine: Machine, user: str) -> None:
        self.figures.starts += 1
        live = self.where.setdefault(user, set())
        if self.wanted and len(live) >= self.wanted:
            self.figures.too_many += 1
        live.add(machine.name)
        machine.executors[user] = float("inf")
        machine.hosts.own_user(user, UserState.STARTING, self.now)
        self.soon(machine)
        takes = self.random.uniform(*START)
        self.at(self.now + takes, lambda: self.ready(machine.name, user))

    def ready(self, name: str, user: str) -> None:
        machine = self.machines[name]
        if not machine.up or user not in machine.executors:
            return
        machine.executors[user] = machine.last_job[user] = self.now
        if machine.listening:
            machine.hosts.own_user(user, UserState.READY, self.now)
            self.soon(machine)
            self.serve(machine, user)
        self.at(self.now + IDLE, lambda: self.idle(name, user))

    def idle(self, name: str, user: str) -> None:
        """End the executor if no job came for long enough."""
        machine = self.machines[name]
        if not machine.up or user not in machine.executors:
            return
        until = machine.last_job.get(user, 0.0) + IDLE
        if until > self.now:
            self.at(until, lambda: self.idle(name, user))
            return
        self.figures.ended += 1
        del machine.executors[user]
        self.where[user].discard(name)
        if machine.listening:
            machine.hosts.own_user(user, UserState.GONE, self.now)
            self.soon(machine)

    def follow(self, machine: Machine, changes: Changes) -> None:
        for user in changes.wanted:
            if user not in machine.executors:
                self.start(machine, user)
        for user in changes.users:
            if user in machine.held and machine.hosts.placement.elsewhere(user):
                self.hand_over(machine, user)

    def soon(self, machine: Machine) -> None:
        """Publish what is to be said after this turn of the loop."""
        if not machine.flush:
            machine.flush = True
            self.at(self.now, lambda: self.publish(machine))

    def publish(self, machine: Machine) -> None:
        machine.flush = False
        if not self.is_current(machine):
            return
        for message in machine.hosts.take_messages(self.now):
            body = encode(message)
            self.count(len(body))
            arrives = max(
                self.now + self.random.uniform(*LATENCY), machine.sent_at
            )  # in the order in which it was sent
            machine.sent_at = arrives
            self.at(arrives, lambda body=body, sender=machine.name: self.deliver(body, sender))  # type: ignore[misc]

    def deliver(self, body: bytes, sender: str) -> None:
        message = decode(body)
        assert message is not None
        for machine in list(self.machines.values()):
            if machine.name != sender and machine.up and machine.listening:
                self.figures.delivered += 1
                self.follow(machine, machine.hosts.heard(message, self.now))

    def count(self, size: int) -> None:
        self.figures.published += 1
        self.figures.bytes += size
        if int(self.now) != self.second:
            self.second, self.in_second = int(self.now), 0
        self.in_second += 1
        self.figures.busiest_second = max(self.figures.busiest_second, self.in_second)

    # Troubles

    def die(self, name: str) -> None:
        """Let a host die, with its executors; what its listener held comes to others through the broker."""
        machine = self.machines[name]
        machine.up = False
        for user in machine.executors:
            self.where[user].discard(name)
        self.give_back(machine)

    def stop_listener(self, name: str) -> None:
        machine = self.machines[name]
        machine.hosts.beat(HostState.LEAVING, 0)
        self.publish(machine)
        machine.listening = False
        self.give_back(machine)

    def give_back(self, machine: Machine) -> None:
        held, machine.held = machine.held, {}
        others = [other for other in self.machines.values() if other.up and other.listening]
        for user, times in held.items():
            other = self.random.choice(others)
            other.held.setdefault(user, []).extend(times)
            self.serve(other, user)
