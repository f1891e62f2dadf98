"""Traces of real services, in the formats in which they are published: a file is recognised by its first line, `.gz` or not.

| format | fields |
| Azure LLM inference (2023, 2024) | TIMESTAMP, ContextTokens, GeneratedTokens |
| BurstGPT | Timestamp, Model, Request tokens, Response tokens, …; Session ID where there is one |
| Mooncake | JSON lines: timestamp (ms), input_length, output_length, hash_ids |
| Arena (the VTC paper's) | req_time_s, client, prompt_len, output_len |
| own | t, client, input, output, model |
"""

import csv
import gzip
import io
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import median

import msgspec

from bench.simulation.jobs import Job, Workload

#: Tokens of a block of Mooncake's.
_BLOCK = 512
#: A request with more is a broken line.
_MOST = 10_000_000


class BadTrace(Exception):
    """A file that cannot be read as a trace; says where and why."""


class _Mooncake(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def load(path: Path) -> Workload:
    """Raises BadTrace. Jobs are sorted by arrival and the first one arrives at 0; requests without any token of prompt or answer are left
    out, as they say nothing about an engine."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except OSError as problem:
        raise BadTrace(f"{path}: {problem.strerror or problem}") from None
    except (EOFError, zlib.error) as problem:
        raise BadTrace(f"{path}: the compressed file is cut or spoilt ({problem})") from None
    except UnicodeDecodeError:
        raise BadTrace(f"{path}: not text") from None
    jobs = [job for job in _parse(path, text) if job.input > 0 and job.output > 0]
    if not jobs:
        raise BadTrace(f"{path}: holds no requests")
    _spread(jobs)
    jobs.sort(key=lambda job: job.arrival)
    first = jobs[0].arrival
    for job in jobs:
        job.arrival -= first
    name = path.name.removesuffix(".gz").rpartition(".")[0]
    return Workload(name or path.name, jobs, _BLOCK)


def _parse(path: Path, text: str) -> Iterator[Job]:
    if text.lstrip().startswith("{"):
        yield from _mooncake(path, text)
        return
    rows = csv.DictReader(io.StringIO(text), strict=True)
    try:
        fields = set(rows.fieldnames or ())
        read = next((read for names, read in _FORMATS if names <= fields), None)
        if read is None:
            known = "; ".join(", ".join(sorted(names)) for names, _ in _FORMATS)
            raise BadTrace(f"{path}: no known trace: the first line must name {known}; or the file must hold JSON lines")
        for row in rows:
            yield _read(path, rows.line_num, row, read)
    except csv.Error as problem:
        raise BadTrace(f"{path}:{rows.line_num}: {problem}") from None


def _read(path: Path, line: int, row: Mapping[str, str], read: Callable[[Mapping[str, str]], Job]) -> Job:
    try:
        job = read(row)
    except (ValueError, TypeError, AttributeError) as problem:  # a short line has None where text should be
        raise BadTrace(f"{path}:{line}: {problem}") from None
    return _sound(path, line, job)


def _sound(path: Path, line: int, job: Job) -> Job:
    if not isfinite(job.arrival):
        raise BadTrace(f"{path}:{line}: the time is {job.arrival}")
    if not (0 <= job.input <= _MOST and 0 <= job.output <= _MOST):
        raise BadTrace(f"{path}:{line}: {job.input} tokens of prompt and {job.output} of answer cannot be")
    return job


def _mooncake(path: Path, text: str) -> Iterator[Job]:
    decoder = msgspec.json.Decoder(_Mooncake)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as problem:
            raise BadTrace(f"{path}:{number}: {problem}") from None
        yield _sound(path, number, Job(row.timestamp / 1000, "client", row.input_length, row.output_length, blocks=row.hash_ids))


def _azure(row: Mapping[str, str]) -> Job:
    # digits after the sixth of a second's parts are more than a datetime takes
    stamp, _, fraction = row["TIMESTAMP"].partition("+")[0].partition(".")
    moment = datetime.fromisoformat(stamp + "+00:00").timestamp() + float(f"0.{fraction or 0}")
    return Job(moment, "client", int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _burst(row: Mapping[str, str]) -> Job:
    session = row.get("Session ID") or ""
    return Job(float(row["Timestamp"]), session or "client", int(row["Request tokens"]), int(row["Response tokens"]), row["Model"])


def _arena(row: Mapping[str, str]) -> Job:
    return Job(float(row["req_time_s"]), row["client"].strip(), int(row["prompt_len"]), int(row["output_len"]))


def _own(row: Mapping[str, str]) -> Job:
    return Job(float(row["t"]), row["client"].strip(), int(row["input"]), int(row["output"]), row["model"].strip())


_FORMATS: tuple[tuple[set[str], Callable[[Mapping[str, str]], Job]], ...] = (
    ({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}, _azure),
    ({"Timestamp", "Model", "Request tokens", "Response tokens"}, _burst),
    ({"req_time_s", "client", "prompt_len", "output_len"}, _arena),
    ({"t", "client", "input", "output", "model"}, _own),
)


def _spread(jobs: list[Job]) -> None:
    """Moves arrivals within their steps where many share one stamp: their bursts would be an artefact of the recording."""
    stamps = sorted({job.arrival for job in jobs})
    if len(stamps) < 2 or len(jobs) < 5 * len(stamps):
        return
    step, dice = median(after - before for before, after in pairwise(stamps)), random.Random(1)
    for job in jobs:
        job.arrival += step * dice.random()
