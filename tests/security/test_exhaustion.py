"""What is used up or held on to: connections, descriptors, a peer that never reads, a debugger on the gate or a worker.

At worst a request waits or is answered "not now", and is served when there is room again. What runs is not touched,
nothing is forgotten, and the supervisor stays as large as it was.
"""

import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Final

import pytest

from tests.lab.accounts import LISTENER, OsUser
from tests.lab.helper_under_test import (
    HelperUnderTest,
    acting_as,
    children,
    descriptors_of,
    executed,
    helper_under_test,
    is_gone,
    raw_connection,
    resident_kib,
    state_of,
)
from tests.lab.processes import PATH, processes_of, wait_for
from tests.lab.tracer import freezer, traced

FLAT: Final = 2048
"""KiB that the supervisor may grow by: what its allocator keeps."""
GREETING: Final = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL".ljust(64, b"\0")  # ZMTP 3.0, https://rfc.zeromq.org/spec/23
READY: Final = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"


@pytest.fixture(scope="module")
def laid_out() -> Iterator[tuple[HelperUnderTest, OsUser, OsUser]]:
    with helper_under_test() as made:
        yield made, made.accounts.user("alice"), made.accounts.user("bob")


@pytest.fixture
def helper(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> Iterator[HelperUnderTest]:
    yield laid_out[0]
    laid_out[0].reset()


@pytest.fixture
def alice(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> OsUser:
    return laid_out[1]


@pytest.fixture
def bob(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> OsUser:
    return laid_out[2]


def answered(helper: HelperUnderTest, user: OsUser, result: str) -> bool:
    """Ask with a new connection, as a listener does whose request has timed out."""
    with suppress(TimeoutError):
        return bool(helper.client().ensure(user.name, seconds=2.0)["result"] == result)
    return False


@contextmanager
def unharmed(helper: HelperUnderTest, alice: OsUser) -> Iterator[int]:
    """Give the pid of alice's executor; afterwards it is there, is known, and the supervisor is as large as before."""
    pid = int(helper.client().ensure(alice.name)["pid"])
    for _ in range(50):
        helper.operator("list", after="")
    memory, descriptors = resident_kib(helper.pid), len(descriptors_of(helper.pid))
    yield pid
    assert helper.is_alive()
    wait_for(lambda: answered(helper, alice, "running"), 20.0, "an answer")
    page = helper.operator("list", after="")
    assert page is not None
    assert [entry["pid"] for entry in page["executors"]] == [pid]
    assert state_of(pid) == "S"
    assert resident_kib(helper.pid) - memory < FLAT
    wait_for(lambda: len(descriptors_of(helper.pid)) <= descriptors, 30.0, "no descriptor more than before")
    assert helper.events(alice.name).count("started") == 1


@contextmanager
def room_for_descriptors(number: int) -> Iterator[None]:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert allowed[1] >= number, "tests/run raises the limit"
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, allowed[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)


def test_ten_thousand_connections_use_up_the_gates_descriptors_at_worst(helper: HelperUnderTest, alice: OsUser) -> None:
    """More than the gate may have open; half of them have greeted, so that they are held on to for longer."""
    helper.start()
    with unharmed(helper, alice), room_for_descriptors(12_000), ExitStack() as held:
        kinds = (GREETING + READY, GREETING[:11])
        opened = sum(held_open(helper, held, kinds[number % 2]) for number in range(10_000))
        assert opened > 4096, "more than the gate may have open"


def held_open(helper: HelperUnderTest, held: ExitStack, said: bytes) -> bool:
    """Connect as the listener and keep the connection; False where nobody takes it just now."""
    connection = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    connection.settimeout(0.005)
    with suppress(OSError), acting_as(LISTENER):  # the backlog is full, or the gate has just ended
        connection.connect(str(helper.installation.socket))
        connection.send(said)
        return True
    return False


def test_a_peer_that_never_reads_costs_itself_its_answers_and_nobody_else_anything(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    helper.start()
    frame = json.dumps({"v": 1, "id": "x", "op": "list", "after": ""}).encode()
    message = b"\0" + bytes([len(frame)]) + frame
    with unharmed(helper, alice), ExitStack() as held:
        deaf = [held.enter_context(raw_connection(helper.installation.socket)) for _ in range(4)]
        for connection in deaf:
            connection.sendall(GREETING + READY)
            wait_for(lambda one=connection: b"READY" in one.recv(4096, socket.MSG_PEEK), 30.0, "the handshake")  # type: ignore[misc]
            connection.settimeout(0.05)
        sent = [0] * len(deaf)
        for number in [*range(len(deaf))] * 40:
            begun = message * 50
            with suppress(TimeoutError):
                sent[number] += deaf[number].send(begun[sent[number] % len(message) :])
        assert min(sent) > 1000 * len(message)
        assert helper.client().ensure(alice.name)["result"] == "running", "beside them"


@pytest.mark.needs("trace")
def test_a_traced_gate_that_is_killed_is_waited_for_and_then_there_is_another(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    helper.start()
    with unharmed(helper, alice):
        gate = helper.gate_pid()
        with traced(gate):
            os.kill(gate, signal.SIGKILL)
            wait_for(lambda: state_of(gate) == "Z", 30.0, "the gate's end")
            page = helper.operator("list", after="")
            assert page is not None, "the supervisor goes on"
            assert state_of(gate) == "Z"
        wait_for(lambda: helper.gate_pid() != gate, 30.0, "another gate")


@pytest.mark.parametrize("point", ["looking_up", "after_G"])
@pytest.mark.needs("trace")
def test_a_traced_worker_that_is_killed_keeps_its_user_locked_and_nobody_else(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser, point: str
) -> None:
    helper.start(stop_points=True, limits={"lookup_timeout": 1.0, "prepare_timeout": 1.0})
    reached, client = helper.stop_next_worker(point), helper.client()
    asked = client.send(op="ensure", user=alice.name)
    wait_for(reached.exists, 30.0, "the worker")
    (worker,) = helper.workers()
    with traced(worker):
        assert client.wait_for(asked)["result"] == "failed"
        wait_for(lambda: state_of(worker) == "Z", 30.0, "the worker's end")
        assert client.ensure(alice.name)["reason"] == "backing_off"
        assert client.ensure(bob.name)["result"] == "started"
    wait_for(lambda: client.ensure(alice.name)["result"] == "started", 30.0, "a start afterwards")


@pytest.mark.needs("trace")
def test_an_executor_that_its_user_traces_to_its_end_keeps_that_user_waiting_and_takes_one_descriptor_at_most(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser
) -> None:
    """One that were forgotten would keep a zombie and a descriptor of the supervisor's, and the next one, too."""
    helper.start()
    client = helper.client()
    pid = client.ensure(alice.name)["pid"]
    before = len(descriptors_of(helper.pid))
    with traced(pid):
        os.kill(pid, signal.SIGKILL)
        helper.wait_for_event(event="exited", user=alice.name, pid=pid)
        answers = [client.ensure(alice.name) for _ in range(8) if sleep(0.25) is None]
        assert {answer.get("reason") for answer in answers} == {"backing_off"}
        assert state_of(pid) == "Z"
        # Not at once: it opens files of /proc while it looks for what the executor left.
        wait_for(lambda: len(descriptors_of(helper.pid)) <= before, 30.0, "no descriptor more than before")
        assert client.ensure(bob.name)["result"] == "started"
    wait_for(lambda: client.ensure(alice.name)["result"] == "started", 30.0, "a start afterwards")
    assert state_of(pid) == "X", "reaped"


@pytest.mark.needs("freezer")
def test_a_worker_that_cannot_be_killed_keeps_its_user_locked_until_it_has_ended(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser
) -> None:
    """As one does that waits for a dead file server."""
    helper.start(stop_points=True, limits={"lookup_timeout": 1.0})
    reached, client = helper.stop_next_worker("looking_up"), helper.client()
    with freezer() as frozen:
        asked = client.send(op="ensure", user=alice.name)
        wait_for(reached.exists, 30.0, "the worker")
        (worker,) = helper.workers()
        frozen.freeze(worker)
        assert client.wait_for(asked)["reason"] == "lookup_timeout"
        for _ in range(3):
            assert client.ensure(alice.name)["reason"] == "backing_off"
        assert client.ensure(bob.name)["result"] == "started"
        assert helper.workers() == [worker]
        assert not is_gone(worker)
    wait_for(lambda: client.ensure(alice.name)["result"] == "started", 30.0, "a start afterwards")
    assert sum(executed(process.pid) for process in processes_of([alice.uid])) == 1


@pytest.mark.needs("freezer")
def test_eight_workers_that_cannot_be_killed_leave_running_users_served_and_take_no_new_one(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser
) -> None:
    stuck = [helper.accounts.user(f"stuck{number}").name for number in range(8)]
    helper.start(stop_points=True, limits={"lookup_timeout": 1.0})
    client = helper.client()
    pid = client.ensure(alice.name)["pid"]
    with freezer() as frozen:
        asked = []
        for name in stuck:
            reached = helper.stop_next_worker("looking_up")
            asked.append(client.send(op="ensure", user=name))
            wait_for(reached.exists, 30.0, "the worker")
            reached.unlink()
            frozen.freeze(max(helper.workers()))
        assert {client.wait_for(one)["reason"] for one in asked} == {"lookup_timeout"}
        assert client.ensure(bob.name)["reason"] == "at_capacity"
        assert client.ensure(alice.name)["pid"] == pid
    wait_for(lambda: client.ensure(bob.name)["result"] == "started", 30.0, "a start afterwards")


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """Let a process open nothing more while the block runs: no number below the limit is free, prlimit(2)."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)

    def nothing_is_free() -> bool:
        taken = descriptors_of(pid)
        lowest = next(number for number in range(len(taken) + 1) if number not in taken)
        return resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))[0] == lowest

    wait_for(nothing_is_free, 30.0, "no free number, twice")
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def test_an_operator_who_comes_when_no_descriptor_is_left_is_served_when_there_is_one(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    helper.start()
    with unharmed(helper, alice), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as operator:
        with without_descriptors(helper.pid):
            operator.connect(str(helper.installation.operator_socket))
            operator.send(b'{"v":1,"id":"waits","op":"list","after":""}')
            wait_for(lambda: "left waiting" in helper.log.read_text(), 30.0, "the log")
            assert helper.client().ensure(alice.name)["result"] == "running"
        operator.settimeout(30.0)
        assert json.loads(operator.recv(8192))["id"] == "waits"


def test_a_gate_that_cannot_be_started_for_want_of_descriptors_is_started_when_there_are_some(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    helper.start()
    with unharmed(helper, alice):
        gate = helper.gate_pid()
        with without_descriptors(helper.pid):
            # The gate's own channel and pidfd come free with its end; something else takes their places.
            taken = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(8)]
            for operator in taken:
                operator.connect(str(helper.installation.operator_socket))
            os.kill(gate, signal.SIGKILL)
            wait_for(lambda: "the gate cannot be started" in helper.log.read_text(), 30.0, "the log")
            assert not any(b"gate.py" in _command_line(pid) for pid in children(helper.pid))
        for operator in taken:
            operator.close()
        wait_for(lambda: answered(helper, alice, "running"), 30.0, "a gate")


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_a_helper_without_descriptors_for_all_its_executors_forgets_none_and_starts_none_twice(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    """It does not start rather than take half of them for gone; with descriptors it adopts all."""
    names = {f"k{n:02}": alice.name for n in range(30)}
    helper.start(users={"map": names, "max_per_os_user": 30}, limits={"max_executors": 30})
    client = helper.client()
    asked = [client.send(op="ensure", user=user) for user in names]
    pids = {client.wait_for(one, 30.0)["pid"] for one in asked}
    assert len(pids) == 30
    helper.kill()
    for too_few in (25, 4095):  # for the executors; for the gate, which is given 4,096
        command = ["/usr/bin/prlimit", f"--nofile={too_few}:{too_few}", *helper.command()]
        environment = {"PATH": PATH, **helper.environment()}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd="/", timeout=30
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "LimitNOFILE=4096" in line
    helper.start_again()
    assert {entry["pid"] for entry in helper.client().executors()} == pids
    assert {state_of(pid) for pid in pids} == {"S"}
    assert "exited" not in {record["event"] for record in helper.audit()}


def test_a_start_takes_three_descriptors_and_the_helper_may_open_as_many_for_each(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    """However many workers hang at once, the supervisor never wants for one in the middle of something."""
    helper.start(stop_points=True, limits={"max_executors": 1000})
    assert resource.prlimit(helper.pid, resource.RLIMIT_NOFILE)[0] >= 3 * 1000 + len(descriptors_of(helper.pid))
    client = helper.client()
    client.executors()
    before, reached = len(descriptors_of(helper.pid)), helper.stop_next_worker("looking_up")
    client.send(op="ensure", user=alice.name)
    wait_for(reached.exists, 30.0, "the worker")
    wait_for(lambda: len(descriptors_of(helper.pid)) == before + 3, 30.0, "two pipes and a pidfd")


def test_eight_operators_are_served_and_the_ninth_is_sent_away_and_recorded(helper: HelperUnderTest) -> None:
    helper.start()
    with ExitStack() as held:
        for _ in range(8):
            one = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            one.connect(str(helper.installation.operator_socket))
        ninth = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        ninth.connect(str(helper.installation.operator_socket))
        ninth.settimeout(30.0)
        assert ninth.recv(10) == b""
        record = helper.wait_for_event(event="refused_peer", reason="operator_socket")
        assert record["peer"]["uid"] == 0
    wait_for(lambda: operator_is_served(helper), 30.0, "an answer when one has gone")


def operator_is_served(helper: HelperUnderTest) -> bool:
    with suppress(OSError, ValueError):  # sent away
        return helper.operator("list", after="") is not None
    return False
