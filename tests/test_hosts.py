"""Whatever host the scripts are on: its streams, modules, networks, limits and log."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from support import (
    CERTS,
    DEADLINE,
    ROOT,
    TLS_OPTIONS,
    WELCOME,
    Peer,
    Server,
    eventually,
    free_port,
    needs,
    needs_ipv6,
    path_of,
    wait_until_listening,
)
from test_start import SCRIPTS, SERVERS, different_pythons, pythons, run

import chat_client
import chat_server
import echo_server

PASSWORD = "correct horse"
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell and its streams")


# Standard streams

# What Python writes is kept for a while, except in many containers.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
NO_ERROR = ["2>&-", "2>/dev/full", "2> >(:)", "<&- >&- 2>&-"]


def in_shell(streams: str, python: str, script: str, *options: str) -> subprocess.Popen[bytes]:
    """Starts a script with its standard streams redirected, as bash has it."""
    return subprocess.Popen(
        [needs("bash"), "-c", f'exec "$@" {streams}', "bash", python, path_of(script, python), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=BUFFERED,
    )


@posix
@pytest.mark.parametrize("python", different_pythons())
@pytest.mark.parametrize("streams", NO_ERROR)
def test_standard_error_never_changes_the_exit_status(python: str, streams: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        runs = [(in_shell(streams, python, script, "--no-such-option"), 2) for script in SCRIPTS]
        runs += [(in_shell(streams, python, script, "--port", port), 1) for script in SERVERS]
        for process, status in runs:
            process.communicate(timeout=DEADLINE)
            assert (process.args, process.returncode) == (process.args, status)


@posix
@pytest.mark.parametrize("streams", [*NO_ERROR, ">&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("script", SERVERS)
def test_servers_serve_whatever_became_of_their_streams(script: str, streams: str) -> None:
    port = free_port()
    process = in_shell(streams, sys.executable, script, "--port", str(port), "-v")
    try:
        wait_until_listening(port)
        peer = Peer(socket.create_connection(("127.0.0.1", port), DEADLINE))
        peer.send("/who\n")
        assert peer.line() in (WELCOME, b"/who\n")
        peer.close()
        process.terminate()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.communicate()


@posix
@pytest.mark.parametrize("script", SERVERS)
def test_servers_serve_when_their_terminal_is_gone(script: str) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    port = free_port()
    command = [sys.executable, path_of(script), "--port", str(port)]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=BUFFERED)
    try:
        os.close(slave)
        wait_until_listening(port)
        os.close(master)
        peer = Peer(socket.create_connection(("127.0.0.1", port), DEADLINE))
        peer.send("/who\n")
        assert peer.line() in (WELCOME, b"/who\n")
        peer.close()
        process.terminate()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


@posix
@pytest.mark.parametrize("python", different_pythons())
@pytest.mark.parametrize("streams", [">/dev/full", "> >(:)"])
def test_help_that_nobody_gets_is_no_traceback(python: str, streams: str) -> None:
    runs = [in_shell(streams, python, script, "--help") for script in SCRIPTS]
    for process in runs:
        errors = process.communicate(timeout=DEADLINE)[1]
        assert (errors, process.returncode) == (b"", 0)


# Modules and names that a Python may lack


def lame(tmp_path: Path, script: str, preparation: str) -> str:
    """Returns the name of a script, in tmp_path, that makes Python poorer and runs another one."""
    (tmp_path / "lame.py").write_text(
        "import runpy, sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if is_missing(name):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        f"{preparation}\n"
        "sys.meta_path.insert(0, Missing())\n"
        "for name in list(filter(is_missing, sys.modules)):\n"
        "    del sys.modules[name]\n"
        f"sys.argv[0] = {str(ROOT / script)!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return "lame.py"


def run_lame(tmp_path: Path, python: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [python, str(tmp_path / "lame.py"), *options]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE,
    )


@pytest.fixture
def password(tmp_path: Path) -> list[str]:
    """The option with which a room is closed, and a client gets in."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return ["--password-file", str(tmp_path / "password")]


MISSING = (
    "is_missing = {'fcntl', 'getpass', 'hmac', 'resource', 'ssl', 'termios', 'tty'}.__contains__"
)


@pytest.mark.parametrize("python", different_pythons())
def test_servers_do_without_modules_that_they_do_not_need(
    python: str, start: Callable[..., Server], tmp_path: Path
) -> None:
    room = start(lame(tmp_path, "chat_server.py", MISSING), cwd=tmp_path, python=python)
    ann, bob = room.join("Ann"), room.join()
    bob.send("hi\n")
    ann.expect("hi\n")
    echo = start(lame(tmp_path, "echo_server.py", MISSING), cwd=tmp_path, python=python)
    client = echo.connect()
    client.send(b"hi")
    assert client.read(2) == b"hi"
    assert (room.stop(peers=[ann, bob]), echo.stop()) == (0, 0)
    assert "Traceback" not in room.log() + echo.log()


@pytest.mark.parametrize("module, purpose", [("hmac", "a password"), ("ssl", "TLS")])
def test_a_module_that_is_needed_is_named(
    tmp_path: Path, password: list[str], module: str, purpose: str
) -> None:
    lame(tmp_path, "chat_server.py", MISSING)
    options = password if module == "hmac" else TLS_OPTIONS
    done = run_lame(tmp_path, sys.executable, "--port", "0", *options)
    assert done.returncode == 1
    assert done.stderr == (
        f"chat_server.py: this Python has no module {module}, which {purpose} needs; "
        "install the whole of it; on Debian: apt install python3\n"
    )


def test_servers_run_with_the_modules_of_python3_minimal(
    start: Callable[..., Server], tmp_path: Path, password: list[str]
) -> None:
    """Debian's small Python, out of its full one: whatever isn't in the package is hidden."""
    python = "/usr/bin/python3"
    if not shutil.which("dpkg") or not os.access(python, os.X_OK):
        pytest.skip("needs Debian's Python")
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.check_output([python, "-c", version], text=True).strip()
    listed = subprocess.run(
        ["dpkg", "-L", f"libpython{version}-minimal"], capture_output=True, check=False, text=True
    )
    folder = f"/usr/lib/python{version}/"
    files = [line[len(folder) :] for line in listed.stdout.split() if line.startswith(folder)]
    if not files:
        pytest.skip("needs Debian's python3-minimal")
    has = {file.replace("lib-dynload/", "").split("/")[0].split(".")[0] for file in files}
    preparation = (
        f"here = {sorted(has)!r}\n"
        "is_missing = lambda name: name.split('.')[0] not in here and "
        "name not in (*sys.builtin_module_names, '__main__')\n"
    )
    for script in SERVERS:
        lame(tmp_path, script, preparation)
        assert "example: " in run_lame(tmp_path, python, "--help").stdout
        done = run_lame(tmp_path, python, "--x")
        assert re.search("there is no option --x|unrecognized arguments: --x", done.stderr)
        assert done.returncode == 2
        server = start("lame.py", cwd=tmp_path, python=python, tls=script == "chat_server.py")
        peer = server.connect()
        peer.send("hi\n")
        assert peer.line() in (b"hi\n", WELCOME)
        assert server.stop(peers=[peer]) == 0
        assert "Traceback" not in server.log()
    assert "no module hmac" in run_lame(tmp_path, python, *password).stderr


def test_tls_with_a_library_that_lacks_a_name(start: Callable[..., Server], tmp_path: Path) -> None:
    """LibreSSL and PyPy."""
    preparation = (
        "import ssl\nis_missing = set().__contains__\nvars(ssl).pop('OP_NO_RENEGOTIATION', None)\n"
    )
    room = start(lame(tmp_path, "chat_server.py", preparation), cwd=tmp_path, tls=True)
    ann, bob = room.join("Ann"), room.join()
    bob.send("hi\n")
    ann.expect("hi\n")
    assert room.stop(peers=[ann, bob]) == 0
    assert "Traceback" not in room.log()


@pytest.mark.parametrize("python", pythons())
def test_closed_room_with_each_python(
    python: str, start: Callable[..., Server], password: list[str]
) -> None:
    room = start("chat_server.py", *password, python=python, tls=True)
    ann = room.connect()
    ann.send(f"{PASSWORD}\n/name Ann\n")
    ann.expect("* password?\n", WELCOME, "* you are Ann\n")
    client = [python, str(ROOT / "chat_client.py"), "localhost", str(room.port), "--name", "John"]
    said = subprocess.run(
        [*client, "--tls-ca", str(CERTS / "room.pem"), *password],
        input="Hi\n",
        capture_output=True,
        check=False,
        text=True,
        timeout=DEADLINE,
    )
    assert (said.stdout, said.stderr) == ("Welcome to the chatroom!\nJohn: Hi\n", "")
    ann.expect("* John joined\n", "John: Hi\n", "* John left\n")
    assert "Traceback" not in room.log()


# Networks


def hint(server: Server) -> str:
    """Returns the command in the log for joining, or trying, the server."""
    return server.wait_for_log(r"(?:join|try it): (.*)").group(1)


def test_hint_has_an_address_of_this_machine(start: Callable[..., Server]) -> None:
    own = [one for one in chat_server.own_addresses() if "." in one and one[:4] != "127."]
    if not own:
        pytest.skip("this machine is in no network")
    server = start("chat_server.py", "--host", "*")
    assert f" {own[0]} {server.port}" in hint(server)
    socket.create_connection((own[0], server.port)).close()
    server = start("chat_server.py", "--host", "127.0.0.1", "--host", own[0])
    assert f" {own[0]} {server.port}" in hint(server)


def test_hint_of_an_echo_server_has_the_host_that_was_given(start: Callable[..., Server]) -> None:
    echo = start("echo_server.py", "--host", "*")
    assert hint(echo) == f"telnet {socket.gethostname()} {echo.port}"
    echo = start("echo_server.py", "--host", "127.0.0.1", "--host", "*")
    assert hint(echo) == f"telnet 127.0.0.1 {echo.port}"


@pytest.mark.parametrize("script", SERVERS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_hint_for_this_machine_alone(start: Callable[..., Server], script: str, host: str) -> None:
    if host == "[::1]":
        needs_ipv6()
    server = start(script, "--host", host)
    assert f" {host.strip('[]')} {server.port}" in hint(server)


@pytest.mark.parametrize(
    "hosts",
    [["::", "127.0.0.1"], ["127.0.0.1", "::"], ["*"], ["0.0.0.0", "localhost"], ["::1", "*", "::"]],
)
def test_every_interface_covers_each_one(start: Callable[..., Server], hosts: list[str]) -> None:
    """In one server: the other has the same lines for it."""
    if "::1" in hosts:
        needs_ipv6()
    server = start("echo_server.py", *(word for host in hosts for word in ("--host", host)))
    assert server.log().count("0.0.0.0:") == 1
    assert "127.0.0.1:" not in server.log()
    server.connect().close()


@pytest.fixture
def two_hosts() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces with a cable between them, and no way out: 10.9.8.1 and 10.9.8.2.
    Each is what a command begins with that is to run there."""
    unshare, enter, ip = needs("unshare"), needs("nsenter"), needs("ip")
    holders: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(2):
            command = [unshare, "--net", "sh", "-c", "echo; exec sleep 1000"]
            holders.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        if not all(holder.stdout and holder.stdout.read(1) for holder in holders):
            pytest.skip("network namespaces are for the superuser")
        hosts = [[enter, "--net", "--target", str(holder.pid)] for holder in holders]
        cable = ["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns"]
        subprocess.run([*hosts[0], ip, *cable, str(holders[1].pid)], check=True)
        for number, host in enumerate(hosts, 1):
            address = ["address", "add", f"10.9.8.{number}/24", "dev", "cable"]
            for change in (address, *(["link", "set", name, "up"] for name in ("lo", "cable"))):
                subprocess.run([*host, ip, *change], check=True)
        yield hosts[0], hosts[1]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


@pytest.fixture
def interfaces(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """A network namespace with the interfaces of the parameter: the name of each, its addresses,
    and whether it is up, down, or unplugged; or what has the default route. Yields what a command
    begins with that is to run there."""
    unshare, enter, ip = needs("unshare"), needs("nsenter"), needs("ip")
    command = [unshare, "--net", "sh", "-c", "echo; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            if not holder.stdout or not holder.stdout.read(1):
                pytest.skip("network namespaces are for the superuser")
            host = [enter, "--net", "--target", str(holder.pid)]
            changes = ["link set lo up"]
            for interface in request.param:
                name, *addresses, state = interface.split()
                if state == "default":
                    changes.append(f"route add default dev {name}")
                    continue
                kind = "veth peer name far" if state == "unplugged" else "bridge"
                changes.append(f"link add {name} type {kind}")
                changes += [f"address add {one} dev {name}" for one in addresses]
                changes += [f"link set {name} up"] if state != "down" else []
            for change in changes:
                subprocess.run([*host, ip, *change.split()], check=True)
            yield host
        finally:
            holder.kill()


LAN, DOCKER = "wlan0 192.168.178.23/24 up", "docker0 172.17.0.1/16 up"


@pytest.mark.parametrize(
    "interfaces, expected",
    [
        ([DOCKER, LAN], ["192.168.178.23", "172.17.0.1"]),
        ([DOCKER.replace("up", "down"), LAN], ["192.168.178.23"]),
        (["eth0 192.0.2.9/24 unplugged", LAN], ["192.168.178.23"]),
        (["tun0 10.8.0.2/24 up", LAN], ["192.168.178.23", "10.8.0.2"]),
        (["tun0 10.8.0.2/24 up", LAN, "tun0 default"], ["10.8.0.2", "192.168.178.23"]),
        (
            ["wlan0 10.42.0.1/24 up", "wwan0 100.72.13.5/24 up", "wwan0 default"],
            ["100.72.13.5", "10.42.0.1"],
        ),
        (["br0 192.168.1.5/24 up", DOCKER, "br0 default"], ["192.168.1.5", "172.17.0.1"]),
        (
            ["docker0 172.17.0.1/16 fd00:1::1/64 up", "eth0 192.168.1.5/24 fd00:2::5/64 up"],
            ["192.168.1.5", "172.17.0.1", "fd00:2::5", "fd00:1::1"],
        ),
        ([DOCKER], ["172.17.0.1"]),
    ],
    indirect=["interfaces"],
)
def test_all_addresses_are_said_the_likeliest_first(
    interfaces: list[str], expected: list[str], start: Callable[..., Server]
) -> None:
    if any(":" in address for address in expected):
        needs_ipv6()
    room = start("chat_server.py", "--host", "::", web=True, within=interfaces)
    room.wait_for_log(r"in a browser: .*\n")
    first, *others = expected
    assert hint(room) == f"python3 chat_client.py {first} {room.port}"
    assert f"or: nc {first} {room.port}\n" in room.log()
    assert f"or, in a browser: http://{first}:" in room.log()
    more = re.search("other addresses of this machine: (.*)", room.log())
    assert (more[1].split(", ") if more else []) == others


@pytest.mark.parametrize("interfaces", [[], ["eth0 10.0.0.1/8 down"]], indirect=True)
def test_a_machine_in_no_network_goes_by_its_name(
    interfaces: list[str], start: Callable[..., Server]
) -> None:
    room = start("chat_server.py", "--host", "::", within=interfaces)
    assert hint(room) == f"python3 chat_client.py {socket.gethostname()} {room.port}"


@pytest.mark.parametrize("interfaces", [[DOCKER, LAN]], indirect=True)
def test_other_addresses_are_said_if_the_certificate_is_for_them(
    interfaces: list[str], start: Callable[..., Server], tmp_path: Path
) -> None:
    for names, first, others in (
        ("IP:192.168.178.23,IP:172.17.0.1", "192.168.178.23", ["172.17.0.1"]),
        ("IP:172.17.0.1", "172.17.0.1", []),
    ):
        options = certificate(tmp_path, names)
        room = start("chat_server.py", "--host", "::", *options, within=interfaces)
        room.wait_for_log("copy new.pem")
        assert hint(room) == f"python3 chat_client.py {first} {room.port} --tls-ca new.pem"
        assert re.findall("other addresses of this machine: (.*)", room.log()) == others


def pasted(command: str, host: list[str], folder: Path, typed: str, **more: str) -> str:
    """Returns what a command shows that is pasted into a shell on a host, in a folder."""
    done = subprocess.run(
        [*host, "sh", "-c", command],
        cwd=folder,
        env={**os.environ, **more},
        input=typed,
        stdout=subprocess.PIPE,
        check=False,
        text=True,
        timeout=DEADLINE,
    )
    return done.stdout


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


def test_what_the_log_says_works_when_pasted_on_another_host(
    two_hosts: tuple[list[str], list[str]],
    start: Callable[..., Server],
    tmp_path: Path,
    password: list[str],
) -> None:
    here, there = two_hosts
    folder = tmp_path / "there"
    folder.mkdir()
    shutil.copy(ROOT / "chat_client.py", folder)
    room = start("chat_server.py", "--host", "::", within=here)
    assert hint(room) == f"python3 chat_client.py 10.9.8.1 {room.port}"
    assert pasted(hint(room), there, folder, "John\n").endswith("Welcome to the chatroom!\n")
    nc = room.wait_for_log(r"or: (nc .*)").group(1)
    needs("nc")
    assert pasted(nc, there, folder, "/quit\n").startswith("Welcome to the chatroom!\n")
    options = [*certificate(tmp_path, "DNS:localhost,IP:10.9.8.1"), *password]
    room = start("chat_server.py", "--host", "::", *options, within=here)
    assert hint(room) == f"python3 chat_client.py 10.9.8.1 {room.port} --tls-ca new.pem"
    room.wait_for_log("copy new.pem to that host first")
    shutil.copy(tmp_path / "new.pem", folder)
    shown = pasted(hint(room), there, folder, "John\n", CHAT_PASSWORD=PASSWORD)
    assert shown.endswith("Welcome to the chatroom!\n")


# What the hint for a room with TLS has in it depends on the certificate.

ELSEWHERE = "192.0.2.77"


def tls_hint(options: list[str], host: str) -> list[str]:
    """Returns what is said about joining a room with a certificate, at an address."""
    listener: Any = SimpleNamespace(getsockname=lambda: (host, 7007))
    said: list[str] = []
    with mock.patch.object(chat_server.log, "info", lambda text, *more: said.append(text % more)):
        certificate = chat_server.Certificate(options[1], options[3])
        chat_server.tell_where([listener], ["localhost"], certificate)
    assert said[0].startswith(f"listening on {host}:7007; ")
    return said[1:]


@pytest.mark.parametrize(
    "names, host",
    [
        (f"DNS:lab1,IP:{ELSEWHERE}", ELSEWHERE),
        ("DNS:localhost,DNS:*.example.org,DNS:lab1.example.org", "lab1.example.org"),
    ],
)
def test_hint_has_a_host_for_which_the_certificate_is(
    tmp_path: Path, names: str, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = certificate(tmp_path, names)
    assert tls_hint(options, ELSEWHERE) == [
        f"join: python3 chat_client.py {host} 7007 --tls-ca new.pem",
        "copy new.pem to that host first; it isn't secret",
    ]
    assert not caplog.records


def test_hint_warns_of_a_certificate_that_is_for_none(caplog: pytest.LogCaptureFixture) -> None:
    lines = tls_hint(TLS_OPTIONS, ELSEWHERE)
    assert lines[0] == f"join: python3 chat_client.py {ELSEWHERE} 7007 --tls-ca room.pem"
    why = f"IP address mismatch, certificate is not valid for '{ELSEWHERE}'; make or get one that"
    assert f"clients will refuse {TLS_OPTIONS[1]}: {why}" in caplog.text


def test_hint_for_this_machine_has_the_whole_path(caplog: pytest.LogCaptureFixture) -> None:
    lines = tls_hint(TLS_OPTIONS, "127.0.0.1")
    assert lines == [f"join: python3 chat_client.py localhost 7007 --tls-ca {TLS_OPTIONS[1]}"]
    assert not caplog.records


def test_hint_where_the_system_trusts_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", TLS_OPTIONS[1])
    assert tls_hint(TLS_OPTIONS, "127.0.0.1") == [
        "join: python3 chat_client.py localhost 7007 --tls"
    ]


def test_hint_where_a_private_authority_signed_the_certificate(tmp_path: Path) -> None:
    options = certificate(tmp_path, f"IP:{ELSEWHERE}", authority=str(CERTS / "room"))
    assert tls_hint(options, ELSEWHERE) == [
        f"join: python3 chat_client.py {ELSEWHERE} 7007 --tls-ca FILE",
        f"FILE is the certificate of the authority behind {options[1]}",
    ]


def test_hint_does_not_have_the_key_copied(tmp_path: Path) -> None:
    options = certificate(tmp_path, f"IP:{ELSEWHERE}")
    (tmp_path / "my room.pem").write_bytes(b"".join(Path(options[n]).read_bytes() for n in (3, 1)))
    both = str(tmp_path / "my room.pem")
    assert tls_hint(["", both, "", both], ELSEWHERE) == [
        f"join: python3 chat_client.py {ELSEWHERE} 7007 --tls-ca NEW.pem",
        "copy NEW.pem to that host first; that is 'my room.pem' without the key",
    ]


def test_expired_certificate_is_said_at_the_start(start: Callable[..., Server]) -> None:
    files = [str(CERTS / "expired.pem"), str(CERTS / "expired.key")]
    room = start("chat_server.py", "--tls-cert", files[0], "--tls-key", files[1])
    room.wait_for_log(f"clients will refuse {files[0]}: certificate has expired; make or get")


# Words for what is wrong


@pytest.mark.parametrize(
    "options, status, message",
    [
        (["--host", "127.0.0.1:7007"], 2, "has a port in it: --host 127.0.0.1 --port 7007"),
        (["--host", "[::1]:7007"], 2, "has a port in it: --host [::1] --port 7007"),
        (["--host", ""], 2, "no host is given"),
        (["--host", "fe80::1"], 1, "needs the interface that it belongs to, as in fe80::1%eth0"),
        (["--host", "fe80::1%nosuch0"], 1, "host fe80::1%nosuch0 is unknown"),
        (["--port", "http"], 2, "http is not a port; those go from 0 to 65535"),
        (["--max-client", "5"], 2, "there is no option --max-client"),
    ],
)
def test_bad_hosts_and_ports(options: list[str], status: int, message: str) -> None:
    if options[1].startswith("fe80:"):
        needs_ipv6()
    done = run("chat_server.py", "--port", "0", *options)
    assert message in done.stderr
    assert done.returncode == status
    assert "Errno" not in done.stderr
    done = run("echo_server.py", "--port", "0", *options)  # with fewer words of its own
    assert done.returncode in (1, status)
    assert done.stderr.splitlines()[-1].startswith("echo_server.py: ")
    assert "Errno" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def pem_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that are no good, beside good ones."""
    folder = tmp_path_factory.mktemp("pem")
    for name in ("room.pem", "room.key", "other.key"):
        shutil.copy(CERTS / name, folder)
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
    pem_folder: Path, monkeypatch: pytest.MonkeyPatch, cert: str, key: str, message: str
) -> None:
    monkeypatch.chdir(pem_folder)
    with pytest.raises(chat_server.Failure) as failure:
        chat_server.make_server_tls(cert, key)
    assert str(failure.value).startswith(message)
    assert "\n" not in str(failure.value)


def test_pass_phrase_is_not_asked_for_on_the_terminal(
    pem_folder: Path, terminal: Callable[..., Any]
) -> None:
    command = [sys.executable, path_of("chat_server.py"), "--tls-cert", "room.pem"]
    window = terminal(*command, "--tls-key", "locked.key", cwd=pem_folder)
    shown = window.rest()
    assert shown.startswith("chat_server.py: the key in locked.key has a pass phrase")
    assert (shown.count("\n"), window.wait()) == (1, 1)


@pytest.mark.parametrize("option", ["--transcript", "--password-file"])
def test_folders_are_no_files(tmp_path: Path, option: str) -> None:
    done = run("chat_server.py", "--port", "0", option, str(tmp_path))
    assert f"{tmp_path}: Is a directory\n" in done.stderr
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)


def test_password_that_no_line_can_hold(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("x" * 101)
    options = ["--port", "0", "--max-line", "100", "--password-file", str(tmp_path / "password")]
    done = run("chat_server.py", *options)
    assert done.stderr == (
        "chat_server.py: the password is longer than a line may be; see --max-line\n"
    )
    assert done.returncode == 1


# Limits


@pytest.mark.parametrize("script", SERVERS)
def test_few_descriptors_are_no_traceback(script: str) -> None:
    resource = pytest.importorskip("resource")
    runs = []
    for limit in range(5, 12):
        lower = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit))
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, path_of(script), "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lower,  # noqa: PLW1509
        )
        runs.append((process, port))

    def has_ended_or_serves(process: subprocess.Popen[bytes], port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return process.poll() is not None
        except ConnectionResetError:  # its listener was closed between our SYN and its accept
            pass
        return True

    with ExitStack() as in_the_end:
        for process, _ in runs:
            in_the_end.callback(process.kill)
        for process, port in runs:
            eventually(partial(has_ended_or_serves, process, port))
            process.terminate()
            errors = process.communicate(timeout=DEADLINE)[1].decode()
            assert "Traceback" not in errors
            assert process.returncode in (0, 1, -signal.SIGTERM)  # it had not begun to serve
            if process.returncode == 1:
                assert re.search(r"oo (many|few) open files", errors.splitlines()[-1])


def test_transcript_is_for_its_owner_alone(start: Callable[..., Server], tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o664)
    for file in (old, new):
        start("chat_server.py", "--transcript", str(file))
    modes = [stat.S_IMODE(file.stat().st_mode) for file in (old, new)]
    assert modes == [0o664, 0o600]
    new.unlink()
    room = start("chat_server.py", "--transcript", str(new))
    talker = room.join()
    new.unlink()
    talker.send("hi\n")
    eventually(new.exists)
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "open_socket",
    [
        echo_server.ending_signals,
        chat_server.ending_signals,
        lambda: chat_client.open_signal_socket(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    ],
)
def test_signals_that_end_a_script_arrive(open_socket: Callable[[], socket.socket]) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    former = [signal.getsignal(number) for number in numbers]
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with open_socket() as signals:
            for number in numbers:
                os.kill(os.getpid(), number)
                assert eventually(lambda: signals.recv(9)) == bytes([number])
            for _ in range(3000):  # more than it holds, which is no traceback on standard error
                signal.raise_signal(signal.SIGTERM)
            os.close(signal.set_wakeup_fd(-1))
    finally:
        for number, handler in zip(numbers, former):
            signal.signal(number, handler)


# Log


@pytest.mark.parametrize("script", SERVERS)
def test_time_in_the_log_is_utc_and_says_so(start: Callable[..., Server], script: str) -> None:
    before = time.time()
    server = start(script, env={**os.environ, "TZ": "Etc/GMT+7"})
    stamps = [line.split(" ")[0] for line in server.log().splitlines()]
    for stamp in stamps:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stamp)
        calendar = time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")
        assert abs(time.mktime(calendar) - time.timezone - before) < DEADLINE


@pytest.mark.parametrize("script", SERVERS)
def test_journal_has_its_own_time(
    tmp_path: Path, start: Callable[..., Server], script: str
) -> None:
    files = [tmp_path / "log0", tmp_path / "log1"]  # which `start` takes
    for file in files:
        file.touch()
    journal = f"{files[0].stat().st_dev}:{files[0].stat().st_ino}"
    first, second = (start(script, env={**os.environ, "JOURNAL_STREAM": journal}) for _ in files)
    assert first.log().startswith("listening on ")
    assert re.match(r"\d{4}-.*Z listening on ", second.log())


@pytest.mark.parametrize(
    "script, tls", [("echo_server.py", False), ("chat_server.py", False), ("chat_server.py", True)]
)
@pytest.mark.parametrize("python", pythons())
def test_python_warns_of_nothing(
    python: str,
    script: str,
    tls: bool,
    start: Callable[..., Server],
    tmp_path: Path,
    password: list[str],
) -> None:
    """A whole conversation with all of Python's warnings on."""
    strict = ["env", python, "-X", "dev", "-W", "error", "-bb"]
    options = [*password, "--history", "2", "--transcript", str(tmp_path / "transcript")]
    options = options if script == "chat_server.py" else []
    server = start(script, "-v", *options, within=strict[:-1], python=strict[-1], tls=tls)
    peers = [server.connect() for _ in range(4)]
    for number, peer in enumerate(peers):
        peer.send(f"{PASSWORD}\n/name N{number}\n/who\nhi \x1b\n/msg N0: psst\n/nick\n")
        peer.line()
    peers[0].reset()
    peers[1].half_close()
    peers[1].rest()
    peers[2].send("/quit\n")
    server.wait_for_log("N3|/name")
    assert server.stop(peers=peers[1:]) == 0
    assert not re.search("Warning|Traceback|Exception", server.log())
