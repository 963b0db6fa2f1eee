"""A worker's host that reaches nothing but an nginx, in a network namespace of its own; needs root and Debian's iproute2."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from distributed_comfy.settings import read_settings
from tasks.cluster import open_cluster
from tests.cluster_rig import Rig, WorkerProcess, seeds_of
from tests.command_line import PROJECT, until
from tests.conftest import missing_service
from tests.prompts import node, out
from tests.relay_rig import HOST, SECRET, USER, Proxy, make_user, nginx, served

pytestmark = [pytest.mark.redis, pytest.mark.timeout(150)]

HERE, THERE = "10.213.77.1", "10.213.77.2"
PROMPT = {
    "seed": node("DistributedSeed", seed=500),
    "image": node("RuleImage", seed=out("seed"), width=256, height=256, batch_size=1, channels=3),
    "collect": node("DistributedCollector", images=out("image"), load_balance=False),
}
JOIN = """
import os, subprocess, sys
from distributed_comfy.relay.client import relay_urls
with relay_urls(sys.argv[1], sys.argv[2], os.environ.pop("SECRET"), ca=os.environ.pop("CA")) as urls:
    environment = {**os.environ, "DC_REDIS_URL": urls.redis_url, "DC_BLOB_URL": urls.blob_url}
    sys.exit(subprocess.run([sys.executable, "-m", "tests.worker_process"], env=environment).returncode)
"""
CONNECTS = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))))"
LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def namespace() -> Iterator[str]:
    """A host with one cable, to this one."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None:
        missing_service("root and iproute2, to make a network namespace", "apt-get install iproute2, run as root")
    name, cable = f"dcr{os.getpid()}", f"dcr{os.getpid() % 100_000}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        missing_service("the right to make network namespaces", error.stderr.strip())
    try:
        ip("link", "add", f"{cable}a", "type", "veth", "peer", "name", f"{cable}b", "netns", name)
        ip("addr", "add", f"{HERE}/30", "dev", f"{cable}a")
        ip("link", "set", f"{cable}a", "up")
        ip("-n", name, "addr", "add", f"{THERE}/30", "dev", f"{cable}b")
        ip("-n", name, "link", "set", f"{cable}b", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "del", name)


@contextmanager
def worker_there(namespace: str, rig: Rig, proxy: Proxy) -> Iterator[WorkerProcess]:
    """A worker of the other host, started there with what its invite says."""
    name = f"{HOST}-cpu"
    folder = rig.folder / name
    folder.mkdir()
    environment = {
        **os.environ, "SECRET": SECRET, "CA": proxy.ca, "DC_KEY_PREFIX": rig.cluster.settings.key_prefix, "DC_ENGINE": "builtin",
        "DC_DEVICE": "cpu", "DC_WORKER_NAME": name, "DC_HOST": HOST, "DC_CACHE_DIR": str(folder / "cache"), "DC_THREADS": "1",
        "PYTHONPATH": str(PROJECT),
    }  # fmt: skip
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", JOIN, proxy.url, USER]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=PROJECT)
    rig.workers[name] = WorkerProcess(name, process, folder)
    try:
        until(lambda: rig.state(name) or process.poll() is not None, 60)
        assert process.poll() is None, rig.logs()
        yield rig.workers[name]
    finally:
        rig.stop(name)


def test_a_host_that_reaches_only_a_proxy_works_and_opens_nothing(namespace: str, cluster_servers: Any, tmp_path: Path) -> None:
    make_user(cluster_servers.state_url, cluster_servers.blob_url)
    settings = read_settings(key_prefix="relay-network:", cache_dir=tmp_path / "cache")
    environment = {"DC_REDIS_URL": cluster_servers.state_url, "DC_BLOB_URL": cluster_servers.blob_url, "DC_KEY_PREFIX": settings.key_prefix}
    cluster = open_cluster(settings, cluster_servers.state_url, cluster_servers.blob_url)
    try:
        rig = Rig("builtin", cluster, tmp_path, {})
        with (
            served(tmp_path, **environment) as relay,
            nginx(tmp_path / "nginx", relay, host=HERE) as proxy,
            worker_there(namespace, rig, proxy),
        ):
            ports = [urlsplit(url).port for url in (proxy.url, cluster_servers.state_url, cluster_servers.blob_url, relay.url)]
            assert [connects(namespace, port) for port in ports] == [True, False, False, False]
            assert seeds_of(rig.run(PROMPT, items=3).batch("collect")) == [500, 501, 502]
            opened = [row.split()[1] for table in ("tcp", "tcp6") for row in sockets(namespace, table) if row.split()[3] == LISTENING]
            assert opened == []
    finally:
        cluster.close()


def connects(namespace: str, port: int | None) -> bool:
    """Whether the other host gets a connection to a port of this one."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", CONNECTS, HERE, str(port)]
    return subprocess.run(command, check=False).returncode == 0


def sockets(namespace: str, table: str) -> list[str]:
    """The TCP sockets of the other host."""
    command = ["ip", "netns", "exec", namespace, "cat", f"/proc/net/{table}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[1:]
