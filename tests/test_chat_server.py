"""The chat server on real sockets: what members see of each other, and how they come and go."""

from __future__ import annotations

import calendar
import contextlib
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import DEADLINE, WELCOME, Peer, Server, every_kind, patched

pytestmark = every_kind


def fill_backlog(one: Peer) -> str:
    """Says more than the kernels hold for a slow reader, but less than its high-water mark."""
    text = ("x" * 1000 + "\n") * 200
    one.send(f"{text}/who\n")
    one.expect("* here: 2 unnamed\n")  # so all of it has been heard
    return text


def test_line_goes_to_all_but_its_sender(room: Server) -> None:
    one, two, three = room.join(), room.join(), room.join()
    one.send("hi\n")
    two.expect("hi\n")
    three.expect("hi\n")
    two.send("hello\n")
    one.expect("hello\n")
    three.expect("hello\n")


def test_crlf_goes_out_as_lf(room: Server) -> None:
    one, two = room.join(), room.join()
    one.send("hi\r\n")
    two.expect("hi\n")


def test_bytes_one_at_a_time_with_a_character_split_between_reads(room: Server) -> None:
    one, two = room.join("John"), room.join()
    one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in "John: Grüße 😀\r\n".encode():
        one.send(bytes([byte]))
    two.expect("John: Grüße 😀\n")


def test_a_thousand_lines_in_one_segment(room: Server) -> None:
    one, two = room.join(), room.join()
    lines = [f"{number}\n" for number in range(1000)]
    one.send("".join(lines))
    two.expect(*lines)


def test_a_thousand_commands_in_one_segment_are_all_answered(room: Server) -> None:
    one, two = room.join(), room.join()
    one.send("/nonsense\n/who\n" * 500 + "done\n")
    for _ in range(500):
        assert one.line().startswith(b"* no such command")
        one.expect("* here: 2 unnamed\n")
    two.expect("done\n")


def test_lines_with_long_consequences_are_all_heard_although_no_more_comes(room: Server) -> None:
    one, two = room.join("n" * 32), room.join()
    one.send("y\n" * 20_000)
    two.expect(*["n" * 32 + ": y\n"] * 20_000)


def test_names_joins_and_leaves_are_announced(room: Server) -> None:
    two = room.join("Ann")
    one = room.join("John")
    two.expect("* John joined\n")
    one.send("John: Hi\n/msg Ann: psst\n/who\n/name Jim\n/quit\n")
    two.expect("John: Hi\n", "John (private): psst\n", "* John is now Jim\n", "* Jim left\n")
    one.expect("* here: Ann, John\n", "* you are Jim\n", "* bye\n")
    assert one.rest() == b""


def test_a_name_is_free_again_when_its_owner_has_left(room: Server) -> None:
    room.join("John").close()
    room.wait_for_log("John at .* left")
    room.join("John")


def test_unfinished_last_line_is_delivered_with_its_newline(room: Server) -> None:
    one, two = room.join("John"), room.join()
    one.send("John: first\nlast")
    one.half_close()
    two.expect("John: first\n", "John: last\n", "* John left\n")
    assert one.rest() == b""


def test_last_words_count_although_the_speaker_has_read_nothing(room: Server) -> None:
    """Who closes with input unread sends RST, so sending to it fails; its lines still count."""
    two = room.join()
    for number in range(50):
        one = room.join()
        two.send("unread\n" * 100)
        one.send(f"last words {number}\n")
        one.close()
        two.expect(f"last words {number}\n")


def test_whoever_half_closes_gets_what_was_said_before(room: Server) -> None:
    one, two = room.join(), room.join(receive_buffer=4096)
    text = fill_backlog(one)
    two.half_close()
    assert two.rest() == text.encode()


def test_reset_ends_that_member_alone(room: Server) -> None:
    two = room.join()
    for _ in range(20):
        one = room.join("John")
        two.expect("* John joined\n")
        one.reset()
        two.expect("* John left\n")
    assert "Traceback" not in room.log()


@pytest.mark.parametrize("end", ["quit", "signal"])
def test_half_close_after_the_goodbye_loses_nothing(room: Server, end: str) -> None:
    one, slow = room.join(), room.join(receive_buffer=4096)
    text = fill_backlog(one)
    if end == "quit":
        slow.send("/quit\n")
        room.wait_for_log("quit")
    else:
        room.process.send_signal(signal.SIGTERM)
        one.expect("* the room is closing\n")
    slow.half_close()
    goodbye = "* the room is closing\n" if end == "signal" else "* bye\n"
    assert slow.rest() == (text + goodbye).encode()


def test_newcomers_get_the_last_messages(start: Callable[..., Server]) -> None:
    room = start("chat_server.py", "--history", "2")
    one = room.join("John")
    one.send("John: 1\nJohn: 2\nJohn: 3\n/who\n")
    one.expect("* here: John\n")
    two = room.connect()
    two.expect(WELCOME, "John: 2\n", "John: 3\n")
    one.send("John: 4\n")
    two.expect("John: 4\n")


def test_transcript_has_every_public_line_with_its_time(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "transcript"
    file.write_text("before\n")
    elsewhere = {**os.environ, "TZ": "XYZ-9"}  # where the local time is far from UTC
    room = start("chat_server.py", "--transcript", str(file), env=elsewhere)
    one, two = room.join("John"), room.join()
    one.send("a\n/msg John: secret\nb\n")
    two.expect("John: a\n", "John: b\n")
    one.close()
    two.expect("* John left\n")
    two.close()
    room.stop()
    first, *lines = file.read_text().splitlines()
    assert first == "before"
    for line in lines:
        said_at = time.strptime(line.split(" ")[0], "%Y-%m-%dT%H:%M:%SZ")
        assert abs(calendar.timegm(said_at) - time.time()) < 3600
    assert [line.split(" ", 1)[1] for line in lines] == [
        "* John joined",
        "John: a",
        "John: b",
        "* John left",
        "* the room is closing",
    ]


def test_transcript_that_vanishes_is_logged_and_started_anew(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "transcript"
    room = start("chat_server.py", "--transcript", str(file))
    one, two = room.join(), room.join()
    file.unlink()
    one.send("a\n")
    two.expect("a\n")
    room.wait_for_log("vanished")
    assert file.read_text().endswith(" a\n")


def test_transcript_whose_folder_is_moved_away_and_back(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    room = start("chat_server.py", "--transcript", str(folder / "file"))
    one, two = room.join(), room.join()
    folder.rename(elsewhere)
    one.send("a\nb\n")
    two.expect("a\n", "b\n")
    one.send("c\n")
    two.expect("c\n")
    elsewhere.rename(folder)
    one.send("d\n")
    two.expect("d\n")
    assert (folder / "file").read_text().endswith("Z d\n")
    assert room.log().count("cannot write the transcript") == 1


def test_transcript_on_a_full_disk_is_logged_once_and_the_room_goes_on(
    start: Callable[..., Server],
) -> None:
    full = Path("/dev/full")
    if not full.exists() or not stat.S_ISCHR(full.stat().st_mode):
        pytest.skip("needs /dev/full")
    room = start("chat_server.py", "--transcript", "/dev/full")
    one, two = room.join(), room.join()
    for number in range(3):
        one.send(f"{number}\n")
        two.expect(f"{number}\n")
    assert room.log().count("cannot write the transcript /dev/full: No space left") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_delivers_what_was_said_and_says_goodbye(room: Server, number: int) -> None:
    one, two = room.join("John"), room.join()
    one.send("John: last\n")
    two.expect("John: last\n")
    room.process.send_signal(number)
    two.expect("* the room is closing\n")
    assert two.rest() == b""
    one.expect("* the room is closing\n")
    one.close()
    two.close()
    assert room.process.wait(DEADLINE) == 0
    with pytest.raises(ConnectionRefusedError):
        room.connect()
    assert "Traceback" not in room.log()


def test_closing_room_delivers_a_backlog_to_a_slow_reader(room: Server) -> None:
    one, slow = room.join(), room.join(receive_buffer=4096)
    text = fill_backlog(one)
    room.process.send_signal(signal.SIGTERM)
    assert slow.rest() == (text + "* the room is closing\n").encode()
    slow.close()
    one.close()
    assert room.process.wait(DEADLINE) == 0


def test_second_signal_ends_it_at_once(room: Server) -> None:
    one, stuck = room.join(), room.join(receive_buffer=4096)
    fill_backlog(one)
    room.process.send_signal(signal.SIGTERM)
    stuck.sock.settimeout(DEADLINE)
    one.expect("* the room is closing\n")
    room.process.send_signal(signal.SIGTERM)
    assert room.process.wait(DEADLINE) == 1


def test_signals_in_the_middle_of_everything_leave_no_traceback(
    start: Callable[..., Server],
) -> None:
    for round_ in range(4):
        room = start("chat_server.py")
        members = [room.join(f"m{number}") for number in range(5)]
        for member in members:
            member.send("hello\n" * 50)
        room.process.send_signal(signal.SIGINT if round_ % 2 else signal.SIGTERM)
        for member in members:
            assert b"* the room is closing\n" in member.rest()
            member.close()
        assert room.process.wait(DEADLINE) == 0
        assert "Traceback" not in room.log()


def test_a_signal_after_the_end_leaves_no_trace(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    late = "import atexit, signal\natexit.register(signal.raise_signal, signal.SIGTERM)"
    room = patched(start, tmp_path, late)
    member = room.join()  # before that, a signal would find it as any process is at its start
    assert room.stop(peers=[member]) == 0
    assert room.log().splitlines()[-1].endswith("stopped by SIGTERM")


def test_verbose_log_shows_what_is_said(start: Callable[..., Server]) -> None:
    room = start("chat_server.py", "-v")
    one, two = room.join("John"), room.join()
    one.send("hi\n")
    two.expect("John: hi\n")
    room.wait_for_log("said: John: hi")


def test_many_members_each_get_every_line(room: Server) -> None:
    members = [room.join() for _ in range(300 if room.tls else 1000)]
    lines = [f"line {number} of 20\n" for number in range(20)]
    for member, line in zip(members, lines):
        member.send(line)
    order = [members[-1].line() for _ in lines]
    assert sorted(order) == sorted(line.encode() for line in lines)
    for number, member in enumerate(members[:-1]):
        own = lines[number].encode() if number < len(lines) else b""
        member.expect(*(line for line in order if line != own))


def test_closing_room_lets_nobody_in(room: Server) -> None:
    one, slow = room.join(), room.join(receive_buffer=4096)
    one.send(("x" * 1000 + "\n") * 200 + "/who\n")  # keeps the room from ending
    one.expect("* here: 2 unnamed\n")
    room.process.send_signal(signal.SIGTERM)
    one.expect("* the room is closing\n")
    with pytest.raises(ConnectionRefusedError):
        room.connect()
    assert room.process.poll() is None
    slow.close()


def test_whoever_leaves_while_still_sending_gets_all_that_was_on_its_way(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    room = patched(start, tmp_path, "chat_server.LINGER = 0.25")
    leaver, talker = room.join(receive_buffer=8192), room.join("Talker")
    leaver.expect("* Talker joined\n")
    for number in range(100):
        talker.send(f"{number:0990}\n")
    talker.send("/who\n")
    talker.expect("* here: Talker and 1 unnamed\n")
    leaver.send("/quit\n")
    received, more = b"", b"."
    while more and not received.endswith(b"* bye\n"):
        more = leaver.sock.recv(2000)
        received += more
        if len(received) < 70_000:
            time.sleep(0.01)  # it is slow: more than LINGER passes while there is much on its way
        with contextlib.suppress(OSError):  # by the end nothing is taken any more
            leaver.send("still sending\n")
    assert received.count(b"Talker: ") == 100
    assert received.endswith(b"* bye\n")
