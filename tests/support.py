"""What the tests share: servers as processes, peers on real sockets, commands in pseudo-terminals.

Nothing here sleeps for a fixed time: everything waits for an event, and fails after DEADLINE.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CERTS = ROOT / "tests" / "certs"
TLS_OPTIONS = ["--tls-cert", str(CERTS / "room.pem"), "--tls-key", str(CERTS / "room.key")]
DEADLINE = 20.0  # seconds; generous, because a loaded machine is no failure
WELCOME = b"Welcome to the chatroom!\n"
CLIENT = [sys.executable, str(ROOT / "chat_client.py")]
PLAIN = [*CLIENT, "--plain"]

# Which tests run over both kinds of connection; see the fixture `start`.
plain_and_tls = pytest.mark.parametrize("start", ["plain", "tls"], indirect=True)


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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def wait_until_listening(port: int) -> None:
    def connects() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return False
        return True

    eventually(connects)


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
    """One of the servers as a process, on a free port."""

    def __init__(
        self,
        script: str,
        *options: str,
        log: Path,
        python: str = sys.executable,
        cwd: Path = ROOT,
        tls: bool = False,
        within: Sequence[str] = (),
        **popen: Any,
    ) -> None:
        self.tls = tls
        self.log_file = log
        command = [
            *within,
            python,
            str(cwd / script),
            "--port",
            "0",
            *(TLS_OPTIONS if tls else ()),
            *options,
        ]
        with open(log, "wb") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=stderr, cwd=cwd, **popen
            )
        found = self.wait_for_log(r"listening on .*?:(\d+)[ ;]")
        self.port = int(found.group(1))

    def log(self) -> str:
        return self.log_file.read_text()

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            if self.process.poll() is not None and not re.search(pattern, self.log()):
                raise AssertionError(f"the server has ended: {self.log()}")
            return re.search(pattern, self.log())

        eventually(look, f"{pattern} in the log")
        found = look()
        assert found
        return found

    def dial(self, host: str = "127.0.0.1", receive_buffer: int = 0) -> socket.socket:
        """Returns a socket that is connected, and through TLS if the server speaks it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(DEADLINE)
        sock.connect((host, self.port))
        return (
            trusting(CERTS / "room.pem").wrap_socket(sock, server_hostname=host)
            if self.tls
            else sock
        )

    def connect(self, host: str = "127.0.0.1", receive_buffer: int = 0) -> Peer:
        return Peer(self.dial(host, receive_buffer))

    def join(self, name: str = "", receive_buffer: int = 0) -> Peer:
        """Connects to a room, and takes a name there."""
        peer = self.connect(receive_buffer=receive_buffer)
        peer.expect(WELCOME)
        if name:
            peer.send(f"/name {name}\n")
            peer.expect(f"* you are {name}\n")
        return peer

    def memory(self) -> int:
        """Returns the bytes of memory that the process has in use."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            pytest.skip("needs /proc")
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text()).group(1)) * 1024  # type: ignore[union-attr]

    def cpu_seconds(self) -> float:
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            pytest.skip("needs /proc")
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def patched(start: Callable[..., Server], tmp_path: Path, patch: str, *options: str) -> Server:
    """Starts a room of which something was changed."""
    (tmp_path / "patched.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport chat_server\n"
        f"{patch}\nsys.exit(chat_server.main())\n"
    )
    return start("patched.py", *options, cwd=tmp_path)


class Peer:
    """The other end of a connection, which reads with a deadline."""

    def __init__(self, sock: socket.socket) -> None:
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


class Listener:
    """A server that does what a test wants: accepts one client, and is its peer."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE)
        self.port = self.listener.getsockname()[1]

    def accept(self) -> Peer:
        sock, _ = self.listener.accept()
        sock.settimeout(DEADLINE)
        return Peer(sock)


def end_stream(sock: socket.socket) -> None:
    """Half-closes. Not by the method of a TLS socket, which stops decrypting then."""
    socket.socket.shutdown(sock, socket.SHUT_WR)


class Terminal:
    """A command in a pseudo-terminal of its own, driven like a person would."""

    def __init__(self, *command: str, size: tuple[int, int] = (24, 80), **popen: Any) -> None:
        pty = pytest.importorskip("pty")
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509
            **popen,
        )
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


def take_terminal() -> None:
    """Makes standard input the terminal that Ctrl-C and Ctrl-Z work on. Runs in the child."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
