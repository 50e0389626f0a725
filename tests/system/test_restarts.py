"""Daemons are restarted, killed, stopped and rebooted; executors and jobs do not notice."""

import json
from collections import Counter

import pytest

from tests.lab.booted_site import HELPER, LISTENER, SLICE, BootedSite
from tests.lab.ldap import uid
from tests.lab.processes import wait_for


@pytest.mark.both_debians
@pytest.mark.parametrize("unit", [HELPER, LISTENER])
def test_a_restart_under_load_loses_no_job_and_ends_no_executor(site: BootedSite, unit: str) -> None:
    users = site.fresh_users(5)
    before = {user: report["pid"] for user, report in site.jobs_of(users).items()}
    jobs = []
    for number in range(200):
        jobs += [site.server.publish(user, seconds=0.01) for user in users]
        if number in {50, 120}:
            site.systemctl("restart", "--no-block", unit)
    reports = site.server.results(len(jobs), seconds=90)
    assert Counter(report["job"] for report in reports) == Counter(jobs)
    assert {report["user"]: report["pid"] for report in reports} == before
    (newcomer,) = site.fresh_users(1)
    assert site.job(newcomer)["user"] == newcomer
    assert len(site.executors()) == 6


DAMAGE = {
    "untouched": "true",
    "damaged": """for file in *; do case $((number = number + 1)) in
        1) : > $file ;;
        2) truncate -s 30 $file ;;
        3) head -c 300 /dev/urandom > $file ;;
        4) sed -i 's/"pid": [0-9]*/"pid": "x"/' $file ;;
        5) head -c 4000 /dev/zero | tr '\\0' '[' > $file; number=0 ;;
    esac; done""",
    "deleted": "rm -f *",
}


def runs_anew(site: BootedSite, old: int) -> bool:
    """Say whether the helper has taken up its work in another process."""
    return site.main_pid(HELPER) not in {0, old} and site.show(HELPER, "ActiveState") == "active"


@pytest.mark.both_debians
def test_a_killed_helpers_fifty_executors_are_all_adopted_whatever_became_of_its_state_files(site: BootedSite) -> None:
    """Three times over, the state files whole, then emptied, cut or filled with nonsense, then gone."""
    users = site.directory.names[100:150]
    before = {user: report["pid"] for user, report in site.jobs_of(users).items()}
    started = [
        (record["os_user"], record["uid"], record["pid"]) for record in site.audit() if record["event"] == "started"
    ]
    facts = {user: next(facts for facts in started if facts[2] == pid) for user, pid in before.items()}
    for damage in DAMAGE.values():
        old = site.main_pid(HELPER)
        kill = f"systemctl kill -s KILL {HELPER}"
        site.machine.run("sh", "-ec", f"cd /run/knime-peruser/executors; {kill}; {damage}")
        wait_for(lambda old=old: runs_anew(site, old), 30, "the restarted helper")
        assert {user: report["pid"] for user, report in site.jobs_of(users).items()} == before
        assert {entry.user: (entry.os_user, entry.uid, entry.pid) for entry in site.listed()} == facts
        assert len(site.executors()) == len(users)
    # and each end is still noticed
    victim = users[0]
    site.machine.run("kill", "-KILL", str(before[victim]))
    wait_for(lambda: site.audit(victim)[-1]["event"] == "exited", 10, "the record of the end")
    assert site.job(victim)["pid"] != before[victim]


@pytest.mark.parametrize("damage", ["untouched", "damaged"])
def test_an_executor_that_ends_while_the_helper_is_down_is_found_gone_and_its_children_are_ended(
    site: BootedSite, damage: str
) -> None:
    """A child that is left in the scope holds the workspace's lock."""
    quiet, with_child = site.fresh_users(2)
    before = site.jobs_of([quiet, with_child])
    site.shell(with_child, "setsid flock .metadata/.lock sleep 1000 >/dev/null 2>&1 &")
    site.systemctl("stop", HELPER)
    site.machine.run("kill", "-KILL", *(str(report["pid"]) for report in before.values()))
    site.machine.run("sh", "-ec", f"cd /run/knime-peruser/executors; {DAMAGE[damage]}")
    site.systemctl("start", HELPER)
    after = site.jobs_of([quiet, with_child])
    assert {after[user]["pid"] for user in after}.isdisjoint({before[user]["pid"] for user in before})
    ended = [record for record in site.audit(with_child) if record["event"] == "exited"]
    assert [record["pid"] for record in ended] == [before[with_child]["pid"]]
    assert {len(pids) for pids in site.executors().values()} == {1}


def test_an_executor_that_ignores_sigterm_does_not_lock_its_user_out(site: BootedSite) -> None:
    """Asked to end by the operator it is killed after ``stop_grace``; the user's next job gets a new one."""
    site.configure_helper(limits={"stop_grace": 1.0})
    site.configure_knime(sigterm="ignore")
    (user,) = site.fresh_users(1)
    before = site.job(user)
    assert json.loads(site.ask_helper(op="stop", user=user))["result"] == "stopping"
    wait_for(lambda: site.audit(user)[-1]["event"] == "exited", 5, "its end")
    assert site.job(user)["pid"] != before["pid"]


LEFT_BEHIND = """\
import fcntl, os, pathlib, pika, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.SIG_DFL)
connection = pika.BlockingConnection(pika.URLParameters(os.environ["KNIME_EXECUTOR_MSGQ"]))
lock = open(".metadata/.lock", "ab")
pathlib.Path("left-behind").touch()
fcntl.flock(lock, fcntl.LOCK_EX)
time.sleep(1000)
"""
"""What a launcher starts: it holds a broker connection of its own, and the workspace once the launcher has died."""


@pytest.mark.parametrize("sigterm", ["heeded", "ignored"])
def test_a_child_that_holds_the_workspace_and_a_broker_connection_is_gone_before_the_next_executor_starts(
    site: BootedSite, sigterm: str
) -> None:
    """A launcher was killed, what it had started lives on. Its connection never counts as the next one's."""
    site.configure_helper(limits={"stop_grace": 1.0})
    (user,) = site.fresh_users(1)
    before = site.job(user)
    site.machine.write("/opt/knime/left_behind.py", LEFT_BEHIND)
    start = f"setsid /usr/bin/python3 /opt/knime/left_behind.py {sigterm} >/dev/null 2>&1 &"
    site.shell(user, f"{start} until test -e left-behind; do sleep 0.1; done")
    (old,) = site.executors().values()
    assert len(old) == 2
    site.configure_knime(start_time=2.0)
    site.machine.run("kill", "-KILL", str(before["pid"]))
    wait_for(lambda: site.audit(user)[-1]["event"] == "exited", 10, "the record of the end")
    after = site.job(user)
    (now,) = site.executors().values()
    assert now == [after["pid"]]
    *_, ended, began = [record for record in site.audit(user) if record["event"] in {"exited", "started"}]
    assert [ended["event"], began["event"]] == ["exited", "started"]
    assert [record["event"] for record in site.audit(user)].count("exited") == 1
    lines = site.machine.journal("-u", LISTENER, f"--since=@{int(began['time'])}")
    (ready,) = (line for line in lines if f"user={user} state=probing was=starting" in line["MESSAGE"])
    assert int(ready["__REALTIME_TIMESTAMP"]) / 1e6 >= began["time"] + 2.0, "it has not connected before"


def test_stopping_the_slice_ends_all_executors_in_good_order(site: BootedSite) -> None:
    """With SIGTERM: the simulated executor's own exit status then is a JVM's, 143."""
    users = site.fresh_users(5)
    site.jobs_of(users)
    site.systemctl("stop", SLICE)
    assert site.executors() == {}
    wait_for(lambda: all(site.audit(user)[-1]["event"] == "exited" for user in users), 5, "the records of their ends")
    assert {site.audit(user)[-1]["reason"] for user in users} == {"status 143"}
    assert site.jobs_of(users, seconds=60).keys() == set(users)


@pytest.mark.both_debians
def test_after_a_reboot_the_jobs_that_ran_or_were_queued_run(site: BootedSite) -> None:
    """Both units are enabled; what the boot before left in the state directory is no executor."""
    known, unknown = site.fresh_users(2)
    before = site.job(known)
    site.systemctl("stop", LISTENER)
    for number in range(3):
        site.publish_shell(known, f"echo began >> ~/began-{number}; sleep 2; touch ~/ran-{number}")
    site.publish_shell(unknown, "touch ~/ran-0")
    home = site.machine.root / "home"
    wait_for((home / known / "began-0").exists, 10, "the first job")
    assert not (home / unknown).exists()
    site.reboot()
    ran = [*(home / known / f"ran-{number}" for number in range(3)), home / unknown / "ran-0"]
    wait_for(lambda: all(path.exists() for path in ran), 60, "the jobs of before the reboot")
    assert [path.stat().st_uid for path in ran] == [before["uid"]] * 3 + [uid(unknown)]
    assert len(site.executors()) == 2


def test_a_drained_host_starts_nobody_after_a_reboot_either_until_it_is_undrained(site: BootedSite) -> None:
    (user,) = site.fresh_users(1)
    site.machine.run("knime-peruser", "drain")
    try:
        site.reboot()
        site.publish_shell(user, "touch ~/ran")
        wait_for(lambda: any(one["reason"] == "draining" for one in site.audit(user)), 20, "the helper's answer")
        assert site.executors() == {}
    finally:
        site.machine.run("knime-peruser", "undrain")
    wait_for((site.machine.root / "home" / user / "ran").exists, 30, "the job")
