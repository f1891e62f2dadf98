"""The parameters that every list takes."""

from typing import Annotated

from litestar.params import QueryParameter

#: Where the page begins: `next` of the page before.
Cursor = Annotated[str | None, QueryParameter(name="cursor", max_length=64, description="The `next` of the page before.")]
#: Items that a page holds at most.
Limit = Annotated[int, QueryParameter(name="limit", ge=1, le=1000, description="Items that a page holds at most.")]
