"""Commands of ``distributed-comfy`` in processes that need not import them first: forks of one that has done nothing else.

Each is a process of its own with its own session, folder, environment and standard streams, and ends as any Python does; only the half a
second of imports is saved.  What imports do is for tests that start a new interpreter (`CommandLine.start`, or a PYTHONPATH of their own).

``python -m tests.warm_python ADDRESS`` is the process that is forked; it ends with its standard input.
"""
from __future__ import annotations

import functools
import gc
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
AVAILABLE = sys.platform == "linux"
_MOST_BYTES = 2**20
_START_TIMEOUT_S = 60.0


class WarmPython:
    """The process that is forked, from outside."""

    def __init__(self) -> None:
        self._address = f"\0distributed-comfy-test-{secrets.token_hex(8)}"
        command = [sys.executable, "-m", "tests.warm_python", self._address[1:]]
        self._process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise AssertionError("the process that commands are forked from did not start")

    def run(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float) -> tuple[int, str, str]:
        """Run one command to its end.

        Returns:
            Return code as of `subprocess`, standard output, standard error.
        Raises:
            subprocess.TimeoutExpired: it was killed after this time.
        """
        readers, writers = zip(os.pipe(), os.pipe(), strict=True)
        request = json.dumps({"arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}).encode()
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
            link.connect(self._address)
            socket.send_fds(link, [request], list(writers))
            for descriptor in writers:
                os.close(descriptor)
            pid = int(link.recv(64))
            try:
                out, err = _read_to_the_end(readers, time.monotonic() + timeout_s)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(arguments), timeout_s) from None
            finally:
                for descriptor in readers:
                    os.close(descriptor)
            return int(link.recv(64)), out, err


@functools.cache
def warm_python() -> WarmPython:
    """The one of this process of pytest."""
    return WarmPython()


def _read_to_the_end(readers: Sequence[int], deadline: float) -> list[str]:
    found = {reader: bytearray() for reader in readers}
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if read := os.read(key.fd, 65536):
                    found[key.fd] += read
                else:
                    selector.unregister(key.fd)
    return [text.decode() for text in found.values()]


# -- the process that is forked ------------------------------------------------------------------------------------------
def _serve(address: str) -> list[str]:
    """Fork for each request; comes back in the fork that is to be a command, with its arguments."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{address}")
    listener.listen(64)
    os.write(sys.stdout.fileno(), b"ready\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that wait
    while True:
        with selectors.DefaultSelector() as selector:
            for source in (listener, sys.stdin):
                selector.register(source, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select()]
        if sys.stdin in ready:
            sys.exit()
        link, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return _become_a_command(link)
        link.close()


def _become_a_command(link: socket.socket) -> list[str]:
    text, descriptors, _, _ = socket.recv_fds(link, _MOST_BYTES, 2)
    request: dict[str, Any] = json.loads(text)
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        link.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        link.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    link.close()
    os.setsid()
    for descriptor, stream in zip((os.open(os.devnull, os.O_RDONLY), *descriptors), range(3), strict=True):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    arguments: list[str] = request["arguments"]
    return arguments


def _import_commands() -> None:
    import click

    from distributed_comfy.cli.main import main as commands

    for name in ("run", "worker", "up", "hosts", "workers", "models", "jobs", "doctor", "invite", "redis"):
        commands.get_command(click.Context(commands), name)


if __name__ == "__main__":
    from distributed_comfy.__main__ import main

    _import_commands()
    gc.collect()
    gc.freeze()
    sys.argv[1:] = _serve(sys.argv[1])
    sys.argv[0] = str(PROJECT / "distributed_comfy" / "__main__.py")
    main()
