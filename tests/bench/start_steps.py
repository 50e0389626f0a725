"""A start cut into its steps: the worker of an installed copy notes the time at the end of each.

How it could lie: what notes costs time itself, some 2 us a note and a line written at the end, so that totals are
measured without it and the sum of the steps stands beside them. A step is what passed since the note before, so that
nothing between two steps is lost, whatever their order. The functions are named here; a worker that has no function of
such a name ends the bench, instead of a step that silently counts as part of the next.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.asking import Told
from tests.bench.spread import median

STEPS: Final = {
    "fresh_process": "a fresh process",
    "_who": "look-up, policy, PAM",
    "ensure_home": "home",
    "ensure_private": "workspace and temp directory, with ACLs",
    "scope.enter": "scope",
    "become_user": "becoming the user",
}
"""A worker's functions by name, and what the step is called."""
FORKED: Final = "request to fork"
RECORDED: Final = "facts told, record on disk, go"
EXECUTED: Final = "execve, seen, answered"
NOTES: Final = (FORKED, *STEPS.values(), RECORDED, EXECUTED)
_PROBE: Final = """


import json as _json
import time as _time

_noted = []


def _note(step):
    _noted.append((step, _time.monotonic()))


def _noting(step, call):
    def wrapped(*words, **named):
        try:
            return call(*words, **named)
        finally:
            _note(step)

    return wrapped


def _noting_start(call):
    def wrapped(*words, **named):
        _note({forked!r})
        return call(*words, **named)

    return wrapped


def _noting_end(call):
    def wrapped(program):
        _note({recorded!r})
        with open(f"{directory}/{{os.getpid()}}", "x", encoding="ascii") as file:
            _json.dump({{"user": program.environment["LOGNAME"], "noted": _noted}}, file)
        return call(program)

    return wrapped


for _name, _step in {steps!r}.items():
    if _name == "scope.enter":
        scope.enter = _noting(_step, scope.enter)
    else:
        globals()[_name] = _noting(_step, globals()[_name])
fresh_process = _noting_start(fresh_process)
_execute = _noting_end(_execute)
"""


def add_probe(worker: Path, directory: str) -> None:
    """Add the notes to an installed worker.py; they go to files of a directory that every user can write."""
    text = worker.read_text(encoding="utf-8")
    probe = _PROBE.format(forked=FORKED, recorded=RECORDED, steps=STEPS, directory=directory)
    worker.write_text(text + probe, encoding="utf-8")


def steps(told: Sequence[Told], directory: Path) -> dict[str, float]:
    """Return the median milliseconds of each step of these starts, and take the notes away."""
    noted = {}
    for path in directory.iterdir():
        one = json.loads(path.read_text(encoding="ascii"))
        noted[one["user"]] = one["noted"]
        path.unlink()
    if missing := [one.user for one in told if one.user not in noted]:
        raise RuntimeError(f"no notes of the starts of {missing[:3]}")
    found: defaultdict[str, list[float]] = defaultdict(list)
    for one in told:
        for step, ms in cut(one, noted[one.user]).items():
            found[step].append(ms)
    return {step: median(found[step]) for step in NOTES if step in found}


def cut(told: Told, noted: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the milliseconds of each step of one start; those of one name are added up."""
    found: defaultdict[str, float] = defaultdict(float)
    before = told.asked
    for step, at in [*noted, (EXECUTED, told.answered)]:
        found[step] += 1000 * (at - before)
        before = at
    return dict(found)
