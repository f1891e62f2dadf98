"""The pages that the server shows, in a real browser: what people do on them, and that nothing comes from elsewhere."""

import json
import os
import re

import httpx
import pytest

from mindgw_agent.tokens import parse_key
from tests.browser import PROGRAM, tab

PAGES = ("/me", "/api/v1/docs")
in_a_browser = pytest.mark.skipif(PROGRAM is None, reason="not run: no Chromium here (apt-get install chromium)")


@pytest.fixture
def page(tmp_path):
    with tab(tmp_path / "profile") as made:
        yield made


@pytest.fixture
def email():
    return f"ana-{os.urandom(4).hex()}@example.com"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_lets_nothing_run_but_its_own_script(gateway, path):
    answer = httpx.get(gateway.url + path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert "set-cookie" not in answer.headers
    assert re.findall(r"(?:src|href)=\"?([^\">]+)", answer.text) in ([], ["/api/v1/openapi.json"])
    assert not re.search(r"https?://|\son[a-z]+=|style=\"|innerHTML|eval\(", answer.text)
    assert httpx.post(gateway.url + path).status_code == 405


@in_a_browser
def test_people_sign_in_make_a_key_and_sign_out(page, admin, gateway, email, tmp_path):
    invitation = admin("users", "invite", email, "-q").out.strip()
    page.open(f"{gateway.url}/me")
    for wrong in ("nonsense", "mgw_0123456789_x", invitation[:-1] + ("1" if invitation[-1] == "0" else "0"), "\U0001f600"):
        page.submit("enter", credential=wrong)
        page.until("document.getElementById('wrong').textContent")
        page.run("document.getElementById('wrong').textContent = ''")
        assert page.run("document.getElementById('all').hidden")
    page.submit("enter", credential=invitation)
    page.until("!document.getElementById('all').hidden && !!document.querySelector('#sessions table')")
    assert email in page.run("document.getElementById('who').textContent")
    assert invitation not in page.run("document.documentElement.outerHTML")
    page.submit("make", name="<img src=x onerror=alert(1)>", globs="llama*, qwen*")
    secret = page.until("document.getElementById('secret').textContent")
    assert parse_key(secret)
    page.until("document.getElementById('keys').innerText.includes('<img src=x onerror=alert(1)>')")
    assert page.run("document.images.length") == 0
    page.picture(tmp_path / "me.png")
    asked = httpx.get(f"{gateway.url}/api/v1/me/keys", headers={"authorization": f"Bearer {secret}"}).json()
    assert asked["items"][0]["models"] == ["llama*", "qwen*"]

    page.open(f"{gateway.url}/me")  # the tab still knows who it is
    page.until("!!document.querySelector('#keys table')")
    page.run("window.confirm = () => true; document.querySelector('#keys button').click()")
    page.until("document.getElementById('keys').innerText.includes('revoked')")
    assert httpx.get(f"{gateway.url}/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code == 401
    session = page.run("sessionStorage.getItem('mindgw')")
    page.run("document.getElementById('leave').click()")
    page.until("!document.getElementById('enter').hidden")
    assert page.run("sessionStorage.length") == 0
    assert httpx.get(f"{gateway.url}/api/v1/me", headers={"authorization": f"Bearer {session}"}).status_code == 401
    assert {url for url in page.asked if not url.startswith(f"{gateway.url}/")} <= {f"{gateway.url}/me"}
    assert all("favicon" in text or "status of 4" in text for text in page.complaints), page.complaints


@in_a_browser
def test_a_key_sees_what_is_its_own(page, admin, gateway):
    made = json.loads(admin("keys", "create", "on-a-page", "--json").out)
    page.open(f"{gateway.url}/me")
    page.submit("enter", credential=made["key"])
    page.until("!document.getElementById('all').hidden && !!document.querySelector('#keys table')")
    assert "on-a-page" in page.run("document.getElementById('who').textContent")
    assert page.run("document.getElementById('make').hidden && document.getElementById('places').hidden")
    assert page.run("document.querySelectorAll('#keys tbody tr').length") == 1
    admin("keys", "revoke", made["id"], "-y")
    page.until("!document.getElementById('enter').hidden")  # the queue is looked at again and again
    assert "revoked" in page.run("document.getElementById('wrong').textContent")


@in_a_browser
def test_the_api_is_described_without_help_from_elsewhere(page, gateway, tmp_path):
    page.open(f"{gateway.url}/api/v1/docs")
    page.until("document.querySelectorAll('details').length")
    described = httpx.get(f"{gateway.url}/api/v1/openapi.json").json()
    operations = [of for verbs in described["paths"].values() for of in verbs.values() if isinstance(of, dict) and "responses" in of]
    assert page.run("document.querySelectorAll('details').length") == len(operations)
    page.run("const find = document.getElementById('find'); find.value = '/users'; find.dispatchEvent(new Event('input'))")
    assert "/api/v1/users" in page.run(
        "[...document.querySelectorAll('section:not([hidden]) details:not([hidden])')].map(d => d.innerText).join()"
    )
    page.picture(tmp_path / "api.png")
    assert {url.split("/")[2] for url in page.asked} == {gateway.url.split("/")[2]}
    assert all("favicon" in text or "status of 4" in text for text in page.complaints), page.complaints
