"""The line editor and the painter, without I/O: keys in, lines and a view out."""

from __future__ import annotations

import itertools
import random
import re
import time
from types import SimpleNamespace
from unittest import mock

import pytest
from support import Typing, typed

import chat_client
from chat_client import Painter, text_width

LEFT, RIGHT, UP, DOWN = "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B"
PASTE, END_PASTE = "\x1b[200~", "\x1b[201~"


def pasted(text: str) -> str:
    return PASTE + text + END_PASTE


def shown(editor: Typing) -> str:
    """Returns what is new: the lines that were finished, each with a mark; what stands in place of
    the prompt; the line, with a bar for the cursor; and what else the user has asked for."""
    finished = "".join(f"{line.text}\u21b5" for line in editor.lines)
    line = f"{editor.heading}{editor.text[: editor.cursor]}|{editor.text[editor.cursor :]}"
    passed = "".join(f" {key!r}" for key in editor.passed if key in "\x03\x04\x0c\x1a")
    editor.lines.clear()
    editor.passed.clear()
    return finished + line + passed


FLAG, FAMILY = "\U0001f1e9\U0001f1ea", "\U0001f469\u200d\U0001f467"
HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"
HEART, THUMB = "\u2764\ufe0f", "\U0001f44d\U0001f3fd"
SEEN_AS_ONE = ["\u4f60", "e\u0301", "\u0915\u093f", FLAG, FAMILY, HEART, THUMB]
# Keys, and what comes of them, step by step. No keys are a silence.
KEYS: list[tuple[str, ...]] = [
    *(("abc\x1bOHx\x1b[4~y", "xabcy|"), (f"{LEFT}{RIGHT}\x7f\x04", "| '\\x04'")),
    *(("abc\x08", "ab|"), ("abc\x01\x1b[3~", "|bc"), ("abc\x02\x15", "|c")),
    *(("one two  \x17", "one |"), ("one two\x01\x1bd\x1bd\x19", "one two|")),
    *(("one two\x1b[1;5Dx", "one x|two"), ("one two\x01\x1b[1;5Cx", "onex| two")),
    *(("abc\x14", "acb|"), ("abc\x02\x02\x14", "ba|c"), ("\x14a\x14", "a|")),
    *(("one two\r\x12one\x17", "one two↵one |"), ("abc\x01\x14", "|abc")),
    *(("a\x00\x1b[99~\x1bxb", "ab|"), ("a\x1b\x1b[Db", "b|a"), ("a\x1b[[Ab", "ab|")),
    *(("a\x1b\x03b", "b|"), ("cafe\u0301s e\u0301te\u0301\x01\x1bd", "| e\u0301te\u0301")),
    (f"{HINDI} x\x01\x1bf!", f"{HINDI}!| x"),
    ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\x7f", "\U0001f1e9\U0001f1ea|"),
    ("a\x1b\rb\x1b\nc", "a\nb\nc|"),
    (f"{PASTE}\x1b[01;34mls\x1b[0m \x1b]0;t\x07x{END_PASTE}", "ls x|"),
    *(("one\x01two\x1f", "|one"), ("one two\x17three\x1f\x1f", "one two|")),
    *(("one\x03\x1f", "one|"), (f"a{PASTE}b{END_PASTE}c\x1f\x1f", "a|")),
    *(("one\x0b\x01\x0b\x1f\x1f\x1f", "|"), (f"{'x' * 30}\x1f", "x" * 20 + "|", "\x1f", "|")),
    ("a\x1b[\r", "a↵|", "a\x1bO\r\x01b", "a↵b|", "\x1b[1;\rb", "b↵b|"),
    *(("one two\x01\x1b[3;5~", "| two"), ("one two\x17\r\x1f", "one ↵|")),
    ("foo/bar baz-qux\x17\x17\x19", "foo/bar baz-qux|"),
    ("snake_case it's\x1bb\x1bb\x1bb!", "snake_!|case it's"),
    *(("snake_case\x01\x1bd\x1bf!", "_case!|"), ("foo/bar\x1b\x7f", "foo/|")),
    ("one two three\x1bb\x17\x0b\x19", "one two three|"),
    *(("one two\x17\x02\x05\x17\x19", "one |"), ("one two\x17\x1b[C\x15\x19", "one |")),
    ("one\x15\x0b\x17\x19", "one|"),
    ("a\x1b]11;rgb:0000/0000/0000\x07b\x1b]10;rgb:ff/ff/ff\x1b\\c", "abc|"),
    ("a\x1bP>|XTerm(390)\x1b\\b\x1bP1$r0m\x1b\\c\x1b_Gi=1;OK\x1b\\d", "abcd|"),
    ("a\x1b[M !!b\x1b[<0;10;20Mc\x1b[<0;10;20md\x1b[32;10;20Me", "abcde|"),
    *(("a\x1b[Ib\x1b[Oc\x1b[?1;2cd\x1b[24;1Re", "abcde|"), ("a\x1b]b\x1bPc", "abc|")),
    *(("a\x1b]11;half\x1b[Db", "b|a"), ("one\x1bOM\x1b[A", "one↵one|")),
    *(
        (f"a{half}", "a|", "", "a|", "b", "ab|")
        for half in ("\x1b", "\x1b[1;", "\x1b]11;rgb:", "\x1bP1$r", "\x1b[M !", "\x1b]11;rgb:0\x1b")
    ),
    *(  # what one sees as a character is one to the keys
        (f"a{char}b{LEFT * 2}", f"a|{char}b", RIGHT, f"a{char}|b", "\x7f", "a|b")
        for char in SEEN_AS_ONE
    ),
    *((f"a{char}b\x01{RIGHT}\x04", "a|b") for char in SEEN_AS_ONE),
    # Ends of a line, and what is none of its business
    *(("one\rtwo\nthree", "one↵two↵three|"), ("abc\x03", "|", "\x03", "| '\\x03'")),
    *(("a\x01\x04", "|", "\x04", "| '\\x04'"), ("ab\x0c\x1a", "ab| '\\x0c' '\\x1a'")),
    # The history
    ("one\rtwo\r\rdraft", "one↵two↵↵draft|", UP, "two|", UP * 3, "one|", f"{DOWN}!", "two!|"),
    (
        *("1\r2\r3\r", "1↵2↵3↵|", f"{UP}{UP}\r", "2↵|", f"new{DOWN}", "new|"),
        *(f"{UP * 2}{DOWN * 2}", "new|"),
    ),
    ("hi\r/op secret\r /OP  secret\r", "hi↵/op secret↵ /OP  secret↵|", UP, "hi|"),
    (
        *("make tea\rmake it so\rtake it\rdraft", "make tea↵make it so↵take it↵draft|"),
        *("\x12", "(search: ) draft|", "MAKE", "(search: MAKE) make it so|"),
        *(" tx", "(search: MAKE tx) make tea|", "\x7f" * 3, "(search: MAKE) make it so|"),
        *("\x12", "(search: MAKE) make tea|", "\x12", "(search: MAKE) make tea|"),
        *("\x07", "draft|", f"\x12it{LEFT}!", "take i!|t", "\x03\x12tea\r", "make tea↵|"),
        *(f"{UP}{DOWN}", "|"),
    ),
    (f"one\rtwo\rdraft{UP}!{UP}?", "one↵two↵one?|", DOWN, "two!|", f"\r{UP * 3}", "two!↵one|"),
    (f"one\rdr{LEFT}\x12one\x07x", "one↵dx|r", f"{UP}{LEFT}\x12x\x07\x07!", "on!|e"),
    (f"one\rx\x12{pasted('o~n~e'.replace('~', chr(0)))}", "one↵(search: one) one|"),
    ("one\r\x12\x03", "one↵|", "\x12on\x03", "|", "\x03", "| '\\x03'"),
    ("one\r\x12on\x1b", "one↵(search: on) one|", "", "one|", "x", "onex|"),
    ("one\r\x12on\x1b!", "one↵one!|", "\x12on\x1b\r", "one!↵|", "\x12o\x1bbx", "x|one!"),
    # Tab
    ("an\t", "Ann: |", "\t", "Anton: |", "\t", "an|", "\t", "Ann: |", "b\t", "Ann: Bob Lee |"),
    *(("hi an\t", "hi Ann |"), ("/msg b\thi", "/msg Bob Lee: hi|"), ("\tx\t", "x|")),
    (f"an\t{PASTE}b{END_PASTE}\t", "Ann: Bob Lee |"),
    # What is pasted
    (
        *(f"a{PASTE}b\r\nc\x03\x1b[Ad\re\n{END_PASTE}", "ab\ncd\ne\n|"),
        *("f\r", "ab↵cd↵e↵f↵|", UP, "ab\ncd\ne\nf|"),
    ),
    (f"{PASTE}half\x03\r", "|", "\x03", "|", "x", "x|"),  # the end of what is pasted is lost
    (pasted("//x\nhi") + "\r", "//x↵hi↵|"),  # which may be no command
    *((pasted("a /b\nc") + "\r", "a /b↵c↵|"), (pasted("y\r" * 20) + "\r", "y↵" * 20 + "|")),
    (
        *(pasted("y\r" * 21) + "\r", "(21 lines: Enter says them) " + "y\n" * 21 + "|"),
        *("x", "y\n" * 21 + "x|", "\x7f\r\r", "y↵" * 21 + "|"),
    ),
]


@pytest.mark.parametrize("steps", KEYS, ids=lambda steps: ascii(steps[0])[:40])
def test_keys_do_what_a_shell_user_expects(steps: tuple[str, ...]) -> None:
    editor = typed("")
    for keys, look in zip(steps[::2], steps[1::2]):
        if keys:
            typed(keys, editor)
        else:
            editor.feed_silence()
        assert shown(editor) == look


@pytest.mark.parametrize("line", ["/msg Ann: psst", " /op secret", "/", "/usr/bin"])
@pytest.mark.parametrize("others", ["{}\nhi", "hi\n{}", "hi\n{}\nhi"])
def test_enter_asks_before_it_says_what_may_be_a_command(line: str, others: str) -> None:
    block = others.format(line)
    lines = block.count("\n") + 1
    question = f"({lines} lines, with a slash: Enter says them to everyone) {block}|"
    for keys in (pasted(block), block.replace("\n", "\x1b\r")):
        editor = typed(keys + "\r")
        assert shown(editor) == question
        assert shown(typed("x\x7f", editor)) == f"{block}|", "any other key takes the question back"
        assert shown(typed("\r\r", editor)) == block.replace("\n", "↵") + "↵|"


def test_only_a_line_that_stands_alone_leaves() -> None:
    def leave(keys: str) -> list[bool]:
        return [line.leaves for line in typed(keys).lines]

    assert leave(f"a\r exit \rquit\r{PASTE}exit\n{END_PASTE}\r{UP}\r") == [False, *[True] * 4]
    assert leave(f"{PASTE}a\nexit\n/quit\nquit{END_PASTE}\r\r") == [False] * 4


def test_keys_may_come_in_any_pieces() -> None:
    keys = f"Grüße {LEFT}{LEFT}😀\x1b[1;5D{PASTE}x\ny{END_PASTE}\x1bb\x7f\x1b[3~你好\x17\r".encode()
    whole = typed("")
    whole.feed(keys)
    look = shown(whole)
    for seed in range(100):
        chance = random.Random(seed)
        editor, rest = typed(""), keys
        while rest:
            size = chance.choice([1, 1, 2, 3, 10])
            editor.feed(rest[:size])
            rest = rest[size:]
        assert shown(editor) == look


def test_any_bytes_leave_the_editor_in_order() -> None:
    for seed in range(100):
        chance = random.Random(seed)
        editor = typed("")
        for _ in range(30):
            keys = b"\x1b[ab;5DC~O\x01\x05\x08\x17\x19\t\x14\x0b\xe4\xbd\xa0"
            editor.feed(bytes(chance.choices(keys, k=5)))
            assert 0 <= editor.cursor <= len(editor.text)
            before, after = editor.view("John: ", 20)
            assert text_width(before + after) <= 19


def test_a_very_long_line_takes_no_time() -> None:
    for key in ("\x17", "\x1b\x7f"):
        editor = typed(PASTE + "x" * 200_000 + " " * 200_000 + END_PASTE + key)
        assert shown(editor) == "|"
    editor = typed(PASTE)
    for _ in range(100):
        typed("x\x1b[20m" * 499 + "x\x1b[20", editor)
        typed("m", editor)
    assert shown(typed(END_PASTE, editor)) == "x" * 50_000 + "|"


@pytest.mark.parametrize(
    "keys, prompt, width, view",
    [
        ("0123456789" * 3, "me: ", 80, ("me: " + "0123456789" * 3, "")),
        ("0123456789" * 3, "me: ", 11, ("<123456789", "")),
        ("0123456789" * 3 + "\x01", "me: ", 11, ("me: ", "01234>")),
        ("0123456789" * 3 + "\x01" + RIGHT * 15, "me: ", 11, ("<901234", "56>")),
        ("\u4f60" * 10, "", 6, ("<\u4f60\u4f60", "")),
        ("\uff21" * 10, "", 6, ("<\uff21\uff21", "")),
        ("e\u0301" * 10, "", 4, ("<e\u0301e\u0301", "")),
        (f"{PASTE}a\nb\tc{END_PASTE}", "me: ", 80, ("me: a\u21b5b c", "")),
        ("/op secret", "me: ", 80, ("me: /op ******", "")),
        ("make it so\r\x12make", "me: ", 24, ("(search: make) <e it so", "")),
        (pasted("y\r" * 50) + "\r", "", 40, ("(50 lines: Enter says them) <y↵y↵y↵y↵y↵", "")),
        (pasted("y\r" * 50) + "\r", "", 21, ("(50 lines: Ente<y↵y↵", "")),
    ],
)
def test_a_view_is_one_row_around_the_cursor(
    keys: str, prompt: str, width: int, view: tuple[str, str]
) -> None:
    assert typed(keys).view(prompt, width) == view


# How a line is painted


def painter(colours: bool = False, stamps: bool = False, me: str = "John") -> Painter:
    one = Painter(colours, stamps)
    one.me = me
    return one


@pytest.mark.parametrize(
    "line, width, rows",
    [
        *(("short", 20, "short"), ("Ann: one two three four", 20, "Ann: one two three \n  four")),
        ("Ann: " + "x" * 40, 20, f"Ann: {'x' * 15}\n  {'x' * 18}\n  {'x' * 7}"),
        ("\u4f60" * 15, 20, "\u4f60" * 10 + "\n  " + "\u4f60" * 5),
        ("Ann: hi" + " " * 73 + "Bob: no", 80, "Ann: hi" + " " * 73 + "\n  Bob: no"),
        ("Ann: hi" + "\t" * 10 + "Bob: no", 79, "Ann: hi" + " " * 72 + "\n   Bob: no"),
    ],
)
def test_rows_after_the_first_are_indented(line: str, width: int, rows: str) -> None:
    assert painter().paint(line, width + 1) == rows


@pytest.mark.parametrize(
    "text, width",
    [("a\u00adb\u0600", 4), ("\U0001fae8\ue000", 4), ("e\u0301", 1), ("a\u200db", 2)],
)
def test_no_width_is_assumed_too_small(text: str, width: int) -> None:
    assert text_width(text) == width


def test_timestamps_are_hours_and_minutes_and_a_new_day_has_a_line() -> None:
    stamping = painter(stamps=True)
    lines = [(1, "[14:03] a"), (1, "[14:03] b"), (2, "* 2024-02-02\n[14:03] c"), (2, "[14:03] d")]
    for day, line in lines:
        now = (2024, 2, day, 14, 3, 59, 3, 32, -1)
        clock = SimpleNamespace(strftime=lambda form, now=now: time.strftime(form, now))
        with mock.patch.object(chat_client, "time", clock):
            assert stamping.paint(line[-1]) == line


@pytest.mark.parametrize(
    "line, painted",
    [
        ("John: hi", "\x1b[1mJohn\x1b[0m: hi"),
        ("to Ann (private): psst", "\x1b[1mto Ann (private)\x1b[0m: psst"),
        (f"to {'A' * 32} (private): x", f"\x1b[1mto {'A' * 32} (private)\x1b[0m: x"),
        ("* Ann joined", "\x1b[2m* Ann joined\x1b[0m"),
        *(("* " + "x" * 30, f"\x1b[2m* {'x' * 18}\n  {'x' * 12}\x1b[0m"), ("plain", "plain")),
    ],
)
def test_colours_are_optional(line: str, painted: str) -> None:
    assert painter(colours=True).paint(line, 21 if "xx" in line else 80) == painted
    assert painter().paint(line) == line


def test_neighbours_have_colours_that_lie_far_apart() -> None:
    def distance(one: str, other: str) -> float:
        apart = abs(chat_client.hue(one) - chat_client.hue(other))
        return min(apart, 360 - apart)

    groups = [["Ann", "John"], ["Lab 1", "Lab 2", "Lab 3"], ["A", "B", "C"], ["user8", "user9"]]
    for group in groups:
        for one, other in itertools.combinations(group, 2):
            assert distance(one, other) > 80
        painted = [painter(colours=True, me="me").paint(f"{name}: hi") for name in group * 2]
        assert all(one.endswith("\x1b[0m: hi") for one in painted)
        assert len({one.partition(name)[0] for one, name in zip(painted, group * 2)}) == len(group)


LINK = re.compile(r"\x1b\]8;id=\d+;([^\x1b]*)\x1b\\([^\x1b]*)\x1b\]8;;\x1b\\")


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("stamps", [True, False])
def test_each_piece_of_an_address_leads_to_the_whole(colours: bool, stamps: bool) -> None:
    address = "https://example.org/" + "x" * 60 + "?a=1&b={2}"
    other = "http://a.example/\u00e4" + "y" * 40
    one = painter(colours, stamps)
    painted = one.paint(f"Ann: see {address}, and {other}. Or https://short.example!", 40)
    pieces: dict[str, str] = {}
    for target, piece in LINK.findall(painted):
        pieces[target] = pieces.get(target, "") + piece
    assert pieces == {address: address, other.replace("\u00e4", "%C3%A4"): other}
    rows = LINK.sub(r"\2", painted).split("\n")
    assert all(len(re.sub(r"\x1b\[[\d;]*m", "", row)) < 40 for row in rows)
    assert all(row.startswith("  ") for row in rows[1:])
    for line in (f"Ann: {'x' * 60}", "Ann: https://short.example", "* https://" + "x" * 20):
        assert "\x1b]8" not in one.paint(line, 40)


def test_pieces_of_two_addresses_in_one_row_lead_to_their_own() -> None:
    one, other = "https://a.example/" + "x" * 26, "http://b.example/" + "y" * 30
    rows = painter().paint(f"Ann: {one} {other}", 40).split("\n")
    assert LINK.findall(rows[1]) == [(one, "x" * 10), (other, "http://b.example/" + "y" * 9)]
