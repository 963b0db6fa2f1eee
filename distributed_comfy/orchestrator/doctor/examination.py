"""Runs all looks, those that wait at the same time, and puts their findings in one order."""
from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import redis

from distributed_comfy.access.join import joined_token
from distributed_comfy.access.token import JoinToken
from distributed_comfy.errors import ClusterUnavailable, DistributedComfyError, RunInterrupted, SettingInvalid
from distributed_comfy.orchestrator.doctor.disk import check_folder
from distributed_comfy.orchestrator.doctor.engine import check_engine
from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok, warn
from distributed_comfy.orchestrator.doctor.joined import check_member, check_way, not_reached
from distributed_comfy.orchestrator.doctor.probe import PROBE_SETTINGS
from distributed_comfy.orchestrator.doctor.server import check_servers, look_at_servers
from distributed_comfy.orchestrator.doctor.workers import check_workers
from distributed_comfy.orchestrator.servers import Servers, cluster_servers, redis_servers
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
    token = joined_token(settings)
    findings = check_settings(settings)
    if token is not None:
        findings += _look_from_afar(settings, options, token, stop)
    else:
        findings += _look_at_own(settings, options, stop)
    if stop.is_set():
        raise RunInterrupted(when="before all was looked at")
    return findings


def _look_from_afar(settings: Settings, options: ExaminationOptions, token: JoinToken, stop: threading.Event) -> list[Finding]:
    """Of a host that has joined a cluster: what it needs to work for that."""
    found = check_way(token)
    folders = {"cache": (settings.cache_folder, "DC_CACHE_DIR"), "runtime": (settings.runtime_folder, "DC_RUNTIME_DIR")}
    disk = [check_folder(what, folder, setting) for what, (folder, setting) in folders.items()]
    try:
        with cluster_servers(settings) as (mine, servers):
            cluster = open_cluster(mine, servers.redis_url, servers.blob_url)
            try:
                found += [*check_member(cluster, token), *disk]
            finally:
                cluster.close()
            return [*found, check_engine(mine, servers, stop)] if options.engine else found
    except (ClusterUnavailable, SettingInvalid) as error:
        return [*found, not_reached(error), *disk, _not_looked_at()]


def _look_at_own(settings: Settings, options: ExaminationOptions, stop: threading.Event) -> list[Finding]:
    with ExitStack() as ending:
        try:
            servers = ending.enter_context(redis_servers(settings))
        except (ClusterUnavailable, SettingInvalid) as error:
            remedy = "do as it says, or set DC_REDIS_URL to a running server"
            return [fail("embedded Redis", str(error), remedy), *_look_round(settings, options, None, stop)]
        return _look_round(settings, options, servers, stop)


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
