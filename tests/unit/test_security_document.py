"""SECURITY.md against the code: the root surface, what may be asked, what root executes, which capabilities are left.

What is generated is written anew by ``python tests/unit/test_security_document.py`` in the checkout.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from root_helper.requests import VOCABULARY, Channel  # noqa: E402
from tests.lab.sources import AS_ROOT, GATE, code_lines, source  # noqa: E402

SECURITY = ROOT / "SECURITY.md"
UNIT = ROOT / "systemd" / "knime-root-helper.service"
SOCKETS = {Channel.GATE: "`helper.sock`", Channel.OPERATOR: "`operator.sock`"}


def root_surface() -> str:
    """Count each file that runs as root, with the first sentence of its docstring."""
    counts = {file: code_lines(source(file)) for file in AS_ROOT}
    rows = [f"| `{file}` | {count} | {_first_sentence(file)} |" for file, count in counts.items() if count]
    total = f"In all {sum(counts.values()):,} lines of code run as root. The gate has {code_lines(source(GATE))}."
    return "\n".join(["| file | lines of code | what it is for |", "| --- | --- | --- |", *rows, "", total, ""])


def _first_sentence(file: str) -> str:
    text = " ".join((ast.get_docstring(ast.parse(source(file))) or "").split())
    return re.split(r"(?<=[.?])\s", text)[0].replace("|", "\\|").replace("``", "`")


def requests() -> str:
    """Say which request may come over which socket."""
    rows = []
    for rule in VOCABULARY.values():
        over = ", ".join(SOCKETS[channel] for channel in Channel if channel in rule.over)
        rows.append(f"| `{rule.op}` | {over} |")
    return "\n".join(["| request | socket |", "| --- | --- |", *rows, ""])


def generated(text: str) -> str:
    """Give the text with its generated parts as they should be."""
    for name, part in (("root surface", root_surface()), ("requests", requests())):
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->\n"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{part}{end}{rest.partition(end)[2]}"
    return text


def security() -> str:
    return SECURITY.read_text(encoding="utf-8")


def test_the_root_surface_and_the_requests_are_as_the_code_has_them() -> None:
    assert security() == generated(security()), "python tests/unit/test_security_document.py writes it anew"


def test_every_program_that_root_executes_is_named_and_no_other() -> None:
    """A path of a program in the source is one of the table's, and the other way round."""
    in_source = {path for file in AS_ROOT for path in re.findall(r'"(/usr/s?bin/[\w.-]+)"', source(file))}
    table = security().partition("### What root executes")[2].partition("###")[0]
    assert in_source == set(re.findall(r"`(/usr/s?bin/[\w.-]+)`", table))


def test_the_capabilities_are_the_units() -> None:
    bound = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    table = security().partition("### Capabilities")[2].partition("###")[0]
    assert re.findall(r"^\| `(CAP_\w+)` \|", table, re.MULTILINE) == " ".join(bound).split()


TABLE = "## Which test holds which claim"


def claims_of(text: str) -> list[str]:
    """Give the words in brackets that stand behind claims, not those of code."""
    prose = re.sub(r"`[^`]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return re.findall(r"\[([a-z][a-z-]+)\](?!\()", prose)


def held() -> dict[str, list[str]]:
    """Give the table at the end: a claim's word, and the tests that hold it."""
    rows = re.findall(r"^\| ([a-z-]+) \| [^|]+ \| (`.*`) \|$", security().partition(TABLE)[2], re.MULTILINE)
    return {claim: re.findall(r"`([^`]+)`", tests) for claim, tests in rows}


def test_every_claim_stands_in_the_table_and_every_row_behind_a_claim() -> None:
    claims = set(claims_of(security().partition(TABLE)[0]))
    assert claims - held().keys() == set(), "claims without a test"
    assert held().keys() - claims == set(), "tests without a claim"
    assert all(held().values())


def test_every_test_that_the_table_names_is_there() -> None:
    for tests in held().values():
        for test in tests:
            file, _, name = test.partition("::")
            names = [node.name for node in ast.parse(source(file)).body if isinstance(node, ast.FunctionDef)]
            assert name in names, test


def test_whatever_an_attacker_cannot_do_and_each_rule_of_trust_is_a_claim_with_a_test() -> None:
    before = security().partition(TABLE)[0]
    lists = re.findall(r"^Cannot:\n\n(.*?)\n\n", before, re.MULTILINE | re.DOTALL)
    bullets = [bullet for text in lists for bullet in re.split(r"^- ", text, flags=re.MULTILINE)[1:]]
    trust = before.partition("## Who trusts whom")[2].partition("\n## ")[0]
    rules = re.findall(r"^\*\*.*?\n\n", trust, re.MULTILINE | re.DOTALL)
    assert min(len(bullets), len(rules)) >= 7
    assert [text for text in (*bullets, *rules) if not claims_of(text)] == []


def test_every_file_of_attacks_holds_a_claim() -> None:
    named = {test.partition("::")[0] for tests in held().values() for test in tests}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "tests/security").glob("test_*.py")}
    assert there - named == set()


def test_the_listeners_unit_leaves_it_no_privilege() -> None:
    """And no way to one: prctl(2), capabilities(7). That the unit works so is seen in tests/system."""
    unit = (ROOT / "systemd" / "knime-broker-listener.service").read_text(encoding="utf-8").splitlines()
    assert {"User=knime-listener", "CapabilityBoundingSet=", "NoNewPrivileges=yes"} <= set(unit)
    assert not any(line.startswith("AmbientCapabilities=") and line != "AmbientCapabilities=" for line in unit)


if __name__ == "__main__":
    SECURITY.write_text(generated(security()), encoding="utf-8")
