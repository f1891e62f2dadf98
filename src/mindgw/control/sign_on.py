"""Sign-on: from a provider's word to a session of ours, and what a provider's token stands for. See docs/design/sign-on.md."""

import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from mindgw import addresses, clock
from mindgw.config import Config
from mindgw.control import arrivals
from mindgw.control.arrivals import Arrival, Word
from mindgw.control.idp import flows, tickets
from mindgw.control.idp.flows import Grant
from mindgw.control.idp.http import Http
from mindgw.control.idp.source import Source
from mindgw.control.idp.tickets import Ticket, Tickets
from mindgw.control.idp.tokens import Issued, Tokens
from mindgw.control.principal import Principal
from mindgw.control.sealing import Safe
from mindgw.control.secrets import Secrets
from mindgw.core import claims
from mindgw.core.bucket import Bucket
from mindgw.core.claims import Person, Unwelcome
from mindgw.core.tokens import SKEW
from mindgw.errors import BadRequest, NotFound, RateLimited, Unauthenticated
from mindgw.gateway.auth import Borne
from mindgw.store import audit, identities, keys, sessions, vouching
from mindgw.store.database import Database

#: Sign-ons that one address may begin in a minute, and times that it may ask whether one is finished; and addresses that are counted: this
#: machine's own are not.
BEGUN, POLLED, ADDRESSES = 30, 120, 10_000
#: For how long it is remembered that somebody was removed: tokens are good for hours.
REMEMBERED = timedelta(days=400)
_REFRESH = b"mindgw refresh tokens 1"


class ProviderView(Struct, frozen=True, kw_only=True):
    """A provider that people may sign in by."""

    name: str
    #: What people read.
    title: str
    #: Where a sign-on from a terminal leads back to, on that machine; any port will do where none is said.
    redirect: str


class Begun(Struct, frozen=True, kw_only=True):
    """A sign-on that is under way."""

    #: To be shown when it is finished.
    ticket: str
    #: Where to sign in with a browser, and what comes back from there; "" for the device flow.
    url: str = ""
    state: str = ""
    #: Where to go with any browser, and what to type in there; "" without the device flow.
    verification_uri: str = ""
    verification_uri_complete: str = ""
    user_code: str = ""
    #: Seconds between polls; 0 without the device flow.
    interval: int = 0
    #: Seconds that there are.
    expires_in: int


class SignedOn(Struct, frozen=True, kw_only=True):
    """Somebody who is in now, with the session that is never shown again."""

    session: str
    user: str
    role: str
    expires_at: datetime
    #: Seconds until then, for whose clock is another.
    expires_in: int
    #: Whether the session can be made to last longer.
    renewable: bool


class Returned(NamedTuple):
    """What came back from a provider."""

    ticket: str
    state: str
    code: str
    #: Who says that it sent somebody back, "" for nobody (RFC 9207).
    issuer: str


class Visit(NamedTuple):
    """Who asks."""

    #: What its client calls itself, and its network address.
    agent: str
    address: str


class Held(NamedTuple):
    """What a provider is asked anew with."""

    #: "" for nothing.
    token: str
    #: Whether it is asked without the client's secret: Entra takes what began without one so, and not otherwise.
    public: bool


class Refreshes:
    """What is held of people, as it is stored."""

    def __init__(self, sealing: bytes) -> None:
        self._safe = Safe(sealing, _REFRESH)

    def seal(self, identity_id: str, held: Held) -> bytes:
        """What is to be stored."""
        return self._safe.seal(identity_id, msgspec.json.encode(held))

    def open(self, identity_id: str, sealed: bytes) -> Held | None:
        """None for what was sealed by somebody else, or for another identity."""
        try:
            return msgspec.json.decode(self._safe.open(identity_id, sealed), type=Held)
        except (ValueError, msgspec.MsgspecError):
            return None


class SignOn:
    """All providers of a server."""

    def __init__(
        self,
        config: Config,
        secrets: Secrets,
        database: Database,
        changed: Callable[[str], None],
        cut: Callable[[str], None],
        now: Callable[[], float] = clock.wall,
    ) -> None:
        """Both take the id of a user: `changed` when they may do more or less than before, `cut` when they are out."""
        self.sources = {name: Source(said, Http()) for name, said in config.providers.items()}
        #: The same by the issuer that people are known by: a provider may be given another name.
        self.by_issuer = {source.said.canonical: (name, source) for name, source in self.sources.items()}
        self.tokens = Tokens(self.sources, now)
        self.database = database
        self.refreshes = Refreshes(secrets.sealing)
        self._pepper = secrets.pepper
        self._settings = config.sessions
        #: Where browsers reach this server.
        self.root = config.root_url
        self._tickets = Tickets(secrets.sealing)
        self.changed = changed
        self.cut = cut
        self._now = now
        #: (address, how often a minute) -> what it may still do.
        # bounded: by ADDRESSES
        self._begun: dict[tuple[str, int], Bucket] = {}

    @property
    def is_bearing(self) -> bool:
        """Whether tokens of any provider are taken in place of API keys."""
        return any(source.said.audiences for source in self.sources.values())

    def close(self) -> None:
        """Asks nobody any more."""
        for source in self.sources.values():
            source.close()
            source.http.close()

    def listing(self) -> list[ProviderView]:
        """Whom people may sign in by, in the order of the settings."""
        return [
            ProviderView(name=name, title=source.said.title or name, redirect=source.said.loopback) for name, source in self.sources.items()
        ]

    # -- sign-on ------------------------------------------------------------------------------------------------------

    async def begin(self, provider: str, redirect_uri: str, visit: Visit) -> Begun:
        """From a terminal, with a browser on the same machine that leads back to `redirect_uri`. Raises NotFound, BadRequest for an address
        that the settings do not say, RateLimited, ProviderError."""
        source = self.source(provider)
        _check_redirect(redirect_uri, source.said.loopback)
        return await self._begin(source, provider, tickets.TERMINAL, redirect_uri, visit)

    async def begin_browser(self, provider: str, visit: Visit) -> Begun:
        """From a page of this server. Raises as `begin`."""
        return await self._begin(self.source(provider), provider, tickets.BROWSER, self._back(provider), visit)

    async def _begin(self, source: Source, provider: str, kind: str, redirect_uri: str, visit: Visit) -> Begun:
        self._pace(visit.address, BEGUN)
        state, nonce, verifier = tickets.fresh(), tickets.fresh(), tickets.fresh()
        url = await flows.address(source, redirect_uri, state, nonce, verifier)
        expires = self._now() + tickets.LIFE
        ticket = Ticket(
            id=tickets.fresh(), provider=provider, kind=kind, expires=expires, state=state, nonce=nonce, verifier=verifier,
            redirect_uri=redirect_uri,
        )  # fmt: skip
        return Begun(ticket=self._tickets.made(ticket), url=url, state=state, expires_in=int(tickets.LIFE))

    async def begin_device(self, provider: str, visit: Visit) -> Begun:
        """From a machine without a browser. Raises NotFound, Conflict where the provider cannot do that, RateLimited, ProviderError."""
        source = self.source(provider)
        self._pace(visit.address, BEGUN)
        code = await flows.begin_device(source, public=source.said.is_entra)
        ticket = Ticket(
            id=tickets.fresh(),
            provider=provider,
            kind=tickets.DEVICE,
            expires=self._now() + code.expires_in,
            device_code=code.device_code,
        )
        return Begun(
            ticket=self._tickets.made(ticket),
            verification_uri=code.verification_uri,
            verification_uri_complete=code.verification_uri_complete,
            user_code=code.user_code,
            interval=code.interval,
            expires_in=code.expires_in,
        )

    def _back(self, provider: str) -> str:
        """Where a provider sends browsers back: each elsewhere, so that none has what another says taken for its own (RFC 9700, 4.4)."""
        return f"{self.root}/sign-on/callback/{provider}"

    def begun(self, kind: str, back: Returned, at: str = "") -> Ticket:
        """The sign-on that an answer belongs to, which came back to the address of the provider `at`. Raises Unauthenticated."""
        ticket = self._tickets.read(back.ticket, kind, self._now())
        if not hmac.compare_digest(back.state.encode("utf-8", "replace"), ticket.state.encode()) or (at and at != ticket.provider):
            raise Unauthenticated("This answer belongs to another sign-on.", code="wrong_state")
        return ticket

    async def finish(self, kind: str, back: Returned, visit: Visit, at: str = "") -> SignedOn:
        """Somebody came back. Raises Unauthenticated, Forbidden, ProviderError; whatever it is, that sign-on is over."""
        ticket = self.begun(kind, back, at)
        source = self.source(ticket.provider)
        await self._spend(ticket)
        metadata = await source.metadata()
        if (back.issuer or metadata.authorization_response_iss_parameter_supported) and back.issuer != metadata.issuer:
            raise Unauthenticated("This answer is from another issuer.", code="wrong_issuer")
        public = source.said.is_entra and kind != tickets.BROWSER
        grant = await flows.exchange(source, back.code, ticket.redirect_uri, ticket.verifier, public=public)
        issued = await self.tokens.shown(ticket.provider, grant.id_token, ticket.nonce)
        return await self._let_in(issued, grant, Held(grant.refresh_token, public), visit)

    async def poll(self, text: str, visit: Visit) -> SignedOn | int:
        """Somebody who signs in on another device, or the seconds until it is worth asking again: 0 stands for the interval as before.
        Raises as `finish`."""
        ticket = self._tickets.read(text, tickets.DEVICE, self._now())
        self._pace(visit.address, POLLED)
        source = self.source(ticket.provider)
        public = source.said.is_entra
        found = await flows.poll_device(source, ticket.device_code, public=public)
        if isinstance(found, flows.Pending):
            return flows.SLOWER if found.slower else 0
        await self._spend(ticket)
        issued = await self.tokens.shown(ticket.provider, found.id_token, None)
        return await self._let_in(issued, found, Held(found.refresh_token, public), visit)

    async def _spend(self, ticket: Ticket) -> None:
        async with self.database.write() as session:
            fresh = await identities.spend(session, ticket.id, datetime.fromtimestamp(ticket.expires, UTC))
        if not fresh:
            raise Unauthenticated("This sign-on was finished already.", code="used_sign_on")

    async def _let_in(self, issued: Issued, grant: Grant, held: Held, visit: Visit) -> SignedOn:
        word = await self.last_word(issued, grant, visit.address)
        now = clock.utcnow()
        span = timedelta(seconds=self._settings.recheck)
        until = min(now + span, now + timedelta(seconds=self._settings.keep))
        async with self.database.write() as session:
            came = await arrivals.arrive(session, word)
            user, identity = came.user, came.identity
            if held.token:  # some say it the first time only: then that of before goes on
                identity.refresh = self.refreshes.seal(identity.id, held)
            await session.flush()
            await vouching.vouch(session, identity.id, now, span)
            row, secret = await sessions.create(session, user.id, self._pepper, at=now, until=until, agent=visit.agent, identity=identity)
            row.ends_at = now + timedelta(seconds=self._settings.keep)
            user.last_seen_at = now
            who = Principal(org_id=user.org_id, is_home=False, user_id=user.id, email=user.email, session_id=row.id, address=visit.address)
            await audit.record(session, who, "session.create", row.id, email=user.email, provider=issued.name)
            signed = SignedOn(
                session=secret, user=user.email, role=user.role, expires_at=until, expires_in=int((until - now).total_seconds()),
                renewable=identity.refresh is not None,
            )  # fmt: skip
        self.told(came)
        return signed

    # -- what a token says --------------------------------------------------------------------------------------------

    async def last_word(self, issued: Issued, grant: Grant, address: str = "") -> Word:
        """Who has just signed in, or was asked about anew. Raises Unauthenticated for somebody whom the settings do not let in: who was in
        is out; and ProviderError."""
        said, groups = issued.source.said, None
        if said.graph and grant.access_token and claims.needs_groups(issued.token.claims, arrivals.shape(issued.name, said)):
            groups = await flows.groups_of(issued.source, grant.access_token)
        person = _person(issued, groups)
        if isinstance(person, Unwelcome):
            if person.code != claims.OVERAGE:
                await self._lapse(issued, person)
            raise Unauthenticated(person.message, code=person.code)
        return _word(issued, person, address, final=True)

    async def _lapse(self, issued: Issued, why: Unwelcome) -> None:
        said = issued.source.said
        subject = issued.token.claims.get("oid" if said.is_entra else "sub")
        async with self.database.write() as session:
            known = await identities.find(session, said.canonical, str(subject))
            gone = known is not None and await arrivals.lapse(session, known, why.code)
        if gone and known is not None:
            self.cut(known.user.id)

    async def bear(self, text: str) -> Borne:
        """The key that a token of a provider stands for, and until when. Raises Unauthenticated, Forbidden, ProviderError."""
        issued = await self.tokens.borne(text)
        person = _person(issued, whole=False)
        if isinstance(person, Unwelcome):
            raise Unauthenticated(person.message, code=person.code)
        word = _word(issued, person, "", final=False)
        async with self.database.write() as session:
            came = await arrivals.arrive(session, word)
            holder = await keys.holder(session, came.identity.key_id)
        self.told(came)
        if holder is None:
            raise Unauthenticated("The key of this person is gone.", code="revoked_api_key")
        return Borne(holder, b"", datetime.fromtimestamp(issued.token.ends + SKEW, UTC))

    def told(self, came: Arrival) -> None:
        """To be called when somebody's arrival is on the disk."""
        if came.changed:
            self.changed(came.user.id)

    # -- beside -------------------------------------------------------------------------------------------------------

    def source(self, name: str) -> Source:
        """The provider of that name. Raises NotFound."""
        found = self.sources.get(name)
        if found is None:
            raise NotFound(f"There is no identity provider {name[:63]!r} here.", hint="`mindgw login` shows which there are")
        return found

    def _pace(self, address: str, most: int) -> None:
        """Each of them has a provider asked. Raises RateLimited."""
        who, moment = addresses.group(address), int(clock.monotonic() * 1e6)
        if not who:
            return
        if len(self._begun) >= ADDRESSES:
            self._begun = {other: bucket for other, bucket in self._begun.items() if bucket.full_in(moment)}
        if len(self._begun) >= ADDRESSES:
            self._begun.clear()
        bucket = self._begun.setdefault((who, most), Bucket(most, moment))
        if bucket.left(moment) < 1:
            raise RateLimited("Your address has asked for too many sign-ons.", retry_after=bucket.wait(1, moment) / 1e6)
        bucket.take(1, moment)

    async def forget(self) -> None:
        """Removes what is known of sign-ons that are over."""
        async with self.database.write() as session:
            now = clock.utcnow()
            await identities.forget_tickets(session, now)
            await identities.forget_departures(session, now - REMEMBERED)


def _person(issued: Issued, groups: list[str] | None = None, *, whole: bool = True) -> Person | Unwelcome:
    """Who a good token speaks of."""
    return claims.person(issued.token.claims, arrivals.shape(issued.name, issued.source.said), groups, whole=whole)


def _word(issued: Issued, person: Person, address: str, *, final: bool) -> Word:
    at = datetime.fromtimestamp(float(issued.token.claims["iat"]), UTC)
    return Word(provider=issued.name, said=issued.source.said, person=person, at=at, final=final, address=address)


def _check_redirect(wished: str, said: str) -> None:
    """Raises BadRequest unless a sign-on may lead there: the loopback address of the settings, with any port where they name none."""
    try:
        wanted, known = urlsplit(wished), urlsplit(said)
        same = (wanted.scheme, wanted.hostname, wanted.path, wanted.query, wanted.fragment) == (
            known.scheme, known.hostname, known.path, "", "",
        )  # fmt: skip
        good = same and wanted.username is None and bool(wanted.port) and known.port in (None, wanted.port)
    except ValueError:
        good = False
    if not good or not wished.isascii() or not wished.isprintable():
        raise BadRequest(f"'redirect_uri' must be {said}, with a port.", param="redirect_uri")
