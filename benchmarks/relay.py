"""What it costs to reach Redis from afar: through the door or the relay, beside a direct connection; pictures and small requests."""
from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from benchmarks.image_writer import SIDE
from benchmarks.nodes import pattern
from benchmarks.rig import BenchmarkFailed
from benchmarks.rows import Row, Section, median, percentile, spread
from benchmarks.worker import ROOT
from distributed_comfy.messages import TensorRef
from distributed_comfy.relay.client import relay_urls
from distributed_comfy.state.connection import connect
from distributed_comfy.state.door import DoorPlan, DoorProcess, door_file, plan_text
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from distributed_comfy.transport.values import load_value, store_value

USER = "dc-host-bench"
START_TIMEOUT_S = 30.0
TARGET_MS = 20.0

HOW = f"""\
One Redis on loopback, reached in five ways: directly; directly with its own TLS; with TLS through the door, as invited hosts of the same
network reach the embedded one; through the worker's forwarder and `serve`, two processes more on the way; the same with TLS between those
two. *Put* and *get*: a picture of {SIDE} x {SIDE} x 3 float32 (12.6 MB) is stored over that way, as a worker stores it, and fetched over
it, as a worker that is fed does. *To the collector*: the same put, then a get directly, as a collector beside Redis does it. What is
fetched is compared bit for bit, and unlinked. *Processor time* is that of all processes on the way, Redis among them but not the client,
for one put and both gets; it depends less than the others on what else the machine does. *Request*: PING and its answer, one after the
other. The ways take turns, so what else the machine does slows all of them alike."""

LIMITS = """\
A picture is stored a few pieces of 1 MiB at a time. Each process on the way copies it in and out of the kernel; TLS encrypts at one end
what it decrypts at the other, in records of 16 KiB. On loopback all processes share this machine's cores; between hosts the network is
usually slower than any of these rows, and the processes work at the same time as it."""


def run(*, quick: bool) -> Section:
    """See the module."""
    images, requests = (2, 200) if quick else (40, 2000)
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="dc-bench-")))
        ways = _ways(ending, folder)
        carried: dict[str, list[_Carried]] = {name: [] for name in ways}
        asked: dict[str, list[float]] = {name: [] for name in ways}
        for seed in range(images + 2):
            for name, (far, near) in ways.items():
                one = _image(far, near, seed)
                if seed >= 2:
                    carried[name].append(one)
        for _ in range(requests // 100):
            for name, (far, _) in ways.items():
                asked[name] += [_ping(far) for _ in range(100)]
    return Section("Relay", HOW, [*_image_rows(carried), *_request_rows(asked)], LIMITS)


@dataclass(frozen=True)
class _Carried:
    """One picture, in milliseconds."""

    put: float
    get: float
    collected: float
    """The get directly."""
    processor: float


Way = tuple[redis.Redis, redis.Redis]
"""The worker's connection and the collector's."""


def _ways(ending: ExitStack, folder: Path) -> dict[str, Way]:
    certificate, key = _certificate(folder)
    secret = secrets.token_urlsafe(32)
    port, tls_port = ending.enter_context(_server(folder, certificate, key, secret))
    login, trust = f"{USER}:{secret}@127.0.0.1", f"ssl_ca_certs={certificate}"
    direct = f"redis://{login}:{port}/0"
    door = ending.enter_context(_door(folder, certificate, key, port))
    urls = {
        "directly": direct, "directly, TLS": f"rediss://{login}:{tls_port}/0?{trust}", "door, TLS": f"rediss://{login}:{door}/0?{trust}",
    }  # fmt: skip
    for name, options in (("relay", ()), ("relay, TLS", ("--tls-cert", str(certificate), "--tls-key", str(key)))):
        join_url = ending.enter_context(_relay(folder, direct, options))
        urls[name] = ending.enter_context(relay_urls(join_url, USER, secret, ca=certificate.read_text())).blob_url
    near = connect(direct, "direct")
    return {name: (connect(url, name), near) for name, url in urls.items()}


@contextmanager
def _door(folder: Path, certificate: Path, key: Path, target: int) -> Iterator[int]:
    """The door of embedded servers, before this server; the port of its blobs."""
    plan = DoorPlan("127.0.0.1", _free_port(), _free_port(), str(certificate), str(key))
    door_file(folder).write_text(plan_text(plan))
    door = DoorProcess(folder, target, target, libraries=str(Path(redis.__file__).resolve().parents[1]))
    give_up = time.monotonic() + START_TIMEOUT_S
    try:
        while not _listens(plan.blob_port):
            door.tend()
            if time.monotonic() > give_up:
                raise BenchmarkFailed("the door did not open")
            time.sleep(0.02)
        yield plan.blob_port
    finally:
        door.shut()


@contextmanager
def _server(folder: Path, certificate: Path, key: Path, secret: str) -> Iterator[tuple[int, int]]:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise BenchmarkFailed("needs a redis-server or valkey-server in PATH")
    port, tls_port = _free_port(), _free_port()
    config = f"""
        port {port}\ntls-port {tls_port}\ntls-cert-file {certificate}\ntls-key-file {key}\ntls-auth-clients no
        bind 127.0.0.1\nsave ""\ndir {folder}\nuser {USER} on >{secret} ~* &* +@all
    """
    process = subprocess.Popen([program, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(config.encode())
    process.stdin.close()
    try:
        _wait(lambda: _listens(tls_port), process, "a Redis with TLS")
        yield port, tls_port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _relay(folder: Path, url: str, options: tuple[str, ...]) -> Iterator[str]:
    environment = {**os.environ, "DC_REDIS_URL": url, "DC_BLOB_URL": url}
    command = [sys.executable, "-m", "distributed_comfy", "serve", "--port", "0", *options]
    with (folder / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment
        )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"workers join by (\S+)", process.stdout.readline())
        if found is None:
            raise BenchmarkFailed(f"serve did not start: {(folder / 'serve.log').read_text()[-1000:]}")
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run([*command, *names], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkFailed(f"no certificate: {error}") from error
    return certificate, key


def _image(far: redis.Redis, near: redis.Redis, seed: int) -> _Carried:
    image = pattern(seed, SIDE, SIDE)
    there, here = (RedisBlobStore(client, prefix="dc:", chunk_bytes=2**20, ttl_s=600) for client in (far, near))
    spent, began = _processor_ms(), time.perf_counter()
    ref = store_value(there, f"relay:{seed}", image, job_id="relay", limit_bytes=2**33)
    assert isinstance(ref, TensorRef)
    times = [began, time.perf_counter()]
    for store in (there, here):
        back = load_value(store, ref, as_torch=False)
        times.append(time.perf_counter())
        if back.tobytes() != image.tobytes():
            raise BenchmarkFailed(f"image {seed} did not arrive bit for bit")
        times.append(time.perf_counter())
    here.unlink([ref.blob])
    put, get, collected = (times[i + 1] - times[i] for i in (0, 1, 3))
    return _Carried(put * 1000, get * 1000, collected * 1000, _processor_ms() - spent)


def _processor_ms() -> float:
    """What all processes that were started from here have used; only what is on the way works meanwhile."""
    spent_s = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            used = process.cpu_times()
            spent_s += used.user + used.system
    return spent_s * 1000


def _ping(client: redis.Redis) -> float:
    began = time.perf_counter()
    client.ping()
    return (time.perf_counter() - began) * 1000


def _image_rows(carried: dict[str, list[_Carried]]) -> Iterator[Row]:
    kinds: dict[str, Callable[[_Carried], float]] = {
        "put": lambda one: one.put, "get": lambda one: one.get, "to the collector": lambda one: one.put + one.collected,
    }  # fmt: skip
    for kind, measure in kinds.items():
        for name, ones in carried.items():
            times = [measure(one) for one in ones]
            target = TARGET_MS if kind == "to the collector" and name == "door, TLS" else None
            rate = f"{SIDE * SIDE * 12 / 1e3 / median(times):.0f} MB/s; {spread(times)}"
            yield Row(f"12.6 MB image, {kind}, {name}: median", median(times), "ms", target, note=rate)
    for name, ones in carried.items():
        spent = sum(one.processor for one in ones) / len(ones)
        yield Row(f"12.6 MB image, processor time on the way, {name}: mean", spent, "ms", note=f"put and both gets; {len(ones)} images")


def _request_rows(asked: dict[str, list[float]]) -> list[Row]:
    return [
        Row(f"small request, {name}: median", median(times), "ms", note=f"p99 {percentile(times, 0.99):.2f}; {len(times)} requests")
        for name, times in asked.items()
    ]


def _wait(happened: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while not happened():
        if process.poll() is not None or time.monotonic() > give_up:
            raise BenchmarkFailed(f"{what} did not start")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
