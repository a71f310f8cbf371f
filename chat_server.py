#!/usr/bin/env python3
"""A chat room: what one member says goes to every other member.

    python3 chat_server.py                    a room for this machine, on port 7007
    python3 chat_server.py --host ::          a room for the whole network
    python3 chat_client.py HOST               join it; or: nc HOST 7007, telnet HOST 7007
    python3 chat_server.py --host :: --web    and with a browser: http://HOST:7080/

    python3 chat_server.py --host :: --tls-cert FILE --tls-key FILE --password-file FILE
                                              a closed room: nobody eavesdrops, nobody else gets in

The protocol is lines of UTF-8 text, ended by LF or CRLF. A member sends

    /name NAME          be known as NAME             /help       what can I say?
    /who                who is here?                 /quit       leave
    /msg NAME: TEXT     a message for NAME alone     /ping       has this been heard?
    //TEXT              the message /TEXT

and any other line is a message for every other member. The room answers and announces with lines
that begin with "* ". A member with a name has it before each of its messages, "John: Hi". In a
closed room the first line from a newcomer is the password. Browsers get a page from a port of their
own, and the same lines through a WebSocket there. With --operator-file, whoever knows that password
can say /op PASSWORD, and then remove others: /kick NAME.

One thread, one selectors loop, non-blocking sockets. A turn of the loop goes like this:

    1. wait until sockets are ready; send what had to wait for that
    2. go on with newcomers, for some ms at most: TLS, a browser's request, the password
    3. read from each member once, and put what was said into one batch, in the order of reading
    4. hand the whole batch to each member; whoever spoke gets it without its own lines
    5. what a socket doesn't take now waits in its member's queue: while one is too long, read from
       everyone more slowly, and TCP slows the senders

So a turn costs one send a member, however many messages it carries, and nothing is copied or put
together for anyone. In a quiet room a line goes out in the turn in which it came; under load the
batches grow by themselves.

Standard library only, Python 3.8 or later. Copy this file anywhere and run it.
"""

from __future__ import annotations

import argparse
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
import selectors
import signal
import socket
import stat
import sys
import time
import unicodedata
from base64 import b64encode
from codecs import BOM_UTF8, utf_8_decode
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice, product
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, NamedTuple, cast

try:  # Windows has neither, and Debian's python3-minimal lacks the second
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]
try:  # what only closed rooms need; Debian's python3-minimal lacks the first
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
DOOR_SIZE = 100  # newcomers at the door at once
OTHER_DESCRIPTORS = 32 + 2 * DOOR_SIZE  # the listeners, files; who is no member yet, or no more
# On Windows select() takes 512 sockets.
MAX_CLIENTS = 512 - OTHER_DESCRIPTORS if sys.platform == "win32" else 10_000
LISTEN_QUEUE = 1024  # connections that the kernel completes for us ahead of accept()
ACCEPT_SHARE = 0.003  # seconds of a turn for newcomers, so that a storm of them holds up nobody
RETRY_ACCEPT = 1.0  # seconds until the next try after accept() failed
RETRY_CERTIFICATE = 1.0  # seconds until the next try with files that weren't a certificate and key

MAX_LINE = 8 * 1024  # bytes of a line without its newline; --max-line
MAX_NAME = 32  # characters
MAX_PREFIX = 4 * MAX_NAME + 2  # bytes of a name and what stands between it and a message
MAX_NAME_SOURCE = 5 * MAX_NAME  # characters that can be a name: NFKC joins several, slowly
MAX_WHO = 200  # names in an answer to /who
MAX_HISTORY = 128 * 1024  # bytes that a newcomer gets of what was said before
HISTORY_BLOCK = 4 * 1024  # bytes, or a line more, that newcomers share as a whole
MAX_REPLAYED = 256 * 1024  # bytes of a transcript that are looked at for what was said before
MAX_LOGGED = 100  # lines that are logged of what comes at once
GAP_END = 1.0  # seconds without a loss, until the log says what is missing in the transcript

# One turn reads about TURN_READ bytes at most, fewer in a crowd, and delivers about TURN_DELIVERY
# bytes at most: that takes some 10 ms, and a flood can hold up anybody's line for that long.
TURN_READ = 256 * 1024
TURN_DELIVERY = 32 * 1024 * 1024
MIN_READ = 512  # bytes: the least share that a connection gets, of a turn or of PACE
TURN_WEIGHT = 512 * 1024  # as Batch counts it: what is heard line by line takes more time
ITEM_WEIGHT = 64  # counted with each thing that is said or answered, for the time that it takes
LETTERS_WEIGHT = 1024  # counted where letters beyond ASCII are compared: that takes up to 0.1 ms
COMMAND_WEIGHT = 16  # counted with each of telnet's commands, which are taken out one by one
FRAME_WEIGHT = 32  # counted with each frame of a WebSocket, which are unpacked one by one
FRAMES_READ = 64 * 1024  # bytes that are read at once of these, if they are mostly text
IDLE_WEIGHT = 16  # counted with each byte of TLS that is neither text nor what is around it
IDLE_READ = 4 * 1024  # bytes that are read at once of a peer that has just sent much of these
SKIPPED_WEIGHT = 16  # counted with each character that was looked at and shows nothing

# For a member that reads more slowly than the others talk, batches wait in a queue. While one's is
# over HIGH_WATER, the whole room may say no more than PACE, which is what anybody who stays can
# read; no human notices. A member that takes less for PATIENCE is stuck, and is disconnected.
HIGH_WATER = 256 * 1024  # bytes
PACE = 8 * 1024  # bytes a second
PATIENCE = 5.0  # seconds
STEP = 132 * 1024  # bytes that a reader can take before its kernel tells: Linux frees whole buffers
HARD_LIMIT = 4 * 1024 * 1024  # bytes in a queue, however steadily it is read
# Of PACE, those who haven't lately wanted more than ALLOWANCE may use all, and DEBT in advance; the
# loud, who have, take turns at what is left. What somebody has said is half forgotten each second,
# so that this is some 4 KiB a second, as fifty lines may cost.
ALLOWANCE = 8 * 1024  # bytes, or what they cost
DEBT = 32 * 1024  # bytes
LOUD_TIME = 10.0  # seconds that one who wanted more counts as loud
MAX_UNREAD = 8 * 1024  # bytes of answers that wait until who asked for them isn't heard any more
MAX_WHISPERED = 4 * 1024  # bytes that wait of what others said to one alone, until it takes no more
BATCH_COST = 128  # bytes that count for a batch in a queue, so that queues aren't long either
TOLD_COST = 512  # the same where something in it is for that one alone: nobody shares that
TICK = 1.0  # seconds between looks at what depends on time
SHORT_TICK = 0.05  # seconds: the same for the turns of the loud, and for those who are leaving
LAST_CALL = 1.0  # seconds in which a room that closes hears what had arrived before
FAREWELL = 5.0  # seconds for a member that leaves to get what was said before
LINGER = 0.5  # seconds that we wait for its own close after that
OVERSLEPT = 1.0  # seconds that the loop can be late: more means that the process was stopped

# A closed room has a door: newcomers finish the TLS handshake and give the password there.
HANDSHAKE_TIME = 3.0  # seconds for the one, for which nobody has to type
DOOR_TIME = 10.0  # seconds for the other
DOOR_SHARE = 0.003  # seconds of a turn: a step of a handshake can be some ms of arithmetic
DOOR_READ = 4 * 1024  # bytes that are read at once
# So that guessing is slow: each wrong password costs its host a second, and all together a tenth.
# Whoever is more than TRIES_AHEAD seconds ahead has to wait.
WRONG_TIME = 1.0  # seconds until a wrong password is answered, and its host may try another
WRONG_TIME_OF_ALL = 0.1  # seconds
TRIES_AHEAD = 3.0  # seconds
BAN_TIME = 600.0  # seconds for which whoever was removed can't come back
MAX_BANS = 1000  # hosts, and names, that are kept out at once
SILENCE = 10.0  # seconds after which one that never said a word has no claim to its place

WELCOME = "Welcome to the chatroom!"
TLS_RECORD = 16 * 1024  # bytes of text in a record at most: so much is encrypted at once
TLS_READ = TLS_RECORD + 512  # bytes that are received at once: a record with what is around it
TLS_HANDSHAKE = 0x16  # the first byte from whoever speaks TLS
TLS_HEADER = 5  # bytes of a record: its type, a version, and in two bytes how many follow
TLS_TYPES = range(20, 24)
MAX_RECORD = TLS_RECORD + 2048  # bytes that may follow (RFC 5246, section 6.2.3)
TLS_OVERHEAD = 29  # bytes around the text of a record, for which nothing is counted
MAX_UNSENT = 24 * 1024  # bytes that may wait encrypted: a record, and what TLS itself has to say
PRIVATE = " (private)"

# Each connection gets these, as far as the system has them. Keepalive: the kernel asks a silent
# peer whether it is still there, so that one that was unplugged is gone after two minutes, or when
# something was on its way to it, after the quarter of an hour for which TCP tries again. There is
# no TCP_USER_TIMEOUT: it would also end a peer that is only suspended, and so has closed its window
# but answers. With TCP_NOTSENT_LOWAT a socket is writable again when the kernel has little left to
# send; without it, when a third of some megabytes is free, and till then slow looks like stuck.
SOCKET_OPTIONS = [
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_OOBINLINE", 1),  # telnet sends a byte of Ctrl-C as urgent data
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),  # seconds of silence before the first question
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 60),  # the same on macOS
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),  # seconds between questions
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),  # questions without an answer
        (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", 64 * 1024),  # bytes
    )
    if hasattr(socket, name)
]

TCP_INFO_SIZE = 128  # bytes of Linux's struct tcp_info up to tcpi_bytes_acked, the last of these
SIOCOUTQ = 0x5411 if sys.platform == "linux" else 0  # bytes that the peer has yet to acknowledge

Address = Any  # as the socket module has it: (host, port) and more

log = logging.getLogger("chat")


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


# --- Before it is a line --------------------------------------------------------------------------


class Gone(Exception):
    """A connection is of no further use, by its peer's doing; the text says why, for the log."""


class SpeaksHTTP(Gone):
    """A web browser has come to the port for lines of text, where it can be told where to go."""


# How TLS begins (RFC 8446, sections 4 and 5.1), and no line of text does.
CLIENT_HELLO = re.compile(rb"\x16\x03[\x00-\x04]..\x01", re.DOTALL)
# First bytes that can still become that, or a byte order mark.
UNDECIDED = re.compile(rb"\x16(?:\x03(?:[\x00-\x04].{0,2})?)?|\xef\xbb?", re.DOTALL)

# The first words of an HTTP request (RFC 9112, section 3): a method, and "/path", "*", a URL, or a
# host with its port. Nothing else follows them but a version: "PUT / there" is text.
HTTP_REQUEST = re.compile(rb"[A-Za-z-]{1,20} (?:[/*]|[^ \n]*:[^ \n])[^ \n]*")
HTTP_VERSION = b" HTTP/"

# Telnet's commands (RFC 854, RFC 1184): each begins with IAC, "interpret as command". A request has
# an option behind it; a subnegotiation goes on to IAC SE, with IAC IAC for a byte 0xFF in it.
IAC = b"\xff"
WILL, WONT, DO, DONT = b"\xfb", b"\xfc", b"\xfd", b"\xfe"
SUBNEGOTIATION = rb"\xfa[^\xff]*(?:\xff\xff[^\xff]*)*"
TELNET = re.compile(
    rb"(\xff(?:[\xec-\xf9\xff]|[\xfb-\xfe](?:.|\Z)|\Z|%b(?:\xff\xf0|\xff?\Z)?))" % SUBNEGOTIATION,
    re.DOTALL,
)
UNFINISHED = re.compile(rb"\xff(?:[\xfb-\xfe]|%b(\xff?))?" % SUBNEGOTIATION, re.DOTALL)
REFUSALS = {DO: IAC + WONT, WILL: IAC + DONT}
# What commands stand for in a text: a byte 0xFF, "erase character", "erase line". Others: nothing.
TELNET_TEXT = {IAC + IAC: IAC, b"\xff\xf7": b"\b", b"\xff\xf8": b"\x15"}


class Input(LineFramer):
    """What a peer sends, from its first byte on: lines, and what can be around them.

    Data goes through `sift`, then `feed`. Besides an unfinished line it holds at most five bytes.
    """

    __slots__ = ("code", "held", "in_first_line", "weight")
    over = False  # only the end of the stream ends it
    why = ""  # and not a fault

    def __init__(self, max_line: int) -> None:
        super().__init__(max_line)
        self.code = NORMAL  # as with a WebSocket, but nobody is told
        self.held = b""  # the beginning of something that may turn out not to be text
        self.in_first_line = True
        self.weight = 0  # what came last cost besides its text: telnet's commands, as bytes

    @property
    def most(self) -> int:
        """How many bytes may be read at once."""
        return IDLE_READ if self.weight else sys.maxsize

    def sift(self, data: bytes) -> tuple[bytes, bytes]:
        """Takes the bytes that came; returns the text among them, in which lines end with LF, and
        telnet's answers. Raises Gone if the peer doesn't mean to send text at all."""
        data, self.held = self.held + data, b""
        if self.in_first_line and not self.partial:
            data = self.begin(data)
        answers = b""
        self.weight = 0
        if IAC in data or b"\r" in data:
            data, answers = self.take_out_telnet(data)
        if self.in_first_line:
            self.check_first_line(self.partial + data)
        return data, answers

    def begin(self, data: bytes) -> bytes:
        """Returns the first bytes without a byte order mark, as Windows puts one before texts."""
        if CLIENT_HELLO.match(data):
            raise Gone("speaks TLS to a room that doesn't")
        if UNDECIDED.fullmatch(data):
            self.held = data
            return b""
        return data[len(BOM_UTF8) :] if data.startswith(BOM_UTF8) else data

    def check_first_line(self, data: bytes) -> None:
        """Raises Gone for an HTTP request: any web page can have a browser send one, with lines of
        its choice for a body. Its path may be too long for a line, and never end."""
        start = data[: self.max_line + 1]
        self.in_first_line = b"\n" not in start and len(start) <= self.max_line
        request = HTTP_REQUEST.match(start)
        if not request:
            return
        next_word = start[request.end() : request.end() + len(HTTP_VERSION)]
        endless = not self.in_first_line and HTTP_VERSION.startswith(next_word)
        has_none = start.startswith(b"GET /") and next_word.startswith(b"\n")  # HTTP/0.9
        if next_word == HTTP_VERSION or endless or has_none:
            raise SpeaksHTTP("is a web browser, or something else that speaks HTTP")

    def take_out_telnet(self, data: bytes) -> tuple[bytes, bytes]:
        """Returns the text, and answers that refuse all that telnet asks for (RFC 854).

        A refusal is never answered, so two that refuse don't go on for ever; and the same request
        is answered once, so that many don't become a flood of answers.
        """
        pieces = TELNET.split(data)  # text, command, text, command, ..., text
        commands = pieces[1::2]
        self.weight = len(commands) * COMMAND_WEIGHT
        if commands and not pieces[-1]:
            unfinished = UNFINISHED.fullmatch(commands[-1])
            if unfinished:  # of a subnegotiation that is its first two bytes, however long it is
                self.held = commands[-1][:2] + (unfinished[1] or b"")
        pieces[1::2] = [TELNET_TEXT.get(command, b"") for command in commands]
        text = b"".join(pieces)
        if text.endswith(b"\r"):
            text, self.held = text[:-1], b"\r" + self.held
        requests = dict.fromkeys(command for command in commands if command[1:2] in REFUSALS)
        answers = [REFUSALS[one[1:2]] + one[2:] for one in requests if len(one) == 3]
        return text.replace(b"\r\n", b"\n").replace(b"\r\0", b"\n"), b"".join(answers)


# --- Browsers: WebSocket --------------------------------------------------------------------------

# The first two bytes of a frame (RFC 6455, section 5.2).
FIN, RESERVED, OPCODE = 0x80, 0x70, 0x0F
MASKED, LENGTH = 0x80, 0x7F
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
OPCODES = {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}
CONTROL = 0x8  # set in the opcode of a control frame: CLOSE, PING or PONG
MAX_CONTROL = 125  # bytes of payload in one of these
MASK_SIZE = 4  # bytes

# Why a WebSocket is closed (section 7.4.1; the last one is in IANA's registry).
NORMAL, GOING_AWAY, REFUSED, TRY_LATER = 1000, 1001, 1008, 1013
PROTOCOL_ERROR, NOT_TEXT, NOT_UTF8 = 1002, 1003, 1007
CODES = (range(1000, 1004), range(1007, 1015), range(3000, 5000))  # that a peer may send


class Fault(Exception):
    """What a peer sends has no place in a WebSocket. The text tells the log, `code` the peer."""

    def __init__(self, why: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(why)
        self.code = code


class WebSocket(LineFramer):
    """The lines that a browser sends, out of the frames in which they travel (RFC 6455).

    Data goes through `sift`, then `feed`, as with Input. A payload goes on as it comes, so that
    besides an unfinished line this holds at most one control frame and a few bytes.
    """

    __slots__ = (
        "code",
        "held",
        "in_message",
        "left",
        "mask",
        "most",
        "opcode",
        "over",
        "tail",
        "weight",
        "why",
    )

    def __init__(self, max_line: int) -> None:
        super().__init__(max_line)
        self.most = IDLE_READ  # bytes that may be read at once
        self.over = False  # the peer has closed, or is at fault: what comes isn't heard any more
        self.code = NORMAL  # of the Close that will be sent
        self.why = ""  # the fault, for the log
        self.weight = 0  # what came last cost besides its text, as bytes
        self.held = b""  # the beginning of a header, or of a control frame
        self.opcode = CONTINUATION  # of the latest frame
        self.left = 0  # bytes of its payload that have yet to come
        self.mask = b""  # for these
        self.in_message = False  # the latest frame with text isn't its message's last
        self.tail = b""  # the beginning of a character

    def sift(self, data: bytes) -> tuple[bytes, bytes]:
        """Takes the bytes that came; returns the text among them, in which each message ends with
        LF, and an answer to the last ping."""
        self.weight = 0
        if self.over:
            return b"", b""
        pieces, pong = [self.tail], b""
        try:
            for opcode, payload in self.frames(self.held + data):
                if opcode == PING:
                    pong = frame(PONG, payload)
                elif opcode == CLOSE:
                    self.close(payload)
                    break
                elif opcode != PONG:
                    pieces.append(payload)
        except Fault as fault:
            self.fail(fault)
        text = self.check_text(b"".join(pieces))
        self.weight += max(0, len(data) - len(text))
        self.most = FRAMES_READ if self.weight < len(text) else IDLE_READ
        return text, pong

    def finish(self) -> bytes:
        """As with any stream; but what a fault has cut short isn't a line."""
        return b"" if self.why else super().finish()

    def frames(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yields the opcodes and payloads of frames: of text as much as has come, and then LF where
        a message ends. Raises Fault."""
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
                used = len(payload) % MASK_SIZE
                self.mask = self.mask[used:] + self.mask[:used]
            elif not (self.opcode & CONTROL or self.in_message or payload.endswith(b"\n")):
                yield self.opcode, b"\n"

    def begin_frame(self, data: bytes, at: int) -> int:
        """Reads the header at this place; returns where its payload begins, or 0 if it isn't whole,
        or it is a control frame that isn't. Raises Fault."""
        if len(data) < at + 2:
            return 0
        first, second = data[at], data[at + 1]
        self.check_header(first, second)
        start, size = at + 2, second & LENGTH
        if size > MAX_CONTROL:  # 126 or 127: the real one follows, in 2 or 8 bytes
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : start], "big")
        mask, start = start, start + MASK_SIZE
        is_control = first & CONTROL
        if len(data) < start + (size if is_control else 0):
            return 0
        if not is_control:
            self.in_message = not first & FIN
        self.opcode, self.left, self.mask = first & OPCODE, size, data[mask:start]
        self.weight += FRAME_WEIGHT
        return start

    def check_header(self, first: int, second: int) -> None:
        """Raises Fault if a frame can't begin with these two bytes."""
        opcode = first & OPCODE
        if first & RESERVED or opcode not in OPCODES:
            raise Fault("uses an extension that was not agreed on")
        if not second & MASKED:
            raise Fault("sends a frame without a mask")
        if opcode & CONTROL:
            if not first & FIN or second & LENGTH > MAX_CONTROL:
                raise Fault("sends a control frame in fragments, or one that is too long")
        elif opcode == BINARY:
            raise Fault("sends binary frames", NOT_TEXT)
        elif (opcode == CONTINUATION) != self.in_message:
            raise Fault("begins a message inside another, or goes on with none")

    def check_text(self, text: bytes) -> bytes:
        """Returns the text up to an unfinished character, or what isn't UTF-8, which is a fault."""
        # No character goes on after the LF of its message, so that looking at many at once is fine.
        try:
            whole = utf_8_decode(text, "strict", False)[1]
        except UnicodeDecodeError as error:
            self.fail(Fault("sends text that is not UTF-8", NOT_UTF8))
            return text[: error.start]
        self.tail = text[whole:]
        return text[:whole]

    def close(self, payload: bytes) -> None:
        """The peer has closed: its own code is the answer. Raises Fault."""
        if payload:
            code = int.from_bytes(payload[:2], "big")
            if not any(code in codes for codes in CODES):
                raise Fault("gives a close code that does not exist")
            try:
                payload[2:].decode()
            except UnicodeDecodeError as error:
                raise Fault("gives a reason that is not UTF-8", NOT_UTF8) from error
            self.code = code
        self.over = True

    def fail(self, fault: Fault) -> None:
        """The peer is at fault."""
        self.over, self.code, self.why = True, fault.code, str(fault)


def unmask(data: bytes, mask: bytes) -> bytes:
    """Returns the payload that was masked (RFC 6455, section 5.3). One large number is a hundred
    times as fast as to look at each byte."""
    key = (mask * (len(data) // MASK_SIZE + 1))[: len(data)]
    number = int.from_bytes(data, "little") ^ int.from_bytes(key, "little")
    return number.to_bytes(len(data), "little")


def frame(opcode: int, payload: bytes) -> bytes:
    """Returns a whole message, or a control frame, as a server sends it."""
    size = len(payload)
    if size < 126:
        return bytes((FIN | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((FIN | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((FIN | opcode, 127)) + size.to_bytes(8, "big") + payload


def close_frame(code: int) -> bytes:
    """Returns the frame that ends a WebSocket."""
    return frame(CLOSE, code.to_bytes(2, "big"))


# --- Browsers: the page --------------------------------------------------------------------------

# What a browser gets is one answer and needs nothing else, so that it works without the internet.
# Its Content-Security-Policy allows exactly this style and this script: there is no style and no
# handler in the HTML. What anybody has said only ever becomes a text node.

# The contrast is at least 4.5 wherever there is text, for a name of any hue too.
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --dim: #5a6068; --line: #c9ced6;
  --strong: #0b57d0; --own: #eaf1fb; --private: #f3e8fd; --mention: #fff1c9; --alert: #fde2de;
  --bad: #a5271d; --lightness: 25%; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --text: #e6e7e9; --dim: #a3a9b2;
  --line: #42474f; --strong: #8ab4f8; --own: #1d2b40; --private: #33234a; --mention: #3d3312;
  --alert: #56221d; --bad: #ffb4ab; --lightness: 78%; } }
* { box-sizing: border-box; margin: 0; }
html { overscroll-behavior: none; }  /* or who pulls at the first message reloads the page */
[hidden] { display: none !important; }
body { height: 100vh; height: 100dvh;  /* without a phone's own bars, where that is known */
  padding: env(safe-area-inset-top) env(safe-area-inset-right) env(safe-area-inset-bottom)
    env(safe-area-inset-left);
  background: var(--back); color: var(--text); overflow-wrap: anywhere;
  font: 16px/1.4 system-ui, sans-serif; }  /* an iPhone zooms in on fields with smaller letters */
h1 { font-size: 1em; }
a { color: var(--strong); }
input, textarea, button, summary, li span { min-height: 2.75em; padding: .6em .8em; }
input, textarea, button { font: inherit; color: inherit; background: var(--back);
  border: 1px solid var(--dim); border-radius: .4em; }
button { background: var(--strong); color: var(--back); overflow-wrap: normal; }
:focus-visible { outline: 3px solid var(--strong); outline-offset: -2px; }
::placeholder { color: var(--dim); opacity: 1; }
#door { display: grid; gap: 1em; max-width: 22em; margin: 0 auto; padding: 12vh 1em 1em; }
label { display: grid; gap: .3em; }
#room { display: grid; grid: auto minmax(0, 1fr) auto auto / minmax(0, 1fr) auto; height: 100%;
  max-width: 60em; margin: 0 auto; }
#room > * { grid-column: 1 / 3; }
#room h1 { grid-area: 1 / 1; padding: .6em .8em; }
#who { grid-area: 1 / 2; position: relative; }
summary { white-space: nowrap; cursor: pointer; }
ul { position: absolute; z-index: 1; top: 100%; right: .5em; width: 16em; max-height: 60vh;
  padding: 0; overflow: auto; list-style: none; background: var(--back);
  border: 1px solid var(--dim); border-radius: .4em; }
li > * { display: block; width: 100%; text-align: start; color: var(--dim); }
li button { background: none; border: 0; }
#log { grid-row: 2; overflow-y: auto; overflow-anchor: none; padding: .4em 0;
  border: solid var(--line); border-width: 1px 0; }
/* The times have a column of their own: no part of a long message looks like another message.
   Nor are they copied with what was said. */
#log p { padding: .15em .8em .15em 4em; border-left: 4px solid transparent; white-space: pre-wrap; }
time { display: inline-block; width: 3.5em; margin-left: -3.5em; color: var(--dim);
  font-variant-numeric: tabular-nums; -webkit-user-select: none; user-select: none; }
b { color: hsl(var(--hue), 70%, var(--lightness)); cursor: pointer; }
.own { background: var(--own); }
#log .mention { background: var(--mention); border-color: var(--strong); }
#log .private, #box.private { background: var(--private); border-color: var(--strong); }
.day, .notice, .hint { color: var(--dim); }
.gap, #offline { background: var(--alert); }
.unread, em { color: var(--bad); }
#jump { grid-row: 2; place-self: end center; margin-bottom: .5em; }
#offline, #form { display: flex; align-items: center; justify-content: space-between; gap: .6em;
  padding: .5em .8em; }
#offline:not(.on) { padding: 0; }  /* always there, as a screen reader watches it */
#box { flex: 1; min-width: 0; max-height: 30vh; resize: none; }
@media (min-width: 1000px) { #room { max-width: 76em; }
  #room > * { grid-column: 1; }
  #who { grid-area: 1 / 2 / 5; border-left: 1px solid var(--line); overflow: auto; }
  ul { position: static; max-height: none; border: 0; } }
@media (forced-colors: active) { #log p:not(.private):not(.mention) { border-color: Canvas; } }
"""

SCRIPT = r"""
"use strict";
const PLACE = location.host + location.pathname.replace(/\/$/, ""), TITLE = `Chat on ${PLACE}`;
const MAX_ROWS = 5000, MAX_KEPT = 500;  // rows in all, and those that outlive a reload
const MIN_PAUSE = 100, MAX_PAUSE = 400;  // ms until rows that have come are added
const MAX_PASTED = 20;  // lines that are sent without a question
const FIRST_WAIT = 1, MAX_WAIT = 30;  // seconds until the page tries to connect again
// Seconds of silence after which the page asks whether the network lives, and after which, if an
// answer is due, a connection is lost. When its user is back, an answer may take PATIENCE.
const ASK_AFTER = 12, LOST_AFTER = 18, PATIENCE = 5;
const NEWS = /^(.+) (?:(joined)|left|was removed|is now (.+))$/;
const NAME = /^\/(?:name|nick) /, WHO = /^\/(?:who|names)\b/, PING = /^\/ping\b/;
const NEVER_REFUSED = /^\/(?:help|who|names|ping|op|quit|exit)\b/;
// A blank before it, or a full-width slash, makes no message of a command: it may be private.
const COMMAND = /^\s*[/\uff0f](?![/\uff0f])(\S*)\s*/;
const PRIVATE = /^\s*[/\uff0f]msg\b\s*([^:]*):?\s*/i, OP = /^\s*[/\uff0f]op/i;
// A link ends before what ends a sentence, and before a bracket that isn't opened in it.
const LINK = new RegExp("\\b(https?://(?:A|\\(A*\\))*(?:[\\w/#$%&*+=@~|\\p{L}\\p{N}-]|\\(A*\\)))"
  .replace(/A/g, "[!#-'*-;=?-~\\p{L}\\p{M}\\p{N}]"), "iu");
const WIDE = matchMedia("(min-width: 1000px)");  // as in the style
const page = {};
for (const element of document.querySelectorAll("[id]")) page[element.id] = element;
const { log, box } = page;
let wanted = "", me = "";  // the name that the user wants, and that by which the room knows us
let mention = /$^/;  // finds the first of these in a text
let names = new Set(), others = [];  // who is known to be here; how many more, in the room's words
let ignored = new Map();  // names that the user has had enough of, by fold(name)
let sent = [];  // lines that may not have arrived, each with the row that shows it, if any does
let shown = [];  // rows of what was said
let typed = [], recalled = 0;  // what the user has sent, and which of it Up has brought back
let completions = [], start = 0;  // what Tab goes through, and where in the box that begins
let password = "", socket = null, wait = FIRST_WAIT, retry = 0, settling = 0, lostAt = 0;
// Whether the room has let us in; whether it knows our name; whether Enter waits for that.
let inRoom = false, isReady = false, isDue = false;
let silence = 0, pulse;  // seconds since anything was heard, and what counts them
let day = "", unread = 0, isShifted = false, pause = MIN_PAUSE;
// Whether the page stays at its last row; the place where it has put itself, and that row then.
let following = true, place = 0, end = null;

function make(tag, className, ...content) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...content);
  return element;
}

function keep(storage, ...text) {  // or, without one, returns what is kept; a user can forbid both
  const act = text.length ? "setItem" : "getItem";
  try { return window[storage][act](`chat ${PLACE}`, ...text) || ""; } catch { return ""; }
}

const fresh = document.createDocumentFragment();  // rows that the log gets when it settles
const unreadLine = make("p", "unread", make("span", "", "\u2014 New \u2014"));
const fold = (name = "") => name.normalize("NFKC").toLowerCase();
const clock = (time, size = 5) => new Date(time).toTimeString().slice(0, size);
const link = (href) =>
  Object.assign(make("a", "", href), { href, target: "_blank", rel: "noopener noreferrer" });
const asLine = ({ speaker, text }) => (speaker ? `${speaker}: ${text}` : text);

function inColor(name) {  // names that are alike, such as Lab 1 and Lab 2, are far apart in hue
  const number = [...name].reduce((sum, char) => (31 * sum + char.codePointAt(0)) % 2 ** 32, 0);
  const element = make("b", "", make("bdi", "", name));  // a bdi's direction is its own affair
  element.style.setProperty("--hue", (number * 137.508) % 360);
  return element;
}

function show(kind, text, speaker = "", time = Date.now()) {
  const parts = text.split(LINK).map((part, at) => (at % 2 ? link(part) : part));
  const words = make("span", "", make("bdi", "", ...parts)), date = new Date(time);
  const isNews = time && /^(?:said|private)/.test(kind) && (document.hidden || !following);
  const row = { kind, text, speaker, time, words };
  if (speaker) words.prepend(inColor(speaker), /private/.test(kind) ? " (private): " : ": ");
  if (kind === "own private") words.prepend("to ");
  if (time && day !== date.toDateString())
    fresh.append(make("p", "day", date.toLocaleDateString([], { dateStyle: "full" })));
  if (time) day = date.toDateString();
  if (isNews && !unread) fresh.append(unreadLine);
  if (isNews) unread += 1;
  fresh.append(make("p", kind, make("time", "", time ? clock(time) : ""), words));
  if (/^(?:said|own|private)/.test(kind)) shown.push(row);
  return row;
}

function mark(row, text = "") {
  row.mark = text;
  if (text) row.words.append(make("em", "", ` (${text})`));
}

function settle(isAsked) {  // adds rows: measuring takes some ms, so once for many of them
  const began = performance.now();
  clearTimeout(settling);
  settling = 0;
  log.append(fresh);
  const { scrollTop: top, scrollHeight: height } = log;
  const kept = log.childElementCount > MAX_ROWS ? MAX_ROWS - 500 : MAX_ROWS;  // each time, all move
  while (log.childElementCount > kept) log.firstChild.remove();
  if (height > log.scrollHeight) log.scrollTop = top - height + log.scrollHeight;
  follow(isAsked);
  shown = shown.slice(-MAX_ROWS);
  if (following && !document.hidden) unread = 0;
  page.jump.hidden = following;
  page.jump.textContent = unread ? `New messages: ${unread}` : "To the end";
  document.title = (unread ? `(${unread}) ` : "") + TITLE;
  showNames();
  pause = Math.min(Math.max(MIN_PAUSE, 20 * (performance.now() - began)), MAX_PAUSE);
}

function follow(isAsked = following) {  // after rows or the page's size have changed
  following = isAsked;
  if (following) log.scrollTop = log.scrollHeight;
  [place, end] = [log.scrollTop, log.lastChild];
}

function showNames() {
  const count = others.reduce((sum, one) => sum + parseInt(one), names.size);
  page.count.textContent = count ? `${count} here` : "Nobody yet";
  box.placeholder = me ? `Message as ${me}` : "Message";
  if (!page.who.open || page.list.contains(document.activeElement)) return;  // no focus is lost
  const sorted = [...names].sort(new Intl.Collator([], { numeric: true }).compare);
  const items = sorted.map((name) => name === me ? make("span", "", inColor(name), " (you)")
    : make("button", "", inColor(name)));
  items.push(...others.map((count) => make("span", "", count)));
  page.list.replaceChildren(...items.map((item) => make("li", "", item)));
}

function report(text, canConnect = false) {
  (page.room.hidden ? page.why : page.state).textContent = text;
  page.again.hidden = !canConnect;
  page.offline.className = text && "on";
}

function enter(isIn) {  // the room, or goes back to the door
  page.door.hidden = isIn;
  page.room.hidden = !isIn;
  report("");
  (isIn ? box : page.lock.hidden ? page.nick : page.secret).focus();
}

function turnAway(why) {
  hangUp();
  page.lock.hidden = !/password/.test(why);
  enter(false);
  report(why);
}

function hangUp() {
  clearTimeout(retry);
  clearInterval(pulse);
  if (socket) socket.onmessage = socket.onclose = null;
  if (socket) socket.close();
  for (const { row } of sent) if (row) mark(row, "perhaps not sent");
  [socket, inRoom, isReady, retry] = [null, false, false, 0];
  [me, names, others, sent] = ["", new Set(), [], []];
  showNames();
}

function connect() {
  hangUp();
  report("Connecting\u2026");
  silence = 0;
  pulse = setInterval(listen, 1000);
  socket = new WebSocket((location.origin + location.pathname).replace("http", "ws"));
  socket.onmessage = ({ data }) => receive(data.split("\n").slice(0, -1));
  socket.onclose = lose;
}

function lose({ code }) {
  if (inRoom) lostAt = Date.now() - 1000 * silence;
  hangUp();
  if (code === 1000) return report("You have left.", true);
  if (code === 1008) return page.room.hidden || report("You were removed from the room.");
  const seconds = wait * (0.5 + Math.random() / 2);  // not all pages in the same moment
  wait = Math.min(2 * wait, MAX_WAIT);
  retry = setTimeout(connect, 1000 * seconds);
  const what = code === 1013 ? "The room is full." : "Not connected.";
  report(`${what} Next try in ${Math.ceil(seconds)} s; what you type is kept.`, true);
}

function listen() {  // each second, but not while a page sleeps: then it couldn't have heard
  silence += 1;
  const isAwaited = !inRoom || sent.length;
  if (isAwaited && silence >= LOST_AFTER) lose({ code: 1006 });  // without a close
  else if (!isAwaited && silence >= ASK_AFTER) send(page.who.open ? "/who" : "/ping");
}

function wake() {  // whoever was away, such as a phone, may have lost the connection meanwhile
  if (retry) return connect();
  silence = Math.max(silence, LOST_AFTER - PATIENCE);
  if (inRoom) send("/ping");
}

function receive(lines) {
  const wasIn = inRoom, history = [];
  silence = 0;
  for (const line of lines) {
    if (wasIn || !inRoom || line.startsWith("* ")) hear(line);
    else history.push(line);
    if (!socket) return;
  }
  if (inRoom && !wasIn) catchUp(history.slice(-MAX_ROWS));
  settling = settling || setTimeout(settle, pause);
}

function catchUp(history) {  // shows what of it hasn't been shown before a connection was lost
  const lines = (kind) => shown.filter((row) => row.kind.startsWith(kind)).map(asLine);
  const mine = new Set(lines("own")), missed = history.filter((line) => !mine.has(line));
  const known = countKnown(missed, lines("said"));
  const gap = `Not connected from ${clock(lostAt, 8)} to ${clock(Date.now(), 8)}`;
  if (lostAt) show("gap", known ? gap : `${gap}; messages may be missing`);
  lostAt = 0;
  // They get no time, which nobody knows, and no color: others may have had these names then.
  for (const line of missed.slice(known)) show("said", line, "", 0);
}

function countKnown(history, said) {  // up to where most of what was said last stands in it
  let known = 0, most = 0;
  for (let end = 1; end <= history.length; end++) {
    const max = Math.min(end, said.length);
    let size = 0;
    while (size < max && history[end - 1 - size] === said[said.length - 1 - size]) size += 1;
    if (size === max && size > most) [known, most] = [end, size];
  }
  return known;
}

function hear(line) {
  const [, speaker, isPrivate, text] = /^([^:]*?)( \(private\))?: (.*)$/s.exec(line) || [];
  const kind = isPrivate ? "private" : mention.test(text || line) ? "said mention" : "said";
  if (line.startsWith("* ") && inRoom) hearNotice(line.slice(2));
  else if (line === "* password?" && password) socket.send(password);
  else if (line === "* password?") turnAway("This room has a password.");  // nobody waits for it
  else if (line === "* wrong password") turnAway("That is not the password.");
  else if (line.startsWith("* ")) report(line.slice(2));
  else if (!inRoom) begin(line);  // the welcome
  else if (ignored.has(fold(speaker))) return;
  else if (names.has(speaker)) show(kind, text, speaker);
  else show(kind, line);  // such as "Note: buy milk" from somebody without a name
}

function begin(welcome) {
  [inRoom, wait] = [true, FIRST_WAIT];
  if (!lostAt) show("notice", welcome);
  if (wanted) send(`/name ${wanted}`);
  send("/who");
  if (!wanted) beKnown();
}

function beKnown() {
  isReady = true;
  report("");
  if (page.room.hidden) enter(true);
  if (isDue) speak();
}

function hearNotice(text) {
  const [{ line = "", row } = {}] = sent;  // answers come in order, so this is what any is for
  const [isNews, name, joined, now] = NEWS.exec(text) || [], asksName = NAME.test(line);
  const [, ownName] = /^you are (.+)$/.exec(text) || [];
  let isShown = true;  // but not the answer to what the page itself has asked
  if (text === "pong") isShown = sent.shift() && row && PING.test(line);
  else if (text === "bye") sent.shift();
  else if (isNews) hearNews(name, joined, now);
  else if (asksName && ownName) isShown = takeName(ownName, row);
  else if (asksName && !row) isShown = hearRefusal(line.slice(6), text);
  else if (WHO.test(line) && text.startsWith("here: ")) isShown = hearNames(text.slice(6)) || row;
  else if (row && !/^the room is closing$|^you were removed/.test(text)) refuse(line, row);
  if (isShown) show("notice", text);
}

function hearNews(name, joined, now) {
  const isFree = fold(name) === fold(wanted) && ![fold(me), fold(now)].includes(fold(wanted));
  const wasHere = names.delete(name);
  if (joined) names.add(name);
  if (wasHere && now) names.add(now);
  if (now && ignored.delete(fold(name))) ignored.set(fold(now), now);
  if (isFree && isReady && !joined) send(`/name ${wanted}`);
}

function hearNames(text) {
  const all = text.split(/, | and (?=\d+ unnamed$)/);
  others = all.filter((one) => /^\d+ (?:more|unnamed)$/.test(one));
  names = new Set(all.filter((one) => !others.includes(one)));
}

function takeName(name, row) {
  names.delete(me);
  names.add(me = name);
  if (row) remember(name);
  if (!isReady) beKnown();
  return row || fold(name) !== fold(wanted);
}

function hearRefusal(name, text) {
  const another = [...name].slice(0, 31).join("") + "_";
  if (me) return false;  // our own name was free again, and somebody else was faster
  if (text.endsWith(" is taken") && another !== name) send(`/name ${another}`);
  else turnAway(text.replace(": /name NAME", ""));
  return inRoom;
}

function refuse(line, row) {  // marks what the room didn't take, and gives it back
  if (NEVER_REFUSED.test(line) || row.mark) return;
  const at = box.value.length;
  mark(row, "not sent");
  box.setRangeText(at ? `\n${line}` : line, at, at, at ? "preserve" : "end");
  box.oninput();
}

function remember(name) {
  const asText = name.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), letter = "\\p{Lu}\\p{Ll}\\p{N}";
  wanted = name;
  mention = name ? new RegExp(`(?:^|[^${letter}])${asText}(?![${letter}])`, "iu") : /$^/;
  keep("localStorage", name);
}

function save() {  // for a reload, also by a phone that needed the memory
  const rows = shown.slice(-MAX_KEPT).map(({ words, ...row }) => row);
  const state = { name: wanted, password, rows, lostAt: lostAt || Date.now(), draft: box.value };
  const isIn = !page.room.hidden && (socket || retry);
  keep("sessionStorage", isIn ? JSON.stringify(state) : "");
}

function restore({ name, rows, draft, ...state }) {
  ({ password, lostAt } = state);
  remember(name);
  for (const row of rows) mark(show(row.kind, row.text, row.speaker, row.time), row.mark);
  enter(true);
  write(draft);
  connect();
}

function send(line, row) {
  socket.send(line);
  if (!PING.test(line)) socket.send("/ping");  // the answer shows that the line has arrived
  sent.push({ line, row });
}

function speak() {
  const lines = box.value.split(/\r\n?|\n/).filter((line) => line.trim());
  const label = lines.length > MAX_PASTED ? `Send ${lines.length} lines` : "Send";
  isDue = !isReady;  // then it is sent later, unless it is changed meanwhile
  if (isDue || !lines.length) return;
  if (page.say.innerText !== label) {  // a question, which Enter answers
    page.say.innerText = label;
    return page.say.focus();
  }
  const [isPrivate, to] = PRIVATE.exec(lines[0]) || [], alone = lines.length === 1;
  if (isPrivate) lines.forEach((line, at) => command(at ? `/msg ${to}: ${line}` : line));
  else if (alone && COMMAND.test(lines[0])) command(lines[0]);  // none in a paste
  else for (const line of lines) {
    const isEscaped = line.startsWith("//") && alone, text = isEscaped ? line.slice(1) : line;
    send(text.startsWith("/") ? `/${text}` : text, show("own", text, me));
  }
  if (!OP.test(box.value)) typed.push(box.value);
  recalled = typed.length;
  write("");
  settle(true);
}

function command(line) {
  const [head, word] = COMMAND.exec(line), rest = line.slice(head.length);
  const asked = `/${word.toLowerCase()} ${rest}`.trim(), [whole, to] = PRIVATE.exec(asked) || [];
  if (asked === "/help") show("notice", "/ignore NAME: hide what NAME says, or show it again");
  if (/^\/ignore\b/.test(asked)) show("notice", ignore(rest));
  else if (to && asked !== whole) send(asked, show("own private", asked.slice(whole.length), to));
  else send(asked, show("own command", asked.replace(/^(\/op\S*) .*/, "$1 \u2026")));
}

function ignore(name) {
  if (!name) return `ignored: ${[...ignored.values()].join(", ") || "nobody"}`;
  if (ignored.delete(fold(name))) return `what ${name} says is shown again`;
  ignored.set(fold(name), name);
  return `what ${name} says is hidden; /ignore ${name} shows it again`;
}

function write(text) {
  box.value = text;
  box.oninput();
  box.focus();
}

function complete() {  // the name before the cursor; false if there is none
  const words = box.value.slice(0, box.selectionEnd).split(" ");
  for (; !completions.length && words.join(""); words.shift()) {
    const part = words.join(" "), fits = (name) => fold(name).startsWith(fold(part));
    start = box.selectionEnd - part.length;
    const after = /^(?:\/msg )?$/.test(box.value.slice(0, start)) ? ": " : " ";
    completions = [...names].filter(fits).map((name) => name + after);
  }
  if (!completions.length) return false;
  const [next, ...later] = completions;
  box.setRangeText(next, start, box.selectionEnd, "end");
  box.oninput();
  completions = [...later, next];
}

function recall(key) {  // what was sent before, or after that; false if the user has typed
  const next = key === "ArrowUp" ? recalled - 1 : recalled + 1;
  if (box.value !== (typed[recalled] || "") || next < 0 || next > typed.length) return false;
  recalled = next;
  write(typed[next] || "");
}

page.door.onsubmit = (event) => {
  event.preventDefault();
  remember(page.nick.value.trim());
  if (!page.lock.hidden) password = page.secret.value;
  page.secret.value = "";
  connect();
};
page.say.onclick = speak;
box.onkeydown = (event) => {
  const act = { Enter: speak, Tab: complete, ArrowUp: recall, ArrowDown: recall }[event.key];
  isShifted = event.shiftKey;
  if (!act || isShifted || event.isComposing || event.keyCode === 229) return;
  if (act(event.key) !== false) event.preventDefault();
};
box.onkeyup = (event) => { isShifted = event.shiftKey; };
box.onbeforeinput = (event) => {  // Enter, when what was being composed was left as it is
  if (event.inputType !== "insertLineBreak" || isShifted) return;
  event.preventDefault();
  speak();
};
box.oninput = () => {
  [isDue, completions] = [false, []];
  page.say.innerText = "Send";
  box.className = PRIVATE.test(box.value) ? "private" : "";
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
  follow();  // measuring has made the box small, and so the log large, for a moment
};
page.jump.onclick = () => {
  settle(true);
  log.focus();
};
log.onscroll = () => {  // not by the user if it ends where the page has put itself
  const moved = log.scrollTop - place;
  if (Math.abs(moved) < 1) return;
  place += moved;
  // Rows that have come since then don't count. A browser moves a log that grows, too, but no
  // further up than where its end is in sight.
  const [was, is] = [end, log.lastChild].map((row) => row ? row.getBoundingClientRect().bottom : 0);
  const below = log.scrollHeight - log.clientHeight - log.scrollTop - (is - was);
  following = below < (moved < 0 ? 2 : 40);
  if (following) settle();
};
log.oncopy = (event) => {  // a message a line, where browsers copy paragraphs
  event.clipboardData.setData("text/plain", `${getSelection()}`.replace(/\n+/g, "\n"));
  event.preventDefault();
};
new ResizeObserver(() => follow()).observe(log);  // such as by a phone's keyboard
page.who.ontoggle = () => {
  showNames();
  if (page.who.open && isReady) send("/who");  // the unnamed come in silence
};
page.again.onclick = connect;
WIDE.onchange = () => { page.who.open = WIDE.matches; };
document.onclick = ({ target }) => {  // whoever touches a name writes to that one alone
  const name = (target.closest("#log b, #list button") || {}).innerText;
  if (name && name !== me) write(`/msg ${name}: ${box.value.replace(PRIVATE, "")}`);
  if (!target.closest("#count, #list span")) page.who.open = WIDE.matches;
};
document.onkeydown = ({ key }) => {
  if (key === "Escape") page.who.open = WIDE.matches;
  if (key === "End" && document.activeElement === log) settle(true);
};
window.ononline = window.onpageshow = wake;
window.onpagehide = save;
document.onvisibilitychange = () => {
  if (document.hidden) return save();
  settle();
  wake();
};

for (const heading of document.querySelectorAll("h1")) heading.textContent = TITLE;
page.who.open = WIDE.matches;
page.nick.value = keep("localStorage");
show("hint", "Touch a name to write to that one alone; /help lists what else you can say.", "", 0);
if (keep("sessionStorage")) restore(JSON.parse(keep("sessionStorage")));
else page.nick.focus();
settle();
"""

PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover,
  interactive-widget=resizes-content">
<title>Chat</title>
<link rel="icon" href="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'
  viewBox='0 0 16 16'><path fill='%230b57d0' d='M1 2h14v9H8l-4 4v-4H1z'/></svg>">
<style>{STYLE}</style>
<form id="door">
  <h1></h1>
  <p id="why" role="alert"></p>
  <label>Your name, if you want one
    <input id="nick" maxlength="32" autocomplete="nickname"></label>
  <label id="lock" hidden>The room's password
    <input id="secret" type="password" autocomplete="current-password"></label>
  <button>Join</button>
  <noscript>Without JavaScript this page can't do anything.</noscript>
</form>
<main id="room" hidden>
  <h1></h1>
  <details id="who"><summary id="count"></summary><ul id="list"></ul></details>
  <div id="log" role="log" aria-live="polite" aria-label="Messages" tabindex="0"></div>
  <button id="jump" hidden></button>
  <div id="offline"><p id="state" role="status"></p>
    <button id="again" hidden>Connect now</button></div>
  <div id="form"><textarea id="box" rows="1" dir="auto" aria-label="Message"
    enterkeyhint="send"></textarea><button id="say">Send</button></div>
</main>
<script>{SCRIPT}</script>
"""


# --- Browsers: HTTP -------------------------------------------------------------------------------

# The same for a short text: a title, STYLE, and the text.
NOTE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s</title>
<link rel="icon" href="data:,">
<style>%s</style>
<main id="door"><p>%s</p></main>
</html>
"""

MAX_REQUEST = 8 * 1024  # bytes
REASONS = {  # those of http.HTTPStatus, which Debian's python3-minimal lacks
    101: "Switching Protocols",
    200: "OK",
    307: "Temporary Redirect",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
}

# A request without a body (RFC 9112, RFC 9110), its whole syntax: nothing else gets any further.
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
FIELD = re.compile(rf"({TOKEN}):([\t -~\x80-\xff]*)\r?\n")
REQUEST = re.compile(rf"({TOKEN}) ([!-~]+) HTTP/1\.[0-9]\r?\n((?:{FIELD.pattern})*)\r?\n")
REQUEST_END = re.compile(rb"\n\r?\n")
# The Host of a request, in lower case: an IPv6 address, an IPv4 address or a name, which may end
# with a dot; and perhaps a port.
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+?)\.?(?::[0-9]*)?")
# Names that can't be anybody else's: an address (no name in the DNS ends with a number), one
# without a dot, and those that nobody outside can have in the DNS (RFC 6762, RFC 6761, RFC 8375),
# or that nobody uses there.
LOCAL_NAME = re.compile(r"\[.+|[0-9.]+|[^.]+|.+\.(?:local|localhost|internal|home\.arpa|lan)")
NOT_IN_ORIGIN = re.compile(r"[^\w:/.\[\]-]", re.ASCII)
MAX_SHOWN = 100  # characters of an Origin, or a Host, that are shown

WEBSOCKET_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
WEBSOCKET_ID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")
# What every page comes with: nobody guesses at its type, keeps it, is told of it, or embeds it.
HARDENING = (
    "X-Content-Type-Options: nosniff",
    "Cache-Control: no-store",
    "Referrer-Policy: no-referrer",
    "Cross-Origin-Resource-Policy: same-origin",
)

# RFC 6455 asks for SHA-1, but not for its strength: strict systems want to hear that.
if sys.version_info >= (3, 9):
    sha1 = partial(hashlib.sha1, usedforsecurity=False)
else:
    sha1 = hashlib.sha1


class Refusal(Exception):
    """A request isn't granted; the text says why, on a page and in the log."""

    def __init__(self, status: int, why: str, *fields: str) -> None:
        super().__init__(why)
        self.status = status
        self.fields = fields  # what the response's header needs besides


class HTTPRequest(NamedTuple):
    """A request that is well formed."""

    method: str
    target: str  # the path, and the query if there is one
    host: str  # a name or an address, perhaps with a port, in lower case
    name: str  # the same without the port, and without the dot that may end it
    fields: dict[str, str]  # by names in lower case; one that comes twice is "value, value"


class Answer(NamedTuple):
    """What a request comes to."""

    status: int  # after 101 the connection is a WebSocket
    data: bytes  # the whole response
    why: str  # why it was refused, for the log; empty if it wasn't


def is_http(data: bytes) -> bool:
    """Says whether a peer's first bytes are an HTTP request, or may become one."""
    line, newline, _ = data.partition(b"\n")
    return b" HTTP/" in line if newline else line[:1].isalpha()


def parse_request(data: bytes) -> HTTPRequest:
    """Returns the request that these bytes are. Raises Refusal."""
    if len(data) > MAX_REQUEST:
        raise Refusal(431, "This request is too long.")
    request = REQUEST.fullmatch(data.decode("latin-1"))
    if not request:
        raise Refusal(400, "This is not a proper request.")
    method, target, lines = request.group(1, 2, 3)
    fields: dict[str, str] = {}
    for name, value in FIELD.findall(lines):
        name, value = name.lower(), value.strip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    host = fields.get("host", "").lower()
    authority = AUTHORITY.fullmatch(host)
    if not authority:
        raise Refusal(400, "This request has no proper Host.")
    return HTTPRequest(method, target, host, authority[1], fields)


def upgrade(fields: dict[str, str]) -> bytes:
    """Returns the response that makes a WebSocket of the connection (RFC 6455, section 4.2), from
    the fields of the request. Raises Refusal."""
    protocol, connection = fields.get("upgrade", ""), fields.get("connection", "")
    is_upgrade = protocol.lower() == "websocket" and "upgrade" in connection.lower()
    if not is_upgrade or fields.get("sec-websocket-version") != "13":
        why = "This asks for no WebSocket of version 13; a proxy on the way may have changed it."
        raise Refusal(426, why, *UPGRADE, "Sec-WebSocket-Version: 13")
    key = fields["sec-websocket-key"]
    if not WEBSOCKET_KEY.fullmatch(key):
        raise Refusal(400, "This request has no proper Sec-WebSocket-Key.")
    accept = b64encode(sha1((key + WEBSOCKET_ID).encode()).digest()).decode()
    return head(101, *UPGRADE, f"Sec-WebSocket-Accept: {accept}")


def head(status: int, *fields: str) -> bytes:
    """Returns the head of a response with these fields."""
    return "\r\n".join((f"HTTP/1.1 {status} {REASONS[status]}", *fields, "\r\n")).encode()


def response(request: bytes, status: int, page: bytes, policy: str, *fields: str) -> bytes:
    """Returns the response to a request: a page, or only its head if just that was asked for."""
    start = head(
        status,
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        "Connection: close",
        "Content-Type: text/html; charset=utf-8",
        f"Content-Length: {len(page)}",
        f"Content-Security-Policy: {policy}",
        *HARDENING,
        *fields,
    )
    return start if request.startswith(b"HEAD ") else start + page


def name_in_url(host: str) -> str:
    """Returns a host's name as browsers write it: in IDNA, lower case, with no dot at its end."""
    with suppress(UnicodeError):
        host = host.encode("idna").decode()
    return host.lower().rstrip(".")


def digest(text: str) -> str:
    """Returns how a content security policy names a script or a style."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class Site:
    """The page, and what of HTTP is around it (RFC 9112). No I/O.

    A web page from anywhere can have a browser ask us for something. Two checks see to it that only
    our own page gets to the room: the page's Origin must be where it asks; and that, the Host, must
    be a name that is ours, because a name of somebody else can lead to our address too.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        secure: bool,
        port: int = WEB_PORT,
        url: str = "",
        room_port: int = PORT,
    ) -> None:
        """`hosts` are names that Host may have besides those that can't be anybody else's; under
        TLS (`secure`), the certificate decides on that, and it may be any. Browsers come to `port`,
        most of them by `url`, others find the room at `room_port`."""
        self.port = port
        self.for_browsers = f"for browsers, the room is at {url}"  # who have come to the other port
        self.for_others = f"this port is for browsers; the room is on port {room_port}"
        self.hosts = {name_in_url(host) for host in (socket.gethostname(), *hosts)}
        self.secure = secure
        # Ports that are left out of an Origin. TLS may also end at a proxy.
        self.default_ports = {"https": ":443"} if secure else {"https": ":443", "http": ":80"}
        self.page = PAGE.encode()
        self.policy = (
            f"default-src 'none'; script-src {digest(SCRIPT)}; style-src {digest(STYLE)}; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'; connect-src 'self'"
        )

    def is_whole(self, request: bytes) -> bool:
        """Says whether a request can be answered: it is complete, or too long."""
        return bool(REQUEST_END.search(request)) or len(request) > MAX_REQUEST

    def respond(self, data: bytes, encrypted: bool) -> Answer:
        """Answers a request, which is all that has come, through TLS or not."""
        try:
            request = parse_request(data)
            self.check(request, encrypted)
            if request.method == "GET" and "sec-websocket-key" in request.fields:
                return Answer(101, upgrade(request.fields), "")
            # Safari before version 16 doesn't take a WebSocket for 'self'. What can't be named like
            # this, an IPv6 address, is ignored.
            policy = f"{self.policy} ws://{request.host} wss://{request.host}"
            return Answer(200, response(data, 200, self.page, policy), "")
        except Refusal as refusal:
            status, why = refusal.status, str(refusal)
            note = NOTE % (f"{status} {REASONS[status]}", STYLE, why)
            page = response(data, status, note.encode(), self.policy, *refusal.fields)
            return Answer(status, page, why)

    def check(self, request: HTTPRequest, encrypted: bool) -> None:
        """Raises Refusal unless it comes to us, from a page of ours, and asks for the page."""
        if self.secure and not encrypted:
            raise Refusal(307, "This room is at https.", f"Location: https://{request.host}/")
        name = request.name
        if not (self.secure or name in self.hosts or LOCAL_NAME.fullmatch(name)):
            shown = name[:MAX_SHOWN]
            remedy = f"Whoever runs it can add that: --web-host {shown}"
            raise Refusal(421, f"This room does not go by the name {shown}. {remedy}")
        self.check_origin(request.host, request.fields.get("origin"))
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, "There is only a page to get here.", "Allow: GET, HEAD")
        if request.target.partition("?")[0] != "/":
            raise Refusal(404, "There is nothing here; the room is at /.")

    def check_origin(self, host: str, origin: str | None) -> None:
        """Raises Refusal if a page from elsewhere asks. Only programs don't say where from."""
        if origin is None:
            return
        scheme, _, authority = origin.lower().partition("://")
        port = self.default_ports.get(scheme)
        if not port or host not in (authority, authority + port):
            shown = NOT_IN_ORIGIN.sub("?", origin[:MAX_SHOWN])
            raise Refusal(403, f"This room is only for its own page, not for one of {shown}.")


# --- Text and names ------------------------------------------------------------------------------

# Control characters but tab and newline: those of ASCII, and U+0080 to U+009F, which some terminals
# take for the beginning of an escape sequence.
CONTROLS = bytes(c for c in (*range(32), 127) if c not in b"\t\n")
C1_CONTROL = re.compile(rb"\xc2[\x80-\x9f]")
LINE_SEPARATOR = re.compile(rb"\xe2\x80[\xa8\xa9]")  # U+2028, U+2029: a new line on some screens
ERASERS = "\b\x7f\x15"  # Backspace and Delete take back a character, Ctrl-U the line
CLEANING = dict.fromkeys(c for c in (*CONTROLS, *range(0x80, 0xA0)) if chr(c) not in ERASERS)
CLEANING.update({0x2028: " ", 0x2029: " "})

# The start of a line that has to be looked at, if its speaker has no name; and the end of one that
# may have nothing in it but its speaker's name.
COMMAND_OR_NOTICE = re.compile(rb"\n[ \t]*[/*\n]")
NOTHING_SAID = re.compile(rb": [ \t]*\n")

# What can be a mistyped /op, with an operator's password behind it, in a line that is to be said:
# after a blank, a speaker's name, in capitals. And what such a line has in it, in either width.
MISTYPED_OP = re.compile(r"(?:[^:]*:)? */ ?op(?!\w)", re.IGNORECASE)
SLASH = re.compile("[/\uff0f]")
SLASHES = tuple(slash.encode() for slash in "/\uff0f")

# What terminals show as nothing at all, or as a blank, although Unicode counts it as printable: all
# that is ignorable by default (DerivedCoreProperties.txt), the blank Braille pattern, and a note
# without a head.
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159"
    "\U000e0100-\U000e01ef]"
)
BLANK = re.compile("[\u115f\u1160\u2800\u3164\uffa0]")  # those that are a blank on some screens
# Vowels and finals of Korean syllables: without a consonant to join, they have no width.
JAMO = re.compile("[\u1160-\u11ff\ud7b0-\ud7ff]")
# What turns the rest of a line around.
DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# What looks like a colon or an asterisk on a screen. From Unicode's confusables.txt, and by name.
COLON = re.compile(
    "[:\u02d0\u02d1\u02f8\u0589\u05c3\u0703\u0704\u0706-\u0709\u1361\u1365\u1366\u16ec\u1803\u1804"
    "\u1809\u205a\u205d\u2236\u2237\u2982\u2a74\u2af6\u2d7f\ua4fd\ua6f4\ua789\ufe13\ufe30\ufe55"
    "\uff1a\U00010781\U0001da8a]"
)
ASTERISK = re.compile(
    "[*\u066d\u204e\u2051\u2055\u2217\u229b\u22c6\u26b9\u2722-\u2725\u2731-\u2733\u273a-\u273d"
    "\u2743\u2749-\u274b\ua673\ufe61\uff0a\U0001031f\U0001f7af-\U0001f7bf]"
)
# Cyrillic and Greek letters, after case folding, that look like a Latin one in either case.
LATIN_LOOKS = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0451\u0455\u0456"
    "\u0457\u0458\u04bb\u04cf\u0501\u051b\u051d\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc"
    "\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7",
    "abekmhopctyx\u00ebsi\u00efjhldqwabezhikmnoptyx",
)


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
    """Returns the text as it is after all its Backspace, Delete and Ctrl-U. Where telnet sends each
    key at once, they are keys like any other."""
    if not any(eraser in text for eraser in ERASERS):
        return text
    kept: list[str] = []
    for char in text:
        if char not in ERASERS:
            kept.append(char)
        elif char == "\x15":
            kept.clear()
        elif kept:
            kept.pop()
    return "".join(kept)


def typed(line: bytes) -> bytes:
    """Returns a line without its end and what was taken back. It need not be UTF-8."""
    text = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    return take_back(text).encode("utf-8", "surrogateescape")


def notice(text: str) -> bytes:
    """Returns the line with which the room itself says something. Clients take it at its word, so
    of what members choose nothing but a name may stand in one."""
    return f"* {text}\n".encode()


def beginning(text: str) -> int:
    """Returns where a text begins on a screen: before that are blanks, and what has no width there,
    such as accents with no letter to stand on."""
    for at, char in enumerate(text):
        shows = char.isprintable() and char != " " and not INVISIBLE.match(char)
        if shows and not unicodedata.category(char).startswith("M") and not JAMO.match(char):
            return at
    return len(text)


def compatible(text: str) -> str:
    """Returns the beginning of a text, long enough for a name, in its compatible form (NFKC)."""
    letters = unicodedata.normalize("NFKC", text[:MAX_NAME])
    if len(letters) < MAX_NAME_SOURCE:  # else they are long already: one can become 18, slowly
        letters = unicodedata.normalize("NFKC", text[:MAX_NAME_SOURCE])
    return letters[:MAX_NAME_SOURCE]


def visible(text: str) -> str:
    """Returns what the beginning of a text looks like on a screen: every space as a space, what
    shows nothing left out, letters in their compatible form."""
    if text.isascii() and text.isprintable():
        return text.lstrip()[:MAX_NAME_SOURCE]
    text = INVISIBLE.sub("", text[beginning(text) :])
    spaced = (" " if char.isspace() else char for char in text)
    shown = "".join(islice(filter(str.isprintable, spaced), MAX_NAME_SOURCE))  # a line can be long
    return JAMO.sub("", compatible(shown))


def fold(shown: str) -> str:
    """Returns what all texts have in common that look, or read, like this visible one."""
    folded = visible(shown.casefold())
    return ASTERISK.sub("*", folded.translate(LATIN_LOOKS)).strip()


def identity(name: str) -> str:
    """Returns what all ways to write a name have in common: John, JOHN, or in fullwidth letters."""
    return fold(visible(name))


def alphabets(text: str) -> set[str]:
    """Returns the alphabets of the letters in a text: LATIN, GREEK, CYRILLIC, ..."""
    return {unicodedata.name(char, "").partition(" ")[0] for char in text if char.isalpha()}


def valid_name(text: str) -> str:
    """Returns the name as the room writes it. Raises ValueError: what a name has to be."""
    name = compatible(text).strip()
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"has 1 to {MAX_NAME} characters")
    if COLON.search(name) or name != visible(name):
        raise ValueError("has no colon and nothing invisible in it")
    if ASTERISK.match(name) or name.startswith("/"):
        raise ValueError("does not begin with an asterisk or a slash")
    if identity(name).endswith(PRIVATE.strip()):
        raise ValueError("does not end like the mark of a private message")
    if "LATIN" in alphabets(name) and alphabets(name) & {"CYRILLIC", "GREEK"}:
        raise ValueError("does not mix Latin letters with Greek or Cyrillic ones, which look alike")
    return name


# --- The room ------------------------------------------------------------------------------------

ALIASES = {"/nick": "/name", "/names": "/who", "/exit": "/quit"}  # what people know from elsewhere
HELP = (
    "/name NAME: be known as NAME",
    "/who: who is here?",
    "/msg NAME: TEXT: a message for NAME alone",
    "/ping: has this been heard?",
    "/quit: leave",
    "//TEXT: the message /TEXT",
    "any other line is a message for everyone here",
)


class Member:
    """Somebody in the room."""

    __slots__ = ("name", "prefix", "sending", "silent", "unread", "warned", "whispered")

    def __init__(self) -> None:
        self.name = ""  # none taken
        self.prefix = b""  # what each of its messages begins with once it has a name: b"John: "
        self.sending = True  # it can still be sent to
        self.silent = True  # has not said a word yet
        # What was for it alone and it hasn't taken yet, as in a batch's `told` and `whispered`: the
        # answers to what it said, and what others said to it. It can help only the first.
        self.unread = 0
        self.whispered = 0
        self.warned = False  # it was told that only the room begins a line as the room does


class Batch:
    """What is said in one turn of the loop, in order; everyone is handed the same bytes.

    A member for whom something differs has cuts: (start, end, instead) means that in place of
    the bytes from start to end it gets `instead`. What it said itself is cut out, an answer is put
    in where it asked, and a newcomer has its welcome in place of all that was said before.

    A batch lives for as long as somebody has yet to get something of it. What a member gets of it
    is made when it is sent, so that a thousand who wait hold a thousand references and no bytes.
    """

    __slots__ = ("cuts", "frame", "leavers", "parts", "size", "text", "told", "weight", "whispered")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0  # bytes of the parts
        self.weight = 0  # what the turn costs: bytes said and answered, and the work of each piece
        self.cuts: dict[Member, list[tuple[int, int, bytes]]] = {}
        # Bytes for one member alone, and what these cost besides: answers, and what others said.
        self.told: dict[Member, int] = {}
        self.whispered: dict[Member, int] = {}
        self.leavers: list[Member] = []  # have left in this turn, and get what came before
        self.text = b""  # all that was said, once the batch is sealed
        self.frame = b""  # the same for browsers, once one of them is handed it

    def say(self, data: bytes, but: Member | None) -> None:
        """Puts whole lines at the end, for all but one, such as their author."""
        start = self.size
        self.parts.append(data)
        self.size += len(data)
        self.weight += len(data) + ITEM_WEIGHT
        if but is not None:
            self.cut(but, start, self.size, b"")

    def tell(self, member: Member, data: bytes) -> None:
        """Puts whole lines at the end, for one member alone: an answer to what it said."""
        self.put_aside(member, data, self.told)

    def whisper(self, member: Member, data: bytes) -> None:
        """The same for what another member says to it."""
        self.put_aside(member, data, self.whispered)

    def put_aside(self, member: Member, data: bytes, counted: dict[Member, int]) -> None:
        """Puts whole lines at the end for one member, unless that has gone already: then what it
        had said before is heard no later for the answers."""
        self.weight += len(data) + ITEM_WEIGHT
        if not member.sending:
            return
        counted[member] = counted.get(member, TOLD_COST) + len(data) + ITEM_WEIGHT
        self.cut(member, self.size, self.size, data)

    def begin(self, member: Member, welcome: Iterable[bytes]) -> None:
        """A newcomer gets the pieces of its welcome, and then what is said from here on."""
        self.cut(member, 0, self.size, b"")
        for piece in welcome:
            self.cut(member, self.size, self.size, piece)

    def end(self, member: Member) -> None:
        """A leaver gets nothing of what is said from here on."""
        self.cut(member, self.size, sys.maxsize, b"")
        self.leavers.append(member)

    def cut(self, member: Member, start: int, end: int, instead: bytes) -> None:
        """Gives one member something else in place of a stretch; later ones lie further on."""
        self.cuts.setdefault(member, []).append((start, end, instead))

    def seal(self) -> None:
        """Ends the turn: nothing is said in this batch any more, and it can be handed out."""
        self.text = b"".join(self.parts)  # a single part, as in a quiet room, is not copied
        self.parts = []

    def text_for(self, member: Member) -> bytes:
        """Returns what a member gets: the text less its cuts; without any, the text itself."""
        if member not in self.cuts:
            return self.text
        pieces: list[bytes] = []
        at = 0
        for start, end, instead in self.cuts[member]:
            pieces += (self.text[at:start], instead)
            at = end
        return b"".join((*pieces, self.text[at:]))

    def frame_for(self, member: Member) -> bytes:
        """Returns the same in a frame of a WebSocket, as a browser gets it."""
        if member in self.cuts:
            text = self.text_for(member)
            return frame(TEXT, text) if text else b""
        if self.text and not self.frame:
            self.frame = frame(TEXT, self.text)
        return self.frame

    def forget(self, member: Member) -> tuple[int, int]:
        """Drops what is in here for a member that has got its part, or never will; returns how much
        it was told and whispered. Others may hold the batch for much longer."""
        self.cuts.pop(member, None)
        return self.told.pop(member, 0), self.whispered.pop(member, 0)


class Aside(Batch):
    """What isn't text, but stands between two lines, and goes out as it is: answers to telnet,
    responses to HTTP requests, and a browser's control frames."""

    __slots__ = ()

    def frame_for(self, member: Member) -> bytes:
        return self.text_for(member)


class History:
    """The last messages, for newcomers: at most `count`, and at most MAX_HISTORY bytes.

    It keeps them in blocks of some kilobytes, each of whole lines, and newcomers get references to
    these: they share them, however many come and however slowly they read.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.blocks: deque[tuple[bytes, int]] = deque()  # and how many lines are in each
        self.size = 0  # bytes in the blocks
        self.lines = 0  # in the blocks: more than `count` by less than a block

    def add(self, chunk: bytes) -> None:
        """Takes whole lines, or none."""
        if not (self.count and chunk):
            return
        while chunk:
            block = b""
            if self.blocks and len(self.blocks[-1][0]) < HISTORY_BLOCK:
                block, lines = self.blocks.pop()
                self.lines -= lines
            end = chunk.find(b"\n", min(HISTORY_BLOCK, len(chunk)) - 1) + 1
            block, chunk = block + chunk[:end], chunk[end:]
            lines = block.count(b"\n")
            self.blocks.append((block, lines))
            self.size += end
            self.lines += lines
        block, lines = self.blocks[0]
        while self.lines - lines >= self.count or self.size - len(block) >= MAX_HISTORY:
            self.blocks.popleft()  # there is enough without it
            self.size -= len(block)
            self.lines -= lines
            block, lines = self.blocks[0]

    def pieces(self) -> list[bytes]:
        """Returns the messages, whole lines, in pieces that all newcomers share."""
        pieces = [block for block, _ in self.blocks]
        if pieces:  # of the first block some lines may be too many
            first = pieces[0].split(b"\n", max(0, self.lines - self.count))[-1]
            surplus = self.size - len(pieces[0]) + len(first) - MAX_HISTORY
            pieces[0] = first[first.find(b"\n", surplus - 1) + 1 :] if surplus > 0 else first
        return pieces


class Room:
    """Who is here and what a line means. It knows no sockets: it hears lines, and what members get
    to see of it is put into `batch`, which the server takes at the end of each turn."""

    def __init__(self, history: int = 0, max_line: int = MAX_LINE) -> None:
        self.max_line = max_line  # bytes of what is said in a line, without its end
        self.members: set[Member] = set()
        self.names: dict[str, Member] = {}  # the owners, by identity(name)
        self.reserved: Container[str] = ()  # names that nobody can take, as identity() has them
        self.history = History(history)
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
        self.has_operators = False  # and so a password that members could say by mistake

    def take_batch(self) -> Batch:
        """Returns what has happened since the last call."""
        batch, self.batch = self.batch, Batch()
        batch.seal()
        return batch

    def join(self, member: Member) -> None:
        """Lets somebody in, who first gets the welcome and the history."""
        self.members.add(member)
        self.batch.begin(member, [f"{WELCOME}\n".encode(), *self.history.pieces()])

    def leave(self, member: Member, how: str = "left") -> None:
        """Lets a member go; of this turn it still gets what came before."""
        self.members.remove(member)
        self.batch.end(member)
        if member.name:
            del self.names[identity(member.name)]
            self.announce(f"{member.name} {how}")

    def close(self) -> None:
        """Tells everyone that the room is closing, and lets them go."""
        self.announce("the room is closing")
        for member in self.members:
            self.batch.end(member)
        self.members.clear()
        self.names.clear()

    def announce(self, text: str, but: Member | None = None) -> None:
        """The room itself says something to all but one. That isn't kept in the history."""
        self.batch.say(notice(text), but)

    def tell(self, member: Member, text: str) -> None:
        """The room itself says something to one member."""
        self.batch.tell(member, notice(text))

    def hear(self, member: Member, chunk: bytes, budget: int) -> bytes:
        """Takes whole lines, at least one; returns those that have to wait for the next turn: none
        if the member has left.

        Short lines can have long consequences: one byte to which a long name is added, `/who` in a
        crowd. Once they have made the batch heavier by `budget`, the other lines wait.
        """
        member.silent = False
        enough = self.batch.weight + budget
        # Plain lines are said all at once, so there are no more of them than a budget's bytes.
        end = chunk.find(b"\n", min(budget, len(chunk) - 1)) + 1
        now, later = chunk[:end], chunk[end:]
        if self.is_plain(member, now):
            self.say(member, now)
            return later
        at = 0
        for line in now.split(b"\n")[:-1]:
            told = self.batch.told.get(member, 0)
            if self.batch.weight >= enough or told > MAX_UNREAD // 2:
                return chunk[at:]
            at += len(line) + 1
            self.batch.weight += len(line)  # to look at it takes time, whatever comes of it
            self.hear_line(member, clean(line))
            if member not in self.members:  # it said /quit
                return b""
        return later

    def is_plain(self, member: Member, chunk: bytes) -> bool:
        """Says whether all lines of a chunk can be relayed as they are, without a look at each.

        A few calls that run in C over the whole chunk: about 0.1 ms for 64 KiB, less than a tenth
        of what it takes to deliver that to a hundred members.
        """
        if not is_clean(chunk) or (self.has_operators and any(one in chunk for one in SLASHES)):
            return False
        lines = b"\n" + chunk  # so that each line, the first too, has a newline before it
        if member.prefix:
            if lines.count(b"\n" + member.prefix) != chunk.count(b"\n"):
                return False
            return not NOTHING_SAID.search(chunk)
        # Without a name it may not pass for somebody who has one, nor with letters that look alike.
        if not chunk.isascii() or (self.names and b":" in chunk):
            return False
        return not COMMAND_OR_NOTICE.search(lines)

    def hear_line(self, member: Member, line: str) -> None:
        """Takes one line, clean and without its newline."""
        if len(line.encode()) > self.max_line:  # it had broken bytes, which grow
            self.refuse_long_line(member)
        elif line.startswith("//"):
            self.message(member, line[1:])
        elif line.startswith("/"):
            word, _, argument = line.partition(" ")
            command = self.commands.get(ALIASES.get(word, word), self.no_such_command)
            command(member, argument.strip())
        else:
            self.message(member, line)

    def message(self, member: Member, line: str) -> None:
        """Says one line, after its speaker's name, unless it would pass for another's, or may have
        an operator's password in it. An empty one, as from Enter in nc, is nothing."""
        if self.has_operators and SLASH.search(line):
            self.weigh_letters(line)
            if MISTYPED_OP.match(visible(line)):
                self.tell(member, "not said, as it may have a password in it: begin it with /op")
                return
        data = line.encode() + b"\n"
        said = data[len(member.prefix) :] if data.startswith(member.prefix) else data
        if not said.strip():
            self.batch.weight += ITEM_WEIGHT
        elif member.prefix:
            self.say(member, member.prefix + said)
        else:
            self.message_without_name(member, line)

    def message_without_name(self, member: Member, line: str) -> None:
        """Says one line of somebody who has no name, if it doesn't look as if somebody else did."""
        start = beginning(line)
        self.batch.weight += start * SKIPPED_WEIGHT
        if DIRECTION.search(line, 0, start):
            line = line[start:]
            if not line:
                return
        if ASTERISK.search(line) or COLON.search(line):
            self.weigh_letters(line)
            looks = [line, BLANK.sub(" ", line)] if BLANK.search(line) else [line]
            if any(self.is_objectionable(member, visible(look)) for look in looks):
                return
        self.say(member, line.encode() + b"\n")

    def is_objectionable(self, member: Member, shown: str) -> bool:
        """Says whether a line that looks like this from somebody without a name would pass for the
        room's or for another member's; if so, says why to its sender."""
        if ASTERISK.match(shown) and shown.startswith(" ", 1):
            # Once, because another room may be at the other end of this connection: each would
            # answer the other's answer with its own, for ever.
            if not member.warned:
                only = "only the room begins a line with an asterisk and a space"
                self.tell(member, f"{only}; say it differently")
            member.warned = True
            self.batch.weight += ITEM_WEIGHT
            return True
        colon = COLON.search(shown)
        speaker = fold(shown[: colon.start()]) if colon else ""
        if speaker.endswith(PRIVATE):
            speaker = speaker[: -len(PRIVATE)].rstrip()
        owner = self.names.get(speaker)
        if owner:
            why = "is taken, and a line that begins with it would be mistaken"
            self.tell(member, f"{owner.name} {why}")
        return bool(owner)

    def weigh_letters(self, text: str) -> None:
        """Counts the time that it takes to see what a text looks like."""
        if not text.isascii():
            self.batch.weight += LETTERS_WEIGHT

    def refuse_long_line(self, member: Member) -> None:
        self.tell(member, f"too long: a line has at most {self.max_line} bytes")

    def say(self, member: Member, chunk: bytes) -> None:
        """Says whole lines, clean, to all but their author."""
        self.batch.say(chunk, member)
        self.history.add(chunk)

    # Commands: each takes the member and what follows the command's word

    def no_such_command(self, member: Member, _: str) -> None:
        self.tell(member, "no such command; /help lists them, and //TEXT says /TEXT")

    def take_name(self, member: Member, argument: str) -> None:
        self.weigh_letters(argument)
        try:
            name = valid_name(argument)
        except ValueError as error:
            self.tell(member, f"a name {error}: /name NAME")
            return
        key = identity(name)
        if self.names.get(key, member) is not member or key in self.reserved:
            self.tell(member, f"{name} is taken")
            return
        before, member.name, member.prefix = member.name, name, f"{name}: ".encode()
        if before:
            del self.names[identity(before)]
        self.names[key] = member
        self.tell(member, f"you are {name}")
        if not before:
            self.announce(f"{name} joined", member)
        elif name != before:
            self.announce(f"{before} is now {name}", member)

    def who(self, member: Member, _: str) -> None:
        shown = [other.name for other in islice(self.names.values(), MAX_WHO)]
        if len(self.names) > len(shown):
            shown.append(f"{len(self.names) - len(shown)} more")
        unnamed = len(self.members) - len(self.names)
        parts = [", ".join(shown)] if shown else []
        if unnamed:
            parts.append(f"{unnamed} unnamed")
        self.tell(member, f"here: {' and '.join(parts)}")

    def send_private(self, member: Member, argument: str) -> None:
        name, _, text = argument.partition(":")
        self.weigh_letters(name)
        receiver = self.names.get(identity(name))
        if not text.strip():
            self.tell(member, "a private message goes like this: /msg NAME: TEXT")
        elif not member.name:
            self.tell(member, "take a name before you send a private message: /name NAME")
        elif receiver is None:
            self.tell(member, "nobody here has that name; /who lists them")
        elif receiver.whispered + self.batch.whispered.get(receiver, 0) > MAX_WHISPERED:
            self.tell(member, f"{receiver.name} is not reading; that was not delivered")
        else:
            self.batch.whisper(receiver, f"{member.name}{PRIVATE}: {text.strip()}\n".encode())

    def quit(self, member: Member, _: str) -> None:
        """Says goodbye: not every program tells its user that a connection has ended."""
        self.tell(member, "bye")
        self.leave(member)

    def help(self, member: Member, _: str) -> None:
        self.batch.tell(member, self.help_lines)

    def ping(self, member: Member, _: str) -> None:
        """Answers, so that a client knows that the network lives, and that all it has said before
        was heard."""
        self.tell(member, "pong")


# --- The process ---------------------------------------------------------------------------------


class Failure(Exception):
    """The script can't go on; the text says why, and what to do about it."""


def lacking(module: str, purpose: str) -> Failure:
    """Returns what to raise where a part of Python isn't installed."""
    remedy = "install the whole of it; on Debian: apt install python3"
    return Failure(f"this Python has no module {module}, which {purpose} needs; {remedy}")


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


# --- The transcript ------------------------------------------------------------------------------


def open_private(path: str, flags: int) -> int:
    """Opens a file that, if it is a new one, only its owner can read, and that never makes anyone
    wait, if it is a pipe or a terminal. Returns the descriptor."""
    for name in ("O_NONBLOCK", "O_NOCTTY"):  # Windows has neither
        flags |= getattr(os, name, 0)
    return os.open(path, flags, 0o600)


# A line of the transcript, unless it is the room's own: its time, and exactly what was said.
STAMPED = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (?!\* )(.+)")
# Ends a line that was written halfway: CANCEL, which nothing that is said has in it, means that the
# rest is to be disregarded. With a newline alone it would look whole.
TORN_END = b"\x18\n"


def said_before(lines: bytes, longest: int) -> bytes:
    """Returns the messages, whole lines as they were said, that stand in a stretch of a transcript.
    Whatever can't have been said in a room, or by members with lines of up to `longest` bytes, name
    included, is passed over."""
    found = (STAMPED.fullmatch(line) for line in lines.split(b"\n")[:-1])
    said = (match[1] for match in found if match)
    return b"".join(one + b"\n" for one in said if len(one) <= longest and is_clean(one))


class Transcript:
    """A file to which every public line is added with its time. Whatever keeps lines from being
    written is the log's business: the room goes on."""

    def __init__(self, path: str) -> None:
        """Raises Failure."""
        self.path = path
        self.lost = 0  # lines, since the log was last told how many
        self.lost_at = 0.0  # monotonic seconds, the last time
        try:
            self.open()
        except OSError as error:
            raise Failure(f"cannot write the transcript {path}: {error.strerror}") from error

    def open(self) -> None:
        """Raises OSError.

        It is opened for reading too. So a pipe needs no reader: it keeps what it has room for until
        there is one, and one that goes can come back.
        """
        self.file = io.FileIO(self.path, "a+", opener=open_private)
        self.lines = LineWriter(self.file.fileno())
        self.lines.torn_end = TORN_END
        with suppress(OSError):  # it is empty, or has no end
            self.file.seek(-1, os.SEEK_END)
            self.lines.in_line = self.file.read(1) != b"\n"  # the disk was full, the last time

    def messages(self, max_line: int) -> bytes:
        """Returns the messages at its end, whole lines as they were said, for a history. `max_line`
        is the room's. A pipe or a terminal has none."""
        end = os.fstat(self.file.fileno())
        if not stat.S_ISREG(end.st_mode):
            return b""
        start = max(0, end.st_size - MAX_REPLAYED)
        try:
            self.file.seek(start)
            tail = self.file.read(MAX_REPLAYED) or b""
        except OSError as error:
            log.warning("cannot read the transcript %s: %s", self.path, error.strerror)
            return b""
        if start:  # in the middle of a line, most likely
            tail = tail.partition(b"\n")[2]
        return said_before(tail, MAX_PREFIX + max_line)

    def write(self, text: bytes) -> None:
        """Adds whole lines."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()).encode()
        try:
            self.follow()
            lost = self.lines.write(stamp + text[:-1].replace(b"\n", b"\n" + stamp) + b"\n")
            why = self.lines.why
        except OSError as error:
            lost, why = text.count(b"\n"), error.strerror or str(error)
        now = time.monotonic()
        if lost:
            if not self.lost:
                log.error("cannot write the transcript %s: %s", self.path, why)
            self.lost += lost
            self.lost_at = now
        elif self.lost and now - self.lost_at > GAP_END:
            self.tell_lost()

    def tell_lost(self) -> None:
        """Tells the log how many lines are missing."""
        if self.lost:
            log.warning("lines missing in the transcript %s: %d", self.path, self.lost)
        self.lost = 0

    def follow(self) -> None:
        """Starts the file anew if somebody has moved it away or deleted it. Raises OSError."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno())):
                return
        old = self.file
        self.open()
        old.close()
        log.warning("the transcript %s had vanished and was started anew", self.path)

    def close(self) -> None:
        self.tell_lost()
        self.file.close()


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


# --- TLS -----------------------------------------------------------------------------------------

# OpenSSL's reasons for not taking a key with a certificate
NOT_A_PAIR = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def lost(error: OSError) -> Gone:
    """Returns what an error on a connection's socket means."""
    return Gone(f"lost: {error.strerror or error}")


def make_server_tls(cert: str, key: str) -> ssl.SSLContext:
    """Returns what connections need to speak TLS as a server. Raises Failure."""
    if ssl is None:
        raise lacking("ssl", "TLS")

    def ask_for_pass_phrase() -> str:  # instead of OpenSSL, which would ask on the terminal
        remedy = f"make a copy without it: openssl pkey -in {key} -out NEW.key"
        raise Failure(f"the key in {key} has a pass phrase; {remedy}")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # nobody resumes a session here
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
    texts = []
    for option, file in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            with open(file, "rb") as pem:
                texts.append(pem.read())
        except OSError as problem:
            return f"cannot read {option} {file}: {problem.strerror}"
    has_cert = [b"CERTIFICATE-----" in text for text in texts]
    has_key = [b"PRIVATE KEY-----" in text for text in texts]
    if has_key[0] and has_cert[1] and not (has_cert[0] and has_key[1]):
        return f"--tls-cert and --tls-key are swapped: {cert} has the key, {key} the certificate"
    if not has_cert[0]:
        return f"there is no certificate in PEM format in {cert}"
    if not has_key[1]:
        return f"there is no private key in PEM format in {key}"
    reason = getattr(error, "reason", None)
    if reason in NOT_A_PAIR:
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
        self.found = self.look()  # before they are loaded: what changes meanwhile is seen later
        self.context = make_server_tls(cert, key)
        self.retry_at = math.inf  # monotonic seconds, while they can't be loaded

    def look(self) -> list[tuple[int, ...]] | None:
        """Returns what is different after the files have changed; None if one is no file, such as a
        pipe: that gives what is in it once, and makes its reader wait."""
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
        """Returns the context for a newcomer. A failure to load is logged once for each change."""
        found = self.look()
        if found is None:
            return self.context
        changed, self.found = found != self.found, found
        if changed or time.monotonic() >= self.retry_at:
            try:
                self.context, self.retry_at = make_server_tls(self.cert, self.key), math.inf
                log.info("newcomers get the new certificate in %s", self.cert)
            except Failure as failure:
                self.retry_at = time.monotonic() + RETRY_CERTIFICATE
                if changed:
                    log.warning("the certificate stays the old one: %s", failure)
        return self.context


class TLS:
    """The room's end of one connection's TLS, without I/O: bytes in, bytes out.

    OpenSSL takes what came from one BIO, and puts what is to be sent into another. A BIO keeps the
    memory that it once needed, so all connections share these two. They are empty after each step:
    what is left then is this connection's, in `wire` and `output`.

    It is given whole records alone. So it is known at once which bytes will never be text, such as
    orders to change keys, each of which takes as long as a hundred bytes of text.
    """

    incoming: Any = ssl and ssl.MemoryBIO()
    outgoing: Any = ssl and ssl.MemoryBIO()

    def __init__(self, context: ssl.SSLContext) -> None:
        self.engine = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.has_begun = False  # its first bytes have come
        self.shaking_hands = True  # no text can pass before that is done
        self.wire = b""  # came, and wasn't looked at yet
        self.output = b""  # has to be sent: steps of the handshake, alerts, answers
        self.has_more = False  # something that came may be left to decrypt, or the end to be told
        self.failure: Gone | None = None  # is to be raised after the text that came before it
        self.idle = 0  # bytes of records whose text hasn't all been read
        self.surplus = 0  # bytes of those decrypted last that are no text

    def feed(self, data: bytes) -> None:
        """Takes what came from the peer."""
        self.has_begun = True
        self.wire += data

    def whole(self) -> int:
        """Returns how many of the bytes that came are whole records; all of them if they are none,
        so that OpenSSL says what is wrong."""
        end = 0
        while len(self.wire) >= end + TLS_HEADER:
            size = int.from_bytes(self.wire[end + 3 : end + TLS_HEADER], "big")
            if self.wire[end] not in TLS_TYPES or size > MAX_RECORD:
                return len(self.wire)
            if len(self.wire) < end + TLS_HEADER + size:
                break
            end += TLS_HEADER + size
        return end

    def shake_hands(self) -> None:
        """Goes on with the handshake, as far as that goes now. Raises Gone."""
        self.step(self.finish_handshake)
        self.has_more = bool(self.wire) and not self.shaking_hands

    def finish_handshake(self) -> None:
        """Raises ssl.SSLError, also if more has to come for that."""
        self.engine.do_handshake()
        self.shaking_hands = False

    def decrypt(self, limit: int) -> bytes | None:
        """Returns up to `limit` bytes of the text that came, none at its end, which is told only
        once; None if there is nothing now. Raises Gone."""
        if self.failure:
            raise self.failure
        pieces: list[bytes] = []
        goes_on = None
        came = len(self.wire)
        try:
            goes_on = self.step(self.read, pieces, limit)
        except Gone as failure:
            if not pieces:
                raise
            self.failure = failure.with_traceback(None)
        text = b"".join(pieces)
        spent = came - len(self.wire) - len(text) - len(pieces) * TLS_OVERHEAD
        self.idle = max(0, self.idle + spent)
        self.surplus = max(0, self.idle - self.engine.pending())
        self.idle -= self.surplus
        ended = goes_on is False
        self.has_more = bool(goes_on or self.failure or (ended and text))
        return text or (b"" if ended else None)

    def read(self, pieces: list[bytes], limit: int) -> bool:
        """Adds the text of one record after another, up to `limit` bytes; returns whether there can
        be more. Raises ssl.SSLError, also if more has to come."""
        while limit:
            piece = self.engine.read(min(limit, TLS_RECORD))
            if not piece:  # close_notify
                return False
            pieces.append(piece)
            limit -= len(piece)
        return True

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Returns what is to be sent in place of a text of at least one byte. Raises Gone."""
        try:
            self.engine.write(data)
        except ssl.SSLError as error:
            raise self.broken(error) from error
        finally:
            encrypted = self.outgoing.read()
        return cast(bytes, encrypted)

    def end(self) -> None:
        """Puts the end of our stream into the output, close_notify; that of the peer is not waited
        for, and nothing can be decrypted any more."""
        with suppress(Gone):
            self.step(self.engine.unwrap)

    def step(self, action: Callable[..., Any], *given: Any) -> Any:
        """Returns what comes of an action, None if more has to come before that. Raises Gone."""
        whole = self.whole()
        self.incoming.write(self.wire[:whole])
        rest = self.wire[whole:]
        try:
            return action(*given)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            raise self.broken(error) from error
        finally:
            self.wire = self.incoming.read() + rest
            self.output += self.outgoing.read()

    def broken(self, error: ssl.SSLError) -> Gone:
        """Returns what an error of OpenSSL means. PyPy leaves it where another connection would be
        taken to have it, until somebody makes a new engine."""
        self.engine.context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        return lost(error)

    def take_output(self) -> bytes:
        """Returns what has to be sent, once."""
        output, self.output = self.output, b""
        return output


# --- Connections ---------------------------------------------------------------------------------

# The states of a connection, and what it can be in each. No state is kept twice: it follows from
# which of these a connection is in, and it is in one of them at most.
#
#   state     is in            `reading`                    its queue    `tls`, in a TLS room
#   at door   door.waiting     until it gave a password     a question   shakes hands first; only
#                                                                        then is anything said
#   member    room.members     unless the throttle has      any          is there
#                              paused it
#   leaving   leaving          until its stream has ended   any          until our end of it is said
#   closed    nothing          no                           none         none
#
# In any of the first three, what TLS has encrypted and the kernel hasn't taken is in `unsent`. It
# comes before what is in the queue, and before the end of the stream.
#
# What moves it on:
#
#   at door -> member     the right password, or none is needed     Membership.enter
#   at door -> leaving    the same, but the room is full, or keeps  Membership.turn_away
#                         its host out; a wrong password, after a
#                         second; a request for the page; no TLS,
#                         or no browser, where there must be
#   member  -> leaving    /quit, the end of its stream, or of the   Membership.start_leaving
#                         room; its place goes to another; /kick;
#                         it turns out to be a browser
#   leaving -> closed     it has got everything, and its own        Membership.finish
#                         stream has ended, or LINGER or FAREWELL
#                         is over
#   any     -> closed     an error, too far behind, out of time     Membership.disconnect


def host_of(peer: str) -> str:
    """Returns what stands for the host of a peer, as format_address() writes that: an IPv4 address,
    or the network of 64 bits, in hexadecimal, that an IPv6 address is in, as the rest of that can
    be chosen freely. This machine is one host by either, and so is an IPv4 address that is written
    as an IPv6 one."""
    host = peer.rpartition(":")[0].strip("[]")
    if ":" not in host:
        return host
    if host == "::1":
        return "127.0.0.1"
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return address.packed[:8].hex()


def unacknowledged(sock: socket.socket) -> int:
    """Returns how many bytes that were sent, the end of the stream included, the other side's
    system hasn't confirmed to have; 0 where ours doesn't tell."""
    if fcntl and SIOCOUTQ:
        with suppress(OSError):
            return int.from_bytes(fcntl.ioctl(sock, SIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


class Connection(Member):
    """Somebody's connection: one socket, and all of its reading, writing and registering. Whatever
    receives or sends raises Gone when the peer's doing has put an end to it.

    It is the room's member as well, so that neither has to be looked up by the other.
    """

    __slots__ = (
        "events",
        "framed",
        "framer",
        "host",
        "peer",
        "place",
        "queue",
        "reading",
        "reset",
        "selector",
        "size",
        "sock",
        "taken",
        "tls",
        "unheard",
        "unsent",
    )

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        selector: selectors.BaseSelector,
        max_line: int,
        tls: TLS | None = None,
    ) -> None:
        super().__init__()
        self.sock = sock
        self.tls = tls  # what its bytes go through, until our end of the stream
        self.peer = peer
        self.host = sys.intern(host_of(peer))
        self.selector = selector
        self.events = 0  # for which it is registered with the selector
        self.framer: Input | WebSocket = Input(max_line)
        self.framed = False  # the framer is a WebSocket: what it gets travels in frames, too
        self.unheard = b""  # whole lines that wait for the next turn
        self.reading = True  # its input is of interest, and has not ended
        self.reset = False  # sending has found out that the peer has reset it
        self.queue: deque[Batch] | None = None  # made when something has to wait
        self.place = 0  # bytes that are sent of what it gets of the first batch in the queue
        self.taken = 0  # bytes that the kernel has taken of what had to wait
        self.size = 0  # bytes that wait in the queue, and BATCH_COST for each batch
        self.unsent = b""  # what TLS has encrypted and the kernel hasn't taken
        self.watch()

    def __str__(self) -> str:
        return f"{self.name} at {self.peer}" if self.name else self.peer

    def watch(self) -> None:
        """Registers for exactly those events for which it can be served now."""
        events = (EVENT_READ if self.reading else 0) | (EVENT_WRITE if self.is_owed() else 0)
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
        self.reading = self.sending = False
        self.unheard = b""
        self.tls = None
        self.drop_queue()
        self.watch()
        self.sock.close()

    # Through TLS

    def is_shaking_hands(self) -> bool:
        """Says whether TLS comes first: no text can be received or sent yet."""
        return self.tls is not None and self.tls.shaking_hands

    def shake_hands(self, data: bytes) -> None:
        """Goes on with the handshake, with what came."""
        assert self.tls
        self.tls.feed(data)
        self.step(self.tls.shake_hands)

    def step(self, action: Callable[..., Any], *given: Any) -> Any:
        """Returns what comes of a step of TLS. What that has to send is sent, also if the step
        fails: then it tells the peer why."""
        assert self.tls
        try:
            return action(*given)
        finally:
            output = self.tls.take_output()
            if output:
                self.put(output)

    def put(self, data: bytes) -> None:
        """Sends what is encrypted; what the kernel doesn't take has to wait."""
        if not self.sending:
            return
        waited = bool(self.unsent)
        data = self.unsent + data
        sent = self.send_bytes(data)
        self.unsent = data[sent:] if self.sending else b""
        if len(self.unsent) > MAX_UNSENT:
            raise Gone("makes TLS answer, and does not read the answers")
        if waited or self.unsent:
            self.watch()

    # From the peer

    def receive(self, limit: int) -> bytes | None:
        """Returns text of about `limit` bytes at most, none at the end of the stream, None if there
        is nothing now. What telnet and browsers ask for is answered."""
        data = self.receive_text(min(limit, self.framer.most))
        if not data:
            return data
        text, answers = self.framer.sift(data)
        if answers:
            if self.unread > MAX_UNREAD:  # all that is its own doing
                raise Gone("asks, and does not read the answers")
            self.tell(answers, Aside)
        return text or (b"" if self.framer.over else None)

    def receive_text(self, limit: int) -> bytes | None:
        """Returns the same, decrypted but otherwise as it came."""
        self.framer.weight = 0
        tls = self.tls
        if not tls:
            data = self.receive_bytes(limit)
        elif tls.has_more:
            data = self.step(tls.decrypt, limit)
        else:
            data = self.receive_bytes(min(limit, IDLE_READ if tls.surplus else TLS_READ))
            if data:
                tls.feed(data)
                data = self.step(tls.decrypt, limit)
        if data == b"":
            self.read_on(False)
        return data

    def receive_bytes(self, limit: int) -> bytes | None:
        """Returns the same, as the kernel has it."""
        try:
            return self.sock.recv(limit)
        except BlockingIOError:  # readiness is a hint, not a promise
            return None
        except OSError as error:
            raise lost(error) from error

    def overhead(self) -> int:
        """Returns the weight of what came with the last text, or in place of it."""
        idle = self.tls.surplus * IDLE_WEIGHT if self.tls else 0
        return self.framer.weight + idle

    def read_on(self, reading: bool) -> None:
        """Reads from it from now on, or doesn't: TCP then slows its peer down."""
        self.reading = reading
        self.watch()

    def upgrade(self) -> None:
        """From here on it is a browser's WebSocket."""
        self.framer, self.framed = WebSocket(self.framer.max_line), True

    # To the peer

    def tell(self, data: bytes, kind: type[Batch] = Batch) -> None:
        """Sends whole lines or, as an Aside, what isn't text, after all that it has yet to get."""
        batch = kind()
        batch.tell(self, data)
        batch.seal()
        self.write(batch)

    def say_bye(self) -> None:
        """Tells a browser, after all else that it gets, that its stream ends, and why."""
        if self.framed:
            self.tell(close_frame(self.framer.code), Aside)

    def write(self, batch: Batch) -> None:
        """Hands what it gets of a sealed batch to the kernel, if nothing is ahead of that in the
        queue; what the kernel doesn't take has to wait there."""
        is_cut = self in batch.cuts
        if self.framed:
            text = batch.frame_for(self)
        else:
            text = batch.text_for(self) if is_cut else batch.text
        sent = self.send(text) if text and self.sending and not self.queue else 0
        if sent < len(text) and self.sending:
            self.size += len(text) - sent + BATCH_COST
            if is_cut:
                self.unread += batch.told.get(self, 0)
                self.whispered += batch.whispered.get(self, 0)
            if self.queue:
                self.queue.append(batch)
            else:
                self.queue, self.place = deque([batch]), sent
                self.watch()
        elif is_cut:
            batch.forget(self)

    def flush(self) -> None:
        """Sends of what waits for it what the kernel takes now."""
        if self.unsent:
            self.put(b"")
        while self.queue and not self.unsent:
            batch = self.queue[0]
            text = memoryview(self.part_of(batch))[self.place :]
            sent = self.send(text)
            self.taken += sent
            if sent < len(text):
                self.place += sent
                self.size -= sent
                return
            self.queue.popleft()
            self.place = 0
            self.size -= sent + BATCH_COST
            told, whispered = batch.forget(self)
            self.unread -= told
            self.whispered -= whispered
        if not self.queue:
            self.queue = None
            self.watch()

    def part_of(self, batch: Batch) -> bytes:
        """Returns what it gets of a sealed batch."""
        return batch.frame_for(self) if self.framed else batch.text_for(self)

    def send(self, data: bytes | memoryview) -> int:
        """Returns how many bytes were taken, 0 if none can be now.

        Nothing is encrypted before the kernel has taken all that was: so at most a record waits
        outside of the queue.
        """
        if not self.tls:
            return self.send_bytes(data)
        taken = 0
        while taken < len(data) and not self.unsent:
            piece = data[taken : taken + TLS_RECORD]
            self.put(self.tls.encrypt(piece))
            if not self.sending:
                return 0
            taken += len(piece)
        return taken

    def send_bytes(self, data: bytes | memoryview) -> int:
        """Returns how many bytes the kernel took, 0 if it takes none now."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except ConnectionError as error:
            # The error that tells of a reset comes once, perhaps here. A peer that had closed in
            # order, and resets what comes too late, makes another: BrokenPipeError.
            self.reset = isinstance(error, ConnectionResetError)
            self.stop_sending()
            return 0
        except OSError as error:
            raise lost(error) from error

    def stop_sending(self) -> None:
        """The peer has gone; what it said before may still wait to be read, and then its end.
        Raises Gone if it isn't read from now: that may take long, and the peer holds its name."""
        if not self.reading:
            raise Gone("lost")
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self.sending = False
        self.drop_queue()
        self.watch()

    def is_owed(self) -> bool:
        """Says whether something waits to be sent to it."""
        return bool(self.queue or self.unsent)

    def end_stream(self) -> None:
        """Tells the peer that nothing more will come, TLS's way first: if that has to wait, this
        has to be called again. What the peer sends can then only be drained."""
        if self.tls:
            self.step(self.tls.end)
            self.tls = None
        if not self.unsent:
            self.sending = False
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def acknowledged(self) -> int:
        """Returns how many bytes the peer's kernel has acknowledged since some time or other; where
        the system doesn't tell, what our own has taken."""
        if sys.platform == "linux":
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            if len(info) == TCP_INFO_SIZE:
                return int.from_bytes(info[-8:], sys.byteorder)
        return self.taken

    def drop_queue(self) -> None:
        """Gives up what it has yet to get."""
        for batch in self.queue or ():
            batch.forget(self)
        self.queue = None
        self.place = self.size = self.unread = self.whispered = 0
        self.unsent = b""


# --- The door, and how much each may say ---------------------------------------------------------


class Clock:
    """The server's own running time, in seconds. That in which the process was stopped (SIGSTOP, a
    host that was suspended) doesn't count, as nobody could do anything about a deadline then."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self.lost = 0.0
        self.woken_at = monotonic()

    def now(self) -> float:
        return self.monotonic() - self.lost

    def wake(self, timeout: float | None) -> None:
        """The loop has woken, for which it had set this time-out after it had woken before."""
        woken_at = self.monotonic()
        late = woken_at - self.woken_at - (timeout or 0)
        if timeout is not None and late > OVERSLEPT:
            self.lost += late
        self.woken_at = woken_at


class Places:
    """Who has a place in the room, or at its door, and since when; the oldest comes first.

    When there are none left, a newcomer may take that of a host that has more than its own.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken: dict[Connection, float] = {}
        self.hosts: dict[str, int] = {}  # how many places each has

    def take(self, conn: Connection, now: float) -> None:
        self.taken[conn] = now
        self.hosts[conn.host] = self.hosts.get(conn.host, 0) + 1

    def leave(self, conn: Connection) -> None:
        """Gives up a connection's place, if it has one."""
        if self.taken.pop(conn, None) is not None:
            self.hosts[conn.host] -= 1
            if not self.hosts[conn.host]:
                del self.hosts[conn.host]

    def is_full(self) -> bool:
        return len(self.taken) >= self.size

    def loser_to(self, host: str, now: float) -> Connection | None:
        """Returns who has to give its place to a newcomer from a host: the newest of the host that
        has most, if that has at least two more, or one of its own that has never said a word. None
        if nobody has to."""
        most = max(self.hosts, key=self.hosts.__getitem__)
        if self.hosts[most] - self.hosts.get(host, 0) >= 2:
            return next(conn for conn in reversed(list(self.taken)) if conn.host == most)
        for conn, since in self.taken.items():
            if now - since < SILENCE:
                break
            if conn.silent and conn.host == host:
                return conn
        return None


class WrongTries:
    """How many wrong passwords were given lately, by each host and by all together.

    Each moves a mark ahead in time; whoever's mark is too far ahead has to wait until it isn't.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}  # by host; those that lie in the past are dropped
        self.mark_of_all = 0.0

    def allow(self, host: str, now: float) -> bool:
        """Says whether a password from this host may be looked at now."""
        return max(self.marks.get(host, now), self.mark_of_all) < now + TRIES_AHEAD

    def note(self, host: str, now: float) -> None:
        """A password from this host was wrong."""
        self.marks = {host: mark for host, mark in self.marks.items() if mark > now}
        self.marks[host] = self.marks.get(host, now) + WRONG_TIME
        self.mark_of_all = max(self.mark_of_all, now) + WRONG_TIME_OF_ALL


class Bans:
    """Hosts, or names, that are kept out: each for BAN_TIME, the last MAX_BANS of them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.until: dict[str, float] = {}  # the time at which each is over; the oldest comes first

    def __contains__(self, one: object) -> bool:
        return isinstance(one, str) and self.left(one) > 0

    def add(self, one: str) -> None:
        self.until.pop(one, None)
        self.until[one] = self.clock.now() + BAN_TIME
        if len(self.until) > MAX_BANS:
            del self.until[next(iter(self.until))]

    def left(self, one: str) -> float:
        """Returns for how many seconds more it is kept out, 0 if it isn't."""
        return max(0.0, self.until.get(one, 0.0) - self.clock.now())


class Dismissed(Exception):
    """Somebody at the door isn't let in. The text says why, to that one; there is none if it has
    got what it came for. A browser is told the code."""

    def __init__(self, why: str = "", code: int = NORMAL) -> None:
        super().__init__(why)
        self.code = code


class Door:
    """Where newcomers shake hands, browsers ask for the page or a WebSocket, and in a closed room
    everyone gives the password.

    Somebody at the door is in `waiting`, and perhaps in one of these as well: `requests` with what
    has come of a browser's, `late` with a password that may not be looked at yet, or `refused`
    until it is told that its password was wrong.
    """

    def __init__(self, password: bytes, clock: Clock, site: Site | None = None) -> None:
        self.password = password  # none if empty
        self.clock = clock
        self.site = site  # none if there is no port for browsers
        self.places = Places(DOOR_SIZE)
        self.tries = WrongTries()
        self.waiting: dict[Connection, float] = {}  # with the time at which each is sent away
        self.requests: dict[Connection, bytes] = {}
        self.late: dict[Connection, tuple[bytes, bytes]] = {}  # a password, what came after it
        self.refused: set[Connection] = set()
        self.banned = Bans(clock)  # hosts

    # Each step with a newcomer returns what it has sent so far, if it may come in, else None, and
    # raises Gone or Dismissed.

    def arrive(self, conn: Connection) -> bytes | None:
        now = self.clock.now()
        self.places.take(conn, now)
        if not conn.is_shaking_hands():
            return self.greet(conn)
        self.waiting[conn] = now + HANDSHAKE_TIME
        return None

    def forget(self, conn: Connection) -> None:
        """Somebody is at the door no more."""
        self.waiting.pop(conn, None)
        self.requests.pop(conn, None)
        self.late.pop(conn, None)
        self.refused.discard(conn)
        self.places.leave(conn)

    def step(self, conn: Connection) -> bytes | None:
        """Goes on with a newcomer whose socket is ready: TLS, a browser's request, the password."""
        conn.flush()
        if not conn.reading:
            return None
        if conn.is_shaking_hands():
            receive, take = conn.receive_bytes, self.shake_hands
        elif conn in self.requests:
            receive, take = conn.receive_text, self.take_request
        else:
            receive, take = conn.receive, self.take_password
        data = receive(DOOR_READ)
        if data is None:
            return None
        if not data and not conn.framer.over:
            raise Gone("left the door")
        return take(conn, data)

    def shake_hands(self, conn: Connection, data: bytes) -> bytes | None:
        """Goes on with the handshake. Whoever doesn't begin one is told so, in plain text."""
        if conn.tls and not conn.tls.has_begun and data[0] != TLS_HANDSHAKE:
            log.info("%s does not speak TLS", conn)
            conn.tls = None
            if conn in self.requests:
                return self.take_request(conn, data)
            raise Dismissed("this room speaks TLS; use --tls")
        conn.shake_hands(data)
        return None if conn.is_shaking_hands() else self.greet(conn)

    def greet(self, conn: Connection) -> bytes | None:
        """Asks for the password, if there is one. Browsers speak first."""
        self.waiting[conn] = self.clock.now() + DOOR_TIME
        if conn in self.requests:
            return None
        if conn.host in self.banned:
            raise self.kept_out(conn)
        if not self.password:
            return b""
        conn.tell(notice("password?"))
        return None

    def take_request(self, conn: Connection, data: bytes) -> bytes | None:
        """Takes what came of a request for the page, or for a WebSocket, which leads further."""
        assert self.site
        request = self.requests[conn] = self.requests[conn] + data
        if not is_http(request):
            raise Dismissed(self.site.for_others)
        if not self.site.is_whole(request):
            return None
        answer = self.site.respond(request, encrypted=conn.tls is not None)
        conn.tell(answer.data, Aside)
        if answer.why:
            log.info("%s was refused: %s", conn, answer.why)
        if answer.status != 101:
            raise Dismissed
        del self.requests[conn]
        conn.upgrade()
        return self.greet(conn)

    def take_password(self, conn: Connection, data: bytes) -> bytes | None:
        """Takes what came of the password's line, and of what follows it."""
        first, newline, rest = data.partition(b"\n")
        if not newline and conn.framer.over:
            raise Dismissed
        given, too_long = conn.framer.feed(first + newline)
        if not given and not too_long:
            return None
        conn.read_on(False)
        self.late[conn] = (typed(given), rest)
        return self.judge(conn) if len(self.late) == 1 else None  # others wait already

    def judge(self, conn: Connection) -> bytes | None:
        """Looks at the password that was given, unless it is too early for that."""
        now = self.clock.now()
        if not self.tries.allow(conn.host, now):
            return None
        given, rest = self.late.pop(conn)
        if hmac.compare_digest(given, self.password):
            conn.read_on(True)
            return rest
        log.info("%s gave a wrong password", conn)
        self.tries.note(conn.host, now)
        self.refused.add(conn)
        self.waiting[conn] = now + WRONG_TIME
        return None

    def give_up(self, conn: Connection) -> bytes | None:
        """Somebody's time at the door is over."""
        if conn.is_shaking_hands() or self.requests.get(conn):
            raise Gone("was not let in")
        if self.site and conn in self.requests:
            raise Dismissed(self.site.for_others)
        if conn.host in self.banned:
            raise self.kept_out(conn)
        if conn in self.refused:
            raise Dismissed("wrong password", REFUSED)
        raise Gone("was not let in")

    def ban(self, host: str) -> None:
        """Lets nobody in who comes from a host, for BAN_TIME, nor whoever stands here already."""
        self.banned.add(host)
        for conn in self.waiting:
            if conn.host == host and not conn.is_shaking_hands() and conn not in self.requests:
                self.waiting[conn] = self.clock.now()

    def kept_out(self, conn: Connection) -> Dismissed:
        """Returns what to raise for somebody whose host is kept out."""
        log.info("%s comes from a host that is kept out", conn)
        minutes = math.ceil(self.banned.left(conn.host) / 60)
        who = "you, or somebody at your address, was removed"
        return Dismissed(f"{who}; come back in {minutes} min", REFUSED)


class Operators:
    """Members who gave a second password, and may remove others. There are none without one.

    What they say are commands of the room. A wrong password counts as a wrong try at the door, and
    one that comes too early isn't looked at. The answer comes at once: if it had to wait, so would
    all that its sender says next, and the end of that one's stream.
    """

    def __init__(
        self, room: Room, door: Door, password: bytes, see_off: Callable[[Connection], None]
    ) -> None:
        self.room = room
        self.door = door
        self.password = password  # as it is heard in a line
        self.see_off = see_off  # is called with whoever has been removed from the room
        self.members: set[Member] = set()
        self.banned = Bans(door.clock)  # names, as identity() has them
        if password:
            room.has_operators = True
            room.commands.update({"/op": self.become_operator, "/kick": self.kick})
            room.help_lines += notice("/op PASSWORD: be an operator, who can /kick NAME")
            room.reserved = self.banned

    def forget(self, conn: Connection) -> None:
        """Somebody is a member no more."""
        self.members.discard(conn)

    # Commands: each takes the member and what follows the command's word

    def become_operator(self, member: Member, given: str) -> None:
        conn = cast("Connection", member)
        if not given:
            self.room.tell(conn, "the password goes with it, as in /op PASSWORD")
            return
        now = self.door.clock.now()
        if not self.door.tries.allow(conn.host, now):
            self.room.tell(conn, "too many wrong passwords; wait a moment, and try again")
        elif not hmac.compare_digest(given.encode(), self.password):
            log.info("%s gave a wrong password for operators", conn)
            self.door.tries.note(conn.host, now)
            self.room.tell(conn, "wrong password")
        else:
            log.info("%s became an operator", conn)
            self.members.add(conn)
            self.room.tell(conn, "you are an operator")

    def kick(self, member: Member, argument: str) -> None:
        """Removes somebody: NAME, or whoever has none and is at ADDRESS:PORT."""
        if member not in self.members:
            self.room.tell(member, "only operators can do that; /op PASSWORD makes you one")
            return
        self.room.weigh_letters(argument)
        members = cast("set[Connection]", self.room.members)
        unnamed = {conn.peer: conn for conn in members if not conn.name}
        target = self.room.names.get(identity(argument), unnamed.get(argument))
        if not argument:
            which = ", ".join(sorted(unnamed)[:MAX_WHO]) or "nobody"
            self.room.tell(member, f"/kick NAME removes somebody; without a name are: {which}")
        elif target is None:
            self.room.tell(member, "nobody here has that name; /who lists them, /kick the others")
        elif target is member:
            self.room.tell(member, "to leave, say /quit")
        else:
            self.remove(cast("Connection", target), cast("Connection", member))

    def remove(self, conn: Connection, by: Connection) -> None:
        """Removes somebody, who gets all that was said before."""
        minutes = math.ceil(BAN_TIME / 60)
        self.room.tell(conn, f"you were removed by an operator; come back in {minutes} min")
        self.room.leave(conn, "was removed")
        if conn.name:
            self.banned.add(identity(conn.name))
        else:
            self.room.tell(by, f"{conn.peer} was removed")
        log.info("%s was removed by %s, members: %d", conn, by, len(self.room.members))
        self.see_off(conn)
        self.door.ban(conn.host)


class Lag:
    """How long somebody who is behind may stay so: for as long as it takes what PACE demands."""

    __slots__ = ("acknowledged", "deadline")

    def __init__(self) -> None:
        self.acknowledged = 0  # bytes, when that was counted last
        self.deadline = 0.0

    def begin(self, conn: Connection, now: float) -> None:
        """It is behind, perhaps again: then it still has the time that it has earned.

        What its kernel has acknowledged may all be unread still, and the kernel tells of what is
        read in steps of up to STEP: it may take its reader that long until anything shows.
        """
        self.acknowledged = conn.acknowledged()  # what it took while it wasn't behind earns nothing
        patience = max(PATIENCE, min(self.acknowledged, STEP) / PACE)
        self.deadline = max(self.deadline, now + patience)

    def goes_on(self, conn: Connection, now: float) -> bool:
        """Moves the deadline on for what it has taken since; says whether it has time left.

        Twice what that is worth, as the kernel's steps can double; but for no more than a step, or
        whoever took a megabyte and then got stuck would slow the others for minutes.
        """
        acknowledged = conn.acknowledged()
        most = max(STEP, PATIENCE * PACE)
        earned = 2 * min(acknowledged - self.acknowledged, most) / PACE
        self.acknowledged = acknowledged
        if earned:
            self.deadline = min(self.deadline, now + STEP / PACE) + earned
        return now < self.deadline


class Throttle:
    """How much may each say? While somebody is behind, all together no more than that one can read.

    Two things put a member behind: what others say (`size`), and what it was told alone, mostly in
    answer to its own questions (`unread`). Only the first is a reason to slow everyone else. After
    the second it isn't heard until it has read.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.behind: dict[Connection, Lag] = {}
        self.lately: dict[Connection, Lag] = {}  # of those who were behind and aren't now
        self.slowing: set[Connection] = set()  # those of them for whom everyone is slowed
        self.left = 0.0  # bytes that may be said now; less than none if they were in advance
        self.renewed_at = 0.0  # when that was counted last
        self.spent: dict[Connection, int] = {}  # what each has said lately: bytes, or their cost
        self.hosts: dict[str, int] = {}  # the same for each host
        self.loud: dict[Connection, float] = {}  # with the time until which each counts as loud
        self.paused: dict[Connection, None] = {}  # aren't read from; the longest comes first

    # How much may be said

    def allow(self, conn: Connection, limit: int, said: int) -> int:
        """Returns how much of `limit` a member may say now; if that is nothing, pauses it. `said`
        are the bytes that were said in this turn so far. Raises Gone."""
        if self.slowing:
            limit = min(limit, self.share(conn, self.left - said))
        if limit <= 0 or not self.may_be_heard(conn):
            if not conn.sending:  # its end doesn't wait for what it may not say yet
                raise Gone("lost")
            self.paused[conn] = None
            conn.read_on(False)
            return 0
        return limit

    @staticmethod
    def may_be_heard(conn: Connection) -> bool:
        """Says whether it has read its answers."""
        return conn.unread <= MAX_UNREAD

    def share(self, conn: Connection, left: float) -> int:
        """Returns how many bytes of what is left a member may say.

        When many who said little have said too much together, it goes by hosts: otherwise one with
        hundreds of connections would have hundreds of shares.
        """
        now = self.clock.now()
        if self.loud.get(conn, 0) > now:
            return MIN_READ if left > 0 else 0
        if left <= -2 * DEBT:
            return 0
        too_much = self.spent.get(conn, 0) >= ALLOWANCE
        if left <= -DEBT:
            too_much = self.hosts.get(conn.host, 0) >= PACE // (len(self.hosts) or 1)
        if not too_much:
            return MIN_READ
        self.loud[conn] = now + LOUD_TIME
        return 0

    def charge(self, conn: Connection, weight: int) -> None:
        """Notes what a member has said, in bytes or in what came of it."""
        self.spent[conn] = self.spent.get(conn, 0) + weight
        self.hosts[conn.host] = self.hosts.get(conn.host, 0) + weight

    def join(self, conn: Connection) -> None:
        """A newcomer, too, is paid for from what may be said: it is loud at first."""
        if self.slowing:
            self.loud[conn] = self.clock.now() + LOUD_TIME

    def note_said(self, size: int) -> None:
        """Notes how many bytes were said in a turn, by whomever."""
        if self.slowing:
            self.left -= size + BATCH_COST

    def renew(self) -> None:
        """As time passes, more may be said, and the loud take turns. Called in each turn.

        The host that has said least comes first, so that it has as many turns as one with hundreds
        of connections; of a host, the connection that has waited longest.
        """
        if not self.slowing:
            return
        now = self.clock.now()
        self.left = min(self.left + PACE * (now - self.renewed_at), PACE)
        self.renewed_at = now
        if self.left <= 0:
            return
        # Whoever has yet to read its answers isn't heard anyway: a turn would be used up, and the
        # loop would never sleep.
        may_speak = list(filter(self.may_be_heard, self.paused))
        may_speak.sort(key=lambda conn: self.hosts.get(conn.host, 0))
        for conn in may_speak[: int(self.left) // MIN_READ + 1]:
            self.resume_one(conn)

    def tick(self) -> None:
        """Once a second: what was said is half forgotten."""
        self.spent = {one: spent // 2 for one, spent in self.spent.items() if spent > MIN_READ}
        self.hosts = {host: spent // 2 for host, spent in self.hosts.items() if spent > MIN_READ}
        now = self.clock.now()
        for conn, lag in self.behind.items():
            lag.goes_on(conn, now)
        if not self.slowing:
            self.resume()

    def resume(self) -> None:
        """Reads again from everyone who was paused."""
        for conn in self.paused:
            conn.read_on(True)
        self.paused.clear()

    def resume_one(self, conn: Connection) -> None:
        """Gives somebody who was paused a turn. Whoever had to wait for it is loud for longer."""
        del self.paused[conn]
        if conn in self.loud:
            self.loud[conn] = self.clock.now() + LOUD_TIME
        conn.read_on(True)

    # Who is behind

    def check(self, conn: Connection) -> None:
        """Notes whether a member is behind, after something was queued for it or sent to it."""
        slowing = conn.size - conn.unread > HIGH_WATER
        if slowing or conn.unread > MAX_UNREAD:
            if conn not in self.behind:
                self.behind[conn] = self.lately.pop(conn, Lag())
                self.behind[conn].begin(conn, self.clock.now())
        elif conn in self.behind:
            self.lately[conn] = self.behind.pop(conn)
        if slowing:
            if not self.slowing:
                self.left, self.renewed_at = PACE, self.clock.now()
            self.slowing.add(conn)
            return
        self.stop_slowing(conn)
        if conn in self.paused and not self.slowing:
            self.resume_one(conn)

    def overdue(self) -> list[Connection]:
        """Returns those who have been behind for too long, or by too much."""
        now = self.clock.now()
        return [
            conn
            for conn, lag in self.behind.items()
            if conn.size > HARD_LIMIT or (now >= lag.deadline and not lag.goes_on(conn, now))
        ]

    def stop_slowing(self, conn: Connection) -> None:
        """Nobody is slowed for this one; after the last of them everyone may speak freely."""
        if conn in self.slowing:
            self.slowing.remove(conn)
            if not self.slowing:
                self.loud.clear()
                self.resume()

    def forget(self, conn: Connection) -> None:
        """Somebody is a member no more: whatever it has yet to get slows nobody."""
        self.paused.pop(conn, None)  # before anyone is resumed: its socket may be closed
        self.spent.pop(conn, None)
        self.loud.pop(conn, None)
        self.behind.pop(conn, None)
        self.lately.pop(conn, None)
        self.stop_slowing(conn)


# --- The chat server -----------------------------------------------------------------------------


class Membership:
    """Who is at the door, in the room, or leaving: moves connections from one state to the next.

    What their order rests on: nobody is closed or forgotten who is still a member, as the room has
    to hear of it first; and a throttle that forgets somebody may let others speak again, so that it
    does so before anything else about that one is dropped.
    """

    def __init__(
        self, room: Room, size: int, door: Door, operator: bytes, closed: Callable[[], None]
    ) -> None:
        self.room = room
        self.door = door
        self.closed = closed  # is called after a connection was: its descriptor is free
        self.clock = door.clock
        see_off = partial(self.start_leaving, code=REFUSED)
        self.operators = Operators(room, door, operator, see_off)
        self.places = Places(size)
        self.throttle = Throttle(self.clock)
        # Members no more, or never; each with the time at which it is closed at the latest.
        self.leaving: dict[Connection, float] = {}
        self.exits = Places(DOOR_SIZE)  # of those who are leaving
        self.in_hand: set[Connection] = set()  # have input that the selector doesn't know of

    def members(self) -> list[Connection]:
        """Returns who is in the room. Every member here is a connection."""
        return list(cast("set[Connection]", self.room.members))

    def guard(self, action: Callable[..., None], conn: Connection, *more: Any) -> None:
        """Does something for a connection. Whatever goes wrong with it ends that one alone."""
        try:
            action(conn, *more)
        except SpeaksHTTP as gone:
            site = self.door.site
            why = site.for_browsers if site else "there is no page here"
            self.guard(self.turn_away, conn, why)
            log.info("%s %s, members: %d", conn, gone, len(self.room.members))
        except Gone as gone:
            self.disconnect(conn, str(gone))
        except Exception:
            log.exception("%s made the server stumble", conn)
            self.disconnect(conn, "closed")

    # In

    def has_room(self, peer: str) -> bool:
        """Says whether there is room for one more connection, perhaps that of somebody who is
        leaving; if not, it doesn't get a word."""
        if len(self.places.taken) + len(self.leaving) < self.places.size + DOOR_SIZE:
            return True
        loser = self.exits.loser_to(host_of(peer), self.clock.now())
        if loser:
            self.forget(loser)
        return bool(loser)

    def arrive(self, conn: Connection, by_web: bool) -> None:
        """Lets a newcomer to the door, and on if there is nothing to do there. Raises Gone."""
        if by_web:
            self.door.requests[conn] = b""
        if self.make_room(self.door.places, conn):
            self.serve_newcomer(conn, self.door.arrive)

    def serve_newcomer(self, conn: Connection, step: Callable[[Connection], bytes | None]) -> None:
        """Takes a step with somebody at the door, after which it may come in. Raises Gone."""
        try:
            rest = step(conn)
            if rest is not None and self.make_room(self.places, conn):
                self.enter(conn, rest)
        except Dismissed as dismissed:
            self.turn_away(conn, str(dismissed), dismissed.code)
        finally:
            if self.has_input(conn):
                self.in_hand.add(conn)

    def has_input(self, conn: Connection) -> bool:
        """Says whether there is something to hear that the selector doesn't know of; also the end,
        if it came together with what let a member in."""
        is_over = conn.framer.over and conn in self.room.members
        return bool(conn.unheard or is_over or (conn.tls and conn.tls.has_more))

    def make_room(self, places: Places, conn: Connection) -> bool:
        """Says whether there is a place for a newcomer, perhaps somebody else's until now; if not,
        it is turned away. Raises Gone."""
        if not places.is_full():
            return True
        loser = places.loser_to(conn.host, self.clock.now())
        if not loser:
            log.info("%s turned away: all %d places are taken", conn, places.size)
            # A browser that has yet to ask for something couldn't make anything of a word.
            why = "" if conn in self.door.requests else "the room is full"
            self.turn_away(conn, why, TRY_LATER)
            return False
        if loser in self.door.waiting:
            self.disconnect(loser, "had to make room at the door")
        else:
            why = "the room is full, and your place goes to somebody else"
            self.turn_away(loser, why, TRY_LATER)
            log.info("%s had to make room, members: %d", loser, len(self.room.members))
        return True

    def enter(self, conn: Connection, rest: bytes) -> None:
        """Makes a member of somebody at the door. `rest` is what it has sent already."""
        self.door.forget(conn)
        self.places.take(conn, self.clock.now())
        self.room.join(conn)
        self.throttle.join(conn)
        log.info("%s connected, members: %d", conn, len(self.room.members))
        self.take(conn, rest)

    def take(self, conn: Connection, data: bytes) -> None:
        """Takes what a member has sent: whole lines are then in `unheard`."""
        conn.unheard, too_long = conn.framer.feed(data)
        if too_long:
            self.room.refuse_long_line(conn)

    # Out

    def turn_away(self, conn: Connection, why: str, code: int = NORMAL) -> None:
        """Tells somebody why it can't come in, or can't stay, and ends its stream. A member still
        gets what was said before. Raises Gone."""
        if conn in self.room.members:
            self.room.tell(conn, why)
            self.room.leave(conn)
            self.start_leaving(conn, code)
            return
        self.door.forget(conn)
        if conn.is_shaking_hands():  # so that nothing can be said to it
            raise Gone("could not be told why")
        if why:
            conn.tell(notice(why))
        conn.read_on(True)
        self.start_leaving(conn, code)
        conn.say_bye()
        self.finish(conn)

    def start_leaving(self, conn: Connection, code: int = NORMAL) -> None:
        """Somebody is a member no more, or can't be: it still gets what was said before, and after
        the delivery the end."""
        if not conn.framer.over:  # else its own code is the answer
            conn.framer.code = code
        conn.unheard = b""
        self.places.leave(conn)
        self.operators.forget(conn)
        if conn in self.throttle.paused:  # its own end is of interest
            conn.read_on(True)
        self.throttle.forget(conn)
        now = self.clock.now()
        self.exits.take(conn, now)
        self.leaving[conn] = now + FAREWELL

    def finish(self, conn: Connection) -> None:
        """Ends the stream to somebody who has left and has got everything.

        Then it waits for the peer to close too: to close with input unread sends a reset, and that
        destroys what is still on its way to the peer (RFC 2525, section 2.17).
        """
        if conn not in self.leaving or conn in self.room.batch.leavers:
            return
        if conn.sending and not conn.is_owed():
            conn.end_stream()
        if conn.is_owed():
            return
        if conn.reading:
            self.linger(conn)
        else:
            self.forget(conn)

    def linger(self, conn: Connection) -> None:
        """Waits only a little longer for the peer's own close, once everything has got to it."""
        if not conn.sending and not unacknowledged(conn.sock):
            self.leaving[conn] = min(self.leaving[conn], self.clock.now() + LINGER)

    def disconnect(self, conn: Connection, why: str) -> None:
        """Closes a connection that is of no further use, whatever state it is in."""
        if conn in self.room.members:
            self.room.leave(conn)
        self.forget(conn)
        log.info("%s %s, members: %d", conn, why, len(self.room.members))

    def forget(self, conn: Connection) -> None:
        """Closes a connection that isn't a member, or not any more."""
        assert conn not in self.room.members
        self.operators.forget(conn)
        self.throttle.forget(conn)
        self.door.forget(conn)
        self.places.leave(conn)
        self.exits.leave(conn)
        self.leaving.pop(conn, None)
        self.in_hand.discard(conn)
        conn.close()
        self.closed()

    def meet_deadlines(self) -> None:
        """Closes those whose time is up."""
        now = self.clock.now()
        for conn in list(self.leaving):
            self.linger(conn)
            if now >= self.leaving[conn]:
                self.forget(conn)
        for conn in [conn for conn, deadline in self.door.waiting.items() if now >= deadline]:
            self.guard(self.serve_newcomer, conn, self.door.give_up)
        for conn in self.throttle.overdue():
            self.disconnect(conn, "disconnected: too far behind")

    def tick(self) -> None:
        """Once a second: allowances, and passwords that came too early."""
        self.throttle.tick()
        for conn in list(self.door.late):
            self.guard(self.serve_newcomer, conn, self.door.judge)


class ChatServer:
    """Moves bytes between the sockets and the room, until a signal ends it."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        room: Room,
        max_clients: int = MAX_CLIENTS,
        transcript: Transcript | None = None,
        password: bytes = b"",
        certificate: Certificate | None = None,
        operator: bytes = b"",
        site: Site | None = None,
    ) -> None:
        self.room = room
        self.transcript = transcript
        self.certificate = certificate  # if the room speaks TLS
        self.selector = selectors.DefaultSelector()
        self.acceptor = Acceptor(self.selector, listeners, self.admit)
        door = Door(password, Clock(), site)
        self.crowd = Membership(room, max_clients, door, operator, self.acceptor.resume)
        self.throttle = self.crowd.throttle
        self.next_tick = 0.0
        self.stop_signals = 0

    # The loop

    def run(self) -> int:
        """Serves; returns the exit status.

        The selector holds with each socket its connection, with others what to call when they are
        ready.
        """
        with self.selector, open_signal_socket(*ending_signals()) as signals:
            self.selector.register(signals, EVENT_READ, partial(self.on_signal, signals))
            self.acceptor.start()
            while not self.stop_signals:
                self.turn()
            self.last_call()
            self.close_room()
            while self.crowd.leaving and self.stop_signals == 1:
                self.turn()
            return 0 if not self.crowd.leaving else 1

    def on_signal(self, signals: socket.socket) -> None:
        """Closes the room; a second signal ends the farewells too."""
        for number in signals.recv(16):
            log.info("stopped by %s", signal.Signals(number).name)
            self.stop_signals += 1

    def turn(self) -> None:
        """Waits for sockets to be ready, hears what came, delivers it.

        A turn flushes before it reads, reads each connection once, and delivers once. So whoever
        leaves in it has its last batch before anything else can end its stream.
        """
        knocking, readable = self.wait(self.timeout())
        self.serve_door(knocking)
        self.read_all(readable)
        self.deliver(self.room.take_batch())
        self.throttle.renew()
        self.crowd.meet_deadlines()
        now = self.crowd.clock.now()
        if now >= self.next_tick:
            self.next_tick = now + TICK
            self.crowd.tick()
            self.acceptor.retry_if_due(time.monotonic())

    def wait(self, timeout: float | None) -> tuple[list[Connection], set[Connection]]:
        """Waits `timeout` seconds at most, and sends what can be sent; returns who is ready at the
        door, and who can be read.

        An event can be stale: what was served before it in this turn may have closed its socket.
        """
        door = self.crowd.door.waiting
        knocking: set[Connection] = set()
        readable: set[Connection] = set()
        for conn in self.crowd.in_hand:
            if conn.reading:
                (knocking if conn in door else readable).add(conn)
        ready_sockets = self.selector.select(timeout)
        self.crowd.clock.wake(timeout)
        for key, events in ready_sockets:
            ready = key.data
            if not isinstance(ready, Connection):
                ready()
                continue
            if ready in door:
                knocking.add(ready)
                continue
            if events & EVENT_WRITE:
                self.crowd.guard(self.flush, ready)
            if events & EVENT_READ:
                readable.add(ready)
        return list(knocking), readable

    def serve_door(self, knocking: list[Connection]) -> None:
        """Goes on with those who are ready at the door, for as long as the door may take of a turn;
        at random, so that nobody who keeps knocking is always served before the others."""
        random.shuffle(knocking)
        began = time.monotonic()
        door = self.crowd.door
        for conn in knocking:
            if conn in door.waiting:  # it may have had to make room meanwhile
                self.crowd.guard(self.crowd.serve_newcomer, conn, door.step)
            if time.monotonic() - began > DOOR_SHARE:
                break

    def read_all(self, readable: set[Connection]) -> None:
        """Reads from everyone who has something to say, each once, until the turn is full.

        Whoever has said least lately comes first, so that a flood doesn't keep others from being
        heard. Whoever is left over for the next turn is still ready then, or still in hand.
        """
        crowd = len(self.room.members) or 1
        share = max(MIN_READ, min(TURN_READ, TURN_DELIVERY // crowd) // (len(readable) or 1))
        batch, spent = self.room.batch, self.throttle.spent
        for conn in sorted(readable, key=lambda conn: spent.get(conn, 0)):
            if batch.size * crowd >= TURN_DELIVERY or batch.weight >= TURN_WEIGHT:
                break
            if conn.reading:
                self.crowd.guard(self.read, conn, share)
        in_hand = self.crowd.in_hand | readable
        self.crowd.in_hand = set(filter(self.crowd.has_input, in_hand))

    def timeout(self) -> float | None:
        """Returns how long the loop may sleep at most: for ever, if nothing depends on time."""
        crowd, throttle = self.crowd, self.throttle
        # Whoever was disconnected after the last delivery has left something to deliver.
        if self.room.batch.cuts or any(conn.reading for conn in crowd.in_hand):
            return 0
        now = crowd.clock.now()
        deadlines = [*crowd.leaving.values(), *crowd.door.waiting.values()]
        if crowd.leaving or (throttle.paused and throttle.slowing):
            deadlines.append(now + SHORT_TICK)
        must_retry = self.acceptor.retry_at is not None
        if crowd.door.late or throttle.behind or throttle.paused or must_retry:
            deadlines.append(self.next_tick)
        return max(0.0, min(deadlines) - now) if deadlines else None

    # Beginning and end

    def admit(self, sock: socket.socket, peer: str) -> None:
        """Makes a connection of a newcomer's socket, and lets it to the door. Raises OSError."""
        if not self.crowd.has_room(peer):
            sock.close()
            return
        site = self.crowd.door.site
        by_web = site is not None and sock.getsockname()[1] == site.port
        tls = TLS(self.certificate.current()) if self.certificate else None
        conn = Connection(sock, peer, self.selector, self.room.max_line, tls)
        self.crowd.guard(self.crowd.arrive, conn, by_web)

    def last_call(self) -> None:
        """Lets nobody in any more, and hears what had arrived before, for LAST_CALL at most."""
        self.acceptor.close()
        for conn in list(self.crowd.door.waiting):
            self.crowd.forget(conn)
        self.throttle.resume()
        over = time.monotonic() + LAST_CALL
        while time.monotonic() < over and self.stop_signals == 1:
            # What is left on its way comes when we have read, but not in the same moment.
            _, readable = self.wait(0 if self.crowd.in_hand else SHORT_TICK)
            if not readable:
                break
            self.read_all(readable)
            self.deliver(self.room.take_batch())
            self.crowd.meet_deadlines()  # queues have an end now, too

    def close_room(self) -> None:
        """Says goodbye to everyone."""
        members = self.crowd.members()
        self.room.close()
        for conn in members:
            self.crowd.start_leaving(conn, GOING_AWAY)
        self.deliver(self.room.take_batch())

    # From a connection

    def read(self, conn: Connection, limit: int) -> None:
        """Receives once, if the member may speak now, and lets the room hear the whole lines."""
        if conn in self.crowd.leaving:
            self.drain(conn, limit)
            return
        if not self.stop_signals:  # else all that arrives is heard, however much that is
            limit = self.throttle.allow(conn, limit, self.room.batch.size)
        if not limit:
            return
        before = self.room.batch.weight
        received = 0
        if not conn.unheard:
            data = conn.receive(limit)
            self.room.batch.weight += conn.overhead()
            if conn.unread > MAX_UNREAD:
                self.throttle.check(conn)
            if data == b"":
                self.hear_end(conn)
                return
            if data:
                received = len(data)
                self.crowd.take(conn, data)
                limit = max(limit, len(conn.unheard))
        if conn.unheard:
            self.hear(conn, limit)
        if conn.framer.over and not conn.unheard and conn in self.room.members:
            self.hear_end(conn)
        if conn in self.room.members:
            self.throttle.charge(conn, max(received, self.room.batch.weight - before))

    def drain(self, conn: Connection, limit: int) -> None:
        """Receives from somebody who has left; only its end is of interest. Raises Gone."""
        if conn.receive_text(limit) == b"":
            self.crowd.finish(conn)
        self.room.batch.weight += conn.overhead()
        if conn in self.crowd.leaving:  # still: then it comes after whoever costs less
            self.throttle.charge(conn, conn.overhead())

    def hear(self, conn: Connection, budget: int) -> None:
        """Lets the room hear whole lines, as many as a budget allows."""
        conn.unheard = self.room.hear(conn, conn.unheard, budget)
        if conn not in self.room.members:
            log.info("%s quit, members: %d", conn, len(self.room.members))
            self.crowd.start_leaving(conn)

    def hear_end(self, conn: Connection) -> None:
        """The end of a member's stream: an unfinished last line counts, then it has left.

        After a reset it doesn't count: its other half may have been lost on the way.
        """
        last = conn.framer.finish()
        if last and not conn.reset:
            self.room.hear(conn, last, sys.maxsize)
        if conn in self.room.members:
            self.room.leave(conn)
        log.info("%s %s, members: %d", conn, conn.framer.why or "left", len(self.room.members))
        self.crowd.start_leaving(conn)

    # To the connections

    def deliver(self, batch: Batch) -> None:
        """Hands a turn's batch to everyone who is in the room, or has left it in that turn."""
        if batch.text:
            if self.transcript:
                self.transcript.write(batch.text)
            if log.isEnabledFor(logging.DEBUG):
                log_lines("said", batch.text)
            self.throttle.note_said(batch.size)
            members = self.crowd.members()
        else:
            # All that happened is between the room and some, such as a private message. The others
            # aren't even looked at: for 8,000 of them that takes 0.5 ms.
            cuts = cast("dict[Connection, Any]", batch.cuts)
            members = [conn for conn in cuts if conn in self.room.members]
        for conn in members:
            try:
                conn.write(batch)
                if conn.queue and (conn.size > HIGH_WATER or conn.unread > MAX_UNREAD):
                    self.throttle.check(conn)
            except Gone as gone:  # as in guard(), which would cost each delivery a call
                self.crowd.disconnect(conn, str(gone))
            except Exception:
                log.exception("%s made the server stumble", conn)
                self.crowd.disconnect(conn, "closed")
        for conn in cast("list[Connection]", batch.leavers):
            self.crowd.guard(self.see_off, conn, batch)

    def see_off(self, conn: Connection, batch: Batch) -> None:
        """Hands a leaver the last batch of which it gets something."""
        conn.write(batch)
        conn.say_bye()
        self.crowd.finish(conn)

    def flush(self, conn: Connection) -> None:
        """Sends of a connection's queue what the kernel takes now."""
        conn.flush()
        if conn in self.crowd.leaving:
            self.crowd.finish(conn)
        elif conn in self.throttle.behind:
            self.throttle.check(conn)


# --- How to join ---------------------------------------------------------------------------------


def how_to_join(
    listeners: Sequence[socket.socket], hosts: Sequence[str], tls: ssl.SSLContext | None, cert: str
) -> tuple[str, list[str]]:
    """Returns a host at which those who can connect reach this one, and commands for joining that
    work as they stand there. `hosts` are the --host options; `cert` is the certificate's file.
    Logs a warning if clients will refuse that."""
    others, port = hosts_for_others(listeners), listeners[0].getsockname()[1]
    host = (others or hosts)[0]
    if not tls:
        return host, [f"join: python3 chat_client.py {host} {port}", f"or: nc {host} {port}"]
    try:
        view = ClientsView(tls, cert)
        host = view.best_host(others or hosts, by_name=bool(others))
        trust, *notes = view.how_to_trust(local=not others)
    except OSError:  # it was in a pipe, from which it comes once
        trust, *notes = "--tls-ca FILE", "FILE is the room's certificate"
    return host, [f"join: python3 chat_client.py {host} {port} {trust}", *notes]


PARTIAL_CHAIN = 0x80000  # ssl.VERIFY_X509_PARTIAL_CHAIN, which older Pythons don't name


class ClientsView:
    """What clients will make of our certificate: we shake hands with ourselves, in memory."""

    def __init__(self, tls: ssl.SSLContext, cert: str) -> None:
        self.tls = tls
        self.cert = cert
        self.client = ssl.create_default_context()
        self.public = not self.why_refused()  # an authority that everyone trusts vouches for it
        self.sufficient = True  # a client that is given the file itself trusts it
        if not self.public:
            self.client = ssl.create_default_context(cafile=cert)
            self.client.verify_flags &= ~PARTIAL_CHAIN
            self.sufficient = "issuer" not in self.why_refused()
            self.client.verify_flags |= PARTIAL_CHAIN  # even so we can see for which hosts it is

    def best_host(self, hosts: Sequence[str], by_name: bool) -> str:
        """Returns which of the hosts the certificate is for; if it is for none, another one that it
        names, if clients can connect by names. Logs a warning if they would refuse it."""
        why = self.why_refused()
        if why:
            log.warning("clients will refuse %s: %s; make or get a new one", self.cert, why)
            return hosts[0]
        for host in hosts:
            if not self.why_refused(host):
                return host
        for kind, name in self.shake_hands("").get("subjectAltName", ()):
            if by_name and kind == "DNS" and name != "localhost" and "*" not in name:
                return str(name)
        log.warning(
            "clients will refuse %s as the certificate of %s; "
            "make one with the names and addresses by which they connect",
            *(self.cert, hosts[0]),
        )
        return hosts[0]

    def how_to_trust(self, local: bool) -> list[str]:
        """Returns the client's options for trusting it, and what has to be known for that; `local`
        if only this machine can connect."""
        if self.public:
            return ["--tls"]
        if not self.sufficient:
            note = f"FILE is the certificate of the authority behind {self.cert}"
            return ["--tls-ca FILE", note]
        if local:
            return [f"--tls-ca {shell_word(os.path.abspath(self.cert))}"]
        file, note = shell_word(os.path.basename(self.cert)), "it isn't secret"
        with open(self.cert, "rb") as pem:
            if b"PRIVATE KEY-----" in pem.read():
                file, note = "NEW.pem", f"that is {file} without the key"
        return [f"--tls-ca {file}", f"copy {file} to that host first; {note}"]

    def why_refused(self, host: str = "") -> str:
        """Returns why clients refuse it, as a host's if one is given; nothing if they take it."""
        try:
            self.shake_hands(host)
            return ""
        except ssl.SSLCertVerificationError as error:
            return str(error.verify_message)
        except (ssl.SSLError, ValueError) as error:  # ValueError: a name that nothing can have
            return str(error)

    def shake_hands(self, host: str) -> Any:
        """Returns the certificate as SSLSocket.getpeercert() does. Raises ssl.SSLError, or
        ValueError for a host that can't be one."""
        self.client.check_hostname = bool(host)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            self.client.wrap_bio(to_client, to_server, server_hostname=host or None),
            self.tls.wrap_bio(to_server, to_client, server_side=True),
        )
        for end in ends * 4:  # more rounds than any version of TLS needs
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
        return ends[0].getpeercert()


def shell_word(text: str) -> str:
    """Returns the text as a shell takes it for one word, as shlex.quote() does: Debian's
    python3-minimal lacks that."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


# --- A QR code ------------------------------------------------------------------------------------

# What an address needs of ISO/IEC 18004: bytes, the lowest level of correction (L), under which
# versions 1 to 5 are a single block, and mask 0.
QR_SIZES = ((19, 7), (34, 10), (55, 15), (80, 20), (108, 26))  # codewords: data, and correction
LIGHT_RINGS = {4: (2, 4), 2: (1,)}  # around the middle of a finder, and of an alignment pattern
QR_FORMAT = 0b111011111000100  # level L and mask 0, with a correction of their own
HALF_BLOCKS = " \u2584\u2580\u2588"  # neither half is drawn, the lower, the upper, both


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
        factor = rest[at]
        for step, part in enumerate(generator):
            rest[at + step] ^= multiply(part, factor)
    return words + rest[room:]


def qr_patterns(version: int, size: int) -> dict[tuple[int, int], bool]:
    """Returns what is dark, and what light, by row and column, in every code of this size."""
    dark = {(6, at): at % 2 == 0 for at in range(size)}
    dark.update({(at, 6): at % 2 == 0 for at in range(size)})
    eyes = [(3, 3, 4), (3, size - 4, 4), (size - 4, 3, 4), (size - 7, size - 7, 2)]
    for top, left, reach in eyes if version > 1 else eyes[:3]:
        for y, x in product(range(-reach, reach + 1), repeat=2):
            if 0 <= top + y < size and 0 <= left + x < size:
                dark[top + y, left + x] = max(abs(y), abs(x)) not in LIGHT_RINGS[reach]
    near = [*((y, 8) for y in (*range(6), 7, 8)), *((8, x) for x in (7, *reversed(range(6))))]
    far = [*((8, size - 1 - at) for at in range(8)), *((size - 7 + at, 8) for at in range(7))]
    for at, places in enumerate(zip(near, far)):
        dark.update(dict.fromkeys(places, bool(QR_FORMAT >> at & 1)))
    dark[size - 8, 8] = True
    return dark


def qr_code(data: bytes) -> list[str]:
    """Returns the code in rows of half blocks with the blank around it that scanners expect; none
    if this is too long. What is light is drawn, as most terminals are dark."""
    version = next((at for at, (room, _) in enumerate(QR_SIZES, 1) if len(data) + 2 <= room), 0)
    if not version:
        return []
    size = 17 + 4 * version
    dark = qr_patterns(version, size)
    bits = iter("".join(f"{word:08b}" for word in qr_codewords(data, *QR_SIZES[version - 1])))
    for turn, right in enumerate([*range(size - 1, 6, -2), 5, 3, 1]):
        rows = range(size) if turn % 2 else reversed(range(size))
        for y, x in product(rows, (right, right - 1)):
            if (y, x) not in dark:
                dark[y, x] = (next(bits, "0") == "1") != ((y + x) % 2 == 0)

    def half_blocks(y: int, x: int) -> str:
        return HALF_BLOCKS[2 * (not dark.get((y, x))) + (not dark.get((y + 1, x)))]

    columns = range(-4, size + 4)
    return ["".join(half_blocks(y, x) for x in columns) for y in range(-4, size + 4, 2)]


def show_qr_code(url: str) -> None:
    """Shows the code of an address on a terminal, so that nobody has to type it into a phone."""
    if os.isatty(2):
        for row in qr_code(url.encode()):
            log.info("%s", row)


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
        "A chat room: what one member says goes to every other member.",
        "python3 chat_server.py --host :: (then: python3 chat_client.py HOST)",
    )
    add = parser.add_argument
    long = "skip lines that are longer (default: %(default)s)"
    add("--max-line", type=positive, default=MAX_LINE, metavar="BYTES", help=long)
    history = "give newcomers the last N messages (default: none)"
    add("--history", type=positive, default=0, metavar="N", help=history)
    add("--transcript", metavar="FILE", help="add every public line to FILE, with its time")
    web = f"let browsers in, too, on this port (default: none; without a number {WEB_PORT})"
    add("--web", type=port_number, nargs="?", const=WEB_PORT, metavar="PORT", help=web)
    name = "a further name by which browsers reach this host, can be repeated"
    add("--web-host", type=host_name, action="append", default=[], metavar="NAME", help=name)
    password = "let in who gives the password in FILE, or in CHAT_PASSWORD in the environment"
    add("--password-file", metavar="FILE", help=password)
    operator = "let whoever says /op with the password in FILE remove others, with /kick NAME"
    add("--operator-file", metavar="FILE", help=operator)
    add("--tls-cert", metavar="FILE", help="speak TLS, with this certificate")
    add("--tls-key", metavar="FILE", help="and its private key")
    args = parse_known(parser, argv)
    args.host = args.host or ["localhost"]  # as the option's default it would be added to
    args.prog = parser.prog
    if (args.tls_cert is None) != (args.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    if args.web_host and args.web is None:
        parser.error("--web-host goes with --web")
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


def read_passwords(args: argparse.Namespace) -> tuple[bytes, bytes]:
    """Returns the room's password and its operators'; b"" if there is none. Raises Failure."""
    password, operator = read_password(args.password_file), b""
    if args.operator_file is not None:
        operator = read_password(args.operator_file)
        operator = clean(operator).strip().encode()  # as it is heard in a line
        if not operator:
            problem = "it has nothing but blanks"
            raise Failure(f"there is no password in {args.operator_file}; {problem}")
    if (password or operator) and hmac is None:
        raise lacking("hmac", "a password")
    if len(password) > args.max_line or (operator and len(b"/op " + operator) > args.max_line):
        raise Failure("the password is longer than a line may be; see --max-line")
    return password, operator


def tell_where(
    args: argparse.Namespace,
    listeners: Sequence[socket.socket],
    web_listeners: Sequence[socket.socket],
    tls: ssl.SSLContext | None,
) -> Site | None:
    """Logs where the room is and how to join it. Returns the site for browsers, if there is one."""
    addresses = [format_address(listener.getsockname()) for listener in listeners]
    log.info("listening on %s; %s", " and ".join(addresses), who_can_connect(listeners))
    host, lines = how_to_join(listeners, args.host, tls, args.tls_cert)
    for line in lines:
        log.info("%s", line)
    if not web_listeners:
        return None
    port, web_port = (socks[0].getsockname()[1] for socks in (listeners, web_listeners))
    url = f"{'https' if tls else 'http'}://{format_address((host, web_port))}/"
    log.info("or, in a browser: %s", url)
    show_qr_code(url)
    return Site([*args.host, *args.web_host], bool(tls), web_port, url, port)


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop; returns the exit status. Raises Failure."""
    max_clients = raise_descriptor_limit(args.max_clients)
    transcript = Transcript(args.transcript) if args.transcript is not None else None
    password, operator = read_passwords(args)
    certificate = Certificate(args.tls_cert, args.tls_key) if args.tls_cert is not None else None
    listeners = open_listeners(args.host, args.port)
    web = open_listeners(args.host, args.web, "--web") if args.web is not None else []
    site = tell_where(args, listeners, web, certificate.context if certificate else None)
    if password:
        log.info("the client asks for the password; any other sends it as its first line")
    if (password or operator) and not certificate:
        log.warning("the password travels in the clear; --tls-cert and --tls-key change that")
    room = Room(args.history, args.max_line)
    if transcript and args.history:
        room.history.add(transcript.messages(args.max_line))
    server = ChatServer(
        [*listeners, *web], room, max_clients, transcript, password, certificate, operator, site
    )
    try:
        return server.run()
    finally:
        if transcript:
            transcript.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit status: 0 for a clean end, 1 for a failure."""
    args = parse_args(argv)
    open_log(args.verbose)
    try:
        return run(args)
    except Failure as error:
        print(f"{args.prog}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in NO_DESCRIPTOR:
            raise
        print(f"{args.prog}: too few open files are allowed; see ulimit -n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the loop took over the signals
        return 0


if __name__ == "__main__":
    open_standard_streams()
    sys.exit(main())
