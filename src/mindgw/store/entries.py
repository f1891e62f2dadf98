"""What is handed to the ledger, and whose budgets it concerns."""

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from mindgw.core.quota import TOKENS, USD, Draw

#: Kinds of rows that count, and kinds that end an attempt: of these there is one for each.
BILLED = ("settled", "estimated", "adjust")
TERMINAL = ("settled", "estimated", "wasted")
#: Outcome of a row that is no request but what a dead server had reserved.
LEASE = "lease"
#: Largest count that a row may have; a sum of them still fits into the columns.
MOST = 2**48
#: Column that names each kind of scope.
SCOPES = {"key": "key_id", "user": "user_id", "team": "team_id", "org": "org_id", "model": "model"}


#: Stands for no moment: it has no zone, so it cannot be stored.
_NEVER = datetime.min  # noqa: DTZ901


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A row to be written: what became of one attempt. Fields are those of the table, in its order, where they are explained, but for the
    last three. The hot path gives them by place: by name they cost nine times as much."""

    request_id: str
    attempt: int = 1
    kind: str = "settled"
    key_id: str = ""
    user_id: str | None = None
    team_id: str | None = None
    org_id: str = ""
    model: str = ""
    worker_id: str = ""
    endpoint: str = ""
    stream: bool = False
    status: int = 0
    outcome: str = ""
    error_code: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    source: str = ""
    queued_ms: int = 0
    ttft_ms: int | None = None
    total_ms: int = 0
    bytes_out: int = 0
    cost: int = 0
    price_version: str = ""
    over: int = 0
    #: Empty: the day of `started_at`.
    day: str = ""
    started_at: datetime = _NEVER
    #: What leaves leases with it, and of which epoch's; 0: the writer's own.
    draws: tuple[Draw, ...] = ()
    lease_epoch: int = 0
    #: It comes from a receipt, after its server had ended: other attempts of the request may be in the ledger already.
    recovered: bool = False

    @property
    def slot(self) -> tuple[str, int, str]:
        """What the ledger has room for once: an end of each attempt, and one of each other kind of row."""
        return slot(self.request_id, self.attempt, self.kind)

    @property
    def booked(self) -> str:
        """The day that it is booked on."""
        return self.day or self.started_at.astimezone(UTC).date().isoformat()

    def amount(self, unit: str) -> int:
        """What it counts for a budget of that unit."""
        return self.prompt_tokens + self.completion_tokens if unit == TOKENS else self.cost


#: Fields of an entry that are columns of the table.
COLUMNS = Entry.__struct_fields__[:-3]
#: Those of them that count something.
COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cost", "bytes_out", "over")


def slot(request_id: str, attempt: int, kind: str) -> tuple[str, int, str]:
    return request_id, attempt, "" if kind in TERMINAL else kind


def scopes(entry: Entry) -> Iterator[str]:
    """All scopes whose budgets it counts in; not for rows of leases, which count in one alone."""
    for name, column in SCOPES.items():
        value = getattr(entry, column)
        if value:
            yield f"{name}:{value}"


def check(entry: Entry) -> None:
    """Raises ValueError for what must never be booked: counts that are no whole numbers, absurd ones, negative ones but in a correction,
    and moments without a zone."""
    least = -MOST if entry.kind == "adjust" else 0
    for name in COUNTS:
        value = getattr(entry, name)
        if type(value) is not int or not least <= value <= MOST:
            raise ValueError(f"{name} of an entry cannot be {value!r}")
    if entry.started_at.tzinfo is None:
        raise ValueError(f"a moment without a zone cannot be stored: {entry.started_at!r}")


def of_lease(epoch: int, draw: Draw, at: datetime, *, kind: str = "estimated", attempt: int = 1) -> Entry:
    """A row about what an epoch had on loan of one budget. It counts there and nowhere else."""
    (scope, unit, window), amount = draw
    name, _, value = scope.partition(":")
    whose = {"key_id": "", "org_id": "", "model": "", SCOPES[name]: value}
    return Entry(
        request_id=f"lease:{epoch}:{scope}:{unit}:{window}",
        attempt=attempt,
        kind=kind,
        endpoint="",
        status=0,
        outcome=LEASE,
        completion_tokens=amount if unit == TOKENS else 0,
        cost=amount if unit == USD else 0,
        source="estimated",
        day=window,
        started_at=at,
        draws=(draw,) if kind == "estimated" else (Draw(draw.budget, 0),),
        lease_epoch=epoch,
        **whose,  # type: ignore[arg-type]
    )
