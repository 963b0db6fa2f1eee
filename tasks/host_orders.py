"""Sends an order to the agent of a host and brings its answer: one short Celery message through the queue ``host.<host>``."""
from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from kombu.exceptions import OperationalError

from distributed_comfy.errors import NoAgent, RedisUnreachable, from_wire
from distributed_comfy.host_messages import HostAnswer, HostOrder, HostVerb, sign_order
from distributed_comfy.messages import dump
from tasks.app import host_queue
from tasks.broker import HOST_ORDER
from tasks.cluster import Cluster


def order_for(verb: HostVerb, worker: str = "", **arguments: Any) -> HostOrder:
    """A new order with an id of its own."""
    return HostOrder(order_id=secrets.token_hex(12), verb=verb, worker=worker, arguments=arguments)


def send_order(cluster: Cluster, host: str, order: HostOrder, *, timeout_s: float = 10.0, secret: str = "") -> HostAnswer:
    """Send an order and wait for its answer.

    Args:
        cluster: to send it in.
        host: whose agent it is for.
        order: see `order_for`.
        timeout_s: how long to wait; the agent does not begin it after that.
        secret: in the agent's file, where this process may read that; else the order is signed with the host's seal
            (`distributed_comfy.host_messages.sign_order`).
    Raises:
        NoAgent: the host has no living agent; nothing was sent.
        AgentSilent: it lives and does not answer.
        DistributedComfyError: what the agent says that kept it from obeying.
    """
    record = cluster.hosts.host(host)
    if record is None:
        alive = ", ".join(record.host for record in cluster.hosts.hosts())
        raise NoAgent(host=host, alive=alive or "none")
    order = replace(order, valid_until_ms=cluster.hosts.now_ms() + round(timeout_s * 1000))
    post_order(cluster, host, sign_order(order, secret or cluster.hosts.seal(record)))
    answer = cluster.hosts.wait_answer(host, order.order_id, timeout_s)
    if answer.error is not None:
        raise from_wire(answer.error)
    return answer


def post_order(cluster: Cluster, host: str, order: HostOrder) -> None:
    """Put an order into a host's queue, without waiting for anything.

    Raises:
        RedisUnreachable: the broker does not answer.
    """
    try:
        cluster.app.send_task(HOST_ORDER, args=(dump(order),), queue=host_queue(host), ignore_result=True, retry=False)
    except OperationalError as error:
        raise RedisUnreachable(url="the broker", reason=str(error), setting="DC_REDIS_URL") from error
