"""A worker of another host, with a network of its own: steered by the API and on the page, cut off and back.

`serve` runs in a network namespace, the other host's agent in a second one that joined by the command that the panel gives.
"""
from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import until
from tests.hosts import Host, Network, need_hosts
from tests.panel.panel_page import SHOWN_MS, PanelPage, panel_page
from tests.panel_rig import PanelRig

pytestmark = [pytest.mark.redis, pytest.mark.timeout(300)]

FAR, MORE = "pc2-cpu", "pc2-more"


class HostRig(PanelRig):
    """A `PanelRig` on a host with a network of its own.

    Args:
        host: where.
        folder: for everything.
        ending: gives ports back.
    """

    def __init__(self, host: Host, folder: Path, ending: ExitStack) -> None:
        self.host, self._ending = host, ending
        super().__init__(folder)

    def start(self, log: str, *arguments: str) -> subprocess.Popen[Any]:
        """See `PanelRig.start`."""
        with (self.folder / log).open("ab") as file:
            process = self.host.start(
                sys.executable, "-m", "distributed_comfy", *arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self.folder,
                env=self.line.environment, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def _announced(self) -> tuple[str, str] | None:
        found = super()._announced()
        if found is None:
            return None
        port = self._ending.enter_context(self.host.reached(int(found[0].rpartition(":")[2])))
        return f"http://127.0.0.1:{port}", found[1]


class Far:
    """The other host.

    Args:
        host: where.
        folder: of its user.
        rig: whose cluster it joins.
    """

    def __init__(self, host: Host, folder: Path, rig: PanelRig) -> None:
        self.host, self.folder, self._rig = host, folder, rig
        self.process: subprocess.Popen[Any] | None = None
        folder.mkdir()

    def up(self, *arguments: str) -> None:
        """Be its agent."""
        environment = {
            **self._rig.line.environment, "DC_HOST": "pc2", "HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config"),
            "DC_RUNTIME_DIR": str(self.folder / "run"), "DC_CACHE_DIR": str(self.folder / "cache"),
            "DC_WORKERS_FILE": str(self.folder / "workers.json"),
        }  # fmt: skip
        with (self.folder / "up.log").open("ab") as log:
            self.process = self.host.start(
                sys.executable, "-m", "distributed_comfy", "up", *arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder, env=environment, start_new_session=True,
            )  # fmt: skip

    def end(self) -> None:
        """As somebody does who turns it off."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostRig, Far]]:
    """Two hosts with a cable between them, and a worker on the second."""
    need_hosts()
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "near").mkdir()
    with Network() as net, ExitStack() as ending:
        master, worker = net.host("master"), net.host("worker")
        here, _ = net.cable(master, worker)
        rig = HostRig(master, folder / "near", ending)
        ending.callback(rig.close)
        far = Far(worker, folder / "far", rig)
        command = rig.page.post("/invites", {"name": "pc2", "bind": here})["command"]
        far.up("--join", command.rpartition(" ")[2])
        ending.callback(far.end)
        rig.page.wait_worker(FAR, lambda found: found["state"] == "idle", 120)
        yield rig, far


@pytest.fixture(scope="module")
def panel(hosts: tuple[HostRig, Far], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelPage]:
    """The page of the first host."""
    rig, _ = hosts
    address = f"{rig.page.url}/distributed/v2/ui/#token={rig.page.token}"
    with panel_page(address, tmp_path_factory.mktemp("browser")) as panel:
        yield panel
        assert panel.faults == []


def test_a_worker_of_another_host_is_seen_steered_and_read_like_an_own_one(hosts: tuple[HostRig, Far]) -> None:
    page = hosts[0].page
    found = page.state()["workers"][FAR]
    assert found["host"] == "pc2" and not found["here"] and found["editable"] and found["keeper"] == "agent"
    invite, state = page.get("/invites")["invites"][0], page.state()
    assert 0 < invite["joined_ms"] < invite["seen_ms"] and state["now_ms"] - invite["seen_ms"] < 10_000, "it is there, and not only was"
    log = page.get(f"/workers/{FAR}/log")
    with page.events(f"/workers/{FAR}/log/stream?after={log['last_id']}") as lines:
        assert page.post(f"/workers/{FAR}/orders", {"order": "probe"})["finding"]["level"] == "ok"
        until(lambda: any(name == "lines" for name, _, _ in lines.told))
    assert page.post(f"/workers/{FAR}/orders", {"order": "clear-memory"})["text"]
    assert FAR in page.ask("GET", f"/workers/{FAR}/log/file").headers["Content-Disposition"]
    page.post(f"/workers/{FAR}/orders", {"order": "stop"})
    stopped = page.wait_worker(FAR, lambda found: found["state"] == "stopped")
    assert "start" in stopped["orders"]
    page.post(f"/workers/{FAR}", {"fields": {"tags": ["far"]}}, method="PATCH")
    page.post(f"/workers/{FAR}/orders", {"order": "start"})
    page.wait_worker(FAR, lambda found: found["tags"] == ["far"] and found["state"] == "idle", 120)
    page.post("/workers", {"host": "pc2", "name": MORE, "fields": {"device": "cpu", "enabled": False}})
    page.wait_worker(MORE, lambda found: found["state"] == "disabled")
    page.post(f"/workers/{MORE}", method="DELETE")
    assert until(lambda: page.worker(MORE) is None)


def test_a_worker_of_an_invited_host_is_called_after_it(hosts: tuple[HostRig, Far]) -> None:
    rig, _ = hosts
    for answer in (
        rig.page.ask("POST", "/workers", {"host": "pc2", "name": "gpu2", "fields": {"device": "cpu", "enabled": False}}),
        rig.page.ask("PATCH", f"/workers/{FAR}", {"fields": {}, "name": "foo"}),
    ):
        assert answer.status == 400 and answer.error["fields"] == {"name": "must begin with pc2-, as all names of workers of host pc2"}
    assert rig.page.worker(FAR) is not None


def test_a_host_that_is_cut_off_is_said_to_be_and_comes_back_by_itself(hosts: tuple[HostRig, Far]) -> None:
    rig, far = hosts
    with rig.page.events() as events:
        events.wait(lambda state: state["workers"][FAR]["state"] == "idle")
        far.host.cut("master")
        try:
            lost = events.wait(lambda state: (found := state["workers"].get(FAR, {})).get("state") == "lost" and found, 60)
            assert lost["colour"] == "red" and lost["host"] == "pc2" and "no sign of life" in lost["reason"]
            assert "pc2" in lost["remedy"] and "network" in lost["remedy"]
            gone = events.wait(lambda state: (found := state["hosts"]["pc2"])["gone_ms"] and found)
            time.sleep(10)
            assert events.state["workers"][FAR]["state"] == "lost"  # as long as nobody knows that it is gone for good
            assert events.state["hosts"]["pc2"]["gone_ms"] == gone["gone_ms"]
            invite = rig.page.get("/invites")["invites"][0]
            assert abs(invite["seen_ms"] - gone["gone_ms"]) < 3_000, "when it was heard of, and not when it joined"
            refused = rig.page.ask("POST", f"/workers/{FAR}/orders", {"order": "restart"})
            assert refused.status in (409, 503) and "pc2" in refused.error["message"] and refused.error["remedy"]
        finally:
            far.host.mend("master")
        events.wait(lambda state: state["workers"][FAR]["state"] == "idle", 120)
    assert "Traceback" not in rig.said()


def test_a_worker_of_another_host_is_used_on_the_page(hosts: tuple[HostRig, Far], panel: PanelPage) -> None:
    panel.wait_state(FAR, "idle")
    panel.page.get_by_role("group", name=re.compile("Computer pc2")).or_(panel.page.get_by_label("Computer pc2")).first.wait_for()
    panel.order(FAR, "log")
    panel.page.locator("dialog .log .line").first.wait_for(timeout=SHOWN_MS)
    panel.close_dialogs()
    panel.order(FAR, "clear-memory")
    panel.said(FAR)
    panel.dismiss()
    panel.order(FAR, "stop")
    panel.wait_state(FAR, "stopped")
    panel.order(FAR, "start")
    panel.wait_state(FAR, "idle", timeout_ms=120_000)


def test_a_host_that_is_cut_off_is_red_on_the_page_until_it_is_back(hosts: tuple[HostRig, Far], panel: PanelPage) -> None:
    _, far = hosts
    panel.wait_state(FAR, "idle")
    far.host.cut("master")
    try:
        red = panel.page.locator(f"article.red[data-worker='{FAR}']")
        red.locator(".reason", has_text="no sign of life").wait_for(timeout=SHOWN_MS)
        assert "pc2" in red.locator(".remedy").inner_text() and "network" in red.locator(".remedy").inner_text()
        panel.section("Help")
        panel.page.locator(".card.red h3", has_text=re.compile("^pc2$")).wait_for()
        panel.section("Workers")
        panel.page.locator("[data-gone=pc2]", has_text="Not heard of since").wait_for()
    finally:
        far.host.mend("master")
    panel.wait_state(FAR, "idle", timeout_ms=120_000)
