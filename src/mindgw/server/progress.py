"""How far the other side of a connection has come with what was sent to it.

What waits here says little of that: the kernel takes some, and so does what lies between a transport over TLS and its socket, and shows
none of it. Linux says what was acknowledged; elsewhere what waits must do.
"""

import socket
import sys
from contextlib import suppress
from struct import Struct
from typing import Any, Final, cast

#: Unsent bytes that the kernel takes from us: more would only hide whether the client reads.
UNSENT: Final = 16 * 1024
_UNSENT_AT_MOST: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
#: Where the kernel tells, None where it does not; tcpi_bytes_acked of Linux' struct tcp_info, which is so long with it.
_INFO: int | None = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_ACKED: Final = Struct("120xQ")


def show(transport: Any) -> None:
    """Has the kernel take little of what is written to a new TCP connection, where it can be told so."""
    sock = transport.get_extra_info("socket")
    if sock is not None and _UNSENT_AT_MOST is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _UNSENT_AT_MOST, UNSENT)


def taken(transport: Any) -> int:
    """A number that grows as the other side takes what was sent. It may shrink when more is written: compare it with what it was last."""
    with suppress(OSError, ValueError):  # it is just being closed, or is no TCP
        info = b"" if _INFO is None else transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, _INFO, _ACKED.size)
        if len(info) == _ACKED.size:
            return cast(int, _ACKED.unpack(info)[0])
    return -cast(int, transport.get_write_buffer_size())
