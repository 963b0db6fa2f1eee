"""What the submitter of a prompt hears while it runs on a worker, in ComfyUI's own words, and what ComfyUI's history keeps of it.

In flow what workers pass on of their ComfyUIs' messages; out flow the same messages under the user's prompt id, to the client that
ComfyUI would tell.  A node that names files is announced when they are here: until then nobody could look at them.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distributed_comfy.comfyui.placed_files import names_files
from distributed_comfy.comfyui.previews import preview_for_page
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import ItemResult, RunHistory
from distributed_comfy.orchestrator.progress import Said, Step

UNENCODED_PREVIEW, PREVIEW_WITH_METADATA = 2, 4
"""ComfyUI's numbers for pictures that its server encodes: for clients of the old kind, and for those that know whose they are."""

_STEPS = frozenset({"progress", "progress_state"})
"""Messages that ComfyUI sends to all clients where a prompt has none."""

SendSync = Callable[[Any, Any, Any], None]
"""``PromptServer.send_sync``: event, data, client."""


@dataclass
class _Execution:
    """What is known of the execution that is on; another worker may begin it anew."""

    claim_id: str = ""
    started: list[str] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    states: dict[str, Any] = field(default_factory=dict)
    announced: set[str] = field(default_factory=set)
    """Nodes whose ui result was told."""
    held: list[tuple[str, dict[str, Any]]] | None = None
    """Steps that came after a node had named files, for as long as no other node begins: ComfyUI tells the files first."""


class PromptEvents:
    """The messages of one prompt; may be called from several threads.

    Args:
        send: ComfyUI's ``send_sync``.
        prompt_id: as the submitter knows it.
        client_id: who hears about it; None where nobody asked to.
        prompt: the graph.
    """

    def __init__(self, send: SendSync, prompt_id: str, client_id: str | None, prompt: Mapping[str, Mapping[str, Any]]) -> None:
        self._send_sync = send
        self._prompt_id, self._client_id = prompt_id, client_id
        self._prompt = prompt
        self._lock = threading.Lock()
        self._now = _Execution()
        self._over = False
        self.messages: list[tuple[str, dict[str, Any]]] = []
        """As ComfyUI's executor notes them for the history."""

    def start(self) -> None:
        """The prompt was taken."""
        with self._lock:
            self._note("execution_start", {})

    # -- while it runs
    def hear(self, said: Said) -> None:
        """A worker's ComfyUI said something."""
        with self._lock:
            if self._over:
                return
            if said.claim_id != self._now.claim_id:
                self._now = _Execution(said.claim_id)
            self._hear(said.event, _under(said.facts, self._prompt_id))

    def _hear(self, event: str, facts: dict[str, Any]) -> None:
        now = self._now
        if event == "execution_cached":
            self._tell_cached(facts.get("nodes", ()))
        elif event == "executing":
            now.started.append(str(facts.get("node")))
            self._tell_held()
            self._tell(event, facts)
        elif event == "executed" and names_files(facts.get("output")):
            now.held = now.held or []
        elif event == "execution_error":  # of a branch that a node has blocked; the prompt goes on
            self._tell(event, facts)
        elif event == "executed":
            now.announced.add(str(facts.get("node")))
            self._tell(event, facts)
        elif event in _STEPS:
            self._note_states(event, facts)
            if now.held is None:
                self._tell(event, facts)
            else:
                now.held.append((event, facts))

    def _note_states(self, event: str, facts: dict[str, Any]) -> None:
        if event == "progress_state":
            self._now.states = {node_id: state for node_id, state in facts.get("nodes", {}).items() if isinstance(state, dict)}
            self._now.finished = {node_id for node_id, state in self._now.states.items() if state.get("state") == "finished"}

    def _tell_held(self) -> None:
        for event, facts in self._now.held or ():
            self._tell(event, facts)
        self._now.held = None

    def preview(self, step: Step, *, with_metadata: bool, side_px: int) -> None:
        """A worker shows a picture; only the prompt's own client gets it.

        Args:
            step: the picture and its node.
            with_metadata: whether that client knows previews that say whose they are.
            side_px: how large ComfyUI shows previews of latents.
        """
        if not step.preview or self._client_id is None or self._over:
            return
        if (shown := preview_for_page(step.preview, side_px)) is None:
            return
        if with_metadata:
            self._send_sync(PREVIEW_WITH_METADATA, (shown, self._whose(step.node_id)), self._client_id)
        else:
            self._send_sync(UNENCODED_PREVIEW, shown, self._client_id)

    def _whose(self, node_id: str) -> dict[str, Any]:
        with self._lock:
            states = [state for state in self._now.states.values() if state.get("real_node_id") == node_id]
        state: dict[str, Any] = next((state for state in reversed(states) if state.get("state") == "running"), {})
        return {
            "node_id": state.get("node_id", node_id),
            "prompt_id": self._prompt_id,
            "display_node_id": state.get("display_node_id", node_id),
            "parent_node_id": state.get("parent_node_id"),
            "real_node_id": node_id,
        }

    # -- the end
    def succeed(self, result: ItemResult, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The prompt is done.

        Args:
            result: from the worker.
            outputs: node id -> ui result, with the names that files have here.
        Returns:
            What ComfyUI's executor would hand to the history.
        """
        history = result.history or RunHistory()
        meta = {node_id: history.meta.get(node_id) or _meta(node_id) for node_id in outputs}
        with self._lock:
            self._over = True
            if not self._has("execution_cached"):
                self._tell_cached(history.cached)
            for node_id, ui in outputs.items():
                if node_id not in self._now.announced and (node_id in self._now.started or names_files(ui)):
                    self._tell("executed", {"node": node_id, "display_node": meta[node_id]["display_node"], "output": ui, **self._id})
            self._tell_held()
            self._note("execution_success", {})
        return {"outputs": dict(outputs), "meta": meta}

    def fail(self, error: DistributedComfyError) -> None:
        """The prompt failed by its own fault, in the worker's words."""
        said = error.fields.get("said") or {}
        with self._lock:
            self._over = True
            facts = {**self._failure(error), **(said.get("facts") or {})}
            if said.get("event") == "execution_interrupted":
                self._note("execution_interrupted", said["facts"], to_everybody=True)
            else:
                self._note("execution_error", facts)

    def interrupt(self) -> None:
        """The user ended it."""
        with self._lock:
            self._over = True
            self._note("execution_interrupted", self._where(), to_everybody=True)

    def abandon(self) -> None:
        """It goes on somewhere else; nothing more is told from here."""
        with self._lock:
            self._over = True

    def end(self) -> None:
        """ComfyUI has it in its history: the client learns that nothing of it runs."""
        self._tell("executing", {"node": None, **self._id})

    # -- inside
    @property
    def _id(self) -> dict[str, str]:
        return {"prompt_id": self._prompt_id}

    def _failure(self, error: DistributedComfyError) -> dict[str, Any]:
        """For an error of which no ComfyUI said anything, such as the death of its process."""
        return {
            **self._where(),
            "exception_message": f"{error}\n",
            "exception_type": type(error).__name__,
            "traceback": [],
            "current_inputs": {},
            "current_outputs": [],
        }

    def _where(self) -> dict[str, Any]:
        """The node that runs, and those that are done."""
        now = self._now
        running = [node_id for node_id in now.started if node_id not in now.finished]
        node_id = (running or now.started or list(self._prompt))[-1]
        real = (now.states.get(node_id) or {}).get("real_node_id", node_id)
        return {
            "node_id": real,
            "node_type": self._prompt.get(real, {}).get("class_type", ""),
            "executed": [done for done in dict.fromkeys(now.started) if done in now.finished],
        }

    def _tell_cached(self, nodes: Any) -> None:
        """Noted once, however often the prompt was begun: the last one counts."""
        self.messages = [message for message in self.messages if message[0] != "execution_cached"]
        self._note("execution_cached", {"nodes": [str(node) for node in nodes if str(node) in self._prompt]})

    def _has(self, event: Literal["execution_cached"]) -> bool:
        return any(name == event for name, _ in self.messages)

    def _note(self, event: str, facts: Mapping[str, Any], *, to_everybody: bool = False) -> None:
        message = {**facts, **self._id, "timestamp": int(time.time() * 1000)}
        self.messages.append((event, message))
        if to_everybody or self._client_id is not None:
            self._send_sync(event, message, self._client_id)

    def _tell(self, event: str, facts: dict[str, Any]) -> None:
        if self._client_id is not None or event in _STEPS:
            self._send_sync(event, facts, self._client_id)


def _meta(node_id: str) -> dict[str, Any]:
    """Of a node that the prompt itself has."""
    return {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}


def _under(facts: Mapping[str, Any], prompt_id: str) -> dict[str, Any]:
    """The same under the submitter's prompt id."""
    named = {**facts, "prompt_id": prompt_id}
    if isinstance(nodes := facts.get("nodes"), dict):
        named["nodes"] = {
            node_id: {**state, "prompt_id": prompt_id} if isinstance(state, dict) and "prompt_id" in state else state
            for node_id, state in nodes.items()
        }
    return named
