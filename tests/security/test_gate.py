"""The socket and the gate under attack: at worst the gate dies and is back, and nobody else notices.

Strangers, garbage in frames, garbage below them, and hostile programs in the gate's place. The supervisor answers,
its memory and descriptors stay where they were, and the executors do not notice.
"""

import json
import os
import random
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

from root_helper.trusted_files import trusted_directory_faults
from tests.lab.accounts import LISTENER, OsUser
from tests.lab.helper_under_test import (
    HelperUnderTest,
    descriptors_of,
    is_gone,
    raw_connection,
    resident_kib,
    state_of,
    status_of,
)
from tests.lab.listener_client import ListenerClient
from tests.lab.processes import wait_for

FLAT: Final = 2048
"""KiB that the supervisor may grow by under attack: what its allocator keeps, not what it was sent."""
GREETING: Final = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL".ljust(64, b"\0")  # ZMTP 3.0, https://rfc.zeromq.org/spec/23


@pytest.fixture(scope="module")
def member(laid_out: HelperUnderTest) -> OsUser:
    """Give a user who can open the socket."""
    return laid_out.accounts.user("member", groups=[LISTENER])


@pytest.fixture
def unharmed(helper: HelperUnderTest, alice: OsUser) -> Iterator[HelperUnderTest]:
    """Give a helper with an executor; afterwards both must be as they were, and a request must be answered.

    One that was on its way when the gate died is lost, as the contract says, and is asked again.
    """
    helper.start()
    client = helper.client()
    executor = client.ensure(alice.name)["pid"]
    for _ in range(50):  # what it keeps for its work it has by now
        client.ask("list", after="")
    memory, descriptors = resident_kib(helper.pid), len(descriptors_of(helper.pid))
    yield helper
    assert helper.is_alive()
    wait_for(lambda: answers(helper, alice), 30.0, "an answer")
    again = helper.client()
    assert again.ensure(alice.name)["pid"] == executor
    assert state_of(executor) == "S"
    assert [entry["pid"] for entry in again.executors()] == [executor]
    assert resident_kib(helper.pid) - memory < FLAT
    wait_for(lambda: len(descriptors_of(helper.pid)) <= descriptors, 30.0, "no descriptor more than before")
    assert helper.events(alice.name).count("started") == 1


@pytest.mark.needs("trace")
def test_the_gate_has_no_terminal_and_no_descriptor_of_roots(unharmed: HelperUnderTest) -> None:
    """Its own session, nothing on 0, 1 and 2, the two sockets; whatever else it has, it has opened itself."""
    gate = unharmed.gate_pid()
    opened = descriptors_of(gate)
    assert [opened[number] for number in (0, 1, 2)] == ["/dev/null"] * 3
    assert {kind.partition(":")[0] for number, kind in opened.items() if number > 2} <= {"socket", "anon_inode"}
    assert os.getsid(gate) == gate


def test_the_gate_imports_from_where_root_does_and_nobody_but_root_can_write_there(helper: HelperUnderTest) -> None:
    """With -S nothing is executed that lies in a site directory: .pth files, sitecustomize."""
    helper.start()
    _, isolated, program, *_, path = Path(f"/proc/{helper.gate_pid()}/cmdline").read_text().split("\0", 6)
    assert isolated == "-IS"
    library = str(helper.installation.root / "lib")
    assert program.startswith(library)
    places = path.strip("\0").split("\0")
    assert library in places
    assert [fault for place in places if Path(place).exists() for fault in trusted_directory_faults(place)] == []


@pytest.mark.needs("trace")
def test_the_supervisor_has_one_thread_and_no_libzmq(unharmed: HelperUnderTest) -> None:
    maps = Path(f"/proc/{unharmed.pid}/maps").read_text()
    assert "zmq" not in maps
    assert "sodium" not in maps
    assert "zmq" in Path(f"/proc/{unharmed.gate_pid()}/maps").read_text()
    client = unharmed.client()
    for burst in range(5):  # under load: workers come and go, and ask NSS
        asked = [client.send(op="ensure", user=f"nobody-{burst}-{number}") for number in range(20)]
        while not all(map(client.is_answered, asked)):
            assert status_of(unharmed.pid)["Threads"] == ["1"]
            assert sockets_of(unharmed.pid).isdisjoint(network_sockets())
            time.sleep(0.01)
        assert {client.wait_for(one)["reason"] for one in asked} == {"unknown_user"}
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        assert sockets_of(os.getpid()) & network_sockets(), "one would be seen"


def sockets_of(pid: int) -> set[str]:
    return {link[8:-1] for link in descriptors_of(pid).values() if link.startswith("socket:[")}


def network_sockets() -> set[str]:
    """Give the inodes of all sockets but Unix ones: proc(5), /proc/net."""
    found = set[str]()
    for name, column in (("tcp", 9), ("tcp6", 9), ("udp", 9), ("udp6", 9), ("raw", 9), ("packet", 8), ("netlink", 9)):
        lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        found |= {line.split()[column] for line in lines}
    return found


@pytest.mark.needs("trace")
def test_the_gate_has_no_privilege_and_nothing_of_the_supervisors(unharmed: HelperUnderTest) -> None:
    gate = unharmed.gate_pid()
    facts = status_of(gate)
    uids = set(facts["Uid"])
    assert len(uids) == 1
    assert uids.isdisjoint({"0", status_of(unharmed.pid)["Uid"][0]})
    assert (facts["NoNewPrivs"], facts["Groups"]) == (["1"], [])
    assert {int(facts[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    links = [link for number, link in descriptors_of(gate).items() if number > 2]
    assert all(link.startswith(("socket:", "anon_inode:")) for link in links), links
    assert Path(f"/proc/{gate}/environ").read_bytes() == b""
    limits = {
        line[:26].strip(): line[26:].split()[:2] for line in Path(f"/proc/{gate}/limits").read_text().splitlines()
    }
    assert limits["Max open files"] == ["4096", "4096"]
    assert limits["Max address space"] == [str(256 * 2**20)] * 2


@pytest.mark.parametrize("who", ["root", "member"])
def test_a_stranger_who_can_open_the_socket_is_refused_and_recorded(
    unharmed: HelperUnderTest, member: OsUser, who: str
) -> None:
    uid = 0 if who == "root" else member.uid
    stranger = ListenerClient(unharmed.installation.socket, "root" if who == "root" else member.name, group=LISTENER)
    try:
        asked = [stranger.send(op="ensure", user=member.name), stranger.send(op="list", after="")]
        wait_for(lambda: len(refused_peers(unharmed, uid)) == 2, 30.0, "two records of the stranger")
        assert not any(stranger.is_answered(one) for one in asked)
    finally:
        stranger.close()
    assert refused_peers(unharmed, uid)[0]["pid"] == stranger.pid
    assert unharmed.events(member.name) == []


def refused_peers(helper: HelperUnderTest, uid: int) -> list[dict[str, int]]:
    found = [record["peer"] for record in helper.audit() if record["event"] == "refused_peer"]
    return [peer for peer in found if peer["uid"] == uid]


def test_anybody_else_cannot_open_either_socket(unharmed: HelperUnderTest, alice: OsUser, member: OsUser) -> None:
    for account in (alice.name, "knime-gate", "nobody"):
        with pytest.raises(PermissionError):
            raw_connection(unharmed.installation.socket, account)
    for account in (alice.name, LISTENER, member.name):
        with pytest.raises(PermissionError):
            raw_connection(unharmed.installation.operator_socket, account, socket.SOCK_SEQPACKET)


def test_strangers_cannot_fill_the_disk_and_are_counted(unharmed: HelperUnderTest) -> None:
    stranger = ListenerClient(unharmed.installation.socket, "root", group=LISTENER)
    try:
        for _ in range(2000):
            stranger.send(op="list", after="")
        wait_for(lambda: len(refused_peers(unharmed, 0)) >= 150, 30.0, "the burst of records")
    finally:
        stranger.close()
    unharmed.client().ask("list", after="")
    assert len(refused_peers(unharmed, 0)) < 250


def test_ten_thousand_frames_of_garbage_are_dropped(unharmed: HelperUnderTest, alice: OsUser) -> None:
    chance = random.Random(7)
    whole = json.dumps({"v": 1, "id": "x", "op": "ensure", "user": alice.name}).encode()
    kinds: list[Callable[[], list[bytes]]] = [
        lambda: [chance.randbytes(chance.randrange(1024))],
        lambda: [whole[: chance.randrange(len(whole))]],
        lambda: [whole, whole],
        lambda: [b"", whole],
        lambda: [b""],
        lambda: [whole.replace(b"ensure", b"delete")],
        lambda: [whole.replace(b'"v": 1', b'"v": 1, "v": 1')],
        lambda: [b"[" * 1000],
        lambda: [b'{"v":1,"id":"x","op":"ensure","user":' + b"9" * 900 + b"}"],
        lambda: [whole[:-1] + b', "uid": 0}'],
    ]
    client = unharmed.client()
    for n in range(10_000):
        client.send_parts(*kinds[n % len(kinds)]())
    assert client.ensure(alice.name)["result"] == "running"
    dropped = [record for record in unharmed.audit() if record["event"] == "dropped"]
    assert 0 < len(dropped) < 250


def test_frames_over_the_limit_cost_their_sender_the_connection_only(unharmed: HelperUnderTest, alice: OsUser) -> None:
    bystander, gate = unharmed.client(), unharmed.gate_pid()
    hostile = unharmed.client()
    for size in (1025, 5000, 1_000_000):
        hostile.send_parts(b"x" * size)
    assert bystander.ensure(alice.name)["result"] == "running"
    assert unharmed.gate_pid() == gate


def test_half_greetings_and_noise_below_zeromq_do_not_even_end_the_gate(unharmed: HelperUnderTest) -> None:
    chance, gate = random.Random(11), unharmed.gate_pid()
    with ExitStack() as held:
        for n in range(300):
            connection = held.enter_context(raw_connection(unharmed.installation.socket))
            noise = [GREETING[: n % 64], chance.randbytes(200), GREETING + chance.randbytes(100), b"\xff" * 64]
            with suppress(BrokenPipeError):
                connection.sendall(noise[n % len(noise)])
        unharmed.client().ask("list", after="")
    assert unharmed.gate_pid() == gate


@pytest.mark.parametrize("version", [1, 2])
def test_a_peer_of_an_old_protocol_that_hides_its_ids_is_a_stranger(unharmed: HelperUnderTest, version: int) -> None:
    """Libzmq notes no Peer-Address on messages of ZMTP 1 and 2, whoever sends them."""
    gate = unharmed.gate_pid()
    frame = json.dumps({"v": 1, "id": "x", "op": "list", "after": ""}).encode()
    with raw_connection(unharmed.installation.socket) as connection:
        if version == 1:  # no greeting at all: a frame with the identity, then the message
            connection.sendall(b"\x02\0i" + bytes([len(frame) + 1]) + b"\0" + frame)
        else:  # ZMTP 2.0: signature, revision 1, socket type DEALER, then the identity
            connection.sendall(b"\xff\0\0\0\0\0\0\0\x02\x7f\x01\x05" + b"\0\1i\0" + bytes([len(frame)]) + frame)
        wait_for(lambda: refused_peers(unharmed, 2**32 - 1), 30.0, "the record of a stranger")
    assert unharmed.gate_pid() == gate


def test_two_thousand_idle_connections_keep_nobody_out(unharmed: HelperUnderTest, alice: OsUser) -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(10_000, allowed[1]), allowed[1]))
    try:
        with ExitStack() as held:
            for _ in range(2000):
                held.enter_context(raw_connection(unharmed.installation.socket))
            assert unharmed.client().ensure(alice.name)["result"] == "running"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)


def ready(identity: bytes) -> bytes:
    properties = b"\x0bSocket-Type\0\0\0\x06DEALER"
    properties += b"\x08Identity" + struct.pack(">I", len(identity)) + identity
    body = b"\x05READY" + properties
    return b"\x04" + bytes([len(body)]) + body


def handshaken(helper: HelperUnderTest, identity: bytes) -> socket.socket:
    connection = raw_connection(helper.installation.socket)
    connection.sendall(GREETING + ready(identity))
    received = b""
    with suppress(TimeoutError):
        while b"READY" not in received and (chunk := connection.recv(4096)):
            received += chunk
    return connection


@pytest.mark.parametrize("identity", [b"listener", b"\0\0\0\0\1", b"x" * 200], ids=["plain", "as libzmq's own", "long"])
def test_an_identity_taken_twice_is_outlived(unharmed: HelperUnderTest, identity: bytes) -> None:
    """Known to abort libzmq in some orders; then the gate dies, and is back."""
    frame = json.dumps({"v": 1, "id": "x", "op": "list", "after": ""}).encode()
    message = b"\0" + bytes([len(frame)]) + frame
    for _ in range(3):
        with ExitStack() as held:
            connections = [held.enter_context(handshaken(unharmed, identity)) for _ in range(3)]
            for text in (message, b"\0\0", b"\0" + bytes([len(identity)]) + identity, message, b"\1\0\0\0"):
                for connection in connections:
                    with suppress(OSError):
                        connection.sendall(text)


def test_one_message_of_endless_parts_ends_the_gate_at_worst(unharmed: HelperUnderTest) -> None:
    """MAXMSGSIZE bounds a part, not their number: the gate's address space is what ends it."""
    gate, parts = unharmed.gate_pid(), b"\1\1x" * 20_000
    with handshaken(unharmed, b"endless") as connection:
        with suppress(OSError):
            for _ in range(400):
                connection.sendall(parts)
        with suppress(OSError):
            connection.recv(1)
    wait_for(lambda: unharmed.gate_pid() != gate, 30.0, "another gate")


def test_a_gate_killed_again_and_again_comes_back(unharmed: HelperUnderTest) -> None:
    for _ in range(5):
        os.kill(gate := unharmed.gate_pid(), signal.SIGKILL)
        wait_for(lambda gate=gate: unharmed.gate_pid() != gate, 30.0, "another gate")  # type: ignore[misc]


HOSTILE: Final = """
import os, random, socket, struct, sys, time
channel = socket.socket(fileno=int(sys.argv[2]))
listener = int(sys.argv[3])
HEADER = struct.Struct("=cIIIB")
def frame(text, identity=b"i", uid=listener, kind=b"F"):
    return HEADER.pack(kind, uid, 0, 4294967295, len(identity)) + identity + text
"""
IS_DONE: Final = "\nos.close(0)\ntime.sleep(1000)\n"
"""How a test sees from outside that a flood is over."""

FLOODS: Final = {
    "noise": """
channel.setblocking(True)
for n in range(30000):
    try:
        channel.send(random.randbytes(random.choice((1, 13, 14, 15, 100, 1293, 1294, 8192))))
    except OSError:
        pass
""",
    "identities of 255 bytes": """
for n in range(20000):
    channel.send(frame(b'{"v":1,"id":"x","op":"list","after":""}', identity=str(n).encode().rjust(255, b"i")))
    try:
        channel.recv(8192, socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass
""",
    "an identity longer than the datagram": """
for n in range(20000):
    channel.send(HEADER.pack(b"F", listener, 0, 1, 255) + b"short")
""",
    "requests, and never reads an answer": """
for n in range(20000):
    channel.send(frame(b'{"v":1,"id":"x","op":"list","after":""}'))
""",
    "strangers that do not exist": """
for n in range(20000):
    channel.send(frame(b"", kind=b"S", uid=n))
""",
    "what only operators may": """
for n in range(20000):
    channel.send(frame(b'{"v":1,"id":"x","op":"drain","on":true}'))
    channel.send(frame(b'{"v":1,"id":"x","op":"stop","user":"ALICE"}'))
    channel.send(frame(b'{"v":1,"id":"x","op":"drain","on":true}', uid=0))
""",
    "users who may not": """
for name in (b"root", b"daemon", b"knime-gate", b"knime-listener", b"../../etc", b"nobody"):
    channel.send(frame(b'{"v":1,"id":"x","op":"ensure","user":"' + name + b'"}', uid=0))
""",
    "descriptors": """
array = struct.pack("i", 0) * 200
for n in range(5000):
    try:
        channel.sendmsg([frame(b"")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array)])
    except OSError:
        pass
""",
}


@pytest.mark.parametrize("case", FLOODS)
def test_a_hostile_program_in_the_gates_place_gets_what_the_listener_could_ask(
    helper: HelperUnderTest, alice: OsUser, case: str
) -> None:
    helper.start()
    pid = helper.client().ensure(alice.name)["pid"]
    for _ in range(50):
        helper.operator("list", after="")
    memory, descriptors = resident_kib(helper.pid), len(descriptors_of(helper.pid))
    helper.replace_gate(HOSTILE + FLOODS[case].replace("ALICE", alice.name) + IS_DONE)
    os.kill(helper.gate_pid(), signal.SIGKILL)
    wait_for(lambda: quiet(helper), 30.0, "the end of the flood")
    page = helper.operator("list", after="")
    assert page is not None
    assert [entry["pid"] for entry in page["executors"]] == [pid]
    assert page["draining"] is False
    assert state_of(pid) == "S"
    assert helper.is_alive()
    assert resident_kib(helper.pid) - memory < FLAT
    wait_for(lambda: len(descriptors_of(helper.pid)) <= descriptors, 30.0, "no descriptor more than before")
    records = helper.audit()
    assert [r["user"] for r in records if r["event"] == "started"] == [alice.name]
    assert not [r for r in records if r["event"] in {"drain", "stopped"}]
    assert len(records) < 900


def quiet(helper: HelperUnderTest) -> bool:
    """Tell whether the hostile gate has said all, and the supervisor has read it."""
    is_done = not os.path.lexists(f"/proc/{helper.gate_pid()}/fd/0")
    return is_done and state_of(helper.pid) == "S" and helper.operator("list", after="") is not None


MISBEHAVIOUR: Final = {
    "ends at once": "sys.exit(3)",
    "closes its end and lives": "channel.shutdown(socket.SHUT_RDWR)\nchannel.close()\ntime.sleep(1000)",
    "says nothing at all, often": "while True: channel.send(b'')",
}


@pytest.mark.parametrize("case", MISBEHAVIOUR)
def test_a_gate_that_is_none_is_ended_with_a_growing_pause_and_the_helper_does_not_spin(
    helper: HelperUnderTest, alice: OsUser, case: str
) -> None:
    helper.start()
    pid = helper.client().ensure(alice.name)["pid"]
    helper.replace_gate(HOSTILE + MISBEHAVIOUR[case])
    os.kill(helper.gate_pid(), signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: helper.log.read_text().count("the gate ended") >= 7, 20.0, "seven gates")
    assert time.monotonic() - began > 1.0, "seven pauses, each twice the one before, up to a second"
    ticks = cpu_ticks(helper.pid)
    page = helper.operator("list", after="")
    assert page is not None
    assert [entry["pid"] for entry in page["executors"]] == [pid]
    assert ticks < 200, "it did little but start gates"
    helper.replace_gate((Path(__file__).parents[2] / "root_helper/gate.py").read_text())
    wait_for(lambda: answers(helper, alice), 30.0, "a real gate")


def test_a_gate_that_looks_at_nothing_dies_with_its_supervisor(helper: HelperUnderTest) -> None:
    """A real one ends when its channel does; one that was taken over would not, and hold the listener's socket."""
    helper.replace_gate("import os, time\nos.close(0)\ntime.sleep(100000)\n")
    helper.start()
    gate = helper.gate_pid()
    wait_for(lambda: not os.path.lexists(f"/proc/{gate}/fd/0"), 30.0, "the gate at its work")
    helper.kill()
    wait_for(lambda: is_gone(gate), 30.0, "its end")


def answers(helper: HelperUnderTest, user: OsUser) -> bool:
    with suppress(TimeoutError):
        return bool(helper.client().ensure(user.name, seconds=2.0)["result"] == "running")
    return False


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
