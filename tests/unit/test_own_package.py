"""The last release: which commit it was, and that a checkout without it says so."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab import own_package
from tests.lab.own_package import CHECKOUT, Release, ReleaseMissingError, last_release, unpacked

needs_git = pytest.mark.skipif(
    shutil.which("git") is None or not (CHECKOUT / ".git").exists(),
    reason="needs git, and a clone: apt-get install git",
)


@needs_git
def test_the_release_is_the_commit_of_the_changelog(tmp_path: Path) -> None:
    """The commit is the tree whose own changelog has that version, with its date, at the top."""
    release = last_release()
    tree = unpacked(release, tmp_path)
    assert f'version = "{release.version}"\n' in (tree / "pyproject.toml").read_text(encoding="utf-8")
    assert (tree / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1].startswith(f"[{release.version}] - ")


@needs_git
def test_a_shallow_clone_is_named(tmp_path: Path) -> None:
    """A clone that lacks the release's commit is a failure that says which commit, and how to get it."""
    shallow = tmp_path / "shallow"
    git = ["git"]
    _commit(tmp_path / "other")
    subprocess.run([*git, "clone", "--quiet", "--depth=1", f"file://{tmp_path / 'other'}", str(shallow)], check=True)
    with pytest.raises(ReleaseMissingError, match=r"f{40} of 0.1.0 is not in .*git fetch --unshallow"):
        unpacked(Release("0.1.0", "f" * 40), tmp_path, shallow)


def test_a_changelog_without_a_release_is_named(tmp_path: Path) -> None:
    """A released version without its commit is no release that can be built again."""
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n- one\n\n## [0.1.0] - 2026-02-03\n\n- two\n")
    with pytest.raises(ReleaseMissingError, match=r"CHANGELOG.md"):
        own_package.last_release(tmp_path)


def _commit(directory: Path) -> None:
    directory.mkdir()
    (directory / "file").touch()
    git = ["git", "-C", str(directory), "-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "one"], check=True)
