"""What an exchange is handed at its birth: the rooms that a request passes, and the settings it is held to."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from mindgw.config import Limits, Timeouts
from mindgw.gateway.accounts import Accounts
from mindgw.gateway.auth import Auth
from mindgw.gateway.dead_letters import DeadLetters
from mindgw.gateway.failover import Failover
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.queue import Queue
from mindgw.gateway.replay import Replay
from mindgw.gateway.routes import Routes
from mindgw.gateway.signals import Event
from mindgw.gateway.story import Stories
from mindgw.gateway.watch import Watch


class Stages(Struct, frozen=True):
    """The rooms that a request passes, and the settings it is held to."""

    auth: Auth
    fleet: Fleet
    queue: Queue
    routes: Routes
    accounts: Accounts
    limits: Limits
    timeouts: Timeouts
    watch: Watch
    failover: Failover
    #: The stamp of a row, seconds of the wall clock; and its UTC date, YYYY-MM-DD.
    wall: Callable[[], float]
    day: Callable[[], str]
    #: Brings an event to its exchange and carries out what follows.
    post: Callable[[Any, Event], None]
    #: Where requests that failed for good leave a letter; None: they leave none.
    dead: DeadLetters | None = None
    #: Where requests with an Idempotency-Key are known; None: the header is not looked at.
    replay: Replay | None = None
    #: Where it is kept what became of requests; None: nowhere.
    stories: Stories | None = None
