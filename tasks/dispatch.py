"""Sends tickets: one short Celery message that calls a worker to the table."""
from __future__ import annotations

from collections.abc import Sequence

from celery import Celery
from kombu.exceptions import OperationalError

from distributed_comfy.errors import RedisUnreachable
from tasks.broker import RUN_ITEM


def send_tickets(app: Celery, workers: Sequence[str]) -> None:
    """One ticket to each named worker; the table remembers it, so a lost one is replaced by the reaper.

    Raises:
        RedisUnreachable: the broker does not answer.
    """
    try:
        for worker in workers:
            app.send_task(RUN_ITEM, args=(worker,), ignore_result=True, retry=False)
    except OperationalError as error:
        raise RedisUnreachable(url="the broker", reason=str(error), setting="DC_REDIS_URL") from error
