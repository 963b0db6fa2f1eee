"""Results in this host's shared memory: when they go there, that they come back, and that nothing stays, whoever is killed."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_comfy.errors import BlobMissing
from distributed_comfy.transport import shared_memory
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.near_blobs import NearBlobStore, near_name, sweep_regularly
from distributed_comfy.transport.shared_memory import SharedMemory, is_memory, job_key, open_shared_memory
from tests.command_line import PROJECT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is used on Linux")

CONTENT = bytes(range(256)) * 40_000


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    found = open_shared_memory(tmp_path / "memory")
    assert found is not None
    return found


@pytest.fixture
def far() -> MemoryBlobStore:
    return MemoryBlobStore()


@pytest.fixture
def worker(far: MemoryBlobStore, memory: SharedMemory) -> NearBlobStore:
    return NearBlobStore(far, memory, results_near=True)


@pytest.fixture
def collector(far: MemoryBlobStore, memory: SharedMemory) -> NearBlobStore:
    return NearBlobStore(far, memory)


def files(memory: SharedMemory) -> list[Path]:
    return [path for path in memory.root.rglob("*") if path.is_file() and path.name != "lock"]


def in_far(far: MemoryBlobStore, blob: str) -> bool:
    return near_name(blob) is None and far.exists([blob]) == [True]


# -- which way ----------------------------------------------------------------------------------------------------------
def test_a_result_of_a_job_that_is_collected_here_goes_through_memory(
    worker: NearBlobStore, collector: NearBlobStore, far: MemoryBlobStore
) -> None:
    with collector.offered("job"):
        blob = worker.put("job:0:claim:value0", [CONTENT[:1000], CONTENT[1000:]], job_id="job")
        assert near_name(blob) is not None and blob.startswith("job:0:claim:value0#@")
        assert bytes(collector.get(blob)) == CONTENT and b"".join(collector.chunks(blob)) == CONTENT
        assert collector.exists([blob, "gone#1"]) == [True, False]
        collector.get(blob)[:4] = b"mine"
        assert bytes(collector.get(blob)) == CONTENT, "a reader writes into pages of his own"
        collector.unlink([blob])
        assert collector.exists([blob]) == [False]
        with pytest.raises(BlobMissing):
            collector.get(blob)


def test_an_empty_result_comes_back(worker: NearBlobStore, collector: NearBlobStore) -> None:
    with collector.offered("job"):
        blob = worker.put("a", [], job_id="job")
        assert near_name(blob) and bytes(collector.get(blob)) == b"" and b"".join(collector.chunks(blob)) == b""


def test_what_is_no_result_of_a_job_collected_here_goes_the_usual_way(
    worker: NearBlobStore, collector: NearBlobStore, far: MemoryBlobStore
) -> None:
    assert in_far(far, worker.put("a", [b"a"], job_id="job")), "nobody collects it"
    with collector.offered("job"):
        assert in_far(far, worker.put("b", [b"b"], job_id="other"))
        assert in_far(far, worker.put("c", [b"c"])), "of no job"
        assert in_far(far, worker.put("d", iter([b"d"]), size_bytes=1, job_id="job")), "a stream may be of any length"
        assert in_far(far, collector.put("e", [b"e"], job_id="job")), "a worker of another host may have to read it"
    assert in_far(far, worker.put("f", [b"f"], job_id="job")), "it is over"


def test_without_memory_all_goes_the_usual_way(far: MemoryBlobStore) -> None:
    store = NearBlobStore(far, None, results_near=True)
    with store.offered("job"):
        assert in_far(far, store.put("a", [b"a"], job_id="job"))
    near = f"a#@{job_key('job')}"
    assert store.exists([near]) == [False]
    store.unlink([near])
    with pytest.raises(BlobMissing):
        store.get(near)


def test_where_there_is_no_room_it_goes_the_usual_way(
    worker: NearBlobStore, collector: NearBlobStore, far: MemoryBlobStore, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector.offered("job"):
        monkeypatch.setattr(shared_memory, "_KEPT_FREE", 1.0)
        assert in_far(far, worker.put("a", [CONTENT], job_id="job"))
        monkeypatch.undo()

        def full(descriptor: int, data: memoryview) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        assert in_far(far, worker.put("b", [CONTENT], job_id="job"))
        monkeypatch.undo()
        assert files(memory) == []


def test_two_collectors_of_one_job_are_told_apart(collector: NearBlobStore, worker: NearBlobStore, memory: SharedMemory) -> None:
    with memory.offered("job") as first, memory.offered("job") as second:
        assert (first, second) == (True, False)
        worker.put("a", [b"a"], job_id="job")
        assert len(files(memory)) == 1
    assert files(memory) == []


def test_the_same_name_twice_is_one_file_with_the_last_content(
    worker: NearBlobStore, collector: NearBlobStore, memory: SharedMemory
) -> None:
    with collector.offered("job"):
        first, second = (worker.put("a", [content], job_id="job") for content in (b"one", b"two"))
        assert first == second and bytes(collector.get(first)) == b"two" and len(files(memory)) == 1


@pytest.mark.parametrize("blob", ["a#@../../../../etc", "#@0123456789abcdef", "a#@0123456789ABCDEF", "a#@0123456789abcde", "a#@"])
def test_an_id_of_another_form_is_of_no_file_here(collector: NearBlobStore, blob: str) -> None:
    assert near_name(blob) is None
    with pytest.raises(BlobMissing):
        collector.get(blob)


def test_any_name_is_a_file_of_its_job(worker: NearBlobStore, collector: NearBlobStore, memory: SharedMemory) -> None:
    with collector.offered("../up"):
        blob = worker.put("../../a\0b/c", [b"x"], job_id="../up")
        assert bytes(collector.get(blob)) == b"x"
        assert [path.parent.parent for path in files(memory)] == [memory.root]


# -- pages that are used again ------------------------------------------------------------------------------------------
def test_pages_are_used_again_only_when_their_reader_has_let_go_of_them(
    worker: NearBlobStore, collector: NearBlobStore, memory: SharedMemory
) -> None:
    with collector.offered("job"):
        first = worker.put("a", [CONTENT], job_id="job")
        held = collector.get(first)
        collector.unlink([first])
        other = CONTENT[::-1]
        second = worker.put("b", [other], job_id="job")
        assert bytes(held) == CONTENT and bytes(collector.get(second)) == other
        assert len(files(memory)) == 2, "the pages that are read were left alone"
        part = held[:10]
        del held
        worker.put("c", [other], job_id="job")
        assert bytes(part) == CONTENT[:10] and len(files(memory)) == 3, "a part of a mapping holds it"
        del part
        collector.unlink([second])
        inodes = {path.stat().st_ino for path in files(memory)}
        third = worker.put("d", [CONTENT[:5000]], job_id="job")
        assert bytes(collector.get(third)) == CONTENT[:5000], "no byte of what was there before"
        assert {path.stat().st_ino for path in files(memory)} == inodes


def test_only_a_few_files_wait_for_the_next_result(worker: NearBlobStore, collector: NearBlobStore, memory: SharedMemory) -> None:
    with collector.offered("job"):
        blobs = [worker.put(f"{number}", [CONTENT], job_id="job") for number in range(10)]
        collector.unlink([*blobs, *blobs])
        assert len(files(memory)) == 4 and collector.exists(blobs) == [False] * 10
        with pytest.raises(BlobMissing):
            collector.get(blobs[0])


def test_writers_and_readers_at_the_same_time_mix_nothing_up(worker: NearBlobStore, collector: NearBlobStore) -> None:
    wrong: list[int] = []

    def work(index: int) -> None:
        for number in range(60):
            content = bytes([index * 60 + number]) * (4096 * (1 + number % 3))
            blob = worker.put(f"{index}-{number}", [content], job_id="job")
            back = collector.get(blob)
            collector.unlink([blob])
            if bytes(back) != content:
                wrong.append(number)

    with collector.offered("job"):
        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


# -- nothing stays ------------------------------------------------------------------------------------------------------
def test_nothing_of_a_job_stays_when_its_collector_ends(worker: NearBlobStore, collector: NearBlobStore, memory: SharedMemory) -> None:
    with collector.offered("job"):
        held = collector.get(worker.put("a", [CONTENT], job_id="job"))
        worker.put("b", [CONTENT], job_id="job")
    assert list(memory.root.iterdir()) == []
    assert bytes(held) == CONTENT, "whoever reads it keeps it"


def test_drop_job_removes_what_was_written_and_leaves_the_way_open(
    worker: NearBlobStore, collector: NearBlobStore, memory: SharedMemory
) -> None:
    with collector.offered("job"):
        worker.put("a", [CONTENT], job_id="job")
        worker.drop_job("job")
        assert files(memory) == []
        assert near_name(worker.put("b", [b"b"], job_id="job"))


@pytest.fixture
def killed(memory: SharedMemory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A collector of a job, with a result and half of one, is killed; nobody waits for another one."""
    monkeypatch.setattr(shared_memory, "_ORPHAN_S", 0.0)
    code = f"""
import sys, time
from pathlib import Path
from distributed_comfy.transport.shared_memory import SharedMemory, job_key
memory = SharedMemory(Path({str(memory.root)!r}))
with memory.offered("job"):
    assert memory.put(job_key("job"), "a", [bytes(1000)])
    (memory.root / job_key("job") / "half.part").write_bytes(bytes(10))
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert len(files(memory)) == 2
        process.send_signal(signal.SIGKILL)
    yield


def test_what_a_killed_collector_left_goes_with_the_next_look(killed: None, memory: SharedMemory) -> None:
    memory.sweep()
    assert list(memory.root.iterdir()) == []


def test_what_a_killed_collector_left_goes_with_the_next_collector(killed: None, memory: SharedMemory) -> None:
    with memory.offered("another"):
        assert [path.name for path in memory.root.iterdir()] == [job_key("another")]


def test_a_result_for_a_killed_collector_goes_the_usual_way(
    killed: None, worker: NearBlobStore, far: MemoryBlobStore, memory: SharedMemory
) -> None:
    assert in_far(far, worker.put("b", [b"b"], job_id="job"))
    assert list(memory.root.iterdir()) == []


def test_results_wait_a_while_for_a_collector_that_goes_on(
    worker: NearBlobStore, collector: NearBlobStore, far: MemoryBlobStore, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="the disk is full"), collector.offered("job"):
        blob = worker.put("a", [CONTENT], job_id="job")
        raise OSError("the disk is full")
    memory.sweep()
    assert in_far(far, worker.put("b", [b"b"], job_id="job")), "nobody collects it now"
    with collector.offered("job"):
        assert bytes(collector.get(blob)) == CONTENT
    assert list(memory.root.iterdir()) == []
    with pytest.raises(OSError, match="again"), collector.offered("job"):
        worker.put("a", [CONTENT], job_id="job")
        raise OSError("again")
    monkeypatch.setattr(shared_memory, "_ORPHAN_S", 0.0)
    memory.sweep()
    assert list(memory.root.iterdir()) == []


def test_engines_look_now_and_then(killed: None, memory: SharedMemory) -> None:
    with memory.offered("living"):
        (memory.root / job_key("later")).mkdir()
        sweep_regularly(memory, 0.05)
        deadline = time.monotonic() + 5
        while len(list(memory.root.iterdir())) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [path.name for path in memory.root.iterdir()] == [job_key("living")]


def test_a_collector_that_lives_keeps_its_folder_whoever_looks(memory: SharedMemory, worker: NearBlobStore) -> None:
    with memory.offered("job"):
        blob = worker.put("a", [b"a"], job_id="job")
        for _ in range(3):
            memory.sweep()
        assert bytes(worker.get(blob)) == b"a"


# -- whose memory -------------------------------------------------------------------------------------------------------
def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert open_shared_memory(tmp_path / "open") is None
    assert open_shared_memory(tmp_path / "link") is None
    assert open_shared_memory(tmp_path / "missing" / "deeper") is None
    assert open_shared_memory(tmp_path / "real") is not None


def test_only_a_memory_file_system_is_shared_memory(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    assert not is_memory(Path("/dev/shm"), mounts)
    mounts.write_text("proc /proc proc rw 0 0\nshm /dev/shm tmpfs rw 0 0\n")
    assert is_memory(Path("/dev/shm"), mounts) and not is_memory(Path("/dev"), mounts)
    mounts.write_text("shm /dev/shm tmpfs rw 0 0\nserver:/x /dev/shm nfs rw 0 0\n")
    assert not is_memory(Path("/dev/shm"), mounts), "something else lies on top"
