"""What management may say of a key's bounds and rates, and how it is kept."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control.principal import Principal
from mindgw.core.bucket import MOST
from mindgw.errors import BadRequest, Forbidden
from mindgw.gateway import scope
from mindgw.store import keys
from mindgw.store.audit import Who
from mindgw.store.keys import Held
from mindgw.store.tables import Key

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


# -- keys that make keys -----------------------------------------------------------------------------------------------


async def of_maker(session: AsyncSession, who: Who | str) -> Held | None:
    """The bounds of the key that somebody asks with; None for a session, and for the server's own disk."""
    return await keys.held(session, who.key_id) if isinstance(who, Principal) and who.key_id else None


def inherited(maker: Held | None, said: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a key to be made by another one: where nothing is said it is bound as its maker is. Raises Forbidden where it would be
    bound by less."""
    if maker is None:
        return dict(said)
    scopes = {**maker.scopes, **said.get("scopes", {})}
    rates = {name: said.get(name) if said.get(name) is not None else getattr(maker, name) for name in RATES}
    labels = {**maker.labels, **said.get("labels", {})}
    _require(maker, scopes, rates, labels)
    return {**said, "scopes": scopes, **rates, "labels": labels}


def check_held(maker: Held | None, row: Key) -> None:
    """Raises Forbidden when a key is bound by less than the one by which it is to be changed."""
    if maker is not None:
        _require(maker, row.scopes, {name: getattr(row, name) for name in RATES}, row.labels)


def _require(maker: Held, scopes: Mapping[str, Any], rates: Mapping[str, int | None], labels: Mapping[str, Any]) -> None:
    wide = [field for field in FIELDS if not scope.within(field, scopes.get(field) or [], maker.scopes.get(field) or [])]
    wide += [name for name in RATES if (most := getattr(maker, name)) is not None and (rates[name] is None or rates[name] > most)]
    wide += ["labels"] if any(labels.get(name) != value for name, value in maker.labels.items()) else []
    if wide:
        raise Forbidden(f"This key would be bound by less than yours: {', '.join(wide)}.", code="bounds_too_wide")
