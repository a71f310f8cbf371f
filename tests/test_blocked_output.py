"""A log or a transcript that takes nothing more: whoever reads it has stopped, or the disk is full.

The server goes on meanwhile, says afterwards how many lines are missing, and ends as it should.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starter import launch
from support import DEADLINE, MODULES, Peer, Server, eventually, path_of

from chat_server import Transcript

if sys.platform == "win32":
    pytest.skip("needs what only Unix has", allow_module_level=True)

import pty
import resource
import termios

SERVERS = ["chat_server.py", "echo_server.py"]
SCRIPTS = [*SERVERS, "chat_client.py"]
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "
LOST = re.compile(STAMP + r"lines lost here: (\d+) \(.+\)")
both_servers = pytest.mark.parametrize("script", SERVERS)
# How a log is stopped: by whoever sits at the terminal, by a program, by nobody who reads.
all_logs = pytest.mark.parametrize(
    "log", ["ctrl-s", "tcflow", "terminal", "pipe", "socket"], indirect=True
)


class StoppedLog:
    """What a server's standard error is, and the end at which it could be read."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "pipe":
            self.reader, self.writer = os.pipe()
        elif kind == "socket":  # as the journal's: Linux can't open it anew, nor, elsewhere, a pipe
            self.reader, self.writer = (one.detach() for one in socket.socketpair())
        else:
            self.reader, self.writer = pty.openpty()

    def stop(self) -> None:
        """Nothing is taken any more, from the first byte on."""
        if self.kind == "ctrl-s":
            os.write(self.reader, b"\x13")
            eventually(lambda: not select.select([], [self.writer], [], 0)[1])
        elif self.kind == "tcflow":
            termios.tcflow(self.writer, termios.TCOOFF)
        else:
            os.set_blocking(self.writer, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.writer, b"\n")
            os.set_blocking(self.writer, True)

    def go_on(self) -> None:
        if self.kind == "ctrl-s":
            os.write(self.reader, b"\x11")
        elif self.kind == "tcflow":
            termios.tcflow(self.writer, termios.TCOON)

    def read(self) -> str:
        """Returns what has come, without waiting."""
        text = b""
        while select.select([self.reader], [], [], 0)[0]:
            text += os.read(self.reader, 65536)
        return text.decode().replace("\r", "")

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[StoppedLog]:
    one = StoppedLog(getattr(request, "param", "pipe"))
    yield one
    one.close()


def talk(server: Server, script: str) -> None:
    """What the server is for works."""
    ann = server.connect()
    if script == "echo_server.py":
        ann.send("hello\n")
        ann.expect("hello\n")
        return
    ann.line()
    ann.send("/name Ann\n")
    ann.expect("* you are Ann\n")
    bob = server.join("Bob")
    ann.expect("* Bob joined\n")
    for number in range(20):
        ann.send(f"{number}\n")
        bob.expect(f"Ann: {number}\n")
        bob.send(f"{number}\n")
        ann.expect(f"Bob: {number}\n")


def allow_bytes(server: Server, size: int) -> None:
    """A disk on which a file can have so many bytes, as far as the server can tell."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs prlimit()")
    limits = (size, resource.RLIM_INFINITY)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)


@both_servers
@all_logs
def test_a_log_that_is_stopped_stops_nobody(
    start: Callable[..., Server], log: StoppedLog, script: str
) -> None:
    log.stop()
    server = start(script, "-v", stderr=log.writer)
    talk(server, script)
    assert os.get_blocking(log.writer)  # whoever shares it relies on that
    assert server.stop() == 0


@both_servers
@all_logs
def test_a_log_that_goes_on_says_what_is_missing(
    start: Callable[..., Server], log: StoppedLog, script: str
) -> None:
    log.stop()
    server = start(script, stderr=log.writer)
    talk(server, script)
    log.go_on()
    text = ""

    def goes_on() -> bool:
        nonlocal text
        server.connect().close()  # is logged
        text += log.read()
        return re.search(r"lost here.*\n.+\n", text) is not None

    eventually(goes_on)
    lines = text.lstrip("\n").split("\n")  # it was filled with those
    found = LOST.fullmatch(lines[0])
    assert found and int(found[1]) > 3, text
    assert re.fullmatch(STAMP + r".* (members|clients): \d+", lines[1])
    assert text.count("lost here") == 1
    assert server.stop() == 0


@pytest.mark.parametrize("log", ["terminal", "pipe", "socket"], indirect=True)
def test_lines_of_a_log_that_is_read_now_and_then_are_whole_or_counted(
    start: Callable[..., Server], log: StoppedLog
) -> None:
    """Long ones, which don't fit in as a whole."""
    room = start("chat_server.py", "-v", stderr=log.writer)
    ann, bob = room.join("Ann"), room.join("Bob")
    ann.expect("* Bob joined\n")
    text = log.read()
    for number in range(300):
        said = f"Ann: {number:03d} {'x' * 2990}\n"
        ann.send(said)
        bob.expect(said)
        if number % 40 == 39:
            text += log.read()
    ends = 0

    def last_is_logged() -> bool:
        nonlocal ends, text
        ends += 1
        ann.send(f"Ann: (end {ends})\n")
        bob.expect(f"Ann: (end {ends})\n")
        text += log.read()
        return f"(end {ends})" in text

    eventually(last_is_logged)
    lines = text.split("\n")[:-1]
    assert not [line for line in lines if len(re.findall(STAMP, line)) > 1]
    said = re.compile(STAMP + r"said: Ann: (\d{3} x{2990}|\(end \d+\))")
    whole = [line for line in lines if said.fullmatch(line)]
    lost = [int(found[1]) for found in map(LOST.fullmatch, lines) if found]
    assert len(lost) > 1
    # A line of which only the newline is missing is counted too, though it looks whole.
    assert 0 <= len(whole) + sum(lost) - 300 - ends <= len(lost)
    assert room.stop(peers=[ann, bob]) == 0


@pytest.mark.parametrize("log", ["terminal", "pipe"], indirect=True)
@both_servers
def test_a_stream_takes_what_there_is_room_for_and_counts_the_rest(
    log: StoppedLog, script: str
) -> None:
    program = (
        f"import {script[:-3]} as server\n"
        "out, lost = server.LossyStream(2), 0\n"
        "for n in range(3000):\n"
        "    out.write('x' * n + '\\n')\n"
        "print(out.lost)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=log.writer, cwd=MODULES
    ) as process:
        try:
            shown, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert 0 < int(shown) < 2950, "since the last that a busy terminal has taken meanwhile"


@both_servers
def test_log_on_a_disk_that_is_full_for_a_moment(start: Callable[..., Server], script: str) -> None:
    server = start(script)
    server.wait_for_log(r"(?:or: nc|try it: telnet) .*\n")  # the last line at the start
    before = server.log().count("\n")
    allow_bytes(server, server.log_file.stat().st_size + 30)  # the next line is longer
    talk(server, script)
    allow_bytes(server, resource.RLIM_INFINITY)
    server.connect().close()
    lines = server.wait_for_log(r"lost here: \d+ \(File too large\)\n.*\n").string.split("\n")
    assert re.fullmatch(STAMP + "127.0.0.1:?.{0,9}", lines[before])  # cut short
    assert LOST.fullmatch(lines[before + 1])
    assert server.stop() == 0


@both_servers
def test_log_on_a_full_disk_stops_nobody(start: Callable[..., Server], script: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    server = start(script, "-v", stderr=full)
    os.close(full)
    talk(server, script)
    assert server.stop() == 0


@all_logs
def test_no_script_waits_for_a_reader_to_say_why_it_ends(log: StoppedLog) -> None:
    log.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        runs = [([script, "--no-such-option"], 2) for script in SCRIPTS]
        runs += [([script, "--port", port], 1) for script in SERVERS]
        runs += [([script, "--help"], 0) for script in SCRIPTS]
        runs.append((["chat_client.py", "--tls-ca", "none"], 1))
        for command, status in runs:
            process = launch(
                [sys.executable, path_of(command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log.writer,
                stderr=log.writer,
            )
            try:
                assert (command, process.wait(DEADLINE)) == (command, status)
            finally:
                process.kill()


# The transcript


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def open_reader(fifo: Path) -> int:
    return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)


def read_lines(reader: int) -> list[str]:
    """Returns what has come, without waiting, and without the times."""
    text = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            text += os.read(reader, 65536)
    lines = text.decode().split("\n")[:-1]
    assert not [line for line in lines if len(re.findall(STAMP, line)) > 1]
    return [re.sub(STAMP, "", line) for line in lines]


def say_many(room: Server, lines: int) -> tuple[Peer, Peer]:
    """One says lines of about 700 bytes, the other hears them; returns both."""
    ann, bob = room.join(), room.join()
    for number in range(lines):
        said = f"{number:04d} {'x' * 700}\n"
        ann.send(said)
        bob.expect(said)
    return ann, bob


options = pytest.mark.parametrize("options", [[], ["-v", "--history", "10"]])


@options
def test_transcript_keeps_lines_for_a_reader_that_comes_and_goes(
    start: Callable[..., Server], fifo: Path, options: list[str]
) -> None:
    room = start("chat_server.py", "--transcript", str(fifo), *options)
    ann, bob = room.join("Ann"), room.join("Bob")
    expected = ["* Ann joined", "* Bob joined"]
    for said in ("Ann: one", "Ann: two", "Ann: three"):
        ann.send(f"{said}\n")
        bob.expect(f"{said}\n")
        reader = open_reader(fifo)
        assert read_lines(reader) == [*expected, said]
        os.close(reader)
        expected = []
    assert "cannot write" not in room.log()
    assert room.stop(peers=[ann, bob]) == 0


@options
@pytest.mark.parametrize("readers", [0, 1])
def test_transcript_that_nobody_reads_stops_nobody_and_says_what_is_missing(
    start: Callable[..., Server], fifo: Path, options: list[str], readers: int
) -> None:
    stopped = [open_reader(fifo) for _ in range(readers)]
    room = start("chat_server.py", "--transcript", str(fifo), *options)
    ann, bob = say_many(room, 300)
    complaint = f"cannot write the transcript {fifo}: nobody is reading it"
    assert room.log().count(complaint) == 1
    reader = open_reader(fifo)
    lines = read_lines(reader)
    said = 300

    def is_told() -> re.Match[str] | None:
        nonlocal said
        ann.send("hi\n")
        bob.expect("hi\n")
        said += 1
        lines.extend(read_lines(reader))
        return re.search(r"lines missing in the transcript \S+: (\d+)", room.log())

    found = eventually(is_told)
    whole = [line for line in lines if re.fullmatch(r"\d{4} x{700}|hi", line)]
    assert len(lines) - len(whole) <= 1  # one was cut short, and is counted
    assert len(whole) > 50
    assert int(found[1]) > 50
    assert 0 <= len(whole) + int(found[1]) - said <= 1  # of that only the newline may be missing
    assert room.log().count(complaint) == 1
    for one in [*stopped, reader]:
        os.close(one)
    assert room.stop(peers=[ann, bob]) == 0


@pytest.mark.parametrize("readers", [0, 1])
def test_room_with_a_blocked_transcript_and_a_blocked_log_ends(
    start: Callable[..., Server], fifo: Path, log: StoppedLog, readers: int
) -> None:
    stopped = [open_reader(fifo) for _ in range(readers)]
    log.stop()
    room = start(
        "chat_server.py", "-v", "--history", "9", "--transcript", str(fifo), stderr=log.writer
    )
    say_many(room, 200)
    assert room.stop() == 0
    for one in stopped:
        os.close(one)


def test_transcript_that_stays_blocked_is_told_at_the_end(
    start: Callable[..., Server], fifo: Path
) -> None:
    room = start("chat_server.py", "--transcript", str(fifo))
    say_many(room, 200)
    assert room.stop() == 0
    assert re.search(r"lines missing in the transcript \S+: \d+\n", room.log())


@options
def test_transcript_on_a_disk_that_is_full_for_a_moment(
    start: Callable[..., Server], tmp_path: Path, log: StoppedLog, options: list[str]
) -> None:
    file = tmp_path / "transcript"
    file_options = ["--transcript", str(file), *options]
    room = start("chat_server.py", *file_options, stderr=log.writer)
    ann, bob = room.join("Ann"), room.join("Bob")
    ann.expect("* Bob joined\n")
    allow_bytes(room, file.stat().st_size + 40)
    for said in ("Ann: I owe you a hundred\n", "Ann: or two\n"):
        ann.send(said)
        bob.expect(said)
    allow_bytes(room, resource.RLIM_INFINITY)
    told = ""

    def is_told() -> bool:
        nonlocal told
        bob.send("Bob: no\n")
        ann.expect("Bob: no\n")
        told += log.read()
        return "lines missing" in told

    eventually(is_told)
    assert told.count(f"cannot write the transcript {file}: File too large\n") == 1
    assert told.count(f"lines missing in the transcript {file}: 2\n") == 1
    lines = [re.sub(f"^{STAMP}", "", line) for line in file.read_text().split("\n")]
    assert lines[:4] == ["* Ann joined", "* Bob joined", "Ann: I owe you a hu\x18", "Bob: no"]
    assert set(lines[4:]) <= {"Bob: no", ""}
    assert room.stop(peers=[ann, bob]) == 0


def test_transcript_that_ends_within_a_line_goes_on_in_a_new_one(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """The disk was full, and the room was stopped then."""
    file = tmp_path / "transcript"
    torn = b"2026-11-22T08:10:15Z Ann: ho"
    for before, end in ((torn, b"\x18\n"), (b"Ann: one\n", b""), (b"", b"")):
        file.write_bytes(before)
        room = start("chat_server.py", "--transcript", str(file))
        room.join("Ann")
        assert file.read_bytes().startswith(before + end + b"20")
        assert room.stop() == 0


def test_transcript_that_is_started_anew_costs_no_descriptor(tmp_path: Path) -> None:
    file = tmp_path / "transcript"
    transcript = Transcript(str(file))
    old = transcript.file
    file.unlink()
    transcript.write(b"a\n")
    assert file.read_bytes().endswith(b" a\n")
    with pytest.raises(OSError):
        os.fstat(old)
    transcript.close()
