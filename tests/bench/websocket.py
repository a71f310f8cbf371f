"""The browser's side of a WebSocket (RFC 6455), as far as the load needs it."""

from __future__ import annotations

import socket

MASK = b"\x5e\xa1\x07\xc3"  # a browser takes a new one at random for each frame
TEXT = 0x81  # the first byte of a frame that is a whole text message
ENDS_HEAD = b"\r\n\r\n"


def request(host: str, port: int) -> bytes:
    """Returns what asks for a WebSocket. There is no Origin: only a browser must send one."""
    return (
        f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def shake_hands(sock: socket.socket) -> None:
    """Asks for a WebSocket on a blocking socket, and takes the answer and nothing after it.
    Raises OSError."""
    sock.sendall(request(*sock.getpeername()))
    head = b""
    while not head.endswith(ENDS_HEAD):
        byte = sock.recv(1)
        if not byte:
            break
        head += byte
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError(f"no WebSocket: {head[:60]!r}")


def frame(payload: bytes, first: int = TEXT) -> bytes:
    """Returns a masked frame: with text, unless its first byte says otherwise."""
    size = len(payload)
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([first, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, 0x80 | 127]) + size.to_bytes(8, "big")
    mask = int.from_bytes((MASK * (size // 4 + 1))[:size], "big")
    masked = (int.from_bytes(payload, "big") ^ mask).to_bytes(size, "big")
    return head + MASK + masked


def head_size(head: bytes) -> int:
    """Returns how long the head of an unmasked frame is, as far as its first bytes tell."""
    return 2 if len(head) < 2 else {126: 4, 127: 10}.get(head[1], 2)


def payload_size(head: bytes) -> int:
    """Returns how many bytes follow the head of an unmasked frame."""
    return head[1] if len(head) == 2 else int.from_bytes(head[2:], "big")
