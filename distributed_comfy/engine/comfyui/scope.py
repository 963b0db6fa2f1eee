"""The two places where ComfyUI's executor asks for something, and gets our answer for the run that is on.

Both are set once, as subclasses in the ``execution`` module, and change nothing while no run of ours is on.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distributed_comfy.engine.comfyui.choices import is_output_node
from distributed_comfy.errors import EngineStartFailed
from distributed_comfy.messages import Prompt


@dataclass
class RunScope:
    """The run that is on."""

    claim_id: str = ""
    targets: frozenset[str] = frozenset()
    original_prompt: Prompt = field(default_factory=dict)
    _decided: dict[str, bool] = field(default_factory=dict)
    writing_expanders: set[str] = field(default_factory=set)
    """Node classes seen to expand into graphs that write files: left in the cache, they would not write again.  Outlives a run."""

    def begin(self, claim_id: str, targets: tuple[str, ...], original_prompt: Prompt) -> None:
        """A run starts."""
        self.claim_id, self.targets, self.original_prompt = claim_id, frozenset(targets), original_prompt
        self._decided = {}

    def end(self) -> None:
        """The run is over."""
        self.begin("", (), {})

    def is_fresh(self, node_id: str, dynprompt: Any, classes: dict[str, Any]) -> bool:
        """True for a node that must run even if ComfyUI has its result in the cache.

        Those are the targets, output nodes that an expansion created, and nodes that create such.

        Args:
            dynprompt: ComfyUI's running graph.
            classes: ComfyUI's ``NODE_CLASS_MAPPINGS``.
        """
        if not self.claim_id:
            return False
        if node_id not in self._decided:  # asked for each node once per node below it
            class_type = dynprompt.get_node(node_id)["class_type"]
            created = dynprompt.get_parent_node_id(node_id) is not None
            self._decided[node_id] = (
                node_id in self.targets or class_type in self.writing_expanders or (created and is_output_node(classes[class_type]))
            )
        return self._decided[node_id]


def install_scope(execution: Any, classes: dict[str, Any], scope: RunScope) -> None:
    """Make the executor follow ``scope``.

    Output nodes must write their files in each run, although ComfyUI serves an unchanged output node from its cache without running it
    (and then names files that were shipped and deleted long ago).  Three ways were weighed:

    - an extra unknown input with the claim id: ComfyUI drops unknown literals before the call, but not for classes that accept any
      input (V3 ``accept_all_inputs``, packs with dict subclasses that contain every key): those would get a stray argument;
    - deleting the nodes from the executor's cache: the cache's inside differs from version to version, and newer ones ask external
      cache providers as well;
    - the change marker (``IS_CHANGED``) that ComfyUI mixes into each node's cache key: one method, the same in 0.3.64, 0.16 and later,
      asked for every node; it reaches neither validation nor the call, and everything upstream keeps its key.  This one is used.

    Args:
        execution: ComfyUI's ``execution`` module.
        classes: ComfyUI's ``NODE_CLASS_MAPPINGS``.
        scope: filled by the engine before each run.
    Raises:
        EngineStartFailed: this ComfyUI has no such classes any more.
    """
    for name in ("IsChangedCache", "DynamicPrompt"):
        if not hasattr(execution, name):
            raise EngineStartFailed(reason=f"this ComfyUI has no execution.{name}; use a version that is tested with this project")
    execution.IsChangedCache = _fresh_targets(execution.IsChangedCache, classes, scope)
    execution.DynamicPrompt = _user_prompt(execution.DynamicPrompt, scope)


def _fresh_targets(base: Any, classes: dict[str, Any], scope: RunScope) -> type:
    async def get(self: Any, node_id: str) -> Any:
        if scope.is_fresh(node_id, self.dynprompt, classes):
            return scope.claim_id
        return await base.get(self, node_id)

    return type("FreshTargets", (base,), {"get": get})


def _user_prompt(base: Any, scope: RunScope) -> type:
    """``get_original_prompt`` feeds the hidden input PROMPT, so images carry the user's prompt; the graph itself stays the cut one."""

    def get_original_prompt(self: Any) -> Any:
        return scope.original_prompt or base.get_original_prompt(self)

    return type("UserPrompt", (base,), {"get_original_prompt": get_original_prompt})
