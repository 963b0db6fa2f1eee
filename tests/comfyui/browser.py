"""A real browser on ComfyUI's page: chromium of the system, headless, with a profile of its own."""
from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.server_rig import ComfyServer

LOAD_TIMEOUT_MS = 90_000
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run")
_READY = "() => window.app?.extensionManager && window.app.graph && window.LiteGraph?.registered_node_types?.DistributedValue"


class ComfyPage:
    """ComfyUI's editor.

    Args:
        page: of playwright.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.console: list[str] = []
        self.faults: list[str] = []
        """Errors that no script caught."""
        page.on("console", lambda message: self.console.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(error.stack or str(error)))

    def open(self, url: str) -> None:
        """Until it can be worked with."""
        self.page.goto(url, wait_until="domcontentloaded", timeout=LOAD_TIMEOUT_MS)
        self.page.wait_for_function(_READY, timeout=LOAD_TIMEOUT_MS)

    def another(self, url: str) -> ComfyPage:
        """One more page in the same browser."""
        page = ComfyPage(self.page.context.new_page())
        page.open(url)
        return page

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow, as from a file."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(300)

    def prompt(self) -> dict[str, Any]:
        """What Run would send: a prompt."""
        found: dict[str, Any] = self.page.evaluate("() => window.app.graphToPrompt()")["output"]
        return found

    def saved(self) -> dict[str, Any]:
        """What Save would write: a workflow."""
        found: dict[str, Any] = self.page.evaluate("() => window.app.graph.serialize()")
        return found

    def node(self, number: int, expression: str) -> Any:
        """An expression of JavaScript about ``node``."""
        return self.page.evaluate(f"number => {{ const node = window.app.graph.getNodeById(number); return {expression}; }}", number)

    def close_dialogs(self) -> None:
        """What ComfyUI shows to new users lies over the canvas."""
        for _ in range(2):
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(300)

    def run(self) -> None:
        """Queue what is there, as the button does."""
        self.page.evaluate("() => window.app.queuePrompt(0, 1)")


@contextmanager
def comfy_page(server: ComfyServer, folder: Path) -> Iterator[ComfyPage]:
    """The page of a running server; fails where there is no browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None or importlib.util.find_spec("playwright") is None:
        lacks = "chromium is missing: `apt-get install chromium`" if program is None else "playwright is missing: `make env`"
        pytest.fail(f"the tests with ComfyUI's page need a browser, and {lacks}", pytrace=False)
    playwright = importlib.import_module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(folder / "profile"), executable_path=program, headless=True, args=list(_ARGUMENTS), viewport={"width": 1400, "height": 900}
        )
        try:
            page = ComfyPage(context.pages[0] if context.pages else context.new_page())
            page.open(server.url)
            yield page
        finally:
            context.close()
