"""A cluster on the session's real Redis; whatever a test does, the table must agree with itself at the end."""
from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.state_audit import Audit
from tests.state_cluster import Cluster, open_cluster

OpenCluster = Callable[..., Cluster]


@pytest.fixture
def new_cluster(redis_url: str) -> Iterator[OpenCluster]:
    """``new_cluster(**settings)``: call it once per test."""
    opened: list[Cluster] = []

    def open_one(**settings: object) -> Cluster:
        opened.append(open_cluster(redis_url, **settings))
        return opened[-1]

    yield open_one
    for cluster in opened:
        Audit(cluster).check()
        cluster.client.close()


@pytest.fixture
def cluster(new_cluster: OpenCluster) -> Cluster:
    """A cluster with the settings as they come."""
    return new_cluster()
