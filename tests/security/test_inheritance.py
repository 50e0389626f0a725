"""What an executor is given, however the helper itself was started; and what never reaches root from outside.

The helper is started here as no administrator would: with descriptors open on secrets, signals ignored and blocked, a
terminal, other groups, priorities and limits, an environment full of traps, in a directory that nobody may enter.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.lab import import_traps
from tests.lab.accounts import LISTENER, OsUser
from tests.lab.file_trees import as_user, facts_of
from tests.lab.helper_under_test import HelperUnderTest, descriptors_of, status_of
from tests.lab.processes import PATH, processes_of, wait_for

DIRTY: Final = """
import fcntl, os, resource, signal, sys, termios
master, terminal = os.openpty()
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
os.set_inheritable(master, True)  # a terminal without its other end is none
for descriptor in (terminal, *(os.open(path, os.O_RDONLY) for path in ["/etc/shadow", "/root", "/"] * 20)):
    os.set_inheritable(descriptor, True)
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR2, signal.SIGQUIT, signal.SIGALRM})
os.umask(0)
os.nice(5)
os.setgroups([4, 6, 42])
open("/proc/self/oom_score_adj", "w").write("500")
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (700, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
resource.setrlimit(resource.RLIMIT_NPROC, (1234, 12345))
os.chdir("/root")
os.execve(sys.argv[1], sys.argv[1:], {**os.environ, "SECRET": "of root", "HOME": "/root", "LD_BIND_NOW": "1",
          "KNIME_EXECUTOR_MSGQ": "amqp://of-root", "BASH_ENV": "/root/x", "TMPDIR": "/root"})
"""


class HelperFromAMess(HelperUnderTest):
    """The helper behind a program that makes its surroundings so; ``before`` is that program's command line."""

    before: tuple[str, ...] = ()

    def command(self, *words: str, stop_points: bool = False) -> list[str]:
        """Give the command line with what stands before it; ``exec`` keeps the pid."""
        return [*self.before, *super().command(*words, stop_points=stop_points)]


class Laid(NamedTuple):
    helper: HelperFromAMess
    alice: OsUser
    bob: OsUser


@pytest.fixture(scope="module")
def laid_out() -> Iterator[Laid]:
    made = HelperFromAMess()
    try:
        made.create()
        yield Laid(made, made.accounts.user("alice"), made.accounts.user("bob"))
    finally:
        made.remove()


@pytest.fixture
def helper(laid_out: Laid) -> Iterator[HelperFromAMess]:
    yield laid_out.helper
    laid_out.helper.before = ()
    laid_out.helper.reset()


@pytest.fixture
def alice(laid_out: Laid) -> OsUser:
    return laid_out.alice


@pytest.fixture
def bob(laid_out: Laid) -> OsUser:
    return laid_out.bob


def started(helper: HelperUnderTest, user: OsUser) -> int:
    """Give the pid of the user's executor once it is the sleep that it ends as."""
    reply = helper.client().ensure(user.name)
    assert reply["result"] == "started", (reply, helper.log.read_text())
    wait_for(lambda: status_of(reply["pid"])["Name"] == ["sleep"], 30.0, "the executor's last execve")
    return int(reply["pid"])


@pytest.mark.needs("trace")
def test_an_executor_of_a_helper_that_was_started_badly_inherits_none_of_it(
    helper: HelperFromAMess, alice: OsUser
) -> None:
    helper.before = (sys.executable, "-I", "-c", DIRTY)
    helper.start()
    supervisor, pid = status_of(helper.pid), started(helper, alice)
    facts, workspace = status_of(pid), helper.installation.workspace(alice)
    assert (supervisor["Groups"], os.getpriority(os.PRIO_PROCESS, helper.pid)) == (["4", "6", "42"], 5), "it is a mess"
    assert os.getsid(helper.pid) == helper.pid
    assert tty_of(helper.pid) != 0
    opened = descriptors_of(pid)
    assert [opened.pop(number) for number in (0, 1, 2)] == ["/dev/null", *[f"{workspace}/executor.log"] * 2]
    assert list(opened.values()) == [str(helper.installation.temp / alice.name)]
    assert {int(facts[name][0], 16) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")} == {0}
    assert (facts["Umask"], facts["NoNewPrivs"], facts["Groups"]) == (["0077"], ["1"], [str(alice.gid)])
    assert {int(facts[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert [facts["Uid"], facts["Gid"]] == [[str(alice.uid)] * 4, [str(alice.gid)] * 4]
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    assert Path(f"/proc/{pid}/cwd").readlink() == workspace
    assert (os.getsid(pid), os.getpgid(pid), tty_of(pid)) == (pid, pid, 0)
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert limits.partition("Max open files")[2].split()[0] == "700", (
        "what the unit was given, not what the helper took"
    )
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    for trap in (b"SECRET", b"of root", b"of-root", b"/root", b"BASH_ENV", b"LD_BIND_NOW", b"CREDENTIALS", b"NOTIFY"):
        assert trap not in environment


def tty_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4])


def test_the_workspace_of_such_a_helper_is_as_private_as_any(helper: HelperFromAMess, alice: OsUser) -> None:
    """The helper's own umask was 0, and its groups were others."""
    helper.before = (sys.executable, "-I", "-c", DIRTY)
    helper.start()
    started(helper, alice)
    for place in (alice.home, helper.installation.workspace(alice), helper.installation.temp / alice.name):
        assert (place.stat().st_mode & 0o7777, place.stat().st_uid, place.stat().st_gid) == (
            0o700, alice.uid, alice.gid,
        )  # fmt: skip
    assert helper.installation.audit_log.stat().st_mode & 0o7777 == 0o640
    assert (helper.installation.run / "executors").stat().st_mode & 0o7777 == 0o700
    assert helper.installation.operator_socket.stat().st_mode & 0o7777 == 0o600
    assert helper.installation.socket.stat().st_mode & 0o7777 == 0o660


def test_an_executor_has_the_scheduling_of_a_login(helper: HelperFromAMess, alice: OsUser) -> None:
    """Whatever the unit of the helper says of its own: sched(7), ioprio_get(2)."""
    helper.before = ("/usr/bin/chrt", "--batch", "0", "/usr/bin/ionice", "-c", "3")
    helper.start()
    pid = started(helper, alice)
    assert os.sched_getscheduler(helper.pid) == os.SCHED_BATCH
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER


OWN_KEYRING: Final = """
import ctypes, os, sys
if ctypes.CDLL(None).syscall({"x86_64": 250, "aarch64": 219}[os.uname().machine], 1, None, 0, 0, 0) < 0:
    sys.exit("no session keyring")
os.execv(sys.argv[1], sys.argv[1:])
"""
KEYS: Final = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[__import__("os").uname().machine]
SESSION, READ = -3, 11
if sys.argv[1] == "keep":
    key = libc.syscall(add_key, b"user", sys.argv[2].encode(), b"secret", 6, SESSION)
    print(key, libc.syscall(keyctl, 0, SESSION, 0), flush=True)
else:
    for key in map(int, sys.argv[2:]):
        print(libc.syscall(keyctl, READ, key, ctypes.create_string_buffer(64), 64), flush=True)
"""


@pytest.mark.needs("keyring")
def test_one_users_executor_cannot_read_the_keys_of_anothers(
    helper: HelperFromAMess, alice: OsUser, bob: OsUser
) -> None:
    """By their numbers, which /proc/keys shows: neither the key nor the session keyring that it is in (keyctl(2))."""
    helper.before = (sys.executable, "-I", "-c", OWN_KEYRING)  # as a unit has one, or root's login
    program = helper.installation.root / "keys.py"
    program.write_text(KEYS, encoding="ascii")
    helper.start()
    helper.program_of(alice, f"/usr/bin/python3 -IS {program} keep {alice.name} > keys")
    started(helper, alice)
    key, keyring = (helper.installation.workspace(alice) / "keys").read_text().split()
    assert int(key) > 0
    assert int(keyring) > 0
    asks = f"/usr/bin/python3 -IS {program} read {key} {keyring} > keys"
    helper.program_of(bob, asks)
    started(helper, bob)
    assert (helper.installation.workspace(bob) / "keys").read_text().split() == ["-1", "-1"]


def test_a_worker_that_has_become_the_user_can_be_stopped_but_not_read_or_traced_by_that_user(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    """It still holds root's memory then: ptrace(2), "Ptrace access mode checking", dumpable."""
    helper.start(stop_points=True)
    reached = helper.stop_next_worker("after_G")
    asked = (client := helper.client()).send(op="ensure", user=alice.name)
    wait_for(reached.exists, 30.0, "the worker")
    (worker,) = helper.workers()
    assert status_of(worker)["Uid"] == [str(alice.uid)] * 4
    attempts = f"""
        for file in mem maps environ fd/3 auxv stack; do cat /proc/{worker}/$file >/dev/null 2>&1 && echo $file; done
        ls /proc/{worker}/fd 2>/dev/null
        /usr/bin/python3 -ISc 'import ctypes; print(ctypes.CDLL(None).ptrace(0x4206, {worker}, 0, 0))'"""
    assert as_user(alice, attempts).stdout.split() == ["-1"]
    assert as_user(alice, f"kill -CONT {worker}").returncode == 0
    assert client.wait_for(asked)["result"] == "started"


def test_a_set_uid_file_in_a_prepared_directory_gives_nobody_anything(helper: HelperUnderTest, alice: OsUser) -> None:
    """Nomad's issue 6176: files that lay there before, of root and of others, set-uid and set-gid."""
    workspace = helper.installation.workspace(alice)
    workspace.mkdir(mode=0o700)
    os.chown(workspace, alice.uid, alice.gid)
    for name, owner in (("of-root", 0), ("of-alice", alice.uid)):
        shutil.copy("/usr/bin/id", workspace / name)
        os.chown(workspace / name, owner, owner)
        (workspace / name).chmod(0o6755)
    before = facts_of(workspace)
    helper.program_of(
        alice, "for file in of-root of-alice /usr/bin/id; do ./$file -u; ./$file -g; done > ids 2>/dev/null"
    )
    helper.start()
    started(helper, alice)
    said = (workspace / "ids").read_text().split()
    assert said == [str(alice.uid), str(alice.gid)] * 2
    after = facts_of(workspace)
    assert {path: after[path] for path in before if path != str(workspace)} == {
        path: facts for path, facts in before.items() if path != str(workspace)
    }


PUT: Final = {
    "a symlink": ("ln -s {victim} {log}", None),
    "a fifo": ("mkfifo -m 600 {log}", None),
    "a directory": ("mkdir -m 700 {log}", None),
    "a file whose next name is taken": (
        "touch {log}; chmod 644 {log}; mkdir -p {log}.1/x",
        "prepare_failed",
    ),
}
"""What is no file of the user's own is moved away, as the user; the reason where it cannot be."""


@pytest.mark.parametrize("put", PUT)
def test_what_a_user_puts_in_place_of_the_output_file_costs_that_users_start_alone(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser, put: str
) -> None:
    """It is looked at, moved and opened as the user."""
    helper.start(limits={"prepare_timeout": 1.5})
    started(helper, alice)
    helper.operator("stop", user=alice.name)  # no quick death, after which there would be a pause
    helper.wait_for_event(event="exited", user=alice.name)
    victim = helper.installation.root / "victim"
    victim.write_text("kept")
    victim.chmod(0o666)
    log = helper.installation.workspace(alice) / "executor.log"
    log.unlink()
    how, reason = PUT[put]
    assert as_user(alice, how.format(victim=victim, log=log)).returncode == 0
    state = helper.installation.run / "executors" / alice.name
    wait_for(lambda: not state.exists(), 30.0, "nothing left of the first executor")
    client = helper.client()
    asked = client.send(op="ensure", user=alice.name)
    assert client.ensure(bob.name)["result"] == "started"
    assert client.wait_for(asked).get("reason") == reason
    assert victim.read_text() == "kept"
    if reason:
        wait_for(lambda: not any(process.alive() for process in processes_of([alice.uid])), 30.0, "the worker's end")
    else:
        assert (log.lstat().st_mode, log.stat().st_uid) == (0o100600, alice.uid)


@pytest.mark.needs("trace")
def test_nothing_is_imported_from_where_others_may_have_put_it(helper: HelperFromAMess, alice: OsUser) -> None:
    """CVE-2023-26031 in other words: working directory, PYTHON* variables, byte-code, what lies beside the launcher."""
    root = helper.installation.root
    import_traps.lay_where_anybody_may(root)
    trap = root / import_traps.DIRECTORY.lstrip("/")
    laid = import_traps.lay_beside(root / "bin" / "knime-root-helper")
    points = [f"{name}={trap}" for name in import_traps.ENVIRONMENT]
    points += [
        f"PYTHONPYCACHEPREFIX={trap}",
        f"PYTHONSTARTUP={trap}/json.py",
        "PYTHONINSPECT=1",
        f"PYTHONPLATLIBDIR={trap}",
    ]
    before = ["/usr/bin/env", "-C", str(trap), *points]
    try:
        sprung = subprocess.run([*before[:3], "/usr/bin/python3", "-c", "import protocol"], check=False)
        assert sprung.returncode == import_traps.SPRUNG, "the traps work"
        helper.before = tuple(before)
        helper.start()
        started(helper, alice)
        os.kill(gate := helper.gate_pid(), signal.SIGKILL)
        wait_for(lambda: helper.gate_pid() != gate, 30.0, "another gate")
        for pid in (helper.pid, helper.gate_pid()):
            assert {b"-I", b"-IS"} & set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
            assert str(trap) not in Path(f"/proc/{pid}/maps").read_text()
        assert helper.is_alive()
        assert (helper.run("--check").returncode, helper.run("--explain", alice.name).returncode) == (0, 0)
    finally:
        for path in laid:
            path.unlink()
        shutil.rmtree(root / "srv")


APPEND: Final = 'echo "# mine" >> "$1"'
REPLACE: Final = 'cp "$1" "$1.mine" && mv -f "$1.mine" "$1"'
WRITABLE: Final = {
    "the file by all": ('chmod 0666 "$1"', APPEND),
    "the file by its group": (f'chgrp {LISTENER} "$1" && chmod 0664 "$1"', APPEND),
    "the file's owner": (f'chown {LISTENER} "$1"', APPEND),
    "the directory by all": ('chmod 0777 "$2"', REPLACE),
    "the directory by all, sticky": ('chmod 1777 "$2"', 'touch "$2/first"'),
    "the directory's owner": (f'chown {LISTENER} "$2"', REPLACE),
    "a directory above": ('chmod 0777 "$3"', 'mv "$2" "$2.old" && mkdir "$2" && cp "$2.old/helper.toml" "$1"'),
}
"""How it came to be so, as root; and what the listener's account really does with it."""


@pytest.mark.parametrize("case", WRITABLE)
def test_a_configuration_that_an_unprivileged_account_could_have_written_is_not_used(
    helper: HelperUnderTest, alice: OsUser, case: str
) -> None:
    """CVE-2020-26880: sympa's root program read what its unprivileged account owned."""
    above = helper.installation.root / "site"
    toml = above / "etc" / "helper.toml"
    toml.parent.mkdir(parents=True)
    helper.configure()
    shutil.copyfile(helper.installation.helper_toml, toml)
    toml.chmod(0o644)
    fault, attack = WRITABLE[case]
    places = [toml, toml.parent, above]
    entry = pwd.getpwnam(LISTENER)
    listener = OsUser(LISTENER, entry.pw_uid, entry.pw_gid, Path("/nonexistent"))
    try:
        subprocess.run(["/bin/sh", "-c", fault, "sh", *places], check=True)
        assert as_user(listener, attack, *places).returncode == 0
        command = [*helper.installation.command("knime-root-helper")[:1], "--config", str(toml)]
        for mode in ([], ["--check"], ["--explain", alice.name]):
            done = subprocess.run(
                [*command, *mode], env={"PATH": PATH, **helper.environment()},
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert done.returncode == 2, (done, mode)
            assert "belongs to uid" in done.stderr or "lets others write it" in done.stderr
        assert not helper.installation.audit_log.exists()
        assert not helper.installation.socket.exists()
    finally:
        shutil.rmtree(above)
