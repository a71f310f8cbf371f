"""The servers from inside: they are made but don't run, and what the tests are about is called."""

from __future__ import annotations

import errno
import hmac
import select
import selectors
import socket
import ssl
import time
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest
from support import CERTS, DEADLINE, WELCOME, Peer

import chat_client
import chat_server
import echo_server
from chat_server import ALLOWANCE, PATIENCE, ChatServer, Connection, Room


def pair() -> tuple[socket.socket, Peer]:
    """Returns the two ends of a connection: the server's, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), DEADLINE)
        ours, _ = listener.accept()
    ours.setblocking(False)
    return ours, Peer(theirs)


class Inside:
    """A chat server that doesn't run, and its members: each one's connection, and its peer."""

    def __init__(self) -> None:
        self.server = ChatServer([], Room())

    def join(self) -> tuple[Connection, Peer]:
        sock, peer = pair()
        before = set(self.server.members())
        self.server.admit(sock, "peer")
        self.server.deliver(self.server.room.take_batch())
        peer.expect(WELCOME)
        (conn,) = set(self.server.members()) - before
        return conn, peer


@pytest.fixture
def inside() -> Inside:
    return Inside()


def test_backlog_costs_what_is_counted(inside: Inside) -> None:
    conn, _ = inside.join()
    tracemalloc.start()
    try:
        for _ in range(10_000):
            inside.server.queue(conn, memoryview(b"%010d" % 7 * 1000)[:2])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.2 * conn.cost
    assert conn.cost < 1.2 * 20_000  # one-letter lines cost little more than their bytes


def test_many_who_flood_share_what_one_may_say(inside: Inside) -> None:
    server = inside.server
    (stuck, _), (talker, peer) = inside.join(), inside.join()
    server.congested[stuck] = time.monotonic() + PATIENCE
    server.spent = {inside.join()[0]: 1 for _ in range(16)}
    peer.send((b"x" * 99 + b"\n") * 300)
    for _ in range(10):
        server.guard(server.read, talker, 100_000)
    assert 0 < server.room.batch.size <= ALLOWANCE // 2


def test_allowance_is_renewed_with_each_tick(inside: Inside) -> None:
    server = inside.server
    (stuck, _), (talker, peer) = inside.join(), inside.join()
    server.congested[stuck] = time.monotonic() + PATIENCE
    peer.send((b"x" * 99 + b"\n") * 300)
    for _ in range(3):
        before = server.room.batch.size
        for _ in range(100):
            server.guard(server.read, talker, 100_000)
        assert 0 < server.room.batch.size - before <= 2 * ALLOWANCE
        assert not talker.reading
        server.tick(time.monotonic())
        assert talker.reading


def test_end_of_congestion_frees_those_it_held_up(inside: Inside) -> None:
    server = inside.server
    for end in (server.drop_backlog, server.stop_sending, server.close):
        (stuck, _), (talker, _) = inside.join(), inside.join()
        server.congested[stuck] = time.monotonic() + PATIENCE
        talker.later = b"waits\n"
        server.hold_up(talker)
        end(stuck)
        assert not server.congested
        assert talker.reading
        assert talker in server.pending


def test_what_came_before_sending_failed_is_heard_but_no_torn_line(inside: Inside) -> None:
    server = inside.server
    conn, peer = inside.join()
    peer.send(b"last words\ntorn")
    peer.reset()
    server.send(conn, memoryview(b"too late\n"))
    for _ in range(3):
        if conn in server.room.members:
            server.guard(server.read, conn, 100)
    assert server.room.take_batch().text() == b"last words\n"


def test_last_words_are_heard_although_something_was_said_after_the_close(inside: Inside) -> None:
    """Who has closed answers with a reset to what comes then. Its own stream was whole."""
    server = inside.server
    conn, peer = inside.join()
    peer.send(b"bye")
    peer.close()
    server.guard(server.read, conn, 100)
    for _ in range(3):  # the first is answered with the reset
        server.send(conn, b"too late\n")
    server.guard(server.read, conn, 100)
    assert server.room.take_batch().text() == b"bye\n"


def test_closing_room_hears_what_waits_for_the_next_turn(inside: Inside) -> None:
    server = inside.server
    (one, _), (_, two) = inside.join(), inside.join()
    server.hear(one, b"/name John\n", 99)
    one.later = b"waits\n" * 5000  # more than one turn would hear
    server.pending.add(one)
    server.close_room()
    two.expect("* John joined\n", *["John: waits\n"] * 5000, "* the room is closing\n")


def test_exception_in_delivery_ends_one_connection_alone(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = inside.server
    members = [inside.join() for _ in range(3)]
    send = server.send

    def stumble(conn: Connection, data: memoryview) -> None:
        if conn is members[0][0]:
            raise RuntimeError("a bug")
        send(conn, data)

    monkeypatch.setattr(server, "send", stumble)
    server.room.announce("hi")
    server.deliver(server.room.take_batch())
    assert members[0][1].rest() == b""
    for _, peer in members[1:]:
        peer.expect("* hi\n")


@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_newcomers_are_let_in_when_a_connection_was_closed(module: Any) -> None:
    server = ChatServer([], Room()) if module is chat_server else module.EchoServer([], 9)
    sock, _peer = pair()
    server.admit(sock, "peer")
    server.acceptor.retry_at = time.monotonic() + 1000
    (key,) = server.selector.get_map().values()
    server.drop(key.data, "gone")
    assert server.acceptor.retry_at is None


def test_newcomers_are_let_in_after_a_while(inside: Inside) -> None:
    inside.server.acceptor.retry_at = time.monotonic()
    inside.server.tick(time.monotonic())
    assert inside.server.acceptor.retry_at is None


@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_each_connection_gets_the_socket_options(module: Any) -> None:
    admitted: list[socket.socket] = []
    acceptor = module.Acceptor(
        selectors.DefaultSelector(), [], lambda sock, _: admitted.append(sock)
    )
    sock, _peer = pair()
    acceptor.hand_over(sock, sock.getpeername())
    for level, option, value in module.SOCKET_OPTIONS:
        assert admitted[0].getsockopt(level, option) == value
    assert admitted[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert admitted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_one_turn_hears_at_most_its_share(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "TURN_READ", 2000)
    conn, peer = inside.join()
    peer.send(b"y\n" * 10_000)
    inside.server.next_tick = time.monotonic() + 1000  # or it forgets what was spent
    inside.server.turn()
    assert 0 < inside.server.spent[conn] <= 2000 + chat_server.ITEM_WEIGHT


def test_exception_ends_one_echo_client_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    server = echo_server.EchoServer([], 9)
    sock, peer = pair()
    server.admit(sock, "peer")
    monkeypatch.setattr(server, "echo", lambda conn: 1 / 0)
    (key,) = server.selector.get_map().values()
    server.serve(key.data)
    assert peer.rest() == b""


def echo_client() -> tuple[echo_server.EchoServer, echo_server.Connection, Peer]:
    """Returns an echo server that doesn't run, with one client, and that one's peer."""
    server = echo_server.EchoServer([], 9)
    sock, peer = pair()
    server.admit(sock, "peer")
    (key,) = server.selector.get_map().values()
    return server, key.data, peer


def test_echo_of_a_backlog_takes_as_many_sends_as_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, conn, peer = echo_client()
    monkeypatch.setattr(echo_server.Connection, "send", lambda conn, data: conn.sock.send(data[:3]))
    peer.send(b"0123456789")
    select.select([conn.sock], [], [], DEADLINE)
    for _ in range(4):
        server.serve(conn)
    assert peer.read(10) == b"0123456789"
    assert not conn.backlog
    assert conn.backlog.obj == b""  # nor does it hold on to what was sent


def test_reset_ends_an_echo_client_at_once() -> None:
    server, conn, peer = echo_client()
    peer.reset()
    select.select([conn.sock], [], [], DEADLINE)
    server.serve(conn)
    assert server.clients == 0
    assert conn.sock.fileno() == -1


def test_who_has_said_least_lately_is_heard_first(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = inside.server
    monkeypatch.setattr(chat_server, "TURN_WEIGHT", 1)  # a turn is full after one of them
    (one, first), (two, second) = inside.join(), inside.join()
    for talker, other in ((one, two), (two, one)):
        first.send(b"first\n")
        second.send(b"second\n")
        select.select([one.sock], [], [], DEADLINE)
        select.select([two.sock], [], [], DEADLINE)
        server.spent = {talker: 1, other: 2}
        server.read_all({one, two})
        said = server.room.take_batch().text()
        assert said == (b"first\n" if talker is one else b"second\n")
        server.read_all({other})
        server.room.take_batch()


def test_who_has_left_is_closed_after_its_own_close(inside: Inside) -> None:
    """Not before: input that comes in between would make a reset of the close."""
    server = inside.server
    conn, peer = inside.join()
    server.hear(conn, b"/quit\n", 99)
    server.deliver(server.room.take_batch())
    assert peer.rest() == b""
    assert conn in server.leaving
    peer.close()
    select.select([conn.sock], [], [], DEADLINE)
    server.guard(server.read, conn, 99)
    assert conn not in server.leaving
    assert conn.sock.fileno() == -1


def test_tls_is_1_2_at_least_on_both_sides() -> None:
    server = chat_server.make_server_tls(str(CERTS / "room.pem"), str(CERTS / "room.key"))
    for context in (server, chat_client.make_client_tls(None)):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_admission_that_fails_ends_that_connection_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for failure in (OSError("reset meanwhile"), RuntimeError("a bug")):

        def admit(sock: socket.socket, peer: str, failure: Exception = failure) -> None:
            raise failure

        sock, peer = pair()
        for module in (chat_server, echo_server):
            module.Acceptor(selectors.DefaultSelector(), [], admit).hand_over(sock, None)
        assert peer.rest() == b""
        assert sock.fileno() == -1
    assert "somebody could not be admitted" in caplog.text


def test_too_many_who_are_turned_away_at_once_get_no_word(inside: Inside) -> None:
    server = inside.server
    server.max_clients = -chat_server.DOOR_SIZE
    sock, peer = pair()
    server.admit(sock, "peer")
    assert peer.rest() == b""


def test_small_views_in_a_backlog_do_not_hold_on_to_whole_batches(inside: Inside) -> None:
    conn, _ = inside.join()
    tracemalloc.start()
    try:
        for _ in range(40):  # each too large to be joined with the one before
            inside.server.queue(conn, memoryview(b"x" * 200_000)[:5000])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.2 * conn.cost


def test_who_leaves_with_a_backlog_slows_nobody_down(inside: Inside) -> None:
    server = inside.server
    (slow, _), (talker, _) = inside.join(), inside.join()
    server.queue(slow, memoryview(b"x" * (chat_server.HIGH_WATER + 1)))
    assert slow in server.congested
    server.hold_up(talker)
    server.room.leave(slow)
    server.start_leaving(slow)
    assert slow.backlog
    assert not server.congested
    assert talker.reading


def test_full_room_ends_the_stream_cleanly_although_the_newcomer_has_spoken() -> None:
    server = ChatServer([], Room(), max_clients=1)
    (first, _peer), (second, newcomer) = pair(), pair()
    newcomer.send(b"/name John\n")  # to close with this unread would be a reset
    server.admit(first, "first")
    server.admit(second, "second")
    assert newcomer.rest() == b"* the room is full\n"


def test_time_at_the_door_does_not_begin_anew_with_each_byte() -> None:
    server = ChatServer([], Room(), password=b"secret")
    sock, peer = pair()
    server.admit(sock, "peer")
    (conn,) = server.door
    deadline = server.door[conn]
    for byte in (b"s", b"e", b"c"):
        peer.send(byte)
        select.select([sock], [], [], DEADLINE)
        server.guard(server.step_at_door, conn)
    assert conn.framer.partial == b"sec"
    assert server.door == {conn: deadline}


def test_password_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    compare = hmac.compare_digest

    def record(given: bytes, password: bytes) -> bool:
        compared.append((given, password))
        return compare(given, password)

    monkeypatch.setattr(hmac, "compare_digest", record)
    server = ChatServer([], Room(), password=b"secret")
    sock, peer = pair()
    server.admit(sock, "peer")
    peer.send(b"guess\n")
    select.select([sock], [], [], DEADLINE)
    server.guard(server.step_at_door, next(iter(server.door)))
    assert compared == [(b"guess", b"secret")]


@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_failing_accept_is_logged_once(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    acceptor = module.Acceptor(selectors.DefaultSelector(), [], lambda *_: None)
    listener: Any = SimpleNamespace(accept=fail)
    for _ in range(3):
        acceptor.accept(listener)
        acceptor.retry()
    assert caplog.text.count("newcomers have to wait") == 1
