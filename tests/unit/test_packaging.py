"""What is installed, file by file, and the package that is made of it; no machine is needed for these."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.lab.own_package import last_release, script, version

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "systemd/packaging"
CODE = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("protocol", "root_helper", "broker_listener")
    for path in (ROOT / package).rglob("*.py")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONFIGURATION = ("helper.toml", "listener.toml")
DOCUMENTS = "usr/share/doc/knime-peruser"
DEBIAN_NAMES = {"pyzmq": "python3-zmq"}
STAGED = {
    *(f"usr/lib/knime-peruser/{name}" for name in CODE),
    "usr/sbin/knime-root-helper", "usr/sbin/knime-broker-listener",
    *(f"usr/bin/{name}" for name in PROJECT["scripts"] if name == "knime-peruser"),
    "usr/lib/systemd/system/knime-root-helper.service", "usr/lib/systemd/system/knime-broker-listener.service",
    "usr/lib/systemd/system/knime-executors.slice",
    "usr/lib/sysusers.d/knime-peruser.conf", "usr/lib/tmpfiles.d/knime-peruser.conf",
    *(f"usr/share/man/man{page.suffix[1:]}/{page.name}" for page in (ROOT / "systemd/man").iterdir()),
    "etc/pam.d/knime-peruser", *(f"etc/knime-peruser/{name}" for name in CONFIGURATION),
    *(f"{DOCUMENTS}/examples/{path.relative_to(ROOT / 'etc')}" for path in (ROOT / "etc").rglob("*") if path.is_file()
      and path.name not in CONFIGURATION),
}  # fmt: skip


def run(*command: str | Path, umask: int = 0o022, **environment: str) -> str:
    """Run a command of the checkout; give what it printed."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, umask=umask, env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def files(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if not path.is_dir()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a staged tree, made under a umask that nobody should have."""
    run("systemd/install", "--destdir", tmp_path / "tree", umask=0o077)
    return tmp_path / "tree"


def test_the_staged_tree_holds_exactly_what_belongs_to_an_installation(tree: Path) -> None:
    assert files(tree) == STAGED


def test_only_launchers_are_executable_and_nothing_is_writable_by_others(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        executable = path.is_dir() or path.parent.name in {"sbin", "bin"}
        assert path.stat().st_mode & 0o7777 == (0o755 if executable else 0o644), path


def test_staging_again_changes_nothing_and_a_dry_run_writes_nothing(tree: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert "write" not in run("systemd/install", "--destdir", tree)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    assert "write" in run("systemd/install", "--destdir", tmp_path / "other", "--dry-run")
    assert not (tmp_path / "other").exists()


def test_each_command_of_the_project_has_a_launcher_that_starts_isolated(tree: Path) -> None:
    launchers = {path.name: path for path in (*tree.glob("usr/sbin/*"), *tree.glob("usr/bin/*"))}
    assert launchers.keys() == PROJECT["scripts"].keys()
    for path in launchers.values():
        assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/python3 -IS\n")


def test_units_start_the_launchers_that_are_staged(tree: Path) -> None:
    for unit in tree.glob("usr/lib/systemd/system/*.service"):
        started = re.findall(r"^ExecStart=(\S+)", unit.read_text(encoding="utf-8"), re.MULTILINE)
        assert [path for path in started if (tree / path.lstrip("/")).is_file()] == started != []


def test_both_installations_have_the_same_files_but_for_their_places() -> None:
    script("install")  # makes layout importable
    import layout

    package, local = (list(layout.items(places)) for places in (layout.PACKAGE, layout.LOCAL))
    assert [Path(item.path).name for item in package] == [Path(item.path).name for item in local]
    in_etc = {item.path for item in local if item.path.startswith("/etc/")}
    assert in_etc == {item.path for item in local if item.configuration}, "/etc is the administrator's"


def test_the_package_depends_on_what_the_project_depends_on() -> None:
    control = (PACKAGING / "control").read_text(encoding="utf-8")
    (line,) = re.findall(r"^Depends: (.*)$", control, re.MULTILINE)
    named = {entry for entry in line.split(", ") if entry.startswith("python3")}
    wanted = {f"python3 ({PROJECT['requires-python'].replace('>=', '>= ')})"}
    for requirement in PROJECT["dependencies"]:
        name, version = requirement.partition(",")[0].split(">=")
        wanted.add(f"{DEBIAN_NAMES.get(name, 'python3-' + name.replace('_', '-'))} (>= {version})")
    assert named == wanted
    assert set(script("install").MODULES.values()) == {entry.split()[0] for entry in named} - {"python3"}


def test_the_package_holds_the_staged_tree_its_documents_and_nothing_else(tmp_path: Path) -> None:
    package = Path(run("systemd/package", "deb", "--output", tmp_path).strip())
    run("dpkg-deb", "--raw-extract", package, tmp_path / "tree")
    staged = {f"{name}.gz" if "/man/" in name else name for name in STAGED}
    documents = {"README.md.gz", "SECURITY.md.gz", "json.md.gz", "changelog.Debian.gz", "copyright"}
    control = {"control", "conffiles", "md5sums", "postinst", "postrm", "prerm"}
    assert files(tmp_path / "tree") == {
        *staged,
        *(f"{DOCUMENTS}/{name}" for name in documents),
        *(f"DEBIAN/{name}" for name in control),
        "usr/share/lintian/overrides/knime-peruser",
    }
    listing = run("dpkg-deb", "--contents", package).splitlines()
    assert {line.split()[1] for line in listing} == {"root/root"}
    assert {line.split()[0] for line in listing} == {"drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--"}


def test_configuration_files_are_conffiles_and_every_file_has_its_sum(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    run("dpkg-deb", "--raw-extract", run("systemd/package", "deb", "--output", tmp_path).strip(), tree)
    conffiles = (tree / "DEBIAN/conffiles").read_text(encoding="utf-8").split()
    assert sorted(conffiles) == [
        "/etc/knime-peruser/helper.toml",
        "/etc/knime-peruser/listener.toml",
        "/etc/pam.d/knime-peruser",
    ]
    sums = dict(reversed(line.split("  ")) for line in (tree / "DEBIAN/md5sums").read_text().splitlines())
    assert sums.keys() == {name for name in files(tree) if not name.startswith("DEBIAN/")}
    for name, digest in sums.items():
        assert hashlib.md5((tree / name).read_bytes()).hexdigest() == digest


def test_one_checkout_gives_one_package_whoever_builds_it_and_when(tmp_path: Path) -> None:
    first, second = (
        Path(
            run(
                "systemd/package",
                "deb",
                "--output",
                tmp_path / name,
                umask=umask,
                TZ=zone,
                SOURCE_DATE_EPOCH="1000000000",
            ).strip()
        )
        for name, umask, zone in (("one", 0o077, "UTC"), ("two", 0o002, "Pacific/Apia"))
    )
    assert first.read_bytes() == second.read_bytes()


def test_the_version_that_is_asked_for_is_the_packages_and_its_changelogs(tmp_path: Path) -> None:
    package = Path(run("systemd/package", "deb", "--output", tmp_path, "--version", "0.0.1~rc1-2").strip())
    assert package.name == "knime-peruser_0.0.1~rc1-2_all.deb"
    assert run("dpkg-deb", "--field", package, "Version").strip() == "0.0.1~rc1-2"
    run("dpkg-deb", "--raw-extract", package, tmp_path / "tree")
    changelog = gzip.decompress((tmp_path / f"tree/{DOCUMENTS}/changelog.Debian.gz").read_bytes()).decode()
    assert changelog.startswith("knime-peruser (0.0.1~rc1-2) ")


@pytest.mark.parametrize("version", ["1.0", "../x-1", "1.0-1/..", "v1-1", "1.0 -1", ""])
def test_what_is_no_version_and_revision_is_refused(version: str, tmp_path: Path) -> None:
    command = ["systemd/package", "deb", "--output", str(tmp_path), "--version", version]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


def test_the_changelog_in_debians_form_has_an_entry_for_each_version_the_newest_first() -> None:
    unreleased = "## [0.2.0] - unreleased\n\n- one\n  more\n\n### Fixed\n\n- two\n\n"
    markdown = f"# Changelog\n\n{unreleased}## [0.1.0] - 2026-02-03\n\n- three\n"
    changelog = script("package").changelog_of(markdown, "0.2.0-7")
    titles = re.findall(r"^knime-peruser \((.*)\) unstable; urgency=medium$", changelog, re.MULTILINE)
    assert titles == ["0.2.0-7", "0.1.0-1"]
    assert "  * one more\n  * two\n" in changelog
    assert re.search(r"^ -- .+ <.+@.+>  Tue, 03 Feb 2026 12:00:00 \+0000$", changelog, re.MULTILINE)


def test_the_changelog_in_debians_form_may_begin_with_what_is_unreleased() -> None:
    """What has no date yet is the version that is built, with or without an entry."""
    markdown = "## [Unreleased]\n\nA word before.\n\n- one\n\n## [0.1.0] - 2026-02-03\n\nCommit `0`.\n\n- two\n"
    changelog = script("package").changelog_of(markdown, "0.2.0~dev0-1")
    titles = re.findall(r"^knime-peruser \((.*)\) unstable; urgency=medium$", changelog, re.MULTILINE)
    assert titles == ["0.2.0~dev0-1", "0.1.0-1"]
    assert "  * one\n" in changelog


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    """A version in development has its section at the top, so that each change has a place."""
    headings = re.findall(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert (headings[0] == "## [Unreleased]") == (".dev" in PROJECT["version"])


@pytest.mark.parametrize(
    ("python", "debian"), [("0.2.0", "0.2.0"), ("0.2.0.dev0", "0.2.0~dev0"), ("1.0rc2", "1.0~rc2"), ("1.0b1", "1.0~b1")]
)
def test_a_development_version_sorts_below_its_release(python: str, debian: str) -> None:
    """For dpkg, 0.2.0.dev0 as it stands would be newer than 0.2.0: its users would never get the release."""
    assert script("package").debian_version(python) == debian
    release = re.split(r"\.?(?:dev|rc|a|b)", python)[0]
    assert python == release or _older(f"{debian}-1", f"{release}-1")


def test_the_package_is_newer_than_the_last_release() -> None:
    assert _older(f"{last_release().version}-1", version())


@pytest.mark.parametrize("name", ["README.md", "etc/ansible/install.yml"])
def test_documents_name_the_package_that_is_built(name: str) -> None:
    """A version of the past in an example would install nothing."""
    named = set(re.findall(r"knime-peruser_[^\s`]*_all\.deb", (ROOT / name).read_text(encoding="utf-8")))
    assert named == {f"knime-peruser_{version()}_all.deb"}


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_are_shell_that_stops_at_the_first_failure(name: str) -> None:
    text = (PACKAGING / name).read_text(encoding="utf-8")
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -e\n" in text
    run("/bin/sh", "-n", PACKAGING / name)


@pytest.mark.parametrize("page", sorted((ROOT / "systemd/man").iterdir()), ids=lambda path: path.name)
def test_a_manual_page_is_one_of_a_command_or_the_overview_and_says_so_first(page: Path) -> None:
    name, section = page.name.rsplit(".", 1)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f".TH {name.upper()} {section} ")
    assert f'"knime-peruser {PROJECT["version"]}"' in text
    assert f".SH NAME\n{name} \\- " in text


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man: apt-get install man-db")
@pytest.mark.parametrize("page", sorted((ROOT / "systemd/man").iterdir()), ids=lambda path: path.name)
def test_a_manual_page_is_typeset_without_a_warning(page: Path) -> None:
    command = ["man", "--warnings", "-l", "-Tutf8", str(page)]
    environment = {"PATH": os.environ["PATH"], "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.extended  # lintian brings a hundred packages of Perl along
@pytest.mark.skipif(shutil.which("lintian") is None, reason="needs lintian: apt-get install lintian")
def test_lintian_has_nothing_to_say_about_the_package(tmp_path: Path) -> None:
    package = run("systemd/package", "deb", "--output", tmp_path).strip()
    said = run("lintian", "--pedantic", "--display-info", "--display-experimental", "--fail-on", "none", package)
    # An override for a tag of Debian 12's lintian is an alien tag to Debian 13's.
    harmless = ("running with root privileges is not recommended!", "E: knime-peruser: alien-tag ")
    assert [line for line in said.splitlines() if not line.startswith(harmless)] == []


@pytest.mark.parametrize("command", sorted(PROJECT["scripts"]))
def test_a_commands_manual_names_its_options_and_exit_statuses(command: str) -> None:
    (page,) = (ROOT / "systemd/man").glob(f"{command}.[18]")
    manual = page.read_text(encoding="utf-8").replace("\\-", "-")
    help_text = run("/usr/bin/python3", "-c", _HELP.format(*PROJECT["scripts"][command].split(":")))
    for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_text, re.MULTILINE):
        assert option in manual, option
    statuses = help_text.partition("exit status:")[2].partition("\n\n")[0]
    for status in re.findall(r"^  (\d+) ", statuses, re.MULTILINE):
        assert f"\n.B {status}\n" in manual, status


def test_every_file_that_a_manual_names_is_one_that_the_project_knows() -> None:
    known = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "systemd/knime-peruser.tmpfiles", "systemd/packaging/layout.py", "root_helper/pam.py",
                     "root_helper/__main__.py", "root_helper/config.py", "systemd/packaging/control")
    )  # fmt: skip
    known += f"/{DOCUMENTS}/ /etc/tmpfiles.d"
    for page in (ROOT / "systemd/man").iterdir():
        for path in re.findall(r"/(?:etc|run|var|srv|opt|usr)/[\w./-]*[\w]", page.read_text(encoding="utf-8")):
            assert path in known, (page.name, path)


def _older(one: str, other: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False).returncode == 0


_HELP = """\
import sys
sys.dont_write_bytecode = True
sys.argv[1:] = ["--help"]
from {} import {} as main
main()
"""
