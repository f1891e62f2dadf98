"""/api/v1/status and /api/v1/version"""

from litestar import get
from msgspec import Struct

from mindgw import __version__
from mindgw.control import status
from mindgw.control.status import Status
from mindgw.server.management.guard import Office, needs


class Version(Struct, frozen=True):
    version: str


@get("/status", opt=needs("read", "status", home=True))
async def show_status(state: Office) -> Status:
    """The server at one look."""
    return await status.status(state.database, state.pipeline.snapshot(), len(state.pipeline.served()))


@get("/version", opt=needs("read", "me"))
async def show_version() -> Version:
    """The release that answers."""
    return Version(__version__)


HANDLERS = (show_status, show_version)
