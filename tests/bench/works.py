"""The kinds of work that the servers are given. One process with one loop makes the load.

It has to be cheaper than the server that it measures, so most of what arrives is only counted: all
messages of a work have the same size, and Linux is told not even to copy them (MSG_TRUNC, tcp(7)).
How busy this process was is part of each result.
"""

from __future__ import annotations

import os
import random
import select
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice

import websocket
from servers import Running, set_options

TEXT_SIZE = 63  # bytes of a message without its newline: a line has 64
MARK = b"~"  # ends each text and is nowhere else
CHUNK_LINES = 1024  # that a flooding sender hands to the kernel at once
SEND_BUFFER = 64 * 1024  # bytes at most that the kernel holds of what a member says
RECEIVE_SIZE = 1024 * 1024
DISCARD = socket.MSG_TRUNC if sys.platform == "linux" else 0
WATCHERS = 20  # members of a conversation that look at the time when a line arrives
STALLED = 3.0  # seconds without any arrival: what is missing then is lost
TIME_LIMIT = 5  # times the seconds of a work: what is missing then, while more arrives, is late
REACH_TIME = 0.2  # seconds in which everyone should hear a line
FILLING = 128 * 1024  # bytes: what puts a member behind that reads nothing and has small buffers
QUIET = 0.3  # seconds: who uses a fourth of it at most has dealt with all newcomers

received = bytearray(RECEIVE_SIZE)


@dataclass
class Result:
    """What one server did with one work."""

    rate: float | None = None  # messages that arrived, a second
    lost: int = 0  # messages that never arrived, or connections that were refused or cut off
    late: int = 0  # messages that were still on their way when the time was up
    cpu: float | None = None  # seconds of the server's CPU time, for a message; if idle, a second
    p50: float | None = None  # seconds from saying to hearing
    p99: float | None = None
    memory: float | None = None  # bytes, in all; if idle, for a connection
    busy: float = 0.0  # the share of the time in which this process, the load, was at work


class Meter:
    """Measures from its making to the last call of `arrived`. The work should take some seconds."""

    def __init__(self, server: Running, seconds: float) -> None:
        self.server = server
        self.server_cpu = server.cpu()
        self.cpu = time.process_time()
        self.start = self.end = time.perf_counter()
        self.limit = self.start + TIME_LIMIT * seconds

    def arrived(self) -> None:
        self.end = time.perf_counter()

    def gives_up(self) -> bool:
        """Says whether it makes no sense to wait for more."""
        now = time.perf_counter()
        return now - self.end > STALLED or now > self.limit

    def result(self, messages: int, missing: int, delays: Sequence[float] = ()) -> Result:
        """Returns the figures, after so many messages; `delays` are how long some of them took."""
        ordered = sorted(delays)
        stalled = time.perf_counter() - self.end > STALLED
        missing = max(0, missing)  # what was counted twice isn't missing
        return Result(
            rate=messages / (self.end - self.start) if self.end > self.start else 0.0,
            lost=missing if stalled else 0,
            late=0 if stalled else missing,
            cpu=(self.server.cpu() - self.server_cpu) / max(messages, 1),
            p50=ordered[len(ordered) // 2] if ordered else None,
            p99=ordered[len(ordered) * 99 // 100] if ordered else None,
            memory=self.server.peak_memory(),
            busy=(time.process_time() - self.cpu) / (time.perf_counter() - self.start),
        )


# --- Rooms ---------------------------------------------------------------------------------------


class Member:
    """Somebody in a room, who counts what it says and what it hears."""

    def __init__(self, server: Running) -> None:
        self.dialect = server.dialect
        self.hears = server.connect()
        self.dialect.greet(self.hears)
        self.says = server.connect() if self.dialect.speaks_elsewhere else self.hears
        self.says.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.hears.setblocking(False)
        self.says.setblocking(False)
        self.unsent = memoryview(b"")
        self.said = 0  # messages
        self.heard = 0  # bytes
        self.marks = 0  # messages, as far as it looked at them
        self.gone = False  # the server has closed the connection

    def receive(self, flags: int = DISCARD) -> int:
        """Receives once; returns how many bytes came. Unless told otherwise, it only counts."""
        try:
            size = self.receive_text(flags)
        except BlockingIOError:
            return 0
        except OSError:
            self.gone = True
            return 0
        self.heard += size
        return size

    def receive_text(self, flags: int) -> int:
        """Returns how many bytes came, also if the connection is at its end. Raises OSError."""
        size = self.hears.recv_into(received, RECEIVE_SIZE, flags)
        self.gone = not size
        return size

    def receive_all(self) -> int:
        """Receives what there is, also the answers to what it said; returns how many bytes came."""
        before = self.heard
        while self.receive():
            pass
        if self.says is not self.hears:
            self.receive_answers()
        return self.heard - before

    def receive_answers(self) -> None:
        with suppress(BlockingIOError):
            self.says.recv_into(received, RECEIVE_SIZE, DISCARD)

    def send(self) -> None:
        """Hands the kernel what it takes of the unsent bytes."""
        try:
            self.unsent = self.unsent[self.says.send(self.unsent) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self.gone = True

    def messages(self) -> int:
        return self.heard // len(self.dialect.heard(b"." * TEXT_SIZE))


class Browser(Member):
    """The same through a WebSocket: the heads of frames are read, and their payload counted."""

    def __init__(self, server: Running) -> None:
        super().__init__(server)
        self.head = b""  # of a frame, as far as it has come
        self.left = 0  # bytes of its payload that have yet to come

    def receive_text(self, flags: int) -> int:
        while not self.left:
            if not self.receive_head():
                return 0
        size = self.hears.recv_into(received, min(self.left, RECEIVE_SIZE), flags)
        self.gone = not size
        self.left -= size
        return size

    def receive_head(self) -> bool:
        """Receives the head of a frame of text; says whether there is one. Raises OSError."""
        while len(self.head) < websocket.head_size(self.head):
            more = self.hears.recv(websocket.head_size(self.head) - len(self.head))
            self.head += more
            if not more or self.head[0] != websocket.TEXT:
                self.gone = True
                return False
        self.left = websocket.payload_size(self.head)
        self.head = b""
        return True


class TLSMember(Member):
    """The same through TLS: what arrives has to be decrypted to be counted."""

    def receive_text(self, flags: int) -> int:
        try:
            size = self.hears.recv_into(received, RECEIVE_SIZE)
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error
        self.gone = not size
        return size


def new_member(server: Running) -> Member:
    if server.tls:
        return TLSMember(server)
    return Browser(server) if server.dialect.in_frames else Member(server)


def gather(server: Running, count: int, raw: int = 0) -> list[Member]:
    """Returns so many members, each of whom is known to hear what the others say. The first `raw`
    of them use no WebSocket, if the server lets them choose."""
    members = [new_member(server.raw() if number < raw else server) for number in range(count)]
    audience = members if server.dialect.hears_itself else members[1:]
    for number in range(100):
        text = b"probe %d" % number
        members[0].says.send(members[0].dialect.say(text))
        if all_hear(audience, server.dialect.heard(text)):
            break
    else:
        raise RuntimeError("not everyone in the room can be reached")
    for member in members:
        member.receive_all()
        member.heard = 0
    return members


def all_hear(members: Sequence[Member], line: bytes) -> bool:
    """Says whether each member hears this line soon."""
    heard = dict.fromkeys(members, b"")
    deadline = time.perf_counter() + REACH_TIME + len(members) / 2000
    while heard and time.perf_counter() < deadline:
        for member in list(heard):
            size = member.receive(0)
            heard[member] = (heard[member] + received[:size])[-len(line) :]
            if heard[member] == line:
                del heard[member]
        time.sleep(0.001)
    return not heard


def close_all(members: Sequence[Member]) -> None:
    for member in members:
        member.hears.close()
        member.says.close()


def missing(members: Sequence[Member]) -> int:
    """Returns how many messages that were said have not been heard."""
    said = sum(member.said for member in members)
    own = 0 if members[0].dialect.hears_itself else said
    return said * len(members) - own - sum(member.messages() for member in members)


def flood(
    server: Running, seconds: float, listeners: int, senders: int, raw: bool = True
) -> Result:
    return Flood(server, seconds, listeners, senders, raw).run()


class Flood:
    """Senders say as much as they can for some seconds; then all of it has to arrive. They are raw
    members where they can, also where the listeners are browsers, unless told otherwise."""

    def __init__(
        self, server: Running, seconds: float, listeners: int, senders: int, raw: bool
    ) -> None:
        self.members = gather(server, senders + listeners, senders if raw else 0)
        self.auditor = self.members[-1]  # counts messages, where the others count bytes
        text = b"." * (TEXT_SIZE - 1) + MARK
        self.chunk = memoryview(self.members[0].dialect.say_often(text, CHUNK_LINES))
        self.poller = select.epoll()
        self.hearers = {member.hears.fileno(): member for member in self.members}
        self.sayers = {member.says.fileno(): member for member in self.members[:senders]}
        for descriptor in {**self.hearers, **self.sayers}:
            self.poller.register(descriptor, select.EPOLLIN)
        self.meter = Meter(server, seconds)
        self.deadline = self.meter.start + seconds
        self.talking = True

    def run(self) -> Result:
        for descriptor in self.sayers:
            self.poller.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)
        while (self.talking or missing(self.members)) and not self.meter.gives_up():
            for descriptor, event in self.poller.poll(0.1):
                if event & ~select.EPOLLOUT:
                    self.hear(descriptor)
                if event & select.EPOLLOUT:
                    self.say(descriptor)
            self.talking = self.meter.end < self.deadline
        messages = sum(member.messages() for member in self.members)
        result = self.meter.result(messages, missing(self.members))
        if not result.late:
            result.lost += abs(self.auditor.marks - self.auditor.messages())
        close_all(self.members)
        return result

    def hear(self, descriptor: int) -> None:
        member = self.hearers.get(descriptor)
        if member is None:  # the answers to what somebody said
            self.sayers[descriptor].receive_answers()
            return
        if member is self.auditor:
            size = member.receive(0)
            member.marks += received.count(MARK, 0, size)
        else:
            member.receive()
        if member.gone:
            self.poller.unregister(descriptor)
        self.meter.arrived()

    def say(self, descriptor: int) -> None:
        member = self.sayers[descriptor]
        if member.gone:
            return
        if member.unsent or self.talking:
            if not member.unsent:
                member.unsent = self.chunk
                member.said += CHUNK_LINES
            member.send()
        else:
            self.poller.modify(descriptor, select.EPOLLIN)


def converse(server: Running, seconds: float, talkers: int, rate: int, idle: int = 0) -> Result:
    return Conversation(server, seconds, talkers, rate, idle).run()


class Conversation:
    """Members say `rate` lines a second in all, while others, the idle ones, only hear them.

    The time from saying to hearing is measured at a few members. The rest is received now and then,
    so that nobody is behind.
    """

    def __init__(
        self, server: Running, seconds: float, talkers: int, rate: int, idle: int = 0
    ) -> None:
        self.poller = select.epoll()  # made first: select() takes descriptors below 1,024 alone
        self.members = gather(server, talkers + idle)
        random.Random(7).shuffle(self.members)  # the order of talking isn't that of joining
        self.talkers = self.members[:talkers]
        self.rests = dict.fromkeys(self.talkers[:WATCHERS], b"")  # beginnings of texts
        self.others = cycle([member for member in self.members if member not in self.rests])
        self.watchers = {member.hears.fileno(): member for member in self.rests}
        for descriptor in self.watchers:
            self.poller.register(descriptor, select.EPOLLIN)
        self.delays: list[float] = []
        self.gap = 1 / rate
        self.left = int(seconds * rate)  # lines still to be said
        self.meter = Meter(server, seconds)

    def run(self) -> Result:
        due = self.meter.start
        speakers = cycle(self.talkers)
        share = 8 + len(self.members) // 100
        while (self.left or missing(self.members)) and not self.meter.gives_up():
            # select() takes times of less than a millisecond, and an epoll is a descriptor too.
            wait = max(0.0, due - time.perf_counter()) if self.left else 0.01
            select.select([self.poller], [], [], wait)
            for descriptor, _ in self.poller.poll(0):
                self.look(descriptor)
            for member in islice(self.others, share if self.left else len(self.members)):
                if member.receive_all():
                    self.meter.arrived()
            while self.left and time.perf_counter() >= due:
                self.say(next(speakers))
                due += self.gap
        result = self.meter.result(
            sum(member.messages() for member in self.members), missing(self.members), self.delays
        )
        close_all(self.members)
        return result

    def look(self, descriptor: int) -> None:
        """Receives from a watcher, and looks at the time that each text bears."""
        member = self.watchers[descriptor]
        size = member.receive(0)
        now = time.perf_counter_ns()
        *texts, self.rests[member] = (self.rests[member] + received[:size]).split(MARK)
        self.delays.extend((now - int(text[-19:])) / 1e9 for text in texts)
        self.meter.arrived()
        if member.gone:
            self.poller.unregister(descriptor)

    def say(self, member: Member) -> None:
        text = b"%*d%s" % (TEXT_SIZE - 1, time.perf_counter_ns(), MARK)
        member.unsent = memoryview(bytes(member.unsent) + member.dialect.say(text))
        member.said += 1
        member.send()
        self.left -= 1


def crowd(server: Running, seconds: float, members: int, rate: int) -> Result:
    """A conversation in a crowd, and what each member costs in memory."""
    before = server.memory()
    talk = Conversation(server, seconds, WATCHERS, rate, members - WATCHERS)
    memory = server.memory() - before
    result = talk.run()
    result.memory = memory / members
    return result


def beside_stuck(server: Running, seconds: float, talkers: int, rate: int, stuck: int) -> Result:
    """A conversation beside members who read nothing and have a queue in the room. It is too short
    for any of them to be so far behind that the room slows down."""
    socks = [connect_to_be_stuck(server) for _ in range(stuck)]
    talk = Conversation(server, seconds, talkers, rate)
    filling = server.dialect.say_often(b"." * TEXT_SIZE, FILLING // (TEXT_SIZE + 1))
    talk.talkers[0].says.setblocking(True)
    talk.talkers[0].says.sendall(filling)
    talk.talkers[0].says.setblocking(False)
    wait_until_quiet(server)
    for member in talk.members:
        member.receive_all()
        member.heard = 0
    talk.meter = Meter(server, seconds)
    result = talk.run()
    result.lost += sum(map(was_cut_off, socks))
    for sock in socks:
        sock.close()
    return result


def connect_to_be_stuck(server: Running) -> socket.socket:
    """Returns a connection on which the kernel holds little: 30 KB, where it is 3 MB otherwise."""
    sock = socket.socket()
    set_options(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    sock.connect(server.address)
    return sock


# --- Echo servers --------------------------------------------------------------------------------


def echo_small(server: Running, seconds: float, connections: int, idle: int = 0) -> Result:
    """Each connection has one message of 64 bytes under way, beside so many idle connections.

    They are served in turns, with blocking calls and nothing else: two system calls a message.
    """
    message = b"." * TEXT_SIZE + b"\n"
    idlers = [server.connect() for _ in range(idle)]
    socks = [server.connect() for _ in range(connections)]
    for sock in socks:
        sock.sendall(message)
        if receive_exactly(sock, len(message)) != message:
            raise RuntimeError("what came back is not what was sent")
    into, size = memoryview(received), len(message)
    calls = [(sock.recv_into, sock.send) for sock in socks]
    delays: list[float] = []
    meter = Meter(server, seconds)
    sent_at = []
    for _, send in calls:
        sent_at.append(time.perf_counter())
        send(message)
    lost = 0
    while meter.end < meter.start + seconds:
        for number, (receive, send) in enumerate(calls):
            lost += receive(into, size, socket.MSG_WAITALL) != size
            now = time.perf_counter()
            delays.append(now - sent_at[number])
            sent_at[number] = now
            send(message)
        meter.arrived()
    result = meter.result(len(delays), 0, delays)
    result.lost = lost
    for sock in socks + idlers:
        sock.close()
    return result


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Returns so many bytes from a blocking socket, fewer if the stream ends."""
    data = bytearray()
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            break
        data += more
    return bytes(data)


def echo_bulk(server: Running, seconds: float, connections: int, size: int) -> Result:
    return EchoBulk(server, seconds, connections, size).run()


class EchoBulk:
    """Each connection sends a message, and another one when all of it has come back."""

    def __init__(self, server: Running, seconds: float, connections: int, size: int) -> None:
        self.message = memoryview(os.urandom(size))
        self.socks = {}
        self.poller = select.epoll()
        for _ in range(connections):
            sock = server.connect()
            sock.setblocking(False)
            self.check(sock)
            self.socks[sock.fileno()] = sock
            self.poller.register(sock, select.EPOLLIN | select.EPOLLOUT)
        self.unsent = dict.fromkeys(self.socks, self.message)
        self.expected = dict.fromkeys(self.socks, size)  # bytes that have to come back
        self.echoed = 0  # messages
        self.meter = Meter(server, seconds)
        self.deadline = self.meter.start + seconds

    def check(self, sock: socket.socket) -> None:
        """Sends one message and looks at what comes back; later, bytes are only counted."""
        back = b""
        unsent = self.message
        while len(back) < len(self.message):
            readable, writable, _ = select.select([sock], [sock] if unsent else [], [], STALLED)
            if writable:
                unsent = unsent[sock.send(unsent) :]
            if readable:
                back += sock.recv(RECEIVE_SIZE)
            if not readable and not writable:
                break
        if back != self.message:
            raise RuntimeError("what came back is not what was sent")

    def run(self) -> Result:
        while self.expected and not self.meter.gives_up():
            for descriptor, event in self.poller.poll(0.1):
                if event & select.EPOLLOUT:
                    self.send(descriptor)
                if event & ~select.EPOLLOUT:
                    self.receive(descriptor)
        result = self.meter.result(self.echoed, len(self.expected))
        for sock in self.socks.values():
            sock.close()
        return result

    def send(self, descriptor: int) -> None:
        unsent = self.unsent[descriptor]
        self.unsent[descriptor] = unsent[self.socks[descriptor].send(unsent) :]
        if not self.unsent[descriptor]:
            self.poller.modify(descriptor, select.EPOLLIN)

    def receive(self, descriptor: int) -> None:
        sock = self.socks[descriptor]
        self.expected[descriptor] -= sock.recv_into(received, RECEIVE_SIZE, DISCARD)
        if self.expected[descriptor]:
            return
        self.echoed += 1
        self.meter.arrived()
        if self.meter.end < self.deadline:
            self.expected[descriptor] = len(self.message)
            self.unsent[descriptor] = self.message
            self.poller.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)
            self.send(descriptor)
        else:
            self.poller.unregister(descriptor)
            del self.expected[descriptor]


# --- Both ----------------------------------------------------------------------------------------


def idle(server: Running, seconds: float, connections: int) -> Result:
    """Connections that say nothing: what each costs in memory, and all of them in CPU time."""
    before = server.memory()
    socks = []
    with suppress(OSError):
        for _ in range(connections):
            socks.append(server.connect())
            server.dialect.greet(socks[-1])
    wait_until_quiet(server)
    after, cpu = server.memory(), server.cpu()
    time.sleep(seconds)
    cpu = (server.cpu() - cpu) / seconds
    lost = connections - len(socks) + sum(map(was_cut_off, socks))
    for sock in socks:
        sock.close()
    if lost == connections:
        return Result(lost=lost)
    return Result(lost=lost, cpu=cpu, memory=(after - before) / (connections - lost))


def wait_until_quiet(server: Running) -> None:
    """Waits until a server has dealt with its newcomers and has little to do any more."""
    used = -QUIET
    while server.cpu() - used > QUIET / 4:
        used = server.cpu()
        time.sleep(QUIET)


def was_cut_off(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        while sock.recv(4096):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True
