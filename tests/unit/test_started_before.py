"""Who was started before, in memory and in the state directory: bounded, private, and no more than a hint."""

import logging
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener.started_before import MAX_NAMES, MAX_SIZE, TITLE, NotReadable, StartedBefore, from_text
from broker_listener.state_file import NAME, StateFile
from protocol.names import parse_user_name

LONGEST = "a" * 32 + "@" + "b" * 64
USER_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)


@given(st.lists(st.tuples(st.booleans(), USER_NAMES)))
def test_names_are_those_that_were_added_and_come_back_in_order(changes: list[tuple[bool, str]]) -> None:
    started, expected = StartedBefore(), dict[str, None]()
    for added, name in changes:
        if added:
            expected.pop(name, None)
            expected[name] = None
            started.add(name)
        else:
            expected.pop(name, None)
            started.remove(name)
        assert (name in started) is added
    read = from_text(started.text().encode())
    assert read.text() == started.text() == "\n".join([TITLE, *expected, ""])
    assert not read.changed


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda rest: TITLE.encode() + b"\n" + rest))
def test_any_bytes_are_names_in_the_grammar_or_not_readable(text: bytes) -> None:
    try:
        read = from_text(text)
    except NotReadable:
        return
    assert all(parse_user_name(name, qualified=True) for name in read.text().split("\n")[1:-1])


def test_oldest_name_is_forgotten_beyond_the_bound() -> None:
    started = StartedBefore()
    for number in range(MAX_NAMES):
        started.add(f"u{number}")
    started.add("u0")
    started.add("one-more")
    assert len(started) == MAX_NAMES
    assert ["u0" in started, "u1" in started, "u2" in started] == [True, False, True]


def test_as_many_of_the_longest_names_as_there_may_be_can_be_read_again() -> None:
    started = StartedBefore(f"{number:05d}{LONGEST[5:]}" for number in range(MAX_NAMES))
    text = started.text().encode()
    assert len(text) <= MAX_SIZE
    assert len(from_text(text)) == MAX_NAMES


def written(directory: Path, *names: str) -> Path:
    file = StateFile(str(directory))
    for name in names:
        file.started.add(name)
    file.close(10.0)
    return directory / NAME


def test_file_is_private_whole_and_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, "alice", "bob@example.org")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]
    assert "bob@example.org" in StateFile(str(tmp_path)).started


def test_file_is_not_written_without_a_change(tmp_path: Path) -> None:
    before = written(tmp_path, "alice").stat()
    written(tmp_path, "alice")
    assert (tmp_path / NAME).stat().st_ino == before.st_ino


HOSTILE = {
    "oversized": lambda path: path.write_bytes(TITLE.encode() + b"\na" * MAX_SIZE),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "cut": lambda path: path.write_text(f"{TITLE}\nalice\nbo", encoding="ascii"),
    "another name": lambda path: path.write_text(f"{TITLE}\n../x\n", encoding="ascii"),
    "too many": lambda path: path.write_text(TITLE + "\na" * (MAX_NAMES + 1) + "\n", encoding="ascii"),
    "not text": lambda path: path.write_bytes(b"\xff\0"),
    "empty": Path.touch,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_file_that_is_not_ours_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Nothing of it is believed, nothing is waited for, and it is replaced; a directory stays, with a warning."""
    HOSTILE[kind](tmp_path / NAME)
    file = StateFile(str(tmp_path))
    assert len(file.started) == 0
    assert "event=state_not_read" in caplog.text
    assert "alice" not in caplog.text
    file.started.add("carol")
    file.close(10.0)
    if kind == "a directory":
        assert "event=state_not_written" in caplog.text
    else:
        assert "carol" in StateFile(str(tmp_path)).started
    assert Path("/etc/passwd").stat().st_uid == 0


def test_what_cannot_be_written_is_a_warning_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = tmp_path / "gone"
    file = StateFile(str(gone))
    file.started.add("alice")
    file.close(10.0)
    assert caplog.text.count("event=state_not_written") == 1
    gone.mkdir()
    file.close(10.0)
    assert "alice" in StateFile(str(gone)).started


def test_without_a_state_directory_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        file = StateFile(None)
    file.started.add("alice")
    file.close(10.0)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["event=no_state_directory"]
