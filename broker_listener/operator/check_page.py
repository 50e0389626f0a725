"""Findings as what is printed: lines for a person, the gravest last; one line for Nagios; counts for either.

What findings quote comes from files, brokers and processes: all of it is escaped and cut. No colour carries a meaning
that words do not.
"""

from collections import Counter
from typing import Final

from broker_listener.operator.checks.finding import Finding, Level
from broker_listener.operator.output import escaped, filled, print_line

STYLES: Final = {Level.OK: "green", Level.NOT_ASKED: "dim", Level.WARNING: "yellow", Level.FAULT: "bold red"}
NAGIOS: Final = {Level.FAULT: (2, "CRITICAL"), Level.WARNING: (1, "WARNING"), Level.OK: (0, "OK")}
UNKNOWN: Final = 3
INDENT: Final = 11


def counts(found: list[Finding]) -> dict[str, int]:
    """Give how many there are of each level."""
    counted = Counter(finding.level for finding in found)
    return {level.value: counted[level] for level in Level}


def worst(found: list[Finding]) -> Level:
    """Give the gravest level; what was not asked is no fault."""
    levels = {finding.level for finding in found}
    return next((level for level in (Level.FAULT, Level.WARNING) if level in levels), Level.OK)


def print_findings(found: list[Finding]) -> None:
    """Print a line for each, what to do below it, and the counts."""
    for finding in sorted(found, key=lambda one: list(STYLES).index(one.level)):  # the gravest stand at the prompt
        seen = f"{escaped(finding.subject)}: {escaped(finding.seen, 500)}"
        print_line(filled(f"{finding.level:<{INDENT}}", seen), STYLES[finding.level])
        if finding.advice and finding.level is not Level.OK:
            print_line(filled(f"{'':<{INDENT}}-> ", escaped(finding.advice, 800)))
    print_line(", ".join(f"{count} {level}" for level, count in counts(found).items()))


def print_for_nagios(found: list[Finding], seconds: float) -> int:
    """Print one line with performance data; give the exit status of a plug-in."""
    gravest = worst(found)
    status, word = NAGIOS[gravest]
    first = [f"{finding.subject}: {finding.seen}" for finding in found if finding.level is gravest][:3]
    text = "all is well" if gravest is Level.OK else escaped("; ".join(first), 400).replace("|", "/")
    data = " ".join(f"{level.replace(' ', '_')}={count}" for level, count in counts(found).items())
    print_line(f"KNIME-PERUSER {word} - {text} | {data} time={seconds:.2f}s")
    return status
