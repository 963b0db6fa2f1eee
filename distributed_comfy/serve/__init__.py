"""The relay's end at the cluster: an aiohttp application that lets workers reach both Redis servers through HTTP alone.

    application -> doorman (who may come in) -> relay (one WebSocket, one connection to Redis) -> gate (which request may pass)

What passes for whom is a table of forms (`rules`), for the host of an invite that of `host_rules`.
"""
