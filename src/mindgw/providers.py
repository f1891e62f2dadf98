"""Identity providers as the settings say them: who may sign in by whom, and what that gives them. PURE."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from mindgw.quantities import NameTable, Words, is_loopback

ENTRA, OIDC = "entra", "oidc"
#: How tokens may be signed; what is symmetric is none: whoever could check it could make it.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
#: What stands for no role at all.
NONE = "none"
#: Names of providers, as they stand in addresses.
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)

_TENANT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

#: A cloud whose tokens of version 1 have an issuer of its own.
_CHINA = "https://login.partner.microsoftonline.cn"


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who knows people, and what is thought of those whom they send."""

    #: entra: Microsoft Entra ID; oidc: any other that speaks OpenID Connect.
    kind: str = OIDC
    #: What people read on the button; empty: the name.
    title: str = ""
    #: Of entra: id of the one tenant whose people come in.
    tenant: str = ""
    #: Of entra: where sign-ons of the cloud are.
    authority: str = "https://login.microsoftonline.com"
    #: Of oidc: the issuer, word for word as its metadata has it.
    issuer: str = ""
    #: Id of the application that was registered for this server.
    client_id: str = ""
    #: Its secret, where it has one: ${NAME} keeps it out of the file.
    client_secret: str = ""
    #: Whom tokens must be meant for that are sent in place of API keys, such as the client id or "api://mindgw"; empty: none are taken.
    audiences: Words = ()
    #: How tokens may be signed.
    algorithms: Words = ("RS256",)
    #: What is asked for; empty: "openid profile email", and offline_access where the provider has that.
    scopes: Words = ()
    #: What else it is asked for when somebody signs in: "access_type=offline, prompt=consent" has Google give refresh tokens.
    ask: NameTable = {}
    #: Whether people may sign in with a browser on another machine (`mindgw login --device`): whoever is talked into typing in somebody
    #: else's code signs that one in.
    device: bool = True
    #: Where a sign-on from a terminal leads back to, on that machine; without a port any one is taken. Empty: http://localhost of entra,
    #: http://127.0.0.1/callback of oidc.
    redirect: str = ""
    #: Organisation that the people belong to; empty: the one that runs the server.
    org: str = ""
    #: Claims that roles are told by: names, or paths such as realm_access.roles.
    role_claims: Words = ("roles",)
    #: Claims that teams are told by.
    team_claims: Words = ("groups",)
    #: What stands in those claims -> role: "mindgw.admin=admin, mindgw.user=user". Whoever has several has the highest. Where names have
    #: commas in them, semicolons stand between: "CN=gw,OU=lab=user; CN=ops,OU=lab=operator".
    roles: NameTable = {}
    #: What stands in those claims -> team: "11aa-22bb=nlp". Teams are made when they are not there.
    teams: NameTable = {}
    #: Role of whoever has none by a claim; none: they do not come in.
    default_role: str = NONE
    #: Claims that must have a value for somebody to come in: "hd=example.org".
    require: NameTable = {}
    #: Of entra: whether guests of the tenant come in.
    guests: bool = False
    #: Of entra: where it is asked about somebody whose token leaves their groups out, as there are too many: https://graph.microsoft.com;
    #: empty: nobody is asked, and they do not come in.
    graph: str = ""

    def __repr__(self) -> str:
        return f"Provider({self.canonical!r})"  # without the secret

    @property
    def is_entra(self) -> bool:
        return self.kind == ENTRA

    @property
    def canonical(self) -> str:
        """The issuer that people are known by: one, however many names it has."""
        return f"entra:{self.tenant}" if self.is_entra else self.issuer

    @property
    def issuers(self) -> frozenset[str]:
        """The names that its tokens may have: of a tenant of Entra there are two, of tokens of version 1 and 2."""
        if not self.is_entra:
            return frozenset((self.issuer,))
        old = "https://sts.chinacloudapi.cn" if self.authority == _CHINA else "https://sts.windows.net"
        return frozenset((f"{self.authority}/{self.tenant}/v2.0", f"{old}/{self.tenant}/"))

    @property
    def metadata(self) -> str:
        """Where its metadata is."""
        root = f"{self.authority}/{self.tenant}/v2.0" if self.is_entra else self.issuer.rstrip("/")
        return f"{root}/.well-known/openid-configuration"

    @property
    def loopback(self) -> str:
        """Where a sign-on from a terminal leads back to."""
        return self.redirect or ("http://localhost" if self.is_entra else "http://127.0.0.1/callback")


def problem(said: Provider) -> tuple[str, str] | None:
    """(setting, what is wrong with it) of the first that makes no sense; None: all do."""
    if said.kind not in (ENTRA, OIDC):
        return "kind", f"must be {ENTRA} or {OIDC}"
    if said.is_entra and _TENANT.fullmatch(said.tenant) is None:
        return (
            "tenant",
            "must be the id of one tenant, such as 8eaef023-2b34-4da1-9baa-8bc8c9d6a490: common and organizations let anybody in",
        )
    wrong = _addresses(said)
    if wrong is not None:
        return wrong
    if not said.client_id:
        return "client_id", "must be the id of the application that was registered for this server"
    unknown = [name for name in said.algorithms if name not in ALGORITHMS]
    if unknown or not said.algorithms:
        return "algorithms", f"must be of {', '.join(ALGORITHMS)}"
    if not said.roles and said.default_role in ("", NONE):
        return "default_role", "must say what people are here who come from this provider, such as user, or roles by what it says of them"
    return None


def clash(several: Mapping[str, Provider]) -> tuple[str, str] | None:
    """(name, what is wrong) of the first that does not go together with one before it; None: all do."""
    issuers: dict[str, str] = {}
    places: dict[str, Provider] = {}
    for name, said in several.items():
        if any(issuer in issuers for issuer in said.issuers):
            return name, "two providers are the same issuer"
        issuers |= dict.fromkeys(said.issuers, name)
        path = urlsplit(said.loopback).path.rstrip("/")
        other = places.setdefault(path, said)
        if other is not said and not (other.is_entra and said.is_entra and other.authority == said.authority):
            return name, (
                "two providers lead back to the same place, so that one of them could take what the other says for its own: give it"
                f" another path, such as redirect: {said.loopback.rstrip('/')}/{name}"
            )
    return None


def _addresses(said: Provider) -> tuple[str, str] | None:
    if said.graph and not is_address(said.graph):
        return "graph", "must be an https:// address, without ? and #"
    if not is_address(said.authority if said.is_entra else said.issuer):
        return ("authority" if said.is_entra else "issuer"), "must be an https:// address, without ? and #"
    try:
        back = urlsplit(said.loopback)
        good = back.scheme == "http" and (back.hostname == "localhost" or is_loopback(back.hostname or "")) and back.port != 0
    except ValueError:
        good = False
    return (
        None
        if good and not back.query and not back.fragment
        else ("redirect", "must be http:// and a loopback address, such as http://127.0.0.1/callback")
    )


def is_address(text: str) -> bool:
    """Whether a provider may be there: TLS, but on this machine itself."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    plain = parts.scheme == "http" and is_loopback(parts.hostname or "")
    clean = not any(character <= " " or character == "\x7f" for character in text) and "?" not in text and "#" not in text
    return bool(parts.hostname) and port != 0 and not parts.username and clean and (parts.scheme == "https" or plain)
