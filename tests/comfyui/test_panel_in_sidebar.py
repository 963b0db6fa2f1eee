"""The panel as a tab of ComfyUI's sidebar, in a real browser on a real ComfyUI with workers that run ComfyUI.

The tests follow each other as a person's first hour does: a worker that is there, another one, a job by the Run button, trouble, the end.
"""
from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from distributed_comfy.comfyui.templates import SHOWN_AS
from tests.comfyui.browser import LOAD_TIMEOUT_MS, ComfyPage, comfy_page
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.server_rig import ComfyServer
from tests.command_line import CommandLine
from tests.panel.panel_page import PanelPage

pytestmark = pytest.mark.timeout(600)

WORKER, SECOND = "pc1-cpu", "pc1-second"
SHOWN_MS = 60_000
START_MS = 180_000
STREAM = "/distributed/v2/events"
TAB = "[aria-label='Distributed Comfy: workers and jobs']"
ARGUMENTS = ("--preview-method", "latent2rgb")
NARROWEST_PX, ASIDE_PX = 100, 320
_TOO_WIDE = """() => {
  const root = document.querySelector(".distributed-comfy-panel").shadowRoot;
  return [...root.querySelectorAll(".panel, .tabs, .card, .card *, .toolbar, .menu")]
    .filter((box) => box.checkVisibility() && box.scrollWidth > box.clientWidth + 1 && !box.matches(".ellipsis, button, span, code, pre"))
    .map((box) => `${box.className || box.tagName}: ${box.scrollWidth} in ${box.clientWidth}`);
}"""
_OUTSIDE = """() => {
  const place = document.querySelector(".distributed-comfy-panel");
  const { left, right } = place.getBoundingClientRect();
  return [...place.shadowRoot.querySelectorAll("button, .state, .menu")]
    .filter((each) => each.checkVisibility())
    .filter((each) => each.getBoundingClientRect().left < left - 1 || each.getBoundingClientRect().right > right + 1)
    .map((each) => each.textContent);
}"""


class Streams:
    """Streams of events that the pages of a browser have open; of a page that is closed nothing is heard any more.

    Args:
        context: of playwright.
    """

    def __init__(self, context: Any) -> None:
        self._open: list[Any] = []
        context.on("request", lambda request: self._open.append(request) if urlsplit(request.url).path == STREAM else None)
        for how in ("requestfinished", "requestfailed"):
            context.on(how, lambda request: self._open.remove(request) if request in self._open else None)

    def wait(self, editor: ComfyPage, count: int) -> None:
        """Until there are so many."""
        for _ in range(200):
            there = [request.url for request in self._open if not request.frame.page.is_closed()]
            if len(there) == count:
                return
            editor.page.wait_for_timeout(50)
        pytest.fail(f"{there} are open, not {count}")


@pytest.fixture(scope="module")
def running(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI that only orchestrates, with one worker that waits until it is started."""
    server = ComfyServer(comfy, packed_python, base_directory, CommandLine(tmp_path_factory.mktemp("sidebar")))
    config = server.line.folder / "home" / ".config" / "distributed-comfy"
    config.mkdir(parents=True)
    (config / "workers.json").write_text(json.dumps({"workers": {WORKER: {"device": "cpu"}}}))
    (config / "comfyui.json").write_text(json.dumps({"participate": False, "ordinary": False}))
    server.start(*ARGUMENTS, DC_HOST="pc1")
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
def streams(editor: ComfyPage) -> Streams:
    """Of the whole browser, from before the panel is opened."""
    return Streams(editor.page.context)


@pytest.fixture(scope="module")
def opened(editor: ComfyPage, streams: Streams) -> PanelPage:
    """The panel in the tab that a person opens."""
    return opened_in(editor)


@pytest.fixture
def panel(opened: PanelPage) -> Iterator[PanelPage]:
    """The same; each test begins with the workers, and leaves no error that no script caught."""
    opened.close_dialogs()
    opened.dismiss()
    opened.section("Workers")
    yield opened
    assert opened.faults == []


def opened_in(editor: ComfyPage) -> PanelPage:
    """The panel of a page, whose tab is closed."""
    editor.page.locator(TAB).first.click()
    editor.page.locator(".distributed-comfy-panel .top .link.open").wait_for(timeout=SHOWN_MS)
    return PanelPage(editor.page)


def process_of(server: ComfyServer, worker: str) -> psutil.Process:
    """The process of a worker, whose child is its ComfyUI."""
    named = [each for each in server.line.processes() if each.cmdline()[-4:-1] == ["worker", "--name", worker]]
    assert len(named) == 1, named
    return named[0]


def state_server(server: ComfyServer) -> redis.Redis:
    """The embedded Redis that keeps the state."""
    (written,) = server.line.folder.rglob("runtime.json")
    return redis.Redis.from_url(json.loads(written.read_text())["state_url"], decode_responses=True)


# -- workers -------------------------------------------------------------------------------------------------------------
def test_the_tab_shows_the_workers_without_asking_for_a_token(panel: PanelPage) -> None:
    panel.wait_state(WORKER, "stopped")
    panel.order(WORKER, "start")
    panel.wait_state(WORKER, "idle", timeout_ms=START_MS)


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


def test_a_worker_is_added_once_the_form_is_right_and_its_log_is_live(panel: PanelPage) -> None:
    panel.action("add")
    dialog = panel.page.locator("dialog")
    device, name = dialog.get_by_label("Device", exact=True), dialog.get_by_label("Name", exact=True)
    arguments = dialog.get_by_label("Extra arguments of ComfyUI")
    for place, wrong, words, right in (
        (device, "gpu", "Write cpu", "cpu"), (arguments, "lowvram", "Arguments begin with --", ""), (name, WORKER, "already", SECOND),
    ):  # fmt: skip
        place.fill(wrong)
        panel.action("send")
        dialog.locator(".field.wrong", has_text=words).wait_for()
        place.fill(right)
    panel.action("send")
    panel.wait_state(SECOND, "starting", "idle")
    panel.order(SECOND, "log")
    lines = dialog.locator(".log .line")
    lines.first.wait_for(timeout=SHOWN_MS)
    lines.filter(has_text="is ready").first.wait_for(timeout=START_MS)
    search = panel.page.get_by_label("Search the log")
    search.fill("IS READY")
    assert all("is ready" in line for line in dialog.locator(".log .line:visible").all_inner_texts())
    search.fill("")  # or the first Escape would only do that
    panel.close_dialogs()
    panel.wait_state(SECOND, "idle", timeout_ms=START_MS)


def test_escape_closes_a_dialog_whose_form_has_given_way_to_its_answer(panel: PanelPage) -> None:
    panel.action("add")
    dialog = panel.page.locator("dialog")
    dialog.get_by_text("Another computer").click()
    dialog.get_by_label("Name of that computer").fill("pc2")
    dialog.locator("summary").click()
    dialog.get_by_label("Address of this computer").fill("192.0.2.77")
    panel.action("invite")
    dialog.locator(".banner", has_text="give an address that this computer has").wait_for()
    dialog.get_by_label("Address of this computer").fill("127.0.0.9")  # another test may have the port of 127.0.0.1
    panel.action("invite")
    command = dialog.locator("code", has_text="distributed-comfy up --join")
    command.wait_for(timeout=SHOWN_MS)
    panel.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


# -- jobs ----------------------------------------------------------------------------------------------------------------
def test_a_job_of_the_run_button_is_watched_from_its_card_to_its_pictures(panel: PanelPage, editor: ComfyPage) -> None:
    editor.open_template(SHOWN_AS, "parallel_txt2img")
    editor.set(1, ckpt_name="tiny_checkpoint.safetensors")
    editor.set(4, width=64, height=64)
    editor.set(6, steps=40)
    editor.set(8, items=4)
    editor.press_run()
    panel.wait_state(WORKER, "busy")
    card = panel.card(WORKER)
    card.get_by_text("step").first.wait_for(timeout=SHOWN_MS)
    card.locator(".item img[data-state=shown]").first.wait_for(timeout=SHOWN_MS)
    card.locator(".item .link-button").first.click()
    page = panel.page
    page.locator(".cell").nth(3).wait_for()
    page.locator(".cell.running img[data-state=shown]").first.wait_for(timeout=SHOWN_MS)  # a preview, before there is any picture
    page.locator(".cell.done").first.wait_for(timeout=SHOWN_MS)
    page.locator(".job-detail header [data-state=done]").wait_for(timeout=START_MS)
    files = page.locator(".file")
    files.nth(3).wait_for(timeout=SHOWN_MS)
    files.nth(3).scroll_into_view_if_needed()
    files.nth(3).locator("img[data-state=shown]").wait_for(timeout=SHOWN_MS)
    page.locator(".back").click()


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


def test_memory_of_one_worker_and_of_all_is_cleared(panel: PanelPage, running: ComfyServer) -> None:
    panel.order(WORKER, "clear-memory")
    panel.said(WORKER)
    panel.dismiss()
    panel.action("clear-all")
    panel.said("2 workers unload their models, and so does this ComfyUI.")


# -- how it looks --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("palette", ["dark", "light"])
def test_it_can_be_read_in_the_colours_of_comfyui_however_narrow_it_is(
    panel: PanelPage, editor: ComfyPage, running: ComfyServer, palette: str
) -> None:
    editor.page.evaluate("palette => window.app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
    for width in (NARROWEST_PX, ASIDE_PX):
        widen(editor, width)
        for section in ("Workers", "Jobs", "Master", "Help"):
            panel.section(section)
            editor.page.wait_for_timeout(300)
            editor.page.screenshot(path=str(running.line.folder / f"sidebar-{palette}-{width}-{section}.png"))
            assert (panel.too_pale(), panel.nameless()) == ([], []), (section, width)
            assert editor.page.evaluate(_TOO_WIDE) == editor.page.evaluate(_OUTSIDE) == [], (section, width)
        panel.section("Workers")
        panel.card(WORKER).locator("[data-order='more']").click()
        panel.card(WORKER).locator(".menu").wait_for()
        assert editor.page.evaluate(_OUTSIDE) == [], "the menu"
        editor.page.keyboard.press("Escape")


def widen(editor: ComfyPage, width: int) -> None:
    """Draw the sidebar's edge there, or as near as ComfyUI lets it."""
    mouse, edge = editor.page.mouse, editor.page.locator(".p-splitter-gutter").first.bounding_box()
    panel = editor.page.locator(".distributed-comfy-panel").bounding_box()
    mouse.move(edge["x"] + edge["width"] / 2, edge["y"] + 300)
    mouse.down()
    mouse.move(panel["x"] + width, edge["y"] + 300, steps=5)
    mouse.up()
    editor.page.wait_for_timeout(300)


# -- trouble -------------------------------------------------------------------------------------------------------------
def test_a_killed_worker_goes_red_and_green_again(panel: PanelPage, running: ComfyServer) -> None:
    os.kill(process_of(running, SECOND).pid, signal.SIGKILL)
    red = panel.page.locator(f"article.red[data-worker='{SECOND}']")
    red.locator(".reason").wait_for(timeout=SHOWN_MS)
    red.locator("[data-state=starting]").wait_for(timeout=SHOWN_MS)  # while the one that was killed is on the table for a lease yet
    panel.wait_state(SECOND, "idle", timeout_ms=START_MS)
    assert process_of(running, SECOND).children(), "its ComfyUI runs"
    assert "red" not in (panel.card(SECOND).get_attribute("class") or "")
    panel.card(SECOND).get_by_text("1 restart").wait_for()


def test_why_a_worker_is_red_is_found_from_the_help(panel: PanelPage) -> None:
    panel.order(SECOND, "edit")
    panel.page.locator("dialog").get_by_label("Extra arguments of ComfyUI").fill("--no-such-thing")
    panel.action("save-restart")
    panel.page.locator(".tabs .count").wait_for(timeout=START_MS)
    panel.section("Help")
    wrong = panel.page.locator(".card.red", has=panel.page.locator("h3", has_text=SECOND))
    wrong.get_by_text("unrecognized arguments: --no-such-thing").wait_for(timeout=START_MS)
    assert wrong.locator(".remedy").inner_text()
    panel.section("Workers")
    panel.order(SECOND, "stop")
    panel.wait_state(SECOND, "stopped", timeout_ms=SHOWN_MS)
    panel.page.locator(".tabs .count").wait_for(state="detached")


def test_redis_that_ends_is_said_and_forgotten_when_it_is_back(panel: PanelPage, running: ComfyServer) -> None:
    with state_server(running) as client:
        server = psutil.Process(client.info("server")["process_id"])
    server.suspend()
    banner = panel.page.locator(".panel > .banner.bad")
    banner.wait_for(timeout=SHOWN_MS)
    assert "Redis" in banner.inner_text()
    server.kill()  # its keeper starts another one
    banner.wait_for(state="detached", timeout=SHOWN_MS)
    panel.wait_state(WORKER, "idle", timeout_ms=SHOWN_MS)


# -- pages come and go ---------------------------------------------------------------------------------------------------
def test_two_tabs_of_the_browser_show_the_same_and_one_outlives_the_other(
    panel: PanelPage, editor: ComfyPage, running: ComfyServer, streams: Streams
) -> None:
    streams.wait(editor, 1)
    other = editor.another(running.url)
    try:
        there = PanelPage(other.page)
        if not other.page.locator(".distributed-comfy-panel").count():  # ComfyUI may remember which tab of its sidebar was open
            there = opened_in(other)
        streams.wait(editor, 2)
        there.order(WORKER, "drain")
        panel.wait_state(WORKER, "drained")
        assert "Take items again" in panel.card(WORKER).inner_text()
    finally:
        other.page.close()
    streams.wait(editor, 1)
    panel.order(WORKER, "resume")
    panel.wait_state(WORKER, "idle")


def test_a_closed_tab_follows_nothing_and_opens_again(
    panel: PanelPage, editor: ComfyPage, running: ComfyServer, streams: Streams
) -> None:
    with state_server(running) as client:
        heard = client.pubsub_numpat()  # of steps by the panel, of what else by workers
        editor.page.locator(TAB).first.click()
        editor.page.locator(".distributed-comfy-panel").wait_for(state="detached")
        streams.wait(editor, 0)
        running.until(lambda: client.pubsub_numpat() == heard - 1, 40.0)  # it has ended all streams, and looks for nobody
        opened_in(editor)
        streams.wait(editor, 1)
        running.until(lambda: client.pubsub_numpat() == heard, 20.0)


def test_a_page_finds_the_comfyui_again_that_was_started_anew(panel: PanelPage, running: ComfyServer) -> None:
    port = int(running.url.rpartition(":")[2])
    assert running.stop() in (0, 130)
    banner = panel.page.locator(".panel > .banner.bad")
    banner.wait_for(timeout=SHOWN_MS)
    assert "out of date" in banner.inner_text()
    running.start(*ARGUMENTS, port=port, DC_HOST="pc1")
    banner.wait_for(state="detached", timeout=LOAD_TIMEOUT_MS)
    panel.wait_state(WORKER, "stopped", timeout_ms=SHOWN_MS)  # it ended with ComfyUI


def test_a_page_gets_the_new_token_where_the_old_one_was_taken_back(panel: PanelPage, running: ComfyServer) -> None:
    Path(running.line.run("comfyui", "token", "--json").json["file"]).unlink()
    panel.order(WORKER, "disable")
    panel.wait_state(WORKER, "disabled")
    assert not panel.page.get_by_label("Token").count()
    assert "please report" not in running.log()
