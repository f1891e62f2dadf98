"""What a session tells its shell."""

import msgspec

from mindgw_agent.wire import Command, Goodbye, Meta, Received, Welcome


class Proving(msgspec.Struct, frozen=True):
    """The server proved who it is. Keep the epoch on disk before `prove` is called."""

    epoch: int


class Ready(msgspec.Struct, frozen=True):
    """The server let this agent in."""

    welcome: Welcome


class Request(msgspec.Struct, frozen=True):
    """A request has arrived whole; the shell ends it with a call of `close`."""

    stream: int
    meta: Meta
    body: bytes


class Cancel(msgspec.Struct, frozen=True):
    """Nobody waits for this answer: stop the engine and call `close` once its slot is known to be free."""

    stream: int


class Writable(msgspec.Struct, frozen=True):
    """The engine of this stream may be read again."""

    stream: int


class DrainAsked(msgspec.Struct, frozen=True):
    """Nothing new will come from this server: finish what runs, then leave."""


Event = Proving | Ready | Request | Cancel | Writable | DrainAsked | Received | Command | Goodbye
