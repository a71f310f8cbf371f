"""What every script needs that people start from a shell: its streams, log, signals, sockets,
files, and words for what is wrong. What stands in two scripts to the letter is tested in one."""

from __future__ import annotations

import ast
import calendar
import contextlib
import errno
import logging
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import support
from pytest import LogCaptureFixture, MonkeyPatch
from starter import ROOT
from support import SCRIPTS, SERVERS, TLS_OPTIONS, Run, Server, Start, finish, needs, path_of, run

import chat_client
import chat_server
import echo_server
from chat_server import MAX_LINE, MAX_REPLAYED, LossyStream, Transcript, open_listeners, qr_code

if sys.platform == "win32":
    pytest.skip("needs what only Unix has", allow_module_level=True)

import pty
import resource

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "
both_servers = pytest.mark.parametrize("script", SERVERS)


def serves(server: Server, script: str) -> list[support.Peer]:
    """The server does what it is for; returns who is connected then."""
    ann = server.connect()
    if script == "echo_server.py":
        ann.send("hello\n")
        ann.expect("hello\n")
        return [ann]
    ann.send("/name Ann\n")
    ann.expect(support.WELCOME, "* you are Ann\n")
    bob = server.join("Bob")
    ann.expect("* Bob joined\n")
    for number in range(20):
        ann.send(f"{number}\n")
        bob.expect(f"Ann: {number}\n")
    return [ann, bob]


# What holds of all three


def test_same_names_stand_for_the_same_lines() -> None:
    """The scripts share no module, but what stands in two of them is the same."""
    definitions: dict[str, list[str]] = {}
    for script in SCRIPTS:
        source = (ROOT / script).read_text()
        lines = source.split("\n")
        for node in ast.parse(source).body:
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                definitions.setdefault(node.name, []).append(text)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                definitions.setdefault(node.targets[0].id, []).append(text.partition("  #")[0])
    shared = {name: texts for name, texts in definitions.items() if len(texts) > 1}
    assert {"LineFramer", "LossyStream", "open_listeners"} <= set(shared)
    own = {"main", "parse_args", "Connection", "log"}
    own |= {"LINGER", "MAX_LINE", "RECEIVE_SIZE", "set_options"}
    assert {name for name, texts in shared.items() if len(set(texts)) > 1} <= own


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_every_option_and_an_example(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0
    assert "example: python3 " + script in done.stdout
    options = re.findall(r'add\("(--[a-z-]+)"', (ROOT / script).read_text())
    assert options and all(option in done.stdout for option in options)
    assert run(script, "--version").stdout == f"{script} {chat_server.VERSION}\n"


@lru_cache(maxsize=None)
def pythons() -> dict[str, str]:
    """Returns the interpreters that CI collected, and those of the usual names on PATH, from old to
    new; with the implementation of each."""
    named = [shutil.which(f"python3.{minor}") for minor in range(8, 16)]
    listed = os.environ.get("CHAT_TEST_PYTHONS", "").split(os.pathsep)
    program = (
        "import os, sys; print(sys.implementation.name, '%d.%02d' % sys.version_info[:2],"
        "os.path.realpath(sys.executable), sep='|')"
    )
    found = set()
    for path in filter(None, [*listed, *named, sys.executable]):
        with contextlib.suppress(OSError):  # such as in another user's folder
            found.add(finish([path, "-c", program], stdin=subprocess.DEVNULL).stdout.rstrip("\n"))
    lines = (line.split("|") for line in sorted(found) if line)
    return {python: implementation for implementation, _, python in lines}


def different_pythons() -> list[str]:
    """Returns the oldest and the newest interpreter of each implementation."""
    newest = {implementation: python for python, implementation in pythons().items()}
    oldest = {implementation: python for python, implementation in reversed(pythons().items())}
    return [one for one in pythons() if one in (*newest.values(), *oldest.values())]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("python", pythons())
def test_each_script_runs_alone_in_an_empty_folder_and_no_python_warns_of_anything(
    python: str, tls: bool, start: Start, tmp_path: Path, password: list[str]
) -> None:
    for script in SCRIPTS:
        (tmp_path / script[:-3]).mkdir()
        shutil.copy(path_of(script, python), tmp_path / script[:-3] / script)
    strict = [python, "-X", "dev", "-W", "error", "-I", "-bb"]
    client = [*strict, str(tmp_path / "chat_client" / "chat_client.py"), "localhost"]
    given: dict[str, Any] = {"within": strict[:-1], "python": strict[-1]}
    options = [*password, "--history", "2", "--transcript", str(tmp_path / "transcript")]
    folder = tmp_path / "chat_server"
    room = start("chat_server.py", "-v", *options, cwd=folder, tls=tls, **given)
    trusted = support.TRUSTED if tls else []
    said = finish([*client, str(room.port), *password, *trusted], "John\nHi\n")
    assert said.stdout == "name: John\nWelcome to the chatroom!\nJohn: Hi\n"
    assert (said.stderr, said.returncode) == ("", 0)
    echo = start("echo_server.py", "-v", cwd=tmp_path / "echo_server", tls=False, **given)
    said = finish([*client, str(echo.port), "--echo"], "test\nquit\n")
    assert (said.stdout, said.stderr) == ("send: test\nrecv: test\nsend: quit\n", "")
    for server in (room, echo):
        peers = [server.connect() for _ in range(4)]
        for number, peer in enumerate(peers):
            peer.send(f"{support.PASSWORD}\n/name N{number}\n/who\nhi \x1b\n/msg N0: psst\n/nick\n")
            peer.line()
        peers[0].reset()
        peers[1].half_close()
        peers[1].rest()
        peers[2].send("/quit\n")
        server.wait_for_log("N3|/name")
        assert server.stop(peers=peers[1:]) == 0
        assert not re.search("Warning|Traceback|Exception", server.log())


# Modules and names that a Python may lack

DISPENSABLE = {*support.NOT_IN_MINIMAL, "ssl", "tty"}


def lame(tmp_path: Path, script: str, python: str) -> str:
    """Returns the name of a script, in tmp_path, that makes Python poorer and runs another one."""
    (tmp_path / "lame.py").write_text(
        f"import runpy, sys\nsys.modules.update(dict.fromkeys({DISPENSABLE}))\n"
        f"sys.argv[0] = {path_of(script, python)!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return "lame.py"


@pytest.mark.parametrize("python", different_pythons())
def test_servers_do_without_modules_that_they_do_not_need_and_name_those_that_they_do(
    python: str, start: Start, tmp_path: Path, password: list[str]
) -> None:
    for script in SERVERS:
        file = lame(tmp_path, script, python)
        server = start(file, cwd=tmp_path, python=python)
        assert server.stop(peers=serves(server, script)) == 0
        assert "Traceback" not in server.log()
    for options, module, purpose in (password, "hmac", "a password"), (TLS_OPTIONS, "ssl", "TLS"):
        command = [python, str(tmp_path / file), "--port", "0", *options]
        done = finish(command, stdin=subprocess.DEVNULL)
        why = f"this Python has no module {module}, which {purpose} needs; "
        why += "install the whole of it; on Debian: apt install python3"
        assert (done.returncode, done.stderr) == (1, f"chat_server.py: {why}\n")


def test_servers_need_only_what_is_in_debians_python3_minimal() -> None:
    known = "__future__ argparse base64 codecs collections contextlib enum errno functools hashlib"
    known += " io ipaddress itertools logging math os random re select selectors signal socket"
    known += " stat sys time typing unicodedata"
    for script in SERVERS:
        for node in ast.walk(ast.parse((ROOT / script).read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None) or one.name for one in node.names]
                assert {one.partition(".")[0] for one in names} <= {*known.split(), *DISPENSABLE}


# Streams

# What Python writes is kept for a while, except in many containers.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def goes_on(start: Start, stderr: int, *within: str, python: str = sys.executable) -> None:
    """Whatever becomes of the standard streams, no script waits for their reader, a server does
    what it is for, and each exit status is as always."""
    given: dict[str, Any] = {"stderr": stderr, "env": BUFFERED}
    for script in SERVERS:
        server = start(script, "-v", within=within, python=python, **given)
        assert server.stop(peers=serves(server, script)) == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        runs = [([script, "--no-such-option"], 2) for script in SCRIPTS]
        runs += [([script, "--port", port], 1) for script in SERVERS]
        runs += [([script, "--help"], 0) for script in SCRIPTS]
        runs.append((["chat_client.py", "--tls-ca", "none"], 1))
        for (script, *options), status in runs:
            command = [*within, python, path_of(script, python), *options]
            done = finish(command, stdin=subprocess.DEVNULL, stdout=stderr, **given)
            assert (script, options, done.returncode) == (script, options, status)


@pytest.mark.parametrize("python", different_pythons())
@pytest.mark.parametrize(
    "streams", [">/dev/full 2>/dev/full", "> >(:) 2> >(:)", "2>&-", "<&- >&- 2>&-"]
)
def test_standard_streams_change_no_exit_status(start: Start, python: str, streams: str) -> None:
    within = needs("bash"), "-c", f'exec "$@" {streams}', "bash"
    goes_on(start, subprocess.DEVNULL, *within, python=python)


# A log that takes nothing more: whoever reads it has stopped, or the disk is full. The server goes
# on meanwhile, says afterwards how many lines are missing, and ends as it should.

LOST = re.compile(STAMP + r"lines lost here: (\d+) \(.+\)")


class StoppedLog:
    """What a server's standard error is, and the end at which it could be read. It is stopped by
    whoever sits at the terminal, or by nobody who reads."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        # A socket is the journal's: Linux can't open it anew, nor, elsewhere, a pipe.
        openers: dict[str, Any] = {"pipe": os.pipe, "socket": socket.socketpair}
        ends = openers.get(kind, pty.openpty)()
        self.reader, self.writer = (one if isinstance(one, int) else one.detach() for one in ends)

    def stop(self) -> None:
        """Nothing is taken any more, from the first byte on."""
        if self.kind == "lost terminal":
            os.close(self.reader)
            self.reader = self.writer
        elif self.kind == "ctrl-s":
            os.write(self.reader, b"\x13")
            support.eventually(lambda: not select.select([], [self.writer], [], 0)[1])
        else:
            os.set_blocking(self.writer, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.writer, b"\n")
            os.set_blocking(self.writer, True)

    def read(self) -> str:
        """Returns what has come, without waiting."""
        text = b""
        while select.select([self.reader], [], [], 0)[0]:
            text += os.read(self.reader, 65536)
        return text.decode().replace("\r", "")

    def __del__(self) -> None:
        for end in {self.reader, self.writer}:
            os.close(end)


@pytest.mark.parametrize("kind", ["terminal", "pipe", "socket"])
def test_lines_of_a_log_that_is_read_now_and_then_are_whole_or_counted(kind: str) -> None:
    """Long ones too, which don't fit in as a whole."""
    log = StoppedLog(kind)
    out, read = LossyStream(log.writer), []

    def write_all() -> None:
        for number in range(3000):
            out.write("x" * number + "\n")
            if number % 100 == 0:
                read.append(log.read())

    writer = threading.Thread(target=write_all, daemon=True)
    writer.start()
    writer.join(support.DEADLINE)
    assert not writer.is_alive(), "it waits for a reader"
    lines = "".join([*read, log.read()]).split("\n")[:-1]
    told = [int(found[1]) for found in map(LOST.fullmatch, lines) if found]
    whole = [line for line in lines if re.fullmatch("x*", line)]
    assert len(told) > 1
    # What was cut short is counted too, though it may look whole.
    assert 0 <= len(whole) + sum(told) + out.lost - 3000 <= 2 * len(told) + 1


@pytest.mark.parametrize("kind", ["lost terminal", "ctrl-s", "terminal", "pipe", "socket"])
def test_no_script_waits_for_a_reader_of_its_log(start: Start, kind: str) -> None:
    log = StoppedLog(kind)
    log.stop()
    goes_on(start, log.writer)
    assert os.get_blocking(log.writer), "whoever shares it relies on that"


@contextlib.contextmanager
def almost_full_disk(file: Path, room: int) -> Iterator[None]:
    """For a moment there is room for only so many bytes more, as far as this process can tell."""
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + room, -1))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))


def test_log_on_a_disk_that_is_full_for_a_moment(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with open(file, "wb", buffering=0) as log:
        out = LossyStream(log.fileno())
        with almost_full_disk(file, 30):
            for line in ("one\n", "two, which is cut short\n", "three\n"):
                out.write("Ann: " + line)
        out.write("four\n")
    one, two, lost, four, _ = file.read_text().split("\n")
    assert (one, two, four) == ("Ann: one", "Ann: two, which is cu", "four")
    assert re.fullmatch(STAMP + r"lines lost here: 2 \(File too large\)", lost)


def test_times_are_in_utc_and_the_journal_has_its_own(start: Start, tmp_path: Path) -> None:
    """What is said is in the transcript, and with -v in the log."""
    log = tmp_path / "log0"  # which `start` takes first
    log.touch()
    journal = f"{log.stat().st_dev}:{log.stat().st_ino}"
    env = {**os.environ, "JOURNAL_STREAM": journal, "TZ": "Etc/GMT+7"}
    options = ["-v", "--transcript", str(tmp_path / "transcript")]
    room = start("chat_server.py", *options, env=env, within=["env"])
    echo = start("echo_server.py", env=env, within=["env"])
    one, two = room.join("John"), room.join()
    one.send("a\n/msg John: secret\nb\n")
    two.expect("John: a\n", "John: b\n")
    room.stop(peers=[one, two])
    assert room.log().startswith("listening on ")
    written = (tmp_path / "transcript").read_text().splitlines()
    stamps, said = zip(*(line.split(" ", 1) for line in written))
    assert said == ("* John joined", "John: a", "John: b", "* the room is closing")
    assert all(f"said: {line}\n" in room.log() for line in said)
    for stamp in (*stamps, echo.log().split(" ")[0]):
        at = calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
        assert abs(at - time.time()) < 3600


def test_logged_lines_are_printable_and_a_hundred_at_once(caplog: LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    lines = ['it\'s "plain" \\x1b ü 本', "\x1b[31m it's \\n\tred", "\u2028\u202e \x85"]
    shown = [lines[0], "\\x1b[31m it's \\n\\tred", "\\u2028\\u202e \\x85"]
    chat_server.log_said("".join(f"{line}\n" for line in lines).encode())
    assert caplog.messages == [f"said: {line}" for line in shown]
    for count in (100, 150):
        chat_server.log_said(b"x\n" * count)
    assert caplog.messages[3:] == ["said: x"] * 200 + ["said: (50 more lines)"]


# Signals, descriptors


def test_signals_that_end_a_script_arrive(monkeypatch: MonkeyPatch) -> None:
    complaints: list[Any] = []  # which are tracebacks on standard error
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    former = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for begin in echo_server.ending_signals, partial(chat_client.open_signal_socket, *numbers):
        with begin() as signals:
            for number in numbers:
                os.kill(os.getpid(), number)
                assert support.eventually(partial(signals.recv, 9)) == bytes([number])
            for _ in range(3000):  # more than it holds
                signal.raise_signal(signal.SIGTERM)
            os.close(signal.set_wakeup_fd(-1))
            assert not complaints
    for number, handler in former.items():
        signal.signal(number, handler)


@both_servers
def test_a_closed_terminal_does_not_end_a_server_with_nohup(start: Start, script: str) -> None:
    ignore = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    server = start(script, preexec_fn=lambda: ignore() and None)
    server.process.send_signal(signal.SIGHUP)
    assert server.stop(signal.SIGINT, serves(server, script)) == 0
    assert "SIGHUP" not in server.log()
    assert server.log().endswith("stopped by SIGINT\n")


def test_a_signal_after_the_end_leaves_no_trace(start: Start, tmp_path: Path) -> None:
    late = "import atexit, signal\natexit.register(signal.raise_signal, signal.SIGTERM)"
    room = support.patched(start, tmp_path, late)
    member = room.join()  # before that, a signal would find it as any process is at its start
    assert room.stop(peers=[member]) == 0
    assert room.log().splitlines()[-1].endswith("stopped by SIGTERM")


@both_servers
def test_the_descriptor_limit_is_raised_and_then_newcomers_wait(start: Start, script: str) -> None:
    lower = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 100))
    server = start(script, preexec_fn=lower)
    first, *_, last = peers = serves(server, script) * 2
    knocking = [server.connect() for _ in range(120)]
    server.wait_for_log("newcomers have to wait")
    assert server.count() > 70
    for number in range(20):
        first.send(f"{number}\n")
        assert last.line().endswith(f"{number}\n".encode())
    before = server.cpu_seconds()
    time.sleep(0.5)  # not to wait for something, but to see that nothing happens
    assert server.cpu_seconds() - before < 0.06
    assert server.log().count("newcomers have to wait") == 1
    for peer in [*knocking, *peers]:
        peer.close()
    serves(server, script)


@pytest.mark.parametrize("limit, members", [(1024, 792), (100, 10_000), (20_000, 10_000)])
def test_files_limit_the_members(monkeypatch: MonkeyPatch, limit: int, members: int) -> None:
    """Else one host could take them all."""
    monkeypatch.setattr(chat_server, "allow_descriptors", lambda needed: min(needed, limit))
    assert chat_server.allow_members(10_000) == members


def test_a_limit_that_cannot_be_raised_stays_what_it_is(monkeypatch: MonkeyPatch) -> None:
    """As on macOS, which allows less than it says."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 2**63 - 1))
    monkeypatch.setattr(resource, "setrlimit", mock.Mock(side_effect=ValueError))
    assert chat_server.allow_descriptors(10_000) == 256


@both_servers
@pytest.mark.parametrize("limit", range(5, 12, 2))
def test_few_files_are_no_traceback(start: Start, tmp_path: Path, script: str, limit: int) -> None:
    lower = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit))
    with contextlib.suppress(AssertionError, OSError):  # as it may have ended by then
        server = start(script, preexec_fn=lower)
        server.connect().close()
        server.wait_for_log(" connected, |have to wait")
        server.stop()
    log = (tmp_path / "log0").read_text()
    assert "Traceback" not in log
    assert re.search(r"oo (many|few) open files\n$|stopped by SIGTERM\n", log)


# Listening

BOTH, ALL = ["::1", "127.0.0.1"], ["::", "0.0.0.0"]


@pytest.mark.parametrize(
    "hosts, addresses",
    [
        *((["localhost"], BOTH), (["127.0.0.1", "localhost"], BOTH[::-1])),
        (["127.0.0.2", "127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]),
        *((hosts, ALL) for hosts in (["*"], ["::"], ["127.0.0.1", "::"], ["::1", "*", "::"])),
        (["0.0.0.0", "localhost"], ["0.0.0.0", "::1"]),
    ],
)
def test_hosts_mean_all_their_addresses_on_one_port(hosts: list[str], addresses: list[str]) -> None:
    support.needs_ipv6()
    listeners = open_listeners(hosts, 0)
    names = [one.getsockname() for one in listeners]
    assert [host for host, *_ in names] == addresses
    assert len({port for _, port, *_ in names}) == 1
    for one, address in zip(listeners, addresses):
        near = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(address, address)
        with socket.create_connection((near, names[0][1])):
            assert one.accept()[1][0] in ("::1", "127.0.0.1")
        one.close()


def test_why_nobody_can_connect() -> None:
    for code, why in (
        (errno.EACCES, "port 7 on h is for the superuser; choose one above 1023 with --port"),
        (errno.EIO, "cannot listen on port 7 of h: trouble"),
    ):
        assert echo_server.why_not_listening(OSError(code, "trouble"), "h", 7, "--port") == why


# Newcomers

OPTIONS = {"SO_OOBINLINE": 1, "SO_KEEPALIVE": 1, "TCP_NODELAY": 1, "TCP_KEEPIDLE": 60}
OPTIONS.update(TCP_KEEPINTVL=15, TCP_KEEPCNT=4)
OPTIONS.update(TCP_USER_TIMEOUT=0)  # would end a peer that is only suspended, too
ROOM_OPTIONS = {"TCP_NOTSENT_LOWAT": 64 * 1024}


@pytest.mark.parametrize("platform", [sys.platform, "elsewhere"])
@pytest.mark.parametrize("module", [chat_server, echo_server])
def test_each_socket_has_its_options(module: Any, platform: str, monkeypatch: MonkeyPatch) -> None:
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
    server: Any = support.checked_server([listener]) if is_room else module.EchoServer([], 9)
    with listener, peers[0]:
        (server.door.acceptor if is_room else server).accept(listener)
        (conn,) = server.room.members if is_room else server.clients
        for name, value in {**OPTIONS, **(ROOM_OPTIONS if is_room else {})}.items():
            level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
            if hasattr(socket, name):
                got = conn.sock.getsockopt(level, getattr(socket, name))
                assert got == value or (value == 1 and got), name
        assert not conn.sock.getblocking()


def test_a_bug_in_admitting_ends_that_connection_alone(caplog: LogCaptureFixture) -> None:
    (listener,) = open_listeners(["127.0.0.1"], 0)
    server = support.checked_server([listener])
    server.door.open()
    bug = mock.patch.object(server.door.acceptor, "admit", side_effect=RuntimeError("a bug"))
    with bug, socket.create_connection(listener.getsockname()):
        server.turn()
    assert "could not be admitted" in caplog.text
    with socket.create_connection(listener.getsockname()):
        server.turn()
    assert len(server.room.members) == 1
    server.door.close()
    server.door.open()  # as when something else is due then
    assert chat_server.format_address(None) == "somebody:0"  # on macOS, of one that was reset


# The transcript


def read_pipe(fifo: Path) -> list[str]:
    """Returns the lines that are in a pipe, without their times."""
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        lines = (reader.read() or b"").decode().split("\n")[:-1]
    assert all(len(re.findall(STAMP, line)) <= 1 for line in lines)
    return [re.sub(STAMP, "", line) for line in lines]


def test_a_pipe_keeps_lines_and_counts_others(tmp_path: Path, caplog: LogCaptureFixture) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    transcript = Transcript(str(fifo))
    assert not os.get_blocking(transcript.file), "or this would wait for ever"
    for text in "one\n", "two\nthree\n":
        transcript.write(text.encode())
        assert Transcript(str(fifo)).messages(MAX_LINE) == b"", "what is no file has no history"
        assert read_pipe(fifo) == text.splitlines()
    assert not caplog.messages
    many = [f"{number:04d} {'x' * 700}\n" for number in range(300)]
    for at in range(0, len(many), 7):  # of one, the pipe takes a part
        transcript.write("".join(many[at : at + 7]).encode())
    lines = read_pipe(fifo)
    transcript.write(b"hi\n")
    lines += read_pipe(fifo)
    whole = [line for line in lines if f"{line}\n" in many]
    assert lines[-1] == "hi" and len(whole) > 50
    assert len(lines) - len(whole) <= 2  # one was cut short, and is counted
    for line in many:
        transcript.write(line.encode())
    transcript.close()
    complaint = f"cannot write the transcript {fifo}: nobody is reading it\n"
    told = f"{complaint}lines missing in the transcript {fifo}: ([0-9]+)\n"
    found = re.fullmatch(told * 2, "\n".join([*caplog.messages, ""]))
    assert found and 0 <= len(whole) + int(found[1]) - len(many) <= 1  # perhaps it lacks a newline


def test_a_disk_that_is_full_for_a_moment(tmp_path: Path, caplog: LogCaptureFixture) -> None:
    file = tmp_path / "transcript"
    transcript = Transcript(str(file))
    transcript.write(b"* Ann joined\n")
    with almost_full_disk(file, 40):
        transcript.write(b"Ann: I owe you a hundred\n")
        transcript.write(b"Ann: or two\n")
    transcript.write(b"Bob: no\n")
    transcript.close()
    complaint = f"cannot write the transcript {file}: File too large"
    assert caplog.messages == [complaint, f"lines missing in the transcript {file}: 2"]
    lines = [re.sub(f"^{STAMP}", "", line) for line in file.read_text().split("\n")]
    assert lines == ["* Ann joined", "Ann: I owe you a hu\x18", "Bob: no", ""]
    for before in lines[0], "* Ann joined\x18\n":  # as after a stop while it was full
        file.write_text(before)
        transcript = Transcript(str(file))
        transcript.write(b"a\n")
        transcript.close()
        assert file.read_text().startswith("* Ann joined\x18\n20")


def test_a_transcript_that_vanished_begins_anew(tmp_path: Path, caplog: LogCaptureFixture) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    file = folder / "transcript"
    transcript = Transcript(str(file))
    for text in b"a\n", b"b\n":
        old = transcript.file
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.unlink()
        transcript.write(text)
        assert file.read_bytes().endswith(b" " + text)
        with pytest.raises(OSError):
            os.fstat(old)
    folder.rename(elsewhere)
    for text in b"c\n", b"d\n":
        transcript.write(text)
    elsewhere.rename(folder)
    transcript.write(b"e\n")
    assert file.read_bytes().endswith(b"Z e\n")
    transcript.close()
    assert caplog.text.count("cannot write the transcript") == 1
    file.chmod(0o664)  # which is its owner's business
    Transcript(str(file)).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o664


# The history that comes from it

TIME = "2026-11-26T01:02:03Z "


@pytest.mark.parametrize(
    "line, said",
    [
        *((TIME + line, f"{line}\n") for line in ("Ann: hi", "no name", f"{TIME}Ann: hi")),
        *((TIME + line, f"{line}\n") for line in (" indented", "*no notice", "Ü\tü", "x" * 100)),
        *((TIME + line, "") for line in ("x" * 101, "* Ann joined", "broken \udcff")),
        *((TIME + line, "") for line in ("Ann: h\x18", "Ann: \x1b[2Jhi", "Ann: hi\r")),
        *((TIME + line, "") for line in ("\0\0\0\0", "Ann: c1 \x9b", "")),
        *((line, "") for line in (TIME.rstrip(), "", "Ann: hi", TIME[:12], f"x{TIME}Ann: hi")),
        ("2026-11-26 01:02:03 Ann: hi", ""),
    ],
)
def test_what_of_a_transcript_was_said(line: str, said: str) -> None:
    data = f"{TIME}before\n{line}\n{TIME}after\n{TIME}torn".encode("utf-8", "surrogateescape")
    assert chat_server.said_before(data, 100).decode() == f"before\n{said}after\n"


def test_history_survives_a_restart_in_the_middle_of_a_line(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "transcript"
    said = ["Ann: one", f"Ann: {TIME}two", f"{TIME}three"]
    file.write_text("".join(f"{TIME}{line}\n" for line in [*said, "* Ann left"]) + f"{TIME}torn")
    options, port = ["--history", "3", "--transcript", str(file)], support.free_port()
    for number in range(3):
        room = start("chat_server.py", *options, port=port)
        ann, bob = room.join(), room.join()
        for peer in ann, bob:
            peer.expect(*(f"{line}\n" for line in said[-3:]))
        bob.send(f"{number}\n")
        ann.expect(f"{number}\n")
        said.append(str(number))
        assert room.stop(peers=[ann, bob]) == 0


def test_history_comes_from_the_end_of_a_transcript_however_long_it_is(tmp_path: Path) -> None:
    file = tmp_path / "transcript"
    lines = [f"{number} {'x' * (number % 100)}" for number in range(60_000)]
    file.write_text("".join(f"{TIME}{line}\n" for line in lines))
    assert file.stat().st_size > 2 * MAX_REPLAYED
    got = Transcript(str(file)).messages(MAX_LINE).decode().split("\n")[:-1]
    assert got == lines[-len(got) :]
    assert 0 <= MAX_REPLAYED - sum(len(f"{TIME}{line}\n") for line in got) < 200
    line = f"{TIME}what was said after\n"
    file.write_text(f"{TIME}{line}".ljust(len(TIME) + MAX_REPLAYED, "x"))  # ends within the next
    assert Transcript(str(file)).messages(MAX_LINE) == b"", "the rest of a line is none"
    file.write_text("x" * 2 * MAX_REPLAYED + "\n")
    assert Transcript(str(file)).messages(MAX_LINE) == b""


# How to join


def hint(server: Server) -> str:
    """Returns the command in the log for joining, or trying, the server."""
    return server.wait_for_log(r"(?:join|try it): (.*)").group(1)


@both_servers
def test_the_log_says_who_can_connect_and_how(start: Start, script: str) -> None:
    support.needs_ipv6()
    server = start(script, port=0)
    assert hint(server).endswith(f" localhost {server.port}")
    assert "only this machine can connect" in server.log()
    server = start(script, "--host", "[::1]")
    assert f" ::1 {server.port}" in hint(server)
    assert "only this machine can connect" in server.log()
    server = start(script, "--host", "::1", "--host", "0.0.0.0")
    assert "whoever can reach this machine can connect" in server.log()
    server = start(script, "--host", "::")
    server.connect("::1").close()
    server.connect("127.0.0.1").close()
    server.wait_for_log(r" 127\.0\.0\.1:.* connected")
    assert "::ffff" not in server.log()
    shown = hint(start(script, "--host", "*"))
    assert " * " not in shown, "no host has that name"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        if not way.connect_ex(("192.0.2.1", 9)):
            assert f" {way.getsockname()[0]} " in shown


@pytest.fixture
def told(caplog: LogCaptureFixture, monkeypatch: MonkeyPatch) -> Any:
    """told(listening, own, options) returns what is said about joining a room that listens there,
    on a machine with these addresses; its certificate's files may be options."""

    def tell(listening: list[str], own: Sequence[str] = (), options: Any = ()) -> list[str]:
        addresses = [(host, 7007) for host in listening]
        listeners: Any = [SimpleNamespace(getsockname=partial(tuple, one)) for one in addresses]
        monkeypatch.setattr(chat_server, "own_addresses", lambda: own)
        certificate = chat_server.Certificate(options[1], options[3]) if options else None
        caplog.clear()
        with caplog.at_level(logging.INFO):
            chat_server.tell_where(listeners, ["localhost"], certificate)
        return caplog.messages

    return tell


OWN = ["192.0.2.9", "172.17.0.1", "2001:db8::5", "fe80::1", "127.0.0.1"]
ELSEWHERE = "192.0.2.77"


def in_network(*changes: str) -> list[str]:
    """Returns what a command begins with that is to run in a network of its own, after these
    changes to it by `ip`."""
    lines = [f"{needs('ip')} {one}" for one in ("link set lo up", *changes)]
    command = [needs("unshare"), "--net", "sh", "-ec", "\n".join([*lines, 'exec "$@"']), "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are for the superuser")
    return command


LAN, DOCKER = "lan0 192.168.1.5/24 up", "docker0 172.17.0.1/16 up"
LAN6, DOCKER6 = LAN.replace("up", "fd00:2::5/64 up"), DOCKER.replace("up", "fd00:1::1/64 up")


@pytest.mark.parametrize(
    "interfaces, expected",
    [
        ([DOCKER, LAN], "192.168.1.5 172.17.0.1"),
        ([DOCKER.replace("up", "down"), LAN], "192.168.1.5"),
        (["eth0 192.0.2.9/24 unplugged", LAN], "192.168.1.5"),
        (["tun0 10.8.0.2/24 up", LAN], "192.168.1.5 10.8.0.2"),
        (["tun0 10.8.0.2/24 up", LAN, "tun0 default"], "10.8.0.2 192.168.1.5"),
        ([LAN, "wwan0 100.72.13.5/24 up", "wwan0 default"], "100.72.13.5 192.168.1.5"),
        (["br0 10.8.0.2/24 up", DOCKER, "br0 default"], "10.8.0.2 172.17.0.1"),
        ([DOCKER6, LAN6], "192.168.1.5 fd00:2::5 172.17.0.1 fd00:1::1"),
        ([], ""),
    ],
)
def test_own_addresses_that_work_the_likeliest_first(interfaces: list[str], expected: str) -> None:
    """In a network of its own, with the name of each interface, its addresses, and whether it is
    up, down, or unplugged; or what has the default route."""
    if ":" in expected:
        support.needs_ipv6()
    changes = []
    for name, *addresses, state in map(str.split, interfaces):
        if state == "default":
            changes.append(f"route add default dev {name}")
            continue
        kind = "veth peer name far" if state == "unplugged" else "bridge"
        changes.append(f"link add {name} type {kind}")
        changes += [f"address add {one} dev {name}" for one in addresses]
        changes += [f"link set {name} up"] if state != "down" else []
    program = "import chat_server; print('found', *chat_server.own_addresses())"
    command = [*in_network(*changes), sys.executable, "-c", program]
    done = finish(command, stdin=subprocess.DEVNULL, cwd=support.MODULES)
    own = [one for one in done.stdout.split()[1:] if not one.startswith(("127.", "::1", "fe80:"))]
    assert own == expected.split(), done.stderr


def certificate(folder: Path, names: str, authority: str = "") -> list[str]:
    """Makes new.pem and new.key for some names, signed by itself or an authority. Returns the
    options for them."""
    openssl = needs("openssl")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-nodes", "-days", "30", "-subj", "/CN=x"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "new.key"]
    command += ["-addext", f"subjectAltName={names}", "-out", "new.pem"]
    if authority:
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
        command += ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this openssl can't make such a certificate")
    return ["--tls-cert", str(folder / "new.pem"), "--tls-key", str(folder / "new.key")]


@pytest.mark.parametrize(
    "listening, own, names, hosts",
    [
        (BOTH, OWN, "", ["localhost"]),
        (ALL, OWN, "", ["192.0.2.9", "172.17.0.1", "2001:db8::5"]),
        (ALL, ["2001:db8::5", "172.17.0.1"], "", ["172.17.0.1", "2001:db8::5"]),
        (["0.0.0.0"], OWN, "", ["192.0.2.9", "172.17.0.1"]),
        (["127.0.0.1", ELSEWHERE], OWN, "", [ELSEWHERE]),
        (ALL, ["fe80::1"], "", [socket.gethostname()]),
        (["0.0.0.0"], OWN, f"DNS:lab1,IP:{OWN[0]}", [OWN[0]]),
        (["0.0.0.0"], OWN, "DNS:localhost,DNS:*.example.org,DNS:x.example.org", ["x.example.org"]),
        (["0.0.0.0"], OWN, f"IP:{OWN[0]},IP:{OWN[1]}", OWN[:2]),
        (["0.0.0.0"], OWN, f"IP:{OWN[1]}", [OWN[1]]),
    ],
)
def test_hint_has_hosts_by_which_others_reach_this_machine_and_for_which_its_certificate_is(
    tmp_path: Path, told: Any, listening: list[str], own: list[str], names: str, hosts: list[str]
) -> None:
    join = f"join: python3 chat_client.py {hosts[0]} 7007"
    if names:
        lines = [f"{join} --tls-ca new.pem", "copy new.pem to that host first; it isn't secret"]
    else:
        lines = [join, f"or: nc {hosts[0]} 7007"]
    if hosts[1:]:
        lines.append(f"other addresses of this machine: {', '.join(hosts[1:])}")
    assert told(listening, own, certificate(tmp_path, names) if names else [])[1:] == lines


def test_hint_warns_of_a_certificate_that_clients_refuse(told: Any) -> None:
    mismatch = f"IP address mismatch, certificate is not valid for '{ELSEWHERE}'"
    for name, why in ("room", mismatch), ("expired", "certificate has expired"):
        options = ["", str(support.CERTS / f"{name}.pem"), "", str(support.CERTS / f"{name}.key")]
        warning, _, join, *_ = told([ELSEWHERE], (), options)
        assert warning.startswith(f"clients will refuse {options[1]}: {why}; make or get one that")
        assert join.startswith(f"join: python3 chat_client.py {ELSEWHERE} 7007 --tls")


def test_hint_for_this_machine_has_the_whole_path(told: Any, monkeypatch: MonkeyPatch) -> None:
    join = "join: python3 chat_client.py localhost 7007 --tls"
    assert told(["127.0.0.1"], (), TLS_OPTIONS)[1:] == [f"{join}-ca {TLS_OPTIONS[1]}"]
    monkeypatch.setenv("SSL_CERT_FILE", TLS_OPTIONS[1])  # now the system trusts it
    assert told(["127.0.0.1"], (), TLS_OPTIONS)[1:] == [join]


def test_hint_where_the_certificate_itself_cannot_be_copied(tmp_path: Path, told: Any) -> None:
    """Its authority is what has to be trusted, or the key is in the same file."""
    options = certificate(tmp_path, f"IP:{ELSEWHERE}", authority=str(support.CERTS / "room"))
    assert told([ELSEWHERE], (), options)[1:] == [
        f"join: python3 chat_client.py {ELSEWHERE} 7007 --tls-ca FILE",
        f"FILE is the certificate of the authority behind {options[1]}",
    ]
    options = certificate(tmp_path, f"IP:{ELSEWHERE}")
    both = tmp_path / "my room.pem"
    both.write_bytes(b"".join(Path(options[n]).read_bytes() for n in (3, 1)))
    assert told([ELSEWHERE], (), ["", str(both), "", str(both)])[1:] == [
        f"join: python3 chat_client.py {ELSEWHERE} 7007 --tls-ca NEW.pem",
        "copy NEW.pem to that host first; that is 'my room.pem' without the key",
    ]


def test_what_the_log_says_can_be_pasted(start: Start, tmp_path: Path, password: list[str]) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    shutil.copy(ROOT / "chat_client.py", folder)
    changes = ["link add lan type bridge", "address add 10.9.8.1/24 dev lan", "link set lan up"]

    def pasted(command: str, typed: str) -> str:
        env = {**os.environ, "CHAT_PASSWORD": support.PASSWORD}
        enter = [needs("nsenter"), "--net", "--target", str(room.process.pid)]
        return finish([*enter, "sh", "-c", command], typed, cwd=folder, env=env).stdout

    within = in_network(*changes)
    room = start("chat_server.py", "--host", "::", within=within)
    assert hint(room) == f"python3 chat_client.py 10.9.8.1 {room.port}"
    assert pasted(hint(room), "John\n").endswith("Welcome to the chatroom!\n")
    needs("nc")
    nc = room.wait_for_log(r"or: (nc .*)").group(1)
    assert pasted(nc, "/quit\n").startswith("Welcome to the chatroom!\n")
    options = [*certificate(tmp_path, "DNS:localhost,IP:10.9.8.1"), *password]
    room = start("chat_server.py", "--host", "::", *options, within=within, web=True)
    room.wait_for_log("copy new.pem to that host first")
    room.wait_for_log(r"in a browser: https://10\.9\.8\.1:\d+/\n")
    shutil.copy(tmp_path / "new.pem", folder)
    assert pasted(hint(room), "John\n").endswith("Welcome to the chatroom!\n")


# The QR code of the page's address

URL = "http://192.0.2.7:7080/"


def decode(rows: list[str], folder: Path) -> str:
    """Returns what a scanner reads where these rows of half blocks are shown."""
    halves = [[" \u2584\u2580\u2588".index(char) for char in row] for row in rows]
    dots = ["".join("01"[not half & bit] * 4 for half in row) for row in halves for bit in (2, 1)]
    lines = [row for row in dots for _ in range(4)]
    file = folder / "code.pbm"
    file.write_text("\n".join(["P1", f"{len(lines[0])} {len(lines)}", *lines, ""]))
    command = [needs("zbarimg"), "--quiet", "--raw", str(file)]
    return finish(command, stdin=subprocess.DEVNULL).stdout.rstrip("\n")


@pytest.mark.parametrize("size", [17, 18, 53, 54, 106])
def test_a_scanner_reads_every_version(size: int, tmp_path: Path) -> None:
    text = (URL * 5)[:size]
    rows = qr_code(text.encode())
    assert set("".join(rows[:2])) == {"\u2588"}, "no blank above it"
    assert decode(rows, tmp_path) == text
    assert qr_code(text.encode().ljust(107)) == []


def test_the_address_is_shown_on_terminals(terminal: Run, start: Start, tmp_path: Path) -> None:
    options = "--host", "127.0.0.1", "--port", "0", "--web", "0"
    command = sys.executable, path_of("chat_server.py"), *options
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    screen, ascii_screen = terminal(*command), terminal(*command, env=plain)
    screen.expect("in a browser: ")
    url = screen.expect("\n")
    size = len(qr_code(url.encode())[0])
    rows = [screen.expect("\n")[-size:] for _ in range((size + 1) // 2)]
    ascii_screen.expect("in a browser: ")
    ascii_screen.process.send_signal(signal.SIGTERM)
    server = start("chat_server.py", web=True)
    server.stop()
    assert not re.search("[\u2580-\u259f]", server.log() + ascii_screen.rest())
    assert decode(rows, tmp_path) == url


# Words for what is wrong

CHAT, ECHO, CLIENT = [["chat_server.py"], ["echo_server.py"], ["chat_client.py"]]
ROOMS = [*CHAT, *CLIENT]


@pytest.mark.parametrize(
    "scripts, options, status, message",
    [
        (SCRIPTS, "--no-such-option", 2, "--no-such-option"),
        (CHAT, "--password=hunter2", 2, "there is no option --password\n"),
        (CHAT, "--max-client 5", 2, "there is no option --max-client"),
        (ECHO, "--max-client 5", 2, "unrecognized arguments"),
        (SERVERS, "--port 70000", 2, "70000 is not a port"),
        (CHAT, "--port http", 2, "http is not a port; ports are 0 to 65535"),
        (CHAT, "--max-clients 0", 2, "0 is not a number from 1 to"),
        (CHAT, "--max-clients 2000000000", 2, "2000000000 is not a number from 1 to 1,000,000,000"),
        *((ECHO, f"--max-clients {n}", 2, "must be 1 to") for n in ("0", "2000000000")),
        (SERVERS, "--max-clients some", 2, "some"),
        (CHAT, "--host 127.0.0.1:7007", 2, "has a port in it: --host 127.0.0.1 --port 7007"),
        (CHAT, "--host [::1]:7007", 2, "has a port in it: --host [::1] --port 7007"),
        (CHAT, "--host ", 2, "no host is given"),
        (CHAT, "--web-host x.example", 2, "--web-host goes with --web"),
        (CHAT, "--tls-key x", 2, "--tls-cert and --tls-key go together"),
        (CHAT, "--max-line 1048577", 2, "--max-line can be 1048576 at most"),
        (SERVERS, "--host no-such-host.invalid", 1, "host no-such-host.invalid is unknown; "),
        (SERVERS, f"--host {'x' * 70}", 1, "is unknown"),
        (SERVERS, "--host 203.0.113.1", 1, "203.0.113.1 is not an address of this machine"),
        (SERVERS, "--host fe80::1", 1, "fe80::1 needs the interface that it belongs to, as in"),
        (SERVERS, "--host fe80::1%nosuch0", 1, "host fe80::1%nosuch0 is unknown"),
        (SERVERS, "--port {taken}", 1, "port {taken} on localhost is taken; choose another with"),
        (CHAT, "--web {taken}", 1, "choose another with --web"),
        (CHAT, "--transcript no/file", 1, "cannot write the transcript no/file: No such file"),
        (CHAT, "--transcript folder", 1, "folder: Is a directory"),
        (ROOMS, "--password-file folder", 1, "folder: Is a directory"),
        (ROOMS, "--password-file none", 1, "cannot read the password file none: No such"),
        (ROOMS, "--password-file empty", 1, "there is no password in empty"),
        (CHAT, "--max-line 99 --password-file long", 1, "the password is longer than a line may"),
        (CHAT, "--max-line 100 --operator-file long", 1, "the password is longer than a line may"),
        # a variable of the shell that is not set opens no room
        (CHAT, "--password-file ", 1, "cannot read the password file : No such"),
        (CHAT, "--operator-file ", 1, "cannot read the password file : No such"),
        (CHAT, "--transcript ", 1, "cannot write the transcript : No such"),
        (CHAT, "--tls-cert  --tls-key ", 1, "cannot read --tls-cert : No such"),
        (CLIENT, "--tls-ca ", 1, "--tls-ca is given no file"),
    ],
)
def test_what_keeps_a_script_from_starting_is_one_clear_line(
    tmp_path: Path, scripts: list[str], options: str, status: int, message: str
) -> None:
    if "fe80:" in options:
        support.needs_ipv6()
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "long").write_text("x" * 100)
    with socket.create_server(("127.0.0.1", 0)) as one:
        taken = one.getsockname()[1]
        for script in scripts:
            port = ["--port", "0"] if script in SERVERS and "--port" not in options else []
            words = [word.replace("{taken}", str(taken)) for word in options.split(" ")]
            done = run(script, *port, *words, cwd=tmp_path)
            assert done.returncode == status
            *usage, line = done.stderr.splitlines()
            assert line.startswith(f"{script}: ")
            assert message.replace("{taken}", str(taken)) in f"{line}\n"
            assert not usage or status == 2
            assert not re.search("Errno|Traceback|hunter2", done.stderr)


@pytest.fixture(scope="module")
def pem_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that are no good, beside good ones."""
    folder = tmp_path_factory.mktemp("pem")
    for name in ("room.pem", "room.key", "other.key"):
        shutil.copy(support.CERTS / name, folder)
    for name in ("pem", "key"):
        text = (folder / f"room.{name}").read_text().replace("KEY-----\nM", "KEY-----\nA")
        text = text.replace("CERTIFICATE-----\nM", "CERTIFICATE-----\nA")
        (folder / f"damaged.{name}").write_text(text)
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    openssl = [needs("openssl"), "pkey", "-in", "room.key", "-aes128", "-passout", "pass:x"]
    subprocess.run([*openssl, "-out", "locked.key"], cwd=folder, check=True)
    rsa = [openssl[0], "genrsa", "-out", "rsa.key", "2048"]
    subprocess.run(rsa, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    return folder


@pytest.mark.parametrize(
    "cert, key, message",
    [
        ("room.key", "room.pem", "there is no certificate in PEM format in room.key"),
        ("room.pem", "other.key", "the key in other.key does not belong to the first certificate"),
        ("room.pem", "rsa.key", "the key in rsa.key does not belong to the first certificate"),
        ("none", "room.key", "cannot read --tls-cert none: No such file or directory"),
        ("room.pem", "none", "cannot read --tls-key none: No such file or directory"),
        ("room.pem", "folder", "cannot read --tls-key folder: Is a directory"),
        ("empty", "room.key", "there is no certificate in PEM format in empty"),
        ("room.pem", "empty", "there is no private key in PEM format in empty"),
        ("damaged.pem", "room.key", "the certificate in damaged.pem is damaged"),
        ("room.pem", "damaged.key", "the private key in damaged.key is damaged"),
        ("room.pem", "locked.key", "the key in locked.key has a pass phrase; make a copy without"),
    ],
)
def test_bad_certificates(
    pem_folder: Path, monkeypatch: MonkeyPatch, cert: str, key: str, message: str
) -> None:
    monkeypatch.chdir(pem_folder)
    with pytest.raises(chat_server.Failure, match=rf"\A{re.escape(message)}.*\Z"):
        chat_server.make_server_tls(cert, key)


def test_pass_phrase_is_not_asked_for_on_the_terminal(pem_folder: Path, terminal: Run) -> None:
    command = [sys.executable, path_of("chat_server.py"), "--tls-cert", "room.pem"]
    window = terminal(*command, "--tls-key", "locked.key", cwd=pem_folder)
    shown = window.rest()
    assert shown.startswith("chat_server.py: the key in locked.key has a pass phrase")
    assert (shown.count("\n"), window.wait()) == (1, 1)
