"""Network addresses: who is counted as one, which networks one lies in, and who asks when a proxy stands in between. PURE."""

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

#: Most networks of one list, and most proxies that one request may have come through.
MOST, HOPS = 100, 32
#: Addresses that are remembered as what they were parsed to.
KNOWN = 4096


@lru_cache(KNOWN)
def parse(host: str) -> Address | None:
    """An address, with those of IPv4 that are dressed as IPv6 undressed; None for what is none."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def group(host: str) -> str:
    """Who is counted as one: an address, or the network of an IPv6 one; "" for this machine, where a proxy may speak for everybody."""
    address = parse(host)
    if address is None or address.is_loopback:
        return ""
    return address.exploded[:19] if isinstance(address, IPv6Address) else str(address)


def network(host: str) -> str:
    """The same in the words of an operator: an address, or the network of an IPv6 one; what is no address stays as it is."""
    address = parse(host)
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(ip_network((int(address) >> 64 << 64, 64)))
    return host if address is None else str(address)


class Networks:
    """Some networks."""

    __slots__ = ("_blocks", "_known", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        """Each an address or ADDRESS/BITS. Raises ValueError, with a message that begins "must be"."""
        blocks = [_network(text) for text in texts]
        if len(blocks) > MOST:
            raise ValueError(f"must be at most {MOST} networks")
        #: As they are written.
        self.texts = tuple(map(str, blocks))
        self._blocks = tuple(blocks)
        #: Answers so far.
        # bounded: by KNOWN
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def __contains__(self, host: object) -> bool:
        """Whether an address lies in one of them; what is no address does not."""
        if not self._blocks or not isinstance(host, str):
            return False
        known = self._known.get(host)
        if known is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            address = parse(host)
            known = self._known[host] = address is not None and any(address in block for block in self._blocks)
        return known


def inside(network: str, networks: Iterable[str]) -> bool:
    """Whether a network, or an address, lies in one of others, as they are written in `Networks.texts`. Raises ValueError as those do."""
    block = _network(network)
    return any(_lies_in(block, _network(other)) for other in networks)


def _lies_in(block: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return block.version == other.version and block.network_address in other and block.broadcast_address in other


def client(peer: str, forwarded: Iterable[bytes], trusted: Networks) -> str:
    """Who asks: `peer`, or whom it names in its X-Forwarded-For headers when it is trusted. They are read from the last to the first as
    long as those who wrote them are trusted; what is no address ends that, and the one who wrote it is believed to be the client."""
    if peer not in trusted:
        return peer
    asks = peer
    hops = [hop for line in forwarded for hop in line.split(b",")]
    for hop in reversed(hops[-HOPS:]):
        address = _hop(hop.decode("latin-1").strip())
        if address is None:
            break
        asks = str(address)
        if asks not in trusted:
            break
    return asks


#: Ports are of no interest: 192.0.2.1:4711, [2001:db8::1]:4711.
_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9]{1,3}(?:\.[0-9]{1,3}){3}))(?::[0-9]{1,5})?")


def _hop(text: str) -> Address | None:
    found = _PORT.fullmatch(text)
    return parse((found[1] or found[2]) if found else text[:45])


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text.strip())
    except ValueError:
        raise ValueError("must be addresses or networks such as 192.0.2.7 or 10.0.0.0/8, without bits behind the mask") from None
