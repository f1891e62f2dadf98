"""The live picture of queue, workers and figures, pushed to whoever watches: one look a second for all of them, none for nobody.

A listener is sent the picture as it is, then what changes. One that reads slowly misses changes and is sent the whole picture again; what
is kept for it never grows beyond a few messages.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from mindgw import clock
from mindgw.control.live import Live
from mindgw.core import delta
from mindgw.errors import RateLimited
from mindgw.gateway.lineup import Entry
from mindgw.gateway.snapshot import WorkerView

log = logging.getLogger("mindgw.feed")

#: Seconds between looks; after one that was hard work, so many times as long as that.
PERIOD, REST = 1.0, 20.0
#: Seconds after which a message leaves although nothing changed: it shows that both ends are alive.
SILENCE = 15.0
#: Requests that a picture holds at most, of those that wait and of those that run, and budgets; the figures count all requests.
SHOWN = 1000
LISTENERS = 64
#: Messages that wait for one listener; they are the same objects for all of them.
BACKLOG = 4

Item = dict[str, Any]


class Row(Struct, frozen=True, kw_only=True):
    """A request that waits or runs, in words that stay true while time passes."""

    #: Of the request, as in the log and in `x-mindgw-request-id`.
    id: str
    #: waiting or running.
    state: str
    #: What it asked for.
    model: str
    #: chat, completions or embeddings.
    kind: str
    #: bumped, high, normal, batch or sheddable.
    priority: str
    #: Id of the key.
    key_id: str
    #: Name of the key.
    key: str
    #: Team of the key; empty: none.
    team: str
    #: Person that the key belongs to; empty: nobody.
    user: str
    #: Who is behind a trusted proxy; empty: nobody.
    end_user: str
    #: Where it stands in its line, 1 is next; 0 when it runs.
    position: int
    #: When it joined the queue.
    waiting_since: datetime
    #: When it got its slot; null while it waits.
    running_since: datetime | None
    #: When its turn is expected to come; null when nobody can tell, and while it runs. It is corrected when it is wrong by more than a
    #: second and a tenth of the wait.
    turn_at: datetime | None
    #: Name of the worker that it runs on.
    worker: str
    #: Why it waits, for people.
    reason: str
    #: Units that it is expected to cost, or that were charged so far.
    units: float


class Box(Struct, frozen=True, kw_only=True):
    """A worker that is connected."""

    #: Of the worker.
    id: str
    #: Of the worker.
    name: str
    #: connecting, pending, ready, draining, paused, offline, quarantined or locked.
    state: str
    #: Requests that it can carry at once.
    slots: int
    #: Slots that are taken.
    used: int
    #: Ids of what it serves.
    models: list[str]
    #: Milliseconds of a round trip; null until the first answer to a ping.
    rtt_ms: float | None


class Picture(Struct, frozen=True):
    """What a listener knows once it has heard everything: id -> fields, and figures."""

    queue: dict[str, Item]
    workers: dict[str, Item]
    budgets: dict[str, Item]
    stats: Item


class Snapshot(Struct, frozen=True, kw_only=True, tag="snapshot", tag_field="type"):
    """The first message, and the one after messages that were missed."""

    seq: int
    #: When the picture was taken, by the server's clock.
    at: datetime
    queue: list[Item]
    workers: list[Item]
    budgets: list[Item]
    stats: Item


class Delta(Struct, frozen=True, kw_only=True, tag="delta", tag_field="type"):
    """What changed since the message with the number before. Sections without a change are left out."""

    seq: int
    at: datetime
    queue: delta.Changes | UnsetType = UNSET
    workers: delta.Changes | UnsetType = UNSET
    budgets: delta.Changes | UnsetType = UNSET
    #: The figures that changed.
    stats: Item | UnsetType = UNSET


class Listener:
    """One who watches. Whoever made it closes it."""

    def __init__(self, feed: "Feed") -> None:
        self._feed = feed
        self._pending: deque[bytes] = deque(maxlen=BACKLOG)
        #: True when the next message must be a whole picture: at the beginning, and when messages were missed.
        self._behind = True
        #: Set while `next` has something to return.
        self._ready = asyncio.Event()
        self._ready.set()
        self._over = False

    async def next(self) -> bytes | None:
        """The next message as JSON; None when the feed broke down. Waits until there is one."""
        await self._ready.wait()
        if self._over:
            return None
        if self._behind:
            self._behind = False
            message = self._feed.snapshot()
        else:
            message = self._pending.popleft()
        if not self._pending:
            self._ready.clear()
        return message

    def offer(self, message: bytes) -> None:
        """A message for it; who has not taken the earlier ones is to get a picture instead of all of them."""
        if self._behind:
            return
        if len(self._pending) == BACKLOG:
            self._pending.clear()
            self._behind = True
        else:
            self._pending.append(message)
        self._ready.set()

    def break_off(self) -> None:
        """Nothing comes any more."""
        self._over = True
        self._ready.set()

    def close(self) -> None:
        """It watches no longer. May be called twice."""
        self._feed.forget(self)


class Feed:
    """Looks while somebody watches."""

    def __init__(self, live: Live, period: float = PERIOD, now: Callable[[], datetime] = clock.utcnow) -> None:
        self._live = live
        #: Seconds between looks.
        self._period = period
        self._now = now
        #: Number of the last message; never goes back while the server runs.
        self._seq = 0
        #: The picture after that message, and when it was taken.
        self._picture = Picture({}, {}, {}, {})
        self._at = now()
        #: Monotonic seconds of the last look and of the last message, and the seconds of work that the look was.
        self._looked = self._spoke = float("-inf")
        self._cost = 0.0
        #: The last snapshot that was encoded, and the picture that it shows.
        self._encoded: tuple[Picture | None, bytes] = None, b""
        self._listeners: set[Listener] = set()
        #: Looks again and again; None while nobody watches.
        self._producer: asyncio.Task[None] | None = None

    def listen(self) -> Listener:
        """A new listener, whose first message is the picture as it is now. Raises RateLimited when there are too many."""
        if len(self._listeners) >= LISTENERS:
            raise RateLimited(f"{LISTENERS} others watch already.", code="too_many_listeners", retry_after=30)
        if self._producer is None:
            if clock.monotonic() - self._looked >= min(self._period, REST * self._cost):
                self.look()
            self._producer = asyncio.get_running_loop().create_task(self._produce())
        listener = Listener(self)
        self._listeners.add(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """The last one who leaves ends the looking."""
        self._listeners.discard(listener)
        if not self._listeners and self._producer is not None:
            self._producer.cancel()
            self._producer = None

    def look(self) -> None:
        """Takes a picture and tells all listeners what changed."""
        work = clock.cost()
        self._looked = clock.monotonic()
        self._at = self._now()
        before = self._picture
        self._picture = after = _picture(self._live, before.queue, self._at)
        news = Delta(
            seq=self._seq + 1,
            at=self._at,
            queue=delta.changes(before.queue, after.queue) or UNSET,
            workers=delta.changes(before.workers, after.workers) or UNSET,
            budgets=delta.changes(before.budgets, after.budgets) or UNSET,
            stats=delta.fields(before.stats, after.stats) or UNSET,
        )
        changed = any(section is not UNSET for section in (news.queue, news.workers, news.budgets, news.stats))
        if changed or self._looked - self._spoke >= SILENCE:
            self._seq += 1
            self._spoke = self._looked
            message = msgspec.json.encode(news) if self._listeners else b""
            for listener in self._listeners:
                listener.offer(message)
        self._cost = clock.cost() - work

    def snapshot(self) -> bytes:
        """The picture after the last message, encoded once for all who need it."""
        shown, encoded = self._encoded
        if shown is not self._picture:
            shown = self._picture
            sections = {name: list(getattr(shown, name).values()) for name in ("queue", "workers", "budgets")}
            encoded = msgspec.json.encode(Snapshot(seq=self._seq, at=self._at, stats=shown.stats, **sections))
            self._encoded = shown, encoded
        return encoded

    async def _produce(self) -> None:
        try:
            while True:
                await asyncio.sleep(max(self._period, REST * self._cost))
                self.look()
        except Exception:  # the top of a task: without looks there is nothing to say, and whoever watches must not wait for it
            log.exception("the feed broke down; whoever watches is sent away")
            self._producer = None
            for listener in list(self._listeners):
                listener.break_off()


def _picture(live: Live, earlier: dict[str, Item], now: datetime) -> Picture:
    entries = live.lineup()
    waiting = [entry for entry in entries if entry.state == "waiting"][:SHOWN]
    running = [entry for entry in entries if entry.state != "waiting"][:SHOWN]
    return Picture(
        {entry.id: msgspec.to_builtins(_row(entry, earlier.get(entry.id, {}), now)) for entry in (*waiting, *running)},
        {view.id: msgspec.to_builtins(_box(view)) for view in live.snapshot().workers},
        {view.id: msgspec.to_builtins(view) for view in islice(live.budgets(), SHOWN)},
        msgspec.to_builtins(live.queue_stats()),
    )


def _row(entry: Entry, earlier: Item, now: datetime) -> Row:
    running = entry.state == "running"
    soon = max(1.0, 0.1 * entry.eta_s) if entry.eta_s is not None else 0.0
    return Row(
        id=entry.id,
        state=entry.state,
        model=entry.model,
        kind=entry.kind,
        priority=entry.priority,
        key_id=entry.key_id,
        key=entry.key,
        team=entry.team,
        user=entry.user,
        end_user=entry.end_user,
        position=entry.position,
        waiting_since=_steady(now, -entry.waited_s - entry.running_s, earlier.get("waiting_since"), 1.0),
        running_since=_steady(now, -entry.running_s, earlier.get("running_since"), 1.0) if running else None,
        turn_at=_steady(now, entry.eta_s, earlier.get("turn_at"), soon) if entry.eta_s is not None else None,
        worker=entry.worker,
        reason=entry.reason,
        units=entry.units,
    )


def _steady(now: datetime, seconds: float, earlier: str | None, slack: float) -> datetime:
    """The moment so many seconds from now; the one that was said before, as long as it is right to within `slack` seconds: a moment that
    trembles would be news with every look."""
    moment = now + timedelta(seconds=seconds)
    said = datetime.fromisoformat(earlier) if earlier else moment
    return said if abs((said - moment).total_seconds()) < slack else moment


def _box(view: WorkerView) -> Box:
    return Box(
        id=view.id,
        name=view.name,
        state=view.state,
        slots=view.slots,
        used=view.used,
        models=sorted({model.id for engine in view.engines for model in engine.models}),
        rtt_ms=view.rtt_ms,
    )
