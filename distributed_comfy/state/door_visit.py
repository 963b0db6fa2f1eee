"""One connection through the door: TLS to whoever came, plain to the server behind; two threads, one for each way.  Standard library only.

    visitor == TLS ==> records --> memory BIO --> SSL object --> plain bytes ==> server        the other way likewise

Through memory, so that one system call moves many records of 16 KiB (a socket with TLS of its own takes two to read each), and neither way
ever waits for the other: what blocks is always a plain socket.  The interpreter's lock is free during all of that.
"""
from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

log = logging.getLogger(__name__)

_HANDSHAKE_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 2**18
"""What is read at once.  Measured: smaller ones cost more calls, larger ones no longer fit the processor's caches."""
_RECORD_BYTES = 2**14
"""The most that TLS gives at once."""


def visit(outer: socket.socket, context: ssl.SSLContext, target: int) -> None:
    """Carry one connection until either side ends it; closes it.

    Args:
        outer: just accepted.
        context: of the door.
        target: loopback port of the server behind.
    """
    with ExitStack() as ending, suppress(OSError):  # how a visitor leaves is nothing to tell; SSLError is one of them
        ending.callback(outer.close)
        _prepare(outer)
        tls = _Tls(context)
        _shake_hands(outer, tls)
        try:
            inner = socket.create_connection(("127.0.0.1", target), _CONNECT_TIMEOUT_S)
        except OSError as error:
            log.warning("the server behind does not answer: %s", error)
            return
        ending.callback(inner.close)
        _prepare(inner)
        back = threading.Thread(target=_carry_out, args=(inner, tls, outer), daemon=True)
        back.start()
        _carry_in(outer, tls, inner)
        back.join()


class _Tls:
    """The TLS of one connection, apart from its socket; each method of it may be called while another thread is in another one."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: Any = context.wrap_bio(self._came, self._goes, server_side=True)  # typeshed takes what `read` gives for bytes
        self._turn = threading.Lock()
        """OpenSSL's objects are for one thread at a time."""

    def shake(self, records: memoryview) -> tuple[bool, bytes]:
        """Go on with the handshake: whether it is done, and what to send."""
        self._came.write(records)
        with suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            return True, self._goes.read()
        return False, self._goes.read()

    def decrypt(self, records: memoryview, room: memoryview) -> tuple[int, bool]:
        """Take records in.

        Args:
            records: may end anywhere.
            room: for what they hold; longer than they are by a record.
        Returns:
            How many bytes are in ``room``, and whether more can come.
        """
        size_bytes = 0
        with self._turn:
            self._came.write(records)
            # What TLS wants to say of itself (a new key) goes before the next bytes of the other way, as the protocol has it.
            with suppress(ssl.SSLWantReadError):
                while found := self._tls.read(_RECORD_BYTES, room[size_bytes:]):
                    size_bytes += found
                return size_bytes, False
        return size_bytes, True

    def encrypt(self, content: memoryview) -> bytes:
        """Records with these bytes."""
        with self._turn:
            self._tls.write(content)
            return self._goes.read()

    def farewell(self) -> bytes:
        """The record by which TLS says that nothing is missing."""
        with self._turn:
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            return self._goes.read()


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else one whose host lost its power stays for good


def _shake_hands(outer: socket.socket, tls: _Tls) -> None:
    """
    Raises:
        OSError: it did not come to an end, or not in time.
    """
    give_up = time.monotonic() + _HANDSHAKE_TIMEOUT_S
    room, done = memoryview(bytearray(_RECORD_BYTES)), False
    while not done:
        outer.settimeout(max(0.001, give_up - time.monotonic()))
        size_bytes = outer.recv_into(room)
        if not size_bytes:
            raise ConnectionResetError("it left during the handshake")
        done, answer = tls.shake(room[:size_bytes])
        outer.sendall(answer)
    outer.settimeout(None)


def _carry_in(outer: socket.socket, tls: _Tls, inner: socket.socket) -> None:
    """From the visitor to the server."""
    records, plain = memoryview(bytearray(_PIECE_BYTES)), memoryview(bytearray(_PIECE_BYTES + _RECORD_BYTES))
    size_bytes, more = 0, True  # the first requests may have come in one piece with the end of the handshake
    with suppress(OSError):
        while more:
            found, more = tls.decrypt(records[:size_bytes], plain)
            inner.sendall(plain[:found])
            size_bytes = outer.recv_into(records) if more else 0
            more = more and size_bytes > 0
    _end(outer, inner)


def _carry_out(inner: socket.socket, tls: _Tls, outer: socket.socket) -> None:
    """From the server to the visitor."""
    plain = memoryview(bytearray(_PIECE_BYTES))
    with suppress(OSError):
        while size_bytes := inner.recv_into(plain):
            outer.sendall(tls.encrypt(plain[:size_bytes]))
        outer.sendall(tls.farewell())
    _end(outer, inner)


def _end(*connections: socket.socket) -> None:
    """Both ways of both, so that the thread of the other way hears it; what was sent still arrives."""
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
