"""Every place where ``check`` makes a warning or a fault, read from its source, and which of them a run came by.

So a new one without a test that provokes it is seen: the places are compared with those that tests came by. Which
are provoked in a tree of files and which for real is said here; the two test files each hold their part.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

CHECKS: Final = Path(__file__).resolve().parents[2] / "broker_listener/operator/checks"
GRAVE: Final = ("warning", "fault")
FOR_REAL: Final = ("account.", "broker.", "managed.", "policies.", "daemons.sockets")
"""Beginnings of those that need daemons and a broker; what else there is can be had in a tree of files."""


class Place(NamedTuple):
    """A call of ``warning`` or ``fault``: ``module.function``, the line, and the call's text for whoever reads it."""

    where: str
    line: int
    text: str


def places() -> Iterator[Place]:
    """Give all of them."""
    for file in (*sorted(CHECKS.glob("*.py")), CHECKS.with_name("check.py")):
        tree = ast.parse(file.read_text("utf-8"))
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in GRAVE:
                    yield Place(f"{file.stem}.{function.name}", node.lineno, ast.unparse(node)[:120])


def unprovoked(seen: set[tuple[str, int]], *, for_real: bool) -> list[Place]:
    """Give those of one part that no run came by; ``seen`` holds module and line of each that one did."""
    return [
        place
        for place in places()
        if place.where.startswith(FOR_REAL) is for_real and (place.where.partition(".")[0], place.line) not in seen
    ]


def noting(make: Callable[..., Any], note: Callable[[str, int], object]) -> Callable[..., Any]:
    """Give ``warning`` or ``fault`` so that each call's module and line are noted."""

    def made(*arguments: Any) -> Any:
        caller: FrameType = sys._getframe(1)
        note(Path(caller.f_code.co_filename).stem, caller.f_lineno)
        return make(*arguments)

    return made


LAUNCHER: Final = """\
import sys

sys.path.insert(0, {library!r})
sys.path.append({checkout!r})
from broker_listener.operator.checks import finding
from tests.lab.check_faults import GRAVE, noting

notes = open({notes!r}, "a")  # while this is root
for name in GRAVE:
    make = getattr(finding, name)
    setattr(finding, name, noting(make, lambda module, line: print(module, line, file=notes, flush=True)))
from broker_listener.operator.__main__ import main

sys.exit(main())
"""
"""Runs the command of an installation, and notes each place that it comes by."""
