"""`mindgw routes` and `mindgw workers tags`, in front of the real server; and routes that a file declares."""

import asyncio
import itertools
import json

import pytest
from hypothesis import given

from mindgw.client import kinds
from mindgw.core import routing
from mindgw.store.tables import Worker
from mindgw_agent import wire
from tests.core.test_routing import targets

NUMBERS = itertools.count()


def read(result):
    assert result.code in {0, 3}, result.err
    return json.loads(result.out)


@pytest.fixture
def name(admin):
    return f"fast{next(NUMBERS)}"


@pytest.fixture
def worker(gateway):
    """A worker that is away."""
    called = f"box{next(NUMBERS)}"

    async def add():
        async with gateway.server.database.write() as session:
            session.add(Worker(name=called, public_key=b"k" * 32))

    asyncio.run_coroutine_threadsafe(add(), gateway.loop).result(30)
    return called


def test_a_route_is_made_changed_and_taken_away_with_the_ways_back(admin, name):
    words = ("--to", "qwen3:8b=90", "--to", "@pool=cpu=10", "--fallback", "llama3", "--pin", "worker=a", "--require", "zone=lab")
    made = admin("routes", "create", name, *words, "--strategy", "score", "--spill", "--hedge")
    assert made.code == 0, made.err
    assert f"mindgw routes test {name}" in made.err
    assert f"mindgw routes remove {name}" in made.err
    shown = read(admin("routes", "show", name, "--json"))
    assert (shown["to"], shown["fallbacks"], shown["pins"], shown["require"]) == (
        ["qwen3:8b=90", "@pool=cpu=10"], ["llama3"], ["worker=a"], ["zone=lab"],
    )  # fmt: skip
    assert (shown["strategy"], shown["spill"], shown["hedge"], shown["shadow"]) == ("score", True, True, False)
    assert "score, spill, hedge" in admin("routes", "list").out
    assert "a stream that is late to begin is tried on a second worker" in admin("routes", "test", name).err
    changed = admin("routes", "set", name, "--to", "qwen4:8b", "--fallback", "none", "--strategy", "none", "--no-spill", "--no-hedge")
    assert changed.code == 0, changed.err
    undo = f"mindgw routes set {name} --to qwen3:8b=90 --to @pool=cpu=10 --fallback llama3 --strategy score --spill --hedge"
    assert f"Undo: {undo}" in changed.err
    shown = read(admin("routes", "show", name, "--json"))
    assert (shown["to"], shown["fallbacks"], shown["strategy"], shown["spill"], shown["version"]) == (["qwen4:8b"], [], "", False, 2)
    assert shown["hedge"] is False
    assert admin("routes", "remove", name).code == 2  # nobody can be asked
    gone = admin("routes", "remove", name, "--yes")
    assert f"Undo: mindgw routes create {name} --to qwen4:8b --pin worker=a --require zone=lab" in gone.err
    assert admin("routes", "show", name).code == 6


@pytest.mark.parametrize("words", ["routes list", "route list", "routes ls"])
def test_the_list_shows_them_and_names_alone(admin, name, words):
    admin("routes", "create", name, "--to", "m", "--match", f"{name}-*", "--shadow")
    listed = admin(*words.split())
    assert listed.out.splitlines()[0].split() == ["NAME", "FOR", "TO", "FALLBACKS", "HOW"]
    line = next(line for line in listed.out.splitlines() if line.startswith(f"{name} "))
    assert line.split() == [name, f"{name}-*", "m", "–", "shadow"]
    assert name in admin(*words.split(), "-q").out.split()
    assert name in {item["name"] for item in read(admin(*words.split(), "--json"))["items"]}


def test_what_makes_no_sense_is_refused_with_a_code(admin, name):
    assert admin("routes", "create", name).code == 2
    assert "MODEL@TAG=VALUE" in admin("routes", "create", name, "--to", "a b").err
    assert admin("routes", "create", name, "--to", "m").code == 0
    assert admin("routes", "create", name, "--to", "m").code == 7
    assert admin("routes", "set", name).code == 2
    assert admin("routes", "set", "absent", "--spill").code == 6


def test_a_test_sends_nothing_and_says_where_it_would_go(admin, name):
    admin("routes", "create", name, "--to", "absent@pool=gpu", "--fallback", "nowhere")
    tried = admin("routes", "test", name)
    assert (tried.code, tried.out.strip()) == (3, "refused: no_worker_available")
    assert "1. absent@pool=gpu: no worker of those that it may go to is connected" in tried.err
    assert "2. nowhere: no worker that serves it is connected" in tried.err
    assert admin("routes", "test", name, "-q").err == ""
    assert read(admin("routes", "test", name, "--json", "--kind", "embeddings"))["way"]["kind"] == "embeddings"
    assert read(admin("routes", "test", name, "--as", "admin@localhost", "--json"))["user"] == "admin@localhost"
    assert admin("routes", "test", name, "--as", "nobody@x.org").code == 6


def test_of_workers_that_take_nothing_a_test_says_so(admin, name, live):
    model = f"{name}-m"
    admin("routes", "create", name, "--to", model)
    live(name, wire.EngineReport(id="e", kind="fake", healthy=True, slots=2, models=[wire.Model(model, kinds=["chat"])]))
    tried = admin("routes", "test", name)
    assert (tried.code, tried.out.strip()) == (0, model)
    assert admin("workers", "drain", name, "--yes").code == 0
    tried = admin("routes", "test", name)
    assert (tried.code, tried.out.strip()) == (3, f"waits: {model}")
    assert "none of its workers takes requests: it waits" in tried.err
    assert "requests for it wait: none of its workers" in admin("routes", "set", name, "--spill").err


def test_tags_come_and_go(admin, worker):
    done = admin("workers", "tags", worker, "zone=lab", "pool=gpu")
    assert done.code == 0, done.err
    assert f"Undo: mindgw workers tags {worker} zone- pool-" in done.err
    changed = admin("workers", "tags", worker, "zone=eu", "pool-")
    assert f"Undo: mindgw workers tags {worker} zone=lab pool=gpu" in changed.err
    assert read(admin("workers", "tags", worker, "--json"))["tags"] == {"zone": "eu"}
    assert "zone=eu" in admin("workers", "show", worker).out
    for wrong in ("zone", "-", "=x", "zone=", "zone=a-b-="):
        assert admin("workers", "tags", worker, "--", wrong).code in {1, 2}, wrong
    assert admin("workers", "tags", "absent", "a=b").code == 6


def test_routes_are_declared(admin, name, tmp_path):
    file = tmp_path / "gw.yaml"
    route = f"{name}: {{to: ['pool:gpu=080', 'm@zone=b,zone=a'], fallbacks: n, pins: [zone=lab, worker=a], spill: true, hedge: true}}"
    file.write_text(f"mindgw: v1\nroutes:\n  {route}\n")
    assert admin("config", "diff", str(file)).code == 3
    assert admin("config", "apply", "-f", str(file), "--dry-run").code == 0
    assert admin("routes", "show", name).code == 6
    assert admin("config", "apply", "-f", str(file)).code == 0
    shown = read(admin("routes", "show", name, "--json"))
    assert (shown["to"], shown["hedge"]) == (["@pool=gpu=80", "m@zone=a,zone=b"], True)
    assert admin("config", "diff", str(file)).code == 0
    exported = admin("config", "export", "--only", "routes").out
    again = tmp_path / "again.yaml"
    again.write_text(exported)
    assert admin("config", "diff", str(again)).code == 0
    file.write_text(f"mindgw: v1\nroutes:\n  {name}: {{to: m, spill: false}}\n")
    assert admin("config", "apply", "-f", str(file)).code == 0
    assert read(admin("routes", "show", name, "--json"))["to"] == ["m"]
    file.write_text("mindgw: v1\nroutes: {}\n")
    assert admin("config", "apply", "-f", str(file), "--prune", "--yes").code == 0
    assert read(admin("routes", "list", "--json"))["items"] == []


@given(targets)
def test_a_target_has_the_form_that_the_server_gives_it(one):
    text = routing.written(one)
    assert kinds.target(f" {text} ") == text


def test_what_is_printed_to_be_typed_is_quoted(admin, name):
    odd = f"{name} a; touch pwned"
    made = admin("routes", "create", odd, "--to", "m")
    assert f"mindgw routes test '{odd}'. Undo: mindgw routes remove '{odd}'" in made.err
    assert f"mindgw routes create '{odd}' --to m" in admin("routes", "remove", odd, "--yes").err


def test_a_route_that_leads_nowhere_as_things_are_is_made_with_a_warning(admin, name):
    made = admin("routes", "create", name, "--to", "absent")
    assert made.code == 0
    assert "as things are, requests for it are refused: No worker that the route" in made.err
    assert "as things are" not in admin("routes", "set", name, "--shadow").err
