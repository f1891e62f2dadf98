"""`mindgw queue dead`: requests that failed for good."""

import json
from dataclasses import replace
from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api

app = noun("Dead letters: requests that failed for good, for no fault of their caller.")

#: Seconds that a request may wait and run when it is run again.
PATIENCE = 4000.0

LetterName = Annotated[str, typer.Argument(metavar="LETTER", help="Id of the letter, or of the request.")]
LetterNames = Annotated[list[str], typer.Argument(metavar="LETTER...", help="Ids of letters, or of requests.")]


def _owner(letter: Item) -> str:
    parts = (letter.get("team"), letter.get("user") or letter.get("key") or letter.get("key_id"), letter.get("end_user"))
    return " ".join(str(part) for part in parts if part) or "–"


def _attempts(letter: Item) -> str:
    attempts: list[dict[str, Any]] = letter.get("attempts") or []
    return ", ".join(f"{attempt.get('worker') or '?'}: {attempt.get('outcome') or '?'}" for attempt in attempts) or "never had a slot"


COLUMNS = (
    Column("ID", lambda letter: str(letter.get("id", ""))),
    Column("FAILED", lambda letter: ago(letter.get("failed_at"), clock.utcnow())),
    Column("REASON", lambda letter: str(letter.get("code", "–"))),
    Column("FAULT", lambda letter: str(letter.get("fault", "–"))),
    Column("MODEL", lambda letter: str(letter.get("model", "–"))),
    Column("OWNER", _owner),
    Column("TRIES", lambda letter: str(len(letter.get("attempts") or []))),
    Column("BODY", lambda letter: str(letter.get("body", "–"))),
    Column("STATE", lambda letter: str(letter.get("state", "–"))),
)
_DETAILS = (
    *(column for column in COLUMNS if column.title not in {"TRIES", "OWNER"}),
    Column("MESSAGE", lambda letter: str(letter.get("message", "–"))),
    Column("REQUEST", lambda letter: str(letter.get("request_id", "–"))),
    Column("ENDPOINT", lambda letter: str(letter.get("endpoint", "–"))),
    Column("KEY", lambda letter: f"{letter.get('key') or '?'} ({letter.get('key_id')})"),
    Column("OWNER", _owner),
    Column("ATTEMPTS", _attempts),
    Column("QUEUED", lambda letter: f"{int(letter.get('queued_ms') or 0) / 1000:.1f}s of {int(letter.get('total_ms') or 0) / 1000:.1f}s"),
    Column("SIZE", lambda letter: f"{letter.get('size', 0)} bytes"),
    Column("RETRIES", lambda letter: f"{letter.get('retries', 0)}{_last(letter)}"),
)


def _last(letter: Item) -> str:
    if not letter.get("retried_at"):
        return ""
    return f", the last one {ago(letter['retried_at'], clock.utcnow())}: {letter.get('retry_code') or 'it went well'}"


@app.command("list")
def list_letters(ctx: typer.Context) -> None:
    """List the requests that failed for good, the latest first."""
    run = invocation(ctx)
    run.render.items(run.server().items(api.list_dead_letters()), COLUMNS, name="id")


@app.command("show")
def show(ctx: typer.Context, letter: LetterName) -> None:
    """Show one of them: the reason, whose it was, which workers were tried; never its body."""
    run = invocation(ctx)
    run.render.item(run.server().call(api.show_dead_letter(letter)), _DETAILS, name="id")


@app.command("retry")
def retry(ctx: typer.Context, letters: LetterNames) -> None:
    """Run requests again, each on behalf of its key, and print the answers. Needs their bodies: dead_letters.keep_body: true"""
    run = invocation(ctx)
    server = run.server()
    patient = replace(server, timeout=max(server.timeout, PATIENCE))
    for name in letters:
        done = patient.call(api.retry_dead_letter(name))
        if run.options.output == "json":
            run.render.item(done, (), name="id")
            continue
        run.render.raw(f"{_text(done['answer'])}\n")
        run.render.success(f"Letter {done['letter']['id']} was answered. Forget it: mindgw queue dead drop {done['letter']['id']}")


@app.command("drop")
def drop(ctx: typer.Context, letters: LetterNames) -> None:
    """Forget requests that failed, with their bodies."""
    run = invocation(ctx)
    server = run.server()
    for name in letters:
        found = server.call(api.show_dead_letter(name))
        run.confirm(f"Forget {found['request_id']}, {found['code']} {ago(found.get('failed_at'), clock.utcnow())}?")
        gone = server.call(api.drop_dead_letter(found["id"]))
        run.render.done(gone, f"Letter {gone['id']} is forgotten", name="id")


def _text(answer: Item) -> str:
    """What a model said, where it said one thing; else the whole answer."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else json.dumps(answer, ensure_ascii=False)
