"""The Celery application: broker and result backend on the state Redis, JSON only, one queue per worker."""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, urlencode

from celery import Celery
from celery.app.amqp import AMQP
from kombu import Connection, Exchange, Queue

from distributed_comfy.settings import Settings
from distributed_comfy.state.connection import answer_timeout_s
from tasks.broker import RUN_ITEM, CheckedTransport

_CHECKED = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}

TensorKind = Literal["numpy", "torch"]
"""``numpy``: arrays, bfloat16 as the float32 of the same value; ``torch``: tensors on the CPU in their own element type."""
TENSORS = get_args(TensorKind)

_OPTIONS = "distributed_comfy_results"


@dataclass(frozen=True)
class ResultOptions:
    """What the result backend needs to know beside the URL of the state Redis."""

    settings: Settings
    blob_url: str = ""
    """Empty: results lie in the state Redis."""
    tensors: TensorKind = "numpy"


def result_options(app: Celery) -> ResultOptions | None:
    """The options of an application that `make_app` made; None for another one."""
    return getattr(app, _OPTIONS, None)


class BrokerConnection(Connection):  # type: ignore[misc]
    """Lets through what is ours (`tasks.broker`), and looks for a broker that is away once a second.

    Celery would wait two seconds longer each time, up to thirty, and a worker that is on the table again would let its tickets lie so long.
    """

    def get_transport_cls(self) -> type[CheckedTransport]:
        """See kombu."""
        return CheckedTransport

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """See kombu; raises what that does."""
        return super().ensure_connection(*args, **{"interval_start": 1, "interval_step": 0, "interval_max": 1, **options})


class Broker(AMQP):  # type: ignore[misc]
    """Celery's, with our connections."""

    Connection = BrokerConnection


def gpu_queue(worker: str) -> Queue:
    """The queue that only this worker consumes; the default exchange needs no binding."""
    name = f"gpu.{worker}"
    return Queue(name, Exchange(""), routing_key=name, no_declare=True)


def host_queue(host: str) -> Queue:
    """The queue that only the agent of this host consumes."""
    name = f"host.{host}"
    return Queue(name, Exchange(""), routing_key=name, no_declare=True)


def route_ticket(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> dict[str, Any] | None:
    """Celery router: a ticket goes to the queue of the worker it names."""
    return {"queue": gpu_queue(args[0])} if name == RUN_ITEM and args else None


def celery_url(redis_url: str) -> str:
    """A Redis URL in Celery's words.

    They differ for Unix sockets: ``unix:///s?db=1`` is ``redis+socket:///s?virtual_host=1`` there.  And what redis-py takes for granted
    with ``rediss://`` (a certificate that is checked, and for this very host) has to be said.
    """
    if redis_url.startswith("rediss://"):
        base, _, query = redis_url.partition("?")
        return f"{base}?{urlencode({**_CHECKED, **dict(parse_qsl(query))}, safe='/')}"
    if not redis_url.startswith("unix://"):
        return redis_url
    return re.sub(r"([?&])db=", r"\1virtual_host=", redis_url.replace("unix://", "redis+socket://", 1))


def make_app(settings: Settings, redis_url: str, blob_url: str = "", tensors: TensorKind = "numpy") -> Celery:
    """An application for this cluster; it connects when first used.

    Args:
        settings: key prefix and expiry.
        redis_url: the state Redis.
        blob_url: the blob Redis, from which results are fetched; empty: the same one.
        tensors: what ``AsyncResult(item_id).get()`` makes of tensors.
    """
    url = celery_url(redis_url)
    timeout_s = answer_timeout_s(settings.lease_ttl_s)
    app = Celery("distributed-comfy", set_as_current=False, broker=url, backend=url, amqp=Broker)
    # Not in the configuration, which workers show to whoever asks: Celery 5.6 does not hide the password of a URL with a class in front.
    app.backend_cls = f"tasks.backend:FrameBackend+{url.removeprefix('redis+')}"
    setattr(app, _OPTIONS, ResultOptions(settings, blob_url, tensors))
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_routes=(route_ticket,),
        task_default_queue="gpu.unassigned",
        task_acks_late=True,
        task_ignore_result=True,
        task_send_sent_event=False,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # True revokes and loses tasks while Redis is down
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,  # Flower switches them on by remote control
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": f"{settings.key_prefix}celery:",
            "socket_keepalive": True,
            # Else a connection that has silently died holds whoever sends a ticket, and Celery's loop, until the system gives it up.
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
        },
        result_backend_transport_options={"global_keyprefix": settings.key_prefix},
        result_expires=settings.job_ttl_s,
    )
    return app
