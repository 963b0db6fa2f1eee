"""Orders to the agent of a host and its answers: records as in `messages`, and the proof of who sent one."""
from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from distributed_comfy.messages import MESSAGE_VERSION, dump

HostVerb = Literal[
    "add", "edit", "remove", "enable", "disable", "start", "stop", "restart", "drain", "resume", "clear-memory", "config", "reload"
]
"""What an agent can be told; see `distributed_comfy.agent.orders`."""


@dataclass(frozen=True)
class HostOrder:
    """One order to the agent of a host, sent through its queue ``host.<host>``."""

    order_id: str
    """Made up by the sender; an order that comes twice is carried out once."""
    verb: HostVerb
    worker: str = ""
    """Name of the worker it is about; empty where it is about the host."""
    arguments: dict[str, Any] = field(default_factory=dict)
    valid_until_ms: int = 0
    """Redis time after which nobody waits for the answer, so that it must not be carried out any more."""
    signature: str = ""
    """Proof that the sender may steer this host's agent, see `sign_order`; without it no agent obeys."""
    version: int = MESSAGE_VERSION


@dataclass(frozen=True)
class HostAnswer:
    """What an agent did with an order."""

    order_id: str
    host: str
    text: str = ""
    """For people."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For programs."""
    error: dict[str, Any] | None = None
    """Wire form of the error, where it did not do it."""
    version: int = MESSAGE_VERSION


def sign_order(order: HostOrder, secret: str) -> HostOrder:
    """The order with its signature under a secret of the host's agent.

    There are two: one lies in a file that only the agent's own user can read, and proves that the order comes from that user on that host;
    the other (the *seal*) lies in a key of the state Redis that only masters can read, and the host alone can write.
    """
    return replace(order, signature=hmac.new(secret.encode(), dump(replace(order, signature="")).encode(), hashlib.sha256).hexdigest())


def is_signed(order: HostOrder, secret: str) -> bool:
    """Whether `sign_order` made the signature, with this secret."""
    return hmac.compare_digest(order.signature, sign_order(order, secret).signature)
