"""Three nodes of RabbitMQ, the jobs in a quorum queue, and its leader is killed under load: no job is lost.

How long nothing ran is printed. The listener and the executors know all three nodes, as docs/clustering advises.
"""

import os
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.lab.broker_cluster import BrokerCluster
from tests.lab.chaos import Ledger, Publisher, forget_lost_connections, install_light_executor
from tests.lab.processes import wait_for
from tests.lab.site import LAB, Site

USERS = 20
JOBS = 2000
PER_SECOND = 40

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[BrokerCluster]:
    made = BrokerCluster(LAB / f"kpr-cluster-{os.getpid()}")
    try:
        made.create()
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def site(cluster: BrokerCluster) -> Iterator[Site]:
    """Give a site whose jobs are in a quorum queue of three members."""
    made = Site(cluster)
    try:
        made.create()
        made.server.channel.queue_delete(made.server.queue)
        made.server.queue_type = "quorum"
        made.server.declare()
        msgq = made.installation.credentials("helper") / "executor-msgq"
        msgq.write_text(cluster.msgq(made.vhost) + "\n", encoding="ascii")
        install_light_executor(made.installation, job_time=0.01)
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize("mode", ["republish", "requeue"])
def test_a_quorum_queue_that_loses_its_leader_under_load_loses_no_job(
    cluster: BrokerCluster, site: Site, mode: str
) -> None:
    urls = cluster.urls(cluster.listener, site.vhost, with_password=False)
    site.start(listener={"broker": {"urls": urls}, "hand_over": {"mode": mode}})
    users = [site.accounts.user(f"u{number}").name for number in range(USERS)]
    ledger = Ledger(site.installation.workspaces)
    publisher = Publisher(cluster.urls(cluster.server, site.vhost), users * (JOBS // USERS), PER_SECOND)
    site.server.close()
    publisher.start()
    killed = []
    try:
        for share in (0.2, 0.6):
            wait_for(lambda share=share: len(ledger.update()) >= JOBS * share, 60, f"{share:.0%} of the jobs")
            leader = cluster.leader_of("knime-jobs", site.vhost)
            leader.kill()
            killed.append(time.time())
            wait_for(lambda: runs_until(ledger) > killed[-1] + 5, 60, "jobs that run without that node")
            leader.start()
        wait_for(lambda: len(ledger.update()) == JOBS, 60, "all jobs")
    finally:
        publisher.halted.set()
        publisher.join()
        forget_lost_connections()
        for node in cluster.nodes:
            if not node.is_running:
                node.start()
        site.server.connect()
    times = sorted(run.at for run in ledger.runs)
    pauses = [max(b - a for a, b in pairwise(times) if b > kill - 1 and a < kill + 10) for kill in killed]
    extra = len(times) - len(ledger.update())
    usual = max(b - a for a, b in pairwise(times) if a > killed[0] + 10 and b < killed[1])
    print(
        f"\nmode {mode}: the leader killed twice, nothing ran for {', '.join(f'{pause:.1f} s' for pause in pauses)} "
        f"(otherwise at most {usual:.1f} s); {len(ledger.update())} of {JOBS} jobs ran, {extra} runs too many, "
        f"{len(publisher.perhaps_twice)} published perhaps twice"
    )
    assert ledger.strangers == []
    wait_for(lambda: left_in(site) == {("knime-jobs", "0", "0"), ("knime-jobs.parked", "0", "0")}, 60, "empty queues")


def runs_until(ledger: Ledger) -> float:
    ledger.update()
    return max(run.at for run in ledger.runs)


def left_in(site: Site) -> set[tuple[str, ...]]:
    columns = ("name", "messages_ready", "messages_unacknowledged")
    rows = site.broker.ctl("list_queues", "-p", site.vhost, "--no-table-headers", *columns).splitlines()
    return {tuple(row.split("\t")) for row in rows if not row.startswith("simulated-server-")}
