"""Part II, the loop: connections, its turns, who is a member, and who may say how much."""

from __future__ import annotations

import errno
import gc
import math
import random
import select
import selectors
import signal
import socket
import weakref
from collections import Counter
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
import support
from browser import PING, masked
from pytest import LogCaptureFixture, MonkeyPatch
from support import DEADLINE, Inside, Kernel, Peer, StoppedClock, checked_server, reach, tls_member

import chat_server
from chat_server import CREDIT, HIGH_WATER, MAX_UNREAD, MIN_READ, PACE, Batch, Connection, State


@pytest.fixture
def inside() -> Inside:
    return Inside()


def fall_behind(inside: Inside, stuck: Connection, *readers: Peer) -> None:
    """Has the room talk until somebody who doesn't read is over the mark."""
    while stuck not in inside.server.throttle.behind:
        inside.say(b"x\n" * 10_000)
        for peer in readers:
            peer.available()


# Connections


def connection() -> tuple[Connection, Peer]:
    sock, peer = support.pair()
    given = selectors.DefaultSelector(), chat_server.Telnet(8192)
    return Connection(sock, "peer", "host", *given), peer


def said(text: bytes) -> Batch:
    """Returns a sealed batch in which this was said."""
    batch = Batch()
    batch.say(text, None)
    batch.seal()
    return batch


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_queue_gives_each_its_part_of_each_batch_in_order(kernel: Kernel, step: int) -> None:
    (conn, peer), (other, _) = connection(), connection()
    kernel.room = 0
    batch = Batch()
    batch.say(b"one\n", None)
    batch.say(b"own\n", conn)
    batch.tell(conn, b"answer\n")
    batch.tell(other, b"for another\n")
    batch.say(b"two\n", None)
    batch.seal()
    silent = Batch()
    silent.say(b"own\n", conn)  # nothing of this is for it
    silent.seal()
    for one in (batch, silent, said(b"three\n")):
        conn.write(one)
        support.check_connection(conn)
    assert conn.unread_answers == chat_server.TOLD_COST + len(b"answer\n")
    assert not silent.cuts
    while conn.queue:
        kernel.room = step
        conn.flush()
        support.check_connection(conn)
    peer.expect("one\n", "answer\n", "two\n", "three\n")
    assert (conn.size, conn.unread_answers, list(batch.cuts)) == (0, 0, [other])


def test_whoever_asks_and_does_not_read_is_disconnected(kernel: Kernel) -> None:
    kernel.room = 0
    conn, peer = connection()
    with pytest.raises(chat_server.Gone, match="does not read the answers"):
        for _ in range(MAX_UNREAD // chat_server.TOLD_COST + 2):
            reach(conn, peer, b"\xff\xfd\x06")
            conn.receive(100)
            support.check_connection(conn)
    assert 0 < conn.unread_answers - MAX_UNREAD < 2 * chat_server.TOLD_COST


def test_what_waits_is_dropped_with_its_connection(kernel: Kernel) -> None:
    kernel.room = 0
    conn, _peer = connection()
    batch = Batch()
    batch.tell(conn, b"answer\n")
    batch.seal()
    for end in (conn.stop_sending, conn.close):
        conn.write(batch)
        end()
        assert not batch.cuts and not batch.told
        assert (conn.queue, conn.size, conn.unread_answers) == (None, 0, 0)


def test_a_queue_has_a_hard_limit(kernel: Kernel) -> None:
    kernel.room = 0
    conn, _peer = connection()
    half = said(b"x" * (chat_server.HARD_LIMIT // 2))
    conn.write(half)
    with pytest.raises(chat_server.Gone, match="queue is full"):
        conn.write(half)


@pytest.mark.parametrize("through_tls", [False, True])
@pytest.mark.parametrize("in_order", [True, False])
def test_last_words_are_heard_unless_the_stream_was_cut(through_tls: bool, in_order: bool) -> None:
    """Whoever has closed answers with a reset to what comes then: its own stream was whole. Of one
    that was reset a line without its end is torn. OpenSSL tells neither; the error that the kernel
    keeps does."""
    inside = Inside()
    server, conn, peer = tls_member() if through_tls else (inside.server, *inside.join())
    peer.send(b"whole\nbye")
    (peer.close if in_order else peer.reset)()
    ended = select.poll()  # on a busy machine, the reset could otherwise overtake the end
    ended.register(conn.sock, getattr(select, "POLLRDHUP", select.POLLIN))
    assert ended.poll(1000 * DEADLINE)
    while conn.reachable:  # the first is answered with a reset
        conn.tell_now(b"too late\n")
    while conn in server.room.members:
        server.read_all({conn})
    assert server.room.take_batch().text == (b"whole\nbye\n" if in_order else b"whole\n")


# A turn


def test_a_turn_is_bounded_by_what_it_reads_and_by_what_it_delivers(inside: Inside) -> None:
    members = [inside.join() for _ in range(5)]
    for limit, name in ((2000, "TURN_READ"), (2000 * 5, "TURN_DELIVERY")):
        with mock.patch.object(chat_server, name, limit):
            for conn, peer in members:
                reach(conn, peer, b"y\n" * 10_000)
            inside.server.read_all({conn for conn, _ in members})
            assert 0 < inside.server.room.batch.size <= 2 * 2000
            inside.server.room.take_batch()


def test_the_beginning_of_a_line_counts_when_it_comes_and_not_again_later(inside: Inside) -> None:
    conn, peer = inside.join()
    with mock.patch.object(inside.server.throttle, "charge_bytes") as charge:
        for some in (b"x" * 2000, b"\n" + b"y\n" * 50):
            reach(conn, peer, some)
            inside.server.read(conn, 2000, math.inf)
        assert not conn.unheard
        assert inside.server.room.batch.size == 2101
        conn.unheard = b"z\n" * 50  # as it came with a password
        for limit in (40, 2000):
            inside.server.read(conn, limit, math.inf)
    assert [call.args[1] for call in charge.mock_calls] == [2000, 101, 40, 60]


def test_whoever_has_cost_least_is_heard_first(inside: Inside, monkeypatch: MonkeyPatch) -> None:
    """A turn has time for one here, and that one comes last in the next."""
    monkeypatch.setattr(chat_server, "TURN", 1e-9)
    members = [inside.join() for _ in range(3)]
    heard = []
    for _ in range(3):
        for number, (conn, peer) in enumerate(members):
            reach(conn, peer, f"{number}\n")
        inside.server.read_all({conn for conn, _ in members})
        heard.append(inside.server.room.take_batch().text[:1])
    assert sorted(heard) == [b"0", b"1", b"2"]


def test_a_turn_costs_if_it_was_too_short_and_silence_earns_one_turn(inside: Inside) -> None:
    costs = inside.server.membership.costs
    (silent, peer), (talker, _) = inside.join(), inside.join()
    peer.send("hi\n")
    inside.server.turn()
    assert silent.cost == 0, "there was time for all"
    for _ in range(100):
        costs.charge([(talker, 1)])
    costs.charge([(silent, 0.0)])
    assert silent.cost == costs.latest - 1
    newcomer, _ = inside.join()
    assert newcomer.cost == costs.latest, "no credit at all"


def test_one_host_is_as_dear_as_all_its_connections(monkeypatch: MonkeyPatch) -> None:
    """Whoever talks more than each of a hundred that flood is heard before all of them."""
    server = checked_server()
    for number in range(101):
        _peer = server.meet(f"192.0.2.{'7' if number else '1'}:{number}")
    (talker,) = (conn for conn in server.room.members if conn.host == "192.0.2.1")
    others = server.room.members - {talker}
    for _ in range(5):
        server.membership.costs.charge([(conn, 0.1) for conn in others] + [(talker, 0.5)])
    read: list[Connection] = []
    monkeypatch.setattr(server, "read", lambda conn, *_: read.append(conn))
    server.read_all(set(server.room.members))
    assert read[0] is talker
    for _ in range(2):
        server.membership.costs.charge([(talker, 1000.0)])
    assert set(server.membership.costs.hosts) == {"192.0.2.1"}, "others are as cheap as newcomers"
    server.membership.costs.charge([(others.pop(), 0.1)])
    assert len(server.membership.costs.hosts) == 2, "but silence earns them one turn alone"


def test_the_loop_does_not_sleep_before_the_end_of_whoever_was_lost_is_told(inside: Inside) -> None:
    """As in a delivery, after which nothing may be due for long."""
    server = inside.server
    (conn, peer), (_, ann) = inside.join(), inside.join()
    peer.send("/name Bob\n")
    server.turn()
    server.membership.disconnect(conn, "lost")
    assert server.timeout() == 0
    server.turn()
    ann.expect("* Bob joined\n", "* Bob left\n")
    assert server.timeout() > 0


def test_whatever_takes_long_is_read_in_small_pieces(inside: Inside) -> None:
    """And each full read has the next one larger once."""
    conn, peer = inside.join()
    cheap, dear = 0.0001, 2 * chat_server.TURN
    conn.fit_read_size(cheap)
    assert conn.read_size == chat_server.FIRST_READ, "a few bytes prove nothing"
    conn.read_size = MIN_READ
    reach(conn, peer, b"x" * MIN_READ)
    conn.receive(chat_server.TURN_READ)
    for _ in range(2):  # in the second turn nothing is read
        conn.fit_read_size(0.0)
        assert conn.read_size == 2 * MIN_READ
    for seconds, size in ((cheap, chat_server.TURN_READ), (dear, MIN_READ)):
        for _ in range(20):
            conn.was_full = True
            conn.fit_read_size(seconds)
        assert conn.read_size == size


@pytest.mark.parametrize("where", ["write", "read"])
def test_a_bug_ends_one_connection_alone(
    inside: Inside, monkeypatch: MonkeyPatch, caplog: LogCaptureFixture, where: str
) -> None:
    """In a delivery, or in hearing what it says."""
    (first, peer), (_, other) = inside.join(), inside.join()
    place = Connection if where == "write" else inside.server
    work: Any = getattr(place, where)

    def stumble(conn: Connection, *given: Any) -> None:
        if conn is first:
            raise RuntimeError("a bug")
        work(conn, *given)

    monkeypatch.setattr(place, where, stumble)
    reach(first, peer, b"hi\n")
    inside.server.turn()
    other.available()
    inside.say(b"* hi\n")
    assert first.state is State.CLOSED
    assert "RuntimeError: a bug" in caplog.text
    other.expect("* hi\n")


# Whoever doesn't read


class Slow(Inside):
    """A room in which one member is behind, one was loud and has to wait, and another listens."""

    def __init__(self) -> None:
        super().__init__()
        (self.behind, self.reader), (self.loud, self.talker) = self.join(), self.join()
        _, self.listener = self.join()
        fall_behind(self, self.behind, self.talker, self.listener)
        while self.loud not in self.server.throttle.waiting:
            self.talker.send(b"y\n" * 1000)
            self.server.turn()


def test_everyone_speaks_freely_once_whoever_was_behind_has_read() -> None:
    slow = Slow()
    while slow.behind.queue:
        slow.reader.available()
        slow.server.turn(0.01)
    assert not slow.server.throttle.behind
    assert slow.loud.reading


def test_whoever_waits_is_heard_again_before_that_when_it_is_its_turn() -> None:
    slow = Slow()
    clock = StoppedClock(slow.server.clock)
    for _ in range(5):
        clock.now += 0.8
        slow.server.look_at_clock()
    assert slow.server.throttle.slow
    assert slow.loud.reading


def test_whoever_has_gone_while_it_waits_to_speak_leaves_at_once() -> None:
    """And not only when it could speak again: it would keep its name until then."""
    slow = Slow()
    slow.talker.reset()
    assert not slow.loud.queue
    slow.say(b"x\n")
    assert slow.loud not in slow.server.room.members


def test_what_waits_for_somebody_keeps_nothing_of_those_who_have_left() -> None:
    """Of a connection through TLS that would be 18 KB, for as long as the other is behind."""
    slow = Slow()
    conn, peer = slow.join()
    gone = weakref.ref(conn.sock)
    peer.send("/name Bob\n/quit\n")
    while conn.state is not State.CLOSED:
        slow.server.turn(0.01)
        peer.close()
    del conn
    gc.collect()
    assert not gone()


def test_closing_room_hears_all_that_had_arrived(monkeypatch: MonkeyPatch) -> None:
    """Of whoever had to wait, and for as long as something comes: 0.1 s and more here. A window
    that is closed sends SIGHUP twice, which cuts nothing short."""
    monkeypatch.setattr(chat_server, "LAST_CALL", DEADLINE)
    slow = Slow()
    slow.talker.send("/name John\n" + "z\n" * 30_000 + "last words\n")
    signals, sender = socket.socketpair()
    sender.send(bytes([signal.SIGTERM, signal.SIGHUP, signal.SIGHUP]))
    slow.server.on_signal(signals)
    slow.server.close_room()
    assert slow.behind.deadline == slow.server.membership.closes_at, "5 s in all"
    heard = slow.listener.available()
    assert heard.endswith(b"John: z\nJohn: last words\n* the room is closing\n")
    assert heard.count(b"John: z\n") == 30_000


def test_a_busy_closing_room_looks_once_more(inside: Inside, monkeypatch: MonkeyPatch) -> None:
    """A turn that only sends, or none at all, can have taken longer than all that it would wait."""
    clock = StoppedClock(inside.server.clock)
    waits: list[float] = []

    def turn(longest: float) -> bool:
        waits.append(longest)
        clock.now += 2 * chat_server.SHORT_TICK
        return False

    monkeypatch.setattr(inside.server, "turn", turn)
    inside.server.stop_signals = 1
    inside.server.close_room()
    assert len(waits) == 2 and waits[1] == 0


def test_closing_room_sleeps_while_somebody_is_too_far_behind(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "LAST_CALL", 0.25)
    slow = Slow()
    while slow.behind.size <= chat_server.HARD_LIMIT // 2:
        slow.say(b"x\n" * 10_000)
        slow.talker.available()
        slow.listener.available()
    reach(slow.loud, slow.talker, b"z\n" * 10_000)
    slow.server.stop_signals = 1
    with mock.patch.object(slow.server, "turn", wraps=slow.server.turn) as turn:
        slow.server.close_room()
    assert turn.call_count < 50


def test_closing_room_hears_talkers_for_a_second(inside: Inside, monkeypatch: MonkeyPatch) -> None:
    clock = StoppedClock(inside.server.clock)
    over = clock.now + chat_server.LAST_CALL

    def turn(_: float) -> bool:
        clock.now += 0.02
        assert clock.now < over + 0.1
        return True  # somebody could be read

    monkeypatch.setattr(inside.server, "turn", turn)
    inside.server.stop_signals = 1
    inside.server.close_room()
    assert clock.now >= over


def test_a_second_signal_ends_it_at_once_and_after_the_first_nobody_comes() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = checked_server([listener])
    peer = server.meet()  # which doesn't close
    signals, sender = socket.socketpair()
    sender.send(bytes([signal.SIGTERM] * 2))
    assert server.run(signals) == 1
    assert peer.available() == b"Welcome to the chatroom!\n* the room is closing\n"
    assert listener.fileno() == -1


def test_loop_sleeps_while_somebody_behind_asks_and_does_not_read(inside: Inside) -> None:
    """Its questions wait until it has read. Read from before that, it would wake each turn."""
    server = inside.server
    conn, peer = inside.join()
    fall_behind(inside, conn)
    peer.send(b"/help\n" * 1000)
    while conn.unread_answers <= MAX_UNREAD:
        server.turn()
    server.turn()  # finds out
    for _ in range(3):
        server.turn()
        assert conn in server.throttle.waiting


QUESTIONS = {"command": b"/who\n", "telnet": b"\xff\xfd\x06", "ping": masked(PING, b"")}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_few_answers_wait_unread(inside: Inside, kernel: Kernel, kind: str) -> None:
    """Each in a turn of its own is a batch of its own, which takes memory."""
    server = inside.server
    conn, peer = inside.join()
    if kind == "ping":
        conn.use(chat_server.WebSocket(8192))
    kernel.room = 0
    while conn not in server.throttle.waiting:
        reach(conn, peer, QUESTIONS[kind])
        server.read_all({conn})
        server.deliver(server.room.take_batch())
    assert not (conn.reading or server.throttle.slow), "it waits alone"
    assert 0 < len(conn.queue or ()) < 20
    clock = StoppedClock(server.clock)
    for _ in range(35):
        clock.now += 1
        server.look_at_clock()
    assert conn not in server.room.members


@pytest.mark.parametrize("question", ["/op x\n", "/help\n", "said\n", "/msg Bob: psst\n"])
@pytest.mark.parametrize("is_slow", [False, True], ids=["", "while somebody is behind"])
def test_nobody_stays_after_its_end_for_what_it_had_to_say(question: str, is_slow: bool) -> None:
    inside = Inside(operator=b"secret")
    server = inside.server
    stuck, _peer = inside.join()
    _, bob = inside.join()
    bob.send("/name Bob\n")
    server.turn()
    if is_slow:
        fall_behind(inside, stuck, bob)
    ghosts = []
    for _ in range(3):
        ghosts.append(server.meet())
        ghosts[-1].send(question * 10_000)
    server.turn()
    for ghost in ghosts:
        ghost.reset()
    for _ in range(300):
        inside.say(b"somebody talks\n")
        bob.available()
        server.turn()
        if len(server.room.members) == 2:
            break
    assert len(server.room.members) == 2


def test_whispers_silence_nobody_who_leaves_them_unread(inside: Inside, kernel: Kernel) -> None:
    server = inside.server
    (vic, talker), (_, eve) = inside.join(), inside.join()
    kernel.room = 0
    talker.send("/name Vic\n")
    eve.send("/name Eve\n" + f"/msg Vic: {'z' * 4000}\n" * 10)
    while vic.unread_whispers <= chat_server.MAX_WHISPERED:
        server.turn()
    reach(vic, talker, "still here\n")
    server.read_all({vic})
    assert server.room.take_batch().text == b"Vic: still here\n"


# Whoever leaves


def test_a_leaver_is_closed_after_its_own_close(inside: Inside, caplog: LogCaptureFixture) -> None:
    """Not before: input that comes in between would make a reset of the close."""
    caplog.set_level("INFO")
    server = inside.server
    conn, peer = inside.join()
    peer.send(b"/quit\nnot heard\n")
    while conn in server.room.members:
        server.turn()
    assert peer.rest() == b"* bye\n"
    assert conn in server.membership.leaving
    support.eventually(lambda: not chat_server.unacknowledged(conn.sock))
    server.membership.finish(conn)
    assert conn.deadline - server.clock.now() < 1, "its place is soon free without that"
    peer.close()
    select.select([conn.sock], [], [], DEADLINE)
    server.turn()
    assert conn.state is State.CLOSED
    assert [line for line in caplog.messages if " 0" in line] == [f"{conn} quit, members: 0"]


def test_whoever_leaves_and_reads_slowly_has_the_whole_farewell_for_it(inside: Inside) -> None:
    """Also if it is still sending, and the kernel has taken everything for it."""
    server = inside.server
    conn, peer = inside.join()
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    inside.say(b"x" * 150_000 + b"\n")
    peer.send(b"/quit\n")
    while conn in server.room.members:
        server.turn()
    clock = StoppedClock(server.clock)
    for _ in range(9):
        peer.send(b"still sending\n")
        clock.now += 0.5
        server.turn(0.01)
        assert conn in server.membership.leaving
    assert not conn.queue and chat_server.unacknowledged(conn.sock)
    clock.now += 1.0
    server.turn(0.01)
    assert conn.state is State.CLOSED


@pytest.mark.parametrize("pace, gets_all", [(PACE + 1024, True), (PACE // 2, False)])
def test_leavers_at_pace_get_all(inside: Inside, kernel: Kernel, pace: int, gets_all: bool) -> None:
    """What it hasn't read when it ends its stream can take it longer than a farewell."""
    conn, peer = inside.join()
    kernel.room = 0
    inside.say(b"x" * 12 * PACE + b"\n")
    reach(conn, peer)
    before, clock = conn.taken, StoppedClock(inside.server.clock)
    while conn.wants_write():
        clock.now += 0.5
        kernel.room = pace // 2
        inside.server.turn(0)
    assert (conn.taken - before == 12 * PACE + 1) == gets_all, "else it is closed before"


def test_the_end_of_a_room_waits_no_longer_for_leavers(inside: Inside, kernel: Kernel) -> None:
    """Even if that has just taken much, and so would have more time."""
    server = inside.server
    conn, peer = inside.join()
    kernel.room = 0
    inside.say(b"x" * 12 * PACE + b"\n")
    reach(conn, peer)
    server.turn(0)
    kernel.room = 10 * PACE
    server.turn(0)
    assert conn.deadline > server.clock.now() + chat_server.FAREWELL + 1
    server.close_room()
    clock = StoppedClock(server.clock)
    over = clock.now + chat_server.FAREWELL
    for _ in range(7):  # more at once would pass for a process that was stopped
        assert conn.state is State.LEAVING or clock.now > over - 1
        clock.now += 0.8
        server.turn(0)
    assert conn.state is State.CLOSED


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET, errno.EPROTOTYPE])
def test_words_before_the_end_count(inside: Inside, monkeypatch: MonkeyPatch, number: int) -> None:
    """EPROTOTYPE is what macOS says while a connection is being taken down."""
    conn, peer = inside.join()
    monkeypatch.setattr(socket.socket, "send", mock.Mock(side_effect=OSError(number, "gone")))
    inside.say(b"to nobody\n")
    assert conn in inside.server.room.members and not conn.reachable
    peer.sock.sendall(b"last words\n")
    select.select([conn.sock], [], [], DEADLINE)
    said: list[bytes] = []
    inside.server.recorders.append(said.append)
    inside.server.turn()
    assert said == [b"last words\n"]


def test_whoever_is_dismissed_is_told_why_although_its_own_end_has_come(inside: Inside) -> None:
    """In the same turn: it is no longer a member, and its last batch is yet to be delivered."""
    server = inside.server
    conn, peer = inside.join()
    reach(conn, peer)
    chat_server.Dismissed("the room is full").see_to(server.membership, conn)
    server.read_all({conn})
    server.deliver(server.room.take_batch())
    assert peer.rest() == b"* the room is full\n"


@pytest.mark.parametrize("through_tls", [False, True])
def test_nothing_is_kept_of_the_disconnected(caplog: LogCaptureFixture, through_tls: bool) -> None:
    caplog.set_level("INFO")
    inside = Inside()
    server, conn, _peer = tls_member() if through_tls else (inside.server, *inside.join())
    setattr(conn, "pending" if through_tls else "unheard", b"hi\n")
    server.membership.note_input(conn)
    server.membership.disconnect(conn, "lost")
    assert not server.membership.has_more
    server.read_all({conn})  # it was ready, too
    assert not server.membership.has_more
    assert [line for line in caplog.messages if " lost" in line] == ["peer lost, members: 0"]


@pytest.mark.parametrize("stopped", ["asleep", "in a turn", "before it is set in a turn"])
def test_a_stop_moves_deadlines(inside: Inside, monkeypatch: MonkeyPatch, stopped: str) -> None:
    server, clock = inside.server, inside.server.clock
    now = clock.monotonic()
    clock.monotonic = lambda: now
    due: list[float] = []

    def stop(*_: object) -> list[Any]:
        nonlocal now
        now += 20
        if stopped.startswith("before"):
            clock.look_by(clock.now() + 9.7)
        return []

    monkeypatch.setattr(server.door, "meet_deadlines", lambda: due.append(clock.now()))
    with monkeypatch.context() as patch:
        at = (server.selector, "select") if stopped == "asleep" else (server, "deliver")
        patch.setattr(*at, stop)
        if not stopped.startswith("before"):
            clock.look_by(clock.now() + 9.7)
        server.turn(0)
    assert not due
    for _ in range(11):
        now += 0.9
        server.turn(0)
    assert due


# Who may say how much


class Someone(chat_server.Member):
    """What the throttle knows of a connection."""

    def __init__(self, size: int = 0, host: str = "192.0.2.1") -> None:
        super().__init__()
        self.size = size
        self.host = host
        self.cost = self.mark = 0.0
        self.since = 0.0
        self.until = math.inf
        self.queue = True
        self.reading = True
        self.taken = 0
        self.input = chat_server.LineFramer(100_000)

    def acknowledged(self) -> int:
        return self.taken

    def read_on(self, reading: bool) -> None:
        self.reading = reading


class Slowed:
    """A throttle, somebody who is behind, and others who want to say as much as they may."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.chance = random.Random(1)
        self.said: Counter[Someone] = Counter()
        self.next_tick = self.time
        clock = chat_server.Clock()
        clock.now = lambda slept=0.0: self.time  # type: ignore[method-assign]
        self.throttle = chat_server.Throttle(clock)
        self.slow: Any = Someone(HIGH_WATER + 1)
        self.throttle.note_behind(self.slow)

    def talkers(self, count: int, loud: bool = False) -> list[Any]:
        crowd: list[Any] = [Someone() for _ in range(count)]
        for one in crowd if loud else ():
            self.throttle.charge_bytes(one, 100_000)
        return crowd

    def say(self, one: Any, size: int) -> int:
        """Wants to say so much, and says what it may."""
        if not one.reading:
            return 0
        allowed = self.throttle.allow(one, size, 0)
        if allowed:
            self.throttle.charge_bytes(one, allowed)
            self.throttle.note_said(allowed)
            self.said[one] += allowed
        return allowed

    def flood(self, flooders: list[Any], seconds: float, size: int = 10_000) -> int:
        """Returns how much they say in all."""
        said = 0
        for _ in range(int(seconds / 0.05)):
            self.time += 0.05
            if self.time >= self.next_tick:
                self.next_tick = self.time + 1
                for one, lag in self.throttle.behind.items():
                    lag.is_too_long(one, self.time)
            self.throttle.let_speak()
            in_any_order = self.chance.sample(flooders, len(flooders))
            said += sum(self.say(one, size) for one in in_any_order)
        return said

    def stays(self, seconds: float, taken: int) -> bool:
        """Says whether whoever is behind may stay until it takes something, after some time. It
        isn't over the mark for a moment now and then, by which it gains nothing."""
        until = self.time + seconds
        while self.time < until:
            self.time += max(0.001, min(0.5, until - self.time))
            if self.throttle.behind[self.slow].is_too_long(self.slow, self.time):
                return False
            for self.slow.size in (HIGH_WATER, HIGH_WATER + 1):
                self.throttle.note_taken(self.slow)
            self.throttle.note_behind(self.slow)
        self.slow.taken += taken
        return True


@pytest.fixture
def slowed() -> Slowed:
    return Slowed()


@pytest.mark.parametrize("flooders", [1, 100])
def test_however_many_flood_they_say_what_one_can_read(slowed: Slowed, flooders: int) -> None:
    crowd = slowed.talkers(flooders, loud=True)
    assert slowed.flood(crowd, 10) <= 11 * PACE + MIN_READ
    assert 0.7 * 40 * PACE < slowed.flood(crowd, 40) <= 41 * PACE


def test_many_who_each_say_little_are_no_way_around_that(slowed: Slowed) -> None:
    said = slowed.flood(slowed.talkers(100), 30, 100)
    assert said <= (31 + 2 * CREDIT) * PACE


def test_silence_is_no_way_around_that(slowed: Slowed) -> None:
    """What wasn't said in a minute can't be said in the next second."""
    for minute in range(2):
        slowed.flood([], 60 * minute)
        said = slowed.flood(slowed.talkers(100, loud=True), 1)
    assert said <= 2 * PACE + MIN_READ


def test_newcomers_are_no_way_around_that(slowed: Slowed) -> None:
    said = 0
    for turn in range(1000):
        newcomers = slowed.talkers(20)
        for one in newcomers:
            one.host = f"network {turn}"
            one.since = one.mark = slowed.time
        said += slowed.flood(newcomers, 0.05)
        for one in newcomers:
            slowed.throttle.forget(one)
    assert said <= 42 * PACE  # in 50 s, with what a batch costs for each


@pytest.mark.parametrize(
    "pause, size, lines, tail",
    [(1, 200, 20, 8192), (0.05, 150, 400, 0)],  # twenty lines a second, each with what it costs
    ids=["now and then", "a lot"],
)
def test_whoever_talks_is_heard_at_once_beside_a_flood(
    slowed: Slowed, pause: float, size: int, lines: int, tail: int
) -> None:
    """Also when the flood's lines are long."""
    crowd, talker = slowed.talkers(100, loud=True), Someone()
    for _ in range(lines):
        slowed.flood(crowd, pause)
        slowed.throttle.note_said(tail)  # the rest of a line
        assert slowed.say(talker, size) == size


def test_whoever_has_said_little_is_quiet_and_whoever_was_loud_becomes_so(slowed: Slowed) -> None:
    """While it waits it stays loud: else all in a crowd that floods would become quiet."""
    one: Any = Someone()
    slowed.throttle.charge_bytes(one, MIN_READ // 2)
    assert one.mark <= slowed.time
    slowed.throttle.charge_bytes(one, 10**9)
    assert one.mark == slowed.time + CREDIT
    slowed.throttle.note_said(100 * PACE)
    assert slowed.say(one, 100) == 0
    slowed.flood([], 90)
    assert slowed.throttle.waiting[one] == CREDIT
    slowed.flood([], 11)
    assert slowed.say(one, 100) == 100
    slowed.flood([], CREDIT)
    assert one.mark <= slowed.time


def test_many_who_are_quiet_do_not_mute_a_newcomer(slowed: Slowed) -> None:
    """They say all that may be said, never so much that they would have to wait."""
    throttle = slowed.throttle
    newcomer: Any = Someone()
    newcomer.since = newcomer.mark = slowed.time
    throttle.mark = slowed.time + CREDIT / 2
    for _ in range(100):
        slowed.flood([newcomer], 0.05, 100)
        throttle.note_said(int(0.05 * PACE) - chat_server.BATCH_COST)
    assert slowed.said[newcomer] >= 20 * 100


def test_whoever_has_been_silent_comes_before_many_hosts(slowed: Slowed) -> None:
    """Each of them speaks seldom, so that none is loud."""
    crowd: list[Any] = [Someone(host=f"198.51.100.{number % 50}") for number in range(100)]
    talker = Someone()
    slowed.flood(crowd, 30, MIN_READ)
    for _ in range(3):
        said = slowed.said[talker]
        slowed.flood([*crowd, talker], 1, 100)
        assert slowed.said[talker] > said
        slowed.flood(crowd, 15, MIN_READ)


@pytest.mark.parametrize("hosts", [10, 100])
def test_long_lines_of_many_hosts_do_not_mute_the_quiet(slowed: Slowed, hosts: int) -> None:
    """A stranger with IPv6 has many networks, each of them a host that has said little so far."""
    crowd: list[Any] = [Someone(host=f"host {number}") for number in range(hosts)]
    talker: Any = Someone(host="another")
    since, waited = slowed.time, [0.0]
    for turn in range(1200):
        slowed.time += 0.05
        slowed.throttle.let_speak()
        for one in crowd:
            if one.reading and slowed.throttle.allow(one, MIN_READ, 0):
                is_end = len(one.input.partial) > 8000
                one.input.feed(b"x" * MIN_READ + b"\n" * is_end)
                slowed.throttle.charge_bytes(one, MIN_READ)
                slowed.throttle.note_said(8192 if is_end else 0)
        if slowed.time >= since and slowed.say(talker, 64):
            waited.append(slowed.time - since)
            since += 3
    assert len(waited) > 18 and max(waited) < 3


def test_a_host_with_many_connections_has_no_more_than_another(slowed: Slowed) -> None:
    """Each says little, all together too much; somebody from another host is heard all the same."""
    crowd, talker = slowed.talkers(100), Someone(host="192.0.2.2")
    heard = 0
    for _ in range(40):
        slowed.flood(crowd, 0.5, 200)
        heard += slowed.say(talker, 100) == 100
        if not talker.reading:
            slowed.throttle.let_one_speak(talker)  # type: ignore[arg-type]
    assert heard >= 38


def test_the_loud_take_turns_and_these_go_by_hosts(slowed: Slowed) -> None:
    crowd = slowed.talkers(21, loud=True)
    crowd[0].host = "192.0.2.2"
    slowed.flood(crowd, 120)
    single, *shares = (slowed.said[one] for one in crowd)
    assert min(shares) > max(shares) / 3
    assert single > sum(shares) / 3


def test_two_hosts_that_flood_are_soon_heard_alike(slowed: Slowed) -> None:
    """Also if all of them were silent until then."""
    crowd = slowed.talkers(51)
    crowd[0].host = "192.0.2.2"
    slowed.flood(crowd, 10)
    slowed.said.clear()
    slowed.flood(crowd, 60)
    single, *others = (slowed.said[one] for one in crowd)
    assert 0.9 * sum(others) < single < 1.1 * sum(others)


def test_many_who_are_quiet_do_not_mute_the_loud(slowed: Slowed) -> None:
    """Together they want to say more than may be said; some of them are always quiet."""
    crowd, (loud,) = slowed.talkers(200), slowed.talkers(1, loud=True)
    for turn in range(1200):
        slowed.flood([loud, *crowd[turn % 40 :: 40]], 0.05, 100)
    assert slowed.said[loud] >= 10 * 100


def test_whoever_has_waited_longest_is_heard_however_seldom_the_loop_looks(slowed: Slowed) -> None:
    (loud,) = slowed.talkers(1, loud=True)
    for _ in range(10):
        slowed.time += 0.3
        slowed.throttle.mark = slowed.time + 0.7 * CREDIT
        slowed.throttle.let_speak()
        slowed.say(loud, 100)
    assert slowed.said[loud] >= 100


def test_everyone_speaks_freely_after_the_last_has_left(slowed: Slowed) -> None:
    throttle = slowed.throttle
    second: Any = Someone(HIGH_WATER + 1)
    throttle.note_behind(second)
    throttle.note_said(int(10 * CREDIT * PACE))
    (one,) = slowed.talkers(1, loud=True)
    assert slowed.say(one, 1) == 0
    for slow in (slowed.slow, second):
        assert not one.reading
        throttle.forget(slow)
    assert throttle.clock.next == slowed.time, "at this turn's end"
    throttle.let_speak()
    assert one.reading
    assert not (throttle.behind or throttle.slow or throttle.waiting)
    throttle.note_behind(slow)
    assert slowed.say(one, 100) == 100, "what was said before is forgotten"


# Who is too far behind


@pytest.mark.parametrize("rate, stays", [(8, True), (20, True), (3, False)])
@pytest.mark.parametrize("segment", [1448, 65_536])
def test_a_steady_reader_stays(slowed: Slowed, segment: int, rate: int, stays: bool) -> None:
    """A kernel can tell of what was read in steps of 128 KiB."""
    throttle = slowed.throttle
    throttle.forget(slowed.slow)
    slowed.slow.taken = 3 * segment
    throttle.note_behind(slowed.slow)
    steps = [2, 1, 2, 1, 2, 2, *[1] * (100 if segment < 2000 else 0)]
    rates = (slowed.stays(n * segment / (rate * 1024), n * segment) for n in steps)
    assert all(rates) == stays
    assert not slowed.stays(40, 0), "there is an end to that"


def test_whoever_is_behind_by_little_stays(slowed: Slowed) -> None:
    slowed.time += 60
    slowed.slow.size = HIGH_WATER
    lag = slowed.throttle.behind[slowed.slow]
    assert not lag.is_too_long(slowed.slow, slowed.time)
    slowed.slow.size += 1
    assert lag.is_too_long(slowed.slow, slowed.time)


@pytest.mark.parametrize(
    "steps, seconds",
    [
        ([(4, 0)], 2),
        ([(4, 2 * 65_483), (16, 0)], 20),  # a step of a kernel earns time
        ([(4, 2 * 65_483), (4, 4096)], 17),  # half of it after the next
        ([(1, 10 * PACE)] * 3600, 35),  # but an hour of reading fast doesn't
        ([(1, 10**9)], 35),  # nor does much at once
    ],
    ids=["silence", "a step", "a smaller one after it", "an hour", "a burst"],
)
@pytest.mark.parametrize("before", [0, 10**9], ids=["", "having read before"])
def test_time_is_not_earned_in_advance(
    slowed: Slowed, steps: list[tuple[float, int]], seconds: float, before: int
) -> None:
    slow = slowed.slow
    slow.size, slow.queue = 0, None
    slowed.throttle.note_taken(slow)
    slow.taken += before
    slow.size, slow.queue = HIGH_WATER + 1, True
    slowed.throttle.note_behind(slow)
    assert all(slowed.stays(*step) for step in steps)
    assert not slowed.stays(seconds if not before else 35, 0)


def test_a_step_may_be_told_late_and_in_two_parts(slowed: Slowed) -> None:
    steps = [(4.5, 132_000), (14.5, 132_000), (14.5, 32_000), (1.5, 100_000), (14.5, 132_000)]
    assert all(slowed.stays(*step) for step in steps)
    slowed = Slowed()
    steps = [(4, 57_000), (0.5, 9_000)] + 5 * [(7.5, 57_000), (0.5, 9_000)]
    assert all(slowed.stays(*step) for step in steps)


# Over sockets


def test_a_flood_into_a_room_that_closes_costs_nobody_what_was_said(room: support.Server) -> None:
    reader, flooder = room.join(), room.join()
    room.process.send_signal(signal.SIGTERM)
    flooder.sock.settimeout(0.3)
    with suppress(OSError):  # it isn't read any more, or is sent off
        while True:
            flooder.sock.sendall(b"x" * 1023 + b"\n")
    assert reader.rest().endswith(b"x\n* the room is closing\n")
