"""What the tests share.

Server, patched                   one of the servers as a process, which others dial and join
checked_server, Inside, tls_room  a room that doesn't run, whose invariants are checked
StoppedClock, Kernel, reach       its time, what takes what it sends, what it can read
client, finish, patched_client    a command in pipes, until it ends
FakeConsole                       the client without a terminal
Peer, Listener, welcome           the other end of a connection; a server that a test plays
Terminal, Screen                  a command in a pseudo-terminal, and what a window makes of it
Window                            a shell in tmux, whose screen can be read
typed                             the line editor after some keys

Nothing here sleeps for a fixed time: everything waits for an event, and fails after DEADLINE.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import select
import shlex
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, cast
from unittest import mock

import pytest
from browser import WebSocketPeer
from starter import COMPILED, ROOT, can_fork, launch, take_terminal

import chat_client
import chat_server
from chat_server import Certificate, ChatServer, Clock, Connection, Room, State, TLSConnection

CERTS = ROOT / "tests" / "certs"
TLS_OPTIONS = ["--tls-cert", str(CERTS / "room.pem"), "--tls-key", str(CERTS / "room.key")]
TRUSTED = ["--tls-ca", str(CERTS / "room.pem")]
DEADLINE = 60.0  # seconds; generous, because a loaded machine is no failure
WELCOME = b"Welcome to the chatroom!\n"
PASSWORD = "correct horse"  # of the fixture `password`
MODULES = COMPILED / "modules"
CLIENT = [sys.executable, str(COMPILED / "chat_client.py")]
PLAIN = [*CLIENT, "--plain"]
SCRIPTS = ["echo_server.py", "chat_server.py", "chat_client.py"]
SERVERS = SCRIPTS[:2]
PORTS: dict[int, socket.socket] = {}  # that free_port() has given out, and what marks them as ours

NOT_IN_MINIMAL = ["bz2", "fcntl", "getpass", "hmac", "readline", "resource", "termios", "zlib"]
NO_MORE = dict.fromkeys(("NO_COLOR", "TMUX", "VTE_VERSION", "XTERM_VERSION", "TERM_PROGRAM"), "")
XTERM = {**os.environ, "TERM": "xterm-256color", **NO_MORE}


def path_of(script: str, python: str = sys.executable) -> str:
    """Returns the path of a script for a Python: compiled, if we run on the same."""
    ours = os.path.realpath(python) == os.path.realpath(sys.executable)
    return str((COMPILED if ours else ROOT) / script)


def needs(command: str) -> str:
    """Returns the path of a command, or skips the test where it isn't installed."""
    path = shutil.which(command)
    if not path:
        pytest.skip(f"{command} is not installed")
    return path


def needs_ipv6() -> None:
    """Skips the test where IPv6 is switched off."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))
        return
    pytest.skip("this machine has no IPv6")


def allow_many_descriptors() -> None:
    """A thousand clients are a thousand sockets in the tests' process."""
    with contextlib.suppress(ImportError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 16_384 if hard == resource.RLIM_INFINITY else min(hard, 16_384)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Waits until the condition is true, and returns its value."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not happen: {what or condition}"
        time.sleep(0.005)
    return value


class Server:
    """One of the servers as a process, on a free port unless it is given one. Its log goes to a
    file, or to `stderr`."""

    def __init__(
        self,
        script: str,
        *options: str,
        log: Path,
        python: str = sys.executable,
        tls: bool = False,
        web: bool = False,
        port: int | None = None,
        within: Sequence[str] = (),
        **popen: Any,
    ) -> None:
        self.tls = tls
        self.web = web  # whoever joins has a browser
        self.context = trusting(CERTS / "room.pem")  # of those who speak TLS with it
        self.log_file = log
        self.port = free_port() if port is None else port
        path = str(popen["cwd"] / script) if "cwd" in popen else path_of(script, python)
        web_options = ["--web", str(free_port())] if web else []
        command = [path, "--port", str(self.port), *(TLS_OPTIONS if tls else ()), *web_options]
        command = [*within, python, *command, *options]
        with open(log, "wb") as file:
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": file}
            self.process = launch(command, **{"cwd": ROOT, **streams, **popen})
        try:
            if "stderr" in popen:
                eventually(self.listens)
            else:
                self.port = int(self.wait_for_log(r"listening on .*?:(\d+)[ ;]")[1])
            if web:
                self.web_port = int(self.wait_for_log(r"in a browser: https?://.*:(\d+)/")[1])
        except AssertionError:
            self.kill()
            raise

    def listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def log(self) -> str:
        return self.log_file.read_text()

    def count(self) -> int:
        """Returns how many members, or clients, there were when the log last said so."""
        return int(re.findall(r"(?:members|clients): (\d+)\n", self.log())[-1])

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            has_ended = self.process.poll() is not None  # before we look for its last words
            found = re.search(pattern, self.log())
            assert found or not has_ended, f"the server has ended: {self.log()}"
            return found

        return cast("re.Match[str]", eventually(look, f"{pattern} in the log"))

    def dial(
        self, host: str = "127.0.0.1", receive_buffer: int = 0, source: str = "", web: Any = None
    ) -> Any:
        """Returns a socket that is connected, from a source address if one is given, through TLS if
        the server speaks it, and as a browser's WebSocket if the members, or this one, are to have
        browsers."""
        web = self.web if web is None else web
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(DEADLINE)
        if source:
            try:
                sock.bind((source, 0))
            except OSError:
                pytest.skip(f"this machine doesn't have {source}")
        port = self.web_port if web else self.port
        sock.connect((host, port))
        if self.tls:
            sock = self.context.wrap_socket(sock, server_hostname=host)
        return WebSocketPeer(sock, f"{host}:{port}") if web else sock

    def connect(self, host: str = "127.0.0.1", **more: Any) -> Peer:
        """Returns a peer that is connected, in the ways of `dial`."""
        return Peer(self.dial(host, **more))

    def join(self, name: str = "", **more: Any) -> Peer:
        """Connects to a room in the ways of `dial`, and takes a name there. What others do before
        the answer to that is still to be heard."""
        peer = self.connect(**more)
        peer.expect(WELCOME)
        if name:
            peer.send(f"/name {name}\n")
            peer.buffer = peer.read_until(f"* you are {name}\n") + peer.buffer
        return peer

    def proc(self, file: str) -> str:
        """Returns what Linux tells of the process."""
        path = Path(f"/proc/{self.process.pid}/{file}")
        if not path.exists():
            pytest.skip("needs /proc")
        return path.read_text()

    def memory(self) -> int:
        return int(self.proc("status").split("VmRSS:")[1].split()[0]) * 1024

    def cpu_seconds(self) -> float:
        fields = self.proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM, peers: Sequence[Peer] = ()) -> int:
        """Sends the signal and returns the exit status. A room waits for its members to close; the
        peers that are given do, as soon as they have heard everything."""
        self.process.send_signal(number)
        for peer in peers:
            peer.rest()
            peer.close()
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


Start = Callable[..., Server]  # what the fixture `start` is


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


# For `patched`: a room that waits half a second for a stuck member, not five. What a member has
# read earns it time, and here less of it.
IMPATIENT = "chat_server.PATIENCE, chat_server.STEP, chat_server.TICK = 0.5, 0, 0.25\n"
IMPATIENT += "chat_server.PACE = 65536"


def patched(start: Start, tmp_path: Path, patch: str, *options: str, **more: Any) -> Server:
    """Starts a room of which something was changed."""
    (tmp_path / "patched.py").write_text(
        f"import sys\nsys.path[:0] = [{str(MODULES)!r}, {str(ROOT / 'tests')!r}]\n"
        f"import chat_server\n{patch}\nsys.exit(chat_server.main())\n"
    )
    return start("patched.py", *options, cwd=tmp_path, **more)


def check_invariants(server: ChatServer) -> None:
    """What holds of a room between two turns, whatever has happened."""
    room, throttle = server.room, server.throttle
    door, members = set(server.membership.newcomers), set(server.room.members)
    leaving = server.membership.leaving
    everyone = door | members | leaving
    for state, those in ((State.DOOR, door), (State.MEMBER, members), (State.LEAVING, leaving)):
        assert all(conn.state is state for conn in those)
    assert all(conn.until == math.inf for conn in members - throttle.behind.keys())
    waits = door | leaving | throttle.behind.keys()
    assert all(server.clock.next <= conn.until <= conn.deadline for conn in waits)
    registered = {key.data: key for key in server.selector.get_map().values()}
    assert {one for one in registered if isinstance(one, Connection)} <= everyone
    for conn in everyone:
        check_connection(conn)
        batches = [*(conn.queue or ()), room.batch]
        assert conn.unread_answers == sum(batch.told.get(conn, 0) for batch in batches)
        assert conn.unread_whispers == sum(batch.whispered.get(conn, 0) for batch in batches)
        assert conn.events == (registered[conn].events if conn in registered else 0)
        has_more = conn.unheard or conn.pending or conn.ended
        assert conn in server.membership.has_more | leaving or not has_more
    assert server.membership.has_more <= everyone
    for key, owner in room.names.items():
        assert owner in room.members and key == chat_server.identity(owner.name)
    assert len(room.names) == sum(1 for conn in members if conn.name)
    assert sum(room.looks.values()) == len(room.names)
    assert set(throttle.waiting) == {conn for conn in members if not conn.reading}
    over = {one for one in members if one.size > chat_server.HIGH_WATER}
    assert throttle.slow in over if over else throttle.slow is None
    unread = {one for one in throttle.waiting if one.unread_answers > chat_server.MAX_UNREAD}
    assert over | unread <= set(throttle.behind) <= {one for one in members if one.queue}
    assert throttle.slow or not set(throttle.waiting) - unread
    for conn in leaving - set(room.batch.leavers):  # those will be seen off with that batch
        assert not conn.unheard
        is_due = not conn.wants_write() and (conn.reachable or not conn.reading)
        assert not is_due, "should be closed by now"


def check_connection(conn: Connection) -> None:
    """What holds of one that is open."""
    assert conn.sock.fileno() != -1
    owed = conn.wants_write()
    assert conn.events == (1 if conn.reading else 0) | (2 if owed else 0)  # EVENT_READ, EVENT_WRITE
    queue = conn.queue or ()
    assert conn.queue is None or queue, "an empty queue is none"
    assert not owed or conn.reachable
    assert not queue or conn.ready
    if isinstance(conn, TLSConnection):
        assert not conn.incoming.pending and not conn.outgoing.pending
        assert len(conn.unsent) <= chat_server.MAX_UNSENT
        assert owed == bool(conn.unsent or queue)
        assert not conn.tls or conn.unsent or not queue
        assert conn.tls or not conn.unsent
        assert not conn.pending or conn.ready
    assert conn.encode == conn.input.encode
    gets = [len(batch.part_for(conn, conn.encode)) for batch in queue]
    assert 0 <= conn.offset < (gets[0] if gets else 1)
    assert conn.size == sum(gets) + chat_server.BATCH_COST * len(gets) - conn.offset


class CheckedServer(ChatServer):
    """A room whose invariants are checked after each step that is taken from outside."""

    depth = 0

    def admit(self, sock: socket.socket, peer: str) -> None:
        self.door.admit(sock, peer)

    def meet(self, address: str = "peer") -> Peer:
        """Admits somebody who comes from there, and returns their end of the connection."""
        sock, peer = pair()
        self.admit(sock, address)
        return peer


def checked(step: Callable[..., Any]) -> Callable[..., Any]:
    def take_step(server: CheckedServer, *given: Any, **more: Any) -> Any:
        server.depth += 1
        try:
            return step(server, *given, **more)
        finally:
            server.depth -= 1
            if not server.depth:
                check_invariants(server)

    return take_step


for _name in ("turn", "read_all", "deliver", "admit", "close_room"):
    setattr(CheckedServer, _name, checked(getattr(CheckedServer, _name)))


def checked_server(
    listeners: Sequence[socket.socket] = (), room: Room | None = None, **options: Any
) -> CheckedServer:
    """Returns a server that doesn't run, with the options of make_server()."""
    with mock.patch("chat_server.ChatServer", CheckedServer):
        return cast(CheckedServer, chat_server.make_server(listeners, room or Room(), **options))


class StoppedClock:
    """The time of a room, which passes only by what is added to it."""

    def __init__(self, clock: Clock) -> None:
        self.now = clock.now()
        clock.now = lambda slept=0.0: self.now  # type: ignore[method-assign]


class Kernel:
    """What takes the bytes that are sent to peers: as many as there is room for, and then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = math.inf
        send = Connection.send

        def send_some(conn: Connection, data: bytes) -> int:
            taken = send(conn, data[: int(min(self.room, len(data)))]) if self.room else 0
            self.room -= taken
            return taken

        monkeypatch.setattr(Connection, "send", send_some)


def pair() -> tuple[socket.socket, Peer]:
    """Returns the two ends of a connection: the server's, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), DEADLINE)
        ours, _ = listener.accept()
    ours.setblocking(False)
    return ours, Peer(theirs)


def reach(conn: Connection, peer: Peer, said: bytes | str = b"") -> None:
    """What a peer says, or else the end of its stream, reaches its connection, but isn't read."""
    peer.send(said) if said else peer.half_close()
    select.select([conn.sock], [], [], DEADLINE)


class Inside:
    """A room that doesn't run, and its members: each one's connection, and its peer."""

    def __init__(self, **options: Any) -> None:
        self.server = checked_server(**options)

    def join(self) -> tuple[Connection, Peer]:
        before = set(self.server.room.members)
        peer = self.server.meet()
        self.server.deliver(self.server.room.take_batch())
        peer.expect(WELCOME)
        (conn,) = set(self.server.room.members) - before
        return conn, peer

    def say(self, text: bytes) -> None:
        """The room itself says whole lines to everyone."""
        self.server.room.batch.say(text, None)
        self.server.deliver(self.server.room.take_batch())


def tls_room(**options: Any) -> CheckedServer:
    """Returns a room that speaks TLS and doesn't run."""
    files = str(CERTS / "room.pem"), str(CERTS / "room.key")
    return checked_server(certificate=Certificate(*files), **options)


def tls_member() -> tuple[CheckedServer, TLSConnection, Peer]:
    """Returns such a room, its one member, and that one's peer."""
    server = tls_room()
    peer = server.meet()
    context = trusting(CERTS / "room.pem")
    with ThreadPoolExecutor() as pool:
        shaken = pool.submit(context.wrap_socket, peer.sock, server_hostname="localhost")
        while not server.room.members:
            server.turn()
        peer.sock = shaken.result(DEADLINE)
    peer.expect(WELCOME)
    (conn,) = server.room.members
    assert isinstance(conn, TLSConnection)
    return server, conn, peer


def client(*options: Any, typed: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs the client with what is typed in a pipe, until it ends."""
    command = [*CLIENT, *(one if isinstance(one, bytes) else str(one) for one in options)]
    return finish(command, typed, **more)


def finish(
    command: Sequence[str | bytes], typed: str = "", **more: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command with what is typed in a pipe, until it ends."""
    more.setdefault("stdin", subprocess.PIPE)
    if not {"stdout", "stderr"} & set(more):
        more.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with launch(command, text=True, **more) as process:
        try:
            shown, errors = process.communicate(typed or None, timeout=DEADLINE)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, shown, errors)


def run(script: str, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs a script without input, until it ends."""
    return finish([sys.executable, path_of(script), *options], stdin=subprocess.DEVNULL, **more)


def patched_client(patch: str, python: str = sys.executable) -> list[str]:
    """Returns the command of a client, before whose import something was changed."""
    folder = MODULES if python == sys.executable else ROOT
    code = (
        f"import sys\nsys.path.insert(0, {str(folder)!r})\nsys.argv[0] = 'chat_client.py'\n"
        f"{patch}\nimport chat_client\nchat_client.open_outputs()\nsys.exit(chat_client.main())"
    )
    return [python, "-c", code]


class FakeConsole(chat_client.Console):
    """A console without files: what is typed is given, and what is shown can be read."""

    def __init__(self, *typed: str, attended: bool = True, ended: bool = False) -> None:
        super().__init__(chat_client.Painter(False, False))
        os.close(signal.set_wakeup_fd(-1))
        self.signals.close()
        self.attended = self.interactive = attended
        self.ended = ended
        self.typed.extend(map(chat_client.Line, typed))
        self.shown: list[str] = []
        self.prompts: list[str] = []  # that the user was asked with
        self.secrets: list[bytes] = []  # what the user answers, in turns of the loop

    def files(self) -> list[Any]:
        return []

    def ask_secret(self, prompt: str) -> bytes | None:
        self.prompts.append(prompt)
        return self.secrets.pop(0) if self.secrets else None

    def wants_to_leave(self) -> bool:
        return self.ended or any(line.leaves for line in self.typed)

    def invite(self, prompt: str, ask: bool = False) -> None:
        if ask:
            self.prompts.append(prompt)

    def show(self, line: str) -> None:
        self.shown.append(line)

    def ring(self) -> None:
        self.shown.append("\a")


def as_bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


class Peer:
    """The other end of a connection, which reads with a deadline."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.buffer = b""

    def send(self, data: bytes | str) -> None:
        self.sock.sendall(as_bytes(data))

    def read(self, size: int) -> bytes:
        """Returns exactly so many bytes, fewer at the end of the stream."""
        parts, missing = [self.buffer], size - len(self.buffer)
        while missing > 0 and (data := self.sock.recv(min(missing, 1 << 20))):
            parts.append(data)
            missing -= len(data)
        data = b"".join(parts)
        self.buffer = data[size:]
        return data[:size]

    def line(self) -> bytes:
        """Returns the next line with its newline; at the end of the stream, what is left."""
        while b"\n" not in self.buffer and (data := self.sock.recv(65536)):
            self.buffer += data
        end = self.buffer.find(b"\n") + 1 or len(self.buffer)
        line, self.buffer = self.buffer[:end], self.buffer[end:]
        return line

    def expect(self, *lines: bytes | str) -> None:
        """The next lines are these."""
        for line in lines:
            assert self.line() == as_bytes(line)

    def read_until(self, line: bytes | str) -> bytes:
        """Reads lines until this one has come; returns those before it."""
        before: list[bytes] = []
        while (got := self.line()) != as_bytes(line):
            assert got, f"the stream has ended before {line!r}: {before}"
            before.append(got)
        return b"".join(before)

    def rest(self) -> bytes:
        """Returns everything up to the end of the stream."""
        parts, self.buffer = [self.buffer], b""
        while data := self.sock.recv(1 << 20):
            parts.append(data)
        return b"".join(parts)

    def available(self) -> bytes:
        """Returns what has come by now, without waiting."""
        parts, self.buffer = [self.buffer], b""
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            while data := self.sock.recv(1 << 20):
                parts.append(data)
        self.sock.settimeout(DEADLINE)
        return b"".join(parts)

    def expect_nothing(self) -> None:
        """Nothing has come. Only meaningful after something that is sent later was seen."""
        assert self.available() == b""

    def half_close(self) -> None:
        end_stream(self.sock)

    def reset(self) -> None:
        """Closes so that the other side gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class ClientPeer(Peer):
    """Our client as a server has it, but for what it asks of a room by itself."""

    def line(self) -> bytes:
        line = super().line()
        while line in (b"/who\n", b"/ping\n"):
            line = super().line()
        return line

    def rest(self) -> bytes:
        lines = super().rest().splitlines(keepends=True)
        return b"".join(line for line in lines if line not in (b"/who\n", b"/ping\n"))


def welcome(server: Peer, name: str = "John") -> None:
    """Lets our client into a room that is played here."""
    server.send(WELCOME)
    server.expect(f"/name {name}\n")
    server.send(f"* you are {name}\n")


class Listener:
    """A server that does what a test wants: accepts one client, and is its peer."""

    def __init__(self) -> None:
        self.port = free_port()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.listener.settimeout(DEADLINE)

    def serve(self, conversation: Callable[[Peer], None]) -> None:
        """Has the conversation with the first client, in a thread."""
        threading.Thread(target=lambda: conversation(self.accept()), daemon=True).start()

    @property
    def address(self) -> list[str]:
        """What the client is told, to find it."""
        return ["127.0.0.1", str(self.port)]

    def accept(self) -> Peer:
        sock, _ = self.listener.accept()
        sock.settimeout(DEADLINE)
        return ClientPeer(sock)


def end_stream(sock: Any) -> None:
    """Half-closes. Not by the method of a TLS socket, which stops decrypting then."""
    if isinstance(sock, WebSocketPeer):
        sock.end()
    else:
        socket.socket.shutdown(sock, socket.SHUT_WR)


def free_port() -> int:
    """Returns a port that nobody else takes: whoever listens there can go away and come back.

    It isn't one of those that systems give out by themselves. And other processes with tests see
    that it is ours by the UDP port of the same number, which we keep.
    """
    while True:
        address = ("127.0.0.1", random.randrange(20_000, 32_000))
        with contextlib.suppress(OSError), socket.socket() as one, contextlib.ExitStack() as undo:
            mark = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            mark.bind(address)
            one.bind(address)
            undo.pop_all()
            PORTS[address[1]] = mark
            return address[1]


class Terminal:
    """A command in a pseudo-terminal of its own, driven like a person would. `env` is what its
    environment has that ours hasn't."""

    def __init__(
        self, *command: str, size: Any = (24, 80), env: Mapping[str, str] = XTERM, **popen: Any
    ) -> None:
        pty = pytest.importorskip("pty")
        self.master, slave = pty.openpty()
        self.resize(*size)
        popen["env"] = {**XTERM, **env}
        streams = {"stdin": slave, "stdout": slave, "stderr": slave, **popen}
        if not can_fork(command, **streams):
            streams["preexec_fn"] = take_terminal
        self.process = launch(command, **streams)
        os.close(slave)
        self.shown = ""

    def resize(self, rows: int, columns: int) -> None:
        import fcntl
        import termios

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def expect(self, text: str) -> str:
        """Waits until the text is shown; returns what was shown before it. Both are then behind
        us."""
        deadline = time.monotonic() + DEADLINE
        while text not in self.shown:
            more = self.read(deadline - time.monotonic())
            assert more, f"{text!r} was not shown, but: {self.shown!r}"
            self.shown += more
        before, _, self.shown = self.shown.partition(text)
        return before

    def answer(self, question: str, keys: str) -> None:
        """Waits until the question is shown, and types."""
        self.expect(question)
        self.type(keys)

    def read(self, timeout: float) -> str:
        """Returns what is shown next, with \\n for the terminal's \\r\\n; nothing at the end."""
        if not select.select([self.master], [], [], max(0.0, timeout))[0]:
            return ""
        try:
            return os.read(self.master, 65536).decode("utf-8", "replace").replace("\r\n", "\n")
        except OSError:  # EIO: the command has ended
            return ""

    def rest(self) -> str:
        """Returns all that is still shown until the command ends."""
        while more := self.read(DEADLINE):
            self.shown += more
        rest, self.shown = self.shown, ""
        return rest

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


Run = Callable[..., Terminal]  # what the fixture `terminal` is


class Screen:
    """What a terminal makes of what is shown in it. In a window that gets narrower it cuts a row
    off, as xterm does, or reflows it into several, as most others do."""

    PIECE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b([78])|([\r\n\x07])|(.)")

    def __init__(self, window: Terminal, reflows: bool = False, stays: bool = False) -> None:
        self.window = window
        self.reflows = reflows
        self.stays = stays  # after a reflowed row that is full, the cursor is in its last column
        self.height, self.width = 24, 80
        self.rows = [""]  # those that have scrolled off too
        self.x = self.y = 0
        self.saved = (0, 0)
        self.wraps = True

    def resize(self, columns: int) -> None:
        """Only the row of the cursor is ever so long."""
        self.read_all()
        self.width = columns
        row = self.rows[self.y]
        pieces = [row[start : start + columns] for start in range(0, len(row) or 1, columns)]
        self.rows[self.y : self.y + 1] = pieces if self.reflows else pieces[:1]
        if self.reflows:
            full = self.stays and 0 < self.x and self.x % columns == 0
            self.y += self.x // columns - full
            self.x = columns if full else self.x % columns
        self.x = min(self.x, columns - 1)
        self.window.resize(self.height, columns)

    def expect(self, text: str) -> None:
        """Waits until a text ends one of the last two rows."""

        def is_there() -> bool:
            self.read_all()
            return any(row.endswith(text) for row in self.rows[-2:])

        eventually(is_there, text)

    def read_all(self) -> None:
        while text := self.window.read(0):
            for match in self.PIECE.finditer(text.replace("\n", "\r\n")):
                self.take(*match.groups())

    def take(self, given: str, action: str, cursor: str, control: str, char: str) -> None:
        number = int(given) if (given or "").isdigit() else 1
        row = self.rows[self.y]
        if action == "A":
            self.y = max(self.y - number, 0)
        elif action in ("K", "J"):
            self.rows[self.y] = row[: self.x]
            del self.rows[self.y + 1 if action == "J" else len(self.rows) :]
        elif action == "n":
            os.write(self.window.master, b"\x1b[%d;%dR" % (self.y + 1, self.x + 1))
        elif action in ("h", "l") and given == "?7":
            self.wraps = action == "h"
        elif cursor == "7":
            self.saved = self.x, self.y
        elif cursor == "8":
            self.x, self.y = self.saved
        elif control == "\r":
            self.x = 0
        elif control == "\n":
            self.next_row()
        elif char:
            self.put(char)

    def next_row(self) -> None:
        self.y += 1
        if self.y == len(self.rows):
            self.rows.append("")

    def put(self, char: str) -> None:
        if self.x >= self.width and self.wraps:
            self.x = 0
            self.next_row()
        self.x = min(self.x, self.width - 1)
        row = self.rows[self.y].ljust(self.x)
        self.rows[self.y] = row[: self.x] + char + row[self.x + 1 :]
        self.x += 1


def modes(window: Terminal) -> list[Any]:
    import termios

    return termios.tcgetattr(window.master)


class Window:
    """A shell in a tmux window: keys go in, the screen can be read."""

    def __init__(self, folder: Path, columns: int = 80, rows: int = 24) -> None:
        self.tmux = [needs("tmux"), "-S", str(folder / "tmux"), "-f", "/dev/null"]
        self.columns = columns
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "NO_COLOR": ""}
        size = ["-x", str(columns), "-y", str(rows)]
        shell = ["exec", "bash", "--norc", "--noprofile"]  # in place of the user's own
        subprocess.run(
            [*self.tmux, "new-session", "-d", *size, shlex.join(shell)], env=environment, check=True
        )
        self.command("set-option", "-g", "history-limit", "20000")

    def command(self, *words: str) -> str:
        done = subprocess.run([*self.tmux, *words], check=True, capture_output=True, text=True)
        return done.stdout

    def keys(self, *names: str) -> None:
        self.command("send-keys", *names)

    def type(self, text: str) -> None:
        self.command("send-keys", "-l", text)

    def say(self, text: str) -> None:
        self.type(text)
        self.keys("Enter")

    def paste(self, text: str) -> None:
        self.command("set-buffer", text)
        self.command("paste-buffer", "-p")

    def run(self, *words: str, more: str = "") -> None:
        """Has the shell run a command, and `more` as the shell understands it."""
        self.say(f"PS1='$ '; clear; {shlex.join(words) if len(words) > 1 else words[0]}{more}")

    def wait_for(self, text: str) -> None:
        """Waits until a text is on the screen."""
        eventually(lambda: any(text in line for line in self.lines()), text)

    def lines(self) -> list[str]:
        """Returns the lines of the screen and of what has scrolled off, wrapped ones joined."""
        text = self.command("capture-pane", "-p", "-J", "-S", "-")
        return [line.rstrip() for line in text.rstrip("\n").split("\n")]

    def expect(self, *last: str) -> None:
        """Waits until these are the last lines."""

        def shown() -> list[str]:
            return [line for line in self.lines() if line][-len(last) :]

        with contextlib.suppress(AssertionError):
            eventually(lambda: shown() == [*last])
        assert shown() == [*last]

    def cursor(self) -> int:
        return int(self.command("display-message", "-p", "#{cursor_x}"))

    def resize(self, columns: int) -> None:
        self.command("resize-window", "-x", str(columns))

    def kill(self) -> None:
        subprocess.run([*self.tmux, "kill-server"], capture_output=True, check=False)


def names(beginning: str) -> Sequence[str]:
    return [name for name in ("Ann", "Anton", "Bob Lee") if name.lower().startswith(beginning)]


class Typing(chat_client.Editor):
    """A line editor that keeps the keys that aren't its business."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        super().__init__(names, self.passed.append)


def typed(keys: str, editor: Typing | None = None) -> Typing:
    """Returns the editor, or a new one, after these keys were pressed."""
    editor = editor or Typing()
    editor.feed(keys.encode())
    return editor
