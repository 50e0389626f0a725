"""TLS before a port of this host that speaks none: what comes over it goes to that port.

A broker that has TLS itself would need a node of its own for each certificate.
"""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tls_before(
    port: int, directory: Path, *, names: str = "IP:127.0.0.1,DNS:localhost", days: int = 1
) -> Iterator[tuple[int, Path]]:
    """Put TLS before a port of this host; give the port that speaks it, and the authority's certificate.

    ``names`` are the certificate's, as openssl writes them; it is good for ``days``.
    """
    key, cert = _self_signed(directory, names, days)
    with tls_with(port, key, cert) as front:
        yield front, cert


def _self_signed(directory: Path, names: str, days: int) -> tuple[Path, Path]:
    key, cert = directory / "broker.key", directory / "broker.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(days), "-subj", "/CN=broker"]
    command += ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    cert.chmod(0o644)
    return key, cert


@contextmanager
def tls_with(port: int, key: Path, cert: Path) -> Iterator[int]:
    """Put TLS with this certificate before a port of this host; give the port that speaks it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    front = asyncio.run_coroutine_threadsafe(put_before(port, context), loop).result(10)
    try:
        yield front.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_end(front), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def put_before(port: int, context: ssl.SSLContext) -> asyncio.Server:
    """Put TLS before a plain port: what comes over it goes there."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    return await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)


async def _end(front: asyncio.Server) -> None:
    front.close()
    served = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in served:
        task.cancel()
    await asyncio.gather(*served, return_exceptions=True)
