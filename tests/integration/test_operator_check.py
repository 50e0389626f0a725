"""``check`` as an administrator runs it: a real process, a real broker with its management interface, real daemons."""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType

import pika
import pytest

from broker_listener.strict_x509 import is_strict
from tests.lab import certificates
from tests.lab.accounts import OsUser
from tests.lab.broker_node import JOBS_EXCHANGE
from tests.lab.check_faults import LAUNCHER, unprovoked
from tests.lab.installation import CHECKOUT
from tests.lab.managed_broker import MONITOR, ManagedBroker
from tests.lab.processes import wait_for
from tests.lab.site import Site
from tests.lab.tls_front import tls_before, tls_with

PROFILE = Path(__file__).parents[2] / "etc/profiles"
THIS_MACHINE = (  # what a test machine is, and an installation is not to blame for
    "host.system", "host.clock", "host.remove_ipc", "workspaces.room", "temp.room", "audit.room",
)  # fmt: skip
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
    installed.tests += 1
    installed.mend()
    return installed


class Checked:
    """A whole installation, as README makes one, that ``check`` is run on."""

    def __init__(self, site: Site, node: ManagedBroker) -> None:
        self.site, self.node, self.installation = site, node, site.installation
        held = self.installation
        self.install_profile()
        ini = f"-profileLocation\n{held.etc}/profiles\n-profileList\nper-user\n-vmargs\n-Xmx1m\n"
        (held.knime_home / "knime.ini").write_text(f"{ini}-Dorg.knime.core.maxThreads=2\n")
        self.set_delay("30")
        (held.knime_home / "dropins").mkdir()
        (held.knime_home / "dropins/com.knime.enterprise.executor.autoshutdown_1.0.jar").touch()
        self.password_file = held.etc / "monitor-password"
        self.password_file.write_text(MONITOR)
        self.tests = 0
        self.notes = held.root / "provoked"
        """Where each warning and each fault was made, of all runs of the command."""
        self.program = held.root / "bin/noting"
        launcher = LAUNCHER.format(library=str(held.root / "lib"), checkout=str(CHECKOUT), notes=str(self.notes))
        self.program.write_text(f"#!{sys.executable} -I\n{launcher}", "utf-8")
        self.program.chmod(0o755)

    def mend(self) -> None:
        """Write both configurations and credentials anew; start what a test has ended, declare what it has deleted."""
        held = self.installation
        for daemon, name in (("listener", "broker-password"), ("helper", "executor-msgq")):
            shutil.copyfile(held.credentials(daemon) / name, held.etc / name)
            (held.etc / name).chmod(0o600)
        held.write_helper_toml()
        held.write_listener_toml()
        self.site.server.declare()
        for daemon in (self.site.helper, self.site.listener):
            try:
                assert daemon.pid
            except RuntimeError:
                daemon.start()
        wait_for(self.listener_is_there, 20.0, "the listener at the broker")

    def install_profile(self) -> None:
        """Copy the profile with modes of its own: in the checkout they are those of the umask of who cloned it."""
        profiles = self.installation.etc / "profiles"
        shutil.copytree(PROFILE, profiles)
        for path in (profiles, *profiles.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def set_delay(self, minutes: str) -> None:
        with (self.installation.knime_home / "knime.ini").open("a") as ini:
            ini.write(f"-Dcom.knime.executor.autoshutdown.delay_in_min={minutes}\n")

    def listener_is_there(self) -> bool:
        return bool(self.site.server.channel.queue_declare(self.site.server.queue, passive=True).method.consumer_count)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.program), *self.installation.operator("check", *words)[1:]]
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
    assert re.fullmatch(
        r"KNIME-PERUSER OK - all is well \| ok=\d+ warning=0 fault=0 not_asked=\d+ time=[\d.]+s\n", nagios.stdout
    )


def test_executors_that_may_publish_are_a_warning_until_it_is_accepted(sound: Checked) -> None:
    run = sound.managed("--nagios", *(word for name in THIS_MACHINE for word in ("--accept", name)))
    assert run.returncode == 1
    assert "WARNING - broker.executors_publish" in run.stdout
    assert sound.managed(*(word for name in THIS_MACHINE for word in ("--accept", name))).returncode == 1


def test_a_uid_that_another_account_has_now_is_a_fault(sound: Checked) -> None:
    """A deleted user's workspace and temp directory are not harmless once somebody else was given the uid."""
    gone = sound.site.accounts.user("gone")
    directories = (sound.installation.workspace(gone), sound.installation.temp / gone.name)
    for directory in directories:
        directory.mkdir()
        os.chown(directory, gone.uid, gone.gid)
    subprocess.run(["userdel", gone.name], check=True)
    assert sound.wrong()["workspaces.owners"][0] == "warning"
    heir = sound.site.accounts.user("heir", options=["--uid", str(gone.uid)])
    try:
        found = sound.wrong()
    finally:
        for directory in directories:
            directory.rmdir()
    for subject in ("workspaces.owners", "temp.owners"):
        level, seen = found[subject]
        assert level == "fault"
        assert f"nobody is called {gone.name}, and {heir.name} has uid {gone.uid} now" in seen


@contextmanager
def mounted(directory: Path, kind: str, options: str) -> Iterator[None]:
    """Have a file system there for a time."""
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", kind, "-o", options, "none", str(directory)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


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


def home_of(sound: Checked, user: OsUser) -> str:
    """Give what check says of a user's home: "ok", or the text of the fault."""
    level, seen = user_facts(sound, user.name)[1]["account.home"]
    return seen if level == "fault" else level


@pytest.mark.needs("mount")
def test_homes_and_workspaces_that_would_be_refused_are_told_before_a_job_is(sound: Checked) -> None:
    """As the helper decides: its own refusals are held by tests/integration/test_directories.py."""
    held = sound.installation
    user = sound.site.accounts.user("erin")
    assert home_of(sound, user) == "ok"
    held.write_helper_toml(users={"home_roots": ["/srv/elsewhere"]})
    assert "nor below users.home_roots (/srv/elsewhere): home_conflict" in home_of(sound, user)
    held.write_helper_toml()
    held.homes.chmod(0o777)
    assert f"{held.homes} can be changed by others than root: home_conflict" in home_of(sound, user)
    held.homes.chmod(0o755)
    deeper = sound.site.accounts.user("frank", options=["--home-dir", str(held.homes / "department/frank")])
    assert f"nor is {held.homes}/department: home_conflict" in home_of(sound, deeper)
    user.home.mkdir()
    assert "is no directory of uid" in home_of(sound, user)
    shutil.chown(user.home, user.uid, user.gid)
    assert home_of(sound, user) == "ok"
    user.home.chmod(0o777)
    assert "others can write it: home_conflict" in home_of(sound, user)
    user.home.rmdir()
    with mounted(held.workspace(user), "tmpfs", f"uid={user.uid}"):
        assert "is a mount point: workspace_conflict" in user_facts(sound, user.name)[1]["account.workspace"][1]
    held.workspace(user).rmdir()


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


@contextmanager
def policy(sound: Checked, pattern: str, definition: str, kind: str = "policy") -> Iterator[None]:
    """Have a policy, and wait until the management interface shows what it does."""
    name = "the-policy"
    sound.node.ctl(f"set_{kind}", "-p", sound.site.vhost, name, pattern, definition, "--apply-to", "queues")
    try:
        yield
    finally:
        sound.node.ctl(f"clear_{kind}", "-p", sound.site.vhost, name)
        wait_for(lambda: "broker.parked_policy" not in sound.wrong(), 20.0, "the end of the policy")


@pytest.mark.parametrize(
    ("kind", "pattern", "definition", "named"),
    [
        ("policy", ".*", '{"message-ttl": 86400000}', ("knime-jobs.parked: message-ttl=86400000 (policy the-policy)",)),
        ("policy", ".*", '{"expires": 3600000}', ("knime-jobs.parked: expires=3600000", ".marks: expires=3600000")),
        ("operator_policy", "^knime-peruser", '{"expires": 3600000}', (".taken: expires", "operator policy the-")),
        ("policy", "^knime-peruser", '{"max-length": 10}', (".marks: max-length=10", ".taken: max-length=10")),
        (
            "policy", ".*", '{"message-ttl": 86400000, "dead-letter-exchange": "gone"}', ("dead-letter-exchange=gone",),
        ),
    ],
    ids=["message-ttl", "expires", "operators", "max-length", "dead letters"],
)  # fmt: skip
def test_a_policy_that_empties_the_parked_queue_is_a_fault(
    sound: Checked, kind: str, pattern: str, definition: str, named: tuple[str, ...]
) -> None:
    """Or a queue beside it, whether it is there now or not; with the policy's name."""
    with policy(sound, pattern, definition, kind):
        wait_for(lambda: sound.wrong().get("broker.parked_policy", ("",))[0] == "fault", 20.0, "the fault")
        seen = sound.wrong()["broker.parked_policy"][1]
    assert [words for words in named if words not in seen] == [], seen


def test_a_policy_that_makes_the_parked_queue_small_is_a_warning(sound: Checked) -> None:
    """The queue refuses what is too much, by an argument that no policy overrides, so nothing is lost at once."""
    with policy(sound, "parked$", '{"max-length": 10, "overflow": "drop-head"}'):
        wait_for(lambda: "broker.parked_policy" in sound.wrong(), 20.0, "the warning")
        level, seen = sound.wrong()["broker.parked_policy"]
    assert (level, "takes no more than max-length=10" in seen) == ("warning", True), seen


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
            wait_for(lambda: "broker.consumers_here" in sound.wrong(), 30.0, "the consumer in the interface's figures")
            level, seen = sound.wrong()["broker.consumers_here"]
        finally:
            consumer.kill()
    assert level == "fault"
    assert f"uid {stranger.uid}" in seen


def test_a_certificate_that_is_not_to_be_trusted_and_one_that_ends_soon_are_named(sound: Checked) -> None:
    held, vhost = sound.installation, sound.site.vhost.replace("/", "%2F")
    ours = {"days": 90, "names": "IP:127.0.0.1"}
    with tls_before(sound.node.port, held.etc, **ours) as (port, ca_file):
        good = {"urls": [f"amqps://{sound.node.listener.name}@127.0.0.1:{port}/{vhost}"], "ca_file": str(ca_file)}
        held.write_listener_toml(broker=good)
        assert sound.wrong() == {}
        held.write_listener_toml(broker={"urls": good["urls"]})
        assert sound.wrong()["broker.tls"] == ("fault", "127.0.0.1: self-signed certificate")
        ca_file.chmod(0o600)
        held.write_listener_toml(broker=good)
        level, seen = sound.wrong()["broker.tls"]
        assert (level, f"{ca_file}: cannot be used: Permission denied" in seen) == ("fault", True), seen
        ca_file.chmod(0o644)
        plain = [url.replace(f":{port}", f":{sound.node.port}") for url in good["urls"]]
        held.write_listener_toml(broker={**good, "urls": plain})
        assert sound.wrong()["broker.tls"][0] == "fault"
    with tls_before(sound.node.port, held.etc, days=90, names="DNS:broker.example") as (port, ca_file):
        another = {"urls": [f"amqps://{sound.node.listener.name}@127.0.0.1:{port}/{vhost}"], "ca_file": str(ca_file)}
        held.write_listener_toml(broker=another)
        assert "mismatch" in sound.wrong()["broker.tls"][1]
    with tls_before(sound.node.port, held.etc, days=20) as (port, ca_file):
        soon = {"urls": [f"amqps://{sound.node.listener.name}@127.0.0.1:{port}/{vhost}"], "ca_file": str(ca_file)}
        held.write_listener_toml(broker=soon)
        assert sound.wrong() == {"broker.tls": ("warning", "127.0.0.1: its certificate ends in 19 days")}


def test_a_certificate_that_newer_pythons_refuse_is_named(sound: Checked) -> None:
    """Before the upgrade that brings the newer Python; where it is there already, it is a fault."""
    held, vhost = sound.installation, sound.site.vhost.replace("/", "%2F")
    by = certificates.authority(held.etc)
    lacking = certificates.issued(held.etc, by, "IP:127.0.0.1", "lacking", authorityKeyIdentifier=None)
    with tls_with(sound.node.port, lacking.key, lacking.cert) as port:
        url = f"amqps://{sound.node.listener.name}@127.0.0.1:{port}/{vhost}"
        held.write_listener_toml(broker={"urls": [url], "ca_file": str(by.cert)})
        found = sound.wrong()
    if is_strict(ssl.create_default_context()):
        assert found["broker.tls"] == ("fault", "127.0.0.1: Missing Authority Key Identifier")
    else:
        level, seen = found.pop("broker.tls_strict")
        assert (level, "Missing Authority Key Identifier" in seen) == ("warning", True)
        assert found == {"broker.tls": ("warning", "127.0.0.1: its certificate ends in 1 days")}


def test_a_url_with_which_executors_get_no_jobs_is_named(sound: Checked) -> None:
    url = sound.node.executors.at(sound.node.port, sound.site.vhost)
    msgq = sound.installation.etc / "executor-msgq"
    for text, seen in (("nonsense\n", "no URL"), (re.sub(":[^:@]*@", ":wrong@", url), "403")):
        msgq.write_text(text)
        level, found = sound.wrong()["broker.executors"]
        assert (level, seen in found) == ("fault", True), found
    msgq.write_text(f"{url}\n")
    sound.site.listener.stop()
    with_channel(sound, ("queue_delete", {"queue": sound.site.server.queue}))
    with_channel(sound, ("queue_declare", {"queue": sound.site.server.queue, "exclusive": True}))
    found = sound.wrong()
    with_channel(sound, ("queue_delete", {"queue": sound.site.server.queue}))
    assert "405" in found["broker.executors"][1]
    assert "405" in found["broker.queue"][1]


def test_a_parked_message_and_a_parked_queue_that_somebody_else_made_are_named(sound: Checked) -> None:
    parked = "knime-jobs.parked"
    sound.site.server.channel.basic_publish("", parked, b"not a job")
    wait_for(lambda: "broker.parked" in sound.wrong(), 30.0, "the parked message")
    assert sound.wrong()["broker.parked"] == ("warning", f"1 messages are parked in {parked}")
    sound.site.listener.stop()
    with_channel(sound, ("queue_delete", {"queue": parked}), ("queue_declare", {"queue": parked, "durable": True}))
    found = sound.wrong()["broker.parked"]
    with_channel(sound, ("queue_delete", {"queue": parked}))
    assert (found[0], "406" in found[1]) == ("fault", True)


@pytest.mark.parametrize(("argument", "policy", "limit"), [(50, 19, 19), (19, 50, 19), (0, None, 0), (None, 3, 3)])
def test_a_delivery_limit_below_20_is_a_fault(
    sound: Checked, argument: int | None, policy: int | None, limit: int
) -> None:
    """Of the queue's argument and its policy the lower one counts, which the broker tells some seconds later."""
    sound.site.listener.stop()
    queue, node = sound.site.server.queue, sound.site.broker
    arguments = {"x-queue-type": "quorum", **({} if argument is None else {"x-delivery-limit": argument})}
    with_channel(sound, ("queue_delete", {"queue": queue}))
    with_channel(sound, ("queue_declare", {"queue": queue, "durable": True, "arguments": arguments}))
    if policy is not None:
        definition = json.dumps({"delivery-limit": policy})
        node.ctl("set_policy", "-p", sound.site.vhost, "limit", f"^{queue}$", definition, "--apply-to", "queues")
    try:
        seen = f"after {limit} redeliveries"
        wait_for(lambda: seen in str(sound.wrong().get("broker.delivery_limit")), 30, "the limit that counts")
        assert sound.wrong()["broker.delivery_limit"][0] == "fault"
    finally:
        if policy is not None:
            node.ctl("clear_policy", "-p", sound.site.vhost, "limit")
        with_channel(sound, ("queue_delete", {"queue": queue}))


def test_flags_that_are_not_knimes_are_named(sound: Checked) -> None:
    sound.site.listener.stop()
    queue = sound.site.server.queue
    with_channel(sound, ("queue_delete", {"queue": queue}), ("exchange_delete", {"exchange": JOBS_EXCHANGE}))
    with_channel(sound, ("queue_declare", {"queue": queue, "durable": True}))
    with_channel(sound, ("exchange_declare", {"exchange": JOBS_EXCHANGE}))
    found = sound.wrong()
    with_channel(sound, ("queue_delete", {"queue": queue}), ("exchange_delete", {"exchange": JOBS_EXCHANGE}))
    assert found["broker.exchange_flags"][0] == "warning"
    assert "not durable" in found["broker.exchange_flags"][1]


def test_a_management_interface_that_does_not_answer_is_a_fault_and_no_question_was_asked(sound: Checked) -> None:
    sound.password_file.write_text("wrong")
    try:
        assert "401" in sound.wrong()["broker.management"][1]
    finally:
        sound.password_file.write_text(MONITOR)


def test_without_the_listeners_account_the_broker_is_not_asked_and_everything_else_is(sound: Checked) -> None:
    """The account is what this command becomes before it talks to a broker."""
    sound.installation.write_helper_toml(socket={"listener_user": "kpr-no-such-account"})
    run = sound.run("--json")
    found = {one["subject"]: (one["level"], one["seen"]) for one in json.loads(run.stdout)["findings"]}
    assert found["host.names"] == ("fault", "there is no account kpr-no-such-account")
    assert found["broker"][0] == "not asked"
    assert "broker.server" not in found


def test_a_user_of_whom_nothing_can_be_decided_is_held_and_a_helper_that_cannot_say_is_a_fault(sound: Checked) -> None:
    sound.installation.write_helper_toml(users={"allow_groups": ["kpr-no-such-group"]})
    level, seen = user_facts(sound, sound.site.accounts.user("dave").name)[1]["account"]
    assert (level, "jobs are held" in seen) == ("fault", True), seen
    sound.installation.write_helper_toml(limits={"nonsense": 1})
    level, seen = user_facts(sound, "anybody")[1]["account"]
    assert (level, "does not explain" in seen) == ("fault", True), seen
    assert "limits.nonsense" in sound.wrong()["daemons.knime-root-helper"][1]


def test_sockets_that_are_not_there_not_the_same_or_open_are_named(sound: Checked) -> None:
    held = sound.installation
    held.operator_socket.chmod(0o666)
    assert sound.wrong()["daemons.operator_socket"][0] == "fault"
    held.operator_socket.chmod(0o600)
    held.write_listener_toml(helper={"socket": "/run/elsewhere"})
    assert "/run/elsewhere" in sound.wrong()["daemons.socket"][1]
    sound.site.helper.stop()
    held.operator_socket.unlink(missing_ok=True)
    assert "No such file" in sound.wrong()["daemons.operator_socket"][1]


@pytest.mark.needs("mount")
def test_a_file_system_without_acls_and_one_that_is_full_are_named(sound: Checked) -> None:
    """A ramfs has none; a tmpfs of two inodes has no room."""
    held = sound.installation
    accepted = [name for name in THIS_MACHINE if not name.endswith(".room")]
    with mounted(held.workspaces, "ramfs", "mode=0755"), mounted(held.temp, "tmpfs", "nr_inodes=2,mode=0755"):
        (held.temp / "one").touch()
        run = sound.run("--json", *(word for name in accepted for word in ("--accept", name)))
    found = {one["subject"]: one["level"] for one in json.loads(run.stdout)["findings"]}
    assert found["workspaces.acl"] == "fault"
    assert found["temp.acl"] == "ok"
    assert found["temp.room"] == "warning"


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
    nagios = sound.run("--nagios")
    assert nagios.returncode == 2
    assert re.fullmatch(r"KNIME-PERUSER CRITICAL - [^|]* \| ok=\d+ warning=\d+ fault=[1-9]\d* .*s\n", nagios.stdout)


def test_who_is_not_root_is_told_what_was_not_asked_and_all_that_anybody_may_see(sound: Checked) -> None:
    somebody = sound.site.accounts.user("olga")
    words = ["setpriv", "--reuid", somebody.name, "--regid", somebody.name, "--init-groups", "--"]
    command = [*words, *sound.installation.operator("check", "--json", *ACCEPTED)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.defpath}, cwd="/")
    assert (run.returncode, run.stderr) == (0, "")
    found = {one["subject"]: one["level"] for one in json.loads(run.stdout)["findings"]}
    closed = ("helper", "knime-root-helper", "helper_socket", "operator_socket")
    for subject in (*(f"daemons.{name}" for name in closed), "broker.server", "broker.executors"):
        assert found[subject] == "not asked", found
    assert found["installation.owner"] == found["host.names"] == "ok"


def test_nagios_is_told_unknown_where_nothing_could_be_asked(sound: Checked) -> None:
    sound.installation.listener_toml.write_text("nonsense")
    run = sound.run("--nagios")
    assert run.returncode == 3
    assert run.stdout.startswith("KNIME-PERUSER UNKNOWN - ")
    assert sound.run().returncode == 2
    for words in (["--nonsense"], ["--server-config", "/nonexistent"]):
        assert sound.run(*words).returncode == 2
        run = sound.run("--nagios", *words)
        assert (run.returncode, words[0] in run.stdout) == (3, True), run.stdout


@pytest.mark.needs("mount")  # as some of the others do, whose findings it looks for
def test_no_warning_and_no_fault_is_without_one_of_these_tests(installed: Checked) -> None:
    """What a tree of files can show is held in the same way by tests/unit/test_operator_check.py."""
    theirs = [
        value for name, value in globals().items() if name.startswith("test_") and isinstance(value, FunctionType)
    ]
    if installed.tests < len(theirs) - 1:
        pytest.skip("it looks at what the others of this file provoked, and not all of them were run")
    lines = installed.notes.read_text("utf-8").split("\n")
    seen = {(module, int(line)) for module, _, line in (text.partition(" ") for text in lines) if line}
    assert unprovoked(seen, for_real=True) == []
