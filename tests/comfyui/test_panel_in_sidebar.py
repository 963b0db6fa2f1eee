"""The panel as a tab of ComfyUI's sidebar, in a real browser on a real ComfyUI."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.browser import ComfyPage, comfy_page
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.server_rig import ComfyServer
from tests.command_line import CommandLine
from tests.panel.panel_page import PanelPage
from tests.prompts import node, out

pytestmark = pytest.mark.timeout(600)

WORKER = "pc1-cpu"
SHOWN_MS = 60_000


@pytest.fixture(scope="module")
def running(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI with one worker of the built-in engine, which waits until it is started."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("sidebar")))
    config = server.line.folder / "home" / ".config" / "distributed-comfy"
    config.mkdir(parents=True)
    (config / "workers.json").write_text(json.dumps({"workers": {WORKER: {"device": "cpu"}}}))
    (config / "comfyui.json").write_text(json.dumps({"participate": False, "ordinary": False}))
    server.start(DC_HOST="pc1")
    server.wait_ready()
    server.until(lambda: server.status()["host"]["agent"] == "here")
    yield server
    server.close()


@pytest.fixture(scope="module")
def editor(running: ComfyServer) -> Iterator[ComfyPage]:
    """ComfyUI's editor."""
    with comfy_page(running, running.line.folder) as editor:
        mask = editor.page.locator(".p-dialog-mask")  # what ComfyUI shows to new users comes when it has loaded that
        mask.first.wait_for(timeout=SHOWN_MS)
        while mask.count():
            editor.close_dialogs()
        yield editor


@pytest.fixture(scope="module")
def panel(editor: ComfyPage) -> PanelPage:
    """The panel in the tab that a person opens."""
    editor.page.locator(".distributed-comfy-tab-button, [aria-label='Distributed Comfy: workers and jobs']").first.click()
    editor.page.locator(".distributed-comfy-panel .top .link.open").wait_for(timeout=SHOWN_MS)
    return PanelPage(editor.page)


def test_the_tab_shows_the_workers_without_asking_for_a_token(panel: PanelPage) -> None:
    panel.wait_state(WORKER, "stopped")
    panel.order(WORKER, "start")
    panel.wait_state(WORKER, "idle", timeout_ms=120_000)


def test_what_is_typed_in_the_panel_does_nothing_to_the_graph(panel: PanelPage, editor: ComfyPage) -> None:
    before = editor.saved()["nodes"]
    panel.order(WORKER, "edit")
    field = panel.page.locator("dialog").get_by_label("Tags")
    field.fill("")
    editor.page.evaluate("() => window.app.canvas.selectItems?.() ?? window.app.canvas.selectNodes()")
    field.press_sequentially("rqbg")
    field.press("Backspace")
    field.press("Delete")
    assert field.input_value() == "rqb" and editor.saved()["nodes"] == before
    panel.close_dialogs()


def test_the_master_takes_part_or_only_orchestrates(panel: PanelPage, running: ComfyServer) -> None:
    panel.section("Master")
    switch = panel.page.locator("[data-option=participate]")
    switch.wait_for()
    assert not switch.is_checked()
    switch.click()
    running.until(lambda: running.status()["options"]["participate"])
    panel.page.locator("[data-option=participate]:checked:enabled").wait_for()
    switch.click()
    running.until(lambda: not running.status()["options"]["participate"])
    panel.page.locator("[data-option=participate]:not(:checked):enabled").wait_for()


def test_a_prompt_of_this_comfyui_is_a_job_with_its_pictures(panel: PanelPage, running: ComfyServer) -> None:
    panel.section("Jobs")
    running.queue(prompt(11))
    panel.page.locator(".job-row").first.click(timeout=SHOWN_MS)
    panel.page.locator(".job-detail header [data-state=done]").wait_for(timeout=120_000)
    panel.page.locator(".file img[data-state=shown]").first.wait_for(timeout=SHOWN_MS)
    panel.page.locator(".back").click()


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_it_can_be_read_in_the_colours_of_comfyui(panel: PanelPage, editor: ComfyPage, running: ComfyServer, palette: str) -> None:
    editor.page.evaluate("palette => window.app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
    editor.page.wait_for_timeout(500)
    for section in ("Workers", "Jobs", "Master", "Help"):
        panel.section(section)
        editor.page.wait_for_timeout(300)
        editor.page.screenshot(path=str(running.line.folder / f"sidebar-{palette}-{section}.png"))
        assert (panel.too_pale(), panel.nameless()) == ([], []), section


def test_a_closed_tab_follows_nothing_and_opens_again(panel: PanelPage, editor: ComfyPage) -> None:
    button = editor.page.locator("[aria-label='Distributed Comfy: workers and jobs']").first
    button.click()
    editor.page.locator(".distributed-comfy-panel").wait_for(state="detached")
    button.click()
    panel.page.locator(".distributed-comfy-panel .top .link.open").wait_for(timeout=SHOWN_MS)
    assert panel.faults == []


def prompt(seed: int) -> dict[str, Any]:
    """seed -> picture -> collector -> file."""
    return {
        "1": node("DistributedSeed", seed=seed),
        "2": node("EmptyImage", width=64, height=64, batch_size=1, color=out("1")),
        "3": node("DistributedCollector", images=out("2"), load_balance=False),
        "4": node("SaveImage", images=out("3"), filename_prefix="panel"),
    }
