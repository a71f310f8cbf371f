"""The client in plain mode, in pipes, with files, in a pseudo-terminal; its logic without I/O."""

from __future__ import annotations

import errno
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starter import launch
from support import (
    CLIENT,
    DEADLINE,
    JOINING,
    MODULES,
    NOT_IN_MINIMAL,
    PLAIN,
    ROOT,
    TRUSTED,
    WELCOME,
    XTERM,
    FakeConsole,
    Listener,
    Peer,
    Server,
    Sipping,
    Terminal,
    client,
    eventually,
    finish,
    free_port,
    john_in_a_room,
    needs,
    patched_client,
    unconnected,
    unread,
)

import chat_client
from chat_client import (
    MAX_LINE,
    TOO_LONG,
    ChatProtocol,
    Client,
    Disconnected,
    EchoProtocol,
    Failure,
    Line,
    Phase,
    Session,
    terminal_text,
)

# The logic without I/O


def test_messages_have_the_name_before_them() -> None:
    chat = ChatProtocol("John")
    chat.stop_waiting()
    for text in ("Hi", "//who", ""):
        chat.submit(Line(text))
    assert chat.outgoing == b"John: Hi\nJohn: /who\n"
    assert chat.to_show == ["John: Hi", "John: /who"]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("line", ["/msg Ann: psst", " /msg Ann: psst", "\t/op psst", "/", "/ psst"])
@pytest.mark.parametrize(
    "heard", [[], ["* news"], ["Ann: hi"], ["Ann: hi", WELCOME.decode().rstrip()]]
)
def test_a_command_goes_to_a_room_or_nowhere(heard: list[str], line: str, alone: bool) -> None:
    chat = ChatProtocol("John")
    for one in heard:
        chat.hear(one)
    chat.stop_waiting()
    chat.submit(Line(line, alone))
    assert chat.outgoing == b""
    assert chat.to_show[-1].startswith("* not sent: /") and chat.refused
    assert ("psst" in chat.to_show[-1]) is ("psst" in line and "op" not in line)


def test_a_blank_before_a_command_makes_no_message_of_it() -> None:
    chat = john_in_a_room()
    chat.submit(Line(" /msg Ann: psst"))
    chat.submit(Line("  //shrug"))
    chat.submit(Line("  indented"))
    assert chat.outgoing == b"/msg Ann: psst\nJohn: /shrug\nJohn:   indented\n"


def test_in_a_room_the_name_is_made_known_and_the_answer_hidden() -> None:
    chat = ChatProtocol("John")
    chat.hear("Welcome to the chatroom!")
    assert (bytes(chat.outgoing), chat.accepts_input) == (b"/name John\n/who\n", False)
    chat.hear("* Ann joined")
    chat.hear("* you are John")
    assert chat.accepts_input
    assert chat.to_show == ["Welcome to the chatroom!", "* Ann joined"]


def test_a_taken_name_gets_an_underscore_and_the_user_is_told() -> None:
    chat = ChatProtocol("x" * 32)
    chat.hear("Welcome to the chatroom!")
    chat.hear("* " + "x" * 32 + " is taken")
    assert chat.outgoing.endswith(b"\n/name " + b"x" * 31 + b"_\n")
    assert not chat.accepts_input
    chat.hear("* you are " + "x" * 31 + "_")
    chat.submit(Line("hi"))
    told = ["* " + "x" * 32 + " is taken", "* you are " + "x" * 31 + "_"]
    assert chat.to_show[1:] == [*told, "x" * 31 + "_: hi"]


def test_only_the_answer_to_our_own_question_names_us() -> None:
    chat = ChatProtocol("Ann")
    chat.hear("Welcome to the chatroom!")
    chat.hear("* you are Ann")
    chat.hear("* you are Bob joined")  # somebody has named himself so
    chat.hear("* you are Bob")
    assert chat.name == "Ann"
    chat.submit(Line("/name Zoe"))
    chat.hear("* Ann is now Zoe is taken")
    assert not chat.accepts_input
    chat.hear("* Zoe is taken")
    assert (chat.accepts_input, chat.name) == (False, "Ann")
    assert chat.outgoing.endswith(b"/name Zoe\n/name Zoe_\n")


@pytest.mark.parametrize(
    "line",
    [
        "* you were removed by an operator joined",
        "* you were removed by an operator left",
        "* you were removed by an operator; come back in 10 min joined",
        "* you were removed by an operator; come back in 10 min is now Bob",
        "* Bob is now you were removed by an operator; come back in 10 min",
        "* John is now Q joined",
        "* John is now Q left",
        "* John is now Q was removed",
        "* John is now Q is now Z",
        "* John left is now Q",
        "* John left joined",
        "* John and Q left",
        "* John, Q left",
        "* Q is now John left",
        "* you are Q joined",
        "* the room is closing left",
        "* John was removed by Q, who joined",
        "* here: John left",
        "* here: 7 more and 2 unnamed",
    ],
)
def test_a_notice_that_can_be_read_in_two_ways_is_only_shown(line: str) -> None:
    chat = ChatProtocol("John")
    chat.ignored["john"] = "John"
    chat.hear(chat_client.WELCOME)
    for one in ("* John is taken", "* here: John", "* you are John_", "* John joined"):
        chat.hear(one)
    chat.hear(line)
    assert chat.outgoing == b"/name John\n/who\n/name John_\n"
    assert (list(chat.names), chat.ignored) == (["John"], {"john": "John"})
    assert chat.to_show[-1] == line


def test_asking_for_names_comes_to_an_end() -> None:
    chat = ChatProtocol("a" * 31 + "_")
    chat.hear("Welcome to the chatroom!")
    chat.hear("* " + "a" * 31 + "_ is taken")
    assert chat.accepts_input
    assert chat.outgoing.count(b"/name") == 1


def test_a_refused_name_is_forgotten() -> None:
    chat = ChatProtocol("a:b")
    chat.hear("Welcome to the chatroom!")
    chat.hear("* a name has no colon and nothing invisible in it joined")  # says a relay's member
    assert not chat.accepts_input
    chat.hear("* a name has no colon and nothing invisible in it: /name NAME")
    assert chat.accepts_input
    chat.submit(Line("/name Ann"))
    chat.hear("* a name has letters and digits in it: /name NAME")
    assert (chat.accepts_input, chat.name, chat.wanted) == (True, "a:b", "a:b")


def test_the_password_is_given_once_and_only_for_the_first_line() -> None:
    chat = ChatProtocol("Ann", b"secret")
    chat.hear("* password?")
    chat.hear("* password?")
    assert chat.outgoing == b"secret\n"
    chat = ChatProtocol("Ann", b"secret")
    chat.hear("Bob: hi")
    chat.hear("* password?")
    assert chat.outgoing == b""


def test_a_late_welcome_is_a_welcome() -> None:
    chat = ChatProtocol("Ann")
    chat.stop_waiting()
    chat.submit(Line("hi"))
    chat.hear("Welcome to the chatroom!")
    assert chat.outgoing == b"Ann: hi\n/name Ann\n/who\n"


@pytest.mark.parametrize("password", [b"", b"secret"])
def test_what_was_said_before_a_late_question_is_not_the_password(password: bytes) -> None:
    console = FakeConsole("hi", "there")
    chat = ChatProtocol("J", password)
    session = unconnected(chat, console=console, sock=Sipping(len(b"J: hi\nJ: th")))
    chat.stop_waiting()
    session.forward_typed()
    session.serve(selectors.EVENT_WRITE)
    with pytest.raises(Disconnected, match="asked late for its password"):
        session.receive(b"* password?\n")
    assert b"secret" not in chat.outgoing
    session.close_ledger()
    assert (console.unsent(), console.doubtful) == ([], ["hi", "there"])


def test_commands_pass_through_and_two_slashes_are_meant_as_one() -> None:
    chat = john_in_a_room()
    chat.submit(Line("/who"))
    chat.submit(Line("//shrug"))
    assert chat.outgoing == b"/who\nJohn: /shrug\n"


def test_a_name_that_was_forgotten_is_for_the_room_to_ask_for() -> None:
    chat = john_in_a_room()
    chat.submit(Line("/name "))
    assert chat.outgoing == b"/name \n"
    assert chat.accepts_input, "there is no name to wait for"


def test_a_new_name_is_followed() -> None:
    chat = john_in_a_room()
    chat.submit(Line("/name Jim"))
    assert not chat.accepts_input
    chat.hear("* you are Jim")
    assert chat.accepts_input
    assert chat.to_show[-1] == "* you are Jim"
    chat.submit(Line("hi"))
    assert chat.to_show[-1] == "Jim: hi"


def test_a_welcome_among_the_messages_of_a_relay_is_just_a_message() -> None:
    chat = ChatProtocol("John")
    chat.hear("Ann: hi")
    assert chat.accepts_input
    chat.hear("Welcome to the chatroom!")
    chat.hear("* you are somebody else")
    assert chat.outgoing == b""
    assert chat.name == "John"


def test_echo_waits_for_each_answer() -> None:
    echo = EchoProtocol()
    echo.submit(Line("test"))
    assert not echo.accepts_input
    echo.hear("test")
    assert (echo.accepts_input, echo.to_show) == (True, ["recv: test"])


@pytest.mark.parametrize(
    "line, text",
    [
        (b"plain \xc3\xa4", "plain ä"),
        (b"a\x1b[31;1mred\x1b[0m", "ared"),
        (b"a\x1b]0;title\x07b\x1b]8;;x\x1b\\c", "abc"),
        (b"a\x1b(Bb\x1bcc", "abc"),
        (b"\r\nx\x00\x07\x08\x7fy\tz", "xy\tz"),
        (b"\xff\xc3", "\ufffd\ufffd"),
        ("\x9b31mC1 \x85".encode(), "C1 "),
        ("a\u202eb\u2066c\u2069".encode(), "abc"),
        (b"\x1b[", ""),
        (b"\x1b", ""),
    ],
)
def test_only_text_reaches_the_terminal(line: bytes, text: str) -> None:
    assert terminal_text(line) == text


def test_each_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = socket.socket()  # bound, but nobody listens
    dead.bind(("127.0.0.1", 0))
    with dead, socket.create_server(("127.0.0.1", 0)) as alive:
        client = Client(FakeConsole(), ChatProtocol("J"))
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", one.getsockname()) for one in (dead, alive)
        ]
        tried: list[socket.socket] = []
        connect_to = client.connect_to

        def note_and_connect(address: Any, sock: socket.socket) -> None:
            tried.append(sock)
            connect_to(address, sock)

        client.addresses = addresses
        monkeypatch.setattr(client, "connect_to", note_and_connect)
        with client.connect() as sock:
            assert sock.getpeername() == alive.getsockname()
            first, second = tried
            assert (first.fileno(), second) == (-1, sock), "one that failed costs no descriptor"


def test_end_of_input_waits_for_the_server_and_who_leaves_does_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeConsole, "wants_to_leave", lambda console: False)
    for leaves in (False, True):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            session = unconnected(ChatProtocol("John"), ours)
            session.left = leaves
            session.console.ended = True
            session.protocol.stop_waiting()
            session.see_off()
            assert theirs.recv(1) == b""
            assert (session.end in session.timers) is leaves


def test_the_own_name_is_not_completed() -> None:
    chat = john_in_a_room()
    for line in ("* here: Joe, John", "John: said in another window", "Jon: hi"):
        chat.hear(line)
    assert chat.candidates("Jo") == ["Jon", "Joe"]


def test_what_is_due_can_be_dropped_by_what_was_due_before_it() -> None:
    client = Client(FakeConsole(), ChatProtocol("J"))
    done = []

    def first() -> None:
        done.append("first")
        del client.timers[second]

    def second() -> None:
        done.append("second")

    client.timers.update({first: 0.0, second: 0.0})
    client.turn()
    assert (done, client.timers) == (["first"], {})


def test_names_that_are_remembered_have_a_limit() -> None:
    chat = ChatProtocol("me")
    for number in range(chat_client.MAX_NAMES + 10):
        chat.remember(f"name {number}")
    assert len(chat.names) == chat_client.MAX_NAMES
    assert chat.candidates("name")[0] == f"name {chat_client.MAX_NAMES + 9}"


JOINED = [chat_client.WELCOME, "* you are J"]


@pytest.mark.parametrize(
    "heard, phase, accepts, turned_away",
    [
        ([], Phase.WAITING, False, ""),
        (["* the room is full"], Phase.WAITING, False, "the room is full"),
        (["* password?"], Phase.AT_DOOR, False, "the room waits no longer for the password"),
        (["* password?", "* the room is full"], Phase.AT_DOOR, False, "the room is full"),
        (JOINED[:1], Phase.IN_ROOM, False, ""),
        (JOINED, Phase.IN_ROOM, True, ""),
        (["* password?", *JOINED], Phase.IN_ROOM, True, ""),
        (["* news", *JOINED], Phase.IN_ROOM, True, ""),
        ([*JOINED, "* password?"], Phase.IN_ROOM, True, ""),
        (["Ann: hi"], Phase.RELAY, True, ""),
        (["* Ann waves", "Ann: hi", "* Ann waves"], Phase.RELAY, True, ""),
        (["* password?", "Ann: hi"], Phase.RELAY, True, ""),
        (["Ann: hi", "* password?", *JOINED], Phase.RELAY, True, ""),
    ],
)
def test_phases_of_a_chat(heard: list[str], phase: Phase, accepts: bool, turned_away: str) -> None:
    chat = ChatProtocol("J")
    for line in heard:
        chat.hear(line)
    assert (chat.phase, chat.accepts_input) == (phase, accepts)
    assert chat.why == (turned_away and f"not let in: {turned_away}")
    chat.stop_waiting()
    assert chat.accepts_input is (phase is not Phase.AT_DOOR)


def test_a_block_of_lines_is_said_as_it_is() -> None:
    chat = ChatProtocol("J")
    for line in JOINED:
        chat.hear(line)
    chat.outgoing.clear()
    for text in ("/quit", "//x", "exit", " "):
        chat.submit(Line(text, alone=False))
    assert chat.outgoing == b"J: /quit\nJ: //x\nJ: exit\n"


def test_the_wanted_name_is_taken_back_when_it_is_free() -> None:
    for freed in ("* John left", "* JOHN left", "* John is now Bob"):
        chat = ChatProtocol("John")
        for line in (chat_client.WELCOME, "* John is taken", "* you are John_"):
            chat.hear(line)
        for line in ("* Johnny left", "* John_ is now John_", "* John is now JOHN", "John: I left"):
            chat.hear(line)
        assert chat.outgoing == b"/name John\n/who\n/name John_\n"
        chat.hear(freed)
        assert chat.outgoing.endswith(b"/name John_\n/name John\n")
        assert not chat.accepts_input
        chat.hear("* you are John")
        assert (chat.name, chat.accepts_input, chat.to_show[-1]) == ("John", True, "* you are John")
        chat.hear(freed)
        assert chat.outgoing.count(b"/name") == 3


def test_the_name_of_somebody_who_was_removed_is_not_free() -> None:
    chat = ChatProtocol("John")
    for line in (chat_client.WELCOME, "* John is taken", "* you are John_", "* John was removed"):
        chat.hear(line)
    assert chat.outgoing == b"/name John\n/who\n/name John_\n"


def test_no_name_is_asked_for_before_the_last_question_is_answered() -> None:
    chat = ChatProtocol("John")
    for line in (chat_client.WELCOME, "* John is taken", "* you are John_"):
        chat.hear(line)
    chat.submit(Line("/name Jim"))
    chat.hear("* John left")
    chat.hear("* you are Jim")
    assert chat.outgoing == b"/name John\n/who\n/name John_\n/name Jim\n"
    assert (chat.name, chat.accepts_input) == ("Jim", True)


def test_somebody_may_be_faster_to_take_the_name() -> None:
    chat = ChatProtocol("John")
    for line in (chat_client.WELCOME, "* John is taken", "* you are John_", "* John left"):
        chat.hear(line)
    chat.hear("* John is taken")
    chat.hear("* you are John_")
    assert (chat.name, chat.wanted, chat.accepts_input) == ("John_", "John", True)
    chat.submit(Line("/name Jim"))
    chat.hear("* you are Jim")
    assert (chat.name, chat.wanted) == ("Jim", "Jim")
    chat.hear("* John left")
    assert chat.outgoing.endswith(b"/name Jim\n")


def test_whoever_is_ignored_is_not_heard() -> None:
    chat = ChatProtocol("J")
    for line in JOINED:
        chat.hear(line)
    chat.outgoing.clear()
    chat.submit(Line("/ignore"))
    chat.submit(Line("/ignore  Ann "))
    chat.to_show.clear()
    for line in (
        "Ann: J!",
        "ANN (private): J!",
        "Bob: hi",
        "* Ann is now Zoe",
        "Zoe: J",
        "Anna: hi",
    ):
        chat.hear(line)
    assert chat.to_show == ["Bob: hi", "* Ann is now Zoe", "Anna: hi"]
    assert not chat.calls_user
    assert b"ignore" not in chat.outgoing
    chat.begin()
    for line in (*JOINED, "ann: hi"):
        chat.hear(line)
    for command in ("/ignore", "/ignore ANN", "/ignore zoe", "/ignore"):
        chat.submit(Line(command))
    chat.hear("Ann: hi")
    assert chat.to_show[1:] == [
        "* ignored: Ann, Zoe",
        "* what ANN says is shown again",
        "* what zoe says is shown again",
        "* ignored: nobody",
        "Ann: hi",
    ]
    assert b"ignore" not in chat.outgoing


def test_help_tells_of_what_the_client_does_itself() -> None:
    chat = ChatProtocol("J")
    for line in JOINED:
        chat.hear(line)
    chat.submit(Line("/help"))
    assert chat.outgoing.endswith(b"\n/help\n")
    assert chat.to_show[-1].startswith("* /ignore NAME: ")


def test_those_who_are_silent_are_known_and_nobody_sees_how() -> None:
    chat = ChatProtocol("J")
    for line in (*JOINED, "Xaver: hi", "* here: Xaver, J, Xenia, 5 more and 2 unnamed"):
        chat.hear(line)
    assert chat.outgoing == JOINING and chat.to_show[-1] == "Xaver: hi"
    assert chat.candidates("x") == ["Xaver", "Xenia"]
    assert chat.candidates("5") == []
    chat.submit(Line("/who"))
    chat.hear("* here: 2 unnamed")
    assert chat.to_show[-1] == "* here: 2 unnamed"
    chat.hear("* Xenia left")
    assert chat.candidates("x") == ["Xaver"]


def test_only_the_answer_to_our_own_question_is_hidden() -> None:
    chat = john_in_a_room()
    chat.to_show.clear()
    chat.ask("/ping")
    chat.hear("* pong")
    assert (chat.unseen, chat.to_show) == (set(), [])
    chat.submit(Line("/ping"))
    chat.hear("* pong")
    assert chat.to_show == ["* pong"]


@pytest.mark.parametrize("mark, given", [(b"", b"secret"), (b"\xef\xbb\xbf", b"secret")])
def test_the_mark_before_a_password_is_no_part_of_it(mark: bytes, given: bytes) -> None:
    chat = ChatProtocol("J")
    chat.hear("* password?")
    chat.give_password(mark + given)
    assert (chat.outgoing, chat.password) == (given + b"\n", given)


def test_where_a_room_has_been_nothing_is_said_before_its_welcome() -> None:
    for shown in JOINED[:1], ["* password?"]:
        chat = ChatProtocol("J")
        for line in shown:
            chat.hear(line)
        chat.begin()
        chat.stop_waiting()
        assert not chat.accepts_input
        for line in JOINED:
            chat.hear(line)
        assert chat.accepts_input


def lines_in_doubt(session: Session, lost: str = "reset") -> list[str]:
    session.end(lost)
    session.close_ledger()
    session.over = False
    return session.console.doubtful


def test_a_relay_that_speaks_has_read_what_was_sent() -> None:
    console = FakeConsole("ab", "cd")
    session = unconnected(ChatProtocol("J"), console=console, sock=Sipping(len(b"J: ab\nJ:")))
    session.receive(b"a relay\n")
    session.forward_typed()
    session.serve(selectors.EVENT_WRITE)
    assert lines_in_doubt(session) == ["ab", "cd"]
    session.receive(b"Ann: hi\n")
    assert lines_in_doubt(session) == ["cd"]


def turn_while_due(session: Session, now: float) -> None:
    """Has the loop do what is due by now."""
    while min(session.timers.values(), default=chat_client.NEVER) <= now:
        session.client.turn()


def in_a_room() -> tuple[Session, Sipping, FakeConsole]:
    """Returns a session in a room that knows J and /ping, its socket and its console."""
    sock, console = Sipping(10_000), FakeConsole()
    session = unconnected(ChatProtocol("J"), console=console, sock=sock)
    session.receive(WELCOME + b"* you are J\n* here: J\n")
    session.serve(selectors.EVENT_WRITE)
    return session, sock, console


def speak(session: Session, *lines: str) -> None:
    """The user says lines, and all that the client has to say goes out."""
    session.console.typed.extend(map(Line, lines))
    session.forward_typed()
    if session.said and not session.asked:
        session.ask()
    while session.protocol.outgoing:
        session.serve(selectors.EVENT_WRITE)


def test_what_a_room_has_heard_is_known() -> None:
    session, sock, console = in_a_room()
    speak(session, "one", "/msg Ann: psst")
    speak(session, "two")
    assert sock.taken.endswith(b"J: one\n/msg Ann: psst\n/ping\nJ: two\n")
    session.receive(b"Ann: hi\n")
    assert lines_in_doubt(session) == ["one", "/msg Ann: psst", "two"]
    session.receive(b"* pong\n")
    assert lines_in_doubt(session) == ["two"]
    speak(session)
    assert sock.taken.endswith(b"J: two\n/ping\n")
    with pytest.raises(Failure, match="^you were removed by an operator"):
        session.receive(b"* pong\n* you were removed by an operator; come back in 10 min\n")
    assert lines_in_doubt(session, "the server closed it") == []
    assert not [line for line in console.shown if "pong" in line]


def test_a_room_that_is_asked_and_silent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def pass_time(seconds: float) -> None:
        clock[0] += seconds
        turn_while_due(session, clock[0])

    session, _, console = in_a_room()
    pass_time(0.9 * chat_client.QUIET_TIME)
    speak(session, "one")
    for heard in (b"Ann: hi\n", b"Ann: ho\n"):  # the network lives
        pass_time(0.9 * chat_client.LOST_TIME)
        session.receive(heard)
    session.receive(b"* pong\n")
    pass_time(0.9 * chat_client.QUIET_TIME)
    assert not session.over
    speak(session, "two")
    console.output += bytes(session.max_waiting)  # then the silence is ours
    pass_time(2 * chat_client.LOST_TIME)
    assert not session.over
    console.output.clear()
    pass_time(2 * chat_client.LOST_TIME)
    assert (session.over, session.lost) == (True, "no answer for 15 s")
    session.close_ledger()
    assert console.doubtful == ["two"]


def test_a_quiet_room_is_asked_whether_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    session, sock, console = in_a_room()
    for answer, over in ((b"* pong\n", False), (b"", True)):
        clock[0] += chat_client.QUIET_TIME
        turn_while_due(session, clock[0])
        session.serve(selectors.EVENT_WRITE)
        assert sock.taken.endswith(b"/ping\n")
        if answer:
            session.receive(answer)
        clock[0] += chat_client.LOST_TIME
        turn_while_due(session, clock[0])
        assert session.over is over
    assert (sock.taken.count(b"/ping"), console.shown) == (2, [WELCOME.decode().rstrip()])


def test_bytes_that_nobody_has_acknowledged() -> None:
    pytest.importorskip("fcntl")
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells")
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.create_connection(one.getsockname()) as sock:
            theirs, _ = one.accept()
            with theirs:
                sock.setblocking(False)
                sent = sock.send(bytes(1 << 20))
                assert 0 < chat_client.unacknowledged(sock) <= sent
                while sent:
                    sent -= len(theirs.recv(65536))
                eventually(lambda: chat_client.unacknowledged(sock) == 0)


def test_the_end_of_our_stream_is_nothing_that_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it counts as a byte that has to be acknowledged."""
    console = FakeConsole("one")
    session = unconnected(ChatProtocol("J"), console=console, sock=Sipping(100))
    session.receive(b"a relay\n")
    session.forward_typed()
    session.serve(selectors.EVENT_WRITE)
    monkeypatch.setattr(chat_client, "unacknowledged", lambda sock: 1)
    for ended, doubtful in ((True, []), (False, ["one"])):
        session.stream_ended = ended
        session.close_ledger()
        assert console.doubtful == doubtful


def test_what_was_said_to_a_server_that_vanishes_is_kept_or_told() -> None:
    console = FakeConsole("one", "two", "three")
    session = unconnected(ChatProtocol("J"), console=console, sock=Sipping(len(b"J: one\nJ: t")))
    session.receive(b"a relay\n")
    session.forward_typed()
    session.serve(selectors.EVENT_WRITE)
    session.end("reset")
    console.typed.append(Line("four"))
    session.close_ledger()
    assert console.unsent() == ["four"]
    assert console.doubtful == ["one", "two", "three"]
    session.client.tell_lost(Disconnected("lost the connection: reset"))
    told = [
        "* lost the connection: reset",
        "* what you said last may not have arrived:",
        "*   one",
        "*   two",
        "*   three",
    ]
    assert console.shown[-5:] == told
    session.client.tell_lost(Disconnected("lost the connection: reset"))
    assert console.shown[-5:] == told, "told once"


def test_a_word_that_leaves_is_no_password() -> None:
    console = FakeConsole("exit")
    session = unconnected(ChatProtocol("J"), console=console)
    session.receive(b"* password?\n")
    session.client.ask_password()
    assert (console.prompts, session.protocol.outgoing) == ([], b"")
    session.see_off()
    assert session.end in session.timers


def test_what_was_typed_ahead_of_the_question_is_no_password() -> None:
    console = FakeConsole("ahead", "/msg Ann: psst")
    session = unconnected(ChatProtocol("J"), console=console)
    console.secrets.append(b"secret")
    session.receive(b"* password?\n")
    session.client.ask_password()
    session.forward_typed()
    assert (console.prompts, session.protocol.outgoing) == (["password: "], b"secret\n")
    session.receive(WELCOME + b"* you are J\n")
    session.forward_typed()
    said = b"secret\n" + JOINING + b"J: ahead\n/msg Ann: psst\n"
    assert session.protocol.outgoing == said


def test_whoever_wants_out_is_kept_no_longer_by_what_the_server_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    session = unconnected(ChatProtocol("J"), console=FakeConsole("exit"))
    session.see_off()
    assert session.timers[session.end] == chat_client.LINGER
    for heard in (WELCOME, b"* J is taken\n", b"* J_ is taken\n"):
        clock[0] += 0.1
        session.receive(heard)
        session.see_off()
    assert session.protocol.outgoing.count(b"/name") == 3
    assert session.timers[session.stop_waiting] == clock[0] + chat_client.ANSWER_TIME
    assert session.timers[session.end] == chat_client.LINGER


def test_whoever_leaves_has_time_as_long_as_something_goes_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    console = FakeConsole("last words", "exit")
    session = unconnected(ChatProtocol("J"), console=console, sock=Sipping())
    session.receive(b"a relay\n")
    session.forward_typed()
    while session.protocol.outgoing:
        clock[0] += 0.9 * chat_client.LINGER
        session.see_off()
        assert session.left and session.timers[session.end] > clock[0]
        session.serve(selectors.EVENT_WRITE)


def test_an_answer_gives_whoever_wants_out_time_for_the_next_line() -> None:
    session = unconnected(EchoProtocol(), console=FakeConsole("one", "two", "exit"))
    session.forward_typed()
    session.see_off()
    session.timers[session.end] -= 0.9 * chat_client.LINGER
    session.receive(b"one\n")
    session.forward_typed()
    session.see_off()
    assert session.timers[session.end] > time.monotonic() + 0.5 * chat_client.LINGER
    assert session.console.typed[0].text == "exit"


@pytest.mark.parametrize("attended", [True, False])
def test_a_refused_name_is_the_end_only_where_nobody_sits(attended: bool) -> None:
    chat = ChatProtocol("a:b", attended=attended)
    session = unconnected(chat, console=FakeConsole(attended=attended))
    session.receive(WELCOME)
    if attended:
        session.receive(b"* a name has no colon: /name NAME\n")
        assert not session.over and chat.accepts_input
    else:
        with pytest.raises(Failure, match="refused the name a:b: a name has no colon"):
            session.receive(b"* a name has no colon: /name NAME\n")


def test_the_password_is_waited_for_turn_by_turn() -> None:
    console = FakeConsole()
    session = unconnected(ChatProtocol("J"), console=console)
    session.client.ask_password()
    assert console.prompts == []
    session.receive(b"* password?\n")
    session.client.ask_password()
    assert (console.prompts, session.protocol.outgoing) == (["password: "], b"")
    console.secrets.append(b"secret")
    session.client.ask_password()
    session.client.ask_password()
    assert session.protocol.outgoing == b"secret\n"


def test_what_outlives_a_connection() -> None:
    chat = ChatProtocol("J")
    for line in ("* password?", *JOINED):
        chat.hear(line)
        if chat.wants_password:
            chat.give_password(b"secret")
    chat.submit(Line("/name Jim"))
    chat.hear("* you are Jim")
    chat.begin()
    assert (chat.name, chat.password, chat.phase) == ("Jim", b"secret", Phase.WAITING)
    assert not (chat.outgoing or chat.to_show or chat.names or chat.accepts_input)
    for line in ("* password?", chat_client.WELCOME, "* Jim is taken", "* you are Jim_"):
        chat.hear(line)
    assert chat.outgoing == b"secret\n/name Jim\n/who\n/name Jim_\n"
    chat.begin()
    assert chat.name == "Jim"


@pytest.mark.parametrize("attended", [True, False])
def test_a_wrong_password_is_asked_for_again_where_somebody_sits(attended: bool) -> None:
    console = FakeConsole(attended=attended)
    chat = ChatProtocol("J", b"wrong", attended)
    session = unconnected(chat, console=console)
    with pytest.raises(Disconnected, match="^wrong password$") as caught:
        session.receive(b"* password?\n* wrong password\n")
    assert chat.wants_password
    if not attended:
        with pytest.raises(Disconnected):
            session.client.tell_lost(caught.value)
        return
    session.client.tell_lost(caught.value)
    session.client.ask_password()
    console.secrets.append(b"right")
    session.client.ask_password()
    assert (console.shown, console.prompts) == (["* wrong password"], ["password: "] * 2)
    chat.begin()
    session.receive(b"* password?\n")
    assert chat.outgoing == b"right\n"


@pytest.mark.parametrize("took, patience", [(0.01, 0.5), (0.5, 2.0), (9.0, 10.0)])
def test_how_long_a_first_word_is_waited_for(
    took: float, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def connect_to(address: Any, sock: socket.socket) -> socket.socket:
        clock[0] += took
        return sock

    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    client = Client(FakeConsole(ended=True), ChatProtocol("J"))
    client.addresses = [(socket.AF_INET, 1, 0, "", ("127.0.0.1", 1))]
    monkeypatch.setattr(client, "connect_to", connect_to)
    with client.connect() as sock:
        session = Session(client, sock)
        session.see_off()
        assert session.timers[session.end] == clock[0] + max(chat_client.LINGER, patience)
        waits = []

        def turn(*_: object) -> None:
            waits.append(session.timers[session.stop_waiting] - clock[0])
            session.end()

        monkeypatch.setattr(client, "turn", turn)
        session.run()
        assert waits == [pytest.approx(patience)]


def test_room_that_never_says_who_we_are_is_not_waited_for_for_ever() -> None:
    session = unconnected(ChatProtocol("John"))
    session.receive(WELCOME)
    assert session.protocol.outgoing == b"/name John\n/who\n"
    assert session.stop_waiting in session.timers


def test_an_unfinished_line_is_shown_after_a_silence(listener: Listener) -> None:
    command = [*CLIENT, "127.0.0.1", str(listener.port), "--name", "J"]
    with launch(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        server = listener.accept()
        server.send("What do you want?")
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"What do you want?\n"
        server.send(" More?\n")
        assert process.stdout.readline() == b" More?\n"
        process.stdin.close()
        assert server.rest() == b""
        server.close()
        assert process.wait(DEADLINE) == 0


def test_in_a_room_an_unfinished_line_is_only_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    session = unconnected(ChatProtocol("J"))
    session.receive(b"An")
    assert session.timers.pop(session.stop_waiting) == chat_client.ANSWER_TIME
    for first_word in (WELCOME, b"* password?\n", b"* wrong password\n"):
        session.framer.partial = b""
        session.receive(first_word[:-2])
        session.stop_waiting()
        assert session.framer.partial == first_word[:-2]
    session.framer.partial = b""
    session.receive(WELCOME + b"Ann: hal")
    session.stop_waiting()
    assert session.framer.partial == b"Ann: hal"


# In pipes


def test_walk_through_in_a_pipe(room: Server) -> None:
    other = room.join()
    done = client("localhost", room.port, typed="John\nHi\nexit\n")
    assert done.stdout == "name: John\nWelcome to the chatroom!\nJohn: Hi\n"
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* John joined\n", "John: Hi\n", "* John left\n")


def test_a_server_that_drips_does_not_keep_the_user(listener: Listener) -> None:
    command = [*CLIENT, "127.0.0.1", str(listener.port), "--name", "J"]
    with launch(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin
        process.stdin.write(b"hi\nexit\n")
        process.stdin.close()
        server = listener.accept()
        server.sock.settimeout(0.1)
        said = b""
        deadline = time.monotonic() + DEADLINE
        while not said and time.monotonic() < deadline:
            server.send("* no welcome\n")
            with suppress(socket.timeout):
                said = server.sock.recv(99)
        server.close()
    assert said == b"J: hi\n"


def test_end_of_input_says_everything_and_shows_what_still_comes(listener: Listener) -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    lines = "".join(f"{number}\n" for number in range(2000))
    runner = threading.Thread(
        target=lambda: results.append(
            client("127.0.0.1", listener.port, "--name", "J", typed=lines + "last")
        )
    )
    runner.start()
    server = listener.accept()
    server.send("a relay\n")
    said = server.rest()  # it has half-closed
    server.send("one more\nunfinished")
    server.close()
    runner.join()
    assert said == "".join(f"J: {line}\n" for line in [*lines.split(), "last"]).encode()
    assert results[0].returncode == 0
    assert results[0].stdout.endswith("J: last\none more\nunfinished\n")


@pytest.mark.parametrize("word", ["quit", "exit", "/quit", "/exit"])
def test_words_that_leave(room: Server, word: str) -> None:
    other = room.join()
    done = client("localhost", room.port, "--name", "John", typed=f"a\n {word} \nb\n")
    assert done.returncode == 0
    other.expect("* John joined\n", "John: a\n", "* John left\n")


def test_taken_name_becomes_another(room: Server) -> None:
    john = room.join("John")
    done = client("localhost", room.port, "--name", "John", typed="hi\n")
    assert done.stdout == (
        "Welcome to the chatroom!\n* John is taken\n* you are John_\nJohn_: hi\n"
    )
    john.expect("* John_ joined\n", "John_: hi\n", "* John_ left\n")


@pytest.mark.parametrize(
    "name, why",
    [
        ("a:b", "a name has letters and digits in it, and after the first also spaces and .-_'"),
        ("7 more", 'a name has nothing in it that only the room says, such as "more"'),
        ("x" * 31 + "_", "x" * 31 + "_ is taken"),
    ],
)
def test_a_name_that_the_room_refuses_ends_a_script(room: Server, name: str, why: str) -> None:
    other = room.join("x" * 31 + "_")
    done = client("localhost", room.port, "--name", name, typed="hi\n")
    assert done.stderr == f"chat_client.py: the room refused the name {name}: {why}\n"
    assert done.returncode == 1
    other.send("/who\n")
    other.expect("* here: " + "x" * 31 + "_\n")


def test_whoever_sits_there_can_choose_another_name(
    room: Server, terminal: Callable[..., Terminal]
) -> None:
    other = room.join()
    window = terminal(*PLAIN, "localhost", str(room.port), "--name", "a:b")
    window.expect("* a name has letters and digits")
    window.type("/name Ann\n")
    other.expect("* Ann joined\n")


@pytest.mark.parametrize("when", ["at once", "when all is said"])
@pytest.mark.parametrize("notice", ["the room is full", "this room speaks TLS; use --tls"])
def test_whoever_is_not_let_in_is_told_why(listener: Listener, when: str, notice: str) -> None:
    def turn_away(server: Peer) -> None:
        if when == "when all is said":
            server.rest()
        server.send(f"* {notice}\n")
        server.close()

    listener.serve(turn_away)
    done = client("127.0.0.1", listener.port, "--name", "J", typed="hi\n")
    assert done.stderr == f"chat_client.py: not let in: {notice}\n"
    assert done.returncode == 1


def test_a_question_that_comes_too_late_is_no_success(listener: Listener) -> None:
    def ask_late(server: Peer) -> None:
        server.rest()
        server.send("* password?\n")
        server.close()

    listener.serve(ask_late)
    done = client("127.0.0.1", listener.port, "--name", "J", typed="hi\n")
    assert done.stderr == (
        "chat_client.py: the room wants a password; give it with --password-file FILE\n"
    )
    assert done.returncode == 1


def test_a_notice_among_the_messages_of_a_relay_turns_nobody_away(listener: Listener) -> None:
    def relay(server: Peer) -> None:
        server.send("Ann: hi\n* Ann waves\n")
        server.rest()
        server.close()

    listener.serve(relay)
    done = client("127.0.0.1", listener.port, "--name", "J", typed="hi\n")
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("typed, status", [("hi\nexit\n", 1), ("exit\n", 0), ("", 1)])
def test_a_reset_is_a_failure_only_for_whoever_has_something_to_lose(
    listener: Listener, typed: str, status: int
) -> None:
    def reset(server: Peer) -> None:
        server.send("a relay\n")
        server.rest()
        server.reset()

    listener.serve(reset)
    done = client("127.0.0.1", listener.port, "--name", "J", typed=typed)
    assert done.returncode == status
    assert done.stderr.count("lost the connection") == status


@pytest.mark.parametrize("how", ["reset", "TLS alert"])
def test_a_connection_that_breaks_after_the_last_word_is_no_success(
    listener: Listener, how: str
) -> None:
    def refuse(server: Peer) -> None:
        server.rest()
        if how == "reset":
            server.reset()
        else:
            server.send(b"\x15\x03\x01\0\2\2\x46")
            server.close()

    listener.serve(refuse)
    done = client("127.0.0.1", listener.port, "--name", "J", typed="hi\n")
    assert done.stderr.startswith("chat_client.py: lost the connection: ")
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)


def test_commands_in_a_pipe_to_an_echo_server(echo: Server) -> None:
    done = client("localhost", echo.port, "--name", "J", typed="hi\n/msg Ann: psst\n/op x\n//x\n")
    assert sorted(done.stdout.splitlines()) == [
        "* not sent: /msg Ann: psst (no chat room has answered; //TEXT says /TEXT)",
        "* not sent: /op * (no chat room has answered; //TEXT says /TEXT)",
        *["J: /x"] * 2,
        *["J: hi"] * 2,
    ]
    why = "chat_client.py: not everything was sent, as no chat room has answered\n"
    assert (done.stderr, done.returncode) == (why, 1)
    done = client("--echo", "localhost", echo.port, typed="/msg Ann: psst\n//x\n")
    assert done.stdout.count("recv: /msg Ann: psst\n") == done.stdout.count("recv: //x\n") == 1
    assert done.returncode == 0


def test_echo_in_a_pipe(echo: Server) -> None:
    done = client("localhost", echo.port, "--echo", typed="test\n\ngrüße\nquit\nmore\n")
    assert (
        done.stdout
        == "send: test\nrecv: test\nsend: \nrecv: \nsend: grüße\nrecv: grüße\nsend: quit\n"
    )
    assert done.returncode == 0


def test_echo_goes_on_when_there_is_no_answer(listener: Listener) -> None:
    results = []
    runner = threading.Thread(
        target=lambda: results.append(
            client("127.0.0.1", listener.port, "--echo", typed="a\nquit\n")
        )
    )
    runner.start()
    server = listener.accept()
    assert server.rest() == b"a\n"
    server.close()
    runner.join()
    assert results[0].stdout == "send: a\nsend: quit\n"
    assert results[0].returncode == 0


@pytest.mark.parametrize("options", [[], ["--name", "J"]])
def test_the_mark_at_the_start_of_the_input_is_no_text(room: Server, options: list[str]) -> None:
    other = room.join()
    name = "" if options else "J\n"
    done = client("localhost", room.port, *options, typed=f"\ufeff{name}/name Jim\n\ufeffhi\n")
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* J joined\n", "* J is now Jim\n", "Jim: \ufeffhi\n", "* Jim left\n")


@pytest.mark.parametrize("kind", ["file", "null", "closed"])
def test_other_kinds_of_standard_input(room: Server, tmp_path: Path, kind: str) -> None:
    other = room.join()
    if kind == "file":
        (tmp_path / "input").write_text("from a file\n")
        with open(tmp_path / "input", "rb") as file:
            done = client("localhost", room.port, "--name", "J", stdin=file)
    elif kind == "null":
        done = client("localhost", room.port, "--name", "J", stdin=subprocess.DEVNULL)
    else:
        done = client(
            "localhost", room.port, "--name", "J", stdin=None, preexec_fn=lambda: os.close(0)
        )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith(WELCOME.decode())
    other.expect("* J joined\n", *(["J: from a file\n"] if kind == "file" else []), "* J left\n")


@pytest.mark.parametrize("typed", ["", "\n  \n", "/msg Ann: psst"])
def test_no_name_in_a_pipe_is_one_clear_line_before_connecting(typed: str) -> None:
    done = client("203.0.113.1", typed=typed)
    assert done.stderr == (
        "chat_client.py: no name was given; use --name NAME, or the first line of the input\n"
    )
    assert (done.stdout.count("name: "), done.returncode) == (typed.count("\n") + 1, 1)


def test_end_of_input_at_the_name_prompt_of_a_terminal_is_a_clean_end(
    terminal: Callable[..., Terminal],
) -> None:
    window = terminal(*PLAIN)
    window.expect("name: ")
    window.type("\x04")
    assert window.wait() == 0


def test_a_command_at_the_name_prompt_is_no_name(
    terminal: Callable[..., Terminal], room: Server
) -> None:
    window = terminal(*PLAIN, "localhost", str(room.port))
    window.expect("name: ")
    window.type("/msg Ann: psst\n")
    window.expect("* a name does not begin with a slash\nname: ")
    window.type("John\n")
    window.expect("Welcome")


@pytest.mark.parametrize("name", ["", "  ", "\x1b[2J\x07", " /msg"])
def test_a_name_that_is_none_is_exit_status_2(name: str) -> None:
    done = client("--name", name, typed="hi\n")
    why = "a name is text, and does not begin with a slash"
    assert done.stderr.endswith(f"chat_client.py: error: argument --name: {why}\n")
    assert done.returncode == 2


def test_thread_that_feeds_standard_input_where_only_sockets_can_be_waited_for(
    room: Server, tmp_path: Path
) -> None:
    """As on Windows, but here."""
    other = room.join()
    code = "import sys, chat_client; chat_client.ONLY_SOCKETS = True; sys.exit(chat_client.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "localhost", str(room.port)],
        input="John\nHi\nexit\n",
        capture_output=True,
        check=False,
        text=True,
        cwd=MODULES,
        timeout=DEADLINE,
    )
    assert done.stdout == "name: John\nWelcome to the chatroom!\nJohn: Hi\n"
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* John joined\n", "John: Hi\n", "* John left\n")


@pytest.mark.parametrize("closed", ["before", "meanwhile"])
def test_closed_standard_output_is_one_clear_line(listener: Listener, closed: str) -> None:
    read_end, write_end = os.pipe()
    if closed == "before":
        os.close(read_end)
    process = launch(
        [*CLIENT, "127.0.0.1", str(listener.port), "--name", "J"],
        stdin=subprocess.PIPE,
        stdout=write_end,
        stderr=subprocess.PIPE,
    )
    os.close(write_end)
    server = listener.accept()
    server.send("one\n")
    if closed == "meanwhile":
        assert os.read(read_end, 100) == b"one\n"
        os.close(read_end)
        server.send("two\n")
    _, errors = process.communicate(timeout=DEADLINE)
    assert errors == b"chat_client.py: standard output is closed\n"
    assert process.returncode == 1


@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_standard_streams_that_were_never_open(room: Server, closed: tuple[int, ...]) -> None:
    done = client(
        "localhost",
        room.port,
        "--name",
        "J",
        preexec_fn=lambda: [os.close(descriptor) for descriptor in closed],
    )
    without_output = "chat_client.py: standard output is closed\n"
    assert done.stdout == ("" if 1 in closed else WELCOME.decode())
    assert done.stderr == (without_output if 1 in closed and 2 not in closed else "")
    assert done.returncode == (1 if 1 in closed else 0)


@pytest.mark.parametrize("kind", ["gone", "full"])
@pytest.mark.parametrize("options, status", [(["--no-such-option"], 2), (["localhost", "1"], 1)])
def test_standard_error_that_takes_nothing_changes_no_status(
    kind: str, options: list[str], status: int
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if kind == "full":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        stderr = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stderr = os.pipe()
        os.close(reader)
    done = client("--name", "J", *options, stderr=stderr, stdout=subprocess.PIPE, env=environment)
    os.close(stderr)
    assert (done.stdout, done.returncode) == ("", status)


def test_nobody_listening_is_one_clear_line() -> None:
    port = free_port()
    for options, script in (["--name", "J"], "chat_server.py"), (["--echo"], "echo_server.py"):
        done = client("127.0.0.1", port, *options)
        assert done.stderr == (
            f"chat_client.py: cannot connect to port {port} on 127.0.0.1: "
            f"nobody listens there; start the server with: python3 {script} --port {port}, "
            "and for other hosts --host ::\n"
        )
        assert done.returncode == 1


@pytest.mark.parametrize(
    "codes, why",
    [
        ([errno.ECONNREFUSED, errno.ENETUNREACH], "nobody listens there; start the server with: "),
        ([errno.ETIMEDOUT], "no answer; is it switched on, and does its firewall let port 7007 "),
        ([errno.ENETUNREACH], "no way there; is this machine in a network that leads to it?"),
        ([errno.EHOSTUNREACH], "no way there; is it switched on, and in the same network?"),
        ([errno.EINVAL], "an address fe80:... needs its interface, such as fe80::1%eth0"),
        ([errno.EPERM], "this machine's firewall forbids it"),
        ([errno.EMFILE], os.strerror(errno.EMFILE)),
    ],
)
def test_why_there_is_no_connection(codes: list[int], why: str) -> None:
    errors = [OSError(code, os.strerror(code)) for code in codes]
    told = chat_client.why_not_connected(errors, "lab1", 7007, "chat_server.py")
    assert told.startswith(f"cannot connect to port 7007 on lab1: {why}")


def test_a_machine_without_a_network_is_one_clear_line() -> None:
    alone = [needs("unshare"), "--map-root-user", "--net"]
    if finish([*alone, "true"]).returncode:
        pytest.skip("no network namespace can be made here")
    done = finish([*alone, *CLIENT, "192.0.2.7", "--name", "J"])
    assert done.stderr == (
        "chat_client.py: cannot connect to port 7007 on 192.0.2.7: "
        "no way there; is this machine in a network that leads to it?\n"
    )
    assert done.returncode == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70, "a..b", "::x"])
def test_unknown_host_is_one_clear_line(host: str) -> None:
    done = client(host, "--name", "J")
    assert done.stderr == (
        f"chat_client.py: host {host} is unknown, or no name server answers; "
        "check the name and the network, or give the host's address\n"
    )
    assert done.returncode == 1


def test_dot_that_ends_a_full_name_is_not_in_the_certificate(start: Callable[..., Server]) -> None:
    room = start("chat_server.py", tls=True)
    resolver = (
        "import socket\nlook_up = socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda host, *more, **options: look_up('localhost', *more, **options)"
    )
    command = [*patched_client(resolver), f"localhost.:{room.port}", *TRUSTED]
    done = finish(command, "John\nhi\n")
    assert (done.stderr, done.returncode) == ("", 0)


# The command line


@pytest.mark.parametrize(
    "host, port, place",
    [
        ("lab1", None, ("lab1", 7007)),
        ("lab1", "7100", ("lab1", 7100)),
        ("lab1:7100", None, ("lab1", 7100)),
        ("192.0.2.7:1", None, ("192.0.2.7", 1)),
        ("::1", None, ("::1", 7007)),
        ("::1", "7100", ("::1", 7100)),
        ("[::1]", None, ("::1", 7007)),
        ("[::1]", "7100", ("::1", 7100)),
        ("[::1]:7100", None, ("::1", 7100)),
        ("fe80::1%eth0", None, ("fe80::1%eth0", 7007)),
        ("2130706433", None, ("2130706433", 7007)),
        ("lab1.", None, ("lab1.", 7007)),
    ],
)
def test_where_to_connect(host: str, port: str | None, place: tuple[str, int]) -> None:
    assert chat_client.host_and_port(host, port) == place


@pytest.mark.parametrize(
    "words, message",
    [
        (["7007"], "7007 is not a host; type it first, then the port"),
        (["7100", "lab1"], "7100 is not a host; type it first, then the port"),
        (["-p", "7100", "localhost"], "there is no option -p"),
        (["-p7100", "localhost"], "there is no option -p"),
        (["--port", "7100"], "there is no option --port"),
        (["--host=lab1", "7100"], "there is no option --host"),
        (["lab1", "seven"], "seven is not a port; those go from 0 to 65535"),
        (["lab1:seven"], "seven is not a port; those go from 0 to 65535"),
        (["lab1:70000"], "70000 is not a port; those go from 0 to 65535"),
        (["lab1:"], " is not a port; those go from 0 to 65535"),
        ([":7007"], "no host is given"),
        ([""], "no host is given"),
        (["lab1:1", "2"], "lab1:1 is not a host; type it first, then the port"),
        (["[::1]:1", "1"], "[::1]:1 is not a host; type it first, then the port"),
        (["lab1 7007"], "lab1 7007 is not a host; type it first, then the port"),
        (["chat://lab1"], "//lab1 is not a port; those go from 0 to 65535"),
        (["tcp://lab1:7007"], "tcp://lab1:7007 is not a host; type it first, then the port"),
        (["lab1/"], "lab1/ is not a host; type it first, then the port"),
        (["me@lab1"], "me@lab1 is not a host; type it first, then the port"),
        (["[::1"], "[::1 is not a host; type it first, then the port"),
        (["[]:7"], "[]:7 is not a host; type it first, then the port"),
        (["lab1", "7007", "John"], "too many arguments"),
    ],
)
def test_wrong_places_are_exit_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        chat_client.main(words)
    assert caught.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.endswith(" [options] [HOST [PORT]]")
    assert error.endswith(f"error: {message}")


@pytest.mark.parametrize("variable, file", [("", None), (None, "no/such/file"), (None, ".")])
def test_a_password_that_is_not_there_is_one_clear_line(
    variable: str | None, file: str | None, tmp_path: Path
) -> None:
    environment = dict(os.environ)
    options = ["--name", "J", "localhost", "1"]
    if variable is not None:
        environment["CHAT_PASSWORD"] = variable
    if file is not None:
        options += ["--password-file", str(tmp_path / file)]
    done = client(*options, env=environment)
    assert done.stderr.startswith("chat_client.py: ")
    assert "password" in done.stderr and "connect" not in done.stderr
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)


# Other Pythons


@pytest.mark.parametrize("options", [[], ["--plain"]])
def test_python_of_the_bare_minimum(
    room: Server, terminal: Callable[..., Terminal], options: list[str]
) -> None:
    minimal = patched_client(f"sys.modules.update(dict.fromkeys({NOT_IN_MINIMAL}))")
    other = room.join()
    window = terminal(*minimal, "localhost", str(room.port), *options)
    window.expect("name: ")
    window.type("John\n")
    window.expect("Welcome to the chatroom!\n")
    window.type("hi\nexit\n")
    other.expect("* John joined\n", "John: hi\n", "* John left\n")
    assert window.wait() == 0
    assert "\x1b" not in window.rest()


@pytest.mark.parametrize("missing", [["getpass"], ["termios"], NOT_IN_MINIMAL])
def test_password_that_cannot_be_asked_for_unseen(
    listener: Listener, terminal: Callable[..., Terminal], missing: list[str]
) -> None:
    minimal = patched_client(f"sys.modules.update(dict.fromkeys({missing}))")
    window = terminal(*minimal, "127.0.0.1", str(listener.port), "--plain", "--name", "J")
    listener.accept().send("* password?\n")
    window.expect("the room wants a password; give it with --password-file FILE\n")
    assert window.wait() == 1


def test_python_without_tls(room: Server) -> None:
    minimal = patched_client("sys.modules['ssl'] = None")
    done = finish([*minimal, f"localhost:{room.port}"], typed="John\nhi\n")
    assert (done.stderr, done.returncode) == ("", 0)
    done = finish([*minimal, f"localhost:{room.port}", "--tls", "--name", "J"])
    assert done.stderr == (
        "chat_client.py: this Python was built without TLS; leave out --tls and --tls-ca\n"
    )
    assert done.returncode == 1


def other_pythons() -> list[Any]:
    """Returns a Python whose ssl lacks what PyPy's and LibreSSL's lack, and PyPy itself."""
    return [
        pytest.param(lambda: patched_client("import ssl\ndel ssl.OP_NO_RENEGOTIATION"), id="less"),
        pytest.param(lambda: [needs("pypy3"), str(ROOT / "chat_client.py")], id="pypy3"),
    ]


@pytest.mark.parametrize("command", other_pythons())
@pytest.mark.parametrize("start", ["tls"], indirect=True)
def test_other_pythons_in_a_closed_room(
    start: Callable[..., Server],
    tmp_path: Path,
    terminal: Callable[..., Terminal],
    command: Callable[[], list[str]],
) -> None:
    (tmp_path / "password").write_text("secret\n")
    room = start("chat_server.py", "--password-file", str(tmp_path / "password"))
    place = [f"localhost:{room.port}", *(TRUSTED if room.tls else [])]
    done = finish(
        [*command(), *place, "--password-file", str(tmp_path / "password")], "John\nhi\nexit\n"
    )
    assert done.stdout == "name: John\nWelcome to the chatroom!\nJohn: hi\n"
    assert (done.stderr, done.returncode) == ("", 0)
    window = terminal(*command(), *place, "--name", "Ann", env={**os.environ, "TERM": "xterm"})
    window.expect("password: ")
    window.type("secret\r")
    window.expect("Welcome to the chatroom!")
    window.type("exit\r")
    assert window.wait() == 0


@pytest.mark.parametrize(
    "start, options",
    [("plain", []), ("tls", ["--plain"]), ("tls", None)],
    ids=["editor", "plain", "pipe"],
    indirect=["start"],
)
def test_nothing_that_python_warns_of(
    start: Callable[..., Server],
    tmp_path: Path,
    terminal: Callable[..., Terminal],
    options: list[str] | None,
) -> None:
    (tmp_path / "password").write_text("secret\n")
    room = start("chat_server.py", "--password-file", str(tmp_path / "password"))
    strict = [sys.executable, "-X", "dev", "-W", "error", "-bb", str(ROOT / "chat_client.py")]
    strict += [f"localhost:{room.port}", *(TRUSTED if room.tls else [])]
    if options is None:
        secret = ["--password-file", str(tmp_path / "password")]
        done = finish([*strict, *secret], "John\nhi\n/who\nexit\n")
        assert (done.stderr, done.returncode) == ("", 0)
        done = finish([*strict, *secret, "--name", "a:b"], "hi\n")
        assert (done.stderr.count("\n"), done.returncode) == (1, 1)
        return
    for end in ("exit\r", "\x03"):
        window = terminal(*strict, *options, env={**os.environ, "TERM": "xterm"})
        window.expect("name: ")
        window.type("John\r")
        window.expect("password: ")
        window.type("secret\r")
        window.expect("Welcome to the chatroom!")
        window.type("hi\r/who\r")
        window.expect("* here: John")
        window.type(end)
        rest = window.rest()
        assert window.wait() == 0
        assert "Warning" not in rest and "Error" not in rest


@pytest.mark.parametrize("how", ["close", "reset"])
def test_lost_connection_is_one_clear_line(listener: Listener, how: str) -> None:
    process = launch(
        [*CLIENT, "127.0.0.1", str(listener.port), "--name", "J"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = listener.accept()
    server.send("hi\n")
    assert process.stdout and process.stdout.readline() == "hi\n"
    getattr(server, how)()
    _, errors = process.communicate(timeout=DEADLINE)
    assert errors.startswith("chat_client.py: lost the connection: ")
    assert errors.count("\n") == 1
    assert process.returncode == 1


def test_full_room_is_shown(start: Callable[..., Server]) -> None:
    room = start("chat_server.py", "--max-clients", "1")
    inside = room.join()
    done = client("localhost", room.port, "--name", "J", typed="hi\n")
    inside.close()
    assert done.stdout == "* the room is full\n"
    assert done.stderr == "chat_client.py: not let in: the room is full\n"
    assert done.returncode == 1


def test_a_flood_from_the_server_into_a_slow_pipe_stays_within_bounds(listener: Listener) -> None:
    process = launch(
        [*CLIENT, "127.0.0.1", str(listener.port), "--name", "J"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    server = listener.accept()
    line = b"x" * 999 + b"\n"
    server.send(b"begin\n")
    assert process.stdout and process.stdout.readline() == b"begin\n"
    server.sock.settimeout(0.5)
    sent = 0
    with pytest.raises(socket.timeout):  # nobody reads the pipe, so the client stops reading
        while sent < 100_000_000:
            sent += server.sock.send(line * 64)
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        kilobytes = int(status.read_text().split("VmRSS:")[1].split()[0])
        assert kilobytes < 40_000
    server.close()
    output, _ = process.communicate(timeout=DEADLINE)
    assert len(output) == sent
    process.wait()


def test_input_faster_than_the_server_stays_within_bounds(listener: Listener) -> None:
    process = launch(
        [*CLIENT, "127.0.0.1", str(listener.port), "--name", "J"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    server = listener.accept()
    server.send("a relay\n")
    assert process.stdin
    os.set_blocking(process.stdin.fileno(), False)
    taken, last = 0, time.monotonic()
    data = b"x" * 999 + b"\n"
    while time.monotonic() - last < 0.5 and taken < 50_000_000:
        try:
            taken += os.write(process.stdin.fileno(), data * 4)
            last = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    assert taken < 50_000_000
    process.stdin.close()
    said = server.rest()
    server.close()
    assert said.count(b"x") == taken - taken // 1000
    assert process.wait(DEADLINE) == 0


def test_whoever_leaves_does_not_wait_for_ever(listener: Listener) -> None:
    peers = []
    accepter = threading.Thread(target=lambda: peers.append(listener.accept()))
    accepter.start()
    assert client("127.0.0.1", listener.port, "--echo", typed="quit\n").returncode == 0
    accepter.join()


def test_too_long_lines_are_left_out_and_the_user_told(listener: Listener) -> None:
    results: list[Any] = []
    long = "x" * (MAX_LINE + 1)
    runner = threading.Thread(
        target=lambda: results.append(
            client("127.0.0.1", listener.port, "--name", "J", typed=f"{long}\nshort\n")
        )
    )
    runner.start()
    server = listener.accept()
    server.send(f"a relay\n{long}\n")
    assert server.rest() == b"J: short\n"
    server.close()
    runner.join()
    assert results[0].stdout.count(TOO_LONG) == 2
    assert "xxx" not in results[0].stdout


def test_unread_output_does_not_keep_the_user_from_talking(listener: Listener) -> None:
    process = launch(
        [*CLIENT, "127.0.0.1", str(listener.port), "--name", "J"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    server = listener.accept()
    server.send(b"x" * 999 + b"\n")
    assert process.stdout and process.stdin
    process.stdout.readline()
    server.send((b"x" * 999 + b"\n") * 10)
    eventually(lambda: unread(process.stdout) >= 10_000)
    server.send((b"x" * 999 + b"\n") * 150)  # more than the pipe takes now
    eventually(lambda: unread(process.stdout) >= 50_000)
    process.stdin.write(b"hi\n")
    process.stdin.flush()
    assert server.line() == b"J: hi\n"
    process.kill()
    process.communicate()


def test_what_the_kernel_does_not_take_is_sent_later() -> None:
    sock = Sipping()
    session = unconnected(EchoProtocol(), sock)
    session.protocol.submit(Line("hello"))
    while session.protocol.outgoing:
        session.serve(selectors.EVENT_WRITE)
    assert sock.taken == b"hello\n"


def test_a_welcome_that_comes_late_ends_nothing() -> None:
    session = unconnected(ChatProtocol("John"))
    session.stream_ended = True
    session.receive(WELCOME)
    assert not session.protocol.outgoing
    assert session.stop_waiting not in session.timers


def test_whoever_has_left_is_not_connected_again() -> None:
    """Not even if the server was faster to end than the last words were to go out."""
    session = unconnected(EchoProtocol(), socket.socket())
    session.protocol.outgoing += b"last words\n"
    session.left = True
    session.end("the server closed it")
    with session.sock, pytest.raises(Failure) as caught:
        session.raise_failure()
    assert not isinstance(caught.value, Disconnected)


def test_tries_to_connect_again_are_ever_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    console = FakeConsole("hi")
    turn = Client.turn

    def note_turn(client: Client) -> None:
        assert client.console.status.endswith(" s, lines that wait: 1) ")
        tries.append(client.console.status.split(",")[0])
        clock[0] = min(client.timers.values())
        turn(client)

    tries: list[str] = []
    client: Any = Client(console, ChatProtocol("J"))
    client.was_connected = True
    monkeypatch.setattr(Client, "turn", note_turn)
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    for _ in range(6):
        client.pause()
        client.tell_lost(Disconnected("nobody there"))
    assert console.shown == ["* nobody there"]
    assert tries == [f"(trying again in {pause}.0 s" for pause in (1, 2, 4, 8, 16, 30)]
    assert clock[0] == pytest.approx(61)
    Session(client, socket.socket()).settle()
    assert console.shown.pop() == "* connected again"
    client.pause()
    assert console.status.startswith("(trying again in 1.0 s")


@pytest.mark.parametrize("was_room", [True, False])
def test_where_a_room_was_a_silent_connection_is_not_one_that_lasts(was_room: bool) -> None:
    session = unconnected(ChatProtocol("J"))
    session.protocol.was_room, session.client.trouble = was_room, "lost"
    session.stop_waiting()
    assert (session.client.trouble == "lost") is was_room


def test_a_first_connection_that_fails_is_not_tried_again() -> None:
    client = Client(FakeConsole(), ChatProtocol("J"))
    with pytest.raises(Disconnected, match="nobody listens"):
        client.tell_lost(Disconnected("nobody listens"))


def test_the_last_words_of_a_server_need_no_newline() -> None:
    console = FakeConsole()
    session = unconnected(ChatProtocol("J"), console=console)
    session.receive(b"bye")
    session.receive(b"")
    assert (console.shown, session.lost) == (["bye"], "the server closed it")


def test_name_option_is_only_text(room: Server) -> None:
    other = room.join()
    done = client("localhost", room.port, "--name", b"J\xc3\xb6\x1b[2J\n", typed="hi\n")
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* J\u00f6 joined\n", "J\u00f6: hi\n")


def test_words_that_leave_are_just_words_in_a_message(room: Server) -> None:
    other = room.join()
    lines = ["I quit smoking", "exit here", "quit?", "the /quit command"]
    done = client("localhost", room.port, "--name", "J", typed="".join(f"{one}\n" for one in lines))
    assert done.returncode == 0
    other.expect("* J joined\n", *(f"J: {one}\n" for one in lines), "* J left\n")


def test_more_descriptors_than_select_can_wait_for(room: Server) -> None:
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("not enough descriptors here")
    other = room.join()
    with ExitStack() as opened:
        inherited = [os.dup(2) for _ in range(1100)]
        opened.callback(lambda: [os.close(one) for one in inherited])
        done = client("localhost", room.port, "--name", "J", typed="hi\n", pass_fds=inherited)
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* J joined\n", "J: hi\n", "* J left\n")


def test_an_interrupt_in_the_first_moments_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text(
        "import sys, time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        CLIENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout and process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE)
    assert (errors, process.returncode) == (b"", -signal.SIGINT)


# In a terminal


def test_typed_ahead_lines_are_kept(room: Server, terminal: Callable[..., Terminal]) -> None:
    other = room.join()
    window = terminal(*PLAIN, "localhost", str(room.port))
    window.type("John\nfirst\nsecond\n")
    other.expect("* John joined\n", "John: first\n", "John: second\n")
    window.type("exit\n")
    assert window.wait() == 0


@pytest.mark.parametrize("keys", ["\x04", "quit\n", "\x03"])
def test_ways_to_leave_a_terminal(
    room: Server, terminal: Callable[..., Terminal], keys: str
) -> None:
    window = terminal(*PLAIN, "localhost", str(room.port), "--name", "John")
    window.expect("Welcome to the chatroom!\n")
    room.wait_for_log("connected")
    window.type(keys)
    assert window.wait() == 0
    assert "Traceback" not in window.rest()
    eventually(lambda: "members: 0" in room.log())


@pytest.mark.parametrize("options", [[], ["--plain"]])
@pytest.mark.parametrize("word", ["quit", "exit"])
def test_words_that_leave_are_no_names(
    terminal: Callable[..., Terminal], options: list[str], word: str
) -> None:
    window = terminal(*CLIENT, "localhost", "1", *options, env=XTERM)
    window.expect("name: ")
    window.type(f"{word}\n")
    assert window.wait() == 0
    assert "chat_client.py" not in window.rest()


def test_an_interrupt_is_noticed_whichever_thread_gets_it(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    patch = (
        "import signal, threading\n"
        f"strike = lambda: (open({str(tmp_path / 'go')!r}).read(), signal.raise_signal(2))\n"
        "threading.Thread(target=strike, daemon=True).start()"
    )
    window = terminal(*patched_client(patch), "--plain")
    window.expect("name: ")
    status = Path(f"/proc/{window.process.pid}/stat")
    if status.exists():  # the loop waits before the signal comes
        eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "S")
    (tmp_path / "go").write_text("")
    assert window.wait() == 0
    assert "Traceback" not in window.rest()


def test_interrupt_at_the_name_prompt(terminal: Callable[..., Terminal]) -> None:
    window = terminal(*PLAIN)
    window.expect("name: ")
    window.process.send_signal(signal.SIGINT)
    assert window.wait() == 0
    assert "Traceback" not in window.rest()
