"""How a machine becomes an agent, and how it stops being one. What is said stands in `enrolment`."""

import platform
import secrets
import socket

import msgspec

from mindgw_agent import __version__, address, enrolment, errors, identity
from mindgw_agent.door import Door, open_door
from mindgw_agent.enrolment import Admission, Answer, Application, Farewell, Question
from mindgw_agent.settings import Settings, StateDir
from mindgw_agent.tokens import JoinToken, TokenError
from mindgw_agent.vocabulary import clean


def read_token(text: str) -> JoinToken:
    """The token that was pasted; `Misuse` says what is wrong with it."""
    try:
        return JoinToken.decode(text)
    except TokenError as error:
        raise errors.Misuse(str(error), hint=errors.TokenRefused.default_hint, code=f"join_token_{error.code}") from None


def join(state: StateDir, token: JoinToken, *, name: str | None = None, replace: bool = False, servers: tuple[str, ...] = ()) -> Settings:
    """Enrol this state directory with the first server of the token that answers and proves itself; blocks for the network.

    `servers` stands in for the token's URLs. The private key is on the disk before anything is sent, so that after a lost reply
    the same command gives the same agent. Raises `Untrusted`, `Unreachable`, `TokenRefused`, `NameTaken`, `Misuse`, `BadState`.
    """
    key = state.obtain_key()
    urls = list(servers or token.urls)
    failures: list[errors.AgentError] = []
    for url in urls:
        try:
            door = open_door(address.parse(url), token.pins)
            admission = _apply(door, token, key, name, replace)
        except (errors.Untrusted, errors.Unreachable, errors.Misuse) as error:
            failures.append(error)
            continue
        settings = Settings(
            agent_id=admission.agent_id,
            name=admission.name,
            servers=[door.address.root, *_others(door, url, urls)],
            server_identity=token.srv,
            pins=token.pins,
            ca=door.ca.decode("ascii", "replace"),
        )
        state.save(settings)
        return settings
    raise _gravest(failures)


def move(settings: Settings, url: str) -> Settings:
    """The settings with another address of the same server, which has proved there that it is the same; nothing is written.

    Raises `Untrusted`, `Unreachable`, `Misuse`.
    """
    where = address.parse(url)
    try:
        door = open_door(where, settings.pins)
        ask_who(door, secrets.token_bytes(8).hex(), settings.server_identity)
    except (errors.Untrusted, errors.Unreachable) as error:
        error.hint = f"{error.hint}. Nothing was changed: this agent's server is {settings.servers[0]}"
        raise
    return msgspec.structs.replace(settings, servers=[where.root], ca=door.ca.decode("ascii", "replace"))


def _others(door: Door, url: str, urls: list[str]) -> list[str]:
    """Where else the server is. Over TLS it is on another machine, as far as we know, and its loopback address is not ours."""
    others = [other for other in urls if other != url]
    return [other for other in others if address.parse(other).secure] if door.address.secure else others


def leave(state: StateDir, settings: Settings) -> None:
    """Tell the server to forget this agent; the state directory stays as it is. Raises what kept the server from agreeing."""
    key = state.private_key()
    nonce = secrets.token_bytes(32)
    said = enrolment.transcript_farewell(settings.agent_id, nonce, settings.server_identity)
    farewell = Farewell(agent_id=settings.agent_id, nonce=nonce, signature=identity.sign(key, said))
    failures: list[errors.AgentError] = []
    for url in settings.servers:
        try:
            open_door(address.parse(url), settings.pins).ask(enrolment.LEAVE_PATH, farewell, msgspec.Raw)
        except errors.Dismissed:
            return  # the server knew no such agent any more
        except (errors.Untrusted, errors.Unreachable, errors.Misuse) as error:
            failures.append(error)
        else:
            return
    raise _gravest(failures)


def _apply(door: Door, token: JoinToken, key: bytes, name: str | None, replace: bool) -> Admission:
    host = door.address.netloc
    question, answer = ask_who(door, token.id.hex(), token.srv)
    blank = bytes(64)
    application = Application(
        token_id=question.token_id,
        agent_nonce=question.nonce,
        server_nonce=answer.nonce,
        public_key=identity.public_half(key),
        name=name,
        replace=replace,
        host=_facts(),
        proof=blank,
        signature=blank,
    )
    said = enrolment.transcript_application(application, token.srv, host)
    signed = msgspec.structs.replace(application, proof=identity.sign(token.secret, said), signature=identity.sign(key, said))
    admission = door.ask(enrolment.JOIN_PATH, signed, Admission)
    replied = enrolment.transcript_admission(application, admission.agent_id, admission.name, admission.state)
    _check(token.srv, admission.signature, replied, host)
    return admission


def ask_who(door: Door, token_id: str, server_identity: bytes) -> tuple[Question, Answer]:
    """Ask a server to prove who it is, which it does for any token. Raises `Untrusted` when it is not the one of that identity."""
    host = door.address.netloc
    question = Question(token_id=token_id, nonce=secrets.token_bytes(32))
    answer = door.ask(enrolment.CHALLENGE_PATH, question, Answer)
    _check(server_identity, answer.signature, enrolment.transcript_answer(question, answer.nonce, host), host)
    return question, answer


def _check(server_identity: bytes, signature: bytes, said: bytes, host: str) -> None:
    if not identity.verify(server_identity, signature, said):
        raise errors.Untrusted(
            f"{host} did not prove that it is the server of the token",
            hint="another server has this address now, or a proxy in between changes the Host header. Nothing secret was sent",
            code="wrong_identity",
        )


def _facts() -> enrolment.Host:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return enrolment.Host(hostname=clean(socket.gethostname()[:255]), os=clean(system[:255]), software=f"mindgw-agent/{__version__}")


def _gravest(failures: list[errors.AgentError]) -> errors.AgentError:
    """What to tell when no server was good: a wrong one is worse news than a silent one."""
    order = (errors.Untrusted, errors.Misuse, errors.Unreachable)
    return min(failures, key=lambda error: [isinstance(error, kind) for kind in order].index(True))
