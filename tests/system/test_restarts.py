"""Daemons are restarted, killed, stopped and rebooted; executors and jobs do not notice."""

import json
from collections import Counter

import pytest

from tests.lab.booted_site import HELPER, LISTENER, SLICE, BootedSite
from tests.lab.processes import wait_for


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


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_killed_helpers_thirty_executors_are_all_adopted_whatever_became_of_its_state_files(
    site: BootedSite, damage: str
) -> None:
    users = site.directory.names[100:130]
    before = {user: report["pid"] for user, report in site.jobs_of(users).items()}
    started = [
        (record["os_user"], record["uid"], record["pid"]) for record in site.audit() if record["event"] == "started"
    ]
    site.systemctl("kill", "-s", "KILL", HELPER)
    site.machine.run("sh", "-ec", f"cd /run/knime-peruser/executors; {DAMAGE[damage]}")
    wait_for(lambda: site.show(HELPER, "SubState") == "running", 10, "the restarted helper")
    after = {user: report["pid"] for user, report in site.jobs_of(users).items()}
    assert after == before
    assert {entry.user: (entry.os_user, entry.uid, entry.pid) for entry in site.listed()} == {
        user: next(facts for facts in started if facts[2] == pid) for user, pid in before.items()
    }
    assert len(site.executors()) == 30
    # and each end is still noticed
    victim = users[0]
    site.machine.run("kill", "-KILL", str(before[victim]))
    wait_for(lambda: site.audit(victim)[-1]["event"] == "exited", 5, "the record of the end")
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


@pytest.mark.parametrize("child", ["setsid", """setsid sh -c 'trap "" TERM; exec "$@"' -"""])
def test_a_child_that_holds_a_lock_is_gone_before_the_next_executor_starts(site: BootedSite, child: str) -> None:
    """A launcher was killed, what it had started lives on; one that ignores SIGTERM is killed, too."""
    site.configure_helper(limits={"stop_grace": 1.0})
    (user,) = site.fresh_users(1)
    before = site.job(user)
    site.shell(user, f"{child} flock .metadata/.lock sleep 1000 >/dev/null 2>&1 &")
    (old,) = site.executors().values()
    assert len(old) >= 2
    site.machine.run("kill", "-KILL", str(before["pid"]))
    after = site.job(user)
    (now,) = site.executors().values()
    assert now == [after["pid"]]
    assert [record["event"] for record in site.audit(user)].count("exited") == 1


def test_stopping_the_slice_ends_all_executors_in_good_order(site: BootedSite) -> None:
    """With SIGTERM: the simulated executor's own exit status then is a JVM's, 143."""
    users = site.fresh_users(5)
    site.jobs_of(users)
    site.systemctl("stop", SLICE)
    assert site.executors() == {}
    wait_for(lambda: all(site.audit(user)[-1]["event"] == "exited" for user in users), 5, "the records of their ends")
    assert {site.audit(user)[-1]["reason"] for user in users} == {"status 143"}
    assert site.jobs_of(users, seconds=60).keys() == set(users)


def test_after_a_reboot_the_next_job_runs(site: BootedSite) -> None:
    """Both units are enabled; what the boot before left in the state directory is no executor."""
    (user,) = site.fresh_users(1)
    before = site.job(user)
    site.server.publish(user)
    site.server.results(1)
    site.reboot()
    after = site.job(user)
    assert after["uid"] == before["uid"]
    assert len(site.executors()) == 1
