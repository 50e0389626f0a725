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
from tests.unit.test_architecture import AS_ROOT, GATE, code_lines, source  # noqa: E402

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


if __name__ == "__main__":
    SECURITY.write_text(generated(security()), encoding="utf-8")
