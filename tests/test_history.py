"""What newcomers get of what was said before the room was started: it comes from the transcript."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from crowd import Walker, pump
from support import DEADLINE, WELCOME, Server, patched

from chat_server import MAX_LINE, MAX_REPLAYED, Transcript, said_before

TIME = "2026-11-26T01:02:03Z "


def history_of(room: Server) -> list[str]:
    """Returns what a newcomer is given."""
    peer = room.join()
    peer.send("/who\n")
    lines = []
    while not (lines and lines[-1].startswith("* here: ")):
        lines.append(peer.line().decode().rstrip("\n"))
    peer.close()
    return lines[:-1]


@pytest.mark.parametrize(
    "line, said",
    [
        (TIME + "Ann: hi", "Ann: hi"),
        (TIME + "no name", "no name"),
        (TIME + TIME + "Ann: hi", TIME + "Ann: hi"),
        (TIME + " indented", " indented"),
        (TIME + "*no notice", "*no notice"),
        (TIME + "Ü\tü", "Ü\tü"),
        (TIME + "x" * 100, "x" * 100),
        (TIME + "x" * 101, None),
        (TIME + "* Ann joined", None),
        (TIME, None),
        (TIME.rstrip(), None),
        ("", None),
        ("Ann: hi", None),
        ("2026-11-26 01:02:03 Ann: hi", None),
        ("x" + TIME + "Ann: hi", None),
        (TIME[:12], None),
        (TIME + "Ann: h\x18", None),
        (TIME + "Ann: \x1b[2Jhi", None),
        (TIME + "Ann: hi\r", None),
        (TIME + "\0\0\0\0", None),
        (TIME + "broken \udcff", None),
        (TIME + "Ann: c1 \x9b", None),
    ],
)
def test_what_of_a_transcript_was_said(line: str, said: str | None) -> None:
    data = f"{TIME}before\n{line}\n{TIME}after\n{TIME}torn".encode("utf-8", "surrogateescape")
    expected = ["before", *([] if said is None else [said]), "after"]
    assert said_before(data, 100).decode() == "".join(f"{one}\n" for one in expected)


def test_history_survives_a_restart(start: Callable[..., Server], tmp_path: Path) -> None:
    options = ["--history", "4", "--transcript", str(tmp_path / "transcript")]
    room = start("chat_server.py", *options)
    ann, bob = room.join("Ann"), room.join()
    said = ["Ann: one", f"Ann: {TIME}two", "three", f"{TIME}four", "Ann: five"]
    for line in said:
        (ann if line.startswith("Ann") else bob).send(f"{line}\n")
        (bob if line.startswith("Ann") else ann).read_until(f"{line}\n")
    bob.send("/msg Ann: psst\n* Ann left\n\u200b* Ann left\n*\tAnn left\n")
    bob.send("/name Bob\n/msg Ann: psst\n")
    ann.expect("* Bob joined\n", "Bob (private): psst\n")
    assert room.stop(peers=[ann, bob]) == 0
    assert "psst" not in (tmp_path / "transcript").read_text()
    for _ in range(2):
        room = start("chat_server.py", *options)
        assert history_of(room) == said[-4:]
        assert room.stop() == 0
    assert history_of(start("chat_server.py", *options[:2])) == []


def test_a_transcript_that_was_moved_away_is_not_looked_for(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "transcript.1").write_text(f"{TIME}old\n")
    file = tmp_path / "transcript"
    for content, history in (("", []), (f"{TIME}new\n", ["new"])):
        file.write_text(content)
        room = start("chat_server.py", "--history", "9", "--transcript", str(file))
        assert history_of(room) == history
        room.stop()


def test_history_comes_from_the_end_of_a_transcript_however_long_it_is(tmp_path: Path) -> None:
    file = tmp_path / "transcript"
    lines = [f"{number} {'x' * (number % 100)}" for number in range(10_000)]
    file.write_text("".join(f"{TIME}{line}\n" for line in lines))
    assert file.stat().st_size > 2 * MAX_REPLAYED
    got = Transcript(str(file)).messages(MAX_LINE).decode().split("\n")[:-1]
    assert got == lines[-len(got) :]
    size = sum(len(f"{TIME}{line}\n") for line in got)
    assert 0 <= MAX_REPLAYED - size < 200
    line = f"{TIME}what was said after\n"
    file.write_text(f"{TIME}{line}".ljust(len(TIME) + MAX_REPLAYED, "x"))  # ends within the next
    assert Transcript(str(file)).messages(MAX_LINE) == b"", "the rest of a line is none"
    file.write_text("x" * 2 * MAX_REPLAYED + "\n")
    assert Transcript(str(file)).messages(MAX_LINE) == b""


def test_what_is_no_file_has_no_history(start: Callable[..., Server], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, f"{TIME}in a pipe\n".encode())
    for path in (str(fifo), os.devnull):
        room = start("chat_server.py", "--history", "9", "--transcript", path)
        assert history_of(room) == []
        assert "cannot read" not in room.log()
        room.stop()
    os.close(writer)


@pytest.mark.parametrize("taken", [1, 25, 31])
def test_a_line_that_was_written_halfway_is_in_no_history(
    start: Callable[..., Server], tmp_path: Path, taken: int
) -> None:
    """The server was killed just then; later lines stand on lines of their own."""
    file = tmp_path / "transcript"
    options = ["--history", "9", "--transcript", str(file)]
    patch = (
        "import os\n"
        "write = os.write\n"
        "def write_halfway(descriptor, data):\n"
        "    if b'last words' not in data:\n"
        "        return write(descriptor, data)\n"
        f"    write(descriptor, data[:{taken}])\n"
        "    os.kill(os.getpid(), 9)\n"
        "os.write = write_halfway"
    )
    room = patched(start, tmp_path, patch, *options)
    ann, bob = room.join(), room.join()
    ann.send("whole\n")
    bob.expect("whole\n")
    ann.send("last words\n")
    assert room.process.wait(DEADLINE) == -signal.SIGKILL
    assert file.read_bytes().count(b"\n") == 1
    said = ["whole"]
    for number in range(3):
        room = start("chat_server.py", *options)
        assert history_of(room) == said
        ann, bob = room.join(), room.join()
        ann.expect(*(f"{line}\n" for line in said))
        ann.send(f"{number}\n")
        bob.read_until(f"{number}\n")
        said.append(str(number))
        room.stop(peers=[ann, bob])


def talk_through_restarts(
    start: Callable[..., Server], folder: Path, restarts: int, members: int
) -> None:
    """Members talk, leave and come back, while the room is stopped and started. What somebody hears
    who is there from its start to its end, and says nothing, is what was said."""
    count = 50
    options = ["--history", str(count), "--transcript", str(folder / "transcript")]
    said: list[bytes] = []
    for _ in range(restarts):
        room = patched(start, folder, "chat_server.FAREWELL = 20", *options)
        witness = Talker(room)
        pump([witness], lambda: witness.received.startswith(WELCOME))  # noqa: B023
        history = witness.messages()
        assert history == said[-count:]
        crowd = [Talker(room) for _ in range(members)]
        pump(crowd, lambda: all(one.received for one in crowd))  # noqa: B023
        newcomers = crowd[:]
        for _ in range(3):
            for talker in crowd:
                talker.talk()
            mark = b"%d 0\n" % crowd[0].numbers[-1]
            pump([witness, *crowd], lambda: mark in witness.received)  # noqa: B023
            crowd.pop(0).close()
            crowd.append(Talker(room))
            newcomers.append(crowd[-1])
        for talker in crowd:
            talker.talk()
        room.process.send_signal(signal.SIGTERM)  # in the middle of that
        pump([witness, *crowd], lambda: all(one.ended for one in (witness, *crowd)))  # noqa: B023
        for talker in (witness, *crowd):
            talker.close()
        assert room.process.wait(DEADLINE) == 0
        first = max(0, len(said) - count)  # in the history of those who were there at the start
        said += witness.messages()[len(history) :]
        for talker in newcomers:
            check_talker(talker, said, first, talker in newcomers[:members])


class Talker(Walker):
    """Says lines of which no two are the same, under changing names."""

    counter = itertools.count(1)

    def __init__(self, room: Server) -> None:
        super().__init__(room)
        self.numbers: list[int] = []

    def talk(self) -> None:
        number = next(self.counter)
        self.numbers.append(number)
        if number % 3:
            self.say(b"/name N%d\n" % number)
        self.say(b"".join(b"%d %d\n" % (number, line) for line in range(1 + number % 9)))

    def messages(self) -> list[bytes]:
        """Returns what was said, with the history, as far as it has come."""
        assert not self.received or self.lines()[0] == WELCOME.rstrip()
        return [line for line in self.lines()[1:] if not line.startswith(b"* ")]

    def said(self, line: bytes) -> bool:
        return int(line.rpartition(b": ")[2].split()[0]) in self.numbers


def check_talker(talker: Talker, said: list[bytes], first: int, from_the_start: bool) -> None:
    """It has got, first from the history and then itself, all that others have said from some place
    on, in order, once."""
    got = talker.messages()
    if not got:
        return
    place = first if from_the_start else said.index(got[0])
    assert place >= first
    expected = [line for line in said[place:] if not talker.said(line)]
    assert got == expected[: len(got)]
    assert not talker.ended or got == expected, "it was there at the end"


def test_history_is_what_was_said_through_twenty_restarts(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    talk_through_restarts(start, tmp_path, restarts=20, members=30)
