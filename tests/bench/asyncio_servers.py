"""A room and an echo server as one writes them in asyncio, to measure ours against.

    python asyncio_servers.py room|echo PORT [uvloop]

They listen on 127.0.0.1 until they are killed.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

members: set[asyncio.StreamWriter] = set()


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


async def serve(kind: str, port: int) -> None:
    if kind == "room":
        server = await asyncio.start_server(serve_member, "127.0.0.1", port, backlog=1024)
    else:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[3:] == ["uvloop"]:
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
