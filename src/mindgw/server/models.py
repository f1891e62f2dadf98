"""`GET /v1/models` and `GET /v1/models/{id}`: what the connected workers can answer with, for whoever has a key."""

from typing import Any
from urllib.parse import unquote

import msgspec

from mindgw import errors
from mindgw.gateway.snapshot import Offer


def answer_models(offers: list[Offer], path: str) -> bytes:
    """The body; `offers` is what the caller may ask for, `path` as the client sent it, so that an id may hold slashes either way. Raises
    ModelNotFound."""
    name = unquote(path.removeprefix("/v1/models").removeprefix("/"))
    return msgspec.json.encode(_one(offers, name) if name else _all(offers))


def _all(offers: list[Offer]) -> dict[str, Any]:
    return {"object": "list", "data": [_model(offer) for offer in offers]}


def _one(offers: list[Offer], name: str) -> dict[str, Any]:
    """By its id, else by an alias."""
    for offer in [*(offer for offer in offers if name == offer.id), *(offer for offer in offers if name in offer.aliases)]:
        return _model(offer)
    raise errors.ModelNotFound(f"The model '{name[:200]}' does not exist or no worker serves it.", param="model")


def _model(offer: Offer) -> dict[str, Any]:
    return {"id": offer.id, "object": "model", "created": offer.created, "owned_by": "mindgw"}
