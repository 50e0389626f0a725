"""What a test of crashes needs: what ends things by chance, a publisher that loses nothing, and who ran what.

The publisher is KNIME Server's side with confirms: a job whose publish has no answer is published again, and counted,
since it may be there twice by the publisher's doing. Who ran a job stands in the workspaces, written by the stand-in
executors of ``simulated_knime/light.py``.
"""

import gc
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pika
from pika.exceptions import AMQPError

from tests.lab.broker_node import JOBS_EXCHANGE
from tests.lab.installation import CHECKOUT, Installation
from tests.lab.processes import processes_of
from tests.lab.site import Site


class Chaos:
    """Ends things by chance, and counts what it did; ``in_flight`` is what was under way where something was killed."""

    def __init__(self, site: Site, uids: Sequence[int], chance: random.Random) -> None:
        self._site = site
        self._uids = uids
        self._chance = chance
        self.ended: Counter[str] = Counter()
        self.in_flight = 0
        self._does: Mapping[str, Callable[[], None]] = {
            "listener": self._listener,
            "gate": self._gate,
            "supervisor": self._supervisor,
            "broker": self._broker,
            "executors": self._executors,
            "alarm": self._alarm,
        }

    def go_through(self, plan: Sequence[str], pause: float) -> None:
        """Do all of the plan, in any order, up to ``pause`` seconds apart."""
        for what in self._chance.sample(plan, k=len(plan)):
            self._wait(pause)
            self._does[what]()
            self.ended[what] += 1

    def _listener(self) -> None:
        self.in_flight += listener_status(self._site)["under_way"]
        self._site.listener.kill()
        self._wait(1.0)
        self._site.listener.start()

    def _gate(self) -> None:
        supervisor = self._site.helper.pid
        for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="ascii").split():
            if b"gate.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)

    def _supervisor(self) -> None:
        self._site.helper.kill()
        self._wait(1.0)
        self._site.helper.start()

    def _broker(self) -> None:
        self._site.server.close()
        self.in_flight += listener_status(self._site)["under_way"] + len(list(processes_of(self._uids)))
        self._site.broker.kill()
        self._wait(1.0)
        self._site.broker.start()
        self._site.server.connect()

    def _executors(self) -> None:
        alive = list(processes_of(self._uids))
        for process in self._chance.sample(alive, k=min(len(alive), 1 + len(self._uids) // 10)):
            if process.alive():
                os.kill(process.pid, signal.SIGKILL)
                self.in_flight += 1
                self.ended["executor"] += 1

    def _alarm(self) -> None:
        self._site.broker.ctl("set_vm_memory_high_watermark", "0")
        self._wait(2.0)
        {"wait": lambda: self._wait(1.0), "listener": self._listener}[self._chance.choice(("wait", "listener"))]()
        self._site.broker.ctl("set_vm_memory_high_watermark", "0.4")

    def _wait(self, at_most: float) -> None:
        time.sleep(self._chance.uniform(0.0, at_most))


def listener_status(site: Site) -> dict[str, Any]:
    """Give what the listener says of itself at its status socket."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str(site.installation.status_socket))
        told: dict[str, Any] = json.loads(b"".join(iter(lambda: asked.recv(1 << 16), b"")))
    return told


def held_jobs(site: Site) -> dict[str, str]:
    """Return how many jobs the listener holds for each user, with the user's state and the reason that it gives."""
    told = listener_status(site)
    held = {
        user["user"]: f"{user['held']} held, {user['state']}, reason {user['reason']}"
        for user in told["users"]
        if user["held"]
    }
    others = told["held"]["jobs"] - sum(user["held"] for user in told["users"])
    return {**held, "(no user)": f"{others} held, of these {told['under_way']} under way"} if others else held


def queued_jobs(site: Site, seconds: float) -> dict[str, tuple[int, int]]:
    """Wait until no queue has messages; return those that have, each with how many are ready and how many not acked."""
    columns = ("name", "messages_ready", "messages_unacknowledged")
    end = time.monotonic() + seconds
    while True:
        lines = site.broker.ctl("list_queues", "-p", site.vhost, "--no-table-headers", *columns).splitlines()
        rows = [line.split("\t") for line in lines]
        left = {name: (int(ready), int(unacked)) for name, ready, unacked in rows if (ready, unacked) != ("0", "0")}
        if not left or time.monotonic() > end:
            return left


def install_light_executor(installation: Installation, **settings: object) -> None:
    """Have users' executors be those of ``simulated_knime/light.py``."""
    program = CHECKOUT / "tests/simulated_knime/light.py"
    (installation.knime_home / "knime").write_bytes(program.read_bytes())
    installation.configure_knime(**settings)


class Run(NamedTuple):
    """One run of a job, as its executor has noted it; ``redelivered`` and ``marked`` are of the message that it had."""

    job: str
    user: str
    uid: int
    pid: int
    at: float
    redelivered: bool
    marked: bool


class Ledger:
    """The runs so far, read from the users' workspaces; ``strangers`` are runs in another user's executor."""

    def __init__(self, workspaces: Path) -> None:
        self._workspaces = workspaces
        self._read: dict[Path, int] = {}
        self.runs: list[Run] = []
        self.strangers: list[Run] = []

    def update(self) -> Counter[str]:
        """Read what is new; give how often each job ran."""
        for path in self._workspaces.glob("*/ran"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            owner = path.stat().st_uid
            for line in whole.decode("ascii").splitlines():
                job, user, uid, pid, at, redelivered, marked = line.split(" ")
                run = Run(job, user, int(uid), int(pid), float(at), redelivered == "1", marked == "1")
                self.runs.append(run)
                if owner != run.uid or user != path.parent.name:
                    self.strangers.append(run)
        return Counter(run.job for run in self.runs)


class Publisher(threading.Thread):
    """Publishes a job for each user of the plan, ``per_second`` in all, and each until the broker has confirmed it."""

    def __init__(self, urls: Sequence[str], plan: Sequence[str], per_second: float) -> None:
        super().__init__(daemon=True)
        self._urls = urls
        self.owners = {f"j{number}": user for number, user in enumerate(plan)}
        self._pause = 1 / per_second
        self.published: dict[str, float] = {}
        """Unix time at which the broker had each job."""
        self.perhaps_twice: set[str] = set()
        self.halted = threading.Event()

    def run(self) -> None:
        """Publish everything."""
        channel, sent = None, ""
        due = time.monotonic()
        for job, user in self.owners.items():
            body = json.dumps({"user": user, "job": job}).encode()
            while job not in self.published and not self.halted.is_set():
                try:
                    channel = channel or self._connected()
                    sent = job
                    channel.basic_publish(JOBS_EXCHANGE, "new-work", body, _properties(job))
                    self.published[job] = time.time()
                except (AMQPError, OSError):
                    if channel is not None and sent == job:
                        self.perhaps_twice.add(job)
                    _clean_up(channel)
                    channel = None
                    time.sleep(0.2)
            due = max(due + self._pause, time.monotonic() - 0.5)
            time.sleep(max(0.0, due - time.monotonic()))
        if channel is not None:
            channel.connection.close()

    def _connected(self) -> pika.adapters.blocking_connection.BlockingChannel:
        for url in self._urls:
            parameters = pika.URLParameters(url)
            parameters.heartbeat = 0
            parameters.connection_attempts = 1
            with suppress(AMQPError, OSError):
                socket.create_connection((parameters.host, parameters.port), 1.0).close()  # pika leaks what it fails at
                channel = pika.BlockingConnection(parameters).channel()
                channel.confirm_delivery()
                return channel
        raise OSError("no broker")


def forget_lost_connections() -> None:
    """Collect what pika leaves open of connections that were lost half-way; call it where that warning is ignored."""
    gc.collect()


def _clean_up(channel: pika.adapters.blocking_connection.BlockingChannel | None) -> None:
    if channel is not None:
        channel.connection._cleanup()  # pika closes the sockets of a lost connection only when asked to close it


def _properties(job: str) -> pika.BasicProperties:
    return pika.BasicProperties(headers={"canHandle": False}, delivery_mode=2, message_id=job)
