"""Addresses are taken before anything else is done: who cannot have one is told so, and has started nothing."""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from mindgw.config import Config
from mindgw.errors import ConfigError, Conflict, MindGWError
from mindgw.quantities import split_address

#: Every address of this machine; IPv6 is meant, too.
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the operator asked for it with a public URL
#: Connections that may wait to be accepted.
BACKLOG = 2048

#: How each listener gets another address.
_PLAIN = "`mindgw serve --port N` takes another port for now, `mindgw init --port N` from now on"
_TLS = "`mindgw serve --listen HOST:PORT` takes another address for now, `mindgw init --listen HOST:PORT` from now on"
_METRICS = "set metrics.listen in config.yaml to another address"


@dataclass(frozen=True, slots=True)
class Listener:
    """One address and the sockets that are bound to it."""

    address: str
    #: How another address is chosen, for people.
    hint: str
    sockets: Sequence[socket.socket]

    def open(self) -> None:
        """Lets connections come. Raises Conflict when somebody else was quicker."""
        try:
            for taken in self.sockets:
                taken.listen(BACKLOG)
        except OSError as wrong:
            raise _refusal(self, wrong) from None


class Listeners:
    """All addresses of a server. A context manager: at its end the sockets are closed."""

    def __init__(self, config: Config) -> None:
        """Binds them all. Raises Conflict (address_in_use), or ConfigError when this machine cannot have one of them at all; none is
        kept then."""
        wanted = (config.listen, _PLAIN), (config.tls_listen if config.public_url else "", _TLS), (config.metrics.listen, _METRICS)
        with ExitStack() as sockets:
            self.plain, self.tls, self.metrics = (_take(sockets, Listener(address, hint, ())) for address, hint in wanted)
            #: Closes what was bound.
            self._sockets = sockets.pop_all()

    def open(self) -> None:
        """Lets connections come; they wait until somebody accepts them. Raises Conflict."""
        for listener in (self.plain, self.tls, self.metrics):
            listener.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sockets.close()


def _take(sockets: ExitStack, wanted: Listener) -> Listener:
    """That listener with its sockets, of which there are none when it has no address."""
    if not wanted.address:
        return wanted
    host, port = split_address(wanted.address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        bound = [sockets.enter_context(_bound(family, where)) for family, where in dict.fromkeys((line[0], line[4]) for line in found)]
    except OSError as wrong:
        raise _refusal(wanted, wrong) from None
    if host == EVERYWHERE and (also := _everywhere_in_ipv6(port)):
        bound.append(sockets.enter_context(also))
    return Listener(wanted.address, wanted.hint, bound)


def _bound(family: int, where: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(where)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _everywhere_in_ipv6(port: int) -> socket.socket | None:
    """None where there is no IPv6."""
    try:
        return _bound(socket.AF_INET6, ("::", port))
    except OSError:
        return None


def _refusal(wanted: Listener, wrong: OSError) -> MindGWError:
    if wrong.errno == errno.EADDRINUSE:
        return Conflict(f"cannot listen on {wanted.address}: another process does already", code="address_in_use", hint=wanted.hint)
    # a name that means nothing has a number of its own kind
    reason = wrong.strerror if isinstance(wrong, socket.gaierror) else os.strerror(wrong.errno or 0)
    return ConfigError(f"cannot listen on {wanted.address}: {reason}", hint=wanted.hint)
