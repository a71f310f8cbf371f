"""The servers from inside: they are made but don't run, and what the tests are about is called."""

from __future__ import annotations

import errno
import select
import selectors
import socket
import ssl
import time
from types import SimpleNamespace
from typing import Any

import pytest
from support import CERTS, DEADLINE, CheckedServer, Inside, Peer, pair, tls_member

import chat_client
import chat_server
import echo_server
from chat_server import Batch, Connection, Room


@pytest.fixture
def inside() -> Inside:
    return Inside()


def test_what_came_before_sending_failed_is_heard_but_no_torn_line(inside: Inside) -> None:
    server = inside.server
    conn, peer = inside.join()
    peer.send(b"last words\ntorn")
    peer.reset()
    conn.tell(b"too late\n")
    for _ in range(3):
        if conn in server.room.members:
            server.read_all({conn})
    assert server.room.take_batch().text == b"last words\n"


def test_last_words_are_heard_although_something_was_said_after_the_close(inside: Inside) -> None:
    """Whoever has closed answers with a reset to what comes then. Its own stream was whole."""
    server = inside.server
    conn, peer = inside.join()
    peer.send(b"bye")
    peer.close()
    server.read_all({conn})
    for _ in range(3):  # the first is answered with the reset
        conn.tell(b"too late\n")
    server.read_all({conn})
    assert server.room.take_batch().text == b"bye\n"


@pytest.mark.parametrize("in_order", [True, False])
def test_last_words_through_tls_are_heard_unless_the_stream_was_cut(in_order: bool) -> None:
    """OpenSSL tells neither; the error that the kernel keeps does."""
    server, conn, peer = tls_member()
    peer.send(b"bye")
    if in_order:
        peer.close()
    else:
        peer.reset()
    for _ in range(3):  # the first is answered with a reset
        conn.tell(b"too late\n")
    while conn in server.room.members:
        server.read_all({conn})
    assert server.room.take_batch().text == (b"bye\n" if in_order else b"")


def test_closing_room_hears_what_waits_for_the_next_turn(inside: Inside) -> None:
    server = inside.server
    (one, _peer), (_, two) = inside.join(), inside.join()
    one.unheard = b"/name John\n"
    server.crowd.guard(server.hear, one, 99)
    one.unheard = b"waits\n" * 5000  # more than one turn would hear
    server.crowd.in_hand.add(one)
    server.stop_signals = 1
    server.last_call()
    server.close_room()
    two.expect("* John joined\n", *["John: waits\n"] * 5000, "* the room is closing\n")


def test_exception_in_delivery_ends_one_connection_alone(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [inside.join() for _ in range(3)]
    write = Connection.write

    def stumble(conn: Connection, batch: Batch) -> None:
        if conn is members[0][0]:
            raise RuntimeError("a bug")
        write(conn, batch)

    monkeypatch.setattr(Connection, "write", stumble)
    inside.say(b"* hi\n")
    assert members[0][1].rest() == b""
    for _, peer in members[1:]:
        peer.expect("* hi\n")


@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_newcomers_are_let_in_when_a_connection_was_closed(module: Any) -> None:
    server = CheckedServer([], Room()) if module is chat_server else module.EchoServer([], 9)
    sock, _peer = pair()
    server.admit(sock, "peer")
    server.acceptor.retry_at = time.monotonic() + 1000
    (key,) = server.selector.get_map().values()
    (server.crowd.disconnect if module is chat_server else server.drop)(key.data, "gone")
    assert server.acceptor.retry_at is None


def test_newcomers_are_let_in_after_a_while(inside: Inside) -> None:
    inside.server.acceptor.retry_at = time.monotonic()
    inside.server.next_tick = 0
    inside.server.turn()
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
    assert 0 < inside.server.throttle.spent[conn] <= 2000 + chat_server.ITEM_WEIGHT


def test_a_flood_of_telnets_commands_is_read_in_small_parts_and_weighs(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_server, "TURN_READ", 8192)
    server = inside.server
    conn, peer = inside.join()
    peer.send(b"\xff\xf1" * 50_000)
    select.select([conn.sock], [], [], DEADLINE)
    server.read_all({conn})
    weights = []
    for _ in range(3):
        server.room.take_batch()
        select.select([conn.sock], [], [], DEADLINE)
        server.read_all({conn})
        weights.append(server.room.batch.weight)
    assert weights == [chat_server.IDLE_READ // 2 * chat_server.COMMAND_WEIGHT] * 3


def test_whoever_has_left_weighs_no_more_than_what_it_still_sends(inside: Inside) -> None:
    """What came together with its goodbye was counted then."""
    server = inside.server
    conn, peer = inside.join()
    peer.send(b"\xff\xf1" * 1000 + b"/quit\n")
    select.select([conn.sock], [], [], DEADLINE)
    server.read_all({conn})
    server.deliver(server.room.take_batch())
    assert conn in server.crowd.leaving
    peer.send(b"more")
    select.select([conn.sock], [], [], DEADLINE)
    server.read_all({conn})
    assert server.room.batch.weight == 0


def test_whoever_asks_and_does_not_read_is_not_heard_and_noted(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn, peer = inside.join()
    monkeypatch.setattr(Connection, "send", lambda conn, data: 0)
    while conn not in inside.server.throttle.behind:
        assert conn.unread <= chat_server.MAX_UNREAD
        peer.send(b"\xff\xfd\x06")
        select.select([conn.sock], [], [], DEADLINE)
        inside.server.read_all({conn})
    assert not inside.server.throttle.slowing
    inside.server.read_all({conn})
    assert not conn.reading


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


def test_whoever_has_said_least_lately_is_heard_first(
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
        server.throttle.spent = {talker: 1, other: 2}
        server.read_all({one, two})
        said = server.room.take_batch().text
        assert said == (b"first\n" if talker is one else b"second\n")
        server.read_all({other})
        server.room.take_batch()


def test_whoever_has_left_is_closed_after_its_own_close(inside: Inside) -> None:
    """Not before: input that comes in between would make a reset of the close."""
    server = inside.server
    conn, peer = inside.join()
    conn.unheard = b"/quit\n"
    server.hear(conn, 99)
    server.deliver(server.room.take_batch())
    assert peer.rest() == b"* bye\n"
    assert conn in server.crowd.leaving
    peer.close()
    select.select([conn.sock], [], [], DEADLINE)
    server.read_all({conn})
    assert conn not in server.crowd.leaving
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


def test_full_room_ends_the_stream_cleanly_although_the_newcomer_has_spoken() -> None:
    server = CheckedServer([], Room(), max_clients=1)
    (first, _peer), (second, newcomer) = pair(), pair()
    newcomer.send(b"/name John\n")  # to close with this unread would be a reset
    server.admit(first, "first")
    server.admit(second, "second")
    assert newcomer.rest() == b"* the room is full\n"


@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_failing_accept_is_logged_once(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    acceptor = module.Acceptor(selectors.DefaultSelector(), [], lambda *_: None)
    listener: Any = SimpleNamespace(accept=fail)
    for _ in range(3):
        acceptor.accept(listener)
        acceptor.resume()
    assert caplog.text.count("newcomers have to wait") == 1
