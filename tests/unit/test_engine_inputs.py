"""How an item's prompt is made ready for its engine."""
from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from distributed_comfy.engine.inputs import place_inputs, placed_name
from distributed_comfy.errors import FileUnreadable
from distributed_comfy.messages import FileRef, InputFile, Prompt, RunRequest
from distributed_comfy.transport.files import InputCache
from tests.prompts import node, out


class Placing:
    """An input cache and an input folder."""

    def __init__(self, folder: Path) -> None:
        self.cache = InputCache(folder / "cache")
        self.folder = folder / "input"
        self.folder.mkdir()

    def entry(self, name: str, content: bytes, node_id: str = "1", *, cached: bool = True) -> InputFile:
        ref = FileRef(name, "image/png", hashlib.sha256(content).hexdigest(), len(content), "b#1", "input")
        if cached:
            path = self.cache.path_of(ref)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return InputFile(node_id, "image", ref)

    def place(self, prompt: Prompt, *entries: InputFile) -> Prompt:
        return place_inputs(RunRequest("claim7", "j", 0, "whole", prompt, (), {}, input_files=entries), self.cache, self.folder)


@pytest.fixture
def placing(tmp_path: Path) -> Placing:
    return Placing(tmp_path)


def test_a_file_is_placed_by_content_and_named_in_the_prompt(placing: Placing) -> None:
    prompt = {"1": node("LoadImage", image="cats/my cat.png"), "2": node("SaveImage", images=out("1"))}
    entry = placing.entry("cats/my cat.png", b"miaow")
    placed = placing.place(prompt, entry)
    name = placed["1"]["inputs"]["image"]
    assert (placing.folder / name).read_bytes() == b"miaow"
    assert name == placed_name(entry)
    assert name.endswith("-my_cat.png")
    assert prompt["1"]["inputs"]["image"] == "cats/my cat.png"  # the caller's prompt is not changed


def test_two_files_of_one_name_do_not_clash(placing: Placing) -> None:
    prompt = {"1": node("LoadImage", image="a/x.png"), "2": node("LoadImage", image="b/x.png")}
    placed = placing.place(prompt, placing.entry("a/x.png", b"one", "1"), placing.entry("b/x.png", b"two", "2"))
    contents = [(placing.folder / placed[node_id]["inputs"]["image"]).read_bytes() for node_id in ("1", "2")]
    assert contents == [b"one", b"two"]


def test_the_name_is_the_same_for_the_next_item_so_that_caches_hold(placing: Placing) -> None:
    prompt = {"1": node("LoadImage", image="x.png")}
    entry = placing.entry("x.png", b"one")
    first = placing.place(prompt, entry)
    before = (placing.folder / placed_name(entry)).stat().st_mtime_ns
    assert placing.place(prompt, entry) == first
    assert (placing.folder / placed_name(entry)).stat().st_mtime_ns == before


def test_files_of_other_items_go_and_the_users_own_stay(placing: Placing) -> None:
    (placing.folder / "example.png").write_bytes(b"user's")
    placing.place({"1": node("LoadImage", image="x.png")}, placing.entry("x.png", b"one"))
    placing.place({"1": node("LoadImage", image="y.png")}, placing.entry("y.png", b"two"))
    assert sorted(path.name.rpartition("-")[2] for path in placing.folder.iterdir()) == ["example.png", "y.png"]


def test_sinks_and_sources_get_the_claim_and_nothing_else_does(placing: Placing) -> None:
    prompt = {
        "1": node("EmptyImage"),
        "9": node("DistributedSink", images=out("1")),
        "5": node("DistributedSource", claim_id="old", slots="images"),
    }
    placed = placing.place(prompt)
    assert [placed[node_id]["inputs"].get("claim_id") for node_id in ("1", "9", "5")] == [None, "claim7", "claim7"]
    assert "claim_id" not in prompt["9"]["inputs"]


def test_a_content_that_was_not_fetched_is_an_error_with_its_path(placing: Placing) -> None:
    entry = placing.entry("x.png", b"never came", cached=False)
    with pytest.raises(FileUnreadable, match=entry.file.sha256):
        placing.place({"1": node("LoadImage", image="x.png")}, entry)


def test_a_source_with_a_text_of_its_own_keeps_it_so_that_its_value_stays_cached(placing: Placing) -> None:
    prompt = {"1": node("DistributedSource", claim_id="kept:blob#4", slots="value"), "2": node("DistributedSource", claim_id="")}
    placed = placing.place(prompt)
    assert [placed[node_id]["inputs"]["claim_id"] for node_id in ("1", "2")] == ["kept:blob#4", "claim7"]
