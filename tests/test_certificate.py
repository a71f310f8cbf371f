"""A certificate that is renewed on disk: newcomers get the new one, and nobody notices anything."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import (
    CERTS,
    DEADLINE,
    MODULES,
    WELCOME,
    Peer,
    Server,
    eventually,
    finish,
    needs,
    patched,
)

import chat_server
from chat_server import Certificate

STAYS = "the old certificate stays in use: "


def replace(source: str, file: Path) -> None:
    """Puts one of the tests' files in the place of another, as a whole."""
    new = file.with_name("new")
    shutil.copyfile(CERTS / source, new)
    os.replace(new, file)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The room's certificate and its key, to be replaced."""
    cert, key = tmp_path / "cert", tmp_path / "key"
    replace("room.pem", cert)
    replace("room.key", key)
    return cert, key


@pytest.fixture
def room(start: Callable[..., Server], tmp_path: Path, files: tuple[Path, Path]) -> Server:
    patient = "chat_server.HANDSHAKE_TIME = chat_server.DOOR_TIME = 20"
    options = ["--tls-cert", str(files[0]), "--tls-key", str(files[1])]
    return patched(start, tmp_path, patient, *options)


def join(room: Server) -> tuple[Peer, str]:
    """Returns a new member, and whose certificate it was shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    raw = socket.create_connection(("127.0.0.1", room.port), DEADLINE)
    tls = context.wrap_socket(raw)
    shown = tls.getpeercert(binary_form=True)
    assert shown
    peer = Peer(tls)
    peer.expect(WELCOME)
    (owner,) = [
        name
        for name in ("room", "other")
        if ssl.PEM_cert_to_DER_cert((CERTS / f"{name}.pem").read_text()) == shown
    ]
    return peer, owner


def test_newcomers_get_the_new_certificate_and_nobody_is_cut_off(
    room: Server, files: tuple[Path, Path]
) -> None:
    cert, key = files
    ann, owner = join(room)
    assert owner == "room"
    replace("other.pem", cert)
    members = [ann]
    for _ in range(3):  # the key has yet to be replaced
        peer, owner = join(room)
        assert owner == "room"
        members.append(peer)
    assert room.log().count(f"{STAYS}the key in {key} does not belong to") == 1
    replace("other.key", key)
    for _ in range(3):
        peer, owner = join(room)
        assert owner == "other"
        members.append(peer)
    assert room.log().count(f"newcomers get the new certificate in {cert}") == 1
    for number, peer in enumerate(members):
        peer.send(f"{number}\n")
        for other in members:
            if other is not peer:
                other.expect(f"{number}\n")


def test_certificate_that_is_replaced_under_load(room: Server, files: tuple[Path, Path]) -> None:
    cert, key = files
    over = threading.Event()
    joined: list[list[tuple[Peer, str]]] = [[] for _ in range(3)]

    def keep_joining(members: list[tuple[Peer, str]]) -> None:
        while not over.is_set() and len(members) < 300:
            members.append(join(room))

    threads = [threading.Thread(target=keep_joining, args=(members,)) for members in joined]
    for thread in threads:
        thread.start()
    for number in range(10):
        owner = ("other", "room")[number % 2]
        replace(f"{owner}.pem", cert)
        replace(f"{owner}.key", key)
        peer, shown = join(room)
        assert shown == owner
        peer.close()
    eventually(lambda: all(joined))
    over.set()
    for thread in threads:
        thread.join(DEADLINE)
    members = [peer for one in joined for peer, _ in one]
    members[0].send("still here?\n")
    for peer in members[1:]:
        peer.expect("still here?\n")
    assert "Traceback" not in room.log()


@pytest.mark.parametrize("content", ["", "half of a certif", None])
def test_certificate_that_cannot_be_read_is_logged_and_the_old_one_stays(
    room: Server, files: tuple[Path, Path], content: str | None
) -> None:
    cert, key = files
    if content is None:
        cert.unlink()
    else:
        cert.write_text(content)
    for _ in range(3):
        assert join(room)[1] == "room"
    assert room.log().count(STAYS) == 1
    replace("other.key", key)
    assert join(room)[1] == "room"
    replace("other.pem", cert)
    assert join(room)[1] == "other"
    assert room.log().count(STAYS) == 1, "for the same reason"


def test_files_that_could_not_be_loaded_are_tried_again(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A change can come so soon after the last that the time of the file doesn't show it."""
    cert, _ = files
    whole = cert.read_bytes()
    certificate = Certificate(*map(str, files))
    first = certificate.current()
    cert.write_bytes(b"x" * len(whole))
    time_of_change = cert.stat().st_mtime_ns
    for _ in range(3):
        assert certificate.current() is first
    cert.write_bytes(whole)
    os.utime(cert, ns=(time_of_change, time_of_change))
    assert certificate.current() is not first
    assert [STAYS in record.message for record in caplog.records].count(True) == 1
    last = certificate.current()
    assert certificate.current() is last


def test_files_that_change_while_they_are_loaded_are_loaded_again(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = chat_server.make_server_tls

    def load_and_replace(cert: str, key: str) -> ssl.SSLContext:
        context = load(cert, key)
        replace("other.pem", files[0])
        replace("other.key", files[1])
        return context

    with monkeypatch.context() as patch:
        patch.setattr(chat_server, "make_server_tls", load_and_replace)
        certificate = Certificate(*map(str, files))
    first = certificate.context
    assert certificate.current() is not first


def test_each_reason_for_the_old_one_is_logged_once(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = files
    certificate = Certificate(*map(str, files))
    reasons = ["there is no certificate in PEM format", "cannot read", "does not belong to"]
    for content in (b"no certificate", None, (CERTS / "other.pem").read_bytes()):
        cert.write_bytes(content) if content else cert.unlink()
        for _ in range(3):
            certificate.current()
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == len(reasons)
    for message, reason in zip(logged, reasons):
        assert message.startswith(STAYS) and reason in message
    replace("other.key", key)
    old = certificate.context
    assert certificate.current() is not old


def test_a_new_context_is_like_the_first(files: tuple[Path, Path]) -> None:
    cert, key = files
    certificate = Certificate(str(cert), str(key))
    contexts = [certificate.current()]
    replace("other.pem", cert)
    replace("other.key", key)
    contexts.append(certificate.current())
    one, other = (
        (context.minimum_version, context.num_tickets, context.options, context.protocol)
        for context in contexts
    )
    assert contexts[0] is not contexts[1]
    assert one == other


def test_a_new_key_with_a_pass_phrase_asks_nobody(room: Server, files: tuple[Path, Path]) -> None:
    command = [needs("openssl"), "pkey", "-in", str(CERTS / "room.key"), "-aes256"]
    command += ["-passout", "pass:secret", "-out", str(files[1])]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
    assert join(room)[1] == "room"
    assert f"{STAYS}the key in {files[1]} has a pass phrase" in room.log()


def test_a_pipe_in_place_of_a_certificate_is_not_waited_for(files: tuple[Path, Path]) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(MODULES)!r}); import chat_server\n"
        "certificate = chat_server.Certificate(*sys.argv[1:])\n"
        "os.unlink(sys.argv[1]); os.mkfifo(sys.argv[1])\n"
        "assert certificate.current() is certificate.current()"
    )
    assert finish([sys.executable, "-c", code, *map(str, files)]).returncode == 0
