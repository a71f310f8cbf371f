"""Other ways to speak: telnet and what comes to the wrong port, WebSocket, TLS and its
certificate."""

from __future__ import annotations

import math
import os
import random
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import support
from browser import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, masked
from pytest import LogCaptureFixture, MonkeyPatch
from support import CERTS, DEADLINE, Kernel, Peer, Run, Server, Start, finish, needs, trusting

import chat_client
import chat_server
from chat_server import MAX_LINE, MAX_UNSENT, SKIPPED, Certificate, Gone, State, Telnet, WebSocket

# Telnet


@pytest.mark.parametrize("mode", ["line", "character"])
def test_telnet_hears_and_is_heard_after_any_key(room: Server, terminal: Run, mode: str) -> None:
    john = room.join("John")

    def is_heard(window: support.Terminal, keys: str, said: str) -> bool:
        """Telnet drops what is typed while it changes the terminal's mode, and suspends itself at
        Ctrl-Z, sooner or later."""
        window.process.send_signal(signal.SIGCONT)
        window.type(keys)
        select.select([john.sock], [], [], 1)
        return said.encode() in john.available()

    for number, keys in enumerate(["\x03", "\x1c", "\x1a", "Ü\n", "ă\n", "本\n", "\x03\x03\x1c"]):
        window = terminal(needs("telnet"), "127.0.0.1", str(room.port))
        window.expect("Welcome to the chatroom!\n")
        window.type(f"/name Tel{number}\n")
        window.expect(f"* you are Tel{number}\n")
        if mode == "character":
            window.type("\x1d")
            window.expect("telnet> ")
            window.type("mode character\n")
        support.eventually(partial(is_heard, window, "\nready\n", f"Tel{number}: ready\n"))
        window.type(keys)
        support.eventually(partial(is_heard, window, "\nhelloo\x7f\n", f"Tel{number}: hello\n"))
        john.send("can you see me?\n")
        window.expect("John: can you see me?\n")


@pytest.mark.parametrize(
    "command",
    ["busybox telnet HOST PORT", "plink -telnet -P PORT HOST", "plink -raw -P PORT HOST"],
)
def test_other_programs_hear_and_are_heard(room: Server, terminal: Run, command: str) -> None:
    john = room.join("John")
    place = {"HOST": "127.0.0.1", "PORT": str(room.port)}
    program, *options = (place.get(word, word) for word in command.split())
    window = terminal(needs(program), *options)
    window.expect("Welcome to the chatroom!\n")
    window.type("/name Tel\n")
    john.expect("* Tel joined\n")
    window.type("Ü 本 helloo\x7f\n")
    john.read_until("Tel: Ü 本 hello\n")
    john.send("can you see me?\n")
    window.expect("John: can you see me?\n")


# What comes to the wrong port


def test_nobody_hears_what_is_meant_for_another_server(room: Server) -> None:
    """Any web page can have a browser send that."""
    form = b" HTTP/1.1\r\nHost: localhost\r\nCookie: SECRET\r\n\r\n/name Boss\nrun this\n"
    ann, bob = room.join(), room.join()
    for path in (b"POST /", b"GET /" + b"x" * 9000):
        stranger = room.connect()
        with suppress(OSError):  # it is sent as far as it is taken
            stranger.send(path + form)
            heard = stranger.rest()
            assert heard.endswith(b"* this room takes lines of text; it has no page\n")
    room.wait_for_log("(?s)(speaks HTTP, SSH, IRC or the like.*){2}")
    bob.send("after\n/who\n")
    ann.expect("after\n")
    bob.expect("* here: 2 unnamed\n")
    assert not any(word in room.log() for word in ("Boss", "SECRET"))


# WebSocket, without I/O

LETTERS = "aé本😀z"  # of 1, 2, 3, 4 bytes


class Heard:
    """What a WebSocket makes of a stream that comes in pieces."""

    def __init__(self, max_line: int = 1000) -> None:
        self.socket = WebSocket(max_line)
        self.lines = b""
        self.answers: list[bytes] = []

    def take(self, data: bytes) -> None:
        kept = self.socket
        text, answer = kept.sift(data)
        self.lines += kept.feed(text)
        self.answers += [answer] if answer else []
        assert len(kept.held) <= 6 + 125 and len(kept.tail) <= 3
        assert len(kept.partial) <= kept.max_line

    def end(self) -> tuple[bool, int]:
        return self.socket.ended, self.socket.code


def ways(data: bytes) -> Iterator[list[bytes]]:
    """Yields some ways in which data can come in pieces: whole, byte by byte, cut at any place."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, min(len(data), 200)):
        yield [data[:at], data[at:]]


def hear(pieces: list[bytes], max_line: int = 1000) -> Heard:
    heard = Heard(max_line)
    for piece in pieces:
        heard.take(piece)
    return heard


def said(*texts: str) -> bytes:
    return b"".join(masked(TEXT, text.encode()) for text in texts)


def test_what_is_too_long_is_skipped_and_holds_no_memory() -> None:
    heard = Heard(max_line=10)
    heard.take(said("fine") + b"\x01\xff" + (1 << 62).to_bytes(8, "big") + b"\0\0\0\0")
    for _ in range(100):
        heard.take(b"x" * 1000)
    assert (heard.lines, heard.socket.ended) == (b"fine\n" + SKIPPED + b"\n", False)
    heard = Heard(max_line=10)
    heard.take(masked(TEXT, b"x" * 9, False))
    for _ in range(100):
        heard.take(masked(CONTINUATION, b"y", False))
    heard.take(masked(CONTINUATION, b"") + said("0123456789", "0123456789x", "fine"))
    assert heard.lines.split(b"\n") == [SKIPPED, b"0123456789", SKIPPED, b"fine", b""]


def test_the_end_of_a_line_does_not_make_it_too_long() -> None:
    line = "0123456789"
    stream = said(f"{line}\r", f"{line}\r\n", f"{line}\r\n{line}\r")
    stream += masked(TEXT, line.encode() + b"\r", False) + masked(CONTINUATION, b"")
    for pieces in ways(stream):
        assert hear(pieces, max_line=len(line)).lines == f"{line}\n".encode() * 5
    assert hear([said("a\rb\r\rc\r\r")]).lines == b"a\rb\r\rc\r\n"


@pytest.mark.parametrize(
    "code", [0, *range(1000, 1004), *range(1007, 1015), 3000, 4999], ids=lambda code: code or "none"
)
def test_close_is_answered_with_its_own_code(code: int) -> None:
    """One without a code is a normal one."""
    close = masked(CLOSE, code.to_bytes(2, "big") + "gréat".encode() if code else b"")
    for heard in map(hear, ways(said("a") + close + said("not heard") + UNMASKED)):
        assert (heard.lines, heard.socket.why) == (b"a\n", "")
        assert heard.end() == (True, code or 1000)
        assert heard.socket.farewell(1001) == b"\x88\x02" + (code or 1000).to_bytes(2, "big")


@pytest.mark.parametrize(
    "size, header",
    [
        *((0, b"\x81\0"), (125, b"\x81\x7d"), (126, b"\x81\x7e\0\x7e")),
        *((65535, b"\x81\x7e\xff\xff"), (65536, b"\x81\x7f\0\0\0\0\0\1\0\0")),
    ],
)
def test_payload_of_any_size(size: int, header: bytes) -> None:
    text = b"0123456789" * (size // 10) + b"x" * (size % 10)
    assert WebSocket.encode(text) == header + text
    assert hear([masked(TEXT, text)], max_line=70000).lines == text + b"\n"


UNMASKED = b"\x81\x03abc"
ZEROS = b"\0\0\0\0"  # a mask that changes nothing
EMPTY = b"\x80" + ZEROS  # what follows on the first byte of a frame with nothing in it
EXTENSION, NOT_UTF_8 = "uses an extension", "sends text that is not UTF-8"
NO_CODES = (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
FAULTS = {
    "no mask": (UNMASKED, 1002, "sends a frame without a mask"),
    "no mask, ping": (b"\x89\x00", 1002, "sends a frame without a mask"),
    **{f"RSV {bit:#x}": (bytes([0x81 | bit]) + EMPTY, 1002, EXTENSION) for bit in (64, 32, 16)},
    **{f"opcode {n}": (masked(n, b""), 1002, EXTENSION) for n in (*range(3, 8), *range(11, 16))},
    "2 ** 63 bytes": (b"\x81\xff" + (1 << 63).to_bytes(8, "big") + ZEROS, 1002, "longer than any"),
    "ping of 126": (masked(PING, b"x" * 126), 1002, "too long"),
    "close of 65536": (b"\x88\xff" + (1 << 16).to_bytes(8, "big"), 1002, "too long"),
    **{f"part {n}": (masked(n, b"", False), 1002, "in fragments") for n in (CLOSE, PING, PONG)},
    "continuation": (masked(CONTINUATION, b"x"), 1002, "goes on with none"),
    "first continuation": (masked(CONTINUATION, b"x", False), 1002, "goes on with none"),
    "text in another": (masked(TEXT, b"x", False) + masked(TEXT, b"y"), 1002, "in another"),
    "binary": (masked(BINARY, b"x"), 1003, "sends binary frames"),
    "binary fragment": (masked(BINARY, b"", False), 1003, "sends binary frames"),
    "close of 1 byte": (masked(CLOSE, b"\x03"), 1002, "a close code that does not exist"),
    **{f"close {n}": (masked(CLOSE, n.to_bytes(2, "big")), 1002, "a close code") for n in NO_CODES},
    "reason": (masked(CLOSE, b"\x03\xe8\xff"), 1007, "gives a reason that is not UTF-8"),
    "half a reason": (masked(CLOSE, b"\x03\xe8\xc3"), 1007, "gives a reason that is not UTF-8"),
    "bad text": (masked(TEXT, b"\xff") + UNMASKED, 1007, NOT_UTF_8),
    "bad text, close": (masked(TEXT, b"\xff") + masked(CLOSE, b"\x03\xe8"), 1007, NOT_UTF_8),
    "half a character": (masked(TEXT, b"x\xe6\x9c") + masked(TEXT, b"\xac"), 1007, NOT_UTF_8),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_code_and_drops_only_what_is_not_whole(fault: str) -> None:
    stream, code, why = FAULTS[fault]
    stream = said("one", "two") + stream + said("not heard") + masked(PING, b"")
    for heard in map(hear, ways(stream)):
        assert heard.lines == b"one\ntwo\n"
        assert heard.end() == (True, code)
        assert why in heard.socket.why  # for which an unfinished line is none


@pytest.mark.parametrize(
    "bad",
    [
        *(b"\x80", b"\xbf", b"\xc0", b"\xc1", b"\xf5", b"\xff", b"\xc3(", b"\xe6\x9c(", b"\xe6("),
        b"\xed\xa0\x80",  # a surrogate, for which Python waits to see all of it
        *(b"\xe0\x80", b"\xe0\x9f", b"\xf0\x80", b"\xf0\x8f", b"\xf4\x90"),
        *(b"\xf0\x9f(", b"\xf0\x9f\x98("),
    ],
)
def test_text_is_refused_at_the_first_byte_that_cannot_be_right(bad: bytes) -> None:
    text = LETTERS.encode() + bad
    heard = hear([b"\x01\xff" + (1 << 40).to_bytes(8, "big") + ZEROS + text[:-1]])
    assert not heard.socket.ended
    heard.take(text[-1:])
    assert heard.end() == (True, 1007)


@pytest.mark.parametrize("seed", range(40))
def test_any_messages_in_any_fragments_and_pieces_give_their_lines(seed: int) -> None:
    chance = random.Random(seed)
    stream, lines, pings = b"", b"", []
    for _ in range(chance.randrange(1, 10)):
        letters = chance.choices("ab \té本😀\x00\x1b\n", k=chance.choice([0, 1, 5, 130]))
        text = "".join(letters).encode()
        cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.choice([0, 0, 1, 3])))
        for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(text)])):
            if chance.random() < 0.3:
                pings.append(b"%d" % chance.getrandbits(99))
                stream += masked(PING, pings[-1]) + masked(PONG, b"unasked")
            key = chance.getrandbits(32).to_bytes(4, "big")
            opcode = CONTINUATION if number else TEXT
            stream += masked(opcode, text[start:end], number == len(cuts), key)
        lines += text if text[start:].endswith(b"\n") else text + b"\n"  # several, perhaps
    unfinished = masked(TEXT, b"x", False) + UNMASKED
    ends = [(stream, code) for stream, code, _ in FAULTS.values()]
    end, code = chance.choice([(masked(CLOSE, b""), 1000), (unfinished, 1002), *ends])
    whole = stream + end + said("not heard")
    cuts = sorted(chance.choices(range(len(whole)), k=chance.choice([1, len(whole) // 3])))
    heard = hear([whole[at:to] for at, to in zip([0, *cuts], [*cuts, len(whole)])])
    assert (heard.lines, heard.end()) == (lines, (True, code))
    answered = iter(pings)
    assert all(answer[2:] in answered for answer in heard.answers), "not in their order"
    everything = hear([stream[at : at + 1] for at in range(len(stream))])
    assert everything.lines == lines
    assert everything.answers == [b"\x8a" + bytes([len(ping)]) + ping for ping in pings]


# TLS in a room that doesn't run

versions = pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])


class Visitor:
    """Somebody who speaks TLS to a room that doesn't run, and whose bytes can be seen."""

    def __init__(self, version: str = "TLSv1_3", **options: Any) -> None:
        self.server = support.tls_room(**options)
        support.StoppedClock(self.server.clock)
        self.said: list[bytes] = []  # of which the room has heard
        self.server.recorders.append(self.said.append)
        self.peer = self.server.meet("192.0.2.1:7")
        self.peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        (self.conn,) = self.server.membership.newcomers
        assert isinstance(self.conn, chat_server.TLSConnection)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = trusting(CERTS / "room.pem")
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # for old versions
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        self.ssl = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def send(self, data: bytes, step: int = 1 << 20) -> None:
        """Sends bytes in pieces, each of which the room takes before the next."""
        for at in range(0, len(data), step):
            self.peer.send(data[at : at + step])
            timeout = DEADLINE
            while self.conn.reading and select.select([self.conn.sock], [], [], timeout)[0]:
                self.server.turn()
                timeout = 0

    def shake_hands(self, step: int = 1 << 20) -> bytes:
        """Returns the last step, which is not yet sent."""
        while True:
            with suppress(ssl.SSLWantReadError):
                self.ssl.do_handshake()
                return self.outgoing.read()
            self.send(self.outgoing.read(), step)
            self.incoming.write(self.peer.available())

    def join(self, step: int = 1 << 20) -> Visitor:
        self.send(self.shake_hands(step), step)
        assert self.hear() == support.WELCOME
        return self

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
        """Returns all the text that has come. Raises ssl.SSLError."""
        if not self.incoming.pending:
            select.select([self.peer.sock], [], [], DEADLINE)
        self.incoming.write(self.peer.available())
        pieces = [b""]
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while len(pieces) == 1 or pieces[-1]:  # an empty one is the end
                pieces.append(self.ssl.read(1 << 20))
        return b"".join(pieces)


@versions
def test_text_comes_through_one_byte_at_a_time(version: str) -> None:
    one = Visitor(version).join(step=1)
    one.send(one.say(b"hello\n", b"x" * 500, b"\n/ping\n"), step=1)
    assert b"".join(one.said) == b"hello\n" + b"x" * 500 + b"\n"
    assert one.hear() == b"* pong\n"


@versions
def test_all_that_came_is_decrypted_at_once(version: str) -> None:
    one = Visitor(version).join()
    one.peer.send(one.say(*[b"line\n"] * 200))
    one.server.turn()
    assert one.said == [b"line\n" * 200]
    record = one.say(b"%s\n" % (b"z" * 5000) * 3)
    one.send(record[:-1])
    assert len(one.said) == 1
    one.send(record[-1:])
    assert one.said[1].count(b"z") == 15_000


@versions
def test_the_end_comes_after_the_text_before_it(version: str) -> None:
    """TLS's own end: what comes after it isn't looked at, but the stream goes on to its end."""
    one = Visitor(version).join()
    one.send(one.say(b"bye") + one.end() + b"more")
    assert one.said == [b"bye\n"]
    assert one.conn.state is State.LEAVING and one.conn.reading
    one.incoming.write(one.peer.sock.recv(1000))
    one.ssl.unwrap()  # it has seen our end
    one.peer.close()
    while one.server.membership.leaving:
        one.server.turn()


@pytest.mark.parametrize(
    "version, garbage",
    [
        *((version, b"\x17\x03\x03\0\x30" + b"x" * 48) for version in ("TLSv1_2", "TLSv1_3")),
        ("TLSv1_2", b"GET / HTTP/1.1"),  # found out before there is as much as a record
        ("TLSv1_3", b"\x16\x03\x01\xff\xff"),
        ("TLSv1_3", b"\x00\x03\x03\x00\x10"),
    ],
)
def test_garbage_ends_it_after_the_text_before_it(version: str, garbage: bytes) -> None:
    one = Visitor(version).join()
    later = one.say(b"last words\n/ping\ntorn") + garbage, one.say(b"too late\n")
    for data in later:
        one.send(data)
    assert one.said == [b"last words\n"]
    assert one.conn.state is State.LEAVING, "a close now would be a reset"
    assert one.conn.why.startswith("lost: ")
    with pytest.raises(ssl.SSLError, match="(?i)alert"):
        one.hear()
    one.conn.tell_now(b"never in the clear\n")
    one.peer.expect_nothing()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_versions_are_refused(version: str) -> None:
    one = Visitor(version)
    with pytest.raises(ssl.SSLError, match="(?i)alert"):
        one.shake_hands()
    assert one.conn.state is State.CLOSED


@pytest.mark.parametrize("option", [1 << 30, None])
def test_neither_side_renegotiates(monkeypatch: MonkeyPatch, option: int | None) -> None:
    """Sending would then have to wait for receiving. LibreSSL and PyPy lack the name."""
    if option:
        monkeypatch.setattr(ssl, "OP_NO_RENEGOTIATION", option, raising=False)
    else:
        monkeypatch.delattr(ssl, "OP_NO_RENEGOTIATION", raising=False)
    server = chat_server.make_server_tls(str(CERTS / "room.pem"), str(CERTS / "room.key"))
    for context in (server, chat_client.make_client_tls(None)):
        assert not option or context.options & option


@versions
def test_nobody_gets_a_ticket(version: str) -> None:
    """With it a client could resume its session; and whoever has the key, read that."""
    session = Visitor(version).join().ssl.session
    assert not (session and session.has_ticket)


@pytest.mark.parametrize("password", [b"", b"secret"])
def test_what_comes_in_one_piece_with_the_handshake_is_heard(password: bytes) -> None:
    """Nothing more comes after it, so that no socket is ready any more."""
    one = Visitor(password=password)
    text = one.shake_hands() + one.say(*[password + b"\n"] * bool(password), b"hi\n")
    one.peer.send(text + one.end())
    one.server.turn()
    while one.conn.state is not State.LEAVING:
        assert one.server.timeout() == 0
        one.server.turn()
    assert one.said == [b"hi\n"]
    heard = one.hear()
    while not heard.endswith(support.WELCOME):
        heard += one.hear()


def test_what_came_with_the_handshake_of_whoever_is_kept_out_does_not_keep_the_loop_awake() -> None:
    """Nobody hears it any more, and the rest of the stream is only drained."""
    one = Visitor()
    one.server.door.barred[one.conn.host] = one.server.clock.now() + DEADLINE
    one.send(one.shake_hands() + one.say(b"hi\n"))
    assert one.conn.state is State.LEAVING
    one.server.turn()  # in which it is told why
    assert one.server.timeout() != 0


def test_end_that_came_with_a_request_is_seen_although_the_kernel_is_full(kernel: Kernel) -> None:
    site = chat_server.Site([], True)
    one = Visitor(site=site)
    site.port = one.conn.sock.getsockname()[1]
    one.send(one.shake_hands())
    kernel.room = 0
    one.send(one.say(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") + one.end())
    assert one.conn.state is State.LEAVING
    one.peer.half_close()
    one.server.turn()
    assert not one.conn.reading


@pytest.mark.parametrize("waiting, taken", [(b"", 1000), (b"", 0), (b"last words\n", 1000)])
def test_nothing_goes_out_in_the_clear(kernel: Kernel, waiting: bytes, taken: int) -> None:
    """Which comes after all that waits, and waits itself while the kernel takes nothing."""
    one = Visitor().join()
    kernel.room = 0
    one.conn.send(waiting)
    kernel.room = taken
    one.conn.end_stream()
    assert one.conn.reachable == bool(waiting or not taken)
    with suppress(Gone):
        for more in (0, 0, 1000):
            kernel.room += more
            one.conn.tell_now(b"never in the clear\n")
            one.conn.flush()
    assert one.hear() == waiting
    assert not one.incoming.pending


def test_text_that_cannot_be_encrypted_is_not_taken_for_sent(monkeypatch: MonkeyPatch) -> None:
    """As in the middle of a new handshake, where the library can't refuse that."""

    def wait(engine: ssl.SSLObject, data: bytes) -> int:
        raise ssl.SSLWantReadError

    one = Visitor().join()
    monkeypatch.setattr(ssl.SSLObject, "write", wait)
    with pytest.raises(Gone, match="lost: "):
        one.conn.send(b"hi\n")


def test_whoever_makes_tls_answer_has_to_read(kernel: Kernel, caplog: LogCaptureFixture) -> None:
    """As by orders to change keys, each of which OpenSSL answers."""
    caplog.set_level("INFO")
    one = Visitor().join()
    kernel.room = 0
    while one.conn in one.server.room.members:
        one.conn.outgoing.write(b"an answer" * 50)
        one.send(one.say(b"hi\n"))
        assert len(one.conn.unsent) <= MAX_UNSENT
    assert "makes TLS answer, and does not read the answers" in caplog.text


def test_stuck_member_has_at_most_a_record_beside_its_queue(kernel: Kernel) -> None:
    server, conn, peer = support.tls_member()
    said, waiting = b"", b""
    while conn.size < chat_server.HIGH_WATER // 2:
        chunk = b"%d %s\n" % (len(said), b"x" * 20_000)
        said += chunk
        server.room.batch.say(chunk, None)
        server.deliver(server.room.take_batch())
        assert not waiting or conn.unsent == waiting, "nothing more is encrypted"
        waiting = conn.unsent
    assert 0 < len(waiting) <= chat_server.TLS_PIECE + 100 < MAX_UNSENT
    support.reach(conn, peer, b"hi\n")
    kernel.room = 1000
    assert conn.receive_text(100) == b"hi\n"
    assert kernel.room == 1000, "and nothing is sent, as there is nothing new"
    kernel.room = math.inf
    received = bytearray()

    def read_some() -> bool:
        received.extend(peer.available())
        server.flush(conn)
        return not conn.wants_write()

    support.eventually(read_some)
    assert received + peer.read(len(said) - len(received)) == said
    assert (conn.size, conn.queue) == (0, None)


@pytest.mark.parametrize("step", [7, 700])
def test_farewell_is_whole_although_the_kernel_is_full(kernel: Kernel, step: int) -> None:
    """All that was said comes, then close_notify, which raises no SSLEOFError."""
    server, conn, peer = support.tls_member()
    peer.sock.suppress_ragged_eofs = False
    kernel.room = 0
    for said in (b"first\n", b"second\n"):
        assert not conn.queue
        server.room.batch.say(said, None)
        server.deliver(server.room.take_batch())
        assert conn.unsent
    assert conn.queue
    server.close_room()
    turns = 0
    while conn.wants_write() and conn.sock.fileno() != -1:
        kernel.room = step
        server.turn()
        turns += 1
    assert turns > (10 if step == 7 else 0)
    assert peer.rest() == b"first\nsecond\n* the room is closing\n"
    peer.close()
    while conn in server.membership.leaving:
        server.turn()


# TLS on real sockets


@pytest.mark.parametrize("python", [sys.executable, "pypy3"])
def test_whoever_breaks_tls_is_told_why_and_nobody_else_notices(start: Start, python: str) -> None:
    """By an alert, which is what a client needs to say more than that it was cut off. OpenSSL has
    one place for errors, and PyPy leaves them there."""
    room = start("chat_server.py", tls=True, python=needs(python))
    ann, bob = room.join("Ann"), room.join()
    newcomer = Peer(socket.create_connection(("127.0.0.1", room.port), DEADLINE))
    newcomer.send(b"\x16\x03\x01\x00\x05hello")
    assert newcomer.rest()[:2] == b"\x15\x03"  # as an alert begins that isn't encrypted
    breaker = room.join()  # whose handshake begins where that one's has failed
    ann.send("hi\n")
    bob.expect("Ann: hi\n")
    socket.socket.sendall(breaker.sock, b"\x17\x03\x03\x00\x30" + b"x" * 48)
    with pytest.raises(ssl.SSLError, match="(?i)alert"):
        breaker.rest()
    room.wait_for_log("lost: .*members: 2")
    bob.send("hi\n")
    ann.expect("hi\n")


def test_plain_text_is_answered_in_plain_text_and_not_reset(start: Start) -> None:
    """However much of it there is, and whatever it is."""
    room = start("chat_server.py", tls=True)
    for text in (b"hi\n", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfd\x03\xff\xfb\x18", b"x\n" * 5000):
        peer = Peer(socket.create_connection(("127.0.0.1", room.port), DEADLINE))
        peer.send(text)
        assert peer.rest() == b"* this room speaks TLS; use --tls\n"
    assert room.log().count("does not speak TLS") == 4


def test_no_group_but_a_curve_is_agreed_on(start: Start) -> None:
    """With ffdhe8192 a client can have a server compute for 100 ms, and needn't compute itself."""
    room = start("chat_server.py", tls=True)
    command = [needs("openssl"), "s_client", "-connect", f"127.0.0.1:{room.port}", "-groups"]
    for groups, agreed in (("ffdhe8192:ffdhe2048", False), ("ffdhe8192:P-256", True)):
        done = subprocess.run(
            [*command, groups], input=b"", capture_output=True, check=False, timeout=DEADLINE
        )
        assert (b"BEGIN CERTIFICATE" in done.stdout) == agreed


# TLS, and the client


@pytest.mark.parametrize(
    "silent, message",
    [
        (False, "it closed the connection in the TLS handshake"),
        (True, "no answer in TLS; does it speak TLS?"),
    ],
)
def test_tls_client_where_nobody_speaks(listener: Any, silent: bool, message: str) -> None:
    def hang_up(peer: Peer) -> None:
        peer.sock.recv(65536)  # all that comes, or to close would be a reset
        if silent:
            peer.rest()
        peer.close()

    patch = f"import chat_client; chat_client.CONNECT_TIME = {1 if silent else 20}"
    hasty = support.patched_client(patch)
    listener.serve(hang_up)
    done = finish([*hasty, *listener.address, "--name=J", "--tls"], "hi\n")
    where = f"cannot connect to port {listener.port} on 127.0.0.1"
    assert (done.stderr, done.returncode) == (f"chat_client.py: {where}: {message}\n", 1)


@pytest.mark.parametrize(
    "cert, trust, message",
    [
        ("room", "", "not let in: this room speaks TLS; use --tls\n"),
        ("", "--tls", "cannot connect to port {} on localhost: no TLS there; leave out --tls\n"),
        ("room", "--tls", "authority; if it is a private one, give it with --tls-ca"),
        ("room", "--tls-ca=other.pem", "from an unknown authority"),
        ("other", "--tls-ca=other.pem", "is not for localhost"),
        ("expired", "--tls-ca=expired.pem", "has expired"),
    ],
)
def test_client_says_why_tls_fails(start: Start, cert: str, trust: str, message: str) -> None:
    files = ["--tls-cert", f"{CERTS / cert}.pem", "--tls-key", f"{CERTS / cert}.key"]
    room = start("chat_server.py", *(files if cert else ()))
    more = [trust] if trust else []
    done = support.client("localhost", room.port, "--name=J", *more, typed="hi\n", cwd=CERTS)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message.format(room.port) in done.stderr
    room.wait_for_log("speak.* TLS|lost: |left the door")
    assert "J at " not in room.log()


# A certificate that is renewed on disk

STAYS = "the old certificate stays in use: "


def replace(source: str, file: Path) -> None:
    """Puts one of the tests' files in the place of another, as a whole."""
    new = file.with_name("new")
    shutil.copyfile(CERTS / source, new)
    os.replace(new, file)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The room's certificate and its key, to be replaced."""
    cert, key = tmp_path / "cert", tmp_path / "key"
    replace("room.pem", cert)
    replace("room.key", key)
    return cert, key


def test_newcomers_get_the_new_certificate(start: Start, files: tuple[Path, Path]) -> None:
    cert, key = files
    room = start("chat_server.py", "--tls-cert", str(cert), "--tls-key", str(key))
    room.tls = True
    ann = room.join("Ann")
    replace("other.pem", cert)
    bob = room.join("Bob")  # the key has yet to be replaced
    replace("other.key", key)
    room.context = trusting(CERTS / "other.pem")
    room.context.check_hostname = False
    carol = room.join()
    carol.send("hi\n")
    ann.expect("* Bob joined\n", "hi\n")
    bob.expect("hi\n")
    assert room.log().count(f"newcomers get the new certificate in {cert}") == 1


def test_reasons_for_the_old_are_told(files: tuple[Path, Path], caplog: LogCaptureFixture) -> None:
    """And a change can come so soon after the last that the time of the file doesn't show it."""
    cert, _ = files
    whole = cert.read_bytes()
    certificate = Certificate(*map(str, files))
    old = certificate.current()
    reasons = ["cannot read", "does not belong to", "there is no certificate in PEM format"]
    for content in (None, (CERTS / "other.pem").read_bytes(), b"x" * len(whole)):
        cert.write_bytes(content) if content else cert.unlink()
        for _ in range(3):
            assert certificate.current() is old
    for record, reason in zip(caplog.records, reasons):
        assert record.getMessage().startswith(STAYS) and reason in record.getMessage()
    assert len(caplog.records) == len(reasons)
    time_of_change = cert.stat().st_mtime_ns
    cert.write_bytes(whole)
    os.utime(cert, ns=(time_of_change, time_of_change))
    new = certificate.current()
    assert new is not old
    assert certificate.current() is new
    cert.write_bytes(b"x")
    assert certificate.current() is new
    assert len(caplog.records) == len(reasons) + 1, "the last of them again, after it had an end"


def test_files_that_change_while_they_are_loaded_are_loaded_again(
    files: tuple[Path, Path], monkeypatch: MonkeyPatch
) -> None:
    load = chat_server.make_server_tls

    def load_and_replace(cert: str, key: str) -> ssl.SSLContext:
        context = load(cert, key)
        replace("other.pem", files[0])
        replace("other.key", files[1])
        return context

    with monkeypatch.context() as patch:
        patch.setattr(chat_server, "make_server_tls", load_and_replace)
        certificate = Certificate(*map(str, files))
        contexts = [certificate.context, certificate.current()]
    contexts.append(certificate.current())
    assert len(set(map(id, contexts))) == 3


def test_a_pipe_in_place_of_a_certificate_is_not_waited_for(files: tuple[Path, Path]) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(support.MODULES)!r}); import chat_server\n"
        "certificate = chat_server.Certificate(*sys.argv[1:])\n"
        "os.unlink(sys.argv[1]); os.mkfifo(sys.argv[1])\n"
        "assert certificate.current() is certificate.current()"
    )
    assert finish([sys.executable, "-c", code, *map(str, files)]).returncode == 0


BOM = b"\xef\xbb\xbf"


def receive(pieces: list[bytes], max_line: int = MAX_LINE) -> tuple[bytes, bytes]:
    """Returns the lines that come of the pieces, the unfinished last one too, and the answers."""
    one = Telnet(max_line)
    lines = answers = b""
    for piece in pieces:
        text, more = one.sift(piece)
        answers += more
        lines += one.feed(text)
        assert len(one.held) <= 5
    return lines + one.finish(), answers


# Telnet, and a byte order mark


@pytest.mark.parametrize(
    "data, text, answers",
    [
        (b"hi\xff\xf4\xff\xfd\x06 there\n", b"hi there\n", b"\xff\xfc\x06"),  # Ctrl-C
        (b"\xff\xfb\x1fa\xff\xfd\x01b\n", b"ab\n", b"\xff\xfe\x1f\xff\xfc\x01"),
        (b"\xff\xfc\x01\xff\xfe\x03a\n", b"a\n", b""),  # a refusal is not answered
        (b"a\xff\xffb\xff\xff\xff\xffc\n", b"a\xffb\xff\xffc\n", b""),
        (b"a\xff\xfd\xffb\n", b"ab\n", b"\xff\xfc\xff"),  # option 255
        (b"a\xff\xfa\x1f\0\x0a\0\xff\xff\r\n\xff\xf0b\n", b"ab\n", b""),  # a window of 10 rows
        (b"a\xff\xfa\x18\xff\xff\xf0b\xff\xf0c\n", b"ac\n", b""),
        (b"a\xff\xfa\x18\xff\xfd\x06b\n", b"ab\n", b"\xff\xfc\x06"),  # one that was broken off
        (b"a\xff\xf0\xff\xf1\xff\xf2\xff\xf3\xff\xf5\xff\xf6\xff\xf9\xff\xecb\n", b"ab\n", b""),
        # erase character, erase line
        *((b"ab\xff\xf7c\n", b"ab\bc\n", b""), (b"ab\xff\xf8c\n", b"ab\x15c\n", b"")),
        (b"\xffes a\xff\n", b"\xffes a\xff\n", b""),  # Latin 1, not telnet
        (b"a\r\0b\r\nc\rd\r\r\n\r\0", b"a\nb\nc\rd\r\n\n", b""),
        (b"a\r\xff\xf1\0b\n", b"a\nb\n", b""),
        *((b"a" + end, b"a\n", b"") for end in (b"\xff", b"\xff\xfd", b"\r")),
        *((BOM + b"/name Bob\n", b"/name Bob\n", b""), (BOM + b"hi", b"hi\n", b"")),
        # only at the start of a stream; the last two begin with the same byte
        *((before + BOM + b"x\n", before + BOM + b"x\n", b"") for before in (b"hi\n", b" ")),
        *((text, text, b"") for text in (b"\xef\xbb\xbe\n", "\uff21\n".encode())),
    ],
)
def test_what_is_around_a_text_is_taken_out(data: bytes, text: bytes, answers: bytes) -> None:
    """However it is split."""
    for pieces in ways(data):
        assert receive(pieces) == (text, answers)


def test_a_subnegotiation_that_never_ends_is_not_kept() -> None:
    one = Telnet(100)
    assert one.sift(b"a\xff\xfa\x18") == (b"a", b"")
    for _ in range(50):
        assert one.sift(b"x\xff\xff\n" * 5000) == (b"", b"")
        assert one.held == b"\xff\xfa"
    assert one.sift(b"\xff") == (b"", b"")
    assert one.sift(b"\xf0b") == (b"b", b"")


def test_a_flood_of_requests_makes_no_flood_of_answers() -> None:
    options = b"".join(b"\xff\xfd%c\xff\xfb%c" % (option, option) for option in range(256))
    text, answers = Telnet(100).sift(options * 100)
    assert text == b""
    assert len(answers) == len(options)
    assert Telnet(100).sift(answers) == (b"", b""), "they don't go back and forth"


def test_clean_data_is_passed_on_untouched() -> None:
    data = b"hello\n" * 100
    assert Telnet(100).sift(data)[0] is data


def test_a_password_is_what_was_typed_and_not_taken_back() -> None:
    assert chat_server.typed(b"sec\xffret\x7f\x7f\x7fret\r\n") == b"sec\xffret"


# The first bytes


@pytest.mark.parametrize(
    "line",
    [
        *(b"GET / HTTP/1.1\r\n", b"M-SEARCH * HTTP/1.1\r\n", b"any /lower HTTP/2\n"),
        *(b"GET http://localhost:7007/ HTTP/1.1\r\n", b"CONNECT localhost:7007 HTTP/1.1\r\n"),
        b"GET /\r\n",  # HTTP/0.9
        *(b"GET /" + b"x" * 100_000, b"GET /" + b"x" * (MAX_LINE - 8) + b" HTTP/1.1\r\n"),
        *(b"SSH-2.0-OpenSSH_9.6\r\n", b"EHLO scanner.example.org\r\nMAIL FROM:<a@b.example>\r\n"),
        *(b"*1\r\n$4\r\nPING\r\n", b"PASS hunter2\r\nNICK bob\r\nUSER bob 0 * :Bob\r\n"),
        *(b"NICK bob\nUSER bob 0 * :Bob\n", b"OPTIONS / RTSP/1.0\r\nCSeq: 1\r\n"),
        *(b"OPTIONS sip:nm SIP/2.0\r\n", b"CAP LS\r\n"),
    ],
    ids=lambda line: line[:12].decode(),
)
@pytest.mark.parametrize("before", [b"", BOM, b"\xff\xfb\x1f"], ids=["", "mark", "telnet"])
def test_other_protocols_are_found_out_before_anything_is_heard(before: bytes, line: bytes) -> None:
    data = before + line + b"Host: x\r\n\r\n/name Boss\nrun this\n"
    head, rest = data[:300], data[300:]
    bits = [head[at : at + 1] for at in range(len(head))]
    bits += [rest[at : at + 999] for at in range(0, len(rest), 999)]
    is_one_line = b"\n" not in line[:-1]  # else they have to come together
    for pieces in ([data], [data[:20], data[20:]], bits) if is_one_line else ([data],):
        for max_line in (30, MAX_LINE):
            one = Telnet(max_line)
            with pytest.raises(chat_server.Dismissed) as dismissed:
                for piece in pieces:
                    text, _ = one.sift(piece)
                    assert one.feed(text) == b""
            assert "speaks HTTP, SSH, IRC or the like" in dismissed.value.note


@pytest.mark.parametrize(
    "text",
    [
        *(b"SSH-2 is what you need\n", b"SSH is down\nSSH-2.0 too\n", b"ssh-2.0-x\n", b"EHLO\n"),
        *(b"EHLO to all of you\n", b"ehlo bob\n", b"HELO Bob\n", b"*1\nsee below\n"),
        *(b"*waves*\n$4 each\n", b"*1 costs $4\n", b"PASS hunter2\n", b"NICK bob\nPASS it on\n"),
        *(b"PASS me the salt\nplease\n", b"NICK are you there?\nUSERS are waiting\n"),
        *(b"CAP LSD\n", b"USER bob\n", b"OPTIONS are: SIP/2.0 or nothing\n", b"PING\n", b"HELP\n"),
        *(b"QUIT\n", b"GET me some coffee\n", b"PUT / there\n", b"GET /etc/motd and read it\n"),
        *(b"LOL *hugs*\n", b"LOOK http://example.com/\n", b"I LOVE HTTP/2\n", b"SEE /s\n"),
        *(b"GET\n", b"hi\nGET / HTTP/1.1\n", b"\nGET / HTTP/1.1\n", b"GET"),
    ],
)
def test_what_only_looks_like_another_protocol_is_a_message(text: bytes) -> None:
    for pieces in ways(text):
        assert receive(pieces) == (text if text.endswith(b"\n") else text + b"\n", b"")


def test_tls_is_found_out_by_the_first_bytes_alone() -> None:
    hello = b"\x16\x03\x01\x01\xff\x01rest"  # with a length that has telnet's byte in it
    for pieces in ways(hello):
        with pytest.raises(Gone, match="speaks TLS"):
            receive(pieces)
    for before in (b"x", b"hi\n", b"hi\nx", b"\x16\n", b"x" * (MAX_LINE + 1)):
        for pieces in ways(before + hello + b"\n"):
            receive(pieces)
