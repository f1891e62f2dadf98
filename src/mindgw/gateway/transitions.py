"""What each event does in each state of a request: the name of the step that `exchange.Exchange` takes.

A pair that is missing needs nothing done: a late frame, a tick too many.
"""

from mindgw.gateway import signals
from mindgw.gateway.signals import State

_S = State

TABLE: dict[State, dict[type, str]] = {
    _S.OPENED: {
        signals.Identified: "identified",
        signals.Received: "received",
        signals.Refused: "refused",
        signals.Gone: "gone",
        signals.Stopped: "stopped",
        signals.Bound: "bound",
    },
    _S.ATTACHED: {
        signals.Recalled: "recalled",
        signals.Copied: "copied",
        signals.Refused: "refused",
        signals.Gone: "gone",
        signals.Stopped: "stopped",
        signals.Bound: "bound",
    },
    _S.WAITING: {
        signals.Turn: "turn",
        signals.Drained: "drained",
        signals.Gone: "gone",
        signals.Stopped: "stopped",
        signals.Bound: "bound",
        signals.Tick: "tick",
    },
    _S.FUNDING: {
        signals.Funded: "funded",
        signals.Refused: "unfunded",
        signals.Drained: "drained",
        signals.Gone: "gone",
        signals.Stopped: "stopped",
        signals.Bound: "bound",
        signals.Tick: "tick",
    },
    _S.SENT: {
        signals.Answered: "answered",
        signals.Drained: "drained",
        signals.Data: "early",
        signals.Closed: "closed",
        signals.Lost: "lost",
        signals.Beside: "beside",
        signals.Gone: "gone",
        signals.Stopped: "stopped",
        signals.Bound: "bound",
        signals.Tick: "tick",
    },
    _S.RELAYING: {
        signals.Data: "data",
        signals.Drained: "drained",
        signals.Closed: "closed",
        signals.Lost: "lost",
        signals.Beside: "beside",
        signals.Gone: "gone",
        signals.Stopped: "stopped",
        signals.Bound: "bound",
        signals.Tick: "tick",
    },
    _S.CLOSING: {
        signals.Answered: "late",
        signals.Closed: "confirmed",
        signals.Lost: "dropped",
        signals.Tick: "overdue",
    },
    _S.DONE: {},
}
