"""Browsers among the others: the page, the WebSocket, and what each port tells a stranger."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import BINARY, CLOSE, PING, PONG, TEXT, masked, request
from crowd import Walker, pump
from support import (
    CERTS,
    DEADLINE,
    IMPATIENT,
    WELCOME,
    Inside,
    Peer,
    Server,
    client,
    patched,
    trusting,
)

import chat_server

PASSWORD = "let me in"

web = pytest.mark.parametrize("start", ["web"], indirect=True)
web_and_tls = pytest.mark.parametrize("start", ["web", "tls web"], indirect=True)


def visit(room: Server, data: bytes = b"", port: int = 0) -> Peer:
    """Returns a peer at the browsers' port, or another one, that has sent this."""
    sock = socket.create_connection(("127.0.0.1", port or room.web_port), DEADLINE)
    if room.tls:
        sock = trusting(CERTS / "room.pem").wrap_socket(sock, server_hostname="127.0.0.1")
    peer = Peer(sock)
    peer.send(data)
    return peer


def get(room: Server, head: str = "Host: localhost", path: str = "/") -> bytes:
    return visit(room, f"GET {path} HTTP/1.1\r\n{head}\r\n\r\n".encode()).rest()


def closing_code(peer: Peer) -> int | None:
    """Returns the code with which the server ends a browser's stream, once it has."""
    peer.rest()
    code: int | None = peer.sock.code
    return code


# Talk


@web_and_tls
def test_browsers_and_others_talk(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    john = room.join("John", web=False)
    mary = room.join("Mary")
    john.expect("* Mary joined\n")
    mary.send("Hi!\nIt's \u672c.\n")
    john.expect("Mary: Hi!\n", "Mary: It's \u672c.\n")
    john.send("Hello\n")
    mary.expect("John: Hello\n")
    mary.send("/who\n")
    mary.expect("* here: John, Mary\n")
    mary.send("/quit\n")
    mary.expect("* bye\n")
    assert closing_code(mary) == 1000
    john.expect("* Mary left\n")


@web
def test_one_message_can_have_several_lines_or_none(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    john, mary = room.join("John", web=False), room.join("Mary")
    john.expect("* Mary joined\n")
    mary.sock.sock.sendall(
        masked(TEXT, b"") + masked(TEXT, b"one\r\ntwo\n\nthree") + masked(TEXT, b"four\n")
    )
    john.expect("Mary: one\n", "Mary: two\n", "Mary: three\n", "Mary: four\n")


@web
def test_history_comes_in_the_first_frame(start: Callable[..., Server]) -> None:
    room = start("chat_server.py", "--history", "3")
    john, watcher = room.join("John", web=False), room.join()
    john.send("".join(f"{n}\n" for n in range(5)))
    watcher.read_until("John: 4\n")
    room.join().expect("John: 2\n", "John: 3\n", "John: 4\n")


@web_and_tls
def test_password(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_PASSWORD", PASSWORD)
    room = start("chat_server.py")
    peer = room.connect()
    peer.expect("* password?\n")
    peer.send("wrong\n")
    peer.expect("* wrong password\n")
    assert closing_code(peer) == 1008
    peer = room.connect()
    peer.send(f"{PASSWORD}\n/name Mary\n")
    peer.expect("* password?\n", WELCOME, "* you are Mary\n")
    leaver = room.connect()
    leaver.expect("* password?\n")
    leaver.sock.sock.sendall(masked(TEXT, b"unfinished", False) + masked(CLOSE, b"\x03\xe8"))
    assert closing_code(leaver) == 1000
    assert room.log().count("wrong password") == 1


@web_and_tls
@pytest.mark.parametrize(
    "last, code, inside",
    [
        (masked(TEXT, PASSWORD.encode()), 1000, [WELCOME.decode()]),
        (
            masked(TEXT, f"{PASSWORD}\n/who".encode()),
            1000,
            [WELCOME.decode(), "* here: 1 unnamed\n"],
        ),
        (masked(TEXT, PASSWORD.encode()) + masked(BINARY, b"x"), 1003, [WELCOME.decode()]),
        (masked(TEXT, b"let", final=False), 1000, []),
    ],
    ids=["alone", "with a line", "with a fault", "in part"],
)
def test_close_together_with_the_password_is_answered_at_once(
    start: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    last: bytes,
    code: int,
    inside: list[str],
) -> None:
    """Nothing more comes after it, so that the socket isn't ready any more."""
    monkeypatch.setenv("CHAT_PASSWORD", PASSWORD)
    room = start("chat_server.py")
    peer = room.connect()
    peer.expect("* password?\n")
    peer.sock.sock.sendall(last + masked(CLOSE, (1000).to_bytes(2, "big")))
    peer.expect(*inside)
    assert closing_code(peer) == code


# The end


@web_and_tls
def test_closing_codes(start: Callable[..., Server]) -> None:
    room = start("chat_server.py", "--max-clients", "1")
    member = room.join()
    late = room.connect()
    late.expect("* the room is full\n")
    assert closing_code(late) == 1013
    room.process.terminate()
    member.expect("* the room is closing\n")
    assert closing_code(member) == 1001
    member.close()
    assert room.process.wait(DEADLINE) == 0


FAULTS = {
    1002: "sends a frame without a mask",
    1003: "sends binary frames",
    1007: "sends text that is not UTF-8",
}


@web
@pytest.mark.parametrize(
    "fault, code",
    [
        (masked(BINARY, b"x"), 1003),
        (masked(TEXT, b"\xff"), 1007),
        (b"\x81\x01x", 1002),  # not masked
        (masked(CLOSE, (4321).to_bytes(2, "big") + b"tired"), 4321),
    ],
)
def test_a_fault_or_a_close_ends_the_membership(
    start: Callable[..., Server], fault: bytes, code: int
) -> None:
    """What came before is heard, and nothing after it."""
    room = start("chat_server.py")
    john, mary = room.join("John", web=False), room.join("Mary")
    john.expect("* Mary joined\n")
    mary.sock.sock.sendall(masked(TEXT, b"before") + fault + masked(TEXT, b"after"))
    john.expect("Mary: before\n", "* Mary left\n")
    assert closing_code(mary) == code
    why = FAULTS.get(code, "left")
    room.wait_for_log(rf"Mary at \S+ {why}, members: 1\n")
    john.expect_nothing()


@web_and_tls
def test_unfinished_message_is_a_line_at_a_close_and_not_at_a_fault(
    start: Callable[..., Server],
) -> None:
    room = start("chat_server.py")
    john, mary, eve = room.join("John", web=False), room.join(), room.join()
    mary.send_and_half_close(b"that's it")
    john.expect("that's it\n")
    eve.send(b"that's")
    eve.sock.sock.sendall(masked(BINARY, b"x"))
    assert closing_code(eve) == 1003
    john.send("over\n")
    john.expect_nothing()


@web
def test_pings_are_answered_between_frames(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    mary = room.join()
    mary.sock.sock.sendall(masked(PING, b"are you there?"))
    mary.send("/who\n")
    mary.expect("* here: 1 unnamed\n")
    assert mary.sock.pongs == [b"are you there?"]


@web
@pytest.mark.parametrize("piece", [masked(PONG, b""), masked(PING, b"?"), masked(TEXT, b"")])
def test_small_frames_by_the_thousand_cost_the_others_nothing(
    start: Callable[..., Server], piece: bytes
) -> None:
    room = start("chat_server.py")
    flooder = Walker(room)
    flooder.sock.outgoing = piece * 20_000
    mary, john = room.join("Mary"), room.join("John", web=False)
    mary.expect("* John joined\n")
    for n in range(20):
        pump([flooder], iter([False, True]).__next__, wait=0)
        john.send(f"{n}\n")
        mary.expect(f"John: {n}\n")
    flooder.reading = True
    pump([flooder], lambda: not flooder.sock.outgoing)
    flooder.say(b"done\n")
    pump([flooder], lambda: not flooder.has_to_send())
    mary.expect("done\n")


# What is not a member


@web_and_tls
def test_page(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    head, _, page = get(room).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"frame-ancestors 'none'" in head
    assert page.lower().startswith(b"<!doctype html>")
    assert get(room, path="/x").startswith(b"HTTP/1.1 404 ")
    assert get(room, "Host: localhost\r\nOrigin: http://x.example").startswith(b"HTTP/1.1 403 ")
    if not room.tls:
        assert get(room, "Host: rebound.example").startswith(b"HTTP/1.1 421 ")
    assert "members" not in room.log()


@web_and_tls
def test_whoever_checks_that_the_room_is_up_leaves_no_line_in_the_log(
    start: Callable[..., Server],
) -> None:
    room = start("chat_server.py")
    before = room.log()
    for check in (b"GET / HTTP/1.0\r\n\r\n", b"HEAD / HTTP/1.0\r\nUser-Agent: x\r\n\r\n"):
        assert visit(room, check).rest().startswith(b"HTTP/1.1 200 OK\r\n")
    visit(room).close()
    assert visit(room, b"GET / HTTP/1.1\r\n\r\n").rest().startswith(b"HTTP/1.1 400 ")
    room.wait_for_log("has no proper Host")
    assert room.log()[len(before) :].count("\n") == 1


@web_and_tls
def test_cookies_of_other_servers_on_the_same_host(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    cookies = "; ".join(f"session{number}={'x' * 3000}" for number in range(8))
    assert get(room, f"Host: localhost\r\nCookie: {cookies}").startswith(b"HTTP/1.1 200 OK\r\n")
    peer = visit(room, request(f"localhost:{room.web_port}", Cookie=cookies))
    assert peer.line().startswith(b"HTTP/1.1 101 ")


@web
def test_further_names(start: Callable[..., Server]) -> None:
    room = start("chat_server.py", "--web-host", "https://chat.example.org/")
    head = "Host: chat.example.org\r\nOrigin: https://chat.example.org"
    assert get(room, head).startswith(b"HTTP/1.1 200 ")


@web
def test_origin_is_refused_for_a_websocket(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    host = f"localhost:{room.web_port}"
    for origin in ("http://evil.example", "null", f"http://localhost:{room.web_port + 1}"):
        answer = visit(room, request(host, Origin=origin)).rest()
        assert answer.startswith(b"HTTP/1.1 403 ")
    peer = visit(room, request(host, Origin=f"http://{host}"))
    assert peer.line().startswith(b"HTTP/1.1 101 ")
    assert len(re.findall(r"members: \d+", room.log())) <= 1


@web_and_tls
def test_request_byte_by_byte_and_never_whole(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    peer = visit(room)
    for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n":
        peer.send(bytes([byte]))
    assert peer.line() == b"HTTP/1.1 200 OK\r\n"
    endless = visit(room, b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"x" * 40_000)
    assert endless.line().startswith(b"HTTP/1.1 431 ")


@web
def test_half_a_request_is_not_answered_and_the_log_says_what_became_of_it(
    start: Callable[..., Server],
) -> None:
    room = start("chat_server.py")
    peer = visit(room, b"GET / HTTP/1.1\r\nHost: loc")
    peer.half_close()
    assert peer.rest() == b""
    room.wait_for_log("left the door")


@web_and_tls
def test_whoever_speaks_no_http_is_told_the_port(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    told = f"* this port is for browsers; the room is on port {room.port}\n"
    visit(room, b"John: Hi\n").expect(told)
    peer = visit(room, b"hello there, this is no request at all\n")
    assert peer.rest().decode() == told


@web
def test_whoever_says_nothing_is_told_the_port(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    room = patched(start, tmp_path, "chat_server.DOOR_TIME = 0.5")
    told = visit(room).rest().decode()
    assert told == f"* this port is for browsers; the room is on port {room.port}\n"
    begun = visit(room, b"GET / HT")
    assert begun.rest() == b""


@web
def test_terminal_client_at_the_browsers_port(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    done = client("localhost", room.web_port, "--plain", typed="John\nHi\n")
    assert f"the room is on port {room.port}" in done.stdout
    assert done.returncode == 1


@web_and_tls
def test_browser_at_the_rooms_own_port(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    watcher = room.join("Mary", web=False)
    lost = visit(room, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", port=room.port)
    scheme = "https" if room.tls else "http"
    url = re.search(rf"in a browser: ({scheme}://\S+)", room.log())
    assert url
    assert lost.rest().decode().endswith(f"* for browsers, the room is at {url.group(1)}\n")
    watcher.expect_nothing()


@pytest.mark.parametrize("start", ["tls web"], indirect=True)
def test_plain_http_is_sent_to_https(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    sock = socket.create_connection(("127.0.0.1", room.web_port), DEADLINE)
    peer = Peer(sock)
    host = f"localhost:{room.web_port}"
    peer.send(f"GET /x HTTP/1.1\r\nHost: {host}\r\n")
    peer.send("Cookie: " + "x" * 3000 + "\r\n\r\n")
    answer = peer.rest().decode()
    assert re.match(r"HTTP/1\.1 30[178] ", answer)
    assert f"Location: https://{host}/" in answer


# Guarantees that only browsers put to the test


@web
def test_a_page_that_stops_reading_is_disconnected(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    room = patched(start, tmp_path, IMPATIENT)
    stuck = Walker(room, receive_buffer=4096)
    stuck.reading = False
    talker, reader = Walker(room), Walker(room)
    line = b"x" * 1000 + b"\n"
    talker.say(line * 20_000)
    pump([talker, reader, stuck], lambda: "too far behind" in room.log())
    pump([talker, reader], lambda: len(reader.received) == len(WELCOME) + 20_000 * len(line))


def test_browsers_share_a_frame() -> None:
    """The framed batch is made once a turn."""
    inside = Inside()
    conns = [inside.join()[0] for _ in range(3)]
    for conn in conns[:2]:
        conn.use(chat_server.WebSocket(1000))
    batch = chat_server.Batch()
    batch.say(b"hello\n", conns[2])
    batch.seal()
    assert batch.part_for(conns[0], conns[0].encode) is batch.part_for(conns[1], conns[1].encode)
    assert batch.part_for(conns[0], conns[0].encode) == b"\x81\x06hello\n"
    conns[2].use(chat_server.WebSocket(1000))
    assert batch.part_for(conns[2], conns[2].encode) == b""


# Operators


@web_and_tls
def test_operators_and_whom_they_remove_can_have_browsers(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "operators").write_text("open sesame\n")
    room = start("chat_server.py", "--operator-file", str(tmp_path / "operators"))
    mary, eve = room.join("Mary"), room.join("Eve", source="127.0.0.2")
    mary.expect("* Eve joined\n")
    mary.send("/op open sesame\n/kick Eve\n")
    mary.expect("* you are an operator\n", "* Eve was removed\n")
    eve.expect("* you were removed by an operator; come back in 10 min\n")
    assert closing_code(eve) == 1008
    assert get(room).startswith(b"HTTP/1.1 200 ")  # the page can say it better than the browser
    eve = room.connect(source="127.0.0.2")
    assert eve.line().startswith(b"* you, or somebody at your address, was removed; ")
    assert closing_code(eve) == 1008
    assert "sesame" not in room.log()
