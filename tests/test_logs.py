"""Log lines: one each, without secrets, whatever callers wrote."""

import json
import logging

import pytest

from mindgw import logs
from mindgw_agent.tokens import make_invitation, make_key, make_session


def record(text: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("mindgw.test", logging.INFO, __file__, 1, "said %s", (text,), None)
    made.fields = fields
    return made


@pytest.mark.parametrize("text", ["a\nb", "\r\n200 done", "\x1b[2J", "\x00", "\x7f", "\x9b31m"])
def test_callers_cannot_steer_the_terminal(text: str) -> None:
    assert logs.TextFormatter().format(record(text)).isprintable()


@pytest.mark.parametrize("before", ["", " ", "\n", '"', "'"])
@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_a_key_in_the_wrong_place_is_not_written_down(formatter: logging.Formatter, before: str) -> None:
    key = make_key().text
    line = formatter.format(record(before + key, model=before + key, count=3))
    assert key.rsplit("_", 1)[1] not in line and "mgw_***" in line


PASS = f"eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJtaW5kZ3cifQ.{'s' * 86}"


@pytest.mark.parametrize("secret", [make_session().text, make_invitation("0" * 26)[1], PASS], ids=["session", "invitation", "pass"])
@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_nor_is_what_people_sign_in_with(formatter: logging.Formatter, secret: str) -> None:
    assert secret[-38:] not in formatter.format(record(f"Bearer {secret}", model=secret))


def test_json_lines_carry_the_fields() -> None:
    line = json.loads(logs.JsonFormatter().format(record("x", model="m", count=3)))
    assert (line["message"], line["model"], line["count"], line["level"]) == ("said x", "m", 3, "info")


def test_a_record_may_stand_for_many_lines() -> None:
    key = make_key().text
    made = record("x")
    made.lines = [("one", {"model": "m", "count": 1}), (f"two\n{key}", {"model": key})]
    one, two = (json.loads(line) for line in logs.JsonFormatter().format(made).split("\n"))
    assert (one["message"], one["model"], one["count"], one["level"], one["logger"]) == ("one", "m", 1, "info", "mindgw.test")
    assert two["message"].startswith("two\nmgw_***") and two["model"] == "mgw_***"
    first, second = logs.TextFormatter().format(made).split("\n")
    assert first.endswith("INFO    mindgw.test: one") and second.endswith("two\\x0amgw_***")
