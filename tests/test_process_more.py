"""Part VI, the process: the transcript and the history that comes from it, accepting, the log."""

from __future__ import annotations

import calendar
import errno
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import DEADLINE, Server, checked_server, patched

import chat_server
import echo_server
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


# The transcript


def test_what_is_said_is_in_the_transcript_with_its_time_and_in_the_log_with_v(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "transcript"
    elsewhere = {**os.environ, "TZ": "XYZ-9"}  # where the local time is far from UTC
    room = start("chat_server.py", "-v", "--transcript", str(file), env=elsewhere)
    one, two = room.join("John"), room.join()
    one.send("a\n/msg John: secret\nb\n")
    two.expect("John: a\n", "John: b\n")
    room.stop(peers=[one, two])
    stamps, said = zip(*(line.split(" ", 1) for line in file.read_text().splitlines()))
    assert said == ("* John joined", "John: a", "John: b", "* the room is closing")
    for stamp, line in zip(stamps, said):
        said_at = calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
        assert abs(said_at - time.time()) < 3600
        assert f"said: {line}\n" in room.log()


def test_transcript_whose_folder_is_moved_away_and_back(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    room = start("chat_server.py", "--transcript", str(folder / "file"))
    one, two = room.join(), room.join()
    folder.rename(elsewhere)
    for text in ("a\nb\n", "c\n"):
        one.send(text)
        two.expect(*text.splitlines(keepends=True))
    elsewhere.rename(folder)
    one.send("d\n")
    two.expect("d\n")
    assert (folder / "file").read_text().endswith("Z d\n")
    assert room.log().count("cannot write the transcript") == 1


# The history that comes from it


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
        *((line, None) for line in (TIME, TIME.rstrip(), "", "Ann: hi", TIME[:12])),
        ("2026-11-26 01:02:03 Ann: hi", None),
        ("x" + TIME + "Ann: hi", None),
        *((TIME + line, None) for line in ("Ann: h\x18", "Ann: \x1b[2Jhi", "Ann: hi\r")),
        *((TIME + line, None) for line in ("\0\0\0\0", "broken \udcff", "Ann: c1 \x9b")),
    ],
)
def test_what_of_a_transcript_was_said(line: str, said: str | None) -> None:
    data = f"{TIME}before\n{line}\n{TIME}after\n{TIME}torn".encode("utf-8", "surrogateescape")
    expected = ["before", *([] if said is None else [said]), "after"]
    assert said_before(data, 100).decode() == "".join(f"{one}\n" for one in expected)


def test_history_survives_restarts_even_one_in_the_middle_of_a_line(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "transcript"
    options = ["--history", "4", "--transcript", str(file)]
    patch = (
        "import os\n"
        "write = os.write\n"
        "def write_halfway(descriptor, data):\n"
        "    if b'last words' not in data:\n"
        "        return write(descriptor, data)\n"
        "    write(descriptor, data[:25])\n"
        "    os.kill(os.getpid(), 9)\n"
        "os.write = write_halfway"
    )
    room = patched(start, tmp_path, patch, *options)
    ann, bob = room.join("Ann"), room.join()
    said = ["Ann: one", f"Ann: {TIME}two", "three", f"{TIME}four", "Ann: five"]
    for line in said:
        (ann if line.startswith("Ann") else bob).send(f"{line}\n")
        (bob if line.startswith("Ann") else ann).read_until(f"{line}\n")
    bob.send("/name Bob\n/msg Ann: psst\n")
    ann.expect("* Bob joined\n", "Bob (private): psst\n")
    bob.send("last words\n")
    assert room.process.wait(DEADLINE) == -signal.SIGKILL
    for number in range(2):
        room = start("chat_server.py", *options)
        assert history_of(room) == said[-4:]
        ann, bob = room.join(), room.join()
        ann.read_until(f"{said[-1]}\n")
        bob.send(f"{number}\n")
        ann.expect(f"{number}\n")
        said.append(str(number))
        assert room.stop(peers=[ann, bob]) == 0
    assert "psst" not in file.read_text()
    assert history_of(start("chat_server.py", *options[:2])) == []


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


def test_what_is_no_file_has_no_history(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, f"{TIME}in a pipe\n".encode())
    for path in (str(fifo), os.devnull):
        assert Transcript(path).messages(MAX_LINE) == b""
    assert not caplog.text
    os.close(writer)


# Newcomers


OPTIONS = {"SO_OOBINLINE": 1, "SO_KEEPALIVE": 1, "TCP_NODELAY": 1, "TCP_KEEPIDLE": 60}
OPTIONS.update(TCP_KEEPINTVL=15, TCP_KEEPCNT=4)
OPTIONS.update(TCP_USER_TIMEOUT=0)  # would end a peer that is only suspended, too
ROOM_OPTIONS = {"TCP_NOTSENT_LOWAT": 64 * 1024}


@pytest.mark.parametrize("platform", [sys.platform, "elsewhere"])
@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_each_connection_gets_the_socket_options(
    module: Any, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also whoever connects at the first moment: from its listener, or, where that isn't sure, one
    by one."""
    listen, peers = socket.socket.listen, []

    def listen_and_connect(sock: socket.socket, *backlog: int) -> None:
        listen(sock, *backlog)
        peers.append(socket.create_connection(sock.getsockname()))

    monkeypatch.setattr(socket.socket, "listen", listen_and_connect)
    if platform == sys.platform:
        (listener,) = module.open_listeners(["127.0.0.1"], 0)
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform=platform, intern=sys.intern))
    is_room = module is chat_server
    server: Any = checked_server([listener]) if is_room else module.EchoServer([], 9)
    with listener, peers[0]:
        (server.door.acceptor if is_room else server).accept(listener)
        (conn,) = server.room.members if is_room else server.clients
        for name, value in {**OPTIONS, **(ROOM_OPTIONS if is_room else {})}.items():
            level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
            if hasattr(socket, name):
                got = conn.sock.getsockopt(level, getattr(socket, name))
                assert got == value or (value == 1 and got), name
        assert not conn.sock.getblocking()


@pytest.mark.parametrize(
    "failure, said",
    [
        (OSError(errno.ECONNABORTED, "Software caused connection abort"), ""),
        (OSError(errno.ENOSPC, "No space left"), "newcomers have to wait: No space left"),
        (RuntimeError("a bug"), "could not be admitted"),
    ],
)
def test_admission_that_fails_ends_that_connection_alone(
    failure: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has left already makes nobody wait."""
    failures = [failure]
    admitted: list[socket.socket] = []

    def admit(sock: socket.socket, peer: str) -> None:
        if failures:
            raise failures.pop()
        admitted.append(sock)

    listeners = chat_server.open_listeners(["127.0.0.1"], 0)
    with selectors.DefaultSelector() as selector:
        acceptor = chat_server.Acceptor(selector, listeners, admit, chat_server.Clock())
        for _ in range(2):
            acceptor.listen()
            peer = socket.create_connection(listeners[0].getsockname())
            for key, _ in selector.select(DEADLINE):
                key.data()
            peer.close()
            assert acceptor.listening == (bool(admitted) or "wait" not in said)
        acceptor.close()
        acceptor.listen()  # as when something else is due then
    assert said in caplog.text if said else not caplog.text
    assert len(admitted) == 1
    admitted[0].close()


def test_out_of_descriptors_the_room_goes_on_and_idles(start: Callable[..., Server]) -> None:
    resource = pytest.importorskip("resource")
    room = start(
        "chat_server.py",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    one, two = room.join(), room.join()
    knocking = [room.connect() for _ in range(80)]
    room.wait_for_log("newcomers have to wait")
    for number in range(20):
        one.send(f"{number}\n")
        two.expect(f"{number}\n")
    before = room.cpu_seconds()
    time.sleep(0.5)  # not to wait for something, but to see that nothing happens
    assert room.cpu_seconds() - before < 0.06
    assert room.log().count("newcomers have to wait") == 1
    for peer in knocking:
        peer.close()
    room.join()


def test_a_newcomer_without_an_address_has_been_reset() -> None:
    """On macOS."""
    assert chat_server.format_address(None) == "somebody:0"


# The log


def test_logged_lines_show_only_what_can_be_printed_and_a_hundred_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for line, shown in (
        ('it\'s "plain" \\x1b ü 本', 'it\'s "plain" \\x1b ü 本'),
        ("\x1b[31m it's \\n\tred", "\\x1b[31m it's \\n\\tred"),
        ("\u2028\u202e \x85", "\\u2028\\u202e \\x85"),
    ):
        chat_server.log_said(f"{line}\n".encode())
        assert caplog.messages.pop() == f"said: {shown}"
        caplog.clear()
    for count in (100, 150):
        chat_server.log_said(b"x\n" * count)
    assert len(caplog.messages) == 201
    assert caplog.messages[-1] == "said: (50 more lines)"


def test_a_signal_after_the_end_leaves_no_trace(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    late = "import atexit, signal\natexit.register(signal.raise_signal, signal.SIGTERM)"
    room = patched(start, tmp_path, late)
    member = room.join()  # before that, a signal would find it as any process is at its start
    assert room.stop(peers=[member]) == 0
    assert room.log().splitlines()[-1].endswith("stopped by SIGTERM")
