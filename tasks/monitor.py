"""Flower, the web page of a Celery cluster, set up for ours: workers by host and device, items as tasks, nothing that could disturb them.

Flower only looks (``read_only``): items are steered by the table of truth, so that revoking a ticket or resizing a pool by Celery's own
orders would do nothing useful.  It asks the workers for their events, by remote control; until it does they send none.
"""
from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from distributed_comfy.errors import FlowerMissing, SettingInvalid
from distributed_comfy.settings import Settings
from distributed_comfy.state.connection import is_loopback
from tasks.app import make_app

log = logging.getLogger(__name__)

COLUMNS = "name,args,state,runtime,worker,received,exception"
"""Of the page that lists tasks; the name is the node class, args are job, item and seed."""


@dataclass(frozen=True)
class FlowerOptions:
    """Where the page is served, and to whom."""

    port: int = 5555
    """0: a free one."""
    address: str = "127.0.0.1"
    basic_auth: str = ""
    """``USER:PASS``; empty: whoever reaches the address, and no HTTP API."""


def check_flower_options(options: FlowerOptions) -> None:
    """
    Raises:
        SettingInvalid: the page would be open to other hosts without a password.
    """
    if not options.basic_auth and not is_loopback(options.address):
        reason = f"{options.address!r} can be reached from other hosts; set --basic-auth USER:PASS too"
        raise SettingInvalid(name="--host", reason=reason)


def serve_flower(settings: Settings, redis_url: str, options: FlowerOptions, started: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM; called in the main thread.

    Args:
        settings: key prefix.
        redis_url: the state Redis.
        options: checked by `check_flower_options`.
        started: told the page's address once it answers.
    Raises:
        FlowerMissing: it is not installed.
        SettingInvalid: the address or port cannot be used.
    """
    flower, loop = _new_flower(settings, redis_url, options)
    try:
        port = flower.start_http_server()
    except OSError as error:
        raise SettingInvalid(name="--port", reason=f"cannot listen on {options.address}:{options.port}: {error.strerror}") from error

    def stop(number: int, frame: FrameType | None) -> None:
        logging.getLogger("flower").setLevel("CRITICAL")  # the thread that listens ends with the process, and complains until then
        loop.add_callback_from_signal(flower.stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    host = f"[{options.address}]" if ":" in options.address else options.address
    started(f"http://{host}:{port}")
    loop.add_callback(flower.events.on_enable_events)  # it repeats this every few seconds, for workers that start later
    flower.start()
    flower.capp.close()


def _new_flower(settings: Settings, redis_url: str, options: FlowerOptions) -> tuple[Any, Any]:
    """Flower's application, and the loop it runs in.  Its options are one global object, so there is one Flower in a process."""
    try:
        from flower.app import Flower
        from flower.options import options as chosen
        from flower.urls import settings as web_settings
        from tornado.ioloop import IOLoop
    except ImportError as error:
        raise FlowerMissing(python=sys.executable, reason=str(error)) from error
    chosen.port, chosen.address = options.port, options.address
    chosen.basic_auth = [options.basic_auth] if options.basic_auth else []
    chosen.tasks_columns, chosen.read_only, chosen.enable_events = COLUMNS, True, True
    web_settings["cookie_secret"] = chosen.cookie_secret
    for chatty in ("tornado.access", "flower.inspector"):  # each request, and each look while there is no worker
        logging.getLogger(chatty).setLevel("ERROR")
    loop = IOLoop.current()
    return Flower(capp=make_app(settings, redis_url), options=chosen, io_loop=loop, **web_settings), loop
