"""One picture by two other ways, for comparison: 8 bits as PNG in JSON by HTTP, and bare bytes through a socket."""
from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.image_receiver import LENGTH_BYTES
from benchmarks.rig import BenchmarkFailed
from benchmarks.worker import ROOT


class OtherWays:
    """A receiving process and the connections to it."""

    def __init__(self, http_port: int, raw_port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", http_port)
        self._raw = socket.create_connection(("127.0.0.1", raw_port))
        self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send_png(self, image: Any) -> float:
        """Milliseconds until the receiver has decoded the picture.

        Args:
            image: [1, H, W, 3] float32; clipped to [0, 1] and rounded to 8 bits on the way.
        """
        began = time.perf_counter()
        pixels = Image.fromarray(np.clip(image[0] * 255, 0, 255).astype(np.uint8))
        png = io.BytesIO()
        pixels.save(png, format="PNG", compress_level=0)
        body = json.dumps({"image": base64.b64encode(png.getvalue()).decode("ascii"), "index": 0, "is_last": False})
        self._http.request("POST", "/", body.encode(), {"Content-Type": "application/json"})
        answer = json.loads(self._http.getresponse().read())
        if answer["shape"] != list(image.shape):
            raise BenchmarkFailed("the picture did not arrive by HTTP")
        return (time.perf_counter() - began) * 1000

    def send_raw(self, image: Any) -> float:
        """Milliseconds until the receiver has all bytes of a contiguous array."""
        began = time.perf_counter()
        content = image.data.cast("B")
        self._raw.sendall(len(content).to_bytes(LENGTH_BYTES, "big"))
        self._raw.sendall(content)
        if self._raw.recv(1) != b"\1":
            raise BenchmarkFailed("the picture did not arrive through the socket")
        return (time.perf_counter() - began) * 1000

    def __enter__(self) -> OtherWays:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()
        self._raw.close()


@contextmanager
def other_ways() -> Iterator[OtherWays]:
    """Start the receiver, and end it."""
    command = [sys.executable, "-m", "benchmarks.image_receiver"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as receiver:
        assert receiver.stdin and receiver.stdout
        ports = receiver.stdout.readline().split()
        if len(ports) != 2:
            raise BenchmarkFailed("the receiving process did not start")
        try:
            with OtherWays(*map(int, ports)) as ways:
                yield ways
        finally:
            receiver.stdin.close()
