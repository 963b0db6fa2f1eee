"""A TCP proxy before Redis that swallows the reply to one chosen script call and cuts the connection: the script ran, nobody heard."""
from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class CuttingProxy:
    """Forwards bytes; after `cut_reply_to` the next request that holds the marker gets no reply but a closed connection."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cuts = 0
        """Connections cut so far."""
        self._marker = b""
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_reply_to(self, marker: str) -> None:
        """Cut once, at the next request that contains ``marker``."""
        with self._lock:
            self._marker = marker.encode()

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Redis answers one request after the other here, so a request's reply is what comes next."""
        server = socket.create_connection(self._target)
        server.settimeout(0.2)
        with client, server, contextlib.suppress(OSError):
            while request := client.recv(1 << 20):
                server.sendall(request)
                cut = self._is_marked(request)
                reply = _all_there_is(server)
                if cut:
                    return
                client.sendall(reply)

    def _is_marked(self, request: bytes) -> bool:
        with self._lock:
            marked = bool(self._marker) and self._marker in request
            if marked:
                self._marker = b""
                self.cuts += 1
            return marked


def _all_there_is(server: socket.socket) -> bytes:
    """The reply; empty where the request was not complete yet."""
    reply = b""
    with contextlib.suppress(TimeoutError):
        reply = server.recv(1 << 20)
        server.settimeout(0.005)
        while part := server.recv(1 << 20):
            reply += part
    server.settimeout(0.2)
    return reply


@contextlib.contextmanager
def proxy_before(host: str, port: int) -> Iterator[CuttingProxy]:
    """A running proxy."""
    proxy = CuttingProxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
