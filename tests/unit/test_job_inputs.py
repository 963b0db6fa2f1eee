"""Input files of a job: stored again when the blob store lost them, as far as they are still there."""
from __future__ import annotations

import logging
from pathlib import Path

import pytest

from distributed_comfy.orchestrator.input_files import JobInputs
from distributed_comfy.planning.files import FileReference
from distributed_comfy.transport.memory_blobs import MemoryBlobStore


def test_lost_files_are_stored_again_and_one_that_is_gone_does_not_end_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryBlobStore()
    for name in ("stays.png", "goes.png"):
        (tmp_path / name).write_bytes(name.encode())
    inputs = JobInputs(store, "job", 1000)
    references = [FileReference("1", "image", "goes.png", "input"), FileReference("2", "image", "stays.png", "input")]
    entries = inputs.add(references, {"input": [tmp_path]})
    blobs = [entry.file.blob for entry in entries]
    store.unlink(blobs)
    (tmp_path / "goes.png").unlink()
    with caplog.at_level(logging.WARNING):
        inputs.ensure(entries)
    assert list(store.exists(blobs)) == [False, True]
    assert "goes.png" in caplog.text and "stored again" in caplog.text
