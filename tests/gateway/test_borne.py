"""Tokens of others where keys are taken: known at once when they were good, asked about else, and forgotten with whom they are of."""

import asyncio
from datetime import timedelta

import pytest

from mindgw import clock, errors
from mindgw.gateway.auth import GRACE, TTL, Auth, Borne
from mindgw.store.keys import Change, Holder
from mindgw.store.tables import Key

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"


class Door:
    """Auth, and what tokens stand for."""

    def __init__(self):
        self.now = clock.utcnow()
        self.asked = []
        self.wrong = None
        self.welcome = True
        self.until = self.now + timedelta(hours=1)
        self.changes = [Change(1, "", "", self.now)]
        self.gate = None
        self.auth = Auth(self._find, self._changes, {1: b"p" * 32}, lambda: self.now, self._bear)

    async def _find(self, key_id):
        raise AssertionError("no key is looked for")

    async def _changes(self, since):
        return self.changes

    async def _bear(self, text):
        self.asked.append(text)
        if self.gate is not None:
            await self.gate.wait()
        if self.wrong is not None:
            raise self.wrong
        row = Key(id="k", name="sign-on", org_id="o", user_id="u", digest=b"d" * 32, provider="work")
        return Borne(Holder(row, user="ada@x.org", welcome=self.welcome), b"", self.until)


@pytest.fixture
def door():
    return Door()


async def test_a_token_is_asked_about_once(door):
    assert door.auth.known(TOKEN, 0.0) is None
    caller = await door.auth.look_up(TOKEN, 0.0)
    assert (caller.key_id, caller.user, caller.secret) == ("k", "ada@x.org", b"")
    assert door.auth.known(TOKEN, TTL - 1) is caller
    assert door.asked == [TOKEN]
    assert list(door.auth.used()) == ["k"]


async def test_it_is_known_by_all_of_its_text(door):
    await door.auth.look_up(TOKEN, 0.0)
    for other in (TOKEN + "A", TOKEN[:-1] + "Y", TOKEN[:40] + "A" + TOKEN[40:], TOKEN[:5] + "j" + TOKEN[6:]):
        assert door.auth.known(other, 0.0) is None


@pytest.mark.parametrize("text", ["", "x", "eyJ.eyJ.x", TOKEN + ".x", TOKEN + "=", TOKEN + "é", "mgw_x", "mgws_x", "eyJ" + "x" * 20_000])
async def test_what_is_neither_key_nor_token_is_asked_about_nowhere(door, text):
    with pytest.raises(errors.Unauthenticated):
        door.auth.known(text, 0.0)
    with pytest.raises(errors.Unauthenticated):
        await door.auth.look_up(text, 0.0)
    assert door.asked == []


async def test_without_providers_tokens_are_no_keys(door):
    door.auth._bear = None
    for ask in (lambda: door.auth.known(TOKEN, 0.0), lambda: asyncio.ensure_future(door.auth.look_up(TOKEN, 0.0))):
        with pytest.raises(errors.Unauthenticated, match=r"eyJh\*\*\*"):
            await ask()


async def test_its_end_is_its_end(door):
    await door.auth.look_up(TOKEN, 0.0)
    door.now += timedelta(seconds=3599)
    assert door.auth.known(TOKEN, 1.0) is not None
    door.now += timedelta(seconds=1)
    assert door.auth.known(TOKEN, 1.0) is None
    door.wrong = errors.Unauthenticated("over", code="expired_token")
    with pytest.raises(errors.Unauthenticated, match="over"):
        await door.auth.look_up(TOKEN, 1.0)
    door.now -= timedelta(seconds=10)
    assert door.auth.known(TOKEN, 1.0) is None, "what was refused is not remembered as good"


async def test_whoever_may_not_come_does_not(door):
    door.welcome = False
    with pytest.raises(errors.Unauthenticated) as refused:
        await door.auth.look_up(TOKEN, 0.0)
    assert refused.value.code == "user_disabled"
    assert door.auth.known(TOKEN, 0.0) is None


async def test_a_change_of_its_person_has_it_asked_about_again(door):
    await door.auth.check(0.0)
    await door.auth.look_up(TOKEN, 0.0)
    door.changes = [*door.changes, Change(2, "users", "other", door.now)]
    await door.auth.check(1.0)
    assert door.auth.known(TOKEN, 1.0) is not None
    door.changes = [door.changes[-1], Change(3, "users", "u", door.now)]
    await door.auth.check(2.0)
    assert door.auth.known(TOKEN, 2.0) is None


async def test_what_is_forgotten_while_it_is_asked_about_is_asked_about_again(door):
    door.gate = asyncio.Event()
    asking = asyncio.ensure_future(door.auth.look_up(TOKEN, 0.0))
    await asyncio.sleep(0)
    door.auth.forget_where(lambda caller: caller.user_id == "u")
    door.gate.set()
    await asking
    assert len(door.asked) == 2


async def test_while_the_database_is_away_who_was_good_still_is(door):
    await door.auth.look_up(TOKEN, 0.0)
    door.wrong = errors.Draining()
    assert (await door.auth.look_up(TOKEN, TTL + 1)).user == "ada@x.org"
    with pytest.raises(errors.Draining):
        await door.auth.look_up(TOKEN + "A", TTL + 1)
    with pytest.raises(errors.Draining):
        await door.auth.look_up(TOKEN, TTL + GRACE + 1)


async def test_a_provider_that_is_away_is_no_word_against_anybody(door):
    """It is not asked about those who are known; who is not known hears whose fault it is."""
    door.wrong = errors.ProviderUnreachable(retry_after=10)
    with pytest.raises(errors.ProviderUnreachable):
        await door.auth.look_up(TOKEN, 0.0)
