"""What is signed, byte for byte. PURE.

Every field stands behind its length, so no two different lists of fields give the same bytes; the label in front says what for, so that
a signature made for one purpose is worthless for another.
"""

import struct

from mindgw_agent.vocabulary import VERSIONS

_size = struct.Struct("!I").pack


def transcript(label: str, *fields: bytes | str | int) -> bytes:
    """Bytes to sign, or to hash."""
    parts = [field if isinstance(field, bytes) else str(field).encode() for field in (label, *fields)]
    return b"".join([piece for part in parts for piece in (_size(len(part)), part)])


def transcript_challenge(agent_nonce: bytes, nonce: bytes, agent_id: str, epoch: int, version: int = VERSIONS[0]) -> bytes:
    """Signed by the server's identity key: this server, now, for this agent, under this epoch."""
    return transcript("mindgw-challenge-v1", agent_nonce, nonce, agent_id, epoch, version)


def transcript_proof(nonce: bytes, agent_id: str, epoch: int, last_epoch: int, server_identity: bytes, host: str) -> bytes:
    """Signed by the agent's key: this agent, now, to this server, reached as `host`."""
    return transcript("mindgw-proof-v1", nonce, agent_id, epoch, last_epoch, server_identity, host)


def transcript_receipts(agent_id: str, last: int, head: bytes) -> bytes:
    """Signed by the agent's key: the chain of this agent's receipts up to number `last`, whose hash is `head`."""
    return transcript("mindgw-receipts-v1", agent_id, last, head)
