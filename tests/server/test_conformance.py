"""The same bytes to both lanes, and the same bytes back, but for ids, dates and durations."""

import json
import re

import pytest

from mindgw.config import Limits
from mindgw.gateway import auth
from mindgw.server import bodies, guard, protocol
from mindgw_agent.tokens import make_key
from tests.e2e.raw import CHAT, Raw, head
from tests.server.hall import ANSWER, LANES, Hall, chat, hall

LIMITS = Limits(body=100_000)
ORIGIN = "https://chat.example.com"


@pytest.fixture(scope="module")
def halls():
    """Of each lane one, which knows the key for good and is soon tired of who says nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "TTL", 1e9)
        patch.setattr(bodies, "SILENCE", 0.3)
        patch.setattr(protocol, "SILENCE", 0.3)
        patch.setattr(guard, "TICK", 0.05)
        yield from _halls()


def _halls():
    with hall("fast", limits=LIMITS, origins=ORIGIN) as fast, hall("asgi", limits=LIMITS, origins=ORIGIN) as asgi:
        for place in (fast, asgi):
            with place.raw() as raw:
                raw.send(post(GOOD).replace(b"@KEY", place.key.encode()))
                assert raw.answer().status == 200
        yield {"fast": fast, "asgi": asgi}


@pytest.fixture(params=LANES)
def here(request, halls):
    return halls[request.param]


# -- bytes ---------------------------------------------------------------------------------------------------------------

#: What no two answers have in common.
VARIES = [
    (rb"(?m)^date: [^\r\n]*", b"date: D"),
    (rb"req-[0-9a-f]{24}", b"req-ID"),
    (rb"(?m)^(openai-processing-ms|x-mindgw-queue-ms): [0-9]+", rb"\1: 0"),
    (rb'"created":[0-9]+', b'"created":0'),
]


def settled(data):
    for pattern, stands_for in VARIES:
        data = re.sub(pattern, stands_for, data)
    return data


def answers(raw: Raw, count: int, *, head_only=False):
    """So many answers: the bytes of each head, and its body, whose chunks may have been cut anywhere; then what the connection does."""
    found = []
    for _ in range(count):
        top = raw.until(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in top.split(b"\r\n")[1:-2])
        if top.startswith((b"HTTP/1.1 100", b"HTTP/1.1 204")) or head_only:
            body = b""
        elif fields.get(b"transfer-encoding") == b"chunked":
            body = raw.chunked()
        elif b"content-length" in fields:
            while len(raw.held) < int(fields[b"content-length"]):
                assert raw.more(), raw.held
            body, raw.held = raw.held[: int(fields[b"content-length"])], raw.held[int(fields[b"content-length"]) :]
        else:
            while raw.more():
                pass
            body, raw.held = raw.held, b""
        found.append((settled(top), settled(body)))
    closes = b"connection: close" in found[-1][0]
    if closes:
        assert raw.ended()
    assert raw.held == b""
    return found


def both(halls, request, count=1, **more):
    """What both lanes answer; fails when that is not the same."""
    found = []
    for place in halls.values():
        with place.raw() as raw:
            raw.send(request.replace(b"@KEY", place.key.encode()))
            found.append(answers(raw, count, **more))
    fast, asgi = found
    assert fast == asgi
    return fast


def post(body, *lines, path=CHAT, version="1.1", key="@KEY"):
    top = head(path, f"authorization: Bearer {key}", "content-type: application/json", f"content-length: {len(body)}", *lines)
    return top.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1) + body


def chunked(body, size, *lines, key="@KEY"):
    parts = [body[place : place + size] for place in range(0, len(body), size)]
    top = head(CHAT, f"authorization: Bearer {key}", "transfer-encoding: chunked", *lines)
    return top + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


GOOD, STREAM = chat("plain"), chat("plain", stream=True)
FAILS = chat("fails")
EMBEDDINGS = json.dumps({"model": "m", "input": "x"}).encode()

#: name -> request, answers, status of the last one.
CASES = {
    "unary": (post(GOOD), 1, 200),
    "stream": (post(STREAM), 1, 200),
    "a whole answer that is large": (post(chat("large")), 1, 200),
    "an id of the caller's": (post(GOOD, "x-request-id: mine"), 1, 200),
    "a query": (post(GOOD, path=CHAT + "?api-version=1"), 1, 200),
    "an absolute address": (post(GOOD, path="http://x" + CHAT), 1, 200),
    "other paths": (post(EMBEDDINGS, path="/v1/embeddings") + post(GOOD, path="/v1/completions"), 2, 400),
    "the engine fails": (post(FAILS), 1, 502),
    "the engine fails before a stream begins": (post(chat("fails", stream=True)), 1, 502),
    "the engine fails in a stream": (post(chat("breaks", stream=True)), 1, 200),
    "no key": (head(CHAT, f"content-length: {len(GOOD)}") + GOOD, 1, 401),
    "a bad key": (post(GOOD, key="bad"), 1, 401),
    "a bad key and a large body": (post(b"x" * 90_000, key="bad"), 1, 401),
    "a bad key and chunks": (chunked(GOOD, 7, key="bad"), 1, 401),
    "an unknown key": (post(GOOD, key="mgw_" + "a" * 10 + "_" + "b" * 38), 1, 401),
    "a key that nobody has": (post(GOOD, key=make_key().text), 1, 401),
    "a key that nobody has, behind a large body": (post(b"x" * 90_000, key=make_key().text), 1, 401),
    "two keys": (post(GOOD, "x-api-key: other"), 1, 400),
    "no JSON": (post(b"{"), 1, 400),
    "nothing at all": (post(b""), 1, 400),
    "an unknown model": (post(chat("plain", model="x")), 1, 404),
    "a body that says it is too large": (head(CHAT, "authorization: Bearer @KEY", "content-length: 100001"), 1, 413),
    "a body that is too large": (post(b"x" * 100_001), 1, 413),
    "chunks that are too large": (chunked(b"x" * 100_001, 5000), 1, 413),
    "the largest body": (post(GOOD + b" " * (100_000 - len(GOOD))), 1, 200),
    "chunks": (chunked(GOOD, 5), 1, 200),
    "small chunks": (chunked(GOOD, 1), 1, 200),
    "chunks with trailers": (chunked(GOOD, 5)[:-2] + b"authorization: Bearer other\r\nx: y\r\n\r\n", 1, 200),
    "chunks with an extension": (chunked(GOOD, 5).replace(b"5\r\n", b"5;a=b\r\n", 1), 1, 200),
    "expects": (post(GOOD, "expect: 100-continue"), 2, 200),
    "expects, in capitals": (post(GOOD, "Expect: 100-Continue"), 2, 200),
    "expects, with a bad key": (post(b"", "expect: 100-continue", key="bad"), 1, 401),
    "expects with too much": (head(CHAT, "authorization: Bearer @KEY", "expect: 100-continue", "content-length: 100001"), 1, 413),
    "expects something else": (post(GOOD, "expect: pigs-fly"), 1, 200),
    "closes": (post(GOOD, "connection: close"), 1, 200),
    "closes a stream": (post(STREAM, "connection: close"), 1, 200),
    "closes an error": (post(b"{", "connection: close"), 1, 400),
    "what stands behind a close": (post(GOOD, "connection: close") + post(GOOD), 1, 200),
    "HTTP/1.0": (post(GOOD, version="1.0"), 1, 200),
    "HTTP/1.0, a stream": (post(STREAM, version="1.0"), 1, 200),
    "HTTP/1.0, a stream that fails": (post(chat("breaks", stream=True), version="1.0"), 1, 200),
    "HTTP/1.0 that would stay": (post(GOOD, "connection: keep-alive", version="1.0"), 1, 200),
    "HTTP/1.0 that expects": (post(GOOD, "expect: 100-continue", version="1.0"), 1, 200),
    "HTTP/1.0 without a host": (post(GOOD, version="1.0").replace(b"host: x\r\n", b""), 1, 200),
    "an upgrade to HTTP/2": (post(GOOD, "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk"), 1, 200),
    "one after the other": (post(GOOD) + post(STREAM) + post(b"{") + post(GOOD), 4, 200),
    "hot and cold": (post(STREAM) + head("/v1/models", "x-api-key: @KEY", method="GET") + post(GOOD) + head("/deaf", method="GET"), 4, 200),
    "refused in line": (post(GOOD) + post(GOOD, key="bad") + post(GOOD), 3, 200),
    "a refusal in line that closes": (post(GOOD) + chunked(GOOD, 5, key="bad") + post(GOOD), 2, 401),
    "many in line": (post(GOOD) * 60, 60, 200),
    "empty lines before": (b"\r\n\r\n" + post(GOOD), 1, 200),
    "a page": (post(GOOD, f"origin: {ORIGIN}"), 1, 200),
    "a page's stream": (post(STREAM, f"origin: {ORIGIN}"), 1, 200),
    "a page without a key": (post(GOOD, f"origin: {ORIGIN}", key="bad"), 1, 401),
    "a strange page": (post(GOOD, "origin: https://evil.example"), 1, 200),
}  # fmt: skip


#: What is sent behind the end of a connection.
BEHIND = {"what stands behind a close", "a refusal in line that closes"}


@pytest.mark.parametrize("name", CASES)
def test_both_lanes_answer_alike(halls, name):
    request, count, status = CASES[name]
    found = both(halls, request, count)
    assert found[-1][0].startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_same_when_it_comes_byte_by_byte(halls, name):
    request, count, status = CASES[name]
    if len(request) > 3000 or name in BEHIND:
        return
    found = []
    for place in halls.values():
        with place.raw() as raw:
            for byte in request.replace(b"@KEY", place.key.encode()):
                raw.send(bytes([byte]))
                if b"connection: close" in raw.held:
                    break
            found.append(answers(raw, count))
    assert found[0] == found[1] and found[0][-1][0].startswith(b"HTTP/1.1 %d " % status)


HOST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
#: Heads that are refused, on whatever path: name -> bytes, status.
MALFORMED = {
    "two hosts": (HOST + b"host: x\r\n\r\n", 400),
    "two other hosts": (HOST + b"Host: y\r\n\r\n", 400),
    "no host": (b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", 400),
    "a length and chunks": (HOST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 400),
    "chunks and a length": (HOST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", 400),
    "two lengths": (HOST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
    "the same length twice": (HOST + b"content-length: 5\r\ncontent-length: 5\r\n\r\n", 400),
    "two lengths in one": (HOST + b"content-length: 5, 5\r\n\r\n", 400),
    "chunks twice": (HOST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", 400),
    "another encoding": (HOST + b"transfer-encoding: gzip\r\n\r\n", 400),
    "chunks that are not last": (HOST + b"transfer-encoding: chunked, gzip\r\n\r\n", 400),
    "chunks in HTTP/1.0": (HOST.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "bare line feeds": (HOST.replace(b"\r\n", b"\n") + b"\n", 400),
    "one bare line feed": (HOST + b"a: b\nc: d\r\n\r\n", 400),
    "a bare line feed at the end": (HOST + b"a: b\r\n\n", 400),
    "a bare carriage return": (HOST + b"a: b\rc: d\r\n\r\n", 400),
    "a folded line": (HOST + b"a: b\r\n c\r\n\r\n", 400),
    "a folded line with a tab": (HOST + b"a: b\r\n\tc\r\n\r\n", 400),
    "a blank before the colon": (HOST + b"a : b\r\n\r\n", 400),
    "no colon": (HOST + b"nonsense\r\n\r\n", 400),
    "no name": (HOST + b": b\r\n\r\n", 400),
    **{f"byte {byte} in a value": (HOST + b"a: b%cc\r\n\r\n" % byte, 400) for byte in (0, 1, 8, 11, 12, 27, 31, 127)},
    "a byte in a name": (HOST + b"a\x00b: c\r\n\r\n", 400),
    "a negative length": (HOST + b"content-length: -1\r\n\r\n", 400),
    "a length with a sign": (HOST + b"content-length: +5\r\n\r\n", 400),
    "an endless length": (HOST + b"content-length: " + b"9" * 40 + b"\r\n\r\n", 400),
    "a chunk without a size": (HOST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    "a chunk that is too long": (HOST + b"transfer-encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
    "chunks of another encoding": (HOST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks behind nothing": (HOST + b"transfer-encoding: ,chunked\r\n\r\n0\r\n\r\n", 400),
    "HTTP/2.0 in words": (HOST.replace(b"1.1", b"2.0") + b"\r\n", 400),
    "HTTP/0.9 in words": (HOST.replace(b"1.1", b"0.9") + b"\r\n", 400),
    "a fragment": (HOST.replace(b" HTTP", b"#x HTTP") + b"\r\n", 400),
    "a host of two words": (HOST.replace(b"host: x", b"host: a b") + b"\r\n", 400),
    "a host with a path": (HOST.replace(b"host: x", b"host: a/b@c") + b"\r\n", 400),
    "an empty host": (HOST.replace(b"host: x", b"host: ") + b"\r\n", 400),
    "TLS": (bytes.fromhex("160301020001000100"), 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no such method": (b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a head of 64 KiB and one": (HOST + b"a: " + b"x" * (65537 - len(HOST) - 7) + b"\r\n\r\n", 431),
    "an endless head": (HOST + b"a: " + b"x" * 200_000, 431),
    "an endless address": (b"POST /" + b"x" * 200_000, 431),
    "too many headers": (HOST + b"".join(b"a%d: b\r\n" % number for number in range(101)) + b"\r\n", 431),
    "endless trailers": (HOST + b"transfer-encoding: chunked\r\n\r\n0\r\na: " + b"x" * 400_000, 431),
    "an endless extension": (HOST + b"transfer-encoding: chunked\r\n\r\n1;" + b"x" * 400_000, 431),
    "endless lines without anything": (b"\r\n" * 200_000, 431),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused_and_the_connection_ends(halls, name):
    """As the first request, and as a later one."""
    request, status = MALFORMED[name]
    request = request.replace(b"host: x\r\n", b"host: x\r\nauthorization: Bearer @KEY\r\n", 1)
    ((top, body),) = both(halls, request)
    assert top.startswith(b"HTTP/1.1 %d " % status) and b"\r\nconnection: close\r\n" in top
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    for place in halls.values():
        with place.raw() as raw:
            raw.send(post(GOOD).replace(b"@KEY", place.key.encode()))
            assert raw.answer().status == 200
            raw.send(request.replace(b"@KEY", place.key.encode()))
            assert answers(raw, 1) == [(top, body)]


def test_the_largest_head_is_taken(halls):
    request = post(GOOD)
    pad = 64 * 1024 - request.index(b"\r\n\r\n") - 200
    both(halls, post(GOOD, "x: " + "y" * pad))


# -- what every answer has -----------------------------------------------------------------------------------------------

ALLOWED = {
    "date", "server", "content-type", "content-length", "transfer-encoding", "connection", "cache-control", "x-accel-buffering",
    "x-request-id", "x-mindgw-request-id", "openai-version", "openai-processing-ms", "openai-organization", "x-mindgw-queue-position",
    "x-mindgw-queue-ms", "retry-after", "retry-after-ms", "x-should-retry", "www-authenticate", "vary", "access-control-allow-origin",
    "access-control-expose-headers",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_header_leaves_that_is_not_ours(halls, name):
    request, count, _ = CASES[name]
    for top, _body in both(halls, request, count):
        names = [line.split(b":")[0].decode() for line in top.split(b"\r\n")[1:-2]]
        assert len(set(names)) == len(names) and set(names) <= ALLOWED


def test_a_page_is_told_that_it_may(halls):
    ask = ("access-control-request-method: POST", "access-control-request-headers: authorization, content-type")
    for path in (CHAT, "/v1/models"):
        ((top, body),) = both(halls, head(path, f"origin: {ORIGIN}", *ask, method="OPTIONS"))
        assert top.startswith(b"HTTP/1.1 204 ") and body == b""
        assert f"access-control-allow-origin: {ORIGIN}".encode() in top and b"vary: origin" in top
        assert b"access-control-allow-methods: GET, POST" in top
        assert b"access-control-allow-headers: authorization, content-type" in top and b"credentials" not in top
    for other in (head(CHAT, "origin: https://evil.example", *ask, method="OPTIONS"), head(CHAT, f"origin: {ORIGIN}", method="OPTIONS")):
        ((top, _),) = both(halls, other)
        assert top.startswith(b"HTTP/1.1 405 ") and b"access-control-allow-methods" not in top
    ((top, _),) = both(halls, post(STREAM, f"origin: {ORIGIN}"))
    assert f"access-control-allow-origin: {ORIGIN}".encode() in top and b"access-control-expose-headers: x-request-id" in top
    ((top, _),) = both(halls, post(GOOD, "origin: https://evil.example"))
    assert b"access-control" not in top


#: What the connection itself refuses: bytes behind the path and the host, status.
REFUSED = {
    "a head that makes no sense": (b"content-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
    "a head that is no head": (b"a: b\r\nnonsense\r\n\r\n", 400),
    "a head that is too large": (b"a: " + b"x" * 100_000, 431),
    "a body that makes no sense": (b"authorization: Bearer @KEY\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    "a head that is late": (b"a", 408),
    "a body that is late": (b"authorization: Bearer @KEY\r\ncontent-length: 5\r\n\r\n{", 408),
}


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/echo"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_page_may_read_why_the_connection_refused_it(here, name, path):
    """Where its origin was read before that, and under /v1."""
    said, status = REFUSED[name]
    if (path, name[:6]) == ("/v1/models", "a body"):
        return  # is answered without one
    for origin in (ORIGIN, "https://evil.example", ""):
        lines = [f"origin: {origin}"] if origin else []
        with here.raw() as raw:
            raw.send(head(path, *lines)[:-2] + said.replace(b"@KEY", here.key.encode()))
            if status == 408:
                here.until(lambda: [one for one in here.server.server_state.connections if one._dry or one._got], "it came")
                here.passes_until(raw)
            answer = raw.answer()
        allowed = origin == ORIGIN and path != "/echo"
        assert (answer.status, answer.headers.get("access-control-allow-origin")) == (status, ORIGIN if allowed else None)
        assert ("access-control-expose-headers" in answer.headers) is allowed
        assert (answer.headers.get("vary") == "origin") is (path != "/echo")


def test_what_was_not_read_has_no_origin(here):
    with here.raw() as raw:
        raw.send(b"BREW / HTTP/1.1\r\n" + f"origin: {ORIGIN}\r\n\r\n".encode())
        answer = raw.answer()
    assert answer.status == 400 and not [name for name in answer.headers if name.startswith("access-control")]


def test_requests_leave_the_same_rows(halls):
    rows = {}
    for lane, place in halls.items():
        before = len(place.settled())
        for name in ("unary", "stream", "the engine fails", "no JSON", "an unknown model", "a body that is too large"):
            with place.raw() as raw:
                raw.send(CASES[name][0].replace(b"@KEY", place.key.encode()))
                answers(raw, 1)
        place.idle()
        rows[lane] = [(r.kind, r.outcome, r.status, r.error_code, r.stream) for r in place.settled()[before:]]
    assert rows["fast"] == rows["asgi"] and len(rows["fast"]) == 6


def test_the_answer_is_the_engines(here: Hall):
    with here.raw() as raw:
        raw.send(post(GOOD).replace(b"@KEY", here.key.encode()))
        assert raw.answer().body == ANSWER
