"""What a ComfyUI that was killed left in the folders that it shares."""
from __future__ import annotations

from pathlib import Path

import pytest

from distributed_comfy.comfyui.ordinary_leftovers import sweep
from distributed_comfy.comfyui.placed_files import JOURNAL
from distributed_comfy.file_lock import FileLock

PARTIAL = ".0123456789abcdef.part"


class Shared:
    """An output folder with spools in it."""

    def __init__(self, root: Path) -> None:
        self.output = root / "output"
        self.spools = self.output / ".distributed-comfy"

    def spool(self, name: str, *partials: Path) -> Path:
        """One with a journal that names these, which are there."""
        folder = self.spools / name
        (folder / "items").mkdir(parents=True)
        for path in partials:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (folder / JOURNAL).write_text("".join(f"{path}\n" for path in partials))
        return folder

    def sweep(self) -> None:
        sweep(self.spools, [self.output])


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


def test_spools_and_nameless_files_of_the_dead_are_removed_and_so_is_the_empty_folder(shared: Shared) -> None:
    left = shared.output / "sub" / PARTIAL
    shared.spool("ordinary-1", left, shared.output / ".1123456789abcdef.part")
    (shared.output / "ComfyUI_00001_.png").touch()
    shared.sweep()
    assert sorted(path.name for path in shared.output.rglob("*") if path.is_file()) == ["ComfyUI_00001_.png"]
    assert not shared.spools.exists()
    shared.sweep()  # nothing there


def test_what_a_living_comfyui_holds_is_left_alone(shared: Shared) -> None:
    theirs = shared.output / PARTIAL
    spool = shared.spool("ordinary-1", theirs)
    lock = FileLock(spool / "lock")
    assert lock.try_acquire()
    try:
        shared.sweep()
        assert theirs.exists() and (spool / JOURNAL).exists()
    finally:
        lock.release()


def test_only_nameless_files_below_the_folders_are_removed_and_spools_of_jobs_stay(shared: Shared, tmp_path: Path) -> None:
    elsewhere, named = tmp_path / PARTIAL, shared.output / "of_the_user.png"
    (shared.output / "away").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (shared.output / "away" / "link").symlink_to(tmp_path / "secret")
    linked = tmp_path / "secret" / PARTIAL
    shared.spool("ordinary-1", elsewhere, named, shared.output / "away" / "link" / PARTIAL)
    job = shared.spool("0123456789ab")
    shared.sweep()
    assert elsewhere.exists() and named.exists() and linked.exists() and job.exists()
