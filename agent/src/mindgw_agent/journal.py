"""The agent's own last words, kept in memory for an operator who asks for them: without anything that opens a door."""

import logging
import re
from collections import deque
from typing import Final

from mindgw_agent.vocabulary import MAX_LINE, MAX_LINES, clean

#: What never leaves this box: keys and tokens of ours and of others, by their looks or by what stands in front of them.
_SECRETS: Final = re.compile(
    r"""\b(?:mgw[a-z0-9]*_[A-Za-z0-9_]+|sk-[A-Za-z0-9_-]{6,}|hf_[A-Za-z0-9]{6,}|gh[a-z]_[A-Za-z0-9]{6,}|eyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9_.-]*)
    |(?<=://)[^/\s@]+(?=@)
    |(?i:(?<=bearer\s)|(?<=api[-_]key[=:])|(?<=token[=:])|(?<=secret[=:])|(?<=password[=:])|(?<=passwd[=:]))[^\s,;"']+""",
    re.VERBOSE,
)
FORMAT: Final = "%(asctime)s %(levelname)-7s %(message)s"


def redact(text: str) -> str:
    """The text with *** for each secret."""
    return _SECRETS.sub("***", text)


class Journal(logging.Handler):
    """Keeps the last lines that were logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT))
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        #: Lines so far: the number of the last one.
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        # of a traceback as well each line is one; whole lines are redacted, then cut: a secret must not lose the mark it is known by
        for line in self.format(record).splitlines():
            self._lines.append(clean(redact(line))[:MAX_LINE])
            self.count += 1

    def tail(self, count: int) -> list[str]:
        """The last so many lines, the oldest first."""
        return list(self._lines)[-count:] if count > 0 else []

    def after(self, line: int) -> list[str]:
        """The lines behind one of that number, as far as they are still here; all of them for one that never was, of another process."""
        return self.tail(self.count - line if line <= self.count else self.count)
