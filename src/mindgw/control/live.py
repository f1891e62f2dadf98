"""The live half of the server, as far as management needs it; the gateway's pipeline is one."""

from collections.abc import Sequence
from typing import Protocol

from mindgw.core.routing import EVERYWHERE, Where
from mindgw.gateway.admission import Caller
from mindgw.gateway.errands import Errands
from mindgw.gateway.lineup import Entry, Stats, Wanted
from mindgw.gateway.routes import Way
from mindgw.gateway.snapshot import BudgetView, ModelView, Snapshot
from mindgw.store.stories import Story


class Live(Protocol):
    @property
    def errands(self) -> Errands:
        """What operators ask of the workers."""

    def snapshot(self) -> Snapshot:
        """What is connected and under way now."""

    def served(self, where: Where = EVERYWHERE) -> list[ModelView]:
        """The models that are served now in a place, by name."""

    def forget_key(self, key_id: str) -> None:
        """A key is another one on the disk: hold its next request to that."""

    def revoke_key(self, key_id: str) -> None:
        """A key is dead on the disk: refuse it from now on and end what it has running."""

    def cut_user(self, user_id: str) -> None:
        """A user is shut out on the disk: refuse their keys from now on and end what those have running."""

    def cut_org(self, org_id: str) -> None:
        """An organisation is shut out on the disk: the same with all keys of it."""

    def remove_worker(self, worker_id: str) -> None:
        """A worker is out on the disk: close its tunnel."""

    def lineup(self) -> list[Entry]:
        """Who waits, in the order of their turns, then who runs; a thousand of either."""

    async def ranking(self, wanted: Wanted) -> list[str]:
        """Ids of all who are wanted: who waits in the order of their turns, then who runs."""

    async def places_of(self, request_ids: Sequence[str]) -> list[Entry]:
        """Those of them that wait or run, in the same order."""

    def place_of(self, request_id: str) -> Entry | None:
        """A request that waits or runs; None when there is none of this id."""

    def explain(self, caller: Caller, model: str, kind: str) -> Way:
        """What would become of a request of that caller now; nothing is sent."""

    def offers_of(self, model: str) -> dict[str, frozenset[str]]:
        """Id of each model that goes by a name -> all names of that one; empty when nobody knows it now."""

    def legs_of(self, model: str) -> list[str]:
        """The models that requests for a name go to by its route, the next when there is no worker for what comes before; empty when it
        has no route, or one that leads nowhere."""

    def org_of(self, request_id: str) -> str:
        """Id of the organisation whose request waits or runs; "" when there is none of this id."""

    def story(self, request_id: str) -> Story | None:
        """What became so far of a request that is under way, or all of it of one that was over a moment ago; None for all others."""

    def queue_stats(self) -> Stats:
        """The queue in numbers."""

    def budgets(self) -> list[BudgetView]:
        """The budgets that requests fell under of late."""

    def cancel_request(self, request_id: str) -> bool:
        """Ends a request; False when there is none of this id, or its client has been served already."""

    def is_under_way(self, request_id: str) -> bool:
        """Whether `cancel_request` would end something."""

    def waits(self, request_id: str) -> bool:
        """Whether `bump_request` would do something."""

    def bump_request(self, request_id: str) -> bool:
        """Puts a request that waits before all others; False when none of this id waits."""

    def pause_queue(self, model: str = "") -> None:
        """Nobody is given a slot, for one model or at all."""

    def resume_queue(self, model: str = "") -> None:
        """Ends one pause, or all of them."""

    async def rerun(self, key_id: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
        """Runs a request that is no stream on behalf of a key; the body of its answer. Raises what its client would have heard. Cancel it,
        and the request ends."""
