"""The panel's page in a real browser, on `serve` with an embedded Redis and real workers on the CPU.

The tests follow each other as a person's first hour does: nothing there, the first worker, another one, jobs, trouble.
"""
from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.command_line import pictures, until
from tests.panel.panel_page import SHOWN_MS, PanelPage, panel_page
from tests.panel_rig import PanelRig, panel_rig
from tests.tunnel_program import WORDS, lives, stand_in

pytestmark = [pytest.mark.redis, pytest.mark.timeout(300)]

SETTINGS = {"DC_MAX_ATTEMPTS": 1}
FIRST = "pc1-first"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelRig]:
    """A server, and nothing else yet; a file of settings says that items are tried once, and a folder waits for a cloudflared."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    programs = folder / "programs"
    programs.mkdir()
    with panel_rig(folder, DC_CONFIG=str(folder / "settings.json"), PATH=f"{programs}{os.pathsep}{os.environ['PATH']}") as rig:
        yield rig


@pytest.fixture(scope="module")
def address(rig: PanelRig) -> str:
    """Of the page, as `serve` prints it."""
    return f"{rig.page.url}/distributed/v2/ui/#token={rig.page.token}"


@pytest.fixture(scope="module")
def panel(rig: PanelRig, address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelPage]:
    """The page in a window of 1400 by 900."""
    with panel_page(address, tmp_path_factory.mktemp("browser")) as panel:
        yield panel


@pytest.fixture(autouse=True)
def _from_the_workers(panel: PanelPage) -> Iterator[None]:
    """Each test begins with the workers, and leaves no error that no script caught."""
    panel.close_dialogs()
    panel.dismiss()
    panel.section("Workers")
    yield
    assert panel.faults == []


def submit(rig: PanelRig, name: str, prompt: Any, *options: str) -> str:
    """A job whose collector goes on by itself; its id."""
    done = rig.line.run("run", rig.line.write(f"{name}.json", prompt), "--detach", "--json", "--out", name, *options)
    assert done.status == 0, done.err
    return str(done.json["job"])


def long(steps: int = 400, **inputs: Any) -> Any:
    """Each item takes some seconds."""
    return pictures(steps=steps, width=256, height=256, **inputs)


# -- nothing there yet ---------------------------------------------------------------------------------------------------
def test_without_the_token_the_page_asks_for_it(panel: PanelPage, rig: PanelRig, address: str) -> None:
    other = panel.page.context.new_page()
    try:
        other.goto(f"{rig.page.url}/")  # leads to the page
        other.get_by_label("Token").wait_for()
        assert not other.get_by_text("refuses this token").count(), "there is none yet"
        other.get_by_text("distributed-comfy comfyui token").wait_for()
        other.get_by_label("Token").fill("no-such-token")
        other.get_by_role("button", name="Use it").click()
        other.get_by_role("alert").filter(has_text="refuses this token").wait_for()
        assert other.get_by_label("Token").is_visible()
        other.get_by_label("Token").fill(address)
        other.get_by_role("button", name="Use it").click()
        other.locator(".top .link.open").wait_for(timeout=SHOWN_MS)
    finally:
        other.close()


def test_a_token_in_the_address_that_is_not_right_is_called_that(panel: PanelPage, address: str) -> None:
    other = panel.page.context.new_page()
    try:
        other.goto(address[:-4])
        other.get_by_role("alert").filter(has_text="refuses this token").wait_for()
    finally:
        other.close()


def test_the_token_leaves_the_address(panel: PanelPage) -> None:
    assert "token" not in panel.page.url
    panel.page.reload()
    panel.page.locator(".top .link.open").wait_for(timeout=SHOWN_MS)


def test_with_nothing_there_the_page_says_what_to_do_first(panel: PanelPage) -> None:
    empty = panel.page.locator(".empty")
    empty.wait_for()
    assert "distributed-comfy up" in empty.inner_text()
    panel.section("Jobs")
    assert "distributed-comfy run" in panel.page.locator(".empty").inner_text()
    panel.section("Workers")
    panel.action("add")
    assert "distributed-comfy up" in panel.page.locator("dialog").inner_text()
    panel.page.keyboard.press("Escape")
    panel.page.locator("dialog").wait_for(state="detached")


# -- workers -------------------------------------------------------------------------------------------------------------
def test_the_first_worker_appears_by_itself(panel: PanelPage, rig: PanelRig) -> None:
    rig.up(pc1_first={"device": "cpu"})
    panel.wait_state(FIRST, "starting", "idle")
    panel.wait_state(FIRST, "idle", timeout_ms=90_000)
    text = panel.card(FIRST).inner_text()
    assert "Ready" in text and "cpu" in text and "Memory" in text
    assert not panel.page.locator(".empty").count()


def test_bad_input_is_said_beside_its_field(panel: PanelPage) -> None:
    panel.action("add")
    dialog = panel.page.locator("dialog")
    dialog.get_by_label("Device", exact=True).fill("gpu zero")
    dialog.get_by_label("Name", exact=True).fill("Not A Name!")
    panel.action("send")
    panel.field_says("device", "cuda:0")
    panel.field_says("name", "small letters")
    dialog.get_by_label("Name", exact=True).fill(FIRST)
    panel.field_says("name", FIRST)  # it is taken
    dialog.get_by_text("A running ComfyUI").click()
    dialog.get_by_label("Port", exact=True).fill("99999")
    dialog.get_by_label("Host", exact=True).fill("http://x")
    panel.action("send")
    panel.field_says("port", "65535")
    panel.field_says("address", "without http")
    panel.page.keyboard.press("Escape")


def test_the_button_of_a_long_form_stays_in_sight(panel: PanelPage) -> None:
    panel.page.set_viewport_size({"width": 1400, "height": 500})
    try:
        panel.action("add")
        panel.page.locator("dialog [data-argument='--cache-lru']").wait_for()
        button = panel.page.locator("dialog [data-action=send]").bounding_box()
        assert button["y"] + button["height"] <= 500
    finally:
        panel.page.set_viewport_size({"width": 1400, "height": 900})


def test_what_the_server_refuses_stands_beside_the_field_too(panel: PanelPage) -> None:
    panel.order(FIRST, "edit")
    dialog = panel.page.locator("dialog")
    dialog.get_by_label("Extra arguments").fill('--preview-method "auto')
    panel.action("save")
    panel.field_says("args", "shell")


def test_a_wrong_folder_of_comfyui_is_refused_by_its_computer_beside_the_field(panel: PanelPage, rig: PanelRig) -> None:
    panel.order(FIRST, "edit")
    dialog = panel.page.locator("dialog")
    dialog.get_by_label("ComfyUI's folder").fill("/nope/ComfyUI")
    panel.action("save")
    panel.field_says("tree", "/nope/ComfyUI is not ComfyUI's folder")
    dialog.get_by_label("ComfyUI's folder").fill("")
    dialog.get_by_label("Python of ComfyUI").fill("/nope/python")
    panel.action("save")
    panel.field_says("python", "/nope/python is not a program")
    assert rig.page.worker(FIRST)["configuration"]["comfyui_path"] == ""  # type: ignore[index]


def test_common_arguments_are_offered_and_exclude_each_other(panel: PanelPage) -> None:
    panel.order(FIRST, "edit")
    dialog = panel.page.locator("dialog")
    written = dialog.get_by_label("Extra arguments")
    dialog.locator("[data-argument='--cache-lru']").wait_for()
    assert not dialog.locator("[data-argument='--lowvram']").count(), "it has no GPU"
    dialog.get_by_label("Device", exact=True).fill("cuda:0")
    for argument in ("--lowvram", "--reserve-vram"):
        dialog.locator(f"[data-argument='{argument}']").check()
    until(lambda: written.input_value() == "--lowvram --reserve-vram 2")
    dialog.locator("[data-argument='--highvram']").check()
    until(lambda: written.input_value() == "--reserve-vram 2 --highvram")
    until(lambda: not dialog.locator("[data-argument='--lowvram']").is_checked())


def test_a_worker_is_added_edited_and_removed(panel: PanelPage, rig: PanelRig) -> None:
    panel.action("add")
    dialog = panel.page.locator("dialog")
    dialog.get_by_label("Name", exact=True).fill("pc1-second")
    panel.action("send")
    panel.said("pc1-second")
    panel.wait_state("pc1-second", "idle", timeout_ms=90_000)
    panel.order("pc1-second", "edit")
    panel.page.locator("dialog").get_by_label("Tags").fill("big, quick")
    panel.action("save-restart")
    panel.page.locator("dialog").wait_for(state="detached")
    panel.card("pc1-second").get_by_text("big, quick").wait_for(timeout=90_000)
    panel.wait_state("pc1-second", "idle", timeout_ms=90_000)


def test_a_worker_that_is_stopped_gets_another_name(panel: PanelPage, rig: PanelRig) -> None:
    panel.order("pc1-second", "edit")
    name = panel.page.locator("dialog").get_by_label("Name", exact=True)
    assert not name.is_editable() and "press Stop first" in panel.page.locator("#field-name-words").inner_text()
    panel.close_dialogs()
    refused = rig.page.ask("PATCH", "/workers/pc1-second", {"fields": {}, "name": "pc1-third"})
    assert refused.status == 400 and "stop it first" in refused.error["fields"]["name"]
    panel.order("pc1-second", "stop")
    panel.wait_state("pc1-second", "stopped", timeout_ms=90_000)
    panel.order("pc1-second", "edit")
    for wrong, words in (("", "small letters"), ("Third", "small letters"), (FIRST, f"There is a worker {FIRST} already")):
        name.fill(wrong)
        panel.field_says("name", words)
    name.fill("pc1-third")
    panel.action("save")
    panel.said("pc1-third on pc1: changed; it was pc1-second before")
    panel.card("pc1-second").wait_for(state="detached")
    panel.card("pc1-third").get_by_text("big, quick").wait_for()
    panel.order("pc1-third", "start")
    panel.wait_state("pc1-third", "idle", timeout_ms=90_000)
    panel.order("pc1-third", "remove")
    panel.action("confirm")
    panel.card("pc1-third").wait_for(state="detached", timeout=90_000)
    assert set(rig.page.state()["workers"]) == {FIRST}


def test_another_computer_gets_its_command_and_is_shut_out(panel: PanelPage) -> None:
    panel.action("add")
    panel.page.get_by_text("Another computer", exact=True).click()
    panel.page.get_by_label("Name of that computer").fill("pc9")
    panel.page.locator("dialog summary").click()
    panel.page.get_by_label("Address of this computer").fill("127.0.0.8")
    panel.page.locator("dialog [data-action=invite]").click()
    panel.page.locator("dialog code", has_text="distributed-comfy up --join dc").wait_for(timeout=SHOWN_MS)
    panel.page.locator("dialog", has_text="Waiting for pc9").wait_for()
    panel.close_dialogs()
    panel.section("This computer")
    panel.page.get_by_role("button", name="Invited computers").click(timeout=SHOWN_MS)
    panel.page.get_by_role("button", name="Shut pc9 out?").click()
    panel.action("confirm")
    panel.page.locator("dialog", has_text="Nobody is invited").wait_for(timeout=SHOWN_MS)


def test_a_tunnel_that_cannot_be_opened_says_what_is_missing(panel: PanelPage) -> None:
    if shutil.which("cloudflared"):
        pytest.skip("cloudflared is installed here, and would open a public address")
    panel.section("This computer")
    panel.action("open-tunnel")
    panel.page.locator(".tunnel .banner", has_text="cloudflared").wait_for(timeout=SHOWN_MS)


def test_timeouts_are_changed_for_the_next_start(panel: PanelPage, rig: PanelRig) -> None:
    panel.section("This computer")
    panel.action("change-settings")
    dialog = panel.page.locator("dialog")
    silent = dialog.get_by_label("A silent engine is ended after")
    silent.fill("5 minutes")
    dialog.get_by_label("Attempts for each item").fill("2.5")
    panel.action("save")
    panel.field_says("DC_STALL_TIMEOUT_S", "from 30 to 86400")
    silent.fill("1200")
    panel.action("save")
    panel.field_says("DC_MAX_ATTEMPTS", "a whole number")  # so says the server
    dialog.get_by_label("Attempts for each item").fill("1")
    lost = dialog.get_by_label("A worker counts as lost after")
    assert lost.is_disabled() and "environment variable" in dialog.inner_text()
    panel.action("save")
    panel.said("from the next start")
    assert json.loads((rig.folder / "settings.json").read_text()) == {**SETTINGS, "DC_STALL_TIMEOUT_S": 1200}
    panel.action("change-settings")
    dialog.get_by_text("It is 900 until then").wait_for()
    assert silent.input_value() == "1200"
    silent.fill("")
    panel.action("save")
    dialog.wait_for(state="detached")
    assert json.loads((rig.folder / "settings.json").read_text()) == SETTINGS


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with its interpreter in the first line")
def test_a_tunnel_is_opened_ends_is_opened_again_and_closed(panel: PanelPage, rig: PanelRig) -> None:
    programs = rig.folder / "programs"
    stand_in(programs, WORDS, lives=True)
    try:
        panel.section("This computer")
        tunnel = panel.page.locator(".tunnel")
        panel.action("open-tunnel")
        tunnel.get_by_text("wss://four-dashed-word-url.trycloudflare.com").wait_for(timeout=SHOWN_MS)
        assert "Open:" in tunnel.inner_text() and not tunnel.locator(".banner").count()
        os.kill(int((programs / "ran").read_text().partition(" ")[0]), signal.SIGKILL)
        banner = tunnel.locator(".banner")
        banner.wait_for(timeout=SHOWN_MS)
        said = tunnel.inner_text()
        assert "Has ended" in said and "signal 9" in said and "Registered tunnel connection" in said and "open it again" in said
        assert "wss://" not in said
        panel.page.get_by_role("tab", name="Help").get_by_text("1").wait_for()
        panel.action("open-tunnel")
        tunnel.get_by_text("wss://four-dashed-word-url.trycloudflare.com").wait_for(timeout=SHOWN_MS)
        assert not banner.count()
        pid = int((programs / "ran").read_text().partition(" ")[0])
        panel.action("close-tunnel")
        panel.action("confirm")
        tunnel.get_by_text("Closed").wait_for(timeout=SHOWN_MS)
        assert until(lambda: not lives(pid))
    finally:
        (programs / "cloudflared").unlink()


def test_a_gpu_config_is_looked_at_and_taken_over(panel: PanelPage, rig: PanelRig) -> None:
    entry = {"id": "1", "name": "Old Worker", "port": 8189, "cuda_device": 3, "enabled": False, "extra_args": "--lowvram"}
    text = json.dumps({"master": {"host": ""}, "workers": [entry], "settings": {"worker_timeout_seconds": 60}})
    panel.action("import")
    panel.page.locator("dialog input[type=file]").set_input_files(files=[{"name": "gpu_config.json", "mimeType": "", "buffer": b"{"}])
    panel.page.locator("dialog .banner.bad").wait_for(timeout=SHOWN_MS)
    panel.page.locator("dialog input[type=file]").set_input_files(
        files=[{"name": "gpu_config.json", "mimeType": "application/json", "buffer": text.encode()}]
    )
    found = panel.page.locator("dialog", has_text="old-worker")
    found.wait_for(timeout=SHOWN_MS)
    assert "--lowvram" in found.inner_text() and "worker_timeout_seconds" in found.inner_text()
    assert "old-worker" not in rig.page.state()["workers"], "only looked at"
    panel.action("import-now")
    panel.card("old-worker").wait_for(timeout=SHOWN_MS)
    panel.close_dialogs()
    panel.order("old-worker", "remove")
    panel.action("confirm")
    panel.card("old-worker").wait_for(state="detached", timeout=SHOWN_MS)


def test_a_worker_is_stopped_and_started(panel: PanelPage) -> None:
    panel.order(FIRST, "stop")
    panel.wait_state(FIRST, "stopped")
    panel.order(FIRST, "start")
    panel.wait_state(FIRST, "idle", timeout_ms=90_000)
    panel.order(FIRST, "drain")
    panel.wait_state(FIRST, "drained")
    panel.order(FIRST, "resume")
    panel.wait_state(FIRST, "idle")


def test_the_log_is_live_searched_and_saved(panel: PanelPage, rig: PanelRig) -> None:
    panel.order(FIRST, "log")
    box = panel.page.locator("dialog .log")
    box.locator(".line").first.wait_for()
    before = box.locator(".line").count()
    rig.page.post(f"/workers/{FIRST}/orders", {"order": "probe"})
    until(lambda: box.locator(".line").count() > before)
    until(lambda: box.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight < 2"))  # the last one is seen
    word = next(word for word in box.locator(".line span").first.inner_text().split() if len(word) > 3)
    panel.page.get_by_label("Search the log").fill(word.upper())
    shown = box.locator(".line:visible").all_inner_texts()
    assert shown and all(word.lower() in line.lower() for line in shown)
    with panel.page.expect_download() as download:
        panel.page.get_by_role("button", name="Download").click()
    assert word in Path(download.value.path()).read_text()
    panel.page.keyboard.press("Escape")
    panel.page.locator("dialog").wait_for(state="detached")


def test_memory_is_cleared(panel: PanelPage) -> None:
    panel.order(FIRST, "clear-memory")
    panel.said(FIRST)
    panel.dismiss()
    panel.action("clear-all")
    panel.said("1 worker unloads its models")


# -- jobs ----------------------------------------------------------------------------------------------------------------
def test_a_job_is_watched_from_its_card_to_its_files(panel: PanelPage, rig: PanelRig) -> None:
    job = submit(rig, "watched", long(seed=7), "--items", "3")
    panel.wait_state(FIRST, "busy")
    card = panel.card(FIRST)
    card.get_by_text("step").wait_for(timeout=SHOWN_MS)
    card.locator("img[data-state=shown]").wait_for(timeout=SHOWN_MS)
    card.locator(".link-button").click()
    cells = panel.page.locator(".cell")
    cells.nth(2).wait_for()
    panel.page.locator(".cell.done img[data-state=shown]").first.wait_for(timeout=90_000)
    panel.page.locator(".job-detail header [data-state=done]").wait_for(timeout=120_000)
    files = panel.page.locator(".file")
    until(lambda: files.count() == 3)
    with panel.page.expect_download() as download:
        files.first.get_by_role("button", name="Download").click()
    saved = Path(download.value.path()).read_bytes()
    written = {path.name: path.read_bytes() for path in (rig.folder / "watched").glob("*.png")}
    assert saved == written[download.value.suggested_filename] and Image.open(io.BytesIO(saved)).size == (256, 256)
    files.first.get_by_role("button", name="Look at").click()
    panel.page.locator("dialog img[data-state=shown]").wait_for()
    panel.page.keyboard.press("Escape")
    assert rig.page.get(f"/jobs/{job}")["job"]["state"] == "done"


def test_an_estimate_is_no_more_accurate_than_it_can_be(panel: PanelPage) -> None:
    script = "async (given) => { const { roughly } = await import('/distributed/v2/ui/format.js'); return given.map(roughly); }"
    said = panel.page.evaluate(script, [0.2, 8, 43, 59, 176, 1234, 4000])
    assert said == ["5 s", "10 s", "45 s", "1 min", "3 min", "21 min", "1 h 10 min"]


def test_jobs_are_paused_preferred_and_cancelled(panel: PanelPage, rig: PanelRig) -> None:
    first, second = (submit(rig, name, long(2000, seed=20), "--items", "2") for name in ("held", "later"))
    panel.section("Jobs")
    row = panel.page.locator(f".job-row[data-key='{second}']")
    row.get_by_text("in the queue").wait_for(timeout=SHOWN_MS)
    panel.page.locator(f".job-row[data-key='{first}']").click()
    detail = panel.page.locator(".job-detail")
    detail.locator("[data-order=pause]").click()
    detail.locator("header [data-state=paused]").wait_for()
    detail.locator("[data-order=resume]").click()
    detail.locator("header [data-state=running], header [data-state=pending]").wait_for()
    detail.locator("[data-order=priority]").select_option("9")
    until(lambda: rig.page.get(f"/jobs/{first}")["job"]["priority"] == 9)
    for job in (first, second):
        panel.page.locator(f".job-row[data-key='{job}']").click()
        detail.locator("[data-order=cancel]").click()
        panel.action("confirm")
        detail.locator("header [data-state=cancelled]").wait_for()


def test_a_failed_job_shows_node_and_traceback(panel: PanelPage, rig: PanelRig) -> None:
    prompt = pictures(seed=90)
    prompt["load"] = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
    prompt["collect"]["inputs"]["images"] = ["load", 0]
    (rig.folder / "broken.png").write_bytes(b"\x89PNG no picture")
    job = submit(rig, "broken", prompt, "--items", "1")
    panel.section("Jobs")
    panel.page.locator(f".job-row[data-key='{job}'][data-state=failed]").click()
    error = panel.page.locator(".job-detail > .banner.bad")
    error.wait_for(timeout=SHOWN_MS)
    assert "LoadImage" in error.inner_text() and FIRST in error.inner_text()
    error.get_by_text("Traceback").click()
    assert "Error" in error.locator("pre").inner_text()
    panel.page.locator(".cell.failed").click()
    assert "LoadImage" in panel.page.locator(".job-detail .card").inner_text()


def test_a_failed_job_is_tried_again_and_done(panel: PanelPage, rig: PanelRig) -> None:
    job = submit(rig, "again", long(400, seed=300), "--items", "2")
    working = rig.page.wait_worker(FIRST, lambda worker: any(item["job"] == job for item in worker["items"]))
    for engine in psutil.Process(working["pid"]).children():
        engine.kill()
    panel.section("Jobs")
    panel.page.locator(f".job-row[data-key='{job}'][data-state=failed]").click(timeout=SHOWN_MS)
    detail = panel.page.locator(".job-detail")
    banner = detail.locator(":scope > .banner.bad", has_text="signal 9")  # that of the job before may still be there
    banner.wait_for(timeout=SHOWN_MS)
    said = banner.inner_text()
    assert "out of memory" in said and FIRST in said
    detail.locator("[data-order=retry]").click()
    detail.locator("header [data-state=running], header [data-state=pending]").first.wait_for(timeout=SHOWN_MS)
    detail.locator("header [data-state=done]").wait_for(timeout=200_000)
    assert not detail.locator(":scope > .banner.bad").count()
    until(lambda: detail.locator(".file").count() == 2)
    assert len(list((rig.folder / "again").glob("*.png"))) == 2


def test_work_is_interrupted_one_job_and_then_all(panel: PanelPage, rig: PanelRig) -> None:
    panel.wait_state(FIRST, "idle", timeout_ms=90_000)
    jobs = [submit(rig, name, long(3000, seed=400), "--items", "2") for name in ("one", "two", "three")]
    panel.section("This computer")
    work = panel.page.get_by_role("region", name="Work")
    work.get_by_text("3 jobs of yours are not over").wait_for(timeout=SHOWN_MS)
    panel.action("interrupt-job")
    panel.action("confirm")
    panel.said("1 job interrupted")
    work.get_by_text("2 jobs of yours are not over").wait_for(timeout=SHOWN_MS)
    panel.action("interrupt-mine")
    panel.page.locator("dialog", has_text="2 jobs end now").wait_for()
    panel.action("confirm")
    panel.said("2 jobs interrupted")
    work.get_by_text("0 jobs of yours are not over").wait_for(timeout=SHOWN_MS)
    assert {rig.page.get(f"/jobs/{job}")["job"]["state"] for job in jobs} == {"cancelled"}
    panel.section("Workers")
    panel.wait_state(FIRST, "idle", timeout_ms=90_000)


# -- keyboard, narrow, light and dark ------------------------------------------------------------------------------------
def test_everything_is_reached_by_keyboard(panel: PanelPage) -> None:
    keys = panel.page.keyboard
    panel.page.get_by_role("tab", name="Workers").focus()
    for key, tab in (("ArrowRight", "tab-jobs"), ("ArrowLeft", "tab-workers"), ("End", "tab-help"), ("Home", "tab-workers")):
        keys.press(key)
        panel.page.locator(f"#{tab}[aria-selected=true]").wait_for()
        assert panel.focused("id") == tab
    keys.press("Tab")
    assert panel.focused("data-action") == "add"
    panel.card(FIRST).locator("[data-order=more]").focus()
    keys.press("Enter")
    first = until(lambda: panel.focused("role") == "menuitem" and panel.focused("data-order"))
    keys.press("ArrowDown")
    assert panel.focused("role") == "menuitem" and panel.focused("data-order") != first
    keys.press("Escape")
    panel.page.locator(".menu").wait_for(state="detached")
    assert panel.focused("data-order") == "more"
    panel.section("Jobs")
    panel.page.locator(".job-row[tabindex='0']").focus()
    before = panel.focused("data-key")
    keys.press("ArrowDown")
    after = until(lambda: (found := panel.focused("data-key")) != before and found)
    keys.press("Enter")
    panel.page.locator(f".job-row.open[data-key='{after}']").wait_for()
    assert panel.page.get_by_role("main").get_by_role("tabpanel").get_by_role("listitem").get_by_role("button").count() > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_each_section_fits_has_contrast_and_names(panel: PanelPage, width: int, scheme: str) -> None:
    panel.page.set_viewport_size({"width": width, "height": 800})
    panel.page.emulate_media(color_scheme=scheme)
    try:
        for section in ("Workers", "Jobs", "This computer", "Help"):
            panel.section(section)
            panel.page.wait_for_timeout(300)
            assert (panel.too_wide(), panel.too_pale(), panel.nameless()) == (0, [], []), section
        panel.section("Workers")
        for opener in (lambda: panel.action("add"), lambda: panel.order(FIRST, "edit"), lambda: panel.order(FIRST, "log")):
            opener()
            panel.page.locator("dialog[open]").wait_for()
            panel.page.wait_for_timeout(300)
            assert (panel.too_wide(), panel.too_pale(), panel.nameless()) == (0, [], [])
            panel.page.keyboard.press("Escape")
            panel.page.locator("dialog").wait_for(state="detached")
    finally:
        panel.page.set_viewport_size({"width": 1400, "height": 900})


# -- trouble -------------------------------------------------------------------------------------------------------------
def test_a_killed_worker_goes_red_and_green_again(panel: PanelPage, rig: PanelRig) -> None:
    panel.section("Workers")
    worker = rig.page.wait_worker(FIRST, lambda found: found["state"] == "idle")
    os.kill(worker["pid"], signal.SIGKILL)
    red = panel.page.locator(f"article.red[data-worker='{FIRST}']")
    red.wait_for(timeout=SHOWN_MS)
    panel.wait_state(FIRST, "idle", timeout_ms=90_000)
    panel.card(FIRST).get_by_text("1 restart").wait_for()


def test_a_worker_that_cannot_start_says_why_and_what_to_do(panel: PanelPage) -> None:
    panel.section("Workers")
    panel.action("add")
    dialog = panel.page.locator("dialog")
    dialog.get_by_label("Device", exact=True).fill("cuda:7")
    dialog.get_by_label("Name", exact=True).fill("pc1-wrong")
    panel.action("send")
    red = panel.page.locator("article.red[data-worker='pc1-wrong']")
    red.locator(".reason").wait_for(timeout=90_000)
    assert "cuda:7" in red.locator(".reason").inner_text() and red.locator(".remedy").inner_text()
    panel.section("Help")
    panel.page.locator(".card.red h3", has_text="pc1-wrong").wait_for(timeout=90_000)
    panel.section("Workers")
    panel.order("pc1-wrong", "remove")
    panel.action("confirm")
    panel.card("pc1-wrong").wait_for(state="detached", timeout=90_000)


def test_the_doctor_reports_and_probes(panel: PanelPage) -> None:
    panel.section("Help")
    panel.action("doctor")
    panel.page.locator(".finding").first.wait_for(timeout=120_000)
    assert FIRST in panel.page.locator(".report").inner_text()
    panel.page.locator(f"[data-probe='{FIRST}']").click()
    panel.page.locator(".notice.done").first.wait_for(timeout=SHOWN_MS)


def test_redis_that_stops_is_said_and_forgotten_when_it_is_back(panel: PanelPage, rig: PanelRig) -> None:
    server = state_server(rig)
    server.suspend()
    try:
        banner = panel.page.locator(".panel > .banner.bad")
        banner.wait_for(timeout=SHOWN_MS)
        assert "Redis" in banner.inner_text()
        panel.wait_state(FIRST, "unknown")
        assert "Unknown since" in panel.card(FIRST).inner_text() and panel.card(FIRST).locator("[data-order=stop]").is_disabled()
        assert "ready" not in panel.page.locator(".top .summary").inner_text()
        panel.section("Help")
        panel.page.locator(".report.old").wait_for()
        panel.section("This computer")
        panel.page.locator("[data-server=state].red").wait_for(timeout=SHOWN_MS)
    finally:
        server.resume()
    panel.page.locator(".panel > .banner.bad").wait_for(state="detached", timeout=SHOWN_MS)
    panel.page.locator("[data-server=state].green").wait_for()
    panel.section("Workers")
    panel.wait_state(FIRST, "idle", timeout_ms=90_000)


def test_a_server_that_ends_is_said_and_found_again(panel: PanelPage, rig: PanelRig) -> None:
    port = rig.page.address.rpartition(":")[2]
    rig.end(rig.serve)
    banner = panel.page.locator(".panel > .banner.bad")
    banner.wait_for(timeout=SHOWN_MS)
    assert "out of date" in banner.inner_text()
    rig.serve = rig.start("serve.log", "serve", "--port", port)
    banner.wait_for(state="detached", timeout=SHOWN_MS)
    panel.wait_state(FIRST, "idle", timeout_ms=90_000)


def state_server(rig: PanelRig) -> psutil.Process:
    """The embedded Redis that keeps the state."""
    port = int(rig.page.state()["servers"]["shown"].rpartition(":")[2].partition("/")[0])
    found = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN and each.laddr.port == port]
    assert found and found[0].pid, f"nobody listens on {port}"
    return psutil.Process(found[0].pid)
