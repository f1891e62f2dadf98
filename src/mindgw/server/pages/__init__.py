"""Pages of the server's own, each one file that loads nothing from elsewhere: `/me`, one's own, and `/api/v1/docs`, the API.

Whatever stands in such a page besides its own script is not run, by its Content-Security-Policy; a page holds nothing that is secret, and
what it shows it asks the management API for, with what its reader types in.
"""

import hashlib
import html
import re
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from litestar import Response, get
from litestar.datastructures import Cookie

_INLINE = {
    "script": re.compile(rb"<script>(.*?)</script>", re.DOTALL),
    "style": re.compile(rb"<style>(.*?)</style>", re.DOTALL),
}


@cache
def page(name: str) -> tuple[bytes, str]:
    """A page, and the policy that lets run what stands in it and nothing else."""
    body = files(__package__).joinpath(f"{name}.html").read_bytes()
    allowed = {kind: " ".join(map(_hash, form.findall(body))) for kind, form in _INLINE.items()}
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; "
        f"script-src {allowed['script']}; style-src {allowed['style']}"
    )
    return body, policy


def _hash(text: bytes) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text).digest()).decode()}'"


_HEADERS = {"cache-control": "no-cache", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff", "x-frame-options": "DENY"}
#: A page that says one thing.
_WORDS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>MindGateway: {title}</title></head>
<body><h1>{title}</h1><p>{text}</p><p><a href="/me">Back</a></p></body></html>
"""


def _served(name: str) -> Response[bytes]:
    body, policy = page(name)
    return Response(body, media_type="text/html", headers={"content-security-policy": policy, **_HEADERS})


def words(status: int, title: str, text: str, cookies: Sequence[Cookie] = ()) -> Response[bytes]:
    """A page that says one thing, in which nothing runs."""
    body = _WORDS.format(title=html.escape(title), text=html.escape(text)).encode("utf-8", "replace")
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    headers = {"content-security-policy": policy, **_HEADERS}
    return Response(body, status_code=status, media_type="text/html", headers=headers, cookies=list(cookies))


@get("/me", include_in_schema=False)
async def me() -> Response[bytes]:
    """Limits, usage, models, queue, keys and sessions of whoever signs in."""
    return _served("me")


@get("/api/v1/docs", include_in_schema=False)
async def api() -> Response[bytes]:
    """The management API, as it describes itself."""
    return _served("api")


HANDLERS = (me, api)
