"""The client: what it says, and to whom; what waits; what is lost, and told; how it begins and ends.

Conversations are with its logic, without I/O; the rest runs it in pipes, with files, or in a
pseudo-terminal. What a terminal shows is in test_terminal.py, and keys are in test_editor.py.
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from types import SimpleNamespace
from typing import Any

import pytest
from support import (
    CLIENT,
    DEADLINE,
    NOT_IN_MINIMAL,
    PLAIN,
    ROOT,
    TRUSTED,
    WELCOME,
    XTERM,
    Blocked,
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
    launch,
    needs,
    patched_client,
    unconnected,
)

import chat_client
from chat_client import (
    MAX_LINE,
    NO_PING,
    TOO_LONG,
    ChatProtocol,
    Client,
    Disconnected,
    EchoProtocol,
    Failure,
    Line,
    Session,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's clock, which a test can set."""
    now = [0.0]
    monkeypatch.setattr(chat_client, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


# Every moment at which something can be said


KINDS = {
    "message": "hi {}",
    "command": "/help {}",
    "private": "/msg Ann: psst {}",
    "password": "/op psst {}",
}


class User:
    """Somebody at a client, and the server of that one. Its methods are what can happen."""

    def __init__(self, piped: bool, echo: bool, secret: str) -> None:
        self.piped = piped
        self.listener = Listener()
        options = ["--echo"] if echo else ["--name", "John"]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE} if piped else {}
        environment = {**XTERM, **({"CHAT_PASSWORD": secret} if secret else {})}
        command = [*CLIENT, "127.0.0.1", str(self.listener.port), *options]
        self.window = Terminal(*command, env=environment, **streams)
        self.seen = ""
        if not piped:
            self.see("\x1b[?2004h")  # what is pasted is marked from now on

    def see(self, text: str) -> None:
        self.seen += self.window.expect(text) + text

    def write(self, keys: str) -> None:
        descriptor = self.window.process.stdin.fileno() if self.piped else self.window.master
        os.write(descriptor, keys.encode())

    def meet(self) -> None:
        self.server = self.listener.accept()

    def speak(self) -> None:
        """Says something of each kind in every way: in a pipe; or typed, recalled from the history,
        pasted, and pasted in a block."""
        if self.piped:
            self.write("".join(f"{text.format('piped')}\n" for text in KINDS.values()))
            return
        for kind, text in KINDS.items():
            recall = "\x1b[A\r" if kind != "password" else ""  # that is in no history
            self.write(f"{text.format('typed')}\r{recall}")
            self.write(f"\x1b[200~{text.format('pasted')}\x1b[201~\r")
        block = "\r".join(text.format("block") for text in KINDS.values())
        self.write(f"\x1b[200~{block}\x1b[201~\r\r!")
        self.see("!\x1b7")  # all before it has been read
        self.write("\x7f")

    def hear(self) -> None:
        """The server has got something."""
        self.server.buffer = self.server.line() + self.server.buffer

    def welcome(self) -> None:
        self.server.send(WELCOME)
        self.server.expect("/name John\n")

    def name(self) -> None:
        self.server.send("* you are John\n")

    def ask(self) -> None:
        self.server.send("* password?\n")

    def give(self) -> None:
        """Types the password, where it isn't given already."""
        if not self.piped:
            self.see("password: ")
            self.write("secret\r")

    def get(self) -> None:
        self.server.expect("secret\n")

    def lose(self) -> None:
        self.server.close()

    def miss(self) -> None:
        self.see("(trying again in")

    def relay(self) -> None:
        self.server.send("Ann: hi\n* Ann waves\nWelcome to the chatroom!\n* you are John\n")
        self.see("* you are John")

    def echo(self) -> None:
        """The server answers all that is said, until the user leaves."""
        self.leave()
        heard = b""
        while line := self.server.line():
            heard += line
            self.server.send(line)
        self.server.buffer = heard

    def vanish(self) -> None:
        self.listener.listener.close()
        self.server.half_close()

    def leave(self) -> None:
        if self.piped:
            self.window.process.stdin.close()
        else:
            self.write("exit\r")


LATE = "meet speak hear ask lose give meet ask get welcome name"
SAID = dict.fromkeys(KINDS, "said")
REFUSED = {**dict.fromkeys(KINDS, "refused"), "message": "said"}
LOST = dict.fromkeys(KINDS, "lost")
# How each moment comes, and what becomes of all that is said then, in a terminal and in a pipe,
# where nobody stays without a connection: it goes out; or it is refused, and the user told so at
# once; or it is lost, and told at the end.
MOMENTS = {
    "before a room's first word": ("meet speak welcome name", SAID, SAID),
    "where nobody ever says a word": ("meet speak hear", REFUSED, REFUSED),
    "at the door": ("meet speak ask give get welcome name", SAID, SAID),
    "before the password": ("meet ask give speak get welcome name", SAID, SAID),
    "before a late question": (LATE, REFUSED, None),
    "between welcome and name": ("meet welcome speak name", SAID, SAID),
    "while the room is away": ("meet welcome name lose miss speak meet welcome name", SAID, None),
    "while a relay is away": ("meet relay lose miss speak meet relay", REFUSED, None),
    "with a relay": ("meet relay speak", REFUSED, REFUSED),
    "with an echo server": ("meet speak echo", SAID, SAID),
    "when the room goes for good": ("meet ask give get speak vanish miss", LOST, None),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((moment, piped), id=f"{moment}, {'piped' if piped else 'typed'}")
        for moment, (_, *outcomes) in MOMENTS.items()
        for piped in (False, True)
        if outcomes[piped]
    ],
)
def tried(request: pytest.FixtureRequest) -> Any:
    """Has it come to such a moment; returns that, whether it was in a pipe, the lines that the
    server got, and all that the user has seen."""
    moment, piped = request.param
    steps = MOMENTS[moment][0].split()
    user = User(piped, "echo" in steps, "secret" if piped and "ask" in steps else "")
    try:
        for step in steps:
            getattr(user, step)()
        user.leave()
        said = user.server.rest().decode().splitlines()
        user.server.close()
        return moment, piped, said, user.seen + user.window.rest()
    finally:
        user.window.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_goes_where_it_should_or_the_user_is_told(tried: Any, kind: str) -> None:
    moment, piped, said, seen = tried
    outcome = MOMENTS[moment][1 + piped][kind]
    echo = moment == "with an echo server"
    for way in ["piped"] if piped else ["typed", "pasted", "block"]:
        text = KINDS[kind].format(way)
        hidden = re.sub("(?<=/op ).*", lambda secret: "*" * len(secret[0]), text)
        line = f"John: {text}" if (kind == "message" or way == "block") and not echo else text
        recalled = way == "typed" and kind != "password"
        assert said.count(line) == (1 + recalled if outcome == "said" else 0)
        assert outcome == "said" or not [line for line in said if text in line]
        assert outcome != "refused" or f"* not sent: {hidden} (no chat room" in seen
        assert outcome != "lost" or f"; {hidden}" in seen.rpartition("not sent: ")[2]
        assert kind != "password" or text not in seen or way == "block" or echo


# Conversations


def converse(script: str, chat: ChatProtocol | None = None) -> ChatProtocol:
    """Has a conversation in which each line of a script says what happens next:

    $ NAME PASSWORD   there is somebody of that name at the client; % for a script of that name
    < TEXT            the other side says a line, and it is shown; - if it isn't
    : TEXT            the user types one, which waits as long as it has to; ; in a pasted block
    ? TEXT            the user gives a password
    & NAME            a room welcomes the client, and is asked for that name and two things more
    @                 a room lets the user in
    ~                 the time for an answer is over
    =                 a new connection is made

    After it stand the lines that then go out (>), are shown (|), or both (+), whether it rings the
    bell (^), and why it ends, if it has to (!).
    """
    waiting: list[Line] = []
    script = re.sub("& (.*)", r"< Welcome to the chatroom!\n> /name \1\n> /who\n> /ping", script)
    lines = "\n".join(line.strip() for line in script.splitlines() if line.strip())
    for step in re.split(r"\n(?=[$%<:;?@~=-])", lines):
        event, *results = step.split("\n")
        kind, _, text = event.partition(" ")
        if kind in "$%":
            name, _, password = text.partition(" ")
            chat = ChatProtocol(name, password.encode(), attended=kind == "$")
        chat = chat or ChatProtocol("John")
        happens(chat, kind, text, waiting)
        sent, shown = ([line[2:] for line in results if line[0] in those] for those in (">+", "|+"))
        assert chat.outgoing.decode().splitlines() == sent, event
        assert chat.to_show == [text] * (kind == "<") + shown, event
        assert chat.calls_user == ("^" in results), event
        assert [chat.why] * chat.over == [line[2:] for line in results if line[0] == "!"], event
        chat.outgoing.clear()
        chat.to_show.clear()
        chat.calls_user = False
    assert chat
    return chat


def happens(chat: ChatProtocol, kind: str, text: str, waiting: list[Line]) -> None:
    """Has one thing happen in a conversation."""
    if kind in "<-":
        chat.hear(text)
    elif kind in ":;":
        waiting.append(Line(text, alone=kind == ":"))
    elif kind == "?":
        assert chat.wants_password
        chat.give_password(text.encode())
    elif kind == "~":
        chat.stop_waiting()
    elif kind == "=":
        chat.begin()
    elif kind == "@":
        for line in (chat_client.WELCOME, f"* you are {chat.name}", "* here: John", "* pong"):
            chat.hear(line)
        chat.outgoing.clear()
        chat.to_show.clear()
    while waiting and chat.accepts_input:
        chat.submit(waiting.pop(0))


LETTERS = "x" * 31
TAKEN = """
    & John
    < * John is taken
    > /name John_
    - * you are John_
"""
CONVERSATIONS = {
    "a message has the name before it, and two slashes are one": """
        ~
        : Hi
        + John: Hi
        :
        :   indented
        + John:   indented
        : //shrug
        + John: /shrug
    """,
    "a blank makes no message of a command": """
        @
        :  /msg Ann: psst
        > /msg Ann: psst
        | to Ann (private): psst
        :   //shrug
        + John: /shrug
    """,
    "a command goes to a room or nowhere": """
        < * news
        ~
        : \t/op psst
        | * not sent: /op **** (no chat room has answered; //TEXT says /TEXT)
        < Ann: hi
        < Welcome to the chatroom!
        :  /
        | * not sent: / (no chat room has answered; //TEXT says /TEXT)
        ;  / psst
        | * not sent: / psst (no chat room has answered; //TEXT says /TEXT)
    """,
    "a block of lines is said as it is": """
        @
        ; /quit
        + John: /quit
        ; //x
        + John: //x
        ; exit
        + John: exit
        ;
    """,
    "what is typed waits for the name": """
        : hi
        & John
        < * Ann joined
        - * you are John
        + John: hi
    """,
    "a room may never answer": """
        : hi
        & John
        ~
        + John: hi
    """,
    "a taken name gets an underscore, and is not too long then": f"""
        $ {LETTERS}x
        & {LETTERS}x
        < * {LETTERS}x is taken
        > /name {LETTERS}_
        : hi
        - * you are {LETTERS}_
        + {LETTERS}_: hi
    """,
    "asking for names comes to an end": f"""
        $ {LETTERS}_
        & {LETTERS}_
        < * {LETTERS}_ is taken
        : hi
        + {LETTERS}_: hi
    """,
    "a name that is none is forgotten": """
        $ a:b
        & a:b
        : hi
        < * a name has no colon in it joined
        < * a name has no colon in it: /name NAME
        + a:b: hi
        : /name Ann
        > /name Ann
        < * Ann is taken
    """,
    "a new name is followed": """
        @
        : /name Jim
        > /name Jim
        : hi
        < * you are Jim
        + Jim: hi
    """,
    "only the answer to one's own question is one's name": """
        @
        < * you are Bob joined
        < * you are Bob
        : /nick Zoe
        > /name Zoe
        : hi
        < * John is now Zoe is taken
        < * Zoe is taken
        + John: hi
        : /name
        > /name
        : ho
        + John: ho
    """,
    "a name that was removed is not free": TAKEN
    + """
        < * John was removed
    """,
    "no name is asked for before the last question is answered": TAKEN
    + """
        : /name Jim
        > /name Jim
        < * John left
        < * you are Jim
        : hi
        + Jim: hi
    """,
    "somebody may be faster to take the name": TAKEN
    + """
        < * John left
        > /name John
        < * John is taken
        : /name Jim
        > /name Jim
        < * you are Jim
        < * John left
    """,
    **{
        f"the wanted name is taken when it is free: {freed}": TAKEN
        + f"""
        < * Johnny left
        < * John_ is now John_
        < * John is now JOHN
        < Ann: * John left
        < {freed}
        > /name John
        : hi
        < * you are John
        + John: hi
        < {freed}
    """
        for freed in ("* John left", "* JOHN left", "* John is now Bob")
    },
    "a relay may say what a room says": """
        < Ann: hi
        < Welcome to the chatroom!
        < * password?
        < * you are somebody else
        : hi
        + John: hi
    """,
    "a late welcome is a welcome": """
        ~
        : hi
        + John: hi
        & John
    """,
    "a password is given once, and only where it is asked for first": """
        $ Ann secret
        : hi
        - * password?
        > secret
        ~
        < * password?
        =
        < Bob: hi
        + Ann: hi
        < * password?
    """,
    "what was said before a late question is not the password": """
        $ Ann secret
        ~
        : hi
        + Ann: hi
        - * password?
        ! not let in: the room asked late for its password; nothing was said yet
    """,
    "a wrong password is asked for again": """
        $ Ann wrong
        - * password?
        > wrong
        - * wrong password
        ! wrong password
        =
        - * password?
        ? \ufeffright
        > right
    """,
    "a script has one password": """
        % Ann wrong
        - * password?
        > wrong
        - * wrong password
        ! wrong password
        =
        - * password?
        > wrong
    """,
    "what outlives a connection": """
        - * password?
        ? secret
        > secret
        & John
        - * you are John
        : /name Jim
        > /name Jim
        < * you are Jim
        =
        : hi
        ~
        - * password?
        > secret
        & Jim
        < * Jim is taken
        > /name Jim_
        - * you are Jim_
        + Jim_: hi
        =
        & Jim
    """,
    "whoever is ignored is not heard, under another name and over a new connection": """
        @
        : /ignore
        | * ignored: nobody
        : /ignore  Ann
        | * what Ann says is hidden; /ignore Ann shows it again
        - Ann: John!
        - ANN (private): John!
        < Bob: hi
        < * Ann is now Zoe
        - Zoe: John
        < Anna: hi
        =
        @
        - ann: hi
        : /ignore
        | * ignored: Ann, Zoe
        : /ignore ANN
        | * what ANN says is shown again
        : /ignore zoe
        | * what zoe says is shown again
        < Ann: hi
    """,
    "help tells of what the client does itself": """
        @
        : /help
        > /help
        | * /ignore NAME: hide what NAME says, or show it again
    """,
    "what one says in private looks private": """
        @
        : /msg  Ann Lee :  a: b
        > /msg  Ann Lee :  a: b
        | to Ann Lee (private): a: b
        : /msg Ann
        > /msg Ann
        : /msg Ann:
        > /msg Ann:
        : /msg : x
        > /msg : x
    """,
    "only the answers to questions of our own are hidden": """
        & John
        - * you are John
        - * here: John and 2 unnamed
        - * pong
        : /who
        > /who
        < * here: John
        : /ping
        > /ping
        < * pong
    """,
    "an older room knows no ping": f"""
        & John
        - * you are John
        - {NO_PING}
        : /foo
        > /foo
        < {NO_PING}
    """,
    "the bell is for the user's name in what somebody says, and for what is private": """
        @
        < Ann: hi john!
        ^
        < hello John
        ^
        < Ann (private): hi
        ^
        < Ann (private) hi
        < Ann: johnny
        < John: hi
        < * John is now Jim
    """,
}


@pytest.mark.parametrize("script", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_conversation(script: str) -> None:
    converse(script)


def test_an_echo_server_answers_each_line() -> None:
    script = """
        : test
        > test
        : /x
        - test
        > /x
        | recv: test
    """
    converse(script, EchoProtocol())


@pytest.mark.parametrize(
    "line",
    [
        "* you were removed by an operator joined",
        "* you were removed by an operator; come back in 10 min joined",
        "* you were removed by an operator; come back in 10 min is now Bob",
        "* Bob is now you were removed by an operator; come back in 10 min",
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
    chat = converse(f"{TAKEN}\n- * here: John\n- * pong\n< {line}")
    assert not chat.hopeless
    assert chat.candidates("") == ["John"]


def test_who_is_there_is_learnt_from_all_that_is_said() -> None:
    chat = converse("@")
    heard = ["Anna: hi", "Ann (private): hi", "* Anton joined", "* Bob is now An", "Zoe: Anne: hi"]
    heard += ["* here: Angus, John, 5 more and 2 unnamed", "John: in another window"]
    for line in [*heard, "* here: 2 unnamed", "* the room is closing", "* Anton left"]:
        chat.hear(line)
    assert chat.candidates("an") == ["An", "Ann", "Anna", "Angus"]
    assert chat.candidates("jo") == chat.candidates("5") == []


def test_names_that_are_remembered_have_a_limit() -> None:
    chat = converse("@")
    for number in range(chat_client.MAX_NAMES + 10):
        chat.hear(f"name {number}: hi")
    assert len(chat.candidates("name")) == chat_client.MAX_NAMES
    assert chat.candidates("name")[0] == f"name {chat_client.MAX_NAMES + 9}"


def test_what_is_too_long_for_a_room_is_told_before() -> None:
    chat = converse("@")
    chat.submit(Line("x" * (chat_client.MAX_MESSAGE - len("John: "))))
    chat.submit(Line("\xe4" * (chat_client.MAX_MESSAGE // 2 - 2)))
    assert len(chat.outgoing) == chat_client.MAX_MESSAGE + 1
    assert chat.to_show[-1] == "* not said: a line of 8194 bytes; a room takes 8192"


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
    assert chat_client.terminal_text(line) == text


# Sessions: what has arrived, what is told, what is waited for


def speak(session: Session, *lines: str) -> None:
    """The user says lines, and all that the client has to say goes out."""
    session.console.typed.extend(map(Line, lines))
    session.forward_typed()
    send_all(session)
    session.ask()
    send_all(session)


def send_all(session: Session) -> None:
    while session.protocol.outgoing:
        session.serve(EVENT_WRITE)


def lines_in_doubt(session: Session, lost: str = "reset") -> list[str]:
    session.end(lost)
    session.close_ledger()
    session.over = False
    return session.console.doubtful


def session_of(*heard: bytes, sip: int = 10_000) -> tuple[Session, Sipping, FakeConsole]:
    """Returns a session of J's who has heard that, its socket and its console."""
    sock, console = Sipping(sip), FakeConsole()
    session = unconnected(ChatProtocol("J"), console=console, sock=sock)
    session.receive(b"".join(heard))
    send_all(session)
    return session, sock, console


IN_A_ROOM = WELCOME + b"* you are J\n* here: J\n* pong\n"


def test_what_a_relay_has_read_is_guessed(clock: list[float]) -> None:
    """It speaks, and some time before had been sent what was said."""
    session, _, _ = session_of(b"a relay\n")
    speak(session, "ab", "cd")
    speak(session, "ef")
    clock[0] += 0.9 * chat_client.READ_TIME
    session.receive(b"Ann: hi\n")
    assert lines_in_doubt(session) == ["ab", "cd", "ef"]
    clock[0] += 0.1 * chat_client.READ_TIME
    session.receive(b"Ann: hi\n")
    assert lines_in_doubt(session) == ["ef"]
    assert lines_in_doubt(session, lost="") == []


def test_what_a_room_has_heard_is_known() -> None:
    session, sock, console = session_of(IN_A_ROOM)
    speak(session, "one", "/msg Ann: psst")
    speak(session, "two")
    assert sock.taken.endswith(b"J: one\n/msg Ann: psst\n/ping\nJ: two\n")
    assert lines_in_doubt(session) == ["one", "/msg Ann: psst", "two"]
    session.receive(b"* pong\n")
    assert lines_in_doubt(session) == ["two"]
    speak(session)
    assert sock.taken.endswith(b"J: two\n/ping\n")
    session.receive(b"* pong\n* you were removed by an operator; come back in 10 min\n")
    assert lines_in_doubt(session, "the server closed it") == []
    assert not [line for line in console.shown if "pong" in line]


def test_a_room_that_knows_no_ping_is_asked_once() -> None:
    session, sock, _ = session_of(WELCOME, b"* you are J\n", f"{NO_PING}\n".encode())
    speak(session, "one", "two")
    assert sock.taken == b"/name J\n/who\n/ping\nJ: one\nJ: two\n"


def test_a_room_that_is_asked_and_silent_is_lost(clock: list[float]) -> None:
    def pass_time(seconds: float) -> None:
        clock[0] += seconds
        session.client.do_what_is_due()

    session, _, console = session_of(IN_A_ROOM)
    pass_time(10 * chat_client.LOST_TIME)
    speak(session, "one")
    for heard in (b"Ann: hi\n", b"Ann: ho\n"):  # the network lives
        pass_time(0.9 * chat_client.LOST_TIME)
        session.receive(heard)
    session.receive(b"* pong\n")
    pass_time(10 * chat_client.LOST_TIME)
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_bytes_that_nobody_has_acknowledged() -> None:
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
    session, _, console = session_of(b"a relay\n")
    speak(session, "one")
    monkeypatch.setattr(chat_client, "unacknowledged", lambda sock: 1)
    for ended, doubtful in ((True, []), (False, ["one"])):
        session.stream_ended = ended
        session.close_ledger()
        assert console.doubtful == doubtful


def test_what_was_said_to_a_server_that_vanishes_is_kept_or_told() -> None:
    session, _, console = session_of(b"a relay\n", sip=len(b"J: one\nJ: t"))
    console.typed.extend(map(Line, ["one", "two", "three"]))
    session.forward_typed()
    session.serve(EVENT_WRITE)
    session.end("reset")
    console.typed.append(Line("four"))
    session.close_ledger()
    assert console.unsent() == ["two", "three", "four"]
    console.shown.clear()
    for _ in range(2):  # told once
        session.client.tell_lost(Disconnected("lost the connection: reset"))
        session.client.note_unsent()
    assert console.shown == [
        "* lost the connection: reset",
        "* what you said last may not have arrived:",
        "*   one",
        "* not sent yet: two",
        "* not sent yet: three",
        "* not sent yet: four",
    ]
    Session(session.client, Sipping()).forward_typed()  # type: ignore[arg-type]
    console.shown.clear()
    console.typed.append(Line("five"))
    session.client.note_unsent()
    assert console.shown == ["* not sent yet: five"]


def test_whoever_wants_out_is_kept_no_longer_by_what_the_server_asks(clock: list[float]) -> None:
    session = unconnected(ChatProtocol("J"), console=FakeConsole("exit"))
    session.see_off()
    for heard in (WELCOME, b"* J is taken\n", b"* J_ is taken\n"):
        clock[0] += 0.1
        session.receive(heard)
        session.see_off()
    assert session.timers[session.go] == chat_client.LINGER


def test_whoever_leaves_has_time_as_long_as_something_goes_out(clock: list[float]) -> None:
    session, sock, console = session_of(b"a relay\n", sip=3)
    console.typed.extend(map(Line, ["last words", "exit"]))
    session.forward_typed()
    while session.protocol.outgoing:
        clock[0] += 0.9 * chat_client.LINGER
        assert session.left and session.timers[session.go] > clock[0]
        session.serve(EVENT_WRITE)
    assert sock.taken == b"J: last words\n"


def test_an_answer_gives_whoever_wants_out_time_for_the_next_line() -> None:
    session = unconnected(EchoProtocol(), console=FakeConsole("one", "two", "exit"))
    session.forward_typed()
    session.see_off()
    assert session.go in session.timers
    session.receive(b"one\n")
    session.see_off()
    assert session.go not in session.timers
    assert session.console.typed[0].text == "two"


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


def test_while_tls_has_to_send_nothing_else_is_waited_for() -> None:
    session = unconnected(EchoProtocol(), Blocked())
    session.serve(EVENT_READ)
    assert (session.events(), session.over) == (EVENT_WRITE, False)


@pytest.mark.parametrize("took, patience", [(0.01, 0.5), (0.5, 2.0), (9.0, 10.0)])
def test_how_long_a_first_word_is_waited_for(
    took: float, patience: float, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect_to(address: Any, sock: socket.socket) -> socket.socket:
        clock[0] += took
        return sock

    client = Client(FakeConsole(ended=True), ChatProtocol("J"))
    monkeypatch.setattr(client, "look_up", lambda: [(socket.AF_INET, 1, 0, "", ("127.0.0.1", 1))])
    monkeypatch.setattr(client, "connect_to", connect_to)
    with client.connect() as sock:
        session = Session(client, sock)
        session.see_off()
        assert session.timers[session.go] == clock[0] + max(chat_client.LINGER, patience)
        waits = []

        def turn(*_: object) -> None:
            waits.append(session.timers[session.stop_waiting] - clock[0])
            session.go()

        monkeypatch.setattr(client, "turn", turn)
        session.run()
        assert waits == [pytest.approx(patience)]


def test_in_a_room_an_unfinished_line_is_only_late(clock: list[float]) -> None:
    session = unconnected(ChatProtocol("J"))
    session.receive(b"An")
    assert session.timers[session.hear_rest] == chat_client.UNFINISHED_TIME
    for first_word in (WELCOME, b"* password?\n", b"* wrong password\n", WELCOME + b"Ann: hal"):
        session.framer.partial = b""
        session.receive(first_word[:-2])
        assert session.hear_rest not in session.timers


def test_what_is_due_can_be_dropped_by_what_was_due_before_it() -> None:
    client = Client(FakeConsole(), ChatProtocol("J"))
    done = []

    def first() -> None:
        done.append("first")
        del client.timers[second]

    def second() -> None:
        done.append("second")

    client.timers.update({first: 0.0, second: 0.0})
    client.do_what_is_due()
    assert (done, client.timers) == (["first"], {})


# Connecting


def test_each_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = socket.socket()  # bound, but nobody listens
    dead.bind(("127.0.0.1", 0))
    with dead, socket.create_server(("127.0.0.1", 0)) as alive:
        client = Client(FakeConsole(), ChatProtocol("J"))
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        addresses = [(*kind, one.getsockname()) for one in (dead, alive)]
        tried: list[socket.socket] = []
        connect_to = client.connect_to

        def note_and_connect(address: Any, sock: socket.socket) -> None:
            tried.append(sock)
            connect_to(address, sock)

        monkeypatch.setattr(client, "look_up", lambda: addresses)
        monkeypatch.setattr(client, "connect_to", note_and_connect)
        with client.connect() as sock:
            assert sock.getpeername() == alive.getsockname()
            first, second = tried
            assert (first.fileno(), second) == (-1, sock), "one that failed costs no descriptor"


def test_tries_to_connect_again_are_ever_rarer(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([Disconnected("nobody there")] * 6)
    console = FakeConsole("hi")

    def turn() -> None:
        assert client.console.status.startswith("(trying again in")
        tries.setdefault(client.console.status)
        clock[0] += 0.3
        client.do_what_is_due()

    def connect() -> str:
        for failure in failures:
            raise failure
        return "connected"

    tries: dict[str, None] = {}
    client: Any = Client(console, ChatProtocol("J"))
    monkeypatch.setattr(client, "turn", turn)
    monkeypatch.setattr(client, "connect", connect)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    assert client.reconnect() == "connected"
    assert console.shown == ["* not sent yet: hi", "* nobody there"]
    assert list(tries) == [f"(trying again in {pause}.0 s) " for pause in (1, 2, 4, 8, 16, 30)]
    assert clock[0] == pytest.approx(91, abs=3)
    Session(client, socket.socket()).settle()
    assert console.shown.pop() == "* connected again"
    assert client.reconnect() == "connected"
    assert console.status == "(trying again in 1.0 s) "


NOBODY = "nobody listens there"
START = "start the server with: python3 chat_server.py"
REFUSAL = f"{NOBODY} for other hosts; {START} --host ::"
SILENCE = "no answer; is it switched on, and does its firewall let port 7007 through?"
WAYS_TO_FAIL = [
    ([errno.ECONNREFUSED], True, f"{NOBODY}; {START}"),
    ([errno.ECONNREFUSED, errno.ENETUNREACH], False, REFUSAL),
    ([errno.ETIMEDOUT], False, SILENCE),
    ([errno.ENETUNREACH], False, "no way there; is this machine in a network that leads to it?"),
    ([errno.EHOSTUNREACH], False, "no way there; is it switched on, and in the same network?"),
    ([errno.EINVAL], False, "an address fe80:... needs its interface, such as fe80::1%eth0"),
    ([errno.EPERM], False, "this machine's firewall forbids it"),
    ([errno.EMFILE], False, os.strerror(errno.EMFILE)),
]


@pytest.mark.parametrize("codes, here, why", WAYS_TO_FAIL)
def test_why_there_is_no_connection(codes: list[int], here: bool, why: str) -> None:
    assert chat_client.why_not_connected(codes, 7007, "chat_server.py", here) == why


def test_nobody_is_told_how_to_start_a_server_that_was_there() -> None:
    client = Client(FakeConsole(), ChatProtocol("J"), "127.0.0.1", free_port())
    client.tell_lost(Disconnected("lost the connection: the server closed it"))
    with pytest.raises(Disconnected, match="nobody listens there$"):
        client.connect()


def test_addresses_that_only_this_machine_can_have() -> None:
    for address in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"):
        assert chat_client.is_loopback(address)
    for address in ("192.0.2.7", "::2", "fe80::1%lo"):
        assert not chat_client.is_loopback(address)


def test_nobody_listening_is_one_clear_line() -> None:
    port = free_port()
    for options, script in (["--name", "J"], "chat_server.py"), (["--echo"], "echo_server.py"):
        done = client("127.0.0.1", port, *options)
        assert done.stderr == (
            f"chat_client.py: cannot connect to port {port} on 127.0.0.1: "
            f"nobody listens there; start the server with: python3 {script} --port {port}\n"
        )
        assert done.returncode == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70, "::x"])
def test_unknown_host_is_one_clear_line(host: str) -> None:
    done = client(host, "--name", "J")
    why = [
        chat_client.why_no_address(socket.gaierror(code, "trouble"), host)
        for code in (socket.EAI_NONAME, socket.EAI_AGAIN)
    ]
    assert why[0] == f"host {host} is unknown; check its name, or give its address"
    assert why[1].startswith(f"no name server answers for {host}; check the network, or")
    assert done.stderr in [f"chat_client.py: {one}\n" for one in why]
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


def test_without_a_thread_the_lookup_is_made_in_the_loop(room: Server) -> None:
    no_thread = (
        "import threading\ndef refuse(*_, **__):\n    raise RuntimeError\nthreading.Thread = refuse"
    )
    done = finish([*patched_client(no_thread), f"localhost:{room.port}"], typed="John\nhi\n")
    assert (done.stderr, done.returncode) == ("", 0)


# In pipes


def test_walk_through_in_a_pipe(room: Server) -> None:
    other = room.join()
    lines = ["Hi", "I quit smoking", "exit here", "the /quit command"]
    typed = "".join(f"{line}\n" for line in ["John", *lines, " exit ", "unsaid"])
    done = client("localhost", room.port, typed=typed)
    said = [f"John: {line}\n" for line in lines]
    assert done.stdout == "name: John\nWelcome to the chatroom!\n" + "".join(said)
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* John joined\n", *said, "* John left\n")


# What a server says at once, and when all is said; how it ends; what is typed and the server then
# gets; and what the client says at its end, with the exit status 1, or nothing, with 0.
NO_PASSWORD = "the room wants a password; give it with --password-file FILE"
FULL, TLS = "the room is full", "this room speaks TLS; use --tls"
BROKEN = "lost the connection: "
LONG = "x" * (MAX_LINE + 1)
MANY = "".join(f"J: {number}\n" for number in range(2000))
ENDS = {
    "full": (f"* {FULL}\n", "", "close", "hi\n", None, f"not let in: {FULL}"),
    "full, late": ("", f"* {FULL}\n", "close", "hi\n", "J: hi\n", f"not let in: {FULL}"),
    "TLS": (f"* {TLS}\n", "", "close", "hi\n", None, f"not let in: {TLS}"),
    "password": ("", "* password?\n", "close", "hi\n", "J: hi\n", NO_PASSWORD),
    "relay": ("Ann: hi\n* Ann waves\n", "one\ntwo", "close", "hi", "J: hi\n", ""),
    "all": ("a relay\n", "", "close", MANY.replace("J: ", "") + "last", f"{MANY}J: last\n", ""),
    "silent room": (WELCOME.decode(), "", "close", "hi\n", "/name J\nJ: hi\n", ""),
    "too long": (f"a relay\n{LONG}\n", "", "close", f"{LONG}\nshort\n", "J: short\n", ""),
    "reset": ("a relay\n", "", "reset", "hi\nexit\n", "J: hi\n", BROKEN),
    "reset, nothing to lose": ("a relay\n", "", "reset", "exit\n", "", ""),
    "reset, nothing said": ("a relay\n", "", "reset", "", "", BROKEN),
    "reset without a word": ("", "", "reset", "hi\n", "J: hi\n", BROKEN),
    "TLS alert": ("", "\x15\x03\x01\0\2\2\x46", "close", "hi\n", "J: hi\n", BROKEN),
}


@pytest.mark.parametrize("at_once, at_last, end, typed, said, why", ENDS.values(), ids=list(ENDS))
def test_ends_of_a_client_in_a_pipe(
    listener: Listener, at_once: str, at_last: str, end: str, typed: str, said: str, why: str
) -> None:
    heard: list[bytes] = []

    def serve(server: Peer) -> None:
        server.send(at_once)
        if said is not None:
            heard.append(server.rest())
        with suppress(OSError):  # the client may have gone
            server.send(at_last)
        getattr(server, end)()

    listener.serve(serve)
    done = client("127.0.0.1", listener.port, "--name", "J", typed=typed)
    assert heard == ([] if said is None else [said.encode()])
    assert done.stderr.startswith(f"chat_client.py: {why}" if why else "")
    assert (done.stderr.count("\n"), done.returncode) == ((1, 1) if why else (0, 0))
    for line in (at_once + at_last).splitlines():
        if not line.startswith(("\x15", "* password?")):
            assert f"{line if len(line) < MAX_LINE else TOO_LONG}\n" in done.stdout


def test_echo_in_a_pipe(echo: Server) -> None:
    done = client("localhost", echo.port, "--echo", typed="test\n\ngrüße\nquit\nmore\n")
    assert (
        done.stdout
        == "send: test\nrecv: test\nsend: \nrecv: \nsend: grüße\nrecv: grüße\nsend: quit\n"
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    "typed, shown", [("a\nquit\n", "send: a\nsend: quit\n"), ("quit\n", "send: quit\n")]
)
def test_echo_goes_on_when_there_is_no_answer(listener: Listener, typed: str, shown: str) -> None:
    done = client("127.0.0.1", listener.port, "--echo", typed=typed)
    assert (done.stdout, done.returncode) == (shown, 0)


def begin(listener: Listener, **streams: Any) -> tuple[Any, Peer]:
    """Returns a client of a relay, in pipes, and its server."""
    command = [*CLIENT, "127.0.0.1", str(listener.port), "--name", "J"]
    process = launch(command, **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **streams})
    return process, listener.accept()


def test_a_server_that_drips_does_not_keep_the_user(listener: Listener) -> None:
    process, server = begin(listener, stdout=subprocess.DEVNULL)
    with process:
        process.stdin.write(b"hi\nexit\n")
        process.stdin.close()
        server.sock.settimeout(0.1)
        said = b""
        deadline = time.monotonic() + DEADLINE
        while not said and time.monotonic() < deadline:
            server.send("* no welcome\n")
            with suppress(socket.timeout):
                said = server.sock.recv(99)
        server.close()
    assert said == b"J: hi\n"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_unfinished_line_is_shown_after_a_silence(listener: Listener, how: str) -> None:
    process, server = begin(listener, stderr=subprocess.PIPE)
    server.send("What do you want?")
    assert process.stdout.readline() == b"What do you want?\n"
    server.send(" More?\n")
    assert process.stdout.readline() == b" More?\n"
    getattr(server, how)()
    _, errors = process.communicate(timeout=DEADLINE)
    assert errors.startswith(b"chat_client.py: lost the connection: ")
    assert (errors.count(b"\n"), process.returncode) == (1, 1)


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


@pytest.mark.parametrize("typed", ["", "\n  \n", "/msg Ann: psst"])
def test_no_name_in_a_pipe_is_one_clear_line_before_connecting(typed: str) -> None:
    done = client("203.0.113.1", typed=typed)
    assert done.stderr == (
        "chat_client.py: no name was given; use --name NAME, or the first line of the input\n"
    )
    assert (done.stdout.count("name: "), done.returncode) == (typed.count("\n") + 1, 1)


@pytest.mark.parametrize("options", [[], ["--name", b"J\x1b[2J\n"]])
def test_the_mark_at_the_start_of_the_input_is_no_text(room: Server, options: list[Any]) -> None:
    other = room.join()
    name = "" if options else "J\n"
    done = client("localhost", room.port, *options, typed=f"\ufeff{name}/name Jim\n\ufeffhi\n")
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* J joined\n", "* J is now Jim\n", "Jim: \ufeffhi\n", "* Jim left\n")


def test_standard_input_can_be_a_file(room: Server, tmp_path: Path) -> None:
    other = room.join()
    (tmp_path / "input").write_text("from a file\n")
    for path in (tmp_path / "input", Path(os.devnull)):
        with path.open("rb") as file:
            done = client("localhost", room.port, "--name", "J", stdin=file)
        assert (done.stdout[: len(WELCOME)], done.stderr) == (WELCOME.decode(), "")
        assert done.returncode == 0
    other.expect("* J joined\n", "J: from a file\n", *["* J left\n", "* J joined\n"], "* J left\n")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_standard_streams_that_were_never_open(room: Server, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    done = client("localhost", room.port, "--name", "J", preexec_fn=close)
    without_output = "chat_client.py: standard output is closed\n"
    assert done.stdout == ("" if 1 in closed else WELCOME.decode())
    assert done.stderr == (without_output if closed == (1,) else "")
    assert done.returncode == (1 if 1 in closed else 0)


def test_thread_that_feeds_standard_input_where_only_sockets_can_be_waited_for(
    room: Server, tmp_path: Path
) -> None:
    """As on Windows, but here."""
    other = room.join()
    windows = patched_client("import chat_client\nchat_client.ONLY_SOCKETS = True")
    done = finish([*windows, "localhost", str(room.port)], "John\nHi\nexit\n")
    assert done.stdout == "name: John\nWelcome to the chatroom!\nJohn: Hi\n"
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* John joined\n", "John: Hi\n", "* John left\n")


@pytest.mark.parametrize("closed", ["before", "meanwhile"])
def test_closed_standard_output_is_one_clear_line(listener: Listener, closed: str) -> None:
    read_end, write_end = os.pipe()
    if closed == "before":
        os.close(read_end)
    process, server = begin(listener, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    server.send("one\n")
    if closed == "meanwhile":
        assert os.read(read_end, 100) == b"one\n"
        os.close(read_end)
        server.send("two\n")
    _, errors = process.communicate(timeout=DEADLINE)
    assert errors == b"chat_client.py: standard output is closed\n"
    assert process.returncode == 1


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


def test_a_flood_from_the_server_into_a_slow_pipe_stays_within_bounds(listener: Listener) -> None:
    process, server = begin(listener)
    line = b"x" * 999 + b"\n"
    server.send(b"begin\n")
    assert process.stdout.readline() == b"begin\n"
    server.sock.settimeout(0.5)
    sent = 0
    with pytest.raises(socket.timeout):  # nobody reads the pipe, so the client stops reading
        while sent < 100_000_000:
            sent += server.sock.send(line * 64)
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        kilobytes = int(status.read_text().split("VmRSS:")[1].split()[0])
        assert kilobytes < 40_000
    process.stdin.write(b"hi\n")  # which is no reason not to be heard
    process.stdin.flush()
    server.sock.settimeout(DEADLINE)
    assert server.line() == b"J: hi\n"
    server.close()
    output, _ = process.communicate(timeout=DEADLINE)
    assert len(output.replace(b"J: hi\n", b"")) == sent


def test_input_faster_than_the_server_stays_within_bounds(listener: Listener) -> None:
    process, server = begin(listener, stdout=subprocess.DEVNULL)
    server.send("a relay\n")
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


# At a plain terminal


@pytest.mark.parametrize("options", [[], ["--plain"]])
@pytest.mark.parametrize("keys", ["\x04", "\x03", "quit\n", "exit\n", "signal"])
def test_ways_to_leave_at_the_name_prompt(
    terminal: Callable[..., Terminal], options: list[str], keys: str
) -> None:
    window = terminal(*CLIENT, "localhost", "1", *options, env=XTERM)
    window.expect("name: ")
    if keys == "signal":
        window.process.send_signal(signal.SIGINT)
    else:
        window.type(keys)
    assert window.wait() == 0
    rest = window.rest()
    assert "Traceback" not in rest and "chat_client.py" not in rest


@pytest.mark.parametrize("keys", ["\x04", "quit\n", "\x03"])
def test_ways_to_leave_a_plain_terminal(
    room: Server, terminal: Callable[..., Terminal], keys: str
) -> None:
    window = terminal(*PLAIN, "localhost", str(room.port), "--name", "John")
    window.expect("Welcome to the chatroom!\n")
    room.wait_for_log("connected")
    window.type(keys)
    assert window.wait() == 0
    assert "Traceback" not in window.rest()
    eventually(lambda: room.count() == 0)


def test_names_that_are_none_at_a_terminal(room: Server, terminal: Callable[..., Terminal]) -> None:
    other = room.join()
    window = terminal(*PLAIN, "localhost", str(room.port))
    window.expect("name: ")
    window.type("/msg Ann: psst\n")
    window.expect("* a name does not begin with a slash\nname: ")
    window.type("a:b\n")  # whoever sits there can choose another
    window.expect("* a name has letters and digits")
    window.type("/name Ann\n")
    other.expect("* Ann joined\n")


@pytest.mark.parametrize("options", [[], ["--plain"]])
def test_a_silent_name_server_does_not_freeze_the_keys(
    terminal: Callable[..., Terminal], options: list[str]
) -> None:
    silent = "import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(600)"
    command = [*patched_client(silent), "lab1", *options]
    window = terminal(*command, env=XTERM)
    window.expect("name: ")
    window.type("J\r")
    window.expect("J\n")
    tasks = Path(f"/proc/{window.process.pid}/task")
    eventually(lambda: not tasks.exists() or len(list(tasks.iterdir())) > 1, "a lookup")
    window.type("hi")
    window.expect("hi")
    window.type("\x15\x03")
    assert window.wait() == 0
    assert "Traceback" not in window.rest()


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
        (["7007"], "7007 is a port; type the host first: localhost 7007"),
        (["7100", "lab1"], "7100 is a port; type the host first: lab1 7100"),
        (["-p7100", "localhost"], "there is no option -p"),
        (["--host=lab1", "7100"], "there is no option --host"),
        (["lab1", "seven"], "seven is not a port; those go from 0 to 65535"),
        (["lab1:70000"], "70000 is not a port; those go from 0 to 65535"),
        (["lab1:0"], "nobody can listen on port 0"),
        (["lab1:"], "no port is given after lab1"),
        ([":7007"], "no host is given"),
        ([""], "no host is given"),
        (["lab1:1", "2"], "the port is given twice, in lab1:1 and as 2"),
        (["[::1]:1", "1"], "the port is given twice, in [::1]:1 and as 1"),
        (["lab1 7007"], "lab1 7007 is not a host; type its name or address alone"),
        (["tcp://lab1:7007"], "tcp://lab1:7007 is not a host; type its name or address alone"),
        (["lab1/"], "lab1/ is not a host; type its name or address alone"),
        (["me@lab1"], "me@lab1 is not a host; type its name or address alone"),
        (["[::1"], "[::1 is not a host; type its name or address alone"),
        (["[]:7"], "[]:7 is not a host; type its name or address alone"),
        (["lab1", "7007", "John"], "too many arguments"),
        (["--name", ""], "argument --name: no name is given"),
        (["--name", "\x1b[2J\x07 "], "argument --name: no name is given"),
        (["--name", " /msg"], "argument --name: a name does not begin with a slash"),
    ],
)
def test_wrong_words_are_exit_status_2(
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
    environment = os.environ if variable is None else {**os.environ, "CHAT_PASSWORD": variable}
    options = [] if file is None else ["--password-file", str(tmp_path / file)]
    done = client("--name", "J", "localhost", "1", *options, env=environment)
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


@pytest.mark.parametrize("missing", ["getpass", "termios"])
def test_password_that_cannot_be_asked_for_unseen(
    listener: Listener, terminal: Callable[..., Terminal], missing: str
) -> None:
    minimal = patched_client(f"sys.modules[{missing!r}] = None")
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


STRICT = ["-X", "dev", "-W", "error", "-bb"]
PYTHONS = {  # the one whose ssl lacks what PyPy's and LibreSSL's lack; and where each warning counts
    "less": lambda: patched_client("import ssl\ndel ssl.OP_NO_RENEGOTIATION"),
    "pypy3": lambda: [needs("pypy3"), str(ROOT / "chat_client.py")],
    "strict": lambda: [sys.executable, *STRICT, str(ROOT / "chat_client.py")],
}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("start", ["tls"], indirect=True)
def test_other_pythons_in_a_closed_room(
    start: Callable[..., Server], tmp_path: Path, terminal: Callable[..., Terminal], python: str
) -> None:
    secret = tmp_path / "password"
    secret.write_text("secret\n")
    room = start("chat_server.py", "--password-file", str(secret))
    command = [*PYTHONS[python](), f"localhost:{room.port}", *TRUSTED]
    done = finish([*command, "--password-file", str(secret)], "John\nhi\nexit\n")
    assert done.stdout == "name: John\nWelcome to the chatroom!\nJohn: hi\n"
    assert (done.stderr, done.returncode) == ("", 0)
    for options in ([], ["--plain"]) if python == "strict" else [[]]:
        window = terminal(*command, *options, "--name", "Ann", env=XTERM)
        window.expect("password: ")
        window.type("secret\r")
        window.expect("Welcome to the chatroom!")
        window.type("hi\r/who\r")
        window.expect("* here: Ann")
        window.type("exit\r")
        rest = window.rest()
        assert window.wait() == 0
        assert "Warning" not in rest and "Error" not in rest
