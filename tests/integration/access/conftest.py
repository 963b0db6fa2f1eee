"""Servers with users, and workers of two invited hosts on them."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from distributed_comfy.settings import read_settings
from tasks.cluster import open_cluster
from tests.access_servers import PREFIX, Servers, servers_with_users
from tests.cluster_rig import Rig

WORKER = "dc-host-pc2"
OTHER = "dc-host-pc3"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A pair of servers of one test file."""
    with servers_with_users(tmp_path_factory.mktemp("servers")) as both:
        both.put(WORKER, "worker", "pc2")
        both.put(OTHER, "worker", "pc3")
        yield both


@pytest.fixture(scope="module")
def rig(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A master with all rights, and no worker yet."""
    folder = tmp_path_factory.mktemp("rig")
    settings = read_settings(key_prefix=PREFIX, cache_dir=folder / "cache")
    cluster = open_cluster(settings, servers.state.url, servers.blobs.url)
    rig = Rig("builtin", cluster, folder, {"DC_THREADS": "1"})
    try:
        yield rig
    finally:
        rig.close()
        cluster.close()
