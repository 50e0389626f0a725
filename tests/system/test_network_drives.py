"""Network drives in executors, why this product exists: whenever and however they are mounted, as at a login.

They are real ones, over TCP, with the user's ids and groups at the server: GlusterFS, since the kernels of the machines
that run these tests have no NFS. What is tried is the same for every file system: propagation of mounts into the
namespace that executors inherit, autofs, and who asks the server.
"""

import signal
from collections.abc import Iterator

import pytest

from tests.lab.booted_site import HELPER, BootedSite
from tests.lab.ldap import ANALYSTS, EVERYBODY, uid
from tests.lab.network_drive import IDLE, KINDS, NetworkDrive, network_drive
from tests.lab.processes import wait_for

ON_DEMAND = ("systemd", "autofs")


@pytest.fixture
def drive(site: BootedSite) -> Iterator[NetworkDrive]:
    yield from network_drive(site.machine)


@pytest.mark.parametrize("kind", KINDS)
def test_drives_of_before_the_helpers_start_after_it_and_after_its_restart_are_read_and_written_as_the_user(
    site: BootedSite, drive: NetworkDrive, kind: str
) -> None:
    """By a running executor and by a new one alike."""
    old, new = site.fresh_users(2)
    paths = [drive.mount("before", kind)]
    site.systemctl("restart", HELPER)
    paths.append(drive.mount("after", kind))
    site.job(old)
    paths.append(drive.mount("while-it-ran", kind))
    site.systemctl("restart", HELPER)
    paths.append(drive.mount("after-restart", kind))
    for user in (old, new):
        for number, path in enumerate(paths):
            site.shell(
                user, f"cd {path} && echo {user} > {number}-$LOGNAME && mountpoint -q . && cat {number}-$LOGNAME"
            )
    owners = site.machine.run("sh", "-c", f"cd {drive.exported}; stat -c '%n %u %g %a' ?-*")
    assert owners.splitlines() == [
        f"{number}-{user} {uid(user)} {EVERYBODY[1]} 600" for number in range(len(paths)) for user in sorted((old, new))
    ]


@pytest.mark.parametrize("kind", ON_DEMAND)
def test_a_drive_on_demand_stays_while_a_workflow_uses_it_goes_when_idle_and_comes_again(
    site: BootedSite, drive: NetworkDrive, kind: str
) -> None:
    (user,) = site.fresh_users(1)
    path = drive.mount("demand", kind)
    site.job(user)
    assert not drive.is_mounted(path)
    seconds = 3 * IDLE
    site.shell(user, f"exec 9> {path}/used && (sleep {seconds}; echo late >&9) >/dev/null 2>&1 &")
    wait_for(lambda: site.machine.status("grep", "-q", "late", f"{drive.exported}/used") == 0, 10, "the late line")
    wait_for(lambda: not drive.is_mounted(path), 10 * IDLE, "its end when idle")
    assert site.shell(user, f"cat {path}/used") == "late\n"
    assert drive.is_mounted(path)


def test_a_drive_that_is_unmounted_is_gone_in_a_running_executor_too(site: BootedSite, drive: NetworkDrive) -> None:
    """Nothing of the helper's keeps a dead server's mount busy."""
    (user,) = site.fresh_users(1)
    path = drive.mount("gone", "mounted")
    site.shell(user, f"mountpoint -q {path}")
    site.machine.run("umount", path)
    site.shell(user, f"! mountpoint -q {path}")


def test_a_setgid_directory_of_a_group_on_a_drive_is_copied_as_it_is(site: BootedSite, drive: NetworkDrive) -> None:
    """Who may write there is for this file server to say, and it does not ask: that is not tried here."""
    member = site.directory.names[189]
    path = drive.mount("group", "mounted")
    made = f"cd {path} && mkdir a && chgrp {ANALYSTS[0]} a && chmod 2770 a && echo > a/f && cp -a a b"
    found = site.shell(member, f"{made} && stat -c '%a %g' a b a/f b/f")
    assert found.splitlines() == [f"2770 {ANALYSTS[1]}"] * 2 + [f"600 {ANALYSTS[1]}"] * 2


def test_a_home_on_a_drive_of_whose_server_root_is_nobody_is_used_as_the_user_and_its_loss_holds_up_nobody_else(
    site: BootedSite, drive: NetworkDrive
) -> None:
    """Mounted on demand, too. While the server hangs, its users wait; when it goes on, their jobs run."""
    user, other = site.fresh_users(2)
    site.configure_helper(limits={"prepare_timeout": 2.0})
    path = drive.mount("homes", "systemd")
    site.machine.run("install", "-d", "-m", "0700", "-o", str(uid(user)), f"{drive.exported}/{user}")
    site.directory.modify(user, f"replace: homeDirectory\nhomeDirectory: {path}/{user}")
    site.directory.forget_cached()
    assert site.shell(user, "echo > ~/made && echo $HOME") == f"{path}/{user}\n"
    site.end(next(entry.pid for entry in site.listed()))
    server = drive.server_pids()
    site.machine.run("kill", f"-{signal.SIGSTOP:d}", *server)
    try:
        site.server.publish(user)
        assert site.job(other, seconds=10)["uid"] == uid(other)
        wait_for(lambda: site.audit(user)[-1]["event"] == "result", 10, "an answer about whose home hangs")
        assert site.audit(user)[-1]["reason"] in {"prepare_failed", "backing_off"}
    finally:
        site.machine.run("kill", f"-{signal.SIGCONT:d}", *server)
    (report,) = site.server.results(1, seconds=30)
    assert report["uid"] == uid(user)
    assert site.server.depth("knime-jobs.parked") == 0
