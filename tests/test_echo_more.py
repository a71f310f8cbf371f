"""The echo server from inside: it is made but doesn't run, and takes turns as the tests say."""

from __future__ import annotations

import errno
import socket
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest
from support import Peer, pair

import echo_server


def echo_client(peer_name: str = "peer") -> tuple[Any, echo_server.Connection, Peer]:
    """Returns an echo server, with one client, and that one's peer."""
    server = echo_server.EchoServer([], 9)
    sock, peer = pair()
    server.admit(sock, peer_name)
    (conn,) = server.clients
    return server, conn, peer


class Reluctant:
    """A socket of which the kernel takes only so many bytes at once; for 0 it takes nothing now."""

    def __init__(self, sock: socket.socket, *sizes: int) -> None:
        self.sock = sock
        self.sizes = [*sizes]

    def send(self, data: bytes) -> int:
        size = self.sizes.pop(0) if self.sizes else len(data)
        if not size:
            raise BlockingIOError
        return self.sock.send(data[:size])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.mark.parametrize("sizes", [(3, 3, 3), (0, 9), (0, 0, 1, 0, 8)])
def test_an_echo_takes_as_many_sends_as_it_needs(sizes: tuple[int, ...]) -> None:
    server, conn, peer = echo_client()
    reluctant: Any = Reluctant(conn.sock, *sizes)
    conn.sock = reluctant
    server.serve(conn, EVENT_READ)  # that it is ready is a hint, not a promise
    peer.send(b"0123456789")
    peer.half_close()
    for _ in range(1 + len(sizes)):
        (key,) = server.selector.get_map().values()
        assert key.events == (EVENT_WRITE if conn.write_buffer else EVENT_READ)
        server.turn()
    assert not conn.write_buffer
    server.turn()
    assert peer.rest() == b"0123456789"
    assert not server.clients
    assert conn.sock.fileno() == -1


def test_an_echo_costs_no_look_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    server, _conn, peer = echo_client()
    peer.send("hi\n")
    monkeypatch.setattr(echo_server, "time", None)
    server.turn()
    peer.expect("hi\n")


def test_a_bug_of_the_echo_server_ends_one_connection_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(conn: echo_server.Connection, data: bytes) -> None:
        if conn.peer == "Ann":
            raise ValueError("a bug")

    monkeypatch.setattr(echo_server.Connection, "log_lines", stumble)
    server, _conn, ann = echo_client("Ann")
    server.logs_messages = True
    sock, bob = pair()
    server.admit(sock, "Bob")
    ann.send(b"hi\n")
    bob.send(b"ho\n")
    server.turn()
    assert ann.rest() == b""
    bob.expect("ho\n")
    assert "ValueError: a bug" in caplog.text


def test_an_endless_line_that_is_logged_costs_no_memory() -> None:
    _server, conn, _peer = echo_client()
    for _ in range(3):
        conn.log_lines(b"x" * 10 * echo_server.MAX_LOGGED_LINE)
    assert len(conn.read_buffer) == echo_server.MAX_LOGGED_LINE


def test_each_shortage_is_logged_once_and_whoever_has_left_already_is_none(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo_server, "ACCEPT_REST", 0.01)
    accept, failing = socket.socket.accept, [errno.ECONNABORTED]

    def fail(listener: socket.socket) -> Any:
        if failing:
            raise OSError(failing.pop(), "failed")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", fail)
    listeners = echo_server.open_listeners(["127.0.0.1"], 0)
    server = echo_server.EchoServer(listeners, 9)
    peers = []
    for shortages, count in enumerate((1, 3, 2)):
        peers.append(socket.create_connection(listeners[0].getsockname()))
        while len(server.clients) < len(peers):
            server.turn()
        assert caplog.text.count("newcomers have to wait") == shortages
        failing = [errno.EMFILE] * count
    for sock in (*listeners, *peers):
        sock.close()
