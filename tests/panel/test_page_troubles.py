"""The page when its server falters: streams that break, jobs that are gone, files that come late and pictures that are gone.

A server of our own tells the state, because a real one does none of this when it is asked to; what it answers besides is set by each test.
"""
from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from typing import Any

import pytest

from tests.command_line import until
from tests.panel.many import Many, many_server, now_ms, picture
from tests.panel.panel_page import SHOWN_MS, PanelPage, panel_page

pytestmark = pytest.mark.timeout(120)

ENDED, LONG_AGO = "job-0100", "job-0101"
_FOLLOWED = """async ([words, patience]) => {
  const { followEvents } = await import("/distributed/v2/ui/events.js");
  const said = [];
  let signal;
  const start = (way) => {
    signal.addEventListener("abort", () => way.error(signal.reason)); // as that of fetch does
    if (words) way.enqueue(new TextEncoder().encode(words));
  };
  const body = () => new ReadableStream({ start });
  const open = async (given) => ((signal = given), new Response(body()));
  await new Promise((done) => {
    const state = (name, error) => {
      said.push([name, error?.code ?? "", signal?.aborted ?? false]);
      if (name === "broken") done(stream.end());
    };
    const stream = followEvents(open, { event: () => {}, state }, patience);
  });
  return said;
}"""
_OUT_OF_SIGHT = """async () => {
  const { followEvents } = await import("/distributed/v2/ui/events.js");
  const signals = [];
  const reach = (signal) => (signals.push(signal), new Promise((_, fail) => signal.addEventListener("abort", () => fail(signal.reason))));
  const look = (state) => {
    Object.defineProperty(document, "visibilityState", { configurable: true, get: () => state });
    document.dispatchEvent(new Event("visibilitychange"));
  };
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const seen = () => signals.map((signal) => signal.aborted);
  const states = [];
  const stream = followEvents(reach, { event: () => {}, state: (name) => states.push(name) }, { hidden_ms: 100 });
  look("hidden");
  await wait(20);
  const before = seen();
  await wait(1500);
  const hidden = seen();
  look("visible");
  await wait(100);
  const back = seen();
  stream.end();
  delete document.visibilityState;
  return { before, hidden, back, after: seen(), states: [...new Set(states)] };
}"""
_WRONG = """async (one) => {
  const { whatIsWrong } = await import("/distributed/v2/ui/help_view.js");
  const down = { up: false, error: null };
  return whatIsWrong({ servers: { one, state: down, blobs: down }, workers: {}, master: null, tunnel: {} }).map(({ what }) => what);
}"""
_READ = """async () => {
  const { Server } = await import("/distributed/v2/ui/requests.js");
  const none = async () => "";
  const server = new Server(new URL("/distributed/v2/", location.href), { get: none, renew: none });
  window.read = server.read("never").then(() => "came", (error) => [error.code, error.message]);
}"""


@pytest.fixture(scope="module")
def many() -> Many:
    """A small cluster, in which one job has just ended."""
    many = Many(2, 110)
    for job, ended_ms in ((ENDED, now_ms()), (LONG_AGO, now_ms() - 3_600_000)):
        many.jobs[job] = {**many.jobs[job], "state": "done", "ended_ms": ended_ms}
    return many


@pytest.fixture(scope="module")
def opened(many: Many, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelPage]:
    """The page of it."""
    with many_server(many) as url, panel_page(f"{url}#token=x", tmp_path_factory.mktemp("troubles")) as panel:
        yield panel


@pytest.fixture
def panel(opened: PanelPage) -> Iterator[PanelPage]:
    """The same, loaded anew, whose server answers as ever."""
    opened.page.reload()
    opened.page.locator(".top .link.open").wait_for(timeout=SHOWN_MS)
    yield opened
    opened.page.unroute_all(behavior="ignoreErrors")
    assert opened.faults == []


def look_at(panel: PanelPage, job: str) -> Any:
    """Open a job; what shows it."""
    panel.section("Jobs")
    panel.page.get_by_label("Find a job").fill(job)
    panel.page.locator(f".job-row[data-key='{job}']").click()
    return panel.page.locator(".job-detail")


def file(name: str, media_type: str, item: int | None = None) -> dict[str, Any]:
    """One of a job's files."""
    return {"path": name, "name": name, "media_type": media_type, "size_bytes": 2048, "item": item}


def failure(code: str, message: str) -> dict[str, Any]:
    """What a server answers that does not do it."""
    return {"error": {"code": code, "message": message, "remedy": ""}}


def with_files(panel: PanelPage, many: Many, job: str, files: list[dict[str, Any]]) -> None:
    """Let a job have these."""
    detail = {**many.detail(job), "results_host": "pc0", "results_folder": "/out", "results_here": True, "results": files}
    panel.page.route(f"**/jobs/{job}", lambda route: route.fulfill(json=detail))


# -- streams -------------------------------------------------------------------------------------------------------------
def test_a_stream_that_cannot_be_read_lets_its_connection_go(panel: PanelPage) -> None:
    said = panel.page.evaluate(_FOLLOWED, ['event: change\ndata: {"seconds": Infinity}\n\n', {}])
    assert said == [["connecting", "", False], ["open", "", False], ["broken", "page.unreadable", True]]


def test_a_stream_without_a_word_is_taken_for_broken(panel: PanelPage) -> None:
    said = panel.page.evaluate(_FOLLOWED, ["", {"silence_ms": 200}])
    assert said[-1] == ["broken", "page.silent", True]


def test_a_page_that_nobody_sees_ends_its_stream_until_it_is_seen(panel: PanelPage) -> None:
    found = panel.page.evaluate(_OUT_OF_SIGHT)
    assert found["before"] == [False]
    assert found["hidden"] == [True]
    assert found["back"] == [True, False]
    assert found["after"] == [True, True] and found["states"] == ["connecting"]


def test_an_answer_that_does_not_come_is_said(panel: PanelPage) -> None:
    other = panel.page.context.new_page()
    try:
        other.goto(panel.page.url)
        other.route("**/never", lambda _route: None)
        other.clock.install()
        other.evaluate(_READ)
        other.clock.run_for(31_000)
        assert other.evaluate("window.read") == ["page.slow", "The server has not answered within 30 s."]
    finally:
        other.close()


def test_one_server_that_is_away_is_one_thing_that_is_wrong(panel: PanelPage) -> None:
    assert panel.page.evaluate(_WRONG, True) == ["Queues, jobs, pictures and tensors"]
    assert panel.page.evaluate(_WRONG, False) == ["Queues and jobs", "Pictures and tensors on their way"]


# -- jobs that are gone, Redis that is away ------------------------------------------------------------------------------
def test_a_job_that_is_gone_leaves_the_rest_of_the_page_live(panel: PanelPage) -> None:
    said = failure("job_unknown", "no job of that name")
    for place in (f"**/events?job={ENDED}", f"**/jobs/{ENDED}"):
        panel.page.route(place, lambda route: route.fulfill(status=404, json=said))
    detail = look_at(panel, ENDED)
    detail.get_by_role("alert").filter(has_text="no job of that name").wait_for()
    panel.page.locator(".top .link.open").wait_for()
    assert not panel.page.locator(".panel > .banner.bad").count()
    assert not detail.locator("[data-order]").count()


def test_a_job_that_redis_cannot_tell_of_now_is_asked_for_again(panel: PanelPage) -> None:
    asked = f"**/events?job={LONG_AGO}"
    panel.page.route(asked, lambda route: route.fulfill(status=503, json=failure("redis_unavailable", "Redis is away")))
    look_at(panel, LONG_AGO).locator(".cell").first.wait_for()
    panel.page.locator(".top .link.open").wait_for()
    panel.page.unroute(asked)
    with panel.page.expect_response(lambda response: response.url.endswith(f"/events?job={LONG_AGO}"), timeout=SHOWN_MS) as response:
        pass
    assert response.value.status == 200
    panel.page.locator(".top .link.open").wait_for()


# -- files and pictures --------------------------------------------------------------------------------------------------
def test_files_that_come_after_the_end_are_shown_and_a_failed_read_is_said(panel: PanelPage, many: Many) -> None:
    reads: list[int] = []

    def answer(route: Any) -> None:
        reads.append(len(reads))
        if len(reads) == 2:
            route.fulfill(status=503, json=failure("redis_unavailable", "Redis is away"))
            return
        names = ["one.png", "two.png", "three.png"][: 0 if len(reads) == 1 else len(reads) - 1]
        files = [file(name, "application/octet-stream") for name in names]
        route.fulfill(json={**many.detail(ENDED), "results_host": "pc0", "results_here": True, "results": files})

    panel.page.route(f"**/jobs/{ENDED}", answer)
    detail = look_at(panel, ENDED)
    detail.locator(".results", has_text="None yet").wait_for()
    detail.get_by_role("alert").filter(has_text="Redis is away").wait_for()
    detail.locator(".file").nth(2).wait_for(timeout=SHOWN_MS)
    assert not detail.get_by_role("alert").count()
    panel.page.wait_for_timeout(17_000)
    assert len(reads) == 6, "two looks more find no more files, and are the last ones"


def test_files_of_another_computer_are_not_looked_for_here(panel: PanelPage, many: Many) -> None:
    detail = {**many.detail(ENDED), "results_host": "pc7"}
    panel.page.route(f"**/jobs/{ENDED}", lambda route: route.fulfill(json=detail))
    assert "They are on pc7" in look_at(panel, ENDED).locator(".results").inner_text()
    detail["results_host"] = "pc0"
    look_at(panel, LONG_AGO)
    assert "None yet" in look_at(panel, ENDED).locator(".results").inner_text()


def test_a_preview_that_is_gone_is_no_empty_box(panel: PanelPage, many: Many) -> None:
    panel.page.route("**/preview?*", lambda route: route.fulfill(status=404, json=failure("picture_not_here", "it is gone")))
    panel.page.route("**/results/*", lambda route: route.fulfill(body=picture(1, 1), content_type="image/jpeg"))
    with_files(panel, many, LONG_AGO, [file("own.jpg", "image/jpeg", item=3)])
    detail = look_at(panel, LONG_AGO)
    detail.locator(".cell[data-key='3']").click()
    detail.locator(".card img.large[data-state=shown]").wait_for()
    detail.locator(".cell[data-key='2']").click()
    detail.locator(".card", has_text="among the files below").wait_for()
    assert not detail.locator(".card img").count()


def test_a_picture_that_failed_is_tried_again(panel: PanelPage, many: Many) -> None:
    tried: list[int] = []

    def answer(route: Any) -> None:
        tried.append(1)
        if len(tried) == 1:
            route.fulfill(status=503, json=failure("redis_unavailable", "Redis is away"))
        else:
            route.fulfill(body=picture(1, 1), content_type="image/jpeg")

    panel.page.route("**/results/*", answer)
    with_files(panel, many, LONG_AGO, [file("one.jpg", "image/jpeg")])
    detail = look_at(panel, LONG_AGO)
    detail.locator(".file img[data-state=missing]").wait_for(state="attached")
    detail.locator(".file img[data-state=shown]").wait_for()


def test_a_sound_is_played(panel: PanelPage, many: Many) -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(8000)
        written.writeframes(bytes(16_000))
    panel.page.route("**/results/*", lambda route: route.fulfill(body=sound.getvalue(), content_type="audio/wav"))
    with_files(panel, many, LONG_AGO, [file("one.wav", "audio/wav")])
    look_at(panel, LONG_AGO).get_by_role("button", name="Play one.wav").click()
    player = panel.page.locator("dialog audio")
    player.wait_for()
    until(lambda: player.evaluate("player => player.duration") == 1)
    panel.close_dialogs()
