"""Tokens of providers, checked: by the rules of their issuer, by its keys, by its claims."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import jwt

from mindgw import clock
from mindgw.control.idp.keyring import PublicKey
from mindgw.control.idp.source import Source
from mindgw.core import tokens
from mindgw.core.tokens import Rules, Token, Wrong
from mindgw.errors import Unauthenticated

#: Keys that are tried on a token that names none.
TRIED = 20

_JWS = jwt.PyJWS()


class Issued(NamedTuple):
    """A token that is good, and whose."""

    #: Name of the provider in the settings.
    name: str
    source: Source
    token: Token


class Tokens:
    """The tokens of all providers."""

    def __init__(self, sources: dict[str, Source], now: Callable[[], float] = clock.wall) -> None:
        self._now = now
        #: Issuer -> name of the provider, and that provider.
        self._by_issuer = {issuer: (name, source) for name, source in sources.items() for issuer in source.said.issuers}
        self.sources = sources

    async def borne(self, text: str) -> Issued:
        """One that was sent in place of an API key. Raises Unauthenticated, ProviderError."""
        token = _good(tokens.read(text))
        found = self._by_issuer.get(token.issuer)
        if found is None or not found[1].said.audiences:
            raise Unauthenticated("Tokens of this issuer are not taken here.", code="wrong_issuer")
        name, source = found
        await self._check(text, token, source, source.said.audiences, borne=True)
        return Issued(name, source, token)

    async def shown(self, name: str, text: str, nonce: str | None) -> Issued:
        """One that a provider has answered with; `nonce` None: none was sent. Raises as `borne`."""
        source = self.sources[name]
        token = _good(tokens.read(text))
        client = source.said.client_id
        await self._check(text, token, source, (client,))
        _raise(tokens.check_sign_in(token, client, nonce))
        return Issued(name, source, token)

    async def _check(self, text: str, token: Token, source: Source, audiences: Collection[str], *, borne: bool = False) -> None:
        said = source.said
        rules = Rules(
            issuers=said.issuers,
            audiences=frozenset(audiences),
            algorithms=frozenset(said.algorithms),
            tenant=said.tenant if said.is_entra else "",
        )
        _raise(tokens.check_header(token, rules))
        # before the keys are asked for: nobody has us fetch some with a token that will not do anyway
        _raise(tokens.check_claims(token, rules, self._now()))
        _raise(tokens.check_bearer(token, rules) if borne else None)
        keys = await source.keys(token.kid, token.algorithm)
        if not any(_is_signed(text, key, token.algorithm) for key in keys[:TRIED]):
            raise Unauthenticated("The token is not signed by its issuer.", code="invalid_token")


def _is_signed(text: str, key: PublicKey, algorithm: str) -> bool:
    try:
        _JWS.decode_complete(text, key.key, algorithms=[algorithm])
    except jwt.InvalidTokenError:
        return False
    return True


def _good(found: Token | Wrong) -> Token:
    if isinstance(found, Wrong):
        raise Unauthenticated(found.message, code=found.code)
    return found


def _raise(wrong: Wrong | None) -> None:
    if wrong is not None:
        raise Unauthenticated(wrong.message, code=wrong.code)
