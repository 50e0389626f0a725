"""What a workflow has, as at a login; what the unit takes from it, and how it is given back, as SECURITY.md says."""

import re

from tests.lab.booted_site import CHECKOUT, HELPER, BootedSite
from tests.lab.processes import wait_for


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
_PTRACE = "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0)"
# A family that is let through is refused later, and in other words: packet(7) needs a capability.
_PACKET = "import errno, socket, sys\ntry: socket.socket(17, 3)\nexcept OSError as e: sys.exit(e.errno != errno.EPERM)"
LACKS = {
    "set-uid programs": "chfn -o x $LOGNAME",
    "user namespaces": "unshare -U true",
    "ptrace": f"/usr/bin/python3 -c '{_PTRACE}'",
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


GIVEN_BACK = {
    "user namespaces": "unshare -U true",
    "ptrace": f"/usr/bin/python3 -c '{_PTRACE}'",
    "other personalities": "setarch -R true",
    "devices": "echo > /dev/of-the-lab",
    "sight of other users' processes": "ps -e -o user= | grep -q root",
    "writing below": "echo > /usr/of-the-lab/$LOGNAME",
    "socket families": f"/usr/bin/python3 -c '{_PACKET}'",
}
"""What each row of SECURITY.md's table begins with, and what fails without its drop-in and not with it."""


def drop_ins() -> dict[str, str]:
    """Give what SECURITY.md says to put below [Service], by what is given back."""
    text = (CHECKOUT / "SECURITY.md").read_text(encoding="utf-8")
    table = text.partition("| the drop-in that gives it back |\n| --- | --- |\n")[2].partition("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()]
    return {what: "\n".join(re.findall("`([^`]+=[^`]+)`", lines)) for what, lines in rows}


def test_each_drop_in_of_security_md_gives_back_what_it_says(site: BootedSite) -> None:
    """And nothing but a drop-in does; for set-uid programs there is none."""
    site.machine.run("sh", "-ec", "mkdir -pm 1777 /usr/of-the-lab; mknod -m 666 /dev/of-the-lab c 1 3")
    documented = drop_ins()
    assert [what for what, lines in documented.items() if not lines] == [list(documented)[-1]]
    (without,) = site.fresh_users(1)
    assert [what for what, command in GIVEN_BACK.items() if site.tried(without, command) == 0] == []
    users = dict(zip(GIVEN_BACK, site.fresh_users(len(GIVEN_BACK)), strict=True))
    for what, command in GIVEN_BACK.items():
        (lines,) = (lines for name, lines in documented.items() if name.startswith(what))
        site.drop_in(HELPER, f"[Service]\n{lines}\n")
        site.systemctl("restart", HELPER)
        assert site.tried(users[what], command) == 0, (what, lines)
    site.machine.run("rm", "-r", "/usr/of-the-lab", "/dev/of-the-lab")


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
    """No capability, not even in the bound beyond the unit's; no_new_privs; the seccomp filter; the host's mounts.

    ``master:`` is a mount that follows the host's: what is mounted or unmounted there is so here, proc(5).
    """
    (user,) = site.fresh_users(1)
    site.machine.run("sh", "-ec", "mkdir -p /srv/of-the-lab; mount -t tmpfs lab /srv/of-the-lab")
    pid = site.job(user)["pid"]
    lines = site.machine.run("cat", f"/proc/{pid}/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert int(status["CapBnd"], 16) == sum(1 << bit for bit in (0, 5, 6, 7))  # CHOWN KILL SETGID SETUID
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    mountinfo = site.machine.run("cat", f"/proc/{pid}/mountinfo")
    mounts = {fields[4]: (fields[5].split(",")[0], fields[6:]) for fields in map(str.split, mountinfo.splitlines())}
    site.machine.run("umount", "/srv/of-the-lab")
    assert mounts["/srv/of-the-lab"][0] == mounts["/"][0] == "rw"
    for path in ("/", "/srv/of-the-lab"):
        assert any(field.startswith("master:") for field in mounts[path][1]), mountinfo
    assert {mounts[path][0] for path in ("/usr", "/etc")} == {"ro"}
    wait_for(lambda: site.machine.journal(f"_PID={pid}"), 10, "its output")
    assert {
        entry["_SYSTEMD_UNIT"] for entry in site.machine.journal(f"_PID={pid}", f"_UID={status['Uid'].split()[0]}")
    } == {f"knime-executor-{user}.scope"}
