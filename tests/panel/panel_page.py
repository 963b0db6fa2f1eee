"""The panel's page in a browser, as a person uses it."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chromium import browser
from tests.conftest import missing_service

SHOWN_MS = 60_000
ACT_MS = 15_000
_CONTRAST = """() => {
  const root = document.querySelector(".distributed-comfy-panel").shadowRoot;
  const numbers = (text) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, at) => (value * a + below[at] * (255 - a)) / 255);
  const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [r, g, b] = colour.map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement ?? at.getRootNode().host) layers.push(numbers(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const poor = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.nodeValue.trim();
    if (!text || !element.checkVisibility?.() || element.closest(":disabled, [aria-hidden=true], style, .cell-words")) continue;
    const ground = behind(element);
    const [low, high] = [light(ground), light(over(numbers(getComputedStyle(element).color), ground))].sort((one, other) => one - other);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) poor.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return poor;
}"""
_NAMELESS = """() => {
  const root = document.querySelector(".distributed-comfy-panel").shadowRoot;
  const said = (element) => element.textContent.trim() || [...element.querySelectorAll("[aria-label], img[alt]")].some(given);
  const given = (element) =>
    element.getAttribute("aria-label")?.trim() || element.alt?.trim() ||
    element.getAttribute("aria-labelledby")?.split(" ").some((id) => root.getElementById(id)?.textContent.trim());
  const roles = (names) => names.split(" ").map((name) => `[role=${name}]`).join();
  const byContent = "button, a[href], summary," + roles("button tab menuitem link option switch checkbox radio");
  const byLabel =
    "input, select, textarea, dialog, img, video, audio, section, [tabindex='0'], ul[aria-label='']," +
    roles("list group menu radiogroup tablist tabpanel progressbar region img");
  const isNamed = (element) =>
    given(element) || element.labels?.length || (element.matches(byContent) && said(element)) ||
    (element.alt === "" && element.closest("[aria-label]")) || element.closest("[aria-hidden=true]");
  const isRow = (element) => element.matches("[role=listitem]") && element.closest("[role=list]") && said(element);
  return [...root.querySelectorAll([byContent, byLabel, "[aria-posinset]"].join())]
    .filter((element) => element.checkVisibility())
    .filter((element) => !(element.matches("[aria-posinset]") ? isRow(element) : isNamed(element)))
    .map((element) => element.outerHTML.slice(0, 160));
}"""
_WIDER = """() => {
  const root = document.querySelector(".distributed-comfy-panel").shadowRoot;
  const boxes = root.querySelectorAll("dialog, .dialog-body, main, .section, .card, .job-detail");
  const reached = [...root.querySelectorAll("button, input, select, .notice, .menu")]
    .filter((element) => element.checkVisibility() && !element.closest(".window"));
  return [
    document.documentElement.scrollWidth - innerWidth,
    ...[...boxes].map((box) => box.scrollWidth - box.clientWidth),
    ...reached.map((element) => Math.ceil(element.getBoundingClientRect().right - innerWidth)),
  ];
}"""


class PanelPage:
    """One page.

    Args:
        page: of playwright.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        """Errors that no script caught, and what the browser refused to do."""
        page.on("pageerror", lambda error: self.faults.append(error.stack or str(error)))
        page.on("console", lambda message: self.faults.append(message.text) if "Content Security Policy" in message.text else None)

    def open(self, url: str) -> None:
        """Until it shows the server's state."""
        self.page.goto(url)
        self.page.locator(".top .link.open").wait_for(timeout=SHOWN_MS)
        self.page.locator("main .section > *").first.wait_for(timeout=SHOWN_MS)

    def section(self, name: str) -> None:
        """Choose a tab."""
        self.page.get_by_role("tab", name=name).click()
        self.page.get_by_role("tab", name=name, selected=True).wait_for()

    def card(self, worker: str) -> Any:
        """The card of a worker."""
        return self.page.locator(f"article[data-worker='{worker}']")

    def wait_state(self, worker: str, *states: str, timeout_ms: float = SHOWN_MS) -> None:
        """Until a card shows one of these states."""
        wanted = ", ".join(f"article[data-worker='{worker}'] [data-state='{state}']" for state in states)
        self.page.locator(wanted).first.wait_for(timeout=timeout_ms)

    def order(self, worker: str, order: str) -> None:
        """Press a button of a card, or choose from its menu what has none."""
        button = self.card(worker).locator(f"footer > [data-order='{order}']")
        if not button.count():
            self.card(worker).locator("[data-order='more']").click()
            button = self.card(worker).locator(f".menu [data-order='{order}']")
        button.click()

    def said(self, words: str) -> None:
        """Until a message says that."""
        self.page.locator(".notice", has_text=words).first.wait_for(timeout=SHOWN_MS)

    def action(self, name: str) -> None:
        """Press a button that is named for tests."""
        self.page.locator(f"[data-action='{name}']").last.click()

    def close_dialogs(self) -> None:
        """As Escape does."""
        dialogs = self.page.locator("dialog")
        while count := dialogs.count():
            self.page.keyboard.press("Escape")
            dialogs.nth(count - 1).wait_for(state="detached")

    def dismiss(self) -> None:
        """Close what messages there are."""
        self.page.locator(".notice button").evaluate_all("buttons => buttons.forEach((button) => button.click())")

    def field_says(self, name: str, words: str) -> None:
        """Until that stands beside a field of the dialog, as something that is wrong."""
        self.page.locator(f"dialog .field.wrong #field-{name}-words", has_text=words).wait_for()

    def too_pale(self) -> list[str]:
        """Texts with less contrast than people need (WCAG AA, 4.5 to 1)."""
        found: list[str] = self.page.evaluate(_CONTRAST)
        return found

    def nameless(self) -> list[str]:
        """What a screen reader would have no name for."""
        found: list[str] = self.page.evaluate(_NAMELESS)
        return found

    def too_wide(self) -> int:
        """By how many pixels something does not fit."""
        return max(self.page.evaluate(_WIDER))

    def focused(self, attribute: str) -> str | None:
        """An attribute of what has the focus."""
        found: str | None = self.page.evaluate(
            "name => document.querySelector('.distributed-comfy-panel').shadowRoot.activeElement?.getAttribute(name) ?? null", attribute
        )
        return found


@contextmanager
def panel_page(url: str, folder: Path, **options: Any) -> Iterator[PanelPage]:
    """The page at an address."""

    with browser(folder, lambda lacks: missing_service("the tests of the panel's page", lacks), **options) as context:
        context.set_default_timeout(ACT_MS)
        page = PanelPage(context.pages[0] if context.pages else context.new_page())
        page.open(url)
        yield page
