"""The file can be put down after its second part: what stands before that is a chat server."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from support import ROOT, Start

SOURCE = (ROOT / "chat_server.py").read_text(encoding="utf-8")
PARTS = re.split(r"(?m)^# === ([IV]+)\. (.+?) =+$", SOURCE)
TEXTS = dict(zip(PARTS[1::3], PARTS[3::3]))

DOOR = '''
class Door:
    """Lets everybody in."""

    def __init__(self, membership, selector, listener):
        self.membership = membership
        self.selector = selector
        self.listener = listener

    def open(self):
        self.selector.register(self.listener, EVENT_READ, self.accept)

    def accept(self):
        sock, (host, port) = self.listener.accept()
        sock.setblocking(False)
        conn = Connection(sock, f"{host}:{port}", host, self.selector, Lines(MAX_LINE))
        self.membership.enter(conn, b"")

    def meet_deadlines(self):
        pass

    def close(self):
        self.listener.close()


PATIENCE, STEP, TICK, PACE = 0.5, 0, 0.25, 65536
valid_name = str.strip
identity = look = str.casefold


def main():
    logging.basicConfig(level=logging.INFO)
    listener = socket.create_server(("127.0.0.1", 0))
    log.info("listening on 127.0.0.1:%d; join: nothing else", listener.getsockname()[1])
    selector = DefaultSelector()
    membership = Membership(Room(), Clock())
    server = ChatServer(selector, membership, Door(membership, selector, listener))
    signals, stop = socket.socketpair()
    stop.setblocking(False)
    signal.set_wakeup_fd(stop.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(server.run(signals))


main()
'''


def test_the_table_of_contents_names_the_parts_in_their_order() -> None:
    listed = re.findall(r"(?m)^    ([IV]+) +(\S.*?)(?:   .*)?$", PARTS[0])
    assert listed == list(zip(PARTS[1::3], PARTS[2::3]))


def test_one_may_stop_after_the_second_part() -> None:
    before = PARTS[0].count("\n") + 1
    server_ends = TEXTS["II"].index("# --- Time")
    assert (TEXTS["I"] + TEXTS["II"][:server_ends]).count("\n") + before <= 1350
    for word in ("telnet", "tls", "ssl", "browser", "http", "websocket", "password"):
        for part in ("I", "II"):
            _, _, text = TEXTS[part].partition("\n\n")  # after what the part says of itself
            assert word not in text.lower(), f"{word} in part {part}"


def test_the_first_two_parts_are_a_chat_server(start: Start, tmp_path: Path) -> None:
    """With two who talk, one who floods, and one who never reads."""
    cut = SOURCE[: SOURCE.index("# === III. ")]
    (tmp_path / "cut.py").write_text(cut + DOOR, encoding="utf-8")
    room = start("cut.py", cwd=tmp_path)
    ann, bob, eve = (room.join() for _ in range(3))
    stuck = room.join(receive_buffer=4096)
    ann.send("/name Ann\n")
    ann.expect("* you are Ann\n")
    bob.expect("* Ann joined\n")
    lines = [b"%060d\n" * 1000 % tuple(range(at, at + 1000)) for at in range(0, 60_000, 1000)]
    sender = threading.Thread(target=lambda: [eve.send(some) for some in lines])
    sender.start()
    for some in lines:  # more of them than the kernels on the way to the stuck one take
        assert ann.read(len(some)) == bob.read(len(some)) == some
    sender.join()
    room.wait_for_log("disconnected: too far behind")
    ann.send("hello\n")
    bob.expect("Ann: hello\n")
    assert room.stop(peers=[ann, bob, eve]) == 0
    stuck.close()
