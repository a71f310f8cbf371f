"""Starts the scripts by forking, as to start a Python and to import its library takes most of what
a short test costs.

A process that has imported what the scripts import waits for orders at a socket. Each order forks;
the child gets the standard streams, folder and arguments that it is to have, and runs the script.
This file is both sides of that socket: `launch` is what the tests have in place of Popen.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import gc
import json
import os
import pkgutil
import py_compile
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36
STARTERS: dict[int, tuple[socket.socket, Any]] = {}  # of each process, as a worker has its own
CODES: dict[str, Any] = {}  # the scripts' code, in a starter


def compiled(*names: str) -> Path:
    """Returns a folder with the scripts as this Python has compiled them, under their own names; in
    `modules`, to be imported. To compile a script anew takes most of a start.

    A server that imports what the tests share finds the folder by the environment.
    """
    if "CHAT_TEST_SCRIPTS" in os.environ:
        return Path(os.environ["CHAT_TEST_SCRIPTS"])
    folder = Path(tempfile.mkdtemp(prefix="chat-tests-"))
    atexit.register(shutil.rmtree, folder)
    for name in names:
        for copy in (f"{name}.py", f"modules/{name}.pyc"):
            py_compile.compile(str(ROOT / f"{name}.py"), str(folder / copy), doraise=True)
    os.environ["CHAT_TEST_SCRIPTS"] = str(folder)
    return folder


if __name__ != "__main__":
    COMPILED = compiled("chat_server", "chat_client", "echo_server")


def launch(command: Sequence[Any], **more: Any) -> subprocess.Popen[Any]:
    """Starts a command as Popen does; by forking, if that is a script and all that is asked for
    matters to the script alone, not to the start of a Python."""
    return (Forked if can_fork(command, **more) else subprocess.Popen)(command, **more)


def can_fork(command: Sequence[Any], **more: Any) -> bool:
    known = {"stdin", "stdout", "stderr", "text", "cwd", "env"}
    if sys.platform != "linux" or command[0] != sys.executable or set(more) - known:
        return False
    env = more.get("env") or os.environ
    as_here = all(
        env.get(name) == os.environ.get(name)
        for name in {*env, *os.environ}
        if name.startswith(("PYTHON", "LC_", "LANG"))
    )
    given = command[1:]
    return as_here and all(isinstance(one, str) for one in given) and given[0].endswith(".py")


class Forked(subprocess.Popen):  # type: ignore[type-arg]
    """One that a starter forks. If standard input is a terminal, it is the process's own."""

    def _execute_child(self, args: Any, *more: Any) -> None:
        cwd, env = more[4:6]
        # The child's end of each stream, and ours; -1 where there is none.
        pairs = [(more[9], more[10]), (more[12], more[11]), (more[14], more[13])]
        streams = [number if one == -1 else one for number, (one, _) in enumerate(pairs)]
        place = {"cwd": str(cwd or os.getcwd()), "env": dict(env or os.environ)}
        self.pid = start({"command": args[1:], **place}, streams)
        self._child_created = True
        for theirs, ours in pairs:
            if ours != -1:
                os.close(theirs)
        if hasattr(self, "_devnull"):
            os.close(self._devnull)
        self._closed_child_pipe_fds = True


def start(order: dict[str, Any], streams: Sequence[int]) -> int:
    """Gives this process's starter an order; returns the number of the process that it has forked,
    which is ours as if we had: we have what lost its parent (prctl(2)), and it did at once."""
    if os.getpid() not in STARTERS:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno()), str(COMPILED)]
        STARTERS[os.getpid()] = ours, subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sock, _ = STARTERS[os.getpid()]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
    sock.sendmsg([json.dumps(order).encode()], rights)
    return int(sock.recv(100))


# The other side


def prepare(folder: Path) -> None:
    """Imports what the scripts do, and compiles their regular expressions, by running all but their
    `main`."""
    for path in folder.glob("*.py"):
        CODES[str(path)] = code_of(str(path))
        exec(CODES[str(path)], {"__name__": path.stem})
    import getpass  # noqa: F401  # which some import later

    gc.freeze()  # or each child would copy all to see that it is in use


def code_of(path: str) -> Any:
    """Returns what is to run, of a file that may have been compiled."""
    with open(path, "rb") as file:
        code = pkgutil.read_code(file)
    return code or compile(Path(path).read_bytes(), path, "exec")


def serve(orders: socket.socket) -> dict[str, Any] | None:
    """Takes orders; in the process that one is for, returns it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # we end with the tests
    while True:
        data, rights, _, _ = orders.recvmsg(1 << 20, 100)
        if not data:
            return None
        streams = array.array("i", rights[0][2])
        reader, writer = os.pipe()
        parent = os.fork()
        if not parent:
            child = os.fork()
            if child:
                os.write(writer, b"%d" % child)
                os._exit(0)
            orders.close()
            os.close(reader)
            os.close(writer)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            take_streams(streams)
            return dict(json.loads(data))
        os.waitpid(parent, 0)
        orders.send(os.read(reader, 100))
        for one in (*streams, reader, writer):
            os.close(one)


def take_streams(streams: Sequence[int]) -> None:
    """Makes these the standard streams, as they are at the start of a Python."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def take_terminal() -> None:
    """Makes standard input the terminal that Ctrl-C and Ctrl-Z work on. Runs in the child."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def run(order: dict[str, Any]) -> None:
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    if os.isatty(0):
        take_terminal()
    sys.argv = order["command"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    main = types.ModuleType("__main__")
    main.__file__ = sys.argv[0]
    sys.modules["__main__"] = main
    exec(CODES.get(sys.argv[0]) or code_of(sys.argv[0]), vars(main))


if __name__ == "__main__":
    prepare(Path(sys.argv[2]))
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked:
        run(asked)
