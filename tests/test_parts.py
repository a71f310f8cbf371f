"""The parts of the chat server one by one: a connection, the door, the throttle."""

from __future__ import annotations

import hmac
import select
import selectors
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from support import DEADLINE, Peer, check_connection, pair

from chat_server import (
    ALLOWANCE,
    BATCH_COST,
    HIGH_WATER,
    MAX_UNREAD,
    MIN_READ,
    PATIENCE,
    Batch,
    Connection,
    Door,
    Gone,
    Throttle,
)


def connection() -> tuple[Connection, Peer]:
    sock, peer = pair()
    return Connection(sock, "peer", selectors.DefaultSelector(), 8192), peer


def said(text: bytes) -> Batch:
    """Returns a sealed batch in which this was said."""
    batch = Batch()
    batch.say(text, None)
    batch.seal()
    return batch


class Stuck:
    """A connection to a peer that doesn't read until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.conn, self.peer = connection()
        self.open = 0  # bytes that the kernel takes
        self.sends = 0
        self.sent = b""
        monkeypatch.setattr(Connection, "send", self.send)

    def send(self, data: Any) -> int:
        taken = bytes(data[: self.open])
        self.sends += 1
        self.open -= len(taken)
        self.sent += taken
        return len(taken)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Stuck:
    one = Stuck(monkeypatch)
    send = one.send
    monkeypatch.setattr(Connection, "send", lambda conn, data: send(data))
    return one


# The write queue


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_queue_gives_each_its_part_of_each_batch_in_order(stuck: Stuck, step: int) -> None:
    conn, other = stuck.conn, connection()[0]
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
        check_connection(conn)
    assert conn.unread == len(b"answer\n")
    assert not silent.cuts
    while conn.queue:
        stuck.open = step
        conn.flush()
        check_connection(conn)
    assert stuck.sent == b"one\nanswer\ntwo\nthree\n"
    assert (conn.size, conn.unread, list(batch.cuts)) == (0, 0, [other])


def test_telnet_is_answered_between_two_lines_at_its_own_cost(stuck: Stuck) -> None:
    conn, peer = stuck.conn, stuck.peer
    stuck.open = 4
    conn.write(said(b"partly sent\n"))
    before = conn.size
    peer.send(b"\xff\xfd\x06")
    select.select([conn.sock], [], [], DEADLINE)
    assert conn.receive(100) is None
    conn.write(said(b"next\n"))
    check_connection(conn)
    assert conn.size - conn.unread == before + len(b"next\n") + BATCH_COST
    stuck.open = 1000
    conn.flush()
    assert stuck.sent == b"partly sent\n\xff\xfc\x06next\n"
    assert (conn.size, conn.unread) == (0, 0)


def test_whoever_asks_and_does_not_read_is_let_go(stuck: Stuck) -> None:
    conn, peer = stuck.conn, stuck.peer
    with pytest.raises(Gone, match="does not read the answers"):
        for _ in range(MAX_UNREAD):
            peer.send(b"\xff\xfd\x06")
            select.select([conn.sock], [], [], DEADLINE)
            conn.receive(100)
    assert MAX_UNREAD < conn.unread < MAX_UNREAD + 2 * BATCH_COST


def test_one_send_a_batch_where_nothing_waits(stuck: Stuck) -> None:
    stuck.open = 1000
    batch = said(b"hi\n")
    stuck.conn.write(batch)
    assert (stuck.sends, stuck.sent, stuck.conn.queue) == (1, b"hi\n", None)
    own = Batch()
    own.say(b"mine\n", stuck.conn)
    own.seal()
    stuck.conn.write(own)
    assert stuck.sends == 1, "there was nothing to send"


def test_queues_share_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "send", lambda conn, data: 0)
    conns = [connection()[0] for _ in range(50)]
    tracemalloc.start()
    try:
        for number in range(100):
            batch = said(b"%d " % number + b"x" * 5000 + b"\n")
            for conn in conns:
                conn.write(batch)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100 * 5100 + 50 * 3000


def test_what_waits_is_not_looked_at_when_more_comes(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck.conn.write(said(b"first\n"))
    monkeypatch.setattr(Batch, "text_for", None)  # without cuts, even that isn't called
    for _ in range(1000):
        stuck.conn.write(said(b"more\n"))
    assert stuck.sends == 1
    assert stuck.conn.size == len(b"first\n") + 1000 * len(b"more\n") + 1001 * BATCH_COST


def test_what_waits_is_dropped_with_its_connection(stuck: Stuck) -> None:
    batch = Batch()
    batch.tell(stuck.conn, b"answer\n")
    batch.seal()
    for end in (stuck.conn.stop_sending, stuck.conn.close):
        stuck.conn.write(batch)
        end()
        assert not batch.cuts and not batch.told
        assert (stuck.conn.queue, stuck.conn.size, stuck.conn.unread) == (None, 0, 0)


def test_a_fault_of_the_peer_has_a_type_of_its_own() -> None:
    conn, peer = connection()
    peer.send(b"\x16\x03\x01zz\x01")
    select.select([conn.sock], [], [], DEADLINE)
    with pytest.raises(Gone, match="speaks TLS"):
        conn.receive(100)
    peer.reset()
    select.select([conn.sock], [], [], DEADLINE)
    with pytest.raises(Gone, match="lost: Connection reset"):
        conn.receive(100)
    silent, _peer = connection()
    assert silent.receive(100) is None


def test_a_connection_whose_peer_has_gone_is_not_sent_to_again() -> None:
    conn, peer = connection()
    peer.reset()
    conn.write(said(b"hi\n"))
    conn.write(said(b"hi\n"))
    assert not conn.sending
    assert conn.reading
    assert conn.receive(100) == b""
    assert conn.was_reset()


# The throttle


class Someone:
    """What the throttle knows of a connection."""

    def __init__(self, size: int = 0, unread: int = 0) -> None:
        self.size = size
        self.unread = unread
        self.reading = True

    def read_on(self, reading: bool) -> None:
        self.reading = reading


def slowed() -> tuple[Throttle, Any]:
    """Returns a throttle, and somebody who is behind."""
    throttle = Throttle()
    slow: Any = Someone(HIGH_WATER + 1)
    throttle.check(slow)
    return throttle, slow


def test_nobody_is_slowed_while_nobody_is_behind() -> None:
    throttle, one = Throttle(), Someone(HIGH_WATER)
    throttle.check(one)  # type: ignore[arg-type]
    for _ in range(100):
        assert throttle.allow(one, 10_000) == 10_000  # type: ignore[arg-type]
        throttle.charge(one, 10_000)  # type: ignore[arg-type]
    assert not throttle.behind


def test_a_flood_is_slowed_while_somebody_is_behind() -> None:
    throttle, _ = slowed()
    one: Any = Someone()
    for _ in range(3):
        total = 0
        while True:
            allowed = throttle.allow(one, 1000)
            if not allowed:
                break
            total += allowed
            throttle.charge(one, allowed)
        assert total == ALLOWANCE
        assert throttle.paused == {one} and not one.reading
        throttle.tick()
        assert not throttle.paused and one.reading


def test_many_who_flood_share_what_all_may_say() -> None:
    throttle, _ = slowed()
    crowd: list[Any] = [Someone() for _ in range(1000)]
    for one in crowd:
        throttle.charge(one, 1)
    assert throttle.allow(crowd[0], 100_000) == MIN_READ - 1
    assert throttle.allow(Someone(), 100_000) == MIN_READ  # type: ignore[arg-type]


def test_everyone_speaks_freely_after_the_last_has_caught_up() -> None:
    for caught_up in (True, False):
        throttle, first = slowed()
        second: Any = Someone(HIGH_WATER + 1)
        one: Any = Someone()
        throttle.check(second)
        throttle.charge(one, ALLOWANCE)
        assert throttle.allow(one, 1) == 0
        for slow in (first, second):
            assert not one.reading
            slow.size = 0
            throttle.check(slow) if caught_up else throttle.forget(slow)
        assert one.reading
        assert not throttle.behind and not throttle.slowing and not throttle.paused


def test_whoever_does_not_read_its_answers_is_slowed_alone() -> None:
    throttle = Throttle()
    one: Any = Someone(MAX_UNREAD + 100, MAX_UNREAD + 1)
    throttle.check(one)
    assert throttle.allow(one, 1000) == 0
    assert throttle.allow(Someone(), 1000) == 1000  # type: ignore[arg-type]
    assert list(throttle.behind) == [one]
    one.size = one.unread = 0
    throttle.check(one)
    throttle.tick()
    assert one.reading and not throttle.behind


def test_patience_does_not_begin_anew() -> None:
    throttle, slow = slowed()
    deadline = throttle.behind[slow]
    assert 0 < deadline - time.monotonic() <= PATIENCE
    slow.size += 1
    throttle.check(slow)
    assert throttle.behind[slow] == deadline


# The door


@pytest.fixture
def at_door() -> tuple[Door, Connection, Callable[[bytes], bytes | None]]:
    """A door that wants a password, somebody at it, and what that one can say there."""
    door = Door(b"secret")
    conn, peer = connection()
    assert not door.arrive(conn)
    peer.expect("* password?\n")

    def give(data: bytes) -> bytes | None:
        peer.send(data)
        select.select([conn.sock], [], [], DEADLINE)
        return door.step(conn)

    return door, conn, give


def test_time_at_the_door_does_not_begin_anew_with_each_byte(at_door: Any) -> None:
    door, conn, give = at_door
    deadline = door.waiting[conn]
    for byte in (b"s", b"e", b"c"):
        assert give(byte) is None
    assert conn.framer.partial == b"sec"
    assert door.waiting == {conn: deadline}
    assert give(b"ret\r\nand more") == b"and more"


def test_password_is_compared_in_constant_time(
    at_door: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    compare = hmac.compare_digest

    def record(given: bytes, password: bytes) -> bool:
        compared.append((given, password))
        return compare(given, password)

    monkeypatch.setattr(hmac, "compare_digest", record)
    _, conn, give = at_door
    assert give(b"guess\n") is None
    assert compared == [(b"guess", b"secret")]
    assert not conn.reading


def test_whoever_ends_at_the_door_has_left_it() -> None:
    door = Door(b"secret")
    conn, peer = connection()
    door.arrive(conn)
    peer.half_close()
    select.select([conn.sock], [], [], DEADLINE)
    with pytest.raises(Gone, match="left the door"):
        door.step(conn)


def test_without_a_password_or_a_handshake_there_is_nothing_to_do_at_the_door() -> None:
    assert Door(b"").arrive(connection()[0])
