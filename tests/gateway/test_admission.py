import json

import msgspec
import pytest
from msgspec.structs import replace

from mindgw import errors
from mindgw.config import Limits
from mindgw.core import access
from mindgw.core.payload import Peek
from mindgw.core.routing import EVERYWHERE, Leg
from mindgw.gateway import signals
from mindgw.gateway.admission import ENDPOINTS, Ask, Caller, admit, meant, recheck, require_use
from mindgw.gateway.experience import Traits
from mindgw.gateway.flows import Flow
from mindgw.gateway.route import Needs


class Fleet:
    """A FAKE of fleet and routes: there is one model for everything, which goes by two names."""

    hedge = False

    def present(self, model, where):
        return True

    def has_choice(self, model, kind, where):
        return False

    def go(self, caller: Caller, model: str, kind: str, flow: Flow, named: str = "") -> tuple[None, Leg]:
        if model not in {"m", "big"}:
            raise errors.ModelNotFound(param="model")
        return None, Leg(model, caller.home)

    def offers(self, name: str) -> dict[str, frozenset[str]]:
        return {"m": frozenset(("m", "big"))} if name in {"m", "big"} else {}


class Served:
    """A FAKE: where a model runs that goes by these names."""

    def __init__(self, *names: str) -> None:
        self.names = names


CALLER = Caller("k", "n", "o")
FIELDS = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}


def ask(path: str = "/v1/chat/completions", **fields: object) -> Ask:
    body = json.dumps({"model": "m"} | FIELDS | fields).encode()
    return admit(CALLER, signals.Head("r", path, []), body, Limits(n=2), Fleet(), Fleet())


@pytest.mark.parametrize(("path", "kind"), ENDPOINTS.items())
def test_each_endpoint_needs_its_kind_of_model(path, kind):
    asked = ask(path)
    traits = Traits(asked.prompt, None, None, "k", None, "o")
    assert (asked.needs, asked.peek, asked.caller) == (Needs("m", kind, traits=traits), Peek("m", False, False), CALLER)


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


# -- who may ask for what ----------------------------------------------------------------------------------------------


def rules(*texts: str) -> access.Models | None:
    words = [text.split() for text in texts]
    return access.compile_models(access.Rule(pattern, "user:u", effect == "allow", pattern) for effect, pattern in words)


@pytest.mark.parametrize("name", ["m", "big"])
@pytest.mark.parametrize(("texts", "good"), [(["allow m"], True), (["allow x*"], False), (["deny b*"], False), (["deny x"], True)])
def test_a_model_that_is_not_for_the_caller_is_not_there(name, texts, good):
    assert (meant(replace(CALLER, models=rules(*texts)), name, Fleet(), EVERYWHERE) is not None) is good


def test_what_a_name_stands_for_is_looked_at_again_when_it_is_known():
    asked = msgspec.structs.replace(ask(), caller=replace(CALLER, models=rules("deny large")))
    recheck(asked, Served("m"))
    with pytest.raises(errors.ModelNotFound):
        recheck(asked, Served("m", "large"))
    recheck(ask(), Served("m", "large"))


@pytest.mark.parametrize(("role", "good"), [("admin", True), ("operator", True), ("user", True), ("viewer", False)])
def test_whoever_may_use_no_model_is_told_before_the_body_is_read(role, good):
    caller = replace(CALLER, rights=access.combine([(access.BUILT_IN[role], None)]))
    if good:
        require_use(caller)
        return
    with pytest.raises(errors.Forbidden) as refused:
        require_use(caller)
    assert refused.value.code == "role_not_allowed"
