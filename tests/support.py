"""What the tests share.

Server, patched                   one of the servers as a process, which others dial and join
checked_server, Inside, tls_room  a room that doesn't run, whose invariants are checked
client, finish, patched_client    a command in pipes, until it ends
FakeConsole, unconnected          the client without a terminal, or without a connection
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from browser import WebSocketPeer
from starter import COMPILED, ROOT, can_fork, launch

import chat_client
from chat_server import (
    BATCH_COST,
    HIGH_WATER,
    MAX_UNREAD,
    MAX_UNSENT,
    Certificate,
    ChatServer,
    Connection,
    Room,
    State,
    TLSConnection,
    identity,
    make_server,
)

CERTS = ROOT / "tests" / "certs"
TLS_OPTIONS = ["--tls-cert", str(CERTS / "room.pem"), "--tls-key", str(CERTS / "room.key")]
TRUSTED = ["--tls-ca", str(CERTS / "room.pem")]
DEADLINE = 60.0  # seconds; generous, because a loaded machine is no failure
WELCOME = b"Welcome to the chatroom!\n"
MODULES = COMPILED / "modules"
CLIENT = [sys.executable, str(COMPILED / "chat_client.py")]
PLAIN = [*CLIENT, "--plain"]
SCRIPTS = ["echo_server.py", "chat_server.py", "chat_client.py"]
SERVERS = SCRIPTS[:2]
PORTS: dict[int, socket.socket] = {}  # that free_port() has given out, and what marks them as ours

NOT_IN_MINIMAL = ["bz2", "fcntl", "getpass", "hmac", "readline", "resource", "termios", "zlib"]
NO_MORE = dict.fromkeys(("NO_COLOR", "TMUX", "VTE_VERSION", "XTERM_VERSION", "TERM_PROGRAM"), "")
XTERM = {**os.environ, "TERM": "xterm-256color", **NO_MORE}

# Which tests run over each kind of connection; see the fixture `start`.
plain_and_tls = pytest.mark.parametrize("start", ["plain", "tls"], indirect=True)
every_kind = pytest.mark.parametrize("start", ["plain", "tls", "web"], indirect=True)


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
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")


def allow_many_descriptors() -> None:
    """A thousand clients are a thousand sockets in the tests' process."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16_384 if hard == resource.RLIM_INFINITY else min(hard, 16_384)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Waits until the condition is true and returns its value."""
    deadline = time.monotonic() + DEADLINE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen: {what or condition}")
        time.sleep(0.005)


class Server:
    """One of the servers as a process, on a free port unless it is given one. Its log goes to a
    file, or to `stderr`."""

    def __init__(
        self,
        script: str,
        *options: str,
        log: Path,
        python: str = sys.executable,
        cwd: Path | None = None,
        tls: bool = False,
        web: bool = False,
        stderr: int | None = None,
        port: int | None = None,
        within: Sequence[str] = (),
        **popen: Any,
    ) -> None:
        self.tls = tls
        self.web = web  # whoever joins has a browser
        self.context = trusting(CERTS / "room.pem")  # of those who speak TLS with it
        self.log_file = log
        self.port = free_port() if port is None else port
        path = str(cwd / script) if cwd else path_of(script, python)
        web_options = ["--web", str(free_port())] if web else []
        command = [path, "--port", str(self.port), *(TLS_OPTIONS if tls else ()), *web_options]
        command += options
        self.process = self.run([*within, python, *command], stderr, cwd=cwd or ROOT, **popen)
        try:
            if stderr is not None:
                wait_until_listening(self.port)
            else:
                self.port = self.port_in_log(r"listening on .*?:(\d+)[ ;]")
            if web:
                self.web_port = self.port_in_log(r"in a browser: https?://.*:(\d+)/")
        except AssertionError:
            self.kill()
            raise

    def run(self, command: list[str], stderr: int | None, **popen: Any) -> Any:
        with open(self.log_file, "wb") as file, open(os.devnull, "r+b") as null:
            log = file.fileno() if stderr is None else stderr
            return launch(command, stdin=null, stdout=null, stderr=log, **popen)

    def port_in_log(self, pattern: str) -> int:
        return int(self.wait_for_log(pattern).group(1))

    def log(self) -> str:
        return self.log_file.read_text()

    def count(self) -> int:
        """Returns how many members, or clients, there were when the log last said so."""
        return int(re.findall(r"(?:members|clients): (\d+)\n", self.log())[-1])

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            if self.process.poll() is not None and not re.search(pattern, self.log()):
                raise AssertionError(f"the server has ended: {self.log()}")
            return re.search(pattern, self.log())

        eventually(look, f"{pattern} in the log")
        found = look()
        assert found
        return found

    def dial(
        self,
        host: str = "127.0.0.1",
        receive_buffer: int = 0,
        source: str = "",
        web: bool | None = None,
    ) -> Any:
        """Returns a socket that is connected, from a source address if one is given, through TLS if
        the server speaks it, and as a browser's WebSocket if the members, or this one, are to have
        browsers."""
        web = self.web if web is None else web
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
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
            heard: list[bytes] = []
            while not heard or heard[-1] != f"* you are {name}\n".encode():
                heard.append(peer.line())
                assert heard[-1], f"the stream has ended: {heard}"
            peer.buffer = b"".join(heard[:-1]) + peer.buffer
        return peer

    def memory(self) -> int:
        """Returns the bytes of memory that the process has in use."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            pytest.skip("needs /proc")
        return int(status.read_text().split("VmRSS:")[1].split()[0]) * 1024

    def cpu_seconds(self) -> float:
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            pytest.skip("needs /proc")
        fields = stat.read_text().rpartition(")")[2].split()
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


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


# For `patched`: a room that waits half a second for a stuck member, not five. What a member has
# read earns it time, and here less of it.
IMPATIENT = (
    "chat_server.PATIENCE, chat_server.STEP, chat_server.TICK = 0.5, 0, 0.25\n"
    "chat_server.PACE = 65536"
)


def patched(
    start: Callable[..., Server], tmp_path: Path, patch: str, *options: str, **more: Any
) -> Server:
    """Starts a room of which something was changed."""
    (tmp_path / "patched.py").write_text(
        f"import sys\nsys.path[:0] = [{str(MODULES)!r}, {str(ROOT / 'tests')!r}]\nimport chat_server\n"
        f"{patch}\nsys.exit(chat_server.main())\n"
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
        assert conn in server.membership.has_more or not server.membership.has_input(conn)
    assert server.membership.has_more <= everyone
    for key, owner in room.names.items():
        assert owner in room.members and key == identity(owner.name)
    assert len(room.names) == sum(1 for conn in members if conn.name)
    assert sum(room.looks.values()) == len(room.names)
    assert set(throttle.waiting) == {conn for conn in members if not conn.reading}
    over = {one for one in members if one.size > HIGH_WATER}
    assert throttle.slow in over if over else throttle.slow is None
    unread = {one for one in throttle.waiting if one.unread_answers > MAX_UNREAD}
    assert over | unread <= set(throttle.behind) <= {one for one in members if one.queue}
    assert throttle.slow or not set(throttle.waiting) - unread
    assert all(one in throttle.waiting for one in members if one.mark == math.inf)
    for conn in leaving - set(room.batch.leavers):  # those will be seen off with that batch
        assert not conn.unheard
        assert conn.wants_write() or (conn.reading and not conn.reachable), (
            "should be closed by now"
        )


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
        check_tls(conn)
    assert conn.encode == conn.input.encode
    gets = [len(batch.part_for(conn, conn.encode)) for batch in queue]
    assert 0 <= conn.offset < (gets[0] if gets else 1)
    assert conn.size == sum(gets) + BATCH_COST * len(gets) - conn.offset


def check_tls(conn: TLSConnection) -> None:
    """What holds of one besides that, if it speaks TLS."""
    assert not conn.incoming.pending and not conn.outgoing.pending
    assert len(conn.unsent) <= MAX_UNSENT
    assert conn.wants_write() == bool(conn.unsent or conn.queue)
    assert not conn.tls or conn.unsent or not conn.queue
    assert conn.tls or not conn.unsent
    assert not conn.pending or conn.ready


class CheckedServer(ChatServer):
    """A room whose invariants are checked after each step that is taken from outside."""

    depth = 0

    def admit(self, sock: socket.socket, peer: str) -> None:
        self.door.admit(sock, peer)


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
        return cast(CheckedServer, make_server(listeners, room or Room(), **options))


def pair() -> tuple[socket.socket, Peer]:
    """Returns the two ends of a connection: the server's, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), DEADLINE)
        ours, _ = listener.accept()
    ours.setblocking(False)
    return ours, Peer(theirs)


class Inside:
    """A room that doesn't run, and its members: each one's connection, and its peer."""

    def __init__(self, **options: Any) -> None:
        self.server = checked_server(**options)

    def join(self) -> tuple[Connection, Peer]:
        sock, peer = pair()
        before = set(self.server.room.members)
        self.server.admit(sock, "peer")
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
    sock, peer = pair()
    server.admit(sock, "peer")
    context = trusting(CERTS / "room.pem")

    def shake_hands() -> None:
        peer.sock = context.wrap_socket(peer.sock, server_hostname="localhost")

    thread = threading.Thread(target=shake_hands)
    thread.start()
    while not server.room.members:
        server.turn()
    thread.join(DEADLINE)
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
        f"import sys\nsys.path.insert(0, {str(folder)!r})\nsys.argv[0] = 'chat_client.py'\n{patch}\n"
        "import chat_client\nchat_client.open_outputs()\nsys.exit(chat_client.main())"
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


def unconnected(
    protocol: chat_client.ChatProtocol, sock: Any = None, console: FakeConsole | None = None
) -> chat_client.Session:
    """Returns a session whose socket, if any, isn't one."""
    return chat_client.Session(chat_client.Client(console or FakeConsole(), protocol), sock)


class Peer:
    """The other end of a connection, which reads with a deadline."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.buffer = b""

    def send_and_half_close(self, data: bytes) -> None:
        self.send(data)
        self.half_close()

    def send(self, data: bytes | str) -> None:
        self.sock.sendall(data.encode() if isinstance(data, str) else data)

    def read(self, size: int) -> bytes:
        """Returns exactly so many bytes, fewer at the end of the stream."""
        parts = [self.buffer]
        missing = size - len(self.buffer)
        while missing > 0:
            data = self.sock.recv(min(missing, 1 << 20))
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        data = b"".join(parts)
        self.buffer = data[size:]
        return data[:size]

    def line(self) -> bytes:
        """Returns the next line with its newline; at the end of the stream, what is left."""
        while b"\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                break
            self.buffer += data
        end = self.buffer.find(b"\n") + 1 or len(self.buffer)
        line, self.buffer = self.buffer[:end], self.buffer[end:]
        return line

    def expect(self, *lines: bytes | str) -> None:
        """The next lines are these."""
        for line in lines:
            assert self.line() == (line.encode() if isinstance(line, str) else line)

    def read_until(self, line: bytes | str) -> None:
        """Reads lines until this one has come."""
        wanted = line.encode() if isinstance(line, str) else line
        got = b""
        while got != wanted:
            got = self.line()
            assert got, f"the stream has ended before {wanted!r}"

    def rest(self) -> bytes:
        """Returns everything up to the end of the stream."""
        parts = [self.buffer]
        self.buffer = b""
        while True:
            data = self.sock.recv(1 << 20)
            if not data:
                return b"".join(parts)
            parts.append(data)

    def available(self) -> bytes:
        """Returns what has come by now, without waiting."""
        parts, self.buffer = [self.buffer], b""
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            while parts[-1] or len(parts) == 1:
                parts.append(self.sock.recv(1 << 20))
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


def wait_until_listening(port: int) -> None:
    def connects() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return False
        return True

    eventually(connects)


class Terminal:
    """A command in a pseudo-terminal of its own, driven like a person would."""

    def __init__(self, *command: str, size: tuple[int, int] = (24, 80), **popen: Any) -> None:
        pty = pytest.importorskip("pty")
        self.master, slave = pty.openpty()
        self.resize(*size)
        streams = {"stdin": slave, "stdout": slave, "stderr": slave, **popen}
        if not can_fork(command, **streams):
            streams.update(start_new_session=True, preexec_fn=take_terminal)
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
        while True:
            more = self.read(DEADLINE)
            if not more:
                rest, self.shown = self.shown, ""
                return rest
            self.shown += more

    def wait(self) -> int:
        """Returns the exit status."""
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


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
        while True:
            text = self.window.read(0)
            if not text:
                break
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


def take_terminal() -> None:
    """Makes standard input the terminal that Ctrl-C and Ctrl-Z work on. Runs in the child."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def in_terminal(terminal: Callable[..., Terminal], *options: str, **environment: str) -> Terminal:
    return terminal(*CLIENT, *options, env={**XTERM, **environment})


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
        """Presses keys, by tmux's names for them."""
        self.command("send-keys", *names)

    def type(self, text: str) -> None:
        self.command("send-keys", "-l", text)

    def paste(self, text: str) -> None:
        self.command("set-buffer", text)
        self.command("paste-buffer", "-p")

    def run(self, *words: str, more: str = "") -> None:
        """Has the shell run a command, and `more` as the shell understands it."""
        self.type(f"PS1='$ '; clear; {shlex.join(words) if len(words) > 1 else words[0]}{more}")
        self.keys("Enter")

    def wait_for(self, text: str) -> None:
        """Waits until a text is on the screen."""
        eventually(lambda: any(text in line for line in self.lines()), text)

    def lines(self) -> list[str]:
        """Returns the lines of the screen and of what has scrolled off, wrapped ones joined."""
        text = self.command("capture-pane", "-p", "-J", "-S", "-")
        return [line.rstrip() for line in text.rstrip("\n").split("\n")]

    def expect(self, *last: str) -> None:
        """Waits until these are the last lines."""

        def are_last() -> bool:
            seen[:] = [line for line in self.lines() if line]
            return seen[-len(last) :] == list(last)

        seen: list[str] = []
        try:
            eventually(are_last)
        except AssertionError:
            raise AssertionError(f"expected {last}, seen {seen[-len(last) - 5 :]}") from None

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
