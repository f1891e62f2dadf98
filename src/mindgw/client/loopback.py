"""Where a browser on this machine leads back to when somebody has signed in (RFC 8252): one small listener, for one answer."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from mindgw import clock
from mindgw.client.errors import NotLoggedIn, UsageProblem

#: Seconds that one connection may take to say what it wants.
_PATIENCE = 5.0
#: Characters of the longest part of an answer.
_MOST = 4000

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MindGateway</title></head><body><p>{text}</p></body></html>"""


class Back(NamedTuple):
    """What a browser brought back."""

    code: str
    state: str
    iss: str
    #: What the provider says went wrong, "" for nothing.
    error: str


class Loopback:
    """Listens from its making to the end of the `with` that it stands in. Raises UsageProblem when the port is taken."""

    def __init__(self, redirect: str) -> None:
        """`redirect` is what the server says: http, a loopback host, perhaps a port."""
        parts = urlsplit(redirect)
        self._path = parts.path or "/"
        #: What came, once it did.
        self.back: Back | None = None
        #: What an answer must have with it; any other belongs to somebody else.
        self.state = ""
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE

            def do_GET(self) -> None:
                status, text = loopback.take(self.path)
                page = _PAGE.format(text=text).encode()
                self.send_response(status)
                for name, value in (
                    ("content-type", "text/html; charset=utf-8"),
                    ("content-length", str(len(page))),
                    ("connection", "close"),
                ):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, format: str, *args: object) -> None:
                """Silent: an address has a code in it."""

        try:
            self._server = HTTPServer(("::1" if parts.hostname == "::1" else "127.0.0.1", parts.port or 0), Handler)
        except OSError as error:
            hint = "close what listens there, or sign in with --device"
            raise UsageProblem(f"port {parts.port} of this machine cannot be listened on: {error.strerror}", hint=hint) from None
        host = f"[{parts.hostname}]" if parts.hostname == "::1" else parts.hostname
        #: The same with the port.
        self.redirect_uri = f"http://{host}:{self._server.server_address[1]}{parts.path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: BaseException | None, trace: TracebackType | None) -> None:
        self._server.server_close()

    def wait(self, seconds: float) -> Back:
        """What a browser brings back. Raises NotLoggedIn when none does in that time."""
        end = clock.monotonic() + seconds
        while self.back is None:
            left = end - clock.monotonic()
            if left <= 0:
                raise NotLoggedIn("nobody came back from the browser in time", hint="try again, or sign in on another device with --device")
            self._server.timeout = min(left, 1.0)
            self._server.handle_request()
        return self.back

    def take(self, target: str) -> tuple[int, str]:
        """What a request asks for; status and words for its answer."""
        parts = urlsplit(target)
        if (parts.path or "/") != self._path:
            return 404, "There is nothing here."
        asked = parse_qs(parts.query, keep_blank_values=True)
        texts = {name: values[0][:_MOST] for name, values in asked.items() if len(values) == 1}
        if not self.state or texts.get("state") != self.state:
            return 400, "This answer belongs to another sign-in."
        error = texts.get("error_description") or texts.get("error", "")
        if not error and not texts.get("code"):
            return 400, "This answer says nothing."
        self.back = Back(texts.get("code", ""), texts["state"], texts.get("iss", ""), error)
        return 200, "Thank you. What came of it is in the terminal; this page can be closed."
