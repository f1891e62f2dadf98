"""Clients that are slow, silent or deaf before a real server, on either lane: others are served, and a stop is not held up."""

import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.raw import CHAT, Raw, head
from tests.e2e.stage import Stage, said
from tests.e2e.stage import stage as open_stage
from tests.e2e.test_bad_connections import memory
from tests.e2e.world import until

pytestmark = pytest.mark.e2e

MIB = 2**20
#: Connections that say half of a head.
HALF_OPEN = 2000


@pytest.fixture(params=["true", "false"], ids=["fast", "asgi"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    with open_stage(tmp_path, f"fast_lane: {request.param}\n") as made:
        yield made


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, HALF_OPEN * 2)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_half_open_connections_harm_nobody_and_do_not_stay(stage: Stage) -> None:
    assert stage.world.server is not None
    assert stage.play("plain").status == 200
    before = memory(stage.world.server.child.pid)
    with ExitStack() as stack:
        half = [stack.enter_context(Raw(stage.world.port)) for _ in range(HALF_OPEN)]
        for raw in half:
            raw.send(head(CHAT)[:-4])
        assert stage.play("plain").status == 200
        assert said(stage.play("numbered", count=50, stream=True)) == "".join(f"{number} " for number in range(50))
        assert memory(stage.world.server.child.pid) < before + 64 * MIB
        for raw in half:
            assert raw.answer().status == 408 and raw.ended()
    assert stage.play("plain").status == 200


def test_a_stop_is_not_held_up_by_who_is_slow(stage: Stage) -> None:
    """Drain would wait for five minutes."""
    world, key = stage.world, stage.world.key
    assert world.server is not None
    bearer = f"authorization: Bearer {key}"
    with ExitStack() as stack:
        deaf = stack.enter_context(stage.begin("numbered", window=4096, count=4000, pad=16 * 1024, stream=True))
        deaf.until(b"0 xxx")
        begun = [b"", b"PO", head(CHAT, bearer)[:-2], head(CHAT, bearer, "content-length: 100") + b"{"]
        # management rooms read bodies, too
        begun += [head("/api/v1/keys", bearer, "content-length: 100") + b"{", head(CHAT, bearer, "transfer-encoding: chunked") + b"5\r\nx"]
        for sent in begun:
            raw = stack.enter_context(Raw(world.port))
            raw.send(sent)
        seen: list[int] = []
        until(lambda: seen.append(stage.engine.sent) or (len(seen) > 25 and seen[-25] == seen[-1]), "the engine stands still", 20)
        world.server.child.send_signal(signal.SIGTERM)
        assert world.server.child.wait(30) == 0
    world.serve()
    until(lambda: world.worker("fake").get("state") == "ready", "the worker is back")
