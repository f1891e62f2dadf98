"""Frames and what they say: round trips, and nothing but ProtocolError for whatever else can stand on a wire."""

import json
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import enrolment, wire
from mindgw_agent.wire import Close, Decoder, Frame, Meta, ProtocolError, Report

META = Meta(request_id="r1", path="/v1/completions", model="tiny", length=3)
JSON_WORDS = [
    wire.Hello,
    wire.Challenge,
    wire.Proof,
    wire.Welcome,
    wire.Goodbye,
    wire.Report,
    wire.Close,
    wire.Meta,
    wire.Receipts,
    wire.Received,
]
RECEIPT = wire.Receipt(seq=8, tag=b"\0tag", outcome="cancelled", prompt=3, completion=5, cached=1, events=6, bytes=99, at=1_790_000_000_000)
BATCH = wire.Receipts(receipts=[RECEIPT], after=7, prev=b"p" * 32, head=b"h" * 32, signature=b"s" * 64, gap="damaged", clear=True)


def header(length: int, stream: int, kind: int, flags: int = 0) -> bytes:
    return struct.pack("!IIBB", length, stream, kind, flags)


def frames(most: int = 200) -> st.SearchStrategy[Frame]:
    streams = st.integers(1, 2**32 - 1)
    data = st.binary(min_size=1, max_size=most)
    return st.one_of(
        st.builds(Frame, streams, st.just(wire.DATA), data, st.booleans()),
        st.builds(Frame, streams, st.just(wire.DATA), st.just(b""), st.just(True)),
        st.builds(Frame, streams, st.just(wire.CANCEL)),
        st.builds(wire.credit, streams, st.integers(0, 2**32 - 1)),
        st.builds(Frame, st.just(0), st.sampled_from([wire.PING, wire.PONG]), st.binary(max_size=64)),
    )


@given(st.lists(frames(), min_size=1, max_size=20))
def test_frames_survive_the_wire(sent):
    assert Decoder().feed(b"".join(wire.encode(frame) for frame in sent)) == sent


def test_the_header_is_ten_bytes_in_network_order():
    assert wire.encode(Frame(7, wire.DATA, b"abc", end=True)) == b"\0\0\0\x03\0\0\0\x07\x11\x01abc"


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_a_protocol_error(noise):
    for kinds in (wire.KINDS, wire.FROM_AGENT, wire.FROM_SERVER):
        try:
            read = Decoder(kinds).feed(noise)
        except ProtocolError:
            continue
        assert b"".join(wire.encode(frame) for frame in read) == noise


@given(st.lists(frames(), min_size=1, max_size=4), st.data())
def test_damaged_messages_are_frames_or_a_protocol_error(sent, data):
    message = bytearray(b"".join(wire.encode(frame) for frame in sent))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        Decoder().feed(bytes(message))
    except ProtocolError:
        pass


@given(frames(), st.data())
def test_a_cut_message_is_refused(frame, data):
    message = wire.encode(frame)
    with pytest.raises(ProtocolError):
        Decoder().feed(message[: data.draw(st.integers(0, len(message) - 1))])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "0 bytes"),
        (bytes(wire.MAX_MESSAGE + 1), "bytes"),
        ("a text message", "characters"),
        (wire.encode(Frame(0, wire.PING)) + b"\0", "header is cut"),
        (header(5, 1, wire.DATA) + b"abc", "payload is cut"),
        (header(0, 0, 0), "unknown"),
        (header(0, 1, 99), "unknown"),
        (header(wire.MAX_PAYLOAD + 1, 1, wire.DATA), "payload of"),
        (header(65, 0, wire.PING) + bytes(65), "payload of"),
        (header(0, 1, wire.DATA), "payload of"),
        (header(1, 1, wire.CANCEL) + b"x", "payload of"),
        (header(3, 1, wire.CREDIT) + b"xyz", "payload of"),
        (header(1, 1, wire.DATA, 2) + b"x", "flags"),
        (header(0, 1, wire.CANCEL, 1), "flags"),
        (header(1, 0, wire.DATA) + b"x", "stream 0"),
        (header(0, 3, wire.PING), "stream 3"),
    ],
)
def test_what_breaks_the_limits_is_refused(message, reason):
    with pytest.raises(ProtocolError, match=reason):
        Decoder().feed(message)


def test_each_end_may_say_its_own_words_only():
    opened = wire.encode(Frame(1, wire.OPEN, wire.build_open(META)))
    closed = wire.encode(wire.frame(Close("done"), 1))
    assert Decoder(wire.FROM_SERVER).feed(opened)
    assert Decoder(wire.FROM_AGENT).feed(closed)
    with pytest.raises(ProtocolError, match="other end"):
        Decoder(wire.FROM_AGENT).feed(opened)
    with pytest.raises(ProtocolError, match="other end"):
        Decoder(wire.FROM_SERVER).feed(closed)


def test_a_bad_frame_of_our_own_is_a_bug_not_a_protocol_error():
    with pytest.raises(ValueError, match="stream 0"):
        wire.encode(Frame(0, wire.CANCEL))


@pytest.mark.parametrize(
    "value",
    [
        wire.Hello(agent_id="a", nonce=bytes(32), last_epoch=7, software="mindgw 0"),
        wire.Challenge(nonce=bytes(range(32)), epoch=8, signature=b"s" * 64),
        wire.Welcome(name="box", state="active"),
        wire.Goodbye("draining", "the server restarts", 2.5),
        Close("done", usage=wire.Usage(3, 5, 1, "counted"), events=5, bytes=99, finish="stop", tag=b"\0tag", status=200),
        BATCH,
        wire.Receipts(after=0, prev=bytes(32), head=bytes(32)),
        wire.Received(2**53),
        wire.Proof(b"s" * 64, Report(1, hostname="box", gpus=[wire.Gpu("H200", 1, 1, 0.5, 40.0)])),
        Report(2, [wire.EngineReport(id="e", kind="vllm", healthy=True, slots=4, models=[wire.Model("m", 4096, ["chat"])])]),
    ],
)
def test_words_survive_the_wire(value):
    stream = 3 if isinstance(value, Close) else 0
    frame = Decoder().feed(wire.encode(wire.frame(value, stream)))[0]
    assert wire.parse(type(value), frame.payload) == value


def test_unknown_fields_are_for_later_versions():
    assert wire.parse(wire.Goodbye, b'{"code":"x","later":{"a":[1]}}') == wire.Goodbye("x")


@given(st.sampled_from(JSON_WORDS), st.binary(max_size=200) | st.text(alphabet='{}[]":,01e-tfn\\u ', max_size=60).map(str.encode))
def test_any_payload_is_words_or_a_protocol_error(kind, payload):
    try:
        assert isinstance(wire.parse(kind, payload), kind)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"null",
        b'{"serial":' + b"9" * 5000 + b"}",
        b'{"serial":-1}',
        b'{"serial":NaN}',
        b'{"x":' + b"[" * 60_000,
        b'{"hostname":"\xff"}',
        b'{"engines":[{"id":"e","kind":"k","healthy":true,"slots":1e30}]}',
    ],
)
def test_bad_reports_are_refused(payload):
    with pytest.raises(ProtocolError, match="bad Report|bad Proof"):
        wire.parse(wire.Proof if payload == b"{}" else Report, payload)


def receipts(receipt: dict | None = None, **fields) -> bytes:
    """A batch as it stands on the wire, changed."""
    batch = json.loads(wire.frame(BATCH).payload)
    batch["receipts"][0] |= receipt or {}
    return json.dumps(batch | fields).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        receipts({"seq": -1}),
        receipts({"prompt": -1}),
        receipts({"completion": 2**53 + 1}),
        receipts({"completion": 1.5}),
        receipts({"cached": "1"}),
        receipts({"events": None}),
        receipts({"bytes": float("nan")}),
        receipts({"at": 1e300}),
        receipts({"outcome": "busy"}),
        receipts({"source": "guessed"}),
        receipts({"tag": "!"}),
        receipts({"tag": "AAAA" * 2000}),
        receipts(receipts=[json.loads(receipts())["receipts"][0]] * (wire.MAX_BATCH + 1)),
        receipts(receipts={}),
        receipts(after=-1),
        receipts(prev="AAAA"),
        receipts(head=""),
        receipts(signature="AAAA" * 100),
        receipts(gap="a\x00b"),
        receipts(gap="x" * 201),
        receipts(clear=1),
    ],
)
def test_bad_receipts_are_refused(payload):
    with pytest.raises(ProtocolError, match="bad Receipts"):
        wire.parse(wire.Receipts, payload)


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"seq":-1}', b'{"seq":1e300}', b'{"seq":true}', b'{"seq":9007199254740993}'])
def test_bad_acknowledgements_are_refused(payload):
    with pytest.raises(ProtocolError, match="bad Received"):
        wire.parse(wire.Received, payload)


def test_receipts_of_any_kind_fit_in_a_frame_when_they_keep_to_their_room():
    most = 2**53
    large = wire.Receipt(
        seq=most, tag=b"\xff" * 4096, outcome="cancelled", prompt=most, completion=most, cached=most, source="estimated", at=most
    )
    batch = wire.Receipts(
        receipts=[large] * (wire.MAX_RECEIPTS // wire.size_of(large)),
        after=most,
        prev=b"\xff" * 32,
        head=b"\xff" * 32,
        signature=b"\xff" * 256,
        gap="é" * 200,
    )
    assert len(batch.receipts) == 11
    assert wire.frame(batch)


def test_words_that_do_not_fit_are_our_own_fault():
    with pytest.raises(ValueError, match="Goodbye of"):
        wire.frame(wire.Goodbye("refused", "x" * wire.MAX_GREETING))


# -- control characters: databases refuse NUL, terminals and logs obey the rest

NASTY = ["a\x00b", "\x1b[2J", "line\nline", "a\n", "\x7f", "\x85"]
ENGINE = {"id": "e", "kind": "k", "healthy": True, "slots": 1}


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (wire.Hello, {"agent_id": "?", "nonce": "A" * 43 + "="}),
        (wire.Hello, {"agent_id": "a", "nonce": "A" * 43 + "=", "software": "?"}),
        (Report, {"hostname": "?"}),
        (Report, {"gpus": [{"name": "?"}]}),
        *((Report, {"engines": [ENGINE | {name: "?"}]}) for name in ("id", "kind", "version", "url")),
        *((Report, {"engines": [ENGINE | {"models": [{"id": "m"} | odd]}]}) for odd in ({"id": "?"}, {"aliases": ["?"]}, {"kinds": ["?"]})),
        (Close, {"outcome": "failed", "code": "?"}),
    ],
)
def test_a_name_with_control_characters_is_refused(kind, fields, text):
    """The "?" is where the name stands."""
    good, bad = (json.dumps(fields).replace('"?"', json.dumps(name)).encode() for name in ("fine é", text))
    assert wire.parse(kind, good)
    with pytest.raises(ProtocolError, match="bad "):
        wire.parse(kind, bad)


@pytest.mark.parametrize("text", NASTY)
def test_a_machine_whose_name_holds_control_characters_does_not_join(text):
    assert msgspec.json.decode(b'{"hostname":"box"}', type=enrolment.Host)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps({"hostname": text}), type=enrolment.Host)


@pytest.mark.parametrize("text", NASTY)
def test_free_words_lose_their_control_characters(text):
    said = wire.parse(Close, json.dumps({"outcome": "failed", "message": text, "finish": text}).encode())
    report = wire.parse(Report, json.dumps({"engines": [ENGINE | {"error": text}]}).encode())
    for word in (said.message, said.finish, report.engines[0].error, Close("done", message=text).message):
        assert word.replace(" ", "").isprintable()
        assert len(word) == len(text)


@given(st.text(max_size=9), st.text(max_size=9))
def test_whatever_a_report_says_the_other_end_takes_it(text, other):
    models = [wire.Model(text, kinds=["chat"], aliases=[text, other]), wire.Model("m", aliases=[other])]
    told = wire.EngineReport(id="e1", kind="k", version=text, url=other, healthy=True, slots=1, models=models, error=text)
    fit = wire.fit(Report(1, [told], gpus=[wire.Gpu(text)], hostname=other))
    assert wire.parse(Report, wire.frame(fit).payload) == fit
    assert "m" in [model.id for model in fit.engines[0].models]


# -- reports and closes that must fit


def engine(name: str, models: int) -> wire.EngineReport:
    return wire.EngineReport(id=name, kind="ollama", healthy=True, slots=1, models=[wire.Model(f"{i:0100}") for i in range(models)])


def test_a_long_report_announces_the_first_models_and_says_so():
    report = wire.fit(Report(1, [engine("many", 5000), engine("few", 2)]))
    many, few = report.engines
    assert 100 < len(many.models) < 5000
    assert many.models[0].id == f"{0:0100}"
    assert "first" in many.error
    assert (len(few.models), few.error) == (2, "")
    assert wire.frame(wire.Proof(b"s" * 64, report))


def test_a_report_that_fits_is_left_alone():
    report = Report(1, [engine("few", 2)])
    assert wire.fit(report) is report


def test_a_report_that_is_large_without_models_is_our_own_fault():
    with pytest.raises(ValueError, match="a report of more than"):
        wire.fit(Report(hostname="x" * wire.MAX_REPORT))


def test_a_close_fits_whatever_an_engine_says():
    rude = Close("failed", "engine_error", "\x00" * 10**6, finish="\ud800")
    clipped = wire.clip(rude)
    assert wire.frame(clipped, 1)
    assert clipped.message == " " * wire.MAX_NOTE
    assert clipped.finish == " "
    assert wire.clip(Close("done")) == Close("done")


# -- heads of streams


@given(st.binary(max_size=100))
def test_open_holds_meta_and_body(body):
    assert wire.parse_open(wire.build_open(META, body)) == (META, body)


@given(st.integers(100, 599), st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=255), st.binary(max_size=100))
def test_head_holds_status_type_and_body(status, content_type, body):
    assert wire.parse_head(wire.build_head(status, content_type, body)) == wire.Head(status, content_type, body)


@pytest.mark.parametrize("content_type", ["text/html\r\nSet-Cookie: a=b", "text/ä", "x" * 256, "\x7f"])
def test_content_types_that_no_header_carries_are_replaced(content_type):
    assert wire.parse_head(wire.build_head(200, content_type)).content_type == "application/octet-stream"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\xc8",
        b"\0\xc8\x05text",
        b"\0\x63\x00",
        b"\xff\xff\x00",
        b"\0\xc8\x04a\r\nb",
        b"\0\xc8\x02\xc3\xa4",
    ],
)
def test_bad_heads_are_refused(payload):
    with pytest.raises(ProtocolError):
        wire.parse_head(payload)


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\x05{}", b"\0\x02{}", b"\0\x00"])
def test_bad_opens_are_refused(payload):
    with pytest.raises(ProtocolError):
        wire.parse_open(payload)


@given(st.binary(max_size=80))
def test_any_head_is_read_or_a_protocol_error(payload):
    for read in (wire.parse_open, wire.parse_head):
        try:
            read(payload)
        except ProtocolError:
            pass


def test_meta_that_does_not_fit_is_our_own_fault():
    with pytest.raises(ValueError, match="meta of"):
        wire.build_open(Meta(request_id="r", path="/", model="x" * wire.MAX_PAYLOAD, length=0))


def test_credit_is_four_bytes():
    assert wire.parse_credit(wire.credit(1, 65_536).payload) == 65_536


# -- agreement and signatures


def test_the_best_common_version_wins():
    assert (wire.negotiate([9, 1, 1]), wire.negotiate([1, 2]), wire.negotiate([2, 3])) == (1, 2, 2)


@pytest.mark.parametrize("versions", [[], [0], [3, 4]])
def test_no_common_version_is_refused(versions):
    with pytest.raises(ProtocolError, match="no common version"):
        wire.negotiate(versions)


FIELDS = st.lists(st.binary(max_size=6) | st.text(max_size=6).filter(lambda t: t.isprintable()), max_size=4)


@given(FIELDS, FIELDS)
def test_different_fields_never_sign_alike(one, two):
    raw = [[f if isinstance(f, bytes) else f.encode() for f in fields] for fields in (one, two)]
    assert (wire.transcript("l", *one) == wire.transcript("l", *two)) == (raw[0] == raw[1])


def test_each_field_changes_what_is_signed():
    challenges = [
        wire.transcript_challenge(b"a", b"b", "id", 1),
        wire.transcript_challenge(b"x", b"b", "id", 1),
        wire.transcript_challenge(b"a", b"x", "id", 1),
        wire.transcript_challenge(b"a", b"b", "xx", 1),
        wire.transcript_challenge(b"a", b"b", "id", 2),
        wire.transcript_challenge(b"a", b"b", "id", 1, 1),
        wire.transcript_proof(b"b", "id", 1, 0, b"srv", "host"),
        wire.transcript_proof(b"x", "id", 1, 0, b"srv", "host"),
        wire.transcript_proof(b"b", "xx", 1, 0, b"srv", "host"),
        wire.transcript_proof(b"b", "id", 2, 0, b"srv", "host"),
        wire.transcript_proof(b"b", "id", 1, 9, b"srv", "host"),
        wire.transcript_proof(b"b", "id", 1, 0, b"xxx", "host"),
        wire.transcript_proof(b"b", "id", 1, 0, b"srv", "other"),
        wire.transcript_receipts("id", 1, b"h"),
        wire.transcript_receipts("xx", 1, b"h"),
        wire.transcript_receipts("id", 2, b"h"),
        wire.transcript_receipts("id", 1, b"x"),
    ]
    assert len(set(challenges)) == len(challenges)


def test_levels_cannot_dead_lock():
    # a receiver may keep back anything below CREDIT_LEVEL for ever; the sender must wake up nevertheless
    assert wire.CREDIT_LEVEL < wire.RESUME_LEVEL < wire.WINDOW


def test_every_name_of_the_face_exists():
    assert [name for name in wire.__all__ if not hasattr(wire, name)] == []
