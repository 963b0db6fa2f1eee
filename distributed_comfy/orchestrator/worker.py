"""One worker of this host: settings in, engine options out, served until somebody ends it."""
from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from distributed_comfy.access.join import open_join
from distributed_comfy.access.token import read_token
from distributed_comfy.cpu_list import format_cpus, parse_cpus
from distributed_comfy.engine.locate import choose_device, choose_engine, find_comfyui, find_interpreter
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import SettingInvalid
from distributed_comfy.lasting_imports import lasting_imports
from distributed_comfy.orchestrator.arguments import split_arguments
from distributed_comfy.orchestrator.servers import Servers, cluster_servers
from distributed_comfy.pack_token import token_path
from distributed_comfy.settings import Settings, redact_url, slug
from distributed_comfy.state.connection import is_loopback

log = logging.getLogger(__name__)


def serve(settings: Settings, *, join: str = "", end_with_stdin: bool = False) -> int:
    """Be a worker on the configured (or embedded) Redis until a signal ends it.

    Args:
        settings: of this process.
        join: token of an invitation, whose cluster is served instead.
        end_with_stdin: end when standard input closes, so that a worker never outlives who started it.
    Returns:
        Exit status, see `tasks.consumer.run_worker`.
    Raises:
        SettingInvalid: no such ComfyUI, interpreter or device.
        TokenUnreadable: what was given to join with is no token.
        ClusterUnavailable: no Redis, or it does not let this host in.
    """
    with lasting_imports():
        from tasks.consumer import run_worker  # Celery's worker half, which the other commands need not load

    if settings.worker_name != slug(settings.worker_name):
        reason = f"a name has only a-z, 0-9, - and _ (it is {settings.worker_name!r}; {slug(settings.worker_name)!r} would do)"
        raise SettingInvalid(name="DC_WORKER_NAME", reason=reason)
    bind_to_cores(parse_cpus(settings.cores))
    with servers_to_serve(settings, join) as (mine, servers):
        options = engine_options(mine, servers)
        return run_worker(mine, servers.redis_url, servers.blob_url, options, end_with_stdin=end_with_stdin)


@contextmanager
def servers_to_serve(settings: Settings, join: str = "") -> Iterator[tuple[Settings, Servers]]:
    """The servers of a worker, and its settings as they are there; arguments and errors as of `serve`."""
    if join:
        with open_join(join, settings) as joined:
            yield joined.settings, Servers(joined.redis_url, joined.blob_url, embedded=False, invited_to=read_token(join).url)
    else:
        with cluster_servers(settings) as found:
            yield found


def bind_to_cores(cpus: tuple[int, ...]) -> None:
    """Keep this process, and all that it starts, on these CPUs; nothing for none.

    Raises:
        SettingInvalid: they are not there, or not for this process.
    """
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        log.warning("DC_CORES is not used: this system does not bind processes to CPUs")
        return
    try:
        # One by one: the system call is for a thread, and libraries may have started some while they were imported.
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cpus)
    except OSError as error:
        may = format_cpus(os.sched_getaffinity(0))
        raise SettingInvalid(name="DC_CORES", reason=f"must be among {may} (it is {format_cpus(cpus)}): {error.strerror}") from error


def engine_options(settings: Settings, servers: Servers) -> EngineOptions:
    """What the worker's engine process is started with; name and folder come with the worker's name.

    Raises:
        SettingInvalid: no such ComfyUI, interpreter or device.
    """
    engine = choose_engine(settings)
    tree = find_comfyui(settings) if engine == "comfyui" else None
    if engine == "attach":
        _tell_unused(settings)
    if engine == "comfyui" and tree is None:
        reason = "not set, and there is no ComfyUI in ~/comfy/ComfyUI; set it, or use --comfyui DIR or --engine builtin"
        raise SettingInvalid(name="COMFYUI_PATH", reason=reason)
    return EngineOptions(
        engine=engine,
        worker="",
        python=find_interpreter(settings, tree),
        folder=settings.cache_folder,
        log_file=settings.cache_folder / "engine.log",
        blob_url=servers.blob_url,
        key_prefix=settings.key_prefix,
        chunk_bytes=settings.chunk_bytes,
        shared_memory=settings.shared_memory,
        blob_limit_bytes=settings.blob_limit_bytes,
        blob_ttl_s=settings.blob_ttl_s,
        device=choose_device(settings, engine),
        tags=settings.tags,
        cache_folder=settings.cache_folder.absolute() / "inputs",
        comfyui_path=tree,
        comfyui_base_directory=settings.comfyui_base_directory.absolute() if settings.comfyui_base_directory else None,
        comfyui_args=_arguments(settings.comfyui_args),
        comfyui_url=settings.comfyui_url,
        comfyui_headers=settings.headers,
        comfyui_token=settings.comfyui_token,
        comfyui_token_file=token_path(settings) if is_loopback(urlsplit(settings.comfyui_url).hostname or "") else None,
        execution_log=settings.execution_log.absolute() if settings.execution_log else None,
        threads=settings.threads,
        preload=settings.started_by == "run",
        stall_timeout_s=settings.stall_timeout_s,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def _tell_unused(settings: Settings) -> None:
    """Name what was set for a ComfyUI that we start, where we drive one that runs."""
    for what, value in (("device", settings.device), ("ComfyUI arguments", settings.comfyui_args)):
        if value:
            log.warning("%s %s: not used, for the ComfyUI at %s has its own", what, value, redact_url(settings.comfyui_url))


def _arguments(text: str) -> tuple[str, ...]:
    try:
        return split_arguments(text)
    except ValueError as error:
        raise SettingInvalid(name="DC_COMFYUI_ARGS", reason=f"{error} (it is {text!r})") from error
