"""Part IV, what is around the text, without sockets: telnet, and what the first bytes give away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chat_server import MAX_LINE, Dismissed, Gone, Telnet, typed

BOM = b"\xef\xbb\xbf"


def ways(data: bytes) -> Iterator[list[bytes]]:
    """Yields some ways in which data can come in pieces: whole, byte by byte, cut at any place."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, min(len(data), 60)):
        yield [data[:at], data[at:]]


def receive(pieces: list[bytes], max_line: int = MAX_LINE) -> tuple[bytes, bytes]:
    """Returns the lines that come of the pieces, the unfinished last one too, and the answers."""
    one = Telnet(max_line)
    lines = answers = b""
    for piece in pieces:
        text, more = one.sift(piece)
        answers += more
        lines += one.feed(text)[0]
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
        (b"ab\xff\xf7c\n", b"ab\bc\n", b""),  # erase character
        (b"ab\xff\xf8c\n", b"ab\x15c\n", b""),  # erase line
        (b"\xffes a\xff\n", b"\xffes a\xff\n", b""),  # Latin 1, not telnet
        (b"a\r\0b\r\nc\rd\r\r\n\r\0", b"a\nb\nc\rd\r\n\n", b""),
        (b"a\r\xff\xf1\0b\n", b"a\nb\n", b""),
        *((b"a" + end, b"a\n", b"") for end in (b"\xff", b"\xff\xfd", b"\r")),
        (BOM + b"/name Bob\n", b"/name Bob\n", b""),
        (BOM + b"hi", b"hi\n", b""),
        (b"hi\n" + BOM + b"x\n", b"hi\n" + BOM + b"x\n", b""),  # only at the start of a stream
        (b" " + BOM + b"x\n", b" " + BOM + b"x\n", b""),
        (b"\xef\xbb\xbe\n", b"\xef\xbb\xbe\n", b""),
        ("\uff21\n".encode(), "\uff21\n".encode(), b""),  # begins with the same byte
    ],
)
def test_what_is_around_the_text_is_taken_out_however_it_is_split(
    data: bytes, text: bytes, answers: bytes
) -> None:
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
    assert typed(b"sec\xffret\x7f\x7f\x7fret\r\n") == b"sec\xffret"


# The first bytes


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /path?query=1 HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"M-SEARCH * HTTP/1.1\r\n",
        b"any /lower HTTP/2\n",
        b"GET http://localhost:7007/ HTTP/1.1\r\n",
        b"CONNECT localhost:7007 HTTP/1.1\r\n",
        b"GET /\r\n",  # HTTP/0.9
        b"POST /" + b"x" * 9000 + b" HTTP/1.1\r\n",
        b"GET /" + b"x" * 100_000,
        b"GET /" + b"x" * (MAX_LINE - 8) + b" HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"SSH-1.99-scan\n",
        b"EHLO scanner.example.org\r\nMAIL FROM:<a@b.example>\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"PASS hunter2\r\nNICK bob\r\nUSER bob 0 * :Bob\r\n",
        b"PASS :open sesame\r\nUSER bob 0 * :Bob\r\n",
        b"NICK bob\nUSER bob 0 * :Bob\n",
        b"OPTIONS / RTSP/1.0\r\nCSeq: 1\r\n",
        b"OPTIONS sip:nm SIP/2.0\r\n",
        b"CAP LS 302\r\nPASS hunter2\r\n",
        b"CAP LS\r\n",
    ],
    ids=lambda line: line[:12].decode(),
)
@pytest.mark.parametrize("before", [b"", BOM, b"\xff\xfb\x1f"], ids=["", "mark", "telnet"])
def test_other_protocols_are_found_out_before_anything_is_heard(
    before: bytes, request_line: bytes
) -> None:
    data = before + request_line + b"Host: x\r\n\r\n/name Boss\nrun this\n"
    head, rest = data[:300], data[300:]
    bits = [head[at : at + 1] for at in range(len(head))]
    bits += [rest[at : at + 999] for at in range(0, len(rest), 999)]
    is_one_line = b"\n" not in request_line[:-1]  # else they have to come together
    for pieces in ([data], [data[:20], data[20:]], bits) if is_one_line else ([data],):
        for max_line in (30, MAX_LINE):
            one = Telnet(max_line)
            with pytest.raises(Dismissed) as dismissed:
                for piece in pieces:
                    text, _ = one.sift(piece)
                    assert one.feed(text)[0] == b""
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
