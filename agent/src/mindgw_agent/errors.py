"""Everything that can stop the agent, and the exit code that says so.

AgentError                 1   the operation failed
├── Misuse                 2   a flag, a token or an address is not what it should be
├── NotEnrolled            4   this state directory holds no identity yet
├── TokenRefused           4   the join token is expired, used, revoked or unknown
├── Dismissed              4   the server revoked or locked this agent
├── NameTaken              7   another worker has this name
├── Occupied               7   another process serves with this identity
├── Untrusted              9   the server did not prove that it is the one of the token
├── Unreachable            9   no server answered
├── ServiceFailed          1   systemd did not do what a service of the agent takes
└── BadState               1   a file of the state directory cannot be used

`cli.main` turns them into three lines on stderr; nothing else prints them.
"""


class AgentError(Exception):
    """The agent cannot do that."""

    #: What the process exits with, from the table of all faces.
    exit_code: int = 1
    #: Machine-readable name, stable across releases.
    code: str = "failed"
    #: The next step when the caller names none.
    default_hint: str = ""

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        #: What to do next, for people.
        self.hint = hint or self.default_hint
        self.code = code or self.code


class Misuse(AgentError):
    """Something that was given to the command is malformed."""

    exit_code = 2
    code = "usage"


class NotEnrolled(AgentError):
    """There is no identity here."""

    exit_code = 4
    code = "not_enrolled"
    default_hint = "make a token on the server with `mindgw join-tokens create`, then run `mindgw agent join TOKEN` here"


class TokenRefused(AgentError):
    """The server does not take this join token."""

    exit_code = 4
    code = "join_token_unknown"
    default_hint = "make a new token on the server with `mindgw join-tokens create` and join with that"


class Dismissed(AgentError):
    """The server does not let this agent in any more."""

    exit_code = 4
    code = "revoked"


class NameTaken(AgentError):
    """A worker of this name exists."""

    exit_code = 7
    code = "name_taken"
    default_hint = "choose another --name, or take the place of the old worker with --replace"


class Occupied(AgentError):
    """Somebody else serves with this identity."""

    exit_code = 7
    code = "occupied"


class Untrusted(AgentError):
    """The server is not the one of the token."""

    exit_code = 9
    code = "untrusted_server"


class Unreachable(AgentError):
    """No connection to the server."""

    exit_code = 9
    code = "unreachable"
    default_hint = "check that `mindgw serve` runs there and that this machine may connect out to it"


class ServiceFailed(AgentError):
    """systemctl said no, or there is none."""

    code = "systemctl_failed"


class BadState(AgentError):
    """A file of the state directory cannot be read or written."""

    code = "bad_state"
