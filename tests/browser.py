"""A WebSocket from the browser's side, with the methods of a socket: lines in, lines out.

Written apart from the server's own, so that the two can disagree.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3, where its answer is, too
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def masked(
    opcode: int, payload: bytes, final: bool = True, key: bytes = b"\x37\xfa\x21\x3d"
) -> bytes:
    """Returns a frame as a browser sends it."""
    head = bytes([opcode | (0x80 if final else 0)])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += b"\xfe" + size.to_bytes(2, "big")
    else:
        head += b"\xff" + size.to_bytes(8, "big")
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    return head + key + (int.from_bytes(payload, "big") ^ mask).to_bytes(size, "big")


def head(first: str, **fields: str) -> bytes:
    """Returns a request's head; Sec_Fetch_Site stands for Sec-Fetch-Site."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


def request(host: str, first: str = "GET / HTTP/1.1", **changed: str) -> bytes:
    """Returns the head of a WebSocket's request; a field that is changed to nothing is left out."""
    fields = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec_WebSocket_Key": KEY,
        "Sec_WebSocket_Version": "13",
        **changed,
    }
    return head(first, **{name: value for name, value in fields.items() if value})


class WebSocketPeer:
    """What is sent through it travels as messages, a line each, and what isn't a whole line as a
    fragment; so bytes can be sent as through any other socket, and are received like that."""

    def __init__(self, sock: socket.socket, host: str) -> None:
        """Takes a socket that is connected and blocking, and asks for the upgrade."""
        self.sock = sock
        self.outgoing = b""  # frames that the kernel hasn't taken
        self.incoming = b""  # bytes that aren't a whole frame yet
        self.text = b""  # of frames that are whole
        self.opened = False  # a fragment has been sent that isn't the last of its message
        self.code: int | None = None  # with which the server has closed; 0 without one
        self.pongs: list[bytes] = []
        sock.sendall(request(host))
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(65536)
            assert data, f"no answer: {head!r}"
            head += data
        head, self.incoming = head.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 101 ") and ACCEPT.encode() in head, head
        self.take_frames()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def frames(self, data: bytes) -> bytes:
        """Returns the frames for more bytes of a text."""
        frames = b""
        *lines, rest = data.split(b"\n")
        for line in lines:
            frames += masked(CONTINUATION if self.opened else TEXT, line)
            self.opened = False
        if rest:
            frames += masked(CONTINUATION if self.opened else TEXT, rest, final=False)
            self.opened = True
        return frames

    def sendall(self, data: bytes) -> None:
        self.sock.sendall(self.outgoing + self.frames(bytes(data)))
        self.outgoing = b""

    def send(self, data: bytes) -> int:
        """Returns how many bytes it took: all, unless it has to wait, which raises as usual."""
        self.flush()
        self.outgoing = self.frames(bytes(data))
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            self.flush()
        return len(data)

    def flush(self) -> None:
        while self.outgoing:
            self.outgoing = self.outgoing[self.sock.send(self.outgoing) :]

    def recv(self, size: int) -> bytes:
        while not self.text and self.code is None:
            data = self.sock.recv(65536)
            if not data:
                break
            self.incoming += data
            self.take_frames()
        data, self.text = self.text[:size], self.text[size:]
        return data

    def pending(self) -> bool:
        """Says whether there is something to receive that isn't in the kernel any more."""
        inner = self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else 0
        return bool(self.text or inner)

    def take_frames(self) -> None:
        data, at = self.incoming, 0
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size > 125:
                wide = 2 if size == 126 else 8
                size, start = int.from_bytes(data[start : start + wide], "big"), start + wide
            if len(data) < start + size:
                break
            self.take_frame(data[at], data[start : start + size])
            at = start + size
        self.incoming = data[at:]

    def take_frame(self, first: int, payload: bytes) -> None:
        assert first & 0x70 == 0 and first & 0x80, "an extension, or a fragment"
        if first == 0x80 | TEXT:
            assert self.code is None, "something came after the Close"
            assert payload.endswith(b"\n"), "not whole lines"
            payload.decode()
            self.text += payload
        elif first == 0x80 | PONG:
            self.pongs.append(payload)
        else:
            assert first == 0x80 | CLOSE
            self.code = int.from_bytes(payload[:2], "big")

    def end(self) -> None:
        """What half-closing is for others."""
        self.outgoing += masked(CLOSE, (1000).to_bytes(2, "big"))
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            self.flush()
