"""The only room that prints. stdout is data, stderr is talk; secrets leave through `secret` alone."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from mindgw.cli.settings import Environment, Options
from mindgw.client.errors import ClientError
from mindgw.client.redaction import redact

Item = Mapping[str, Any]

_COLOURS = {"red": 31, "green": 32, "yellow": 33, "dim": 2, "bold": 1}
#: How a state looks; what is not listed stays plain.
STATES = {
    "ready": "green",
    "draining": "yellow",
    "pending": "yellow",
    "connecting": "yellow",
    "locked": "red",
} | dict.fromkeys(("offline", "revoked", "expired"), "red")


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    value: Callable[[Item], str]


class Render:
    """One run's way to the terminal."""

    def __init__(self, options: Options, environment: Environment) -> None:
        #: table, json or name.
        self.output = options.output
        #: Only data, no talk.
        self.quiet = options.quiet
        #: Lines about HTTP on stderr.
        self.verbose = options.verbose > 0
        #: What was said about colours: by the flag, by the environment.
        self._plain = options.no_color or environment.plain
        self._forced = environment.forced_colour
        self._dumb = environment.dumb

    def items(self, items: Sequence[Item], columns: Sequence[Column], *, name: str) -> None:
        """A list. `name` is the field that -q and `-o name` print alone."""
        if self.output == "json":
            self._json({"items": list(items), "next": None})
        elif self.output == "name" or self.quiet:
            for item in items:
                self.datum(str(item.get(name, "")))
        elif items:
            self._table([[column.title for column in columns], *([column.value(item) for column in columns] for item in items)])
        else:
            self.note("nothing here yet")

    def item(self, item: Item, columns: Sequence[Column], *, name: str) -> None:
        """One object, a line a field."""
        if self.output == "json":
            self._json(item)
        elif self.output == "name" or self.quiet:
            self.datum(str(item.get(name, "")))
        else:
            width = max(len(column.title) for column in columns)
            for column in columns:
                self._line(sys.stdout, f"{column.title.lower():<{width}}  {self._styled(_clean(column.value(item)))}")

    def created(self, item: Item, *, secret: str, name: str) -> None:
        """Something new whose `secret` field is shown this once: the whole object as JSON, else the secret alone on stdout."""
        if self.output == "json":
            self._json(item)
        else:
            self.datum(str(item[name if self.output == "name" and not self.quiet else secret]))

    def done(self, item: Item, text: str, *, name: str) -> None:
        """A change that left nothing to show but the object itself."""
        if self.output == "json":
            self._json(item)
        elif self.output == "name":
            self.datum(str(item.get(name, "")))
        else:
            self.success(text)

    def datum(self, text: str) -> None:
        """One line of data, for a pipe as it is."""
        self._line(sys.stdout, text if not sys.stdout.isatty() else _clean(text))

    def raw(self, text: str) -> None:
        """A piece of data at once, without an end of line."""
        print(text if not sys.stdout.isatty() else _clean(text, keep="\n\t"), end="", flush=True)

    def line(self, item: Item) -> None:
        """One object as one line of JSON, on a terminal, too."""
        self._line(sys.stdout, json.dumps(item, ensure_ascii=False))

    @property
    def lively(self) -> bool:
        """Whether what is on the screen can be drawn anew."""
        return sys.stdout.isatty() and not self._dumb

    def draws(self, text: str) -> bool:
        """Whether stdout can show these characters."""
        try:
            text.encode(sys.stdout.encoding or "ascii")
        except (LookupError, UnicodeEncodeError):
            return False
        return not self._dumb

    def screen(self, heading: str, items: Sequence[Item], columns: Sequence[Column]) -> None:
        """A list that is drawn again and again: in place on a terminal, as much of it as fits; one below the other elsewhere."""
        rows = [[column.title for column in columns], *([column.value(item) for column in columns] for item in items)] if items else []
        lines = [_clean(heading), *_aligned(rows)]
        if not self.lively:
            self._line(sys.stdout, "\n".join([*lines, ""]))
            return
        width, height = shutil.get_terminal_size()
        if len(lines) > height - 1:
            lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more"]
        drawn = "".join(f"{line[:width]}\x1b[K\n" for line in lines)
        print(f"\x1b[H{drawn}\x1b[J", end="", flush=True)

    @staticmethod
    def hang_up() -> None:
        """Nobody reads stdout any more; what is left in it goes nowhere, without a complaint."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

    def note(self, text: str) -> None:
        """Talk, on stderr."""
        if not self.quiet:
            self._line(sys.stderr, redact(_clean(text, keep="\n")))

    def progress(self, text: str) -> None:
        """How far something is, in place of what was said of it before; on a terminal alone."""
        if not self.quiet and sys.stderr.isatty() and not self._dumb:
            print(f"\r{redact(_clean(text))}\x1b[K\r", end="", file=sys.stderr, flush=True)

    def success(self, text: str) -> None:
        if not self.quiet:
            self._line(sys.stderr, f"{self._paint('✓', 'green', sys.stderr)} {redact(_clean(text))}")

    def warn(self, text: str) -> None:
        """Talk that -q does not silence."""
        self._line(sys.stderr, f"{self._paint('!', 'yellow', sys.stderr)} {redact(_clean(text))}")

    def secret(self, label: str, text: str, remark: str = "") -> None:
        """A secret that is shown this once, on stderr, where a pipe of the data does not carry it on."""
        if not self.quiet:
            self._line(sys.stderr, f"{self._paint('✓', 'green', sys.stderr)} {label:<11} {text}   {remark}".rstrip())

    def ask(self, question: str) -> str | None:
        """One line that a person types; None at the end of input. A Ctrl-C goes its own way."""
        print(redact(_clean(question)), end=" ", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.strip() if line else None

    def wire(self, line: str) -> None:
        """A line about HTTP, for -v."""
        if self.verbose:
            self._line(sys.stderr, self._paint(redact(_clean(line)), "dim", sys.stderr))

    def _json(self, value: Any) -> None:
        self._line(sys.stdout, json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))

    def _table(self, rows: Sequence[Sequence[str]]) -> None:
        for line in _aligned(rows, self._styled):
            self._line(sys.stdout, line)

    def _styled(self, cell: str) -> str:
        return self._paint(cell, STATES.get(cell, ""), sys.stdout)

    def _paint(self, text: str, colour: str, stream: TextIO) -> str:
        if not colour or self._plain or not (self._forced or stream.isatty()):
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"

    @staticmethod
    def _line(stream: TextIO, text: str) -> None:
        print(text, file=stream, flush=True)


def failure(error: ClientError, *, as_json: bool, where: str = "") -> None:
    """The error on stderr: three lines for people, one object for programs."""
    if as_json:
        body = {"code": error.code, "message": error.message, "hint": error.hint or None, "request_id": error.request_id or None}
        print(json.dumps({"error": body}, ensure_ascii=False), file=sys.stderr)
        return
    print(f"error: {_clean(error.message)}", file=sys.stderr)
    hint = _clean(error.hint, keep="\n")
    if hint:
        print(f"hint:  {hint}", file=sys.stderr)
    rid = _clean(error.request_id) or "–"
    print(f"ref:   {f'at={where}  ' if where else ''}code={_clean(error.code)}  rid={rid}  exit {error.exit_code}", file=sys.stderr)


def aborted() -> None:
    print("aborted", file=sys.stderr)


def traceback_of(text: str) -> None:
    """A traceback for --debug, without secrets."""
    print(redact(text).rstrip(), file=sys.stderr)


def _aligned(rows: Sequence[Sequence[str]], styled: Callable[[str], str] = str) -> Iterator[str]:
    """The lines of a table, each column as wide as its widest cell."""
    cells = [[_clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))] if cells else []
    for row in cells:
        padded = (styled(cell) + " " * (width - len(cell)) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _clean(text: str, keep: str = "") -> str:
    """Without control characters: names come from elsewhere and must not drive the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else f"\\x{ord(c):02x}" for c in text)
