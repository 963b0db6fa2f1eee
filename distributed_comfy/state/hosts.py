"""The agents of hosts in the state Redis: who lives, what each says of its host, and what it answered to orders.

A record is at the same time the sign of life: it vanishes with the lease.  What was said last lies beside it for a day, so that a host
which lost its power is missed; an agent that ends in good order takes it along.

An answer is kept for a while under the id of its order, so that one that is delivered twice gets the same one; whoever waits also hears
of it on a channel of the same name.

An invited host writes its own record, and could name workers of other hosts there to be sent their orders: what it says of any but its
own is left out.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import redis

from distributed_comfy.errors import AgentRunning, AgentSilent, RedisForbids
from distributed_comfy.host_messages import HostAnswer
from distributed_comfy.messages import dump, load
from distributed_comfy.settings import Settings
from distributed_comfy.state.readable import ReadableRecords
from distributed_comfy.state.records import GoneHost, HostRecord
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.workers import to_ms

_ANSWER_KEPT_S = 600
_LOOK_S = 0.5
"""How often whoever waits looks for an answer of which the message was lost."""
_TAKE_POLL_S = 0.1
_SEAL_TIMEOUT_S = 2.0
_HEARD_MS = 86_400_000
"""For how long a host is missed."""
_HEARD_BYTES = 65_536
"""More of what a host said last is neither kept nor read."""


class HostTable:
    """Access to records and answers of agents; safe to use from several threads.

    Args:
        scripts: of the state server.
        settings: of this process.
        invited: names of the hosts that were invited; nothing where this process may not know them.
    """

    def __init__(self, scripts: Scripts, settings: Settings, invited: Callable[[], Collection[str]] = tuple) -> None:
        self._scripts = scripts
        self._keys = scripts.keys
        self._client = scripts.client
        self._lease_ms = to_ms(settings.lease_ttl_s)
        self._invited = invited
        self._readable = ReadableRecords()

    # -- agents ----------------------------------------------------------------------------------------------------------
    def take(self, record: HostRecord, seal: str, timeout_s: float) -> None:
        """Become the agent of a host; one that was killed holds its place for one lease.

        Args:
            record: of the host.
            seal: what orders to this agent are signed with.
            timeout_s: how long to wait for another one's end.
        Raises:
            AgentRunning: another one lives.
        """
        give_up = time.monotonic() + timeout_s
        key, text = self._keys("host", record.host), dump(record)
        while not self._scripts.reply(lambda: self._client.set(key, text, nx=True, px=self._lease_ms)):
            other = self.host(record.host)
            if other is not None and other.incarnation == record.incarnation:
                break  # the answer to the first try was lost
            if time.monotonic() > give_up:
                pid, user = (other.pid, other.user) if other is not None else ("?", "?")  # of another version
                raise AgentRunning(host=record.host, pid=pid, user=user)
            time.sleep(_TAKE_POLL_S)
        pipe = self._client.pipeline(transaction=False)
        pipe.set(self._keys("seal", record.host), f"{record.incarnation} {seal}", px=self._lease_ms)
        pipe.sadd(self._keys("hosts"), record.host)
        self._scripts.reply(pipe.execute)
        self._note(record)

    def renew(self, record: HostRecord, seal: str) -> HostRecord | None:
        """Say that the agent lives, and how its host is.

        Args:
            record: of the host.
            seal: see `take`.
        Returns:
            The record of another agent that has just said the same of this host: two machines have one name.
        """
        pipe = self._client.pipeline(transaction=False)
        pipe.set(self._keys("host", record.host), dump(record), px=self._lease_ms, get=True)
        pipe.set(self._keys("seal", record.host), f"{record.incarnation} {seal}", px=self._lease_ms)
        pipe.sadd(self._keys("hosts"), record.host)  # a Redis that came back empty
        before, _, _ = self._scripts.reply(pipe.execute)
        self._note(record)
        other = self._read(record.host, before)
        return other if other is not None and other.incarnation != record.incarnation else None

    def leave(self, host: str) -> None:
        """The agent ends."""
        pipe = self._client.pipeline(transaction=False)
        for name in ("host", "seal", "heard"):
            pipe.delete(self._keys(name, host))
        pipe.srem(self._keys("hosts"), host)
        self._scripts.reply(pipe.execute)

    def seal(self, record: HostRecord) -> str:
        """What orders to a host's agent are signed with; empty where it has none, and for whoever may not give it orders.

        Waits a moment for that of this agent where there is another's: it is written right after the record.
        """
        give_up = time.monotonic() + _SEAL_TIMEOUT_S
        while True:
            try:
                text = self._scripts.reply(lambda: self._client.get(self._keys("seal", record.host))) or ""
            except (RedisForbids, redis.ResponseError):
                return ""
            incarnation, _, seal = text.partition(" ")
            if incarnation == record.incarnation or time.monotonic() >= give_up:
                return seal
            time.sleep(_TAKE_POLL_S)

    def host(self, host: str) -> HostRecord | None:
        """The record of one living agent, where it can be read."""
        (found,) = self._of([host])
        return found if isinstance(found, HostRecord) else None

    def hosts(self) -> list[HostRecord]:
        """The records of all living agents, by host; those that died leave the list, once nobody misses them any more."""
        living, silent = self._look()
        missed = {gone.record.host for gone in self._missed(silent)}
        if dead := [name for name in silent if name not in missed]:  # one that comes back enters itself again
            self._scripts.reply(lambda: self._client.srem(self._keys("hosts"), *dead))
        return living

    def living(self) -> list[HostRecord]:
        """The same for whoever may only read."""
        return self._look()[0]

    def known(self) -> tuple[list[HostRecord], list[GoneHost]]:
        """The same, and hosts that fell silent within the last day without a farewell; for whoever may only read."""
        living, silent = self._look()
        return living, self._missed(silent)

    def is_invited(self, host: str) -> bool:
        """Whether a host was invited, as far as this process may know: its workers are called after it, and no others are believed."""
        return host in self._invited()

    def forget(self, host: str) -> bool:
        """Miss a host no longer; whether it was missed.  One that lives is there again as soon as it speaks."""
        pipe = self._client.pipeline(transaction=False)
        pipe.delete(self._keys("heard", host))
        if not self._scripts.reply(lambda: self._client.exists(self._keys("host", host))):
            pipe.srem(self._keys("hosts"), host)
        return bool(self._scripts.reply(pipe.execute)[0])

    def forget_worker(self, worker: str) -> str:
        """Miss a worker of a host that is gone no longer, and the host neither where that was its last; the host, empty where none is."""
        for gone in self.known()[1]:
            left = tuple(own for own in gone.record.workers if own.name != worker)
            if len(left) == len(gone.record.workers):
                continue
            host, text = gone.record.host, dump(replace(gone.record, workers=left))
            if left:
                self._scripts.reply(lambda: self._client.set(self._keys("heard", host), text, xx=True, keepttl=True))  # noqa: B023 - at once
            else:
                self.forget(host)
            return host
        return ""

    def _note(self, record: HostRecord) -> None:
        """Let this be what is kept of a host that falls silent."""
        text = dump(short := replace(record, configuration={}, resources=None))
        if len(text.encode()) > _HEARD_BYTES:
            text = dump(replace(short, devices=(), workers=()))
        with suppress(RedisForbids):  # a user of before this key
            self._scripts.reply(lambda: self._client.set(self._keys("heard", record.host), text, px=_HEARD_MS))

    def _missed(self, names: list[str]) -> list[GoneHost]:
        """Those of these silent hosts that ended without a farewell, apart from what this process cannot read or may not see."""
        if not names:
            return []
        pipe = self._client.pipeline(transaction=False)
        pipe.time()
        for name in names:
            pipe.getrange(self._keys("heard", name), 0, _HEARD_BYTES - 1)
            pipe.pttl(self._keys("heard", name))
        (seconds, micros), *replies = self._scripts.reply(lambda: _unless_failed(pipe.execute(raise_on_error=False)))
        now_ms, invited = int(seconds) * 1000 + int(micros) // 1000, self._invited()
        found = []
        for name, text, left_ms in zip(names, replies[::2], replies[1::2], strict=True):
            record = self._believed(name, text or None, is_guest=name in invited)
            if isinstance(record, HostRecord):
                found.append(GoneHost(record, heard_ms(left_ms, now_ms)))
        return found

    def _look(self) -> tuple[list[HostRecord], list[str]]:
        """Records of the living, apart from those that this process cannot read or may not see; and the names of those that died."""
        names = sorted(self._scripts.reply(lambda: self._client.smembers(self._keys("hosts"))))
        found = dict(zip(names, self._of(names), strict=True))
        living = [record for record in found.values() if isinstance(record, HostRecord)]
        return living, [name for name, record in found.items() if record is None]

    def _of(self, names: list[str]) -> list[HostRecord | Literal["hidden"] | None]:
        """Of each host its record; None where its agent does not live."""
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.get(self._keys("host", name))
        texts = self._scripts.reply(lambda: _unless_failed(pipe.execute(raise_on_error=False)))
        invited = self._invited() if names else ()
        return [self._believed(name, text, is_guest=name in invited) for name, text in zip(names, texts, strict=True)]

    def _believed(self, name: str, text: Any, *, is_guest: bool) -> HostRecord | Literal["hidden"] | None:
        if text is None:
            return None
        record = self._read(name, text)
        if record is None:
            return "hidden"
        if not is_guest:
            return record
        own = tuple(worker for worker in record.workers if worker.name.startswith(f"{name}-"))
        others = sorted({worker.name for worker in record.workers} - {worker.name for worker in own})
        if others:
            reason = f"the host was invited for workers called {name}-something, and names {others[0]!r}"
            self._readable.leave_out(f"what host {name} says of the workers of others", reason)
        return replace(record, workers=own)

    def _read(self, host: str, text: Any) -> HostRecord | None:
        """None where this process may not see it, or cannot read it."""
        return self._readable.read(f"host {host}", lambda: _record_of(host, text)) if isinstance(text, str) else None

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


def heard_ms(left_ms: Any, now_ms: int) -> int:
    """When a host was heard of last.

    Args:
        left_ms: what is left of the time for which it is missed; it may have set another one, and may be a refusal.
        now_ms: of the same clock.
    """
    left = left_ms if isinstance(left_ms, int) else 0
    return now_ms - _HEARD_MS + min(max(left, 0), _HEARD_MS)


def _record_of(host: str, text: str) -> HostRecord:
    record = load(HostRecord, text)
    if record.host != host:
        raise ValueError(f"it says that it is {record.host!r}")
    return record


def _unless_failed(replies: list[Any]) -> list[Any]:
    """Replies of which some may be refusals: of what this process may not see, and of what is no record at all."""
    for reply in replies:
        if isinstance(reply, redis.RedisError) and not (isinstance(reply, redis.exceptions.NoPermissionError) or "WRONGTYPE" in str(reply)):
            raise reply
    return replies
