"""Packages of other projects under our names: ``tasks`` and ``tiler`` are also on the package index, and the first on the path wins.

This is looked at before anything imports those packages, so nothing here does.
"""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import distributed_comfy
from distributed_comfy.errors import ForeignPackage
from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok

NAMES = ("tasks", "tiler")
_ROOT = Path(distributed_comfy.__file__).parent.parent
_CHECK = "packages"


def refuse_foreign_packages() -> None:
    """
    Raises:
        ForeignPackage: one of them is not the one beside this package.
    """
    for name in NAMES:
        if not _finds_ours(name):
            raise ForeignPackage(package=name, path=place_of(name) or "nowhere")


def check_packages() -> list[Finding]:
    """One finding for each foreign package, or one that there is none."""
    found = [_finding(name, place_of(name)) for name in NAMES if not _finds_ours(name)]
    return found or [ok(_CHECK, f"{' and '.join(NAMES)} are those of distributed-comfy, in {_ROOT}")]


def place_of(name: str) -> str:
    """The file or folder from which Python would import it; empty where it finds none."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return ""
    return spec.origin or next(iter(spec.submodule_search_locations or ()), "")


def _finds_ours(name: str) -> bool:
    place = place_of(name)
    return bool(place) and Path(place).parent == _ROOT / name


def _finding(name: str, place: str) -> Finding:
    if not place:
        return fail(_CHECK, f"the package {name} is missing", "install distributed-comfy again")
    found = f"the Python package {name} comes from {place}, not from distributed-comfy"
    if "site-packages" in place or "dist-packages" in place:
        remedy = f"run `{sys.executable} -m pip uninstall {name}` and install distributed-comfy again, or use a clean environment"
    else:
        remedy = "start from another folder, or rename it"
    return fail(_CHECK, found, remedy)
