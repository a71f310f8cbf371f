"""The client on a terminal: in tmux, whose screen can be read, and in a bare pseudo-terminal."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Tuple

import pytest
import support
from support import CLIENT, Listener, Peer, Run, Server, Window, eventually, modes, typed, welcome

import chat_client
from chat_client import Painter

# What the fixture `play` is, which returns a client and its server.
Play = Callable[..., Tuple[support.Terminal, Peer]]


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Window]:
    one = Window(tmp_path)
    yield one
    one.kill()


@pytest.fixture
def play(listener: Listener, terminal: Run) -> Play:
    """play("hi\\n") returns John at a client, and the server, which has said that."""

    def begin(*said: str, client: Sequence[str] = CLIENT, **more: Any) -> Any:
        window = terminal(*client, *listener.address, "--name", "John", **more)
        server = listener.accept()
        server.send("".join(said))
        return window, server

    return begin


# What the screen shows


def enter(window: Window, room: Server, more: str = "") -> Peer:
    """Starts a client there, and waits until it is in the room; returns a member who is too."""
    ann = room.join("Ann")
    window.run(*CLIENT, "localhost", str(room.port), more=more)
    if not more:
        window.expect("name:")
        window.say("John")
        window.expect("name: John", "Welcome to the chatroom!", "John:")
        ann.expect("* John joined\n")
    return ann


def test_lines_arriving_while_one_is_edited_leave_it_intact(room: Server, window: Window) -> None:
    ann = enter(window, room)
    text = "the quick brown fox jumps over the lazy dog"
    window.type(text)
    window.keys(*["Left"] * 22)  # after "jumps"
    for number in range(200):
        ann.send(f"line {number}\n")
        if number % 5 == 0:
            window.keys("BSpace" if number % 10 else "x")
    window.expect(*(f"Ann: line {number}" for number in range(200)), f"John: {text}")
    window.keys("Enter")
    ann.expect(f"John: {text}\n")


def test_wide_and_combined_characters_keep_the_cursor_right(room: Server, window: Window) -> None:
    ann = enter(window, room)
    window.type("a\u4f60\u597de\u0301\U0001f600z")
    window.expect("John: a\u4f60\u597de\u0301\U0001f600z")
    eventually(lambda: window.cursor() == len("John: ") + 1 + 2 + 2 + 1 + 2 + 1)
    window.keys("Left", "Left")
    eventually(lambda: window.cursor() == len("John: ") + 1 + 2 + 2 + 1)
    window.type("!")
    window.keys("Left", "BSpace", "BSpace", "Enter")
    ann.expect("John: a\u4f60!\U0001f600z\n")


def test_long_line_in_a_window_that_changes(room: Server, window: Window) -> None:
    ann = enter(window, room)
    text = " ".join(f"word{number}" for number in range(40))  # three times the width
    window.type(text)
    window.expect("<" + text[-78:])
    window.keys("Home")
    window.expect(f"John: {text}"[:78] + ">")
    window.resize(100)
    window.expect(f"John: {text}"[:98] + ">")
    window.type("> ")
    ann.send("meanwhile\n")
    window.expect("Ann: meanwhile", f"John: > {text}"[:98] + ">")
    window.keys("Enter")
    rows = Painter(False, False).paint(f"John: > {text}", 100).split(" \n")
    window.expect("Ann: meanwhile", *rows, "John:")
    ann.expect(f"John: > {text}\n")


def test_pasted_block_waits_and_goes_out_as_messages(room: Server, window: Window) -> None:
    ann = enter(window, room)
    lines = ["if broken; then", "    exit", "fi", "/quit", *map(str, range(50)), "quit"]
    window.paste("\n".join(lines))
    window.expect("<" + "\u21b5".join(lines)[-78:])
    ann.send("nothing was sent yet\n")
    window.expect("Ann: nothing was sent yet", window.lines()[-1])
    window.keys("Enter")
    window.wait_for("(55 lines, with a slash: Enter says them to everyone)")
    window.keys("Enter")
    ann.expect(*(f"John: {line}\n" for line in lines))
    window.expect(*(f"John: {line}" for line in lines), "John:")


@pytest.mark.parametrize("way", ["C-z, fg", "C-z, bg, bg, fg", "&, fg"])
def test_the_client_comes_back_from_the_background(room: Server, window: Window, way: str) -> None:
    first, *steps = way.split(", ")
    ann = enter(window, room, more=" --name John &" if first == "&" else "")
    if first == "C-z":
        window.type("half")
        window.expect("John: half")
        window.keys("C-z")
        window.wait_for("Stopped")
        ann.send("while you were away\n")
    window.run("stty", "-a", more=" | grep -ow '.icanon\\|icanon'")
    window.wait_for("icanon")

    def has_stopped() -> bool:
        window.run("jobs")
        return any("Stopped" in line for line in window.lines())

    for step in steps:
        eventually(has_stopped)
        window.run(step)
    if first == "C-z":
        window.expect("Ann: while you were away", "John: half")
    else:
        ann.expect("* John joined\n")
        window.wait_for("John:")
    window.say("back")
    ann.expect(f"John: {'half' if first == 'C-z' else ''}back\n")
    window.say("exit")
    window.expect("exit", "$")
    window.run("stty", "-a", more=" | grep -ow '.icanon\\|icanon'")
    window.expect("icanon", "$")


@pytest.mark.parametrize("by", ["the user", "somebody else"])
def test_a_client_that_is_stopped_can_be_ended(room: Server, window: Window, by: str) -> None:
    """If somebody else has stopped it, it can't give the terminal back, and would be stopped anew
    if it tried."""
    ann = enter(window, room)
    shell = window.command("display-message", "-p", "#{pane_pid}").strip()
    client = int(subprocess.check_output([support.needs("pgrep"), "-P", shell]))
    if by == "the user":
        window.keys("C-z")
    else:
        os.kill(client, signal.SIGSTOP)
    window.wait_for("Stopped")
    window.run("kill", "%1")
    ann.expect("* John left\n")
    eventually(lambda: not Path(f"/proc/{client}").exists(), "it has ended")


def test_tab_history_and_redraw(room: Server, window: Window) -> None:
    ann = enter(window, room)
    ann.send("hi\n")
    window.expect("Ann: hi", "John:")
    window.type("an")
    window.keys("Tab")
    window.type("hello")
    window.keys("Enter", "Up")
    window.expect("John: Ann: hello", "John: Ann: hello")
    before = window.lines()
    window.keys("C-l")
    eventually(lambda: window.command("capture-pane", "-p").split() == ["John:", "Ann:", "hello"])
    assert [line for line in window.lines() if line] == [line for line in before if line]


DIGITS = "0123456789"
WIDE = "\u65e5\u672c\u8a9e incomprehensibilities \u65e5\u672c\u8a9e"
# What is typed in 80 columns, and how many there are then. To half of them: cut off or wrapped, the
# cursor would be in the same column. A wide character leaves the end of a row empty; and what tmux
# clears at the top, it keeps.
NARROWED = {
    "a wrapped row": (7 * DIGITS, [30]),
    "to half": (12 * DIGITS, [40]),
    "to full rows": (12 * DIGITS, [81, 40]),
    "in steps": (12 * DIGITS, [60, 50, 40, 20]),
    "by a split": (12 * DIGITS, []),
    "wide characters": (WIDE, [18]),
    "at the top": ("half", [79]),
    "and the client is stopped at once": (12 * DIGITS, [40]),
}


@pytest.mark.parametrize("where", NARROWED)
def test_no_piece_of_a_row_stays(listener: Listener, window: Window, where: str) -> None:
    def expect(text: str, columns: int) -> None:
        row = "".join(typed(text).view("John: ", columns)).rstrip()
        window.expect("line 28", "line 29", row)

    text, narrowed = NARROWED[where]
    window.run(*CLIENT, *listener.address, "--name", "John")
    server = listener.accept()
    server.send("".join(f"line {number}\n" for number in range(30)))  # the row is at the bottom
    expect("", 80)
    if where == "at the top":
        window.keys("C-l")
    window.type(text)
    expect(text, 80)
    if where == "by a split":
        window.command("split-window", "-h", "-d", "cat")
    for columns in narrowed:
        window.resize(columns)
        if "stopped" not in where:
            expect(text, columns)
            continue
        window.keys("C-z")
        window.wait_for("Stopped")
        lines = window.lines()
        assert DIGITS not in "".join(lines[lines.index("line 29") :])
        return
    columns = narrowed[-1] if narrowed else 40
    window.type("!")
    expect(f"{text}!", columns)


# What a terminal has in its environment; whether it reflows rows; so much is typed, and how many
# columns there are then. One that reflows as tmux does may have the cursor of a row that is wrapped
# in its last column.
GNOME, SCREEN = {"VTE_VERSION": "7006"}, {"STY": "1.pts-1", "TERM": "screen"}
TERMINALS = {
    "xterm": ({}, False, 70, [75]),
    "xterm, in steps": ({}, False, 70, range(75, 24, -5)),
    "one that reflows": ({}, True, 70, [75]),
    "one that reflows, in steps": ({}, True, 70, range(75, 24, -5)),
    "GNOME's terminal, to half": (GNOME, True, 300, [40]),
    "GNOME's terminal, to full rows": (GNOME, True, 70, [39]),
    "GNU screen, to half": (SCREEN, True, 300, [40]),
}


@pytest.mark.parametrize("env, reflows, size, narrowed", TERMINALS.values(), ids=TERMINALS)
def test_nothing_is_lost_and_no_piece_of_a_row_stays_in(
    play: Play, env: dict[str, str], reflows: bool, size: int, narrowed: Sequence[int]
) -> None:
    patient = support.patched_client("import chat_client; chat_client.MEASURE_TIME = 1000")
    window, server = play(client=patient, env=env)
    stays = env is GNOME  # which says where its cursor is
    screen = support.Screen(window, reflows, stays)
    lines = [f"Ann: {number}" for number in range(15)]
    server.send("".join(f"{line}\n" for line in lines))
    screen.expect("Ann: 14")
    row = "John: " + (30 * DIGITS)[:size] + "xy"
    window.type(row[len("John: ") :])
    screen.expect("xy")
    for columns in narrowed:
        screen.resize(columns)
        screen.expect("<" + row[2 - columns :])
    assert [line for line in screen.rows if line] == [*lines, "<" + row[2 - columns :]]


def test_a_row_that_is_wider_than_assumed_leaves_nothing_behind(play: Play) -> None:
    window, _server = play("hi\n")
    screen = support.Screen(window)  # in which each combining mark takes a column
    window.type("e\u0301" * 60)
    for number in range(5):
        window.type(str(number))
        screen.expect(str(number))
    assert [row for row in screen.rows if row][:-1] == ["hi"]


# In a bare pseudo-terminal


def test_a_window_may_be_narrow_from_the_start(play: Play) -> None:
    window, _server = play(size=(24, 30))
    window.type("x" * 50)
    window.expect(f"<{'x' * 28}\x1b7")


def test_what_is_typed_ahead_is_kept_with_either_end_of_line(room: Server, terminal: Run) -> None:
    other = room.join()
    window = terminal(*CLIENT, "localhost", str(room.port))
    window.type("John\none\rtwo\nhalf")
    other.expect("* John joined\n", "John: one\n", "John: two\n")
    window.type(" done\r")
    other.expect("John: half done\n")


KEYS = {"quit": "quit\r", "ctrl-c": "\x03", "ctrl-d": "\x04"}
SIGNALS = ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGALRM"]


@pytest.mark.parametrize("way", [*KEYS, *SIGNALS, "lost", "somebody else has stopped it"])
def test_terminal_is_given_back_as_it_was(listener: Listener, terminal: Run, way: str) -> None:
    options = ["--echo"] if way == "lost" else ["--name", "John"]
    client = shlex.quote(f"echo pid $$.; exec {shlex.join([*CLIENT, *listener.address, *options])}")
    # The shell in between keeps the pseudo-terminal open until we have looked at it.
    window = terminal("sh", "-c", f"read go; sh -c {client}; echo status $?; read wait")
    before = modes(window)
    window.type("\n")
    server = listener.accept()
    window.expect("pid ")
    pid = int(window.expect("."))
    eventually(lambda: modes(window) != before)
    status = int(way == "lost")
    if way == "lost":
        server.close()
    else:
        welcome(server)
        window.expect(f"{chat_client.WELCOME}\n")
    if way in SIGNALS:
        os.kill(pid, getattr(signal, way))
        status = 0 if way == "SIGINT" else 128 + getattr(signal, way)
    elif way in KEYS:
        window.type(KEYS[way])
        if way != "ctrl-c":
            assert server.rest() == b""
            server.close()
    elif way == "somebody else has stopped it":
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        window.answer("\x1b[?2004h", "\x03\x03")
    window.expect("\x1b[?2004l")
    window.expect(f"status {status}")
    assert modes(window) == before
    assert "Traceback" not in window.shown


def test_terminal_is_given_back_after_an_exception(terminal: Run) -> None:
    code = "import chat_client as c; c.Client.run = lambda *_: 1 / 0; c.main([])"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    window = terminal("sh", "-c", f"{command}; echo status $?; read wait", cwd=support.MODULES)
    before = modes(window)
    window.expect("ZeroDivisionError")
    window.expect("status 1")
    assert modes(window) == before


def test_closed_window_ends_the_client(play: Play) -> None:
    window, server = play()
    window.expect("\x1b[?2004h")
    os.close(window.master)
    window.master = os.open(os.devnull, os.O_RDWR)
    server.rest()
    assert window.wait() in (1, 129)


def test_a_paste_ends_after_a_silence(play: Play) -> None:
    window, server = play("a relay\n")
    window.type("\x1b[200~cut off")
    window.answer("cut off", "\r")
    server.expect("John: cut off\n")


STATES = ["lost-\x03", "connecting-\x04"]
STATES += [f"silent-{keys}" for keys in ("\x03", "\x04", "\x04\x03", "exit\r")]


@pytest.mark.parametrize("typed", ["important\r/who\r", ""])
@pytest.mark.parametrize("state, keys", [one.split("-") for one in STATES])
def test_nobody_is_kept_and_whoever_leaves_is_told_what_was_not_said(
    listener: Listener, play: Play, state: str, keys: str, typed: str
) -> None:
    if state == "connecting":  # the server doesn't shake hands
        window, server = play(client=[*CLIENT, "--tls"])
        window.expect("(connecting)")
    else:  # the room doesn't answer the password
        window, server = play("* password?\n", env={"CHAT_PASSWORD": "secret"})
        server.expect("secret\n")
    if state == "lost":
        listener.listener.close()
        server.close()
        window.expect("(trying again in")
    window.type(typed)
    if typed and state != "silent":
        window.expect("lines that wait: 2)")
    window.type(keys)
    assert window.wait() == bool(typed)
    rest = window.rest()
    assert "not sent: important; /who\n" in rest or not typed
    assert rest.count("chat_client.py: ") == bool(typed)


def test_flood_leaves_the_keys_alive_and_control_c_leaves_at_once(play: Play) -> None:
    window, server = play()

    def pour() -> None:
        with suppress(OSError):
            while True:
                server.send(b"flood " * 20 + b"\n")

    threading.Thread(target=pour, daemon=True).start()
    window.answer("flood flood", "still alive")
    window.answer("still alive\x1b7", "\x03\x03")
    window.rest()
    assert window.wait() == 0


def untaken() -> chat_client.Terminal:
    """Returns a terminal that isn't one."""
    console = chat_client.Terminal.__new__(chat_client.Terminal)
    console.output, console.above, console.row = bytearray(), bytearray(), ""
    console.modes, console.timers, console.status, console.prompt = ["taken"], {}, "", ""
    console.line, console.secret, console.width = chat_client.Editor(), None, 80
    console.painter = chat_client.Painter(False, False)
    console.pace = float("inf")
    console.full, console.quiet_until = [], 0.0
    console.before, console.wraps, console.in_vte = "", False, False
    console.taken, console.screen = 0, -1
    return console


def test_what_waits_above_the_row_is_shown_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client.Terminal, "write_all", lambda _: None)
    monkeypatch.setattr(chat_client.termios, "tcsetattr", lambda *_: None)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    console = untaken()
    console.above += b"hello\n"
    console.give_back()
    assert (console.output.count(b"hello\n"), console.above) == (1, b"")


def test_keys_of_a_slow_terminal_are_soon_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, room, taken = [100.0], [5000], bytearray()

    def write(_: int, data: bytes) -> int:
        if not room[0]:
            raise BlockingIOError
        size = min(room[0], len(data))
        taken.extend(data[:size])
        room[0] -= size
        return size

    def pass_time(seconds: float, drawn: int) -> None:
        clock[0] += seconds
        room[0] += drawn
        before = -1
        while room[0] != before:
            before = room[0]
            console.write()
            console.update()

    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(chat_client, "os", SimpleNamespace(write=write))
    console = untaken()
    console.above += b"".join(b"line %d\n" % number for number in range(10_000))
    pass_time(0.0, 0)
    pass_time(3.0, 5000)
    assert console.pace == float("inf"), "it was only stopped"
    for _ in range(3):
        pass_time(0.1, 1000)
    assert console.pace == pytest.approx(8000, rel=0.05)
    rests_for = console.timers[console.rest] - clock[0]
    assert rests_for == pytest.approx(chat_client.HELD / 8000, rel=0.1)
    assert console.timers[console.forget_pace] - clock[0] == chat_client.SLOW_TIME
    pass_time(1.0, 20_000)
    lines = taken.count(b"line ")
    console.line.feed(b"x")
    console.update()
    assert taken.endswith(b"\rx\x1b7\x1b[K\x1b8\x1b[?7h"), "the key is drawn"
    assert taken.count(b"line ") == lines, "and no line"
    del console.timers[console.rest]
    before = len(taken)
    console.update()
    drawn = len(taken) - before
    assert 0 < drawn < 1.1 * chat_client.MAX_DRAWN
    assert console.timers[console.rest] - clock[0] == pytest.approx(drawn / console.pace)
    console.forget_pace()
    del console.timers[console.rest]
    room[0] = 10**9
    console.write()
    console.update()
    assert not (console.above or console.output), "one that takes it all gets it all"


def test_nothing_is_drawn_while_a_window_is_dragged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn for one size may come when the window has the next."""
    clock, width = [100.0], [80]
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(chat_client, "window_size", lambda: (width[0], 24))
    console = untaken()
    console.before = "x" * 79
    console.above += b"line\n"
    for width[0] in range(79, 39, -1):
        console.resize()
        console.measure(width[0] - 1)  # an answer for a size that has passed
        console.update()
        clock[0] += 0.25
        assert (console.output, min(console.timers.values()) > clock[0]) == (b"", True)
    clock[0] += 0.1
    assert console.timers.pop(console.settle) < clock[0]
    console.settle()
    console.update()
    assert console.output == b"\x1b[6n"
    width[0] = 39  # of which nobody has told yet
    console.measure(38)
    assert console.output == b"\x1b[6n"
    width[0] = 40
    console.measure(39)
    assert console.output.endswith(chat_client.CLEAR_BELOW.encode()) and not console.timers


def test_a_terminal_that_does_not_read_stops_neither_keys_nor_memory(play: Play) -> None:
    window, server = play()
    window.expect("\x1b[?2004h")
    server.sock.settimeout(0.4)
    with pytest.raises(socket.timeout):  # the client stops reading: its terminal takes no more
        for _ in range(100):
            server.send(b"flood\n" * 200_000)
    window.type("\x03")
    assert window.wait() == 0


def test_a_line_is_shown_above_the_row_in_one_go(play: Play) -> None:
    window, server = play()
    row = "\x1b[1mJohn: \x1b[0mhalf\x1b7\x1b[K\x1b8"
    window.type("half")
    window.expect(row)
    for line in ("first\n", "second\n"):
        server.send(line)
        assert window.expect(row) == f"\x1b[?7h{chat_client.CLEAR_BELOW}{line}\x1b[?7l\r"


@pytest.mark.parametrize(
    "environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}], ids=str
)
def test_colours_bell_and_timestamps(
    room: Server, terminal: Run, environment: dict[str, str]
) -> None:
    ann = room.join("Ann")
    options = ["localhost", str(room.port), "--name", "John", "--timestamps"]
    window = terminal(*CLIENT, *options, env=environment)
    ann.expect("* John joined\n")
    ann.send("hi john\n/quit\n")
    if not environment:
        window.expect("\x1b[0m: hi john\n")
        window.expect("] \x1b[2m* Ann left\x1b[0m\n")
        window.expect("\a")
        return
    before = window.expect("] * Ann left\n")
    assert "\x1b[3" not in before and "\x1b[2m" not in before and "\x1b[1m" not in before
    assert ("\x1b" in before) is ("TERM" not in environment)
    window.type("exit\r")
    assert window.wait() == 0


def test_bells_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: now))
    console = untaken()
    for now, rung in ((100.0, 1), (100.1, 1), (104.9, 1), (105.0, 2)):
        console.ring()
        assert console.above.count(b"\a") == rung


# The password, which is typed unseen in the line editor


def test_the_room_is_seen_while_the_password_is_not(play: Play) -> None:
    window, server = play("* password?\n")
    window.answer("password: ", "sec")
    server.send("* be patient\n")
    shown = window.expect("* be patient")
    shown += window.expect("password: ")
    window.resize(24, 30)
    shown += window.expect(f"{chat_client.CLEAR_BELOW}\x1b[?7l\rpassword: ")
    window.type("rexx\x7f\x7ft\r\x1b[A\x19\x15behind\r")
    server.expect("secret\n")
    welcome(server)
    server.expect("John: behind\n")
    window.type("quit\r")
    shown += window.rest()
    assert "John: behind" in shown.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert not re.search("sec|ret|rex", shown)


def test_lines_typed_before_the_question_are_said_behind_the_door(play: Play) -> None:
    window, server = play(client=support.PLAIN)
    window.type("one\ntwo\n")
    server.send("* password?\n")
    window.answer("password: ", "secret\n")
    server.expect("secret\n")
    welcome(server)
    said = [line for line in iter(server.line, b"John: two\n") if line.startswith(b"John")]
    assert said == [b"John: one\n"]


@pytest.mark.parametrize("keys, status, message", [("half\x03", 0, ""), ("\x04", 1, "no password")])
def test_ways_to_leave_when_the_password_is_asked_for(
    play: Play, terminal: Run, keys: str, status: int, message: str
) -> None:
    window, _server = play("* password?\n")
    window.answer("password: ", keys)
    assert window.wait() == status
    assert modes(window)[3] == modes(terminal("true"))[3]
    rest = window.rest()
    assert message in rest and "half" not in rest


def asked_for_secret(typed: bytes, before: bytes = b"") -> chat_client.Terminal:
    """Returns a terminal that has asked for a secret, and where that much was typed then, and
    before."""
    console = untaken()
    console.ended, console.typed = False, console.line.lines
    console.line.feed(before)
    assert console.ask_secret("password: ") is None
    console.feed(typed)
    return console


def test_half_a_line_is_no_password_nor_half_a_password_a_line() -> None:
    console = asked_for_secret(b" a line\r", before=b"half")
    assert console.status == "(finish this line, then the password) "
    assert console.ask_secret("password: ") is None
    console.feed(b"sec")
    assert console.ask_secret("password: ") is None, "the connection may be another by now"
    console.feed(b"ret\r")
    assert console.ask_secret("password: ") == b"secret"
    assert [line.text for line in console.typed] == ["half a line"]
    console = asked_for_secret(b"sec")
    console.invite("John: ")  # the room has let the user in without it
    console.feed(b"ret\rhi\r")
    assert [line.text for line in console.typed] == ["hi"]


def test_a_secret_is_neither_shown_nor_kept_nor_brought_back() -> None:
    keys = "wrong\x15\x1b[200~sec\x03ret\n\x1b[201~\x1b[A\x19x\x7f\rnot for it\rhalf"
    console = asked_for_secret(keys.encode())
    assert console.ask_secret("password: ") == b"secret"
    assert [line.text for line in console.typed] == ["not for it"]
    line = console.line
    assert (line.text, line.killed, list(line.history)) == ("half", "", ["not for it"])
    console = asked_for_secret(b"\x1b[200~secret\rmore of it\x1b[201~\r")
    assert (console.ask_secret("password: "), list(console.typed)) == (b"secret", [])
    assert console.above == b"* lines not sent, as they may hold the password: 1\n"
    console = asked_for_secret(b"half")
    reader, console.screen = os.pipe()
    for width, row in ((80, "password: "), (6, "ord: ")):
        console.width = width
        console.update()
        assert os.read(reader, 1000).startswith(f"\x1b[?7l\r{row}\x1b7".encode())
    for recall in (b"\x1f", b"\x19", b"\x1b[A", b"\x12se"):
        console = asked_for_secret(b"secret\r" + recall)
        assert console.ask_secret("password: ") == b"secret"
        assert console.line.text == "", recall


@pytest.mark.parametrize("begun, rest", [(b"\x1b", b"[D"), (b"\x1b[20", b"0~et\x1b[201~")])
def test_a_key_may_come_in_pieces_while_a_secret_is_typed(begun: bytes, rest: bytes) -> None:
    console = asked_for_secret(b"secr" + begun)
    console.feed(rest + b"\r")
    assert console.ask_secret("password: ") == (b"secret" if b"et" in rest else b"secr")


def test_what_was_typed_while_a_wrong_password_was_checked_can_not_be_brought_back() -> None:
    console = asked_for_secret(b"wrong\rsecret\rsec\x15sec\x01ret")
    assert console.ask_secret("password: ") == b"wrong"
    console.forget_typed(0)
    assert console.above == b"* lines not sent, as they may hold the password: 2\n"
    console.line.feed(b"\x1f\x1f\x1b[A\x19on")
    assert (console.line.text, list(console.typed)) == ("on", [])
