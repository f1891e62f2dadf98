"""Which server a command talks to, and with which key."""

from dataclasses import replace

from mindgw.cli.render import Render
from mindgw.cli.settings import Environment, Options
from mindgw.client import api, contexts, credentials, renewal
from mindgw.client.api import root_url
from mindgw.client.contexts import Context
from mindgw.client.errors import NotLoggedIn, Unreachable
from mindgw.client.transport import Server, fetch_unverified

#: Seconds that a renewal may hold a command up.
_RENEWAL = 15.0


def choose(options: Options, environment: Environment, *, anonymous: bool = False) -> Server:
    """Flag, then environment, then the current context; the key is MINDGW_TOKEN, else the one that is kept for that server.

    Raises NotLoggedIn when no server is named or no key is known, Missing for a context that is not there.
    """
    url, context = _place(options, environment)
    server = Server.at(url, ca_pem=context.ca_pem or None if context else None)  # first: a wrong address is nothing to have a key for
    if anonymous:
        return server
    token = environment.token or (credentials.find(context.fingerprint) if context and context.fingerprint else None)
    if not token:
        hint = f"`mindgw login {url}` keeps one, MINDGW_TOKEN names one; `mindgw init --new-admin-key` on the server makes one"
        raise NotLoggedIn(f"no key for {url} is known here", hint=hint)
    server = replace(server, token=token)
    if context is not None and context.renew_at and not environment.token:
        _renew(replace(server, timeout=min(options.timeout, _RENEWAL)), context)
    return server


def _renew(server: Server, context: Context) -> None:
    """Has a session that ends soon last longer, and remembers that. Raises NotLoggedIn when it is over."""
    if not renewal.is_due(context):
        return
    later = renewal.renewed(server, context)
    known = contexts.load()
    if later != context and known.items.get(context.name) == context:
        contexts.save(replace(known, items={**known.items, context.name: later}))


def _place(options: Options, environment: Environment) -> tuple[str, Context | None]:
    """The root URL and, when that server is known here, its context. Flags win over the environment."""
    known = contexts.load()
    url = options.server or ("" if options.context else environment.server)
    if url:
        return root_url(url), known.at(root_url(url))
    context = known.get(options.context or environment.context)
    if context is None:
        hint = "`mindgw login URL` gets to know one; `mindgw init` makes one on this machine"
        raise NotLoggedIn("no server is known here", hint=hint)
    return context.url, context


def authority(options: Options, environment: Environment, render: Render) -> str:
    """The CA certificate of the server that is meant, as PEM: the pinned one, else the one that the server shows."""
    url, context = _place(options, environment)
    if context is not None and context.ca_pem:
        return context.ca_pem
    server = Server.at(url, timeout=options.timeout, note=render.wire)
    try:
        return server.fetch(api.authority()).decode("ascii", "replace")
    except Unreachable:
        if not url.startswith("https://"):
            raise
    pem, fingerprint = fetch_unverified(server, api.authority())
    render.warn(f"nobody vouches for this certificate yet. On the server compare its SHA-256: {fingerprint}")
    return pem
