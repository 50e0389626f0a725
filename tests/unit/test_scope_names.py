"""A scope's name is systemd-escape(1)'s of the directory's, and no two directories share one."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from root_helper.scope import unit_name

ESCAPE = shutil.which("systemd-escape")
DIRECTORIES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,160}", fullmatch=True)


@pytest.mark.parametrize(
    ("directory", "unit"),
    [
        ("alice", "knime-executor-alice.scope"),
        ("a.b-c_d", r"knime-executor-a.b\x2dc_d.scope"),
        ("alice+K1", r"knime-executor-alice\x2bK1.scope"),
        ("bob@example.com", r"knime-executor-bob\x40example.com.scope"),
    ],
)
def test_what_systemd_would_not_take_is_escaped(directory: str, unit: str) -> None:
    assert unit_name(directory) == unit


@pytest.mark.skipif(ESCAPE is None, reason="needs systemd-escape, which a container may lack")
def test_the_escape_is_systemds_own() -> None:
    names = ["alice", "a.b-c", "_x", "0a", "a+b", "a@b.c", "A_b-9.z", "a:b", "x" * 40, "-a", ".a", "a\\x2d"]
    said = subprocess.run([str(ESCAPE), "--", *names], capture_output=True, text=True, check=True).stdout.split()
    assert [unit_name(name) for name in names] == [f"knime-executor-{escaped}.scope" for escaped in said]


@given(DIRECTORIES)
def test_every_name_is_one_that_systemd_takes(directory: str) -> None:
    """unit_name_is_valid: at most 255 characters of a closed set; the slash of a path is not among them."""
    name = unit_name(directory)
    assert re.fullmatch(r"knime-executor-[A-Za-z0-9:_.\\]+\.scope", name)
    assert len(name) <= 255


@given(DIRECTORIES, DIRECTORIES)
def test_two_directories_have_two_scopes(one: str, other: str) -> None:
    assert (unit_name(one) == unit_name(other)) == (one == other)


def test_a_long_name_is_cut_and_told_from_others_by_a_hash() -> None:
    names = {unit_name("a" * 199 + end) for end in ("-1", "-2")}
    assert len(names) == 2
    assert all(re.fullmatch(r"knime-executor-a{100}[0-9a-f]{16}\.scope", name) for name in names)
