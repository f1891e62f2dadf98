"""Signing in by an identity provider: with the browser of this machine, or with that of another one."""

import threading
import webbrowser
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mindgw import clock
from mindgw.cli.invocation import Invocation
from mindgw.client import sign_on
from mindgw.client.errors import Missing, NotLoggedIn, NotMindGW, UsageProblem

if TYPE_CHECKING:
    from mindgw.client.transport import Server

#: Seconds that a browser may take.
BROWSE = 300.0
#: Seconds between polls at least and at most, whatever the server says.
_LEAST, _MOST = 1, 60


def providers(server: "Server") -> list[dict[str, Any]]:
    """Whom people may sign in by at a server; none at one that knows nothing of that."""
    try:
        found = server.call(sign_on.list_providers())["items"]
    except (NotLoggedIn, Missing, NotMindGW):
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in found):
        return []
    return found


def chosen(run: Invocation, known: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The provider that is meant. Raises UsageProblem."""
    names = [str(one["name"]) for one in known]
    if not known:
        raise UsageProblem("people cannot sign in by an identity provider there", hint="mindgw login --with-token < FILE")
    if not name and len(known) > 1:
        run.require_person(f"--provider required: one of {', '.join(names)}", hint=f"mindgw login --provider {names[0]}")
        name = run.render.ask(f"Sign in by which of {', '.join(names)}?") or ""
    found = known[0] if not name else next((one for one in known if one["name"] == name), None)
    if found is None:
        raise UsageProblem(f"there is no identity provider {name!r} there", hint=f"one of {', '.join(names)}")
    return found


def with_browser(run: Invocation, server: "Server", provider: Mapping[str, Any], *, opens: bool) -> dict[str, Any]:
    """The session of whoever signs in with a browser of this machine; the address is shown, and opened if wished. Raises ClientError."""
    from mindgw.client.loopback import Loopback

    if run.options.no_input:
        raise UsageProblem("--no-input, and somebody has to sign in with a browser", hint="mindgw login --with-token < FILE")
    with Loopback(str(provider.get("redirect", ""))) as loopback:
        begun = server.call(sign_on.begin(str(provider["name"]), loopback.redirect_uri))
        loopback.state, url = str(begun.get("state", "")), _address(server, begun.get("url"))
        run.render.note(f"Sign in with a browser on this machine: {url}")
        if run.environment.remote:
            run.render.note("This is a session over SSH: where the browser is on another machine, --device is for that")
        if opens:
            # a browser in a terminal returns when it is closed, and until then somebody must listen
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        back = loopback.wait(min(BROWSE, float(begun["expires_in"])))
    if back.error:
        raise NotLoggedIn(f"the provider says: {_line(back.error)}")
    made: dict[str, Any] = server.call(sign_on.finish(str(begun["ticket"]), code=back.code, state=back.state, iss=back.iss))
    return made


def with_device(run: Invocation, server: "Server", provider: Mapping[str, Any]) -> dict[str, Any]:
    """The session of whoever signs in with a browser somewhere else. Raises ClientError."""
    begun = server.call(sign_on.begin(str(provider["name"])))
    place = _address(server, begun.get("verification_uri"))
    run.render.note(f"With any browser go to {place} and type in {_line(str(begun.get('user_code', '')))}")
    if begun.get("verification_uri_complete"):
        run.render.note(f"  or to {_address(server, begun['verification_uri_complete'])}, where it is typed in already")
    interval, end = int(begun.get("interval") or _LEAST), clock.monotonic() + float(begun["expires_in"])
    while clock.monotonic() < end:
        threading.Event().wait(max(_LEAST, min(interval, _MOST)))
        said = server.call(sign_on.poll(str(begun["ticket"])))
        made: dict[str, Any] = said if isinstance(said, dict) else {}
        if made.get("session"):
            return made
        interval += int(made.get("slower") or 0)
    raise NotLoggedIn("nobody has signed in in time", hint="try again: mindgw login --device")


def _address(server: "Server", text: Any) -> str:
    """An address that may be shown and opened. Raises NotMindGW for anything else a server may say."""
    try:
        parts = urlsplit(str(text))
        good = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"})
    except ValueError:
        good = False
    if not good or not str(text).isascii() or any(c <= " " or c == "\x7f" for c in str(text)):
        raise NotMindGW(server.url, "it sends people to an address that is none")
    return str(text)


def _line(text: str) -> str:
    return "".join(c for c in text[:300] if c.isprintable())
