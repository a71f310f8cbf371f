"""Closed rooms: TLS, the password, and who is at the door."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crowd import Walker, pump
from support import (
    CERTS,
    CLIENT,
    DEADLINE,
    TLS_OPTIONS,
    WELCOME,
    Listener,
    Peer,
    Server,
    Terminal,
    client,
    eventually,
    every_kind,
    finish,
    needs,
    patched,
    patched_client,
    trusting,
)
from test_start import run

import chat_server

CA = ["--tls-ca", str(CERTS / "room.pem")]
PASSWORD = "correct horse"
tls = pytest.mark.parametrize("start", ["tls"], indirect=True)


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\nsecond line\n")
    return str(file)


@pytest.fixture
def closed(start: Callable[..., Server], password_file: str) -> Server:
    return start("chat_server.py", "--password-file", password_file)


@pytest.fixture
def hasty(start: Callable[..., Server], tmp_path: Path, password_file: str) -> Server:
    """The same, but a wrong password costs a tenth of a second, not a second."""
    patch = "chat_server.WRONG_TIME, chat_server.TRIES_AHEAD, chat_server.TICK = 0.1, 0.3, 0.1"
    return patched(start, tmp_path, patch, "--password-file", password_file)


def get_in(room: Server, name: str = "") -> Peer:
    peer = room.connect()
    peer.expect("* password?\n")
    peer.send(f"{PASSWORD}\r\n")
    peer.expect(WELCOME)
    if name:
        peer.send(f"/name {name}\n")
        peer.expect(f"* you are {name}\n")
    return peer


def impatient(
    start: Callable[..., Server], tmp_path: Path, *options: str, seconds: float
) -> Server:
    """A room whose door is open for so many seconds, not for ten."""
    return patched(start, tmp_path, f"chat_server.DOOR_TIME = {seconds}", *options)


@every_kind
def test_whoever_knows_the_password_is_a_member(closed: Server) -> None:
    ann, bob = get_in(closed, "Ann"), get_in(closed)
    bob.send("hi\n")
    ann.expect("hi\n")


@every_kind
def test_what_is_sent_behind_the_password_counts(closed: Server) -> None:
    ann = get_in(closed, "Ann")
    bob = closed.connect()
    bob.send(f"{PASSWORD}\n/name Bob\nBob: hi\nBob: unfin")
    ann.expect("* Bob joined\n", "Bob: hi\n")
    bob.send("ished\n")
    ann.expect("Bob: unfinished\n")
    bob.expect("* password?\n", WELCOME, "* you are Bob\n")


@every_kind
def test_one_wrong_try_is_answered_after_a_while_and_is_the_last(hasty: Server) -> None:
    assert chat_server.WRONG_TIME == 1
    member = get_in(hasty)
    guesses = ["wrong", "", PASSWORD.upper(), f" {PASSWORD}", "x" * 10_000]
    guesses += [f"{PASSWORD}x", f"{PASSWORD} ", f"{PASSWORD} {PASSWORD}"]
    if hasty.web:
        guesses.remove("")  # an empty message is nothing there
    strangers = [hasty.connect() for _ in guesses]
    began = time.monotonic()
    for stranger, guess in zip(strangers, guesses):
        stranger.expect("* password?\n")
        stranger.send(f"{guess}\n{PASSWORD}\nheard?\n")
    for stranger in strangers:
        stranger.expect("* wrong password\n")
        assert time.monotonic() - began > 0.09, "the answer waits, not only the close"
        assert stranger.rest() == b""
    member.send("/who\n")
    member.expect("* here: 1 unnamed\n")
    assert member.available() == b""


def test_a_stranger_receives_nothing_and_counts_for_nobody(closed: Server) -> None:
    ann, bob = get_in(closed, "Ann"), get_in(closed, "Bob")
    stranger = closed.connect()
    stranger.expect("* password?\n")
    ann.expect("* Bob joined\n")
    for number in range(20):
        ann.send(f"{number}\n/who\n")
        bob.expect(f"Ann: {number}\n")
        ann.expect("* here: Ann, Bob\n")
    stranger.send("Ann: I am in")  # not even a line
    stranger.half_close()
    assert stranger.rest() == b""
    closed.wait_for_log("left the door")
    assert ann.available() == bob.available() == b""


def test_silence_at_the_door_ends(
    start: Callable[..., Server], tmp_path: Path, password_file: str
) -> None:
    assert chat_server.DOOR_TIME == 10
    room = impatient(start, tmp_path, "--password-file", password_file, seconds=0.1)
    stranger = room.connect()
    assert stranger.rest() == b"* password?\n"
    room.wait_for_log("was not let in")


def test_a_crowd_at_the_door_disturbs_nobody_and_another_host_gets_in(closed: Server) -> None:
    ann, bob = get_in(closed, "Ann"), get_in(closed, "Bob")
    ann.expect("* Bob joined\n")
    first = closed.connect(source="127.0.0.2")
    first.expect("* password?\n")
    crowd = [closed.connect(source="127.0.0.2") for _ in range(99)]
    for one in crowd:
        one.expect("* password?\n")
    assert closed.connect(source="127.0.0.2").rest() == b"* the room is full\n"
    late = closed.connect()  # from a host that has no place there
    late.expect("* password?\n")
    assert crowd[-1].rest() == b"", "it came last, of the host that has most"
    closed.wait_for_log("had to make room at the door")
    for number in range(10):
        ann.send(f"{number}\n")
        bob.expect(f"Ann: {number}\n")
    for one in (first, crowd[0], late):
        one.send(f"{PASSWORD}\n")
        one.expect(WELCOME)


@pytest.mark.parametrize("start", ["tls"], indirect=True)
def test_silent_handshakes_do_not_keep_the_same_host_from_typing_a_password(
    start: Callable[..., Server], tmp_path: Path, password_file: str
) -> None:
    patch = "chat_server.HANDSHAKE_TIME = 1"  # in which `slow` has to shake hands, too
    room = patched(start, tmp_path, patch, "--password-file", password_file)
    silent = [socket.create_connection(("127.0.0.1", room.port)) for _ in range(60)]
    slow = room.connect()
    slow.expect("* password?\n")
    room.wait_for_log("was not let in")
    more = [socket.create_connection(("127.0.0.1", room.port)) for _ in range(60)]
    slow.send(f"{PASSWORD}\n")
    slow.expect(WELCOME)
    for sock in silent + more:
        sock.close()


def test_guessing_is_slow_for_each_host_and_nobody_else(closed: Server) -> None:
    """Each guess on a connection of its own, and none waits for an answer."""
    guesses = [closed.connect(source="127.0.0.2") for _ in range(50)]
    for number, guess in enumerate(guesses[1:]):
        guess.send(f"guess {number}\n")
    eventually(lambda: closed.log().count("gave a wrong password") >= 4)
    guesses[0].send(f"{PASSWORD}\n")  # too late: any of the first few may be lucky
    get_in(closed)  # from another host
    assert closed.log().count("gave a wrong password") < 8
    assert "127.0.0.2:" not in " ".join(re.findall("(.*) connected", closed.log()))


def test_a_thousand_wrong_tries_do_not_slow_the_room(closed: Server) -> None:
    ann, bob = get_in(closed, "Ann"), get_in(closed, "Bob")
    ann.expect("* Bob joined\n")
    delays = []
    for number in range(1000):
        stranger = closed.connect()
        stranger.send("guess\n")
        if number % 20 == 0:
            began = time.monotonic()
            ann.send(f"{number}\n")
            bob.expect(f"Ann: {number}\n")
            delays.append(time.monotonic() - began)
        stranger.close()
    assert min(delays) < 0.1  # on a machine that is busy, most of them may take longer
    assert "Traceback" not in closed.log()


def test_full_room_says_so_behind_the_door(
    start: Callable[..., Server], password_file: str
) -> None:
    room = start("chat_server.py", "--password-file", password_file, "--max-clients", "1")
    inside = get_in(room)
    late = room.connect()
    late.send(f"{PASSWORD}\nnot heard\n")
    late.expect("* password?\n", "* the room is full\n")
    room.process.send_signal(signal.SIGTERM)
    assert inside.rest() == b"* the room is closing\n"
    late.close()


def test_the_log_warns_of_a_password_in_the_clear(
    start: Callable[..., Server], password_file: str
) -> None:
    in_the_clear = start("chat_server.py", "--password-file", password_file)
    in_the_clear.wait_for_log("travels in the clear")
    through_tls = start("chat_server.py", "--password-file", password_file, tls=True)
    through_tls.connect()
    assert "in the clear" not in through_tls.log()


def test_password_from_the_environment(start: Callable[..., Server]) -> None:
    room = start("chat_server.py", env={**os.environ, "CHAT_PASSWORD": PASSWORD})
    get_in(room)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\nsecond",
        b"  \t\r\n",
        "größer\n".encode("latin-1"),
        "secret\n".encode("utf-16-le"),  # without a mark at its beginning
        "secret\n".encode("utf-32"),
        b"\xff\xfes",  # half of a letter
        b"\x30\x82\x01\x0a\x02",  # such as a key in another format
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["chat_server.py", "--port", "0", "--password-file"],
        ["chat_server.py", "--port", "0", "--operator-file"],
        ["chat_client.py", "--password-file"],
    ],
    ids=" ".join,
)
def test_bad_password_file_is_one_clear_line(
    tmp_path: Path, command: list[str], content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    done = run(*command, str(tmp_path / "file"))
    problem = "cannot read the password file" if content is None else "there is no password in"
    assert done.stderr.startswith(f"{command[0]}: {problem} {tmp_path / 'file'}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    "mark, encoding",
    [
        (b"", "utf-8"),
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
    ],
)
def test_password_file_as_windows_writes_it(
    start: Callable[..., Server], tmp_path: Path, mark: bytes, encoding: str
) -> None:
    """Some of these letters have a byte in them that looks like the end of a line."""
    password, file = "geheim \u010a \u0a05 \u5bc6\u7801", tmp_path / "password"
    file.write_bytes(mark + f"{password}\r\nsecond line\r\n".encode(encoding))
    room = start("chat_server.py", "--password-file", str(file))
    peer = room.connect()
    peer.expect("* password?\n")
    peer.send(f"{password}\n")
    peer.expect(WELCOME)
    options = ["localhost", room.port, "--name", "John", *(CA if room.tls else [])]
    done = client(*options, "--password-file", str(file), typed="hi\n")
    assert (done.stdout, done.returncode) == ("Welcome to the chatroom!\nJohn: hi\n", 0)
    args = Namespace(password_file=None, operator_file=str(file), max_line=99)
    assert chat_server.read_passwords(args)[1] == password.encode()


# The client at the door


@every_kind
def test_client_gives_its_password(closed: Server, password_file: str) -> None:
    ann = get_in(closed, "Ann")
    options = ["localhost", closed.port, "--name", "John", *(CA if closed.tls else [])]
    done = client(*options, "--password-file", password_file, typed="hi\n")
    assert (done.stdout, done.returncode) == ("Welcome to the chatroom!\nJohn: hi\n", 0)
    ann.expect("* John joined\n", "John: hi\n", "* John left\n")
    done = client(*options, typed="hi\n", env={**os.environ, "CHAT_PASSWORD": PASSWORD})
    assert done.returncode == 0


def test_client_with_a_wrong_password_or_none(hasty: Server) -> None:
    options = ["localhost", hasty.port, "--name", "John"]
    done = client(*options, typed="hi\n", env={**os.environ, "CHAT_PASSWORD": "wrong"})
    assert (done.stderr, done.returncode) == ("chat_client.py: wrong password\n", 1)
    done = client(*options, typed="hi\n")
    assert done.returncode == 1
    assert "--password-file" in done.stderr
    assert "wrong password" not in hasty.log().split("gave a wrong password", 1)[1]


@pytest.mark.parametrize("options", [["--plain"], []])
def test_client_asks_for_the_password_on_a_terminal(
    closed: Server, terminal: Callable[..., Terminal], options: list[str]
) -> None:
    ann = get_in(closed, "Ann")
    command = [*CLIENT, "localhost", str(closed.port), "--name", "John", *options]
    window = terminal(*command, env={**os.environ, "TERM": "xterm"})
    window.expect("password: ")
    window.type(f"{PASSWORD}\n")
    window.expect("Welcome to the chatroom!")
    assert PASSWORD not in window.shown
    window.type("hi\n")
    ann.expect("* John joined\n", "John: hi\n")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_end_the_question_for_the_password(
    closed: Server, terminal: Callable[..., Terminal], number: int, status: int
) -> None:
    termios = pytest.importorskip("termios")
    command = [*CLIENT, "localhost", str(closed.port), "--name", "John"]
    window = terminal(*command, env={**os.environ, "TERM": "xterm"})
    window.expect("password: ")
    window.process.send_signal(number)
    assert window.wait() == status
    assert termios.tcgetattr(window.master)[3] & termios.ECHO


# TLS


@tls
def test_openssl_is_a_full_member(room: Server) -> None:
    ann = room.join("Ann")
    command = [needs("openssl"), "s_client", "-quiet", "-verify_return_error", "-CAfile"]
    command += [str(CERTS / "room.pem"), "-connect", f"localhost:{room.port}"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin and process.stdout
    assert process.stdout.readline() == WELCOME
    process.stdin.write(b"/name Ossl\nhello\n")
    process.stdin.flush()
    ann.expect("* Ossl joined\n", "Ossl: hello\n")
    ann.send("hi\n")
    assert process.stdout.readline() == b"* you are Ossl\n"
    assert process.stdout.readline() == b"Ann: hi\n"
    process.stdin.write(b"/quit\n")
    process.stdin.close()
    assert process.stdout.read() == b"* bye\n"
    process.wait(DEADLINE)


@tls
def test_clean_end_is_said_with_close_notify(room: Server) -> None:
    context = trusting(CERTS / "room.pem")
    raw = socket.create_connection(("127.0.0.1", room.port), DEADLINE)
    peer = context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)
    peer.sendall(b"/quit\n")
    received = b""
    while True:
        data = peer.recv(1000)  # raises SSLEOFError where there is no close_notify
        if not data:
            break
        received += data
    assert received == WELCOME + b"* bye\n"


@tls
def test_a_peer_that_ends_first_gets_close_notify_too(room: Server) -> None:
    context = trusting(CERTS / "room.pem")
    raw = socket.create_connection(("127.0.0.1", room.port), DEADLINE)
    peer = context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)
    assert peer.recv(1000) == WELCOME
    socket.socket.shutdown(peer, socket.SHUT_WR)
    assert peer.recv(1000) == b""  # raises SSLEOFError where there is no close_notify


@tls
def test_no_group_but_a_curve_is_agreed_on(room: Server) -> None:
    """With ffdhe8192 a client can have a server compute for 100 ms, and needn't compute itself."""
    command = [needs("openssl"), "s_client", "-connect", f"127.0.0.1:{room.port}", "-groups"]
    for groups, agreed in (("ffdhe8192:ffdhe2048", False), ("ffdhe8192:P-256", True)):
        done = subprocess.run(
            [*command, groups], input=b"", capture_output=True, check=False, timeout=DEADLINE
        )
        assert (b"BEGIN CERTIFICATE" in done.stdout) == agreed


@tls
def test_client_in_a_room_with_tls(room: Server) -> None:
    ann = room.join("Ann")
    done = client("localhost", room.port, *CA, typed="John\nHi\nexit\n")
    assert done.stdout == "name: John\nWelcome to the chatroom!\nJohn: Hi\n"
    assert (done.stderr, done.returncode) == ("", 0)
    ann.expect("* John joined\n", "John: Hi\n", "* John left\n")
    lines = "".join(f"{number}\n" for number in range(5000))
    done = client("localhost", room.port, *CA, "--name", "J", typed=lines)
    assert done.returncode == 0
    ann.expect("* J joined\n", *(f"J: {number}\n" for number in range(5000)), "* J left\n")


@tls
def test_plain_client_at_a_tls_port(room: Server) -> None:
    done = client("localhost", room.port, "--name", "J", typed="hi\n")
    assert "* this room speaks TLS; use --tls\n" in done.stdout
    assert done.stderr == "chat_client.py: not let in: this room speaks TLS; use --tls\n"
    assert done.returncode == 1
    room.wait_for_log("does not speak TLS")
    assert "lost: " not in room.log()


@tls
def test_plain_client_with_nothing_to_say_at_a_tls_port(room: Server) -> None:
    done = client("localhost", room.port, "--name", "J")
    assert done.stderr == (
        "chat_client.py: lost the connection: "
        "the server closed it without a word; if it speaks TLS, use --tls\n"
    )
    assert (done.stdout, done.returncode) == ("", 1)


@tls
def test_silent_plain_client_at_a_tls_port(
    start: Callable[..., Server], tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    room = impatient(start, tmp_path, seconds=0.1)
    window = terminal(*CLIENT, "localhost", str(room.port), "--name", "J", "--plain")
    window.expect("without a word; if it speaks TLS, use --tls\n")
    assert window.wait() == 1


def test_tls_client_at_a_plain_port(room: Server) -> None:
    ann = room.join("Ann")
    done = client("localhost", room.port, "--name", "J", "--tls", typed="hi\n")
    where = f"cannot connect to port {room.port} on localhost"
    assert done.stderr == f"chat_client.py: {where}: no TLS there; leave out --tls\n"
    assert done.returncode == 1
    room.wait_for_log("speaks TLS to a room that doesn't")
    ann.send("/who\n")
    ann.expect("* here: Ann\n")


@pytest.mark.parametrize(
    "silent, message",
    [
        (False, "it closed the connection in the TLS handshake"),
        (True, "no answer in TLS; does it speak it?"),
    ],
)
def test_tls_client_where_nobody_speaks(listener: Listener, silent: bool, message: str) -> None:
    def hang_up(peer: Peer) -> None:
        peer.sock.recv(65536)  # all that comes, or to close would be a reset
        if silent:
            peer.rest()
        peer.close()

    hasty = patched_client(f"import chat_client; chat_client.CONNECT_TIME = {1 if silent else 20}")
    listener.serve(hang_up)
    done = finish([*hasty, "127.0.0.1", str(listener.port), "--name", "J", "--tls"], "hi\n")
    assert message in done.stderr
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)


@every_kind
def test_a_member_may_send_what_looks_a_little_like_tls(start: Callable[..., Server]) -> None:
    room = start("chat_server.py")
    one, two = room.join(), room.join()
    one.send("\x16\x03 is what TLS begins with\n")
    two.expect(" is what TLS begins with\n")
    one.send("half a li")
    one.send(b"\x16\x03\x01zz\x01ne\n")
    two.expect("half a lizzne\n")


@every_kind
def test_what_follows_the_password_at_once_is_another_line(closed: Server) -> None:
    ann = get_in(closed, "Ann")
    bob = closed.connect()
    bob.expect("* password?\n")
    bob.send(f"{PASSWORD}\n{'x' * 9000}\nhi\n")
    bob.expect(WELCOME)
    bob.expect("* too long: a line has at most 8192 bytes\n")
    ann.expect("hi\n")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
@tls
def test_old_versions_are_refused(room: Server, version: str) -> None:
    context = trusting(CERTS / "room.pem")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    raw = socket.create_connection(("127.0.0.1", room.port), DEADLINE)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(raw, server_hostname="localhost").recv(100)
    room.wait_for_log("lost: ")


@pytest.mark.parametrize(
    "certificate, authority, message",
    [
        ("room", None, "from an unknown authority; if it is a private one, give it with --tls-ca"),
        ("room", "other", "from an unknown authority"),
        ("other", "other", "is not for localhost"),
        ("expired", "expired", "has expired"),
    ],
)
def test_client_says_what_is_wrong_with_a_certificate(
    start: Callable[..., Server], certificate: str, authority: str | None, message: str
) -> None:
    files = ["--tls-cert", f"{CERTS / certificate}.pem", "--tls-key", f"{CERTS / certificate}.key"]
    room = start("chat_server.py", *files)
    trust = ["--tls-ca", f"{CERTS / authority}.pem"] if authority else ["--tls"]
    done = client("localhost", room.port, "--name", "J", *trust, typed="hi\n")
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "connected" not in room.log()


@tls
@pytest.mark.parametrize("kind", ["stall", "garbage"])
def test_a_hundred_bad_handshakes_delay_nobody(
    start: Callable[..., Server], tmp_path: Path, kind: str
) -> None:
    room = impatient(start, tmp_path, seconds=1)  # in which Ann and Bob have to shake hands, too
    ann, bob = room.join("Ann"), room.join("Bob")
    ann.expect("* Bob joined\n")
    crowd = []
    for number in range(100):
        sock = socket.create_connection(("127.0.0.1", room.port), DEADLINE)
        if kind == "garbage":
            sock.sendall(os.urandom(50) + b"\n")
        elif number % 2:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
        crowd.append(Peer(sock))
    delays = []
    gone = "was not let in" if kind == "stall" else "does not speak TLS"

    def all_gone() -> bool:
        began = time.monotonic()
        ann.send("hi\n")
        bob.expect("Ann: hi\n")
        delays.append(time.monotonic() - began)
        return room.log().count(gone) >= 90

    eventually(all_gone)
    assert min(delays) < 0.1  # on a machine that is busy, most of them may take longer
    for peer in crowd:
        peer.close()


@tls
def test_decrypted_data_is_never_left_lying(start: Callable[..., Server], tmp_path: Path) -> None:
    """A record is larger than what is read in a turn: its rest isn't in the kernel any more."""
    room = patched(start, tmp_path, "chat_server.TURN_READ = 100")
    (talker, listener) = (Walker(room) for _ in range(2))
    lines = b"".join(b"%d\n" % number for number in range(2000))
    talker.sock.setblocking(True)
    talker.sock.sendall(lines)
    pump([listener], lambda: bytes(listener.received) == WELCOME + lines)


@pytest.mark.parametrize(
    "options, status, message",
    [
        (TLS_OPTIONS[:2], 2, "--tls-cert and --tls-key go together"),
        (["--tls-cert", "/no/file", "--tls-key", "/no/file"], 1, "cannot read --tls-cert /no/file"),
        # A variable of the shell that isn't set must not open the room.
        (["--tls-cert", "", "--tls-key", ""], 1, "cannot read --tls-cert"),
        (["--password-file", ""], 1, "cannot read the password file"),
        (["--transcript", ""], 1, "cannot write the transcript"),
        (["--web-host", "chat.example.org"], 2, "--web-host goes with --web"),
        (["--web", "0", "--web-host", "*"], 2, "--web-host: '*' is not the name of a host"),
    ],
)
def test_options_that_make_no_sense(options: list[str], status: int, message: str) -> None:
    done = run("chat_server.py", "--port", "0", *options)
    assert done.returncode == status
    assert message in done.stderr


def test_certificates_of_the_tests_last_for_decades() -> None:
    decode: Any = ssl._ssl._test_decode_cert  # type: ignore[attr-defined]
    for name in ("room", "other"):
        end = ssl.cert_time_to_seconds(decode(str(CERTS / f"{name}.pem"))["notAfter"])
        assert end > time.time() + 50 * 365 * 86400


def test_client_gives_the_password_again_when_it_comes_back(
    listener: Listener, terminal: Callable[..., Terminal]
) -> None:
    command = [*CLIENT, "127.0.0.1", str(listener.port), "--name", "John"]
    window = terminal(*command, env={**os.environ, "TERM": "xterm"})
    server = listener.accept()
    server.send("* password?\n")
    window.expect("password: ")
    window.type(f"{PASSWORD}\n")
    server.expect(f"{PASSWORD}\n")
    server.send(WELCOME)
    server.expect("/name John\n")
    server.close()
    server = listener.accept()
    server.send("* password?\n")
    server.expect(f"{PASSWORD}\n")
