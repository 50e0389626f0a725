"""The listener's side of the helper's socket as a meter: a program of its own that asks and times, and nothing else.

It runs as the listener's account, which alone may ask, beside a helper here or inside a booted machine; it needs pyzmq
and the standard library. Its clock is CLOCK_MONOTONIC, which all processes and containers of a machine share, so that
what a worker notes of its steps can be set beside it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.lab.accounts import LISTENER

PROGRAM: Final = """
import json, sys, time, zmq
path, users, at_once, bound = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "at once", float(sys.argv[4])
context = zmq.Context()
dealer = context.socket(zmq.DEALER)
dealer.linger = 0
dealer.connect("ipc://" + path)

def ask(number, user, op="ensure"):
    field = {"user": user} if op == "ensure" else {"after": ""}
    dealer.send(json.dumps({"v": 1, "id": f"m-{number}", "op": op, **field}).encode())

def answer():
    while dealer.poll(int(bound * 1000)):
        reply = json.loads(dealer.recv())
        if "notice" not in reply:
            return time.monotonic(), reply
    sys.exit(f"no reply within {bound} s")

def timed(number, user):
    began = time.monotonic()
    while True:
        ask(number, user)
        at, reply = answer()
        if reply["result"] in ("started", "running", "refused") or at - began > bound:
            return user, began, at, reply["result"], reply.get("reason")
        time.sleep(min(reply["retry_after"], 0.1))

ask("first", "", "list")
answer()
if at_once:
    began = time.monotonic()
    for number, user in enumerate(users):
        ask(number, user)
    told = []
    for _ in users:
        at, reply = answer()
        told.append((users[int(reply["id"][2:])], began, at, reply["result"], reply.get("reason")))
else:
    told = [timed(number, user) for number, user in enumerate(users)]
context.destroy(0)
print(json.dumps(told))
"""


class Told(NamedTuple):
    """What became of one request: time.monotonic() of its sending and of its answer."""

    user: str
    asked: float
    answered: float
    result: str
    reason: str | None

    @property
    def ms(self) -> float:
        """The milliseconds between."""
        return 1000 * (self.answered - self.asked)


def command(
    socket: Path | str,
    users: Sequence[str],
    *,
    at_once: bool = False,
    bound: float = 30.0,
    python: str = sys.executable,
) -> list[str]:
    """Return the command that asks for each user, one after the other or all at once; ``answers`` reads its output.

    One after the other, what is answered "not now" is asked again after 0.1 s until the bound.
    """
    drop = ["setpriv", "--reuid", LISTENER, "--regid", LISTENER, "--clear-groups", "--"]
    how = "at once" if at_once else "in turn"
    return [*drop, python, "-I", "-c", PROGRAM, str(socket), json.dumps(list(users)), how, str(bound)]


def answers(output: str) -> list[Told]:
    """Return what the command told."""
    return [Told(*one) for one in json.loads(output)]


def asked(socket: Path, users: Sequence[str], *, at_once: bool = False, bound: float = 30.0) -> list[Told]:
    """Run the command here."""
    done = subprocess.run(
        command(socket, users, at_once=at_once, bound=bound), stdout=subprocess.PIPE, check=True, cwd="/", timeout=600
    )
    return answers(done.stdout.decode())


def expect_started(told: Sequence[Told]) -> None:
    """Raise RuntimeError unless each has an executor that was just started."""
    if others := [one for one in told if one.result != "started"]:
        raise RuntimeError(f"{len(others)} of {len(told)} were not started, the first: {others[0]}")
