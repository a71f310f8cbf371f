"""Part III, the door: who passes for nobody else, who gets a place, who may guess a password."""

from __future__ import annotations

import math
import os
import random
import re
import select
import time
import unicodedata
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from support import DEADLINE, WELCOME, Inside, checked_server, pair
from test_room import ASTERISKS, COLONS, TAKEN, Hall

import chat_server
from chat_server import (
    SILENCE,
    Connection,
    Dismissed,
    State,
    WebSocket,
    host_of,
    loser_to,
)

# Voices


@pytest.fixture
def hall() -> Hall:
    """A room full of names."""
    hall = Hall()
    for name in TAKEN:
        hall.join(name)
    return hall


@pytest.mark.parametrize(
    "line",
    [
        *("Ann: hi", "ann : hi", " " * 300 + "Ann: hi", "\x07Ann: hi", "Ann (private): hi"),
        *("* Ann left", "*\u00a0Ann left", "*\tAnn left", " * Ann left", "\x07* Ann left"),
        *(f"*{blank}the room is closing" for blank in "\u115f\u1160\u2800\u3164\uffa0"),
        # what has no width where it stands
        *(f"{mark}Ann: I quit" for mark in "\u0301\u20dd\u11a8\u1160\ud7b0\u0903\u200b\ufe0f"),
        *(f"{mark}* Ann left" for mark in "\u0301\u20dd\u11a8\u1160\ud7b0\u0903\u200b\ufe0f"),
        *("\u0301\u11a8\u0301Ann: hi", " \u0301 \u0301Ann: hi", "* \u3164Ann left"),
        pytest.param("\u0301" * 1000 + "Ann: hi", id="long"),
        pytest.param("\u02d0\u2800" * 1000 + "Ann: hi", id="longer"),
        *("An\u11a8n: hi", "A\u0304nn: hi", "A\u200cnn: hi", "A\u180bnn\u3164: hi"),
        # what may look like a colon, or an asterisk and a blank
        *(f"\u0930\u093e\u092e{colon} hi" for colon in COLONS),
        *(f" {asterisk}\u2800Ann left" for asterisk in ASTERISKS),
        *("\U0001d134 * Ann left", "Ann (priv\u0430te): hi", "A.n-n' : hi", "Ann\ufe30 hi"),
        # a taken name that is written in another way
        *("\u24b6\u24dd\u24dd\u2236 hi", "\U0001d400\U0001d427\U0001d427: hi"),
        *("Zoe\u200d\u0308\u2236 hi", "Z\u0301oe\u0308: hi", "O\u2019Neil: hi"),
        "\u0639\u0644\u06cc\u0631\u0636\u0627: hi",
        # what turns it around
        *("\u202eAnn: hi", "An\u202bn: hi", "\u200b\u0301 \u2067* Ann left"),
    ],
)
def test_nobody_passes_for_another_or_for_the_room(hall: Hall, line: str) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, f"fine\n{line}\nfine too\n")
    assert hall.heard(two) == ["fine", "fine too"]
    assert len(hall.heard(one)) == 1, "it is told why"


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


def test_combined_tricks(hall: Hall) -> None:
    """Some 2,000 of them; set TRICKS to try more."""
    chance = random.Random(1)
    one, two = hall.join(), hall.join()
    for _ in range(int(os.environ.get("TRICKS", "2000"))):
        line = trick(chance, chance.choice(TAKEN))
        hall.say(one, f"{line}\n")
        assert hall.heard(two) == [], ascii(line)


@pytest.mark.parametrize(
    "line",
    [
        *("12:30 lunch?", "*bold*", "*", " x ", "\ttab", "Anna: hi", "2 * 3", "- Ann: \u00bd"),
        *("> Ann: I quit", "I saw Ann: \u2026", "Ann (she is 5) says hi", "Ann, hi \U0001f600"),
        *("\u00e9t\u00e9: oui", "\u2217bold\u2217", "*\u00e9*", "\u2018Ann: hi\u2019"),
        "Ann\u2019s here: \u201clook\u201d",
        *("\U0001f600 hi", "\U0001f600\U0001f600: hi", "\u2764\ufe0f hi"),
        "1\ufe0f\u20e3 one: \u2022",
        *("\u2022 item", "\u2014 so?", "\u00ab Oui \u00bb: non", "\u00a1Hola!"),
        "\u201cQuoted\u201d, she said: \u2026",
        pytest.param("\u250c\u2500\u2500\u2510" * 200, id="box"),
        pytest.param("\u2705 " * 1000, id="long"),
        pytest.param("a\u0301" * 1000, id="accents"),
        "\u0421\u043c\u043e\u0442\u0440\u0438 README: \u0442\u0430\u043c",
        *("\u1112\u1161\u11ab: decomposed", "e\u0301: decomposed too"),
        "\u0928\u092e\u0938\u094d\u0924\u0947: \u0926\u0941\u0928\u093f\u092f\u093e",
        "\u092e\u0948\u0902 \u0920\u0940\u0915 \u0939\u0942\u0901\u0964",
        "\u4f60\u597d\uff1a\u4e16\u754c\u3002",
        "\u30e1\u30a2\u30ea\u30fc\u3055\u3093\u3001\u3053\u3093\u306b\u3061\u306f\uff1a",
        "\u0633\u0644\u0627\u0645: \u0645\u06cc\u200c\u0631\u0648\u0645",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35: \u0e04\u0e23\u0e31\u0e1a",
    ],
)
def test_other_lines_are_relayed_byte_for_byte(hall: Hall, line: str) -> None:
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


@pytest.mark.parametrize("name", ["", "Ann"])
def test_nobody_without_a_name_says_aloud_what_looks_private(name: str) -> None:
    """Also with a name that nobody has; and what only has the mark in it is a message."""
    hall = Hall()
    one, two = hall.join(), hall.join(name)
    hall.say(one, "Bob (private): meet me\nBob (private):\nBob (private) is: a friend\n")
    assert hall.heard(two) == ["Bob (private) is: a friend"]
    assert hall.heard(one) == ["* not said, as it would pass for a private message"] * 2


# No answer sets off another


def test_a_line_like_the_rooms_is_explained_once(hall: Hall) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, "* a\n* b\n\u2217 c\nfine\n")
    assert hall.heard(two) == ["fine"]
    (answer,) = hall.heard(one)
    assert answer.startswith("* only the room begins a line")


@pytest.mark.parametrize("names", [[], ["Ann", "Bob"]])
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


# Places


def guests(hosts: str, silent: str = "") -> list[Any]:
    """Returns one guest from each host, in the order in which they came."""
    return [
        SimpleNamespace(host=host, since=float(at), silent=str(at) in silent)
        for at, host in enumerate(hosts)
    ]


@pytest.mark.parametrize(
    "host, there, silent, now, loser",
    [
        ("c", "ababa", "", 0.0, 4),  # the newest of the host that has most
        ("b", "ababa", "", 0.0, None),  # it would have as many as the other then
        ("a", "ababa", "", 0.0, None),
        ("a", "aab", "12", SILENCE, None),  # nobody has been silent for long
        ("a", "aab", "12", SILENCE + 1, 1),  # that is no claim against one's own host
        ("c", "aab", "12", SILENCE + 1, 1),
    ],
)
def test_a_place_goes_from_the_host_that_has_most_to_one_that_has_fewer(
    host: str, there: str, silent: str, now: float, loser: int | None
) -> None:
    those = guests(there, silent)
    assert loser_to(host, those, now) is (None if loser is None else those[loser])


def test_a_host_is_an_address_or_a_network_of_64_bits() -> None:
    assert host_of("192.0.2.1:7") == "192.0.2.1"
    one, same, other = "2001:db8:1:2::3", "2001:db8:1:2:ffff::", "2001:db8:1:3::3"
    assert host_of(f"[{one}]:7") == host_of(f"[{same}]:8") != host_of(f"[{other}]:7")
    assert host_of("[fe80::1%eth0]:7") == host_of("[fe80::1]:7") != host_of("[fe80::2]:7")
    assert host_of("somebody") == ""  # whose address is not known, on macOS


def test_nobody_keeps_others_out_by_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever quits and doesn't close has a place for a while, as members do."""
    monkeypatch.setattr(chat_server, "DOOR_SIZE", 1)
    inside = Inside(size=1)
    server = inside.server
    leavers = []
    for _ in range(2):
        leavers.append(inside.join()[1])
        leavers[-1].send(b"/quit\n")
        while server.room.members:
            server.turn()
    sock, peer = pair()
    server.admit(sock, "peer")
    assert peer.rest() == b""
    sock, peer = pair()
    server.admit(sock, "192.0.2.2:7")
    server.deliver(server.room.take_batch())
    assert peer.line() == WELCOME


# The way through the door


def test_all_hosts_together_try_ten_passwords_a_second() -> None:
    door = checked_server(password=b"secret").door
    now = 1000.0
    door.clock.monotonic = lambda: now
    tries: Counter[str] = Counter()
    for _ in range(20 * 20):
        now += 1 / 20
        for host in map(str, range(300)):
            if door.may_try(host):
                door.note_wrong(host)
                tries[host] += 1
    assert 200 <= sum(tries.values()) <= 240
    assert max(tries.values()) <= 3 + 20
    assert len(door.tried) < 100, "hosts that may try again are forgotten"


class AtDoor:
    """A door that wants a password, and somebody at it."""

    def __init__(self) -> None:
        self.server = checked_server(password=b"secret")
        self.door = self.server.door
        sock, self.peer = pair()
        self.door.admit(sock, "192.0.2.1:7")
        (self.conn,) = self.server.membership.newcomers
        self.peer.expect("* password?\n")

    def say(self, data: bytes) -> Connection:
        """Says something, which the door hears; returns the connection."""
        self.peer.send(data)
        select.select([self.conn.sock], [], [], DEADLINE)
        self.door.serve([self.conn])
        return self.conn

    def time_is_up(self) -> None:
        self.door.go_on(self.conn, True)


@pytest.fixture
def at_door() -> AtDoor:
    return AtDoor()


def test_time_at_the_door_does_not_begin_anew_with_each_byte(at_door: AtDoor) -> None:
    until = at_door.conn.until
    for byte in (b"s", b"e", b"c"):
        assert at_door.say(byte).state is State.DOOR
    assert at_door.conn.until == until
    conn = at_door.say(b"ret\r\nand more\nand")
    assert conn.state is State.MEMBER
    assert (conn.unheard, conn.input.partial) == (b"and more\n", b"and")


def test_nothing_that_comes_has_a_wrong_password_answered_before_its_time(at_door: AtDoor) -> None:
    conn = at_door.say(b"guess\n")
    assert not conn.reading
    assert conn.until > time.monotonic()
    conn.use(WebSocket(1000))
    conn.input.ended = True  # a browser that closes at once
    assert at_door.say(b"more\n").state is State.DOOR
    with pytest.raises(Dismissed, match="wrong password"):
        at_door.time_is_up()


def test_a_password_that_comes_too_early_waits(at_door: AtDoor) -> None:
    for _ in range(10):
        at_door.door.note_wrong(at_door.conn.host)
    conn = at_door.say(b"secret\nmore")
    assert not conn.reading
    at_door.time_is_up()
    assert conn.state is State.DOOR, "it is still too early"
    at_door.door.tried.clear()
    at_door.door.all_tried = 0.0
    at_door.time_is_up()
    assert conn.state is State.MEMBER
    assert conn.input.partial == b"more"


def test_whoever_is_kept_out_by_now_does_not_get_in_with_the_password(at_door: AtDoor) -> None:
    at_door.door.bar(at_door.conn.host)
    assert at_door.say(b"secret\n").state is State.LEAVING


def test_whoever_is_dismissed_is_read_to_its_end(at_door: AtDoor) -> None:
    """A close before that would be a reset, which destroys what it is told."""
    membership = at_door.server.membership
    conn = at_door.say(b"guess\n")
    at_door.peer.send(b"another guess\n")
    membership.guard(at_door.door.go_on, conn, True)
    at_door.server.deliver(membership.room.take_batch())
    assert conn in membership.leaving and conn.reading
    assert at_door.peer.rest() == b"* wrong password\n"


def test_the_door_takes_no_more_than_its_share_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "DOOR_SHARE", -math.inf)  # which each step exceeds
    server = checked_server(password=b"secret")
    knocking = [pair() for _ in range(3)]
    for sock, peer in knocking:
        server.admit(sock, "peer")
        peer.send("secret\n")
        select.select([sock], [], [], DEADLINE)
    for turn in range(1, 4):
        server.turn()
        assert len(server.room.members) == turn
