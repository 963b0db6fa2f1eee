"""An agent that reaches the cluster through the relay alone: it starts its workers, is seen, and obeys."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_comfy.relay.client import relay_urls
from tasks.host_orders import order_for, send_order
from tests.agent_process import HOST, AgentProcess
from tests.command_line import CommandLine, pictures, until
from tests.relay_rig import SECRET, USER, make_user, refused, served

pytestmark = [
    pytest.mark.redis, pytest.mark.timeout(240), pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups of POSIX"),
]  # fmt: skip


@pytest.fixture
def line(redis_url: str, blob_url: str, tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path, DC_REDIS_URL=redis_url, DC_BLOB_URL=blob_url)
    yield line
    assert until(lambda: not line.left_running())


@pytest.fixture
def agent(line: CommandLine, redis_url: str, blob_url: str) -> Iterator[AgentProcess]:
    agent = AgentProcess(line, redis_url, blob_url)
    yield agent
    agent.close()


def test_an_agent_behind_the_relay_keeps_a_worker_and_obeys(line: CommandLine, agent: AgentProcess, redis_url: str, blob_url: str) -> None:
    make_user(redis_url, blob_url)
    agent.write(workers={"pc1-cpu": {"device": "cpu"}})
    with served(line.folder, DC_REDIS_URL=redis_url, DC_BLOB_URL=blob_url) as relay, relay_urls(relay.join_url, USER, SECRET) as urls:
        process = agent.start(DC_REDIS_URL=urls.redis_url, DC_BLOB_URL=urls.blob_url)
        agent.wait("pc1-cpu", "running")
        done = line.run("run", line.write("graph.json", pictures()), "--items", "2", "--json")
        assert done.status == 0 and {item["worker"] for item in done.json["items"]} == {"pc1-cpu"}, done.err
        assert send_order(agent.cluster, HOST, order_for("stop", "pc1-cpu"), timeout_s=30).error is None
        agent.wait("pc1-cpu", "stopped")
        assert send_order(agent.cluster, HOST, order_for("start", "pc1-cpu"), timeout_s=30).error is None
        agent.wait("pc1-cpu", "running")
        assert agent.end(process, timeout_s=60) == 0, agent.said()
        assert agent.host() is None
        assert refused(relay) == []
