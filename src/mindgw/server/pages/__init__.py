"""Pages of the server's own, each one file that loads nothing from elsewhere: `/me`, one's own, and `/api/v1/docs`, the API.

Whatever stands in such a page besides its own script is not run, by its Content-Security-Policy; a page holds nothing that is secret, and
what it shows it asks the management API for, with what its reader types in.
"""

import hashlib
import re
from base64 import b64encode
from functools import cache
from importlib.resources import files

from litestar import Response, get

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


def _served(name: str) -> Response[bytes]:
    body, policy = page(name)
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
    return Response(body, media_type="text/html", headers=headers)


@get("/me", include_in_schema=False)
async def me() -> Response[bytes]:
    """Limits, usage, models, queue, keys and sessions of whoever signs in."""
    return _served("me")


@get("/api/v1/docs", include_in_schema=False)
async def api() -> Response[bytes]:
    """The management API, as it describes itself."""
    return _served("api")


HANDLERS = (me, api)
