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

What lines mean is the business of a ChatProtocol, which has no I/O and whose Phase says how far the
other side has shown itself. What the user types and sees is a Console's; a Terminal is one with an
Editor, which has no I/O either. A Client runs the loop, connects, and connects again; each of its
connections is a Session, which lasts until either side ends it.

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
import string
import sys
import threading
import time
import unicodedata
from codecs import BOM_UTF8, getincrementaldecoder
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from functools import lru_cache
from itertools import takewhile
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, Callable, NamedTuple
from urllib.parse import quote

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
MAX_LINE = 64 * 1024  # bytes; a longer line is left out
RECEIVE_SIZE = 64 * 1024  # bytes received at once
NEVER = float("inf")
TOO_LONG = f"* (a line of over {MAX_LINE} bytes was left out)"

# On Windows select() takes nothing but sockets.
ONLY_SOCKETS = sys.platform == "win32"

# Not epoll, which takes no regular file as standard input (EPERM). select() takes none of the
# descriptors from 1024 on, which we may get if we inherit many, and on macOS poll() no terminal.
WITH_POLL = hasattr(selectors, "PollSelector") and sys.platform != "darwin"
Selector = selectors.PollSelector if WITH_POLL else selectors.SelectSelector

# The signals that would end us without giving the terminal back, as far as the system has them.
ENDING_SIGNALS = [
    one for one in signal.Signals if re.fullmatch("SIG(INT|TERM|HUP|QUIT|USR[12]|ALRM)", one.name)
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


# --- Lines and protocols -------------------------------------------------------------------------

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

OPERATOR = re.compile(r"\s*/op\s+", re.IGNORECASE)  # then comes a password


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
        return self.alone and self.text.strip() in ("quit", "exit", "/quit", "/exit")

    @property
    def command(self) -> str:
        """The text from its slash on, if it begins with one, and not with the two of a message. A
        blank before a command makes no message of it."""
        text = self.text.lstrip()
        return text if text.startswith("/") and not text.startswith("//") else ""


class Phase(enum.Enum):
    """How far the other side has shown itself: as one of our rooms, or as another relay of lines.

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


MAX_NAME = 32  # characters that a room allows
MAX_MESSAGE = 8192  # bytes that a room allows, unless its owner wants more or less
MAX_NAMES = 1000  # names that Tab completes
PRIVATE = " (private)"
WELCOME = "Welcome to the chatroom!"
PASSWORD_QUESTION = "* password?"
WRONG_PASSWORD = "* wrong password"
YOU_ARE_OUT = re.compile(r"\* you were removed by an operator; come back in \d+ min")
BAD_NAME = re.compile(r"\* (a name .*): /name NAME")  # no name has a colon to look like it with
# What a room says of its members. A name in it is believed if it has nothing in it with which that
# could be read in another way.
NAME = re.compile(
    rf"(?:(?!,|(?<!\S)(?:and|joined|left|is now|was removed|more|unnamed|you are|you were)(?!\S)).)"
    rf"{{1,{MAX_NAME}}}"
)
NEWS = re.compile(rf"\* ({NAME.pattern}) (joined|left|was removed|is now ({NAME.pattern}))")
HERE = re.compile(r"\* here: (?:\d+ unnamed|(.+?)(?: and \d+ unnamed)?)")
PONG = "* pong"
NO_PING = "* no such command; /help lists them, and //TEXT says /TEXT"  # says an older room
MESSAGE_FOR = re.compile(r"/msg\s+([^:]*[^:\s])\s*:\s*(.*\S)\s*")


def folded(name: str) -> str:
    """Returns what is the same for all ways to write a name that a room takes for the same."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


class ChatProtocol:
    """Our side of a conversation, without I/O: what goes out for what is typed, and what is shown
    for what comes in. It outlives its connections; each begins with `begin`.

    It works with any line relay, by putting the name before each message. In one of our rooms,
    which the first line shows, it makes the name known as well, and there are commands.
    """

    is_echo = False  # a conversation in turns: what goes out is answered before the next may

    def __init__(self, name: str = "", password: bytes = b"", attended: bool = True) -> None:
        self.attended = attended  # somebody sits there, who can put right what goes wrong
        self.password = password
        self.ignored: dict[str, str] = {}  # names, by what folded() makes of them
        self.was_room = False  # the other side has shown itself as one
        self.wanted = name  # by the user, even while somebody else has it
        self.begin()

    def begin(self) -> None:
        """A connection is new: nothing is known of it."""
        self.phase = Phase.WAITING
        self.outgoing = bytearray()  # lines to send, each with its LF
        self.to_show: list[str] = []  # lines
        self.awaits_answer = True  # and what is typed has to wait for it
        self.spoke_outside = False  # something was said before a welcome
        self.calls_user = False  # somebody has said the user's name, or something in private
        self.refused = False  # a command was, as there was no room to do it
        self.why = ""  # what to tell the user if it ends now, as far as we know
        self.hopeless = False  # and it would be in vain to connect again
        self.over = False  # it has to end, and nothing that was said has been heard
        self.requested = ""  # a name that the room was asked for, until it answers
        self.requested_by_user = False
        self.names: dict[str, None] = {}  # that were seen here, the latest last
        self.unseen: set[str] = set()  # commands that were our own idea, as long as unanswered
        self.knows_ping = False  # the room does
        self.answered = False  # what was asked last, so all before that has been heard
        self.set_name(self.wanted)

    @property
    def accepts_input(self) -> bool:
        """Says whether it can be told what was typed."""
        return not self.awaits_answer and self.phase is not Phase.AT_DOOR

    @property
    def wants_password(self) -> bool:
        """Says whether the user has to give a password now."""
        return self.phase is Phase.AT_DOOR and not self.password

    def stop_waiting(self) -> None:
        """Goes on as well as it can: the answer that it waits for may never come."""
        if not (self.was_room and self.phase is Phase.WAITING):
            self.awaits_answer = False

    def set_name(self, name: str) -> None:
        """Puts this name before each message from now on."""
        self.name = name
        self.prompt = f"{name}: " if name else ""  # what the line that is typed begins with
        self.mention = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)

    # From the other side

    def hear(self, line: str) -> None:
        """Takes a line from the other side, clean and without its newline."""
        outside = self.phase in (Phase.WAITING, Phase.AT_DOOR)
        if outside and line == WELCOME:
            self.phase = Phase.IN_ROOM
            self.was_room = True
            self.why = ""
            self.to_show.append(WELCOME)
            self.request_name(self.name)
            self.ask("/who")
            self.ask("/ping")
        elif self.phase is Phase.WAITING and line == PASSWORD_QUESTION:
            self.hear_question()
        elif self.phase is Phase.AT_DOOR and line == WRONG_PASSWORD:
            self.why, self.over = line[2:], True
            self.password = b"" if self.attended else self.password  # then it is asked for again
        elif not line.startswith("* "):
            self.hear_message(line)
        elif self.phase is Phase.IN_ROOM:
            self.hear_room(line)
        else:
            if outside:  # in place of a welcome it is a reason: the room is full, or speaks TLS
                self.why = f"not let in: {line[2:]}"
                self.hopeless = "--tls" in line and not self.was_room
            self.to_show.append(line)

    def hear_question(self) -> None:
        """A room wants its password. What was said by then would be taken for it."""
        self.phase, self.was_room = Phase.AT_DOOR, True
        self.why = "not let in: the room waits no longer for the password"
        if self.spoke_outside and (self.password or self.attended):
            self.why = "not let in: the room asked late for its password; nothing was said yet"
            self.over = True
        elif self.password:
            self.give_password(self.password)

    def hear_message(self, line: str) -> None:
        """Shows what somebody said, and learns from it who is there."""
        if self.phase is not Phase.IN_ROOM:  # some other relay: there is no answer to wait for
            self.phase = Phase.RELAY
            self.why = ""
            self.awaits_answer = False
        speaker, colon, text = line.partition(": ")
        name = speaker.replace(PRIVATE, "") if colon else ""
        if folded(name) in self.ignored:
            return
        self.remember(name)
        private = speaker.endswith(PRIVATE) and bool(colon)
        if private or self.mention.search(text if colon else line):
            self.calls_user = True
        self.to_show.append(line)

    def hear_room(self, line: str) -> None:
        """Follows what the room itself says, and shows it, unless it answers an idea of our own."""
        news, here = NEWS.fullmatch(line), HERE.fullmatch(line)
        is_pong = line == PONG or (line == NO_PING and not self.knows_ping)
        command = "/who" if here else "/ping" if is_pong else ""
        hidden = command in self.unseen
        self.unseen.discard(command)
        if hidden and is_pong:
            self.answered, self.knows_ping = True, line == PONG
        elif here:
            for name in [*filter(NAME.fullmatch, (here[1] or "").split(", ")), *self.names]:
                self.remember(name)  # the latest last: who spoke is likelier to be meant
        elif news:
            self.hear_news(news[1], news[2], news[3] or "")
        elif self.requested:
            hidden = self.hear_name(line)
        self.hopeless = self.hopeless or bool(YOU_ARE_OUT.fullmatch(line))
        if not hidden:
            self.to_show.append(line)

    def hear_name(self, line: str) -> bool:
        """Follows the answer to the request for a name, if it is that; if that one can't be had,
        tries another. Says whether the user need not see it."""
        name = unicodedata.normalize("NFKC", self.requested).strip()
        by_user = self.requested_by_user
        another = f"{name[: MAX_NAME - 1]}_"
        bad = BAD_NAME.fullmatch(line)
        is_ours, is_taken = line == f"* you are {name}", line == f"* {name} is taken"
        if not (is_ours or is_taken or bad):
            return False
        refused, self.requested, self.awaits_answer = self.requested, "", False
        if is_ours:
            self.set_name(name)
            self.wanted = name if by_user else self.wanted
        elif is_taken and another != refused and not by_user:
            self.request_name(another)
        elif not (self.attended or by_user):  # what a script says would come from nobody
            self.why = f"the room refused the name {self.name}: {bad[1] if bad else line[2:]}"
            self.hopeless = self.over = True
        return is_ours and not by_user

    def hear_news(self, name: str, what: str, now: str) -> None:
        """Learns what became of a member; takes the name, if it is free and the user wants it."""
        if what == "joined":
            self.remember(name)
            return
        self.names.pop(name, None)
        self.remember(now)
        if now and folded(name) in self.ignored:
            self.ignored[folded(now)] = now
        lacks_it = folded(self.wanted) not in (folded(self.name), folded(now))
        is_free = what != "was removed" and folded(name) == folded(self.wanted)
        if is_free and lacks_it and not self.requested:
            self.request_name(self.wanted, by_user=True)

    def remember(self, name: str) -> None:
        """Remembers somebody who is there."""
        if 0 < len(name) <= MAX_NAME and name != self.name:
            self.names.pop(name, None)
            self.names[name] = None
            if len(self.names) > MAX_NAMES:
                del self.names[next(iter(self.names))]

    def candidates(self, beginning: str) -> list[str]:
        """Returns the names that begin with a text, the likeliest first."""
        start = beginning.casefold()
        return [name for name in reversed(self.names) if name.casefold().startswith(start)]

    # To the other side

    def ask(self, command: str) -> None:
        """Gives a command that is our own idea: the user need not know of it, nor of the answer."""
        self.unseen.add(command)
        self.outgoing += f"{command}\n".encode()

    def request_name(self, name: str, by_user: bool = False) -> None:
        """Asks the room for a name. What is typed waits for the answer."""
        assert self.phase is Phase.IN_ROOM
        self.requested, self.requested_by_user = name, by_user
        self.awaits_answer = True
        self.outgoing += f"/name {name}\n".encode()

    def give_password(self, password: bytes) -> None:
        """Takes what the user answered to `wants_password`."""
        assert self.phase is Phase.AT_DOOR
        self.password = without_mark(password)
        self.why = "not let in: the room didn't answer the password"
        self.outgoing += self.password + b"\n"

    def submit(self, line: Line) -> None:
        """Takes a line from the user."""
        assert self.accepts_input
        text = line.text.lstrip()
        if line.command and self.phase is not Phase.IN_ROOM:
            self.refused = True
            why = "no chat room has answered; //TEXT says /TEXT"
            self.to_show.append(f"* not sent: {masked(line.command)} ({why})")
        elif line.command and line.alone:
            self.submit_command(line.command)
        elif text.startswith("//") and line.alone:
            self.say(text[1:])
        elif text.strip():
            self.say(line.text)

    def say(self, text: str) -> None:
        """Says a message."""
        message = f"{self.name}: {text}"
        size = len(message.encode())
        if self.phase is Phase.IN_ROOM and size > MAX_MESSAGE:
            self.to_show.append(f"* not said: a line of {size} bytes; a room takes {MAX_MESSAGE}")
            return
        self.spoke_outside = self.phase is not Phase.IN_ROOM
        self.outgoing += f"{message}\n".encode()
        self.to_show.append(message)

    def submit_command(self, line: str) -> None:
        """Does a command, or passes it on to the room."""
        word, _, argument = line.partition(" ")
        argument, private = argument.strip(), MESSAGE_FOR.fullmatch(line)
        if word in ("/name", "/nick") and argument:
            self.request_name(argument, by_user=True)
        elif word != "/ignore":
            self.outgoing += f"{line}\n".encode()
        elif not argument:
            names = ", ".join(self.ignored.values())
            self.to_show.append(f"* ignored: {names or 'nobody'}")
        elif self.ignored.pop(folded(argument), None):
            self.to_show.append(f"* what {argument} says is shown again")
        else:
            self.ignored[folded(argument)] = argument
            again = f"/ignore {argument} shows it again"
            self.to_show.append(f"* what {argument} says is hidden; {again}")
        if private:
            self.to_show.append(f"to {private[1]}{PRIVATE}: {private[2]}")
        elif word == "/help":
            self.to_show.append("* /ignore NAME: hide what NAME says, or show it again")


class EchoProtocol(ChatProtocol):
    """A conversation with an echo server: a line goes out, an answer comes, then the next."""

    is_echo = True

    def begin(self) -> None:
        super().begin()
        self.phase = Phase.RELAY
        self.prompt = "send: "
        self.awaits_answer = False

    def hear(self, line: str) -> None:
        self.to_show.append(f"recv: {line}")
        self.awaits_answer, self.answered = False, True

    def submit(self, line: Line) -> None:
        self.outgoing += f"{line.text}\n".encode()
        self.awaits_answer = True


# --- Characters, words, columns ------------------------------------------------------------------

JOINER = "\u200d"
FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))  # two of them are a flag
# What the keys move over, apart from single characters. A word has with it what is before it. What
# is no part of one isn't \W, as marks are no letters, and have to stay with theirs.
NO_WORD = r"\s!-/:-@\[-`{-~\u2010-\u206f\u3000-\u303f\uff00-\uff0f"
WORD = re.compile(f"[{NO_WORD}]*[^{NO_WORD}]*")
LONG_WORD = re.compile(r"\s*\S*")  # up to the next blank
LINE = re.compile(r"(?s).*")


@lru_cache(4096)
def char_width(char: str) -> int:
    """Returns how many columns a character takes at most. Terminals differ; see Editor.view."""
    category = unicodedata.category(char)
    if category in ("Mn", "Me") or char == JOINER:  # combining marks
        return int(char == "\ufe0f")  # that one makes an emoji of the character before it
    unknown = category in ("Cn", "Co")  # a newer Unicode's, or private: nobody knows how wide
    return 2 if unknown or unicodedata.east_asian_width(char) in "WF" else 1


def text_width(text: str) -> int:
    """Returns how many columns a text takes at most."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def joins(text: str, at: int) -> bool:
    """Says whether the character there forms one visible character with the one before it."""
    char = text[at]
    if char in FLAG_LETTERS:
        return (at - len(text[:at].rstrip(FLAG_LETTERS))) % 2 == 1
    is_skin_tone = "\U0001f3fb" <= char <= "\U0001f3ff"
    is_mark = unicodedata.category(char) in ("Mn", "Me", "Mc", "Cf")
    return is_mark or is_skin_tone or text[at - 1] == JOINER


def fitting_start(text: str, columns: int) -> str:
    """Returns as much of the beginning of a text as fits into `columns`."""
    if text.isascii():
        return text[: max(columns, 0)]
    for index, char in enumerate(text):
        columns -= char_width(char)
        if columns < 0:
            return text[:index]
    return text


def fitting_end(text: str, columns: int) -> str:
    """Returns as much of the end of a text as fits into `columns`."""
    start = len(text) - len(fitting_start(text[::-1], columns))
    while 0 < start < len(text) and joins(text, start):
        start += 1
    return text[start:]


def around(before: str, after: str, columns: int) -> tuple[str, str]:
    """Returns as much of what is before and after a place as fits into so many columns. "<" and ">"
    stand where there is more."""
    ahead = text_width(fitting_start(after, columns // 3))  # is seen in any case
    left = fitting_end(before, columns - ahead)
    if len(left) < len(before):
        left = "<" + fitting_end(before, columns - ahead - 1)
    columns -= text_width(left)
    right = fitting_start(after, columns)
    return left, right if len(right) == len(after) else fitting_start(after, columns - 1) + ">"


def reached(text: str, place: int, step: int, unit: re.Pattern[str] | None = None) -> int:
    """Returns the place in a text, an index, that is one step from another: to the left (-1) or to
    the right (1), over a unit, or else over what one sees as a character."""
    if unit:
        found = unit.match(text[place:] if step > 0 else text[:place][::-1])
        return place + step * (found.end() if found else 0)
    end = len(text) if step > 0 else 0
    places = range(place + step, end, step)
    return next((at for at in places if not joins(text, at)), end)


# --- The line editor -----------------------------------------------------------------------------

MAX_UNASKED = 20  # lines that go out without a question
MAX_HISTORY = 1000  # lines
CTRL_C, CTRL_D, CTRL_L, CTRL_Z = "\x03", "\x04", "\x0c", "\x1a"
PASTE_START, PASTE_END = "\x1b[200~", "\x1b[201~"  # what the terminal puts around what is pasted
# What a terminal answers when somebody, perhaps long gone, asks it for something: ECMA-48's OSC and
# DCS, and kitty's APC. Alt-] and the like begin in the same way, but no digit comes after them.
ANSWER = r"\x1b(?:\][0-9]|P[0-9>!|+$]|_G)[^\x07\x1b]*"
# The beginning of a key that isn't complete, or of a paste.
UNFINISHED = (
    rf"\x1b+(?:\[\[?[0-?]*[ -/]*|O)?|\x1b\[M(?s:.{{0,2}})|{ANSWER}\x1b?"
    r"|\x1b\[200~(?!(?s:.*)\x1b\[201~)(?s:.*)"
)
# One key: a text that is pasted, an escape sequence, a click of the mouse, Alt and a character, or
# a character.
KEY = re.compile(
    rf"(?!(?:{UNFINISHED})\Z)(?:\x1b\[200~(?s:.*?)\x1b\[201~"
    rf"|{ANSWER}(?:\x07|\x1b\\|(?=\x1b))|\x1b\[M(?s:...)"
    r"|\x1b\[\[.|\x1b{1,2}\[[0-?]*[ -/]*[@-~]|\x1b{1,2}O[@-~]"
    r"|\x1b[^\x00-\x07\x09\x0b\x0c\x0e-\x1f\[O]"
    r"|(?s:.))"
)
MARKS = {ord("\n"): "\u21b5", ord("\t"): " "}  # how a newline or a tab is shown in the line


class Editor:
    """A line that is being typed. It does no I/O: keys go in as they come from the terminal,
    finished lines come out, and `view` says how the line looks.
    """

    def __init__(
        self,
        candidates: Callable[[str], Sequence[str]] = lambda _: (),
        pass_on: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.candidates = candidates  # names that begin with a text, the likeliest first
        self.pass_on = pass_on  # is given keys that aren't the line's business
        self.text = ""
        self.cursor = 0  # an index of text
        self.history: deque[str] = deque(maxlen=MAX_HISTORY)
        self.recalled = 0  # place in the history, counted from its end; 0 is the line itself
        self.draft = ""  # the line itself, while another is shown
        self.sought: str | None = None  # in the history, while the user searches there
        self.heading = ""  # stands before the line in place of the prompt
        self.changes: deque[tuple[str, int]] = deque(maxlen=100)  # the line before each
        self.last: Callable[..., object] | None = None  # what the key before did
        self.killed = ""
        self.completing = deque([""])  # what Tab puts in: first what is there, then what is next
        self.decoder = getincrementaldecoder("utf-8")("replace")
        self.unread = ""  # the beginning of a key, or of a paste
        self.lines: deque[Line] = deque()  # finished

    @property
    def begun(self) -> bool:
        """Says whether there is a line that isn't finished."""
        return bool(self.text or self.unread) or self.sought is not None

    # Keys

    def feed(self, data: bytes) -> None:
        """Takes bytes from the terminal, in whatever pieces they come."""
        if not data.strip(b"\x03"):  # Ctrl-C alone: is the end of what was pasted lost?
            self.feed_silence()
        self.unread += self.decoder.decode(data)
        while match := KEY.match(self.unread):
            self.unread = self.unread[match.end() :]
            self.press(match[0])

    def feed_silence(self) -> None:
        """Nothing has come for a while: what was begun has come to its end."""
        if self.unread.startswith(PASTE_START):
            self.feed(PASTE_END.encode())
        self.unread = ""

    def press(self, key: str) -> None:
        """Does what one key is for, or passes it on."""
        if key.startswith("\x1b\x1b"):  # the Escape key and then an arrow, or rxvt's Alt-arrow
            key = key[1:]
        text = "" if key[0] == "\x1b" else key.translate(NO_TEXT)
        method, *given = KEYS.get(key, (Editor.insert, text))
        if key.startswith(PASTE_START):
            method, given = Editor.paste, [key[len(PASTE_START) : -len(PASTE_END)]]
        elif not (key in KEYS or text) or (key in (CTRL_C, CTRL_D) and not self.text):
            self.pass_on(key)
            return
        self.heading = ""
        if self.sought is not None and self.press_in_search(method, given):
            return
        before, goes_on = (self.text, self.cursor), method is self.last is Editor.insert
        method(self, *given)
        if self.text != before[0] and not goes_on and method not in (Editor.undo, Editor.enter):
            self.changes.append(before)
        self.last = method

    def press_in_search(self, method: Callable[..., object], given: Sequence[Any]) -> bool:
        """Does what a key is for in a search; says whether that is all, and not its end."""
        assert self.sought is not None
        start = 1  # counted from the end of the history
        if method is Editor.search:  # again: for an earlier line
            start += self.recalled
        elif method is Editor.insert and given[0] != "\n":
            self.sought += given[0]
        elif method is Editor.delete and given[0] < 0:
            self.sought = self.sought[:-1]
        else:
            self.sought = None
            return False
        sought = self.sought.casefold()
        places = range(start, len(self.history) + 1)
        found = (one for one in places if sought in self.history[-one].casefold())
        self.recall(next(found, self.recalled) - self.recalled)
        self.heading = f"(search: {self.sought}) "
        return True

    def paste(self, text: str) -> None:
        """Puts in text in which nothing is a key: its newlines wait in the line until Enter."""
        self.insert("\n".join(map(only_text, re.split("\r\n?|\n", text))))

    def insert(self, text: str) -> None:
        """Puts a text in at the cursor."""
        self.replace(self.cursor, self.cursor, text)

    def replace(self, start: int, end: int, text: str = "") -> str:
        """Puts a text, and then the cursor, in place of a stretch of the line; returns that."""
        removed = self.text[start:end]
        self.text = self.text[:start] + text + self.text[end:]
        self.cursor = start + len(text)
        return removed

    # The end of a line

    def enter(self) -> None:
        """Finishes the line; one with newlines in it is several. Of many, or if one of several may
        be meant as a command, asks first: they are said as they are, to everyone."""
        texts = self.text.rstrip("\n").split("\n")
        lines = [Line(text, alone=len(texts) == 1) for text in texts]
        is_command = any(line.command and not line.alone for line in lines)
        if (is_command or len(lines) > MAX_UNASKED) and self.last is not Editor.enter:
            slash, whom = (", with a slash", " to everyone") if is_command else ("", "")
            self.heading = f"({len(lines)} lines{slash}: Enter says them{whom}) "
            return
        if self.text.strip() and not OPERATOR.match(self.text):
            self.history.append(self.text)
        self.lines += lines
        self.changes.clear()
        self.drop()

    def drop(self) -> None:
        """Empties the line."""
        self.recalled = 0
        self.replace(0, len(self.text))

    # The history

    def recall(self, step: int) -> None:
        """Shows a line further back in the history, or forth, where at last the line itself is."""
        place = min(max(self.recalled + step, 0), len(self.history))
        if place != self.recalled:
            if self.recalled == 0:
                self.draft = self.text
            self.recalled = place
            self.replace(0, len(self.text), self.history[-place] if place else self.draft)

    def search(self) -> None:
        """Searches the history for what is typed from now on."""
        self.sought, self.heading = "", "(search: ) "

    # Changes

    def undo(self) -> None:
        """Takes the last change back."""
        if self.changes:
            self.text, self.cursor = self.changes.pop()

    def move(self, step: int, unit: re.Pattern[str] | None = None) -> None:
        """Moves the cursor by one step."""
        self.cursor = reached(self.text, self.cursor, step, unit)

    def delete(self, step: int, unit: re.Pattern[str] | None = None) -> str:
        """Removes what is between the cursor and the place one step away; returns it."""
        place = reached(self.text, self.cursor, step, unit)
        return self.replace(min(place, self.cursor), max(place, self.cursor))

    def kill(self, step: int, unit: re.Pattern[str]) -> None:
        """Deletes what `yank` can put back. What is killed key by key is one text."""
        removed = self.delete(step, unit)
        if removed:
            kept = self.killed if self.last is Editor.kill else ""
            self.killed = removed + kept if step < 0 else kept + removed

    def yank(self) -> None:
        """Puts back what was killed last."""
        self.insert(self.killed)

    def transpose(self) -> None:
        """Swaps the two characters around the cursor, at the end of the line the last two."""
        middle = min(self.cursor, reached(self.text, len(self.text), -1))
        start, end = reached(self.text, middle, -1), reached(self.text, middle, 1)
        if start < middle < end:
            self.replace(start, end, self.text[middle:end] + self.text[start:middle])

    def complete(self) -> None:
        """Completes the name before the cursor; another Tab takes the next that fits."""
        if self.last is not Editor.complete:
            word = self.text[: self.cursor].rpartition(" ")[2]
            before = self.text[: self.cursor - len(word)]
            suffix = ": " if before in ("", "/msg ") else " "
            names = self.candidates(word) if word else ()
            self.completing = deque([word, *(name + suffix for name in names)])
        start = self.cursor - len(self.completing[0])
        self.completing.rotate(-1)
        self.replace(start, self.cursor, self.completing[0])

    # How it looks

    def view(self, prompt: str, width: int) -> tuple[str, str]:
        """Returns what a window of `width` columns shows before and after the cursor.

        That is always one row, a stretch around the cursor of what doesn't fit: a row that wraps
        can't be redrawn after the window was resized. Whoever draws it lets the terminal remember
        where the cursor belongs, so here no width has to be exact, only not too small.
        """
        text = masked(self.text)
        reach = 10 * width  # characters, of which surely not more are seen
        before = text[max(self.cursor - reach, 0) : self.cursor].translate(MARKS)
        after = text[self.cursor : self.cursor + reach].translate(MARKS)
        # What Enter will do, or what is searched for, is always seen; the prompt is not.
        heading = fitting_start(self.heading, width * 3 // 4)
        before = before if heading else prompt + before
        left, right = around(before, after, width - 1 - text_width(heading))  # the cursor needs one
        return heading + left, right


# What each key does: a method, and what that is given; and what terminals send for the key (xterm,
# VT100, the Linux console, rxvt).
BINDINGS: tuple[tuple[Any, ...], ...] = (
    (Editor.enter, "\r \n \x1bOM"),
    (Editor.move, -1, LINE, "\x01 \x1b[H \x1bOH \x1b[1~ \x1b[7~"),
    (Editor.move, 1, LINE, "\x05 \x1b[F \x1bOF \x1b[4~ \x1b[8~"),
    (Editor.move, -1, "\x02 \x1b[D \x1bOD"),
    (Editor.move, 1, "\x06 \x1b[C \x1bOC"),
    (Editor.move, -1, WORD, "\x1bb \x1b[1;5D \x1b[1;3D \x1b[5D \x1bOd"),
    (Editor.move, 1, WORD, "\x1bf \x1b[1;5C \x1b[1;3C \x1b[5C \x1bOc"),
    (Editor.recall, 1, "\x10 \x1b[A \x1bOA"),
    (Editor.recall, -1, "\x0e \x1b[B \x1bOB"),
    (Editor.delete, -1, "\x08 \x7f"),
    (Editor.delete, 1, f"{CTRL_D} \x1b[3~"),
    (Editor.kill, -1, LONG_WORD, "\x17"),
    (Editor.kill, -1, WORD, "\x1b\x7f \x1b\x08"),
    (Editor.kill, 1, WORD, "\x1bd"),
    (Editor.kill, 1, LINE, "\x0b"),
    (Editor.kill, -1, LINE, "\x15"),
    (Editor.yank, "\x19"),
    (Editor.transpose, "\x14"),
    (Editor.undo, "\x1f"),
    (Editor.search, "\x12"),
    (Editor.recall, -MAX_HISTORY, "\x07"),
    (Editor.insert, "\n", "\x1b\r \x1b\n"),
    (Editor.complete, "\t"),
    (Editor.drop, CTRL_C),
)
KEYS = {key: binding[:-1] for binding in BINDINGS for key in binding[-1].split(" ")}


# --- The consoles --------------------------------------------------------------------------------

BREAK = "\n  "  # before the rows of a message after the first
MAX_DRAWN = 1024  # bytes above the row that go to the terminal at once, if that's not one line
MIN_PACE = 5000  # bytes a second that the slowest terminal takes, when it isn't stopped
BELL_PAUSE = 5.0  # seconds from one bell to the next, at least
MEASURE_TIME = 0.3  # seconds for the terminal to say where the cursor is

# The escape sequences that go to the terminal (ECMA-48, DEC's VT100, xterm), and what each does.
BOLD = "\x1b[1m"  # SGR: what follows is bold
NORMAL = "\x1b[0m"  # SGR: what follows looks as usual
LINK = "\x1b]8;id={1};{0}\x1b\\{2}\x1b]8;;\x1b\\"  # OSC 8: a part of the link with this id
CLEAR_ROW = "\r\x1b[K"  # EL: to the start of the row, all of which is cleared
CLEAR_BELOW = "\r\x1b[J"  # ED: to the start of the row, and clears it and all that is below
CLEAR_SCREEN = "\x1b[H\x1b[J"  # CUP, ED: to the top left, and clears everything
# A row that is too long for the window doesn't wrap (DECAWM); the terminal itself remembers where
# the cursor belongs, and comes back there once the rest is drawn (DECSC, EL, DECRC).
ROW = "\x1b[?7l\r{}\x1b7{}\x1b[K\x1b8\x1b[?7h"
CURSOR_IS = re.compile(r"\x1b\[\d+;(\d+)R")  # the answer to DSR 6: row, column

# Of the 256 colours, those that can be read on black and on white, one for each 30 degrees of hue.
COLOURS = (160, 130, 100, 64, 28, 29, 30, 33, 63, 135, 164, 168)
# An address of the web, which may have been cut into rows.
ADDRESS = re.compile(rf"https?://(?:{BREAK}(?=\S)|[^\s<>\"])*[^\s<>\"'.,:;!?)\]]")


def hue(name: str) -> float:
    """Returns the hue of a name, in degrees: the golden angle times h, where each character c makes
    (31 h + c) modulo 2 ** 30 of h, from 0 on. So names that differ in their last character, such as
    Lab 1 and Lab 2, are far apart. The page has the same rule."""
    number = 0
    for char in name:
        number = (31 * number + ord(char)) % (1 << 30)
    return number * 137.508 % 360


def in_rows(text: str, columns: int) -> str:
    """Cuts a text into rows of at most this width, at blanks if there are any."""
    rows: list[str] = []
    while len(text) > len(row := fitting_start(text, columns)):
        blank = row.rfind(" ", len(row) // 2)
        rows.append(row[: blank + 1] if blank > 0 else row)
        text = text[len(rows[-1]) :]
        columns -= len(BREAK[1:]) if len(rows) == 1 else 0
    return BREAK.join([*rows, text])


def linked(address: re.Match[str]) -> str:
    """Returns an address of the web; if it is cut into rows, each piece leads to the whole."""
    pieces = address[0].split(BREAK)
    if len(pieces) == 1:
        return address[0]
    whole = quote("".join(pieces), safe=string.punctuation)
    return BREAK.join(LINK.format(whole, address.start(), piece) for piece in pieces)


class Painter:
    """Decorates the lines that are shown: the time, dim notices, a colour for each name, always the
    same; each new day has a line of its own."""

    def __init__(self, colours: bool, timestamps: bool) -> None:
        self.colours = colours
        self.timestamps = timestamps
        self.day = ""  # of the last line
        self.me = ""  # the user's name; none with an echo server, whose lines have no speaker

    def paint(self, line: str, width: int = 0) -> str:
        """Returns a line as it goes to the screen, in rows if the width of that is given. Those
        after the first are indented, so that none can pass for another message."""
        stamp = time.strftime("[%H:%M] ") if self.timestamps else ""
        day = time.strftime("* %Y-%m-%d\n") if self.timestamps else ""
        new_day, self.day = day if self.day not in ("", day) else "", day
        if width:
            # In less than 20 columns they wrap by themselves.
            rows = in_rows(stamp + line.expandtabs(), max(width - 1, 20))
            line = ADDRESS.sub(linked, rows)[len(stamp) :]
        return new_day + stamp + (self.decorate(line) if self.colours else line)

    def decorate(self, line: str) -> str:
        """Returns a line in colours."""
        if line.startswith("* "):
            return f"\x1b[2m{line}{NORMAL}"  # SGR: dim
        speaker, colon, text = line.partition(": ")
        name = speaker.replace(PRIVATE, "")
        mine = name == self.me or (name != speaker and name.startswith("to "))
        if not self.me or not colon or len(name) > MAX_NAME + mine * len("to "):
            return line
        colour = f"\x1b[38;5;{COLOURS[int(hue(name) / 360 * len(COLOURS))]}m"
        return f"{BOLD if mine else colour}{speaker}{NORMAL}: {text}"


class Console:
    """Standard input and output as they are: lines in, lines out, no escape sequences.

    The loop waits for the files that it names, and has it handle what happens there. Some of what
    it is told concerns a terminal alone: here that does nothing.
    """

    why_closed = "standard output is closed"
    interactive = False  # shows what is typed, and lets the user stay without a connection
    write_size = None if ONLY_SOCKETS else select.PIPE_BUF  # POSIX: for a pipe that is ready
    patience = NEVER  # seconds to wait for whoever reads what is written, at the end
    # Python handles signals itself. But one that comes just before the loop waits, or to another
    # thread, or on Windows, would be handled only when the wait is over: so all wake the loop.
    signal_numbers: Sequence[int] = ()  # those that on_signal() handles

    def __init__(self, painter: Painter, screen: int = 1) -> None:
        self.painter = painter
        self.candidates: Callable[[str], Sequence[str]] = lambda _: ()  # names for Tab
        # All that depends on time: what is to be done, and the monotonic time at which. An action
        # that does nothing is a time that somebody looks for here, until it is over.
        self.timers: dict[Callable[[], None], float] = {}
        self.input = open_input()
        self.signals = open_signal_socket(*self.signal_numbers)
        self.attended = os.isatty(0)  # somebody sits there, who can answer a question
        self.framer = LineFramer(MAX_LINE)
        self.at_start = True  # of the input
        self.ended = False  # nothing more will be typed
        self.typed: deque[Line] = deque()  # lines that nobody has taken yet
        self.doubtful: list[str] = []  # lines of which nobody knows whether they have arrived
        self.screen = screen  # the descriptor that is written to
        self.output = bytearray()  # waits to be written
        self.prompt = ""  # what the line that is being typed begins with, where that is shown
        self.status = ""  # what stands before that as long as there is no connection
        self.at_prompt = False

    def files(self) -> list[tuple[Any, int, Callable[[int], object]]]:
        """Returns what to wait for: each file, the events there, 0 for none now, and the handler,
        which is given the events that have come."""
        typing = (self.input, EVENT_READ if self.wants_input() else 0, self.read)
        signals = (self.signals, EVENT_READ, self.on_signal)
        writing = (self.screen, EVENT_WRITE if self.output else 0, self.write)
        return [typing, signals] if ONLY_SOCKETS else [typing, signals, writing]

    def on_signal(self, _: int) -> None:
        """Does what the signals want that have come."""
        self.signals.recv(64)

    # Input

    def wants_input(self) -> bool:
        """Says whether there is a use for more of what the user types."""
        return not self.ended and not self.typed

    def read(self, _: int = 0) -> None:
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

    def feed(self, data: bytes) -> None:
        """Takes what was typed; nothing means the end of input."""
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
        """Returns the next line that was typed."""
        line = self.typed.popleft()
        if self.at_prompt and not self.attended:  # a terminal would have shown it
            self.output += f"{line.text}\n".encode()
        self.at_prompt = False
        return line

    def ask_secret(self, prompt: str) -> bytes | None:
        """Asks for what nobody may see, and returns it; None if it isn't typed yet: ask again in
        the next turn of the loop. Raises Failure if nobody can be asked, or answers."""
        can_ask = getpass and (termios or ONLY_SOCKETS)  # without an echo
        if not (self.attended and can_ask):
            raise Failure("the room wants a password; give it with --password-file FILE")
        while not self.ended and is_ready(self.input, EVENT_READ):
            self.read()  # getpass() drops what was typed before the question
        self.write_all()
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
        """Says whether the user wants to go now, and not only when all that was typed is said."""
        return bool(self.typed) and self.typed[0].leaves

    def unsent(self) -> list[str]:
        """Returns the lines that nobody has taken yet and that are to be sent."""
        lines = takewhile(lambda line: not line.leaves, self.typed)
        return [masked(line.text) for line in lines if line.text.strip()]

    def losses(self) -> list[str]:
        """Returns what to tell somebody who sits there of lines that were typed in vain."""
        told = {"not sent": self.unsent(), IN_DOUBT: self.doubtful} if self.attended else {}
        return [f"{what}: {'; '.join(lines)}" for what, lines in told.items() if lines]

    # Output

    def invite(self, prompt: str, ask: bool = False) -> None:
        """Invites the user to type a line, which is taken now. `ask`: with the prompt, also where
        that isn't shown anyway."""
        if ask and not self.at_prompt:
            self.output += prompt.encode()
            self.at_prompt = True

    def echo_typed(self, line: str) -> None:
        """Leaves on the screen what was typed, with its prompt, if it isn't there already."""
        if self.interactive:
            self.show(line)

    def show(self, line: str) -> None:
        """Puts out a line of text."""
        self.end_row()
        self.output += f"{self.painter.paint(line)}\n".encode()

    def end_row(self) -> None:
        """Ends a row that so far is a prompt."""
        if self.at_prompt:
            self.output += b"\n"
        self.at_prompt = False

    def ring(self) -> None:
        """Calls for the user's attention."""

    def waiting(self) -> int:
        """Returns how many bytes wait to be written."""
        return len(self.output)

    def update(self) -> None:
        """Brings the output up to date, before the loop waits."""
        if ONLY_SOCKETS and self.output:
            self.write()

    def write(self, _: int = 0) -> None:
        """Writes what the output takes. Raises Failure if nobody will ever read it."""
        try:
            del self.output[: os.write(self.screen, self.output[: self.write_size])]
        except BlockingIOError:
            pass
        except OSError:
            self.output.clear()
            raise Failure(self.why_closed) from None

    def write_all(self) -> None:
        """Writes the rest, as long as there is patience."""
        self.end_row()
        deadline = time.monotonic() + self.patience
        while self.output and time.monotonic() < deadline:
            if ONLY_SOCKETS or is_ready(self.screen, EVENT_WRITE, 0.1):
                self.write()

    def close(self) -> None:
        """Gives back what was used, once all that was shown can be seen."""
        self.write_all()
        signal.set_wakeup_fd(-1)
        self.signals.close()


class Terminal(Console):
    """A terminal in raw mode, with a line that is edited below the lines that are shown.

    The line being edited takes one row, at the bottom. To show a line above it is to draw over that
    row and to draw the row again below, in a single write, so that nothing flickers.
    """

    why_closed = "the terminal is gone"
    interactive = True
    write_size = None
    patience = 1.0  # a terminal that is stopped is not waited for
    signal_numbers = (*ENDING_SIGNALS, signal.SIGWINCH, signal.SIGCONT) if termios else ()

    def __init__(self, painter: Painter) -> None:
        # Opened anew for a mode of its own: O_NONBLOCK on the descriptor that we were given would
        # also hold for the shell. A terminal that is stopped must not stop the loop.
        super().__init__(painter, os.open(os.ttyname(1), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
        self.line = Editor(lambda beginning: self.candidates(beginning), self.do)
        self.typed = self.line.lines
        self.secret: Editor | None = None  # in which one is typed, unseen, after the status
        self.above = bytearray()  # waits to be drawn above the row
        self.row = ""  # as it was drawn last
        self.cursor_column = 0
        self.in_tmux = "TMUX" in os.environ and os.environ["TERM"].startswith(("screen", "tmux"))
        self.quiet_until = 0.0  # monotonic time before which no bell rings again
        self.pace = NEVER  # bytes a second that the terminal draws, once it has shown that
        self.stuck: tuple[int, float] | None = None  # bytes that it didn't take, since when
        self.width, self.height = 80, 24
        self.modes: list[Any] | None = None  # that it had, while we have it
        self.take_over()

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
        except (OSError, termios.error) as error:
            if error.args[0] == errno.EINTR:
                return
            raise Failure(self.why_closed) from None
        self.modes = self.modes or before
        self.resize()  # it may have changed meanwhile
        self.output += b"\x1b[?2004h"  # it marks what is pasted

    def give_back(self) -> None:
        """Gives the terminal back as it was found, with all shown in place of the row, unless
        somebody else has it by now."""
        modes, self.modes = self.modes, None
        with suppress(OSError):  # no shell shares it with us
            modes = modes if os.tcgetpgrp(0) == os.getpgrp() else None
        if not modes:
            return
        self.clear_rows()
        self.output += self.above + b"\x1b[?2004l"  # it marks nothing any more
        self.above.clear()
        with suppress(OSError, Failure):
            self.write_all()
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, modes)

    def close(self) -> None:
        self.give_back()
        super().close()

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
        or wrapped into several: the column of the cursor tells which."""
        with suppress(OSError):  # the terminal is gone, as the next read will tell
            self.width, self.height = window_size()
        if self.cursor_column < self.width:
            self.clear_rows()
        else:
            self.output += b"\x1b[6n"  # DSR 6: where is the cursor?
            self.timers[self.clear_rows] = time.monotonic() + MEASURE_TIME

    def measure(self, column: int) -> None:
        """The terminal says where the cursor is. In the last column it tells nothing, unless it is
        known that this terminal wraps."""
        rows, wrapped = divmod(self.cursor_column, self.width)
        last = self.width - 1
        is_wrapped = column == wrapped and (wrapped < last or self.in_tmux)
        if self.clear_rows in self.timers and (is_wrapped or column == last):
            self.clear_rows(rows if is_wrapped else 0)

    def clear_rows(self, above: int = 0) -> None:
        """Clears the row of the cursor, and what is below it, and so many rows above it that are
        surely ours."""
        self.timers.pop(self.clear_rows, None)
        up = f"\x1b[{above}A" if above else ""  # CUU
        self.output += f"{up}{CLEAR_BELOW}".encode()
        self.row, self.cursor_column = "", 0

    # Input

    def wants_input(self) -> bool:
        return bool(self.modes)  # after Ctrl-D there may still be a Ctrl-C

    def feed(self, data: bytes) -> None:
        if not data:
            self.modes, self.ended = None, True  # the terminal is gone
        # Enter ends a secret: what comes after it is none.
        for keys in re.findall(rb"[^\r\n]*[\r\n]?", data) if self.secret else [data]:
            self.editor.feed(keys)
        # Then the end of a key, or of what is pasted, has got lost.
        self.timers[self.editor.feed_silence] = time.monotonic() + 1.0

    @property
    def editor(self) -> Editor:
        """What is being typed: a secret, or else a line."""
        return self.secret if self.secret and not self.secret.lines else self.line

    def do(self, key: str) -> None:
        """Does what a key is for that isn't the line's business. The end of input, or an interrupt,
        leaves once all is said. An interrupt after that, or when a secret is asked for, leaves at
        once."""
        if key == CTRL_Z:  # `fg` continues
            self.give_back()
            os.kill(0, signal.SIGTSTP)
            os.kill(os.getpid(), signal.SIGCONT)  # where no shell could do that, nothing stops us
        elif key == CTRL_L:  # what was above the row has scrolled off
            self.output += (CLEAR_ROW + "\n" * (self.height - 1) + CLEAR_SCREEN).encode()
            self.row = ""
        elif key == CTRL_C and (self.ended or self.secret):
            raise KeyboardInterrupt
        elif key in (CTRL_C, CTRL_D):
            self.ended = True
        elif answer := CURSOR_IS.fullmatch(key):
            self.measure(int(answer[1]) - 1)

    def ask_secret(self, prompt: str) -> bytes | None:
        if self.ended:
            raise Failure("no password given")
        if self.secret and self.secret.lines:
            answer, self.secret, self.status = self.secret.lines[0].text, None, ""
            return answer.encode()
        if not self.secret and self.line.begun:  # which is none, and was typed without knowing
            self.status = "(finish this line, then the password) "
        else:
            self.secret, self.status = self.secret or Editor(pass_on=self.do), prompt
        return None

    def wants_to_leave(self) -> bool:
        return self.ended or any(line.leaves for line in self.typed)

    # Output

    def invite(self, prompt: str, ask: bool = False) -> None:
        if self.editor is self.line or not self.editor.begun:  # else half a secret stays one
            self.secret, self.status = None, ""
        self.prompt = prompt

    def show(self, line: str) -> None:
        self.above += f"{self.painter.paint(line, self.width)}\n".encode()

    def ring(self) -> None:
        now = time.monotonic()
        if now >= self.quiet_until:
            self.above += b"\a"
            self.quiet_until = now + BELL_PAUSE

    def waiting(self) -> int:
        return len(self.output) + len(self.above)

    def update(self) -> None:
        """Draws what is new, if what was drawn before has reached the terminal."""
        if self.output or not self.modes or self.clear_rows in self.timers:
            return
        prompt = self.status + self.prompt
        before, after = self.line.view(prompt, self.width)
        if self.editor is self.secret:
            before, after = fitting_end(self.status, self.width - 1), ""
        self.cursor_column = text_width(before)
        if self.painter.colours and prompt and before.startswith(prompt):
            before = f"{BOLD}{prompt}{NORMAL}{before[len(prompt) :]}"
        row = ROW.format(before, after)
        if self.above and self.rest not in self.timers:
            self.draw_above()
        elif row == self.row:
            return
        self.output += row.encode()
        self.row = row

    def draw_above(self) -> None:
        """Draws lines over the row: few, and no more until the terminal has surely drawn them, as a
        key is seen only after them."""
        end = self.above.find(b"\n", MAX_DRAWN) + 1
        above = self.above[: end or len(self.above)]
        del self.above[: len(above)]
        self.output += CLEAR_ROW.encode() + above
        if self.pace < NEVER:
            self.timers[self.rest] = time.monotonic() + len(above) / self.pace
            self.pace *= 1.01  # is it faster by now?

    def rest(self) -> None:
        """The terminal has surely drawn what it had to."""
        if not self.above:
            self.pace = NEVER

    def write(self, _: int = 0) -> None:
        """Writes what the terminal takes. One that takes the rest of it in pieces is slow, and its
        buffer full: that is to be empty before more is drawn above the row, and not to fill again.
        If it takes the rest at once, it was only stopped."""
        before = len(self.output)
        super().write()
        now = time.monotonic()
        if self.output and not self.stuck:
            self.stuck = len(self.output), now
        elif self.stuck and not self.output:
            (size, since), self.stuck = self.stuck, None
            if before < size:
                self.pace = max(0.9 * size / (now - since + 0.001), MIN_PACE)
                self.timers[self.rest] = now + 16 * 1024 / self.pace  # a system may hold so much


def open_console(plain: bool, timestamps: bool) -> Console:
    """Returns what suits standard input and output. Raises Failure."""
    if sys.stdout is None:
        raise Failure("standard output is closed")
    plain = plain or not termios or os.environ.get("TERM", "") in ("", "dumb")
    if not plain and os.isatty(0) and os.isatty(1):
        with suppress(OSError):  # another user's terminal, after su, can't be opened
            return Terminal(Painter(not os.environ.get("NO_COLOR"), timestamps))
    return Console(Painter(False, timestamps))


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
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return f"{host} does not speak TLS there; leave out --tls"
    return f"no TLS with {host}: {error.reason or error}"


# --- The client and its sessions -----------------------------------------------------------------

CONNECT_TIME = 10.0  # seconds for each address of a host, and for a TLS handshake
QUESTION_TIME = 5.0  # seconds to wait for a question when we have a password to give
ANSWER_TIME = 0.5  # seconds at least to wait for a welcome or an answer that may never come
UNFINISHED_TIME = 0.5  # seconds to wait for the rest of a line that isn't a room's
LINGER = 1.0  # seconds for the server to close after the user has left
MAX_WAITING = 64 * 1024  # bytes that wait for a slow reader before we stop reading the other side
MAX_NOTED = 20  # lines that wait to be sent and are shown one by one
READ_TIME = 5.0  # seconds after which a server that still speaks has read what was sent
LOST_TIME = 15.0  # seconds in which a room that was asked something has to be heard of
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
IN_DOUBT = "what you said last may not have arrived"


class Client:
    """One loop around a console and the connection to a server: it connects, and connects again.

    It keeps what outlives a connection, but for what the protocol knows; the lines that are not
    sent are the console's. What the loop waits for follows from the state, anew in each turn.
    """

    def __init__(
        self,
        console: Console,
        protocol: ChatProtocol,
        host: str = HOST,
        port: int = PORT,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.console = console
        self.timers = console.timers
        self.protocol = protocol
        self.host = host
        self.port = port
        self.tls = tls
        self.sockets = ExitStack()  # closes that of the connection, and one that never became one
        self.delay: float = RETRY_DELAYS[0]  # seconds until the next try
        self.trouble = ""  # the last that the user was told; none while there is a connection
        self.noted = 0  # of the lines that wait to be sent, how many the user was told of
        self.patience = ANSWER_TIME  # seconds to wait for the server's answer

    def run(self) -> None:
        """Connects and talks until the user leaves. Raises Failure, and KeyboardInterrupt if the
        user leaves without a connection."""
        if not (self.protocol.is_echo or self.ask_name()):
            return
        with self.sockets:
            sock = self.connect()
            while True:
                try:
                    Session(self, sock).run()
                    return
                except Disconnected as failure:
                    self.sockets.close()
                    self.tell_lost(failure)
                sock = self.reconnect()

    def ask_name(self) -> bool:
        """Asks the user for a name, unless there is one; says whether there is, and not the end of
        input. Raises Failure if that isn't somebody's wish to leave."""
        console, protocol = self.console, self.protocol
        while not protocol.wanted and (console.typed or not console.ended):
            console.invite("name: ", ask=True)
            if not console.typed:
                self.turn()
                continue
            line = console.take()
            console.echo_typed(f"name: {masked(line.text)}")
            if line.leaves:
                console.typed.clear()
                return False
            if not line.command:  # else each message would begin with it
                protocol.wanted = line.text.strip()
            elif console.attended:
                console.show("* a name does not begin with a slash")
            else:
                break
        console.prompt = ""
        if not protocol.wanted and not console.attended:
            raise Failure("no name was given; use --name NAME, or the first line of the input")
        return bool(protocol.wanted)

    def ask_password(self) -> bool:
        """Gets the password from the user, if the room wants it; says whether it still does."""
        typed = self.console.typed  # without knowing of the question: it is said behind the door
        if self.protocol.wants_password and not (typed and typed[0].leaves):
            password = self.console.ask_secret("password: ")
            if password is not None:
                self.protocol.give_password(password)
        return self.protocol.wants_password

    def tell_lost(self, failure: Disconnected) -> None:
        """Tells the user that there is no connection, unless that is known, and what became of the
        lines that went out last. Raises the failure if nobody would wait for another try."""
        why = str(failure)
        asked_again = self.protocol.wants_password and self.console.attended
        if not asked_again and (self.protocol.is_echo or not self.console.interactive):
            raise failure
        if why != self.trouble or asked_again:
            self.console.show(f"* {why}")
        self.trouble = why
        if self.console.doubtful:
            self.console.show(f"* {IN_DOUBT}:")
        for line in self.console.doubtful:
            self.console.show(f"*   {line}")
        self.console.doubtful = []

    # The loop

    def turn(self, *more: tuple[Any, int, Callable[[int], object]]) -> None:
        """Waits until something can be moved or is due, and does it. `more` is what to wait for
        apart from the console's files."""
        self.console.update()
        first = min(self.timers.values(), default=NEVER)
        with Selector() as selector:
            for file, events, handler in [*self.console.files(), *more]:
                if events:
                    selector.register(file, events, handler)
            left = None if first == NEVER else max(0.0, first - time.monotonic())
            for key, ready in selector.select(left):
                key.data(ready)
        self.do_what_is_due()

    def do_what_is_due(self) -> None:
        """Takes the actions whose time has come."""
        now = time.monotonic()
        for action in [one for one, due in self.timers.items() if due <= now]:
            if self.timers.get(action, NEVER) <= now:  # another may have set or dropped it
                del self.timers[action]
                action()

    def wait(self, seconds: float, sock: socket.socket | None = None, events: int = 0) -> bool:
        """Lets some time pass while there is no session, or waits for events on a socket; says
        whether they have come. Goes on until a password is known that the room wants. Raises
        Failure or KeyboardInterrupt if the user leaves: at once, unless there are lines to send."""
        console = self.console
        came: list[int] = []
        files = [(sock, events, came.append)] if sock else []
        self.timers[self.stop_waiting] = time.monotonic() + seconds
        while self.ask_password() or (not came and self.stop_waiting in self.timers):
            if console.interactive and console.wants_to_leave():
                longer = LINGER if console.unsent() else 0.0
                self.timers.setdefault(self.leave, time.monotonic() + longer)
            if not files:
                self.note_unsent()
            self.turn(*files)
        self.timers.pop(self.stop_waiting, None)
        return bool(came)

    def stop_waiting(self) -> None:
        """The time is over for which something was waited for."""

    def leave(self) -> None:
        """The user doesn't want to wait for a connection. Raises Failure or KeyboardInterrupt."""
        if self.console.unsent():
            raise Failure("left without a connection")
        raise KeyboardInterrupt

    # Connecting

    def connect(self) -> socket.socket:
        """Connects to the first address of the host that answers. Raises Disconnected, Failure if
        the host can't be trusted, and what wait() raises."""
        self.console.status = "(connecting) "
        addresses = self.look_up()
        codes = []
        for family, kind, number, _, address in addresses:
            started = time.monotonic()
            self.sockets.close()
            try:  # even a socket may be refused, such as one for IPv6 where that is switched off
                sock = self.sockets.enter_context(socket.socket(family, kind, number))
                self.connect_to(address, sock)
            except OSError as error:
                codes.append(error.errno or 0)
            else:
                sock = self.shake_hands(sock, self.tls) if self.tls else sock
                took = time.monotonic() - started
                self.patience = min(max(ANSWER_TIME, 4 * took), CONNECT_TIME)
                return sock
        here = all(is_loopback(str(address[0])) for *_, address in addresses)
        # Whoever runs a server that was there knows how to start it.
        script = "echo_server.py" if self.protocol.is_echo else "chat_server.py"
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
            self.wait(NEVER, done, EVENT_READ)
        if isinstance(found[0], Exception):
            raise Disconnected(why_no_address(found[0], self.host))
        return list(found[0])

    def connect_to(self, address: Any, sock: socket.socket) -> None:
        """Connects the socket. Raises OSError, and what wait() raises."""
        sock.setblocking(False)
        for level, option, value in SOCKET_OPTIONS:
            sock.setsockopt(level, option, value)
        code = sock.connect_ex(address)
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            code = errno.ETIMEDOUT
            if self.wait(CONNECT_TIME, sock, EVENT_WRITE):
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def shake_hands(self, plain: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        """Returns the socket with TLS around it. Raises Failure if that can't be trusted."""
        host, deadline = self.host, time.monotonic() + CONNECT_TIME
        # No certificate has the scope of an address in it, or the dot that may end a full name.
        name = host.partition("%")[0].rstrip(".")
        try:
            sock = tls.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
            self.sockets.push(sock)
            while events := handshake_events(sock):
                if not self.wait(deadline - time.monotonic(), sock, events):
                    raise Disconnected(f"{host} does not answer in TLS; does it speak it?")
            return sock
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise Disconnected(f"{host} closed the connection in the TLS handshake") from None
        except ssl.SSLError as error:
            raise Failure(why_no_tls(error, host)) from None
        except OSError as error:
            raise Disconnected(f"no TLS with {host}: {error.strerror}") from None

    def reconnect(self) -> socket.socket:
        """Connects again, trying ever more rarely, once the password is known that the room wants.
        Raises what wait() raises."""
        while True:
            seconds = 0.0
            if not self.protocol.wants_password:
                # So that, when a room starts again, not everyone comes at the same moment.
                seconds = self.delay * random.uniform(0.5, 1.0)
                self.delay = min(2 * self.delay, RETRY_DELAYS[1])
                self.console.status = f"(trying again in {seconds:.1f} s) "
            self.wait(seconds)
            try:
                return self.connect()
            except Disconnected as failure:
                self.tell_lost(failure)

    def note_unsent(self) -> None:
        """Tells the user of the lines that wait to be sent, each once."""
        lines = self.console.unsent()
        new, self.noted = lines[self.noted :], len(lines)
        if len(new) > MAX_NOTED:
            new = [f"{len(new):,} lines"]
        for line in new:
            self.console.show(f"* not sent yet: {line}")


def handshake_events(sock: ssl.SSLSocket) -> int:
    """Shakes hands; returns what has to be waited for before that can go on, 0 if it is done."""
    try:
        sock.do_handshake()
        return 0
    except ssl.SSLWantReadError:
        return EVENT_READ
    except ssl.SSLWantWriteError:
        return EVENT_WRITE


def unacknowledged(sock: socket.socket) -> int:
    """Returns how many of the bytes sent, the end of the stream included, the peer's system has
    yet to acknowledge; 0 where ours doesn't say."""
    if fcntl and SIOCOUTQ:
        with suppress(OSError):
            return int.from_bytes(fcntl.ioctl(sock, SIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


class Session:
    """What happens over one connection, until either side ends it.

    A side whose counterpart is slow is not read from, so that little is held in between.
    """

    def __init__(self, client: Client, sock: socket.socket) -> None:
        self.client = client
        self.console = client.console
        self.timers = client.timers
        self.protocol = client.protocol
        self.sock = sock
        self.framer = LineFramer(MAX_LINE)
        # What the user has to be told of the connection before doesn't keep us from this one.
        self.max_waiting = MAX_WAITING + self.console.waiting()
        self.tls_wants = 0  # EVENT_WRITE while TLS has to send before anything else, else 0
        self.silent = True  # the server has not said anything yet
        self.over = False  # the server has ended the stream, or there is no use in going on
        self.lost = ""  # why it is over, if that was not as it should be
        self.left = False  # the user has said all and wants to go
        self.gone = False  # and waits no longer
        self.stream_ended = False  # our direction of the stream is
        # What was said: the bytes that the system has taken; the lines that may not have arrived,
        # each with the number of bytes up to its end; and how many bytes there were, and when, as
        # the server was last asked whether it has heard all of them, until it answers.
        self.sent = 0
        self.said: deque[tuple[int, Line]] = deque(maxlen=25_000)
        self.asked: tuple[int, float] | None = None
        self.linger = max(LINGER, client.patience)  # seconds for a server that is to close, too

    def run(self) -> None:
        """Talks until it is over, or the user has left. Raises Disconnected if that wasn't the
        user's will, and Failure if there is no use in trying again."""
        self.timers.pop(self.client.leave, None)
        self.protocol.begin()
        least = QUESTION_TIME if self.protocol.password else 0.0
        self.timers[self.stop_waiting] = time.monotonic() + max(least, self.client.patience)
        self.timers[self.settle] = time.monotonic() + SETTLE_TIME
        self.console.candidates = self.protocol.candidates
        self.console.prompt, self.console.status = self.protocol.prompt, ""
        try:
            while not (self.over or self.gone):
                self.client.ask_password()
                self.forward_typed()
                self.ask()
                self.see_off()
                self.client.turn((self.sock, self.events(), self.serve))
        finally:
            for action in (self.stop_waiting, self.settle, self.go, self.lose, self.hear_rest):
                self.timers.pop(action, None)
            self.close_ledger()
        self.raise_failure()

    def stop_waiting(self) -> None:
        """What was waited for may never come."""
        self.protocol.stop_waiting()
        self.show()

    def settle(self) -> None:
        """The connection is one that lasts, to one of our rooms or else for a while already."""
        self.timers.pop(self.settle, None)
        if self.client.trouble:
            self.console.show("* connected again")
        self.client.trouble = ""
        self.client.delay = RETRY_DELAYS[0]

    def raise_failure(self) -> None:
        """Raises what has gone wrong, if anything has."""
        protocol, doubtful = self.protocol, self.console.doubtful
        disconnected = Failure if self.left or protocol.hopeless else Disconnected
        in_vain = protocol.outgoing or self.console.unsent()
        if protocol.why and (self.over or not self.console.attended):
            raise disconnected(protocol.why)
        # A reset after a farewell is only a rude way to close, unless something was said just then.
        if self.lost and not (self.left and not in_vain and not doubtful):
            raise disconnected(f"lost the connection: {self.lost}")
        if in_vain:
            raise Failure("left before everything was sent")
        if doubtful:
            raise Failure("left before everything had arrived")
        if protocol.refused and not self.console.attended:
            raise Failure("not everything was sent, as no chat room has answered")

    # What was said

    def ask(self) -> None:
        """Asks the server whether it has heard what was said. One that can't be asked has, if it
        still speaks a while later."""
        protocol = self.protocol
        is_free = "/ping" not in protocol.unseen and (protocol.knows_ping or not protocol.outgoing)
        if self.said and not self.asked and is_free and not self.stream_ended:
            if protocol.knows_ping:
                protocol.ask("/ping")
            self.asked = self.sent + len(protocol.outgoing), time.monotonic()
        if self.said and "/ping" in protocol.unseen and self.lose not in self.timers:
            self.timers[self.lose] = time.monotonic() + LOST_TIME

    def lose(self) -> None:
        """The server was asked something, and is silent."""
        if self.can_read():
            self.end(f"no answer for {LOST_TIME:.0f} s")
        else:  # the silence is ours
            self.timers[self.lose] = time.monotonic() + LOST_TIME

    def confirm(self) -> None:
        """The server has said something: does that show that it has heard what was said?"""
        now = time.monotonic()
        if self.lose in self.timers:
            self.timers[self.lose] = now + LOST_TIME
        speaks = self.protocol.phase in (Phase.RELAY, Phase.IN_ROOM)
        guessed = speaks and "/ping" not in self.protocol.unseen
        was_read = self.asked and guessed and now >= self.asked[1] + READ_TIME
        if self.protocol.answered or was_read:
            while self.said and self.asked and self.said[0][0] <= self.asked[0]:
                self.said.popleft()
            self.asked, self.protocol.answered = None, False
            self.timers.pop(self.lose, None)

    def close_ledger(self) -> None:
        """Leaves to the console what may not have arrived: lines to be sent, lines to be told."""
        unsent = [line for end, line in self.said if end > self.sent]
        self.console.typed.extendleft(reversed(unsent))
        last = self.sent if self.lost else 0  # bytes that may not have arrived
        if not self.over:
            overhead = 22 if self.client.tls else 0  # of a record, at least (RFC 8446, 5.2)
            last = max(unacknowledged(self.sock) - self.stream_ended - overhead, 0)
        taken = [line for end, line in self.said if self.sent - last < end <= self.sent]
        self.console.doubtful = [masked(line.text) for line in taken]

    # From the user

    def forward_typed(self) -> None:
        """Lets the protocol have the lines that were typed, as long as it takes more."""
        protocol, console = self.protocol, self.console
        while protocol.accepts_input and not self.left and len(protocol.outgoing) < MAX_WAITING:
            console.invite(protocol.prompt, protocol.is_echo)
            if not console.typed:
                if console.ended and console.attended:  # Ctrl-D
                    self.leave()
                break
            line = console.take()
            self.client.noted = 0
            if line.leaves:
                self.leave()
                console.echo_typed((protocol.prompt if protocol.is_echo else "") + line.text)
                break
            before = len(protocol.outgoing)
            protocol.submit(line)
            if len(protocol.outgoing) > before:
                self.said.append((self.sent + len(protocol.outgoing), line))
            self.timers[self.stop_waiting] = time.monotonic() + self.client.patience
            # A chat shows its own message; a command, or what an echo server gets, stays as typed.
            if line.text.strip() and not protocol.to_show:
                console.echo_typed(protocol.prompt + masked(line.text))
            self.show()

    def leave(self) -> None:
        """Takes nothing more from the user, who wants to go."""
        self.left = True
        self.console.typed.clear()
        self.timers[self.go] = time.monotonic() + self.linger

    def go(self) -> None:
        """Whoever wants to go is kept no longer."""
        self.gone = True

    def see_off(self) -> None:
        """Ends our direction of the stream when all is said; until then, whoever wants to go is
        kept for an answer only for a while."""
        console, protocol = self.console, self.protocol
        no_more = self.left or (console.ended and not console.typed)
        stuck = len(protocol.outgoing) >= MAX_WAITING or not protocol.accepts_input
        if no_more and not stuck and not protocol.outgoing and not self.stream_ended:
            self.end_stream()
        if stuck and console.wants_to_leave():
            self.timers.setdefault(self.go, time.monotonic() + self.linger)
        elif not self.left:
            self.timers.pop(self.go, None)

    def end_stream(self) -> None:
        """Ends our direction of the stream. The server then sends what is left and closes.

        To close ourselves, with input unread, would reset the connection, and a reset destroys what
        is still on its way.
        """
        self.stream_ended = True
        if self.left:
            self.timers[self.go] = time.monotonic() + self.linger
        with suppress(OSError):
            # The plain socket's: after that of TLS nothing that still comes would be decrypted.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def show(self) -> None:
        """Puts out what the protocol has to show."""
        protocol, console = self.protocol, self.console
        if protocol.phase is Phase.IN_ROOM:
            self.settle()
        if protocol.why and protocol.awaits_answer and console.interactive:
            return  # it may be all that there will be: then it is the reason that is told
        console.painter.me = protocol.name
        for line in protocol.to_show:
            console.show(line)
        protocol.to_show.clear()
        if protocol.calls_user:
            console.ring()
        protocol.calls_user = False

    # The socket

    def events(self) -> int:
        """Returns what to wait for at the socket now."""
        reading = EVENT_READ if self.can_read() else 0
        return self.tls_wants or reading | (EVENT_WRITE if self.protocol.outgoing else 0)

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
        """Sends what the system takes. As long as that is something, there is time."""
        size = self.sock.send(self.protocol.outgoing)
        del self.protocol.outgoing[:size]
        self.sent += size
        for action, seconds in ((self.go, self.linger), (self.lose, LOST_TIME)):
            if action in self.timers:
                self.timers[action] = time.monotonic() + seconds

    def end(self, lost: str = "") -> None:
        """It is over; `lost` says why, if that isn't as it should be."""
        self.over, self.lost = True, lost

    def receive(self, data: bytes) -> None:
        """Lets the protocol have the lines in what was received; nothing means the end."""
        # Once we have said all, it may close; but if that was nothing, a room would have spoken.
        may_close = self.stream_ended and (self.left or self.sent or self.protocol.is_echo)
        wants_tls = data.startswith(b"\x15\x03") or not (data or may_close)  # RFC 8446, 5.1: alert
        if self.silent and wants_tls and not self.client.tls:
            self.end("the server closed it without a word; if it speaks TLS, use --tls")
            self.protocol.hopeless = not self.protocol.was_room
            return
        self.silent = False
        chunk, too_long = self.framer.feed(data)
        if not data:
            self.end("" if self.stream_ended else "the server closed it")
            chunk = self.framer.finish()
        if too_long:
            self.protocol.to_show.append(TOO_LONG)
        self.hear(chunk)

    def hear(self, chunk: bytes) -> None:
        """Lets the protocol have whole lines, and shows what comes of them."""
        protocol = self.protocol
        before = len(protocol.outgoing)
        for line in chunk.split(b"\n")[:-1]:
            protocol.hear(terminal_text(line))
        if protocol.over:
            self.end()
            self.sent = 0
        else:
            self.confirm()
        if self.stream_ended:  # too late for the name that a late welcome asks for
            protocol.outgoing.clear()
        elif len(protocol.outgoing) > before:  # a question
            self.timers[self.stop_waiting] = time.monotonic() + self.client.patience
        # Some servers end no line. Ours does, so there the rest is only late.
        rest = terminal_text(self.framer.partial)
        late = [line[: len(rest)] for line in (WELCOME, PASSWORD_QUESTION, WRONG_PASSWORD)]
        self.timers.pop(self.hear_rest, None)
        if self.framer.partial and rest not in late and protocol.phase is not Phase.IN_ROOM:
            self.timers[self.hear_rest] = time.monotonic() + UNFINISHED_TIME
        self.show()

    def hear_rest(self) -> None:
        """The rest of a line doesn't come."""
        if self.can_read():
            self.hear(self.framer.finish())
        else:  # the silence is ours
            self.timers[self.hear_rest] = time.monotonic() + UNFINISHED_TIME


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


def open_signal_socket(*numbers: int) -> socket.socket:
    """Returns a socket on which each of these signals arrives as a byte, its number.

    So a signal is one more event for the loop. A handler that raises would strike anywhere, even
    between receiving bytes and passing them on.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)  # open until the process ends
    for number in numbers:
        signal.signal(number, lambda *_: None)  # only one with a handler arrives
    return reader


def raise_for_signal(number: int, _: Any) -> None:
    """Ends the client as a signal wants it: raises KeyboardInterrupt or Terminated. The loop calls
    it; where no loop runs, it is the signal's handler."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


def is_ready(file: int | socket.socket, events: int, seconds: float = 0) -> bool:
    """Says whether something can be read from or written to a file, within so many seconds."""
    with Selector() as selector:
        selector.register(file, events)
        return bool(selector.select(seconds))


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
    stdin: Any = sys.stdin  # None if it was closed

    def feed() -> None:
        with feeder, suppress(OSError, AttributeError):
            # From the raw file: a buffered one is locked by the reader, also when the process ends.
            for data in iter(lambda: stdin.buffer.raw.read(RECEIVE_SIZE), b""):
                feeder.sendall(data)

    threading.Thread(target=feed, daemon=True).start()
    return ours


# --- The command line ----------------------------------------------------------------------------


def host_name(text: str) -> str:
    """Returns a host without the brackets around an IPv6 address. Raises ArgumentTypeError."""
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
    if unknown:
        option = re.match("--[^=]*|-.", unknown[0])
        parser.error(f"there is no option {option[0]}" if option else "too many arguments")
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
    text = os.environ.get("CHAT_PASSWORD")
    try:
        if file is not None:
            with open(file, "rb") as data:
                is_wide = data.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")  # from PowerShell
                encoding = "utf-16" if is_wide else "utf-8-sig"
                with io.TextIOWrapper(data, encoding, "replace") as lines:
                    text = lines.readline()
    except OSError as error:
        raise Failure(f"cannot read the password file {file}: {error.strerror}") from error
    if text is None:
        return b""
    password = text.partition("\n")[0].rstrip("\r")
    if not password.strip() or re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\ufffd]", password):
        problem = "its first line has to be one, and UTF-8 text"
        raise Failure(f"there is no password in {file or 'CHAT_PASSWORD'}; {problem}")
    return password.encode("utf-8", "surrogateescape")


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
        kind = EchoProtocol if args.echo else ChatProtocol
        protocol = kind(args.name or "", password, console.attended)
        with closing(console):  # also on the way to a traceback
            Client(console, protocol, args.host, args.port, tls).run()
    except Failure as error:
        status, told = 1, [str(error)]
    except Terminated as terminated:
        status = 128 + int(terminated.args[0])  # as a shell says it
    except KeyboardInterrupt:
        if console and not console.interactive:
            sys.stderr.write("\n")  # after the ^C that the terminal shows
    told += console.losses() if console else []
    if told:
        print(f"{args.prog}: {'; '.join(told)}", file=sys.stderr)
    return status or int(bool(told))


if __name__ == "__main__":
    open_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
