"""What is around the text, and what a text looks like, without sockets."""

from __future__ import annotations

import math
import os
import random
import re
import unicodedata
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from test_room import Hall

import chat_server
from chat_server import (
    LOOK_AT,
    MAX_LINE,
    MAX_UNREAD,
    TOLD_COST,
    Dismissed,
    Gone,
    Member,
    Room,
    Telnet,
    check_voice,
    clean,
    identity,
    is_clean,
    take_back,
    typed,
    valid_name,
)

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def hall() -> Hall:
    return Hall()


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


# Telnet


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
        (b"a\xff", b"a\n", b""),
        (b"a\xff\xfd", b"a\n", b""),
        (b"a\r", b"a\n", b""),
    ],
)
def test_telnet_is_taken_out_and_refused_however_it_is_split(
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


def test_refusals_do_not_go_back_and_forth() -> None:
    one, other = Telnet(100), Telnet(100)
    _, answers = one.sift(b"\xff\xfd\x01\xff\xfb\x03")
    assert answers
    assert other.sift(answers) == (b"", b"")


def test_clean_data_is_passed_on_untouched() -> None:
    one = Telnet(100)
    data = b"hello\n" * 100
    assert one.sift(data)[0] is data


# The first bytes


@pytest.mark.parametrize(
    "data, text",
    [
        (BOM + b"/name Bob\n", b"/name Bob\n"),
        (BOM + b"hi", b"hi\n"),
        (b"hi\n" + BOM + b"x\n", b"hi\n" + BOM + b"x\n"),  # only at the start of a stream
        (b" " + BOM + b"x\n", b" " + BOM + b"x\n"),
        (b"\xef\xbb\xbe\n", b"\xef\xbb\xbe\n"),
        ("\uff21\n".encode(), "\uff21\n".encode()),  # begins with the same byte
    ],
)
def test_a_byte_order_mark_is_dropped_at_the_start_alone(data: bytes, text: bytes) -> None:
    for pieces in ways(data):
        assert receive(pieces) == (text, b"")


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\n",
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
    ],
    ids=lambda line: line[:12].decode(),
)
@pytest.mark.parametrize("max_line", [30, MAX_LINE])
def test_http_is_found_out_before_anything_is_heard(request_line: bytes, max_line: int) -> None:
    data = request_line + b"Host: x\r\n\r\n/name Boss\nrun this\n"
    head, rest = data[:300], data[300:]
    bits = [head[at : at + 1] for at in range(len(head))]
    bits += [rest[at : at + 999] for at in range(0, len(rest), 999)]
    for pieces in [data], [data[:20], data[20:]], bits:
        one = Telnet(max_line)
        with pytest.raises(Dismissed) as dismissed:
            for piece in pieces:
                text, _ = one.sift(piece)
                assert one.feed(text)[0] == b""
        assert "speaks HTTP" in dismissed.value.note


@pytest.mark.parametrize(
    "probe",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"SSH-1.99-scan",
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
)
def test_other_protocols_are_found_out_before_anything_is_heard(probe: bytes) -> None:
    for before in (b"", BOM, b"\xff\xfb\x1f"):
        with pytest.raises(Dismissed) as dismissed:
            Telnet(MAX_LINE).sift(before + probe)
        assert "speaks HTTP, SSH, IRC or the like" in dismissed.value.note
    assert receive([b"hi\n" + probe])[0] == b"hi\n" + probe.replace(b"\r", b"").rstrip() + b"\n"


@pytest.mark.parametrize(
    "text",
    [
        b"SSH-2 is what you need\n",
        b"SSH is down\nSSH-2.0 too\n",
        b"ssh-2.0-x\n",
        b"EHLO\n",
        b"EHLO to all of you\n",
        b"ehlo bob\n",
        b"HELO Bob\n",
        b"*1\nsee below\n",
        b"*waves*\n$4 each\n",
        b"*1 costs $4\n",
        b"PASS hunter2\n",
        b"PASS me the salt\nplease\n",
        b"NICK bob\nPASS it on\n",
        b"NICK are you there?\nUSERS are waiting\n",
        b"CAP LSD\n",
        b"USER bob\n",
        b"OPTIONS are: SIP/2.0 or nothing\n",
        b"PING\n",
        b"HELP\n",
        b"QUIT\n",
        b"GET me some coffee\n",
        b"PUT / there\n",
        b"GET /etc/motd and read it\n",
        b"LOL *hugs*\n",
        b"LOOK http://example.com/\n",
        b"I LOVE HTTP/2\n",
        b"SEE /s\n",
        b"GET\n",
        b"hi\nGET / HTTP/1.1\n",
        b"\nGET / HTTP/1.1\n",
        b"GET",
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


@pytest.mark.parametrize("seed", range(4))
def test_a_megabyte_of_random_bytes_does_others_no_harm(seed: int) -> None:
    """However it is split, the lines that others get are whole, clean, valid UTF-8."""
    chance = random.Random(seed)
    alphabets = [bytes(range(256)), b"\xff\xfa\xf0\xfd\r\n\0\b", b"\xff\xfb\xe2\x80\xa8a\n:* /"]
    pieces = []
    for _ in range(200):
        size = chance.choice([1, 1, 2, 3, 100, 16_384])
        pieces.append(bytes(chance.choices(chance.choice(alphabets), k=size)))
    hall = Hall()
    one, two = hall.join(), hall.join("Two")
    one.name, one.prefix = chance.choice([("", b""), ("One", b"One: ")])
    hall.room.names.update({identity(one.name): one} if one.name else {})
    source = Telnet(MAX_LINE)
    source.in_first_line = False
    for piece in pieces:
        text, answers = source.sift(piece)
        assert len(source.held) <= 5
        assert all(command[0] in b"\xfc\xfe" for command in answers.split(b"\xff")[1:] if command)
        rest = source.feed(text)[0]
        while rest and one in hall.room.members:
            rest = hall.say(one, rest)
            for line in hall.heard(two):  # decodes it
                assert line == clean(line.encode())
                assert line.strip(" \t")
                assert len(line.encode()) <= MAX_LINE + len(one.prefix)
                assert line.startswith(("* ", one.prefix.decode()))


# Lines


@pytest.mark.parametrize(
    "typed_keys, shown",
    [
        ("hekk\b\bllo", "hello"),
        ("hekk\x7f\x7fllo", "hello"),
        ("\u672c\u672c\b", "\u672c"),
        ("\U0001f600\x7fx", "x"),
        ("ab\b\b\b\b\bc", "c"),
        ("\x07\b", ""),
        ("a\x07\bb", "b"),  # what isn't shown isn't taken back
        ("abc\x15de", "de"),
        ("a\tb\b", "a\t"),
        ("x\u2028Ann: hi\u2029", "x Ann: hi "),
    ],
)
def test_keys_that_take_back_do_so(typed_keys: str, shown: str) -> None:
    assert clean(typed_keys.encode()) == shown
    assert not is_clean(typed_keys.encode())
    assert is_clean(shown.encode())


def test_take_back_leaves_all_else_as_it_is() -> None:
    assert take_back("a\x00b\x1bc") == "a\x00b\x1bc"
    assert typed(b"sec\xffret\x7f\x7f\x7fret\r\n") == b"sec\xffret"


@pytest.mark.parametrize("name", ["", "Bob"])
@pytest.mark.parametrize("history", [0, 10])
def test_an_empty_line_is_nothing(name: str, history: int) -> None:
    hall = Hall(history=history)
    bob, ann = hall.join(name), hall.join()
    for chunk in (b"\n", b"\n\n", b" \n\t \n", b"\x07\n", b"\r\n", b"x\b\n", b"//\b\b\n"):
        hall.say(bob, chunk)
        hall.say(bob, b"Bob: \nBob:   \n" if name else b"\n")
    assert hall.heard(ann) == hall.heard(bob) == []
    assert not hall.room.history or hall.room.history.pieces() == []
    hall.say(bob, b"a\n\nb\n")
    hall.say(bob, b"Bob: a\nBob: \nBob: b\n" if name else b"c\n \nd\n")
    assert len(hall.heard(ann)) == 4


def test_a_private_message_with_nothing_in_it_is_explained(hall: Hall) -> None:
    john, ann = hall.join("John"), hall.join("Ann")
    hall.say(john, "/msg Ann: \n")
    assert hall.heard(john) == ["* a private message goes like this: /msg NAME: TEXT"]
    assert hall.heard(ann) == []


def test_quit_is_answered(hall: Hall) -> None:
    for word in ("/quit", "/exit"):
        one = hall.join()
        hall.say(one, f"{word}\nnot heard\n")
        assert hall.heard(one) == ["* bye"]
        assert one not in hall.room.members


@pytest.mark.parametrize("name", ["", "John"])
def test_the_text_that_goes_out_counts(name: str) -> None:
    hall = Hall(max_line=30)
    one, two = hall.join(name), hall.join("Two")
    hall.say(one, b"x" * 30 + b"\n" + b"\x80" * 10 + b"\n" + b"\x80" * 11 + b"\n")
    prefix = f"{name}: " if name else ""
    assert hall.heard(two) == [prefix + "x" * 30, prefix + "\ufffd" * 10]
    assert hall.heard(one) == ["* too long: a line has at most 30 bytes"]


# What a line looks like

COLONS = "\u2236\ua789\u2d7f\ufe55\uff1a\u05c3\u0703\u1365\u1803\u1809\u205a\u02d0\u02f8\u0589"
COLONS += "\ua4fd\u0903\u0a83\u1038\u302f\U00010781\U000e003a"
ASTERISKS = "\u2217\u204e\u066d\uff0a\ufe61\u26b9\u2731\u2733\u22c6\u20f0\u0359\U0001f7b6"
TAKEN = ["Ann", "John Smith", "Zo\u00eb", "\u0416\u0435\u043d\u044f", "\ud55c\ub098"]
TAKEN += ["\u674e\u96f7", "Lab 3", "\u0930\u093e\u092e"]
TAKEN += ["\u0639\u0644\u06cc\u200c\u0631\u0636\u0627", "O'Neil"]
TAKEN += ["\u0e2a\u0e21\u0e0a\u0e32\u0e22", "\u3060\u3044\u304d"]
TAKEN += ["Stra\u00dfe", "H\u01b0ng"]


@pytest.mark.parametrize(
    "line",
    [
        # what has no width where it stands
        *(f"{mark}Ann: I quit" for mark in "\u0301\u20dd\u11a8\u1160\ud7b0\u0903\u200b\ufe0f"),
        *(f"{mark}* Ann left" for mark in "\u0301\u20dd\u11a8\u1160\ud7b0\u0903\u200b\ufe0f"),
        "\u0301\u11a8\u0301Ann: hi",
        " \u0301 \u0301Ann: hi",
        pytest.param("\u0301" * 1000 + "Ann: hi", id="long"),
        pytest.param("\u02d0\u2800" * 1000 + "Ann: hi", id="longer"),
        "An\u11a8n: hi",
        "A\u0304nn: hi",
        "A\u200cnn: hi",
        "* \u3164Ann left",
        "*\u200b Ann left",
        # what may look like a colon, or an asterisk and a blank
        *(f"Ann{colon} hi" for colon in COLONS),
        "Ann\ufe30 hi",
        *(f"Ann (private){colon} hi" for colon in COLONS),
        *(f"\u0930\u093e\u092e{colon} hi" for colon in COLONS),
        *(f"{asterisk} Ann left" for asterisk in ASTERISKS),
        *(f" {asterisk}\u2800Ann left" for asterisk in ASTERISKS),
        "\U0001d134 * Ann left",
        "Ann (priv\u0430te): hi",
        "A.n-n' : hi",
        "\u24b6\u24dd\u24dd\u2236 hi",
        "\U0001d400\U0001d427\U0001d427: hi",
        # a taken name that is written in another way
        "Zoe\u0308: hi",
        "Zoe\u200d\u0308\u2236 hi",
        "Z\u0301oe\u0308: hi",
        "STRASSE: hi",
        "\u1112\u1161\u11ab\u1102\u1161: hi",
        "\u0639\u0644\u06cc\u0631\u0636\u0627: hi",
        "O\u2019Neil: hi",
        "\u305f\u3099\u3044\u304d: hi",
        # what turns it around
        "\u202eAnn: hi",
        "An\u202bn: hi",
        "\u200b\u0301 \u2067* Ann left",
    ],
)
def test_nobody_passes_for_another(hall: Hall, line: str) -> None:
    for name in TAKEN:
        hall.join(name)
    one, two = hall.join(), hall.join()
    hall.say(one, f"fine\n{line}\nfine too\n")
    assert hall.heard(two) == ["fine", "fine too"]
    assert len(hall.heard(one)) == 1


BLANKS = " \t\u00a0\u3000\u2003"
UNSEEN = "\u200b\u00ad\u034f\ufe0f\u2060\u2800\u3164\u1160\u115f\ud7b0\U000e0020\u200c\u200d\u00a0"
UNSEEN += "\u202a\u202d\u202e\u2067\u200f\u0301\u0323\u20dd\u0338\u0a83\u302f\U0001d159"
# All that is beyond ASCII and no letter. A half of the surrogates is broken UTF-8.
ODD = [chr(code) for code in range(0xA0, 0x1_0000) if not 0xD800 <= code < 0xE000]
ODD = [one for one in ODD if not re.search(r"[\w\s]", one + unicodedata.normalize("NFKC", one))]
ODD = [one for one in ODD if not re.match(chat_server.TURNING, one)]
ODD = [one for one in ODD if not re.match(f"[{chat_server.PUNCTUATION}{chat_server.JOINERS}]", one)]


def stays(char: str) -> bool:
    """Says whether a character belongs to the letter before it."""
    return "\u1160" <= char <= "\u11ff" or unicodedata.category(char).startswith("M")


def trick(chance: random.Random, name: str) -> str:
    """Returns a line that may look as if it began with a name and a colon."""
    form: Any = chance.choice(["NFC", "NFC", "NFD", "NFKD"])
    shown = unicodedata.normalize(form, name)
    shown = chance.choice([shown, shown, shown.upper(), shown.lower(), shown.title()])
    if shown.isascii() and chance.random() < 0.3:  # in fullwidth
        shown = "".join(chr(ord(char) + 0xFEE0) if char > " " else char for char in shown)
    private = chance.choice(["", "", "", " (private)", "(PRIVATE)", "\u00a0\uff08private)"])
    colon = chance.choice([":", chance.choice(COLONS), chance.choice(ODD)])
    line = [*shown, *chance.choice(["", " ", "  "]), *private, colon]
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        what = chance.choice([*UNSEEN, *BLANKS, chance.choice(ODD)])
        place = chance.randrange(len(line))
        while stays(line[place][0]):
            place -= 1
        if name.isascii() or what in UNSEEN + BLANKS:  # else it may well be another word
            line.insert(place, what * chance.choice([1, 1, 1, 3, 100]))
    return "".join(line) + chance.choice([" hi", "hi", " \u4f60\u597d", ""])


@pytest.mark.parametrize("seed", range(10))
def test_combined_tricks(seed: int) -> None:
    """Some 3,000 of them; set TRICKS to try more."""
    chance = random.Random(seed)
    hall = Hall()
    for name in TAKEN:
        hall.join(name)
    one, two = hall.join(), hall.join()
    for _ in range(int(os.environ.get("TRICKS", "300"))):
        line = trick(chance, chance.choice(TAKEN))
        hall.say(one, f"{line}\n")
        assert hall.heard(two) == [], ascii(line)


@pytest.mark.parametrize(
    "line",
    [
        "\u00e9t\u00e9: oui",
        "2 * 3",
        "\u2217bold\u2217",
        "*\u00e9*",
        "Anna: hi",
        "Ann, hi \U0001f600",
        "Ann\u2019s here: \u201clook\u201d",
        "Ann (she is 5) says hi",
        "I saw Ann: \u2026",
        "- Ann: \u00bd",
        "> Ann: I quit",
        "\u2018Ann: hi\u2019",
        "\U0001f600 hi",
        "\U0001f600\U0001f600: hi",
        "\u2764\ufe0f hi",
        "1\ufe0f\u20e3 one: \u2022",
        "\u2022 item",
        "\u2014 so?",
        "\u00ab Oui \u00bb: non",
        "\u201cQuoted\u201d, she said: \u2026",
        pytest.param("\u250c\u2500\u2500\u2510" * 200, id="box"),
        pytest.param("\u2705 " * 1000, id="long"),
        pytest.param("a\u0301" * 1000, id="accents"),
        "\u0421\u043c\u043e\u0442\u0440\u0438 README: \u0442\u0430\u043c",
        "\u1112\u1161\u11ab: decomposed",
        "\u0928\u092e\u0938\u094d\u0924\u0947: \u0926\u0941\u0928\u093f\u092f\u093e",
        "\u092e\u0948\u0902 \u0920\u0940\u0915 \u0939\u0942\u0901\u0964",
        "\u4f60\u597d\uff1a\u4e16\u754c\u3002",
        "\u30e1\u30a2\u30ea\u30fc\u3055\u3093\u3001\u3053\u3093\u306b\u3061\u306f\uff1a",
        "\u0633\u0644\u0627\u0645: \u0645\u06cc\u200c\u0631\u0648\u0645",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35: \u0e04\u0e23\u0e31\u0e1a",
        "e\u0301: decomposed too",
        "\u00a1Hola!",
    ],
)
def test_other_lines_are_relayed_byte_for_byte(hall: Hall, line: str) -> None:
    for name in TAKEN:
        hall.join(name)
    one, two = hall.join(), hall.join()
    hall.say(one, f"{line}\n")
    assert hall.heard(two) == [line]


def test_nothing_turns_a_part_of_a_line_around(hall: Hall) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, "\u202e:nnA\nA\u202eih :nn\n\u202e\n")
    assert hall.heard(two) == [":nnA", "Aih :nn"]


@pytest.mark.parametrize("mark", ["\u061c", "\u200e", "\u200f"])
def test_no_mark_makes_it_look_as_if_somebody_else_had_said_it(hall: Hall, mark: str) -> None:
    hall.join("12")
    hall.join("\u05d0\u05d1")
    one, two = hall.join(), hall.join()
    hall.say(one, f"{mark} :12{mark}hi\n")  # seen as "12: hi" behind some marks
    hall.say(one, mark.join("\u05d2 :\u05d1\u05d0") + "\n")  # and this as its reverse
    assert hall.heard(two) == [" :12hi", "\u05d2 :\u05d1\u05d0"]


@pytest.mark.parametrize(
    "name",
    [
        *(f"Ann{colon} yes" for colon in COLONS),
        *(f"{asterisk} Ann" for asterisk in ASTERISKS),
        *("\u0301Ann", "\u11a8Ann", "A\u11a8nn", "\u202eAnn", "A\u2028nn", "An\u200cn"),
        *("\u0410nn", "Ann \u03b1", "\u0430\u03b1", "Ann (priv\u0430te)", "\u0430 (private)"),
        *("a*b", "A, B", "A;B", "_A", "-A", ".A", "'A", "\u02bbA", "\u3164", "\U0001f600"),
        *("A\ufe0fnn", "Ann joined", "LEFT"),
        *( "Ann is now Q", "Ann was removed by Bob", "Ann left. Eve", "7 more"),
        *("2 unnamed", "A and B", "you were removed", "\uff59\uff4f\uff55 are here", "An Operator"),
        *("left-Eve", "is_now", "is  now", "X is taken", "the room", "to Ann"),
    ],
)
def test_a_name_is_what_it_looks_like(name: str) -> None:
    with pytest.raises(ValueError, match="^(has|does) "):
        valid_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *TAKEN,
        *("\u0410\u043d\u043d\u0430", "\u039d\u03af\u03ba\u03bf\u03c2", "Ann\u3055\u3093"),
        *("\u672c John", "\u00d1and\u00fa", "\ud55c", "\u4f50\u3005\u6728"),
        *("\u30e1\u30a2\u30ea\u30fc", "3", "John_", "\u0d28\u0d4d\u200d", "\u0786\u07a6"),
        *("Okina\u02bb", "Andy Moreno", "Dr. Who-Is"),
    ],
)
def test_names_in_any_alphabet(name: str) -> None:
    assert valid_name(name) == name


@pytest.mark.parametrize(
    "name, same, other",
    [
        ("John Smith", "JOHN-SMITH", "John_Smith"),
        ("John", "\uff2a\uff4f\uff48\uff4e", "John_"),
        ("O'Neil", "O\u2019Neil", "O_Neil"),
        ("Stra\u00dfe", "STRASSE", "Strase"),
        ("Zo\u00eb", "ZOE\u0308", "Zoe"),
        ("H\u01b0ng", "h\u01afng", "H\u00f9ng"),
        ("\u0930\u093e\u092e", "\u0930\u093e \u092e", "\u0930\u092e\u093e"),
        ("\u0639\u0644\u06cc\u200c\u0631", "\u0639\u0644\u06cc\u0631", "\u0639\u0644\u0631"),
        ("\u3060\u3044\u304d", "\u305f\u3099\u3044\u304d", "\u305f\u3044\u304d"),
    ],
)
def test_names_with_the_same_letters_are_the_same(
    hall: Hall, name: str, same: str, other: str
) -> None:
    hall.join(name)
    one = hall.join()
    hall.say(one, f"/name {same}\n/name {other}\n")
    taken, own = hall.heard(one)
    assert taken.endswith(" is taken")
    assert own == f"* you are {other}"


def test_names_that_differ_in_accents_alone_come_and_go(hall: Hall) -> None:
    zoe, other, one = hall.join("Zo\u00eb"), hall.join("Zoe"), hall.join()
    for leaver, heard in (zoe, []), (other, ["Zoe: hi"]):
        hall.room.leave(leaver)
        hall.turn()
        two = hall.join()
        hall.say(one, "Zoe: hi\n")
        assert hall.heard(two) == heard
    assert not hall.room.looks


# No answer sets off another


def test_a_line_like_the_rooms_is_explained_once(hall: Hall) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, "* a\n* b\n\u2217 c\nfine\n")
    assert hall.heard(two) == ["fine"]
    (answer,) = hall.heard(one)
    assert answer.startswith("* only the room begins a line")


@pytest.mark.parametrize("names", [[], ["Ann"], ["Ann", "Bob"]])
def test_two_rooms_that_a_relay_joins_go_quiet(names: list[str]) -> None:
    """The relay hands on each line that it hears in one room to the other, answers too."""
    halls = [Hall(max_line=100), Hall(max_line=60)]
    relays = [hall.join() for hall in halls]
    people = [[hall.join(name) for name in names] + [hall.join()] for hall in halls]
    lines = "hi\n/who\n/foo\n//foo\n//msg x: y\n//help\n//name Ann\n//who\nAnn: hi\n"
    lines += "x" * 90 + "\n"
    for here, hall in enumerate(halls):
        for one in people[here]:
            hall.say_all(one, lines)
    for _ in range(20):
        heard = [hall.heard(relay) for hall, relay in zip(halls, relays)]
        if not any(heard):
            break
        for there, said in zip((1, 0), heard):
            halls[there].say_all(relays[there], "".join(f"{line}\n" for line in said))
    else:
        pytest.fail("they talk for ever")
    for here, hall in enumerate(halls):
        assert hall.heard(people[here][-1]).count("hi") >= 1


# What takes time


def heard_before(until: float, chunk: bytes) -> int:
    """Returns how many lines of a chunk are heard by that time."""
    room, member = Room(), Member()
    room.checks.append(partial(check_voice, room))
    room.join(member)
    return chunk.count(b"\n") - room.hear(member, chunk, math.inf, until).count(b"\n")


@pytest.mark.parametrize("line", ["* x", "x\b", "/ping", "/msg", "\ufdfa: x", "\u0301x"])
def test_what_is_heard_line_by_line_is_heard_as_long_as_there_is_time(line: str) -> None:
    chunk = f"{line}\n".encode() * 1000
    some = heard_before(0.0, chunk)  # that time has passed, in seconds of the process's CPU
    assert 0 < some <= LOOK_AT // len(f"{line}\n".encode()) + 1
    assert heard_before(math.inf, chunk) in (1000, MAX_UNREAD // 2 // TOLD_COST + 1, 8, 7)


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_blank_lines_are_nothing_however_many_they_are(blank: str) -> None:
    assert heard_before(0.0, f"{blank}\n".encode() * 1000) == 1000


def test_no_more_letters_are_compared_than_a_name_can_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: list[int] = []
    normalize = chat_server.unicodedata.normalize

    def record(form: Any, text: str) -> str:
        result = normalize(form, text)
        lengths.append(len(result))
        return result

    monkeypatch.setattr(chat_server.unicodedata, "normalize", record)
    heard_before(math.inf, ("\ufdfa" * 2000 + ": x\n/name " + "\ufdfa" * 2000 + "\n").encode())
    assert lengths and max(lengths) <= 18 * chat_server.MAX_NAME
