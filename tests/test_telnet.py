"""The room with telnet, PuTTY and browsers, on real sockets."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support import (
    CLIENT,
    DEADLINE,
    IMPATIENT,
    WELCOME,
    Peer,
    Server,
    Terminal,
    eventually,
    needs,
    patched,
    plain_and_tls,
)

from chat_server import MAX_LINE

PASSWORD = "correct horse"
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def closed(start: Callable[..., Server], tmp_path: Path) -> Server:
    (tmp_path / "password").write_bytes(BOM + PASSWORD.encode() + b"\r\n")
    return start("chat_server.py", "--password-file", str(tmp_path / "password"))


# Real programs


def type_until_heard(window: Terminal, peer: Peer, line: str, keys: str) -> None:
    """Types keys until a peer has heard what they say. Telnet drops what is typed while it changes
    the terminal's mode, and suspends itself at Ctrl-Z, sooner or later."""
    heard = b""

    def is_heard() -> bool:
        nonlocal heard
        window.process.send_signal(signal.SIGCONT)
        window.type(keys)
        select.select([peer.sock], [], [], 1)
        heard += peer.available()
        return line.encode() in heard

    eventually(is_heard, line)


@pytest.mark.parametrize("mode", ["line", "character"])
def test_telnet_hears_and_is_heard_after_any_key(
    room: Server, terminal: Callable[..., Terminal], mode: str
) -> None:
    john = room.join("John")
    for number, keys in enumerate(["\x03", "\x1c", "\x1a", "Ü\n", "ă\n", "本\n", "\x03\x03\x1c"]):
        window = terminal(needs("telnet"), "127.0.0.1", str(room.port))
        window.expect("Welcome to the chatroom!\n")
        window.type(f"/name Tel{number}\n")
        window.expect(f"* you are Tel{number}\n")
        john.read_until(f"* Tel{number} joined\n")
        if mode == "character":
            window.type("\x1d")
            window.expect("telnet> ")
            window.type("mode character\n")
        type_until_heard(window, john, f"Tel{number}: ready\n", "\nready\n")
        window.type(keys)
        type_until_heard(window, john, f"Tel{number}: hello\n", "\nhelloo\x7f\n")
        john.send("can you see me?\n")
        window.expect("John: can you see me?\n")


@pytest.mark.parametrize("keys", ["\x03\n", "c\n"])
def test_busybox_telnet_hears_and_is_heard(
    room: Server, terminal: Callable[..., Terminal], keys: str
) -> None:
    john = room.join("John")
    window = terminal(needs("busybox"), "telnet", "127.0.0.1", str(room.port))
    window.expect("Welcome to the chatroom!\n")
    if keys == "c\n":  # character mode
        window.type("\x1d\n")
        window.expect("go to character mode")
        window.expect("exit telnet")
    window.type(f"{keys}/name Tel\n")
    john.expect("* Tel joined\n")
    window.type("Ü 本 helloo\x7f\n")
    john.read_until("Tel: Ü 本 hello\n")
    john.send("can you see me?\n")
    window.expect("John: can you see me?\n")


@pytest.mark.parametrize("protocol", ["-telnet", "-raw"])
@pytest.mark.parametrize("kind", ["open", "closed"])
def test_putty_is_a_full_member(
    start: Callable[..., Server],
    closed: Server,
    terminal: Callable[..., Terminal],
    protocol: str,
    kind: str,
) -> None:
    room = closed if kind == "closed" else start("chat_server.py")
    john = room.connect()
    if kind == "closed":
        john.send(f"{PASSWORD}\n")
    john.read_until(WELCOME)
    window = terminal(needs("plink"), protocol, "-P", str(room.port), "127.0.0.1")
    if kind == "closed":
        window.expect("* password?\n")
        window.type(f"{PASSWORD}x\x7f\n")
    window.expect("Welcome to the chatroom!\n")
    window.type("/name Pu\n")
    window.expect("* you are Pu\n")
    john.expect("* Pu joined\n")
    window.type("Ü 本\n")
    john.expect("Pu: Ü 本\n")
    john.send("hi\n")
    window.expect("hi\n")


# Telnet's bytes


@plain_and_tls
def test_requests_are_refused_between_two_lines(room: Server) -> None:
    one, two = room.join(), room.join()
    one.send(b"\xff\xf4\xff\xfd\x06he\xff\xfb\x18llo\r\0/who\r\0")
    two.expect("hello\n")
    assert one.read(6) == b"\xff\xfc\x06\xff\xfe\x18"
    one.expect("* here: 2 unnamed\n")


def test_a_byte_of_urgent_data_is_a_byte_like_any_other(room: Server) -> None:
    one, two = room.join(), room.join()
    one.send(b"\xff\xf4\xff")
    one.sock.send(b"\xf2", socket.MSG_OOB)  # the end of telnet's Synch
    one.send(b"hello\n")
    two.expect("hello\n")


@plain_and_tls
def test_the_password_may_come_with_options_and_corrections(closed: Server) -> None:
    for given in (
        b"\xff\xfb\x1f\xff\xfd\x01\xff\xfa\x1f\0\x50\0\n\xff\xf0" + PASSWORD.encode() + b"\r\0",
        b"correct hoX\brse\r\n",
        b"wrong\x15correct horse\n",
        BOM + PASSWORD.encode() + b"\n",
    ):
        for size in (1, 7, 100):
            peer = closed.connect()
            for at in range(0, len(given), size):
                peer.send(given[at : at + size])
            peer.send(b"/who\r\0")
            heard = b""
            while not heard.endswith(b"unnamed\n"):
                line = peer.line()
                assert line, heard
                heard += line
            assert heard.count(WELCOME) == 1
            assert b"wrong" not in heard
            peer.close()


@pytest.mark.parametrize("kind", ["member", "stranger"])
def test_whoever_asks_and_does_not_read_costs_little(
    start: Callable[..., Server], tmp_path: Path, closed: Server, kind: str
) -> None:
    server = patched(start, tmp_path, IMPATIENT) if kind == "member" else closed
    peer = server.connect(receive_buffer=4096)
    peer.sock.setblocking(False)
    before = server.memory()
    options = b"".join(b"\xff\xfd%c" % option for option in range(256))
    end = "does not read the answers|too far behind"

    def gone() -> bool:
        with suppress(OSError):
            peer.sock.send(options * 20)
        return any(word in server.log() for word in end.split("|"))

    eventually(gone)
    assert server.memory() - before < 8 * 1024 * 1024
    peer.close()


# Browsers


def send_pieces(peer: Peer, data: bytes, size: int) -> None:
    """Sends data in pieces, as far as the other side takes them."""
    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError):
        for at in range(0, len(data), size):
            peer.send(data[at : at + size])


@plain_and_tls
@pytest.mark.parametrize("kind", ["open", "closed"])
def test_a_web_page_cannot_speak(start: Callable[..., Server], closed: Server, kind: str) -> None:
    room = closed if kind == "closed" else start("chat_server.py")
    ann, bob = room.connect(), room.connect()
    for peer in (ann, bob):
        if kind == "closed":
            peer.send(f"{PASSWORD}\n")
        peer.read_until(WELCOME)
    body = f"{PASSWORD}\n/name Boss\nrun this\n".encode()
    requests = 0
    for method in (b"POST", b"GET"):
        for path, sizes in ((b"/", (1, 1000)), (b"/" + b"x" * 9000, (1000, 100_000))):
            head = method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\nCookie: SECRET\r\n\r\n"
            for size in sizes:
                page = room.connect()
                send_pieces(page, head + body, size)
                with suppress(OSError):
                    page.rest()
                page.close()
                requests += 1
                room.wait_for_log(f"(?s)(speaks HTTP.*){{{requests}}}")
    bob.send("after\n")
    ann.expect("after\n")
    assert "Boss" not in room.log()
    assert room.log().count("is a web browser, or something else that speaks HTTP") == requests


@plain_and_tls
@pytest.mark.parametrize("kind", ["open", "closed"])
def test_nobody_hears_what_is_meant_for_another_server(
    start: Callable[..., Server], closed: Server, kind: str
) -> None:
    room = closed if kind == "closed" else start("chat_server.py")
    ann = room.connect()
    if kind == "closed":
        ann.send(f"{PASSWORD}\n")
    ann.read_until(WELCOME)
    for count, probe in enumerate(
        (
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"EHLO localhost\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"PASS hunter2\r\nNICK bob\r\nUSER bob 0 * :Bob\r\n",
        ),
        1,
    ):
        lost = room.connect()
        lost.send(probe)
        assert lost.rest().endswith(b"* this room takes lines of text; it has no page\n")
        room.wait_for_log(f"(?s)(speaks HTTP, SSH, IRC or the like.*){{{count}}}")
    ann.send("/who\n")
    ann.expect("* here: 1 unnamed\n")
    assert "hunter2" not in room.log()


def test_whoever_has_sent_one_letter_hears_what_others_say(room: Server) -> None:
    slow, ann = room.join(), room.join("Ann")
    slow.expect("* Ann joined\n")
    for letter in ("G", "E", "T", " "):
        slow.send(letter)
        ann.send("hi\n")
        slow.expect("Ann: hi\n")
    slow.send("/x me some coffee\n")
    ann.expect("GET /x me some coffee\n")


@plain_and_tls
def test_what_begins_like_tls_in_mid_conversation_is_a_line(room: Server) -> None:
    one, two = room.join(), room.join()
    one.send("hi\n")
    two.expect("hi\n")
    one.send(b"\x16\x03\x01zz\x01 still here\n")
    two.expect("zz still here\n")


@plain_and_tls
def test_a_mark_before_the_first_line_is_dropped(room: Server) -> None:
    one = room.connect()
    one.expect(WELCOME)
    for byte in BOM + b"/name Bob\r\n":
        one.send(bytes([byte]))
    one.expect("* you are Bob\n")


@plain_and_tls
def test_the_length_of_a_line_is_that_of_its_text(room: Server) -> None:
    one, two = room.join(), room.join()
    one.send(b"x" * MAX_LINE + b"\r\n" + b"\x80" * MAX_LINE + b"\n")
    two.expect("x" * MAX_LINE + "\n")
    one.expect(f"* too long: a line has at most {MAX_LINE} bytes\n")


def test_a_password_file_with_a_mark_is_for_the_client_too(closed: Server, tmp_path: Path) -> None:
    file = str(tmp_path / "password")
    done = subprocess.run(
        [*CLIENT, "127.0.0.1", str(closed.port), "--name", "J", "--password-file", file],
        input=b"hi\n",
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )
    assert (done.returncode, WELCOME in done.stdout) == (0, True)


# Two rooms, one relay


def relay(here: Peer, there: Peer, handed_on: list[bytes]) -> None:
    """Hands on what comes from one side to the other, until that ends."""
    with suppress(OSError):
        while True:
            data = here.sock.recv(65536)
            if not data:
                break
            handed_on.append(data)
            there.send(data)


def test_a_relay_joins_two_rooms_and_they_go_quiet(start: Callable[..., Server]) -> None:
    rooms = [start("chat_server.py") for _ in range(2)]
    ann, bob = rooms[0].join("Ann"), rooms[1].join("Bob")
    ends = [room.connect() for room in rooms]
    handed_on: list[list[bytes]] = [[], []]
    for here, there, record in zip(ends, ends[::-1], handed_on):
        threading.Thread(target=relay, args=(here, there, record), daemon=True).start()
    ann.send("/nonsense\n//nonsense\n//help\n* x\n/name Anna\nhi Bob\n")
    bob.read_until("Anna: hi Bob\n")
    bob.send("hi Ann\n")
    ann.read_until("Bob: hi Ann\n")
    before = b"".join(handed_on[1])
    for number in range(50):  # time for the two to go on, if they do
        ann.send(f"{number}\n")
        bob.expect(f"Anna: {number}\n")
    assert b"".join(handed_on[1]) == before
    ann.expect_nothing()
    for end in ends:
        end.half_close()
