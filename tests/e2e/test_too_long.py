"""Prompts that are longer than the context of a real llama.cpp engine."""

from collections.abc import Iterator

import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.world import World, until, world
from tests.real_engine import start_engine

pytestmark = pytest.mark.e2e

LONG = "hello world " * 2000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with one engine of 256 tokens a slot."""
    with world(tmp_path_factory.mktemp("long")) as made, start_engine(slots=2, context=512) as engine:
        made.serve()
        made.join("one", engine.url)
        yield made
        until(lambda: made.worker("one")["used"] == 0, "all slots are free", 10)
        assert not any("Traceback" in process.said for process in made.processes)


@pytest.fixture
def ai(small: World) -> Iterator[OpenAI]:
    with OpenAI(base_url=small.base_url, api_key=small.key, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_chat_that_is_too_long_says_so(ai: OpenAI, stream: bool) -> None:
    with pytest.raises(BadRequestError) as refused:
        ai.chat.completions.create(model="tiny-babbler", messages=[{"role": "user", "content": LONG}], stream=stream)
    assert (refused.value.status_code, refused.value.code) == (400, "context_length_exceeded")


@pytest.mark.parametrize("stream", [False, True])
def test_completion_that_is_too_long_says_so(ai: OpenAI, stream: bool) -> None:
    with pytest.raises(BadRequestError) as refused:
        ai.completions.create(model="tiny-babbler", prompt=LONG, stream=stream)
    assert refused.value.code == "context_length_exceeded"


def test_embedding_that_is_too_long_is_the_callers_fault(ai: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        ai.embeddings.create(model="tiny-babbler", input=LONG)
    assert refused.value.code == "context_length_exceeded"


def test_engine_is_well_afterwards(ai: OpenAI, small: World) -> None:
    assert ai.completions.create(model="tiny-babbler", prompt="hello", max_tokens=2).usage
    until(lambda: [row for row in small.rows() if row["status"] == 400][4:], "a row for each", 10)
