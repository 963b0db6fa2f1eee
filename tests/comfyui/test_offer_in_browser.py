"""The page asks its user once whether ordinary prompts may run on any GPU, and tells what is wrong with the options."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comfyui.browser import ComfyPage, comfy_page
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.ordinary_rig import Crowd

PANEL = ".distributed-comfy-offer"
SHOWN_MS = 15_000


@pytest.fixture(scope="module")
def crowd(comfy: Comfy, packed_python: str, base_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """A master whose user has not been asked yet, and no worker."""
    crowd = Crowd(comfy, packed_python, base_directory, tmp_path_factory.mktemp("offer"))
    try:
        yield crowd.start(ordinary=None)
    finally:
        crowd.close()


@pytest.fixture(scope="module")
def page(crowd: Crowd) -> Iterator[ComfyPage]:
    """Its editor, as at the first start: ComfyUI shows its templates over it."""
    with comfy_page(crowd.server, crowd.server.line.folder) as page:
        yield page


def is_offered(page: ComfyPage) -> bool:
    """Whether the page asks now."""
    return bool(page.page.locator(PANEL).count())


def wait_offer(page: ComfyPage, *, gone: bool = False) -> None:
    """Until the page asks, or asks no more."""
    page.page.locator(PANEL).wait_for(state="detached" if gone else "visible", timeout=SHOWN_MS)


def answer(page: ComfyPage, label: str) -> None:
    """Press a button."""
    page.page.locator(PANEL).get_by_role("button", name=label).click()
    wait_offer(page, gone=True)


def option(crowd: Crowd) -> bool | None:
    """As the pack has it."""
    found: bool | None = crowd.server.status()["options"]["ordinary"]
    return found


def test_the_first_worker_is_offered_and_not_now_lasts_until_comfyui_starts_again(crowd: Crowd, page: ComfyPage) -> None:
    page.page.wait_for_timeout(1000)
    assert not is_offered(page), "there is no worker"
    crowd.start_worker("one")
    crowd.wait_workers(1)
    crowd.server.until(lambda: page.page.wait_for_timeout(100) or crowd.ordinary()["state"] == "offered")
    page.page.get_by_test_id("template-workflows-content").wait_for(state="visible", timeout=SHOWN_MS)
    page.page.wait_for_timeout(4000)
    assert not is_offered(page), "it would lie behind ComfyUI's own dialog"
    page.close_dialogs()
    wait_offer(page)
    page.page.wait_for_timeout(1000)  # it comes in from the edge
    page.page.screenshot(path=str(crowd.server.line.folder / "offer.png"))
    assert "A worker is there" in page.page.locator(PANEL).inner_text()
    answer(page, "Not now")
    assert option(crowd) is None and crowd.ordinary()["state"] == "offered"
    page.open(crowd.server.url)
    page.page.wait_for_timeout(4000)
    assert not is_offered(page)
    page.page.evaluate("() => localStorage.setItem('distributed-comfy.offer-put-off', '1')")  # of a start before this one
    page.open(crowd.server.url)
    wait_offer(page)


def test_yes_is_asked_for_once_and_taken_back_in_all_pages(crowd: Crowd, page: ComfyPage) -> None:
    other = page.another(crowd.server.url)
    wait_offer(other)
    answer(page, "Yes")
    wait_offer(other, gone=True)
    crowd.server.until(lambda: page.page.wait_for_timeout(100) or crowd.ordinary()["state"] == "on")
    assert option(crowd) is True
    page.page.locator(".p-toast-message", has_text="any free worker from now on").wait_for(timeout=SHOWN_MS)
    shown = "() => window.app.extensionManager.setting.get('DistributedComfy.ordinary')"
    assert page.page.evaluate(shown) == "yes"
    page.page.evaluate("() => window.app.extensionManager.setting.set('DistributedComfy.ordinary', 'ask')")
    wait_offer(other)
    answer(other, "Never")
    assert crowd.server.until(lambda: other.page.wait_for_timeout(100) or option(crowd) is False)
    other.open(crowd.server.url)
    other.page.wait_for_timeout(4000)
    assert not is_offered(other)
    assert [fault for each in (page, other) for fault in each.faults if "distributed" in fault.lower()] == []
    other.page.close()


def test_options_that_cannot_be_read_are_told_and_a_change_is_tried_all_the_same(crowd: Crowd, page: ComfyPage) -> None:
    def refuse(route: object) -> None:
        route.fulfill(status=503, json={"error": "the disk is gone"})  # type: ignore[attr-defined]

    page.page.route("**/distributed_comfy/options", refuse)
    page.open(crowd.server.url)
    toast = page.page.locator(".p-toast-message")
    toast.filter(has_text="cannot be read, so the settings may not show what holds: the disk is gone").wait_for(timeout=SHOWN_MS)
    change = "value => window.app.extensionManager.setting.set('DistributedComfy.debug', value)"
    page.page.evaluate(change, True)
    toast.get_by_text("the disk is gone", exact=True).wait_for(timeout=SHOWN_MS)
    page.page.unroute("**/distributed_comfy/options")
    page.page.evaluate(change, False)
    page.page.evaluate(change, True)
    crowd.server.until(lambda: page.page.wait_for_timeout(100) or crowd.server.status()["options"]["debug"] is True)
