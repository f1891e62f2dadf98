"""`mindgw chat`: ask a model, in one line or in a conversation."""

import sys
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.groups import verb
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Render
from mindgw.client import api
from mindgw.client.api import Request
from mindgw.client.errors import ClientError, Missing, UsageProblem

if TYPE_CHECKING:
    from mindgw.client.transport import Server

app = verb()

#: Seconds of silence that an answer may begin with: the server allows its engine 300.
PATIENCE = 330.0

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    reasoning: str
    finish: str
    usage: dict[str, Any] | None
    #: Seconds to the first piece and to the end.
    first: float
    total: float


@app.command()
def chat(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT|-]", help="The question; - reads it from stdin.")] = None,
    model: Annotated[str, typer.Option("-m", "--model", help="Which model; without it the first that is served.")] = "",
    system: Annotated[str, typer.Option("-s", "--system", help="A system message.")] = "",
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is complete.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say how fast it was.")] = False,
) -> None:
    """Ask a model: mindgw chat "Why is the sky blue?" """
    run = invocation(ctx)
    server = replace(run.server(), timeout=max(run.options.timeout, PATIENCE))
    chosen = model or first_model(server)
    messages: Messages = [{"role": "system", "content": system}] if system else []
    question = _question(run, prompt)
    if question is None:
        _converse(run, server, chosen, messages, stats=stats)
        return
    messages.append({"role": "user", "content": question})
    live = not no_stream and run.options.output != "json"
    answer = ask(server, api.chat(chosen, messages), run.render if live else None)
    if run.options.output == "json":
        shown = {"model": chosen, "content": answer.text, "finish_reason": answer.finish or None, "usage": answer.usage}
        run.render.item({**shown, "reasoning": answer.reasoning} if answer.reasoning else shown, (), name="content")
    else:
        run.render.raw(answer.text + "\n" if not live else "\n")
    if stats:
        run.render.note(_figures(answer))


def first_model(server: "Server") -> str:
    """The id of the first model that is served. Raises Missing when there is none."""
    models = server.data(api.served_models())
    if not models:
        raise Missing("no model is served yet", hint="join a GPU box: `mindgw join-tokens create`, then `mindgw agent join TOKEN` there")
    return str(models[0]["id"])


def ask(server: "Server", request: Request, live: Render | None) -> Answer:
    """One question and its whole answer; with `live` its text is printed piece by piece, without an end of line."""
    from mindgw.client.streaming import stream

    began = clock.monotonic()
    first = 0.0
    text, reasoning, finish, usage = [], [], "", None
    with closing(stream(server, request)) as arriving:
        for piece in arriving:
            if not first and (piece.text or piece.reasoning):
                first = clock.monotonic() - began
            if live is not None and piece.text:
                live.raw(piece.text)
            text.append(piece.text)
            reasoning.append(piece.reasoning)
            finish = piece.finish or finish
            usage = piece.usage or usage
    total = clock.monotonic() - began
    return Answer("".join(text), "".join(reasoning), finish, usage, first or total, total)


def _question(run: Invocation, prompt: str | None) -> str | None:
    """The question; None when a conversation is wanted."""
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read().strip()
    if prompt is None and not run.options.no_input and run.options.output != "json":
        return None
    if not prompt:
        raise UsageProblem("there is no question", hint='mindgw chat "Why is the sky blue?"')
    return prompt


def _converse(run: Invocation, server: "Server", model: str, messages: Messages, *, stats: bool) -> None:
    run.render.note(f"talking to {model}; /clear forgets, /exit or Ctrl-D ends")
    opening = list(messages)
    while (said := run.render.ask(">")) not in (None, "/exit", "/quit"):
        if said == "/clear":
            messages = list(opening)
            continue
        if not said:
            continue
        messages = [*messages, {"role": "user", "content": said}]
        try:
            answer = ask(server, api.chat(model, messages), run.render)
        except ClientError as problem:
            # one failed answer does not end a conversation; its question is taken back
            run.render.warn(problem.message)
            messages = messages[:-1]
            continue
        run.render.raw("\n")
        messages = [*messages, {"role": "assistant", "content": answer.text}]
        if stats:
            run.render.note(_figures(answer))


def _figures(answer: Answer) -> str:
    tokens = (answer.usage or {}).get("completion_tokens")
    if not isinstance(tokens, int):
        return f"first piece after {answer.first:.2f} s, all in {answer.total:.2f} s"
    speed = tokens / max(answer.total - answer.first, 0.001)
    return f"{tokens} tokens, the first after {answer.first:.2f} s, all in {answer.total:.2f} s, {speed:.0f} tokens/s"
