"""Celery's result API over our items: a task id is an item id, a group id is a job id.

``AsyncResult("3f9a12bc77d0-4").get()`` gives an `ItemOutput`; ``.state`` and ``.ready()`` read a short record and move no blob.  The
records are written by the scripts that end an item, so waiting, groups and reconnecting are stock Celery.

Any Celery application can use it::

    app = Celery(backend="tasks.backend:FrameBackend+redis://HOST:6379/0")
    app.conf.result_backend_transport_options = {"blob_url": "redis://HOST:6380/0", "tensors": "torch"}

Without these options the blob server is that of ``DC_BLOB_URL``, else the same one, and tensors are numpy arrays.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend

from distributed_comfy.errors import DistributedComfyError, JobUnknown, RemoteError, SettingInvalid, from_wire
from distributed_comfy.messages import parse_item_id
from distributed_comfy.planning.requirements import matches
from distributed_comfy.settings import read_settings
from distributed_comfy.state.connection import connect
from distributed_comfy.state.jobs import JobTable
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from tasks.app import TENSORS, ResultOptions, make_app, result_options
from tasks.dispatch import send_tickets
from tasks.results import ResultShelf

_PREFIX_OPTION = "global_keyprefix"


class ItemMeta(dict[str, Any]):
    """Task meta whose ``result`` is fetched when it is first asked for; a copy of it, or its JSON, has the short record instead."""

    def __init__(self, meta: dict[str, Any], fetch: Callable[[], Any]) -> None:
        super().__init__(meta)
        self._fetch: Callable[[], Any] | None = fetch

    def __getitem__(self, key: str) -> Any:
        fetch = self._fetch
        if key == "result" and fetch is not None:
            self["result"] = fetch()
            self._fetch = None
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As ``dict``'s, through our own look-up."""
        try:
            return self[key]
        except KeyError:
            return default


class FrameBackend(RedisBackend):  # type: ignore[misc]
    """Stock Redis backend but for what an item made, which items a job has, and what is to be forgotten."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given = result_options(self.app) or _options_of(self.app)
        if not self.app.conf.result_backend_transport_options.get(_PREFIX_OPTION):  # stock Celery would then look for keys without one
            prefix = self.key_t(self._given.settings.key_prefix)
            for name in ("task_keyprefix", "group_keyprefix", "chord_keyprefix"):
                setattr(self, name, prefix + getattr(self, name))

    def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Celery calls this for every record it reads, and again for what it gave.

        Args:
            meta: task meta from JSON, or what an earlier call gave.
        Returns:
            Of a finished item an `ItemMeta`; of a failed one a meta with our own error, fields included; stock Celery's for the rest.
        """
        if isinstance(meta, ItemMeta):
            return meta
        result = meta.get("result")
        ours = parse_item_id(str(meta.get("task_id", "")))
        if meta["status"] == "SUCCESS" and ours and isinstance(result, dict):
            return ItemMeta(meta, functools.partial(self._shelf.fetch, *ours))
        if isinstance(result, dict) and "wire" in result:
            meta["result"] = _own_error(result["wire"]) or result
        stock: dict[str, Any] = super().meta_from_decoded(meta)
        return stock

    def forget(self, task_id: str) -> None:
        """Drop the record, and the result where it was kept for Celery; what a collector is to fetch stays."""
        ours = parse_item_id(task_id)
        if ours:
            try:
                self._shelf.forget(*ours)
            except JobUnknown:  # it ended so long ago that there is nothing left
                pass
        super().forget(task_id)

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        saved: dict[str, Any] | None = super()._restore_group(group_id)
        if saved is not None:
            return saved
        try:
            members = self._shelf.members(group_id)
        except JobUnknown:
            return None
        return {"result": self.app.GroupResult(group_id, [self.app.AsyncResult(member) for member in members])}

    @functools.cached_property
    def _shelf(self) -> ResultShelf:
        """Opened when the first result is fetched: whoever only watches states needs no blob server."""
        settings = self._given.settings
        tickets_app = self.app if result_options(self.app) else make_app(settings, str(self.url))
        state = self._create_client(**{**self.connparams, "decode_responses": True, "protocol": 2})
        scripts = Scripts(state, settings.key_prefix, functools.partial(send_tickets, tickets_app))
        jobs = JobTable(scripts, Matching(scripts, matches), settings)
        if self._given.blob_url:
            blob_client = connect(self._given.blob_url, "DC_BLOB_URL")
        else:
            blob_client = self._create_client(**{**self.connparams, "protocol": 2})
        blobs = RedisBlobStore(blob_client, prefix=settings.key_prefix, chunk_bytes=settings.chunk_bytes, ttl_s=settings.blob_ttl_s)
        return ResultShelf(jobs, blobs, self._given.tensors)


def _options_of(app: Celery) -> ResultOptions:
    """What an application that is not ours says in its configuration; the rest is read from the environment."""
    given = app.conf.result_backend_transport_options
    tensors = given.get("tensors", "numpy")
    if tensors not in TENSORS:
        raise SettingInvalid(name="result_backend_transport_options", reason=f"tensors must be one of {TENSORS}, not {tensors!r}")
    settings = read_settings(key_prefix=given.get(_PREFIX_OPTION) or None)
    return ResultOptions(settings, given.get("blob_url") or settings.blob_url, tensors)


def _own_error(wire: Any) -> DistributedComfyError | None:
    """The error of a failed item; None where another version wrote it, which stock Celery then makes a class for."""
    error = from_wire(wire)
    return None if isinstance(error, RemoteError) and wire.get("code") != RemoteError.code else error
