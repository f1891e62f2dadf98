"""`mindgw users link` and what goes with it, and signing out everywhere, as they are typed."""

import json

import pytest

from tests.faces.test_sign_on import _as_before, browser, lab, provider
from tests.identity_provider import OID

__all__ = ["_as_before", "browser", "lab", "provider"]

ADA = "ada@corp.example"


@pytest.fixture
def operator(cli, lab, monkeypatch):
    """`mindgw` for whoever runs the lab."""

    def said(*words):
        with monkeypatch.context() as patch:
            patch.setenv("MINDGW_TOKEN", lab.key)
            patch.setenv("MINDGW_SERVER", lab.url)
            return cli(*words)

    return said


def test_somebody_who_is_here_signs_in_by_a_provider_once_they_are_linked(cli, lab, operator, browser):
    assert operator("users", "invite", ADA, "-q").code == 0
    refused = cli("login", lab.url, "--provider", "work")
    assert refused.code == 5
    line = f"mindgw users link {ADA} work {OID}"
    assert line in refused.err
    assert operator(*line.split()[1:], "--no-input").code == 2, "nobody is linked by mistake"
    linked = operator(*line.split()[1:], "--yes")
    assert linked.code == 0, linked.err
    assert f"mindgw users unlink {ADA} work" in linked.err
    (shown,) = json.loads(operator("users", "identities", ADA, "--json").out)["items"]
    assert (shown["provider"], shown["subject"]) == ("work", OID)
    assert OID in operator("users", "identities", ADA).out
    done = cli("login", lab.url, "--provider", "work")
    assert done.code == 0, done.err
    assert ADA in done.err
    assert operator("users", "unlink", ADA, "play", "--yes").code == 6
    assert operator("users", "unlink", ADA, "work", "--yes").code == 0
    assert cli("whoami").code == 4
    assert operator("users", "remove", ADA, "--yes").code == 0


def test_one_signs_out_everywhere(cli, lab, operator, browser):
    for name in ("here", "there"):
        assert cli("login", lab.url, "--provider", "work", "--name", name).code == 0
    assert len(json.loads(operator("users", "sessions", ADA, "--json").out)["items"]) == 2
    assert cli("logout", "--everywhere").code == 0
    assert json.loads(operator("users", "sessions", ADA, "--json").out)["items"] == []
