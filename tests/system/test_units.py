"""The units under systemd: watchdog, faults that are named, credentials, D-Bus, age-based cleaning, exposure."""

import re
import signal

import pytest

from tests.lab.access import acls
from tests.lab.booted_site import CHECKOUT, HELPER, LISTENER, SLICE, BootedSite
from tests.lab.ldap import uid
from tests.lab.processes import wait_for

UNITS = (HELPER, LISTENER)
TOML = {HELPER: "/etc/knime-peruser/helper.toml", LISTENER: "/etc/knime-peruser/listener.toml"}


def named_in_status(site: BootedSite, unit: str, *words: str) -> None:
    """Wait until ``systemctl status`` has all of these: the journal gets a line later than systemd the exit status."""

    def named() -> bool:
        status = site.machine.run("systemctl", "status", "--no-pager", "--full", unit, check=False)
        return all(word in status for word in words)

    wait_for(named, 10, f"{words} in the status of {unit}")


@pytest.mark.both_debians
@pytest.mark.parametrize("unit", UNITS)
def test_a_daemon_whose_loop_stands_still_is_restarted_by_the_watchdog_and_executors_live_on(
    site: BootedSite, unit: str
) -> None:
    (user, other) = site.fresh_users(2)
    site.drop_in(unit, "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    site.systemctl("restart", unit)
    site.wait_until_served()
    before = site.job(user)
    old = site.main_pid(unit)
    site.machine.run("kill", f"-{signal.SIGSTOP:d}", str(old))
    wait_for(lambda: site.main_pid(unit) not in {0, old}, 15, "the restart")
    assert site.job(user)["pid"] == before["pid"]
    assert site.job(other)["uid"] == uid(other)


def test_daemons_that_do_their_work_are_never_restarted_by_the_watchdog(site: BootedSite) -> None:
    """With the shipped interval of notices, however short an administrator makes the watchdog's."""
    for unit in UNITS:
        site.drop_in(unit, "[Service]\nWatchdogSec=3\n")
    site.systemctl("restart", *UNITS)
    pids = [site.main_pid(unit) for unit in UNITS]
    with pytest.raises(TimeoutError):
        wait_for(lambda: [site.main_pid(unit) for unit in UNITS] != pids, 7, "no restart")


@pytest.mark.both_debians
@pytest.mark.parametrize("unit", UNITS)
def test_a_bad_configuration_ends_with_2_is_named_in_the_status_and_is_not_tried_again(
    site: BootedSite, unit: str
) -> None:
    site.spoil(unit, "[users]\nmin_uid = 'many'\n" if unit == HELPER else "[broker]\nprefetch = 0\n")
    site.machine.run("systemctl", "restart", unit, check=False)
    wait_for(lambda: site.show(unit, "ActiveState") == "failed", 10, "the end of the unit")
    assert site.show(unit, "ExecMainStatus") == "2"
    restarts = site.show(unit, "NRestarts")
    named_in_status(site, unit, TOML[unit], "users.min_uid" if unit == HELPER else "broker.prefetch")
    with pytest.raises(TimeoutError):
        wait_for(lambda: site.show(unit, "NRestarts") != restarts, 2.5, "no restart")


@pytest.mark.both_debians
@pytest.mark.parametrize(("unit", "credential"), [(HELPER, "executor-msgq"), (LISTENER, "broker-password")])
def test_an_absent_credential_is_named_in_the_status(site: BootedSite, unit: str, credential: str) -> None:
    path = f"/etc/knime-peruser/{credential}"
    site.spoil(unit)
    (site.machine.root / path[1:]).unlink()
    site.machine.run("systemctl", "restart", unit, check=False)
    ended_with = "1" if unit == HELPER else "2"  # the helper is tried again: the file may come late
    wait_for(lambda: site.show(unit, "ExecMainStatus") == ended_with, 10, "the end of the unit")
    named_in_status(site, unit, path)


def restarts(site: BootedSite) -> list[int]:
    """Give how often each unit was restarted by systemd itself."""
    return [int(site.show(unit, "NRestarts")) for unit in UNITS]


def test_a_crash_loop_does_not_leave_the_host_dead(site: BootedSite) -> None:
    """A unit is given up at its fifth start in 10 s, where it does not say otherwise: systemd.unit(5)."""
    for unit in UNITS:
        site.drop_in(unit, "[Service]\nRestartSec=100ms\n")
    (user, other) = site.fresh_users(2)
    pid = site.job(user)["pid"]
    before = restarts(site)
    for _ in range(7):
        old = {unit: site.main_pid(unit) for unit in UNITS}
        site.machine.run("kill", "-KILL", *map(str, old.values()))
        wait_for(lambda old=old: all(site.main_pid(unit) not in {0, old[unit]} for unit in UNITS), 10, "a restart")
    assert restarts(site) == [number + 7 for number in before]
    site.wait_until_served()
    assert site.job(user)["pid"] == pid
    assert site.job(other)["uid"] == uid(other)


@pytest.mark.both_debians
def test_units_wait_for_network_users_remote_files_and_the_broker_and_say_what_they_do(site: BootedSite) -> None:
    """In the order of a boot, nor has systemd anything against what stands in them: systemd-analyze(1), verify."""
    after = {"network-online.target", "nss-user-lookup.target"}
    rest = {HELPER: {"remote-fs.target"}, LISTENER: {"rabbitmq-server.service", HELPER}}
    for unit in UNITS:
        assert after | rest[unit] <= set(site.show(unit, "After").split())
        assert site.show(unit, "StatusText")
    units = (f"/usr/lib/systemd/system/{unit}" for unit in (*UNITS, SLICE))
    said = site.machine.run("systemd-analyze", "verify", "--man=no", *units).splitlines()
    assert [line for line in said if "knime" in line] == []


def test_after_a_restart_of_dbus_a_new_users_job_runs(site: BootedSite) -> None:
    """At the first try: nothing of the old connection is kept. Later requests, for a job that came back, may follow."""
    first, second = site.fresh_users(2)
    site.job(first)
    site.systemctl("restart", "dbus")
    assert site.job(second)["uid"] == uid(second)
    first_result, *later = [record["decision"] for record in site.audit(second) if record["event"] == "result"]
    assert first_result == "started"
    assert set(later) <= {"running"}


def test_while_dbus_is_down_nothing_runs_outside_a_scope_and_no_job_is_lost(site: BootedSite) -> None:
    """``scope_unavailable``; when it is back, the job runs unaided."""
    (user,) = site.fresh_users(1)
    site.systemctl("stop", "dbus.socket", "dbus.service")
    site.server.publish(user)
    wait_for(lambda: site.audit(user) and site.audit(user)[-1]["event"] == "result", 10, "an answer")
    assert (site.audit(user)[-1]["decision"], site.audit(user)[-1]["reason"]) == ("failed", "scope_unavailable")
    assert site.executors() == {}
    assert {process for process in site.processes_in(HELPER) if process[0] == uid(user)} == set()
    site.systemctl("start", "dbus.socket", "dbus.service")
    (report,) = site.server.results(1, seconds=30)
    assert report["uid"] == uid(user)
    assert site.server.depth("knime-jobs.parked") == 0


def test_age_based_cleaning_spares_a_running_executors_files_and_takes_an_ended_ones(site: BootedSite) -> None:
    """Also after the helper was restarted: the executor itself holds the lock that makes the difference."""
    running, ended = site.fresh_users(2)
    before = site.jobs_of([running, ended])
    for user in (running, ended):
        site.shell(user, "touch -d '60 days ago' $TMPDIR/old; mkdir $TMPDIR/sub; echo > $TMPDIR/sub/f")
    site.machine.run("kill", "-KILL", str(before[ended]["pid"]))
    wait_for(lambda: len(site.executors()) == 1, 10, "the end of one")
    text = (site.machine.root / "usr/lib/tmpfiles.d/knime-peruser.conf").read_text(encoding="utf-8")
    assert "30d" in text
    site.machine.write("/run-clean.conf", re.sub(r"\b30d\b", "1s", text))
    temp = site.machine.root / "srv/knime/temp"
    for _ in range(2):
        wait_for(lambda: site.clean("/run-clean.conf") and not (temp / ended / "old").exists(), 10, "the cleaning")
        assert (temp / running / "old").exists()
        site.systemctl("restart", HELPER)
    assert site.job(running)["pid"] == before[running]["pid"]
    site.job(ended)
    assert ((temp / ended).stat().st_uid, (temp / ended).stat().st_mode & 0o7777) == (uid(ended), 0o700)
    assert acls(temp / ended)[1] == "u::rwx g::--- o::---"


@pytest.mark.parametrize("drop_in", [False, True])
def test_shared_memory_of_an_executor_outlives_its_users_logins_only_with_the_readmes_drop_in(
    site: BootedSite, *, drop_in: bool
) -> None:
    """A known limit: logind's RemoveIPC= takes it away when the user's last login ends, running executor or not."""
    (user,) = site.fresh_users(1)
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8").partition("```ini\n[Login]\n")[2].partition("```")[0]
    assert "RemoveIPC=no" in text
    site.machine.write(
        "/etc/systemd/logind.conf.d/test.conf", f"[Login]\nUserStopDelaySec=1\n{text if drop_in else ''}"
    )
    site.systemctl("restart", "systemd-logind")
    site.shell(user, "echo > /dev/shm/of-$LOGNAME")
    shared = f"/dev/shm/of-{user}"
    site.machine.run("systemd-run", "--wait", "-q", "-p", "PAMName=login", "-p", f"User={user}", "true")
    if drop_in:
        with pytest.raises(TimeoutError):
            wait_for(lambda: site.machine.status("test", "-e", shared) != 0, 4, "its end")
    else:
        wait_for(lambda: site.machine.status("test", "-e", shared) != 0, 15, "its end")
    (site.machine.root / "etc/systemd/logind.conf.d/test.conf").unlink()
    assert len(site.executors()) == 1
