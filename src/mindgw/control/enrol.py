"""How a GPU box becomes a worker, and how it leaves by itself: the server's side of `mindgw_agent.enrolment`."""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable
from datetime import datetime

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import __version__
from mindgw.errors import Forbidden, PolicyError, Unauthenticated
from mindgw.store import audit, fleet
from mindgw.store.database import Database
from mindgw.store.tables import JoinToken, Worker
from mindgw_agent import enrolment, identity
from mindgw_agent.enrolment import Admission, Answer, Application, Farewell, Question

log = logging.getLogger("mindgw.enrol")

#: Seconds for which a nonce of ours is good.
NONCE_LIFE = 60
#: Seconds by which the clocks of two replicas may differ.
_SKEW = 5
_STAMP = 8
_SALT = 8


class Registrar:
    """Lets agents in and out. Keeps nothing between calls: what it must recognise, it has signed or sealed."""

    def __init__(self, database: Database, identity_key: bytes, removed: Callable[[str], None]) -> None:
        self._database = database
        #: The server's private Ed25519 key, and its public half.
        self._identity = identity_key
        self._public = identity.public_half(identity_key)
        #: Seals nonces; made from the identity, so that every replica reads them.
        self._sealing = hmac.digest(identity_key, b"mindgw-join-nonce-v1", "sha256")
        #: Told the id of each worker that is out from now on.
        self._removed = removed

    def challenge(self, question: Question, host: str, now: float) -> Answer:
        """Prove who we are; `now` is in seconds since the epoch. Looks nothing up: anybody may ask."""
        nonce = self._seal(question.nonce, question.token_id, int(now), secrets.token_bytes(_SALT))
        signature = identity.sign(self._identity, enrolment.transcript_answer(question, nonce, host))
        return Answer(nonce=nonce, server_version=__version__, signature=signature)

    async def join(self, application: Application, host: str, now: datetime) -> Admission:
        """Take a worker in, against one use of its token, in one transaction. The same key is the same worker again.

        Raises Unauthenticated (join_challenge_expired, join_token_unknown), Forbidden (join_token_revoked, join_token_expired,
        join_token_used, join_name_bound) or Conflict (name_taken); the token then stays as it was.
        """
        said = application
        self._check_nonce(said, now.timestamp())
        try:
            async with self._database.write() as session:
                token = await self._identify(session, said, host)
                worker = await _worker_of(session, said.public_key)
                replaced: str | None = None
                if worker is None:
                    await fleet.use_join_token(session, token.id, now)
                    worker, replaced = await _take_in(session, said, token)
        except PolicyError as error:
            log.warning("a join with token %s was refused: %s", said.token_id, error.code)
            raise
        if replaced is not None:
            self._removed(replaced)
        message = enrolment.transcript_admission(said, worker.id, worker.name, worker.state_admin)
        signature = identity.sign(self._identity, message)
        return Admission(agent_id=worker.id, name=worker.name, state=worker.state_admin, signature=signature)

    async def leave(self, farewell: Farewell) -> None:
        """Put a worker out at its own wish; a second time changes nothing. Raises Unauthenticated (agent_unknown)."""
        said = enrolment.transcript_farewell(farewell.agent_id, farewell.nonce, self._public)
        async with self._database.write() as session:
            worker = await fleet.worker(session, farewell.agent_id)
            if worker is None or not identity.verify(worker.public_key, farewell.signature, said):
                raise Unauthenticated("This server knows no such agent.", code="agent_unknown")
            if worker.state_admin != "removed":
                await fleet.set_state(session, worker.id, "removed", reason="left by itself")
                await audit.record(session, f"agent:{worker.id}", "worker.remove", worker.id, name=worker.name, reason="left by itself")
        self._removed(farewell.agent_id)

    def _seal(self, agent_nonce: bytes, token_id: str, stamp: int, salt: bytes) -> bytes:
        """32 bytes that only we can have made, for this question at this second."""
        head = stamp.to_bytes(_STAMP, "big") + salt
        return head + hmac.digest(self._sealing, head + agent_nonce + token_id.encode(), hashlib.sha256)[:16]

    def _check_nonce(self, said: Application, now: float) -> None:
        nonce = said.server_nonce
        stamp = int.from_bytes(nonce[:_STAMP], "big")
        ours = hmac.compare_digest(nonce, self._seal(said.agent_nonce, said.token_id, stamp, nonce[_STAMP : _STAMP + _SALT]))
        if not ours or not -_SKEW <= int(now) - stamp <= NONCE_LIFE:
            raise Unauthenticated("The challenge of this join is too old or not ours.", code="join_challenge_expired")

    async def _identify(self, session: AsyncSession, said: Application, host: str) -> JoinToken:
        """The token whose secret the agent holds; whoever does not hold it learns nothing about the token."""
        token = await session.get(JoinToken, said.token_id)
        message = enrolment.transcript_application(said, self._public, host)
        held = token is not None and identity.verify(token.public_key, said.proof, message)
        if token is None or not held or not identity.verify(said.public_key, said.signature, message):
            raise Unauthenticated("This server knows no such join token.", code="join_token_unknown")
        return token


async def _worker_of(session: AsyncSession, public_key: bytes) -> Worker | None:
    """The worker that already joined with this key."""
    query = select(Worker).where(Worker.public_key == public_key, Worker.state_admin != "removed")
    return (await session.exec(query)).first()


async def _take_in(session: AsyncSession, said: Application, token: JoinToken) -> tuple[Worker, str | None]:
    """The new worker, and the id of the one whose place it took."""
    name = await _choose_name(session, said, token)
    occupant = (await session.exec(select(Worker).where(Worker.name == name, Worker.state_admin != "removed"))).first()
    worker = await fleet.add_worker(
        session,
        name,
        said.public_key,
        state="active" if token.approve == "auto" else "pending",
        replace=said.replace,
        hostname=said.host.hostname,
        software=said.host.software,
    )
    actor = f"agent:{worker.id}"
    if occupant is not None:
        await audit.record(session, actor, "worker.remove", occupant.id, name=name, reason=occupant.reason)
    facts = {"name": name, "token": token.id, "state": worker.state_admin, "hostname": said.host.hostname, "os": said.host.os}
    await audit.record(session, actor, "worker.join", worker.id, **facts)
    return worker, occupant.id if occupant is not None else None


async def _choose_name(session: AsyncSession, said: Application, token: JoinToken) -> str:
    """The name that was asked for, the one that the token is bound to, or a free one like the hostname."""
    if token.name_bind and said.name not in (None, token.name_bind):
        raise Forbidden(f"This join token is good for the name {token.name_bind} only.", code="join_name_bound")
    wanted = said.name or token.name_bind
    if wanted:
        return wanted
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", said.host.hostname.partition(".")[0]).strip("._-")[:56] or "agent"
    if said.replace:
        return base
    query = select(Worker.name).where(col(Worker.name).startswith(base, autoescape=True), Worker.state_admin != "removed")
    taken = set((await session.exec(query)).all())
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name
