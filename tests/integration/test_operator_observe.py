"""``observe`` beside the simulated KNIME in each manner that the real one may have."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_listener.operator.management import named
from tests.lab.managed_broker import MONITOR, ManagedBroker
from tests.lab.processes import wait_for
from tests.lab.site import Site

SECONDS = "2.5"


@pytest.fixture(scope="module")
def installed(managed_broker: ManagedBroker) -> Iterator[Site]:
    """Give an installation whose daemons do not run: observe is for the time before."""
    site = Site(managed_broker)
    try:
        site.create()
        yield site
    finally:
        site.remove()


class Executors:
    """Executors of users, started as anybody would start them, with the simulated KNIME's manners."""

    def __init__(self, site: Site, directory: Path, **manners: Any) -> None:
        self.site, self.directory = site, directory
        site.installation.configure_knime(start_time=0.0, **manners)
        self._undo = ExitStack()

    def start(self, *users: str) -> None:
        for user in users:
            (self.directory / user).mkdir()
            account = self.site.broker.server
            environment = {
                "KNIME_EXECUTOR_MSGQ": account.at(self.site.broker.port, self.site.vhost),
                "KNIME_EXECUTOR_RESERVATION": f"(user = '{user}')",
            }
            program = str(self.site.installation.knime_home / "knime")
            process = subprocess.Popen(
                [program, "-data", str(self.directory / user)], env=environment, stdout=subprocess.DEVNULL
            )
            self._undo.callback(process.wait)
            self._undo.callback(process.kill)
        wait_for(lambda: self._consumers() == len(users), 30.0, "the executors at the queue")

    def _consumers(self) -> int:
        return int(self.site.server.channel.queue_declare("knime-jobs", passive=True).method.consumer_count)

    def stop(self) -> None:
        self._undo.close()
        wait_for(lambda: self._consumers() == 0, 30.0, "the end of the executors")
        self.site.server.channel.queue_purge("knime-jobs")


@pytest.fixture
def executors(installed: Site, tmp_path: Path) -> Iterator[Any]:
    """Start executors with their manners, KNIME Server having made its queue in the ones of ``server``."""
    with ExitStack() as undo:

        def start(*users: str, server: Mapping[str, Any] | None = None, **manners: Any) -> None:
            if server:
                undo.enter_context(made_as(installed, **server))
            started = Executors(installed, tmp_path, **manners)
            undo.callback(started.stop)
            started.start(*users)

        yield start


@contextmanager
def made_as(site: Site, **manners: Any) -> Iterator[None]:
    """Have KNIME Server make its queue and exchange in another manner, for a time."""
    server = site.server
    before = {name: getattr(server, name) for name in manners}

    def declare(values: dict[str, Any]) -> None:
        server.channel.queue_delete(server.queue)
        server.channel.exchange_delete(server.exchange)
        for name, value in values.items():
            setattr(server, name, value)
        server.declare()

    declare(manners)
    try:
        yield
    finally:
        declare(before)


def observed(site: Site, *, status: int, management: bool = True, account: bool = True, **job: Any) -> dict[str, Any]:
    """Observe while two jobs are published; ``job`` says how, as ``SimulatedServer.publish`` has it."""
    assert isinstance(site.broker, ManagedBroker)
    secrets = {"monitor": MONITOR, "server": site.broker.server.password, "listener": site.broker.listener.password}
    files = {name: site.installation.etc / f"{name}-password" for name in secrets}
    for name, file in files.items():
        file.write_text(secrets[name])
    (site.installation.etc / "broker-password").write_text(secrets["listener"])
    words = ["observe", "--json", "--for", SECONDS]
    if management:
        words += ["--management", site.broker.url, "--management-password-file", str(files["monitor"])]
    if account:
        words += ["--account", site.broker.server.name, "--password-file", str(files["server"])]
    begun = subprocess.Popen(
        site.installation.operator(*words),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PATH": os.defpath}, cwd="/",
    )  # fmt: skip
    if status != 4:
        interface = named(site.broker.url, files["monitor"], site.vhost, "")
        wait_for(lambda: len(interface.bindings_of(site.server.exchange)) == 2, 20.0, "the private queue's binding")
        for user in ("carol-who-has-none", "alice"):
            site.server.publish(user, **job)
    printed, said = begun.communicate(timeout=60)
    assert begun.returncode == status, said
    assert not any(secret in printed + said for secret in secrets.values())
    return dict(json.loads(printed)) if printed else {"said": said}


def test_executors_that_publish_a_job_anew_make_republish_fit(installed: Site, executors: Any) -> None:
    executors("alice", "bob")
    report = observed(installed, status=0)
    assert report["verdict"]["mode"] == "republish"
    assert report["traffic"]["put_back"]["canHandle false -> false"] > 1
    assert report["traffic"]["hop_seconds"]["median"] < 1.0
    assert report["traffic"]["body_keys"]["user: string"] == report["traffic"]["messages"]
    assert report["broker"]["queue"]["durable"] is True
    assert {"routing_key": "new-work", "destination": "knime-jobs", "destination_type": "queue"} in report["broker"][
        "bindings"
    ]
    (consumer,) = [name for name in report["broker"]["consumers"] if "prefetch 1" in name]
    assert report["broker"]["consumers"][consumer] == 2
    assert "carol" not in json.dumps(report)
    everything = report["broker"]
    assert everything["all_exchanges"]["knime-executor2serverknime-jobs: direct, durable"] == 1
    (own,) = [name for name in everything["all_queues"] if name.startswith("simulated-server-*: classic, exclusive")]
    assert everything["all_queues"][own] == 1  # RabbitMQ 4 adds the queue's type to its arguments
    assert everything["all_bindings"][
        "knime-executor2serverknime-jobs -- simulated-server-* -> queue simulated-server-*"
    ]
    assert sum(count for name, count in everything["all_consumers"].items() if name.startswith("knime-jobs: ")) == 2


def test_executors_that_give_a_job_back_make_requeue_fit(installed: Site, executors: Any) -> None:
    executors("alice", "bob", put_back="nack")
    report = observed(installed, status=0)
    assert report["verdict"]["mode"] == "requeue"
    assert report["redelivered"] > 1
    assert report["traffic"]["put_back"] == {}
    assert 'hand_over.mode = "republish"; "requeue" fits' in " ".join(report["verdict"]["remarks"])


def test_executors_of_both_manners_on_a_quorum_queue_make_republish_fit(installed: Site, executors: Any) -> None:
    executors("alice", "bob", server={"queue_type": "quorum"}, users={"bob": {"put_back": "nack"}})
    report = observed(installed, status=0)
    assert report["verdict"]["mode"] == "republish"
    assert report["broker"]["queue"]["type"] == "quorum"
    assert report["broker"]["all_queues"]["knime-jobs: quorum, durable, x-queue-type=quorum"] == 1
    assert sum(report["traffic"]["put_back"].values()) > 1
    assert report["redelivered"] > 1


def test_a_knime_as_old_as_nobody_has_it_any_more_is_told_with_what_it_lacks(installed: Site, executors: Any) -> None:
    """Its queue is not durable, its jobs are transient, without canHandle, and expire; executors keep what came."""
    executors("alice", "bob", server={"durable": False})
    report = observed(installed, status=0, can_handle=None, delivery_mode=1, expiration="60000")
    remarks = " ".join(report["verdict"]["remarks"])
    assert report["verdict"]["mode"] == "republish"
    assert report["traffic"]["put_back"].keys() == {"canHandle absent -> absent"}
    assert report["traffic"]["delivery_modes"] == {"transient": report["traffic"]["messages"]}
    for remark in ("had no canHandle", "jobs are transient", "the queue is not durable"):
        assert remark in remarks


def test_without_management_and_without_a_return_nothing_is_claimed(installed: Site) -> None:
    report = observed(installed, status=1, management=False)
    assert report["verdict"]["mode"] is None
    assert "--management" in report["verdict"]["why"]
    assert report["traffic"]["messages"] == 2
    assert installed.server.depth() == 2
    installed.server.channel.queue_purge("knime-jobs")


def test_the_listeners_own_account_may_not_and_is_told_what_to_do(installed: Site) -> None:
    report = observed(installed, status=4, management=False, account=False)
    assert "403" in report["said"]
    assert "see --help" in report["said"]
