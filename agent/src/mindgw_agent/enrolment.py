"""What an agent and a server say to each other once, over HTTP, before there is any link. PURE; both ends import it.

    agent                                               server
      Question(token_id, nonce)            ->
                                           <-  Answer(nonce, signature)      signed by the identity that the token names
      Application(…, proof, signature)     ->                                signed by the token's key and by the agent's own
                                           <-  Admission(agent_id, …)        signed by the server's identity

The token's secret is the seed of a one-use key: it never crosses the wire, and a proof made with it holds for one agent key, one
server and one pair of nonces. Signatures name the Host header under which the server was reached: an answer that was fetched from
elsewhere does not fit. What an agent sends may hold no unknown field; what a server sends may, so that it can say more later.
"""

from typing import Annotated

import msgspec

from mindgw_agent.vocabulary import PRINTABLE
from mindgw_agent.wire import transcript

CHALLENGE_PATH = "/agent/v1/join/challenge"
JOIN_PATH = "/agent/v1/join"
LEAVE_PATH = "/agent/v1/leave"
CA_PATH = "/.well-known/mindgw/ca.pem"

#: What a worker may be called: it stands in URLs, labels and file names.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
#: Largest body of either end, in bytes.
MAX_BODY = 16 * 1024

TokenId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
AgentId = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Fact = Annotated[str, msgspec.Meta(max_length=255, pattern=PRINTABLE)]


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who are you? Holds nothing secret."""

    token_id: TokenId
    nonce: Nonce


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The server's nonce is good for a minute."""

    nonce: Nonce
    server_version: str = ""
    signature: Signature


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts about the machine, for people."""

    hostname: Fact = ""
    os: Fact = ""
    software: Fact = ""


class Application(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let me in. Sent again with the same public key it gives the same agent again, so a lost reply costs no token."""

    token_id: TokenId
    agent_nonce: Nonce
    server_nonce: Nonce
    public_key: PublicKey
    #: None leaves the choice to the server: the token's name, or the hostname.
    name: Name | None = None
    #: Take the place of the worker that has this name.
    replace: bool = False
    host: Host = Host()
    #: The token key's signature over `transcript_application`.
    proof: Signature
    #: The agent key's signature over the same: it has the private half.
    signature: Signature


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """Who you are from now on."""

    agent_id: AgentId
    name: Name
    #: active, or pending while an operator has yet to agree.
    state: str
    signature: Signature


class Farewell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Forget me. Said twice it does no more than once, so it needs no challenge."""

    agent_id: AgentId
    nonce: Nonce
    signature: Signature


class Fault(msgspec.Struct, frozen=True):
    """The inner part of an error body."""

    message: str = ""
    code: str = ""
    hint: str = ""


class Problem(msgspec.Struct, frozen=True):
    """An error body."""

    error: Fault


def transcript_answer(question: Question, server_nonce: bytes, host: str) -> bytes:
    """Signed by the server's identity; `host` is the Host header of the question."""
    return transcript("mindgw-join-answer-v1", question.nonce, server_nonce, host, question.token_id)


def transcript_application(application: Application, server_identity: bytes, host: str) -> bytes:
    """Signed twice, see Application; its two signatures are left out."""
    said = application
    return transcript(
        "mindgw-join-v1", said.agent_nonce, said.server_nonce, server_identity, host,
        said.token_id, said.public_key, said.name or "", int(said.replace),
    )  # fmt: skip


def transcript_admission(application: Application, agent_id: str, name: str, state: str) -> bytes:
    """Signed by the server's identity."""
    said = application
    return transcript("mindgw-joined-v1", said.agent_nonce, said.server_nonce, said.public_key, agent_id, name, state)


def transcript_farewell(agent_id: str, nonce: bytes, server_identity: bytes) -> bytes:
    """Signed by the agent's key."""
    return transcript("mindgw-leave-v1", agent_id, nonce, server_identity)
