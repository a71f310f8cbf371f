"""Two who talk quietly, beside others who flood the room in some way."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Any

import websocket
from servers import Running, set_options
from works import MARK, TEXT_SIZE, Meter, Result, close_all, gather, received

FLOODERS = "127.0.0.9"  # where they come from: to the room that is another host than the two
PIECE = 16 * 1024  # bytes that a flooder hands to the kernel at once
KEY_CHANGES = 50  # that it hands to the kernel at once
GAP = 0.05  # seconds between two lines of the quiet
SETTLING = 1.0  # seconds of the flood that aren't measured
PING = 0x89  # the first byte of such a frame

# What each kind of flood repeats.
UNITS = {
    "lines": b"." * TEXT_SIZE + b"\n",
    "telnet": b"\xff\xf1",
    "pings": websocket.frame(b"", PING),
    "tiny frames": websocket.frame(b""),
    "/who": b"/who\n",
    "blanks": b"\n",
    "single bytes": b"x\n",
    "key updates": b"",
}


def attacked(server: Running, seconds: float, kind: str, flooders: int) -> Result:
    """Returns how long lines of the one took to the other, and the server's CPU time for each of
    them. The flood is a process of its own."""
    quiet = gather(server.raw(), 2)
    child = os.fork()
    if not child:
        try:
            os.nice(5)
            flood_for_ever(server, kind, flooders)
        finally:
            os._exit(0)
    try:
        talk(server, SETTLING, *quiet)
        return talk(server, seconds, *quiet)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        close_all(quiet)


def talk(server: Running, seconds: float, ann: Any, bob: Any) -> Result:
    """One of the two says a line now and then; the other looks at the time that each bears."""
    delays: list[float] = []
    rest, left = b"", int(seconds / GAP)
    lines = left
    meter = Meter(server, seconds)
    due = meter.start
    while (left or len(delays) < lines) and not meter.gives_up():
        wait = max(0.0, due - time.perf_counter()) if left else GAP
        select.select([ann.hears, bob.hears], [], [], wait)
        ann.receive_all()  # the flood
        size = bob.receive(0)
        now = time.perf_counter_ns()
        *texts, rest = (rest + received[:size]).split(MARK)
        delays += [(now - int(text[-19:])) / 1e9 for text in texts]
        if texts:
            meter.arrived()
        if left and time.perf_counter() >= due:
            ann.unsent = memoryview(b"%*d%s\n" % (TEXT_SIZE - 1, time.perf_counter_ns(), MARK))
            ann.send()
            left -= 1
            due += GAP
    return meter.result(len(delays), lines - len(delays), delays)


def flood_for_ever(server: Running, kind: str, flooders: int) -> None:
    """Sends what the kernel takes, from each connection in turns, until it is killed."""
    poller = select.epoll()
    flows = {}
    for _ in range(flooders):
        flow = Flow(server, kind)
        flows[flow.sock.fileno()] = flow
        poller.register(flow.sock, select.EPOLLIN | select.EPOLLOUT)
    while flows:
        for descriptor, event in poller.poll():
            try:
                flows[descriptor].go_on(event)
            except BlockingIOError:
                pass
            except OSError:
                poller.unregister(descriptor)
                del flows[descriptor]
        if kind == "single bytes":  # else the kernel would put them together
            time.sleep(0.001)


class Flow:
    """A connection that floods."""

    def __init__(self, server: Running, kind: str) -> None:
        in_frames = kind in ("pings", "tiny frames")
        self.sock = socket.socket()
        set_options(self.sock)
        self.sock.bind((FLOODERS, 0))
        self.sock.connect(server.address if in_frames else server.raw().address)
        if in_frames:
            websocket.shake_hands(self.sock)
        self.keys = begin_tls(self.sock) if kind == "key updates" else None
        self.unit = len(UNITS[kind]) or 1
        self.data = UNITS[kind] * (PIECE // self.unit)
        self.size = 1 if kind == "single bytes" else PIECE
        self.at = 0  # where in the data it goes on
        self.sock.setblocking(False)

    def go_on(self, event: int) -> None:
        """Takes what came, and sends what the kernel takes. Raises OSError."""
        if event & ~select.EPOLLOUT and not self.sock.recv(16 * PIECE):
            raise ConnectionError("the room has closed it")
        if self.keys and self.at == len(self.data):
            self.data = self.keys.change_keys(KEY_CHANGES)
            self.at = 0
        if event & select.EPOLLOUT:
            self.at += self.sock.send(self.data[self.at : self.at + self.size])
            if not self.keys:
                self.at %= self.unit


def begin_tls(sock: socket.socket) -> Any:
    """Shakes hands on a blocking socket; returns what can change keys then."""
    from openssl import KeyChanger

    keys = KeyChanger()
    while not keys.is_ready():
        sock.sendall(keys.shake_hands())
        if not keys.is_ready():
            keys.feed(sock.recv(PIECE))
    sock.sendall(keys.shake_hands())
    return keys
