"""The worker's end of the relay: Redis through an authenticated WebSocket, where only HTTP gets through; `relay_urls` is the way in.

    worker and engine --Unix socket (0600) or loopback--> forwarder --WebSocket--> proxies, tunnels --> `distributed_comfy.serve` --> Redis

Both ends share the parser of requests, the paths and limits of the wire, and the loop that carries bytes.
"""
