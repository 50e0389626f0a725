"""``./quickstart`` on a host that no systemd runs: names that are taken, a reader that goes away, and what stays."""

import grp
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import platform, units
from tests.lab.installation import CHECKOUT
from tests.lab.processes import PATH

HOME = Path("/var/lib/knime-peruser-quickstart")
pytestmark = [
    pytest.mark.skipif(units.systemd_runs_this_host(), reason="this host is run by systemd: tests/system has its own"),
    pytest.mark.skipif(platform.unsupported() is not None, reason="this system is not supported"),
    pytest.mark.xdist_group("quickstart"),
]


def names() -> set[str]:
    accounts = {entry.pw_name for entry in pwd.getpwall()} | {entry.gr_name for entry in grp.getgrall()}
    return {name for name in accounts if name.startswith("kpr-demo")}


@contextmanager
def taken(*command: str, undo: tuple[str, ...]) -> Iterator[None]:
    """Have NSS know a name that no run of ours has made."""
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(undo, check=True)


def quickstart(redirection: str = "") -> subprocess.CompletedProcess[str]:
    shell = ["bash", "-c", f"set -o pipefail; ./quickstart {redirection}"]
    return subprocess.run(
        shell, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={"PATH": PATH},
        timeout=240,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "undo"),
    [
        (("useradd", "--no-create-home", "kpr-demo-alice"), ("userdel", "kpr-demo-alice")),
        (("groupadd", "kpr-demo-analysts"), ("groupdel", "kpr-demo-analysts")),
        (("useradd", "--no-create-home", "kpr-demo-nobody-knows-me"), ("userdel", "kpr-demo-nobody-knows-me")),
    ],
    ids=["a user", "a group", "the unknown one"],
)
def test_names_that_nss_knows_are_left_alone(command: tuple[str, ...], undo: tuple[str, ...]) -> None:
    """The demo users get other names, whoever has the usual ones: a directory may."""
    with taken(*command, undo=undo):
        before = names()
        done = quickstart()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "kpr-demo2-alice's job runs in an executor of their own" in done.stdout
        assert "kpr-demo2-nobody-knows-me unknown_user" in " ".join(done.stdout.split())
        assert names() == before
    assert not HOME.exists()


def test_a_reader_that_goes_away_ends_it_and_all_is_taken_back() -> None:
    """``./quickstart | head -3`` must not leave users, a broker or daemons behind."""
    before = names()
    done = quickstart("| head -3")
    assert done.returncode == 141, done.stderr
    assert done.stderr == ""
    assert names() == before
    assert not HOME.exists()
