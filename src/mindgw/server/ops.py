"""Doors for those who operate the server: is it alive, is it ready, what does it count."""

from litestar import Request, Response, get, route
from litestar.datastructures import State
from litestar.enums import HttpMethod

from mindgw import __version__
from mindgw.server.collector import CONTENT_TYPE
from mindgw.server.management.guard import needs, require


@route("/", http_method=[HttpMethod.GET, HttpMethod.HEAD], include_in_schema=False)
async def root(request: Request[object, object, State]) -> Response[bytes]:
    """Says what answers here: clients probe it, and a discovering agent must never take it for an engine."""
    body = b"" if request.method == "HEAD" else f"MindGateway {__version__}: an OpenAI-compatible endpoint under /v1\n".encode()
    return Response(body, media_type="text/plain")


@get("/healthz", include_in_schema=False)
async def healthz() -> Response[bytes]:
    """200 as long as the process answers."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@get("/readyz", include_in_schema=False)
async def readyz(state: State) -> Response[bytes]:
    """200 when the database answers and is at this release's schema, and the server takes requests; workers do not matter."""
    if not state.pipeline.draining and await state.database.at_head():
        return Response(b'{"status":"ready"}', media_type="application/json")
    return Response(b'{"status":"not ready"}', media_type="application/json", status_code=503)


@get("/metrics", include_in_schema=False, guards=[require], opt=needs("read", "metrics", home=True))
async def scrape(state: State) -> Response[bytes]:
    """Prometheus' text, for keys that may read it; `metrics.listen` serves it without one."""
    return Response(state.collector.render(), headers={"content-type": CONTENT_TYPE})
