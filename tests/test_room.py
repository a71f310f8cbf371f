"""The room's logic without sockets: who is here, what a line means, who gets what of it."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import pytest

from chat_server import (
    LOOK_AT,
    MAX_HISTORY,
    MAX_NAME,
    MAX_UNREAD,
    MAX_WHISPERED,
    TOLD_COST,
    WELCOME,
    History,
    Member,
    Room,
    check_voice,
    identity,
    valid_name,
)


class Hall:
    """A room, and what each of its members has received so far."""

    def __init__(self, history: int = 0, **options: Any) -> None:
        self.room = Room(**options)
        self.room.history = History(history) if history else None
        self.room.checks.append(partial(check_voice, self.room))
        self.got: dict[Member, bytes] = {}

    def join(self, name: str = "") -> Member:
        member = Member()
        self.got[member] = b""
        self.room.join(member)
        if name:
            self.say(member, f"/name {name}\n")
        self.turn()
        for other in self.got:
            self.got[other] = b""
        return member

    def say(
        self,
        member: Member,
        text: str | bytes,
        until: float = math.inf,
        limit: float = math.inf,
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
        """Returns the lines that the member got since it was last asked."""
        self.turn()
        text, self.got[member] = self.got[member], b""
        assert text == b"" or text.endswith(b"\n")
        return text.decode().split("\n")[:-1]


@pytest.fixture
def hall() -> Hall:
    return Hall()


def test_line_goes_to_everyone_but_its_sender(hall: Hall) -> None:
    one, two, three = hall.join(), hall.join(), hall.join()
    hall.say(one, "hi\n")
    assert hall.heard(one) == []
    assert hall.heard(two) == hall.heard(three) == ["hi"]


def test_in_one_turn_each_gets_what_the_others_said_in_the_same_order(hall: Hall) -> None:
    one, two, three = hall.join(), hall.join(), hall.join()
    hall.say(one, "a\n")
    hall.say(two, "b\n")
    hall.say(one, "c\n")
    assert hall.heard(one) == ["b"]
    assert hall.heard(two) == ["a", "c"]
    assert hall.heard(three) == ["a", "b", "c"]


def test_welcome_comes_first_and_nothing_from_before(hall: Hall) -> None:
    one = hall.join()
    hall.say(one, "before\n")
    newcomer = Member()
    hall.got[newcomer] = b""
    hall.room.join(newcomer)
    hall.say(one, "after\n")
    assert hall.heard(newcomer) == [WELCOME, "after"]


def test_whoever_leaves_gets_what_was_said_before_in_the_same_turn(hall: Hall) -> None:
    one, two = hall.join(), hall.join("Two")
    hall.say(one, "before\n")
    hall.room.leave(two)
    hall.say(one, "after\n")
    assert hall.heard(two) == ["before"]
    assert hall.heard(one) == ["* Two left"]


def test_answers_stand_where_they_were_asked_for(hall: Hall) -> None:
    one, two = hall.join(), hall.join("Two")
    hall.say(two, "Two: first\n")
    hall.say(one, "x\n/who\ny\n")
    hall.say(two, "Two: second\n")
    assert hall.heard(one) == ["Two: first", "* here: Two and 1 unnamed", "Two: second"]
    assert hall.heard(two) == ["x", "y"]


# Names


def test_naming_is_announced_to_the_others_and_confirmed_to_oneself(hall: Hall) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, "/name John\n")
    assert (hall.heard(one), hall.heard(two)) == (["* you are John"], ["* John joined"])
    hall.say(one, "/name Jim\n")
    assert (hall.heard(one), hall.heard(two)) == (["* you are Jim"], ["* John is now Jim"])
    hall.say(one, "/name Jim\n")
    assert (hall.heard(one), hall.heard(two)) == (["* you are Jim"], [])
    hall.say(two, "/name John\n")
    assert hall.heard(two) == ["* you are John"]


@pytest.mark.parametrize("same", ["John", "JOHN", "\uff2a\uff4f\uff48\uff4e", "  john "])
def test_name_is_taken_however_it_is_written(hall: Hall, same: str) -> None:
    hall.join("John")
    two = hall.join()
    hall.say(two, f"/name {same}\n")
    assert hall.heard(two)[0].lower() == "* john is taken"
    assert not two.name


def test_one_may_change_the_case_of_ones_own_name(hall: Hall) -> None:
    one, two = hall.join("john"), hall.join()
    hall.say(one, "/name John\n")
    assert hall.heard(one) == ["* you are John"]
    assert hall.heard(two) == ["* john is now John"]


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * (MAX_NAME + 1), "a:b", "*x", "/x", "a\u200bb", "a\u202eb", "John (private)"),
        *("John\ufe0f", "Jo\u034fhn", "\u3164", "\u2800", "\u0301"),
    ],
)
def test_bad_name_is_explained(hall: Hall, name: str) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, f"/name {name}\n")
    answer = hall.heard(one)
    assert len(answer) == 1
    assert answer[0].startswith("* a name ")
    assert hall.heard(two) == []


def test_names_are_kept_in_their_compatible_form() -> None:
    assert valid_name(" \uff2a\uff4f\uff48\uff4e ") == "John"
    assert valid_name("x" * MAX_NAME) == "x" * MAX_NAME
    assert valid_name("Zo\u0065\u0308") == "Zo\u00eb"
    assert identity("Stra\u00dfe") == identity("STRASSE")


def test_a_name_of_combining_marks_takes_no_time(hall: Hall) -> None:
    one = hall.join()
    marks = "\u0315\u0300\u05ae\u0327" * 500  # NFKC sorts them, and is slow at that
    for _ in range(200):
        hall.say(one, f"/name {marks}\n")
        hall.say(one, f"{marks}: x\n")
    assert not one.name


def test_messages_of_a_named_member_begin_with_the_name(hall: Hall) -> None:
    one, two = hall.join("John"), hall.join()
    hall.say(one, "John: a\nb\njohn: c\nAnn: d\n* e\n//f\nJohn: /g\n")
    assert hall.heard(two) == [
        "John: a",
        "John: b",
        "John: john: c",
        "John: Ann: d",
        "John: * e",
        "John: /f",
        "John: /g",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "John: hi",
        "john : hi",
        "  John: hi",
        "\u200bJohn: hi",
        "Jo\u00adhn: hi",
        "\uff2a\uff4f\uff48\uff4e\uff1a hi",
        "John (private): hi",
        "* John left",
        "\u200b* John left",
        "\uff0a John left",
        "*\u00a0John left",
        "*\tJohn left",
        " * John left",
        "John\u00a0(private): hi",
        "John (private) : hi",
        "Jo\ufe0fhn: hi",
        "J\u180bohn\u3164: hi",
        " " * 300 + "John: hi",
        "\u200b" * 300 + "John: hi",
    ],
)
def test_nobody_without_a_name_speaks_for_another_or_for_the_room(hall: Hall, line: str) -> None:
    hall.join("John")
    two, three = hall.join(), hall.join()
    hall.say(two, f"fine\n{line}\nfine too\n")
    answer = hall.heard(two)
    assert len(answer) == 1
    assert answer[0].startswith("* ")
    assert hall.heard(three) == ["fine", "fine too"]


def test_unnamed_members_are_relayed_byte_for_byte(hall: Hall) -> None:
    hall.join("John")
    one, two = hall.join(), hall.join()
    lines = ["12:30 lunch?", "*bold*", "*", " x ", "\ttab", "Johnny: hi", "Grüße: 你好 😀"]
    hall.say(one, "".join(f"{line}\n" for line in lines))
    assert hall.heard(two) == lines


# Commands


def test_who_names_the_named_and_counts_the_others(hall: Hall) -> None:
    one = hall.join()
    hall.say(one, "/who\n")
    assert hall.heard(one) == ["* here: 1 unnamed"]
    hall.say(one, "/name A\n/who\n")
    assert hall.heard(one)[-1] == "* here: A"
    hall.join("B")
    hall.join()
    hall.join()
    hall.say(one, "/who\n")
    assert hall.heard(one)[-1] == "* here: A, B and 2 unnamed"


def test_who_in_a_crowd_stays_one_line_of_reasonable_length(hall: Hall) -> None:
    for number in range(300):
        one = hall.join(f"{number:032}")
    hall.say(one, "/who\n")
    (answer,) = hall.heard(one)
    assert len(answer) < 8192
    assert answer.endswith(", 100 more")


def test_private_message_reaches_one_alone(hall: Hall) -> None:
    john, ann, third = hall.join("John"), hall.join("Ann Lee"), hall.join()
    hall.say(john, "/msg ann lee: psst: you\n")
    assert hall.heard(ann) == ["John (private): psst: you"]
    assert hall.heard(john) == hall.heard(third) == []


@pytest.mark.parametrize(
    "line, hint",
    [
        ("/msg Ann hi", "/msg NAME: TEXT"),
        ("/msg", "/msg NAME: TEXT"),
        ("/msg Bob: hi", "/who"),
        ("/nonsense", "/help"),
        ("/", "/help"),
        ("/NAME x", "/help"),
    ],
)
def test_lines_that_make_no_sense_are_answered_with_one_line(
    hall: Hall, line: str, hint: str
) -> None:
    one, two = hall.join("John"), hall.join()
    hall.say(one, f"{line}\nJohn: and on\n")
    (answer,) = hall.heard(one)
    assert answer.startswith("* ")
    assert hint in answer
    assert hall.heard(two) == ["John: and on"]


def test_private_message_needs_a_sender_with_a_name(hall: Hall) -> None:
    hall.join("Ann")
    one = hall.join()
    hall.say(one, "/msg Ann: hi\n")
    assert "/name" in hall.heard(one)[0]


def test_help_names_every_command(hall: Hall) -> None:
    one = hall.join()
    hall.say(one, "/help\n")
    answer = "\n".join(hall.heard(one))
    assert all(command in answer for command in hall.room.commands if command != "/help")


def test_ping_is_answered_to_its_sender_alone(hall: Hall) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, "x\n/ping\n")
    assert hall.heard(one) == ["* pong"]
    assert hall.heard(two) == ["x"]


def test_what_commands_are_called_elsewhere_works_too(hall: Hall) -> None:
    one = hall.join()
    hall.say(one, "/nick John\n/names\n/exit\n")
    assert hall.heard(one) == ["* you are John", "* here: John", "* bye"]
    assert not hall.room.members


def test_quit_ends_what_is_heard(hall: Hall) -> None:
    one, two = hall.join("John"), hall.join()
    hall.say(one, "John: a\n/quit\nJohn: b\n")
    assert one not in hall.room.members
    assert hall.heard(two) == ["John: a", "* John left"]


# Cleaning


@pytest.mark.parametrize("name", ["", "John"])
def test_bad_bytes_are_harmless(hall: Hall, name: str) -> None:
    one, two = hall.join(name), hall.join()
    hall.say(one, b"a\x00b\tc\x1b[31m\x07\xc2\x9b\r\n\xff\xe4\xbd\n\xed\xa0\x80\xe4\xbd\xa0\n")
    prefix = f"{name}: " if name else ""
    assert hall.heard(two) == [
        f"{prefix}ab\tc[31m",
        f"{prefix}\ufffd\ufffd",
        f"{prefix}\ufffd\ufffd\ufffd\u4f60",
    ]


def test_control_characters_hide_neither_a_command_nor_a_name(hall: Hall) -> None:
    hall.join("John")
    one, two = hall.join(), hall.join()
    hall.say(one, "\x00/who\n\x07John: hi\n")
    assert len(hall.heard(one)) == 2
    assert hall.heard(two) == []


def test_c1_controls_are_removed_from_lines_that_begin_with_the_name(hall: Hall) -> None:
    one, two = hall.join("John"), hall.join()
    hall.say(one, "John: \u009b31mred\n")
    assert hall.heard(two) == ["John: 31mred"]


def test_broken_bytes_of_a_member_that_puts_its_name_itself_are_replaced(hall: Hall) -> None:
    one, two = hall.join("John"), hall.join()
    hall.say(one, b"John: a\nJohn: \xff\xe4\xbd\n")
    assert hall.heard(two) == ["John: a", "John: \ufffd\ufffd"]


# Work


def test_chunks_that_need_no_attention_are_relayed_whole(hall: Hall) -> None:
    unnamed, named = hall.join(), hall.join("John")
    hall.say(unnamed, "a\nb\nc\n")
    hall.say(named, "John: ä\nJohn: b\n")
    assert hall.room.batch.parts == [b"a\nb\nc\n", "John: ä\nJohn: b\n".encode()]


def test_names_that_are_added_count_for_how_much_is_said_at_once(hall: Hall) -> None:
    """Short lines from somebody with a long name are many times as much as what has come."""
    one = hall.join("\U00020000" * 31)
    rest = hall.say(one, "x\n" * 100, limit=1000)
    said = hall.room.take_batch().text
    assert 1000 <= len(said) < 1200
    assert len(rest) // 2 + said.count(b"\n") == 100


def test_a_chunk_with_long_consequences_is_heard_over_several_turns(hall: Hall) -> None:
    one, two = hall.join("n" * MAX_NAME), hall.join()
    rest = "".join(f"{number}\n" for number in range(5000)).encode()
    turns = 0
    lines: list[str] = []
    while rest:
        before = len(rest)
        rest = hall.say(one, rest, until=0.0)  # which has passed
        assert before - len(rest) <= LOOK_AT + len("9999\n")
        lines += hall.heard(two)
        turns += 1
    assert lines == [f"{'n' * MAX_NAME}: {number}" for number in range(5000)]
    assert turns > 10


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


def test_history_is_given_to_newcomers_once_and_in_order(hall: Hall) -> None:
    hall = Hall(history=3)
    one = hall.join("John")
    hall.say(one, "John: 1\nJohn: 2\n/who\nJohn: 3\n4\n")
    newcomer = Member()
    hall.got[newcomer] = b""
    hall.room.join(newcomer)
    hall.say(one, "John: 5\n")
    assert hall.heard(newcomer) == [
        "Welcome to the chatroom!",
        "John: 2",
        "John: 3",
        "John: 4",
        "John: 5",
    ]


def test_history_is_bounded_in_bytes_and_shared() -> None:
    history = History(1000)
    for number in range(100):
        history.add(f"{number:03}".encode() + b"x" * 8000 + b"\n")
        assert history.size <= 128 * 1024 + 8192 + 4096  # though nobody has joined
    text = b"".join(history.pieces())
    assert 120 * 1024 < len(text) <= 128 * 1024
    assert text.endswith(b"099" + b"x" * 8000 + b"\n")
    assert text.startswith(b"084xxx")
    for one, other in zip(history.pieces()[1:], history.pieces()[1:]):
        assert one is other


@pytest.mark.parametrize("count", [1, 3, 100, 5000])
def test_history_has_the_last_lines_however_they_came(count: int) -> None:
    chance = random.Random(count)
    history = History(count)
    lines: list[bytes] = []
    for _ in range(300):
        chunk = [b"x" * chance.choice([0, 1, 30, 700]) for _ in range(chance.choice([1, 1, 2, 90]))]
        history.add(b"".join(line + b"\n" for line in chunk))
        lines += chunk
        kept = b"".join(history.pieces()).split(b"\n")[:-1]
        assert kept == lines[-count:] or kept == lines[len(lines) - len(kept) :] != []
        assert len(kept) <= count
        size = sum(len(line) + 1 for line in kept)
        assert size <= MAX_HISTORY
        if len(kept) < min(count, len(lines)):  # one line more would have been too much
            assert size + len(lines[-len(kept) - 1]) + 1 > MAX_HISTORY


@pytest.mark.parametrize("filler", "\u115f\u1160\u2800\u3164\uffa0")
def test_a_blank_is_a_blank_whatever_it_is_called(hall: Hall, filler: str) -> None:
    john, one = hall.join("John"), hall.join()
    hall.say(one, f"*{filler}the room is closing\nJohn{filler}(private): hi\n")
    assert hall.heard(john) == []


def test_the_mark_of_a_private_message_in_any_case(hall: Hall) -> None:
    john, one = hall.join("John"), hall.join()
    hall.say(one, "John (Private): hi\n/name John (PRIVATE)\n")
    assert hall.heard(john) == []


@pytest.mark.parametrize("name", ["", "Ann"])
def test_nobody_without_a_name_says_aloud_what_looks_private(hall: Hall, name: str) -> None:
    """Also with a name that nobody has; and what only has the mark in it is a message."""
    one, two = hall.join(), hall.join(name)
    hall.say(one, "Bob (private): meet me\nBob (private):\nBob (private) is: a friend\n")
    assert hall.heard(two) == ["Bob (private) is: a friend"]
    assert hall.heard(one) == ["* not said, as it would pass for a private message"] * 2


def test_history_has_messages_alone() -> None:
    hall = Hall(history=10)
    one = hall.join("John")
    hall.join("Ann")
    hall.say(one, "John: hi\n/msg Ann: psst\n/name Jim\n/who\n")
    assert hall.room.history and hall.room.history.pieces() == [b"John: hi\n"]


def test_text_without_cuts_is_shared_and_a_forgotten_member_takes_its_cuts_along(
    hall: Hall,
) -> None:
    one, two, three = hall.join(), hall.join("Two"), hall.join("Three")
    hall.say(one, "hi\n/who\n")
    hall.say(two, "/msg Three: psst\n")
    batch = hall.room.take_batch()
    assert batch.part_for(two, None) is batch.text
    answer = len("* here: Two, Three and 1 unnamed\n") + TOLD_COST
    whisper = len("Two (private): psst\n") + TOLD_COST
    assert (one.unread_answers, one.unread_whispers) == (answer, 0)
    assert (three.unread_answers, three.unread_whispers) == (0, whisper)
    for member in (one, three, three):
        batch.forget(member)
        assert (member.unread_answers, member.unread_whispers) == (0, 0)
    assert not batch.cuts and not batch.told and not batch.whispered


def test_whoever_does_not_read_gets_no_more_private_messages(hall: Hall) -> None:
    john, ann = hall.join("John"), hall.join("Ann")
    ann.unread_whispers = MAX_WHISPERED + 1
    hall.say(john, "/msg Ann: psst\n")
    assert hall.heard(john) == ["* Ann is not reading; that was not delivered"]
    assert hall.heard(ann) == []
    ann.unread_whispers = 0
    ann.unread_answers = MAX_UNREAD + 1  # what she has asked for herself keeps nobody from her
    hall.say(john, "/msg Ann: psst\n")
    assert hall.heard(ann) == ["John (private): psst"]


def test_in_one_turn_nobody_gets_private_messages_without_end(hall: Hall) -> None:
    john, ann, bob = hall.join("John"), hall.join("Ann"), hall.join("Bob")
    hall.say(john, "/msg Ann: psst\n" * 1000)
    assert 0 < hall.room.batch.whispered[ann] <= MAX_WHISPERED + TOLD_COST
    assert ann not in hall.room.batch.told
    hall.say(bob, "/msg John: he whispers\n")
    assert "Bob (private): he whispers" in hall.heard(john)
