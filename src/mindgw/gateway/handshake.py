"""Who is calling? The server's half of the first four words of a link: HELLO, CHALLENGE, PROOF, WELCOME.

No socket and no database in here: the door feeds messages, looks the worker up between the two calls, and writes the epoch down
before it sends the WELCOME. The server proves itself first (its identity signs the challenge), so an agent says nothing about
itself but its id to a stranger. What is signed stands in `wire.transcript_*`; docs/design/join.md tells why.
"""

from collections.abc import Callable
from typing import NoReturn

from mindgw_agent import wire
from mindgw_agent.wire import Challenge, Frame, Goodbye, Hello, Proof, ProtocolError, Signed, Welcome


class Rejected(Exception):
    """The agent may not come in; `goodbye` tells it why, in the form it understands."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        #: Cut, because it may quote what the agent sent.
        self.goodbye = Goodbye(code, message[:500])


class Handshake:
    """One agent's greeting. Call `challenge`, then `admit`, then `welcome`."""

    def __init__(
        self, identity: bytes, sign: Callable[[bytes], bytes], verify: Callable[[bytes, bytes, bytes], bool], nonce: bytes
    ) -> None:
        #: The server's public identity key, and the functions that use keys: sign(message), verify(key, signature, message).
        self._identity = identity
        self._sign = sign
        self._verify = verify
        self._nonce = nonce
        self._decoder = wire.Decoder(frozenset({wire.HELLO, wire.PROOF}))
        self._hello: Hello | None = None
        #: Of the tunnel, once `hello` was called.
        self.version = wire.VERSION
        #: The session's number, once `challenge` was called.
        self.epoch = 0
        #: What its first report says that cannot be, once `admit` was called; empty: nothing.
        self.charge = ""

    def hello(self, message: bytes) -> Hello:
        """Reads the agent's first message; raises ProtocolError, or Rejected when no version is common."""
        self._hello = wire.parse(Hello, self._one(message, wire.HELLO).payload)
        try:
            self.version = wire.negotiate(self._hello.versions)
        except ProtocolError as wrong:
            self._reject("version", f"{wrong}; upgrade the older side.")
        return self._hello

    def challenge(self, stored_epoch: int) -> bytes:
        """The answer to HELLO. The new session is newer than any that either side remembers."""
        hello = self._greeted()
        self.epoch = max(stored_epoch, hello.last_epoch) + 1
        signed = wire.transcript_challenge(hello.nonce, self._nonce, hello.agent_id, self.epoch, self.version)
        challenge = Challenge(nonce=self._nonce, epoch=self.epoch, version=self.version, signature=self._sign(signed))
        return wire.encode(wire.frame(challenge))

    def admit(self, message: bytes, public_key: bytes, stored_epoch: int, host: str) -> wire.Report:
        """Checks the PROOF against the worker's key; raises Rejected. `host` is what the agent dialled, as it told the HTTP server. A
        report that cannot be is an empty one, and a charge.

        An agent that remembers less than the server is a copy, or was restored from one: code "locked".
        """
        hello = self._greeted()
        payload = self._one(message, wire.PROOF).payload
        signature = wire.parse(Signed, payload).signature
        signed = wire.transcript_proof(self._nonce, hello.agent_id, self.epoch, hello.last_epoch, self._identity, host)
        if not self._verify(public_key, signature, signed):
            self._reject("refused", "The agent's signature is wrong.")
        if hello.last_epoch < stored_epoch:
            self._reject("locked", "This identity was used from somewhere else since. Remove the worker and join again.")
        try:
            return wire.parse(Proof, payload).report
        except ProtocolError as wrong:
            self.charge = f"it reports what cannot be: {wrong}"[:500]
            return wire.Report()

    def welcome(self, name: str, state: str, server_version: str, ping_interval: float) -> bytes:
        """The last word of the greeting."""
        return wire.encode(wire.frame(Welcome(ping_interval=ping_interval, name=name, state=state, server_version=server_version)))

    def _one(self, message: bytes, kind: int) -> Frame:
        frames = self._decoder.feed(message)
        if len(frames) != 1 or frames[0].kind != kind:
            raise ProtocolError("this is not how a greeting goes")
        return frames[0]

    def _greeted(self) -> Hello:
        if self._hello is None:
            raise ProtocolError("nobody said hello")
        return self._hello

    def _reject(self, code: str, message: str) -> NoReturn:
        raise Rejected(code, message)


def goodbye(reason: Goodbye) -> bytes:
    """The message that ends a greeting."""
    return wire.encode(wire.frame(reason))
