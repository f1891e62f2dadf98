"""The servers that an operator knows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.client import contexts
from mindgw.client.contexts import Context, Contexts
from mindgw.client.errors import ClientError, Missing

HOME = Context("home", "http://127.0.0.1:8420", fingerprint="f1")
OFFICE = Context("office", "https://gpu.example:8443", "PEM", "f2")


def test_what_is_saved_is_loaded(tmp_path):
    said = Contexts().put(HOME).put(OFFICE)
    contexts.save(said, tmp_path / "new")
    assert contexts.load(tmp_path / "new") == said
    assert (tmp_path / "new" / "contexts.json").stat().st_mode & 0o777 == 0o600


def test_nothing_is_known_at_first(tmp_path):
    assert contexts.load(tmp_path) == Contexts()
    assert Contexts().get() is None


def test_the_one_put_last_is_the_current_one():
    known = Contexts().put(HOME).put(OFFICE)
    assert known.get() == OFFICE
    assert known.get("home") == HOME
    with pytest.raises(Missing, match="attic") as refused:
        known.get("attic")
    assert refused.value.hint == "known are: home, office"


def test_a_context_is_found_by_its_address_the_current_one_first():
    twin = Context("twin", HOME.url)
    known = Contexts().put(HOME).put(twin)
    assert known.at(HOME.url) == twin
    assert known.at("http://127.0.0.1:1") is None


def test_a_context_that_goes_leaves_no_successor():
    known = Contexts().put(HOME).put(OFFICE)
    assert known.without("office").get() is None
    assert known.without("home").get() == OFFICE
    assert known.put(Context("home", "http://127.0.0.1:9")).items["home"].url == "http://127.0.0.1:9"


def test_fields_of_a_newer_release_are_ignored(tmp_path):
    text = {"current": "home", "newer": 1, "items": {"home": {"url": "http://127.0.0.1:1", "colour": 7}}}
    (tmp_path / "contexts.json").write_text(json.dumps(text))
    assert contexts.load(tmp_path).get() == Context("home", "http://127.0.0.1:1")


def test_a_current_one_that_is_gone_is_none(tmp_path):
    (tmp_path / "contexts.json").write_text('{"current": "gone", "items": {}}')
    assert contexts.load(tmp_path) == Contexts()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
SHAPED = st.fixed_dictionaries({"current": JSON, "items": st.dictionaries(st.text(), st.fixed_dictionaries({"url": JSON}) | JSON) | JSON})


@given(st.one_of(st.binary(), JSON.map(lambda said: json.dumps(said).encode()), SHAPED.map(lambda said: json.dumps(said).encode())))
def test_any_file_gives_contexts_or_a_plain_error(tmp_path_factory, content):
    directory = tmp_path_factory.mktemp("config")
    (directory / "contexts.json").write_bytes(content)
    try:
        found = contexts.load(directory)
    except ClientError as refused:
        assert "damaged" in refused.message  # noqa: PT017 - either way is good
    else:
        assert all(isinstance(context.url, str) for context in found.items.values())


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    assert contexts.load(tmp_path / "file") == Contexts()
    with pytest.raises(ClientError, match=r"cannot write .*contexts\.json"):
        contexts.save(Contexts(), tmp_path / "file")
