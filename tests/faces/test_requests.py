"""`mindgw requests` and `mindgw why`, against the real server, and against a FAKE of one that tells what this one does not."""

import asyncio
import json
import os
from datetime import timedelta

import pytest

from mindgw import clock, config
from mindgw.cli import telling
from mindgw.store import ids, people, stories
from mindgw.store.database import Database
from mindgw.store.stories import Choice, Document, Limit, Moment, Story


def read(result, code=0):
    assert result.code == code, result.err
    return json.loads(result.out)


FAILED_OVER = Document(
    endpoint="/v1/chat/completions",
    stream=True,
    size=2048,
    prompt=700,
    priority="normal",
    route="best",
    limits=(Limit("model:m", "tokens", 5000, "day", "block"), Limit("key:k", "rpm", 60)),
    billed="settled",
    cost=1500,
    source="engine",
    cached=300,
    moments=(
        Moment(0, "arrived"),
        Moment(100, "identified", "memory"),
        Moment(900, "admitted"),
        Moment(1000, "waited", position=3, eta=12.0),
        Moment(5_000_000, "stood", position=2, eta=7.0),
        Moment(
            9_000_000, "sent", "first", "w1", "m",
            choice=Choice("score", (("w1", 0.84), ("w2", 1.9), ("w3", 2.0), ("w4", 3.0), ("w5", 4.0)), 700, 300, 1.5, 0.25, 0.4),
        ),
        Moment(14_000_000, "failed", worker="w1", code="engine_failed", status=500),
        Moment(14_000_000, "sent", "retry", "w2", "m"),
        Moment(14_500_000, "first_byte", worker="w2"),
        Moment(16_000_000, "ended", worker="w2", code="done", status=200),
    ),
)  # fmt: skip


EXPECTED = "300 of about 700 tokens remembered there, 1.5s to load the model, 250ms to read what was there before"
SPANS = (
    "0.9ms until it was here, 9s in the queue, 5s with w1, for nothing, 500ms to the first byte of w2, "
    "1.5s for 44 tokens of w2, 28.7 tokens/s"
)
PAID = "310 tokens in (300 of them remembered) and 44 out, served by w2 and counted by: engine"


@pytest.fixture
def story(gateway, admin):
    """Puts a story into the server's database; the id of its request."""

    def put(document=FAILED_OVER, ago=0.0, **fields):
        at = clock.utcnow() - timedelta(seconds=ago)
        facts = {
            "id": ids.new_id(at.timestamp()), "request_id": f"req-{os.urandom(6).hex()}", "key_id": "0123456789", "asked": "best",
            "model": "m", "worker_id": "w2", "outcome": "done", "status": 200, "attempts": 2, "tokens_in": 310, "tokens_out": 44,
            "queued_ms": 9000, "ttft_ms": 14_500, "total_ms": 16_000, "speed": 28.7, "started_at": at - timedelta(seconds=16),
            "document": stories.pack(document),
        }  # fmt: skip

        async def work():
            database = Database(config.load(None, gateway.data_dir).database_url)
            async with database.write() as session:
                own = (await people.get_or_create_org(session)).id
                await stories.append(session, [Story(**(facts | {"org_id": own} | fields))])
            await database.close()

        asyncio.run(work())
        return facts["request_id"]

    return put


def test_why_tells_it_in_sentences(admin, story):
    request_id = story()
    said = admin("why", request_id)
    assert said.code == 0, said.err
    heading, _, *lines = said.out.splitlines()
    assert heading.startswith(f"{request_id} of key 0123456789 asked for a stream of best, 20")
    assert lines == [
        "   +0.000s  It came: 2,048 bytes, about 700 tokens.",
        "   +0.000s  Its key was known.",
        "   +0.001s  It was taken in, as normal. It goes by the route best. It falls under model:m 5000 tokens/day, key:k 60 rpm.",
        "   +0.001s  No slot was free: it waited at place 3, its turn was expected in 12s.",
        "   +5.000s  It stood at place 2, its turn was expected in 7s.",
        f"   +9.000s  It was sent to w1 (m), by score: w1 840ms, w2 1.9s, w3 2s, w4 3s and 1 more; expected: {EXPECTED}.",
        "  +14.000s  w1 failed it: engine_failed, the engine's status 500.",
        "  +14.000s  It was sent on to w2 (m), the only one with a free slot.",
        "  +14.500s  The first byte of an answer came from w2.",
        "  +16.000s  It was over: done, status 200.",
        "",
        "why this worker  w2 was the only one with a free slot; not w1: engine_failed",
        f"why so slow      16s: {SPANS}; most of it in the queue",
        f"who was paid     key 0123456789 pays 0.0015 USD for {PAID}; one other try cost nothing",
    ]


def test_the_same_is_there_for_programs(admin, story):
    request_id = story()
    told = read(admin("why", request_id, "--json"))
    assert told == read(admin("requests", "show", request_id, "-o", "json"))
    assert [moment["what"] for moment in told["moments"]] == [moment.what for moment in FAILED_OVER.moments]
    assert told["moments"][0] == {"at_s": 0.0, "what": "arrived"}, "what says nothing is left out"
    assert admin("why", request_id, "-q").out.split() == [request_id]


def test_show_has_the_facts_and_the_moments(admin, story):
    request_id = story()
    shown = admin("requests", "show", request_id).out
    for fact in ("route", "best", "310→44", "28.7 tokens/s", "model:m 5000 tokens/day, key:k 60 rpm", "0.0015", "+14.000s  w1 failed it"):
        assert fact in shown, fact
    assert admin("request", "get", request_id, "-q").out.split() == [request_id]


def test_the_list_is_of_what_was_asked_for(admin, story):
    name = f"m{os.urandom(4).hex()}"
    good = story(asked=name)
    bad = story(ago=1, asked=name, outcome="failed", status=502, error_code="engine_failed", worker_id="", total_ms=70)
    old = story(ago=4000, asked=name)
    head, *rows = admin("requests", "list", "--model", name).out.splitlines()
    assert head.split() == ["WHEN", "STATUS", "ENDED", "WHO", "MODEL", "WORKER", "TRIES", "TOKENS", "WAITED", "TTFT", "TOTAL", "ID"]
    assert [row.split()[-1] for row in rows] == [good, bad, old]
    assert rows[1].split()[2:] == ["502", "failed", "engine_failed", "0123456789", name, "–", "2", "310→44", "9s", "14.5s", "70ms", bad]
    for words, found in (
        (["--status", "5xx"], [bad]), (["--outcome", "done"], [good, old]), (["--slow", "5s"], [good, old]),
        (["--since", "1h"], [good, bad]),
        (["--limit", "1"], [good]), (["--until", "30m"], [old]), (["--user", "nobody@x.org"], []),
    ):  # fmt: skip
        assert admin("requests", "ls", "--model", name, "-q", *words).out.split() == found, words


def test_the_tail_ends_with_the_newest(admin, story):
    name = f"m{os.urandom(4).hex()}"
    made = [story(ago=number, asked=name) for number in (3, 2, 1)]
    lines = admin("requests", "tail", "--model", name, "-n", "2").out.splitlines()
    assert [line.split()[-1] for line in lines] == made[1:]
    assert admin("requests", "tail", "--model", name, "-n", "0").out == ""
    told = [json.loads(line)["id"] for line in admin("requests", "tail", "--model", name, "--json").out.splitlines()]
    assert told == made


def test_the_tail_follows(admin, story, monkeypatch):
    """Each is told once, though what was written late is looked for again and again."""
    name = f"m{os.urandom(4).hex()}"
    made, looks = [story(asked=name, ago=30)], iter([2, 1, 0, "stop"])

    def later(seconds):
        step = next(looks)
        if step == "stop":
            raise KeyboardInterrupt
        made.extend(story(asked=name, ago=seconds + number) for number in range(step))

    monkeypatch.setattr("mindgw.cli.requests.time.sleep", later)
    followed = admin("requests", "tail", "-f", "--model", name, "-q", "--interval", "0.5")
    assert followed.code == 130
    assert sorted(followed.out.split()) == sorted(made) and followed.out.split()[0] == made[0]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_tail_follows_from_where_it_began(admin, story, monkeypatch, number):
    """What was over a moment before is looked at again, and is no news: only the last lines of it were asked for."""
    name = f"m{os.urandom(4).hex()}"
    past = [story(asked=name, ago=seconds) for seconds in (4, 3, 2, 1)]
    fresh, looks = [], iter([0, 1, "stop"])

    def later(_seconds):
        step = next(looks)
        if step == "stop":
            raise KeyboardInterrupt
        fresh.extend(story(asked=name, ago=0) for _ in range(step))

    monkeypatch.setattr("mindgw.cli.requests.time.sleep", later)
    followed = admin("requests", "tail", "-f", "-n", str(number), "--model", name, "-q")
    assert followed.out.split() == past[4 - number :] + fresh


@pytest.mark.parametrize("words", [["why"], ["requests", "show"]])
@pytest.mark.parametrize("name", ["nothing", "a/b?c&d=e#f", "x" * 300])
def test_one_that_nobody_knows_exits_6(admin, words, name):
    refused = admin(*words, name)
    assert (refused.code, refused.out) == (6, "")


@pytest.mark.parametrize("words", [["--status", "9xx"], ["--slow", "fast"], ["--since", "someday"], ["--outcome", "good"]])
def test_what_cannot_be_asked_for_is_said(admin, words):
    refused = admin("requests", "list", *words)
    assert refused.code == 2 and words[0].removeprefix("--") in refused.err


def test_whoever_may_not_see_those_of_others_sees_their_own(admin, story, monkeypatch):
    made = read(admin("keys", "create", "mine", "--role", "user", "--json"))
    mine, others = story(key_id=made["id"]), story()
    monkeypatch.setenv("MINDGW_TOKEN", made["key"])
    assert "w1 failed it" in admin("why", mine).out
    assert admin("why", others).code == 6
    assert admin("requests", "list").code == 5


def test_names_from_elsewhere_drive_no_terminal(admin, story):
    document = Document(moments=(Moment(0, "sent", "first", "w", "m\x1b[2J"), Moment(1, "what_comes_later"), Moment(2, "ended")))
    said = admin("why", story(document, asked="\x1b]0;x\x07", end_user="e\x1b")).out
    assert "what_comes_later" in said


# -- sentences ---------------------------------------------------------------------------------------------------------


def lines(*moments, **story):
    return [line.strip() for line in telling.moments({"moments": moments, **story})]


def test_every_kind_of_moment_has_a_sentence():
    told = {
        "It came.": {"what": "arrived"},
        "Its key was looked up in the database.": {"what": "identified", "kind": "database"},
        "It waited, before all others of its own.": {"what": "waited"},
        "Its route led on to m2 with region=eu.": {"what": "moved", "model": "m2", "where": ["region=eu"]},
        "It waited for its limits to be asked, with a slot of w.": {"what": "funding", "worker": "w"},
        "Its limits allow it.": {"what": "funded"},
        "It was sent, beside that, to w, by least-busy.": {
            "what": "sent", "kind": "hedge", "worker": "w", "choice": {"strategy": "least-busy"},
        },
        "w turned it down: it had no room.": {"what": "turned_down", "worker": "w", "code": "busy"},
        "w turned it down: engine_unreachable.": {"what": "turned_down", "worker": "w", "code": "engine_unreachable"},
        "w was lost.": {"what": "failed", "worker": "w", "code": "worker_lost"},
        "w was told to stop: the other one was faster.": {"what": "failed", "worker": "w", "code": "outrun"},
        "Its client was gone; w was told to stop.": {"what": "left", "worker": "w", "code": "client_disconnected"},
        "It was over for its client (cancelled_by_operator); w was told to stop.": {
            "what": "left", "worker": "w", "code": "cancelled_by_operator",
        },
        "(7 moments are not told.)": {"what": "omitted", "count": 7},
    }  # fmt: skip
    for sentence, moment in told.items():
        assert lines(moment | {"at_s": 1.5}) == [f"+1.500s  {sentence}"]
    assert lines({"what": "admitted"}, bound_to=["region=eu"], priority="batch") == [
        "+0.000s  It was taken in, as batch. It may go to workers with region=eu alone."
    ]


def answered(*moments, **story):
    return dict(telling.answers({"moments": list(moments), **story}))


def test_of_one_that_goes_on_it_is_told_so_far():
    told = answered({"what": "arrived"}, {"what": "waited", "at_s": 0.5}, state="waiting")
    assert told == {
        "why this worker": "none has it yet",
        "why so slow": "500ms so far: 500ms until it was here",
        "who was paid": "nobody yet",
    }


def test_of_one_that_nobody_had_it_is_told_why():
    told = answered({"what": "ended", "at_s": 0.0001}, state="over", code="queue_full", paid={"kind": "refused"})
    assert told["why this worker"] == "none had it: queue_full"
    assert told["why so slow"] == "it was not: nothing took longer than half a millisecond"
    assert told["who was paid"] == "nobody: nothing of an answer was billed"


def test_of_an_answer_that_was_given_again_it_is_said_so():
    told = answered({"what": "ended"}, state="over", outcome="replayed", paid={"kind": "refused"})
    assert told["why this worker"] == "none had it: its Idempotency-Key was known, and its answer was given again"


def test_where_two_had_it_the_one_that_served_it_is_told():
    sent = {"what": "sent", "worker": "a"}, {"what": "sent", "worker": "b", "kind": "hedge", "at_s": 2}
    for winner, loser, words in (("a", "b", ""), ("b", "a", ", and was asked beside another one")):
        over = {"what": "failed", "worker": loser, "code": "outrun", "at_s": 3}, {"what": "first_byte", "worker": winner, "at_s": 3}
        told = answered(*sent, *over, {"what": "ended", "at_s": 4}, state="over", worker=winner, tokens_out=5)
        assert told["why this worker"] == f"{winner} was the only one with a free slot{words}; not {loser}: outrun"
        shared = "1s with b, for nothing" if loser == "b" else "1s with b and a"
        assert told["why so slow"] == f"4s: 2s with a alone, {shared}, 1s for 5 tokens of {winner}; most of it with a alone"


def test_what_the_winner_had_said_before_the_other_was_told_to_stop_is_part_of_its_answer():
    sent = {"what": "sent", "worker": "a"}, {"what": "sent", "worker": "b", "kind": "hedge", "at_s": 2}
    began, over = {"what": "first_byte", "worker": "b", "at_s": 3}, {"what": "failed", "worker": "a", "code": "outrun", "at_s": 4}
    told = answered(*sent, began, over, {"what": "ended", "at_s": 9}, state="over", worker="b", tokens_out=5)
    assert told["why so slow"] == "9s: 2s with a alone, 1s to the first byte of b, 6s for 5 tokens of b; most of it for 5 tokens of b"


def test_where_one_of_two_failed_the_other_went_on_with_it():
    sent = {"what": "sent", "worker": "a"}, {"what": "sent", "worker": "b", "kind": "hedge", "at_s": 2}
    over, began = {"what": "failed", "worker": "a", "code": "engine_failed", "at_s": 4}, {"what": "first_byte", "worker": "b", "at_s": 7}
    told = answered(*sent, over, began, {"what": "ended", "at_s": 8}, state="over", worker="b", tokens_out=5)
    assert told["why so slow"].startswith("8s: 2s with a alone, 2s with b and a, 3s to the first byte of b, 1s for 5 tokens of b;")


def test_where_it_was_bound_to_the_proof_is_told():
    choice = {"strategy": "score", "considered": [{"worker": "a", "seconds": 1}, {"worker": "b", "seconds": 2}]}
    told = answered({"what": "sent", "worker": "a", "choice": choice}, state="over", served_by="a; model=m; region=eu")
    assert told["why this worker"] == "a was the best of 2 by score; served by a; model=m; region=eu"
    told = answered({"what": "sent", "worker": "a", "choice": {"strategy": "sticky"}}, state="over")
    assert told["why this worker"] == "a was chosen by sticky"


@pytest.mark.parametrize(
    ("span", "text"), [(0.0004, "0.4ms"), (0.041, "41ms"), (1.2391, "1.24s"), (59.9, "59.9s"), (61.4, "61s"), (4325, "1h12m")]
)
def test_spans_are_short(span, text):
    assert telling.seconds(span) == text
