"""Values on their way out of a running ComfyUI and into it: pictures, latents, numbers, and the files in its input folder."""
from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from distributed_comfy.engine.attach import shelf as shelf_module
from distributed_comfy.engine.attach.captures import CapturePlan, read_capture, read_image
from distributed_comfy.engine.attach.outcome import failure, own_outputs, restore_prompt, without_value
from distributed_comfy.engine.attach.shelf import InputShelf
from distributed_comfy.engine.attach.supplies import SlotFeed, Supplier, write_latent, write_tiff
from distributed_comfy.errors import BatchDiffers, ComfyUIDropped, FileDamaged, NodeFailed, OutOfMemory, SizesDiffer, WorkerLacks
from distributed_comfy.messages import LiteralValue, MappingValue, TensorRef
from distributed_comfy.transport.latents import read_latent

PLAN = CapturePlan("9", "images", "IMAGE", "f", "s")


class Files:
    """Pictures by name, as ComfyUI would hand them out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, pixels: Any) -> dict[str, str]:
        Image.fromarray(np.asarray(pixels, np.uint8)).save(self.folder / name)
        return {"filename": name, "subfolder": "", "type": "temp"}

    def fetch(self, entry: Any) -> Path:
        return self.folder / str(entry["filename"])


def read(plan: CapturePlan, outputs: dict[str, Any], folder: Path) -> list[Any]:
    return [capture.value for capture in read_capture(plan, outputs, Files(folder).fetch, "w1")]


# -- out ----------------------------------------------------------------------------------------------------------------
def test_every_value_of_8_bits_survives_reading_and_saving_again(tmp_path: Path) -> None:
    entry = Files(tmp_path).add("x.png", np.arange(768).reshape(16, 16, 3) % 256)
    (images,) = read(PLAN, {"f": {"images": [entry]}, "s": {"text": ["1"]}}, tmp_path)
    assert images.shape == (1, 16, 16, 3) and images.dtype == np.float32
    again = np.clip(255.0 * images, 0, 255).astype(np.uint8)  # as SaveImage does it
    np.testing.assert_array_equal(again[0].ravel(), np.arange(768) % 256)


def test_a_list_of_batches_is_put_together_by_the_counts(tmp_path: Path) -> None:
    entries = [Files(tmp_path).add(f"{number}.png", np.full((4, 4, 3), number)) for number in range(4)]
    outputs = {"f": {"images": entries}, "s": {"text": ["1", "2", "1"]}}
    assert [len(value) for value in read(PLAN, outputs, tmp_path)] == [1, 2, 1]
    assert [len(value) for value in read(PLAN, {"f": {"images": entries}}, tmp_path)] == [4], "without them it is one batch"


def test_images_of_several_sizes_are_never_one_batch(tmp_path: Path) -> None:
    files = Files(tmp_path)
    entries = [files.add(f"{number}.png", np.zeros((size, 4, 3))) for number, size in enumerate((4, 4, 8))]
    assert [value.shape[:2] for value in read(PLAN, {"f": {"images": entries}}, tmp_path)] == [(2, 4), (1, 8)]


def test_masks_are_one_channel_and_alpha_is_kept(tmp_path: Path) -> None:
    entry = Files(tmp_path).add("x.png", np.full((4, 6, 3), 51))
    (mask,) = read(CapturePlan("9", "masks", "MASK", "f", "s"), {"f": {"images": [entry]}, "s": {"text": ["1"]}}, tmp_path)
    assert mask.shape == (1, 4, 6) and (mask == np.float32(0.2)).all()
    Files(tmp_path).add("a.png", np.full((4, 6, 4), 51))
    assert read_image(tmp_path / "a.png").shape == (4, 6, 4)


def test_a_sink_that_nothing_reached_gives_nothing(tmp_path: Path) -> None:
    assert read(PLAN, {}, tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("INT", str(2**63), 2**63), ("FLOAT", "2.3333333333333335", 7 / 3), ("BOOLEAN", "False", False), ("STRING", "seed ✓\n", "seed ✓\n")],
)
def test_numbers_and_texts_are_exact(kind: str, text: str, value: object, tmp_path: Path) -> None:
    assert read(CapturePlan("9", "value", kind, shown="s"), {"s": {"text": [text]}}, tmp_path) == [value]


def test_what_is_no_number_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(WorkerLacks, match="'None' as INT"):
        read(CapturePlan("9", "value", "INT", shown="s"), {"s": {"text": ["None"]}}, tmp_path)


LATENTS = CapturePlan("9", "latents", "LATENT", "f", "s")


def test_latents_are_read_bit_for_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).normal(size=(2, 4, 3, 5)).astype(np.float32)
    write_latent(tmp_path / "x.latent", samples)
    entry = {"filename": "x.latent", "subfolder": "", "type": "output"}
    (value,) = read(LATENTS, {"f": {"latents": [entry]}, "s": {"text": ["{'samples': tensor([[0.5]])}"]}}, tmp_path)
    assert value["samples"].tobytes() == samples.tobytes() and value["samples"].shape == samples.shape


def test_a_latent_with_a_noise_mask_is_for_another_worker(tmp_path: Path) -> None:
    with pytest.raises(WorkerLacks, match="the noise_mask of the latent of node 9"):
        read(LATENTS, {"s": {"text": ["{'samples': tensor([[1.]]), 'noise_mask': tensor([[[1.]]])}"]}}, tmp_path)


def test_a_latent_of_bfloat16_becomes_the_same_numbers_as_float32(tmp_path: Path) -> None:
    header = json.dumps({"latent_tensor": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "b").write_bytes(struct.pack("<Q", len(header)) + header + b"\x80\x3f\xc0\xbf")
    assert read_latent(tmp_path / "b").tolist() == [1.0, -1.5]


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, struct.pack("<Q", 2) + b"{}", b"\x89PNG"])
def test_files_that_are_not_what_they_should_be_are_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    for reader in (read_latent, read_image):
        with pytest.raises(FileDamaged):
            reader(tmp_path / "x")


# -- in -----------------------------------------------------------------------------------------------------------------
def feed(slot: str, *values: Any) -> SlotFeed:
    def ref(value: Any) -> Any:
        if isinstance(value, dict):
            return MappingValue({name: ref(entry) for name, entry in value.items()})
        return TensorRef("b", "float32", value.shape, value.nbytes) if isinstance(value, np.ndarray) else LiteralValue(value)

    return SlotFeed(f"9~{slot}", slot, tuple(map(ref, values)), iter(values))


@pytest.fixture
def sent() -> list[bytes]:
    return []


@pytest.fixture
def supplier(tmp_path: Path, sent: list[bytes]) -> Supplier:
    def put(path: Path) -> str:
        sent.append(path.read_bytes())
        return f"up/{len(sent)}{path.suffix}"

    return Supplier(tmp_path, put, "w1")


def pages(content: bytes) -> list[Any]:
    with Image.open(io.BytesIO(content)) as picture:
        found = []
        for page in range(getattr(picture, "n_frames", 1)):
            picture.seek(page)
            found.append(np.asarray(picture))
        return found


def test_a_batch_is_one_file_with_a_page_for_each_image_also_for_equal_ones(supplier: Supplier, sent: list[bytes]) -> None:
    images = np.stack([np.full((3, 5, 3), value, np.float32) for value in (0.2, 0.2, 1.5, -1.0)])
    made = supplier.supply(feed("images", images))
    assert [int(page[0, 0, 0]) for page in pages(sent[0])] == [51, 51, 255, 0]
    assert made.nodes == {"9~images~0": {"class_type": "LoadImage", "inputs": {"image": "up/1.tif"}}} and made.link == ("9~images~0", 0)


def test_what_several_items_gave_is_joined_in_order(supplier: Supplier, sent: list[bytes]) -> None:
    made = supplier.supply(feed("images", *[np.full((1, 3, 5, 3), number / 255, np.float32) for number in range(5)]))

    def order(node_id: str) -> list[int]:
        node = made.nodes[node_id]
        if node["class_type"] == "LoadImage":
            return [int(pages(sent[int(node["inputs"]["image"][3:-4]) - 1])[0][0, 0, 0])]
        return order(node["inputs"]["image1"][0]) + order(node["inputs"]["image2"][0])

    assert made.link is not None and order(made.link.node_id) == [0, 1, 2, 3, 4]
    assert sum(node["class_type"] == "ImageBatch" for node in made.nodes.values()) == 4


def test_masks_are_taken_out_of_grey_pages(supplier: Supplier, sent: list[bytes]) -> None:
    made = supplier.supply(feed("masks", np.full((2, 3, 5), 0.4, np.float32), np.full((3, 5), 0.2, np.float32)))
    assert [page.shape for page in pages(sent[0])] == [(3, 5), (3, 5)] and len(sent) == 2
    assert made.link == ("9~masks~mask", 0) and made.nodes["9~masks~mask"]["class_type"] == "ImageToMask"


def test_latents_are_joined_here_and_sent_exactly(supplier: Supplier, sent: list[bytes], tmp_path: Path) -> None:
    parts = [{"samples": np.random.default_rng(seed).normal(size=(1, 4, 2, 2)).astype(np.float32)} for seed in range(3)]
    made = supplier.supply(feed("latents", *parts))
    (tmp_path / "sent").write_bytes(sent[0])
    assert read_latent(tmp_path / "sent").tobytes() == np.concatenate([part["samples"] for part in parts]).tobytes()
    assert [node["class_type"] for node in made.nodes.values()] == ["LoadLatent"]


@pytest.mark.parametrize("value", [7, 2**63, 0.1, "text", True])
def test_a_number_or_a_text_is_handed_on_as_it_is(supplier: Supplier, value: object, sent: list[bytes]) -> None:
    assert supplier.supply(feed("value", value)).literal == value and not sent


def test_no_values_are_an_empty_supply(supplier: Supplier) -> None:
    assert supplier.supply(feed("images")).empty
    assert supplier.supply(feed("images", np.zeros((0, 4, 4, 3), np.float32))).empty


@pytest.mark.parametrize(
    ("slot", "values", "said"),
    [
        ("images", [np.zeros((1, 4, 4, 4), np.float32)], "images with 4 channels"),
        ("audio", [{"waveform": np.zeros((1, 2, 3)), "sample_rate": 44100}], "a dict of sample_rate, waveform"),
        ("latents", [{"samples": np.zeros((1, 4, 2, 2)), "noise_mask": np.zeros((1, 8, 8))}], "a dict of noise_mask, samples"),
        ("value", [1, 2], "a list of 2 values"),
        ("value", [None], "a NoneType"),
        ("value", [[1, 2]], "a list"),
    ],
)
def test_what_no_stock_node_loads_is_for_another_worker(supplier: Supplier, slot: str, values: list[Any], said: str) -> None:
    with pytest.raises(WorkerLacks, match=said):
        supplier.supply(feed(slot, *values))


def test_sizes_that_differ_are_refused_and_not_scaled(supplier: Supplier) -> None:
    with pytest.raises(SizesDiffer):
        supplier.supply(feed("images", np.zeros((1, 4, 4, 3)), np.zeros((1, 8, 4, 3))))
    with pytest.raises(BatchDiffers):
        supplier.supply(feed("latents", {"samples": np.zeros((1, 4, 2, 2))}, {"samples": np.zeros((1, 4, 3, 2))}))


def test_pictures_that_are_no_numbers_become_black(tmp_path: Path) -> None:
    write_tiff(tmp_path / "x.tif", np.full((1, 2, 2, 3), np.nan, np.float32))
    assert not pages((tmp_path / "x.tif").read_bytes())[0].any()


# -- the input folder ---------------------------------------------------------------------------------------------------
class Uploads:
    """The input folder of a ComfyUI."""

    def __init__(self) -> None:
        self.there: dict[str, bytes] = {}
        self.times = 0

    def __call__(self, content: Path, name: str, subfolder: str) -> str:
        self.there[f"{subfolder}/{name}"] = content.read_bytes()
        self.times += 1
        return f"{subfolder}/{name}"


def content(folder: Path, text: bytes) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.png"
    path.write_bytes(text)
    return path


def test_each_content_is_sent_once_under_a_name_of_its_own(tmp_path: Path) -> None:
    uploads = Uploads()
    shelf = InputShelf(uploads, "w1", tmp_path / "record", tmp_path / "empty")
    names = [shelf.put(content(tmp_path, text)) for text in (b"a", b"b", b"a")]
    assert names[0] == names[2] != names[1] and uploads.times == 2
    assert all(name.startswith("distributed-comfy/w1/") and name.endswith(".png") for name in names)


def test_beyond_the_limit_the_longest_unused_files_are_emptied_also_those_of_an_earlier_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "LIMIT_BYTES", 10)
    uploads = Uploads()
    shelf = InputShelf(uploads, "w1", tmp_path / "record", tmp_path / "empty")
    first, second = (shelf.put(content(tmp_path, text * 6)) for text in (b"a", b"b"))
    shelf.put(content(tmp_path, b"a" * 6))
    again = InputShelf(uploads, "w1", tmp_path / "record", tmp_path / "empty")
    third = again.put(content(tmp_path, b"c" * 6))
    again.tidy({third})
    assert [uploads.there[name] for name in (first, second, third)] == [b"", b"", b"c" * 6]
    assert again.put(content(tmp_path, b"a" * 6)) == first and uploads.there[first] == b"a" * 6, "it comes back when it is needed"


def test_what_the_present_item_needs_stays_however_large_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "LIMIT_BYTES", 1)
    uploads = Uploads()
    shelf = InputShelf(uploads, "w1", tmp_path / "record", tmp_path / "empty")
    name = shelf.put(content(tmp_path, b"a" * 6))
    shelf.tidy({name})
    assert uploads.there[name] == b"a" * 6


# -- the outcome --------------------------------------------------------------------------------------------------------
def test_the_users_prompt_takes_the_place_of_the_queued_one_in_a_png(tmp_path: Path) -> None:
    about = PngInfo()
    about.add_text("prompt", json.dumps({"queued": 1}))
    about.add_text("workflow", json.dumps({"nodes": []}))
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "x.png", pnginfo=about)
    restore_prompt(tmp_path / "x.png", {"own": 1})
    with Image.open(tmp_path / "x.png") as picture:
        assert json.loads(picture.info["prompt"]) == {"own": 1} and json.loads(picture.info["workflow"]) == {"nodes": []}
        assert picture.getpixel((3, 3)) == (1, 2, 3)


def test_files_are_named_as_if_the_claim_had_no_folder_and_our_nodes_are_left_out() -> None:
    entry = {"filename": "pic_00001_.png", "subfolder": "distributed-comfy\\c1\\sub", "type": "output"}
    shown = own_outputs({"save": {"images": [entry], "text": ["x"]}, "9~images~files": {"images": [entry]}}, {"9~images~files": "9"}, "c1")
    assert shown == {"save": {"images": [{**entry, "subfolder": "sub"}], "text": ["x"]}}


ERROR = {"node_id": "9~images~files", "node_type": "PreviewImage", "exception_message": "x", "traceback": ["t"]}


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("torch.OutOfMemoryError", "CUDA out of memory", OutOfMemory), ("torch.cuda.OutOfMemoryError", "", OutOfMemory),
        ("MemoryError", "", OutOfMemory), ("RuntimeError", "DefaultCPUAllocator: can't allocate memory", OutOfMemory),
        ("ValueError", "out of memory", NodeFailed),
    ],
)  # fmt: skip
def test_memory_exhaustion_is_told_by_the_name_of_the_exception(kind: str, message: str, expected: type) -> None:
    facts = {**ERROR, "exception_type": kind, "exception_message": message}
    error = failure("execution_error", facts, {"9~images~files": "9"}, "cuda:0", "http://x")
    assert type(error) is expected and error.node_id == "9"


def test_an_interrupt_of_somebody_else_is_no_fault_of_the_prompt() -> None:
    error = failure("execution_interrupted", {"node_id": "4", "node_type": "KSampler"}, {}, "cuda:0", "http://x")
    assert isinstance(error, ComfyUIDropped) and error.retryable and "node 4 (KSampler)" in str(error)


@pytest.mark.parametrize("given", [[], [None]])
def test_a_sink_to_which_nothing_or_none_came_is_told_from_a_failing_node(given: list[Any]) -> None:
    assert without_value({**ERROR, "current_inputs": {"images": given}}, {"9~images~files": "9"}) == "9"
    assert without_value({**ERROR, "current_inputs": {"images": ["tensor(1)"]}}, {"9~images~files": "9"}) == ""
    assert without_value({**ERROR, "node_id": "4", "current_inputs": {"images": given}}, {"9~images~files": "9"}) == ""
