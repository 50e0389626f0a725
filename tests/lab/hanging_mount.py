"""A file server that never answers: a FUSE mount whose requests nobody reads. Whoever looks there waits.

As with a dead NFS server a look-up waits in the kernel; unlike there a waiting process still takes SIGKILL.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOUNT = """
import ctypes, os, sys
options = f"fd={sys.argv[1]},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if ctypes.CDLL(None, use_errno=True).mount(b"hangs", os.fsencode(sys.argv[2]), b"fuse", 6, options):
    sys.exit(os.strerror(ctypes.get_errno()))
"""


@contextmanager
def hanging_mount(directory: Path) -> Iterator[None]:
    """Mount it there while the block runs; whoever still waits is told then that the connection is broken."""
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        # In a process of its own: mount(2) by path, and nobody here must ever look into it.
        command = ["/usr/bin/python3", "-ISc", _MOUNT, str(server), str(directory)]
        subprocess.run(command, pass_fds=[server], check=True)
        yield
    finally:
        os.close(server)
        subprocess.run(["/usr/bin/umount", "--lazy", str(directory)], check=True)
