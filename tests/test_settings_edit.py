"""A setting is changed where it stands, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import config, settings_edit, settings_file
from mindgw.config import Config
from mindgw.errors import ConfigError
from tests.house import ROOT

EXAMPLE = (ROOT / "templates/config.example.yaml").read_text()


def changed(text, key, said):
    return settings_edit.change(text, key, said, Config, "config.yaml")


@pytest.mark.parametrize(
    ("before", "key", "said", "after"),
    [
        ("", "log.level", "debug", "log:\n  level: debug\n"),
        ("", "queue.aging.high", "7", "queue:\n  aging:\n    high: 7\n"),
        ("log:\n  level: info # loud\n", "log.level", "debug", "log:\n  level: debug # loud\n"),
        ("log:\n  level: info\n# end\n", "log.format", "json", "log:\n  level: info\n  format: json\n# end\n"),
        ("log: {level: info}\n", "log.format", "json", "log: {level: info, format: json}\n"),
        ("log: {}\n", "log.format", "json", "log: {format: json}\n"),
        ("queue: {}\n", "queue.aging.high", "7", "queue: {aging: {high: 7}}\n"),
        ("queue:\n  # weights: none\n", "queue.aging.high", "7", "queue:\n  aging:\n    high: 7\n  # weights: none\n"),
        (
            "metrics:\n\nlog:\n  level: info\n",
            "metrics.listen",
            "127.0.0.1:1",
            'metrics:\n  listen: "127.0.0.1:1"\n\nlog:\n  level: info\n',
        ),
        ("queue:\n  aging:\n    high: 1\n", "queue.aging.batch", "7", "queue:\n  aging:\n    high: 1\n    batch: 7\n"),
        ("log:\n    level: info\n", "log.format", "json", "log:\n    level: info\n    format: json\n"),
        ("{log: {level: info}}\n", "fast_lane", "no", "{log: {level: info}, fast_lane: no}\n"),
        ("listen:\n", "listen", "127.0.0.1:2", 'listen: "127.0.0.1:2"\n'),
    ],
)
def test_a_setting_stands_in_its_section(before, key, said, after):
    assert changed(before, key, said) == after
    config.parse(after, "D", {})


SAID = {
    "listen": "127.0.0.1:9", "public_url": "https://x:1", "database": "postgresql://u:${p}@h/d", "timeouts.idle": "7s",
    "limits.body": "1KiB", "limits.n": "3", "queue.weights": "team:a=2", "queue.aging.batch": "9", "prices": "*=1/2",
    "cors.origins": "https://a.example", "fast_lane": "false", "metrics.listen": "127.0.0.1:1", "log.level": "debug",
    "dead_letters.keep": "2d",
}  # fmt: skip
TEXTS = [
    "",
    "log: {level: error}\n",
    "timeouts:\n  idle: 3s\n  total: 2h # two\n\nlimits:\n  n: 2\n",
    "queue:\n",
    "queue: {aging: {high: 3}}",
    EXAMPLE,
]


@given(st.sampled_from(TEXTS), st.lists(st.sampled_from(sorted(SAID)), max_size=4))
def test_whatever_is_changed_is_read_back_and_nothing_else_changes(text, keys):
    before = settings_file.read(text, Config, {}, "f")
    for key in keys:
        text = changed(text, key, SAID[key])
    after = settings_file.read(text, Config, {}, "f")
    assert {key: value.text for key, value in after.items()} == {key: value.text for key, value in before.items()} | {
        key: SAID[key] for key in keys
    }


def test_what_looks_like_a_variable_or_a_template_is_kept_literally():
    text = changed("", "data_dir", "/d/${SECRET}/{{7*7}}/$(id)")
    assert config.parse(text, "D", {"SECRET": "leaked"}).data_dir == "/d/${SECRET}/{{7*7}}/$(id)"


@pytest.mark.parametrize(
    ("key", "said", "part"),
    [
        ("lisen", "x", "did you mean listen"),
        ("log", "x", "no setting 'log'"),
        ("log.level.x", "x", "no setting"),
        ("log.colour", "x", "no setting 'log.colour'"),
        ("timeouts.idle", "soon", "timeouts.idle: must be a time"),
        ("limits.n", "many", "limits.n: must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(key, said, part):
    with pytest.raises(ConfigError, match=part):
        changed("", key, said)


@pytest.mark.parametrize("text", ["listen: |\n  127.0.0.1:1\n", "log: &a {level: info}\nmetrics: *a\n"])
def test_what_only_an_editor_can_change_is_left_alone(text):
    key = "listen" if text.startswith("listen") else "log.level"
    if key == "listen":
        with pytest.raises(ConfigError, match="only an editor"):
            changed(text, key, "127.0.0.1:2")
    else:
        assert changed(text, key, "debug") == "log: &a {level: debug}\nmetrics: *a\n"


@pytest.mark.parametrize("text", ["just text", "[1]", "log: [1]"])
def test_a_text_that_says_no_settings_is_not_changed(text):
    with pytest.raises(ConfigError):
        changed(text, "log.level", "debug")
