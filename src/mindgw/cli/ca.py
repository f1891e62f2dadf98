"""`mindgw ca`: the authority that a server's certificate comes from."""

import typer

from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column
from mindgw.client.errors import ClientError, Missing

app = noun("The certificate authority of a server.")


@app.command("export")
def export(ctx: typer.Context) -> None:
    """Print the CA certificate, for clients that are to trust it: mindgw ca export > mindgw-ca.pem"""
    run = invocation(ctx)
    pem = _authority(run)
    run.render.raw(pem if pem.endswith("\n") else pem + "\n")
    run.render.note("SSL_CERT_FILE=mindgw-ca.pem   # saved under that name, in the environment of OpenAI clients, curl and Python")


@app.command("fingerprint")
def fingerprint(ctx: typer.Context) -> None:
    """Print the SHA-256 of the CA certificate, to compare elsewhere: mindgw login --ca-sha256 SHA256 URL"""
    run = invocation(ctx)
    digest = sha256_of(_authority(run))
    run.render.item({"sha256": digest}, (Column("SHA256", lambda item: str(item["sha256"])),), name="sha256")


def _authority(run: Invocation) -> str:
    from mindgw.cli.target import authority

    pem = authority(run.options, run.environment, run.render)
    if "-----BEGIN CERTIFICATE-----" not in pem:
        raise Missing(
            "this server has no certificate authority", hint="it listens on plain HTTP only; `mindgw init --public-url` makes TLS"
        )
    return pem


def sha256_of(pem: str) -> str:
    """As people compare it: pairs of digits with colons in between. Raises ClientError when it is no certificate."""
    import hashlib
    import ssl

    try:
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest()
    except ValueError:
        raise ClientError("the CA certificate is damaged") from None
    return ":".join(digest[at : at + 2] for at in range(0, 64, 2))
