"""Which server a command talks to, and with which key."""

from mindgw.cli.render import Render
from mindgw.cli.settings import Environment, Options
from mindgw.client.errors import NotLoggedIn
from mindgw.client.transport import Server


def choose(options: Options, environment: Environment, *, anonymous: bool = False) -> Server:
    """Flag, then environment, then the current context. MINDGW_TOKEN wins over the key of a context."""
    url = options.server or environment.server
    if not url:
        raise NotLoggedIn("no server is known here", hint="`mindgw init` makes one; or use --server URL with MINDGW_TOKEN")
    if anonymous:
        return Server.at(url)
    if not environment.token:
        raise NotLoggedIn(f"no key for {url}", hint="set MINDGW_TOKEN to an API key of that server")
    return Server.at(url, environment.token)


def authority(options: Options, environment: Environment, render: Render) -> str:
    raise NotImplementedError
