"""Starts the scripts by forking, as to start a Python and to import its library takes most of what
a short test costs.

A process that has imported what the scripts import waits for orders at a socket. Each order forks;
the child gets the standard streams, folder and arguments that it is to have, and runs the script.
This file is both sides of that socket: `Forked` is what the tests have in place of a Popen.
"""

from __future__ import annotations

import array
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

DEADLINE = 60.0
STARTERS: dict[int, tuple[socket.socket, Any]] = {}  # of each process, as a worker has its own


class Forked:
    """A script that runs: what tests need of a Popen."""

    def __init__(self, command: Sequence[str], streams: Sequence[int], **more: Any) -> None:
        """Takes the script and its arguments, and the three standard streams; `more` is `cwd`, `env`
        or `terminal`, if standard input is one that is to be the process's own."""
        more.setdefault("env", dict(os.environ))
        self.args = command
        self.returncode: int | None = None
        self.pid = int(ask({"command": list(command), **more}, streams))

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = ask({"status": self.pid})
        return self.returncode

    def wait(self, timeout: float = DEADLINE) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.args), timeout)
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def ask(order: dict[str, Any], streams: Sequence[int] = ()) -> Any:
    """Gives this process's starter an order; returns its answer."""
    if os.getpid() not in STARTERS:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno())]
        STARTERS[os.getpid()] = ours, subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
    sock, _ = STARTERS[os.getpid()]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))] if streams else []
    sock.sendmsg([json.dumps(order).encode()], rights)
    return json.loads(sock.recv(100))


# The other side


def import_all() -> None:
    """Imports what the scripts do."""
    import argparse, base64, contextlib, enum, errno, fcntl, functools, getpass, hashlib, hmac  # noqa
    import ipaddress, itertools, logging, random, re, resource, select, selectors, ssl, stat  # noqa
    import string, termios, threading, tty, typing, unicodedata, urllib.parse  # noqa


def serve(orders: socket.socket) -> dict[str, Any] | None:
    """Answers orders; in a child, returns the one that it is for."""
    size = array.array("i").itemsize
    while True:
        data, rights, _, _ = orders.recvmsg(1 << 20, socket.CMSG_SPACE(3 * size))
        if not data:
            return None
        order = json.loads(data)
        if "status" in order:
            pid, status = os.waitpid(order["status"], os.WNOHANG)
            answer = None if not pid else status_of(status)
        else:
            streams = array.array("i", rights[0][2])
            answer = os.fork()
            if not answer:
                orders.close()
                take_streams(streams)
                return order
            for one in streams:
                os.close(one)
        orders.send(json.dumps(answer).encode())


def status_of(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def take_streams(streams: Sequence[int]) -> None:
    """Makes these the standard streams, as they are at the start of a Python."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def run(order: dict[str, Any]) -> None:
    if "cwd" in order:
        os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    if order.get("terminal"):
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.argv = order["command"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    import_all()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked:
        run(asked)
