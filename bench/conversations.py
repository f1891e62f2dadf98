"""Conversations that are had with a server over HTTP: made from a seed, the same for every way of routing, with real answers."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
from msgspec import Struct

from mindgw.quickstart.tiny_model import VOCABULARY

#: Words of what stands before all conversations, of what is said in a turn, and of the answer that the next turn repeats.
SYSTEM, SAID, ANSWERED = 150, (40, 260), 40
#: Tokens of an answer.
TOKENS = 24
#: Seconds until the first words of a conversation, between its turns (means), and until an answer is given up.
BEGIN, THINK, PATIENCE = 10.0, 1.5, 60.0


class Turn(Struct, frozen=True):
    """What is asked, seconds after the answer before it (of the first one: after the beginning)."""

    wait: float
    messages: tuple[dict[str, str], ...]


Conversation = tuple[Turn, ...]


class Heard(Struct, frozen=True):
    """One answer; seconds from the moment that it was asked for."""

    first: float
    whole: float
    #: Tokens of the prompt, and those that the engine remembered.
    prompt: int
    cached: int
    #: Name of the box.
    by: str = ""
    #: Why it is none; empty: it is one.
    wrong: str = ""


def made(conversations: int, turns: int, seed: int, mark: str) -> list[Conversation]:
    """The workload of a seed. Its first word is `mark`: with another one no engine remembers anything of it, and all else is the same."""
    draw = random.Random(seed)
    system = {"role": "system", "content": f"{mark} {_words(draw, SYSTEM)}"}
    return [_conversation(draw, system, turns) for _ in range(conversations)]


def _conversation(draw: random.Random, system: dict[str, str], turns: int) -> Conversation:
    messages, found = [system], []
    for number in range(turns):
        messages.append({"role": "user", "content": _words(draw, draw.randint(*SAID))})
        wait = draw.uniform(0.0, BEGIN) if number == 0 else draw.expovariate(1 / THINK)
        found.append(Turn(wait, tuple(messages)))
        messages.append({"role": "assistant", "content": _words(draw, ANSWERED)})
    return tuple(found)


def _words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(VOCABULARY) for _ in range(count))


async def hold(port: int, key: str, model: str, conversations: Sequence[Conversation]) -> list[Heard]:
    """Has all conversations at once, each turn after the answer to the one before."""

    async def one(conversation: Conversation) -> list[Heard]:
        heard = []
        for turn in conversation:
            await asyncio.sleep(turn.wait)
            heard.append(await ask(port, key, model, turn.messages))
        return heard

    return [heard for several in await asyncio.gather(*map(one, conversations)) for heard in several]


async def ask(port: int, key: str, model: str, messages: Sequence[dict[str, str]]) -> Heard:
    """One request as a stream; never raises for what the server does."""
    body = msgspec.json.encode(
        {"model": model, "messages": messages, "stream": True, "max_tokens": TOKENS, "stream_options": {"include_usage": True}}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    began = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
                return await _heard(reader, began)
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError, ValueError, msgspec.MsgspecError) as problem:
        return _wrong(f"{type(problem).__name__}: {problem}")


async def _heard(reader: asyncio.StreamReader, began: float) -> Heard:
    head = await reader.readuntil(b"\r\n\r\n")
    status = head.split(b" ", 2)[1].decode()
    if status != "200":
        return _wrong(f"status {status}")
    first, usage, by = 0.0, _Usage(), head.lower().partition(b"\r\nx-mindgw-served-by: ")[2].partition(b";")[0].decode()
    async for text in _events(reader):
        first = first or time.perf_counter() - began
        if text == b"[DONE]":
            details = usage.prompt_tokens_details
            return Heard(first, time.perf_counter() - began, usage.prompt_tokens, details.cached_tokens if details else 0, by)
        event = msgspec.json.decode(text, type=_Event)
        if event.error is not None:
            return _wrong(f"an error in its stream: {event.error}")
        usage = event.usage or usage
    return _wrong("it stopped without an end")


def _wrong(why: str) -> Heard:
    return Heard(0.0, 0.0, 0, 0, wrong=why)


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What stands in the events of a stream; comments are left out. Chunks of the transport are cut where events are not, so their sizes
    are lines like others, and are none of `data:`."""
    while line := await reader.readline():
        if line.startswith(b"data: "):
            yield line[6:].strip()


class _Details(Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(Struct, frozen=True):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Event(Struct, frozen=True):
    usage: _Usage | None = None
    error: object = None
