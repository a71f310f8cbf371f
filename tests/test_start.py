"""What the three scripts have in common at the command line."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pytest
from starter import launch
from support import DEADLINE, ROOT, Server, finish, needs_ipv6, path_of

import echo_server

SCRIPTS = ["echo_server.py", "chat_server.py", "chat_client.py"]
SERVERS = SCRIPTS[:2]


def run(
    script: str, *options: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    return finish([python, path_of(script, python), *options], stdin=subprocess.DEVNULL)


@lru_cache(maxsize=None)
def found_pythons() -> dict[str, tuple[str, str]]:
    """Returns the interpreters that CI collected, and those of the usual names on PATH, from old to
    new; with the implementation and the version of each."""
    named = [shutil.which(f"python3.{minor}") for minor in range(8, 16)]
    listed = os.environ.get("CHAT_TEST_PYTHONS", "").split(os.pathsep)
    what = "sys.implementation.name, '%d.%02d' % sys.version_info[:2]"
    program = f"import os, sys; print({what}, os.path.realpath(sys.executable))"
    found = {}
    for path in filter(None, [*listed, *named, sys.executable]):
        with suppress(OSError, subprocess.CalledProcessError):  # such as in another user's folder
            said = subprocess.check_output(
                [path, "-c", program], stderr=subprocess.DEVNULL, text=True
            )
            implementation, version, python = said.rstrip("\n").split(" ", 2)
            found[python] = (implementation, version)
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def pythons() -> list[str]:
    """Returns every interpreter that can be found."""
    return list(found_pythons())


def different_pythons() -> list[str]:
    """Returns the oldest and the newest interpreter of each implementation."""
    found = found_pythons()
    newest = {implementation: python for python, (implementation, _) in found.items()}
    oldest = {implementation: python for python, (implementation, _) in reversed(found.items())}
    return [python for python in found if python in (*newest.values(), *oldest.values())]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_every_option_and_an_example(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0
    assert "example: python3 " + script in done.stdout
    options = re.findall(r'add\("(--[a-z-]+)"', (ROOT / script).read_text())
    assert options
    for option in options:
        assert option in done.stdout


def test_versions_are_the_same() -> None:
    said = {run(script, "--version").stdout.split()[1] for script in SCRIPTS}
    assert len(said) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_command_line_is_exit_status_2(script: str) -> None:
    assert run(script, "--no-such-option").returncode == 2
    port = ["--port", "70000"] if script in SERVERS else ["localhost", "70000"]
    done = run(script, *port)
    assert done.returncode == 2
    assert "70000 is not a port" in done.stderr


@pytest.mark.parametrize("script", SERVERS)
def test_taken_port_is_one_clear_line(script: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(script, "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"{script}: port {port} on localhost is taken; choose another with --port\n"
    )


@pytest.mark.parametrize("script", SERVERS)
@pytest.mark.parametrize(
    "host, message",
    [
        ("no-such-host.invalid", "host no-such-host.invalid is unknown"),
        ("x" * 70, "is unknown"),
        ("203.0.113.1", "203.0.113.1 is not an address of this machine"),
    ],
)
def test_impossible_host_is_one_clear_line(script: str, host: str, message: str) -> None:
    done = run(script, "--host", host, "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{script}: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SERVERS)
def test_repeated_hosts_share_a_port(start: Callable[..., Server], script: str) -> None:
    server = start(script, "--host", "127.0.0.2", "--host", "127.0.0.1", "--host", "127.0.0.2")
    assert f"127.0.0.2:{server.port} and 127.0.0.1:{server.port};" in server.log()
    server.connect("127.0.0.1")
    server.connect("127.0.0.2")


@pytest.mark.parametrize("script", SERVERS)
def test_name_and_address_of_the_same_host_go_together(
    start: Callable[..., Server], script: str
) -> None:
    server = start(script, "--host", "127.0.0.1", "--host", "localhost")
    assert server.log().count("127.0.0.1:") == 1


@pytest.mark.parametrize("script", SERVERS)
def test_every_interface_is_ipv4_too(start: Callable[..., Server], script: str) -> None:
    needs_ipv6()
    server = start(script, "--host", "::")
    server.connect("::1").close()
    server.connect("127.0.0.1")
    assert "whoever can reach this machine can connect" in server.log()
    assert "::ffff" not in server.log()


@pytest.mark.parametrize("script", SERVERS)
def test_log_says_who_can_connect_and_how(start: Callable[..., Server], script: str) -> None:
    server = start(script, port=0)  # any that is free
    assert server.port
    server.wait_for_log(rf"(telnet|chat_client\.py) localhost {server.port}")
    assert "only this machine can connect" in server.log()


@pytest.mark.parametrize("script", SERVERS)
def test_one_address_of_this_machine_alone_does_not_keep_others_out(
    start: Callable[..., Server], script: str
) -> None:
    needs_ipv6()
    server = start(script, "--host", "::1", "--host", "0.0.0.0")
    assert "whoever can reach this machine can connect" in server.log()


@pytest.mark.parametrize("script", SERVERS)
def test_starts_again_at_once_on_the_same_port(start: Callable[..., Server], script: str) -> None:
    first = start(script)
    peer = first.connect()
    peer.send(b"hi\n")
    peer.line()
    first.stop(peers=[peer])  # the side that closes first keeps the address in TIME_WAIT
    second = launch(
        [sys.executable, path_of(script), "--port", str(first.port)], stderr=subprocess.PIPE
    )
    try:
        assert second.stderr and b"listening" in second.stderr.readline()
    finally:
        second.kill()
        second.communicate()


@pytest.mark.parametrize("python", pythons())
def test_each_script_runs_alone_in_an_empty_folder(
    python: str, tmp_path: Path, start: Callable[..., Server]
) -> None:
    helps = []
    for script in SCRIPTS:
        folder = tmp_path / script[:-3]
        folder.mkdir()
        shutil.copy(ROOT / script, folder)
        command = [python, "-W", "error", "-I", str(folder / script), "--help"]
        helps.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for process in helps:
        shown, errors = process.communicate(timeout=DEADLINE)
        assert (b"example: " in shown, errors, process.returncode) == (True, b"", 0)
    echo = start("echo_server.py", python=python, cwd=tmp_path / "echo_server")
    room = start("chat_server.py", python=python, cwd=tmp_path / "chat_server")
    listener = room.join("Ann")
    client = [python, str(tmp_path / "chat_client" / "chat_client.py"), "localhost"]
    said = subprocess.run(
        [*client, str(room.port)],
        input="John\nHi\nexit\n",
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE,
    )
    assert said.stdout == "name: John\nWelcome to the chatroom!\nJohn: Hi\n"
    listener.expect("* John joined\n", "John: Hi\n", "* John left\n")
    said = subprocess.run(
        [*client, str(echo.port), "--echo"],
        input="test\nquit\n",
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE,
    )
    assert said.stdout == "send: test\nrecv: test\nsend: quit\n"


def test_same_names_stand_for_the_same_lines() -> None:
    """The scripts share no module, but what stands in two of them is the same."""
    import ast

    definitions: dict[str, dict[str, str]] = {}
    for script in SCRIPTS:
        source = (ROOT / script).read_text()
        for node in ast.parse(source).body:
            text = "\n".join(source.split("\n")[node.lineno - 1 : node.end_lineno])
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                definitions.setdefault(node.name, {})[script] = text
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                definitions.setdefault(node.targets[0].id, {})[script] = text.partition("  #")[0]
    shared = {name: texts for name, texts in definitions.items() if len(texts) > 1}
    assert {"LineFramer", "LossyStream", "open_listeners"} <= set(shared)
    own = {"main", "parse_args", "Connection", "MAX_CLIENTS", "log"}
    own |= {"LINGER", "MAX_LINE", "RECEIVE_SIZE", "set_options"}
    different = {name for name, texts in shared.items() if len(set(texts.values())) > 1}
    assert different <= own


@pytest.mark.parametrize("is_enough", [True, False])
@pytest.mark.parametrize("script", ["chat_server.py", "echo_server.py"])
def test_descriptor_limit_is_raised(
    start: Callable[..., Server], script: str, is_enough: bool
) -> None:
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if is_enough else 200
    server = start(
        script, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    )
    peers = [server.connect() for _ in range(100)]
    server.wait_for_log("(members|clients): 100\n")
    assert "have to wait" not in server.log()
    del peers


def test_transcript_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    done = run("chat_server.py", "--port", "0", "--transcript", str(tmp_path / "no" / "file"))
    assert done.returncode == 1
    assert "cannot write the transcript" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "-1", "some", "2000000000"])
@pytest.mark.parametrize("script", SERVERS)
def test_a_number_out_of_range_is_exit_status_2(script: str, number: str) -> None:
    done = run(script, "--max-clients", number)
    assert done.returncode == 2
    if script == "chat_server.py":
        assert f"{number} is not a number from 1 to 1,000,000,000" in done.stderr
    else:
        assert re.search(r"(--max-clients goes from 1 to|invalid int value)", done.stderr)
    assert "Traceback" not in done.stderr


def test_password_file_without_a_password_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for file, problem in (("empty", "there is no password in"), ("none", "cannot read the")):
        for script in SCRIPTS[1:]:
            done = run(script, "--password-file", str(tmp_path / file))
            assert done.returncode == 1
            assert problem in done.stderr
            assert done.stderr.count("\n") == 1


def test_authorities_without_a_file_are_no_open_door() -> None:
    done = run("chat_client.py", "--tls-ca", "")
    assert (done.returncode, done.stderr) == (1, "chat_client.py: --tls-ca is given no file\n")


@pytest.mark.parametrize(
    "code, why",
    [
        (errno.EACCES, "port 7 on localhost is for the superuser; choose one above 1023 with"),
        (errno.EIO, "cannot listen on port 7 of localhost: trouble"),
    ],
)
def test_why_nobody_can_connect(code: int, why: str) -> None:
    """In one server: the other has the same lines for it."""
    error = OSError(code, "trouble")
    assert echo_server.why_not_listening(error, "localhost", 7, "--port").startswith(why)


@pytest.mark.parametrize("script", SERVERS)
def test_a_closed_terminal_ends_a_server_well(start: Callable[..., Server], script: str) -> None:
    server = start(script)
    peer = server.join() if script == "chat_server.py" else server.connect()
    server.wait_for_log(" connected, ")  # it isn't left in the kernel's queue
    server.process.send_signal(signal.SIGHUP)
    assert peer.rest() == (b"* the room is closing\n" if script == "chat_server.py" else b"")
    peer.close()
    assert server.process.wait(DEADLINE) == 0
    assert "stopped by SIGHUP" in server.log()


@pytest.mark.parametrize("script", SERVERS)
def test_with_nohup_a_closed_terminal_is_nothing(start: Callable[..., Server], script: str) -> None:
    server = start(script, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None)
    server.process.send_signal(signal.SIGHUP)
    peer = server.join() if script == "chat_server.py" else server.connect()
    peer.send("/who\n")
    assert peer.line() != b""
    assert server.stop(peers=[peer]) == 0
