"""Runs all looks, those that wait at the same time, and puts their findings in one order."""
from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import redis

from distributed_comfy.errors import ClusterUnavailable, DistributedComfyError, RunInterrupted, SettingInvalid
from distributed_comfy.orchestrator.doctor.disk import check_folder
from distributed_comfy.orchestrator.doctor.engine import check_engine
from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok, warn
from distributed_comfy.orchestrator.doctor.probe import PROBE_SETTINGS
from distributed_comfy.orchestrator.doctor.server import check_servers, look_at_servers
from distributed_comfy.orchestrator.doctor.workers import check_workers
from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.settings import Settings, ignored_variables, variable
from tasks.cluster import open_cluster


@dataclass(frozen=True)
class ExaminationOptions:
    """What the user wants looked at."""

    out: Path
    """Folder for results."""
    engine: bool = True
    """Also start the engine of this host."""


def examine(settings: Settings, options: ExaminationOptions, stop: threading.Event) -> list[Finding]:
    """Look at everything but the packages, which must have been looked at before this module was imported.

    Args:
        settings: of this process.
        options: what to look at.
        stop: ends all waiting.
    Returns:
        Findings, in the order in which things depend on each other.
    Raises:
        RunInterrupted: ``stop`` was set.
    """
    findings = check_settings(settings)
    with ExitStack() as ending:
        try:
            servers = ending.enter_context(redis_servers(settings))
        except (ClusterUnavailable, SettingInvalid) as error:
            findings.append(fail("embedded Redis", str(error), "do as it says, or set DC_REDIS_URL to a running server"))
            servers = None
        findings += _look_round(settings, options, servers, stop)
    if stop.is_set():
        raise RunInterrupted(when="before all was looked at")
    return findings


def check_settings(settings: Settings) -> list[Finding]:
    """Which settings were given, by name, and in which file; and which variables look like settings and are none."""
    given = sorted(variable(name) for name in settings.model_fields_set - {"config"} if getattr(settings, name) not in (None, ""))
    shown = f"given: {', '.join(given) or 'none'}"
    found = [ok("settings", f"{shown}; file: {settings.config}" if settings.config else shown)]
    ignored = ignored_variables()
    return [*found, warn("settings", ignored, "correct the name, or unset it where it is meant for us")] if ignored else found


def _look_round(settings: Settings, options: ExaminationOptions, servers: Servers | None, stop: threading.Event) -> list[Finding]:
    disk = [
        check_folder("output", options.out, "--out"),
        check_folder("cache", settings.cache_folder, "DC_CACHE_DIR"),
        check_folder("runtime", settings.runtime_folder, "DC_RUNTIME_DIR"),
    ]
    if servers is None:
        return [*disk, _not_looked_at()]
    found = [ok("embedded Redis", f"DC_REDIS_URL is not set; its data lie in {servers.folder}")] if servers.embedded else []
    state, blob = look_at_servers(servers)
    found += [*check_servers(state, blob, settings, embedded=servers.embedded), *disk]
    if state.facts is None or blob.facts is None:
        return [*found, _not_looked_at()]
    with ThreadPoolExecutor(2, thread_name_prefix="doctor") as pool:
        engine = pool.submit(check_engine, settings, servers, stop) if options.engine else None
        workers = pool.submit(_look_at_workers, settings, servers, stop)
        found += [engine.result()] if engine else []
        return found + workers.result()


def _not_looked_at() -> Finding:
    return warn("engine, workers", "not looked at: both need the Redis servers", "mend the servers first, then run this again")


def _look_at_workers(settings: Settings, servers: Servers, stop: threading.Event) -> list[Finding]:
    try:
        cluster = open_cluster(settings.model_copy(update=PROBE_SETTINGS), servers.redis_url, servers.blob_url)
        try:
            return check_workers(cluster, stop)
        finally:
            cluster.close()
    except (DistributedComfyError, redis.RedisError) as error:
        return [fail("workers", f"the table of jobs cannot be used: {error}", "see what is said about the Redis above")]
