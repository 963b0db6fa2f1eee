"""A real browser for tests: chromium of the system, headless, with a profile of its own."""
from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run")


def lacks_browser() -> str:
    """What is missing, and what installs it; empty where nothing is."""
    if _program() is None:
        return "chromium is missing: `apt-get install chromium`"
    return "" if importlib.util.find_spec("playwright") else "playwright is missing: `make env`"


@contextmanager
def browser(folder: Path, missing: Callable[[str], NoReturn], *, width: int = 1400, height: int = 900, **options: Any) -> Iterator[Any]:
    """A browser's context, in which pages are opened; `options` are those of playwright.

    Args:
        folder: for its profile, which must not be there yet.
        missing: called with the reason where there is no browser.
    """
    if lacks := lacks_browser():
        missing(lacks)
    playwright = importlib.import_module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(folder / "profile"), executable_path=_program(), headless=True, args=list(_ARGUMENTS),
            viewport={"width": width, "height": height}, **options,
        )  # fmt: skip
        try:
            yield context
        finally:
            context.close()


def _program() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
