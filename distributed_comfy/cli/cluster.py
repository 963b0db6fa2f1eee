"""A connection for commands that only look or give an order."""
from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import redis

from distributed_comfy.cli.joined import say_where
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.orchestrator.servers import cluster_servers, refuse_where_joined
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.connection import in_our_words, setting_of
from tasks.cluster import Cluster, open_cluster
from tasks.reaper import reap_once


@contextmanager
def connected(output: Output, settings: Settings | None = None, *, orders: bool = False) -> Iterator[Cluster]:
    """The cluster of the environment's settings, or the one that this host has joined, for as long as the context lasts.

    Args:
        output: of the command.
        settings: None: from the environment.
        orders: the command changes jobs or tells workers and agents what to do, which is for the first host.
    Raises:
        ForFirstHost: it does, and this host has joined somebody's cluster.
        RedisForbids: this process' user may not do what was asked within the context.
        ClusterUnavailable: no Redis, or one that does not let this host in.
    """
    settings = settings or read_settings()
    set_up_logging(settings, output, audience="person")
    if orders:
        refuse_where_joined(settings, click.get_current_context().command_path)
    say_where(output, settings)
    with cluster_servers(settings) as (mine, servers):
        cluster = open_cluster(mine, servers.redis_url, servers.blob_url)
        try:
            reap_once(cluster, secrets.token_hex(8))  # whoever looks sees the truth, also where nobody else reaps
            yield cluster
        except redis.RedisError as error:
            told = in_our_words(error, servers.shown, setting_of(cluster.client))
            if told is None:
                raise
            raise told from error
        finally:
            cluster.close()


def redis_now_ms(cluster: Cluster) -> int:
    """The clock that jobs are stamped with."""
    answer: Any = cluster.client.time()
    seconds, microseconds = answer
    return int(seconds) * 1000 + int(microseconds) // 1000


def ago(now_ms: int, then_ms: int) -> str:
    """``42 s``, ``3 min``, ``5 h``, ``2 d``."""
    seconds = max(0, now_ms - then_ms) // 1000
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit} {name}"
    return f"{seconds // 86_400} d"


def out_or_default(out: Path | None, title: str) -> Path:
    """The folder that was named, else one that a run of this prompt and whoever attaches to its job agree on."""
    return out or Path("output") / (Path(title).stem or "prompt")
