"""Servers with users and workers of two invited hosts on them; and a host that invites to its embedded servers."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.embedded import EmbeddedRedis, start_embedded
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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the host that joins keeps things."""
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def settings(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of the host that invites, whose user has another home; no Redis is configured."""
    with monkeypatch.context() as there:
        there.setenv("HOME", str(tmp_path / "master"))
        found = read_settings(runtime_dir=tmp_path / "runtime", cache_dir=tmp_path / "cache", host="master")
        assert found.config_folder.is_relative_to(tmp_path / "master"), "it is kept from here on"
    return found


@pytest.fixture
def owner(settings: Settings) -> Iterator[EmbeddedRedis]:
    """What keeps the embedded servers, as `up` does."""
    with start_embedded(settings.runtime_folder, private=False) as embedded:
        yield embedded
