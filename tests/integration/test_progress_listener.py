"""What workers publish about a job reaches whoever listens, in order, and it is known when all of it has."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.orchestrator.progress import ProgressListener, Said, Step, Waits
from distributed_comfy.settings import read_settings
from distributed_comfy.state.keys import Keys
from tasks.cluster import Cluster, open_cluster

JOB = "0123456789ab"


@pytest.fixture
def cluster(cluster_servers: Any, tmp_path: Path) -> Iterator[Cluster]:
    """Connections without any worker."""
    opened = open_cluster(read_settings(key_prefix="listener:", cache_dir=tmp_path), cluster_servers.state_url, cluster_servers.blob_url)
    yield opened
    opened.close()


def publish(cluster: Cluster, **message: Any) -> None:
    cluster.client.publish(Keys(cluster.settings.key_prefix)("progress", JOB), json.dumps({"index": 0, "worker": "w", **message}))


def test_all_that_was_published_before_is_told_when_the_listener_has_caught_up(cluster: Cluster) -> None:
    heard: list[Any] = []
    with ProgressListener(cluster, JOB, heard.append, heard.append) as listener:
        assert listener.catch_up(10), "it has subscribed"
        for step in range(200):
            publish(cluster, node="7", value=step, maximum=200)
            publish(cluster, claim="c", said="executing", facts=json.dumps({"node": str(step)}))
        assert listener.catch_up(10)
        assert heard[::2] == [Step(0, "w", "7", step, 200) for step in range(200)]
        assert heard[1::2] == [Said(0, "w", "c", "executing", {"node": str(step)}) for step in range(200)]


def test_a_result_that_waits_is_told_as_such_and_is_no_step(cluster: Cluster) -> None:
    steps, waits = list[Any](), list[Any]()
    with ProgressListener(cluster, JOB, steps.append, on_waits=waits.append) as listener:
        assert listener.catch_up(10), "it has subscribed"
        publish(cluster, waits="the blob Redis is full")
        publish(cluster, waits="")
        assert listener.catch_up(10)
    assert waits == [Waits(0, "w", "the blob Redis is full"), Waits(0, "w", "")] and not steps


@pytest.mark.parametrize("message", ["{}", "[]", "5", "x", '{"said": 1}', '{"index": "a", "worker": "w", "node": "7"}', "[" * 100_000])
def test_what_is_no_progress_does_not_end_the_listener(cluster: Cluster, message: str) -> None:
    heard: list[Any] = []
    with ProgressListener(cluster, JOB, heard.append) as listener:
        assert listener.catch_up(10), "it has subscribed"
        cluster.client.publish(Keys(cluster.settings.key_prefix)("progress", JOB), message)
        publish(cluster, node="7", value=1, maximum=2)
        assert listener.catch_up(10)
        assert heard == [Step(0, "w", "7", 1, 2)]


def test_a_listener_that_never_began_does_not_catch_up(cluster: Cluster) -> None:
    assert not ProgressListener(cluster, JOB, print).catch_up(0.3)
