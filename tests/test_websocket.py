"""The frames of a WebSocket, without I/O."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from browser import masked

from chat_server import (
    Telnet,
    WebSocket,
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
LETTERS = "aé本😀z"  # of 1, 2, 3, 4 bytes


class Heard:
    """What a WebSocket makes of a stream that comes in pieces."""

    def __init__(self, max_line: int = 1000) -> None:
        self.socket = WebSocket(max_line)
        self.lines = b""
        self.answers: list[bytes] = []
        self.too_long = 0

    def take(self, data: bytes) -> None:
        text, answer = self.socket.sift(data)
        chunk, too_long = self.socket.feed(text)
        self.lines += chunk
        self.too_long += too_long
        if answer:
            self.answers.append(answer)
        kept = self.socket
        assert len(kept.held) <= 6 + 125
        assert len(kept.tail) <= 3
        assert len(kept.partial) <= kept.max_line


def hear(stream: bytes, sizes: Sequence[int] = (), max_line: int = 1000) -> Heard:
    """Has a stream heard in pieces of these sizes, the rest at once."""
    heard = Heard(max_line)
    for size in sizes:
        heard.take(stream[:size])
        stream = stream[size:]
    heard.take(stream)
    return heard


def in_all_ways(stream: bytes) -> list[Heard]:
    """Has a stream heard at once, byte by byte, and in two pieces that meet anywhere."""
    cuts = range(1, len(stream))
    return [hear(stream), hear(stream, [1] * len(stream)), *(hear(stream, [cut]) for cut in cuts)]


def said(*texts: str) -> bytes:
    return b"".join(masked(TEXT, text.encode()) for text in texts)


# Text


def test_each_message_is_a_line_however_it_comes() -> None:
    for heard in in_all_ways(said("one", LETTERS, "x" * 130)):
        assert heard.lines == f"one\n{LETTERS}\n{'x' * 130}\n".encode()
        assert (heard.answers, heard.socket.ended, heard.socket.finish()) == ([], False, b"")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_payload_of_any_size(size: int) -> None:
    text = b"0123456789" * (size // 10) + b"x" * (size % 10)
    assert hear(masked(TEXT, text), max_line=70000).lines == text + b"\n"
    if size < 200:
        in_pieces = hear(masked(TEXT, text), [1] * size)
        assert in_pieces.lines == text + b"\n"


def test_empty_message_is_an_empty_line() -> None:
    empty = masked(TEXT, b"", False) + masked(CONTINUATION, b"", False) + masked(CONTINUATION, b"")
    for heard in in_all_ways(said("", "a", "") + empty + said("b")):
        assert heard.lines == b"\na\n\n\nb\n"


def test_message_of_several_lines() -> None:
    for heard in in_all_ways(said("a\nb\nü\n", "c")):
        assert heard.lines == "a\nb\nü\nc\n".encode()


def test_character_can_be_cut_anywhere() -> None:
    text = LETTERS.encode()
    for cut in range(len(text) + 1):
        for empty in (b"", masked(CONTINUATION, b"", False), masked(PING, b"between")):
            stream = masked(TEXT, text[:cut], False) + empty + masked(CONTINUATION, text[cut:])
            for heard in in_all_ways(stream):
                assert heard.lines == text + b"\n"


def test_unfinished_message_is_the_last_line_if_the_peer_closes() -> None:
    for heard in in_all_ways(
        said("one") + masked(TEXT, "two\nthr本".encode(), False) + masked(CLOSE, b"")
    ):
        assert heard.lines == b"one\ntwo\n"
        assert heard.socket.finish() == "thr本\n".encode()


def test_what_is_too_long_is_skipped_and_holds_no_memory() -> None:
    heard = Heard(max_line=10)
    heard.take(said("fine") + b"\x01\xff" + (1 << 62).to_bytes(8, "big") + b"\0\0\0\0")
    for _ in range(100):
        heard.take(b"x" * 1000)
    assert (heard.lines, heard.too_long, heard.socket.ended) == (b"fine\n", 1, False)
    heard = Heard(max_line=10)
    heard.take(masked(TEXT, b"x" * 9, False))
    for _ in range(100):
        heard.take(masked(CONTINUATION, b"y", False))
    heard.take(masked(CONTINUATION, b"") + said("0123456789", "0123456789x", "fine"))
    assert (heard.lines, heard.too_long) == (b"0123456789\nfine\n", 2)


# Control frames


def test_ping_is_answered_between_fragments_too() -> None:
    stream = masked(TEXT, b"a", False) + masked(PING, b"x" * 125) + masked(PONG, b"unasked")
    stream += masked(CONTINUATION, b"b") + masked(PING, b"")
    assert hear(stream, [1] * len(stream)).answers == [b"\x8a\x7d" + b"x" * 125, b"\x8a\0"]
    for heard in in_all_ways(stream):
        assert heard.lines == b"ab\n"
        assert heard.answers[-1] == b"\x8a\0"


def test_last_of_many_pings_is_answered_at_once() -> None:
    pings = b"".join(masked(PING, b"%d" % number) for number in range(1000))
    assert hear(pings + said("x")).answers == [b"\x8a\x03999"]


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]
)
def test_close_is_answered_with_its_own_code(code: int) -> None:
    close = masked(CLOSE, code.to_bytes(2, "big") + "gréat".encode())
    for heard in in_all_ways(said("a") + close + said("not heard")):
        assert heard.lines == b"a\n"
        assert (heard.socket.ended, heard.socket.code, heard.socket.why) == (True, code, "")
        assert heard.socket.farewell(1001) == b"\x88\x02" + code.to_bytes(2, "big")


def test_close_without_a_code_is_a_normal_one() -> None:
    heard = hear(masked(CLOSE, b"") + said("not heard"))
    assert (heard.lines, heard.socket.ended, heard.socket.why) == (b"", True, "")
    assert heard.socket.code == 1000


def test_frames_of_the_server() -> None:
    for size, header in (
        (0, b"\x81\0"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\0\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\0\0\0\0\0\1\0\0"),
    ):
        assert WebSocket.encode(b"x" * size) == header + b"x" * size
    assert WebSocket(1000).farewell(1001) == b"\x88\x02\x03\xe9"


# Faults

UNMASKED = b"\x81\x03abc"
ZEROS = b"\0\0\0\0"  # a mask that changes nothing
UNFINISHED_AND_FAULT = masked(TEXT, b"x", False) + UNMASKED
FAULTS = {
    "no mask": (UNMASKED, 1002, "sends a frame without a mask"),
    "no mask, ping": (b"\x89\x00", 1002, "sends a frame without a mask"),
    **{
        f"RSV {bit:#x}": (bytes([0x81 | bit]) + b"\x80" + ZEROS, 1002, "uses an extension")
        for bit in (0x40, 0x20, 0x10)
    },
    **{
        f"opcode {opcode}": (masked(opcode, b""), 1002, "uses an extension")
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "ping of 126": (masked(PING, b"x" * 126), 1002, "too long"),
    "close of 65536": (b"\x88\xff" + (1 << 16).to_bytes(8, "big"), 1002, "too long"),
    **{
        f"fragment of {opcode}": (masked(opcode, b"", False), 1002, "a control frame in fragments")
        for opcode in (CLOSE, PING, PONG)
    },
    "continuation": (masked(CONTINUATION, b"x"), 1002, "goes on with none"),
    "first continuation": (masked(CONTINUATION, b"x", False), 1002, "goes on with none"),
    "binary": (masked(BINARY, b"x"), 1003, "sends binary frames"),
    "binary fragment": (masked(BINARY, b"", False), 1003, "sends binary frames"),
    "close of 1 byte": (masked(CLOSE, b"\x03"), 1002, "a close code that does not exist"),
    **{
        f"close {code}": (masked(CLOSE, code.to_bytes(2, "big")), 1002, "a close code")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
    },
    "reason": (masked(CLOSE, b"\x03\xe8\xff"), 1007, "gives a reason that is not UTF-8"),
    "half a reason": (masked(CLOSE, b"\x03\xe8\xc3"), 1007, "gives a reason that is not UTF-8"),
    "bad text": (masked(TEXT, b"\xff"), 1007, "sends text that is not UTF-8"),
    "half a character": (masked(TEXT, b"x\xe6\x9c"), 1007, "sends text that is not UTF-8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_code_and_drops_only_what_is_not_whole(fault: str) -> None:
    stream, code, why = FAULTS[fault]
    for heard in in_all_ways(said("one", "two") + stream + said("not heard") + masked(PING, b"")):
        assert heard.lines == b"one\ntwo\n"
        assert (heard.socket.ended, heard.socket.code) == (True, code)
        assert why in heard.socket.why  # for which an unfinished line is none


def test_character_cannot_go_on_in_the_next_message() -> None:
    for heard in in_all_ways(said("x") + masked(TEXT, b"y\xc3") + masked(TEXT, b"\xa9")):
        assert (heard.lines, heard.socket.code) == (b"x\n", 1007)


def test_fault_inside_a_message_drops_the_message() -> None:
    outer = said("one") + masked(TEXT, b"two\nunfinished", False)
    for inner in (masked(TEXT, b"inner"), masked(TEXT, b"inner", False), UNMASKED, b"\x8b\x80"):
        for heard in in_all_ways(outer + inner + masked(CLOSE, b"")):
            assert heard.lines == b"one\ntwo\n"
            assert heard.socket.code == 1002
            assert heard.socket.why, "for which an unfinished line is none"


def test_first_fault_counts() -> None:
    assert hear(masked(TEXT, b"\xff") + UNMASKED).socket.code == 1007
    assert hear(masked(TEXT, b"\xff") + masked(CLOSE, b"\x03\xe8")).socket.code == 1007
    assert hear(UNMASKED + masked(TEXT, b"\xff")).socket.code == 1002
    assert hear(masked(CLOSE, b"\x03\xe8") + UNMASKED).socket.code == 1000


@pytest.mark.parametrize(
    "bad",
    [
        *(b"\x80", b"\xbf", b"\xc0", b"\xc1", b"\xf5", b"\xff", b"\xc3(", b"\xe6\x9c(", b"\xe6("),
        *(
            b"\xed\xa0\x80",  # a surrogate, for which Python waits to see all of it
            b"\xe0\x80",
            b"\xe0\x9f",
            b"\xf0\x80",
            b"\xf0\x8f",
            b"\xf4\x90",
        ),
        *(b"\xf0\x9f(", b"\xf0\x9f\x98("),
    ],
)
def test_text_is_refused_at_the_first_byte_that_cannot_be_right(bad: bytes) -> None:
    text = LETTERS.encode() + bad
    header = b"\x01\xff" + (1 << 40).to_bytes(8, "big") + bytes(4)
    heard = hear(header + text[:-1])
    assert not heard.socket.ended
    heard.take(text[-1:])
    assert (heard.socket.ended, heard.socket.code) == (True, 1007)
    fragments = b"".join(masked(CONTINUATION, bytes([byte]), False) for byte in text)
    heard = hear(masked(TEXT, b"", False) + fragments)
    assert (heard.socket.ended, heard.socket.code) == (True, 1007)


# Any stream


def random_stream(chance: random.Random) -> tuple[bytes, bytes, list[bytes]]:
    """Returns messages in fragments with control frames between them, their text, the pings."""
    stream, lines, pings = b"", b"", []
    for _ in range(chance.randrange(1, 15)):
        letters = chance.choices("ab \té本😀\x00\x1b", k=chance.choice([0, 1, 5, 60, 130, 400]))
        text = "".join(letters).encode()
        cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.choice([0, 0, 1, 3])))
        edges = [0, *cuts, len(text)]
        for number, (start, end) in enumerate(zip(edges, edges[1:])):
            if chance.random() < 0.3:
                opcode, payload = (
                    chance.choice([PING, PONG]),
                    bytes(chance.choices(range(256), k=9)),
                )
                stream += masked(opcode, payload, key=bytes(chance.choices(range(256), k=4)))
                pings += [payload] if opcode == PING else []
            final = number == len(edges) - 2
            key = bytes(chance.choices(range(256), k=4))
            stream += masked(CONTINUATION if number else TEXT, text[start:end], final, key)
        lines += text + b"\n"
    return stream, lines, pings


def test_any_messages_in_any_fragments_and_pieces_give_their_lines() -> None:
    for seed in range(200):
        check_any_messages(random.Random(seed))


def check_any_messages(chance: random.Random) -> None:
    stream, lines, pings = random_stream(chance)
    ends = [(stream, code) for stream, code, _ in FAULTS.values()]
    end, code = chance.choice([(masked(CLOSE, b""), 1000), (UNFINISHED_AND_FAULT, 1002), *ends])
    stream += end
    sizes: list[int] = []
    while sum(sizes) < len(stream):
        sizes.append(chance.choice([1, 2, 3, 50, 500]))
    heard = hear(stream + said("not heard"), sizes)
    assert heard.lines == lines
    assert (heard.socket.ended, heard.socket.code) == (True, code)
    answered = iter(pings)
    assert all(answer[2:] in answered for answer in heard.answers), "not in their order"
    everything = hear(stream, [1] * len(stream))
    assert everything.lines == lines
    assert everything.answers == [b"\x8a" + bytes([len(ping)]) + ping for ping in pings]


def test_input_has_the_same_members_as_a_websocket() -> None:
    one, other = Telnet(1000), WebSocket(1000)
    assert not hasattr(one, "__dict__") and not hasattr(other, "__dict__")
    assert (one.ended, other.ended) == (False, False)
    assert (one.encode, one.farewell(1000)) == (None, b"")
    assert one.max_read > other.max_read
