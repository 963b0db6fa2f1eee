"""Takes the orders of one host out of its queue ``host.<host>``, hands each to the agent once, and keeps the answer.

It is a Celery worker with one thread, without remote control: an agent hears nothing but these orders.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import redis
from celery._state import _set_task_join_will_block
from celery.worker import state as celery_state

from distributed_comfy.errors import DistributedComfyError, MessageVersionUnknown, OrderRefused
from distributed_comfy.host_messages import HostAnswer, HostOrder
from distributed_comfy.messages import load
from tasks.app import host_queue, make_app
from tasks.broker import HOST_ORDER
from tasks.cluster import Cluster
from tasks.reaper import AGENT, queue_key
from tasks.reconnect import Reconnection, say_once

log = logging.getLogger(__name__)

_JOIN_S = 10.0
_UNREAD_CHECKS = 2

Obey = Callable[[HostOrder], HostAnswer]
"""Carries out an order; raises what kept it from that."""


class HostConsumer:
    """Consumes in a thread of its own, from `start` to `stop`; one in a process at a time.

    Args:
        cluster: where the queue lies.
        host: whose orders.
        obey: called in another thread, for one order at a time.
    """

    def __init__(self, cluster: Cluster, host: str, obey: Obey) -> None:
        self._cluster = cluster
        self._host = host
        self._obey = obey
        self._controller: Any = None
        self._reconnection: Reconnection | None = None
        self._busy = threading.Event()
        self._unread = 0
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """False before `start`, and where Celery has given up."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin to consume; what was sent while nobody was here is too old by now, or refused as such."""
        cluster = self._cluster
        say_once()
        app = make_app(cluster.settings, cluster.redis_url, cluster.blob_url)
        app.conf.task_queues = (host_queue(self._host),)
        app.conf.worker_enable_remote_control = False
        # A pool thread looks for its task in the default app. Shared tasks are there too, but only the first of a name in a process.
        app.set_default()
        app.task(name=HOST_ORDER, shared=False, acks_late=True, ignore_result=True, throws=(DistributedComfyError,))(self.take)
        self._controller = app.WorkController(
            hostname=f"{AGENT}@{self._host}",
            pool_cls="threads",
            concurrency=1,
            loglevel=cluster.settings.log_level,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        # Celery takes the process for one of its workers now, and lets nobody in it wait for a result, as a master may that has an agent.
        _set_task_join_will_block(False)
        self._reconnection = Reconnection(self._controller)
        celery_state.should_stop = None
        self._thread = threading.Thread(target=self._controller.start, name="host-orders", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """To be called every few seconds: starts the consumer where it does not run, and lets it connect anew where it reads nothing."""
        if not self.alive:
            self.start()
            return
        try:
            waiting = self._cluster.client.llen(queue_key(self._cluster.settings, host_queue(self._host).name))
        except redis.RedisError:  # nobody can read now
            waiting = 0
        self._unread = self._unread + 1 if waiting and not self._busy.is_set() else 0
        if self._unread >= _UNREAD_CHECKS and self._reconnection is not None:
            log.warning("orders lie unread (%d); the agent connects anew", waiting)
            self._unread = 0
            self._reconnection.ask()

    def stop(self) -> None:
        """Consume no more."""
        if self._thread is not None:
            celery_state.should_stop = 0
            self._thread.join(_JOIN_S)

    def take(self, text: str) -> str:
        """Carry out one message; called by Celery.

        Returns:
            What became of it, for Celery's log.
        """
        try:
            order = load(HostOrder, text)
        except MessageVersionUnknown as error:
            log.warning("an order was refused: %s", error)
            return "refused"
        self._busy.set()
        try:
            return self._take(order)
        except (DistributedComfyError, redis.RedisError) as error:
            log.warning("order %s (%s): the answer could not be kept: %s", order.order_id, order.verb, error)
            return "unanswered"
        finally:
            self._busy.clear()

    def _take(self, order: HostOrder) -> str:
        hosts = self._cluster.hosts
        known = hosts.answered(self._host, order.order_id)
        if known is not None:
            hosts.answer(known)
            return "known"
        if order.valid_until_ms <= hosts.now_ms():
            log.warning("order %s (%s %s) came too late; it is not carried out", order.order_id, order.verb, order.worker)
            return "too late"
        try:
            answer = self._obey(order)
        except DistributedComfyError as error:
            log.info("order %s (%s %s) is refused: %s", order.order_id, order.verb, order.worker, error)
            answer = HostAnswer(order.order_id, self._host, error=error.to_wire())
        except Exception as error:  # whoever gave the order is to hear of it at once
            log.exception("order %s (%s %s) failed; please report it", order.order_id, order.verb, order.worker)
            fault = f"{type(error).__name__}: {error}"[:200]
            reason = f"its agent met a fault of its own ({fault}); look into its log, and please report it"
            refused = OrderRefused(what=f"workers {order.verb} {order.worker}".rstrip(), reason=reason)
            answer = HostAnswer(order.order_id, self._host, error=refused.to_wire())
        hosts.answer(answer)
        return "obeyed" if answer.error is None else "refused"
