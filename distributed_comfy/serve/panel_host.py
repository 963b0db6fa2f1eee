"""The panel as `distributed-comfy serve` has it: for whoever has this user's token, and not in the clear over a network."""
from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from distributed_comfy.errors import ClusterNotReady
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.pack_token import token_path
from distributed_comfy.panel.callers import Callers, Refused
from distributed_comfy.panel.page import UI_PATH
from distributed_comfy.panel.place import Kind, Master, TakeOver
from distributed_comfy.panel.routes import Panel
from distributed_comfy.panel.token import read_token
from distributed_comfy.serve.doorman import is_private
from distributed_comfy.settings import Settings
from tasks.cluster import Cluster, open_cluster

Lead = Callable[[Callable[[str], None], threading.Event], None]

PANEL = web.AppKey("panel", Panel)
SHOWS_TOKEN = "`distributed-comfy comfyui token` prints it there"
_EVERYWHERE = ("0.0.0.0", "::")


class ServePlace:
    """See `panel.place.Place`.

    Args:
        settings: of this process.
        servers: which it serves.
        taken_over: see `Place.taken_over`.
        lead: see `Place.lead_here`.
    """

    kind: Kind = "serve"
    master: Master | None = None

    def __init__(self, settings: Settings, servers: Servers, taken_over: TakeOver, lead: Lead) -> None:
        self.own = settings
        self.out = Path("output").absolute()
        self.taken_over = taken_over
        self.lead_here = lead
        self._servers = servers
        self._cluster: Cluster | None = None
        self._ended = False
        self._opening = threading.Lock()

    @property
    def settings(self) -> Settings:
        """A host that was invited serves no panel, so they are the same."""
        return self.own

    def cluster(self) -> Cluster:
        """Opened at the first call; the connections find their servers again by themselves."""
        with self._opening:
            if self._ended:
                raise ClusterNotReady(state="ending")
            if self._cluster is None:
                self._cluster = open_cluster(self.own, self._servers.redis_url, self._servers.blob_url)
            return self._cluster

    def servers(self) -> Servers | None:
        """Where it is."""
        return self._servers

    def end(self) -> None:
        """Give the connections back."""
        with self._opening:
            self._ended = True
            if self._cluster is not None:
                self._cluster.close()


def add_panel(application: web.Application, place: ServePlace, *, allow_plain: bool) -> Panel:
    """Add the panel to an application that does not listen yet.

    Args:
        application: of the relay.
        place: see `ServePlace`.
        allow_plain: also for those who come over a network without encryption.
    """
    path = token_path(place.own)
    read_token(path)  # a file that cannot be used stops the start, not the first page
    callers = Callers(
        lambda: read_token(path), place.own.comfyui_names.split(","), what="this server", shows_token=SHOWS_TOKEN
    )

    def judge(request: web.Request) -> None:
        if not allow_plain and not is_private(request):
            reason = "the connection is not encrypted; use https:// (or start serve with --allow-plain in a network you trust)"
            raise Refused(403, reason, "not_encrypted")
        callers.check_token(request)

    async def end(_application: web.Application) -> None:
        await panel.end()
        place.end()

    panel = Panel(place)
    application[PANEL] = panel
    application.add_routes([web.get("/", _lead), *panel.routes(judge)])
    application.on_shutdown.append(end)
    return panel


def panel_address(settings: Settings, url: str) -> tuple[str, str]:
    """Of the page, and its token."""
    host = urlsplit(url).hostname or ""
    shown = url.replace("[::]" if ":" in host else host, "127.0.0.1", 1) if host in _EVERYWHERE else url
    return shown + UI_PATH, read_token(token_path(settings))


async def _lead(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound(UI_PATH)
