"""The helper as a whole: real users, a real socket, the kernel's word on what an executor is and may do. Needs root."""

import ctypes
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import posix1e
import pytest

from tests.lab.accounts import LISTENER, OsUser
from tests.lab.file_trees import as_user
from tests.lab.helper_under_test import (
    HelperUnderTest,
    descriptors_of,
    helper_under_test,
    is_gone,
    names_in,
    state_of,
    status_of,
)
from tests.lab.listener_client import ListenerClient
from tests.lab.processes import PATH, processes_of, wait_for

pytestmark = pytest.mark.library

URL = "amqp://nobody:no-broker-listens-here@127.0.0.1:5672/%2F"


class People(NamedTuple):
    """The users of this file."""

    alice: OsUser
    bob: OsUser
    staff: int


@pytest.fixture(scope="module")
def laid_out() -> Iterator[tuple[HelperUnderTest, People]]:
    with helper_under_test() as made:
        staff = made.accounts.group("staff")
        alice = made.accounts.user("alice", groups=[staff])
        bob = made.accounts.user("bob")
        gid = next(gid for gid in os.getgrouplist(alice.name, alice.gid) if gid != alice.gid)
        yield made, People(alice, bob, gid)


@pytest.fixture
def helper(laid_out: tuple[HelperUnderTest, People]) -> Iterator[HelperUnderTest]:
    yield laid_out[0]
    laid_out[0].reset()


@pytest.fixture
def people(laid_out: tuple[HelperUnderTest, People]) -> People:
    return laid_out[1]


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")[:-1]
    return dict(entry.split("=", 1) for entry in entries)


def started(helper: HelperUnderTest, user: OsUser | str) -> int:
    """Have a user's executor started; give its pid once it has become the sleep that it ends as."""
    reply = helper.client().ensure(user if isinstance(user, str) else user.name)
    assert reply["result"] == "started", (reply, helper.log.read_text())
    wait_for(lambda: asleep(reply["pid"]), 30.0, "the executor's last execve")
    return int(reply["pid"])


def asleep(pid: int) -> bool:
    return status_of(pid)["Name"] == ["sleep"]


def test_an_executor_has_the_users_ids_and_groups_and_no_privilege(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    facts = status_of(started(helper, people.alice))
    assert facts["Uid"] == [str(people.alice.uid)] * 4
    assert facts["Gid"] == [str(people.alice.gid)] * 4
    assert {int(gid) for gid in facts["Groups"]} == {people.alice.gid, people.staff}
    assert {name: int(facts[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapAmb": 0,
    }
    assert facts["CapBnd"] == status_of(helper.pid)["CapBnd"]  # the unit's, as DESIGN says of what executors inherit
    assert facts["NoNewPrivs"] == ["1"]


def test_an_end_is_recorded_once_however_often_the_helper_is_restarted(helper: HelperUnderTest, people: People) -> None:
    """A child that ignores SIGTERM keeps the executor's session for a while after its end."""
    helper.start()
    helper.program_of(people.bob, "(trap '' TERM; while :; do /bin/sleep 0.2; done) &")
    pid = started(helper, people.bob)
    os.kill(pid, signal.SIGKILL)
    helper.wait_for_event(event="exited", user=people.bob.name)
    state = helper.installation.run / "executors" / people.bob.name
    wait_for(lambda: json.loads(state.read_text(encoding="ascii"))["ended"], 30.0, "the mark that follows the record")
    for _ in range(2):
        helper.kill()
        helper.start_again()
    assert helper.events(people.bob.name).count("exited") == 1


@pytest.mark.parametrize("text", ["", "[", "null", '{"user": 1}', "[" * 4000], ids=lambda text: text[:3] or "empty")
def test_a_damaged_state_file_keeps_no_helper_from_starting(helper: HelperUnderTest, people: People, text: str) -> None:
    helper.start()
    helper.stop()
    state = helper.installation.run / "executors" / people.alice.name
    state.write_text(text, encoding="ascii")
    helper.start_again()
    started(helper, people.alice)


def test_an_executor_outlives_every_deadline_of_its_start(helper: HelperUnderTest, people: People) -> None:
    """A timer of the start that reached it would kill whoever has the number by then."""
    helper.start(limits={"prepare_timeout": 0.5, "lookup_timeout": 0.5})
    pid = started(helper, people.alice)
    time.sleep(1.2)  # more than twice the deadline; there is nothing to wait for
    assert asleep(pid)
    assert [record["event"] for record in helper.audit() if record["user"] == people.alice.name][-1] == "result"


@pytest.mark.needs("trace")
def test_the_temp_directory_is_locked_as_long_as_a_process_of_the_executor_lives(
    helper: HelperUnderTest, people: People
) -> None:
    """So that systemd-tmpfiles spares it, also while the helper is being restarted."""
    helper.start()
    pid = started(helper, people.alice)
    temp = os.open(helper.installation.temp / people.alice.name, os.O_RDONLY | os.O_DIRECTORY)
    helper.stop()
    with pytest.raises(BlockingIOError):
        fcntl.flock(temp, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}/fd").exists() or not descriptors_of(pid), 30.0, "the end of the executor")
    fcntl.flock(temp, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(temp)


@pytest.mark.needs("trace")
def test_an_executor_inherits_no_descriptor_signal_umask_or_session(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    pid = started(helper, people.alice)
    facts = status_of(pid)
    log = f"{helper.installation.workspace(people.alice)}/executor.log"
    opened = descriptors_of(pid)
    assert [opened.pop(number) for number in (0, 1, 2)] == ["/dev/null", log, log]
    assert list(opened.values()) == [str(helper.installation.temp / people.alice.name)]  # held and locked: see below
    assert {name: int(facts[name][0], 16) for name in ("SigBlk", "SigIgn", "SigCgt")} == dict.fromkeys(
        ("SigBlk", "SigIgn", "SigCgt"), 0
    )
    assert facts["Umask"] == ["0077"]
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    assert Path(f"/proc/{pid}/cwd").readlink() == helper.installation.workspace(people.alice)
    assert int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4]) == 0  # no controlling terminal


@pytest.mark.needs("trace")
def test_an_executors_environment_is_the_contract_and_no_more(helper: HelperUnderTest, people: People) -> None:
    helper.start(executor={"environment": {"SITE": "{os_user} of {uid}"}})
    pid = started(helper, people.alice)
    workspace = str(helper.installation.workspace(people.alice))
    temp = f"{helper.installation.temp}/{people.alice.name}"
    assert environment_of(pid) == {
        "HOME": str(people.alice.home),
        "LOGNAME": people.alice.name,
        "USER": people.alice.name,
        "SHELL": "/usr/sbin/nologin",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PWD": workspace,
        "KNIME_EXECUTOR_MSGQ": URL,
        "KNIME_EXECUTOR_RESERVATION": f"(user = '{people.alice.name}')",
        "KNIME_EXECUTOR_TEMP_DIR": temp,
        "TMPDIR": temp,
        "SITE": f"{people.alice.name} of {people.alice.uid}",
    }


def test_the_command_line_holds_the_arguments_and_no_secret(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    helper.program_of(people.alice, 'printf "%s\\n" "$@" > arguments')
    started(helper, people.alice)
    written = helper.installation.workspace(people.alice) / "arguments"
    assert written.read_text().splitlines() == [
        "-nosplash",
        "-consolelog",
        "-data",
        str(written.parent),
        "-application",
        "com.knime.enterprise.slave.KNIME_REMOTE_APPLICATION",
    ]


@pytest.mark.needs("trace")
def test_a_prefix_runs_as_the_user_in_front_of_the_executor(helper: HelperUnderTest, people: People) -> None:
    helper.start(executor={"prefix": ["/usr/bin/env", "WRAPPED={knime_user}"]})
    assert environment_of(started(helper, people.alice))["WRAPPED"] == people.alice.name


@pytest.mark.needs("keyring")
def test_every_executor_has_a_session_keyring_of_its_own(helper: HelperUnderTest, people: People) -> None:
    """Root's session keyring would be shared by all users: keyctl(2), KEYCTL_GET_KEYRING_ID of -3."""
    report = "import ctypes; print(ctypes.CDLL(None).syscall({call}, 0, -3, 0), flush=True)"
    call = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    ours = ctypes.CDLL(None).syscall(call, 0, -3, 0)
    helper.start()
    for user in (people.alice, people.bob):
        helper.program_of(user, f'/usr/bin/python3 -ISc "{report.format(call=call)}" > keyring')
    found = set()
    for user in (people.alice, people.bob):
        started(helper, user)
        found.add(int((helper.installation.workspace(user) / "keyring").read_text()))
    assert len(found) == 2
    assert ours not in found
    assert min(found) > 0


def test_home_workspace_and_temp_are_the_users_and_nobody_elses(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    started(helper, people.alice)
    places = [
        people.alice.home,
        helper.installation.workspace(people.alice),
        helper.installation.temp / people.alice.name,
    ]
    for place in places:
        facts = place.stat()
        assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (people.alice.uid, people.alice.gid, 0o700)
        assert as_user(people.alice, 'cd "$1" && touch mine', place).returncode == 0
        assert as_user(people.bob, 'ls "$1"', place).returncode != 0
        assert as_user(people.bob, 'cat "$1/mine"', place).returncode != 0
        assert as_user(people.bob, 'touch "$1/theirs"', place).returncode != 0
    for place in places[1:]:
        assert str(posix1e.ACL(filedef=str(place))).split() == ["user::rwx", "group::---", "other::---"]
        made = place / "mine"
        assert stat.S_IMODE(made.stat().st_mode) == 0o600, "made under umask 022, private by the default ACL"


def test_a_running_executor_is_not_started_again(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    client = helper.client()
    first, second = (client.ensure(people.alice.name) for _ in range(2))
    assert (first["result"], second["result"]) == ("started", "running")
    same = ("os_user", "uid", "pid", "since", "cgroup")
    assert [first[key] for key in same] == [second[key] for key in same]
    assert first["uid"] == people.alice.uid
    assert client.executors() == [{"user": people.alice.name, **{key: first[key] for key in same}}]
    assert helper.events(people.alice.name) == ["request", "started", "result", "result"]


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no name": ("a;id", {}, "invalid_name"),
    "nobody knows it": ("kpr-unheard-of", {}, "unknown_user"),
    "root": ("root", {}, "denied_user"),
    "root in capitals": ("Root", {}, "denied_user"),
    "the listener": (LISTENER, {}, "denied_user"),
    "a denied user": ("{alice}", {"users": {"deny_users": ["{alice}"]}}, "denied_user"),
    "a denied group": ("{alice}", {"users": {"deny_groups": ["{staff}"]}}, "denied_user"),
    "a system account": ("daemon", {}, "uid_out_of_range"),
    "a uid below the range": ("{alice}", {"users": {"min_uid": 4000000000}}, "uid_out_of_range"),
    "not in a group that may": ("{bob}", {"users": {"allow_groups": ["{staff}"]}}, "not_in_group"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_policy_refuses_and_nothing_is_made(helper: HelperUnderTest, people: People, case: str) -> None:
    text = json.dumps(REFUSALS[case])
    staff = f"{people.alice.name.removesuffix('alice')}staff"
    for name, value in (("{alice}", people.alice.name), ("{bob}", people.bob.name), ("{staff}", staff)):
        text = text.replace(name, value)
    user, changes, reason = json.loads(text)
    helper.start(**changes)
    reply = helper.client().ensure(user)
    assert {key: reply[key] for key in ("result", "reason")} == {"result": "refused", "reason": reason}
    assert helper.audit()[-1]["reason"] == reason
    for directory in (helper.installation.workspaces, helper.installation.temp, helper.installation.homes):
        assert names_in(directory) == []


def test_what_others_put_in_the_way_is_a_conflict_and_stays(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    people.alice.home.symlink_to("/etc")
    (helper.installation.workspaces / people.bob.name).symlink_to("/etc")
    client = helper.client()
    assert client.ensure(people.alice.name)["reason"] == "home_conflict"
    assert client.ensure(people.bob.name)["reason"] == "workspace_conflict"
    assert people.alice.home.is_symlink()
    assert client.executors() == []


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "a group that may is unknown": ({"users": {"allow_groups": ["kpr-unheard-of"]}}, "lookup_timeout"),
    "so many run already": ({"limits": {"max_executors": 1}}, "at_capacity"),
    "so many started in this second": ({"limits": {"starts_per_second": 1}}, "rate_limited"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_the_host_says_not_now(helper: HelperUnderTest, people: People, case: str) -> None:
    changes, reason = FAILURES[case]
    helper.start(**changes)
    client = helper.client()
    client.ensure(people.alice.name)
    reply = client.ensure(people.bob.name)
    assert {key: reply[key] for key in ("result", "reason")} == {"result": "failed", "reason": reason}
    assert reply["retry_after"] > 0
    assert people.bob.name not in {entry["user"] for entry in client.executors()}


def test_an_account_has_no_more_executors_than_configured(helper: HelperUnderTest, people: People) -> None:
    names = {"k1": people.alice.name, "k2": people.alice.name}
    helper.start(users={"map": names, "max_per_os_user": 1})
    client = helper.client()
    assert client.ensure("k1")["result"] == "started"
    assert client.ensure("k2")["reason"] == "at_capacity"
    assert client.ensure(people.bob.name)["result"] == "started"


def test_starts_of_one_account_are_bounded_per_minute(helper: HelperUnderTest, people: People) -> None:
    helper.start(limits={"starts_per_user_per_minute": 1}, users={"map": {"k2": people.alice.name}})
    client = helper.client()
    assert client.ensure(people.alice.name)["result"] == "started"
    assert client.ensure("k2")["reason"] == "rate_limited"


def test_many_users_at_once_start_within_the_default_limits(helper: HelperUnderTest, people: People) -> None:
    """50 starts in one second are allowed, so 50 first jobs at once must not be told to wait."""
    names = {f"k{n:02}": people.alice.name for n in range(50)}
    limits = {"starts_per_second": 50}
    helper.start(users={"map": names, "max_per_os_user": 50}, limits=limits)
    client = helper.client()
    asked = [client.send(op="ensure", user=user) for user in names]
    assert {client.wait_for(one, 30.0)["result"] for one in asked} == {"started"}


def test_a_parent_that_others_can_write_is_no_place_for_a_workspace(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    helper.installation.workspaces.chmod(0o777)
    try:
        reply = helper.client().ensure(people.alice.name)
    finally:
        helper.installation.workspaces.chmod(0o711)
    assert (reply["result"], reply["reason"]) == ("failed", "prepare_failed")


def test_a_program_that_cannot_be_executed_is_told_with_path_and_errno(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    program = helper.installation.knime_home / "knime"
    program.chmod(0o644)
    reply = helper.client().ensure(people.alice.name)
    assert (reply["result"], reply["reason"]) == ("failed", "spawn_failed")
    assert f"execve {program}: Permission denied (errno 13)" in helper.log.read_text()
    assert helper.events(people.alice.name) == ["request", "started", "exited", "result"]


def test_a_uid_that_runs_for_another_account_is_in_use(helper: HelperUnderTest, people: People) -> None:
    other = helper.accounts.user("namesake", options=["--non-unique", "--uid", str(people.alice.uid)])
    helper.start()
    started(helper, people.alice)
    reply = helper.client().ensure(other.name)
    assert (reply["result"], reply["reason"]) == ("failed", "uid_in_use") or reply["reason"] == "home_conflict", reply


def test_another_version_is_told_so(helper: HelperUnderTest) -> None:
    helper.start()
    client = helper.client()
    client.send_parts(json.dumps({"v": 2, "id": "later", "anything": []}).encode())
    assert client.wait_for("later")["reason"] == "unsupported_version"


def test_sixty_executors_are_listed_in_pages_and_adopted_whoever_is_killed(
    helper: HelperUnderTest, people: People
) -> None:
    names = {f"k{n:02}": people.alice.name for n in range(60)}
    helper.start(users={"map": names, "max_per_os_user": 60})
    client = helper.client()
    replies = [client.wait_for(one, 30.0) for one in [client.send(op="ensure", user=user) for user in names]]
    pids = {user: reply["pid"] for user, reply in zip(names, replies, strict=True)}
    page = client.ask("list", after="k57")
    assert ([entry["user"] for entry in page["executors"]], page["next"]) == (["k58", "k59"], None)
    assert client.ask("list", after="")["next"] is not None
    assert {entry["user"]: entry["pid"] for entry in client.executors()} == pids

    os.kill(gate := helper.gate_pid(), signal.SIGKILL)
    wait_for(lambda: is_gone(gate) and helper.gate_pid() != gate, 30.0, "another gate")
    assert {entry["user"]: entry["pid"] for entry in helper.client().executors()} == pids

    helper.kill()
    helper.start_again()
    assert {entry["user"]: entry["pid"] for entry in helper.client().executors()} == pids

    gate, ended = helper.gate_pid(), min(pids)
    os.kill(helper.pid, signal.SIGSTOP)
    os.kill(gate, signal.SIGKILL)
    helper.kill()
    os.kill(pids[ended], signal.SIGKILL)
    helper.start_again()
    client = helper.client()
    assert {entry["user"]: entry["pid"] for entry in client.executors()} == {
        user: pid for user, pid in pids.items() if user != ended
    }
    assert client.ensure("k30")["result"] == "running"
    record = helper.wait_for_event(user=ended, event="exited")
    assert record["pid"] == pids[ended]

    os.kill(pids["k30"], signal.SIGTERM)
    assert client.wait_for_notice(user="k30")["status"] is None, "init reaps an adopted one"


def test_the_operators_stop_an_executor_and_it_is_recorded(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    client = helper.client()
    pid = client.ensure(people.alice.name)["pid"]
    assert helper.operator("stop", user=people.alice.name) == {"v": 1, "result": "stopping", "id": "op-1"}
    notice = client.wait_for_notice(user=people.alice.name)
    assert (notice["pid"], notice["status"]) == (pid, -signal.SIGTERM)
    assert helper.operator("stop", user=people.alice.name) == {"v": 1, "result": "absent", "id": "op-1"}
    assert helper.events(people.alice.name)[:5] == ["request", "started", "result", "stopped", "exited"]
    wait_for(lambda: started_without_a_pause(client, people.alice), 30.0, "a new one")


def started_without_a_pause(client: ListenerClient, user: OsUser) -> bool:
    """Return True if the executor was started; an executor that was stopped has not died young."""
    reply = client.ensure(user.name)
    assert reply["result"] == "started" or not longer_wait(reply), reply
    return bool(reply["result"] == "started")


def test_an_executor_that_ignores_sigterm_is_killed_after_the_grace(helper: HelperUnderTest, people: People) -> None:
    helper.program_of(people.alice, "trap '' TERM")
    helper.start(limits={"stop_grace": 0.5})
    client = helper.client()
    client.ensure(people.alice.name)
    wait_for(lambda: asleep(client.executors()[0]["pid"]), 30.0, "sleep")
    helper.operator("stop", user=people.alice.name)
    assert client.wait_for_notice(user=people.alice.name)["status"] == -signal.SIGKILL


def test_draining_starts_nothing_and_survives_a_restart(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    client = helper.client()
    client.ensure(people.alice.name)
    assert helper.operator("drain", on=True) == {"v": 1, "result": "draining", "id": "op-1", "on": True}
    helper.stop()
    helper.start_again()
    client = helper.client()
    assert client.ensure(people.bob.name)["reason"] == "draining"
    assert client.ensure(people.alice.name)["result"] == "running"
    page = client.ask("list", after="")
    assert (page["draining"], page["free"]) == (True, 0)
    helper.operator("drain", on=False)
    assert client.ensure(people.bob.name)["result"] == "started"
    assert [r["decision"] for r in helper.audit() if r["event"] == "drain"] == ["on", "off"]


def test_each_socket_answers_its_own_requests_only(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    client = helper.client()
    client.ensure(people.alice.name)
    asked = [client.send(op="stop", user=people.alice.name), client.send(op="drain", on=True)]
    assert helper.operator("ensure", user=people.bob.name) is None
    assert [entry["user"] for entry in client.executors()] == [people.alice.name]
    assert not any(client.is_answered(one) for one in asked)
    assert {r["op"] for r in helper.audit() if r["reason"] == "not_permitted_here"} == {"stop", "drain", "ensure"}


@pytest.mark.needs("trace")
def test_two_names_of_one_account_start_at_once_and_share_nothing(helper: HelperUnderTest, people: People) -> None:
    helper.start(users={"map": {"k1": people.alice.name, "K2": people.alice.name}})
    client = helper.client()
    asked = [client.send(op="ensure", user=user) for user in ("k1", "K2", people.alice.name)]
    replies = [client.wait_for(one) for one in asked]
    assert [reply["result"] for reply in replies] == ["started"] * 3
    environments = [environment_of(reply["pid"]) for reply in replies]
    assert [environment["PWD"].rpartition("/")[2] for environment in environments] == [
        f"{people.alice.name}+k1",
        f"{people.alice.name}+K2",
        people.alice.name,
    ]
    assert [environment["KNIME_EXECUTOR_RESERVATION"] for environment in environments] == [
        "(user = 'k1')",
        "(user = 'K2')",
        f"(user = '{people.alice.name}')",
    ]
    assert {environment["HOME"] for environment in environments} == {str(people.alice.home)}


def test_an_executor_that_ends_is_told_recorded_and_replaced(helper: HelperUnderTest, people: People) -> None:
    helper.program_of(people.alice, "sleep 0.1; exit 7")
    helper.start()
    client = helper.client()
    pid = client.ensure(people.alice.name)["pid"]
    notice = client.wait_for_notice()
    assert notice == {
        "v": 1,
        "notice": "exited",
        "user": people.alice.name,
        "uid": people.alice.uid,
        "pid": pid,
        "status": 7,
        "seq": notice["seq"],
    }
    record = next(r for r in helper.audit() if r["event"] == "exited")
    assert (record["seq"], record["pid"], record["reason"]) == (notice["seq"], pid, "status 7")
    assert client.executors() == []
    wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "another executor")


def test_quick_deaths_make_a_user_wait_twice_as_long_each_time(helper: HelperUnderTest, people: People) -> None:
    helper.program_of(people.alice, "exit 1")
    helper.start()
    client = helper.client()
    waits = []
    for _ in range(3):
        client.notices.clear()
        wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "the next start")
        client.wait_for_notice()
        wait_for(lambda: longer_wait(client.ensure(people.alice.name)), 30.0, "an answer that says how long")
        waits.append(client.ensure(people.alice.name)["retry_after"])
        assert client.ensure(people.bob.name)["result"] in {"started", "running"}
    assert [0 < waits[0] <= 1, 1 < waits[1] <= 2, 2 < waits[2] <= 4] == [True] * 3, waits


def longer_wait(reply: dict[str, Any]) -> bool:
    """Tell a pause after quick deaths from the moment in which the old executor is seen off."""
    return bool(reply["reason"] == "backing_off" and reply["retry_after"] != 0.2)


def test_a_child_that_outlives_its_executor_is_ended_before_the_next_start(
    helper: HelperUnderTest, people: People
) -> None:
    helper.program_of(
        people.alice,
        "sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 0.1; done' &\n"
        "until [ -s child ]; do sleep 0.05; done; exit 0",
    )
    helper.start(limits={"stop_grace": 3.0})
    client = helper.client()
    client.ensure(people.alice.name)
    client.wait_for_notice(user=people.alice.name)
    child = int((helper.installation.workspace(people.alice) / "child").read_text())
    assert not is_gone(child)
    reply = client.ensure(people.alice.name)
    assert (reply["reason"], reply["retry_after"]) == ("backing_off", 0.2)
    assert client.executors() == []
    helper.program_of(people.alice, "")
    wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "the next start")
    assert is_gone(child)


def test_a_restarted_helper_sees_off_what_an_ended_executor_left(helper: HelperUnderTest, people: People) -> None:
    helper.program_of(people.alice, "sh -c 'echo $$ > child; exec sleep 1000' &\nexec sleep 1000")
    helper.start()
    pid = started(helper, people.alice)
    note = helper.installation.workspace(people.alice) / "child"
    wait_for(note.exists, 30.0, "the child")
    helper.kill()
    os.kill(pid, signal.SIGKILL)
    helper.program_of(people.alice, "")
    helper.start_again()
    assert helper.wait_for_event(user=people.alice.name, event="exited")["reason"] == "status unknown"
    client = helper.client()
    wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "the next start")
    assert is_gone(int(note.read_text()))


@pytest.mark.parametrize("what", ["boot_id", "start_time"])
def test_a_stranger_with_the_pid_of_an_old_executor_is_left_alone(
    helper: HelperUnderTest, people: People, what: str
) -> None:
    """After a reboot, or when a pid came round, the user's own session may bear the number of an old executor."""
    stranger = subprocess.Popen(
        ["sleep", "1000"], user=people.alice.uid, group=people.alice.gid, start_new_session=True
    )
    try:
        facts: dict[str, Any] = {"user": people.alice.name, "os_user": people.alice.name, "uid": people.alice.uid}
        facts |= {"pid": stranger.pid}
        facts |= {"start_time": start_time(stranger.pid), "boot_id": boot_id(), "since": 1.0, "cgroup": None}
        facts |= {"scope": None, what: {"boot_id": "another", "start_time": 1}[what]}
        state = helper.installation.run / "executors"
        state.mkdir(mode=0o700)
        (state / people.alice.name).write_text(json.dumps(facts))
        helper.start()
        client = helper.client()
        assert client.executors() == []
        wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "an executor of his own")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_pid_that_is_a_threads_now_does_not_keep_the_helper_from_starting(
    helper: HelperUnderTest, people: People
) -> None:
    """pidfd_open(2) gives EINVAL for a thread that is no group leader, not ESRCH."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        facts = {"user": people.alice.name, "os_user": people.alice.name, "uid": people.alice.uid}
        facts |= {"pid": thread.native_id, "start_time": 1, "boot_id": boot_id(), "since": 1.0}
        state = helper.installation.run / "executors"
        state.mkdir(mode=0o700)
        (state / people.alice.name).write_text(json.dumps({**facts, "cgroup": None, "scope": None}))
        helper.start()
        assert helper.client().executors() == []
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"user": 1}', "\0" * 100])
def test_a_damaged_state_file_does_not_keep_the_helper_from_starting(
    helper: HelperUnderTest, people: People, text: str
) -> None:
    state = helper.installation.run / "executors"
    state.mkdir(mode=0o700)
    (state / people.alice.name).write_text(text)
    helper.start()
    assert helper.client().ensure(people.alice.name)["result"] == "started"


def test_sigterm_ends_the_helper_and_leaves_the_executors(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    pid, gate = started(helper, people.alice), helper.gate_pid()
    assert helper.stop() == 0
    wait_for(lambda: is_gone(gate), 30.0, "the gate's end")
    assert state_of(pid) == "S"
    assert helper.audit()[-1]["event"] == "helper_stopped"


def test_a_second_helper_leaves_the_first_alone(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    second = helper.run()
    assert second.returncode == 75
    assert second.stderr.count("\n") == 1
    assert "another knime-root-helper is running" in second.stderr
    assert helper.client().ensure(people.alice.name)["result"] == "started"
    assert helper.operator("list", after="") is not None


def test_check_says_nothing_of_a_good_configuration_and_touches_nothing(helper: HelperUnderTest) -> None:
    helper.configure()
    done = helper.run("--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for directory in (helper.installation.run, helper.installation.logs, helper.state):
        assert names_in(directory) == []


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"limits": {"max_executers": 3}}, ["limits.max_executers"]),
    "wrong types": ({"limits": {"max_executors": "3", "lookup_timeout": True}}, ["max_executors", "lookup_timeout"]),
    "root as the gate": ({"socket": {"gate_user": "root"}}, ["socket.gate_user"]),
}
FAULTS_OF_THE_HOST: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such account": ({"socket": {"listener_user": "kpr-unheard-of"}}, ["socket.listener_user"]),
    "no such directory": ({"executor": {"workspaces": "/kpr-unheard-of"}}, ["executor.workspaces"]),
    "no program": ({"executor": {"home": "/kpr-unheard-of"}}, ["executor.home"]),
    "a directory that all can write": ({"executor": {"temp": "/tmp"}}, ["executor.temp"]),
    "no place for the audit log": ({"audit": {"path": "/kpr-unheard-of/audit.jsonl"}}, ["audit.path"]),
    "others can write beside the audit log": ({"audit": {"path": "/tmp/audit.jsonl"}}, ["audit.path"]),
}


@pytest.mark.parametrize("mode", ["--check", "to serve"])
@pytest.mark.parametrize("case", [*FAULTS, *FAULTS_OF_THE_HOST])
def test_a_fault_is_one_line_and_only_one_of_the_file_is_not_worth_another_try(
    helper: HelperUnderTest, case: str, mode: str
) -> None:
    """The unit restarts the helper after 1, since an account or a mount may come late, and not after 2."""
    changes, keys = {**FAULTS, **FAULTS_OF_THE_HOST}[case]
    helper.configure(**changes)
    done = helper.run(*(["--check"] if mode == "--check" else []))
    assert done.returncode == (2 if case in FAULTS or mode == "--check" else 1), done
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert len(lines) == len(keys), done.stderr
    for key in keys:
        assert any(key in line for line in lines)


def said_to_systemd(helper: HelperUnderTest, wanted: str) -> str:
    """Wait for a status line with this text, as ``systemctl status`` would show it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(helper.installation.root / "ready"))
        notified.settimeout(30.0)
        try:
            while wanted not in (said := notified.recv(4096).decode()):
                pass
        finally:
            (helper.installation.root / "ready").unlink()
    assert said.startswith("WATCHDOG=1\nSTATUS=")
    return said.partition("STATUS=")[2]


def test_the_service_manager_is_told_what_goes_on(
    helper: HelperUnderTest, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**helper.environment(), "WATCHDOG_USEC": "400000"}
    monkeypatch.setattr(helper, "environment", lambda: environment)
    helper.start(limits={"max_executors": 7})
    assert said_to_systemd(helper, "") == "0 executors run, 7 more can"
    started(helper, people.alice)
    assert said_to_systemd(helper, "1 executors") == "1 executors run, 6 more can"
    os.kill(helper.gate_pid(), signal.SIGKILL)
    assert said_to_systemd(helper, "gate").endswith("; the gate was restarted 1 times")
    helper.operator("drain", on=True)
    assert said_to_systemd(helper, "drain").startswith("1 executors run, 0 more can; draining; ")
    helper.installation.audit_log.rename(helper.installation.logs / "stolen")
    helper.operator("drain", on=False)
    assert f"; nothing is started, audit log {helper.installation.audit_log}: " in said_to_systemd(helper, "audit")
    (helper.installation.logs / "stolen").rename(helper.installation.audit_log)
    said_to_systemd(helper, "times")


def watching_for_idleness(helper: HelperUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the helper with less time than helper.toml may ask for."""
    patched = "import sys; sys.path.insert(0, {!r})\nimport root_helper.config_rules as rules\nrules._LEAST_IDLE = 0\n"
    patched = patched.format(str(helper.installation.root / "lib"))
    patched += "from root_helper.__main__ import main\nsys.exit(main())\n"
    command = [sys.executable, "-I", "-c", patched, *helper.command()[1:]]
    monkeypatch.setattr(helper, "command", lambda **_: command)
    helper.start(limits={"idle_after": 2.0, "idle_cpu": 0.02})


def test_an_executor_that_nobody_asks_for_and_that_does_nothing_is_stopped(
    helper: HelperUnderTest, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = helper.accounts.user("busy")
    helper.program_of(busy, "(while :; do :; done) &\necho $! > busy")
    watching_for_idleness(helper, monkeypatch)
    client = helper.client()
    pids = {user.name: client.ensure(user.name)["pid"] for user in (people.alice, people.bob, busy)}
    ended = time.monotonic() + 20.0
    while not client.notices and time.monotonic() < ended:
        client.ensure(people.bob.name)
        time.sleep(0.2)
    record = helper.wait_for_event(event="stopped", user=people.alice.name)
    assert (record["pid"], record["reason"], record["peer"]) == (pids[people.alice.name], "idle", None)
    assert [notice["user"] for notice in client.notices] == [people.alice.name]
    assert helper.events(people.alice.name)[-2:] == ["stopped", "exited"]
    assert {entry["user"] for entry in client.executors()} == {people.bob.name, busy.name}
    os.kill(int((helper.installation.workspace(busy) / "busy").read_text()), signal.SIGKILL)
    helper.wait_for_event(20.0, event="stopped", user=busy.name)


def test_the_log_of_an_executor_goes_on_and_is_put_aside_once_when_it_is_large(
    helper: HelperUnderTest, people: People
) -> None:
    helper.program_of(people.alice, "echo one line; sleep 0.1; exit 0")
    helper.start()
    client, log = helper.client(), helper.installation.workspace(people.alice) / "executor.log"
    for lines in (1, 2):
        wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "a start")
        client.wait_for_notice(user=people.alice.name)
        client.notices.clear()
        assert log.read_text() == "one line\n" * lines
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    os.truncate(log, 10 * 2**20)
    wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "a start")
    client.wait_for_notice(user=people.alice.name)
    assert log.read_text() == "one line\n"
    assert log.with_name("executor.log.1").stat().st_size == 10 * 2**20


@pytest.mark.parametrize("what", ["a link", "readable by others", "somebody else's"])
def test_an_executors_log_is_the_users_alone_whatever_lay_in_its_place(
    helper: HelperUnderTest, people: People, what: str
) -> None:
    helper.start()
    os.kill(started(helper, people.alice), signal.SIGKILL)
    log = helper.installation.workspace(people.alice) / "executor.log"
    target = people.alice.home / "target"
    if what == "a link":
        log.unlink()
        log.symlink_to(target)
    elif what == "readable by others":
        log.chmod(0o644)
    else:
        os.chown(log, people.bob.uid, people.bob.gid)
    helper.program_of(people.alice, "echo private")
    client = helper.client()
    wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "a start")
    wait_for(lambda: log.read_text() == "private\n", 30.0, "its line")
    facts = log.lstat()
    assert (facts.st_uid, stat.S_IMODE(facts.st_mode)) == (people.alice.uid, 0o600)
    assert not target.exists()


@pytest.mark.parametrize("damage", ["removed", "damaged"])
def test_an_executor_that_was_lost_sight_of_keeps_its_user_from_a_second_one(
    helper: HelperUnderTest, people: People, damage: str
) -> None:
    """Without scopes nothing else says who runs: the executor's lock on the temp directory does."""
    helper.start()
    pid = started(helper, people.alice)
    helper.kill()
    state = helper.installation.run / "executors" / people.alice.name
    if damage == "removed":
        state.unlink()
    else:
        state.write_text("{", encoding="ascii")
    helper.start_again()
    client = helper.client()
    reply = client.ensure(people.alice.name)
    assert (reply["result"], reply["reason"]) == ("failed", "backing_off")
    assert asleep(pid)
    assert "lost sight of" in helper.log.read_text()
    assert client.ensure(people.bob.name)["result"] == "started"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 30.0, "an executor")


def test_thousands_of_children_that_an_executor_left_are_all_ended_while_others_are_served(
    helper: HelperUnderTest, people: People
) -> None:
    count = 300
    spawn = (
        f"n=0; while [ $n -lt {count} ]; do (trap '' TERM; exec /bin/sleep 99999) & n=$((n+1)); done; echo $$ > done"
    )
    helper.program_of(people.alice, spawn)
    helper.start(limits={"stop_grace": 1.0})
    client = helper.client()
    pid = client.ensure(people.alice.name)["pid"]
    wait_for((helper.installation.workspace(people.alice) / "done").exists, 30.0, "the children")
    os.kill(pid, signal.SIGKILL)
    client.wait_for_notice(user=people.alice.name)
    assert client.ensure(people.bob.name)["result"] == "started"
    assert client.ensure(people.alice.name)["reason"] == "backing_off"
    helper.program_of(people.alice, "")
    wait_for(lambda: client.ensure(people.alice.name)["result"] == "started", 20.0, "the next start")
    assert len([process for process in processes_of([people.alice.uid]) if process.alive()]) == 1


def test_explain_tells_every_decision_and_starts_nothing(helper: HelperUnderTest, people: People) -> None:
    helper.configure(users={"map": {"Alice": people.alice.name}})
    done = helper.run("--explain", "Alice")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert (found["decision"], found["os_user"]) == ("would_start", people.alice.name)
    assert found["account"]["uid"] == people.alice.uid
    assert found["workspace"] == f"{helper.installation.workspaces}/{people.alice.name}+Alice"
    for name, reason in (("root", "denied_user"), ("$(id)", "invalid_name"), ("kpr-unheard-of", "unknown_user")):
        done = helper.run("--explain", name)
        assert (done.returncode, json.loads(done.stdout)["reason"]) == (1, reason)
    assert names_in(helper.installation.workspaces) == []
    assert not people.alice.home.exists()


def test_a_socket_file_that_was_removed_is_bound_again(helper: HelperUnderTest, people: People) -> None:
    helper.start()
    pid = started(helper, people.alice)
    helper.installation.socket.unlink()
    wait_for(helper.installation.socket.exists, 30.0, "the socket file")
    facts = helper.installation.socket.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o660, 0)
    assert helper.client().ensure(people.alice.name)["pid"] == pid


def test_the_helper_is_roots_and_says_so_to_others(helper: HelperUnderTest, people: People) -> None:
    helper.configure()
    for directory in (helper.installation.root / "bin", helper.installation.root / "lib"):
        assert directory.stat().st_uid == 0
    command = ["setpriv", "--reuid", str(people.alice.uid), "--clear-groups", "--", *helper.command()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": PATH}, cwd="/")
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
