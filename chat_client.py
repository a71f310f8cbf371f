#!/usr/bin/env python3
"""The terminal client for chat rooms and echo servers, and for any other relay of lines.

    python3 chat_client.py                    chat on this machine, port 7007
    python3 chat_client.py HOST 7007          chat elsewhere
    python3 chat_client.py HOST --tls         chat in a closed room
    python3 chat_client.py --echo             talk to an echo server: send, receive, send, ...
    printf 'John\\nHi\\nexit\\n' | python3 chat_client.py

It asks for a name and puts it before each message, "John: Hi". quit, exit and the end of input
leave. In one of our rooms, which begin with a welcome line, it makes the name known there too, and
lines with a slash are commands: /help lists them.

On a terminal it has a line editor, and what arrives appears above the line that is being typed; in
a pipe it reads and writes plain lines.

A Client outlives its connections; each of them is a Session, which lasts until either side ends it.
What the lines in it mean is a Protocol's business, which has no I/O. What the user types and sees
is a Console's: a PlainConsole, or a Terminal with its Editor, which has no I/O either.

One thread, one selectors loop around standard input, standard output and a non-blocking socket;
only a host's name is looked up in a thread of its own, as nobody can wait for that in a loop.
Standard library only, Python 3.8 or later. Copy this file anywhere and run it.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the rest is being imported

import argparse
import enum
import errno
import io
import os
import random
import re
import select
import selectors
import socket
import sys
import threading
import time
import unicodedata
from abc import ABC, abstractmethod
from codecs import BOM_UTF8, getincrementaldecoder
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from functools import lru_cache, partial
from itertools import takewhile
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, Callable, NamedTuple

try:
    import ssl
except ImportError:  # a Python built without OpenSSL can do everything but TLS
    ssl = None  # type: ignore[assignment]
try:
    import fcntl
    import termios
    import tty
except ImportError:  # on Windows, and in a Python of the bare minimum, such as python3-minimal
    fcntl = termios = None  # type: ignore[assignment]
try:
    import getpass
except ImportError:
    getpass = None  # type: ignore[assignment]

VERSION = "1.0"

HOST = "localhost"
PORT = 7007
CONNECT_TIME = 10.0  # seconds for each address of a host, and for a TLS handshake
QUESTION_TIME = 5.0  # seconds to wait for a question when we have a password to give
ANSWER_TIME = 0.5  # seconds at least to wait for a welcome or an answer that may never come
ANSWER_FACTOR = 4  # times as long as it took to connect, if that is more
UNFINISHED_TIME = 0.5  # seconds to wait for the rest of a line that isn't a room's
LINGER = 1.0  # seconds for the server to close after the user has left
BELL_PAUSE = 5.0  # seconds from one bell to the next, at least
MEASURE_TIME = 0.3  # seconds for the terminal to say where the cursor is
PASTE_SILENCE = 1.0  # seconds after which what is being pasted has come to its end
NEVER = float("inf")  # a deadline that isn't set
RECEIVE_SIZE = 64 * 1024  # bytes received at once
MAX_LINE = 64 * 1024  # bytes; a longer line is left out
MAX_WAITING = 64 * 1024  # bytes that wait for a slow reader before we stop reading the other side
MAX_RECALLED = 1000  # lines that Up goes back to
MAX_UNDONE = 100  # changes of a line that can be taken back
MAX_UNASKED = 20  # lines that go out without a question
MAX_DRAWN = 1024  # characters above the row that go to the terminal at once, if that's not one line
MAX_NAMES = 1000  # names that Tab completes
MAX_NOTED = 20  # lines that wait to be sent and are shown one by one
MAX_DOUBTED = 10_000  # lines that we remember as long as they may not have arrived
READ_TIME = 5.0  # seconds after which a server that still speaks has read what was sent
SETTLE_TIME = 30.0  # seconds after which a connection is taken for one that lasts
RETRY_DELAYS = (1, 30)  # seconds until the next try to connect again: doubled from the first on

# The connection gets these, as far as the system has them: a network that is gone is then noticed
# after two minutes, in silence (keepalive) or after words (TCP_USER_TIMEOUT, RFC 5482).
SOCKET_OPTIONS = [
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),  # seconds of silence before the first question
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 60),  # the same on macOS
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),  # seconds between questions
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),  # questions without an answer
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 120_000),  # milliseconds
    )
    if hasattr(socket, name)
]

SIOCOUTQ = 0x5411 if sys.platform == "linux" else 0  # bytes that the peer has yet to acknowledge

WELCOME = "Welcome to the chatroom!"
CLOSING = "* the room is closing"  # and has heard what had arrived
YOU_ARE_OUT = re.compile(r"\* you were removed by an operator; come back in \d+ min")
PASSWORD_QUESTION = "* password?"
WRONG_PASSWORD = "* wrong password"
FIRST_WORDS = (WELCOME, PASSWORD_QUESTION, WRONG_PASSWORD)  # of a room, to somebody outside
BAD_NAME = re.compile(r"\* (a name .*): /name NAME")  # no name has a colon to look like it with
PRIVATE = " (private)"
# What a room says of its members, and the words that make it ambiguous if a name has them.
NEWS = re.compile(r"\* (.+?) (joined|left|was removed|is now (.+))")
HERE = re.compile(r"\* here: (?:\d+ unnamed|(.+?)(?: and \d+ unnamed)?)")
ROOM_WORDS = re.compile(
    r",|(?<!\S)(?:and|joined|left|is now|was removed|more|unnamed|you are|you were)(?!\S)"
)
MAX_NAME = 32  # characters that a room allows
MAX_MESSAGE = 8192  # bytes that a room allows, unless its owner wants more or less
OPERATOR = re.compile(r"\s*/op\s+", re.IGNORECASE)  # then comes a password
LEAVE = ("quit", "exit", "/quit", "/exit")
IN_DOUBT = "what you said last may not have arrived"
TOO_LONG = f"* (a line of over {MAX_LINE} bytes was left out)"
NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")  # OpenSSL's reasons
TLS_ALERT = b"\x15\x03"  # how a server that speaks TLS answers one who doesn't (RFC 8446, 5.1)

# The escape sequences that go to the terminal (ECMA-48, DEC's VT100, xterm), and what each does.
BOLD = "\x1b[1m"  # SGR: what follows is bold
DIM = "\x1b[2m"  # SGR: what follows is dim
COLOUR = "\x1b[38;5;{}m"  # SGR: what follows has one of the 256 colours
NORMAL = "\x1b[0m"  # SGR: what follows looks as usual
START_OF_ROW = "\r"
UP = "\x1b[{}A"  # CUU: up by this number of rows
CLEAR_ROW = "\r\x1b[K"  # EL: to the start of the row, all of which is cleared
CLEAR_REST = "\x1b[K"  # EL: clears from the cursor to the end of the row
CLEAR_BELOW = "\r\x1b[J"  # ED: to the start of the row, and clears it and all that is below
CLEAR_SCREEN = "\x1b[H\x1b[J"  # CUP, ED: to the top left, and clears everything
WRAP_OFF, WRAP_ON = "\x1b[?7l", "\x1b[?7h"  # DECAWM: a row that is too long doesn't wrap
WHERE_IS_CURSOR = "\x1b[6n"  # DSR: the terminal answers with ESC [ row ; column R
CURSOR_IS = re.compile(rb"\x1b\[\d+;(\d+)R")
SAVE_CURSOR = "\x1b7"  # DECSC: remembers where the cursor is
RESTORE_CURSOR = "\x1b8"  # DECRC: back there
PASTE_MODE_ON = "\x1b[?2004h"  # from now on the terminal marks what is pasted
PASTE_MODE_OFF = "\x1b[?2004l"
BELL = "\a"

# Of the 256 colours, those that can be read on black and on white.
COLOURS = (33, 37, 64, 71, 98, 130, 133, 136, 160, 166, 168, 172)

# On Windows select() takes nothing but sockets.
ONLY_SOCKETS = sys.platform == "win32"

# Not epoll, which takes no regular file as standard input (EPERM). select() takes none of the
# descriptors from 1024 on, which we may get if we inherit many, and on macOS poll() no terminal.
WITH_POLL = hasattr(selectors, "PollSelector") and sys.platform != "darwin"
Selector = selectors.PollSelector if WITH_POLL else selectors.SelectSelector

# The signals that would end us without giving the terminal back, as far as the system has them.
ENDING_SIGNALS = [
    getattr(signal, f"SIG{name}")
    for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "ALRM")
    if hasattr(signal, f"SIG{name}")
]


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


# --- What is said and shown ----------------------------------------------------------------------

# Escape sequences as a whole (ECMA-48: CSI, the strings of OSC and its kin, the short ones); and
# what else is no text: control characters but the tab, and the marks that turn the direction of
# what follows them (UAX #9), with which a line can be made to read as another.
ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
NO_TEXT = dict.fromkeys(
    [*range(9), *range(10, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)


def without_mark(start: bytes) -> bytes:
    """Returns the start of a text without the byte order mark that some programs put there."""
    return start[len(BOM_UTF8) :] if start.startswith(BOM_UTF8) else start


def only_text(text: str) -> str:
    """Returns a text without what isn't any, such as escape sequences as a whole."""
    return ESCAPE.sub("", text).translate(NO_TEXT)


def terminal_text(line: bytes) -> str:
    """Returns the text of a line that came from elsewhere, fit for a terminal: nothing in it can do
    more there than be read. Broken UTF-8 becomes U+FFFD."""
    return only_text(line.decode("utf-8", "replace"))


def masked(text: str) -> str:
    """Returns a line as it may be seen: without an operator's password, letter by letter."""
    command = OPERATOR.match(text)
    return text if not command else command[0] + "*" * (len(text) - command.end())


class Line(NamedTuple):
    """A line that was typed."""

    text: str
    alone: bool = True  # and not in a block of lines: that is said as it is, with no command in it

    @property
    def leaves(self) -> bool:
        """Says whether it is the wish to leave."""
        return self.alone and self.text.strip() in LEAVE

    @property
    def command(self) -> str:
        """The text from its slash on, if it begins with one, and not with the two of a message. A
        blank before a command makes no message of it."""
        text = self.text.lstrip()
        return text if text.startswith("/") and not text.startswith("//") else ""


def folded(name: str) -> str:
    """Returns what is the same for all ways to write a name that a room takes for the same."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def is_clear(name: str) -> bool:
    """Says whether a name in a notice can be believed: it has nothing in it with which the notice
    could be read in another way."""
    return 0 < len(name) <= MAX_NAME and not ROOM_WORDS.search(name)


class Protocol:
    """Our side of a conversation, without I/O: what goes out for what is typed, and what is shown
    for what comes in. It lasts as long as the connection."""

    prompts = False  # asks for each line with its prompt, also where that isn't shown anyway
    prompt = ""  # what the line that is being typed begins with on the screen
    name = ""  # the user's
    password = b""

    def __init__(self) -> None:
        self.outgoing = bytearray()  # lines to send, each with its LF
        self.to_show: list[str] = []  # lines
        self.awaits_answer = False  # and what is typed has to wait for it
        self.calls_user = False  # somebody has said the user's name, or something in private
        self.closing = False  # the other side has said farewell
        self.removed = False  # by an operator, who doesn't want us back
        self.names_came = False  # the names of those who are here have become known
        self.wrong_password = False
        self.asked_late = False  # for the password, so that what was said was taken for it
        self.command_refused = False  # as there was no room to do it
        self.turned_away = ""  # why there is no welcome, as far as we know
        self.name_refused = ""  # why the user isn't known by the name that was given

    @property
    def accepts_input(self) -> bool:
        """Says whether it can be told what was typed."""
        return not self.awaits_answer

    @property
    def wants_password(self) -> bool:
        """Says whether the user has to give a password now."""
        return False

    @property
    def welcomed(self) -> bool:
        """Says whether the other side is one of our rooms, and has let us in."""
        return False

    def stop_waiting(self) -> None:
        """Goes on as well as it can: the answer that it waits for may never come."""
        self.awaits_answer = False

    def hear(self, line: str) -> None:
        """Takes a line from the other side, clean and without its newline."""

    def submit(self, line: Line) -> None:
        """Takes a line from the user."""

    def give_password(self, password: bytes) -> None:
        """Takes what the user answered to `wants_password`."""

    def candidates(self, beginning: str) -> list[str]:
        """Returns the names that begin with a text, the likeliest first. May ask for more names."""
        return []


class EchoProtocol(Protocol):
    """A conversation with an echo server: a line goes out, an answer comes, then the next."""

    prompts = True
    prompt = "send: "

    def hear(self, line: str) -> None:
        self.to_show.append(f"recv: {line}")
        self.awaits_answer = False

    def submit(self, line: Line) -> None:
        self.outgoing += f"{line.text}\n".encode()
        self.awaits_answer = True


class Phase(enum.Enum):
    """How far a chat has come with its server, which is one of our rooms or another relay of lines.

                   welcome
    WAITING ------------------------> IN_ROOM
      |  |  password?          welcome   ^
      |  '--------------> AT_DOOR -------'
      | a message            | a message
      '----------------------'------> RELAY

    phase     what was heard        what is typed
    WAITING   nothing, or notices   waits, until the time for an answer is over; longer where a
                                    room has been
    AT_DOOR   password?             waits: it would be taken for the password
    IN_ROOM   the welcome           waits while a name is requested; may be a command
    RELAY     what somebody said    goes out

    A command goes out in a room alone. Elsewhere it would be said to everyone, so it is refused.
    """

    WAITING = enum.auto()
    AT_DOOR = enum.auto()
    IN_ROOM = enum.auto()
    RELAY = enum.auto()


class ChatProtocol(Protocol):
    """A chat. It works with any line relay, by putting the name before each message. In one of our
    rooms, which the first line shows, it makes the name known as well, and there are commands."""

    def __init__(
        self,
        name: str,
        password: bytes = b"",
        ignored: dict[str, str] | None = None,
        expects_welcome: bool = False,
    ) -> None:
        super().__init__()
        self.phase = Phase.WAITING
        self.expects_welcome = expects_welcome  # so nothing is said to whoever gives none
        self.awaits_answer = True  # the room has to know the name first
        self.wanted = name  # even while somebody else has it
        self.set_name(name)
        self.password = password
        self.ignored = {} if ignored is None else ignored  # names, by what folded() makes of them
        self.requested = ""  # a name that the room was asked for, until it answers
        self.requested_by_user = False
        self.spoke_outside = False  # something was said before a welcome
        self.names: dict[str, None] = {}  # that were seen here, the latest last
        self.asked_names = self.hides_names = False  # has asked who is here; has no answer yet

    @property
    def accepts_input(self) -> bool:
        return not self.awaits_answer and self.phase is not Phase.AT_DOOR

    @property
    def wants_password(self) -> bool:
        return self.phase is Phase.AT_DOOR and not self.password

    @property
    def welcomed(self) -> bool:
        return self.phase is Phase.IN_ROOM

    def stop_waiting(self) -> None:
        if not (self.expects_welcome and self.phase is Phase.WAITING):
            self.awaits_answer = False

    def set_name(self, name: str) -> None:
        """Puts this name before each message from now on."""
        self.name = name
        self.prompt = f"{name}: "
        self.mention = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)

    # From the other side

    def hear(self, line: str) -> None:
        outside = self.phase in (Phase.WAITING, Phase.AT_DOOR)
        if outside and line == WELCOME:
            self.enter_room()
        elif self.phase is Phase.WAITING and line == PASSWORD_QUESTION:
            self.phase = Phase.AT_DOOR
            self.turned_away = "the room waits no longer for the password"
            self.asked_late = self.spoke_outside
            if self.asked_late:
                self.turned_away = "the room asked late for its password; nothing was said yet"
            elif self.password:
                self.give_password(self.password)
        elif self.phase is Phase.AT_DOOR and line == WRONG_PASSWORD:
            self.wrong_password = True
        elif not line.startswith("* "):
            self.hear_message(line)
        elif self.phase is Phase.IN_ROOM:
            self.hear_room(line)
        else:
            # In place of a welcome it is a reason: the room is full, or speaks TLS.
            self.turned_away = line[2:] if outside else ""
            self.to_show.append(line)

    def enter_room(self) -> None:
        """We are in one of our rooms, which has to be told the name."""
        self.phase = Phase.IN_ROOM
        self.turned_away = ""
        self.to_show.append(WELCOME)
        self.request_name(self.name)

    def hear_message(self, line: str) -> None:
        """Shows what somebody said, and learns from it who is there."""
        if self.phase is not Phase.IN_ROOM:  # some other relay: there is no answer to wait for
            self.phase = Phase.RELAY
            self.turned_away = ""
            self.awaits_answer = False
        speaker, colon, text = line.partition(": ")
        name = speaker.replace(PRIVATE, "") if colon else ""
        if folded(name) in self.ignored:
            return
        self.remember(name)
        private = speaker.endswith(PRIVATE) and bool(colon)
        mentioned = bool(self.mention.search(text if colon else line))
        self.calls_user = self.calls_user or private or mentioned
        self.to_show.append(line)

    def hear_room(self, line: str) -> None:
        """Follows what the room itself says, and shows it."""
        name = unicodedata.normalize("NFKC", self.requested).strip()
        bad = BAD_NAME.fullmatch(line)
        self.closing = self.closing or line == CLOSING
        self.removed = self.removed or bool(YOU_ARE_OUT.fullmatch(line))
        news, here = NEWS.fullmatch(line), HERE.fullmatch(line)
        if self.requested and line == f"* you are {name}":
            self.set_name(name)
            self.end_request()
            if not self.requested_by_user:  # then the user knows
                return
            self.wanted = name
        elif self.requested and line == f"* {name} is taken":
            self.hear_refusal(line[2:], name[: MAX_NAME - 1] + "_")
        elif self.requested and bad:
            self.hear_refusal(bad[1])
        elif news:
            self.hear_news(news[1], news[2], news[3] or "")
        elif here and self.hear_names(here[1] or ""):
            return
        self.to_show.append(line)

    def hear_news(self, name: str, what: str, now: str) -> None:
        """Learns what became of a member, if that can be read in one way alone."""
        if not is_clear(name) or (now and not is_clear(now)):
            return
        if what == "joined":
            self.remember(name)
        elif what == "was removed":  # its name isn't free
            self.names.pop(name, None)
        else:
            self.hear_gone(name, now)

    def hear_gone(self, name: str, now: str) -> None:
        """Nobody has this name any more; takes it, if it is the one that the user wants."""
        self.names.pop(name, None)
        self.remember(now)
        if now and folded(name) in self.ignored:
            self.ignored[folded(now)] = now
        taken = folded(self.wanted) not in (folded(self.name), folded(now))
        if taken and folded(name) == folded(self.wanted) and not self.requested:
            self.request_name(self.wanted, by_user=True)

    def hear_names(self, names: str) -> bool:
        """Learns who is here; says whether it was us who asked, and not the user."""
        known = filter(is_clear, names.split(", "))
        for name in [*known, *self.names]:  # whoever has said something is likelier to be meant
            self.remember(name)
        hidden, self.hides_names = self.hides_names, False
        self.names_came = self.names_came or hidden
        return hidden

    def hear_refusal(self, why: str, another: str = "") -> None:
        """The room doesn't let us have the requested name; tries another, if there is one."""
        refused, by_user = self.requested, self.requested_by_user
        self.end_request()
        if by_user:
            return
        if another not in ("", refused):
            self.request_name(another)
        else:
            self.name_refused = why

    def remember(self, name: str) -> None:
        """Remembers somebody who is there."""
        if 0 < len(name) <= MAX_NAME and name != self.name:
            self.names.pop(name, None)
            self.names[name] = None
            if len(self.names) > MAX_NAMES:
                del self.names[next(iter(self.names))]

    def candidates(self, beginning: str) -> list[str]:
        if self.phase is Phase.IN_ROOM and not self.asked_names:
            self.asked_names = self.hides_names = True
            self.outgoing += b"/who\n"
        start = beginning.casefold()
        return [name for name in reversed(self.names) if name.casefold().startswith(start)]

    # To the other side

    def request_name(self, name: str, by_user: bool = False) -> None:
        """Asks the room for a name. What is typed waits for the answer."""
        assert self.phase is Phase.IN_ROOM
        self.requested, self.requested_by_user = name, by_user
        self.awaits_answer = True
        self.outgoing += f"/name {name}\n".encode()

    def end_request(self) -> None:
        """The room has answered, so what was typed can go out."""
        self.requested = ""
        self.awaits_answer = False

    def give_password(self, password: bytes) -> None:
        assert self.phase is Phase.AT_DOOR
        self.password = password = without_mark(password)
        self.turned_away = "the room didn't answer the password"
        self.outgoing += password + b"\n"

    def submit(self, line: Line) -> None:
        assert self.accepts_input
        if line.command and not self.welcomed:
            self.command_refused = True
            why = "no chat room has answered; //TEXT says /TEXT"
            self.to_show.append(f"* not sent: {masked(line.command)} ({why})")
        elif line.command and line.alone:
            self.submit_command(line.command)
        elif line.alone and line.text.lstrip().startswith("//"):
            self.say(line.text.lstrip()[1:])
        elif line.text.strip():
            self.say(line.text)

    def say(self, text: str) -> None:
        """Says a message."""
        message = f"{self.name}: {text}"
        size = len(message.encode())
        if self.welcomed and size > MAX_MESSAGE:
            self.to_show.append(f"* not said: a line of {size} bytes; a room takes {MAX_MESSAGE}")
            return
        self.spoke_outside = self.spoke_outside or not self.welcomed
        self.outgoing += f"{message}\n".encode()
        self.to_show.append(message)

    def submit_command(self, line: str) -> None:
        """Does a command, or passes it on to the room."""
        word, _, argument = line.partition(" ")
        if word in ("/name", "/nick") and argument.strip():
            self.request_name(argument.strip(), by_user=True)
        elif word == "/ignore":
            self.ignore(argument.strip())
        else:
            self.outgoing += f"{line}\n".encode()
        if word == "/help":
            self.to_show.append("* /ignore NAME: hide what NAME says, or show it again")

    def ignore(self, name: str) -> None:
        """Hides what somebody says, or shows it again; without a name, tells who is hidden."""
        if not name:
            names = ", ".join(self.ignored.values())
            self.to_show.append(f"* ignored: {names or 'nobody'}")
        elif self.ignored.pop(folded(name), None):
            self.to_show.append(f"* what {name} says is shown again")
        else:
            self.ignored[folded(name)] = name
            self.to_show.append(f"* what {name} says is hidden; /ignore {name} shows it again")


# --- Characters, words, columns ------------------------------------------------------------------

JOINER = "\u200d"
WIDE_VARIANT = "\ufe0f"  # makes an emoji of the character before it
SKIN_TONES = range(0x1F3FB, 0x1F400)
FLAG_LETTERS = range(0x1F1E6, 0x1F200)  # two of them are a flag
# Not \W, as marks are no letters, and have to stay with theirs.
NO_WORD = r"\s!-/:-@\[-^`{-~\u2010-\u206f\u3000-\u303f\uff00-\uff0f"
WORD = re.compile(f"[{NO_WORD}]*[^{NO_WORD}]*")  # with what is before it
INDENT = "  "  # before the rows of a message after the first
MIN_COLUMNS = 20  # in a narrower window the rows wrap by themselves


@lru_cache(4096)
def char_width(char: str) -> int:
    """Returns how many columns a character takes at most. Terminals differ; see Editor.view."""
    category = unicodedata.category(char)
    if category in ("Mn", "Me") or char == JOINER:  # combining marks
        return 1 if char == WIDE_VARIANT else 0
    unknown = category in ("Cn", "Co")  # a newer Unicode's, or private: nobody knows how wide
    return 2 if unknown or unicodedata.east_asian_width(char) in "WF" else 1


def text_width(text: str) -> int:
    """Returns how many columns a text takes at most."""
    return sum(map(char_width, text))


def joins(text: str, at: int) -> bool:
    """Says whether the character there forms one visible character with the one before it."""
    char = text[at]
    if ord(char) in FLAG_LETTERS:
        first = at
        while first and ord(text[first - 1]) in FLAG_LETTERS:
            first -= 1
        return (at - first) % 2 == 1
    attached = unicodedata.category(char) in ("Mn", "Me", "Mc", "Cf") or ord(char) in SKIN_TONES
    return attached or text[at - 1] == JOINER


def in_rows(text: str, columns: int) -> str:
    """Cuts a text into rows of at most this width, at blanks if there are any. Those after the
    first are indented, so that none can pass for another message."""
    if text.isascii() and len(text) <= columns:
        return text
    rows: list[str] = []
    while True:
        row = fitting_start(text, columns)
        if len(row) == len(text):
            return "\n".join([*rows, text])
        blank = row.rfind(" ", len(row) // 2)
        row = row[: blank + 1] if blank > 0 else row
        rows.append(row)
        text = INDENT + text[len(row) :]


def fitting_start(text: str, columns: int) -> str:
    """Returns as much of the beginning of a text as fits into `columns`."""
    for index, char in enumerate(text):
        columns -= char_width(char)
        if columns < 0:
            return text[:index]
    return text


def fitting_end(text: str, columns: int) -> str:
    """Returns as much of the end of a text as fits into `columns`."""
    start = len(text)
    for index in range(len(text) - 1, -1, -1):
        columns -= char_width(text[index])
        if columns < 0:
            break
        if index == 0 or not joins(text, index):
            start = index
    return text[start:]


# A motion takes a text and a place in it, an index, and returns the place where it leads.
Motion = Callable[[str, int], int]


def line_start(text: str, place: int) -> int:
    """Leads to the start of the line."""
    return 0


def line_end(text: str, place: int) -> int:
    """Leads to the end of the line."""
    return len(text)


def char_left(text: str, place: int) -> int:
    """Leads to where the visible character before a place begins."""
    starts = (at for at in range(place - 1, 0, -1) if not joins(text, at))
    return next(starts, 0)


def char_right(text: str, place: int) -> int:
    """Leads to where the visible character at a place ends."""
    ends = (at for at in range(place + 1, len(text)) if not joins(text, at))
    return next(ends, len(text))


def word_left(text: str, place: int) -> int:
    """Leads to where the word before a place begins."""
    return place - word_right(text[:place][::-1], 0)


def word_right(text: str, place: int) -> int:
    """Leads to where the word after a place ends."""
    word = WORD.match(text, place)
    return word.end() if word else place


# --- The line editor -----------------------------------------------------------------------------

PASTE_START, PASTE_END = "\x1b[200~", "\x1b[201~"  # what the terminal puts around what is pasted
# One key: an escape sequence, Alt and a character, or a character; and one that isn't complete yet.
KEY = re.compile(
    r"\x1b\[\[.|\x1b{1,2}\[[0-?]*[ -/]*[@-~]|\x1b{1,2}O[@-~]"
    r"|\x1b[^\x00-\x07\x09\x0b\x0c\x0e-\x1f\[O]"
    r"|(?s:.)"
)
UNFINISHED_KEY = re.compile(r"\x1b+(?:\[\[?[0-?]*[ -/]*|O)?")
MARKS = {ord("\n"): "\u21b5", ord("\t"): " "}  # how a newline or a tab is shown in the line
HIDDEN_LEFT, HIDDEN_RIGHT = "<", ">"  # where the row doesn't show all of the line


Action = Callable[[Any], object]  # on an editor


class Request(enum.Enum):
    """What the user asks for with a key that isn't the line's business."""

    INTERRUPT = enum.auto()
    END_OF_INPUT = enum.auto()
    SUSPEND = enum.auto()
    CLEAR_SCREEN = enum.auto()


def bound(*bindings: tuple[Action, str]) -> dict[str, Action]:
    """Returns what each key does, from actions and the keys for each, with blanks between those."""
    return {key: action for action, keys in bindings for key in keys.split(" ")}


class Editor:
    """A line that is being typed. It does no I/O: keys go in as they come from the terminal,
    finished lines and requests come out, and `view` says how the line looks."""

    def __init__(self, candidates: Callable[[str], Sequence[str]] = lambda _: ()) -> None:
        self.candidates = candidates  # names that begin with a text, the likeliest first
        self.text = ""
        self.cursor = 0  # an index of text
        self.history: deque[str] = deque(maxlen=MAX_RECALLED)
        self.recalled = 0  # place in the history, counted from its end; 0 is the line itself
        self.draft = ""  # the line itself, while another is shown
        self.sought: str | None = None  # in the history, while the user searches there
        self.changes: deque[tuple[str, int]] = deque(maxlen=MAX_UNDONE)  # the line before each
        self.typing = False  # the last key was a character, so the next is part of that change
        self.asked = False  # whether so many lines are meant
        self.killed = ""
        self.completing: list[str] = []  # what the next Tab puts in place of `completed`
        self.completed = ""
        self.in_vain = False  # the last key was a Tab for which there was no name
        self.decoder = getincrementaldecoder("utf-8")("replace")
        self.unread = ""  # keys that were not pressed yet, or the beginning of one
        self.pasting = False
        self.pasted: list[str] = []  # pieces of what is being pasted
        self.lines: list[Line] = []  # finished
        self.requests: list[Request] = []

    @property
    def begun(self) -> bool:
        """Says whether there is a line that isn't finished."""
        return bool(self.text or self.pasting) or self.sought is not None

    # Keys

    def feed(self, data: bytes) -> None:
        """Takes bytes from the terminal, in whatever pieces they come."""
        if self.pasting and not data.strip(b"\x03"):  # Ctrl-C alone: is the end of it lost?
            data = PASTE_END.encode() + data
        self.unread += self.decoder.decode(data)
        while self.unread and (self.pasting or not UNFINISHED_KEY.fullmatch(self.unread)):
            if self.pasting:
                self.take_pasted()
                if self.pasting:  # more has to come
                    break
            elif self.unread.startswith(PASTE_START):
                self.unread = self.unread[len(PASTE_START) :]
                self.pasting = True
            else:
                match = KEY.match(self.unread)
                assert match  # if nothing else, any character
                self.unread = self.unread[match.end() :]
                self.press(match.group())

    def take_pasted(self) -> None:
        """Takes what is being pasted, up to its end; puts it into the line once that has come."""
        text, end, rest = self.unread.partition(PASTE_END)
        at = text.rfind("\x1b", 1 - len(PASTE_END))
        if at >= 0 and not end and PASTE_END.startswith(text[at:]):  # the beginning of the end
            text, rest = text[:at], text[at:]
        self.pasted.append(text)
        self.unread = rest
        if end:
            self.paste("".join(self.pasted))
            self.pasted, self.pasting = [], False

    def press(self, key: str) -> None:
        """Does what one key is for."""
        if key.startswith("\x1b\x1b"):  # the Escape key and then an arrow, or rxvt's Alt-arrow
            key = key[1:]
        action = self.keys.get(key)
        before, typing = (self.text, self.cursor), self.typing
        self.typing = action is None and key[0] != "\x1b"
        if action is not Editor.complete:
            self.completing, self.in_vain = [], False
        if action is not Editor.enter:
            self.asked = False
        if self.sought is not None and self.press_in_search(key, action):
            return
        if action:
            action(self)
        elif self.typing:
            self.insert(key.translate(NO_TEXT))
        changed = self.text != before[0] and action not in (Editor.undo, Editor.enter)
        if changed and not (typing and self.typing):
            self.changes.append(before)

    def press_in_search(self, key: str, action: Action | None) -> bool:
        """Does what a key is for in a search; says whether that is all, and not its end."""
        assert self.sought is not None
        if self.typing:
            self.sought += key.translate(NO_TEXT)
        elif action is Editor.backspace:
            self.sought = self.sought[:-1]
        elif action is Editor.search:
            return False
        else:
            self.sought = None
            return False
        self.find(1)
        return True

    def paste(self, text: str) -> None:
        """Puts in text in which nothing is a key: its newlines wait in the line until Enter."""
        self.completing, self.in_vain, self.asked, self.sought = [], False, False, None
        self.changes.append((self.text, self.cursor))
        self.typing = False
        self.insert("\n".join(map(only_text, re.split("\r\n?|\n", text))))

    def insert(self, text: str) -> None:
        """Puts a text in at the cursor."""
        self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
        self.cursor += len(text)

    def set(self, text: str) -> None:
        """Makes this the line, with the cursor at its end."""
        self.text, self.cursor = text, len(text)

    def enter(self) -> None:
        """Finishes the line; one with newlines in it is several. Of many, asks first."""
        lines = self.text.rstrip("\n").split("\n")
        self.asked = len(lines) > MAX_UNASKED and not self.asked
        if self.asked:
            return
        if self.text.strip() and not OPERATOR.match(self.text):
            self.history.append(self.text)
        self.changes.clear()
        self.lines += [Line(line, alone=len(lines) == 1) for line in lines]
        self.recalled = 0
        self.set("")

    def interrupt(self) -> None:
        """Drops the line; on an empty one it is a request to leave."""
        if not self.text:
            self.request(Request.INTERRUPT)
        self.recalled = 0
        self.set("")

    def backspace(self) -> None:
        """Deletes the character before the cursor."""
        self.delete(char_left)

    def delete_or_end(self) -> None:
        """Deletes the character at the cursor; on an empty line it is the end of input."""
        if self.text:
            self.delete(char_right)
        else:
            self.request(Request.END_OF_INPUT)

    def request(self, request: Request) -> None:
        """Asks for something that isn't the line's business."""
        self.requests.append(request)

    def recall(self, step: int) -> None:
        """Shows a line further back in the history, or forth; at its end is the draft."""
        place = self.recalled + step
        if not 0 <= place <= len(self.history):
            return
        if self.recalled == 0:
            self.draft = self.text
        self.recalled = place
        self.set(self.history[-place] if place else self.draft)

    def search(self) -> None:
        """Searches the history for what is typed from now on; again, for an earlier line."""
        if self.sought is None:
            self.sought = ""
        else:
            self.find(self.recalled + 1)

    def find(self, place: int) -> None:
        """Shows the latest line, from a place in the history on, in which is what is sought."""
        sought = (self.sought or "").casefold()
        for found in range(place, len(self.history) + 1):
            if sought in self.history[-found].casefold():
                self.recall(found - self.recalled)
                break

    def show_draft(self) -> None:
        """Shows the line itself again."""
        self.recall(-self.recalled)

    # Changes

    def undo(self) -> None:
        """Takes the last change back."""
        if self.changes:
            self.text, self.cursor = self.changes.pop()

    def move(self, motion: Motion) -> None:
        """Moves the cursor to where a motion leads."""
        self.cursor = motion(self.text, self.cursor)

    def delete(self, motion: Motion) -> str:
        """Removes what is between the cursor and where a motion leads; returns it."""
        place = motion(self.text, self.cursor)
        return self.cut(min(place, self.cursor), max(place, self.cursor))

    def kill(self, motion: Motion) -> None:
        """Deletes what `yank` can put back."""
        self.killed = self.delete(motion) or self.killed

    def yank(self) -> None:
        """Puts back what was killed last."""
        self.insert(self.killed)

    def cut(self, start: int, end: int) -> str:
        """Takes a stretch out of the line and returns it."""
        removed = self.text[start:end]
        self.text = self.text[:start] + self.text[end:]
        self.cursor = start
        return removed

    def transpose(self) -> None:
        """Swaps the two characters around the cursor, at the end of the line the last two."""
        middle = min(self.cursor, char_left(self.text, len(self.text)))
        start, end = char_left(self.text, middle), char_right(self.text, middle)
        if start < middle < end:
            swapped = self.text[middle:end] + self.text[start:middle]
            self.cut(start, end)
            self.insert(swapped)

    def complete(self) -> None:
        """Completes the name before the cursor; another Tab takes the next that fits."""
        if not self.completing:
            self.completed = self.text[: self.cursor].rpartition(" ")[2]
            start = self.cursor - len(self.completed)
            suffix = ": " if self.text[:start] in ("", "/msg ") else " "
            names = self.candidates(self.completed) if self.completed else ()
            self.completing = [name + suffix for name in names]
            self.in_vain = bool(self.completed) and not names
        if self.completing:
            self.cut(self.cursor - len(self.completed), self.cursor)
            self.completed = self.completing.pop(0)
            self.completing.append(self.completed)
            self.insert(self.completed)

    # How it looks

    def view(self, prompt: str, width: int) -> tuple[str, str]:
        """Returns what a window of `width` columns shows before and after the cursor.

        That is always one row, a stretch around the cursor of what doesn't fit: a row that wraps
        can't be redrawn after the window was resized. Whoever draws it lets the terminal remember
        where the cursor belongs, so here no width has to be exact, only not too small.
        """
        reach = 10 * width  # characters, of which surely not more are seen
        start, end = max(self.cursor - reach, 0), self.cursor + reach
        text = masked(self.text)
        before = text[start : self.cursor].translate(MARKS)
        # What Enter will do, or what is searched for, is always seen; the prompt is not.
        heading = fitting_start(self.heading(""), width * 3 // 4)
        before = before if start or heading else prompt + before
        after = text[self.cursor : end].translate(MARKS)
        columns = width - 1 - text_width(heading)  # the cursor itself needs one
        ahead = text_width(fitting_start(after, columns // 3))  # is seen in any case
        left = fitting_end(before, columns - ahead)
        if start or len(left) < len(before):
            left = HIDDEN_LEFT + fitting_end(before, columns - ahead - 1)
        columns -= text_width(left)
        right = fitting_start(after, columns)
        if end < len(self.text) or len(right) < len(after):
            right = fitting_start(after, columns - 1) + HIDDEN_RIGHT
        return heading + left, right

    def heading(self, prompt: str) -> str:
        """Returns what stands before the line."""
        if self.asked:
            return f"({self.text.rstrip().count(chr(10)) + 1} lines: Enter says them) "
        return prompt if self.sought is None else f"(search: {self.sought}) "

    # What terminals send (xterm, VT100, the Linux console, rxvt) for what isn't just a character.
    keys = bound(
        (enter, "\r \n"),
        (partial(move, motion=line_start), "\x01 \x1b[H \x1bOH \x1b[1~ \x1b[7~"),
        (partial(move, motion=line_end), "\x05 \x1b[F \x1bOF \x1b[4~ \x1b[8~"),
        (partial(move, motion=char_left), "\x02 \x1b[D \x1bOD"),
        (partial(move, motion=char_right), "\x06 \x1b[C \x1bOC"),
        (partial(move, motion=word_left), "\x1bb \x1b[1;5D \x1b[1;3D \x1b[5D \x1bOd"),
        (partial(move, motion=word_right), "\x1bf \x1b[1;5C \x1b[1;3C \x1b[5C \x1bOc"),
        (partial(recall, step=1), "\x10 \x1b[A \x1bOA"),
        (partial(recall, step=-1), "\x0e \x1b[B \x1bOB"),
        (backspace, "\x08 \x7f"),
        (partial(delete, motion=char_right), "\x1b[3~"),
        (delete_or_end, "\x04"),
        (partial(kill, motion=word_left), "\x17 \x1b\x7f \x1b\x08"),
        (partial(kill, motion=word_right), "\x1bd"),
        (partial(kill, motion=line_end), "\x0b"),
        (partial(kill, motion=line_start), "\x15"),
        (yank, "\x19"),
        (transpose, "\x14"),
        (undo, "\x1f"),
        (search, "\x12"),
        (show_draft, "\x07"),
        (partial(insert, text="\n"), "\x1b\r \x1b\n"),
        (complete, "\t"),
        (interrupt, "\x03"),
        (partial(request, request=Request.CLEAR_SCREEN), "\x0c"),
        (partial(request, request=Request.SUSPEND), "\x1a"),
    )


class SecretEditor(Editor):
    """A line that nobody may see: it is neither shown nor kept, and no key reaches beyond it. After
    Enter it takes no more: `rest` are the keys that came after that."""

    def __init__(self, prompt: str) -> None:
        super().__init__()
        self.prompt = prompt
        self.rest = ""

    def enter(self) -> None:
        self.lines.append(Line(self.text.partition("\n")[0]))
        self.rest, self.unread = self.unread, ""
        self.set("")

    def view(self, prompt: str, width: int) -> tuple[str, str]:
        return fitting_end(prompt, width - 1), ""

    keys = bound(
        (enter, "\r \n \x1b\r \x1b\n"),
        (Editor.backspace, "\x08 \x7f"),
        (partial(Editor.delete, motion=line_start), "\x15"),
        (Editor.delete_or_end, "\x04"),
        (partial(Editor.request, request=Request.INTERRUPT), "\x03"),
        (partial(Editor.request, request=Request.SUSPEND), "\x1a"),
    )


# --- The process ---------------------------------------------------------------------------------


class Failure(Exception):
    """The script can't go on; the text says why, and what to do about it."""


class Disconnected(Failure):
    """There is no connection, or no more."""


class Terminated(Exception):
    """A signal told us to end; the argument is its number."""


class LossyStream(io.TextIOBase):
    """Standard output or error that never waits for its reader: lines that aren't taken at once are
    lost, and the next that can be written comes after one that says how many. The descriptor has to
    stay a blocking one, as the shell has it too: so each write is small, and made only if there is
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
        self.lost = missing if missing <= lines else self.lost + lines  # else the gap is untold
        return len(text)


def open_standard_streams() -> None:
    """Makes standard output and error ones that never wait. Opens the null device in place of each
    standard stream that is closed: a socket would get its descriptor, and with it the log."""
    descriptor = 0
    while descriptor < 3:
        descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    os.close(descriptor)
    sys.stdout, sys.stderr = sys.stdout and LossyStream(1), LossyStream(2)  # None if closed


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


def raise_for_signal(number: int, _: Any) -> None:
    """Ends the client as a signal wants it: raises KeyboardInterrupt or Terminated. The loop calls
    it; where no loop runs, it is the signal's handler."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


def wait_until_writable(descriptor: int, seconds: float | None = None) -> None:
    """Waits until a descriptor takes something, and not longer than that."""
    with Selector() as selector:
        selector.register(descriptor, EVENT_WRITE)
        selector.select(seconds)


def is_readable(file: int | socket.socket) -> bool:
    """Says whether there is something to read."""
    with Selector() as selector:
        selector.register(file, EVENT_READ)
        return bool(selector.select(0))


def is_in_foreground() -> bool:
    """Says whether the terminal is ours to change, and not the shell's or another job's."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # no shell shares it with us
        return True


def window_size() -> tuple[int, int]:
    """Returns the columns and rows of the terminal's window. Raises OSError."""
    columns, rows = os.get_terminal_size(0)
    return columns or 80, rows or 24


def open_input() -> int | socket.socket:
    """Returns what to wait at and read from for standard input: its descriptor, or, where only
    sockets can be waited for, a socket that a thread feeds.

    A terminal is opened anew, for a mode of its own: Ctrl-C drops what was typed before it, so a
    read that was called because of that would wait, and Python not see the signal until more comes.
    """
    if not ONLY_SOCKETS:
        with suppress(OSError):  # it isn't a terminal, or is another user's
            return os.open(os.ttyname(0), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        return 0
    ours, feeder = socket.socketpair()
    if sys.stdin is None:  # it was closed
        feeder.close()
    else:
        threading.Thread(target=feed_input, args=(feeder,), daemon=True).start()
    return ours


def feed_input(feeder: socket.socket) -> None:
    """Passes standard input on until it ends."""
    stdin: Any = sys.stdin.buffer
    with feeder, suppress(OSError):
        # From the raw file: a buffered one is locked by the reader, also when the process ends.
        for data in iter(lambda: stdin.raw.read(RECEIVE_SIZE), b""):
            feeder.sendall(data)


# --- The console ---------------------------------------------------------------------------------


class Painter:
    """Decorates the lines that are shown: the time, dim notices, a colour for each name, always the
    same; each new day has a line of its own."""

    def __init__(self, colours: bool, timestamps: bool) -> None:
        self.colours = colours
        self.timestamps = timestamps
        self.day = ""  # of the last line
        self.me = ""  # the user's name; none with an echo server, whose lines have no speaker

    def paint(self, line: str, width: int = 0) -> str:
        """Returns a line as it goes to the screen, in rows if the width of that is given."""
        stamp = time.strftime("[%H:%M] ") if self.timestamps else ""
        day = time.strftime("* %Y-%m-%d\n") if self.timestamps else ""
        new_day, self.day = day if self.day not in ("", day) else "", day
        if width:
            columns = max(width - 1, MIN_COLUMNS)
            line = in_rows(stamp + line.expandtabs(), columns)[len(stamp) :]
        return new_day + stamp + (self.decorate(line) if self.colours else line)

    def decorate(self, line: str) -> str:
        """Returns a line in colours."""
        if line.startswith("* "):
            return f"{DIM}{line}{NORMAL}"
        speaker, colon, text = line.partition(": ")
        if not self.me or not colon or len(speaker) > MAX_NAME + len(PRIVATE):
            return line
        name = speaker.replace(PRIVATE, "")
        colour = COLOUR.format(COLOURS[sum(name.casefold().encode()) % len(COLOURS)])
        return f"{BOLD if name == self.me else colour}{speaker}{NORMAL}: {text}"


class Console(ABC):
    """What the user types into and reads from: lines come in, lines go out.

    The loop waits for the files that it names, and has it handle what happens there. Some of what
    it is told concerns a terminal alone: here that does nothing.
    """

    why_closed = "standard output is closed"
    waits_for_server = False  # the user stays while there is no connection, and types on
    write_size: int | None = None  # bytes that the screen takes without blocking, if known
    signals: socket.socket  # wakes the loop; each kind of console has signals of its own

    def __init__(self, painter: Painter, screen: int = 1) -> None:
        self.painter = painter
        self.candidates: Callable[[str], Sequence[str]] = lambda _: ()  # names for Tab
        self.input = open_input()
        self.attended = os.isatty(0)  # somebody sits there, who can answer a question
        self.ended = False  # nothing more will be typed
        self.typed: deque[Line] = deque()  # lines that nobody has taken yet
        self.doubtful: list[str] = []  # lines of which nobody knows whether they have arrived
        self.screen = screen  # the descriptor that is written to
        self.output = bytearray()  # waits to be written

    @property
    def deadline(self) -> float:
        """The monotonic time at which `update` has something to do, whatever happens."""
        return NEVER

    def files(self) -> list[tuple[int | socket.socket, int, Callable[[int], None]]]:
        """Returns what to wait for: each file, the events there, 0 for none now, and the handler,
        which is given the events that have come."""
        typing = (self.input, EVENT_READ if self.wants_input() else 0, self.read)
        writing = (self.screen, EVENT_WRITE if self.output else 0, self.write)
        signals = (self.signals, EVENT_READ, self.on_signal)
        return [typing, signals] if ONLY_SOCKETS else [typing, writing, signals]

    @abstractmethod
    def on_signal(self, _: int) -> None:
        """Does what the signals want that have come."""

    # Input

    @abstractmethod
    def wants_input(self) -> bool:
        """Says whether there is a use for more of what the user types."""

    def read(self, _: int) -> None:
        """Receives what was typed."""
        try:
            if isinstance(self.input, socket.socket):
                data = self.input.recv(RECEIVE_SIZE)
            else:
                data = os.read(self.input, RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:  # the terminal is gone
            data = b""
        self.feed(data)

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Takes what was typed; nothing means the end of input."""

    def take(self) -> Line:
        """Returns the next line that was typed."""
        return self.typed.popleft()

    def complete_again(self) -> None:
        """There may be names now for what could not be completed."""

    @abstractmethod
    def ask_secret(self, prompt: str) -> bytes | None:
        """Asks for what nobody may see, and returns it; None if it isn't typed yet: ask again in
        the next turn of the loop. Raises Failure if nobody can be asked, or answers."""

    @abstractmethod
    def wants_to_leave(self) -> bool:
        """Says whether the user wants to go now, and not only when all that was typed is said."""

    def unsent(self) -> list[str]:
        """Returns the lines that nobody has taken yet and that are to be sent."""
        lines = takewhile(lambda line: not line.leaves, self.typed)
        return [masked(line.text) for line in lines if line.text.strip()]

    def losses(self) -> list[str]:
        """Returns what to tell somebody who sits there of lines that were typed in vain."""
        told = {"not sent": self.unsent(), IN_DOUBT: self.doubtful} if self.attended else {}
        return [f"{what}: {'; '.join(lines)}" for what, lines in told.items() if lines]

    # Output

    def label(self, prompt: str) -> None:
        """Sets what the lines that are typed from now on begin with, where that is shown anyway."""

    def report(self, status: str) -> None:
        """Sets what stands before that as long as there is no connection."""

    @abstractmethod
    def invite(self, prompt: str, ask: bool) -> None:
        """Invites the user to type a line, which is taken now. `ask`: with the prompt, also where
        that isn't shown anyway."""

    def echo_typed(self, line: str) -> None:
        """Leaves on the screen what was typed, with its prompt, if it isn't there already."""

    @abstractmethod
    def show(self, line: str) -> None:
        """Puts out a line of text."""

    def ring(self) -> None:
        """Calls for the user's attention."""

    def waiting(self) -> int:
        """Returns how many bytes or characters wait to be written."""
        return len(self.output)

    @abstractmethod
    def update(self) -> None:
        """Brings the output up to date, before the loop waits."""

    def write(self, _: int = 0) -> None:
        """Writes what the output takes. Raises Failure if nobody will ever read it."""
        try:
            del self.output[: os.write(self.screen, self.output[: self.write_size])]
        except BlockingIOError:
            pass
        except OSError:
            self.output.clear()
            raise Failure(self.why_closed) from None

    def interrupted(self) -> None:
        """Tidies up after a Ctrl-C that ends the client."""

    @abstractmethod
    def close(self) -> None:
        """Writes the rest."""


class PlainConsole(Console):
    """Standard input and output as they are: lines in, lines out, no escape sequences."""

    write_size = None if ONLY_SOCKETS else select.PIPE_BUF  # POSIX: for a pipe that is ready

    def __init__(self, painter: Painter) -> None:
        super().__init__(painter)
        self.framer = LineFramer(MAX_LINE)
        self.at_prompt = False
        self.at_start = True  # of the input
        # Python handles signals itself. But one that comes just before the loop waits, or to
        # another thread, or on Windows, would be handled only when the wait is over.
        self.signals = open_signal_socket()

    def on_signal(self, _: int) -> None:
        self.signals.recv(64)

    # Input

    def wants_input(self) -> bool:
        return not self.ended and not self.typed

    def feed(self, data: bytes) -> None:
        chunk, too_long = self.framer.feed(data)
        if not data:
            self.ended = True
            chunk = self.framer.finish()
        if self.at_start and chunk:
            chunk, self.at_start = without_mark(chunk), False
        self.typed.extend(Line(terminal_text(line)) for line in chunk.split(b"\n")[:-1])
        if too_long:
            self.show(TOO_LONG)

    def take(self) -> Line:
        line = super().take()
        if self.at_prompt and not self.attended:  # a terminal would have shown it
            self.output += f"{line.text}\n".encode()
        self.at_prompt = False
        return line

    def ask_secret(self, prompt: str) -> bytes:
        can_ask = getpass and (termios or ONLY_SOCKETS)  # without an echo
        if not (self.attended and can_ask):
            raise Failure("the room wants a password; give it with --password-file FILE")
        while not self.ended and is_readable(self.input):
            self.read(0)  # getpass() drops what was typed before the question
        # The loop doesn't run meanwhile, so signals have to strike at once.
        handlers: dict[int, Any] = dict.fromkeys(ENDING_SIGNALS, raise_for_signal)
        if termios:  # not Ctrl-Z: after `fg` the terminal would show what is typed
            handlers[signal.SIGTSTP] = signal.SIG_IGN
        before = {number: signal.signal(number, one) for number, one in handlers.items()}
        try:
            return getpass.getpass(prompt).encode("utf-8", "surrogateescape")
        except EOFError:
            raise Failure("no password given") from None
        except UnicodeDecodeError:
            raise Failure("that password is not UTF-8") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wants_to_leave(self) -> bool:
        return bool(self.typed) and self.typed[0].leaves

    # Output

    def invite(self, prompt: str, ask: bool) -> None:
        if ask and not self.at_prompt:
            self.output += prompt.encode()
            self.at_prompt = True

    def show(self, line: str) -> None:
        self.end_row()
        self.output += f"{self.painter.paint(line)}\n".encode()

    def end_row(self) -> None:
        """Ends a row that so far is a prompt."""
        if self.at_prompt:
            self.output += b"\n"
        self.at_prompt = False

    def update(self) -> None:
        if ONLY_SOCKETS and self.output:
            self.write()

    def interrupted(self) -> None:
        sys.stderr.write("\n")  # after the ^C that the terminal shows

    def close(self) -> None:
        self.end_row()
        while self.output:
            if not ONLY_SOCKETS:
                wait_until_writable(self.screen)
            self.write()
        self.signals.close()


class Terminal(Console):
    """A terminal in raw mode, with a line that is edited below the lines that are shown.

    The line being edited takes one row, at the bottom. To show a line above it is to draw over that
    row and to draw the row again below, in a single write, so that nothing flickers.
    """

    why_closed = "the terminal is gone"
    waits_for_server = True

    def __init__(self, painter: Painter) -> None:
        # Opened anew for a mode of its own: O_NONBLOCK on the descriptor that we were given would
        # also hold for the shell. A terminal that is stopped must not stop the loop.
        super().__init__(painter, os.open(os.ttyname(1), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
        self.editor = Editor(lambda beginning: self.candidates(beginning))
        self.secret: SecretEditor | None = None  # takes the keys while there is one
        self.row_prompt = ""
        self.status = ""  # what stands before it
        self.pending: deque[str] = deque()  # to be shown above the row
        self.pending_size = 0  # characters
        self.quiet_until = 0.0  # monotonic time before which no bell rings again
        self.stale = True  # the row has to be drawn again
        self.cursor_column = 0
        self.resized = False  # so what was drawn may be anywhere
        self.rows_above = 0  # into which the terminal has wrapped the beginning of the row
        self.paste_by = NEVER  # monotonic time at which what is being pasted ends
        self.measured_by = NEVER  # monotonic time until which the terminal has to say what it did
        self.gone = False  # the terminal is; after Ctrl-D there may still be a Ctrl-C
        self.taken = False  # the terminal is in the modes that we need
        self.modes: list[Any] = []  # those that it had before
        self.signals = open_signal_socket(*ENDING_SIGNALS, signal.SIGWINCH, signal.SIGCONT)
        self.take_over()

    @property
    def deadline(self) -> float:
        return min(self.paste_by, self.measured_by)

    # Modes

    def take_over(self) -> None:
        """Takes the terminal: every key comes at once and unseen, what was typed ahead is kept.

        In the background it can't be taken: to try stops us, until the shell lets us continue.
        That interrupts us, and the SIGCONT has the loop try again.
        """
        try:
            before = termios.tcgetattr(0)
            modes = [*before[: tty.CC], [*before[tty.CC]]]
            modes[tty.IFLAG] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON)
            modes[tty.LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
            modes[tty.CC][termios.VMIN], modes[tty.CC][termios.VTIME] = 1, 0
            termios.tcsetattr(0, termios.TCSANOW, modes)
            self.width, self.height = window_size()  # it may have changed meanwhile
        except (OSError, termios.error) as error:
            if error.args[0] == errno.EINTR:
                return
            raise Failure(self.why_closed) from None
        self.modes = self.modes if self.taken else before
        self.taken = self.stale = True
        self.cursor_column = 0
        self.output += PASTE_MODE_ON.encode()

    def give_back(self) -> None:
        """Gives the terminal back as it was found, with the row cleared, unless somebody else has
        it by now."""
        taken, self.taken = self.taken, False
        if not taken or not is_in_foreground():
            return
        self.output += f"{CLEAR_ROW}{PASTE_MODE_OFF}".encode()
        deadline = time.monotonic() + 1.0  # a terminal that is stopped is not waited for
        with suppress(OSError, Failure):
            while self.output and time.monotonic() < deadline:
                wait_until_writable(self.screen, 0.1)
                self.write()
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, self.modes)

    def suspend(self) -> None:
        """Stops, as Ctrl-Z does in a terminal that isn't raw; `fg` continues."""
        self.give_back()
        os.kill(0, signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGCONT)  # where no shell could continue us, nothing stops us

    def close(self) -> None:
        if self.pending:
            self.output += (CLEAR_ROW + "".join(self.pending)).encode()
        self.give_back()
        self.signals.close()

    def on_signal(self, _: int) -> None:
        numbers = set(self.signals.recv(64))
        for number in numbers.intersection(ENDING_SIGNALS):
            raise_for_signal(number, None)
        if signal.SIGCONT in numbers:  # the shell has had the terminal meanwhile
            self.take_over()
        if signal.SIGWINCH in numbers:
            self.resize()

    def resize(self) -> None:
        """The window has another size, and a row that is now too wide was cut off by the terminal,
        or wrapped into several. The column of the cursor tells which."""
        with suppress(OSError):  # the terminal is gone, as the next read will tell
            self.width, self.height = window_size()
        self.stale = self.resized = True
        self.rows_above = 0
        if self.cursor_column >= self.width:
            self.output += WHERE_IS_CURSOR.encode()
            self.measured_by = time.monotonic() + MEASURE_TIME

    def take_answer(self, data: bytes) -> bytes:
        """Takes out of what came from the terminal where the cursor is, and returns the rest."""
        answer = CURSOR_IS.search(data)
        if not answer:
            return data
        self.measured_by = NEVER
        # Cut off, it would be in the last column, whether or not it would be there if wrapped.
        if int(answer[1]) - 1 == self.cursor_column % self.width != self.width - 1:
            self.rows_above = self.cursor_column // self.width
        return data[: answer.start()] + data[answer.end() :]

    # Input

    def wants_input(self) -> bool:
        return self.taken and not self.gone

    def feed(self, data: bytes) -> None:
        if not data:
            self.gone = self.ended = True
        if self.measured_by < NEVER:
            data = self.take_answer(data)
        self.press(data)

    def press(self, keys: bytes) -> None:
        """Lets the editor have keys, and does what they ask for."""
        editor = self.secret or self.editor
        editor.feed(keys)
        self.paste_by = time.monotonic() + PASTE_SILENCE if editor.pasting else NEVER
        self.stale = True
        self.typed.extend(self.editor.lines)
        self.editor.lines.clear()
        requests, editor.requests = editor.requests, []
        for request in requests:
            self.grant(request)

    def grant(self, request: Request) -> None:
        """Does what the user asks for. The end of input, or an interrupt, leaves once what was typed
        is said. An interrupt after that, or when a secret is asked for, leaves at once."""
        if request is Request.SUSPEND:
            self.suspend()
        elif request is Request.CLEAR_SCREEN:
            self.clear_screen()
        elif request is Request.INTERRUPT and (self.ended or self.secret):
            raise KeyboardInterrupt
        else:
            self.ended = True

    def complete_again(self) -> None:
        if self.editor.in_vain:
            self.editor.complete()
            self.stale = True

    def ask_secret(self, prompt: str) -> bytes | None:
        if self.ended:
            raise Failure("no password given")
        if not self.secret and self.editor.begun:  # which is none, and was typed without knowing
            self.report("(finish this line, then the password) ")
            return None
        if not self.secret:
            self.report("")
            self.secret = SecretEditor(prompt)
            self.stale = True
        return self.end_secret() if self.secret.lines else None

    def end_secret(self) -> bytes:
        """Returns what was answered; what is typed is seen again."""
        assert self.secret
        secret, self.secret = self.secret, None
        self.press(secret.rest.encode())
        return secret.lines[0].text.encode() if secret.lines else b""

    def wants_to_leave(self) -> bool:
        return self.ended or any(line.leaves for line in self.typed)

    # Output

    def label(self, prompt: str) -> None:
        self.stale = self.stale or prompt != self.row_prompt
        self.row_prompt = prompt

    def report(self, status: str) -> None:
        self.stale = self.stale or status != self.status
        self.status = status

    def invite(self, prompt: str, ask: bool) -> None:
        if self.secret and not self.secret.begun:  # nobody asks for it any more
            self.end_secret()
        self.report("")
        self.label(prompt)

    def echo_typed(self, line: str) -> None:
        self.show(line)

    def show(self, line: str) -> None:
        self.put_above(self.painter.paint(line, self.width) + "\n")

    def put_above(self, text: str) -> None:
        """Has a text shown above the row."""
        self.pending.append(text)
        self.pending_size += len(text)

    def ring(self) -> None:
        now = time.monotonic()
        if now >= self.quiet_until:
            self.put_above(BELL)
            self.quiet_until = now + BELL_PAUSE

    def clear_screen(self) -> None:
        """Leaves nothing but the row, at the top; what was above it has scrolled off."""
        self.output += (CLEAR_ROW + "\n" * (self.height - 1) + CLEAR_SCREEN).encode()
        self.stale = True

    def waiting(self) -> int:
        return len(self.output) + self.pending_size

    def update(self) -> None:
        """Draws what is new, if what was drawn before has reached the terminal."""
        now = time.monotonic()
        if now >= self.paste_by:  # the end of what was pasted has got lost
            self.press(PASTE_END.encode())
        if now >= self.measured_by:  # then no row above is surely ours
            self.measured_by = NEVER
        measuring = self.measured_by < NEVER
        if self.output or not self.taken or measuring or not (self.pending or self.stale):
            return
        self.output += f"{self.draw_above()}{WRAP_OFF}{START_OF_ROW}{self.draw_row()}".encode()
        self.output += WRAP_ON.encode()
        self.stale = self.resized = False

    def draw_above(self) -> str:
        """Returns what draws lines over the row, not too many, so that a key is soon seen."""
        above = ""
        if self.resized:
            above = f"{UP.format(self.rows_above) if self.rows_above else ''}{CLEAR_BELOW}"
        elif self.pending:
            above = CLEAR_ROW
        size = 0
        while self.pending and size < MAX_DRAWN:
            text = self.pending.popleft()
            size += len(text)
            above += text
        self.pending_size -= size
        return above

    def draw_row(self) -> str:
        """Returns what draws the row from its start."""
        prompt = self.status + (self.secret.prompt if self.secret else self.row_prompt)
        before, after = (self.secret or self.editor).view(prompt, self.width)
        self.cursor_column = text_width(before)
        if self.painter.colours and not self.secret and before.startswith(prompt):
            before = f"{BOLD}{prompt}{NORMAL}{before[len(prompt) :]}"
        # The terminal itself remembers where the cursor belongs, and comes back there.
        return f"{before}{SAVE_CURSOR}{after}{CLEAR_REST}{RESTORE_CURSOR}"


def open_console(plain: bool, timestamps: bool) -> Console:
    """Returns what suits standard input and output. Raises Failure."""
    if sys.stdout is None:
        raise Failure("standard output is closed")
    plain = plain or not termios or os.environ.get("TERM", "") in ("", "dumb")
    if not plain and os.isatty(0) and os.isatty(1):
        with suppress(OSError):  # another user's terminal, after su, can't be opened
            return Terminal(Painter(not os.environ.get("NO_COLOR"), timestamps))
    return PlainConsole(Painter(False, timestamps))


# --- Why there is no connection ------------------------------------------------------------------

# What to tell the user, the most telling first: a host may have several addresses.
WHY_NOT_CONNECTED = {
    errno.ECONNREFUSED: "nobody listens there{advice}",
    errno.ETIMEDOUT: "no answer; is it switched on, and does its firewall let port {port} through?",
    errno.EHOSTUNREACH: "no way there; is it switched on, and in the same network?",
    errno.ENETUNREACH: "no way there; is this machine in a network that leads to it?",
    errno.EACCES: "this machine's firewall forbids it",
    errno.EPERM: "this machine's firewall forbids it",
    errno.EINVAL: "an address fe80:... needs its interface, such as fe80::1%eth0",
}


def why_no_address(error: Exception, host: str) -> str:
    """Returns what to tell the user when the host's addresses couldn't be looked up."""
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return f"no name server answers for {host}; check the network, or give the host's address"
    return f"host {host} is unknown; check its name, or give its address"


def why_not_connected(codes: Sequence[int], port: int, script: str, here: bool) -> str:
    """Returns what to tell the user when the connections to a host's addresses failed with these
    error numbers. `script` is what to start there, if the user has to be told; `here` says that no
    other machine can have the addresses."""
    code = next((known for known in WHY_NOT_CONNECTED if known in codes), codes[-1])
    others, option = ("", "") if here else (" for other hosts", " --host ::")
    option += f" --port {port}" if port != PORT else ""
    advice = f"{others}; start the server with: python3 {script}{option}" if script else ""
    why = WHY_NOT_CONNECTED.get(code) or os.strerror(code)
    return why.format(port=port, advice=advice)


def is_loopback(address: str) -> bool:
    """Says whether an address, as getaddrinfo() returns it, can only be this machine's."""
    return address.startswith(("127.", "::ffff:127.")) or address in ("::1", "0.0.0.0", "::")


def why_no_tls(error: ssl.SSLError, host: str) -> str:
    """Returns what to tell the user when the handshake failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            return f"the certificate of {host} has expired; its owner has to renew it"
        if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
            return f"the certificate is not for {host}; connect by a name that is in it"
        if error.verify_code in (18, 19, 20, 21):  # self-signed, or an issuer that isn't known
            return (
                f"the certificate of {host} is from an unknown authority; "
                "if it is a private one, give it with --tls-ca FILE"
            )
        return f"the certificate of {host} can't be trusted: {error.verify_message}"
    if error.reason in NOT_TLS:
        return f"{host} does not speak TLS there; leave out --tls"
    return f"no TLS with {host}: {error.reason or error}"


# --- The client ----------------------------------------------------------------------------------


class Client:
    """One loop around a console and the connection to a server: it connects, and connects again.

    It keeps what outlives a connection; the lines that are not sent are the console's. What it waits
    for follows from the state and is set anew in each turn of the loop.
    """

    def __init__(
        self,
        console: Console,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        name: str = "",
        password: bytes = b"",
        echo: bool = False,
    ) -> None:
        self.selector = Selector()
        self.console = console
        self.host = host
        self.port = port
        self.tls = tls
        self.name = name  # that the user wants to have in a chat
        self.password = password
        self.ignored: dict[str, str] = {}  # by the user, as a ChatProtocol has them
        self.echo = echo  # the server only sends back what it gets
        self.delay: float = RETRY_DELAYS[0]  # seconds until the next try
        self.trouble = ""  # the last that the user was told; none while there is a connection
        self.noted = 0  # of the lines that wait to be sent, how many the user was told of
        self.in_room = False  # the server has shown itself as one of our rooms
        self.patience = ANSWER_TIME  # seconds to wait for the server's answer

    def run(self) -> None:
        """Asks, connects and talks until the user leaves. Raises Failure, and KeyboardInterrupt if
        the user leaves without a connection."""
        if not self.echo and not self.name and not self.ask_name():
            return
        sock = self.connect()
        while True:
            try:
                with sock:
                    self.talk(sock)
                return
            except Disconnected as failure:
                if self.echo or not self.console.waits_for_server:
                    raise
                self.tell_lost(str(failure))
            sock = self.reconnect()

    def talk(self, sock: socket.socket) -> None:
        """Talks over a connection for as long as it lasts. Raises Disconnected, and Failure."""
        if self.echo:
            Session(self, sock, EchoProtocol()).run()
            return
        chat = ChatProtocol(self.name, self.password, self.ignored, self.in_room)
        try:
            Session(self, sock, chat).run()
        finally:
            self.name, self.password = chat.wanted, chat.password
            self.in_room = self.in_room or chat.phase is Phase.AT_DOOR

    def tell_lost(self, why: str) -> None:
        """Tells the user that there is no connection, unless that is known, and what became of the
        lines that went out last."""
        if why != self.trouble:
            self.console.show(f"* {why}")
        self.trouble = why
        if self.console.doubtful:
            self.console.show(f"* {IN_DOUBT}:")
        for line in self.console.doubtful:
            self.console.show(f"*   {line}")
        self.console.doubtful = []

    def settle(self, in_room: bool) -> None:
        """The connection is one that lasts, to one of our rooms or else for a while already."""
        if self.trouble:
            self.console.show("* connected again")
        self.trouble = ""
        self.delay = RETRY_DELAYS[0]
        self.in_room = self.in_room or in_room

    def ask_name(self) -> bool:
        """Asks the user for a name; says whether there is one, and not the end of input. Raises
        Failure if that isn't somebody's wish to leave."""
        console = self.console
        while not self.name and (console.typed or not console.ended):
            console.invite("name: ", ask=True)
            if not console.typed:
                self.turn()
                continue
            line = console.take()
            console.echo_typed(f"name: {masked(line.text)}")
            if line.leaves:
                console.typed.clear()
                return False
            name = line.text.strip()
            if not name.startswith("/"):  # else each message would begin with it
                self.name = name
            elif console.attended:
                console.show("* a name does not begin with a slash")
            else:
                break
        console.label("")
        if not self.name and not console.attended:
            raise Failure("no name was given; use --name NAME, or the first line of the input")
        return bool(self.name)

    # The loop

    def turn(self, deadline: float = NEVER) -> None:
        """Waits until something can be moved, or for the deadline, and moves it."""
        self.console.update()
        for file, events, handler in self.console.files():
            self.watch(file, events, handler)
        deadline = min(deadline, self.console.deadline)
        timeout = None if deadline == NEVER else max(0.0, deadline - time.monotonic())
        for key, events in self.selector.select(timeout):
            key.data(events)

    def watch(
        self, file: int | socket.socket, events: int, handler: Callable[[int], None] | None = None
    ) -> None:
        """Has the selector wait for exactly these events on a file, and then call the handler."""
        key = self.selector.get_map().get(file)
        if key and key.events != events:
            self.selector.unregister(file)
            key = None
        if events and not key:
            self.selector.register(file, events, handler)

    def wait_for(self, sock: socket.socket, events: int, deadline: float = NEVER) -> bool:
        """Waits for events on a socket while there is no session; says whether they have come.
        Raises Failure or KeyboardInterrupt if the user doesn't want to wait."""
        ready: list[int] = []
        leave_by = NEVER
        self.watch(sock, events, ready.append)
        try:
            while not ready and time.monotonic() < deadline:
                if self.console.waits_for_server and self.console.wants_to_leave():
                    patience = LINGER if self.console.unsent() else 0
                    leave_by = min(leave_by, time.monotonic() + patience)
                self.turn(min(deadline, leave_by))
                if not ready and time.monotonic() >= leave_by:
                    self.leave()
        finally:
            self.watch(sock, 0)
        return bool(ready)

    def leave(self) -> None:
        """The user doesn't want to wait for a connection. Raises Failure or KeyboardInterrupt."""
        if self.console.unsent():
            raise Failure("left without a connection")
        raise KeyboardInterrupt

    # Connecting

    def connect(self) -> socket.socket:
        """Connects to the first address of the host that answers. Raises Disconnected, Failure if
        the host can't be trusted, and what wait_for() raises."""
        self.console.report("(connecting) ")
        addresses = self.look_up()
        codes = []
        for family, kind, protocol, _, address in addresses:
            started = time.monotonic()
            try:  # even a socket may be refused, such as one for IPv6 where that is switched off
                sock = self.connect_to(address, socket.socket(family, kind, protocol))
            except OSError as error:
                codes.append(error.errno or 0)
            else:
                sock = self.shake_hands(sock, self.tls) if self.tls else sock
                took = time.monotonic() - started
                self.patience = min(max(ANSWER_TIME, ANSWER_FACTOR * took), CONNECT_TIME)
                return sock
        script = "echo_server.py" if self.echo else "chat_server.py"
        here = all(is_loopback(str(address[0])) for *_, address in addresses)
        # Whoever runs a server that was there knows how to start it.
        why = why_not_connected(codes, self.port, "" if self.trouble else script, here)
        raise Disconnected(f"cannot connect to port {self.port} on {self.host}: {why}")

    def look_up(self) -> list[Any]:
        """Returns the host's addresses, as getaddrinfo() does. Raises what connect() raises.

        A thread asks for them: it can take a minute, during which the keys have to work.
        """
        found: list[Any] = []
        try:
            done, asking = socket.socketpair()
        except OSError as error:
            raise Disconnected(f"cannot look up {self.host}: {error.strerror}") from None

        def ask() -> None:
            with asking:  # its close tells the loop
                try:
                    found.append(socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
                except (OSError, UnicodeError) as error:  # UnicodeError: a name no host can have
                    found.append(error)

        try:
            threading.Thread(target=ask, daemon=True).start()
        except RuntimeError:  # the system has none left: then the keys have to wait
            ask()
        with done:
            self.wait_for(done, EVENT_READ)
        if isinstance(found[0], Exception):
            raise Disconnected(why_no_address(found[0], self.host))
        return list(found[0])

    def connect_to(self, address: Any, sock: socket.socket) -> socket.socket:
        """Returns the socket, connected. Raises OSError, and what wait_for() raises."""
        with ExitStack() as unless_connected:
            unless_connected.callback(sock.close)
            sock.setblocking(False)
            for level, option, value in SOCKET_OPTIONS:
                sock.setsockopt(level, option, value)
            code = sock.connect_ex(address)
            if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                code = errno.ETIMEDOUT
                if self.wait_for(sock, EVENT_WRITE, time.monotonic() + CONNECT_TIME):
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            unless_connected.pop_all()
            return sock

    def shake_hands(self, plain: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        """Returns the socket with TLS around it. Raises Failure if that can't be trusted."""
        host = self.host
        # No certificate has the scope of an address in it, or the dot that may end a full name.
        name = host.partition("%")[0].rstrip(".")
        try:
            sock = tls.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
            with ExitStack() as unless_done:
                unless_done.callback(sock.close)
                if not self.handshake_is_done(sock):
                    raise Disconnected(f"{host} does not answer in TLS; does it speak it?")
                unless_done.pop_all()
                return sock
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise Disconnected(f"{host} closed the connection in the TLS handshake") from None
        except ssl.SSLError as error:
            raise Failure(why_no_tls(error, host)) from None
        except OSError as error:
            raise Disconnected(f"no TLS with {host}: {error.strerror}") from None

    def handshake_is_done(self, sock: ssl.SSLSocket) -> bool:
        """Shakes hands; says whether that came to an end in time. Raises OSError."""
        deadline = time.monotonic() + CONNECT_TIME
        while True:
            try:
                sock.do_handshake()
                return True
            except ssl.SSLWantReadError:
                events = EVENT_READ
            except ssl.SSLWantWriteError:
                events = EVENT_WRITE
            if not self.wait_for(sock, events, deadline):
                return False

    def reconnect(self) -> socket.socket:
        """Connects again, trying ever more rarely. Raises what wait_for() raises."""
        while True:
            self.pause()
            try:
                return self.connect()
            except Disconnected as failure:
                self.tell_lost(str(failure))

    def pause(self) -> None:
        """Lets some time pass before the next try. Raises what wait_for() raises."""
        # So that, when a room starts again, not everyone comes at the same moment.
        seconds = self.delay * random.uniform(0.5, 1.0)
        self.delay = min(2 * self.delay, RETRY_DELAYS[1])
        self.console.report(f"(trying again in {seconds:.1f} s) ")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.console.wants_to_leave():
                self.leave()
            self.note_unsent()
            self.turn(deadline)

    def note_unsent(self) -> None:
        """Tells the user of the lines that wait to be sent, each once."""
        lines = self.console.unsent()
        new, self.noted = lines[self.noted :], len(lines)
        if len(new) > MAX_NOTED:
            new = [f"{len(new):,} lines"]
        for line in new:
            self.console.show(f"* not sent yet: {line}")


class Ledger:
    """What the user says over one connection, as long as it may not have arrived. No I/O."""

    def __init__(self) -> None:
        self.sent = 0  # bytes that the system has taken
        # Lines that it hasn't taken whole, and those that it has, with the time. Each has the
        # number of bytes up to its end.
        self.waiting: deque[tuple[int, Line]] = deque()
        self.taken: deque[tuple[int, float, Line]] = deque(maxlen=MAX_DOUBTED)

    def add(self, line: Line, size: int) -> None:
        """A line is to go out; with all that waits before it that is `size` bytes."""
        self.waiting.append((self.sent + size, line))

    def go_out(self, size: int, now: float) -> None:
        """The system has taken some bytes."""
        self.sent += size
        while self.waiting and self.waiting[0][0] <= self.sent:
            end, line = self.waiting.popleft()
            self.taken.append((end, now, line))

    def hear(self, now: float) -> None:
        """The server has said something: it must have read what was said a while ago."""
        while self.taken and self.taken[0][1] < now - READ_TIME:
            self.taken.popleft()

    def hear_answer(self) -> None:
        """The server has answered what was said last."""
        self.taken.clear()

    def take_back(self) -> None:
        """Nothing of what was said has been heard: it has yet to be sent."""
        self.waiting.extendleft((end, line) for end, _, line in reversed(self.taken))
        self.taken.clear()

    def unsent(self) -> list[Line]:
        """Returns the lines that the system hasn't taken."""
        return [line for _, line in self.waiting]

    def doubtful(self, unacknowledged: float = NEVER) -> list[str]:
        """Returns the lines that it has taken, and that nothing shows to have arrived: those among
        the last bytes, which nobody has acknowledged."""
        last = (line for end, _, line in self.taken if end > self.sent - unacknowledged)
        return [masked(line.text) for line in last]


def unacknowledged(sock: socket.socket) -> int:
    """Returns how many bytes that were sent, the end of the stream included, the other side's
    system hasn't confirmed to have; 0 where ours doesn't tell."""
    if fcntl and SIOCOUTQ:
        with suppress(OSError):
            return int.from_bytes(fcntl.ioctl(sock, SIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


class Session:
    """What happens over one connection, until either side ends it.

    A side whose counterpart is slow is not read from, so that little is held in between.
    """

    def __init__(self, client: Client, sock: socket.socket, protocol: Protocol) -> None:
        self.client = client
        self.console = client.console
        self.sock = sock
        self.protocol = protocol
        self.framer = LineFramer(MAX_LINE)
        self.ledger = Ledger()
        # What the user has to be told of the connection before doesn't keep us from this one.
        self.max_waiting = MAX_WAITING + self.console.waiting()
        self.tls_wants = 0  # EVENT_WRITE while TLS has to send before anything else, else 0
        self.silent = True  # the server has not said anything yet
        self.over = False  # the server has ended the stream, or there is no use in going on
        self.lost = ""  # why it is over, if that was not as it should be
        self.left = False  # the user has said all and wants to go
        self.stream_ended = False  # our direction of the stream is
        # Deadlines, in monotonic time.
        self.answer_by = NEVER  # what is typed waits for the server's answer until then
        self.leave_by = NEVER  # whoever wants to go is kept until then
        self.settle_by = time.monotonic() + SETTLE_TIME  # then it is a connection that lasts
        self.show_by = NEVER  # the rest of a line is waited for until then

    def run(self) -> None:
        """Talks until it is over, or the user has left. Raises Disconnected if that wasn't the
        user's will, and Failure if there is no use in trying again."""
        least = QUESTION_TIME if self.protocol.password else 0.0
        self.answer_by = time.monotonic() + max(least, self.client.patience)
        self.console.candidates = self.protocol.candidates
        self.console.label(self.protocol.prompt)
        self.console.report("")
        try:
            while not self.over and time.monotonic() < self.leave_by:
                self.ask_password()
                self.forward_typed()
                self.see_off()
                self.watch_server()
                deadlines = (self.answer_by, self.leave_by, self.settle_by, self.show_by)
                self.client.turn(min(deadlines))
                self.keep_deadlines()
        finally:
            self.client.watch(self.sock, 0)
            self.close_ledger()
        self.raise_failure()

    def keep_deadlines(self) -> None:
        """Does what is due."""
        now = time.monotonic()
        if now >= self.answer_by:
            self.answer_by = NEVER
            self.protocol.stop_waiting()
            self.show()
        if now >= self.settle_by:
            self.settle()
        if now >= self.show_by:
            if self.can_read():
                self.hear(self.framer.finish())
            else:  # the silence is ours
                self.show_by = now + UNFINISHED_TIME

    def settle(self) -> None:
        """Takes the connection for one that lasts."""
        if self.settle_by < NEVER:
            self.client.settle(self.protocol.welcomed)
        self.settle_by = NEVER

    def close_ledger(self) -> None:
        """Leaves to the console what may not have arrived: lines to be sent, lines to be told."""
        self.console.typed.extendleft(reversed(self.ledger.unsent()))
        if self.over:
            self.console.doubtful = self.ledger.doubtful() if self.lost else []
        else:
            last = unacknowledged(self.sock) - self.stream_ended  # the end counts as a byte
            self.console.doubtful = self.ledger.doubtful(max(last, 0))

    def raise_failure(self) -> None:
        """Raises what has gone wrong, if anything has."""
        protocol = self.protocol
        if protocol.wrong_password:
            raise Failure("wrong password")
        if protocol.name_refused and not self.console.attended:
            raise Failure(f"the room refused the name {protocol.name}: {protocol.name_refused}")
        # Is there no use in trying again, as we don't speak what the server speaks, or were removed?
        wants_tls = "--tls" in self.lost or "--tls" in protocol.turned_away
        hopeless = protocol.removed or (wants_tls and not self.client.in_room)
        disconnected = Failure if self.left or hopeless else Disconnected
        if protocol.turned_away and (self.over or not self.console.attended):
            raise disconnected(f"not let in: {protocol.turned_away}")
        in_vain = protocol.outgoing or self.console.unsent()
        # A reset after a farewell is only a rude way to close, unless something was said just then.
        if self.lost and not (self.left and not in_vain and not self.console.doubtful):
            raise disconnected(f"lost the connection: {self.lost}")
        if in_vain:
            raise Failure("left before everything was sent")
        if self.console.doubtful:
            raise Failure("left before everything had arrived")
        if protocol.command_refused and not self.console.waits_for_server:
            raise Failure("not everything was sent, as no chat room has answered")

    # From the user

    def ask_password(self) -> None:
        """Gets the password from the user, if the room wants it."""
        typed = self.console.typed  # without knowing of the question: it is said behind the door
        if self.protocol.wants_password and not (typed and typed[0].leaves):
            password = self.console.ask_secret("password: ")
            if password is not None:
                self.protocol.give_password(password)

    def forward_typed(self) -> None:
        """Lets the protocol have the lines that were typed, as long as it takes more."""
        protocol, console = self.protocol, self.console
        while protocol.accepts_input and not self.left and len(protocol.outgoing) < MAX_WAITING:
            console.invite(protocol.prompt, protocol.prompts)
            if not console.typed:
                if console.ended and console.attended:  # Ctrl-D
                    self.leave()
                break
            line = console.take()
            self.client.noted = 0
            if line.leaves:
                self.leave()
                console.echo_typed((protocol.prompt if protocol.prompts else "") + line.text)
                break
            self.submit(line)

    def submit(self, line: Line) -> None:
        """Lets the protocol have one line."""
        protocol = self.protocol
        before = len(protocol.outgoing)
        protocol.submit(line)
        if len(protocol.outgoing) > before:
            self.ledger.add(line, len(protocol.outgoing))
        self.answer_by = time.monotonic() + self.client.patience
        # A chat shows its own message; a command, or what an echo server gets, stays as typed.
        if line.text.strip() and not protocol.to_show:
            self.console.echo_typed(protocol.prompt + masked(line.text))
        self.show()

    def leave(self) -> None:
        """Takes nothing more from the user, who wants to go."""
        self.left = True
        self.console.typed.clear()
        self.leave_by = time.monotonic() + LINGER

    def see_off(self) -> None:
        """Ends our direction of the stream when all is said; until then, whoever wants to go is
        kept for an answer only for a while."""
        console, protocol = self.console, self.protocol
        no_more = self.left or (console.ended and not console.typed)
        stuck = len(protocol.outgoing) >= MAX_WAITING or not protocol.accepts_input
        if no_more and not stuck and not protocol.outgoing:
            if not self.stream_ended:
                self.end_stream()
        elif stuck and console.wants_to_leave():
            patience = max(LINGER, self.client.patience)
            self.leave_by = min(self.leave_by, time.monotonic() + patience)
        elif not self.left:
            self.leave_by = NEVER

    def end_stream(self) -> None:
        """Ends our direction of the stream. The server then sends what is left and closes.

        To close ourselves, with input unread, would reset the connection, and a reset destroys what
        is still on its way.
        """
        self.stream_ended = True
        if self.left:
            self.leave_by = time.monotonic() + LINGER
        with suppress(OSError):
            # The plain socket's: after that of TLS nothing that still comes would be decrypted.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def show(self) -> None:
        """Puts out what the protocol has to show."""
        protocol, console = self.protocol, self.console
        if protocol.welcomed:
            self.settle()
        if protocol.turned_away and protocol.awaits_answer and console.waits_for_server:
            return  # it may be all that there will be: then it is the reason that is told
        console.painter.me = protocol.name
        for line in protocol.to_show:
            console.show(line)
        protocol.to_show.clear()
        if protocol.calls_user:
            console.ring()
        if protocol.names_came:
            console.complete_again()
        protocol.calls_user = protocol.names_came = False

    # The socket

    def watch_server(self) -> None:
        """Has the selector wait for what can be done with the server now."""
        events = EVENT_READ if self.can_read() else 0
        events |= EVENT_WRITE if self.protocol.outgoing else 0
        self.client.watch(self.sock, self.tls_wants or events, self.serve)

    def can_read(self) -> bool:
        """Says whether the user reads as fast as the server writes."""
        return self.console.waiting() < self.max_waiting

    def serve(self, events: int) -> None:
        """Receives and sends once, as the socket is ready for it."""
        if self.tls_wants:  # whatever TLS was stuck in can go on
            self.tls_wants, events = 0, EVENT_READ | EVENT_WRITE
        try:
            # A TLS record has at most 16 KiB, so nothing that is decrypted stays behind unseen.
            if events & EVENT_READ:
                self.receive(self.sock.recv(RECEIVE_SIZE))
            if events & EVENT_WRITE and self.protocol.outgoing and not self.over:
                self.send()
        except BlockingIOError:  # readiness is a hint, not a promise
            pass
        except OSError as error:
            if ssl and isinstance(error, ssl.SSLWantWriteError):
                self.tls_wants = EVENT_WRITE
            elif not (ssl and isinstance(error, ssl.SSLWantReadError)):
                self.end(error.strerror or str(error))

    def send(self) -> None:
        """Sends what the system takes. As long as that is something, leaving has time."""
        size = self.sock.send(self.protocol.outgoing)
        del self.protocol.outgoing[:size]
        self.ledger.go_out(size, time.monotonic())
        if self.leave_by < NEVER:
            self.leave_by = time.monotonic() + LINGER

    def end(self, lost: str = "") -> None:
        """It is over; `lost` says why, if that isn't as it should be."""
        self.over, self.lost = True, lost

    def seems_to_want_tls(self, first: bytes) -> bool:
        """Says whether the first that was received looks like a server's that speaks TLS."""
        # Once we have said all, it may close; but if that was nothing, a room would have spoken.
        may_close = self.stream_ended and (self.left or self.client.echo or self.ledger.sent)
        return not self.client.tls and (first.startswith(TLS_ALERT) or not (first or may_close))

    def receive(self, data: bytes) -> None:
        """Lets the protocol have the lines in what was received; nothing means the end."""
        if self.silent and self.seems_to_want_tls(data):
            self.end("the server closed it without a word; if it speaks TLS, use --tls")
            return
        self.silent = False
        chunk, too_long = self.framer.feed(data)
        if not data:
            self.end("" if self.stream_ended else "the server closed it")
            chunk = self.framer.finish()
        if too_long:
            self.protocol.to_show.append(TOO_LONG)
        self.hear(chunk)
        self.ledger.hear(time.monotonic())

    def hear(self, chunk: bytes) -> None:
        """Lets the protocol have whole lines, and shows what comes of them."""
        protocol = self.protocol
        before, awaited = len(protocol.outgoing), protocol.awaits_answer
        for line in chunk.split(b"\n")[:-1]:
            protocol.hear(terminal_text(line))
        if protocol.closing or (awaited and not protocol.awaits_answer):
            self.ledger.hear_answer()
        if protocol.name_refused and not self.console.attended:
            self.over = True  # what a script says would come from nobody
        if protocol.asked_late and (protocol.password or self.console.attended):
            self.over = True  # it has to be given first, so over another connection
            self.ledger.take_back()
        if self.stream_ended:  # too late for the name that a late welcome asks for
            protocol.outgoing.clear()
        elif len(protocol.outgoing) > before:  # a question
            self.answer_by = time.monotonic() + self.client.patience
        # Some servers end no line. Ours does, so there the rest is only late.
        rest = terminal_text(self.framer.partial)
        is_late = protocol.welcomed or any(line.startswith(rest) for line in FIRST_WORDS)
        waits = bool(self.framer.partial) and not is_late
        self.show_by = time.monotonic() + UNFINISHED_TIME if waits else NEVER
        self.show()


# --- The command line ----------------------------------------------------------------------------


def host_name(text: str) -> str:
    """Returns a host without the brackets that an IPv6 address has where a port may follow it.
    Raises ArgumentTypeError, which argparse shows."""
    if not text:  # such as a variable of the shell that isn't set
        raise argparse.ArgumentTypeError("no host is given")
    return text[1:-1] if text[0] + text[-1] == "[]" else text


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


def host_and_port(host: str, port: str | None) -> tuple[str, int]:
    """Returns where to connect, from HOST and PORT, or HOST:PORT alone. An IPv6 address has more
    than one colon, and needs brackets only before a port. Raises ArgumentTypeError."""
    given = host
    name, colon, joined = host.rpartition(":")
    if colon and "/" not in joined and (":" not in name or name.endswith("]")):
        if port is not None:
            raise argparse.ArgumentTypeError(f"the port is given twice, in {host} and as {port}")
        if not joined:
            raise argparse.ArgumentTypeError(f"no port is given after {name}")
        host, port = name, joined
    if host.isdecimal() and int(host) <= 65535:
        first = f"{host} is a port; type the host first: {port or HOST} {host}"
        raise argparse.ArgumentTypeError(first)
    host = host_name(host)
    if not host.isprintable() or re.search(r"[][\s/@\\]|^$", host):
        raise argparse.ArgumentTypeError(f"{given} is not a host; type its name or address alone")
    number = PORT if port is None else port_number(port)
    if number == 0:
        raise argparse.ArgumentTypeError("nobody can listen on port 0")
    return host, number


def name_option(text: str) -> str:
    """Returns the user's name. Raises ArgumentTypeError, which argparse shows."""
    # A command line can hold bytes that aren't UTF-8, and control characters.
    name = terminal_text(os.fsencode(text)).strip()
    if not name:  # such as a variable of the shell that isn't set
        raise argparse.ArgumentTypeError("no name is given")
    if name.startswith("/"):  # each message would begin with it
        raise argparse.ArgumentTypeError("a name does not begin with a slash")
    return name


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options, and `prog`, the script's name. Wrong ones end the process, status 2."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [HOST [PORT]]",
        description="The terminal client for chat rooms and echo servers.",
        epilog="example: python3 chat_client.py 192.0.2.7 --name John (quit leaves, /help helps)",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("host", nargs="?", metavar="HOST", default=HOST, help="(default: %(default)s)")
    add("port", nargs="?", metavar="PORT", help=f"(default: {PORT}); HOST:PORT is taken too")
    add("--name", type=name_option, help="be known as NAME (default: ask)")
    add("--echo", action="store_true", help="talk to an echo server")
    add("--plain", action="store_true", help="no line editor, no colours")
    add("--tls", action="store_true", help="speak TLS")
    authorities = "trust the authorities in FILE, not the system's; implies --tls"
    add("--tls-ca", metavar="FILE", help=authorities)
    password = "give the password in FILE (default: CHAT_PASSWORD in the environment, or ask)"
    add("--password-file", metavar="FILE", help=password)
    add("--timestamps", action="store_true", help="show when each line came")
    add("--version", action="version", version=f"%(prog)s {VERSION}")
    args = parse_known(parser, argv)
    try:
        args.host, args.port = host_and_port(args.host, args.port)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    args.prog = parser.prog
    return args


def read_password(file: str | None) -> bytes:
    """Returns the password, the first line of the file or else of CHAT_PASSWORD in the environment;
    b"" if there is neither. Raises Failure."""
    source = file or "CHAT_PASSWORD"
    try:
        if file is not None:
            with open(file, "rb") as lines:
                text = lines.readline()
        elif source in os.environ:
            text = os.fsencode(os.environ[source])
        else:
            return b""
    except OSError as error:
        raise Failure(f"cannot read the password file {file}: {error.strerror}") from error
    if text.startswith(BOM_UTF8):  # some editors on Windows put it there
        text = text[len(BOM_UTF8) :]
    password = text.partition(b"\n")[0].rstrip(b"\r")
    if not password:  # nobody who sets a variable to nothing means an open room
        raise Failure(f"there is no password in {source}; put one into its first line")
    return password


def make_client_tls(ca_file: str | None) -> ssl.SSLContext:
    """Returns what it takes to speak TLS, and to verify the server's certificate and name, with the
    authorities that this system trusts, or the ones in the file. Raises Failure."""
    if ssl is None:
        raise Failure("this Python was built without TLS; leave out --tls and --tls-ca")
    if ca_file == "":  # such as a variable of the shell that isn't set
        raise Failure("--tls-ca is given no file")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one too
        raise Failure(f"cannot use {ca_file}: {error.strerror}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # So that sending doesn't wait for receiving. PyPy and LibreSSL don't have it.
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)
    return context


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the client; returns the exit status: 0 for a clean end, 1 for a failure, 128 and its
    number for a signal."""
    console: Console | None = None
    status, told = 0, []
    try:
        args = parse_args(argv)
        password = b"" if args.echo else read_password(args.password_file)
        tls = make_client_tls(args.tls_ca) if args.tls or args.tls_ca is not None else None
        console = open_console(args.plain, args.timestamps)
        with closing(console):  # also on the way to a traceback
            Client(console, args.host, args.port, tls, args.name or "", password, args.echo).run()
    except Failure as error:
        status, told = 1, [str(error)]
    except Terminated as terminated:
        status = 128 + int(terminated.args[0])  # as a shell says it
    except KeyboardInterrupt:
        if console:
            console.interrupted()
    told += console.losses() if console else []
    if told:
        print(f"{args.prog}: {'; '.join(told)}", file=sys.stderr)
    return status or int(bool(told))


if __name__ == "__main__":
    open_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
