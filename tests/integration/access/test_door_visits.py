"""The door as a process of its own, before a server that is not Redis: what comes in goes out, whole and in order, whoever ends first."""
from __future__ import annotations

import os
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distributed_comfy.access.certificates import DoorCertificates, ensure_certificates
from distributed_comfy.state.door import DoorPlan, DoorProcess, door_file, plan_text
from tests.command_line import until
from tests.conftest import free_port

MANY_BYTES = 9 * 2**20 + 17
"""No multiple of a record, nor of what the door reads at once."""
Serve = Callable[[socket.socket], None]


@dataclass
class Door:
    """An open door, and what is behind it."""

    port: int
    certificates: DoorCertificates
    inside: list[socket.socket] = field(default_factory=list)
    """Connections that the server behind has, or had."""

    def enter(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLSocket:
        """Come in as a client of another host does."""
        context = ssl.create_default_context(cafile=str(self.certificates.ca))
        context.maximum_version = version
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), timeout=30), server_hostname="127.0.0.1")


@contextmanager
def door_before(serve: Serve, folder: Path) -> Iterator[Door]:
    """A door whose server behind treats each connection so."""
    certificates = ensure_certificates(folder / "tls", ["127.0.0.1"])
    door = Door(free_port(), certificates)
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as ending:
        ending.callback(server.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=_accept, args=(server, serve, door.inside), daemon=True).start()
        plan = DoorPlan("127.0.0.1", door.port, free_port(), str(certificates.certificate), str(certificates.key))
        door_file(folder).write_text(plan_text(plan))
        process = DoorProcess(folder, server.getsockname()[1], server.getsockname()[1])
        ending.callback(process.shut)
        process.tend()
        until(lambda: _listens(door.port))
        yield door


def _accept(server: socket.socket, serve: Serve, inside: list[socket.socket]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        inside.append(connection)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def echo(connection: socket.socket) -> None:
    """Send back what comes."""
    with connection:
        while data := connection.recv(70_001):
            connection.sendall(data)


def read(connection: ssl.SSLSocket, size_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < size_bytes and (data := connection.recv(2**20)):
        found += data
    return bytes(found)


def over_memory(door: Door, early: bytes) -> bytes:
    """What comes back for bytes that are sent in one piece with the last word of the handshake."""
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(door.certificates.ca))
    tls = context.wrap_bio(came, goes, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", door.port), timeout=30) as plain:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(goes.read())
                came.write(plain.recv(65_536))
        tls.write(early)
        plain.sendall(goes.read())
        while True:
            try:
                return tls.read(65_536)
            except ssl.SSLWantReadError:
                came.write(plain.recv(65_536))


def test_a_lot_comes_back_whole_and_in_order_on_many_connections_at_once(tmp_path: Path) -> None:
    with door_before(echo, tmp_path) as door:
        came_back: dict[int, bool] = {}

        def come(number: int) -> None:
            sent = os.urandom(MANY_BYTES)
            with door.enter() as visitor:
                received = b""
                for start in range(0, MANY_BYTES, 2**21):
                    part = sent[start : start + 2**21]
                    visitor.sendall(part)
                    received += read(visitor, len(part))
            came_back[number] = received == sent

        visitors = [threading.Thread(target=come, args=(number,)) for number in range(4)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
        assert came_back == dict.fromkeys(range(4), True)


def test_what_comes_in_one_piece_with_the_handshake_is_not_left_lying(tmp_path: Path) -> None:
    with door_before(echo, tmp_path) as door:
        assert over_memory(door, b"the first request") == b"the first request"


def test_a_server_that_sends_and_leaves_is_heard_to_the_end(tmp_path: Path) -> None:
    said = os.urandom(MANY_BYTES)

    def tell(connection: socket.socket) -> None:
        with connection:
            connection.sendall(said)

    with door_before(tell, tmp_path) as door, door.enter() as visitor:
        assert read(visitor, MANY_BYTES) == said
        assert visitor.recv(1) == b"", "and says good-bye, else the client takes it for a cut"


def test_a_visitor_that_sends_and_leaves_is_heard_to_the_end(tmp_path: Path) -> None:
    heard = bytearray()
    ended = threading.Event()

    def listen(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(2**16):
                heard.extend(data)
        ended.set()

    said = os.urandom(MANY_BYTES)
    with door_before(listen, tmp_path) as door:
        with door.enter() as visitor:
            visitor.sendall(said)
        assert ended.wait(30) and bytes(heard) == said


def test_a_reader_that_does_not_read_slows_its_sender_down(tmp_path: Path) -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        with connection, suppress(OSError):
            while sent < 2**30:
                connection.sendall(bytes(2**20))
                sent += 2**20

    with door_before(flood, tmp_path) as door, door.enter() as visitor:
        until(lambda: _still(lambda: sent))
        assert 0 < sent < 2**28, "the rest waits at the sender, not in the door's memory"
        assert len(read(visitor, 2**26)) >= 2**26


def _still(count: Callable[[], int]) -> bool:
    before = count()
    threading.Event().wait(0.5)
    return before == count() > 0


@pytest.mark.parametrize("stranger", [b"", b"*1\r\n$4\r\nPING\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_who_does_not_speak_tls_reaches_no_server_and_disturbs_nobody(tmp_path: Path, stranger: bytes) -> None:
    with door_before(echo, tmp_path) as door, door.enter() as other:
        with socket.create_connection(("127.0.0.1", door.port), timeout=30) as plain:
            plain.sendall(stranger)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(1024):
                pass
        other.sendall(b"still here")
        assert read(other, 10) == b"still here"
        assert len(door.inside) == 1


def test_a_version_of_tls_before_1_3_is_refused(tmp_path: Path) -> None:
    with door_before(echo, tmp_path) as door, pytest.raises(ssl.SSLError):
        door.enter(ssl.TLSVersion.TLSv1_2)


def test_more_connections_pass_than_a_process_may_open_files_by_default(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"this system lets nobody have more than {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # what most systems begin with; the door inherits it
    try:
        with ExitStack() as visitors, door_before(echo, tmp_path) as door:
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
            all_of_them = [visitors.enter_context(door.enter()) for _ in range(600)]
            for number, visitor in enumerate(all_of_them):
                visitor.sendall(b"%4d" % number)
            assert [read(visitor, 4) for visitor in all_of_them] == [b"%4d" % number for number in range(600)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
