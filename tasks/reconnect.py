"""Makes a Celery consumer connect anew: its loop does not always notice that a connection is gone, and then reads nothing any more.

And lets it tell of its tries with fewer words.
"""
from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Any

log = logging.getLogger(__name__)

_CANNOT_CONNECT = "consumer: Cannot connect to"
_SAID_AGAIN_S = 300.0


class Repeats(logging.Filter):
    """Lets Celery say that it cannot connect, and why, but not once more for each of its tries, of which there is one a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: object = None
        self._at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """False for what was said already, within some minutes."""
        if not str(record.msg).startswith(_CANNOT_CONNECT) or not isinstance(record.args, tuple):
            return True
        where_and_why, now = tuple(str(part) for part in record.args[:2]), time.monotonic()
        if where_and_why == self._said and now - self._at < _SAID_AGAIN_S:
            return False
        self._said, self._at = where_and_why, now
        return True


_REPEATS = Repeats()


def say_once() -> None:
    """Use `Repeats` on what Celery's consumers of this process say; twice is no error."""
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_REPEATS)


class Reconnection:
    """Lets the loop of a Celery worker fail as if the connection were lost; one such order at a time.

    Seen with Celery 5.7: an acknowledgement that fails because the connection has just ended takes the error, and the loop waits for ever.

    Args:
        controller: Celery's ``WorkController``.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._failing = threading.Event()

    def ask(self) -> None:
        """From any thread; nothing where there is no loop, or it was just asked.

        Nor while the consumer connects, which takes half a minute through a slow network: the loop would fail in its first turn.
        """
        consumer = getattr(self._controller, "consumer", None)
        hub = getattr(consumer, "hub", None)
        if hub is None or self._failing.is_set() or not _is_in_loop(consumer):
            return
        log.warning("tickets lie unread; the consumer connects anew")
        self._failing.set()

        def fail() -> None:
            self._failing.clear()
            for descriptor in list(hub.readers):
                _shut_down(descriptor)
            raise ConnectionError("what lies in the queue is not read")

        hub.call_soon(fail)


def _is_in_loop(consumer: Any) -> bool:
    """Whether the last of Celery's steps has begun, which is the loop."""
    return bool(consumer.blueprint.started == len(consumer.steps))


def _shut_down(descriptor: int) -> None:
    """End a connection where it stands: Celery reads once more from one that it gives up, and would wait for a silent one."""
    try:
        connection = socket.socket(fileno=descriptor)
        try:
            connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()  # whoever opened it closes it
    except OSError as error:
        log.debug("connection %d has ended already: %s", descriptor, error)
