"""The door: who gets in, what guessing a password costs, whom operators remove, who can't come
back."""

from __future__ import annotations

import hmac
import math
import time
import unicodedata
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import support
from pytest import LogCaptureFixture, MonkeyPatch
from support import WELCOME, Inside, Start, StoppedClock, checked_server
from test_room import ASTERISKS, COLONS, TAKEN, Hall

import chat_client
import chat_server
from chat_server import Connection, Dismissed, State, begins_like, host_of, look, valid_name

OPERATORS = "staple battery"
REMOVED = "* you were removed by an operator; come back in 10 min\n"


# The password


@pytest.mark.parametrize(
    "make, said, seconds, heard",
    [
        (support.tls_room, b"", chat_server.HELLO_TIME, b"* this room speaks TLS; use --tls\n"),
        (support.tls_room, b"\x16\x03\x01", chat_server.DOOR_TIME, b""),
        (checked_server, b"sec", chat_server.DOOR_TIME, b"* password?\n"),
        (checked_server, b"guess\n", chat_server.WRONG_TIME, b"* password?\n* wrong password\n"),
    ],
    ids=["hello", "handshake", "password", "wrong password"],
)
def test_nobody_is_at_the_door_for_long(
    make: Callable[..., Any], said: bytes, seconds: float, heard: bytes
) -> None:
    server = make(password=b"secret")
    clock, peer = StoppedClock(server.clock), server.meet()
    if said:
        peer.send(said)
        server.turn()
    for passed, is_over in ((seconds - 0.1, False), (0.1, True)):
        clock.now += passed
        server.door.meet_deadlines()
        server.deliver(server.room.take_batch())
        assert (not server.membership.newcomers) == is_over
    assert peer.rest() == heard


def test_a_crowd_at_the_door_leaves_a_place_for_another_host(caplog: LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = checked_server(password=b"secret")
    crowd = [server.meet("192.0.2.2:7") for _ in range(chat_server.DOOR_SIZE)]
    too_late, late = server.meet("192.0.2.2:7"), server.meet("192.0.2.1:7")
    server.deliver(server.room.take_batch())
    assert too_late.rest() == b"* the room is full\n"
    assert crowd[-1].rest() == b"* password?\n", "it came last, of the host that has most"
    assert "had to make room at the door" in caplog.text
    for one in (crowd[0], late):
        one.send("secret\n")
        server.turn()
        one.expect("* password?\n", WELCOME)


def test_a_full_door_is_full_only_for_those_who_have_to_wait_there() -> None:
    """A hundred hosts have one idle connection each: after a while the oldest makes room."""
    server = checked_server(password=b"secret")
    clock = StoppedClock(server.clock)
    crowd = []
    for host in range(chat_server.DOOR_SIZE):
        clock.now += 0.01
        crowd.append(server.meet(f"192.0.2.{host}:7"))
    too_early = server.meet("198.51.100.1:7")
    clock.now += chat_server.HELLO_TIME
    late = server.meet("198.51.100.1:7")
    server.deliver(server.room.take_batch())
    assert too_early.rest() == b"* the room is full\n"
    late.expect("* password?\n")
    assert crowd[0].rest() == b"* password?\n"
    server.door.password = b""  # nobody has to wait
    _peer = server.meet("198.51.100.2:7")
    assert len(server.room.members) == 1


def test_the_log_warns_of_a_password_in_the_clear(start: Start, password: list[str]) -> None:
    for option in ("--password-file", "--operator-file"):
        start("chat_server.py", option, password[1]).wait_for_log("travels in the clear")
    assert "in the clear" not in start("chat_server.py", *password, tls=True).log()


# Where the password comes from


@pytest.mark.parametrize("module", [chat_server, chat_client])
@pytest.mark.parametrize(
    "content, given",
    [
        *((b"secret", b"secret"), (b" blanks around \r\nsecond line\n", b" blanks around ")),
        (b"\xef\xbb\xbfsecret\r\n", b"secret"),
        # As Windows writes it; some of these letters have a byte that looks like a line's end.
        (b"\xff\xfe" + "\u010a \u0a05\r\nx".encode("utf-16-le"), "\u010a \u0a05".encode()),
        (b"\xfe\xff" + "\u010a \u0a05\r\nx".encode("utf-16-be"), "\u010a \u0a05".encode()),
        (None, "cannot read the password file"),
        *((data, "there is no password in") for data in (b"", b"  \t\r\n", b"gr\xf6\xdfer\n")),
        ("secret\n".encode("utf-16-le"), "there is no password in"),  # without a mark before it
        (b"\x30\x82\x01\x0a\x02", "there is no password in"),  # such as a key in another format
    ],
)
def test_password_files(tmp_path: Path, module: Any, content: Any, given: bytes | str) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    if isinstance(given, bytes):
        assert module.read_password(str(file)) == given
        return
    with pytest.raises(module.Failure, match=rf"\A{given} {file}.*\Z"):
        module.read_password(str(file))


def test_passwords_fit_a_line_as_it_is_heard(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """The room's may come from the environment."""
    monkeypatch.setenv("CHAT_PASSWORD", " the room's \nx")
    assert chat_client.read_password(None) == b" the room's "
    args = Namespace(password_file=None, operator_file=str(tmp_path / "file"), max_line=20)
    (tmp_path / "file").write_text(f" {'x' * 16} \n")
    assert chat_server.read_passwords(args) == (b" the room's ", b"x" * 16)
    (tmp_path / "file").write_text("x" * 17)
    with pytest.raises(chat_server.Failure, match="the password is longer than a line may be"):
        chat_server.read_passwords(args)


# Operators remove somebody


def test_a_ban_that_is_over_keeps_out_neither_host_nor_name(caplog: LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    room = Staffed()
    clock = StoppedClock(room.server.clock)
    room.hear(0, "/kick N1\n")
    assert "N1 at peer was removed by N0 at peer, members: 1" in caplog.messages
    clock.now += chat_server.BAN_TIME
    room.rejoin(1)  # from the same host
    room.hear(1, "/name N1\n")
    room.peers[1].expect("* you are N1\n")


@pytest.mark.parametrize(
    "here, peer, kept_out",
    [
        ("192.0.2.1:7", "192.0.2.9:8", ["192.0.2.9"]),
        ("[2001:db8::1]:7", "[2001:db8:0:1::9]:8", ["20010db800000001"]),
        ("[2001:db8::1]:7", "[2001:db8::9]:8", ["2001:db8::9"]),
        *(("[2001:db8::1]:7", "[2001:db8::1]:8", []), ("[::1]:7", "[::1]:8", [])),
        ("127.0.0.1:7", "127.0.0.1:8", []),
        ("127.0.1.1:7", "127.0.0.1:8", []),  # Debian's address for the host's own name
        ("", "192.0.2.9:8", ["192.0.2.9"]),  # macOS has none of a connection that was reset
    ],
)
def test_where_somebody_is_kept_out_whose_name_is_anyway(
    monkeypatch: MonkeyPatch, here: str, peer: str, kept_out: list[str]
) -> None:
    """Of the room's own network, it is the address alone: everybody may be in there. And nobody of
    this machine, from which all come who come through a proxy."""
    room = Staffed(3)
    address = mock.Mock(side_effect=None if here else OSError, return_value=here)
    monkeypatch.setattr(chat_server, "format_address", address)
    for conn in room.conns[1:]:
        conn.peer, conn.host = peer, host_of(peer)
    room.hear(0, "/kick N1\n")
    assert list(room.server.door.barred) == ["name n1", *kept_out]
    with pytest.raises(Dismissed) if kept_out else nullcontext():
        room.server.door.check_host(room.conns[2])
    room.hear(2, "/name n1\n")
    room.peers[2].expect("* N1 was removed\n", "* n1 is taken\n")  # it was a member already


def test_whoever_is_unnamed_is_removed_by_its_address() -> None:
    """Nobody stands in for it, also once it has gone: in a name, what is between its letters and
    digits is nothing."""
    room, these = Staffed(1, "1920297"), "* /kick NAME removes somebody; these have no name: "
    room.hear(0, "/kick\n")
    other, one = (room.server.meet(address) for address in ("192.0.2.8:7", "192.0.2.9:7"))
    room.hear(0, "/kick\n/kick 192.0.2.9:7\n/kick 192.0.2.9:7\nN0: hi\n")
    room.peers[0].expect(f"{these}nobody\n", f"{these}192.0.2.8:7, 192.0.2.9:7\n")
    nobody = "* nobody here has that name; see /who, or /kick for the unnamed\n"
    room.peers[0].expect("* 192.0.2.9:7 was removed\n", nobody)
    one.expect(WELCOME, REMOVED)
    other.expect(WELCOME, "N0: hi\n")


# Operators, from inside


class Staffed(Inside):
    """Members called N0, N1, ..., of whom the first is an operator; then perhaps one more."""

    def __init__(self, count: int = 2, *more: str) -> None:
        super().__init__(operator=OPERATORS.encode())
        names = [*(f"N{number}" for number in range(count)), *more]
        self.conns, self.peers = map(list, zip(*(self.join() for _ in names)))
        for number, name in enumerate(names):
            self.hear(number, f"/name {name}\n" if name else "/ping\n")
        self.hear(0, f"/op {OPERATORS}\n")
        self.say(b"ready\n")
        for peer in self.peers:
            peer.read_until("ready\n")

    def rejoin(self, number: int) -> None:
        """Somebody comes in place of one who has left."""
        self.conns[number], self.peers[number] = self.join()

    def hear(self, number: int, text: str, more: tuple[Connection, ...] = ()) -> None:
        """The room hears what one says, in one turn with what others have said, and delivers."""
        support.reach(self.conns[number], self.peers[number], text)
        self.server.read_all({self.conns[number], *more})
        self.server.deliver(self.server.room.take_batch())


@pytest.mark.parametrize(
    "number, line, answer",
    [
        (0, "/kick Nobody", "nobody here has that name; see /who, or /kick for the unnamed"),
        (0, "/kick 127.0.0.1:1", "nobody here has that name; see /who, or /kick for the unnamed"),
        (0, "/kick n0", "to leave, say /quit"),
        (0, "/op", "the password goes with it, as in /op PASSWORD"),
        (0, f"/op {OPERATORS}", "you are an operator"),
        (1, "/kick N0", "only operators can do that; /op PASSWORD makes you one"),
    ],
)
def test_what_does_not_remove_anybody(number: int, line: str, answer: str) -> None:
    room = Staffed()
    room.hear(number, f"{line}\n/who\n")
    room.peers[number].expect(f"* {answer}\n", "* here: N0, N1\n")


def test_help_names_every_command_and_without_the_option_there_are_no_operators() -> None:
    hall = Hall()
    ann, bob = hall.join("Ann"), hall.join()
    hall.say(ann, "/help\n/op x\n/kick x\n /op x\n")
    *lines, op, kick = hall.heard(ann)
    assert "/op" not in "".join(lines)
    assert all(one in "".join(lines) for one in hall.room.commands if one != "/help")
    assert op == kick == "* no such command; /help lists them, and //TEXT says /TEXT"
    assert hall.heard(bob) == ["Ann:  /op x"]
    room = Staffed()
    room.hear(1, "/help\n")
    room.peers[1].read_until("* /op PASSWORD: be an operator; they can /kick NAME\n")


def test_an_operator_who_leaves_is_none_any_more_and_may_remove_another() -> None:
    room = Staffed()
    room.hear(1, f"/op {OPERATORS}\n/quit\n")
    room.rejoin(1)
    room.hear(1, f"/name N1\n/kick N0\n/op {OPERATORS}\n/kick N0\n")
    only = "* only operators can do that; /op PASSWORD makes you one\n"
    room.peers[1].expect("* you are N1\n", only, "* you are an operator\n", "* N0 was removed\n")
    room.peers[0].expect("* N1 left\n", "* N1 joined\n", REMOVED)


@pytest.mark.parametrize("how", ["is not read from", "ends in the same turn"])
def test_whoever_is_removed_gets_everything_although_it(how: str) -> None:
    """It may be slowed just then; and to close it with input unread would destroy what is on its
    way to it."""
    room = Staffed()
    conn, peer = room.conns[1], room.peers[1]
    if how == "is not read from":
        room.server.throttle.waiting[conn] = 0.0
        conn.read_on(False)
        peer.send("unread\n")
        room.hear(0, "N0: bye\n/kick N1\n")
        assert conn in room.server.membership.leaving, "it has yet to close itself"
    else:
        conn.cost = 9999  # so that it is read after the operator
        support.reach(conn, peer)
        room.hear(0, "N0: bye\n/kick N1\n", more=(conn,))
    peer.expect("N0: bye\n", REMOVED)
    assert peer.rest() == b""


# Guessing


def test_guessing_is_slow_for_each_host_however_many_connections_it_has() -> None:
    """They count as wrong tries at the door."""
    room = Staffed(6)
    door, clock = room.server.door, StoppedClock(room.server.clock)
    for number in range(2, 6):
        room.hear(number, "/op guess\n")
    (paid,) = door.tried.values()
    assert paid <= clock.now + 3, "only the first three were looked at"
    room.hear(1, f"/op {OPERATORS}\n")  # too late: any of those may be lucky
    room.peers[1].expect("* too many wrong passwords; wait a moment, and try again\n")
    door.tried.clear()  # another host has none
    room.hear(1, f"/op {OPERATORS}\n")
    room.peers[1].expect("* you are an operator\n")


def test_passwords_are_compared_in_constant_time(monkeypatch: MonkeyPatch) -> None:
    compare = mock.Mock(side_effect=lambda given, password: given == password)
    monkeypatch.setattr(hmac, "compare_digest", compare)
    Staffed().hear(1, "/op guess\n")
    server = checked_server(password=b"secret")
    peer = server.meet()
    peer.send("secret\n")
    server.turn()
    compared = [call[0][0] for call in compare.call_args_list]
    assert compared == [OPERATORS.encode(), b"guess", b"secret"]


# The operators' password stays a secret

MISTYPED = ["/OP", "/op:", "/op\t", " /op", "\t/op", "   /Op", "/ op", "//op", "x\b /op"]
MISTYPED += ["John: /op", "John:  /OP", "Nobody: /op", "John:/op"]
MISTYPED += ["\u200b/op", "\ufeff/op", "\uff0f\uff4f\uff50", "John: \uff0fop"]


@pytest.mark.parametrize("name", ["", "John", "Ann"])
def test_no_password_shows(monkeypatch: MonkeyPatch, caplog: LogCaptureFixture, name: str) -> None:
    """However it is mistyped, alone or among others; and no answer sets off another."""
    monkeypatch.setattr(chat_server, "WRONG_TIME", 0)
    caplog.set_level("DEBUG")  # so that what is said is logged, too
    room = Staffed(2, name)
    lines = [f"{line} {OPERATORS}\n" for line in MISTYPED]
    last = f"{name}: not /op, but /opera\n" if name else "not /op, but /opera\n"
    for text in (*lines, "".join([*lines, f"/op {OPERATORS} x\n", last])):
        room.hear(2, text)
    while room.conns[2].unheard:
        room.server.turn()
    room.peers[1].expect(last)
    assert "opera" in caplog.text and OPERATORS not in caplog.text
    for answer in room.peers[2].available().decode().splitlines():
        assert answer.startswith("* ") and not chat_server.MISTYPED_OP.match(answer)


# Voices

# Names that can be written in other code points; and one that counts as twice its letters.
REWRITTEN = ["\u0623\u062d\u0645\u062f", "\u0929\u0930", "\u0b94", "\u1026", "\u304c", "\u6bcd"]
REWRITTEN += ["\u1fb3", "\u1fb4", "Rs", "a_b", "\ud55c" * 32, "\u00df" * 20]
REWRITTEN += ["\u09b8\u09cb\u09ae\u09be", "\u0b95\u0bca\u0b9f\u0bbf"]
UNSEEN = "\u200b\u00ad\u034f\ufe0f\u2060\u2800\u3164\u1160\u115f\ud7b0\U000e0020\u200c\u200d\u00a0"
UNSEEN += "\u202a\u202d\u202e\u2067\u200f\u0301\u0323\u20dd\u0338\u0a83\u302f\U0001d159"


@pytest.fixture
def hall() -> Hall:
    """A room full of names."""
    hall = Hall()
    for name in TAKEN + REWRITTEN:
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
        *("\u0301" * 1000 + "Ann: hi", "\u02d0\u2800" * 1000 + "Ann: hi"),
        *("An\u11a8n: hi", "A\u0304nn: hi", "A\u200cnn: hi", "A\u180bnn\u3164: hi"),
        # what may look like an asterisk and a blank; a colon, see below
        *(f" {asterisk}\u2800Ann left" for asterisk in ASTERISKS),
        *("\U0001d134 * Ann left", "Ann (priv\u0430te): hi", "A.n-n' : hi", "Ann\ufe30 hi"),
        # a taken name that is written in another way
        *("\u24b6\u24dd\u24dd\u2236 hi", "\U0001d400\U0001d427\U0001d427: hi"),
        *("Zoe\u200d\u0308\u2236 hi", "Z\u0301oe\u0308: hi", "O\u2019Neil: hi"),
        "\u0639\u0644\u06cc\u0631\u0636\u0627: hi",
        # what turns it around
        *("\u202eAnn: hi", "An\u202bn: hi", "\u200b\u0301 \u2067* Ann left"),
        # one of those above in other code points, in that order
        *("\u0627\u0654\u062d\u0645\u062f: hi", "\u0627\u062d\u0645\u062f: hi"),
        *("\u0928\u093c\u0930: hi", "\u0b92\u0bd7: hi", "\u1025\u102e: hi", "\u304b\u3099: hi"),
        *("\u2e9f: hi", "\u03b1\u03b9: hi", "\u03b1\u0345: hi", "\u0386\u0345: hi", "\u20a8: hi"),
        *("a\uff3fb: hi", "\u1112\u1161\u11ab" * 32 + ": hi", "\u00df" * 20 + "\u2236 hi"),
        # with what looks like a colon; with what is invisible in it, or behind it
        *("Ann\u2236", "Ann\ua4fd", *(f"Ann{colon} hi" for colon in COLONS)),
        *(f"A{one}nn: hi" for one in UNSEEN),
        *(f"Ann{one}: hi" for one in UNSEEN),
        # what looks private, with a name that nobody has
        *("Joe (private): hi", "Joe\u00a0(private): hi", "Joe\u200b (private): hi"),
        *("Joe (private)\u200b: hi", "Joe (priv\u00adate): hi", "Joe (private) : hi"),
        *("Joe (private)\uff1a hi", "Joe (private)\ua789 hi", "Joe \uff08private\uff09: hi"),
    ],
    ids=lambda line: ascii(line[:20]),
)
def test_nobody_passes_for_another_or_for_the_room(hall: Hall, line: str) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, f"fine\n{line}\nfine too\n")
    assert hall.heard(two) == ["fine", "fine too"]
    (why,) = hall.heard(one)
    assert why.startswith(("* not said, as it", "* only the room begins a line"))


def test_nobody_passes_for_somebody_whose_name_has_marks(hall: Hall) -> None:
    """Some have several parts, as many a vowel has in India."""
    one, two = hall.join(), hall.join()
    for form in ("NFC", "NFD"):
        for name in ("\u09b8\u09cb\u09ae\u09be", "\u0b95\u0bca\u0b9f\u0bbf"):
            hall.say(one, unicodedata.normalize(form, f"{name}: hi\n"))
    assert hall.heard(two) == []
    for colon in COLONS:  # as many a name ends there
        for end in (f"{colon} hi", f" {colon}hi", f" (private){colon} hi"):
            hall.say(one, f"\u0926\u0947\u0935\u0940{end}\n\u0e21\u0e32\u0e25\u0e35{end}\n")
    hall.say(one, "\u0926\u0947\u0935\u0940 \u0939\u0948: hi\n")
    assert hall.heard(two) == ["\u0926\u0947\u0935\u0940 \u0939\u0948: hi"]
    letters = {chat_server.alphabet(chr(code)): chr(code) for code in range(0x780, 0x1_2000)
               if unicodedata.category(chr(code)) == "Lo"}  # fmt: skip
    names = 0
    for char in map(chr, range(0xA0, 0x1_2000)):
        name = letters.get(chat_server.alphabet(char), "") + char
        with suppress(ValueError):
            if unicodedata.normalize("NFD", char) != char and valid_name(name):
                assert begins_like(f"{name}: hi", {look(name)}), ascii(name)
                names += 1
    assert names > 1000


@pytest.mark.parametrize(
    "line",
    [
        *("12:30 lunch?", "*bold*", "*", " x ", "\ttab", "Anna: hi", "2 * 3", "- Ann: \u00bd"),
        *("> Ann: I quit", "I saw Ann: \u2026", "Ann (she is 5) says hi", "Ann, hi \U0001f600"),
        *("\u00e9t\u00e9: oui", "\u2217bold\u2217", "*\u00e9*", "\u2018Ann: hi\u2019"),
        *("\U0001f600 hi", "\U0001f600\U0001f600: hi", "\u2764\ufe0f hi"),
        *("\u2022 item", "\u2014 so?", "\u00ab Oui \u00bb: non", "\u00a1Hola!"),
        *("\u250c\u2500\u2500\u2510" * 200, "\u2705 " * 1000, "a\u0301" * 1000),
        "\u0421\u043c\u043e\u0442\u0440\u0438 README: \u0442\u0430\u043c",
        *("\u1112\u1161\u11ab: decomposed", "e\u0301: decomposed too", "1\ufe0f\u20e3 one: \u2022"),
        "\u0928\u092e\u0938\u094d\u0924\u0947: \u0926\u0941\u0928\u093f\u092f\u093e",
        "\u092e\u0948\u0902 \u0920\u0940\u0915 \u0939\u0942\u0901\u0964",
        "\u4f60\u597d\uff1a\u4e16\u754c\u3002",
        "\u30e1\u30a2\u30ea\u30fc\u3055\u3093\u3001\u3053\u3093\u306b\u3061\u306f\uff1a",
        "\u0633\u0644\u0627\u0645: \u0645\u06cc\u200c\u0631\u0648\u0645",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35: \u0e04\u0e23\u0e31\u0e1a",
    ],
    ids=lambda line: ascii(line[:20]),
)
def test_other_lines_are_relayed_byte_for_byte(hall: Hall, line: str) -> None:
    one, two = hall.join(), hall.join()
    hall.say(one, f"{line}\n")
    assert hall.heard(two) == [line]


@pytest.mark.parametrize("mark", ["\u061c", "\u200e", "\u200f", "\u202a", "\u2069"])
def test_no_mark_makes_it_look_as_if_somebody_else_had_said_it(hall: Hall, mark: str) -> None:
    hall.join("12")
    hall.join("\u05d0\u05d1")
    one, two = hall.join(), hall.join()
    hall.say(one, f"{mark}\n{mark} :12{mark}hi\n")  # seen as "12: hi" behind some marks
    hall.say(one, mark.join("\u05d2 :\u05d1\u05d0") + "\n")  # and this as its reverse
    assert hall.heard(two) == [" :12hi", "\u05d2 :\u05d1\u05d0"]


def test_nothing_looks_private_in_a_room_without_names_either() -> None:
    """But what only has the mark in it is a message."""
    hall = Hall()
    one, two = hall.join(), hall.join()
    hall.say(one, "Bob (private): meet me\nBob (private):\nBob (private) is: a friend\n")
    hall.say(one, "/ping\nCall me (private), s'il vous pla\u00eet\n")
    assert hall.heard(two) == [
        "Bob (private) is: a friend",
        "Call me (private), s'il vous pla\u00eet",
    ]
    refusal = "* not said, as it would pass for a private message"
    assert hall.heard(one) == [refusal, refusal, "* pong"]


# No answer sets off another


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


def test_a_host_is_an_address_or_a_network_of_64_bits() -> None:
    for host, same, other in (
        *(("192.0.2.1", "192.0.2.1", "192.0.2.2"), ("192.0.2.1", "::ffff:192.0.2.1", "::2")),
        *(("192.0.2.1", "::ffff:c000:201", "::ffff:c000:202"), ("127.0.0.1", "::1", "::2")),
        ("2001:db8:1:2::3", "2001:db8:1:2:ffff::", "2001:db8:1:3::3"),
        ("fe80::1", "fe80::1%eth0", "fe80::2"),
    ):
        assert host_of(f"[{host}]:7") == host_of(f"[{same}]:8") != host_of(f"[{other}]:7")
    assert host_of("192.0.2.1:7") == "192.0.2.1"
    assert host_of("somebody") == ""  # whose address is not known, on macOS


def test_nobody_keeps_others_out_by_leaving(monkeypatch: MonkeyPatch) -> None:
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
    assert server.meet().rest() == b""
    peer = server.meet("192.0.2.2:7")
    server.deliver(server.room.take_batch())
    assert peer.line() == WELCOME


# The way through the door


def test_all_hosts_together_try_ten_passwords_a_second() -> None:
    door = checked_server(password=b"secret").door
    clock = StoppedClock(door.clock)
    tries: Counter[str] = Counter()
    for _ in range(20 * 20):
        clock.now += 1 / 20
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
        self.peer = self.server.meet("192.0.2.1:7")
        (self.conn,) = self.server.membership.newcomers
        self.peer.expect("* password?\n")

    def say(self, data: bytes) -> Connection:
        """Says something, which the door hears; returns the connection."""
        support.reach(self.conn, self.peer, data)
        self.door.serve([self.conn])
        return self.conn

    def time_is_up(self) -> None:
        self.door.go_on(self.conn, True)


@pytest.fixture
def at_door() -> AtDoor:
    return AtDoor()


@pytest.mark.parametrize(
    "given",
    [
        b"\xff\xfb\x1f\xff\xfd\x01\xff\xfa\x1f\0\x50\0\n\xff\xf0secret\r\0",  # telnet's
        *(b"secX\bret\r\n", b"wrong\x15secret\n", b"\xef\xbb\xbfsecret\n"),
    ],
)
def test_a_password_may_come_with_corrections(at_door: AtDoor, given: bytes) -> None:
    until = at_door.conn.until
    for byte in given[:-1]:
        assert at_door.say(bytes([byte])).state is State.DOOR
    assert at_door.conn.until == until, "its time doesn't begin anew"
    assert at_door.say(given[-1:] + b"more\nand").state is State.MEMBER
    assert (at_door.conn.unheard, at_door.conn.input.partial) == (b"more\n", b"and")


NO_PASSWORDS = ["wrong", "", "SECRET", " secret", "secret ", "secretx", "secret secret", "x" * 9999]


@pytest.mark.parametrize("guess", NO_PASSWORDS, ids=lambda guess: guess[:20])
def test_whoever_gives_a_wrong_password_has_no_second_try(at_door: AtDoor, guess: str) -> None:
    conn = at_door.say(f"{guess}\nsecret\n/name Eve\n".encode())
    while conn.reading:  # until the answer is due
        assert conn.state is State.DOOR, "it got in"
        at_door.door.serve([conn])
    with pytest.raises(Dismissed, match="wrong password"):
        at_door.time_is_up()


def test_nothing_that_comes_has_a_wrong_password_answered_before_its_time(at_door: AtDoor) -> None:
    conn = at_door.say(b"guess\n")
    assert not conn.reading
    assert conn.until > time.monotonic()
    conn.use(chat_server.WebSocket(1000))
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
    assert conn.state is State.MEMBER and conn.reading
    assert conn.input.partial == b"more"


@pytest.mark.parametrize("said", [b"secret\n", b""], ids=["with the password", "in silence"])
def test_whoever_is_kept_out_by_now_is_told_at_once(at_door: AtDoor, said: bytes) -> None:
    at_door.door.bar(at_door.conn.host)
    if said:
        assert at_door.say(said).state is State.LEAVING
    for _ in range(2):  # it is dismissed at the end of a turn, and told in the next
        at_door.server.turn(0)
    assert at_door.peer.rest().endswith(b"at your address, was removed; come back in 10 min\n")


def test_nobody_is_told_to_come_back_too_early(at_door: AtDoor) -> None:
    at_door.door.barred[at_door.conn.host] = at_door.door.clock.now() + 61
    with pytest.raises(Dismissed, match="come back in 2 min"):
        at_door.door.check_host(at_door.conn)


def test_whoever_is_dismissed_is_read_to_its_end(at_door: AtDoor) -> None:
    """A close before that would be a reset, which destroys what it is told."""
    membership = at_door.server.membership
    conn = at_door.say(b"guess\n")
    at_door.peer.send(b"another guess\n")
    membership.guard(at_door.door.go_on, conn, True)
    at_door.server.deliver(membership.room.take_batch())
    assert conn in membership.leaving and conn.reading
    assert at_door.peer.rest() == b"* wrong password\n"


def test_whoever_cannot_be_told_why_yet_is_let_go_at_once(caplog: LogCaptureFixture) -> None:
    """Before hands are shaken there is no way to tell it anything."""
    caplog.set_level("INFO")
    server = support.tls_room()
    _peer = server.meet()
    (conn,) = server.membership.newcomers
    Dismissed("the room is full").see_to(server.membership, conn)
    assert conn.state is State.CLOSED
    assert caplog.messages == ["peer could not be told why, members: 0"]


def test_the_door_takes_no_more_than_its_share_of_a_turn(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "DOOR_SHARE", -math.inf)  # which each step exceeds
    server = checked_server(password=b"secret")
    peers = [server.meet() for _ in range(3)]
    for conn, peer in zip(server.membership.newcomers, peers):
        support.reach(conn, peer, "secret\n")
    for turn in range(1, 4):
        server.turn()
        assert len(server.room.members) == turn
