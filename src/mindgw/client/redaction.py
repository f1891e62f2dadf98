"""Secrets never reach a terminal, a log or a traceback: everything that is talk goes through `redact`."""

import re

_SECRETS = (
    # an API key keeps its public id, so that a log line still says which key it was
    (re.compile(r"\b(mgw_[0-9A-Za-z]{4,10})_[0-9A-Za-z]+"), r"\1_***"),
    (re.compile(r"\b(mgwj\d_)[0-9A-Za-z]+(_[0-9A-Za-z]+)?"), r"\1***"),
    (re.compile(r"\b(?i:(bearer|basic)) (?!mgw_)[^\s\"',;]+"), r"\1 ***"),
    # user:password in an address
    (re.compile(r"://[^/\s@:]+:[^/\s@]+@"), "://***@"),
)


def redact(text: str) -> str:
    """`text` without the secrets of this product: API keys keep their id, join tokens, bearer values and URL passwords keep nothing."""
    for pattern, mask in _SECRETS:
        text = pattern.sub(mask, text)
    return text
