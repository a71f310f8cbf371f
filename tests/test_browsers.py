"""Browsers: what of HTTP is around the page, without I/O, and browsers among the others in a room.
The page itself is in test_page.py."""

from __future__ import annotations

import re
import socket
from argparse import ArgumentTypeError
from base64 import b64encode
from hashlib import sha256
from itertools import product
from pathlib import Path

import pytest
from browser import ACCEPT, BINARY, CLOSE, CONTINUATION, KEY, PING, TEXT, head, masked, request
from support import CERTS, DEADLINE, WELCOME, Inside, Peer, Server, Start, client, patched, trusting

import chat_server
from chat_server import MAX_REQUEST, Refusal, Site, is_http, is_whole, response, web_host

PLACE, PAGE = "localhost:7080", "http://localhost:7080"


def get(**fields: str) -> bytes:
    return head("GET / HTTP/1.1", **fields)


def upgrade(**changed: str) -> bytes:
    return request(**{"host": PLACE, "Origin": PAGE, **changed})


class Answer:
    """What a request came to; its form is checked."""

    def __init__(self, asked: bytes, hosts: tuple[str, ...], secure: bool, encrypted: bool) -> None:
        self.why = ""  # it was refused
        try:
            data = Site(hosts, secure).respond(asked, encrypted)
        except Refusal as refusal:
            self.why = str(refusal)
            text = f"{self.why}\n"
            data = response(asked, refusal.status, "plain", text, *refusal.fields)
        lines, _, self.body = data.partition(b"\r\n\r\n")
        self.start, *rest = lines.decode("ascii").split("\r\n")
        self.fields = dict(line.split(": ", 1) for line in rest)
        self.status = int(self.start[len("HTTP/1.1 ") :][:3])
        assert re.fullmatch(rf"HTTP/1\.1 {self.status} [A-Z][A-Za-z ]+", self.start)
        assert bool(self.why) == (self.status not in (101, 200))
        if self.status != 101:
            self.check(asked.startswith(b"HEAD "))

    def check(self, is_head: bool) -> None:
        """Checks the page, or the sentence that says why there is none."""
        kind = "plain" if self.why else "html"
        assert self.fields["Content-Type"] == f"text/{kind}; charset=utf-8"
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", self.fields["Date"])
        assert self.fields["Connection"] in ("close", "Upgrade")
        assert self.fields["X-Content-Type-Options"] == "nosniff"
        assert not re.search("(?i)access-control", str(self.fields)), "for no other page to read"
        assert self.fields["Cache-Control"] == "no-store"
        assert self.fields["Referrer-Policy"] == "no-referrer"
        policy = self.fields["Content-Security-Policy"].split("; ")
        for part in ("default-src", "base-uri", "form-action", "frame-ancestors"):
            assert f"{part} 'none'" in policy
        assert len(self.body) == (0 if is_head else int(self.fields["Content-Length"]))
        if self.why:
            assert is_head or self.body.decode() == f"{self.why}\n"
            assert len(self.why) < 200 and re.fullmatch("[A-Z][ -~]+[a-z./]", self.why)
        elif not is_head:
            assert self.body.lower().startswith(b"<!doctype html>\n")
            inside = re.findall(r"<(script|style)>(.*?)</", self.body.decode(), re.DOTALL)
            assert len(inside) == 2
            for kind, text in inside:
                digest = b64encode(sha256(text.encode()).digest()).decode()
                assert f"{kind}-src 'sha256-{digest}'" in policy


def ask(asked: bytes, *hosts: str, secure: bool = False, encrypted: bool | None = None) -> Answer:
    assert is_whole(asked)
    return Answer(asked, hosts, secure, secure if encrypted is None else encrypted)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    "first, status",
    [
        *((f"GET {target} HTTP/1.1", 200) for target in ("/", "/?", "/?name=John")),
        *(("GET / HTTP/1.0", 200), ("GET / HTTP/1.2", 200), ("GET /nothing HTTP/1.1", 404)),
        *((f"GET {one} HTTP/1.1", 404) for one in ("/index.html", "//", "/%2e", "*", "x")),
        *((f"GET {one} HTTP/1.1", 200) for one in ("http://localhost/?", "HTTPS://localhost:7080")),
        *((f"GET {one} HTTP/1.1", 404) for one in ("http://localhost/x", "ftp://localhost/")),
        *((f"{one} / HTTP/1.1", 405) for one in ("POST", "PUT", "OPTIONS", "get", "X!")),
        *(("OPTIONS * HTTP/1.1", 405), ("CONNECT localhost:80 HTTP/1.1", 405)),
    ],
)
def test_only_one_place_has_something_to_get(first: str, status: int, secure: bool) -> None:
    answer = ask(head(first, Host="localhost:7080"), secure=secure)
    assert (answer.status, answer.fields["Connection"]) == (status, "close")
    assert answer.fields.get("Allow") == ("GET, HEAD" if status == 405 else None)
    only_head = ask(head(first.replace("GET", "HEAD"), Host="localhost:7080"), secure=secure)
    assert only_head.status == status
    assert only_head.fields["Content-Length"] == answer.fields["Content-Length"]


@pytest.mark.parametrize("secure", [False, True])
def test_what_checks_whether_we_are_up_need_not_know_our_name(secure: bool) -> None:
    for method, status in ("GET", 200), ("HEAD", 200), ("OPTIONS", 405):
        assert ask(head(f"{method} / HTTP/1.0", User_Agent="x"), secure=secure).status == status
    for version in "123":
        assert ask(head(f"GET / HTTP/1.{version}"), secure=secure).status == 400
    assert ask(head("GET / HTTP/1.0", Host="evil.example")).status == 421
    assert ask(head("GET / HTTP/1.0", Origin="http://evil.example"), secure=secure).status == 403
    for host in ("", "localhost:7080"):
        opened = upgrade(first="GET / HTTP/1.0", host=host, Origin="")
        assert ask(opened, secure=secure).status == 426


# Host and Origin


@pytest.mark.parametrize(
    "given, name",
    [
        *(("chat.example.org", "chat.example.org"), ("Chat.Example.org.", "chat.example.org")),
        *(("https://chat.example.org/", "chat.example.org"), ("HTTP://PC:7080", "pc")),
        *(("https://chat.example.org/chat/?a", "chat.example.org"), ("pc.local:8443", "pc.local")),
        *(("pc/", "pc"), ("my_pc", "my_pc"), ("bücher.example:80", "xn--bcher-kva.example")),
        *(("192.0.2.1:80", "192.0.2.1"), ("[::1]:7080", "[::1]"), ("2001:DB8::1", "[2001:db8::1]")),
    ],
)
def test_names_that_can_be_given(given: str, name: str) -> None:
    assert web_host(given) == name
    for host in (name, f"{name}:7080"):
        assert ask(get(Host=host), web_host(given)).status == 200


def test_options_that_give_names() -> None:
    args = chat_server.parse_args(["--host", "chat.example.org", "--web"])
    site = chat_server.show_page(args, "chat.example.org", 7007, 7080)
    assert site.respond(get(Host="chat.example.org"), False).startswith(b"HTTP/1.1 200 ")
    args = chat_server.parse_args(["--web", "0", "--web-host", "PC"])
    assert (args.web, args.web_host) == (0, ["pc"]), "it goes with a page on any port"


@pytest.mark.parametrize(
    "given",
    [
        *("", "*", "*.example.org", ".example.org", "chat..example.org", ".", "/", "https://"),
        *("a b", "a,b", "a.example,b.example", "me@a.example", "a.example:x", "a:b:c:z"),
        *("ü..example", "a\nb", "chat.example.org\x1b[31m"),
    ],
)
def test_names_that_are_none(given: str) -> None:
    with pytest.raises(ArgumentTypeError, match="not the name of a host") as error:
        web_host(given)
    assert str(error.value).isprintable()


OURS = [
    *("127.0.0.1", "127.0.0.1:7080", "192.0.2.1", "[::1]", "[::1]:7080", "[2001:DB8::1]:80"),
    *("localhost", "LocalHost.:7080", "pc", "my_pc:7080", "pc.local", "pc.localhost:1", "a.b.lan"),
    *("pc.internal", "pc.home.arpa", "PC.Local.", "chat.example.org", "CHAT.example.ORG.:7080"),
    *("xn--bcher-kva.example", "x.LAN", "localhost:", "[::FFFF:192.0.2.1]:7080"),
    *("pc7.example.org", "pc7.Example.org.:7080"),
]
OTHERS = [
    *("evil.example", "evil.example:7080", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("evillocal.com", "chat.example.org.evil.example", "x.chat.example.org", "example.org"),
    *("evil.example..", "1.2.3.x", "a.locallan", "a.lan.b", "pc8.example.org"),
]
NONE = ["", ":7080", "a b", "a/b", "a@b", "a,b", "[::1", "[x]", "a:b", "ü", "a:1:2"]


@pytest.mark.parametrize(
    "status, host",
    [*product([200], OURS), *product([421], OTHERS), *product([400], NONE)],
)
def test_no_name_that_may_be_somebody_elses_leads_to_us(
    monkeypatch: pytest.MonkeyPatch, status: int, host: str
) -> None:
    """Under TLS the certificate decides."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Pc7.example.org")
    names = "Chat.Example.org.", "bücher.example", "no..host.ü"
    answer = ask(get(Host=host), *names)
    assert answer.status == status
    opened = upgrade(host=host, Origin=f"http://{host}")
    assert ask(opened, *names).status == (101 if status == 200 else status)
    if status == 421:
        name = host.partition(":")[0].rstrip(".")
        assert name in answer.why and f"--web-host {name}" in answer.why
    assert ask(get(Host=host), secure=True).status == (400 if status == 400 else 200)
    assert ask(head("GET / HTTP/1.0", Host=host), *names).status == status


def test_a_host_in_the_target_is_the_one_that_counts() -> None:
    for target, host, status in (
        *(("http://localhost/", "evil.example", 200), ("http://evil.example/", "localhost", 421)),
        *(("http:///", "localhost", 400), ("http://me@localhost/", "localhost", 400)),
    ):
        assert ask(head(f"GET {target} HTTP/1.1", Host=host)).status == status
    opened = upgrade(first="GET http://evil.example/ HTTP/1.1", Origin="http://evil.example")
    assert ask(opened).status == 421


def test_exactly_one_host() -> None:
    assert ask(b"GET / HTTP/1.1\r\n\r\n").status == 400
    for other in ("localhost", "evil.example", ""):
        asked = f"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\r\nhost: {other}\r\n\r\n".encode()
        assert ask(asked).status == 400


@pytest.mark.parametrize(
    "host, origin",
    [
        *(("localhost:7080", "http://localhost:7080"), ("LOCALHOST:7080", "http://LocalHost:7080")),
        *(("localhost", "http://localhost"), ("localhost:80", "http://localhost")),
        ("[::1]:7080", "http://[::1]:7080"),
        ("chat.example.org", "https://chat.example.org"),  # TLS ends at a proxy
        ("chat.example.org:443", "https://chat.example.org"),
    ],
)
def test_pages_of_ours(host: str, origin: str) -> None:
    assert ask(upgrade(host=host, Origin=origin), "chat.example.org").status == 101
    assert ask(get(Host=host, Origin=origin), "chat.example.org").status == 200
    is_ours = origin.startswith("https:")  # if TLS is spoken, not in the clear
    opened = ask(upgrade(host=host, Origin=origin), secure=True)
    assert opened.status == (101 if is_ours else 403)


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "http://localhost", "http://localhost:7081"),
        *("http://127.0.0.1:7080", "http://:7080", "http://<script>&amp;", "\xff" * 99),
        *("https://localhost", "null", "NULL", "file://", "ws://localhost:7080", "localhost:7080"),
        *("http://localhost:7080/", "http://localhost:7080@evil.example", "http://"),
        *("http://localhost:7080.evil.example", "http://evil.example http://localhost:7080"),
        *("http://localhost:7080, http://localhost:7080", "", "chrome-extension://abc"),
    ],
)
def test_pages_of_others(origin: str) -> None:
    for first in "GET", "POST":
        first_line = f"{first} / HTTP/1.1"
        opened = upgrade().replace(b"GET / HTTP/1.1", first_line.encode())
        opened = opened.replace(PAGE.encode(), origin.encode("latin-1"))
        for asked in opened, head(first_line, Host=PLACE, Origin=origin):
            answer = ask(asked)
            assert answer.status == 403
            assert answer.why.startswith("This room is only for its own page, not for one of ")


# The WebSocket


@pytest.mark.parametrize(
    "status, changed",
    [
        *((101, {"Origin": one}) for one in ("http://localhost:7080", "")),
        *((101, {"Upgrade": "WebSocket"}), (101, {"Connection": "upgrade"})),
        *((101, {"Connection": "Upgrade , keep-alive"}), (101, {"Sec_Fetch_Site": "same-origin"})),
        (101, {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"}),
        (101, {"Sec_WebSocket_Protocol": "chat"}),
        *((426, {"Sec_WebSocket_Version": one}) for one in ("", "8")),
        *((426, {"Upgrade": one}) for one in ("", "websockets")),
        *((426, {"Connection": one}) for one in ("", "keep-alive")),
        *((400, {"Sec_WebSocket_Key": one}) for one in (KEY[:-2], f"{KEY[:-3]}E=", KEY[:-4])),
        *((400, {"Sec_WebSocket_Key": f"{KEY}, {KEY}"}), (404, {"first": "GET /chat HTTP/1.1"})),
        *((405, {"first": "POST / HTTP/1.1"}), (200, {"first": "HEAD / HTTP/1.1"})),
        (200, {"Sec_WebSocket_Key": ""}),
    ],
)
def test_upgrade(status: int, changed: dict[str, str]) -> None:
    answer = ask(upgrade(**changed))
    assert answer.status == status
    if status == 426:
        assert answer.fields["Upgrade"] == "websocket"
        assert answer.fields["Sec-WebSocket-Version"] == "13"
    elif status == 101:
        assert answer.start == "HTTP/1.1 101 Switching Protocols"
        expected = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}
        assert (answer.fields, answer.body) == (expected, b"")


# What isn't HTTP

HOST = "Host: localhost\r\n"
PROPER = f"GET / HTTP/1.1\r\n{HOST}"


@pytest.mark.parametrize(
    "asked",
    [
        *(f"{PROPER}{line}\r\n\r\n" for line in ("X: a\r\n b", "X", ": x", "X\xfc: a", "X : a")),
        *(f"{PROPER}X: a{char}b\r\n\r\n" for char in "\r\0\x7f"),
        *(f"{PROPER}\r\n{rest}" for rest in ("x", "\r\n", "\x81\x80\0\0\0\0")),
        f"{PROPER}Content-Length: 1\r\n\r\nx",
        f"{PROPER}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        *(f"GET {path} HTTP/1.1\r\n{HOST}\r\n" for path in ("/\rx", "/\xfc", " /", "/ /")),
        *(f"GET / {version}\r\n{HOST}\r\n" for version in ("HTTP/2.0", "http/1.1", "HTTP/1.10")),
        *(f"{first}\r\n{HOST}\r\n" for first in ("GET /", "GET / HTTP/1.1 ", " GET / HTTP/1.1")),
        *(f"G(T / HTTP/1.1\r\n{HOST}\r\n", f"\r\n{PROPER}\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        f"GET / HTTP/1.1\r\n {HOST}{HOST}\r\n",
    ],
)
def test_requests_that_are_not_taken(asked: str) -> None:
    answer = ask(asked.encode("latin-1"))
    assert (answer.status, answer.why) == (400, "This is not a proper request.")


def test_request_is_read_to_its_end_byte_by_byte() -> None:
    for asked in (upgrade(), upgrade().replace(b"\r\n", b"\n")):
        for end in range(1, len(asked)):
            assert is_http(asked[:end])
            assert not is_whole(asked[:end])
        assert ask(asked).status == 101
    blanks = b"Host:\t localhost \t\r\nX:\r\nY: \xfc\r\nContent-Length: 0\r\n"
    for field in b"hOST:localhost\n", blanks:  # others write differently
        assert ask(b"GET / HTTP/1.1\n%b\n" % field).status == 200


def test_a_request_has_a_size_and_a_hundred_fields_at_most() -> None:
    rest = MAX_REQUEST - len(upgrade()) - len("X: \r\n")
    assert ask(upgrade(X="x" * rest)).status == 101
    assert ask(upgrade(X="x" * (rest + 1))).status == 431
    for start in b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"\r\n":
        endless = start + b"x" * (MAX_REQUEST + 1 - len(start))
        assert not is_whole(endless[:-1])
        assert ask(endless).status == ask(endless * 2).status == 431
    fields = upgrade().count(b"\n") - 2
    for count, status in (100, 101), (101, 400), (5000, 400):
        assert ask(upgrade()[:-2] + b"a:\n" * (count - fields) + b"\r\n").status == status
    cookies = "; ".join(f"session{number}={'x' * 3000}" for number in range(8))  # of other servers
    assert ask(get(Host="localhost", Cookie=cookies)).status == 200


MAY_BE = [b"G", b"GET ", b"GET /", b"GET / H", b"GET / HTTP/1.1\r", b"PROPFIND", b"hello there",
          b"POST http://x/ HTTP/1.1\r\n", b"OPTIONS * HTTP/1.0\n", b"PRI * HTTP/2.0\r\n",
          b"CONNECT x:80 HTTP/1.1\r\nx", b"GET /" + b"x" * 9999, b"GET /\xfc HTTP/1.1\n"]  # fmt: skip
IS_NOT = [b"/name", b"hello\n", b"hello there\n", b"GET /\n", b"\r\n", b"GET / http/1.1\n", b"* hi",
          b"\x16\x03\x01", b"\xff\xfd", b"GET / there\r\n", b"John: hi\n", b"I LOVE HTTP/2\n",
          b"SSH-2.0-x\r\n"]  # fmt: skip


@pytest.mark.parametrize("data, may_be", [*product(MAY_BE, [True]), *product(IS_NOT, [False])])
def test_what_may_become_http(data: bytes, may_be: bool) -> None:
    assert is_http(data) == may_be


def test_request_in_the_clear_is_sent_over_to_https() -> None:
    for target in ("/", "/a?b=c&d", "//evil.example/", "ftp://other.example/", "*"):
        asked = head(f"GET {target} HTTP/1.1", Host="Chat.example.org:7080")
        answer = ask(asked, "chat.example.org", secure=True, encrypted=False)
        assert answer.start == "HTTP/1.1 307 Temporary Redirect"
        assert answer.fields["Location"] == "https://chat.example.org:7080/"
    for bad in (b"hello\r\n\r\n", get(Host="a b")):
        answer = ask(bad, secure=True, encrypted=False)
        assert answer.status == 400
        assert "Location" not in answer.fields


# Browsers among the others

PASSWORD = "let me in"
web_and_tls = pytest.mark.parametrize("start", ["web", "tls web"], indirect=True)


def visit(room: Server, data: bytes = b"", port: int = 0) -> Peer:
    """Returns a peer at the browsers' port, or another one, that has sent this."""
    sock = socket.create_connection(("127.0.0.1", port or room.web_port), DEADLINE)
    if room.tls:
        sock = trusting(CERTS / "room.pem").wrap_socket(sock, server_hostname="127.0.0.1")
    peer = Peer(sock)
    peer.send(data)
    return peer


def closing_code(peer: Peer) -> int | None:
    """Returns the code with which the server ends a browser's stream, once it has."""
    peer.rest()
    code: int | None = peer.sock.code
    return code


@web_and_tls
def test_browsers_are_told_by_a_code_why_it_ends(start: Start, tmp_path: Path) -> None:
    (tmp_path / "operators").write_text("open sesame\n")
    options = ["--max-clients", "2", "--operator-file", str(tmp_path / "operators")]
    room = start("chat_server.py", *options)
    mary, eve = room.join("Mary"), room.join("Eve", source="127.0.0.2")
    too_late = room.connect()
    too_late.expect("* the room is full\n")
    assert closing_code(too_late) == 1013
    mary.send("/op open sesame\n/kick Eve\n")
    mary.expect("* Eve joined\n", "* you are an operator\n", "* Eve was removed\n")
    eve.expect("* you were removed by an operator; come back in 10 min\n")
    assert closing_code(eve) == 1008
    page = visit(room, get(Host="localhost"))  # which can say it better than the browser
    assert page.line().startswith(b"HTTP/1.1 200 ")
    eve = room.connect(source="127.0.0.2")
    assert eve.line().startswith(b"* you, or somebody at your address, was removed; ")
    assert closing_code(eve) == 1008
    assert "sesame" not in room.log()
    john = room.join("John")
    mary.sock.sock.sendall(masked(TEXT, b"one\r\n\ntwo") + masked(PING, b"ping"))
    mary.send("/quit\n")
    john.expect("Mary: one\n", "Mary: two\n", "* Mary left\n")
    mary.expect("* John joined\n", "* bye\n")
    assert (closing_code(mary), mary.sock.pongs) == (1000, [b"ping"])
    room.process.terminate()
    john.expect("* the room is closing\n")
    assert closing_code(john) == 1001
    john.close()
    assert room.process.wait(DEADLINE) == 0


@web_and_tls
def test_password(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing comes after it, so that the socket isn't ready any more."""
    monkeypatch.setenv("CHAT_PASSWORD", PASSWORD)
    room = start("chat_server.py")
    whole, asked = masked(TEXT, PASSWORD.encode()), masked(TEXT, f"{PASSWORD}\n/who".encode())
    close = masked(CLOSE, (1000).to_bytes(2, "big"))
    for last, code, inside in (
        (whole + close, 1000, [WELCOME.decode()]),
        (asked + close, 1000, [WELCOME.decode(), "* here: 1 unnamed\n"]),
        (whole + masked(BINARY, b"x") + close, 1003, [WELCOME.decode()]),
        (masked(TEXT, b"let", final=False) + close, 1000, []),
        (masked(TEXT, b"wrong"), 1008, ["* wrong password\n"]),
    ):
        peer = room.connect()
        peer.expect("* password?\n")
        peer.sock.sock.sendall(last)
        peer.expect(*inside)
        assert closing_code(peer) == code
    assert room.log().count("wrong password") == 1


@web_and_tls
def test_a_fault_or_a_close_ends_the_membership(start: Start) -> None:
    """What came before is heard, and nothing after it: an unfinished line only at a close."""
    room = start("chat_server.py")
    john = room.join("John", web=False)
    for fault, code, why in (
        (masked(BINARY, b"x"), 1003, "sends binary frames"),
        (masked(CONTINUATION, b"\xff"), 1007, "sends text that is not UTF-8"),
        (b"\x81\x01x", 1002, "sends a frame without a mask"),
        (masked(CLOSE, (4321).to_bytes(2, "big") + b"tired"), 4321, "left"),
    ):
        mary = room.join("Mary")
        mary.sock.sock.sendall(masked(TEXT, b"before") + masked(TEXT, b"half", final=False))
        mary.sock.sock.sendall(fault + masked(TEXT, b"after"))
        half = ["Mary: half\n"] if code == 4321 else []
        john.expect("* Mary joined\n", "Mary: before\n", *half, "* Mary left\n")
        assert closing_code(mary) == code
        room.wait_for_log(rf"Mary at \S+ {why}, members: 1\n")
        john.expect_nothing()


def test_browsers_share_a_frame() -> None:
    """The framed batch is made once a turn."""
    inside = Inside()
    conns = [inside.join()[0] for _ in range(3)]
    for conn in conns:
        conn.use(chat_server.WebSocket(1000))
    batch = chat_server.Batch()
    batch.say(b"hello\n", conns[2])
    batch.seal()
    first, second, own = (batch.part_for(conn, conn.encode) for conn in conns)
    assert first is second
    assert (first, own) == (b"\x81\x06hello\n", b"")


# What is not a member


@web_and_tls
def test_visitors_are_no_members_and_only_refusals_are_logged(start: Start) -> None:
    room = start("chat_server.py", "--web-host", "https://chat.example.org/")
    peer = visit(room)
    for byte in get(Host="localhost"):
        peer.send(bytes([byte]))
    assert peer.line() == b"HTTP/1.1 200 OK\r\n"
    peer = visit(room, b"GET / HTTP/1.1\r\nHost: loc")
    peer.half_close()
    assert peer.rest() == b""
    room.wait_for_log("left the door")
    before = room.log()
    host, name = f"localhost:{room.web_port}", "chat.example.org"
    for asked, status in (
        *((b"GET / HTTP/1.0\r\n\r\n", 200), (b"HEAD / HTTP/1.0\r\nUser-Agent: x\r\n\r\n", 200)),
        *((b"", 0), (get(Host="localhost"), 200), (get(Host=name, Origin=f"https://{name}"), 200)),
        *((request(host, Origin="http://evil.example"), 403), (b"GET / HTTP/1.1\r\n\r\n", 400)),
        (get(Host="localhost", Cookie="x" * 40_000), 431),
    ):
        peer = visit(room, asked)
        assert not asked or peer.rest().startswith(f"HTTP/1.1 {status} ".encode())
        peer.close()
    opened = visit(room, request(host, Origin=f"{'https' if room.tls else 'http'}://{host}"))
    assert opened.line().startswith(b"HTTP/1.1 101 ")
    room.wait_for_log("members: 1\n")
    refused = room.log()[len(before) :].splitlines()[:-1]
    whys = ["only for its own page", "has no proper Host", "is too long"]
    assert len(refused) == 3 and all(why in line for why, line in zip(whys, refused))


@web_and_tls
def test_whoever_is_no_browser_is_told_the_port(start: Start, tmp_path: Path) -> None:
    room = patched(start, tmp_path, "chat_server.DOOR_TIME = 0.5")
    told = f"* this port is for browsers; the room is on port {room.port}\n"
    for said in b"John: Hi\n", b"hello there, this is no request at all\n", b"":
        assert visit(room, said).rest().decode() == told
    assert visit(room, b"GET / HT").rest() == b""
    if not room.tls:
        done = client("localhost", room.web_port, "--plain", typed="John\nHi\n")
        assert f"the room is on port {room.port}" in done.stdout
        assert done.returncode == 1


@web_and_tls
def test_browsers_at_the_wrong_port_are_told_where_to_go(start: Start) -> None:
    room = start("chat_server.py")
    watcher = room.join("Mary", web=False)
    lost = visit(room, get(Host="localhost"), port=room.port)
    scheme = "https" if room.tls else "http"
    url = room.wait_for_log(rf"in a browser: ({scheme}://\S+)").group(1)
    assert lost.rest().decode().endswith(f"* for browsers, the room is at {url}\n")
    watcher.expect_nothing()
    if room.tls:  # in the clear, a browser is sent there
        peer = Peer(socket.create_connection(("127.0.0.1", room.web_port), DEADLINE))
        peer.send(f"GET /x HTTP/1.1\r\nHost: localhost:{room.web_port}\r\n")
        peer.send("Cookie: " + "x" * 3000 + "\r\n\r\n")
        answer = peer.rest().decode()
        assert answer.startswith("HTTP/1.1 307 ")
        assert f"Location: https://localhost:{room.web_port}/" in answer
