"""Extensions inside a stream of chunks, in the one form that every SDK takes for an ordinary chunk without text.

An unknown event type, or a chunk without choices, breaks clients that read `choices[0]`; an empty delta beside a field of ours does not.
"""

from typing import Any

import msgspec


def chunk(kind: str, id: str, model: str, created: int, facts: dict[str, Any]) -> bytes:
    """The data of one event that carries `facts` as `mindgw`; `kind` is chat or completions, `created` seconds since 1970."""
    choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": None}
    name = "chat.completion.chunk"
    if kind != "chat":
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
        name = "text_completion"
    return msgspec.json.encode({"id": id, "object": name, "created": created, "model": model, "choices": [choice], "mindgw": facts})
