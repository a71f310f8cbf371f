"""The line editor without I/O: keys in, lines and a view out."""

from __future__ import annotations

import itertools
import random
import re
import time
from types import SimpleNamespace

import pytest
from support import finished, john_in_a_room, names, shown, typed

import chat_client
from chat_client import (
    ChatProtocol,
    Editor,
    Line,
    Painter,
    text_width,
)

LEFT, RIGHT, UP, DOWN = "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B"
PASTE, END_PASTE = "\x1b[200~", "\x1b[201~"


@pytest.mark.parametrize(
    "keys, result",
    [
        ("abc", "abc|"),
        ("abc\x01", "|abc"),
        ("abc\x1b[H", "|abc"),
        ("abc\x1bOHx\x1b[4~y", "xabcy|"),
        ("abc\x01\x05", "abc|"),
        ("abc\x02\x02x", "ax|bc"),
        (f"abc{LEFT}{LEFT}{RIGHT}x", "abx|c"),
        (f"{LEFT}{RIGHT}\x7f\x04", "|"),
        (f"abc{LEFT}\x7f", "a|c"),
        ("abc\x08", "ab|"),
        ("abc\x01\x04", "|bc"),
        ("abc\x01\x1b[3~", "|bc"),
        ("abc\x02\x0b", "ab|"),
        ("abc\x02\x15", "|c"),
        ("abc\x15\x15\x19", "abc|"),
        ("one two  three\x17", "one two  |"),
        ("one two  \x17", "one |"),
        ("one two\x17\x17\x19\x19", "one twoone two|"),
        ("one two\x01\x1bd\x1bd\x19", "one two|"),
        ("one two\x1bb\x1bb\x1bfx", "onex| two"),
        ("one two\x1b[1;5Dx", "one x|two"),
        ("one two\x01\x1b[1;5Cx", "onex| two"),
        ("one two\x1b\x7f", "one |"),
        ("abc\x14", "acb|"),
        ("abc\x02\x14", "acb|"),
        ("abc\x02\x02\x14", "ba|c"),
        ("\x14a\x14", "a|"),
        ("one two\r\x12one\x17", "one |"),
        ("one two\r\x12two\x1bd", "one two|"),
        ("abc\x01\x14", "|abc"),
        ("a\x00\x1b[99~\x1bxb", "ab|"),
        ("a\x1b\x1b[Db", "b|a"),
        ("a\x1b[[Ab", "ab|"),
        ("a\x1b\x03b", "b|"),
        ("cafe\u0301s e\u0301te\u0301\x01\x1bd", "| e\u0301te\u0301"),
        ("e\u0301te\u0301 cafe\u0301\x17", "e\u0301te\u0301 |"),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 x\x01\x1bf!",
            "\u0939\u093f\u0928\u094d\u0926\u0940!| x",
        ),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\x7f", "\U0001f1e9\U0001f1ea|"),
        ("snake_case, (etc)\x17", "snake_case, |"),
        ("x, snake_case\x17", "x, |"),
        ("a\x1b\rb\x1b\nc", "a\nb\nc|"),
        (f"{PASTE}\x1b[01;34mls\x1b[0m \x1b]0;t\x07x{END_PASTE}", "ls x|"),
        ("one two\x1f", "|"),
        ("one\x01two\x1f", "|one"),
        ("one two\x17three\x1f\x1f", "one two|"),
        ("one\x03\x1f", "one|"),
        (f"a{PASTE}b{END_PASTE}c\x1f\x1f", "a|"),
        ("one\x0b\x01\x0b\x1f\x1f\x1f", "|"),
        ("\x1f", "|"),
        ("one\r\x1f", "|"),
        ("one two\x17\r\x1f", "|"),
        ("foo/bar baz-qux\x17\x17\x19", "foo/bar baz-qux|"),
        ("foo/bar\x17", "|"),
        ("snake_case it's\x1bb\x1bb\x1bb!", "snake_!|case it's"),
        ("snake_case\x01\x1bd\x1bf!", "_case!|"),
        ("foo/bar\x1b\x7f", "foo/|"),
        ("one two three\x1bb\x17\x0b\x19", "one two three|"),
        ("one two\x17\x02\x05\x17\x19", "one |"),
        ("one two\x17\x1b[C\x15\x19", "one |"),
        ("one\x15\x0b\x17\x19", "one|"),
        ("a\x1b]11;rgb:0000/0000/0000\x07b\x1b]10;rgb:ff/ff/ff\x1b\\c", "abc|"),
        ("a\x1bP>|XTerm(390)\x1b\\b\x1bP1$r0m\x1b\\c\x1b_Gi=1;OK\x1b\\d", "abcd|"),
        ("a\x1b[M !!b\x1b[<0;10;20Mc\x1b[<0;10;20md\x1b[32;10;20Me", "abcde|"),
        ("a\x1b[Ib\x1b[Oc\x1b[?1;2cd\x1b[24;1Re", "abcde|"),
        ("a\x1b]b\x1bPc", "abc|"),
        ("a\x1b]11;half\x1b[Db", "b|a"),
        ("one\x1bOM\x1b[A", "one|"),
    ],
)
def test_keys_do_what_a_shell_user_expects(keys: str, result: str) -> None:
    assert shown(typed(keys)) == result


def test_enter_finishes_the_line() -> None:
    editor = typed("one\rtwo\nthree")
    assert finished(editor) == ["one", "two"]
    assert shown(editor) == "three|"


def test_keys_may_come_in_any_pieces() -> None:
    keys = f"Grüße {LEFT}{LEFT}😀\x1b[1;5D{PASTE}x\ny{END_PASTE}\x1bb\x7f\x1b[3~你好\x17\r".encode()
    whole = Editor()
    whole.feed(keys)
    for seed in range(100):
        chance = random.Random(seed)
        editor, rest = Editor(), keys
        while rest:
            size = chance.choice([1, 1, 2, 3, 10])
            editor.feed(rest[:size])
            rest = rest[size:]
        assert (editor.lines, shown(editor)) == (whole.lines, shown(whole))


def test_half_a_key_is_none_after_a_silence() -> None:
    for half in ("\x1b", "\x1b[1;", "\x1b]11;rgb:", "\x1bP1$r", "\x1b[M !", "\x1b]11;rgb:0\x1b"):
        editor = typed(f"a{half}")
        assert (shown(editor), editor.unread) == ("a|", half)
        editor.feed_silence()
        assert shown(typed("b", editor)) == "ab|"


@pytest.mark.parametrize("line", ["/msg Ann: psst", " /op secret", "/", "/usr/bin"])
@pytest.mark.parametrize("others", ["{}\nhi", "hi\n{}", "hi\n{}\nhi"])
def test_enter_asks_before_it_says_what_may_be_a_command(line: str, others: str) -> None:
    block = others.format(line)
    for keys in (f"{PASTE}{block}{END_PASTE}", block.replace("\n", "\x1b\r")):
        editor = typed(keys + "\r")
        assert finished(editor) == []
        assert editor.heading.endswith(" lines, with a slash: Enter says them to everyone) ")
        assert typed("x\x7f", editor).heading == "", "any other key takes the question back"
        assert finished(typed("\r\r", editor)) == block.split("\n")


@pytest.mark.parametrize("block", ["//x\nhi", "hi\n//x", "a /b\nc"])
def test_enter_asks_nothing_where_nothing_may_be_a_command(block: str) -> None:
    assert finished(typed(f"{PASTE}{block}{END_PASTE}\r")) == block.split("\n")


def test_any_bytes_leave_the_editor_in_order() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        editor = Editor(names)
        for _ in range(30):
            keys = bytes(
                chance.choices(b"\x1b[ab;5DC~O\x01\x05\x08\x17\x19\t\x14\x0b\xe4\xbd\xa0", k=5)
            )
            editor.feed(keys)
            assert 0 <= editor.cursor <= len(editor.text)
            before, after = editor.view("John: ", 20)
            assert text_width(before + after) <= 19


def passed_on(keys: str) -> list[str]:
    """Returns those of the keys that aren't the line's business."""
    others: list[str] = []
    typed(keys, Editor(names, others.append))
    return others


@pytest.mark.parametrize("keys", ["abc{}", "a\x01{}"])
@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_control_c_and_d_change_a_line_and_leave_on_an_empty_one(key: str, keys: str) -> None:
    shown_after = {"abc\x03": "|", "abc\x04": "abc|", "a\x01\x03": "|", "a\x01\x04": "|"}
    assert shown(typed(keys.format(key))) == shown_after[keys.format(key)]
    assert passed_on(keys.format(key)) == []
    assert passed_on(keys.format("\x03") + key) == [key]


def test_words_in_a_very_long_line_take_no_time() -> None:
    for key in ("\x17", "\x1b\x7f"):
        editor = typed(PASTE + "x" * 200_000 + " " * 200_000 + END_PASTE + key)
        assert shown(editor) == "|"


def test_what_is_not_the_business_of_the_line_is_passed_on() -> None:
    assert passed_on("ab\x0c\x1a\x1b[24;1R\x1b[Ic\x01") == ["\x0c", "\x1a", "\x1b[24;1R", "\x1b[I"]


def test_history_goes_back_and_forth_and_keeps_the_draft() -> None:
    editor = typed(f"one\rtwo\r\rdraft{UP}")
    assert shown(editor) == "two|"
    assert shown(typed(f"{UP}{UP}{UP}", editor)) == "one|"
    assert shown(typed(f"{DOWN}!", editor)) == "two!|"
    assert shown(typed(f"{DOWN}{DOWN}", editor)) == "draft|"


def test_the_history_is_searched() -> None:
    editor = typed("make tea\rmake it so\rtake it\rdraft\x12")
    assert (shown(editor), editor.heading) == ("draft|", "(search: ) ")
    assert shown(typed("MAKE", editor)) == "make it so|"
    assert editor.heading == "(search: MAKE) "
    assert editor.view("me: ", 24)[0] == "(search: MAKE) <e it so"
    assert shown(typed(" tx", editor)) == "make tea|"
    assert shown(typed("\x7f\x7f\x7f", editor)) == "make it so|"
    assert shown(typed("\x12", editor)) == "make tea|"
    assert shown(typed("\x12", editor)) == "make tea|"
    assert shown(typed("\x07", editor)) == "draft|"
    assert editor.heading == ""
    assert shown(typed(f"\x12it{LEFT}!", editor)) == "take i!|t"
    typed("\x03\x12tea\r", editor)
    assert finished(editor)[-1] == "make tea"
    assert shown(typed(f"{UP}{DOWN}", editor)) == "|"


def test_pasted_newlines_wait_and_go_out_as_messages_on_enter() -> None:
    editor = typed(f"a{PASTE}b\r\nc\x03\x1b[Ad\re\n{END_PASTE}")
    assert finished(editor) == []
    assert "".join(editor.view("", 40)) == "ab\u21b5cd\u21b5e\u21b5"
    typed("f\r", editor)
    assert finished(editor) == ["ab", "cd", "e", "f"]
    assert shown(typed(UP, editor)) == "ab\ncd\ne\nf|"


def test_only_a_line_that_was_typed_alone_leaves() -> None:
    def leave(keys: str) -> list[bool]:
        return [line.leaves for line in typed(keys).lines]

    assert leave(f"a\r exit \rquit\r{PASTE}exit\n{END_PASTE}\r") == [False, True, True, True]
    assert leave(f"{PASTE}a\nexit\n/quit\nquit{END_PASTE}\r\r") == [False] * 4


def test_a_paste_whose_end_is_lost_ends_with_control_c() -> None:
    editor = typed(f"{PASTE}half\x03\r")  # in what is pasted it is no key
    assert (shown(editor), editor.unread) == ("|", f"{PASTE}half\x03\r")
    assert (shown(typed("\x03", editor)), editor.unread) == ("|", "")
    assert shown(typed("x", editor)) == "x|"


def test_a_long_paste_is_one_however_it_is_cut() -> None:
    editor = typed(PASTE)
    for _ in range(100):
        typed("x\x1b[20m" * 499 + "x\x1b[20", editor)
        typed("m", editor)
    typed(END_PASTE, editor)
    assert editor.text == "x" * 50_000


def test_fifty_pasted_lines() -> None:
    lines = [f"line {number}" for number in range(50)]
    editor = typed(PASTE + "\r".join(lines) + "\r" + END_PASTE + "\r")
    assert finished(editor) == []
    assert editor.view("me: ", 80)[0].startswith("(50 lines: Enter says them) <")
    assert len("".join(editor.view("me: ", 80))) < 80
    assert len("".join(editor.view("me: ", 22))) < 22
    assert editor.heading == "(50 lines: Enter says them) "
    assert typed("x", editor).heading == ""
    typed("\x7f\r\r", editor)
    assert finished(editor) == lines
    assert editor.heading == ""
    typed(PASTE + "y\n" * 20 + END_PASTE + "\r", editor)
    typed(PASTE + "y\n" * 21 + END_PASTE + "\r", editor)
    assert len(editor.lines) == 50 + 20


@pytest.mark.parametrize(
    "character",
    [
        "\u4f60",
        "e\u0301",
        "\u0915\u093f",
        "\U0001f1e9\U0001f1ea",
        "\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f",
        "\U0001f44d\U0001f3fd",
    ],
)
def test_a_visible_character_is_edited_as_one(character: str) -> None:
    assert shown(typed(f"a{character}b{LEFT}{LEFT}")) == f"a|{character}b"
    assert shown(typed(f"a{character}b\x01{RIGHT}{RIGHT}")) == f"a{character}|b"
    assert shown(typed(f"a{character}b{LEFT}\x7f")) == "a|b"
    assert shown(typed(f"a{character}b\x01{RIGHT}\x04")) == "a|b"


def test_tab_completes_names() -> None:
    assert shown(typed("an\t")) == "Ann: |"
    assert shown(typed("an\t\t")) == "Anton: |"
    assert shown(typed("an\t\t\t")) == "an|"
    assert shown(typed("an\t\t\t\t")) == "Ann: |"
    assert shown(typed("hi an\t")) == "hi Ann |"
    assert shown(typed("/msg b\thi")) == "/msg Bob Lee: hi|"
    assert shown(typed("x\t")) == "x|"
    assert shown(typed("\t")) == "|"
    assert shown(typed("an\tb\t")) == "Ann: Bob Lee |"


def test_view_is_one_row_around_the_cursor() -> None:
    editor = typed("0123456789" * 3)
    assert editor.view("me: ", 80) == ("me: " + "0123456789" * 3, "")
    assert editor.view("me: ", 11) == ("<123456789", "")
    typed("\x01", editor)
    assert editor.view("me: ", 11) == ("me: ", "01234>")
    typed(RIGHT * 15, editor)
    assert editor.view("me: ", 11) == ("<901234", "56>")


def test_view_never_breaks_a_wide_or_combined_character() -> None:
    editor = typed("\u4f60" * 10)
    assert editor.view("", 6) == ("<\u4f60\u4f60", "")
    editor = typed("e\u0301" * 10)
    assert editor.view("", 4) == ("<" + "e\u0301" * 2, "")


def test_enter_on_a_recalled_line_comes_back_to_the_end_of_the_history() -> None:
    editor = typed(f"one\rtwo\rthree\r{UP}{UP}\r")
    assert finished(editor) == ["one", "two", "three", "two"]
    assert shown(typed(f"new{DOWN}", editor)) == "new|"
    assert shown(typed(f"{UP}{UP}{DOWN}{DOWN}", editor)) == "new|"


def test_fullwidth_letters_take_two_columns() -> None:
    assert typed("\uff21" * 10).view("", 6) == ("<\uff21\uff21", "")


def test_a_paste_ends_the_completion() -> None:
    assert shown(typed(f"an\t{PASTE}b{END_PASTE}\t")) == "Ann: Bob Lee |"


def test_the_password_of_an_operator_is_not_in_the_history() -> None:
    editor = typed("hi\r/op secret\r /OP  secret\r")
    assert list(editor.history) == ["hi"]
    assert finished(editor) == ["hi", "/op secret", " /OP  secret"]


# What is around it


@pytest.mark.parametrize(
    "line, candidates",
    [
        ("Ann: hi", ["Ann"]),
        ("Ann (private): hi", ["Ann"]),
        ("* Ann joined", ["Ann"]),
        ("* Bob is now Ann", ["Ann"]),
        ("* here: Ann, Anton and 2 unnamed", ["Anton", "Ann"]),
        ("* here: 2 unnamed", []),
        ("* the room is closing", []),
    ],
)
def test_names_are_learnt_from_what_is_said(line: str, candidates: list[str]) -> None:
    chat = ChatProtocol("me")
    chat.hear("Welcome to the chatroom!")
    chat.hear(line)
    assert chat.candidates("an") == candidates


@pytest.mark.parametrize(
    "line, mentioned",
    [
        ("Ann: hi john!", True),
        ("Ann: John", True),
        ("Ann (private): hi", True),
        ("Ann (private) hi", False),
        ("Ann: johnny", False),
        ("John: hi", False),
        ("* John is now Jim", False),
        ("hello John", True),
    ],
)
def test_a_mention_is_noticed(line: str, mentioned: bool) -> None:
    chat = ChatProtocol("John")
    chat.hear("Welcome to the chatroom!")
    chat.hear(line)
    assert chat.calls_user is mentioned


def test_rows_after_the_first_are_indented() -> None:
    def rows(line: str, width: int) -> str:
        return Painter(False, False).paint(line, width + 1)

    assert rows("short", 20) == "short"
    assert rows("Ann: one two three four", 20) == "Ann: one two three \n  four"
    assert rows("Ann: " + "x" * 40, 20) == f"Ann: {'x' * 15}\n  {'x' * 18}\n  {'x' * 7}"
    assert rows("\u4f60" * 15, 20) == "\u4f60" * 10 + "\n  " + "\u4f60" * 5
    blanks = rows("Ann: hi" + " " * 73 + "Bob: no", 80)
    assert blanks.split("\n")[1].startswith("  ")
    painted = Painter(False, False).paint("Ann: hi" + "\t" * 10 + "Bob: no", 80)
    assert painted.split("\n")[1] == "   Bob: no"
    painter = Painter(True, False)
    painter.me = "J"
    assert painter.paint("* " + "x" * 30, 21) == f"\x1b[2m* {'x' * 18}\n  {'x' * 12}\x1b[0m"


@pytest.mark.parametrize("text", ["a\u00adb\u0600", "\U0001fae8\ue000", "e\u0301", "a\u200db"])
def test_no_width_is_assumed_too_small(text: str) -> None:
    assert text_width(text) == {"a\u00adb\u0600": 4, "\U0001fae8\ue000": 4, "e\u0301": 1}.get(
        text, 2
    )


def test_a_new_day_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    day = [1]
    clock = SimpleNamespace(
        strftime=lambda form: time.strftime(form, (2024, 2, day[0], 14, 3, 59, 3, 32, -1))
    )
    monkeypatch.setattr(chat_client, "time", clock)
    painter = Painter(False, True)
    lines = [painter.paint("a"), painter.paint("b")]
    day[0] = 2
    lines += [painter.paint("c"), painter.paint("d"), Painter(False, False).paint("e")]
    assert lines == ["[14:03] a", "[14:03] b", "* 2024-02-02\n[14:03] c", "[14:03] d", "e"]


def test_colours_are_steady_and_optional() -> None:
    painter = Painter(True, False)
    painter.me = "John"
    ann = painter.paint("Ann: hi")
    assert ann == painter.paint("Ann: hi")
    assert ann.endswith("Ann\x1b[0m: hi")
    assert painter.paint("John: hi") == "\x1b[1mJohn\x1b[0m: hi"
    assert painter.paint("* Ann joined") == "\x1b[2m* Ann joined\x1b[0m"
    assert painter.paint("plain") == "plain"
    assert Painter(False, False).paint("* Ann joined") == "* Ann joined"


def test_neighbours_have_colours_that_lie_far_apart() -> None:
    def distance(one: str, other: str) -> float:
        apart = abs(chat_client.hue(one) - chat_client.hue(other))
        return min(apart, 360 - apart)

    groups = [["Ann", "John"], ["Lab 1", "Lab 2", "Lab 3"], ["A", "B", "C"], ["user8", "user9"]]
    for group in groups:
        for one, other in itertools.combinations(group, 2):
            assert distance(one, other) > 80
    painter = Painter(True, False)
    painter.me = "me"
    for group in groups:
        colours = {painter.paint(f"{name}: hi").partition(name)[0] for name in group}
        assert len(colours) == len(group)


def test_what_one_said_in_private_looks_private() -> None:
    chat = john_in_a_room()
    for line in ("/msg Ann: psst", "/msg  Ann Lee :  a: b ", "/msg Ann", "/msg Ann:", "/msg : x"):
        chat.submit(Line(line))
    shown = ["to Ann (private): psst", "to Ann Lee (private): a: b"]
    assert chat.to_show[1:] == shown
    assert chat.outgoing.count(b"/msg") == 5
    painter = Painter(True, False)
    painter.me = "John"
    assert painter.paint(shown[0]) == "\x1b[1mto Ann (private)\x1b[0m: psst"


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("stamps", [True, False])
def test_each_piece_of_an_address_leads_to_the_whole(colours: bool, stamps: bool) -> None:
    address = "https://example.org/" + "x" * 60 + "?a=1&b={2}"
    other = "http://a.example/\u00e4" + "y" * 40
    painter = Painter(colours, stamps)
    painter.me = "J"
    painted = painter.paint(f"Ann: see {address}, and {other}. Or https://short.example!", 40)
    link = re.compile(r"\x1b\]8;id=\d+;([^\x1b]*)\x1b\\([^\x1b]*)\x1b\]8;;\x1b\\")
    pieces: dict[str, str] = {}
    for target, piece in link.findall(painted):
        pieces[target] = pieces.get(target, "") + piece
    assert pieces == {address: address, other.replace("\u00e4", "%C3%A4"): other}
    rows = link.sub(r"\2", painted).split("\n")
    assert all(len(re.sub(r"\x1b\[[\d;]*m", "", row)) < 40 for row in rows)
    assert all(row.startswith("  ") for row in rows[1:])
    for line in (f"Ann: {'x' * 60}", "Ann: https://short.example", "* https://" + "x" * 20):
        assert "\x1b]8" not in painter.paint(line, 40)


def test_pieces_of_two_addresses_in_one_row_lead_to_their_own() -> None:
    one, other = "https://a.example/" + "x" * 26, "http://b.example/" + "y" * 30
    rows = Painter(False, False).paint(f"Ann: {one} {other}", 40).split("\n")
    link = re.compile(r"\x1b\]8;id=\d+;([^\x1b]*)\x1b\\([^\x1b]*)\x1b\]8;;\x1b\\")
    assert link.findall(rows[1]) == [(one, "x" * 10), (other, "http://b.example/" + "y" * 9)]


def test_timestamps_are_hours_and_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    afternoon = (2024, 2, 1, 14, 3, 59, 3, 32, -1)
    clock = SimpleNamespace(strftime=lambda form: time.strftime(form, afternoon))
    monkeypatch.setattr(chat_client, "time", clock)
    assert Painter(False, True).paint("Ann: hi") == "[14:03] Ann: hi"
