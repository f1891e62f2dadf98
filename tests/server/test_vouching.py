"""What is good for what: keys of tokens, tokens that are none, words of the settings."""

import pytest

from mindgw.store.tables import Key
from tests.server.test_sign_on import provider, visit

__all__ = ["provider", "visit"]


async def test_nobody_ends_the_key_that_their_own_tokens_stand_for(visit, provider):
    async with visit() as desk:
        session = await desk.enter()
        (key,) = [key for key in await desk.rows(Key) if key.provider]
        assert await desk.code("DELETE", f"/api/v1/me/keys/{key.id}", session) == (409, "no_secret")
        assert (await desk.say("GET", "/api/v1/me", provider.token())).status_code == 200


async def test_yes_is_a_word_as_well(visit):
    async with visit(require="verified=true") as desk:
        assert (await desk.sign_on(verified=True)).status_code == 201
        assert await desk.refused(verified=False) == (401, "not_assigned")


@pytest.mark.parametrize("changes", [{"exp": 10**400}, {"iat": 10**400}, {"exp": 2**39}, {"exp": -(10**400)}])
async def test_moments_that_are_none_are_counted_against_whoever_sends_them(visit, provider, changes):
    async with visit() as desk:
        token = provider.token(**changes)
        for path in ("/v1/models", "/api/v1/me"):
            assert await desk.code("GET", path, token) == (401, "invalid_token")


@pytest.mark.parametrize("changes", [{"nonce": "n"}, {"at_hash": "x"}, {"c_hash": "x"}, {"typ": "ID"}, {"typ": "Refresh"}, {"azp": "gone"}])
async def test_a_token_that_says_who_has_signed_in_opens_nothing(visit, provider, changes):
    async with visit() as desk:
        assert await desk.code("GET", "/v1/models", provider.token(**changes)) == (401, "id_token")
        assert await desk.code("GET", "/api/v1/me", provider.token(**changes)) == (401, "id_token")
