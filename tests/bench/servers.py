"""The servers that are measured: how each is started, how one talks to it, what it costs."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ASYNCIO = str(HERE / "asyncio_servers.py")
PATIENCE = 10  # seconds in which a server has to accept connections, and to answer


# --- How a room is spoken to ---------------------------------------------------------------------


class Lines:
    """Our protocol, that of ncat --broker and of the asyncio room: what goes in comes out."""

    hello = b""  # what makes a member of a connection
    speaks_elsewhere = False  # whoever hears needs a second connection to speak
    hears_itself = False

    def say(self, text: bytes) -> bytes:
        """Returns the bytes that say a text, which has no newline."""
        return text + b"\n"

    def heard(self, text: bytes) -> bytes:
        """Returns the bytes in which a text arrives."""
        return text + b"\n"


class Nats(Lines):
    hello = b'CONNECT {"verbose":false,"pedantic":false,"echo":false}\r\nSUB room 1\r\n'

    def say(self, text: bytes) -> bytes:
        return b"PUB room %d\r\n%s\r\n" % (len(text), text)

    def heard(self, text: bytes) -> bytes:
        return b"MSG room 1 %d\r\n%s\r\n" % (len(text), text)


class Redis(Lines):
    hello = b"SUBSCRIBE room\r\n"
    speaks_elsewhere = True
    hears_itself = True

    def say(self, text: bytes) -> bytes:
        return b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nroom\r\n$%d\r\n%s\r\n" % (len(text), text)

    def heard(self, text: bytes) -> bytes:
        return b"*3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$%d\r\n%s\r\n" % (len(text), text)


# --- How a server is started ---------------------------------------------------------------------


class Server:
    """A program that can be measured. {port} in its command stands for a free port."""

    def __init__(
        self, name: str, *command: str, dialect: Lines | None = None, forks: bool = False
    ) -> None:
        self.name = name
        self.command = command
        self.dialect = dialect or Lines()
        self.forks = forks  # a process for each connection

    def start(self) -> Running:
        return Running(self)


class Running:
    """The process of a server, until `close`."""

    def __init__(self, server: Server) -> None:
        self.dialect = server.dialect
        self.directory = tempfile.TemporaryDirectory()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.address: tuple[str, int] = sock.getsockname()
        port = str(self.address[1])
        self.process = subprocess.Popen(
            [part.replace("{port}", port) for part in server.command],
            cwd=self.directory.name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.connect().close()
                return
            except ConnectionError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError(f"{server.name} does not start") from None
                time.sleep(0.02)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.directory.cleanup()

    def connect(self) -> socket.socket:
        """Returns a socket that is connected to the server. It blocks, but not for ever: a call
        that takes longer than PATIENCE fails. Raises OSError."""
        sock = socket.create_connection(self.address, timeout=PATIENCE)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # No timeout of Python's: that would turn each call into two.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", PATIENCE, 0))
        return sock

    def processes(self) -> list[int]:
        """Returns its process and that one's children. Linux only, as all that follows."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return [pid, *map(int, children.read_text().split())] if children.exists() else [pid]

    def cpu(self) -> float:
        """Returns how many seconds of CPU time it has used so far."""
        nanoseconds = 0
        for pid in self.processes():
            with suppress(OSError):  # it may have ended meanwhile
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    nanoseconds += int((thread / "schedstat").read_text().split()[0])
        return nanoseconds / 1e9

    def memory(self) -> int:
        """Returns how many bytes of memory it takes."""
        return self.status("VmRSS")

    def peak_memory(self) -> int:
        """Returns how many bytes of memory it took at most."""
        return self.status("VmHWM")

    def status(self, field: str) -> int:
        total = 0
        for pid in self.processes():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith(field):
                        total += int(line.split()[1]) * 1024
        return total


# --- Which there are -----------------------------------------------------------------------------


def find_uvloop() -> str | None:
    """Returns the first Python that has uvloop: this one, or one on PATH."""
    candidates = [shutil.which("python3", path=directory) for directory in os.get_exec_path()]
    for python in (sys.executable, *candidates):
        if python:
            attempt = [python, "-c", "import uvloop"]
            if not subprocess.call(attempt, stderr=subprocess.DEVNULL):
                return python
    return None


def find_servers() -> tuple[list[Server], list[Server], list[str]]:
    """Returns the rooms, the echo servers, ours first of each, and what was not found."""
    missing = []

    def find(program: str, path: str | None = None) -> str:
        path = path or shutil.which(program)
        if not path:
            missing.append(program)
        return path or ""

    python, port = sys.executable, "{port}"
    ours = ["--port", port, "--host", "127.0.0.1"]
    rooms = [Server("chat_server.py", python, str(ROOT / "chat_server.py"), *ours)]
    echoes = [Server("echo_server.py", python, str(ROOT / "echo_server.py"), *ours)]
    ncat = find("ncat")
    if ncat:
        many = ["-m", "10000"]  # otherwise 100 connections
        rooms.append(Server("ncat --broker", ncat, "-l", "--broker", *many, "127.0.0.1", port))
    nats = find("nats-server")
    if nats:
        rooms.append(Server("nats-server", nats, "-a", "127.0.0.1", "-p", port, dialect=Nats()))
    redis = find("redis-server")
    if redis:
        options = ["--bind", "127.0.0.1", "--save", "", "--maxclients", "12000", "--port"]
        rooms.append(Server("redis-server", redis, *options, port, dialect=Redis()))
    socat = find("socat")
    if socat:
        listen = f"TCP-LISTEN:{port},bind=127.0.0.1,backlog=1024,fork"
        echoes.append(Server("socat", socat, listen, "PIPE", forks=True))
    rooms.append(Server("asyncio room", python, ASYNCIO, "room", port))
    echoes.append(Server("asyncio", python, ASYNCIO, "echo", port))
    uvloop = find("python with uvloop", find_uvloop())
    if uvloop:
        rooms.append(Server("uvloop room", uvloop, ASYNCIO, "room", port, "uvloop"))
        echoes.append(Server("uvloop", uvloop, ASYNCIO, "echo", port, "uvloop"))
    return rooms, echoes, missing
