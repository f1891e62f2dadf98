"""What the server says while it works: one JSON object a line, or text for a person at a terminal, always on stderr.

Lines carry the fields that the caller passes as `extra={"fields": {...}}`. One record may stand for many lines of one moment: it has
`extra={"lines": [(message, fields), ...]}`. Nothing that is secret may be passed; keys that slip into a line all the same are blotted out.
"""

import logging
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from mindgw.config import Log

#: What each line of a record says, and its fields.
Lines = Sequence[tuple[str, dict[str, Any]]]
_encode = msgspec.json.Encoder(enc_hook=str).encode
#: Keys, join tokens, sessions and invitations, by their form; passes.
_SECRETS = re.compile(r"(mgw|mgwj1|mgws|mgwi)_[0-9A-Za-z_]{8,}")
_PASSES = re.compile(r"eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]*\.[0-9A-Za-z_-]*")

#: Loggers of libraries whose every line is not news.
_QUIET = ("uvicorn.access", "uvicorn.error", "aiosqlite", "asyncio", "websockets", "alembic", "httpx")
#: Control characters -> how they are shown.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def redact(text: str) -> str:
    """The text without secrets."""
    if "eyJ" in text:
        text = _PASSES.sub("***", text)
    if "mgw" not in text:
        return text
    return _SECRETS.sub(lambda found: f"{found[1]}_***", text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines for a record."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"at": at, "level": record.levelname.lower(), "logger": record.name}
        lines: Lines | None = getattr(record, "lines", None)
        if lines is not None:
            return "\n".join([_line({**head, "message": message, **fields}) for message, fields in lines])
        out: dict[str, Any] = {**head, "message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            out["traceback"] = self.formatException(record.exc_info)
        return _line(out)


def _line(fields: dict[str, Any]) -> str:
    return redact(_encode(fields).decode())


class TextFormatter(logging.Formatter):
    """One line for a person."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line without a traceback; what callers wrote cannot steer the terminal or begin a line of its own."""
        return super().formatMessage(record).translate(_ESCAPES)

    def format(self, record: logging.LogRecord) -> str:
        """The lines for a record."""
        lines: Lines | None = getattr(record, "lines", None)
        if lines is None:
            return redact(super().format(record))
        record.asctime = self.formatTime(record, self.datefmt)
        out = []
        for message, _ in lines:
            record.message = message
            out.append(redact(self.formatMessage(record)))
        return "\n".join(out)


def setup(settings: Log) -> None:
    """Routes all logging to stderr in the form that the settings ask for; `auto` is text on a terminal, JSON elsewhere."""
    text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
