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

One thread, one selectors loop around standard input, standard output and a non-blocking socket.
Standard library only, Python 3.8 or later. Copy this file anywhere and run it.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import getpass
import io
import os
import random
import re
import select
import selectors
import signal
import socket
import sys
import threading
import time
import unicodedata
import zlib
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

if sys.platform != "win32":
    import termios
    import tty
try:
    import ssl
except ImportError:  # a Python built without OpenSSL can do everything but TLS
    ssl = None  # type: ignore[assignment]

VERSION = "1.0"

HOST = "localhost"
PORT = 7007
CONNECT_TIME = 10.0  # seconds for each address of a host, and for a TLS handshake
QUESTION_TIME = 5.0  # seconds to wait for a question when we have a password to give
ANSWER_TIME = 0.5  # seconds to wait for a welcome or an answer that may never come
LINGER = 1.0  # seconds for the server to close after the user has left
RECEIVE_SIZE = 64 * 1024  # bytes received at once
MAX_LINE = 64 * 1024  # bytes; a longer line is left out
MAX_WAITING = 64 * 1024  # bytes that wait for a slow reader before we stop reading the other side
MAX_RECALLED = 1000  # lines that Up goes back to
MAX_NAMES = 1000  # names that Tab completes
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

WELCOME = "Welcome to the chatroom!"
BAD_NAME = re.compile(r"\* a name .*: /name NAME")  # no name has a colon, so none can look like it
PASSWORD_QUESTION = "* password?"
WRONG_PASSWORD = "* wrong password"
NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")  # OpenSSL's reasons
TLS_ALERT = b"\x15\x03"  # how a server that speaks TLS answers one who doesn't (RFC 8446, 5.1)
PRIVATE = " (private)"
# Notices of a room in which others are named.
SIGHTINGS = [
    re.compile(pattern)
    for pattern in (
        r"\* (.+) joined",
        r"\* .+ is now (.+)",
        r"\* here: (?!\d+ unnamed)(.+?)(?: and \d+ unnamed)?",
    )
]
MAX_NAME = 32  # characters that a room allows
LEAVE = ("quit", "exit", "/quit")
TOO_LONG = f"* (a line of over {MAX_LINE} bytes was left out)"

# Of the 256 colours, those that can be read on black and on white.
COLOURS = (33, 37, 64, 71, 98, 130, 133, 136, 160, 166, 168, 172)
BOLD, DIM, NORMAL = "\x1b[1m", "\x1b[2m", "\x1b[0m"

# On Windows select() takes nothing but sockets.
ONLY_SOCKETS = sys.platform == "win32"


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
# what is behind them (UAX #9), with which a line can be made to read as another.
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


class Talk:
    """One's part in a conversation, without I/O: what goes out for what is typed, and what is shown
    for what comes in."""

    asks = False  # each line is asked for, with the prompt
    prompt = ""
    name = ""  # the user's
    password = b""

    def __init__(self) -> None:
        self.outgoing = bytearray()  # lines to send, each with its LF
        self.to_show: list[str] = []  # lines
        self.ready = True  # to be told what was typed
        self.mentioned = False  # somebody has said the user's name
        self.wants_password = False
        self.refused = ""  # why there is no use in trying again

    def stop_waiting(self) -> None:
        """Goes on as well as it can: the answer that it waits for may never come."""
        self.ready = True

    def heard(self, line: str) -> None:
        """Takes a line from the other side, clean and without its newline."""

    def typed(self, line: str) -> None:
        """Takes a line from the user, without its newline."""

    def give_password(self, password: bytes) -> None:
        """Takes what the user answered to `wants_password`."""

    def candidates(self, beginning: str) -> list[str]:
        """Returns the names that begin so, the likeliest first."""
        return []


class Echo(Talk):
    """A talk with an echo server: a line goes out, an answer comes, then the next."""

    asks = True
    prompt = "send: "

    def heard(self, line: str) -> None:
        self.to_show.append(f"recv: {line}")
        self.ready = True

    def typed(self, line: str) -> None:
        self.outgoing += f"{line}\n".encode()
        self.ready = False


class Chat(Talk):
    """A chat. It works with any line relay, by putting the name before each message. In one of our
    rooms, which the first line shows, it makes the name known as well, and there are commands."""

    def __init__(self, name: str, password: bytes = b"") -> None:
        super().__init__()
        self.ready = False  # the room has to know the name first
        self.be(name)
        self.password = password
        self.at_door = False  # what goes out now would be taken for the password
        self.in_room = False
        self.requested = ""  # a name that the room was asked for, until it answers
        self.requested_by_user = False
        self.first = True  # nothing was heard yet
        self.names: dict[str, None] = {}  # that were seen here, the latest last

    def be(self, name: str) -> None:
        """Is known as this name from now on."""
        self.name = name
        self.prompt = f"{name}: "
        self.mention = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)

    def heard(self, line: str) -> None:
        first, self.first = self.first, False
        if self.in_room and line.startswith("* "):
            if self.heard_room(line):
                self.to_show.append(line)
        elif (first or self.at_door) and line == WELCOME:
            self.in_room = True
            self.at_door = False
            self.request_name(self.name)
            self.to_show.append(line)
        elif first and line == PASSWORD_QUESTION:
            self.at_door = True
            self.ready = False
            self.wants_password = not self.password
            if self.password:
                self.give_password(self.password)
        elif self.at_door and line == WRONG_PASSWORD:
            self.refused = "wrong password"
        else:
            self.heard_message(line)

    def heard_message(self, line: str) -> None:
        """Shows what somebody said, and learns from it who is there."""
        if not line.startswith("* "):  # as a room that is full does, without a welcome
            if not self.in_room:  # some other relay: there is no answer to wait for
                self.ready = True
            speaker, colon, text = line.partition(": ")
            if colon:
                self.saw(speaker.replace(PRIVATE, ""))
            said = text if colon else line
            self.mentioned = self.mentioned or bool(self.mention.search(said))
        self.to_show.append(line)

    def stop_waiting(self) -> None:
        self.ready = not self.at_door

    def give_password(self, password: bytes) -> None:
        """Answers the question at the door of a closed room."""
        self.wants_password = False
        self.password = password
        self.outgoing += password + b"\n"

    def heard_room(self, line: str) -> bool:
        """Follows what the room itself says; returns whether the user wants to know it."""
        if self.requested:
            name = unicodedata.normalize("NFKC", self.requested).strip()
            if line == f"* you are {name}":
                self.be(name)
                self.take_answer()
                return self.requested_by_user
            if line == f"* {name} is taken":
                self.take_answer()
                another = name[: MAX_NAME - 1] + "_"
                if not self.requested_by_user and another != name:
                    self.request_name(another)
            elif BAD_NAME.fullmatch(line):
                self.take_answer()
        for pattern in SIGHTINGS:
            match = pattern.fullmatch(line)
            for name in match[1].split(", ") if match else ():
                self.saw(name)
        return True

    def saw(self, name: str) -> None:
        """Remembers somebody who is there."""
        if 0 < len(name) <= MAX_NAME and name != self.name:
            self.names.pop(name, None)
            self.names[name] = None
            if len(self.names) > MAX_NAMES:
                del self.names[next(iter(self.names))]

    def candidates(self, beginning: str) -> list[str]:
        start = beginning.casefold()
        return [name for name in reversed(list(self.names)) if name.casefold().startswith(start)]

    def request_name(self, name: str, by_user: bool = False) -> None:
        """Asks the room for a name. What is typed waits for the answer."""
        self.requested, self.requested_by_user = name, by_user
        self.ready = False
        self.outgoing += f"/name {name}\n".encode()

    def take_answer(self) -> None:
        """The room has answered, so what was typed can go out."""
        self.requested = ""
        self.ready = True

    def typed(self, line: str) -> None:
        if not line.strip():
            return
        slash = self.in_room and line.startswith("/")
        if slash and not line.startswith("//"):
            word, _, argument = line.partition(" ")
            if word == "/name" and argument.strip():  # the next message begins with it
                self.request_name(argument.strip(), by_user=True)
            else:
                self.outgoing += f"{line}\n".encode()
            return
        message = f"{self.name}: {line[1:] if slash else line}"
        self.outgoing += f"{message}\n".encode()
        self.to_show.append(message)


# --- The line editor -----------------------------------------------------------------------------

# What terminals send for a key (xterm, VT100, the Linux console, rxvt), and the method of Editor
# that it calls, with what it is given.
KEYS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("\r", "\n"), ("enter",)),
    **dict.fromkeys(("\x01", "\x1b[H", "\x1bOH", "\x1b[1~", "\x1b[7~"), ("move", "start")),
    **dict.fromkeys(("\x05", "\x1b[F", "\x1bOF", "\x1b[4~", "\x1b[8~"), ("move", "end")),
    **dict.fromkeys(("\x02", "\x1b[D", "\x1bOD"), ("move", "left")),
    **dict.fromkeys(("\x06", "\x1b[C", "\x1bOC"), ("move", "right")),
    **dict.fromkeys(
        ("\x1bb", "\x1b[1;5D", "\x1b[1;3D", "\x1b[5D", "\x1bOd"), ("move", "word left")
    ),
    **dict.fromkeys(
        ("\x1bf", "\x1b[1;5C", "\x1b[1;3C", "\x1b[5C", "\x1bOc"), ("move", "word right")
    ),
    **dict.fromkeys(("\x10", "\x1b[A", "\x1bOA"), ("recall", 1)),
    **dict.fromkeys(("\x0e", "\x1b[B", "\x1bOB"), ("recall", -1)),
    **dict.fromkeys(("\x08", "\x7f"), ("delete", "left")),
    "\x1b[3~": ("delete", "right"),
    "\x04": ("delete_or_end",),
    **dict.fromkeys(("\x17", "\x1b\x7f", "\x1b\x08"), ("kill", "word left")),
    "\x1bd": ("kill", "word right"),
    "\x0b": ("kill", "end"),
    "\x15": ("kill", "start"),
    "\x19": ("yank",),
    "\x14": ("transpose",),
    "\t": ("complete",),
    "\x03": ("interrupt",),
    "\x0c": ("wish", "clear_screen"),
    "\x1a": ("wish", "suspend"),
}
PASTE_START, PASTE_END = "\x1b[200~", "\x1b[201~"  # bracketed paste
# One key: an escape sequence, Alt and a character, or a character; and one that isn't complete yet.
KEY = re.compile(
    r"\x1b\[\[.|\x1b{1,2}\[[0-?]*[ -/]*[@-~]|\x1b{1,2}O[@-~]|\x1b[^\x00-\x07\x09-\x1f\[O]|(?s:.)"
)
UNFINISHED_KEY = re.compile(r"\x1b+(?:\[\[?[0-?]*[ -/]*|O)?")

ZERO_WIDTH = ("Mn", "Me", "Cf")  # Unicode categories: combining marks and format characters
JOINER = "\u200d"
WIDE_VARIANT = "\ufe0f"  # makes an emoji of the character before it
SKIN_TONES = range(0x1F3FB, 0x1F400)
WORD = re.compile(r"\W*\w*")  # with what is before it
MARKS = {ord("\n"): "\u21b5", ord("\t"): " "}  # how a pasted newline or tab is shown in the line


def char_width(char: str) -> int:
    """Returns how many columns a character takes at most. Terminals differ; see Editor.view."""
    if char == WIDE_VARIANT:
        return 1
    if unicodedata.category(char) in ZERO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def joins(before: str, char: str) -> bool:
    """Says whether `char` forms one visible character with the one before it."""
    return unicodedata.category(char) in ZERO_WIDTH or before == JOINER or ord(char) in SKIN_TONES


def char_left(text: str, place: int) -> int:
    """Returns where the visible character before a place, an index, begins."""
    starts = (at for at in range(place - 1, 0, -1) if not joins(text[at - 1], text[at]))
    return next(starts, 0)


def char_right(text: str, place: int) -> int:
    """Returns where the visible character at a place ends."""
    ends = (at for at in range(place + 1, len(text)) if not joins(text[at - 1], text[at]))
    return next(ends, len(text))


def word_left(text: str, place: int) -> int:
    """Returns where the word before a place begins."""
    return place - word_right(text[:place][::-1], 0)


def word_right(text: str, place: int) -> int:
    """Returns where the word after a place ends."""
    word = WORD.match(text, place)
    return word.end() if word else place


MOTIONS: dict[str, Callable[[str, int], int]] = {
    "start": lambda text, place: 0,
    "end": lambda text, place: len(text),
    "left": char_left,
    "right": char_right,
    "word left": word_left,
    "word right": word_right,
}


def fitting_start(text: str, columns: int) -> str:
    """Returns as much of the beginning of a text as so many columns hold."""
    for index, char in enumerate(text):
        columns -= char_width(char)
        if columns < 0:
            return text[:index]
    return text


def fitting_end(text: str, columns: int) -> str:
    """Returns as much of the end of a text as so many columns hold."""
    start = len(text)
    for index in range(len(text) - 1, -1, -1):
        columns -= char_width(text[index])
        if columns < 0:
            break
        if index == 0 or not joins(text[index - 1], text[index]):
            start = index
    return text[start:]


class Editor:
    """A line that is being typed. It does no I/O: keys go in as they come from the terminal,
    finished lines and wishes come out, and `view` says how the line looks."""

    def __init__(self, candidates: Callable[[str], Sequence[str]] = lambda _: ()) -> None:
        self.candidates = candidates  # names that begin with a text, the likeliest first
        self.text = ""
        self.cursor = 0  # an index of text
        self.history: deque[str] = deque(maxlen=MAX_RECALLED)
        self.recalled = 0  # place in the history, counted from its end; 0 is the line itself
        self.draft = ""  # the line itself, while another is shown
        self.killed = ""
        self.completing: list[str] = []  # what the next Tab puts in place of `completed`
        self.completed = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.unread = ""  # the beginning of a key
        self.lines: list[str] = []  # finished
        self.wishes: list[str] = []  # "interrupt", "end_of_input", "suspend", "clear_screen"

    # Keys

    def feed(self, data: bytes) -> None:
        """Takes bytes from the terminal, in whatever pieces they come."""
        self.unread += self.decoder.decode(data)
        while self.unread and not UNFINISHED_KEY.fullmatch(self.unread):
            if self.unread.startswith(PASTE_START):
                pasted, end, rest = self.unread[len(PASTE_START) :].partition(PASTE_END)
                if not end:  # more has to come
                    break
                self.unread = rest
                self.paste(pasted)
            else:
                match = KEY.match(self.unread)
                assert match  # if nothing else, any character
                self.unread = self.unread[match.end() :]
                self.press(match.group())

    def press(self, key: str) -> None:
        """Does what one key is for."""
        if key.startswith("\x1b\x1b"):  # the Escape key and then an arrow, or rxvt's Alt-arrow
            key = key[1:]
        method, *given = KEYS.get(
            key, ("insert", "" if key[0] == "\x1b" else key.translate(NO_TEXT))
        )
        if method != "complete":
            self.completing = []
        getattr(self, method)(*given)

    def paste(self, text: str) -> None:
        """Puts in text in which nothing is a key: its newlines wait in the line until Enter."""
        self.completing = []
        self.insert("\n".join(line.translate(NO_TEXT) for line in re.split("\r\n?|\n", text)))

    def insert(self, text: str) -> None:
        """Puts a text in at the cursor."""
        self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
        self.cursor += len(text)

    def set(self, text: str) -> None:
        """Makes this the line, with the cursor at its end."""
        self.text, self.cursor = text, len(text)

    def enter(self) -> None:
        """Finishes the line; one with newlines in it, from a paste, is several."""
        if self.text.strip():
            self.history.append(self.text)
        self.lines += self.text.rstrip("\n").split("\n")
        self.recalled = 0
        self.set("")

    def interrupt(self) -> None:
        """Drops the line; on an empty one it is a wish to leave."""
        if not self.text:
            self.wish("interrupt")
        self.recalled = 0
        self.set("")

    def delete_or_end(self) -> None:
        """Deletes a character; on an empty line it is the end of input."""
        if self.text:
            self.delete("right")
        else:
            self.wish("end_of_input")

    def wish(self, wish: str) -> None:
        """Asks for something that isn't the line's business."""
        self.wishes.append(wish)

    def recall(self, step: int) -> None:
        """Shows a line so many steps further back in the history; at its end is the draft."""
        place = self.recalled + step
        if not 0 <= place <= len(self.history):
            return
        if self.recalled == 0:
            self.draft = self.text
        self.recalled = place
        self.set(self.history[-place] if place else self.draft)

    # Changes

    def move(self, motion: str) -> None:
        """Moves the cursor to where a motion leads."""
        self.cursor = MOTIONS[motion](self.text, self.cursor)

    def delete(self, motion: str) -> str:
        """Removes what is between the cursor and where a motion leads; returns it."""
        place = MOTIONS[motion](self.text, self.cursor)
        return self.cut(min(place, self.cursor), max(place, self.cursor))

    def kill(self, motion: str) -> None:
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
        if self.completing:
            self.cut(self.cursor - len(self.completed), self.cursor)
            self.completed = self.completing.pop(0)
            self.completing.append(self.completed)
            self.insert(self.completed)

    # How it looks

    def view(self, prompt: str, width: int) -> tuple[str, str]:
        """Returns what a window of so many columns shows before and after the cursor.

        That is always one row, a stretch around the cursor of what doesn't fit: a row that wraps
        can't be redrawn after the window was resized. Whoever draws it lets the terminal remember
        where the cursor belongs, so here no width has to be exact, only not too small.
        """
        before = prompt + self.text[: self.cursor].translate(MARKS)
        after = self.text[self.cursor :].translate(MARKS)
        columns = width - 1  # the cursor itself needs one
        behind = sum(map(char_width, fitting_start(after, columns // 3)))  # is seen in any case
        before = fitting_end(before, columns - behind)
        return before, fitting_start(after, columns - sum(map(char_width, before)))


# --- The process ---------------------------------------------------------------------------------


class Failure(Exception):
    """The script can't go on; the text says why, and what to do about it."""


class Disconnected(Failure):
    """There is no connection, or no more."""


class Terminated(Exception):
    """A signal told us to end; the argument is its number."""


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


def open_input() -> int | socket.socket:
    """Returns what to wait at and read from for standard input: its descriptor, or, where only
    sockets can be waited for, a socket that a thread feeds."""
    if not ONLY_SOCKETS:
        return 0
    ours, feeder = socket.socketpair()
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
    """Decorates the lines that are shown: the time, dim notices, a colour for each name."""

    def __init__(self, colours: bool, timestamps: bool) -> None:
        self.colours = colours
        self.timestamps = timestamps
        self.me = ""  # the user's name; none with an echo server, whose lines have no speaker

    def paint(self, line: str) -> str:
        stamp = time.strftime("[%H:%M] ") if self.timestamps else ""
        if not self.colours:
            return stamp + line
        if line.startswith("* "):
            return f"{stamp}{DIM}{line}{NORMAL}"
        speaker, colon, text = line.partition(": ")
        if not self.me or not colon or len(speaker) > MAX_NAME + len(PRIVATE):
            return stamp + line
        return f"{stamp}{self.colour(speaker)}{speaker}{NORMAL}: {text}"

    def colour(self, speaker: str) -> str:
        """Returns what makes a name stand out: always the same for the same name."""
        name = speaker.replace(PRIVATE, "")
        if name == self.me:
            return BOLD
        number = COLOURS[zlib.crc32(name.casefold().encode()) % len(COLOURS)]
        return f"\x1b[38;5;{number}m"

    def paint_prompt(self, row: str, prompt: str) -> str:
        """Makes the prompt at the beginning of a row bold, if it is seen whole."""
        if not self.colours or not row.startswith(prompt):
            return row
        return f"{BOLD}{prompt}{NORMAL}{row[len(prompt) :]}"


class Console:
    """Standard input and output as they are: lines in, lines out, no escape sequences."""

    edits = False
    why_closed = "standard output is closed"

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self.candidates: Callable[[str], Sequence[str]] = lambda _: ()  # names for Tab
        self.input = open_input()
        self.screen = 1  # the descriptor that is written to
        self.signals: socket.socket | None = None
        self.ended = False  # nothing more will be typed
        self.typed: deque[str] = deque()  # lines that nobody has taken yet
        self.output = bytearray()  # waits to be written
        self.framer = LineFramer(MAX_LINE)
        self.input_is_terminal = os.isatty(0)  # so it shows what is typed, unless in raw mode
        self.at_prompt = False

    # Input

    def wants_input(self) -> bool:
        """Says whether there is a use for more of what the user types."""
        return not self.ended and not self.typed

    def read(self, _: int) -> None:
        """Receives what was typed."""
        data = self.receive()
        chunk, too_long = self.framer.feed(data)
        if not data:
            self.ended = True
            chunk = self.framer.finish()
        self.typed.extend(terminal_text(line) for line in chunk.split(b"\n")[:-1])
        if too_long:
            self.show(TOO_LONG)

    def receive(self) -> bytes:
        """Returns what was typed; nothing at the end of input."""
        try:
            if isinstance(self.input, socket.socket):
                return self.input.recv(RECEIVE_SIZE)
            return os.read(self.input, RECEIVE_SIZE)
        except OSError:  # the terminal is gone
            return b""

    def take(self) -> str:
        """Returns the next line that was typed."""
        line = self.typed.popleft()
        if self.at_prompt and not self.input_is_terminal:  # which would have shown it
            self.output += f"{line}\n".encode()
        self.at_prompt = False
        return line

    def keep(self, line: str) -> None:
        """Leaves on the screen what was typed, with its prompt. Here it is there already."""

    def wants_to_leave(self) -> bool:
        """Says whether the user wants to go now, and not only when all that was typed is said."""
        return bool(self.typed) and self.typed[0].strip() in LEAVE

    def unsent(self) -> list[str]:
        """Returns the lines that the user saw on the screen and that can't be sent any more."""
        return []

    # Output

    def prompt(self, prompt: str) -> None:
        """Invites the user to type, if that isn't done yet."""
        if prompt and not self.at_prompt:
            self.output += prompt.encode()
            self.at_prompt = True

    def show(self, line: str) -> None:
        """Puts out a line of text."""
        self.end_line()
        self.output += f"{self.painter.paint(line)}\n".encode()

    def end_line(self) -> None:
        """Ends a line that so far is a prompt."""
        if self.at_prompt:
            self.output += b"\n"
        self.at_prompt = False

    def ring(self) -> None:
        """Calls for the user's attention. Not here: a bell is a control character."""

    def ask_secret(self, prompt: str) -> bytes:
        """Returns what the user types unseen. Raises Failure if there is no user to ask."""
        if not self.input_is_terminal:
            raise Failure("the room wants a password; give it with --password-file FILE")
        if self.typed:  # ahead, and it is not to be published
            return self.typed.popleft().encode()
        # The loop doesn't run meanwhile, so signals have to strike at once. But not Ctrl-Z: after
        # `fg` the terminal would show what is typed.
        handlers: dict[str, Any] = dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP"), raise_for_signal)
        handlers["SIGTSTP"] = signal.SIG_IGN  # by name, as Windows lacks some of them
        before = {
            number: signal.signal(number, handlers[name])
            for name, number in signal.Signals.__members__.items()
            if name in handlers
        }
        try:
            return getpass.getpass(prompt).encode("utf-8", "surrogateescape")
        except EOFError:
            raise Failure("no password given") from None
        except UnicodeDecodeError:
            raise Failure("that password is not UTF-8") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def waiting(self) -> int:
        """Returns how many bytes wait to be written."""
        return len(self.output)

    def update(self) -> None:
        """Brings the output up to date, before the loop waits."""
        if ONLY_SOCKETS and self.output:
            self.write()

    def write(self, _: int = 0) -> None:
        """Writes what the output takes. Raises Failure if nobody will ever read it."""
        # A pipe that is ready takes this much without blocking (POSIX: PIPE_BUF).
        size = len(self.output) if ONLY_SOCKETS or self.edits else select.PIPE_BUF
        try:
            del self.output[: os.write(self.screen, self.output[:size])]
        except BlockingIOError:
            pass
        except OSError:
            self.output.clear()
            raise Failure(self.why_closed) from None

    def on_signal(self, _: int) -> None:
        """Signals do here what they do to any program."""

    def close(self) -> None:
        """Writes the rest."""
        self.end_line()
        while self.output:
            if not ONLY_SOCKETS:
                select.select([], [self.screen], [])
            self.write()


class Terminal(Console):
    """A terminal in raw mode, with a line that is edited below the lines that are shown.

    The line being edited takes one row, at the bottom. To show a line above it is to draw over that
    row and to draw the row again below, in a single write, so that nothing flickers.
    """

    edits = True
    why_closed = "the terminal is gone"
    signals: socket.socket

    def __init__(self, painter: Painter) -> None:
        super().__init__(painter)
        self.editor = Editor(lambda beginning: self.candidates(beginning))
        self.row_prompt = ""
        self.pending: list[str] = []  # to be shown above the row
        self.stale = True  # the row has to be drawn again
        self.cursor_column = 0
        self.gone = False  # the terminal is; after Ctrl-D there may still be a Ctrl-C
        self.modes = termios.tcgetattr(0)
        # Opened anew for a mode of its own: O_NONBLOCK on the descriptor that we were given would
        # also hold for the shell. A terminal that is stopped must not stop the loop.
        self.screen = os.open(os.ttyname(1), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        self.signals = open_signal_socket(
            signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGCONT
        )
        self.take_over()

    # Modes

    def take_over(self) -> None:
        """Takes the terminal: every key comes at once and unseen, what was typed ahead is kept."""
        try:
            modes = termios.tcgetattr(0)
            self.width = os.get_terminal_size(0).columns or 80  # it may have changed meanwhile
        except (OSError, termios.error):
            raise Failure(self.why_closed) from None
        modes[tty.IFLAG] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON)
        modes[tty.LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        modes[tty.CC][termios.VMIN], modes[tty.CC][termios.VTIME] = 1, 0
        termios.tcsetattr(0, termios.TCSANOW, modes)
        self.output += b"\x1b[?2004h"  # bracketed paste
        self.stale = True

    def give_back(self) -> None:
        """Gives the terminal back as it was found, with the row cleared."""
        self.output += b"\r\x1b[K\x1b[?2004l"
        deadline = time.monotonic() + 1.0  # a terminal that is stopped is not waited for
        with suppress(OSError, Failure):
            while self.output and time.monotonic() < deadline:
                select.select([], [self.screen], [], 0.1)
                self.write()
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, self.modes)

    def suspend(self) -> None:
        """Stops, as Ctrl-Z does in a terminal that isn't raw; continues with `fg`."""
        self.give_back()
        os.kill(0, signal.SIGTSTP)
        self.take_over()

    def ask_secret(self, prompt: str) -> bytes:
        self.give_back()
        try:
            return super().ask_secret(prompt)
        finally:
            self.take_over()

    def close(self) -> None:
        if self.pending:
            self.output += b"\r\x1b[K" + "".join(self.pending).encode()
        self.give_back()

    def on_signal(self, _: int) -> None:
        for number in self.signals.recv(64):
            if number == signal.SIGWINCH:
                self.resize()
            elif number == signal.SIGCONT:  # the shell has had the terminal meanwhile
                self.take_over()
            else:
                raise_for_signal(number, None)

    def resize(self) -> None:
        """The window has another width. Most terminals wrap the row to fit: clear all its rows."""
        with suppress(OSError):  # the terminal is gone, as the next read will tell
            self.width = os.get_terminal_size(0).columns or 80
        above = self.cursor_column // self.width
        self.output += f"\x1b[{above}A".encode() if above else b""
        self.output += b"\r\x1b[J"
        self.stale = True

    # Input

    def wants_input(self) -> bool:
        return not self.gone

    def read(self, _: int) -> None:
        data = self.receive()
        self.gone = not data
        self.ended = self.ended or self.gone
        self.editor.feed(data)
        self.stale = True
        self.typed.extend(self.editor.lines)
        self.editor.lines.clear()
        wishes, self.editor.wishes = self.editor.wishes, []
        for wish in wishes:
            if wish == "interrupt":
                raise KeyboardInterrupt
            if wish == "suspend":
                self.suspend()
            elif wish == "clear_screen":
                self.output += b"\x1b[H\x1b[2J"
            elif wish == "end_of_input":
                self.ended = True

    def keep(self, line: str) -> None:
        self.show(line)

    def wants_to_leave(self) -> bool:
        return self.ended or any(line.strip() in LEAVE for line in self.typed)

    def unsent(self) -> list[str]:
        return [line for line in self.typed if line.strip() not in LEAVE]

    # Output

    def prompt(self, prompt: str) -> None:
        self.stale = self.stale or prompt != self.row_prompt
        self.row_prompt = prompt

    def show(self, line: str) -> None:
        self.pending.append(self.painter.paint(line) + "\n")

    def ring(self) -> None:
        self.pending.append("\a")

    def waiting(self) -> int:
        return len(self.output) + sum(map(len, self.pending))

    def update(self) -> None:
        """Draws what is new, if what was drawn before has reached the terminal."""
        if self.output or not (self.pending or self.stale):
            return
        before, after = self.editor.view(self.row_prompt, self.width)
        self.cursor_column = sum(map(char_width, before))
        row = self.painter.paint_prompt(before, self.row_prompt)
        # The terminal itself remembers where the cursor belongs, and comes back there.
        row += f"\x1b7{after}\x1b[K\x1b8"
        above = "\r\x1b[K" + "".join(self.pending) if self.pending else ""
        self.output += f"{above}\r{row}".encode()
        self.pending, self.stale = [], False


def open_console(args: argparse.Namespace) -> Console:
    """Returns what suits standard input and output. Raises Failure."""
    if sys.stdout is None:  # it was closed: a socket would get its descriptor
        raise Failure("standard output is closed")
    if sys.stdin is None:  # this too: open() takes the lowest descriptor that is free, 0
        os.open(os.devnull, os.O_RDONLY)
    plain = args.plain or ONLY_SOCKETS or os.environ.get("TERM", "") in ("", "dumb")
    if not plain and os.isatty(0) and os.isatty(1):
        with suppress(OSError):  # another user's terminal, after su, can't be opened
            return Terminal(Painter(not os.environ.get("NO_COLOR"), args.timestamps))
    return Console(Painter(False, args.timestamps))


# --- The client ----------------------------------------------------------------------------------


WHY_NOT_CONNECTED = {
    errno.ECONNREFUSED: "nobody listens there; start a room with: python3 chat_server.py",
    errno.ETIMEDOUT: "no answer",
}


class Client:
    """One loop around a console and the connection to a server: it connects, and connects again.

    What it waits for follows from the state and is set anew in each turn of the loop.
    """

    def __init__(
        self, console: Console, host: str, port: int, tls: ssl.SSLContext | None = None
    ) -> None:
        # select(), not epoll: it also takes regular files and /dev/null as standard input, which
        # epoll refuses (EPERM), and three descriptors are no load for it.
        self.selector = selectors.SelectSelector()
        self.console = console
        self.host = host
        self.port = port
        self.tls = tls
        self.addresses: list[Any] = []  # of the host, as getaddrinfo() returns them

    # The loop

    def turn(self, deadline: float | None = None) -> None:
        """Waits until something can be moved, or for the deadline, and moves it."""
        console = self.console
        console.update()
        self.watch(console.input, EVENT_READ if console.wants_input() else 0, console.read)
        if console.signals:
            self.watch(console.signals, EVENT_READ, console.on_signal)
        if not ONLY_SOCKETS:
            self.watch(console.screen, EVENT_WRITE if console.output else 0, console.write)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
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

    def ask(self, prompt: str) -> str | None:
        """Returns the user's answer without the spaces around it, None at the end of input."""
        answer = ""
        while not answer:
            self.console.prompt(prompt)
            while not self.console.typed and not self.console.ended:
                self.turn()
            if not self.console.typed:
                return None
            line = self.console.take()
            self.console.keep(prompt + line)
            answer = line.strip()
        self.console.prompt("")
        return answer

    # Connecting

    def connect(self) -> socket.socket:
        """Connects to the first address of the host that answers. Raises Disconnected, Failure if
        the host can't be trusted, and KeyboardInterrupt if the user doesn't want to wait."""
        try:  # just once: a resolver that is gone as well would freeze the keys at each new try
            self.addresses = self.addresses or socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError):  # UnicodeError: a name that no host can have
            raise Disconnected(f"host {self.host} is unknown") from None
        code = 0
        for family, kind, protocol, _, address in self.addresses:
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # such as IPv6 where it is switched off
                code = error.errno or 0
                continue
            code = self.connect_to(address, sock)
            if not code:
                return self.shake_hands(sock, self.tls) if self.tls else sock
            sock.close()
        why = WHY_NOT_CONNECTED.get(code) or os.strerror(code)
        raise Disconnected(f"cannot connect to port {self.port} on {self.host}: {why}")

    def connect_to(self, address: Any, sock: socket.socket) -> int:
        """Connects; returns the error number of how it ended, 0 for success."""
        sock.setblocking(False)
        for level, option, value in SOCKET_OPTIONS:
            sock.setsockopt(level, option, value)
        code = sock.connect_ex(address)
        if code not in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            return code
        if not self.wait_for(sock, EVENT_WRITE, time.monotonic() + CONNECT_TIME):
            return errno.ETIMEDOUT
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def shake_hands(self, plain: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        """Returns the socket with TLS around it. Raises Failure if that can't be trusted."""
        host = self.host
        deadline = time.monotonic() + CONNECT_TIME
        try:
            sock = tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
            while True:
                try:
                    sock.do_handshake()
                    return sock
                except ssl.SSLWantReadError:
                    events = EVENT_READ
                except ssl.SSLWantWriteError:
                    events = EVENT_WRITE
                if not self.wait_for(sock, events, deadline):
                    raise Disconnected(f"{host} does not answer in TLS; does it speak it?")
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise Disconnected(f"{host} closed the connection in the TLS handshake") from None
        except ssl.SSLError as error:
            raise Failure(why_no_tls(error, host)) from None
        except OSError as error:
            raise Disconnected(f"no TLS with {host}: {error.strerror}") from None

    def wait_for(self, sock: socket.socket, events: int, deadline: float) -> bool:
        """Waits for events on a socket that is being connected; says whether they have come."""
        ready: list[int] = []
        self.watch(sock, events, ready.append)
        try:
            while not ready and time.monotonic() < deadline:
                self.turn(deadline)
                if self.console.edits and self.console.wants_to_leave():
                    if self.console.unsent():
                        raise Failure("left without a connection")
                    raise KeyboardInterrupt
        finally:
            self.watch(sock, 0)
        return bool(ready)

    def reconnect(self) -> socket.socket | None:
        """Connects again, trying ever more rarely; returns None if the user leaves meanwhile."""
        delay, longest = RETRY_DELAYS
        noted = 0
        while True:
            # So that, when a room starts again, not everyone comes at the same moment.
            pause = delay * random.uniform(0.5, 1.0)
            self.console.show(f"* trying again in {pause:.1f} s")
            deadline = time.monotonic() + pause
            while time.monotonic() < deadline:
                self.turn(deadline)
                if self.console.wants_to_leave():
                    return None
                for line in list(self.console.typed)[noted:]:
                    self.console.show(f"* waits to be sent: {line}")
                noted = len(self.console.typed)
            try:
                return self.connect()
            except Disconnected:
                delay = min(2 * delay, longest)


class Conversation:
    """A talk with a server over one connection, until either side ends it.

    A side whose counterpart is slow is not read from, so that little is held in between.
    """

    def __init__(self, client: Client, sock: socket.socket, talk: Talk) -> None:
        self.client = client
        self.console = client.console
        self.sock = sock
        self.talk = talk
        self.framer = LineFramer(MAX_LINE)
        self.tls_wants = 0  # EVENT_WRITE while TLS has to send before anything else, else 0
        self.silent = True  # the server has not said anything yet
        self.lost = ""  # why the connection ended, once it has
        self.leaving = False  # the user has said all and wants to go
        self.said_goodbye = False  # our direction of the stream is ended
        self.deadline: float | None = None  # monotonic time at which we stop waiting for the server

    def run(self) -> None:
        """Talks until the user leaves. Raises Disconnected if the server closes before that, and
        Failure if there is no use in trying again."""
        talk = self.talk
        self.be_patient(QUESTION_TIME if talk.password else ANSWER_TIME)
        self.console.candidates = talk.candidates
        if self.console.edits:
            self.console.prompt(talk.prompt)
        while not self.lost:
            if talk.wants_password:
                talk.give_password(self.console.ask_secret("password: "))
            self.forward_typed()
            if self.has_said_all() and not self.said_goodbye:
                self.say_goodbye()
            elif self.is_hurried():
                self.deadline = min(self.deadline or float("inf"), time.monotonic() + LINGER)
            self.watch_server()
            self.client.turn(self.deadline)
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.deadline = None
                talk.stop_waiting()
                if self.said_goodbye or self.leaving or self.is_hurried():
                    break
        self.show()
        self.client.watch(self.sock, 0)
        self.sock.close()
        if talk.refused:
            raise Failure(talk.refused)
        if self.lost and not self.said_goodbye:
            raise (Failure if self.leaving else Disconnected)(f"lost the connection: {self.lost}")
        if talk.outgoing:
            raise Failure("left before everything was sent")

    def be_patient(self, seconds: float = ANSWER_TIME) -> None:
        """Gives the other side so much time for an answer, from now on."""
        self.deadline = time.monotonic() + seconds

    def is_hurried(self) -> bool:
        """Says whether the user wants to go although the talk still waits for an answer."""
        return not self.talk.ready and self.console.wants_to_leave()

    # From the user

    def forward_typed(self) -> None:
        """Lets the talk have the lines that were typed, as long as it wants more."""
        talk, console = self.talk, self.console
        while talk.ready and not self.leaving and len(talk.outgoing) < MAX_WAITING:
            if talk.asks or console.edits:
                console.prompt(talk.prompt)
            if not console.typed:
                if console.ended and console.input_is_terminal:  # Ctrl-D
                    self.leave()
                break
            line = console.take()
            if line.strip() in LEAVE:
                self.leave()
                console.keep(line)
                break
            talk.typed(line)
            self.be_patient()
            # A chat shows its own message; a command, or what an echo server gets, stays as typed.
            if line.strip() and not talk.to_show:
                console.keep(talk.prompt + line)
            self.show()

    def leave(self) -> None:
        """Takes nothing more from the user, who wants to go."""
        self.leaving = True
        self.be_patient(LINGER)

    def has_said_all(self) -> bool:
        """Says whether the user has come to an end, and all that was to be said has gone out."""
        ended = self.leaving or (self.console.ended and not self.console.typed)
        return ended and self.talk.ready and not self.talk.outgoing

    def say_goodbye(self) -> None:
        """Ends our direction of the stream. The server then sends what is left and closes.

        To close ourselves, with input unread, would reset the connection, and a reset destroys what
        is still on its way.
        """
        self.said_goodbye = True
        self.deadline = time.monotonic() + LINGER if self.leaving else None
        with suppress(OSError):
            # The plain socket's: after that of TLS nothing that still comes would be decrypted.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def show(self) -> None:
        """Puts out what the talk has to show."""
        talk, console = self.talk, self.console
        console.painter.me = talk.name
        for line in talk.to_show:
            console.show(line)
        talk.to_show.clear()
        if talk.mentioned:
            console.ring()
        talk.mentioned = False

    # The socket

    def watch_server(self) -> None:
        """Has the selector wait for what can be done with the server now."""
        events = EVENT_READ if self.console.waiting() < MAX_WAITING else 0
        events |= EVENT_WRITE if self.talk.outgoing else 0
        self.client.watch(self.sock, self.tls_wants or events, self.serve)

    def serve(self, events: int) -> None:
        """Receives and sends once, as the socket is ready for it."""
        if self.tls_wants:  # whatever TLS was stuck in can go on
            self.tls_wants, events = 0, EVENT_READ | EVENT_WRITE
        try:
            # A TLS record has at most 16 KiB, so nothing that is decrypted stays behind unseen.
            if events & EVENT_READ:
                self.receive(self.sock.recv(RECEIVE_SIZE))
            if events & EVENT_WRITE and self.talk.outgoing and not self.lost:
                del self.talk.outgoing[: self.sock.send(self.talk.outgoing)]
        except BlockingIOError:  # readiness is a hint, not a promise
            pass
        except OSError as error:
            if ssl and isinstance(error, ssl.SSLWantWriteError):
                self.tls_wants = EVENT_WRITE
            elif not (ssl and isinstance(error, ssl.SSLWantReadError)):
                self.lost = error.strerror or str(error)

    def receive(self, data: bytes) -> None:
        """Lets the talk have the lines in what was received; nothing means the end."""
        talk = self.talk
        if self.silent and (not data or data.startswith(TLS_ALERT)) and not self.client.tls:
            self.lost = "the server closed it without a word; if it speaks TLS, use --tls"
            return
        self.silent = False
        chunk, too_long = self.framer.feed(data)
        if not data:
            self.lost = "the server closed it"
            chunk = self.framer.finish()
        before = len(talk.outgoing)
        for line in chunk.split(b"\n")[:-1]:
            talk.heard(terminal_text(line))
        if too_long:
            talk.to_show.append(TOO_LONG)
        if self.said_goodbye:  # too late for the name that a late welcome asks for
            talk.outgoing.clear()
        elif len(talk.outgoing) > before and not self.console.wants_to_leave():  # a question
            self.be_patient()
        self.show()


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


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options, and `prog`, the script's name. Wrong ones end the process, status 2."""
    parser = argparse.ArgumentParser(
        description="The terminal client for chat rooms and echo servers.",
        epilog="example: python3 chat_client.py 192.0.2.7 --name John (quit leaves, /help helps)",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("host", nargs="?", default=HOST, help="(default: %(default)s)")
    add("port", nargs="?", type=port_number, default=PORT, help="(default: %(default)s)")
    add("--name", help="be known as NAME (default: ask)")
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
        raise Failure("this Python was built without TLS")
    if ca_file == "":  # such as a variable of the shell that isn't set
        raise Failure("--tls-ca is given no file")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one too
        raise Failure(f"cannot use {ca_file}: {error.strerror}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # so that sending doesn't wait for receiving
    return context


def run(console: Console, args: argparse.Namespace) -> None:
    """Asks, connects, talks. Raises Failure."""
    password = read_password(args.password_file)
    tls = make_client_tls(args.tls_ca) if args.tls or args.tls_ca is not None else None
    client = Client(console, args.host, args.port, tls)
    name = ""
    if not args.echo:
        # A command line can hold bytes that aren't UTF-8, and control characters.
        name = terminal_text(os.fsencode(args.name or "")).strip() or client.ask("name: ") or ""
        if not name:
            return
    sock: socket.socket | None = client.connect()
    while sock:
        talk = Echo() if args.echo else Chat(name, password)
        try:
            Conversation(client, sock, talk).run()
            return
        except Disconnected as failure:
            if args.echo or not console.edits:
                raise
            console.show(f"* {failure}")
        name, password = talk.name, talk.password
        sock = client.reconnect()
    if console.unsent():
        raise Failure("left without a connection")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the client; returns the exit status: 0 for a clean end, 1 for a failure, 128 and its
    number for a signal."""
    args = parse_args(argv)
    console: Console | None = None
    try:
        console = open_console(args)
        with closing(console):  # also on the way to a traceback
            run(console, args)
    except Failure as error:
        lines = console.unsent() if console else []
        not_sent = f"; not sent: {'; '.join(lines)}" if lines else ""
        print(f"{args.prog}: {error}{not_sent}", file=sys.stderr)
        return 1
    except Terminated as terminated:
        return 128 + int(terminated.args[0])  # as a shell says it
    except KeyboardInterrupt:
        if console and not console.edits:
            sys.stderr.write("\n")  # behind the ^C that the terminal shows
    return 0


if __name__ == "__main__":
    open_standard_streams()
    sys.exit(main())
