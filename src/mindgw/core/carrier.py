"""Extensions inside a stream of chunks, in the one form that every SDK takes for an ordinary chunk without text.

An unknown event type, or a chunk without choices, breaks clients that read `choices[0]`; an empty delta beside a field of ours does not.
"""

from collections.abc import Mapping
from typing import Any

import msgspec


def chunk(kind: str, id: str, model: str, created: int, facts: Mapping[str, Any]) -> bytes:
    """The data of one event that carries `facts` as `mindgw`; `kind` is chat or completions, `created` seconds since 1970."""
    return msgspec.json.encode(_chunk(kind, id, model, created, [None]) | {"mindgw": facts})


def cut(kind: str, id: str, model: str, created: int, answers: int, usage: dict[str, int], facts: dict[str, Any]) -> bytes:
    """The data of the event that ends `answers` answers before their time, as if they had reached their length; with their `usage`."""
    return msgspec.json.encode(_chunk(kind, id, model, created, ["length"] * answers) | {"usage": usage, "mindgw": facts})


def _chunk(kind: str, id: str, model: str, created: int, finishes: list[str | None]) -> dict[str, Any]:
    silent: dict[str, Any] = {"delta": {}} if kind == "chat" else {"text": "", "logprobs": None}
    choices = [{"index": index, **silent, "finish_reason": finish} for index, finish in enumerate(finishes)]
    name = "chat.completion.chunk" if kind == "chat" else "text_completion"
    return {"id": id, "object": name, "created": created, "model": model, "choices": choices}
