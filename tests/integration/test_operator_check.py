"""``check`` as an administrator runs it: a real process, a real broker with its management interface, real daemons."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from tests.lab.accounts import OsUser
from tests.lab.broker_node import JOBS_EXCHANGE
from tests.lab.managed_broker import MONITOR, ManagedBroker
from tests.lab.processes import wait_for
from tests.lab.site import Site

PROFILE = Path(__file__).parents[2] / "etc/profiles"
THIS_MACHINE = (  # what a test machine is, and an installation is not to blame for
    "host.system", "host.clock", "host.remove_ipc", "workspaces.room", "temp.room", "audit.room",
)  # fmt: skip
pytestmark = pytest.mark.one_end  # a second node and its management interface take their time
ACCEPTED = [word for name in (*THIS_MACHINE, "broker.executors_publish") for word in ("--accept", name)]


@pytest.fixture(scope="module")
def installed(managed_broker: ManagedBroker) -> Iterator["Checked"]:
    site = Site(managed_broker)
    try:
        site.create()
        yield Checked(site, managed_broker)
    finally:
        site.remove()


@pytest.fixture
def sound(installed: "Checked") -> "Checked":
    """Give the installation, made sound again: one for all tests, since a broker's vhost takes seconds to go."""
    installed.mend()
    return installed


class Checked:
    """A whole installation, as README makes one, that ``check`` is run on."""

    def __init__(self, site: Site, node: ManagedBroker) -> None:
        self.site, self.node, self.installation = site, node, site.installation
        held = self.installation
        shutil.copytree(PROFILE, held.etc / "profiles")
        ini = f"-profileLocation\n{held.etc}/profiles\n-profileList\nper-user\n-vmargs\n-Xmx1m\n"
        (held.knime_home / "knime.ini").write_text(f"{ini}-Dorg.knime.core.maxThreads=2\n")
        self.set_delay("30")
        (held.knime_home / "dropins").mkdir()
        (held.knime_home / "dropins/com.knime.enterprise.executor.autoshutdown_1.0.jar").touch()
        self.password_file = held.etc / "monitor-password"
        self.password_file.write_text(MONITOR)

    def mend(self) -> None:
        """Write both configurations and credentials anew, and have both daemons and the jobs queue."""
        held = self.installation
        for daemon, name in (("listener", "broker-password"), ("helper", "executor-msgq")):
            shutil.copyfile(held.credentials(daemon) / name, held.etc / name)
            (held.etc / name).chmod(0o600)
        held.write_helper_toml()
        held.write_listener_toml()
        self.site.server.declare()
        self.site.helper.stop()
        self.site.helper.start()
        self.site.listener.stop()
        self.site.listener.log.unlink(missing_ok=True)
        self.site.listener.start()
        wait_for(self.listener_is_there, 20.0, "the listener at the broker")

    def set_delay(self, minutes: str) -> None:
        with (self.installation.knime_home / "knime.ini").open("a") as ini:
            ini.write(f"-Dcom.knime.executor.autoshutdown.delay_in_min={minutes}\n")

    def listener_is_there(self) -> bool:
        return "event=broker_up connection=consume" in self.site.listener.log_text()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = self.installation.operator("check", *words)
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.defpath}, cwd="/")

    def managed(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(*words, "--management", self.node.url, "--management-password-file", str(self.password_file))

    def wrong(self, *words: str) -> dict[str, tuple[str, str]]:
        """Give level and text of each finding that is a warning or fault, of a managed run."""
        run = self.managed("--json", *ACCEPTED, *words)
        assert run.returncode in {0, 1}, run.stderr
        assert MONITOR not in run.stdout + run.stderr
        found = json.loads(run.stdout)["findings"]
        return {one["subject"]: (one["level"], one["seen"]) for one in found if one["level"] in {"warning", "fault"}}


def test_a_sound_installation_is_well_in_words_in_json_and_for_nagios(sound: Checked) -> None:
    assert sound.wrong() == {}
    words = sound.run(*ACCEPTED)
    assert words.returncode == 0, words.stdout
    assert "not asked  broker.management" in words.stdout
    nagios = sound.managed("--nagios", *ACCEPTED)
    assert nagios.returncode == 0
    assert nagios.stdout.startswith("KNIME-PERUSER OK - all is well | ok=")
    assert len(nagios.stdout.splitlines()) == 1


def test_executors_that_may_publish_are_a_warning_until_it_is_accepted(sound: Checked) -> None:
    run = sound.managed("--nagios", *(word for name in THIS_MACHINE for word in ("--accept", name)))
    assert run.returncode == 1
    assert "WARNING - broker.executors_publish" in run.stdout


def user_facts(sound: Checked, user: str) -> tuple[int, dict[str, tuple[str, str]]]:
    run = sound.run("--json", *ACCEPTED, "--user", user)
    found = json.loads(run.stdout)["findings"]
    named = {one["subject"]: (one["level"], one["seen"]) for one in found if one["subject"].startswith("account")}
    return run.returncode, named


def test_a_user_is_told_as_the_helper_would_decide(sound: Checked) -> None:
    alice = sound.site.accounts.user("alice")
    status, found = user_facts(sound, alice.name.capitalize())
    assert status == 0
    assert found["account"] == ("ok", f"{alice.name.capitalize()} would get an executor as {alice.name}")
    assert found["account.home"][1].endswith("would be made")
    for user, reason in (("root", "denied_user"), ("kpr-nobody", "unknown_user"), ("a;b", "invalid_name")):
        status, found = user_facts(sound, user)
        assert status == 1
        assert found["account"][0] == "fault"
        assert reason in found["account"][1]


def test_a_workspace_that_would_keep_a_user_out_is_named(sound: Checked) -> None:
    bob = sound.site.accounts.user("bob")
    sound.installation.workspace(bob).mkdir()
    assert user_facts(sound, bob.name)[1]["account.workspace"][0] == "fault"
    level, seen = sound.wrong()["workspaces.owners"]
    sound.installation.workspace(bob).rmdir()
    assert level == "warning"
    assert f"{bob.name} is {bob.uid}" in seen


def with_channel(sound: Checked, *calls: tuple[str, dict[str, object]]) -> None:
    for name, arguments in calls:
        getattr(sound.site.server.channel, name)(**arguments)


def test_what_is_wrong_at_the_broker_is_named_one_by_one(sound: Checked) -> None:
    """A copy to somebody else, a lost binding, no queue, no exchange, no parked queue, nobody who consumes."""
    server = sound.site.server
    bound = {"queue": server.queue, "exchange": JOBS_EXCHANGE, "routing_key": "new-work"}
    with_channel(sound, ("queue_declare", {"queue": "tapped"}), ("queue_bind", {**bound, "queue": "tapped"}))
    assert sound.wrong()["broker.binding"] == ("warning", "tapped get a copy of every job")
    with_channel(sound, ("queue_unbind", bound))
    assert sound.wrong()["broker.binding"][0] == "fault"
    sound.site.listener.stop()
    assert "nobody consumes" in sound.wrong()["broker.queue"][1]
    with_channel(sound, ("queue_delete", {"queue": server.queue}), ("queue_delete", {"queue": "knime-jobs.parked"}))
    with_channel(sound, ("exchange_delete", {"exchange": JOBS_EXCHANGE}), ("queue_delete", {"queue": "tapped"}))
    found = sound.wrong()
    for subject in ("broker.queue", "broker.exchange", "broker.parked", "broker.binding", "broker.queue_flags"):
        assert found[subject][0] == "fault", found


def test_a_quorum_queue_with_a_delivery_limit_and_a_queue_that_drops_are_named(sound: Checked) -> None:
    sound.site.listener.stop()
    queue = sound.site.server.queue
    with_channel(sound, ("queue_delete", {"queue": queue}))
    quorum = {"x-queue-type": "quorum", "x-delivery-limit": 5, "x-message-ttl": 60000}
    with_channel(sound, ("queue_declare", {"queue": queue, "durable": True, "arguments": quorum}))
    found = sound.wrong()
    assert found["broker.delivery_limit"][0] == "fault"
    assert "message-ttl=60000" in found["broker.queue_limits"][1]
    with_channel(sound, ("queue_delete", {"queue": queue}), ("queue_declare", {"queue": queue}))
    found = sound.wrong()
    assert found["broker.queue_durable"][0] == "warning"
    assert "broker.delivery_limit" not in found
    with_channel(sound, ("queue_delete", {"queue": queue}))


def test_rights_that_lack_and_rights_that_are_too_wide_are_named(sound: Checked) -> None:
    node, vhost = sound.node, sound.site.vhost
    try:
        for account in (node.listener, node.executors):
            node.ctl("set_permissions", "-p", vhost, account.name, "^$", "^$", "^$")
        found = sound.wrong()
        for subject in ("broker.queue", "broker.exchange", "broker.parked", "broker.executors"):
            assert found[subject][0] == "fault", found
        for account in (node.listener, node.executors):
            node.ctl("set_permissions", "-p", vhost, account.name, ".*", ".*", ".*")
        found = sound.wrong()
        assert found["broker.listener_rights"][0] == "warning"
        assert found["broker.executors_default_exchange"][0] == "warning"
    finally:
        for account in (node.listener, node.executors):
            node.ctl("set_permissions", "-p", vhost, account.name, *account.permissions)


def test_executors_with_the_listeners_account_are_a_fault(sound: Checked) -> None:
    url = sound.node.listener.at(sound.node.port, sound.site.vhost)
    (sound.installation.etc / "executor-msgq").write_text(f"{url}\n")
    assert sound.wrong()["broker.executors"][0] == "fault"


def test_a_consumer_of_this_host_that_is_nobodys_is_named_with_its_uid(sound: Checked) -> None:
    stranger: OsUser = sound.site.accounts.user("stranger")
    url = sound.node.server.at(sound.node.port, sound.site.vhost)
    program = (
        "import pika, sys; c = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel();"
        "c.basic_consume('knime-jobs', print); print('up', flush=True); c.start_consuming()"
    )
    who = {"user": stranger.uid, "group": stranger.gid, "extra_groups": []}
    pythonpath = {"PYTHONPATH": str(Path(pika.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", program, url], stdout=subprocess.PIPE, env=pythonpath, cwd="/", **who
    ) as consumer:
        try:
            assert consumer.stdout is not None
            assert consumer.stdout.readline() == b"up\n"
            wait_for(lambda: "broker.consumers_here" in sound.wrong(), 15.0, "the consumer in the interface's figures")
            level, seen = sound.wrong()["broker.consumers_here"]
        finally:
            consumer.kill()
    assert level == "fault"
    assert f"uid {stranger.uid}" in seen


def test_daemons_that_are_down_a_wrong_password_and_a_dead_broker_are_faults_and_still_an_answer(
    sound: Checked,
) -> None:
    sound.site.helper.stop()
    (sound.installation.etc / "broker-password").write_text("wrong")
    found = sound.wrong()
    for subject in ("daemons.helper", "broker.server"):
        assert found[subject][0] == "fault", found
    assert "403" in found["broker.server"][1]
    sound.installation.write_listener_toml(broker={"urls": ["amqp://knime@127.0.0.1:1/%2F"]})
    assert "Connection refused" in sound.wrong()["broker.server"][1]


def test_nagios_is_told_unknown_where_nothing_could_be_asked(sound: Checked) -> None:
    sound.installation.listener_toml.write_text("nonsense")
    run = sound.run("--nagios")
    assert run.returncode == 3
    assert run.stdout.startswith("KNIME-PERUSER UNKNOWN - ")
    assert sound.run().returncode == 2
