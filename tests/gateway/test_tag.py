"""Billing tags: only the server that sealed one for a worker opens it again, whole, and no two are sealed alike."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mindgw.core.quota import PERIODS, UNITS, Budget, window
from mindgw.gateway.tag import LONGEST, BadTag, Seal, Tag
from mindgw.store.entries import SCOPES
from mindgw_agent import wire
from tests.gateway.world import Box, World, engine

SEALING = b"s" * 32
DAY = "2026-11-21"
TAG = Tag(
    "req-1", 1, "k", "u", "", "o", "m", "/v1/chat/completions", True, DAY, "p1", (1, 2), 100, 7, 1_700_000_000_000, 20,
    (Budget("key:k", "tokens", "2026-11"), Budget("org:o", "usd", "total")),
)  # fmt: skip

texts = st.text(st.characters(codec="utf-8"), max_size=30)
counts = st.integers(0, 2**53)
#: Scopes that the tag names elsewhere, some that it does not, and some that look like the short form of one.
scopes = st.sampled_from(["key:k", "user:u", "org:o", "model:m", "team:", "team:t", "key", "model", "", "x:y"]) | texts
budgets = st.lists(st.tuples(scopes, st.sampled_from(UNITS), texts), max_size=40).map(tuple)


def everything(model: str, id: str) -> Tag:
    """A tag of a request with a limit of each unit and period on everything that may have one."""
    facts = {"key_id": id, "user_id": id, "team_id": id, "org_id": id, "model": model}
    held = tuple(
        Budget(f"{kind}:{facts[field]}", unit, window(period, DAY))
        for kind, field in SCOPES.items()
        for unit in UNITS
        for period in PERIODS
    )
    assert len(held) == 30
    large = 2**63 - 1
    return replace(
        TAG, request_id="req-" + "f" * 24, **facts, budgets=held, estimate=large, epoch=2**31, started=large, queued=large, size=large
    )


@given(
    st.builds(
        replace, st.just(TAG), request_id=texts, attempt=counts, model=texts, stream=st.booleans(), estimate=counts, queued=counts,
        size=counts, budgets=budgets.filter(lambda all: not any(scope in SCOPES for scope, _, _ in all)),
    ),
    texts,
)  # fmt: skip
def test_a_tag_comes_back_as_it_was(tag, worker):
    seal = Seal(SEALING, 7)
    assert seal.open(seal.seal(tag, worker), worker) == tag


def test_what_was_sealed_is_opened_by_the_next_run_too():
    sealed = Seal(SEALING, 1).seal(TAG, "w")
    assert Seal(SEALING, 2).open(sealed, "w") == TAG
    assert Seal(SEALING).open(sealed, "w") == TAG


def test_nobody_else_opens_it():
    sealed = Seal(SEALING, 1).seal(TAG, "w")
    with pytest.raises(BadTag, match="did not make"):
        Seal(SEALING, 1).open(sealed, "v")
    with pytest.raises(BadTag):
        Seal(b"t" * 32, 1).open(sealed, "w")


@given(st.data())
def test_a_tag_that_was_changed_anywhere_does_not_open(data):
    sealed = bytearray(Seal(SEALING, 1).seal(TAG, "w"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadTag):
        Seal(SEALING, 1).open(bytes(sealed), "w")


@given(st.data())
def test_a_tag_that_was_cut_or_made_longer_does_not_open(data):
    sealed = Seal(SEALING, 1).seal(TAG, "w")
    cut = data.draw(st.integers(0, len(sealed) - 1))
    for changed in (sealed[:cut], sealed[cut + 1 :], sealed + data.draw(st.binary(min_size=1))):
        with pytest.raises(BadTag):
            Seal(SEALING, 1).open(changed, "w")


@given(st.binary(max_size=300))
def test_garbage_is_no_tag(garbage):
    with pytest.raises(BadTag):
        Seal(SEALING, 1).open(garbage, "w")


@pytest.mark.parametrize(
    "plain", [b"", b"\xc1", msgspec.msgpack.encode([1]), msgspec.msgpack.encode(["r"] * 17), msgspec.msgpack.encode({})]
)
def test_what_another_release_may_have_sealed_is_bad_and_no_accident(plain):
    seal = Seal(SEALING, 1)
    nonce = b"n" * 12
    sealed = nonce + seal._cipher.encrypt(nonce, plain, b"w")
    with pytest.raises(BadTag):
        seal.open(sealed, "w")


def test_a_worker_whose_name_is_no_text_opens_nothing():
    with pytest.raises(BadTag):
        Seal(SEALING, 1).open(Seal(SEALING, 1).seal(TAG, "w"), "\ud800")


# -- nonces ------------------------------------------------------------------------------------------------------------


def nonces(seal: Seal, count: int) -> list[bytes]:
    return [seal.seal(TAG, "w")[:12] for _ in range(count)]


def test_no_nonce_is_used_twice_whatever_is_restarted():
    """Each run has an epoch of its own; one process may have several."""
    seal = Seal(SEALING)
    seal.restart(1)
    made = nonces(seal, 300)
    seal.restart(2)
    made += nonces(seal, 300)
    for epoch in (3, 4, 2**32 - 1):
        made += nonces(Seal(SEALING, epoch), 300)
    assert len(set(made)) == len(made)


def test_an_epoch_that_begins_twice_goes_on_counting():
    seal = Seal(SEALING, 1)
    made = nonces(seal, 3)
    seal.restart(1)
    assert not set(made) & set(nonces(seal, 3))


def test_runs_that_have_one_epoch_because_the_database_was_put_back_share_no_nonce():
    made = [nonce for _ in range(50) for nonce in nonces(Seal(SEALING, 5), 20)]
    assert len(set(made)) == len(made)


def test_nothing_is_sealed_before_a_run_has_begun():
    with pytest.raises(AssertionError):
        Seal(SEALING).seal(TAG, "w")


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["m", "\N{GRINNING FACE}"])
def test_the_longest_names_and_every_possible_limit_fit_into_a_frame(letter):
    """512 characters is the longest name of a model that may be asked for."""
    seal = Seal(SEALING, 2**31)
    tag = everything(letter * 512, "i" * 26)
    sealed = seal.seal(tag, "w" * 26)
    assert len(sealed) <= LONGEST
    assert seal.open(sealed, "w" * 26) == tag
    meta = wire.Meta(request_id="r", path="/v1/chat/completions", model=tag.model, tag=sealed, length=0)
    assert wire.parse_open(wire.build_open(meta))[0].tag == sealed


def test_a_tag_that_no_frame_holds_is_not_made():
    """An agent may give its models whatever names it likes."""
    with pytest.raises(ValueError, match="billing tag"):
        Seal(SEALING, 1).seal(everything("m" * 4000, "i" * 26), "w")


def test_a_tag_knows_the_size_of_the_body_as_its_caller_sent_it():
    """Whatever its agent says later, the prompt was no larger."""
    world = World()
    box = Box(world, "box", engine("m"))
    client = world.ask("m", user="x" * 1000)
    tag = world.seal.open(box.requests[1].meta.tag, "box")
    assert (tag.request_id, tag.size) == (
        client.request_id,
        len(b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "user": ""}') + 1000,
    )


def test_usual_tags_are_short():
    assert len(Seal(SEALING, 1).seal(TAG, "w" * 26)) < 256
