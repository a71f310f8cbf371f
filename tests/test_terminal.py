"""The client on a terminal: in tmux, whose screen can be read, and in a bare pseudo-terminal."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from starter import launch
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
    at_door,
    eventually,
    in_terminal,
    modes,
    needs,
    patched_client,
    path_of,
)

import chat_client
from chat_client import Painter


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Window]:
    one = Window(tmp_path)
    yield one
    one.kill()


# What the screen shows


def enter(window: Window, room: Server, name: str = "John") -> None:
    """Starts a client there, and waits until it is in the room."""
    window.run(*CLIENT, "localhost", str(room.port), "--name", name)
    window.expect("Welcome to the chatroom!", f"{name}:")


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


def test_echo_has_the_editor_too(echo: Server, window: Window) -> None:
    window.run(*CLIENT, "--echo", "localhost", str(echo.port))
    window.expect("send:")
    window.type("tesst")
    window.keys("Left", "BSpace", "Enter")
    window.expect("send: test", "recv: test", "send:")
    window.type("quit")
    window.keys("Enter")
    window.expect("send: test", "recv: test", "send: quit", "$")


def test_lines_arriving_while_one_is_edited_leave_it_intact(room: Server, window: Window) -> None:
    ann = room.join("Ann")
    window.run(*CLIENT, "localhost", str(room.port), "--name", "John")
    ann.expect("* John joined\n")
    window.expect("Welcome to the chatroom!", "John:")
    text = "the quick brown fox jumps over the lazy dog"
    window.type(text)
    window.keys(*["Left"] * 22)  # after "jumps"
    for number in range(200):
        ann.send(f"line {number}\n")
        if number % 10 == 0:
            window.keys("x")
        elif number % 10 == 5:
            window.keys("BSpace")
    lines = [f"Ann: line {number}" for number in range(200)]
    window.expect(*lines, f"John: {text}")
    window.keys("Enter")
    ann.expect(f"John: {text}\n")


def test_wide_and_combined_characters_keep_the_cursor_right(room: Server, window: Window) -> None:
    ann = room.join("Ann")
    enter(window, room, "J")
    window.type("a\u4f60\u597de\u0301\U0001f600z")
    window.expect("J: a\u4f60\u597de\u0301\U0001f600z")
    eventually(lambda: window.cursor() == len("J: ") + 1 + 2 + 2 + 1 + 2 + 1)
    window.keys("Left", "Left")
    eventually(lambda: window.cursor() == len("J: ") + 1 + 2 + 2 + 1)
    window.type("!")
    window.keys("Left", "BSpace", "BSpace", "Enter")
    ann.expect("* J joined\n", "J: a\u4f60!\U0001f600z\n")


def test_long_line_in_a_window_that_changes(room: Server, window: Window) -> None:
    ann = room.join("Ann")
    enter(window, room)
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
    ann.expect("* John joined\n", f"John: > {text}\n")


def test_pasted_block_waits_and_goes_out_as_messages(room: Server, window: Window) -> None:
    ann = room.join("Ann")
    enter(window, room)
    ann.expect("* John joined\n")
    window.paste("".join(f"{number}\n" for number in range(50)))
    window.expect("<" + "".join(f"{number}\u21b5" for number in range(50))[-78:])
    ann.send("nothing was sent yet\n")
    window.expect("Ann: nothing was sent yet", window.lines()[-1])
    window.keys("Enter", "Enter")
    ann.expect(*(f"John: {number}\n" for number in range(50)))
    window.expect(*(f"John: {number}" for number in range(50)), "John:")


def test_suspend_and_resume(room: Server, window: Window) -> None:
    ann = room.join("Ann")
    enter(window, room)
    window.type("half")
    window.expect("John: half")
    window.keys("C-z")
    eventually(lambda: window.lines()[-1].strip() == "$")
    window.type("stty -a | grep -ow '.icanon\\|icanon'")
    window.keys("Enter")
    window.expect("icanon", "$")
    ann.send("while you were away\n")
    window.type("fg")
    window.keys("Enter")
    window.expect("Ann: while you were away", "John: half")
    window.type(" done")
    window.keys("Enter")
    ann.expect("* John joined\n", "John: half done\n")


@pytest.mark.parametrize("way", ["C-z, bg, fg", "C-z, bg, bg, fg", "&, fg"])
def test_the_client_comes_back_from_the_background(room: Server, window: Window, way: str) -> None:
    ann = room.join("Ann")
    command = [*CLIENT, "localhost", str(room.port), "--name", "John"]
    first, *steps = way.split(", ")
    window.run(*command, more="" if first == "C-z" else " &")
    if first == "C-z":
        window.expect("Welcome to the chatroom!", "John:")
        window.type("half")
        window.expect("John: half")
        window.keys("C-z")
        window.wait_for("Stopped")

    def has_stopped() -> bool:
        window.run("jobs")
        return any("Stopped" in line for line in window.lines())

    for step in steps:
        eventually(has_stopped)
        window.run(step)
    if first == "C-z":
        window.expect("John: half")
    window.wait_for("John:")
    window.type("back")
    window.keys("Enter")
    ann.expect("* John joined\n", f"John: {'half' if first == 'C-z' else ''}back\n")
    window.type("exit")
    window.keys("Enter")
    window.expect("exit", "$")
    window.run("stty", "-a", more=" | grep -ow '.icanon\\|icanon'")
    window.expect("icanon", "$")


def test_a_client_that_is_suspended_can_be_ended(room: Server, window: Window) -> None:
    ann = room.join("Ann")
    enter(window, room)
    window.keys("C-z")
    window.wait_for("Stopped")
    window.run("kill", "%1")
    ann.expect("* John joined\n", "* John left\n")
    window.run("wait; echo over")
    window.expect("over", "$")


def test_a_client_that_somebody_else_has_stopped_leaves_the_shell_its_terminal(
    room: Server, window: Window
) -> None:
    """It could not give it back, and would be stopped anew if it tried."""
    ann = room.join("Ann")
    enter(window, room)
    ann.expect("* John joined\n")
    shell = window.command("display-message", "-p", "#{pane_pid}").strip()
    client = int(subprocess.check_output([needs("pgrep"), "-P", shell]))
    os.kill(client, signal.SIGSTOP)
    window.wait_for("Stopped")
    window.run("kill", "%1")
    ann.expect("* John left\n")
    eventually(lambda: not Path(f"/proc/{client}").exists(), "it has ended")


def test_tab_history_and_redraw(room: Server, window: Window) -> None:
    ann = room.join("Ann")
    window.run(*CLIENT, "localhost", str(room.port), "--name", "John")
    ann.expect("* John joined\n")
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


@pytest.mark.parametrize("key", ["C-u", "C-c", "C-w"])
def test_a_line_that_was_emptied_can_be_had_back(room: Server, window: Window, key: str) -> None:
    enter(window, room)
    window.type("hello")
    window.expect("John: hello")
    window.keys(key)
    window.expect("John:")
    window.keys("C-_")
    window.expect("John: hello")


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


def test_server_that_was_away_gets_what_was_typed_meanwhile_once(
    room: Server, start: Callable[..., Server], window: Window
) -> None:
    enter(window, room)
    room.process.kill()
    window.wait_for("(trying again in")
    window.type("are you there?")
    window.keys("Enter")
    eventually(lambda: "* not sent yet: are you there?" in window.lines())
    again = launch(
        [sys.executable, path_of("chat_server.py"), "--port", str(room.port)],
        stderr=subprocess.DEVNULL,
    )
    try:

        def join() -> Peer | None:
            try:
                return room.join("Ann")
            except ConnectionRefusedError:
                return None

        ann = eventually(join)
        ann.expect("* John joined\n", "John: are you there?\n")
        window.expect("John: are you there?", "John:")
        window.type("bye")
        window.keys("Enter")
        ann.expect("John: bye\n")
    finally:
        again.kill()
        again.wait()


def test_no_piece_of_a_wrapped_row_stays_when_the_window_gets_narrower(
    listener: Listener, window: Window
) -> None:
    window.run(*CLIENT, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send("".join(f"line {number}\n" for number in range(30)))  # the row is at the bottom
    window.expect("line 29", "John:")
    text = "0123456789" * 7
    window.type(text)
    window.expect("line 29", f"John: {text}")
    window.resize(30)
    window.expect("line 28", "line 29", "<" + text[-28:])


@pytest.mark.parametrize("narrowed", ["to half", "by a split", "in steps"])
def test_no_piece_of_a_row_as_wide_as_the_window_stays(
    listener: Listener, window: Window, narrowed: str
) -> None:
    """Half of 80 columns: cut off or wrapped, the cursor would be in the same column."""
    window.run(*CLIENT, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send("".join(f"line {number}\n" for number in range(30)))
    window.expect("line 29", "John:")
    text = "0123456789" * 12
    window.type(text)
    window.expect("line 29", "<" + text[-78:])
    if narrowed == "by a split":
        window.command("split-window", "-h", "-d", "cat")
    for columns in {"to half": [40], "in steps": [60, 50, 40, 20]}.get(narrowed, []):
        window.resize(columns)
    shown = {"to half": 38, "by a split": 38, "in steps": 18}[narrowed]
    window.expect("line 28", "line 29", "<" + text[-shown:])
    window.type("!")
    window.expect("line 28", "line 29", "<" + text[1 - shown :] + "!")


@pytest.mark.parametrize("width", [75, 40, 23])
def test_a_window_that_does_not_reflow_loses_nothing(
    listener: Listener, terminal: Callable[..., Terminal], width: int
) -> None:
    patient = patched_client("import chat_client; chat_client.MEASURE_TIME = 1000")
    window = terminal(*patient, "127.0.0.1", str(listener.port), "--name", "John", env=XTERM)
    screen = Screen(window)  # which has to say where its cursor is
    server = listener.accept()
    server.send("".join(f"Ann: {number}\n" for number in range(15)))
    screen.expect("Ann: 14")
    row = "John: " + "0123456789" * 7
    window.type("0123456789" * 7)
    screen.expect(row)
    for columns in range(75, width - 1, -5):
        screen.resize(columns)
        screen.expect("<" + row[2 - columns :])
    for number in range(15):
        assert f"Ann: {number}" in screen.rows


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


def test_terminal_is_given_back_after_an_exception(terminal: Callable[..., Terminal]) -> None:
    code = "import chat_client as c; c.Client.run = lambda *_: 1 / 0; c.main([])"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    window = terminal("sh", "-c", f"{command}; echo status $?; read wait", env=XTERM, cwd=MODULES)
    before = modes(window)
    window.expect("ZeroDivisionError")
    window.expect("status 1")
    assert modes(window) == before


def test_closed_window_ends_the_client(listener: Listener) -> None:
    window = Terminal(*CLIENT, "127.0.0.1", str(listener.port), "--name", "John", env=XTERM)
    server = listener.accept()
    window.expect("\x1b[?2004h")
    os.close(window.master)
    server.rest()
    assert window.wait() in (1, 129)


def test_whoever_leaves_without_a_connection_is_told_what_was_not_sent(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send("hi\n")
    window.expect("hi\n")
    listener.listener.close()
    server.close()
    window.expect("(trying again in")
    window.type("one\rtwo\rexit\r")
    assert window.wait() == 1
    window.expect("chat_client.py: left without a connection; not sent: one; two\n")


def joined(window: Terminal, listener: Listener) -> Peer:
    """Returns the room that a client has joined as John."""
    server = listener.accept()
    server.send(WELCOME)
    server.expect("/name John\n")
    server.send("* you are John\n")
    window.expect("Welcome to the chatroom!")
    return server


def test_a_pasted_block_is_said_whole_whatever_is_in_it(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = joined(window, listener)
    window.type("\x1b[200~if broken; then\n    exit\nfi\n/quit\n/usr\nquit\x1b[201~\r")
    window.expect("(6 lines, with a slash: Enter says them to everyone) ")
    window.type("\r")
    for line in ("if broken; then", "    exit", "fi", "/quit", "/usr", "quit"):
        server.expect(f"John: {line}\n")
    window.type("exit\r")
    assert server.rest() == b""


def test_a_paste_ends_after_a_silence(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = joined(window, listener)
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


@pytest.mark.parametrize("keys", ["\x03", "\x04", "exit\r"])
@pytest.mark.parametrize("state", ["lost", "silent", "connecting"])
def test_whoever_leaves_is_told_what_was_not_said(
    listener: Listener, terminal: Callable[..., Terminal], state: str, keys: str
) -> None:
    options = ["--name", "John"]
    if state == "connecting":
        silent = "import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(600)"
        window = terminal(*patched_client(silent), *options, env=XTERM)
        window.expect("(connecting)")
    else:
        address = ["127.0.0.1", str(listener.port)]
        window = in_terminal(terminal, *address, *options, CHAT_PASSWORD="secret")
        server = listener.accept()
        server.send("* password?\n")  # and no answer
        server.expect("secret\n")
    if state == "lost":
        listener.listener.close()
        server.close()
        window.expect("(trying again in")
    window.type("important\r/who\r")
    window.type(keys)
    assert window.wait() == 1
    rest = window.rest()
    assert "not sent: important; /who\n" in rest
    assert rest.count("chat_client.py: ") == 1


@pytest.mark.parametrize("keys", ["\x03\x03", "\x03"])
def test_a_second_control_c_waits_for_nothing(
    listener: Listener, terminal: Callable[..., Terminal], keys: str
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    joined(window, listener)
    window.type(keys)
    assert window.wait() == 0


def test_lines_outlive_a_connection_that_breaks(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    listener.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    little = (
        "import socket, chat_client\n"
        "chat_client.SOCKET_OPTIONS += [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]"
    )
    command = [*patched_client(little), "127.0.0.1", str(listener.port), "--name", "John"]
    window = terminal(*command, env=XTERM)
    server = joined(window, listener)
    lines = [f"<{number}>" + "x" * 1000 for number in range(60)]
    for line in lines:
        window.type(f"{line}\r")
        window.expect(line[:10])
    server.reset()
    window.expect("* lost the connection: ")
    window.expect("* what you said last may not have arrived:")
    told = window.expect("* not sent yet: ")
    server = listener.accept()
    server.send(WELCOME)
    server.expect("/name John\n")
    server.send("* you are John\n")
    doubtful = re.findall(r"\*   <(\d+)>x+", told)
    assert doubtful == [str(number) for number in range(len(doubtful))] and doubtful
    server.expect(*(f"John: {line}\n" for line in lines[len(doubtful) :]))
    window.expect("* connected again")
    window.type("\x04")
    server.close()
    window.rest()
    assert window.wait() == 0


def test_the_first_connection_must_speak_what_we_speak(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    listener.accept().close()
    assert window.wait() == 1
    window.expect("the server closed it without a word; if it speaks TLS, use --tls\n")


def test_a_full_room_is_tried_again_and_told_once(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    hasty = patched_client("import chat_client; chat_client.RETRY_DELAYS = (0.1, 1)")
    window = terminal(*hasty, "127.0.0.1", str(listener.port), "--name", "John", env=XTERM)
    for _ in range(3):
        server = listener.accept()
        server.send("* the room is full\n")
        server.close()
    server = listener.accept()
    server.send(WELCOME)
    shown = window.expect("* connected again")
    assert shown.count("the room is full") == 1


@pytest.mark.parametrize("keys", ["exit\r", "\x04\x03"])
def test_user_can_leave_a_server_that_asks_and_then_is_silent(
    listener: Listener, terminal: Callable[..., Terminal], keys: str
) -> None:
    window = in_terminal(
        terminal, "127.0.0.1", str(listener.port), "--name", "John", CHAT_PASSWORD="secret"
    )
    server = listener.accept()
    server.send("* password?\n")
    server.expect("secret\n")
    window.type(keys)
    assert window.wait() == 0


def test_flood_leaves_the_keys_alive_and_control_c_leaves_at_once(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.sock.setblocking(False)
    line = b"flood " * 20 + b"\n"
    sent = 0

    def pour() -> None:
        nonlocal sent
        try:
            while True:
                sent += server.sock.send(line * 500)
        except BlockingIOError:
            pass

    def typed_is_shown(text: str) -> bool:
        pour()
        window.shown = (window.shown + window.read(0.05))[-100_000:]
        return text in re.sub(r"\x1b\[[0-9;]*m", "", window.shown)

    eventually(lambda: typed_is_shown("flood flood"))
    window.type("still alive")
    eventually(lambda: typed_is_shown("John: still alive"))
    window.type("\x03\x03")

    def ended() -> bool:
        with suppress(OSError):
            pour()
        window.read(0.01)
        return window.process.poll() is not None

    eventually(ended)
    assert sent > 1_000_000


def untaken() -> chat_client.Terminal:
    """Returns a terminal that isn't one."""
    console = chat_client.Terminal.__new__(chat_client.Terminal)
    console.output, console.above, console.row = bytearray(), bytearray(), ""
    console.modes, console.timers, console.status, console.prompt = ["taken"], {}, "", ""
    console.line, console.secret, console.width = chat_client.Editor(), None, 80
    console.painter = chat_client.Painter(False, False)
    console.pace, console.stuck, console.screen = float("inf"), None, -1
    return console


@pytest.mark.parametrize(
    "column, answer, in_tmux, rows_above",
    [(70, 31, False, 1), (70, 40, False, 0), (79, 40, False, 0), (79, 40, True, 1)],
)
def test_what_the_cursor_tells_of_how_a_terminal_wraps(
    column: int, answer: int, in_tmux: bool, rows_above: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_client, "window_size", lambda: (40, 24))
    console = untaken()
    console.in_tmux, console.cursor_column = in_tmux, column
    console.resize()
    assert console.output == b"\x1b[6n" and console.clear_rows in console.timers
    console.measure(20)
    assert console.clear_rows in console.timers, "it was asked of another width"
    console.measure(answer - 1)
    up = b"\x1b[%dA" % rows_above if rows_above else b""
    assert console.output == b"\x1b[6n" + up + b"\r\x1b[J"
    assert console.clear_rows not in console.timers
    console.measure(answer - 1)
    assert console.output.count(b"\x1b[J") == 1, "a late answer does nothing"


def test_keys_of_a_slow_terminal_are_soon_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, room, taken = [0.0], [5000], bytearray()

    def write(_: int, data: bytes) -> int:
        if not room[0]:
            raise BlockingIOError
        taken.extend(data[: room[0]])
        size, room[0] = min(room[0], len(data)), max(room[0] - len(data), 0)
        return size

    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(chat_client, "os", SimpleNamespace(write=write))
    console = untaken()
    console.above += b"".join(b"line %d\n" % number for number in range(1000))
    while not console.stuck:
        console.update()
        console.write()
    left = len(console.output)
    clock[0] += 0.1
    room[0] = left // 2
    console.write()
    room[0] = 10_000
    console.write()
    assert console.pace == pytest.approx(max(9 * left, chat_client.MIN_PACE), rel=0.05)
    lines = taken.count(b"line ")
    console.line.feed(b"x")
    console.update()
    console.write()
    assert b"\rx" in taken and taken.count(b"line ") == lines, "the key is drawn, and no line"
    del console.timers[console.rest]
    console.update()
    drawn = sum(map(len, re.findall(rb"line \d+\n", console.output)))
    assert 0 < drawn < chat_client.MAX_DRAWN + 10
    assert console.timers[console.rest] - clock[0] == pytest.approx(drawn / console.pace, rel=0.05)
    console.above.clear()
    console.rest()
    assert console.pace == float("inf")
    room[0] = 10
    console.write()
    assert console.stuck
    room[0] = 10_000
    console.write()
    assert (console.stuck, console.pace) == (None, float("inf")), "it was only stopped"


def test_not_too_many_lines_are_drawn_before_keys_are_looked_at_again() -> None:
    console = untaken()
    lines = [f"{number:099}" for number in range(100)]
    for line in lines:
        console.show(line)
    drawn = []
    while console.above:
        console.update()
        drawn.append(bytes(console.output).decode().split("\x1b[K", 1)[1].split("\x1b[?7l")[0])
        console.output.clear()
    assert "".join(drawn) == "".join(f"{line[:79]}\n  {line[79:]}\n" for line in lines)
    assert max(map(len, drawn)) < chat_client.MAX_DRAWN + 110


def test_a_terminal_that_does_not_read_stops_neither_keys_nor_memory(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
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
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    row = "\x1b[1mJohn: \x1b[0mhalf\x1b7\x1b[K\x1b8"
    window.type("half")
    window.expect(row)
    for line in ("first\n", "second\n"):
        server.send(line)
        assert window.expect(row) == f"\x1b[?7h\r\x1b[K{line}\x1b[?7l\r"


def test_colours_bell_and_timestamps(room: Server, terminal: Callable[..., Terminal]) -> None:
    ann = room.join("Ann")
    plain = ["localhost", str(room.port), "--name", "John"]
    window = in_terminal(terminal, *plain, "--timestamps")
    ann.expect("* John joined\n")
    ann.send("hi john\n/quit\n")
    window.expect("\x1b[0m: hi john\n")
    window.expect("] \x1b[2m* Ann left\x1b[0m\n")
    window.expect("\a")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}])
def test_no_colours_where_they_are_not_wanted(
    room: Server, terminal: Callable[..., Terminal], environment: dict[str, str]
) -> None:
    ann = room.join("Ann")
    options = ["localhost", str(room.port), "--name", "John", "--timestamps"]
    window = in_terminal(terminal, *options, **environment)
    ann.expect("* John joined\n")
    ann.send("hi John\n/quit\n")
    window.expect("] * Ann left\n")
    shown = window.shown
    assert "\x1b[3" not in shown and "\x1b[2m" not in shown and "\x1b[1m" not in shown
    if "TERM" in environment:
        window.type("exit\n")
        assert window.wait() == 0


def test_lines_that_waited_when_the_connection_was_lost_go_out_once_it_is_back(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    options = ["127.0.0.1", str(listener.port), "--name", "John"]
    window = in_terminal(terminal, *options, CHAT_PASSWORD="secret")
    server = listener.accept()
    server.send("* password?\n")  # and no answer: so what is typed waits
    server.expect("secret\n")
    empty_row = "John: \x1b[0m\x1b7\x1b[K\x1b8"
    window.type("one")
    window.expect("one\x1b7\x1b[K\x1b8")
    window.type("\r")
    window.expect(empty_row)
    server.close()
    server = listener.accept()
    server.send("a relay\n")
    server.expect("John: one\n")
    window.type("two\r")
    server.expect("John: two\n")


def test_each_connection_begins_with_the_name_that_the_user_wants(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    server.send(WELCOME)
    server.expect("/name John\n")
    server.send("* John is taken\n")
    server.expect("/name John_\n")
    server.send("* you are John_\n")
    window.expect("John_: ")
    server.close()
    server = listener.accept()
    server.send(WELCOME)
    server.expect("/name John\n")
    server.send("* John is taken\n")
    server.expect("/name John_\n")
    server.send("* you are John_\n* John left\n")
    server.expect("/name John\n")
    server.send("* you are John\n")
    window.expect("* connected again")
    window.expect("John: ")


def test_somebody_silent_is_completed(room: Server, terminal: Callable[..., Terminal]) -> None:
    silent, other = room.join("Xaver"), room.join()
    window = in_terminal(terminal, "localhost", str(room.port), "--name", "John")
    silent.expect("* John joined\n")
    other.send("by now John knows who is here\n")
    window.expect("by now John knows who is here")
    window.type("xa\t")
    window.expect("Xaver: ")
    window.type("hi\r")
    silent.expect("by now John knows who is here\n", "John: Xaver: hi\n")
    window.type("exit\r")
    assert "* here" not in window.rest()


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


def test_a_command_in_a_pasted_block_is_asked_about_before_everyone_hears_it(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = joined(window, listener)
    window.type("\x1b[200~/msg Ann: psst\nand more\x1b[201~\r")
    window.expect("(2 lines, with a slash: Enter says them to everyone) ")
    window.type("\x15exit\r")
    assert server.rest() == b""


def test_somebody_who_was_removed_is_not_told_that_what_all_saw_was_lost(
    start: Callable[..., Server], terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    (tmp_path / "operators").write_text("secret\n")
    room = start("chat_server.py", "--operator-file", str(tmp_path / "operators"))
    bob = room.join("Bob")
    bob.send("/op secret\n")
    bob.expect("* you are an operator\n")
    window = in_terminal(terminal, "127.0.0.1", str(room.port), "--name", "John")
    bob.expect("* John joined\n")
    window.type("hi\r")
    bob.expect("John: hi\n")
    bob.send("/kick John\n")
    rest = window.rest()
    assert window.wait() == 1 and "* you were removed by an operator" in rest
    assert "may not have arrived" not in rest


# The password, which is typed unseen in the line editor


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
    for width, row in ((80, "password: "), (6, "ord: ")):
        console.width = width
        console.update()
        assert console.output.startswith(f"\x1b[?7l\r{row}\x1b7".encode())
        console.output.clear()


@pytest.mark.parametrize("keys", [b"\x1f", b"\x19", b"\x1b[A", b"\x12se"])
def test_a_secret_can_not_be_brought_back(keys: bytes) -> None:
    console = asked_for_secret(b"secret\r" + keys)
    assert console.ask_secret("password: ") == b"secret"
    assert console.line.text == ""


def test_the_room_is_seen_while_the_password_is_not(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = at_door(terminal, listener)
    window.type("sec")
    server.send("* be patient\n")
    shown = window.expect("* be patient")
    shown += window.expect("password: ")
    window.type("rexx\x7f\x7ft\r\x1b[A\x19\x15behind\r")
    server.expect("secret\n")
    server.send(WELCOME)
    server.expect("/name John\n")
    server.send("* you are John\n")
    server.expect("John: behind\n")
    window.type("quit\r")
    shown += window.rest()
    assert "John: behind" in shown.replace("\x1b[1m", "").replace("\x1b[0m", "")
    for part in ("sec", "ret", "rex"):
        assert part not in shown


@pytest.mark.parametrize(
    "keys, status, message", [("half\x03\x03", 0, ""), ("\x04", 1, "no password")]
)
def test_ways_to_leave_when_the_password_is_asked_for(
    listener: Listener,
    terminal: Callable[..., Terminal],
    keys: str,
    status: int,
    message: str,
) -> None:
    before = modes(terminal("true"))
    window, _ = at_door(terminal, listener)
    window.type(keys)
    assert window.wait() == status
    assert modes(window)[3] == before[3]
    rest = window.rest()
    assert message in rest and "half" not in rest


def test_the_question_for_the_password_is_drawn_anew(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = at_door(terminal, listener)
    window.type("se")
    window.resize(24, 30)
    window.expect("\x1b[J\x1b[?7l\rpassword: ")
    window.type("cret\r")
    server.expect("secret\n")


@pytest.mark.parametrize("options", [[], ["--plain"]])
def test_what_was_typed_before_the_question_is_said_behind_the_door(
    listener: Listener, terminal: Callable[..., Terminal], options: list[str]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John", *options)
    server = listener.accept()
    window.type("one\rtwo\r" + "half" * (not options))
    window.expect("half" if not options else "two")
    server.send("* password?\n")
    if not options:  # the rest of a line that was begun before is no password
        window.expect("(finish this line, then the password)")
        window.type(" a line\r")
    window.expect("password: ")
    window.type("secret\r")
    server.expect("secret\n")
    server.send(WELCOME)
    server.expect("/name John\n")
    server.send("* you are John\n")
    server.expect("John: one\n", "John: two\n", *["John: half a line\n"] * (not options))
    window.type("exit\r")
    assert server.rest() == b""


def test_what_a_sleeping_room_takes_for_the_password_is_said_again_behind_the_door(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window = in_terminal(terminal, "127.0.0.1", str(listener.port), "--name", "John")
    server = listener.accept()
    window.type("hi\r/msg Ann: psst\r")
    server.expect("John: hi\n")
    window.expect("* not sent: /msg Ann: psst")
    server.send("* password?\n")
    window.expect("asked late for its password")
    assert server.rest() == b""
    server.close()
    window.expect("password: ")
    window.type("secret\r")
    server = listener.accept()
    server.send("* password?\n")
    server.expect("secret\n")
    server.send(WELCOME)
    server.expect("/name John\n")
    server.send("* you are John\n")
    server.expect("John: hi\n")
    window.type("exit\r")
    assert server.rest() == b""


def test_half_a_password_that_nobody_wants_any_more_is_not_said(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = at_door(terminal, listener)
    window.type("sec")
    server.send(WELCOME)
    server.expect("/name John\n")
    server.send("* you are John\n* Ann joined\n")
    shown = window.expect("* Ann joined")
    window.type("ret\rhi\r")
    server.expect("John: hi\n")
    window.type("exit\r")
    assert "ret" not in shown + window.rest()


def test_the_password_is_not_seen_when_the_connection_is_lost_meanwhile(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    window, server = at_door(terminal, listener)
    window.type("sec")
    server.close()
    shown = window.expect("* not let in: the room waits no longer for the password")
    window.type("ret\r")
    server = listener.accept()
    server.send("* password?\n")
    server.expect("secret\n")
    server.send(WELCOME)
    shown += window.expect("Welcome")
    for part in ("sec", "ret"):
        assert part not in shown


@pytest.mark.parametrize("options", [[], ["--plain"]])
@pytest.mark.parametrize("given", ["typed", "in the environment"])
def test_a_wrong_password_is_asked_for_again(
    start: Callable[..., Server],
    terminal: Callable[..., Terminal],
    tmp_path: Path,
    options: list[str],
    given: str,
) -> None:
    (tmp_path / "password").write_text("secret\n")
    room = start("chat_server.py", "--password-file", str(tmp_path / "password"))
    environment = {} if given == "typed" else {"CHAT_PASSWORD": "wrong"}
    address = ["127.0.0.1", str(room.port), "--name", "John"]
    window = in_terminal(terminal, *address, *options, **environment)
    shown = ""
    for answer in ["wrong", "worse"] if given == "typed" else []:
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
