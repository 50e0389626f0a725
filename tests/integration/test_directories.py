"""Home, workspace and temp directory with real users, real ACLs and PAM's own mkhomedir_helper; needs root."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from root_helper.acl import PrivateAcl, private_acl
from root_helper.directories import NotPrepared, ensure_home, ensure_private
from root_helper.policy import Account
from tests.lab.accounts import Accounts, OsUser, run_prefix
from tests.lab.file_trees import (
    account_of,
    as_user,
    facts_of,
    give_home,
    in_private_mounts,
    mount,
    names_in,
    roots_own_tree,
)
from tests.lab.processes import wait_for

pytestmark = pytest.mark.library

PRIVATE = private_acl([])


@pytest.fixture(scope="module")
def accounts() -> Iterator[Accounts]:
    made = Accounts(Path("/nonexistent"), run_prefix())
    yield made
    made.remove()


@pytest.fixture(scope="module")
def user(accounts: Accounts) -> OsUser:
    return accounts.user("alice")


@pytest.fixture(scope="module")
def stranger(accounts: Accounts) -> OsUser:
    return accounts.user("mallory")


@pytest.fixture(scope="module")
def operator(accounts: Accounts) -> tuple[OsUser, PrivateAcl]:
    """Give a member of the backup group, and the ACL that lets the group read."""
    group = accounts.group("backup")
    member = accounts.user("backup-op", groups=[group])
    gid = next(gid for gid in os.getgrouplist(member.name, member.gid) if gid != member.gid)
    return member, private_acl([f"g:{gid}:r-x"])


@pytest.fixture
def tree() -> Iterator[Path]:
    with roots_own_tree() as made:
        yield made


def ensure(tree: Path, account: Account, acl: PrivateAcl = PRIVATE) -> Path:
    os.close(ensure_private(str(tree), account.name, account, acl))
    return tree / account.name


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def acl_of(path: Path) -> list[str]:
    text = subprocess.run(["getfacl", "-cpE", str(path)], check=True, capture_output=True, text=True).stdout
    return text.split()


def test_a_new_directory_is_the_accounts_own_with_its_primary_group_and_mode_0700(tree: Path, user: OsUser) -> None:
    made = ensure(tree, account_of(user))
    status = made.lstat()
    assert (status.st_uid, status.st_gid, mode(made)) == (user.uid, user.gid, 0o700)
    private = ["user::rwx", "group::---", "other::---"]
    assert acl_of(made) == [*private, *(f"default:{entry}" for entry in private)]
    assert names_in(tree) == [user.name]


def test_the_descriptor_is_the_directorys_and_can_be_locked_and_is_not_inherited(tree: Path, user: OsUser) -> None:
    for _ in ("made", "found"):
        descriptor = ensure_private(str(tree), user.name, account_of(user), PRIVATE)
        try:
            assert os.fstat(descriptor).st_ino == (tree / user.name).lstat().st_ino
            assert not os.get_inheritable(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


def test_no_descriptor_is_left_open_and_the_caller_is_root_with_its_groups_again(
    tree: Path, user: OsUser, stranger: OsUser
) -> None:
    def state() -> tuple[object, ...]:
        return len(names_in(Path("/proc/self/fd"))), os.getresuid(), os.getresgid(), os.getgroups()

    before = state()
    for _ in ("made", "found"):
        ensure(tree, account_of(user))
        ensure_home(account_of(user, tree / user.name), [])
    with pytest.raises(Exception, match="belongs to uid"):
        ensure_home(account_of(stranger, tree / user.name), [])
    assert state() == before


def test_another_user_can_neither_list_nor_enter_nor_read_it_nor_write_to_it(
    tree: Path, user: OsUser, stranger: OsUser
) -> None:
    made = ensure(tree, account_of(user))
    assert as_user(user, 'echo secret > "$1/known"', made).returncode == 0
    (made / "known").chmod(0o666)
    for attack in ('ls "$1"', 'ls "$1/."', 'cat "$1/known"', 'echo >> "$1/known"', 'echo > "$1/new"', 'mv "$1" "$1.x"'):
        assert "denied" in as_user(stranger, attack, made).stderr


def test_what_the_user_makes_below_under_umask_022_is_private_too(tree: Path, user: OsUser) -> None:
    made = ensure(tree, account_of(user))
    assert as_user(user, 'umask 022; mkdir -p "$1/a/b" && echo > "$1/a/b/file"', made).returncode == 0
    assert [mode(made / name) for name in ("a", "a/b", "a/b/file")] == [0o700, 0o700, 0o600]


def test_an_extra_entry_is_effective_at_the_first_the_second_and_the_third_start(
    tree: Path, user: OsUser, stranger: OsUser, operator: tuple[OsUser, PrivateAcl]
) -> None:
    member, acl = operator
    for turn in ("first", "second", "third"):
        made = ensure(tree, account_of(user), acl)
        assert as_user(user, 'umask 022; mkdir -p "$1/$2" && echo text > "$1/$2/file"', made, turn).returncode == 0
        assert (
            as_user(member, 'ls "$1" && cat "$1/$2/file"', made, turn).stdout == f"{turn}\ntext\n"
            if turn == "first"
            else True
        )
        assert as_user(member, 'cat "$1/$2/file"', made, turn).stdout == "text\n"
        assert "denied" in as_user(member, 'echo > "$1/x"', made).stderr
        assert "denied" in as_user(stranger, 'ls "$1"', made).stderr
        assert mode(made) == 0o750


def test_an_acl_that_was_changed_is_brought_back_and_an_entry_that_left_the_configuration_goes(
    tree: Path, user: OsUser, operator: tuple[OsUser, PrivateAcl]
) -> None:
    member, acl = operator
    made = ensure(tree, account_of(user), acl)
    right = acl_of(made)
    for spoilt in ("setfacl -b", "setfacl -k", "setfacl -m o::rwx", "chmod 700", "chmod 0"):
        assert as_user(user, f'{spoilt} "$1"', made).returncode == 0
        ensure(tree, account_of(user), acl)
        assert acl_of(made) == right
    ensure(tree, account_of(user))
    assert "denied" in as_user(member, 'ls "$1"', made).stderr


def test_a_directory_that_is_right_already_is_not_written_to(tree: Path, user: OsUser) -> None:
    made = ensure(tree, account_of(user))
    before = made.stat().st_ctime_ns
    ensure(tree, account_of(user))
    assert made.stat().st_ctime_ns == before


def test_a_workspace_of_the_predecessor_is_taken_over_with_its_group_and_content_as_they_are(
    tree: Path, user: OsUser, operator: tuple[OsUser, PrivateAcl]
) -> None:
    _, acl = operator
    old = tree / user.name
    old.mkdir(0o700)
    (old / "data").mkdir(0o755)
    (old / "data" / "file").write_text("kept")
    subprocess.run(["setfacl", "-m", "u:daemon:rwx,d:u:daemon:rwx", str(old / "data")], check=True)
    subprocess.run(["setfacl", "-m", "u:daemon:rwx,d:u::rwx,d:g::rwx,d:o::rx", str(old)], check=True)
    subprocess.run(["chown", "-R", f"{user.uid}:0", str(old)], check=True)
    content = facts_of(old / "data")
    ensure(tree, account_of(user), acl)
    status = old.lstat()
    assert (status.st_uid, status.st_gid) == (user.uid, 0)
    assert not [entry for entry in acl_of(old) if "daemon" in entry]
    assert facts_of(old / "data") == content


@pytest.mark.needs("mount namespace")
def test_a_missing_home_is_made_from_the_skeleton_and_is_private(tree: Path, user: OsUser) -> None:
    def check() -> None:
        skeleton = tree / "skel"
        (skeleton / "sub").mkdir(parents=True)
        (skeleton / "sub" / "file").write_text("text")
        mount("--bind", skeleton, "/etc/skel")
        home = home_of(tree, user)
        ensure_home(account_of(user, home), [str(home.parent)])
        status = home.lstat()
        assert (status.st_uid, status.st_gid, mode(home)) == (user.uid, user.gid, 0o700)
        assert as_user(user, 'cat "$1/sub/file" && echo > "$1/sub/own"', home).stdout == "text"
        assert names_in(home.parent) == [home.name]

    in_private_mounts(check)


@pytest.mark.needs("mount namespace")
def test_a_home_one_directory_below_a_home_root_is_made_but_its_parent_is_not(tree: Path, user: OsUser) -> None:
    def check() -> None:
        home = home_of(tree, user, under="staff")
        account = account_of(user, home)
        with pytest.raises(Exception, match="not root's alone"):
            ensure_home(account, [str(tree / "home")])
        home.parent.mkdir(mode=0o755)
        ensure_home(account, [str(tree / "home")])
        assert home.owner() == user.name

    in_private_mounts(check)


def test_a_home_that_is_there_is_left_as_it_is(tree: Path, user: OsUser) -> None:
    home = tree / "home"
    home.mkdir(0o755)
    os.chown(home, user.uid, 0)
    before = facts_of(tree)
    ensure_home(account_of(user, home), [])
    assert facts_of(tree) == before


def test_a_home_is_looked_at_with_the_users_rights_and_groups_and_not_with_roots(
    tree: Path, user: OsUser, operator: tuple[OsUser, PrivateAcl]
) -> None:
    member, _ = operator
    group = next(gid for gid in os.getgrouplist(member.name, member.gid) if gid != member.gid)
    gate = tree / "gate"
    gate.mkdir(0o710)
    os.chown(gate, 0, group)
    for owner in (member, user):
        (gate / owner.name).mkdir(0o700)
        os.chown(gate / owner.name, owner.uid, owner.gid)
    ensure_home(account_of(member, gate / member.name), [])
    with pytest.raises(NotPrepared, match="Permission denied"):
        ensure_home(account_of(user, gate / user.name), [])


@pytest.mark.needs("mount namespace")
def test_a_home_whose_making_was_killed_midway_is_made_anew_by_the_next_start(tree: Path, user: OsUser) -> None:
    def check() -> None:
        home, start = slow_home(tree, user)
        maker = stopped_midway(home, start)
        os.kill(maker, signal.SIGKILL)
        assert start() == "NotPrepared"
        assert home.owner() == "root"
        assert len(names_in(home)) < 2000
        (home / "left-over").write_text("is removed")
        ensure_home(account_of(user, home), [str(home.parent)])
        assert_complete(home, user)
        assert names_in(home.parent) == [home.name]

    in_private_mounts(check)


@pytest.mark.needs("mount namespace")
def test_a_home_that_an_orphaned_helper_still_makes_is_not_taken_for_half_made(tree: Path, user: OsUser) -> None:
    def check() -> None:
        home, start = slow_home(tree, user)
        maker = stopped_midway(home, start)
        os.kill(parent_of(maker), signal.SIGKILL)
        assert start() == "killed"
        before = facts_of(home)
        with pytest.raises(NotPrepared, match="another start is making it"):
            ensure_home(account_of(user, home), [str(home.parent)])
        assert facts_of(home) == before
        os.kill(maker, signal.SIGCONT)
        wait_for(lambda: home.owner() == user.name, 30, "the orphan's end")
        ensure_home(account_of(user, home), [str(home.parent)])
        assert_complete(home, user)

    in_private_mounts(check)


@pytest.mark.needs("mount namespace")
def test_without_mkhomedir_helper_the_fault_names_the_package(tree: Path, user: OsUser) -> None:
    def check() -> None:
        home = home_of(tree, user)
        mount("-t", "tmpfs", "none", "/usr/sbin")
        with pytest.raises(NotPrepared, match="install libpam-modules-bin"):
            ensure_home(account_of(user, home), [str(home.parent)])
        assert not home.exists()

    in_private_mounts(check)


@pytest.mark.needs("mount namespace")
def test_three_capabilities_suffice_for_all_of_it(tree: Path, user: OsUser) -> None:
    """CHOWN, SETUID and SETGID: what root can do by owning, and what the user can do, needs no others."""

    def check() -> None:
        home = home_of(tree, user)
        skeleton = tree / "skel" / "sub"
        skeleton.mkdir(parents=True)
        mount("--bind", tree / "skel", "/etc/skel")
        left_over = tree / f".{user.name}.new"
        (left_over / "sub").mkdir(parents=True)
        for path in (left_over, left_over / "sub"):
            os.chown(path, user.uid, user.gid)
            path.chmod(0)
        half_made = home / "sub"
        half_made.mkdir(parents=True)
        os.chown(half_made, user.uid, user.gid)
        (home.parent / f".{user.name}.pending").touch()
        account = account_of(user, home)
        script = f"""
import os
from root_helper.acl import private_acl
from root_helper.directories import ensure_home, ensure_private
from root_helper.policy import Account
account = {account!r}
ensure_home(account, [{str(home.parent)!r}])
for extra in ([], ["u:1:r-x"]):
    os.close(ensure_private({str(tree)!r}, account.name, account, private_acl(extra)))
"""
        three = "-all,+chown,+setuid,+setgid"
        command = ["setpriv", f"--bounding-set={three}", "--inh-caps=-all", sys.executable, "-c", script]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
        assert names_in(tree) == sorted(["home", "passwd", "skel", user.name])
        assert "user:daemon:r-x" in acl_of(tree / user.name)
        assert names_in(home.parent) == [user.name]
        assert ((home / "sub").owner(), mode(home)) == (user.name, 0o700)

    in_private_mounts(check)


def home_of(tree: Path, user: OsUser, under: str = "") -> Path:
    """Give the user, for NSS, a home below a home root; neither it nor what it lies ``under`` is made."""
    (tree / "home").mkdir(mode=0o755)
    home = tree / "home" / under / user.name
    give_home(user, home, passwd=tree / "passwd")
    return home


def slow_home(tree: Path, user: OsUser) -> tuple[Path, Callable[[], str]]:
    """Give a home with a skeleton of 2,000 files, and what starts making it in a child and then waits for its end."""
    skeleton = tree / "skel"
    skeleton.mkdir()
    for number in range(2000):
        (skeleton / f"{number}").write_text("text")
    mount("--bind", skeleton, "/etc/skel")
    home = home_of(tree, user)
    child = 0

    def start() -> str:
        nonlocal child
        if child:
            return {0: "made", 1: "NotPrepared", -signal.SIGKILL: "killed"}[
                os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            ]
        child = os.fork()
        if child == 0:
            try:
                ensure_home(account_of(user, home), [str(home.parent)])
                os._exit(0)
            except NotPrepared:
                os._exit(1)
            finally:
                os._exit(2)
        return str(child)

    return home, start


def stopped_midway(home: Path, start: Callable[[], str]) -> int:
    """Start, and stop mkhomedir_helper when it has made some files; give its pid."""
    children = Path(f"/proc/{(pid := start())}/task/{pid}/children")
    wait_for(lambda: home.exists() and len(names_in(home)) > 20, 20, "a part of the home")
    maker = int(children.read_text(encoding="ascii").split()[0])
    os.kill(maker, signal.SIGSTOP)
    assert 20 < len(names_in(home)) < 2000
    return maker


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])


def assert_complete(home: Path, user: OsUser) -> None:
    assert (len(names_in(home)), home.owner(), mode(home)) == (2000, user.name, 0o700)
    assert {path.owner() for path in home.iterdir()} == {user.name}
