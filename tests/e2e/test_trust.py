"""What whoever runs a server may rely on, against a real one: what it shows without a key, and where secrets and prompts never are."""

import json
import os
import re
import socket
from pathlib import Path

import pytest

from tests.e2e.stage import chat, stage
from tests.e2e.world import until, world

pytestmark = pytest.mark.e2e

#: Routes of the management API that take no key: the way in for who was invited.
OPEN = {("post", "/api/v1/invitations/accept")}


def listening(pid: int) -> set[str]:
    """HOST:PORT, in the kernel's hexadecimal, of all TCP sockets on which a process listens."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1])
    return found


def test_a_fresh_server_is_there_for_this_machine_alone_and_says_nothing_without_a_key(tmp_path):
    """Threat 33."""
    with world(tmp_path / "w") as made:
        server = made.serve()
        assert listening(server.child.pid) == {f"0100007F:{made.port:04X}"}
        described = json.loads(made.get("/api/v1/openapi.json")[1])
        routes = {(method, path) for path, methods in described["paths"].items() for method in methods}
        assert len(routes) > 50
        said = {}
        for method, path in sorted(routes - OPEN):
            at = re.sub(r"{\w+}", "x", path)
            head = f"{method.upper()} {at} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
            said[method, path] = bare(made.port, head)
        for path in ("/metrics", "/v1/models", "/v1/models/m", "/v1/me/usage", "/api/v1/events"):
            said["get", path] = bare(made.port, f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n")
        assert {place: status for place, status in said.items() if status not in {401, 429}} == {}
        for path in ("/debug", "/debug/pprof", "/docs", "/schema", "/admin", "/.env", "/config.yaml", "/api/v1/config", "/api/v1/settings"):
            assert made.get(path)[0] in {401, 404}, path


def bare(port: int, head: str) -> int:
    """The status of an answer to a request without a key."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.sendall(head.encode())
        return int(raw.recv(4096).split()[1])


PROMPT = "zebra-crossing-at-dawn"


def test_secrets_and_prompts_are_in_no_log_no_metric_and_no_table(tmp_path):
    """Threat 27, and 28: with DEBUG logs, after answers, errors and refusals of all kinds."""
    with stage(tmp_path / "w", "log:\n  level: debug\n") as here:
        made = here.world
        key = json.loads(made.admin("keys", "create", "bot ${HOME}", "--json").stdout)["key"]
        token = made.admin("join-tokens", "create", "-q").stdout.strip()
        invitation = json.loads(made.admin("users", "invite", "ana@example.org", "--json").stdout)["invitation"]
        here.play(PROMPT)
        here.play(PROMPT, stream=True)
        here.ask(json.dumps({"model": "none-such", "messages": [{"role": "user", "content": PROMPT}]}).encode())
        here.ask(chat(PROMPT)[:-1])
        wrong = key[:-6] + ("A" * 6 if not key.endswith("AAAAAA") else "B" * 6)
        assert made.get(f"/v1/models?key={key}")[0] == 401
        assert made.get("/v1/models", wrong)[0] == 401
        assert made.get("/api/v1/keys/x", key)[0] == 403
        made.admin("audit", "verify")
        metrics = made.get("/metrics", made.key)[1].decode()
        exported = until(lambda: _refused(made.admin("audit", "export").stdout), "the refusals are in the audit log")
    logs = "".join(process.said for process in made.processes)
    tables = b"".join(path.read_bytes() for path in made.data_dir.glob("mindgw.db*")).decode("latin-1")
    assert "/v1/chat/completions" in logs
    secrets = {"a key": key, "the admin's key": made.key, "a wrong key": wrong, "a token": token, "an invitation": invitation}
    for where, text in {"the logs": logs, "the metrics": metrics, "the tables": tables, "the audit log": exported}.items():
        assert PROMPT not in text, f"a prompt is in {where}"
        found = [what for what, secret in secrets.items() if secret[16:48] in text]
        assert not found, f"{found} is in {where}"


def _refused(exported: str) -> str:
    return exported if '"request.refuse"' in exported else ""
