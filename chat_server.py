#!/usr/bin/env python3
"""A chat room: what one member says goes to every other member.

    python3 chat_server.py                    a room for this machine, on port 7007
    python3 chat_server.py --host ::          a room for the whole network
    python3 chat_client.py HOST               join it; or: nc HOST 7007, telnet HOST 7007
    python3 chat_server.py --host :: --web    and with a browser: http://HOST:7080/

    python3 chat_server.py --host :: --tls-cert FILE --tls-key FILE --password-file FILE
                                              a closed room: nobody listens in, or gets in uninvited

The protocol is lines of UTF-8 text, ended by LF or CRLF. A member sends

    /name NAME          be known as NAME             /help       what can I say?
    /who                who is here?                 /quit       leave
    /msg NAME: TEXT     a message for NAME alone     /ping       has this been heard?
    //TEXT              the message /TEXT

and any other line is a message for every other member. The room answers and announces with lines
that begin with "* ". A named member's messages each begin with its name: "John: Hi". In a
closed room the first line from a newcomer is the password. Browsers get a page from a port of their
own, and the same lines through a WebSocket there. With --operator-file, whoever knows that password
can say /op PASSWORD, and then remove others: /kick NAME.

One thread, one selectors loop, non-blocking sockets. A turn of the loop goes like this:

    1. wait until sockets are ready; send what had to wait for that
    2. go on with newcomers, for a few ms at most: TLS, a browser's request, the password
    3. read from each member once, and put what was said into one batch, in the order of reading
    4. hand the whole batch to each member; whoever spoke gets it without its own lines
    5. what a socket doesn't take now waits in its member's queue: while any queue is too long, read
       more slowly from those who talk most, and TCP slows them down

So a turn costs one send per member, however many messages it carries, and nothing is copied for
those who only listen. In a quiet room a line goes out in the turn in which it came; under load the
batches grow by themselves.

Standard library only, Python 3.8 or later. Copy this file anywhere and run it.

The file is in the order in which a reader needs it. The first two parts are a whole chat, except
for the way in and what a name may be, and you may stop there; if you want just the loop, start at
ChatServer.turn.

    I    The room               framing lines, batches, what a line means     knows no sockets
    II   The loop               connections, the turn of the loop, who is     knows no TLS, telnet,
                                a member, who may say how much                browsers or passwords
    III  The door               names, voices, the way of a newcomer,         doesn't know what
                                hosts, passwords, operators                   travels on the wire
    IV   Other ways to speak    telnet, WebSocket, TLS and its certificate    knows no room
    V    Browsers               the page, HTTP                                knows no room
    VI   The process            the log, listening, the history and the       knows them all
                                transcript, how to join, the command line
"""

from __future__ import annotations

import argparse
import enum
import errno
import hashlib
import io
import ipaddress
import logging
import math
import os
import random
import re
import select
import signal
import socket
import stat
import sys
import time
import unicodedata
from base64 import b64encode
from codecs import BOM_UTF8, utf_8_decode
from collections import Counter, deque
from collections.abc import (
    Callable,
    Collection,
    Container,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import suppress
from functools import partial
from itertools import accumulate, islice, product
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, DefaultSelector
from typing import Any, Generator, cast

try:  # Windows has none
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:  # only passwords need it; Debian's python3-minimal lacks it
    import hmac
except ImportError:
    hmac = None  # type: ignore[assignment]
try:  # a Python can be built without OpenSSL
    import ssl
except ImportError:
    ssl = None  # type: ignore[assignment]

VERSION = "1.0"
PORT = 7007
WEB_PORT = 7080

log = logging.getLogger("chat")


class State(enum.Enum):
    """Where a connection is, and what holds for it there. Only Membership.move changes it.

    state     is in         `reading`                     its queue   when it moves on

    DOOR      newcomers     unless it waits for an        a question  let in, or dismissed
                            answer to its password
    MEMBER    room.members  unless it waits to speak      any         leaves, or has to
    LEAVING   leaving       until its stream has ended    any         it has got everything, and
                                                                      has closed; or time is up
    CLOSED    nothing       no                            none

    From each of the first three, an error leads straight to CLOSED, and for a member so does
    falling too far behind. But if sending shows that a peer has gone, its stream is first read to
    its end. During /quit, a member has left the room a moment before it is LEAVING.
    """

    DOOR = enum.auto()
    MEMBER = enum.auto()
    LEAVING = enum.auto()
    CLOSED = enum.auto()


# === I. The room =================================================================================
#
# What a line means, and who gets to see it. Bytes come in, bytes come out: nothing here has a
# socket or waits for anything.

MAX_LINE = 8 * 1024  # bytes of a line without its newline; --max-line


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


class Lines(LineFramer):
    """What stands between a connection's bytes and its lines, both ways: here, nothing.

    What came goes through `sift`, then `feed`. Part IV knows what else can be around a text.
    """

    __slots__ = ()
    max_read = 256 * 1024  # bytes that are read at once, at most
    ended = False  # the peer has closed, or is at fault: what comes isn't heard any more
    why = ""  # the fault, for the log
    encode: Callable[[bytes], bytes] | None = None  # turns text into what travels to the peer

    def sift(self, data: bytes) -> tuple[bytes, bytes]:
        """Takes the bytes that came; returns the text among them, in which lines end with LF, and
        what is to be answered. Raises Gone if the peer doesn't mean to send text."""
        return data, b""

    def farewell(self, code: int) -> bytes:
        """Returns what tells the peer why its stream ends, if its protocol has words for that."""
        return b""


# --- Text ----------------------------------------------------------------------------------------

# Control characters but tab and newline: those of ASCII, and U+0080 to U+009F, which some terminals
# take for the beginning of an escape sequence.
CONTROLS = bytes(c for c in (*range(32), 127) if c not in b"\t\n")
C1_CONTROL = re.compile(rb"\xc2[\x80-\x9f]")
LINE_SEPARATOR = re.compile(rb"\xe2\x80[\xa8\xa9]")  # U+2028, U+2029: a new line on some screens
ERASERS = b"\b\x7f\x15"  # Backspace and Delete take back a character, Ctrl-U the line
CLEANING = dict.fromkeys(c for c in (*CONTROLS, *range(0x80, 0xA0)) if c not in ERASERS)
CLEANING.update({0x2028: " ", 0x2029: " "})


def clean(line: bytes) -> str:
    """Returns the text of a line as its sender means it to be seen: without control characters and
    what was taken back; broken UTF-8 becomes U+FFFD."""
    text = line.decode("utf-8", "replace")
    return text if text.isprintable() else take_back(text.translate(CLEANING))


def is_clean(lines: bytes) -> bool:
    """Says whether `clean` would surely leave the lines as they are. Fast, above all for ASCII."""
    if len(lines.translate(None, CONTROLS)) != len(lines):
        return False
    if lines.isascii():
        return True
    try:
        lines.decode()
    except UnicodeDecodeError:
        return False
    return not C1_CONTROL.search(lines) and not LINE_SEPARATOR.search(lines)


def take_back(text: str) -> str:
    """Carries out the Backspaces, Deletes and Ctrl-Us in a text: a terminal that sends each key at
    once sends these like any other."""
    kept: list[str] = []
    for char in text.rpartition("\x15")[2]:
        if char not in "\b\x7f":
            kept.append(char)
        elif kept:
            kept.pop()
    return "".join(kept)


def notice(text: str) -> bytes:
    """Returns the line with which the room itself says something. Clients trust it, so of
    what members write, only names may be in one."""
    return f"* {text}\n".encode()


# --- Members and batches -------------------------------------------------------------------------

TOLD_COST = 512  # bytes added for whatever goes to one member alone, as nobody shares it


class Member:
    """Somebody in the room."""

    __slots__ = (
        "is_operator",
        "name",
        "prefix",
        "reachable",
        "silent",
        "unread_answers",
        "unread_whispers",
        "warned",
    )

    def __init__(self) -> None:
        self.name = ""  # none taken
        self.is_operator = False  # may remove others: part III
        self.prefix = b""  # what each of its messages begins with once it has a name: b"John: "
        self.reachable = True  # something can still be sent to it
        self.silent = True  # nothing has been heard from it: part III
        # What was for it alone and hasn't been taken yet, as in a batch's `told` and `whispered`:
        # answers to what it said, and what others said to it. Only the answers are its own doing.
        self.unread_answers = 0
        self.unread_whispers = 0
        self.warned = False  # it was told that only the room begins a line so: part III

    def has_read(self) -> bool:
        """Says whether it has read most of the answers to what it said; else it isn't heard."""
        return self.unread_answers <= MAX_UNREAD


class Batch:
    """What is said in one turn of the loop, in order; everyone is handed the same bytes.

    A member for whom something differs has cuts: (start, end, instead) means that in place of
    the bytes from start to end it gets `instead`. What it said itself is cut out, an answer is put
    in where it asked, and a newcomer has its welcome in place of all that was said before.

    A batch lives for as long as somebody has yet to get some of it. What a member gets is put
    together when it is sent, so that a thousand who wait hold a thousand references and no bytes.
    """

    def __init__(self, is_text: bool = True) -> None:
        self.is_text = is_text  # else it goes out as it is, and isn't encoded
        self.parts: list[bytes] = []
        self.size = 0  # bytes of the parts
        self.cuts: dict[Any, list[tuple[int, int, bytes | memoryview]]] = {}  # by members
        # Bytes for one member alone, plus TOLD_COST for each thing: answers; what others said.
        self.told: dict[Member, int] = {}
        self.whispered: dict[Member, int] = {}
        self.leavers: set[Any] = set()  # have left in this turn, and get what came before that
        self.text = b""  # all that was said, once the batch is sealed
        self.encoded = b""  # the same, encoded, once somebody needed that

    def say(self, data: bytes, but: Member | None) -> None:
        """Puts whole lines at the end, for all but one, such as their author."""
        start = self.size
        self.parts.append(data)
        self.size += len(data)
        if but is not None:
            self.cut(but, start, self.size, b"")

    def tell(self, member: Member, data: bytes, by_another: bool = False) -> None:
        """Puts whole lines at the end, for one member alone: an answer to what it said, or what
        another says to it. Does nothing if it has gone: that could only delay its leaving.
        """
        if not member.reachable:
            return
        cost = len(data) + TOLD_COST
        if by_another:
            self.whispered[member] = self.whispered.get(member, 0) + cost
            member.unread_whispers += cost
        else:
            self.told[member] = self.told.get(member, 0) + cost
            member.unread_answers += cost
        self.cut(member, self.size, self.size, data)

    def begin(self, member: Member, welcome: Iterable[bytes | memoryview]) -> None:
        """A newcomer gets the pieces of its welcome, and then what is said from here on."""
        self.cut(member, 0, self.size, b"")
        for piece in welcome:
            self.cut(member, self.size, self.size, piece)

    def end(self, member: Member) -> None:
        """A leaver gets nothing of what is said from here on."""
        self.cut(member, self.size, sys.maxsize, b"")
        self.leavers.add(member)

    def cut(self, member: Member, start: int, end: int, instead: bytes | memoryview) -> None:
        """Gives one member something else in place of a stretch; later cuts lie further on."""
        self.cuts.setdefault(member, []).append((start, end, instead))

    def seal(self) -> None:
        """Ends the turn: nothing is said in this batch any more, and it can be handed out."""
        self.text = b"".join(self.parts)  # a single part, as in a quiet room, is not copied
        self.parts = []

    def part_for(self, member: Member, encode: Callable[[bytes], bytes] | None) -> bytes:
        """Returns what a member gets, encoded by `encode`: the text with its cuts made. All without
        cuts share the same bytes: those who need encoding at all need the same encoding."""
        if member in self.cuts:
            pieces: list[bytes | memoryview] = []
            at = 0
            for start, end, instead in self.cuts[member]:
                pieces += (self.text[at:start], instead)
                at = end
            part = b"".join((*pieces, self.text[at:]))
            return encode(part) if encode and part and self.is_text else part
        if encode and self.text and not self.encoded:
            self.encoded = encode(self.text)
        return self.encoded if encode else self.text

    def forget(self, member: Member) -> None:
        """Drops what is in here for a member that has got its part, or never will. Others may hold
        the batch for much longer."""
        self.cuts.pop(member, None)
        member.unread_answers -= self.told.pop(member, 0)
        member.unread_whispers -= self.whispered.pop(member, 0)


# --- The room itself -----------------------------------------------------------------------------

WELCOME = "Welcome to the chatroom!"
PRIVATE = " (private)"
MAX_WHO = 200  # names in an answer to /who
LOOK_AT = 256  # bytes, or a line more, that are heard between two looks at the clock
MAX_UNREAD = 8 * 1024  # bytes of unread answers, beyond which their asker isn't heard at all
MAX_WHISPERED = 4 * 1024  # bytes of unread private messages, beyond which one more is refused

# The start of a line that has to be looked at, if its speaker has no name; and the end of one that
# may have nothing in it but its speaker's name.
COMMAND_OR_NOTICE = re.compile(rb"\n[ \t]*[/*\n]")
NOTHING_SAID = re.compile(rb": [ \t]*\n")

ALIASES = {"/nick": "/name", "/names": "/who", "/exit": "/quit"}  # what people know from elsewhere
HELP = (
    "/name NAME: be known as NAME",
    "/who: who is here?",
    "/msg NAME: TEXT: a message for NAME alone",
    "/ping: has this been heard?",
    "/quit: leave",
    "//TEXT: the message /TEXT",
    "any other line: a message for everyone here",
)


class Room:
    """Who is here and what a line means. It knows no sockets: it hears lines, and what members get
    to see of it is put into `batch`, which the server takes at the end of each turn."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self.max_line = max_line  # bytes of what is said in a line, without its end
        self.members: set[Any] = set()  # each a Member; in a server, a Connection
        self.names: dict[str, Member] = {}  # the owners, by identity(name)
        self.looks: Counter[str] = Counter()  # of the names: how many have each
        # Says whether a name is one that nobody can take, by its identity().
        self.is_reserved: Callable[[str], bool] = lambda key: False
        self.history: History | None = None  # what newcomers get of what was said before: part VI
        self.batch = Batch()
        self.commands: dict[str, Callable[[Member, str], None]] = {
            "/name": self.take_name,
            "/who": self.who,
            "/msg": self.send_private,
            "/help": self.help,
            "/ping": self.ping,
            "/quit": self.quit,
        }
        self.help_lines = b"".join(map(notice, HELP))  # the same bytes for all who ask
        # What part III checks. Each takes a line that isn't plain, and returns it as its member may
        # say it, or raises ValueError, which says why. No chunk with a suspect in it is plain.
        self.checks: list[Callable[[Member, str], str]] = []
        self.suspects: list[bytes] = []

    def take_batch(self) -> Batch:
        """Returns what has happened since the last call."""
        batch, self.batch = self.batch, Batch()
        batch.seal()
        return batch

    def join(self, member: Member) -> None:
        """Lets somebody in, who first gets the welcome and the history."""
        self.members.add(member)
        before = self.history.pieces() if self.history else ()
        self.batch.begin(member, [f"{WELCOME}\n".encode(), *before])

    def leave(self, member: Member, how: str = "left") -> None:
        """Lets a member go; it still gets what came before. Others are told `how`, if at all."""
        self.members.remove(member)
        self.batch.end(member)
        if member.name:
            self.give_back(member.name)
            if how:
                self.announce(f"{member.name} {how}")

    def announce(self, text: str, but: Member | None = None) -> None:
        """The room itself says something to all but one. That isn't kept in the history."""
        self.batch.say(notice(text), but)

    def tell(self, member: Member, text: str) -> None:
        """The room itself says something to one member, unless the text is empty."""
        if text:
            self.batch.tell(member, notice(text))

    def hear(self, member: Member, chunk: bytes, limit: float, cpu_until: float) -> bytes:
        """Takes whole lines, at least one; returns those that have to wait for the next turn: none
        if the member has left.

        Short lines can take a long time: `/who` in a crowd. So lines that aren't plain are heard
        only until the process has used that much CPU, but always some of them; and only as long as
        there is memory for the answers. An added name makes them longer: once they have come to
        `limit` bytes, the rest has to wait.
        """
        if not chunk.strip(b" \t\n"):  # Enter in nc, perhaps a million times
            return b""
        member.silent = False
        if self.is_plain(member, chunk):
            self.say(member, chunk)
            return b""
        at, full = 0, self.batch.size + limit
        while at < len(chunk):
            end = chunk.find(b"\n", at + LOOK_AT) + 1 or len(chunk)
            for line in chunk[at:end].split(b"\n")[:-1]:
                has_much_to_read = member.unread_answers > MAX_UNREAD // 2  # room for one more
                if at and (has_much_to_read or self.batch.size >= full):
                    return chunk[at:]
                at += len(line) + 1
                self.hear_line(member, line)
                if member not in self.members:  # it said /quit
                    return b""
            if time.process_time() > cpu_until:
                break
        return chunk[at:]

    def is_plain(self, member: Member, chunk: bytes) -> bool:
        """Says whether all lines of a chunk can be relayed as they are, without a look at each:
        those of a named member if each has its name already, as from our client or in a flood.
        What people type into nc goes line by line.

        A few calls that run in C over the whole chunk: about 0.1 ms for 64 KiB, less than a tenth
        of what it takes to deliver that to a hundred members.
        """
        if not is_clean(chunk) or any(one in chunk for one in self.suspects):
            return False
        lines = b"\n" + chunk  # so that each line, the first too, has a newline before it
        if member.prefix:
            if lines.count(b"\n" + member.prefix) != chunk.count(b"\n"):
                return False
            return not NOTHING_SAID.search(chunk)
        # One without a name mustn't pass for somebody who has one: that is for the checks.
        if not chunk.isascii() or (b":" in chunk and (self.names or PRIVATE.encode() in chunk)):
            return False
        return not COMMAND_OR_NOTICE.search(lines)

    def hear_line(self, member: Member, data: bytes) -> None:
        """Takes one line, as it came, without its newline."""
        line = clean(data)
        if data == SKIPPED or len(line.encode()) > self.max_line:  # broken bytes grow
            self.tell(member, f"too long: a line has at most {self.max_line} bytes")
        elif line.startswith("//"):
            self.message(member, line[1:])
        elif line.startswith("/"):
            word, _, argument = line.partition(" ")
            command = self.commands.get(ALIASES.get(word, word), self.no_such_command)
            command(member, argument.strip())
        else:
            self.message(member, line)

    def message(self, member: Member, line: str) -> None:
        """Says one line, after its speaker's name, unless a check finds something in it. An empty
        one, as from Enter in nc, is nothing."""
        try:
            for check in self.checks:
                line = check(member, line)
        except ValueError as error:
            self.tell(member, str(error))
            return
        data = line.encode() + b"\n"
        said = data[len(member.prefix) :] if data.startswith(member.prefix) else data
        if said.strip():
            self.say(member, member.prefix + said)

    def say(self, member: Member, chunk: bytes) -> None:
        """Says whole lines, clean, to all but their author."""
        self.batch.say(chunk, member)
        if self.history:
            self.history.add(chunk)

    # Commands: each takes the member and what follows the command's word

    def no_such_command(self, member: Member, _: str) -> None:
        self.tell(member, "no such command; /help lists them, and //TEXT says /TEXT")

    def take_name(self, member: Member, argument: str) -> None:
        try:
            name = valid_name(argument)
        except ValueError as error:
            self.tell(member, f"a name {error}: /name NAME")
            return
        key = identity(name)
        if self.names.get(key, member) is not member or self.is_reserved(key):
            self.tell(member, f"{name} is taken")
            return
        before, member.name, member.prefix = member.name, name, f"{name}: ".encode()
        if before:
            self.give_back(before)
        self.names[key] = member
        self.looks[look(name)] += 1
        self.tell(member, f"you are {name}")
        if not before:
            self.announce(f"{name} joined", member)
        elif name != before:
            self.announce(f"{before} is now {name}", member)

    def give_back(self, name: str) -> None:
        """A name is free again."""
        del self.names[identity(name)]
        self.looks[look(name)] -= 1
        if not self.looks[look(name)]:
            del self.looks[look(name)]

    def who(self, member: Member, _: str) -> None:
        named = list(islice(self.names.values(), MAX_WHO))
        sizes = accumulate(len(other.prefix) for other in named)
        shown = [other.name for other, size in zip(named, sizes) if size <= MAX_UNREAD]
        if len(self.names) > len(shown):
            shown.append(f"{len(self.names) - len(shown)} more")
        unnamed = len(self.members) - len(self.names)
        parts = [", ".join(shown)] if shown else []
        if unnamed:
            parts.append(f"{unnamed} unnamed")
        self.tell(member, f"here: {' and '.join(parts)}")

    def send_private(self, member: Member, argument: str) -> None:
        name, _, text = argument.partition(":")
        receiver = self.names.get(identity(name))
        if not text.strip():
            self.tell(member, "a private message goes like this: /msg NAME: TEXT")
        elif not member.name:
            self.tell(member, "take a name before you send a private message: /name NAME")
        elif receiver is None:
            self.tell(member, "nobody here has that name; /who lists them")
        elif receiver.unread_whispers > MAX_WHISPERED:
            self.tell(member, f"{receiver.name} is not reading; that was not delivered")
        else:
            data = f"{member.name}{PRIVATE}: {text.strip()}\n".encode()
            self.batch.tell(receiver, data, by_another=True)

    def quit(self, member: Member, _: str) -> None:
        """Says goodbye: not every program tells its user that a connection has ended."""
        self.tell(member, "bye")
        self.leave(member)  # ChatServer.hear sees that it has left, and ends its stream

    def help(self, member: Member, _: str) -> None:
        self.batch.tell(member, self.help_lines)

    def ping(self, member: Member, _: str) -> None:
        """Answers: so a client knows that all it said before was heard, and the network lives."""
        self.tell(member, "pong")


# === II. The loop ================================================================================
#
# Sockets, and the turn that moves bytes between them and the room; then its policies: who is a
# member, and who may say how much. It knows nothing of TLS, telnet, browsers or passwords.
#
# A selector says which sockets can be read or written now, and says so again in each turn for as
# long as that is true. So EVENT_WRITE is asked for only while something waits to be written.

# A turn of the loop should take 10 ms or so, as anybody's line may have to wait for the next.
TURN = 0.010  # seconds of CPU for what came; whoever has cost least comes first
TURN_READ = 256 * 1024  # bytes that are said, shared among all who are read
TURN_DELIVERY = 32 * 1024 * 1024  # bytes that are delivered, to all members together
MIN_READ = 512  # bytes: the least share that a connection gets, of a turn or of PACE
FIRST_READ = 32 * 1024  # bytes read at once from a connection until their cost is known
MANY_HOSTS = 1000  # of so many that talk, none earns anything by a pause: see Costs

# For a member that reads more slowly than the others talk, batches wait in a queue. While any queue
# is over HIGH_WATER, all members together may say only PACE, the least that each has to be able to
# read; no human notices. A member that takes less is stuck, and is disconnected.
HIGH_WATER = 256 * 1024  # bytes
PACE = 8 * 1024  # bytes a second
HARD_LIMIT = 4 * 1024 * 1024  # bytes in a queue, however steadily it is read
BATCH_COST = 128  # bytes added for each batch in a queue, or each turn: short ones aren't free

TICK = 1.0  # seconds between looks at those who are behind; the longest sleep before a deadline
SHORT_TICK = 0.05  # seconds: the same for those who wait to speak, and for those who are leaving
LAST_CALL = 1.0  # seconds for a closing room to hear what had arrived before
FAREWELL = 5.0  # seconds for whoever leaves to get what was said before, and for the room to close
LINGER = 0.5  # seconds to wait for a leaver to close too, once it has got all that

NORMAL, GOING_AWAY = 1000, 1001  # why a stream ends (RFC 6455, section 7.4.1)


# --- Connections ---------------------------------------------------------------------------------

SIOCOUTQ = 0x5411 if sys.platform == "linux" else 0  # bytes that the peer has yet to acknowledge


class Gone(Exception):
    """A connection is of no further use, by its peer's doing; the text says why, for the log."""

    def see_to(self, membership: Membership, conn: Connection) -> None:
        """Closes the connection at once; Dismissed, in part III, says why first."""
        membership.disconnect(conn, str(self))


def unacknowledged(sock: socket.socket) -> int:
    """Returns how much of what was sent, including the end of the stream, has not been acknowledged
    by the peer's system yet, in bytes; 0 where ours doesn't say."""
    if fcntl and SIOCOUTQ:
        with suppress(OSError):
            return int.from_bytes(fcntl.ioctl(sock, SIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


def broken(error: OSError) -> Gone:
    """Returns what an error on a connection's socket means."""
    return Gone(f"lost: {error.strerror or error}")


class Connection(Member):
    """Somebody's connection: one socket, and all of its reading, writing and registering. Whatever
    receives or sends raises Gone once the peer has put an end to it.

    It is also the room's Member, so that neither has to be looked up from the other. What a stream
    may be wrapped in is left to a subclass, in part IV.
    """

    __slots__ = (
        "code",
        "cost",
        "deadline",
        "encode",
        "ended",
        "events",
        "host",
        "input",
        "mark",
        "offset",
        "peer",
        "queue",
        "read_size",
        "reading",
        "selector",
        "since",
        "size",
        "sock",
        "state",
        "taken",
        "unheard",
        "until",
        "was_full",
        "why",
    )
    pending = b""  # text that came but has yet to be received; here, the kernel has all of that
    ready = True  # text can be received and sent

    def __init__(
        self, sock: socket.socket, peer: str, host: str, selector: BaseSelector, lines: Lines
    ) -> None:
        """`sock` is a non-blocking socket, `peer` the address at its other end, as text, and `host`
        what stands for the host there."""
        super().__init__()
        self.sock = sock
        self.peer = peer
        self.host = sys.intern(host)
        self.state = State.DOOR
        self.since = 0.0  # when it came into this state: like the next two, by the server's clock
        self.until = math.inf  # it can be left alone until then, if nothing comes
        self.deadline = math.inf  # what it is at has to be over by then
        self.selector = selector
        self.events = 0  # for which it is registered with the selector
        self.code = NORMAL  # tells its peer why the stream ends
        self.use(lines)
        self.unheard = b""  # whole lines that wait for the next turn
        self.cost = 0.0  # in turns, as Costs counts it
        self.mark = 0.0  # it is loud until then, in seconds of the server's clock: see Throttle
        self.read_size = FIRST_READ  # bytes that are read at once
        self.was_full = False  # the last read was as large as that
        self.reading = True  # its input is of interest, and has not ended
        self.ended = False  # nothing more is heard from it than what has come
        self.why = ""  # what ended it, for the log, if it wasn't its own end
        self.queue: deque[Batch] | None = None  # made when something has to wait
        self.offset = 0  # bytes already sent of its part of the first batch in the queue
        self.taken = 0  # bytes that the kernel has taken
        self.size = 0  # bytes that wait in the queue, and BATCH_COST for each batch
        self.watch()

    def __str__(self) -> str:
        return f"{self.name} at {self.peer}" if self.name else self.peer

    def watch(self) -> None:
        """Registers for exactly those events for which it can be served now."""
        events = (EVENT_READ if self.reading else 0) | (EVENT_WRITE if self.wants_write() else 0)
        if events == self.events:
            return
        if not events:
            self.selector.unregister(self.sock)
        elif not self.events:
            self.selector.register(self.sock, events, self)
        else:
            self.selector.modify(self.sock, events, self)
        self.events = events

    def close(self) -> None:
        """Closes the socket and drops all that was waiting."""
        self.reading = self.reachable = False
        self.unheard = b""
        self.drop_queue()
        self.watch()
        self.sock.close()

    # From the peer

    def receive(self, limit: int) -> bytes:
        """Returns text of about `limit` bytes at most, none if there is none now; once `ended`,
        no more can come. What is around the text may need an answer, and gets it."""
        data = self.receive_text(min(limit, self.read_size))
        self.was_full = len(data) >= self.read_size
        if not data:
            return data
        text, answers = self.input.sift(data)
        if answers:
            if self.unread_answers > MAX_UNREAD:  # all that is its own doing
                raise Gone("asks, and does not read the answers")
            self.tell_now(answers, is_text=False)
        if self.input.ended:
            self.ended, self.why = True, self.input.why
        return text

    def receive_bytes(self, limit: int) -> bytes:
        """Returns what the kernel has, if anything, and notes the stream's end. Raises Gone."""
        try:
            data = self.sock.recv(limit)
        except BlockingIOError:  # readiness is a hint, not a promise
            return b""
        except OSError as error:
            raise broken(error) from error
        if not data:
            self.ended = True
            self.read_on(False)
        return data

    receive_text = receive_bytes  # the same, where nothing is around the text

    def fit_read_size(self, seconds: float) -> None:
        """One read took that much of the process's time: the next may be smaller, or larger."""
        if seconds > TURN / 4:
            self.read_size = max(MIN_READ, self.read_size // 2)
        elif self.was_full and seconds < TURN / 16:
            self.read_size = min(2 * self.read_size, self.input.max_read)
        self.was_full = False

    def read_on(self, reading: bool) -> None:
        """Reads from it from now on, or doesn't: TCP then slows its peer down."""
        self.reading = reading
        self.watch()

    def use(self, lines: Lines) -> None:
        """From here on, what comes goes through `lines`, and what it gets is encoded by them."""
        self.input = lines
        self.encode = lines.encode

    # To the peer

    def tell_now(self, data: bytes, is_text: bool = True) -> None:
        """Sends whole lines, or what goes out as it is: after what is in its queue, but before this
        turn's batch, which waits for the turn's end."""
        batch = Batch(is_text)
        batch.tell(self, data)
        batch.seal()
        self.write(batch)

    def write(self, batch: Batch) -> None:
        """Hands what it gets of a sealed batch to the kernel, if nothing is ahead of that in the
        queue; what the kernel doesn't take has to wait there."""
        text = batch.text  # without a call, for almost everyone
        if self.encode or self in batch.cuts:
            text = batch.part_for(self, self.encode)
        sent = self.send(text) if text and self.reachable and not self.queue else 0
        if sent < len(text) and self.reachable:
            self.size += len(text) - sent + BATCH_COST
            if self.size > HARD_LIMIT:
                raise Gone("disconnected: its queue is full")
            if self.queue:
                self.queue.append(batch)
            else:
                self.queue, self.offset = deque([batch]), sent
                self.watch()
        elif self in batch.cuts:
            batch.forget(self)

    def flush(self) -> None:
        """Sends as much of what waits for it as the kernel takes now."""
        while self.queue:
            batch = self.queue[0]
            text = memoryview(batch.part_for(self, self.encode))[self.offset :]
            sent = self.send(text)
            if sent < len(text):
                self.offset += sent
                self.size -= sent
                return
            self.queue.popleft()
            self.offset = 0
            self.size -= sent + BATCH_COST
            batch.forget(self)
        self.queue = None
        self.watch()

    def send(self, data: bytes | memoryview) -> int:
        """Returns how many bytes were taken, 0 if none can be now."""
        try:
            sent = self.sock.send(data)
            self.taken += sent
            return sent
        except BlockingIOError:
            return 0
        except OSError as error:
            # A reset is reported once, perhaps here. A peer that had closed in good order, and
            # resets what comes too late, causes another: BrokenPipeError, or macOS's EPROTOTYPE.
            if not isinstance(error, ConnectionError) and error.errno != errno.EPROTOTYPE:
                raise broken(error) from error
            if isinstance(error, ConnectionResetError):
                self.why = str(broken(error))
            self.stop_sending()
            return 0

    def stop_sending(self) -> None:
        """The peer has gone; what it said before may still have to be read, and then its end.
        Raises Gone if it isn't being read, as it waits to speak: else it would keep its name."""
        if not self.reading:
            raise Gone("lost")
        Connection.end_stream(self)  # not a subclass's, which might send something
        self.drop_queue()
        self.watch()

    def wants_write(self) -> bool:
        """Says whether something waits to be sent to it."""
        return bool(self.queue)

    def end_stream(self) -> None:
        """Tells the peer that nothing more will come. What it sends can then only be drained."""
        self.reachable = False
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def acknowledged(self) -> int:
        """Returns how many bytes the peer's system has acknowledged; where ours doesn't say, how
        many our own has taken."""
        return self.taken - unacknowledged(self.sock)

    def drop_queue(self) -> None:
        """Gives up what it has yet to get."""
        for batch in self.queue or ():
            batch.forget(self)
        self.queue = None
        self.offset = self.size = 0


# --- The turn of the loop ------------------------------------------------------------------------


class ChatServer:
    """Moves bytes between the sockets and the room, until a signal ends it."""

    def __init__(self, selector: BaseSelector, membership: Membership, door: Door) -> None:
        self.selector = selector
        self.membership = membership  # who is where: below
        self.door = door  # accepts newcomers, and has them enter the membership: part III
        self.room = membership.room
        self.throttle = membership.throttle  # who may say how much: below
        self.clock = membership.clock
        self.recorders: list[Callable[[bytes], None]] = []  # get what is said, whole lines
        self.stop_signals = 0

    # The loop

    def run(self, signals: socket.socket) -> int:
        """Serves until there is something to read from `signals`; returns the exit status.

        With a connection's socket the selector holds the connection; with any other, what to call
        when it is ready.
        """
        with self.selector:
            self.door.open()
            self.selector.register(signals, EVENT_READ, partial(self.on_signal, signals))
            while not self.stop_signals:
                self.turn()
            self.close_room()
            while self.membership.leaving and self.stop_signals == 1:
                self.turn()
            return 0 if not self.membership.leaving else 1  # a second signal cut that short

    def on_signal(self, signals: socket.socket) -> None:
        """Has the loop close the room; a second signal cuts the farewells short."""
        for number in signals.recv(16):
            log.info("stopped by %s", signal.Signals(number).name)
            # Whoever closes a window sends SIGHUP twice, and a login session SIGTERM and then that.
            if not self.stop_signals or number in (signal.SIGINT, signal.SIGTERM):
                self.stop_signals += 1

    def close_room(self) -> None:
        """Lets nobody in any more, hears what had arrived before, and says goodbye to everyone."""
        self.door.close()
        for conn in list(self.membership.newcomers):
            self.membership.move(conn, State.CLOSED)
        self.throttle.high_water = HARD_LIMIT // 2  # all may speak, as long as nobody loses it
        self.throttle.settle()
        self.throttle.let_speak()
        now = self.clock.now()
        self.membership.closes_at = now + FAREWELL
        self.clock.look_by(now + FAREWELL)  # those who are leaving already have no longer
        over, quiet = now + LAST_CALL, now + SHORT_TICK
        while self.clock.now() < over and self.stop_signals == 1:
            # What is still on its way comes a moment after we have read; until then, a turn may
            # only send others what waits for them. As that can take long on a busy machine, the end
            # is when it is over and then nobody can be read.
            left = quiet - self.clock.now()
            if self.turn(max(0.0, left)) or self.throttle.waiting:
                quiet = self.clock.now() + SHORT_TICK
            elif left <= 0:
                break
        self.room.announce("the room is closing")
        for conn in list(self.room.members):
            self.membership.leave(conn, GOING_AWAY, "")
        self.deliver(self.room.take_batch())

    def turn(self, longest: float = math.inf) -> bool:
        """Waits for sockets to be ready, `longest` seconds at most; hears what came, delivers it.
        Returns whether anybody could be read.

        A turn flushes before it reads, reads each connection once, and delivers once. Whoever
        leaves in a turn isn't finished before it has that turn's batch: see Membership.finish.
        """
        knocking, readable = self.wait(min(self.timeout(), longest))
        if knocking:
            self.door.serve(knocking)
        if readable:
            self.read_all(readable)
        self.deliver(self.room.take_batch())
        self.look_at_clock()
        return bool(readable)

    def look_at_clock(self) -> None:
        """Does what is due. At the turn's end, so that what has come in time is heard first."""
        if self.clock.now() >= self.clock.next:
            self.clock.next = math.inf
            self.door.meet_deadlines()
            self.membership.meet_deadlines()

    def wait(self, timeout: float) -> tuple[list[Connection], set[Connection]]:
        """Waits that many seconds at most, sends what can be sent, and has newcomers accepted;
        returns who is ready at the door, and who can be read.

        An event can be stale: something served earlier in this turn may have closed its socket.
        The connection then has no queue to be flushed, and isn't reading.
        """
        came = {conn for conn in self.membership.has_more if conn.reading}
        ready = self.selector.select(timeout if timeout < math.inf else None)
        self.clock.now(timeout)
        for key, events in ready:
            if not isinstance(key.data, Connection):
                key.data()
                continue
            if events & EVENT_WRITE:
                self.membership.guard(self.flush, key.data)
            if events & EVENT_READ:
                came.add(key.data)
        knocking = [conn for conn in came if conn.state is State.DOOR]
        return knocking, came.difference(knocking)

    def read_all(self, readable: set[Connection]) -> None:
        """Reads from everyone who has something to say, each once, until the turn is full. Whoever
        is left over for the next turn is still ready then, or still in `has_more`.

        Whoever has cost least comes first, so that a flood doesn't keep others from being heard.
        """
        crowd = len(self.room.members) or 1
        full = min(TURN_READ, TURN_DELIVERY // crowd)
        share = max(MIN_READ, full // len(readable))
        batch = self.room.batch
        costs: list[tuple[Connection, float]] = []
        began = before = time.process_time()  # CPU: other processes are no member's fault
        for conn in sorted(readable, key=self.membership.costs.of):
            if batch.size >= full or before - began >= TURN:
                self.membership.costs.charge(costs)
                break
            if not conn.reading:
                continue
            size = batch.size
            self.membership.guard(self.read, conn, share, began + TURN)
            now = time.process_time()
            conn.fit_read_size(now - before)
            costs.append((conn, (now - before) / TURN + (batch.size - size) / full))
            before = now
        for conn in readable:
            self.membership.note_input(conn)

    def timeout(self) -> float:
        """Returns how long the loop may sleep, in seconds: for ever, if nothing depends on time."""
        # Whoever was disconnected after the last delivery has left a cut: something to deliver.
        if self.room.batch.cuts or any(conn.reading for conn in self.membership.has_more):
            return 0
        if self.clock.next == math.inf:
            return math.inf
        # No longer than a TICK, or the clock wouldn't notice that the process is stopped meanwhile.
        return max(0.0, min(self.clock.next - self.clock.now(), TICK))

    # From a connection

    def read(self, conn: Connection, limit: int, cpu_until: float) -> None:
        """Receives once, if the member may speak now, and lets the room hear the whole lines, until
        the process has used that much CPU. Raises Gone."""
        if conn.state is State.LEAVING:
            conn.receive_bytes(limit)
            if not conn.reading:  # only its end is of interest
                self.membership.finish(conn)
            return
        said = self.room.batch.size
        limit = self.throttle.allow(conn, limit, said)
        if not limit:
            return
        came = len(conn.unheard)
        if not came:
            data = conn.receive(limit)
            came = len(data)
            limit += len(conn.input.partial)  # the beginning of a line was charged before
            conn.unheard = conn.input.feed(data)
        waited = len(conn.unheard)
        if conn.unheard:
            self.hear(conn, limit, cpu_until)
        if conn.ended and not conn.unheard and conn in self.room.members:
            self.hear_end(conn)
        if conn in self.room.members:
            left = len(conn.unheard)
            more = self.room.batch.size - said - (waited - left)  # such as its name
            self.throttle.charge_bytes(conn, came - left + max(0, more))

    def hear(self, conn: Connection, limit: int, cpu_until: float) -> None:
        """Lets the room hear whole lines, of `limit` bytes or a line more, as read() says."""
        end = conn.unheard.find(b"\n", min(limit, len(conn.unheard)) - 1) + 1
        due, later = conn.unheard[:end], conn.unheard[end:]
        conn.unheard = self.room.hear(conn, due, limit, cpu_until) + later
        if conn not in self.room.members:
            log.info("%s quit, members: %d", conn, len(self.room.members))
            self.membership.leave(conn)

    def hear_end(self, conn: Connection) -> None:
        """The end of a member's stream: an unfinished last line is heard, then the member leaves.

        If the stream was cut off, that line isn't heard: its end may have been lost on the way.
        """
        last = conn.input.finish()
        if last and not conn.why:
            self.room.hear(conn, last, math.inf, math.inf)
        self.membership.leave(conn)
        log.info("%s %s, members: %d", conn, conn.why or "left", len(self.room.members))

    # To the connections

    def deliver(self, batch: Batch) -> None:
        """Hands a turn's batch to everyone who is in the room, or has left it in that turn."""
        # If nothing was said to all, only those with cuts get anything, such as a private message.
        # The others aren't even looked at: for 8,000 of them that would take 0.5 ms.
        members = self.room.members
        if batch.text:
            for record in self.recorders:
                record(batch.text)
            self.throttle.note_said(batch.size)
        else:
            members = batch.cuts.keys() & members
        for conn in list(members):
            try:
                conn.write(batch)
                if conn.size > HIGH_WATER:
                    self.throttle.note_behind(conn)
            except Gone as gone:  # much as in guard(), which would cost each delivery a call
                self.membership.disconnect(conn, str(gone))
            except Exception:
                log.exception("serving %s failed", conn)
                self.membership.disconnect(conn, "closed")
        while batch.leavers:  # whoever is behind may hold the batch for long
            self.membership.guard(self.membership.see_off, batch.leavers.pop(), batch)

    def flush(self, conn: Connection) -> None:
        """Sends as much of a connection's queue as the kernel takes now."""
        waited = conn.size
        conn.flush()
        if conn.state is State.LEAVING:
            self.membership.finish(conn, waited - conn.size)
        elif conn in self.throttle.behind:
            self.throttle.note_taken(conn)


# --- Time ----------------------------------------------------------------------------------------

OVERSLEPT = 1.0  # seconds between two looks at the clock: more means that the process was stopped


class Clock:
    """The server's own running time, in seconds. Time for which the process was stopped (SIGSTOP,
    a suspended host) doesn't count, if it was over a second: nobody could meet a deadline then."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self.lost = 0.0
        self.seen = monotonic()  # when it was last looked at
        self.next = math.inf  # when something that depends on time is due

    def now(self, slept: float = 0.0) -> float:
        """Returns the time. Since the last look, the loop has slept for `slept` seconds at most."""
        seen, self.seen = self.seen, self.monotonic()
        late = self.seen - seen - slept
        if late > OVERSLEPT:
            self.lost += late
        return self.seen - self.lost

    def look_by(self, moment: float) -> None:
        """Has the loop look at what depends on time by then."""
        self.next = min(self.next, moment)


# --- Who is at the door, in the room, leaving ----------------------------------------------------


class Membership:
    """Who is at the door, in the room, or leaving: moves connections from one state to the next.

    The order of its calls matters: when somebody is no longer a member, the room is told first; and
    the throttle before the socket is closed, as it may register the socket once more.

    There are three words for going. Whoever leaves gets what was said before; a stream is finished
    once everything is in it, and then we wait for the peer to end its own; and whoever is
    disconnected gets nothing more. So the usual order is: leave; see_off, at the delivery; finish,
    once or more; CLOSED.
    """

    def __init__(self, room: Room, clock: Clock) -> None:
        self.room = room
        self.clock = clock
        self.costs = Costs()
        self.throttle = Throttle(clock)
        self.newcomers: dict[Connection, Any] = {}  # and where each is on its way through the door
        self.leaving: set[Connection] = set()
        self.closes_at = math.inf  # when the farewells have to be over, once the room closes
        self.has_more: set[Connection] = set()  # have input that the selector doesn't know of

    def move(self, conn: Connection, state: State) -> None:
        """Changes a connection's state, and all that depends on it."""
        assert state.value > conn.state.value, f"from {conn.state} to {state}"
        now = self.clock.now()
        if conn.state is State.DOOR:
            self.newcomers.pop(conn, None)
        elif conn.state is State.MEMBER:
            assert conn not in self.room.members
            self.throttle.forget(conn)
        else:
            self.leaving.remove(conn)
        conn.state = state
        conn.since = now
        conn.until = math.inf
        conn.deadline = math.inf
        if state is State.LEAVING:
            self.leaving.add(conn)
            conn.unheard = b""
            conn.until = conn.deadline = min(now + FAREWELL, self.closes_at)
            self.clock.look_by(conn.until)
        elif state is State.CLOSED:
            self.has_more.discard(conn)
            conn.close()

    def guard(self, action: Callable[..., None], conn: Connection, *more: Any) -> None:
        """Does something for a connection. Whatever goes wrong with it ends that one alone."""
        try:
            action(conn, *more)
        except Gone as gone:
            gone.see_to(self, conn)
        except OSError as error:  # such as that macOS knows no address of one that was reset
            self.disconnect(conn, str(broken(error)))
        except Exception:
            log.exception("serving %s failed", conn)
            self.disconnect(conn, "closed")

    # In

    def enter(self, conn: Connection, rest: bytes) -> None:
        """Makes a member of somebody at the door. `rest` is what it has sent already."""
        self.move(conn, State.MEMBER)
        self.room.join(conn)
        conn.cost = self.costs.latest  # with less, reconnecting would pay
        conn.mark = conn.since  # it has been silent for no longer
        conn.read_on(True)
        log.info("%s connected, members: %d", conn, len(self.room.members))
        conn.unheard = conn.input.feed(rest)

    def note_input(self, conn: Connection) -> None:
        """Has the loop come back, without an event, to somebody of whom there is more to hear than
        the selector knows; the end counts too, if it came together with what let a member in."""
        has_more = conn.unheard or conn.pending or conn.ended
        if has_more and conn.state in (State.DOOR, State.MEMBER):
            self.has_more.add(conn)
        else:
            self.has_more.discard(conn)

    # Out

    def leave(self, conn: Connection, code: int = NORMAL, how: str = "left") -> None:
        """Somebody is no longer a member, or can't become one. A member still gets what was said
        before; after the delivery its stream ends. The others are told `how` it left."""
        if conn in self.room.members:
            self.room.leave(conn, how)
        conn.code = code
        self.move(conn, State.LEAVING)

    def see_off(self, conn: Connection, batch: Batch) -> None:
        """Hands a leaver the last batch that has something for it. Raises Gone."""
        conn.write(batch)
        farewell = conn.input.farewell(conn.code)
        if farewell:
            conn.tell_now(farewell, is_text=False)
        self.finish(conn)

    def finish(self, conn: Connection, taken: int = 0) -> None:
        """Ends the stream to somebody who has left and has got everything; can be called again.
        What it has `taken` of its queue gives it more time: as much as that takes at PACE.

        Then it waits for the peer to close too: closing with unread input sends a reset, and that
        destroys what is still on its way to the peer (RFC 2525, section 2.17). Once everything has
        got there, it waits only a little longer.
        """
        if conn.state is not State.LEAVING or conn in self.room.batch.leavers:
            return  # its last batch is yet to be delivered
        if conn.reachable and not conn.wants_write():
            conn.end_stream()
        if conn.wants_write():
            most = self.clock.now() + STEP / PACE
            conn.until = conn.deadline = max(conn.deadline, min(most, conn.deadline + taken / PACE))
            return
        if not conn.reading:
            self.move(conn, State.CLOSED)
        elif unacknowledged(conn.sock):
            conn.until = min(conn.deadline, self.clock.now() + SHORT_TICK)
        else:
            conn.until = conn.deadline = min(conn.deadline, self.clock.now() + LINGER)
        self.clock.look_by(conn.until)

    def disconnect(self, conn: Connection, why: str) -> None:
        """Closes a connection that is of no further use, whatever state it is in."""
        if conn in self.room.members:
            self.room.leave(conn)
        if conn.state is not State.LEAVING:  # else the log knows already
            log.info("%s %s, members: %d", conn, why, len(self.room.members))
        if conn.state is not State.CLOSED:
            self.move(conn, State.CLOSED)

    def overdue(self, conns: Iterable[Connection]) -> Iterator[Connection]:
        """Yields those who can't be left alone any longer; has the loop come back for the rest, and
        for these if they are given more time. So all have to be taken."""
        now = self.clock.now()
        for conn in list(conns):
            if conn.state is not State.CLOSED and now >= min(conn.until, self.closes_at):
                yield conn
            self.clock.look_by(min(conn.until, self.closes_at))

    def meet_deadlines(self) -> None:
        """Does what is due for members, and for those who are leaving."""
        for conn in self.overdue(self.leaving):
            if self.clock.now() >= min(conn.deadline, self.closes_at):
                self.move(conn, State.CLOSED)
            else:
                self.guard(self.finish, conn)
        for conn in self.overdue(self.throttle.behind):
            now = self.clock.now()
            conn.until = now + TICK
            if self.throttle.behind[conn].is_too_long(conn, now):
                self.disconnect(conn, "disconnected: too far behind")
        self.throttle.let_speak()


# --- Who is read first ---------------------------------------------------------------------------


class Costs:
    """What each has cost of something of which there wasn't enough for all, in turns: of CPU time,
    or of bytes. Whoever's host has cost least comes first, and within a host, whoever has cost
    least: so a flood gains nothing from many connections. Somebody silent falls at most one turn
    behind the others, and may cost that much before it waits like them."""

    def __init__(self) -> None:
        self.latest = 0.0  # the highest cost at which it was anybody's turn
        self.hosts: dict[str, float] = {}  # those that have more than the least; others have that
        self.latest_host = 0.0

    def of_host(self, conn: Connection) -> float:
        """Returns what a connection's host has cost."""
        return self.hosts.get(conn.host, self.latest_host - 1)

    def of(self, conn: Connection) -> tuple[float, float]:
        """Returns what connections are to be sorted by."""
        return self.of_host(conn), conn.cost

    def lead(self, conn: Connection) -> float:
        """Returns how much less a connection's host has cost than those whose turn it was."""
        return max(0.0, self.latest_host - self.of_host(conn))

    def charge(self, costs: list[tuple[Connection, float]]) -> None:
        """Notes what each of those has cost whose turn it was, in that order."""
        for conn, cost in costs:
            begins = max(conn.cost, self.latest - 1)
            self.latest = max(self.latest, begins)
            conn.cost = begins + cost
            self.note_turn(conn)
            self.charge_host(conn, cost)
        self.forget_silent()

    def note_turn(self, conn: Connection) -> None:
        """It is somebody's turn, as its host has cost least."""
        self.latest_host = max(self.latest_host, self.of_host(conn))

    def charge_host(self, conn: Connection, cost: float) -> None:
        """Notes what a connection's host has cost, whether it was its turn or not."""
        self.hosts[conn.host] = max(self.of_host(conn), self.latest_host - 1) + cost

    def forget_silent(self) -> None:
        """Drops hosts that have only the least, as they are silent; of many, all not ahead."""
        least = self.latest_host - (len(self.hosts) < MANY_HOSTS)
        self.hosts = {host: cost for host, cost in self.hosts.items() if cost > least}


# --- Who may say how much ------------------------------------------------------------------------

PATIENCE = 5.0  # seconds of PACE that somebody may owe, at least
STEP = 132 * 1024  # bytes that a reader can take before its kernel tells: Linux frees whole buffers
CREDIT = 4.0  # seconds that the room's mark may be ahead for the quiet: see Throttle


class Lag:
    """What somebody who is behind owes: PACE for all that time, less what it has taken since.

    It lasts until that member has caught up entirely: being under HIGH_WATER for a moment earns no
    new patience. A peer's kernel acknowledges in steps, when a good part of its buffer is free
    again: until then, somebody who reads looks stuck. A step can be twice the last, so it may owe
    that much, or twice what it had acknowledged when it fell behind; but few are over 132 KiB.
    """

    __slots__ = ("acknowledged", "latest", "paid", "step")

    def __init__(self, conn: Connection, now: float) -> None:
        self.acknowledged = conn.acknowledged()  # what it took while it wasn't behind earns nothing
        self.paid = now  # it has taken PACE until then, and in advance it can't
        self.step = min(self.acknowledged, STEP)
        self.latest = self.step  # bytes that it had taken then: a step can come in two parts

    def is_too_long(self, conn: Connection, now: float) -> bool:
        """Counts what it has taken since the last look; says whether it owes too much now."""
        taken = conn.acknowledged() - self.acknowledged
        self.acknowledged += taken
        self.paid = min(now, self.paid + taken / PACE)
        if taken:  # part of a step may come late: so one that is smaller counts for half the last
            self.step = min(max(taken + self.latest, self.step // 2), STEP)
        self.latest = taken
        most = max(PATIENCE, min(2 * self.step, 1.25 * STEP) / PACE)
        return now - self.paid > most and (conn.size > HIGH_WATER or not conn.has_read())


class Throttle:
    """How much may each say? All it wants; but while a queue is over HIGH_WATER (the room is then
    `slow`), all together may say only PACE, as much as anybody who stays has to be able to read.

    The room has a mark: the time when somebody who reads at PACE, 8 KiB a second, would have read
    all that was said so far. A line of 64 bytes moves it by 1/128 s, and its connection's by 1/64.
    Whoever's own is ahead of the clock is loud, and remains so while it waits. The loud may speak
    when the room's isn't ahead; the quiet while it is up to 4 s ahead, CREDIT. Hosts take turns, as
    Costs says: whoever's has said least comes first, and by 512 bytes less it has 4 s more.

    500 connections from one host flood, and one from another: soon all are loud. Some 13 times a
    second the room's mark is reached, and one may say 512 bytes; so the two hosts take turns, at 3
    to 4 KiB a second each. The mark is at most 1/12 s ahead, so Ann, at a third, doesn't wait.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.costs = Costs()  # in turns of MIN_READ
        self.behind: dict[Connection, Lag] = {}
        self.slow: Connection | None = None  # is over high_water, so that everyone is slowed
        self.waiting: dict[Connection, float] = {}  # aren't read, and how far ahead their marks are
        self.mark = 0.0  # the room's, in seconds of the clock
        self.high_water = HIGH_WATER  # much more in a room that closes
        self.patient_at = 0.0  # when whoever has waited longest passes for quiet the next time

    def allow(self, conn: Connection, limit: int, said: int) -> int:
        """Returns how much of `limit` a member may say now; if that is nothing, it has to wait.
        `said` is how many bytes have been said in this turn so far. Raises Gone."""
        now = self.clock.now()
        if self.slow:
            self.mark = max(self.mark, now - SHORT_TICK)  # the loop looks only this often
            ahead = self.mark + said / PACE - now
            limit = min(limit, MIN_READ) if ahead <= self.credit(conn, conn.mark - now, now) else 0
        if not conn.has_read():
            self.note_behind(conn)
        elif limit:
            return limit
        if not conn.reachable:  # its end doesn't wait for what it may not say yet
            raise Gone("lost")
        self.waiting[conn] = conn.mark - now
        conn.read_on(False)
        self.clock.look_by(now + SHORT_TICK)
        return 0

    def credit(self, conn: Connection, loudness: float, now: float) -> float:
        """Returns how far the room's mark may be ahead for a member whose own is so far ahead: by
        no more than the time that it has been here, or reconnecting would pay."""
        return min(now - conn.since, CREDIT * ((loudness <= 0) + self.costs.lead(conn)))

    def charge_bytes(self, conn: Connection, size: int) -> None:
        """Notes how many bytes a member has sent, and how many more came of them."""
        if self.slow or size > MIN_READ / 2:
            now, cost = self.clock.now(), size / MIN_READ
            conn.mark = min(max(conn.mark, now - MIN_READ / PACE) + 2 * size / PACE, now + CREDIT)
            self.costs.charge_host(conn, cost if self.slow else min(cost, self.costs.lead(conn)))

    def note_said(self, size: int) -> None:
        """Notes how many bytes were said in a turn, by whomever."""
        self.costs.forget_silent()
        if self.slow:
            self.mark += (size + BATCH_COST) / PACE

    def let_speak(self) -> None:
        """Lets those who wait speak again, once it is their time."""
        if self.waiting:
            now = self.clock.now()
            self.clock.look_by(now + SHORT_TICK if self.slow else math.inf)
            ahead = self.mark - now if self.slow else -math.inf
            # Whoever has yet to read its answers would use up a turn, and the loop would spin.
            may_speak = [conn for conn in self.waiting if ahead <= 2 * CREDIT and conn.has_read()]
            if may_speak and ahead > CREDIT / 2 and now >= self.patient_at:
                self.patient_at = now + TICK
                self.waiting[may_speak[0]] = -math.inf
            may_speak.sort(key=self.waiting.__getitem__)  # of one host, the least loud comes first
            for conn in sorted(may_speak, key=self.costs.of_host):
                if ahead <= self.credit(conn, self.waiting[conn], now):
                    ahead += MIN_READ / PACE
                    self.costs.note_turn(conn)
                    self.let_one_speak(conn)

    def let_one_speak(self, conn: Connection) -> None:
        conn.mark = self.clock.now() + self.waiting.pop(conn)
        conn.read_on(True)

    # Who is behind

    def note_behind(self, conn: Connection) -> None:
        """A member is over HIGH_WATER, or has left too many answers unread."""
        if conn not in self.behind:
            now = self.clock.now()
            self.behind[conn] = Lag(conn, now)
            conn.until = now + TICK
            self.clock.look_by(conn.until)
        if conn.size > self.high_water and not self.slow:
            self.slow = conn
            self.mark = self.clock.now()

    def note_taken(self, conn: Connection) -> None:
        """Somebody who was behind has taken something."""
        if not conn.queue:
            del self.behind[conn]
            conn.until = math.inf
        self.settle()

    def settle(self) -> None:
        """Once nobody is over HIGH_WATER any more, everyone may speak freely."""
        if self.slow and (self.slow not in self.behind or self.slow.size <= self.high_water):
            self.slow = next((conn for conn in self.behind if conn.size > self.high_water), None)
        if self.waiting and not self.slow:
            self.clock.look_by(self.clock.now())

    def forget(self, conn: Connection) -> None:
        """Somebody is no longer a member: it slows nobody down, and is read to its stream's end."""
        if conn in self.waiting:
            self.let_one_speak(conn)
        self.behind.pop(conn, None)
        self.settle()


# === III. The door ===============================================================================
#
# Who gets in, and who has to go; and that nobody passes for anybody else. A newcomer's way is a
# generator, to which parts IV and V add their steps. It knows nothing of what travels on the wire.

DOOR_SIZE = 100  # newcomers at the door at once
DOOR_TIME = 10.0  # seconds for the rest of a handshake, for a browser's request, for the password
HELLO_TIME = 3.0  # seconds for TLS to begin; and until a full door takes one for idle
DOOR_SHARE = 0.003  # seconds of CPU, of a turn: a step of a handshake can be some ms of arithmetic
DOOR_READ = 4 * 1024  # bytes that are read at once
# To make guessing slow, each wrong password costs its host a second, and all together a tenth.
# Whoever is more than TRIES_AHEAD seconds ahead has to wait: a host with three wrong passwords.
WRONG_TIME = 1.0  # seconds until a wrong password is answered; what it costs its host
WRONG_TIME_OF_ALL = 0.1  # seconds
TRIES_AHEAD = 2.0  # seconds
BAN_TIME = 600.0  # seconds for which whoever was removed can't come back
REFUSED, TRY_LATER = 1008, 1013  # why a stream ends, besides NORMAL and GOING_AWAY
SILENCE = 10.0  # seconds after which one that never said a word has no claim to its place


# --- Names ---------------------------------------------------------------------------------------

MAX_NAME = 32  # characters
MAX_PREFIX = 4 * MAX_NAME + 2  # bytes of a name and what stands between it and a message
MAX_NAME_SOURCE = 5 * MAX_NAME  # characters that a name is made from: NFKC joins some, and is slow

# What may stand between the letters of a name, and counts for nothing: spaces, dots, hyphens, any
# apostrophe; in Persian or Mongolian words, say, also joiners, and what selects a letter's form.
PUNCTUATION = "-.'\u2018\u2019\u02bb\u02bc"
JOINERS = "\u17b4\u17b5\u180b-\u180f\u200c\u200d"
BETWEEN = re.compile(rf"[{PUNCTUATION} ]|(?<=[^\0-\x7f])[{JOINERS}]")
# Some letters show nothing, or look like a colon: modifiers of others, parts of a Korean syllable
# that has no beginning, fillers. They don't count as letters here.
NO_LETTERS = "\u02b9-\u02df\u02e5-\u02ff\u0640\u115f-\u11ff\u3164\ua4f8-\ua4ff\ud7b0-\ud7ff\uffa0"
LETTERS = re.compile(rf"([^\W{NO_LETTERS}]+)|([^{PUNCTUATION}{JOINERS}\s\0-\x7f])")
# Of Latin, Greek and Cyrillic letters, of Hebrew ones, of Arabic ones, of Syriac and Japanese ones.
ACCENTS = re.compile(
    "[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0730-\u074a"
    "\u3099\u309a]+"
)
CJK = ("BOPOMOFO", "CJK", "HANGUL", "HIRAGANA", "IDEOGRAPHIC", "KATAKANA")  # how their names begin
NOTICE_WORDS = re.compile(
    # Also "to", as clients show their user's own private messages as "to Ann (private): ".
    r"^to\b|\b(?:an operator|and|is now|is taken|joined|left|more|the room|unnamed|was removed)\b"
    r"|\byou\b"
)


def compatible(text: str) -> str:
    """Returns the beginning of a text, long enough for a name, in its compatible form (NFKC)."""
    form = unicodedata.normalize("NFKC", text[:MAX_NAME])
    if len(form) < MAX_NAME_SOURCE:  # else they are long already: one can become 18, slowly
        form = unicodedata.normalize("NFKC", text[:MAX_NAME_SOURCE])
    return form[:MAX_NAME_SOURCE]


def unaccented(text: str) -> str:
    """Returns a short text in lower case, in its compatible form, without accents."""
    apart = unicodedata.normalize("NFKD", text).casefold()  # of which an iota subscript is a letter
    return unicodedata.normalize("NFC", ACCENTS.sub("", apart))


def alphabet(char: str) -> str:
    """Returns the alphabet of a letter, a digit or a mark: LATIN, GREEK, ...; DIGIT for 0 to 9."""
    name = unicodedata.name(char, "")
    return "CJK" if name.startswith(CJK) else re.sub("EXTENDED |-.*", "", name).partition(" ")[0]


def own_mark(char: str, before: str) -> str:
    """Returns the character if it is a mark of the same alphabet as the letter before it, and that
    alphabet needs marks: any from U+0780 on, such as Dhivehi, Hindi and Thai, except CJK."""
    if not char or before[-1:] < "\u0780" or unicodedata.category(char) not in ("Mc", "Mn"):
        return ""
    return char if alphabet(char) == alphabet(before[-1]) != "CJK" else ""


def letters(text: str) -> str:
    """Returns what counts of a name: letters, digits, `_`, and marks that these need."""
    found = ""
    for some, other in LETTERS.findall(text):
        found += some or own_mark(other, found)
    return found


def identity(name: str) -> str:
    """Returns what all ways to write a name have in common: John, JOHN, or in fullwidth letters."""
    return letters(compatible(compatible(name).casefold()))


def look(name: str) -> str:
    """Returns what a name has in common with all that differ from it in accents alone; letters and
    their marks apart, as they come in a line."""
    return unicodedata.normalize("NFD", letters(unaccented(name)))


def valid_name(text: str) -> str:
    """Returns the name as the room writes it. Raises ValueError: what a name has to be."""
    name = compatible(text).strip()
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"has 1 to {MAX_NAME} characters")
    found = letters(name)
    if found != BETWEEN.sub("", name) or name[0] in f"_{PUNCTUATION}":
        raise ValueError("has letters and digits in it, and after the first also spaces and .-_'")
    if len({alphabet(char) for char in found if char.isalnum()} - {"CJK", "DIGIT"}) > 1:
        raise ValueError("does not mix alphabets, as some of their letters look alike")
    said = NOTICE_WORDS.search(" ".join(re.findall(r"[^\W_]+", name.casefold())))
    if said:
        raise ValueError(f'has nothing in it that only the room says, such as "{said[0]}"')
    return name


# --- Nobody speaks for another -------------------------------------------------------------------

# The pieces of a line: what can be in a name (also letters in a circle), what is odd, other signs.
# Odd is what is beyond ASCII and no letter: it may be invisible, or look like a colon.
MAX_PIECE = 3 * MAX_NAME  # characters: a syllable of Korean can be in three parts
NAME_LIKE = rf"{PUNCTUATION}{JOINERS}\w\u20a8\u2100-\u214f\u249c-\u24e9\u2e80-\u2fdf\u3190-\u33ff"
NAME_LIKE += "\ufdfc\ufe33\ufe34\ufe4d-\ufe4f\uff3f\U0001f100-\U0001f251"
PIECE = re.compile(
    rf"\s*(?:([{NAME_LIKE}\s]{{1,{MAX_PIECE}}})|([^{NAME_LIKE}\0-\x7f][^{NAME_LIKE}!-~]*)|(.))"
)

# What may invisibly begin a line; then an asterisk and a space. And names of signs like asterisks.
START = re.compile(rf"((?:[^\w!-~]+|[{NO_LETTERS}]+)*)(\*(?:[^\w!-~]|[{NO_LETTERS}]))?")
ASTERISK = re.compile("ASTERISK|POINTED .*STAR|STAR OPERATOR|SEXTILE|FLOWER PUNCTUATION")
# What reverses part of a line; a mark does so to digits and signs, or to Hebrew and Arabic letters.
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def begins_like(line: str, looks: Container[str]) -> bool:
    """Says whether a line may seem to begin with a name that has one of these looks, and a colon:
    whether its letters up to a colon, a bracket or something odd are those of the name."""
    found = ""
    # An iota subscript is a letter of its own for casefold().
    for count, piece in enumerate(PIECE.finditer(line.replace("\u0345", "\u03b9"))):
        name_like, odd, sign = piece.groups()
        if not found and name_like and name_like[0] in PUNCTUATION:  # no name begins like that
            return False
        if sign or len(found) > MAX_PIECE:  # more than any has
            return sign in (":", "(") and found in looks
        if odd and found in looks or count > 2 * MAX_PIECE:  # nobody writes like that
            return True
        for some, other in LETTERS.findall(unaccented((name_like or odd)[:MAX_PIECE])):
            if other and found in looks:
                return True
            found = unicodedata.normalize("NFD", found + (some or own_mark(other, found)))
        # A mark at the end of a name comes in one piece with what is behind it.
        if odd and found in looks and not all(one.isspace() or own_mark(one, found) for one in odd):
            return True
    return False


def begins_like_notice(line: str) -> bool:
    """Says whether a line may seem to begin with an asterisk and a space."""
    start = START.match(line)
    assert start
    likely = set(start[1][:-1])
    return bool(start[2]) or any(ASTERISK.search(unicodedata.name(one, "")) for one in likely)


def check_voice(room: Room, member: Member, line: str) -> str:
    """Returns the line; if its speaker has no name, without what reverses part of it. Raises
    ValueError, which says why, if the line would make them look like somebody else, or the room."""
    if member.name:
        return line
    line = line if line.isascii() else TURNING.sub("", line)
    if begins_like_notice(line):
        # It is told once, because another room may be at the other end of this connection: each
        # would answer the other's answer with its own, for ever.
        was_told, member.warned = member.warned, True
        only = "only the room begins a line with an asterisk and a space; say it differently"
        raise ValueError("" if was_told else only)
    may_begin_so = room.names and (":" in line or not line.isascii())
    if may_begin_so and begins_like(line, room.looks):
        raise ValueError("not said, as it begins like what somebody here says; say it differently")
    shown = "".join(filter(str.isprintable, compatible(line)))
    # As if somebody had said it who has left. What is no ASCII may look like a colon.
    if re.match(r"[^:]* \(private\) ?(?::|[^\w\0-\x7f])", shown):
        raise ValueError("not said, as it would pass for a private message")
    return line


# --- Newcomers -----------------------------------------------------------------------------------


def address_in(peer: str) -> str:
    """Returns the address in what format_address() writes, without brackets and port."""
    return peer.rpartition(":")[0].strip("[]")


def host_of(peer: str) -> str:
    """Returns what stands for a peer's host, given its address as format_address() writes it: an
    IPv4 address as it is; for IPv6, in hexadecimal, the 64-bit network, as a host can choose the
    rest freely, or the whole of a link-local address, as everybody is in that network. This machine
    is the same host by IPv4 and IPv6, as is an IPv4 address that is written as an IPv6 one."""
    host = address_in(peer)
    if ":" not in host:
        return host
    if host == "::1":
        return "127.0.0.1"
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return address.packed.hex() if address.is_link_local else address.packed[:8].hex()


def loser_to(host: str, there: Iterable[Connection], now: float) -> Connection | None:
    """Returns who in a full place has to make room for a newcomer from `host`: the newest from the
    host that has most, if that has at least two more than `host`; else the oldest that has been
    there for long without a word: in the room, only of those from `host`. None if nobody has to."""
    hosts = Counter(conn.host for conn in there)
    most = max(hosts, key=hosts.__getitem__)
    if hosts[most] - hosts[host] >= 2:
        return max((conn for conn in there if conn.host == most), key=lambda conn: conn.since)

    def is_idle(conn: Connection) -> bool:
        if conn.state is State.DOOR:
            return now - conn.since >= HELLO_TIME
        return conn.host == host and conn.silent and now - conn.since >= SILENCE

    return min(filter(is_idle, there), key=lambda conn: conn.since, default=None)


def typed(line: bytes) -> bytes:
    """Returns a line without its end and what was taken back. It need not be UTF-8."""
    text = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    return take_back(text).encode("utf-8", "surrogateescape")


class Dismissed(Gone):
    """Somebody isn't let in, or can't stay. The text tells them why, and is empty if they have got
    what they came for. The code is for their program, and the note for the log."""

    def __init__(self, why: str = "", code: int = NORMAL, note: str = "") -> None:
        super().__init__(why)
        self.code = code
        self.note = note

    def see_to(self, membership: Membership, conn: Connection) -> None:
        """Tells it why, and ends its stream. A member still gets what was said before."""
        if not conn.ready:
            membership.disconnect(conn, "could not be told why")
            return
        room = membership.room
        is_new = conn.state is State.DOOR
        if is_new:  # it gets this of the turn, and nothing else
            conn.read_on(True)
            room.batch.begin(conn, ())
        room.tell(conn, str(self))
        if is_new:
            room.batch.end(conn)
        membership.leave(conn, self.code)
        if self.note:
            log.info("%s %s, members: %d", conn, self.note, len(room.members))


class TimeIsUp(Gone):
    """A newcomer's `until` is over: it was silent, had to wait, or is kept out by now."""


# The steps a newcomer goes through. The generator yields whether it is waiting for input, and goes
# on when some may have come; at conn.until, TimeIsUp is raised in it. It returns surplus input.
Steps = Generator[bool, None, bytes]


class Door:
    """Where newcomers do what has to be done before they can speak, and in a closed room give the
    password: each one's way is a generator, kept among the newcomers of the membership."""

    def __init__(
        self,
        membership: Membership,
        size: int,
        connect: Callable[[socket.socket, str], Connection],
        prepare: Callable[[Door, Connection], Steps],
        password: bytes = b"",
    ) -> None:
        """There can be `size` members. `connect` makes a connection of a socket and its peer's
        address; `prepare` is what comes before the password."""
        self.membership = membership
        self.size = size
        self.connect = connect
        self.prepare = prepare
        self.password = password  # none if empty
        self.clock = membership.clock
        # Times of the clock, which may be past.
        self.barred: dict[str, float] = {}  # until when: a host, an address, or "name " and a name
        self.tried: dict[str, float] = {}  # when the wrong passwords from a host are paid for
        self.all_tried = 0.0  # and when those of all are
        self.acceptor: Acceptor  # which calls admit()

    # What the server asks for

    def open(self) -> None:
        """Accepts newcomers from now on."""
        self.acceptor.listen()

    def close(self) -> None:
        """Accepts nobody any more."""
        self.acceptor.close()

    def serve(self, knocking: list[Connection]) -> None:
        """Goes on with those who are ready at the door, for as long as the door may take of a turn;
        at random, so that nobody who keeps knocking is always served before the others."""
        random.shuffle(knocking)
        began = time.process_time()
        for conn in knocking:
            if conn.state is State.DOOR and conn.reading:  # it may have had to make room
                self.membership.guard(self.go_on, conn)
            if time.process_time() - began > DOOR_SHARE:
                break

    def meet_deadlines(self) -> None:
        """Does what is due for newcomers, and accepts them where that had failed."""
        for conn in self.membership.overdue(self.membership.newcomers):
            self.membership.guard(self.go_on, conn, True)
        self.acceptor.listen()

    # Places

    def admit(self, sock: socket.socket, peer: str) -> None:
        """Lets a newcomer to the door, and in if there is nothing to do there. It is
        turned away silently if all places are taken and no leaver gives one up. Raises OSError."""
        there = self.membership
        if len(there.room.members) + len(there.leaving) >= self.size + DOOR_SIZE:
            host, now = host_of(peer), self.clock.now()
            loser = loser_to(host, there.leaving, now) if there.leaving else None
            if not loser:
                sock.close()
                return
            there.move(loser, State.CLOSED)
        there.guard(self.arrive, self.connect(sock, peer))

    def arrive(self, conn: Connection) -> None:
        """Begins a newcomer's way. Raises Gone."""
        conn.since = self.clock.now()
        self.membership.newcomers[conn] = self.visit(conn)
        self.go_on(conn)

    def make_room(self, there: Collection[Connection], size: int, conn: Connection) -> None:
        """Finds a newcomer one of `size` places, perhaps by taking somebody else's.
        Raises Dismissed if there is none."""
        if len(there) < size:
            return
        loser = loser_to(conn.host, there, self.clock.now())
        if not loser:
            note = f"turned away: all {size} places are taken"
            raise Dismissed("the room is full", TRY_LATER, note)
        if loser.state is State.DOOR:
            self.membership.disconnect(loser, "had to make room at the door")
            return
        why, note = "the room is full, and your place goes to somebody else", "had to make room"
        Dismissed(why, TRY_LATER, note).see_to(self.membership, loser)

    # The way of a newcomer

    def go_on(self, conn: Connection, is_late: bool = False) -> None:
        """Takes a newcomer's next step, or tells its generator that time is up; after the last step
        it comes in, if there is a place. Raises Gone."""
        membership = self.membership
        steps: Steps = membership.newcomers[conn]
        try:
            conn.read_on(steps.throw(TimeIsUp("was not let in")) if is_late else next(steps))
            self.clock.look_by(conn.until)
        except StopIteration as last:
            self.make_room(membership.room.members, self.size, conn)
            membership.enter(conn, last.value)
        finally:
            membership.note_input(conn)

    def visit(self, conn: Connection) -> Steps:
        """All of it, from top to bottom."""
        yield from self.prepare(self, conn)
        self.check_host(conn)
        if not self.password:
            return b""
        self.allow_time(conn, DOOR_TIME)
        try:
            rest = yield from self.take_password(conn)
        except TimeIsUp:
            self.check_host(conn)  # it may have been barred meanwhile
            raise
        self.check_host(conn)
        return rest

    def allow_time(self, conn: Connection, seconds: float) -> None:
        """A newcomer can't be here for longer than that, from now on. As it has to wait, it needs a
        place at the door. Raises Dismissed."""
        if conn.deadline == math.inf:
            others = self.membership.newcomers.keys() - {conn}
            self.make_room(others, DOOR_SIZE, conn)
        conn.until = conn.deadline = self.clock.now() + seconds

    @staticmethod
    def hear(conn: Connection, receive: Callable[[int], bytes]) -> Steps:
        """Waits for something to come, and returns it; nothing if what comes isn't heard any more.
        Raises Gone."""
        while True:
            yield True
            data = receive(DOOR_READ)
            if data or conn.input.ended:
                return data
            if conn.ended:
                raise Gone(conn.why or "left the door")

    def take_password(self, conn: Connection) -> Steps:
        """Asks for the password, and returns what came after it."""
        conn.tell_now(notice("password?"))
        given = rest = b""
        while not given:
            first, newline, rest = (yield from self.hear(conn, conn.receive)).partition(b"\n")
            if not newline and conn.input.ended:
                raise Dismissed
            given = conn.input.feed(first + newline)
        while not self.may_try(conn.host):
            conn.until = min(conn.deadline, self.clock.now() + TICK)
            with suppress(TimeIsUp):
                yield False
            if self.clock.now() >= conn.deadline:
                raise Gone("was not let in")
        if hmac.compare_digest(typed(given), self.password):
            return rest
        log.info("%s gave a wrong password", conn)
        self.note_wrong(conn.host)
        self.allow_time(conn, WRONG_TIME)
        with suppress(TimeIsUp):
            yield False
        raise Dismissed("wrong password", REFUSED)

    # Hosts

    def may_try(self, host: str) -> bool:
        """Says whether a password from this host may be looked at now."""
        ahead = max(self.tried.get(host, 0.0), self.all_tried) - self.clock.now()
        return ahead <= TRIES_AHEAD

    def note_wrong(self, host: str) -> None:
        """A password from this host was wrong."""
        now = self.clock.now()
        self.tried = {one: paid for one, paid in self.tried.items() if paid > now}
        self.tried[host] = self.tried.get(host, now) + WRONG_TIME
        self.all_tried = max(self.all_tried, now) + WRONG_TIME_OF_ALL

    def bar(self, place: str) -> None:
        """Keeps out a host, an address, or a name, for BAN_TIME: also whoever is at the door."""
        now = self.clock.now()
        self.barred = {one: until for one, until in self.barred.items() if until > now}
        self.barred[place] = now + BAN_TIME
        for conn in self.membership.newcomers:
            if place in (conn.host, address_in(conn.peer)):
                conn.until = now
        self.clock.look_by(now)

    def check_host(self, conn: Connection) -> None:
        """Raises Dismissed if nobody can come in from where it comes from."""
        places = (conn.host, address_in(conn.peer))
        left = max(self.barred.get(place, 0.0) for place in places) - self.clock.now()
        if left > 0:
            log.info("%s comes from a host that is kept out", conn)
            who = "you, or somebody at your address, was removed"
            raise Dismissed(f"{who}; come back in {math.ceil(left / 60)} min", REFUSED)


# --- Operators -----------------------------------------------------------------------------------

# A line that may be a mistyped /op with an operator's password after it: the /op follows a space or
# a speaker's name, or is in capitals.
MISTYPED_OP = re.compile(r"(?:[^:]*:)? */ ?op(?!\w)", re.IGNORECASE)


class Operators:
    """Members who gave a second password, and may remove others.

    What they say are commands of the room. A wrong password counts as a wrong try at the door, and
    one that comes too early isn't looked at. The answer comes at once: if it had to wait, so would
    all that its sender says next, and the end of the sender's stream.
    """

    def __init__(self, door: Door, password: bytes) -> None:
        self.door = door
        self.room = room = door.membership.room
        self.password = password  # as it is heard in a line
        room.checks.append(self.check_password)
        room.suspects += [b"/", "\uff0f".encode()]
        room.commands.update({"/op": self.become_operator, "/kick": self.kick})
        room.help_lines += notice("/op PASSWORD: be an operator; they can /kick NAME")
        room.is_reserved = self.is_barred

    def is_barred(self, name: str) -> bool:
        """Says whether a name, by its identity(), is one that nobody can take because its owner
        was removed."""
        return self.door.barred.get(f"name {name}", 0.0) > self.door.clock.now()

    def check_password(self, member: Member, line: str) -> str:
        """Returns the line. Raises ValueError if it may have an operator's password in it."""
        if "/" in line or "\uff0f" in line:  # of either width
            shown = "".join(filter(str.isprintable, compatible(line)))
            if MISTYPED_OP.match(shown):
                raise ValueError("not said, as it may have a password in it: begin it with /op")
        return line

    # Commands: each takes the member and what follows the command's word

    def become_operator(self, member: Member, given: str) -> None:
        conn = cast("Connection", member)
        if not given:
            self.room.tell(conn, "the password goes with it, as in /op PASSWORD")
            return
        if not self.door.may_try(conn.host):
            self.room.tell(conn, "too many wrong passwords; wait a moment, and try again")
        elif not hmac.compare_digest(given.encode(), self.password):
            log.info("%s gave a wrong password for operators", conn)
            self.door.note_wrong(conn.host)
            self.room.tell(conn, "wrong password")
        else:
            log.info("%s became an operator", conn)
            conn.is_operator = True
            self.room.tell(conn, "you are an operator")

    def kick(self, member: Member, argument: str) -> None:
        """Removes somebody: NAME, or whoever has none and is at ADDRESS:PORT."""
        if not member.is_operator:
            self.room.tell(member, "only operators can do that; /op PASSWORD makes you one")
            return
        unnamed = {conn.peer: conn for conn in self.room.members if not conn.name}
        place, name = (argument, "") if ":" in argument else ("", identity(argument))
        target = unnamed.get(place) or self.room.names.get(name)
        if not argument:
            which = ", ".join(sorted(unnamed)[:MAX_WHO]) or "nobody"
            self.room.tell(member, f"/kick NAME removes somebody; these have no name: {which}")
        elif target is None:
            self.room.tell(member, "nobody here has that name; see /who, or /kick for the unnamed")
        elif target is member:
            self.room.tell(member, "to leave, say /quit")
        else:
            self.remove(cast("Connection", target), cast("Connection", member))

    def remove(self, conn: Connection, by: Connection) -> None:
        """Removes somebody, who gets all that was said before. Its name and its host are kept out;
        of this machine's own network, in which everybody may be, the address alone; of the machine
        itself, from which all come who come through a proxy, only the name."""
        here = ""
        with suppress(OSError):  # macOS knows no address of one that was reset
            here = format_address(conn.sock.getsockname())
        place = conn.host if conn.host != host_of(here) else address_in(conn.peer)
        minutes = math.ceil(BAN_TIME / 60)
        self.room.tell(conn, f"you were removed by an operator; come back in {minutes} min")
        self.door.membership.leave(conn, REFUSED, "was removed")
        if conn.name:
            self.door.bar(f"name {identity(conn.name)}")
        else:
            self.room.tell(by, f"{conn.peer} was removed")
        log.info("%s was removed by %s, members: %d", conn, by, len(self.room.members))
        if address_in(here) != place != "127.0.0.1":
            self.door.bar(place)


# === IV. Other ways to speak =====================================================================
#
# What can be around a text, and how it travels. Telnet and WebSocket are bytes in, bytes out; TLS
# is a connection of its own kind. Nothing here knows of the room.

# --- Telnet, and what comes to the wrong port ----------------------------------------------------

# How TLS begins, in any of its versions (RFC 8446, section 5.1), and no line of text does.
TLS_HANDSHAKE = tuple(b"\x16\x03%c" % version for version in range(5))

# The first line of an HTTP request (RFC 9112, section 3): a method; "/path", "*", a URL, or a host
# with its port; a version. "PUT / there" is text. The path may go on to the end of what there is.
HTTP_REQUEST = re.compile(
    rb"[A-Za-z-]{1,20} (?=[/*]|[^ \n:]*:[^ \n])[^ \n]+(?:( HTTP/)|(?: H?T?T?P?)?\Z)"
)
# What else comes to any open port, and nobody types: HTTP/0.9, RTSP, SIP, SSH, SMTP, Redis, IRC.
# Where one line could be somebody's, such as "PASS the salt", it takes the next one, too.
OTHER_PROTOCOL = re.compile(
    rb"GET /[^ \n]*\n|OPTIONS [^ \n]+ (?:RTSP|SIP)/\d\.\d\n|SSH-\d\.\d+-|EHLO [^ \n]+\n"
    rb"|\*\d+\n\$\d+\n|CAP LS[ \n]|(?:PASS|NICK) .+\n(?:NICK|USER) "
)

# Telnet's commands (RFC 854, RFC 1184): each begins with IAC, a byte 0xFF. A request has an option
# behind it; a subnegotiation goes on to IAC SE, with IAC IAC for a byte 0xFF in it.
SUBNEGOTIATION = rb"\xfa[^\xff]*(?:\xff\xff[^\xff]*)*"
TELNET = re.compile(
    rb"(\xff(?:[\xec-\xf9\xff]|[\xfb-\xfe](?:.|\Z)|\Z|%b(?:\xff\xf0|\xff?\Z)?))" % SUBNEGOTIATION,
    re.DOTALL,
)
UNFINISHED = re.compile(rb"\xff(?:[\xfb-\xfe]|%b(\xff?))?" % SUBNEGOTIATION, re.DOTALL)
REFUSALS = {b"\xff\xfd": b"\xff\xfc", b"\xff\xfb": b"\xff\xfe"}  # DO: WONT, WILL: DONT
# What commands stand for in a text: a byte 0xFF, "erase character", "erase line". Others: nothing.
TELNET_TEXT = {b"\xff\xff": b"\xff", b"\xff\xf7": b"\b", b"\xff\xf8": b"\x15"}


class Telnet(Lines):
    """What a peer sends, from its first byte on: lines, and what can be around them.

    Besides an unfinished line it holds at most four bytes.
    """

    __slots__ = ("elsewhere", "held", "in_first_line")

    def __init__(self, max_line: int, elsewhere: str = "") -> None:
        """`elsewhere` is what whoever speaks another protocol is told."""
        super().__init__(max_line)
        self.elsewhere = elsewhere
        self.held = b""  # the beginning of something that may turn out not to be text
        self.in_first_line = True

    def sift(self, data: bytes) -> tuple[bytes, bytes]:
        """As with any Lines; answers are telnet's."""
        data, self.held = self.held + data, b""
        if self.in_first_line and not self.partial:
            data = self.begin(data)
        answers = b""
        if b"\xff" in data or b"\r" in data:
            data, answers = self.take_out_telnet(data)
        if self.in_first_line:
            self.check_first_line(self.partial + data)
        return data, answers

    def begin(self, data: bytes) -> bytes:
        """Returns the first bytes without a byte order mark, as Windows puts one before texts."""
        if data.startswith(TLS_HANDSHAKE):
            raise Gone("speaks TLS to a room that doesn't")
        if any(start.startswith(data) for start in (BOM_UTF8, *TLS_HANDSHAKE)):
            self.held = data
            return b""
        return data[len(BOM_UTF8) :] if data.startswith(BOM_UTF8) else data

    def check_first_line(self, data: bytes) -> None:
        """Raises Dismissed if this is no text. HTTP above all: any web page can have a browser send
        a request, with lines of its choice for a body, and a path that is longer than a line."""
        start = data[: self.max_line + 1]
        self.in_first_line = b"\n" not in start and len(start) <= self.max_line
        request = HTTP_REQUEST.match(start)
        is_request = request and (request[1] or not self.in_first_line)
        if is_request or OTHER_PROTOCOL.match(start):
            note = "is a web browser, or something else that speaks HTTP, SSH, IRC or the like"
            raise Dismissed(self.elsewhere, note=note)

    def take_out_telnet(self, data: bytes) -> tuple[bytes, bytes]:
        """Returns the text, and answers that refuse all that telnet asks for (RFC 854).

        A refusal is never answered, so two that refuse don't go on for ever; and the same request
        is answered once, so that many don't become a flood of answers.
        """
        pieces = TELNET.split(data)  # text, command, text, command, ..., text
        commands = pieces[1::2]
        if commands and not pieces[-1]:
            unfinished = UNFINISHED.fullmatch(commands[-1])
            if unfinished:  # of a subnegotiation that is its first two bytes, however long it is
                self.held = commands[-1][:2] + (unfinished[1] or b"")
        pieces[1::2] = [TELNET_TEXT.get(command, b"") for command in commands]
        text = b"".join(pieces)
        if text.endswith(b"\r"):
            text, self.held = text[:-1], b"\r" + self.held
        requests = [one for one in dict.fromkeys(commands) if one[:2] in REFUSALS and one[2:]]
        answers = [REFUSALS[one[:2]] + one[2:] for one in requests]
        return text.replace(b"\r\n", b"\n").replace(b"\r\0", b"\n"), b"".join(answers)


# --- WebSocket -----------------------------------------------------------------------------------

FIN = 0x80  # in the first byte of a frame that is its message's last (RFC 6455, section 5.2)
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def frame(opcode: int, payload: bytes) -> bytes:
    """Returns a whole message, or a control frame, as a server sends it."""
    size = len(payload)
    if size < 126:
        return bytes((FIN | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((FIN | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((FIN | opcode, 127)) + size.to_bytes(8, "big") + payload


def unmask(data: bytes, mask: bytes) -> bytes:
    """Returns the payload that was masked (RFC 6455, section 5.3). One large number is a hundred
    times as fast as to look at each byte."""
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    number = int.from_bytes(data, "little") ^ int.from_bytes(key, "little")
    return number.to_bytes(len(data), "little")


class WebSocket(Lines):
    """The lines that a browser sends, out of the frames in which they travel (RFC 6455).

    A payload goes on as it comes, each message with an LF at its end, so that besides an unfinished
    line this holds at most one control frame and a few bytes. A peer that closes, or is at fault,
    is Dismissed, with the code that answers it (section 7.4.1) and a note about the fault.
    """

    __slots__ = ("code", "ended", "held", "in_message", "left", "mask", "opcode", "tail", "why")
    max_read = 64 * 1024  # frames without text are the most expensive bytes
    encode = staticmethod(partial(frame, TEXT))

    def __init__(self, max_line: int) -> None:
        super().__init__(max_line)
        self.ended = False
        self.why = ""
        self.code = 0  # the answer to the peer's Close, or to its fault
        self.held = b""  # the beginning of a header, or of a control frame
        self.opcode = CONTINUATION  # of the latest frame
        self.left = 0  # bytes of its payload that have yet to come
        self.mask = b""  # for these
        self.in_message = False  # the latest frame with text isn't its message's last
        self.tail = b""  # the beginning of a character, or of CR LF

    def sift(self, data: bytes) -> tuple[bytes, bytes]:
        """As with any Lines; the answer is one to the last ping."""
        if self.ended:
            return b"", b""
        pieces, pong = [self.tail], b""
        try:
            for opcode, payload in self.frames(self.held + data):
                if opcode == PING:
                    pong = frame(PONG, payload)
                elif opcode == CLOSE:
                    raise Dismissed(code=closing_code(payload))
                elif opcode != PONG:
                    pieces.append(payload)
        except Dismissed as end:
            self.end(end.code, end.note)
        text = b"".join(pieces)
        # No character goes on after the LF of its message, so that looking at many at once is fine.
        try:
            whole = utf_8_decode(text, "strict", False)[1]
            whole -= text.endswith(b"\r")
            self.tail = text[whole:]
        except UnicodeDecodeError as error:
            whole = error.start
            self.end(1007, "sends text that is not UTF-8")
        return text[:whole].replace(b"\r\n", b"\n"), pong

    def farewell(self, code: int) -> bytes:
        """Returns the frame that ends it; if the peer was first, the answer to that."""
        return frame(CLOSE, (self.code or code).to_bytes(2, "big"))

    def frames(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yields the opcodes and payloads of frames: of text as much as has come, and then LF where
        a message ends. Raises Dismissed."""
        at, self.held = 0, b""
        while at < len(data):
            if not self.left:
                start = self.begin_frame(data, at)
                if not start:
                    self.held = data[at:]
                    return
                at = start
            payload = unmask(data[at : at + self.left], self.mask)
            at += len(payload)
            self.left -= len(payload)
            yield self.opcode, payload
            if self.left:
                used = len(payload) % 4
                self.mask = self.mask[used:] + self.mask[:used]
            elif self.opcode < CLOSE and not (self.in_message or payload.endswith(b"\n")):
                yield self.opcode, b"\n"

    def begin_frame(self, data: bytes, at: int) -> int:
        """Reads the header at this place; returns where its payload begins, or 0 if the header,
        or a control frame, isn't whole yet. Raises Dismissed."""
        if len(data) < at + 2:
            return 0
        first, second = data[at], data[at + 1]
        self.check_header(first, second)
        start, size = at + 2, second & 0x7F
        if size > 125:  # 126 or 127: the real one follows, in 2 or 8 bytes
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : start], "big")
        if size >> 63:
            raise Dismissed(code=1002, note="sends a frame that is longer than any can be")
        start += 4  # the mask
        opcode = first & 0x0F
        if len(data) < start + (size if opcode >= CLOSE else 0):
            return 0
        if opcode < CLOSE:
            self.in_message = not first & FIN
        self.opcode = opcode
        self.left = size
        self.mask = data[start - 4 : start]
        return start

    def check_header(self, first: int, second: int) -> None:
        """Raises Dismissed if a frame can't begin with these two bytes."""
        opcode = first & 0x0F
        if first & 0x70 or opcode & 0x7 > BINARY:  # bits, and opcodes, for extensions
            raise Dismissed(code=1002, note="uses an extension that was not agreed on")
        if not second & 0x80:
            raise Dismissed(code=1002, note="sends a frame without a mask")
        if opcode >= CLOSE and not (first & FIN and second & 0x7F <= 125):
            raise Dismissed(code=1002, note="sends a control frame in fragments, or too long a one")
        if opcode == BINARY:
            raise Dismissed(code=1003, note="sends binary frames")
        if opcode < CLOSE and (opcode == CONTINUATION) != self.in_message:
            raise Dismissed(code=1002, note="begins a message in another, or goes on with none")

    def end(self, code: int, why: str) -> None:
        """What comes from here on isn't heard any more."""
        self.ended = True
        self.code = code
        self.why = why


def closing_code(payload: bytes) -> int:
    """Returns the code of a peer's Close, which is the answer, too. Raises Dismissed."""
    code = int.from_bytes(payload[:2], "big") if payload else NORMAL
    if not (1000 <= code < 1004 or 1007 <= code < 1015 or 3000 <= code < 5000):
        raise Dismissed(code=1002, note="gives a close code that does not exist")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise Dismissed(code=1007, note="gives a reason that is not UTF-8") from None
    return code


# --- TLS -----------------------------------------------------------------------------------------

TLS_RECORD = 16 * 1024  # bytes of text in a record at most
TLS_PIECE = 8 * 1024  # bytes that are encrypted at once: what isn't sent of them has to be kept
# Bytes that are received at once: what has no text in it, such as orders to change keys, takes as
# much time as a hundred times as many bytes of text.
TLS_READ = 8 * 1024
MAX_UNSENT = 16 * 1024  # bytes that may wait encrypted: a piece, and what TLS itself has to say


def make_server_tls(cert: str, key: str) -> ssl.SSLContext:
    """Returns what connections need to speak TLS as a server. Raises Failure."""
    if ssl is None:
        raise lacking("ssl", "TLS")

    def ask_for_pass_phrase() -> str:  # instead of OpenSSL, which would ask on the terminal
        remedy = f"make a copy without it: openssl pkey -in {key} -out NEW.key"
        raise Failure(f"the key in {key} has a pass phrase; {remedy}")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # No tickets, neither those of TLS 1.3 nor those of 1.2: whoever learns the key that they are
    # made with can read what others said before. Sessions of 1.2 are still kept in memory, 20,000
    # of them for two hours at most; Python has no switch for that.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    # One curve, which every client has, and none of the groups of numbers (ffdhe8192) with which a
    # client can have a server compute for 100 ms, and needn't compute itself (CVE-2002-20001).
    context.set_ecdh_curve("prime256v1")
    # No renegotiation, so that sending never waits for receiving. PyPy and LibreSSL lack the name.
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)
    try:
        context.load_cert_chain(cert, key, password=ask_for_pass_phrase)
    except OSError as error:  # ssl.SSLError is one too
        raise Failure(why_not_usable(error, cert, key)) from error
    return context


def why_not_usable(error: OSError, cert: str, key: str) -> str:
    """Returns what to tell the user when the certificate and the key couldn't be loaded."""
    for option, file, what in (("cert", cert, "certificate"), ("key", key, "private key")):
        try:
            with open(file, "rb") as pem:
                text = pem.read()
        except OSError as problem:
            return f"cannot read --tls-{option} {file}: {problem.strerror}"
        if f"{what.upper()}-----".encode() not in text:
            return f"there is no {what} in PEM format in {file}"
    reason = getattr(error, "reason", None)
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return f"the key in {key} does not belong to the first certificate in {cert}"
    if reason:
        return f"cannot use {cert} with {key}: {reason.lower().replace('_', ' ')}"
    try:
        ssl.create_default_context(cafile=cert)
    except ssl.SSLError:
        return f"the certificate in {cert} is damaged"
    return f"the private key in {key} is damaged"


class Certificate:
    """The room's certificate and its key, as a context of TLS.

    After their files have changed they are loaded anew, for whoever comes from then on. While they
    can't be loaded, as when one of them has yet to be replaced, the old ones stay.
    """

    def __init__(self, cert: str, key: str) -> None:
        """Raises Failure."""
        self.cert = cert
        self.key = key
        self.loaded = self.look()  # before they are loaded: what changes meanwhile is seen later
        self.context = make_server_tls(cert, key)
        self.why_old = ""  # why newer ones couldn't be loaded, as it was logged last

    def look(self) -> list[tuple[int, ...]] | None:
        """Returns what is different after the files have changed; None if one isn't a plain
        file but, say, a pipe: that can be read only once, and makes its reader wait."""
        found: list[tuple[int, ...]] = []
        for path in (self.cert, self.key):
            state: tuple[int, ...] = ()  # it has vanished
            with suppress(OSError):
                file = os.stat(path)
                if not stat.S_ISREG(file.st_mode):
                    return None
                state = (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)
            found.append(state)
        return found

    def current(self) -> ssl.SSLContext:
        """Returns the context for a newcomer. If the files can't be loaded, logs why, once."""
        found = self.look()
        if found is None or found == self.loaded:
            return self.context
        try:
            self.context, self.loaded = make_server_tls(self.cert, self.key), found
            self.why_old = ""
            log.info("newcomers get the new certificate in %s", self.cert)
        except Failure as failure:
            if str(failure) != self.why_old:
                self.why_old = str(failure)
                log.warning("the old certificate stays in use: %s", failure)
        return self.context


class TLSConnection(Connection):
    """A connection whose text goes through TLS, as soon as both sides have shaken hands.

    OpenSSL takes what came from one BIO, and puts what is to be sent into another. A BIO keeps the
    memory that it once needed, so all connections share these two. They are empty after each step:
    what came is decrypted to its end, and what is to be sent goes to the kernel, or to `unsent`.

    OpenSSL keeps what came of an unfinished record, in 17 KB: that is the most that a slow line can
    cost here, besides what it costs anywhere.
    """

    __slots__ = ("pending", "ready", "tls", "unsent")
    incoming: Any = ssl and ssl.MemoryBIO()
    outgoing: Any = ssl and ssl.MemoryBIO()

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        host: str,
        selector: BaseSelector,
        lines: Lines,
        context: ssl.SSLContext,
    ) -> None:
        self.tls: ssl.SSLObject | None = context.wrap_bio(self.incoming, self.outgoing, True)
        self.ready = False  # it is known what the peer speaks; if that is TLS, hands are shaken
        self.pending = b""  # text that came in one piece with the handshake
        self.unsent = b""  # encrypted, but not taken by the kernel: it comes before the queue
        super().__init__(sock, peer, host, selector, lines)

    # From the peer

    def receive_text(self, limit: int) -> bytes:
        """Returns what was sent, decrypted: that can be a record more than `limit`."""
        if self.pending:
            text, self.pending = self.pending, b""
            return text
        data = self.receive_bytes(min(limit, TLS_READ))
        return self.decrypt(data) if data and self.tls else data

    def decrypt(self, data: bytes) -> bytes:
        """Continues the handshake with what came; once it is done, returns the text. If TLS fails
        after that, the stream has ended: what was said before is heard, except an unfinished line.
        Raises Gone."""
        assert self.tls
        pieces: list[bytes] = []
        self.incoming.write(data)
        try:
            if not self.ready:
                self.tls.do_handshake()
                self.ready = True
            while self.incoming.pending and not self.ended:
                pieces.append(self.tls.read(TLS_RECORD))
                self.ended = not pieces[-1]  # close_notify; the end of TCP's stream is yet to come
        except ssl.SSLWantReadError:  # the rest of a record has yet to come, or another
            pass
        except ssl.SSLError as error:
            # PyPy leaves it for the next connection to be blamed for, unless there is a new engine.
            self.tls.context.wrap_bio(self.incoming, self.outgoing, True)
            self.push(self.outgoing.read())  # an alert, which tells the peer why
            if not self.ready:
                raise broken(error) from error
            self.ended = True
            self.why = str(broken(error))
            self.stop_sending()
        finally:
            self.incoming.read()
            self.push(self.outgoing.read())
        return b"".join(pieces)

    # To the peer

    def push(self, data: bytes) -> None:
        """Sends what is encrypted; what the kernel doesn't take has to wait. Raises Gone."""
        sent = super().send(data) if data and self.reachable and not self.unsent else 0
        if sent < len(data) and self.reachable:
            self.unsent += data[sent:]
            if len(self.unsent) > MAX_UNSENT:
                raise Gone("makes TLS answer, and does not read the answers")
            self.watch()

    def flush(self) -> None:
        waiting, self.unsent = self.unsent, b""
        self.push(waiting)
        super().flush()

    def send(self, data: bytes | memoryview) -> int:
        """Returns how many bytes were taken, 0 if none can be now.

        Nothing is encrypted before the kernel has taken all that was: so at most a piece waits
        outside of the queue.
        """
        if not self.tls:
            return super().send(data)
        taken = 0
        while taken < len(data) and not self.unsent and self.reachable:
            try:
                taken += self.tls.write(data[taken : taken + TLS_PIECE])
            except ssl.SSLError as error:
                raise broken(error) from error
            finally:
                self.push(self.outgoing.read())
        return taken if self.reachable else 0

    def wants_write(self) -> bool:
        return bool(self.unsent or self.queue)

    def end_stream(self) -> None:
        """Tells the peer that nothing more will come, TLS's way first, by close_notify: if that has
        to wait, this has to be called again. What the peer sends can then only be drained."""
        if self.tls:
            with suppress(ssl.SSLError):  # it would wait for the peer's
                self.tls.unwrap()
            self.push(self.outgoing.read())
        if not self.unsent:
            super().end_stream()

    def drop_queue(self) -> None:
        super().drop_queue()
        self.unsent = b""


def shake_hands(door: Door, conn: TLSConnection) -> Steps:
    """Shakes hands with a newcomer. One that doesn't begin one speaks no TLS: then this
    is a connection like any other. Returns the plain text that has come instead, if any."""
    door.allow_time(conn, HELLO_TIME)
    data = b""
    with suppress(TimeIsUp):
        data = yield from door.hear(conn, conn.receive_bytes)
    if data[:1] != b"\x16":  # as TLS_HANDSHAKE begins
        log.info("%s does not speak TLS", conn)
        conn.tls = None
        conn.ready = True
        return data
    door.allow_time(conn, DOOR_TIME)
    conn.pending = conn.decrypt(data)
    while not conn.ready:
        conn.pending = conn.decrypt((yield from door.hear(conn, conn.receive_bytes)))
    return b""


# === V. Browsers =================================================================================
#
# The page, and the HTTP with which it comes. It knows nothing of the room.

# --- The page ------------------------------------------------------------------------------------

# What a browser gets is one answer and needs nothing else, so that it works without the internet.
# Its Content-Security-Policy allows exactly this style and this script: there is no style and no
# handler in the HTML. What anybody has said only ever becomes a text node.

# The contrast is at least 4.5 wherever there is text, for a name of any hue too.
STYLE = """
:root { color-scheme: light dark; --back: #fff; --dim: #565c64; --strong: #0b57d0; --ink: 25%;
  --tint: 94%; overscroll-behavior: none; }  /* or a pull at the first message is a reload */
@media (prefers-color-scheme: dark) {
  :root { --back: #15171a; --dim: #a9afb8; --strong: #8ab4f8; --ink: 80%; --tint: 17%; } }
* { box-sizing: border-box; margin: 0; }
[hidden] { display: none !important; }
body { height: 100vh; height: 100dvh;  /* without a phone's own bars, where that is known */
  background: var(--back); overflow-wrap: anywhere;
  font: 100%/1.4 system-ui, sans-serif; }  /* the user's size; below 16px an iPhone zooms in */
a { color: var(--strong); direction: ltr; unicode-bidi: isolate; }
#room h1, #state:not(:empty), li span, summary, input, textarea, button { padding: .7em .8em; }
input, textarea, button { font: inherit; color: inherit; background: var(--back);
  border: 1px solid var(--dim); border-radius: .4em; }
button { background: var(--strong); color: var(--back); }
:focus-visible { outline: 3px solid; outline-offset: -2px; }  /* as its text, so on a button too */
#door, label { display: grid; gap: .6em; }
#door { max-width: 22em; margin: 0 auto; padding: 12vh 1em 1em; }
#room { display: grid; grid: auto minmax(0, 1fr) auto auto / minmax(0, 1fr) auto; height: 100%;
  max-width: 76em; margin: 0 auto; }
#room h1 { font-size: 1em; }
#room > div { grid-column: 1 / 3; }
ul { position: absolute; right: .5em; width: 16em; max-height: 60vh; padding: 0; overflow: auto;
  list-style: none; background: var(--back); border: 1px solid; }
li > * { display: block; width: 100%; text-align: start; background: none; border: 0; }
#log { grid-row: 2; overflow-y: auto; overflow-anchor: none; border-block: 1px solid #8886; }
/* The times are a column, so that no part of a long message looks like another message. */
#log p { padding: .15em .8em .15em 4em; white-space: pre-wrap; }
time { display: inline-block; width: 3.5em; margin-left: -3.5em; -webkit-user-select: none; }
b { color: hsl(var(--hue), 70%, var(--ink)); cursor: pointer; }
.own { background: hsl(215, 70%, var(--tint)); }
#log .private { background: hsl(275, 70%, var(--tint)); }
.mention { background: hsl(46, 70%, var(--tint)); }
#log .private, #log .mention { border-left: 4px solid var(--strong); padding-left: 3.75em; }
.gap, #offline { background: hsl(8, 80%, var(--tint)); }
time, li > *, .notice, .hint, ::placeholder { color: var(--dim); opacity: 1; }
.unread, em, #why { color: hsl(5, 70%, var(--ink)); }
#again, #jump, #form { margin: .4em .8em; overflow-wrap: normal; }
#jump { grid-area: 2 / 1 / 3 / 3; place-self: end center; }
#offline, #form { display: flex; align-items: center; justify-content: space-between; gap: .6em; }
#box { flex: 1; min-width: 0; max-height: 30vh; resize: none; field-sizing: content; }
@media (min-width: 1000px) { ul { position: static; max-height: none; border: 0; }
  #who { grid-area: 1 / 3 / 5; border-left: 1px solid #8886; overflow: auto; } }
"""

SCRIPT = r"""
"use strict";
const PLACE = location.host + location.pathname.replace(/\/$/, ""), TITLE = `Chat on ${PLACE}`;
const MAX_ROWS = 5000, MAX_KEPT = 500;  // rows in all, and those that outlive a reload
const ASK_AFTER = 13, LOST_AFTER = 18;  // seconds of silence until it asks, and until it gives up
const MAX_WAIT = 30, MAX_PASTED = 20;  // seconds between two tries; lines without a question
const NEWS = /^(.+) (?:(joined)|left|was removed|is now (.+))$/;
const NAME = /^\/name /, PING = /^\/ping\b/, PRIVATE = /^\/msg\b\s*([^:]*):?\s*/;
// What is unseen before it, or a full-width slash, makes no message of it: it may be private.
const COMMAND = /^[\s\p{C}\p{DI}\u2800]*[/\uff0f](?![/\uff0f])\S*/u;
// A link ends before what ends a sentence, and before a bracket that isn't opened in it.
const LINK = new RegExp("\\b(https?://(?:A|\\(A*\\))*(?:[\\w/#$%&*+=@~|\\p{L}\\p{N}-]|\\(A*\\)))"
  .replace(/A/g, "[!#-'*-;=?-~\\p{L}\\p{M}\\p{N}]"), "iu");
const WIDE = matchMedia("(min-width: 1000px)");  // as in the style
const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((one) => [one.id, one]));
const { log, box } = page;
const kept = JSON.parse(keep("sessionStorage") || "{}");  // before a reload, by an older page too
let wanted = kept.wanted ?? keep("localStorage"), me = "";  // how the user and the room call us
let names = new Set(), others = [];  // who is known to be here; how many more, in the room's words
const ignored = new Map(kept.ignored);  // by identity(): a name, and the one the user had enough of
let sent = [];  // lines that may not have arrived, each with the row that shows it, if any does
let typed = [""], offers = [];  // what was sent, each once, and what Down ends at; what Tab offers
let socket = null, retry = 0, isShifted = false, wait = 1, silence = 0;  // the last two in seconds
let joinedAt = 0, lostAt = kept.lostAt || 0;  // when we came in, if we are; when it was heard last
// Whether all that the page asks first is answered; what others and the user said before that.
let isReady = false, history = [], due = "", password = kept.password || "";
// Whether the page stays at its end, where it has put itself, and what is seen rather far up.
let following = true, place = 0, upper = log, unread = 0, listed = "", settling = 0;

const fold = (name = "") => name.normalize("NFKC").toLowerCase();
const clock = (size = 5, time = Date.now()) => new Date(time).toTimeString().slice(0, size);
const identity = (name) => fold(name).replace(/[-.' :\u2018\u2019\u02bb\u02bc\u200c\u200d]/g, "");
const asCommand = (text) => text.replace(COMMAND, (word) => fold(word.replace(/^[^/\uff0f]+/, "")));
const link = (href) => make("a", { href, target: "_blank", rel: "noopener noreferrer" }, href);
// The words of a text, with a blank around each; in some alphabets every letter is one.
const WORD = /[\p{Lo}\p{Lm}]\p{M}*|[\p{Ll}\p{N}][\p{Ll}\p{N}\p{M}]*/gu;
const words = (text) => ` ${(fold(text).match(WORD) || []).join(" ")} `;
const isMention = (text) => wanted && words(text).includes(words(wanted));
const mark = (row, why) => row.lastChild.append(make("em", {}, ` (${why})`));
const fresh = document.createDocumentFragment();  // rows that the log gets when it settles

function make(tag, properties, ...content) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...content);
  return element;
}

function keep(storage, ...text) {  // or, without one, returns what is kept; a user can forbid both
  const act = text.length ? "setItem" : "getItem";
  try { return window[storage][act](`chat ${PLACE}`, ...text) || ""; } catch { return ""; }
}

function inColor(name) {  // names that are alike, such as Lab 1 and Lab 2, are far apart in hue
  const number = [...name].reduce((sum, char) => (31 * sum + char.codePointAt(0)) % 2 ** 30, 0);
  return make("b", { style: `--hue: ${(number * 137.508) % 360}` }, make("bdi", {}, name));
}

function show(kind, text, speaker = "", hour = clock()) {
  const parts = text.split(LINK).map((part, at) => (at % 2 ? link(part) : part));
  const words = make("span", {}, make("bdi", {}, ...parts));  // its direction is its own affair
  const isNew = socket && (hour || lostAt) && (document.hidden || !following);
  const isNews = isNew && /^(?:said|private)/.test(kind);
  if (speaker) words.prepend(inColor(speaker), /private/.test(kind) ? " (private): " : ": ");
  if (speaker && kind === "own private") words.prepend("to ");
  if (isNews && !unread) fresh.append(make("p", { className: "unread" }, "\u2014 New \u2014"));
  if (isNews) unread += 1;
  return fresh.appendChild(make("p", { className: kind }, make("time", {}, hour), words));
}

function settle(isAsked) {  // adds rows: measuring takes some ms, so once for many of them
  const moved = log.scrollTop - place;  // by the user, as the page knows where it has put itself
  const rest = log.scrollHeight - log.clientHeight - log.scrollTop;
  settling = 0;
  if (Math.abs(moved) >= 1) following = rest < (moved < 0 ? 2 : 40);
  if (isAsked) following = true;
  log.append(fresh);
  if (following) [...log.querySelectorAll(".unread")].slice(0, -1).map((old) => old.remove());
  const bottom = () => log.lastChild?.getBoundingClientRect().bottom, before = bottom();
  while (log.childElementCount > MAX_ROWS) log.firstChild.remove();
  const shift = following ? log.scrollHeight : bottom() - before;  // the latter isn't rounded
  if (shift) log.scrollTop += shift;
  place = log.scrollTop;
  if (moved) upper = document.elementFromPoint(innerWidth / 2, log.offsetTop + innerHeight / 6);
  if (following && !document.hidden) unread = 0;
  page.jump.hidden = following;
  page.jump.textContent = unread ? `New messages: ${unread}` : "To the end";
  document.title = (unread ? `(${unread}) ` : "") + TITLE;
  showNames();
}

function showNames() {
  const all = [...names, ...others, me].join();
  const count = others.reduce((sum, one) => sum + parseInt(one), names.size);
  page.count.textContent = count ? `${count} here` : "People";
  box.placeholder = isReady && me ? `Message as ${me}` : "Message";
  // No focus is lost, and no name goes away under a finger without need.
  if (listed === all || page.list.contains(document.activeElement)) return;
  listed = all;
  const sorted = [...names].sort(new Intl.Collator([], { numeric: true }).compare);
  const items = sorted.map((name) => name === me
    ? make("span", {}, inColor(name), " (you)") : make("button", {}, inColor(name)));
  items.push(...others.map((count) => make("span", {}, count)));
  page.list.replaceChildren(...items.map((item) => make("li", {}, item)));
}

function report(text, canConnect = false) {  // at the door and in the room: one is hidden
  page.why.textContent = page.state.textContent = text;
  page.again.hidden = !canConnect;
}

function enter(isIn, why = "") {  // the room, or goes back to the door
  page.lock.hidden = !/password/.test(why);
  page.nick.value = wanted;
  page.door.hidden = isIn;
  page.room.hidden = !isIn;
  if (!isIn) hangUp(why);
  (isIn ? box : page.lock.hidden ? page.nick : page.secret).focus();
}

function hangUp(why, canConnect) {
  if (socket) Object.assign(socket, { onmessage: null, onclose: null }).close();
  clearTimeout(retry);
  for (const { row } of sent) if (row) mark(row, "perhaps not sent");
  [socket, joinedAt, isReady, silence, retry] = [null, 0, false, 0, 0];
  [me, names, others, sent, history] = ["", new Set(), [], [], []];
  settle();
  report(why, canConnect);
}

function connect() {
  hangUp("Connecting\u2026");
  socket = new WebSocket((location.origin + location.pathname).replace("http", "ws"));
  Object.assign(socket, { onmessage: receive, onclose: lose });
}

function lose({ code }) {
  if (joinedAt && lostAt > joinedAt + 5000) wait = 1;  // else it may break off again at once
  if (code === 1000) return hangUp("You have left.", true);
  if (code === 1008 && joinedAt) return hangUp("You were removed from the room.");
  if (code === 1008) return hangUp(page.why.textContent);  // as the room has said
  const what = code === 1013 ? "The room is full." : "Not connected.";
  const seconds = wait * (0.5 + Math.random() / 2);  // not all pages in the same moment
  hangUp(`${what} Next try in ${Math.ceil(seconds)} s; what you type is kept.`, true);
  [retry, wait] = [setTimeout(connect, 1000 * seconds), Math.min(2 * wait, MAX_WAIT)];
}

function listen() {  // each second, but not while a page sleeps: then it couldn't have heard
  const isAwaited = !joinedAt || sent.length;
  silence += 1;
  if (socket && isAwaited && silence >= LOST_AFTER) lose({ code: 1006 });  // without a close
  else if (!isAwaited && silence >= ASK_AFTER) send(page.who.open ? "/who" : "/ping");
}

function wake() {  // whoever was away, such as a phone, may have lost the connection meanwhile
  settle();
  if (retry) return connect();
  silence = Math.max(silence, ASK_AFTER);
  if (joinedAt) send("/ping");
}

function receive({ data }) {
  silence = 0;
  for (const line of data.split("\n").slice(0, -1)) if (socket) hear(line);
  if (isReady) lostAt = Date.now();
  settling = settling || setTimeout(settle, 100 + log.childElementCount / 16);
}

function hear(line) {
  const [, speaker, isPrivate, text] = /^([^:]*?)( \(private\))?: (.*)$/s.exec(line) || [];
  const kind = isPrivate ? "private" : isMention(text || line) ? "said mention" : "said";
  if (!joinedAt) hearAtDoor(line);
  else if (line.startsWith("* ")) hearNotice(line.slice(2));
  else if (ignored.has(identity(speaker))) return;
  else if (!isReady && !isPrivate) history.push(line);
  else if (names.has(speaker)) show(kind, text, speaker);
  else if (show(kind, line) && !others.length && !sent.length) send("/who");  // who came in silence
}

function hearAtDoor(line) {
  if (line === "* password?" && password) return socket.send(password);
  if (line === "* password?") return enter(false, "This room has a password.");
  if (line === "* wrong password") return enter(false, "That is not the password.");
  if (line.startsWith("* ")) return report(line.slice(2));
  joinedAt = Date.now();  // it's the welcome
  if (!lostAt) show("notice", line);
  if (wanted) send(`/name ${wanted}`);
  send("/who");
}

function beKnown() {
  isReady = true;
  report("");
  if (page.room.hidden) enter(true);
  catchUp(history.slice(-MAX_ROWS));
  if (box.value === due) speak();
  due = "";
}

function catchUp(history) {  // shows what of it hasn't been shown before a connection was lost
  const lines = (kind) => [...log.querySelectorAll(kind)].map((row) => row.lastChild.textContent);
  const own = new Set(lines(".own:not(.private)"));
  const all = history.filter((line) => !own.has(line));
  const last = lines(".said").filter((one) => !ignored.has(identity(one.split(": ")[0]))).slice(-3);
  const at = all.findIndex((_, at) => last.every((line, more) => line === all[at + more]));
  const doubt = (last.length ? at >= 0 : !all.length) ? "" : "; messages may be missing";
  if (lostAt) show("gap", `Not connected from ${clock(8, lostAt)} to ${clock(8)}${doubt}`);
  // They get no time, which nobody knows, and no color: others may have had these names then.
  for (const line of all.slice(at < 0 ? 0 : at + last.length)) show("said", line, "", "");
}

function hearNotice(text) {  // answers come in order, so any is for the first of what was sent
  const [{ line = "", row } = {}] = /^(?:bye$|the room is |you were )/.test(text) ? [] : sent;
  const [isNews, name, joined, now] = NEWS.exec(text) || [], asksName = !row && NAME.test(line);
  const [, ownName] = /^you are (?!an operator$)(.+)$/.exec(text) || [];
  let isShown = true;  // but not the answer to what the page itself has asked
  if (/^(?:pong|bye)$/.test(text)) sent.shift();
  if (text === "pong") isShown = row && PING.test(line);
  else if (isNews) hearNews(name, joined, now);
  else if (ownName) isShown = takeName(ownName, row);
  else if (text.startsWith("here: ")) isShown = hearNames(text.slice(6)) || row;
  else if (asksName && me) isShown = false;  // ours was free again, and somebody else was faster
  else if (asksName && / taken$/.test(text)) send(line.replace(/^(.{0,37})$|[^_](_*)$/u, "$1_$2"));
  else if (asksName) return enter(false, text.replace(": /name NAME", ""));
  else if (row) refuse(line, row);
  if (isShown) show("notice", text);
  if (joinedAt && !isReady && !sent.length) beKnown();
}

function hearNews(name, joined, now) {
  const key = identity(name), [, first] = ignored.get(key) || [], wasHere = names.delete(name);
  if (joined || (wasHere && now)) names.add(now || name);
  // Whoever is ignored is so under any name; but whoever takes that after them is another.
  if (!joined && ignored.delete(key)) ignored.set(identity(now || first), [now || first, first]);
  if (!joined && me && key === identity(wanted)) send(`/name ${wanted}`);
}

function hearNames(text) {
  const all = text.split(/, | and (?=\d+ unnamed$)/);
  others = all.filter((one) => /^\d+ (?:more|unnamed)$/.test(one));
  names = new Set(all.filter((one) => !others.includes(one)));
}

function takeName(name, row) {
  names.delete(me);
  names.add(me = name);
  if (row) wanted = name;
  return row || identity(name) !== identity(wanted);
}

function refuse(line, row) {  // marks what the room didn't take, and gives it back
  if (/^\/(?:help|op|kick)\b/.test(line)) return;  // what answers these is no refusal
  mark(row, "not sent");  // and what may be private stays away from what may not
  if (box.value && [line, box.value].some((text) => COMMAND.test(text))) return;
  box.setRangeText(line + (box.value && "\n"), 0, 0, box.value ? "preserve" : "end");
}

function save() {  // for a reload, also by a phone that needed the memory
  let left = 1e6;  // characters; browsers keep some millions
  settle();
  const text = (row) => row.lastChild.textContent
    + (sent.some((one) => one.row === row) ? " (perhaps not sent)" : "");
  const rows = [...log.querySelectorAll("p:not(.unread):not(.hint)")].slice(-MAX_KEPT)
    .map((row) => [row.className, text(row), "", row.firstChild.textContent])
    .reverse().filter((row) => (left -= row[1].length) > 0).reverse();
  const state = { wanted, password, lostAt, rows, draft: box.value, ignored: [...ignored] };
  const isIn = page.room.hidden ? log.childElementCount > 1 : socket || retry;
  keep("sessionStorage", JSON.stringify(isIn ? state : { draft: box.value }));
  keep("localStorage", wanted);
}

function send(line, row) {
  if (!PING.test(line)) socket.send(line);
  socket.send("/ping");  // the answer shows that the line has arrived
  sent.push({ line, row });
}

function speak() {
  const lines = box.value.split("\n").filter((line) => line.trim());
  const label = lines.length > MAX_PASTED ? `Send ${lines.length} lines` : "Send";
  due = isReady ? "" : box.value;  // it is sent later, unless it is changed meanwhile
  if (due || !lines.length) return;
  const isMeant = page.say.innerText === label;  // or it's a question, which Enter answers
  page.say.innerText = label;
  if (!isMeant) return page.say.focus();
  const [first, ...rest] = lines, [isPrivate, to] = PRIVATE.exec(asCommand(first)) || [];
  // In a paste, nothing is a command but what makes it private.
  say(isPrivate || !rest.length ? asCommand(first) : first.replace(/^\//, "//"));
  for (const line of rest) say(isPrivate ? `/msg ${to}: ${line}` : line.replace(/^\//, "//"));
  typed = typed.filter((text) => text !== box.value);
  if (!/^\/op/.test(asCommand(box.value))) typed.splice(-1, 0, box.value);
  write("");
  settle(true);
  save();
}

function say(line) {
  const [whole, to] = PRIVATE.exec(line) || [];
  if (/^\/ignore\b/.test(line)) show("notice", ignore(line.slice(8).trim()));
  else if (to && line !== whole) send(line, show("own private", line.slice(whole.length), to));
  else if (!/^\/(?!\/)/.test(line)) send(line, show("own", line.replace(/^\/\//, "/"), me));
  else send(line, show("own", line.replace(/^(\/op\S*)\s.*/s, "$1 \u2026")));
}

function ignore(name) {
  const key = identity(name);
  if (key && !ignored.delete(key)) ignored.set(key, [name, name]);
  return `ignored: ${[...ignored.values()].map(([now]) => now).join(", ") || "nobody"}`;
}

function write(text) {
  box.value = text;
  box.oninput();
  box.focus();
}

function complete() {  // the word before the cursor to a name, then to the next; or returns false
  const text = box.value.slice(0, box.selectionEnd);
  const [, before, part] = /^(.*\s|)(\S+)$/s.exec(text) || [];
  const found = [...names].filter((name) => part && fold(name).startsWith(fold(part)));
  const after = /^(?:\/msg )?$/.test(before) ? ": " : " ";
  if (!offers.includes(text)) offers = found.map((name) => before + name + after);
  const next = offers[(offers.indexOf(text) + 1) % offers.length];
  if (!next || next === text) return false;
  box.setRangeText(next, 0, box.selectionEnd, "end");
}

function recall(key) {  // what was sent before, or after that; false if the user has typed
  const at = typed.indexOf(box.value), text = typed[key === "ArrowUp" ? at - 1 : at + 1];
  if (at < 0 || text === undefined) return false;
  write(text);
}

page.door.onsubmit = (event) => {
  event.preventDefault();
  wanted = page.nick.value.trim();
  [password, page.secret.value] = [page.secret.value || password, ""];
  connect();
};
page.door.oninput = () => (socket || retry) && !page.door.hidden && hangUp("");  // half typed
box.onkeydown = (event) => {
  const act = { Enter: speak, Tab: complete, ArrowUp: recall, ArrowDown: recall }[event.key];
  isShifted = event.shiftKey;
  if (!act || isShifted || event.isComposing || event.keyCode === 229) return;
  if (act(event.key) !== false) event.preventDefault();
};
box.onbeforeinput = (event) => {  // Enter, when what was being composed was left as it is
  if (event.inputType !== "insertLineBreak" || isShifted) return;
  event.preventDefault();
  speak();
};
box.oninput = () => { page.say.innerText = "Send"; };
page.say.onkeydown = ({ key, repeat }) => key !== "Enter" || !repeat;  // held, it answers nothing
[page.say.onclick, page.again.onclick, page.jump.onclick] = [speak, connect, () => settle(true)];
log.onscroll = () => { if (Math.abs(log.scrollTop - place) >= 1) settle(); };
window.onresize = ({ type }) => {  // as a phone is turned, and before any scroll which that causes
  if (following) log.scrollTop = log.scrollHeight;
  else if (type && upper) upper.scrollIntoView({ block: "nearest" });
  place = log.scrollTop;
};
new ResizeObserver(window.onresize).observe(log);  // of no type: as the box grows
log.oncopy = (event) => {  // a message a line, where browsers copy paragraphs
  event.clipboardData.setData("text/plain", `${getSelection()}`.replace(/\n+/g, "\n"));
  event.preventDefault();
};
page.who.ontoggle = () => page.who.open && isReady && send("/who");  // the unnamed come in silence
WIDE.onchange = () => { page.who.open = WIDE.matches; };
document.onclick = ({ target }) => {  // whoever touches a name writes to that one alone
  const name = (target.closest("b, #list button") || {}).innerText;
  const draft = asCommand(box.value).replace(/^\/msg\b([^:\n]*:)?\s*/, "");
  if (name && name !== me) write(`/msg ${name}: ${draft}`);
  if (!WIDE.matches && !target.closest("#count")) WIDE.onchange();
};
document.onkeydown = ({ key }) => { if (key === "Escape") WIDE.onchange(); };
Object.assign(window, { ononline: wake, onpageshow: wake, onpagehide: save });
document.onvisibilitychange = () => (document.hidden ? save() : wake());

const pulse = setInterval(listen, 1000);
for (const heading of document.querySelectorAll("h1")) heading.textContent = TITLE;
WIDE.onchange();
for (const row of kept.rows || []) show(...row);
write(kept.draft || "");
if (kept.rows) connect();
enter(Boolean(kept.rows));
"""

PAGE = f"""<!doctype html>
<html lang="en" translate="no">
<meta name="viewport" content="width=device-width, interactive-widget=resizes-content">
<title>Chat</title>
<link rel="icon" href="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'
  viewBox='0 0 16 16'><path fill='%230b57d0' d='M1 2h14v9H8l-4 4v-4H1z'/></svg>">
<style>{STYLE}</style>
<form id="door">
  <h1></h1>
  <p id="why" role="alert"></p>
  <label>Your name (optional)<input id="nick" maxlength="32" autocomplete="nickname"></label>
  <label id="lock" hidden>The room's password
    <input id="secret" type="password" autocomplete="current-password"></label>
  <button>Join</button><noscript>Without JavaScript this page can't do anything.</noscript>
</form>
<main id="room" hidden>
  <h1></h1>
  <details id="who"><summary id="count"></summary><ul id="list"></ul></details>
  <div id="log" role="log" aria-label="Messages" tabindex="0"><p class="hint"
>Touch a name to write to them alone; /ignore NAME hides what they say, /help says more.</p></div>
  <button id="jump" hidden></button>
  <div id="offline"><p id="state" role="status"></p>
    <button id="again" hidden>Connect now</button></div>
  <div id="form"><textarea id="box" rows="2" dir="auto" aria-label="Message"
    enterkeyhint="send"></textarea><button id="say">Send</button></div>
</main>
<script>{SCRIPT}</script>
"""


# --- HTTP ----------------------------------------------------------------------------------------

MAX_REQUEST = 32 * 1024  # bytes, most of them cookies: a browser sends those of any port of a host

# A request without a body (RFC 9112, RFC 9110), its whole syntax: nothing else gets any further.
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST = re.compile(
    rf"({TOKEN}) ([!-~]+) HTTP/1\.([0-9])\r?\n((?:{TOKEN}:[\t -~\x80-\xff]*\r?\n){{0,100}})\r?\n"
)
# The Host of a request, in lower case: an IPv6 address, an IPv4 address or a name, which may end
# with a dot; and perhaps a port.
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+?)\.?(?::[0-9]*)?")
# Names that can't be anybody else's: an address (no name in the DNS ends with a number), one
# without a dot, and those that nobody outside can have in the DNS (RFC 6762, RFC 6761, RFC 8375),
# or that nobody uses there.
LOCAL_NAME = re.compile(r"\[.+|[0-9.]+|[^.]+|.+\.(?:local|localhost|internal|home\.arpa|lan)")


def digest(text: str) -> str:
    """Returns how a content security policy names a script or a style."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# With these, nobody guesses a response's type, stores it, is told its address, or embeds it.
# The page may connect not just to 'self': Safari before version 15.4 means no WebSocket by that.
HARDENING = (
    (
        f"Content-Security-Policy: default-src 'none'; script-src {digest(SCRIPT)}; "
        f"style-src {digest(STYLE)}; img-src data:; connect-src ws: wss:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options: nosniff",
    "Cache-Control: no-store",
    "Referrer-Policy: no-referrer",
    "Cross-Origin-Resource-Policy: same-origin",
)


class Refusal(Exception):
    """A request isn't granted; the text says why, to whoever asked and to the log."""

    def __init__(self, status: str, why: str, *fields: str) -> None:
        super().__init__(why)
        self.status = status
        self.fields = fields  # what the response's header needs besides


def is_http(data: bytes) -> bool:
    """Says whether a peer's first bytes are an HTTP request, or may become one."""
    if b"\n" in data:
        return HTTP_REQUEST.match(data) is not None
    return not data or data[:1].isalpha()


def is_whole(request: bytes) -> bool:
    """Says whether the end of a request has come, or it is too long already."""
    return len(request) > MAX_REQUEST or b"\n\r\n" in request or b"\n\n" in request


def parse_request(data: bytes) -> tuple[str, str, dict[str, str]]:
    """Returns the method of a request, its target, and its fields, by names in lower case; one that
    comes twice is "value, value". Raises Refusal."""
    if len(data) > MAX_REQUEST:
        raise Refusal("431 Request Header Fields Too Large", "This request is too long.")
    request = REQUEST.fullmatch(data.decode("latin-1"))
    if not request:
        raise Refusal("400 Bad Request", "This is not a proper request.")
    method, target, minor_version, lines = request.groups()
    fields: dict[str, str] = {}
    for line in lines.split("\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t\r")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    if minor_version == "0":  # has no Host and no Upgrade; health checks use it, browsers don't
        fields = {"host": "localhost", **fields, "upgrade": ""}
    return method, target, fields


def upgrade(fields: dict[str, str]) -> bytes:
    """Returns the response that makes a WebSocket of the connection (RFC 6455, section 4.2), from
    the fields of the request. Raises Refusal."""
    protocols, options = (
        re.split("[\t ,]+", fields.get(name, "").lower()) for name in ("upgrade", "connection")
    )
    is_upgrade = "websocket" in protocols and "upgrade" in options
    if not is_upgrade or fields.get("sec-websocket-version") != "13":
        why = "This does not ask for WebSocket version 13; a proxy on the way may have changed it."
        needed = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
        raise Refusal("426 Upgrade Required", why, *needed)
    key = fields["sec-websocket-key"]
    if not re.fullmatch("[A-Za-z0-9+/]{22}==", key):  # 16 bytes in base64
        raise Refusal("400 Bad Request", "This request has no proper Sec-WebSocket-Key.")
    both = f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()
    accept = b64encode(hashlib.sha1(both).digest())
    start = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    return f"{start}Sec-WebSocket-Accept: {accept.decode()}\r\n\r\n".encode()


def response(request: bytes, status: str, kind: str, text: str, *fields: str) -> bytes:
    """Returns the response to a request: a text, or only its head if just that was asked for."""
    body = text.encode()
    lines = (
        f"HTTP/1.1 {status}",
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        "Connection: close",
        f"Content-Type: text/{kind}; charset=utf-8",
        f"Content-Length: {len(body)}",
        *HARDENING,
        *fields,
        "\r\n",
    )
    head = "\r\n".join(lines).encode()
    return head if request.startswith(b"HEAD ") else head + body


def name_in_url(host: str) -> str:
    """Returns a host's name as browsers write it: in IDNA, lower case, with no dot at its end."""
    with suppress(UnicodeError):
        host = host.encode("idna").decode()
    return host.lower().rstrip(".")


class Site:
    """The page, and what of HTTP is around it (RFC 9112). No I/O.

    A web page from anywhere can have a browser ask us for something. Two checks see to it that only
    our own page gets to the room: the page's Origin must match the Host that it asks; and that Host
    must be one of our names, because somebody else's name can lead to our address too.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        secure: bool,
        port: int = WEB_PORT,
        url: str = "",
        room_port: int = PORT,
    ) -> None:
        """`hosts` are names that Host may be, besides those that can't be anybody else's; under TLS
        (`secure`) it may be any, as the certificate decides. Browsers come to `port`,
        most of them by `url`, others find the room at `room_port`."""
        self.port = port
        self.for_browsers = f"for browsers, the room is at {url}"  # who have come to the other port
        self.for_others = f"this port is for browsers; the room is on port {room_port}"
        self.hosts = {name_in_url(host) for host in (socket.gethostname(), *hosts)}
        self.secure = secure
        # Ports that are left out of an Origin. TLS may also end at a proxy.
        self.default_ports = {"https": ":443"} if secure else {"https": ":443", "http": ":80"}

    def respond(self, data: bytes, encrypted: bool) -> bytes:
        """Returns the answer to a whole request that came through TLS, or didn't: the page, or what
        makes a WebSocket of the connection. Raises Refusal."""
        method, target, fields = parse_request(data)
        url = re.fullmatch("https?://([^/]*)(/.*)?", target, re.IGNORECASE)
        if url:  # as to a proxy (RFC 9112, section 3.2.2)
            fields["host"], target = url[1], url[2] or "/"
        self.check(fields.get("host", "").lower(), fields.get("origin"), encrypted)
        if method not in ("GET", "HEAD"):
            why = "There is only a page to get here."
            raise Refusal("405 Method Not Allowed", why, "Allow: GET, HEAD")
        if target.partition("?")[0] != "/":
            raise Refusal("404 Not Found", "There is nothing here; the room is at /.")
        if method == "GET" and "sec-websocket-key" in fields:
            return upgrade(fields)
        return response(data, "200 OK", "html", PAGE)

    def check(self, host: str, origin: str | None, encrypted: bool) -> None:
        """Raises Refusal unless a request comes to us, at this host, from a page of ours."""
        authority = AUTHORITY.fullmatch(host)
        if not authority:
            raise Refusal("400 Bad Request", "This request has no proper Host.")
        if self.secure and not encrypted:
            place = f"Location: https://{host}/"
            raise Refusal("307 Temporary Redirect", "This room is at https.", place)
        name = authority[1]
        if not (self.secure or name in self.hosts or LOCAL_NAME.fullmatch(name)):
            why = f"This room does not go by the name {name:.100}. Whoever runs it can add that:"
            raise Refusal("421 Misdirected Request", f"{why} --web-host {name:.100}")
        # In a WebSocket's request only programs leave it out.
        if not (origin is None or self.is_ours(origin, host)):
            why = f"This room is only for its own page, not for one of {origin!a:.100}."
            raise Refusal("403 Forbidden", why)

    def is_ours(self, origin: str, host: str) -> bool:
        """Says whether a page of this origin is the one that this host sends."""
        scheme, _, place = origin.lower().partition("://")
        port = self.default_ports.get(scheme)
        return port is not None and host in (place, place + port)


def answer_request(door: Door, conn: Connection, site: Site, request: bytes) -> Steps:
    """Answers a newcomer's request, of which something may have come. Only one for a WebSocket
    leads further."""
    while is_http(request) and not is_whole(request):
        try:
            request += yield from door.hear(conn, conn.receive_text)
        except Gone:
            if request:
                raise
            # Somebody checks whether we are up, or waits for a word from us.
            raise Dismissed(site.for_others) from None
    if not is_http(request):
        raise Dismissed(site.for_others)
    try:
        answer = site.respond(request, isinstance(conn, TLSConnection) and conn.tls is not None)
    except Refusal as refusal:
        log.info("%s was refused: %s", conn, refusal)
        answer = response(request, refusal.status, "plain", f"{refusal}\n", *refusal.fields)
    conn.tell_now(answer, is_text=False)
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise Dismissed
    conn.use(WebSocket(conn.input.max_line))
    return b""


# === VI. The process =============================================================================
#
# What a server needs that people start from a shell, and what a room keeps. Most of what is in
# echo_server.py too is there word for word. At the end everything is put together.

# --- Streams, the log, signals, descriptors ------------------------------------------------------


class Failure(Exception):
    """The script can't go on; the text says why, and what to do about it."""


def lacking(module: str, purpose: str) -> Failure:
    """Returns what to raise where a part of Python isn't installed."""
    remedy = "install the whole of it; on Debian: apt install python3"
    return Failure(f"this Python has no module {module}, which {purpose} needs; {remedy}")


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


def log_said(text: bytes) -> None:
    """Logs whole lines at level DEBUG, a hundred at most. What can't be printed becomes escapes
    like \\x1b, so that no member can play tricks with the terminal that shows the log."""
    *lines, rest = text.decode().split("\n", 100)
    for line in lines:
        log.debug("said: %s", line if line.isprintable() else repr(line)[1:-1].replace(r"\\", "\\"))
    if rest:
        log.debug("said: (%d more lines)", rest.count("\n"))


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


# --- Listening, accepting ------------------------------------------------------------------------

MAX_CLIENTS = 280 if sys.platform == "win32" else 10_000  # select() on Windows takes 512 sockets
# Names that stand for two addresses, whatever this host's resolver says: localhost (RFC 6761,
# section 6.3), and every interface, of IPv6 and of IPv4.
EVERY_INTERFACE = ("::", "0.0.0.0")
SEVERAL = {"localhost": ("::1", "127.0.0.1"), "::": EVERY_INTERFACE, "*": EVERY_INTERFACE}


def set_options(sock: socket.socket) -> None:
    """Sets what a connection needs, as far as the system has it. With keepalive the kernel asks a
    silent peer whether it is still there: one that was unplugged is gone after two minutes, or when
    TCP has tried to send for a quarter of an hour. (TCP_USER_TIMEOUT would also end a peer that is
    only suspended.) With TCP_NOTSENT_LOWAT a socket is writable again when the kernel has little
    left to send; without it, only when megabytes are free; till then a slow peer looks stuck."""
    options = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
    with suppress(OSError):  # some systems refuse for a connection that was reset already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # telnet's Ctrl-C is urgent data
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in {**options, "TCP_NOTSENT_LOWAT": 64 * 1024}.items():
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


class Acceptor:
    """Accepts newcomers at the listeners; calls `admit`, which from then on owns the socket, with
    each one's non-blocking socket and the address of its peer, as text."""

    def __init__(
        self,
        selector: BaseSelector,
        listeners: Sequence[socket.socket],
        admit: Callable[[socket.socket, str], None],
        clock: Clock,
    ) -> None:
        self.selector = selector
        self.listeners = listeners
        self.admit = admit
        self.clock = clock
        self.listening = False  # the loop knows of the listeners
        self.newcomers_wait = False  # the last accept() failed

    def listen(self, listening: bool = True) -> None:
        """Has the loop accept newcomers, or leaves them waiting."""
        for listener in self.listeners if listening != self.listening else ():
            if listening:
                self.selector.register(listener, EVENT_READ, partial(self.accept, listener))
            else:
                self.selector.unregister(listener)
        self.listening = listening

    def close(self) -> None:
        """Gives up the listeners: whoever connects from now on is refused."""
        self.listen(False)
        for listener in self.listeners:
            listener.close()
        self.listeners = ()

    def accept(self, listener: socket.socket) -> None:
        """Accepts those who wait, for 3 ms of CPU at most: finding one a place can mean looking at
        everyone who has one. If accepting fails, as when too many files are open, they still wait,
        and the loop would spin: so it doesn't look at the listeners until something else is due, or
        for a tenth of a second."""
        over = time.process_time() + DOOR_SHARE / len(self.listeners)
        try:
            while time.process_time() < over:
                sock, address = listener.accept()
                sock.setblocking(False)
                if sys.platform != "linux":  # on Linux those of the listener are inherited
                    set_options(sock)
                self.admit(sock, format_address(address))
                self.newcomers_wait = False
        except (BlockingIOError, ConnectionError):  # no more, or one that has left already
            pass
        except OSError as error:
            if not self.newcomers_wait:
                log.warning("newcomers have to wait: %s", error.strerror)
            self.newcomers_wait = True
            self.listen(False)
            self.clock.look_by(self.clock.now() + 0.1)
        except Exception:  # a bug, which ends this connection alone
            log.exception("a newcomer could not be admitted")


# --- The history ---------------------------------------------------------------------------------

MAX_HISTORY = 128 * 1024  # bytes that a newcomer gets of what was said before
HISTORY_BLOCK = 4 * 1024  # bytes, or a line more, that newcomers share as a whole


class History:
    """The last messages, for newcomers: `count` of them, or as many as fit into MAX_HISTORY bytes.

    It keeps them in blocks of some kilobytes, each of whole lines, and newcomers get references to
    these: they share them, however many come and however slowly they read.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.blocks: deque[bytes] = deque()
        self.size = 0  # bytes in the blocks
        self.lines = 0  # in the blocks: more than `count` by less than a block

    def add(self, chunk: bytes) -> None:
        """Takes whole lines, or none."""
        while chunk:
            end = chunk.find(b"\n", min(HISTORY_BLOCK, len(chunk)) - 1) + 1
            block, chunk = chunk[:end], chunk[end:]
            self.size += end
            self.lines += block.count(b"\n")
            if self.blocks and len(self.blocks[-1]) < HISTORY_BLOCK:
                block = self.blocks.pop() + block
            self.blocks.append(block)
        while self.blocks:
            lines = self.blocks[0].count(b"\n")
            if self.lines - lines < self.count and self.size <= MAX_HISTORY:
                break
            self.size -= len(self.blocks.popleft())
            self.lines -= lines

    def pieces(self) -> list[bytes | memoryview]:
        """Returns the messages, whole lines, in pieces that all newcomers share."""
        pieces: list[bytes | memoryview] = [*self.blocks]
        if self.lines > self.count:  # some lines of the first block are too many
            block = self.blocks[0]
            kept = block.split(b"\n", self.lines - self.count)[-1]
            pieces[0] = memoryview(block)[-len(kept) :]
        return pieces


# --- The transcript ------------------------------------------------------------------------------

MAX_REPLAYED = 2 * 1024 * 1024  # bytes of a transcript that are looked at for a history


def said_before(lines: bytes, longest: int) -> bytes:
    """Returns the messages, as they were said, in a stretch of a transcript. What can't have been
    said in a room, or in lines of up to `longest` bytes, name included, is passed over."""
    # The time, and exactly what was said, unless it was by the room itself.
    stamped = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (?!\* )(.+)")
    found = (stamped.fullmatch(line) for line in lines.split(b"\n")[:-1])
    said = (match[1] for match in found if match)
    return b"".join(one + b"\n" for one in said if len(one) <= longest and is_clean(one))


class Transcript:
    """A file to which every public line is added with its time. Whatever keeps lines from being
    written is the log's business: the room goes on."""

    def __init__(self, path: str) -> None:
        """Raises Failure."""
        self.path = path
        self.lost = 0  # lines, since the last that was written
        try:
            self.open()
        except OSError as error:
            raise Failure(f"cannot write the transcript {path}: {error.strerror}") from error

    def open(self) -> None:
        """Opens the file; if it is new, only its owner can read it. It is open for reading too, so
        a pipe needs no reader, but keeps what it has room for. Raises OSError."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):  # a pipe; a terminal; Windows
            flags |= getattr(os, name, 0)
        self.file = os.open(self.path, flags, 0o600)
        self.torn = False  # its last line was taken halfway
        with suppress(OSError):  # it is empty, or has no end
            os.lseek(self.file, -1, os.SEEK_END)
            self.torn = os.read(self.file, 1) != b"\n"  # the disk was full, the last time

    def messages(self, max_line: int) -> bytes:
        """Returns the messages at its end, whole lines as they were said, for a history. `max_line`
        is the room's. A pipe or a terminal has none. Raises OSError."""
        end = os.fstat(self.file)
        if not stat.S_ISREG(end.st_mode):
            return b""
        start = os.lseek(self.file, max(0, end.st_size - MAX_REPLAYED), os.SEEK_SET)
        tail = os.read(self.file, MAX_REPLAYED)
        tail = tail.partition(b"\n")[2] if start else tail  # from within a line, most likely
        return said_before(tail, MAX_PREFIX + max_line)

    def write(self, text: bytes) -> None:
        """Adds whole lines. Those that aren't taken at once are lost: the log is told when that
        begins, and how many they were when it has ended."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()).encode()
        data = stamp + text[:-1].replace(b"\n", b"\n" + stamp) + b"\n"
        try:
            self.follow()
            # After half a line comes CANCEL, which nothing that is said contains: disregard that
            # half. With a newline alone it would look whole.
            data = b"\x18\n" * self.torn + data
            while data:
                taken = os.write(self.file, data)
                self.torn = data[taken - 1 : taken] != b"\n"
                data = data[taken:]
        except OSError as error:
            why = "nobody is reading it" if error.errno == errno.EAGAIN else error.strerror
            if not self.lost:
                log.error("cannot write the transcript %s: %s", self.path, why)
            self.lost += min(data.count(b"\n"), text.count(b"\n"))
        else:
            self.tell_lost()

    def tell_lost(self) -> None:
        """Tells the log how many lines are missing, if any are."""
        if self.lost:
            log.warning("lines missing in the transcript %s: %d", self.path, self.lost)
        self.lost = 0

    def follow(self) -> None:
        """Starts the file anew if somebody has moved it away or deleted it. Raises OSError."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.file)):
                return
        old = self.file
        self.open()
        os.close(old)
        log.warning("the transcript %s had vanished and was started anew", self.path)

    def close(self) -> None:
        self.tell_lost()
        os.close(self.file)


# --- How to join ---------------------------------------------------------------------------------


def hosts_for_others(listening: Sequence[str]) -> list[str]:
    """Returns what other hosts can connect to, the likeliest to work first; nothing if only this
    machine can connect to the addresses at which we listen."""
    if all(host == "::1" or host.startswith("127.") for host in listening):
        return []
    own = [one for one in own_addresses() if ("::" if ":" in one else "0.0.0.0") in listening]
    # A link-local one goes with an interface, which each host calls by a name of its own.
    useless = ("127.", "0.0.0.0", "::", "fe80:")
    found = [host for host in dict.fromkeys([*listening, *own]) if not host.startswith(useless)]
    return sorted(found, key=lambda host: ":" in host) or [socket.gethostname()]  # IPv4 comes first


def own_addresses() -> list[str]:
    """Returns this machine's addresses, as far as the system tells: first those from which it
    reaches the rest of the world, then those of interfaces that work, bridges and tunnels last."""
    places: dict[str, int] = {}
    # Addresses that nobody has (RFC 5737, RFC 3849). The way there is the way to the world.
    for family, nobody in (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((nobody, 9))  # sends nothing
            places[sock.getsockname()[0]] = 0
    # What leads into this machine, or far away, but not to those who are in the same network.
    virtual = "br|cni|docker|lxc|lxd|podman|tailscale|tap|tun|utun|vbox|veth|vir|vm|wg|zt"
    for name, flags, address in interface_addresses():
        if flags & 0x41 != 0x41:  # IFF_UP, and IFF_RUNNING: it has a link
            places.pop(address, None)
        else:  # 0x10 is IFF_POINTOPOINT
            places.setdefault(address, 2 if flags & 0x10 or re.match(virtual, name) else 1)
    return sorted(places, key=places.__getitem__)


def interface_addresses() -> Iterator[tuple[str, int, str]]:
    """Yields the name and the flags of each interface with each of its addresses, but for those
    that change every day. Only on Linux: see netdevice(7), and proc(5)."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex() if fcntl and sys.platform == "linux" else ():
            request = os.fsencode(name).ljust(40, b"\0")  # a struct ifreq
            flags = int.from_bytes(fcntl.ioctl(sock, 0x8913, request)[16:18], sys.byteorder)
            with suppress(OSError):  # it has none
                yield name, flags, socket.inet_ntoa(fcntl.ioctl(sock, 0x8915, request)[20:24])
            with suppress(OSError), open("/proc/net/if_inet6") as lines:
                for digits, _, _, _, kind, owner in map(str.split, lines):
                    if owner == name and not int(kind, 16) & 1:  # IFA_F_TEMPORARY
                        yield name, flags, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))


def how_to_trust(
    certificate: Certificate, hosts: Sequence[str], is_near: bool
) -> tuple[Sequence[str], list[str]]:
    """Shakes hands with ourselves as several kinds of client. Returns the hosts for which the first
    client that trusts us accepts us, including names in the certificate unless it is near, on this
    machine; and what makes our own client one of that kind. Warns in the log if clients will refuse
    us."""
    cert, tls = certificate.cert, certificate.context
    if not os.path.isfile(cert):  # but a pipe, from which it comes once
        return hosts[:1], ["--tls-ca FILE", "FILE is the room's certificate"]
    for client, trust in kinds_of_client(cert, is_near):
        why, names = try_handshake(tls, client)
        if not why:
            tried = hosts if is_near else [*hosts, *names]
            refusals = {host: try_handshake(tls, client, host)[0] for host in tried}
            found = [host for host, refusal in refusals.items() if not refusal]
            if found:
                return found, trust
            why = refusals[hosts[0]]
            break
    remedy = "make or get one that is for the names and addresses by which they connect"
    log.warning("clients will refuse %s: %s; %s", cert, why.rstrip("."), remedy)
    return hosts[:1], trust


def kinds_of_client(cert: str, is_near: bool) -> Iterator[tuple[ssl.SSLContext, list[str]]]:
    """Yields clients that trust what their system trusts, our certificate's file, or its signer.
    With each comes the option that makes our own client one, and what to know about that option."""
    yield ssl.create_default_context(), ["--tls"]
    client = ssl.create_default_context(cafile=cert)
    partial_chain = 0x80000  # ssl.VERIFY_X509_PARTIAL_CHAIN, which older Pythons don't name
    client.verify_flags &= ~partial_chain
    file, note = shell_word(os.path.basename(cert)), "it isn't secret"
    with open(cert, "rb") as pem:
        if b"PRIVATE KEY-----" in pem.read():
            file, note = "NEW.pem", f"that is {file} without the key"
    near = [f"--tls-ca {shell_word(os.path.abspath(cert))}"]
    far = [f"--tls-ca {file}", f"copy {file} to that host first; {note}"]
    yield client, near if is_near else far
    client.verify_flags |= partial_chain  # each certificate in the file is trusted
    yield client, ["--tls-ca FILE", f"FILE is the certificate of the authority behind {cert}"]


def try_handshake(
    tls: ssl.SSLContext, client: ssl.SSLContext, host: str = ""
) -> tuple[str, list[str]]:
    """Has a client shake hands with us, in memory; if `host` is given, it has to be ours. Returns
    why the client refuses, and if it doesn't, what other hosts the certificate names."""
    client.check_hostname = bool(host)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        near = client.wrap_bio(to_client, to_server, server_hostname=host or None)
        far = tls.wrap_bio(to_server, to_client, server_side=True)
        for end in (near, far) * 4:  # more rounds than any version of TLS needs
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except (ssl.SSLError, ValueError) as error:  # ValueError: a host that none can be
        return getattr(error, "verify_message", str(error)), []
    shown: Any = near.getpeercert()
    names = [name for kind, name in shown.get("subjectAltName", ()) if kind == "DNS"]
    return "", [name for name in names if name != "localhost" and "*" not in name]


def shell_word(text: str) -> str:
    """Returns the text as a shell takes it for one word. Debian's small Python has no shlex."""
    is_plain = re.fullmatch(r"[\w@%+=:,./-]+", text)
    return text if is_plain else "'" + text.replace("'", "'\"'\"'") + "'"


def tell_where(
    listeners: Sequence[socket.socket], hosts: Sequence[str], certificate: Certificate | None
) -> str:
    """Logs where the room is, who can connect, and how: commands that work as they stand there.
    Returns a host at which they reach it. `hosts` are the --host options."""
    addresses = [listener.getsockname() for listener in listeners]
    others, port = hosts_for_others([host for host, *_ in addresses]), addresses[0][1]
    who = "whoever can reach this machine can connect"
    if not others:
        who = "only this machine can connect; --host :: lets the network in"
    lines = [f"listening on {' and '.join(map(format_address, addresses))}; {who}"]
    found = others or hosts
    if certificate:
        found, (option, *notes) = how_to_trust(certificate, found, is_near=not others)
        lines += [f"join: python3 chat_client.py {found[0]} {port} {option}", *notes]
    else:
        lines += [f"join: python3 chat_client.py {found[0]} {port}", f"or: nc {found[0]} {port}"]
    more = [host for host in found[1:] if host in others]
    if more:
        lines.append(f"other addresses of this machine: {', '.join(more)}")
    for line in lines:
        log.info("%s", line)
    return found[0]


def multiply(a: int, b: int) -> int:
    """Multiplies in GF(256) modulo x^8 + x^4 + x^3 + x^2 + 1."""
    result = 0
    for bit in reversed(range(8)):
        result = (result << 1) ^ (result >> 7) * 0x11D ^ (b >> bit & 1) * a
    return result


def qr_codewords(data: bytes, room: int, extra: int) -> list[int]:
    """Returns the text, filled up to `room`, and what corrects it (Reed and Solomon)."""
    bits = f"0100{len(data):08b}{''.join(f'{byte:08b}' for byte in data)}0000"
    words = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    words += ([0xEC, 0x11] * room)[: room - len(words)]
    generator, root = [1], 1
    for _ in range(extra):
        pairs = zip([*generator, 0], [0, *generator])
        generator, root = [a ^ multiply(b, root) for a, b in pairs], multiply(root, 2)
    rest = [*words, *[0] * extra]
    for at in range(room):
        reduced = [a ^ multiply(b, rest[at]) for a, b in zip(rest[at:], generator)]
        rest[at : at + len(reduced)] = reduced
    return words + rest[room:]


def qr_patterns(version: int, size: int) -> dict[tuple[int, int], bool]:
    """Returns what is dark, and what light, by row and column, in every code of this size."""
    dark = {place: at % 2 == 0 for at in range(size) for place in ((6, at), (at, 6))}
    eyes = [(3, 3, 4), (3, size - 4, 4), (size - 4, 3, 4), (size - 7, size - 7, 2)]
    for top, left, reach in eyes if version > 1 else eyes[:3]:
        for y, x in product(range(-reach, reach + 1), repeat=2):
            if 0 <= top + y < size and 0 <= left + x < size:
                dark[top + y, left + x] = max(abs(y), abs(x)) not in (reach // 2, 4)
    near = [*((y, 8) for y in (*range(6), 7, 8)), *((8, x) for x in (7, *reversed(range(6))))]
    far = [*((8, size - 1 - at) for at in range(8)), *((size - 7 + at, 8) for at in range(7))]
    for at, places in enumerate(zip(near, far)):  # level L and mask 0, with their own correction
        dark.update(dict.fromkeys(places, bool(0b111011111000100 >> at & 1)))
    dark[size - 8, 8] = True
    return dark


def qr_code(data: bytes) -> list[str]:
    """Returns the QR code (ISO/IEC 18004) in rows of half blocks with the blank around it that
    scanners expect; none if this is too long. What is light is drawn: most terminals are dark. An
    address needs bytes, level L, under which versions 1 to 5 are a single block, and mask 0."""
    sizes = ((19, 7), (34, 10), (55, 15), (80, 20), (108, 26))  # codewords: data, and correction
    version = next((at for at, (room, _) in enumerate(sizes, 1) if len(data) + 2 <= room), 0)
    if not version:
        return []
    size = 17 + 4 * version
    dark = qr_patterns(version, size)
    bits = iter("".join(f"{word:08b}" for word in qr_codewords(data, *sizes[version - 1])))
    for turn, right in enumerate([*range(size - 1, 6, -2), 5, 3, 1]):
        rows = range(size) if turn % 2 else reversed(range(size))
        for y, x in product(rows, (right, right - 1)):
            if (y, x) not in dark:
                dark[y, x] = (next(bits, "0") == "1") != ((y + x) % 2 == 0)
    light = [[not dark.get((y, x)) for x in range(-4, size + 4)] for y in range(-4, size + 5)]
    halves = (zip(*pair) for pair in zip(light[::2], light[1::2]))
    blocks = " \u2584\u2580\u2588"
    return ["".join(blocks[2 * upper + lower] for upper, lower in row) for row in halves]


# --- The command line ----------------------------------------------------------------------------


def host_name(text: str) -> str:
    """Returns a host without the brackets around an IPv6 address. Raises ArgumentTypeError."""
    if not text:  # such as a variable of the shell that isn't set
        raise argparse.ArgumentTypeError("no host is given")
    return text[1:-1] if text[0] + text[-1] == "[]" else text


def own_host(text: str) -> str:
    """Returns a host of this machine to listen on. Raises ArgumentTypeError."""
    if found := re.fullmatch(r"(\[.+\]|[^:]+):([0-9]+)", text):
        problem = f"has a port in it: --host {found[1]} --port {found[2]}"
        raise argparse.ArgumentTypeError(f"{text} {problem}")
    return host_name(text)


def web_host(text: str) -> str:
    """Returns a name by which browsers ask for us, also out of a URL. Raises ArgumentTypeError."""
    name = name_in_url(re.sub(r"^\w+://|/.*", "", text))
    authority = AUTHORITY.fullmatch(name) or AUTHORITY.fullmatch(f"[{name}]")
    if not (authority and all(authority[1].split("."))):
        problem = "is not the name of a host in full, such as chat.example.org"
        raise argparse.ArgumentTypeError(f"{text!r} {problem}")
    return authority[1]


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


def positive(text: str) -> int:
    """Returns the number. Raises ArgumentTypeError, which argparse shows."""
    if not re.fullmatch("[0-9]{1,10}", text) or not 0 < int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 1,000,000,000")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """Returns what parses the options."""
    about = "A chat room: what one member says goes to every other member."
    example = "example: python3 chat_server.py --host :: (then: python3 chat_client.py HOST)"
    parser = argparse.ArgumentParser(description=about, epilog=example, allow_abbrev=False)
    add = parser.add_argument
    host = "listen on this name or address (repeatable); :: is every interface, IPv4 too"
    add("--host", type=own_host, action="append", help=f"{host} (default: localhost)")
    add("--port", type=port_number, default=PORT, help="0 takes a free one (default: %(default)s)")
    web = f"let browsers in, too, on this port (default: none; without a number {WEB_PORT})"
    add("--web", type=port_number, nargs="?", const=WEB_PORT, metavar="PORT", help=web)
    name = "a further name by which browsers reach this host (repeatable)"
    add("--web-host", type=web_host, action="append", default=[], metavar="NAME", help=name)
    crowd = "turn away more than N at once (default: %(default)s)"
    add("--max-clients", type=positive, default=MAX_CLIENTS, metavar="N", help=crowd)
    long = "skip lines that are longer (default: %(default)s)"
    add("--max-line", type=positive, default=MAX_LINE, metavar="BYTES", help=long)
    last = "give newcomers the last N messages"
    add("--history", type=positive, default=0, metavar="N", help=last)
    add("--transcript", metavar="FILE", help="add every public line to FILE, with its time")
    add("--password-file", metavar="FILE", help="ask for the password in FILE, or in CHAT_PASSWORD")
    add("--operator-file", metavar="FILE", help="whoever knows the password in FILE can /kick")
    add("--tls-cert", metavar="FILE", help="speak TLS, with this certificate")
    add("--tls-key", metavar="FILE", help="and its private key")
    add("-v", "--verbose", action="store_true", help="log each message too")
    add("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options. Wrong ones end the process with status 2."""
    parser = make_parser()
    args = parse_known(parser, argv)
    args.host = args.host or ["localhost"]  # as the option's default it would be added to
    if (args.tls_cert is None) != (args.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    if args.web_host and args.web is None:
        parser.error("--web-host goes with --web")
    if args.max_line > HARD_LIMIT // 4:  # one line is not to be what fills a queue
        parser.error(f"--max-line can be {HARD_LIMIT // 4} at most")
    if sys.platform == "win32" and args.max_clients > MAX_CLIENTS:
        parser.error(f"on Windows --max-clients can be {MAX_CLIENTS} at most")
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


def read_passwords(args: argparse.Namespace) -> tuple[bytes, bytes]:
    """Returns the room's password and its operators'; b"" if there is none. Raises Failure."""
    password, operator = read_password(args.password_file), b""
    if args.operator_file is not None:  # as it is heard in a line
        operator = clean(read_password(args.operator_file)).strip().encode()
    if (password or operator) and hmac is None:
        raise lacking("hmac", "a password")
    if len(password) > args.max_line or (operator and len(b"/op " + operator) > args.max_line):
        raise Failure("the password is longer than a line may be; see --max-line")
    return password, operator


# --- All together --------------------------------------------------------------------------------


def prepare(site: Site | None, door: Door, conn: Connection) -> Steps:
    """What a newcomer has to do before the password: TLS, a browser's request."""
    plain = b""
    is_for_browsers = site and conn.sock.getsockname()[1] == site.port
    if isinstance(conn, TLSConnection):
        plain = yield from shake_hands(door, conn)
        if not (conn.tls or (is_for_browsers and plain)):
            raise Dismissed("this room speaks TLS; use --tls")
    if site and is_for_browsers:
        door.allow_time(conn, DOOR_TIME)
        yield from answer_request(door, conn, site, plain)
    return b""


def make_server(
    listeners: Sequence[socket.socket],
    room: Room,
    size: int = MAX_CLIENTS,
    transcript: Transcript | None = None,
    password: bytes = b"",
    certificate: Certificate | None = None,
    operator: bytes = b"",
    site: Site | None = None,
) -> ChatServer:
    """Puts all parts together, for `size` members at most; a password that is empty is none."""
    selector = DefaultSelector()
    elsewhere = site.for_browsers if site else "this room takes lines of text; it has no page"

    def connect(sock: socket.socket, peer: str) -> Connection:
        given = (sock, peer, host_of(peer), selector, Telnet(room.max_line, elsewhere))
        return TLSConnection(*given, certificate.current()) if certificate else Connection(*given)

    room.checks.append(partial(check_voice, room))
    membership = Membership(room, Clock())
    door = Door(membership, size, connect, partial(prepare, site), password)
    door.acceptor = Acceptor(selector, listeners, door.admit, membership.clock)
    if operator:
        Operators(door, operator)
    server = ChatServer(selector, membership, door)
    if transcript:
        server.recorders.append(transcript.write)
    if log.isEnabledFor(logging.DEBUG):
        server.recorders.append(log_said)
    return server


def show_page(args: argparse.Namespace, host: str, port: int, web_port: int) -> Site:
    """Logs where the page is, on a terminal as a QR code too, for phones. Returns its site."""
    secure = args.tls_cert is not None
    url = f"{'https' if secure else 'http'}://{format_address((host, web_port))}/"
    log.info("or, in a browser: %s", url)
    encoding = os.device_encoding(2) or ""  # none if it is no terminal
    # A console of Windows has UTF-8 after chcp 65001; in another, blocks would come out as letters.
    for row in qr_code(url.encode()) if encoding.lower() in ("utf-8", "cp65001") else ():
        log.info("%s", row)
    return Site([*args.host, *args.web_host], secure, web_port, url, port)


def allow_members(wanted: int) -> int:
    """Returns how many members there can be: with more than this process can open files for, one
    host could take them all. With very few files it sets no limit: newcomers wait for one."""
    others = 2 * DOOR_SIZE + 32  # who is at the door, who leaves; the listeners, files
    possible = allow_descriptors(wanted + others) - others
    if not others < possible < wanted:
        return wanted
    log.warning("there is room for %d, as this process can't open more files", possible)
    return possible


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop; returns the exit status. Raises Failure."""
    size = allow_members(args.max_clients)
    transcript = Transcript(args.transcript) if args.transcript is not None else None
    password, operator = read_passwords(args)
    certificate = Certificate(args.tls_cert, args.tls_key) if args.tls_cert is not None else None
    listeners = open_listeners(args.host, args.port)
    web = open_listeners(args.host, args.web, "--web") if args.web is not None else []
    signals = ending_signals()  # before anybody is told that there is a room
    host = tell_where(listeners, args.host, certificate)
    ports = [one[0].getsockname()[1] for one in (listeners, web) if one]
    site = show_page(args, host, *ports) if web else None
    if password:
        log.info("chat_client.py asks for the password; other clients send it as their first line")
    if (password or operator) and not certificate:
        log.warning("the password travels in the clear; --tls-cert and --tls-key change that")
    room = Room(args.max_line)
    if args.history:
        room.history = History(args.history)
        if transcript:
            room.history.add(transcript.messages(args.max_line))
    given = (transcript, password, certificate, operator, site)
    server = make_server([*listeners, *web], room, size, *given)
    try:
        return server.run(signals)
    finally:
        signals.detach()  # stays open, as another signal may come
        if transcript:
            transcript.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit status: 0 for a clean end, 1 for a failure."""
    args = parse_args(argv)
    open_log(args.verbose)
    try:
        return run(args)
    except (Failure, OSError) as error:  # such as that too many files are open
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the loop took over the signals
        return 0


if __name__ == "__main__":
    open_standard_streams()
    sys.exit(main())
