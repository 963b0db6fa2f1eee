"""One prompt in the queue of a ComfyUI that others use as well: queued once, waited for, found again after an outage, ended on demand."""
from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed_comfy.engine.attach.server import Answer, ComfyServer
from distributed_comfy.engine.attach.translation import Translation
from distributed_comfy.engine.refusals import lacking, refusal_of
from distributed_comfy.errors import ComfyUIDropped, ComfyUIUnreachable, WorkerLacks

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often queue and history are looked at where no event comes: the web socket may have been away."""

_SETTLE_S = 0.02  # ComfyUI tells of an end just before the history has it
_STOP_S = 0.25
_LOOKS_UNTIL_LOST = 3
_ACCEPTED = 200
_NAMES = uuid.UUID("5a3b0c1e-6f0c-4e57-9b62-6f4f1f6c2a10")

History = dict[str, Any]
"""An entry of ComfyUI's history: ``outputs``, ``status``, ``meta``."""


@dataclass(frozen=True)
class Waiter:
    """What `Prompts.follow` asks and tells while it waits."""

    stop_requested: Callable[[], bool]
    wait_for_news: Callable[[float], None]
    """Wait until something happened, at most so many seconds."""
    queued: Callable[[int], None]
    """Called while the prompt is in the queue behind so many others."""


def prompt_id_of(claim_id: str) -> str:
    """The prompt id of a claim, so that it can be found again whatever answer was lost; a UUID, as newer versions demand."""
    return str(uuid.uuid5(_NAMES, claim_id))


class Prompts:
    """The queue of one ComfyUI, as far as prompts of this worker are concerned."""

    def __init__(self, server: ComfyServer, worker: str) -> None:
        self._server = server
        self._worker = worker

    def clear_leftovers(self) -> None:
        """End what an earlier process of this worker left in the queue: nobody waits for it."""
        queue = self._server.ask("/queue")
        for entry in [*queue["queue_running"], *queue["queue_pending"]]:
            if len(entry) > 3 and (entry[3] or {}).get("client_id") == self._server.client_id:
                log.warning("ends prompt %s, which an earlier process of this worker left in the queue", entry[1])
                self.stop(str(entry[1]))

    def queue(self, translation: Translation, prompt_id: str, extra_pnginfo: dict[str, Any]) -> None:
        """Queue a prompt, once, also where the answer gets lost.

        Args:
            translation: all its targets must run; ComfyUI would leave out those that are invalid.
        Raises:
            WorkerLacks, ValidationRefused: it does not take it.
            ComfyUIUnreachable: it does not answer.
        """
        extra: dict[str, Any] = {"client_id": self._server.client_id}
        if extra_pnginfo:
            extra["extra_pnginfo"] = extra_pnginfo
        body = {"prompt": translation.prompt, "prompt_id": prompt_id, "client_id": self._server.client_id, "extra_data": extra}
        answer = self._order_once(body, prompt_id)
        if answer is None:
            return
        said = answer.body if isinstance(answer.body, dict) else {}
        node_errors = said.get("node_errors") or {}
        if answer.status == _ACCEPTED and not node_errors:
            return
        if answer.status == _ACCEPTED:  # it runs what is valid, which is of no use
            self.stop(prompt_id)
        error = said.get("error") or (None if node_errors else {"message": f"status {answer.status}", "details": str(answer.body)[:500]})
        refusal = refusal_of(error, _renamed(node_errors, translation.origin), translation.prompt, translation.targets)
        lacks = lacking(refusal)
        if lacks:
            raise WorkerLacks(worker=self._worker, lacks=", ".join(lacks))
        raise refusal

    def follow(self, prompt_id: str, waiter: Waiter) -> History | None:
        """Wait for the end of a prompt.

        Returns:
            Its history entry; None where it was stopped before it began.
        Raises:
            ComfyUIDropped: ComfyUI does not know it any more.
        """
        unseen = 0
        while True:
            try:
                entry = self._history(prompt_id)
                if entry is not None:
                    return entry
                place = self._place(prompt_id)
                unseen = unseen + 1 if place is None else 0
                if place is not None and waiter.stop_requested():
                    self.stop(prompt_id)
            except ComfyUIUnreachable as error:  # who holds the web socket decides when it is gone
                log.debug("prompt %s: %s", prompt_id, error)
                time.sleep(_STOP_S)
                continue
            if unseen and waiter.stop_requested():
                return None
            if unseen >= _LOOKS_UNTIL_LOST:
                reason = "it is neither in the queue nor in the history, so ComfyUI was started anew or somebody cleared its queue"
                raise ComfyUIDropped(url=self._server.shown, reason=reason)
            if place:
                waiter.queued(place)
            waiter.wait_for_news(_SETTLE_S if unseen else _STOP_S if waiter.stop_requested() else POLL_S)

    def stop(self, prompt_id: str) -> None:
        """Take a prompt out of the queue, or interrupt it where it runs; never another one."""
        place = self._place(prompt_id)
        if place == 0:
            self._server.order("/interrupt", {"prompt_id": prompt_id})
        elif place is not None:
            self._server.order("/queue", {"delete": [prompt_id]})

    def forget(self, prompt_id: str) -> None:
        """Take a finished prompt out of the history, where people would take it for their own; nothing depends on it."""
        try:
            self._server.order("/history", {"delete": [prompt_id]})
        except ComfyUIUnreachable as error:
            log.debug("prompt %s stays in the history: %s", prompt_id, error)

    def _order_once(self, body: dict[str, Any], prompt_id: str) -> Answer | None:
        """The answer; None where a prompt is there whose answer was lost."""
        try:
            return self._server.order("/prompt", body)
        except ComfyUIUnreachable as error:
            if not error.lost:
                raise
            log.warning("%s; looking whether the prompt came through", error)
        while True:  # until ComfyUI is back; who holds the web socket decides when it is gone
            try:
                if self._history(prompt_id) is not None or self._place(prompt_id) is not None:
                    return None
                return self._server.order("/prompt", body)
            except ComfyUIUnreachable as error:
                if not error.lost:
                    raise
                time.sleep(POLL_S)

    def _history(self, prompt_id: str) -> History | None:
        found: History | None = self._server.ask(f"/history/{prompt_id}").get(prompt_id)
        return found

    def _place(self, prompt_id: str) -> int | None:
        """How many prompts are before this one, 0 while it runs; None where the queue does not have it."""
        queue = self._server.ask("/queue")
        if any(entry[1] == prompt_id for entry in queue["queue_running"]):
            return 0
        mine = [entry[0] for entry in queue["queue_pending"] if entry[1] == prompt_id]
        if not mine:
            return None
        # ComfyUI runs the lowest number first, and shows its heap unsorted.
        return len(queue["queue_running"]) + sum(entry[0] < mine[0] for entry in queue["queue_pending"]) or 1


def _renamed(node_errors: Mapping[str, Any], origin: Mapping[str, str]) -> dict[str, Any]:
    """Node errors under the ids of the item's prompt."""
    renamed: dict[str, Any] = {}
    for node_id, entry in node_errors.items():
        dependent = dict.fromkeys(origin.get(node, node) for node in entry.get("dependent_outputs", ()))
        here = renamed.setdefault(origin.get(node_id, node_id), {**entry, "errors": [], "dependent_outputs": list(dependent)})
        here["errors"] += entry["errors"]
    return renamed
