"""TLS: first without any socket, then what a peer can do to the room with it."""

from __future__ import annotations

import random
import select
import selectors
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from selectors import EVENT_READ

import pytest
from openssl import KeyChanger
from support import (
    CERTS,
    DEADLINE,
    WELCOME,
    CheckedServer,
    Peer,
    Server,
    check_invariants,
    check_tls,
    end_stream,
    eventually,
    needs,
    pair,
    tls_member,
    tls_room,
    trusting,
)

from chat_server import (
    HIGH_WATER,
    MAX_LINE,
    MAX_UNSENT,
    TLS_READ,
    TLS_PIECE,
    TLS_RECORD,
    Connection,
    Gone,
    Site,
    Telnet,
    TLSConnection,
    make_server_tls,
)

CONTEXT = make_server_tls(str(CERTS / "room.pem"), str(CERTS / "room.key"))
SELECTOR = selectors.DefaultSelector()
ALERT = b"\x15\x03"  # the first bytes of one that isn't encrypted
VERSIONS = pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])


class Client:
    """The other end, in memory too."""

    def __init__(self, version: str = "TLSv1_3") -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = trusting(CERTS / "room.pem")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        self.ssl = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.ready = False  # to say something

    def shake_hands(self) -> bytes:
        with suppress(ssl.SSLWantReadError):
            self.ssl.do_handshake()
            self.ready = True
        return self.outgoing.read()

    def feed(self, data: bytes) -> None:
        self.incoming.write(data)

    def say(self, *texts: bytes) -> bytes:
        """Returns what to send, a record for each text."""
        for text in texts:
            self.ssl.write(text)
        return self.outgoing.read()

    def end(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.ssl.unwrap()
        return self.outgoing.read()

    def hear(self) -> bytes:
        """Returns all the text that came. Raises ssl.SSLError."""
        text = b""
        try:
            while True:
                piece = self.ssl.read(1 << 20)
                if not piece:
                    return text
                text += piece
        except ssl.SSLWantReadError:
            return text


class End:
    """The room's end of a connection, and its peer."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.peer = Peer(theirs)
        self.conn = TLSConnection(ours, "peer", "host", SELECTOR, Telnet(MAX_LINE), CONTEXT)

    def take(self, data: bytes) -> bytes:
        """Returns the text that comes of what is sent."""
        text = b""
        for at in range(0, len(data), TLS_READ):
            piece = data[at : at + TLS_READ]
            self.peer.send(piece)
            if not self.conn.ready:
                self.conn.pending = self.conn.decrypt(self.conn.receive_bytes(TLS_READ))
            else:
                text += self.conn.receive_text(TLS_READ)
            check_tls(self.conn)
        return text

    def say(self, text: bytes) -> bytes:
        """Returns what is sent for a text."""
        assert self.conn.send(text) == len(text)
        return self.sent()

    def sent(self) -> bytes:
        """Returns what was sent by now."""
        return self.peer.available()


def introduced(client: Client | KeyChanger, step: int = 1 << 20) -> End:
    """Returns the room's end after the handshake, whose bytes come in pieces."""
    room = End()
    while not room.conn.ready:
        data = client.shake_hands()
        for at in range(0, len(data), step):
            assert not room.conn.ready
            assert room.take(data[at : at + step]) == b""
        client.feed(room.sent())
    client.shake_hands()
    return room


@VERSIONS
def test_text_comes_through_one_byte_at_a_time(version: str) -> None:
    client = Client(version)
    room = introduced(client, step=1)
    heard = b""
    for byte in client.say(b"hello\n", b"x" * 3000, b"\n"):
        heard += room.take(bytes([byte]))
    assert heard == b"hello\n" + b"x" * 3000 + b"\n"
    for byte in room.say(b"hi\n") + room.say(b"y" * 5000):
        client.feed(bytes([byte]))
    assert client.hear() == b"hi\n" + b"y" * 5000


@VERSIONS
def test_all_that_came_is_decrypted_at_once(version: str) -> None:
    client = Client(version)
    room = introduced(client)
    room.peer.send(client.say(*[b"line\n"] * 200))
    assert room.conn.receive_text(TLS_READ) == b"line\n" * 200
    assert (room.conn.receive_text(TLS_READ), room.conn.ended) == (b"", False)
    record = client.say(b"z" * TLS_RECORD)
    assert room.take(record[:-1]) == b""
    assert room.take(record[-1:]) == b"z" * TLS_RECORD


def test_text_right_behind_the_handshake_is_known_of() -> None:
    client = Client()
    room = End()
    data = client.shake_hands()
    while not client.ready:
        room.take(data)
        client.feed(room.sent())
        data = client.shake_hands()
    room.peer.send(data + client.say(b"eager\n"))
    room.conn.pending = room.conn.decrypt(room.conn.receive_bytes(1 << 16))
    assert room.conn.ready
    assert room.conn.pending
    assert room.conn.receive_text(100) == b"eager\n"
    assert not room.conn.pending


@VERSIONS
def test_the_end_comes_after_the_text_before_it(version: str) -> None:
    """TLS's own end: what comes after it isn't looked at, but the stream goes on to its end."""
    client = Client(version)
    room = introduced(client)
    assert room.take(client.say(b"bye") + client.end() + b"more") == b"bye"
    assert (room.conn.ended, room.conn.why) == (True, "")
    assert room.conn.reading
    room.conn.end_stream()
    client.feed(room.sent())
    client.ssl.unwrap()  # it has seen our end
    room.peer.close()
    assert room.conn.receive_text(100) == b""
    assert not room.conn.reading


@VERSIONS
def test_half_a_record_is_nothing_yet(version: str) -> None:
    client = Client(version)
    room = introduced(client)
    record = client.say(b"torn\n")
    half = len(record) // 2
    for piece in (record[:half], record[half:-1]):
        assert (room.take(piece), room.conn.ended) == (b"", False)
    assert room.take(record[-1:]) == b"torn\n"


@VERSIONS
@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x17\x03\x03\0\x30" + b"x" * 48])
def test_garbage_ends_it_after_the_text_before_it(version: str, garbage: bytes) -> None:
    client = Client(version)
    room = introduced(client)
    later = client.say(b"last words\n") + garbage, client.say(b"too late\n")
    assert room.take(later[0]) == b"last words\n"
    assert (room.conn.ended, room.conn.reachable) == (True, False)
    assert room.conn.why.startswith("lost: ")
    client.feed(room.sent())
    with pytest.raises(ssl.SSLError, match="(?i)alert"):
        client.hear()
    room.conn.tell_now(b"never in the clear\n")
    assert room.take(later[1]) == b""
    assert room.peer.rest() == b""


def test_garbage_is_known_for_it_at_once() -> None:
    """Nothing is waited for that would make a record of it."""
    for garbage in (b"\x16\x03\x01\xff\xff", b"\x00\x03\x03\x00\x10", b"GET / HTTP/1.1"):
        room = introduced(Client())
        assert room.take(garbage) == b""
        assert room.conn.ended


@pytest.mark.parametrize("full", [False, True])
def test_nothing_is_sent_in_the_clear_after_the_end(
    monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    client = Client()
    room = introduced(client)
    with slow_kernel(monkeypatch) as kernel:
        kernel[0] = 0 if full else 1000
        room.conn.end_stream()
        assert room.conn.reachable == full
        for _ in range(3):
            room.conn.tell_now(b"never in the clear\n")
            room.conn.flush()
        kernel[0] = 1000
        with suppress(Gone):
            room.conn.flush()
    client.feed(room.sent())
    assert client.hear() == b""
    assert not client.incoming.pending


def test_text_that_cannot_be_encrypted_is_not_taken_for_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in the middle of a new handshake, where the library can't refuse that."""

    def wait(engine: ssl.SSLObject, data: bytes) -> int:
        raise ssl.SSLWantReadError

    room = introduced(Client())
    monkeypatch.setattr(ssl.SSLObject, "write", wait)
    with pytest.raises(Gone, match="lost: "):
        room.conn.send(b"hi\n")


class Chatter:
    """A client and the room's end of it, each with something to say, in pieces of any size."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.client = Client(chance.choice(["TLSv1_2", "TLSv1_3"]))
        self.room = introduced(self.client, chance.choice([1, 100, 1 << 20]))
        self.name = b"%d " % chance.randrange(1 << 30)
        self.said = self.heard = self.told = b""
        self.on_its_way = b""
        self.breaks = chance.random() < 0.2

    def step(self) -> None:
        text = self.name * self.chance.randrange(1, 2000)
        action = self.chance.randrange(3)
        if action == 0:
            self.said += text
            self.on_its_way += self.client.say(text)
        elif action == 1:
            size = self.chance.randrange(1, 20_000)
            piece, self.on_its_way = self.on_its_way[:size], self.on_its_way[size:]
            self.heard += self.room.take(piece)
        elif self.room.conn.reachable:
            self.told += text
            self.client.feed(self.room.say(text))

    def finish(self) -> None:
        self.heard += self.room.take(self.on_its_way + b"garbage" * self.breaks)
        assert self.heard == self.said
        assert self.client.hear() == self.told
        assert self.room.conn.ended == self.breaks


@pytest.mark.parametrize("seed", range(5))
def test_connections_share_no_bytes(seed: int) -> None:
    """They do share where OpenSSL reads and writes."""
    chance = random.Random(seed)
    chatters = [Chatter(chance) for _ in range(8)]
    for _ in range(300):
        chance.choice(chatters).step()
        if chance.random() < 0.02:
            stranger = End()
            with pytest.raises(Gone):
                stranger.take(b"\x16\x03\x01\x00\x05garbage and more")
    for chatter in chatters:
        chatter.finish()


@VERSIONS
def test_nobody_gets_a_ticket(version: str) -> None:
    """With it a client could resume its session; and whoever has the key, read that."""
    client = Client(version)
    room = introduced(client)
    client.feed(room.say(b"hi\n"))
    assert client.hear() == b"hi\n"
    session = client.ssl.session
    assert not (session and session.has_ticket)


# The room, from inside


def last_step(client: Client, server: CheckedServer, peer: Peer) -> bytes:
    """Shakes hands with a room that doesn't run; returns the client's last step, not yet sent."""
    data = client.shake_hands()
    while not client.ready:
        if data:
            peer.send(data)
            server.turn()
        client.feed(peer.sock.recv(1 << 16))
        data = client.shake_hands()
    return data


@pytest.mark.parametrize("password", [b"", b"secret"])
def test_what_comes_in_one_piece_with_the_handshake_is_heard(password: bytes) -> None:
    """Nothing more comes after it, so that no socket is ready any more."""
    server = tls_room(password=password)
    sock, peer = pair()
    server.admit(sock, "peer")
    (conn,) = server.membership.newcomers
    client = Client()
    data = last_step(client, server, peer)
    peer.send(data + client.say(*([b"secret\n"] if password else []), b"hi\n"))
    server.turn()
    while conn.silent:
        assert server.timeout() == 0
        server.turn()
    heard = b""
    while not heard.endswith(WELCOME):
        client.feed(peer.sock.recv(1 << 16))
        heard += client.hear()


def test_what_came_with_the_handshake_of_whoever_is_kept_out_does_not_keep_the_loop_awake() -> None:
    """Nobody hears it any more, and the rest of the stream is only drained."""
    server = tls_room()
    sock, peer = pair()
    server.door.bar("192.0.2.1")
    server.admit(sock, "192.0.2.1:7")
    client = Client()
    peer.send(last_step(client, server, peer) + client.say(b"hi\n"))
    for _ in range(2):
        server.turn()
    assert len(server.membership.leaving) == 1
    assert server.timeout() != 0


@pytest.mark.parametrize("start", ["tls"], indirect=True)
def test_whoever_breaks_tls_is_told_why(room: Server) -> None:
    """By an alert, which is what a client needs to say more than that it was cut off."""
    newcomer = Peer(socket.create_connection(("127.0.0.1", room.port), DEADLINE))
    newcomer.send(b"\x16\x03\x01\x00\x05hello")
    assert newcomer.rest()[:2] == ALERT
    member = room.join()
    socket.socket.sendall(member.sock, b"\x17\x03\x03\x00\x30" + b"x" * 48)
    with pytest.raises(ssl.SSLError, match="(?i)alert"):
        member.rest()
    room.wait_for_log("lost: .*members: 0")


ORDER = 27  # bytes of a record that orders to change keys


def key_changer() -> tuple[CheckedServer, TLSConnection, KeyChanger, Peer]:
    """Returns a room and its one member, a peer that can change keys."""
    server = tls_room()
    sock, peer = pair()
    server.admit(sock, "peer")
    changer = KeyChanger()
    while not server.room.members:
        data = changer.shake_hands()
        if data:
            peer.send(data)
        if data or changer.is_ready():
            server.turn()
        if not changer.is_ready():
            changer.feed(peer.sock.recv(1 << 16))
    (conn,) = server.room.members
    assert isinstance(conn, TLSConnection)
    server.deliver(server.room.take_batch())
    return server, conn, changer, peer


def test_whoever_makes_tls_answer_and_does_not_read_is_let_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    server, conn, changer, peer = key_changer()
    conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.sock.setblocking(False)
    orders = memoryview(b"")
    for _ in range(2000):
        if conn not in server.room.members:
            break
        orders = orders or memoryview(changer.change_keys(500, answered=True))
        try:
            orders = orders[peer.sock.send(orders) :]
        except BlockingIOError:
            pass
        except ConnectionError:
            continue
        server.turn()
        assert len(conn.unsent) <= MAX_UNSENT
    assert "makes TLS answer, and does not read the answers" in caplog.text


def fill(server: CheckedServer, conn: Connection, size: int) -> bytes:
    """The room says so much that the kernel takes no more, and `size` bytes wait; returns it."""
    said = b""
    while conn.size < size:
        chunk = b"%d %s\n" % (len(said), b"x" * 20_000)
        said += chunk
        server.room.batch.say(chunk, None)
        server.deliver(server.room.take_batch())
    return said


def test_stuck_member_has_at_most_a_record_beside_its_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, conn, peer = tls_member()
    assert not conn.unsent
    said = fill(server, conn, HIGH_WATER // 2)
    assert 0 < len(conn.unsent) <= TLS_PIECE + 100 < MAX_UNSENT <= 2 * TLS_PIECE
    assert conn.queue
    waiting = conn.unsent
    for _ in range(3):
        said += fill(server, conn, conn.size + 1)
        assert conn.unsent == waiting, "nothing more is encrypted"
    peer.send(b"hi\n")
    select.select([conn.sock], [], [], DEADLINE)
    with slow_kernel(monkeypatch) as kernel:
        kernel[0] = 1000
        assert conn.receive_text(100) == b"hi\n"
        assert kernel[0] == 1000, "and nothing is sent, as there is nothing new"
    received = bytearray()

    def read_some() -> bool:
        received.extend(peer.available())
        server.flush(conn)
        check_invariants(server)
        return not conn.wants_write()

    eventually(read_some)
    assert received + peer.read(len(said) - len(received)) == said
    assert (conn.size, conn.queue, conn.events) == (0, None, EVENT_READ)


@contextmanager
def slow_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A kernel that takes as many bytes as are put into the list, and then none."""
    room = [0]
    send = Connection.send

    def send_some(conn: Connection, data: bytes) -> int:
        taken = send(conn, data[: room[0]]) if room[0] else 0
        room[0] -= taken
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "send", send_some)
        yield room


@pytest.mark.parametrize("closes_first", [False, True])
@pytest.mark.parametrize("step", [7, 700])
def test_farewell_is_whole_although_the_kernel_is_full(
    monkeypatch: pytest.MonkeyPatch, step: int, closes_first: bool
) -> None:
    """All that was said comes, then close_notify, which raises no SSLEOFError."""
    server, conn, peer = tls_member()
    peer.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    with slow_kernel(monkeypatch) as room:
        server.room.batch.say(b"first\n", None)
        server.deliver(server.room.take_batch())
        assert conn.unsent and not conn.queue
        server.room.batch.say(b"second\n", None)
        server.deliver(server.room.take_batch())
        assert conn.queue
        if closes_first:
            end_stream(peer.sock)
            while conn in server.room.members:
                server.turn()
        else:
            server.close_room()
        turns = 0
        while conn.wants_write() and conn.sock.fileno() != -1:
            room[0] = step
            server.turn()
            turns += 1
    assert turns > (10 if step == 7 else 0)
    said = b"first\nsecond\n" + (b"" if closes_first else b"* the room is closing\n")
    assert peer.rest() == said
    peer.close()
    while conn in server.membership.leaving:
        server.turn()


def test_last_turn_waits_for_close_notify_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    server, conn, peer = tls_member()
    peer.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    with slow_kernel(monkeypatch):
        end_stream(peer.sock)
        while conn in server.room.members:
            server.turn()
        assert conn in server.membership.leaving
        assert conn.unsent and conn.reachable
    while conn in server.membership.leaving:
        server.turn()
    assert peer.rest() == b""


@pytest.mark.parametrize("start", ["tls"], indirect=True)
def test_plain_text_is_answered_in_plain_text_and_not_reset(room: Server) -> None:
    """However much of it there is, and whatever it is."""
    for text in (b"hi\n", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfd\x03\xff\xfb\x18", b"x\n" * 5000):
        peer = Peer(socket.create_connection(("127.0.0.1", room.port), DEADLINE))
        peer.send(text)
        assert peer.rest() == b"* this room speaks TLS; use --tls\n"
        peer.close()
    assert room.log().count("does not speak TLS") == 4


@pytest.mark.parametrize("python", [sys.executable, "pypy3"])
def test_a_handshake_that_fails_ends_nobody_else(start: Callable[..., Server], python: str) -> None:
    """OpenSSL has one place for errors, and PyPy leaves them there."""
    room = start("chat_server.py", tls=True, python=needs(python))
    ann, bob = room.join("Ann"), room.join("Bob")
    ann.expect("* Bob joined\n")
    broken = Peer(socket.create_connection(("127.0.0.1", room.port), DEADLINE))
    broken.send(b"\x16\x03\x01\x00\x05hello")
    assert broken.rest()[:2] == ALERT
    ann.send("hi\n")
    bob.expect("Ann: hi\n")
    bob.send("hi\n")
    ann.expect("Bob: hi\n")


def test_end_that_came_with_a_request_is_seen_although_the_kernel_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sock, peer = pair()
    server = tls_room(site=Site([], True, port=sock.getsockname()[1]))
    server.admit(sock, "peer")
    client = Client()
    peer.send(last_step(client, server, peer))
    server.turn()
    peer.send(client.say(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") + client.end())
    with slow_kernel(monkeypatch):
        while not server.membership.leaving:
            server.turn()
        (conn,) = server.membership.leaving
        peer.half_close()
        server.turn()
        assert not conn.reading
