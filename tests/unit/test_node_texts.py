"""What stands at the nodes of jobs, as the page keeps it."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui.node_texts import NodeTexts
from distributed_comfy.comfyui.progress import JobProgress
from tests.collected_jobs import job_record


class Page:
    """Keeps the last text of each node, as ComfyUI's page does; it is the host of the texts."""

    def __init__(self) -> None:
        self.client_id: str | None = "tab"
        self.texts: dict[str, str] = {}
        self.clients: list[str] = []

    def show_text(self, text: str, node_id: str, client_id: str) -> None:
        self.texts[node_id] = text
        self.clients.append(client_id)


def job(items: int) -> Any:
    progress = JobProgress()
    progress.begin(job_record(items))
    return SimpleNamespace(progress=progress)


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def texts(page: Page) -> NodeTexts:
    host: Any = page
    return NodeTexts(host)


@pytest.mark.parametrize(("ending", "said"), [("interrupted", "interrupted at 0 of 3 items"), ("error", "failed at 0 of 3 items")])
def test_every_node_of_the_job_says_how_its_prompt_ended(page: Page, texts: NodeTexts, ending: str, said: str) -> None:
    one, other = job(3), job(3)
    for node_id, of in (("8", one), ("9", one), ("up", other)):
        texts.show(of, node_id, "0 of 3 items; pc1 1/2")
    page.client_id = "the tab of the next prompt"
    texts.over(one, ending)
    texts.over(one, ending)
    assert page.texts == {"8": said, "9": said, "up": "0 of 3 items; pc1 1/2"}
    assert page.clients == ["tab"] * 5


def test_the_text_of_a_job_that_is_done_stays(page: Page, texts: NodeTexts) -> None:
    done = job(3)
    texts.show(done, "9", "3 of 3 items")
    texts.stays("9")
    texts.over(done, "error")  # a node behind it failed
    assert page.texts == {"9": "3 of 3 items"}


def test_the_next_run_takes_the_place_of_what_the_last_one_left(page: Page, texts: NodeTexts) -> None:
    before = job(3)
    texts.show(before, "9", "0 of 3 items")
    texts.show(job(3), "9", "")
    assert page.texts == {"9": "starting"}
    texts.over(before, "interrupted")  # told late
    assert page.texts == {"9": "starting"}


def test_a_script_without_a_websocket_is_sent_nothing(page: Page, texts: NodeTexts) -> None:
    page.client_id = None
    of_a_script = job(3)
    texts.show(of_a_script, "9", "0 of 3 items")
    texts.over(of_a_script, "error")
    assert page.texts == {}
