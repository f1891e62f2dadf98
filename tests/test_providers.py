"""Identity providers in the settings: what makes sense, what is refused and where, and that their secrets are shown to nobody."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import config, file_schema, providers, quantities, settings_edit, settings_file, settings_view
from mindgw.cli.app import main
from mindgw.config import Config
from mindgw.errors import ConfigError
from mindgw.providers import Provider
from tests.test_file_schema import fits

TENANT = "8eaef023-2b34-4da1-9baa-8bc8c9d6a490"
GOOD = f"""
providers:
  work:
    kind: entra
    title: Contoso
    tenant: {TENANT}
    client_id: c
    client_secret: ${{SECRET}}
    audiences: c, api://x
    roles: "Gw.Admin=admin, Gw.User=user"
    teams: "11=nlp, a=b=c"
    guests: yes
  lab:
    issuer: https://idp.example/realms/lab
    client_id: mindgw
    default_role: user
    require: "hd=example.org"
"""


def parse(text, environ=None):
    return config.parse(text, "/d", environ or {"SECRET": "s3cret"}, file="config.yaml")


def refusal(text, environ=None):
    with pytest.raises(ConfigError) as refused:
        parse(text, environ)
    return str(refused.value)


def test_several_providers_are_said():
    found = parse(GOOD).providers
    assert list(found) == ["work", "lab"]
    work, lab = found["work"], found["lab"]
    assert (work.client_secret, work.audiences, work.roles, work.guests) == (
        "s3cret",
        ("c", "api://x"),
        {"Gw.Admin": "admin", "Gw.User": "user"},
        True,
    )
    assert work.teams == {"11": "nlp", "a=b": "c"}, "theirs may have an equals sign"
    assert work.issuers == {f"https://login.microsoftonline.com/{TENANT}/v2.0", f"https://sts.windows.net/{TENANT}/"}
    assert work.metadata == f"https://login.microsoftonline.com/{TENANT}/v2.0/.well-known/openid-configuration"
    assert (work.canonical, work.loopback) == (f"entra:{TENANT}", "http://localhost")
    assert (lab.kind, lab.canonical, lab.loopback) == ("oidc", "https://idp.example/realms/lab", "http://127.0.0.1/callback")
    assert lab.metadata == "https://idp.example/realms/lab/.well-known/openid-configuration"
    assert parse("providers:\n").providers == {} == parse("").providers


#: What names more than one tenant, or none.
MANY = ("common", "organizations", "consumers", "contoso.com", TENANT.upper())


def one(**said):
    """The settings of one provider that is good but for what is said."""
    facts = {"issuer": "https://idp.example", "client_id": "c", "default_role": "user"} | said
    lines = [f"    {name}: {json.dumps(value)}\n" for name, value in facts.items() if value is not None]
    return "providers:\n  lab:\n" + "".join(lines)


def second(**said):
    """Another one behind it, named b."""
    return one(**said).partition("\n")[2].replace("lab:", "b:")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (one(kind="saml"), ["config.yaml:6", "providers.lab.kind", "entra or oidc", "'saml'"]),
        (one(issuer=None), ["config.yaml:3", "providers.lab.issuer"]), (one(issuer="http://idp.example"), ["config.yaml:3", "https://"]),
        (one(issuer="https://"), ["issuer"]), (one(issuer="https://u:hidden@idp.example"), ["issuer", "u:***@"]),
        (one(issuer="https://idp.example/?x"), ["issuer"]), (one(issuer="https://idp.example:99999"), ["issuer"]),
        (one(issuer="https://[x"), ["issuer"]),
        (one(client_id=None), ["providers.lab.client_id"]), (one(default_role=None), ["providers.lab.default_role", "user"]),
        (one(default_role="none"), ["config.yaml:5", "default_role"]),
        (one(algorithms="HS256"), ["algorithms", "RS256", "'HS256'"]), (one(algorithms="none"), ["algorithms"]),
        (one(algorithms="RS256, rs256"), ["algorithms"]),
        (one(redirect="http://gw.example/x"), ["redirect", "loopback"]), (one(redirect="https://127.0.0.1/x"), ["redirect"]),
        (one(redirect="http://127.0.0.1/x?y"), ["redirect"]), (one(redirect="http://127.0.0.1:0/"), ["redirect"]),
        (one(redirect="http://[x"), ["redirect"]), (one(graph="http://graph.example"), ["graph"]),
        (one(kind="entra"), ["tenant", "one tenant"]),
        *[(one(kind="entra", tenant=name), ["providers.lab.tenant", name]) for name in MANY],
        (one(kind="entra", tenant=TENANT, authority="ftp://x"), ["authority"]),
        (one(roles="admin"), ["providers.lab.roles", "names"]), (one(roles="a=b, a=c"), ["roles"]), (one(teams="=x"), ["teams"]),
        (one(colour="blue"), ["providers.lab.colour", "no such setting"]), (one(guests="perhaps"), ["guests", "true or false"]),
        ("providers: [a]", ["providers", "lines of `name:`"]), ("providers: x", ["providers"]), ("providers: {lab: }", ["providers.lab"]),
        ("providers: {lab: x}", ["providers.lab"]), ("providers: {lab: {}}", ["providers.lab"]),
        ("providers:\n  Lab: {}", ["config.yaml:2", "providers", "'Lab'"]), ("providers:\n  a.b: {}", ["'a.b'"]),
        ("providers:\n  ? [a]\n  : b", ["providers"]),
        (one() + "  lab:\n    issuer: https://x\n", ["providers.lab", "twice"]),
        (one() + one().partition("\n")[2].replace("lab:", "other:"), ["providers", "same issuer"]),
        (one() + second(issuer="https://x"), ["providers.b", "same place", "/callback/b"]),
        (one() + second(kind="entra", tenant=TENANT, issuer=None, redirect="http://localhost/callback"), ["providers.b", "same place"]),
        (one(issuer=f"https://sts.windows.net/{TENANT}/", redirect="http://127.0.0.1/x") + second(kind="entra", tenant=TENANT, issuer=None),
         ["providers.b", "same issuer"]),
        ("sessions:\n  recheck: 60s\n", ["sessions.recheck", "at least 5m", "'60s'"]),
        ("sessions:\n  unvouched: 1h\n", ["sessions.unvouched", "at least 1d", "'1h'"]),
        (GOOD, ["SECRET", "the environment has no"]),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named_with_its_place(text, parts):
    message = refusal(text, {"X": "y"})
    assert [part for part in parts if part not in message] == []
    assert "hidden" not in message


def test_what_is_shown_of_a_provider_has_no_secret_in_it():
    said = parse(one(client_secret="hidden")).providers["lab"]
    assert "hidden" not in repr(said) + str(said)


def test_names_of_others_may_have_commas_in_them():
    said = parse(one(teams="CN=nlp,OU=lab=nlp; CN=ops,OU=lab=ops")).providers["lab"]
    assert said.teams == {"CN=nlp,OU=lab": "nlp", "CN=ops,OU=lab": "ops"}
    assert parse(one(teams="CN=nlp,OU=lab=nlp;")).providers["lab"].teams == {"CN=nlp,OU=lab": "nlp"}


def test_tenants_of_one_cloud_may_lead_back_to_one_place():
    both = one(kind="entra", tenant=TENANT, issuer=None) + second(kind="entra", tenant="f" + TENANT[1:], issuer=None)
    assert len(parse(both).providers) == 2


def test_in_china_tokens_of_version_1_have_an_issuer_of_their_own():
    said = parse(one(kind="entra", tenant=TENANT, issuer=None, authority="https://login.partner.microsoftonline.cn")).providers["lab"]
    assert f"https://sts.chinacloudapi.cn/{TENANT}/" in said.issuers
    assert not any("windows" in issuer for issuer in said.issuers)


def test_on_this_machine_a_provider_may_be_without_tls():
    assert parse(one(issuer="http://127.0.0.1:9")).providers["lab"].issuer == "http://127.0.0.1:9"
    for address in ("http://localhost:9", "http://127.0.0.1.evil.example", "http://[::ffff:10.0.0.1]"):
        assert not providers.is_address(address)
    assert providers.is_address("http://[::1]:9")


def test_secrets_are_shown_to_nobody(tmp_path, capfd, monkeypatch):
    shown = {each.key: each for each in settings_view.effective(GOOD, "/d", {"SECRET": "s3cret"})}
    assert shown["providers.work.client_secret"].value == "***"
    assert "the environment" in shown["providers.work.client_secret"].origin
    assert (shown["providers.work.title"].value, shown["providers.lab.default_role"].value) == ("Contoso", "user")
    assert "s3cret" not in str(shown)
    monkeypatch.setenv("SECRET", "s3cret")
    (tmp_path / "config.yaml").write_text(GOOD)
    assert main(["config", "show", "--data-dir", str(tmp_path)]) == 0
    assert main(["config", "get", "providers.lab.issuer", "--data-dir", str(tmp_path)]) == 0
    said = capfd.readouterr().out
    assert "s3cret" not in said and said.splitlines()[-1] == "https://idp.example/realms/lab"


def test_one_setting_of_a_provider_is_changed_where_it_stands(tmp_path, capfd):
    text = one()
    assert settings_edit.change(text, "providers.lab.title", "Lab", Config, "f") == text + "    title: Lab\n"
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["config", "set", "providers.lab.default_role", "operator", "--data-dir", str(tmp_path)]) == 0
    assert parse(file.read_text()).providers["lab"].default_role == "operator"
    before = file.read_text()
    for key, value in (
        ("providers.lab.colour", "blue"),
        ("providers.Lab.title", "x"),
        ("providers.lab", "x"),
        ("providers.lab.kind", "saml"),
    ):
        assert main(["config", "set", key, value, "--data-dir", str(tmp_path)]) != 0, key
    assert file.read_text() == before
    assert "no setting" in capfd.readouterr().err


def test_what_was_read_is_written_so_that_it_is_read_again():
    found = parse(GOOD)
    assert parse(config.dump(found)).providers == found.providers


def test_the_schema_takes_what_is_taken():
    schema = file_schema.settings(Config)
    assert fits({"providers": {"lab": {"issuer": "https://x", "roles": "a=b", "guests": True}}}, schema)
    assert not fits({"providers": {"Lab": {}}}, schema)
    assert not fits({"providers": {"lab": {"colour": 1}}}, schema)
    assert not fits({"providers": {"lab": None}}, schema)


def test_lists_of_words_and_names():
    assert quantities.words(" a, b  a ") == ("a", "b")
    assert quantities.words("") == ()
    assert quantities.names(" a = b ,, c=d") == {"a": "b", "c": "d"}
    for text in ("a", "=b", "a=", "a=b,a=c", ",".join(f"{n}=x" for n in range(1001))):
        with pytest.raises(ValueError, match="must be"):
            quantities.names(text)
    with pytest.raises(ValueError, match="must be"):
        quantities.words(" ".join(map(str, range(101))))


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8)
)
def test_any_text_makes_providers_or_is_refused(said):
    text = "providers: " + json.dumps(said)
    try:
        found = parse(text).providers
    except ConfigError:
        return
    assert all(isinstance(each, Provider) for each in found.values())


def test_a_key_of_no_section_is_none():
    assert settings_file.kind_of("providers", Config) is None
    assert settings_file.kind_of("providers.lab", Config) is None
    assert settings_file.kind_of("providers.lab.issuer.x", Config) is None
    assert settings_file.kind_of("providers.lab.issuer", Config) is str
