"""SECURITY-REVIEW.md: every file of the root surface stands in it as it was when it was read last.

``python tests/unit/test_security_review.py`` says which files must be read again. It writes nothing but what it is told
to: ``--reviewed FILE`` after that one file was read against the contract.
"""

import hashlib
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.lab.sources import HELPER, PROTOCOL  # noqa: E402

REVIEW = ROOT / "SECURITY-REVIEW.md"
BESIDE = [
    *("systemd/knime-root-helper.service", "systemd/knime-executors.slice", "systemd/knime-peruser.pam"),
    *("systemd/knime-peruser.sysusers", "systemd/knime-peruser.tmpfiles", "systemd/install"),
    *(f"systemd/packaging/{name}" for name in ("layout.py", "postinst", "postrm", "prerm")),
]
"""What is no module of root's and yet decides what root runs, may and writes."""
SURFACE = [*PROTOCOL, *HELPER, *BESIDE]
ROW = re.compile(
    r"^\| `([^`]+)` \| ([0-9a-f]{64}) \| (\d{4}-\d\d-\d\d) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE
)


def digest(file: str) -> str:
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()


def review() -> str:
    return REVIEW.read_text(encoding="utf-8")


def rows(text: str) -> dict[str, str]:
    """Give the hash of each file of the table."""
    return {match[1]: match[2] for match in ROW.finditer(text)}


def to_be_read(text: str) -> list[str]:
    """Give what is missing, was changed since it was read, or is read no more."""
    listed = rows(text)
    changed = [file for file in SURFACE if listed.get(file) != digest(file)]
    return [
        *changed,
        *(f"{file} (not of the root surface: take the row out)" for file in listed if file not in SURFACE),
    ]


def reviewed(text: str, file: str, today: str) -> str:
    """Give the page with the file's hash of now; its row, questions included, is written by who has read it."""
    if file not in rows(text):
        raise SystemExit(
            f"{REVIEW.name} has no row for {file}: write it, with the questions that were asked of the file"
        )
    return re.sub(
        rf"(?<=^\| `{re.escape(file)}` \| )\w+ \| [\d-]+", f"{digest(file)} | {today}", text, flags=re.MULTILINE
    )


def test_every_file_of_the_root_surface_is_as_it_was_when_it_was_reviewed() -> None:
    assert to_be_read(review()) == [], "read it again: CONTRIBUTING.md, A change of the root surface"


def test_each_file_has_one_row_with_a_date_a_section_of_the_contract_questions_and_findings() -> None:
    files = [match[1] for match in ROW.finditer(review())]
    assert sorted(files) == sorted(SURFACE)
    for match in ROW.finditer(review()):
        assert all(cell.strip() for cell in match.groups()), match[1]


def test_a_change_a_missing_row_and_one_too_many_are_seen() -> None:
    text, file = review(), "root_helper/spawn.py"
    assert to_be_read(text.replace(digest(file), "0" * 64)) == [file]
    assert to_be_read(re.sub(rf"^\| `{file}` .*\n", "", text, flags=re.MULTILINE)) == [file]
    more = text.replace(
        f"| `{file}` |", f"| `root_helper/gone.py` | {'1' * 64} | 2026-01-01 | a | b | c |\n| `{file}` |"
    )
    assert to_be_read(more) == ["root_helper/gone.py (not of the root surface: take the row out)"]


def test_the_hash_of_a_file_is_written_for_that_file_alone() -> None:
    """Nobody comes to have reviewed what he only did not look at."""
    stale = review().replace(digest("root_helper/spawn.py"), "0" * 64).replace(digest("root_helper/bus.py"), "2" * 64)
    assert to_be_read(reviewed(stale, "root_helper/bus.py", "2026-11-25")) == ["root_helper/spawn.py"]


def test_every_test_that_holds_a_cure_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", review())
    assert len(named) >= 10
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def main() -> None:
    """Run the command."""
    words = sys.argv[1:]
    if words[:1] == ["--reviewed"] and len(words) == 2:
        today = datetime.now(tz=UTC).date().isoformat()
        REVIEW.write_text(reviewed(review(), words[1], today), encoding="utf-8")
    elif words:
        sys.exit("usage: test_security_review.py [--reviewed FILE]")
    for line in to_be_read(review()):
        print(f"to be read again: {line}")


if __name__ == "__main__":
    main()
