"""Who asks is looked at twice, by the gate and by the supervisor: each is tried alone, with nothing behind it."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import zmq

from tests.lab.accounts import OsUser
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test
from tests.lab.processes import wait_for

CHECKOUT = Path(__file__).parents[2]
HEADER: Final = struct.Struct("=cIIIB")
LIES: Final = """
import socket, struct, sys, time
channel = socket.socket(fileno=int(sys.argv[2]))
header = struct.Struct("=cIIIB")
for uid in (0, 1, int(sys.argv[3]) + 1, 4294967295):
    channel.send(header.pack(b"F", uid, 0, 77, 1) + b"i" + b'{"v":1,"id":"x","op":"ensure","user":"USER"}')
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def laid_out() -> Iterator[tuple[HelperUnderTest, OsUser]]:
    with helper_under_test() as made:
        yield made, made.accounts.user("alice")


def test_the_supervisor_takes_no_frame_that_the_gate_says_is_anothers(
    laid_out: tuple[HelperUnderTest, OsUser],
) -> None:
    """A gate with a fault, or one that was asked by somebody it should have refused."""
    helper, alice = laid_out
    helper.start()
    helper.replace_gate(LIES.replace("USER", alice.name))
    os.kill(helper.gate_pid(), signal.SIGKILL)
    wait_for(lambda: sum(r["event"] == "refused_peer" for r in helper.audit()) == 4, 30.0, "four strangers")
    assert helper.operator("list", after="") is not None
    assert helper.events(alice.name) == []
    helper.reset()


@pytest.mark.parametrize("who", ["the listener", "another"])
def test_the_gate_passes_on_no_frame_of_anybody_but_the_listener(tmp_path: Path, who: str) -> None:
    """The gate alone, between a socket and us: what a stranger says is not passed on, only that there was one."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(tmp_path / "gate.sock"))
    listening.listen(8)
    listener_uid = os.getuid() if who == "the listener" else os.getuid() + 1
    descriptors = (listening.fileno(), far.fileno())
    command = [sys.executable, "-I", str(CHECKOUT / "root_helper/gate.py"), *map(str, descriptors), str(listener_uid)]
    gate = subprocess.Popen(command, pass_fds=descriptors)
    context = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.connect(f"ipc://{tmp_path}/gate.sock")
        said = json.dumps({"v": 1, "id": "x", "op": "list", "after": ""}).encode()
        dealer.send(said)
        near.settimeout(30.0)
        datagram = near.recv(8192)
        kind, uid, _, pid, length = HEADER.unpack_from(datagram)
        assert (uid, pid) == (os.getuid(), os.getpid())
        assert (kind, datagram[HEADER.size + length :]) == ((b"F", said) if who == "the listener" else (b"S", b""))
    finally:
        context.destroy(0)
        gate.kill()
        gate.wait()
        for end in (near, far, listening):
            end.close()
