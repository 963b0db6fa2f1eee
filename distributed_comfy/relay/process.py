"""The forwarder as a process of its own: bytes of images pass through it, and the worker's threads shall not wait for them.

The order comes as one line of JSON on standard input (nothing secret is in the list of processes), the URLs or an error go back as one
on standard output, followed by lines of the log.  It ends when its standard input closes, so it never outlives who started it.
"""
from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.lasting_imports import end_without_collection
from distributed_comfy.relay.address import relay_address
from distributed_comfy.relay.dialing import Dialer, make_session
from distributed_comfy.relay.forwarder import Forwarder
from distributed_comfy.relay.order import Order


class LineHandler(logging.Handler):
    """Sends the log to whoever started the process."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line of JSON."""
        _say(level=record.levelno, text=record.getMessage())


def main() -> int:
    """Forward until standard input closes; exit status 1 where the relay could not be reached at all."""
    end_without_collection()
    order = Order(**json.loads(sys.stdin.buffer.readline() or b"{}"))
    logging.basicConfig(level=order.level, handlers=[LineHandler()])
    return asyncio.run(_forward(order))


async def _forward(order: Order) -> int:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    try:
        dialer = Dialer(relay_address(order.url), order.user, order.secret, order.ca)
        async with make_session() as session:
            forwarder = Forwarder(dialer, session, Path(order.folder) if order.folder else None, order.ports)
            if order.check:
                await forwarder.check()
            async with forwarder.open() as urls:
                _say(**{str(database): url for database, url in urls.items()})
                threading.Thread(target=_wait_for_end, args=(lambda: loop.call_soon_threadsafe(ended.set),), daemon=True).start()
                await ended.wait()
        if order.folder:  # whoever made it may have been killed
            shutil.rmtree(order.folder, ignore_errors=True)
    except DistributedComfyError as error:
        _say(error=error.to_wire())
        return 1
    return 0


def _wait_for_end(end: Callable[[], object]) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    end()


def _say(**fields: object) -> None:
    try:
        sys.stdout.write(json.dumps(fields, default=str) + "\n")
        sys.stdout.flush()
    except OSError:  # whoever listened is gone, and so is this process in a moment
        pass


if __name__ == "__main__":
    sys.exit(main())
