import json

import pytest

from mindgw import errors
from mindgw.config import Limits
from mindgw.core.payload import Peek
from mindgw.gateway import signals
from mindgw.gateway.admission import ENDPOINTS, Ask, Caller, admit
from mindgw.gateway.route import Needs


def check(model: str, kind: str) -> None:
    """A fleet that has one model for everything."""
    if model != "m":
        raise errors.ModelNotFound(param="model")


CALLER = Caller("k", "n", "o")
FIELDS = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}


def only_m(model: str, kind: str) -> None:
    if model != "m":
        raise errors.ModelNotFound(param="model")


def ask(path: str = "/v1/chat/completions", **fields: object) -> Ask:
    body = json.dumps({"model": "m"} | FIELDS | fields).encode()
    return admit(CALLER, signals.Head("r", path, []), body, Limits(n=2), check)


@pytest.mark.parametrize(("path", "kind"), ENDPOINTS.items())
def test_each_endpoint_needs_its_kind_of_model(path, kind):
    asked = ask(path)
    assert (asked.needs, asked.peek, asked.caller) == (Needs("m", kind), Peek("m", False, False), CALLER)


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": None}, errors.BadRequest, "model"),
        ({"model": "x"}, errors.ModelNotFound, "model"),
        ({"n": 3}, errors.BadRequest, "n"),
        ({"messages": []}, errors.BadRequest, "messages"),
        (
            {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}]},
            errors.UnsupportedMedia,
            "messages",
        ),
        ({"messages": [{"content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]}, errors.UnsupportedMedia, "messages"),
    ],
)
def test_what_is_hopeless_is_refused_and_named(fields, kind, param):
    with pytest.raises(kind) as caught:
        ask(**fields)
    assert (type(caught.value), caught.value.param) == (kind, param)


def test_media_within_the_request_are_welcome():
    assert ask(messages=[{"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}])


def test_a_long_address_is_not_repeated_whole():
    with pytest.raises(errors.UnsupportedMedia) as caught:
        ask(messages=[{"content": [{"image_url": {"url": "http://" + "x" * 9000}}]}])
    assert len(caught.value.message) < 400
