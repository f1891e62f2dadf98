"""Who somebody is by what a provider says, in the shapes that providers say it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import claims
from mindgw.core.claims import Person, Shape, Unwelcome

TID = "8eaef023-2b34-4da1-9baa-8bc8c9d6a490"
OID = "0f7d3b1e-6f0d-4c55-9f0a-9d2f6d1f5c11"
V1, V2 = f"https://sts.windows.net/{TID}/", f"https://login.microsoftonline.com/{TID}/v2.0"
NLP, OPS = "11111111-0000-0000-0000-000000000001", "11111111-0000-0000-0000-000000000002"
ENTRA = Shape(
    is_entra=True, issuers=frozenset({V1, V2}), role_claims=("roles",), team_claims=("groups",),
    roles={"Gw.Admin": "admin", "Gw.User": "user"}, teams={NLP: "nlp", OPS: "ops"}, domain="work",
)  # fmt: skip
PLAIN = Shape(is_entra=False, issuers=frozenset({"https://idp.example"}), default_role="user", domain="lab")
ADA = {
    "oid": OID,
    "tid": TID,
    "sub": "pairwise",
    "name": "Ada",
    "preferred_username": "Ada@Corp.example",
    "roles": ["Gw.User"],
    "groups": [NLP],
}


def code(said, shape=ENTRA, **changes):
    found = claims.person({**said, **changes}, shape)
    return found.code if isinstance(found, Unwelcome) else ""


def but(shape, **changes):
    return Shape(**{name: changes.get(name, getattr(shape, name)) for name in shape.__struct_fields__})


def test_a_member_of_a_tenant():
    assert claims.person(ADA, ENTRA) == Person(OID, "ada@corp.example", "Ada", ("user",), ("nlp",))
    v1 = {**ADA, "upn": "ada@corp.example", "idp": V1}
    del v1["preferred_username"]
    assert claims.person(v1, ENTRA).address == "ada@corp.example"


def test_identity_is_the_oid_and_never_an_address():
    """An address that anybody may write into their account makes nobody somebody else."""
    evil = {**ADA, "oid": "ffffffff-0000-0000-0000-000000000000", "email": "boss@corp.example", "preferred_username": "not an address"}
    found = claims.person(evil, ENTRA)
    assert found.subject == "ffffffff-0000-0000-0000-000000000000"
    assert found.address == "ffffffff-0000-0000-0000-000000000000@work"
    for oid in (None, "", 7, "x" * 256, "a\nb", ["x"]):
        assert code(ADA, oid=oid) == "no_subject"


@pytest.mark.parametrize(
    "marks",
    [
        {"acct": 1}, {"acct": "1"}, {"idp": "https://sts.windows.net/other/"}, {"idp": "live.com"}, {"idp": ""},
        {"preferred_username": "ada_other.example#EXT#@corp.example"}, {"upn": "ada_other.example#ext#@corp.example"},
        {"unique_name": "x#EXT#y"},
    ],
)  # fmt: skip
def test_guests_are_refused_unless_they_may_come(marks):
    assert code(ADA, **marks) == "guest_refused"
    found = claims.person({**ADA, **marks}, but(ENTRA, guests=True))
    assert (found.subject, found.address) == (OID, f"{OID}@work"), "the address of a guest is vouched for by nobody"


def test_a_member_is_no_guest():
    for marks in ({"acct": 0}, {"idp": V1}, {"idp": V2}, {"acct": None}):
        assert code(ADA, **marks) == ""


def test_roles_and_teams_are_mapped_in_the_order_of_the_settings():
    both = claims.person({**ADA, "roles": ["Gw.User", "x", "Gw.Admin", 5], "groups": [OPS, NLP, OPS]}, ENTRA)
    assert (both.roles, both.teams) == (("admin", "user"), ("nlp", "ops"))
    assert code(ADA, roles=["gw.user"]) == "not_assigned"
    assert code(ADA, roles=None) == "not_assigned"
    assert claims.person({**ADA, "roles": []}, but(ENTRA, default_role="viewer")).roles == ("viewer",)
    assert claims.person({**ADA, "groups": "nothing"}, ENTRA).teams == ()
    assert claims.person({**ADA, "groups": {NLP: 1}}, ENTRA).teams == ()


@pytest.mark.parametrize("overage", [{"_claim_names": {"groups": "src1"}}, {"hasgroups": True}, {"hasgroups": "true"}])
def test_groups_that_are_left_out_are_not_taken_for_none(overage):
    said = {**ADA, **overage, "_claim_sources": {"src1": {"endpoint": "https://evil.example/getMemberObjects"}}}
    del said["groups"]
    assert code(said) == "groups_overage"
    assert claims.person(said, ENTRA, groups=[OPS]).teams == ("ops",)
    assert claims.person(said, but(ENTRA, teams={})).roles == ("user",), "nothing hangs on them"
    by_group = but(ENTRA, teams={}, role_claims=("groups",), roles={OPS: "operator"})
    assert code(said, by_group) == "groups_overage"
    assert claims.person(said, by_group, groups=[OPS]).roles == ("operator",)
    assert claims.person(said, by_group, groups=[]).code == "not_assigned"


def test_what_is_said_of_other_claims_does_not_matter():
    for names in ({"other": "src1"}, "groups", None, ["groups"]):
        assert code(ADA, _claim_names=names) == ""


@pytest.mark.parametrize(
    ("said", "shape", "roles", "teams"),
    [
        (  # Keycloak
            {"sub": "a", "realm_access": {"roles": ["gw-admin"]}, "groups": ["/nlp"]},
            {"role_claims": ("realm_access.roles",), "team_claims": ("groups",), "roles": {"gw-admin": "admin"}, "teams": {"/nlp": "nlp"}},
            ("admin",), ("nlp",),
        ),
        (  # Auth0 and Okta: the name of a claim may be an address, or one value alone
            {"sub": "auth0|1", "https://gw.example/roles": "ops", "groups": ["Everyone"]},
            {"role_claims": ("https://gw.example/roles",), "team_claims": ("groups",), "roles": {"ops": "operator"},
             "teams": {"Everyone": "all"}},
            ("operator",), ("all",),
        ),
        (  # GitLab
            {"sub": "17", "groups_direct": ["lab/nlp"]},
            {"role_claims": (), "team_claims": ("groups_direct",), "teams": {"lab/nlp": "nlp"}},
            ("user",), ("nlp",),
        ),
        ({"sub": "1", "hd": "example.org"}, {"require": {"hd": "example.org"}}, ("user",), ()),  # Google
        ({"sub": "1", "realm_access": "text", "a": {"b": 1}}, {"role_claims": ("realm_access.roles.x", "a.b")}, ("user",), ()),
    ],
)  # fmt: skip
def test_other_providers(said, shape, roles, teams):
    found = claims.person(said, but(PLAIN, **shape))
    assert (found.subject, found.roles, found.teams) == (said["sub"], roles, teams)


@pytest.mark.parametrize(
    ("gone", "roles", "teams"),
    [((), ("user",), ("nlp",)), (("roles",), None, ("nlp",)), (("groups",), ("user",), None), (("roles", "groups"), None, None)],
)
def test_a_token_that_need_not_be_complete_says_nothing_of_what_it_leaves_out(gone, roles, teams):
    said = {name: value for name, value in ADA.items() if name not in gone}
    found = claims.person(said, ENTRA, whole=False)
    assert (found.roles, found.teams) == (roles, teams)


def test_what_is_there_and_empty_is_said():
    assert claims.person({**ADA, "roles": [], "groups": []}, ENTRA, whole=False).code == "not_assigned"
    found = claims.person({**ADA, "roles": [], "groups": [None]}, but(ENTRA, default_role="user"), whole=False)
    assert (found.roles, found.teams) == (("user",), ())
    both = but(ENTRA, role_claims=("roles", "wids"))
    assert claims.person({**ADA, "wids": []}, both, whole=False).roles == ("user",)
    assert claims.person({"oid": OID}, but(ENTRA, roles={}, teams={}, default_role="user"), whole=False).roles == ("user",), (
        "nothing is mapped"
    )


def test_what_must_be_said_must_be_said_word_for_word():
    google = but(PLAIN, require={"hd": "example.org"})
    for hd in (None, "", "evil.example", "EXAMPLE.org", ["example.org"]):
        assert code({"sub": "1"}, google, hd=hd) == "not_assigned"
    yes = but(PLAIN, require={"verified": "true"})
    assert [code({"sub": "1"}, yes, verified=said) for said in (True, "true", False, "yes")] == ["", "", "not_assigned", "not_assigned"]


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ({"email": "Ada@Example.org", "email_verified": True}, "ada@example.org"), ({"email": "a@b.c", "email_verified": "true"}, "a@b.c"),
        ({"email": "a@b.c"}, "s1@lab"), ({"email": "a@b.c", "email_verified": False}, "s1@lab"),
        ({"email": "a@b.c", "email_verified": 1}, "s1@lab"),
        ({"email": 5, "email_verified": True}, "s1@lab"), ({"email": "admin@localhost", "email_verified": True}, "s1@lab"),
        ({"email": "bot@service", "email_verified": True}, "s1@lab"), ({"email": "a@b@c.d", "email_verified": True}, "s1@lab"),
        ({"email": "a" * 64 + "@" + "b." * 80 + "org", "email_verified": True}, "s1@lab"),
    ],
)  # fmt: skip
def test_only_an_address_that_was_verified_is_one(said, address):
    assert claims.person({"sub": "s1", **said}, PLAIN).address == address


def test_a_subject_that_is_no_part_of_an_address_gets_one_of_its_own():
    made = {claims.person({"sub": sub}, PLAIN).address for sub in ("auth0|1", "auth0|2", "A", "a", "x" * 65, "é")}
    assert len(made) == 6
    assert all(len(address.partition("@")[0]) in {1, 32} and address.endswith("@lab") for address in made)


@pytest.mark.parametrize(("said", "name"), [(None, ""), (5, ""), (" Ada ", "Ada"), ("a\nb", ""), ("\ud800", ""), ("x" * 300, "x" * 200)])
def test_names_are_for_people_to_read(said, name):
    assert claims.person({"sub": "s", "name": said}, PLAIN).name == name


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([NLP, "Gw.Admin", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["groups", "roles", "x"]), inner, max_size=3),
    max_leaves=6,
)
_NAMES = [
    "oid",
    "sub",
    "roles",
    "groups",
    "_claim_names",
    "hasgroups",
    "acct",
    "idp",
    "email",
    "email_verified",
    "preferred_username",
    "name",
]


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON), st.sampled_from([ENTRA, PLAIN]), st.booleans())
def test_any_claims_make_a_person_or_nobody(said, shape, whole):
    found = claims.person(said, shape, whole=whole)
    if isinstance(found, Person):
        assert found.subject == said["oid" if shape.is_entra else "sub"]
        if found.roles is None:
            assert not whole
            assert said.get("roles") is None
            return
        assert found.roles and set(found.roles) <= {*shape.roles.values(), shape.default_role}
        assert "Gw.Admin" in str(said.get("roles")) or "admin" not in found.roles
