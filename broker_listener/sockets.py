"""The established TCP connections of this network namespace to some ports, and to whom they belong.

Two ways to ask the kernel, both open to every user: sock_diag over netlink (sock_diag(7); linux/inet_diag.h), one dump
for each family and port, and the tables in /proc/self/net (proc(5)). Both block: for a thread, not for a loop.
"""

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class BrokerSocket(NamedTuple):
    """One connection: its owner's uid, its inode, its cgroup's id (None where the kernel does not say), its peer."""

    uid: int
    inode: int
    cgroup: int | None
    address: Address


def established(ports: Iterable[int]) -> tuple[BrokerSocket, ...]:
    """Give the connections to these ports at any address.

    Raises:
        OSError: the kernel answers in neither way.
    """
    ports = frozenset(ports)
    try:
        return tuple(_from_netlink(ports))
    except OSError:
        return tuple(from_tables(ports))


def plain(address: Address) -> Address:
    """Give the IPv4 address that an IPv4-mapped one means, any other as it is: Java connects from tcp6 sockets."""
    return getattr(address, "ipv4_mapped", None) or address


def _from_netlink(ports: frozenset[int]) -> Iterator[BrokerSocket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_TIMEOUT)
        for family in (socket.AF_INET, socket.AF_INET6):
            for port in ports:
                netlink.send(_request(family, port))
                yield from _dump(netlink, port)


def _request(family: int, port: int) -> bytes:
    """Give inet_diag_req_v2 in its nlmsghdr: the established connections of a family to one remote port."""
    sockid = struct.pack(">HH", 0, port) + bytes(16 + 16) + struct.pack("=III", 0, _ANY_COOKIE, _ANY_COOKIE)
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 1 << _ESTABLISHED) + sockid
    return _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + request


def _dump(netlink: socket.socket, port: int) -> Iterator[BrokerSocket]:
    while True:
        data = netlink.recv(_BUFFER)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                raise OSError(-struct.unpack_from("=i", data, at + _HEADER.size)[0], "sock_diag refuses the dump")
            if kind == _SOCK_DIAG_BY_FAMILY:
                yield from _connection(data[at : at + length], port)
            at += max((length + 3) & ~3, _HEADER.size)


def _connection(message: bytes, port: int) -> Iterator[BrokerSocket]:
    """Read inet_diag_msg, whose fields stand after the 16 octets of nlmsghdr."""
    family, state = message[16], message[17]
    if state != _ESTABLISHED or struct.unpack_from(">H", message, 22)[0] != port:
        return
    uid, inode = struct.unpack_from("=II", message, 80)
    octets = message[40:44] if family == socket.AF_INET else message[40:56]
    yield BrokerSocket(uid, inode, _cgroup(message), plain(ipaddress.ip_address(octets)))


def _cgroup(message: bytes) -> int | None:
    at = 88
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _INET_DIAG_CGROUP_ID and length == 12:
            return int(struct.unpack_from("=Q", message, at + 4)[0])
        at += max((length + 3) & ~3, 4)
    return None


def from_tables(ports: frozenset[int]) -> Iterator[BrokerSocket]:
    """Give the connections as /proc has them: without a cgroup, each address as words of the host's byte order."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/self/net", table).read_text("ascii").splitlines()
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for line in lines[1:]:
            _, _, remote, state, *fields = line.split()
            address, _, port = remote.partition(":")
            if int(state, 16) == _ESTABLISHED and int(port, 16) in ports:
                yield BrokerSocket(int(fields[3]), int(fields[5]), None, _address(address))


def _address(words: str) -> Address:
    values = [int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8)]
    return plain(ipaddress.ip_address(b"".join(values)))


_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_ESTABLISHED: Final = 1
_INET_DIAG_CGROUP_ID: Final = 21
_ANY_COOKIE: Final = 0xFFFFFFFF
_BUFFER: Final = 65536
_TIMEOUT: Final = 2.0
