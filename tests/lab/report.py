"""What pytest's JUnit report says of a run: counts, why tests were skipped, which tests took longest."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET


@dataclass(slots=True)
class Report:
    """The tests of one run or of several; ``add`` takes in a report file."""

    passed: int = 0
    failed: int = 0
    known: int = 0
    """Expected failures: pytest's xfail."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Tests that were skipped, by their pytest node id, each with the reason."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each file's tests took, fixtures included."""

    def add(self, path: Path) -> None:
        """Take in one JUnit file, if it was written."""
        if not path.exists():
            return
        for case in ET.parse(path).getroot().iter("testcase"):
            file = case.get("file", "?")
            self.seconds[file] = self.seconds.get(file, 0.0) + float(case.get("time", "0"))
            self._count(case, file)

    def _count(self, case: ET.Element, file: str) -> None:
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            self.failed += 1
        elif skip is None:
            self.passed += 1
        elif skip.get("type") == "pytest.xfail":
            self.known += 1
        else:
            self.skipped[f"{file}::{case.get('name')}"] = skip.get("message", "no reason")

    def skips_by_reason(self) -> list[str]:
        """Return a line for each reason, most frequent first: ``13 skipped: needs mount: ...``."""
        reasons = Counter(self.skipped.values())
        return [f"{count} skipped: {reason}" for reason, count in reasons.most_common()]

    def slowest(self, count: int) -> Iterable[str]:
        """Return a line for each of the files that took longest."""
        ranked = sorted(self.seconds.items(), key=lambda entry: -entry[1])
        return [f"{seconds:7.1f} s  {file}" for file, seconds in ranked[:count]]
