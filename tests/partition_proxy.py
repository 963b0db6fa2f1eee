"""A TCP proxy that is the network between one worker and Redis: it can stop, lose what it carries, refuse, or go silent for some.

It can also swallow the reply to one request: what was asked for has happened, and whoever asked does not hear it.

A stopped network closes nothing: who sends hears nothing, who connects is not answered.  After a short stop TCP sends again, so bytes
and connections live on (`go_on`); after a long one, or behind a router that forgot them, new ones work and old ones stay silent (`renew`).
"""
from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_AT_ONCE = 1 << 16
_BEGINNING, _REMEMBERED = 256, 1 << 14
_RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Line:
    """One connection of a client, and ours to the server on its behalf."""

    client: socket.socket
    server: socket.socket
    said: bytes = b""
    """The beginning of each of the client's messages, to know a connection by."""
    silent: bool = False
    doomed: bool = False
    """The next reply is lost, and the connection with it."""

    def __post_init__(self) -> None:
        self.ends = (self.client, self.server)


class PartitionProxy:
    """Forwards to one server; each change holds when the method that asked for it returns."""

    def __init__(self, host: str, port: int, address: str = "127.0.0.1") -> None:
        """Args:
        host: of the server.
        port: of the server.
        address: where to listen.
        """
        self._target = (host, port)
        self._address = address
        self._lines: set[_Line] = set()
        self._selector = selectors.DefaultSelector()
        self._orders: queue.Queue[tuple[Callable[[], Any], threading.Event]] = queue.Queue()
        self._bell, self._ear = socket.socketpair()
        self._watched: set[Any] = set()
        self._watch(self._ear, self._obey)
        self._listener: socket.socket | None = None
        self._stopped = self._closed = False
        self._word = b""
        self.swallowed = 0
        """Replies that were lost by `swallow`."""
        self._listen(0)
        assert self._listener is not None
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._forward, name="proxy", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Of the database behind it."""
        return f"redis://{self._address}:{self.port}/0"

    def stop(self) -> None:
        """Carry nothing, in neither direction, and answer nobody who connects."""
        self._order(self._stop)

    def go_on(self) -> None:
        """Carry again, what was held back first."""
        self._order(self._start)

    def renew(self) -> None:
        """Carry again, but only for those who connect from now on; all others hear nothing, not even an end."""
        self._order(lambda: self._silence(self._lines))
        self._order(self._start)

    def silence(self, word: bytes) -> int:
        """Stop carrying for the connections that have ever sent this word, for good; how many they are."""
        found: list[_Line] = []

        def silence() -> None:
            found.extend(line for line in self._lines if word in line.said and not line.silent)
            self._silence(found)

        self._order(silence)
        return len(found)

    def swallow(self, word: bytes) -> None:
        """Let the next request that holds this word pass, and reset its connection in place of the reply."""

        def look_for() -> None:
            self._word = word

        self._order(look_for)

    def reset(self) -> None:
        """Reset every connection; new ones work."""
        self._order(self._reset)

    def refuse(self) -> None:
        """Reset every connection and refuse new ones, until `go_on`."""
        self._order(self._refuse)

    def close(self) -> None:
        """End."""
        self._order(self._close)
        self._thread.join()
        self._bell.close()

    # -- in the proxy's thread ---------------------------------------------------------------------------------------------
    def _order(self, action: Callable[[], Any]) -> None:
        done = threading.Event()
        self._orders.put((action, done))
        self._bell.send(b".")
        assert done.wait(5)

    def _obey(self, ear: socket.socket) -> None:
        ear.recv(1)
        action, done = self._orders.get()
        action()
        done.set()

    def _forward(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.fileobj in self._watched:  # else what came before it has ended this one
                    key.data(key.fileobj)
        self._selector.close()
        self._ear.close()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server((self._address, port), backlog=1)  # while it stops, the kernel answers hardly anybody
        self._watch(self._listener, self._accept)

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        try:
            line = _Line(client, socket.create_connection(self._target))
        except OSError:  # the server is away
            client.close()
            return
        self._lines.add(line)
        self._watch_line(line)

    def _watch_line(self, line: _Line) -> None:
        for end in line.ends:
            self._watch(end, lambda source, line=line: self._carry(line, source))

    def _carry(self, line: _Line, source: socket.socket) -> None:
        try:
            data = source.recv(_AT_ONCE)
            if source is line.client:
                line.said = (line.said + data[:_BEGINNING])[-_REMEMBERED:]
                self._doom(line, data)
            elif line.doomed and data:
                self.swallowed += 1
                self._end(line, reset=True)
                return
            line.ends[source is line.client].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._end(line)

    def _doom(self, line: _Line, data: bytes) -> None:
        if self._word and self._word in data:
            self._word, line.doomed = b"", True

    def _end(self, line: _Line, *, reset: bool = False) -> None:
        self._lines.discard(line)
        for end in line.ends:
            self._ignore(end)
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()

    def _stop(self) -> None:
        self._stopped = True
        for end in [self._listener, *(end for line in self._lines for end in line.ends)]:
            self._ignore(end)

    def _start(self) -> None:
        self._stopped = False
        if self._listener is None:
            self._listen(self.port)
        self._watch(self._listener, self._accept)
        for line in self._lines:
            if not line.silent:
                self._watch_line(line)

    def _silence(self, lines: Any) -> None:
        for line in lines:
            line.silent = True
            for end in line.ends:
                self._ignore(end)

    def _refuse(self) -> None:
        self._ignore(self._listener)
        if self._listener is not None:
            self._listener.close()
        self._listener = None
        self._reset()

    def _reset(self) -> None:
        for line in list(self._lines):
            self._end(line, reset=True)

    def _close(self) -> None:
        self._refuse()
        self._closed = True

    def _watch(self, end: Any, react: Callable[[socket.socket], None]) -> None:
        if end not in self._watched:
            self._watched.add(end)
            self._selector.register(end, selectors.EVENT_READ, react)

    def _ignore(self, end: Any) -> None:
        if end in self._watched:
            self._watched.remove(end)
            self._selector.unregister(end)


@contextlib.contextmanager
def network_to(url: str) -> Iterator[PartitionProxy]:
    """A proxy before the server of a ``redis://host:port/0``."""
    host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
    proxy = PartitionProxy(host, int(port))
    try:
        yield proxy
    finally:
        proxy.close()
