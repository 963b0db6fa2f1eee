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

    def capabilities(self) -> dict[str, Capability]:
        """Every capability that a registered worker has, by hash."""
        stored = self._scripts.client.hgetall(self._scripts.keys("caps"))
        return {name: load(Capability, text) for name, text in stored.items()}

    def match_signatures(self, signatures: Iterable[str]) -> None:
        """Signatures that are new: against all capabilities."""
        wanted = {sig for sig in signatures if sig}
        requirements = {sig: text for sig, text in self._requirements().items() if sig.split("!")[0] in wanted}
        self._store(requirements, self.capabilities())

    def match_capability(self, name: str, capability: Capability) -> None:
        """A capability that is new: against all signatures."""
        self._store(self._requirements(), {name: capability})

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
