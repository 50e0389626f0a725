"""Measure what the README's table says, in one run, on a private broker: python3 -m tests.bench.measure [NAME ...].

Ratios are taken within the run, since machines are noisy: the bare broker, a bare pika relay and a bare ZeroMQ round
trip are measured beside ours. Needs root and what tests/run installs; nothing here is an assertion.
"""

import signal
import sys
from collections.abc import Callable

from tests.bench import footprint, latency, throughput
from tests.bench.instruments import Rows
from tests.lab.accounts import run_prefix
from tests.lab.broker_node import BrokerNode
from tests.lab.site import LAB, Site

MEASUREMENTS: dict[str, Callable[[Site], Rows]] = {
    measure.__name__: measure
    for measure in (
        latency.hand_over,
        latency.users_known,
        latency.while_others_start,
        latency.new_users,
        latency.one_hanging_user,
        throughput.jobs_a_second,
        throughput.two_hundred_jobs,
        throughput.ten_users,
        throughput.busy_user,
        latency.ensure,
        footprint.memory,
        footprint.memory_over_time,
        footprint.broker_restart,
        footprint.poison_message,
    )
}


def main() -> None:
    """Run the measurements named on the command line, or all, and print one table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all is taken back
    wanted = sys.argv[1:] or list(MEASUREMENTS)
    node = BrokerNode(LAB / f"{run_prefix()}bench")
    rows: Rows = []
    try:
        node.create()
        node.start()
        for name in wanted:
            print(f"measuring {name} ...", file=sys.stderr)
            site = Site(node)
            try:
                site.create()
                rows += MEASUREMENTS[name](site)
            finally:
                site.remove()
    finally:
        node.remove()
        print("| what | seen | goal |\n| --- | --- | --- |")
        for row in rows:
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
