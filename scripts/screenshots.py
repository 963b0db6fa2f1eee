"""Takes the pictures of the node pack and of the panel for docs/images and for the template browser, from a real ComfyUI with two workers
on the CPU, and from `serve` (panel_pictures.py).

    python scripts/screenshots.py [--only NAME ...]

Everything is the tests' own: ComfyUI's tree and interpreter (COMFYUI_PATH, DC_COMFYUI_PYTHON), the tiny model, chromium.  Its pictures are
mosaics, because the model is random.  Look at each one before it is committed.
"""
from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keeping_pictures import IMAGES, keep, tell
from panel_pictures import take_panel
from PIL import Image

from distributed_comfy.comfyui.templates import EXAMPLES_FOLDER, SHOWN_AS
from tests.comfyui.browser import ComfyPage, comfy_page
from tests.comfyui.comfy_process import Comfy, make_base_directory
from tests.comfyui.server_rig import ComfyServer, pack_python
from tests.command_line import CommandLine

TIMEOUT_S = 600.0
SIDEBAR_TAB = "[aria-label='Distributed Comfy: workers and jobs']"
WORKERS = ("pc1-cpu", "pc1-cpu-2")
MODEL = "tiny_checkpoint.safetensors"
VIEW = {"width": 1480, "height": 800}
THUMBNAIL_PX = 480
_FIT = """([margin, over]) => {
  const { graph, canvas } = window.app, title = 30;
  const boxes = [...graph.nodes.map((node) => [node.pos[0], node.pos[1] - title, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]),
    ...graph.groups.map((group) => [group.pos[0], group.pos[1], group.pos[0] + group.size[0], group.pos[1] + group.size[1]])];
  const [left, top] = [0, 1].map((side) => Math.min(...boxes.map((box) => box[side])));
  const [right, bottom] = [2, 3].map((side) => Math.max(...boxes.map((box) => box[side])));
  const { left: from, width, height } = canvas.canvas.getBoundingClientRect();
  const start = Math.max(0, (document.querySelector(".distributed-comfy-panel")?.getBoundingClientRect().right ?? 0) - from) + margin;
  const [wide, high] = [width - start - margin, height - margin - over];
  const scale = Math.min(wide / (right - left), high / (bottom - top), 1);
  canvas.ds.scale = scale;
  canvas.ds.offset = [start / scale - left, over / scale - top];
  canvas.setDirty(true, true);
  return canvas.canvas.getBoundingClientRect().top + over + (bottom - top) * scale;
}"""
_BOX = """number => {
  const { ds, canvas } = window.app.canvas, node = window.app.graph.getNodeById(number), title = 30;
  const { left, top } = canvas.getBoundingClientRect();
  const [x, y] = [left + (node.pos[0] + ds.offset[0]) * ds.scale, top + (node.pos[1] - title + ds.offset[1]) * ds.scale];
  return { x, y, width: node.size[0] * ds.scale, height: (node.size[1] + title) * ds.scale };
}"""
_QUIET = {  # and small text is shown as text
    "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}  # fmt: skip


class Studio:
    """The page and what is made of it.

    Args:
        server: with two workers.
        page: its editor.
    """

    def __init__(self, server: ComfyServer, page: ComfyPage) -> None:
        self.server, self.page = server, page
        self.bottom = 0
        """Where the workflow ends, in pixels of the page."""
        for name, value in _QUIET.items():
            page.page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])

    def open(self, name: str, **widgets: dict[str, Any]) -> None:
        """An example with other values: ``_4={"width": 64}`` is of node 4."""
        self.page.open_template(SHOWN_AS, name)
        for number, values in widgets.items():
            self.page.set(int(number.strip("_")), **values)
        self.fit()

    def fit(self) -> None:
        """All of the workflow, right of the sidebar and below the tabs."""
        for _ in range(2):  # ComfyUI restores the view that the file has a moment after the file is open
            self.page.page.wait_for_timeout(1500)
            self.bottom = int(self.page.page.evaluate(_FIT, [24, 64]))
        self.page.page.wait_for_timeout(400)

    def run(self) -> None:
        """To its end, with its pictures there."""
        self.page.listen()
        self.page.press_run()
        self.page.wait_end(TIMEOUT_S)
        self.page.page.wait_for_timeout(1500)

    def shoot(self, name: str, *, whole: bool = False) -> None:
        """The page as it is, into docs/images; all of it, or down to the end of the workflow."""
        keep(self.page.page.screenshot(), name, 0 if whole else self.bottom + 20)

    def thumbnail(self, name: str, *numbers: int) -> None:
        """The square round some nodes, for the template browser."""
        boxes = [self.page.page.evaluate(_BOX, number) for number in numbers]
        left, top = min(box["x"] for box in boxes), min(box["y"] for box in boxes)
        right, bottom = max(box["x"] + box["width"] for box in boxes), max(box["y"] + box["height"] for box in boxes)
        side = max(right - left, bottom - top) + 20
        left, top = (left + right - side) / 2, (top + bottom - side) / 2
        whole = Image.open(io.BytesIO(self.page.page.screenshot())).convert("RGB")
        square = whole.crop((int(left), int(top), int(left + side), int(top + side))).resize((THUMBNAIL_PX, THUMBNAIL_PX))
        path = EXAMPLES_FOLDER / f"{name}.jpg"
        square.save(path, quality=85, optimize=True)
        tell(path)


# -- pictures --------------------------------------------------------------------------------------------------------------
def parallel(studio: Studio) -> None:
    """In the middle of its run, and done."""
    studio.open("parallel_txt2img", _1={"ckpt_name": MODEL}, _4={"width": 96, "height": 96}, _6={"steps": 100}, _8={"items": 6})
    studio.page.listen()
    studio.page.press_run()
    working = "(text) => WORKERS.every((worker) => text.includes(worker))".replace("WORKERS", str(list(WORKERS)))
    look = f"() => window.heardByTest.some(([kind, {{ nodeId, text }}]) => kind === 'progress_text' && ({working})(text) && text[0] >= '1')"
    studio.page.page.wait_for_function(look, timeout=TIMEOUT_S * 1000)
    shown = "() => window.heardByTest.some(([kind, { node }]) => kind.startsWith('b_') && node === '8')"
    studio.page.page.wait_for_function(shown, timeout=TIMEOUT_S * 1000)
    studio.page.page.wait_for_timeout(300)
    studio.shoot("comfyui-parallel")
    studio.page.wait_end(TIMEOUT_S)
    studio.page.page.wait_for_timeout(1500)
    studio.thumbnail("parallel_txt2img", 8, 9)


def upscale(studio: Studio) -> None:
    """Done."""
    sheet = Image.open(IMAGES / "contact-sheet.jpg")
    sheet.crop((46, 473, 271, 697)).resize((384, 384)).save(studio.server.base / "input" / "picture.png")
    studio.page.page.evaluate("() => window.app.refreshComboInNodes()")
    studio.page.page.wait_for_timeout(500)
    tiles = {"tile_width": 256, "tile_height": 256, "denoise": 0.03, "steps": 20}
    studio.open("tiled_upscale", _1={"ckpt_name": MODEL}, _4={"image": "picture.png"}, _6=tiles)
    studio.run()
    studio.fit()
    studio.shoot("comfyui-upscale")
    studio.thumbnail("tiled_upscale", 6, 7)


def orchestrator(studio: Studio) -> None:
    """Done by workers."""
    option(studio, "participate", False)
    studio.open("orchestrator_only", _11={"text": MODEL}, _4={"width": 96, "height": 96}, _8={"items": 4})
    studio.run()
    studio.fit()
    studio.shoot("comfyui-orchestrator")
    studio.thumbnail("orchestrator_only", 11, 2, 5)
    option(studio, "participate", True)


def templates(studio: Studio) -> None:
    """The examples as they are offered."""
    studio.page.browse_templates(SHOWN_AS)
    pictures = "[...document.querySelectorAll('[data-testid^=template-workflow-] img')]"
    studio.page.page.wait_for_function(f"() => {pictures}.filter((image) => image.naturalWidth).length >= 3", timeout=TIMEOUT_S * 1000)
    studio.page.page.wait_for_timeout(2500)  # they fade in
    studio.shoot("comfyui-templates", whole=True)
    studio.page.close_dialogs()


def settings(studio: Studio) -> None:
    """The options."""
    studio.page.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    studio.page.page.get_by_text("Distributed Comfy", exact=True).first.click()
    studio.page.page.wait_for_timeout(800)
    studio.shoot("comfyui-settings", whole=True)
    studio.page.close_dialogs()


def sidebar(studio: Studio) -> None:
    """The panel beside a workflow that runs."""
    studio.open("parallel_txt2img", _1={"ckpt_name": MODEL}, _4={"width": 96, "height": 96}, _6={"steps": 200}, _8={"items": 6})
    studio.server.line.run("workers", "restart", WORKERS[0], "--wait", "120", DC_HOST="pc1")  # with fewer CPUs, as there are two now
    page = studio.page.page
    page.locator(SIDEBAR_TAB).first.click()
    page.locator(".distributed-comfy-panel .top .link.open").wait_for(timeout=TIMEOUT_S * 1000)
    widen(studio, 360)
    for worker in WORKERS:
        page.locator(f"article[data-worker='{worker}'] [data-state=idle]").wait_for(timeout=TIMEOUT_S * 1000)
    studio.fit()
    studio.page.listen()
    studio.page.press_run()
    for worker in WORKERS:
        page.locator(f"article[data-worker='{worker}'] .item img[data-state=shown]").first.wait_for(timeout=TIMEOUT_S * 1000)
    page.wait_for_timeout(300)
    studio.shoot("panel-sidebar", whole=True)
    studio.page.wait_end(TIMEOUT_S)
    page.locator(SIDEBAR_TAB).first.click()


def widen(studio: Studio, width: int) -> None:
    """The sidebar, by its edge."""
    mouse, edge = studio.page.page.mouse, studio.page.page.locator(".p-splitter-gutter").first.bounding_box()
    panel = studio.page.page.locator(".distributed-comfy-panel").bounding_box()
    mouse.move(edge["x"] + edge["width"] / 2, edge["y"] + 300)
    mouse.down()
    mouse.move(panel["x"] + width, edge["y"] + 300, steps=5)
    mouse.up()


PICTURES: dict[str, Callable[[Studio], None]] = {
    "parallel": parallel, "upscale": upscale, "orchestrator": orchestrator, "sidebar": sidebar,
    "templates": templates, "settings": settings,
}  # fmt: skip
"""In this order: the templates show what the others leave behind."""
PANEL = "panel"
"""All pictures of the panel's own page, which are one story."""


def option(studio: Studio, name: str, value: bool) -> None:
    """Switch one, and wait until the pack has it."""
    page = studio.page.page
    page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [f"DistributedComfy.{name}", value])
    studio.server.until(lambda: page.wait_for_timeout(50) or studio.server.status()["options"][name] is value)


# -- the studio ------------------------------------------------------------------------------------------------------------
@contextmanager
def studio_in(folder: Path) -> Iterator[Studio]:
    """A ComfyUI with the pack and two workers, and its page."""
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    comfy = Comfy(root, os.environ.get("DC_COMFYUI_PYTHON") or str(root / ".venv" / "bin" / "python"))
    (folder / "base").mkdir()
    (folder / "run").mkdir()
    server = ComfyServer(comfy, pack_python(comfy), make_base_directory(comfy, folder / "base"), CommandLine(folder / "run"))
    options = server.line.folder / "home" / ".config" / "distributed-comfy" / "comfyui.json"
    options.parent.mkdir(parents=True)
    options.write_text(json.dumps({"ordinary": False}))  # it would ask, in the middle of a picture
    try:
        server.start("--preview-method", "latent2rgb", DC_HOST="pc1")
        server.until(lambda: server.wait_ready() and server.status()["host"]["agent"] == "here")
        for name in WORKERS:
            server.line.run("workers", "add", name, "--device", "cpu", DC_HOST="pc1")
        server.until(lambda: [worker["state"] for worker in server.get("/distributed_comfy/workers")["cluster"]] == ["idle"] * len(WORKERS))
        with comfy_page(server, folder) as page:
            page.page.set_viewport_size(VIEW)
            page.close_dialogs()
            yield Studio(server, page)
    finally:
        server.close()


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description="Takes the pictures of the node pack and of the panel.")
    parser.add_argument("--only", choices=[*PICTURES, PANEL], nargs="+", default=[*PICTURES, PANEL], help="some of them")
    chosen = parser.parse_args().only
    IMAGES.mkdir(exist_ok=True)
    if PANEL in chosen:
        with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
            take_panel(Path(folder))
    if chosen == [PANEL]:
        return
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder, studio_in(Path(folder)) as studio:
        for name, take in PICTURES.items():
            if name in chosen:
                take(studio)


if __name__ == "__main__":
    main()
