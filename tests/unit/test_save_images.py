"""PNG files as ComfyUI writes them, and the files of output nodes."""
from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distributed_comfy.collector.file_formats import to_pixels
from distributed_comfy.collector.naming import FolderNames
from distributed_comfy.collector.save import FileMetadata, ResultSaver, save_files
from distributed_comfy.collector.spool import Spool
from distributed_comfy.errors import OutputUnwritable, PictureUnsavable
from distributed_comfy.messages import ItemResult
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tests.collected_jobs import COLLECTOR, JOB_ID, file_ref, fill, image, image_result, open_spool

PROMPT = {"3": {"class_type": "DistributedSeed", "inputs": {"seed": 1125899906842}}}
METADATA = FileMetadata(PROMPT, {"workflow": {"nodes": [{"title": "größe"}]}}, seeds=("7", "8", "18446744073709551615"))


@pytest.fixture
def store() -> MemoryBlobStore:
    return MemoryBlobStore()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return open_spool(tmp_path / "spool")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def saver(spool: Spool, out: Path, metadata: FileMetadata = METADATA) -> ResultSaver:
    return ResultSaver(spool, [(COLLECTOR, "images")], out, metadata=metadata)


def pixels_of(path: Path) -> Any:
    with Image.open(path) as opened:
        return np.asarray(opened)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_values_become_8_bit_by_clipping_and_rounding_down() -> None:
    values = np.array([-1.0, 0.0, 0.5, 0.999, 1.0, 1.2, np.inf, -np.inf, np.nan], np.float32)
    expected = [0, 0, 127, 254, 255, 255, 255, 0, 0]
    assert to_pixels(values.reshape(1, -1, 1)).tolist() == [expected]


def test_every_value_is_rounded_as_float32_arithmetic_does() -> None:
    values = np.arange(0, 2**16, dtype=np.float32) / np.float32(2**16)
    assert to_pixels(values.reshape(1, -1, 1)).tolist() == [(np.float32(255) * values).astype(int).tolist()]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_each_number_of_channels_has_its_mode(spool: Spool, store: MemoryBlobStore, out: Path, channels: int, mode: str) -> None:
    batch = image(5, (1, 4, 6, channels))
    spool.add(0, "c", image_result(store, "c", batch), store)
    with saver(spool, out) as images:
        images.add(0)
    with Image.open(out / "ComfyUI_00001_.png") as opened:
        assert (opened.mode, opened.size, opened.format) == (mode, (6, 4), "PNG")
        assert np.array_equal(np.asarray(opened), to_pixels(batch[0]))


def test_metadata_is_that_of_comfyui_and_the_items_seed(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    fill(spool, store, 3)
    images = saver(spool, out)
    for index in range(3):
        images.add(index)
    for saved in images.close():
        with Image.open(saved.path) as opened:
            text = dict(opened.text)
        assert list(text) == ["prompt", "workflow", "seed"]
        assert json.loads(text["prompt"]) == PROMPT
        assert json.loads(text["workflow"]) == METADATA.extra_pnginfo["workflow"]
        assert text["seed"] == METADATA.seeds[saved.index]


def test_a_keyword_that_png_cannot_hold_is_left_out(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    fill(spool, store, 1)
    with saver(spool, out, FileMetadata(PROMPT, {"größe": 1, "": 2, "x" * 80: 3, "fine": 4})) as images:
        images.add(0)
    with Image.open(out / "ComfyUI_00001_.png") as opened:
        assert list(opened.text) == ["prompt", "fine"]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_names_follow_the_order_of_items_whatever_comes_first(spool: Spool, store: MemoryBlobStore, out: Path, order: list[int]) -> None:
    batches = {index: image(index, (2, 8, 6, 3)) for index in range(4)}
    images = saver(spool, out)
    for index in order:
        spool.add(index, "c", image_result(store, f"c{index}", batches[index]), store)
        images.add(index)
    saved = images.close()
    assert [(entry.index, entry.batch_index) for entry in saved] == [(index, place) for index in range(4) for place in range(2)]
    assert [entry.path.name for entry in saved] == [f"ComfyUI_{number:05}_.png" for number in range(1, 9)] == names_in(out)
    assert all(np.array_equal(pixels_of(entry.path), to_pixels(batches[entry.index][entry.batch_index])) for entry in saved)


def test_items_that_never_come_do_not_keep_the_others_from_being_saved(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    images = saver(spool, out)
    for index in (0, 2, 5):
        spool.add(index, "c", image_result(store, f"c{index}", image(index)), store)
        images.add(index)
    assert [entry.index for entry in images.close()] == [0, 2, 5]
    assert names_in(out) == ["ComfyUI_00001_.png", "ComfyUI_00002_.png", "ComfyUI_00003_.png"]


def test_finished_items_appear_while_the_job_runs(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    fill(spool, store, 3)
    images = saver(spool, out)
    images.add(0)
    give_up = threading.Event()
    for _ in range(1000):
        images.add(0)  # the same again only looks what is finished
        if (out / "ComfyUI_00001_.png").exists() and not list(out.glob(".*.part")):
            break
        give_up.wait(0.01)
    assert names_in(out) == ["ComfyUI_00001_.png"]
    images.close()


def test_the_count_goes_on_and_nothing_is_overwritten(tmp_path: Path, store: MemoryBlobStore, out: Path) -> None:
    out.mkdir()
    (out / "ComfyUI_00007_.png").write_text("the user's")
    for job in ("one", "two"):
        spool = open_spool(tmp_path / job)
        fill(spool, store, 2)
        with saver(spool, out) as images:
            images.add(0)
            images.add(1)
    assert names_in(out) == [f"ComfyUI_{number:05}_.png" for number in range(7, 12)]
    assert (out / "ComfyUI_00007_.png").read_text() == "the user's"


def test_a_saver_that_starts_again_saves_nothing_twice(tmp_path: Path, store: MemoryBlobStore, out: Path) -> None:
    """As after a crash: each time with a spool that is opened anew, and one item more."""
    before: list[tuple[str, int]] = []
    for items in (1, 2, 3):
        with open_spool(tmp_path / "spool") as spool:
            fill(spool, store, items)
            with saver(spool, out) as images:
                for index in range(items):
                    images.add(index)
            assert [image.path.name for image in images.saved] == [f"ComfyUI_{number:05}_.png" for number in range(1, items + 1)]
        assert names_in(out) == [image.path.name for image in images.saved]
        found = [(image.path.name, image.path.stat().st_mtime_ns) for image in images.saved]
        assert found[: len(before)] == before, "what lies there is not written again"
        before = found


def test_an_image_that_the_user_deleted_or_replaced_is_saved_again(
    tmp_path: Path, store: MemoryBlobStore, out: Path
) -> None:
    with open_spool(tmp_path / "spool") as spool:
        fill(spool, store, 3)
        with saver(spool, out) as images:
            for index in range(3):
                images.add(index)
    (out / "ComfyUI_00001_.png").unlink()
    (out / "ComfyUI_00003_.png").write_bytes(b"the user's own")
    with open_spool(tmp_path / "spool") as spool, saver(spool, out) as images:
        for index in range(3):
            images.add(index)
    assert [image.path.name for image in images.saved] == ["ComfyUI_00004_.png", "ComfyUI_00002_.png", "ComfyUI_00005_.png"]
    assert [len(pixels_of(image.path)) for image in images.saved] == [8] * 3
    assert (out / "ComfyUI_00003_.png").read_bytes() == b"the user's own"


def test_files_of_output_nodes_are_not_saved_twice_either(tmp_path: Path, store: MemoryBlobStore, out: Path) -> None:
    refs = (file_ref(store, "a.txt", b"one"), file_ref(store, "a.txt", b"two", blob_name=f"{JOB_ID}:other"))
    for _ in range(2):
        with open_spool(tmp_path / "spool") as spool:
            spool.add(0, "c0", ItemResult(files=refs, worker="pc1-cpu"), store)
            assert [entry.name for entry in save_files(spool, 0, FolderNames(out))] == ["a.txt", "a-1.txt"]
    assert names_in(out) == ["a-1.txt", "a.txt"] and (out / "a-1.txt").read_bytes() == b"two"


def test_a_blocked_item_saves_nothing(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    spool.add(0, "c", ItemResult(blocked=(COLLECTOR,)), store)
    spool.add(1, "c", image_result(store, "c1", image(1)), store)
    images = saver(spool, out)
    images.add(1)
    images.add(0)
    assert [entry.index for entry in images.close()] == [1]


@pytest.mark.parametrize("shape", [(4, 6, 3), (1, 4, 6, 5)])
def test_what_no_png_can_hold_is_refused(spool: Spool, store: MemoryBlobStore, out: Path, shape: tuple[int, ...]) -> None:
    spool.add(0, "c", image_result(store, "c", image(0, shape)), store)
    with pytest.raises(PictureUnsavable) as caught, saver(spool, out) as images:
        images.add(0)
    assert str(list(shape)) in str(caught.value)


def test_a_folder_that_cannot_be_made_is_an_error_and_the_threads_end(spool: Spool, store: MemoryBlobStore, tmp_path: Path) -> None:
    fill(spool, store, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputUnwritable), saver(spool, tmp_path / "file" / "out") as images:
        images.add(0)
        images.add(1)
    assert not any(thread.name.startswith("png") for thread in threading.enumerate())


def test_an_error_of_the_caller_leaves_no_half_files(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    fill(spool, store, 8)
    with pytest.raises(KeyError), saver(spool, out) as images:
        for index in range(1, 8):
            images.add(index)
        raise KeyError
    assert not out.exists() or names_in(out) == []


def test_files_keep_their_subfolders_and_count_on_where_names_are_taken(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    for index in range(3):
        names = ("sub/a_00001_.png", "clip.mp4")
        files = tuple(file_ref(store, name, f"{name} {index}".encode(), blob_name=f"{name}{index}") for name in names)
        spool.add(index, "c", ItemResult(files=files), store)
    names_of_out = FolderNames(out)
    saved = [entry for index in range(3) for entry in save_files(spool, index, names_of_out)]
    assert {(entry.index, entry.ref.name): entry.name for entry in saved} == {
        (0, "sub/a_00001_.png"): "sub/a_00001_.png",
        (1, "sub/a_00001_.png"): "sub/a_00002_.png",
        (2, "sub/a_00001_.png"): "sub/a_00003_.png",
        (0, "clip.mp4"): "clip.mp4",
        (1, "clip.mp4"): "clip-1.mp4",
        (2, "clip.mp4"): "clip-2.mp4",
    }
    assert all(entry.path.read_text() == f"{entry.ref.name} {entry.index}" for entry in saved)
    assert names_in(out) == ["clip-1.mp4", "clip-2.mp4", "clip.mp4", "sub"]


def test_a_name_that_leads_out_of_the_folder_is_saved_inside(spool: Spool, store: MemoryBlobStore, out: Path, tmp_path: Path) -> None:
    spool.add(0, "c", ItemResult(files=(file_ref(store, "../../evil.sh", b"x"), file_ref(store, "/tmp/evil.sh", b"y"))), store)
    assert [entry.name for entry in save_files(spool, 0, FolderNames(out))] == ["evil.sh", "tmp/evil.sh"]
    assert names_in(tmp_path) == ["out", "spool"]


def test_previews_can_be_left_out(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    files = (file_ref(store, "a.png", b"a"), file_ref(store, "b.png", b"b", folder="temp"))
    spool.add(0, "c", ItemResult(files=files), store)
    assert [entry.name for entry in save_files(spool, 0, FolderNames(out), folders=["output"])] == ["a.png"]


def test_a_file_that_cannot_be_written_leaves_nothing(spool: Spool, store: MemoryBlobStore, out: Path) -> None:
    spool.add(0, "c", ItemResult(files=(file_ref(store, "sub/a.png", b"a"),)), store)
    out.mkdir()
    (out / "sub").write_text("a file where a folder is needed")
    with pytest.raises(OutputUnwritable):
        save_files(spool, 0, FolderNames(out))
    assert names_in(out) == ["sub"]
