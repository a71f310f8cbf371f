"""The servers from inside: they are made but don't run, and what the tests are about is called."""

from __future__ import annotations

import errno
import math
import select
import selectors
import socket
import ssl
import sys
from selectors import EVENT_READ, EVENT_WRITE
from types import SimpleNamespace
from typing import Any

import pytest
from browser import CLOSE, TEXT, masked
from support import CERTS, DEADLINE, Inside, Peer, checked_server, eventually, pair, tls_member

import chat_client
import chat_server
import echo_server
from chat_server import FIN, Batch, Connection, Dismissed, WebSocket


@pytest.fixture
def inside() -> Inside:
    return Inside()


def test_what_came_before_sending_failed_is_heard_but_no_torn_line(inside: Inside) -> None:
    server = inside.server
    conn, peer = inside.join()
    peer.send(b"last words\ntorn")
    peer.reset()
    conn.tell_now(b"too late\n")
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
        conn.tell_now(b"too late\n")
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
        conn.tell_now(b"too late\n")
    while conn in server.room.members:
        server.read_all({conn})
    assert server.room.take_batch().text == (b"bye\n" if in_order else b"")


def test_last_words_are_heard_after_many_questions_in_the_same_turn(inside: Inside) -> None:
    """There a browser's own close can come, too, in the middle of a message."""
    server = inside.server
    conn, peer = inside.join()
    conn.use(WebSocket(1000))
    server.room.take_name(conn, "John")
    server.deliver(server.room.take_batch())
    last = masked(TEXT, b"last words")
    unfinished = bytes([last[0] & ~FIN]) + last[1:]
    peer.send(masked(TEXT, b"/help") * 6 + unfinished + masked(CLOSE, b""))
    said = b""
    while conn in server.room.members:
        server.read_all({conn})
        batch = server.room.take_batch()
        said += batch.text
        server.deliver(batch)
    assert said == b"John: last words\n* John left\n"


def test_closing_room_hears_what_waits_for_the_next_turn(inside: Inside) -> None:
    server = inside.server
    (one, _peer), (_, two) = inside.join(), inside.join()
    one.unheard = b"/name John\n"
    server.membership.guard(server.hear, one, 99, math.inf)
    one.unheard = b"waits\n" * 5000  # more than one turn would hear
    server.membership.has_more.add(one)
    server.stop_signals = 1
    server.close_room()
    two.expect("* John joined\n", *["John: waits\n"] * 5000, "* the room is closing\n")


def test_closing_room_hears_all_of_whoever_had_to_wait_for_somebody_behind(inside: Inside) -> None:
    server = inside.server
    _behind, (loud, talker), (_, listener) = (inside.join() for _ in range(3))
    while not server.throttle.slow:
        inside.say(b"x\n" * 10_000)
        talker.available()
        listener.available()
    while loud not in server.throttle.waiting:
        talker.send(b"y\n" * 1000)
        server.turn()
    talker.send(b"z\n" * 5000 + b"last words\n")
    server.stop_signals = 1
    server.close_room()
    assert listener.available().endswith(b"z\nlast words\n* the room is closing\n")


def test_last_call_goes_on_while_others_only_take_what_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has been said may come a moment after somebody can be written to."""
    inside = Inside()
    server = inside.server
    (behind, reader), (_, talker), (_, listener) = (inside.join() for _ in range(3))
    while not behind.queue:
        inside.say(b"x\n" * 10_000)
        talker.available()
        listener.available()
    flush = server.flush

    def flush_first(conn: Connection) -> None:
        flush(conn)
        talker.send("late\n")

    monkeypatch.setattr(server, "flush", flush_first)
    reader.available()
    server.stop_signals = 1
    server.close_room()
    assert listener.available().startswith(b"late\n")


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


def test_an_echo_costs_no_look_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    server = echo_server.EchoServer([], 9)
    sock, peer = pair()
    server.admit(sock, "peer")
    peer.send("hi\n")
    monkeypatch.setattr(echo_server, "time", None)
    server.turn()
    peer.expect("hi\n")


def let_in(module: Any, listener: socket.socket) -> socket.socket:
    """Returns the next newcomer's socket as a server has it."""
    admitted: list[socket.socket] = []
    select.select([listener], [], [], DEADLINE)
    if module is chat_server:
        given = (selectors.DefaultSelector(), [listener], lambda sock, _: admitted.append(sock))
        module.Acceptor(*given, chat_server.Clock()).accept(listener)
        return admitted[0]
    server = module.EchoServer([], 9)
    server.accept(listener)
    (conn,) = server.clients
    return conn.sock


@pytest.mark.parametrize("platform", [sys.platform, "elsewhere"])
@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_each_connection_gets_the_socket_options(
    module: Any, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its listener, or, where that isn't sure, one by one."""
    if platform == sys.platform:
        (listener,) = module.open_listeners(["127.0.0.1"], 0)
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform=platform))
    expected = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_OOBINLINE", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
    ]
    if module is chat_server:
        expected.append((socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", 64 * 1024))
    with listener, socket.create_connection(listener.getsockname()):
        sock = let_in(module, listener)
        for level, name, value in expected:
            if hasattr(socket, name):
                assert (name, bool(sock.getsockopt(level, getattr(socket, name)))) == (name, True)
                assert value == 1 or sock.getsockopt(level, getattr(socket, name)) == value
        assert not sock.getblocking()
        sock.close()


def test_one_turn_reads_at_most_its_share(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "TURN_READ", 2000)
    members = [inside.join() for _ in range(5)]
    for conn, peer in members:
        peer.send(b"y\n" * 10_000)
        select.select([conn.sock], [], [], DEADLINE)
    inside.server.read_all({conn for conn, _ in members})
    assert 0 < inside.server.room.batch.size <= 2 * 2000


def test_whoever_has_cost_least_is_heard_first(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn has time for one here, and that one comes last in the next."""
    monkeypatch.setattr(chat_server, "TURN", 1e-9)
    members = [inside.join() for _ in range(3)]
    heard = []
    for _ in range(3):
        for number, (conn, peer) in enumerate(members):
            peer.send(f"{number}\n")
            select.select([conn.sock], [], [], DEADLINE)
        inside.server.read_all({conn for conn, _ in members})
        heard.append(inside.server.room.take_batch().text[:1])
    assert sorted(heard) == [b"0", b"1", b"2"]


def test_a_turn_that_has_time_for_all_costs_nothing(inside: Inside) -> None:
    conn, peer = inside.join()
    peer.send("hi\n")
    inside.server.turn()
    assert conn.cost == 0


def test_whoever_was_silent_has_no_more_credit_than_a_turn(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = inside.server.membership.costs
    (silent, _), (talker, _) = inside.join(), inside.join()
    for _ in range(100):
        costs.charge([(talker, chat_server.TURN)])
    costs.charge([(silent, 0.0)])
    assert silent.cost == costs.latest - chat_server.TURN
    newcomer, _ = inside.join()
    assert newcomer.cost == costs.latest, "no credit at all"


def test_one_host_is_as_dear_as_all_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever talks more than each of a hundred that flood is heard before all of them."""
    server = checked_server()
    for number in range(101):
        sock, _peer = pair()
        server.admit(sock, f"192.0.2.{'7' if number else '1'}:{number}")
    (talker,) = (conn for conn in server.room.members if conn.host == "192.0.2.1")
    others = server.room.members - {talker}
    for _ in range(5):
        server.membership.costs.charge([(conn, 0.001) for conn in others] + [(talker, 0.005)])
    assert all(conn.cost < talker.cost for conn in others)
    read: list[Connection] = []
    monkeypatch.setattr(server, "read", lambda conn, *_: read.append(conn))
    server.read_all(set(server.room.members))
    assert read[0] is talker
    for _ in range(2):
        server.membership.costs.charge([(talker, 1000.0)])
    assert set(server.membership.costs.hosts) == {"192.0.2.1"}, "others are as cheap as newcomers"


def test_whatever_takes_long_is_read_in_small_pieces(inside: Inside) -> None:
    conn, _ = inside.join()
    for _ in range(20):
        conn.was_full = True
        conn.fit_read_size(0.0001)
    assert conn.read_size == chat_server.TURN_READ
    for _ in range(20):
        conn.fit_read_size(chat_server.TURN * 2)
    assert conn.read_size == chat_server.MIN_READ


def test_lines_of_many_that_end_at_once_are_delivered_over_several_turns(inside: Inside) -> None:
    """A turn is bounded by what it delivers, not by what it reads: each newline here ends 8 KB."""
    server = inside.server
    members = [inside.join() for _ in range(120)]
    for conn, peer in members:
        peer.send(b"x" * 7990)
        while len(conn.input.partial) < 7990:
            select.select([conn.sock], [], [], DEADLINE)
            server.read_all({conn})
    for conn, peer in members:
        peer.send(b"\n")
        select.select([conn.sock], [], [], DEADLINE)
    server.read_all({conn for conn, _ in members})
    assert 0 < server.room.batch.size * 120 < chat_server.TURN_DELIVERY + 120 * 7991


def test_time_in_which_the_server_was_stopped_does_not_count(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = inside.server
    clock = server.clock
    now = clock.monotonic()
    asleep = 1000.0  # seconds, the next time
    clock.monotonic = lambda: now
    select_now = server.selector.select

    def sleep(timeout: float | None) -> Any:
        nonlocal now
        now += asleep
        return select_now(0)

    monkeypatch.setattr(server.selector, "select", sleep)
    (stuck, _peer), (_, other) = inside.join(), inside.join()
    while stuck not in server.throttle.behind:
        inside.say(b"x\n" * 10_000)
        other.available()
    for _ in range(5):
        server.turn()
        assert stuck in server.room.members
    asleep = 1.0
    for _ in range(60):
        server.turn()
    assert stuck not in server.room.members


def test_the_door_takes_no_more_than_its_share_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "DOOR_SHARE", -1)  # which each step exceeds
    server = checked_server(password=b"secret")
    knocking = [pair() for _ in range(3)]
    for sock, peer in knocking:
        server.admit(sock, "peer")
        peer.send("secret\n")
        select.select([sock], [], [], DEADLINE)
    for turn in range(1, 4):
        server.turn()
        assert len(server.room.members) == turn


def test_whoever_asks_and_does_not_read_is_not_heard_and_noted(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn, peer = inside.join()
    monkeypatch.setattr(Connection, "send", lambda conn, data: 0)
    while conn not in inside.server.throttle.waiting:
        peer.send(b"\xff\xfd\x06")
        select.select([conn.sock], [], [], DEADLINE)
        inside.server.read_all({conn})
    assert not inside.server.throttle.slow
    inside.server.read_all({conn})
    assert not conn.reading


def test_whoever_has_gone_while_it_waits_to_speak_leaves_at_once(inside: Inside) -> None:
    """And not only when it could speak again: it would keep its name until then."""
    server = inside.server
    (_, other), (loud, talker) = inside.join(), inside.join()
    _behind = inside.join()
    while not server.throttle.slow:
        inside.say(b"x\n" * 10_000)
        other.available()
        talker.available()
    while loud not in server.throttle.waiting:
        talker.send(b"y\n" * 1000)
        server.turn()
    talker.reset()
    assert not loud.queue
    inside.say(b"x\n")
    assert loud not in server.room.members


def echo_client() -> tuple[echo_server.EchoServer, echo_server.Connection, Peer]:
    """Returns an echo server that doesn't run, with one client, and that one's peer."""
    server = echo_server.EchoServer([], 9)
    sock, peer = pair()
    server.admit(sock, "peer")
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


def test_a_client_that_has_nothing_to_say_after_all_stays() -> None:
    """That its socket is ready is a hint, not a promise."""
    server, conn, peer = echo_client()
    server.serve(conn, EVENT_READ)
    peer.send(b"hi")
    server.turn()
    assert peer.read(2) == b"hi"


def test_reset_ends_an_echo_client_at_once() -> None:
    server, conn, peer = echo_client()
    peer.reset()
    server.turn()
    assert not server.clients
    assert conn.sock.fileno() == -1


def test_whoever_has_left_is_closed_after_its_own_close(inside: Inside) -> None:
    """Not before: input that comes in between would make a reset of the close."""
    server = inside.server
    conn, peer = inside.join()
    conn.unheard = b"/quit\n"
    server.hear(conn, 99, math.inf)
    server.deliver(server.room.take_batch())
    assert peer.rest() == b"* bye\n"
    assert conn in server.membership.leaving
    eventually(lambda: not chat_server.unacknowledged(conn.sock))
    server.membership.finish(conn)
    assert conn.deadline - server.clock.now() < 1, "its place is soon free without that"
    peer.close()
    select.select([conn.sock], [], [], DEADLINE)
    server.read_all({conn})
    assert conn not in server.membership.leaving
    assert conn.sock.fileno() == -1


def test_whoever_is_dismissed_is_told_why_although_its_own_end_has_come(inside: Inside) -> None:
    """In the same turn: it is no longer a member, and its last batch is yet to be delivered."""
    server = inside.server
    conn, peer = inside.join()
    peer.half_close()
    select.select([conn.sock], [], [], DEADLINE)
    Dismissed("the room is full").see_to(server.membership, conn)
    server.read_all({conn})
    server.deliver(server.room.take_batch())
    assert peer.rest() == b"* the room is full\n"


def test_everyone_speaks_freely_once_whoever_was_behind_has_read(inside: Inside) -> None:
    server = inside.server
    (behind, reader), (loud, talker) = inside.join(), inside.join()
    while not server.throttle.slow:
        inside.say(b"x\n" * 10_000)
        talker.available()
    while loud not in server.throttle.waiting:
        talker.send(b"y\n" * 1000)
        server.turn()
    while behind.queue:
        reader.available()
        server.turn(0.01)
    assert not server.throttle.behind
    assert loud.reading


@pytest.mark.parametrize("through_tls", [False, True])
def test_nothing_is_kept_of_whoever_is_disconnected(through_tls: bool) -> None:
    inside = Inside()
    server, conn, _peer = tls_member() if through_tls else (inside.server, *inside.join())
    setattr(conn, "pending" if through_tls else "unheard", b"hi\n")
    server.membership.disconnect(conn, "lost")
    server.read_all({conn})  # it was ready, too
    assert not server.membership.has_more


def test_tls_is_1_2_at_least_on_both_sides() -> None:
    server = chat_server.make_server_tls(str(CERTS / "room.pem"), str(CERTS / "room.key"))
    for context in (server, chat_client.make_client_tls(None)):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    "failure, said",
    [
        (OSError(errno.ENOSPC, "No space left"), "newcomers have to wait: No space left"),
        (RuntimeError("a bug"), "could not be admitted"),
    ],
)
def test_admission_that_fails_ends_that_connection_alone(
    failure: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [failure]
    admitted = []

    def admit(sock: socket.socket, peer: str) -> None:
        if failures:
            raise failures.pop()
        admitted.append(sock)

    listeners = chat_server.open_listeners(["127.0.0.1"], 0)
    with selectors.DefaultSelector() as selector:
        acceptor = chat_server.Acceptor(selector, listeners, admit, chat_server.Clock())
        for _ in range(2):
            acceptor.listen()
            peer = socket.create_connection(listeners[0].getsockname())
            for key, _ in selector.select(DEADLINE):
                key.data()
            peer.close()
        acceptor.close()
        acceptor.listen()  # as when something else is due then
    assert said in caplog.text
    assert len(admitted) == 1
    admitted[0].close()


@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_a_listener_has_its_connections_options_before_anybody_can_connect(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen, options = socket.socket.listen, []

    def look(sock: socket.socket, *backlog: int) -> None:
        names = (socket.SO_OOBINLINE, socket.SO_KEEPALIVE)
        options.append([sock.getsockopt(socket.SOL_SOCKET, name) != 0 for name in names])
        listen(sock, *backlog)

    monkeypatch.setattr(socket.socket, "listen", look)
    module.open_listeners(["127.0.0.1"], 0)[0].close()
    assert options[-1] == [True, True]


def test_a_bug_of_the_echo_server_ends_one_connection_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(conn: echo_server.Connection, data: bytes) -> None:
        if conn.peer == "Ann":
            raise ValueError("a bug")

    monkeypatch.setattr(echo_server.Connection, "log_lines", stumble)
    server = echo_server.EchoServer([], 9)
    server.logs_messages = True
    (first, ann), (second, bob) = pair(), pair()
    server.admit(first, "Ann")
    server.admit(second, "Bob")
    ann.send(b"hi\n")
    bob.send(b"ho\n")
    server.turn()
    assert ann.rest() == b""
    assert bob.line() == b"ho\n"
    assert "ValueError: a bug" in caplog.text
    second.close()


def test_a_newcomer_without_an_address_has_been_reset() -> None:
    """On macOS."""
    for module in (chat_server, echo_server):
        assert module.format_address(None) == "somebody:0"


def test_full_room_ends_the_stream_cleanly_although_the_newcomer_has_spoken() -> None:
    server = checked_server(size=1)
    (first, _peer), (second, newcomer) = pair(), pair()
    newcomer.send(b"/name John\n")  # to close with this unread would be a reset
    server.admit(first, "first")
    server.admit(second, "second")
    server.deliver(server.room.take_batch())
    assert newcomer.rest() == b"* the room is full\n"


@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_a_newcomer_that_has_left_already_makes_nobody_wait(
    module: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, aborted = socket.socket.accept, [errno.ECONNABORTED]

    def abort_first(listener: socket.socket) -> Any:
        if aborted:
            raise OSError(aborted.pop(), "Software caused connection abort")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", abort_first)
    (listener,) = module.open_listeners(["127.0.0.1"], 0)
    room = module is chat_server
    server = checked_server([listener]) if room else module.EchoServer([listener], 9)
    if room:
        server.door.open()
    with socket.create_connection(listener.getsockname()):
        for _ in range(2):
            server.turn()
        assert len(server.room.members if room else server.clients) == 1
    assert "have to wait" not in caplog.text
    listener.close()


@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_failing_accept_is_logged_once_until_somebody_gets_in(
    module: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo_server, "ACCEPT_REST", 0.01)
    accept, failing = socket.socket.accept, True

    def fail(listener: socket.socket) -> Any:
        if failing:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", fail)
    listeners = module.open_listeners(["127.0.0.1", "127.0.0.2"], 0)
    room = module is chat_server
    server = checked_server(listeners) if room else module.EchoServer(listeners, 9)
    acceptor = server.door.acceptor if room else server
    if room:
        server.door.open()

    def all_rest() -> bool:
        return not acceptor.listening if room else len(acceptor.resting) == 2

    def all_are_in() -> bool:
        return not acceptor.newcomers_wait and (room or not acceptor.resting)

    for _ in range(2):
        failing = True
        peers = [socket.create_connection(one.getsockname()) for one in listeners]
        while not all_rest():
            server.turn()
        for _ in range(3):
            server.turn()
        failing = False
        while not all_are_in():
            server.turn()
        for one in peers:
            one.close()
    assert caplog.text.count("newcomers have to wait") == 2
    for listener in listeners:
        listener.close()
