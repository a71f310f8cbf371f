#!/usr/bin/env python3
"""The TCP echo service of RFC 862: whatever a client sends comes back to it, byte for byte.

    python3 echo_server.py                    for this machine, on port 7007
    python3 echo_server.py --host :: -v       for the whole network, logging each message
    telnet localhost 7007                     try it

One thread, one selectors loop, non-blocking sockets. What a client sends goes straight back. What
the kernel doesn't take at once is the client's backlog, and while there is one the client is not
read from: TCP's flow control then keeps it from sending. So a client that never reads costs at most
what is received at once, however much it sends.

Lines are of no interest to the service; they are framed for the log alone, with -v.

Standard library only, Python 3.8 or later. Copy this file anywhere and run it.
"""

from __future__ import annotations

import argparse
import errno
import io
import ipaddress
import logging
import os
import select
import selectors
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

try:  # Windows has neither, and Debian's python3-minimal lacks the second
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

VERSION = "1.0"

PORT = 7007  # RFC 862 says 7, but ports below 1024 are for the superuser alone
OTHER_DESCRIPTORS = 32  # the listeners, files
# On Windows select() takes 512 sockets.
MAX_CLIENTS = 512 - OTHER_DESCRIPTORS if sys.platform == "win32" else 10_000
LISTEN_QUEUE = 1024  # connections that the kernel completes for us ahead of accept()
ACCEPT_SHARE = 0.003  # seconds of a turn for newcomers, so that a storm of them holds up nobody
RETRY_ACCEPT = 1.0  # seconds until the next try after accept() failed
# Bytes received at once, and the most that is held for a client. recv() allocates them all, however
# few have come: from 128 KiB on, glibc's malloc() maps and unmaps each buffer, which takes 10 us,
# where all else for 64 bytes takes 6.
RECEIVE_SIZE = 120 * 1024
MAX_LOGGED_LINE = 8 * 1024  # bytes; a longer line is not shown in the log
MAX_LOGGED = 100  # lines that are logged of what comes at once

# Each connection gets these, as far as the system has them. Keepalive: the kernel asks a silent
# peer whether it is still there, so that one that was unplugged is gone after two minutes. There is
# no TCP_USER_TIMEOUT here: it would also end a client that takes its time to read.
SOCKET_OPTIONS = [
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),  # seconds of silence before the first question
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 60),  # the same on macOS
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),  # seconds between questions
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),  # questions without an answer
    )
    if hasattr(socket, name)
]

Address = Any  # as the socket module has it: (host, port) and more

log = logging.getLogger("echo")


# --- Line framing --------------------------------------------------------------------------------


class LineFramer:
    """Cuts a stream of bytes into whole lines, in whatever pieces the stream comes.

    It holds at most `max_line` bytes of a line that isn't finished yet. A longer line is skipped to
    its end, so that one that never ends costs no memory.
    """

    __slots__ = ("max_line", "partial", "skipping")

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self.partial = b""  # the unfinished last line
        self.skipping = False  # that line is too long: drop everything up to its newline

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Takes the bytes that came; returns the whole lines and how many lines were too long.

        The whole lines are one chunk of bytes, each line with its LF, because a chunk is searched
        or passed on with one call, however many lines are in it.
        """
        if self.skipping:
            _, newline, data = data.partition(b"\n")
            self.skipping = not newline
        data = self.partial + data
        end = data.rfind(b"\n") + 1
        chunk, self.partial = data[:end], data[end:]
        skipped = 0
        if len(self.partial) > self.max_line:
            self.partial, self.skipping, skipped = b"", True, 1
        if self._has_long_line(chunk):
            lines = chunk.split(b"\n")
            kept = [line for line in lines if len(line) <= self.max_line]
            skipped += len(lines) - len(kept)
            chunk = b"\n".join(kept)
        return chunk, skipped

    def finish(self) -> bytes:
        """The stream has ended: returns its unfinished last line, with an LF, or nothing."""
        last, self.partial = self.partial, b""
        return last + b"\n" if last else b""

    def _has_long_line(self, chunk: bytes) -> bool:
        # Jump from newline to the last newline within reach: 1 us for 64 KiB of short lines, where
        # a regular expression takes 1,000.
        at = 0
        while len(chunk) - at > self.max_line + 1:
            at = chunk.rfind(b"\n", at, at + self.max_line + 1) + 1
            if not at:
                return True
        return False


def printable(line: bytes) -> str:
    """A line as it can be logged: control characters and broken UTF-8 shown as escapes like \\x1b,
    so that no peer can play tricks with the terminal that shows the log."""
    text = line.decode("utf-8", "backslashreplace").rstrip("\r")
    if text.isprintable():
        return text
    return repr(text)[1:-1].replace("\\\\", "\\")  # 100 times as fast as to look at each letter


def log_lines(speaker: str, chunk: bytes) -> None:
    """Logs whole lines at level DEBUG, the first MAX_LOGGED of them."""
    *lines, rest = chunk.split(b"\n", MAX_LOGGED)
    for line in lines:
        log.debug("%s: %s", speaker, printable(line))
    if rest:
        log.debug("%s: (%d more lines)", speaker, rest.count(b"\n"))


# --- The process ---------------------------------------------------------------------------------


class Failure(Exception):
    """The script can't go on; the text says why, and what to do about it."""


class StandardStream(io.TextIOBase):
    """Standard output or error for a program that goes on, and ends with the status it should,
    whatever has become of it: gone, closed, or on a disk that is full.

    Python's own keeps what it couldn't write, tries again at the end, and makes the exit status 120
    when that fails too. This one keeps nothing.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(self.descriptor, text.encode("utf-8", "backslashreplace"))
        return len(text)


def open_standard_streams() -> None:
    """Makes standard output and error ones that can be relied on, and opens the null device in
    place of each standard stream that is closed: a socket would get its descriptor, and with it the
    log."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free: this one
    if sys.stdout is not None:  # it is if it was closed: then what is asked for goes to the error
        sys.stdout = StandardStream(1)
    sys.stderr = StandardStream(2)


class LineWriter:
    """Adds whole lines to a file, a pipe or a terminal, and never waits for whoever reads them:
    lines that aren't taken at once are lost. After one that was taken halfway, the next begins on a
    line of its own.

    Its descriptor is non-blocking, or that of a file: a disk may be slow, but it doesn't stop.
    """

    torn_end = b"\n"  # goes out after a line that was taken halfway

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.in_line = False  # the last line was taken halfway
        self.why = ""  # the last lines that were lost were lost

    def write(self, lines: bytes) -> int:
        """Returns how many of the lines were lost."""
        data = self.torn_end + lines if self.in_line else lines
        taken = 0
        try:
            while taken < len(data):
                taken += self.put(data[taken:])
        except BlockingIOError:
            self.why = "nobody is reading it"
        except OSError as error:
            self.why = error.strerror or str(error)
        if taken:
            self.in_line = data[taken - 1 : taken] != b"\n"
        missing = data.count(b"\n", taken)
        return missing and min(missing, lines.count(b"\n"))

    def put(self, data: bytes) -> int:
        """Returns how many bytes were taken. Raises OSError."""
        return os.write(self.descriptor, data)


class SharedLineWriter(LineWriter):
    """The same for a descriptor that blocks, and has to: others have it too, such as the shell, and
    what is done to its mode is done to theirs.

    So it asks before each write whether there is room, and writes no more than there must be then.
    What is left is the moment between the two, in which somebody else could fill that room.
    """

    # Bytes for which there is room: in a pipe, 512 or more (POSIX, PIPE_BUF); in a terminal on
    # Linux, 256, but perhaps not for a newline after them.
    PIECE = 128

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self.room = select.poll()
        self.room.register(descriptor, select.POLLOUT)

    def put(self, data: bytes) -> int:
        if not self.room.poll(0):
            raise BlockingIOError
        end = data.find(b"\n", 0, self.PIECE)
        return super().put(data[: self.PIECE if end == -1 else max(end, 1)])


def open_error_writer() -> LineWriter:
    """Returns what writes to standard error and never waits."""
    if stat.S_ISREG(os.fstat(2).st_mode) or not hasattr(select, "poll"):  # Windows has none
        return LineWriter(2)
    try:  # Linux opens the same pipe or terminal anew, in a mode that is ours alone
        return LineWriter(os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError:  # there is no /proc, it is a socket, or another user's, as after su
        return SharedLineWriter(2)


class LogHandler(logging.Handler):
    """Writes the log, and never waits for its reader. After lines that were lost it says how many
    they were."""

    def __init__(self, out: LineWriter) -> None:
        super().__init__()
        self.out = out
        self.lost = 0  # lines, since the last that was written

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one entry, of one or more lines."""
        entry = self.encode(record)
        if self.lost:
            gap = {"msg": "lines of the log lost here: %d (%s)", "args": (self.lost, self.out.why)}
            if self.out.write(self.encode(logging.makeLogRecord(gap))):
                self.lost += entry.count(b"\n")
                return
        self.lost = self.out.write(entry)

    def encode(self, record: logging.LogRecord) -> bytes:
        """Returns the lines of an entry."""
        return f"{self.format(record)}\n".encode("utf-8", "backslashreplace")


class SignalSocket(socket.socket):
    """What open_signal_socket returns. After close() no signal arrives any more."""

    def __init__(self, reader: socket.socket, writer: socket.socket) -> None:
        super().__init__(fileno=reader.detach())
        self.writer = writer
        self.woken_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        signal.set_wakeup_fd(self.woken_before)
        self.writer.close()
        super().close()


def open_signal_socket(*numbers: int) -> socket.socket:
    """Returns a socket on which each of these signals arrives as a byte, its number.

    So a signal is one more event for the loop. A handler that raises would strike anywhere, even
    between receiving bytes and passing them on.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signals = SignalSocket(reader, writer)
    for number in numbers:
        signal.signal(number, lambda *_: None)  # only a signal with a handler wakes the loop
    return signals


def ending_signals() -> list[int]:
    """Returns the signals that end the server: also the one that says that its terminal was closed,
    unless that is to be ignored, as nohup has it."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return [int(number) for number in signals]


def raise_descriptor_limit(clients: int) -> int:
    """Raises the limit on open files, as far as the system allows, so that `clients` can connect.
    Returns how many to serve at most: fewer on Windows, where select() takes no more."""
    if sys.platform == "win32":
        if clients > MAX_CLIENTS:
            log.warning("on Windows at most %d clients can be served", MAX_CLIENTS)
        return min(clients, MAX_CLIENTS)
    if resource is None:
        return clients
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + OTHER_DESCRIPTORS
    for limit in (needed, hard, 10_240):  # the last: macOS allows that, whatever it says is hard
        if 0 <= soft < limit <= needed:  # an infinite limit is -1, or very large
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                soft = limit
                break
    if 0 <= soft < needed:
        log.warning(
            "%d clients can need %d open files, and %d are allowed, enough for %d; "
            "raise the limit with ulimit -n, or lower --max-clients",
            *(clients, needed, soft, max(0, soft - OTHER_DESCRIPTORS)),
        )
    return clients


def open_log(verbose: bool) -> None:
    """Starts the log, on standard error, each entry with its time.

    The time is in UTC, the transcript's: it makes no jump in spring and autumn, and the logs of
    several hosts can be laid side by side. Where standard error is systemd's journal there is none,
    as that keeps its own (systemd.exec(5) explains JOURNAL_STREAM).
    """
    error = os.fstat(2)
    in_journal = os.environ.get("JOURNAL_STREAM") == f"{error.st_dev}:{error.st_ino}"
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        format="%(message)s" if in_journal else "%(asctime)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%SZ",
        level=logging.DEBUG if verbose else logging.INFO,
        handlers=[LogHandler(open_error_writer())],
    )


# --- Listening sockets ---------------------------------------------------------------------------

# Names that mean two addresses, whatever this host's resolver says: localhost (RFC 6761, section
# 6.3), and every interface, which is IPv4 too. IPv6 sockets are IPv6 only here, so that both can be
# bound, and peers go by their real address instead of ::ffff:192.0.2.1.
EVERY_INTERFACE = ("::", "0.0.0.0")
SEVERAL_ADDRESSES = {
    "localhost": ("::1", "127.0.0.1"),
    "::": EVERY_INTERFACE,
    "*": EVERY_INTERFACE,
}

# An address that this machine doesn't have, such as ::1 where IPv6 is switched off.
NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)  # for this process, for the whole system

# Addresses that nobody has (RFC 5737, RFC 3849). The way to them is the way to the rest of the
# world.
ELSEWHERE: dict[int, str] = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
SIOCGIFADDR = 0x8915 if sys.platform == "linux" else 0xC0206921  # on macOS and the BSDs


def open_listeners(
    hosts: Sequence[str], port: int, option: str = "--port"
) -> list[socket.socket]:
    """Returns non-blocking sockets that listen on `port` of every address of the hosts.

    Port 0 stands for one that is free on all of them. Raises Failure, which names the option that
    gave the port.
    """
    addresses = find_addresses(hosts)
    tries = 1 if port else 20  # a port that is free on the first address may be taken on the next
    while True:
        listeners: dict[Address, socket.socket] = {}
        try:
            for host in hosts:
                listen_on(addresses[host], port, listeners)
            return list(listeners.values())
        except OSError as error:
            for listener in listeners.values():
                listener.close()
            tries -= 1
            if error.errno != errno.EADDRINUSE or not tries:
                raise Failure(why_not_listening(error, host, port, option)) from error


def find_addresses(hosts: Sequence[str]) -> dict[str, list[tuple[int, Address]]]:
    """Returns the family and the address of everything that each host stands for. Where all
    addresses of a family are among them, that is in place of each single one, which it would keep
    from being bound. Raises Failure."""
    found: dict[str, list[tuple[int, Address]]] = {}
    everything: dict[int, Address] = {}  # by its family
    for host in hosts:
        found[host] = []
        for name in SEVERAL_ADDRESSES.get(host, (host,)):
            try:
                answers = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
                raise Failure(why_not_listening(error, host, 0)) from error
            for family, _, _, _, address in answers:
                found[host].append((family, address))
                if address[0] in EVERY_INTERFACE:
                    everything[family] = address
    return {
        host: [(family, everything.get(family, address)) for family, address in addresses]
        for host, addresses in found.items()
    }


def listen_on(
    addresses: Sequence[tuple[int, Address]], port: int, listeners: dict[Address, socket.socket]
) -> None:
    """Adds a listener for each address of a host that has none yet, all on one port.

    Addresses that this machine doesn't have are passed over while another one of the host is left.
    Raises OSError.
    """
    missing: OSError | None = None
    listening = False
    for family, address in addresses:
        if listeners:  # then port 0 has become a real one
            port = next(iter(listeners.values())).getsockname()[1]
        key = (address[0], *address[2:])  # without the port
        try:
            if key not in listeners:
                listeners[key] = bind_and_listen(family, (address[0], port, *address[2:]))
            listening = True
        except OSError as error:
            if error.errno not in NOT_OURS:
                raise
            missing = error
    if missing and not listening:
        raise missing


def bind_and_listen(family: int, address: Address) -> socket.socket:
    """Returns a non-blocking socket that listens at the address. Raises OSError."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # where SO_REUSEADDR would let two programs have the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # start again at once, although connections of the last run linger in TIME_WAIT
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Urgent data, which telnet sends, comes in its place among the rest. Connections inherit it
        # from here, so that it holds for their first bytes too.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        listener.bind(address)
        listener.listen(LISTEN_QUEUE)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def why_not_listening(
    error: OSError | UnicodeError, host: str, port: int, option: str = "--port"
) -> str:
    """Returns what to tell the user when listening on `port` of `host`, an option's, failed."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"host {host} is unknown; --host takes a name or an address of this machine"
    if host.lower().startswith("fe80:") and "%" not in host:
        return f"{host} needs the interface that it belongs to, as in {host}%eth0"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken; choose another with {option}"
    if error.errno == errno.EACCES and port < 1024:
        return f"port {port} on {host} is for the superuser; choose one above 1023 with {option}"
    if error.errno in NOT_OURS:
        return f"{host} is not an address of this machine; --host :: takes all that it has"
    return f"cannot listen on port {port} of {host}: {error.strerror or error}"


def format_address(address: Address | None) -> str:
    """Returns 127.0.0.1:7007 or [::1]:7007."""
    if not address:  # macOS, for a connection that was reset before it was accepted
        return "somebody"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ip_address(listener: socket.socket) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Returns the address at which a socket listens."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])


def who_can_connect(listeners: Sequence[socket.socket]) -> str:
    """Returns a sentence for the user that says from where the listeners can be reached."""
    addresses = [ip_address(listener) for listener in listeners]
    if all(address.is_loopback for address in addresses):
        return "only this machine can connect; --host :: lets the network in"
    if any(address.is_unspecified for address in addresses):
        return "whoever can reach this machine can connect"
    return "whoever can reach these addresses can connect"


def hosts_for_others(listeners: Sequence[socket.socket]) -> list[str]:
    """Returns what other hosts can connect to, the likeliest to work first; nothing if only this
    machine can connect."""
    addresses = [ip_address(listener) for listener in listeners]
    if all(address.is_loopback for address in addresses):
        return []
    found: list[str] = []
    for listener, address in zip(listeners, addresses):
        if address.is_unspecified:
            found += own_addresses(listener.family)
        # A link-local one goes with an interface, which each host calls by a name of its own.
        elif not address.is_loopback and not (address.version == 6 and address.is_link_local):
            found.append(str(address))
    found.sort(key=lambda host: ":" in host)  # IPv4 first, which everyone has
    return found or [socket.gethostname()]


def own_addresses(family: int) -> list[str]:
    """Returns addresses of this machine, as far as the system tells: first the one from which it
    reaches the rest of the world, if it does, then each interface's."""
    found: list[str] = []
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((ELSEWHERE[family], 9))  # sends nothing
        found.append(sock.getsockname()[0])
    if family == socket.AF_INET and fcntl and hasattr(socket, "if_nameindex"):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # it has none
                    answer = fcntl.ioctl(sock, SIOCGIFADDR, os.fsencode(name).ljust(40, b"\0"))
                    found.append(socket.inet_ntoa(answer[20:24]))  # of a struct ifreq
    return [host for host in dict.fromkeys(found) if not host.startswith(("127.", "fe80:"))]


class Acceptor:
    """Accepts newcomers at the listeners; calls `admit` with each one's non-blocking socket, which
    is from then on its own, and the address of its peer, as text.

    Out of descriptors, a listener stays readable and accept() keeps failing, so that the loop would
    spin. Newcomers then wait in the kernel's queue until one is free.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listeners: Sequence[socket.socket],
        admit: Callable[[socket.socket, str], None],
    ) -> None:
        self.selector = selector
        self.listeners = listeners
        self.admit = admit
        self.failing = False  # the last accept() failed
        self.retry_at: float | None = None  # monotonic seconds, while newcomers have to wait

    def start(self) -> None:
        """Registers the listeners."""
        self.retry_at = None
        for listener in self.listeners:
            self.selector.register(listener, EVENT_READ, partial(self.accept, listener))

    def pause(self) -> None:
        """Leaves newcomers in the kernel's queue."""
        for listener in self.listeners:
            self.selector.unregister(listener)

    def close(self) -> None:
        """Gives up the listeners: whoever connects from now on is refused."""
        if self.retry_at is None:
            self.pause()
        self.retry_at = None
        for listener in self.listeners:
            listener.close()

    def resume(self) -> None:
        """Lets newcomers in again if they wait: a connection was closed."""
        if self.retry_at is not None:
            self.start()

    def retry_if_due(self, now: float) -> None:
        """Lets newcomers in again if it is time, in monotonic seconds: others may have used up what
        the whole system has."""
        if self.retry_at is not None and now >= self.retry_at:
            self.start()

    def accept(self, listener: socket.socket) -> None:
        """Admits those who wait at a listener, for as long as its share of a turn lasts: to find a
        newcomer a place can take a look at everyone who has one."""
        if self.retry_at is not None:  # the other listener found out in this same turn
            return
        over = time.monotonic() + ACCEPT_SHARE / len(self.listeners)
        try:
            while time.monotonic() < over:
                sock, address = listener.accept()
                self.failing = False
                self.hand_over(sock, address)
        except (BlockingIOError, ConnectionAbortedError):  # no more, or one that has left already
            pass
        except OSError as error:
            if not self.failing:
                log.warning("newcomers have to wait: %s", error.strerror)
            self.failing = True
            self.retry_at = time.monotonic() + RETRY_ACCEPT
            self.pause()

    def hand_over(self, sock: socket.socket, address: Address | None) -> None:
        """Makes a newcomer's socket what the loop needs, and admits it."""
        peer = format_address(address)
        try:
            sock.setblocking(False)
            for level, option, value in SOCKET_OPTIONS:
                sock.setsockopt(level, option, value)
            self.admit(sock, peer)
        except OSError as error:  # some systems refuse options on a connection that was reset
            log.info("%s could not be admitted: %s", peer, error.strerror)
            sock.close()
        except Exception:
            log.exception("%s could not be admitted", peer)
            sock.close()


# --- The echo server -----------------------------------------------------------------------------


class Connection:
    """A client, and its backlog: the bytes to send back that the kernel hasn't taken yet."""

    __slots__ = ("backlog", "framer", "peer", "sock")

    def __init__(self, sock: socket.socket, peer: str, framer: LineFramer | None) -> None:
        self.sock = sock
        self.peer = peer
        self.backlog = memoryview(b"")
        self.framer = framer  # only where messages are logged

    def send(self, data: bytes | memoryview) -> int:
        """Returns how many bytes the kernel took, 0 if it takes none now."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0


class EchoServer:
    """Echoes what clients send, until SIGINT or SIGTERM. Messages too are logged at level DEBUG."""

    def __init__(self, listeners: Sequence[socket.socket], max_clients: int) -> None:
        self.max_clients = max_clients
        self.clients = 0
        self.selector = selectors.DefaultSelector()
        self.acceptor = Acceptor(self.selector, listeners, self.admit)
        self.running = True

    def run(self) -> None:
        """Serves.

        The selector holds with each socket its connection, with others what to call when they are
        ready.
        """
        with self.selector, open_signal_socket(*ending_signals()) as signals:
            self.selector.register(signals, EVENT_READ, partial(self.on_signal, signals))
            self.acceptor.start()
            while self.running:
                self.turn()
            self.acceptor.close()
            for key in self.selector.get_map().values():
                if isinstance(key.data, Connection):
                    key.data.sock.close()

    def turn(self) -> None:
        """Waits for sockets to be ready, and serves each of them once."""
        timeout = None if self.acceptor.retry_at is None else RETRY_ACCEPT
        for key, _ in self.selector.select(timeout):
            ready = key.data
            if isinstance(ready, Connection):
                self.serve(ready)
            else:
                ready()
        if self.acceptor.retry_at is not None:  # no look at the clock in each turn
            self.acceptor.retry_if_due(time.monotonic())

    def on_signal(self, signals: socket.socket) -> None:
        """Ends the loop."""
        log.info("stopped by %s", signal.Signals(signals.recv(1)[0]).name)
        self.running = False

    def admit(self, sock: socket.socket, peer: str) -> None:
        """Serves a newcomer from now on, if there is a place."""
        if self.clients == self.max_clients:
            sock.close()
            log.info("%s turned away: there are %d clients already", peer, self.clients)
            return
        logs_messages = log.isEnabledFor(logging.DEBUG)
        conn = Connection(sock, peer, LineFramer(MAX_LOGGED_LINE) if logs_messages else None)
        self.selector.register(sock, EVENT_READ, conn)
        self.clients += 1
        log.info("%s connected, clients: %d", peer, self.clients)

    def serve(self, conn: Connection) -> None:
        """Does what the socket is ready for. Whatever goes wrong ends this client alone."""
        try:
            if conn.backlog:
                self.flush(conn)
            else:
                self.echo(conn)
        except BlockingIOError:  # readiness is a hint, not a promise
            pass
        except OSError as error:
            self.drop(conn, f"lost: {error.strerror}")
        except Exception:
            log.exception("%s made the server stumble", conn.peer)
            self.drop(conn, "closed")

    def echo(self, conn: Connection) -> None:
        """Receives once and sends it back. There is no backlog here, so if the client has ended its
        stream, all of its echo is with the kernel, which delivers it before our close.
        """
        data = conn.sock.recv(RECEIVE_SIZE)
        if not data:
            self.drop(conn, "disconnected")
            return
        sent = conn.send(data)
        if sent < len(data):
            conn.backlog = memoryview(data)[sent:]
            self.selector.modify(conn.sock, EVENT_WRITE, conn)
        if conn.framer:
            chunk, too_long = conn.framer.feed(data)
            log_lines(conn.peer, chunk)
            if too_long:
                log.debug("%s: (a line of over %d bytes)", conn.peer, MAX_LOGGED_LINE)

    def flush(self, conn: Connection) -> None:
        """Sends on what the kernel takes of the backlog; after the last of it, reads again."""
        conn.backlog = conn.backlog[conn.send(conn.backlog) :]
        if not conn.backlog:
            conn.backlog = memoryview(b"")  # an empty view would still hold all of its buffer
            self.selector.modify(conn.sock, EVENT_READ, conn)

    def drop(self, conn: Connection, why: str) -> None:
        """Closes a connection; what the kernel has taken still gets there."""
        if conn.framer:
            log_lines(conn.peer, conn.framer.finish())
        self.selector.unregister(conn.sock)
        conn.sock.close()
        self.acceptor.resume()
        self.clients -= 1
        log.info("%s %s, clients: %d", conn.peer, why, self.clients)


# --- The command line ----------------------------------------------------------------------------


def host_name(text: str) -> str:
    """Returns a host without the brackets that an IPv6 address has where a port may follow it.
    Raises ArgumentTypeError, which argparse shows."""
    if not text:  # such as a variable of the shell that isn't set
        raise argparse.ArgumentTypeError("no host is given")
    return text[1:-1] if text[0] + text[-1] == "[]" else text


def own_host(text: str) -> str:
    """Returns a host of this machine to listen on. Raises ArgumentTypeError, which argparse
    shows."""
    host, _, port = text.rpartition(":")
    if port.isdecimal() and (":" not in host or host.endswith("]")) and host:
        raise argparse.ArgumentTypeError(f"{text} has a port in it: --host {host} --port {port}")
    return host_name(text)


def port_number(text: str) -> int:
    """Returns the number. Raises ArgumentTypeError, which argparse shows."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; those go from 0 to 65535")
    return int(text)


def parse_known(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options. Ends the process with status 2 if there is one that the parser doesn't
    know. Of that only the name is shown: its value may be a password, and standard error a log."""
    args, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("-"):
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            parser.error(f"there is no option {name}")
    if unknown:
        parser.error("too many arguments")
    return args


def positive(text: str) -> int:
    """Returns the number. Raises ArgumentTypeError, which argparse shows."""
    if not text.isdecimal() or not 0 < int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 1,000,000,000")
    return int(text)


def server_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Returns a parser for the options that both servers have."""
    parser = argparse.ArgumentParser(
        description=description, epilog=f"example: {example}", allow_abbrev=False
    )
    add = parser.add_argument
    host = "listen on this name or address, can be repeated; :: is every interface, IPv4 too"
    add("--host", type=own_host, action="append", help=f"{host} (default: localhost)")
    add("--port", type=port_number, default=PORT, help="0 takes a free one (default: %(default)s)")
    crowd = "turn away more than N at once (default: %(default)s)"
    add("--max-clients", type=positive, default=MAX_CLIENTS, metavar="N", help=crowd)
    add("-v", "--verbose", action="store_true", help="log each message too")
    add("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options, and `prog`, the script's name. Wrong ones end the process, status 2."""
    parser = server_parser(
        "The TCP echo service of RFC 862: sends back whatever a client sends.",
        "python3 echo_server.py --host :: -v (then: telnet HOST 7007)",
    )
    args = parse_known(parser, argv)
    args.host = args.host or ["localhost"]  # as the option's default it would be added to
    args.prog = parser.prog
    return args


def run(args: argparse.Namespace) -> None:
    """Serves until it is told to stop. Raises Failure."""
    max_clients = raise_descriptor_limit(args.max_clients)
    listeners = open_listeners(args.host, args.port)
    addresses = [format_address(listener.getsockname()) for listener in listeners]
    log.info("listening on %s; %s", " and ".join(addresses), who_can_connect(listeners))
    host = (hosts_for_others(listeners) or args.host)[0]
    log.info("try it: telnet %s %d", host, listeners[0].getsockname()[1])
    EchoServer(listeners, max_clients).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit status: 0 for a clean end, 1 for a failure."""
    args = parse_args(argv)
    open_log(args.verbose)
    try:
        run(args)
    except Failure as error:
        print(f"{args.prog}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in NO_DESCRIPTOR:
            raise
        print(f"{args.prog}: too few open files are allowed; see ulimit -n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the loop took over the signals
        pass
    return 0


if __name__ == "__main__":
    open_standard_streams()
    sys.exit(main())
