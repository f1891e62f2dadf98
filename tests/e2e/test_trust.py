"""What whoever runs a server may rely on, against a real one: what it shows without a key, and where secrets and prompts never are."""

import json
import os
import re
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.stage import chat, stage
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e

#: Routes of the management API that take no key: the way in for who was invited.
OPEN = {
    ("post", "/api/v1/invitations/accept"),
    ("get", "/api/v1/sign-on"),
    ("post", "/api/v1/sign-on/begin"),
    ("post", "/api/v1/sign-on/poll"),
    ("post", "/api/v1/sign-on/finish"),
}


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
        assert {place: status for place, status in said.items() if status != 401} == {}
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
        invitation, spent = (
            json.loads(made.admin("users", "invite", f"{name}@example.org", "--json").stdout)["invitation"] for name in ("ana", "bea")
        )
        session = str(made.admin_post("/api/v1/invitations/accept", {"invitation": spent})["session"])
        signed = ask_json(made, "POST", "/api/v1/me/token", session)["token"]
        own = ask_json(made, "POST", "/api/v1/me/keys", session, {"name": "mine"})["key"]
        for held in (session, signed):
            assert made.get("/api/v1/me", held)[0] == 200
            assert made.get(f"/api/v1/me?token={held}")[0] == 401
            assert made.get("/v1/models", held)[0] == 401
            assert made.get("/api/v1/users", held)[0] == 403
        forged = (session[:-6] + "AAAAAA", signed[:-6] + "AAAAAA")
        assert [made.get("/api/v1/me", each)[0] for each in forged] == [401, 401]
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
    secrets = {
        "a key": key, "the admin's key": made.key, "a wrong key": wrong, "a token": token, "an invitation": invitation,
        "a spent invitation": spent, "a session": session, "a wrong session": forged[0], "one's own key": own,
    }  # fmt: skip
    canaries = {what: secret[16:48] for what, secret in secrets.items()} | {
        "a pass": signed[-32:],
        "the claims of a pass": signed.split(".")[1],
    }
    assert all(len(canary) >= 32 for canary in canaries.values())
    for where, text in {"the logs": logs, "the metrics": metrics, "the tables": tables, "the audit log": exported}.items():
        assert PROMPT not in text, f"a prompt is in {where}"
        found = [what for what, canary in canaries.items() if canary in text]
        assert not found, f"{found} is in {where}"


def ask_json(made: World, method: str, path: str, key: str, body: object = None) -> dict[str, str]:
    """What somebody with that key or session is answered."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(made.root + path, data, headers, method=method), timeout=30) as answer:
        found: dict[str, str] = json.loads(answer.read())
        return found


def _refused(exported: str) -> str:
    return exported if '"request.refuse"' in exported else ""
