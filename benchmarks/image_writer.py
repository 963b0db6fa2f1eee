"""The worker's side of the transport benchmark, in a process of its own: ``python -m benchmarks.image_writer URL COUNT``.

For each line of standard input it stores ``COUNT`` pictures as an engine does, and prints a reference to each as soon as it lies there.
"""
from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.nodes import pattern
from distributed_comfy.messages import dump
from distributed_comfy.settings import Settings
from distributed_comfy.state.connection import connect
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from distributed_comfy.transport.values import store_value

SIDE = 1024
"""Pixels: 1024 x 1024 x 3 float32 are 12.6 MB."""


def open_store(url: str) -> RedisBlobStore:
    """The blob store as every process of a cluster opens it."""
    settings = Settings(redis_url=url)
    return RedisBlobStore(connect(url, "DC_BLOB_URL"), prefix="dc:", chunk_bytes=settings.chunk_bytes, ttl_s=settings.blob_ttl_s)


def main(url_file: Path, count: int) -> None:
    """Serve until standard input closes.

    Args:
        url_file: holds the URL of the blob Redis, which has a password.
        count: pictures each time.
    """
    store = open_store(url_file.read_text())
    images = [pattern(seed, SIDE, SIDE) for seed in range(count)]
    print("ready", flush=True)
    for line in sys.stdin:
        for seed, image in enumerate(images):
            ref = store_value(store, f"{line.strip()}:{seed}", image, job_id=line.strip(), limit_bytes=2**33)
            print(dump(ref), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
