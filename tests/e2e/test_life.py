"""A server's life as who operates it sees it: systemd, metrics without a key, and signals."""

import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.fake_engine import fake_engine
from tests.e2e.raw import Raw, request
from tests.e2e.stage import chat
from tests.e2e.world import free_port, until, world

pytestmark = pytest.mark.e2e


def test_systemd_is_told_metrics_need_no_key_and_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as engine, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        made.initialise()
        scraped = free_port()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write(f"metrics:\n  listen: 127.0.0.1:{scraped}\n")
        made.env["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        server = made.serve()
        assert systemd.recv(100) == b"READY=1"
        made.join("fake", engine.url)
        with Raw(made.port) as raw:
            raw.send(request(made.key, chat("patience", stream=True)))
            raw.until(b"wait")
            with urllib.request.urlopen(f"http://127.0.0.1:{scraped}/metrics", timeout=30) as page:
                assert 'mindgw_worker_slots_used{worker="fake"} 1.0' in page.read().decode().splitlines()
            server.child.send_signal(signal.SIGTERM)
            assert systemd.recv(100) == b"STOPPING=1"
            until(lambda: "a second signal ends them" in server.said, "it waits for the stream")
            assert server.child.poll() is None
            begun = time.monotonic()
            server.child.send_signal(signal.SIGTERM)
            assert server.child.wait(30) == 0
            assert time.monotonic() - begun < 10
            engine.gate.set()
        until(made.rows, "its row is written")
        assert "Traceback" not in server.said
