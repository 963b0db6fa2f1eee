"""The node pack of this project in a ComfyUI: whether it is there and lets us in, and what it does for the item that runs."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from distributed_comfy import __version__
from distributed_comfy.engine.attach.capability import NodeListing
from distributed_comfy.engine.attach.pack_words import (
    ATTACH_PATH,
    FRAME_ROOM_BYTES,
    NOT_FOR_IT,
    VISITS_PATH,
    WANTED_S,
    PackFacts,
    Visit,
    VisitResult,
)
from distributed_comfy.engine.attach.server import Answer, ComfyServer
from distributed_comfy.engine.base import CapturedValue
from distributed_comfy.errors import (
    BlobMissing,
    ComfyUIDropped,
    ComfyUIUnreachable,
    DistributedComfyError,
    EngineStartFailed,
    ItemInterrupted,
    WorkerLacks,
    from_wire,
)
from distributed_comfy.messages import Capture, from_plain, to_plain
from distributed_comfy.pack_token import KEY_HEADER, attach_key, kept_token
from distributed_comfy.transport.frames import BytesLike
from distributed_comfy.transport.values import framed_value

log = logging.getLogger(__name__)

_GOOD = 200
_PAUSE_S = 0.2
_LATE_S = 0.02


@dataclass(frozen=True)
class Feed:
    """Gives the blobs of an item's feed."""

    hand_on: Callable[[str, Callable[[BytesLike], None]], bool]
    """`GraphContext.hand_on`."""
    timeout_s: float
    """Longest wait for one of them."""


class PackDoor:
    """The routes of the pack that are for workers; talks with a key made of the token, which itself is never sent."""

    def __init__(self, server: ComfyServer, token: str, token_file: Path | None) -> None:
        """Args:
        server: the ComfyUI.
        token: that the user gave; empty for none.
        token_file: where that of this user's ComfyUI on this host lies.
        """
        self._server = server
        self._token = token
        self._token_file = token_file
        self._pack = f"the node pack of the ComfyUI at {server.shown}"
        self._told = ""

    def look(self, listing: NodeListing) -> PackFacts | None:
        """What the pack tells, where it carries everything for us; else None, with a line in the log that says what to do.

        Raises:
            EngineStartFailed: the user gave a token, and it is a wrong one.
            ComfyUIUnreachable: ComfyUI does not answer.
        """
        if not listing.has_pack:
            self._tell("")
            return None
        answer = self._ask("GET", ATTACH_PATH)
        facts = _facts(answer)
        why = self._why_not(answer, facts)
        if why:
            self._tell(f"{self._pack} {why}; until then images come as 8 bits, and no tiles run there")
            return None
        self._tell(f"{self._pack} carries all values exactly", level=logging.INFO)
        return facts

    def _why_not(self, answer: Answer, facts: PackFacts | None) -> str:
        here = f"install version {__version__} in its environment, or that version here"
        if facts is None and answer.status == 404:
            return f"is of another version, which knows no workers; {here}"
        if facts is None:
            said = answer.body.get("error") if isinstance(answer.body, dict) else None
            return f"refuses this worker: {said or f'status {answer.status}'}"
        if facts.version != __version__:
            return f"is of version {facts.version}; {here}"
        if facts.allowed:
            return ""
        remedy = "`distributed-comfy comfyui token` on its host prints the right one"
        if self._token:
            raise EngineStartFailed(reason=f"{self._pack} does not take DC_COMFYUI_TOKEN; {remedy}")
        return f"wants its token from this worker; set DC_COMFYUI_TOKEN, or use --comfyui-token: {remedy}"

    def _tell(self, line: str, level: int = logging.WARNING) -> None:
        if line and line != self._told:
            log.log(level, "%s", line)
        self._told = line

    # -- requests -------------------------------------------------------------------------------------------------------
    def ask(self, method: str, path: str, *, worker: str = "", **options: Any) -> Any:
        """The JSON of an answer.

        Raises:
            ComfyUIDropped: the pack does not know the visit (any more), or does not do it.
            WorkerLacks: the item is for another one than this worker.
            ComfyUIUnreachable: see `ComfyServer`.
        """
        answer = self._ask(method, path, **options)
        if answer.status == NOT_FOR_IT and isinstance(answer.body, dict):
            raise WorkerLacks(worker=worker, lacks=str(answer.body.get("error")))
        return self._good(answer)

    def put(self, path: str, content: BytesLike, blob: str) -> None:
        """Send a frame; errors as `ask`."""
        params = {"id": blob, "size": str(len(content))}
        self._good(self._server.put(path, content, params=params, headers=self._headers()))

    def fetch(self, path: str, blob: str, limit_bytes: int) -> bytearray:
        """Fetch a frame; errors as `ask`."""
        found = self._server.fetch(path, limit_bytes, params={"id": blob}, headers=self._headers())
        if found is None:
            raise self._dropped("the pack has lost what the item gave")
        return found

    def _ask(self, method: str, path: str, **options: Any) -> Answer:
        return self._server.exchange(method, path, headers=self._headers(), **options)

    def _headers(self) -> dict[str, str]:
        token = self._token or (kept_token(self._token_file) if self._token_file else "")
        return {KEY_HEADER: attach_key(token)} if token else {}

    def _good(self, answer: Answer) -> Any:
        if answer.status == _GOOD and isinstance(answer.body, dict):
            return answer.body
        said = answer.body.get("error") if isinstance(answer.body, dict) else None
        raise self._dropped(f"its node pack says: {said or f'status {answer.status}'}")

    def _dropped(self, reason: str) -> ComfyUIDropped:
        return ComfyUIDropped(url=self._server.shown, reason=reason)


class Visiting:
    """A context round the run of one item: a thread hands the feed on as it is wanted, another one tells meanwhile that we live."""

    def __init__(self, door: PackDoor, visit: Visit, feed: Feed, on_problem: Callable[[], None]) -> None:
        """Args:
        door: of the pack.
        visit: the item.
        feed: where the blobs of its feed come from.
        on_problem: called, from a thread, when the item cannot go on; `problem` says why.
        """
        self._door = door
        self._visit = visit
        self._path = f"{VISITS_PATH}/{quote(visit.claim_id, safe='')}"
        self._hand_on, self._feed_timeout_s = feed.hand_on, feed.timeout_s
        self._on_problem = on_problem
        self._late: dict[str, float] = {}
        """Since when something is wanted that is not there."""
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(step,), name=name, daemon=True)
            for name, step in (("comfyui-feed", self._serve), ("comfyui-alive", self._live))
        ]
        self.problem: DistributedComfyError | None = None
        self.kept: tuple[str, ...] = ()
        """Files of this worker that lie in ComfyUI's input folder."""

    def open(self) -> None:
        """Announce the item.

        Raises:
            WorkerLacks: another worker is to run the item.
            ComfyUIDropped: the pack does not let it in now.
            ComfyUIUnreachable: ComfyUI does not answer.
        """
        opened = self._door.ask("POST", VISITS_PATH, worker=self._visit.worker, json=to_plain(self._visit))
        self.kept = tuple(map(str, opened.get("files", ())))

    def __enter__(self) -> Visiting:
        """It is open."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Where ComfyUI does not answer, the pack ends the visit by itself."""
        self._ending.set()
        try:
            self._door.ask("DELETE", self._path)
        except (ComfyUIUnreachable, ComfyUIDropped) as lost:
            log.debug("visit %s: %s", self._visit.claim_id, lost)
        for thread in self._threads:
            thread.join()

    def result(self) -> VisitResult:
        """What the nodes of the item did; only when its prompt has ended."""
        return from_plain(VisitResult, self._door.ask("GET", f"{self._path}/captures"))

    def captured(self, capture: Capture) -> CapturedValue:
        """A capture with its frames."""
        value = framed_value(self, capture.value, limit_bytes=self._visit.limit_bytes)
        return CapturedValue(capture.node_id, capture.slot, capture.list_index, value)

    def get(self, blob: str) -> memoryview:
        """See `BlobReader.get`."""
        return memoryview(self._door.fetch(f"{self._path}/blob", blob, self._visit.limit_bytes + FRAME_ROOM_BYTES))

    def require_well(self) -> None:
        """
        Raises:
            DistributedComfyError: `problem`.
        """
        if self.problem is not None:
            raise self.problem

    def _repeat(self, step: Callable[[], None]) -> None:
        try:
            while not self._ending.is_set():
                try:
                    step()
                except (ComfyUIUnreachable, ItemInterrupted) as error:  # who waits for the prompt decides what follows
                    log.debug("visit %s: %s", self._visit.claim_id, error)
                    self._ending.wait(_PAUSE_S)
        except DistributedComfyError as error:
            if not self._ending.is_set():
                self.problem = error
                self._on_problem()

    def _live(self) -> None:
        """A large blob may take longer on its way to us than the pack bears silence."""
        if not self._ending.wait(WANTED_S):
            self._wanted()

    def _wanted(self) -> list[str]:
        return [str(blob) for blob in self._door.ask("GET", f"{self._path}/wanted").get("blobs", ())]

    def _serve(self) -> None:
        wanted = self._wanted()
        self._late = {blob: since for blob, since in self._late.items() if blob in wanted}
        for blob in wanted:
            if self._ending.is_set() or not self._handed_on(blob):
                break
        if self._late:  # asked again after a moment, which tells that we live
            self._ending.wait(_LATE_S)

    def _handed_on(self, blob: str) -> bool:
        """
        Raises:
            BlobMissing: nobody has given it for too long.
        """
        if self._hand_on(blob, lambda frame: self._door.put(f"{self._path}/blob", frame, blob)):
            return True
        if time.monotonic() - self._late.setdefault(blob, time.monotonic()) > self._feed_timeout_s:
            raise BlobMissing(blob=blob)
        return False


def failure_of(result: VisitResult) -> DistributedComfyError | None:
    """The error of a node of ours, with its facts, of which ComfyUI tells the text alone."""
    return from_wire(result.failure) if result.failure else None


def _facts(answer: Answer) -> PackFacts | None:
    """What an answer says; another version may say more."""
    body = answer.body
    if answer.status != _GOOD or not isinstance(body, dict) or not isinstance(body.get("version"), str):
        return None
    return PackFacts(body["version"], body.get("allowed") is True, str(body.get("device_class", "")))
