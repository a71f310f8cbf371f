"""Whole rooms at random, each against a model of it.

A seed stands for a room: what it speaks, and who does what in it. Guests come and go for some days;
at night only a watcher is left, which sees everything and says nothing. What it saw is the story of
the room, and each guest has to have heard a stretch of it: once, whole, in order, without what it
said itself.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from crowd import Walker, pump
from notices import EXPLANATION, read
from support import CERTS, DEADLINE, WELCOME, Server, end_stream, patched

PASSWORD, OPERATOR = "correct horse", "staple battery"
# Two of them are the same, and so is each in capitals.
NAMES = ["Ann", "ann", "Bob", "Zo\u00eb", "Lab 3", "O'Neil", "J.-P.", "\u0418\u0432\u0430\u043d"]
NEWS = ("* NAME joined", "* NAME left", "* NAME was removed", "* NAME is now NAME")
CLOSING = "* the room is closing"
REMOVED = "* you were removed by an operator; come back in N min"
LAST_WORDS = ("* bye", CLOSING, REMOVED)
PRIVATE = "NAME (private): TEXT"
MESSAGE = re.compile(r"(?:([^:]+): )?((g\d+)-(\d+)\b.*)")
WRONG = ["/nonsense", "/msg", "/name ", "/name you left", "/kick", "x" * 9000]
# What is sent, and what others see of it; not from browsers: bytes that are no UTF-8, and telnet's.
ODD = [(b"", ""), (b"\x1b[1moops\b\b\b\b", "[1m"), (b"\xc2\xa0\t.", "\xa0\t.")]
ODD += [(b"\xc3(", "\ufffd("), (b"\xff\xf1.", ".")]
SLACK = 8 << 20  # bytes of memory that a room may need more in its last night than in its first
SIZE = 40  # guests at once

CHECKED = "import support\nchat_server.ChatServer = support.CheckedServer\n"
HASTY = "chat_server.WRONG_TIME, chat_server.TICK = 0.1, 0.1\n"
# With all that we do for 40 guests, on a machine that is busy, it is we who are slow.
HASTY += "chat_server.LAST_CALL, chat_server.FAREWELL = 20, 30\n"
LESS_PATIENT = "chat_server.PACE, chat_server.PATIENCE, chat_server.STEP = 65536, 4, 0\n"


def any_tls(version: str) -> ssl.SSLContext:
    """Returns what it takes to speak a version of TLS, whatever the other side's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    return context


class Asked(NamedTuple):
    """A command, and the rest of its line. A ping follows each, so that it is seen what answers
    it."""

    word: str
    rest: str


class Guest(Walker):
    """A member that acts at random, and knows what it has said and asked."""

    def __init__(self, play: Play, tag: str) -> None:
        self.chance = chance = play.chance
        self.is_web = chance.random() < 0.5
        super().__init__(play.room, chance.choice([0, 0, 4096, 32_768]), web=self.is_web)
        self.play = play
        self.tag = tag
        self.since = len(play.seen())  # lines of the story that it can't have heard
        self.before: Counter[str] | None = None  # what each had said when it was let in
        self.said: list[str] = []  # as the others are to see it
        self.asked: list[Asked] = []
        self.name = ""  # that it puts before its lines itself, as our client does
        self.address = "{}:{}".format(*self.sock.getsockname())
        self.fate = "stays"
        self.is_operator = False
        self.has_stalled = False
        self.between_lines = True  # what it has sent ends with a newline
        self.unsent = b""
        if play.is_closed:
            self.fate = chance.choice(["stays"] * 6 + ["refused"])
            self.unsent = b"guess\n" if self.fate == "refused" else PASSWORD.encode() + b"\n"
        self.is_late = chance.random() < 0.3  # gives it only when it is asked

    def talk(self, lines: int) -> None:
        for _ in range(lines):
            text = f"{self.tag}-{len(self.said)} " + "\u00e4" * self.chance.choice([0, 1, 40, 400])
            raw, shown = self.chance.choice(ODD[: 3 if self.is_web else 5])
            self.said.append(text + shown)
            line = f"{self.name}: {text}" if self.knows_name() else text
            self.unsent += line.encode() + raw + self.chance.choice([b"\n", b"\r\n"])

    def knows_name(self) -> bool:
        return bool(self.name) and f"* you are {self.name}\n".encode() in self.received

    def ask(self, word: str, rest: str = "") -> None:
        self.asked.append(Asked(word, rest))
        self.unsent += f"{word} {rest}".strip().encode() + b"\n/ping\n"

    def send_some(self) -> None:
        if self.is_late and not self.received:
            return
        size = self.chance.choice([1, 2, 3, 7, 100, 5000])
        self.between_lines = self.unsent[:size].endswith(b"\n")
        self.say(self.unsent[:size])
        self.unsent = self.unsent[size:]

    def send_all(self) -> None:
        self.reading = True
        self.say(self.unsent)
        self.unsent = b""

    def has_answers(self) -> bool:
        """Says whether all that it has asked is answered, unless its end has come."""
        return self.ended or bytes(self.received).count(b"* pong\n") == len(self.asked)

    def was_let_go(self) -> bool:
        """Says whether it was too far behind, or didn't read for long while it was removed."""
        log = self.play.room.log()
        was_removed = self.has_stalled and f"{self.address} was removed by" in log
        return was_removed or f"{self.address} disconnected: too far behind" in log

    def is_over(self) -> bool:
        return self.ended or self.closed

    # Ways to go

    def quit(self) -> None:
        self.fate = "quit"
        self.unsent += b"/quit\n"
        self.send_all()

    def half_close(self) -> None:
        """Says a last line without its newline, and goes once that is on its way."""
        self.fate = "half-closes"
        self.talk(1)
        self.unsent = self.unsent.rstrip(b"\r\n")
        self.send_all()

    def vanish(self) -> None:
        """Closes, or in the middle of a line resets, as then the rest of it is lost."""
        self.fate = "vanished"
        if self.has_to_send() or not self.between_lines or self.chance.random() < 0.5:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def go_on(self) -> None:
        """Notes what has become of it."""
        if self.fate == "stays" and self.ended:
            self.fate = "ended"
        if self.fate == "half-closes" and not self.has_to_send():
            self.fate = "half-closed"
            with contextlib.suppress(OSError):  # it may have been removed meanwhile
                end_stream(self.sock)

    def heard(self) -> list[str]:
        return [line.decode() for line in self.lines()]


class Story:
    """What a room's watcher has seen: what was said, who had which name, and who was removed."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.names: list[dict[str, str]] = []  # before each line: how each is written
        self.speakers: list[tuple[str, int]] = []  # of each line: who, and which of its lines it is
        self.messages: list[str] = []
        self.counts: list[int] = []  # of the messages, before each line
        self.said: dict[str, list[str]] = {}
        self.removed: dict[str, int] = {}  # names, and where
        names: dict[str, str] = {}
        for at, line in enumerate(lines):
            self.names.append(names)
            self.counts.append(len(self.messages))
            news = read(line)
            names = self.after_news(names, at, *news) if news else names
            self.speakers.append(("", 0) if news else self.hear(line, names))
        self.names.append(names)
        self.counts.append(len(self.messages))

    def after_news(
        self, names: dict[str, str], at: int, form: str, who: tuple[str, ...]
    ) -> dict[str, str]:
        """Returns who is here after news. Nobody has a name that somebody else has."""
        if form == CLOSING:
            return names
        assert form in NEWS, form
        names = dict(names)
        if form != "* NAME joined":
            assert names.pop(who[0].casefold()) == who[0]
        if form == "* NAME was removed":
            self.removed[who[0].casefold()] = at
        if form in ("* NAME joined", "* NAME is now NAME"):
            assert who[-1].casefold() not in names, f"two are called {who[-1]}"
            assert who[-1].casefold() not in self.removed, f"{who[-1]} was removed"
            names[who[-1].casefold()] = who[-1]
        return names

    def hear(self, line: str, names: dict[str, str]) -> tuple[str, int]:
        found = MESSAGE.fullmatch(line)
        assert found, f"nobody said this: {line!r}"
        name, text, tag, number = found.groups()
        assert not name or names[name.casefold()] == name, f"nobody is called {name}"
        self.said.setdefault(tag, []).append(text)
        self.messages.append(line)
        return tag, int(number)

    def history(self, at: int, count: int) -> list[str]:
        """Returns what a newcomer gets who comes in there."""
        end = self.counts[at]
        return self.messages[max(0, end - count) : end]


class Hearing:
    """One way to understand what a guest has heard: that it came in at a certain place of the story.
    Raises AssertionError if that can't be."""

    def __init__(self, story: Story, guest: Guest, at: int) -> None:
        self.story = story
        self.guest = guest
        self.at = at
        self.name = ""
        self.asked = list(guest.asked)
        self.answers: list[str] = []  # to what it asked last
        self.last = ""

    def hear(self, line: str) -> None:
        assert self.last not in LAST_WORDS, f"after {self.last}: {line}"
        found = read(line)
        form = found.form if found else ""
        if not found or form in (*NEWS, CLOSING):
            self.skip_own()
            assert line == self.story.lines[self.at]
            self.at += 1
        elif form == PRIVATE:
            to = line.rpartition(" to ")[2]
            assert to.casefold() == self.name.casefold(), f"as {self.name}: {line}"
        elif form == "* pong":
            self.check_answered(self.asked.pop(0).word)
            self.answers = []
        elif form != REMOVED and not line.startswith("* too long"):  # to no word
            self.check_answer(self.asked[0] if self.asked else Asked("/quit", ""), line)
            self.answers.append(line)
        self.last = form

    def skip_own(self) -> None:
        """Goes on to what somebody else has said."""
        while self.at < len(self.story.lines) and self.is_own():
            name, text = MESSAGE.fullmatch(self.story.lines[self.at]).group(1, 2)  # type: ignore
            assert (name or "") == self.name, f"{text} was said by {name}, not by {self.name}"
            self.at += 1

    def is_own(self) -> bool:
        return self.story.speakers[self.at][0] == self.guest.tag

    def check_answer(self, asked: Asked, line: str) -> None:
        word, rest = asked
        here, found = self.story.names[self.at], read(line)
        assert found
        if found.form == "* you are NAME":
            assert word == "/name" and found.names == (rest,)
            self.take_name(rest)
        elif found.form == "* NAME is taken":
            removed = self.story.removed.get(rest.casefold(), self.at) < self.at
            assert word == "/name" and found.names == (rest,)
            assert rest.casefold() in here or removed
        elif found.form.startswith("* here: "):
            assert word == "/who" and set(found.names) == set(here.values())
        elif found.form == "* you are an operator":
            assert (word, rest) == ("/op", OPERATOR)
        elif found.form == "* wrong password":
            assert word == "/op" and rest != OPERATOR
        elif found.form == "* bye":
            assert word == "/quit"
        else:
            assert found.form == EXPLANATION and word not in ("/who", "/ping", "/quit")

    def take_name(self, name: str) -> None:
        """It gets a name, and all others hear of that in the same moment."""
        self.skip_own()
        news = f"* {self.name} is now {name}" if self.name else f"* {name} joined"
        if name != self.name:
            assert self.story.lines[self.at] == news
            self.at += 1
        self.name = name

    def check_answered(self, word: str) -> None:
        if word in ("/who", "/name", "/op") or word.startswith("/non"):
            assert len(self.answers) == 1, f"{word}: {self.answers}"

    def check_end(self) -> None:
        """It has heard everything up to its end, if it was there to hear it."""
        guest, story = self.guest, self.story
        self.skip_own()
        own = story.said.get(guest.tag, [])
        assert own == guest.said[: len(own)], "not what it said, or not in order"
        was_let_go = self.last not in LAST_WORDS and guest.was_let_go()
        if guest.fate == "vanished" or was_let_go:
            return
        assert guest.fate == "half-closed" or self.last in LAST_WORDS, "has no end"
        if self.last != REMOVED:
            assert own == guest.said, "was not heard"
            assert not any(word != "/quit" for word, _ in self.asked), "was not answered"
        if self.last == CLOSING:
            assert self.at == len(story.lines)
            return
        how = "was removed" if self.last == REMOVED else "left"
        assert not self.name or story.lines[self.at] == f"* {self.name} {how}"
        assert guest.tag not in [tag for tag, _ in story.speakers[self.at :]], "speaks on"


def understand(story: Story, guest: Guest, heard: list[str], history: int) -> None:
    """Finds out how a guest came to hear this, which begins behind the welcome."""
    problem, most = "", -1
    for at in places(story, guest):
        known = story.history(at, history)
        if heard[: len(known)] != known[: len(heard)]:
            continue
        hearing = Hearing(story, guest, at)
        count = len(known)
        try:
            for line in heard[len(known) :]:
                hearing.hear(line)
                count += 1
            hearing.check_end()
            return
        except (AssertionError, LookupError) as error:
            if count > most:
                most, near = count, heard[max(0, count - 3) : count + 2]
                problem = f"{error!r:.300} at line {count}, {near!a:.300}, place {hearing.at}"
    raise AssertionError(f"{guest.tag}, which {guest.fate}: {problem or 'came in nowhere'}")


def places(story: Story, guest: Guest) -> Iterator[int]:
    """Yields where a guest can have come in: it has missed nothing that was said after that."""
    for at in range(guest.since, len(story.lines) + 1):
        yield at
        tag, number = story.speakers[at] if at < len(story.lines) else ("", 0)
        if tag and guest.before is not None and number >= guest.before[tag]:
            return


class Play:
    """A room for some days, and the check of what came of each."""

    def __init__(self, start: Callable[..., Server], folder: Path, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.folder = folder
        self.transcripts = [folder / "transcript"]
        self.is_closed, has_operators, self.is_slow = (chance.random() < 0.4 for _ in range(3))
        self.history = chance.choice([0, 1, 20, 100])
        self.tls = chance.random() < 0.5
        self.room = patched(
            start,
            folder,
            CHECKED + HASTY + (LESS_PATIENT if self.is_slow else ""),
            *self.options(has_operators),
            web=True,
        )
        self.room.tls = self.tls
        self.room.context = any_tls("TLSv1_3")
        self.guests: list[Guest] = []
        self.count = 0
        self.watcher = Walker(self.room, web=False)
        self.watcher.say(PASSWORD.encode() + b"\n" if self.is_closed else b"")
        pump([self.watcher], lambda: WELCOME in self.watcher.received)
        self.nights: list[tuple[int, int]] = []  # descriptors and memory in each

    def options(self, has_operators: bool) -> Iterator[str]:
        for name, text in (("password", PASSWORD), ("operator", OPERATOR)):
            (self.folder / name).write_text(f"{text}\n")
        yield from ("--transcript", str(self.transcripts[0]))
        if self.is_closed:
            yield from ("--password-file", str(self.folder / "password"))
        if has_operators:
            yield from ("--operator-file", str(self.folder / "operator"))
        if self.history:
            yield from ("--history", str(self.history))
        if self.tls:
            self.renew("room")
            yield from ("--tls-cert", str(self.folder / "cert"))
            yield from ("--tls-key", str(self.folder / "key"))

    # What happens

    def present(self) -> list[Guest]:
        return [guest for guest in self.guests if guest.fate == "stays"]

    def move(self, until: Callable[[], bool], wait: float = 0.02) -> None:
        """Moves what there is to move until the condition holds."""

        def look() -> bool:
            for guest in self.guests:
                guest.go_on()
                if guest.before is None and WELCOME in guest.received[:40]:
                    guest.before = Counter({one.tag: len(one.said) for one in self.guests})
            return until()

        pump([self.watcher, *self.guests], look, wait)

    def step(self) -> None:
        chance, present = self.chance, self.present()
        if len(present) < 4 or (len(present) < SIZE and chance.random() < 0.2):
            self.arrive()
        else:
            actions = list(ACTIONS)
            (act,) = chance.choices(actions, [ACTIONS[one] for one in actions])
            act(self, chance.choice(present))
        for guest in self.guests:
            if guest.unsent and guest.fate in ("stays", "refused") and chance.random() < 0.7:
                guest.send_some()
        self.pass_time(chance.randrange(3))

    def pass_time(self, passes: int, wait: float = 0.0) -> None:
        left = iter(range(passes))
        self.move(lambda: next(left, None) is None, wait)

    def arrive(self) -> None:
        self.room.context = any_tls(self.chance.choice(["TLSv1_2", "TLSv1_3"]))
        self.guests.append(Guest(self, f"g{self.count}"))
        self.count += 1

    def talk(self, guest: Guest) -> None:
        guest.talk(self.chance.choice([1, 1, 2, 2, 20, 300 if self.is_slow else 20]))

    def take_name(self, guest: Guest) -> None:
        name = self.chance.choice(NAMES)
        is_first = not any(word == "/name" for word, _ in guest.asked)
        if not guest.name:
            guest.ask("/name", name)
        if is_first and self.chance.random() < 0.5:
            guest.name = name

    def whisper(self, guest: Guest) -> None:
        name = self.chance.choice(NAMES)
        guest.ask("/msg", f"{name}: from {guest.tag} to {name}")

    def ask(self, guest: Guest) -> None:
        guest.ask(self.chance.choice(["/who", "/who", "/help", *WRONG]))

    def become_operator(self, guest: Guest) -> None:
        guest.is_operator = True
        guest.ask("/op", self.chance.choice([OPERATOR, OPERATOR, "x"]))

    def kick(self, guest: Guest) -> None:
        operators = [one for one in self.present() if one.is_operator]
        if operators:
            self.chance.choice(operators).ask("/kick", self.chance.choice([*NAMES, guest.address]))

    def stall(self, guest: Guest) -> None:
        guest.reading = not guest.reading
        guest.has_stalled = True

    def leave(self, guest: Guest) -> None:
        self.chance.choice([Guest.quit, Guest.half_close, Guest.vanish])(guest)

    def rotate(self, _: Guest) -> None:
        if self.transcripts[0].exists():
            moved = self.folder / f"transcript.{len(self.transcripts)}"
            self.transcripts[0].rename(moved)
            self.transcripts.append(moved)

    def renew(self, owner: str = "") -> None:
        owner = owner or self.chance.choice(["room", "other"])
        for source, file in ((f"{owner}.pem", "cert"), (f"{owner}.key", "key")):
            shutil.copyfile(CERTS / source, self.folder / "new")
            os.replace(self.folder / "new", self.folder / file)

    def suspend(self, _: Guest) -> None:
        self.room.process.send_signal(signal.SIGSTOP)
        for guest in self.present():
            guest.send_some()
        self.pass_time(self.chance.choice([2, 2, 2, 80]), 0.02)
        self.room.process.send_signal(signal.SIGCONT)

    # Evenings and nights

    def finish(self) -> None:
        """Everyone says what there is to say."""
        for guest in self.present():
            guest.send_all()
        for guest in self.guests:
            guest.reading = True
        self.move(lambda: all(one.is_over() or not one.has_to_send() for one in self.guests))

    def evening(self) -> None:
        """Everyone goes, in one way or another."""
        self.finish()
        self.move(lambda: all(one.has_answers() for one in self.present()))
        for guest in self.present():
            self.leave(guest)
        self.move(lambda: all(one.is_over() for one in self.guests))
        for guest in self.guests:
            guest.close()

    def night(self) -> None:
        """Nobody is left but the watcher, and nothing is."""
        asked = 0

        def is_alone() -> bool:
            nonlocal asked
            answers = [line for line in self.watcher.lines() if line.startswith(b"* here: ")]
            if len(answers) == asked:
                self.watcher.say(b"/who\n")
                asked += 1
            return bool(answers) and answers[-1] == b"* here: 1 unnamed"

        self.watcher.received = bytearray(
            re.sub(rb"(?m)^\* here: .*\n", b"", bytes(self.watcher.received))
        )
        pump([self.watcher], is_alone)
        descriptors = Path(f"/proc/{self.room.process.pid}/fd")
        self.nights.append((len(os.listdir(descriptors)), self.room.memory()))

    def close(self) -> None:
        """Ends the room in the middle of everything, of what had arrived nothing is lost."""
        self.finish()
        self.room.process.send_signal(signal.SIGTERM)
        self.move(lambda: self.watcher.ended and all(one.is_over() for one in self.guests))
        for one in [self.watcher, *self.guests]:
            one.close()
        assert self.room.process.wait(DEADLINE) == 0

    def seen(self) -> list[str]:
        """Returns what the watcher has seen, but for the answers to its own questions."""
        lines = bytes(self.watcher.received).partition(WELCOME)[2].split(b"\n")[:-1]
        return [line.decode() for line in lines if not line.startswith(b"* here: ")]

    def check(self) -> None:
        """What everyone has heard makes sense."""
        story = Story(self.seen())
        for guest in self.guests:
            self.check_heard(story, guest)
        self.guests = []

    def check_heard(self, story: Story, guest: Guest) -> None:
        """What a guest has heard makes sense, or it wasn't let in."""
        heard = guest.heard()
        if self.is_closed and heard:
            assert heard.pop(0) == "* password?"
        if guest.fate == "refused":
            assert heard in ([], ["* wrong password"])
        elif heard:
            assert heard.pop(0) == WELCOME.decode().rstrip()
            understand(story, guest, heard, self.history)

    def check_end(self) -> None:
        """What the room leaves behind is right, and it has lost nothing to its days."""
        (_, *rotated), log = self.transcripts, self.room.log()
        files = [file for file in (*rotated, self.transcripts[0]) if file.exists()]
        written = [line[21:] for file in files for line in file.read_text("utf-8").split("\n")[:-1]]
        assert written == self.seen()
        assert "Traceback" not in log
        assert self.is_slow or "disconnected: " not in log
        first, last = self.nights[0], self.nights[-1]
        assert first[0] == last[0] and last[1] - first[1] < SLACK, self.nights


ACTIONS: dict[Callable[[Play, Guest], None], int] = {
    Play.talk: 40,
    Play.ask: 12,
    Play.take_name: 12,
    Play.whisper: 12,
    Play.stall: 8,
    Play.leave: 5,
    Play.become_operator: 1,
    Play.kick: 2,
    Play.rotate: 1,
    lambda play, _: play.renew(): 1,
    Play.suspend: 1,
}


def play(start: Callable[..., Server], folder: Path, seed: int, days: int, steps: int) -> Play:
    """Plays a room and checks it."""
    one = Play(start, folder, seed)
    for day in range(days):
        for _ in range(steps):
            one.step()
        if day < days - 1:
            one.evening()
            one.night()
            one.check()
        else:
            one.close()
            one.check()
    one.check_end()
    return one
