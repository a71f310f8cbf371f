"""A peer that speaks TLS 1.3 by calls of OpenSSL itself: Python's ssl can't change keys."""

from __future__ import annotations

import ctypes
import ssl
from typing import Any


class Pointer(ctypes.c_void_p):
    """An address, which stays one: of a plain c_void_p, a call would make a number."""


def load_openssl() -> Any:
    """Returns the library that Python's own ssl uses. Raises RuntimeError if it can't be had."""
    try:
        library = ctypes.CDLL(ssl._ssl.__file__)  # type: ignore[attr-defined]
        for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new", "BIO_s_mem", "BIO_new"):
            getattr(library, name).restype = Pointer
        library.SSL_key_update.restype = ctypes.c_int
    except (AttributeError, OSError) as error:
        raise RuntimeError("this Python's OpenSSL can't be called") from error
    return library


class KeyChanger:
    """A client that isn't connected to anything: what it receives is fed, what it sends taken."""

    def __init__(self) -> None:
        self.library = library = load_openssl()
        self.ssl = library.SSL_new(library.SSL_CTX_new(library.TLS_client_method()))
        self.incoming, self.outgoing = (library.BIO_new(library.BIO_s_mem()) for _ in range(2))
        library.SSL_set_bio(self.ssl, self.incoming, self.outgoing)
        library.SSL_set_connect_state(self.ssl)

    def feed(self, data: bytes) -> None:
        self.library.BIO_write(self.incoming, data, len(data))

    def take(self) -> bytes:
        buffer = ctypes.create_string_buffer(1 << 20)
        size = self.library.BIO_read(self.outgoing, buffer, len(buffer))
        return buffer.raw[: max(0, size)]

    def shake_hands(self) -> bytes:
        """Goes on with the handshake; returns what to send."""
        self.library.SSL_do_handshake(self.ssl)
        return self.take()

    def is_ready(self) -> bool:
        """Says whether the handshake is done."""
        return bool(self.library.SSL_is_init_finished(self.ssl))

    def change_keys(self, times: int, answered: bool = False) -> bytes:
        """Returns that many orders to change keys, perhaps such that have to be answered."""
        for _ in range(times):
            assert self.library.SSL_key_update(self.ssl, int(answered)) == 1
            self.library.SSL_do_handshake(self.ssl)
        return self.take()

    def say(self, text: bytes) -> bytes:
        """Returns what to send for a text."""
        self.library.SSL_write(self.ssl, text, len(text))
        return self.take()
