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
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import (
    CLIENT,
    MODULES,
    WELCOME,
    XTERM,
    Listener,
    Peer,
    Screen,
    Server,
    Terminal,
    Window,
    eventually,
    in_terminal,
    modes,
    needs,
    patched_client,
    typed,
    welcome,
)

import chat_client
from chat_client import Painter


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Window]:
    one = Window(tmp_path)
    yield one
    one.kill()


# What the screen shows


def enter(window: Window, room: Server, name: str = "John", more: str = "") -> Peer:
    """Starts a client there, and waits until it is in the room; returns a member who is too."""
    ann = room.join("Ann")
    window.run(*CLIENT, "localhost", str(room.port), "--name", name, more=more)
    if not more:
        window.expect("Welcome to the chatroom!", f"{name}:")
        ann.expect(f"* {name} joined\n")
    return ann


def test_walk_through_with_the_typed_line_as_local_echo(room: Server, window: Window) -> None:
    watcher = room.join()
    window.run(*CLIENT, "localhost", str(room.port))
    window.expect("name:")
    window.type("John")
    window.keys("Enter")
    window.expect("name: John", "Welcome to the chatroom!", "John:")
    watcher.expect("* John joined\n")
    other = room.join("OtherJohn")
    other.send("Hi!\n")
    window.expect("* OtherJohn joined", "OtherJohn: Hi!", "John:")
    for line in ("Hey John!", "How's things? What are you doing?"):
        window.type(line)
        window.keys("Enter")
        other.expect(f"John: {line}\n")
    other.send("Writing a Coding Challenge!\n")
    window.expect(
        "OtherJohn: Hi!",
        "John: Hey John!",
        "John: How's things? What are you doing?",
        "OtherJohn: Writing a Coding Challenge!",
        "John:",
    )
    window.type("exit")
    window.keys("Enter")
    window.expect("OtherJohn: Writing a Coding Challenge!", "exit", "$")


def test_lines_arriving_while_one_is_edited_leave_it_intact(room: Server, window: Window) -> None:
    ann = enter(window, room)
    text = "the quick brown fox jumps over the lazy dog"
    window.type(text)
    window.keys(*["Left"] * 22)  # after "jumps"
    for number in range(200):
        ann.send(f"line {number}\n")
        if number % 10 == 0:
            window.keys("x")
        elif number % 10 == 5:
            window.keys("BSpace")
    window.expect(*(f"Ann: line {number}" for number in range(200)), f"John: {text}")
    window.keys("Enter")
    ann.expect(f"John: {text}\n")


def test_wide_and_combined_characters_keep_the_cursor_right(room: Server, window: Window) -> None:
    ann = enter(window, room, "J")
    window.type("a\u4f60\u597de\u0301\U0001f600z")
    window.expect("J: a\u4f60\u597de\u0301\U0001f600z")
    eventually(lambda: window.cursor() == len("J: ") + 1 + 2 + 2 + 1 + 2 + 1)
    window.keys("Left", "Left")
    eventually(lambda: window.cursor() == len("J: ") + 1 + 2 + 2 + 1)
    window.type("!")
    window.keys("Left", "BSpace", "BSpace", "Enter")
    ann.expect("J: a\u4f60!\U0001f600z\n")


def test_long_line_in_a_window_that_changes(room: Server, window: Window) -> None:
    ann = enter(window, room)
    text = " ".join(f"word{number}" for number in range(40))  # three times the width
    window.type(text)
    window.expect("<" + text[-78:])
    window.resize(40)
    window.expect("<" + text[-38:])
    window.keys("Home")
    window.expect(f"John: {text}"[:38] + ">")
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
    ann = enter(window, room, more=" &" if first == "&" else "")
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
    window.type("back")
    window.keys("Enter")
    ann.expect(f"John: {'half' if first == 'C-z' else ''}back\n")
    window.type("exit")
    window.keys("Enter")
    window.expect("exit", "$")
    window.run("stty", "-a", more=" | grep -ow '.icanon\\|icanon'")
    window.expect("icanon", "$")


@pytest.mark.parametrize("stopped_by", ["the user", "somebody else"])
def test_a_client_that_is_stopped_can_be_ended(
    room: Server, window: Window, stopped_by: str
) -> None:
    """If somebody else has stopped it, it can't give the terminal back, and would be stopped anew
    if it tried."""
    ann = enter(window, room)
    shell = window.command("display-message", "-p", "#{pane_pid}").strip()
    client = int(subprocess.check_output([needs("pgrep"), "-P", shell]))
    if stopped_by == "the user":
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


def test_hostile_server_gets_only_text_onto_the_screen(listener: Listener, window: Window) -> None:
    window.run(*CLIENT, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send("begin\n")
    window.expect("begin", "John:")
    window.type("half")
    server.send(
        b"\x1b[2J\x1b[1;1Hone\r\n\x1b]0;title\x07two\x00\x08\n\xff\xfethree\n"
        b"\x9b31mfour \xc2\x9b31m\nfi\rve\x1b[?1049h\n\x1b[\x1b\x1b]x\n"
        + b"y" * 1_000_000
        + b"\nend\n"
    )
    window.expect(
        "begin",
        "one",
        "two",
        "\ufffd\ufffdthree",
        "\ufffd31mfour",
        "five",
        "* (a line of over 65536 bytes was left out)",
        "end",
        "John: half",
    )
    window.type(" fine")
    window.keys("Enter")
    assert server.line() == b"John: half fine\n"


@pytest.mark.parametrize(
    "size, narrowed, shown",
    [
        *((70, [30], 28), (120, [40], 38), (120, [81, 40], 38), (120, [60, 50, 40, 20], 18)),
        (120, [], 38),
    ],
    ids=["a wrapped row", "to half", "to full rows", "in steps", "by a split"],
)
def test_no_piece_of_a_row_stays_when_the_window_gets_narrower(
    listener: Listener, window: Window, size: int, narrowed: list[int], shown: int
) -> None:
    """Half of 80 columns: cut off or wrapped, the cursor would be in the same column."""
    window.run(*CLIENT, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send("".join(f"line {number}\n" for number in range(30)))  # the row is at the bottom
    window.expect("line 29", "John:")
    text = "0123456789" * (size // 10)
    window.type(text)
    window.expect("line 29", f"John: {text}" if size < 80 else "<" + text[-78:])
    if not narrowed:
        window.command("split-window", "-h", "-d", "cat")
    for columns in narrowed:
        window.resize(columns)
        window.expect("line 29", "<" + text[2 - columns :])
    window.expect("line 28", "line 29", "<" + text[-shown:])
    window.type("!")
    window.expect("line 28", "line 29", "<" + text[1 - shown :] + "!")


@pytest.mark.parametrize(
    "first, text, columns",
    [("C-a", "\u65e5\u672c\u8a9e incomprehensibilities \u65e5\u672c\u8a9e", 18), ("C-l", "half", 79)],
    ids=["wide characters", "at the top"],
)
def test_no_piece_of_a_row_stays_either_where(
    listener: Listener, window: Window, first: str, text: str, columns: int
) -> None:
    """A wide character leaves the end of a row empty; what tmux clears at the top, it keeps."""
    window.run(*CLIENT, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send("".join(f"line {number}\n" for number in range(30)))
    window.expect("line 29", "John:")
    window.keys(first)
    window.type(text)
    window.expect("line 29", f"John: {text}")
    window.resize(columns)
    window.expect("line 28", "line 29", "".join(typed(text).view("John: ", columns)))


def test_no_piece_of_a_row_stays_when_the_client_is_stopped_at_once(
    listener: Listener, window: Window
) -> None:
    window.run(*CLIENT, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send("".join(f"line {number}\n" for number in range(30)))
    window.expect("line 29", "John:")
    window.type("0123456789" * 12)
    window.expect("line 29", "<" + ("0123456789" * 12)[-78:])
    window.resize(40)
    window.keys("C-z")
    window.wait_for("Stopped")
    lines = window.lines()
    assert "0123456789" not in "".join(lines[lines.index("line 29") :])


@pytest.mark.parametrize("reflows", [False, True])
@pytest.mark.parametrize("width", [75, 23])
def test_where_a_terminal_reflows_or_not_nothing_is_lost_and_nothing_left_behind(
    listener: Listener, terminal: Callable[..., Terminal], width: int, reflows: bool
) -> None:
    patient = patched_client("import chat_client; chat_client.MEASURE_TIME = 1000")
    window = terminal(*patient, "127.0.0.1", str(listener.port), "--name", "John", env=XTERM)
    screen = Screen(window, reflows=reflows)  # which has to say where its cursor is
    server = listener.accept()
    lines = [f"Ann: {number}" for number in range(15)]
    server.send("".join(f"{line}\n" for line in lines))
    screen.expect("Ann: 14")
    row = "John: " + "0123456789" * 7
    window.type("0123456789" * 7)
    screen.expect(row)
    for columns in range(75, width - 1, -5):
        screen.resize(columns)
        screen.expect("<" + row[2 - columns :])
    assert [line for line in screen.rows if line] == [*lines, "<" + row[2 - columns :]]


@pytest.mark.parametrize(
    "name, size, columns",
    [("GNOME's terminal", 300, 40), ("GNOME's terminal", 72, 39), ("GNU screen", 300, 40)],
    ids=["GNOME's terminal, to half", "GNOME's terminal, to full rows", "GNU screen, to half"],
)
def test_no_piece_of_a_row_stays_in(
    listener: Listener, terminal: Callable[..., Terminal], name: str, size: int, columns: int
) -> None:
    """It reflows as tmux does, so a cursor in the last column is one of a row that has wrapped."""
    is_vte = name == "GNOME's terminal"
    more = {"VTE_VERSION": "7006"} if is_vte else {"STY": "1.pts-1", "TERM": "screen"}
    environment = {key: value for key, value in {**XTERM, **more}.items() if value}
    options = ("127.0.0.1", str(listener.port), "--name", "John")
    window = terminal(*CLIENT, *options, env=environment)
    screen = Screen(window, reflows=True, stays=is_vte)
    server = listener.accept()
    server.send("line\n")
    screen.expect("line")
    window.type("0123456789" * (size // 10) + "xy")
    screen.expect("xy")
    screen.resize(columns)
    row = "0123456789" * 9 + "xy"
    screen.expect("<" + row[2 - columns :])
    assert [line for line in screen.rows if line] == ["line", "<" + row[2 - columns :]]


def test_a_row_that_is_wider_than_assumed_leaves_nothing_behind(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send("hi\n")
    screen = Screen(window)  # in which each combining mark takes a column
    window.type("e\u0301" * 60)
    for number in range(5):
        window.type(str(number))
        screen.expect(str(number))
    assert [row for row in screen.rows if row][:-1] == ["hi"]


# In a bare pseudo-terminal


def play(
    terminal: Callable[..., Terminal], listener: Listener, *said: str | bytes, **more: str
) -> tuple[Terminal, Peer]:
    """Returns John at a client, and the server, which has said that."""
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John", **more)
    server = listener.accept()
    for line in said:
        server.send(line)
    return window, server


def play_room(terminal: Callable[..., Terminal], listener: Listener) -> tuple[Terminal, Peer]:
    """Returns John at a client, and the room that he has joined."""
    window, server = play(terminal, listener)
    welcome(server)
    window.expect("Welcome to the chatroom!")
    return window, server


def play_door(terminal: Callable[..., Terminal], listener: Listener) -> tuple[Terminal, Peer]:
    """Returns a client that is asked for the password, and its server."""
    window, server = play(terminal, listener, "* password?\n")
    window.expect("password: ")
    return window, server


def test_a_window_may_be_narrow_from_the_start(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    command = [*CLIENT, "127.0.0.1", str(listener.port), "--name", "John"]
    window = terminal(*command, size=(24, 30), env=XTERM)
    _server = listener.accept()
    window.type("x" * 50)
    window.expect(f"<{'x' * 28}\x1b7")


def test_what_is_typed_ahead_is_kept_with_either_end_of_line(
    room: Server, terminal: Callable[..., Terminal]
) -> None:
    other = room.join()
    window = in_terminal(terminal, "localhost", str(room.port))
    window.type("John\none\rtwo\nhalf")
    other.expect("* John joined\n", "John: one\n", "John: two\n")
    window.type(" done\r")
    other.expect("John: half done\n")


WAYS_TO_END = ["quit", "ctrl-c", "ctrl-d", "lost"]
WAYS_TO_END += ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGALRM"]


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_terminal_is_given_back_as_it_was(
    listener: Listener, terminal: Callable[..., Terminal], way: str
) -> None:
    options = ["--echo"] if way == "lost" else ["--name", "John"]
    # The shell in between keeps the pseudo-terminal open until we have looked at it.
    command = shlex.join([*CLIENT, "127.0.0.1", str(listener.port), *options])
    window = terminal("sh", "-c", f"read go; {command}; echo status $?; read wait", env=XTERM)
    before = modes(window)
    window.type("\n")
    server = listener.accept()
    server.send("hi\n")
    window.expect("hi\n")
    eventually(lambda: modes(window) != before)
    if way == "lost":
        server.close()
    elif way in ("quit", "ctrl-c", "ctrl-d"):
        window.type({"quit": "quit\r", "ctrl-c": "\x03", "ctrl-d": "\x04"}[way])
        if way != "ctrl-c":
            assert server.rest() == b""
            server.close()
    else:
        found = subprocess.run(
            ["pgrep", "-f", f"chat_client.py 127.0.0.1 {listener.port}"],
            capture_output=True,
            check=False,
            text=True,
        )
        for pid in found.stdout.split():
            if Path(f"/proc/{pid}/comm").read_text().startswith("python"):
                os.kill(int(pid), getattr(signal, way))
    window.expect("\x1b[?2004l")
    status = 128 + getattr(signal, way) if way.startswith("SIG") else int(way == "lost")
    status = 0 if way == "SIGINT" else status
    window.expect(f"status {status}")
    assert modes(window) == before
    assert "Traceback" not in window.shown


def test_terminal_is_given_back_as_it_was_before_somebody_else_stopped_the_client(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    client = shlex.join([*CLIENT, "127.0.0.1", str(listener.port), "--name", "John"])
    told = shlex.quote(f"echo pid $$.; exec {client}")
    window = terminal("sh", "-c", f"read go; sh -c {told}; echo end; read wait", env=XTERM)
    before = modes(window)
    window.type("\n")
    server = listener.accept()
    server.send("hi\n")
    window.expect("pid ")
    pid = int(window.expect("."))
    window.expect("hi\n")
    for number in (signal.SIGSTOP, signal.SIGCONT):
        os.kill(pid, number)
    window.expect("\x1b[?2004h")
    window.type("\x03\x03")
    window.expect("end\n")
    assert modes(window) == before


def test_terminal_is_given_back_after_an_exception(terminal: Callable[..., Terminal]) -> None:
    code = "import chat_client as c; c.Client.run = lambda *_: 1 / 0; c.main([])"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    window = terminal("sh", "-c", f"{command}; echo status $?; read wait", env=XTERM, cwd=MODULES)
    before = modes(window)
    window.expect("ZeroDivisionError")
    window.expect("status 1")
    assert modes(window) == before


def test_closed_window_ends_the_client(listener: Listener) -> None:
    window, server = play(Terminal, listener)
    window.expect("\x1b[?2004h")
    os.close(window.master)
    server.rest()
    assert window.wait() in (1, 129)


def test_a_paste_ends_after_a_silence(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = play_room(terminal, listener)
    window.type("\x1b[200~cut off")
    window.expect("cut off")
    window.type("\r")
    server.expect("John: cut off\n")


@pytest.mark.parametrize("keys", ["John\rbye\r\x03", "John\rbye\r\x04", "John\rbye\rexit\r"])
def test_whoever_leaves_at_once_has_said_all(
    room: Server, terminal: Callable[..., Terminal], keys: str
) -> None:
    ann = room.join("Ann")
    window = in_terminal(terminal, "localhost", str(room.port))
    window.expect("name: ")
    window.type(keys)
    ann.expect("* John joined\n", "John: bye\n", "* John left\n")
    assert window.wait() == 0


@pytest.mark.parametrize(
    "state, keys",
    [
        ("lost", "\x03"),
        ("connecting", "\x04"),
        ("silent", "\x03"),
        ("silent", "\x04"),
        ("silent", "exit\r"),
    ],
)
def test_whoever_leaves_is_told_what_was_not_said(
    listener: Listener, terminal: Callable[..., Terminal], state: str, keys: str
) -> None:
    if state == "connecting":  # the server doesn't shake hands
        window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John", "--tls")
        server = listener.accept()
        window.expect("(connecting)")
    else:  # the room doesn't answer the password
        window, server = play(terminal, listener, "* password?\n", CHAT_PASSWORD="secret")
        server.expect("secret\n")
    if state == "lost":
        listener.listener.close()
        server.close()
        window.expect("(trying again in")
    window.type("important\r/who\r")
    if state != "silent":
        window.expect("lines that wait: 2)")
    window.type(keys)
    assert window.wait() == 1
    rest = window.rest()
    assert "not sent: important; /who\n" in rest
    assert rest.count("chat_client.py: ") == 1


@pytest.mark.parametrize(
    "silent, keys",
    [
        ("in the room", "\x03"),
        ("in the room", "\x03\x03"),
        ("at the door", "exit\r"),
        ("at the door", "\x04\x03"),
    ],
)
def test_nobody_is_kept_by_a_server_that_does_not_close(
    listener: Listener, terminal: Callable[..., Terminal], silent: str, keys: str
) -> None:
    if silent == "in the room":
        window, _ = play_room(terminal, listener)
    else:
        window, server = play(terminal, listener, "* password?\n", CHAT_PASSWORD="secret")
        server.expect("secret\n")
    window.type(keys)
    assert window.wait() == 0


def test_lines_outlive_a_connection_that_breaks(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    listener.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    little = (
        "import socket, chat_client\n"
        "connect = socket.socket.connect_ex\n"
        "def connect_ex(sock, address):\n"
        "    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)\n"
        "    return connect(sock, address)\n"
        "socket.socket.connect_ex = connect_ex"
    )
    command = [*patched_client(little), "127.0.0.1", str(listener.port), "--name", "John"]
    window = terminal(*command, env=XTERM)
    server = listener.accept()
    welcome(server)
    lines = [f"<{number}>" + "x" * 1000 for number in range(60)]
    for line in lines:
        window.type(f"{line}\r")
        window.expect(line[:10])
    server.reset()
    window.expect("* lost the connection: ")
    window.expect("* what you said last may not have arrived:")
    window.type("meanwhile\r")
    server = listener.accept()
    welcome(server)
    told = re.findall(r"\*   <(\d+)>x+", window.expect("* connected again"))
    heard = b"".join(iter(server.line, b"John: meanwhile\n"))
    again = re.findall(rb"John: <(\d+)>x{1000}\n", heard)
    assert told and again, "no byte of these was sent"
    assert list(map(int, told + again)) == list(range(60))
    window.type("\x04")
    server.close()
    window.rest()
    assert window.wait() == 0


def test_flood_leaves_the_keys_alive_and_control_c_leaves_at_once(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = play(terminal, listener)

    def pour() -> None:
        with suppress(OSError):
            while True:
                server.send(b"flood " * 20 + b"\n")

    def is_shown(text: str) -> bool:
        window.shown = (window.shown + window.read(0.05))[-100_000:]
        return text in re.sub(r"\x1b\[[0-9;]*m", "", window.shown)

    threading.Thread(target=pour, daemon=True).start()
    eventually(lambda: is_shown("flood flood"))
    window.type("still alive")
    eventually(lambda: is_shown("John: still alive"))
    window.type("\x03\x03")
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
    console.before, console.in_tmux, console.in_vte = "", False, False
    console.full_at = console.full_since = 0.0
    console.taken, console.screen = 0, -1
    return console


def test_what_waits_above_the_row_is_shown_once_when_the_terminal_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    for _ in range(6):
        pass_time(0.1, 1000)
    assert console.pace == pytest.approx(8000, rel=0.05)
    assert console.timers[console.rest] - clock[0] == pytest.approx(chat_client.HELD / 8000, rel=0.1)
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


def test_a_terminal_that_does_not_read_stops_neither_keys_nor_memory(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = play(terminal, listener)
    window.expect("\x1b[?2004h")
    server.sock.settimeout(0.4)
    with pytest.raises(socket.timeout):  # the client stops reading: its terminal takes no more
        for _ in range(100):
            server.send(b"flood\n" * 200_000)
    window.type("\x03")
    assert window.wait() == 0


def test_a_line_is_shown_above_the_row_in_one_go(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = play(terminal, listener)
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
    room: Server, terminal: Callable[..., Terminal], environment: dict[str, str]
) -> None:
    ann = room.join("Ann")
    options = ["localhost", str(room.port), "--name", "John", "--timestamps"]
    window = in_terminal(terminal, *options, **environment)
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


def test_bells_are_rare(room: Server, terminal: Callable[..., Terminal]) -> None:
    ann = room.join("Ann")
    patient = patched_client("import chat_client; chat_client.BELL_PAUSE *= 1000")
    window = terminal(*patient, "localhost", str(room.port), "--name", "John", env=XTERM)
    ann.expect("* John joined\n")
    shown = ""
    for number in range(5):
        ann.send(f"/msg John: {number}\nhi John\n")
        shown += window.expect(f" (private)\x1b[0m: {number}")
    window.type("exit\r")
    assert (shown + window.rest()).count("\a") == 1


# The password, which is typed unseen in the line editor


def test_the_room_is_seen_while_the_password_is_not(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = play_door(terminal, listener)
    window.type("sec")
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
    for part in ("sec", "ret", "rex"):
        assert part not in shown


def test_lines_typed_before_the_question_are_said_behind_the_door(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    address = ["127.0.0.1", str(listener.port)]
    window = in_terminal(terminal, *address, "--name", "John", "--plain")
    window.type("one\ntwo\n")
    server = listener.accept()
    server.send("* password?\n")
    window.expect("password: ")
    window.type("secret\n")
    server.expect("secret\n")
    welcome(server)
    said = [line for line in iter(server.line, b"John: two\n") if line.startswith(b"John")]
    assert said == [b"John: one\n"]


def test_half_a_line_is_no_password(listener: Listener, terminal: Callable[..., Terminal]) -> None:
    window, server = play(terminal, listener)
    window.type("half")
    window.expect("half")
    server.send("* password?\n")
    window.expect("(finish this line, then the password)")
    window.type(" a line\r")
    window.expect("password: ")
    window.type("secret\r")
    server.expect("secret\n")
    welcome(server)
    server.expect("John: half a line\n")


@pytest.mark.parametrize("keys, status, message", [("half\x03", 0, ""), ("\x04", 1, "no password")])
def test_ways_to_leave_when_the_password_is_asked_for(
    listener: Listener, terminal: Callable[..., Terminal], keys: str, status: int, message: str
) -> None:
    before = modes(terminal("true"))
    window, _ = play_door(terminal, listener)
    window.type(keys)
    assert window.wait() == status
    assert modes(window)[3] == before[3]
    rest = window.rest()
    assert message in rest and "half" not in rest


def test_half_a_password_that_nobody_wants_any_more_is_not_said(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = play_door(terminal, listener)
    window.type("sec")
    welcome(server)
    server.send("* Ann joined\n")
    shown = window.expect("* Ann joined")
    window.type("ret\rhi\r")
    server.expect("John: hi\n")
    window.type("exit\r")
    assert "ret" not in shown + window.rest()


def test_the_password_is_not_seen_when_the_connection_is_lost_meanwhile(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = play_door(terminal, listener)
    window.type("sec")
    server.close()
    shown = window.expect("* not let in: the room waits no longer for the password")
    window.type("ret\r")
    server = listener.accept()
    server.send("* password?\n")
    server.expect("secret\n")
    server.send(WELCOME)
    shown += window.expect("Welcome")
    assert "sec" not in shown and "ret" not in shown


@pytest.mark.parametrize("plain, given", [(False, False), (True, False), (False, True)])
def test_a_wrong_password_is_asked_for_again(
    start: Callable[..., Server],
    terminal: Callable[..., Terminal],
    tmp_path: Path,
    plain: bool,
    given: bool,
) -> None:
    (tmp_path / "password").write_text("secret\n")
    room = start("chat_server.py", "--password-file", str(tmp_path / "password"))
    environment = {"CHAT_PASSWORD": "wrong"} if given else {}
    options = ["127.0.0.1", str(room.port), "--name", "John", *["--plain"] * plain]
    window = in_terminal(terminal, *options, **environment)
    shown = ""
    for answer in [] if given else ["wrong", "worse"]:
        shown += window.expect("password: ")
        window.type(f"{answer}\r")
        shown += window.expect("* wrong password")
    shown += window.expect("password: ")
    window.type("secret\r")
    shown += window.expect("Welcome to the chatroom!")
    for secret in ("wrong\n", "worse", "secret"):
        assert secret not in shown
    window.type("exit\r")
    assert window.wait() == 0


def asked_for_secret(typed: bytes = b"") -> chat_client.Terminal:
    """Returns a terminal that has asked for a secret, and where that much was typed then."""
    console = untaken()
    console.ended, console.typed = False, console.line.lines
    assert console.ask_secret("password: ") is None
    console.feed(typed)
    return console


def test_a_secret_is_neither_shown_nor_kept() -> None:
    keys = "wrong\x15\x1b[200~sec\x03ret\n\x1b[201~\x1b[A\x19x\x7f\rnot for it\rhalf"
    console = asked_for_secret(keys.encode())
    assert console.ask_secret("password: ") == b"secret"
    assert [line.text for line in console.typed] == ["not for it"]
    line = console.line
    assert (line.text, line.killed, list(line.history)) == ("half", "", ["not for it"])
    console = asked_for_secret(b"half")
    reader, console.screen = os.pipe()
    for width, row in ((80, "password: "), (6, "ord: ")):
        console.width = width
        console.update()
        assert os.read(reader, 1000).startswith(f"\x1b[?7l\r{row}\x1b7".encode())


@pytest.mark.parametrize("keys", [b"\x1f", b"\x19", b"\x1b[A", b"\x12se"])
def test_a_secret_can_not_be_brought_back(keys: bytes) -> None:
    console = asked_for_secret(b"secret\r" + keys)
    assert console.ask_secret("password: ") == b"secret"
    assert console.line.text == ""
