"""What one host can do to a room, and what that may cost the others: nothing."""

from __future__ import annotations

import math
import select

import pytest
from browser import PING, masked
from support import DEADLINE, WELCOME, Inside, pair

import chat_server
from chat_server import CREDIT, HIGH_WATER, MAX_UNREAD, MAX_WHISPERED, Connection


def test_loop_sleeps_while_somebody_behind_asks_and_does_not_read() -> None:
    """Its questions wait until it has read. Read from before that, it would wake each turn."""
    inside = Inside()
    server = inside.server
    conn, peer = inside.join()
    while conn not in server.throttle.behind:
        inside.say(b"x\n" * 10_000)
    peer.send(b"/help\n" * 1000)
    while conn.unread_answers <= MAX_UNREAD:
        server.turn()
    server.turn()  # finds out
    for _ in range(3):
        server.turn()
        assert conn in server.throttle.waiting


def test_nobody_keeps_others_out_by_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever quits and doesn't close has a place for a while, as members do."""
    monkeypatch.setattr(chat_server, "DOOR_SIZE", 1)
    inside = Inside(size=1)
    server = inside.server
    for _ in range(2):
        conn, _peer = inside.join()
        conn.unheard = b"/quit\n"
        server.hear(conn, 99, math.inf)
        server.deliver(server.room.take_batch())
    sock, peer = pair()
    server.admit(sock, "peer")
    assert peer.rest() == b""
    sock, peer = pair()
    server.admit(sock, "192.0.2.2:7")
    server.deliver(server.room.take_batch())
    assert peer.line() == WELCOME


def test_queues_have_an_end_although_the_room_is_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood goes on while the room hears what had arrived before it was told to close."""
    inside = Inside()
    server = inside.server
    (stuck, _peer), (_, flooder) = inside.join(), inside.join()
    while stuck.size <= HIGH_WATER:
        inside.say(b"x\n" * 10_000)
        flooder.available()
    monkeypatch.setattr(chat_server, "HARD_LIMIT", stuck.size)
    flooder.send(b"more\n")
    server.stop_signals = 1
    server.close_room()
    assert stuck not in server.room.members


def test_many_who_say_little_say_no_more_than_a_slow_reader_can_read() -> None:
    inside = Inside()
    throttle = inside.server.throttle
    (quiet, _peer), _ = inside.join(), inside.join()
    throttle.slow = True
    throttle.mark = throttle.clock.now() + 3 * CREDIT
    assert throttle.allow(quiet, 1000, 0) == 0
    assert quiet in throttle.waiting


@pytest.mark.parametrize(
    "question",
    [b"/who\n", b"\xff\xfd\x06", masked(PING, b"")],
    ids=["command", "telnet", "ping"],
)
def test_few_answers_wait_for_whoever_does_not_read(
    monkeypatch: pytest.MonkeyPatch, question: bytes
) -> None:
    """Each in a turn of its own is a batch of its own, which takes memory."""
    inside = Inside()
    server = inside.server
    conn, peer = inside.join()
    if question[:1] == b"\x89":
        conn.use(chat_server.WebSocket(8192))
    monkeypatch.setattr(Connection, "send", lambda conn, data: 0)
    while conn not in server.throttle.waiting:
        peer.send(question)
        select.select([conn.sock], [], [], DEADLINE)
        server.read_all({conn})
        server.deliver(server.room.take_batch())
    assert conn.queue
    assert len(conn.queue) < 20


def test_nobody_is_muted_by_what_others_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads slowly is heard, however much waits of what it has not asked for."""
    inside = Inside()
    server = inside.server
    (vic, victim), (_, eve), (_, bob) = (inside.join() for _ in range(3))
    for peer, name in ((victim, "Vic"), (eve, "Eve")):
        peer.send(f"/name {name}\n")
        server.turn()
    send = Connection.send
    monkeypatch.setattr(
        Connection, "send", lambda conn, data: 0 if conn is vic else send(conn, data)
    )
    eve.send((b"/msg Vic: " + b"z" * 1000 + b"\n") * 30)
    for _ in range(3):
        server.turn()
    assert MAX_WHISPERED < vic.unread_whispers < 2 * MAX_WHISPERED
    bob.available()
    victim.send("Vic: still here\n")
    server.turn()
    bob.read_until(b"Vic: still here\n")


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
        while stuck not in server.throttle.behind:
            inside.say(b"x\n" * 10_000)
            bob.available()
    ghosts = [inside.join()[1] for _ in range(3)] if not is_slow else []
    for sock, ghost in (pair() for _ in range(3)) if is_slow else ():
        server.admit(sock, "peer")
        ghosts.append(ghost)
    for ghost in ghosts:
        ghost.send(question * 10_000)
    server.turn()
    for ghost in ghosts:
        ghost.reset()
    for _ in range(100):
        inside.say(b"somebody talks\n")
        bob.available()
        server.turn()
        if len(server.room.members) == 2:
            break
    assert len(server.room.members) == 2
