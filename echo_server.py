#!/usr/bin/env python3
"""The TCP echo service of RFC 862: whatever a client sends comes back to it, byte for byte.

    python3 echo_server.py                    for this machine: telnet localhost 7007
    python3 echo_server.py --host :: -v       for the whole network, logging each message

One thread, one selectors loop, non-blocking sockets. What a client sends goes straight back; what
the kernel doesn't take at once waits in a write buffer. Until that is empty the client isn't read
from, and TCP keeps it from sending. Standard library only, Python 3.8 or later: copy it anywhere.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import Any

VERSION = "1.0"
PORT = 7007  # RFC 862 says 7, but ports below 1024 are for the superuser alone
MOST_CLIENTS = 480 if sys.platform == "win32" else 1_000_000  # select() on Windows takes 512
ACCEPT_BURST = 100  # newcomers admitted in one turn, so that a storm of them holds up nobody
ACCEPT_REST = 0.1  # seconds until the next try after accept() failed
# Bytes received at once, and so the most that waits to be sent back to a client. From 128 KiB on,
# glibc's malloc() maps memory anew for each recv(): 10 us, where a short message takes 6 in all.
RECEIVE_SIZE = 120 * 1024
MAX_LOGGED_LINE = 8 * 1024  # bytes of a line that -v logs
MAX_LOGGED = 100  # lines that are logged of what comes at once

log = logging.getLogger("echo")


# --- The echo server -----------------------------------------------------------------------------


class Connection:
    """A client: its socket, and a buffer for each direction."""

    __slots__ = ("peer", "read_buffer", "sock", "write_buffer")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer  # its address, for the log
        self.read_buffer = b""  # its unfinished last line, for the log; empty without -v
        self.write_buffer: bytes | memoryview = b""  # received, and not yet taken by the kernel

    def log_lines(self, data: bytes) -> None:
        """Logs the lines that these bytes complete. What isn't text becomes escapes like \\x1b, so
        that no client can play tricks with the terminal that shows the log."""
        *lines, rest = (self.read_buffer + data).split(b"\n")
        self.read_buffer = rest[:MAX_LOGGED_LINE]
        for line in lines[:MAX_LOGGED]:
            text = line[:MAX_LOGGED_LINE].decode("utf-8", "backslashreplace").rstrip("\r")
            shown = text if text.isprintable() else repr(text)[1:-1].replace("\\\\", "\\")
            log.debug("%s: %s", self.peer, shown)
        if len(lines) > MAX_LOGGED:
            log.debug("%s: (%d more lines)", self.peer, len(lines) - MAX_LOGGED)


class EchoServer:
    """Sends back what clients send, and logs who comes and goes; at level DEBUG, messages too."""

    def __init__(self, listeners: Sequence[socket.socket], max_clients: int) -> None:
        self.listeners = listeners
        self.max_clients = max_clients
        self.logs_messages = log.isEnabledFor(logging.DEBUG)
        self.clients: set[Connection] = set()
        self.resting = [*listeners]  # not registered: all at first, then where accept() failed
        self.rest_ends = 0.0  # monotonic seconds; 0 unless the last accept() failed
        self.running = True
        self.selector = DefaultSelector()

    def run(self, signals: socket.socket) -> None:
        """Serves until there is something to read from `signals`."""
        with self.selector:
            self.selector.register(signals, EVENT_READ)
            while self.running:
                self.turn()
        for sock in (*self.listeners, *(conn.sock for conn in self.clients)):
            sock.close()

    def turn(self) -> None:
        """Waits until sockets are ready, and does once what each of them is ready for. A client's
        socket is registered with its connection as data, a listener with itself."""
        if self.resting and time.monotonic() >= self.rest_ends:
            for listener in self.resting:
                self.selector.register(listener, EVENT_READ, listener)
            self.resting.clear()
        for key, event in self.selector.select(ACCEPT_REST if self.resting else None):
            if isinstance(key.data, Connection):
                self.serve(key.data, event)
            elif key.data:
                self.accept(key.data)
            else:  # a signal has come
                self.running = False

    def accept(self, listener: socket.socket) -> None:
        """Admits those who wait at a listener, at most a burst of them. If that fails, as when too
        many files are open, they still wait and the loop would spin: so the listener rests."""
        try:
            for _ in range(ACCEPT_BURST):
                sock, address = listener.accept()
                self.rest_ends = 0.0
                self.admit(sock, format_address(address))
        except (BlockingIOError, ConnectionError):  # no more, or one that has left already
            pass
        except OSError as error:
            if not self.rest_ends:
                log.warning("newcomers have to wait: %s", error.strerror)
            self.selector.unregister(listener)
            self.resting.append(listener)
            self.rest_ends = time.monotonic() + ACCEPT_REST

    def admit(self, sock: socket.socket, peer: str) -> None:
        """Serves a newcomer from now on, if there is a place. Raises OSError."""
        if len(self.clients) == self.max_clients:
            sock.close()
            log.info("%s turned away: there are %d clients already", peer, self.max_clients)
            return
        sock.setblocking(False)
        if sys.platform != "linux":  # on Linux those of the listener are inherited
            set_options(sock)
        conn = Connection(sock, peer)
        self.selector.register(sock, EVENT_READ, conn)
        self.clients.add(conn)
        log.info("%s connected, clients: %d", peer, len(self.clients))

    def serve(self, conn: Connection, event: int) -> None:
        """Receives once and sends that back, or sends more of what is left. A client is read from
        only when nothing is left: so when its stream ends, the kernel has all of its echo."""
        try:
            if event == EVENT_READ:
                conn.write_buffer = data = conn.sock.recv(RECEIVE_SIZE)
                if not data:
                    self.drop(conn, "disconnected")
                    return
                if self.logs_messages:
                    conn.log_lines(data)
            sent = conn.sock.send(conn.write_buffer)
            all_sent = sent == len(conn.write_buffer)
            conn.write_buffer = b"" if all_sent else memoryview(conn.write_buffer)[sent:]
        except BlockingIOError:  # readiness is a hint, not a promise
            pass
        except Exception as error:
            if not isinstance(error, OSError):  # a bug, which ends this connection alone
                log.exception("serving %s failed", conn.peer)
            self.drop(conn, f"lost: {getattr(error, 'strerror', error)}")
            return
        needed = EVENT_WRITE if conn.write_buffer else EVENT_READ
        if needed != event:
            self.selector.modify(conn.sock, needed, conn)

    def drop(self, conn: Connection, why: str) -> None:
        """Closes a client's connection."""
        if conn.read_buffer:
            conn.log_lines(b"\n")  # the unfinished last line
        self.selector.unregister(conn.sock)
        conn.sock.close()
        self.clients.remove(conn)
        log.info("%s %s, clients: %d", conn.peer, why, len(self.clients))


# --- Listening -----------------------------------------------------------------------------------

# Names that stand for two addresses, whatever this host's resolver says: localhost (RFC 6761,
# section 6.3), and every interface, of IPv6 and of IPv4.
EVERY_INTERFACE = ("::", "0.0.0.0")
SEVERAL = {"localhost": ("::1", "127.0.0.1"), "::": EVERY_INTERFACE, "*": EVERY_INTERFACE}


def set_options(sock: socket.socket) -> None:
    """Sets what a connection needs, as far as the system has it. With keepalive the kernel asks a
    silent peer whether it is there: one that was unplugged is gone after two to 20 minutes."""
    keepalive = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
    with suppress(OSError):  # some systems refuse for a connection that was reset already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent data stays in its place
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in keepalive.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def find_addresses(host: str) -> list[tuple[int, Any]]:
    """Returns the family and address of all that a host means, except those that this machine
    doesn't have, such as ::1 if IPv6 is switched off. Raises Failure."""
    found: list[tuple[int, Any]] = []
    try:
        for name in SEVERAL.get(host, (host,)):
            for family, _, _, _, address in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM):
                try:  # whether one can listen there, on any port
                    socket.create_server(address, family=family).close()
                except OSError as error:
                    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        continue
                found.append((family, address))
    except (OSError, UnicodeError):  # UnicodeError: a name that no host can have
        raise Failure(f"host {host} is unknown; --host takes a name or an address of this machine")
    if not found:
        raise Failure(f"{host} is not an address of this machine; --host :: takes all that it has")
    return found


def open_listeners(hosts: Sequence[str], port: int, option: str = "--port") -> list[socket.socket]:
    """Returns non-blocking sockets that listen on `port` of every address of the hosts; 0 stands
    for one that is free on all of them. Raises Failure, which names the option for the port."""
    found = {one: host for host in hosts for one in find_addresses(host)}
    # Where every interface is bound, none of its family can be bound too.
    whole = {family for family, address in found if address[0] in EVERY_INTERFACE}
    listeners: list[socket.socket] = []
    try:
        for (family, address), host in found.items():
            if family not in whole or address[0] in EVERY_INTERFACE:
                given = listeners[0].getsockname()[1] if listeners else port
                listeners.append(listener := socket.socket(family))
                if os.name == "posix":  # on Windows it would let others take the port as well
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:  # alone, so that peers aren't ::ffff:192.0.2.1
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                set_options(listener)  # before listen(), as connections inherit them on Linux
                listener.setblocking(False)
                listener.bind((address[0], given, *address[2:]))
                listener.listen(1024)
    except OSError as error:
        for listener in listeners:
            listener.close()
        if given != port and error.errno == errno.EADDRINUSE:
            return open_listeners(hosts, port, option)  # another may be free on all of them
        raise Failure(why_not_listening(error, host, port, option)) from error
    return listeners


def why_not_listening(error: OSError, host: str, port: int, option: str) -> str:
    """Returns what to tell the user when listening on `port` of `host` failed."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken; choose another with {option}"
    if error.errno == errno.EACCES and port < 1024:
        return f"port {port} on {host} is for the superuser; choose one above 1023 with {option}"
    if host.lower().startswith("fe80:") and "%" not in host:
        return f"{host} needs the interface that it belongs to, as in {host}%eth0"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def format_address(address: Any) -> str:
    """Returns 127.0.0.1:7007 or [::1]:7007."""
    host, port = address[:2] if address else ("somebody", 0)  # macOS, if it was reset already
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- The process ---------------------------------------------------------------------------------


class Failure(Exception):
    """The script can't go on; the text says why, and what to do about it."""


class LossyStream(io.TextIOBase):
    """Standard output or error that never waits for its reader: lines that aren't taken at once are
    lost, and the next one written follows a line that says how many. The descriptor has to
    stay a blocking one, as the shell shares it: so each write is small, and made only if there is
    room. Python's own stream would wait, and in the end make the exit status 120."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.can_fill = os.name == "posix" and not os.path.isfile(descriptor)
        # What there is room for if there is any: in a pipe 512 bytes or more (POSIX, PIPE_BUF); in
        # a terminal on Linux 256, but perhaps not a newline after them.
        self.piece = re.compile(rb"\n|.{1,128}" if os.isatty(descriptor) else rb"(?s).{1,512}")
        self.lost = 0  # lines, since the last that was written
        self.why = ""  # the reason for that

    def write(self, text: str) -> int:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) if self.lost else ""
        gap = f"\n{now} lines lost here: {self.lost} ({self.why})\n" if self.lost else ""
        data = (gap + text).encode("utf-8", "backslashreplace")
        try:
            while data:
                if self.can_fill and not select.select([], [self.descriptor], [], 0)[1]:
                    raise BlockingIOError(errno.EAGAIN, "nobody is reading it")
                data = data[os.write(self.descriptor, next(self.piece.finditer(data))[0]) :]
        except OSError as error:
            self.why = str(error.strerror)
        missing, lines = data.count(b"\n"), text.count("\n")
        self.lost = missing if missing <= lines else self.lost + lines  # else the gap is unreported
        return len(text)


def open_standard_streams() -> None:
    """Makes standard output and error ones that never wait. Opens the null device in place of each
    standard stream that is closed: a socket would get its descriptor, and with it the log."""
    descriptor = 0
    while descriptor < 3:
        descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    os.close(descriptor)
    sys.stdout, sys.stderr = sys.stdout and LossyStream(1), LossyStream(2)  # None if closed


def open_log(verbose: bool) -> None:
    """Starts the log, on standard error, each entry with its time in UTC, which doesn't jump in
    spring and autumn. Systemd's journal has a time already (systemd.exec(5), JOURNAL_STREAM)."""
    error = os.fstat(2)
    in_journal = os.environ.get("JOURNAL_STREAM") == f"{error.st_dev}:{error.st_ino}"
    logging.Formatter.converter = time.gmtime
    form = "%(message)s" if in_journal else "%(asctime)s %(message)s"
    level = logging.DEBUG if verbose else logging.INFO
    logging._srcfile = None  # nobody needs the line of code, and finding it takes 3 us
    logging.basicConfig(format=form, datefmt="%Y-%m-%dT%H:%M:%SZ", level=level)


def ending_signals() -> socket.socket:
    """Returns a socket on which the signals that end the server arrive, as one more event for the
    loop: a handler that raises would strike anywhere, between receiving and sending too."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)  # open until the process ends
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
            signal.signal(number, lambda *_: None)  # only one with a handler arrives
    return reader


def allow_descriptors(needed: int) -> int:
    """Raises the limit on open files to what is needed, or as far as it can be; returns that."""
    with suppress(ImportError, OSError, ValueError):  # Windows has neither limit nor module
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < needed:  # an infinite limit is -1, or very large
            needed, wanted = soft, needed if hard < 0 else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            needed = wanted
    return needed


# --- The command line ----------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options. Wrong ones end the process with status 2."""
    about = "The TCP echo service of RFC 862: sends back whatever a client sends."
    example = "example: python3 echo_server.py --host :: -v (then: telnet HOST 7007)"
    parser = argparse.ArgumentParser(description=about, epilog=example, allow_abbrev=False)
    add = parser.add_argument
    host = "listen on this name or address (repeatable); :: is every interface, IPv4 too"
    add("--host", action="append", help=f"{host} (default: localhost)")
    add("--port", type=int, default=PORT, help="0 takes a free one (default: %(default)s)")
    most = "serve at most this many (default: %(default)s)"
    add("--max-clients", type=int, default=min(10_000, MOST_CLIENTS), help=most)
    add("-v", "--verbose", action="store_true", help="log each message too")
    add("--version", action="version", version=f"%(prog)s {VERSION}")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f"{args.port} is not a port; ports are 0 to 65535")
    if not 0 < args.max_clients <= MOST_CLIENTS:
        parser.error(f"--max-clients must be 1 to {MOST_CLIENTS}")
    args.host = [host.strip("[]") for host in args.host or ["localhost"]]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the server. Ends the process with status 1 if that fails."""
    args = parse_args(argv)
    open_log(args.verbose)
    try:
        allow_descriptors(args.max_clients + 32)  # and the listeners, files
        listeners = open_listeners(args.host, args.port)
        signals = ending_signals()  # before anybody is told that there is a server
        names = [listener.getsockname() for listener in listeners]
        who = "whoever can reach this machine can connect"
        if all(name[0] == "::1" or name[0].startswith("127.") for name in names):
            who = "only this machine can connect; --host :: lets the network in"
        log.info("listening on %s; %s", " and ".join(map(format_address, names)), who)
        if (host := args.host[0]) in ("*", *EVERY_INTERFACE):  # the address that leads to the world
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                failed = sock.connect_ex(("192.0.2.1", 9))  # is nobody's (RFC 5737); sends nothing
                host = socket.gethostname() if failed else sock.getsockname()[0]
        log.info("try it: telnet %s %d", host, names[0][1])
        EchoServer(listeners, args.max_clients).run(signals)
        log.info("stopped by %s", signal.Signals(signals.recv(1)[0]).name)
        signals.detach()  # stays open, as another signal may come
    except (Failure, OSError) as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {error}")
    except KeyboardInterrupt:  # before the loop took over the signals
        pass


if __name__ == "__main__":
    open_standard_streams()
    main()
