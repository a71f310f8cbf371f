"""What the tests share about browsers: the frames that they send."""

from __future__ import annotations


def masked(
    opcode: int, payload: bytes, final: bool = True, key: bytes = b"\x37\xfa\x21\x3d"
) -> bytes:
    """Returns a frame as a client sends it (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    body = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    return bytes([opcode | (0x80 if final else 0)]) + length + key + body
