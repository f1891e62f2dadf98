"""Sign-on by providers that are not ours, from an empty directory: `oidc-provider-mock` always, panva's oidc-provider where node is. The
first goes by docs/how-to/oidc.md, word for word."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.house import ROOT
from tests.identity_provider import OID, Provider

NODE = ROOT / ".cache/node"
#: Fills in every form that it is shown, as Ada, until somebody says that this page can be closed.
BROWSER = ROOT / "tests/e2e/form_filler.py"
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def process(*words, env=None, cwd=None, until=""):
    """A program at work, once it has said something with `until` in it; that line."""
    child = subprocess.Popen(words, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    said = [""]
    while said[-1] or len(said) == 1:
        said.append(child.stdout.readline())
        if until in said[-1]:
            break
    rest = threading.Thread(target=child.stdout.read)
    rest.start()
    try:
        assert until in said[-1], said
        yield said[-1].strip()
    finally:
        child.terminate()
        child.wait(60)
        rest.join(60)
        child.stdout.close()


@pytest.fixture
def mock():
    port = free_port()
    ada = {"sub": "ada", "email": "ada@corp.example", "email_verified": True, "groups": ["lab"]}
    words = (str(BIN / "oidc-provider-mock"), "--port", str(port), "--require-nonce", "true", "--user-claims", json.dumps(ada))
    with process(*words, until="running on"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def panva():
    if not (NODE / "node_modules/oidc-provider").exists():
        pytest.skip("not run: panva's oidc-provider is not here (scripts/panva)")
    with process("node", str(ROOT / "tests/e2e/panva/provider.mjs"), str(NODE), until="http://127.0.0.1:") as line:
        yield line


@pytest.fixture
def home(tmp_path):
    """An empty directory, and what a shell there is told."""
    keep = ("PATH", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    env |= {"HOME": str(tmp_path), "PATH": f"{BIN}:{env['PATH']}", "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}
    return env | {"BROWSER": f"{sys.executable} {BROWSER} %s &"}


def blocks(page: str) -> list[str]:
    """What a page has one type into a shell."""
    text = (ROOT / "docs/how-to" / page).read_text(encoding="utf-8")
    return re.findall(r"(?ms)^```sh\n(.*?)^```", text)


def typed(script: str, home, port: int) -> "subprocess.CompletedProcess[str]":
    """A script as it stands, but for the port of this machine that is free; a server that it starts is waited for, and ended."""
    wait = "SERVER=$!; trap 'kill $SERVER; wait $SERVER' EXIT; for i in $(seq 300); do "
    wait += f"curl -sf http://127.0.0.1:{port}/readyz >/dev/null && break; sleep 0.1; done"
    script = script.replace("127.0.0.1:8420", f"127.0.0.1:{port}").replace("mindgw init\n", f"mindgw init --port {port}\n")
    script = script.replace("mindgw serve &\n", f"mindgw serve & {wait}\n")
    return subprocess.run(
        ["bash", "-eu", "-c", script], env=home, cwd=home["HOME"], capture_output=True, text=True, timeout=240, check=False
    )


def test_the_page_on_openid_leads_from_an_empty_directory_to_somebody_who_is_signed_in(mock, home):
    script = "".join(blocks("oidc.md")).replace("https://keycloak.example.org/realms/lab", mock)
    script = script.replace("client_id: mindgw", "client_id: mindgw\n    client_secret: any")  # this provider takes none without
    done = typed(script, home, free_port())
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Signed in as ada@corp.example (user)" in done.stderr
    assert re.search(r"user +ada@corp.example", done.stdout), "whoami"
    assert "ada@example.org" in done.stderr, "who is not there is not disabled"


def test_the_page_on_entra_does_so_too(home):
    """FAKE: Entra, which speaks at another address; everything else is as the page has it."""
    entra = Provider()
    entra.person |= {"roles": ["Gw.User"], "groups": [OID]}
    script = "".join(blocks("entra-id.md")).replace("kind: entra\n", f"kind: entra\n    authority: {entra.root}\n")
    try:
        done = typed(script, home, free_port())
    finally:
        entra.close()
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Signed in as ada@corp.example (user)" in done.stderr
    assert "requestedAccessTokenVersion" in done.stdout


SETTINGS = """

providers:
  lab:
    issuer: ISSUER
    client_id: mindgw
    role_claims: groups
    roles: "lab=operator"
"""
BEGIN = "mindgw init\ncat >> ~/.local/share/mindgw/config.yaml <<'END'\n" + SETTINGS + "END\nmindgw serve &\n"


def by(provider, home, port, more, settings=""):
    script = BEGIN.replace("ISSUER", provider).replace('roles: "lab=operator"\n', f'roles: "lab=operator"\n{settings}')
    return typed(script + more.replace("URL", f"http://127.0.0.1:{port}"), home, port)


def test_panva_by_browser(panva, home):
    done = by(panva, home, free_port(), "mindgw login URL --name me\nmindgw whoami --json\nmindgw logout --all\n")
    assert done.returncode == 0, done.stderr + done.stdout
    who = json.loads(done.stdout[done.stdout.index('{"kind"') :].splitlines()[0])
    assert (who["user"], who["roles"]) == ("ada@corp.example", ["operator"])


def test_panva_by_device(panva, home):
    """Somebody else's browser: it goes to the address and types the code in."""
    script = "mindgw login URL --name me --device 2> said & LOGIN=$!\nuntil grep -q 'or to' said; do sleep 0.1; done\n"
    script += f"{sys.executable} {BROWSER} "
    script += "$(sed -n 's/.*or to \\(http[^,]*\\),.*/\\1/p' said)\nwait $LOGIN\nmindgw whoami --json\n"
    done = by(panva, home, free_port(), script)
    assert done.returncode == 0, done.stderr + done.stdout
    assert '"user": "ada@corp.example"' in done.stdout.replace('":"', '": "')


def test_panva_vouches_for_who_is_signed_in(panva, home):
    script = """mindgw login URL --name me
HELD=$(python3 -c 'import json; print(*[t for t in json.load(open(".config/mindgw/credentials.json")).values() if t[:5] == "mgws_"])')
for _ in 1 2; do
python3 -c 'import sqlite3; db = sqlite3.connect(".local/share/mindgw/mindgw.db", timeout=30)
db.execute("update identities set due_at = ?", ("2026-01-01 00:00:00.000000",)); db.commit()'
curl -sf -X POST -H "Authorization: Bearer $HELD" URL/api/v1/me/sessions/renew
python3 -c 'import sqlite3; db = sqlite3.connect(".local/share/mindgw/mindgw.db", timeout=30)
print("\\ndue", *db.execute("select due_at > ? from identities", ("2026-01-02",)).fetchone())'
done
"""
    done = by(panva, home, free_port(), script)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count('"expires_in"') == 2
    assert done.stdout.count("due 1") == 2, "it was asked, the second time with what it had answered the first"
