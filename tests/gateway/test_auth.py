import asyncio
import random
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import errors
from mindgw.gateway import auth
from mindgw.gateway.admission import Caller
from mindgw.gateway.auth import TTL, Auth, credential, shown
from mindgw.store.keys import Change, Holder, digest
from mindgw.store.tables import Key
from mindgw_agent.tokens import crc6, make_key
from tests.gateway.world import PEPPER, finished, rights_of
from tests.gateway.world import make_key as make_row

NOW = datetime(2026, 1, 1, tzinfo=UTC)


#: A key that nobody has; made once, so that every example damages the same one.
MISTYPED = make_key().text


#: Keys that differ in their last characters alone.
MANY = 100_000


class Door:
    """An Auth in front of a few keys, and the ids that it looked for."""

    def __init__(self, *rows: Key) -> None:
        self.rows = {row.id: row for row in rows}
        self.found: list[str] = []
        #: Ids of keys whose holders are not welcome.
        self.unwelcome: set[str] = set()
        #: Key id -> when the policy ends it.
        self.ends: dict[str, datetime] = {}
        #: Every look-up waits for it.
        self.gate: asyncio.Event | None = None
        #: Whether the database is.
        self.away = False
        #: The calendar's time.
        self.today = NOW
        #: What the database has noted, and how often it was asked for that.
        self.noted = [Change(1, "", "", NOW)]
        self.asked = 0
        self.auth = Auth(self._find, self._changes, {1: PEPPER}, lambda: self.today)

    async def _changes(self, since: Change | None) -> list[Change]:
        self.asked += 1
        if self.away:
            raise errors.Draining(code="database_unavailable", retry_after=2)
        return [noted for noted in self.noted if noted.id >= since.id] if since else self.noted[-1:]

    def note(self, noun: str, row_id: str) -> None:
        """A row of another server's doing."""
        self.noted.append(Change(self.noted[-1].id + 1 if self.noted else 1, noun, row_id, self.today))

    def check(self, now: float):
        return finished(self.auth.check(now))

    async def _find(self, key_id: str) -> Holder | None:
        self.found.append(key_id)
        row = self.rows.get(key_id)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise errors.Draining(code="database_unavailable", retry_after=2)
        if row is None:
            return None
        return Holder(row, rights=rights_of(row), welcome=key_id not in self.unwelcome, ends=self.ends.get(key_id))

    def identify(self, key: str, now: float = 0.0):
        return self.auth.known(key, now) or finished(self.auth.look_up(key, now))


def code_of(door: Door, key: str) -> str:
    with pytest.raises(errors.Unauthenticated) as caught:
        door.identify(key)
    return caught.value.code


def forged(key: str, secret: str) -> str:
    """A key with the id of `key` and another secret, its checksum right."""
    text = f"{key[:15]}{secret}"
    return text + crc6(text)


# -- where a key may stand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [(b"authorization", b"Bearer KEY"), (b"authorization", b"bearer   KEY "), (b"x-api-key", b"KEY"), (b"api-key", b" KEY")],
)
def test_a_key_is_found_in_each_of_its_places(header):
    assert credential([(b"host", b"h"), header]) == "KEY"


def test_one_key_in_two_places_is_one_key():
    assert credential([(b"x-api-key", b"KEY"), (b"authorization", b"Bearer KEY"), (b"api-key", b"")]) == "KEY"


@pytest.mark.parametrize("second", [(b"x-api-key", b"OTHER"), (b"authorization", b"Bearer OTHER"), (b"api-key", b"key")])
def test_two_different_credentials_are_refused(second):
    with pytest.raises(errors.BadRequest) as caught:
        credential([(b"authorization", b"Bearer KEY"), second])
    assert caught.value.code == "ambiguous_credentials"


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer ")], [(b"x-api-key", b" ")], [(b"cookie", b"KEY")]])
def test_no_key_is_a_reason_of_its_own(headers):
    with pytest.raises(errors.Unauthenticated) as caught:
        credential(headers)
    assert caught.value.code == "missing_api_key"


@pytest.mark.parametrize("value", [b"Basic KEY", b"KEY", b"Bearer", b"", b"\xff\x00"])
def test_another_scheme_is_refused_with_its_form(value):
    with pytest.raises(errors.Unauthenticated, match="Bearer KEY"):
        credential([(b"authorization", value), (b"x-api-key", b"KEY")])


@given(st.lists(st.tuples(st.sampled_from([*auth.CARRIERS, b"host"]), st.binary(max_size=20) | st.just(b"Bearer x"))))
def test_any_headers_are_a_key_or_a_refusal(headers):
    with suppress(errors.Unauthenticated, errors.BadRequest):
        assert credential(headers)


# -- whose key it is ---------------------------------------------------------------------------------------------------


def test_a_good_key_is_its_rows_caller():
    key, row = make_row(org_id="o", team_id="t", user_id="u", role="admin", priority="high", trusted_proxy=True, name="n")
    caller = Door(row).identify(key)
    assert (caller.key_id, caller.name, caller.org_id, caller.team_id, caller.user_id) == (row.id, "n", "o", "t", "u")
    assert (caller.rights.roles, caller.priority, caller.trusted_proxy) == (("admin",), "high", True)


def test_a_key_without_a_class_is_normal():
    key, row = make_row()
    assert Door(row).identify(key).priority == "normal"


@given(
    st.text(max_size=60)
    | st.from_regex(r"mgw_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}", fullmatch=True)
    | st.binary(max_size=60).map(lambda b: b.decode("latin-1"))
)
def test_garbage_never_reaches_the_database(key):
    door = Door()
    with pytest.raises(errors.Unauthenticated):
        door.auth.known(key, 0.0)
    with pytest.raises(errors.Unauthenticated):
        finished(door.auth.look_up(key, 0.0))
    assert door.found == []


@given(st.integers(0, len(MISTYPED) - 1), st.sampled_from("aB3_-é"))
def test_a_typing_error_never_reaches_the_database(place, wrong):
    door = Door()
    with pytest.raises(errors.Unauthenticated):
        door.identify(MISTYPED[:place] + ("ä" if MISTYPED[place] == wrong else wrong) + MISTYPED[place + 1 :])
    assert door.found == []


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"revoked_at": NOW}, "revoked_api_key"),
        ({"expires_at": NOW}, "expired_api_key"),
        ({"expires_at": NOW - timedelta(days=1)}, "expired_api_key"),
        ({"pepper_version": 2}, "invalid_api_key"),
        ({"digest": b"\0" * 32}, "invalid_api_key"),
    ],
)
def test_a_key_that_is_no_longer_good_says_why(columns, code):
    key, row = make_row(**columns)
    assert code_of(Door(row), key) == code


def test_a_key_of_somebody_who_is_not_welcome_is_refused_until_they_are():
    key, row = make_row()
    door = Door(row)
    door.identify(key)
    door.unwelcome.add(row.id)
    door.auth.forget(row.id)
    assert code_of(door, key) == "user_disabled"
    door.unwelcome.clear()
    assert door.identify(key).key_id == row.id


def test_a_key_is_good_until_it_expires():
    key, row = make_row(expires_at=NOW + timedelta(seconds=1))
    assert Door(row).identify(key).key_id == row.id


def test_an_unknown_key_is_refused_and_not_remembered():
    door = Door()
    key = make_key().text
    assert [code_of(door, key), code_of(door, key)] == ["invalid_api_key"] * 2
    assert len(door.found) == 2


def test_the_reason_of_a_revoked_key_is_for_its_owner_alone():
    """Whoever guesses the id learns nothing about the key."""
    key, row = make_row(revoked_at=NOW)
    assert code_of(Door(row), forged(key, "x" * 32)) == "invalid_api_key"


def test_a_refusal_never_shows_the_key():
    key, row = make_row()
    with pytest.raises(errors.Unauthenticated) as caught:
        Door(row).identify(forged(key, "y" * 32))
    assert "mgw_***" in caught.value.message
    assert row.id not in caught.value.message


@given(st.text())
def test_what_is_shown_of_a_key_may_be_said_aloud(key):
    assert shown(key).isascii()
    assert len(shown(key)) <= 7


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_a_key_is_looked_up_once_in_a_while():
    key, row = make_row()
    door = Door(row)
    for now in (0.0, 1.0, TTL - 0.01):
        door.identify(key, now)
    assert len(door.found) == 1
    door.identify(key, TTL)
    assert len(door.found) == 2


def test_a_key_that_was_good_is_good_while_the_database_is_away():
    key, row = make_row()
    other, unknown = make_row()
    door = Door(row, unknown)
    caller = door.identify(key)
    door.away = True
    late = TTL + auth.GRACE - 1
    assert door.identify(key, TTL + 1) is caller
    asked = len(door.found)
    assert door.identify(key, TTL + 1.5) is caller
    assert len(door.found) == asked, "it is not asked again at once"
    assert door.identify(key, late) is caller
    for asks, at in ((other, late), (key, late + 2)):
        with pytest.raises(errors.Draining):
            door.identify(asks, at)
    door.away = False
    row.revoked_at = NOW
    with pytest.raises(errors.Unauthenticated, match="revoked"):  # once it is back it is believed
        door.identify(key, late + 5)


def test_a_key_that_was_forgotten_is_not_good_while_the_database_is_away():
    key, row = make_row()
    door = Door(row)
    door.identify(key)
    door.auth.forget(row.id)
    door.away = True
    with pytest.raises(errors.Draining):
        door.identify(key, 1.0)


def test_memory_is_of_the_whole_key():
    """A key that shares all but its last letters with a good one is another key."""
    key, row = make_row()
    door = Door(row)
    door.identify(key)
    other = forged(key, key[15:46] + ("a" if key[46] != "a" else "b"))
    assert other[:46] == key[:46]
    assert code_of(door, other) == "invalid_api_key"
    assert len(door.found) == 2


def test_a_forgotten_key_is_looked_up_again():
    (key, row), (other, other_row) = make_row(), make_row()
    door = Door(row, other_row)
    door.identify(key), door.identify(other)
    row.revoked_at = NOW
    door.auth.forget(row.id)
    assert code_of(door, key) == "revoked_api_key"
    door.identify(other)
    assert door.found == [row.id, other_row.id, row.id]


async def looks_up_while_it_is_revoked(door: Door, key: str, row: Key) -> "asyncio.Task[Caller]":
    """A look-up that holds what was true before its key was revoked, and waits for the door's gate."""
    door.gate = asyncio.Event()
    slow = asyncio.create_task(door.auth.look_up(key, 0.0))
    while not door.found:
        await asyncio.sleep(0)
    door.rows[row.id] = Key(**row.model_dump() | {"revoked_at": NOW})
    return slow


async def test_a_slow_look_up_does_not_bring_a_forgotten_key_back():
    key, row = make_row()
    door = Door(row)
    slow = await looks_up_while_it_is_revoked(door, key, row)
    door.auth.forget(row.id)
    door.gate.set()
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        await slow
    assert door.auth.known(key, 0.0) is None


def test_memory_is_bounded_and_keeps_what_is_used(monkeypatch):
    monkeypatch.setattr(auth, "CAPACITY", 3)
    made = [make_row() for _ in range(5)]
    door = Door(*(row for _, row in made))
    for key, _ in made:
        door.identify(made[0][0])
        door.identify(key)
    assert door.auth.known(made[0][0], 0.0) is not None
    assert door.auth.known(made[1][0], 0.0) is None


def test_what_was_used_is_told_once():
    key, row = make_row()
    door = Door(row)
    door.identify(key)
    assert door.auth.used() == {row.id: NOW}
    assert door.auth.used() == {}


def test_that_a_key_is_used_is_told_once_a_minute():
    key, row = make_row()
    door = Door(row)
    told = []
    for second in range(150):
        door.today = NOW + timedelta(seconds=second)
        door.check(float(second))
        door.identify(key, float(second))
        told += [(second, at) for at in door.auth.used().values()]
    assert told == [(second, NOW + timedelta(seconds=second)) for second in (0, 60, 120)]
    assert len(door.found) <= 2  # the first check forgets what was looked up before it


def test_a_key_whose_use_was_written_a_moment_ago_is_not_told_when_it_is_looked_up_again():
    key, row = make_row(last_used_at=NOW - timedelta(seconds=50))
    door = Door(row)
    told = []
    for second in (0, 5, 9, 10, 15):
        door.today = NOW + timedelta(seconds=second)
        door.check(1000.0 + second)
        door.note("keys", row.id)
        door.identify(key, 1000.0 + second)
        told += door.auth.used().values()
        row.last_used_at = told[-1] if told else row.last_used_at
    assert told == [NOW + timedelta(seconds=10)]
    assert len(door.found) == 5


def test_no_more_than_a_few_hundred_keys_are_told_at_a_time(monkeypatch):
    monkeypatch.setattr(auth, "BATCH", 3)
    made = [make_row() for _ in range(7)]
    door = Door(*(row for _, row in made))
    for key, _ in made:
        door.identify(key)
    told = [door.auth.used() for _ in range(4)]
    assert [len(some) for some in told] == [3, 3, 1, 0]
    assert {key_id for some in told for key_id in some} == {row.id for _, row in made}


def test_what_could_not_be_written_is_told_again_unless_there_is_news():
    key, row = make_row()
    door = Door(row)
    door.identify(key)
    earlier = NOW - timedelta(minutes=1)
    door.auth.keep({row.id: earlier, "other": earlier})
    assert door.auth.used() == {row.id: NOW, "other": earlier}


def test_keys_that_begin_alike_are_never_taken_for_each_other(monkeypatch):
    many = MANY // 10
    monkeypatch.setattr(auth, "CAPACITY", 2 * many)
    door = Door().auth
    start = f"{MISTYPED[:41]}"
    alike = [text + crc6(text) for text in (f"{start}{number:06d}" for number in range(2 * many))]
    for number, key in enumerate(alike[:many]):
        holder = Holder(Key(id=str(number), name="", org_id="o", digest=b""))
        door._remember(sha256(key.encode()).digest(), Caller(str(number), "", "o"), holder, None, 0.0)
    assert [door.known(key, 1.0).key_id for key in alike[:many]] == [str(number) for number in range(many)]
    assert not any(door.known(key, 1.0) for key in alike[many:])


def test_a_hundred_thousand_hostile_headers_are_refused_without_a_look_up():
    dice, door, heard = random.Random(7), Door(), Counter()
    for number in range(MANY):
        key = list(MISTYPED)
        for _ in range(dice.randint(1, 5)):
            key[dice.randrange(len(key))] = chr(dice.choice([0, 10, 32, 48, 95, 127, 255, dice.randrange(256)]))
        text = "".join(key).encode("latin-1")
        value = (text, text * dice.randint(2, 40), dice.randbytes(dice.randrange(80)), text[: dice.randrange(52)])[number % 4]
        try:
            found = door.auth.known(credential([(b"authorization", b"Bearer " + value)]), 0.0)
        except errors.Unauthenticated as refused:
            heard[refused.status] += 1
        else:
            assert found is None  # by chance it was put right again
    assert heard[401] > MANY - 100
    assert door.found == []


# -- what is known to be unchanged -------------------------------------------------------------------------------------


def checked(*rows: Key) -> Door:
    """One that has looked at 0 for what has changed."""
    door = Door(*rows)
    door.check(0.0)
    return door


def test_a_thousand_keys_in_use_cost_their_look_ups_once():
    made = [make_row() for _ in range(1000)]
    door = checked(*(row for _, row in made))
    for second in range(20):
        door.check(float(second))
        for key, row in made:
            assert door.identify(key, second + 0.9).key_id == row.id
    assert (len(door.found), door.asked) == (1000, 21)


@pytest.mark.parametrize("noun", ["keys", "teams", "users"])
def test_a_key_that_was_changed_elsewhere_is_looked_up_again_and_no_other(noun):
    key, row = make_row(team_id="t1", user_id="u1")
    other, other_row = make_row(team_id="t2", user_id="u2")
    door = checked(row, other_row)
    for each in (key, other):
        door.identify(each, 1.0)
    row.name = "new"
    door.note(noun, {"keys": row.id, "teams": "t1", "users": "u1"}[noun])
    touched = door.check(1.5)
    assert (door.identify(key, 1.5).name, door.identify(other, 1.5).name) == ("new", other_row.name)
    assert door.found == [row.id, other_row.id, row.id]
    assert [touched(door.identify(each, 1.5)) for each in (key, other)] == [True, False]
    door.check(2.0)  # the same news is news once
    door.identify(key, 2.0)
    assert len(door.found) == 3


def test_a_key_that_was_revoked_elsewhere_is_refused_after_the_next_look():
    key, row = make_row()
    door = checked(row)
    door.identify(key, 1.0)
    row.revoked_at = NOW
    door.note("keys", row.id)
    door.check(1.5)
    assert code_of(door, key) == "revoked_api_key"


def test_a_look_that_is_not_answered_leaves_keys_a_few_seconds():
    key, row = make_row()
    door = checked(row)
    door.identify(key, 1.0)
    door.check(10.0)
    door.identify(key, 10.0 + TTL - 0.01)
    assert len(door.found) == 1
    row.revoked_at = NOW
    door.note("keys", row.id)
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        door.identify(key, 10.0 + TTL)


def test_keys_are_good_for_minutes_while_the_database_is_away_and_what_changed_meanwhile_is_heard_of():
    (key, row), (other, other_row) = make_row(), make_row()
    door = checked(row, other_row)
    door.identify(key, 1.0), door.identify(other, 1.0)
    door.check(100.0)
    door.away = True
    for now in (101.0, 120.0, 100.0 + TTL + auth.GRACE - 1):
        with pytest.raises(errors.Draining):
            door.check(now)
        assert door.identify(key, now).key_id == row.id
    row.revoked_at = NOW
    door.note("keys", row.id)
    door.away = False
    door.check(500.0)
    assert code_of(door, key) == "revoked_api_key"
    looked_up = len(door.found)
    assert door.identify(other, 500.0).key_id == other_row.id
    assert len(door.found) == looked_up


@pytest.mark.parametrize(
    "noted",
    [
        [],
        [Change(1, "", "", NOW)],
        [Change(3, "keys", "x", NOW + timedelta(seconds=1))],
        [Change(4, "keys", "x", NOW)],
    ],
    ids=["none", "an older copy", "another database", "too long ago"],
)
def test_who_has_lost_the_thread_trusts_nothing_that_it_remembers(noted):
    key, row = make_row()
    door = checked(row)
    door.noted = [Change(number, "keys", "x", NOW) for number in (1, 2, 3)]
    door.check(0.5), door.identify(key, 0.5)
    door.noted = noted
    row.revoked_at = NOW
    touched = door.check(1.0)
    assert touched(Caller("any", "n", "o"))
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        door.identify(key, 1.0)


def test_a_key_that_was_looked_up_before_the_first_look_is_looked_up_again():
    """What was changed between the two is in neither."""
    key, row = make_row()
    door = Door(row)
    door.identify(key, 0.0)
    row.revoked_at = NOW
    door.note("keys", row.id)
    door.check(0.5)
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        door.identify(key, 0.5)


async def test_a_slow_look_up_does_not_bring_a_key_back_that_was_changed_elsewhere():
    key, row = make_row()
    door = Door(row)
    await door.auth.check(0.0)
    slow = await looks_up_while_it_is_revoked(door, key, row)
    door.note("keys", row.id)
    await door.auth.check(0.5)
    door.gate.set()
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        await slow


def test_a_remembered_key_expires_at_its_moment():
    key, row = make_row(expires_at=NOW + timedelta(seconds=2))
    door = checked(row)
    for at in (0, 1, 1.999):
        door.today = NOW + timedelta(seconds=at)
        door.identify(key, at)
    door.today, door.away = NOW + timedelta(seconds=2), True
    assert code_of(door, key) == "expired_api_key"  # the database is not asked for that
    assert len(door.found) == 1


def test_a_secret_that_was_rotated_is_good_until_its_moment_although_nothing_changes_then():
    key, row = make_row()
    secret = make_key().secret
    older = forged(key, secret)
    row.prior_digest, row.prior_pepper_version, row.prior_until = digest(PEPPER, secret), 1, NOW + timedelta(hours=1)
    door = checked(row)
    for at in (0, 1, 3599.9):
        door.today = NOW + timedelta(seconds=at)
        door.check(at)
        assert {door.identify(text, at).key_id for text in (key, older)} == {row.id}
    assert len(door.found) == 2
    door.today = NOW + timedelta(hours=1)
    door.check(3600)
    assert code_of(door, older) == "invalid_api_key"
    assert door.identify(key, 3600).key_id == row.id


def test_a_key_that_the_policy_ends_is_looked_up_then_for_it_may_have_been_used():
    key, row = make_row()
    door = checked(row)
    door.ends[row.id] = NOW + timedelta(days=1)
    door.identify(key, 0.5)
    door.today, door.ends[row.id] = NOW + timedelta(days=1), NOW + timedelta(days=2)
    door.check(86400.0)
    assert door.identify(key, 86400.0).key_id == row.id
    door.today = NOW + timedelta(days=2)
    door.check(2 * 86400.0)
    assert code_of(door, key) == "expired_api_key"
    assert len(door.found) == 3


@pytest.mark.parametrize("noun", ["users", "orgs"])
def test_who_is_shut_out_on_another_server_is_here_too(noun):
    key, row = make_row(org_id="o", user_id="u")
    door = checked(row)
    door.identify(key, 0.5)
    door.unwelcome.add(row.id)
    assert door.identify(key, 0.5).key_id == row.id
    door.note(noun, {"users": "u", "orgs": "o"}[noun])
    touched = door.check(1.0)
    assert touched(Caller("k", "n", "o", user_id="u"))
    assert code_of(door, key) == "user_disabled"


def test_a_key_that_was_refused_is_not_remembered_from_before():
    key, row = make_row()
    door = Door(row)
    door.identify(key, 0.0)
    row.revoked_at = NOW
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        door.identify(key, TTL)
    door.away = True
    with pytest.raises(errors.Draining):
        door.identify(key, TTL + 1)
    door.away = False
    door.check(TTL + 2)
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        door.identify(key, TTL + 2)
