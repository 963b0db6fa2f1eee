"""One connection through the door: TLS to whoever came, plain to the server behind; two threads, one for each way.  Standard library only.

    visitor == TLS ==> records --> memory BIO --> SSL object --> plain bytes --> what may pass ==> server     the other way likewise

First it logs in (`state.door_login`).

Through memory, so that one system call moves many records of 16 KiB (a socket with TLS of its own takes two to read each), and neither way
ever waits for the other: what blocks is always a plain socket.  The interpreter's lock is free during all of that.
"""
from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from distributed_comfy.relay.requests import NotARequest
from distributed_comfy.state.door_login import LOGIN_TIMEOUT_S, Admission, BytesLike, JudgeOf, NotLetIn, Passes, Talk, log_in

log = logging.getLogger(__name__)

_PIECE_BYTES = 2**18
"""What is read at once.  Measured: smaller ones cost more calls, larger ones no longer fit the processor's caches."""
_RECORD_BYTES = 2**14
"""The most that TLS gives at once."""
_NO_ROOM = b"-ERR max number of clients reached\r\n"


@dataclass(frozen=True)
class Reception:
    """How one of the door's two ports treats whoever comes."""

    context: ssl.SSLContext
    target: int
    """Loopback port of the server behind."""
    judge_of: JudgeOf
    on_refused: Callable[[str, str, str], None]
    """Told user, command and reason."""
    place_of: Callable[[str], AbstractContextManager[None]]
    """A place among those who have come in, for a user; `NotLetIn` where there is none."""


def visit(outer: socket.socket, reception: Reception, come_in: Callable[[], None]) -> None:
    """Carry one connection until either side ends it; closes it.

    Args:
        outer: just accepted.
        reception: see there.
        come_in: called when it has logged in.
    """
    with ExitStack() as ending, suppress(OSError, NotLetIn):  # how a visitor leaves is nothing to tell; SSLError is one of them
        ending.callback(outer.close)
        _prepare(outer)
        tls = _Tls(reception.context)
        give_up = time.monotonic() + LOGIN_TIMEOUT_S
        _shake_hands(outer, tls, give_up)
        beginning = _Beginning(outer, tls, reception.target, give_up)
        ending.callback(beginning.close)
        admission = log_in(beginning.talk, reception.judge_of, reception.on_refused)
        try:
            ending.enter_context(reception.place_of(admission.user))
        except NotLetIn:
            beginning.talk.say(_NO_ROOM)
            raise
        come_in()
        assert beginning.inner is not None
        _carry(outer, tls, beginning.inner, admission)


def _carry(outer: socket.socket, tls: _Tls, inner: socket.socket, admission: Admission) -> None:
    for side in (outer, inner):
        side.settimeout(None)
    outer.sendall(tls.encrypt(admission.greeting))
    back = threading.Thread(target=_carry_out, args=(inner, tls, outer, admission.to_visitor), daemon=True)
    back.start()
    try:
        _carry_in(outer, tls, inner, admission)
    except NotARequest as error:
        log.warning("%s sends what is no request: %s", admission.user, error)
    _end(outer, inner)
    back.join()


class _Beginning:
    """The first words of a visitor, before `give_up`; connects to the server when there is something to ask it."""

    def __init__(self, outer: socket.socket, tls: _Tls, target: int, give_up: float) -> None:
        self.inner: socket.socket | None = None
        self.talk = Talk(self._hear, self._say, self._ask)
        self._outer = outer
        self._tls = tls
        self._target = target
        self._give_up = give_up
        self._records = memoryview(bytearray(_RECORD_BYTES))
        self._plain = memoryview(bytearray(2 * _RECORD_BYTES))
        self._size_bytes = 0

    def close(self) -> None:
        """End the connection to the server, where there is one."""
        if self.inner is not None:
            self.inner.close()

    def _hear(self) -> bytes:
        while True:  # what came with the end of the handshake lies in the TLS object already
            found, more = self._tls.decrypt(self._records[: self._size_bytes], self._plain)
            self._size_bytes = 0
            if found or not more:
                return bytes(self._plain[:found])
            self._outer.settimeout(_left_s(self._give_up))
            self._size_bytes = self._outer.recv_into(self._records)
            if not self._size_bytes:
                return b""

    def _say(self, words: BytesLike) -> None:
        self._outer.settimeout(_left_s(self._give_up))
        self._outer.sendall(self._tls.encrypt((words,)))

    def _ask(self, request: bytes) -> bytes:
        if self.inner is None:
            try:
                self.inner = socket.create_connection(("127.0.0.1", self._target), _left_s(self._give_up))
            except OSError as error:
                log.warning("the server behind does not answer: %s", error)
                raise
            _prepare(self.inner)
        self.inner.settimeout(_left_s(self._give_up))
        self.inner.sendall(request)
        reply = b""
        while b"\n" not in reply:
            part = self.inner.recv(_RECORD_BYTES)
            if not part:
                return b""
            reply += part
        return reply


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

    def encrypt(self, pieces: Iterable[BytesLike]) -> bytes:
        """Records with these bytes."""
        with self._turn:
            for piece in pieces:
                if piece:
                    self._tls.write(piece)
            return self._goes.read()

    def farewell(self) -> bytes:
        """The record by which TLS says that nothing is missing."""
        with self._turn:
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            return self._goes.read()


def _left_s(give_up: float) -> float:
    """
    Raises:
        TimeoutError: it is over; whoever sends a byte now and then gains nothing by it.
    """
    left_s = give_up - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else one whose host lost its power stays for good


def _shake_hands(outer: socket.socket, tls: _Tls, give_up: float) -> None:
    """
    Raises:
        OSError: it did not come to an end, or not in time.
    """
    room, done = memoryview(bytearray(_RECORD_BYTES)), False
    while not done:
        outer.settimeout(_left_s(give_up))
        size_bytes = outer.recv_into(room)
        if not size_bytes:
            raise ConnectionResetError("it left during the handshake")
        done, answer = tls.shake(room[:size_bytes])
        outer.sendall(answer)


def _carry_in(outer: socket.socket, tls: _Tls, inner: socket.socket, admission: Admission) -> None:
    """From the visitor to the server.

    Raises:
        NotARequest: see `Admission`.
    """
    records, plain = memoryview(bytearray(_PIECE_BYTES)), memoryview(bytearray(_PIECE_BYTES + _RECORD_BYTES))
    size_bytes, more = 0, True
    with suppress(OSError):
        _send(inner, admission.into_server(admission.early))
        while more:
            found, more = tls.decrypt(records[:size_bytes], plain)
            _send(inner, admission.into_server(plain[:found]))
            size_bytes = outer.recv_into(records) if more else 0
            more = more and size_bytes > 0


def _send(connection: socket.socket, pieces: Iterable[BytesLike]) -> None:
    for piece in pieces:
        connection.sendall(piece)


def _carry_out(inner: socket.socket, tls: _Tls, outer: socket.socket, passes: Passes) -> None:
    """From the server to the visitor."""
    plain = memoryview(bytearray(_PIECE_BYTES))
    with suppress(OSError, NotARequest):
        while size_bytes := inner.recv_into(plain):
            outer.sendall(tls.encrypt(passes(plain[:size_bytes])))
        outer.sendall(tls.farewell())
    _end(outer, inner)


def _end(*connections: socket.socket) -> None:
    """Both ways of both, so that the thread of the other way hears it; what was sent still arrives."""
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
