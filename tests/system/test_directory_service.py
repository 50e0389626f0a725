"""The directory service as it is in life: away, slow, back, and changed by its administrators while executors run."""

import signal

import pytest

from tests.lab.booted_site import BootedSite
from tests.lab.ldap import ANALYSTS, EVERYBODY, FIRST_UID, uid, user_entry
from tests.lab.processes import wait_for

LOCAL = "local1"


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
    wait_for(lambda: site.audit(users[0]) and site.audit(users[0])[-1]["event"] == "result", 15, "an answer")
    wait_for(lambda: len(site.audit(users[0])) >= 4, 15, "another try")
    assert {record["reason"] for record in site.audit(users[0]) if record["event"] == "result"} == {"lookup_timeout"}
    site.systemctl("start", "slapd")
    wait_for(lambda: site.machine.status("getent", "passwd", users[0]) == 0, 90, "SSSD's return")
    reports = {report["user"]: report["uid"] for report in site.server.results(3, seconds=15)}
    assert reports == {user: uid(user) for user in users}
    assert site.server.depth("knime-jobs.parked") == 0


@pytest.mark.parametrize("hung", ["sssd_be", "sssd_nss", "sssd_pam"])
def test_while_a_part_of_sssd_hangs_others_are_served_and_its_users_run_when_it_goes_on(
    site: BootedSite, hung: str
) -> None:
    """Who has an executor is, in any case; a local user where the backend alone hangs: NSS asks SSSD for its groups."""
    running, waiting = site.fresh_users(2)
    site.configure_helper(limits={"lookup_timeout": 2.0})
    site.job(LOCAL)
    before = site.job(running)
    site.end(next(entry.pid for entry in site.listed() if entry.user == LOCAL))
    pids = [str(pid) for pid in site.pids_of(f"/usr/libexec/sssd/{hung}")]
    site.machine.run("kill", f"-{signal.SIGSTOP:d}", *pids)
    try:
        site.server.publish(waiting)
        wait_for(lambda: site.audit(waiting) and site.audit(waiting)[-1]["event"] == "result", 15, "an answer")
        assert site.audit(waiting)[-1]["reason"] == "lookup_timeout"
        assert site.job(running, seconds=3)["pid"] == before["pid"]
        if hung == "sssd_be":
            assert site.job(LOCAL, seconds=10)["user"] == LOCAL
    finally:
        site.machine.run("kill", f"-{signal.SIGCONT:d}", *pids)
    (report,) = site.server.results(1, seconds=60)
    assert report["uid"] == uid(waiting)
    assert site.server.depth("knime-jobs.parked") == 0


def test_a_user_who_is_added_after_the_first_look_up_runs_within_a_minute_with_no_operator(site: BootedSite) -> None:
    """SSSD keeps "no such user" for 15 s. Who stays unknown is parked, once."""
    assert site.machine.status("getent", "passwd", "u0900") == 2
    site.server.publish("u0900")
    wait_for(lambda: site.audit("u0900"), 10, "the first look-up")
    site.directory.add(user_entry("u0900", uid("u0900")))
    (report,) = site.server.results(1, seconds=60)
    assert report["uid"] == uid("u0900")


def test_who_was_moved_out_of_the_group_has_the_next_job_parked_and_the_running_executor_left_alone(
    site: BootedSite,
) -> None:
    user = next(name for name in site.directory.names[200:] if name.endswith("0") and not site.audit(name))
    site.configure_helper(users={"allow_groups": [ANALYSTS[0]]})
    before = site.job(user)
    site.directory.modify_group(ANALYSTS[0], f"delete: memberUid\nmemberUid: {user}")
    site.directory.forget_cached()
    assert site.job(user)["pid"] == before["pid"]
    site.end(before["pid"])
    site.server.publish(user)
    (parked,) = site.server.parked(1)
    assert parked.headers["x-peruser-reason"] == "not_in_group"


def test_an_expired_account_is_refused_and_parked(site: BootedSite) -> None:
    """The directory's shadowExpire; SSSD's access provider says it, and PAM's account stage alone hears it."""
    (user,) = site.fresh_users(1)
    site.directory.modify(user, "add: shadowExpire\nshadowExpire: 1000")
    site.directory.forget_cached()
    site.server.publish(user)
    (parked,) = site.server.parked(1)
    assert parked.headers["x-peruser-reason"] == "account_expired"


def test_a_user_who_is_deleted_while_the_executor_runs_gets_no_other(site: BootedSite) -> None:
    (user,) = site.fresh_users(1)
    site.configure_listener(hand_over={"unknown_grace": 2.0})
    before = site.job(user)
    site.directory.delete(user)
    site.directory.forget_cached()
    assert site.job(user)["pid"] == before["pid"]
    site.end(before["pid"])
    site.server.publish(user)
    (parked,) = site.server.parked(1, seconds=30)
    assert parked.headers["x-peruser-reason"] == "unknown_user"


def test_a_uid_given_to_another_person_starts_nothing_while_the_old_executor_runs(site: BootedSite) -> None:
    """``uid_in_use``: the job is held, and runs when the old executor has ended."""
    old, new = site.fresh_users(2)
    before = site.job(old)
    site.directory.delete(old)
    site.directory.modify(new, f"replace: uidNumber\nuidNumber: {uid(old)}")
    site.directory.forget_cached()
    site.server.publish(new)
    wait_for(lambda: any(record["reason"] == "uid_in_use" for record in site.audit(new)), 15, "the refusal")
    assert site.executors().keys() == {f"knime-executor-{old}.scope"}
    site.end(before["pid"])
    (report,) = site.server.results(1, seconds=30)
    assert (report["user"], report["uid"]) == (new, uid(old))
    assert site.server.depth("knime-jobs.parked") == 0


def test_a_primary_group_without_a_name_is_no_hindrance(site: BootedSite) -> None:
    site.directory.add(user_entry("u0901", FIRST_UID + 901, 59_999))
    report = site.job("u0901", report="full")
    assert report["gids"] == [59_999] * 4
    assert EVERYBODY[1] not in report["groups"]
