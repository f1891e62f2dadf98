"""Whether a server that is met for the first time is the right one, before anything secret is sent to it."""

import hashlib
import re
import ssl
from dataclasses import replace
from pathlib import Path

from mindgw.cli.invocation import Invocation
from mindgw.client import api, contexts
from mindgw.client.contexts import Context
from mindgw.client.errors import Clash, ClientError, NotMindGW, Unreachable, UsageProblem
from mindgw.client.transport import Server, fetch_unverified

#: Longest CA file that is read.
MAX_PEM = 2**20
_PEM = "-----BEGIN CERTIFICATE-----"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def meet(run: Invocation, name: str, url: str, *, ca: Path | None = None, ca_sha256: str = "") -> Context:
    """The context for a server: as it is known, else with the authority that its certificate must come from. Nothing is saved, and
    nothing secret is sent. Raises ClientError when that server, or its authority, is not the one that is meant."""
    server = Server.at(url, timeout=run.options.timeout, note=run.render.wire)
    known = contexts.load().at(server.url)
    if known is not None and not ca and not ca_sha256:
        return known if known.fingerprint else replace(known, fingerprint=own_name(known.name, known.url, known.ca_pem))
    pem = _authority(run, server, ca, ca_sha256)
    if known is not None and known.ca_pem == pem and known.fingerprint:
        return known
    _others(name, server.url)
    return Context(name, server.url, pem, own_name(name, server.url, pem))


def besides(context: Context, name: str) -> Context:
    """The same server under another name, with a key of its own: one may be several people there. Raises Clash when that is the name of
    another server."""
    if name in {"", context.name}:
        return context
    known = _others(name, context.url)
    made = replace(context, name=name, fingerprint=own_name(name, context.url, context.ca_pem))
    return known if known is not None and known.ca_pem == context.ca_pem and known.fingerprint else made


def _others(name: str, url: str) -> Context | None:
    """What is known under that name. Raises Clash when it is another server, whose key this one must not get."""
    known = contexts.load().items.get(name)
    if known is not None and known.url != url:
        raise Clash(f"the context {name!r} is {known.url}", hint="choose another one with --name")
    return known


def own_name(name: str, url: str, pem: str) -> str:
    """Under this a key for that server is kept: never what a server says of itself, or one could ask for another's key."""
    return "at-" + hashlib.sha256(f"{name}\n{url}\n{pem}".encode()).hexdigest()[:32]


def _authority(run: Invocation, server: Server, ca: Path | None, ca_sha256: str) -> str:
    """PEM of the only authority that is to be trusted; "" for the system's, and for a loopback address."""
    if ca is not None:
        return _from_file(ca)
    if server.url.startswith("http://"):
        return ""
    if not ca_sha256 and _is_vouched_for(server):
        return ""
    pem, fingerprint = fetch_unverified(server, api.authority())
    if not ca_sha256:
        run.render.warn(f"nobody vouches for {server.url} yet: the SHA-256 of its CA is {fingerprint}")
        run.confirm("Is that what `mindgw ca export` shows on the server?")
    elif _digits(ca_sha256) != _digits(fingerprint):
        hint = "compare it on the server: `mindgw ca fingerprint`; somebody may be in between"
        raise Unreachable(f"{server.url} shows another CA than --ca-sha256 names", hint=hint, code="wrong_ca")
    return pem


def _is_vouched_for(server: Server) -> bool:
    """Whether the system trusts the certificate. Raises Unreachable for any other reason why there is no connection."""
    try:
        server.fetch(api.authority())
    except NotMindGW:
        raise
    except Unreachable as problem:
        if isinstance(problem.__cause__, ssl.SSLCertVerificationError):
            return False
        raise
    except ClientError:
        return True  # it has an answer, if not a CA: somebody else vouches for it
    return True


def _digits(text: str) -> str:
    digits = re.sub(r"[\s:]", "", text.lower()).removeprefix("sha256")
    if _DIGEST.fullmatch(digits) is None:
        raise UsageProblem(f"{text[:80]!r} is no SHA-256", hint="it has 64 hexadecimal digits")
    return digits


def _from_file(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_PEM + 1)
    except OSError as error:
        raise UsageProblem(f"cannot read {file}: {error.strerror}") from None
    text = raw.decode("ascii", "replace")
    if _PEM not in text or len(raw) > MAX_PEM:
        raise UsageProblem(f"{file} is no certificate in PEM", hint="`mindgw ca export > FILE` on the server writes one")
    return text
