"""The stand-ins for KNIME do what is known of the real ones; what is tested on them stands on this."""

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.lab.accounts import OsUser
from tests.lab.processes import end, process_id, start, wait_for
from tests.lab.site import Site

pytestmark = pytest.mark.library

StartExecutor = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start_executor(site: Site) -> Iterator[StartExecutor]:
    """Start the simulated executor as a user, by hand, with the environment that the helper would give it."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(user: OsUser, knime_user: str | None = None) -> "subprocess.Popen[bytes]":
        directories = site.installation.workspace(user), site.installation.temp / user.name, user.home
        for directory in directories:
            directory.mkdir(mode=0o700)
            subprocess.run(["chown", f"{user.uid}:{user.gid}", directory], check=True)
        workspace, temp, home = map(str, directories)
        environment = {
            "HOME": home,
            "TMPDIR": temp,
            "KNIME_EXECUTOR_TEMP_DIR": temp,
            "KNIME_EXECUTOR_MSGQ": site.broker.executors.at(site.broker.port, site.vhost),
            "KNIME_EXECUTOR_RESERVATION": f"(user = '{knime_user or user.name}')",
        }
        command = [site.installation.knime_home / "knime", "-nosplash", "-data", workspace]
        log = site.installation.logs / "executor.log"
        process = start(command, environment=environment, log=log, user=user.name, umask=0o077)
        started.append(process)
        return process

    yield start_one
    for process in started:
        end(process_id(process.pid))
        process.wait()


def test_an_executor_runs_its_own_users_job_and_reports_what_it_may_do(
    site: Site, start_executor: StartExecutor
) -> None:
    alice = site.accounts.user("alice")
    start_executor(alice)
    job = site.server.publish(alice.name, report="full", probe=("/etc/shadow", "/etc/passwd"))
    (report,) = site.server.results()
    assert report["job"] == job
    assert report["uids"] == [alice.uid] * 4
    assert report["gids"] == [alice.gid] * 4
    assert report["groups"] == []
    assert report["no_new_privs"] == 1
    assert set(report["capabilities"].values()) == {"0000000000000000"}
    assert report["may"]["/etc/shadow"] == []
    assert report["may"]["/etc/passwd"] == ["read"]
    assert report["environment"]["KNIME_EXECUTOR_MSGQ"] == "(not shown)"
    assert report["new_file"]["mode"] == "0644"


@pytest.mark.parametrize("put_back", ["republish", "nack"])
def test_jobs_of_others_are_put_back_until_their_own_executor_takes_them(
    site: Site, start_executor: StartExecutor, put_back: str
) -> None:
    site.installation.configure_knime(put_back=put_back, start_time=0.1)
    alice, bob = site.accounts.user("alice"), site.accounts.user("bob")
    start_executor(alice)
    site.server.publish(alice.name)
    site.server.results()
    for number in range(20):
        site.server.publish(bob.name, headers={"number": number})
    assert site.server.further_results(0.3) == []
    start_executor(bob)
    results = site.server.results(20)
    assert {result["uid"] for result in results} == {bob.uid}
    assert len({result["job"] for result in results}) == 20


def test_putting_back_changes_can_handle_and_no_other_byte_of_the_properties(
    site: Site, start_executor: StartExecutor
) -> None:
    site.installation.configure_knime(start_time=0)
    alice, bob = site.accounts.user("alice"), site.accounts.user("bob")
    start_executor(alice)
    channel = site.server.channel
    site.server.publish(bob.name, can_handle=True, headers={"number": 7}, priority=3)
    site.server.publish(alice.name)
    site.server.results()
    start_executor(bob)
    (report,) = site.server.results()
    raw = bytes.fromhex(report["properties"])
    assert b"\x09canHandlet\0" in raw
    assert b"number" in raw
    assert channel.is_open


def test_a_second_executor_in_one_workspace_ends_with_a_message(site: Site, start_executor: StartExecutor) -> None:
    site.installation.configure_knime(start_time=0)
    alice = site.accounts.user("alice")
    first = start_executor(alice)
    site.server.publish(alice.name)
    site.server.results()
    as_alice = ["setpriv", "--reuid", str(alice.uid), "--regid", str(alice.gid), "--clear-groups", "--"]
    again = subprocess.run(
        [*as_alice, site.installation.knime_home / "knime", "-data", site.installation.workspace(alice)],
        env={"KNIME_EXECUTOR_RESERVATION": f"(user = '{alice.name}')"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "workspace in use" in again.stderr
    assert first.poll() is None


def test_an_executor_ends_on_sigterm_and_its_unfinished_job_goes_back_to_the_queue(
    site: Site, start_executor: StartExecutor
) -> None:
    site.installation.configure_knime(start_time=0)
    alice = site.accounts.user("alice")
    process = start_executor(alice)
    site.server.publish(alice.name)
    site.server.results()
    site.server.publish(alice.name, seconds=60)
    wait_for(lambda: site.server.depth() == 0, 30, "the job is taken")
    process.terminate()
    assert process.wait(60) == 143
    wait_for(lambda: site.server.depth() == 1, 30, "the job is back")


def test_a_rule_that_is_not_understood_ends_the_executor(site: Site) -> None:
    knime = site.installation.knime_home / "knime"
    rule = {"KNIME_EXECUTOR_RESERVATION": "(user = 'a' OR user = 'b')"}
    done = subprocess.run([knime, "-data", "/"], env=rule, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot read" in done.stderr
    assert json.dumps(rule["KNIME_EXECUTOR_RESERVATION"])[1:-1] in done.stderr
