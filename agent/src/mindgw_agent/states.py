"""When what may happen on a link: two tables, one for the link and one for each stream on it.

What a table does not name is a fault: of the server (ProtocolError) or of the shell (OutOfOrder), by whoever did it. What the
steps mean is `session`'s business.
"""

from enum import IntEnum, StrEnum

from mindgw_agent import wire


class State(StrEnum):
    """Where the link stands."""

    NEW = "new"
    GREETING = "greeting"
    PROVING = "proving"
    PROVED = "proved"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


class Input(IntEnum):
    """What can happen to a link: frames of the server under their kind, then calls of the shell."""

    CHALLENGE = wire.CHALLENGE
    WELCOME = wire.WELCOME
    GOODBYE = wire.GOODBYE
    DRAIN = wire.DRAIN
    PING = wire.PING
    PONG = wire.PONG
    RECEIVED = wire.RECEIVED
    COMMAND = wire.COMMAND
    OPEN = wire.OPEN
    DATA = wire.DATA
    CREDIT = wire.CREDIT
    CANCEL = wire.CANCEL
    START = 256
    PROVE = 257
    TELL = 258
    LEAVE = 259
    ACCOUNT = 260
    ANSWER = 261


_CARRYING = (
    *(Input.PING, Input.PONG, Input.RECEIVED, Input.COMMAND, Input.DRAIN, Input.OPEN, Input.DATA, Input.CREDIT, Input.CANCEL),
    *(Input.TELL, Input.ACCOUNT, Input.ANSWER),
)

#: state -> input -> state. A link that is DRAINING answers OPEN with a refusal; one that is CLOSED hears nothing any more, and
#: whoever leaves before the link is up has nothing to finish.
TRANSITIONS: dict[State, dict[int, State]] = {
    State.NEW: {
        Input.START: State.GREETING,
        Input.TELL: State.NEW,
        Input.LEAVE: State.CLOSED,
    },
    State.GREETING: {
        Input.CHALLENGE: State.PROVING,
        Input.TELL: State.GREETING,
        Input.LEAVE: State.CLOSED,
        Input.GOODBYE: State.CLOSED,
    },
    State.PROVING: {
        Input.PROVE: State.PROVED,
        Input.PING: State.PROVING,
        Input.TELL: State.PROVING,
        Input.LEAVE: State.CLOSED,
        Input.GOODBYE: State.CLOSED,
    },
    State.PROVED: {
        Input.WELCOME: State.READY,
        Input.PING: State.PROVED,
        Input.TELL: State.PROVED,
        Input.LEAVE: State.CLOSED,
        Input.GOODBYE: State.CLOSED,
    },
    State.READY: {
        **dict.fromkeys(_CARRYING, State.READY),
        Input.LEAVE: State.DRAINING,
        Input.GOODBYE: State.CLOSED,
    },
    State.DRAINING: {
        **dict.fromkeys(_CARRYING, State.DRAINING),
        Input.LEAVE: State.DRAINING,
        Input.GOODBYE: State.CLOSED,
    },
    State.CLOSED: dict.fromkeys((Input.PROVE, Input.TELL, Input.ACCOUNT, Input.ANSWER, Input.LEAVE), State.CLOSED),
}


class Phase(StrEnum):
    """Where a stream stands."""

    RECEIVING = "receiving"
    RUNNING = "running"
    ANSWERING = "answering"
    CANCELLED = "cancelled"
    OVER = "over"


class Step(StrEnum):
    """What can happen to a stream: the server's doing, then the shell's."""

    BODY = "body"
    COMPLETE = "complete"
    CANCEL = "cancel"
    HEAD = "head"
    ANSWER = "answer"
    CLOSE = "close"


#: phase -> step -> phase. A stream that is OVER is forgotten, and steps on it do nothing.
STREAM_TRANSITIONS: dict[Phase, dict[Step, Phase]] = {
    Phase.RECEIVING: {Step.BODY: Phase.RECEIVING, Step.COMPLETE: Phase.RUNNING, Step.CANCEL: Phase.OVER},
    Phase.RUNNING: {Step.HEAD: Phase.ANSWERING, Step.CANCEL: Phase.CANCELLED, Step.CLOSE: Phase.OVER},
    Phase.ANSWERING: {Step.ANSWER: Phase.ANSWERING, Step.CANCEL: Phase.CANCELLED, Step.CLOSE: Phase.OVER},
    Phase.CANCELLED: {
        Step.CANCEL: Phase.CANCELLED, Step.HEAD: Phase.CANCELLED, Step.ANSWER: Phase.CANCELLED, Step.CLOSE: Phase.OVER,
    },
}  # fmt: skip
