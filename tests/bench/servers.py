"""The servers that are measured: how each is started, how one talks to it, what it costs."""

from __future__ import annotations

import copy
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import websocket

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ASYNCIO = str(HERE / "asyncio_servers.py")
CHAT = str(ROOT / "chat_server.py")
ECHO = str(ROOT / "echo_server.py")
CERT, KEY = (str(ROOT / "tests" / "certs" / name) for name in ("room.pem", "room.key"))
LOCAL = ("--host", "127.0.0.1")
MAX_CLIENTS = 19_500  # as the system allows 20,000 open files, or more
PATIENCE = 10  # seconds in which a server has to accept connections, and to answer


# --- How a room is spoken to ---------------------------------------------------------------------


class Lines:
    """Our protocol, that of ncat --broker and of the asyncio room: what goes in comes out."""

    hello = b""  # what makes a member of a connection
    in_frames = False  # what arrives comes in a WebSocket's frames
    raw_elsewhere = False  # {other} is a port of the same room, for lines without frames
    speaks_elsewhere = False  # whoever hears needs a second connection to speak
    hears_itself = False

    def __init__(self, welcome: bytes = b"") -> None:
        self.welcome = welcome  # what tells a member that it is one, if anything does

    def greet(self, sock: socket.socket) -> None:
        """Makes a member of a blocking connection. Waits for a welcome, where there is one: so
        thousands don't come faster than they are let in. Raises OSError."""
        sock.sendall(self.hello)
        if self.welcome:
            # It counts as heard, but through TLS one can't look at it without that.
            sock.recv(1, 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_PEEK)

    def say(self, text: bytes) -> bytes:
        """Returns the bytes that say a text, which has no newline."""
        return text + b"\n"

    def say_often(self, text: bytes, times: int) -> bytes:
        """Returns the bytes that say a text many times at once."""
        return self.say(text) * times

    def heard(self, text: bytes) -> bytes:
        """Returns the bytes in which a text arrives, without the heads of frames."""
        return text + b"\n"


class WebSocket(Lines):
    """Our protocol as browsers speak it: the same lines, in frames."""

    in_frames = True

    def greet(self, sock: socket.socket) -> None:
        websocket.shake_hands(sock)

    def say(self, text: bytes) -> bytes:
        return websocket.frame(text + b"\n")

    def say_often(self, text: bytes, times: int) -> bytes:
        return websocket.frame((text + b"\n") * times)


class OurWebSocket(WebSocket):
    """The same for our own room, where the end of a message ends a line."""

    raw_elsewhere = True

    def say(self, text: bytes) -> bytes:
        return websocket.frame(text)

    def say_often(self, text: bytes, times: int) -> bytes:
        return websocket.frame(b"\n".join([text] * times))


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
    """A program that can be measured.

    {port} in its command stands for the port that the load connects to, {other} for a second one.
    """

    def __init__(
        self,
        name: str,
        *command: str,
        dialect: Lines | None = None,
        forks: bool = False,
        queues_few: bool = False,
        tls: bool = False,
        absent: str = "",
    ) -> None:
        self.name = name
        self.command = command
        self.dialect = dialect or Lines()
        self.forks = forks  # a process for each connection
        self.queues_few = queues_few  # connections, ahead of accept()
        self.tls = tls  # speaks nothing else
        self.absent = absent  # why it can't be measured here, if so
        self.ours = CHAT in command or ECHO in command

    def start(self) -> Running:
        return Running(self)


class Running:
    """The process of a server, until `close`."""

    def __init__(self, server: Server) -> None:
        self.dialect = server.dialect
        self.tls = server.tls
        self.pause = 0.001 if server.queues_few else 0.0  # seconds before each connection
        self.directory = tempfile.TemporaryDirectory()
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            self.address: tuple[str, int] = first.getsockname()
            self.other_address: tuple[str, int] = second.getsockname()
        ports = {"port": self.address[1], "other": self.other_address[1]}
        self.process = subprocess.Popen(
            [part.format(**ports) for part in server.command],
            cwd=self.directory.name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(self.address).close()
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

    def raw(self) -> Running:
        """Returns the same process, seen from the port where our room takes lines without frames;
        of any other server, itself."""
        if not self.dialect.raw_elsewhere:
            return self
        other = copy.copy(self)
        other.dialect, other.address = Lines(self.dialect.welcome), self.other_address
        return other

    def connect(self) -> socket.socket:
        """Returns a socket that is connected to the server. It blocks, but not for ever: a call
        that takes longer than PATIENCE fails. Raises OSError."""
        time.sleep(self.pause)
        sock = socket.create_connection(self.address, timeout=PATIENCE)
        sock.settimeout(None)
        set_options(sock)
        # No timeout of Python's: that would turn each call into two.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", PATIENCE, 0))
        return unverified().wrap_socket(sock) if self.tls else sock

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


def unverified() -> ssl.SSLContext:
    """Returns what speaks TLS with anybody: the load has better things to do than to verify."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def set_options(sock: socket.socket) -> None:
    """Makes a connection send at once, and reset when it is closed: 20,000 that waited for a minute
    (TIME_WAIT) would leave no port for the next server."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# --- Which there are -----------------------------------------------------------------------------


class Servers(NamedTuple):
    """Those that are measured together, ours first of each. Some of them may be absent."""

    rooms: list[Server]
    crowded: list[Server]  # rooms that hold as many as the system allows
    echoes: list[Server]
    browsers: list[Server]  # rooms over WebSocket, beside ours without
    doors: dict[str, list[Server]]  # by how newcomers join
    tls: list[Server]  # rooms that speak it
    attacked: list[Server]  # our room with a port for browsers, and the same with TLS


class Finder:
    """Looks for programs; those it builds itself are in `directory`, which has to outlast them."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.uvloop = find_python("uvloop")
        self.websockets = find_python("websockets")
        options = subprocess.check_output([sys.executable, CHAT, "--help"], text=True)
        self.has_web = "--web " in options

    def servers(self) -> Servers:
        chat, relay, uvloop = self.chat(), self.built("relay.c", "C relay"), self.uvloop
        nats = self.program("nats-server", "-a", "127.0.0.1", "-p", "{port}", dialect=Nats())
        options = ["--bind", "127.0.0.1", "--save", "", "--maxclients", "12000", "--port", "{port}"]
        redis = self.program("redis-server", *options, dialect=Redis())
        listen = "TCP-LISTEN:{port},bind=127.0.0.1,backlog=1024,fork"
        web, websockets = self.chat(web=True), self.asyncio("websockets", self.websockets)
        return Servers(
            rooms=[chat, relay, self.ncat(), nats, redis]
            + [self.asyncio("asyncio room"), self.asyncio("uvloop room", uvloop)],
            crowded=[chat, relay],
            echoes=[
                Server("echo_server.py", sys.executable, ECHO, "--port", "{port}", *LOCAL),
                self.built("echo.c", "C echo"),
                self.program("socat", listen, "PIPE", forks=True),
                self.asyncio("asyncio"),
                self.asyncio("uvloop", uvloop),
            ],
            browsers=[web, chat, websockets],
            doors={
                "raw": [chat, relay, self.ncat()],
                "raw, TLS": [self.chat(tls=True), self.ncat(tls=True)],
                "WebSocket": [web, websockets],
                "WebSocket, TLS": [
                    self.chat(web=True, tls=True),
                    self.asyncio("websockets", self.websockets, tls=True),
                ],
            },
            tls=[self.chat(tls=True), self.ncat(tls=True)],
            attacked=[web, self.chat(web=True, tls=True)],
        )

    def chat(self, web: bool = False, tls: bool = False) -> Server:
        ports = ["--port", "{other}", "--web", "{port}"] if web else ["--port", "{port}"]
        options = [*ports, *LOCAL, "--max-clients", str(MAX_CLIENTS)]
        if tls:
            options += ["--tls-cert", CERT, "--tls-key", KEY]
        kind, name = (OurWebSocket, "chat over WS") if web else (Lines, "chat_server.py")
        dialect = kind(welcome=b"Welcome to the chatroom!\n")
        absent = "this chat_server.py has no --web" if web and not self.has_web else ""
        command = [sys.executable, CHAT, *options]
        return Server(name, *command, dialect=dialect, tls=tls, absent=absent)

    def ncat(self, tls: bool = False) -> Server:
        options = ["-l", "--broker", "-m", "10000"]  # otherwise 100 connections
        if tls:
            options += ["--ssl-cert", CERT, "--ssl-key", KEY]
        return self.program("ncat", *options, "127.0.0.1", "{port}", queues_few=True, tls=tls)

    def asyncio(self, name: str, python: str | None = sys.executable, tls: bool = False) -> Server:
        """Returns one of asyncio_servers.py."""
        absent = "" if python else f"no python3 on PATH can import {name.partition(' ')[0]}"
        command = [python or "", ASYNCIO, name, "{port}", *((CERT, KEY) if tls else ())]
        dialect = WebSocket(welcome=websocket.ENDS_HEAD) if name == "websockets" else Lines()
        return Server(name, *command, dialect=dialect, tls=tls, absent=absent)

    def program(self, name: str, *options: str, **traits: Any) -> Server:
        """Returns one that has to be on PATH."""
        path = shutil.which(name)
        absent = "" if path else "it is not on PATH"
        return Server(name, path or "", *options, absent=absent, **traits)

    def built(self, source: str, name: str) -> Server:
        """Returns one that is compiled here, if there is a compiler."""
        path = str(Path(self.directory) / Path(source).stem)
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "")
        absent = "" if compiler else "there is no C compiler"
        if compiler and subprocess.call([compiler, "-O2", "-o", path, str(HERE / source)]):
            absent = f"{compiler} does not compile {source}"
        return Server(name, path, "{port}", absent=absent)


def find_python(module: str) -> str | None:
    """Returns the first Python that has a module: this one, or one on PATH."""
    candidates = [shutil.which("python3", path=directory) for directory in os.get_exec_path()]
    for python in (sys.executable, *candidates):
        if python:
            attempt = [python, "-c", f"import {module}"]
            if not subprocess.call(attempt, stderr=subprocess.DEVNULL):
                return python
    return None
