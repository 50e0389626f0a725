"""Who has an account on the host, or the listener's own, and wants what is the helper's: nothing of it can be read."""

import os
import pwd
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.accounts import GATE, LISTENER, OsUser
from tests.lab.file_trees import as_user, facts_of
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test, state_of
from tests.lab.processes import wait_for


@pytest.fixture(scope="module")
def laid_out() -> Iterator[tuple[HelperUnderTest, OsUser, OsUser]]:
    with helper_under_test() as made:
        yield made, made.accounts.user("alice"), made.accounts.user("eve")


@pytest.fixture
def helper(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> Iterator[HelperUnderTest]:
    laid_out[0].start()
    yield laid_out[0]
    laid_out[0].reset()


def named(name: str) -> OsUser:
    entry = pwd.getpwnam(name)
    return OsUser(name, entry.pw_uid, entry.pw_gid, Path("/nonexistent"))


READ = 'for path; do cat "$path" || ls "$path/"; done 2>/dev/null'
CHANGE = 'for path; do echo x >> "$path" || touch "$path/x" || mv "$path" "$path.x"; done 2>/dev/null'


@pytest.mark.parametrize("who", ["eve", LISTENER, GATE, "nobody"])
def test_nobody_but_root_reads_or_changes_the_credential_the_audit_log_the_state_or_another_users_files(
    helper: HelperUnderTest, laid_out: tuple[HelperUnderTest, OsUser, OsUser], who: str
) -> None:
    _, alice, eve = laid_out
    account = eve if who == "eve" else named(who)
    pid = helper.client().ensure(alice.name)["pid"]
    held = helper.installation
    secret = [
        held.credentials("helper") / "executor-msgq",
        held.audit_log,
        held.run / "executors",
        held.run / "helper.lock",
    ]
    secret += [held.run / "executors" / alice.name, held.workspace(alice), held.temp / alice.name, alice.home]
    secret += [held.workspace(alice) / "executor.log", held.operator_socket]
    secret += [Path(f"/proc/{pid}/{name}") for name in ("environ", "maps", "mem", "cwd", "fd")]
    secret += [Path(f"/proc/{helper.pid}/{name}") for name in ("environ", "maps", "mem", "fd")]
    assert all(os.path.lexists(path) for path in secret)
    assert as_user(account, READ, *secret).stdout == ""
    before = [facts_of(path) for path in (held.run, held.workspaces, held.etc, held.root / "lib")]
    also = [held.helper_toml, held.etc, held.root / "lib/root_helper/worker.py", held.root / "bin", held.workspaces]
    as_user(account, CHANGE, *secret, *also)
    assert [facts_of(path) for path in (held.run, held.workspaces, held.etc, held.root / "lib")] == before
    helper.audit()  # still one whole chain


@pytest.mark.parametrize("who", ["eve", LISTENER, GATE])
def test_nobody_but_root_signals_the_helper_its_gate_or_anothers_executor(
    helper: HelperUnderTest, laid_out: tuple[HelperUnderTest, OsUser, OsUser], who: str
) -> None:
    """But the gate's account its own process, which is started again."""
    _, alice, eve = laid_out
    account = eve if who == "eve" else named(who)
    pid = helper.client().ensure(alice.name)["pid"]
    pids = [helper.pid, pid] + [helper.gate_pid()] * (who != GATE)
    for victim in pids:
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
            assert as_user(account, f"kill -{number:d} {victim}").returncode != 0
    assert {state_of(victim) for victim in pids} == {"S"}


@pytest.mark.needs("trace")
def test_the_executors_secret_is_in_no_log_no_state_file_and_on_no_command_line(
    helper: HelperUnderTest, laid_out: tuple[HelperUnderTest, OsUser, OsUser]
) -> None:
    alice = laid_out[1]
    pid = helper.client().ensure(alice.name)["pid"]
    secret = (helper.installation.credentials("helper") / "executor-msgq").read_bytes().strip()
    wait_for(lambda: secret in Path(f"/proc/{pid}/environ").read_bytes(), 30.0, "the executor's environment")
    places = [helper.log, helper.installation.audit_log, helper.installation.run / "executors" / alice.name]
    places += [Path(f"/proc/{one}/cmdline") for one in (pid, helper.pid, helper.gate_pid())]
    places += [Path(f"/proc/{one}/environ") for one in (helper.pid, helper.gate_pid())]
    for place in places:
        assert secret not in place.read_bytes()
