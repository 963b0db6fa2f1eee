"""What may come out of a queue: checked before Celery sees it, so that no message can end a worker or make it do what is no task of ours.

Whoever may put a ticket into a queue can put anything there.  A message that is none of ours is dropped and told, once a minute for each
reason; it was never entered among those that wait for their end, so nothing is left of it.

Which messages a consumer has under way is known to its own process alone, see `OwnQoS`.
"""
from __future__ import annotations

import base64
import binascii
import json
import logging
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

import redis
from kombu.transport.redis import Channel, Transport
from kombu.transport.virtual import QoS

log = logging.getLogger(__name__)

RUN_ITEM = "tasks.run_item"
"""Name of the one task of a worker; its only argument is the worker it is for."""

HOST_ORDER = "tasks.host_order"
"""Name of the one task of agents; its only argument is a `HostOrder` as JSON."""

_TOLD_INTERVAL_S = 60.0
_SHOWN = 80
_LONGEST_BODY = 2**20
_TASK_QUEUES = ("gpu.", "host.")
_NOTHING_MORE = ("callbacks", "errbacks", "chain", "chord")
_NOT_LATER = ("eta", "expires", "group", "shadow", "replaced_task")


class NotOurs(Exception):
    """Why a message is dropped."""


class Told:
    """Says each reason once a minute, however many messages come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}

    def tell(self, queue: str, reason: str) -> None:
        """Write a line, if this reason has not had one lately."""
        now = self._clock()
        if now - self._told.get(reason, -_TOLD_INTERVAL_S) >= _TOLD_INTERVAL_S:
            self._told = {known: at for known, at in self._told.items() if now - at < _TOLD_INTERVAL_S}
            self._told[reason] = now
            log.warning("a message in %s is none of ours and is dropped: %s", queue, reason)


def check_message(message: Any, queue: str) -> None:
    """
    Args:
        message: what kombu read from a queue or channel.
        queue: its name.
    Raises:
        NotOurs: a part of it is missing, or is not what this project's own processes write.
    """
    if not isinstance(message, dict):
        raise NotOurs(f"it is {type(message).__name__}, not an object")
    content = _body(message, _properties(message))
    headers = message.get("headers")
    if not isinstance(headers, dict):
        raise NotOurs("it has no headers")
    if queue.startswith(_TASK_QUEUES):
        _check_task(headers, content, queue)
    elif not isinstance(content, (dict, list)):
        raise NotOurs("its body is no object")


def _properties(message: dict[str, Any]) -> dict[str, Any]:
    found = message.get("properties")
    if not isinstance(found, dict):
        raise NotOurs("it has no properties")
    info = found.get("delivery_info")
    if not isinstance(found.get("delivery_tag"), str) or not isinstance(info, dict):
        raise NotOurs("it lacks what it is acknowledged by")
    if not all(isinstance(info.get(name, ""), str) for name in ("exchange", "routing_key")):
        raise NotOurs("it lacks what it is acknowledged by")
    return found


def _body(message: dict[str, Any], properties: dict[str, Any]) -> Any:
    content_type, encoding = message.get("content-type"), message.get("content-encoding")
    if content_type != "application/json" or encoding != "utf-8":
        raise NotOurs(f"its content is {str(content_type)[:_SHOWN]!r} in {str(encoding)[:_SHOWN]!r}, not JSON")
    body = message.get("body")
    if not isinstance(body, str) or len(body) > _LONGEST_BODY or properties.get("body_encoding") != "base64":
        raise NotOurs("it has no body")
    try:
        return json.loads(base64.b64decode(body, validate=True).decode())
    except (binascii.Error, ValueError, RecursionError) as error:
        raise NotOurs("its body is no JSON") from error


def _check_task(headers: dict[str, Any], content: Any, queue: str) -> None:
    name = headers.get("task")
    if (queue.startswith("gpu.") and name != RUN_ITEM) or not isinstance(name, str):
        raise NotOurs(f"its task is {str(name)[:_SHOWN]!r}")
    if not isinstance(headers.get("id"), str) or any(headers.get(field) is not None for field in _NOT_LATER):
        raise NotOurs("its headers are not those of a task for now")
    if headers.get("timelimit") not in (None, [None, None], ["None", "None"]) or not isinstance(headers.get("retries", 0), int):
        raise NotOurs("its headers are not those of a task for now")
    if not (isinstance(content, list) and len(content) == 3 and [type(part) for part in content] == [list, dict, dict]):
        raise NotOurs("its arguments are none")
    if any(content[2].get(field) is not None for field in _NOTHING_MORE):
        raise NotOurs("it asks for more tasks")
    if queue.startswith("gpu.") and (content[0] != [queue.removeprefix("gpu.")] or content[1]):
        raise NotOurs("it is for another worker")


class OwnQoS(QoS):  # type: ignore[misc]
    """Keeps what a consumer has taken and not acknowledged in the memory of its process.

    Kombu's own for Redis writes it into a hash that all consumers share, and any of them, with all its rights, puts what it finds there
    into whatever queue is written beside it.  So whoever may write there could give orders to any host, and read those of others.  Nothing
    is lost without it: what a process had that was killed is decided by leases, and a lost ticket is replaced by the reaper.
    """

    def restore_unacked(self) -> list[Any]:
        """Put back what was not acknowledged, where the broker can be reached; kombu calls this when a channel ends."""
        self._flush()
        try:
            while self._delivered:
                self.channel.put_back(self._delivered.popitem()[1])
        except self.channel.connection_errors as error:
            log.debug("%d messages were not put back: %s", len(self._delivered) + 1, error)
            self._delivered.clear()
        return []

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """See kombu."""
        message = self._delivered.get(delivery_tag)
        if requeue and message is not None:
            self.channel.put_back(message, leftmost=True)
        super().reject(delivery_tag)


class CheckedChannel(Channel):  # type: ignore[misc]
    """Kombu's, which bears what is no JSON, and a queue that is no list, and reads no hash of messages under way."""

    QoS = OwnQoS

    def put_back(self, message: Any, *, leftmost: bool = False) -> None:
        """Put a message that this channel took into its queue again."""
        where = message.delivery_info
        with self.conn_or_acquire() as client:
            pipe = client.pipeline(transaction=False)
            self._do_restore_message(message._raw, where["exchange"], where["routing_key"], pipe, leftmost)
            pipe.execute()

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.put_back(message, leftmost=leftmost)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, RecursionError) as error:  # of the parser: it has been taken out, and is gone
            self.connection.told.tell("a queue", "it is no JSON")
            raise Empty from error
        except redis.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            self.connection.told.tell("a queue", "the queue itself is no list; it is made anew")
            self._remove_foreign()
            raise Empty from error

    def _remove_foreign(self) -> None:
        """Whatever somebody put in the place of a queue would keep all tickets from its worker, for ever."""
        with self.conn_or_acquire() as client:
            for queue in self.active_queues:
                for priority in self.priority_steps:
                    key = self._q_for_pri(queue, priority)
                    try:
                        client.llen(key)
                    except redis.ResponseError:
                        client.delete(key)


class CheckedTransport(Transport):  # type: ignore[misc]
    """Kombu's, which hands on only what `check_message` lets through."""

    Channel = CheckedChannel

    def __init__(self, *args: Any, **options: Any) -> None:
        self.told = Told()
        super().__init__(*args, **options)

    def _deliver(self, message: Any, queue: Any) -> None:
        try:
            check_message(message, str(queue))
        except NotOurs as error:
            self.told.tell(str(queue), str(error))
        else:
            super()._deliver(message, queue)
