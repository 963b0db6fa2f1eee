"""The spool: whole items or none, the same bytes back, one collector at a time."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distributed_comfy.collector.adopt import mark_left
from distributed_comfy.collector.spool import Spool, SpoolManifest, read_manifest
from distributed_comfy.errors import (
    BlobMissing,
    FileDamaged,
    FrameChecksumWrong,
    FrameMalformed,
    FrameTruncated,
    MessageVersionUnknown,
    OutputUnwritable,
    SpoolUnusable,
)
from distributed_comfy.messages import ItemResult, TensorRef
from distributed_comfy.transport.frames import encode_tensor
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, JOB_ID, capture, file_ref, fill, image, image_result, open_spool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store() -> MemoryBlobStore:
    return MemoryBlobStore(chunk_bytes=100)


def image_ref(result: ItemResult, position: int = 0) -> TensorRef:
    value = result.captures[position].value
    assert isinstance(value, TensorRef)
    return value


def swap_blob(store: MemoryBlobStore, ref: TensorRef, content: bytes) -> None:
    """Other bytes under the same blob id."""
    name, _, chunks = ref.blob.rpartition("#")
    room = 100 * int(chunks)
    assert room - 100 < len(content) <= room
    store.put(name, [content])


def test_an_item_comes_back_bit_for_bit_after_its_blobs_are_gone(tmp_path: Path, store: MemoryBlobStore) -> None:
    batch = image(1, (2, 5, 7, 3))
    result = image_result(store, "c1", batch)
    with open_spool(tmp_path) as spool:
        assert spool.add(3, "c1", result, store)
        store.drop_job(JOB_ID)
        found = spool.array(3, image_ref(spool.result(3)))
        assert found.tobytes() == batch.tobytes()
        assert not found.flags.writeable
        assert (spool.items(), spool.has(3), spool.has(2), spool.claim_id(3), spool.claim_id(2)) == ([3], True, False, "c1", None)


def test_a_reopened_spool_has_the_same_items_and_results(tmp_path: Path, store: MemoryBlobStore) -> None:
    with open_spool(tmp_path) as spool:
        fill(spool, store, 3)
        before = [spool.result(index) for index in range(3)]
    with open_spool(tmp_path) as again:
        assert again.items() == [0, 1, 2]
        assert [again.result(index) for index in range(3)] == before
        assert np.array_equal(again.array(2, image_ref(before[2])), image(2))


def test_the_frame_is_kept_as_it_came(tmp_path: Path, store: MemoryBlobStore) -> None:
    result = image_result(store, "c", image(4))
    ref = image_ref(result)
    came = bytes(store.get(ref.blob))
    with open_spool(tmp_path) as spool:
        spool.add(0, "c", result, store)
        assert bytes(spool.frame(0, ref)) == came
        assert spool.blob_bytes(0, ref.blob) == len(came)


def test_bfloat16_stays_raw_and_is_read_as_the_same_value(tmp_path: Path, store: MemoryBlobStore) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.linspace(-3, 3, 60).to(torch.bfloat16).reshape(1, 4, 5, 3)
    result = ItemResult(captures=(capture(store, "c", COLLECTOR, "images", tensor),))
    with open_spool(tmp_path) as spool:
        spool.add(0, "c", result, store)
        ref = image_ref(result)
        assert ref.dtype == "bfloat16"
        assert np.array_equal(spool.array(0, ref), tensor.to(torch.float32).numpy())
        assert bytes(spool.frame(0, ref)) == b"".join(bytes(piece) for piece in encode_tensor(tensor, limit_bytes=1000))


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (1, 0, 0, 3)])
def test_a_tensor_without_elements_is_kept(tmp_path: Path, store: MemoryBlobStore, shape: tuple[int, ...]) -> None:
    result = image_result(store, "c", np.zeros(shape, np.float32))
    with open_spool(tmp_path) as spool:
        spool.add(0, "c", result, store)
        assert spool.array(0, image_ref(result)).shape == shape


def test_files_of_output_nodes_are_kept(tmp_path: Path, store: MemoryBlobStore) -> None:
    ref = file_ref(store, "sub/a_00001_.png", b"not really a png" * 20)
    with open_spool(tmp_path) as spool:
        spool.add(0, "c", ItemResult(files=(ref, file_ref(store, "empty.txt", b""))), store)
        assert spool.path(0, ref.blob).read_bytes() == b"not really a png" * 20


def test_the_same_claim_twice_changes_nothing(tmp_path: Path, store: MemoryBlobStore) -> None:
    result = image_result(store, "c", image(1))
    with open_spool(tmp_path) as spool:
        assert spool.add(0, "c", result, store)
        store.drop_job(JOB_ID)
        assert spool.add(0, "c", result, store)  # would raise BlobMissing if it fetched


def test_a_later_claim_replaces_an_earlier_one_for_good(tmp_path: Path, store: MemoryBlobStore) -> None:
    first, second = image_result(store, "old", image(1)), image_result(store, "new", image(2))
    with open_spool(tmp_path) as spool:
        spool.add(0, "old", first, store)
        mapped = spool.array(0, image_ref(first))
        assert spool.add(0, "new", second, store)
        assert not spool.add(0, "old", first, store), "a late result of the replaced claim"
        assert np.array_equal(mapped, image(1)), "what was mapped stays readable"
    with open_spool(tmp_path) as again:
        assert again.claim_id(0) == "new"
        assert np.array_equal(again.array(0, image_ref(second)), image(2))
        assert not again.add(0, "old", first, store)
        assert len(list((tmp_path / "items").iterdir())) == 2, "one index file and one folder"


def test_a_missing_blob_leaves_nothing(tmp_path: Path, store: MemoryBlobStore) -> None:
    result = image_result(store, "c", image(1), image(2))
    store.unlink([image_ref(result, 1).blob])
    with open_spool(tmp_path) as spool:
        with pytest.raises(BlobMissing):
            spool.add(0, "c", result, store)
        assert not spool.has(0)
        assert list((tmp_path / "items").iterdir()) == []


def test_a_damaged_payload_is_not_kept(tmp_path: Path, store: MemoryBlobStore) -> None:
    result = image_result(store, "c", image(1))
    frame = bytearray(store.get(image_ref(result).blob))
    frame[-1] ^= 1
    swap_blob(store, image_ref(result), bytes(frame))
    with open_spool(tmp_path) as spool, pytest.raises(FrameChecksumWrong):
        spool.add(0, "c", result, store)


def test_a_cut_frame_is_not_kept(tmp_path: Path, store: MemoryBlobStore) -> None:
    result = image_result(store, "c", image(1))
    frame = bytes(store.get(image_ref(result).blob))
    swap_blob(store, image_ref(result), frame[:-1])
    with open_spool(tmp_path) as spool, pytest.raises(FrameTruncated):
        spool.add(0, "c", result, store)


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"shape": (1, 6, 8, 3)}, {"size_bytes": 4}])
def test_a_frame_that_is_not_what_the_record_says_is_not_kept(tmp_path: Path, store: MemoryBlobStore, change: dict[str, object]) -> None:
    result = image_result(store, "c", image(1))
    wrong = replace(result, captures=(replace(result.captures[0], value=replace(image_ref(result), **change)),))  # type: ignore[arg-type]
    with open_spool(tmp_path) as spool, pytest.raises(FrameMalformed):
        spool.add(0, "c", wrong, store)


def test_a_damaged_file_is_not_kept(tmp_path: Path, store: MemoryBlobStore) -> None:
    ref = replace(file_ref(store, "a.png", b"content"), sha256="0" * 64)
    with open_spool(tmp_path) as spool:
        with pytest.raises(FileDamaged):
            spool.add(0, "c", ItemResult(files=(ref,)), store)
        assert not spool.has(0)


def test_damage_on_the_disk_is_found_when_an_array_is_read(tmp_path: Path, store: MemoryBlobStore) -> None:
    result = image_result(store, "c", image(1))
    with open_spool(tmp_path) as spool:
        spool.add(0, "c", result, store)
        path = spool.path(0, image_ref(result).blob)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(FrameChecksumWrong):
            spool.array(0, image_ref(result))
        spool.discard(0)
        assert not spool.has(0)
    with open_spool(tmp_path) as again:
        assert again.items() == []


def test_two_collectors_do_not_share_a_spool(tmp_path: Path) -> None:
    with open_spool(tmp_path):
        with pytest.raises(SpoolUnusable) as caught:
            open_spool(tmp_path)
        assert "another collector" in str(caught.value)
    open_spool(tmp_path).close()


def test_a_spool_of_another_job_is_refused_and_stays_unlocked(tmp_path: Path) -> None:
    open_spool(tmp_path).close()
    with pytest.raises(SpoolUnusable):
        Spool(tmp_path, SpoolManifest("another", "key"))
    open_spool(tmp_path).close()


def test_the_manifest_tells_job_and_resume_key(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    Spool(tmp_path, SpoolManifest(JOB_ID, "0f" * 16)).close()
    assert read_manifest(tmp_path) == SpoolManifest(JOB_ID, "0f" * 16)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job_id": "x", "resume_key": "", "format": 99}'])
def test_a_manifest_of_another_version_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "spool.json").write_text(text)
    with pytest.raises(MessageVersionUnknown):
        open_spool(tmp_path)


def test_torn_items_are_ignored_and_swept_away(tmp_path: Path, store: MemoryBlobStore) -> None:
    with open_spool(tmp_path) as spool:
        fill(spool, store, 5)
    items = tmp_path / "items"
    (items / "000000.json").unlink()  # died before the index file
    next(items.glob("000001-*")).joinpath("0.blob").write_bytes(b"short")  # lost its tail in a power cut
    (items / "000002.json").write_bytes((items / "000002.json").read_bytes()[:-20])
    next(items.glob("000003-*")).joinpath("0.blob").unlink()
    (items / ".000009.json.part").write_text("{")
    with open_spool(tmp_path) as again:
        assert again.items() == [4]
        assert sorted(path.name[:6] for path in items.iterdir()) == ["000004", "000004"]
        fill(again, store, 5)
        assert again.items() == [0, 1, 2, 3, 4]


def test_how_far_a_claim_was_fed_is_remembered(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        assert spool.fed("c") == []
        spool.note_fed("c", [2, 0])
    with open_spool(tmp_path) as again:
        assert (again.fed("c"), again.fed("d")) == ([2, 0], [])
        (tmp_path / "feed.json").write_text("{")
        assert again.fed("c") == []


def test_remove_leaves_nothing(tmp_path: Path, store: MemoryBlobStore) -> None:
    spool = open_spool(tmp_path / "job")
    fill(spool, store, 2)
    spool.remove()
    assert not (tmp_path / "job").exists()


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputUnwritable) as caught:
        open_spool(tmp_path / "file" / "spool")
    assert str(tmp_path / "file") in str(caught.value)


CRASHING = """
import sys
from pathlib import Path
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import image, image_result, open_spool
store = MemoryBlobStore()
with open_spool(Path(sys.argv[1])) as spool:
    for index in range(10_000):
        claim = f"c{index}"
        result = image_result(store, claim, image(index, (1, 64, 64, 3)), image(-index - 1 + 20_000, (1, 64, 64, 3)))
        spool.add(index, claim, result, store)
        print(index, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 20])
def test_kill_9_in_the_middle_leaves_every_reported_item_whole(tmp_path: Path, after: int) -> None:
    command = [sys.executable, "-c", CRASHING, str(tmp_path)]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert writer.stdout is not None
    reported = [int(line) for _, line in zip(range(after), writer.stdout, strict=False)]
    writer.send_signal(signal.SIGKILL)
    reported += [int(line) for line in writer.stdout]
    writer.wait()
    writer.stdout.close()
    with open_spool(tmp_path) as spool:
        assert spool.items()[: len(reported)] == reported
        assert len(spool.items()) - len(reported) in (0, 1), "one may be whole and not reported yet"
        for index in spool.items():
            first, second = (spool.array(index, image_ref(spool.result(index), position)) for position in (0, 1))
            assert np.array_equal(first, image(index, (1, 64, 64, 3)))
            assert np.array_equal(second, image(-index - 1 + 20_000, (1, 64, 64, 3)))


FULL_DISK = """
import resource, sys
from pathlib import Path
from distributed_comfy.errors import OutputUnwritable
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import image, image_result, open_spool
store = MemoryBlobStore()
spool = open_spool(Path(sys.argv[1]))
spool.add(0, "c0", image_result(store, "c0", image(0)), store)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    spool.add(1, "c1", image_result(store, "c1", image(1, (1, 64, 64, 3))), store)
except OutputUnwritable as error:
    print(error)
print(spool.items(), len(list((Path(sys.argv[1]) / "items").iterdir())))
spool.add(2, "c2", image_result(store, "c2", image(2)), store)
print(spool.items())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
def test_a_write_that_the_system_refuses_is_reported_with_a_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "spool")]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    error, after, later = output.stdout.splitlines()
    assert str(tmp_path / "spool") in error and "free space there or choose another folder" in error
    assert after == "[0] 2"
    assert later == "[0, 2]"


def test_the_index_file_is_plain_json(tmp_path: Path, store: MemoryBlobStore) -> None:
    with open_spool(tmp_path) as spool:
        fill(spool, store, 1)
    plain = json.loads((tmp_path / "items" / "000000.json").read_text())
    assert (plain["claim_id"], plain["result"]["worker"]) == ("c0", "pc1-cpu")


def test_what_a_killed_process_left_is_marked_once_and_what_is_in_use_is_not(tmp_path: Path, store: MemoryBlobStore) -> None:
    with open_spool(tmp_path / "left") as left:
        fill(left, store, 1)
    with open_spool(tmp_path / "used"):
        mark_left(tmp_path)
        assert (tmp_path / "left" / "ended").exists() and not (tmp_path / "used" / "ended").exists()
    os.utime(tmp_path / "left" / "ended", (1, 1))
    mark_left(tmp_path)
    assert (tmp_path / "left" / "ended").stat().st_mtime == 1
    with open_spool(tmp_path / "left") as again:
        assert again.items() == [0]


def test_marking_passes_by_what_is_no_spool(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "spool.json").write_text("{}")
    mark_left(tmp_path)
    mark_left(tmp_path / "not there")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["broken", "other", "spool.json"]
