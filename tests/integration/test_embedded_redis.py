"""The embedded Redis with real servers: found, shared, ended with its owners however they end, and never leaked."""
from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from distributed_comfy.errors import NoRedisServer, RedisUnreachable, SettingInvalid
from distributed_comfy.file_lock import FileLock
from distributed_comfy.relay.requests import LARGEST_ARGUMENT_BYTES
from distributed_comfy.state.connection import connect
from distributed_comfy.state.embedded import EmbeddedRedis, default_blob_memory_bytes, start_embedded
from distributed_comfy.state.providers import PROVIDERS, ServerProvider
from distributed_comfy.state.server_process import ServerProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no server program there")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs PDEATHSIG or fork")

OWNER = """
import json, os, sys, pathlib
from distributed_comfy.state.embedded import start_embedded
#
folder, private, linger_s = pathlib.Path(sys.argv[1]), sys.argv[2] == "private", float(sys.argv[3])
embedded = start_embedded(folder, private=private, linger_s=linger_s)
print(json.dumps([embedded.state_url, embedded.blob_url, embedded.pids, str(embedded.folder)]), flush=True)
sys.stdin.readline()
embedded.stop()
"""


class Owner:
    """Another process that uses the embedded Redis until it is told to stop, or killed."""

    def __init__(self, folder: Path, kind: str, *, linger_s: float = 600, program: str = OWNER) -> None:
        command = [sys.executable, "-c", program, str(folder), kind, str(linger_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def urls(self) -> Any:
        assert self.process.stdout is not None
        self.state_url, self.blob_url, self.pids, folder = json.loads(self.process.stdout.readline())
        self.folder = Path(folder)
        return self.state_url, self.blob_url

    def stop(self) -> None:
        self.process.communicate("\n", timeout=30)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(autouse=True)
def nothing_is_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test did, no server or keeper that works in its folder may survive it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))  # where owners in other processes put private servers
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield
    eventually(lambda: not _working_in(tmp_path), 10)
    left = _working_in(tmp_path)
    for process in left:
        process.kill()
    assert not left


def _working_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def eventually(condition: Callable[[], bool], seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ended(pids: Any) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def client(url: str) -> redis.Redis:
    return connect(url, "DC_REDIS_URL")


def answers(url: str) -> bool:
    try:
        with client(url) as one:
            return bool(one.ping())
    except (redis.RedisError, RedisUnreachable):
        return False


class Stranger:
    """Another user's program at a port that was a server's: says what a server says that lets one in, and keeps what it hears."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.heard: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                visitor, _ = self._listener.accept()
                with visitor, suppress(OSError):
                    visitor.settimeout(1.0)
                    while said := visitor.recv(1024):
                        self.heard.append(said)
                        visitor.sendall(b"+OK\r\n+PONG\r\n")

    def leave(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for a visitor
        self._listener.close()


@contextmanager
def stranger_at(*urls: str) -> Iterator[list[Stranger]]:
    strangers = [Stranger(place_of(url)[0]) for url in urls]
    yield strangers
    for stranger in strangers:
        stranger.leave()


def place_of(url: str) -> tuple[int, str]:
    parts = urlsplit(url)
    return parts.port or 0, parts.password or ""


def pids_of(folder: Path) -> list[int]:
    return list(json.loads((folder / "runtime.json").read_text())["pids"])


@pytest.fixture
def private(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with start_embedded(tmp_path, private=True) as embedded:
        yield embedded


# -- what the servers are ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_every_provider_gives_a_state_server_that_keeps_and_a_blob_server_that_does_not(provider: ServerProvider, tmp_path: Path) -> None:
    if provider.find() is None:
        pytest.skip(f"no server from {provider.name} here")
    with start_embedded(tmp_path, private=True, providers=[provider], blob_memory_bytes=50 * 2**20) as embedded:
        assert embedded.provider == provider.name
        state, blobs = client(embedded.state_url), client(embedded.blob_url)
        kept = {name: state.config_get(name)[name] for name in ("appendonly", "appendfsync", "save", "maxmemory-policy")}
        assert kept == {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
        passing = {name: blobs.config_get(name)[name] for name in ("appendonly", "save", "maxmemory-policy", "maxmemory")}
        assert passing == {"appendonly": "no", "save": "", "maxmemory-policy": "noeviction", "maxmemory": str(50 * 2**20)}
        assert state.eval("redis.call('SET', 'a', redis.call('TIME')[1]) return redis.call('LMOVE', 'x', 'y', 'LEFT', 'RIGHT')", 0) is None
        assert state.getdel("a") is not None
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            for index in range(20):
                blobs.set(f"blob{index}", bytes(5 * 2**20))


def test_nobody_gets_in_from_outside_or_without_the_password(private: EmbeddedRedis) -> None:
    for url, pid in ((private.state_url, private.pids[1]), (private.blob_url, private.pids[2])):
        port = urlsplit(url).port
        listening = [link.laddr for link in psutil.Process(pid).net_connections("all") if link.status == psutil.CONN_LISTEN]
        assert listening == [("127.0.0.1", port)]
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    assert urlsplit(private.state_url).password != urlsplit(private.blob_url).password


def test_the_passwords_are_in_files_of_this_user_alone_and_on_no_command_line(private: EmbeddedRedis) -> None:
    passwords = [str(urlsplit(url).password) for url in (private.state_url, private.blob_url)]
    assert all(len(password) >= 24 for password in passwords)
    for pid in private.pids:
        process = psutil.Process(pid)
        said = " ".join(process.cmdline()) + str(process.environ())
        assert not any(password in said for password in passwords)
    assert stat.S_IMODE(private.folder.stat().st_mode) == 0o700
    files = [path for path in private.folder.rglob("*") if path.is_file()]
    holding = [path for path in files if any(password in path.read_text("latin-1") for password in passwords)]
    assert sorted(path.name for path in holding) == ["runtime.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    assert not any(password in repr(private) for password in passwords)


def test_the_blob_server_gets_a_part_of_the_memory(private: EmbeddedRedis) -> None:
    assert int(client(private.blob_url).config_get("maxmemory")["maxmemory"]) == default_blob_memory_bytes()
    assert 2**26 < default_blob_memory_bytes() <= min(8 * 2**30, psutil.virtual_memory().total // 4)


def test_a_folder_with_blanks_quotes_and_umlauts_is_no_problem(tmp_path: Path) -> None:
    with start_embedded(tmp_path / "a \"b' ü\\n", private=False) as embedded:
        assert client(embedded.state_url).config_get("dir")["dir"].endswith("ü\\n/redis/state")


# -- private ------------------------------------------------------------------------------------------------------------
def test_stopping_private_servers_leaves_nothing(tmp_path: Path) -> None:
    first, second = (start_embedded(tmp_path, private=True) for _ in range(2))
    assert {first.state_url, first.blob_url}.isdisjoint({second.state_url, second.blob_url})
    first.stop()
    first.stop()
    assert eventually(lambda: ended(first.pids))
    assert not first.folder.exists()
    assert client(second.state_url).ping()
    second.stop()
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_private_servers_end_with_an_owner_that_is_killed(tmp_path: Path, number: int) -> None:
    owner = Owner(tmp_path, "private")
    owner.urls()
    owner.process.send_signal(number)
    owner.process.communicate()
    assert eventually(lambda: ended(owner.pids) and not owner.folder.exists())


@needs_linux
def test_private_servers_end_with_their_owner_although_a_forked_child_lives_on(tmp_path: Path) -> None:
    forking = "import time; child = os.fork() or time.sleep(60); print(child, flush=True); time.sleep(60)"
    owner = Owner(tmp_path, "private", program=OWNER.replace("sys.stdin.readline()", forking))
    owner.urls()
    assert owner.process.stdout is not None
    child = int(owner.process.stdout.readline())
    owner.process.kill()
    try:
        assert eventually(lambda: ended(owner.pids) and not owner.folder.exists())
        assert not ended([child])
    finally:
        os.kill(child, signal.SIGKILL)
        owner.process.communicate()


@needs_linux
def test_servers_end_with_a_keeper_that_is_killed(private: EmbeddedRedis) -> None:
    os.kill(private.pids[0], signal.SIGKILL)
    assert eventually(lambda: ended(private.pids))
    private.stop()
    assert not private.folder.exists()


# -- shared -------------------------------------------------------------------------------------------------------------
def test_what_killed_owners_left_is_removed_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, foreign, starting = (tmp_path / name for name in ("distributed-comfy-redis-dead", "other", "distributed-comfy-redis-new"))
    for folder in (dead, foreign, starting):
        (folder / "demo").mkdir(parents=True)
    long_ago = time.time() - 3600
    with start_embedded(tmp_path, private=True) as alive:
        for folder in (dead, foreign, alive.folder):
            os.utime(folder, (long_ago, long_ago))
        with start_embedded(tmp_path, private=True):
            assert not dead.exists(), "nobody keeps it"
            assert foreign.exists() and starting.exists() and alive.folder.exists()
        assert client(alive.state_url).ping()


def test_owners_in_several_processes_share_one_pair_and_the_last_one_ends_it(tmp_path: Path) -> None:
    first, second = Owner(tmp_path, "shared"), Owner(tmp_path, "shared")
    assert first.urls() == second.urls()
    assert first.pids == second.pids
    with start_embedded(tmp_path, private=False) as third:
        assert (third.state_url, list(third.pids)) == (first.state_url, first.pids)
        first.stop()
        second.stop()
        assert client(third.state_url).ping()
        assert client(third.blob_url).ping()
    assert eventually(lambda: ended(third.pids))
    assert not (tmp_path / "redis" / "runtime.json").exists()
    assert list((tmp_path / "redis" / "owners").iterdir()) == []


def test_many_processes_that_start_at_the_same_moment_get_one_pair(tmp_path: Path) -> None:
    owners = [Owner(tmp_path, "shared") for _ in range(5)]
    assert len({owner.urls() for owner in owners}) == 1
    owners[0].kill()
    for owner in owners[1:]:
        owner.stop()
    assert eventually(lambda: ended(owners[0].pids))


def test_a_master_that_was_killed_finds_its_servers_again_with_everything_in_them(tmp_path: Path) -> None:
    owner = Owner(tmp_path, "shared")
    state_url, blob_url = owner.urls()
    client(state_url).set("job", "1")
    client(blob_url).set("blob", "1")
    owner.kill()
    with start_embedded(tmp_path, private=False) as again:
        assert (again.state_url, list(again.pids)) == (state_url, owner.pids)
        assert (client(again.state_url).get("job"), client(again.blob_url).get("blob")) == (b"1", b"1")
    assert eventually(lambda: ended(owner.pids))


def test_servers_whose_owners_all_crashed_end_by_themselves_after_a_while(tmp_path: Path) -> None:
    owner = Owner(tmp_path, "shared", linger_s=0.3)
    owner.urls()
    time.sleep(1.5)
    assert not ended(owner.pids)
    owner.kill()
    assert eventually(lambda: ended(owner.pids))
    assert list((tmp_path / "redis" / "owners").iterdir()) == []


def test_the_state_survives_a_stop_and_the_blobs_do_not(tmp_path: Path) -> None:
    with start_embedded(tmp_path, private=False) as before:
        client(before.state_url).set("job", "1")
        client(before.blob_url).set("blob", "1")
    with start_embedded(tmp_path, private=False) as after:
        assert after.state_url != before.state_url
        assert (client(after.state_url).get("job"), client(after.blob_url).get("blob")) == (b"1", None)


@pytest.mark.parametrize("private", [False, True], ids=["shared", "private"])
@pytest.mark.parametrize("which", [1, 2], ids=["state", "blobs"])
def test_a_server_that_died_is_started_again_where_its_clients_look_for_it(tmp_path: Path, which: int, private: bool) -> None:
    with start_embedded(tmp_path, private=private) as first:
        client(first.state_url).set("job", "1")
        os.kill(first.pids[which], signal.SIGKILL)
        assert eventually(lambda: answers(first.state_url) and answers(first.blob_url) and ended([first.pids[which]]))
        assert client(first.state_url).get("job") == b"1"
        assert eventually(lambda: pids_of(first.folder) != list(first.pids))
        written = json.loads((first.folder / "runtime.json").read_text())
        assert (written["state_url"], written["blob_url"]) == (first.state_url, first.blob_url)
        assert written["pids"][which] != first.pids[which] and written["pids"][3 - which] == first.pids[3 - which]
        again = client(first.state_url), client(first.blob_url)
    assert eventually(lambda: ended(written["pids"]))
    for one in again:
        with pytest.raises(redis.ConnectionError):
            one.ping()


def test_servers_that_die_after_whoever_started_them_has_ended_are_started_again_for_the_others(tmp_path: Path) -> None:
    starter = Owner(tmp_path, "shared")
    starter.urls()
    with start_embedded(tmp_path, private=False) as mine:
        client(mine.state_url).set("job", "1")
        time.sleep(1.1)  # the append-only file is synced
        starter.stop()
        for which in (1, 2):
            before = pids_of(mine.folder)
            os.kill(before[which], signal.SIGKILL)
            assert eventually(lambda: ended([before[which]]) and answers(mine.state_url) and answers(mine.blob_url), 20)  # noqa: B023
            assert eventually(lambda: pids_of(mine.folder)[which] != before[which])  # noqa: B023
        assert client(mine.state_url).get("job") == b"1"
        last = pids_of(mine.folder)
    assert eventually(lambda: ended(last))


class LoadsForLong:
    """A provider of a server that takes a second for each key that it loads, once there is a file ``slow``."""

    name = "slow"

    def __init__(self, folder: Path) -> None:
        self.slow = folder / "slow"
        self._path = folder / "redis-server"
        program = next(provider.find() for provider in PROVIDERS if provider.find())
        options = "--key-load-delay 1000000 --loading-process-events-interval-bytes 1024"
        self._path.write_text(f'#!/bin/sh\n[ -e {self.slow} ] && exec {program} "$@" {options}\nexec {program} "$@"\n')
        self._path.chmod(0o755)

    def find(self) -> Path | None:
        return self._path


def test_the_last_owner_that_leaves_while_a_server_loads_for_long_ends_both(tmp_path: Path) -> None:
    provider = LoadsForLong(tmp_path)
    first = start_embedded(tmp_path / "run", private=False, providers=[provider])
    stored = client(first.state_url)
    stored.mset({f"job{number}": os.urandom(2000) for number in range(200)})  # which does not become shorter
    stored.bgrewriteaof()
    assert eventually(lambda: list(first.folder.glob("state/appendonlydir/*.2.base.rdb")) != [], 20)
    provider.slow.touch()
    os.kill(first.pids[1], signal.SIGKILL)
    log = first.folder / "state" / "server.log"
    assert eventually(lambda: log.exists() and "Server initialized" in log.read_text() and "Ready" not in log.read_text(), 20)
    with start_embedded(tmp_path / "run", private=False, providers=[provider]) as second:
        assert (second.state_url, second.pids) == (first.state_url, first.pids), "one that loads is not taken for gone"
    loading = int((first.folder / "state" / "server.pid").read_text())
    first.stop()
    assert eventually(lambda: ended([*first.pids, loading]))
    assert not (first.folder / "runtime.json").exists()


def test_the_runtime_file_that_an_owner_removed_does_not_come_back(tmp_path: Path) -> None:
    with start_embedded(tmp_path, private=False) as first:
        with FileLock(first.folder / "start.lock"):  # as one that leaves
            os.kill(first.pids[2], signal.SIGKILL)
            assert eventually(lambda: answers(first.blob_url), 20)
            time.sleep(0.3)
            assert pids_of(first.folder) == list(first.pids), "written later, as somebody leaves just now"
            (first.folder / "runtime.json").unlink()
            assert eventually(lambda: ended(first.pids), 20)
        assert not (first.folder / "runtime.json").exists()


def test_servers_that_die_again_and_again_are_given_up(tmp_path: Path) -> None:
    with start_embedded(tmp_path, private=False) as first:
        runtime = first.folder / "runtime.json"
        while runtime.exists():
            pid = json.loads(runtime.read_text())["pids"][2]
            os.kill(pid, signal.SIGKILL)
            assert eventually(lambda pid=pid: not runtime.exists() or json.loads(runtime.read_text())["pids"][2] != pid)  # type: ignore[misc]
        assert "the servers died 6 times in 60 s" in (first.folder / "keeper.log").read_text()
        with start_embedded(tmp_path, private=False) as second:
            assert client(second.state_url).ping()


@needs_linux
def test_servers_whose_keeper_was_killed_are_found_where_they_were_after_the_next_start(tmp_path: Path) -> None:
    with start_embedded(tmp_path, private=False) as first:
        mine = client(first.state_url)
        mine.set("job", "1")
        os.kill(first.pids[0], signal.SIGKILL)
        assert eventually(lambda: ended(first.pids))
        with start_embedded(tmp_path, private=False) as second:
            assert (second.state_url, second.blob_url) == (first.state_url, first.blob_url)
            assert set(second.pids).isdisjoint(first.pids)
            assert mine.get("job") == b"1", "who used the old ones goes on with the new ones"


def test_a_runtime_file_from_before_a_reboot_harms_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    (folder / "owners").mkdir(parents=True)
    (folder / "owners" / "1-dead.lock").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://:old@127.0.0.1:{free.getsockname()[1]}/0"
    bystander = subprocess.Popen(["sleep", "60"])  # has got the process id that a server had
    written = {"state_url": url, "blob_url": url, "provider": "system", "pids": [bystander.pid] * 3}
    (folder / "runtime.json").write_text(json.dumps(written))
    for name in ("state", "blobs"):
        (folder / name).mkdir()
        (folder / name / "server.pid").write_text(str(bystander.pid))
        (folder / name / "alive.lock").touch()
    try:
        with start_embedded(tmp_path, private=False) as embedded:
            assert bystander.pid not in embedded.pids
            assert client(embedded.state_url).ping()
            assert len(list((folder / "owners").iterdir())) == 2
        assert eventually(lambda: ended(embedded.pids))
        assert bystander.poll() is None
        assert list((folder / "owners").iterdir()) == []
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"state_url": 1, "pids": []}', '{"pids": [1], "more": 2}'])
def test_a_runtime_file_that_is_none_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "runtime.json").write_text(text)
    with start_embedded(tmp_path, private=False) as embedded:
        assert client(embedded.state_url).ping()


def test_another_redis_on_the_old_port_is_not_taken_for_ours(tmp_path: Path, redis_url: str) -> None:
    url = redis_url.replace("redis://", "redis://:ours@")
    (tmp_path / "redis").mkdir()
    written = {"state_url": url, "blob_url": url, "provider": "system", "pids": [1, 1, 1]}
    (tmp_path / "redis" / "runtime.json").write_text(json.dumps(written))
    with start_embedded(tmp_path, private=False) as embedded:
        assert embedded.state_url != url
    assert client(redis_url).ping()


@needs_linux
def test_strangers_at_the_ports_of_dead_servers_are_told_no_password_and_not_taken_for_them(tmp_path: Path) -> None:
    with start_embedded(tmp_path, private=False) as first:
        os.kill(first.pids[0], signal.SIGKILL)
        assert eventually(lambda: ended(first.pids))
        with stranger_at(first.state_url, first.blob_url) as strangers, start_embedded(tmp_path, private=False) as second:
            assert [stranger.heard for stranger in strangers] == [[], []]
            assert answers(second.state_url) and answers(second.blob_url)
            for before, after in ((first.state_url, second.state_url), (first.blob_url, second.blob_url)):
                assert not set(place_of(before)) & set(place_of(after)), "another port, and another password"


@contextmanager
def without_state_server(embedded: EmbeddedRedis) -> Iterator[int]:
    """The port of the state server, which is killed and not started again before the end of this."""
    os.kill(embedded.pids[0], signal.SIGSTOP)
    try:
        os.kill(embedded.pids[1], signal.SIGKILL)
        assert eventually(lambda: ended([embedded.pids[1]]))
        yield place_of(embedded.state_url)[0]
    finally:
        os.kill(embedded.pids[0], signal.SIGCONT)


def test_a_server_waits_for_its_port_and_goes_nowhere_else(tmp_path: Path) -> None:
    log = tmp_path / "redis" / "state" / "server.log"
    with start_embedded(tmp_path, private=False) as first, socket.socket() as outgoing:
        with without_state_server(first) as port:
            outgoing.bind(("127.0.0.1", port))  # as a connection that got the number
        assert eventually(lambda: log.exists() and "Address already in use" in log.read_text(), 20)
        outgoing.close()
        assert eventually(lambda: pids_of(first.folder)[1] != first.pids[1], 20)
        assert answers(first.state_url) and answers(first.blob_url)


def test_servers_end_where_a_stranger_listens_at_the_port_of_one_and_new_ones_have_new_passwords(tmp_path: Path) -> None:
    with start_embedded(tmp_path, private=False) as first:
        with without_state_server(first) as port:
            stranger = Stranger(port)
        with start_embedded(tmp_path, private=False) as second:  # comes while the keeper still tries
            assert stranger.heard == []
            assert eventually(lambda: ended(first.pids))
            assert answers(second.state_url) and answers(second.blob_url)
            assert not set(place_of(first.state_url)) & set(place_of(second.state_url))
            stranger.leave()


def test_a_server_that_an_earlier_run_left_behind_is_ended_before_a_new_one_uses_its_data(tmp_path: Path) -> None:
    folder = tmp_path / "redis" / "state"
    folder.mkdir(parents=True)
    program = next(provider.find() for provider in PROVIDERS if provider.find())
    leftover = ServerProcess(folder, str(program), {"appendonly": "yes"}, data_matters=True)
    leftover.start(lambda: False)
    client(leftover.url).set("job", "1")
    with start_embedded(tmp_path, private=False) as embedded:
        assert not leftover.is_running()
        assert client(embedded.state_url).get("job") == b"1"


def test_a_user_without_a_server_is_told_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    class Nowhere:
        name = "nowhere"

        def find(self) -> Path | None:
            return None

    for private in (True, False):
        with pytest.raises(NoRedisServer, match=r"nowhere: not found\); .*DC_REDIS_URL"):
            start_embedded(tmp_path, private=private, providers=[Nowhere()])


# -- programs that do not work ------------------------------------------------------------------------------------------
class Script:
    """A provider of a program that does what a test needs a broken server to do."""

    def __init__(self, folder: Path, body: str, version: str = "7.0.0") -> None:
        self.name = "script"
        self.path = folder / "redis-server"
        self.path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v={version} x" && exit\n{body}\n')
        self.path.chmod(0o755)

    def find(self) -> Path | None:
        return self.path


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    ("body", "version", "says"),
    [
        ("echo Bad directive in line 3; exit 1", "7.0.0", "status 1; its last lines: Bad directive"),
        ("sleep 60", "5.0.7", "5.0.7 is too old"),
    ],
    ids=["does not start", "too old"],
)
def test_a_program_that_does_not_work_gives_way_to_the_next(tmp_path: Path, body: str, version: str, says: str, private: bool) -> None:
    broken = Script(tmp_path, body, version)
    with start_embedded(tmp_path / "run", private=private, providers=[broken, *PROVIDERS]) as embedded:
        assert embedded.provider in {provider.name for provider in PROVIDERS}
        assert client(embedded.state_url).ping()
    with pytest.raises(NoRedisServer, match=says):
        start_embedded(tmp_path / "run", private=private, providers=[broken])


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_an_owner_that_is_killed_while_the_servers_start_leaves_none_behind(tmp_path: Path, kind: str) -> None:
    Script(tmp_path, f"echo $$ > {tmp_path}/started; exec sleep 60")
    slow = f"import types; slow = types.SimpleNamespace(name='slow', find=lambda: pathlib.Path({str(tmp_path / 'redis-server')!r}))"
    owner = Owner(tmp_path / "run", kind, program=slow.join(OWNER.replace("linger_s=linger_s", "providers=[slow]").split("#", 1)))
    assert eventually((tmp_path / "started").exists, 20)
    assert eventually(lambda: (tmp_path / "started").read_text().strip().isdigit())
    owner.kill()
    assert eventually(lambda: ended([int((tmp_path / "started").read_text())]))
    with start_embedded(tmp_path / "run", private=False) as embedded:
        assert client(embedded.state_url).ping()


def test_a_program_too_old_for_the_data_does_not_start_empty(tmp_path: Path) -> None:
    (tmp_path / "redis" / "state" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(NoRedisServer, match="cannot read the data"):
        start_embedded(tmp_path, private=False, providers=[Script(tmp_path, "exit 1", version="6.2.14")])


def test_a_folder_that_cannot_be_used_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingInvalid, match="DC_RUNTIME_DIR"):
        start_embedded(tmp_path / "file", private=False)


def test_the_embedded_servers_are_bounded(tmp_path: Path) -> None:
    with start_embedded(tmp_path, private=True, blob_memory_bytes=2**30) as embedded:
        for url in (embedded.state_url, embedded.blob_url):
            with redis.Redis.from_url(url, decode_responses=True) as client:
                said = {name: int(value) for name, value in client.config_get("*max*").items() if value.isdigit()}
                assert said["proto-max-bulk-len"] == LARGEST_ARGUMENT_BYTES
                assert said["maxmemory"] > 0 and client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                if int(str(client.info("server")["redis_version"]).split(".")[0]) >= 7:
                    assert 0 < said["maxmemory-clients"] < said["maxmemory"]
