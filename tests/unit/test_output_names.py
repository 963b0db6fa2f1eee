"""Names of saved files: inside the folder, never taken twice, counted on as ComfyUI counts."""
from __future__ import annotations

import errno
import os
import tempfile
import threading
from pathlib import Path, PurePosixPath

import pytest

from distributed_comfy.collector.naming import FolderNames, safe_relative, writing
from distributed_comfy.errors import OutputUnwritable


def finished(beside: Path) -> Path:
    """A file that waits for its name."""
    beside.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(dir=beside)
    os.write(descriptor, b"whole")
    os.close(descriptor)
    return Path(path)


def put(folder: Path, name: str) -> str:
    with tempfile.TemporaryDirectory(dir=folder.parent) as waiting:
        path = FolderNames(folder).put(finished(Path(waiting)), safe_relative(name))
        assert path.read_bytes() == b"whole" and not list(Path(waiting).iterdir())
    return path.relative_to(folder).as_posix()


def test_a_free_name_is_kept_with_its_subfolder(tmp_path: Path) -> None:
    assert put(tmp_path, "portraits/day 1/ComfyUI_00001_.png") == "portraits/day 1/ComfyUI_00001_.png"


@pytest.mark.parametrize(
    ("taken", "given"),
    [
        (["a_00001_.png"], "a_00002_.png"),
        (["a_00001_.png", "a_00007_.png"], "a_00008_.png"),
        (["a_00001_.png", "A_00009_.PNG"], "a_00010_.png"),
        (["a_00001_.png", "a_00003.mp4"], "a_00004_.png"),
        (["a_00001_.png", "ab_00005_.png"], "a_00002_.png"),
    ],
)
def test_a_counted_name_that_is_taken_is_counted_on(tmp_path: Path, taken: list[str], given: str) -> None:
    for name in taken:
        (tmp_path / name).write_text(name)
    assert put(tmp_path, "a_00001_.png") == given
    assert all((tmp_path / name).read_text() == name for name in taken)


def test_a_name_without_a_count_gets_a_number(tmp_path: Path) -> None:
    assert [put(tmp_path, "grid.tar.gz") for _ in range(3)] == ["grid.tar.gz", "grid.tar-1.gz", "grid.tar-2.gz"]


def test_the_next_of_a_count_goes_on_where_the_folder_stands(tmp_path: Path) -> None:
    (tmp_path / "ComfyUI_00041_.png").write_text("")
    names = FolderNames(tmp_path)
    waiting = tmp_path / "waiting"
    assert [names.put_next(finished(waiting), "ComfyUI", ".png").name for _ in range(2)] == ["ComfyUI_00042_.png", "ComfyUI_00043_.png"]
    assert FolderNames(tmp_path / "new").put_next(finished(waiting), "ComfyUI", ".png").name == "ComfyUI_00001_.png"


def test_every_name_is_told_before_it_is_tried(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("taken")
    told: list[tuple[str, bool]] = []
    file = finished(tmp_path / "waiting")
    path = FolderNames(tmp_path).put(file, PurePosixPath("a.png"), lambda path: told.append((path.name, path.exists())))
    assert told == [("a.png", True), ("a-1.png", False)] and path.name == "a-1.png"


def test_a_disk_without_links_serves_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert [put(tmp_path, "a.png") for _ in range(2)] == ["a.png", "a-1.png"]


def test_two_processes_and_many_threads_never_get_one_name(tmp_path: Path) -> None:
    given: list[Path] = []

    out = tmp_path / "out"

    def take(names: FolderNames) -> None:
        given.extend([names.put(finished(tmp_path / "waiting"), PurePosixPath("a_00001_.png")) for _ in range(25)])

    two = [FolderNames(out), FolderNames(out)]  # each knows only its own counts, as two processes would
    threads = [threading.Thread(target=take, args=(two[number % 2],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == 200 == len(list(out.iterdir()))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\Windows\\system.ini", "C_/Windows/system.ini"),
        ("..\\..\\x.png", "x.png"),
        ("a/./b//c.png", "a/b/c.png"),
        (".. /x.png", "x.png"),
        ("a.png.", "a.png"),
        ("a\x00b\n.png", "a_b_.png"),
        ("a.png:stream", "a.png_stream"),
        ("con", "_con"),
        ("sub/NUL.png", "sub/_NUL.png"),
        ("", "unnamed"),
        ("..", "unnamed"),
        ("/", "unnamed"),
        ("\ud800.png", "?.png".replace("?", "_")),
        ("größe 图.png", "größe 图.png"),
    ],
)
def test_hostile_names_stay_in_the_folder(tmp_path: Path, name: str, safe: str) -> None:
    given = put(tmp_path / "out", name)
    assert given == safe
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_that_is_too_long_is_cut_and_keeps_its_ending(tmp_path: Path) -> None:
    given = put(tmp_path, "ü" * 300 + ".png")
    assert given.endswith("ü.png")
    assert len(given.encode()) <= 200


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(OutputUnwritable):
        put(tmp_path / "out", "sub/a.png")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_in_place_of_a_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "outside.png")
    assert put(tmp_path / "out", "a.png") == "a-1.png"
    assert not (tmp_path / "outside.png").exists()


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EACCES, os.strerror(errno.EACCES))],
)
def test_an_error_of_the_system_becomes_one_with_a_remedy(tmp_path: Path, number: int, reason: str) -> None:
    with pytest.raises(OutputUnwritable) as caught, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.reason == reason
    assert "choose another folder" in str(caught.value)
