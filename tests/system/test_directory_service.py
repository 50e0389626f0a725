"""The directory service as it is in life: away, slow, back, and changed by its administrators while executors run."""

import json
import signal
from collections.abc import Callable

import pytest

from tests.lab.booted_site import BootedSite
from tests.lab.ldap import ANALYSTS, EVERYBODY, FIRST_UID, Directory, uid, user_entry
from tests.lab.processes import wait_for

LOCAL = "local1"
AGAIN = 15
"""Seconds after `getent passwd` knows a user again within which the user's job runs."""


def runs_again(site: BootedSite, *users: str) -> None:
    """Wait until the directory knows the users again; from then on their jobs run in time, and none was parked."""
    wait_for(lambda: site.machine.status("getent", "passwd", *users) == 0, 90, "the directory's return")
    reports = {report["user"]: report["uid"] for report in site.server.results(len(users), seconds=AGAIN)}
    assert reports.keys() == set(users)
    assert all(reports[user] == uid(user) for user in users if user != LOCAL)
    assert site.server.depth("knime-jobs.parked") == 0


def first_answer(site: BootedSite, user: str) -> str:
    """Wait for the helper's first answer about a user; give its reason."""
    wait_for(lambda: any(record["event"] == "result" for record in site.audit(user)), 15, "an answer")
    return str(next(record["reason"] for record in site.audit(user) if record["event"] == "result"))


def test_of_a_hundred_users_only_the_members_of_an_allowed_group_run(site: BootedSite) -> None:
    users = site.directory.names[100:200]
    analysts = set(users) & set(site.directory.analysts)
    site.configure_helper(users={"allow_groups": [ANALYSTS[0]]})
    for user in users:
        site.server.publish(user)
    assert {report["user"] for report in site.server.results(len(analysts), seconds=30)} == analysts
    parked = site.server.parked(len(users) - len(analysts), seconds=30)
    assert {message.headers["x-peruser-reason"] for message in parked} == {"not_in_group"}
    assert len(site.executors()) == len(analysts)


def test_while_slapd_is_away_and_nothing_is_cached_no_job_is_parked_and_all_run_when_it_is_back(
    site: BootedSite,
) -> None:
    """SSSD says "no such user" at once then, and goes on for a while after slapd is back."""
    users = site.fresh_users(3)
    site.configure_listener(hand_over={"unknown_grace": 1.0})
    site.systemctl("stop", "slapd", "sssd")
    site.machine.run("sh", "-c", "rm -f /var/lib/sss/db/*.ldb /var/lib/sss/mc/*")
    site.systemctl("start", "sssd")
    for user in users:
        site.server.publish(user)
    first_answer(site, users[0])
    wait_for(lambda: len(site.audit(users[0])) >= 4, 15, "another try")
    assert {record["reason"] for record in site.audit(users[0]) if record["event"] == "result"} == {"lookup_timeout"}
    site.systemctl("start", "slapd")
    runs_again(site, *users)


def test_while_slapd_is_away_users_whom_sssd_has_judged_before_are_given_executors(site: BootedSite) -> None:
    """From its cache, in PAM's account stage, too."""
    judged, running = site.fresh_users(2)
    before = site.jobs_of([judged, running])
    site.end(before[judged]["pid"])
    site.systemctl("stop", "slapd")
    reports = site.jobs_of([judged, running], seconds=20)
    assert reports[running]["pid"] == before[running]["pid"] != reports[judged]["pid"]


def test_while_slapd_is_away_a_user_whom_sssd_knows_but_has_not_judged_yet_is_not_parked(site: BootedSite) -> None:
    """SSSD denies access offline to whom its cache has no verdict on (sssd-ldap(5), ldap_access_order)."""
    (known,) = site.fresh_users(1)
    wait_for(lambda: site.machine.status("getent", "passwd", known) == 0, 30, "the directory, online")
    site.systemctl("stop", "slapd")
    site.server.publish(known)
    assert first_answer(site, known) == "lookup_timeout"
    site.systemctl("start", "slapd")
    runs_again(site, known)


def test_while_sssd_is_stopped_no_job_is_parked_and_all_run_when_it_is_back(site: BootedSite) -> None:
    """NSS says "no such user" at once then, and SSSD does not say whether that counts."""
    running, waiting = site.fresh_users(2)
    site.configure_listener(hand_over={"unknown_grace": 1.0})
    before = site.job(running)
    site.systemctl("stop", "sssd")
    site.server.publish(waiting)
    assert first_answer(site, waiting) == "lookup_timeout"
    assert site.job(running)["pid"] == before["pid"]
    wait_for(lambda: len(site.audit(waiting)) >= 4, 15, "another try")
    site.systemctl("start", "sssd")
    runs_again(site, waiting)
    assert {record["reason"] for record in site.audit(waiting) if record["event"] == "result"} <= {
        "lookup_timeout",
        None,
    }


def test_restarts_of_sssd_under_load_park_nobodys_job(site: BootedSite) -> None:
    users = site.fresh_users(12)
    site.configure_listener(hand_over={"unknown_grace": 1.0})
    for some in (users[:4], users[4:8], users[8:]):
        for user in some:
            site.server.publish(user)
        site.systemctl("restart", "sssd")
    runs_again(site, *users)


HUNG = {
    "slapd": "/usr/sbin/slapd",
    **{name: f"/usr/libexec/sssd/{name}" for name in ("sssd_be", "sssd_nss", "sssd_pam")},
}


@pytest.mark.parametrize("hung", HUNG)
def test_while_a_part_of_the_directory_service_hangs_others_are_served_and_its_users_run_when_it_goes_on(
    site: BootedSite, hung: str
) -> None:
    """Who has an executor is, in any case. A local user waits, too, where SSSD hangs: NSS asks it for the groups."""
    running, waiting = site.fresh_users(2)
    site.configure_helper(limits={"lookup_timeout": 2.0})
    site.configure_listener(hand_over={"unknown_grace": 1.0})
    site.job(LOCAL)
    before = site.job(running)
    site.end(next(entry.pid for entry in site.listed() if entry.user == LOCAL))
    pids = [str(pid) for pid in site.pids_of(HUNG[hung])]
    site.machine.run("kill", f"-{signal.SIGSTOP:d}", *pids)
    try:
        site.server.publish(waiting)
        assert first_answer(site, waiting) == "lookup_timeout"
        assert site.job(running)["pid"] == before["pid"]
        site.server.publish(LOCAL)
        if hung == "slapd":  # SSSD notices, and goes on without it
            assert site.server.results(1, seconds=60)[0]["user"] == LOCAL
    finally:
        site.machine.run("kill", f"-{signal.SIGCONT:d}", *pids)
    runs_again(site, waiting, *([] if hung == "slapd" else [LOCAL]))


def test_a_user_who_is_added_after_the_first_look_up_runs_within_a_minute_with_no_operator(site: BootedSite) -> None:
    """Although SSSD keeps "no such user" for a while, which began with a look-up of before."""
    with site.directory.forgetting_unknown_users_after(5):
        wait_for(lambda: site.machine.status("getent", "passwd", "u0001") == 0, 30, "the directory, online")
        assert site.machine.status("getent", "passwd", "u0900") == 2
        site.server.publish("u0900")
        wait_for(lambda: site.audit("u0900"), 10, "the first look-up")
        site.directory.add(user_entry("u0900", uid("u0900")))
        (report,) = site.server.results(1, seconds=60)
    assert report["uid"] == uid("u0900")


def _out_of_the_group(directory: Directory, user: str) -> None:
    directory.modify_group(ANALYSTS[0], f"delete: memberUid\nmemberUid: {user}")


def _attribute(name: str, value: str) -> Callable[[Directory, str], None]:
    return lambda directory, user: directory.modify(user, f"replace: {name}\n{name}: {value}")


CHANGED: dict[str, tuple[Callable[[Directory, str], None], str]] = {
    "moved out of the group": (_out_of_the_group, "not_in_group"),
    "locked": (_attribute("pwdAccountLockedTime", "000001010000Z"), "account_expired"),
    "expired": (_attribute("shadowExpire", "1000"), "account_expired"),
    "given a uid of the system's": (_attribute("uidNumber", "999"), "uid_out_of_range"),
    "deleted": (Directory.delete, "unknown_user"),
}
"""What a directory's administrator does to a user, and why the user's next executor is refused then."""


def test_who_was_changed_keeps_the_running_executor_and_has_the_job_after_its_end_parked(site: BootedSite) -> None:
    """That an account is locked or expired says SSSD's access provider, and PAM's account stage alone hears it."""
    analysts = (name for name in site.directory.names[209:300:10] if not site.audit(name))
    users = dict(zip(analysts, CHANGED, strict=False))
    assert len(users) == len(CHANGED)
    site.configure_helper(users={"allow_groups": [ANALYSTS[0]]})
    site.configure_listener(hand_over={"unknown_grace": 2.0})
    before = {user: report["pid"] for user, report in site.jobs_of(list(users)).items()}
    for user, what in users.items():
        CHANGED[what][0](site.directory, user)
    site.directory.forget_cached()
    assert {user: report["pid"] for user, report in site.jobs_of(list(users)).items()} == before
    for user, pid in before.items():
        site.end(pid)
        site.server.publish(user)
    reasons = {json.loads(parked.body)["user"]: parked.headers["x-peruser-reason"] for parked in site.server.parked(5)}
    assert reasons == {user: CHANGED[what][1] for user, what in users.items()}
    assert site.executors() == {}


def test_a_uid_that_bears_another_name_now_starts_nothing_while_the_old_executor_runs(site: BootedSite) -> None:
    """Given to another person, or its owner renamed: ``uid_in_use``; the job runs when the old executor has ended."""
    gone, heir, renamed = site.fresh_users(3)
    new_name = f"x{renamed[1:]}"
    before = site.jobs_of([gone, renamed])
    site.directory.delete(gone)
    site.directory.modify(heir, f"replace: uidNumber\nuidNumber: {uid(gone)}")
    site.directory.rename(renamed, new_name)
    site.directory.forget_cached()
    for user in (heir, new_name):
        site.server.publish(user)
        assert first_answer(site, user) == "uid_in_use"
    assert site.executors().keys() == {f"knime-executor-{user}.scope" for user in before}
    assert site.job(renamed)["pid"] == before[renamed]["pid"]
    for report in before.values():
        site.end(report["pid"])
    reports = {report["user"]: report["uid"] for report in site.server.results(2, seconds=30)}
    assert reports == {heir: uid(gone), new_name: uid(renamed)}
    assert site.server.depth("knime-jobs.parked") == 0


def test_a_primary_group_without_a_name_is_no_hindrance(site: BootedSite) -> None:
    site.directory.add(user_entry("u0901", FIRST_UID + 901, 59_999))
    report = site.job("u0901", report="full")
    assert report["gids"] == [59_999] * 4
    assert EVERYBODY[1] not in report["groups"]
