"""The echo server: exactly the bytes that came, for many, whatever they do."""

from __future__ import annotations

import errno
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any
from unittest import mock

import pytest
from pytest import LogCaptureFixture, MonkeyPatch
from support import DEADLINE, Peer, Server, Start, checked_server, eventually, pair

import chat_server
import echo_server


def send_and_half_close(client: Peer, data: bytes) -> None:
    client.send(data)
    client.half_close()


def gets_echo(client: Peer, data: bytes) -> None:
    client.send(data)
    assert client.read(len(data)) == data


def test_any_bytes_come_back(echo: Server) -> None:
    client = echo.connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    single = [bytes([byte]) for byte in "Grüße\n".encode()]
    for message in (b"Hello\n", b"no newline", bytes(range(256)), b"\xff\xfb\x01\0\r\n", *single):
        gets_echo(client, message)


def test_half_closed_clients_get_the_rest_of_their_own_echo(echo: Server) -> None:
    clients = [echo.connect(receive_buffer=4096) for _ in range(4)]
    data = [os.urandom(2_000_000) for _ in clients]
    with ThreadPoolExecutor() as senders:
        for client, own in zip(clients, data):
            senders.submit(send_and_half_close, client, own)
        early = [one.read(100_000) for one in clients]  # all have backlogs while these are read
        for client, own, beginning in zip(clients, data, early):
            assert beginning + client.rest() == own


def test_client_that_only_sends_is_not_read_from_and_nobody_notices(echo: Server) -> None:
    """It costs no memory; and no CPU while it waits, nor when its backlog is gone."""
    other, deaf = echo.connect(), echo.connect(receive_buffer=4096)
    before = echo.memory()
    deaf.sock.settimeout(0.3)
    sent = 0
    with suppress(socket.timeout):
        while sent < 64_000_000:  # what fits in the kernels' buffers is less
            sent += deaf.sock.send(b"x" * 65536)
    deaf.sock.settimeout(DEADLINE)
    assert sent < 64_000_000
    for _ in range(2):
        cpu = echo.cpu_seconds()
        time.sleep(0.3)  # not to wait for something, but to see that nothing happens
        assert echo.cpu_seconds() - cpu < 0.06
        gets_echo(other, b"ping")
        assert len(deaf.read(sent)) == sent
        deaf.send(b"x" * 10)
        sent = 10
    assert echo.memory() - before < 4_000_000
    deaf.half_close()
    assert deaf.rest() == b"x" * 10


def test_a_thousand_at_once_get_every_byte_and_resets_end_others_alone(echo: Server) -> None:
    clients = [echo.connect() for _ in range(1000)]
    for _ in range(50):
        client = echo.connect()
        client.send(b"x" * 1000)
        client.reset()
    messages = [f"client {number} ".encode() * 200 for number in range(len(clients))]
    for client, message in zip(clients, messages):
        send_and_half_close(client, message)
    for client, message in zip(clients, messages):
        assert client.rest() == message
        client.close()
    eventually(lambda: echo.count() == 0)
    assert "Traceback" not in echo.log()


def test_more_than_max_clients_are_turned_away(start: Start) -> None:
    echo = start("echo_server.py", "--max-clients", "2")
    first, second = echo.connect(), echo.connect()
    gets_echo(second, b"in")
    assert echo.connect().rest() == b""
    first.close()
    echo.wait_for_log("disconnected, clients: 1")
    gets_echo(echo.connect(), b"now")


def test_verbose_log_shows_messages_as_lines_without_their_tricks(start: Start) -> None:
    echo = start("echo_server.py", "-v")
    client = echo.connect()
    gets_echo(client, b"one\r\ntw")
    client.send(b"o\n\x1b[31m\xff\n" + b"x" * 10_000 + b"\nlast")
    client.half_close()
    client.rest()
    address = "{}:{}".format(*client.sock.getsockname())
    echo.wait_for_log(f"{address} disconnected")
    shown = [line.split(": ", 1)[1] for line in echo.log().splitlines() if f"{address}: " in line]
    assert shown == ["one", "two", "\\x1b[31m\\xff", "x" * 8192, "last"]


def echo_client(peer_name: str = "peer") -> tuple[Any, echo_server.Connection, Peer]:
    """Returns an echo server, with one client, and that one's peer."""
    server = echo_server.EchoServer([], 9)
    sock, peer = pair()
    server.admit(sock, peer_name)
    (conn,) = server.clients
    return server, conn, peer


@pytest.mark.parametrize("sizes", [(3, 3, 3), (0, 9), (0, 0, 1, 0, 8)])
def test_an_echo_takes_the_sends_it_needs(monkeypatch: MonkeyPatch, sizes: tuple[int, ...]) -> None:
    """The kernel takes only so many bytes at once; for 0 it takes nothing now."""
    server, conn, peer = echo_client()
    sock, left = conn.sock, [*sizes]
    monkeypatch.setattr(echo_server, "time", None)

    def send(data: bytes) -> int:
        size = left.pop(0) if left else len(data)
        if not size:
            raise BlockingIOError
        return sock.send(data[:size])

    conn.sock = mock.Mock(wraps=sock, send=send)
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


def test_a_bug_ends_one_echo_alone(caplog: LogCaptureFixture, monkeypatch: MonkeyPatch) -> None:
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


def test_an_endless_line_costs_no_memory_and_many_are_counted(caplog: LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    _server, conn, _peer = echo_client()
    for count in (100, 101):
        conn.log_lines(b"x\n" * count)
    assert [line for line in caplog.messages if "more lines" in line] == ["peer: (1 more lines)"]
    for _ in range(3):
        conn.log_lines(b"x" * 10 * echo_server.MAX_LOGGED_LINE)
    assert len(conn.read_buffer) == echo_server.MAX_LOGGED_LINE


@pytest.mark.parametrize("module", [echo_server, chat_server])
def test_each_shortage_is_logged_once_and_newcomers_get_in_after_it(
    caplog: LogCaptureFixture, monkeypatch: MonkeyPatch, module: Any
) -> None:
    """Nobody leaves meanwhile, and nothing else wakes a server; whoever has left already is no
    shortage."""
    accept, failing = socket.socket.accept, [errno.ECONNABORTED, errno.ECONNRESET]

    def fail(listener: socket.socket) -> Any:
        if failing:
            raise OSError(failing.pop(), "failed")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", fail)
    listeners = module.open_listeners(["127.0.0.1"], 0)
    server: Any = echo_server.EchoServer(listeners, 9)
    if module is chat_server:
        server = checked_server(listeners)
        server.door.open()
    inside = server.clients if module is echo_server else server.room.members
    peers = []
    for shortages, count in enumerate((1, 3, 2)):
        peers.append(socket.create_connection(listeners[0].getsockname()))
        while len(inside) < len(peers):
            server.turn()
        assert caplog.text.count("newcomers have to wait") == shortages
        failing = [errno.EMFILE] * count
    for sock in (*listeners, *peers):
        sock.close()
