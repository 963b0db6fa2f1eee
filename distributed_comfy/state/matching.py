"""Matches each requirement signature with each capability hash once, and stores which serves which."""
from __future__ import annotations

from collections.abc import Callable, Iterable

from distributed_comfy.messages import Capability, Requirement, load
from distributed_comfy.state.scripts import Scripts

Matches = Callable[[Requirement, Capability], bool]
"""Whether a worker of this capability can run what needs this; injected, because planning knows the rule."""


class Matching:
    """Keeps ``sig_caps`` and ``cap_sigs`` complete."""

    def __init__(self, scripts: Scripts, matches: Matches) -> None:
        self._scripts = scripts
        self._matches = matches
        self._known: dict[str, Capability] = {}
        """What was read before, by hash; a real ComfyUI's are large, and a hash always means the same content."""

    def capabilities(self) -> dict[str, Capability]:
        """Every capability that a registered worker has, by hash."""
        return self._capabilities(self._scripts.client.hkeys(self._scripts.keys("caps")))

    def match_signatures(self, signatures: Iterable[str]) -> None:
        """Signatures that are new: against all capabilities."""
        wanted = {sig for sig in signatures if sig}
        pipe = self._scripts.client.pipeline(transaction=False)
        pipe.hgetall(self._scripts.keys("sigs"))
        pipe.hkeys(self._scripts.keys("caps"))
        stored, names = pipe.execute()
        self._store({sig: text for sig, text in stored.items() if sig.split("!")[0] in wanted}, self._capabilities(names))

    def match_capability(self, name: str, capability: Capability) -> None:
        """A capability that is new: against all signatures."""
        self._store(self._requirements(), {name: capability})

    def _capabilities(self, names: list[str]) -> dict[str, Capability]:
        """Those of the table under these hashes; one that has just gone is left out."""
        known = self._known
        missing = [name for name in names if name not in known]
        if missing:
            texts = self._scripts.client.hmget(self._scripts.keys("caps"), missing)
            known = {**known, **{name: load(Capability, text) for name, text in zip(missing, texts, strict=True) if text is not None}}
        self._known = {name: known[name] for name in names if name in known}
        return dict(self._known)

    def _requirements(self) -> dict[str, str]:
        return dict(self._scripts.client.hgetall(self._scripts.keys("sigs")))

    def _store(self, requirements: dict[str, str], capabilities: dict[str, Capability]) -> None:
        parsed = {sig: load(Requirement, text) for sig, text in requirements.items()}
        pairs = [
            part
            for sig, requirement in parsed.items()
            for name, capability in capabilities.items()
            if self._matches(requirement, capability)
            for part in (sig, name)
        ]
        for start in range(0, len(pairs), 1000):
            self._scripts.transition("serve", *pairs[start : start + 1000])
