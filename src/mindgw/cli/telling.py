"""The story of a request in sentences: one line a moment, and what follows from them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mindgw.cli.invocation import Invocation
from mindgw.cli.render import Item
from mindgw.client import requests
from mindgw.client.errors import NotAllowed

#: Workers of a choice that a line names.
_NAMED = 4
_NONE: Item = {}
#: Spans of time below which nobody asks where they went.
_NOTHING = 0.0005


def fetched(run: Invocation, request_id: str) -> dict[str, Any]:
    """The story of a request; for whoever may not see those of others, of one of their own. Raises what a server says."""
    server = run.server()
    try:
        story: dict[str, Any] = server.call(requests.show(request_id))
    except NotAllowed:
        story = server.call(requests.show_own(request_id))
    return story


def seconds(span: float) -> str:
    """`0.8ms`, `41ms`, `1.24s`, `61s`, `1h12m`."""
    if span < 0.01:
        return f"{span * 1000:.1f}ms"
    if span < 1:
        return f"{span * 1000:.0f}ms"
    if span < 60:
        return f"{span:.3g}s"
    return f"{span:.0f}s" if span < 3600 else f"{span // 3600:.0f}h{span % 3600 // 60:02.0f}m"


def limits(story: Item) -> str:
    """The limits that it fell under."""
    found = story.get("limits") or ()
    return ", ".join(f"{each.get('scope')} {each.get('limit')} {each.get('unit')}{_period(each)}" for each in found)


def _period(limit: Item) -> str:
    return f"/{limit['period']}" if limit.get("period") else ""


# -- moments -----------------------------------------------------------------------------------------------------------


def moments(story: Item) -> Iterator[str]:
    """A line for each moment, with the seconds since it came."""
    for moment in story.get("moments") or ():
        since = f"+{moment.get('at_s') or 0:.3f}s"
        yield f"{since:>10}  {_sentence(moment, story)}"


def _sentence(moment: Item, story: Item) -> str:
    say = _SENTENCES.get(str(moment.get("what")))
    return say(moment, story) if say is not None else str(moment.get("what"))


def _arrived(_moment: Item, story: Item) -> str:
    if not story.get("size"):
        return "It came."
    return f"It came: {story['size']:,} bytes, about {story.get('prompt_tokens') or 0:,} tokens."


def _identified(moment: Item, _story: Item) -> str:
    return "Its key was looked up in the database." if moment.get("kind") == "database" else "Its key was known."


def _admitted(_moment: Item, story: Item) -> str:
    route = f" It goes by the route {story['route']}." if story.get("route") else ""
    bound = f" It may go to workers with {', '.join(story['bound_to'])} alone." if story.get("bound_to") else ""
    under = f" It falls under {limits(story)}." if story.get("limits") else ""
    return f"It was taken in, as {story.get('priority') or 'normal'}.{route}{bound}{under}"


def _waited(moment: Item, _story: Item) -> str:
    if not moment.get("position"):
        return "It waited, before all others of its own."
    return f"No slot was free: it waited at place {moment['position']}{_turn(moment)}."


def _stood(moment: Item, _story: Item) -> str:
    return f"It stood at place {moment.get('position')}{_turn(moment)}."


def _turn(moment: Item) -> str:
    return f", its turn was expected in {seconds(moment['eta_s'])}" if moment.get("eta_s") is not None else ""


def _moved(moment: Item, _story: Item) -> str:
    place = f" with {', '.join(moment['where'])}" if moment.get("where") else ""
    return f"Its route led on to {moment.get('model')}{place}."


def _funding(moment: Item, _story: Item) -> str:
    held = f", with a slot of {moment['worker']}" if moment.get("worker") else ""
    return f"It waited for its limits to be asked{held}."


def _sent(moment: Item, _story: Item) -> str:
    how = {"retry": "It was sent on", "hedge": "It was sent, beside that,"}.get(str(moment.get("kind")), "It was sent")
    model = f" ({moment['model']})" if moment.get("model") else ""
    return f"{how} to {moment.get('worker')}{model}{_chosen(moment)}."


def _chosen(moment: Item) -> str:
    choice = moment.get("choice")
    considered: Sequence[Item] = (choice or {}).get("considered") or ()
    if not choice or len(considered) == 1:
        return f", the only one with a free slot{_expected(choice or {})}"
    if not considered:
        return f", by {choice.get('strategy')}"
    shown = ", ".join(f"{each.get('worker')} {seconds(each.get('seconds') or 0)}" for each in considered[:_NAMED])
    more = f" and {len(considered) - _NAMED} more" if len(considered) > _NAMED else ""
    return f", by {choice.get('strategy')}: {shown}{more}{_expected(choice)}"


def _expected(choice: Item) -> str:
    parts = []
    if choice.get("cached_tokens"):
        parts.append(f"{choice['cached_tokens']:,} of about {choice.get('prompt_tokens') or 0:,} tokens remembered there")
    parts += [f"{seconds(choice['cold_s'])} to load the model"] if choice.get("cold_s") else []
    parts += [f"{seconds(choice['ahead_s'])} to read what was there before"] if choice.get("ahead_s") else []
    return f"; expected: {', '.join(parts)}" if parts else ""


def _turned_down(moment: Item, _story: Item) -> str:
    why = "it had no room" if moment.get("code") == "busy" else moment.get("code")
    return f"{moment.get('worker')} turned it down: {why}."


#: Ends of a try that are told in other words than failures.
_NO_FAULT = {
    "worker_lost": "was lost",
    "outrun": "was told to stop: the other one was faster",
    "given_up": "was told to stop, as the request was over",
}


def _failed(moment: Item, _story: Item) -> str:
    if plain := _NO_FAULT.get(str(moment.get("code"))):
        return f"{moment.get('worker')} {plain}."
    status = f", the engine's status {moment['status']}" if moment.get("status") else ""
    return f"{moment.get('worker')} failed it: {moment.get('code')}{status}."


def _left(moment: Item, _story: Item) -> str:
    who = "Its client was gone" if moment.get("code") == "client_disconnected" else f"It was over for its client ({moment.get('code')})"
    return f"{who}; {moment.get('worker') or 'the worker'} was told to stop."


def _ended(moment: Item, story: Item) -> str:
    code = f" {story['code']}" if story.get("code") else ""
    return f"It was over: {story.get('outcome')}{code}, status {moment.get('status') or '–'}."


_SENTENCES = {
    "arrived": _arrived,
    "identified": _identified,
    "admitted": _admitted,
    "waited": _waited,
    "stood": _stood,
    "moved": _moved,
    "funding": _funding,
    "funded": lambda _moment, _story: "Its limits allow it.",
    "sent": _sent,
    "first_byte": lambda moment, _story: f"The first byte of an answer came from {moment.get('worker')}.",
    "turned_down": _turned_down,
    "failed": _failed,
    "left": _left,
    "omitted": lambda moment, _story: f"({moment.get('count')} moments are not told.)",
    "ended": _ended,
}


# -- what follows ------------------------------------------------------------------------------------------------------


def heading(story: Item) -> str:
    """Whose it was, and what it asked for."""
    whose = f"of key {story.get('key') or story.get('key_id')}{_owner(story)}"
    how = "a stream" if story.get("stream") else "an answer in one piece"
    came = str(story.get("started_at"))[:19].replace("T", " ")
    return f"{story.get('id')} {whose} asked for {how} of {story.get('model') or '–'}, {came} UTC"


def _owner(story: Item) -> str:
    parts = {"team": "team", "user": "user", "end_user": "end user"}
    owner = ", ".join(f"{name} {story[part]}" for part, name in parts.items() if story.get(part))
    return f" ({owner})" if owner else ""


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def answers(story: Item) -> Iterator[tuple[str, str]]:
    """(question, answer)"""
    yield "why this worker", _why_worker(story)
    yield "why so slow", _why_slow(story)
    yield "who was paid", _who_paid(story)


def _why_worker(story: Item) -> str:
    sent = [moment for moment in story.get("moments") or () if moment.get("what") == "sent"]
    if not sent:
        if story.get("outcome") == "replayed":
            return "none had it: its Idempotency-Key was known, and its answer was given again"
        return "none has it yet" if story.get("state") != "over" else f"none had it: {story.get('code') or story.get('outcome')}"
    last = next((moment for moment in reversed(sent) if moment.get("worker") == story.get("worker")), sent[-1])
    parts = [f"{last.get('worker')}{_reason(last)}{', and was asked beside another one' if last.get('kind') == 'hedge' else ''}"]
    parts += [f"not {who}: {why}" for who, why in _vain(story)]
    if story.get("served_by"):
        parts.append(f"served by {story['served_by']}")
    return "; ".join(parts)


def _reason(sent: Item) -> str:
    choice = sent.get("choice")
    considered: Sequence[Item] = (choice or {}).get("considered") or ()
    if not choice or len(considered) == 1:
        return " was the only one with a free slot"
    if not considered:
        return f" was chosen by {choice.get('strategy')}"
    how = "the best" if considered[0].get("worker") == sent.get("worker") else "about as good as the best"
    return f" was {how} of {len(considered)} by {choice.get('strategy')}"


def _vain(story: Item) -> Iterator[tuple[str, str]]:
    """(worker, why) of the tries that came to nothing."""
    for moment in story.get("moments") or ():
        if moment.get("what") in {"turned_down", "failed"}:
            yield str(moment.get("worker")), str(moment.get("code"))


def _why_slow(story: Item) -> str:
    spans = [(name, span) for name, span in _spans(story) if span >= _NOTHING]
    if not spans:
        return "it was not: nothing took longer than half a millisecond"
    most = max(spans, key=lambda each: each[1])
    whole = sum(span for _, span in spans)
    parts = ", ".join(f"{seconds(span)} {name}" for name, span in spans)
    most_of_it = f"; most of it {most[0]}" if len(spans) > 1 else ""
    return f"{seconds(whole)}{' so far' if story.get('state') != 'over' else ''}: {parts}{most_of_it}"


def _spans(story: Item) -> Iterator[tuple[str, float]]:
    """(what it was doing, seconds) from its arrival to its end, one after the other."""
    at, before = 0.0, _NONE
    for moment, then in _turns(story.get("moments") or ()):
        now = float(moment.get("at_s") or 0)
        yield _doing(before, moment, story), now - at
        at, before = now, then


def _turns(found: Iterable[Item]) -> Iterator[tuple[Item, Item]]:
    """The moments at which it went on to something else, each with the one that says what: of two that had it the other still has it."""
    having: dict[Any, Item] = {}  # bounded: by the moments
    for moment in found:
        worker, what, then = moment.get("worker"), moment.get("what"), moment
        if what in {"arrived", "identified", "stood", "moved", "omitted"}:
            continue
        if what in {"sent", "first_byte"}:
            having[worker] = moment
        elif what in {"failed", "turned_down"}:
            having.pop(worker, None)
            then = next(iter(having.values()), moment)
            if then.get("what") == "first_byte":
                continue  # it went on with that answer
        yield moment, then


def _doing(moment: Item, following: Item, story: Item) -> str:
    """What it was doing between two moments."""
    worker, what = moment.get("worker"), moment.get("what")
    if what == "first_byte" and following.get("what") not in {"failed", "sent"}:
        speed = f", {story['tokens_per_s']:g} tokens/s" if story.get("tokens_per_s") else ""
        return f"for {_counted(story.get('tokens_out') or 0, 'token')} of {worker}{speed}"
    if what in {"sent", "first_byte"}:
        return _having(moment, following)
    return {
        None: "until it was here",
        "waited": "in the queue",
        "funding": "until its limits were asked",
        "left": f"until {worker} let go of it",
    }.get(what, "between two steps")


def _having(moment: Item, following: Item) -> str:
    """What it was doing with a worker from one moment to the next."""
    worker, what = moment.get("worker"), following.get("what")
    if what == "sent":
        return f"with {worker} alone"
    if what in {"failed", "turned_down"} and following.get("worker") != worker:
        return f"with {worker} and {following.get('worker')}"
    return f"to the first byte of {worker}" if what == "first_byte" else f"with {worker}, for nothing"


def _who_paid(story: Item) -> str:
    paid = story.get("paid")
    if not paid:
        return "nobody yet"
    if paid.get("kind") != "settled":
        return "nobody: nothing of an answer was billed"
    payer = f"key {story.get('key') or story.get('key_id')}{_owner(story)}"
    cached = f" ({paid['tokens_cached']:,} of them remembered)" if paid.get("tokens_cached") else ""
    counted = f"{story.get('tokens_in') or 0:,} tokens in{cached} and {story.get('tokens_out') or 0:,} out"
    vain = sum(1 for _ in _vain(story))
    others = f"; {'one other try' if vain == 1 else f'{vain} other tries'} cost nothing" if vain else ""
    price = f"{payer} pays {paid.get('cost_usd')} USD"
    return f"{price} for {counted}, served by {story.get('worker')} and counted by: {paid.get('counted_by')}{others}"
