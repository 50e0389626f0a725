"""Everything that can die dies at random moments while users' jobs arrive; then every job must have run.

One queue is shared by the listener and the executors of all users, which put each other's jobs back in both manners.
Listener, gate, supervisor, broker and executors are killed with SIGKILL, and the broker raises a memory alarm. The
seed and the numbers of a run are printed; CHAOS_SEED= repeats its choices. The nightly run has 10,000 jobs.
"""

import os
import random
import time
from collections import Counter

import pytest

from tests.bench.instruments import Sink, install_executor_that_only_connects, publish_jobs
from tests.lab.accounts import OsUser
from tests.lab.chaos import (
    Chaos,
    Ledger,
    Publisher,
    forget_lost_connections,
    held_jobs,
    install_light_executor,
    listener_status,
    queued_jobs,
)
from tests.lab.orphans import unreaped_orphans
from tests.lab.processes import wait_for
from tests.lab.site import Site

MAX_UNCONFIRMED = 100
"""Hand-overs under way at a time: what a killed listener may double."""
FEW = ["listener", "listener", "gate", "supervisor", "broker", "alarm", "executors"]
MANY = [*FEW, "supervisor", "executors"] * 4

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pika's, of connections lost half-way


@pytest.mark.parametrize("mode", ["republish", "requeue"])
def test_every_job_runs_in_its_own_users_executor_whatever_is_killed(site: Site, mode: str) -> None:
    """Nobody reaps what the killed helper leaves, as in a container whose PID 1 is the command."""
    with unreaped_orphans():
        survive(site, mode, users=12, jobs=500, per_second=60, plan=FEW, pause=0.4)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["republish", "requeue"])
def test_ten_thousand_jobs_of_200_users_run_whatever_is_killed(site: Site, mode: str) -> None:
    survive(site, mode, users=200, jobs=10_000, per_second=60, plan=MANY, pause=3.0)


@pytest.mark.nightly
@pytest.mark.parametrize("victim", ["listener", "broker"])
def test_what_is_killed_at_full_speed_loses_nothing_and_doubles_what_was_in_flight_alone(
    site: Site, victim: str
) -> None:
    """20,000 jobs for ready users, to a queue that nobody serves, so that what was handed over can be counted.

    In flight is also what the listener has acked and the broker has not taken, or not written, yet: with a broker that
    lags behind that is as much again, and more where it is the broker that is killed.
    """
    install_executor_that_only_connects(site)
    users = [site.accounts.user(f"u{number}").name for number in range(5)]
    site.start(listener={"broker": {"routing_key": "done", "max_unconfirmed": MAX_UNCONFIRMED}})
    sink = Sink(site)
    publish_jobs(site, users, len(users))
    sink.wait(len(users))
    site.listener.stop()
    sink.empty()
    publish_jobs(site, users, 20_000, delivery_mode=2)
    wait_for(lambda: site.server.depth() == 20_000, 20, "20,000 jobs in the queue")
    site.server.close()
    site.broker.restart()  # what it has not written it writes before it ends, so that no later kill of it loses one
    site.server.connect()
    sink.declare()
    site.listener.start()
    chaos = Chaos(site, [], random.Random(1))
    kills = 8 if victim == "listener" else 2
    for _ in range(kills):
        sink.wait(min(sink.count() + 300, 20_000))
        chaos.go_through([victim], 0.0)
    sink.wait(20_000)
    wait_for(lambda: listener_status(site)["held"]["jobs"] == 0 and site.server.depth() == 0, 20, "an empty queue")
    times = Counter(sink.bodies())
    doubled = times.total() - len(times)
    print(f"\n{victim} killed {kills} times at full speed: {len(times)} of 20,000 jobs, {doubled} of them doubled")
    assert len(times) == 20_000
    assert doubled <= kills * MAX_UNCONFIRMED * (3 if victim == "listener" else 30)


def survive(site: Site, mode: str, *, users: int, jobs: int, per_second: float, plan: list[str], pause: float) -> None:
    """Publish jobs, have everything of the plan happen meanwhile, wait until all is quiet, and look at what ran."""
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
    chance = random.Random(seed)
    made = start(site, mode, users)
    chaos = Chaos(site, [user.uid for user in made], chance)
    ledger = Ledger(site.installation.workspaces)
    turns = [made[number % users].name for number in range(jobs)]
    chance.shuffle(turns)
    publisher = Publisher([site.broker.server.at(site.broker.port, site.vhost)], turns, per_second)
    publisher.start()
    try:
        chaos.go_through(plan, pause)
        end = time.monotonic() + 60 + jobs / 10
        while (len(ledger.update()) < jobs or publisher.is_alive()) and time.monotonic() < end:
            time.sleep(0.2)
    finally:
        publisher.halted.set()
        publisher.join()
        forget_lost_connections()
    left = queued_jobs(site, 20 + jobs / 100)
    held, ran = held_jobs(site), ledger.update()
    extra = ran.total() - len(ran)
    copies = sum(count - 1 for count in Counter(run.job for run in ledger.runs if not run.redelivered).values())
    took = max(run.at for run in ledger.runs) - min(publisher.published.values())
    print(
        f"\nmode {mode}, CHAOS_SEED={seed}: {len(ran)} of {jobs} jobs of {users} users ran in {took:.0f} s; "
        f"{extra} runs too many ({copies} of them of copies), {chaos.in_flight + len(publisher.perhaps_twice)} were in "
        f"flight at the kills ({len(publisher.perhaps_twice)} of them at the publisher); ended: {dict(chaos.ended)}"
    )
    lost = {job: user for job, user in publisher.owners.items() if job in publisher.published and job not in ran}
    not_run = dict(Counter(lost.values()))
    # In this order: what is held or still in a queue is late, and must not be called lost.
    assert held == {}, f"the listener holds jobs; not run: {not_run}"
    assert left == {}, f"messages are left in the queues, (ready, not acked); not run: {not_run}"
    assert lost == {}, "jobs were lost"
    assert publisher.published.keys() == publisher.owners.keys(), "the publisher was not done in time"
    assert ledger.strangers == []
    assert all(run.user == publisher.owners[run.job] for run in ledger.runs)
    doubled_by_listener = 0 if mode == "requeue" else chaos.ended["listener"] * MAX_UNCONFIRMED
    doubled_by_broker = chaos.ended["broker"] * (MAX_UNCONFIRMED + users)
    assert extra <= doubled_by_listener + doubled_by_broker + chaos.ended["executor"] + len(publisher.perhaps_twice)


def start(site: Site, mode: str, users: int) -> list[OsUser]:
    """Make the users and start both daemons; every second executor puts back by nack."""
    made = [site.accounts.user(f"u{number}") for number in range(users)]
    nacks = {user.name: {"put_back": "nack"} for user in made[::2]}
    install_light_executor(site.installation, start_time=0.2, job_time=0.01, users=nacks)
    site.start(
        helper={"limits": {"max_executors": users + 10}},
        listener={"hand_over": {"mode": mode}, "broker": {"max_unconfirmed": MAX_UNCONFIRMED}},
    )
    return made
