"""`mindgw serve`: the server process."""

from pathlib import Path
from typing import Annotated

import typer

from mindgw.cli.groups import DataDir, verb
from mindgw.cli.invocation import invocation

app = verb()


@app.command()
def serve(
    ctx: typer.Context,
    *,
    data_dir: DataDir = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings that lie elsewhere.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port on the loopback address.")] = None,
    public_url: Annotated[str | None, typer.Option("--public-url", metavar="URL", help="https://host:port for everybody else.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="For --public-url; else all addresses.")] = None,
    tls: Annotated[
        str | None, typer.Option("--tls", metavar="off|CERT:KEY", help="off: a proxy in front does it; else two files; else our own.")
    ] = None,
    trusted_proxies: Annotated[
        str | None, typer.Option("--trusted-proxies", metavar="CIDR,...", help="Who is believed about who asks (X-Forwarded-For).")
    ] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", metavar="auto|text|json")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", metavar="debug|info|warning|error")] = None,
) -> int:
    """Run the server until SIGTERM or Ctrl-C; a second Ctrl-C does not wait: mindgw serve --data-dir /var/lib/mindgw"""
    from mindgw import config as settings
    from mindgw.server import run

    invocation(ctx)
    saved = settings.load(config, data_dir)
    secure = bool(public_url or saved.public_url)
    plain = None if port is None else f"{saved.listen.rpartition(':')[0]}:{port}"
    wanted = {
        "public_url": public_url,
        # without TLS there is one listener, so it is the one that is meant
        "listen": plain if secure else listen or plain,
        "tls_listen": listen if secure else None,
        "tls": tls,
        "trusted_proxies": trusted_proxies,
        "log.format": log_format,
        "log.level": log_level,
    }
    flags = {
        "public_url": "--public-url",
        "listen": "--port" if secure or listen is None else "--listen",
        "tls_listen": "--listen",
        "tls": "--tls",
        "trusted_proxies": "--trusted-proxies",
        "log.format": "--log-format",
        "log.level": "--log-level",
    }
    return run.serve(settings.load(config, data_dir, wanted, flags=flags))
