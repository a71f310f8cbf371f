"""Many peers, moved by one selectors loop: for floods, and for members who act at random."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

from support import DEADLINE, WELCOME, Server


class Walker:
    """A non-blocking peer: sends what it has to as fast as it can, and keeps what it gets."""

    def __init__(self, server: Server, receive_buffer: int = 0, web: bool | None = None) -> None:
        self.sock = server.dial(receive_buffer=receive_buffer, web=web)
        self.sock.setblocking(False)
        self.outgoing = memoryview(b"")
        self.received = bytearray()
        self.reading = True  # False for one that is stuck
        self.most = 1 << 20  # bytes that it reads at once
        self.ended = False  # the server has closed, or reset, the connection
        self.closed = False  # we have
        if self.has_more():
            self.move(EVENT_READ)  # it came together with the answer to the upgrade

    def say(self, data: bytes) -> None:
        self.outgoing = memoryview(bytes(self.outgoing) + data)

    def lines(self) -> list[bytes]:
        return bytes(self.received).split(b"\n")[:-1]

    def wants(self) -> int:
        if self.closed:
            return 0
        return EVENT_READ * (self.reading and not self.ended) | EVENT_WRITE * self.has_to_send()

    def has_to_send(self) -> bool:
        return bool(self.outgoing or getattr(self.sock, "outgoing", b""))  # a browser's frames

    def has_more(self) -> bool:
        """Says whether there is something to receive that isn't in the kernel any more."""
        return hasattr(self.sock, "pending") and bool(self.sock.pending())

    def move(self, events: int) -> None:
        try:
            if events & EVENT_WRITE and self.has_to_send():
                self.outgoing = self.outgoing[self.sock.send(self.outgoing[:65536]) :]
            if events & EVENT_READ:
                data = self.sock.recv(self.most)
                self.received += data
                self.ended = not data
                if data and self.has_more():
                    self.move(events)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self.ended = True
            self.outgoing = memoryview(b"")

    def close(self) -> None:
        self.closed = True
        self.sock.close()


def pump(walkers: Iterable[Walker], until: Callable[[], bool], wait: float = 0.02) -> None:
    """Moves the walkers' bytes until the condition holds."""
    deadline = time.monotonic() + DEADLINE
    with DefaultSelector() as selector:
        registered: dict[Walker, int] = {}
        while not until():
            assert time.monotonic() < deadline, "did not happen in time"
            for walker in walkers:
                wants, has = walker.wants(), registered.get(walker, 0)
                if wants != has and has:
                    selector.unregister(walker.sock)
                if wants != has and wants:
                    selector.register(walker.sock, wants, walker)
                registered[walker] = wants
            for key, events in selector.select(wait):
                key.data.move(events)


def numbered(name: str, count: int, size: int = 64) -> bytes:
    """Returns lines that say who sent them and which one each is."""
    lines = (f"{name} {number} ".encode().ljust(size - 1, b".") + b"\n" for number in range(count))
    return b"".join(lines)


def walkers(room: Server, count: int, receive_buffer: int = 0) -> list[Walker]:
    """Returns `count` members that have got their welcome."""
    members = [Walker(room, receive_buffer) for _ in range(count)]
    pump(members, lambda: all(len(member.received) >= len(WELCOME) for member in members))
    for member in members:
        del member.received[: len(WELCOME)]
    return members
