"""What a receipt comes to: the row of a request whose server is gone, what is kept of the receipt itself, and whether two who counted one
attempt agree. Nothing in here waits or writes.

A receipt is the word of its agent alone, so counts are made safe first: what no answer of that size can hold is not billed.
"""

from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from mindgw.core import price, usage
from mindgw.core.price import Price
from mindgw.core.quota import TOKENS, Budget, Draw
from mindgw.gateway.bill import UNSEEN
from mindgw.gateway.tag import Tag
from mindgw.store.entries import MOST, Entry
from mindgw.store.receipts import NewReceipt
from mindgw_agent.wire import Receipt

#: Tokens by which two counts of one attempt may differ, or the larger divided by this.
FEW, PART = 16, 20
#: Tokens that all answers of one request together may have: a hundred answers of the longest kind. Only the agent knows how many bytes it
#: was, so there must be an end.
MADE = 2**22
#: Largest number of milliseconds that a row holds.
LONGEST = 2**31 - 1
#: Unix milliseconds of the last day that there is a date for.
LATEST = 253_402_214_400_000
#: HTTP status of what ended so.
STATUS = {"done": 200, "cancelled": 499, "failed": 502}
#: Code of the error of an answer that nobody was there any more to pass on.
LOST = "server_lost"


class Counted(Protocol):
    """An attempt as the ledger has it."""

    @property
    def kind(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class Link(msgspec.Struct, frozen=True):
    """A receipt, its place in the chain, and what it is about."""

    receipt: Receipt
    prev: bytes
    hash: bytes
    #: None: no server of ours made the tag for this worker.
    tag: Tag | None
    #: Whether it came for the first time.
    is_new: bool

    @property
    def slot(self) -> tuple[str, int]:
        """Which attempt of which request; only where there is a tag."""
        assert self.tag is not None
        return self.tag.request_id, self.tag.attempt


def believed(receipt: Receipt, tag: Tag) -> usage.Tokens:
    """What can be true of a receipt: as `gateway.bill` has it, no more than a body of that size and an answer of so many bytes can hold."""
    prompt, completion = tag.size + UNSEEN, min(receipt.bytes, MADE) + UNSEEN
    return usage.bounded(min(receipt.prompt, prompt), min(receipt.completion, completion), receipt.cached, receipt.source)


def billed(receipt: Receipt, tag: Tag) -> usage.Tokens:
    """What is billed of it. Under a hard limit a mere guess at the prompt costs no more than was reserved for it, and so does whatever an
    engine made beyond its cap: as `gateway.bill` has it, too."""
    tokens = believed(receipt, tag)
    if not tag.prompt or not tag.estimate:
        return tokens
    prompt = tokens.prompt if tokens.source == "engine" else min(tokens.prompt, tag.prompt)
    return usage.bounded(prompt, min(tokens.completion, tag.estimate - tag.prompt), tokens.cached, tokens.source)


def has_reached(receipt: Receipt, tag: Tag) -> bool:
    """Whether its client may have got something: as with a server that lives, an answer in one piece arrives whole or not at all, and of a
    stream only what was handed over counts."""
    return receipt.outcome == "done" or (tag.stream and receipt.bytes > 0)


def is_absurd(receipt: Receipt, tag: Tag) -> bool:
    """Whether it claims more than can be, or an answer that is clearly longer than what was paid for."""
    tokens = believed(receipt, tag)
    if (tokens.prompt, tokens.completion, tokens.cached) != (receipt.prompt, receipt.completion, receipt.cached):
        return True
    return _apart(receipt.completion, billed(receipt, tag).completion)


def differs(row: Counted, receipt: Receipt) -> bool:
    """Whether the ledger and the agent counted the same answer, and not the same tokens. What ended before its time is not compared: the
    agent may well have sent what no client was given."""
    if row.kind != "settled" or row.outcome != "done" or receipt.outcome != "done":
        return False
    sources = {row.source, receipt.source}
    if "estimated" in sources:
        return False
    if _apart(row.completion_tokens, receipt.completion):
        return True
    return sources == {"engine"} and _apart(row.prompt_tokens, receipt.prompt)


def _apart(one: int, other: int) -> bool:
    return abs(one - other) > max(FEW, max(one, other) // PART)


def example(row: Counted, link: Link) -> dict[str, Any]:
    """Both counts of an attempt, prompt and completion, for the audit log."""
    request_id, attempt = link.slot
    ledger, agent = [row.prompt_tokens, row.completion_tokens], [link.receipt.prompt, link.receipt.completion]
    return {"request_id": request_id, "attempt": attempt, "ledger": ledger, "receipt": agent}


def recovered(worker_id: str, tag: Tag, receipt: Receipt) -> Entry:
    """The row of an attempt whose server never came to write it. One that used nothing is not billed, nor one of which nothing left."""
    tokens = billed(receipt, tag)
    total = tokens.prompt + tokens.completion
    cost = min(price.cost(Price(*tag.price), tokens.prompt, tokens.completion), MOST)
    pays = total > 0 and has_reached(receipt, tag)
    amounts = [(budget, total if budget[1] == TOKENS else cost) for budget in tag.budgets] if pays else []
    return Entry(
        request_id=tag.request_id,
        attempt=tag.attempt,
        kind="settled" if pays else "wasted",
        key_id=tag.key_id,
        user_id=tag.user_id or None,
        team_id=tag.team_id or None,
        org_id=tag.org_id,
        model=tag.model,
        worker_id=worker_id,
        endpoint=tag.endpoint,
        stream=tag.stream,
        status=STATUS[receipt.outcome],
        outcome=receipt.outcome,
        error_code="" if receipt.outcome == "done" else LOST,
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        cached_tokens=tokens.cached,
        source=tokens.source,
        queued_ms=_duration(tag.queued),
        total_ms=_duration(receipt.at - tag.started),
        bytes_out=min(receipt.bytes, MOST),
        cost=cost,
        price_version=tag.price_version,
        over=max(0, total - tag.estimate) if any(unit == TOKENS for (_, unit, _), _ in amounts) else 0,
        day=tag.day,
        started_at=_moment(tag.started),
        draws=tuple(Draw(Budget(*budget), amount) for budget, amount in amounts if amount),
        lease_epoch=tag.epoch,
        recovered=True,
    )


def kept(link: Link) -> NewReceipt:
    """What is kept of a receipt; one with a bad tag too, or the chain would have a hole."""
    receipt, (request_id, attempt) = link.receipt, link.slot if link.tag is not None else ("", 0)
    return NewReceipt(
        seq=receipt.seq,
        tag=receipt.tag,
        request_id=request_id,
        attempt=attempt,
        outcome=receipt.outcome,
        prompt=receipt.prompt,
        completion=receipt.completion,
        cached=receipt.cached,
        source=receipt.source,
        events=receipt.events,
        bytes_out=receipt.bytes,
        prev=link.prev,
        hash=link.hash,
        at=_moment(receipt.at),
    )


def _duration(milliseconds: int) -> int:
    """The two clocks need not agree."""
    return min(max(milliseconds, 0), LONGEST)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(min(milliseconds, LATEST) / 1000, UTC)
