"""Whether the books are right, computed here once more from plain rows: what the engine delivered, what the agent wrote, what is billed."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.chaos.counting_engine import Delivered
from tests.chaos.load import Seen
from tests.e2e.world import World

BILLED = ("settled", "estimated", "adjust")
TERMINAL = ("settled", "estimated", "wasted")
SCOPES = {"key": "key_id", "user": "user_id", "team": "team_id", "org": "org_id", "model": "model"}

Row = dict[str, Any]


class Books(NamedTuple):
    """What is in the database."""

    rows: list[Row]
    receipts: list[Row]
    budgets: list[Row]
    leases: list[Row]


def read(world: World) -> Books:
    tables = ("ledger", "receipts", "budgets", "leases")
    return Books(*(world.query(f"select * from {table}") for table in tables))


def tokens(row: Mapping[str, Any]) -> tuple[int, int]:
    """Prompt and completion of a row of the ledger or of a receipt."""
    if "prompt_tokens" in row:
        return row["prompt_tokens"], row["completion_tokens"]
    return row["prompt"], row["completion"]


class Account:
    """What became of requests."""

    def __init__(self, books: Books) -> None:
        #: Request id -> rows that end an attempt of it which a worker had.
        self.ended: dict[str, list[Row]] = defaultdict(list)
        #: Request id -> its billed rows.
        self.billed: dict[str, list[Row]] = defaultdict(list)
        #: (request id, attempt) -> its receipt.
        self.receipts = {(row["request_id"], row["attempt"]): row for row in books.receipts}
        for row in books.rows:
            if row["kind"] in TERMINAL and row["attempt"]:
                self.ended[row["request_id"]].append(row)
            if row["kind"] in BILLED:
                self.billed[row["request_id"]].append(row)

    def lost(self, delivered: Mapping[str, Sequence[Delivered]]) -> list[str]:
        """Requests that reached the engine, and of which the ledger has fewer ends than the engine beginnings, or no receipt is kept."""
        short = [id for id, came in delivered.items() if len(self.ended.get(id, ())) < len(came)]
        untold = [id for id in delivered if not any((id, row["attempt"]) in self.receipts for row in self.ended.get(id, ()))]
        return sorted({*short, *untold})

    def doubled(self) -> list[str]:
        """Requests with two ends of one attempt, or with two attempts that are paid for."""
        found = []
        for id, rows in self.ended.items():
            attempts = Counter(row["attempt"] for row in rows)
            paid = Counter[int]()
            for row in self.billed.get(id, ()):
                paid[row["attempt"]] += sum(tokens(row))
            if max(attempts.values()) > 1 or sum(map(bool, paid.values())) > 1:
                found.append(id)
        return found

    def invented(self, delivered: Mapping[str, Sequence[Delivered]]) -> list[str]:
        """Requests that are billed and never reached the engine."""
        return sorted(self.billed.keys() - delivered.keys())

    def wrong(self, delivered: Mapping[str, Sequence[Delivered]], seen: Iterable[Seen]) -> list[str]:
        """Requests whose rows do not say what the engine delivered, what the agent wrote, or what the client read."""
        found = []
        clients = {one.name: one for one in seen}
        for id, came in delivered.items():
            last, client = came[-1], clients[came[-1].name]
            for row in self.ended.get(id, ()):
                receipt = self.receipts.get((id, row["attempt"]))
                if why := _wrong(row, receipt, last, client):
                    found.append(f"{id}: {why}\n    {_shown(row)}\n    {_shown(receipt)}\n    {_shown(last)}\n    {_shown(client)}")
        return found


def _wrong(row: Row, receipt: Row | None, engine: Delivered, client: Seen) -> str:
    whole = (engine.prompt, engine.completion)
    if receipt is not None and receipt["outcome"] == "done" and tokens(receipt) != whole:
        return "the receipt of a whole answer is not what the engine reports"
    if receipt is not None and receipt["completion"] > engine.events + 1:  # one may be on its way while the engine is cut off
        return "the receipt has more than was delivered"
    if row["kind"] == "wasted":
        return "" if not client.is_whole else "the client has the answer, and nobody pays"
    if row["outcome"] == "done" and tokens(row) != whole:
        return "a whole answer is not billed as the engine reports it"
    if row["completion_tokens"] > engine.events + 1:
        return "more is billed than was delivered"
    if client.is_whole and (row["outcome"] != "done" or client.completion not in {0, row["completion_tokens"]}):
        return "the client has the whole answer, and another one is billed"
    if client.is_orphan and receipt is not None and tokens(row) not in _believable(receipt, engine):
        return "its server died, and what is billed is not what the agent wrote"
    return ""


def _believable(receipt: Row, engine: Delivered) -> list[tuple[int, int]]:
    """What may be billed of a receipt: its own counts. Where the agent guessed at the prompt, a hard limit believes no more than the
    ceiling, which is just what this engine counts."""
    prompt, completion = tokens(receipt)
    return [(prompt, completion)] + [(min(prompt, engine.prompt), completion)] * (receipt["source"] != "engine")


def _shown(what: Any) -> str:
    if what is None or isinstance(what, dict):
        return str({name: value for name, value in (what or {}).items() if not isinstance(value, bytes)})
    return f"{type(what).__name__} { ({name: getattr(what, name) for name in what.__slots__}) }"


def drift(books: Books) -> list[str]:
    """Budgets that do not say what the ledger says, or that reserve what nobody has on loan."""
    found = []
    for budget in books.budgets:
        kind, _, id = budget["scope"].partition(":")
        window = budget["window"]
        used = sum(
            sum(tokens(row)) if budget["unit"] == "tokens" else row["cost"]
            for row in books.rows
            if row["kind"] in BILLED and row[SCOPES[kind]] == id and (window == "total" or row["day"].startswith(window))
        )
        lent = sum(lease["amount"] for lease in books.leases if all(lease[name] == budget[name] for name in ("scope", "unit", "window")))
        where = f"{budget['scope']} {budget['unit']} {window}"
        if used != budget["used"] + budget["forgiven"]:
            found.append(f"{where}: {budget['used']} used, the ledger says {used}")
        if lent != budget["reserved"]:
            found.append(f"{where}: {budget['reserved']} reserved, {lent} on loan")
        if budget["used"] + budget["reserved"] > budget["lim"] + budget["over"]:
            found.append(f"{where}: {budget['used']} + {budget['reserved']} of {budget['lim']} and {budget['over']} beyond")
    return found


def passed(books: Books, quotas: Iterable[Row]) -> list[str]:
    """Hard limits that were passed: here no prompt is larger than its ceiling, so none ever is."""
    hard = {(quota["scope"], quota["unit"], quota["period"]) for quota in quotas if quota["on_exceed"] == "block"}
    return [
        f"{budget['scope']} {budget['unit']} {budget['window']}: {budget['used']} of {budget['lim']}, {budget['over']} beyond"
        for budget in books.budgets
        if (budget["scope"], budget["unit"], budget["period"]) in hard and (budget["over"] or budget["used"] > budget["lim"])
    ]
