"""What the page offers where something does not start, was ended, or is not there: the button, the field and the words that help.

A state of our own: no machine of ours is without an agent, killed and wrongly set up at once.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.panel.many import Many, many_server, now_ms
from tests.panel.panel_page import SHOWN_MS, PanelPage, panel_page

pytestmark = pytest.mark.timeout(120)

HERE, MENDED, OTHER = "pc0-cuda0", "pc0-cuda1", "pc1-cuda0"
CANCELLED = "job-0100"
ARGUMENTS = [
    {"argument": "--lowvram", "value": "", "words": "Less.", "excludes": [], "gpu": True},
    {"argument": "--cache-none", "value": "", "words": "None.", "excludes": [], "gpu": False},
]


@pytest.fixture(scope="module")
def many() -> Many:
    """Two computers; one worker has a wrong folder of ComfyUI, one has old settings, and a job was cancelled."""
    many = Many(5, 110)
    many.workers[MENDED] = {
        **many.workers[MENDED], "state": "failed", "colour": "red", "items": [], "orders": ["start", "disable"], "repair": "comfyui_path",
        "reason": "COMFYUI_PATH: /nope is not ComfyUI's folder", "remedy": "press “Settings” and choose “ComfyUI's folder”",
        "configuration": {"device": "cuda:1", "engine": None, "comfyui_path": "/nope", "comfyui_python": "", "comfyui_args": []},
    }  # fmt: skip
    many.workers[HERE] = {**many.workers[HERE], "outdated": True}
    counts = {"total": 13, "pending": 8, "running": 0, "done": 5, "failed": 0}
    many.jobs[CANCELLED] = {
        **many.jobs[CANCELLED], "state": "cancelled", "ended_ms": now_ms() - 20_000, "counts": counts, "stages": 1, "orders": ["retry"],
    }  # fmt: skip
    many.items = {str(index): {**many.items[str(index)], "state": "done" if index < 5 else "pending", "preview": 0} for index in range(13)}
    many.items["12"].update(kind="last", state="blocked")
    return many


@pytest.fixture(scope="module")
def opened(many: Many, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelPage]:
    """The page of it."""
    with many_server(many, 1.0) as url, panel_page(f"{url}#token=x", tmp_path_factory.mktemp("mending")) as panel:
        yield panel


@pytest.fixture
def panel(opened: PanelPage) -> Iterator[PanelPage]:
    """The same, loaded anew."""
    opened.page.route("**/extra-arguments", lambda route: route.fulfill(json={"arguments": ARGUMENTS}))
    reload(opened)
    yield opened
    opened.page.unroute_all(behavior="ignoreErrors")
    assert opened.faults == []


def reload(panel: PanelPage) -> None:
    """Until it shows what the server now says."""
    panel.page.reload()
    panel.page.locator(".top .link.open").wait_for(timeout=SHOWN_MS)
    panel.section("Workers")


def primary(panel: PanelPage, worker: str) -> list[str]:
    """Labels of the buttons of a card that stand out."""
    found: list[str] = panel.card(worker).locator("footer > button.first").all_inner_texts()
    return found


# -- this computer -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["This computer", "A running ComfyUI"])
def test_no_other_computer_is_taken_for_this_one_while_that_has_no_agent(panel: PanelPage, many: Many, way: str) -> None:
    sent: list[Any] = []
    panel.page.route("**/v2/workers", lambda route: (sent.append(route.request.post_data_json), route.fulfill(json={"text": "added"}))[1])
    many.away.add("pc0")
    try:
        reload(panel)
        panel.action("add")
        dialog = panel.page.locator("dialog")
        dialog.get_by_text(way, exact=True).click()
        dialog.locator("code", has_text="distributed-comfy up").wait_for()
        assert not dialog.locator("[data-action=send]").count(), "there is nothing to add to"
        chooser = dialog.get_by_label("Or on another computer")
        assert chooser.locator("option").all_inner_texts() == ["pc0 (this computer): not now", "pc1"]
        chooser.select_option("pc1")
        dialog.locator("code", has_text="distributed-comfy up").wait_for(state="detached")
        panel.action("send")
        dialog.wait_for(state="detached")
        assert [body["host"] for body in sent] == ["pc1"]
    finally:
        many.away.clear()


def test_this_computer_is_taken_first_where_it_has_an_agent(panel: PanelPage) -> None:
    panel.action("add")
    chooser = panel.page.locator("dialog").get_by_label("Computer", exact=True)
    assert chooser.input_value() == "pc0" and chooser.locator("option").all_inner_texts() == ["pc0 (this computer)", "pc1"]
    panel.close_dialogs()


# -- settings ------------------------------------------------------------------------------------------------------------
def test_the_settings_are_what_stands_out_where_a_start_can_only_fail_and_open_at_the_field(panel: PanelPage) -> None:
    assert primary(panel, MENDED) == ["Settings"]
    assert panel.card(MENDED).locator("footer [data-order=start]").is_visible()
    panel.order(MENDED, "edit")
    panel.page.locator("dialog #field-tree").wait_for()
    assert panel.focused("name") == "tree" and panel.page.locator("#field-tree").input_value() == "/nope"
    sent: list[Any] = []
    panel.page.route("**/workers/*", lambda route: (sent.append(route.request.post_data_json), route.fulfill(json={"text": "changed"}))[1])
    panel.page.locator("#field-tree").fill("/home/you/ComfyUI")
    panel.page.locator("#field-python").fill("/home/you/python")
    panel.action("save-restart")
    panel.page.locator("dialog").wait_for(state="detached")
    assert sent == [{"fields": {"comfyui_path": "/home/you/ComfyUI", "comfyui_python": "/home/you/python"}, "restart": True}]


def test_help_has_the_same_button_first(panel: PanelPage) -> None:
    panel.section("Help")
    card = panel.page.locator("article.card", has_text=MENDED)
    assert card.locator("button.first").all_inner_texts() == ["Settings"]


def test_details_show_where_comfyui_is(panel: PanelPage) -> None:
    panel.order(MENDED, "facts")
    shown = panel.page.locator("dialog .facts")
    assert "ComfyUI's folder\n/nope\nPython of ComfyUI\nchosen by its computer" in shown.inner_text()
    panel.close_dialogs()


def test_arguments_of_gpus_are_not_offered_to_a_worker_on_the_cpu(panel: PanelPage) -> None:
    panel.order(MENDED, "edit")
    offered = panel.page.locator("dialog [data-argument]")
    offered.nth(1).wait_for()
    panel.page.locator("dialog #field-device").fill("cpu")
    panel.page.locator("dialog [data-argument='--lowvram']").wait_for(state="detached")
    assert offered.count() == 1
    panel.close_dialogs()


def test_a_worker_of_a_running_comfyui_is_asked_for_its_address_and_neither_for_a_device_nor_for_cpus(panel: PanelPage, many: Many) -> None:
    before = many.workers[OTHER]
    many.workers[OTHER] = {**before, "engine": "attach", "configuration": {"device": "cpu", "engine": "attach", "comfyui_url": "http://x:1"}}
    try:
        reload(panel)
        panel.order(OTHER, "edit")
        panel.page.locator("dialog #field-url").wait_for()
        for name in ("device", "threads", "args", "tree", "python"):
            assert not panel.page.locator(f"dialog #field-{name}").count()
        panel.close_dialogs()
    finally:
        many.workers[OTHER] = before


def test_a_restart_that_brings_something_has_a_button(panel: PanelPage) -> None:
    assert "Restart" in primary(panel, HERE)
    panel.card(HERE).locator("[data-order=more]").click()
    assert not panel.card(HERE).locator(".menu [data-order=restart]").count()


# -- by keyboard, and read out -------------------------------------------------------------------------------------------
def test_home_and_end_lead_to_the_ends_of_the_menu(panel: PanelPage) -> None:
    panel.card(HERE).locator("[data-order=more]").press("Enter")
    entries = panel.card(HERE).locator(".menu [role=menuitem]")
    names = entries.evaluate_all("entries => entries.map((entry) => entry.dataset.order)")
    panel.page.keyboard.press("End")
    assert panel.focused("data-order") == names[-1] == "remove"
    panel.page.keyboard.press("Home")
    assert panel.focused("data-order") == names[0]


def test_a_dialog_begins_with_what_is_to_be_filled_in(panel: PanelPage) -> None:
    panel.action("add")
    panel.page.locator("dialog").wait_for()
    assert panel.focused("name") == "way"
    panel.close_dialogs()
    panel.order(HERE, "remove")
    panel.page.locator("dialog").wait_for()
    assert panel.page.locator("dialog button:focus").inner_text() == "Back", "not what cannot be undone"
    panel.close_dialogs()


def test_buttons_of_cards_name_their_worker(panel: PanelPage) -> None:
    for name in ("Stop", "Log", "Settings"):
        assert panel.page.get_by_role("button", name=f"{name}: {HERE}", exact=True).is_visible()


def test_the_focus_is_back_where_it_was_when_a_message_is_dismissed(panel: PanelPage) -> None:
    panel.page.route("**/orders", lambda route: route.fulfill(status=409, json={"error": {"code": "x", "message": "No.", "remedy": ""}}))
    button = panel.card(HERE).locator("footer > [data-order=stop]")
    button.press("Enter")
    panel.page.locator(".notice", has_text="No.").wait_for()
    panel.page.locator(".notice button").focus()
    panel.page.keyboard.press("Enter")
    panel.page.locator(".notice").wait_for(state="detached")
    assert panel.focused("data-order") == "stop"


def test_a_public_address_that_could_not_be_opened_is_no_trouble_of_now(panel: PanelPage) -> None:
    script = """async () => {
      const { whatIsWrong } = await import("/distributed/v2/ui/help_view.js");
      const health = { up: true, error: null };
      const error = { code: "tunnel_missing", message: "no cloudflared", remedy: "" };
      const of = (state) => whatIsWrong({
        servers: { state: health, blobs: health }, hosts: {}, workers: {}, master: null, tunnel: { state, error },
      });
      return ["failed", "ended"].map((state) => of(state).length);
    }"""
    assert panel.page.evaluate(script) == [0, 1]


def test_it_is_said_why_there_is_no_command_for_the_cloud_yet(panel: PanelPage) -> None:
    panel.action("add")
    panel.page.get_by_text("Cloud", exact=True).click()
    button = panel.page.locator("dialog [data-action=invite]")
    assert button.is_disabled() and button.get_attribute("aria-describedby") == "needs-tunnel"
    assert "Open the tunnel first" in panel.page.locator("#needs-tunnel").inner_text()
    panel.close_dialogs()


# -- jobs that were ended ------------------------------------------------------------------------------------------------
def look_at_cancelled(panel: PanelPage) -> Any:
    """What shows the cancelled job."""
    panel.section("Jobs")
    panel.page.get_by_label("Find a job").fill(CANCELLED)
    panel.page.locator(f".job-row[data-key='{CANCELLED}']").click()
    shown = panel.page.locator(".job-detail")
    shown.locator(".cell").first.wait_for()
    return shown


def test_a_cancelled_job_goes_on_with_the_rest_which_was_not_made(panel: PanelPage) -> None:
    shown = look_at_cancelled(panel)
    assert shown.locator("[data-order=retry]").inner_text() == "Go on with the rest"
    words = shown.locator(".cell").all_inner_texts()
    assert words[0].strip() == "0 done" and words[11].strip() == "11 not made" and words[12].strip() == "Final stage not made"
    assert "waiting" not in " ".join(words) and "waits" not in " ".join(words)
    assert "5 of 12 items" in shown.locator("header").first.inner_text(), "the final stage was not asked for"


def test_a_job_that_nobody_collects_has_a_button_for_that(panel: PanelPage, many: Many) -> None:
    before = many.jobs[CANCELLED]
    said = {"reason": "its owner is gone", "remedy": "`distributed-comfy jobs attach` takes it over"}
    many.jobs[CANCELLED] = {**before, **said, "state": "parked", "ended_ms": 0, "orders": ["collect", "cancel"]}
    sent: list[Any] = []
    panel.page.route("**/orders", lambda route: (sent.append(route.request.post_data_json), route.fulfill(json={"text": "ok"}))[1])
    try:
        reload(panel)
        shown = look_at_cancelled(panel)
        assert shown.locator(".remedy").inner_text().endswith("“Collect it here” takes it over")
        shown.get_by_role("button", name="Collect it here").click()
        panel.said("ok")
        assert sent == [{"order": "collect"}]
    finally:
        many.jobs[CANCELLED] = before


def test_how_long_ago_a_job_ended_goes_on(panel: PanelPage, many: Many) -> None:
    many.jobs[CANCELLED] = {**many.jobs[CANCELLED], "ended_ms": now_ms() - 8000}
    reload(panel)
    panel.section("Jobs")
    panel.page.get_by_label("Find a job").fill(CANCELLED)
    row = panel.page.locator(f".job-row[data-key='{CANCELLED}']")
    before = row.inner_text()
    assert " s ago" in before
    panel.page.wait_for_function(
        "([key, before]) => document.querySelector('.distributed-comfy-panel').shadowRoot"
        ".querySelector(`.job-row[data-key='${key}']`).innerText !== before",
        arg=[CANCELLED, before], timeout=10_000,
    )  # fmt: skip


def test_files_of_both_ends_of_a_job_are_explained(panel: PanelPage, many: Many) -> None:
    before = many.jobs[CANCELLED]
    many.jobs[CANCELLED] = {**before, "state": "done", "retried": True, "orders": []}
    names = ["ComfyUI_00001_.png", "tiny_00001_.png"]
    files = [{"path": name, "name": name, "media_type": "image/png", "size_bytes": 9, "item": None} for name in names]
    detail = {**many.detail(CANCELLED), "results_host": "pc0", "results_folder": "/out", "results_here": True, "results": files}
    panel.page.route(f"**/jobs/{CANCELLED}", lambda route: route.fulfill(json=detail))
    try:
        reload(panel)
        shown = look_at_cancelled(panel)
        shown.get_by_text("Pictures may therefore be here twice").wait_for()
        assert "12 of 12 items" not in shown.inner_text() and ", and the final stage" in shown.inner_text()
    finally:
        many.jobs[CANCELLED] = before
