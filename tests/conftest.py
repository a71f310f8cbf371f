"""Makes the scripts importable, and starts what the tests need."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def forget_where_we_were_started() -> None:
    """Makes what the scripts inherit from us the same everywhere.

    nohup ignores SIGHUP, and a shell SIGINT and SIGQUIT of what it starts in the background. So do
    we; but a signal with a handler is at its default again in each process that we start.
    """
    by_python_itself = {getattr(signal, name, None) for name in ("SIGPIPE", "SIGXFSZ")}
    for number in signal.valid_signals() - by_python_itself:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ours = ("CHAT_PASSWORD", "CHAT_TEST_SCRIPTS")
    for name in (*ours, "COLUMNS", "JOURNAL_STREAM", "LINES", "NO_COLOR"):
        os.environ.pop(name, None)


forget_where_we_were_started()

from support import PASSWORD, Kernel, Listener, Run, Server, Start, Terminal, allow_many_descriptors
from workers import pytest_runtestloop  # noqa: F401

allow_many_descriptors()


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    """start("chat_server.py", "--history", "3") returns a running Server; stopped after the test.

    A test that is parametrized with it decides by "plain", "tls", "web" or "tls web" what its
    servers speak with those who join.
    """
    logs = (tmp_path / f"log{number}" for number in count())
    kind = getattr(request, "param", "plain")

    def start_server(script: str, *options: str, **more: Any) -> Server:
        kinds = {"tls": "tls" in kind, "web": "web" in kind}
        server = Server(script, *options, log=next(logs), **{**kinds, **more})
        request.addfinalizer(server.kill)
        return server

    return start_server


@pytest.fixture
def room(start: Start) -> Server:
    return start("chat_server.py")


@pytest.fixture
def echo(start: Start) -> Server:
    return start("echo_server.py")


@pytest.fixture
def password(tmp_path: Path) -> list[str]:
    """The option with which a room is closed, and a client gets in."""
    (tmp_path / "password").write_text(f"{PASSWORD}\nsecond line\n")
    return ["--password-file", str(tmp_path / "password")]


@pytest.fixture
def listener() -> Iterator[Listener]:
    one = Listener()
    yield one
    one.listener.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Run:
    """terminal("python", "x.py") runs a command in a pseudo-terminal until the test ends."""

    def run(*command: str, **more: Any) -> Terminal:
        one = Terminal(*command, **more)
        request.addfinalizer(one.kill)
        return one

    return run
