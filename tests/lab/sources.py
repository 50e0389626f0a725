"""The project's own source files, read as text and as syntax trees: which run as root, and how many lines they have."""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def files(package: str) -> list[str]:
    """Return the paths of a package's modules, relative to the checkout, sorted."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py"))


PROTOCOL, HELPER, LISTENER = files("protocol"), files("root_helper"), files("broker_listener")
GATE = "root_helper/gate.py"
AS_ROOT = [*PROTOCOL, *(file for file in HELPER if file != GATE)]


@cache
def source(file: str) -> str:
    """Return a file's text."""
    return (ROOT / file).read_text(encoding="utf-8")


@cache
def tree(file: str) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(source(file))


def code_lines(text: str) -> int:
    """Return the number of lines that hold code: no blank line, no comment, no docstring (of any kind of statement)."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)
