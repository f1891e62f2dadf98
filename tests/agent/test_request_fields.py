"""What an engine gets of a request differs from what the caller wrote as docs/reference/request-fields.md says, and in nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import engines, payload
from mindgw_agent.engines.client import Client, open_session
from mindgw_agent.wire import Meta
from tests.agent.carrying import CHAT, COMPLETIONS, EMBEDDINGS
from tests.house import ROOT

PAGE = (ROOT / "docs/reference/request-fields.md").read_text(encoding="utf-8")
SHARED = "All engines"
NAMES = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang", "ollama": "Ollama", "lmstudio": "LM Studio", "generic": "Others"}
NEVER = payload.DENIED | {f"{prefix}x" for prefix in payload.DENIED_PREFIXES}


def section(title: str) -> str:
    return PAGE.partition(f"\n### {title}\n")[2].partition("\n#")[0]


def test_the_page_names_every_field_that_is_taken_out_or_checked():
    shared = [*payload.DENIED, *(f"{prefix}*" for prefix in payload.DENIED_PREFIXES)]
    checked = [*payload.FETCHED, *payload.INLINE, "n", "best_of"]
    assert [name for name in shared if f"`{name}`" not in section(SHARED)] == []
    assert [name for name in checked if f"`{name}`" not in PAGE] == []
    assert f"1 to {payload.MAX_N}" in PAGE


@pytest.mark.parametrize("kind", engines.KINDS)
def test_the_page_names_every_field_that_an_engine_does_not_get(kind):
    assert NAMES[kind] in PAGE
    assert [name for name in engines.KINDS[kind].denied if f"`{name}`" not in section(NAMES[kind])] == []


async def changes(kind: str, path: str, body: dict, *, stream: bool) -> tuple[set[str], set[str], set[str]]:
    """Names of the fields that were taken out, put in and changed on the way to an engine."""
    async with open_session() as session:
        engine = engines.KINDS[kind](Client(session, "http://127.0.0.1:1"))
    engine.names = {"alias": "the-engines-own"}
    meta = Meta(request_id="r", path=path, model="alias", stream=stream, length=0)
    after = json.loads(engine.prepare(json.dumps(body).encode(), meta).body)
    return set(body) - set(after), set(after) - set(body), {name for name in set(body) & set(after) if body[name] != after[name]}


@pytest.mark.parametrize("kind", engines.KINDS)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
async def test_a_plain_request_changes_as_the_page_says(kind, path):
    body = {"model": "alias", "messages": [], "max_completion_tokens": 3, "n": 2, "seed": 1, "stream": False, "my_own": {"a": [None]}}
    body |= dict.fromkeys(NEVER | engines.KINDS[kind].denied, "x")
    out, new, changed = await changes(kind, path, body, stream=False)
    folded = kind == "llamacpp" and path == CHAT
    assert out == (NEVER | engines.KINDS[kind].denied | {"stream"}) - ({"stream", "timings_per_token"} if folded else set())
    assert new == ({"stream_options"} if folded else {"max_tokens"} if kind == "ollama" else set())
    assert changed == {"model"} | ({"stream", "timings_per_token"} if folded else set())


@pytest.mark.parametrize("kind", engines.KINDS)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_changes_as_the_page_says(kind, path):
    body = {"model": "alias", "max_tokens": 3, "max_completion_tokens": 4, "stream": True, "stream_options": {"odd": 1}, "my_own": "é"}
    out, new, changed = await changes(kind, path, body, stream=True)
    assert (out, new, changed) == (set(), set(), {"model", "stream_options"})


@given(st.dictionaries(st.text(max_size=12).map("x{}".format), st.recursive(st.none() | st.booleans() | st.text(), st.lists, max_leaves=5)))
async def test_fields_that_nobody_knows_reach_every_engine(fields):
    for kind in engines.KINDS:
        assert await changes(kind, COMPLETIONS, {"model": "alias"} | fields, stream=False) == (set(), set(), {"model"})
