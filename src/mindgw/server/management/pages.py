"""The parameters that every list takes."""

from typing import Annotated

from litestar.params import Parameter

#: Where the page begins: `next` of the page before.
Cursor = Annotated[str | None, Parameter(query="cursor", max_length=64, description="The `next` of the page before.")]
#: Items that a page holds at most.
Limit = Annotated[int, Parameter(query="limit", ge=1, le=1000, description="Items that a page holds at most.")]
