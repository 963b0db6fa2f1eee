"""The panel: workers, jobs and hosts of a cluster to see and to steer by HTTP, for the page in ``web/``.

    routes (aiohttp) -> callers (who may ask) -> *_orders, job_details, worker_logs ... (in threads) -> orchestrator, agent, state
    watch (one thread per process, while somebody looks) -> pulse (what Redis says) -> *_views (as the page has it) -> events

``openapi.json`` is what page and server agree on.  `place.Place` is what either host of it gives: `serve`, or the node pack, which has
a `place.Master` too.  No torch, no ComfyUI.
"""
