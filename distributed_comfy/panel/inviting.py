"""Invitations from a page: the one command that a new host runs."""
from __future__ import annotations

from typing import Any

from distributed_comfy.orchestrator.inviting import InviteOptions, invite, invites_of, revoke
from distributed_comfy.panel.bodies import BadRequest
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.tunnels import Tunnels

_NAMES = ("url", "created_ms", "expires_ms", "joined_ms", "seen_ms", "connections")
_SHORTEST_S, _LONGEST_S = 60.0, 30 * 86_400.0


class PanelInvites:
    """One panel's; waits for Redis.

    Args:
        place: what serves the panel.
        tunnels: its public address.
    """

    def __init__(self, place: Place, tunnels: Tunnels) -> None:
        self._place = place
        self._tunnels = tunnels

    def all(self) -> list[dict[str, Any]]:
        """As ``Invite`` of openapi.json each."""
        with invites_of(self._place.own) as (invites, _):
            return [{"host": each.name, **{name: getattr(each, name) for name in _NAMES}} for each in invites.all()]

    def invite(self, options: InviteOptions, *, by_tunnel: bool) -> dict[str, Any]:
        """Invite a host; as ``NewInvite`` of openapi.json, which is a password.

        Raises:
            BadRequest: it may not last so long.
            DistributedComfyError: see `orchestrator.inviting.invite`.
        """
        if not _SHORTEST_S <= options.expires_s <= _LONGEST_S:
            raise BadRequest(f"expires_s must be from {_SHORTEST_S:g} to {_LONGEST_S:g}")
        if by_tunnel and (options.url or options.bind):
            raise BadRequest("an invitation by the tunnel has neither url nor bind")
        if by_tunnel:
            options = InviteOptions(name=options.name, url=self._tunnels.url(), expires_s=options.expires_s, check=False)
        token = invite(self._place.own, options)
        return {
            "host": token.host, "url": token.url, "expires_ms": token.expires_ms, "fingerprint": token.fingerprint,
            "command": f"distributed-comfy up --join {token.text}",
        }  # fmt: skip

    def revoke(self, name: str) -> dict[str, Any]:
        """Shut a host out."""
        revoke(self._place.own, name)
        return {"host": name, "text": f"host {name} is shut out; its token is of no use any more"}
