"""Newcomers by the thousand: each connects, joins, is welcomed, and stays."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterator

import websocket
from servers import Lines, Running, set_options, unverified
from works import Meter, Result, wait_until_quiet

MOST_AT_DOOR = 50  # newcomers at once: a room behind TLS takes no more than 100


class Newcomer:
    """One who is joining. `steps` yields what it waits for, an epoll event, until it is in."""

    def __init__(self, server: Running, tls: ssl.SSLContext | None) -> None:
        self.came_at = time.perf_counter()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        set_options(self.sock)
        self.sock.connect_ex(server.address)
        self.steps = self.join(server.dialect, tls)

    def join(self, dialect: Lines, tls: ssl.SSLContext | None) -> Iterator[int]:
        """Raises OSError."""
        yield select.EPOLLOUT
        if tls:
            self.sock = tls.wrap_socket(self.sock, do_handshake_on_connect=False)
            yield from self.shake_hands(self.sock)
        if dialect.in_frames:
            self.sock.send(websocket.request(*self.sock.getpeername()))
        answer = b""
        while dialect.welcome not in answer:
            yield select.EPOLLIN
            try:
                more = self.sock.recv(4096)
            except ssl.SSLWantReadError:
                continue
            if not more:
                raise ConnectionError("refused")
            answer += more

    @staticmethod
    def shake_hands(sock: ssl.SSLSocket) -> Iterator[int]:
        while True:
            try:
                sock.do_handshake()
                return
            except ssl.SSLWantReadError:
                yield select.EPOLLIN


class Joining:
    """So many newcomers a second, if server and load can do that, for some seconds."""

    def __init__(self, server: Running, seconds: float, rate: int) -> None:
        self.server = server
        self.seconds = seconds
        self.tls = unverified() if server.tls else None
        self.poller = select.epoll()
        self.joining: dict[int, Newcomer] = {}  # by descriptor
        self.inside: list[socket.socket] = []
        self.refused = 0
        self.delays: list[float] = []
        self.gap = 1 / rate
        self.left = int(seconds * rate)  # newcomers still to come

    def run(self) -> Result:
        memory = self.server.memory()
        meter = Meter(self.server, self.seconds)
        due = meter.start
        while (self.left or self.joining) and not meter.gives_up():
            wait = max(0.0, due - time.perf_counter()) if self.left else 0.1
            if len(self.joining) == MOST_AT_DOOR:
                wait = 0.1
            for descriptor, _ in self.poller.poll(wait):
                self.step(self.joining[descriptor])
                meter.arrived()
            while self.left and len(self.joining) < MOST_AT_DOOR and time.perf_counter() >= due:
                self.come()
                due += self.gap
        result = meter.result(len(self.inside), self.left + len(self.joining), self.delays)
        result.lost += self.refused
        wait_until_quiet(self.server)  # not every server tells newcomers that they are in
        count = max(len(self.inside), 1)
        result.cpu = (self.server.cpu() - meter.server_cpu) / count
        result.memory = (self.server.memory() - memory) / count
        for sock in [*self.inside, *(one.sock for one in self.joining.values())]:
            sock.close()
        return result

    def come(self) -> None:
        newcomer = Newcomer(self.server, self.tls)
        self.left -= 1
        self.joining[newcomer.sock.fileno()] = newcomer
        self.poller.register(newcomer.sock, next(newcomer.steps))

    def step(self, newcomer: Newcomer) -> None:
        descriptor = newcomer.sock.fileno()
        try:
            self.poller.modify(descriptor, next(newcomer.steps))
            return
        except StopIteration:
            self.inside.append(newcomer.sock)
            self.delays.append(time.perf_counter() - newcomer.came_at)
        except OSError:
            self.refused += 1
        self.poller.unregister(descriptor)
        del self.joining[descriptor]


def join(server: Running, seconds: float, rate: int) -> Result:
    return Joining(server, seconds, rate).run()
