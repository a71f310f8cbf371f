"""The client: what it says, and to whom; what waits; what is lost, and told; how it ends.

Conversations are with its logic, without I/O; the rest runs it in pipes, with files, or in a
pseudo-terminal. What a terminal shows is in test_terminal.py, and keys are in test_editor.py.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import support
from support import CLIENT, DEADLINE, FakeConsole, Listener, Run, Server, client, finish, welcome

import chat_client
from chat_client import MAX_LINE, MAX_WAITING, TOO_LONG, ChatProtocol, Client, EchoProtocol, Line

# Conversations


class Network(socket.socket):
    """A connection: what is said to the client is put in, and what it sends can be read."""

    said: bytes | OSError = b""
    room = 1 << 20  # bytes that the system takes
    sent = b""

    def recv(self, size: int, flags: int = 0) -> bytes:
        if isinstance(self.said, OSError):
            raise self.said
        return self.said

    def send(self, data: Any, flags: int = 0) -> int:
        taken = bytes(data[: self.room])
        self.sent += taken
        self.room -= len(taken)
        return len(taken)


EVENTS = "<:;?.@~x=/#*_-"  # what the steps of a script begin with
SHORT = {  # what stands between two lines, or there for several
    r" {3,}(?=(?:[<:;?.@~x=/#*_>|+!-]|&[&=]?)(?: |$)|[\^(])": "\n",
    "&& (.*)": r"& \1\n< * \1 is taken\n> /name \1_\n< * you are \1_",
    "&= (.*)": r"- Welcome to the chatroom!\n| * connected again\n| Welcome to the chatroom!"
    r"\n> /name \1\n> /who",
    "& (.*)": r"< Welcome to the chatroom!\n> /name \1\n> /who",
}


class Conversation:
    """A client whose clock, connections and user follow a script. Each step of that says what
    happens next:

    $ NAME PASSWORD   there is somebody of that name at the client; % for a script of that name
    (echo)            there is somebody who talks to an echo server; % (echo) for a script
    < TEXT            the other side says a line, and it is shown; - if it isn't; _ without its end
    : TEXT            the user types one, which waits as long as it has to; ; in a pasted block
    ? TEXT            the user gives a password
    .                 the user has nothing more to say
    & NAME            a room welcomes the client, and is asked for that name and who is there
    && NAME           the same, but that name is taken, and another is
    &= NAME           the same as with one &, but the client was connected before
    @                 a room lets the user in
    ~ SECONDS         time passes
    x WHY             the connection is lost; without a reason, the other side closes it
    =                 there is another
    / BYTES           of what is sent, the system takes no more than that
    # BYTES           nobody has read so much of what is shown
    * BYTES           the other side has yet to acknowledge so much

    A step of which nothing comes has the next beside it. Beside or below the others stand the lines
    that then go out (>), are shown (|), or both (+); which the user is told that may not have
    arrived, in brackets; whether it rings the bell (^); and how it ends (!). Where nothing else is
    said of /ping, it may be sent.
    """

    def __init__(self, script: str) -> None:
        for short, long in SHORT.items():
            script = re.sub(short, long, script, flags=re.MULTILINE)
        text = "\n".join(line.strip() for line in script.splitlines() if line.strip())
        self.steps = re.split(rf"\n(?=[{re.escape(EVENTS)}](?: |\n|$))", text)
        who = self.steps.pop(0) if text[0] in "$%(" else "$ John"
        _, name, password = f"{who}  ".split(" ")[:3]
        self.console = FakeConsole(attended=who[0] != "%")
        self.console.echo_typed = lambda line: None  # type: ignore[method-assign]
        kind = EchoProtocol if who.endswith("(echo)") else ChatProtocol
        self.protocol = kind(name, password.encode(), self.console.attended)
        self.client: Any = Client(self.console, self.protocol)
        self.client.turn, self.client.connect = self.turn, self.connect
        self.now = 0.0
        self.unacknowledged = 0
        self.step = ""
        self.networks: list[Network] = []
        self.tried: list[float] = []  # when it was, in vain

    def run(self) -> None:
        """Follows the script to its end."""
        clock = SimpleNamespace(monotonic=lambda: self.now)
        seconds = mock.patch.object(chat_client, "time", clock)
        unread = mock.patch.object(chat_client, "unacknowledged", lambda _: self.unacknowledged)
        ending = "left"
        with seconds, unread, mock.patch.object(chat_client, "Selector"):
            try:
                self.client.run()
            except EOFError:  # of the script
                return
            except KeyboardInterrupt:
                pass
            except chat_client.Failure as failure:
                ending = str(failure)
            finally:
                for network in self.networks:
                    network.close()
        assert not self.steps, f"ended before {self.steps}"
        self.check(ending)

    def connect(self) -> Network:
        """Stands in for the client's connecting: later it succeeds as the script says."""
        if self.step and self.step[0] not in "=?<-":
            self.tried.append(self.now)
            raise chat_client.Disconnected("nobody there")
        self.networks.append(Network())
        return self.networks[-1]

    def turn(self, more: Callable[[], Sequence[chat_client.File]] = tuple) -> None:
        """Stands in for the client's turn: sends what there is, or has the next thing happen."""
        _, events, handle = more()[0] if more() else (None, 0, lambda _: None)
        if events & EVENT_WRITE and self.networks[-1].room:
            handle(EVENT_WRITE)
        elif min(self.client.timers.values(), default=chat_client.NEVER) > self.now:
            self.check()
            if not self.steps:
                raise EOFError
            self.step = self.steps.pop(0)
            self.happen(self.step[0], self.step.split("\n")[0][2:], handle)
        Client.turn(self.client)  # in which nothing else can come

    def happen(self, event: str, text: str, handle: Callable[[int], object]) -> None:
        console, network = self.console, self.networks[-1]
        if event in "<-_@":
            name = self.protocol.name
            room = f"Welcome to the chatroom!\n* you are {name}\n* here: {name}"
            said = room if event == "@" else text
            network.said = f"{said}{'' if event == '_' else chr(10)}".encode()
            handle(EVENT_READ)
        elif event == "x":
            network.said = OSError(0, text) if text else b""
            handle(EVENT_READ)
        elif event in ":;":
            console.typed.append(Line(text, alone=event == ":"))
        elif event == "?":
            console.secrets.append(text.encode())
        elif event == ".":
            console.ended = True
        elif event == "/":
            network.room = int(text)
        elif event == "#":
            console.output[:] = bytes(int(text))
        elif event == "*":
            self.unacknowledged = int(text)
        else:
            self.now += float(text) if event == "~" else 60

    def check(self, ending: str = "") -> None:
        """The last step had the results that it should have."""
        event, *results = self.step.split("\n")
        network, shown = self.networks[-1], self.console.shown
        sent, network.sent = network.sent.decode().splitlines(), b""
        wanted = [line[2:] for line in results if line[0] in ">+"]
        if "/ping" not in wanted:
            sent = [line for line in sent if line != "/ping"]
        if not event.startswith("@"):
            assert sent == wanted, event
            said = [event[2:]] * event.startswith("<")
            said += [line[2:] for line in results if line[0] in "|+"]
            lost = [f"*   {line[1:-1]}" for line in results if line[0] == "("]
            told = [f"* {chat_client.IN_DOUBT}:", *lost] if lost else []
            assert shown == said + told + ["\a"] * ("^" in results), event
        assert [f"! {ending}"] * bool(ending) == [line for line in results if line[0] == "!"], event
        shown.clear()


def converse(script: str) -> Conversation:
    """Returns a conversation that has followed a script."""
    talk = Conversation(script)
    talk.run()
    return talk


LETTERS, LONG = "x" * 31, "x" * (MAX_LINE + 1)
# What each shows, and then its script.
CONVERSATIONS = f"""
a message has the name before it, and two slashes are one, but not in a block
    ~ 0.5   : Hi                        + John: Hi
    :
    :   indented   + John:   indented
    : //shrug                           + John: /shrug
    ; //shrug                           + John: //shrug
a server that drips keeps nobody waiting
    : hi   - * no welcome
    ~ 0.3   - * no welcome   ~ 0.3      | * no welcome   | * no welcome   + John: hi
neither a blank nor what nobody sees makes a message of a command, nor a slash of double width
    @   :  /msg Ann: psst               > /msg Ann: psst   | to Ann (private): psst
    :   //shrug   + John: /shrug
    : \u200b\ufeff/msg Ann: psst        > /msg Ann: psst   | to Ann (private): psst
    : \u2060 \u3164\uff0fwho               > /who
whoever only greets like a room gets no command
    < Welcome to the chatroom!          > /name John   > /who
    ~ 0.5   : hi                        + John: hi
    : /op psst   : ho
    - * here: Ann, John                 > /op psst   + John: ho
and is another relay, once it has had the time for an answer and has got what was said
    & John   ~ 0.5   : hi               + John: hi
    : /op psst   ~ 14.9   ~ 0.1
    | * not sent: /op **** (no chat room has answered; //TEXT says /TEXT)
    < Ann: ho   ~ 60   x                | * lost the connection: the server closed it
but a network that takes nothing is dead
    & John   * 9   ~ 14   ~ 1           | * lost the connection: no answer for 15 s
a script says nothing under a name that is not its own, however slow the room or its reader
    % John
    & John   ~ 1.2   : hi   # {MAX_WAITING}   ~ 9   # 0
    < * John is taken                   > /name John_
    < * you are John_                   + John_: hi
a taken name gets an underscore, and is not too long then
    $ {LETTERS}x
    & {LETTERS}x
    < * {LETTERS}x is taken             > /name {LETTERS}_
    : hi   < * you are {LETTERS}_       + {LETTERS}_: hi
asking for names comes to an end
    $ {LETTERS}_
    & {LETTERS}_
    < * {LETTERS}_ is taken   : hi      + {LETTERS}_: hi
a name that is none is forgotten
    $ a:b
    & a:b   : hi
    < * a name has no colon in it joined
    < * a name has no colon in it: /name NAME   + a:b: hi
    : /name Ann                         > /name Ann
    < * a name has letters and digits in it: /name NAME
    : ho                                + a:b: ho
a name that was refused is not asked for again
    @   : /name a:b                     > /name a:b
    < * a name has letters and digits in it: /name NAME
    - * pong   x                        | * lost the connection: the server closed it
    =   &= John
only the answer to one's own question is one's name
    @   < * you are Bob joined
    < * you are Bob   : /nick Zoe       > /name Zoe
    : hi
    < * John is now Zoe is taken
    < * the room is closing
    < * Zoe is taken                    > /name Zoe_
    < * you are Zoe_                    + Zoe_: hi
    : /name                             > /name
    : ho                                + Zoe_: ho
the wanted name is taken whenever it is free, which it is not after a removal
    && John   < * Johnny left
    < * John_ is now John_
    < * John is now JOHN
    < * John was removed
    < Ann: * John left
    < * John left                       > /name John
    < * John is taken                   > /name John_
    - * you are John_   < * JOHN left   > /name John
    < * John is taken                   > /name John_
    - * you are John_
    < * John is now Bob                 > /name John
    : hi   < * you are John             + John: hi
    < * John left   < * JOHN left
    < * John is now Bob
a relay may say what a room says, of which only text is shown, and no line that is too long
    - Ann: \x1b[2Jh\x07i               | Ann: hi
    - {LONG}   | {TOO_LONG}
    < Welcome to the chatroom!
    < * password?
    < * you are somebody else   : hi    + John: hi
a password is given once, and only where it is asked for first
    $ Ann secret
    : hi   - * password?                > secret
    ~ 10   < * password?
    ~ 10   < Bob: hi                    + Ann: hi
    < * password?
what was said before a late question is not the password
    $ Ann secret
    ~ 15   / 11   : hi                  + Ann: hi
    : there                             > Ann   | Ann: there
    - * password?
    | * not let in: the room asked late for its password   (hi)   (there)
what is typed while a password is checked may be the right one
    : hi   - * password?   ? sercet     > sercet
    : secret   < * wrong password       | * lines not sent, as they may hold the password: 1
    ? secret   =   - * password?        > secret
    & John   - * you are John           + John: hi
but what is typed while there is no connection is kept
    - * password?   ? secret            > secret
    @   x                               | * lost the connection: the server closed it
    : hi   =   - * password?            > secret
    < * wrong password   ? \ufeffother
    =   - * password?                   > other
    & John   - * you are John           + John: hi
and the wish to leave is one
    - * password?   ? sercet            > sercet
    : exit   < * wrong password         ! left
whoever has left does not come back for a late question
    : exit   ~ 0.5   - * password?
    | * not let in: the room asked late for its password   ! left
nothing is no password
    - * password?   ?
    ? secret                            > secret
what comes after the wish to leave is nobody's business
    @   : exit   : ls   x               ! left
and that has nothing to do with more words
    @   : /quit see you   x             ! left
a room that doesn't answer at the door is lost
    - * password?   ~ 60   ? secret     > secret
    ~ 14   ~ 1                          | * lost the connection: no answer for 15 s
whoever types into the void is told as soon as whoever waits
    @   : one                           + John: one
    ~ 5   : two                         + John: two
    ~ 5   : three                       + John: three
    ~ 5                                 | * lost the connection: no answer for 15 s
    (one)   (two)   (three)
a room that was there and says nothing any more is lost
    @   x                               | * lost the connection: the server closed it
    =   : hi   ~ 14   ~ 1               | * lost the connection: no answer for 15 s
what outlives a connection
    - * password?   ? secret            > secret
    @   : /name Jim                     > /name Jim
    < * you are Jim   - * pong   x      | * lost the connection: the server closed it
    : hi   =   ~ 5   - * password?      > secret
    &= Jim   < * Jim is taken           > /name Jim_
    < * you are Jim_                    + Jim_: hi
    - * pong   x reset                  | * lost the connection: reset
    =   - * password?                   > secret
    &= Jim
whoever is ignored is not heard, in any spelling, under another name and over a new connection
    @   : /ignore                       | * ignored: nobody
    : /ignore lab-1:                    | * what lab-1: says is hidden; /ignore lab-1: shows it again
    - Lab 1: hi   : /ignore  Ann        | * what Ann says is hidden; /ignore Ann shows it again
    - Ann: John!
    - ANN (private): John!   < Bob: hi
    < * Ann is now Zoe   - Zoe: John
    < Anna: hi   x                      | * lost the connection: the server closed it
    =   @   - ann: hi   : /ignore       | * ignored: lab-1:, Ann, Zoe
    : /ignore ANN                       | * what ANN says is shown again
    : /ignore zoe                       | * what zoe says is shown again
    < Ann: hi
help tells of what the client does itself
    @   : /help                         > /help
    | * /ignore NAME: hide what NAME says, or show it again
what one says in private looks private
    @   : /msg  Ann Lee :  a: b         > /msg  Ann Lee :  a: b   | to Ann Lee (private): a: b
    : /msg Ann                          > /msg Ann
    : /msg Ann:                         > /msg Ann:
    : /msg : x                          > /msg : x
only the answers to questions of our own are hidden
    & John   - * you are John
    - * here: John and 2 unnamed
    : /who                              > /who
    < * here: John   - * pong
    : /ping                             > /ping   > /ping
    < * pong   - * pong
what a room has heard is known
    @   : one                           + John: one   > /ping
    : /msg Ann: psst                    > /msg Ann: psst   | to Ann (private): psst
    - * pong                            > /ping
    - * pong   : two                    + John: two
    < Ann: hi   x reset                 | * lost the connection: reset   (two)
    =   @   x                           | * lost the connection: the server closed it
a quiet room is asked whether it is there
    @   ~ 59   ~ 1                      > /ping
    - * pong   ~ 59   ~ 1               > /ping
    ~ 14   ~ 1                          | * lost the connection: no answer for 15 s
a room that is asked and silent is lost
    @   ~ 59   : one                    + John: one   > /ping
    ~ 14   < Ann: hi
    ~ 14   < Ann: ho   - * pong
    ~ 59   : two                        + John: two   > /ping
    # {MAX_WAITING}   ~ 30   # 0   ~ 30   | * lost the connection: no answer for 15 s   (two)
what was said to a server that vanishes is told, and what it got nothing of waits
    < a relay   / 15   : one            + John: one
    : two                               > John:   | John: two
    : three                             | John: three
    : four                              | John: four
    x reset                             | * lost the connection: reset   (one)   (two)
    : five   =   < a relay              + John: three   + John: four   + John: five
    x                                   | * lost the connection: the server closed it
    (three)   (four)   (five)
whoever wants out is kept no longer by what the server asks
    / 0   : exit
    < Welcome to the chatroom!
    ~ 0.4   < * John is taken
    ~ 0.4   < * John_ is taken
    ~ 0.4                               ! left before everything had arrived
whoever leaves has time as long as something goes out
    < a relay   / 0   : last words      | John: last words
    : exit   ~ 0.9   / 4                > John
    ~ 0.9   / 8                         > : last w
    ~ 0.9   / 5                         > ords
    ~ 0.9   ~ 0.1                       ! left
whoever leaves has that time from the moment at which the last line could go out
    & John   / 0   : last words
    : exit   ~ 0.5                      | John: last words
    ~ 0.9   ~ 0.1                       ! left before everything had arrived
the end of our stream is nothing that was said
    < a relay   : one                   + John: one
    : exit   * 1   ~ 1                  ! left
what nobody has acknowledged may not have arrived
    < a relay   : one                   + John: one
    : exit   * 2   ~ 1                  ! left before everything had arrived
what a relay says shows nothing of what has yet to reach it
    < a relay   : one                   + John: one
    : two                               + John: two
    * 10   < Ann: hi   x reset          | * lost the connection: reset   (two)
a name that is free while another is asked for is asked for again
    & John   < * John is taken          > /name John_
    < * John left                       > /name John
    < * you are John_
    - * you are John   : /name Jim      > /name Jim
    < * Jim is taken                    > /name Jim_
    : hi   < * jim left                 > /name Jim
    < * you are Jim_
    < * you are Jim                     + Jim: hi
whoever is ignored is so in a relay, too, but nobody is by a name that is none
    < Bob: hi   : /ignore -             | * ignored: nobody
    < hi   : /ignore Bob                | * what Bob says is hidden; /ignore Bob shows it again
    - Bob: hello?
whoever takes a name after somebody ignored is heard
    @   : /ignore Mal                   | * what Mal says is hidden; /ignore Mal shows it again
    < * Mal is now Ann   - Ann: hidden
    < * Ann is now Eve   - Eve: hidden
    < * Eve left   < Ann: hi
    < Eve: hi   - Mal: hidden
whoever leaves at once has said all
    : bye   .   & John
    - * you are John                    + John: bye
    - * pong   x                                 ! left
whoever has left is not connected again
    < a relay   / 0   : last words      | John: last words
    : exit   x                          ! lost the connection: the server closed it
what a room has not confirmed at its end may not have arrived
    % John
    @   : hi                            + John: hi
    .   x                               ! left before everything had arrived
somebody who was removed does not come back
    @   - * you were removed by an operator; come back in 10 min
    ! you were removed by an operator; come back in 10 min
the first connection must speak what we speak
    x
    ! lost the connection: the server closed it without a word; if it speaks TLS, use --tls
where a room was, a connection without a word is only lost
    @   x                               | * lost the connection: the server closed it
    =   ~ 10   x
    | * lost the connection: the server closed it without a word; if it speaks TLS, use --tls
a full room is tried again and told once
    - * the room is full   x            | * not let in: the room is full
    =   - * the room is full
    x   =   &= John
a welcome that comes late ends nothing
    ~ 0.5   : hi                        + John: hi
    : exit
    < Welcome to the chatroom!   ~ 1    ! left
in a room an unfinished line is only late
    _ Welcome
    ~ 0.6   -  to the chatroom!         > /name John   > /who   | Welcome to the chatroom!
    _ Ann: hal   ~ 10   - f             | Ann: half
elsewhere an unfinished line is one after a while, or at the end
    _ Ann: hal   ~ 0.5                  | Ann: hal
    < f   _ bye   x                     | bye   | * lost the connection: the server closed it
a script has time, as long as the room has yet to confirm what it has said
    % John
    @   : hi                            + John: hi
    : exit   ~ 14   - * pong   x        ! left
a script is told what the room has not confirmed
    % John
    @   : one                           + John: one
    : two                               + John: two
    : exit   - * pong   ~ 14   ~ 1      ! lost the connection: no answer
a line that the room leaves out is one that is missed
    % John
    @   : hi                            + John: hi
    < * too long: a line has at most 1 byte
    - * pong   .   x
    ! not everything was sent: too long: a line has at most 1 byte
a script whose name the room refuses says nothing under another
    % a:b
    & a:b   - * a name has letters and digits in it: /name NAME
    ! the room refused the name a:b: a name has letters and digits in it
nor does one whose name is taken, if that is too long for an underscore
    % {LETTERS}_
    & {LETTERS}_   : hi
    - * {LETTERS}_ is taken
    ! the room refused the name {LETTERS}_: {LETTERS}_ is taken
a script has one password
    % Ann wrong
    - * password?                       > wrong
    - * wrong password                  ! wrong password
an echo server answers each line, and whoever wants out has time for each
    (echo)
    : one                               > one
    : /help   : //three   : exit
    ~ 0.4   - one                       > /help   | recv: one
    ~ 0.4   - two                       > //three   | recv: two
    ~ 0.4   - three                     | recv: three
    ~ 0.9   ~ 0.1                       ! left
an echo server that does not answer keeps nobody
    (echo)
    : one                               > one
    : two   ~ 0.5                       > two
    : exit   ~ 0.5   ~ 1                ! left
but a script wants to see all that it has asked for
    % (echo)
    : one                               > one
    .   ~ 14   - one                    | recv: one
    x                                   ! left
the bell is for the user's name in what somebody says, and for what is private
    @   < Ann: hi john!                 ^
    < hello John                        ^
    < Ann (private): hi                 ^
    < Ann (private) hi   < Ann: johnny
    < John: hi   < * John is now Jim
"""


SCRIPTS = dict(re.findall(r"^(\S.*)\n((?: .*\n)+)", CONVERSATIONS, re.MULTILINE))


@pytest.mark.parametrize("title", SCRIPTS)
def test_a_conversation(title: str) -> None:
    converse(SCRIPTS[title])


# Every moment at which something can be said


KINDS = {
    "message": "hi {}",
    "command": "/help {}",
    "private": "/msg Ann: psst {}",
    "password": "/op psst {}",
}
WAYS = {"typed": ":", "block": ";"}
SAID = dict.fromkeys(KINDS, "said")
REFUSED = {**dict.fromkeys(KINDS, "refused"), "message": "said"}
DOUBTED = {**REFUSED, "message": "doubted"}
LOST = dict.fromkeys(KINDS, "lost")
LATE = "... & ~ 1 & - * password? & ? secret & = & - * password? & @"
# How each moment comes, where & begins a step and the dots are all that is said; and what becomes
# of that, at a terminal, and in a script if that can be there then: it goes out; or it is refused,
# or may not have arrived, and the user is told so at once; or it is lost, and told at the end.
MOMENTS = {
    "before a room's first word": ("... & @", SAID, SAID),
    "where nobody ever says a word": ("... & ~ 1", REFUSED, REFUSED),
    "at the door": ("- * password? & ... & ? secret & @", SAID, SAID),
    "before the password": ("- * password? & ? secret & ... & @", SAID, SAID),
    "before a late question": (LATE, DOUBTED),
    "between welcome and name": (f"- {chat_client.WELCOME} & ... & - * you are John", SAID, SAID),
    "while the room is away": ("@ & x & ... & = & @", SAID),
    "while a relay is away": ("< a relay & x & ... & = & < a relay", REFUSED),
    "with a relay": (f"< a relay & - {chat_client.WELCOME} & ...", REFUSED, REFUSED),
    "when the room goes for good": ("- * password? & ? secret & ... & x", LOST),
}


class Moment(Conversation):
    """A conversation at a moment, which is looked at as a whole: what was sent, and what shown."""

    def __init__(self, script: str, attended: bool, last: str) -> None:
        ways = WAYS if attended else ["typed"]
        spoken = [f"{WAYS[way]} {text.format(way)}" for way in ways for text in KINDS.values()]
        steps = script.replace("...", "\n".join(spoken)).replace(" & ", "\n")
        who = "$ John" if attended else f"% John {'secret' if '? ' in script else ''}"
        super().__init__(f"{who}\n{steps}\n{': exit' if attended else '.'}\n{last}")
        self.sent: list[str] = []
        self.seen = ""
        self.run()

    def check(self, ending: str = "") -> None:
        self.sent += self.networks[-1].sent.decode().splitlines()
        self.seen += "".join(f"{line}\n" for line in self.console.shown)
        self.networks[-1].sent = b""
        self.console.shown.clear()


@pytest.mark.parametrize(
    "script, attended, outcomes",
    [
        pytest.param(script, attended, outcome, id=f"{moment}, {'typed' if attended else 'piped'}")
        for moment, (script, *outcomes) in MOMENTS.items()
        for attended, outcome in zip((True, False), outcomes)
    ],
)
def test_what_is_said_goes_where_it_should_or_the_user_is_told(
    script: str, attended: bool, outcomes: dict[str, str]
) -> None:
    talk = Moment(script, attended, "~ 1" if outcomes is LOST else "x")
    for kind, way in itertools.product(KINDS, WAYS if attended else ["typed"]):
        text, outcome = KINDS[kind].format(way), outcomes[kind]
        hidden = re.sub("(?<=/op ).*", lambda secret: "*" * len(secret[0]), text)
        line = f"John: {text}" if kind == "message" or way == "block" else text
        assert talk.sent.count(line) == (outcome in ("said", "doubted")), line
        assert line in talk.sent or text not in str(talk.sent), text
        assert outcome != "refused" or f"* not sent: {hidden} (no chat room" in talk.seen
        assert outcome != "doubted" or talk.seen.count(f"*   {hidden}\n") == 1
        assert outcome != "lost" or hidden in str(talk.console.losses())
        assert kind != "password" or text not in talk.seen or way == "block"


NOTICES = """
* you were removed by an operator; come back in 10 min joined
* you were removed by an operator; come back in 10 min is now Bob
* Bob is now you were removed by an operator; come back in 10 min
* John is now Q left
* John left is now Q
* John and Q left
* John, Q left
* Q is now John left
* you are Q joined
* the room is closing left
* John was removed by Q, who joined
* here: John left
* here: 7 more and 2 unnamed
"""


@pytest.mark.parametrize("line", NOTICES.strip().splitlines())
def test_a_notice_that_can_be_read_in_two_ways_is_only_shown(line: str) -> None:
    chat = converse(f"&& John\n- * here: John\n< {line}").protocol
    assert chat.candidates("") == ["John"]


def test_who_is_there_is_learnt_from_all_that_is_said_up_to_a_limit() -> None:
    chat = converse("@").protocol
    heard = ["Anna: hi", "Ann (private): hi", "* Anton joined", "* Bob is now An", "Zoe: Anne: hi"]
    heard += ["* here: Angus, John, 5 more and 2 unnamed", "John: in another window"]
    for line in [*heard, "* here: 2 unnamed", "* the room is closing", "* Anton left"]:
        chat.hear(line)
    assert chat.candidates("an") == ["An", "Ann", "Anna", "Angus"]
    assert chat.candidates("jo") == chat.candidates("5") == []
    for number in range(chat_client.MAX_NAMES + 10):
        chat.hear(f"name {number}: hi")
    assert len(chat.candidates("name")) == chat_client.MAX_NAMES
    assert chat.candidates("name")[0] == f"name {chat_client.MAX_NAMES + 9}"


@pytest.mark.parametrize(
    "line, text",
    [
        (b"a\x1b[31;1mred\x1b[0m", "ared"),
        (b"a\x1b]0;title\x07b\x1b]8;;x\x1b\\c\x1b(Bd\x1bce\x1b[", "abcde"),
        *((b"\r\nx\x00\x07\x08\x7fy\tz", "xy\tz"), (b"\xff\xc3 \xc3\xa4", "\ufffd\ufffd ä")),
        *(("\x9b31mC1 \x85".encode(), "C1 "), ("a\u202eb\u2066c\u2069".encode(), "abc")),
        (b"\x1b", ""),
    ],
)
def test_only_text_reaches_the_terminal(line: bytes, text: str) -> None:
    assert chat_client.terminal_text(line) == text


# Sessions: what has arrived, what is told, what is waited for


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_bytes_that_nobody_has_acknowledged(listener: Listener) -> None:
    listener.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with socket.create_connection(("127.0.0.1", listener.port)) as sock:
        peer = listener.accept()
        sock.setblocking(False)
        sent = sock.send(bytes(1 << 20))
        assert 0 < chat_client.unacknowledged(sock) <= sent
        peer.read(sent)
        support.eventually(lambda: chat_client.unacknowledged(sock) == 0)


@pytest.mark.skipif(not chat_client.termios, reason="no Ctrl-Z there")
def test_control_z_stops_nobody_while_a_password_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: str) -> str:
        assert signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN
        return "secret"

    before = signal.getsignal(signal.SIGTSTP)
    monkeypatch.setattr(chat_client.getpass, "getpass", answer)
    console = FakeConsole(ended=True)
    assert chat_client.Console.ask_secret(console, "password: ") == b"secret"
    assert signal.getsignal(signal.SIGTSTP) == before


def test_of_what_nobody_has_acknowledged_a_part_is_what_tls_adds() -> None:
    session = chat_client.Session(Client(FakeConsole(), ChatProtocol("J")), mock.Mock())
    session.client.tls = mock.Mock()
    session.sent = 20
    session.said.extend([(10, Line("one")), (20, Line("two"))])
    with mock.patch.object(chat_client, "unacknowledged", lambda _: 22 + 10):  # a record with "two"
        session.close_ledger()
    assert session.console.doubtful == ["two"]


def test_what_is_unread_of_the_connection_before_keeps_nobody_from_the_next() -> None:
    console = FakeConsole()
    console.output += bytes(MAX_WAITING)
    session = chat_client.Session(Client(console, ChatProtocol("J")), mock.Mock())
    assert session.can_read()
    console.output += bytes(MAX_WAITING)
    assert not session.can_read()


@pytest.mark.parametrize("took, patience", [(0.01, 0.5), (0.5, 2.0), (9.0, 10.0)])
def test_how_long_a_first_word_is_waited_for(took: float, patience: float) -> None:
    longest = max(chat_client.LINGER, patience)  # for whoever wants to leave
    talk = Conversation(f"""
        : hi   ~ {patience - 0.1}   ~ 0.2      + John: hi
        : exit   ~ {longest - 0.1}   ~ 0.2     ! left
    """)
    talk.client.addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))]
    talk.client.connect_to = lambda *_: setattr(talk, "now", took)
    with mock.patch.object(chat_client, "time", SimpleNamespace(monotonic=lambda: talk.now)):
        Client.connect(talk.client).close()
    talk.run()


def test_the_wish_to_leave_ends_no_connection_that_comes_in_time() -> None:
    """The lines before it are then said first. But the password keeps nobody in a plain window."""
    one = Client(FakeConsole("last words", "exit"), ChatProtocol("J"))
    assert not one.wait(0.0)
    assert not one.timers
    one.console.interactive, one.protocol.phase = False, chat_client.Phase.AT_DOOR
    with pytest.raises(KeyboardInterrupt):
        one.wait(0.0)


def test_what_waits_for_the_room_is_counted_where_it_was_typed() -> None:
    talk = converse("@   : /name Bob   > /name Bob\n: one   : two")
    assert talk.console.status == "(waiting for the room, lines that wait: 2) "
    talk = converse("@   : /name Bob   > /name Bob\n: one   < * you are Bob   + Bob: one")
    assert talk.console.status == ""


def test_what_is_due_can_be_dropped_by_what_was_due_before_it() -> None:
    client = Client(FakeConsole(), ChatProtocol("J"))
    second = mock.Mock()
    first = mock.Mock(side_effect=lambda: client.timers.pop(second))
    client.timers.update({first: 0.0, second: 0.0})
    client.turn()
    assert (first.call_count, second.call_count, client.timers) == (1, 0, {})


def test_what_is_waited_for_follows_from_what_is_left_to_draw() -> None:
    """Else a server would not be read, although there is room, until a key is pressed."""
    calls = mock.Mock(files=mock.Mock(return_value=()))
    client = Client(FakeConsole(), ChatProtocol("J"))
    client.console.update = calls.update  # type: ignore[method-assign]
    client.timers[calls.due] = 0.0
    client.turn(calls.files)
    assert calls.method_calls == [mock.call.update(), mock.call.files(), mock.call.due()]


# Connecting


def test_each_address_of_a_host_is_tried_and_a_failure_costs_nothing(listener: Listener) -> None:
    resolver = (
        "import socket\nlook_up = socket.getaddrinfo\nsocket.getaddrinfo = lambda _, port, **k: 9 "
        f"* look_up('127.0.0.1', {support.free_port()}, **k) + look_up('127.0.0.1', port, **k)"
    )
    process, server = begin(listener, support.patched_client(resolver))
    server.send("hi\n")
    assert process.stdout.readline() == b"hi\n"
    descriptors = Path(f"/proc/{process.pid}/fd")
    assert not descriptors.exists() or len(list(descriptors.iterdir())) < 10
    process.kill()
    process.communicate()


def test_tries_to_connect_again_are_ever_rarer_until_one_lasts() -> None:
    lost = """
        < a relay   : one               + John: one
        x reset                         | * lost the connection: reset   (one)
        ~ 0.5   ~ 0.5                   | * nobody there
    """
    script = f"{lost}{200 * '~ 0.5   '}=   ~ 30   | * connected again\n{lost}"
    with mock.patch.object(random, "uniform", lambda low, high: high):
        assert converse(script).tried == [1, 3, 7, 15, 31, 61, 91, 192]


def test_a_room_that_breaks_off_at_once_is_tried_ever_more_rarely() -> None:
    twice = 2 * "x   | * lost the connection: the server closed it\n=   &= John\n"
    with mock.patch.object(random, "uniform", lambda low, high: high):
        for script, delay in ((twice, 4), (f"{twice}~ 6   < hi", 1)):
            assert converse(f"@\n{script}").client.delay == delay


def nobody(script: str, port: str) -> str:
    start = f"start the server with: python3 {script} --port {port}, and for other hosts --host ::"
    return f"nobody listens there; {start}"


# The most telling first.
WAYS_TO_FAIL = [
    (errno.ECONNREFUSED, nobody("chat_server.py", "7007")),
    (errno.ETIMEDOUT, "no answer; is it switched on, and does its firewall let port 7007 through?"),
    (errno.EHOSTUNREACH, "no way there; is it switched on, and in the same network?"),
    (errno.ENETUNREACH, "no way there; is this machine in a network that leads to it?"),
    (errno.EPERM, "this machine's firewall forbids it"),
    (errno.EINVAL, "an address fe80:... needs its interface, such as fe80::1%eth0"),
    (errno.EMFILE, os.strerror(errno.EMFILE)),
]


@pytest.mark.parametrize("first", range(len(WAYS_TO_FAIL)))
def test_why_there_is_no_connection(first: int) -> None:
    errors = [OSError(code, os.strerror(code)) for code, _ in reversed(WAYS_TO_FAIL[first:])]
    told = chat_client.why_not_connected(errors, "lab1", 7007, "chat_server.py")
    assert told == f"cannot connect to port 7007 on lab1: {WAYS_TO_FAIL[first][1]}"


def test_a_server_that_drips_in_the_handshake_gains_no_time() -> None:
    now, waits, tls = 100.0, [], mock.MagicMock()

    def wait(seconds: float, *_: object) -> bool:
        nonlocal now
        now += 6
        waits.append(seconds)
        return seconds > 0 and len(waits) < 9  # something has come

    clock = SimpleNamespace(monotonic=lambda: now)
    tls.wrap_socket.return_value.do_handshake.side_effect = ssl.SSLWantReadError
    one: Any = Client(FakeConsole(), ChatProtocol("J"))
    one.wait = wait
    with mock.patch.object(chat_client, "time", clock), pytest.raises(OSError, match="in TLS"):
        one.shake_hands(mock.Mock(), tls)
    assert waits == [10, 4, -2]


def test_a_first_connection_that_fails_is_not_tried_again() -> None:
    client = Client(FakeConsole(), ChatProtocol("J"))
    with pytest.raises(chat_client.Disconnected, match="nobody listens"):
        client.tell_lost(chat_client.Disconnected("nobody listens"))


ADVICE = "check the name and the network, or give the host's address"
UNKNOWN = f"host {{}} is unknown, or no name server answers; {ADVICE}"
CANNOT = "cannot connect to port {port} on 127.0.0.1: "
JOHN = "127.0.0.1 {port} --name John"
TROUBLES = [
    (JOHN, CANNOT + nobody("chat_server.py", "{port}")),
    ("127.0.0.1 {port} --echo", CANNOT + nobody("echo_server.py", "{port}")),
    *((f"{one} --name J", UNKNOWN.format(one)) for one in ("no-host.invalid", "x" * 70, "::x")),
    (JOHN, "there is no password in CHAT_PASSWORD; its first line has to be one, and UTF-8 text"),
    (f"{JOHN} --tls-ca no/file", f"cannot use no/file: {os.strerror(errno.ENOENT)}"),
]


@pytest.mark.parametrize("words, why", TROUBLES)
def test_why_it_cannot_connect(words: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "CHAT_PASSWORD" in why:
        monkeypatch.setenv("CHAT_PASSWORD", "")
    port = support.free_port()
    done = client(*words.format(port=port).split())
    assert (done.stderr, done.returncode) == (f"chat_client.py: {why.format(port=port)}\n", 1)


@pytest.mark.parametrize("host, name", [("lab1.", "lab1"), ("fe80::1%eth0", "fe80::1")])
def test_what_is_in_no_certificate_is_not_looked_for_there(host: str, name: str) -> None:
    tls = mock.Mock()
    Client(FakeConsole(), ChatProtocol("J"), host).shake_hands(mock.Mock(), tls)
    assert tls.wrap_socket.call_args[1]["server_hostname"] == name


def test_the_known_addresses_stay_where_no_name_server_answers() -> None:
    """And nothing is said of it, by the thread that has looked them up, into the terminal."""
    one = Client(FakeConsole(), ChatProtocol("J"), addresses=["known"])
    one.wait = lambda *_: True  # type: ignore[method-assign]
    fails = mock.patch.object(chat_client, "look_up", side_effect=chat_client.Failure)
    at_once = mock.Mock(side_effect=lambda target, daemon: SimpleNamespace(start=target))
    with fails as look_up, mock.patch.object(chat_client.threading, "Thread", at_once):
        one.look_up_again()
    assert (one.addresses, look_up.call_count) == (["known"], 1)


def test_a_room_that_has_moved_is_found_again(listener: Listener, terminal: Run) -> None:
    moved = Listener()
    resolver = (
        "import socket, time\nlook_up = socket.getaddrinfo\n"
        f"ports = [{listener.port}, {moved.port}]\n"
        "def resolve(host, port, **more):\n"
        f"    ports or time.sleep({10 * DEADLINE})\n"
        "    return look_up('127.0.0.1', ports.pop(0), **more)\n"
        "socket.getaddrinfo = resolve"
    )
    window = terminal(*support.patched_client(resolver), "lab1.local", "--name", "John")
    server = listener.accept()
    welcome(server)
    listener.listener.close()
    server.close()
    server = moved.accept()
    welcome(server)
    window.expect("* connected again")
    server.close()  # and now no name server answers
    window.answer("(connecting) ", "\x04")
    assert window.wait() == 0


# In pipes


WINDOWS = support.patched_client("import chat_client\nchat_client.ONLY_SOCKETS = True")


@pytest.mark.parametrize("command", [CLIENT, WINDOWS], ids=["here", "as on Windows, with a thread"])
def test_walk_through_in_a_pipe(room: Server, command: Sequence[str]) -> None:
    other = room.join()
    lines = ["Hi", "I quit smoking", "exit here", "the /quit command"]
    typed = "".join(f"{line}\n" for line in ["John", *lines, " exit ", "unsaid"])
    done = finish([*command, "localhost", str(room.port)], typed)
    said = [f"John: {line}\n" for line in lines]
    assert done.stdout == "name: John\nWelcome to the chatroom!\n" + "".join(said)
    assert (done.stderr, done.returncode) == ("", 0)
    other.expect("* John joined\n", *said, "* John left\n")


# What a server says at once, and when all is said; how it ends; what is typed and the server then
# gets; and what the client says at its end, with the exit status 1, or nothing, with 0.
LEFT_OUT = "not everything was sent: a line was too long"
NO_PASSWORD = "the room wants a password; give it with --password-file FILE"
FULL, TLS = "the room is full", "this room speaks TLS; use --tls"
BROKEN = "lost the connection: "
MANY = "".join(f"J: {number}\n" for number in range(2000))
ENDS = {
    "full": (f"* {FULL}\n", "", "close", "hi\n", None, f"not let in: {FULL}"),
    "full, late": ("", f"* {FULL}\n", "close", "hi\n", "J: hi\n", f"not let in: {FULL}"),
    "TLS": (f"* {TLS}\n", "", "close", "hi\n", None, f"not let in: {TLS}"),
    "password": ("", "* password?\n", "close", "hi\n", "J: hi\n", NO_PASSWORD),
    "relay": ("Ann: hi\n* Ann waves\n", "one\ntwo", "close", "hi", "J: hi\n", ""),
    "all": ("a relay\n", "", "close", MANY.replace("J: ", "") + "last", f"{MANY}J: last\n", ""),
    "silent room": (support.WELCOME.decode(), "", "close", "hi\n", "/name J\nJ: hi\n", ""),
    "too long": (f"a relay\n{LONG}\n", "", "close", f"{LONG}\nshort\n", "J: short\n", LEFT_OUT),
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

    def serve(server: support.Peer) -> None:
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


def begin(listener: Listener, client: Sequence[str] = CLIENT, **streams: Any) -> Any:
    """Returns a client of a relay, in pipes, and its server."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **streams}
    process = support.launch([*client, *listener.address, "--name", "J"], **streams)
    return process, listener.accept()


@pytest.mark.parametrize("typed", ["", "\n  \n", "/msg Ann: psst"])
def test_no_name_in_a_pipe_is_one_clear_line_before_connecting(typed: str) -> None:
    done = client("203.0.113.1", typed=typed)
    why = "no name was given; use --name NAME, or the first line of the input"
    assert (done.stderr, done.returncode) == (f"chat_client.py: {why}\n", 1)
    assert done.stdout.count("name: ") == typed.count("\n") + 1


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
        shown = done.stdout[: len(support.WELCOME)].encode()
        assert (shown, done.stderr, done.returncode) == (support.WELCOME, "", 0)
    other.expect("* J joined\n", "J: from a file\n", *["* J left\n", "* J joined\n"], "* J left\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_were_never_open(room: Server, closed: str) -> None:
    within = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    done = finish([*within, *CLIENT, "localhost", str(room.port), "--name", "J"])
    can_show = ">&-" not in closed.split()
    assert done.stdout == (support.WELCOME.decode() if can_show else "")
    assert done.stderr == ("chat_client.py: standard output is closed\n" if closed == ">&-" else "")
    assert done.returncode == (0 if can_show else 1)


@pytest.mark.parametrize("closed", ["before", "meanwhile", *["full"] * os.path.exists("/dev/full")])
def test_closed_standard_output_is_one_clear_line(listener: Listener, closed: str) -> None:
    read_end, write_end = os.pipe()
    if closed == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), write_end)
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
    why = b"the disk is full" if closed == "full" else b"standard output is closed"
    assert (errors, process.returncode) == (b"chat_client.py: " + why + b"\n", 1)


def test_a_script_that_is_interrupted_has_failed(listener: Listener) -> None:
    process, server = begin(listener)
    process.send_signal(signal.SIGINT)
    assert (process.wait(DEADLINE), server.rest()) == (130, b"")


def test_what_is_typed_is_nothing_for_the_shell(listener: Listener, terminal: Run) -> None:
    window = terminal(*support.PLAIN, *listener.address, "--name", "J")
    server = listener.accept()
    window.type("first\nrm\nthird\n")
    window.expect("third\n")  # as the terminal shows it
    server.send("* the room is full\n")
    server.close()
    window.expect("not let in: the room is full; not sent: first; rm; third\n")


def test_where_output_cannot_be_waited_for_all_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(chat_client, "ONLY_SOCKETS", True)
    monkeypatch.setattr(os, "write", lambda _, data: written.append(bytes(data[:9])) or 9)
    console = FakeConsole()
    console.output += b"more than a console of Windows takes at once"
    console.update()
    assert b"".join(written).endswith(b" takes at once")


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
        assert int(status.read_text().split("VmRSS:")[1].split()[0]) < 40_000  # kilobytes
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
    stdin, taken = process.stdin.fileno(), 0
    while taken < 50_000_000 and select.select([], [stdin], [], 0.5)[1]:
        taken += os.write(stdin, (b"x" * 999 + b"\n") * 4)
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


@pytest.mark.parametrize("name", [[], ["--name", "John"]], ids=["the prompt", "the room"])
@pytest.mark.parametrize("options", [[], ["--plain"]], ids=["editor", "plain"])
@pytest.mark.parametrize("keys", ["\x04", "\x03", "quit\n", "a signal"])
def test_ways_to_leave(
    room: Server, terminal: Run, name: list[str], options: list[str], keys: str
) -> None:
    window = terminal(*CLIENT, "localhost", str(room.port), *options, *name)
    window.expect("Welcome to the chatroom!\n" if name else "name: ")
    if keys == "a signal":
        window.process.send_signal(signal.SIGINT)
    else:
        window.type(keys)
    assert window.wait() == 0
    rest = window.rest()
    assert "Traceback" not in rest and "chat_client.py" not in rest
    support.eventually(lambda: "connected" not in room.log() or room.count() == 0)


def test_names_that_are_none_at_a_terminal(room: Server, terminal: Run) -> None:
    other = room.join()
    window = terminal(*support.PLAIN, "localhost", str(room.port))
    window.answer("name: ", "/msg Ann: psst\n")
    window.expect("* a name does not begin with a slash\nname: ")
    window.type("a:b\n")  # whoever sits there can choose another
    window.answer("* a name has letters and digits", "/name Ann\n")
    other.expect("* Ann joined\n")


def test_an_interrupt_in_the_first_moments_is_no_traceback(terminal: Run, tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("import time\nprint('importing')\ntime.sleep(60)\n")
    window = terminal(*CLIENT, env={"PYTHONPATH": str(tmp_path)})
    window.expect("importing\n")
    window.process.send_signal(signal.SIGINT)
    assert (window.rest(), window.wait()) == ("", -signal.SIGINT)


# The command line


@pytest.mark.parametrize(
    "host", ["lab1", "lab1.", "192.0.2.7", "2130706433", "::1", "fe80::1%eth0"]
)
def test_where_to_connect(host: str) -> None:
    place, alone = chat_client.host_and_port, f"[{host}]" if ":" in host else host
    assert place(host, None) == place(alone, None) == (host, 7007)
    assert place(host, "7100") == place(f"{alone}:7100", None) == (host, 7100)


NO_HOSTS = [["7007"], ["lab1 7007"], ["tcp://lab1:7007"], ["lab1/"], ["me@lab1"]]
NO_HOSTS += [["[::1"], ["[]:7"], ["7100", "lab1"], ["lab1:1", "2"], ["[::1]:1", "1"]]
NO_NAME = "a name is text that does not begin with a slash"
WRONG = [
    *((words, f"{words[0]} is not a host; type the host, then the port") for words in NO_HOSTS),
    (["lab1", "seven"], "seven is not a port; ports are 0 to 65535"),
    (["lab1:70000"], "70000 is not a port; ports are 0 to 65535"),
    *((["lab1:"], " is not a port; ports are 0 to 65535"), ([":7007"], "no host is given")),
    ([""], "no host is given"),
    *((["--name", name], f"argument --name: {NO_NAME}") for name in ("", "\a", " /a", "\uff0fa")),
    (["-p7100", "localhost"], "there is no option -p"),
    (["--host=lab1", "7100"], "there is no option --host"),
    (["lab1", "7007", "John"], "too many arguments"),
]


@pytest.mark.parametrize("words, message", WRONG)
def test_wrong_words_are_exit_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        chat_client.main(words)
    assert caught.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.endswith(" [options] [HOST [PORT]]")
    assert error.endswith(f"error: {message}")


# Other Pythons


STRICT = ["-X", "dev", "-W", "error", "-bb"]  # each warning counts
MINIMAL = f"sys.modules.update(dict.fromkeys({support.NOT_IN_MINIMAL}))"
PYTHONS = {
    "strict": lambda: [sys.executable, *STRICT, str(support.ROOT / "chat_client.py")],
    "pypy3": lambda: [support.needs("pypy3"), str(support.ROOT / "chat_client.py")],
    "less": lambda: support.patched_client("import ssl\ndel ssl.OP_NO_RENEGOTIATION"),  # LibreSSL's
    "minimal": lambda: support.patched_client(MINIMAL),
    "no getpass": lambda: support.patched_client("sys.modules['getpass'] = None"),
}


@pytest.mark.parametrize("python", PYTHONS)
def test_other_pythons_in_a_closed_room(
    start: support.Start, password: list[str], terminal: Run, python: str
) -> None:
    room = start("chat_server.py", *password, tls=True)
    command = [*PYTHONS[python](), f"localhost:{room.port}", *support.TRUSTED]
    done = finish([*command, *password], "John\nhi\nexit\n")
    assert done.stdout == "name: John\nWelcome to the chatroom!\nJohn: hi\n"
    assert (done.stderr, done.returncode) == ("", 0)
    cannot_ask = python in ("minimal", "no getpass")
    for options in {"strict": [[], ["--plain"]], "no getpass": [["--plain"]]}.get(python, [[]]):
        window = terminal(*command, *options, "--name", "Ann")
        if cannot_ask:
            window.expect("the room wants a password; give it with --password-file FILE\n")
            assert window.wait() == 1
            continue
        if python == "strict":
            window.answer("password: ", "guess\r")
            assert "guess" not in window.expect("* wrong password")
        window.answer("password: ", f"{support.PASSWORD}\r")
        assert support.PASSWORD not in window.expect("Welcome to the chatroom!")
        window.type("hi\r/who\r")
        window.answer("* here: Ann", "exit\r")
        rest = window.rest()
        assert window.wait() == 0
        assert "Warning" not in rest and "Error" not in rest


def test_python_without_tls(room: Server) -> None:
    minimal = support.patched_client("sys.modules['ssl'] = None")
    done = finish([*minimal, f"localhost:{room.port}"], typed="John\nhi\n")
    assert (done.stderr, done.returncode) == ("", 0)
    done = finish([*minimal, f"localhost:{room.port}", "--tls", "--name", "J"])
    why = "this Python was built without TLS; leave out --tls and --tls-ca"
    assert (done.stderr, done.returncode) == (f"chat_client.py: {why}\n", 1)


def test_last_words_keep_nobody_who_does_not_read_them() -> None:
    reader, writer = os.pipe()
    output = chat_client.Output(writer)
    assert output.write("x" * 200_000) == 200_000
    assert 1024 < len(os.read(reader, 200_000)) < 200_000, "as much as there was room for"
    os.close(reader)
    os.close(writer)
