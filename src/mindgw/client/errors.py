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


def kind_for(status: int) -> type[ClientError]:
    """The error that an HTTP status stands for; `ClientError` itself for those without a meaning of their own."""
    return _BY_STATUS.get(status, ClientError)
