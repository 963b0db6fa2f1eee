"""Matches each requirement signature with each capability hash once, and stores which serves which."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from distributed_comfy.messages import Capability, Requirement, load
from distributed_comfy.state.readable import ReadableRecords
from distributed_comfy.state.scripts import Scripts

_BATCH = 1000  # arguments of one script call

T = TypeVar("T")

Matches = Callable[[Requirement, Capability], bool]
"""Whether a worker of this capability can run what needs this; injected, because planning knows the rule."""


class Matching:
    """Keeps ``sig_caps`` and ``cap_sigs`` complete."""

    def __init__(self, scripts: Scripts, matches: Matches) -> None:
        self._scripts = scripts
        self._matches = matches
        self._known: dict[str, Capability] = {}
        """What was read before, by hash; a real ComfyUI's are large, and a hash always means the same content."""
        self._readable = ReadableRecords()

    def capabilities(self) -> dict[str, Capability]:
        """Every capability that a registered worker has, by hash."""
        return self._capabilities(self._ask("hkeys", "caps"))

    def live(self) -> dict[str, Capability]:
        """Name of each worker whose lease runs -> its capability; one round trip, where no capability is new here."""
        flat = self._scripts.run("live")
        of_worker = dict(zip(flat[::2], flat[1::2], strict=True))
        known = self._known
        if not known.keys() >= set(of_worker.values()):
            known = self.capabilities()
        return {name: known[cap] for name, cap in of_worker.items() if cap in known}

    def known_pairs(self, requirements: Mapping[str, Requirement | None]) -> list[str]:
        """What `serve` takes, for signatures and the capabilities that were read before: ahead of a look at all of them, without one."""
        known = self._known
        return self._pairs({sig: need for sig, need in requirements.items() if sig and need is not None}, known)

    def match_signatures(self, signatures: Iterable[str]) -> None:
        """Signatures that are new: against all capabilities."""
        wanted = {sig for sig in signatures if sig}
        pipe = self._scripts.client.pipeline(transaction=False)
        pipe.hgetall(self._scripts.keys("sigs"))
        pipe.hkeys(self._scripts.keys("caps"))
        stored, names = self._scripts.reply(pipe.execute)
        requirements = {sig: text for sig, text in stored.items() if sig.split("!")[0] in wanted}
        self._store(requirements, self._capabilities(names), compared=list(requirements))

    def match_capability(self, name: str, capability: Capability) -> None:
        """A capability that is new: against all signatures."""
        self._store(self._ask("hgetall", "sigs"), {name: capability}, compared=[])

    def _capabilities(self, names: list[str]) -> dict[str, Capability]:
        """Those of the table under these hashes; one that has just gone, or is of another version, is left out."""
        known = self._known
        missing = [name for name in names if name not in known]
        if missing:
            texts = self._ask("hmget", "caps", missing)
            known = {**known, **self._read(_capability_of, "capability", dict(zip(missing, texts, strict=True)))}
        self._known = {name: known[name] for name in names if name in known}
        return dict(self._known)

    def _read(self, record_of: Callable[[str], T], called: str, texts: Mapping[str, str | None]) -> dict[str, T]:
        """Those records that are there, and of this version."""
        found = {name: self._readable.read(f"{called} {name}", lambda: record_of(text)) for name, text in texts.items() if text}  # noqa: B023
        return {name: record for name, record in found.items() if record is not None}

    def _ask(self, command: str, key: str, *args: object) -> Any:
        name = self._scripts.keys(key)
        return self._scripts.reply(lambda: getattr(self._scripts.client, command)(name, *args))

    def _store(self, requirements: dict[str, str], capabilities: dict[str, Capability], compared: list[str]) -> None:
        pairs = self._pairs(self._read(partial(load, Requirement), "what jobs need as", requirements), capabilities)
        for start in range(0, len(pairs), _BATCH):
            self._scripts.transition("serve", 0, *pairs[start : start + _BATCH])
        if compared:
            self._scripts.transition("serve", len(compared), *compared)

    def _pairs(self, requirements: Mapping[str, Requirement], capabilities: Mapping[str, Capability]) -> list[str]:
        """Signature and capability hash in turn, where they match."""
        return [
            part
            for sig, requirement in requirements.items()
            for name, capability in capabilities.items()
            if self._matches(requirement, capability)
            for part in (sig, name)
        ]


def _capability_of(text: str) -> Capability:
    """What a worker wrote; whoever looks a value up relies on each of its lists being there.

    Raises:
        MessageVersionUnknown: it is none.
        ValueError: it names a list that it does not have.
    """
    capability = load(Capability, text)
    lists = range(len(capability.choice_lists))
    named = [index for inputs in capability.choices.values() for index in inputs.values()]
    for index in (*named, *capability.model_lists.values()):
        if index not in lists:
            raise ValueError(f"it names list {index} of its {len(lists)} lists of values")
    return capability
