"""Line framing, without I/O: the same class stands in the room and in its client."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest

import chat_client
import chat_server
import echo_server


@pytest.fixture(params=[chat_server, chat_client], ids=lambda module: module.__name__)
def framer(request: pytest.FixtureRequest) -> Any:
    return request.param.LineFramer(10)


def test_lines_come_out_whole_whatever_pieces_they_come_in_in(framer: Any) -> None:
    assert framer.feed(b"one\ntw") == (b"one\n", 0)
    assert framer.feed(b"o") == (b"", 0)
    assert framer.feed(b"\n\nthree\r\n") == (b"two\n\nthree\r\n", 0)
    assert framer.finish() == b""


def test_unfinished_last_line_gets_its_newline_at_the_end(framer: Any) -> None:
    framer.feed(b"one\ntwo")
    assert framer.finish() == b"two\n"
    assert framer.finish() == b""


def test_line_of_the_limit_passes_and_one_byte_more_is_skipped(framer: Any) -> None:
    assert framer.feed(b"0123456789\n") == (b"0123456789\n", 0)
    assert framer.feed(b"a\n0123456789x\nb\n") == (b"a\nb\n", 1)
    assert framer.feed(b"0123456789x\n") == (b"", 1)


def test_endless_line_is_counted_once_and_costs_nothing(framer: Any) -> None:
    assert framer.feed(b"x" * 11) == (b"", 1)
    for _ in range(100):
        assert framer.feed(b"x" * 1000) == (b"", 0)
        assert framer.partial == b""
    assert framer.feed(b"xx\nfine\n") == (b"fine\n", 0)


def test_endless_line_at_the_end_of_the_stream_is_not_delivered(framer: Any) -> None:
    framer.feed(b"x" * 11)
    assert framer.finish() == b""


def test_any_stream_in_any_pieces_gives_what_splitting_it_gives() -> None:
    for seed in range(200):
        check_any_stream(random.Random(seed))


def check_any_stream(chance: random.Random) -> None:
    limit = chance.choice([1, 5, 10, 100])
    framer = chat_server.LineFramer(limit)
    stream = b"".join(
        bytes(chance.choices(b"ab\r\x00\xff", k=chance.randrange(limit * 2))) + b"\n"
        for _ in range(50)
    )
    lines = stream.split(b"\n")[:-1]
    got, skipped, rest = b"", 0, stream
    while rest:
        size = chance.choice([1, 2, 3, 50, 500])
        chunk, too_long = framer.feed(rest[:size])
        rest = rest[size:]
        assert chunk == b"" or chunk.endswith(b"\n")
        assert len(framer.partial) <= limit
        got += chunk
        skipped += too_long
    kept = [line for line in lines if len(line) <= limit]
    assert got == b"".join(line + b"\n" for line in kept)
    assert skipped == len(lines) - len(kept)


def test_logged_lines_show_only_what_can_be_printed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = echo_server.Connection(Any, "peer")
    for line, shown in (
        ('it\'s "plain" \\x1b ü 本'.encode(), 'it\'s "plain" \\x1b ü 本'),
        (b"\x1b[31m it's \\n\tred", "\\x1b[31m it's \\n\\tred"),
        ("\u2028\u202e \x85".encode(), "\\u2028\\u202e \\x85"),
    ):
        chat_server.log_said(line + b"\n")
        assert caplog.messages.pop() == f"said: {shown}"
        client.log_lines(line + b"\r\n")
        assert caplog.messages.pop() == f"peer: {shown}"
        caplog.clear()
        assert shown.isprintable()


def test_an_endless_line_that_is_logged_costs_no_memory() -> None:
    no_socket: Any = None
    client = echo_server.Connection(no_socket, "peer")
    for _ in range(3):
        client.log_lines(b"x" * 10 * echo_server.MAX_LOGGED_LINE)
    assert len(client.read_buffer) == echo_server.MAX_LOGGED_LINE


def test_a_hundred_lines_are_logged_of_what_comes_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    no_socket: Any = None
    for log_lines in (chat_server.log_said, echo_server.Connection(no_socket, "peer").log_lines):
        caplog.clear()
        log_lines(b"x\n" * 100)
        assert len(caplog.messages) == 100
        log_lines(b"x\n" * 150)
        assert len(caplog.messages) == 201
        assert caplog.messages[-1].endswith(": (50 more lines)")
