import json

import pytest
from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk
from openai.types.completion import Completion

from mindgw.core import carrier


@pytest.mark.parametrize(("kind", "type"), [("chat", ChatCompletionChunk), ("completions", Completion)])
def test_the_sdks_types_take_it_for_a_chunk_without_text(kind, type):
    chunk = construct_type(type_=type, value=json.loads(carrier.chunk(kind, "req-1", "m", 7, {"queue": 3})))
    assert (chunk.id, chunk.created, chunk.model) == ("req-1", 7, "m")
    assert chunk.choices[0].finish_reason is None
    assert chunk.model_extra == {"mindgw": {"queue": 3}}


def test_a_chat_chunk_has_a_delta_and_a_completion_has_text():
    assert json.loads(carrier.chunk("chat", "", "", 0, {}))["choices"][0]["delta"] == {}
    assert json.loads(carrier.chunk("completions", "", "", 0, {}))["choices"][0]["text"] == ""
