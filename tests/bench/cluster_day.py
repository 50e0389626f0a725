"""A working day of more hosts and users than a test machine holds: the real placement code, in simulated time.

Hosts, executors, broker and clocks are simulated (``simulated_hosts``); who starts whom is decided by the listener's
own code. How it could lie: a message takes 1 to 4 ms and is never lost, and no listener is ever busy; what it shows is
who starts whom and how long jobs are held for it, not how quick a machine is. Run it as ``python -m
tests.bench.cluster_day`` (some minutes); it prints one table.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

from tests.bench.simulated_hosts import DAY, HOUR, Day


def plan(day: Day, sessions: int, jobs: int) -> None:
    """Spread the users' jobs over the day: most begin at nine, some at any time."""
    for user in day.users:
        for number in range(sessions):
            begin = day.random.gauss(9 * HOUR, 420) if number == 0 else day.random.uniform(*DAY)
            begin = min(max(begin, DAY[0]), DAY[1] - 60)
            for _ in range(jobs):
                day.at(begin, partial(day.job, user))
                begin += day.random.expovariate(1 / 300)
    names = list(day.machines)
    for number, name in enumerate(day.random.sample(names, min(5, len(names) - 1))):
        dies = (9 + 1.7 * number) * HOUR + 60
        day.at(dies, partial(day.die, name))
        day.at(dies + 1200, partial(day.boot, name))
    for number, name in enumerate(names):  # an upgrade of all, one after the other, at noon
        when = 12 * HOUR + 30 * number
        day.at(when, partial(_if_up, day, name, day.stop_listener))
        day.at(when + 8, partial(_if_up, day, name, day.boot))


def _if_up(day: Day, name: str, then: Callable[[str], None]) -> None:
    if day.machines[name].up:
        then(name)


def main() -> None:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--wanted", type=int, default=1, help="executors_per_user; 0 for all")
    parser.add_argument("--capacity", type=int, default=600, help="max_executors of a host")
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=5, help="of a session")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    day = Day(given.hosts, given.users, given.wanted, given.capacity, given.seed)
    plan(day, given.sessions, given.jobs)
    day.run(DAY[1])
    f, seconds = day.figures, DAY[1] - DAY[0]
    held = sorted(f.held)
    still = sum(len(times) for machine in day.machines.values() for times in machine.held.values())
    waited = [each for each in held if each > 0]
    rows = {
        "jobs, held at all": f"{f.jobs}, {len(waited)}",
        "executors started": f"{f.starts}",
        "of these one too many": f"{f.too_many}",
        "held of those held: median, p99, max": f"{statistics.median(waited):.1f} s, "
        f"{waited[int(len(waited) * 0.99)]:.1f} s, {waited[-1]:.1f} s",
        "still held at the end": f"{still}",
        "messages a second: mean, busiest": f"{f.published / seconds:.0f}, {f.busiest_second}",
        "bytes a second published": f"{f.bytes / seconds:.0f}",
        "deliveries a second, all hosts": f"{f.delivered / seconds:.0f}",
        "memory of all hosts' views": f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} MB",
        "simulated in": f"{time.perf_counter() - began:.0f} s",
    }
    print(f"{given.hosts} hosts, {given.users} users, executors_per_user {given.wanted or 'all'}, seed {given.seed}")
    for name, value in rows.items():
        print(f"  {name:40} {value}")


if __name__ == "__main__":
    main()
