"""What changed between two pictures of things that have ids, as little as has to be said of it.

A picture maps ids to items, an item maps fields to values that JSON has. Of an item that stays, only fields that have another value are
said; whoever knows the earlier picture takes out what is removed, then lays what is set over what is left, and has the later one.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

Item = Mapping[str, Any]
Picture = Mapping[str, Item]


class Changes(Struct, frozen=True):
    """From one picture to a later one. Removals come first: an item in both is another one under the same id."""

    #: Items that are new, whole, and those that changed, as far as they did; each with its `id`.
    set: list[dict[str, Any]] = []
    #: Ids of items that are gone.
    removed: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.set or self.removed)


def changes(before: Picture, after: Picture) -> Changes:
    """What makes `after` of `before`."""
    different, removed = [], [id for id in before if id not in after]
    for id, item in after.items():
        earlier = before.get(id)
        if earlier is None:
            different.append({**item, "id": id})
        elif earlier.keys() - item.keys():  # a field that is gone cannot be said otherwise
            removed.append(id)
            different.append({**item, "id": id})
        elif said := fields(earlier, item):
            different.append({**said, "id": id})
    return Changes(different, removed)


def fields(before: Item, after: Item) -> dict[str, Any]:
    """The fields of `after` that `before` has not, or not with this value."""
    return {name: value for name, value in after.items() if name not in before or before[name] != value}
