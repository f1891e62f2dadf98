"""Signing in from a terminal by an identity provider: `mindgw` as it is typed, the real server, a provider that each test plays."""

import io
import json
import sys
import threading
import urllib.error
import urllib.request
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from mindgw import clock
from mindgw.client import contexts, credentials, renewal, sign_on
from mindgw.client.api import Request
from mindgw.client.contexts import Context, Contexts
from mindgw.client.errors import Limited, NotLoggedIn, UsageProblem
from mindgw.client.loopback import Loopback
from tests.browser import PROGRAM, tab
from tests.faces.conftest import KEY, Terminal, at_work
from tests.identity_provider import CLIENT, Provider


@pytest.fixture(scope="module")
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture(scope="module")
def lab(provider, tmp_path_factory):
    """The real server, which knows the provider, and one that is away."""
    other = f"""  gone:
    kind: oidc
    issuer: http://127.0.0.1:9
    client_id: {CLIENT}
    default_role: user
"""
    with at_work(tmp_path_factory.mktemp("lab") / "data", provider.settings() + other) as made:
        yield made


@pytest.fixture(autouse=True)
def _as_before(provider):
    """Whatever was wrong with the provider is so no more."""
    before = {**provider.person}
    yield
    provider.person, provider.trouble, provider.thrown_out, provider.id_token, provider.answer = before, "", False, {}, {}
    provider.devices.clear()


@pytest.fixture
def browser(monkeypatch):
    """A browser that goes wherever it is sent; what it saw last."""
    seen = []

    def go(url):
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                seen.append(answer.read().decode())
        except urllib.error.URLError as wrong:
            seen.append(str(wrong))

    monkeypatch.setattr("webbrowser.open", go)
    return seen


def nothing_is_kept():
    return contexts.load() == Contexts() and not (credentials.home() / "credentials.json").exists()


def test_somebody_signs_in_with_a_browser(cli, lab, browser):
    done = cli("login", lab.url, "--provider", "work")
    assert (done.code, done.out) == (0, ""), done.err
    assert "Signed in as ada@corp.example (user)" in done.err
    assert "/authorize?" in done.err
    context = contexts.load().get()
    held = credentials.find(context.fingerprint)
    assert held.startswith("mgws_") and held[16:] not in done.err
    assert (credentials.home() / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert 2600 < renewal.datetime.fromisoformat(context.renew_at).timestamp() - clock.wall() < 2710
    assert "terminal" in browser[0] and held not in browser[0]
    who = json.loads(cli("whoami", "--json").out)
    assert (who["user"], who["kind"]) == ("ada@corp.example", "session")
    assert cli("logout", "--all").code == 0
    assert credentials.find(context.fingerprint) is None


def test_what_it_says_as_json_is_no_secret(cli, lab, browser):
    done = cli("login", lab.url, "--provider", "work", "--json")
    assert json.loads(done.out).keys() == {"user", "role", "expires_at", "expires_in", "renewable"}


def test_a_browser_of_ones_own_is_started(lab, tmp_path, monkeypatch):
    """FAKE: a browser that is a script; it is named as people name theirs."""
    script = tmp_path / "browser.py"
    script.write_text("import sys, urllib.request\nurllib.request.urlopen(sys.argv[1], timeout=60).read()\n")
    monkeypatch.setenv("BROWSER", f"{sys.executable} {script} %s")
    done = Terminal("login", lab.url, "--provider", "work").end()
    assert done.code == 0, done.err
    assert credentials.find(contexts.load().get().fingerprint).startswith("mgws_")


def test_the_address_alone_is_shown_to_whoever_wants_no_browser(lab, monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")
    terminal = Terminal("login", lab.url, "--provider", "work", "--no-browser")
    said = terminal.hear("--device is for that")
    url = next(word for word in said.split() if "/authorize?" in word)
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert b"terminal" in answer.read()
    assert terminal.end().code == 0


def test_somebody_signs_in_with_another_device(cli, lab, provider):
    def approve():
        while not provider.devices:
            threading.Event().wait(0.01)
        for code in provider.devices:
            provider.devices[code] = True

    helper = threading.Thread(target=approve)
    helper.start()
    done = cli("login", lab.url, "--provider", "work", "--device")
    helper.join()
    assert done.code == 0, done.err
    assert "type in ABCD-1234" in done.err
    assert credentials.find(contexts.load().get().fingerprint).startswith("mgws_")


@pytest.mark.parametrize(
    ("trouble", "where", "code", "words"),
    [
        ("broken", "/token", 9, "answers 500"), ("garbage", "/token", 9, "no JSON"), ("huge", "/token", 9, "more than 1 MiB"),
        ("redirect", "/token", 9, "leads elsewhere"), ("slow", "/token", 9, "does not answer within"),
    ],
)  # fmt: skip
def test_a_provider_that_misbehaves_leaves_nothing(cli, lab, browser, provider, trouble, where, code, words):
    provider.trouble, provider.troubled = trouble, (where,)
    http = lab.server.app.state.sign_on.sources["work"].http
    http._time = 0.5 if trouble == "slow" else 20.0
    done = cli("login", lab.url, "--provider", "work")
    http._time = 20.0
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert nothing_is_kept()


def test_a_provider_that_is_away_leaves_nothing(cli, lab):
    for words in ((), ("--device",)):
        done = cli("login", lab.url, "--provider", "gone", *words)
        assert done.code == 9
        assert "cannot be reached" in done.err
    assert nothing_is_kept()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iat": 2**33, "nbf": "gone"}, "clock of this server"), ({"exp": 1000}, "clock of this server"), ({"acct": 1}, "Guests"),
        ({"nonce": "x"}, "another question"), ({"tid": "x"}, "another tenant"), ({"aud": "x"}, "somebody else"),
    ],
)  # fmt: skip
def test_whoever_is_refused_keeps_nothing(cli, lab, browser, provider, changes, words):
    provider.id_token = changes
    done = cli("login", lab.url, "--provider", "work")
    assert done.code == 4
    assert words in done.err
    assert nothing_is_kept()


def test_what_a_provider_says_of_a_refusal_is_told(cli, lab, browser, provider):
    provider.answer = {"code": "", "error": "access_denied", "error_description": "AADSTS65004: \x1b[31mdeclined"}
    done = cli("login", lab.url, "--provider", "work")
    assert done.code == 4
    assert "AADSTS65004: [31mdeclined" in done.err
    assert nothing_is_kept()


def test_the_answer_to_another_question_is_waited_past(cli, lab, provider, monkeypatch):
    def go(url):
        asked = dict(parse_qsl(urlsplit(url).query))
        for said in ({"code": "c", "state": "other"}, {"code": "c"}, {"state": asked["state"]}, {"code": "c", "state": ""}):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{asked['redirect_uri']}?{urlencode(said)}", timeout=60)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{asked['redirect_uri']}/favicon.ico", timeout=60)
        urllib.request.urlopen(url, timeout=60).read()

    monkeypatch.setattr("webbrowser.open", go)
    assert cli("login", lab.url, "--provider", "work").code == 0


def test_which_provider_is_said_where_there_are_several(cli, lab):
    done = cli("login", lab.url)
    assert done.code == 2
    assert "one of work, gone" in done.err
    assert cli("login", lab.url, "--provider", "nobody").code == 2
    assert cli("login", lab.url, "--with-token", "--provider", "work").code == 2
    assert nothing_is_kept()


def test_nobody_is_waited_for_where_nobody_is(cli, lab):
    done = cli("login", lab.url, "--provider", "work", "--no-input")
    assert done.code == 2
    assert "--with-token" in done.err


def test_a_key_is_as_good_as_before(cli, lab, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(lab.key))
    assert cli("login", lab.url, "--with-token").code == 0
    context = contexts.load().get()
    assert (credentials.find(context.fingerprint), context.renew_at) == (lab.key, "")


def test_without_providers_nobody_signs_in_by_one(cli, gateway):
    for words in (("--device",), ("--provider", "work")):
        done = cli("login", gateway.url, *words)
        assert done.code == 2
        assert "--with-token" in done.err


@pytest.mark.parametrize(
    "said",
    [
        {"url": "file:///etc/passwd"}, {"url": "javascript:alert(1)"}, {"url": "http://evil.example/"}, {"url": ""}, {"url": "https://x/\n"},
        {"url": "https://[x"}, {},
    ],
)  # fmt: skip
def test_a_server_does_not_have_anything_opened(cli, fake, monkeypatch, said):
    monkeypatch.delenv("MINDGW_TOKEN")
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    fake.body = b'{"items":[{"name":"work","redirect":"http://127.0.0.1"}],"next":null}'
    fake.then = [json.dumps({"ticket": "t", "expires_in": 60, "state": "s", **said}).encode()]
    assert cli("login", fake.url).code == 9
    assert opened == []


# -- on the page


@pytest.mark.skipif(PROGRAM is None, reason="not run: no Chromium here (apt-get install chromium)")
def test_people_sign_in_on_the_page_of_the_server(lab, monkeypatch, tmp_path):
    monkeypatch.setattr(lab.server.app.state.sign_on, "root", lab.url)
    with tab(tmp_path / "profile") as page:
        page.open(f"{lab.url}/me")
        assert page.until("document.querySelector('#providers a')?.textContent") == "Sign in with work"
        page.run("document.querySelector('#providers a').click()")
        assert "ada@corp.example" in page.until("document.getElementById('who')?.textContent")
        assert page.run("document.cookie") == "", "no script reads it"
        assert page.run("sessionStorage.length") == 0
        page.submit("make", name="by the page")
        assert page.until("document.getElementById('secret')?.textContent").startswith("mgw_")
        page.open(f"{lab.url}/me")
        assert "ada@corp.example" in page.until("document.getElementById('who')?.textContent"), "it is kept"
        page.run("document.getElementById('leave').click()")
        page.until("!document.getElementById('enter').hidden && !document.getElementById('providers').hidden")
        page.open(f"{lab.url}/me")
        page.until("!!document.querySelector('#providers a')")
        assert page.run("document.getElementById('who').textContent") == ""
        assert [asked for asked in page.asked if not asked.startswith((lab.url, "http://127.0.0.1"))] == []
        assert all("favicon" in text or "status of 4" in text for text in page.complaints), page.complaints


# -- sessions that end soon


def signed_in(fake, renew_at):
    context = Context("lab", fake.url, "", "f1", renew_at)
    contexts.save(Contexts().put(context))
    credentials.keep("f1", f"mgws_{KEY[4:]}")


@pytest.fixture
def kept(fake, monkeypatch):
    """A session for the fake server that is to be renewed now."""
    monkeypatch.delenv("MINDGW_TOKEN")
    monkeypatch.delenv("MINDGW_SERVER")
    signed_in(fake, "2020-01-01T00:00:00+00:00")
    fake.body = b'{"expires_at":"2030-01-01T00:00:00Z","expires_in":3600}'
    fake.then = [b'{"items":[],"next":null}']
    return fake


def paths(fake):
    return [(method, path) for method, path, _, _ in fake.asked]


def test_a_session_is_renewed_before_it_ends(cli, kept):
    assert cli("keys", "list").code == 0
    assert paths(kept) == [("POST", "/api/v1/me/sessions/renew"), ("GET", "/api/v1/keys")]
    assert contexts.load().get().renew_at > clock.utcnow().isoformat()
    assert cli("keys", "list").code == 0
    assert paths(kept)[2:] == [("GET", "/api/v1/keys")], "and not again at once"


def test_a_session_that_is_over_says_how_to_get_another(cli, kept):
    kept.status, kept.body, kept.then = 401, b'{"error":{"message":"The account is disabled.","code":"sign_on_lost"}}', []
    done = cli("keys", "list")
    assert done.code == 4
    assert "The account is disabled." in done.err and f"mindgw login {kept.url}" in done.err
    assert len(kept.asked) == 1


def test_a_renewal_that_is_not_to_be_had_holds_nothing_up(cli, kept):
    kept.status, kept.body = 502, b'{"error":{"message":"away","code":"provider_unreachable"}}'
    kept.then = []
    assert cli("keys", "list").code == 9
    assert len(kept.asked) == 2, "what was asked for is asked all the same"


@pytest.mark.parametrize("damaged", ["soon", "2020-01-01", "1"])
def test_a_moment_that_is_none_is_now(cli, kept, damaged):
    signed_in(kept, damaged)
    assert cli("keys", "list").code == 0
    assert len(kept.asked) == 2


def test_what_the_environment_says_is_not_renewed(cli, kept, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    kept.body = b'{"items":[],"next":null}'
    assert cli("keys", "list").code == 0
    assert paths(kept) == [("GET", "/api/v1/keys")]


class Says:
    def __init__(self, answer):
        self.answer = answer

    def call(self, request: Request):
        assert request == sign_on.renew()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_what_is_said_of_a_session_decides_whether_it_is_renewed():
    context = Context("lab", "https://gw", renew_at="x")
    assert renewal.lasting(context, {"expires_in": 60, "renewable": False}).renew_at == ""
    for seconds in (0, -1, None, "60", 1.5):
        assert renewal.lasting(context, {"expires_in": seconds}).renew_at == ""
    assert renewal.renewed(Says(Limited("later")), context) == context
    with pytest.raises(NotLoggedIn) as over:
        renewal.renewed(Says(NotLoggedIn("over", code="expired_session")), context)
    assert (over.value.hint, over.value.code) == ("mindgw login https://gw", "expired_session")


# -- the listener


def test_nobody_who_does_not_come_is_waited_for_for_ever():
    with Loopback("http://127.0.0.1/callback") as loopback:
        loopback.state = "s"
        assert loopback.redirect_uri.startswith("http://127.0.0.1:") and loopback.redirect_uri.endswith("/callback")
        with pytest.raises(NotLoggedIn, match="in time"):
            loopback.wait(0.01)


def test_a_port_that_is_taken_is_told():
    with Loopback("http://localhost") as first:
        port = urlsplit(first.redirect_uri).port
        with pytest.raises(UsageProblem, match=f"port {port}"):
            Loopback(f"http://localhost:{port}")


@pytest.mark.parametrize(
    "target", ["/", "/?state=s", "/?code=c&state=t", "/?code=c&code=d&state=s", "/?code=c&state=s&state=s", "/x?code=c&state=s"]
)
def test_what_is_no_answer_is_none(target):
    with Loopback("http://localhost") as loopback:
        assert loopback.take("/?code=c&state=")[0] == 400, "nothing was asked yet"
        loopback.state = "s"
        assert loopback.take(target)[0] in {400, 404}
        assert loopback.back is None
        assert loopback.take("/?code=c&state=s&iss=i")[0] == 200
        assert loopback.back == ("c", "s", "i", "")


# -- the check


def test_the_check_says_what_is_wrong_and_ends_so(cli, lab, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", lab.key)
    monkeypatch.setenv("MINDGW_SERVER", lab.url)
    done = cli("auth", "check", "work")
    assert done.code == 0, done.err
    assert "requestedAccessTokenVersion" in done.out
    done = cli("auth", "check", "--json")
    assert done.code == 3
    assert {one["provider"] for one in json.loads(done.out)["items"]} == {"work", "gone"}
