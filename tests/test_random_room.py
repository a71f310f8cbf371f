"""A whole room at random, against a model: members come, talk, stall, reset and vanish."""

from __future__ import annotations

import random
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from crowd import Walker, pump
from support import WELCOME, Server, end_stream, patched


class Talker(Walker):
    """A member that acts at random, and knows what it has said."""

    def __init__(self, server: Server, name: str, chance: random.Random) -> None:
        buffer = chance.choice([0, 0, 32_768])
        super().__init__(server, buffer, web=server.web and chance.random() < 0.5)
        self.name = name
        self.chance = chance
        self.named = chance.random() < 0.5
        self.prefixes = chance.random() < 0.5  # its lines itself, as our client does
        self.said: list[bytes] = []  # as the others are to see it
        self.unsent = f"/name {name}\n".encode() if self.named else b""
        self.before: dict[str, int] | None = None  # what each had said when it was let in
        self.fate = "stays"
        self.between_lines = True  # what it has sent ends with a newline
        self.shut = False  # it has closed its direction

    def talk(self, lines: int) -> None:
        for _ in range(lines):
            text = f"{self.name}-{len(self.said)} " + "\u00e4" * self.chance.choice([0, 1, 40, 400])
            shown = f"{self.name}: {text}" if self.named else text
            self.said.append(shown.encode())
            line = shown if self.prefixes else text
            self.unsent += line.encode() + self.chance.choice([b"\n", b"\r\n"])

    def send_some(self) -> None:
        size = self.chance.choice([1, 2, 3, 7, 100, 5000])
        self.say(self.unsent[:size])
        self.between_lines = self.unsent[:size].endswith(b"\n")
        self.unsent = self.unsent[size:]

    def half_close(self) -> None:
        """Says a last line without its newline, and goes."""
        self.fate = "half-closed"
        self.talk(1)
        self.say(self.unsent.rstrip(b"\r\n"))
        self.unsent = b""
        self.reading = True

    def vanish(self) -> None:
        """Closes, or in the middle of a line resets, as then the rest of it is lost."""
        self.fate = "vanished"
        if self.has_to_send() or not self.between_lines or self.chance.random() < 0.5:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def heard(self) -> list[bytes]:
        """Returns what others said, without the room's own lines."""
        return [line for line in self.lines()[1:] if not line.startswith(b"* ")]


def parse(line: bytes) -> tuple[str, int]:
    """Returns who said a line, and which of its lines it is."""
    found = re.match(rb"(?:m\d+: )?(m\d+)-(\d+) ", line)
    assert found, f"torn: {line!r}"
    return found.group(1).decode(), int(found.group(2))


class Play:
    """Some hundred steps of a room's life, and the check of what came of them."""

    def __init__(self, room: Server, seed: int) -> None:
        self.room = room
        self.chance = random.Random(seed)
        self.members: list[Talker] = []
        self.watcher = Walker(room)  # sees everything, says nothing
        pump([self.watcher], lambda: self.watcher.received == WELCOME)

    def present(self) -> list[Talker]:
        return [member for member in self.members if member.fate == "stays"]

    def crowd(self) -> list[Walker]:
        return [self.watcher, *self.members]

    def step(self) -> None:
        chance, present = self.chance, self.present()
        action = chance.random()
        if len(self.members) < 60 and (action < 0.2 or len(present) < 3):
            self.members.append(Talker(self.room, f"m{len(self.members)}", chance))
        elif action < 0.6:
            chance.choice(present).talk(chance.choice([1, 2, 20]))
        elif action < 0.7:
            member = chance.choice(present)
            member.reading = not member.reading
        elif action < 0.72 and len(present) > 10:
            chance.choice(present).half_close()
        elif action < 0.75 and len(present) > 10:
            chance.choice(present).vanish()
        for member in self.present():
            if member.unsent and chance.random() < 0.7:
                member.send_some()
        passes = iter(range(chance.randrange(3)))
        pump(self.crowd(), lambda: next(passes, None) is None, wait=0)
        self.see_who_was_let_in()
        for member in self.members:
            if member.fate == "half-closed" and not member.has_to_send() and not member.shut:
                member.shut = True
                end_stream(member.sock)

    def see_who_was_let_in(self) -> None:
        for member in self.members:
            if member.before is None and member.received:
                member.before = {other.name: len(other.said) for other in self.members}

    def finish(self) -> None:
        """Lets everyone who is still there say and hear all."""
        for member in self.present():
            member.reading = True
            member.say(member.unsent)
            member.unsent = b""
        pump(
            self.crowd(),
            lambda: not any(one.has_to_send() for one in self.members if not one.closed),
        )
        self.see_who_was_let_in()
        for member in self.members:
            if member.fate == "half-closed" and not member.shut:
                end_stream(member.sock)
        last_words = [
            member.said[-1] for member in self.members if not member.closed and member.said
        ]
        pump(self.crowd(), lambda: set(last_words) <= set(self.watcher.lines()))
        # What comes behind all that was said: nobody misses anything now.
        self.watcher.say(b"the end\n")
        pump(
            self.crowd(),
            lambda: all(
                one.ended if one.fate == "half-closed" else b"the end\n" in one.received[-1000:]
                for one in self.members
                if not one.closed
            ),
        )

    def check(self) -> None:
        everything = [line for line in self.watcher.lines()[1:] if not line.startswith(b"* ")]
        for member in self.members:
            own = [line for line in everything if parse(line)[0] == member.name]
            assert own == member.said[: len(own)], "not what it said, or not in order"
            if not member.closed:
                assert own == member.said
                self.check_heard(member, everything)

    def check_heard(self, member: Talker, everything: list[bytes]) -> None:
        """A member heard one stretch of everything, its own lines left out, from when it was let in
        to when it went."""
        assert member.lines()[0] + b"\n" == WELCOME
        heard = member.heard()
        if member.fate == "stays":
            assert heard.pop() == b"the end"
        others = [line for line in everything if parse(line)[0] != member.name]
        if not heard:
            assert member.fate == "half-closed" or not others
            return
        start = others.index(heard[0])
        assert heard == others[start : start + len(heard)]
        assert member.fate == "half-closed" or start + len(heard) == len(others)
        for line in others[:start]:
            name, number = parse(line)
            assert member.before is None or number < member.before.get(name, 0), "missed"


@pytest.mark.parametrize(
    "start, seed",
    [("plain", 0), ("plain", 1), ("tls", 20), ("web", 30), ("tls web", 40)],
    indirect=["start"],
)
def test_everyone_gets_what_others_say_once_whole_and_in_one_order(
    start: Callable[..., Server], tmp_path: Path, seed: int
) -> None:
    """The room checks its invariants after each turn."""
    check = "import support\nchat_server.ChatServer = support.CheckedServer"
    room = patched(start, tmp_path, check)
    play = Play(room, seed)
    for _ in range(500):
        play.step()
    play.finish()
    play.check()
    assert len(play.members) >= 40
    assert "disconnected: " not in room.log()
    assert "Traceback" not in room.log()
