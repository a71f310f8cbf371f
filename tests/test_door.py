"""The door: who gets in, what guessing a password costs, whom operators remove, who can't come
back."""

from __future__ import annotations

import hmac
import os
import re
import select
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import (
    DEADLINE,
    WELCOME,
    Inside,
    Peer,
    Server,
    checked_server,
    client,
    every_kind,
    john_in_a_room,
    needs_ipv6,
    pair,
    patched,
    run,
    tls_room,
    typed,
    unconnected,
)

import chat_client
import chat_server
from chat_server import (
    BAN_TIME,
    DOOR_TIME,
    HANDSHAKE_TIME,
    WRONG_TIME,
    Connection,
    format_address,
    host_of,
)

PASSWORD = "correct horse"
OPERATORS = "staple battery"
REMOVED = "* you were removed by an operator; come back in 10 min\n"
KEPT_OUT = "* you, or somebody at your address, was removed; come back in 10 min\n"


@pytest.fixture
def password(tmp_path: Path) -> list[str]:
    """The option with which a room is closed, and a client gets in."""
    (tmp_path / "password").write_text(f"{PASSWORD}\nsecond line\n")
    return ["--password-file", str(tmp_path / "password")]


@pytest.fixture
def operators(tmp_path: Path) -> list[str]:
    (tmp_path / "operators").write_text(f"{OPERATORS}\nsecond line\n")
    return ["--operator-file", str(tmp_path / "operators")]


@pytest.fixture
def closed(start: Callable[..., Server], password: list[str]) -> Server:
    return start("chat_server.py", *password)


@pytest.fixture
def staffed(start: Callable[..., Server], operators: list[str]) -> Server:
    """A room that can have operators."""
    return start("chat_server.py", *operators)


def knock(room: Server, source: str = "") -> Peer:
    peer = room.connect(source=source)
    peer.expect("* password?\n")
    return peer


def get_in(room: Server, name: str = "", source: str = "") -> Peer:
    peer = knock(room, source)
    peer.send(f"{PASSWORD}\r\n")
    peer.expect(WELCOME)
    if name:
        peer.send(f"/name {name}\n")
        peer.expect(f"* you are {name}\n")
    return peer


# The password


@every_kind
def test_whoever_knows_the_password_is_a_member_and_what_is_sent_behind_it_counts(
    closed: Server,
) -> None:
    ann = get_in(closed, "Ann")
    bob = closed.connect()
    bob.send(f"{PASSWORD}\n{'x' * 9000}\n/name Bob\nBob: hi\nBob: unfin")
    ann.expect("* Bob joined\n", "Bob: hi\n")
    bob.send("ished\n")
    ann.expect("Bob: unfinished\n")
    bob.expect("* password?\n", WELCOME, "* too long: a line has at most 8192 bytes\n")
    bob.expect("* you are Bob\n")


def test_the_password_may_come_with_corrections_and_what_is_around_a_text(closed: Server) -> None:
    for given in (
        b"\xff\xfb\x1f\xff\xfd\x01\xff\xfa\x1f\0\x50\0\n\xff\xf0correct horse\r\0",  # telnet's
        b"correct hoX\brse\r\n",
        b"wrong\x15correct horse\n",
        b"\xef\xbb\xbfcorrect horse\n",
    ):
        for size in (1, 7, 100):
            peer = closed.connect()
            for at in range(0, len(given), size):
                peer.send(given[at : at + size])
            peer.send(b"/who\r\0/quit\n")
            heard = peer.rest()
            assert heard.endswith(WELCOME + b"* here: 1 unnamed\n* bye\n"), heard
    browser = closed.connect()
    browser.send(f"POST / HTTP/1.1\r\n\r\n{PASSWORD}\n")
    assert WELCOME not in browser.rest()


def test_a_stranger_has_one_try_hears_nothing_and_counts_for_nobody(
    start: Callable[..., Server], tmp_path: Path, password: list[str]
) -> None:
    """A wrong password is answered after a tenth of a second here, not a second."""
    patch = "chat_server.WRONG_TIME, chat_server.TRIES_AHEAD, chat_server.TICK = 0.1, 0.3, 0.1"
    room = patched(start, tmp_path, patch, *password)
    member = get_in(room)
    guesses = ["wrong", "", PASSWORD.upper(), f" {PASSWORD}", "x" * 10_000]
    guesses += [f"{PASSWORD}x", f"{PASSWORD} ", f"{PASSWORD} {PASSWORD}"]
    strangers = [room.connect() for _ in guesses]
    member.send("hi\n/who\n")
    for stranger, guess in zip(strangers, guesses):
        stranger.expect("* password?\n")
        stranger.send(f"{guess}\n{PASSWORD}\nheard?\n")
    for stranger in strangers:
        stranger.expect("* wrong password\n")
        assert stranger.rest() == b""
    member.send("/who\n")
    member.expect(*["* here: 1 unnamed\n"] * 2)


@pytest.mark.parametrize(
    "make, said, seconds, heard",
    [
        (tls_room, b"", HANDSHAKE_TIME, b""),
        (checked_server, b"sec", DOOR_TIME, b"* password?\n"),
        (checked_server, b"guess\n", WRONG_TIME, b"* password?\n* wrong password\n"),
    ],
    ids=["handshake", "password", "wrong password"],
)
def test_nobody_is_at_the_door_for_long(
    make: Callable[..., Any], said: bytes, seconds: float, heard: bytes
) -> None:
    server = make(password=b"secret")
    now = server.clock.now()
    server.clock.monotonic = lambda: now
    sock, peer = pair()
    server.admit(sock, "peer")
    if said:
        peer.send(said)
        server.turn()
    for passed, is_over in ((seconds - 0.1, False), (0.1, True)):
        now += passed
        server.door.meet_deadlines()
        server.deliver(server.room.take_batch())
        assert (not server.membership.newcomers) == is_over
    assert peer.rest() == heard


def test_a_crowd_at_the_door_disturbs_nobody_and_another_host_gets_in(closed: Server) -> None:
    ann, bob = get_in(closed, "Ann"), get_in(closed)
    crowd = [knock(closed, source="127.0.0.2") for _ in range(100)]
    assert closed.connect(source="127.0.0.2").rest() == b"* the room is full\n"
    late = knock(closed)  # from a host that has no place there
    assert crowd[-1].rest() == b"", "it came last, of the host that has most"
    closed.wait_for_log("had to make room at the door")
    ann.send("hi\n")
    bob.expect("Ann: hi\n")
    for one in (crowd[0], late):
        one.send(f"{PASSWORD}\n")
        one.expect(WELCOME)


def test_the_log_warns_of_a_password_in_the_clear(
    start: Callable[..., Server], password: list[str]
) -> None:
    start("chat_server.py", *password).wait_for_log("travels in the clear")
    assert "in the clear" not in start("chat_server.py", *password, tls=True).log()


# Where the password comes from


@pytest.mark.parametrize("module", [chat_server, chat_client])
@pytest.mark.parametrize(
    "content, given",
    [
        (b"secret", b"secret"),
        (b" blanks around \r\nsecond line\n", b" blanks around "),
        (b"\xef\xbb\xbfsecret\r\n", b"secret"),
        # As Windows writes it; some of these letters have a byte that looks like a line's end.
        (b"\xff\xfe" + "\u010a \u0a05\r\nx".encode("utf-16-le"), "\u010a \u0a05".encode()),
        (b"\xfe\xff" + "\u010a \u0a05\r\nx".encode("utf-16-be"), "\u010a \u0a05".encode()),
        (None, "cannot read the password file"),
        (b"", "there is no password in"),
        (b"  \t\r\n", "there is no password in"),
        ("größer\n".encode("latin-1"), "there is no password in"),
        ("secret\n".encode("utf-16-le"), "there is no password in"),  # without a mark before it
        (b"\x30\x82\x01\x0a\x02", "there is no password in"),  # such as a key in another format
    ],
)
def test_password_files(
    tmp_path: Path, module: Any, content: bytes | None, given: bytes | str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    if isinstance(given, bytes):
        assert module.read_password(str(file)) == given
        return
    with pytest.raises(module.Failure) as failure:
        module.read_password(str(file))
    assert str(failure.value).startswith(f"{given} {file}")
    assert "\n" not in str(failure.value)


def test_the_operators_password_fits_a_line_and_is_as_it_is_heard_in_one(tmp_path: Path) -> None:
    args = Namespace(password_file=None, operator_file=str(tmp_path / "file"), max_line=20)
    (tmp_path / "file").write_text(f" {'x' * 16} \n")
    assert chat_server.read_passwords(args) == (b"", b"x" * 16)
    (tmp_path / "file").write_text("x" * 17)
    with pytest.raises(chat_server.Failure, match="the password is longer than a line may be"):
        chat_server.read_passwords(args)


@pytest.mark.parametrize(
    "names", ["--password-file", "--operator-file", "--transcript", "--tls-cert --tls-key"]
)
def test_a_variable_of_the_shell_that_is_not_set_opens_no_room(names: str) -> None:
    options = [word for name in names.split() for word in (name, "")]
    done = run("chat_server.py", "--port", "0", *options)
    assert done.stderr.startswith("chat_server.py: cannot ")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_client_gives_its_password(start: Callable[..., Server], password: list[str]) -> None:
    environment = {**os.environ, "CHAT_PASSWORD": PASSWORD}
    room = start("chat_server.py", env=environment)
    ann = get_in(room, "Ann")
    options = ["localhost", room.port, "--name", "John"]
    for more, env in ((password, None), ([], environment)):
        done = client(*options, *more, typed="hi\n", env=env)
        assert (done.stdout, done.returncode) == ("Welcome to the chatroom!\nJohn: hi\n", 0)
        ann.expect("* John joined\n", "John: hi\n", "* John left\n")
    done = client(*options, typed="hi\n")
    assert (done.returncode, "--password-file" in done.stderr) == (1, True)
    assert "wrong password" not in room.log()
    done = client(*options, typed="hi\n", env={**environment, "CHAT_PASSWORD": "wrong"})
    assert (done.stderr, done.returncode) == ("chat_client.py: wrong password\n", 1)


# Operators remove somebody


def operator(room: Server, name: str) -> Peer:
    peer = room.join(name)
    peer.send(f"/op {OPERATORS}\n")
    peer.expect("* you are an operator\n")
    return peer


def test_an_operator_removes_somebody_whose_host_and_name_are_kept_out(
    start: Callable[..., Server], operators: list[str], password: list[str]
) -> None:
    room = start("chat_server.py", *operators, *password)
    ann, bob, second, carol = (get_in(room, source=f"127.0.0.{host}") for host in (1, 2, 2, 3))
    at_door, other = knock(room, source="127.0.0.2"), knock(room, source="127.0.0.4")
    bob.send("/name Bob\n")
    ann.expect("* Bob joined\n")
    ann.send(f"/op {OPERATORS}\n/name Ann\nbye\n/kick BOB\n")
    ann.expect("* you are an operator\n", "* you are Ann\n", "* Bob was removed\n")
    bob.expect("* you are Bob\n", "* Ann joined\n", "Ann: bye\n", REMOVED)
    assert bob.rest() == b""
    for one in (second, carol):
        one.expect("* Bob joined\n", "* Ann joined\n", "Ann: bye\n", "* Bob was removed\n")
    room.wait_for_log(r"Bob at 127.0.0.2:\d+ was removed by Ann at 127.0.0.1:\d+, members: 3\n")
    for peer in (at_door, *(room.connect(source="127.0.0.2") for _ in range(3))):
        assert peer.rest().decode() == KEPT_OUT
    carol.send("/name bob\n")
    carol.expect("* bob is taken\n")
    other.send(f"{PASSWORD}\nhi\n")
    second.expect("hi\n")
    second.send("still here\n")  # it was a member already
    carol.expect("hi\n", "still here\n")


def test_a_ban_that_is_over_keeps_out_neither_host_nor_name() -> None:
    room = Staffed()
    now = room.server.clock.now()
    room.server.clock.monotonic = lambda: now
    room.hear(0, "/kick N1\n")
    now += BAN_TIME
    conn, peer = room.join()  # from the same host
    room.server.room.take_name(conn, "N1")
    room.say(b"")
    peer.expect("* you are N1\n")


def test_of_who_comes_from_this_machine_only_the_name_is_kept_out(staffed: Server) -> None:
    """All who come through a proxy do."""
    needs_ipv6()
    ann = operator(staffed, "Ann")
    for host, name in (("127.0.0.1", "Bob"), ("::1", "Carol")):
        peer = staffed.join(name, host=host)
        ann.send(f"/kick {name}\n")
        peer.read_until(REMOVED)
        ann.read_until(f"* {name} was removed\n")
        for again in ("127.0.0.1", "::1"):
            peer = staffed.connect(again)
            peer.send(f"/name {name}\n")
            peer.expect(WELCOME, f"* {name} is taken\n")
    assert host_of("[::ffff:192.0.2.1]:7") == host_of("[::ffff:c000:201]:8") == "192.0.2.1"
    assert host_of("[::1]:7") == host_of("127.0.0.1:8") != host_of("[::2]:9")


def test_whoever_is_unnamed_is_removed_by_its_address(staffed: Server) -> None:
    """Nobody stands in for it: in a name, what is between its letters and digits is nothing."""
    ann = operator(staffed, "Ann")
    ann.send("/kick\n")
    ann.expect("* /kick NAME removes somebody; these have no name: nobody\n")
    other, one = staffed.join(), staffed.join(source="127.0.0.2")
    theirs, address = (format_address(peer.sock.getsockname()) for peer in (other, one))
    likeness = re.sub(r"\D", "", address)
    _like_it = staffed.join(likeness)
    ann.send(f"/kick\n/kick {address}\nhi\n")
    ann.expect(f"* {likeness} joined\n")
    ann.expect(f"* /kick NAME removes somebody; these have no name: {theirs}, {address}\n")
    ann.expect(f"* {address} was removed\n")
    one.expect(f"* {likeness} joined\n", REMOVED)
    other.expect(f"* {likeness} joined\n", "Ann: hi\n")


def test_without_the_option_there_are_no_operators(
    start: Callable[..., Server], staffed: Server
) -> None:
    room = start("chat_server.py")
    ann, bob = room.join("Ann"), room.join()
    ann.send("/help\n/op x\n/kick x\n /op x\n")
    assert b"/op" not in b"".join(ann.line() for _ in chat_server.HELP)
    ann.expect(*["* no such command; /help lists them, and //TEXT says /TEXT\n"] * 2)
    bob.expect("Ann:  /op x\n")
    asker = staffed.join()
    asker.send("/help\n")
    asker.read_until("* /op PASSWORD: be an operator, who can /kick NAME\n")


# Operators, from inside


class Staffed(Inside):
    """Members called N0, N1, ..., of whom the first is an operator."""

    def __init__(self, count: int = 2) -> None:
        super().__init__(operator=OPERATORS.encode())
        joined = [self.join() for _ in range(count)]
        self.conns = [conn for conn, _ in joined]
        self.peers = [peer for _, peer in joined]
        for number in range(count):
            self.hear(number, f"/name N{number}\n")
        self.hear(0, f"/op {OPERATORS}\n")
        self.say(b"ready\n")
        for peer in self.peers:
            peer.read_until("ready\n")

    def hear(self, number: int, text: str, more: tuple[Connection, ...] = ()) -> None:
        """The room hears what one says, in one turn with what others have said, and delivers."""
        conn = self.conns[number]
        self.peers[number].send(text)
        select.select([conn.sock], [], [], DEADLINE)
        self.server.read_all({conn, *more})
        self.server.deliver(self.server.room.take_batch())


@pytest.mark.parametrize(
    "number, line, answer",
    [
        (0, "/kick Nobody", "nobody here has that name; see /who, or /kick for the unnamed"),
        (0, "/kick 127.0.0.1:1", "nobody here has that name; see /who, or /kick for the unnamed"),
        (0, "/kick n0", "to leave, say /quit"),
        (0, "/op", "the password goes with it, as in /op PASSWORD"),
        (0, f"/op {OPERATORS}", "you are an operator"),
        (1, "/kick N0", "only operators can do that; /op PASSWORD makes you one"),
    ],
)
def test_what_does_not_remove_anybody(number: int, line: str, answer: str) -> None:
    room = Staffed()
    room.hear(number, f"{line}\n/who\n")
    room.peers[number].expect(f"* {answer}\n", "* here: N0, N1\n")


def test_an_operator_who_leaves_is_none_any_more_and_may_remove_another() -> None:
    room = Staffed()
    room.hear(1, f"/op {OPERATORS}\n/quit\n")
    room.conns[1], room.peers[1] = room.join()
    room.hear(1, f"/name N1\n/kick N0\n/op {OPERATORS}\n/kick N0\n")
    only = "* only operators can do that; /op PASSWORD makes you one\n"
    room.peers[1].expect("* you are N1\n", only, "* you are an operator\n", "* N0 was removed\n")
    room.peers[0].expect("* N1 left\n", "* N1 joined\n", REMOVED)


@pytest.mark.parametrize("how", ["is not read from", "ends in the same turn"])
def test_whoever_is_removed_gets_everything_although_it(how: str) -> None:
    """It may be slowed just then; and to close it with input unread would destroy what is on its
    way to it."""
    room = Staffed()
    conn, peer = room.conns[1], room.peers[1]
    if how == "is not read from":
        room.server.throttle.waiting[conn] = None
        conn.read_on(False)
        peer.send("unread\n")
        room.hear(0, "N0: bye\n/kick N1\n")
        assert conn in room.server.membership.leaving, "it has yet to close itself"
    else:
        conn.cost = 9999  # so that it is read after the operator
        peer.half_close()
        select.select([conn.sock], [], [], DEADLINE)
        room.hear(0, "N0: bye\n/kick N1\n", more=(conn,))
    peer.expect("N0: bye\n", REMOVED)
    assert peer.rest() == b""


# Guessing


def test_a_wrong_password_delays_nothing() -> None:
    """Each once took a second, for which neither the next line nor the end was looked at."""
    room = Staffed(3)
    conn, peer = room.conns[1], room.peers[1]
    room.hear(1, "/op guess\nN1: after\n" + "/op again\n" * 20)
    room.peers[2].expect("N1: after\n")
    while conn.unheard:
        room.server.turn()
    answers = [peer.line() for _ in range(21)]
    assert set(answers[:3]) == {b"* wrong password\n"}
    assert answers[10:] == [b"* too many wrong passwords; wait a moment, and try again\n"] * 11


def test_guessing_is_slow_for_each_host_however_many_connections_it_has() -> None:
    """They count as wrong tries at the door."""
    room = Staffed(6)
    door, late = room.server.door, room.conns[1]
    now = door.clock.now()
    door.clock.monotonic = lambda: now
    for number in range(2, 6):
        room.hear(number, "/op guess\n")
    assert door.tried[late.host] <= now + 3, "only the first three were looked at"
    room.hear(1, f"/op {OPERATORS}\n")  # too late: any of those may be lucky
    room.peers[1].expect("* too many wrong passwords; wait a moment, and try again\n")
    door.tried.clear()  # another host has none
    room.hear(1, f"/op {OPERATORS}\n")
    room.peers[1].expect("* you are an operator\n")


def test_passwords_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def record(given: bytes, password: bytes) -> bool:
        compared.append(given)
        return given == password

    monkeypatch.setattr(hmac, "compare_digest", record)
    Staffed().hear(1, "/op guess\n")
    server = checked_server(password=b"secret")
    sock, peer = pair()
    server.admit(sock, "peer")
    peer.send("secret\n")
    server.turn()
    assert compared == [OPERATORS.encode(), b"guess", b"secret"]


# The operators' password stays a secret

MISTYPED = ["/OP", "/op:", "/op\t", " /op", "\t/op", "   /Op", "/ op", "//op", "x\b /op"]
MISTYPED += ["John: /op", "John:  /OP", "Nobody: /op", "John:/op"]
MISTYPED += ["\u200b/op", "\ufeff/op", "\uff0f\uff4f\uff50", "John: \uff0fop"]


@pytest.mark.parametrize("name", ["", "John", "Ann"])
def test_the_password_is_seen_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """However it is mistyped, alone or among others; and no answer sets off another."""
    monkeypatch.setattr(chat_server, "WRONG_TIME", 0)
    caplog.set_level("DEBUG")  # so that what is said is logged, too
    room = Staffed()
    conn, peer = room.join()
    room.conns.append(conn)
    room.peers.append(peer)
    prefix = f"{name}: " if name else ""
    lines = [f"{line} {OPERATORS}\n" for line in MISTYPED]
    last = f"/op {OPERATORS} x\n{prefix}not /op, but /opera\n"
    for text in (f"/name {name}\n" * bool(name), *lines, "".join([*lines, last])):
        if text:
            room.hear(2, text)
    while conn.unheard:
        room.server.turn()
    heard = [f"* {name} joined\n"] * bool(name) + [f"{prefix}not /op, but /opera\n"]
    room.peers[1].expect(*heard)
    assert "opera" in caplog.text and OPERATORS not in caplog.text
    for answer in peer.available().decode().splitlines():
        assert answer.startswith("* ") and not chat_server.MISTYPED_OP.match(answer)


def test_the_client_shows_and_says_the_password_to_nobody() -> None:
    editor = typed("first\r")
    typed(" /OP secret", editor)
    assert "".join(editor.view("John: ", 80)) == "John:  /OP ******"
    chat = john_in_a_room()
    chat.submit(chat_client.Line("  /op secret"))
    assert (chat.outgoing, chat.to_show[1:]) == (b"/op secret\n", [])
    assert chat_client.masked("/opera: Ann /op x") == "/opera: Ann /op x"
    ours, _ = pair()
    session = unconnected(chat_client.ChatProtocol("John"), ours)
    session.sent = 11
    session.said.append((11, chat_client.Line("/op secret")))
    session.end("reset")
    session.close_ledger()
    ours.close()
    assert session.console.doubtful == ["/op ******"]


def test_the_client_of_whoever_was_removed_does_not_come_back() -> None:
    with pytest.raises(chat_client.Failure, match="^you were removed by an operator"):
        john_in_a_room().hear(REMOVED.rstrip())
