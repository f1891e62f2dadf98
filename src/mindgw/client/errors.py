"""What can go wrong between a face and a server, each with the exit code that a command ends with.

ClientError                 1  the operation failed, or the server did
├── UsageProblem            2  the command was not complete, or needs an answer that nobody can give
├── CheckFailed             3  a check found problems
├── NotLoggedIn             4  no key, or a key that is no longer good
├── NotAllowed              5  the key may not do this
├── Missing                 6  no such object
├── Clash                   7  name taken, object changed, something busy
├── Limited                 8  over a rate or a quota
└── Unreachable             9  no connection, TLS, time ran out
    └── NotMindGW           9  somebody answers, but it is no MindGateway
"""

from mindgw.client.redaction import redact


class ClientError(Exception):
    """`message` says what happened, `hint` what to do next; neither ever holds a secret."""

    exit_code = 1
    #: Machine-readable, used when the server gave none.
    code = "failed"

    def __init__(self, message: str, *, hint: str = "", code: str = "", request_id: str = "") -> None:
        self.message = redact(message)
        self.hint = redact(hint)
        #: The server's own code where it sent one.
        self.code = code or type(self).code
        #: Finds the request in the server's log; empty when no server was reached.
        self.request_id = request_id
        super().__init__(self.message)


class UsageProblem(ClientError):
    exit_code = 2
    code = "usage"


class CheckFailed(ClientError):
    exit_code = 3
    code = "check_failed"


class NotLoggedIn(ClientError):
    exit_code = 4
    code = "not_logged_in"


class NotAllowed(ClientError):
    exit_code = 5
    code = "forbidden"


class Missing(ClientError):
    exit_code = 6
    code = "not_found"


class Clash(ClientError):
    exit_code = 7
    code = "conflict"


class Limited(ClientError):
    exit_code = 8
    code = "rate_limited"


class Unreachable(ClientError):
    exit_code = 9
    code = "unreachable"


class NotMindGW(Unreachable):
    code = "not_mindgw"

    def __init__(self, place: str, said: str, *, request_id: str = "") -> None:
        """`said` is what `place` (a URL) did that no MindGateway does."""
        hint = "is it the root address of a server, such as http://127.0.0.1:8420? `mindgw init` prints it"
        super().__init__(f"{place} is not a MindGateway: {said}", hint=hint, request_id=request_id)


_BY_STATUS: dict[int, type[ClientError]] = {
    400: UsageProblem,
    401: NotLoggedIn,
    403: NotAllowed,
    404: Missing,
    409: Clash,
    412: Clash,
    422: UsageProblem,
    429: Limited,
}


_BY_CODE = {
    "model_not_found": "`mindgw models list` shows what is served",
    "unsupported_endpoint": "`mindgw models list` shows what each model is for",
    "no_worker_available": "`mindgw workers list` shows which boxes are away",
    "worker_lost": "try again; `mindgw workers list` shows which boxes are away",
    "queue_full": "wait a little, then try again; `mindgw queue list` shows who waits",
    "queue_timeout": "wait a little, then try again; `mindgw queue list` shows who waits",
    "engine_unreachable": "`mindgw agent status` on the box says why",
    "engine_timeout": "`mindgw agent status` on the box says why",
    "provider_unreachable": "try again in a moment; `mindgw auth check` says more of it to who runs the server",
    "provider_failed": "`mindgw auth check` says more of it to who runs the server",
    "server_draining": "try again when the server is back",
    "context_length_exceeded": "send less, or choose a model with a larger context: `mindgw models list`",
}
_BY_HTTP = {
    400: "--help shows what it takes",
    401: "set MINDGW_TOKEN to a valid key; `mindgw init --new-admin-key` on the server makes one",
    403: "this needs another role: `mindgw me` shows which you have, `mindgw roles list` which there are",
    429: "wait a little, then try again",
    500: "the server's log says more under this id",
}


def next_step(code: str, status: int = 0) -> str:
    """What to do about a server's refusal that says nothing of it; empty when nothing is better than to read it."""
    return _BY_CODE.get(code) or _BY_HTTP.get(status, "")


#: Codes that mean something else than their status: who cannot be reached stands behind the server.
_KINDS = {"provider_unreachable": Unreachable, "provider_failed": Unreachable}


def kind_for(status: int, code: str = "") -> type[ClientError]:
    """The error that an HTTP status, or a code, stands for; `ClientError` itself for those without a meaning of their own."""
    return _KINDS.get(code) or _BY_STATUS.get(status, ClientError)
