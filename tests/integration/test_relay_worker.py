"""Real workers that reach the cluster through the relay alone: the same bytes, and nothing lost when relay, link or worker goes."""
from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy
import pytest
import redis

from distributed_comfy.errors import RelayAbsent, RelayUnreachable, RelayWithoutWebSockets
from distributed_comfy.messages import Prompt
from distributed_comfy.relay.client import RelayUrls, relay_urls
from distributed_comfy.settings import read_settings
from tasks.cluster import open_cluster
from tests.cluster_rig import Rig, WorkerProcess, seeds_of
from tests.command_line import until
from tests.partition_proxy import network_to
from tests.prompts import node, out
from tests.relay_rig import HOST, SECRET, USER, ServeProcess, basic, make_user, nginx, refused, served, upgrade

pytestmark = [pytest.mark.redis, pytest.mark.timeout(120)]

PREFIX = "relay-rig:"


def collected(seed: int = 7000, side: int = 16, milliseconds: int = 0, bad_seed: int = -1) -> Prompt:
    """Pictures of a seed, slowly, and one that fails."""
    return {
        "seed": node("DistributedSeed", seed=seed),
        "image": node("RuleImage", seed=out("seed"), width=side, height=side, batch_size=1, channels=3),
        "fail": node("RuleFail", images=out("image"), seed=out("seed"), bad_seed=max(bad_seed, 0)),
        "slow": node("RuleSlow", images=out("fail"), milliseconds=milliseconds),
        "collect": node("DistributedCollector", images=out("slow"), load_balance=False),
    }


@pytest.fixture(scope="module")
def rig(cluster_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """No worker yet; each test brings those it needs."""
    folder = tmp_path_factory.mktemp("relay-rig")
    settings = read_settings(key_prefix=PREFIX, cache_dir=folder / "cache")
    cluster = open_cluster(settings, cluster_servers.state_url, cluster_servers.blob_url)
    found = Rig("builtin", cluster, folder, {"DC_THREADS": "1"})
    try:
        yield found
    finally:
        found.close()
        cluster.close()


@pytest.fixture(scope="module")
def environment(cluster_servers: Any) -> dict[str, str]:
    make_user(cluster_servers.state_url, cluster_servers.blob_url)
    return {"DC_REDIS_URL": cluster_servers.state_url, "DC_BLOB_URL": cluster_servers.blob_url, "DC_KEY_PREFIX": PREFIX}


@pytest.fixture
def relay(environment: dict[str, str], tmp_path: Path) -> Iterator[ServeProcess]:
    with served(tmp_path, **environment) as process:
        yield process


@contextmanager
def joined(rig: Rig, url: str, name: str, ca: str = "", **settings: object) -> Iterator[WorkerProcess]:
    """A worker that knows nothing but the relay's address."""
    with relay_urls(url, USER, SECRET, ca=ca) as urls:
        yield from started(rig, urls, f"{HOST}-{name}", settings)


def started(rig: Rig, urls: RelayUrls, name: str, settings: dict[str, object]) -> Iterator[WorkerProcess]:
    shutil.rmtree(rig.folder / name, ignore_errors=True)
    try:
        yield rig.start(name, redis_url=urls.redis_url, blob_url=urls.blob_url, host=HOST, **settings)[0]
    finally:
        if name in rig.workers:
            rig.stop(name)


def test_a_worker_behind_the_relay_makes_the_same_bytes(rig: Rig, relay: ServeProcess) -> None:
    with joined(rig, relay.join_url, "a"):
        through = rig.run(collected(side=640), items=3)
        assert refused(relay) == []
    rig.start("direct")
    beside = rig.run(collected(side=640), items=3)
    rig.stop("direct")
    assert seeds_of(through.batch("collect")) == [7000, 7001, 7002]
    assert numpy.array_equal(through.batch("collect").view(numpy.uint32), beside.batch("collect").view(numpy.uint32))
    assert SECRET not in relay.log()


def test_a_workers_whole_life_needs_nothing_that_is_refused(rig: Rig, relay: ServeProcess) -> None:
    """Start, jobs that end well, fail and are cancelled, remote control, events for a monitor, a kill, an end in mid-item."""
    app = rig.cluster.app
    with joined(rig, relay.join_url, "b") as worker, joined(rig, relay.join_url, "c", slots=2) as other:
        rig.run(collected(), items=6)
        rig.cluster.app.control.enable_events()
        answered = {name.partition("@")[0].partition(".")[0] for answer in app.control.ping(timeout=5) for name in answer}
        assert answered >= {worker.name, other.name}
        assert app.control.inspect(timeout=5).stats()
        job = rig.begin(collected(bad_seed=7002), items=4)
        job.until(lambda: job.report.start)
        job.wait()
        assert job.report.delivery is not None and job.report.delivery.error is not None
        job = rig.begin(collected(milliseconds=10_000), items=2)
        job.until(lambda: rig.executions(job.queued()))
        rig.cluster.jobs.cancel(job.report.job_id, "enough")
        job.wait()
        rig.wait_idle()
        job = rig.begin(collected(milliseconds=3000), items=4)
        job.until(lambda: len(rig.executions(job.queued())) >= 2)
        other.kill()
        rig.workers.pop(other.name)
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: rig.state(other.name) is None)
        job.stop.set()
        job.wait()
        until(lambda: worker.process.poll() is not None, 60)
        rig.workers.pop(worker.name)
    assert refused(relay) == []


def test_the_relay_may_be_restarted_under_a_running_job(rig: Rig, environment: dict[str, str], tmp_path: Path) -> None:
    first = ServeProcess(tmp_path, **environment)
    try:
        with joined(rig, first.join_url, "d"):
            job = rig.begin(collected(milliseconds=400), items=8)
            job.until(lambda: len(job.report.arrived) >= 2)
            assert first.stop() in (0, 130)
            time.sleep(1.0)
            with served(tmp_path, port=first.port, **environment) as second:
                report = job.wait()
                assert seeds_of(report.batch("collect")) == list(range(7000, 7008))
                assert refused(second) == []
    finally:
        first.process.kill()


def test_a_cut_in_mid_command_loses_no_item(rig: Rig, relay: ServeProcess) -> None:
    with network_to(relay.url.replace("http", "redis")) as network, joined(rig, f"ws://127.0.0.1:{network.port}", "e"):
        job = rig.begin(collected(side=512, milliseconds=150), items=10)
        for count in (2, 5):
            job.until(lambda count=count: len(job.report.arrived) >= count)
            network.refuse()
            time.sleep(0.3)
            network.go_on()
        report = job.wait()
        assert seeds_of(report.batch("collect")) == list(range(7000, 7010))
        assert refused(relay) == []


def test_a_link_that_goes_silent_is_given_up(rig: Rig, relay: ServeProcess) -> None:
    with network_to(relay.url.replace("http", "redis")) as network, joined(rig, f"ws://127.0.0.1:{network.port}", "f"):
        job = rig.begin(collected(milliseconds=200), items=8)
        job.until(lambda: len(job.report.arrived) >= 2)
        network.stop()
        time.sleep(3.0)
        network.renew()
        assert seeds_of(job.wait().batch("collect")) == list(range(7000, 7008))


class SlowLink:
    """A port that leads to another one over a link that carries so many bytes a second each way, each with a delay."""

    def __init__(self, port: int, bytes_per_s: int, delay_s: float) -> None:
        self._target, self._bytes_per_s, self._delay_s = port, bytes_per_s, delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> int:
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(16_384):
                time.sleep(self._delay_s + len(data) / self._bytes_per_s)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_slow_link_is_slow_and_works(rig: Rig, relay: ServeProcess) -> None:
    with SlowLink(relay.port, 2_000_000, 0.02) as port, joined(rig, f"ws://127.0.0.1:{port}", "g"):
        report = rig.run(collected(side=512), items=3)
        assert seeds_of(report.batch("collect")) == [7000, 7001, 7002]


def test_a_worker_behind_nginx_as_documented_runs_a_job(rig: Rig, relay: ServeProcess, tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", relay) as proxy:
        with joined(rig, proxy.url, "h", ca=proxy.ca):
            report = rig.run(collected(side=640), items=3)
            assert seeds_of(report.batch("collect")) == [7000, 7001, 7002]
        assert refused(relay) == []
        assert upgrade(relay.port, Authorization=basic(), X_Forwarded_Proto="http").status == 403


def test_a_path_of_its_own_behind_nginx_is_part_of_the_address(relay: ServeProcess, tmp_path: Path) -> None:
    def under_a_path(block: str) -> str:
        elsewhere = "location / { return 404; } location /cluster/"
        return block.replace("location /distributed/v2/", elsewhere).replace(f":{relay.port};", f":{relay.port}/;")

    with nginx(tmp_path / "nginx", relay, under_a_path) as proxy:
        with relay_urls(f"{proxy.url}/cluster/", USER, SECRET, ca=proxy.ca) as urls, redis.Redis.from_url(urls.redis_url) as client:
            assert client.ping()
        with pytest.raises(RelayAbsent, match="404"), relay_urls(proxy.url, USER, SECRET, ca=proxy.ca):
            pass


def test_nginx_without_the_upgrade_is_told_with_its_remedy(relay: ServeProcess, tmp_path: Path) -> None:
    def by_default(block: str) -> str:
        return "\n".join(line for line in block.splitlines() if not re.search(r"proxy_http_version|\bUpgrade|\"upgrade\"", line))

    with nginx(tmp_path / "nginx", relay, by_default) as proxy:
        told = pytest.raises(RelayWithoutWebSockets, match="Upgrade")
        with told, relay_urls(proxy.url, USER, SECRET, ca=proxy.ca):
            pass


def test_nginx_alone_is_told_from_a_relay(relay: ServeProcess, tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", relay, lambda block: block.replace(f":{relay.port};", ":1;")) as proxy:
        told = pytest.raises(RelayUnreachable, match="502")
        with told, relay_urls(proxy.url, USER, SECRET, ca=proxy.ca):
            pass


def test_the_forwarder_ends_with_whoever_started_it(relay: ServeProcess) -> None:
    script = (
        "import sys, time\nfrom distributed_comfy.relay.client import relay_urls\n"
        f"with relay_urls({relay.join_url!r}, {USER!r}, {SECRET!r}) as urls:\n    print(urls.redis_url, flush=True)\n    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    with redis.Redis.from_url(url) as client:
        assert client.ping()
    owner.kill()
    owner.wait()

    def gone() -> bool:
        try:
            with redis.Redis.from_url(url, retry=None) as client:
                client.ping()
            return False
        except redis.ConnectionError:
            return True

    assert until(gone)
    assert until(lambda: not Path(url.partition("@")[2].partition("?")[0]).parent.exists())
