"""The agents of hosts in the state Redis: who lives, what each says of its host, and what it answered to orders.

A record is at the same time the sign of life: it vanishes with the lease.  An answer is kept for a while under the id of its order, so
that one that is delivered twice gets the same one; whoever waits also hears of it on a channel of the same name.
"""
from __future__ import annotations

import time
from typing import Any

from distributed_comfy.errors import AgentRunning, AgentSilent
from distributed_comfy.host_messages import HostAnswer
from distributed_comfy.messages import dump, load
from distributed_comfy.settings import Settings
from distributed_comfy.state.records import HostRecord
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.workers import to_ms

_ANSWER_KEPT_S = 600
_LOOK_S = 0.5
"""How often whoever waits looks for an answer of which the message was lost."""
_TAKE_POLL_S = 0.1


class HostTable:
    """Access to records and answers of agents; safe to use from several threads."""

    def __init__(self, scripts: Scripts, settings: Settings) -> None:
        self._scripts = scripts
        self._keys = scripts.keys
        self._client = scripts.client
        self._lease_ms = to_ms(settings.lease_ttl_s)

    # -- agents ----------------------------------------------------------------------------------------------------------
    def take(self, record: HostRecord, timeout_s: float) -> None:
        """Become the agent of a host; one that was killed holds its place for one lease.

        Raises:
            AgentRunning: another one lives.
        """
        give_up = time.monotonic() + timeout_s
        key, text = self._keys("host", record.host), dump(record)
        while not self._scripts.reply(lambda: self._client.set(key, text, nx=True, px=self._lease_ms)):
            other = self.host(record.host)
            if other is not None and other.incarnation == record.incarnation:
                break  # the answer to the first try was lost
            if other is not None and time.monotonic() > give_up:
                raise AgentRunning(host=record.host, pid=other.pid, user=other.user)
            time.sleep(_TAKE_POLL_S)
        self._scripts.reply(lambda: self._client.sadd(self._keys("hosts"), record.host))

    def renew(self, record: HostRecord) -> HostRecord | None:
        """Say that the agent lives, and how its host is.

        Returns:
            The record of another agent that has just said the same of this host: two machines have one name.
        """
        pipe = self._client.pipeline(transaction=False)
        pipe.set(self._keys("host", record.host), dump(record), px=self._lease_ms, get=True)
        pipe.sadd(self._keys("hosts"), record.host)  # a Redis that came back empty
        before, _ = self._scripts.reply(pipe.execute)
        other = load(HostRecord, before) if before else None
        return other if other is not None and other.incarnation != record.incarnation else None

    def leave(self, host: str) -> None:
        """The agent ends."""
        pipe = self._client.pipeline(transaction=False)
        pipe.delete(self._keys("host", host))
        pipe.srem(self._keys("hosts"), host)
        self._scripts.reply(pipe.execute)

    def host(self, host: str) -> HostRecord | None:
        """The record of one living agent."""
        text = self._scripts.reply(lambda: self._client.get(self._keys("host", host)))
        return load(HostRecord, text) if text else None

    def hosts(self) -> list[HostRecord]:
        """The records of all living agents, by host; those that died leave the list."""
        living, dead = self._look()
        if dead:  # one that comes back enters itself again
            self._scripts.reply(lambda: self._client.srem(self._keys("hosts"), *dead))
        return living

    def living(self) -> list[HostRecord]:
        """The same for whoever may only read."""
        return self._look()[0]

    def _look(self) -> tuple[list[HostRecord], list[str]]:
        """Records of the living, and the names of those that died."""
        names = sorted(self._scripts.reply(lambda: self._client.smembers(self._keys("hosts"))))
        if not names:
            return [], []
        texts = self._scripts.reply(lambda: self._client.mget([self._keys("host", name) for name in names]))
        found = {name: load(HostRecord, text) for name, text in zip(names, texts, strict=True) if text}
        return list(found.values()), [name for name in names if name not in found]

    def now_ms(self) -> int:
        """The clock of Redis."""
        seconds, microseconds = self._scripts.reply(lambda: self._client.time())
        return int(seconds) * 1000 + int(microseconds) // 1000

    # -- answers ---------------------------------------------------------------------------------------------------------
    def answer(self, answer: HostAnswer) -> None:
        """Keep an answer, and tell whoever waits for it."""
        key, text = self._keys("answer", answer.host, answer.order_id), dump(answer)
        pipe = self._client.pipeline(transaction=False)
        pipe.set(key, text, ex=_ANSWER_KEPT_S)
        pipe.publish(key, "")
        self._scripts.reply(pipe.execute)

    def answered(self, host: str, order_id: str) -> HostAnswer | None:
        """The answer to an order, where there is one."""
        text = self._scripts.reply(lambda: self._client.get(self._keys("answer", host, order_id)))
        return load(HostAnswer, text) if text else None

    def wait_answer(self, host: str, order_id: str, timeout_s: float) -> HostAnswer:
        """The answer to an order that was sent.

        Raises:
            AgentSilent: it does not come in time.
        """
        give_up = time.monotonic() + timeout_s
        channel: Any = self._client.pubsub(ignore_subscribe_messages=True)
        with channel:
            self._scripts.reply(lambda: channel.subscribe(self._keys("answer", host, order_id)))
            while True:
                found = self.answered(host, order_id)
                if found is not None:
                    return found
                left_s = give_up - time.monotonic()
                if left_s <= 0:
                    raise AgentSilent(host=host, seconds=f"{timeout_s:g}")
                self._scripts.reply(lambda: channel.get_message(timeout=min(_LOOK_S, left_s)))  # noqa: B023 - called at once
