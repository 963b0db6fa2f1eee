"""The pictures of the panel's page: `serve` with an embedded Redis, and real workers of the built-in engine on the CPU.

They tell one story and are taken in this order: nothing there, the first computer, one more worker, a second computer that joins, a job,
a worker that is red.  The second computer is a folder of its own on this one, with a host name of its own.
"""
from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keeping_pictures import keep

from tests.command_line import CommandLine, pictures, until
from tests.panel.panel_page import PanelPage, panel_page
from tests.panel_rig import PanelRig, panel_rig

START_MS = 120_000
WIDE = {"width": 1180, "height": 900}
NARROW = {"width": 360, "height": 760}
ITEMS = 24
MARGIN_PX = 20
_BOTTOM = """() => {
  const root = document.querySelector(".distributed-comfy-panel").shadowRoot;
  const parts = root.querySelector("dialog") ? root.querySelectorAll("dialog") : root.querySelectorAll("main *, .menu");
  return Math.max(...[...parts].map((part) => part.getBoundingClientRect().bottom));
}"""

_LEAVE = """() => {
  const { activeElement } = document.querySelector(".distributed-comfy-panel").shadowRoot;
  if (activeElement?.localName === "button") activeElement.blur();
}"""


class PanelStudio:
    """The page, and the computers that it shows.

    Args:
        rig: the first computer.
        panel: its page.
    """

    def __init__(self, rig: PanelRig, panel: PanelPage) -> None:
        self.rig, self.panel = rig, panel
        self.second = CommandLine(made(rig.folder / "pc2"), **{**rig.line.environment, **elsewhere(rig.folder / "pc2")})
        self.joined: subprocess.Popen[str] | None = None
        self.job = ""

    def shoot(self, name: str, *, most: int = 900) -> None:
        """The page as it is, down to the end of what it shows, but no more than that many pixels."""
        self.panel.dismiss()
        self.panel.page.mouse.move(1, 1)
        self.panel.page.evaluate(_LEAVE)
        self.panel.page.wait_for_timeout(400)
        bottom = int(self.panel.page.evaluate(_BOTTOM)) + MARGIN_PX
        keep(self.panel.page.screenshot(), name, min(bottom, most))

    def submit(self, title: str, items: int, **inputs: Any) -> str:
        """A job that takes some time; its id."""
        prompt = self.rig.line.write(f"{title}.json", pictures(**{"steps": 300, "width": 256, "height": 256, **inputs}))
        done = self.rig.line.run("run", prompt, "--items", str(items), "--detach", "--json", "--out", title)
        return str(done.json["job"])

    def join(self, command: str) -> None:
        """Run on the second computer what the page says."""
        self.joined = self.second.start(*command.split()[1:])

    def close(self) -> None:
        """End the second computer."""
        if self.joined is not None:
            self.second.interrupt(self.joined)


# -- pictures --------------------------------------------------------------------------------------------------------------
def empty(studio: PanelStudio) -> None:
    """Nothing there yet."""
    studio.panel.page.locator(".empty").wait_for()
    studio.shoot("panel-empty")
    studio.rig.up()
    studio.panel.wait_state("pc1-cpu", "idle", timeout_ms=START_MS)


def add(studio: PanelStudio) -> None:
    """The dialog that adds a worker, filled in; then its worker."""
    studio.panel.action("add")
    studio.panel.page.locator("dialog").get_by_label("Name", exact=True).fill("pc1-cpu-2")
    studio.shoot("panel-add")
    studio.panel.action("send")
    studio.panel.wait_state("pc1-cpu-2", "idle", timeout_ms=START_MS)
    studio.panel.card("pc1-cpu").locator(".remedy").wait_for(timeout=START_MS)  # it has to leave some CPUs to the other one
    studio.panel.order("pc1-cpu", "restart")
    studio.panel.card("pc1-cpu").locator(".remedy").wait_for(state="detached", timeout=START_MS)
    studio.panel.wait_state("pc1-cpu", "idle", timeout_ms=START_MS)


def join(studio: PanelStudio) -> None:
    """The command for a second computer; then that has joined."""
    panel = studio.panel
    panel.action("add")
    panel.page.get_by_text("Another computer", exact=True).click()
    panel.page.get_by_label("Name of that computer").fill("pc2")
    panel.page.locator("dialog summary").click()
    panel.page.get_by_label("Address of this computer").fill("127.0.0.1")
    panel.action("invite")
    command = panel.page.locator("dialog code", has_text="up --join").inner_text()
    studio.shoot("panel-join")
    studio.join(command)
    panel.page.locator("dialog", has_text="pc2 has joined").wait_for(timeout=START_MS)
    panel.close_dialogs()
    panel.wait_state("pc2-cpu", "idle", timeout_ms=START_MS)


def workers(studio: PanelStudio) -> None:
    """All of them work; the same in the dark, and 360 pixels wide."""
    panel = studio.panel
    studio.job = studio.submit("patterns", ITEMS)
    for name in ("pc1-cpu", "pc1-cpu-2", "pc2-cpu"):
        panel.card(name).locator("img[data-state=shown]").wait_for(timeout=START_MS)
    studio.shoot("panel-workers")
    panel.page.emulate_media(color_scheme="dark")
    studio.shoot("panel-dark")
    panel.page.emulate_media(color_scheme="light")
    panel.page.set_viewport_size(NARROW)
    studio.shoot("panel-narrow")
    panel.page.set_viewport_size(WIDE)


def job(studio: PanelStudio) -> None:
    """In the middle of it."""
    waiting = studio.submit("more-patterns", 8, seed=40)
    studio.panel.section("Jobs")
    studio.panel.page.locator(f".job-row[data-key='{studio.job}']").click()
    until(lambda: studio.panel.page.locator(".cell.done img[data-state=shown]").count() >= ITEMS // 3, START_MS / 1000)
    studio.shoot("panel-job", most=755)
    for each in (studio.job, waiting):
        studio.rig.line.run("jobs", "cancel", each)


def log(studio: PanelStudio) -> None:
    """Of a worker."""
    studio.panel.section("Workers")
    studio.panel.order("pc1-cpu", "log")
    studio.panel.page.locator("dialog .log .line").first.wait_for()
    studio.shoot("panel-log")
    studio.panel.close_dialogs()


def red(studio: PanelStudio) -> None:
    """A worker on a GPU that is not there."""
    panel = studio.panel
    panel.action("add")
    panel.page.locator("dialog").get_by_label("Device", exact=True).fill("cuda:1")
    panel.page.locator("dialog").get_by_label("Name", exact=True).fill("pc1-cuda1")
    panel.action("send")
    panel.page.locator("article.red[data-worker='pc1-cuda1'] .reason").wait_for(timeout=START_MS)
    panel.card("pc1-cuda1").get_by_text("3 restarts").wait_for(timeout=START_MS)
    panel.wait_state("pc1-cuda1", "backing-off")
    studio.shoot("panel-red")
    panel.section("Help")
    panel.page.locator(".card.red h3", has_text="pc1-cuda1").wait_for(timeout=START_MS)
    panel.page.locator("summary").first.click()
    studio.shoot("panel-help")


STORY: tuple[Callable[[PanelStudio], None], ...] = (empty, add, join, workers, job, log, red)


# -- the studio ------------------------------------------------------------------------------------------------------------
@contextmanager
def panel_studio_in(folder: Path) -> Iterator[PanelStudio]:
    """The first computer with `serve` alone, and its page."""
    with panel_rig(folder, LOGNAME="alex") as rig:
        address = f"{rig.page.url}/distributed/v2/ui/#token={rig.page.token}"
        with panel_page(address, folder) as panel:
            panel.page.set_viewport_size(WIDE)
            studio = PanelStudio(rig, panel)
            try:
                yield studio
            finally:
                studio.close()


def take_panel(folder: Path) -> None:
    """All of them."""
    with panel_studio_in(folder) as studio:
        for scene in STORY:
            scene(studio)


def made(folder: Path) -> Path:
    """A folder that is there."""
    folder.mkdir(exist_ok=True)
    return folder


def elsewhere(folder: Path) -> dict[str, str]:
    """What makes a computer of its own of a folder."""
    names = {"DC_RUNTIME_DIR": "runtime", "DC_CACHE_DIR": "cache", "DC_WORKERS_FILE": "workers.json", "TMPDIR": "temporary", "HOME": "home"}
    return {"DC_HOST": "pc2", **{variable: str(folder / name) for variable, name in names.items()}}
