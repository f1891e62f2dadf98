"""Times, sizes, counts and addresses as people write them. PURE; everything here raises ValueError with a message that begins "must be"."""

import re
from ipaddress import ip_address
from typing import Annotated

from mindgw.addresses import Networks

#: Seconds; written as 30, 500ms, 30s, 5m, 1h or 2d.
Duration = Annotated[float, "duration"]
#: Bytes; written as 4096, 64KiB, 32MB, 1GiB.
Size = Annotated[int, "size"]
#: Whole days, 0 for none.
Days = Annotated[int, "days"]

#: How much more of what is shared somebody gets than others; written as "team:nlp=2, user:ada@example.org=0.5".
Shares = Annotated[dict[str, float], "shares"]

#: Dollars for a million tokens of prompt and of answer; written as "llama3=0.15/0.60, *=0.1/0.1".
PriceTable = Annotated[dict[str, tuple[int, int]], "prices"]

#: Networks, each as an address or ADDRESS/BITS; written as "10.0.0.0/8, 192.0.2.7".
NetworkList = Annotated[tuple[str, ...], "networks"]

#: What others call something -> what it is called here; written as "11aa-22bb=nlp, mindgw.admin=admin".
NameTable = Annotated[dict[str, str], "names"]

#: Words, each without a blank or a comma in it; written as "openid, profile".
Words = Annotated[tuple[str, ...], "words"]

#: Who does TLS: "" the server, with its own certificate; "off" somebody in front; written as "CERT:KEY" the server, with these files.
Certificate = Annotated[str, "certificate"]
#: The word for a proxy in front that does TLS.
OFF = "off"

_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SHARE = re.compile(r"((?:team|user):[^=,]{1,200})=([0-9]{1,6}(?:\.[0-9]{1,6})?)")
_AMOUNT = re.compile(r"([0-9]{1,7})(?:\.([0-9]{1,6})0*)?")
#: The most dollars that a million tokens may cost, in millionths: more is a slip of the keyboard.
_DEAREST = 10**12
_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([A-Za-z]*)", re.ASCII)
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MAX_SECONDS = 10 * 365 * 86400.0


def duration(text: str) -> float:
    """Seconds, more than none and at most ten years."""
    match = _NUMBER.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS.get(match[2], 0) if match else 0
    if not 0 < seconds <= _MAX_SECONDS:
        raise ValueError("must be a time such as 30s, 5m or 1h")
    return seconds


def size(text: str) -> int:
    """Bytes, at least one."""
    match = _NUMBER.fullmatch(text.strip())
    amount = float(match[1]) * _BYTES.get(match[2].lower(), 0) if match else 0
    if not 1 <= amount <= 2**60:
        raise ValueError("must be a size such as 64KiB or 32MB")
    return int(amount)


def count(text: str) -> int:
    """A whole number, at least one."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not match[1].isdigit() or match[2] or not 1 <= int(match[1]) < 2**31:
        raise ValueError("must be a whole number of at least 1")
    return int(match[1])


def days(text: str) -> int:
    """Whole days, ten years at most."""
    found = text.strip()
    if not re.fullmatch(r"[0-9]{1,4}", found, re.ASCII) or int(found) > _MAX_SECONDS // 86400:
        raise ValueError("must be a whole number of days, 0 for none")
    return int(found)


def networks(text: str) -> tuple[str, ...]:
    """Networks as they are written shortest."""
    return Networks(filter(None, (part.strip() for part in text.split(",")))).texts


def certificate(text: str) -> str:
    """Who does TLS."""
    wanted = text.strip()
    file, colon, key = wanted.rpartition(":")
    if wanted not in ("", OFF) and not (file and colon and key):
        raise ValueError(f"must be {OFF}, or CERT:KEY, two files")
    return wanted


def switch(text: str) -> bool:
    """On or off."""
    if (found := _SWITCH.get(text.strip().lower())) is None:
        raise ValueError("must be true or false")
    return found


def shares(text: str) -> dict[str, float]:
    """Whose share is how large: numbers above 0 and below a million, at most a thousand."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _SHARE.fullmatch(part)
        share = float(match[2]) if match else 0
        if match is None or share <= 0 or match[1] in found or len(found) == 1000:
            raise ValueError('must be shares above 0, each of a team or a user once, such as "team:nlp=2, user:ada@example.org=0.5"')
        found[match[1]] = share
    return found


def names(text: str) -> dict[str, str]:
    """What others call something -> what it is called here, at most a thousand; between them are commas, or, where there is one,
    semicolons: names in directories have commas in them."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(";" if ";" in text else ","))):
        theirs, _, ours = (piece.strip() for piece in part.rpartition("="))
        if not theirs or not ours or theirs in found or len(found) == 1000:
            raise ValueError('must be names, each of theirs once with one of ours, such as "mindgw.admin=admin, 11aa-22bb=nlp"')
        found[theirs] = ours
    return found


def words(text: str) -> tuple[str, ...]:
    """Words, each once, at most a hundred."""
    found = tuple(dict.fromkeys(text.replace(",", " ").split()))
    if len(found) > 100:
        raise ValueError("must be at most 100 words")
    return found


def prices(text: str) -> dict[str, tuple[int, int]]:
    """Model or pattern -> millionths of a dollar for a million tokens of the prompt and of the answer; none for an empty text."""
    found: dict[str, tuple[int, int]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        # models may have an equals sign in their name, prices have none
        pattern, _, price = (piece.strip() for piece in part.rpartition("="))
        prompt, _, answer = (_micro(piece.strip()) for piece in price.partition("/"))
        if not pattern or prompt is None or answer is None or pattern in found:
            raise ValueError('must be dollars for a million tokens, each model or pattern once, such as "llama3=0.15/0.60, *=0.1/0.1"')
        found[pattern] = (prompt, answer)
    return found


def _micro(text: str) -> int | None:
    """Millionths; None for what is no price."""
    match = _AMOUNT.fullmatch(text)
    value = int(match[1] + (match[2] or "").ljust(6, "0")) if match else _DEAREST + 1
    return value if value <= _DEAREST else None


def split_address(address: str) -> tuple[str, int]:
    """Host without brackets, and port, of HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise ValueError("must be HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        return str(_ip(host[1:-1])), int(port)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", host, re.ASCII):
        raise ValueError("must be HOST:PORT, an IPv6 address in brackets")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is a literal loopback address; a name is not, it can be made to point anywhere."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _ip(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("must be HOST:PORT, an IPv6 address in brackets") from None
