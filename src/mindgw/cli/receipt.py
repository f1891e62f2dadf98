"""`mindgw receipt`: what the agents say that they delivered for a request, and whether it is true."""

from typing import Annotated

import typer

from mindgw.cli.groups import verb
from mindgw.cli.invocation import invocation
from mindgw.cli.ledger import FOUND
from mindgw.cli.render import Column, Item
from mindgw.client import api

app = verb()


def _counts(item: Item) -> str:
    return f"{item.get('tokens_in', 0):,} in, {item.get('tokens_out', 0):,} out, {item.get('tokens_cached', 0):,} cached"


def _ledger(receipt: Item) -> str:
    row = receipt.get("ledger")
    said = {"yes": "it agrees", "no": "it does not agree", "incomparable": "that cannot be compared"}
    return f"{row.get('kind')}: {_counts(row)}; {said.get(str(receipt.get('agrees')), '?')}" if row else "no row"


def _signature(receipt: Item) -> str:
    head = receipt.get("head")
    return f"{head.get('signature')} over number {head.get('seq')}, {head.get('hash')}" if head else "none"


DETAILS = (
    Column("REQUEST", lambda receipt: str(receipt.get("request_id", "–"))),
    Column("ATTEMPT", lambda receipt: str(receipt.get("attempt", "–"))),
    Column("WORKER", lambda receipt: f"{receipt.get('worker')} ({receipt.get('worker_id')})"),
    Column("OUTCOME", lambda receipt: str(receipt.get("outcome", "–"))),
    Column("TOKENS", lambda receipt: f"{_counts(receipt)}; counted by: {receipt.get('source')}"),
    Column("SENT", lambda receipt: f"{receipt.get('events', 0)} events, {receipt.get('bytes_out', 0)} bytes, {receipt.get('at')}"),
    Column("NUMBER", lambda receipt: str(receipt.get("seq", "–"))),
    Column("HASH", lambda receipt: str(receipt.get("hash", "–"))),
    Column("AFTER", lambda receipt: str(receipt.get("prev", "–"))),
    Column("SIGNATURE", _signature),
    Column("KEY", lambda receipt: str(receipt.get("public_key") or "–")),
    Column("LEDGER", _ledger),
    Column("VERIFIED", lambda receipt: "yes" if receipt.get("ok") else f"NO: {'; '.join(receipt.get('problems') or ['?'])}"),
)


@app.command("receipt")
def show(ctx: typer.Context, request: Annotated[str, typer.Argument(metavar="REQUEST", help="Id of the request.")]) -> int:
    """Show the signed receipts of a request, and check them against the worker's key and the ledger; exits 3 when one is not true."""
    run = invocation(ctx)
    found = run.server().items(api.show_receipts(request))
    if run.options.output in {"json", "name"} or run.options.quiet:
        run.render.items(found, DETAILS, name="hash")
    else:
        for receipt in found:
            run.render.item(receipt, DETAILS, name="hash")
    bad = [receipt for receipt in found if not receipt.get("ok")]
    for receipt in bad:
        run.render.warn(f"The receipt of attempt {receipt.get('attempt')} is not true: {'; '.join(receipt.get('problems') or ['?'])}")
    return FOUND if bad else 0
