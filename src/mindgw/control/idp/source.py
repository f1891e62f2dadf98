"""What is remembered of one provider: its metadata and its keys, fetched when they are needed and no more often than that.

What was good once stays good while the provider is away: nobody is locked out by an outage of somebody else, nor let in by it.
"""

import asyncio
import logging
from collections.abc import Callable

import msgspec
from msgspec import Struct

from mindgw import clock
from mindgw.control.idp import keyring
from mindgw.control.idp.http import Http
from mindgw.control.idp.keyring import PublicKey
from mindgw.errors import ProviderError, ProviderFailed
from mindgw.providers import Provider, is_address

log = logging.getLogger("mindgw.idp")

#: Seconds for which metadata and keys are good; between fetches because a token names a key that nobody knows; between tries while the
#: provider is away.
FRESH, UNKNOWN, AWAY = 3600.0, 60.0, 5.0


class Metadata(Struct, frozen=True):
    """What a provider says of itself (OpenID Connect Discovery 1.0), as far as it is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    device_authorization_endpoint: str = ""
    scopes_supported: list[str] = []
    code_challenge_methods_supported: list[str] = []
    token_endpoint_auth_methods_supported: list[str] = []
    id_token_signing_alg_values_supported: list[str] = []
    authorization_response_iss_parameter_supported: bool = False


class Source:
    """One provider."""

    def __init__(self, said: Provider, http: Http, ticks: Callable[[], float] = clock.monotonic) -> None:
        self.said = said
        self.http = http
        self._ticks = ticks
        self._metadata: Metadata | None = None
        self._keys: list[PublicKey] = []
        #: Monotonic seconds from which each is to be fetched again.
        self._metadata_due = self._keys_due = float("-inf")
        #: When the keys were last fetched, or that was tried.
        self._tried = float("-inf")
        #: Why the last fetch came to nothing; None when it did not.
        self._trouble: ProviderError | None = None
        self._one = asyncio.Lock()
        #: What fetches keys that are known, but not fresh: nobody waits for it.
        self._renewal: asyncio.Task[None] | None = None

    async def metadata(self) -> Metadata:
        """Raises ProviderError when it is not known, and cannot be had."""
        if self._metadata is None or self._ticks() >= self._metadata_due:
            async with self._one:
                await self._learn()
        if self._metadata is None:
            assert self._trouble is not None
            raise self._trouble.bare()
        return self._metadata

    async def keys(self, kid: str, algorithm: str) -> list[PublicKey]:
        """The keys by which such a token may be signed; none when its key is not one of the provider's. Raises ProviderError when that
        cannot be told."""
        found = keyring.matching(self._keys, kid, algorithm)
        if found and self._ticks() >= self._keys_due and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.get_running_loop().create_task(self._renew())
        elif not found and self._ticks() >= min(self._tried + UNKNOWN, self._keys_due):
            async with self._one:
                await self._fetch(wanted=not keyring.matching(self._keys, kid, algorithm))
            found = keyring.matching(self._keys, kid, algorithm)
        if not found and self._trouble is not None:
            raise self._trouble.bare()  # it may be one of those that could not be fetched
        return found

    async def _learn(self) -> None:
        """Only within the lock."""
        now = self._ticks()
        if now < self._metadata_due:
            return  # somebody else did meanwhile
        try:
            self._metadata = self._believed(await self.http.get(self.said.metadata))
        except ProviderError as wrong:
            self._give_up(wrong)
            self._metadata_due = now + AWAY
        else:
            self._trouble, self._metadata_due = None, now + FRESH

    def _believed(self, said: object) -> Metadata:
        """Raises ProviderFailed for what is not this provider's."""
        try:
            found = msgspec.convert(said, Metadata)
        except (msgspec.ValidationError, RecursionError) as wrong:
            raise ProviderFailed(f"The metadata at {self.said.metadata} makes no sense: {wrong}.") from None
        wanted = f"{self.said.authority}/{self.said.tenant}/v2.0" if self.said.is_entra else self.said.issuer
        if found.issuer != wanted:
            raise ProviderFailed(f"The metadata at {self.said.metadata} is of the issuer {found.issuer[:200]!r}, not of {wanted!r}.")
        plain = wanted.startswith("http:")
        ends = (found.authorization_endpoint, found.token_endpoint, found.jwks_uri, found.device_authorization_endpoint or found.jwks_uri)
        strange = [end for end in ends if not is_address(end.partition("?")[0]) or (end.startswith("http:") and not plain)]
        if strange:
            raise ProviderFailed(f"The metadata at {self.said.metadata} names {strange[0][:200]!r}, which is no https:// address.")
        return found

    def close(self) -> None:
        """Fetches nothing any more."""
        if self._renewal is not None:
            self._renewal.cancel()

    async def _renew(self) -> None:
        async with self._one:
            await self._fetch(wanted=False)

    async def _fetch(self, *, wanted: bool) -> None:
        """Only within the lock. `wanted`: somebody needs a key that is not known."""
        now = self._ticks()
        due = now >= self._keys_due or (wanted and now >= self._tried + UNKNOWN)
        if not due:
            return
        self._tried = now
        try:
            await self._learn()
            if self._metadata is None:
                assert self._trouble is not None
                raise self._trouble.bare()
            keys = keyring.read((await self.http.get(self._metadata.jwks_uri)).get("keys"))
            if not keys:
                raise ProviderFailed(f"{self._metadata.jwks_uri} has no key that can be used.")
        except ProviderError as wrong:
            self._give_up(wrong)
            self._keys_due = now + AWAY
        else:
            self._keys, self._trouble, self._keys_due = keys, None, now + FRESH

    def _give_up(self, wrong: ProviderError) -> None:
        log.warning("identity provider %s: %s", self.said.canonical, wrong.message)
        self._trouble = wrong.bare()
