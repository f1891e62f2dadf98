"""Secrets never reach a terminal, a log or a traceback: everything that is talk goes through `redact`."""

import re

_SECRETS = (
    # an API key and a session keep their public id, so that a log line still says which one it was
    (re.compile(r"\b(mgws?_[0-9A-Za-z]{4,10})_[0-9A-Za-z]+"), r"\1_***"),
    (re.compile(r"\b(mgwi_)[0-9A-Za-z]+(_[0-9A-Za-z]+)?"), r"\1***"),
    # a pass
    (re.compile(r"\beyJ[0-9A-Za-z_-]*\.[0-9A-Za-z_-]*\.[0-9A-Za-z_-]*"), "***"),
    (re.compile(r"\b(mgwj\d_)[0-9A-Za-z]+(_[0-9A-Za-z]+)?"), r"\1***"),
    (re.compile(r"\b(?i:(bearer|basic)) (?!mgws?_)[^\s\"',;]+"), r"\1 ***"),
    # user:password in an address
    (re.compile(r"://[^/\s@:]+:[^/\s@]+@"), "://***@"),
)


def redact(text: str) -> str:
    """`text` without the secrets of this product: API keys and sessions keep their id; join tokens, invitations, passes, bearer values
    and URL passwords keep nothing."""
    for pattern, mask in _SECRETS:
        text = pattern.sub(mask, text)
    return text
