"""What a workflow has: mounts, /tmp, setgid directories, as at a login; what the unit takes, as SECURITY.md says."""

import pytest

from tests.lab.booted_site import CHECKOUT, HELPER, BootedSite
from tests.lab.processes import wait_for


@pytest.fixture
def shares(site: BootedSite):
    """Mount what stands in for network drives, and take it away again."""
    mounted = []

    def mount(name: str) -> str:
        path = f"/srv/share-{name}"
        site.machine.run("sh", "-ec", f"mkdir -p {path}; mount -t tmpfs -o mode=1777 {name} {path}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        site.machine.run("umount", "-l", path)


def test_shares_mounted_before_the_helpers_start_after_it_and_after_its_restart_are_seen_and_writable(
    site: BootedSite, shares
) -> None:
    """By a running executor and by a new one alike."""
    old, new = site.fresh_users(2)
    paths = [shares("before")]
    site.systemctl("restart", HELPER)
    paths.append(shares("after"))
    site.job(old)
    paths.append(shares("while-it-ran"))
    site.systemctl("restart", HELPER)
    paths.append(shares("after-restart"))
    for user in (old, new):
        site.shell(user, " && ".join(f"mountpoint -q {path} && echo > {path}/{user}" for path in paths))
    for path in paths:
        assert site.machine.run("ls", path).split() == sorted((old, new))


def test_a_share_that_is_unmounted_is_gone_in_a_running_executor_too(site: BootedSite) -> None:
    """Nothing of the helper's keeps a dead server's mount busy."""
    (user,) = site.fresh_users(1)
    site.machine.run("sh", "-ec", "mkdir -p /srv/share-gone; mount -t tmpfs -o mode=1777 gone /srv/share-gone")
    site.shell(user, "mountpoint -q /srv/share-gone")
    site.machine.run("umount", "/srv/share-gone")
    site.shell(user, "! mountpoint -q /srv/share-gone")


def test_a_setgid_directory_of_a_group_share_can_be_copied_as_it_is(site: BootedSite, shares) -> None:
    (user,) = site.fresh_users(1)
    path = shares("group")
    made = site.shell(user, f"cd {path} && mkdir a && chmod 2770 a && echo > a/f && cp -a a b && stat -c %a b")
    assert made == "2770\n"


def test_tmp_is_the_hosts_and_alive_after_a_restart_of_the_helper(site: BootedSite) -> None:
    (user,) = site.fresh_users(1)
    site.shell(user, f"echo from-{user} > /tmp/{user}")
    assert site.machine.run("cat", f"/tmp/{user}") == f"from-{user}\n"
    assert site.machine.run("stat", "-c", "%a", f"/tmp/{user}") == "600\n"
    site.machine.run("sh", "-c", f"echo from-host > /tmp/host-{user}")
    site.systemctl("restart", HELPER)
    assert site.shell(user, f"cat /tmp/{user} /tmp/host-{user}") == f"from-{user}\nfrom-host\n"


HAS = {
    "its home": "echo > ~/f",
    "/var/tmp": "f=/var/tmp/f-$LOGNAME && echo > $f && rm $f",
    "/dev/shm": "f=/dev/shm/f-$LOGNAME && echo > $f && rm $f",
    "memory that is written and executed (a JIT)": ("/usr/bin/python3 -c 'import mmap; mmap.mmap(-1, 4096, prot=7)'"),
    "sockets, IPv6 too": "/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_INET6).bind((\"::1\", 0))'",
    "the machine's memory and processors in /proc": "grep -q MemTotal /proc/meminfo && grep -q processor /proc/cpuinfo",
    "file locks": "flock f true",
    "nice values": "nice -n 5 true",
}
LACKS = {
    "set-uid programs": "chfn -o x $LOGNAME",
    "user namespaces": "unshare -U true",
    "ptrace": "/usr/bin/python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0)'",
    "FUSE": "test -e /dev/fuse",
    "graphics cards": "test -e /dev/dri",
    "virtual machines": "test -e /dev/kvm",
    "other users' processes": "ps -e -o user= | grep -q root",
    "writing below /usr": "echo > /usr/f",
    "writing below /etc": "echo > /etc/f",
}


def test_a_workflow_has_what_a_login_has(site: BootedSite) -> None:
    (user,) = site.fresh_users(1)
    assert [what for what, command in HAS.items() if site.tried(user, command) != 0] == []


def test_a_workflow_lacks_what_the_unit_takes_and_nothing_else_of_it(site: BootedSite) -> None:
    """As SECURITY.md says; outside of the unit each of them works where the machine has it."""
    (user,) = site.fresh_users(1)
    assert [what for what, command in LACKS.items() if site.tried(user, command) == 0] == []


def test_what_the_unit_takes_is_given_back_by_the_documents_drop_in(site: BootedSite) -> None:
    (user,) = site.fresh_users(1)
    security = (CHECKOUT / "SECURITY.md").read_text(encoding="utf-8")
    site.drop_in(HELPER, security.partition("```ini\n")[2].partition("```")[0])
    site.systemctl("restart", HELPER)
    assert site.tried(user, LACKS["user namespaces"]) == 0
    assert site.machine.status("test", "-e", "/dev/fuse") == site.tried(user, LACKS["FUSE"])


def test_an_executors_descriptors_are_its_own(site: BootedSite) -> None:
    """Standard ones, the locks of workspace and temp directory, its broker connection; none of the helper's."""
    (user,) = site.fresh_users(1)
    report = site.job(user, report="full")
    rest = {target for name, target in report["descriptors"].items() if name not in {"0", "1", "2"}}
    own = (
        f"/srv/knime/temp/{user}",
        f"/srv/knime/workspaces/{user}/.metadata/.lock",
        "socket:",
        "pipe:",
        "anon_inode:",
    )
    assert [target for target in rest if not target.startswith(own)] == []
    assert report["oom_score_adj"] == 0


def test_proc_says_of_an_executor_what_the_documents_say(site: BootedSite) -> None:
    """No capability, not even in the bound beyond the unit's; no_new_privs; the seccomp filter; the hosts' mounts."""
    (user,) = site.fresh_users(1)
    pid = site.job(user)["pid"]
    lines = site.machine.run("cat", f"/proc/{pid}/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert int(status["CapBnd"], 16) == sum(1 << bit for bit in (0, 5, 6, 7))  # CHOWN KILL SETGID SETUID
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    mounts = site.machine.run("cat", f"/proc/{pid}/mountinfo")
    assert all("master:" in line for line in mounts.splitlines() if " /srv/" in line)
    wait_for(lambda: site.machine.journal(f"_PID={pid}"), 5, "its output")
    assert {
        entry["_SYSTEMD_UNIT"] for entry in site.machine.journal(f"_PID={pid}", f"_UID={status['Uid'].split()[0]}")
    } == {f"knime-executor-{user}.scope"}
