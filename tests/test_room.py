"""Part I, the room, without sockets: lines, text, who gets what of a turn, history, names."""

from __future__ import annotations

import math
import random
import re
import unicodedata
from contextlib import suppress
from functools import partial
from typing import Any
from unittest import mock

import pytest
from notices import FORMS, WORDS, read, readings
from support import ROOT

import chat_server
from chat_server import MAX_NAME, MAX_UNREAD, TOLD_COST, History, Member, is_clean, valid_name

# Names in many alphabets; all of them can be taken.
TAKEN = ["Ann", "John Smith", "Zo\u00eb", "\u0416\u0435\u043d\u044f", "\ud55c\ub098", "Lab 3"]
TAKEN += ["\u674e\u96f7", "\u0930\u093e\u092e", "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627"]
TAKEN += ["O'Neil", "\u0e2a\u0e21\u0e0a\u0e32\u0e22", "\u3060\u3044\u304d", "Stra\u00dfe"]
TAKEN += ["H\u01b0ng", "\u0926\u0947\u0935\u0940", "\u0e21\u0e32\u0e25\u0e35"]
# What may look like a colon, or an asterisk.
COLONS = "\u2236\ua789\u2d7f\ufe55\uff1a\u05c3\u0703\u1365\u1803\u1809\u205a\u02d0\u02f8\u0589"
COLONS += "\ua4fd\u0903\u0a83\u1038\u302f\U00010781\U000e003a"
ASTERISKS = "\u2217\u204e\u066d\uff0a\ufe61\u26b9\u2731\u2733\u22c6\u20f0\u0359\U0001f7b6"


class Hall:
    """A room, and what each of its members has received so far."""

    def __init__(self, history: int = 0, **options: Any) -> None:
        self.room = chat_server.Room(**options)
        self.history = History(history)
        self.room.history = self.history if history else None
        self.room.checks.append(partial(chat_server.check_voice, self.room))
        self.got: dict[Member, bytes] = {}

    def enter(self) -> Member:
        """Returns somebody who has come in within the turn, and has yet to get the welcome."""
        member = Member()
        self.got[member] = b""
        self.room.join(member)
        return member

    def join(self, name: str = "") -> Member:
        member = self.enter()
        if name:
            self.say(member, f"/name {name}\n")
        self.turn()
        self.got = dict.fromkeys(self.got, b"")
        return member

    def say(
        self, member: Member, text: str | bytes, until: float = math.inf, limit: float = math.inf
    ) -> bytes:
        chunk = text if isinstance(text, bytes) else text.encode()
        return self.room.hear(member, chunk, limit, until)

    def say_all(self, member: Member, text: str) -> None:
        """Says lines, over as many turns as that takes."""
        rest = self.say(member, text)
        while rest:
            self.turn()
            rest = self.say(member, rest)

    def turn(self) -> None:
        """Ends a turn: everyone gets the batch."""
        batch = self.room.take_batch()
        for member in self.got:
            if member in self.room.members or member in batch.leavers:
                self.got[member] += batch.part_for(member, None)
                batch.forget(member)

    def heard(self, member: Member) -> list[str]:
        """Returns the lines that the member got since it was last asked. What the room itself says
        can be read in one way alone, by README's table."""
        self.turn()
        text, self.got[member] = self.got[member], b""
        assert text == b"" or text.endswith(b"\n")
        lines = text.decode().split("\n")[:-1]
        for line in lines:
            read(line)
        return lines


@pytest.fixture
def hall() -> Hall:
    return Hall()


# Lines and text


def test_any_stream_in_any_pieces_gives_its_lines_and_a_mark_for_each_that_is_too_long() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        limit = chance.choice([1, 5, 10, 100])
        sizes = [*(chance.randrange(limit * 2) for _ in range(50)), limit, limit + 1, 9 * limit, 1]
        chance.shuffle(sizes)
        lines = [bytes(chance.choices(b"ab\r\x00\xff", k=size)) for size in sizes]
        framer = chat_server.LineFramer(limit)
        got, rest = b"", b"\n".join(lines)
        while rest:
            size = chance.choice([1, 2, 3, 50, 500])
            chunk = framer.feed(rest[:size])
            rest = rest[size:]
            assert chunk == b"" or chunk.endswith(b"\n")
            assert len(framer.partial) <= limit, "memory"
            got += chunk
        if not lines[-1]:
            lines.pop()  # an empty line without its end is none
        kept = [line if len(line) <= limit else chat_server.SKIPPED for line in lines]
        assert got + framer.finish() == b"".join(line + b"\n" for line in kept)
        assert framer.finish() == b""


@pytest.mark.parametrize(
    "data, shown",
    [
        *((b"a\x00b\tc\x1b[31m\x07\xc2\x9b\r", "ab\tc[31m"), (b"\xff\xe4\xbd", "\ufffd\ufffd")),
        (b"\xed\xa0\x80\xe4\xbd\xa0", "\ufffd\ufffd\ufffd\u4f60"),
        (b"x\xe2\x80\xa8Ann: hi\xe2\x80\xa9", "x Ann: hi "),  # a new line on some screens
        # What takes back a character, or all.
        *((b"hekk\b\bllo", "hello"), (b"hekk\x7f\x7fllo", "hello"), (b"ab\b\b\b\b\bc", "c")),
        *((b"\xe6\x9c\xac\xe6\x9c\xac\b", "\u672c"), (b"\xf0\x9f\x98\x80\x7fx", "x")),
        *((b"\x07\b", ""), (b"a\x07\bb", "b")),  # what isn't shown isn't taken back
        *((b"abc\x15de", "de"), (b"a\tb\b", "a\t")),
    ],
)
def test_text_is_what_its_sender_means_without_control_characters(data: bytes, shown: str) -> None:
    assert chat_server.clean(data) == shown
    assert not is_clean(data)
    assert is_clean(shown.encode())


SAID = ["x", "hi: ", ":", " ", "\t", "/", "//", "*", "* ", "John", "John: ", "Ann: ", "\u00e4"]
SAID += ["Bob (private): ", "\x07", "\u009b", "\u2028", "\ufffd", "\b", "\r", "John: x"]


@pytest.mark.parametrize("name", ["", "John"])
def test_lines_that_come_together_mean_what_they_mean_one_by_one(name: str) -> None:
    """Those that are plain are relayed in one piece, and are not looked at."""
    chance = random.Random(name)
    at_once, one_by_one = Hall(history=9), Hall(history=9)
    halls = [(hall, hall.join(name), hall.join("Ann")) for hall in (at_once, one_by_one)]
    for _ in range(800):
        lines = ["".join(chance.choices(SAID, k=chance.randrange(4))) for _ in range(3)]
        if chance.random() < 0.7:
            lines = [f"{name}: {line}" if name else line for line in lines]
        raw = [line.encode().replace("\ufffd".encode(), b"\xff") for line in lines]
        at_once.say(halls[0][1], b"".join(line + b"\n" for line in raw))
        for line in raw:
            one_by_one.room.hear_line(halls[1][1], line)
        for first, second in zip(halls[0][1:], halls[1][1:]):
            heard = at_once.heard(first)
            assert heard == one_by_one.heard(second), raw
            assert not {"", name and "John:"} & {line.rstrip() for line in heard}, "are nothing"
    histories = [b"".join(hall.history.pieces()) for hall, *_ in halls]
    assert histories[0] == histories[1] != b""


@pytest.mark.parametrize("name", ["", "John"])
def test_the_text_that_goes_out_counts(name: str) -> None:
    hall = Hall(max_line=30)
    one, two = hall.join(name), hall.join("Two")
    hall.say(one, b"x" * 30 + b"\n" + b"\x80" * 10 + b"\n" + b"\x80" * 11 + b"\n")
    prefix = f"{name}: " if name else ""
    assert hall.heard(two) == [prefix + "x" * 30, prefix + "\ufffd" * 10]
    assert hall.heard(one) == ["* too long: a line has at most 30 bytes"]


# Who gets what of a turn


@pytest.mark.parametrize("count", [0, 3])
def test_newcomers_get_the_welcome_then_the_history_and_nothing_else_of_before(count: int) -> None:
    hall = Hall(history=count)
    one = hall.join("John")
    hall.join("Ann")
    hall.say(one, "John: 1\nJohn: 2\n/msg Ann: psst\n/who\nJohn: 3\n4\n/name Jim\n")
    newcomer = hall.enter()
    hall.say(one, "Jim: 5\n")
    known = ["John: 2", "John: 3", "John: 4"] if count else []
    assert hall.heard(newcomer) == [chat_server.WELCOME, *known, "Jim: 5"]


def test_all_share_a_text_and_whoever_has_got_its_part_leaves_nothing_behind(hall: Hall) -> None:
    one, two, three = hall.join(), hall.join("Two"), hall.join("Three")
    hall.say(one, "a\n")
    hall.say(two, "/who\n/msg Three: psst\n")
    batch = hall.room.take_batch()
    assert batch.part_for(hall.join(), None) is batch.text
    answer = len("* here: Two, Three and 1 unnamed\n") + TOLD_COST
    whisper = len("Two (private): psst\n") + TOLD_COST
    assert (two.unread_answers, two.unread_whispers) == (answer, 0)
    assert (three.unread_answers, three.unread_whispers) == (0, whisper)
    for member in (one, two, three, three):
        batch.forget(member)
        assert (member.unread_answers, member.unread_whispers) == (0, 0)
    assert not batch.cuts and not batch.told and not batch.whispered
    three.reachable = False
    hall.say(two, "/msg Three: psst\n")
    assert not three.unread_whispers, "it has gone"


@pytest.mark.parametrize("count", [1, 3, 100, 5000])
def test_history_has_the_last_lines_however_they_came(count: int) -> None:
    chance = random.Random(count)
    history = History(count)
    lines: list[bytes] = []
    for _ in range(200):
        chunk = [b"x" * chance.choice([0, 1, 30, 700]) for _ in range(chance.choice([1, 1, 2, 90]))]
        history.add(b"".join(line + b"\n" for line in chunk))
        lines += chunk
        kept = b"".join(history.pieces()).split(b"\n")[:-1]
        assert kept == lines[len(lines) - len(kept) :] != []
        assert len(kept) <= count
        size = sum(len(line) + 1 for line in kept)
        assert size <= chat_server.MAX_HISTORY
        if len(kept) < min(count, len(lines)):  # a block more would have been too much
            assert size > chat_server.MAX_HISTORY - 2 * chat_server.HISTORY_BLOCK
    for one, other in zip(history.pieces(), history.pieces()):
        shared = memoryview(one).obj is memoryview(other).obj
        assert shared, "newcomers share what they have yet to get"


# Names


def test_naming_is_announced_to_the_others_and_confirmed_to_oneself(hall: Hall) -> None:
    one, two = hall.join(), hall.join()
    for name, news in (
        *(("john", ["* john joined"]), ("John", ["* john is now John"])),
        *(("Jim", ["* John is now Jim"]), ("Jim", [])),
    ):
        hall.say(one, f"/name {name}\n")
        assert (hall.heard(one), hall.heard(two)) == ([f"* you are {name}"], news)
    hall.say(two, "/name Jim\n/name John\n")
    assert hall.heard(two) == ["* Jim is taken", "* you are John"]


@pytest.mark.parametrize(
    "name, same, other",
    [
        ("John Smith", "JOHN-SMITH", "John_Smith"),
        *(("John", "\uff2a\uff4f\uff48\uff4e", "John_"), ("O'Neil", "O\u2019Neil", "O_Neil")),
        *(("Stra\u00dfe", "STRASSE", "Strase"), ("Zo\u00eb", "ZOE\u0308", "Zoe")),
        ("H\u01b0ng", "h\u01afng", "H\u00f9ng"),
        ("\u0930\u093e\u092e", "\u0930\u093e \u092e", "\u0930\u092e\u093e"),
        ("\u0639\u0644\u06cc\u200c\u0631", "\u0639\u0644\u06cc\u0631", "\u0639\u0644\u0631"),
        ("\u3060\u3044\u304d", "\u305f\u3099\u3044\u304d", "\u305f\u3044\u304d"),
    ],
)
def test_same_letters_are_the_same_name(hall: Hall, name: str, same: str, other: str) -> None:
    hall.join(name)
    one = hall.join()
    hall.say(one, f"/name {same}\n/name {other}\n")
    taken, own = hall.heard(one)
    assert taken.endswith(" is taken")
    assert own == f"* you are {other}"


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * (MAX_NAME + 1), "a:b", "*x", "/x", "a*b", "A, B", "A;B", "John (private)"),
        *("_A", "-A", ".A", "'A", "\u02bbA", "\u3164", "\u2800", "\u0301", "\U0001f600"),
        *(f"Ann{colon} yes" for colon in COLONS),
        *(f"{asterisk} Ann" for asterisk in ASTERISKS),
        *("\u0301Ann", "\u11a8Ann", "A\u11a8nn", "\u202eAnn", "a\u200bb", "An\u200cn", "A\u2028nn"),
        *("A\ufe0fnn", "Jo\u034fhn", "Ann (priv\u0430te)"),
        *("\u0410nn", "Ann \u03b1", "\u0430\u03b1"),  # two alphabets
        *("B\u0966b", "B\u0e50b", "l\u0665l", "Lab \u06f3", "He\u3021lo"),  # digits of another one
        # what only the room says
        *("\uff59\uff4f\uff55 are here", "Ann left. Eve", "left-Eve", "is_now", "is  now"),
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
        *("Okina\u02bb", "Andy Moreno", "Dr. Who-Is", "x" * MAX_NAME),
        *("\u0645\u062d\u0645\u062f \u0663", "\u0639\u0644\u06cc \u06f3", "\u0e2a\u0e21 \u0e51 2"),
    ],
)
def test_names_in_any_alphabet_in_their_compatible_form(name: str) -> None:
    assert valid_name(f" {name} ") == name
    assert valid_name(unicodedata.normalize("NFD", name)) == name
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in name)
    assert valid_name(wide) == name


def test_names_that_differ_in_accents_alone_come_and_go(hall: Hall) -> None:
    zoe, other, one = hall.join("Zo\u00eb"), hall.join("Zoe"), hall.join()
    for leaver, heard in (zoe, []), (other, ["Zoe: hi"]):
        hall.room.leave(leaver)
        hall.turn()
        two = hall.join()
        hall.say(one, "Zoe: hi\n")
        assert hall.heard(two) == heard
    assert not hall.room.looks


def test_no_more_letters_are_compared_than_a_name_can_have(hall: Hall) -> None:
    one, normalize = hall.join(), unicodedata.normalize
    with mock.patch("unicodedata.normalize", side_effect=normalize) as compared:
        for text in ("\ufdfa" * 2000, "\u0315\u0300\u05ae\u0327" * 500):  # NFKC is slow at that
            hall.say(one, f"{text}: x\n/name {text}\n")
    assert max(len(normalize(*call[0])) for call in compared.call_args_list) <= 18 * MAX_NAME


# What a line means


def test_messages_of_a_named_member_begin_with_the_name(hall: Hall) -> None:
    one, two = hall.join("John"), hall.join()
    hall.say(one, "John: a\nb\njohn: c\nAnn: d\n* e\n//f\nJohn: /g\n")
    said = ["a", "b", "john: c", "Ann: d", "* e", "/f", "/g"]
    assert hall.heard(two) == [f"John: {text}" for text in said]


HOW_TO_WHISPER = "* a private message goes like this: /msg NAME: TEXT"
NO_SUCH_COMMAND = "* no such command; /help lists them, and //TEXT says /TEXT"


@pytest.mark.parametrize(
    "said, answers",
    [
        *(("/who", ["* here: Ann, John and 1 unnamed"]), ("/ping", ["* pong"])),
        ("/nick Jo\n/names\n/exit", ["* you are Jo", "* here: Ann, Jo and 1 unnamed", "* bye"]),
        ("/quit\nnot heard", ["* bye"]),
        *((line, [HOW_TO_WHISPER]) for line in ("/msg Ann hi", "/msg Ann: ", "/msg")),
        ("/msg Bob: hi", ["* nobody here has that name; /who lists them"]),
        *((line, [NO_SUCH_COMMAND]) for line in ("/nonsense", "/", "/NAME x", "\x00/x")),
    ],
)
def test_only_their_sender_gets_answers_to_commands(hall: Hall, said: str, answers: Any) -> None:
    ann, john, _ = hall.join("Ann"), hall.join("John"), hall.join()
    hall.say(john, f"John: x\n{said}\nJohn: y\n")
    assert hall.heard(john) == answers
    has_left = answers[-1:] == ["* bye"]
    assert (john in hall.room.members) != has_left
    heard = hall.heard(ann)
    assert heard[0] == "John: x"
    assert heard[-1].endswith(" left" if has_left else "John: y")
    assert len(heard) == 2 + ("/nick" in said)


@pytest.mark.parametrize("letter, most, more", [("x", 8192, ", 100"), ("\U00020000", 8300, "")])
def test_a_crowd_has_a_short_list(hall: Hall, letter: str, most: int, more: str) -> None:
    """Of long names, too: whoever asks and doesn't read keeps an answer or two in memory."""
    one = hall.join()
    hall.say(one, "/who\n/name A\n/who\n")
    assert hall.heard(one) == ["* here: 1 unnamed", "* you are A", "* here: A"]
    for number in range(299):
        hall.join(f"{letter * 29}{number:03}")
    hall.say(one, "/who\n")
    (answer,) = hall.heard(one)
    assert most - 1500 < len(answer.encode()) < most and answer.endswith(f"{more} more")


def test_private_message_reaches_one_alone(hall: Hall) -> None:
    john, ann, third = hall.join("John"), hall.join("Ann Lee"), hall.join()
    hall.say(john, "/msg ann lee: psst: you\n")
    assert hall.heard(ann) == ["John (private): psst: you"]
    assert hall.heard(john) == hall.heard(third) == []
    hall.say(third, "/msg Ann Lee: hi\n")
    assert hall.heard(third) == ["* take a name before you send a private message: /name NAME"]
    assert hall.heard(ann) == []


# What has a limit


def test_names_that_are_added_count_for_how_much_is_said_at_once(hall: Hall) -> None:
    """Short lines from somebody with a long name are many times as much as what has come."""
    one = hall.join("\U00020000" * 31)
    rest = hall.say(one, "x\n" * 100, limit=1000)
    said = hall.room.take_batch().text
    assert 1000 <= len(said) < 1200
    assert len(rest) // 2 + said.count(b"\n") == 100


@pytest.mark.parametrize("line", ["* x", "x\b", "/ping", "/msg", "\ufdfa: x", "\u0301x"])
def test_what_is_heard_line_by_line_is_heard_while_there_is_time(hall: Hall, line: str) -> None:
    """And what there was no time for is heard in later turns, some of it in each."""
    one, two = hall.join(), hall.join()
    chunk, count = f"{line}\n".encode() * 1000, 0
    while chunk:
        before = len(chunk)
        chunk = hall.say(one, chunk, until=0.0)  # which has passed, in CPU seconds
        assert 0 < before - len(chunk) <= chat_server.LOOK_AT + len(f"{line}\n".encode())
        count += 1
        hall.turn()
    assert count > 10
    assert len(hall.heard(two)) in (0, 1000)
    assert len(hall.heard(one)) <= 1000


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_blank_lines_are_nothing_however_many_they_are(hall: Hall, blank: str) -> None:
    assert not hall.say(hall.join(), f"{blank}\n" * 1000, until=0.0)


def test_plain_lines_are_relayed_whole(hall: Hall) -> None:
    unnamed, named = hall.join(), hall.join("John")
    hall.say(unnamed, "a\nb\nc\n")
    hall.say(named, "John: \u00e4\nJohn: b\n")
    assert hall.room.batch.parts == [b"a\nb\nc\n", "John: \u00e4\nJohn: b\n".encode()]


def test_answers_have_a_limit_in_each_turn(hall: Hall) -> None:
    """Whoever asks a thousand times and doesn't read the answers has little of them in a queue."""
    one = hall.join()
    rest = b"/who\n" * 1000
    answers = 0
    while rest:
        rest = hall.say(one, rest)
        assert hall.room.batch.told[one] < MAX_UNREAD
        answers += len(hall.heard(one))
    assert answers == 1000


def test_whoever_does_not_read_gets_no_more_private_messages(hall: Hall) -> None:
    john, ann = hall.join("John"), hall.join("Ann")
    ann.unread_answers = MAX_UNREAD + 1  # what she has asked for herself keeps nobody from her
    hall.say(john, "/msg Ann: psst\n" * 1000)
    assert 0 < ann.unread_whispers <= chat_server.MAX_WHISPERED + TOLD_COST + 99
    assert ann.unread_answers == MAX_UNREAD + 1
    hall.say(ann, "/msg John: but he is heard\n")
    *refused, last = hall.heard(john)
    assert set(refused) == {"* Ann is not reading; that was not delivered"}
    assert last == "Ann (private): but he is heard"
    assert set(hall.heard(ann)) == {"John (private): psst"}
    hall.say(john, "/msg Ann: again\n")  # as she has read
    assert hall.heard(ann) == ["John (private): again"]


# What the room says can be read in one way alone, by the grammar that README's table is


def test_every_notice_of_the_source_is_in_readmes_table() -> None:
    source = (ROOT / "chat_server.py").read_text("utf-8").partition("# === IV.")[0]
    calls = r'(?:announce|tell|Dismissed)\([^"\n]*?(?:\n\s+)?f?"([^"\n]+)"'
    said = [text.replace("{how}", "left") for text in re.findall(calls, source)]
    assert len(said) > 25
    for text in said:
        ways = [readings("* " + re.sub(r"\{.+?\}", one, text)) for one in ("Ann", "7")]
        assert [len(one) for one in ways] in ([1, 1], [0, 1]), text


@pytest.mark.parametrize("word", [*WORDS, "to"])
def test_the_rooms_own_words_are_no_part_of_a_name(word: str) -> None:
    for name in (word, f"{word} Ann", f"{word.upper()} Ann"):
        with pytest.raises(ValueError, match="only the room says"):
            valid_name(name)
        assert not readings(f"* {name} joined")


SOME_WORDS = "Ann Bob 2 3 by room here closing bye pong wrong password nobody not reading private"
SOME_WORDS += f" a name Lab-3 X. are is to operator full {' '.join(WORDS)}"


def test_a_notice_is_read_in_one_way() -> None:
    """Whatever names that can be taken are in it."""
    chance = random.Random(1)
    names = []
    for _ in range(500):
        with suppress(ValueError):
            words = chance.choices(SOME_WORDS.split(), k=chance.choice([1, 1, 2, 3]))
            names.append(valid_name(" ".join(words)))
    assert len(names) > 200
    for form in FORMS:
        text = re.sub(r"\bN\b", "7", form.replace("NAMES", "NAME, NAME"))
        for two in zip(names, reversed(names)):
            line = text.replace("NAME", two[0], 1).replace("NAME", two[1])
            assert readings(line) == [(form, two[: text.count("NAME")])]
