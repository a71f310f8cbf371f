"""The parts of the chat server one by one: a connection, the door, the throttle."""

from __future__ import annotations

import hmac
import math
import select
import selectors
import time
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from support import DEADLINE, Peer, check_connection, checked_server, pair

import chat_server
from chat_server import (
    ALLOWANCE,
    BAN_TIME,
    BATCH_COST,
    CREDIT,
    HIGH_WATER,
    LOUD_TIME,
    MAX_UNREAD,
    MIN_READ,
    PACE,
    PATIENCE,
    SILENCE,
    TOLD_COST,
    Batch,
    Clock,
    Connection,
    Dismissed,
    Gone,
    State,
    Telnet,
    Throttle,
    WebSocket,
    host_of,
    loser_to,
)


def connection() -> tuple[Connection, Peer]:
    sock, peer = pair()
    return Connection(sock, "peer", "host", selectors.DefaultSelector(), Telnet(8192)), peer


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
    assert conn.unread_answers == TOLD_COST + len(b"answer\n")
    assert not silent.cuts
    while conn.queue:
        stuck.open = step
        conn.flush()
        check_connection(conn)
    assert stuck.sent == b"one\nanswer\ntwo\nthree\n"
    assert (conn.size, conn.unread_answers, list(batch.cuts)) == (0, 0, [other])


def test_telnet_is_answered_between_two_lines_at_its_own_cost(stuck: Stuck) -> None:
    conn, peer = stuck.conn, stuck.peer
    stuck.open = 4
    conn.write(said(b"partly sent\n"))
    before = conn.size
    peer.send(b"\xff\xfd\x06")
    select.select([conn.sock], [], [], DEADLINE)
    assert (conn.receive(100), conn.ended) == (b"", False)
    conn.write(said(b"next\n"))
    check_connection(conn)
    assert conn.unread_answers == TOLD_COST + len(b"\xff\xfc\x06")
    assert conn.size == before + len(b"\xff\xfc\x06next\n") + 2 * BATCH_COST
    stuck.open = 1000
    conn.flush()
    assert stuck.sent == b"partly sent\n\xff\xfc\x06next\n"
    assert (conn.size, conn.unread_answers) == (0, 0)


def test_whoever_asks_and_does_not_read_is_disconnected(stuck: Stuck) -> None:
    conn, peer = stuck.conn, stuck.peer
    with pytest.raises(Gone, match="does not read the answers"):
        for _ in range(MAX_UNREAD):
            peer.send(b"\xff\xfd\x06")
            select.select([conn.sock], [], [], DEADLINE)
            conn.receive(100)
    assert MAX_UNREAD < conn.unread_answers < MAX_UNREAD + 2 * TOLD_COST


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
        assert (stuck.conn.queue, stuck.conn.size, stuck.conn.unread_answers) == (None, 0, 0)


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
    assert (silent.receive(100), silent.ended) == (b"", False)


def test_a_connection_whose_peer_has_gone_is_not_sent_to_again() -> None:
    conn, peer = connection()
    peer.reset()
    conn.write(said(b"hi\n"))
    conn.write(said(b"hi\n"))
    assert not conn.reachable
    assert conn.reading
    assert (conn.receive(100), conn.ended) == (b"", True)
    assert conn.why == "lost: Connection reset by peer"


# Time


class FakeTime:
    """A clock that the tests move."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.clock = Clock(lambda: self.time)

    def pass_by(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


def test_time_in_which_the_loop_did_not_run_does_not_count(fake: FakeTime) -> None:
    clock = fake.clock
    fake.pass_by(2)
    clock.wake(2.0)  # as it was told
    assert clock.now() == 1002
    fake.pass_by(9)
    clock.wake(2.0)  # it was stopped for seven seconds
    assert clock.now() == 1004
    fake.pass_by(60)
    clock.wake(math.inf)  # it was to sleep for as long as nothing happened
    assert clock.now() == 1064
    fake.pass_by(0.5)
    clock.wake(0)  # a long turn
    assert clock.now() == 1064.5


# The throttle


class Someone:
    """What the throttle knows of a connection."""

    host = "192.0.2.1"
    since = 0.0
    silent = False
    reachable = True
    until = math.inf
    mark = 0.0

    def __init__(self, size: int = 0, unread: int = 0) -> None:
        self.size = size
        self.unread_answers = unread
        self.queue = True
        self.reading = True
        self.taken = 0

    def acknowledged(self) -> int:
        return self.taken

    def read_on(self, reading: bool) -> None:
        self.reading = reading


class Hall:
    """A throttle, somebody who is behind, and others who want to say as much as they may."""

    def __init__(self, fake: FakeTime) -> None:
        self.fake = fake
        self.said: Counter[Someone] = Counter()
        self.next_tick = fake.time
        self.throttle = Throttle(fake.clock)
        self.slow: Any = Someone(HIGH_WATER + 1)
        self.throttle.note_behind(self.slow)

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
            self.fake.pass_by(0.05)
            if self.fake.time >= self.next_tick:
                self.next_tick = self.fake.time + 1
                self.throttle.is_too_far_behind(self.slow)
            self.throttle.let_speak()
            said += sum(self.say(one, size) for one in flooders)
        return said


@pytest.fixture
def slowed(fake: FakeTime) -> Hall:
    return Hall(fake)


def test_nobody_is_slowed_while_nobody_is_behind(fake: FakeTime) -> None:
    throttle = Throttle(fake.clock)
    one: Any = Someone(HIGH_WATER)
    for _ in range(100):
        assert throttle.allow(one, 10_000, 0) == 10_000
        throttle.charge_bytes(one, 10_000)
    assert not throttle.behind


@pytest.mark.parametrize("flooders", [1, 7, 500])
def test_however_many_flood_they_say_what_one_can_read(slowed: Hall, flooders: int) -> None:
    crowd = [Someone() for _ in range(flooders)]
    for one in crowd:
        slowed.throttle.charge_bytes(one, 100_000)  # they did so before too
    first = slowed.flood(crowd, 10)
    assert first <= 11 * PACE + MIN_READ
    then = slowed.flood(crowd, 100)
    assert 0.7 * 100 * PACE < then <= 101 * PACE


def test_many_who_each_say_little_are_no_way_around_that(slowed: Hall) -> None:
    crowd = [Someone() for _ in range(500)]
    said = slowed.flood(crowd, 60, 100)
    assert said <= (61 + 2 * CREDIT) * PACE + 500 * MIN_READ


def test_silence_is_no_way_around_that(slowed: Hall) -> None:
    """What wasn't said in a minute can't be said in the next second."""
    crowd: list[Any] = [Someone() for _ in range(100)]
    for minute in range(2):
        slowed.flood([], 60 * minute)
        for one in crowd:
            slowed.throttle.charge_bytes(one, 100_000)
        said = slowed.flood(crowd, 1)
    assert said <= 2 * PACE + MIN_READ


def test_newcomers_are_no_way_around_that(slowed: Hall) -> None:
    said = 0
    for _ in range(1000):
        newcomers = [Someone() for _ in range(20)]
        for one in newcomers:
            slowed.throttle.join(one)  # type: ignore[arg-type]
        said += slowed.flood(newcomers, 0.05)
        for one in newcomers:
            slowed.throttle.forget(one)  # type: ignore[arg-type]
    assert said <= 51 * PACE + 2 * 20 * MIN_READ


@pytest.mark.parametrize(
    "pause, size, lines",
    [(1, 200, 50), (0.05, 150, 600)],  # twenty lines a second, each with what it costs
    ids=["now and then", "a lot"],
)
def test_whoever_talks_is_heard_at_once_beside_a_flood(
    slowed: Hall, pause: float, size: int, lines: int
) -> None:
    crowd = [Someone() for _ in range(500)]
    talker = Someone()
    for one in crowd:
        slowed.throttle.charge_bytes(one, 100_000)
    for _ in range(lines):
        slowed.flood(crowd, pause)
        assert slowed.say(talker, size) == size


def test_the_first_eight_kilobytes_are_not_loud(slowed: Hall) -> None:
    one: Any = Someone()
    slowed.throttle.charge_bytes(one, int(ALLOWANCE * PACE / 2))
    assert one.mark <= slowed.fake.clock.now()
    slowed.throttle.charge_bytes(one, 1)
    assert one.mark > slowed.fake.clock.now()


def test_many_who_are_quiet_do_not_mute_a_newcomer(slowed: Hall) -> None:
    """They say all that may be said, never so much that they would have to wait."""
    throttle = slowed.throttle
    newcomer: Any = Someone()
    throttle.join(newcomer)
    throttle.mark = throttle.clock.now() + CREDIT / 2
    for _ in range(100):
        slowed.flood([newcomer], 0.05, 100)
        throttle.note_said(int(0.05 * PACE) - BATCH_COST)
    assert slowed.said[newcomer] >= 20 * 100


def test_whoever_has_been_silent_comes_before_many_hosts(slowed: Hall) -> None:
    """Each of them speaks seldom, so that none is loud."""
    crowd = [Someone() for _ in range(600)]
    for number, one in enumerate(crowd):
        one.host = f"198.51.100.{number % 50}"
    talker = Someone()
    slowed.flood(crowd, 70, MIN_READ)
    for _ in range(4):
        said = slowed.said[talker]
        slowed.flood([*crowd, talker], 1, 100)
        assert slowed.said[talker] > said
        slowed.flood(crowd, 15, MIN_READ)


def test_a_host_with_many_connections_has_no_more_than_another(slowed: Hall) -> None:
    """Each says little, all together too much; somebody from another host is heard all the same."""
    crowd = [Someone() for _ in range(300)]
    talker = Someone()
    talker.host = "192.0.2.2"
    heard = 0
    for _ in range(40):
        slowed.flood(crowd, 0.5, 200)
        heard += slowed.say(talker, 100) == 100
        if not talker.reading:
            slowed.throttle.let_one_speak(talker)  # type: ignore[arg-type]
    assert heard >= 38


def test_long_lines_of_the_loud_do_not_delay_whoever_talks(slowed: Hall) -> None:
    loud, talker = Someone(), Someone()
    slowed.throttle.charge_bytes(loud, 100_000)
    for _ in range(20):
        slowed.flood([loud], 1)
        slowed.throttle.note_said(8192)  # the end of a long line
        assert slowed.say(talker, 200) == 200


def test_the_loud_take_turns(slowed: Hall) -> None:
    crowd = [Someone() for _ in range(40)]
    for one in crowd:
        slowed.throttle.charge_bytes(one, 100_000)
    slowed.flood(crowd, 60)
    shares = [slowed.said[one] for one in crowd]
    assert min(shares) > max(shares) / 3


def test_turns_go_by_hosts(slowed: Hall) -> None:
    """A loud one among many from another host says as much as all those together."""
    crowd, single = [Someone() for _ in range(60)], Someone()
    single.host = "192.0.2.2"
    for one in (*crowd, single):
        slowed.throttle.charge_bytes(one, 100_000)
    slowed.flood([*crowd, single], 60)
    assert slowed.said[single] > sum(slowed.said[one] for one in crowd) / 3


def test_whoever_was_loud_is_not_for_ever(slowed: Hall) -> None:
    one = Someone()
    slowed.throttle.charge_bytes(one, 10**9)
    slowed.throttle.note_said(100)
    assert slowed.say(one, 100) == 0
    slowed.flood([], 60)
    assert slowed.say(one, 100) == 100
    assert slowed.say(one, 100) == 100
    slowed.flood([], LOUD_TIME + 1)
    assert one.mark <= slowed.fake.clock.now()  # type: ignore[arg-type]


def test_everyone_speaks_freely_after_the_last_has_caught_up(slowed: Hall) -> None:
    throttle = slowed.throttle
    for caught_up in (True, False):
        first, second, one = Someone(HIGH_WATER + 1), Someone(HIGH_WATER + 1), Someone()
        crowd: list[Any] = [first, second]
        for slow in crowd:
            throttle.note_behind(slow)
        throttle.forget(slowed.slow)
        throttle.charge_bytes(one, 100_000)  # type: ignore[arg-type]
        throttle.note_said(100)
        assert slowed.say(one, 1) == 0
        for slow in crowd:
            assert not one.reading
            slow.size, slow.queue = 0, None
            throttle.note_taken(slow) if caught_up else throttle.forget(slow)
        assert one.reading
        assert not (throttle.behind or throttle.slow or throttle.waiting)


def test_what_was_said_while_another_was_behind_is_forgotten(slowed: Hall) -> None:
    slowed.throttle.note_said(int(10 * CREDIT * PACE))
    assert slowed.say(Someone(), 100) == 0
    slowed.slow.size = 0
    slowed.throttle.note_taken(slowed.slow)
    slowed.slow.size = HIGH_WATER + 1
    slowed.throttle.note_behind(slowed.slow)
    assert slowed.say(Someone(), 100) == 100


def test_whoever_does_not_read_its_answers_is_slowed_alone(fake: FakeTime) -> None:
    throttle = Throttle(fake.clock)
    one: Any = Someone(MAX_UNREAD + 100, MAX_UNREAD + 1)
    other: Any = Someone()
    assert throttle.allow(one, 1000, 0) == 0
    assert throttle.allow(other, 1000, 0) == 1000
    assert list(throttle.behind) == [one]
    one.size = one.unread_answers = 0
    one.queue = None
    throttle.note_taken(one)
    assert one.reading and not throttle.behind


def overdue(slowed: Hall) -> bool:
    throttle = slowed.throttle
    return slowed.slow in throttle.behind and throttle.is_too_far_behind(slowed.slow)


def test_patience_does_not_begin_anew(slowed: Hall) -> None:
    for _ in range(49):
        slowed.fake.pass_by(0.1)
        slowed.throttle.note_behind(slowed.slow)
        assert not overdue(slowed)
    slowed.fake.pass_by(0.2)
    assert overdue(slowed)
    assert PATIENCE == 5


@pytest.mark.parametrize("rate, stays", [(8, True), (20, True), (3, False)])
@pytest.mark.parametrize("segment", [1448, 65_536])
def test_whoever_takes_its_pace_stays_in_whatever_steps(
    slowed: Hall, segment: int, rate: int, stays: bool
) -> None:
    """A kernel can tell of what was read in steps of 128 KiB."""
    slow: Any = Someone(HIGH_WATER + 1)
    slow.taken = 3 * segment
    slowed.throttle.forget(slowed.slow)
    slowed.slow = slow
    slowed.throttle.note_behind(slow)
    stayed = True
    for steps in (2, 1, 2, 1, 2, 2, *[1] * (100 if segment < 2000 else 0)):
        until = slowed.fake.time + steps * segment / (rate * 1024)
        while slowed.fake.time < until:
            slowed.fake.pass_by(max(0.001, min(0.5, until - slowed.fake.time)))
            stayed = stayed and not overdue(slowed)
        slow.taken += steps * segment
    assert stayed == stays
    for _ in range(2):
        slowed.fake.pass_by(200)
        gone = overdue(slowed)
    assert gone


def test_whoever_was_behind_a_moment_ago_has_still_the_time_that_it_has_earned(
    slowed: Hall,
) -> None:
    slow = slowed.slow
    slowed.fake.pass_by(4)
    slow.taken += 2 * 65_483
    assert not overdue(slowed)
    slow.size = HIGH_WATER
    slowed.throttle.note_taken(slow)  # so the others speak freely, and at once it is behind again
    slow.size = HIGH_WATER + 1
    slowed.throttle.note_behind(slow)
    slowed.fake.pass_by(16)
    assert not overdue(slowed)
    slowed.fake.pass_by(20)
    assert overdue(slowed), "but no more than that"


@pytest.mark.parametrize("caught_up", [True, False])
def test_whoever_took_much_and_then_got_stuck_is_found_out_all_the_same(
    slowed: Hall, caught_up: bool
) -> None:
    slow = slowed.slow
    if caught_up:  # and is behind again, an hour later
        slow.size, slow.queue = 0, None
        slowed.throttle.note_taken(slow)
    slow.taken += 10**9
    assert not overdue(slowed)
    slow.size, slow.queue = HIGH_WATER + 1, True
    slowed.throttle.note_behind(slow)
    for _ in range(35):
        slowed.fake.pass_by(1)
        gone = overdue(slowed)
    assert gone


def test_time_is_not_earned_in_advance(slowed: Hall) -> None:
    """Not even by an hour of reading ten times as fast as has to be."""
    for _ in range(3600):
        slowed.fake.pass_by(1)
        slowed.slow.taken += 10 * PACE
        assert not overdue(slowed)
    slowed.fake.pass_by(35)
    assert overdue(slowed)


def test_a_queue_has_a_hard_limit(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "HARD_LIMIT", 1000)
    stuck.conn.write(said(b"x" * 800))
    with pytest.raises(Gone, match="queue is full"):
        stuck.conn.write(said(b"x" * 800))


# Places


def guest(host: str, silent: bool = False) -> Any:
    one = Someone()
    one.host, one.silent = host, silent
    return one


def test_a_place_goes_from_the_host_that_has_most_to_one_that_has_fewer() -> None:
    guests = [guest(host) for host in "ababa"]
    for number, one in enumerate(guests):
        one.since = float(number)
    assert loser_to("c", guests, 0) is guests[4]
    assert loser_to("b", guests, 0) is None, "it would have as many as the other then"
    assert loser_to("a", guests, 0) is None


def test_silence_is_no_claim_to_a_place_against_ones_own_host() -> None:
    guests = [guest("a"), guest("a", silent=True), guest("b", silent=True)]
    assert loser_to("a", guests, SILENCE - 1) is None
    assert loser_to("a", guests, SILENCE) is guests[1]
    assert loser_to("c", guests, SILENCE) is guests[0], "the host that has most"


def test_a_host_is_an_address_or_a_network_of_64_bits() -> None:
    assert host_of("192.0.2.1:7") == "192.0.2.1"
    one, same, other = "2001:db8:1:2::3", "2001:db8:1:2:ffff::", "2001:db8:1:3::3"
    assert host_of(f"[{one}]:7") == host_of(f"[{same}]:8") != host_of(f"[{other}]:7")
    assert host_of("[fe80::1%eth0]:7") == host_of("[fe80::1]:7") != host_of("[fe80::2]:7")
    assert host_of("somebody") == ""  # whose address is not known, on macOS


# Guessing


class Guesses:
    """A door at which nobody knows the password."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.door = checked_server(password=b"secret").door
        self.door.clock.monotonic = lambda: self.now

    def allowed(self, hosts: list[str], seconds: int) -> int:
        """Returns how many passwords they may try, all wrong."""
        count = 0
        for _ in range(seconds * 20):
            self.now += 1 / 20
            for host in hosts:
                if self.door.may_try(host):
                    self.door.note_wrong(host)
                    count += 1
        return count


def test_one_host_tries_three_passwords_at_once() -> None:
    guesses = Guesses()
    tries = 0
    while guesses.door.may_try("a"):
        guesses.door.note_wrong("a")
        guesses.now += 0.01  # they come in over some time
        tries += 1
    assert tries == 3


def test_one_host_tries_a_password_a_second() -> None:
    assert 60 <= Guesses().allowed(["a"], 60) <= 64


def test_all_hosts_together_try_ten_a_second() -> None:
    guesses = Guesses()
    assert 600 <= guesses.allowed([str(number) for number in range(1000)], 60) <= 640
    assert len(guesses.door.tried) < 100


def test_a_host_that_was_never_wrong_does_not_wait_for_another() -> None:
    door = Guesses().door
    for _ in range(10):
        door.note_wrong("a")
    assert not door.may_try("a")
    assert door.may_try("b")


def test_a_host_is_barred_for_a_while() -> None:
    guesses = Guesses()
    conn, _peer = connection()
    guesses.door.bar(conn.host)
    guesses.door.note_wrong(conn.host)
    guesses.now += BAN_TIME - 1
    guesses.door.note_wrong("other")
    with pytest.raises(Dismissed, match="come back in 1 min"):
        guesses.door.check_host(conn)
    guesses.now += 1
    guesses.door.check_host(conn)
    guesses.door.note_wrong("other")
    assert list(guesses.door.tried) == ["other"]
    guesses.door.bar("another")
    assert list(guesses.door.barred) == ["another"]


# The door


class AtDoor:
    """A door that wants a password, and somebody at it."""

    def __init__(self) -> None:
        self.server = checked_server(password=b"secret")
        self.door = self.server.door
        sock, self.peer = pair()
        self.door.admit(sock, "192.0.2.1:7")
        (self.conn,) = self.server.membership.newcomers
        self.peer.expect("* password?\n")

    def say(self, data: bytes) -> Connection:
        """Says something, which the door hears; returns the connection."""
        self.peer.send(data)
        select.select([self.conn.sock], [], [], DEADLINE)
        self.door.serve([self.conn])
        return self.conn

    def time_is_up(self) -> None:
        self.door.go_on(self.conn, True)


@pytest.fixture
def at_door() -> AtDoor:
    return AtDoor()


def test_time_at_the_door_does_not_begin_anew_with_each_byte(at_door: AtDoor) -> None:
    until = at_door.conn.until
    for byte in (b"s", b"e", b"c"):
        assert at_door.say(byte).state is State.DOOR
    assert at_door.conn.input.partial == b"sec"
    assert at_door.conn.until == until
    conn = at_door.say(b"ret\r\nand more\nand")
    assert conn.state is State.MEMBER
    assert (conn.unheard, conn.input.partial) == (b"and more\n", b"and")


def test_password_is_compared_in_constant_time(
    at_door: AtDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    compare = hmac.compare_digest

    def record(given: bytes, password: bytes) -> bool:
        compared.append((given, password))
        return compare(given, password)

    monkeypatch.setattr(hmac, "compare_digest", record)
    conn = at_door.say(b"guess\n")
    assert compared == [(b"guess", b"secret")]
    assert not conn.reading
    assert conn.until > time.monotonic()
    with pytest.raises(Dismissed, match="wrong password"):
        at_door.time_is_up()


def test_nothing_that_comes_has_a_wrong_password_answered_before_its_time(at_door: AtDoor) -> None:
    conn = at_door.say(b"guess\n")
    conn.use(WebSocket(1000))
    conn.input.ended = True  # a browser that closes at once
    assert at_door.say(b"more\n").state is State.DOOR
    with pytest.raises(Dismissed, match="wrong password"):
        at_door.time_is_up()


def test_a_password_that_comes_too_early_waits(at_door: AtDoor) -> None:
    for _ in range(10):
        at_door.door.note_wrong(at_door.conn.host)
    conn = at_door.say(b"secret\nmore")
    assert not conn.reading
    at_door.time_is_up()
    assert conn.state is State.DOOR, "it is still too early"
    at_door.door.tried.clear()
    at_door.door.all_tried = 0.0
    at_door.time_is_up()
    assert conn.state is State.MEMBER
    assert conn.input.partial == b"more"


def test_whoever_is_kept_out_by_now_does_not_get_in_with_the_password(at_door: AtDoor) -> None:
    at_door.door.bar(at_door.conn.host)
    assert at_door.say(b"secret\n").state is State.LEAVING


def test_whoever_is_dismissed_is_read_to_its_end(at_door: AtDoor) -> None:
    """A close before that would be a reset, which destroys what it is told."""
    membership = at_door.server.membership
    conn = at_door.say(b"guess\n")
    at_door.peer.send(b"another guess\n")
    membership.guard(at_door.door.go_on, conn, True)
    at_door.server.deliver(membership.room.take_batch())
    assert conn in membership.leaving and conn.reading
    assert at_door.peer.rest() == b"* wrong password\n"


def test_whoever_ends_at_the_door_has_left_it(at_door: AtDoor) -> None:
    at_door.peer.half_close()
    select.select([at_door.conn.sock], [], [], DEADLINE)
    with pytest.raises(Gone, match="left the door"):
        at_door.door.go_on(at_door.conn)


def test_without_a_password_or_a_handshake_there_is_nothing_to_do_at_the_door() -> None:
    server = checked_server()
    sock, _peer = pair()
    server.door.admit(sock, "192.0.2.1:7")
    assert len(server.room.members) == 1
