"""A directory service, a PAM stack and a file server that hang, fail or lie: only who depends on them notices.

All three are real: an NSS module in the helper's libc, a stack that libpam runs, a mount whose server never answers.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.lab.accounts import OsUser, end_processes
from tests.lab.directory_service import DirectoryService
from tests.lab.hanging_mount import hanging_mount
from tests.lab.helper_under_test import HelperUnderTest, children, is_gone, names_in, status_of
from tests.lab.processes import processes_of, wait_for

pytestmark = pytest.mark.needs("mount namespace")

SHORT = {"lookup_timeout": 1.0, "prepare_timeout": 1.5}
FREE = 70001
"""A uid and gid that nobody has here."""


class HelperThatAsksIt(HelperUnderTest):
    """The helper in a mount namespace where the switch and PAM's stack are the test's."""

    directory: DirectoryService

    def command(self, *words: str, stop_points: bool = False) -> list[str]:
        """Give the command line, in front of it what makes the namespace; ``exec`` keeps the pid."""
        return self.directory.seen_by(super().command(*words, stop_points=stop_points))

    def environment(self) -> dict[str, str]:
        """Give what systemd would set, and where the module is."""
        return {**super().environment(), **self.directory.environment}


class Laid(NamedTuple):
    helper: HelperThatAsksIt
    alice: OsUser
    bob: OsUser


@pytest.fixture(scope="module")
def laid_out() -> Iterator[Laid]:
    made = HelperThatAsksIt()
    try:
        made.create()
        made.directory = DirectoryService(made.installation.root / "directory")
        yield Laid(made, made.accounts.user("alice"), made.accounts.user("bob"))
    finally:
        made.remove()


@pytest.fixture
def helper(laid_out: Laid) -> Iterator[HelperThatAsksIt]:
    yield laid_out.helper
    laid_out.helper.reset()
    laid_out.helper.directory.reset()


@pytest.fixture
def alice(laid_out: Laid) -> OsUser:
    return laid_out.alice


@pytest.fixture
def bob(laid_out: Laid) -> OsUser:
    return laid_out.bob


def bob_is_served_meanwhile(
    helper: HelperUnderTest, bob: OsUser, user: str, record_property: Callable[[str, object], None]
) -> dict[str, object]:
    """Ask for a user whose start hangs, then for bob; give the answer for the first."""
    client = helper.client()
    asked = client.send(op="ensure", user=user)
    wait_for(lambda: any(r["user"] == user for r in helper.audit()), 30.0, "the request")
    assert client.ensure(bob.name)["result"] == "started"
    assert client.ensure(bob.name)["result"] == "running"
    assert not client.is_answered(asked)
    (result,) = [r for r in helper.audit() if r["event"] == "result" and r["user"] == bob.name and r["op"] == "ensure"][
        :1
    ]
    record_property("ms from request to executor beside a start that hangs", result["duration_ms"])
    reply = client.wait_for(asked)
    wait_for(lambda: helper.workers() == [], 30.0, "the worker's end")
    return reply


@pytest.mark.parametrize("how", ["hang", "groups-hang"])
def test_a_directory_that_never_answers_delays_nobody_else(
    helper: HelperThatAsksIt, bob: OsUser, how: str, record_property: Callable[[str, object], None]
) -> None:
    helper.directory.holds([f"remote {how} remote {FREE} {FREE} /nonexistent"])
    helper.start(limits=SHORT)
    reply = bob_is_served_meanwhile(helper, bob, "remote", record_property)
    assert (reply["result"], reply["reason"]) == ("failed", "lookup_timeout")
    assert helper.events("remote") == ["request", "result"]


def test_a_look_up_that_hangs_is_ended_with_what_it_has_started(helper: HelperThatAsksIt) -> None:
    """Here a child of the module's own, in the worker's process group, that has executed nothing."""
    helper.directory.holds([f"remote hang remote {FREE} {FREE} /nonexistent"])
    helper.start(limits=SHORT)
    client = helper.client()
    asked = client.send(op="ensure", user="remote")
    wait_for(lambda: any(children(pid) for pid in helper.workers()), 30.0, "the module's child")
    (worker,) = helper.workers()
    (child,) = children(worker)
    assert client.wait_for(asked)["reason"] == "lookup_timeout"
    wait_for(lambda: is_gone(worker) and is_gone(child), 30.0, "the end of the whole process group")


def test_a_pam_stage_that_hangs_delays_nobody_else(
    helper: HelperThatAsksIt, alice: OsUser, bob: OsUser, record_property: Callable[[str, object], None]
) -> None:
    """What pam_exec runs has a session of its own and lives on: here until the test's file is gone."""
    waits = helper.installation.logs / "waits"
    waits.touch()
    hangs = f"while [ -e {waits} ]; do sleep 0.1; done"
    helper.directory.account_stage(f'case "$PAM_USER" in {alice.name}) {hangs};; esac')
    helper.start(limits=SHORT)
    reply = bob_is_served_meanwhile(helper, bob, alice.name, record_property)
    assert (reply["result"], reply["reason"]) == ("failed", "lookup_timeout")
    waits.unlink()


def test_a_home_on_a_server_that_never_answers_delays_nobody_else(
    helper: HelperThatAsksIt, alice: OsUser, bob: OsUser, record_property: Callable[[str, object], None]
) -> None:
    """Only its user's start waits; what has an executor there already is told so at once."""
    alice.home.mkdir(mode=0o700)
    helper.start(limits=SHORT)
    try:
        with hanging_mount(alice.home):
            helper.kill()
            helper.start_again()  # in a namespace of its own, made after the mount
            reply = bob_is_served_meanwhile(helper, bob, alice.name, record_property)
            helper.kill()
    finally:
        wait_for(lambda: not alice.home.is_mount(), 30.0, "the mount's end")
    assert (reply["result"], reply["reason"]) == ("failed", "prepare_failed")
    assert not any(processes_of([alice.uid]))


@pytest.mark.parametrize("how", ["unavailable", "again"])
def test_a_directory_that_is_down_is_never_no_such_user(helper: HelperThatAsksIt, how: str) -> None:
    helper.directory.holds([f"remote {how} remote {FREE} {FREE} /nonexistent"])
    helper.start(limits=SHORT)
    assert helper.client().ensure("remote")["reason"] == "lookup_timeout"
    assert helper.client().ensure("nobody-knows-this")["reason"] == "unknown_user"


@pytest.mark.parametrize("no", ["unknown_user", "not_in_group", "account_expired"])
def test_a_no_that_sssd_may_have_said_for_want_of_its_server_is_none(
    helper: HelperThatAsksIt, alice: OsUser, no: str
) -> None:
    """Offline it knows no user, group or verdict that it had not kept. Here it is not even there to be asked."""
    user = "nobody-knows-this" if no == "unknown_user" else alice.name
    users = {"allow_groups": ["daemon"]} if no == "not_in_group" else {}
    if no == "account_expired":
        helper.directory.pam_denies()
    helper.start(users=users)
    assert helper.client().ensure(user)["reason"] == no, "where nobody asks SSSD it counts"
    helper.directory.switches_to("files sss kprtest")
    assert helper.client().ensure(user)["reason"] == "lookup_timeout"


def test_no_group_is_looked_up_twice_for_a_start(helper: HelperThatAsksIt, alice: OsUser) -> None:
    """A dozen absent groups are denied by default; each question may go over the network."""
    absent = ["absent-one", "absent-two"]
    helper.start(users={"deny_groups": absent})
    helper.directory.asked_groups()
    assert helper.client().ensure(alice.name)["result"] == "started"
    assert helper.directory.asked_groups() == absent


def test_a_group_with_members_for_a_megabyte_is_found(helper: HelperThatAsksIt, alice: OsUser) -> None:
    helper.start(users={"allow_groups": ["large"]})
    assert helper.client().ensure(alice.name)["reason"] == "not_in_group"


def test_a_pam_module_that_fails_parks_nobodys_jobs(helper: HelperThatAsksIt, alice: OsUser) -> None:
    helper.directory.account_stage("exit 1")
    helper.start()
    reply = helper.client().ensure(alice.name)
    assert (reply["result"], reply["reason"]) == ("failed", "lookup_timeout")


LIES = {
    "another name": ("{alice} {uid} {gid}", "denied_user"),
    "the name in capitals": ("REMOTE {uid} {gid}", "denied_user"),
    "a qualified name": ("remote@example.org {uid} {gid}", "denied_user"),
    "root's name": ("root {free} {free}", "denied_user"),
    "digits": ("70001 {free} {free}", "denied_user"),
    "root's uid": ("remote 0 {free}", "denied_user"),  # the installation's owner's, too
    "root's gid": ("remote {free} 0", "uid_out_of_range"),
    "uid -1": ("remote 4294967295 {free}", "uid_out_of_range"),
    "gid -1": ("remote {free} 4294967295", "uid_out_of_range"),
    "16-bit uid -1": ("remote 65535 {free}", "uid_out_of_range"),
    "nobody's uid": ("remote 65534 {free}", "uid_out_of_range"),
    "the listener's uid": ("remote {listener} {free}", "denied_user"),
    "the gate's uid": ("remote {gate} {free}", "denied_user"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_directory_that_answers_with_what_no_user_may_be_starts_nothing(
    helper: HelperThatAsksIt, alice: OsUser, case: str
) -> None:
    helper.start()
    uids = {"listener": status_of(helper.client().pid)["Uid"][0], "gate": status_of(helper.gate_pid())["Uid"][0]}
    answer, reason = LIES[case]
    answer = answer.format(alice=alice.name, uid=alice.uid, gid=alice.gid, free=FREE, **uids)
    helper.directory.holds([f"remote answer {answer} /nonexistent"])
    reply = helper.client().ensure("remote")
    assert (reply["result"], reply["reason"]) == ("refused", reason)
    given, uid, _ = answer.replace(" 4294967295", " -1").split()
    assert f"'remote': is '{given}', uid {uid} to the directory" in helper.log.read_text()
    assert helper.events("remote") == ["request", "result"]
    assert names_in(helper.installation.workspaces) == []
    wait_for(lambda: len(children(helper.pid)) == 1, 30.0, "nobody but the gate")


def test_who_was_deleted_and_made_again_with_another_uid_gets_nothing_of_the_old_ones(
    helper: HelperThatAsksIt,
) -> None:
    """Not the home, not the workspace, and while the old executor runs, no second one beside it."""
    homes = [helper.installation.homes / name for name in ("old", "new")]
    for number, home in enumerate(homes):
        home.mkdir(mode=0o700)
        os.chown(home, FREE + number, FREE + number)
    helper.directory.holds([f"remote answer remote {FREE} {FREE} {homes[0]}"])
    helper.start()
    client = helper.client()
    pid = client.ensure("remote")["pid"]
    try:
        helper.directory.holds([f"remote answer remote {FREE + 1} {FREE + 1} {homes[0]}"])
        assert client.ensure("remote")["pid"] == pid
        os.kill(pid, signal.SIGKILL)
        helper.wait_for_event(event="exited", user="remote")
        wait_for(lambda: client.ensure("remote").get("reason") == "home_conflict", 30.0, "the answer")
        helper.directory.holds([f"remote answer remote {FREE + 1} {FREE + 1} {homes[1]}"])
        wait_for(lambda: client.ensure("remote").get("reason") == "workspace_conflict", 30.0, "the answer")
        assert helper.events("remote").count("started") == 1
    finally:
        end_processes([FREE, FREE + 1])


def test_explain_shows_the_name_that_the_directory_gives_so_that_it_can_be_mapped(
    helper: HelperThatAsksIt, alice: OsUser
) -> None:
    """Open OnDemand's issue 1759: whoever sees only "denied" does not find the cause."""
    helper.directory.holds([f"remote answer {alice.name} {alice.uid} {alice.gid} {alice.home}"])
    helper.configure()
    found = json.loads(helper.run("--explain", "remote").stdout)
    assert (found["reason"], found["account"]["name"]) == ("denied_user", alice.name)
    assert "absent-group" not in found["deny_groups_absent"]
    helper.configure(users={"deny_groups": ["absent-group", "daemon"]})
    found = json.loads(helper.run("--explain", "remote").stdout)
    assert found["deny_groups_absent"] == ["absent-group"], "which denies nobody: perhaps it is spelt otherwise"
    helper.start(users={"map": {"remote": alice.name}})
    assert helper.client().ensure("remote")["result"] == "started"


def test_a_user_of_thousands_of_groups_has_them_all(helper: HelperThatAsksIt) -> None:
    """One that were left out could be the one that is denied, or the one that a share needs."""
    home = helper.installation.homes / "remote"
    home.mkdir(mode=0o700)
    os.chown(home, FREE, FREE)
    helper.directory.holds([f"remote many remote {FREE} {FREE} {home}"])
    helper.start()
    reply = helper.client().ensure("remote")
    try:
        assert reply["result"] == "started", helper.log.read_text()
        assert len(status_of(reply["pid"])["Groups"]) == 5001
    finally:
        end_processes([FREE])
