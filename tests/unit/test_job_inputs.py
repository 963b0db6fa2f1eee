"""Input files of a job: which may be named, and that they are stored again when the blob store lost them."""
from __future__ import annotations

import logging
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import pytest

from distributed_comfy.errors import InputFileMissing, InputFileOutside
from distributed_comfy.orchestrator.input_files import InputFolders, JobInputs, place_within
from distributed_comfy.planning.files import FileReference
from distributed_comfy.transport.memory_blobs import MemoryBlobStore


def test_lost_files_are_stored_again_and_one_that_is_gone_does_not_end_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryBlobStore()
    for name in ("stays.png", "goes.png"):
        (tmp_path / name).write_bytes(name.encode())
    inputs = JobInputs(store, "job", 1000)
    references = [FileReference("1", "image", "goes.png", "input"), FileReference("2", "image", "stays.png", "input")]
    entries = inputs.add(references, InputFolders.of_comfyui({"input": tmp_path}))
    blobs = [entry.file.blob for entry in entries]
    store.unlink(blobs)
    (tmp_path / "goes.png").unlink()
    with caplog.at_level(logging.WARNING):
        inputs.ensure(entries)
    assert list(store.exists(blobs)) == [False, True]
    assert "goes.png" in caplog.text and "stored again" in caplog.text


def loads(name: str, folder: str = "input") -> FileReference:
    return FileReference("1", "image", name, folder)


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """Its folders, each with a picture, and a secret beside them."""
    for name in ("input/sub", "output", "temp", "photos"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("input/a.png", "input/sub/b.png", "output/c.png", "temp/d.png", "photos/e.png", "secret.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


def of_comfyui(base: Path) -> InputFolders:
    return InputFolders.of_comfyui({name: base / name for name in ("input", "output", "temp")})


def test_a_prompt_that_comfyui_was_sent_names_files_of_its_folders(comfyui: Path) -> None:
    folders = of_comfyui(comfyui)
    for name in ("a.png", "sub/b.png", "sub\\b.png", "./a.png", str(comfyui / "input" / "a.png")):
        assert folders.find(loads(name)).is_relative_to(comfyui / "input"), name
    assert folders.find(loads("c.png", "output")) == comfyui / "output" / "c.png"
    with pytest.raises(InputFileMissing):
        folders.find(loads("x" * 300))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt", "sub/../../secret.txt", "..\\secret.txt", "sub/../a.png", "{base}/secret.txt", "/etc/hostname",
        "{base}/input/../secret.txt",
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["input", "output", "temp"])
def test_no_file_outside_of_them_is_sent_to_workers(comfyui: Path, name: str, folder: str) -> None:
    with pytest.raises(InputFileOutside) as raised:
        of_comfyui(comfyui).find(loads(name.format(base=comfyui), folder))
    assert raised.value.fields["node_id"] == "1" and str(comfyui / folder) in str(raised.value)
    with pytest.raises(InputFileOutside):
        JobInputs(MemoryBlobStore(), "job", 1000).add([loads(name.format(base=comfyui), folder)], of_comfyui(comfyui))


def test_a_link_that_the_user_made_inside_is_followed_and_no_step_back_behind_it(comfyui: Path) -> None:
    (comfyui / "input" / "mine").symlink_to(comfyui / "photos")
    (comfyui / "input" / "linked.png").symlink_to(comfyui / "photos" / "e.png")
    assert of_comfyui(comfyui).find(loads("mine/e.png")).read_text() == "photos/e.png"
    assert of_comfyui(comfyui).find(loads("linked.png")).read_text() == "photos/e.png"
    with pytest.raises(InputFileOutside):
        of_comfyui(comfyui).find(loads("mine/../secret.txt"))


def test_who_submits_on_this_host_may_name_any_file_of_theirs(comfyui: Path) -> None:
    folders = InputFolders.of_submitter(comfyui / "input", None)
    assert folders.find(loads("../secret.txt")).samefile(comfyui / "secret.txt")
    assert folders.find(loads(str(comfyui / "secret.txt"))) == comfyui / "secret.txt"


@pytest.mark.parametrize(
    ("folder", "name", "inside"),
    [
        (PureWindowsPath("C:/ComfyUI/input"), "sub/a.png", True),
        (PureWindowsPath("C:/ComfyUI/input"), "c:/comfyui/INPUT/a.png", True),
        (PureWindowsPath("C:/ComfyUI/input"), "C:a.png", True),
        (PureWindowsPath("C:/ComfyUI/input"), "C:../a.png", False),
        (PureWindowsPath("C:/ComfyUI/input"), "C:/pictures/a.png", False),
        (PureWindowsPath("C:/ComfyUI/input"), "D:a.png", False),
        (PureWindowsPath("C:/ComfyUI/input"), "/pictures/a.png", False),
        (PureWindowsPath("C:/ComfyUI/input"), "//host/share/a.png", False),
        (PureWindowsPath("C:/ComfyUI/input"), "//?/C:/pictures/a.png", False),
        (PureWindowsPath("C:/ComfyUI/input"), "sub/.. /../a.png", False),
        (PurePosixPath("/comfy/input"), "C:/a.png", True),
        (PurePosixPath("/comfy/input"), "/comfy/inputs/a.png", False),
    ],
)
def test_drives_shares_and_roots_lead_out(folder: PurePath, name: str, inside: bool) -> None:
    assert (place_within(folder, name) is not None) == inside
