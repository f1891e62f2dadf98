"""The live half of the server, as far as management needs it; the gateway's pipeline is one."""

from typing import Protocol

from mindgw.gateway.snapshot import Snapshot


class Live(Protocol):
    def snapshot(self) -> Snapshot:
        """What is connected and under way now."""

    def revoke_key(self, key_id: str) -> None:
        """A key is dead on the disk: refuse it from now on and end what it has running."""

    def remove_worker(self, worker_id: str) -> None:
        """A worker is out on the disk: close its tunnel."""
