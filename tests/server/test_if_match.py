"""`If-Match` is honoured wherever something that has a version is changed; a new route that is not must say here why not."""

import inspect

import pytest

from mindgw.server import management

#: (method, path) -> why there is no version to match.
WITHOUT = {
    ("DELETE", "/queue/{entry:str}"): "requests that are under way",
    ("POST", "/queue/{entry:str}/bump"): "requests that are under way",
    ("DELETE", "/dead-letters/{letter:str}"): "letters never change",
    ("POST", "/dead-letters/{letter:str}/retry"): "letters never change",
    ("DELETE", "/users/{user:str}/sessions"): "sessions never change, they end",
    ("DELETE", "/me/sessions/{session:str}"): "sessions never change, they end",
    # what makes something new, or holds for all of the server
    ("POST", "/queue/pause"): "nothing is stored",
    ("POST", "/queue/resume"): "nothing is stored",
    ("POST", "/me/token"): "nothing is stored",
}
#: What makes a new object has no version of it to match.
MAKES = {"/keys", "/join-tokens", "/users", "/service-accounts", "/me/keys", "/roles", "/access/rules", "/routes"}

CHANGES = [
    (method, path, handler)
    for room in management.ROOMS
    for handler in room.HANDLERS
    for path in handler.paths
    for method in sorted(getattr(handler, "http_methods", ()))
    if method not in {"GET", "HEAD", "OPTIONS"}
]


def test_there_are_such_routes_and_no_exception_is_idle():
    known = {(method, path) for method, path, _ in CHANGES}
    assert len(known) > 20
    assert set(WITHOUT) <= known
    assert {("POST", path) for path in MAKES} <= known


@pytest.mark.parametrize(("method", "path", "handler"), CHANGES, ids=[f"{method} {path}" for method, path, _ in CHANGES])
def test_a_change_is_held_to_the_version_that_its_maker_saw(method, path, handler):
    if (method, path) in WITHOUT or (method == "POST" and path in MAKES):
        return
    assert "version" in inspect.signature(handler.fn).parameters
