"""`mindgw ca`: the authority that a server's certificate comes from."""

import typer

from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.client.errors import Missing

app = noun("The certificate authority of a server.")


@app.command("export")
def export(ctx: typer.Context) -> None:
    """Print the CA certificate, for clients that are to trust it: mindgw ca export > mindgw-ca.pem"""
    from mindgw.cli.target import authority

    run = invocation(ctx)
    pem = authority(run.options, run.environment, run.render)
    if "-----BEGIN CERTIFICATE-----" not in pem:
        raise Missing(
            "this server has no certificate authority", hint="it listens on plain HTTP only; `mindgw init --public-url` makes TLS"
        )
    run.render.raw(pem if pem.endswith("\n") else pem + "\n")
    run.render.note("SSL_CERT_FILE=mindgw-ca.pem   # saved under that name, in the environment of OpenAI clients, curl and Python")
