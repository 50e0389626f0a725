"""The benches by name, and what each stands on."""

from collections.abc import Callable
from typing import Final

from tests.bench import (
    executors,
    first_jobs,
    floods,
    footprint,
    helper,
    large_bodies,
    latency,
    scopes,
    shared_queue,
    starts,
    throughput,
    users_known,
)
from tests.bench.figures import Figure
from tests.bench.ground import Ground
from tests.lab.booted_site import BootedSite
from tests.lab.site import Site

OnSite = Callable[[Site, int], list[Figure]]
OnMachine = Callable[[BootedSite, int], list[Figure]]
Alone = Callable[[int], list[Figure]]
ON_A_SITE: Final[tuple[OnSite, ...]] = (
    throughput.full_queue,
    latency.hand_over,
    latency.while_others_start,
    users_known.users_known,
    executors.many_executors,
    shared_queue.two_hundred_jobs,
    shared_queue.ten_users,
    shared_queue.busy_user,
    first_jobs.new_users,
    first_jobs.hanging_look_up,
    footprint.memory,
    footprint.memory_over_time,
    footprint.broker_restart,
    footprint.poison_message,
    floods.four_spellings,
    floods.invented_names,
    large_bodies.four_large_bodies,
    large_bodies.fourteen_large_bodies,
)
ALONE: Final[tuple[Alone, ...]] = (helper.ensure, helper.memory_of_the_helper, starts.start, starts.burst)
ON_A_MACHINE: Final[tuple[OnMachine, ...]] = (scopes.start_in_a_scope, scopes.flooded_bus)
DOCSTRINGS: Final = {bench.__name__: bench.__doc__ or "" for bench in (*ALONE, *ON_A_MACHINE, *ON_A_SITE)}
"""What each measures, by name, in the order in which they run: last those that take as long as a bound lets them."""


def run(name: str, ground: Ground, runs: int) -> list[Figure]:
    """Run one bench; raises NotHere, or whatever it meets."""
    for on_site in ON_A_SITE:
        if on_site.__name__ == name:
            with ground.site() as site:
                return on_site(site, runs)
    for on_machine in ON_A_MACHINE:
        if on_machine.__name__ == name:
            with ground.machine() as machine:
                return on_machine(machine, runs)
    return next(bench for bench in ALONE if bench.__name__ == name)(runs)
