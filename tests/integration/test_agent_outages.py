"""An agent whose Redis goes away and comes back: it goes on, tells of its host again, and obeys again."""
from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tasks.host_orders import order_for, send_order
from tests.agent_process import HOST, AgentProcess
from tests.command_line import CommandLine, until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def server(redis_server: Any, tmp_path: Path) -> Iterator[tuple[str, Start]]:
    """URL of a server of this test's own, and what starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    url, started = f"redis://127.0.0.1:{port}/0", []

    def start() -> subprocess.Popen[bytes]:
        command = [redis_server.program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        with redis.Redis.from_url(url) as client:
            until(lambda: _answers(client))
        return started[-1]

    yield url, start
    for process in started:
        process.kill()
        process.wait()


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_an_agent_and_its_worker_come_back_with_their_redis(server: tuple[str, Start], tmp_path: Path) -> None:
    url, start = server
    process = start()
    line = CommandLine(tmp_path, DC_REDIS_URL=url, DC_BLOB_URL=url)
    agent = AgentProcess(line, url, url)
    try:
        agent.write(workers={"pc1-cpu": {"device": "cpu"}})
        up = agent.start()
        worker = agent.wait("pc1-cpu", "running")
        assert send_order(agent.cluster, HOST, order_for("config")).facts["host"] == HOST
        process.kill()
        process.wait()
        until(lambda: "the agent cannot reach the table" in agent.said())
        start()  # empty: it kept nothing
        again = agent.wait("pc1-cpu", "running", lambda found: found.pid == worker.pid)
        assert again.restarts == 0, "a worker does not end because its server does"
        answer = send_order(agent.cluster, HOST, order_for("config"), timeout_s=60)
        assert answer.facts["host"] == HOST
        assert agent.end(up) == 0
    finally:
        agent.close()
    assert until(lambda: not line.left_running())
