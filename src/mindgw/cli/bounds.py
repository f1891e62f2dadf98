"""What keys are good for, how often somebody may ask and until when, as people type and read it."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.durations import seconds
from mindgw.cli.render import Item
from mindgw.client.errors import UsageProblem

_LIST = "Repeat it, or put commas between; any: all of them."
Models = Annotated[list[str] | None, typer.Option("--models", metavar="GLOB", help=f"Models that it is good for. {_LIST}")]
Routes = Annotated[
    list[str] | None,
    typer.Option("--routes", metavar="ROUTE", help=f"chat, completions, embeddings, models, manage, or a path. {_LIST}"),
]
Networks = Annotated[list[str] | None, typer.Option("--from", metavar="CIDR", help=f"Networks that it is good from. {_LIST}")]
_NONE = "none: no limit."
Rpm = Annotated[str | None, typer.Option("--rpm", metavar="N", help=f"Requests a minute, such as 60 or 10k; {_NONE}")]
Tpm = Annotated[str | None, typer.Option("--tpm", metavar="N", help=f"Tokens a minute, such as 100k or 1M; {_NONE}")]
Concurrency = Annotated[str | None, typer.Option("--concurrency", metavar="N", help=f"Requests at once; {_NONE}")]
Expires = Annotated[str | None, typer.Option("--expires", metavar="WHEN", help="30d, 12h, 2027-01-31, or never.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Kept with it: region=eu, any: none. No routing by it.")
]

_NUMBER = re.compile(r"([0-9]{1,15})([kKmM]?)")
_TIMES = {"": 1, "k": 1000, "m": 1_000_000}
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?")


def listed(said: Sequence[str]) -> list[str]:
    """Texts of a flag that may be repeated; none for "any"."""
    found = [part.strip() for text in said for part in text.split(",") if part.strip()]
    if not found:
        raise UsageProblem("an empty list means nothing here", hint="say any for all of them, or leave the flag out")
    return [] if found == ["any"] else found


def rates(rpm: str | None, tpm: str | None, concurrency: str | None) -> dict[str, int | None]:
    """Those that were said; None: no limit."""
    said = {"rpm": rpm, "tpm": tpm, "concurrency": concurrency}
    return {name: _number(name, text) for name, text in said.items() if text is not None}


def _number(name: str, text: str) -> int | None:
    if text.strip().lower() == "none":
        return None
    found = _NUMBER.fullmatch(text.strip())
    count = int(found[1]) * _TIMES[found[2].lower()] if found else 0
    if not count:
        raise UsageProblem(f"--{name}: {text!r} is not a number above 0", hint="60, 10k, 1M, or none")
    return count


def moment(text: str) -> str | None:
    """An end as a moment; None for "never"."""
    wanted = text.strip()
    if wanted.lower() == "never":
        return None
    if not _DATE.fullmatch(wanted):
        return (clock.utcnow() + timedelta(seconds=seconds(wanted))).isoformat()
    try:
        when = datetime.fromisoformat(wanted)
    except ValueError:
        raise UsageProblem(f"--expires: there is no day {text!r}", hint="30d, 2027-01-31, 2027-01-31T12:00:00Z, or never") from None
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).isoformat()


def labels(said: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE each; none for "any"."""
    pairs = [text.partition("=") for text in listed(said)]
    for name, equals, value in pairs:
        if not (name.strip() and equals and value.strip()):
            raise UsageProblem(f"--label: {name!r} has no value", hint="--label region=eu")
    return {name.strip(): value.strip() for name, _, value in pairs}


def said(lists: Mapping[str, Sequence[str] | None], rate: Mapping[str, int | None], expires: str | None) -> dict[str, Any]:
    """Fields of a key as the server takes them: what was not said is not there."""
    fields: dict[str, Any] = {}
    for name, texts in lists.items():
        if texts:
            fields[name] = labels(texts) if name == "labels" else listed(texts)
    fields |= rate
    if expires is not None:
        fields["expires_at"] = moment(expires)
    return fields


def shown(key: Item) -> str:
    """What a key is good for, in a line."""
    parts = [f"{name} {','.join(key[name])}" for name in ("models", "routes", "addresses") if key.get(name)]
    return "; ".join(parts) or "everything"


def rate_shown(item: Item) -> str:
    """How often, in a line."""
    units = (("rpm", "requests/min"), ("tpm", "tokens/min"), ("concurrency", "at once"))
    return ", ".join(f"{item[name]:,} {unit}" for name, unit in units if item.get(name)) or "no limit"
