"""The master's side of two other ways to bring a picture home, in a process of its own: ``python -m benchmarks.image_receiver``.

Prints two ports of loopback.  The first takes HTTP: each POST has a JSON body with a PNG in base64, as packs for ComfyUI send pictures
between its servers; the answer comes when it is decoded to float32.  The second takes length and bytes of a float32 picture; one byte
comes back when all are here.  Ends when standard input closes.
"""
from __future__ import annotations

import base64
import io
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

LENGTH_BYTES = 8


class _Pictures(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Decode one picture."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Image.open(io.BytesIO(base64.b64decode(body["image"]))) as picture:
            pixels = np.asarray(picture).astype(np.float32) / np.float32(255)
        answer = json.dumps({"shape": list(pixels[None].shape)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        """Nothing."""


def _serve_raw(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        while head := connection.recv(LENGTH_BYTES, socket.MSG_WAITALL):
            picture = np.empty(int.from_bytes(head, "big"), np.uint8)
            left = picture.data
            while left:
                left = left[connection.recv_into(left) :]
            connection.sendall(b"\1")


def main() -> None:
    """Serve until standard input closes."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    http.daemon_threads = True
    raw = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    threading.Thread(target=_serve_raw, args=(raw,), daemon=True).start()
    print(http.server_port, raw.getsockname()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
