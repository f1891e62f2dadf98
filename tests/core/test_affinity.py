"""Who remembers how a prompt begins: equal beginnings match, others do not, and what is kept is bounded."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mindgw.core.affinity import BOUNDS, Prefixes, Sessions, numbers, prefix

TEXTS = st.binary(max_size=6000)


def test_blocks_grow_with_their_offset_and_end_where_they_always_do():
    assert BOUNDS[:10] == (0, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)
    assert all(end - begin <= max(256, begin / 8) for begin, end in pairwise(BOUNDS))
    assert len(prefix(b"x" * (9 * 2**20), 0, "seed").hashes) == len(BOUNDS) - 1 < 110


@given(TEXTS, TEXTS, TEXTS, st.integers(0, 5))
def test_texts_have_as_many_hashes_in_common_as_whole_blocks(common, one, other, start):
    first, second = (prefix(b"#" * start + common + rest, start, "seed") for rest in (one, other))
    same = sum(a == b for a, b in zip(first.hashes, second.hashes, strict=False))
    least = sum(end <= len(common) for end in BOUNDS[1:])
    assert first.hashes[:least] == second.hashes[:least]
    assert first.hashes[:same] == second.hashes[:same]  # once different, always different
    assert list(first.ends) == [end for end in BOUNDS[1:] if end <= first.size]
    assert first.size == len(common) + len(one)


def test_another_seed_has_nothing_in_common():
    text = b"x" * 1024
    assert not set(prefix(text, 0, "a").hashes) & set(prefix(text, 0, "b").hashes)


CHAINS = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1, max_size=6)), max_size=30)


def chained(names):
    """Each with all before it, as hashes are."""
    return [hash(tuple(names[: n + 1])) for n in range(len(names))]


@given(CHAINS, st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_holders_are_told_by_how_much_of_a_text_they_were_sent(sent, asked):
    index = Prefixes()
    holders = [index.holder() for _ in range(4)]
    expected = [0] * 4
    for holder, names in sent:
        index.note(chained(names), holders[holder])
        same = next((n for n, (a, b) in enumerate(zip(names, asked, strict=False)) if a != b), min(len(names), len(asked)))
        expected[holder] = max(expected[holder], same)
    levels = index.match(chained(asked))
    found = [next((depth for bits, depth in levels if bits >> holder & 1), 0) for holder in holders]
    assert found == expected
    assert [depth for _, depth in levels] == sorted({depth for _, depth in levels}, reverse=True)


def test_nothing_matches_nothing():
    assert Prefixes().match([]) == []
    assert Prefixes().match([1, 2]) == []


def test_what_nobody_asks_for_is_forgotten_and_what_is_in_use_is_not():
    index = Prefixes(half=100)
    holder = index.holder()
    index.note([-1, -2], holder)
    index.note([-3, -4], holder)
    for n in range(1000):
        index.note([2 * n, 2 * n + 1], holder)
        index.note([-1, -2], holder)
        assert len(index) <= 204
    assert index.match([-1, -2])
    assert not index.match([-3, -4])


def test_numbers_are_void_when_there_are_none_left():
    index = Prefixes()
    first = index.holder()
    index.note([1], first)
    assert [index.holder() for _ in range(4095)] == list(range(1, 4096))
    assert (index.epoch, len(index.match([1]))) == (0, 1)
    assert (index.holder(), index.epoch, index.match([1])) == (0, 1, [])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.just(0), st.just([])),
        st.tuples(st.just("leave"), st.integers(0, 9), st.just([])),
        st.tuples(st.just("note"), st.integers(0, 9), st.lists(st.integers(0, 2), min_size=1, max_size=4)),
    ),
    max_size=120,
)


@settings(max_examples=300)
@given(STEPS, st.integers(1, 12))
def test_who_has_a_number_that_was_anothers_knows_nothing_of_what_that_one_knew(steps, half):
    index, sent = Prefixes(half), dict[int, list[list[int]]]()
    for what, which, names in [("join", 0, []), *steps]:
        if what == "join":
            number = index.holder()
            assert number not in sent
            sent[number] = []
        elif sent:
            number = sorted(sent)[which % len(sent)]
            if what == "leave":
                index.leave(number)
                del sent[number]
            else:
                index.note(chained(names), number)
                sent[number].append(names)
                assert any(bits >> number & 1 and depth == len(names) for bits, depth in index.match(chained(names)))
        for asked in ([a, b, c] for a in range(3) for b in range(3) for c in range(3)):
            for bits, depth in index.match(chained(asked)):
                for holder in numbers(bits, 99):
                    assert any(names[:depth] == asked[:depth] for names in sent[holder])


def test_numbers_stay_small_however_many_came_and_left():
    index = Prefixes()
    for turn in range(10_000):
        number = index.holder()
        index.note([turn % 7], number)
        assert number < 256
        index.leave(number)
    assert index.epoch == 0


def test_many_that_stay_are_not_forgotten_for_a_few_that_come_and_go():
    index = Prefixes()
    stay = [index.holder() for _ in range(1000)]
    for number in stay:
        index.note([number + 1], number)
    for _ in range(500):
        index.leave(index.holder())
    assert all(index.match([number + 1]) for number in stay)


def test_holders_are_counted_from_the_first():
    assert numbers(0b101101, 3) == [0, 2, 3]
    assert numbers(0b1, 3) == [0]
    assert numbers(0b11, 0) == []


def test_a_session_is_where_it_was_last_until_it_is_forgotten():
    sessions = Sessions(most=2)
    assert sessions.where("o", "a") == ""
    sessions.note("o", "a", "w1")
    sessions.note("o", "b", "w1")
    sessions.note("o", "a", "w2")
    sessions.note("o", "c", "w3")
    assert [sessions.where("o", name) for name in "abc"] == ["w2", "", "w3"]


def test_sessions_of_organisations_have_nothing_to_do_with_each_other():
    sessions = Sessions()
    sessions.note("o", "a", "w1")
    assert sessions.where("p", "a") == ""
    sessions.note("p", "a", "w2")
    assert (sessions.where("o", "a"), sessions.where("p", "a")) == ("w1", "w2")


def test_whoever_invents_sessions_forgets_its_own():
    sessions = Sessions(most=20)
    for name in "abc":
        sessions.note("victim", name, "w")
    for number in range(100):
        sessions.note("attacker", number, "w")
    assert [sessions.where("victim", name) for name in "abc"] == ["w"] * 3
    assert len(sessions) == 20


@given(st.lists(st.tuples(st.sampled_from("opqr"), st.integers(0, 9)), max_size=200), st.integers(1, 12))
def test_sessions_are_forgotten_where_there_are_most_the_oldest_first(noted, most):
    sessions, known = Sessions(most), dict[str, list[int]]()
    for turn, (org, session) in enumerate(noted):
        own, before = known.setdefault(org, []), sum(map(len, known.values()))
        largest = max(map(len, known.values()))
        is_new = session not in own
        sessions.note(org, session, f"w{turn}")
        lost = [(each, one) for each, kept in known.items() for one in kept if not sessions.where(each, one)]
        assert len(lost) == (is_new and before == most)
        for each, one in lost:
            assert (len(known[each]), known[each][0]) == (largest, one)
            known[each].remove(one)
        own[:] = [one for one in own if one != session] + [session]
        assert sessions.where(org, session) == f"w{turn}"
        assert len(sessions) == sum(map(len, known.values()))
