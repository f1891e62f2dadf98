"""Signing in with a browser, for the pages of the server itself: FAKE browsers, which keep cookies as real ones do, and the real server."""

from http.cookies import SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest
from sqlmodel import select

from mindgw.control.cookies import Cookies
from mindgw.errors import Forbidden
from mindgw.server import pages
from mindgw.store.tables import Session
from mindgw_agent.tokens import make_session
from tests.identity_provider import Provider
from tests.server.site import site

ROOT = "http://127.0.0.1:8420"


class Browser:
    """Keeps cookies by their paths."""

    def __init__(self, place):
        self.http = httpx.AsyncClient(transport=place.http._transport, base_url=ROOT, timeout=60)
        self.jar = {}
        self.heard = []

    async def ask(self, method, path, site="same-origin", **more):
        sent = "; ".join(f"{name}={value}" for name, (value, where) in self.jar.items() if path.startswith(where))
        headers = {"sec-fetch-site": site, **({"cookie": sent} if sent else {}), **more.pop("headers", {})}
        self.http.cookies.clear()
        answer = await self.http.request(method, path, headers=headers, **more)
        for line in answer.headers.get_list("set-cookie"):
            self.heard.append(line)
            for name, morsel in SimpleCookie(line).items():
                self.jar.pop(name, None)
                if morsel["max-age"] != "0":
                    self.jar[name] = (morsel.value, morsel["path"])
        return answer

    async def leave(self):
        """To the provider, and what it sends back."""
        answer = await self.ask("GET", "/sign-on/by/work", site="none")
        assert answer.status_code == 303, answer.text
        async with httpx.AsyncClient(timeout=60) as far:
            back = (await far.get(answer.headers["location"])).headers["location"]
        assert back.startswith(f"{ROOT}/sign-on/callback/work?")
        return back.removeprefix(ROOT)

    async def enter(self):
        answer = await self.ask("GET", await self.leave(), site="cross-site")
        assert (answer.status_code, answer.headers["location"]) == (303, "/me"), answer.text

    async def word(self):
        return (await self.ask("GET", "/sign-on/session")).json()["csrf"]


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def place(tmp_path, provider):
    return lambda **settings: site(tmp_path / "data", provider.settings(**settings))


async def test_a_browser_comes_back_signed_in(place):
    async with place() as made:
        browser = Browser(made)
        assert await browser.word() == ""
        await browser.enter()
        (ticket, over, session) = browser.heard
        assert [line.partition("=")[0] for line in browser.heard] == ["mindgw-sign-on", "mindgw-sign-on", "mindgw"]
        assert "Max-Age=0" in over
        asked = ["HttpOnly", "SameSite=lax", "Path=/sign-on", "Max-Age=600"]
        for line, words in ((ticket, asked), (session, ["HttpOnly", "SameSite=strict", "Path=/"])):
            assert [word for word in words if word.lower() not in line.lower()] == [], line
        assert list(browser.jar) == ["mindgw"]
        me = (await browser.ask("GET", "/api/v1/me")).json()
        assert (me["user"], me["kind"]) == ("ada@corp.example", "session")


async def test_where_browsers_come_by_tls_cookies_go_no_other_way(place):
    cookies = Cookies(b"k" * 32, "https://gw.example")
    assert (cookies.session, cookies.is_secure) == ("__Host-mindgw", True)
    async with place() as made:
        made.server.app.state.cookies.is_secure = True
        browser = Browser(made)
        await browser.enter()
        assert all("secure" in line.lower() for line in browser.heard)
    assert cookies.ticket == "__Host-mindgw-sign-on", "no other name of the same domain sets it"


async def test_a_change_takes_the_word_that_only_our_pages_know(place):
    async with place() as made:
        browser, other = Browser(made), Browser(made)
        await browser.enter()
        await other.enter()
        word = await browser.word()
        assert len(word) == 64 and word != await other.word()
        key = {"name": "own"}
        for headers in ({}, {"x-mindgw-csrf": ""}, {"x-mindgw-csrf": "x" * 64}, {"x-mindgw-csrf": await other.word()}):
            refused = await browser.ask("POST", "/api/v1/me/keys", json=key, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "csrf_token")
        assert (await browser.ask("POST", "/api/v1/me/keys", json=key, headers={"x-mindgw-csrf": word})).status_code == 201
        assert (await browser.ask("DELETE", "/api/v1/me/keys/own", headers={"x-mindgw-csrf": word})).status_code == 200


@pytest.mark.parametrize("where", ["cross-site", "same-site", ""])
async def test_what_another_site_has_a_browser_ask_is_refused(place, where):
    async with place() as made:
        browser = Browser(made)
        await browser.enter()
        for method in ("GET", "POST"):
            answer = await browser.ask(method, "/api/v1/me/keys", site=where, headers={"x-mindgw-csrf": await browser.word()})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")


async def test_a_cookie_is_no_credential_anywhere_else(place):
    async with place() as made:
        browser = Browser(made)
        await browser.enter()
        assert (await browser.ask("GET", "/v1/models")).status_code == 401
        assert (await browser.ask("GET", "/api/v1/events")).status_code == 401
        assert (await browser.ask("GET", "/metrics")).status_code == 401
        own = await browser.ask("GET", "/api/v1/me", headers={"authorization": f"Bearer {made.key}"})
        assert own.json()["kind"] == "key", "who says it in a header means that"
        browser.jar["mindgw"] = (made.key, "/")
        assert (await browser.ask("GET", "/api/v1/me")).status_code == 401, "keys are not kept by browsers"


async def test_signing_out_ends_it_there_and_here(place):
    async with place() as made:
        browser = Browser(made)
        await browser.enter()
        word = await browser.word()
        assert (await browser.ask("POST", "/sign-on/out")).status_code == 403
        assert (await browser.ask("POST", "/sign-on/out", headers={"x-mindgw-csrf": "x"})).status_code == 403
        assert (await browser.ask("DELETE", "/api/v1/me/sessions/current", headers={"x-mindgw-csrf": word})).status_code == 200
        assert (await browser.ask("GET", "/api/v1/me")).json()["error"]["code"] == "revoked_session"
        assert (await browser.ask("POST", "/sign-on/out", headers={"x-mindgw-csrf": word})).status_code == 200
        assert browser.jar == {}
        assert await browser.word() == ""


async def test_an_answer_is_taken_from_the_browser_that_asked_alone(place):
    """Else one could sign somebody else in as oneself."""
    async with place() as made:
        mine, theirs = Browser(made), Browser(made)
        back = await mine.leave()
        await theirs.leave()
        for browser in (Browser(made), theirs):
            answer = await browser.ask("GET", back, site="cross-site")
            assert answer.status_code == 401
            assert "Nobody is signed in" in answer.text
            assert "mindgw" not in browser.jar
        assert (await mine.ask("GET", back, site="cross-site")).status_code == 303
        assert (await mine.ask("GET", back, site="cross-site")).status_code == 401, "once"
        async with made.database.read() as session:
            assert len((await session.exec(select(Session))).all()) == 1


@pytest.mark.parametrize(
    "query",
    [
        "", "?", "?code=c", "?state=s", "?code=c&state=s", "?error=access_denied&error_description=%3Cscript%3Ealert(1)%3C/script%3E",
        "?code=" + "c" * 9000 + "&state=s", "?state=%00&code=%ff", "?code=c&state=s&iss=https://evil.example",
    ],
)  # fmt: skip
async def test_whatever_comes_back_that_is_no_answer_is_told_in_words(place, query):
    async with place() as made:
        browser = Browser(made)
        await browser.leave()
        answer = await browser.ask("GET", f"/sign-on/callback/work{query}", site="cross-site")
        assert answer.status_code == 401
        assert answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "<script" not in answer.text and "alert" not in answer.text, "nor are they anybody's words"
        assert browser.jar == {}, "that sign-on is over"


async def test_what_a_provider_says_of_a_refusal_is_told(place):
    async with place() as made:
        browser = Browser(made)
        state = dict(parse_qsl(urlsplit(await browser.leave()).query))["state"]
        for said in ("", "x"):
            query = urlencode({"error": "access_denied", "error_description": "call 555", "state": said})
            answer = await Browser(made).ask("GET", f"/sign-on/callback/work?{query}", site="cross-site")
            assert (answer.status_code, "call 555" in answer.text) == (401, False), "they may be anybody's words"
        query = urlencode({"error": "access_denied", "error_description": "You have cancelled", "state": state})
        answer = await browser.ask("GET", f"/sign-on/callback/work?{query}", site="cross-site")
        assert (answer.status_code, "You have cancelled" in answer.text) == (401, True)


async def test_a_browser_is_sent_to_the_name_that_the_provider_leads_back_to(place):
    async with place() as made:
        browser = Browser(made)
        answer = await browser.ask("GET", "/sign-on/by/work", headers={"host": "localhost:8420"})
        assert (answer.status_code, answer.headers["location"], browser.jar) == (303, f"{ROOT}/sign-on/by/work?again=1", {})
        answer = await browser.ask("GET", "/sign-on/by/work?again=1", headers={"host": "inside:80"})
        assert "/authorize?" in answer.headers["location"], "a proxy may pass on another name for ever"
        assert (await browser.ask("GET", "/sign-on/by/nobody", headers={"host": "localhost"})).status_code == 404


class Evil(Provider):
    """FAKE: a provider that sends people on to another one, and has what comes back brought to itself."""

    #: What the server has asked the other one for somebody else, and that one's root.
    asked_for: dict[str, str]
    other: str

    def _authorize(self, handler, asked):
        query = urlencode({**self.asked_for, "state": asked["state"]})
        self._send(handler, 302, b"", {"location": f"{self.other}/authorize?{query}"})

    def _token(self, form):
        self.caught = form.get("code", "")
        return 400, {"error": "invalid_grant"}


async def test_one_provider_is_not_brought_what_another_has_said(tmp_path):
    """Whoever runs the bad one would come in as people of the good one (RFC 9700, 4.4)."""
    good, evil = Provider("oidc"), Evil("oidc")
    settings = good.settings() + evil.settings(redirect="http://127.0.0.1/evil").partition("\n")[2].replace("  work:", "  evil:")
    try:
        async with site(tmp_path / "data", settings) as made, httpx.AsyncClient(timeout=60) as far:
            attacker, victim = Browser(made), Browser(made)
            begun = urlsplit((await attacker.ask("GET", "/sign-on/by/work")).headers["location"])
            evil.asked_for, evil.other, evil.caught = dict(parse_qsl(begun.query)), good.root, ""
            place = (await victim.ask("GET", "/sign-on/by/evil")).headers["location"]
            for _ in range(2):
                place = (await far.get(place)).headers["location"]
            answer = await victim.ask("GET", place.removeprefix(ROOT), site="cross-site")
            assert (answer.status_code, evil.caught) == (401, "")
    finally:
        good.close()
        evil.close()


async def test_a_provider_that_is_away_is_told_in_words(place, provider):
    async with place() as made:
        browser = Browser(made)
        back = await browser.leave()
        provider.trouble, provider.troubled = "broken", ("/token",)
        answer = await browser.ask("GET", back, site="cross-site")
        assert (answer.status_code, "answers 500" in answer.text) == (502, True)
        assert (await browser.ask("GET", "/sign-on/by/nobody")).status_code == 404


async def test_a_session_of_a_browser_is_asked_about_like_others(place, provider):
    async with place() as made:
        browser = Browser(made)
        await browser.enter()
        renewed = await browser.ask("POST", "/api/v1/me/sessions/renew", headers={"x-mindgw-csrf": await browser.word()})
        assert renewed.status_code == 200


@pytest.mark.parametrize(
    "text",
    ["mindgw", "mindgw=", 'mindgw="', "mindgw=x; mindgw=y", "\xff=mindgw", "mindgw=" + "x" * 20_000, "a=b; mindgw=mgws_x", "mindgw=\x00"],
)
def test_cookies_that_are_none_are_none(text):
    cookies = Cookies(b"k" * 32, ROOT)
    headers = [(b"cookie", text.encode("latin-1"))]
    assert cookies.signed_in(headers) == ""
    assert cookies.admit("POST", headers) == ""


@pytest.mark.parametrize("other", ['prefs={"a":1}', 'x="y', "foo=\xfc", "a[0]=1", "n=a;b", "=", ";;", 'mindgwx="'])
def test_what_others_keep_in_a_browser_does_not_matter(other):
    cookies, session = Cookies(b"k" * 32, ROOT), make_session().text
    for text in (f"{other}; mindgw={session}", f"mindgw={session}; {other}", f"mindgw={session};{other};mindgw={session}"):
        assert cookies.signed_in([(b"cookie", text.encode("latin-1"))]) == session
    assert cookies.signed_in([(b"cookie", f"mindgw={session}; {other}; mindgw={make_session().text}".encode("latin-1"))]) == ""


def test_a_good_cookie_among_others_is_found():
    cookies, session = Cookies(b"k" * 32, ROOT), make_session().text
    headers = [(b"cookie", b"a=b; c=d"), (b"cookie", f"mindgw={session}; e=f".encode())]
    assert cookies.signed_in(headers) == session
    assert cookies.admit("GET", headers) == session
    with pytest.raises(Forbidden):
        cookies.admit("DELETE", headers)
    assert Cookies(b"l" * 32, ROOT).csrf(session) != cookies.csrf(session)


def test_the_page_of_a_failure_holds_what_it_is_given():
    page = pages.words(401, "<b>", "&\ud800<script>")
    assert b"<script>" not in page.content and b"<b>" not in page.content
