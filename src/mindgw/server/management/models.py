"""/api/v1/models"""

from litestar import get

from mindgw.control import fleet
from mindgw.control.fleet import ModelStatus
from mindgw.control.pages import Page
from mindgw.server.management.guard import Office, needs


@get("/models", opt=needs("read", "models", home=True))
async def list_models(state: Office) -> Page[ModelStatus]:
    """What can be asked for now, by name."""
    return Page(fleet.models(state.pipeline.served()))


HANDLERS = (list_models,)
