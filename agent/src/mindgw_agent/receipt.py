"""What an attempt cost, as the agent that carried it writes it down, and the chain that holds its receipts together. PURE.

Each receipt is hashed together with the hash of the one before, so none can be changed or left out unseen; the agent's key signs the
newest hash of a batch. A chain begins at number 0 with a hash that names the agent. When receipts were lost on the agent's disk it begins
anew, at a number beyond all that were used, and its first hash names the reason: a gap, for people to look at.
"""

import hashlib
from typing import Annotated, Final, Literal

import msgspec

from mindgw_agent.transcripts import transcript
from mindgw_agent.vocabulary import PRINTABLE, Count, Signature, Source, Tag

#: Receipts of one batch at most; one with long tags ends earlier, it must fit in a frame.
MAX_BATCH: Final = 200

Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
#: How an attempt that reached an engine ended; one that was only busy or refused gets no receipt.
Ended = Literal["done", "cancelled", "failed"]


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `tag` came with the request and is the server's own; `events` and `bytes` are what was written to the tunnel."""

    #: Numbers grow by one; 0 before the outbox has given one.
    seq: Count = 0
    tag: Tag
    outcome: Ended
    prompt: Count = 0
    completion: Count = 0
    cached: Count = 0
    source: Source = "counted"
    events: Count = 0
    bytes: Count = 0
    #: Unix milliseconds by the agent's clock.
    at: Count = 0


class Receipts(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an agent's chain, for the server to keep."""

    receipts: Annotated[list[Receipt], msgspec.Meta(max_length=MAX_BATCH)] = []
    #: Number and hash of what stands in front of the first one.
    after: Count
    prev: Hash
    #: Hash of the last one; `prev` when there is none.
    head: Hash
    #: The agent's key signs transcript_receipts(agent, last, head).
    signature: Signature = b""
    #: Why a new chain begins in front of the first one; "" when it is the old one that goes on.
    gap: Annotated[str, msgspec.Meta(max_length=200, pattern=PRINTABLE)] = ""
    #: All receipts from before this link were acknowledged, and no request from before it is still running.
    clear: bool = False

    @property
    def last(self) -> int:
        """Number of the last receipt, or of what stands in front when there is none."""
        return self.receipts[-1].seq if self.receipts else self.after


class Received(msgspec.Struct, frozen=True):
    """The server has kept all receipts up to this one: the agent may forget them."""

    seq: Count


def genesis(agent_id: str) -> bytes:
    """The hash in front of an agent's first receipt; its number is 0."""
    return hashlib.sha256(transcript("mindgw-receipts-begin-v1", agent_id)).digest()


def anew(agent_id: str, after: int, gap: str) -> bytes:
    """The hash in front of the first receipt of a chain that begins anew behind number `after`."""
    return hashlib.sha256(transcript("mindgw-receipts-gap-v1", agent_id, after, gap)).digest()


def chained(prev: bytes, receipt: Receipt) -> bytes:
    """The hash of a receipt that follows the one whose hash is `prev`."""
    r = receipt
    return hashlib.sha256(
        transcript("mindgw-receipt-v1", prev, r.seq, r.tag, r.outcome, r.prompt, r.completion, r.cached, r.source, r.events, r.bytes, r.at)
    ).digest()
