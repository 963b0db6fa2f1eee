"""A real browser on ComfyUI's page."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.chromium import browser
from tests.comfyui.server_rig import ComfyServer

LOAD_TIMEOUT_MS = 90_000
_READY = """() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph
  && window.LiteGraph?.registered_node_types?.DistributedValue"""
"""With a workflow of its own open: until then the page may still put an empty one in place of what a test loads."""
_KINDS = (
    "progress", "progress_state", "progress_text", "executed", "execution_success", "execution_error", "b_preview_with_metadata",
)  # fmt: skip
_LISTEN = """kinds => {
  const first = !window.heardByTest;
  window.heardByTest = [];
  for (const kind of first ? kinds : []) {
    window.app.api.addEventListener(kind, ({ detail }) => {
      const facts = detail?.blob ? { node: detail.nodeId, shown: detail.displayNodeId, bytes: detail.blob.size } : detail;
      window.heardByTest.push([kind, facts]);
    });
  }
}"""


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

    def open_template(self, pack: str, name: str) -> None:
        """Open an example out of the template browser, as a user does; it lies in a tab of its own."""
        before = self.page.evaluate("() => window.app.extensionManager.workflow.openWorkflows.length")
        self.browse_templates(pack)
        self.page.get_by_test_id(f"template-workflow-{name}").click()
        opened = "before => window.app.extensionManager.workflow.openWorkflows.length > before"
        self.page.wait_for_function(opened, arg=before, timeout=LOAD_TIMEOUT_MS)
        self.page.get_by_test_id("template-workflows-content").wait_for(state="hidden")
        self.page.wait_for_timeout(500)

    def browse_templates(self, pack: str) -> None:
        """Show the examples of a pack."""
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_test_id("template-workflows-content").get_by_text(pack, exact=True).first.click()

    def set(self, number: int, **values: Any) -> None:
        """Set widgets of a node, as typing into them does."""
        for name, value in values.items():
            change = "([number, name, value]) => { const node = window.app.graph.getNodeById(number);"
            change += " const widget = node.widgets.find((each) => each.name === name); widget.value = value; widget.callback?.(value); }"
            self.page.evaluate(change, [number, name, value])

    def press_run(self) -> None:
        """The button."""
        self.page.get_by_test_id("queue-button").click()

    def listen(self) -> None:
        """Keep what the page hears from now on, for `heard`."""
        self.page.evaluate(_LISTEN, list(_KINDS))

    def heard(self, *kinds: str) -> list[Any]:
        """What it heard of these types, in order; of a preview its node and its size."""
        found: list[tuple[str, Any]] = self.page.evaluate("() => window.heardByTest")
        return [facts for kind, facts in found if kind in kinds]

    def wait_end(self, timeout_s: float = 240.0) -> None:
        """Until a prompt has ended, well or not."""
        ended = "() => window.heardByTest.some(([kind]) => kind === 'execution_success' || kind.endsWith('_error'))"
        self.page.wait_for_function(ended, timeout=timeout_s * 1000)
        assert not self.heard("execution_error"), self.heard("execution_error")

    def pictures(self, number: int) -> list[tuple[int, int, str]]:
        """Width, height and address of each picture that a node shows, once all are there."""
        whole = "window.app.graph.getNodeById(number).imgs"
        self.page.wait_for_function(f"number => {whole}?.length && {whole}.every((image) => image.complete)", arg=number)
        found = self.node(number, "node.imgs.map((image) => [image.naturalWidth, image.naturalHeight, image.src])")
        return [(width, height, source) for width, height, source in found]

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
    with browser(folder, _fail) as context:
        page = ComfyPage(context.pages[0] if context.pages else context.new_page())
        page.open(server.url)
        yield page


def _fail(lacks: str) -> NoReturn:
    pytest.fail(f"the tests with ComfyUI's page need a browser, and {lacks}", pytrace=False)
