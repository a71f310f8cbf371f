"""What of HTTP is around the page, without I/O."""

from __future__ import annotations

import re
import socket
from argparse import ArgumentTypeError
from base64 import b64encode
from hashlib import sha256
from typing import NamedTuple

import pytest

from chat_server import (
    MAX_REQUEST,
    SCRIPT,
    STYLE,
    Refusal,
    Site,
    is_http,
    is_whole,
    response,
    web_host,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
UPGRADE = {
    "Host": "localhost:7080",
    "Origin": "http://localhost:7080",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def head(first: str, **fields: str) -> bytes:
    """Returns a request's head; Sec_Fetch_Site stands for Sec-Fetch-Site."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


def upgrade(first: str = "GET / HTTP/1.1", **changed: str) -> bytes:
    """Returns the head of a WebSocket's request; a field that is changed to nothing is left out."""
    fields = {**UPGRADE, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return head(first, **{name: value for name, value in fields.items() if value})


class Asked(NamedTuple):
    """What a request came to."""

    status: int
    why: str  # it was refused
    data: bytes


def ask(request: bytes, *hosts: str, secure: bool = False, encrypted: bool | None = None) -> Asked:
    """Returns the answer, whose form is checked."""
    assert is_whole(request)
    why = ""
    try:
        data = Site(hosts, secure).respond(request, secure if encrypted is None else encrypted)
    except Refusal as refusal:
        why = str(refusal)
        data = response(request, refusal.status, "plain", f"{why}\n", *refusal.fields)
    start, fields, body = parse(data)
    status = int(start[len("HTTP/1.1 ") :][:3])
    assert re.fullmatch(rf"HTTP/1\.1 {status} [A-Z][A-Za-z ]+", start)
    assert bool(why) == (status not in (101, 200))
    if status != 101:
        check_page(fields, body, request.startswith(b"HEAD "), why)
    return Asked(status, why, data)


def parse(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    lines, _, body = answer.partition(b"\r\n\r\n")
    start, *rest = lines.decode("ascii").split("\r\n")
    fields = dict(line.split(": ", 1) for line in rest)
    assert len(fields) == len(rest) or fields["Connection"] == "Upgrade"
    return start, fields, body


def check_page(fields: dict[str, str], body: bytes, is_head: bool, why: str) -> None:
    """Checks the page, or the sentence that says why there is none."""
    assert fields["Content-Type"] == f"text/{'plain' if why else 'html'}; charset=utf-8"
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", fields["Date"])
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["Cache-Control"] == "no-store"
    assert fields["Referrer-Policy"] == "no-referrer"
    policy = fields["Content-Security-Policy"].split("; ")
    for part in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert f"{part} 'none'" in policy
    if is_head:
        assert body == b""
        assert int(fields["Content-Length"]) > 0
        return
    assert int(fields["Content-Length"]) == len(body)
    if why:
        assert body.decode() == f"{why}\n"
        assert len(why) < 200 and re.fullmatch("[A-Z][ -~]+[a-z./]", why)
        return
    assert body.lower().startswith(b"<!doctype html>\n")
    for kind, inside in re.findall(r"<(script|style)>(.*?)</", body.decode(), re.DOTALL):
        digest = b64encode(sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


# The page


@pytest.mark.parametrize("target", ["/", "/?", "/?name=John"])
@pytest.mark.parametrize("secure", [False, True])
def test_page(target: str, secure: bool) -> None:
    answer = ask(head(f"GET {target} HTTP/1.1", Host="localhost:7080"), secure=secure)
    assert (answer.status, answer.why) == (200, "")
    _, fields, body = parse(answer.data)
    assert fields["Connection"] == "close"
    assert STYLE.encode() in body
    assert SCRIPT.encode() in body


def test_head_gets_what_get_gets_but_the_body() -> None:
    for first in ("/ HTTP/1.1", "/nothing HTTP/1.1", "/ HTTP/7"):
        got = ask(head(f"GET {first}", Host="localhost"))
        only_head = ask(head(f"HEAD {first}", Host="localhost"))
        assert got.status == only_head.status
        assert parse(got.data)[1]["Content-Length"] == parse(only_head.data)[1]["Content-Length"]


def test_old_and_lenient_ways_to_ask() -> None:
    for request in (
        b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\nhOST:localhost\n\n",
        b"GET / HTTP/1.1\r\nHost:\t localhost \t\r\nX:\r\nY: \xfc\r\nContent-Length: 0\r\n\r\n",
    ):
        assert ask(request).status == 200, request


def test_other_places_and_methods() -> None:
    for target in ("/favicon.ico", "/index.html", "//", "/%2e", "*", "x", "http://localhost/"):
        answer = ask(head(f"GET {target} HTTP/1.1", Host="localhost"))
        assert (answer.status, answer.why) == (404, "There is nothing here; the room is at /.")
    for method in ("POST", "PUT", "OPTIONS", "get", "X!"):
        answer = ask(head(f"{method} / HTTP/1.1", Host="localhost"))
        assert answer.status == 405
        assert parse(answer.data)[1]["Allow"] == "GET, HEAD"
    for first in ("OPTIONS * HTTP/1.1", "CONNECT localhost:80 HTTP/1.1"):
        assert ask(head(first, Host="localhost")).status == 405


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
        assert ask(head("GET / HTTP/1.1", Host=host), web_host(given)).status == 200


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


# Host and Origin


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:7080", "192.0.2.1", "[::1]", "[::1]:7080", "[2001:DB8::1]:80"),
        *("localhost", "LocalHost.:7080", "pc", "my_pc:7080", "pc.local", "pc.localhost:1"),
        "a.b.lan",
        *("pc.internal", "pc.home.arpa", "PC.Local.", "chat.example.org", "CHAT.example.ORG.:7080"),
        *("xn--bcher-kva.example", "x.LAN", "localhost:", "[::FFFF:192.0.2.1]:7080"),
    ],
)
def test_hosts_that_can_only_be_us(host: str) -> None:
    for request, status in (
        (head("GET / HTTP/1.1", Host=host), 200),
        (upgrade(Host=host, Origin=f"http://{host}"), 101),
    ):
        answer = ask(request, "Chat.Example.org.", "bücher.example", "no..host.ü")
        assert answer.status == status


def test_name_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Pc7.example.org")
    for host in ("pc7.example.org", "PC7", "pc7.example.org.:7080"):
        assert ask(head("GET / HTTP/1.1", Host=host)).status == 200
    assert ask(head("GET / HTTP/1.1", Host="pc8.example.org")).status == 421


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:7080", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("evillocal.com", "chat.example.org.evil.example", "x.chat.example.org", "example.org"),
        *("evil.example..", "1.2.3.x", "a.locallan", "a.lan.b"),
    ],
)
def test_other_names_may_be_somebody_elses(host: str) -> None:
    name = host.partition(":")[0]
    for request in (
        head("GET / HTTP/1.1", Host=host),
        upgrade(Host=host, Origin=f"http://{host}"),
    ):
        answer = ask(request, "chat.example.org")
        assert answer.status == 421
        assert name.rstrip(".").encode() in answer.data
        assert name.rstrip(".") in answer.why and "--web-host" in answer.why
        assert ask(request, secure=True).status in (200, 101, 403)


@pytest.mark.parametrize(
    "host",
    ["", ":7080", "a b", "a/b", "a@b", "a,b", "[::1", "[x]", "a:b", "ü", "a:1:2"],
)
def test_hosts_that_are_none(host: str) -> None:
    for secure in (False, True):
        assert ask(head("GET / HTTP/1.1", Host=host), secure=secure).status == 400
        assert ask(head("GET / HTTP/1.0", Host=host), secure=secure).status == 400


@pytest.mark.parametrize("secure", [False, True])
def test_what_checks_whether_we_are_up_need_not_know_our_name(secure: bool) -> None:
    for method in ("GET", "HEAD"):
        assert ask(head(f"{method} / HTTP/1.0"), secure=secure)[:2] == (200, "")
    assert ask(head("GET / HTTP/1.0", User_Agent="x"), secure=secure).status == 200
    assert ask(head("OPTIONS / HTTP/1.0"), secure=secure).status == 405
    for version in "123":
        assert ask(head(f"GET / HTTP/1.{version}"), secure=secure).status == 400
    assert ask(head("GET / HTTP/1.0", Host="evil.example")).status == 421
    assert ask(head("GET / HTTP/1.0", Origin="http://evil.example"), secure=secure).status == 403


def test_no_websocket_comes_of_http_1_0() -> None:
    for host in ("", "localhost:7080", "evil.example"):
        answer = ask(upgrade("GET / HTTP/1.0", Host=host, Origin=""), "evil.example")
        assert answer.status == 426


def test_exactly_one_host() -> None:
    assert ask(b"GET / HTTP/1.1\r\n\r\n").status == 400
    for other in ("localhost", "evil.example", ""):
        request = f"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\r\nhost: {other}\r\n\r\n".encode()
        assert ask(request).status == 400


@pytest.mark.parametrize(
    "host, origin",
    [
        ("localhost:7080", "http://localhost:7080"),
        ("LOCALHOST:7080", "http://LocalHost:7080"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("[::1]:7080", "http://[::1]:7080"),
        ("chat.example.org", "https://chat.example.org"),  # TLS ends at a proxy
        ("chat.example.org:443", "https://chat.example.org"),
    ],
)
def test_pages_of_ours(host: str, origin: str) -> None:
    assert ask(upgrade(Host=host, Origin=origin), "chat.example.org").status == 101
    assert ask(head("GET / HTTP/1.1", Host=host, Origin=origin), "chat.example.org").status == 200


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "http://localhost", "http://localhost:7081"),
        "http://127.0.0.1:7080",
        *("https://localhost", "null", "NULL", "file://", "ws://localhost:7080", "localhost:7080"),
        *("http://localhost:7080/", "http://localhost:7080@evil.example", "http://"),
        "http://:7080",
        *("http://localhost:7080.evil.example", "http://evil.example http://localhost:7080"),
        *("http://localhost:7080, http://localhost:7080", "", "chrome-extension://abc"),
        "http://<script>&amp;",
        "\xff" * 500,
    ],
)
def test_pages_of_others(origin: str) -> None:
    fields = {**UPGRADE, "Origin": origin}
    for request in (
        head("GET / HTTP/1.1", **fields),
        head("GET / HTTP/1.1", Host="localhost:7080", Origin=origin),
        head("POST / HTTP/1.1", Host="localhost:7080", Origin=origin),
    ):
        answer = ask(request)
        assert answer.status == 403
        assert answer.why.startswith("This room is only for its own page, not for one of ")


def test_two_origins() -> None:
    request = upgrade()[:-2] + b"Origin: http://localhost:7080\r\n\r\n"
    assert ask(request).status == 403


def test_page_in_the_clear_is_none_of_ours_under_tls() -> None:
    assert ask(upgrade(Origin="https://localhost:7080"), secure=True).status == 101
    assert ask(upgrade(), secure=True).status == 403
    assert (
        ask(upgrade(Origin="https://evil.example", Host="evil.example"), secure=True).status == 101
    )


# The WebSocket


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"Origin": ""},
        {"Upgrade": "WebSocket"},
        {"Connection": "upgrade"},
        {"Connection": "Upgrade , keep-alive"},
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"},
        {"Sec_WebSocket_Protocol": "chat"},
    ],
)
def test_upgrade(changed: dict[str, str]) -> None:
    answer = ask(upgrade(**changed))
    assert (answer.status, answer.why) == (101, "")
    start, fields, rest = parse(answer.data)
    assert start == "HTTP/1.1 101 Switching Protocols"
    assert fields["Sec-WebSocket-Accept"].encode() == ACCEPT
    assert (fields["Upgrade"], fields["Connection"]) == ("websocket", "Upgrade")
    assert len(fields) == 3
    assert rest == b""


@pytest.mark.parametrize(
    "status, changed",
    [
        (426, {"Sec_WebSocket_Version": ""}),
        (426, {"Sec_WebSocket_Version": "8"}),
        (426, {"Upgrade": ""}),
        (426, {"Upgrade": "websockets"}),
        (426, {"Connection": ""}),
        (426, {"Connection": "keep-alive"}),
        (400, {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ"}),
        (400, {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZTE="}),
        (400, {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25j"}),
        (400, {"Sec_WebSocket_Key": f"{KEY}, {KEY}"}),
        (404, {"first": "GET /chat HTTP/1.1"}),
        (405, {"first": "POST / HTTP/1.1"}),
        (200, {"first": "HEAD / HTTP/1.1"}),
        (200, {"Sec_WebSocket_Key": ""}),
    ],
)
def test_upgrade_that_is_none(status: int, changed: dict[str, str]) -> None:
    answer = ask(upgrade(**changed))
    assert answer.status == status
    assert bool(answer.why) == (status != 200)
    if status == 426:
        _, fields, _ = parse(answer.data)
        assert (fields["Upgrade"], fields["Sec-WebSocket-Version"]) == ("websocket", "13")
        assert b"Connection: close\r\n" in answer.data
        assert b"Connection: Upgrade\r\n" in answer.data


# What isn't HTTP


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x7fb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX\xfc: a\r\n\r\n",
        b"GET /\rx HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xfc HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: localhost\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.10\r\nHost: localhost\r\n\r\n",
        b"GET / http/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"G(T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        upgrade() + b"\x81\x80\0\0\0\0",
    ],
)
def test_requests_that_are_not_taken(request_: bytes) -> None:
    answer = ask(request_)
    assert answer.status == 400
    assert answer.why == "This is not a proper request."


def test_request_is_read_to_its_end_byte_by_byte() -> None:
    for request in (upgrade(), upgrade().replace(b"\r\n", b"\n")):
        for end in range(1, len(request)):
            assert is_http(request[:end])
            assert not is_whole(request[:end])
        assert ask(request).status == 101


@pytest.mark.parametrize(
    "start",
    [b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"\r\n"],
    ids=["in the path", "in a field", "after a blank line"],
)
def test_long_and_endless_request(start: bytes) -> None:
    endless = start + b"x" * (MAX_REQUEST + 1 - len(start))
    assert not is_whole(endless[:-1])
    for request in (endless, endless + b"\r\n\r\n", endless * 2):
        answer = ask(request)
        assert answer.status == 431
        assert answer.why


def test_request_of_the_limit() -> None:
    rest = MAX_REQUEST - len(upgrade()) - len("X: \r\n")
    assert ask(upgrade(X="x" * rest)).status == 101
    assert ask(upgrade(X="x" * (rest + 1))).status == 431


def test_what_other_servers_of_the_host_have_set_is_no_trouble() -> None:
    cookies = "; ".join(f"session{number}={'x' * 3000}" for number in range(8))
    assert ask(head("GET / HTTP/1.1", Host="localhost:7080", Cookie=cookies)).status == 200
    assert ask(upgrade(Cookie=cookies)).status == 101


def test_many_fields() -> None:
    for count, status in ((100, 101), (101, 400), (5000, 400)):
        more = b"a:\n" * (count - len(UPGRADE))
        assert ask(upgrade()[:-2] + more + b"\r\n").status == status


@pytest.mark.parametrize(
    "data", [b"G", b"GET ", b"GET /", b"GET / H", b"GET / HTTP/1.1\r", b"PROPFIND",
             b"POST http://x/ HTTP/1.1\r\n", b"OPTIONS * HTTP/1.0\n", b"PRI * HTTP/2.0\r\n",
             b"CONNECT x:80 HTTP/1.1\r\nx", b"hello", b"hello there", b"GET /" + b"x" * 9999,
             b"hello there you", b"GET /\xfc HTTP/1.1\n"]
)  # fmt: skip
def test_what_may_become_http(data: bytes) -> None:
    assert is_http(data)


@pytest.mark.parametrize(
    "data", [b"/name", b"hello\n", b"hello there\n", b"GET /\n", b"\r\n", b"GET / http/1.1\n",
             b"\x16\x03\x01", b"\xff\xfd", b"* hi", b"GET / there\r\n", b"John: hi\n",
             b"I LOVE HTTP/2\n", b"SSH-2.0-x\r\n"]
)  # fmt: skip
def test_what_is_not_http(data: bytes) -> None:
    assert not is_http(data)


# To https


def test_request_in_the_clear_is_sent_over_to_https() -> None:
    for target in ("/", "/a?b=c&d", "//evil.example/", "http://other.example/", "*"):
        asked = head(f"GET {target} HTTP/1.1", Host="Chat.example.org:7080")
        answer = ask(asked, "chat.example.org", secure=True, encrypted=False)
        start, fields, _ = parse(answer.data)
        assert start == "HTTP/1.1 307 Temporary Redirect"
        assert fields["Location"] == "https://chat.example.org:7080/"
    for bad in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"):
        answer = ask(bad, secure=True, encrypted=False)
        assert answer.status == 400
        assert b"Location" not in answer.data
