import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.gateway.handshake import Rejected, goodbye
from mindgw_agent import identity, session, wire
from tests.gateway.world import AGENT, SERVER, greeting

STRANGER = identity.new_key()


def agent(last_epoch: int = 0, server: bytes = SERVER, key: bytes = AGENT, host: str = "gw") -> session.Session:
    """An agent that said hello, and the words in which it did."""
    parties = session.Parties(
        agent_id="a",
        host=host,
        server_identity=identity.public_half(server),
        last_epoch=last_epoch,
        sign=lambda message: identity.sign(key, message),
        verify=identity.verify,
    )
    made = session.Session(parties, wire.Report(7, hostname="h"))
    made.start()
    return made


def greet(made: session.Session, stored: int = 0, host: str = "gw", server: bytes = SERVER) -> tuple[session.Session, wire.Report, int]:
    hands = greeting(server)
    assert hands.hello(made.take()).agent_id == "a"
    (proving,) = made.receive(hands.challenge(stored), 0.0)
    assert proving == session.Proving(hands.epoch)
    made.prove()
    report = hands.admit(made.take(), identity.public_half(AGENT), stored, host)
    (ready,) = made.receive(hands.welcome("name", "active", "1.2", 5.0), 0.0)
    assert (ready.welcome.name, ready.welcome.state, ready.welcome.ping_interval) == ("name", "active", 5.0)
    return made, report, hands.epoch


def rejected(made: session.Session, **how: object) -> str:
    with pytest.raises(Rejected) as caught:
        greet(made, **how)  # type: ignore[arg-type]
    return caught.value.goodbye.code


def test_two_who_know_each_other_come_together():
    made, report, epoch = greet(agent())
    assert (made.state, report, epoch) == (session.State.READY, wire.Report(7, hostname="h"), 1)


@pytest.mark.parametrize(("agents", "servers", "epoch"), [(0, 0, 1), (4, 4, 5), (9, 4, 10)])
def test_a_session_is_newer_than_either_side_remembers(agents, servers, epoch):
    """An agent that knows more than the server: the server was rolled back, or it died before it wrote."""
    assert greet(agent(agents), stored=servers)[2] == epoch


def test_an_agent_that_knows_less_than_the_server_is_a_copy():
    assert rejected(agent(3), stored=4) == "locked"


def test_a_wrong_key_is_refused_before_a_copy_is_spoken_of():
    """Or a stranger could lock a worker out."""
    assert rejected(agent(3, key=STRANGER), stored=4) == "refused"
    assert rejected(agent(key=STRANGER)) == "refused"


def test_a_greeting_for_another_host_is_refused():
    """A server in the middle cannot pass the agent's proof on."""
    assert rejected(agent(host="elsewhere")) == "refused"


def test_an_agent_leaves_a_server_that_is_not_its_own():
    with pytest.raises(session.IdentityError):
        greet(agent(server=STRANGER))


def test_a_proof_is_good_for_one_greeting():
    made = agent()
    hello = made.take()
    first, second = greeting(), greeting()
    first.hello(hello), second.hello(hello)
    made.receive(first.challenge(0), 0.0)
    made.prove()
    second.challenge(0)
    with pytest.raises(Rejected, match="signature"):
        second.admit(made.take(), identity.public_half(AGENT), 0, "gw")


def test_the_two_need_a_version_in_common():
    hello = wire.Hello(agent_id="a", nonce=b"n" * 32, versions=[3, 4])
    with pytest.raises(Rejected, match="upgrade") as caught:
        greeting().hello(wire.encode(wire.frame(hello)))
    assert caught.value.goodbye.code == "version"


def test_a_refusal_can_be_said_whatever_it_quotes():
    hello = wire.Hello(agent_id="a", nonce=b"n" * 32, versions=[*range(10_000, 10_640)])
    with pytest.raises(Rejected) as caught:
        greeting().hello(wire.encode(wire.frame(hello)))
    (frame,) = wire.Decoder().feed(goodbye(caught.value.goodbye))
    assert wire.parse(wire.Goodbye, frame.payload).code == "version"


def test_nothing_goes_before_hello():
    for step in (lambda hands: hands.challenge(0), lambda hands: hands.admit(b"", b"", 0, "gw")):
        with pytest.raises(wire.ProtocolError, match="nobody said hello"):
            step(greeting())


HELLO = wire.frame(wire.Hello(agent_id="a", nonce=b"n" * 32))
PROOF = wire.frame(wire.Proof(b"s" * 64, wire.Report()))


@pytest.mark.parametrize("frames", [[PROOF], [HELLO, HELLO], [wire.Frame(0, wire.PING)], [wire.Frame(1, wire.DATA, b"x")], [HELLO, PROOF]])
def test_a_greeting_begins_with_hello_and_nothing_else(frames):
    with pytest.raises(wire.ProtocolError):
        greeting().hello(b"".join(map(wire.encode, frames)))


@pytest.mark.parametrize("frames", [[HELLO], [PROOF, PROOF], [wire.Frame(0, wire.REPORT, b"{}")]])
def test_a_challenge_is_answered_with_a_proof_and_nothing_else(frames):
    hands = greeting()
    hands.hello(wire.encode(HELLO))
    hands.challenge(0)
    with pytest.raises(wire.ProtocolError):
        hands.admit(b"".join(map(wire.encode, frames)), b"k" * 32, 0, "gw")


fields = st.dictionaries(
    st.sampled_from(["agent_id", "nonce", "versions", "last_epoch", "signature", "report"]),
    st.none() | st.integers() | st.text(max_size=50) | st.lists(st.integers(), max_size=3),
)


@given(st.binary(max_size=40) | fields.map(lambda value: wire.encode(wire.Frame(0, wire.HELLO, json.dumps(value).encode()))))
def test_any_first_word_is_hello_or_an_error(message):
    try:
        greeting().hello(message)
    except (wire.ProtocolError, Rejected) as wrong:
        assert str(wrong)  # noqa: PT017 - either is good, anything else is not


@given(st.binary(max_size=40) | fields.map(lambda value: wire.encode(wire.Frame(0, wire.PROOF, json.dumps(value).encode()))))
def test_any_second_word_is_refused(message):
    hands = greeting()
    hands.hello(wire.encode(HELLO))
    hands.challenge(0)
    with pytest.raises((wire.ProtocolError, Rejected)):
        hands.admit(message, identity.public_half(AGENT), 0, "gw")


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_no_key_and_no_signature_make_a_crash(key, signature):
    hands = greeting()
    hands.hello(wire.encode(HELLO))
    hands.challenge(0)
    with pytest.raises(Rejected):
        hands.admit(wire.encode(wire.frame(wire.Proof(signature, wire.Report()))), key, 0, "gw")


def test_a_first_report_that_cannot_be_is_a_charge_once_its_sender_is_known():
    made, hands = agent(), greeting()
    hands.hello(made.take())
    made.receive(hands.challenge(0), 0.0)
    made.prove()
    (proof,) = wire.Decoder().feed(made.take())
    lie = wire.encode(wire.Frame(0, wire.PROOF, proof.payload.replace(b'"serial":7', b'"serial":-7')))
    assert hands.admit(lie, identity.public_half(AGENT), 0, "gw") == wire.Report()
    assert hands.charge.startswith("it reports what cannot be: bad Proof: ")


def test_a_stranger_is_turned_away_whatever_they_report():
    made, hands = agent(), greeting()
    hands.hello(made.take())
    made.receive(hands.challenge(0), 0.0)
    made.prove()
    (proof,) = wire.Decoder().feed(made.take())
    lie = wire.encode(wire.Frame(0, wire.PROOF, proof.payload.replace(b'"serial":7', b'"serial":-7')))
    with pytest.raises(Rejected):
        hands.admit(lie, identity.public_half(SERVER), 0, "gw")
