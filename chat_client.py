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

One thread, one selectors loop around standard input, standard output and a non-blocking socket.
Standard library only, Python 3.8 or later. Copy this file anywhere and run it.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback before the loop runs

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
from typing import Any, Callable, NamedTuple, Tuple
from urllib.parse import quote

try:
    import ssl
except ImportError:  # a Python built without OpenSSL can do everything but TLS
    ssl = None  # type: ignore[assignment]
try:
    import fcntl
    import getpass
    import termios
    import tty
except ImportError:  # on Windows, and in a Python of the bare minimum, such as python3-minimal
    fcntl = termios = None  # type: ignore[assignment]

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
Selector: type[selectors.BaseSelector] = selectors.SelectSelector
if hasattr(selectors, "PollSelector") and sys.platform != "darwin":
    Selector = selectors.PollSelector

# What the loop waits for: a file, the events there, 0 for none now, and the handler, which is given
# the events that have come.
File = Tuple[Any, int, Callable[[int], object]]

# The signals that would end us without giving the terminal back, as far as the system has them.
ENDING_SIGNALS = [
    one for one in signal.Signals if re.fullmatch("SIG(INT|TERM|HUP|QUIT|USR[12]|ALRM)", one.name)
]


# --- Line framing --------------------------------------------------------------------------------

SKIPPED = b"\0\x18"  # stands for a line that was too long; no text has it


class LineFramer:
    """Cuts a stream of bytes into whole lines, whatever pieces the stream comes in.

    It holds at most `max_line` bytes of a line that isn't finished yet. A longer line is skipped to
    its end, so that one that never ends costs no memory.
    """

    __slots__ = ("max_line", "partial", "skipping")

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self.partial = b""  # the unfinished last line
        self.skipping = False  # that line is too long: drop everything up to its newline

    def feed(self, data: bytes) -> bytes:
        """Takes the bytes that came; returns the whole lines, with SKIPPED in place of each that is
        too long.

        The whole lines are one chunk of bytes, each line with its LF, because a chunk is searched
        or passed on with one call, however many lines are in it.
        """
        if self.skipping:
            _, newline, data = data.partition(b"\n")
            self.skipping = not newline
        data = self.partial + data
        end = data.rfind(b"\n") + 1
        chunk, self.partial = data[:end], data[end:]
        if self.has_long_line(chunk):
            lines = chunk.split(b"\n")
            chunk = b"\n".join(line if len(line) <= self.max_line else SKIPPED for line in lines)
        if len(self.partial) > self.max_line:
            chunk += SKIPPED + b"\n"
            self.partial = b""
            self.skipping = True
        return chunk

    def finish(self) -> bytes:
        """The stream has ended: returns its unfinished last line, with an LF, or nothing."""
        last, self.partial = self.partial, b""
        return last + b"\n" if last else b""

    def has_long_line(self, chunk: bytes) -> bool:
        """Says whether a line is too long, by jumps from a newline to the last one within reach:
        1 us for 64 KiB of short lines, where a regular expression takes 1,000."""
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
    [*range(9), *range(10, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
)

# What nobody sees before a slash, of either width: blanks, and format characters such as zero-width
# spaces, which come with what is pasted.
UNSEEN = (
    r"[\s\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]*"
)
COMMAND = re.compile(UNSEEN + r"[/\uff0f](?![/\uff0f])(.*)", re.DOTALL)
OPERATOR = re.compile(UNSEEN + r"[/\uff0f]op\s+", re.IGNORECASE)  # then comes a password


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
        is_command = self.command.partition(" ")[0] in ("/quit", "/exit")
        return self.alone and (is_command or self.text.strip() in ("quit", "exit"))

    @property
    def is_ours(self) -> bool:
        """Says whether it is a command that is no room's business."""
        return self.alone and self.command.partition(" ")[0] == "/ignore"

    @property
    def command(self) -> str:
        """The text from its slash on, if it begins with one, and not with the two of a message. A
        blank before a command makes no message of it."""
        found = COMMAND.match(self.text)
        return f"/{found[1]}" if found else ""


class Phase(enum.Enum):
    """How far the other side has shown itself: as one of our rooms, or as another relay of lines.

    phase     what was heard        what is typed                                  may become
    WAITING   nothing, or notices   waits, until the time for an answer is over;   any other
                                    longer where there was a room
    AT_DOOR   password?             waits: it would be taken for the password      IN_ROOM, RELAY
    IN_ROOM   the welcome           waits while a name is requested; may be a command
    RELAY     what somebody said    goes out

    A command goes out in a room alone, once that has answered something. Elsewhere it would be said
    to everyone, so it is refused.
    """

    WAITING = enum.auto()
    AT_DOOR = enum.auto()
    IN_ROOM = enum.auto()
    RELAY = enum.auto()


MAX_NAME = 32  # characters that a room allows
MAX_NAMES = 1000  # names that Tab completes
PRIVATE = " (private)"
WELCOME = "Welcome to the chatroom!"
PASSWORD_QUESTION = "* password?"
WRONG_PASSWORD = "* wrong password"
YOU_ARE_OUT = re.compile(r"\* you were removed by an operator; come back in \d+ min")
BAD_NAME = re.compile(r"\* (a name .*|too long): .*")  # no name has a colon, so none looks like it
# What a room says of its members. A name in it is believed if it has nothing in it with which that
# could be read in another way.
NAME = re.compile(
    rf"(?:(?!,|(?<!\S)(?:and|joined|left|is now|was removed|more|unnamed|you are|you were)(?!\S)).)"
    rf"{{1,{MAX_NAME}}}"
)
NEWS = re.compile(rf"\* ({NAME.pattern}) (joined|left|was removed|is now ({NAME.pattern}))")
HERE = re.compile(r"\* here: (?:\d+ unnamed|(.+?)(?: and \d+ unnamed)?)")
UNCOUNTED = re.compile("[-.' :\u2018\u2019\u02bb\u02bc\u200c\u200d]")  # in a name


def folded(name: str) -> str:
    """Returns what is the same for all ways to write a name that a room takes for the same."""
    return UNCOUNTED.sub("", unicodedata.normalize("NFKC", name).casefold())


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
        # Names, by what folded() makes of them, and whether it is the bearer's other name that the
        # user has had enough of.
        self.ignored: dict[str, tuple[str, bool]] = {}
        self.was_room = False  # the other side has shown itself as one
        self.wanted = name  # by the user, even while somebody else has it
        self.begin()

    def begin(self) -> None:
        """A connection is new: nothing is known of it."""
        self.phase = Phase.WAITING
        self.outgoing = bytearray()  # lines to send, each with its LF
        self.to_show: list[str] = []  # lines
        self.accepts_input = False  # it can be told what was typed
        self.calls_user = False  # somebody has said the user's name, or something in private
        self.answers = False  # the other side does, as only a room can, and not just greet like one
        self.refused = ""  # why something that was typed was not sent, if there was such
        self.why = ""  # what to tell the user if it ends before we are let in, as far as we know
        self.requested = ""  # a name that the room was asked for, until it answers
        self.names: dict[str, None] = {}  # that were seen here, the latest last
        # Of each /who and /ping that is unanswered, whether it is our own: the user need not know
        # of that, nor of the answer.
        self.unanswered: dict[str, deque[bool]] = {"/who": deque(), "/ping": deque()}
        self.set_name(self.wanted)

    @property
    def wants_password(self) -> bool:
        """Says whether the user has to give a password now."""
        return self.phase is Phase.AT_DOOR and not self.password

    def stop_waiting(self) -> None:
        """Goes on as well as it can: the answer that it waits for may never come."""
        if not (self.answers if self.phase is Phase.IN_ROOM else self.was_room):
            self.accepts_input = True

    def be_relay(self) -> None:
        """The other side is no room of ours: there is no answer to wait for."""
        self.phase = Phase.RELAY
        self.why = ""
        for questions in self.unanswered.values():
            questions.clear()
        self.accepts_input = True

    def set_name(self, name: str) -> None:
        """Puts this name before each message from now on."""
        self.name = name
        self.prompt = f"{name}: " if name else ""  # what the line that is typed begins with
        self.mention = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)

    # From the other side

    def hear(self, line: str) -> None:
        """Takes a line from the other side, clean and without its newline. Raises Disconnected if
        there has to be another connection, and Failure if that would be in vain."""
        outside = self.phase in (Phase.WAITING, Phase.AT_DOOR)
        if outside and line == WELCOME:
            self.phase = Phase.IN_ROOM
            self.was_room = True
            self.why = ""
            self.to_show.append(WELCOME)
            self.request_name(self.name)
            self.ask("/who")
        elif self.phase is Phase.WAITING and line == PASSWORD_QUESTION:
            self.hear_question()
        elif self.phase is Phase.AT_DOOR and line == WRONG_PASSWORD:
            self.password = b""  # so that it is asked for again
            raise Disconnected("wrong password")
        elif not line.startswith("* "):
            self.hear_message(line)
        elif self.phase is Phase.IN_ROOM:
            self.hear_room(line)
        else:
            if outside:  # in place of a welcome it is a reason: the room is full, or speaks TLS
                self.why = f"not let in: {line[2:]}"
            self.to_show.append(line)

    def hear_question(self) -> None:
        """A room wants its password. What was said by then would be taken for it."""
        is_late, self.accepts_input = self.accepts_input, False
        self.phase = Phase.AT_DOOR
        self.was_room = True
        if is_late and (self.password or self.attended):
            raise Disconnected("not let in: the room asked late for its password")
        if self.password:
            self.give_password(self.password)
        else:
            self.why = "not let in: the room no longer waits for the password"

    def hear_message(self, line: str) -> None:
        """Shows what somebody said, and learns from it who is there."""
        if self.phase is not Phase.IN_ROOM:
            self.be_relay()
        speaker, colon, text = line.partition(": ")
        name = speaker.replace(PRIVATE, "") if colon else ""
        if folded(name) in self.ignored:
            return
        self.remember(name)
        private = colon and speaker.endswith(PRIVATE)
        if private or self.mention.search(text if colon else line):
            self.calls_user = True
        self.to_show.append(line)

    def hear_room(self, line: str) -> None:
        """Follows what the room itself says, and shows it, unless it answers an idea of our own."""
        news, here = NEWS.fullmatch(line), HERE.fullmatch(line)
        questions = self.unanswered.get("/who" if here else "/ping" if line == "* pong" else "")
        hidden = bool(questions and questions.popleft()) or line == f"* you are {self.name}"
        self.answers = self.answers or hidden
        if here:
            for name in [*filter(NAME.fullmatch, (here[1] or "").split(", ")), *self.names]:
                self.remember(name)  # the latest last: who spoke is likelier to be meant
        elif news:
            self.hear_news(news[1], news[2], news[3] or "")
        elif YOU_ARE_OUT.fullmatch(line):
            raise Failure(line[2:])
        elif self.requested:
            self.hear_answer(line)
        if line.startswith("* too long:"):
            self.refused = line[2:]
        if not hidden:
            self.to_show.append(line)

    def hear_answer(self, line: str) -> None:
        """Follows the answer to the request for a name, if this is it; tries another name if that
        one is taken. Raises Failure if what a script says would not come from whom it wants."""
        name, bad = self.requested, BAD_NAME.fullmatch(line)
        another, is_taken = f"{name[: MAX_NAME - 1]}_", line == f"* {name} is taken"
        if line == f"* you are {name}":
            self.set_name(name)
            self.requested = ""
        elif is_taken and another != name:
            self.request_name(another)
        elif (is_taken or bad) and not self.attended:
            raise Failure(f"the room refused the name {name}: {bad[1] if bad else line[2:]}")
        elif is_taken or bad:
            self.wanted = self.name
            self.requested = ""
        self.answers = self.answers or is_taken or not self.requested
        self.accepts_input = self.accepts_input or not self.requested

    def hear_news(self, name: str, what: str, now: str) -> None:
        """Learns what became of a member; takes the name, if it is free and the user wants it."""
        self.names.pop(name, None)
        self.remember(name if what == "joined" else now)
        if what != "joined" and folded(name) != folded(now):
            self.follow(folded(name), now)
        has_it = folded(self.wanted) in (folded(self.requested or self.name), folded(now))
        is_free = what in ("left", f"is now {now}") and folded(name) == folded(self.wanted)
        if is_free and not has_it:
            self.request_name(self.wanted)

    def follow(self, before: str, now: str) -> None:
        """Hides what somebody who is ignored says under another name, but not what is said by
        whoever takes that after them. `now` is empty if they have left."""
        if before in self.ignored and now and folded(now) not in self.ignored:
            self.ignored[folded(now)] = (now, True)
        if before in self.ignored and self.ignored[before][1]:
            del self.ignored[before]

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
        """Gives a command that is our own idea."""
        self.unanswered[command].append(True)
        self.outgoing += f"{command}\n".encode()

    def request_name(self, name: str) -> None:
        """Asks the room for a name. What is typed waits for the answer."""
        self.requested = unicodedata.normalize("NFKC", name).strip()
        self.accepts_input = False
        self.outgoing += f"/name {name}\n".encode()

    def give_password(self, password: bytes) -> None:
        """Takes what the user answered to `wants_password`."""
        self.password = without_mark(password)
        self.why = ""
        self.outgoing += self.password + b"\n"

    def has_to_wait(self, line: Line) -> bool:
        """Says whether a line waits for the room's first answer: it may only greet like one."""
        is_for_room = line.command and not (line.is_ours or line.leaves)
        return bool(is_for_room) and self.phase is Phase.IN_ROOM and not self.answers

    def submit(self, line: Line) -> None:
        """Takes a line from the user, unless that has to wait."""
        assert self.accepts_input
        text = line.text.lstrip()
        if line.command and not (self.phase is Phase.IN_ROOM or line.is_ours):
            self.refused = "no chat room has answered"
            why = f"{self.refused}; //TEXT says /TEXT"
            self.to_show.append(f"* not sent: {masked(line.command)} ({why})")
        elif line.command and line.alone:
            self.submit_command(line.command)
        elif text:
            message = text[1:] if text.startswith("//") and line.alone else line.text
            self.to_show.append(f"{self.name}: {message}")
            self.outgoing += f"{self.to_show[-1]}\n".encode()

    def submit_command(self, line: str) -> None:
        """Does a command, or passes it on to the room."""
        word, _, argument = line.partition(" ")
        argument = argument.strip()
        name, _, text = map(str.strip, argument.partition(":"))
        if word == "/ignore":
            self.ignore(argument)
        elif word in ("/name", "/nick") and argument:
            self.wanted = argument
            self.request_name(argument)
        else:
            self.outgoing += f"{line}\n".encode()
        if word in self.unanswered:
            self.unanswered[word].append(False)
        elif word == "/msg" and name and text:
            self.to_show.append(f"to {name}{PRIVATE}: {text}")
        elif word == "/help":
            self.to_show.append("* /ignore NAME: hide what NAME says, or show it again")

    def ignore(self, name: str) -> None:
        """Hides what somebody says, or shows it again; without a name, tells whom it ignores."""
        if not folded(name):
            told = f"ignored: {', '.join(one for one, _ in self.ignored.values()) or 'nobody'}"
        elif self.ignored.pop(folded(name), None):
            told = f"what {name} says is shown again"
        else:
            self.ignored[folded(name)] = (name, False)
            told = f"what {name} says is hidden; /ignore {name} shows it again"
        self.to_show.append(f"* {told}")


class EchoProtocol(ChatProtocol):
    """A conversation with an echo server: a line goes out, an answer comes, then the next."""

    is_echo = True

    def begin(self) -> None:
        super().begin()
        self.phase = Phase.RELAY
        self.prompt = "send: "
        self.accepts_input = True
        self.answers = not self.attended  # a script wants to see them all

    def hear(self, line: str) -> None:
        self.to_show.append(f"recv: {line}")
        self.accepts_input = True

    def submit(self, line: Line) -> None:
        self.outgoing += f"{line.text}\n".encode()
        self.accepts_input = False


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


def wrapped_place(text: str, width: int) -> tuple[int, int]:
    """Returns the row and the column after a text that has wrapped; the column is `width` if the
    last row is full. A wide character may leave the last column of a row empty."""
    row = column = 0
    for char in text:
        if column + char_width(char) > width:
            row, column = row + 1, 0
        column += char_width(char)
    return row, column


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
CTRL_C, CTRL_D, CTRL_L, CTRL_Z = "\x03", "\x04", "\x0c", "\x1a"
PASTE_START, PASTE_END = "\x1b[200~", "\x1b[201~"  # what the terminal puts around what is pasted
# What a terminal answers when somebody, perhaps long gone, asks it for something: ECMA-48's OSC and
# DCS, and kitty's APC. Alt-] and the like begin in the same way, but no digit comes after them.
ANSWER = r"\x1b(?:\][0-9]|P[0-9>!|+$]|_G)[^\x07\x1b]*"
# The beginning of a key that isn't complete, or of a paste.
UNFINISHED_KEY = (
    rf"\x1b+(?:\[\[?[0-?]*[ -/]*|O)?|\x1b\[M(?s:.{{0,2}})|{ANSWER}\x1b?"
    r"|\x1b\[200~(?!(?s:.*)\x1b\[201~)(?s:.*)"
)
# One key: a text that is pasted, an escape sequence, a click of the mouse, Alt and a character, the
# beginning of a sequence that was broken off, or a character.
KEY = re.compile(
    rf"(?!(?:{UNFINISHED_KEY})\Z)(?:\x1b\[200~(?s:.*?)\x1b\[201~"
    rf"|{ANSWER}(?:\x07|\x1b\\|(?=\x1b))|\x1b\[M(?s:...)"
    r"|\x1b\[\[.|\x1b{1,2}\[[0-?]*[ -/]*[@-~]|\x1b{1,2}O[@-~]"
    r"|\x1b[^\x00-\x07\x09\x0b\x0c\x0e-\x1f\[O]"
    r"|\x1b+(?:\[\[?[0-?]*[ -/]*|O)"
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
        never_ours: str = "",
    ) -> None:
        self.candidates = candidates  # names that begin with a text, the likeliest first
        self.pass_on = pass_on  # is given keys that aren't the line's business
        self.never_ours = never_ours  # those of which that is true even if there is a line
        self.text = ""
        self.cursor = 0  # an index of text
        self.history: deque[str] = deque(maxlen=1000)
        self.recalled = 0  # place in the history, counted from its end; 0 is the line itself
        self.left: dict[int, str] = {}  # how lines were left that were shown before, by place
        self.origin = (0, 0)  # place and cursor where a search began
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
        if self.unread == "\x1b":
            self.end_search()
        self.unread = ""

    def press(self, key: str) -> None:
        """Does what one key is for, or passes it on."""
        is_escape = len(key) == 2 and key[0] == "\x1b" and (key not in KEYS or key[1] in "\r\n")
        if is_escape and self.sought is not None:
            self.end_search()
            key = key[1]
        if key.startswith("\x1b\x1b"):  # the Escape key and then an arrow, or rxvt's Alt-arrow
            key = key[1:]
        text = "" if key[0] == "\x1b" else key.translate(NO_TEXT)
        method, *given = KEYS.get(key, (Editor.insert, text))
        has_line = self.text or self.sought is not None
        if key.startswith(PASTE_START):
            method, given = Editor.paste, [key[len(PASTE_START) : -len(PASTE_END)]]
        elif not (key in KEYS or text) or key in (self.never_ours if has_line else CTRL_C + CTRL_D):
            self.pass_on(key)
            return
        self.heading = ""
        if self.sought is not None and self.press_in_search(method, given):
            return
        before, goes_on = (self.text, self.cursor), method is self.last is Editor.insert
        goes_on = goes_on and self.cursor - self.changes[-1][1] < 20  # typed, for one undo
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
        elif method in (Editor.insert, Editor.paste) and given[0] != "\n":
            self.sought += only_text(given[0])
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
        self.left.clear()
        self.replace(0, len(self.text))

    # The history

    def recall(self, step: int) -> None:
        """Shows a line further back in the history, or forth, where at last the line itself is."""
        place = min(max(self.recalled + step, 0), len(self.history))
        if place != self.recalled:
            self.left[self.recalled] = self.text
            self.recalled = place
            known = self.left[place] if place in self.left else self.history[-place]
            self.replace(0, len(self.text), known)

    def search(self) -> None:
        """Searches the history for what is typed from now on."""
        self.sought, self.heading = "", "(search: ) "
        self.origin = self.recalled, self.cursor

    def end_search(self) -> None:
        """Ends a search, if there is one, at the line that was found, as the Escape key does."""
        if self.sought is not None:
            self.sought = None
            self.last = None
            self.heading = ""

    def give_up(self) -> None:
        """Ends a search, and goes back to where that began."""
        if self.last is Editor.search:
            self.recall(self.origin[0] - self.recalled)
            self.cursor = self.origin[1]

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
    (Editor.kill, 1, WORD, "\x1bd \x1b[3;5~"),
    (Editor.kill, 1, LINE, "\x0b"),
    (Editor.kill, -1, LINE, "\x15"),
    (Editor.yank, "\x19"),
    (Editor.transpose, "\x14"),
    (Editor.undo, "\x1f"),
    (Editor.search, "\x12"),
    (Editor.give_up, "\x07"),
    (Editor.insert, "\n", "\x1b\r \x1b\n"),
    (Editor.complete, "\t"),
    (Editor.drop, CTRL_C),
)
KEYS = {key: binding[:-1] for binding in BINDINGS for key in binding[-1].split(" ")}


# --- The consoles --------------------------------------------------------------------------------

BREAK = "\n  "  # before the rows of a message after the first
MAX_DRAWN = 1024  # bytes above the row that go to the terminal at once, or one whole line
PACE_TIME = 0.25  # seconds between two looks at what a terminal without room has taken, at least
FAST = 48 * 1024  # bytes a second at which a key is soon seen, whatever waits before it
SLOW_TIME = 30.0  # seconds until a slow terminal may be faster
HELD = 16 * 1024  # bytes that a system may hold for a terminal
BELL_PAUSE = 5.0  # seconds from one bell to the next, at least
STEADY_TIME = 0.3  # seconds without a new size after which a window is no longer dragged
MEASURE_TIME = 0.3  # seconds for the terminal to say where the cursor is

# The escape sequences that go to the terminal (ECMA-48, DEC's VT100, xterm), and what each does.
BOLD = "\x1b[1m"  # SGR: what follows is bold
NORMAL = "\x1b[0m"  # SGR: what follows looks as usual
LINK = "\x1b]8;id={1};{0}\x1b\\{2}\x1b]8;;\x1b\\"  # OSC 8: a part of the link with this id
# EL, CUF, ED: to the start of the row, and clears it and all that is below. Not by ED alone: at the
# top of the screen tmux takes that for an order to keep all that it clears.
CLEAR_BELOW = "\r\x1b[K\x1b[C\x1b[J\r"
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
        self.left_out = ""  # why something that was typed can't be sent, if there was such
        self.typed: deque[Line] = deque()  # lines that nobody has taken yet
        self.doubtful: list[str] = []  # lines of which nobody knows whether they have arrived
        self.screen = screen  # the descriptor that is written to
        self.output = bytearray()  # waits to be written
        self.prompt = ""  # what the line that is being typed begins with, where that is shown
        self.status = ""  # what stands before that as long as there is no connection
        self.at_prompt = False

    def files(self) -> list[File]:
        """Returns what to wait for."""
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

    def read_ahead(self) -> None:
        """Receives all that was typed so far."""
        while not self.ended and is_ready(self.input, EVENT_READ):
            self.read()

    def feed(self, data: bytes) -> None:
        """Takes what was typed; nothing means the end of input."""
        chunk = self.framer.feed(data)
        if not data:
            self.ended = True
            chunk = self.framer.finish()
        if self.at_start and chunk:
            chunk, self.at_start = without_mark(chunk), False
        for line in chunk.split(b"\n")[:-1]:
            if line == SKIPPED:
                self.show(TOO_LONG)
                self.left_out = "a line was too long"
            else:
                self.typed.append(Line(terminal_text(line)))

    def take(self) -> Line:
        """Returns the next line that was typed."""
        line = self.typed.popleft()
        if self.at_prompt and not self.attended:  # a terminal would have shown it
            self.output += f"{masked(line.text)}\n".encode()
        self.at_prompt = False
        return line

    def ask_secret(self, prompt: str) -> bytes | None:
        """Asks for what nobody may see, and returns it; None if it isn't typed yet: ask again in
        the next turn of the loop. Raises Failure if nobody can be asked, or answers."""
        if not (self.attended and termios):  # else it would be seen
            raise Failure("the room wants a password; give it with --password-file FILE")
        self.read_ahead()  # getpass() drops what was typed before the question
        self.write_all()
        # The loop doesn't run meanwhile, so signals have to strike at once.
        handlers: dict[int, Any] = dict.fromkeys(ENDING_SIGNALS, raise_for_signal)
        handlers[signal.SIGTSTP] = signal.SIG_IGN  # after `fg` one would see what is typed
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

    def forget_typed(self, kept: int) -> None:
        """Drops the lines that were typed after so many others, while a password was checked that
        was wrong: one may be the right one, and would be said to everyone."""
        late = [self.typed.pop() for _ in range(len(self.typed) - kept)]
        self.typed.extend(line for line in late if line.leaves)
        dropped = sum(not line.leaves for line in late)
        if dropped:
            self.show(f"* lines not sent, as they may hold the password: {dropped}")

    def wants_to_leave(self) -> bool:
        """Says whether the user wants to go now, and not only when all that was typed is said."""
        return bool(self.typed) and self.typed[0].leaves

    def unsent(self) -> list[str]:
        """Returns the lines that nobody has taken yet and that are to be sent."""
        lines = takewhile(lambda line: not line.leaves, self.typed)
        return [masked(line.text) for line in lines if line.text.strip()]

    def losses(self) -> list[str]:
        """Returns what to tell somebody who sits there of lines that were typed in vain."""
        if self.attended and not self.wants_to_leave():
            self.read_ahead()  # what was meant for the room is not for the shell
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
        while ONLY_SOCKETS and self.output:  # a console takes 32,767 bytes at once
            self.write()

    def write(self, _: int = 0) -> None:
        """Writes what the output takes. Raises Failure if nobody will ever read it."""
        try:
            del self.output[: os.write(self.screen, self.output[: self.write_size])]
        except BlockingIOError:
            pass
        except OSError as error:
            self.output.clear()
            is_full = error.errno == errno.ENOSPC
            raise Failure("the disk is full" if is_full else self.why_closed) from None

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
        self.before = ""  # what of it is before the cursor
        # Two kinds are known to wrap a row that is too wide for them: tmux, with GNU screen; and
        # VTE's, such as GNOME's. (Another that is started there inherits its variable.)
        kind, given = os.environ["TERM"], os.environ.get
        in_tmux = kind.startswith(("screen", "tmux")) and (given("TMUX") or given("STY"))
        is_another = given("XTERM_VERSION") or given("TERM_PROGRAM")
        self.in_vte = kind.startswith("xterm") and bool(given("VTE_VERSION") and not is_another)
        self.wraps = bool(in_tmux or self.in_vte)
        self.quiet_until = 0.0  # monotonic time before which no bell rings again
        self.pace = NEVER  # bytes a second that the terminal draws, while that is known
        self.taken = 0  # bytes that it has taken in all
        # When it had no room, again and again without being fast meanwhile, and what it had taken.
        self.full: list[tuple[float, int]] = []
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
        with suppress(OSError):
            self.width, self.height = window_size()
        # There is no time to ask where the cursor is.
        self.clear_rows(wrapped_place(self.before, self.width)[0] if self.wraps else 0)
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
        """The window has another size. Nothing is drawn until that stays: a row that is drawn for a
        size that has passed may be cut off, and then wrapped, and nobody knows where it begins. And
        tmux tells of a size up to a quarter of a second late."""
        with suppress(OSError):  # the terminal is gone, as the next read will tell
            self.width, self.height = window_size()
        if self.before:
            self.timers[self.settle] = time.monotonic() + STEADY_TIME
            self.timers[self.clear_rows] = self.timers[self.settle] + MEASURE_TIME
        else:
            self.clear_rows()

    def settle(self) -> None:
        """The size stays. A row that is now too wide was cut off by the terminal, or wrapped into
        several: the column of the cursor tells which."""
        if text_width(self.before) < self.width:
            self.clear_rows()
        else:
            self.output += b"\x1b[6n"  # DSR 6: where is the cursor?

    def measure(self, column: int) -> None:
        """The terminal says where the cursor is. In the last column it tells nothing, unless it is
        known that this terminal wraps. After a row that is full, tmux says that it is beyond, and
        VTE that it is in the last column."""
        rows, wrapped = wrapped_place(self.before, self.width)
        last = self.width - 1
        if (wrapped, column) == (self.width, 0):
            rows, wrapped = rows + 1, 0
        elif self.in_vte:
            wrapped = min(wrapped, last)
        is_wrapped = column == wrapped and (column != last or self.wraps)
        is_awaited = self.clear_rows in self.timers and self.settle not in self.timers
        with suppress(OSError):  # the terminal is gone
            is_awaited = is_awaited and window_size() == (self.width, self.height)
        if is_awaited and (is_wrapped or column >= last):
            self.clear_rows(rows if is_wrapped else 0)

    def clear_rows(self, above: int = 0) -> None:
        """Clears the row of the cursor, and what is below it, and so many rows above it that are
        surely ours."""
        for action in (self.settle, self.clear_rows):
            self.timers.pop(action, None)
        up = f"\x1b[{above}A" if above else ""  # CUU
        self.output += f"{up}{CLEAR_BELOW}".encode()
        self.row = self.before = ""

    # Input

    def wants_input(self) -> bool:
        return bool(self.modes)  # after Ctrl-D there may still be a Ctrl-C

    def feed(self, data: bytes) -> None:
        if not data:
            self.modes, self.ended = None, True  # the terminal is gone
        # Enter ends a secret: what comes after it is none.
        for keys in re.findall(rb"[^\r\n]*[\r\n]|[^\r\n]+", data) if self.secret else [data]:
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
            self.output += (CLEAR_BELOW + "\n" * (self.height - 1) + CLEAR_SCREEN).encode()
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
            (secret, *more), self.secret, self.status = self.secret.lines, None, ""
            self.typed.extend(more)  # pasted with it: perhaps a secret, too
            super().forget_typed(len(self.typed) - len(more))
            return secret.text.encode()
        if not self.secret and self.line.begun:  # begun before the question
            self.status = "(finish this line, then the password) "
        else:
            self.secret = self.secret or Editor(pass_on=self.do, never_ours=CTRL_C)
            self.status = prompt
        return None

    def forget_typed(self, kept: int) -> None:
        if self.line.text:  # half of the password would be the start of a message
            self.typed.append(Line(self.line.text))
        super().forget_typed(kept)
        self.line = Editor(self.line.candidates, self.do)  # whatever could bring it back is gone
        self.line.lines = self.typed

    def wants_to_leave(self) -> bool:
        return self.ended or any(line.leaves for line in self.typed)

    # Output

    def invite(self, prompt: str, ask: bool = False) -> None:
        if self.editor is self.line or not self.editor.begun:  # else half a secret stays one
            self.secret = None
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
        """Draws what is new, as long as the terminal takes it."""
        while not self.output and self.modes and self.clear_rows not in self.timers:
            prompt = self.status + self.prompt
            before, after = self.line.view(prompt, self.width)
            if self.editor is self.secret:
                before, after = fitting_end(self.status, self.width - 1), ""
            self.before = before
            if self.painter.colours and prompt and before.startswith(prompt):
                before = f"{BOLD}{prompt}{NORMAL}{before[len(prompt) :]}"
            row = ROW.format(before, after)
            if self.above and self.rest not in self.timers:
                self.draw_above()
            elif row == self.row:
                self.full.clear()
                return
            self.output += row.encode()
            self.row = row
            if self.pace < NEVER:
                begins = self.timers.get(self.rest, time.monotonic())
                self.timers[self.rest] = begins + len(self.output) / self.pace
            self.write()

    def draw_above(self) -> None:
        """Draws lines over the row: few, and no more until the terminal has surely drawn them, as a
        key is seen only after them."""
        end = self.above.find(b"\n", MAX_DRAWN) + 1
        above = self.above[: end or len(self.above)]
        del self.above[: len(above)]
        self.output += CLEAR_BELOW.encode() + above

    def rest(self) -> None:
        """The terminal has surely drawn what it had to."""

    def forget_pace(self) -> None:
        """The terminal may be faster by now."""
        self.pace = NEVER

    def write(self, _: int = 0) -> None:
        """Writes what the terminal takes. If it has no room for the rest, three times in a row,
        what it took meanwhile tells its pace. If that is slow, what it holds is to be drawn before
        more is drawn above the row, and it is not to fill again."""
        before = len(self.output)
        super().write()
        self.taken += before - len(self.output)
        now = time.monotonic()
        full_at, had_taken = self.full[-1] if self.full else (0.0, -1)
        if not self.output or now - full_at < PACE_TIME or self.taken == had_taken:
            return
        self.full = [*self.full[-2:], (now, self.taken)]
        times = zip(self.full, self.full[1:])
        paces = [(taken - had) / (later - earlier) for (earlier, had), (later, taken) in times]
        if paces and paces[-1] >= FAST:  # before that it was only stopped
            del self.full[:-1]
        elif len(paces) == 2:
            self.pace = 0.8 * max(paces)  # it has room in steps, and may have been stopped once
            self.timers[self.rest] = now + HELD / self.pace
            self.timers[self.forget_pace] = now + SLOW_TIME
            self.full.clear()


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

# What to tell the user, the most telling first: a host may have several addresses. It goes by the
# names of errors, OpenSSL's reasons, and the faults that it finds in certificates (X509_V_ERR_).
WHY_NOT_CONNECTED = {
    "ECONNREFUSED": "nobody listens there; start the server with: python3 {script} --port {port}, "
    "and for other hosts --host ::",
    "FAULT_10": "its certificate has expired; its owner has to renew it",
    "FAULT_62 FAULT_64": "its certificate is not for {host}; connect by a name that is in it",
    "FAULT_18 FAULT_19 FAULT_20 FAULT_21": "its certificate is from an unknown authority; "
    "if it is a private one, give it with --tls-ca FILE",
    "WRONG_VERSION_NUMBER HTTP_REQUEST RECORD_LAYER_FAILURE": "no TLS there; leave out --tls",
    "UNEXPECTED_EOF_WHILE_READING SSLEOFError SSLZeroReturnError": "it closed the connection "
    "in the TLS handshake",
    "ETIMEDOUT": "no answer; is it switched on, and does its firewall let port {port} through?",
    "EHOSTUNREACH": "no way there; is it switched on, and in the same network?",
    "ENETUNREACH": "no way there; is this machine in a network that leads to it?",
    "EACCES EPERM": "this machine's firewall forbids it",
    "EINVAL": "an address fe80:... needs its interface, such as fe80::1%eth0",
}


def cause(error: OSError) -> str:
    """Returns what WHY_NOT_CONNECTED knows an error by."""
    if ssl and isinstance(error, ssl.SSLError):
        fault = getattr(error, "verify_code", 0)
        return f"FAULT_{fault}" if fault else error.reason or type(error).__name__
    return errno.errorcode.get(error.errno or 0, "").replace("WSA", "")  # as Windows names them


def why_not_connected(errors: Sequence[OSError], host: str, port: int, script: str) -> str:
    """Returns what to tell the user when the connections to a host's addresses have failed in these
    ways; `script` is the server that was meant."""
    causes, last = {cause(error) for error in errors}, errors[-1].strerror or str(errors[-1])
    known = (why for names, why in WHY_NOT_CONNECTED.items() if causes & {*names.split()})
    why = next(known, "{last}").format(host=host, port=port, script=script, last=last)
    return f"cannot connect to port {port} on {host}: {why}"


# --- The client and its sessions -----------------------------------------------------------------

CONNECT_TIME = 10.0  # seconds for each address of a host, and for a TLS handshake
ANSWER_TIME = 0.5  # seconds at least to wait for a welcome or an answer that may never come
LINGER = 1.0  # seconds at least for the server to close after the user has left
CONFIRM_TIME = 3.0  # seconds at least for a room to confirm what was said, or a script's name
MAX_WAITING = 64 * 1024  # bytes that wait for a slow reader before we stop reading the other side
QUIET_TIME = 60.0  # seconds after which a room that is silent is asked whether it is there
LOST_TIME = 15.0  # seconds in which a room has to be heard of that was asked, or is to ask, us
BRIEF = 5.0  # seconds: a connection that ends sooner is none that lasts
RETRY_DELAYS = (1, 30)  # seconds until the next try to connect again: doubled from the first on

SIOCOUTQ = 0x5411 if sys.platform == "linux" else 0  # bytes that the peer has yet to acknowledge
# What says that a socket isn't ready after all.
NOT_READY = (BlockingIOError, *((ssl.SSLWantReadError, ssl.SSLWantWriteError) if ssl else ()))
IN_DOUBT = "what you said last may not have arrived"
MAX_TOLD = 200  # characters of such a line: it is shown above in whole


class Client:
    """One loop around a console and the connection to a server: it connects, and connects again.

    It keeps what outlives a connection, but for what the protocol knows; the lines that are not
    sent are the console's. What the loop waits for is derived from the state in each turn.
    """

    def __init__(
        self,
        console: Console,
        protocol: ChatProtocol,
        host: str = HOST,
        port: int = PORT,
        addresses: Sequence[Any] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.console = console
        self.timers = console.timers
        self.protocol = protocol
        self.host = host
        self.port = port
        self.addresses = addresses  # as getaddrinfo() returns them
        self.tls = tls
        self.sockets = ExitStack()  # closes that of the connection, and one that never became one
        self.was_connected = False
        self.delay: float = RETRY_DELAYS[0]  # seconds until the next try
        self.trouble = ""  # the last that the user was told; none while there is a connection
        self.doing = ""  # what keeps the user waiting, if anything does
        self.patience = ANSWER_TIME  # seconds to wait for the server's answer
        self.unasked: int | None = None  # lines that had been typed when the user gave a password

    def run(self) -> None:
        """Connects and talks until the user leaves. Raises Failure, and KeyboardInterrupt if the
        user leaves without a connection."""
        if not (self.protocol.is_echo or self.ask_name()):
            return
        with self.sockets:
            while True:
                try:
                    Session(self, self.connect()).run()
                    return
                except Disconnected as failure:
                    self.sockets.close()
                    self.tell_lost(failure)
                self.pause()

    def ask_name(self) -> bool:
        """Asks the user for a name, unless there is one; says whether there is, and not the wish to
        leave. Raises Failure if nobody sits there who could be asked again."""
        console, protocol = self.console, self.protocol
        while not protocol.wanted:
            console.invite("name: ", ask=True)
            if not (console.typed or console.ended):
                self.turn()
                continue
            line = console.take() if console.typed else None
            if line.leaves if line else console.attended:
                console.typed.clear()
                return False
            if not line or (line.command and not console.attended):
                first = "or the first line of the input"
                raise Failure(f"no name was given; use --name NAME, {first}")
            console.echo_typed(f"name: {masked(line.text)}")
            if line.command:  # each message would begin with it
                console.show("* a name does not begin with a slash")
            else:
                protocol.wanted = line.text.strip()
        console.prompt = ""
        return True

    def ask_password(self) -> None:
        """Gets the password from the user, if the room wants it; else tells what they wait for."""
        console = self.console
        typed = console.typed  # without knowing of the question: it is said behind the door
        if not self.protocol.wants_password:
            unsent = len(console.unsent()) if self.doing else 0
            lines = f", lines that wait: {unsent}" if unsent else ""
            console.status = f"({self.doing}{lines}) " if self.doing else ""
        elif not (typed and typed[0].leaves):
            password = console.ask_secret("password: ")
            if password:
                self.protocol.give_password(password)
                self.unasked = len(typed)

    def tell_lost(self, failure: Disconnected) -> None:
        """Tells the user that there is no connection, unless that is known, and what became of the
        lines that went out last. Raises the failure if nobody would wait for another try."""
        console, protocol, why = self.console, self.protocol, str(failure)
        asked_again = protocol.wants_password and console.attended
        in_vain = not self.was_connected or ("--tls" in why and not protocol.was_room)
        if not asked_again and (in_vain or protocol.is_echo or not console.interactive):
            raise failure
        if why != self.trouble or asked_again:
            console.show(f"* {why}")
        self.trouble = "" if asked_again else why
        if asked_again and self.unasked is not None:
            console.forget_typed(self.unasked)
        self.unasked = None
        if console.doubtful:
            console.show(f"* {IN_DOUBT}:")
        for line in console.doubtful:
            console.show(f"*   {line}")
        console.doubtful = []

    # The loop

    def turn(self, more: Callable[[], Sequence[File]] = tuple) -> None:
        """Waits until something can be moved or is due, and does it; of what is due, the first.
        `more` returns what to wait for apart from the console's files."""
        self.ask_password()
        self.console.update()  # first, as what is left to draw decides what is waited for
        left = None if not self.timers else max(0.0, min(self.timers.values()) - time.monotonic())
        with Selector() as selector:
            for file, events, handler in [*self.console.files(), *more()]:
                if events:
                    selector.register(file, events, handler)
            for key, ready in selector.select(left):
                key.data(ready)
        first = min(self.timers, key=self.timers.__getitem__, default=None)
        if first and self.timers[first] <= time.monotonic():
            del self.timers[first]
            first()

    def wait(self, seconds: float, sock: socket.socket | None = None, events: int = 0) -> bool:
        """Lets some time pass while there is no session, or waits for events on a socket; says
        whether they have come. Goes on until a password is known that the room wants. Raises
        KeyboardInterrupt if the user leaves: at once, unless there are lines to send."""
        console = self.console
        came: list[int] = []
        files = [(sock, events, came.append)] if sock else []
        self.timers[self.stop_waiting] = time.monotonic() + seconds
        while self.protocol.wants_password or (not came and self.stop_waiting in self.timers):
            if console.attended and console.wants_to_leave():
                longer = LINGER if console.unsent() else 0.0
                self.timers.setdefault(self.leave, time.monotonic() + longer)
            self.turn(lambda: files)
        for action in (self.stop_waiting, self.leave):
            self.timers.pop(action, None)
        return bool(came)

    def stop_waiting(self) -> None:
        """What was waited for has not come in time."""

    def leave(self) -> None:
        """The user doesn't want to wait for a connection. Raises KeyboardInterrupt."""
        raise KeyboardInterrupt

    def pause(self) -> None:
        """Waits, ever longer, before the next try to connect. Raises what wait() raises."""
        # So that, when a room starts again, not everyone comes at the same moment.
        seconds = self.delay * random.uniform(0.5, 1.0)
        self.delay = min(2 * self.delay, RETRY_DELAYS[1])
        self.doing = f"trying again in {seconds:.1f} s"
        self.wait(seconds)

    # Connecting

    def connect(self) -> socket.socket:
        """Connects to the first address of the host that answers. Raises Disconnected, and what
        wait() raises."""
        self.doing = "connecting"
        if self.was_connected:
            self.look_up_again()
        errors = []
        for family, kind, number, _, address in self.addresses:
            started = time.monotonic()
            self.sockets.close()
            try:  # even a socket may be refused, such as one for IPv6 where that is switched off
                sock = self.sockets.enter_context(socket.socket(family, kind, number))
                self.connect_to(address, sock)
                sock = self.shake_hands(sock, self.tls) if self.tls else sock
            except OSError as error:
                errors.append(error)
            else:
                took = time.monotonic() - started
                self.patience = min(max(ANSWER_TIME, 4 * took), CONNECT_TIME)
                return sock
        script = "echo_server.py" if self.protocol.is_echo else "chat_server.py"
        raise Disconnected(why_not_connected(errors, self.host, self.port, script))

    def look_up_again(self) -> None:
        """Gets the host's addresses anew, as it may have moved; if they can't be had in time, those
        known stay. In a thread: no system has a way to do that without waiting. Raises what wait()
        raises."""
        ours, theirs = socket.socketpair()

        def look() -> None:
            with theirs, suppress(Failure):
                self.addresses = look_up(self.host, self.port)

        with ours:
            threading.Thread(target=look, daemon=True).start()
            self.wait(CONNECT_TIME, ours, EVENT_READ)

    def connect_to(self, address: Any, sock: socket.socket) -> None:
        """Connects the socket. Raises OSError, and what wait() raises."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = sock.connect_ex(address)
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            code = errno.ETIMEDOUT
            if self.wait(CONNECT_TIME, sock, EVENT_WRITE):
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def shake_hands(self, plain: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        """Returns the socket with TLS around it. Raises OSError, and what wait() raises."""
        deadline = time.monotonic() + CONNECT_TIME
        # No certificate has the scope of an address in it, or the dot that may end a full name.
        name = self.host.partition("%")[0].rstrip(".")
        sock = tls.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
        self.sockets.push(sock)
        while True:
            with suppress(ssl.SSLWantReadError):
                sock.do_handshake()
                return sock
            if not self.wait(deadline - time.monotonic(), sock, EVENT_READ):
                raise OSError(0, "no answer in TLS; does it speak TLS?")


def unacknowledged(sock: socket.socket) -> int:
    """Returns how much of what was sent, including the end of the stream, has not been acknowledged
    by the peer's system yet, in bytes; 0 where ours doesn't say."""
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
        self.began = time.monotonic()
        # What is still to be shown of the previous connection doesn't hold up this one.
        self.max_waiting = MAX_WAITING + self.console.waiting()
        self.lost: str | None = None  # why it is over, "" if as it should be; None while it isn't
        self.left = False  # the user has said all and wants to go
        self.stream_ended = False  # our direction of the stream is
        # What was said: the bytes that the system has taken; the lines that may not have arrived,
        # each with the number of bytes up to its end; and how many bytes there were when the room
        # was asked whether it has heard them, until it answers.
        self.sent = 0
        self.said: deque[tuple[int, Line]] = deque(maxlen=25_000)
        self.asked = 0
        client.was_connected = True

    def run(self) -> None:
        """Talks until it is over, or the user has left. Raises Disconnected if that wasn't the
        user's will, and Failure if there is no use in trying again."""
        self.protocol.begin()
        least = LOST_TIME if self.protocol.password else 0.0
        self.timers[self.stop_waiting] = time.monotonic() + max(least, self.client.patience)
        self.console.candidates = self.protocol.candidates
        self.console.prompt = self.protocol.prompt
        self.expect_answer()
        try:
            while self.lost is None:
                self.forward_typed()
                if self.said and not self.asked and not self.stream_ended:
                    self.ask()
                self.see_off()
                self.client.turn(self.files)
        finally:
            for action in (self.stop_waiting, self.give_up, self.lose):
                self.timers.pop(action, None)
            self.show()
            self.close_ledger()
            if time.monotonic() > self.began + BRIEF:
                self.client.delay = RETRY_DELAYS[0]
        self.raise_failure()

    def settle(self) -> None:
        """There is a connection, to one of our rooms or else for a while already."""
        if self.client.trouble:
            self.console.show("* connected again")
        self.client.trouble = ""

    def raise_failure(self) -> None:
        """Raises what has gone wrong, if anything has."""
        protocol, console = self.protocol, self.console
        disconnected = Failure if self.left else Disconnected
        leaves = console.attended and (self.left or console.wants_to_leave())
        in_vain = bool(protocol.outgoing or console.unsent() or console.doubtful)
        if protocol.why and not leaves:
            raise disconnected(protocol.why)
        # A reset after a farewell is only a rude way to close, unless something was said just then.
        if self.lost and (in_vain or not self.left):
            raise disconnected(f"lost the connection: {self.lost}")
        if in_vain:
            raise Failure("left before everything had arrived")
        refused = protocol.refused or console.left_out
        if refused and not console.attended:
            raise Failure(f"not everything was sent: {refused}")

    # What was said

    def ask(self) -> None:
        """Asks a room whether it has heard what was said."""
        if self.protocol.phase is Phase.IN_ROOM:
            self.protocol.ask("/ping")
            self.asked = self.sent + len(self.protocol.outgoing)
            self.expect_answer()

    def expect_answer(self) -> None:
        """Begins the time anew in which a room has to be heard of, unless it waits for the user."""
        protocol = self.protocol
        self.timers.pop(self.lose, None)
        if protocol.was_room and not protocol.wants_password and protocol.phase is not Phase.RELAY:
            may_be_quiet = protocol.answers and not self.asked
            seconds = QUIET_TIME if may_be_quiet else LOST_TIME
            self.timers[self.lose] = time.monotonic() + seconds

    def lose(self) -> None:
        """The room is silent: asks whether it is there; if that was asked, it isn't. One that has
        got all we said, and never answered anything, only greets like a room."""
        protocol = self.protocol
        only_greets = protocol.phase is Phase.IN_ROOM and not protocol.answers
        if not self.can_read():  # the silence is ours
            self.expect_answer()
        elif only_greets and not (self.stream_ended or unacknowledged(self.sock)):
            protocol.be_relay()
        elif self.asked or self.stream_ended or not protocol.answers:
            self.lost = f"no answer for {LOST_TIME:.0f} s"
        else:
            self.ask()

    def confirm(self) -> None:
        """The server has said something: forgets what that shows to have been heard. Whoever can't
        be asked, and still speaks, is taken to have heard all that has arrived."""
        is_relay = self.protocol.phase is Phase.RELAY
        heard = self.sent - unacknowledged(self.sock) if is_relay else self.asked
        if True not in self.protocol.unanswered["/ping"]:
            while self.said and self.said[0][0] <= heard:
                self.said.popleft()
            self.asked = 0
        self.expect_answer()

    def close_ledger(self) -> None:
        """Leaves to the console the lines that may not have arrived, to be told; and those of which
        no byte was sent, to be said again."""
        overhead = 22 if self.client.tls else 0  # of a record, at least (RFC 8446, 5.2)
        arrived = self.sent + self.stream_ended + overhead - unacknowledged(self.sock)
        is_room = self.protocol.phase is Phase.IN_ROOM and self.protocol.answers
        # What a room has heard, it confirms. At its door it hears nothing.
        if self.lost or is_room or self.protocol.phase is Phase.AT_DOOR:
            arrived = 0
        unsent: list[Line] = []
        before = 0
        for end, line in self.said:
            if before >= self.sent:
                unsent.append(line)
            elif end > arrived:
                self.console.doubtful.append(masked(line.text)[:MAX_TOLD])
            before = end
        self.console.typed.extendleft(reversed(unsent))

    # From the user

    def forward_typed(self) -> None:
        """Lets the protocol have the lines that were typed, as long as it takes more."""
        protocol, console = self.protocol, self.console
        while protocol.accepts_input and not self.left and len(protocol.outgoing) < MAX_WAITING:
            console.invite(protocol.prompt, protocol.is_echo)
            if not console.typed:
                self.left = console.ended and console.attended  # Ctrl-D
                break
            if protocol.has_to_wait(console.typed[0]):
                break
            line = console.take()
            self.timers.pop(self.give_up, None)
            if line.leaves:
                self.left = True
                console.typed.clear()
                console.typed.append(line)  # so nothing more is taken, and no connection follows
                console.echo_typed((protocol.prompt if protocol.is_echo else "") + line.text)
            else:
                self.forward(line)
        is_outside = protocol.phase in (Phase.WAITING, Phase.AT_DOOR)
        waits = protocol.was_room and (is_outside or (console.typed and not self.left))
        self.client.doing = "waiting for the room" if waits else ""

    def forward(self, line: Line) -> None:
        """Lets the protocol have a line, and the user see it."""
        protocol = self.protocol
        before = len(protocol.outgoing)
        protocol.submit(line)
        if len(protocol.outgoing) > before:
            self.said.append((self.sent + len(protocol.outgoing), line))
        self.timers[self.stop_waiting] = time.monotonic() + self.client.patience
        # A chat shows its own message; a command, or what an echo server gets, stays as typed.
        if line.text.strip() and not protocol.to_show:
            self.console.echo_typed(protocol.prompt + masked(line.text))
        self.show()

    def see_off(self) -> None:
        """Ends our direction of the stream when all is said. The server then sends what is left and
        closes. Whoever wants to go waits for that only for a while after the last that went out.

        To close ourselves, with input unread, would reset the connection, and a reset destroys what
        is still on its way.
        """
        console, protocol = self.console, self.protocol
        no_more = self.left or (console.ended and not console.typed)
        if no_more and protocol.accepts_input and not (protocol.outgoing or self.stream_ended):
            self.stream_ended = True
            self.timers.pop(self.give_up, None)
            with suppress(OSError):
                # The plain socket's: after that of TLS nothing that still comes would be decrypted.
                socket.socket.shutdown(self.sock, socket.SHUT_WR)
        if self.left or console.wants_to_leave():
            linger = max(LINGER, self.client.patience)
            if self.said and protocol.answers:  # the room has yet to confirm that
                linger = max(linger, CONFIRM_TIME if console.attended else LOST_TIME)
            self.timers.setdefault(self.give_up, time.monotonic() + linger)

    def stop_waiting(self) -> None:
        """What was waited for may never come: an answer, or the end of a line."""
        rest = terminal_text(self.framer.partial)
        late = [line[: len(rest)] for line in (WELCOME, PASSWORD_QUESTION, WRONG_PASSWORD)]
        if not self.can_read():  # the silence is ours
            self.timers[self.stop_waiting] = time.monotonic() + self.client.patience
            return
        if self.protocol.phase is not Phase.IN_ROOM and rest not in late:
            self.hear(self.framer.finish())
        self.protocol.stop_waiting()
        if self.protocol.accepts_input:
            self.settle()
        self.show()

    def show(self) -> None:
        """Puts out what the protocol has to show."""
        protocol, console = self.protocol, self.console
        if protocol.phase is Phase.IN_ROOM:
            self.settle()
        if protocol.phase is Phase.WAITING and not protocol.accepts_input and console.interactive:
            return  # it may be all that there will be: then it is told as the reason
        console.painter.me = protocol.name
        for line in protocol.to_show:
            console.show(line)
        protocol.to_show.clear()
        if protocol.calls_user:
            console.ring()
        protocol.calls_user = False

    # The socket

    def can_read(self) -> bool:
        """Says whether the user reads as fast as the server writes."""
        return self.console.waiting() < self.max_waiting

    def files(self) -> list[File]:
        """Returns what to wait for: the socket."""
        reading = EVENT_READ if self.can_read() else 0
        writing = EVENT_WRITE if self.protocol.outgoing else 0
        return [(self.sock, reading | writing, self.serve)]

    def serve(self, events: int) -> None:
        """Receives and sends once, as the socket is ready for it. A TLS record has at most 16 KiB,
        so nothing that is decrypted stays behind unseen."""
        try:
            if events & EVENT_READ:
                self.receive(self.sock.recv(RECEIVE_SIZE))
            if events & EVENT_WRITE and self.protocol.outgoing and self.lost is None:
                self.send()
        except NOT_READY:  # readiness is a hint, not a promise
            pass
        except OSError as error:
            self.lost = error.strerror or str(error)

    def send(self) -> None:
        """Sends what the system takes. While it takes something, there is no hurry."""
        size = self.sock.send(self.protocol.outgoing)
        del self.protocol.outgoing[:size]
        self.sent += size
        self.timers.pop(self.give_up, None)
        if self.protocol.outgoing or self.lose not in self.timers:
            self.expect_answer()  # else that only shows that our own system has room

    def give_up(self) -> None:
        """Whoever wants to go has waited long enough. A room confirms what it has heard."""
        self.lost = "no answer" if self.said and self.protocol.answers else ""

    def receive(self, data: bytes) -> None:
        """Lets the protocol have the lines in what was received; nothing means the end."""
        # Once we have said all, it may close; but if that was nothing, a room would have spoken.
        may_close = self.stream_ended and (self.left or self.sent or self.protocol.is_echo)
        wants_tls = data.startswith(b"\x15\x03") or not (data or may_close)  # RFC 8446, 5.1: alert
        unheard = self.protocol.phase is Phase.WAITING and not self.framer.partial
        if unheard and wants_tls and not self.client.tls:
            self.lost = "the server closed it without a word; if it speaks TLS, use --tls"
            return
        chunk = self.framer.feed(data)
        if not data:
            self.lost = "" if self.stream_ended else "the server closed it"
            chunk = self.framer.finish()
        self.hear(chunk)

    def hear(self, chunk: bytes) -> None:
        """Lets the protocol have whole lines, and shows what comes of them."""
        protocol = self.protocol
        before = len(protocol.outgoing)
        for line in chunk.split(b"\n")[:-1]:
            if line == SKIPPED:
                protocol.to_show.append(TOO_LONG)
            else:
                protocol.hear(terminal_text(line))
            self.confirm()
        asks = len(protocol.outgoing) > before
        # Some servers end no line. Ours does, so there the rest is only late.
        is_unfinished = self.framer.partial and protocol.phase is not Phase.IN_ROOM
        if self.stream_ended:  # too late for the name that a late welcome asks for
            protocol.outgoing.clear()
        elif asks or is_unfinished:
            # What a script says under another name is refused, and nobody is there to say it again.
            least = CONFIRM_TIME if asks and not protocol.attended else 0.0
            self.timers[self.stop_waiting] = time.monotonic() + max(least, self.client.patience)
        self.show()


# --- The process ---------------------------------------------------------------------------------


class Failure(Exception):
    """The script can't go on; the text says why, and what to do about it."""


class Disconnected(Failure):
    """There is no connection, or no more."""


class Output(io.TextIOBase):
    """Standard output or error for our last words: what it has no room for in a second is lost, and
    keeps us no longer. Python's own stream would wait, and in the end exit with status 120."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with suppress(OSError):  # a small piece has room where anything has
            while data and (ONLY_SOCKETS or is_ready(self.descriptor, EVENT_WRITE, 1.0)):
                data = data[os.write(self.descriptor, data[:128]) :]
        return len(text)


def open_outputs() -> None:
    """Makes standard output and error ones that never wait. Opens the null device in place of each
    standard stream that is closed: a socket would get its descriptor, and with it our words."""
    descriptor = 0
    while descriptor < 3:
        descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    os.close(descriptor)
    sys.stdout, sys.stderr = sys.stdout and Output(1), Output(2)  # None if closed


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
    """Ends the client as a signal asks: raises KeyboardInterrupt or SystemExit. The loop calls
    it; where no loop runs, it is the signal's handler."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)  # as a shell says it


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
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; ports are 0 to 65535")
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
    name, colon, joined = host.rpartition(":")
    if not colon or port is not None or (":" in name and not name.endswith("]")):
        name, joined = host, str(PORT) if port is None else port
    name = host_name(name)
    is_port = re.fullmatch("[0-9]{1,9}", name) and int(name) <= 65535
    if is_port or not name.isprintable() or re.search(r"[][\s/@\\]|^[^:]*:[^:]*$|^$", name):
        raise argparse.ArgumentTypeError(f"{host} is not a host; type the host, then the port")
    return name, port_number(joined)


def name_option(text: str) -> str:
    """Returns the user's name. Raises ArgumentTypeError, which argparse shows."""
    # A command line can hold bytes that aren't UTF-8, and control characters.
    name = terminal_text(os.fsencode(text)).strip()
    if not name or Line(name).command:  # each message would begin with it
        raise argparse.ArgumentTypeError("a name is text that does not begin with a slash")
    return name


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options. Wrong ones end the process, status 2."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [HOST [PORT]]",
        description="The terminal client for chat rooms and echo servers.",
        epilog="example: python3 chat_client.py 192.0.2.7 --name John (quit leaves, /help helps)",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("host", nargs="?", metavar="HOST", default=HOST, help="(default: %(default)s)")
    add("port", nargs="?", metavar="PORT", help=f"(default: {PORT}); HOST:PORT works too")
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


def look_up(host: str, port: int) -> list[Any]:
    """Returns a host's addresses, as getaddrinfo() does. Raises Failure."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a name no host can have
        advice = "check the name and the network, or give the host's address"
        raise Failure(f"host {host} is unknown, or no name server answers; {advice}") from None


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
    args = parse_args(argv)
    status, told = 0, []
    try:
        password = b"" if args.echo else read_password(args.password_file)
        tls = make_client_tls(args.tls_ca) if args.tls or args.tls_ca is not None else None
        addresses = look_up(args.host, args.port)  # can take a minute: until then Ctrl-C kills
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        console = open_console(args.plain, args.timestamps)
        kind = EchoProtocol if args.echo else ChatProtocol
        protocol = kind(args.name or "", password, console.attended)
        with closing(console):  # also on the way to a traceback
            Client(console, protocol, args.host, args.port, addresses, tls).run()
    except Failure as error:
        status, told = 1, [str(error)]
    except SystemExit as end:
        status = int(str(end))
    except KeyboardInterrupt:
        status = 0 if console and console.attended else 128 + signal.SIGINT
        if console and not console.interactive:
            sys.stderr.write("\n")  # after the ^C that the terminal shows
    told += console.losses() if console else []
    if told:
        print(f"{os.path.basename(sys.argv[0])}: {'; '.join(told)}", file=sys.stderr)
    return status or int(bool(told))


if __name__ == "__main__":
    open_outputs()
    sys.exit(main())
