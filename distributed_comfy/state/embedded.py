"""The embedded Redis: a state server and a blob server on loopback for whoever has configured none.

``private`` servers belong to one process, live in a temporary folder and end with their owner, however that ends.  Shared ones belong to
all processes of a user that ask for the same folder: the first starts them, the others attach, the last one that stops ends them.  An
owner is a lock on a file that the kernel frees when the owner dies, so neither a crash nor a reboot nor a reused process id leaves a
false owner.  After a crash of the last owner the servers wait some minutes for it to come back; the state survives on disk in any case.
"""
from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import redis

from distributed_comfy.errors import NoRedisServer, ServerStartFailed, SettingInvalid
from distributed_comfy.file_lock import FileLock
from distributed_comfy.settings import redact_url
from distributed_comfy.state.connection import is_recent_enough
from distributed_comfy.state.keeper import Order, Runtime, live_owners, runtime_file
from distributed_comfy.state.providers import PROVIDERS, ServerProvider, install_remedy, program_version
from distributed_comfy.state.server_process import end_leftover, is_at_work, probe

log = logging.getLogger(__name__)

LINGER_S = 600.0
"""Shared servers without any living owner end after this long, if nothing else is said."""
_LOCK_TIMEOUT_S = 150.0
"""A start holds the lock while the server loads its data."""
_END_TIMEOUT_S = 15.0
_LEAST_STATE_BYTES = 2**29
_BOUNDS_CLIENTS = 7
"""First version that knows ``maxmemory-clients``."""
_PATIENCE_S = 1.0
"""How long servers that do not answer are asked again."""
_KEPT_PATIENCE_S = 12.0
"""The same while their keeper lives, which may just start one again."""
_PROBE_INTERVAL_S = 0.2
_FOLDER = "redis"
_PRIVATE_PREFIX = "distributed-comfy-redis-"
_STARTING_S = 60.0
"""A folder of private servers may be so old without a keeper that holds its lock."""
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_RUN_KEEPER = "import sys; sys.path.insert(0, sys.argv[1]); from distributed_comfy.state.keeper import main; main()"


@dataclass
class EmbeddedRedis:
    """Two running servers and this process' share in them; `stop` ends the share."""

    state_url: str = field(repr=False)
    """With the password: never log it."""
    blob_url: str = field(repr=False)
    pids: tuple[int, ...]
    """Of the keeper, the state server and the blob server."""
    provider: str
    """Which provider the program came from."""
    folder: Path
    """Where data and logs lie."""
    _ending: ExitStack = field(repr=False)

    def stop(self) -> None:
        """Give the servers up: private ones end, shared ones if this was their last owner.  Twice is no error."""
        self._ending.close()

    def __enter__(self) -> EmbeddedRedis:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start_embedded(
    folder: Path,
    *,
    private: bool,
    providers: Sequence[ServerProvider] = PROVIDERS,
    blob_memory_bytes: int | None = None,
    linger_s: float = LINGER_S,
) -> EmbeddedRedis:
    """Start the embedded servers, or attach to the user's running ones.

    Args:
        folder: the user's runtime folder; private servers use a temporary folder instead.
        private: see the module.
        providers: in the order in which they are tried.
        blob_memory_bytes: ``maxmemory`` of the blob server; a quarter of the memory, at most 8 GiB, by default.
        linger_s: shared servers without any living owner end after this long.
    Raises:
        NoRedisServer: no provider has a program that works; says what was tried and what to do.
        SettingInvalid: the folder cannot be used.
    """
    wanted = Order(
        folder=str(folder.absolute() / _FOLDER),
        program="",
        provider="",
        private=private,
        blob_memory_bytes=blob_memory_bytes or default_blob_memory_bytes(),
        state_memory_bytes=max(_memory_bytes() // 2, _LEAST_STATE_BYTES),
        bounds_clients=False,  # `_launch` knows the program
        linger_s=linger_s,
        libraries=str(Path(redis.__file__).resolve().parents[1]),
    )
    try:
        return _start_private(wanted, providers) if private else _start_shared(wanted, providers)
    except OSError as error:
        raise SettingInvalid(name="DC_RUNTIME_DIR", reason=f"the embedded Redis cannot use {folder}: {error}") from error


def has_other_owners(folder: Path) -> bool:
    """Whether the servers live on when this process, one of their owners, stops."""
    with _changing_owners(folder):
        return live_owners(folder) > 1


def default_blob_memory_bytes() -> int:
    """A quarter of what this system or container has, at most 8 GiB."""
    return min(_memory_bytes() // 4, 8 * 2**30)


def shared_folder(runtime_folder: Path, state_url: str) -> Path | None:
    """Where the data of this user's shared servers lie; None where the URL is not theirs."""
    folder = runtime_folder.absolute() / _FOLDER
    with suppress(OSError):  # not ours to read
        runtime = _written(folder)
        return folder if runtime and runtime.state_url == state_url else None
    return None


def _start_private(wanted: Order, providers: Sequence[ServerProvider]) -> EmbeddedRedis:
    _remove_dead(Path(tempfile.gettempdir()))
    folder = Path(tempfile.gettempdir(), f"{_PRIVATE_PREFIX}{secrets.token_hex(8)}")  # the keeper makes it, and so removes it
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        process, runtime = _launch(replace(wanted, folder=str(folder)), providers)
        ending.callback(_end_keeper, process)
        return _embedded(runtime, folder, ending.pop_all())


def _remove_dead(temporary: Path) -> None:
    """Remove what private servers left whose owner was killed: workers that outlive the keeper for a moment still write there."""
    for folder in temporary.glob(f"{_PRIVATE_PREFIX}*"):
        with suppress(OSError):  # it has just gone, or is somebody else's
            if time.time() - folder.stat().st_mtime < _STARTING_S:
                continue
            keeper = FileLock(folder / "keeper.lock")
            if keeper.try_acquire():
                keeper.release()
                shutil.rmtree(folder, ignore_errors=True)


def _start_shared(wanted: Order, providers: Sequence[ServerProvider]) -> EmbeddedRedis:
    folder = Path(wanted.folder)
    (folder / "owners").mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as ending:
        with _changing_owners(folder):
            owner = FileLock(folder / "owners" / f"{os.getpid()}-{secrets.token_hex(4)}.lock")
            owner.try_acquire()
            ending.callback(_leave, folder, owner)
            runtime = _running(folder)
            if runtime is None:
                gone = _written(folder)  # before whoever keeps it is told to end
                _end_unusable(folder)
                wanted = replace(wanted, state_before=gone.state_url, blobs_before=gone.blob_url) if gone else wanted
                _, runtime = _launch(wanted, providers)
        return _embedded(runtime, folder, ending.pop_all())


def _embedded(runtime: Runtime, folder: Path, ending: ExitStack) -> EmbeddedRedis:
    log.info("using the embedded Redis at %s (%s), data in %s", redact_url(runtime.state_url), runtime.provider, folder)
    return EmbeddedRedis(runtime.state_url, runtime.blob_url, runtime.pids, runtime.provider, folder, ending)


@contextmanager
def _changing_owners(folder: Path) -> Iterator[None]:
    """Alone in coming or going; whoever starts servers holds this until they answer."""
    lock = FileLock(folder / "start.lock")
    if not lock.acquire(_LOCK_TIMEOUT_S):
        raise OSError(f"another process has held {lock.path} for {_LOCK_TIMEOUT_S:g} s")
    try:
        yield
    finally:
        lock.release()


def _leave(folder: Path, owner: FileLock) -> None:
    """Stop being an owner; the last one ends the servers."""
    with _changing_owners(folder):
        owner.release()
        owner.path.unlink(missing_ok=True)
        if not live_owners(folder):
            _end_unusable(folder)


def _running(folder: Path) -> Runtime | None:
    """The servers that can be used, if both answer; they get a few chances."""
    started_s = time.monotonic()
    while runtime := _written(folder):
        if _is_alive(folder / "state", runtime.state_url) and _is_alive(folder / "blobs", runtime.blob_url):
            return runtime
        if time.monotonic() - started_s > (_KEPT_PATIENCE_S if _is_kept(folder) else _PATIENCE_S):
            break
        time.sleep(_PROBE_INTERVAL_S)
    return None


def _written(folder: Path) -> Runtime | None:
    """What is written down about shared servers, whether they run or not."""
    try:
        written = json.loads(runtime_file(folder).read_text(encoding="utf-8"))
        return Runtime(**{**written, "pids": tuple(written["pids"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # none, or not a runtime of this version
        return None


def _is_alive(folder: Path, url: str) -> bool:
    """Whether the server of this folder accepts its password, which nobody else is told."""
    parts = urlsplit(url)
    return probe(parts.port or 0, parts.password or "", lambda: is_at_work(folder)) != "gone"


def _is_kept(folder: Path) -> bool:
    """Whether a keeper lives; only under ``start.lock``, as no other must come just now."""
    keeper = FileLock(folder / "keeper.lock")
    if keeper.try_acquire():
        keeper.release()
        return False
    return True


def _end_unusable(folder: Path) -> None:
    """End what still works in this folder, and wait for it; only under ``start.lock``."""
    runtime_file(folder).unlink(missing_ok=True)  # tells a keeper to end
    keeper = FileLock(folder / "keeper.lock")
    if not keeper.acquire(_END_TIMEOUT_S):
        raise OSError(f"the keeper of the servers in {folder} does not end")
    try:
        for server_folder in (folder / "state", folder / "blobs"):
            if server_folder.exists():
                end_leftover(server_folder).release()
    finally:
        keeper.release()


def _launch(wanted: Order, providers: Sequence[ServerProvider]) -> tuple[subprocess.Popen[bytes], Runtime]:
    """Start the first provider's program that works."""
    tried = []
    for provider in providers:
        program = provider.find()
        if program is None:
            tried.append(f"{provider.name}: not found")
            continue
        unusable = _why_unusable(program, Path(wanted.folder))
        if unusable:
            tried.append(f"{program}: {unusable}")
            continue
        try:
            bounds_clients = int(program_version(program).split(".")[0]) >= _BOUNDS_CLIENTS
            return _run_keeper(replace(wanted, program=str(program), provider=provider.name, bounds_clients=bounds_clients))
        except ServerStartFailed as error:
            tried.append(str(error))
    raise NoRedisServer(tried="; ".join(tried) or "no provider", remedy=install_remedy())


def _why_unusable(program: Path, folder: Path) -> str:
    version = program_version(program)
    if not is_recent_enough(version):
        return f"version {version} is too old"
    if int(version.split(".")[0]) < 7 and (folder / "state" / "appendonlydir").exists():
        return f"version {version} cannot read the data in {folder}, which a newer one wrote"  # and would start empty
    return ""


def _run_keeper(order: Order) -> tuple[subprocess.Popen[bytes], Runtime]:
    """Start a keeper and wait for its answer.

    Raises:
        ServerStartFailed: as the keeper says.
    """
    process = subprocess.Popen(
        # Isolated and without site: neither the current folder nor the environment can put other modules before ours.
        [sys.executable, "-I", "-S", "-c", _RUN_KEEPER, _PACKAGE_ROOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the keeper's own log, as soon as it has its folder
        cwd=Path(order.folder).parent,
        start_new_session=True,  # Ctrl-C in the owner's terminal is not for the servers
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    with ExitStack() as undo:
        undo.callback(_end_keeper, process)
        runtime = _ordered(process, order)
        undo.pop_all()
    return process, runtime


def _ordered(process: subprocess.Popen[bytes], order: Order) -> Runtime:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
    process.stdin.flush()
    with process.stdout as answers:
        answer = json.loads(answers.readline() or "{}")
    if "state_url" not in answer:
        reason = answer.get("fields", {}).get("reason") or f"its keeper ended, see {order.folder}/keeper.log"
        raise ServerStartFailed(program=order.program, reason=reason)
    return Runtime(**{**answer, "pids": tuple(answer["pids"])})


def _end_keeper(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe that keeps private servers alive, and wait for their end."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _memory_bytes() -> int:
    """Of this system, or of the container it is in; 8 GiB where nobody says."""
    known = [8 * 2**30]
    if hasattr(os, "sysconf"):
        known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = limit.read_text().strip() if limit.exists() else ""
        if text.isdigit():
            known.append(int(text))
    return min(known)
