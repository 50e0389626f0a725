"""What others put in the way of home, workspace and temp: refused, and nothing of theirs or of others is changed.

Real users attack; where only root could do what is tried (swap a name in a directory that is root's), root does it,
so that each defence is tried alone and not behind the one before it.
"""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import RefusedReason
from root_helper import directories
from root_helper.acl import private_acl
from root_helper.config import AclConfig, HelperConfig, WorkspaceConfig
from root_helper.config_rules import rule_faults
from root_helper.directories import Conflict, NotPrepared, ensure_home, ensure_private
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

PRIVATE = private_acl([])
AT_FDCWD = -100
RENAME_EXCHANGE = 2


@pytest.fixture(scope="module")
def accounts() -> Iterator[Accounts]:
    made = Accounts(Path("/nonexistent"), run_prefix())
    yield made
    made.remove()


@pytest.fixture(scope="module")
def user(accounts: Accounts) -> OsUser:
    return accounts.user("alice")


@pytest.fixture(scope="module")
def mallory(accounts: Accounts) -> OsUser:
    return accounts.user("mallory")


@pytest.fixture
def tree() -> Iterator[Path]:
    """Give a directory with ``parent``, where the helper is to work, and ``victim``, which must stay as it is."""
    with roots_own_tree() as made:
        (made / "parent").mkdir(0o755)
        (made / "victim").mkdir(0o755)
        (made / "victim" / "file").write_text("kept")
        yield made


def own(path: Path, user: OsUser) -> None:
    os.chown(path, user.uid, user.gid, follow_symlinks=False)


def a_symlink_to_a_directory_of_the_users_own(path: Path, user: OsUser, _mallory: OsUser) -> None:
    target = path.parents[1] / "victim"
    own(target, user)
    path.symlink_to(target)
    own(path, user)


def a_symlink_to_nothing(path: Path, _user: OsUser, _mallory: OsUser) -> None:
    path.symlink_to(path.parents[1] / "absent")


def a_file(path: Path, user: OsUser, _mallory: OsUser) -> None:
    path.write_text("kept")
    own(path, user)


def a_set_uid_file(path: Path, user: OsUser, _mallory: OsUser) -> None:
    shutil.copy("/bin/true", path)
    own(path, user)
    path.chmod(0o4755)


def a_hard_link(path: Path, user: OsUser, _mallory: OsUser) -> None:
    target = path.parents[1] / "victim" / "file"
    own(target, user)
    path.hardlink_to(target)


def a_fifo(path: Path, user: OsUser, _mallory: OsUser) -> None:
    os.mkfifo(path)
    own(path, user)


def a_directory_of_another_user(path: Path, _user: OsUser, mallory: OsUser) -> None:
    path.mkdir(0o777)
    own(path, mallory)


OBSTACLES = [
    a_symlink_to_a_directory_of_the_users_own,
    a_file,
    a_set_uid_file,
    a_hard_link,
    a_fifo,
    a_directory_of_another_user,
]


@pytest.mark.parametrize("obstacle", [*OBSTACLES, a_symlink_to_nothing])
def test_what_is_no_directory_of_the_account_is_refused_as_workspace_and_nothing_is_changed(
    tree: Path, user: OsUser, mallory: OsUser, obstacle: Callable[[Path, OsUser, OsUser], None]
) -> None:
    obstacle(tree / "parent" / user.name, user, mallory)
    before = facts_of(tree)
    with pytest.raises(Conflict) as refused:
        ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE)
    assert refused.value.reason is RefusedReason.WORKSPACE_CONFLICT
    assert facts_of(tree) == before


def test_a_workspace_of_root_is_refused_and_not_given_away(tree: Path, user: OsUser) -> None:
    (tree / "parent" / user.name).mkdir(0o700)
    before = facts_of(tree)
    with pytest.raises(Conflict, match="belongs to uid 0"):
        ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE)
    assert facts_of(tree) == before


@pytest.mark.parametrize("kind", ["another device", "the same device"])
@pytest.mark.needs("mount namespace")
def test_a_mount_point_in_place_of_the_workspace_is_refused_even_where_it_is_the_users(
    tree: Path, user: OsUser, kind: str
) -> None:
    def check() -> None:
        workspace = tree / "parent" / user.name
        workspace.mkdir(0o700)
        mount(*(["--bind", tree / "victim"] if kind == "the same device" else ["-t", "tmpfs", "none"]), workspace)
        own(workspace, user)
        before = facts_of(workspace)
        with pytest.raises(Conflict, match="is a mount point"):
            ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE)
        assert facts_of(workspace) == before

    in_private_mounts(check)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_a_parent_that_others_can_write_is_not_used_sticky_or_not(tree: Path, user: OsUser, mode: int) -> None:
    (tree / "parent" / "below").mkdir()
    (tree / "parent").chmod(mode)
    for parent in (tree / "parent", tree / "parent" / "below"):
        before = facts_of(tree)
        with pytest.raises(NotPrepared, match="not root's alone"):
            ensure_private(str(parent), user.name, account_of(user), PRIVATE)
        with pytest.raises(Conflict, match="not root's alone"):
            ensure_home(account_of(user, parent / user.name), [str(tree)])
        assert facts_of(tree) == before


def test_a_parent_of_another_user_is_not_used(tree: Path, user: OsUser, mallory: OsUser) -> None:
    own(tree / "parent", mallory)
    with pytest.raises(NotPrepared, match="not root's alone"):
        ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE)
    assert names_in(tree / "parent") == []


def test_a_parent_that_is_absent_is_a_fault_of_the_host_and_not_the_users(tree: Path, user: OsUser) -> None:
    with pytest.raises(NotPrepared, match="No such file"):
        ensure_private(str(tree / "not-mounted"), user.name, account_of(user), PRIVATE)


@pytest.mark.parametrize("name", ["", ".", "..", ".alice", "a/b", "../victim"])
def test_a_name_that_is_none_is_never_used(tree: Path, user: OsUser, name: str) -> None:
    before = facts_of(tree)
    with pytest.raises(ValueError, match="no directory name"):
        ensure_private(str(tree / "parent"), name, account_of(user), PRIVATE)
    assert facts_of(tree) == before


def test_a_name_swapped_in_a_loop_for_a_symlink_never_leads_to_what_the_symlink_names(tree: Path, user: OsUser) -> None:
    """The symlink's target is the account's own, so that no check of the owner helps: only O_NOFOLLOW does."""
    parent = tree / "parent"
    own(tree / "victim", user)
    os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
    real = (parent / user.name).stat().st_ino
    (parent / "link").symlink_to(tree / "victim")
    before = facts_of(tree / "victim")
    other = private_acl(["u:1:rwx"])
    seen = {"used": 0, "refused": 0}
    with attacker(None, lambda: exchange(parent / user.name, parent / "link")):
        deadline = time.monotonic() + 30
        while min(seen.values()) < 200 and time.monotonic() < deadline:
            try:
                used = ensure_private(
                    str(parent), user.name, account_of(user), (PRIVATE, other)[sum(seen.values()) % 2]
                )
            except Conflict:
                seen["refused"] += 1
            else:
                seen["used"] += 1
                assert os.fstat(used).st_ino == real
                os.close(used)
    assert min(seen.values()) >= 200
    assert facts_of(tree / "victim") == before


def test_a_directory_in_the_making_swapped_in_a_loop_for_a_symlink_gives_nothing_away(tree: Path, user: OsUser) -> None:
    parent, staging = tree / "parent", tree / "parent" / f".{user.name}.new"
    (parent / "link").symlink_to(tree / "victim")
    before = facts_of(tree / "victim")
    outcomes = set()
    with attacker(None, lambda: exchange(staging, parent / "link")):
        for _ in range(1500):
            try:
                os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
                outcomes.add("made")
            except (NotPrepared, Conflict) as error:
                outcomes.add(type(error).__name__)
            for name in {user.name, "link"}.intersection(names_in(parent)):
                with suppress(OSError):
                    (parent / name).rmdir()
                with suppress(OSError):
                    (parent / name).unlink()
            with suppress(FileExistsError):
                (parent / "link").symlink_to(tree / "victim")
    assert "made" in outcomes
    assert len(outcomes) > 1, "the attacker was never quick enough"
    assert facts_of(tree / "victim") == before


def test_a_left_over_with_hostile_content_is_removed_and_nothing_that_it_points_to(tree: Path, user: OsUser) -> None:
    left_over = tree / "parent" / f".{user.name}.new"
    left_over.mkdir(0o700)
    (left_over / "hard-link").hardlink_to(tree / "victim" / "file")
    own(left_over, user)
    hostile = r"""cd "$1" && mkdir -p deep/er/dir closed/dir && ln -s "$2" link && ln -s "$2/file" deep/link
        mkfifo fifo && touch -- -rf "$(printf 'new\nline')" "$(printf 'b\377d')" closed/file
        chmod 0 closed && setfacl -m u:daemon:rwx deep && chmod 1777 deep/er"""
    assert as_user(user, hostile, left_over, tree / "victim").stderr == ""
    before = facts_of(tree / "victim")
    os.close(ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE))
    assert names_in(tree / "parent") == [user.name]
    assert names_in(tree / "parent" / user.name) == []
    after = facts_of(tree / "victim")
    links = after.pop(str(tree / "victim" / "file"))[4], before.pop(str(tree / "victim" / "file"))[4]
    assert links == (1, 2)
    assert after == before


@pytest.mark.parametrize("put", ["a symlink", "a file"])
def test_a_left_over_that_is_no_directory_is_unlinked_and_not_followed(tree: Path, user: OsUser, put: str) -> None:
    left_over = tree / "parent" / f".{user.name}.new"
    left_over.symlink_to(tree / "victim") if put == "a symlink" else left_over.write_text("text")
    before = facts_of(tree / "victim")
    os.close(ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE))
    assert names_in(tree / "parent") == [user.name]
    assert facts_of(tree / "victim") == before


@pytest.mark.parametrize("depth", ["at the top", "below"])
@pytest.mark.needs("mount namespace")
def test_a_mount_in_a_left_over_is_not_entered(tree: Path, user: OsUser, depth: str) -> None:
    def check() -> None:
        left_over = tree / "parent" / f".{user.name}.new"
        place = left_over if depth == "at the top" else left_over / "below"
        place.mkdir(parents=True)
        mount("--bind", tree / "victim", place)
        before = facts_of(tree / "victim")
        with pytest.raises(NotPrepared, match="is a mount or too deep"):
            ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE)
        assert facts_of(tree / "victim") == before
        assert not (tree / "parent" / user.name).exists()

    in_private_mounts(check)


def test_a_left_over_too_deep_to_remove_is_a_clear_failure_of_its_owners_start_alone(tree: Path, user: OsUser) -> None:
    left_over = tree / "parent" / f".{user.name}.new"
    (left_over / "/".join("d" * 100)).mkdir(parents=True)
    with pytest.raises(NotPrepared, match="remove it by hand"):
        ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE)
    assert not (tree / "parent" / user.name).exists()


def test_the_owner_of_a_left_over_who_fills_and_swaps_while_it_is_removed_gains_nothing(
    tree: Path, user: OsUser
) -> None:
    parent, left_over = tree / "parent", tree / "parent" / f".{user.name}.new"
    before = facts_of(tree / "victim")
    with attacker(user, lambda: fill_and_swap(left_over, tree / "victim")):
        for turn in range(20):
            left_over.mkdir(0o700)
            own(left_over, user)
            wait_for(lambda: len(names_in(left_over)) > 3, 30, "the attacker's work")
            os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
            assert names_in(parent) == [user.name]
            # The attacker's own by now, and perhaps still being filled by a descriptor from before.
            (parent / user.name).rename(tree / f"done{turn}")
    assert facts_of(tree / "victim") == before


def fill_and_swap(left_over: Path, victim: Path) -> None:
    """Put directories and symlinks there and exchange them, with the names and by descriptor, as long as it goes."""
    directory = os.open(left_over, os.O_RDONLY)
    with suppress(OSError):
        for number in range(1000):
            os.mkdir(f"dir{number}", dir_fd=directory)
            os.symlink(victim, f"link{number}", dir_fd=directory)
            with suppress(OSError):
                os.mkdir(f"dir{number}/file", dir_fd=directory)
                exchange(left_over / f"dir{number}", left_over / f"link{number}")
                exchange(left_over / f"dir{number}", left_over / f"link{number}")
    os.close(directory)


@pytest.mark.parametrize(
    "home",
    [
        "",
        "/",
        "//",
        "relative/home",
        "./x",
        "/srv/../etc",
        "//srv/x",
        "/srv/x/",
        "/srv/./x",
        "/srv/a\nb",
        "/srv/\x1b[2J",
        "/srv/\udcff",
    ],
)
def test_a_home_that_is_no_plain_absolute_path_is_refused_and_named_without_its_control_characters(
    user: OsUser, home: str
) -> None:
    with pytest.raises(Conflict) as refused:
        ensure_home(with_home(user, home), ["/"])
    assert refused.value.reason is RefusedReason.HOME_CONFLICT
    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_no_directory_of_the_account_is_refused_as_home_and_nothing_is_changed(
    tree: Path, user: OsUser, mallory: OsUser, obstacle: Callable[[Path, OsUser, OsUser], None]
) -> None:
    home = tree / "parent" / "home"
    obstacle(home, user, mallory)
    assert_home_refused(tree, user, home)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_home_that_others_can_write_is_refused(tree: Path, user: OsUser, mode: int) -> None:
    home = tree / "parent" / "home"
    home.mkdir()
    own(home, user)
    home.chmod(mode)
    assert_home_refused(tree, user, home)


@pytest.mark.parametrize(
    "home", ["absent", "/nonexistent/x", "/dev/null/x", "parent-of-none/x/y", "parent/.hidden", "parent", "x" * 300]
)
def test_a_missing_home_is_made_nowhere_but_one_level_below_a_home_root(tree: Path, user: OsUser, home: str) -> None:
    assert_home_refused(tree, user, tree / home, roots=[str(tree / "parent")])


def test_a_home_root_is_compared_by_its_parts(tree: Path, user: OsUser) -> None:
    (tree / "parent-evil").mkdir()
    assert_home_refused(tree, user, tree / "parent-evil" / "x", roots=[str(tree / "parent")])


def test_a_home_of_root_without_a_marker_is_refused_and_its_content_stays(tree: Path, user: OsUser) -> None:
    home = tree / "parent" / user.name
    home.mkdir(0o700)
    (home / "restored").write_text("by the administrator")
    assert_home_refused(tree, user, home)


def test_a_home_of_root_that_was_changed_long_after_its_marker_is_refused_and_its_content_stays(
    tree: Path, user: OsUser
) -> None:
    home = tree / "parent" / user.name
    home.mkdir(0o700)
    (home / "restored").write_text("by the administrator")
    marker = tree / "parent" / f".{user.name}.pending"
    marker.touch()
    os.utime(marker, (time.time() - 3600,) * 2)
    assert_home_refused(tree, user, home)


def test_a_marker_beside_another_users_home_does_not_make_it_half_made(
    tree: Path, user: OsUser, mallory: OsUser
) -> None:
    home = tree / "parent" / user.name
    home.mkdir(0o700)
    own(home, mallory)
    (tree / "parent" / f".{user.name}.pending").touch()
    assert_home_refused(tree, user, home)


def test_a_home_that_another_start_finished_in_the_meantime_is_not_removed_as_half_made(
    tree: Path, user: OsUser
) -> None:
    """It was root's when it was looked at, and is the account's when the marker is locked."""
    home = tree / "parent" / user.name
    home.mkdir(0o700)
    own(home, user)
    marker = tree / "parent" / f".{user.name}.pending"
    marker.touch()
    within = os.open(home.parent, os.O_PATH)
    with marker.open("rb") as opened, pytest.raises(Conflict):
        directories._remove_half_made(within, home.name, account_of(user, home), opened.fileno())
    os.close(within)
    assert home.owner() == user.name


@pytest.mark.needs("mount namespace")
def test_a_home_that_somebody_else_made_since_it_was_found_missing_is_neither_removed_nor_used_as_it_stands(
    tree: Path, user: OsUser
) -> None:
    """By a login of these milliseconds; or long ago, on a file server whose "no such file" our host had kept."""

    def check() -> None:
        (tree / "skeleton").mkdir()
        (tree / "skeleton" / ".profile").write_text("of the host's skeleton")
        mount("--bind", tree / "skeleton", "/etc/skel")
        home = tree / "parent" / user.name
        home.mkdir(0o700)
        (home / "work").write_text("of years")
        own(home, user)
        before = facts_of(home)
        with pytest.raises(NotPrepared, match="was made by somebody else"):
            directories._make_home(account_of(user, home), [str(home.parent)], half_made=False)
        assert facts_of(home) == before

    in_private_mounts(check)


@pytest.mark.needs("mount namespace")
def test_a_start_that_is_killed_while_it_makes_sure_that_a_home_is_missing_locks_nobody_out(
    tree: Path, user: OsUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the marker of an attempt of long ago, which would not explain what is found."""

    def killed(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "killed")

    def check() -> None:
        home = tree / "parent" / user.name
        give_home(user, home, passwd=tree / "passwd")
        marker = home.parent / f".{user.name}.pending"
        marker.touch()
        os.utime(marker, (time.time() - 3600,) * 2)
        with monkeypatch.context() as patched:
            patched.setattr(os, "rmdir", killed)
            with pytest.raises(NotPrepared, match="killed"):
                ensure_home(account_of(user, home), [str(home.parent)])
        assert home.owner() == "root"
        ensure_home(account_of(user, home), [str(home.parent)])
        assert (home.owner(), names_in(home.parent)) == (user.name, [user.name])

    in_private_mounts(check)


@pytest.mark.needs("mount namespace")
def test_a_half_made_home_that_somebody_mounted_over_is_not_emptied(tree: Path, user: OsUser) -> None:
    def check() -> None:
        home = tree / "parent" / user.name
        home.mkdir(0o700)
        (tree / "parent" / f".{user.name}.pending").touch()
        mount("--bind", tree / "victim", home)
        before = facts_of(tree / "victim")
        with pytest.raises(NotPrepared, match="is a mount"):
            ensure_home(account_of(user, home), [str(tree / "parent")])
        assert facts_of(tree / "victim") == before

    in_private_mounts(check)


@pytest.mark.needs("mount namespace")
def test_a_full_disk_leaves_no_home_that_is_used_and_the_next_start_with_room_makes_it(
    tree: Path, user: OsUser
) -> None:
    def check() -> None:
        mount("-t", "tmpfs", "-o", "size=64k,mode=0755", "none", tree / "parent")
        skeleton = tree / "skeleton"
        skeleton.mkdir()
        (skeleton / "large").write_bytes(bytes(200_000))
        mount("--bind", skeleton, "/etc/skel")
        home = tree / "parent" / user.name
        give_home(user, home, passwd=tree / "passwd")
        for _ in range(2):
            with pytest.raises(NotPrepared, match="did not finish"):
                ensure_home(account_of(user, home), [str(home.parent)])
            assert not home.exists() or home.owner() == "root"  # PAM 1.7 gives it away unfinished: it was removed
        mount("-o", "remount,size=1m", tree / "parent")
        ensure_home(account_of(user, home), [str(home.parent)])
        assert (home / "large").stat().st_size == 200_000
        assert names_in(home.parent) == [user.name]

    in_private_mounts(check)


@pytest.mark.parametrize("short_of", ["inodes", "blocks"])
@pytest.mark.needs("mount namespace")
def test_a_full_file_system_makes_no_half_workspace_and_one_with_room_makes_it(
    tree: Path, user: OsUser, short_of: str
) -> None:
    def check() -> None:
        parent = tree / "parent"
        image(tree / "image", parent)
        own(parent, user)
        filler = fill(parent, short_of)
        os.chown(parent, 0, 0)
        with pytest.raises(NotPrepared, match="No space left on device"):
            ensure_private(str(parent), user.name, account_of(user), PRIVATE)
        assert not (parent / user.name).exists()
        shutil.rmtree(filler)
        os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
        assert set(names_in(parent)) == {"lost+found", user.name}

    in_private_mounts(check)


def test_a_user_over_quota_gets_no_workspace_and_one_when_there_is_room(
    tree: Path, user: OsUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota is the owner's: it is met where the directory is given away, chown(2). The fault is injected."""
    parent, chown = tree / "parent", os.fchown

    def over_quota(*_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fchown", over_quota)
    for _ in range(2):
        with pytest.raises(NotPrepared, match="quota"):
            ensure_private(str(parent), user.name, account_of(user), PRIVATE)
        assert not (parent / user.name).exists()
    monkeypatch.setattr(os, "fchown", chown)
    os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
    assert names_in(parent) == [user.name]
    assert (parent / user.name).owner() == user.name


@pytest.mark.needs("mount namespace")
def test_a_file_system_without_acls_is_a_clear_failure_and_nothing_gets_the_name(tree: Path, user: OsUser) -> None:
    def check() -> None:
        mount("-t", "ramfs", "-o", "mode=0755", "none", tree / "parent")
        descriptors = []
        for _ in range(2):
            with pytest.raises(NotPrepared, match="the file system has no POSIX ACLs"):
                ensure_private(str(tree / "parent"), user.name, account_of(user), PRIVATE)
            assert not (tree / "parent" / user.name).exists()
            descriptors.append(len(names_in(Path("/proc/self/fd"))))
        assert descriptors[0] == descriptors[1]

    in_private_mounts(check)


@pytest.mark.needs("mount namespace")
def test_a_read_only_file_system_is_a_failure_for_a_new_and_none_for_a_right_workspace(
    tree: Path, user: OsUser, mallory: OsUser
) -> None:
    def check() -> None:
        parent = tree / "parent"
        os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
        mount("--bind", parent, parent)
        mount("-o", "remount,bind,ro", parent)
        os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
        with pytest.raises(NotPrepared, match="Read-only file system"):
            ensure_private(str(parent), mallory.name, account_of(mallory), PRIVATE)

    in_private_mounts(check)


def test_an_acl_that_is_not_what_was_set_when_it_is_read_back_is_a_failure(tree: Path, user: OsUser) -> None:
    """The directory's owner, who may change it at any time, stands for a file system that keeps something else."""
    parent = tree / "parent"
    workspace = parent / user.name
    os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
    faults = set()
    with attacker(user, lambda: workspace.chmod(0o755)):
        deadline = time.monotonic() + 30
        while not faults and time.monotonic() < deadline:
            try:
                os.close(ensure_private(str(parent), user.name, account_of(user), PRIVATE))
            except NotPrepared as error:
                faults.add(str(error))
    assert faults == {f"'{workspace}': the ACL read back is not the one set"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "g:backup",
        "g:backup:rwx:",
        "x:a:r-x",
        "g::r-x",
        "g:a:xwr",
        "g:a:rx",
        "d:g:a:r-x",
        "g:a:r-x,o::rwx",
        "g:a\n:r-x",
        "u:alice:rwx ",
    ],
)
def test_an_acl_entry_that_says_anything_else_is_refused_with_what_is_expected(text: str) -> None:
    (fault,) = rule_faults(HelperConfig(workspace=WorkspaceConfig(acl=AclConfig(extra=(text,)))))
    assert fault.startswith("workspace.acl.extra[0]: u:NAME:rwx or g:NAME:rwx")


def test_two_acl_entries_about_one_group_are_refused() -> None:
    with pytest.raises(ValueError, match="same user or group"):
        private_acl(["g:34:r-x", "g:34:rwx"])


def with_home(user: OsUser, home: str) -> Any:
    account = account_of(user)
    return type(account)(account.name, account.uid, account.gid, account.groups, home, account.shell)


def assert_home_refused(tree: Path, user: OsUser, home: Path, roots: list[str] | None = None) -> None:
    before = facts_of(tree)
    with pytest.raises(Conflict) as refused:
        ensure_home(account_of(user, home), [str(tree)] if roots is None else roots)
    assert refused.value.reason is RefusedReason.HOME_CONFLICT
    assert facts_of(tree) == before


@contextmanager
def attacker(user: OsUser | None, step: Callable[[], object]) -> Iterator[None]:
    """Repeat a step in another process, as the user or as root, while the block runs."""
    pid = os.fork()
    if pid == 0:
        try:
            if user is not None:
                os.setgroups([user.gid])
                os.setresgid(user.gid, user.gid, user.gid)
                os.setresuid(user.uid, user.uid, user.uid)
            while True:
                with suppress(OSError):
                    step()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step, renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def image(file: Path, at: Path) -> None:
    """Mount a small ext4 there, with no reserve for root."""
    with file.open("wb") as made:
        made.truncate(2_000_000)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", "64", str(file)], check=True, capture_output=True)
    mount("-o", "loop", file, at)


def fill(parent: Path, short_of: str) -> Path:
    """Use up all inodes, or all blocks, and give the directory that holds them."""
    filler = parent / "filler"
    filler.mkdir()
    with suppress(OSError):
        for number in range(10_000):
            with (filler / f"{number}").open("wb", buffering=0) as file:
                while short_of == "blocks":
                    file.write(bytes(1024))
    return filler
