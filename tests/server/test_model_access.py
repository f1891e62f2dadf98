"""Which models are for whom, on the real server: what is not for somebody is not there for them."""

import asyncio
import re

import pytest

from mindgw.store import keys
from mindgw.store.tables import Org
from mindgw_agent import wire
from tests.gateway.world import Box, engine
from tests.server.test_access import in_place

CHAT = "/v1/chat/completions"


class Somebody:
    """A user's key, in front of a box that has `llama` (also `gpt-4`) and `big`."""

    def __init__(self, place, key):
        self.place, self.headers = place, {"authorization": f"Bearer {key['key']}"}
        self.id = key["id"]

    @classmethod
    async def arrive(cls, place):
        models = [wire.Model("llama", aliases=["gpt-4"], kinds=["chat"]), wire.Model("big", kinds=["chat"])]
        Box(place.world, "box", engine("x", models=models))
        return cls(place, await place.new_key("k", user="ada@x.org", team="nlp"))

    async def models(self):
        found = await self.place.http.get("/v1/models", headers=self.headers)
        return [model["id"] for model in found.json()["data"]]

    async def ask(self, model):
        """The answer of a refusal, without its ids; None when it was let in."""
        before = {entry.id for entry in self.place.pipeline.lineup()}
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        asking = asyncio.create_task(self.place.http.post(CHAT, json=body, headers=self.headers))
        entered = await self.place.until(lambda: asking.done() or {entry.id for entry in self.place.pipeline.lineup()} - before)
        if entered is not True:
            self.place.pipeline.cancel_request(entered.pop())
            await self.place.settled(asking)
            return None
        answer = await asking
        assert answer.status_code == 404
        return re.sub(r'"request_id":"[^"]*"', "", answer.text).replace(model, "@")

    async def rule(self, effect, pattern, subject="user:ada@x.org"):
        made = await self.place.call("POST", "/access/rules", json={"subject": subject, "effect": effect, "pattern": pattern})
        assert made.status_code == 201, made.text
        return made.json()["id"]


@in_place
async def test_without_rules_every_model_is_for_everybody(place):
    ada = await Somebody.arrive(place)
    assert await ada.models() == ["big", "llama"]
    assert await ada.ask("llama") is None
    assert await ada.ask("gpt-4") is None


@pytest.mark.parametrize("subject", ["user:ada@x.org", "team:nlp", "role:user", "key"])
@pytest.mark.parametrize(("effect", "pattern", "left"), [("deny", "big", ["llama"]), ("allow", "gpt-*", ["llama"]), ("deny", "*", [])])
@in_place
async def test_what_is_not_for_somebody_is_not_there(place, subject, effect, pattern, left):
    ada = await Somebody.arrive(place)
    rule = await ada.rule(effect, pattern, f"key:{ada.id}" if subject == "key" else subject)
    assert await ada.models() == left
    unknown = await ada.ask("no-such-model")
    for model in ("llama", "gpt-4", "big"):
        wanted = "llama" in left if model != "big" else False
        assert await ada.ask(model) == (None if wanted else unknown)
        shown = await place.http.get(f"/v1/models/{model}", headers=ada.headers)
        assert shown.status_code == (200 if wanted else 404)
    assert (await place.http.get("/v1/models")).json()["data"]  # the admin's rights are their own
    await place.call("DELETE", f"/access/rules/{rule}")
    assert await ada.models() == ["big", "llama"]
    assert await ada.ask("big") is None


@in_place
async def test_a_rule_for_one_name_of_a_model_is_a_rule_for_the_model(place):
    ada = await Somebody.arrive(place)
    await ada.rule("deny", "gpt-4")
    assert await ada.ask("llama") is not None
    assert await ada.models() == ["big"]


@in_place
async def test_what_says_so_is_told(place):
    ada = await Somebody.arrive(place)
    rule = await ada.rule("deny", "llama*")
    said = (await place.call("GET", "/access/models?user=ada@x.org&model=gpt-4")).json()
    assert (said["allowed"], said["rule"]["id"], said["reason"]) == (False, rule, "a rule denies it")


@in_place
async def test_of_a_name_that_several_models_share_it_is_told_as_it_is_served(place):
    ada = await Somebody.arrive(place)
    Box(place.world, "shared", engine("s", id="s", models=[wire.Model("other", aliases=["gpt-4"], kinds=["chat"])]))
    await ada.rule("deny", "llama*")
    said = (await place.call("GET", "/access/models?user=ada@x.org&model=gpt-4")).json()
    assert (said["allowed"], said["rule"]) == (True, None)
    assert await ada.ask("gpt-4") is None


ROUTED = [
    ([], True, ["big", "llama"], "no rule speaks against it"),
    ([("deny", "big")], True, ["llama"], "no rule speaks against it"),
    ([("deny", "gpt-*")], True, ["big"], "no rule speaks against it"),
    ([("deny", "big"), ("deny", "llama")], False, [], "the route leads to big and llama, and a rule denies each of them"),
    ([("deny", "fast")], False, [], "a rule denies it"),
    ([("allow", "fast")], False, [], "the route leads to big and llama, and there are rules that allow models, and none of them these"),
    (
        [("allow", "fast"), ("deny", "big")],
        False,
        [],
        "the route leads to big and llama, and none of them is allowed",
    ),
    ([("allow", "llama")], False, [], "there are rules that allow models, and none of them this one"),
    ([("allow", "fast"), ("allow", "llama")], True, ["llama"], "a rule allows it"),
]


@pytest.mark.parametrize(("rules", "allowed", "models", "reason"), ROUTED)
@in_place
async def test_of_the_name_of_a_route_it_is_told_as_it_is_served(place, rules, allowed, models, reason):
    ada = await Somebody.arrive(place)
    assert (await place.call("POST", "/routes", json={"name": "fast", "to": ["big"], "fallbacks": ["llama"]})).status_code == 201
    made = [await ada.rule(*rule) for rule in rules]
    said = (await place.call("GET", "/access/models?user=ada@x.org&model=fast")).json()
    assert (said["allowed"], said["models"], said["reason"]) == (allowed, models, reason)
    assert (said["rule"] or {"id": None})["id"] in {*made, None}
    assert (said["rule"] is None) == (reason.startswith("no rule") or "there are rules" in reason)
    assert (await ada.ask("fast") is None) == allowed


@in_place
async def test_a_route_that_is_only_noted_or_leads_nowhere_else_changes_no_answer(place):
    ada = await Somebody.arrive(place)
    await ada.rule("deny", "big")
    for wish in ({"name": "noted", "match": "llama", "to": ["big"], "shadow": True}, {"name": "gpt-4", "strategy": "sticky"}):
        assert (await place.call("POST", "/routes", json=wish)).status_code == 201
    for name, models in (("llama", []), ("gpt-4", ["gpt-4"])):
        said = (await place.call("GET", f"/access/models?user=ada@x.org&model={name}")).json()
        assert (said["allowed"], said["models"]) == (True, models)


@in_place
async def test_a_viewer_may_look_and_not_ask(place):
    Box(place.world, "box", engine("m"))
    key = await place.new_key("eye", role="viewer")
    headers = {"authorization": f"Bearer {key['key']}"}
    refused = await place.http.post(CHAT, content=b"not even read", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_not_allowed")
    assert (await place.call("GET", "/workers", headers=headers)).status_code == 200


@in_place
async def test_the_queue_of_an_organisation_is_its_own(place):
    Box(place.world, "box", engine("m", slots=0))
    pepper, tenants = place.server.app.state.secrets.pepper, []
    async with place.database.write() as session:
        for org in ("one", "two"):
            session.add(Org(id=org, name=org))
            await session.flush()
            _, text = await keys.create(session, keys.NewKey(name=f"key of {org}", org_id=org, role="admin"), pepper)
            tenants.append({"authorization": f"Bearer {text}"})
    one, two = tenants
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    asking = asyncio.create_task(place.http.post(CHAT, json=body, headers=one))
    (entry,) = await place.until(place.pipeline.lineup)
    for headers, seen in ((one, [entry.id]), (two, []), (None, [entry.id])):  # the last one runs the server
        listed = (await place.call("GET", "/queue", headers=headers)).json()["items"]
        assert [item["id"] for item in listed] == seen
        assert (await place.call("GET", f"/queue/{entry.id}", headers=headers)).status_code == (200 if seen else 404)
    strange = await place.call("DELETE", f"/queue/{entry.id}", headers=two)
    nothing = await place.call("DELETE", f"/queue/{'y' * len(entry.id)}", headers=two)
    assert strange.status_code == nothing.status_code == 404
    assert strange.json()["error"]["message"].replace(entry.id, "@") == nothing.json()["error"]["message"].replace("y" * len(entry.id), "@")
    assert (await place.call("DELETE", f"/queue/{entry.id}", headers=one)).status_code == 200
    assert (await place.settled(asking)).status_code == 503
