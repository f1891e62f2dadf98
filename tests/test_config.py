"""Settings: whatever the text is, it gives checked settings or an error that says key, value, file and line."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mindgw import config, quantities, settings_edit
from mindgw.config import Config, DeadLetters, Limits, Log, Metrics, Queueing, Timeouts
from mindgw.errors import ConfigError
from mindgw_agent import payload, wire


def parse(text: str, environ: dict[str, str] | None = None, **options) -> Config:
    return config.parse(text, "/data", environ or {}, file="config.yaml", **options)


def refusal(text: str, environ: dict[str, str] | None = None, **options) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(text, environ, **options)
    return str(refused.value)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "~", "timeouts:\nlog: {}\n", "listen:\n"])
def test_what_is_not_said_has_its_default(text):
    assert parse(text) == Config(data_dir="/data")


def test_everything_can_be_said():
    text = """
listen: "[::1]:9000"
public_url: https://gpu.example:8443/
database: postgresql://u:p@h/d
timeouts: {connect: 500ms, first_token: 5m, idle: 1h, total: 1d, queue: 30, worker_return: 1.5s, drain: 1m, keepalive: "15"}
limits:
  body: 32MB
  queue: 7
  answer: 0.0625 GiB
  n: 2
metrics:
  listen: 10.0.0.1:9420
dead_letters: {keep_body: Yes, max_body: 2KiB, keep: 7d, most: 5}
log:
  format: json
  level: debug
"""
    assert parse(text) == Config(
        data_dir="/data",
        listen="[::1]:9000",
        public_url="https://gpu.example:8443",
        tls_listen="0.0.0.0:8443",
        database="postgresql://u:p@h/d",
        timeouts=Timeouts(0.5, 300, 3600, 86400, 30, 1.5, 60, 15),
        limits=Limits(body=32_000_000, queue=7, answer=2**26, n=2),
        metrics=Metrics("10.0.0.1:9420"),
        dead_letters=DeadLetters(True, 2048, 7 * 86400, 5),
        log=Log("json", "debug"),
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("\nlisen: x", ["config.yaml:2", "lisen", "did you mean listen"]),
        ("timeouts:\n  idel: 3", ["config.yaml:2", "timeouts.idel", "did you mean idle"]),
        ("log: {colour: 1}", ["log.colour", "there are format, level"]),
        ("timeouts:\n\n  idle: soon", ["config.yaml:3", "timeouts.idle", "'soon'", "30s"]),
        ("timeouts: {idle: 0}", ["timeouts.idle", "'0'"]),
        ("timeouts: {idle: 9999999999d}", ["timeouts.idle", "9999999999d"]),
        ("timeouts: {idle: -3}", ["timeouts.idle", "'-3'"]),
        ("limits: {body: 3 parsecs}", ["limits.body", "3 parsecs", "32MB"]),
        ("limits: {n: 1.5}", ["limits.n", "'1.5'", "whole number"]),
        ("limits: {n: 0}", ["limits.n", "'0'"]),
        ("limits: {n: 3s}", ["limits.n", "'3s'"]),
        ("limits: {n: 9}", ["config.yaml:1", "limits.n", "at most 8", "'9'"]),
        ("limits: {answer: 1GiB}", ["limits.answer", "at most 64MiB", "'1GiB'"]),
        ("limits:\n  body: 200MB", ["config.yaml:2", "limits.body", "at most 64MiB", "'200MB'"]),
        ("dead_letters: {keep_body: perhaps}", ["dead_letters.keep_body", "'perhaps'", "true or false"]),
        ("dead_letters: {keep: 0}", ["dead_letters.keep", "'0'"]),
        ("dead_letters: {most: 0}", ["dead_letters.most", "'0'"]),
        ("listen: 8420", ["config.yaml:1", "listen", "'8420'", "quotes"]),
        ("listen: true", ["listen", "'true'"]),
        ("listen: [a]", ["listen", "one value"]),
        ("listen: {a: b}", ["listen", "one value"]),
        ("listen: 0.0.0.0:8420", ["listen", "'0.0.0.0:8420'", "loopback"]),
        ("listen: localhost:8420", ["listen", "loopback"]),
        ("listen: 127.0.0.1:0", ["listen", "127.0.0.1:0"]),
        ("listen: 127.0.0.1:65536", ["listen", "65536"]),
        ("listen: '::1:8420'", ["listen", "::1:8420"]),
        ("listen: '[nonsense]:8420'", ["listen", "nonsense"]),
        ("metrics: {listen: nowhere}", ["metrics.listen", "'nowhere'", "HOST:PORT"]),
        ("public_url: http://gpu.example:8443", ["public_url", "https://host:port"]),
        ("public_url: https://gpu.example:8443/v1", ["public_url", "/v1"]),
        ("public_url: https://user@gpu.example:8443", ["public_url"]),
        ("public_url: https://gpu.example:99999", ["public_url"]),
        ("public_url: 'https://'", ["public_url"]),
        ("public_url: https://gpu.example:8420", ["config.yaml:1", "port 8420"]),
        ("tls_listen: 0.0.0.0:8443", ["config.yaml:1", "tls_listen", "public_url"]),
        ("log: {level: loud}", ["log.level", "'loud'", "debug, info, warning, error"]),
        ("log: {format: xml}", ["log.format", "'xml'"]),
        ("database: mysql://u:hidden@h/d", ["database", "mysql://u:***@h/d"]),
        ("database: oracle", ["database", "'oracle'"]),
        ("data_dir: ''", ["data_dir"]),
        ("timeouts: 3", ["config.yaml:1", "timeouts", "key: value"]),
        ("- a\n- b", ["config.yaml:1", "key: value"]),
        ("just text", ["config.yaml:1", "key: value"]),
        ("log:\n  level: info\n  level: debug", ["config.yaml:3", "log.level", "twice"]),
        ("? [a]\n: b", ["no such setting"]),
        ("a: b: c", ["config.yaml:1", "not YAML"]),
        ("a: 1\n--- \nb: 2", ["config.yaml:2", "not YAML"]),
        ("a: *nobody", ["config.yaml:1", "not YAML"]),
        ("a: 'open", ["not YAML"]),
        ("\x00", ["config.yaml", "not YAML"]),
        ("[" * 20_000, ["config.yaml", "too deeply"]),
        ("a: &a {b: *a}", ["no such setting"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(text, parts):
    message = refusal(text)
    assert [part for part in parts if part not in message] == []
    assert "hidden" not in message


def test_the_largest_limits_are_those_that_agents_keep():
    found = parse("limits: {n: 8, body: 64MiB, answer: 64MiB}").limits
    assert (found.n, found.body, found.answer) == (payload.MAX_N, wire.MAX_BODY, wire.MAX_ANSWER)


def test_the_environment_is_put_into_values():
    environ = {"PORT": "9000", "EMPTY": "", "EVIL": "1\nlog: {level: debug}"}
    said = "listen: 127.0.0.1:${PORT}\ntimeouts: {idle: '${IDLE:-5m}', drain: '${EMPTY:-7s}'}\ndatabase: 'postgresql://u:$${x}@h/d'\n"
    found = parse(said, environ)
    assert found.listen == "127.0.0.1:9000"
    assert (found.timeouts.idle, found.timeouts.drain) == (300, 7)
    assert found.database == "postgresql://u:${x}@h/d"
    assert "log" not in refusal("limits: {n: '${EVIL}'}", environ).partition(", not")[0]


@pytest.mark.parametrize(
    ("text", "part"), [("listen: ${NOPE}", "NOPE"), ("listen: ${}", "must hold a name"), ("listen: ${1X}", "must hold a name")]
)
def test_a_variable_that_cannot_be_put_in_is_named(text, part):
    message = refusal(text)
    assert message.startswith("config.yaml:1: listen: ")
    assert part in message


def test_the_command_line_wins():
    overrides = {"listen": "127.0.0.1:1", "log.level": "debug", "timeouts.drain": "2s", "public_url": None}
    found = parse("listen: 127.0.0.1:2\npublic_url: https://x:3", overrides=overrides)
    assert (found.listen, found.log.level, found.timeouts.drain, found.public_url) == ("127.0.0.1:1", "debug", 2, "https://x:3")
    assert refusal("", overrides={"log.level": "loud"}).startswith("command line: log.level: ")


def test_where_the_server_is_reached():
    plain, public = parse("listen: 127.0.0.1:9"), parse("public_url: https://gpu.example/")
    assert (plain.root_url, plain.tls_listen) == ("http://127.0.0.1:9", "")
    assert (public.root_url, public.loopback_url, public.tls_listen) == ("https://gpu.example", "http://127.0.0.1:8420", "0.0.0.0:443")
    assert parse("public_url: https://x:8443\ntls_listen: 10.0.0.1:9443").tls_listen == "10.0.0.1:9443"
    assert plain.database_url == "sqlite:////data/mindgw.db"
    assert parse("database: postgresql://h/d").database_url == "postgresql://h/d"


def test_the_data_directory_is_the_one_that_was_named(tmp_path):
    file = tmp_path / "elsewhere.yaml"
    file.write_text("data_dir: /from/file\n")
    environ = {"MINDGW_DATA_DIR": "/from/environment"}
    assert config.load(file, None, environ={}).data_dir == "/from/file"
    assert config.load(file, None, environ=environ).data_dir == "/from/environment"
    assert config.load(file, "/from/flag", environ=environ).data_dir == "/from/flag"
    assert config.data_directory(None, environ) == Path("/from/environment")
    assert config.data_directory(None, {}).name == "mindgw"


def test_the_settings_of_a_data_directory_are_read_from_it(tmp_path):
    assert config.load(None, tmp_path) == Config(data_dir=str(tmp_path))
    (tmp_path / config.FILE).write_text("listen: 127.0.0.1:9\n")
    assert config.load(None, tmp_path, {"log.level": "error"}) == Config(str(tmp_path), "127.0.0.1:9", log=Log(level="error"))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, content, part in [("none", None, "no settings file"), ("latin", b"listen: \xff", "UTF-8")]:
        if content is not None:
            (tmp_path / path).write_bytes(content)
        with pytest.raises(ConfigError, match=part) as refused:
            config.load(tmp_path / path, tmp_path)
        assert str(tmp_path / path) in str(refused.value)
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(tmp_path, tmp_path)


YAML_LIKE = st.text(st.sampled_from("listendrvaqubogjmy:_ \n-[]{}&*!|>'\"%@`#,?~0123456789.$/=\t\r\x00\u2028é"), max_size=60)
KEYS = st.sampled_from(["listen", "public_url", "tls_listen", "database", "timeouts", "limits", "log", "metrics", "data_dir"])


@given(st.one_of(st.text(), YAML_LIKE, st.builds("{}: {}".format, KEYS, YAML_LIKE)))
@example("listen: !!binary aGk=")
@example("public_url: https://[::1")
@example("public_url: https://%41:1")
@example("timeouts: {idle: " + "9" * 5000 + "}")
@example("!!python/object/apply:os.system [exit]")
@example("\ufeff")
def test_any_text_gives_settings_or_a_settings_error(text):
    try:
        found = parse(text)
    except ConfigError as refused:
        assert "config.yaml" in str(refused)  # noqa: PT017 - either way is good
    else:
        assert isinstance(found, Config)


HOSTS = st.sampled_from(["127.0.0.1", "127.8.9.1", "[::1]"])
PORTS = st.integers(1, 65535)
SECONDS = st.integers(1, 10**8).map(lambda milliseconds: milliseconds / 1000)
COUNTS = st.integers(1, 2**31 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=30)


@given(
    listen=st.builds("{}:{}".format, HOSTS, PORTS),
    database=st.one_of(st.just("sqlite"), TEXTS.map("postgresql://{}".format)),
    public_port=st.none() | PORTS,
    timeouts=st.builds(Timeouts, *[SECONDS] * 10),
    limits=st.builds(
        Limits, body=st.integers(1, wire.MAX_BODY), queue=COUNTS, answer=st.integers(1, wire.MAX_ANSWER), n=st.integers(1, payload.MAX_N)
    ),
    log=st.builds(Log, st.sampled_from(["auto", "json", "text"]), st.sampled_from(["debug", "info", "warning", "error"])),
)
def test_what_is_written_is_read_back(listen, database, public_port, timeouts, limits, log):
    said = Config("/data", listen, database=database, timeouts=timeouts, limits=limits, log=log)
    if public_port is not None and public_port != int(listen.rpartition(":")[2]):
        said = msgspec.structs.replace(said, public_url=f"https://gpu.example:{public_port}", tls_listen=f"0.0.0.0:{public_port}")
    assert parse(config.dump(said)) == said


def test_defaults_are_not_written_and_shares_are():
    assert "queue" not in config.dump(Config("/data"))
    weighed = Config("/data", queue=Queueing(weights={"team:nlp": 2.0, "user:ada@example.org": 0.5}))
    assert parse(config.dump(weighed)) == weighed


@pytest.mark.parametrize(
    "text", ["nlp=2", "team:nlp", "team:nlp=0", "team:nlp=-1", "team:nlp=nan", "team:nlp=1e9", "team:a=1, team:a=2", "team:=1"]
)
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="queue.weights: must be shares above 0"):
        parse(f"queue:\n  weights: '{text}'\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'listen: "127.0.0.1:2"\n'),
        ("# mine\nlisten: 127.0.0.1:1 # here\n", '# mine\nlisten: "127.0.0.1:2" # here\n'),
        ("listen:\nlog: {level: info}", 'listen: "127.0.0.1:2"\nlog: {level: info}'),
        ("database: sqlite", 'database: sqlite\nlisten: "127.0.0.1:2"\n'),
        ("log:\n  level: info\n# end\n", 'log:\n  level: info\n# end\nlisten: "127.0.0.1:2"\n'),
        ("{listen: a, database: sqlite}\n", '{listen: "127.0.0.1:2", database: sqlite}\n'),
    ],
)
def test_a_setting_is_changed_where_it_stands(before, after):
    assert settings_edit.amend(before, {"listen": "127.0.0.1:2"}, "config.yaml") == after
    assert parse(after).listen == "127.0.0.1:2"


def test_several_settings_are_changed_at_once():
    text = "database: sqlite # keep\npublic_url: https://a:1\nlisten: 127.0.0.1:1\n"
    changes = {
        "listen": "127.0.0.1:2222",
        "database": "postgresql://h/${x}",
        "public_url": "https://longer.example:12345",
        "tls_listen": "1.2.3.4:5",
    }
    found = parse(settings_edit.amend(text, changes, "config.yaml"))
    assert {key: getattr(found, key) for key in changes} == changes


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("500ms", 0.5), ("5 m", 300), (" 1h ", 3600), ("2d", 172800), ("1.5s", 1.5)])
def test_times_are_written_as_people_do(text, seconds):
    assert quantities.duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("64KiB", 65536), ("32MB", 32_000_000), ("1.5 gib", 3 * 2**29), ("1b", 1)])
def test_sizes_are_written_as_people_do(text, size):
    assert quantities.size(text) == size


@given(st.text(max_size=30))
def test_a_quantity_that_is_none_is_refused_plainly(text):
    for read in (quantities.duration, quantities.size, quantities.count, quantities.split_address):
        try:
            read(text)
        except ValueError as refused:
            assert str(refused).startswith("must be ")  # noqa: PT017 - either way is good


def test_only_a_literal_address_is_loopback():
    assert [host for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0", "::", "") if quantities.is_loopback(host)] == [
        "127.0.0.1",
        "127.1.2.3",
        "::1",
    ]


# -- TLS and proxies ---------------------------------------------------------------------------------------------------


def test_a_proxy_in_front_may_do_tls():
    behind = config.parse("public_url: https://gw.example.com\ntls: off\ntrusted_proxies: 127.0.0.1, 10.0.0.0/8\n", "D", {})
    assert (behind.tls, behind.tls_listen, behind.trusted_proxies) == ("off", "", ("127.0.0.1/32", "10.0.0.0/8"))
    own = config.parse("public_url: https://gw.example.com:8443\ntls: /a/cert.pem:/a/key.pem\n", "D", {})
    assert (own.tls, own.tls_listen) == ("/a/cert.pem:/a/key.pem", "0.0.0.0:8443")
    for read in (behind, own):
        assert config.parse(config.dump(read), "D", {}) == read


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tls: off", "--public-url"),
        ("public_url: https://x\ntls: off\ntls_listen: 0.0.0.0:80", "trusted_proxies"),
        ("public_url: https://x\ntls: off\ntls_listen: 10.0.0.2:80", "trusted_proxies"),
        ("public_url: https://x\ntls: sometimes", "CERT:KEY"),
        ("trusted_proxies: 10.0.0.1/8", "without bits behind the mask"),
        ("trusted_proxies: everybody", "must be addresses or networks"),
        ("keys:\n  max_age: 0", "must be a time"),
        ("limits:\n  failures_address: 0", "at least 1"),
    ],
)
def test_what_would_leave_a_door_open_is_refused(text, says):
    with pytest.raises(ConfigError, match="config.yaml") as refused:
        config.parse(text, "D", {})
    assert says in refused.value.message


def test_plain_http_on_loopback_needs_no_proxies():
    assert config.parse("public_url: https://x\ntls: off\ntls_listen: 127.0.0.1:80", "D", {}).tls_listen == "127.0.0.1:80"
