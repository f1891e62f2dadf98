"""What is right and what is wrong with a provider of the settings, as far as it can be seen from outside."""

from msgspec import Struct

from mindgw.control.idp.source import Metadata, Source
from mindgw.errors import ProviderError
from mindgw.providers import Provider

#: How bad something is.
GOOD, HINT, BAD = "good", "hint", "bad"


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    #: good; hint: it may be as it should; bad.
    state: str
    about: str
    text: str


async def examine(source: Source) -> list[Finding]:
    """Asks the provider for its metadata and its keys, if they are not known."""
    said = source.said
    try:
        metadata = await source.metadata()
    except ProviderError as wrong:
        return [Finding(BAD, "metadata", wrong.message)]
    found = [Finding(GOOD, "metadata", f"{said.metadata} is of {metadata.issuer}"), await _keys(source), *_sign_in(metadata, said)]
    return [*found, *_bearer(said)]


async def _keys(source: Source) -> Finding:
    try:
        several = [key for algorithm in source.said.algorithms for key in await source.keys("", algorithm)]
    except ProviderError as wrong:
        return Finding(BAD, "keys", wrong.message)
    names = ", ".join(source.said.algorithms)
    return Finding(GOOD, "keys", f"{len(several)} for {names}") if several else Finding(BAD, "keys", f"none is for {names} (algorithms)")


def _sign_in(metadata: Metadata, said: Provider) -> list[Finding]:
    found = []
    if metadata.code_challenge_methods_supported and "S256" not in metadata.code_challenge_methods_supported:
        found.append(Finding(BAD, "sign-in", "the provider does not take PKCE with S256"))
    else:
        found.append(Finding(GOOD, "sign-in", f"a browser leads back to {said.loopback}: that address must be registered there"))
    device = bool(metadata.device_authorization_endpoint)
    found.append(
        Finding(GOOD if device else HINT, "device", "mindgw login --device" if device else "the provider has no sign-in for other devices")
    )
    wanted = set(said.scopes) - set(metadata.scopes_supported)
    if said.scopes and metadata.scopes_supported and wanted:
        found.append(Finding(HINT, "scopes", f"the provider does not list {', '.join(sorted(wanted))}"))
    known = metadata.id_token_signing_alg_values_supported
    if known and not set(known) & set(said.algorithms):
        found.append(Finding(BAD, "algorithms", f"the provider signs with {', '.join(known)}"))
    return found


def _bearer(said: Provider) -> list[Finding]:
    if not said.audiences:
        return [Finding(HINT, "tokens", "none are taken in place of API keys: audiences is empty")]
    found = [Finding(GOOD, "tokens", f"taken in place of API keys when they are meant for {', '.join(said.audiences)}")]
    if said.is_entra and said.client_id in said.audiences:
        text = 'the manifest of the application must say "requestedAccessTokenVersion": 2, else its tokens are of version 1, for api://…'
        found.append(Finding(HINT, "tokens", text))
    return found
