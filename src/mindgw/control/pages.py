"""Lists as management hands them out: a page, and where the next one begins."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from msgspec import Struct


class Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T")
V = TypeVar("V", bound=Named)


class Page(Struct, Generic[T], frozen=True):
    items: list[T]
    #: `cursor` of the next page; None: this was the last one.
    next: str | None = None


def page_of(items: Sequence[V], limit: int) -> Page[V]:
    """A full page may have a successor, and that one may be empty."""
    return Page(list(items), items[-1].id if items and len(items) >= limit else None)
