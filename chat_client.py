#!/usr/bin/env python3
"""The terminal client for chat rooms and echo servers, and for any other relay of lines.

    python chat_client.py                     chat on this machine, port 7007
    python chat_client.py HOST 7007           chat elsewhere
    python chat_client.py --echo              talk to an echo server: send, receive, send, ...
    printf 'John\\nHi\\nexit\\n' | python chat_client.py

It asks for a name and puts it before each message, "John: Hi". quit, exit and the end of input
leave. In one of our rooms, which begin with a welcome line, it makes the name known there too, and
lines with a slash are commands: /help lists them.

One thread, one selectors loop around standard input, standard output and a non-blocking socket.
Standard library only, Python 3.8 or later. Copy this file anywhere and run it.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import selectors
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Callable, Sequence

VERSION = "1.0"

HOST = "localhost"
PORT = 7007
CONNECT_TIMEOUT = 10.0  # seconds for each address of a host
PATIENCE = 1.0  # seconds to wait for a welcome or an answer that may never come
LINGER = 2.0  # seconds for the server to close after the user has left
RECEIVE_SIZE = 64 * 1024  # bytes received at once
MAX_LINE = 64 * 1024  # bytes; a longer line is left out
MAX_WAITING = 256 * 1024  # bytes that wait for a slow reader before we stop reading the other side

WELCOME = "Welcome to the chatroom!"
YOU_ARE = "* you are "
IS_TAKEN = " is taken"
MAX_NAME = 32  # characters that a room allows
LEAVE = ("quit", "exit", "/quit")
TOO_LONG = f"* (a line of over {MAX_LINE} bytes was left out)"

# On Windows select() takes nothing but sockets.
ONLY_SOCKETS = os.name == "nt"


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
            end = data.find(b"\n") + 1
            if not end:
                return b"", 0
            self.skipping = False
            data = data[end:]
        if self.partial:
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


# --- What is said and shown ----------------------------------------------------------------------

# Escape sequences as a whole (ECMA-48: CSI, the strings of OSC and its kin, the short ones); and what
# else is no text: control characters but the tab, and the marks that turn the direction of what is
# behind them (UAX #9), with which a line can be made to read as another.
ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
NO_TEXT = dict.fromkeys(
    [*range(9), *range(10, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)


def terminal_text(line: bytes) -> str:
    """Returns the text of a line that came from elsewhere, fit for a terminal: nothing in it can do
    more there than be read. Broken UTF-8 becomes U+FFFD."""
    return ESCAPE.sub("", line.decode("utf-8", "replace")).translate(NO_TEXT)


class Chat:
    """One's part in a chat: what goes out for what is typed, what is shown for what comes in.

    It talks to any line relay by putting the name before each message. If it is one of our rooms,
    which the first line shows, it makes the name known there as well, and commands are possible.
    """

    prompt = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outgoing = bytearray()  # lines to send, each with its LF
        self.shown: list[str] = []  # lines to show
        self.ready = False  # for what is typed: the room has to know the name first
        self.in_room = False
        self.asked = ""  # the name that we asked the room for, until it answers

    def heard(self, line: str) -> None:
        """Takes a line from the other side, clean and without its newline."""
        if not self.in_room and not self.ready and line == WELCOME:
            self.in_room = True
            self.ask(self.name)
        elif self.in_room and line.startswith(YOU_ARE):
            self.name = line[len(YOU_ARE) :]
            self.ready = True
            if self.asked:
                self.asked = ""
                return  # the user knows
        elif self.in_room and line.startswith("* ") and line.endswith(IS_TAKEN):
            self.ready = True
            if self.asked:
                self.ask(self.asked[: MAX_NAME - 1] + "_")
        elif not self.in_room and not line.startswith("* "):
            self.ready = True  # a relay that is no room of ours; a room that is full says so with *
        self.shown.append(line)

    def ask(self, name: str) -> None:
        self.asked = name
        self.ready = False
        self.outgoing += f"/name {name}\n".encode()

    def typed(self, line: str) -> None:
        """Takes a line from the user, without its newline."""
        if not line.strip():
            return
        command = self.in_room and line.startswith("/")
        if command and not line.startswith("//"):
            self.outgoing += f"{line}\n".encode()
            self.ready = not line.startswith("/name")  # the next message begins with the new name
            return
        message = f"{self.name}: {line[1:] if command else line}"
        self.outgoing += f"{message}\n".encode()
        self.shown.append(message)


class Echo:
    """One's part in a talk with an echo server: a line goes out, an answer comes, then the next."""

    prompt = "send: "

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self.shown: list[str] = []
        self.ready = True

    def heard(self, line: str) -> None:
        self.shown.append(f"recv: {line}")
        self.ready = True

    def typed(self, line: str) -> None:
        self.outgoing += f"{line}\n".encode()
        self.ready = False


# --- The console ---------------------------------------------------------------------------------


class Failure(Exception):
    """The client can't go on; the text says why."""


class Console:
    """Standard input and output: lines that were typed, text that waits to be written."""

    def __init__(self) -> None:
        if sys.stdout is None:  # closed: a socket would get its descriptor
            raise Failure("standard output is closed")
        if sys.stdin is None:  # as well: this opens descriptor 0, the lowest that is free
            os.open(os.devnull, os.O_RDONLY)
        self.input = open_input()
        self.is_terminal = os.isatty(0)
        self.ended = False
        self.framer = LineFramer(MAX_LINE)
        self.typed: deque[str] = deque()
        self.output = bytearray()
        self.at_prompt = False

    def read(self, _: int) -> None:
        """Receives what was typed."""
        try:
            if isinstance(self.input, socket.socket):
                data = self.input.recv(RECEIVE_SIZE)
            else:
                data = os.read(self.input, RECEIVE_SIZE)
        except OSError:  # the terminal is gone
            data = b""
        chunk, too_long = self.framer.feed(data)
        if not data:
            self.ended = True
            chunk = self.framer.finish()
        self.typed.extend(terminal_text(line) for line in chunk.split(b"\n")[:-1])
        if too_long:
            self.show(TOO_LONG)

    def write(self, _: int = 0) -> None:
        """Writes what standard output takes. Raises Failure if nobody will ever read it."""
        # A pipe that is ready takes this much without blocking (POSIX: PIPE_BUF).
        size = len(self.output) if ONLY_SOCKETS else select.PIPE_BUF
        try:
            del self.output[: os.write(1, self.output[:size])]
        except BlockingIOError:
            pass
        except OSError:
            self.output.clear()
            raise Failure("standard output is closed") from None

    def show(self, line: str) -> None:
        """Puts out a line of text."""
        self.end_line()
        self.output += f"{line}\n".encode()

    def end_line(self) -> None:
        """Ends a line that so far is a prompt."""
        if self.at_prompt:
            self.output += b"\n"
        self.at_prompt = False

    def prompt(self, prompt: str) -> None:
        """Invites the user to type, if that isn't done yet."""
        if prompt and not self.at_prompt:
            self.output += prompt.encode()
            self.at_prompt = True

    def take(self) -> str:
        """Returns the next line that was typed."""
        line = self.typed.popleft()
        if self.at_prompt and not self.is_terminal:  # what a terminal has shown already
            self.output += f"{line}\n".encode()
        self.at_prompt = False
        return line


def open_input() -> int | socket.socket:
    """Returns what to wait at and read from for standard input: its descriptor, or, where only
    sockets can be waited for, a socket that a thread feeds."""
    if not ONLY_SOCKETS:
        return 0
    ours, feeder = socket.socketpair()
    threading.Thread(target=feed, args=(feeder,), daemon=True).start()
    return ours


def feed(feeder: socket.socket) -> None:
    """Passes standard input on until it ends."""
    stdin: Any = sys.stdin.buffer
    with feeder, suppress(OSError):
        # From the raw file: a buffered one is locked by the reader, also when the process ends.
        for data in iter(lambda: stdin.raw.read(RECEIVE_SIZE), b""):
            feeder.sendall(data)


# --- The client ----------------------------------------------------------------------------------


class Client:
    """Moves lines between the console, a talk and the server.

    What it waits for follows from the state and is set anew in each turn of the loop. A side whose
    counterpart is slow is not read from, so that little is held in between.
    """

    def __init__(self, console: Console) -> None:
        # select(), not epoll: it also takes regular files and /dev/null as standard input, which
        # epoll refuses (EPERM), and three descriptors are no load for it.
        self.selector = selectors.SelectSelector()
        self.console = console
        self.sock: socket.socket | None = None
        self.framer = LineFramer(MAX_LINE)
        self.lost = ""  # why the connection ended, once it has
        self.talk: Chat | Echo | None = None
        self.leaving = False  # the user wants to go
        self.goodbye = False  # and we have told the server
        self.deadline: float | None = None  # monotonic time at which we stop waiting for it

    # The loop

    def turn(self, deadline: float | None = None) -> None:
        """Waits until something can be moved, or for the deadline, and moves it."""
        console = self.console
        want_input = not console.ended and not console.typed
        self.watch(console.input, selectors.EVENT_READ if want_input else 0, console.read)
        if not ONLY_SOCKETS:
            self.watch(1, selectors.EVENT_WRITE if console.output else 0, console.write)
        elif console.output:
            console.write()
        if self.sock and self.talk:
            want_more = len(console.output) < MAX_WAITING
            events = selectors.EVENT_READ if want_more else 0
            events |= selectors.EVENT_WRITE if self.talk.outgoing else 0
            self.watch(self.sock, events, self.serve)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        for key, events in self.selector.select(timeout):
            key.data(events)

    def watch(self, file: int | socket.socket, events: int, handler: Callable[[int], None]) -> None:
        """Has the selector wait for exactly these events."""
        key = self.selector.get_map().get(file)
        if key and key.events != events:
            self.selector.unregister(file)
            key = None
        if events and not key:
            self.selector.register(file, events, handler)

    # The story

    def ask(self, prompt: str) -> str | None:
        """Returns the user's answer without the spaces around it, None at the end of input."""
        answer = ""
        while not answer:
            self.console.prompt(prompt)
            while not self.console.typed and not self.console.ended:
                self.turn()
            if not self.console.typed:
                return None
            answer = self.console.take().strip()
        return answer

    def connect(self, host: str, port: int) -> None:
        """Connects to the first address of the host that answers. Raises Failure."""
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # UnicodeError: a name that no host can have
            raise Failure(f"host {host} is unknown") from None
        code = 0
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            code = self.finish_connecting(sock, address)
            if not code:
                self.sock = sock
                return
            sock.close()
        raise Failure(f"cannot connect to port {port} on {host}: {why_not_connected(code)}")

    def finish_connecting(self, sock: socket.socket, address: Any) -> int:
        """Connects; returns the error number of how it ended, 0 for success."""
        code = sock.connect_ex(address)
        if code not in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            return code
        ready: list[int] = []
        deadline = time.monotonic() + CONNECT_TIMEOUT
        self.watch(sock, selectors.EVENT_WRITE, ready.append)
        while not ready and time.monotonic() < deadline:
            self.turn(deadline)
        self.watch(sock, 0, ready.append)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if ready else errno.ETIMEDOUT

    def converse(self, talk: Chat | Echo) -> None:
        """Talks until the user leaves. Raises Failure if the server closes before that."""
        self.talk = talk
        self.be_patient()
        while not self.lost:
            self.forward_typed(talk)
            if self.has_said_all(talk) and not self.goodbye:
                self.say_goodbye()
            self.turn(self.deadline)
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.deadline = None
                if self.goodbye:
                    break
                talk.ready = True  # it may never answer, so go on without
        self.show(talk)
        if not self.goodbye:
            raise Failure(f"lost the connection: {self.lost}")

    def be_patient(self) -> None:
        """Gives the other side time for an answer, from now on."""
        self.deadline = time.monotonic() + PATIENCE

    def forward_typed(self, talk: Chat | Echo) -> None:
        """Lets the talk have the lines that were typed, as long as it wants more."""
        while talk.ready and not self.leaving and len(talk.outgoing) < MAX_WAITING:
            self.console.prompt(talk.prompt)
            if not self.console.typed:
                self.leaving = self.console.ended and self.console.is_terminal  # Ctrl-D
                break
            line = self.console.take()
            if line.strip() in LEAVE:
                self.leaving = True
            else:
                talk.typed(line)
                self.be_patient()
                self.show(talk)

    def has_said_all(self, talk: Chat | Echo) -> bool:
        ended = self.leaving or (self.console.ended and not self.console.typed)
        return ended and talk.ready and not talk.outgoing

    def say_goodbye(self) -> None:
        """Ends our direction of the stream. The server then sends what is left and closes.

        To close ourselves, with input unread, would reset the connection, and a reset destroys what
        is still on its way.
        """
        self.goodbye = True
        self.deadline = time.monotonic() + LINGER if self.leaving else None
        if self.sock:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def show(self, talk: Chat | Echo) -> None:
        for line in talk.shown:
            self.console.show(line)
        talk.shown.clear()

    def finish(self) -> None:
        """Hangs up, and writes what still waits to be written."""
        if self.sock:
            self.watch(self.sock, 0, self.serve)
            self.sock.close()
            self.sock = None
        self.console.end_line()
        self.console.ended = True
        while self.console.output:
            self.turn()

    # The socket

    def serve(self, events: int) -> None:
        """Receives and sends once, as the socket is ready for it."""
        assert self.sock and self.talk
        try:
            if events & selectors.EVENT_READ:
                self.receive(self.sock.recv(RECEIVE_SIZE), self.talk)
            if events & selectors.EVENT_WRITE and not self.lost:
                del self.talk.outgoing[: self.sock.send(self.talk.outgoing)]
        except BlockingIOError:  # readiness is a hint, not a promise
            pass
        except OSError as error:
            self.lost = error.strerror or str(error)

    def receive(self, data: bytes, talk: Chat | Echo) -> None:
        chunk, too_long = self.framer.feed(data)
        if not data:
            self.lost = "the server closed it"
            chunk = self.framer.finish()
        for line in chunk.split(b"\n")[:-1]:
            talk.heard(terminal_text(line))
        if too_long:
            talk.shown.append(TOO_LONG)
        if not talk.ready:
            self.be_patient()
        self.show(talk)


def why_not_connected(code: int) -> str:
    """Returns what to tell the user for an error number of connect()."""
    if code in (errno.ECONNREFUSED, 10061):  # the latter on Windows
        return "nobody listens there; start a room with: python chat_server.py"
    if code in (errno.ETIMEDOUT, 10060):
        return "no answer"
    return os.strerror(code)


# --- The command line ----------------------------------------------------------------------------


def port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; those go from 0 to 65535")
    return int(text)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The terminal client for chat rooms and echo servers.",
        epilog="example: python chat_client.py 192.0.2.7 --name John     (quit or exit leaves)",
    )
    parser.add_argument("host", nargs="?", default=HOST, help="(default: %(default)s)")
    parser.add_argument(
        "port", nargs="?", type=port_number, default=PORT, help="(default: %(default)s)"
    )
    parser.add_argument("--name", help="be known as NAME (default: ask)")
    parser.add_argument("--echo", action="store_true", help="talk to an echo server")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    args = parser.parse_args(argv)
    args.prog = parser.prog
    return args


def run(client: Client, args: argparse.Namespace) -> None:
    """Asks, connects, talks. Raises Failure."""
    talk: Chat | Echo = Echo()
    if not args.echo:
        name = (args.name or "").strip() or client.ask("name: ")
        if name is None:
            return
        talk = Chat(name)
    client.connect(args.host, args.port)
    client.converse(talk)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the client; returns the exit status: 0 for a clean end, 1 for a failure."""
    args = parse_args(argv)
    failure = ""
    try:
        client = Client(Console())
        try:
            run(client, args)
        except Failure as error:
            failure = str(error)
        client.finish()
    except Failure as error:
        failure = str(error)
    except KeyboardInterrupt:
        sys.stderr.write("\n")  # the terminal has shown ^C
    if failure:
        print(f"{args.prog}: {failure}", file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
