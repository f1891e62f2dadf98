"""Tags of workers over HTTP on the real server."""

from mindgw.store.tables import Worker
from tests.server.test_access import in_place


@in_place
async def test_tags_are_set_and_taken_away_by_whoever_runs_the_workers(place):
    async with place.database.write() as session:
        session.add(Worker(id="w1", name="box", public_key=b"p" * 32))
    path = "/workers/box/tags"
    tagged = await place.call("PATCH", path, json={"tags": {"region": "eu", "pool": "gpu"}}, headers={"if-match": "1"})
    assert (tagged.status_code, tagged.json()["tags"], tagged.json()["version"]) == (200, {"region": "eu", "pool": "gpu"}, 2)
    assert (await place.call("GET", "/workers/box")).json()["tags"] == tagged.json()["tags"]
    assert (await place.call("PATCH", path, json={"tags": {"region": None}})).json()["tags"] == {"pool": "gpu"}
    for body in ({"tags": {}}, {"tags": {"worker": "x"}}, {"tags": {"a b": "x"}}, {"tags": {"a": "x y"}}, {"tags": {"a": 1}}, {}):
        assert (await place.call("PATCH", path, json=body)).status_code == 400, body
    assert (await place.call("PATCH", "/workers/gone/tags", json={"tags": {"a": "b"}})).status_code == 404
    assert (await place.call("PATCH", path, json={"tags": {"a": "b"}}, headers={"if-match": "1"})).status_code == 412
    for number in range(19):
        assert (await place.call("PATCH", path, json={"tags": {f"t{number}": "x"}})).status_code == 200
    full = await place.call("PATCH", path, json={"tags": {"more": "x"}})
    assert (full.status_code, full.json()["error"]["code"]) == (409, "too_many_tags")
    assert len((await place.call("GET", "/workers/box")).json()["tags"]) == 20
