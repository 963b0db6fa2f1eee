"""Prompts without distributed nodes on any GPU: takes them out of ComfyUI's queue while the master is busy and a worker is free."""
from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import redis
from aiohttp import web

from distributed_comfy.collector.spool import SPOOL_FOLDER
from distributed_comfy.comfyui.comfy_folders import ComfyFolders
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.interrupts import interrupt_middleware
from distributed_comfy.comfyui.jobs import remember
from distributed_comfy.comfyui.ordinary_leftovers import sweep
from distributed_comfy.comfyui.ordinary_rules import ENGINE, Suitable, judge
from distributed_comfy.comfyui.ordinary_run import Ending, OrdinaryRun, Surroundings
from distributed_comfy.comfyui.ordinary_verdicts import Verdicts
from distributed_comfy.comfyui.pack import Pack
from distributed_comfy.comfyui.placed_files import FilePlacer
from distributed_comfy.comfyui.queue_consumer import Item, QueueConsumer
from distributed_comfy.comfyui.queueing import post_own
from distributed_comfy.engine.attach.pack_words import CLIENT_PREFIX
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import Capability
from distributed_comfy.planning.requirements import matches
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

OFFER_EVENT = "distributed-comfy.ordinary"
"""Websocket message to all pages with an `OrdinaryStatus`: there is something to offer, or no more."""
LOOK_AHEAD = 200
"""Waiting prompts that are looked at, first to last, for one that a free worker can run."""
_TICK_S = 0.1
_LOOK_S = 5.0
_AGAIN_S, _LONGEST_S = 5.0, 60.0
"""From one error of ours to the next try."""
_END_S = 5.0

OrdinaryState = Literal["off", "offered", "on", "paused", "unfit"]


@dataclass(frozen=True)
class OrdinaryStatus:
    """For whoever shows it."""

    state: OrdinaryState = "off"
    """``offered``: not asked yet, and there are workers; ``paused``: on, but there is no cluster; ``unfit``: cannot be had here."""
    reason: str = ""
    workers: int = 0
    """Workers that could run prompts."""
    running: tuple[str, ...] = ()
    """Ids of the prompts that run on workers now."""
    done: int = 0
    """Prompts that workers have finished since ComfyUI started."""
    since_ms: int = 0
    """When this ComfyUI started, by its own clock: a page that put its answer to the offer off is to ask again after the next start."""


class OrdinaryPrompts:
    """The part of the pack; one per process.

    Args:
        pack: host, session and options.
        queue: ComfyUI's queue.
        around: what every prompt is run with.
    """

    def __init__(self, pack: Pack, queue: QueueConsumer, around: Surroundings) -> None:
        self._pack, self._queue, self._around = pack, queue, around
        self._runs: dict[int, OrdinaryRun] = {}
        """By the id under which the queue knows what runs: prompts may share theirs."""
        self._over: OrderedDict[str, str] = OrderedDict()
        """Jobs that are over -> their prompts."""
        self._threads: set[threading.Thread] = set()
        self._staying: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._verdicts = Verdicts(self._judge)
        self._unsettled: list[OrdinaryRun] = []
        """Runs whose jobs could not be taken off the table yet."""
        self._look_at = 0.0
        self._began_ms = int(time.time() * 1000)
        self._status = OrdinaryStatus()
        self._offered = False
        self._done = 0

    def start(self) -> None:
        """Begin to look at the queue, in a thread of its own."""
        threading.Thread(target=self._work, name="distributed-comfy ordinary", daemon=True).start()

    def status(self) -> OrdinaryStatus:
        """As it is now."""
        with self._lock:
            return replace(self._status, running=tuple(self._running()), done=self._done, since_ms=self._began_ms)

    def runs(self, prompt_id: str) -> bool:
        """Whether this one runs on a worker."""
        with self._lock:
            return prompt_id in self._running()

    def jobs(self, *, over: bool = False) -> list[str]:
        """Ids of the jobs as which prompts run on workers now; with ``over`` also those that did, for a while."""
        with self._lock:
            return [*(run.job_id for run in self._runs.values()), *(self._over if over else ())]

    def prompt_of(self, job_id: str, *, over: bool) -> str | None:
        """The prompt of such a job; with ``over`` also one that is over, for a while."""
        with self._lock:
            live = next((run.taken.prompt_id for run in self._runs.values() if run.job_id == job_id), None)
            return live or (self._over.get(job_id) if over else None)

    def interrupt(self, prompt_id: str | None) -> bool:
        """End a prompt that runs on a worker, and another of the same id that runs here (None: all on workers); False: none does."""
        with self._lock:
            runs = [run for run in self._runs.values() if prompt_id in (None, run.taken.prompt_id)]
            for run in runs:
                run.interrupt()
        if runs and prompt_id is not None:
            self._queue.end_here(prompt_id, self._pack.host.nodes.interrupt_processing)
        return bool(runs)

    @contextmanager
    def staying(self, prompt_ids: Collection[str]) -> Iterator[None]:
        """While the context lasts, none of these is taken out of the queue."""
        with self._lock:
            self._staying.update(prompt_ids)
        try:
            yield
        finally:
            with self._lock:
                self._staying -= Counter(prompt_ids)

    def close(self) -> None:
        """ComfyUI ends: no worker goes on for it."""
        self._ended.set()
        self._around.placer.stop.set()
        with self._lock:
            runs, threads = list(self._runs.values()), list(self._threads)
        for run in runs:
            run.give_up("ComfyUI ends")
        give_up = time.monotonic() + _END_S
        for thread in threads:
            thread.join(max(0.0, give_up - time.monotonic()))
        with suppress(OSError):  # another job has its spool there
            (self._around.folders["output"] / SPOOL_FOLDER).rmdir()

    # -- the thread that takes prompts
    def _work(self) -> None:
        atexit.register(self.close)  # now and not at the start, so that it comes before the session's own end
        wait_s = _TICK_S
        while not self._ended.wait(wait_s):
            try:
                self._tick()
                wait_s = _TICK_S
            except (DistributedComfyError, redis.RedisError) as error:
                wait_s = _TICK_S
                self._tell("paused" if self._pack.options.ordinary else "off", str(error))
            except Exception as error:  # noqa: BLE001 - the boundary of the thread: ComfyUI goes on alone, and we try again
                wait_s = min(max(2 * wait_s, _AGAIN_S), _LONGEST_S)
                self._look_at = 0.0
                self._fail(f"an error of ours: {error}")

    def _fail(self, reason: str) -> None:
        """Called while an exception is handled; the same one again is not told again."""
        if self.status().reason != reason:
            log.exception("please report this; ordinary prompts are tried again within %.0f s", _LONGEST_S)
        self._tell("unfit", reason)

    def _tick(self) -> None:
        option = self._pack.options.ordinary
        if option is False:
            return self._tell("off")
        if reason := self._queue.why_unfit():
            return self._tell("unfit", reason)
        wanted = bool(option) and self._queue.is_queued()
        if not wanted and not self._unsettled and time.monotonic() < self._look_at:
            return None
        self._look_at = time.monotonic() + _LOOK_S
        self._forget_gone()
        cluster = self._pack.session.cluster(0.0)
        self._settle(cluster)
        live = {name: found for name, found in cluster.matching.live().items() if found.engine == ENGINE}
        if option is None:
            return self._tell("offered" if live else "off", workers=len(live))
        self._tell("on", workers=len(live))
        if wanted and live:
            self._take(cluster, live)
        return None

    def _take(self, cluster: Cluster, live: Mapping[str, Capability]) -> None:
        """Begin as many waiting prompts as there are free workers that can run them."""
        idle = {state.facts.name for state in cluster.workers.workers(live) if state.state == "idle" and not state.drained}
        free = {name: live[name] for name in sorted(idle)}
        with self._lock:
            underway = sum(not run.claimed.is_set() for run in self._runs.values())
        for _ in range(underway):  # the table decides which of them comes; one is as good as the other
            free.popitem() if free else None
        waiting = self._queue.waiting() if free else ()
        for item in waiting[:LOOK_AHEAD]:
            worker = self._worker_for(item, live, free)
            if worker and self._begin(cluster, item):
                del free[worker]
            if not free:
                return

    def _worker_for(self, item: Item, live: Mapping[str, Capability], free: Mapping[str, Capability]) -> str:
        """A free worker that can run a waiting prompt; empty where there is none, or where it stays here."""
        verdict = self._verdicts.of(item, live)
        if isinstance(verdict, str):
            return ""
        return next((name for name, found in free.items() if matches(verdict.requirement, found)), "")

    def _judge(self, item: Item, live: Mapping[str, Capability]) -> Suitable | str:
        if str((item[3] or {}).get("client_id", "")).startswith(CLIENT_PREFIX):
            return "a worker has queued it here"
        return judge(item[2], item[4], self._pack.host.nodes.NODE_CLASS_MAPPINGS, self._around.folders, list(live.values()))

    def _forget_gone(self) -> None:
        """Entries that neither wait nor run are never asked for again."""
        if len(self._verdicts):
            with self._lock:
                self._verdicts.keep([*self._queue.entries(), *(run.taken.item for run in self._runs.values())])

    def _running(self) -> list[str]:
        return [run.taken.prompt_id for run in self._runs.values()]

    # -- one prompt
    def _begin(self, cluster: Cluster, item: Item) -> bool:
        """Take it and run it; in one step for `interrupt`, which must know of each prompt that is not ComfyUI's own to end."""
        with self._lock:
            taken = None if self._staying[str(item[1])] else self._queue.take(item)
            if taken is None:
                return False
            run = self._runs[taken.item_id] = OrdinaryRun(cluster, taken, self._around)
            thread = threading.Thread(target=self._run, args=(run,), name=f"prompt {taken.prompt_id}", daemon=True)
            self._threads.add(thread)
        thread.start()
        return True

    def _run(self, run: OrdinaryRun) -> None:
        try:
            ending = run.run()
        except Exception:  # whatever is wrong with us, the prompt is not lost
            ending = self._broken_off()
            if ending.here:
                log.exception("prompt %s: please report this", run.taken.prompt_id)
        try:
            with self._lock:
                self._runs.pop(run.taken.item_id, None)
                ending = run.settled(ending)
                self._done += ending.kind == "done"
                remember(self._over, run.job_id, run.taken.prompt_id)
                self._unsettled.append(run)
                self._end(run, ending)
        finally:
            run.close()
            self._settle_quietly()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _broken_off(self) -> Ending:
        """Why a run raised what it should not have."""
        if not threading.main_thread().is_alive():
            return Ending("back", "ComfyUI ends, and Python begins nothing any more")
        if self._pack.session.state != "ready":
            return Ending("back", "the connections to the cluster were closed")
        return Ending("back", "an error of ours", here=True)

    def _end(self, run: OrdinaryRun, ending: Ending) -> None:
        """Tell ComfyUI's queue, which is gone where ComfyUI ends."""
        if self._ended.is_set() or not threading.main_thread().is_alive():
            return
        taken = run.taken
        if ending.kind == "back":
            self._verdicts.came_back(taken.item, stays=ending.here)
            log.warning("prompt %s is back in the queue: %s", taken.prompt_id, ending.reason)
            self._queue.give_back(taken)
            return
        self._queue.end(taken, run.history, "success" if ending.kind == "done" else "error", run.events.messages)
        run.events.end()

    def _settle_quietly(self) -> None:
        try:
            self._settle(self._pack.session.cluster(0.0))
        except (DistributedComfyError, redis.RedisError) as error:
            log.debug("jobs of prompts are not taken off the table yet: %s", error)

    def _settle(self, cluster: Cluster) -> None:
        with self._lock:
            unsettled, self._unsettled = self._unsettled, []
        while unsettled:
            try:
                unsettled[-1].forget(cluster)
            except BaseException:
                with self._lock:
                    self._unsettled += unsettled
                raise
            unsettled.pop()

    def _tell(self, state: OrdinaryState, reason: str = "", workers: int = 0) -> None:
        with self._lock:
            before, self._status = self._status, OrdinaryStatus(state, reason, workers)
        if before.state == state:
            return
        if "offered" in (before.state, state):
            with suppress(RuntimeError):  # ComfyUI ends, and so does its event loop
                self._around.send_sync(OFFER_EVENT, asdict(self.status()), None)
        if state == "offered" and not self._offered:
            self._offered = True
            log.info("%d worker(s) could run ordinary prompts too, beside this ComfyUI; switch it on with the option `ordinary`", workers)
        elif state == "paused" and before.state == "on":
            log.warning("ordinary prompts run in this ComfyUI alone for now: %s", reason)
        elif state == "unfit":
            log.warning("ordinary prompts run in this ComfyUI alone: %s", reason)
        elif state == "on":
            log.info("ordinary prompts run on any free worker")
        elif state == "off" and before.state in ("on", "paused"):
            log.info("ordinary prompts run in this ComfyUI alone")


def install_ordinary(pack: Pack) -> None:
    """Put it into ComfyUI, while that loads its custom nodes."""
    host = pack.host
    folders = ComfyFolders(host.folder_paths)
    placer = FilePlacer(pack.saves, folders.__getitem__)
    knows = _knows_metadata(host.server)
    around = Surroundings(placer, host.server.send_sync, knows, folders, host.preview_side_px, host.user_folder)
    ordinary = pack.ordinary = OrdinaryPrompts(pack, QueueConsumer(host.server.prompt_queue), around)
    pass_on = functools.partial(_ask_again, host)
    host.server.app.middlewares.append(interrupt_middleware(ordinary, pack.jobs, pass_on))
    sweep(folders["output"] / SPOOL_FOLDER, [folders["output"], folders["temp"]])
    ordinary.start()


async def _ask_again(host: ComfyHost, request: web.Request, body: Any) -> tuple[int, Any]:
    """The same request with another body."""
    return await post_own(host, request.path, body, request)


def _knows_metadata(server: Any) -> Callable[[str | None], bool]:
    """Whether a client's page said that it knows previews that say whose they are."""

    def knows(client_id: str | None) -> bool:
        flags = server.sockets_metadata.get(client_id, {}).get("feature_flags", {})
        return bool(flags.get("supports_preview_metadata"))

    return knows

