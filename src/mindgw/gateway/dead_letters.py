"""Requests that failed for good: a letter each, kept in memory until the writer takes the batch to the database.

A letter is for what is no fault of its caller: the fleet had no slot in time or lost the worker, the engine failed, or we did. None is
written for what the caller did wrong (what an engine refuses is that, too), for what a policy refuses, for whoever hung up, for what an
operator cancelled, and for what was never taken in: a full queue (503 queue_full) or a deadline that cannot be met tells its caller to
come back, which is backpressure and no failure.

Only a request that has failed comes here; with `keep_body`, one that runs keeps its body in memory until it is over.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from mindgw import errors, metrics
from mindgw.clock import utcnow
from mindgw.config import DeadLetters as Settings
from mindgw.store.dead_letters import Letter
from mindgw.store.ids import new_id
from mindgw.store.ledger import Entry

#: A letter and the body of its request, None when that is not kept.
Sent = tuple[Letter, bytes | None]
#: Letters that one batch writes at most.
BATCH = 100
#: Letters that may wait for the database, and bytes of their bodies.
MOST, MOST_BYTES = 10_000, 64 * 2**20
#: Characters of an error's message that are kept.
_MESSAGE = 1000
_NO_FAILURE = (errors.CallerError, errors.PolicyError, errors.QueueFull, errors.Cancelled, errors.EngineRefused)


def is_dead(wrong: errors.MindGWError) -> bool:
    """Whether a request that was taken in and ended so failed for good."""
    return not isinstance(wrong, _NO_FAILURE)


class DeadLetters:
    """Letters that no batch has written yet."""

    def __init__(self, settings: Settings, counters: metrics.Counters, today: Callable[[], datetime] = utcnow) -> None:
        #: Whether bodies are wanted, and how large one may be.
        self.keep_body = settings.keep_body
        self._max_body = settings.max_body
        self._counters = counters
        #: Wall clock.
        self._today = today
        # bounded: by MOST, the newest are not taken in
        self._letters: deque[Sent] = deque()
        #: Bytes of bodies that they hold.
        self._held = 0

    @property
    def unwritten(self) -> int:
        """Letters that are not in the database yet."""
        return len(self._letters)

    def add(
        self, row: Entry, wrong: errors.MindGWError, attempts: Sequence[tuple[str, str]], end_user: str, size: int, body: bytes | None
    ) -> None:
        """Takes in a request that failed, for good or not: `row` is that of its end, `attempts` are (worker id, outcome) of the tries
        on workers, `size` the bytes of its body."""
        if not is_dead(wrong):
            return
        self._counters.dead_letters[wrong.code] += 1
        if len(self._letters) >= MOST:
            self._counters.dead_letters_lost += 1
            return
        note = self._note(size, body)
        kept = body if not note else None
        self._held += len(kept or b"")
        self._letters.append((self._letter(row, wrong, attempts, end_user, size, note), kept))

    async def flush(self, write: Callable[[Sequence[Sent]], Awaitable[None]]) -> int:
        """Writes all letters that are here now, in batches; returns how many. Raises what `write` raises, losing none. One at a time."""
        written = 0
        while self._letters:
            batch = [self._letters[i] for i in range(min(BATCH, len(self._letters)))]
            await write(batch)
            for _, body in batch:
                self._letters.popleft()
                self._held -= len(body or b"")
            written += len(batch)
        return written

    def _note(self, size: int, body: bytes | None) -> str:
        """Why a body is not kept; empty: it is."""
        if not self.keep_body or not body:
            return "off"
        if size > self._max_body:
            return "too_large"
        return "crowded" if self._held + size > MOST_BYTES else ""

    def _said(self, wrong: errors.MindGWError) -> str:
        """What went wrong, in words: an engine's own may quote the prompt or the answer, and are kept only where bodies are."""
        if isinstance(wrong, errors.UpstreamError) and not self.keep_body:
            return type(wrong)().message
        return wrong.message

    def _letter(
        self, row: Entry, wrong: errors.MindGWError, attempts: Sequence[tuple[str, str]], end_user: str, size: int, note: str
    ) -> Letter:
        return Letter(
            id=new_id(),
            request_id=row.request_id,
            key_id=row.key_id,
            user_id=row.user_id,
            team_id=row.team_id,
            org_id=row.org_id,
            end_user=_clean(end_user),
            model=_clean(row.model),
            endpoint=row.endpoint,
            stream=row.stream,
            fault=_fault(wrong),
            status=wrong.status,
            code=wrong.code,
            message=_clean(self._said(wrong)),
            attempts=[{"worker": worker, "outcome": outcome} for worker, outcome in attempts],
            started_at=row.started_at,
            failed_at=self._today(),
            queued_ms=row.queued_ms,
            total_ms=row.total_ms,
            size=size,
            body_note=note,
        )


def _fault(wrong: errors.MindGWError) -> str:
    if isinstance(wrong, errors.FleetError):
        return "fleet"
    return "engine" if isinstance(wrong, errors.UpstreamError) else "gateway"


def _clean(text: str) -> str:
    """What any database can store: an engine's words may hold anything."""
    return "".join(c if c.isprintable() else " " for c in text[:_MESSAGE])
