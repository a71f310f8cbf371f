"""Operators: who may remove others, what guessing costs, and who can't come back."""

from __future__ import annotations

import hmac
import os
import re
import select
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from support import (
    DEADLINE,
    WELCOME,
    CheckedServer,
    Inside,
    Peer,
    Server,
    Sipping,
    Terminal,
    eventually,
    in_terminal,
    john_in_a_room,
    needs,
    needs_ipv6,
    patched,
    plain_and_tls,
    typed,
    unconnected,
)
from test_start import run

import chat_client
import chat_server
from chat_client import ChatProtocol, Failure, Line
from chat_server import (
    Connection,
    format_address,
    host_of,
)

PASSWORD = "staple battery"
REMOVED = "* you were removed by an operator; come back in 10 min\n"
KEPT_OUT = "* you, or somebody at your address, was removed; come back in 10 min\n"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    file = tmp_path / "operators"
    file.write_text(f"{PASSWORD}\nsecond line\n")
    return ["--operator-file", str(file)]


@pytest.fixture
def room(start: Callable[..., Server], options: list[str]) -> Server:
    return start("chat_server.py", *options)


def operator(room: Server, name: str = "") -> Peer:
    peer = room.join(name)
    peer.send(f"/op {PASSWORD}\n")
    peer.expect("* you are an operator\n")
    return peer


# Removing


@plain_and_tls
def test_an_operator_removes_somebody_whose_host_and_name_are_kept_out(room: Server) -> None:
    ann = operator(room, "Ann")
    bob, second = room.join("Bob", source="127.0.0.2"), room.join(source="127.0.0.2")
    carol = room.join(source="127.0.0.3")
    ann.expect("* Bob joined\n")
    ann.send("Ann: bye\n/kick BOB\n")
    bob.expect("Ann: bye\n", REMOVED)
    assert bob.rest() == b""
    ann.expect("* Bob was removed\n")
    for one in (second, carol):
        one.expect("Ann: bye\n", "* Bob was removed\n")
    room.wait_for_log(r"Bob at 127.0.0.2:\d+ was removed by Ann at 127.0.0.1:\d+, members: 3\n")
    for _ in range(3):
        late = room.connect(source="127.0.0.2")
        late.expect(KEPT_OUT)
        assert late.rest() == b""
    carol.send("/name bob\n")
    carol.expect("* bob is taken\n")
    _dora = room.join("Dora", source="127.0.0.4")
    second.send("still here\n")  # it was a member already
    carol.expect("* Dora joined\n", "still here\n")


@plain_and_tls
def test_whoever_is_kept_out_is_not_asked_for_the_password(
    start: Callable[..., Server], options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("horse\n")
    room = start("chat_server.py", *options, "--password-file", str(tmp_path / "password"))

    def knock(source: str) -> Peer:
        peer = room.connect(source=source)
        peer.expect("* password?\n")
        return peer

    members = [knock(source) for source in ("127.0.0.1", "127.0.0.2")]
    for peer in members:
        peer.send("horse\n")
        peer.expect(WELCOME)
    at_door, other = knock("127.0.0.2"), knock("127.0.0.3")
    members[1].send("/name Bob\n")
    members[0].expect("* Bob joined\n")
    members[0].send(f"/op {PASSWORD}\n/kick Bob\n")
    members[0].expect("* you are an operator\n", "* Bob was removed\n")
    at_door.expect(KEPT_OUT)
    assert at_door.rest() == b""
    late = room.connect(source="127.0.0.2")
    late.expect(KEPT_OUT)
    other.send("horse\n")
    other.expect(WELCOME)


def test_of_who_comes_from_this_machine_only_the_name_is_kept_out(room: Server) -> None:
    """All who come through a proxy do."""
    needs_ipv6()
    for host in ("127.0.0.1", "::1"):
        ann, bob = operator(room, "Ann"), room.connect(host)
        bob.send(f"/name Bob {len(host)}\n")
        ann.expect(f"* Bob {len(host)} joined\n")
        ann.send(f"/kick Bob {len(host)}\n")
        ann.expect(f"* Bob {len(host)} was removed\n")
        for again in ("127.0.0.1", "::1"):
            peer = room.connect(again)
            peer.expect(WELCOME)
            peer.send(f"/name Bob {len(host)}\n")
            peer.expect(f"* Bob {len(host)} is taken\n")
            peer.send("/quit\n")
        ann.send("/quit\n")
        ann.rest()


def test_a_host_is_the_same_by_its_address_in_either_form() -> None:
    assert host_of("[::ffff:192.0.2.1]:7") == host_of("[::ffff:c000:201]:8") == "192.0.2.1"
    assert host_of("[::1]:7") == host_of("127.0.0.1:8") != host_of("[::2]:9")


def test_whoever_is_unnamed_is_removed_by_its_address(room: Server) -> None:
    ann = operator(room, "Ann")
    ann.send("/kick\n")
    ann.expect("* /kick NAME removes somebody; these have no name: nobody\n")
    other, one = room.join(), room.join(source="127.0.0.2")
    theirs, address = (format_address(peer.sock.getsockname()) for peer in (other, one))
    ann.send("/kick\n")
    ann.expect(f"* /kick NAME removes somebody; these have no name: {theirs}, {address}\n")
    ann.send(f"/kick {address}\n")
    one.expect(REMOVED)
    ann.expect(f"* {address} was removed\n")
    ann.send("hi\n")
    other.expect("Ann: hi\n")


def test_nobody_stands_in_for_whoever_is_removed_by_its_address(room: Server) -> None:
    """In a name, what is between its letters and digits counts for nothing."""
    ann = operator(room, "Ann")
    one = room.join(source="127.0.0.2")
    address = format_address(one.sock.getsockname())
    room.join(re.sub(r"\D", "", address))
    ann.send(f"/kick {address}\n")
    one.read_until(REMOVED)
    ann.read_until(f"* {address} was removed\n")


def test_two_operators_and_one_who_leaves(room: Server) -> None:
    ann, bob = operator(room, "Ann"), operator(room, "Bob")
    ann.expect("* Bob joined\n")
    bob.send("/quit\n")
    ann.expect("* Bob left\n")
    bob = room.join("Bob")
    bob.send("/kick Ann\n")
    bob.expect("* only operators can do that; /op PASSWORD makes you one\n")
    bob.send(f"/op {PASSWORD}\n/kick Ann\n")
    bob.expect("* you are an operator\n", "* Ann was removed\n")
    ann.expect("* Bob joined\n", REMOVED)


@pytest.mark.parametrize(
    "line, answer",
    [
        ("/kick Nobody", "* nobody here has that name; see /who, or /kick for the unnamed"),
        ("/kick 127.0.0.1:1", "* nobody here has that name; see /who, or /kick for the unnamed"),
        ("/kick ann", "* to leave, say /quit"),
        ("/op", "* the password goes with it, as in /op PASSWORD"),
        (f"/op {PASSWORD}", "* you are an operator"),
    ],
)
def test_what_does_not_remove_anybody(room: Server, line: str, answer: str) -> None:
    ann = operator(room, "Ann")
    ann.send(f"{line}\n/who\n")
    ann.expect(f"{answer}\n", "* here: Ann\n")


def test_without_the_option_there_are_no_operators(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    ann, bob = room.join("Ann"), room.join()
    ann.send("/help\n/op x\n/kick x\n /op x\n")
    assert b"/op" not in b"".join(ann.line() for _ in chat_server.HELP)
    ann.expect(*["* no such command; /help lists them, and //TEXT says /TEXT\n"] * 2)
    bob.expect("Ann:  /op x\n")


def test_help_tells_of_operators(room: Server) -> None:
    ann = room.join()
    ann.send("/help\n")
    ann.read_until("* /op PASSWORD: be an operator, who can /kick NAME\n")


# From inside


def inside(names: int = 2) -> tuple[CheckedServer, list[tuple[Connection, Peer]]]:
    """Returns a room that doesn't run, and its members: an operator, and others with names."""
    room = Inside(operator=PASSWORD.encode())
    members = [room.join() for _ in range(names)]
    for number, (conn, peer) in enumerate(members):
        hear(room.server, peer, conn, f"/name N{number}\n")
    hear(room.server, members[0][1], members[0][0], f"/op {PASSWORD}\n")
    room.say(b"ready\n")
    for _, peer in members:
        peer.read_until("ready\n")
    return room.server, members


def hear(server: CheckedServer, peer: Peer, conn: Connection, text: str) -> None:
    """Has the room hear what somebody says, and everyone told what comes of it."""
    peer.send(text)
    select.select([conn.sock], [], [], DEADLINE)
    server.read_all({conn})
    server.deliver(server.room.take_batch())


def test_whoever_is_not_read_from_still_gets_everything() -> None:
    """It is slowed, and to close it with input unread would destroy what is on its way to it."""
    server, [(op, op_peer), (conn, peer)] = inside()
    server.throttle.waiting[conn] = None
    conn.read_on(False)
    peer.send("unread\n")
    hear(server, op_peer, op, "N0: bye\n/kick N1\n")
    peer.expect("N0: bye\n", REMOVED)
    assert peer.rest() == b""
    assert conn in server.membership.leaving, "it has yet to close itself"


def test_whoever_ends_in_the_turn_in_which_it_is_removed_gets_everything() -> None:
    server, [(op, op_peer), (conn, peer)] = inside()
    conn.cost = 9999  # so that it is read after the operator
    peer.half_close()
    select.select([conn.sock], [], [], DEADLINE)
    op_peer.send("N0: bye\n/kick N1\n")
    select.select([op.sock], [], [], DEADLINE)
    server.read_all({op, conn})
    server.deliver(server.room.take_batch())
    peer.expect("N0: bye\n", REMOVED)
    assert peer.rest() == b""


def test_a_wrong_password_delays_nothing() -> None:
    """Each once took a second, for which neither the next line nor the end was looked at."""
    server, [_operator, (conn, peer), (_other, other)] = inside(3)
    hear(server, peer, conn, "/op guess\nN1: after\n" + "/op again\n" * 20)
    other.expect("N1: after\n")
    while conn.unheard:
        server.turn()
    answers = [peer.line() for _ in range(21)]
    assert set(answers[:3]) == {b"* wrong password\n"}
    assert answers[10:] == [b"* too many wrong passwords; wait a moment, and try again\n"] * 11


def test_password_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def record(given: bytes, password: bytes) -> bool:
        compared.append((given, password))
        return given == password

    monkeypatch.setattr(hmac, "compare_digest", record)
    server, [_, (conn, peer)] = inside()
    hear(server, peer, conn, "/op guess\n")
    assert compared == [(PASSWORD.encode(), PASSWORD.encode()), (b"guess", PASSWORD.encode())]


def test_closing_room_hears_what_waits_behind_a_wrong_password() -> None:
    server, [(_, op_peer), (conn, peer)] = inside()
    hear(server, peer, conn, "/op guess\nN1: last words\n")
    server.stop_signals = 1
    server.close_room()
    op_peer.expect("N1: last words\n")


def test_a_ban_that_is_over_keeps_out_neither_host_nor_name(
    start: Callable[..., Server], tmp_path: Path, options: list[str]
) -> None:
    room = patched(start, tmp_path, "chat_server.BAN_TIME = 0.2", *options)
    ann, bob = operator(room, "Ann"), room.join("Bob", source="127.0.0.2")
    ann.send("/kick Bob\n")
    bob.expect("* you were removed by an operator; come back in 1 min\n")

    def is_back() -> bool:
        peer = room.connect(source="127.0.0.2")
        peer.send("/name Bob\n")
        return peer.line() == WELCOME and peer.line() == b"* you are Bob\n"

    eventually(is_back)


# Guessing


def test_guessing_is_slow_for_each_host_however_many_connections_it_has() -> None:
    server, members = inside(50)
    door = server.door
    now = server.clock.now()
    server.clock.monotonic = lambda: now
    for number, (conn, peer) in enumerate(members[2:]):
        hear(server, peer, conn, f"/op guess {number}\n")
    assert now + 3 <= door.tried[conn.host] <= now + 4, "only the first few were looked at"
    late, late_peer = members[1]  # too late: any of those may be lucky
    hear(server, late_peer, late, f"/op {PASSWORD}\n")
    assert [conn for conn, _ in members if conn.is_operator] == [members[0][0]]
    late_peer.expect("* too many wrong passwords; wait a moment, and try again\n")
    door.tried.clear()  # another host has none
    hear(server, late_peer, late, f"/op {PASSWORD}\n")
    late_peer.expect("* you are an operator\n")


def test_wrong_tries_count_at_the_door_too(
    start: Callable[..., Server], options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("horse\n")
    patch = "chat_server.WRONG_TIME = 30"
    room = patched(start, tmp_path, patch, *options, "--password-file", str(tmp_path / "password"))
    member, late, other = (room.connect(source=f"127.0.0.{number}") for number in (2, 2, 3))
    for peer in (member, late, other):
        peer.expect("* password?\n")
    member.send("horse\n/op guess\n")
    room.wait_for_log("wrong password for operators")
    late.send("horse\n")
    other.send("horse\n")
    other.expect(WELCOME)
    late.expect_nothing()


# The password stays a secret

MISTYPED = [
    f"/OP {PASSWORD}",
    f"/op: {PASSWORD}",
    f"/op\t{PASSWORD}",
    f" /op {PASSWORD}",
    f"\t/op {PASSWORD}",
    f"   /Op {PASSWORD}",
    f"/ op {PASSWORD}",
    f"//op {PASSWORD}",
    f"x\b /op {PASSWORD}",
    f"John: /op {PASSWORD}",
    f"John:  /OP {PASSWORD}",
    f"Nobody: /op {PASSWORD}",
    f"John:/op {PASSWORD}",
    f"\u200b/op {PASSWORD}",
    f"\ufeff/op {PASSWORD}",
    f"\uff0f\uff4f\uff50 {PASSWORD}",
    f"John: \uff0fop {PASSWORD}",
]


@pytest.mark.parametrize("name", ["", "John", "Ann"])
def test_the_password_is_seen_nowhere(
    start: Callable[..., Server], options: list[str], tmp_path: Path, name: str
) -> None:
    transcript = tmp_path / "transcript"
    options = [*options, "-v", "--history", "99", "--transcript", str(transcript)]
    room = patched(start, tmp_path, "chat_server.WRONG_TIME = 0", *options)
    other, one = room.join(), room.join(name)
    prefix = f"{name}: " if name else ""
    one.send(f"/op {PASSWORD} x\n")
    one.send("".join(f"{line}\n" for line in MISTYPED))  # at once, and one by one
    for line in [*MISTYPED, f"{prefix}not /op, but /opera", f"{prefix}/opera"]:
        one.send(f"{line}\n")
    one.send(f"/op {PASSWORD}\n{prefix}done\n")
    if name:
        other.expect(f"* {name} joined\n")
    other.expect(f"{prefix}not /op, but /opera\n")
    if name:  # of somebody without one it is a command
        other.expect(f"{prefix}/opera\n")
    other.expect(f"{prefix}done\n")
    newcomer = room.join()
    newcomer.send("/quit\n")
    seen = room.log() + transcript.read_text() + newcomer.rest().decode()
    assert "done" in seen and PASSWORD not in seen
    answer = b""
    while answer != b"* you are an operator\n":
        answer = one.line()
        assert answer and not chat_server.MISTYPED_OP.match(answer.decode()), "answers set off none"


def test_a_line_with_the_password_is_not_relayed_when_it_comes_alone() -> None:
    server, [_, (conn, peer), (_, other_peer)] = inside(3)
    for line in MISTYPED:
        hear(server, peer, conn, line.replace("John", "N1") + "\n")
    hear(server, peer, conn, "N1: done\n")
    other_peer.expect("N1: done\n")


@pytest.mark.parametrize("content", ["", "\nsecond", "  \n", "x" * 8189])
def test_bad_operator_file_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    done = run("chat_server.py", "--port", "0", "--operator-file", str(tmp_path / "file"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "password" in done.stderr


def test_the_part_of_python_that_it_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(" blanks around \r\n")
    args = Namespace(password_file=None, operator_file=str(tmp_path / "file"), max_line=99)
    monkeypatch.delitem(os.environ, "CHAT_PASSWORD", raising=False)
    assert chat_server.read_passwords(args) == (b"", b"blanks around")
    monkeypatch.setattr(chat_server, "hmac", None)
    with pytest.raises(chat_server.Failure, match="no module hmac"):
        chat_server.read_passwords(args)


# From nc, and from the client


def test_an_operator_with_nc(room: Server) -> None:
    bob = room.join("Bob", source="127.0.0.2")
    nc = subprocess.Popen(
        [needs("nc"), "127.0.0.1", str(room.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert nc.stdin and nc.stdout
    nc.stdin.write(f"/op {PASSWORD}\n/kick Bob\n/quit\n".encode())
    nc.stdin.flush()
    bob.expect(REMOVED)
    lines = [WELCOME.decode(), "* you are an operator\n", "* Bob was removed\n", "* bye\n"]
    assert [nc.stdout.readline().decode() for _ in lines] == lines
    nc.stdin.close()
    nc.wait(DEADLINE)


def test_an_operator_with_the_client(room: Server, terminal: Callable[..., Terminal]) -> None:
    bob = in_terminal(terminal, "127.0.0.1", str(room.port), "--name", "Bob", NO_COLOR="1")
    bob.expect("Welcome to the chatroom!")
    window = in_terminal(terminal, "127.0.0.1", str(room.port), "--name", "Ann", NO_COLOR="1")
    bob.expect("* Ann joined")
    bob.type("hi\r")
    window.expect("Bob: hi")
    window.type("first\r")
    bob.expect("Ann: first")
    window.type(f" /op {PASSWORD}\r")
    shown = window.expect("* you are an operator")
    window.type("\x1b[A\r")  # what was typed before that
    bob.expect("Ann: first")
    window.type("/kick b\t\r")
    shown += window.expect("* Bob was removed")
    assert "/kick Bob" in shown
    assert PASSWORD not in shown and PASSWORD[:3] not in shown
    bob.expect("chat_client.py: you were removed by an operator; come back in 10 min")
    assert bob.wait() == 1, "it doesn't try to come back"
    assert PASSWORD not in room.log()


def test_what_the_client_does_with_the_password() -> None:
    editor = typed("first\r")
    typed(" /OP secret word", editor)
    row = "".join(editor.view("John: ", 80))
    assert row == "John:  /OP ***********"
    typed("\r", editor)
    assert [line.text for line in editor.lines] == ["first", " /OP secret word"]
    assert list(editor.history) == ["first"]
    assert chat_client.masked("/opera: Ann /op x") == "/opera: Ann /op x"
    session = unconnected(ChatProtocol("John"), Sipping())
    session.sent = 11
    session.said.append((11, Line("/op secret")))
    session.end("reset")
    session.close_ledger()
    assert session.console.doubtful == ["/op ******"]


def test_the_client_says_the_password_to_nobody() -> None:
    chat = john_in_a_room()
    chat.submit(Line("  /op secret"))
    assert (chat.outgoing, chat.to_show[1:]) == (b"/op secret\n", [])


def test_the_client_does_not_want_a_name_that_is_kept_out() -> None:
    chat = ChatProtocol("John")
    chat.hear("Welcome to the chatroom!")
    chat.hear("* John is taken")
    chat.hear("* you are John_")
    chat.hear("John: hi")
    assert chat.candidates("j") == ["John"]
    chat.outgoing.clear()
    chat.hear("* John was removed")
    assert (chat.outgoing, chat.candidates("j")) == (b"", [])
    with pytest.raises(Failure, match="^you were removed by an operator"):
        chat.hear(REMOVED.rstrip())
