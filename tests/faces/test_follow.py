"""Following an agent's log: what is shown while the agent answers, and while it does not. The server is one that plays a part."""

from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace

import pytest

from mindgw.cli import errands
from mindgw.client.api import Request
from mindgw.client.errors import ClientError, UsageProblem


def answer(*lines: str, line: int = 0, **fields):
    return {"id": "1", "worker": "gpu", "state": "done", "note": "", "error": "", "lines": [*lines], "line": line, **fields}


class Server:
    """Answers orders one after the other, and notes what they asked for."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def call(self, request: Request):
        self.asked.append((request.json or {}).get("argument"))
        said = self.answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


def follow(server: Server, warned: list[str]) -> Iterator[str]:
    run = SimpleNamespace(server=lambda: server, render=SimpleNamespace(warn=warned.append, progress=warned.append))
    return errands.follow_log(run, "gpu", 5, 0.0)  # type: ignore[arg-type]


def test_what_comes_is_asked_for_by_the_last_line_that_was_seen():
    server, warned = Server(answer("a", "b", line=7), answer(line=7), answer("c", line=8), answer("x", line=1), answer("y", line=2)), []
    assert [*islice(follow(server, warned), 5)] == ["a", "b", "c", "x", "y"]
    assert (server.asked, warned) == (["5", "+7", "+7", "+8", "+1"], [])


def test_an_agent_that_is_away_is_waited_for_and_that_is_said_once():
    away, lost = (
        ClientError("It is not connected.", code="worker_offline"),
        answer(state="failed", error="worker_lost", note="the link is gone"),
    )
    busy = ClientError("It is at another logs.", code="worker_busy")
    server, warned = Server(answer("a", line=7), lost, away, busy, away, answer("b", line=1), away, answer("c", line=2)), []
    assert [*islice(follow(server, warned), 3)] == ["a", "b", "c"]
    assert warned == ["gpu: the link is gone; waiting for it", *["It is not connected; waiting for it"] * 2]


def test_other_troubles_are_its_end():
    lines = follow(Server(answer("a", line=7), ClientError("No.", code="not_yours")), [])
    assert next(lines) == "a"
    with pytest.raises(ClientError, match="No"):
        next(lines)


def test_an_agent_that_counts_no_lines_cannot_be_followed():
    lines = follow(Server(answer("a")), [])
    assert next(lines) == "a"
    with pytest.raises(UsageProblem, match="older"):
        next(lines)
