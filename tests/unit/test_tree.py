"""What must not be in the tree: paths of one machine, hosts of registries, unfinished work, modules outside the layers."""
from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIS_FILE = Path(__file__).resolve()
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~/-])/(work|root)/|[A-Z]:\\Users\\|/Users/\w|/home/(?!user\b|you\b)\w",
    "a folder beside the checkout": r"\.\./shared",
    "the host of a registry": r"\b(pypi\.org|pythonhosted\.org|deb\.debian\.org|registry\.npmjs\.org)\b",
    "unfinished work": r"\b(TODO|FIXME|XXX|HACK)\b",
    "a conflict marker": r"^(<{7}|>{7}) ",
    "a private key": r"BEGIN [A-Z ]*PRIVATE KEY",
}


def tracked_files() -> list[Path]:
    """Files that are, or are about to be, committed."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout, to tell the project's files from what runs left behind")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in map(ROOT.joinpath, listed.stdout.splitlines()) if path.is_file()]


def readable(path: Path) -> str:
    """The text of a file; empty for a picture or another binary."""
    content = path.read_bytes()
    return "" if b"\0" in content[:4096] else content.decode("utf-8", errors="replace")


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in tracked_files()
        if path not in (THIS_FILE, ROOT / "LICENSE")
        for number, line in enumerate(readable(path).splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", 'open("/work/main/file")'),
        ("a path of one machine", "/root/comfy"),
        ("a folder beside the checkout", "see ../shared/design.md"),
        ("the host of a registry", "https://pypi.org/simple"),
        ("unfinished work", "# TODO: later"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


def test_every_module_stands_in_a_layer() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    layered = set(re.split(r"[\s|]+", config["importlinter:contract:layers"]["layers"].strip()))
    package = ROOT / "distributed_comfy"
    modules = {f"distributed_comfy.{path.stem}" for path in package.glob("*.py") if path.stem != "__init__"}
    packages = {f"distributed_comfy.{path.parent.name}" for path in package.glob("*/__init__.py")}
    assert (modules | packages) - layered == set(), "name the new module in setup.cfg, [importlinter:contract:layers]"


def test_every_python_folder_of_the_project_is_a_package() -> None:
    folders = {path.parent for name in ("distributed_comfy", "tasks", "tiler") for path in (ROOT / name).rglob("*.py")}
    assert [folder.relative_to(ROOT) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_only_the_engine_side_imports_by_name() -> None:
    """The import contracts see ``import`` statements only; by name engines import ComfyUI's modules, and so does the pack in ComfyUI.

    The pack itself imports its own parts by name: a fault in one of them must not keep ComfyUI from starting.
    """
    sources = [path for folder in ("distributed_comfy", "tasks", "tiler") for path in (ROOT / folder).rglob("*.py")]
    by_name = [path for path in sources if re.search(r"\b(import_module|__import__)\b", path.read_text("utf-8"))]
    names = [path.relative_to(ROOT).as_posix() for path in by_name]
    in_comfyui = [f"distributed_comfy/comfyui/{name}.py" for name in ("devices", "host", "pack")]
    assert sorted(name for name in names if not name.startswith("distributed_comfy/engine/")) == in_comfyui


def test_every_script_for_redis_is_shipped() -> None:
    """The package data in setup.cfg names ``state/scripts/*.lua``; a script elsewhere would be missing from a wheel."""
    scripts = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "distributed_comfy").rglob("*.lua")}
    assert scripts <= {"distributed_comfy/state/scripts"}


def test_every_package_of_ours_tells_type_checkers_that_it_is_typed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for name in config["importlinter"]["root_packages"].split():
        assert "py.typed" in config["options.package_data"][name].split() and (ROOT / name / "py.typed").exists()
