"""What the host lacks costs no user a job: it is held, told as the host's fault, and runs soon after the mending.

Everything is real: the program or the prefix is taken away, the workspaces' file system is full, the program dies.
``max_start_attempts`` is 2, so that whatever is counted against a user parks the job at once.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.chaos import listener_status
from tests.lab.operators_command import run
from tests.lab.processes import wait_for
from tests.lab.site import Site

FEW = {"hand_over": {"max_start_attempts": 2}}
BAD_PROGRAM = "#!/bin/sh\nexit 1\n"


def host_of(site: Site) -> dict[str, Any]:
    return {fault["reason"]: fault for fault in listener_status(site)["host_faults"]}


def user_of(site: Site, name: str) -> dict[str, Any]:
    return next((user for user in listener_status(site)["users"] if user["user"] == name), {})


def failures(site: Site) -> int:
    """Return how many starts have failed, or died, by the helper's and the listener's logs."""
    return site.helper.log_text().count("failed user=") + site.listener.log_text().count("event=executor_exited")


def start(site: Site, **helper: Any) -> None:
    """Start both daemons; the parked queue is there then."""
    site.start(listener=FEW, helper=helper)
    site.listener.wait_for_log("event=broker_up connection=publish")


def parked(site: Site) -> int:
    return site.server.depth("knime-jobs.parked")


def all_run_within(site: Site, jobs: list[str], seconds: float = 30.0) -> float:
    """Return after how many seconds the last of the jobs has run, each of them once."""
    begun = time.monotonic()
    reports = site.server.results(len(jobs), seconds=seconds)
    assert sorted(report["job"] for report in reports) == sorted(jobs)
    return time.monotonic() - begun


@contextmanager
def away(path: Path) -> Iterator[Callable[[], object]]:
    """Have a file away, until the function that is given is called."""
    aside = path.with_name(f"{path.name}.away")
    path.rename(aside)
    yield lambda: aside.rename(path)


@contextmanager
def full(directory: Path) -> Iterator[Callable[[], object]]:
    """Have a file system without a free inode there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2,mode=0711", "kpr-test", str(directory)], check=True)
    directory.joinpath(".full").touch()
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,nr_inodes=10000", str(directory)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


FAULTS = {
    "program": ("spawn_failed", lambda site: away(site.installation.knime_home / "knime")),
    "prefix": ("spawn_failed", lambda site: away(prefix_of(site))),
    "workspaces": ("prepare_failed", lambda site: full(site.installation.workspaces)),
}


def prefix_of(site: Site) -> Path:
    return site.installation.root / "bin/prefix"


def start_with_prefix(site: Site) -> None:
    prefix = prefix_of(site)
    prefix.write_text('#!/bin/sh\nexec "$@"\n', encoding="ascii")
    prefix.chmod(0o755)
    start(site, executor={"prefix": [str(prefix)]})


@pytest.mark.parametrize("what", ["program", "prefix", pytest.param("workspaces", marks=pytest.mark.needs("mount"))])
def test_host_fault_parks_nobody_and_is_over_soon(site: Site, what: str) -> None:
    """Three new users' jobs are held for as long as it lasts, told as the host's, and run within 30 s."""
    reason, broken = FAULTS[what]
    start_with_prefix(site) if what == "prefix" else start(site)
    users = [site.accounts.user(f"u{number}").name for number in range(3)]
    with broken(site) as mend:
        jobs = [site.server.publish(user) for user in users]
        wait_for(lambda: failures(site) >= 7 or parked(site), 90, "three failed starts of one of them at least")
        assert parked(site) == 0
        assert listener_status(site)["held"]["jobs"] == 3
        fault = host_of(site)[reason]
        assert fault["users"] == 3
        assert abs(fault["since"] - time.time()) < 100
        assert {user_of(site, user)["blame"] for user in users} == {"host"}
        mend()
        print(f"\n{what}: the last ran {all_run_within(site, jobs):.1f} s after the mending")
        assert host_of(site) == {}
        assert parked(site) == 0


def test_host_deaths_of_three_users_park_nobody(site: Site) -> None:
    """A program that dies at once, such as one that is half upgraded."""
    site.start(listener={"hand_over": {"max_start_attempts": 4}})
    site.listener.wait_for_log("event=broker_up connection=publish")
    program = site.installation.knime_home / "knime"
    good = program.read_text(encoding="utf-8")
    program.write_text(BAD_PROGRAM, encoding="ascii")
    users = [site.accounts.user(f"u{number}").name for number in range(3)]
    jobs = [site.server.publish(user) for user in users]
    wait_for(lambda: failures(site) >= 13 or parked(site), 90, "five deaths of one of them at least")
    assert parked(site) == 0
    assert host_of(site)["died_before_ready"]["users"] == 3
    program.write_text(good, encoding="utf-8")
    print(f"\ndeaths: the last ran {all_run_within(site, jobs, 70.0):.1f} s after the mending")
    assert host_of(site) == {}


def test_user_whose_executor_always_dies_is_parked_beside_others(site: Site) -> None:
    """One user's own fault stays that user's: others start in between, and the jobs are parked."""
    start(site)
    program = site.installation.knime_home / "knime"
    good = program.read_text(encoding="utf-8")
    bad = site.accounts.user("bad").name
    guard = f'#!/bin/sh\n[ $LOGNAME = {bad} ] && exit 1\nexec {program}.good "$@"\n'
    program.with_name("knime.good").write_text(good, encoding="utf-8")
    program.with_name("knime.good").chmod(0o755)
    program.write_text(guard, encoding="ascii")
    site.server.publish(bad)
    (message,) = site.server.parked(1)
    assert message.headers["x-peruser-reason"] == "start_failed"
    site.server.publish(site.accounts.user("good").name)
    assert site.server.results(1)
    assert host_of(site) == {}


def test_one_user_s_failure_is_told_as_the_user_s(site: Site) -> None:
    """A limit that the kernel does not allow, of one group alone: others start, nothing is parked."""
    group = site.accounts.group("team")
    bad, good = site.accounts.user("bad", groups=[group]).name, site.accounts.user("good").name
    too_many = {"executor": {"group_limits": [{"group": group, "nofile": 1_000_000_000}]}}
    start(site, **too_many)
    job = site.server.publish(bad)
    wait_for(lambda: failures(site) >= 3 or parked(site), 60, "failed starts")
    site.server.publish(good)
    assert site.server.results(1)
    assert (user_of(site, bad)["blame"], host_of(site)) == ("user", {})
    assert parked(site) == 0
    site.helper.stop()
    site.installation.write_helper_toml()
    site.helper.start()
    all_run_within(site, [job])


def told_by_commands(site: Site) -> None:
    """See that status and check tell it, to a person and to a program."""
    socket = ("--status-socket", str(site.installation.status_socket))
    page = run(site.installation, "status", *socket)
    (line,) = [line for line in page.out.splitlines() if line.startswith("host ")]
    assert line.split()[:3] == ["host", "fault", "spawn_failed,"]
    assert page.status == 1
    found = run(site.installation, "check", "--json", *socket).json["findings"]
    assert [one["level"] for one in found if one["subject"] == "starts.host"] == ["fault"]


def test_listener_restart_amid_a_host_fault_loses_nothing(site: Site) -> None:
    start(site)
    users = [site.accounts.user(f"u{number}").name for number in range(2)]
    with away(site.installation.knime_home / "knime") as mend:
        jobs = [site.server.publish(user) for user in users]
        wait_for(lambda: host_of(site), 30, "the host's fault")
        site.listener.kill()
        site.listener.start()
        wait_for(lambda: host_of(site), 60, "the host's fault, found again")
        told_by_commands(site)
        assert parked(site) == 0
        mend()
    all_run_within(site, jobs)
