"""What management may say of a key's bounds and rates, and how it is kept."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from mindgw.core.bucket import MOST
from mindgw.errors import BadRequest
from mindgw.gateway import scope

Listed = Annotated[list[Annotated[str, Meta(max_length=scope.LONGEST)]], Meta(max_length=scope.MOST)]
Labels = Annotated[dict[Annotated[str, Meta(max_length=63)], Annotated[str, Meta(max_length=63)]], Meta(max_length=20)]
#: Requests or tokens a minute, or requests at once.
Number = Annotated[int, Meta(ge=1, le=MOST)]
#: As the database holds them.
Few = Annotated[int, Meta(ge=1, le=2**31 - 1)]

FIELDS = ("models", "routes", "addresses")
RATES = ("rpm", "tpm", "concurrency")


class Bounds(Struct, frozen=True, kw_only=True):
    """What a key is good for and how often it may ask, as far as somebody says so."""

    #: Globs over the names of models; empty: all.
    models: Listed | UnsetType = UNSET
    #: chat, completions, embeddings, models, manage, or paths; each covers what is below it; empty: all.
    routes: Listed | UnsetType = UNSET
    #: Addresses and networks that its holder may ask from; empty: any.
    addresses: Listed | UnsetType = UNSET
    #: Requests a minute; null: any number.
    rpm: Few | UnsetType | None = UNSET
    #: Tokens a minute; null: any number.
    tpm: Number | UnsetType | None = UNSET
    #: Requests at once; null: any number.
    concurrency: Few | UnsetType | None = UNSET
    #: Kept for routing, which does not keep to them yet, such as {"region": "eu"}.
    labels: Labels | UnsetType = UNSET


def columns(said: Bounds, before: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the table that change; `before`: the bounds as they are kept. Raises BadRequest."""
    changes: dict[str, Any] = {}
    bounds = dict(before)
    for field in FIELDS:
        texts = getattr(said, field)
        if texts is UNSET:
            continue
        try:
            bounds[field] = scope.written(field, texts)
        except ValueError as wrong:
            raise BadRequest(f"'{field}' {wrong}.", param=field) from None
    bounds = {field: texts for field, texts in bounds.items() if texts}
    if bounds != before:
        changes["scopes"] = bounds
    changes |= {name: value for name in (*RATES, "labels") if (value := getattr(said, name)) is not UNSET}
    return changes
