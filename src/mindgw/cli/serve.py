"""`mindgw serve`: the server process."""

from pathlib import Path
from typing import Annotated

import typer

from mindgw.cli.groups import verb
from mindgw.cli.invocation import invocation
from mindgw.client.errors import UsageProblem

app = verb()


@app.command()
def serve(
    ctx: typer.Context,
    *,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="What `init` made; else MINDGW_DATA_DIR, else XDG.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings from elsewhere than the data directory.")
    ] = None,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Address of the listener that others reach.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port of the loopback listener.")] = None,
    public_url: Annotated[
        str | None, typer.Option("--public-url", metavar="URL", help="https://host:port that others reach it by.")
    ] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", metavar="text|json")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", metavar="debug|info|warning|error")] = None,
) -> int:
    """Run the server until SIGTERM or Ctrl-C: mindgw serve --data-dir /var/lib/mindgw"""
    invocation(ctx)
    raise UsageProblem("not yet")
