"""`GET /v1/models` and `GET /v1/models/{id}`: what the connected workers can answer with, for whoever has a key."""

from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import msgspec

from mindgw import errors
from mindgw.gateway.auth import credential
from mindgw.gateway.fleet import Seat
from mindgw.gateway.pipeline import Pipeline
from mindgw.server import problems

Reply = tuple[int, bytes, list[tuple[bytes, bytes]]]


async def answer_models(pipeline: Pipeline, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> Reply:
    """Status, body and extra headers; `path` is as the client sent it, so that an id may hold slashes either way."""
    try:
        if method not in ("GET", "HEAD"):
            wrong_method = errors.MethodNotAllowed()
            return wrong_method.status, problems.body(wrong_method), [(b"allow", b"GET, HEAD")]
        await pipeline.identify(credential(headers))
        name = unquote(path.removeprefix("/v1/models").removeprefix("/"))
        return HTTPStatus.OK, msgspec.json.encode(_one(pipeline, name) if name else _all(pipeline)), []
    except errors.MindGWError as wrong:
        return wrong.status, problems.body(wrong), problems.headers(wrong)


def _all(pipeline: Pipeline) -> dict[str, Any]:
    models = pipeline.fleet.models()
    return {"object": "list", "data": [_model(name, seats) for name, seats in sorted(models.items())]}


def _one(pipeline: Pipeline, name: str) -> dict[str, Any]:
    models = pipeline.fleet.models()
    for id, seats in models.items():
        if name == id or any((found := seat.model(name)) is not None and found.id == id for seat in seats):
            return _model(id, seats)
    raise errors.ModelNotFound(f"The model '{name[:200]}' does not exist or no worker serves it.", param="model")


def _model(id: str, seats: list[Seat]) -> dict[str, Any]:
    created = max((model.created for seat in seats if (model := seat.model(id)) is not None), default=0)
    return {"id": id, "object": "model", "created": created, "owned_by": "mindgw"}
