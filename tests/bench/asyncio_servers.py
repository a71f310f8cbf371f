"""Rooms and an echo server as one writes them in asyncio, to measure ours against.

    python asyncio_servers.py NAME PORT [CERT KEY]

NAME is one of: asyncio room, uvloop room, asyncio, uvloop (the echo servers), websockets (a room).

They listen on 127.0.0.1 until they are killed.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Sequence
from typing import cast

try:
    import websockets.asyncio.server as websockets
    from websockets.exceptions import ConnectionClosed
except ImportError:  # nobody who lacks it is asked to serve browsers
    pass

members: set[asyncio.StreamWriter] = set()
browsers: set[websockets.ServerConnection] = set()


async def serve_member(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The room as the tutorials have it: a loop for each member that writes to all others."""
    members.add(writer)
    try:
        while True:
            line = await reader.readline()
            if not line:
                break
            for other in list(members):
                if other is not writer:
                    other.write(line)
                    await other.drain()
    except ConnectionError:
        pass
    finally:
        members.discard(writer)
        writer.close()


async def serve_browser(browser: websockets.ServerConnection) -> None:
    """The same for browsers, with the websockets package. CERT and KEY are for this one."""
    browsers.add(browser)
    try:
        async for message in browser:
            for other in list(browsers):
                if other is not browser:
                    await other.send(message)
    except ConnectionClosed:
        pass
    finally:
        browsers.discard(browser)


class Echo(asyncio.Protocol):
    """The faster of asyncio's two interfaces, so that the comparison is a fair one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def serve(name: str, port: int, cert: Sequence[str]) -> None:
    if name == "websockets":
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if cert else None
        if tls:
            tls.load_cert_chain(*cert)
        plain = {"compression": None, "ping_interval": None, "backlog": 1024}
        server = await websockets.serve(serve_browser, "127.0.0.1", port, ssl=tls, **plain)
    elif name.endswith("room"):
        server = await asyncio.start_server(serve_member, "127.0.0.1", port, backlog=1024)
    else:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1].startswith("uvloop"):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
