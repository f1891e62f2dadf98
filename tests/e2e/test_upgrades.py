"""WebSockets in every state when a real server stops: it ends in order all the same, and has written down what it knows."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.frames import Frame, Opcode

from tests.e2e.raw import Raw, head
from tests.e2e.stage import Stage
from tests.e2e.stage import stage as open_stage

pytestmark = pytest.mark.e2e

LINES = ("connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==")
LINK = head("/agent/v1/link", *LINES, "sec-websocket-protocol: mindgw.1", method="GET")
PINGS = Frame(Opcode.PING, b"p" * 125).serialize(mask=True) * 1000


@pytest.fixture(params=["true", "false"], ids=["fast", "asgi"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    with open_stage(tmp_path, f"fast_lane: {request.param}\n") as made:
        yield made


def nothing(raw: Raw) -> None:
    """It says no more than its head."""


def floods(raw: Raw) -> None:
    """Reads no pong of many pings, then closes."""
    raw.until(b"\r\n\r\n")
    for _ in range(4):
        raw.send(PINGS)
    raw.send(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))


STATES: dict[str, tuple[bytes, Callable[[Raw], None]]] = {
    "a long line": (head("/x", *LINES, "a: " + "x" * 9000, method="GET"), nothing),
    "a body": (head("/x", *LINES, "content-length: 5", method="GET"), nothing),
    "no greeting": (LINK, nothing),
    "leaving, and deaf": (LINK, floods),
}


def test_a_stop_loses_nothing_for_a_websocket_of_any_kind(stage: Stage) -> None:
    assert stage.world.server is not None
    with ExitStack() as stack:
        for sent, act in STATES.values():
            raw = stack.enter_context(Raw(stage.world.port, window=4096))
            raw.send(sent)
            act(raw)
        answers = [stage.play("plain") for _ in range(10)]
        stage.world.server.child.send_signal(signal.SIGTERM)
        assert stage.world.server.child.wait(60) == 0
    rows = {row["request_id"] for row in stage.world.rows()}
    assert {answer.headers["x-request-id"] for answer in answers} <= rows
    stage.world.serve()
