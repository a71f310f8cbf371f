"""The four steps of the challenge, to the letter, and the tools that it names."""

from __future__ import annotations

from subprocess import DEVNULL, PIPE
from typing import Any

import pytest
from support import DEADLINE, PLAIN, Run, Server, Start, launch, needs, needs_ipv6


@pytest.mark.parametrize("host", ["localhost", "::1", "127.0.0.1"])
def test_step_1_telnet_to_the_echo_server(echo: Server, terminal: Run, host: str) -> None:
    if host == "::1":
        needs_ipv6()
    window = terminal(needs("telnet"), host, str(echo.port))
    window.expect(f"Connected to {host}.")
    window.answer("Escape character is '^]'.\n", "Hello Coding Challenges!\n")
    window.answer("Hello Coding Challenges!\nHello Coding Challenges!\n", "\x1d")
    window.answer("telnet> ", "quit\n")
    window.expect("Connection closed.")
    assert window.wait() == 0


def test_step_2_client_of_the_echo_server(echo: Server, terminal: Run) -> None:
    window = terminal(*PLAIN, "--echo", "localhost", str(echo.port))
    window.answer("send: ", "test\n")
    window.answer("test\nrecv: test\nsend: ", "quit\n")
    assert window.rest() == "quit\n"
    assert window.wait() == 0


def test_step_3_chat_client_with_the_echo_server(echo: Server, terminal: Run) -> None:
    window = terminal(*PLAIN, "localhost", str(echo.port))
    window.answer("name: ", "John\n")
    window.expect("John\n")
    echo.wait_for_log("connected")
    window.type("Hi\n")
    window.answer("Hi\nJohn: Hi\nJohn: Hi\n", "exit\n")
    assert window.rest() == "exit\n"
    assert window.wait() == 0


def test_step_4_two_clients_in_the_room(room: Server, terminal: Run) -> None:
    john, other = (terminal(*PLAIN, "localhost", str(room.port)) for _ in range(2))
    watcher = room.join()
    for window, name in (john, "John"), (other, "OtherJohn"):
        window.answer("name: ", f"{name}\n")
        window.expect(f"{name}\nWelcome to the chatroom!\n")
        watcher.expect(f"* {name} joined\n")  # so OtherJohn doesn't hear of John's joining
    john.expect("* OtherJohn joined\n")
    other.type("Hi!\n")
    other.expect("Hi!\nOtherJohn: Hi!\n")
    john.expect("OtherJohn: Hi!\n")
    for line in ("Hey John!", "How's things? What are you doing?"):
        john.type(f"{line}\n")
        john.expect(f"{line}\nJohn: {line}\n")
        other.expect(f"John: {line}\n")
    other.type("Writing a Coding Challenge!\n")
    john.answer("OtherJohn: Writing a Coding Challenge!\n", "Same!\n")
    john.answer("Same!\nJohn: Same!\n", "exit\n")
    assert john.rest() == "exit\n"
    assert john.wait() == 0
    other.expect("John: Same!\n* John left\n")


@pytest.mark.parametrize("tool", ["nc", "ncat", "openssl s_client -quiet -connect"])
def test_common_tools_are_full_members(start: Start, tool: str) -> None:
    room = start("chat_server.py", tls="-connect" in tool)
    john = room.join("John")
    program, *options = tool.split()
    place = [f"localhost:{room.port}"] if options else ["localhost", str(room.port)]
    streams: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": DEVNULL, "bufsize": 0}
    process: Any = launch([needs(program), *options, *place], **streams)
    assert process.stdout.readline() == b"Welcome to the chatroom!\n"
    process.stdin.write(b"hello\n")
    john.expect("hello\n")
    john.send("hi\n")
    assert process.stdout.readline() == b"John: hi\n"
    process.stdin.write(b"/quit\n")
    process.stdin.close()
    assert process.stdout.read() == b"* bye\n"
    process.wait(DEADLINE)
