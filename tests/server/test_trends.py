"""Trends of workers on the real server: noted while it runs, written when it stops, told after it has begun anew."""

from mindgw.store.tables import Worker
from mindgw_agent import wire
from tests.gateway.world import JSON, Box, engine
from tests.server.site import site
from tests.server.test_routes import ask, good, refused


async def test_what_is_noted_outlives_the_server(tmp_path):
    async with site(tmp_path / "data") as place:
        async with place.database.write() as session:
            session.add(Worker(id="box", name="box", public_key=b"k" * 32))
        box = Box(place.world, "box", engine("m", slots=2), gpus=[wire.Gpu("A", 8 * 2**30, 2 * 2**30, 0.5, 60.0)])
        client = await ask(place, "m")
        await place.server.app.state.trends.sample()
        before = await good(place, "GET", "/workers/box/trend")
        assert (before["worker"], before["step_s"]) == ("box", 10)
        assert {name: [n for n in column["high"] if n is not None] for name, column in before["columns"].items()} == {
            "slots": [2], "used": [1], "elsewhere": [0], "requests": [0], "tokens": [0],
            "gpu0.utilisation": [0.5], "gpu0.memory": [2 * 2**30], "gpu0.temperature": [60],
        }  # fmt: skip
        for query, param in (("since=x", "since"), ("step=x", "step"), ("since=400d&step=1h", None)):
            if param:
                assert (await refused(place, "GET", f"/workers/box/trend?{query}", 400))["param"] == param
            else:
                assert len((await good(place, "GET", f"/workers/box/trend?{query}"))["columns"]["used"]["mean"]) == 9601
        await refused(place, "GET", "/workers/absent/trend", 404)
        box.head(content_type=JSON, data=b'{"usage":{"prompt_tokens":1,"completion_tokens":50,"total_tokens":51}}')
        box.close()
        await place.until(lambda: client.end is not None)
    async with site(tmp_path / "data") as place:
        after = await good(place, "GET", f"/workers/box/trend?since={before['since']}")
        used = after["columns"]["used"]["high"]
        assert [n for n in used if n is not None][:1] == [1]


async def test_what_was_answered_is_counted(tmp_path):
    async with site(tmp_path / "data") as place:
        async with place.database.write() as session:
            session.add(Worker(id="box", name="box", public_key=b"k" * 32))
        box, trends = Box(place.world, "box"), place.server.app.state.trends
        await ask(place, "m")
        box.head(content_type=JSON, data=b'{"usage":{"prompt_tokens":1,"completion_tokens":50,"total_tokens":51}}')
        box.close()
        await place.until(lambda: trends._done.get("box") == [1, 50])
