"""The echo server: exactly the bytes that came, for many, whatever they do."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import DEADLINE, MODULES, WELCOME, Server, eventually, needs_ipv6


def test_any_bytes_come_back_with_or_without_newlines(echo: Server) -> None:
    client = echo.connect()
    for message in (b"Hello\n", b"no newline", bytes(range(256)), b"\xff\xfb\x01\x00\r\n"):
        client.send(message)
        assert client.read(len(message)) == message


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_addresses_of_localhost_answer(echo: Server, host: str) -> None:
    if host == "::1":
        needs_ipv6()
    client = echo.connect(host)
    client.send(b"hi")
    assert client.read(2) == b"hi"


def test_urgent_bytes_come_back_in_their_place(echo: Server) -> None:
    client = echo.connect()
    for number in range(50):
        client.sock.send(b"%d" % (number % 10), socket.MSG_OOB)  # two in a row, too
        client.sock.send(b"!", socket.MSG_OOB)
        client.send(b"abc")
    sent = b"".join(b"%d!abc" % (number % 10) for number in range(50))
    assert client.read(len(sent)) == sent


def test_half_closed_client_gets_the_rest_of_its_echo(echo: Server) -> None:
    client = echo.connect()
    data = os.urandom(4_000_000)
    sender = threading.Thread(target=client.send_and_half_close, args=(data,))
    sender.start()
    assert client.rest() == data
    sender.join()


def test_client_that_only_sends_is_not_read_from_and_nobody_notices(echo: Server) -> None:
    deaf = echo.connect(receive_buffer=4096)
    deaf.sock.setblocking(False)
    sent = 0
    other = echo.connect()

    def stuck() -> bool:
        """Sends until the server has stopped reading: what fits in the kernels' buffers."""
        nonlocal sent
        try:
            while True:
                sent += deaf.sock.send(b"x" * 65536)
        except BlockingIOError:
            pass
        other.send(b"ping")
        return other.read(4) == b"ping" and sent == stuck_at

    stuck_at = -1
    for _ in range(1000):
        if stuck():
            break
        stuck_at = sent
    memory = echo.memory()
    deaf.sock.settimeout(DEADLINE)
    assert sent < 64_000_000
    deaf.half_close()
    assert len(deaf.rest()) == sent
    assert echo.memory() - memory < 4_000_000


def test_long_stream_through_a_slow_reader_is_identical_and_memory_stays_flat(
    echo: Server,
) -> None:
    client = echo.connect(receive_buffer=65536)
    size = 100_000_000
    block = random.Random(1).getrandbits(8 * 1_000_000).to_bytes(1_000_000, "big")

    def send() -> None:
        for _ in range(size // len(block)):
            client.send(block)
        client.half_close()

    client.send(block)
    assert client.read(len(block)) == block
    before = echo.memory()
    sender = threading.Thread(target=send)
    sender.start()
    received = 0
    peak = 0
    while True:
        data = client.read(len(block))
        if not data:
            break
        assert data == block
        received += len(data)
        time.sleep(0.005)  # so slow is this reader
        peak = max(peak, echo.memory())
    sender.join()
    assert received == size
    assert peak - before < 2_000_000


def test_a_thousand_clients_at_once_get_every_byte(echo: Server) -> None:
    clients = [echo.connect() for _ in range(1000)]
    messages = [f"client {number} ".encode() * 200 for number in range(len(clients))]
    for client, message in zip(clients, messages):
        client.send(message)
        client.half_close()
    for client, message in zip(clients, messages):
        assert client.rest() == message
        client.close()


def test_reset_ends_that_client_alone(echo: Server) -> None:
    other = echo.connect()
    other.send(b"before")
    assert other.read(6) == b"before"
    for _ in range(50):
        client = echo.connect()
        client.send(b"x" * 1000)
        client.reset()
    other.send(b"after")
    assert other.read(5) == b"after"
    eventually(lambda: echo.count() == 1)
    assert "Traceback" not in echo.log()


def test_more_than_max_clients_are_turned_away(start: Callable[..., Server]) -> None:
    echo = start("echo_server.py", "--max-clients", "2")
    first, second = echo.connect(), echo.connect()
    second.send(b"in")
    assert second.read(2) == b"in"
    assert echo.connect().rest() == b""
    first.close()
    echo.wait_for_log("disconnected, clients: 1")
    third = echo.connect()
    third.send(b"now")
    assert third.read(3) == b"now"


def test_verbose_log_shows_messages_as_lines_without_their_tricks(
    start: Callable[..., Server],
) -> None:
    echo = start("echo_server.py", "-v")
    client = echo.connect()
    client.send(b"one\r\ntw")
    assert client.read(7) == b"one\r\ntw"
    client.send(b"o\n\x1b[31m\xff\n" + b"x" * 10_000 + b"\nlast")
    client.half_close()
    client.rest()
    address = "{}:{}".format(*client.sock.getsockname())
    eventually(lambda: f"{address} disconnected" in echo.log())
    shown = [line.split(" ", 1)[1] for line in echo.log().splitlines() if f"{address}: " in line]
    assert shown == [
        f"{address}: one",
        f"{address}: two",
        f"{address}: \\x1b[31m\\xff",
        f"{address}: {'x' * 8192}",
        f"{address}: last",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(echo: Server, number: int) -> None:
    client = echo.connect()
    client.send(b"hi")
    assert client.read(2) == b"hi"
    assert echo.stop(number) == 0
    assert client.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", echo.port))
    assert "Traceback" not in echo.log()


def test_out_of_descriptors_newcomers_wait_without_spinning(start: Callable[..., Server]) -> None:
    resource = pytest.importorskip("resource")
    echo = start(
        "echo_server.py",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)),
    )
    clients = [echo.connect() for _ in range(40)]
    echo.wait_for_log("newcomers have to wait")
    clients[0].send(b"still here")
    assert clients[0].read(10) == b"still here"
    before = echo.cpu_seconds()
    log = echo.log()
    time.sleep(0.5)  # not to wait for something, but to see that nothing happens
    assert echo.cpu_seconds() - before < 0.06
    assert echo.log() == log
    for client in clients[:20]:
        client.close()
    for client in clients[20:]:
        client.send(b"in at last")
        assert client.read(10) == b"in at last"


def test_bytes_one_at_a_time(echo: Server) -> None:
    client = echo.connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in "Grüße\n".encode():
        client.send(bytes([byte]))
        assert client.read(1) == bytes([byte])


def test_many_backlogs_are_kept_apart(echo: Server) -> None:
    clients = [echo.connect(receive_buffer=4096) for _ in range(4)]
    data = [os.urandom(6_000_000) for _ in clients]
    senders = [
        threading.Thread(target=c.send_and_half_close, args=(d,)) for c, d in zip(clients, data)
    ]
    for sender in senders:
        sender.start()
    early = [c.read(100_000) for c in clients]  # all have backlogs while the first ones are read
    for c, d, beginning in zip(clients, data, early):
        assert beginning + c.rest() == d
    for sender in senders:
        sender.join()


def test_backlog_takes_no_cpu_while_it_waits_nor_when_it_is_gone(echo: Server) -> None:
    deaf = echo.connect(receive_buffer=4096)
    deaf.sock.settimeout(0.3)
    sent = 0
    with pytest.raises(socket.timeout):
        while True:
            sent += deaf.sock.send(b"x" * 65536)
    deaf.sock.settimeout(DEADLINE)
    for _ in range(2):
        before = echo.cpu_seconds()
        time.sleep(0.3)  # not to wait for something, but to see that nothing happens
        assert echo.cpu_seconds() - before < 0.06
        assert len(deaf.read(sent)) == sent
        deaf.send(b"x" * 10)
        sent = 10


@pytest.mark.parametrize("script", ["echo_server.py", "chat_server.py"])
def test_verbose_log_shows_the_beginning_of_a_flood(
    start: Callable[..., Server], script: str
) -> None:
    server = start(script, "-v")
    peer = server.connect()
    peer.send("x\n" * 50_000)
    server.wait_for_log("more lines")
    assert len(server.log().splitlines()) < 10_000


@pytest.mark.parametrize("script", ["echo_server.py", "chat_server.py"])
def test_newcomers_are_let_in_when_the_system_has_descriptors_again(
    start: Callable[..., Server], tmp_path: Path, script: str
) -> None:
    """Nobody leaves meanwhile, and nothing else wakes the server."""
    module = script[:-3]
    (tmp_path / "patched.py").write_text(
        f"import sys\nsys.path.insert(0, {str(MODULES)!r})\nimport errno, socket, {module}\n"
        "accept, failures = socket.socket.accept, [0] * 3\n"
        "def fail_first(self):\n"
        "    if not failures:\n"
        "        return accept(self)\n"
        "    failures.pop()\n"
        "    raise OSError(errno.ENFILE, 'Too many open files in system')\n"
        f"socket.socket.accept = fail_first\nsys.exit({module}.main())\n"
    )
    server = start("patched.py", "--host", "127.0.0.1", cwd=tmp_path)
    peer = server.connect()
    server.wait_for_log("newcomers have to wait: Too many open files in system")
    peer.send(b"hi\n")
    assert peer.line() == (b"hi\n" if script == "echo_server.py" else WELCOME)
    assert server.log().count("have to wait") == 1
