"""The root helper's answer for an executor that runs, and its memory over requests.

How it could lie: a round trip is timed in the process that asks, with nothing else in flight, so it is a latency and no
rate; the bare round trip is pyzmq on the same machine between the same two kinds of socket, with frames of the same
bytes, and nobody in between. The first tenth is not counted on either side. Memory is resident (VmRSS), after the same
2,000 requests and after 100,000.
"""

import json
import subprocess
import sys
import threading
from typing import Final

import zmq

from tests.bench.figures import Figure
from tests.bench.instruments import rss
from tests.bench.spread import median, percentile
from tests.lab.accounts import LISTENER
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test

ROUND_TRIPS: Final = 2000
REQUESTS: Final = 100_000
_ASK: Final = """
import json, sys, time, zmq
address, user, count, window = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
context = zmq.Context()
dealer = context.socket(zmq.DEALER)
dealer.linger = 0
dealer.connect(address)
frame = json.dumps({"v": 1, "id": "m", "op": "ensure", "user": user}).encode()
times, sent = [], 0
for _ in range(count):
    began = time.perf_counter()
    while sent < count and sent - len(times) < window:
        dealer.send(frame)
        sent += 1
    if not dealer.poll(10_000):
        sys.exit("no reply")
    dealer.recv()
    times.append((time.perf_counter() - began) * 1000)
context.destroy(0)
print(json.dumps(times[count // 10:]))
"""


def ensure(runs: int) -> list[Figure]:
    """Ask ``ensure`` for a running executor, through gate and supervisor, beside a bare pyzmq round trip."""
    ours, bare = list[list[float]](), list[list[float]]()
    with helper_under_test() as helper:
        address, user = _with_an_executor(helper)
        alone = f"ipc://{helper.installation.run}/bare.sock"
        threading.Thread(target=_echo, args=(alone, ROUND_TRIPS * runs), daemon=True).start()
        for _ in range(runs):
            ours.append(_asked(address, user, ROUND_TRIPS, drop=True))
            bare.append(_asked(alone, user, ROUND_TRIPS))
    what = "`ensure` round trip, executor running"
    return [
        Figure(f"{what}, median", "ms", tuple(map(median, ours)), goal=0.25),
        Figure(f"{what}, p99", "ms", tuple(percentile(one, 99) for one in ours)),
        Figure("bare pyzmq round trip, median", "ms", tuple(map(median, bare)), bare=True),
        Figure("bare pyzmq round trip, p99", "ms", tuple(percentile(one, 99) for one in bare), bare=True),
    ]


def memory_of_the_helper(_runs: int) -> list[Figure]:
    """Resident memory of the helper's processes after 2,000 requests, and how much more after 100,000."""
    with helper_under_test() as helper:
        address, user = _with_an_executor(helper)
        _asked(address, user, ROUND_TRIPS, window=32, drop=True)
        before = _processes(helper)
        _asked(address, user, REQUESTS, window=32, drop=True)
        after = _processes(helper)
    figures = []
    for name, goal in (("supervisor", 21.0), ("gate", 17.0)):
        more = f"{name}, resident: more after {REQUESTS:,} requests"
        figures += [
            Figure(f"{name}, resident", "MB", (before[name],), goal=goal),
            Figure(more, "MB", (after[name] - before[name],), goal=2.0),
        ]
    return figures


def _with_an_executor(helper: HelperUnderTest) -> tuple[str, str]:
    helper.start()
    user = helper.accounts.user("alice").name
    helper.client().ensure(user)
    return f"ipc://{helper.installation.socket}", user


def _processes(helper: HelperUnderTest) -> dict[str, float]:
    return {"supervisor": rss(helper.pid), "gate": rss(helper.gate_pid())}


def _asked(address: str, user: str, count: int, window: int = 1, *, drop: bool = False) -> list[float]:
    """Return the milliseconds of each round trip but the first tenth; as the listener's account if ``drop``."""
    account = ["setpriv", "--reuid", LISTENER, "--regid", LISTENER, "--clear-groups", "--"] if drop else []
    command = [*account, sys.executable, "-I", "-c", _ASK, address, user, str(count), str(window)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd="/", timeout=300)
    times: list[float] = json.loads(done.stdout)
    return times


def _echo(address: str, count: int) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(address)
    for _ in range(count):
        socket.send_multipart(socket.recv_multipart())
    socket.close(1000)
    context.term()
