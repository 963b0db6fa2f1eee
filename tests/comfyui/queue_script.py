"""Runs in ComfyUI's interpreter: ComfyUI's own PromptQueue with our consumer beside ComfyUI's; one line of JSON with what happened.

    python queue_script.py COMFYUI PROJECT LIBRARIES
"""
from __future__ import annotations

import json
import sys
import threading
from typing import Any

sys.path[:0] = [sys.argv[1], sys.argv[2]]
sys.path.append(sys.argv[3])
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import execution  # noqa: E402

from distributed_comfy.comfyui.queue_consumer import QueueConsumer  # noqa: E402


class Server:
    """Counts what clients would be told."""

    def __init__(self) -> None:
        self.remaining: list[int] = []
        self.queue: Any = None

    def queue_updated(self) -> None:
        if self.queue is not None:
            self.remaining.append(self.queue.get_tasks_remaining())


def open_queue() -> tuple[Any, Server, QueueConsumer]:
    server = Server()
    queue = server.queue = execution.PromptQueue(server)
    return queue, server, QueueConsumer(queue)


def item(number: float, name: str) -> tuple[Any, ...]:
    return (number, name, {"1": {"class_type": "A", "inputs": {}}}, {"client_id": "c", "api_key_comfy_org": "secret"}, ["1"])


def ids(items: Any) -> list[str]:
    return [one[1] for one in items]


def an_idle_master_keeps_its_next() -> Any:
    queue, _, consumer = open_queue()
    for number, name in ((3, "c"), (1, "a"), (2, "b")):
        queue.put(item(number, name))
    first = min(queue.queue)
    seen = ids(consumer.waiting()), consumer.take(first)
    taken = consumer.take(consumer.waiting()[0])
    return [seen, taken.prompt_id, ids(consumer.waiting()), queue.get(timeout=1)[0][1], ids(consumer.waiting())]


def a_busy_master_leaves_all_in_order_of_priority() -> Any:
    queue, _, consumer = open_queue()
    queue.put(item(5, "mine"))
    queue.get(timeout=1)
    for number, name in ((2, "c"), (-1, "front"), (1, "b")):
        queue.put(item(number, name))
    return ids(consumer.waiting())


def what_was_deleted_is_not_taken() -> Any:
    queue, _, consumer = open_queue()
    queue.put(item(0, "mine"))
    queue.get(timeout=1)
    for number in range(3):
        queue.put(item(number, f"p{number}"))
    seen = consumer.waiting()
    queue.delete_queue_item(lambda one: one[1] == "p1")
    deleted = consumer.take(seen[1])
    queue.wipe_queue()
    return [deleted, consumer.take(seen[0]), ids(consumer.waiting())]


def counts_and_history_are_comfyuis() -> Any:
    queue, server, consumer = open_queue()
    queue.put(item(0, "mine"))
    queue.get(timeout=1)
    queue.put(item(1, "p"))
    taken = consumer.take(consumer.waiting()[0])
    running, waiting = queue.get_current_queue()
    shown = [ids(running), ids(waiting), queue.get_tasks_remaining()]
    messages = [("execution_start", {"prompt_id": "p", "timestamp": 1})]
    consumer.end(taken, {"outputs": {"1": {"images": []}}, "meta": {}}, "success", messages)
    return [shown, queue.get_history("p")["p"], queue.get_tasks_remaining(), server.remaining, "api_key_comfy_org" in taken.extra_data]


def what_comes_back_has_its_old_place_and_wakes_the_master() -> Any:
    queue, _, consumer = open_queue()
    queue.put(item(0, "mine"))
    _, mine = queue.get(timeout=1)
    queue.put(item(1, "p"))
    queue.put(item(2, "q"))
    taken = consumer.take(consumer.waiting()[0])
    consumer.give_back(taken)
    back = ids(consumer.waiting())
    for one in consumer.waiting():
        last = consumer.take(one)
    queue.task_done(mine, {}, None)
    got: list[Any] = []
    master = threading.Thread(target=lambda: got.append(queue.get(timeout=5)))
    master.start()
    consumer.give_back(last)
    master.join()
    return [back, got[0][0][1] if got[0] else None]


def many_consumers_take_each_prompt_once() -> Any:
    queue, _, consumer = open_queue()
    got: list[str] = []

    def master() -> None:
        while (found := queue.get(timeout=0.3)) is not None:
            got.append(found[0][1])
            queue.task_done(found[1], {}, None)

    def other() -> None:
        while consumer.is_queued():
            for one in consumer.waiting()[:1]:
                if (taken := consumer.take(one)) is not None:
                    got.append(taken.prompt_id)
                    consumer.end(taken, {}, "success", [])

    for number in range(500):
        queue.put(item(number, f"p{number}"))
    threads = [threading.Thread(target=work) for work in (master, other, other, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [len(got), len(set(got)), len(queue.currently_running), len(queue.history)]


def a_queue_of_a_pack_is_left_alone() -> Any:
    queue, _, consumer = open_queue()
    before = consumer.why_unfit()
    queue.get = lambda timeout=None: None
    replaced = consumer.why_unfit()
    other, _, consumer = open_queue()
    del other.currently_running
    return [before, replaced, consumer.why_unfit()]


CASES = [value for name, value in list(globals().items()) if callable(value) and getattr(value, "__module__", "") == __name__]
RESULTS = {case.__name__: case() for case in CASES if case.__name__.startswith(("a_", "an_", "what_", "counts_", "many_"))}
sys.stdout.write(json.dumps(RESULTS) + "\n")
