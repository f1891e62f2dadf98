"""Keys with bounds, their changes and rotations, and rates, from the command line, against the real server."""

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.cli import bounds
from mindgw.client import leaks
from mindgw.client.errors import UsageProblem
from mindgw_agent.tokens import make_key, parse_key


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def key(admin):
    return read(admin("keys", "create", "bounded", "--team", "nlp", "--json"))


def test_a_key_is_made_with_all_its_bounds(admin):
    made = read(
        admin(
            "keys", "create", "thesis", "--models", "small-*,medium", "--models", "large", "--routes", "chat", "--from", "10.0.0.0/8",
            "--rpm", "60", "--tpm", "100k", "--concurrency", "4", "--expires", "90d", "--label", "region=eu", "--trusted-proxy", "--json",
        )
    )  # fmt: skip
    assert (made["models"], made["routes"], made["addresses"]) == (["small-*", "medium", "large"], ["chat"], ["10.0.0.0/8"])
    assert (made["rpm"], made["tpm"], made["concurrency"], made["labels"]) == (60, 100_000, 4, {"region": "eu"})
    assert made["trusted_proxy"] is True
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    shown = admin("keys", "show", made["id"]).out
    for text in ("models small-*,medium,large; routes chat; addresses 10.0.0.0/8", "60 requests/min, 100,000 tokens/min, 4 at once",
                 "region=eu", "in 89d"):  # fmt: skip
        assert text in shown


def test_what_is_not_named_stays(admin, key):
    done = read(admin("keys", "update", key["id"], "--rpm", "10", "--models", "m*", "--json"))
    assert (done["rpm"], done["models"], done["version"]) == (10, ["m*"], 2)
    again = read(admin("keys", "update", key["id"], "--name", "renamed", "--priority", "high", "--no-trusted-proxy", "--json"))
    assert (again["rpm"], again["models"], again["name"], again["priority"]) == (10, ["m*"], "renamed", "high")
    bare = read(admin("keys", "update", key["id"], "--rpm", "none", "--models", "any", "--expires", "never", "--json"))
    assert (bare["rpm"], bare["models"], bare["expires_at"]) == (None, [], None)
    told = admin("keys", "update", key["id"], "--tpm", "1M")
    assert (told.code, told.out) == (0, "")
    assert "good for everything; 1,000,000 tokens/min; ends never" in told.err


def test_nothing_to_change_is_a_mistake(admin, key):
    refused = admin("keys", "update", key["id"])
    assert refused.code == 2
    assert "what is to be different?" in refused.err


def test_a_rotated_key_is_another_secret_of_the_same_id(admin, key):
    fresh = admin("keys", "rotate", key["id"], "-q")
    assert (fresh.code, fresh.err) == (0, "")
    assert parse_key(fresh.out.strip())[0] == key["id"]
    assert fresh.out.strip() != key["key"]
    loud = admin("keys", "rotate", key["id"], "--grace", "2h")
    assert "the old one is good for 2h yet" in loud.err
    assert loud.out.strip() not in loud.err
    assert read(admin("keys", "show", key["id"], "--json"))["prior_until"]


def test_to_end_a_secret_at_once_is_asked_first(admin, key):
    refused = admin("keys", "rotate", key["id"], "--grace", "0")
    assert refused.code == 2
    assert "--yes required" in refused.err
    done = admin("keys", "rotate", key["id"], "--grace", "0", "--yes")
    assert "the old one is dead" in done.err


@pytest.mark.parametrize(
    "flags",
    [
        ["--rpm", "many"], ["--rpm", "0"], ["--tpm", "-5"], ["--concurrency", "1.5"], ["--models", ""], ["--models", ","],
        ["--expires", "soon"], ["--expires", "2027-02-31"], ["--label", "region"], ["--label", "=eu"],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_before_anybody_is_asked(admin, flags):
    refused = admin("keys", "create", "x", *flags)
    assert refused.code == 2, refused.err
    assert refused.out == ""


@pytest.mark.parametrize("flags", [["--routes", "chats"], ["--from", "10.0.0.1/8"], ["--expires", "2001-01-01"], ["--rpm", "99999999999"]])
def test_what_the_server_does_not_take_changes_nothing(admin, key, flags):
    before = admin("keys", "list", "--json").out
    assert admin("keys", "create", "x", *flags).code == 2
    assert admin("keys", "update", key["id"], *flags).code == 2
    assert len(json.loads(admin("keys", "list", "--json").out)["items"]) == len(json.loads(before)["items"])


def test_a_day_is_a_moment_in_utc():
    assert bounds.moment("2027-01-31") == "2027-01-31T00:00:00+00:00"
    assert bounds.moment("2027-01-31T12:00:00+02:00") == "2027-01-31T12:00:00+02:00"
    assert bounds.moment(" Never ") is None
    with pytest.raises(UsageProblem):
        bounds.moment("2027-13-01")


# -- rates -------------------------------------------------------------------------------------------------------------


def test_a_rate_is_set_shown_and_cleared(admin, key):
    told = admin("rates", "set", "team:nlp", "--rpm", "600", "--tpm", "1M")
    assert told.code == 0
    assert "team:nlp may ask: 600 requests/min, 1,000,000 tokens/min. Take it away: mindgw rates clear team:nlp" in told.err
    shown = read(admin("rates", "show", "team:nlp", "--json"))
    assert (shown["rpm"], shown["tpm"], shown["concurrency"]) == (600, 1_000_000, None)
    head, *rows = admin("rate", "list").out.splitlines()
    assert head.split("  ")[0] == "SCOPE"
    assert ["team:nlp", "600", "1,000,000", "–"] in [row.split() for row in rows]
    assert "team:nlp" in admin("rates", "list", "-q").out.splitlines()
    assert admin("rates", "clear", "team:nlp").code == 2
    gone = admin("rates", "clear", "team:nlp", "--yes")
    assert "it was 600 requests/min, 1,000,000 tokens/min" in gone.err
    missing = admin("rates", "show", "team:nlp")
    assert missing.code != 0 and "mindgw rates set team:nlp" in missing.err


def test_a_rate_of_a_key_is_said_where_it_belongs(admin, key):
    refused = admin("rates", "set", f"key:{key['id']}", "--rpm", "5")
    assert refused.code == 2
    assert "keys update" in refused.err
    assert admin("rates", "set", "team:nlp").code == 2


# -- leaks -------------------------------------------------------------------------------------------------------------


def test_keys_in_files_are_found_and_told_by_what_they_open(admin, tmp_path):
    live, other = (read(admin("keys", "create", name, "--team", "nlp", "--json")) for name in ("live", "other"))
    rotated, graced = (read(admin("keys", "create", name, "--json")) for name in ("rotated", "graced"))
    assert admin("keys", "rotate", rotated["id"], "--grace", "0", "--yes").code == 0
    assert admin("keys", "rotate", graced["id"], "--grace", "1h").code == 0
    assert admin("keys", "revoke", other["id"], "--yes").code == 0
    strange = make_key().text
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "app.py").write_text(f"import os\nKEY = '{live['key']}'  # {live['key']}\nOLD='{rotated['key']}'\n")
    (tmp_path / "blob").write_bytes(b"\xff\0" * 600_000 + other["key"].encode() + b"\0" + strange.encode())
    (tmp_path / "none").write_text(f"{live['key'][:-1]}?\n{live['key'][:-6]}AAAAAA\nx{live['key']}\n{live['key']}x\n")
    done = admin("keys", "scan", str(tmp_path), "--json")
    assert done.code == 3
    found = {(item["where"].removeprefix(f"{tmp_path}/"), item["id"]): item["state"] for item in json.loads(done.out)["items"]}
    assert found == {
        ("src/app.py:2", live["id"]): "live", ("src/app.py:3", rotated["id"]): "rotated",
        ("blob:1", other["id"]): "revoked", ("blob:1", strange[4:14]): "unknown",
    }  # fmt: skip
    assert live["id"] in done.err and all(key["key"][15:] not in done.out + done.err for key in (live, other, rotated))
    (tmp_path / "src" / "app.py").write_text(rotated["key"])
    assert admin("keys", "scan", str(tmp_path)).code == 0, "nothing of it opens anything"
    (tmp_path / "src" / "app.py").write_text(graced["key"])
    assert admin("keys", "scan", str(tmp_path)).code == 3, "the old secret is good for an hour yet"
    assert admin("keys", "scan", str(tmp_path / "gone")).code == 2


@given(st.integers(0, 3), st.binary(max_size=30), st.integers(2**20 - 80, 2**20 + 20))
def test_a_key_is_found_wherever_it_stands(before, noise, place):
    key, noise = make_key().text, noise.replace(b"\n", b"")
    text = b"\n" * before + noise + b" " + key.encode() + b" " + noise
    assert list(leaks.find(io.BytesIO(text))) == [(before + 1, key[4:14], key[-4:])]
    long = b"\n" + b"a" * (place - 1) + b" " + key.encode() + b"\n\n" + key.encode()
    assert [(leak.line, leak.id) for leak in leaks.find(io.BytesIO(long))] == [(2, key[4:14]), (4, key[4:14])]


def test_all_keys_of_somebody_are_revoked_at_once(admin):
    mine = [read(admin("keys", "create", f"k{n}", "--user", "Leaver@x.org", "--json"))["id"] for n in range(3)]
    hers = read(admin("keys", "create", "hers", "--user", "stays@x.org", "--json"))["id"]
    assert admin("keys", "revoke", "--all-for", "leaver@X.org").code == 2, "it is asked first"
    done = admin("keys", "revoke", "--all-for", "leaver@X.org", "--yes")
    assert done.code == 0, done.err
    states = {key["id"]: key["state"] for key in read(admin("keys", "list", "--json"))["items"]}
    assert [states[key] for key in mine] == ["revoked"] * 3
    assert states[hers] == "active"
    again = admin("keys", "revoke", "--all-for", "leaver@x.org", "--yes")
    assert (again.code, again.out) == (0, "")
    assert admin("keys", "revoke").code == 2
    assert admin("keys", "revoke", hers, "--all-for", "stays@x.org", "--yes").code == 2
