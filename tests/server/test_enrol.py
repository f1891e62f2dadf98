"""Joining and leaving against a real server, a real database and the real agent side."""

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import trustme
from sqlmodel import select

from mindgw.control.enrol import NONCE_LIFE
from mindgw.errors import Unauthenticated
from mindgw.store.tables import AuditEntry
from mindgw_agent import address, enrolment, errors, identity, join
from mindgw_agent.door import Door
from mindgw_agent.settings import Settings, StateDir
from mindgw_agent.tokens import JoinToken
from tests.server.enrolling import spoilt, world


@pytest.fixture(autouse=True)
def _no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")


async def enrolled(directory: Path, token: JoinToken, **options) -> Settings:
    return await asyncio.to_thread(join.join, StateDir(directory), token, **options)


async def test_an_agent_joins_over_loopback_and_is_the_worker_that_the_server_stored(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        settings = await enrolled(tmp_path / "a", await server.token(), name="gpu-1")
        [worker] = await server.workers()
        key = StateDir(tmp_path / "a").private_key()
        assert (worker.id, worker.name, worker.state_admin) == (settings.agent_id, "gpu-1", "active")
        assert worker.public_key == identity.public_half(key)
        assert settings.servers == server.urls
        assert StateDir(tmp_path / "a").load() == settings
        async with server.database.read() as session:
            [entry] = (await session.exec(select(AuditEntry))).all()
        assert (entry.action, entry.object, entry.detail["name"]) == ("worker.join", worker.id, "gpu-1")


async def test_an_agent_joins_over_tls_by_the_pin_alone(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with world(tmp_path, authority=authority) as server:
        settings = await enrolled(tmp_path / "a", await server.token())
        assert identity.pin_of(settings.ca.encode()) == server.pins[0]
        await asyncio.to_thread(join.leave, StateDir(tmp_path / "a"), settings)
        assert server.removed == [settings.agent_id]


async def test_of_a_hundred_redeems_of_one_token_one_agent_comes_out(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        token = await server.token()
        host = address.parse(server.urls[0]).netloc
        now = datetime.now(UTC)

        async def redeem() -> enrolment.Admission:
            key = identity.new_key()
            question = enrolment.Question(token_id=token.id.hex(), nonce=secrets.token_bytes(32))
            nonce = server.registrar.challenge(question, host, now.timestamp()).nonce
            return await server.registrar.join(application(token, key, question, nonce, host), host, now)

        outcomes = await asyncio.gather(*(redeem() for _ in range(100)), return_exceptions=True)
        admitted = [outcome for outcome in outcomes if isinstance(outcome, enrolment.Admission)]
        assert [worker.id for worker in await server.workers()] == [admitted[0].agent_id]
        assert len(admitted) == 1
        assert {outcome.code for outcome in outcomes if isinstance(outcome, Exception)} == {"join_token_used"}


def application(token: JoinToken, key: bytes, question: enrolment.Question, nonce: bytes, host: str) -> enrolment.Application:
    blank = enrolment.Application(
        token_id=question.token_id,
        agent_nonce=question.nonce,
        server_nonce=nonce,
        public_key=identity.public_half(key),
        proof=bytes(64),
        signature=bytes(64),
    )
    said = enrolment.transcript_application(blank, token.srv, host)
    return msgspec.structs.replace(blank, proof=identity.sign(token.secret, said), signature=identity.sign(key, said))


@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [
        ("expired", "join_token_expired", "expired"),
        ("used", "join_token_used", "used"),
        ("revoked", "join_token_revoked", "revoked"),
        ("unknown", "join_token_unknown", "knows no such"),
        ("forged", "join_token_unknown", "knows no such"),
    ],
)
async def test_a_bad_token_says_why_and_what_to_do_next(tmp_path: Path, kind: str, code: str, word: str) -> None:
    async with world(tmp_path) as server:
        with pytest.raises(errors.TokenRefused, match=word) as caught:
            await enrolled(tmp_path / "a", await spoilt(server, kind))
        assert (caught.value.code, caught.value.exit_code) == (code, 4)
        assert "join-tokens create" in caught.value.hint
        assert await server.workers() == []
        assert StateDir(tmp_path / "a").load() is None


async def test_a_taken_name_is_refused_without_costing_the_token_and_replace_takes_it(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        first = await enrolled(tmp_path / "a", await server.token(), name="gpu")
        token = await server.token()
        with pytest.raises(errors.NameTaken, match="gpu") as caught:
            await enrolled(tmp_path / "b", token, name="gpu")
        assert caught.value.exit_code == 7
        assert "--replace" in caught.value.hint
        second = await enrolled(tmp_path / "b", token, name="gpu", replace=True)
        states = {worker.id: worker.state_admin for worker in await server.workers()}
        assert states == {first.agent_id: "removed", second.agent_id: "active"}
        assert server.removed == [first.agent_id]


async def test_two_state_directories_without_a_name_are_two_agents(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        first = await enrolled(tmp_path / "a", await server.token())
        second = await enrolled(tmp_path / "b", await server.token())
        assert second.name == f"{first.name}-2"
        assert first.agent_id != second.agent_id


async def test_the_same_state_directory_joins_twice_as_one_agent_after_a_lost_reply(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        token = await server.token()
        first = await enrolled(tmp_path / "a", token)
        StateDir(tmp_path / "a").settings_file.unlink()
        assert await enrolled(tmp_path / "a", token) == first
        assert len(await server.workers()) == 1


async def test_a_token_for_one_name_gives_that_name_and_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        token = await server.token(name_bind="gpu-7", approve="manual")
        with pytest.raises(errors.TokenRefused, match="gpu-7"):
            await enrolled(tmp_path / "a", token, name="other")
        assert (await enrolled(tmp_path / "a", token)).name == "gpu-7"
        [worker] = await server.workers()
        assert worker.state_admin == "pending"


async def test_another_server_under_the_same_address_is_told_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        token = msgspec.structs.replace(await server.token(), srv=identity.public_half(identity.new_key()))
        with pytest.raises(errors.Untrusted) as caught:
            await enrolled(tmp_path / "a", token)
        assert (caught.value.code, caught.value.exit_code) == ("wrong_identity", 9)


async def test_the_first_url_that_answers_is_taken(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        token = msgspec.structs.replace(await server.token(), urls=["http://127.0.0.1:1", *server.urls])
        assert (await enrolled(tmp_path / "a", token)).servers == [*server.urls, "http://127.0.0.1:1"]


async def test_an_agent_leaves_once_and_twice_and_nobody_leaves_for_it(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        settings = await enrolled(tmp_path / "a", await server.token())
        stranger = StateDir(tmp_path / "b")
        stranger.obtain_key()
        nonce = secrets.token_bytes(32)
        said = enrolment.transcript_farewell(settings.agent_id, nonce, settings.server_identity)
        signature = identity.sign(stranger.private_key(), said)
        with pytest.raises(Unauthenticated):
            await server.registrar.leave(enrolment.Farewell(agent_id=settings.agent_id, nonce=nonce, signature=signature))
        for _ in range(2):
            await asyncio.to_thread(join.leave, StateDir(tmp_path / "a"), settings)
        [worker] = await server.workers()
        assert worker.state_admin == "removed"
        async with server.database.read() as session:
            actions = (await session.exec(select(AuditEntry.action).order_by(AuditEntry.at))).all()
        assert actions == ["worker.join", "worker.remove"]


async def test_a_nonce_is_good_for_a_minute_one_token_and_one_agent_nonce(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        token, host, key = await server.token(ttl=120), "127.0.0.1:1", identity.new_key()
        question = enrolment.Question(token_id=token.id.hex(), nonce=secrets.token_bytes(32))
        start = datetime.now(UTC)
        nonce = server.registrar.challenge(question, host, start.timestamp()).nonce
        other = msgspec.structs.replace(question, nonce=secrets.token_bytes(32))
        late = start + timedelta(seconds=NONCE_LIFE + 1)
        for asked, sealed, moment in [(question, nonce, late), (other, nonce, start), (question, secrets.token_bytes(32), start)]:
            with pytest.raises(Unauthenticated) as caught:
                await server.registrar.join(application(token, key, asked, sealed, host), host, moment)
            assert caught.value.code == "join_challenge_expired"
        await server.registrar.join(application(token, key, question, nonce, host), host, late - timedelta(seconds=1))


async def test_a_proof_for_one_address_is_worthless_under_another(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        token = await server.token()
        question = enrolment.Question(token_id=token.id.hex(), nonce=secrets.token_bytes(32))
        now = datetime.now(UTC)
        nonce = server.registrar.challenge(question, "evil.example", now.timestamp()).nonce
        made = application(token, identity.new_key(), question, nonce, "evil.example")
        with pytest.raises(Unauthenticated, match="knows no such join token"):
            await server.registrar.join(made, "gateway.example:8420", now)


MALFORMED = [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"{}", b'{"token_id":"zz","nonce":""}', b'{"extra":1}', b"[" * 10_000, b"x" * 20_000]


@pytest.mark.parametrize("path", [enrolment.CHALLENGE_PATH, enrolment.JOIN_PATH, enrolment.LEAVE_PATH])
async def test_malformed_questions_get_an_error_object(tmp_path: Path, path: str) -> None:
    async with world(tmp_path) as server:
        door = Door(address.parse(server.urls[0]), b"")
        for body in MALFORMED:
            with pytest.raises(errors.AgentError) as caught:
                await asyncio.to_thread(door.ask, path, msgspec.Raw(body), dict)
            assert caught.value.code in ("invalid_request", "request_too_large")


async def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        question = {"token_id": "00" * 8, "nonce": bytes(32), "admin": True}
        with pytest.raises(errors.AgentError, match="admin"):
            await asyncio.to_thread(Door(address.parse(server.urls[0]), b"").ask, enrolment.CHALLENGE_PATH, question, dict)


async def test_a_server_without_tls_has_no_ca_file(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        port = address.parse(server.urls[0]).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /.well-known/mindgw/ca.pem HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 404 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
